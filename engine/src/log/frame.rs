//! One frame: a header in JSON, then accepted usage, rejected records, and voids and amendments as Arrow IPC.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::array::{ArrayRef, Date32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use ratemill_schemas::files::FileClaim;
use ratemill_schemas::{AdoptedFile, EventKey, UsageSchema, changes, rejected, time};
use serde::{Deserialize, Serialize};

pub(super) const MAGIC: &[u8; 4] = b"RMLG";
pub(super) const HEAD: usize = 12;
/// Frames are far smaller; a length above this is damage.
pub(super) const PAYLOAD_MAX: usize = 1 << 30;

/// What an input has delivered with a frame.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct InputProgress {
    /// The connector.
    pub input: String,
    /// Its highest event time in the frame, µs UTC, if it moves a watermark.
    pub time_max: Option<i64>,
}

/// Records of a frame that came by one input, one after the other.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct InputRun {
    /// The input, by its place among those of the frame.
    pub input: usize,
    /// Usage events.
    pub rows: usize,
    /// Voids and amendments.
    pub changes: usize,
}

/// A file that a frame makes usage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoggedFile {
    /// The file.
    pub file: AdoptedFile,
    /// Its rows that are no usage, since their events were there before; ascending.
    pub left_out: Vec<u32>,
}

/// The header of a frame.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FrameHeader {
    /// Position of the first record.
    pub position: i64,
    /// Accepted usage events.
    pub rows: usize,
    /// Rejected records.
    pub rejected: usize,
    /// Voids and amendments.
    #[serde(default)]
    pub changes: usize,
    /// Duplicates that came with these submissions; they are not logged.
    pub duplicates: usize,
    /// When the frame was written, µs UTC.
    pub ingested_at: i64,
    /// What the inputs delivered.
    pub inputs: Vec<InputProgress>,
    /// Which records came by which input, in their order, where there are several inputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<InputRun>,
    /// Files whose rows are all at or before this frame.
    pub claims: Vec<FileClaim>,
    /// Files that are usage as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adopted: Vec<LoggedFile>,
    usage_bytes: usize,
    rejected_bytes: usize,
    #[serde(default)]
    changes_bytes: usize,
}

impl FrameHeader {
    /// Position after the last record.
    #[must_use]
    pub fn end(&self) -> i64 {
        self.adopted_from().saturating_add(i64::try_from(self.adopted_rows()).unwrap_or(i64::MAX))
    }

    /// Position of the first row of an adopted file: they come last.
    #[must_use]
    pub fn adopted_from(&self) -> i64 {
        self.position + i64::try_from(self.rows + self.rejected + self.changes + self.claims.len()).unwrap_or(i64::MAX)
    }

    fn adopted_rows(&self) -> u64 {
        self.adopted.iter().map(|adopted| adopted.file.rows).sum()
    }
}

/// A frame in memory.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Its header.
    pub header: FrameHeader,
    /// Accepted usage, in the decoded schema; `None` when there is none.
    pub usage: Option<RecordBatch>,
    /// Rejected records, in the logged schema; `None` when there are none.
    pub rejected: Option<RecordBatch>,
    /// Voids and amendments, in the schema that their decoders make; `None` when there are none.
    pub changes: Option<RecordBatch>,
    /// Bytes that it takes in the log.
    pub bytes: u64,
}

impl Frame {
    /// A frame of these records; the log gives it its position.
    #[must_use]
    pub fn new(
        usage: Option<RecordBatch>,
        rejected: Option<RecordBatch>,
        duplicates: usize,
        inputs: Vec<InputProgress>,
        claims: Vec<FileClaim>,
    ) -> Self {
        let usage = usage.filter(|batch| batch.num_rows() > 0);
        let rejected = rejected.filter(|batch| batch.num_rows() > 0);
        let header = FrameHeader {
            position: 0,
            rows: usage.as_ref().map_or(0, RecordBatch::num_rows),
            rejected: rejected.as_ref().map_or(0, RecordBatch::num_rows),
            changes: 0,
            duplicates,
            ingested_at: 0,
            inputs,
            runs: Vec::new(),
            claims,
            adopted: Vec::new(),
            usage_bytes: 0,
            rejected_bytes: 0,
            changes_bytes: 0,
        };
        Self { header, usage, rejected, changes: None, bytes: 0 }
    }

    /// The same frame with these voids and amendments.
    #[must_use]
    pub fn with_changes(mut self, changes: Option<RecordBatch>) -> Self {
        self.changes = changes.filter(|batch| batch.num_rows() > 0);
        self.header.changes = self.changes.as_ref().map_or(0, RecordBatch::num_rows);
        self
    }

