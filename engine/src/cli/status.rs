//! `ratemill status`.

use clap::{Args, ValueEnum};

use super::{Failure, Project};
use crate::status::Status as Report;

/// `ratemill status -C DIR`
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    project: Project,
    /// How it is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Status {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let report = Report::read(&self.project.folder).await?;
        match self.format {
            Format::Json => println!("{}", serde_json::to_string_pretty(&report).map_err(Failure::failed)?),
            Format::Text => print!("{}", text(&report)),
        }
        Ok(())
    }
}

fn text(report: &Report) -> String {
    let unknown = || "-".to_owned();
    let mut lines = vec![format!("lake       {}", report.lake)];
    if let Some(owner) = &report.owner {
        let held = if owner.released { "given up by" } else { "held by" };
        let renewed = if owner.released { String::new() } else { format!(", lease renewed {} s ago", owner.renewed_seconds_ago) };
        lines.push(format!(
            "owner      {held} process {} on {} (log {}, generation {}){renewed}",
            owner.pid, owner.host, owner.log_id, owner.generation
        ));
    }
    lines.push(format!("epoch      {}, {} s ago, log position {}", report.epoch, report.completed_seconds_ago, report.position));
    lines.push(format!("watermark  {}", report.watermark.clone().unwrap_or_else(unknown)));
    for input in &report.inputs {
        let latest = input.latest_event.clone().unwrap_or_else(unknown);
        let idle = if input.idle { ", idle" } else { "" };
        lines.push(format!("input      {}: usage up to {latest}, last heard {} s ago{idle}", input.input, input.seen_seconds_ago));
    }
    for rule in &report.rules {
        let first = rule.first_open.as_ref().map_or_else(String::new, |first| format!(" from {first}"));
        let last = rule.final_to.clone().unwrap_or_else(unknown);
        lines.push(format!("rule       {}: final up to {last}, {} open{first}", rule.rule, rule.open));
    }
    if report.waiting > 0 {
        lines.push(format!("waiting    {} late windows whose rule failed; see the log of the engine", report.waiting));
    }
    lines.join("\n") + "\n"
}
