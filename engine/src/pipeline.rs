//! Opening a project for writing: log, index, lake, capture thread and epochs, in the order that recovery needs.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::prelude::{Expr, SessionContext, col, lit};
use futures::TryStreamExt;
use ratemill_connectors::Intake;
use ratemill_connectors::files::{Adoption, Claims, FileReader, FilesConfig};
use ratemill_rules::{Diagnostics, RuleProject};
use ratemill_schemas::changes::ChangeKey;
use ratemill_schemas::files::{FileClaim, FileState};
use ratemill_schemas::invoicing::InvoicingCalendar;
use ratemill_schemas::{EventKey, changes, time, windows};

use crate::adopted::{self, Adopted, Part};
use crate::capture::{Capture, CaptureProgress};
use crate::config::{ConfigError, Settings};
use crate::dedup::DedupIndex;
use crate::epoch::{
    ChargeExplainer, Completion, EpochError, EpochSetup, Epochs, LedgerAudit, frame_keys, latest_completion, rejection_keys, table_specs,
};
use crate::installation::Installation;
use crate::lake::owner::Ownership;
use crate::lake::{Lake, LakeError, LakeTable};
use crate::log::{self, LogError, LogWriter};

/// Positions of the log whose event ids are read back from the lake at once, when the index has to be made again.
const REBUILT_TOGETHER: i64 = 1 << 22;

/// Bytes of the log that are read at once.
const READ_TOGETHER: u64 = 64 << 20;

/// Why a project could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `ratemill.toml`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The rules or the reference data.
    #[error("{0}")]
    Rules(Diagnostics),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The lake.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// An interrupted epoch.
    #[error(transparent)]
    Epoch(#[from] EpochError),
    /// A connector.
    #[error("{0}")]
    Connector(String),
}

/// An open project.
#[derive(Debug)]
pub struct Pipeline {
    /// Settings.
    pub settings: Settings,
    /// The log folder's lock and key.
    pub installation: Installation,
    /// Where connectors submit.
    pub intake: Intake,
    /// What capture has done.
    pub progress: Arc<CaptureProgress>,
    /// Epochs.
    pub epochs: Epochs,
    /// Files that were taken, with their drop's name.
    pub claims: Vec<FileClaim>,
    capture: std::thread::JoinHandle<()>,
}