    /// The same frame with these adopted files.
    #[must_use]
    pub fn with_adopted(mut self, adopted: Vec<LoggedFile>) -> Self {
        self.header.adopted = adopted;
        self
    }

    /// What waits for the lake with it: its bytes, and the keys of adopted files, which are in memory till then.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.bytes + self.header.adopted_rows() * size_of::<EventKey>() as u64
    }

    /// The same frame, saying which records came by which input: the names of inputs, with their usage events, voids and
    /// amendments, in the order of the records.
    #[must_use]
    pub fn with_runs<'n>(mut self, runs: impl Iterator<Item = (&'n str, usize, usize)>) -> Self {
        if self.header.inputs.len() < 2 {
            return self;
        }
        let found = &mut self.header.runs;
        for (name, rows, changes) in runs.filter(|(_, rows, changes)| rows + changes > 0) {
            let Some(input) = self.header.inputs.iter().position(|progress| progress.input == name) else { continue };
            match found.last_mut().filter(|last| last.input == input) {
                Some(last) => (last.rows, last.changes) = (last.rows + rows, last.changes + changes),
                None => found.push(InputRun { input, rows, changes }),
            }
        }
        self
    }

    /// The input of each usage event, and of each void and amendment; `None` where it was not noted.
    #[must_use]
    pub fn inputs_of_records(&self) -> (Vec<Option<&str>>, Vec<Option<&str>>) {
        let header = &self.header;
        if header.runs.is_empty() {
            let only = match header.inputs.as_slice() {
                [only] => Some(only.input.as_str()),
                _ => None,
            };
            return (vec![only; header.rows], vec![only; header.changes]);
        }
        let (mut rows, mut changes) = (Vec::with_capacity(header.rows), Vec::with_capacity(header.changes));
        for run in &header.runs {
            let name = header.inputs.get(run.input).map(|progress| progress.input.as_str());
            rows.extend(std::iter::repeat_n(name, run.rows));
            changes.extend(std::iter::repeat_n(name, run.changes));
        }
        rows.resize(header.rows, None);
        changes.resize(header.changes, None);
        (rows, changes)
    }

    /// Whether there is anything to log.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.header.end() == self.header.position
    }

    pub(super) fn encode(&mut self, position: i64, ingested_at: i64) -> Result<Vec<u8>, ArrowError> {
        let usage = encode(self.usage.as_ref())?;
        let rejected = encode(self.rejected.as_ref())?;
        let changes = encode(self.changes.as_ref())?;
        self.header.position = position;
        self.header.ingested_at = ingested_at;
        self.header.usage_bytes = usage.len();
        self.header.rejected_bytes = rejected.len();
        self.header.changes_bytes = changes.len();
        let header = serde_json::to_vec(&self.header).map_err(|error| ArrowError::ExternalError(error.into()))?;
        let header_bytes = u32::try_from(header.len()).map_err(|error| ArrowError::ExternalError(error.into()))?;
        let payload = 4 + header.len() + usage.len() + rejected.len() + changes.len();
        let length = u32::try_from(payload).ok().filter(|_| payload <= PAYLOAD_MAX);
        let length = length.ok_or_else(|| ArrowError::IpcError(format!("a frame of {payload} bytes is too large")))?;
        let mut bytes = Vec::with_capacity(HEAD + payload);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&header_bytes.to_le_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&usage);
        bytes.extend_from_slice(&rejected);
        bytes.extend_from_slice(&changes);
        let crc = crc32c::crc32c(&bytes[HEAD..]);
        bytes[8..HEAD].copy_from_slice(&crc.to_le_bytes());
        Ok(bytes)
    }

    /// Reads a payload whose checksum was right.
    pub(super) fn decode(payload: &[u8]) -> Result<Self, ArrowError> {
        let (header, body) = decode_header(payload)?;
        let (usage, rest) = body.split_at_checked(header.usage_bytes).ok_or_else(short)?;
        let (rejected, rest) = rest.split_at_checked(header.rejected_bytes).ok_or_else(short)?;
        let changes = rest.get(..header.changes_bytes).ok_or_else(short)?;
        Ok(Self {
            usage: decode(usage)?,
            rejected: decode(rejected)?,
            changes: decode(changes)?,
            header,
            bytes: (HEAD + payload.len()) as u64,
        })
    }

    /// The usage rows as the `usage` table stores them: with `ingested_at`, `log_position` and `day`.
    ///
    /// # Errors
    /// When the batch does not fit the schema.
    pub fn stored_usage(&self, schema: &UsageSchema) -> Result<Option<RecordBatch>, ArrowError> {
        let Some(usage) = &self.usage else { return Ok(None) };
        let rows = usage.num_rows();
        let mut columns = conform(usage, schema.decoded())?;
        let days: Date32Array =
            usage.column(4).as_primitive::<TimestampMicrosecondType>().iter().map(|time| time.map(time::day_of)).collect();
        columns.push(Arc::new(TimestampMicrosecondArray::from(vec![self.header.ingested_at; rows]).with_timezone("UTC")));
        columns.push(Arc::new((self.header.position..).take(rows).collect::<Int64Array>()));
        columns.push(Arc::new(days));
        RecordBatch::try_new(schema.stored().clone(), columns).map(Some)
    }

    /// The rejected rows as the `rejected` table stores them.
    ///
    /// # Errors
    /// When the batch does not fit the schema.
    pub fn stored_rejected(&self) -> Result<Option<RecordBatch>, ArrowError> {
        let Some(rejected) = &self.rejected else { return Ok(None) };
        let rows = rejected.num_rows();
        let first = self.header.position + i64::try_from(self.header.rows).unwrap_or_default();
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(TimestampMicrosecondArray::from(vec![self.header.ingested_at; rows]).with_timezone("UTC"))];
        columns.extend(rejected.columns().iter().cloned());
        columns.push(Arc::new((first..).take(rows).collect::<Int64Array>()));
        RecordBatch::try_new(rejected::schema(), columns).map(Some)
    }
}

