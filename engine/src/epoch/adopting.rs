//! What epochs do with adopted files: their rows are read where they lie, never all at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use ratemill_rules::session::session;
use ratemill_schemas::EventKey;

use super::changes::{EventId, Identities, Place, is_among, places};
use super::manifest::WindowTask;
use super::run::{APPLICATION, EpochError, Epochs};
use super::state::EngineState;
use crate::adopted::{self, Part};
use crate::log::Frame;

/// The files that these frames make usage.
pub(super) fn parts_of(frames: &[Frame]) -> Vec<Arc<Part>> {
    frames.iter().flat_map(|frame| Part::of_frame(&frame.header)).collect()
}

impl Epochs {
    /// The `usage` table and adopted files: all events as they came.
    pub(super) fn usage(&self) -> Result<Arc<dyn TableProvider>, EpochError> {
        Ok(self.adopted.over(self.tables.usage.provider()?))
    }

    /// The rows of adopted files in some columns of usage, on all cores.
    pub(super) async fn rows_of(&self, parts: &[Arc<Part>], columns: &[&str]) -> Result<SendableRecordBatchStream, EpochError> {
        let rows = self.adopted.rows(parts.to_vec(), Arc::clone(self.schema.stored()));
        let context = session(Arc::clone(&self.runtime), &self.limits);
        Ok(context.read_table(Arc::new(rows))?.select_columns(columns)?.execute_stream().await?)
    }

    /// All their columns.
    pub(super) async fn whole_rows_of(&self, parts: &[Arc<Part>]) -> Result<SendableRecordBatchStream, EpochError> {
        let columns: Vec<&str> = self.schema.stored().fields().iter().map(|field| field.name().as_str()).collect();
        self.rows_of(parts, &columns).await
    }

    /// Notes the windows that rows of adopted files fall into, and returns those of them that were published.
    pub(super) async fn late_adopted(
        &self,
        state: &mut EngineState,
        watermark_before: Option<i64>,
        parts: &[Arc<Part>],
    ) -> Result<Vec<WindowTask>, EpochError> {
        let mut tasks: Vec<WindowTask> = Vec::new();
        if parts.is_empty() {
            return Ok(tasks);
        }
        state.latest_event = state.latest_event.max(parts.iter().map(|part| part.file.time_max).max());
        let mut rows = self.rows_of(parts, &["meter", "subject", "time", "ingested_at"]).await?;
        while let Some(batch) = rows.try_next().await? {
            for task in self.late(state, watermark_before, &[batch])? {
                if !tasks.iter().any(|late| late.rule == task.rule && late.window == task.window) {
                    tasks.push(task);
                }
            }
        }
        Ok(tasks)
    }

    /// Of the rows of adopted files, the events that changes name.
    pub(super) async fn arrived_adopted(
        &self,
        parts: &[Arc<Part>],
        sought: impl Iterator<Item = &EventId>,
    ) -> Result<HashMap<EventId, Place>, EpochError> {
        let mut identities = Identities::new();
        for target in sought {
            identities.entry(target.id.clone()).or_default().insert(target.source.clone());
        }
        if parts.is_empty() || identities.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = self.adopted.rows(parts.to_vec(), Arc::clone(self.schema.stored()));
        let found = session(Arc::clone(&self.runtime), &self.limits)
            .read_table(Arc::new(rows))?
            .filter(is_among(&Arc::new(identities)))?
            .select_columns(&["source", "id", "meter", "subject", "time"])?
            .collect()
            .await?;
        Ok(found.iter().flat_map(places).collect())
    }

    /// Writes adopted files into their table, and makes their rows usage.
    pub(super) async fn store_adopted(&mut self, epoch: i64, parts: &[Arc<Part>]) -> Result<(), EpochError> {
        if !parts.is_empty() {
            let rows: RecordBatch = adopted::rows_of(parts)?;
            self.tables.adopted.append(&[rows], APPLICATION, epoch).await?;
            self.adopted.extend(parts.iter().cloned());
        }
        Ok(())
    }

    /// The keys of new rows of adopted files: those that capture made, else they are made again from the files.
    pub(super) async fn keys_of_adopted(&self, parts: &[Arc<Part>], keys: &mut Vec<EventKey>) -> Result<(), EpochError> {
        for part in parts {
            match self.progress.take_adopted_keys(part.position) {
                Some(mut of_part) => keys.append(&mut of_part),
                None => keys.append(&mut adopted::keys(&self.lake, part, &self.schema, &self.hasher).await?),
            }
        }
        Ok(())
    }
}

/// The targets that are wanted or waited for.
pub(super) fn sought<'e>(wanted: &'e BTreeSet<EventId>, waiting: &'e BTreeSet<EventId>) -> impl Iterator<Item = &'e EventId> {
    wanted.iter().chain(waiting)
}
