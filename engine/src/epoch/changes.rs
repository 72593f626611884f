//! Voids and amendments: which event is in force in the place of each changed one, and usage as it is in force.
//!
//! An event in force is none if any void of it exists, else its amendment of the highest version, else the event itself. A
//! change whose target is unknown waits. Changes are few: all are in memory, and usage without any is read as it is.

mod effective;
mod lookup;

pub(super) use effective::is_among;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimestampMicrosecondType};
use arrow::error::ArrowError;
use datafusion::catalog::TableProvider;
use datafusion::error::DataFusionError;
use ratemill_schemas::time::instant_type;
use ratemill_schemas::{UsageSchema, changes};
use serde::{Deserialize, Serialize};

use super::adopting::{parts_of, sought};
use super::manifest::WindowTask;
use super::run::{EpochError, Epochs};
use super::state::EngineState;
use crate::lake::LakeTable;
use crate::log::Frame;

/// The identity of a usage event.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EventId {
    /// CloudEvents `source`.
    pub source: String,
    /// CloudEvents `id`.
    pub id: String,
}

/// Identities by id, then source: a row is looked up without a copy of its texts.
pub(super) type Identities = HashMap<String, HashSet<String>>;

/// Where an event is charged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    meter: String,
    subject: String,
    time: i64,
}

/// What is in force of a changed event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Change {
    is_void: bool,
    /// Highest version, and the batch and row of its new event.
    amended: Option<(i64, usize, usize)>,
}

/// The changes that the lake holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    by_target: HashMap<EventId, Change>,
    /// New events of amendments, rows of the stored usage schema.
    events: Vec<RecordBatch>,
    /// Targets that are not in `usage` yet.
    waiting: BTreeSet<EventId>,
    /// Identities whose events are not in force as they came.
    changed: Arc<Identities>,
    /// What is in force in their place.
    in_force: Option<RecordBatch>,
}

/// What the changes of an epoch do.
#[derive(Debug, Default)]
pub(super) struct Effect {
    /// Targets that are not in `usage` after the epoch.
    pub(super) waiting: BTreeSet<EventId>,
    /// Meter, subject, time and `ingested_at` of events that were in force and are not any more, or came into force.
    pub(super) moved: Option<RecordBatch>,
    /// The times of these events, and of those that arrived changed.
    pub(super) times: Vec<i64>,
    /// All changes after the epoch, where there are any new.
    pub(super) changes: Option<Changes>,
}

impl Changes {
    /// The changes of the `changes` table.
    ///
    /// # Errors
    /// [`DataFusionError`] when the table cannot be read.
    pub(crate) async fn load(
        context: &datafusion::prelude::SessionContext,
        table: &LakeTable,
        schema: &UsageSchema,
        waiting: &BTreeSet<EventId>,
    ) -> Result<Self, DataFusionError> {
        let provider = table.provider().map_err(|error| DataFusionError::External(error.into()))?;
        let mut loaded = Self::default();
        for batch in context.read_table(provider)?.collect().await? {
            loaded.add(schema, &batch)?;
        }
        loaded.settle(schema, waiting)?;
        Ok(loaded)
    }

    /// Adds rows of the `changes` table.
    fn add(&mut self, schema: &UsageSchema, batch: &RecordBatch) -> Result<(), ArrowError> {
        let events = changes::events(schema, batch)?;
        let versions = batch.column_by_name("version").map(|column| column.as_primitive::<Int64Type>());
        let Some(versions) = versions else { return Ok(()) };
        let mut amendments = 0..;
        for (row, target) in targets(batch).into_iter().enumerate() {
            let change = self.by_target.entry(target).or_default();
            if versions.is_null(row) {
                change.is_void = true;
                continue;
            }
            let event = amendments.next().unwrap_or_default();
            let version = versions.value(row);
            if change.amended.is_none_or(|(highest, ..)| version > highest) {
                change.amended = Some((version, self.events.len(), event));
            }
        }
        self.events.push(events);
        Ok(())
    }

    /// Takes over what waits, and works out what is in force.
    fn settle(&mut self, schema: &UsageSchema, waiting: &BTreeSet<EventId>) -> Result<(), ArrowError> {
        self.waiting.clone_from(waiting);
        let mut changed = Identities::new();
        let mut rows = Vec::new();
        for (target, change) in self.by_target.iter().filter(|(target, _)| !waiting.contains(*target)) {
            changed.entry(target.id.clone()).or_default().insert(target.source.clone());
            rows.extend(change.amended.filter(|_| !change.is_void).map(|(_, batch, row)| (batch, row)));
        }
        rows.sort_unstable();
        let batches: Vec<&RecordBatch> = self.events.iter().collect();
        let in_force =
            if rows.is_empty() { RecordBatch::new_empty(schema.stored().clone()) } else { interleave_record_batch(&batches, &rows)? };
        self.changed = Arc::new(changed);
        self.in_force = Some(in_force);
        Ok(())
    }

