//! One Delta table of which the engine is the only writer.
//!
//! A commit carries an application transaction (name, number). It is written to exactly the version after the one
//! that was read, without retries: a taken version means that this commit landed in an earlier attempt, or that
//! somebody else writes, and then the engine stops.

mod upkeep;

pub(super) use upkeep::delete_all;
pub use upkeep::{DataFile, Rewrite, TableChange};

use std::collections::HashMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::TableReference;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::LogicalPlanBuilder;
use datafusion::prelude::Expr;
use deltalake_core::datafile::writer::{DeltaWriter, WriterConfig};
use deltalake_core::delta_datafusion::{DeltaScanConfig, DeltaScanNext};
use deltalake_core::kernel::engine::arrow_conversion::{TryIntoArrow, TryIntoKernel};
use deltalake_core::kernel::transaction::{CommitData, CommitProperties, TransactionError};
use deltalake_core::kernel::{Action, MetadataExt, StructType, Transaction};
use deltalake_core::logstore::CommitOrBytes;
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::operations::write::WriterStatsConfig;
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::table::config::TableProperty;
use deltalake_core::{DeltaTable, DeltaTableError};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use ratemill_rules::OpaqueTable;
use tokio::task::JoinSet;

use super::{Lake, LakeError};
use crate::failpoint::Failpoint;

/// What a table is when it is created.
#[derive(Debug, Clone)]
pub struct TableSpec {
    /// Folder below the lake's root.
    pub name: &'static str,
    /// Its columns.
    pub schema: SchemaRef,
    /// Columns that divide it into folders.
    pub partitions: &'static [&'static str],
    /// Columns with statistics: keys and times, never decimals.
    pub statistics: &'static [&'static str],
}

/// Whether an append did anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendOutcome {
    /// Committed now, as this version.
    Committed(u64),
    /// An earlier attempt had committed it.
    AlreadyThere,
}

/// An open table.
#[derive(Debug, Clone)]
pub struct LakeTable {
    name: &'static str,
    table: DeltaTable,
    partitions: &'static [&'static str],
    /// Of its rows, those that are read.
    rows: Option<Expr>,
}

/// Rows of an append for which another core is used.
const WRITER_ROWS: usize = 250_000;
/// Rows of a Parquet row group.
const ROW_GROUP_ROWS: usize = 1 << 20;
/// Bytes of a data file, about.
const FILE_BYTES: u64 = 256 << 20;

impl LakeTable {
    /// Opens the table, or creates it where it is not there; columns that it lacks are added with the next append.
    ///
    /// # Errors
    /// [`LakeError::Delta`].
    pub async fn open_or_create(lake: &Lake, spec: &TableSpec) -> Result<Self, LakeError> {
        match Self::open(lake, spec.name, spec.partitions).await? {
            Some(table) => Ok(table),
            None => {
                let delta = |source| delta(spec.name, source);
                let columns: StructType =
                    spec.schema.as_ref().try_into_kernel().map_err(|error| delta(DeltaTableError::Arrow { source: error }))?;
                let created = CreateBuilder::new()
                    .with_log_store(lake.log_store(spec.name)?)
                    .with_table_name(spec.name)
                    .with_columns(columns.fields().cloned())
                    .with_partition_columns(spec.partitions.iter().copied())
                    .with_save_mode(SaveMode::ErrorIfExists)
                    .with_configuration_property(TableProperty::DataSkippingStatsColumns, Some(spec.statistics.join(",")))
                    .with_configuration_property(TableProperty::EnableExpiredLogCleanup, Some("false"))
                    .with_commit_properties(CommitProperties::default().with_max_retries(0))
                    .await;
                Failpoint::TableCreated.reached();
                match created {
                    Ok(table) => Ok(Self { name: spec.name, table, partitions: spec.partitions, rows: None }),
                    // Another attempt may have created it in between.
                    Err(error) => Self::open(lake, spec.name, spec.partitions).await?.ok_or_else(|| delta(error)),
                }
            }
        }
    }

