//! Reading frames: at start all of them, in an epoch those of its range.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::path::Path;

use arrow::error::ArrowError;

use super::frame::{Frame, FrameHeader, HEAD, MAGIC, PAYLOAD_MAX, decode_header};
use super::{LogError, segments, sync_folder};

/// What the log holds at start.
#[derive(Debug, Default)]
pub struct LogScan {
    /// Headers of all valid frames, in order.
    pub frames: Vec<FrameHeader>,
    /// Bytes of a torn tail that were cut.
    pub torn_bytes: u64,
}

impl LogScan {
    /// Position after the last record, or `floor` when the log is empty.
    #[must_use]
    pub fn end(&self, floor: i64) -> i64 {
        self.frames.last().map_or(floor, FrameHeader::end).max(floor)
    }
}

/// The payload of the frame at an offset of a segment, and where the next one begins; `None` at the end, or where there is no
/// valid one.
pub(super) fn frame_at(bytes: &[u8], offset: usize) -> Option<(&[u8], usize)> {
    let (head, body) = bytes.get(offset..)?.split_at_checked(HEAD)?;
    let word = |index: usize| u32::from_le_bytes([head[index], head[index + 1], head[index + 2], head[index + 3]]);
    let (length, crc) = (word(4) as usize, word(8));
    if &head[..4] != MAGIC || length > PAYLOAD_MAX {
        return None;
    }
    let payload = body.get(..length).filter(|payload| crc32c::crc32c(payload) == crc)?;
    Some((payload, offset + HEAD + length))
}

/// The valid frames of a segment up to its end, or to the first that is none: their headers, and all of their payloads.
struct Frames<'s> {
    path: &'s Path,
    bytes: &'s [u8],
    /// Where the next one begins.
    offset: usize,
}

impl<'s> Frames<'s> {
    fn of(path: &'s Path, bytes: &'s [u8]) -> Self {
        Self { path, bytes, offset: 0 }
    }

    fn arrow(&self, source: ArrowError) -> LogError {
        LogError::Arrow { path: self.path.to_owned(), source }
    }
}

impl<'s> Iterator for Frames<'s> {
    type Item = Result<(FrameHeader, &'s [u8]), LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (payload, next) = frame_at(self.bytes, self.offset)?;
        self.offset = next;
        Some(decode_header(payload).map(|(header, _)| (header, payload)).map_err(|source| self.arrow(source)))
    }
}

/// Whether a valid frame begins anywhere behind `offset`.
fn valid_behind(bytes: &[u8], offset: usize) -> bool {
    (offset + 1..bytes.len().saturating_sub(HEAD)).any(|start| bytes[start..].starts_with(MAGIC) && frame_at(bytes, start).is_some())
}

/// Reads all headers, checks every frame, and cuts a torn tail. What is left is durable: a process that was killed may
/// have written frames that it did not sync, and whoever sends their events again is told that they are there. Positions
/// below `floor` are in the lake and may be missing.
///
/// # Errors
/// [`LogError::Damaged`] for a bad frame before valid ones, [`LogError::Gap`] for missing positions.
pub fn scan(folder: &Path, floor: i64) -> Result<LogScan, LogError> {
    let mut scan = LogScan::default();
    let all = segments(folder)?;
    sync_folder(folder).map_err(|error| LogError::io(folder, error))?;
    for (index, (_, path)) in all.iter().enumerate() {
        let bytes = std::fs::read(path).map_err(|error| LogError::io(path, error))?;
        std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(|error| LogError::io(path, error))?;
        let mut frames = Frames::of(path, &bytes);
        for frame in frames.by_ref() {
            let (header, _) = frame?;
            if let Some(last) = scan.frames.last()
                && last.end() != header.position
                && header.position > floor
            {
                return Err(LogError::Gap { path: folder.to_owned(), from: last.end(), to: header.position });
            }
            scan.frames.push(header);
        }
        let offset = frames.offset;
        if offset < bytes.len() {
            let later_segment = all[index + 1..].iter().any(|(_, path)| path.metadata().is_ok_and(|metadata| metadata.len() > 0));
            if later_segment || valid_behind(&bytes, offset) {
                return Err(LogError::Damaged { path: path.clone(), offset: offset as u64 });
            }
            scan.torn_bytes = (bytes.len() - offset) as u64;
            let file = OpenOptions::new().write(true).open(path).map_err(|error| LogError::io(path, error))?;
            file.set_len(offset as u64).and_then(|()| file.sync_all()).map_err(|error| LogError::io(path, error))?;
        }
    }
    Ok(scan)
}

