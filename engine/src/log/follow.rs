//! Following a log that another process writes: frames as they become durable. Nothing is locked, written or cut.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::frame::{Frame, decode_header};
use super::reader::frame_at;
use super::{LogError, segments};

/// Reads a log while it grows.
#[derive(Debug)]
pub struct LogFollower {
    folder: PathBuf,
    /// Position of the next record.
    position: i64,
    segment: Option<Segment>,
    /// Frames that were read together.
    ready: VecDeque<Vec<u8>>,
    missed: i64,
}

/// The segment that is read.
#[derive(Debug)]
struct Segment {
    first: i64,
    path: PathBuf,
    file: File,
    /// Where the next frame begins.
    offset: u64,
}

impl LogFollower {
    /// Begins with the first record that the log still holds.
    ///
    /// # Errors
    /// [`LogError::Io`] when there is no log.
    pub fn from_start(folder: &Path) -> Result<Self, LogError> {
        let position = segments(folder)?.first().map_or(0, |(first, _)| *first);
        Ok(Self { folder: folder.to_owned(), position, segment: None, ready: VecDeque::new(), missed: 0 })
    }

    /// Begins with the first record that comes from now on.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn from_end(folder: &Path) -> Result<Self, LogError> {
        let mut follower = Self::from_start(folder)?;
        while follower.fill()? {
            while let Some(payload) = follower.ready.pop_front() {
                follower.pass(&payload)?;
            }
        }
        follower.missed = 0;
        Ok(follower)
    }

    /// Position of the next record.
    #[must_use]
    pub fn position(&self) -> i64 {
        self.position
    }

    /// Records that left the log before they were read.
    #[must_use]
    pub fn missed(&self) -> i64 {
        self.missed
    }

    /// The next frame; `None` where there is none yet.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn next_frame(&mut self) -> Result<Option<Frame>, LogError> {
        loop {
            let Some(payload) = self.ready.pop_front() else {
                if self.fill()? {
                    continue;
                }
                return Ok(None);
            };
            if self.pass(&payload)? {
                return Frame::decode(&payload).map(Some).map_err(|source| self.arrow(source));
            }
        }
    }

    fn arrow(&self, source: arrow::error::ArrowError) -> LogError {
        LogError::Arrow { path: self.folder.clone(), source }
    }

    /// Goes past a frame; whether it was not passed before.
    fn pass(&mut self, payload: &[u8]) -> Result<bool, LogError> {
        let (header, _) = decode_header(payload).map_err(|source| self.arrow(source))?;
        if header.end() <= self.position {
            return Ok(false);
        }
        self.missed += (header.position - self.position).max(0);
        self.position = header.end();
        Ok(true)
    }

    /// Reads the whole frames that are there; whether there are any.
    fn fill(&mut self) -> Result<bool, LogError> {
        loop {
            if self.segment.is_none() && !self.open_next(None)? {
                return Ok(false);
            }
            if self.read()? {
                return Ok(true);
            }
            // A segment is finished before the next one is begun: what was written in between is there by now.
            let Some(first) = self.segment.as_ref().map(|segment| segment.first) else { return Ok(false) };
            if !segments(&self.folder)?.iter().any(|(later, _)| *later > first) {
                return Ok(false);
            }
            if self.read()? {
                return Ok(true);
            }
            self.open_next(Some(first))?;
        }
    }

    /// Opens the first segment after `after`, or the one with the next record; whether there is one.
    fn open_next(&mut self, after: Option<i64>) -> Result<bool, LogError> {
        let all = segments(&self.folder)?;
        let next = match after {
            Some(after) => all.iter().find(|(first, _)| *first > after),
            None => all.iter().rev().find(|(first, _)| *first <= self.position).or(all.first()),
        };
        let Some((first, path)) = next else { return Ok(false) };
        match File::open(path) {
            Ok(file) => {
                self.segment = Some(Segment { first: *first, path: path.clone(), file, offset: 0 });
                Ok(true)
            }
            // It was trimmed a moment ago: the next call sees the one after it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.segment = None;
                Ok(false)
            }
            Err(error) => Err(LogError::io(path, error)),
        }
    }

    /// Reads on in the segment. What is no whole frame is being written, or is a torn tail that the writer will cut: it is
    /// read again the next time, from where it begins.
    fn read(&mut self) -> Result<bool, LogError> {
        let Some(segment) = &mut self.segment else { return Ok(false) };
        let io = |error| LogError::io(&segment.path, error);
        let length = segment.file.metadata().map_err(io)?.len();
        if length < segment.offset {
            // An empty segment that a crash left is begun again under the same name.
            segment.offset = 0;
        }
        if length == segment.offset {
            return Ok(false);
        }
        segment.file.seek(SeekFrom::Start(segment.offset)).map_err(io)?;
        let mut bytes = Vec::new();
        segment.file.by_ref().take(length - segment.offset).read_to_end(&mut bytes).map_err(io)?;
        let mut offset = 0;
        while let Some((payload, next)) = frame_at(&bytes, offset) {
            self.ready.push_back(payload.to_vec());
            offset = next;
        }
        segment.offset += offset as u64;
        Ok(offset > 0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;
    use crate::log::{InputProgress, LogWriter, trim};

    /// A frame with one rejected record.
    fn frame() -> Frame {
        use ratemill_schemas::rejected::to_batch;
        use ratemill_schemas::{Reason, Rejection};
        let rejection = Rejection {
            index: 0,
            source: None,
            id: None,
            position: "line 1".to_owned(),
            reason: Reason::MissingId,
            message: "no id".to_owned(),
            raw: b"{}".to_vec(),
        };
        let rejected = to_batch([("drop", &rejection)]).unwrap();
        Frame::new(None, Some(rejected), 0, vec![InputProgress { input: "drop".to_owned(), time_max: None }], Vec::new())
    }

    fn positions(follower: &mut LogFollower) -> Vec<i64> {
        std::iter::from_fn(|| follower.next_frame().unwrap()).map(|frame| frame.header.position).collect()
    }

    #[test]
    fn frames_come_once_and_in_order_over_segments_torn_tails_and_trimming() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::new(folder.path(), 0).unwrap();
        for _ in 0..3 {
            writer.append(&mut frame(), 1, 0).unwrap();
        }
        let mut all = LogFollower::from_start(folder.path()).unwrap();
        let mut new = LogFollower::from_end(folder.path()).unwrap();
        assert_eq!((positions(&mut all), positions(&mut new)), (vec![0, 1, 2], vec![]));
        assert_eq!(new.position(), 3);
        // A part of a frame is not seen, not even when it is cut and the writer goes on in a new segment.
        let path = folder.path().join(format!("{:020}.log", 0));
        let whole = std::fs::metadata(&path).unwrap().len();
        let torn = frame().encode(3, 1).unwrap();
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&torn[..torn.len() / 2]).unwrap();
        assert_eq!((positions(&mut all), positions(&mut new)), (vec![], vec![]));
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(whole).unwrap();
        let mut writer = LogWriter::new(folder.path(), 3).unwrap();
        writer.append(&mut frame(), 1, 0).unwrap();
        assert_eq!((positions(&mut all), positions(&mut new)), (vec![3], vec![3]));
        // Drained segments are left behind; what was unlinked unread is counted.
        writer.append(&mut frame(), 1, 4).unwrap();
        writer.append(&mut frame(), 1, 6).unwrap();
        writer.append(&mut frame(), 1, 6).unwrap();
        writer.append(&mut frame(), 1, 6).unwrap();
        assert_eq!(positions(&mut all), [4, 5, 6, 7]);
        trim(folder.path(), 6).unwrap();
        assert_eq!((positions(&mut all), all.missed()), (vec![], 0));
        let mut late = LogFollower { position: 0, ..LogFollower::from_start(folder.path()).unwrap() };
        let first = positions(&mut late)[0];
        assert_eq!(late.missed(), first);
        assert!(first > 0);
    }

    #[test]
    fn a_segment_that_is_begun_again_is_read_from_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("{:020}.log", 0));
        let bytes = frame().encode(0, 1).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let mut follower = LogFollower::from_start(folder.path()).unwrap();
        assert!(positions(&mut follower).is_empty());
        let mut writer = LogWriter::new(folder.path(), 0).unwrap();
        writer.append(&mut frame(), 1, 0).unwrap();
        assert_eq!(positions(&mut follower), [0]);
    }
}
