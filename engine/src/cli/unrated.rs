//! `ratemill unrated`: usage that nothing charges, and why.

use clap::{Args, ValueEnum};

use super::table::rows_of_texts;
use super::{Failure, Project, stop_signal};
use crate::epoch::{PlaceText, UnratedEvent, UnratedGroup, UnratedQuestion, UnratedReport};
use crate::pipeline::{OpenError, open_audit, shown};
use crate::query::QueryError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// `ratemill unrated`
#[derive(Debug, Args)]
pub(super) struct Unrated {
    #[command(flatten)]
    project: Project,
    /// Only usage that this rule claims.
    #[arg(long, value_name = "NAME")]
    rule: Option<String>,
    /// List the events one by one, too.
    #[arg(long)]
    list: bool,
    /// List at most so many events.
    #[arg(long, default_value_t = 1000, value_name = "COUNT", requires = "list")]
    limit: usize,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Unrated {
    pub(super) async fn run(self) -> Result<(), Failure> {
        tokio::select! {
            outcome = self.tell() => outcome,
            () = stop_signal() => Err(Failure::interrupted()),
        }
    }

    async fn tell(&self) -> Result<(), Failure> {
        let folder = &self.project.folder;
        let Some(audit) = open_audit(folder, &shown(folder)).await? else {
            return Err(QueryError::Empty(shown(folder)).into());
        };
        if let Some(rule) = &self.rule
            && !audit.rules().any(|known| known == rule)
        {
            let hint = ratemill_schemas::nearest::did_you_mean(rule, audit.rules());
            return Err(Failure::usage(format!("the project has no rule `{rule}`{hint}")));
        }
        let question = UnratedQuestion { rule: self.rule.clone(), events_max: if self.list { self.limit } else { 0 } };
        let report = audit.unrated(&question).await.map_err(OpenError::from)?;
        match self.format {
            Format::Json => println!("{}", serde_json::to_string_pretty(&report).map_err(Failure::failed)?),
            Format::Text => print(&report)?,
        }
        for unknown in &report.not_analysed {
            eprintln!("rule `{}`, version {}, is not analysed: {}", unknown.rule, unknown.version, unknown.reason);
        }
        Ok(())
    }
}

fn print(report: &UnratedReport) -> Result<(), Failure> {
    if report.groups.is_empty() {
        println!("all usage is rated, as of epoch {}", report.epoch);
        return Ok(());
    }
    let rows: Vec<[String; 11]> = report.groups.iter().map(group).collect();
    let titles = ["rule", "window", "meter", "reason", "state", "events", "subjects", "quantity", "first event", "last event", "examples"];
    println!("{}", rows_of_texts(titles, &rows)?);
    if !report.listed.is_empty() {
        let rows: Vec<[String; 8]> = report.listed.iter().map(event).collect();
        println!("{}", rows_of_texts(["source", "id", "subject", "meter", "time", "quantity", "rule", "reason"], &rows)?);
    }
    if report.groups.iter().any(|group| group.waits) {
        eprintln!("what waits is rated by present reference data, which change other charges, too: `ratemill apply` posts both");
    }
    Ok(())
}

fn group(group: &UnratedGroup) -> [String; 11] {
    let about = if group.subjects_exact { "" } else { "about " };
    let state = match (group.waits, group.published) {
        (true, _) => "waits",
        (false, true) => "published",
        (false, false) => "open",
    };
    let examples: Vec<String> = group.examples.iter().map(|event| format!("{}/{}", event.source, event.id)).collect();
    [
        group.rule.clone().unwrap_or_default(),
        window(&group.place),
        group.meter.clone(),
        group.reason.clone(),
        state.to_owned(),
        group.events.to_string(),
        format!("{about}{}", group.subjects),
        group.quantity.clone().unwrap_or_else(|| "too large".to_owned()),
        group.first_event.clone(),
        group.last_event.clone(),
        examples.join(" "),
    ]
}

fn event(event: &UnratedEvent) -> [String; 8] {
    [
        event.source.clone(),
        event.id.clone(),
        event.subject.clone(),
        event.meter.clone(),
        event.time.clone(),
        event.quantity.clone(),
        event.rule.clone().unwrap_or_default(),
        event.reason.clone(),
    ]
}

fn window(place: &PlaceText) -> String {
    let bounds = place.window_start.as_ref().zip(place.window_end.as_ref());
    let bounds = bounds.map_or_else(String::new, |(start, end)| format!("{start} to {end}"));
    match &place.contract_id {
        Some(contract) => format!("{bounds} of contract {contract}"),
        None => bounds,
    }
}
