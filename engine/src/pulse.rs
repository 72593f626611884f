//! What a live engine knows of itself: counts and rates of its inputs, how full log and queue are, and how its epochs go.
//! Shown by `GET /v1/status`, `ratemill status` and `/metrics`.

mod beacon;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ratemill_connectors::QueueRoom;
use ratemill_schemas::time::{format_instant, now};
use serde::{Deserialize, Serialize};

pub use beacon::{Beacon, Found, engine_url, find};

use crate::capture::CaptureProgress;
use crate::epoch::{EngineState, EpochReport};

/// Seconds over which the rate of an input is told.
const MINUTE: i64 = 60;

/// What happened since the start, as capture and epochs note it.
#[derive(Debug, Default)]
pub struct Pulse(Mutex<Beats>);

#[derive(Debug, Default)]
struct Beats {
    inputs: BTreeMap<String, Input>,
    dedup: DedupStatus,
    epochs: EpochsStatus,
    /// Open windows' state and watermark, as of the last epoch.
    watermark: Option<i64>,
    open_windows: usize,
    waiting_windows: usize,
    fold_bytes: usize,
}

/// One connector.
#[derive(Debug, Default)]
struct Input {
    counts: InputCounts,
    latest_event: Option<i64>,
    seen_at: i64,
    recent: Recent,
}

/// Records of one connector since the start of the engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputCounts {
    /// New events, voids and amendments.
    pub accepted: u64,
    /// The same again.
    pub duplicate: u64,
    /// A known identity with other content.
    pub conflict: u64,
    /// What could not be taken.
    pub rejected: u64,
    /// Sent back because the log was full; they come again.
    pub refused: u64,
}

/// Events by second, over the last minute.
#[derive(Debug)]
struct Recent {
    seconds: [u64; MINUTE as usize],
    /// The second that was counted last.
    last: i64,
}

impl Default for Recent {
    fn default() -> Self {
        Self { seconds: [0; MINUTE as usize], last: 0 }
    }
}

impl Recent {
    /// Goes on to `second`; those in between had none.
    fn advance(&mut self, second: i64) {
        for passed in (self.last + 1).max(second - MINUTE + 1)..=second {
            self.seconds[slot(passed)] = 0;
        }
        self.last = self.last.max(second);
    }

    fn add(&mut self, second: i64, events: u64) {
        self.advance(second);
        self.seconds[slot(self.last)] += events;
    }

    fn sum(&mut self, second: i64) -> u64 {
        self.advance(second);
        self.seconds.iter().sum()
    }
}

fn slot(second: i64) -> usize {
    usize::try_from(second.rem_euclid(MINUTE)).unwrap_or_default()
}

/// What became of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// New.
    Accepted,
    /// The same again.
    Duplicate,
    /// A known identity with other content.
    Conflict,
    /// Not taken.
    Rejected,
    /// Sent back because the log was full.
    Refused,
}

impl Outcome {
    /// The word in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::Rejected => "rejected",
            Self::Refused => "refused",
        }
    }
}

impl Pulse {
    fn beats(&self) -> MutexGuard<'_, Beats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts records of a connector.
    pub fn count(&self, input: &str, outcome: Outcome, records: usize) {
        if records == 0 {
            return;
        }
        metrics::counter!("ratemill_ingest_events_total", "connector" => input.to_owned(), "outcome" => outcome.as_str())
            .increment(records as u64);
        let (clock, records) = (now(), records as u64);
        let mut beats = self.beats();
        let input = beats.inputs.entry(input.to_owned()).or_default();
        let counts = &mut input.counts;
        *match outcome {
            Outcome::Accepted => &mut counts.accepted,
            Outcome::Duplicate => &mut counts.duplicate,
            Outcome::Conflict => &mut counts.conflict,
            Outcome::Rejected => &mut counts.rejected,
            Outcome::Refused => &mut counts.refused,
        } += records;
        if outcome != Outcome::Refused {
            input.seen_at = clock;
            input.recent.add(clock / 1_000_000, records);
        }
    }

    /// Notes the latest event time of a connector, µs UTC.
    pub fn note_event(&self, input: &str, time: Option<i64>) {
        let mut beats = self.beats();
        if let Some(input) = beats.inputs.get_mut(input) {
            input.latest_event = input.latest_event.max(time);
        }
    }

    /// Notes how many event ids are known, in memory and on disk.
    pub fn note_ids(&self, (in_memory, on_disk): (usize, usize)) {
        self.beats().dedup = DedupStatus { in_memory, on_disk };
    }

    /// Notes where the lake is, and how many bytes the state of open windows takes.
    pub fn note_state(&self, epoch: i64, state: &EngineState, fold_bytes: usize) {
        let mut beats = self.beats();
        beats.epochs.last = epoch;
        beats.watermark = state.watermark;
        (beats.open_windows, beats.waiting_windows, beats.fold_bytes) = (state.open.len(), state.pending.len(), fold_bytes);
    }

