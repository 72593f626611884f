//! What upkeep does to a table: small files written again as few, Delta checkpoints, files that nobody needs any more.
//!
//! A rewrite has two parts. The new files are written beside whatever else happens; a commit then puts them in the place
//! of the old ones, if these are still there. A crash in between leaves files that no commit names. The rows of the table
//! are the same before and after, so readers step over such commits.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::prelude::SessionContext;
use deltalake_core::checkpoints::create_checkpoint;
use deltalake_core::kernel::{Action, Add, LogicalFileView, MetadataExt};
use deltalake_core::operations::vacuum::VacuumMode;
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::table::config::{TablePropertiesExt, TableProperty};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use ratemill_schemas::time;
use serde::Deserialize;

use super::{AppendOutcome, FILE_BYTES, LakeTable, delta};
use crate::lake::{Lake, LakeError};

/// Name of the application transactions of upkeep.
const UPKEEP: &str = "ratemill/upkeep";

/// Age at which a file has no commit to come that names it, µs: an epoch that waits for its store wrote it a while ago.
const UNNAMED: i64 = 86_400_000_000;

/// A data file of the loaded version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Its path below the table.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// The value of the table's partition column, if it has one.
    pub partition: Option<String>,
}

/// Files that were written in the place of others, and are not committed yet.
#[derive(Debug)]
pub struct Rewrite {
    replaced: Vec<String>,
    adds: Vec<Add>,
}

impl Rewrite {
    /// How many files it has.
    #[must_use]
    pub fn files(&self) -> usize {
        self.adds.len()
    }
}

/// A commit of upkeep.
#[derive(Debug)]
pub enum TableChange {
    /// Puts files in the place of others.
    Rewrite(Rewrite),
    /// Tells every reader and vacuum how long removed files are kept, in seconds.
    KeepRemoved(u64),
}

/// `_delta_log/_last_checkpoint`, as far as it matters.
#[derive(Debug, Deserialize)]
struct LastCheckpoint {
    version: u64,
}

impl LakeTable {
    /// Takes over what was committed since.
    ///
    /// # Errors
    /// [`LakeError::Delta`].
    pub async fn refresh(&mut self) -> Result<(), LakeError> {
        self.table.update_incremental(None).await.map_err(|error| delta(self.name, error))
    }

    /// The table as of `version`, or of a later one with the same rows: commits of upkeep and of `quiet` applications that
    /// follow at once are stepped over.
    ///
    /// # Errors
    /// [`LakeError::Delta`], [`LakeError::File`] when a commit cannot be read.
    pub async fn from_version(self, lake: &Lake, version: u64, quiet: &[&str]) -> Result<Self, LakeError> {
        let mut reached = version;
        for next in version + 1..=self.version() {
            let transactions = self.transactions(lake, next).await?;
            let is_quiet = |name: &str| name == UPKEEP || quiet.contains(&name);
            if transactions.is_empty() || !transactions.iter().all(|(name, _)| is_quiet(name)) {
                break;
            }
            reached = next;
        }
        self.at_version(reached).await
    }

    /// The data files of the loaded version.
    ///
    /// # Errors
    /// [`LakeError::Delta`].
    pub fn data_files(&self) -> Result<Vec<DataFile>, LakeError> {
        let file = |(path, file): (String, LogicalFileView)| DataFile {
            path,
            bytes: u64::try_from(file.size()).unwrap_or(0),
            partition: self.partitions.first().and_then(|name| file.partition_values_map().remove(*name).flatten()),
        };
        Ok(self.active()?.into_iter().map(file).collect())
    }

    /// The files of the loaded version by path.
    fn active(&self) -> Result<HashMap<String, LogicalFileView>, LakeError> {
        let snapshot = self.table.snapshot().map_err(|error| delta(self.name, error))?;
        Ok(snapshot.log_data().iter().map(|file| (file.path().into_owned(), file)).collect())
    }

