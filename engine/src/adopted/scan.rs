//! Scanning adopted files: row group by row group, the columns that are asked for, without the rows that are left out.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, ScalarValue};
use datafusion::datasource::TableType;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::union::UnionExec;
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection};
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;
use parquet::errors::ParquetError;
use ratemill_schemas::AdoptedFile;

use super::Part;
use super::file::LakeFile;
use crate::lake::Lake;

/// The `usage` table and adopted files, as one table.
#[derive(Debug)]
pub(super) struct WithAdopted {
    stored: Arc<dyn TableProvider>,
    adopted: AdoptedRows,
}

impl WithAdopted {
    pub(super) fn new(stored: Arc<dyn TableProvider>, adopted: AdoptedRows) -> Self {
        Self { stored, adopted }
    }
}

#[async_trait]
impl TableProvider for WithAdopted {
    fn schema(&self) -> SchemaRef {
        self.stored.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        self.adopted.supports_filters_pushdown(filters)
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let stored = self.stored.scan(state, projection, filters, limit).await?;
        let adopted = self.adopted.scan(state, projection, filters, limit).await?;
        UnionExec::try_new(vec![stored, adopted])
    }
}

/// The rows of adopted files as a table.
#[derive(Debug)]
pub(crate) struct AdoptedRows {
    lake: Lake,
    parts: Vec<Arc<Part>>,
    schema: SchemaRef,
}

impl AdoptedRows {
    pub(super) fn new(lake: Lake, parts: Vec<Arc<Part>>, schema: SchemaRef) -> Self {
        Self { lake, parts, schema }
    }

    /// The row groups that may have rows which fit the filters, dealt out to `partitions`.
    async fn deal(&self, filters: &[Expr], partitions: usize) -> Result<Vec<Vec<Unit>>> {
        let (times, positions) = (bounds(filters, "time"), bounds(filters, "log_position"));
        let meets = |bounds: &Range<i64>, first: i64, last: i64| first < bounds.end && last >= bounds.start;
        let mut units = Vec::new();
        for part in self.parts.iter().filter(|part| meets(&times, part.file.time_min, part.file.time_max)) {
            let metadata = part.metadata(&self.lake).await?;
            let mut first = 0;
            for (group, description) in metadata.metadata().row_groups().iter().enumerate() {
                let rows = usize::try_from(description.num_rows()).unwrap_or_default();
                let position = part.position.saturating_add(i64::try_from(first).unwrap_or(i64::MAX));
                if rows > 0 && meets(&positions, position, position.saturating_add(description.num_rows() - 1)) {
                    units.push(Unit { part: Arc::clone(part), metadata: metadata.clone(), group, rows: first..first + rows });
                }
                first += rows;
            }
        }
        let mut dealt: Vec<Vec<Unit>> = (0..partitions.clamp(1, units.len().max(1))).map(|_| Vec::new()).collect();
        let count = dealt.len();
        for (index, unit) in units.into_iter().enumerate() {
            dealt[index % count].push(unit);
        }
        Ok(dealt)
    }
}

#[async_trait]
impl TableProvider for AdoptedRows {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // They rule out files and row groups only.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(projection) => Arc::new(self.schema.project(projection)?),
            None => Arc::clone(&self.schema),
        };
        let dealt = self.deal(filters, state.config().target_partitions()).await?;
        let batch_rows = state.config().batch_size();
        let streams = dealt.into_iter().map(|units| {
            Arc::new(Units { lake: self.lake.clone(), units, schema: Arc::clone(&schema), batch_rows }) as Arc<dyn PartitionStream>
        });
        Ok(Arc::new(StreamingTableExec::try_new(Arc::clone(&schema), streams.collect(), None, [], false, limit)?))
    }
}

impl Part {
    /// The footer of the file, read once.
    async fn metadata(&self, lake: &Lake) -> Result<ArrowReaderMetadata> {
        let load = || async {
            let mut file = LakeFile::of(lake, &self.file);
            ArrowReaderMetadata::load_async(&mut file, ArrowReaderOptions::new()).await.map_err(|error| self.unreadable(error))
        };
        self.metadata.get_or_try_init(load).await.cloned()
    }

    fn unreadable(&self, source: ParquetError) -> DataFusionError {
        DataFusionError::External(Box::new(Unreadable { path: AdoptedFile::path(&self.file.content_hash), source }))
    }
}

/// Why an adopted file cannot be read; what the store or the file says stays its source, by which it is told from a mistake
/// in what is asked of it.
#[derive(Debug, thiserror::Error)]
#[error("the adopted file {path}, which holds usage, cannot be read: {source}")]
struct Unreadable {
    path: String,
    source: ParquetError,
}

