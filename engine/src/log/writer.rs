//! Appending frames, one sync for each group.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::frame::Frame;
use super::{LogError, create_folder, is_full, segments, sync_folder};
use crate::failpoint::Failpoint;

/// A segment is closed once it has this many bytes.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Appends to the log; there is one for each log.
#[derive(Debug)]
pub struct LogWriter {
    folder: PathBuf,
    segment: Option<Segment>,
    position: i64,
}

/// The segment that is appended to.
#[derive(Debug)]
struct Segment {
    path: PathBuf,
    file: File,
    bytes: u64,
    first: i64,
}

impl LogWriter {
    /// A writer that goes on at `position`, in a new segment.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn new(folder: &Path, position: i64) -> Result<Self, LogError> {
        create_folder(folder).map_err(|error| LogError::io(folder, error))?;
        Ok(Self { folder: folder.to_owned(), segment: None, position })
    }

    /// Position of the next record.
    #[must_use]
    pub fn position(&self) -> i64 {
        self.position
    }

    /// Appends a frame and syncs it; returns its bytes. `drained` is the position up to which the lake has everything.
    /// After an error other than [`LogError::Full`] the log must not be used any more, since nobody knows what the disk
    /// holds: the process stops.
    ///
    /// # Errors
    /// [`LogError::Full`] when there is no room, even without the segments that the lake has: nothing is appended.
    /// Any other [`LogError`].
    pub fn append(&mut self, frame: &mut Frame, ingested_at: i64, drained: i64) -> Result<u64, LogError> {
        let bytes = frame.encode(self.position, ingested_at).map_err(|source| LogError::Arrow { path: self.folder.clone(), source })?;
        match self.write(&bytes, drained) {
            Err(LogError::Full { .. }) if trim(&self.folder, drained)? > 0 => self.write(&bytes, drained)?,
            written => written?,
        }
        frame.bytes = bytes.len() as u64;
        self.position = frame.header.end();
        Ok(frame.bytes)
    }

    fn write(&mut self, bytes: &[u8], drained: i64) -> Result<(), LogError> {
        // A segment of which the lake has everything is closed, so that it can be unlinked.
        let roll = |segment: &Segment| segment.bytes >= SEGMENT_BYTES || (segment.first < drained && self.position <= drained);
        if self.segment.as_ref().is_none_or(roll) {
            self.segment = Some(self.open_segment()?);
        }
        let Some(segment) = &mut self.segment else { return Ok(()) };
        Failpoint::LogBeforeWrite.reached();
        if let Err(error) = segment.write(bytes) {
            if !is_full(&error) {
                return Err(LogError::io(&segment.path, error));
            }
            segment.cut_back().map_err(|error| LogError::io(&segment.path, error))?;
            return Err(LogError::Full { path: segment.path.clone(), source: error });
        }
        Failpoint::LogWritten.reached();
        segment.file.sync_data().map_err(|error| LogError::io(&segment.path, error))?;
        Failpoint::LogSynced.reached();
        segment.bytes += bytes.len() as u64;
        Ok(())
    }

    fn open_segment(&self) -> Result<Segment, LogError> {
        let path = self.folder.join(format!("{:020}.log", self.position));
        // A segment of this name can only be an empty one that a crash left.
        let file = OpenOptions::new().create(true).write(true).truncate(true).open(&path).map_err(|error| {
            if is_full(&error) { LogError::Full { path: path.clone(), source: error } } else { LogError::io(&path, error) }
        })?;
        Failpoint::LogSegmentOpened.reached();
        sync_folder(&self.folder).map_err(|error| LogError::io(&self.folder, error))?;
        Ok(Segment { path, file, bytes: 0, first: self.position })
    }
}

impl Segment {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        #[cfg(debug_assertions)]
        let bytes = {
            let (first, rest) = bytes.split_at(bytes.len() / 2);
            self.file.write_all(first)?;
            Failpoint::LogHalfWritten.reached();
            rest
        };
        self.file.write_all(bytes)
    }

    /// Takes away what was written of a frame that had no room.
    fn cut_back(&mut self) -> std::io::Result<()> {
        self.file.set_len(self.bytes)?;
        self.file.seek(SeekFrom::Start(self.bytes)).map(drop)
    }
}

/// Unlinks segments all of whose records are before `position`, never the last one; returns the bytes that it freed.
///
/// # Errors
/// [`LogError::Io`].
pub fn trim(folder: &Path, position: i64) -> Result<u64, LogError> {
    let mut freed = 0;
    for pair in segments(folder)?.windows(2) {
        let ((_, path), (next, _)) = (&pair[0], &pair[1]);
        if *next <= position {
            let bytes = path.metadata().map_or(0, |metadata| metadata.len());
            match std::fs::remove_file(path) {
                Ok(()) => freed += bytes,
                // Capture trims, too, where the disk is full.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(LogError::io(path, error)),
            }
            Failpoint::LogUnlinked.reached();
        }
    }
    if freed > 0 {
        sync_folder(folder).map_err(|error| LogError::io(folder, error))?;
    }
    Ok(freed)
}
