//! The lake: Delta tables of Parquet under one root URL, and the small files beside them.

mod durable;
#[cfg(debug_assertions)]
mod faulty;
pub mod owner;
mod table;

pub use table::{AppendOutcome, DataFile, LakeTable, Rewrite, TableChange, TableSpec};

use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use deltalake_core::logstore::{LogStoreRef, StorageConfig, default_logstore};
use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use url::Url;

/// Why the lake did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// The URL names no store.
    #[error("lake url `{url}`: {message}")]
    Url {
        /// What was given.
        url: String,
        /// What would be valid.
        message: String,
    },
    /// The object store failed.
    #[error("object store: {0}")]
    Store(#[from] object_store::Error),
    /// A Delta table failed.
    #[error("table {table}: {source}")]
    Delta {
        /// The table.
        table: String,
        /// What went wrong.
        source: Box<deltalake_core::DeltaTableError>,
    },
    /// Another writer committed to a table of which this engine is the only writer.
    #[error("table {table} was written to by another process; this engine no longer owns the lake")]
    Fenced {
        /// The table.
        table: String,
    },
    /// A small file is not what it should be.
    #[error("{path} in the lake cannot be read: {message}")]
    File {
        /// The file.
        path: String,
        /// Why.
        message: String,
    },
    /// Another engine owns the lake.
    #[error("{0}")]
    Held(String),
}

/// A store with its root URL: where the lake or a file drop lies.
#[derive(Debug, Clone)]
pub struct Location {
    /// The URL, ending in `/`.
    pub url: Url,
    /// The store of the URL's host or disk.
    pub store: Arc<dyn ObjectStore>,
    /// The path of the URL in the store.
    pub path: Path,
}

impl Location {
    /// Opens a folder (relative to `base`), `file://` or `s3://` URL. Local writes are synced.
    ///
    /// # Errors
    /// [`LakeError::Url`].
    pub fn open(text: &str, base: &FilePath) -> Result<Self, LakeError> {
        let wrong = |message: String| LakeError::Url { url: text.to_owned(), message };
        let url = match Url::parse(text) {
            Ok(url) if url.scheme().len() > 1 => url,
            _ => {
                let folder = std::path::absolute(base.join(text)).map_err(|error| wrong(error.to_string()))?;
                Url::from_directory_path(&folder).map_err(|()| wrong("is not a folder".to_owned()))?
            }
        };
        let url = if url.path().ends_with('/') { url } else { Url::parse(&format!("{url}/")).map_err(|error| wrong(error.to_string()))? };
        let store: Arc<dyn ObjectStore> = match url.scheme() {
            "file" => {
                let folder = url.to_file_path().map_err(|()| wrong("is not a folder".to_owned()))?;
                crate::log::create_folder(&folder).map_err(|error| wrong(error.to_string()))?;
                Arc::new(durable::DurableFileSystem::new(LocalFileSystem::new(), folder))
            }
            "s3" => {
                let bucket = url.host_str().ok_or_else(|| wrong("names no bucket: s3://BUCKET/PREFIX".to_owned()))?;
                let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
                Arc::new(builder.build().map_err(|error| wrong(error.to_string()))?)
            }
            other => return Err(wrong(format!("scheme `{other}` is not supported; use a folder, file:// or s3://"))),
        };
        let path = Path::from_url_path(url.path()).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { url, store, path })
    }

    fn child(&self, name: &str) -> Path {
        name.split('/').fold(self.path.clone(), |path, part| path.join(part))
    }
}

/// The lake.
#[derive(Debug, Clone)]
pub struct Lake {
    location: Location,
}

impl Lake {
    /// Opens the lake at `text`.
    ///
    /// # Errors
    /// [`LakeError::Url`].
    pub fn open(text: &str, base: &FilePath) -> Result<Self, LakeError> {
        #[allow(unused_mut)]
        let mut location = Location::open(text, base)?;
        #[cfg(debug_assertions)]
        {
            location.store = faulty::FaultyStore::around(location.store);
        }
        Ok(Self { location })
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.location.url
    }

    /// The store at the root of the URL's host or disk, for readers of its tables.
    #[must_use]
    pub fn root_store(&self) -> (Url, Arc<dyn ObjectStore>) {
        let authority = match self.location.url.host_str() {
            Some(host) => format!("{}://{host}", self.location.url.scheme()),
            None => format!("{}:///", self.location.url.scheme()),
        };
        let url = Url::parse(&authority).unwrap_or_else(|_| self.location.url.clone());
        (url, Arc::clone(&self.location.store))
    }

    /// The store, and the lake's root in it.
    #[must_use]
    pub fn root(&self) -> (Arc<dyn ObjectStore>, Path) {
        (Arc::clone(&self.location.store), self.location.path.clone())
    }

