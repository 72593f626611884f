//! `ratemill explain charge`.

use clap::Args;
use ratemill_rules::evaluate::PricingCall;
use serde_json::Value;

use super::Format;
use crate::cli::{Failure, Project, stop_signal, with_causes};
use crate::epoch::{ChargeExplanation, EpochError, ExplainError};
use crate::pipeline::{open_explainer, shown};
use crate::query::QueryError;

/// `ratemill explain charge ID…`
#[derive(Debug, Args)]
pub(super) struct ExplainCharge {
    /// The charge_id, or its first eight characters and more; of several charges one after the other.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    project: Project,
    /// How it is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// How many usage events to list; all are counted.
    #[arg(long, default_value_t = 20, value_name = "N")]
    events: usize,
}

impl ExplainCharge {
    pub(super) async fn run(self) -> Result<(), Failure> {
        tokio::select! {
            outcome = self.explain() => outcome,
            () = stop_signal() => Err(Failure::interrupted()),
        }
    }

    async fn explain(&self) -> Result<(), Failure> {
        let folder = &self.project.folder;
        let Some(explainer) = open_explainer(folder, &shown(folder)).await? else {
            return Err(QueryError::Empty(shown(folder)).into());
        };
        let mut wrong = Vec::new();
        for (index, id) in self.ids.iter().enumerate() {
            let explained = explainer.explain(id, self.events).await.map_err(failure)?;
            match self.format {
                Format::Json => println!("{}", serde_json::to_string_pretty(&explained).map_err(Failure::failed)?),
                Format::Text => print!("{}{}", if index == 0 { "" } else { "\n" }, text(&explained)),
            }
            let recomputed = &explained.recomputed;
            if !recomputed.equal {
                let now = recomputed.recomputed_amount.as_deref().unwrap_or("no such charge");
                let stored = &recomputed.stored_amount;
                wrong.push(format!("the ledger has {stored} for charge {}, rated again it is {now}", explained.explains));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(Failure::mismatch(wrong.join("; "))) }
    }
}

fn failure(error: ExplainError) -> Failure {
    match &error {
        ExplainError::Id(message) => Failure::usage(message),
        ExplainError::Epoch(EpochError::Version { .. }) => Failure::rules(with_causes(&error)),
        _ => Failure::failed(with_causes(&error)),
    }
}

fn text(explained: &ChargeExplanation) -> String {
    let mut lines = Vec::new();
    let width = explained.charge.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.extend(explained.charge.0.iter().map(|(name, value)| format!("{name:width$}  {value}")));
    lines.push(String::new());
    recomputed(explained, &mut lines);
    if explained.chain.len() > 1 {
        lines.push("\nchain".to_owned());
        for row in &explained.chain {
            let takes_back = row.reverses.as_ref().map_or_else(String::new, |reversed| format!(", takes back {}", short(reversed)));
            let force = if row.in_force { ", in force" } else { "" };
            lines.push(format!(
                "  {}  {}  {:10}  {}  ({}, epoch {}, posted to {}){takes_back}{force}",
                row.revision,
                short(&row.charge_id),
                row.class,
                row.amount,
                row.cause,
                row.epoch,
                row.posting_period
            ));
        }
    }
    if !explained.pricing.is_empty() {
        lines.push("\nprice".to_owned());
        explained.pricing.iter().for_each(|call| pricing(call, &mut lines));
    }
    if !explained.charges.is_empty() {
        lines.push(format!("\nmade of {} charges", explained.charges.len()));
        for read in &explained.charges {
            let id = read.charge_id.as_deref().map_or("not published", |id| id);
            let earlier = if read.earlier { " (earlier window)" } else { "" };
            lines.push(format!("  {id}  {}{earlier}  {}  {}  {} {}", read.rule, read.window_start, read.item, read.amount, read.currency));
        }
    }
    for table in &explained.reference {
        let shown = table.rows.len();
        let more = if shown < table.count { format!(", the first {shown} of them") } else { String::new() };
        let rows = if table.count == 1 { "row" } else { "rows" };
        lines.push(format!("\nreference {} ({} {rows}{more})", table.table, table.count));
        lines.extend(table.rows.iter().map(|row| format!("  {}", object(row))));
    }
    usage(explained, &mut lines);
    if !explained.notes.is_empty() {
        lines.push(String::new());
        lines.extend(explained.notes.iter().map(|note| format!("note: {note}")));
    }
    lines.join("\n") + "\n"
}

fn recomputed(explained: &ChargeExplanation, lines: &mut Vec<String>) {
    let recomputed = &explained.recomputed;
    let of = if explained.charge.get("charge_id") == Some(explained.explains.as_str()) {
        String::new()
    } else {
        lines.push(format!("it takes back {}, which is explained below", explained.explains));
        format!(" of {}", short(&explained.explains))
    };
    if recomputed.equal {
        lines.push(format!(
            "rated again{of}: {}, as stored, to the last digit (usage version {})",
            recomputed.stored_amount, recomputed.usage_version
        ));
        return;
    }
    let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
    lines.push(format!("rated again{of}, it is not what is stored (usage version {})", recomputed.usage_version));
    for (column, stored, now) in &recomputed.differences {
        lines.push(format!("  {column}: stored {}, rated again {}", value(stored), value(now)));
    }
}

fn pricing(call: &PricingCall, lines: &mut Vec<String>) {
    for row in &call.calls {
        let arguments: Vec<String> = row.arguments.iter().map(|(name, value)| format!("{name} {}", plain(value))).collect();
        lines.push(format!("  {}: {}({}) = {}", call.column, call.function, arguments.join(", "), plain(&row.result)));
        lines.extend(row.steps.iter().map(|step| format!("    {}", object(step))));
    }
    if call.calls.len() < call.count {
        lines.push(format!("  … and {} more calls of {}", call.count - call.calls.len(), call.function));
    }
}

fn usage(explained: &ChargeExplanation, lines: &mut Vec<String>) {
    if explained.totals.is_empty() {
        return;
    }
    lines.push("\nusage".to_owned());
    for total in &explained.totals {
        let events = if total.count == 1 { "event" } else { "events" };
        let opening = if total.read_as == "opening" { " before the window (opening)" } else { "" };
        lines.push(format!("  {}: {} {events}{opening}, quantity {}", total.meter, total.count, total.quantity));
    }
    for event in &explained.events {
        lines.push(format!("  {}  {}  {}  {}  {}  {}", event.time, event.source, event.id, event.meter, event.subject, event.quantity));
    }
    let all: usize = explained.totals.iter().map(|total| total.count).sum();
    if explained.events.len() < all {
        lines.push(format!("  … and {} more; --events N lists more", all - explained.events.len()));
    }
}

fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// A value as people read it: texts without quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The members of an object, beside each other.
fn object(value: &Value) -> String {
    match value {
        Value::Object(members) => members.iter().map(|(name, value)| format!("{name} {}", plain(value))).collect::<Vec<_>>().join(", "),
        other => plain(other),
    }
}
