//! Keys on disk: immutable sorted files of 4 KiB blocks with a checksum each, and a filter in memory that says of
//! nearly every strange id that it is not there, and of a known one where it is: one read for a lookup.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::entry::{ENTRY_BYTES, Entry, read_entry, same_identity, word, write_entry};
use super::files::{Files, Kind, NewFile, Span, damaged};
use super::filter::{FilterShape, PlaceFilter};

const MAGIC: &[u8; 8] = b"RMAGED03";
const BLOCK: usize = 4096;
/// Entries of a block; the rest of it is the checksum and the block's number, so that a misplaced block shows.
const BLOCK_ENTRIES: usize = 170;
const BLOCK_CRC: usize = BLOCK_ENTRIES * ENTRY_BYTES;
/// Blocks that are read or written at once.
const PIECE: usize = 256;

/// One sorted file.
#[derive(Debug)]
pub(super) struct AgedRun {
    pub(super) span: Span,
    file: File,
    filter: PlaceFilter,
}

impl AgedRun {
    /// Opens a file: reads its head and its filter, and checks both.
    pub(super) fn open(files: &Files, span: Span) -> std::io::Result<Self> {
        let file = File::open(files.path(Kind::Aged, span))?;
        let mut head = [0; BLOCK];
        file.read_exact_at(&mut head, 0)?;
        let number = |at| i64::from_le_bytes(word(&head, at).to_le_bytes());
        let remainder_bits = u32::try_from(word(&head, 40)).unwrap_or_default();
        let shape = FilterShape { keys: word(&head, 24), parts: word(&head, 32), remainder_bits };
        let sound = head.starts_with(MAGIC) && u64::from(crc32c::crc32c(&head[..56])) == word(&head, 56);
        let named = Span { from: number(8), to: number(16) } == span;
        if !sound || !named || !(1..=32).contains(&remainder_bits) || shape.keys > u64::from(u32::MAX) {
            return Err(damaged("wrong head of a file of aged event ids"));
        }
        let mut at = block_at(blocks(shape.keys));
        if file.metadata()?.len() != at + shape.file_bytes() {
            return Err(damaged("wrong length of a file of aged event ids"));
        }
        let mut crc = 0;
        let filter = PlaceFilter::read(shape, |piece| {
            file.read_exact_at(piece, at)?;
            at += piece.len() as u64;
            crc = crc32c::crc32c_append(crc, piece);
            Ok(())
        })?;
        if u64::from(crc) != word(&head, 48) {
            return Err(damaged("wrong checksum of the filter of aged event ids"));
        }
        Ok(Self { span, file, filter })
    }

    pub(super) fn keys(&self) -> u64 {
        self.filter.shape().keys
    }

    /// Bytes in memory.
    pub(super) fn memory(&self) -> usize {
        self.filter.bytes()
    }

