//! Which events were seen: exact, whatever their age.
//!
//! Keys of the last days (the horizon) are in memory. Older ones are in one sorted file, looked up by position in it.
//! Each epoch adds a run file, so that a restart loads keys instead of reading the whole `usage` table; the files are
//! a cache that can be made again from `usage` and `rejected`.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hashbrown::HashTable;
use ratemill_schemas::{EventKey, Verdict};

use crate::log::{LogError, sync_folder};

const ENTRY: usize = 24;
/// Entries between two fences of the sorted file.
const FENCE: usize = 128;
const RUN_MAGIC: &[u8; 8] = b"RMKEYS01";
const RUN_HEAD: usize = 40;

/// A key in memory without the padding of a 128-bit number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packed {
    high: u64,
    low: u64,
    content: u64,
}

impl From<EventKey> for Packed {
    fn from(key: EventKey) -> Self {
        let low = u64::try_from(key.identity & u128::from(u64::MAX)).unwrap_or_default();
        let high = u64::try_from(key.identity >> 64).unwrap_or_default();
        Self { high, low, content: key.content }
    }
}

impl Packed {
    fn bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..8].copy_from_slice(&self.high.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.low.to_be_bytes());
        bytes[16..].copy_from_slice(&self.content.to_be_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Self {
        let word = |at: usize| bytes[at..at + 8].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        Self { high: word(0), low: word(8), content: word(16) }
    }
}

/// The index of seen events.
#[derive(Debug)]
pub struct DedupIndex {
    folder: PathBuf,
    recent: HashTable<Packed>,
    aged: Option<AgedKeys>,
}

/// A run file's coverage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    from: i64,
    to: i64,
    ingested_max: i64,
}

impl DedupIndex {
    /// Opens the index below `folder`; returns it with the position up to which it knows all keys, which is short of
    /// `covered` when the files are not there: then the caller rebuilds it.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn open(folder: &Path, covered: i64, aged_before: i64) -> Result<(Self, i64), LogError> {
        std::fs::create_dir_all(folder).map_err(|error| LogError::io(folder, error))?;
        let mut index = Self { folder: folder.to_owned(), recent: HashTable::new(), aged: None };
        let aged_to = index.open_aged()?;
        let mut runs: Vec<(Run, PathBuf)> = index.run_files()?;
        runs.retain(|(run, path)| {
            // What the sorted file holds already, or what an epoch that never completed left.
            let stale = run.to <= aged_to || run.to > covered;
            if stale {
                let _ = std::fs::remove_file(path);
            }
            !stale
        });
        let mut known = aged_to;
        let mut aging = Vec::new();
        for (run, path) in &runs {
            if run.from != known {
                break;
            }
            let keys = read_run(path)?;
            known = run.to;
            if run.ingested_max < aged_before && aging.len() + 1 == runs.iter().take_while(|(other, _)| other.to <= run.to).count() {
                aging.push((keys, run.to));
            } else {
                index.insert_all(keys.into_iter());
            }
        }
        if !aging.is_empty() {
            index.age(aging)?;
        }
        Ok((index, known))
    }

    /// Forgets everything, before a rebuild.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn clear(&mut self) -> Result<(), LogError> {
        self.recent.clear();
        self.aged = None;
        std::fs::remove_dir_all(&self.folder).map_err(|error| LogError::io(&self.folder, error))?;
        std::fs::create_dir_all(&self.folder).map_err(|error| LogError::io(&self.folder, error))
    }

    /// What `key` is; an unknown one is known from now on.
    ///
    /// # Errors
    /// [`LogError::Io`] when the sorted file cannot be read: then nothing may be accepted.
    pub fn check(&mut self, key: EventKey) -> Result<Verdict, LogError> {
        let packed = Packed::from(key);
        let known = self.recent.find(packed.low, |entry| entry.low == packed.low && entry.high == packed.high).copied();
        let known = match (known, &self.aged) {
            (None, Some(aged)) => aged.find(packed)?,
            (known, _) => known,
        };
        Ok(match known {
            Some(known) if known.content == packed.content => Verdict::Duplicate,
            Some(_) => Verdict::Conflict,
            None => {
                self.recent.insert_unique(packed.low, packed, |entry| entry.low);
                Verdict::Accepted
            }
        })
    }

    /// Adds keys without asking.
    pub fn insert_all(&mut self, keys: impl Iterator<Item = EventKey>) {
        for key in keys {
            let packed = Packed::from(key);
            if self.recent.find(packed.low, |entry| entry.low == packed.low && entry.high == packed.high).is_none() {
                self.recent.insert_unique(packed.low, packed, |entry| entry.low);
            }
        }
    }

    /// Keys in memory and on disk.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        (self.recent.len(), self.aged.as_ref().map_or(0, |aged| aged.entries))
    }

    /// Keeps the keys of positions `[from, to)` for the next start.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn save_run(folder: &Path, from: i64, to: i64, ingested_max: i64, keys: &[EventKey]) -> Result<(), LogError> {
        let path = folder.join(format!("{from:020}-{to:020}.keys"));
        let write = || -> std::io::Result<()> {
            let temporary = path.with_extension("tmp");
            let mut file = BufWriter::new(File::create(&temporary)?);
            let mut body = Vec::with_capacity(keys.len() * ENTRY);
            keys.iter().for_each(|key| body.extend_from_slice(&Packed::from(*key).bytes()));
            file.write_all(RUN_MAGIC)?;
            for number in [from, to, ingested_max] {
                file.write_all(&number.to_le_bytes())?;
            }
            file.write_all(&u64::from(crc32c::crc32c(&body)).to_le_bytes())?;
            file.write_all(&body)?;
            file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            sync_folder(folder)
        };
        write().map_err(|error| LogError::io(&path, error))
    }

    fn run_files(&self) -> Result<Vec<(Run, PathBuf)>, LogError> {
        let mut runs = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(|error| LogError::io(&self.folder, error))? {
            let path = entry.map_err(|error| LogError::io(&self.folder, error))?.path();
            if path.extension().is_none_or(|extension| extension != "keys") || path.file_name().is_some_and(|name| name == "aged.keys") {
                continue;
            }
            let mut head = [0; RUN_HEAD];
            if File::open(&path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head.starts_with(RUN_MAGIC) {
                let number = |at: usize| head[at..at + 8].iter().rev().fold(0_i64, |sum, byte| sum << 8 | i64::from(*byte));
                runs.push((Run { from: number(8), to: number(16), ingested_max: number(24) }, path));
            }
        }
        runs.sort_by_key(|(run, _)| (run.from, run.to));
        Ok(runs)
    }

    fn open_aged(&mut self) -> Result<i64, LogError> {
        let path = self.folder.join("aged.keys");
        match AgedKeys::open(&path) {
            Ok(aged) => {
                let to = aged.to;
                self.aged = Some(aged);
                Ok(to)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            // Then nothing is covered, and the caller rebuilds the index from the lake.
            Err(error) if matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) => {
                tracing::warn!(path = %path.display(), %error, "the index of event ids will be rebuilt");
                Ok(-1)
            }
            Err(error) => Err(LogError::io(&path, error)),
        }
    }

    /// Moves runs, which follow what the sorted file covers, from memory into it.
    fn age(&mut self, runs: Vec<(Vec<EventKey>, i64)>) -> Result<(), LogError> {
        let path = self.folder.join("aged.keys");
        let to = runs.last().map_or(0, |(_, to)| *to);
        let mut new: Vec<[u8; ENTRY]> = runs.into_iter().flat_map(|(keys, _)| keys).map(|key| Packed::from(key).bytes()).collect();
        new.sort_unstable();
        let merged = || -> std::io::Result<AgedKeys> {
            AgedKeys::merge(self.aged.as_ref(), &new, &path, to)?;
            sync_folder(&self.folder)?;
            AgedKeys::open(&path)
        };
        self.aged = Some(merged().map_err(|error| LogError::io(&path, error))?);
        Ok(())
    }
}