impl Pipeline {
    /// Opens the project in `folder`; `shown` is how it is named in messages.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(folder: &Path, shown: &str) -> Result<Self, OpenError> {
        let settings = Settings::load(folder)?;
        let (project, warnings) = RuleProject::load(folder, shown, Arc::clone(&settings.schema)).await.map_err(OpenError::Rules)?;
        for warning in &warnings.0 {
            eprintln!("{}", warning.render(false));
        }
        let installation = Installation::open(&settings.log_folder)?;
        let lake = Lake::open(&settings.config.lake.url, folder)?;
        lake.probe().await?;
        let drained = latest_completion(&lake).await?.map_or(0, |completion| completion.state.position);
        let ownership = Ownership::take(&lake, &installation, settings.lease, drained).await?;
        let completion = latest_completion(&lake).await?;
        let floor = completion.as_ref().map_or(0, |completion| completion.state.position);
        let scan = log::scan(installation.folder(), floor)?;
        if scan.torn_bytes > 0 {
            tracing::warn!(bytes = scan.torn_bytes, "cut an unfinished record off the end of the usage log");
        }
        let progress = Arc::new(CaptureProgress::default());
        progress.position.store(scan.end(floor), Ordering::Release);
        progress.drained.store(floor, Ordering::Release);
        let mut dedup = open_index(&lake, &settings, &installation, completion.as_ref()).await?;
        let undrained = undrained(&lake, &settings, &installation, floor, &mut dedup).await?;
        progress.undrained_bytes.store(undrained.weight, Ordering::Release);
        dedup.keep(settings.dedup_horizon)?;
        progress.pulse.note_ids(dedup.len());
        let mut claims = taken_files(&lake, &settings).await?;
        claims.extend(undrained.claims);
        let (intake, queue) = Intake::bounded(settings.queue_bytes);
        let capture = Capture {
            queue,
            log: LogWriter::new(installation.folder(), scan.end(floor))?,
            dedup,
            hasher: installation.hasher(),
            schema: Arc::clone(&settings.schema),
            log_id: installation.log_id().into(),
            quota: settings.log_quota,
            progress: Arc::clone(&progress),
            is_full: false,
        };
        let setup = EpochSetup {
            project,
            schema: Arc::clone(&settings.schema),
            log_folder: installation.folder().to_owned(),
            dedup_folder: installation.dedup_folder(),
            log_id: installation.log_id().to_owned(),
            hasher: installation.hasher(),
            progress: Arc::clone(&progress),
            calendar: calendar(&settings)?,
            limits: settings.session_limits(),
            idle: settings.idle,
            future_skew: settings.future_skew,
            epoch_bytes: settings.epoch_bytes,
            inputs: settings.moving_inputs(),
        };
        let epochs = Epochs::open(lake, ownership, completion, setup).await?;
        let capture = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || {
                if let Err(error) = capture.run() {
                    // Nobody knows what the disk holds now: recovery at the next start finds out.
                    tracing::error!(%error, "the usage log failed; the process stops");
                    // Standard error may lie on the disk that failed.
                    let _ = writeln!(std::io::stderr(), "error: {error}");
                    std::process::exit(1);
                }
            })
            .map_err(|error| OpenError::Connector(error.to_string()))?;
        Ok(Self { settings, installation, intake, progress, epochs, claims, capture })
    }

    /// A reader for the files of one drop.
    ///
    /// # Errors
    /// [`OpenError::Connector`].
    pub fn file_reader(&self, config: &FilesConfig) -> Result<FileReader, OpenError> {
        let context = self.settings.decode_context(self.installation.hasher());
        let reader = FileReader::new(config, context, self.intake.clone(), self.settings.file_bytes)
            .map_err(|error| OpenError::Connector(error.to_string()))?;
        let (store, root) = self.epochs.lake_root();
        Ok(reader.adopting(Adoption { store, root, bytes_min: self.settings.adopted_bytes, under_way: self.epochs.adopting() }))
    }

    /// The claims of the drop `name`, by path.
    #[must_use]
    pub fn claims_of(&self, name: &str) -> Claims {
        let mut claims = Claims::new();
        for claim in self.claims.iter().filter(|claim| claim.connector == name) {
            claims.entry(claim.path.clone()).or_default().push(claim.clone());
        }
        claims
    }

    /// Ends capture once every other handle on the intake is gone, then gives the lake up.
    ///
    /// # Errors
    /// [`OpenError::Epoch`].
    pub async fn close(self) -> Result<(), OpenError> {
        drop(self.intake);
        let capture = self.capture;
        // A connection that is still open may hold the intake: it is not waited for, nothing of it was answered.
        let ended = tokio::task::spawn_blocking(move || capture.join());
        let _ = tokio::time::timeout(Duration::from_secs(1), ended).await;
        self.epochs.close().await?;
        Ok(())
    }
}

/// Opens the lake of a project for an audit, as of its last completed epoch; `None` when there is none yet. It needs no
/// ownership, so that an engine may run.
///
/// # Errors
/// [`OpenError`].
pub async fn open_audit(folder: &Path, shown: &str) -> Result<Option<LedgerAudit>, OpenError> {
    let settings = Settings::load_for_reading(folder)?;
    let (project, _) = RuleProject::load(folder, shown, Arc::clone(&settings.schema)).await.map_err(OpenError::Rules)?;
    let lake = Lake::open(&settings.config.lake.url, folder)?;
    let Some(completion) = latest_completion(&lake).await? else { return Ok(None) };
    let limits = settings.session_limits();
    let calendar = calendar(&settings)?;
    Ok(Some(LedgerAudit::open(lake, completion, project, settings.schema, limits, calendar).await?))
}

/// Opens the ledger of a project to explain charges of it; `None` when there is none yet. It needs no ownership, so that an
/// engine may run.
///
/// # Errors
/// [`OpenError`].
pub async fn open_explainer(folder: &Path, shown: &str) -> Result<Option<ChargeExplainer>, OpenError> {
    let settings = Settings::load_for_reading(folder)?;
    let (project, _) = RuleProject::load(folder, shown, Arc::clone(&settings.schema)).await.map_err(OpenError::Rules)?;
    let lake = Lake::open(&settings.config.lake.url, folder)?;
    let Some(completion) = latest_completion(&lake).await? else { return Ok(None) };
    let limits = settings.session_limits();
    Ok(Some(ChargeExplainer::open(lake, &completion, project, settings.schema, limits).await?))
}

