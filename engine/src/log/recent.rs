//! The newest frames as they were written: who follows the log takes them from memory, and reads files for older ones only.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;

use super::{Frame, LogError, read_range};

/// Bytes of memory that frames are kept in, about.
const BYTES_MAX: usize = 128 << 20;

/// The frames at the end of the log, as many as there is room for.
#[derive(Debug)]
pub struct RecentFrames {
    kept: Mutex<Kept>,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Kept {
    /// One after the other without a gap.
    frames: VecDeque<Arc<Frame>>,
    bytes: usize,
}

impl Default for RecentFrames {
    fn default() -> Self {
        Self { kept: Mutex::default(), bytes_max: BYTES_MAX }
    }
}

impl RecentFrames {
    /// Keeps a frame that the log has now; the oldest ones make room for it.
    pub fn keep(&self, frame: Frame) {
        let mut kept = self.lock();
        kept.bytes += size_of(&frame);
        kept.frames.push_back(Arc::new(frame));
        while kept.bytes > self.bytes_max && kept.forget_first() {}
    }

    /// Lets go of frames all of whose records are before `position`.
    pub fn forget(&self, position: i64) {
        let mut kept = self.lock();
        while kept.frames.front().is_some_and(|frame| frame.header.end() <= position) && kept.forget_first() {}
    }

    /// The frames of positions `[from, to)` as [`read_range`] gives them, from the files of the log in `folder` where they are
    /// not kept.
    ///
    /// # Errors
    /// [`LogError`] when a frame is missing or damaged.
    pub fn read_range(&self, folder: &Path, from: i64, to: i64, bytes_max: u64) -> Result<Vec<Frame>, LogError> {
        let kept: Vec<Arc<Frame>> = {
            let kept = self.lock();
            let first = kept.frames.partition_point(|frame| frame.header.end() <= from);
            kept.frames.range(first..).take_while(|frame| frame.header.position < to).cloned().collect()
        };
        let Some(first) = kept.first().map(|frame| frame.header.position) else {
            return if from < to { read_range(folder, from, to, bytes_max) } else { Ok(Vec::new()) };
        };
        let mut frames = if from < first { read_range(folder, from, first, bytes_max)? } else { Vec::new() };
        if frames.last().map_or(from, |frame| frame.header.end()) < first {
            // There were more than wanted before.
            return Ok(frames);
        }
        let mut bytes: u64 = frames.iter().map(|frame| frame.bytes).sum();
        for frame in kept {
            if bytes > bytes_max && !frames.is_empty() {
                break;
            }
            bytes += frame.bytes;
            frames.push(Frame::clone(&frame));
        }
        Ok(frames)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn forget_first(&mut self) -> bool {
        let first = self.frames.pop_front();
        self.bytes -= first.as_deref().map_or(0, size_of);
        first.is_some()
    }
}

/// Bytes of memory that a frame takes, about.
fn size_of(frame: &Frame) -> usize {
    let batches = [&frame.usage, &frame.rejected, &frame.changes].into_iter().flatten();
    batches.map(RecordBatch::get_array_memory_size).sum::<usize>() + std::mem::size_of::<Frame>()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::log::LogWriter;
    use crate::log::frame::tests::claim_frame;

    /// Frames of one record each, of which the newest `kept` are in memory too.
    fn written(frames: usize, kept: usize) -> (tempfile::TempDir, RecentFrames, u64) {
        let folder = tempfile::tempdir().unwrap();
        let recent = RecentFrames { bytes_max: kept * std::mem::size_of::<Frame>(), ..RecentFrames::default() };
        let mut writer = LogWriter::new(folder.path(), 0).unwrap();
        let mut bytes = 0;
        for _ in 0..frames {
            let mut frame = claim_frame();
            bytes = writer.append(&mut frame, 1, 0).unwrap();
            recent.keep(frame);
        }
        (folder, recent, bytes)
    }

    #[test]
    fn what_is_kept_and_what_is_read_are_the_same_frames() {
        for kept in 0..=6 {
            let (folder, recent, bytes) = written(6, kept);
            assert_eq!(recent.lock().frames.len(), kept);
            for (from, to, frames_max) in (0..6).flat_map(|from| (from..=6).flat_map(move |to| (0..7).map(move |max| (from, to, max)))) {
                let positions = |frames: Vec<Frame>| frames.iter().map(|frame| frame.header.position).collect::<Vec<_>>();
                let found = positions(recent.read_range(folder.path(), from, to, frames_max * bytes).unwrap());
                let expected: Vec<i64> = (from..to).take(usize::try_from(frames_max).unwrap() + 1).collect();
                assert_eq!(found, expected, "{kept} kept, {from} to {to}, {frames_max} at most");
            }
        }
    }

    #[test]
    fn frames_that_the_lake_has_are_let_go_of() {
        let (folder, recent, _) = written(6, 6);
        recent.forget(4);
        assert_eq!(recent.lock().frames.len(), 2);
        let all = recent.read_range(folder.path(), 0, 6, u64::MAX).unwrap();
        assert_eq!(all.iter().map(|frame| frame.header.position).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        recent.forget(6);
        let kept = recent.lock();
        assert_eq!((kept.frames.len(), kept.bytes), (0, 0));
    }
}