fn read_run(path: &Path) -> Result<Vec<EventKey>, LogError> {
    let bytes = std::fs::read(path).map_err(|error| LogError::io(path, error))?;
    let (head, body) = bytes.split_at_checked(RUN_HEAD).unwrap_or_default();
    let crc = head.get(32..40).map_or(0, |crc| crc.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)));
    if head.is_empty() || u64::from(crc32c::crc32c(body)) != crc {
        let source = std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "checksum mismatch; remove the file, the index is then rebuilt from the usage table",
        );
        return Err(LogError::io(path, source));
    }
    Ok(body.chunks_exact(ENTRY).map(Packed::read).map(unpack).collect())
}

fn unpack(packed: Packed) -> EventKey {
    EventKey { identity: u128::from(packed.high) << 64 | u128::from(packed.low), content: packed.content }
}

/// Sorted entries in a file: magic, covered position, number of entries, checksum, entries; one fence in memory for
/// every 128.
#[derive(Debug)]
struct AgedKeys {
    file: File,
    fences: Vec<[u8; 16]>,
    entries: usize,
    to: i64,
}

const AGED_HEAD: u64 = 32;
const AGED_MAGIC: &[u8; 8] = b"RMAGED02";

impl AgedKeys {
    fn open(path: &Path) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        let mut head = [0; 32];
        file.read_exact(&mut head)?;
        let number = |at: usize| head[at..at + 8].iter().rev().fold(0_i64, |sum, byte| sum << 8 | i64::from(*byte));
        let damaged = || std::io::Error::new(std::io::ErrorKind::InvalidData, "the index of aged keys is damaged");
        let (to, entries) = (number(8), usize::try_from(number(16)).map_err(|_| damaged())?);
        let length = entries.checked_mul(ENTRY).map(|bytes| bytes as u64 + AGED_HEAD);
        if !head.starts_with(AGED_MAGIC) || length != Some(file.metadata()?.len()) {
            return Err(damaged());
        }
        let mut fences = Vec::with_capacity(entries.div_ceil(FENCE));
        let (mut crc, mut block) = (0, vec![0; FENCE * ENTRY]);
        let mut left = entries;
        while left > 0 {
            let bytes = &mut block[..left.min(FENCE) * ENTRY];
            file.read_exact(bytes)?;
            crc = crc32c::crc32c_append(crc, bytes);
            let mut key = [0; 16];
            key.copy_from_slice(&bytes[..16]);
            fences.push(key);
            left -= left.min(FENCE);
        }
        if i64::from(crc) != number(24) {
            return Err(damaged());
        }
        Ok(Self { file, fences, entries, to })
    }

    fn find(&self, wanted: Packed) -> Result<Option<Packed>, LogError> {
        let wanted_bytes = wanted.bytes();
        let block = self.fences.partition_point(|fence| fence[..] <= wanted_bytes[..16]);
        let Some(block) = block.checked_sub(1) else { return Ok(None) };
        let first = block * FENCE;
        let count = FENCE.min(self.entries - first);
        let mut bytes = vec![0; count * ENTRY];
        self.file
            .read_exact_at(&mut bytes, AGED_HEAD + (first * ENTRY) as u64)
            .map_err(|error| LogError::io(Path::new("dedup/aged.keys"), error))?;
        Ok(bytes.chunks_exact(ENTRY).find(|entry| entry[..16] == wanted_bytes[..16]).map(Packed::read))
    }

    fn merge(old: Option<&Self>, new: &[[u8; ENTRY]], path: &Path, to: i64) -> std::io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut out = BufWriter::new(File::create(&temporary)?);
        out.write_all(&[0; AGED_HEAD as usize])?;
        let (mut crc, mut entries) = (0, 0_i64);
        let mut put = |out: &mut BufWriter<File>, entry: &[u8]| {
            crc = crc32c::crc32c_append(crc, entry);
            entries += 1;
            out.write_all(entry)
        };
        let mut new = new.iter().peekable();
        if let Some(old) = old {
            let mut block = vec![0; 4096 * ENTRY];
            let mut at = 0;
            while at < old.entries {
                let count = 4096.min(old.entries - at);
                let bytes = &mut block[..count * ENTRY];
                old.file.read_exact_at(bytes, AGED_HEAD + (at * ENTRY) as u64)?;
                for entry in bytes.chunks_exact(ENTRY) {
                    while let Some(next) = new.next_if(|next| next[..] < entry[..]) {
                        put(&mut out, next)?;
                    }
                    put(&mut out, entry)?;
                }
                at += count;
            }
        }
        for entry in new {
            put(&mut out, entry)?;
        }
        let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.write_all_at(AGED_MAGIC, 0)?;
        for (at, number) in [(8, to), (16, entries), (24, i64::from(crc))] {
            file.write_all_at(&number.to_le_bytes(), at)?;
        }
        file.sync_all()?;
        std::fs::rename(temporary, path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(id: u64, content: u64) -> EventKey {
        EventKey { identity: u128::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835), content }
    }

    #[test]
    fn exact_in_memory_and_after_aging() {
        let folder = tempfile::tempdir().unwrap();
        for (run, day) in [(0_u64, 10), (1, 20), (2, 30)] {
            let keys: Vec<EventKey> = (run * 1000..run * 1000 + 1000).map(|id| key(id, 1)).collect();
            let from = i64::try_from(run * 1000).unwrap();
            DedupIndex::save_run(folder.path(), from, from + 1000, day, &keys).unwrap();
        }
        for (aged_before, on_disk) in [(0, 0), (15, 1000), (25, 2000), (100, 3000), (100, 3000)] {
            let (mut index, known) = DedupIndex::open(folder.path(), 3000, aged_before).unwrap();
            assert_eq!(known, 3000);
            assert_eq!(index.len(), (3000 - on_disk, on_disk));
            for id in 0..3000 {
                assert_eq!(index.check(key(id, 1)).unwrap(), Verdict::Duplicate, "{id}");
            }
            assert_eq!(index.check(key(7, 2)).unwrap(), Verdict::Conflict);
            assert_eq!(index.check(key(9999, 1)).unwrap(), Verdict::Accepted);
            assert_eq!(index.check(key(9999, 1)).unwrap(), Verdict::Duplicate);
        }
    }

    #[test]
    fn a_missing_run_shows_as_a_gap() {
        let folder = tempfile::tempdir().unwrap();
        DedupIndex::save_run(folder.path(), 0, 10, 1, &[key(1, 1)]).unwrap();
        DedupIndex::save_run(folder.path(), 20, 30, 1, &[key(2, 1)]).unwrap();
        let (_, known) = DedupIndex::open(folder.path(), 30, 0).unwrap();
        assert_eq!(known, 10);
    }
}