    /// The store and the path in it of an object below the lake's root.
    #[must_use]
    pub fn object(&self, name: &str) -> (Arc<dyn ObjectStore>, Path) {
        (Arc::clone(&self.location.store), self.location.child(name))
    }

    /// Checks that the store refuses to create a file twice, on which every commit rests.
    ///
    /// # Errors
    /// [`LakeError`] when it does not, or cannot be reached.
    pub async fn probe(&self) -> Result<(), LakeError> {
        // In the folder that recovery reads first: on a local disk the first put into a folder makes durable what a process
        // that died has put into it.
        let name = format!("epochs/probe-{:016x}", rand::random::<u64>());
        // Nobody else has this name: where it is there already, the store did this request twice.
        self.create(&name, b"probe".to_vec()).await?;
        let second = self.create(&name, b"probe".to_vec()).await?;
        self.remove(&name).await?;
        if !second {
            return Ok(());
        }
        Err(LakeError::Url {
            url: self.location.url.to_string(),
            message: "the store does not support put-if-absent (If-None-Match: *)".to_owned(),
        })
    }

    /// Creates a small file; `false` when it is there already.
    ///
    /// # Errors
    /// [`LakeError::Store`].
    pub async fn create(&self, name: &str, content: Vec<u8>) -> Result<bool, LakeError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.location.store.put_opts(&self.location.child(name), content.into(), options).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a small file over whatever is there.
    ///
    /// # Errors
    /// [`LakeError::Store`].
    pub async fn replace(&self, name: &str, content: Vec<u8>) -> Result<(), LakeError> {
        self.location.store.put(&self.location.child(name), content.into()).await?;
        Ok(())
    }

    /// Reads a small file; `None` when it is not there.
    ///
    /// # Errors
    /// [`LakeError::Store`].
    pub async fn read(&self, name: &str) -> Result<Option<Bytes>, LakeError> {
        match self.location.store.get(&self.location.child(name)).await {
            Ok(result) => Ok(Some(result.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a small file, if it is there.
    ///
    /// # Errors
    /// [`LakeError::Store`].
    pub async fn remove(&self, name: &str) -> Result<(), LakeError> {
        match self.location.store.delete(&self.location.child(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Paths below the lake's root of all files under `folder`, with the time when each was last written, µs UTC.
    ///
    /// # Errors
    /// [`LakeError::Store`].
    pub async fn files_below(&self, folder: &str) -> Result<Vec<(String, i64)>, LakeError> {
        let root = self.location.path.clone();
        let listed: Vec<_> = self.location.store.list(Some(&self.location.child(folder))).try_collect().await?;
        let below = |path: &Path| path.prefix_match(&root).map(|parts| parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>());
        let named = listed.iter().filter_map(|object| Some((below(&object.location)?.join("/"), object.last_modified.timestamp_micros())));
        Ok(named.collect())
    }

    /// Removes small files; what is gone already is no error.
    ///
    /// # Errors
    /// [`LakeError::Store`].
    pub async fn remove_all(&self, names: &[String]) -> Result<(), LakeError> {
        table::delete_all(self.location.store.as_ref(), names.iter().map(|name| self.location.child(name)).collect()).await
    }

    /// Names of the files directly in `folder`, sorted.
    ///
    /// # Errors
    /// [`LakeError::Store`].
    pub async fn names(&self, folder: &str) -> Result<Vec<String>, LakeError> {
        let listed = self.location.store.list_with_delimiter(Some(&self.location.child(folder))).await?;
        let mut names: Vec<String> = listed.objects.iter().filter_map(|object| object.location.filename().map(str::to_owned)).collect();
        names.sort();
        Ok(names)
    }

    /// Whether the first commit of a Delta table is there.
    async fn has_log(&self, table: &str) -> Result<bool, LakeError> {
        match self.location.store.head(&self.location.child(&format!("{table}/_delta_log/{:020}.json", 0))).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn log_store(&self, table: &str) -> Result<LogStoreRef, LakeError> {
        let delta = |source: deltalake_core::DeltaTableError| LakeError::Delta { table: table.to_owned(), source: Box::new(source) };
        let url = self
            .location
            .url
            .join(&format!("{table}/"))
            .map_err(|error| LakeError::Url { url: table.to_owned(), message: error.to_string() })?;
        let config = StorageConfig::default();
        let prefixed: Arc<dyn ObjectStore> = Arc::new(config.decorate_store(Arc::clone(&self.location.store), &url).map_err(delta)?);
        Ok(default_logstore(prefixed, Arc::clone(&self.location.store), &url, &config))
    }
}