    /// Prepares [`Self::places`] for many entries.
    pub(super) fn touch<'keys>(&self, entries: impl Iterator<Item = &'keys Entry>) {
        self.filter.touch(entries.map(|entry| entry[0]));
    }

    /// Places at which this identity may stand; mostly there is none.
    pub(super) fn places(&self, entry: &Entry) -> Option<(u64, u64)> {
        self.filter.places(entry[0])
    }

    /// The content known for this identity, if it stands at one of these places.
    pub(super) fn find(&self, entry: &Entry, places: (u64, u64)) -> std::io::Result<Option<u64>> {
        let mut bytes = [0; BLOCK];
        let mut read = None;
        for place in places.0..places.1.min(self.keys()) {
            let (block, slot) = (place / BLOCK_ENTRIES as u64, usize::try_from(place % BLOCK_ENTRIES as u64).unwrap_or_default());
            if read != Some(block) {
                self.file.read_exact_at(&mut bytes, block_at(block))?;
                check_block(&bytes, block)?;
                read = Some(block);
            }
            let known = read_entry(&bytes[slot * ENTRY_BYTES..]);
            if same_identity(&known, entry) {
                return Ok(Some(known[2]));
            }
        }
        Ok(None)
    }

    /// Reads and checks every block.
    pub(super) fn verify(&self, stop: &AtomicBool) -> std::io::Result<()> {
        let mut reader = AgedReader::new(self);
        while reader.next()?.is_some() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(())
    }

    /// Writes a file of these keys, which are in order.
    pub(super) fn write(files: &Files, span: Span, entries: &[Entry]) -> std::io::Result<Self> {
        AgedWriter::write(files, span, entries.len() as u64, |put| entries.iter().try_for_each(put))
    }

    /// Merges files that follow each other; the oldest content of an identity counts.
    pub(super) fn merge(files: &Files, runs: &[std::sync::Arc<Self>], stop: &AtomicBool) -> std::io::Result<Self> {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return Err(std::io::ErrorKind::InvalidInput.into()) };
        let span = Span { from: first.span.from, to: last.span.to };
        let keys = runs.iter().map(|run| run.keys()).sum();
        AgedWriter::write(files, span, keys, |put| {
            let mut readers: Vec<AgedReader<'_>> = runs.iter().map(|run| AgedReader::new(run)).collect();
            let mut heads: Vec<(Entry, usize)> = Vec::with_capacity(runs.len());
            for (reader, run) in readers.iter_mut().zip(0..) {
                heads.extend(reader.next()?.map(|entry| (entry, run)));
            }
            let (mut last, mut count) = (None, 0_u32);
            // Heads are few: looking at all of them costs less than keeping them in order. Equal ones come oldest first.
            while let Some(least) = (0..heads.len()).min_by_key(|head| (heads[*head].0[0], heads[*head].0[1], heads[*head].1)) {
                let (entry, run) = heads[least];
                if last.is_none_or(|last| !same_identity(&last, &entry)) {
                    put(&entry)?;
                    last = Some(entry);
                }
                match readers[run].next()? {
                    Some(next) => heads[least].0 = next,
                    None => drop(heads.swap_remove(least)),
                }
                count = count.wrapping_add(1);
                if count.is_multiple_of(1 << 16) && stop.load(Ordering::Relaxed) {
                    return Err(std::io::ErrorKind::Interrupted.into());
                }
            }
            Ok(())
        })
    }
}

fn blocks(keys: u64) -> u64 {
    keys.div_ceil(BLOCK_ENTRIES as u64)
}

/// Where a block begins: behind the head, which takes a block, too.
fn block_at(block: u64) -> u64 {
    (block + 1) * BLOCK as u64
}

fn block_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..BLOCK_CRC]), &bytes[BLOCK_CRC + 4..])
}

fn seal_block(bytes: &mut [u8], block: u64) {
    bytes[BLOCK - 8..].copy_from_slice(&block.to_le_bytes());
    let crc = block_crc(bytes);
    bytes[BLOCK_CRC..BLOCK_CRC + 4].copy_from_slice(&crc.to_le_bytes());
}

fn check_block(bytes: &[u8], block: u64) -> std::io::Result<()> {
    let crc = word(bytes, BLOCK_CRC) & u64::from(u32::MAX);
    if crc == u64::from(block_crc(bytes)) && word(bytes, BLOCK - 8) == block {
        return Ok(());
    }
    Err(damaged("wrong checksum of a block of aged event ids"))
}

/// Reads a file in order.
struct AgedReader<'run> {
    run: &'run AgedRun,
    bytes: Vec<u8>,
    /// Place of the next entry, and of the first and behind the last one in memory.
    next: u64,
    first: u64,
    end: u64,
}

impl<'run> AgedReader<'run> {
    fn new(run: &'run AgedRun) -> Self {
        Self { run, bytes: vec![0; PIECE * BLOCK], next: 0, first: 0, end: 0 }
    }

