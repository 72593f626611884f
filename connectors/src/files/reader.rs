//! One file: read, decoded on all cores, submitted, claimed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use object_store::{ObjectMeta, ObjectStore};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use ratemill_schemas::files::{FileClaim, FileState};
use ratemill_schemas::{Reason, Rejection, UsageBatch};
use tokio::sync::mpsc;

use super::adoption::Adoption;
use super::chunks::{self, Chunk, Rows};
use super::config::{Compression, FileFormat, FilesConfig, FilesError, Records, of_name};
use super::content::Content;
use super::etag;
use crate::decode::csv::Header;
use crate::decode::ndjson::Shape;
use crate::decode::{DecodeContext, csv, ndjson, parquet as parquet_rows};
use crate::intake::{AdoptedRows, InputName, Intake, IntakeError, Receipt};
use crate::mapping::Mapping;

/// Chunks that are decoded or wait for the log at once.
const CHUNKS_UNDER_WAY: usize = 4;
/// What some programs write before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Rows of a Parquet batch.
const PARQUET_ROWS: usize = 16_384;

/// Why a file was not taken. It is tried again unless its content is at fault.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The store did not answer.
    #[error("object store: {0}")]
    Store(#[from] object_store::Error),
    /// A read failed.
    #[error("read: {0}")]
    Io(#[from] std::io::Error),
    /// The compressed data is damaged.
    #[error("the file is damaged or ends early: {source}")]
    Damaged {
        /// What the decompressor said.
        source: std::io::Error,
    },
    /// Larger than what may be held in memory at once.
    #[error("the file has more than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// A batch could not be built.
    #[error("decode: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// The engine is going down.
    #[error("the engine is stopping")]
    Stopped,
    /// The whole file is refused: its header, format or type.
    #[error("{message}")]
    Refused {
        /// The documented code.
        reason: Reason,
        /// What is wrong.
        message: String,
    },
}

/// Reads the files of one drop.
#[derive(Debug, Clone)]
pub struct FileReader {
    input: InputName,
    context: DecodeContext,
    intake: Intake,
    format: Option<FileFormat>,
    records: Records,
    cloud_events: Mapping,
    plain: Result<Mapping, String>,
    delimiter: u8,
    historical: bool,
    file_bytes_max: u64,
    rows_read: Arc<AtomicU64>,
    /// Where Parquet files are adopted; nowhere, where all rows go through the log.
    pub(super) adoption: Option<Adoption>,
}

/// What a file brought.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) rows: u64,
    pub(super) rejected: u64,
    pub(super) time_max: Option<i64>,
}

