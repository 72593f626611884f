//! The usage log: what is accepted is appended here and synced before anybody is told.
//!
//! A segment file holds frames: `RMLG`, length and CRC32C of the payload, payload. On recovery a torn tail is cut; a
//! bad frame with a valid one behind it is damage, and the engine stops. Positions count logged records, from 0.

mod follow;
pub(crate) mod frame;
mod reader;
mod recent;
mod writer;

pub use follow::LogFollower;
pub use frame::{Frame, FrameHeader, InputProgress, InputRun, LoggedFile};
pub use reader::{LogScan, adopted_files, parts, read_range, scan};
pub use recent::RecentFrames;
pub use writer::{LogWriter, trim};

use std::path::{Path, PathBuf};

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk did not do what it was asked.
    #[error("usage log {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A frame is damaged, though valid ones follow: nothing may be dropped in silence.
    #[error("usage log {path} is damaged at byte {offset}, with valid data behind it; restore the file from a copy before starting")]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where the bad frame begins.
        offset: u64,
    },
    /// Frames are missing between two segments.
    #[error("usage log {path}: positions {from} to {to} are missing")]
    Gap {
        /// The folder.
        path: PathBuf,
        /// First missing position.
        from: i64,
        /// First position that is there again.
        to: i64,
    },
    /// The disk has no room for a frame. Nothing of it is left, and the log goes on once there is room.
    #[error("the disk of the usage log {path} is full: {source}")]
    Full {
        /// The segment or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A frame cannot be written or read as Arrow.
    #[error("usage log {path}: {source}")]
    Arrow {
        /// The segment.
        path: PathBuf,
        /// What Arrow said.
        source: arrow::error::ArrowError,
    },
    /// Another process has the log open.
    #[error("usage log {path} is in use by another process on this machine")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
}

impl LogError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// Whether a write failed for want of room only.
fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Segments of a log folder by their first position.
fn segments(folder: &Path) -> Result<Vec<(i64, PathBuf)>, LogError> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| LogError::io(folder, error))? {
        let path = entry.map_err(|error| LogError::io(folder, error))?.path();
        let position =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".log")).and_then(|stem| stem.parse().ok());
        if let Some(position) = position {
            segments.push((position, path));
        }
    }
    segments.sort();
    Ok(segments)
}

/// Makes `folder` with its missing parents, so that the names of all of them are durable.
pub(crate) fn create_folder(folder: &Path) -> std::io::Result<()> {
    let folder = std::path::absolute(folder)?;
    let Some(parent) = folder.parent() else { return Ok(()) };
    if !parent.is_dir() {
        create_folder(parent)?;
    }
    let created = match std::fs::create_dir(&folder) {
        Err(_) if folder.is_dir() => false,
        created => created.map(|()| true)?,
    };
    // Also where it was there: whoever made it may have died before its name was durable.
    match sync_folder(parent) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied && !created => Ok(()),
        synced => synced,
    }
}

/// Makes a new or removed name in `folder` durable.
pub(crate) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}