    /// Notes epochs that were completed together within `elapsed`.
    pub fn note_epochs(&self, reports: &[EpochReport], elapsed: Duration) {
        let mut beats = self.beats();
        let epochs = &mut beats.epochs;
        epochs.failed_in_a_row = 0;
        if reports.is_empty() {
            return;
        }
        epochs.completed += reports.len();
        epochs.last_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        epochs.last_completed_at = Some(format_instant(now()));
        epochs.rule_failures = reports.last().map_or_else(Vec::new, |report| report.failures.clone());
    }

    /// Notes that an epoch failed.
    pub fn note_failure(&self, error: &dyn std::fmt::Display) {
        let mut beats = self.beats();
        beats.epochs.failed += 1;
        beats.epochs.failed_in_a_row += 1;
        beats.epochs.last_error = Some(error.to_string());
    }
}

/// What a live engine says of itself. Instants are RFC 3339 in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveStatus {
    /// Its process.
    pub pid: u32,
    /// The generation of the lake that it holds.
    pub generation: u64,
    /// When it was started.
    pub started_at: String,
    /// When this was written.
    pub written_at: String,
    /// The HTTP listener, where there is one.
    pub http: Option<String>,
    /// `none`, `queue full` or `log quota reached`.
    pub back_pressure: String,
    /// The connectors that have delivered since the start.
    pub inputs: Vec<LiveInput>,
    /// The usage log.
    pub log: LogStatus,
    /// What waits for the log, unacknowledged.
    pub queue: QueueStatus,
    /// Known event ids.
    pub dedup: DedupStatus,
    /// Epochs since the start.
    pub epochs: EpochsStatus,
    /// Event time up to which all inputs have delivered.
    pub watermark: Option<String>,
    /// Windows with usage that are not final.
    pub open_windows: usize,
    /// Late windows that wait for a rule to be mended.
    pub waiting_windows: usize,
    /// Bytes of memory that folded open windows take.
    pub fold_state_bytes: usize,
}

/// A connector since the start of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveInput {
    /// Its name.
    pub input: String,
    /// Records that came in the last minute, of every outcome but refused.
    pub last_minute: u64,
    /// The same by the second, over the minute or the time since the start.
    pub per_second: u64,
    /// By outcome.
    #[serde(flatten)]
    pub counts: InputCounts,
    /// Latest event time.
    pub latest_event: Option<String>,
    /// Seconds from the latest event time to now.
    pub lag_seconds: Option<i64>,
    /// Seconds since it last delivered.
    pub seen_seconds_ago: i64,
}

/// The usage log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Position up to which it is durable.
    pub position: i64,
    /// Position up to which the lake has everything.
    pub drained: i64,
    /// Bytes that the lake does not have yet.
    pub undrained_bytes: u64,
    /// Bytes from which on senders are pushed back.
    pub quota_bytes: u64,
}

/// The queue before the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Bytes that wait and are not acknowledged.
    pub bytes: usize,
    /// Bytes that it takes.
    pub capacity_bytes: usize,
}

/// Known event ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedupStatus {
    /// In memory.
    pub in_memory: usize,
    /// Older ones, on disk.
    pub on_disk: usize,
}

/// Epochs since the start of the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochsStatus {
    /// Number of the last one that was completed, by whomever.
    pub last: i64,
    /// Completed since the start.
    pub completed: usize,
    /// When the last one was.
    pub last_completed_at: Option<String>,
    /// How long it took, in ms; several that ran together count as one.
    pub last_ms: u64,
    /// Attempts that failed since the start.
    pub failed: usize,
    /// Attempts that failed since the last that did not.
    pub failed_in_a_row: usize,
    /// What the last failure said.
    pub last_error: Option<String>,
    /// Rules that could not be evaluated in the last epoch.
    pub rule_failures: Vec<String>,
}

/// Where a live engine's status is read from.
#[derive(Debug, Clone)]
pub struct Vitals {
    progress: Arc<CaptureProgress>,
    room: QueueRoom,
    quota: u64,
    started_at: i64,
    generation: u64,
    http: Arc<OnceLock<SocketAddr>>,
}

impl Vitals {
    /// The vitals of an engine that starts now.
    #[must_use]
    pub fn new(progress: Arc<CaptureProgress>, room: QueueRoom, quota: u64) -> Self {
        Self { progress, room, quota, started_at: now(), generation: 0, http: Arc::default() }
    }

    /// The same of an engine that holds this generation of the lake.
    #[must_use]
    pub fn holding(self, generation: u64) -> Self {
        Self { generation, ..self }
    }

    /// Notes the address of the HTTP listener.
    pub fn listens(&self, address: SocketAddr) {
        // There is one listener.
        let _ = self.http.set(address);
    }

