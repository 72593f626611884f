//! Usage that is in the log and not in the lake: read and decoded once, however often somebody asks before the next epoch.

use std::path::Path;

use arrow::array::RecordBatch;
use ratemill_schemas::UsageSchema;

use super::run::EpochError;
use crate::log::{Frame, RecentFrames};

/// The frames after the last epoch.
#[derive(Debug, Default)]
pub(super) struct Tail {
    from: i64,
    to: i64,
    /// Bytes of the frames in the log.
    bytes: u64,
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
    ///
    /// # Errors
    /// [`EpochError::Behind`] when they have more than about `bytes_max` bytes, which the lake is to take first.
    pub(super) fn read(
        &mut self,
        (recent, folder): (&RecentFrames, &Path),
        (from, to): (i64, i64),
        bytes_max: u64,
        schema: &UsageSchema,
    ) -> Result<(), EpochError> {
        if self.from != from || self.to > to {
            *self = Self { from, to: from, ..Self::default() };
        }
        if self.to < to && self.bytes <= bytes_max {
            for frame in recent.read_range(folder, self.to, to, bytes_max - self.bytes)? {
                self.add(frame, schema)?;
            }
        }
        if self.to < to && self.bytes > bytes_max {
            return Err(EpochError::Behind { records: to - from });
        }
        Ok(())
    }

    fn add(&mut self, mut frame: Frame, schema: &UsageSchema) -> Result<(), EpochError> {
        let stored = frame.stored_usage(schema).map_err(|source| EpochError::Arrow { epoch: 0, source })?;
        let (position, end) = (frame.header.position, frame.header.end());
        self.usage.extend(stored.map(|batch| TailUsage { position, end, batch }));
        self.bytes += frame.bytes;
        self.to = end.max(self.to);
        frame.usage = None;
        self.frames.push(frame);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::log::LogWriter;
    use crate::log::frame::tests::claim_frame;

    #[test]
    fn no_more_is_held_than_was_said() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::new(folder.path(), 0).unwrap();
        let bytes = (0..8).map(|_| writer.append(&mut claim_frame(), 1, 0).unwrap()).max().unwrap();
        let schema = UsageSchema::new(Vec::new());
        let recent = RecentFrames::default();
        let log = (&recent, folder.path());
        let mut tail = Tail::default();
        let behind = |read: Result<(), EpochError>| matches!(read, Err(EpochError::Behind { records: 8 }));
        for _ in 0..2 {
            assert!(behind(tail.read(log, (0, 8), 3 * bytes, &schema)));
            assert!(tail.frames.len() <= 5, "{}", tail.frames.len());
        }
        // The lake took some of it.
        tail.read(log, (5, 8), 3 * bytes, &schema).unwrap();
        assert_eq!(tail.frames.len(), 3);
        tail.read(log, (0, 8), 8 * bytes, &schema).unwrap();
        assert_eq!(tail.frames.len(), 8);
    }
}
