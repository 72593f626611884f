//! Appending frames, one sync for each group.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::frame::Frame;
use super::{LogError, segments, sync_folder};

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
        std::fs::create_dir_all(folder).map_err(|error| LogError::io(folder, error))?;
        Ok(Self { folder: folder.to_owned(), segment: None, position })
    }

    /// Position of the next record.
    #[must_use]
    pub fn position(&self) -> i64 {
        self.position
    }

    /// Appends a frame and syncs it; returns its bytes. `drained` is the position up to which the lake has everything. After an error the log must not be used any more,
    /// since nobody knows what the disk holds: the process stops.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn append(&mut self, frame: &mut Frame, ingested_at: i64, drained: i64) -> Result<u64, LogError> {
        let bytes = frame.encode(self.position, ingested_at).map_err(|source| LogError::Arrow { path: self.folder.clone(), source })?;
        // A segment of which the lake has everything is closed, so that it can be unlinked.
        let roll = |segment: &Segment| segment.bytes >= SEGMENT_BYTES || (segment.first < drained && self.position <= drained);
        if self.segment.as_ref().is_none_or(roll) {
            self.segment = Some(self.open_segment()?);
        }
        let Some(segment) = &mut self.segment else { return Ok(0) };
        segment.file.write_all(&bytes).and_then(|()| segment.file.sync_data()).map_err(|error| LogError::io(&segment.path, error))?;
        segment.bytes += bytes.len() as u64;
        frame.bytes = bytes.len() as u64;
        self.position = frame.header.end();
        Ok(frame.bytes)
    }

    fn open_segment(&self) -> Result<Segment, LogError> {
        let path = self.folder.join(format!("{:020}.log", self.position));
        // A segment of this name can only be an empty one that a crash left.
        let file = OpenOptions::new().create(true).write(true).truncate(true).open(&path).map_err(|error| LogError::io(&path, error))?;
        sync_folder(&self.folder).map_err(|error| LogError::io(&self.folder, error))?;
        Ok(Segment { path, file, bytes: 0, first: self.position })
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
            freed += path.metadata().map_or(0, |metadata| metadata.len());
            std::fs::remove_file(path).map_err(|error| LogError::io(path, error))?;
        }
    }
    if freed > 0 {
        sync_folder(folder).map_err(|error| LogError::io(folder, error))?;
    }
    Ok(freed)
}
