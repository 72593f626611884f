//! What the engine knows between epochs. Each completion record holds all of it.

use std::collections::BTreeMap;

use ratemill_rules::RuleWindow;
use ratemill_schemas::Window;
use serde::{Deserialize, Serialize};

use crate::log::FrameHeader;

/// Versions of the lake's tables that belong together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableVersions {
    /// `usage`.
    pub usage: u64,
    /// `rejected`.
    pub rejected: u64,
    /// `files`.
    pub files: u64,
    /// `charges`.
    pub charges: u64,
}

/// How far an input has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputState {
    /// Highest event time of its durable batches, µs UTC.
    pub time_max: Option<i64>,
    /// When it last delivered, µs UTC.
    pub seen_at: i64,
}

/// A range of windows of one rule that were finalized with the same versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finalized {
    /// The rule.
    pub rule: String,
    /// Its version.
    pub rule_version: String,
    /// The reference version.
    pub reference_version: String,
    /// Start of the first window.
    pub start: i64,
    /// End of the last window.
    pub end: i64,
    /// Whether anything was published; an empty window without usage may still get its original charges.
    pub published: bool,
    /// The contract, where it is one billing period and no range.
    #[serde(default)]
    pub contract_id: Option<String>,
}

impl Finalized {
    /// One window that is finalized.
    pub fn window(task: &super::manifest::WindowTask, published: bool) -> Self {
        Self {
            rule: task.rule.clone(),
            rule_version: task.rule_version.clone(),
            reference_version: task.reference_version.clone(),
            start: task.window.window.start,
            end: task.window.window.end,
            published,
            contract_id: task.window.contract_id.clone(),
        }
    }

    fn holds(&self, rated: &RuleWindow) -> bool {
        let window = rated.window;
        self.contract_id == rated.contract_id
            && if self.contract_id.is_some() {
                self.start == window.start && self.end == window.end
            } else {
                self.start <= window.start && window.end <= self.end
            }
    }
}

/// A window that has usage and is not finalized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenWindow {
    /// The rule.
    pub rule: String,
    /// The window.
    pub window: RuleWindow,
    /// When its first usage was logged, µs UTC.
    pub first_ingest: i64,
    /// The watermark had passed it by then: its deadline runs from the first ingest.
    pub late_as_a_whole: bool,
}

/// The state after an epoch.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct EngineState {
    /// Position of the log up to which everything is in the lake.
    pub position: i64,
    /// Inputs by name.
    pub inputs: BTreeMap<String, InputState>,
    /// Event time up to which all inputs have delivered, µs UTC.
    pub watermark: Option<i64>,
    /// Finalized windows, as ranges.
    pub finalized: Vec<Finalized>,
    /// Windows with usage that are not finalized.
    pub open: Vec<OpenWindow>,
    /// Late windows whose rule failed; they are evaluated again with later epochs.
    #[serde(default)]
    pub pending: Vec<super::manifest::WindowTask>,
}

impl EngineState {
    /// Takes note of the frames of an epoch. A configured input that has not delivered since `opened_at` holds the
    /// watermark until it is idle.
    pub fn advance(&mut self, headers: &[FrameHeader], configured: &[String], opened_at: i64, clock: i64, idle: i64) {
        for name in configured {
            let input = self.inputs.entry(name.clone()).or_insert(InputState { time_max: None, seen_at: opened_at });
            input.seen_at = input.seen_at.max(opened_at);
        }
        for header in headers {
            for progress in &header.inputs {
                let input = self.inputs.entry(progress.input.clone()).or_insert(InputState { time_max: None, seen_at: header.ingested_at });
                input.time_max = input.time_max.max(progress.time_max);
                input.seen_at = input.seen_at.max(header.ingested_at);
            }
            self.position = self.position.max(header.end());
        }
        let active: Vec<&InputState> = self.inputs.values().filter(|input| input.seen_at.saturating_add(idle) >= clock).collect();
        let reached = if active.is_empty() {
            // With nobody active, nobody holds it back.
            self.inputs.values().filter_map(|input| input.time_max).max()
        } else {
            active.iter().map(|input| input.time_max).min().flatten()
        };
        self.watermark = self.watermark.max(reached);
    }