impl FileReader {
    /// A reader for the drop `config`; Parquet files are held in memory and may have `file_bytes_max` bytes.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn new(config: &FilesConfig, context: DecodeContext, intake: Intake, file_bytes_max: u64) -> Result<Self, FilesError> {
        let plain = Mapping::plain(&config.name, &config.mapping, &config.identity, &context.schema);
        let needs_mapping = config.records == Records::Plain || matches!(config.format, Some(FileFormat::Csv | FileFormat::Parquet));
        let plain = match plain {
            Err(source) if needs_mapping => return Err(FilesError::Mapping { name: config.name.clone(), source }),
            Err(crate::mapping::MappingError::NoIdentity) => Err(crate::mapping::MappingError::NoIdentity.to_string()),
            Err(source) => return Err(FilesError::Mapping { name: config.name.clone(), source }),
            Ok(mapping) => Ok(mapping),
        };
        Ok(Self {
            input: config.name.as_str().into(),
            cloud_events: Mapping::cloud_events(&context.schema, config.mapping.quantity.clone()),
            plain,
            context,
            intake,
            format: config.format,
            records: config.records,
            delimiter: config.delimiter_byte()?,
            historical: config.historical,
            file_bytes_max,
            rows_read: Arc::default(),
            adoption: None,
        })
    }

    /// The same reader, which adopts large Parquet files.
    #[must_use]
    pub fn adopting(self, adoption: Adoption) -> Self {
        Self { adoption: Some(adoption), ..self }
    }

    /// Name of the drop.
    #[must_use]
    pub fn input(&self) -> &InputName {
        &self.input
    }

    /// How its rows are decoded.
    #[must_use]
    pub fn context(&self) -> &DecodeContext {
        &self.context
    }

    /// Rows read so far, for a progress bar.
    #[must_use]
    pub fn rows_read(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.rows_read)
    }

    /// Reads `file`, submits its rows, and claims it once they are durable. A file at fault is claimed with a
    /// rejection, so that it stands in nobody's way.
    ///
    /// # Errors
    /// [`FileError`] when the store, the disk or the engine is at fault: then there is no claim, and it can be tried again.
    pub async fn take(&self, store: &Arc<dyn ObjectStore>, file: &ObjectMeta, path: &str) -> Result<FileClaim, FileError> {
        let mut tally = Tally::default();
        let (content_hash, fault) = match self.read(store, file, path, &mut tally).await {
            Ok(hash) => (hash, None),
            Err(FileError::Refused { reason, message }) => (String::new(), Some((reason, message))),
            Err(error @ FileError::Damaged { .. }) => (String::new(), Some((Reason::FileCompressionCorrupt, error.to_string()))),
            Err(error @ FileError::TooLarge { .. }) => (String::new(), Some((Reason::FileTooLarge, error.to_string()))),
            Err(error) => return Err(error),
        };
        let mut usage = UsageBatch::empty(&self.context.schema);
        if let Some((reason, message)) = fault {
            tracing::warn!(connector = %self.input, path, reason = reason.code(), message, "file rejected");
            usage.rejections.push(Rejection {
                index: 0,
                source: None,
                id: None,
                position: path.to_owned(),
                reason,
                message,
                raw: Vec::new(),
            });
            tally.rejected += 1;
        }
        usage.time_max = tally.time_max;
        let claim = FileClaim {
            connector: self.input.to_string(),
            path: path.to_owned(),
            etag: etag(file),
            size: file.size,
            content_hash,
            state: FileState::Taken,
            rows: tally.rows,
            rejected: tally.rejected,
        };
        self.submit(usage, vec![claim.clone()]).await?;
        Ok(claim)
    }

    /// Submits and waits until it is durable, as long as the log is full.
    ///
    /// # Errors
    /// [`FileError::Stopped`].
    pub(super) async fn submit(&self, usage: UsageBatch, claims: Vec<FileClaim>) -> Result<(), FileError> {
        loop {
            match self.intake.submit(&self.input, usage.copy(), claims.clone(), self.historical).await {
                Ok(_) => return Ok(()),
                Err(IntakeError::Full) => tokio::time::sleep(Duration::from_millis(200)).await,
                Err(IntakeError::Stopped) => return Err(FileError::Stopped),
            }
        }
    }

    /// Submits a file that is usage as it is.
    pub(super) async fn submit_adopted(&self, none: UsageBatch, rows: AdoptedRows) -> Result<Receipt, IntakeError> {
        self.intake.adopt(&self.input, none, rows, self.historical).await
    }

    /// Counts rows for the progress bar.
    pub(super) fn count_rows(&self, rows: u64) {
        self.rows_read.fetch_add(rows, Ordering::Relaxed);
    }

    async fn read(&self, store: &Arc<dyn ObjectStore>, file: &ObjectMeta, path: &str, tally: &mut Tally) -> Result<String, FileError> {
        let Some((format, compression)) = of_name(path, self.format) else {
            let message =
                format!("{path} is neither .csv, .ndjson, .jsonl nor .parquet (each also .gz or .zst); name it so, or set `format`");
            return Err(FileError::Refused { reason: Reason::FileUnreadable, message });
        };
        let name: Arc<str> = path.into();
        match format {
            FileFormat::Csv => self.text(store, file, &name, compression, Rows::Csv { delimiter: self.delimiter }, tally).await,
            FileFormat::Ndjson => self.text(store, file, &name, compression, Rows::Lines, tally).await,
            FileFormat::Parquet => self.parquet(store, file, &name, compression, tally).await,
        }
    }

    pub(super) fn mapping(&self) -> Result<&Mapping, FileError> {
        self.plain.as_ref().map_err(|message| FileError::Refused { reason: Reason::MissingId, message: message.clone() })
    }

    async fn text(
        &self,
        store: &Arc<dyn ObjectStore>,
        file: &ObjectMeta,
        path: &Arc<str>,
        compression: Compression,
        rows: Rows,
        tally: &mut Tally,
    ) -> Result<String, FileError> {
        let (sender, mut chunks) = mpsc::channel(2);
        let sending = tokio::spawn(chunks::send(Content::of(store, file), compression, rows, self.context.record_bytes_max, sender));
        let mut under_way = FuturesOrdered::new();
        let mut header = None;
        loop {
            tokio::select! {
                biased;
                Some(done) = under_way.next(), if !under_way.is_empty() => tally.add(&done?),
                chunk = chunks.recv(), if under_way.len() < CHUNKS_UNDER_WAY => {
                    let Some(mut chunk) = chunk else { break };
                    if chunk.first_line == 1 && chunk.bytes.starts_with(BYTE_ORDER_MARK) {
                        chunk.bytes.drain(..BYTE_ORDER_MARK.len());
                    }
                    if let Rows::Csv { delimiter } = rows && header.is_none() {
                        header = Some(self.take_header(&mut chunk, delimiter)?);
                    }
                    under_way.push_back(self.decode_and_submit(chunk, header.clone(), path));
                }
            }
        }
        while let Some(done) = under_way.next().await {
            tally.add(&done?);
        }
        let hash = sending.await.map_err(std::io::Error::other)??;
        if matches!(rows, Rows::Csv { .. }) && header.is_none() {
            return Err(FileError::Refused { reason: Reason::HeaderInvalid, message: format!("{path} is empty: not even a header") });
        }
        Ok(hash)
    }

    fn take_header(&self, chunk: &mut Chunk, delimiter: u8) -> Result<Header, FileError> {
        let refused = |(reason, message)| FileError::Refused { reason, message };
        let end = chunk.bytes.iter().position(|byte| *byte == b'\n').map_or(chunk.bytes.len(), |index| index + 1);
        if chunk.bytes[..end].trim_ascii_end().contains(&b'\r') {
            let message = "the lines end with CR alone; write CR LF or LF".to_owned();
            return Err(FileError::Refused { reason: Reason::HeaderInvalid, message });
        }
        let header = Header::read(&chunk.bytes[..end], delimiter, self.mapping()?).map_err(refused)?;
        chunk.bytes.drain(..end);
        chunk.first_line += 1;
        Ok(header)
    }

    fn decode_and_submit(
        &self,
        chunk: Chunk,
        header: Option<Header>,
        path: &Arc<str>,
    ) -> impl Future<Output = Result<Tally, FileError>> + use<> {
        let (reader, path) = (self.clone(), Arc::clone(path));
        let work = tokio::spawn(async move {
            let decoder = reader.clone();
            let usage = tokio::task::spawn_blocking(move || decoder.decode(&chunk, header.as_ref(), &path))
                .await
                .map_err(|error| FileError::Io(std::io::Error::other(error)))??;
            reader.submit_rows(usage).await
        });
        async move { work.await.map_err(|error| FileError::Io(std::io::Error::other(error)))? }
    }

    /// Submits rows; the watermark waits for the last of the file.
    async fn submit_rows(&self, mut usage: UsageBatch) -> Result<Tally, FileError> {
        let tally = Tally { rows: usage.records() as u64, rejected: usage.rejections.len() as u64, time_max: usage.time_max.take() };
        if tally.rows > 0 {
            self.submit(usage, Vec::new()).await?;
        }
        self.count_rows(tally.rows);
        Ok(tally)
    }

    fn decode(&self, chunk: &Chunk, header: Option<&Header>, path: &Arc<str>) -> Result<UsageBatch, FileError> {
        let (context, line, bytes) = (&self.context, chunk.first_line, &chunk.bytes);
        Ok(match (header, self.records) {
            (Some(header), _) => csv::chunk(context, self.mapping()?, header, path, line, bytes)?,
            (None, Records::CloudEvents) => ndjson::chunk(context, &self.cloud_events, Shape::CloudEvent, path, line, bytes)?,
            (None, Records::Plain) => ndjson::chunk(context, self.mapping()?, Shape::Plain, path, line, bytes)?,
        })
    }

    async fn parquet(
        &self,
        store: &Arc<dyn ObjectStore>,
        file: &ObjectMeta,
        path: &Arc<str>,
        compression: Compression,
        tally: &mut Tally,
    ) -> Result<String, FileError> {
        let (bytes, hash) = chunks::whole(Content::of(store, file), compression, self.file_bytes_max).await?;
        let unreadable = |error: parquet::errors::ParquetError| FileError::Refused {
            reason: Reason::FileUnreadable,
            message: format!("not a readable Parquet file: {error}"),
        };
        let bytes = Bytes::from(bytes);
        let builder = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).map_err(unreadable)?;
        parquet_rows::check(builder.schema(), self.mapping()?).map_err(|(reason, message)| FileError::Refused { reason, message })?;
        if compression == Compression::None && self.adopt(&bytes, &hash, tally).await? {
            return Ok(hash);
        }
        let mut batches = builder.with_batch_size(PARQUET_ROWS).build().map_err(unreadable)?;
        let mut under_way = FuturesOrdered::new();
        let mut row = 1;
        loop {
            if under_way.len() >= CHUNKS_UNDER_WAY {
                if let Some(done) = under_way.next().await {
                    tally.add(&done?);
                }
                continue;
            }
            let next = tokio::task::block_in_place(|| batches.next());
            let Some(batch) = next else { break };
            let batch = batch.map_err(|error| FileError::Refused {
                reason: Reason::FileUnreadable,
                message: format!("not a readable Parquet file: {error}"),
            })?;
            let rows = batch.num_rows() as u64;
            under_way.push_back(self.decode_parquet(batch, row, path));
            row += rows;
        }
        while let Some(done) = under_way.next().await {
            tally.add(&done?);
        }
        Ok(hash)
    }

    fn decode_parquet(
        &self,
        batch: RecordBatch,
        first_row: u64,
        path: &Arc<str>,
    ) -> impl Future<Output = Result<Tally, FileError>> + use<> {
        let (reader, path) = (self.clone(), Arc::clone(path));
        let work = tokio::spawn(async move {
            let decoder = reader.clone();
            let usage = tokio::task::spawn_blocking(move || -> Result<UsageBatch, FileError> {
                parquet_rows::batch(&decoder.context, decoder.mapping()?, &path, first_row, &batch).map_err(|error| FileError::Refused {
                    reason: Reason::ColumnTypeUnsupported,
                    message: format!("a value of the file cannot be read: {error}"),
                })
            })
            .await
            .map_err(|error| FileError::Io(std::io::Error::other(error)))??;
            reader.submit_rows(usage).await
        });
        async move { work.await.map_err(|error| FileError::Io(std::io::Error::other(error)))? }
    }
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.rejected += other.rejected;
        self.time_max = self.time_max.max(other.time_max);
    }
}
