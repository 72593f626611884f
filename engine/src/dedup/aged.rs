//! Looking keys up on disk, many at a time.

use std::sync::Arc;

use super::aged_run::AgedRun;
use super::entry::Entry;
use super::files::{Files, Kind, is_damage};
use crate::log::LogError;

/// Reads from which on several threads wait for the disk.
const READS_SHARED: usize = 64;
/// How many.
const READERS: usize = 8;

/// The keys on disk.
#[derive(Debug)]
pub(super) struct AgedKeys {
    files: Files,
    /// In the order of their positions.
    pub(super) runs: Vec<Arc<AgedRun>>,
}

/// A key that may be in a file.
struct Lookup {
    row: usize,
    run: usize,
    places: (u64, u64),
}

impl AgedKeys {
    pub(super) fn new(files: Files) -> Self {
        Self { files, runs: Vec::new() }
    }

    /// The contents known for these rows of `entries`, by row; empty when there are none.
    ///
    /// # Errors
    /// [`LogError::Io`] when a file cannot be read; a damaged one is set aside, so that the next start rebuilds the index.
    pub(super) fn find(&self, entries: &[Entry], rows: &[usize]) -> Result<Vec<Option<u64>>, LogError> {
        let mut lookups = Vec::new();
        for (run, aged) in self.runs.iter().enumerate() {
            aged.touch(rows.iter().map(|row| &entries[*row]));
            let places = rows.iter().map(|row| (*row, aged.places(&entries[*row])));
            lookups.extend(places.filter_map(|(row, places)| places.map(|places| Lookup { row, run, places })));
        }
        if lookups.is_empty() {
            return Ok(Vec::new());
        }
        let mut found = vec![None; lookups.len()];
        if lookups.len() < READS_SHARED {
            self.read(entries, &lookups, &mut found)?;
        } else {
            let share = lookups.len().div_ceil(READERS);
            let parts = lookups.chunks(share).zip(found.chunks_mut(share));
            std::thread::scope(|scope| {
                let readers: Vec<_> = parts.map(|(lookups, found)| scope.spawn(|| self.read(entries, lookups, found))).collect();
                readers.into_iter().try_for_each(|reader| reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            })?;
        }
        let mut known = vec![None; entries.len()];
        for (lookup, found) in lookups.iter().zip(found) {
            // Oldest file first: what an identity said first counts.
            known[lookup.row] = known[lookup.row].or(found);
        }
        Ok(known)
    }

    fn read(&self, entries: &[Entry], lookups: &[Lookup], found: &mut [Option<u64>]) -> Result<(), LogError> {
        for (lookup, found) in lookups.iter().zip(found) {
            let run = &self.runs[lookup.run];
            *found = run.find(&entries[lookup.row], lookup.places).map_err(|error| {
                if is_damage(&error) {
                    self.files.condemn(Kind::Aged, run.span);
                }
                LogError::io(&self.files.path(Kind::Aged, run.span), error)
            })?;
        }
        Ok(())
    }
}
