//! Adopted files in the lake: which there are, and their rows as a part of `usage`.

mod file;
mod keys;
mod scan;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use datafusion::catalog::TableProvider;
use datafusion::error::DataFusionError;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use ratemill_schemas::AdoptedFile;
use ratemill_schemas::adopted;
use tokio::sync::OnceCell;

use crate::lake::{Lake, LakeError, LakeTable};
use crate::log::FrameHeader;

pub(crate) use keys::keys;

/// An adopted file at its place in the log.
#[derive(Debug)]
pub struct Part {
    /// The file.
    pub file: AdoptedFile,
    /// Position of its first row.
    pub position: i64,
    /// When its frame was written, µs UTC.
    pub ingested_at: i64,
    /// Rows that are no usage, since their events were there before; ascending.
    pub left_out: Vec<u32>,
    metadata: OnceCell<ArrowReaderMetadata>,
}

impl Part {
    /// Its usage events.
    #[must_use]
    pub fn events(&self) -> usize {
        usize::try_from(self.file.rows).unwrap_or(usize::MAX).saturating_sub(self.left_out.len())
    }

    /// The files that a frame makes usage.
    pub fn of_frame(header: &FrameHeader) -> Vec<Arc<Self>> {
        let mut position = header.adopted_from();
        let mut parts = Vec::with_capacity(header.adopted.len());
        for adopted in &header.adopted {
            parts.push(Arc::new(Self {
                file: adopted.file.clone(),
                position,
                ingested_at: header.ingested_at,
                left_out: adopted.left_out.clone(),
                metadata: OnceCell::new(),
            }));
            position = position.saturating_add(i64::try_from(adopted.file.rows).unwrap_or(i64::MAX));
        }
        parts
    }
}

/// The adopted files of a lake.
#[derive(Debug, Clone)]
pub struct Adopted {
    lake: Lake,
    parts: BTreeMap<i64, Arc<Part>>,
}

impl Adopted {
    /// Those that this version of the `adopted` table names.
    ///
    /// # Errors
    /// [`DataFusionError`] when the table cannot be read.
    pub async fn load(context: &datafusion::prelude::SessionContext, lake: &Lake, table: &LakeTable) -> Result<Self, DataFusionError> {
        let provider = table.provider().map_err(|error| DataFusionError::External(error.into()))?;
        let mut loaded = Self { lake: lake.clone(), parts: BTreeMap::new() };
        for batch in context.read_table(provider)?.collect().await? {
            loaded.extend(parts_of(&batch)?);
        }
        Ok(loaded)
    }

    /// Adds files; what is there already stays as it is.
    pub fn extend(&mut self, parts: impl IntoIterator<Item = Arc<Part>>) {
        for part in parts {
            self.parts.entry(part.position).or_insert(part);
        }
    }

    /// What each is called by.
    pub(crate) fn content_hashes(&self) -> impl Iterator<Item = &str> {
        self.parts.values().map(|part| part.file.content_hash.as_str())
    }

    /// The `usage` table together with the rows of these files.
    #[must_use]
    pub fn over(&self, stored: Arc<dyn TableProvider>) -> Arc<dyn TableProvider> {
        if self.parts.is_empty() {
            return stored;
        }
        let parts = self.parts.values().cloned().collect();
        Arc::new(scan::WithAdopted::new(Arc::clone(&stored), self.rows(parts, stored.schema())))
    }

    /// The rows of `parts` in these columns of usage.
    pub(crate) fn rows(&self, parts: Vec<Arc<Part>>, schema: arrow::datatypes::SchemaRef) -> scan::AdoptedRows {
        scan::AdoptedRows::new(self.lake.clone(), parts, schema)
    }
}

/// Rows of the `adopted` table.
///
/// # Errors
/// When a file cannot be written as JSON.
pub(crate) fn rows_of(parts: &[Arc<Part>]) -> Result<RecordBatch, LakeError> {
    let failed = |message: String| LakeError::File { path: "adopted".to_owned(), message };
    let json = |part: &Arc<Part>| serde_json::to_string(&part.file).map_err(|error| failed(error.to_string()));
    let left_out = |part: &Arc<Part>| serde_json::to_string(&part.left_out).map_err(|error| failed(error.to_string()));
    let number = |rows: u64| i64::try_from(rows).unwrap_or(i64::MAX);
    RecordBatch::try_new(
        adopted::schema(),
        vec![
            Arc::new(TimestampMicrosecondArray::from_iter_values(parts.iter().map(|part| part.ingested_at)).with_timezone("UTC")),
            Arc::new(StringArray::from_iter_values(parts.iter().map(|part| &part.file.content_hash))),
            Arc::new(Int64Array::from_iter_values(parts.iter().map(|part| part.position))),
            Arc::new(Int64Array::from_iter_values(parts.iter().map(|part| number(part.file.rows)))),
            Arc::new(StringArray::from_iter_values(parts.iter().map(left_out).collect::<Result<Vec<_>, _>>()?)),
            Arc::new(StringArray::from_iter_values(parts.iter().map(json).collect::<Result<Vec<_>, _>>()?)),
        ],
    )
    .map_err(|error| failed(error.to_string()))
}

fn parts_of(batch: &RecordBatch) -> Result<Vec<Arc<Part>>, DataFusionError> {
    let column = |name: &str| {
        let missing = || DataFusionError::Execution(format!("the table `adopted` has no column `{name}`"));
        batch.column_by_name(name).ok_or_else(missing)
    };
    let unreadable = |error: serde_json::Error| DataFusionError::Execution(format!("a row of the table `adopted` cannot be read: {error}"));
    let times = column("adopted_at")?.as_primitive::<TimestampMicrosecondType>();
    let positions = column("log_position")?.as_primitive::<Int64Type>();
    let (left_out, files) = (column("left_out")?.as_string::<i32>(), column("file")?.as_string::<i32>());
    (0..batch.num_rows())
        .map(|row| {
            Ok(Arc::new(Part {
                file: serde_json::from_str(files.value(row)).map_err(unreadable)?,
                position: positions.value(row),
                ingested_at: times.value(row),
                left_out: serde_json::from_str(left_out.value(row)).map_err(unreadable)?,
                metadata: OnceCell::new(),
            }))
        })
        .collect()
}
