//! Which events were seen: exact, whatever their age.
//!
//! Keys of the last days (the horizon) are in memory, in a table (`recent`) that a start loads from files, one for
//! each epoch at first (`arrivals`). A thread (`keeper`) joins these and moves what is older than the horizon into
//! sorted files (`aged_run`), which are looked up on disk (`aged`) behind a filter in memory (`filter`). All files are a cache
//! that can be made again from the `usage` and `rejected` tables: a start that misses one, or finds one damaged, says so.

mod admit;
mod aged;
mod aged_run;
mod arrivals;
mod entry;
mod files;
mod filter;
mod keeper;
mod recent;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::sync_channel;

use ratemill_schemas::{EventKey, Verdict};

pub use self::admit::Admission;
use self::aged::AgedKeys;
use self::aged_run::AgedRun;
use self::arrivals::Arrivals;
use self::entry::{Entry, entry, judge};
use self::files::{Files, Kind, Span, is_damage};
use self::keeper::{Change, Keeper, Keeping};
use self::recent::RecentKeys;
use crate::log::LogError;

/// Keys that are looked up together.
const TOGETHER: usize = 2048;
/// Keys that leave memory between two groups of submissions.
const LEAVE_AT_ONCE: usize = 2048;
/// Pieces of a file that a start reads ahead, 768 KiB each.
const READ_AHEAD: usize = 8;
/// A start reads so many keys on disk to the last one. Among more of them a damaged block is found by the lookup or the
/// merge that reads it; then the file is set aside, and the index is rebuilt at the next start.
const VERIFIED_KEYS: usize = 10_000_000;

/// The index of seen events.
#[derive(Debug)]
pub struct DedupIndex {
    files: Files,
    recent: RecentKeys,
    aged: AgedKeys,
    /// Keys that are on disk, too, and have not left memory yet.
    leaving: Vec<Entry>,
    keeper: Option<Keeper>,
}