    /// Writes the rows of these files again, as one file where the size allows it. Nothing is committed.
    ///
    /// # Errors
    /// [`LakeError::Delta`]; [`LakeError::File`] when not every row was read that the files should have.
    pub async fn rewrite(&self, paths: &[String], context: &SessionContext) -> Result<Rewrite, LakeError> {
        let failed = |error| delta(self.name, error);
        let query = |error: datafusion::error::DataFusionError| delta(self.name, error.into());
        let schema = self.schema()?;
        let scan = self.scan()?.with_file_paths(paths.iter().cloned());
        let mut rows = context.read_table(Arc::new(scan)).map_err(query)?.execute_stream().await.map_err(query)?;
        let mut writer = self.writer(&schema)?;
        let mut count = 0;
        while let Some(batch) = rows.try_next().await.map_err(query)? {
            count += batch.num_rows();
            writer.write(&self.conform(&batch, &schema)?).await.map_err(failed)?;
        }
        let mut adds = writer.close().await.map_err(failed)?;
        adds.iter_mut().for_each(|add| add.data_change = false);
        let active = self.active()?;
        let expected: Option<usize> = paths.iter().map(|path| active.get(path).and_then(LogicalFileView::num_records)).sum();
        if let Some(expected) = expected.filter(|expected| *expected != count) {
            let message = format!("{count} rows were read of files that should have {expected}; they stay as they are");
            return Err(LakeError::File { path: self.name.to_owned(), message });
        }
        Ok(Rewrite { replaced: paths.to_vec(), adds })
    }

    /// Commits a change of upkeep to the version after the one that was [refreshed](Self::refresh) last; `false` when
    /// there is nothing to change any more.
    ///
    /// # Errors
    /// [`LakeError::Fenced`] when somebody else wrote, otherwise [`LakeError::Delta`].
    pub async fn commit_upkeep(&mut self, change: TableChange) -> Result<bool, LakeError> {
        let number = self.last_transaction(UPKEEP).await?.unwrap_or(0) + 1;
        let (actions, operation) = match change {
            TableChange::Rewrite(rewrite) => {
                let active = self.active()?;
                let replaced: Option<Vec<&LogicalFileView>> = rewrite.replaced.iter().map(|path| active.get(path)).collect();
                let Some(replaced) = replaced.filter(|replaced| !replaced.is_empty()) else { return Ok(false) };
                let removes = replaced.into_iter().map(|file| Action::Remove(file.remove_action(false)));
                let actions = removes.chain(rewrite.adds.into_iter().map(Action::Add)).collect();
                (actions, DeltaOperation::Optimize { predicate: None, target_size: i64::try_from(FILE_BYTES).unwrap_or(i64::MAX) })
            }
            TableChange::KeepRemoved(seconds) => {
                if self.keeps_removed()? == seconds {
                    return Ok(false);
                }
                let failed = |error| delta(self.name, error);
                let (name, value) = (TableProperty::DeletedFileRetentionDuration.as_ref(), format!("interval {seconds} seconds"));
                let metadata = self.table.snapshot().map_err(failed)?.metadata().clone();
                let metadata = metadata.add_config_key(name.to_owned(), value.clone()).map_err(|error| failed(error.into()))?;
                let properties = HashMap::from([(name.to_owned(), value)]);
                (vec![Action::Metadata(metadata)], DeltaOperation::SetTableProperties { properties })
            }
        };
        self.commit(actions, operation, UPKEEP, number).await?;
        Ok(true)
    }

    /// Puts these rows in the place of all others as number `number` of `application`, once.
    ///
    /// # Errors
    /// As [`LakeTable::append`].
    pub async fn replace_rows(&mut self, batches: &[RecordBatch], application: &str, number: i64) -> Result<AppendOutcome, LakeError> {
        self.refresh().await?;
        if self.last_transaction(application).await?.is_some_and(|last| last >= number) {
            return Ok(AppendOutcome::AlreadyThere);
        }
        let mut actions = Vec::new();
        let schema = self.extended_schema(batches, &mut actions)?;
        actions.extend(self.active()?.values().map(|file| Action::Remove(file.remove_action(true))));
        actions.extend(self.write(batches, &schema).await?.into_iter().map(Action::Add));
        let operation = self.writing(SaveMode::Overwrite);
        self.commit(actions, operation, application, number).await
    }

