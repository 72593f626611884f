//! What follows the completion of an epoch: its event ids are saved for the next start, and the log is let go of.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::error::ArrowError;
use ratemill_schemas::{EventHasher, EventKey, UsageSchema};

use super::adopting::parts_of;
use super::books::frame_keys;
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

/// Event ids that are not saved yet, since that is under way or failed. They are a cache, and the log is trimmed all the same,
/// lest a full disk is never freed: a start that misses some reads them back from the lake.
#[derive(Debug, Default)]
pub(super) struct UnsavedKeys(Mutex<Option<LoggedKeys>>);

/// So many ids wait to be saved at most: 128 MiB.
const WAITING_MAX: usize = 4 << 20;

impl UnsavedKeys {
    /// Adds those of the positions that follow, if they are not there, and saves all in one file.
    fn add_and_save(&self, next: LoggedKeys, folder: &Path) {
        {
            let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match waiting.as_mut() {
                Some(waiting) if next.to <= waiting.to => {}
                Some(waiting) if next.from == waiting.to && waiting.keys.len() <= WAITING_MAX => {
                    waiting.to = next.to;
                    waiting.ingested_max = waiting.ingested_max.max(next.ingested_max);
                    waiting.keys.extend(next.keys);
                }
                // A start sees that some are missing before them.
                _ => *waiting = Some(next),
            }
        }
        self.save(folder);
    }

    /// Saves them; what cannot be saved waits.
    pub(super) fn save(&self, folder: &Path) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiting) = kept.as_ref() else { return };
        match DedupIndex::save_run(folder, waiting.from, waiting.to, waiting.ingested_max, &waiting.keys) {
            Ok(()) => *kept = None,
            Err(error) => {
                tracing::warn!(%error, ids = waiting.keys.len(), "event ids could not be saved; it is tried again with the next epoch");
            }
        }
    }
}

impl Epochs {
    /// Saves the event ids of an epoch that is completed, and removes what the lake has from the log; `frames` are its own. Who is
    /// stopped half-way is to do it again before the next epoch.
    pub(super) async fn drain(&mut self, frames: &[Frame]) -> Result<(), EpochError> {
        let Some(manifest) = self.undrained.clone() else { return Ok(()) };
        if manifest.to > manifest.from {
            let (logged, schema, hasher) = (frames.to_vec(), Arc::clone(&self.schema), self.hasher);
            let keys = self.aside(move || keys_of(&logged, &schema, &hasher)).await?;
            let mut keys = keys.map_err(|source| EpochError::Arrow { epoch: manifest.epoch, source })?;
            self.keys_of_adopted(&parts_of(frames), &mut keys).await?;
            let ingested_max = frames.iter().map(|frame| frame.header.ingested_at).max().unwrap_or_default();
            let next = LoggedKeys { from: manifest.from, to: manifest.to, ingested_max, keys };
            let (unsaved, folder) = (Arc::clone(&self.unsaved_keys), self.dedup_folder.clone());
            self.aside(move || unsaved.add_and_save(next, &folder)).await?;
        }
        Failpoint::EpochKeysSaved.reached();
        let drained: u64 = frames.iter().map(Frame::weight).sum();
        let _ =
            self.progress.undrained_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bytes| Some(bytes.saturating_sub(drained)));
        self.progress.drained.store(manifest.to, Ordering::Release);
        self.progress.recent.forget(manifest.to);
        self.undrained = None;
        log::trim(&self.log_folder, manifest.to)?;
        Failpoint::EpochTrimmed.reached();
        Ok(())
    }

    /// Drains what an epoch has left that was stopped, or failed, after its completion. Where the log has its frames no more, their
    /// ids stay unsaved.
    pub(super) async fn drain_completed(&mut self) -> Result<(), EpochError> {
        let Some(manifest) = &self.undrained else { return Ok(()) };
        match self.progress.recent.read_range(&self.log_folder, manifest.from, manifest.to, u64::MAX) {
            Ok(frames) if frames.last().map_or(manifest.from, |frame| frame.header.end()) == manifest.to => self.drain(&frames).await,
            Ok(_) | Err(LogError::Gap { .. }) => {
                tracing::warn!(epoch = manifest.epoch, "the log has this epoch no more; the next start reads its event ids from the lake");
                self.undrained = None;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
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

    /// A device that takes no byte stands where the file of these positions is written.
    fn refuse(folder: &Path, from: i64, to: i64) {
        std::os::unix::fs::symlink("/dev/full", folder.join(format!("{from:020}-{to:020}.keys.tmp"))).unwrap();
    }

    #[test]
    fn keys_that_the_disk_has_no_room_for_are_saved_with_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let unsaved = UnsavedKeys::default();
        unsaved.add_and_save(logged(0, 3), folder.path());
        refuse(folder.path(), 3, 5);
        unsaved.add_and_save(logged(3, 5), folder.path());
        assert_eq!(DedupIndex::open(folder.path(), 5).unwrap().1, 3);
        // The epoch is tried again, then the next follows.
        unsaved.add_and_save(logged(3, 5), folder.path());
        unsaved.add_and_save(logged(5, 6), folder.path());
        let (mut index, known) = DedupIndex::open(folder.path(), 6).unwrap();
        assert_eq!((known, index.len().0), (6, 6));
        for key in logged(0, 6).keys {
            assert_eq!(index.check(key).unwrap(), Verdict::Duplicate);
        }
    }

    #[test]
    fn ids_that_are_missing_are_never_taken_for_saved() {
        let folder = tempfile::tempdir().unwrap();
        let unsaved = UnsavedKeys::default();
        unsaved.add_and_save(logged(0, 3), folder.path());
        refuse(folder.path(), 3, 5);
        unsaved.add_and_save(logged(3, 5), folder.path());
        // The epoch of 5 to 7 never came to it.
        unsaved.add_and_save(logged(7, 9), folder.path());
        assert_eq!(DedupIndex::open(folder.path(), 9).unwrap().1, 3);
    }
}
