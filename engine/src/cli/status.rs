//! `ratemill status`.

use clap::{Args, ValueEnum};

use super::{Failure, Project};
use crate::pulse::LiveStatus;
use crate::status::{LakeStatus, Status as Report};

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
    let mut lines = Vec::new();
    match &report.lake {
        Some(lake) => of_lake(lake, &mut lines),
        None => lines.push("lake       no epoch is completed yet".to_owned()),
    }
    match (report.engine, &report.live) {
        ("running", Some(live)) => of_engine(live, &mut lines),
        (_, Some(live)) => {
            lines.push(format!("engine     process {} was last heard of at {}: it is gone, or hangs", live.pid, live.written_at));
        }
        (_, None) => lines.push("engine     none runs in the log folder of this project".to_owned()),
    }
    lines.join("\n") + "\n"
}

fn of_lake(report: &LakeStatus, lines: &mut Vec<String>) {
    let unknown = || "-".to_owned();
    lines.push(format!("lake       {}", report.lake));
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
}

fn of_engine(live: &LiveStatus, lines: &mut Vec<String>) {
    let http = live.http.as_ref().map_or_else(String::new, |address| format!(", http://{address}"));
    lines.push(format!("engine     process {} since {}{http}; back-pressure: {}", live.pid, live.started_at, live.back_pressure));
    for input in &live.inputs {
        let counts = &input.counts;
        let lag = input.lag_seconds.map_or_else(String::new, |lag| format!(", latest event {lag} s behind the clock"));
        lines.push(format!(
            "rate       {}: {} records/s ({} in the last minute), since the start {} accepted, {} duplicate, {} conflict, {} rejected, {} refused{lag}",
            input.input,
            input.per_second,
            input.last_minute,
            counts.accepted,
            counts.duplicate,
            counts.conflict,
            counts.rejected,
            counts.refused
        ));
    }
    let (log, queue) = (&live.log, &live.queue);
    lines.push(format!(
        "log        {} of {} bytes not in the lake yet ({} records), queue {} of {} bytes unacknowledged",
        log.undrained_bytes,
        log.quota_bytes,
        (log.position - log.drained).max(0),
        queue.bytes,
        queue.capacity_bytes
    ));
    lines.push(format!("dedup      {} event ids in memory, {} on disk", live.dedup.in_memory, live.dedup.on_disk));
    lines.push(format!("windows    {} open, folded state {} bytes", live.open_windows, live.fold_state_bytes));
    let epochs = &live.epochs;
    lines.push(format!("epochs     {} since the start, the last took {} ms, {} failed", epochs.completed, epochs.last_ms, epochs.failed));
    if let Some(error) = epochs.last_error.as_ref().filter(|_| epochs.failed_in_a_row > 0) {
        lines.push(format!("failing    {} times in a row: {error}", epochs.failed_in_a_row));
    }
    lines.extend(epochs.rule_failures.iter().map(|failure| format!("failing    {failure}")));
}
