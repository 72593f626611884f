//! Which windows an epoch evaluates.

use std::collections::BTreeMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use ratemill_rules::{Reach, ReferenceData, Rule, RuleProject};
use ratemill_schemas::{Window, WindowSpec};
use ratemill_schemas::windows::WindowError;

use super::manifest::WindowTask;
use super::state::{EngineState, OpenWindow};

/// When windows become final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finalize {
    /// By watermark or clock and the rule's grace.
    Live,
    /// Those wholly inside `[from, to)`, µs UTC; with `re_rate` also those that were published before.
    Range {
        /// First instant.
        from: i64,
        /// First instant after.
        to: i64,
        /// Evaluate published windows again with the present rules and reference data.
        re_rate: bool,
    },
    /// None: usage is only stored.
    Nothing,
}

/// Windows of each rule that the usage of an epoch falls into, with the first time that it was logged.
pub(super) type Touched<'p> = Vec<(&'p Rule, BTreeMap<Window, i64>)>;

/// The windows that these rows fall into.
pub(super) fn touched<'p>(rules: &'p [Rule], reference: &ReferenceData, batches: &[RecordBatch]) -> Result<Touched<'p>, WindowError> {
    let mut touched: Touched<'p> = rules.iter().filter(|rule| rule.reads_usage).map(|rule| (rule, BTreeMap::new())).collect();
    for batch in batches {
        let schema = batch.schema();
        let column = |name: &str| schema.index_of(name).ok().map(|index| batch.column(index));
        let (Some(meters), Some(subjects), Some(times), Some(ingested)) =
            (column("meter"), column("subject"), column("time"), column("ingested_at"))
        else {
            continue;
        };
        let (meters, subjects) = (meters.as_string::<i32>(), subjects.as_string::<i32>());
        let times = times.as_primitive::<TimestampMicrosecondType>().values();
        let ingested = ingested.as_primitive::<TimestampMicrosecondType>().values();
        for (rule, windows) in &mut touched {
            // Most rows fall into the window of the row before.
            let mut last: Option<Window> = None;
            for row in 0..batch.num_rows() {
                let same = rule.options.window != WindowSpec::BillingPeriod && last.is_some_and(|window| window.contains(times[row]));
                if same || !rule.reads(meters.value(row)) {
                    continue;
                }
                let Some(window) = rule.window_of(reference, subjects.value(row), times[row])? else { continue };
                last = Some(window);
                if rule.in_force_at(window.start) {
                    let first = windows.entry(window).or_insert(ingested[row]);
                    *first = (*first).min(ingested[row]);
                }
            }
        }
    }
    Ok(touched)
}

/// Published windows of versions that are no longer in the project, which these rows fall into.
pub(super) fn late_for_former(
    state: &EngineState,
    former: &[Rule],
    reference: &ReferenceData,
    batches: &[RecordBatch],
) -> Result<Vec<WindowTask>, WindowError> {
    let mut late = Vec::new();
    for (rule, windows) in touched(former, reference, batches)? {
        for window in windows.into_keys() {
            if let Some(range) = state.finalized(&rule.name, window)
                && range.published
                && range.rule_version == rule.version
            {
                late.push(WindowTask {
                    rule: rule.name.clone(),
                    rule_version: range.rule_version.clone(),
                    reference_version: range.reference_version.clone(),
                    window,
                    cause: "late usage".to_owned(),
                });
            }
        }
    }
    Ok(late)
}

/// Adds the published windows after the touched ones, for rules whose windows see what was before them.
pub(super) fn reach_onward(state: &EngineState, reference: &ReferenceData, touched: &mut Touched<'_>) -> Result<(), WindowError> {
    for (rule, windows) in touched.iter_mut().filter(|(rule, _)| rule.reach == Reach::Onward) {
        let Some((first, ingested)) = windows.first_key_value().map(|(window, ingested)| (*window, *ingested)) else { continue };
        let published = state.finalized.iter().filter(|range| range.rule == rule.name && range.published);
        let Some(to) = published.map(|range| range.end).max() else { continue };
        for window in rule.windows_between(reference, first.start, to)? {
            if window.start > first.start && state.finalized(&rule.name, window).is_some_and(|range| range.published) {
                windows.entry(window).or_insert(ingested);
            }
        }
    }
    Ok(())
}

/// Adds touched windows to the open ones, or returns them as late where they were published.
pub(super) fn note_usage(state: &mut EngineState, touched: Touched<'_>, watermark_before: Option<i64>) -> Vec<WindowTask> {
    let mut late = Vec::new();
    for (rule, windows) in touched {
        for (window, first_ingest) in windows {
            match state.finalized(&rule.name, window) {
                Some(range) if range.published => late.push(WindowTask {
                    rule: rule.name.clone(),
                    rule_version: range.rule_version.clone(),
                    reference_version: range.reference_version.clone(),
                    window,
                    cause: "late usage".to_owned(),
                }),
                found => {
                    let was_closed = found.is_some();
                    if was_closed {
                        state.reopen(&rule.name, window);
                    }
                    if !state.open.iter().any(|open| open.rule == rule.name && open.window == window) {
                        let deadline = window.end.saturating_add(rule.options.grace);
                        state.open.push(OpenWindow {
                            rule: rule.name.clone(),
                            window,
                            first_ingest,
                            late_as_a_whole: watermark_before.is_some_and(|watermark| watermark >= deadline),
                        });
                    }
                }
            }
        }
    }
    late
}

/// The windows that become final now, by rule and start.
pub(super) fn due(state: &EngineState, project: &RuleProject, clock: i64, finalize: Finalize) -> Result<Vec<WindowTask>, WindowError> {
    let mut tasks = Vec::new();
    for rule in &project.rules {
        let (from, to) = match finalize {
            Finalize::Nothing => return Ok(tasks),
            Finalize::Live => (rule.options.effective_from, clock.max(state.watermark.unwrap_or(clock))),
            Finalize::Range { from, to, .. } => (from.max(rule.options.effective_from), to),
        };
        for window in rule.windows_between(&project.reference, from, to)? {
            let published = state.finalized(&rule.name, window);
            let is_due = match finalize {
                Finalize::Range { from, to, re_rate } => window.start >= from && window.end <= to && (re_rate || published.is_none()),
                _ => published.is_none() && is_due(state, rule, window, clock),
            };
            if is_due {
                let cause = if published.is_some_and(|range| range.published) { "re-rate" } else { "window closed" };
                tasks.push(WindowTask {
                    rule: rule.name.clone(),
                    rule_version: rule.version.clone(),
                    reference_version: project.reference.version().to_owned(),
                    window,
                    cause: cause.to_owned(),
                });
            }
        }
    }
    Ok(tasks)
}

/// Whether the watermark, or the clock, has passed the window's end and grace. Usage that arrived after that as a
/// whole gives the window a new deadline, from its first ingest.
fn is_due(state: &EngineState, rule: &Rule, window: Window, clock: i64) -> bool {
    let deadline = window.end.saturating_add(rule.options.grace);
    let by_watermark = state.watermark.is_some_and(|watermark| watermark >= deadline);
    match state.open.iter().find(|open| open.rule == rule.name && open.window == window) {
        None => by_watermark || clock >= deadline,
        Some(open) => {
            let clock_deadline = if open.first_ingest > deadline { open.first_ingest.saturating_add(rule.options.grace) } else { deadline };
            (by_watermark && !open.late_as_a_whole) || clock >= clock_deadline
        }
    }
}