    /// Opens the table if it is there.
    ///
    /// # Errors
    /// [`LakeError::Delta`].
    pub async fn open(lake: &Lake, name: &'static str, partitions: &'static [&'static str]) -> Result<Option<Self>, LakeError> {
        let mut table = DeltaTable::new(lake.log_store(name)?);
        if !lake.has_log(name).await? {
            return Ok(None);
        }
        match table.load().await {
            Ok(()) => Ok(Some(Self { name, table, partitions, rows: None })),
            Err(DeltaTableError::NotATable(_)) => Ok(None),
            Err(error) => Err(delta(name, error)),
        }
    }

    /// Goes to another version.
    ///
    /// # Errors
    /// [`LakeError::Delta`].
    pub async fn at_version(mut self, version: u64) -> Result<Self, LakeError> {
        if self.table.version() != Some(version) {
            self.table.load_version(version).await.map_err(|error| delta(self.name, error))?;
        }
        Ok(self)
    }

    /// The table as of `version` and the commits after it, up to the first of `application` with a number above `number`.
    ///
    /// # Errors
    /// [`LakeError::Delta`], [`LakeError::File`] when a commit cannot be read.
    pub async fn before_number(self, lake: &Lake, version: u64, application: &str, number: i64) -> Result<Self, LakeError> {
        let mut reached = version;
        for next in version + 1..=self.version() {
            if self.transactions(lake, next).await?.iter().any(|(name, found)| name == application && *found > number) {
                break;
            }
            reached = next;
        }
        self.at_version(reached).await
    }

    /// The application transactions of a commit: name and number of each.
    async fn transactions(&self, lake: &Lake, version: u64) -> Result<Vec<(String, i64)>, LakeError> {
        let path = format!("{}/_delta_log/{version:020}.json", self.name);
        let unreadable = |message: String| LakeError::File { path: path.clone(), message };
        let commit = lake.read(&path).await?.ok_or_else(|| unreadable("it is gone".to_owned()))?;
        let mut found = Vec::new();
        for line in commit.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let action: serde_json::Value = serde_json::from_slice(line).map_err(|error| unreadable(error.to_string()))?;
            let transaction = &action["txn"];
            found.extend(transaction["appId"].as_str().map(str::to_owned).zip(transaction["version"].as_i64()));
        }
        Ok(found)
    }

    /// Its folder below the lake's root.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The same table of which only these rows are read: as it was when it had no others, though files of then are gone.
    #[must_use]
    pub fn with_rows(self, rows: Expr) -> Self {
        Self { rows: Some(rows), ..self }
    }