    /// How long removed files are kept, in seconds, by the table's own word.
    ///
    /// # Errors
    /// [`LakeError::Delta`].
    pub fn keeps_removed(&self) -> Result<u64, LakeError> {
        let snapshot = self.table.snapshot().map_err(|error| delta(self.name, error))?;
        Ok(snapshot.table_config().deleted_file_retention_duration().as_secs())
    }

    /// Commits since the last Delta checkpoint.
    ///
    /// # Errors
    /// [`LakeError::Store`]. A hint that cannot be read counts as none.
    pub async fn commits_since_checkpoint(&self, lake: &Lake) -> Result<u64, LakeError> {
        let hint = lake.read(&format!("{}/_delta_log/_last_checkpoint", self.name)).await?;
        let last = hint.and_then(|hint| serde_json::from_slice::<LastCheckpoint>(&hint).ok());
        Ok(self.version().saturating_sub(last.map_or(0, |last| last.version)))
    }

    /// Writes a Delta checkpoint of the loaded version, from which readers open the table without the commits before it.
    ///
    /// # Errors
    /// [`LakeError::Delta`].
    pub async fn write_checkpoint(&self) -> Result<(), LakeError> {
        create_checkpoint(&self.table, None).await.map_err(|error| delta(self.name, error))
    }

    /// Files that no version needs which is younger than the table [keeps removed files](Self::keeps_removed), nor version
    /// `kept`; and files that no commit names, once they are of that age and older than any commit that may still name them.
    ///
    /// # Errors
    /// [`LakeError::Delta`], as when version `kept` cannot be read.
    pub async fn stale_files(&self, kept: Option<u64>) -> Result<Vec<String>, LakeError> {
        let mut stale = self.vacuum(VacuumMode::Lite, kept).await?;
        let removed: HashSet<String> = stale.iter().cloned().collect();
        let unnamed = self.vacuum(VacuumMode::Full, kept).await?.into_iter().filter(|path| !removed.contains(path));
        let before = time::now().saturating_sub(UNNAMED);
        for path in unnamed {
            match self.table.object_store().head(&parsed(&path)).await {
                Ok(file) if file.last_modified.timestamp_micros() < before => stale.push(path),
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(stale)
    }

    async fn vacuum(&self, mode: VacuumMode, kept: Option<u64>) -> Result<Vec<String>, LakeError> {
        let mut vacuum = self.table.clone().vacuum().with_mode(mode).with_dry_run(true);
        if let Some(version) = kept {
            vacuum = vacuum.with_keep_versions(&[version]);
        }
        let (_, found) = vacuum.await.map_err(|error| delta(self.name, error))?;
        Ok(found.files_deleted)
    }

    /// Removes data files for good.
    ///
    /// # Errors
    /// [`LakeError::Store`].
    pub async fn remove_files(&self, paths: &[String]) -> Result<(), LakeError> {
        delete_all(self.table.object_store().as_ref(), paths.iter().map(|path| parsed(path)).collect()).await
    }
}

/// A path as the table says it.
fn parsed(path: &str) -> Path {
    Path::parse(path).unwrap_or_else(|_| Path::from(path))
}

/// Deletes files; what is gone already is no error.
pub(in crate::lake) async fn delete_all(store: &dyn ObjectStore, paths: Vec<Path>) -> Result<(), LakeError> {
    let mut deleted = store.delete_stream(futures::stream::iter(paths.into_iter().map(Ok)).boxed());
    while let Some(outcome) = deleted.next().await {
        match outcome {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