impl DedupIndex {
    /// Opens the index below `folder`; returns it with the position up to which it knows all keys, which is short of
    /// `covered` when files are missing or damaged: then the caller rebuilds it.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn open(folder: &Path, covered: i64) -> Result<(Self, i64), LogError> {
        let files = Files::new(folder);
        let aged = AgedKeys::new(files.clone());
        let mut index = Self { files, recent: RecentKeys::new(), aged, leaving: Vec::new(), keeper: None };
        let known = index.load(covered).map_err(|error| LogError::io(folder, error))?;
        Ok((index, known))
    }

    fn load(&mut self, covered: i64) -> std::io::Result<i64> {
        let listed = self.files.recover()?;
        let mut known = 0;
        let mut arrivals: Vec<Arrivals> = Vec::new();
        let mut loaded = 0;
        for (span, kind) in &listed {
            // What lies beyond was written for a lake that has been put back to an earlier state since.
            if span.from != known || span.to > covered {
                break;
            }
            let opened = match kind {
                Kind::Aged => AgedRun::open(&self.files, *span).map(|run| self.aged.runs.push(Arc::new(run))),
                Kind::Recent => Arrivals::open(&self.files, *span).map(|head| arrivals.push(head)),
            };
            if !self.sound(*span, *kind, opened)? {
                break;
            }
            known = span.to;
            loaded += 1;
        }
        self.files.remove(&listed[loaded..])?;
        if self.len().1 <= VERIFIED_KEYS {
            for run in &self.aged.runs {
                let verified = run.verify(&AtomicBool::new(false));
                if !self.sound(run.span, Kind::Aged, verified)? {
                    known = known.min(run.span.from);
                }
            }
        }
        let keys: u64 = arrivals.iter().map(|head| head.keys).sum();
        self.recent.reserve(usize::try_from(keys).unwrap_or_default());
        for (span, read) in self.fill(&arrivals) {
            if !self.sound(span, Kind::Recent, read)? {
                known = known.min(span.from);
            }
        }
        Ok(known)
    }

    /// Loads files into memory; a thread of its own reads ahead. Returns how each of them was read.
    fn fill(&mut self, arrivals: &[Arrivals]) -> Vec<(Span, std::io::Result<()>)> {
        let (files, recent) = (&self.files, &mut self.recent);
        std::thread::scope(|scope| {
            let (sender, pieces) = sync_channel(READ_AHEAD);
            let read = move |head: &Arrivals| {
                let read = Arrivals::read(files, head.span, |piece| {
                    // Taken as long as there are any.
                    let _ = sender.send(piece);
                });
                (head.span, read)
            };
            let reader = scope.spawn(move || arrivals.iter().map(read).collect());
            pieces.into_iter().for_each(|piece| insert(recent, &piece));
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Whether a file could be read; a damaged one is told of, and leaves a gap.
    fn sound<T>(&self, span: Span, kind: Kind, read: std::io::Result<T>) -> std::io::Result<bool> {
        match read {
            Ok(_) => Ok(true),
            Err(error) if is_damage(&error) => {
                let path = self.files.path(kind, span);
                tracing::warn!(path = %path.display(), %error, "the index of event ids will be rebuilt");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Forgets everything, before a rebuild.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn clear(&mut self) -> Result<(), LogError> {
        self.keeper = None;
        self.recent = RecentKeys::new();
        self.aged.runs.clear();
        self.leaving.clear();
        let folder = self.files.folder();
        std::fs::remove_dir_all(folder).and_then(|()| std::fs::create_dir_all(folder)).map_err(|error| LogError::io(folder, error))
    }

    /// Begins to tidy the files, and to move keys out of memory `horizon` µs after they came. [`Self::tend`] takes over
    /// what comes of it.
    ///
    /// # Errors
    /// [`LogError::Io`] when there can be no thread.
    pub fn keep(&mut self, horizon: i64) -> Result<(), LogError> {
        let keeping = self.keeping(horizon);
        self.keeper = Some(Keeper::start(keeping).map_err(|error| LogError::io(self.files.folder(), error))?);
        Ok(())
    }

    fn keeping(&self, horizon: i64) -> Keeping {
        Keeping::new(self.files.clone(), self.aged.runs.clone(), horizon)
    }

    /// Goes on with the files that the thread has made, and lets some keys out of memory that are in them.
    /// Never waits; to be called between groups of submissions.
    pub fn tend(&mut self) {
        if self.leaving.is_empty()
            && let Some(change) = self.keeper.as_ref().and_then(Keeper::change)
        {
            self.take_over(change);
        }
        for _ in 0..LEAVE_AT_ONCE.min(self.leaving.len()) {
            let Some(entry) = self.leaving.pop() else { break };
            self.recent.remove(&entry);
        }
    }

    fn take_over(&mut self, change: Change) {
        self.aged.runs = change.aged;
        self.leaving = change.leaving;
    }

    /// What `key` is; an unknown one is known from now on.
    ///
    /// # Errors
    /// [`LogError::Io`] when a file cannot be read: then nothing may be accepted.
    pub fn check(&mut self, key: EventKey) -> Result<Verdict, LogError> {
        Ok(self.check_all(&[key])?.first().copied().unwrap_or(Verdict::Accepted))
    }

    /// What each key is, one after the other; unknown ones are known from now on. Asking for many at once is several
    /// times faster than one by one.
    ///
    /// # Errors
    /// [`LogError::Io`] when a file cannot be read: then nothing may be accepted.
    pub fn check_all(&mut self, keys: &[EventKey]) -> Result<Vec<Verdict>, LogError> {
        let mut verdicts = Vec::with_capacity(keys.len());
        let mut entries = Vec::with_capacity(TOGETHER.min(keys.len()));
        for keys in keys.chunks(TOGETHER) {
            entries.clear();
            entries.extend(keys.iter().copied().map(entry));
            self.recent.touch(&entries);
            let known = self.on_disk(&entries)?;
            for (row, entry) in entries.iter().enumerate() {
                let known = match known.get(row).copied().flatten() {
                    None => self.recent.insert(entry),
                    known => known,
                };
                verdicts.push(known.map_or(Verdict::Accepted, |known| judge(known, entry[2])));
            }
        }
        Ok(verdicts)
    }

    /// What `key` is, without making it known.
    ///
    /// # Errors
    /// [`LogError::Io`] when a file cannot be read: then nothing may be accepted.
    pub fn look_up(&self, key: EventKey) -> Result<Verdict, LogError> {
        let entries = [entry(key)];
        let known = match self.recent.find(&entries[0]) {
            None => self.on_disk(&entries)?.first().copied().flatten(),
            known => known,
        };
        Ok(known.map_or(Verdict::Accepted, |known| judge(known, key.content)))
    }

    /// The contents known on disk, by row; empty when there are none.
    fn on_disk(&self, entries: &[Entry]) -> Result<Vec<Option<u64>>, LogError> {
        if self.aged.runs.is_empty() {
            return Ok(Vec::new());
        }
        let strange: Vec<usize> = (0..entries.len()).filter(|row| self.recent.find(&entries[*row]).is_none()).collect();
        self.aged.find(entries, &strange)
    }

    /// Takes back keys that became known and were not kept.
    pub fn forget(&mut self, keys: impl Iterator<Item = EventKey>) {
        for key in keys {
            self.recent.remove(&entry(key));
        }
    }

    /// Adds keys without asking.
    pub fn insert_all(&mut self, keys: impl Iterator<Item = EventKey>) {
        let entries: Vec<Entry> = keys.map(entry).collect();
        insert(&mut self.recent, &entries);
    }

    /// Keys in memory and on disk.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        (self.recent.len(), self.aged.runs.iter().map(|run| usize::try_from(run.keys()).unwrap_or_default()).sum())
    }

    /// Bytes of memory that keys on disk take.
    #[must_use]
    pub fn aged_memory(&self) -> usize {
        self.aged.runs.iter().map(|run| run.memory()).sum()
    }

    /// Keeps the keys of positions `[from, to)`, the last of which was logged at `ingested_max` (µs UTC), for the next
    /// start.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn save_run(folder: &Path, from: i64, to: i64, ingested_max: i64, keys: &[EventKey]) -> Result<(), LogError> {
        let (files, span) = (Files::new(folder), Span { from, to });
        let entries = keys.iter().copied().map(entry).collect();
        Arrivals::write(&files, span, ingested_max, entries).map_err(|error| LogError::io(&files.path(Kind::Recent, span), error))
    }

    /// The same for keys that are older than the horizon: they never come into memory again.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn save_aged(folder: &Path, from: i64, to: i64, keys: &[EventKey]) -> Result<(), LogError> {
        let (files, span) = (Files::new(folder), Span { from, to });
        let mut entries: Vec<Entry> = keys.iter().copied().map(entry).collect();
        entries.sort_unstable();
        entries.dedup_by(|one, other| entry::same_identity(one, other));
        AgedRun::write(&files, span, &entries).map(drop).map_err(|error| LogError::io(&files.path(Kind::Aged, span), error))
    }
}

fn insert(recent: &mut RecentKeys, entries: &[Entry]) {
    for entries in entries.chunks(TOGETHER) {
        recent.touch(entries);
        for entry in entries {
            recent.insert(entry);
        }
    }
}