    /// The loaded version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.table.version().unwrap_or_default()
    }

    /// The Arrow schema of the loaded version.
    ///
    /// # Errors
    /// [`LakeError::Delta`].
    pub fn schema(&self) -> Result<SchemaRef, LakeError> {
        let schema = self.table.snapshot().map_err(|error| delta(self.name, error))?.schema();
        let arrow: Schema = schema.as_ref().try_into_arrow().map_err(|source| delta(self.name, DeltaTableError::Arrow { source }))?;
        Ok(Arc::new(arrow))
    }

    /// The rows of the loaded version, for DataFusion.
    ///
    /// # Errors
    /// [`LakeError::Delta`].
    pub fn provider(&self) -> Result<Arc<dyn TableProvider>, LakeError> {
        let scan: Arc<dyn TableProvider> = Arc::new(self.scan()?);
        let Some(rows) = &self.rows else { return Ok(scan) };
        let schema = scan.schema();
        let plan = LogicalPlanBuilder::scan(TableReference::bare(self.name), provider_as_source(scan), None)
            .and_then(|all| all.filter(rows.clone())?.build())
            .map_err(|error| delta(self.name, error.into()))?;
        Ok(Arc::new(OpaqueTable::new(schema, plan)))
    }

    fn scan(&self) -> Result<DeltaScanNext, LakeError> {
        let failed = |error| delta(self.name, error);
        let mut config = DeltaScanConfig::new().with_wrap_partition_values(false).with_parquet_pushdown(true);
        config.schema_force_view_types = false;
        let snapshot = self.table.snapshot().map_err(failed)?.snapshot().clone();
        DeltaScanNext::new(snapshot, config).map_err(|error| failed(error.into()))
    }

    /// The last number committed under `application`.
    ///
    /// # Errors
    /// [`LakeError::Delta`]: an unreadable answer never counts as none.
    pub async fn last_transaction(&self, application: &str) -> Result<Option<i64>, LakeError> {
        let failed = |error| delta(self.name, error);
        self.table.snapshot().map_err(failed)?.transaction_version(self.table.log_store().as_ref(), application).await.map_err(failed)
    }

    /// Whether this number of `application`, or a later one, was committed, be it in an attempt whose answer was lost.
    ///
    /// # Errors
    /// [`LakeError::Delta`].
    pub async fn has(&mut self, application: &str, number: i64) -> Result<bool, LakeError> {
        self.table.update_incremental(None).await.map_err(|error| delta(self.name, error))?;
        Ok(self.last_transaction(application).await?.is_some_and(|last| last >= number))
    }

    /// Appends `batches` as number `number` of `application`, once: if that number was committed before, nothing
    /// happens. An empty append still commits the number.
    ///
    /// # Errors
    /// [`LakeError::Fenced`] when somebody else wrote, otherwise [`LakeError::Delta`].
    pub async fn append(&mut self, batches: &[RecordBatch], application: &str, number: i64) -> Result<AppendOutcome, LakeError> {
        if self.has(application, number).await? {
            return Ok(AppendOutcome::AlreadyThere);
        }
        let mut actions = Vec::new();
        let schema = self.extended_schema(batches, &mut actions)?;
        actions.extend(self.write(batches, &schema).await?.into_iter().map(Action::Add));
        Failpoint::TableFilesWritten.reached();
        let operation = self.writing(SaveMode::Append);
        self.commit(actions, operation, application, number).await
    }

    fn writing(&self, mode: SaveMode) -> DeltaOperation {
        let partition_by = Some(self.partitions.iter().map(|name| (*name).to_owned()).collect());
        DeltaOperation::Write { mode, partition_by, predicate: None }
    }

    /// The table's schema, with nullable columns for those of the batches that it lacks.
    fn extended_schema(&self, batches: &[RecordBatch], actions: &mut Vec<Action>) -> Result<SchemaRef, LakeError> {
        let failed = |error| delta(self.name, error);
        let current = self.schema()?;
        let mut new: Vec<Field> = Vec::new();
        for field in batches.iter().flat_map(|batch| batch.schema().fields().iter().cloned().collect::<Vec<_>>()) {
            if current.field_with_name(field.name()).is_err() && !new.iter().any(|known| known.name() == field.name()) {
                new.push(field.as_ref().clone().with_nullable(true));
            }
        }
        if new.is_empty() {
            return Ok(current);
        }
        let fields: Vec<Field> = current.fields().iter().map(|field| field.as_ref().clone()).chain(new).collect();
        let extended = Schema::new(fields);
        let columns: StructType = (&extended).try_into_kernel().map_err(|source| failed(DeltaTableError::Arrow { source }))?;
        let metadata =
            self.table.snapshot().map_err(failed)?.metadata().clone().with_schema(&columns).map_err(|error| failed(error.into()))?;
        actions.push(Action::Metadata(metadata));
        let arrow: Schema = (&columns).try_into_arrow().map_err(|source| failed(DeltaTableError::Arrow { source }))?;
        Ok(Arc::new(arrow))
    }

    /// Writes the files of an append; a large one is encoded on all cores, into files of their own.
    async fn write(&self, batches: &[RecordBatch], schema: &SchemaRef) -> Result<Vec<deltalake_core::kernel::Add>, LakeError> {
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let writers = (rows / WRITER_ROWS).clamp(1, cores);
        let mut writing = JoinSet::new();
        for (number, batches) in deal(batches, rows.div_ceil(writers).max(1)).into_iter().enumerate() {
            let conformed = batches.iter().map(|batch| self.conform(batch, schema)).collect::<Result<Vec<_>, _>>()?;
            let mut writer = self.writer(schema)?;
            writing.spawn(async move {
                for batch in conformed {
                    writer.write(&batch).await?;
                }
                writer.close().await.map(|files| (number, files))
            });
        }
        let mut written = Vec::new();
        while let Some(files) = writing.join_next().await {
            let files = files.map_err(|error| DeltaTableError::generic(error.to_string())).flatten();
            written.push(files.map_err(|error| delta(self.name, error))?);
        }
        written.sort_unstable_by_key(|(number, _)| *number);
        Ok(written.into_iter().flat_map(|(_, files)| files).collect())
    }

    fn writer(&self, schema: &SchemaRef) -> Result<DeltaWriter, LakeError> {
        let failed = |error| delta(self.name, error);
        let statistics = WriterStatsConfig::from_config(self.table.snapshot().map_err(failed)?.snapshot().table_configuration());
        let level = ZstdLevel::try_new(1).unwrap_or_default();
        let properties =
            WriterProperties::builder().set_compression(Compression::ZSTD(level)).set_max_row_group_row_count(Some(ROW_GROUP_ROWS)).build();
        let partitions = self.partitions.iter().map(|name| (*name).to_owned()).collect();
        let config = WriterConfig::new(
            Arc::clone(schema),
            partitions,
            Some(properties),
            NonZeroU64::new(FILE_BYTES),
            None,
            statistics.num_indexed_cols,
            statistics.stats_columns,
        );
        Ok(DeltaWriter::new(self.table.object_store(), config))
    }

    /// The columns of the batch in the order of the table, absent ones as nulls.
    fn conform(&self, batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, LakeError> {
        let arrow = |source| delta(self.name, DeltaTableError::Arrow { source });
        let columns = schema
            .fields()
            .iter()
            .map(|field| match batch.column_by_name(field.name()) {
                Some(column) if column.data_type() == field.data_type() => Ok(Arc::clone(column)),
                Some(column) => {
                    let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
                    arrow::compute::cast_with_options(column, field.data_type(), &options).map_err(arrow)
                }
                None => Ok(arrow::array::new_null_array(field.data_type(), batch.num_rows())),
            })
            .collect::<Result<Vec<_>, LakeError>>()?;
        RecordBatch::try_new(Arc::clone(schema), columns).map_err(arrow)
    }

    async fn commit(
        &mut self,
        actions: Vec<Action>,
        operation: DeltaOperation,
        application: &str,
        number: i64,
    ) -> Result<AppendOutcome, LakeError> {
        let failed = |error| delta(self.name, error);
        let data = CommitData::new(actions, operation, HashMap::new(), vec![Transaction::new(application, number)]);
        let bytes = data.get_bytes().map_err(|error| failed(error.into()))?;
        let version = self.version() + 1;
        let log = self.table.log_store();
        match log.write_commit_entry(version, CommitOrBytes::LogBytes(bytes), Default::default()).await {
            Ok(()) => {
                Failpoint::TableCommitted.reached();
                self.table.update_incremental(Some(version)).await.map_err(failed)?;
                Ok(AppendOutcome::Committed(version))
            }
            Err(error) => {
                // The outcome is unknown: only the table itself can tell.
                self.table.update_incremental(None).await.map_err(failed)?;
                if self.last_transaction(application).await?.is_some_and(|last| last >= number) {
                    return Ok(AppendOutcome::Committed(self.version()));
                }
                Err(match error {
                    TransactionError::VersionAlreadyExists(_) => LakeError::Fenced { table: self.name.to_owned() },
                    other => failed(other.into()),
                })
            }
        }
    }
}

/// The rows in their order in parts of so many, each as slices of the batches; none without rows.
fn deal(batches: &[RecordBatch], rows: usize) -> Vec<Vec<RecordBatch>> {
    let mut parts: Vec<Vec<RecordBatch>> = Vec::new();
    let mut free = 0;
    for batch in batches {
        let mut start = 0;
        while start < batch.num_rows() {
            if free == 0 {
                parts.push(Vec::new());
                free = rows;
            }
            let length = free.min(batch.num_rows() - start);
            parts.last_mut().into_iter().for_each(|part| part.push(batch.slice(start, length)));
            start += length;
            free -= length;
        }
    }
    parts
}

fn delta(table: &str, source: DeltaTableError) -> LakeError {
    LakeError::Delta { table: table.to_owned(), source: Box::new(source) }
}