    /// How `window` of `rule` was finalized, if it was.
    #[must_use]
    pub fn finalized(&self, rule: &str, window: &RuleWindow) -> Option<&Finalized> {
        self.finalized.iter().find(|range| range.rule == rule && range.holds(window))
    }

    /// The published billing period of `contract` that holds `time`, however it was cut.
    #[must_use]
    pub fn published_period(&self, rule: &str, contract: &str, time: i64) -> Option<Window> {
        let holds = |range: &&Finalized| {
            range.rule == rule && range.published && range.contract_id.as_deref() == Some(contract) && range.start <= time && time < range.end
        };
        self.finalized.iter().find(holds).map(|range| Window { start: range.start, end: range.end })
    }

    /// Whether a billing period overlaps a published one of its contract that was cut differently and does not lie wholly
    /// inside `re_rated`.
    #[must_use]
    pub fn is_cut_differently(&self, rule: &str, rated: &RuleWindow, re_rated: Window) -> bool {
        rated.contract_id.is_some()
            && self.finalized.iter().any(|range| {
                range.rule == rule
                    && range.published
                    && range.contract_id == rated.contract_id
                    && !range.holds(rated)
                    && !(re_rated.start <= range.start && range.end <= re_rated.end)
                    && range.start < rated.window.end
                    && rated.window.start < range.end
            })
    }

    /// Marks a window as finalized; ranges that touch are joined.
    pub fn finalize(&mut self, new: Finalized) {
        let window = RuleWindow { window: Window { start: new.start, end: new.end }, contract_id: new.contract_id.clone() };
        self.reopen(&new.rule, &window);
        self.open.retain(|open| !(open.rule == new.rule && open.window == window));
        let joins = |range: &Finalized| {
            range.rule == new.rule
                && range.contract_id.is_none()
                && new.contract_id.is_none()
                && range.rule_version == new.rule_version
                && range.reference_version == new.reference_version
                && range.published == new.published
        };
        if let Some(before) = self.finalized.iter_mut().find(|range| joins(range) && range.end == new.start) {
            before.end = new.end;
        } else if let Some(after) = self.finalized.iter_mut().find(|range| joins(range) && range.start == new.end) {
            after.start = new.start;
        } else {
            self.finalized.push(new);
        }
    }

    /// Takes a window out of the finalized ranges.
    pub fn reopen(&mut self, rule: &str, rated: &RuleWindow) {
        let Some(index) = self.finalized.iter().position(|range| range.rule == rule && range.holds(rated)) else { return };
        let window = rated.window;
        let range = self.finalized.remove(index);
        if range.start < window.start {
            self.finalized.push(Finalized { end: window.start, ..range.clone() });
        }
        if window.end < range.end {
            self.finalized.push(Finalized { start: window.end, ..range });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_and_split() {
        let mut state = EngineState::default();
        let range = |start, end, published| Finalized {
            rule: "r".to_owned(),
            rule_version: "v".to_owned(),
            reference_version: "f".to_owned(),
            start,
            end,
            published,
            contract_id: None,
        };
        let window = |start, end| RuleWindow { window: Window { start, end }, contract_id: None };
        for start in 0..5 {
            state.finalize(range(start, start + 1, true));
        }
        assert_eq!(state.finalized, [range(0, 5, true)]);
        state.finalize(range(2, 3, false));
        assert!(state.finalized("r", &window(2, 3)).is_some_and(|found| !found.published));
        assert!(state.finalized("r", &window(3, 4)).is_some_and(|found| found.published));
        assert!(state.finalized("r", &window(5, 6)).is_none());
    }
}
