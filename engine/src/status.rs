//! How far a lake is: its owner, the last epoch, inputs, watermark and windows. Read from the lake, whoever runs it; and what
//! the engine says of itself, where it runs on this machine.

use std::collections::BTreeMap;
use std::path::Path;

use ratemill_schemas::time::{format_instant, now};
use serde::Serialize;

use crate::config::Settings;
use crate::epoch::{EngineState, latest_completion};
use crate::lake::Lake;
use crate::lake::owner::{Holder, holder};
use crate::pulse::{self, Found, LiveStatus};
use crate::query::QueryError;

/// What `ratemill status` shows. Instants are RFC 3339 in UTC, spans whole seconds.
#[derive(Debug, Serialize)]
pub struct Status {
    /// What the lake says; none before the first epoch.
    #[serde(flatten)]
    pub lake: Option<LakeStatus>,
    /// Whether an engine runs in the log folder of the project on this machine: `running`, `gone` without a word, or `none`.
    pub engine: &'static str,
    /// What it says of itself, or said last.
    pub live: Option<LiveStatus>,
}

/// How far the lake is.
#[derive(Debug, Serialize)]
pub struct LakeStatus {
    /// URL of the lake.
    pub lake: String,
    /// Who holds it, or held it last.
    pub owner: Option<Holder>,
    /// The last completed epoch.
    pub epoch: i64,
    /// When that was.
    pub completed_at: String,
    /// Seconds since then.
    pub completed_seconds_ago: i64,
    /// Position of the usage log up to which everything is in the lake.
    pub position: i64,
    /// Event time up to which all inputs have delivered.
    pub watermark: Option<String>,
    /// The inputs.
    pub inputs: Vec<InputStatus>,
    /// The rules that have windows.
    pub rules: Vec<RuleStatus>,
    /// Late windows that wait for a rule to be mended.
    pub waiting: usize,
}

/// How far an input has come.
#[derive(Debug, Serialize)]
pub struct InputStatus {
    /// Its name.
    pub input: String,
    /// Latest event time that it delivered.
    pub latest_event: Option<String>,
    /// Seconds since it last delivered.
    pub seen_seconds_ago: i64,
    /// Silent for so long that it holds the watermark back no longer.
    pub idle: bool,
}

/// Windows of a rule.
#[derive(Debug, Serialize)]
pub struct RuleStatus {
    /// The rule.
    pub rule: String,
    /// Windows, or contracts' billing periods, that have usage and are not final.
    pub open: usize,
    /// Start of the first of them.
    pub first_open: Option<String>,
    /// End of the last window that is final.
    pub final_to: Option<String>,
}

impl Status {
    /// The status of the project in `folder`.
    ///
    /// # Errors
    /// [`QueryError::Empty`] before the first epoch, unless an engine runs.
    pub async fn read(folder: &Path) -> Result<Self, QueryError> {
        let settings = Settings::load_for_reading(folder)?;
        let (engine, live) = match pulse::find(&settings.log_folder) {
            Found::None => ("none", None),
            Found::Running(live) => ("running", Some(*live)),
            Found::Gone(live) => ("gone", Some(*live)),
        };
        let url = Lake::open(&settings.config.lake.url, folder)?;
        match LakeStatus::read(&url, settings.idle).await? {
            None if engine != "running" => Err(QueryError::Empty(url.url().to_string())),
            lake => Ok(Self { lake, engine, live }),
        }
    }
}

impl LakeStatus {
    async fn read(lake: &Lake, idle_after: i64) -> Result<Option<Self>, QueryError> {
        let Some(completion) = latest_completion(lake).await? else { return Ok(None) };
        let clock = now();
        let state = &completion.state;
        let inputs = state.inputs.iter().map(|(name, input)| InputStatus {
            input: name.clone(),
            latest_event: input.time_max.map(format_instant),
            seen_seconds_ago: seconds(clock, input.seen_at),
            idle: input.seen_at.saturating_add(idle_after) < clock,
        });
        Ok(Some(Self {
            lake: lake.url().to_string(),
            owner: holder(lake).await?,
            epoch: completion.epoch,
            completed_at: format_instant(completion.completed_at),
            completed_seconds_ago: seconds(clock, completion.completed_at),
            position: state.position,
            watermark: state.watermark.map(format_instant),
            inputs: inputs.collect(),
            rules: rules(state),
            waiting: state.pending.len(),
        }))
    }
}

fn seconds(clock: i64, instant: i64) -> i64 {
    clock.saturating_sub(instant).max(0) / 1_000_000
}

fn rules(state: &EngineState) -> Vec<RuleStatus> {
    /// Number of open windows, start of the first, end of the last final one.
    #[derive(Default)]
    struct Windows {
        open: usize,
        first_open: Option<i64>,
        final_to: Option<i64>,
    }
    let mut rules: BTreeMap<&str, Windows> = BTreeMap::new();
    for open in &state.open {
        let windows = rules.entry(&open.rule).or_default();
        let start = open.window.window.start;
        windows.open += 1;
        windows.first_open = Some(windows.first_open.map_or(start, |first| first.min(start)));
    }
    for range in state.finalized.iter() {
        let windows = rules.entry(&range.rule).or_default();
        windows.final_to = windows.final_to.max(Some(range.end));
    }
    let status = |(rule, windows): (&str, Windows)| RuleStatus {
        rule: rule.to_owned(),
        open: windows.open,
        first_open: windows.first_open.map(format_instant),
        final_to: windows.final_to.map(format_instant),
    };
    rules.into_iter().map(status).collect()
}
