//! What follows the completion of an epoch: its event ids are saved for the next start, and the log is let go of.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::error::ArrowError;
use ratemill_schemas::{EventHasher, EventKey, UsageSchema};

use super::adopting::parts_of;
use super::books::frame_keys;
use super::manifest::Manifest;
use super::run::{EpochError, Epochs};
use crate::dedup::DedupIndex;
use crate::failpoint::Failpoint;
use crate::log::{self, Frame, LogError};

/// The event ids of positions `[from, to)` of the log.
#[derive(Debug)]
struct LoggedKeys {
    from: i64,
    to: i64,
    /// When the last of their frames was logged, µs UTC.
    ingested_max: i64,
    keys: Vec<EventKey>,
}

/// Event ids that the disk had no room for. The index and the log share it: the log is trimmed all the same, lest there is
/// never room again, and a start that misses them reads them back from the lake.
#[derive(Debug, Default)]
pub(super) struct UnsavedKeys(Option<LoggedKeys>);

impl UnsavedKeys {
    /// Adds those of the positions that follow; a retry of the same epoch adds nothing.
    fn add(&mut self, mut next: LoggedKeys) {
        match &mut self.0 {
            Some(waiting) if next.to <= waiting.to => {}
            Some(waiting) => {
                waiting.to = next.to;
                waiting.ingested_max = waiting.ingested_max.max(next.ingested_max);
                waiting.keys.append(&mut next.keys);
            }
            None => self.0 = Some(next),
        }
    }

    /// Saves them in one file; without room for it they wait.
    pub(super) fn save(&mut self, folder: &Path) -> Result<(), LogError> {
        let Some(waiting) = &self.0 else { return Ok(()) };
        match DedupIndex::save_run(folder, waiting.from, waiting.to, waiting.ingested_max, &waiting.keys) {
            Ok(()) => self.0 = None,
            Err(error) if error.is_full() => {
                tracing::warn!(%error, ids = waiting.keys.len(), "there is no room to save event ids; they are saved with the next epoch");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Epochs {
    /// Saves the event ids of a completed epoch, and removes what the lake has from the log. Who is stopped half-way leaves the
    /// log to the next epoch, and ids that a start reads back from the lake.
    pub(super) async fn drain(&mut self, manifest: &Manifest, frames: &[Frame]) -> Result<(), EpochError> {
        let drained: u64 = frames.iter().map(Frame::weight).sum();
        let _ =
            self.progress.undrained_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bytes| Some(bytes.saturating_sub(drained)));
        self.progress.drained.store(manifest.to, Ordering::Release);
        self.progress.recent.forget(manifest.to);
        if manifest.to > manifest.from {
            let (logged, schema, hasher) = (frames.to_vec(), Arc::clone(&self.schema), self.hasher);
            let keys = self.aside(move || keys_of(&logged, &schema, &hasher)).await?;
            let mut keys = keys.map_err(|source| EpochError::Arrow { epoch: manifest.epoch, source })?;
            self.keys_of_adopted(&parts_of(frames), &mut keys).await?;
            let ingested_max = frames.iter().map(|frame| frame.header.ingested_at).max().unwrap_or_default();
            let (mut unsaved, folder) = (std::mem::take(&mut self.unsaved_keys), self.dedup_folder.clone());
            unsaved.add(LoggedKeys { from: manifest.from, to: manifest.to, ingested_max, keys });
            let (unsaved, saved) = self
                .aside(move || {
                    let saved = unsaved.save(&folder);
                    (unsaved, saved)
                })
                .await?;
            self.unsaved_keys = unsaved;
            saved?;
        }
        Failpoint::EpochKeysSaved.reached();
        log::trim(&self.log_folder, manifest.to)?;
        Failpoint::EpochTrimmed.reached();
        Ok(())
    }
}

/// The event ids of frames.
fn keys_of(frames: &[Frame], schema: &UsageSchema, hasher: &EventHasher) -> Result<Vec<EventKey>, ArrowError> {
    let mut keys = Vec::new();
    for frame in frames {
        frame_keys(frame, schema, hasher, &mut keys)?;
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ratemill_schemas::Verdict;

    use super::*;

    fn logged(from: i64, to: i64) -> LoggedKeys {
        let key = |number: i64| EventKey { identity: (u128::from(number.unsigned_abs()) + 1) << 64, content: 1 };
        LoggedKeys { from, to, ingested_max: to, keys: (from..to).map(key).collect() }
    }

    #[test]
    fn keys_that_the_disk_has_no_room_for_are_saved_with_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let mut unsaved = UnsavedKeys::default();
        unsaved.add(logged(0, 3));
        unsaved.save(folder.path()).unwrap();
        // A device that takes no byte stands where the next file is written.
        std::os::unix::fs::symlink("/dev/full", folder.path().join(format!("{:020}-{:020}.keys.tmp", 3, 5))).unwrap();
        unsaved.add(logged(3, 5));
        unsaved.save(folder.path()).unwrap();
        assert_eq!(DedupIndex::open(folder.path(), 5).unwrap().1, 3);
        // The epoch is tried again, then the next follows.
        unsaved.add(logged(3, 5));
        unsaved.add(logged(5, 6));
        unsaved.save(folder.path()).unwrap();
        let (mut index, known) = DedupIndex::open(folder.path(), 6).unwrap();
        assert_eq!((known, index.len().0), (6, 6));
        for key in logged(0, 6).keys {
            assert_eq!(index.check(key).unwrap(), Verdict::Duplicate);
        }
    }
}
