//! What the engine knows between epochs. Each completion record holds all of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ratemill_rules::RuleWindow;
use serde::{Deserialize, Serialize};

use super::changes::EventId;
use super::finalized::FinalizedWindows;
use super::mended::Examined;
use super::periods::ClosedPeriod;
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
    /// `changes`.
    #[serde(default)]
    pub changes: u64,
    /// `adopted`.
    #[serde(default)]
    pub adopted: u64,
    /// `running_charges`.
    #[serde(default)]
    pub running_charges: u64,
}

impl TableVersions {
    /// The version of a table.
    #[must_use]
    pub fn of(&self, table: &str) -> Option<u64> {
        Some(match table {
            "usage" => self.usage,
            "rejected" => self.rejected,
            "files" => self.files,
            "charges" => self.charges,
            "changes" => self.changes,
            "adopted" => self.adopted,
            super::RUNNING_CHARGES => self.running_charges,
            _ => return None,
        })
    }
}

/// How far an input has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputState {
    /// Highest event time of its durable batches, µs UTC.
    pub time_max: Option<i64>,
    /// When it last delivered, µs UTC.
    pub seen_at: i64,
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
    /// Position of the log after the last void or amendment of its events; 0 where there was none.
    #[serde(default)]
    pub changed_at: i64,
}

/// A version of a rule whose usage is noted with every epoch since it was first there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    /// The rule.
    pub rule: String,
    /// Its version; where windows are the contracts' own, that of the reference data, too.
    pub rule_version: String,
    /// A window that begins here or later has usage only if it is open or final, µs UTC.
    pub fresh_from: i64,
}

/// The state after an epoch.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct EngineState {
    /// Position of the log up to which everything is in the lake.
    pub position: i64,
    /// Inputs by name.
    pub inputs: BTreeMap<String, InputState>,
    /// Latest event time of all usage, µs UTC.
    #[serde(default)]
    pub latest_event: Option<i64>,
    /// Event time up to which all inputs have delivered, µs UTC.
    pub watermark: Option<i64>,
    /// Finalized windows, as ranges.
    pub finalized: FinalizedWindows,
    /// Windows with usage that are not finalized.
    pub open: Vec<OpenWindow>,
    /// For each rule version, from when on a window that is not open has no usage yet, µs UTC.
    #[serde(default)]
    pub tracked: Vec<Tracked>,
    /// Late windows whose rule failed; they are evaluated again with later epochs.
    #[serde(default)]
    pub pending: Vec<super::manifest::WindowTask>,
    /// Voided or amended events that have not arrived.
    #[serde(default)]
    pub waiting: BTreeSet<EventId>,
    /// What has been looked at for unrated usage that present reference data rate.
    #[serde(default)]
    pub examined: Option<Examined>,
    /// Closed invoicing months, in order.
    #[serde(default)]
    pub closed: Vec<ClosedPeriod>,
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

    /// Keeps track of these versions; one that is new has not seen usage before `now_at_latest`.
    pub fn track<'r>(&mut self, versions: impl Iterator<Item = (&'r str, String)>, now_at_latest: i64) {
        let before = std::mem::take(&mut self.tracked);
        for (rule, version) in versions {
            let known = before.iter().find(|tracked| tracked.rule == rule && tracked.rule_version == version);
            self.tracked.push(known.cloned().unwrap_or_else(|| Tracked {
                rule: rule.to_owned(),
                rule_version: version,
                fresh_from: now_at_latest,
            }));
        }
    }

    /// From when on a window of this version that is not open has no usage, µs UTC.
    #[must_use]
    pub fn fresh_from(&self, rule: &str, version: &str) -> i64 {
        let tracked = self.tracked.iter().find(|tracked| tracked.rule == rule && tracked.rule_version == version);
        tracked.map_or(i64::MAX, |tracked| tracked.fresh_from)
    }

    /// Windows of a rule that are open no longer.
    pub fn close(&mut self, rule: &str, windows: &HashSet<&RuleWindow>) {
        self.open.retain(|open| open.rule != rule || !windows.contains(&open.window));
    }
}