    /// What the engine knows of itself now.
    #[must_use]
    pub fn status(&self) -> LiveStatus {
        let clock = now();
        let second = clock / 1_000_000;
        let lived = (second - self.started_at / 1_000_000).clamp(1, MINUTE).unsigned_abs();
        let seconds = |from: i64| clock.saturating_sub(from) / 1_000_000;
        let mut beats = self.progress.pulse.beats();
        let inputs = beats.inputs.iter_mut().map(|(name, input)| {
            let last_minute = input.recent.sum(second);
            LiveInput {
                input: name.clone(),
                last_minute,
                per_second: (last_minute + lived / 2) / lived,
                counts: input.counts,
                latest_event: input.latest_event.map(format_instant),
                lag_seconds: input.latest_event.map(seconds),
                seen_seconds_ago: seconds(input.seen_at).max(0),
            }
        });
        let inputs = inputs.collect();
        let log = LogStatus {
            position: self.progress.position.load(Ordering::Acquire),
            drained: self.progress.drained.load(Ordering::Acquire),
            undrained_bytes: self.progress.undrained_bytes.load(Ordering::Acquire),
            quota_bytes: self.quota,
        };
        let queue = QueueStatus { bytes: self.room.taken(), capacity_bytes: self.room.capacity() };
        let back_pressure = if log.undrained_bytes > log.quota_bytes {
            "log quota reached"
        } else if queue.bytes >= queue.capacity_bytes {
            "queue full"
        } else {
            "none"
        };
        LiveStatus {
            pid: std::process::id(),
            generation: self.generation,
            started_at: format_instant(self.started_at),
            written_at: format_instant(clock),
            http: self.http.get().map(ToString::to_string),
            back_pressure: back_pressure.to_owned(),
            inputs,
            log,
            queue,
            dedup: beats.dedup,
            epochs: beats.epochs.clone(),
            watermark: beats.watermark.map(format_instant),
            open_windows: beats.open_windows,
            waiting_windows: beats.waiting_windows,
            fold_state_bytes: beats.fold_bytes,
        }
    }

    /// Sets the gauges of what the status says.
    #[allow(clippy::cast_precision_loss)]
    pub fn set_gauges(&self, status: &LiveStatus) {
        metrics::gauge!("ratemill_undrained_bytes").set(status.log.undrained_bytes as f64);
        metrics::gauge!("ratemill_undrained_records").set((status.log.position - status.log.drained).max(0) as f64);
        metrics::gauge!("ratemill_log_quota_bytes").set(status.log.quota_bytes as f64);
        metrics::gauge!("ratemill_queue_bytes").set(status.queue.bytes as f64);
        metrics::gauge!("ratemill_queue_capacity_bytes").set(status.queue.capacity_bytes as f64);
        metrics::gauge!("ratemill_open_windows").set(status.open_windows as f64);
        metrics::gauge!("ratemill_waiting_windows").set(status.waiting_windows as f64);
        metrics::gauge!("ratemill_dedup_ids", "tier" => "memory").set(status.dedup.in_memory as f64);
        metrics::gauge!("ratemill_dedup_ids", "tier" => "disk").set(status.dedup.on_disk as f64);
        metrics::gauge!("ratemill_back_pressure").set(if status.back_pressure == "none" { 0.0 } else { 1.0 });
        let beats = self.progress.pulse.beats();
        let latest = |time: i64| (time / 1_000_000) as f64;
        for (name, input) in &beats.inputs {
            if let Some(time) = input.latest_event {
                metrics::gauge!("ratemill_input_latest_event_timestamp_seconds", "connector" => name.clone()).set(latest(time));
            }
        }
        if let Some(watermark) = beats.watermark {
            metrics::gauge!("ratemill_watermark_timestamp_seconds").set(latest(watermark));
        }
        // With nothing to do, no epoch is late.
        let waits = status.log.position > status.log.drained;
        let since = beats.epochs.last_completed_at.as_deref().and_then(|text| ratemill_schemas::time::parse_instant(text).ok());
        let lag = if waits { now().saturating_sub(since.unwrap_or(self.started_at)) / 1_000_000 } else { 0 };
        metrics::gauge!("ratemill_epoch_lag_seconds").set(lag as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_slides() {
        let mut recent = Recent::default();
        recent.add(1000, 5);
        recent.add(1000, 1);
        recent.add(1030, 10);
        assert_eq!((recent.sum(1030), recent.sum(1059), recent.sum(1060)), (16, 16, 10));
        assert_eq!((recent.sum(1089), recent.sum(1090)), (10, 0));
        recent.add(5000, 2);
        // A clock that is put back counts for the last second that was.
        recent.add(4990, 3);
        assert_eq!(recent.sum(5000), 5);
    }

    #[test]
    fn counts_and_failures_are_kept() {
        let pulse = Pulse::default();
        pulse.count("http", Outcome::Accepted, 3);
        pulse.count("http", Outcome::Refused, 2);
        pulse.count("http", Outcome::Duplicate, 0);
        pulse.note_event("http", Some(5));
        pulse.note_event("http", None);
        pulse.note_failure(&"the store is away");
        let beats = pulse.beats();
        let input = &beats.inputs["http"];
        assert_eq!((input.counts.accepted, input.counts.refused, input.counts.duplicate, input.latest_event), (3, 2, 0, Some(5)));
        assert_eq!((beats.epochs.failed_in_a_row, beats.epochs.last_error.as_deref()), (1, Some("the store is away")));
        drop(beats);
        pulse.note_epochs(&[], Duration::from_secs(1));
        let beats = pulse.beats();
        assert_eq!((beats.epochs.failed, beats.epochs.failed_in_a_row), (1, 0));
    }
}
