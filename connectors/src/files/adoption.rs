//! Adopting a Parquet file: its bytes are kept as they are, and only the keys of its rows are looked at.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use object_store::path::Path;
use object_store::{ObjectStore, PutMode, PutOptions};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use ratemill_schemas::adopted::{AdoptedColumns, AdoptedFile, all_good};
use ratemill_schemas::{EventKey, UsageBatch, UsageSchema, time};
use tokio::sync::RwLock;

use super::reader::{FileError, FileReader, Tally};
use crate::decode::DecodeContext;
use crate::intake::{AdoptedRows, IntakeError};

/// Rows of a batch.
const ROWS: usize = 16_384;
/// Row groups that are read at once.
const GROUPS_UNDER_WAY: usize = 2;

/// The store that keeps adopted files.
#[derive(Debug, Clone)]
pub struct Adoption {
    /// The store.
    pub store: Arc<dyn ObjectStore>,
    /// The folder in it below which they lie.
    pub root: Path,
    /// Files with fewer bytes are read row by row: their rows are better kept together with others.
    pub bytes_min: u64,
    /// Held from before a file is kept until the log names it: a file that nobody names may be removed.
    pub under_way: Arc<RwLock<()>>,
}

/// What was seen of the rows of a row group.
struct Seen {
    group: usize,
    keys: Vec<EventKey>,
    /// The earliest and the latest time.
    times: Option<(i64, i64)>,
}

impl Adoption {
    /// The path of the file with this content.
    fn path(&self, content_hash: &str) -> Path {
        AdoptedFile::path(content_hash).split('/').fold(self.root.clone(), |path, part| path.join(part))
    }

    /// Keeps the content under its hash; it is durable when this returns.
    async fn keep(&self, content_hash: &str, bytes: Bytes) -> Result<(), object_store::Error> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(&self.path(content_hash), bytes.into(), options).await {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl FileReader {
    /// Adopts the file, if it can be; `false` says that its rows have to be read one by one, and nothing was done.
    pub(super) async fn adopt(&self, bytes: &Bytes, content_hash: &str, tally: &mut Tally) -> Result<bool, FileError> {
        let Some(adoption) = self.adoption.as_ref().filter(|adoption| bytes.len() as u64 >= adoption.bytes_min) else { return Ok(false) };
        let Ok(metadata) = ArrowReaderMetadata::load(bytes, ArrowReaderOptions::new()) else { return Ok(false) };
        let context = self.context();
        let Some(columns) = self.mapping()?.adopted(metadata.schema(), &context.schema).map(Arc::new) else { return Ok(false) };
        let _under_way = adoption.under_way.read().await;
        let kept = {
            let (adoption, hash, bytes) = (adoption.clone(), content_hash.to_owned(), bytes.clone());
            tokio::spawn(async move { adoption.keep(&hash, bytes).await })
        };
        let seen = look_at_all(context, &metadata, &columns, bytes).await?;
        let kept = kept.await.map_err(|error| FileError::Io(std::io::Error::other(error)))?;
        if let Err(error) = kept {
            tracing::warn!(%error, "the store does not take the file; its rows go into the usage log");
            return Ok(false);
        }
        let Some(seen) = seen else { return Ok(false) };
        let keys: Vec<EventKey> = seen.iter().flat_map(|seen| seen.keys.iter().copied()).collect();
        let rows = keys.len() as u64;
        let times = seen.iter().filter_map(|seen| seen.times).reduce(|(min, max), (earliest, latest)| (min.min(earliest), max.max(latest)));
        let Some((time_min, time_max)) = times else { return Ok(false) };
        drop(seen);
        let file = AdoptedFile {
            content_hash: content_hash.to_owned(),
            bytes: bytes.len() as u64,
            rows,
            time_min,
            time_max,
            columns: columns.as_ref().clone(),
        };
        // Where the log is full, the rows are read one by one, and wait there.
        let none = UsageBatch::empty(&context.schema);
        match self.submit_adopted(none, AdoptedRows { file, keys }).await {
            Ok(receipt) if receipt.verdicts.iter().any(|verdict| verdict.conflict().is_some()) => Ok(false),
            Ok(_) => {
                tally.add(&Tally { rows, rejected: 0, time_max: Some(time_max) });
                self.count_rows(rows);
                Ok(true)
            }
            Err(IntakeError::Full) => Ok(false),
            Err(IntakeError::Stopped) => Err(FileError::Stopped),
        }
    }
}

/// The keys of all rows by row group, on all cores; `None` where a row is not good, or the file has none.
async fn look_at_all(
    context: &DecodeContext,
    metadata: &ArrowReaderMetadata,
    columns: &Arc<AdoptedColumns>,
    bytes: &Bytes,
) -> Result<Option<Vec<Seen>>, FileError> {
    let mut under_way = FuturesUnordered::new();
    let mut groups = 0..metadata.metadata().num_row_groups();
    let mut all = Vec::with_capacity(groups.len());
    loop {
        while under_way.len() < GROUPS_UNDER_WAY
            && let Some(group) = groups.next()
        {
            let (context, metadata, columns, bytes) = (context.clone(), metadata.clone(), Arc::clone(columns), bytes.clone());
            under_way.push(tokio::task::spawn_blocking(move || look_at(&context, metadata, &columns, bytes, group)));
        }
        match under_way.next().await {
            Some(done) => match done.map_err(|error| FileError::Io(std::io::Error::other(error)))? {
                Some(seen) => all.push(seen),
                None => return Ok(None),
            },
            None => break,
        }
    }
    all.sort_unstable_by_key(|seen| seen.group);
    Ok(Some(all).filter(|all| all.iter().any(|seen| !seen.keys.is_empty())))
}

/// `None` where a row is not good or cannot be read: reading it by itself says why.
fn look_at(context: &DecodeContext, metadata: ArrowReaderMetadata, columns: &AdoptedColumns, bytes: Bytes, group: usize) -> Option<Seen> {
    let wanted = without_attributes(&context.schema);
    let needed = columns.needed(metadata.schema(), &wanted);
    let mask = ProjectionMask::roots(metadata.parquet_schema(), needed);
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, metadata);
    let batches = builder.with_row_groups(vec![group]).with_projection(mask).with_batch_size(ROWS).build().ok()?;
    let time_limit = time::now().saturating_add(context.future_skew);
    let mut seen = Seen { group, keys: Vec::new(), times: None };
    for batch in batches {
        let usage = columns.to_usage(&batch.ok()?, &wanted, &[], 0).ok()?;
        if !all_good(&usage, time_limit) {
            return None;
        }
        seen.keys.append(&mut context.schema.keys(&usage, &context.hasher).ok()?);
        let times = usage.column_by_name("time")?.as_primitive::<TimestampMicrosecondType>();
        for time in times.values() {
            let (min, max) = seen.times.unwrap_or((*time, *time));
            seen.times = Some((min.min(*time), max.max(*time)));
        }
    }
    Some(seen)
}

/// The columns that keys are made of.
fn without_attributes(schema: &UsageSchema) -> arrow::datatypes::SchemaRef {
    let fields: Vec<_> = schema.decoded().fields().iter().filter(|field| field.name() != "attributes").cloned().collect();
    Arc::new(arrow::datatypes::Schema::new(fields))
}
