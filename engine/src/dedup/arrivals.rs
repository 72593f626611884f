//! Files of keys that are loaded into memory at a start: one for each epoch, joined later.

use std::fs::File;
use std::io::Read;

use super::entry::{ENTRY_BYTES, Entry, read_entry, word, write_entry};
use super::files::{Files, Kind, Span, damaged};

const MAGIC: &[u8; 8] = b"RMKEYS02";
const HEAD: usize = 48;
/// Entries that are read or written at once.
const PIECE: usize = 1 << 15;

/// What a file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrivals {
    pub(super) span: Span,
    /// When the last of its frames was logged, µs UTC.
    pub(super) ingested_max: i64,
    pub(super) keys: u64,
    body_crc: u32,
}

impl Arrivals {
    /// Writes a file of these keys, sorted: in that order they go into memory fastest.
    pub(super) fn write(files: &Files, span: Span, ingested_max: i64, mut entries: Vec<Entry>) -> std::io::Result<()> {
        entries.sort_unstable();
        let mut file = files.create(Kind::Recent, span)?;
        let mut bytes = vec![0; PIECE.min(entries.len()) * ENTRY_BYTES];
        let mut each = |put: &mut dyn FnMut(&[u8]) -> std::io::Result<()>| {
            for piece in entries.chunks(PIECE) {
                let bytes = &mut bytes[..piece.len() * ENTRY_BYTES];
                piece.iter().zip(bytes.chunks_exact_mut(ENTRY_BYTES)).for_each(|(entry, bytes)| write_entry(entry, bytes));
                put(bytes)?;
            }
            Ok(())
        };
        let mut body_crc = 0;
        let written = each(&mut |bytes| {
            body_crc = crc32c::crc32c_append(body_crc, bytes);
            Ok(())
        })
        .and_then(|()| file.write(&Self { span, ingested_max, keys: entries.len() as u64, body_crc }.head()))
        .and_then(|()| each(&mut |bytes| file.write(bytes)));
        if let Err(error) = written {
            Files::discard(&file);
            return Err(error);
        }
        files.name(file).map(drop)
    }

    /// The head of a file, with its length checked.
    pub(super) fn open(files: &Files, span: Span) -> std::io::Result<Self> {
        Self::open_file(files, span).map(|(arrivals, _)| arrivals)
    }

    /// Reads a file piece by piece. That the bytes are wrong is found out last, when pieces were handed out already.
    pub(super) fn read(files: &Files, span: Span, mut take: impl FnMut(Vec<Entry>)) -> std::io::Result<()> {
        let (arrivals, mut file) = Self::open_file(files, span)?;
        let mut bytes = vec![0; PIECE * ENTRY_BYTES];
        let (mut left, mut crc) = (usize::try_from(arrivals.keys).unwrap_or(usize::MAX), 0);
        while left > 0 {
            let piece = left.min(PIECE);
            let bytes = &mut bytes[..piece * ENTRY_BYTES];
            file.read_exact(bytes)?;
            crc = crc32c::crc32c_append(crc, bytes);
            take(bytes.chunks_exact(ENTRY_BYTES).map(read_entry).collect());
            left -= piece;
        }
        if crc == arrivals.body_crc { Ok(()) } else { Err(damaged("wrong checksum of event ids")) }
    }

    fn open_file(files: &Files, span: Span) -> std::io::Result<(Self, File)> {
        let mut file = File::open(files.path(Kind::Recent, span))?;
        let mut head = [0; HEAD];
        file.read_exact(&mut head)?;
        let number = |at| i64::from_le_bytes(word(&head, at).to_le_bytes());
        let crcs = word(&head, 40);
        let [low, high] = [crcs & u64::from(u32::MAX), crcs >> 32];
        let arrivals = Self {
            span: Span { from: number(8), to: number(16) },
            ingested_max: number(24),
            keys: word(&head, 32),
            body_crc: u32::try_from(high).unwrap_or_default(),
        };
        let length = arrivals.keys.checked_mul(ENTRY_BYTES as u64).and_then(|bytes| bytes.checked_add(HEAD as u64));
        let sound = head.starts_with(MAGIC) && u64::from(crc32c::crc32c(&head[..40])) == low;
        if !sound || arrivals.span != span || length != Some(file.metadata()?.len()) {
            return Err(damaged("wrong head of a file of event ids"));
        }
        Ok((arrivals, file))
    }

    fn head(&self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(MAGIC);
        for (at, number) in [(8, self.span.from), (16, self.span.to), (24, self.ingested_max)] {
            head[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        head[32..40].copy_from_slice(&self.keys.to_le_bytes());
        let crc = crc32c::crc32c(&head[..40]);
        head[40..44].copy_from_slice(&crc.to_le_bytes());
        head[44..].copy_from_slice(&self.body_crc.to_le_bytes());
        head
    }
}