/// Invoicing months.
fn calendar(settings: &Settings) -> Result<InvoicingCalendar, OpenError> {
    let zone = windows::zone(&settings.config.billing.timezone).map_err(|error| OpenError::Connector(error.to_string()))?;
    Ok(InvoicingCalendar::new(zone))
}

fn columns(source: arrow::error::ArrowError) -> OpenError {
    OpenError::Epoch(EpochError::Arrow { epoch: 0, source })
}

/// What is in the log and not in the lake.
#[derive(Debug, Default)]
struct Undrained {
    weight: u64,
    claims: Vec<FileClaim>,
}

/// Reads what is in the log from `floor` on, a part at a time: however much it is, only the event ids stay in memory.
async fn undrained(
    lake: &Lake,
    settings: &Settings,
    installation: &Installation,
    floor: i64,
    dedup: &mut DedupIndex,
) -> Result<Undrained, OpenError> {
    let mut undrained = Undrained::default();
    for frames in log::parts(installation.folder(), floor, READ_TOGETHER) {
        for frame in frames? {
            let mut keys: Vec<EventKey> = Vec::new();
            frame_keys(&frame, &settings.schema, &installation.hasher(), &mut keys).map_err(columns)?;
            for part in Part::of_frame(&frame.header) {
                keys.extend(adopted::keys(lake, &part, &settings.schema, &installation.hasher()).await.map_err(query)?);
            }
            dedup.insert_all(keys.into_iter());
            undrained.weight += frame.weight();
            undrained.claims.extend(frame.header.claims);
        }
    }
    Ok(undrained)
}

/// The index of event ids, made again from the lake when its files do not hold all that the lake does.
async fn open_index(
    lake: &Lake,
    settings: &Settings,
    installation: &Installation,
    completion: Option<&Completion>,
) -> Result<DedupIndex, OpenError> {
    let folder = installation.dedup_folder();
    let floor = completion.map_or(0, |completion| completion.state.position);
    let (mut dedup, known) = DedupIndex::open(&folder, floor)?;
    let Some(completion) = completion.filter(|_| known < floor) else { return Ok(dedup) };
    tracing::info!("rebuilding the index of event ids from the lake");
    dedup.clear()?;
    drop(dedup);
    rebuild(lake, settings, installation, completion).await?;
    let (dedup, known) = DedupIndex::open(&folder, floor)?;
    if known < floor {
        return Err(LogError::Gap { path: folder, from: known, to: floor }.into());
    }
    Ok(dedup)
}

/// Writes the files of the index from `usage` and `rejected`, a range of positions at a time: memory does not grow with
/// the lake.
async fn rebuild(lake: &Lake, settings: &Settings, installation: &Installation, completion: &Completion) -> Result<(), OpenError> {
    let [usage, rejected, _, _, changes, adopted] = table_specs(&settings.schema);
    let versions = &completion.versions;
    let mut tables = Vec::new();
    for (spec, version, logged_at) in
        [(usage, versions.usage, "ingested_at"), (rejected, versions.rejected, "rejected_at"), (changes, versions.changes, "ingested_at")]
    {
        if let Some(table) = LakeTable::open(lake, spec.name, spec.partitions).await? {
            tables.push((table.at_version(version).await?, spec, logged_at));
        }
    }
    let adopted = match LakeTable::open(lake, adopted.name, adopted.partitions).await? {
        Some(table) => Some(Adopted::load(&reading(lake), lake, &table.at_version(versions.adopted).await?).await.map_err(query)?),
        None => None,
    };
    let (folder, hasher, end) = (installation.dedup_folder(), installation.hasher(), completion.state.position);
    let aged_before = time::now().saturating_sub(settings.dedup_horizon);
    let (mut from, mut aged) = (0, true);
    while from < end {
        let to = end.min(from + REBUILT_TOGETHER);
        let (mut keys, mut ingested_max) = (Vec::new(), i64::MIN);
        for (table, spec, logged_at) in &tables {
            let range = col("log_position").gt_eq(lit(from));
            let range = if to < end { range.and(col("log_position").lt(lit(to))) } else { range };
            let adopted = adopted.as_ref().filter(|_| spec.name == "usage");
            let mut batches = scan(lake, (table, adopted), &spec.schema, Some(range)).await?;
            while let Some(batch) = batches.try_next().await.map_err(query)? {
                match spec.name {
                    "usage" => keys.extend(settings.schema.keys(&batch, &hasher).map_err(columns)?),
                    "changes" => {
                        let found = changes::keys(&settings.schema, &batch, &hasher).map_err(columns)?;
                        keys.extend(found.into_iter().flat_map(ChangeKey::keys));
                    }
                    _ => keys.extend(rejection_keys(&batch, &hasher)),
                }
                let times = batch.column_by_name(logged_at).map(|times| times.as_primitive::<TimestampMicrosecondType>());
                ingested_max = ingested_max.max(times.and_then(arrow::compute::max).unwrap_or(i64::MIN));
            }
        }
        // Keys on disk come before those in memory, even where the clock was put back.
        aged &= ingested_max < aged_before;
        if aged {
            DedupIndex::save_aged(&folder, from, to, &keys)?;
        } else {
            DedupIndex::save_run(&folder, from, to, ingested_max, &keys)?;
        }
        from = to;
    }
    Ok(())
}

