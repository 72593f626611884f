//! What a file holds, as it lies in its store: read part by part, and hashed as it passes.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectMeta, ObjectStore};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use super::reader::FileError;

/// Bytes that are asked for at once. A request is over long before its time is, however long its file takes.
const PART_BYTES: u64 = if cfg!(test) { 4 << 10 } else { 16 << 20 };

/// The bytes of a file, for a thread that may wait.
pub(super) struct Content {
    store: Arc<dyn ObjectStore>,
    location: Path,
    runtime: Handle,
    /// What tells the version whose first part was read.
    etag: Option<String>,
    size: u64,
    offset: u64,
    part: Part,
    passed: Arc<Passed>,
}

enum Part {
    /// A file on this machine, to its end.
    File(std::fs::File),
    Bytes(Bytes),
}

/// What is known of the bytes that were read.
#[derive(Default)]
pub(super) struct Passed {
    hash: Mutex<Sha256>,
    has_failed: AtomicBool,
}

impl Passed {
    /// Their SHA-256.
    pub(super) fn hash(&self) -> String {
        hex::encode(self.hash.lock().unwrap_or_else(PoisonError::into_inner).clone().finalize())
    }

    /// Whose fault an error is: the store's, when it could not be read, else the file's.
    pub(super) fn blame(&self, source: io::Error) -> FileError {
        if self.has_failed.load(Ordering::Acquire) { FileError::Io(source) } else { FileError::Damaged { source } }
    }
}

impl Content {
    /// The content of `file`; nothing is read yet.
    pub(super) fn of(store: &Arc<dyn ObjectStore>, file: &ObjectMeta) -> Self {
        Self {
            store: Arc::clone(store),
            location: file.location.clone(),
            runtime: Handle::current(),
            etag: None,
            size: file.size,
            offset: 0,
            part: Part::Bytes(Bytes::new()),
            passed: Arc::default(),
        }
    }

    /// What is known of the bytes, as they are read.
    pub(super) fn passed(&self) -> Arc<Passed> {
        Arc::clone(&self.passed)
    }

    async fn next_part(&mut self) -> io::Result<()> {
        let range = (self.size > PART_BYTES).then_some(GetRange::Bounded(self.offset..self.offset.saturating_add(PART_BYTES)));
        let options = GetOptions { range, if_match: self.etag.clone(), ..GetOptions::default() };
        let result = self.store.get_opts(&self.location, options).await.map_err(io::Error::other)?;
        self.size = result.meta.size;
        // A weak tag matches nothing.
        self.etag = result.meta.e_tag.clone().filter(|etag| !etag.starts_with("W/"));
        if let GetResultPayload::File(mut file, _) = result.payload {
            file.seek(SeekFrom::Start(self.offset))?;
            self.offset = self.size;
            self.part = Part::File(file);
            return Ok(());
        }
        // Whole, lest the request waits for whoever takes the bytes.
        let bytes = result.bytes().await.map_err(io::Error::other)?;
        if bytes.is_empty() && self.offset < self.size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the store has no bytes from {} on", self.offset)));
        }
        self.offset += bytes.len() as u64;
        self.part = Part::Bytes(bytes);
        Ok(())
    }

    fn read_part(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = match &mut self.part {
                Part::File(file) => file.read(buffer)?,
                Part::Bytes(bytes) => bytes.reader().read(buffer)?,
            };
            if count > 0 || self.offset >= self.size || buffer.is_empty() {
                return Ok(count);
            }
            let runtime = self.runtime.clone();
            runtime.block_on(self.next_part())?;
        }
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.read_part(buffer);
        match &read {
            Ok(count) => self.passed.hash.lock().unwrap_or_else(PoisonError::into_inner).update(&buffer[..*count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.passed.has_failed.store(true, Ordering::Release),
        }
        read
    }
}