    /// `usage`, which holds events as they came, as it is in force.
    ///
    /// # Errors
    /// When the amended events do not fit its columns.
    pub(crate) fn over(&self, usage: Arc<dyn TableProvider>) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        match &self.in_force {
            Some(in_force) if !self.changed.is_empty() => effective::usage(usage, &self.changed, in_force),
            _ => Ok(usage),
        }
    }

    /// Whether an event is not in force as it came.
    pub(super) fn is_changed(&self, source: &str, id: &str) -> bool {
        self.changed.get(id).is_some_and(|sources| sources.contains(source))
    }

    /// The new events of amendments that are in force.
    pub(super) fn amended(&self) -> Option<&RecordBatch> {
        self.in_force.as_ref().filter(|events| events.num_rows() > 0)
    }

    /// The event in force in the place of `target`, whose own place is `original` where it is known.
    fn in_force(&self, target: &EventId, original: Option<&Place>) -> Option<Place> {
        match self.by_target.get(target) {
            None => original.cloned(),
            Some(Change { is_void: true, .. }) => None,
            Some(Change { amended: None, .. }) => original.cloned(),
            Some(Change { amended: Some((_, batch, row)), .. }) => {
                self.events.get(*batch).and_then(|events| places(&events.slice(*row, 1)).pop()).map(|(_, place)| place)
            }
        }
    }
}

/// `usage` without these events.
pub(super) fn without<'e>(
    usage: Arc<dyn TableProvider>,
    events: impl Iterator<Item = &'e EventId>,
) -> Result<Arc<dyn TableProvider>, DataFusionError> {
    let mut left_out = Identities::new();
    for event in events {
        left_out.entry(event.id.clone()).or_default().insert(event.source.clone());
    }
    let nothing = RecordBatch::new_empty(usage.schema());
    effective::usage(usage, &Arc::new(left_out), &nothing)
}

impl Epochs {
    /// What the voids and amendments of these frames do, and those that waited for their usage.
    pub(super) async fn effect_of(&self, epoch: i64, frames: &[Frame], usage: &[RecordBatch]) -> Result<Effect, EpochError> {
        let arrow = |source| EpochError::Arrow { epoch, source };
        if self.changes.waiting.is_empty() && frames.iter().all(|frame| frame.changes.is_none()) {
            return Ok(Effect::default());
        }
        let new = self.changes_of(epoch, frames)?;
        let mut wanted: BTreeSet<EventId> = new.iter().flat_map(targets).collect();
        let mut arrived = arrived(usage, &wanted, &self.changes.waiting);
        arrived.extend(self.arrived_adopted(&parts_of(frames), sought(&wanted, &self.changes.waiting)).await?);
        let mut effect = Effect { waiting: self.changes.waiting.clone(), ..Effect::default() };
        if wanted.is_empty() && arrived.is_empty() {
            return Ok(effect);
        }
        let mut after = self.changes.clone();
        for batch in &new {
            after.add(&self.schema, batch).map_err(arrow)?;
        }
        let is_new = |target: &&EventId| !self.changes.by_target.contains_key(*target) && !arrived.contains_key(*target);
        let sought: BTreeSet<&EventId> = wanted.iter().filter(is_new).collect();
        let stored = self.find_usage(&sought).await?;
        let mut moved: Vec<Place> = Vec::new();
        wanted.extend(arrived.keys().cloned());
        for target in wanted {
            let was_known =
                stored.contains_key(&target) || (self.changes.by_target.contains_key(&target) && !self.changes.waiting.contains(&target));
            let original = stored.get(&target).or_else(|| arrived.get(&target));
            if !was_known && !arrived.contains_key(&target) {
                effect.waiting.insert(target);
                continue;
            }
            effect.waiting.remove(&target);
            let before = if was_known { self.changes.in_force(&target, original) } else { None };
            let now = after.in_force(&target, original);
            // Even of one place they can differ in quantity.
            moved.extend(before.into_iter().chain(now));
        }
        let logged_at = frames.last().map_or(0, |frame| frame.header.ingested_at);
        effect.times = moved.iter().chain(arrived.values()).map(|place| place.time).collect();
        effect.moved = if moved.is_empty() { None } else { Some(batch_of(&moved, logged_at).map_err(arrow)?) };
        after.settle(&self.schema, &effect.waiting).map_err(arrow)?;
        effect.changes = Some(after);
        Ok(effect)
    }

