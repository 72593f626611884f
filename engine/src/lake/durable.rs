//! The local file system with every write synced: `object_store` 0.13 itself never calls fsync.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

use crate::failpoint::Failpoint;
use crate::log::create_folder;

/// A file system whose puts are on the disk, name and content, when they return.
#[derive(Debug)]
pub(super) struct DurableFileSystem {
    inner: LocalFileSystem,
    folders: Folders,
}

impl DurableFileSystem {
    /// `root` is there, and its name is durable.
    pub(super) fn new(inner: LocalFileSystem, root: PathBuf) -> Self {
        Self { inner, folders: Folders { known: Arc::new(Mutex::new(HashSet::from([root]))) } }
    }
}

/// Folders whose names this process has made durable. That one is there says nothing: whoever made it may have died
/// before, or be about to sync.
#[derive(Debug, Clone)]
struct Folders {
    known: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Folders {
    /// Makes the missing parents of `path`, and the names of all of them durable. What an earlier process has put into them
    /// becomes durable, too.
    fn create_parents(&self, path: &FilePath) -> io::Result<()> {
        let mut new = Vec::new();
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            new.extend(path.ancestors().skip(1).take_while(|folder| !known.contains(*folder)).map(FilePath::to_owned));
        }
        for folder in new.iter().rev() {
            create_folder(folder)?;
            match File::open(folder).and_then(|folder| folder.sync_all()) {
                // A folder above the lake that we may not read is not ours.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                synced => synced?,
            }
            self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.clone());
        }
        Ok(())
    }
}

impl fmt::Display for DurableFileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Durable{}", self.inner)
    }
}

fn failed(path: &FilePath, error: io::Error) -> Error {
    let path_text = path.display().to_string();
    match error.kind() {
        io::ErrorKind::AlreadyExists => Error::AlreadyExists { path: path_text, source: error.into() },
        io::ErrorKind::NotFound => Error::NotFound { path: path_text, source: error.into() },
        _ => Error::Generic { store: "local file system", source: format!("{path_text}: {error}").into() },
    }
}

fn sync_parent(path: &FilePath) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// The content is on the disk before the name is, so that no crash shows a name without its content.
fn write(folders: &Folders, path: &FilePath, payload: &PutPayload, create: bool) -> io::Result<()> {
    folders.create_parents(path)?;
    let mut temporary = path.as_os_str().to_owned();
    // After a number sign and digits alone, listings of the store leave it out.
    temporary.push(format!("#{}", rand::random::<u64>()));
    let temporary = PathBuf::from(temporary);
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().create_new(true).write(true).open(&temporary)?;
        for part in payload {
            file.write_all(part)?;
        }
        file.sync_all()?;
        Failpoint::StoreWrittenAside.reached();
        if create { fs::hard_link(&temporary, path) } else { fs::rename(&temporary, path) }
    };
    let result = written();
    if create || result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result?;
    Failpoint::StoreNamed.reached();
    sync_parent(path)
}

#[async_trait]
impl ObjectStore for DurableFileSystem {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let create = match options.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => return self.inner.put_opts(location, payload, options).await,
        };
        let path = self.inner.path_to_filesystem(location)?;
        let (shown, folders) = (path.clone(), self.folders.clone());
        let written = tokio::task::spawn_blocking(move || write(&folders, &path, &payload, create)).await;
        written.map_err(|error| failed(&shown, io::Error::other(error)))?.map_err(|error| failed(&shown, error))?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let path = self.inner.path_to_filesystem(location)?;
        self.folders.create_parents(&path).map_err(|error| failed(&path, error))?;
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(DurableUpload { inner, path }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await?;
        let path = self.inner.path_to_filesystem(to)?;
        File::open(&path).and_then(|file| file.sync_all()).and_then(|()| sync_parent(&path)).map_err(|error| failed(&path, error))
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await?;
        let path = self.inner.path_to_filesystem(to)?;
        sync_parent(&path).map_err(|error| failed(&path, error))
    }
}

/// A large file in parts; synced when it is complete.
#[derive(Debug)]
struct DurableUpload {
    inner: Box<dyn MultipartUpload>,
    path: PathBuf,
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.inner.complete().await?;
        let path = self.path.clone();
        let synced =
            tokio::task::spawn_blocking(move || File::open(&path).and_then(|file| file.sync_all()).and_then(|()| sync_parent(&path))).await;
        synced.map_err(|error| failed(&self.path, io::Error::other(error)))?.map_err(|error| failed(&self.path, error))?;
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