/// The frames of positions `[from, to)`, which begin and end with frames. Returns fewer when they exceed `bytes_max`.
///
/// # Errors
/// [`LogError`] when a frame is missing or damaged.
pub fn read_range(folder: &Path, from: i64, to: i64, bytes_max: u64) -> Result<Vec<Frame>, LogError> {
    let all = segments(folder)?;
    let mut frames: Vec<Frame> = Vec::new();
    let mut read = 0_u64;
    for (index, (first, path)) in all.iter().enumerate() {
        let next_segment = all.get(index + 1).map_or(i64::MAX, |(next, _)| *next);
        if next_segment <= from || *first >= to {
            continue;
        }
        let bytes = std::fs::read(path).map_err(|error| LogError::io(path, error))?;
        let mut segment = Frames::of(path, &bytes);
        // At a bad frame, capture may be writing at this moment; damage shows as a gap.
        while let Some(frame) = segment.next() {
            let (header, payload) = frame?;
            if header.end() <= from {
                continue;
            }
            if header.position >= to || (read > bytes_max && !frames.is_empty()) {
                return checked(folder, frames, from);
            }
            read += payload.len() as u64;
            frames.push(Frame::decode(payload).map_err(|source| segment.arrow(source))?);
        }
    }
    checked(folder, frames, from)
}

/// The frames from position `from` on, to the end of the log: about so many bytes at a time.
pub fn parts(folder: &Path, from: i64, bytes_max: u64) -> impl Iterator<Item = Result<Vec<Frame>, LogError>> {
    let mut next = Some(from);
    std::iter::from_fn(move || {
        let read = read_range(folder, next?, i64::MAX, bytes_max);
        next = read.as_ref().ok().and_then(|frames| frames.last()).map(|frame| frame.header.end());
        Some(read).filter(|read| read.as_ref().map_or(true, |frames| !frames.is_empty()))
    })
}

/// The content hashes of adopted files that the log names, whether the lake has their rows or not.
///
/// # Errors
/// [`LogError::Damaged`] when a frame before the last segment cannot be read.
pub fn adopted_files(folder: &Path) -> Result<BTreeSet<String>, LogError> {
    let all = segments(folder)?;
    let mut found = BTreeSet::new();
    for (index, (_, path)) in all.iter().enumerate() {
        let bytes = match std::fs::read(path) {
            // It was trimmed in between.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.map_err(|error| LogError::io(path, error))?,
        };
        let mut frames = Frames::of(path, &bytes);
        for frame in frames.by_ref() {
            found.extend(frame?.0.adopted.into_iter().map(|adopted| adopted.file.content_hash));
        }
        let offset = frames.offset;
        // The last one may be written to at this moment.
        if offset < bytes.len() && index + 1 < all.len() {
            return Err(LogError::Damaged { path: path.clone(), offset: offset as u64 });
        }
    }
    Ok(found)
}

fn checked(folder: &Path, frames: Vec<Frame>, from: i64) -> Result<Vec<Frame>, LogError> {
    let mut expected = from;
    for frame in &frames {
        if frame.header.position != expected {
            return Err(LogError::Gap { path: folder.to_owned(), from: expected, to: frame.header.position });
        }
        expected = frame.header.end();
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::log::LogWriter;
    use crate::log::frame::tests::claim_frame;

    fn written(frames: usize) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::new(folder.path(), 0).unwrap();
        for _ in 0..frames {
            writer.append(&mut claim_frame(), 1, 0).unwrap();
        }
        let path = folder.path().join(format!("{:020}.log", 0));
        (folder, path)
    }

    #[test]
    fn every_torn_tail_is_cut_and_nothing_before_it() {
        let (folder, path) = written(3);
        let whole = std::fs::read(&path).unwrap();
        let third = whole.len() / 3;
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let scan = scan(folder.path(), 0).unwrap();
            assert_eq!(scan.frames.len(), length / third, "{length}");
            assert_eq!(scan.torn_bytes as usize, length % third);
            assert_eq!(path.metadata().unwrap().len() as usize, length / third * third);
        }
    }

    #[test]
    fn damage_before_valid_frames_stops() {
        let (folder, path) = written(3);
        let whole = std::fs::read(&path).unwrap();
        for index in 0..whole.len() * 2 / 3 {
            let mut bytes = whole.clone();
            bytes[index] ^= 0x40;
            std::fs::write(&path, &bytes).unwrap();
            assert!(matches!(scan(folder.path(), 0), Err(LogError::Damaged { .. })), "{index}");
        }
    }

    #[test]
    fn ranges_are_whole_frames() {
        let (folder, _) = written(5);
        let frames = read_range(folder.path(), 1, 4, u64::MAX).unwrap();
        assert_eq!(frames.iter().map(|frame| frame.header.position).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(read_range(folder.path(), 1, 4, 1).unwrap().len(), 1);
    }

    #[test]
    fn parts_have_every_frame_once() {
        let (folder, path) = written(5);
        let positions = |from: i64, bytes_max: u64| -> Vec<Vec<i64>> {
            parts(folder.path(), from, bytes_max).map(|part| part.unwrap().iter().map(|frame| frame.header.position).collect()).collect()
        };
        assert_eq!(positions(1, 1), [[1], [2], [3], [4]]);
        assert_eq!(positions(1, u64::MAX), [[1, 2, 3, 4]]);
        assert_eq!(positions(5, 1), Vec::<Vec<i64>>::new());
        let frame_bytes = path.metadata().unwrap().len() / 5;
        assert_eq!(positions(0, frame_bytes), [vec![0, 1], vec![2, 3], vec![4]]);
    }
}