/// A row group, and which rows of the file it has.
#[derive(Debug, Clone)]
struct Unit {
    part: Arc<Part>,
    metadata: ArrowReaderMetadata,
    group: usize,
    rows: Range<usize>,
}

impl Unit {
    /// The rows that are usage, as ranges counted from the start of the row group.
    fn kept(&self) -> Vec<Range<usize>> {
        let left_out = &self.part.left_out;
        let place = |row: usize| left_out.partition_point(|left| (*left as usize) < row);
        let mut kept = Vec::new();
        let mut from = self.rows.start;
        for left in &left_out[place(self.rows.start)..place(self.rows.end)] {
            let left = *left as usize;
            if from < left {
                kept.push(from - self.rows.start..left - self.rows.start);
            }
            from = left + 1;
        }
        if from < self.rows.end {
            kept.push(from - self.rows.start..self.rows.len());
        }
        kept
    }

    /// Its rows as `wanted` columns of usage.
    async fn read(self, lake: Lake, wanted: SchemaRef, batch_rows: usize) -> Result<impl futures::Stream<Item = Result<RecordBatch>>> {
        let columns = &self.part.file.columns;
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), columns.needed(self.metadata.schema(), &wanted));
        let kept = self.kept();
        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(LakeFile::of(&lake, &self.part.file), self.metadata.clone())
            .with_row_groups(vec![self.group])
            .with_projection(mask)
            .with_batch_size(batch_rows);
        let builder = if kept.iter().map(Range::len).sum::<usize>() == self.rows.len() {
            builder
        } else {
            builder.with_row_selection(RowSelection::from_consecutive_ranges(kept.iter().cloned(), self.rows.len()))
        };
        let stream = builder.build().map_err(|error| self.part.unreadable(error))?;
        let with_positions = wanted.field_with_name("log_position").is_ok();
        let first = self.part.position.saturating_add(i64::try_from(self.rows.start).unwrap_or(i64::MAX));
        let mut positions = kept.into_iter().flatten().map(move |row| first.saturating_add(i64::try_from(row).unwrap_or(i64::MAX)));
        let part = Arc::clone(&self.part);
        Ok(stream.map(move |batch| {
            let batch = batch.map_err(|error| part.unreadable(error))?;
            let positions: Vec<i64> = if with_positions { positions.by_ref().take(batch.num_rows()).collect() } else { Vec::new() };
            Ok(part.file.columns.to_usage(&batch, &wanted, &positions, part.ingested_at)?)
        }))
    }
}

/// Row groups that are read one after the other.
#[derive(Debug)]
struct Units {
    lake: Lake,
    units: Vec<Unit>,
    schema: SchemaRef,
    batch_rows: usize,
}

impl PartitionStream for Units {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (lake, schema, batch_rows) = (self.lake.clone(), Arc::clone(&self.schema), self.batch_rows);
        let wanted = Arc::clone(&schema);
        let read = move |unit: Unit| unit.read(lake.clone(), Arc::clone(&wanted), batch_rows);
        let batches = futures::stream::iter(self.units.clone()).then(read).try_flatten();
        Box::pin(RecordBatchStreamAdapter::new(schema, batches))
    }
}

/// The values of a column that conjunctive filters leave possible: instants in µs UTC, or numbers.
fn bounds(filters: &[Expr], column: &str) -> Range<i64> {
    let mut bounds = i64::MIN..i64::MAX;
    let mut rest: Vec<&Expr> = filters.iter().collect();
    while let Some(filter) = rest.pop() {
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { continue };
        if *op == Operator::And {
            rest.extend([left.as_ref(), right.as_ref()]);
            continue;
        }
        let (Some(name), Some(value), op) = (match (left.as_ref(), right.as_ref()) {
            (Expr::Column(name), Expr::Literal(value, _)) => (Some(name), number(value), Some(*op)),
            (Expr::Literal(value, _), Expr::Column(name)) => (Some(name), number(value), op.swap()),
            _ => (None, None, None),
        }) else {
            continue;
        };
        if name.name != column {
            continue;
        }
        match op {
            Some(Operator::Gt | Operator::GtEq) => bounds.start = bounds.start.max(value),
            Some(Operator::Lt | Operator::LtEq) => bounds.end = bounds.end.min(value.saturating_add(1)),
            Some(Operator::Eq) => bounds = bounds.start.max(value)..bounds.end.min(value.saturating_add(1)),
            _ => {}
        }
    }
    bounds
}

fn number(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::Int64(number) | ScalarValue::TimestampMicrosecond(number, _) => *number,
        ScalarValue::TimestampMillisecond(Some(number), _) => number.checked_mul(1000),
        ScalarValue::TimestampSecond(Some(number), _) => number.checked_mul(1_000_000),
        _ => None,
    }
}
