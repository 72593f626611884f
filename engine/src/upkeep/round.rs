//! One round of upkeep over all tables: what is long is done here, beside the epochs; what must stand between two of them
//! is asked for.

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::execution::runtime_env::RuntimeEnv;
use ratemill_rules::session::{SessionLimits, session};
use ratemill_schemas::time;
use serde::Serialize;
use tokio::sync::{RwLock, mpsc, oneshot};

use super::adopted::unnamed_files;
use super::compaction::{Eagerness, groups};
use super::retention::{OldEpochs, abandoned_checkpoints};
use super::settings::UpkeepSettings;
use crate::epoch::{RUNNING_CHARGES, latest_completion};
use crate::lake::{Lake, LakeError, LakeTable, TableChange};

/// A commit that the owner of the tables is asked for.
#[derive(Debug)]
pub struct Request {
    /// The table.
    pub table: &'static str,
    /// The change.
    pub change: TableChange,
    /// Whether it was made; dropped when it could not be.
    pub answer: oneshot::Sender<bool>,
}

/// What a round does beside joining files and writing checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// Nothing.
    Join,
    /// It removes files that nobody needs.
    Clean,
    /// It removes files, and joins those of open days and months, too: nothing else runs.
    All,
    /// It only says what [`Extent::All`] would do.
    Look,
}

/// What was done to a table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TableReport {
    /// The table.
    pub table: &'static str,
    /// Data files before.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Commits that joined files.
    pub compactions: usize,
    /// Files that were joined.
    pub joined: usize,
    /// Files that took their place.
    pub written: usize,
    /// Version of the Delta checkpoint that was written.
    pub checkpoint: Option<u64>,
    /// Data files that were removed, since nobody needs them.
    pub removed: usize,
}

/// What a round did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UpkeepReport {
    /// Nothing was done.
    pub dry_run: bool,
    /// The tables.
    pub tables: Vec<TableReport>,
    /// Manifests and completion records that were removed.
    pub epoch_files_removed: usize,
    /// Parts of unfinished checkpoints of open windows that were removed.
    pub checkpoint_files_removed: usize,
    /// Files that were to be adopted, became no usage, and were removed.
    pub adopted_files_removed: usize,
}

/// A round.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) lake: Lake,
    pub(super) tables: Vec<LakeTable>,
    pub(super) runtime: Arc<RuntimeEnv>,
    pub(super) limits: SessionLimits,
    pub(super) settings: UpkeepSettings,
    pub(super) extent: Extent,
    pub(super) requests: mpsc::Sender<Request>,
    /// The folder of the log.
    pub(super) log_folder: PathBuf,
    /// Held by whoever adopts a file.
    pub(super) adopting: Arc<RwLock<()>>,
}

impl Round {
    /// Goes over every table; where one fails, the others are done all the same.
    pub(super) async fn run(self) -> Result<UpkeepReport, LakeError> {
        let mut report = UpkeepReport { dry_run: self.extent == Extent::Look, ..UpkeepReport::default() };
        let mut failure = Ok(());
        for table in &self.tables {
            match self.keep(table.clone()).await {
                Ok(kept) => report.tables.push(kept),
                Err(error) => {
                    tracing::warn!(%error, "upkeep of a table failed; it will be tried again");
                    failure = Err(error);
                }
            }
        }
        failure?;
        if self.extent != Extent::Join {
            self.clean_folders(&mut report).await?;
        }
        Ok(report)
    }

