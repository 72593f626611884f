//! The folder of the index: files are written aside, synced, and get their name last.
//!
//! A name says which positions of the usage log the file's keys come from. A file that is superseded by others is one
//! whose positions another file holds, too: that is all a start has to know, whatever step the last process died at.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::failpoint::Failpoint;
use crate::log::sync_folder;

/// Bytes after which what was written is synced, so that no sync of others waits for much.
const SYNC_BYTES: usize = 32 << 20;

/// Positions of the usage log, half-open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Span {
    pub(super) from: i64,
    pub(super) to: i64,
}

impl Span {
    pub(super) fn holds(self, other: Self) -> bool {
        self.from <= other.from && other.to <= self.to
    }
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// Keys that are loaded into memory at a start.
    Recent,
    /// Keys that are looked up on disk.
    Aged,
}

impl Kind {
    fn extension(self) -> &'static str {
        match self {
            Self::Recent => "keys",
            Self::Aged => "aged",
        }
    }
}

/// The folder.
#[derive(Debug, Clone)]
pub(super) struct Files {
    folder: PathBuf,
    #[cfg(test)]
    pub(super) power: super::tests::Power,
}

/// A file that has no name yet.
#[derive(Debug)]
pub(super) struct NewFile {
    pub(super) file: File,
    temporary: PathBuf,
    path: PathBuf,
    unsynced: usize,
}

impl Files {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            #[cfg(test)]
            power: super::tests::Power::default(),
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn path(&self, kind: Kind, span: Span) -> PathBuf {
        self.folder.join(format!("{:020}-{:020}.{}", span.from, span.to, kind.extension()))
    }

    /// Files with a name, in the order of their positions.
    pub(super) fn list(&self) -> std::io::Result<Vec<(Span, Kind)>> {
        let mut listed = Vec::new();
        for found in std::fs::read_dir(&self.folder)? {
            listed.extend(parse(&found?.path()));
        }
        listed.sort_unstable();
        Ok(listed)
    }

    /// Removes what a process that died left: unnamed files, and files whose positions another one holds.
    /// Returns the others, in the order of their positions.
    pub(super) fn recover(&self) -> std::io::Result<Vec<(Span, Kind)>> {
        std::fs::create_dir_all(&self.folder)?;
        for found in std::fs::read_dir(&self.folder)? {
            let path = found?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") || path.file_name().is_some_and(|name| name == "aged.keys") {
                std::fs::remove_file(&path)?;
            }
        }
        let listed = self.list()?;
        let superseded = |one: &(Span, Kind)| listed.iter().any(|other| other.0.holds(one.0) && (other.0 != one.0 || other.1 > one.1));
        let (gone, kept): (Vec<_>, Vec<_>) = listed.iter().copied().partition(superseded);
        self.remove(&gone)?;
        Ok(kept)
    }

    /// Begins a file.
    pub(super) fn create(&self, kind: Kind, span: Span) -> std::io::Result<NewFile> {
        self.step()?;
        let path = self.path(kind, span);
        let temporary = path.with_extension(format!("{}.tmp", kind.extension()));
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&temporary)?;
        Ok(NewFile { file, temporary, path, unsynced: 0 })
    }

    /// Gives the file its name, durably.
    pub(super) fn name(&self, new: NewFile) -> std::io::Result<File> {
        self.step()?;
        Failpoint::DedupFileWritten.reached();
        new.file.sync_all()?;
        self.step()?;
        std::fs::rename(&new.temporary, &new.path)?;
        Failpoint::DedupFileNamed.reached();
        self.step()?;
        sync_folder(&self.folder)?;
        Ok(new.file)
    }

    /// Gives an unnamed file up.
    pub(super) fn discard(new: &NewFile) {
        let _ = std::fs::remove_file(&new.temporary);
    }

    /// Removes files. That they come back after a crash does no harm.
    pub(super) fn remove(&self, files: &[(Span, Kind)]) -> std::io::Result<()> {
        for (span, kind) in files {
            self.step()?;
            std::fs::remove_file(self.path(*kind, *span))?;
        }
        Ok(())
    }

    /// Takes a damaged file out: the next start finds a gap, and the index is rebuilt.
    pub(super) fn condemn(&self, kind: Kind, span: Span) {
        let path = self.path(kind, span);
        let moved = std::fs::rename(&path, path.with_extension("damaged")).and_then(|()| sync_folder(&self.folder));
        if let Err(error) = moved {
            tracing::warn!(path = %path.display(), %error, "a damaged file of the index of event ids could not be set aside");
        }
    }

    /// One thing that a loss of power can come before.
    #[allow(clippy::unnecessary_wraps, clippy::unused_self)]
    fn step(&self) -> std::io::Result<()> {
        #[cfg(test)]
        self.power.step()?;
        Ok(())
    }
}

impl NewFile {
    pub(super) fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.unsynced += bytes.len();
        if self.unsynced >= SYNC_BYTES {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(())
    }
}

fn parse(path: &Path) -> Option<(Span, Kind)> {
    let kind = [Kind::Recent, Kind::Aged].into_iter().find(|kind| path.extension().is_some_and(|other| other == kind.extension()))?;
    let (from, to) = path.file_stem()?.to_str()?.split_once('-')?;
    let span = Span { from: from.parse().ok()?, to: to.parse().ok()? };
    (span.from < span.to).then_some((span, kind))
}

pub(super) fn damaged(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{what}; the index is rebuilt from the lake at the next start"))
}

/// Whether the bytes are wrong, rather than the disk.
pub(super) fn is_damage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | NotFound | UnexpectedEof)
}