async fn read_all(
    lake: &Lake,
    table: &LakeTable,
    columns: &arrow::datatypes::SchemaRef,
) -> Result<Vec<arrow::array::RecordBatch>, OpenError> {
    scan(lake, (table, None), columns, None).await?.try_collect().await.map_err(query)
}

/// A session that reads the lake.
fn reading(lake: &Lake) -> SessionContext {
    let context = SessionContext::new();
    let (authority, store) = lake.root_store();
    context.runtime_env().register_object_store(&authority, store);
    context
}

/// The rows of a table that fit `filter`, and of adopted files, in those of `columns` that it has.
async fn scan(
    lake: &Lake,
    (table, adopted): (&LakeTable, Option<&Adopted>),
    columns: &arrow::datatypes::SchemaRef,
    filter: Option<Expr>,
) -> Result<SendableRecordBatchStream, OpenError> {
    let context = reading(lake);
    let stream = async {
        let present = table.schema().map_err(|error| datafusion::error::DataFusionError::External(error.into()))?;
        let provider = table.provider().map_err(|error| datafusion::error::DataFusionError::External(error.into()))?;
        let names: Vec<&str> =
            columns.fields().iter().map(|field| field.name().as_str()).filter(|name| present.field_with_name(name).is_ok()).collect();
        let provider = adopted.map_or_else(|| Arc::clone(&provider), |adopted| adopted.over(Arc::clone(&provider)));
        let rows = context.read_table(provider)?;
        let rows = match filter {
            Some(filter) => rows.filter(filter)?,
            None => rows,
        };
        rows.select_columns(&names)?.execute_stream().await
    };
    stream.await.map_err(query)
}

fn query(error: datafusion::error::DataFusionError) -> OpenError {
    OpenError::Epoch(EpochError::Query(error))
}

async fn taken_files(lake: &Lake, settings: &Settings) -> Result<Vec<FileClaim>, OpenError> {
    let [_, _, spec, ..] = table_specs(&settings.schema);
    let Some(completion) = latest_completion(lake).await? else { return Ok(Vec::new()) };
    let Some(table) = LakeTable::open(lake, spec.name, spec.partitions).await? else { return Ok(Vec::new()) };
    let mut claims = Vec::new();
    for batch in read_all(lake, &table.at_version(completion.versions.files).await?, &spec.schema).await? {
        let text = |name: &str, row: usize| {
            batch.column_by_name(name).map(|column| column.as_string::<i32>().value(row).to_owned()).unwrap_or_default()
        };
        for row in 0..batch.num_rows() {
            let state = if text("state", row) == FileState::Changed.as_str() { FileState::Changed } else { FileState::Taken };
            claims.push(FileClaim {
                connector: text("connector", row),
                path: text("path", row),
                etag: text("etag", row),
                size: 0,
                content_hash: text("content_hash", row),
                state,
                rows: 0,
                rejected: 0,
            });
        }
    }
    Ok(claims)
}

/// The folder of a project as it is named in messages.
#[must_use]
pub fn shown(folder: &Path) -> String {
    let shown = folder.display().to_string();
    if shown.is_empty() { ".".to_owned() } else { shown.trim_end_matches('/').to_owned() }
}