    async fn keep(&self, mut table: LakeTable) -> Result<TableReport, LakeError> {
        let files = table.data_files()?;
        let mut report = TableReport {
            table: table.name(),
            files: files.len(),
            bytes: files.iter().map(|file| file.bytes).sum(),
            ..TableReport::default()
        };
        #[allow(clippy::cast_precision_loss)]
        {
            metrics::gauge!("ratemill_table_files", "table" => report.table).set(report.files as f64);
            metrics::gauge!("ratemill_table_bytes", "table" => report.table).set(report.bytes as f64);
        }
        let looks = self.extent == Extent::Look;
        let running = table.name() == RUNNING_CHARGES;
        let kept = if running { self.settings.keep_running_seconds } else { self.settings.keep_seconds };
        if !looks && table.keeps_removed()? != kept {
            self.commit(table.name(), TableChange::KeepRemoved(kept)).await;
            table.refresh().await?;
        }
        let groups = groups(files, self.eagerness());
        if looks {
            report.compactions = groups.len();
            report.joined = groups.iter().map(Vec::len).sum();
        } else {
            self.join(&table, &groups, &mut report).await?;
            table.refresh().await?;
        }
        if table.commits_since_checkpoint(&self.lake).await? >= self.settings.checkpoint_commits {
            if !looks {
                table.write_checkpoint().await?;
                metrics::counter!("ratemill_delta_checkpoints_total").increment(1);
            }
            report.checkpoint = Some(table.version());
        }
        if self.extent != Extent::Join {
            // A reader may be at the version of the last completed epoch, however old it is.
            let completion = latest_completion(&self.lake).await?;
            let stale = table.stale_files(completion.and_then(|completion| completion.versions.of(table.name()))).await?;
            if !looks {
                table.remove_files(&stale).await?;
                metrics::counter!("ratemill_removed_files_total", "table" => report.table).increment(stale.len() as u64);
            }
            report.removed = stale.len();
        }
        Ok(report)
    }

    fn eagerness(&self) -> Eagerness {
        let open_too = matches!(self.extent, Extent::All | Extent::Look);
        Eagerness { files_min: self.settings.files_min, open_too, clock: time::now() }
    }

    async fn join(&self, table: &LakeTable, groups: &[Vec<String>], report: &mut TableReport) -> Result<(), LakeError> {
        // One file after the other: epochs have the processors first.
        let context = session(Arc::clone(&self.runtime), &SessionLimits { partitions: 1, ..self.limits.clone() });
        for group in groups {
            let rewrite = table.rewrite(group, &context).await?;
            let written = rewrite.files();
            if !self.commit(table.name(), TableChange::Rewrite(rewrite)).await {
                tracing::info!(table = table.name(), "joined files came too late and are given up");
                continue;
            }
            report.compactions += 1;
            report.joined += group.len();
            report.written += written;
            metrics::counter!("ratemill_compactions_total", "table" => table.name()).increment(1);
            metrics::counter!("ratemill_joined_files_total", "table" => table.name()).increment(group.len() as u64);
            tracing::info!(table = table.name(), joined = group.len(), written, "files joined");
        }
        Ok(())
    }

    /// Whether the owner of the tables made the change.
    async fn commit(&self, table: &'static str, change: TableChange) -> bool {
        let (answer, answered) = oneshot::channel();
        let sent = self.requests.send(Request { table, change, answer }).await.is_ok();
        sent && answered.await.unwrap_or(false)
    }

    async fn clean_folders(&self, report: &mut UpkeepReport) -> Result<(), LakeError> {
        let clock = time::now();
        let latest = latest_completion(&self.lake).await?.map_or(0, |completion| completion.epoch);
        let epochs = OldEpochs::find(&self.lake, latest, clock.saturating_sub(self.settings.keep_epochs)).await?;
        let checkpoints = abandoned_checkpoints(&self.lake, clock).await?;
        if !report.dry_run {
            epochs.remove(&self.lake).await?;
            self.lake.remove_all(&checkpoints).await?;
        }
        self.clean_adopted(report, clock).await?;
        report.epoch_files_removed = epochs.files.len();
        report.checkpoint_files_removed = checkpoints.len();
        Ok(())
    }

    /// Another round comes where files are being adopted.
    async fn clean_adopted(&self, report: &mut UpkeepReport, clock: i64) -> Result<(), LakeError> {
        let Ok(_nobody_adopts) = self.adopting.try_write() else { return Ok(()) };
        let Some(table) = self.tables.iter().find(|table| table.name() == "adopted") else { return Ok(()) };
        let context = session(Arc::clone(&self.runtime), &self.limits);
        let unnamed = unnamed_files(&self.lake, table.clone(), &self.log_folder, &context, clock).await?;
        if !report.dry_run {
            self.lake.remove_all(&unnamed).await?;
        }
        report.adopted_files_removed = unnamed.len();
        Ok(())
    }
}