    fn next(&mut self) -> std::io::Result<Option<Entry>> {
        if self.next == self.end && !self.fill()? {
            return Ok(None);
        }
        let place = usize::try_from(self.next - self.first).unwrap_or_default();
        self.next += 1;
        let at = place / BLOCK_ENTRIES * BLOCK + place % BLOCK_ENTRIES * ENTRY_BYTES;
        Ok(Some(read_entry(&self.bytes[at..])))
    }

    fn fill(&mut self) -> std::io::Result<bool> {
        let keys = self.run.keys();
        if self.next == keys {
            return Ok(false);
        }
        let block = self.next / BLOCK_ENTRIES as u64;
        let count = usize::try_from(blocks(keys) - block).unwrap_or(PIECE).min(PIECE);
        let bytes = &mut self.bytes[..count * BLOCK];
        self.run.file.read_exact_at(bytes, block_at(block))?;
        for (block, bytes) in (block..).zip(bytes.chunks_exact(BLOCK)) {
            check_block(bytes, block)?;
        }
        self.first = self.next;
        self.end = keys.min((block + count as u64) * BLOCK_ENTRIES as u64);
        Ok(true)
    }
}

/// Writes a file in order.
struct AgedWriter {
    new: NewFile,
    filter: PlaceFilter,
    bytes: Vec<u8>,
    /// Where the next entry goes in `bytes`.
    at: usize,
    block: u64,
}

impl AgedWriter {
    fn write(
        files: &Files,
        span: Span,
        keys_max: u64,
        entries: impl FnOnce(&mut dyn FnMut(&Entry) -> std::io::Result<()>) -> std::io::Result<()>,
    ) -> std::io::Result<AgedRun> {
        let new = files.create(Kind::Aged, span)?;
        let mut writer = Self { new, filter: PlaceFilter::new(keys_max), bytes: vec![0; PIECE * BLOCK], at: 0, block: 0 };
        // The head comes last, into the place that is left for it here.
        let written =
            writer.new.write(&[0; BLOCK]).and_then(|()| entries(&mut |entry| writer.push(entry))).and_then(|()| writer.finish(span));
        if let Err(error) = written {
            Files::discard(&writer.new);
            return Err(error);
        }
        let file = files.name(writer.new)?;
        Ok(AgedRun { span, file, filter: writer.filter })
    }

    fn push(&mut self, entry: &Entry) -> std::io::Result<()> {
        write_entry(entry, &mut self.bytes[self.at..self.at + ENTRY_BYTES]);
        self.filter.push(entry[0]);
        self.at += ENTRY_BYTES;
        if self.at % BLOCK == BLOCK_CRC { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> std::io::Result<()> {
        let begin = self.at / BLOCK * BLOCK;
        seal_block(&mut self.bytes[begin..begin + BLOCK], self.block);
        self.block += 1;
        self.at = begin + BLOCK;
        if self.at == self.bytes.len() { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.new.write(&self.bytes[..self.at])?;
        self.bytes.fill(0);
        self.at = 0;
        Ok(())
    }

    fn finish(&mut self, span: Span) -> std::io::Result<()> {
        if !self.at.is_multiple_of(BLOCK) {
            self.end_block()?;
        }
        self.flush()?;
        self.filter.finish();
        let mut crc = 0;
        self.filter.write(|piece| {
            crc = crc32c::crc32c_append(crc, piece);
            self.new.write(piece)
        })?;
        let shape = self.filter.shape();
        let mut head = [0; 64];
        head[..8].copy_from_slice(MAGIC);
        head[8..16].copy_from_slice(&span.from.to_le_bytes());
        head[16..24].copy_from_slice(&span.to.to_le_bytes());
        for (at, number) in [(24, shape.keys), (32, shape.parts), (40, u64::from(shape.remainder_bits)), (48, u64::from(crc))] {
            head[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let crc = u64::from(crc32c::crc32c(&head[..56]));
        head[56..].copy_from_slice(&crc.to_le_bytes());
        self.new.file.write_all_at(&head, 0)
    }
}
