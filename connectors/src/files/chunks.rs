//! A text file as chunks of whole rows, read, hashed and decompressed on a thread of its own.

use std::io::{self, Read};

use tokio::sync::mpsc;

use super::config::Compression;
use super::content::Content;
use super::reader::FileError;
use crate::decode::csv;

/// Bytes of one chunk, give or take a row.
const CHUNK_BYTES: usize = 4 << 20;

/// Whole rows of a file.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Line of the first row, from 1.
    pub(super) first_line: u64,
    pub(super) bytes: Vec<u8>,
}

/// How rows are divided.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rows {
    Lines,
    Csv { delimiter: u8 },
}

impl Rows {
    fn whole(self, bytes: &[u8]) -> usize {
        match self {
            Self::Lines => bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |index| index + 1),
            Self::Csv { delimiter } => csv::whole_rows(bytes, delimiter),
        }
    }
}

fn decompress(reader: impl Read + Send + 'static, compression: Compression) -> io::Result<Box<dyn Read + Send>> {
    Ok(match compression {
        Compression::None => Box::new(reader),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(reader)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(reader)?),
    })
}

/// The SHA-256 of a file.
pub(super) async fn content_hash(mut content: Content) -> Result<String, FileError> {
    blocking(move || {
        io::copy(&mut content, &mut io::sink())?;
        Ok(content.passed().hash())
    })
    .await
}

/// A whole file in memory, decompressed, and its SHA-256.
pub(super) async fn whole(content: Content, compression: Compression, bytes_max: u64) -> Result<(Vec<u8>, String), FileError> {
    blocking(move || {
        let passed = content.passed();
        let mut bytes = Vec::new();
        let read = decompress(content, compression).and_then(|reader| reader.take(bytes_max + 1).read_to_end(&mut bytes));
        read.map_err(|source| passed.blame(source))?;
        if bytes.len() as u64 > bytes_max {
            return Err(FileError::TooLarge { bytes_max });
        }
        Ok((bytes, passed.hash()))
    })
    .await
}

/// Sends the chunks of a file, then returns its SHA-256. Rows that never end are cut at `row_bytes_max`.
pub(super) async fn send(
    content: Content,
    compression: Compression,
    rows: Rows,
    row_bytes_max: usize,
    chunks: mpsc::Sender<Chunk>,
) -> Result<String, FileError> {
    blocking(move || {
        let passed = content.passed();
        let mut reader = decompress(content, compression).map_err(|source| passed.blame(source))?;
        let mut line = 1;
        let mut rest: Vec<u8> = Vec::new();
        let mut skipping = false;
        loop {
            let mut bytes = std::mem::take(&mut rest);
            let wanted = CHUNK_BYTES.saturating_sub(bytes.len()).max(CHUNK_BYTES / 4);
            let read = reader.by_ref().take(wanted as u64).read_to_end(&mut bytes);
            let ended = matches!(read, Ok(0));
            if skipping {
                // The head of this row was sent as too large; its tail is passed over.
                match bytes.iter().position(|byte| *byte == b'\n') {
                    Some(index) => {
                        bytes.drain(..=index);
                        line += 1;
                        skipping = false;
                    }
                    None => bytes.clear(),
                }
            }
            let mut whole = if ended { bytes.len() } else { rows.whole(&bytes) };
            if !ended && bytes.len() - whole > CHUNK_BYTES.max(row_bytes_max) {
                // A quote that is never closed: cut at a line, and let the decoder judge.
                whole = Rows::Lines.whole(&bytes).max(whole);
            }
            rest = bytes.split_off(whole);
            if bytes.is_empty() && rest.len() > row_bytes_max {
                bytes = std::mem::take(&mut rest);
                skipping = true;
            }
            if !bytes.is_empty() {
                let breaks = bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
                if chunks.blocking_send(Chunk { first_line: line, bytes }).is_err() {
                    return Err(FileError::Stopped);
                }
                line += breaks;
            }
            read.map_err(|source| passed.blame(source))?;
            if ended {
                // What follows the compressed data belongs to the file, too.
                return Ok(passed.hash());
            }
        }
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, FileError> + Send + 'static) -> Result<T, FileError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| FileError::Io(io::Error::other(error)))?
}