impl Frame {
    /// The voids and amendments as the `changes` table stores them.
    ///
    /// # Errors
    /// When the batch does not fit the schema.
    pub fn stored_changes(&self, schema: &UsageSchema) -> Result<Option<RecordBatch>, ArrowError> {
        let Some(changes) = &self.changes else { return Ok(None) };
        let rows = changes.num_rows();
        let first = self.header.position + i64::try_from(self.header.rows + self.header.rejected).unwrap_or_default();
        let mut columns = conform(changes, &changes::decoded(schema))?;
        columns.push(Arc::new(TimestampMicrosecondArray::from(vec![self.header.ingested_at; rows]).with_timezone("UTC")));
        columns.push(Arc::new((first..).take(rows).collect::<Int64Array>()));
        RecordBatch::try_new(changes::stored(schema), columns).map(Some)
    }
}

/// The columns of `batch` in the order of `schema`: a dimension that was declared later is null in older frames.
fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<Vec<ArrayRef>, ArrowError> {
    schema
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(column) if column.data_type() == field.data_type() => Ok(Arc::clone(column)),
            Some(column) => Err(ArrowError::SchemaError(format!(
                "logged column `{}` has type {}, declared is {}",
                field.name(),
                column.data_type(),
                field.data_type()
            ))),
            None => Ok(arrow::array::new_null_array(field.data_type(), batch.num_rows())),
        })
        .collect()
}

pub(super) fn decode_header(payload: &[u8]) -> Result<(FrameHeader, &[u8]), ArrowError> {
    let (length, rest) = payload.split_first_chunk::<4>().ok_or_else(short)?;
    let (header, body) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(short)?;
    let header = serde_json::from_slice(header).map_err(|error| ArrowError::ExternalError(error.into()))?;
    Ok((header, body))
}

fn short() -> ArrowError {
    ArrowError::IpcError("the frame is shorter than its header says".to_owned())
}

fn encode(batch: Option<&RecordBatch>) -> Result<Vec<u8>, ArrowError> {
    let Some(batch) = batch else { return Ok(Vec::new()) };
    let mut writer = StreamWriter::try_new(Vec::with_capacity(batch.get_array_memory_size() + 4096), &batch.schema())?;
    writer.write(batch)?;
    writer.finish()?;
    writer.into_inner()
}

fn decode(bytes: &[u8]) -> Result<Option<RecordBatch>, ArrowError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    StreamReader::try_new(Cursor::new(bytes), None)?.next().transpose()
}

#[cfg(test)]
pub(crate) mod tests {
    use ratemill_schemas::files::FileState;

    use super::*;

    /// A frame of one record: a file that was taken.
    pub(crate) fn claim_frame() -> Frame {
        let claim = FileClaim {
            connector: "c".into(),
            path: "p".into(),
            etag: "e".into(),
            size: 1,
            content_hash: String::new(),
            state: FileState::Taken,
            rows: 1,
            rejected: 0,
        };
        Frame::new(None, None, 0, Vec::new(), vec![claim])
    }
}
