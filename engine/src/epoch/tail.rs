//! Usage that is in the log and not in the lake: read and decoded once, however often somebody asks before the next epoch.

use std::path::Path;

use arrow::array::RecordBatch;
use ratemill_schemas::UsageSchema;

use super::run::EpochError;
use crate::log::{self, Frame};

/// The frames after the last epoch.
#[derive(Debug, Default)]
pub(super) struct Tail {
    from: i64,
    to: i64,
    /// Frames without their usage, which is beside them.
    pub(super) frames: Vec<Frame>,
    /// The usage of the frames that have some, in the columns of the `usage` table.
    pub(super) usage: Vec<TailUsage>,
}

/// The usage of one frame.
#[derive(Debug, Clone)]
pub(super) struct TailUsage {
    /// Position of the frame.
    pub(super) position: i64,
    /// Position after the frame.
    pub(super) end: i64,
    pub(super) batch: RecordBatch,
}

impl Tail {
    /// Reads up to `to` what it does not have yet of the frames from `from` on.
    pub(super) fn read(&mut self, folder: &Path, from: i64, to: i64, schema: &UsageSchema) -> Result<(), EpochError> {
        if self.from != from || self.to > to {
            *self = Self { from, to: from, ..Self::default() };
        }
        if self.to == to {
            return Ok(());
        }
        for mut frame in log::read_range(folder, self.to, to, u64::MAX)? {
            let stored = frame.stored_usage(schema).map_err(|source| EpochError::Arrow { epoch: 0, source })?;
            let (position, end) = (frame.header.position, frame.header.end());
            self.usage.extend(stored.map(|batch| TailUsage { position, end, batch }));
            frame.usage = None;
            self.to = end.max(self.to);
            self.frames.push(frame);
        }
        Ok(())
    }

    /// All usage.
    pub(super) fn batches(&self) -> Vec<RecordBatch> {
        self.usage.iter().map(|usage| usage.batch.clone()).collect()
    }

    /// The usage of frames from this position on.
    pub(super) fn usage_from(&self, position: i64) -> &[TailUsage] {
        &self.usage[self.usage.partition_point(|usage| usage.position < position)..]
    }
}