    /// Notes what changes up to position `to` do to windows, and returns those of them that were published.
    pub(super) fn changed(
        &self,
        state: &mut EngineState,
        watermark_before: Option<i64>,
        to: i64,
        effect: Effect,
    ) -> Result<Vec<WindowTask>, EpochError> {
        state.waiting = effect.waiting;
        let mut tasks = match effect.moved {
            Some(moved) => self.late(state, watermark_before, &[moved])?,
            None => Vec::new(),
        };
        for task in &mut tasks {
            WindowTask::CHANGED.clone_into(&mut task.cause);
        }
        let mut times = effect.times;
        times.sort_unstable();
        for open in &mut state.open {
            let window = open.window.window;
            if times.get(times.partition_point(|time| *time < window.start)).is_some_and(|time| window.contains(*time)) {
                open.changed_at = to;
            }
        }
        Ok(tasks)
    }

    /// All changes after an epoch that brought these; `None` where nothing differs.
    pub(super) fn changes_after(
        &self,
        epoch: i64,
        batches: &[RecordBatch],
        waiting: &BTreeSet<EventId>,
    ) -> Result<Option<Changes>, EpochError> {
        let arrow = |source| EpochError::Arrow { epoch, source };
        if batches.is_empty() && self.changes.waiting == *waiting {
            return Ok(None);
        }
        let mut after = self.changes.clone();
        for batch in batches {
            after.add(&self.schema, batch).map_err(arrow)?;
        }
        after.settle(&self.schema, waiting).map_err(arrow)?;
        Ok(Some(after))
    }

    /// The events that these changes are of, and those that came after theirs and wait no longer.
    pub(super) fn changed_by(&self, batches: &[RecordBatch], waiting: &BTreeSet<EventId>) -> BTreeSet<EventId> {
        batches.iter().flat_map(targets).chain(self.changes.waiting.difference(waiting).cloned()).collect()
    }

    /// The voids and amendments of frames, as the lake stores them.
    pub(super) fn changes_of(&self, epoch: i64, frames: &[Frame]) -> Result<Vec<RecordBatch>, EpochError> {
        frames
            .iter()
            .filter_map(|frame| frame.stored_changes(&self.schema).transpose())
            .collect::<Result<_, _>>()
            .map_err(|source| EpochError::Arrow { epoch, source })
    }
}

/// The targets of changes, row by row.
fn targets(changes: &RecordBatch) -> Vec<EventId> {
    identities(changes, "target_source", "target_id")
}

fn identities(batch: &RecordBatch, source: &str, id: &str) -> Vec<EventId> {
    let (Some(sources), Some(ids)) = (batch.column_by_name(source), batch.column_by_name(id)) else { return Vec::new() };
    let (sources, ids) = (sources.as_string::<i32>(), ids.as_string::<i32>());
    (0..batch.num_rows()).map(|row| EventId { source: sources.value(row).to_owned(), id: ids.value(row).to_owned() }).collect()
}

/// Identity and place of each row of usage.
pub(super) fn places(usage: &RecordBatch) -> Vec<(EventId, Place)> {
    let column = |name: &str| usage.column_by_name(name);
    let (Some(meters), Some(subjects), Some(times)) = (column("meter"), column("subject"), column("time")) else { return Vec::new() };
    let (meters, subjects) = (meters.as_string::<i32>(), subjects.as_string::<i32>());
    let times = times.as_primitive::<TimestampMicrosecondType>();
    let place = |row: usize| Place { meter: meters.value(row).to_owned(), subject: subjects.value(row).to_owned(), time: times.value(row) };
    identities(usage, "source", "id").into_iter().enumerate().map(|(row, identity)| (identity, place(row))).collect()
}

/// Of new usage, the events that are wanted or waited for.
fn arrived(usage: &[RecordBatch], wanted: &BTreeSet<EventId>, waiting: &BTreeSet<EventId>) -> HashMap<EventId, Place> {
    let mut identities = Identities::new();
    for target in sought(wanted, waiting) {
        identities.entry(target.id.clone()).or_default().insert(target.source.clone());
    }
    let mut arrived = HashMap::new();
    for batch in usage {
        for row in lookup::rows_among(batch, &identities) {
            arrived.extend(places(&batch.slice(row, 1)));
        }
    }
    arrived
}

fn batch_of(places: &[Place], ingested_at: i64) -> Result<RecordBatch, ArrowError> {
    let instants = |values: Vec<i64>| Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"));
    let schema = Schema::new(vec![
        Field::new("meter", DataType::Utf8, false),
        Field::new("subject", DataType::Utf8, false),
        Field::new("time", instant_type(), false),
        Field::new("ingested_at", instant_type(), false),
    ]);
    RecordBatch::try_new(
        Arc::new(schema),
        vec![
            Arc::new(StringArray::from_iter_values(places.iter().map(|place| &place.meter))),
            Arc::new(StringArray::from_iter_values(places.iter().map(|place| &place.subject))),
            instants(places.iter().map(|place| place.time).collect()),
            instants(vec![ingested_at; places.len()]),
        ],
    )
}
