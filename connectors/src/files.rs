//! File drops: a folder or an object-store prefix that usage files are put into.
//!
//! A file is taken once, when it is complete: its rows are submitted in chunks, and its claim only after all of them
//! are durable. A crash in between reads it again, and deduplication makes that harmless.

mod adoption;
mod chunks;
mod config;
mod content;
mod reader;
#[cfg(test)]
mod tests;

pub use adoption::Adoption;
pub use config::{Compression, FileFormat, FilesConfig, FilesError, Records};
pub use reader::{FileError, FileReader};

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use ratemill_schemas::files::{FileClaim, FileState};
use ratemill_schemas::{Reason, Rejection, UsageBatch};
use tokio_util::sync::CancellationToken;

use content::Content;

/// The claims on the files of one drop, by path; several where a file changed.
pub type Claims = HashMap<String, Vec<FileClaim>>;

/// A configured file drop, ready to run.
#[derive(Debug)]
pub struct FileDrop {
    reader: FileReader,
    store: Arc<dyn ObjectStore>,
    root: Path,
    settle: Duration,
    poll: Duration,
    claims: Claims,
    seen: HashMap<String, Sighting>,
}

/// When an unclaimed file was first seen as it is now.
#[derive(Debug)]
struct Sighting {
    etag: String,
    since: Instant,
}

impl FileDrop {
    /// A drop below `root` of `store`; `claims` are the files that were taken before.
    ///
    /// # Errors
    /// [`FilesError`] names the drop and what would be valid.
    pub fn new(
        config: &FilesConfig,
        reader: FileReader,
        store: Arc<dyn ObjectStore>,
        root: Path,
        claims: Claims,
    ) -> Result<Self, FilesError> {
        Ok(Self { reader, store, root, settle: config.settle()?, poll: config.poll()?, claims, seen: HashMap::new() })
    }

    /// Looks for files until `stop`; a file under way is finished first.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.scan(&stop).await {
                tracing::warn!(connector = %self.reader.input(), error = %error, "the file drop could not be read; trying again");
                metrics::counter!("ratemill_file_drop_errors_total", "connector" => self.reader.input().to_string()).increment(1);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.poll) => {}
            }
        }
    }

    async fn scan(&mut self, stop: &CancellationToken) -> Result<(), FileError> {
        let mut files: Vec<ObjectMeta> = Vec::new();
        let mut listed = self.store.list(Some(&self.root));
        while let Some(entry) = listed.next().await {
            match entry {
                Ok(file) => files.push(file),
                // A name that cannot be read stands in no other file's way.
                Err(error) => tracing::warn!(connector = %self.reader.input(), %error, "an entry of the file drop could not be listed"),
            }
        }
        drop(listed);
        files.sort_by(|a, b| a.location.cmp(&b.location));
        for file in files {
            if stop.is_cancelled() {
                return Ok(());
            }
            let path = self.relative(&file.location);
            if is_unfinished(&path) {
                continue;
            }
            match self.look_at(&file, path).await {
                Ok(()) => {}
                Err(FileError::Stopped) => return Err(FileError::Stopped),
                Err(error) => {
                    tracing::warn!(connector = %self.reader.input(), file = %file.location, %error, "a file could not be taken; trying again");
                    metrics::counter!("ratemill_file_drop_errors_total", "connector" => self.reader.input().to_string()).increment(1);
                }
            }
        }
        Ok(())
    }

    async fn look_at(&mut self, file: &ObjectMeta, path: String) -> Result<(), FileError> {
        let etag = etag(file);
        let claimed = self.claims.get(&path).map(|claims| claims.iter().any(|claim| claim.etag == etag));
        match claimed {
            Some(true) => {}
            Some(false) => self.report_change(&path, file, etag).await?,
            None if self.is_settled(&path, &etag) => {
                let claim = self.reader.take(&self.store, file, &path).await?;
                tracing::info!(connector = %self.reader.input(), path, rows = claim.rows, rejected = claim.rejected, "file taken");
                self.seen.remove(&path);
                self.claims.entry(path).or_default().push(claim);
            }
            None => {}
        }
        Ok(())
    }

    fn relative(&self, location: &Path) -> String {
        location
            .prefix_match(&self.root)
            .map_or_else(|| location.to_string(), |parts| parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"))
    }

    /// Whether the file has not changed for the settle time.
    fn is_settled(&mut self, path: &str, etag: &str) -> bool {
        if self.settle.is_zero() {
            return true;
        }
        match self.seen.get(path) {
            Some(sighting) if sighting.etag == etag => sighting.since.elapsed() >= self.settle,
            _ => {
                self.seen.insert(path.to_owned(), Sighting { etag: etag.to_owned(), since: Instant::now() });
                false
            }
        }
    }

    /// A file that was taken has another entity tag: says so once, unless its content is the same.
    async fn report_change(&mut self, path: &str, file: &ObjectMeta, etag: String) -> Result<(), FileError> {
        if !self.is_settled(path, &etag) {
            return Ok(());
        }
        let content_hash = chunks::content_hash(Content::of(&self.store, file)).await?;
        let known = self.claims.entry(path.to_owned()).or_default();
        let touched = known.iter().any(|claim| claim.content_hash == content_hash);
        let claim = FileClaim {
            connector: self.reader.input().to_string(),
            path: path.to_owned(),
            etag: etag.clone(),
            size: file.size,
            content_hash,
            state: if touched { FileState::Taken } else { FileState::Changed },
            rows: 0,
            rejected: u64::from(!touched),
        };
        if !touched {
            let mut usage = UsageBatch::empty(&self.reader.context().schema);
            usage.rejections.push(Rejection {
                index: 0,
                source: None,
                id: None,
                position: path.to_owned(),
                reason: Reason::FileChanged,
                message: format!(
                    "{path} changed after it was taken (now {} bytes) and was not read again; give the new content a new name",
                    file.size
                ),
                raw: etag.clone().into_bytes(),
            });
            tracing::warn!(connector = %self.reader.input(), path, "a file changed after it was taken; it was not read again");
            self.reader.submit(usage, vec![claim.clone()]).await?;
        }
        known.push(claim);
        Ok(())
    }
}

/// What tells one version of a file from another.
#[must_use]
pub(crate) fn etag(file: &ObjectMeta) -> String {
    file.e_tag.clone().unwrap_or_else(|| format!("{}-{}", file.last_modified.timestamp_micros(), file.size))
}

/// Files that are still being written, or are nobody's usage: `.tmp`, `.part`, hidden ones.
fn is_unfinished(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.starts_with('.')
        || name.starts_with('_')
        || [".tmp", ".part", ".partial", ".crdownload"].iter().any(|ending| name.ends_with(ending))
}
