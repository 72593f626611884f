//! Live rows: what the usage log takes, as it takes it. The log is read beside the engine, which knows nothing of it.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use ratemill_rules::Rule;
use ratemill_schemas::UsageSchema;
use ratemill_schemas::time::format_instant;
use serde::Serialize;

use crate::log::{Frame, LogError, LogFollower};
use crate::query::with_exact_texts;

/// A file that became usage as it is.
#[derive(Serialize)]
struct AdoptedLine<'a> {
    record: &'a str,
    connector: Option<&'a str>,
    content_hash: &'a str,
    events: u64,
    time_min: String,
    time_max: String,
    ingested_at: String,
}

/// Which records are shown.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Those that came by this connector.
    pub connector: Option<String>,
    /// Events of this meter, and amendments that make one of it.
    pub meter: Option<String>,
    /// Events of this subject, and amendments that make one of it.
    pub subject: Option<String>,
    /// Events that one of these versions of a rule reads: those of its meters.
    pub rule: Option<Vec<Rule>>,
    /// Rejected records, instead of what was accepted.
    pub rejected: bool,
}

/// Follows the log of a project.
#[derive(Debug)]
pub struct Tap {
    follower: LogFollower,
    schema: Arc<UsageSchema>,
    wanted: Wanted,
}

impl Tap {
    /// Begins with what comes from now on, or with what the log still holds.
    ///
    /// # Errors
    /// [`LogError::Io`] when there is no log, or it cannot be read.
    pub fn open(log: &Path, schema: Arc<UsageSchema>, wanted: Wanted, held: bool) -> Result<Self, LogError> {
        let follower = if held { LogFollower::from_start(log)? } else { LogFollower::from_end(log)? };
        Ok(Self { follower, schema, wanted })
    }

    /// Position of the log that comes next.
    #[must_use]
    pub fn position(&self) -> i64 {
        self.follower.position()
    }

    /// Records that left the log before they were read.
    #[must_use]
    pub fn missed(&self) -> i64 {
        self.follower.missed()
    }

    /// The wanted records of the next frame, maybe none, each as a line of JSON; `None` where nothing new has come.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn lines(&mut self) -> Result<Option<Vec<String>>, LogError> {
        let Some(frame) = self.follower.next_frame()? else { return Ok(None) };
        self.shown(&frame).map(Some).map_err(|source| LogError::Arrow { path: "tap".into(), source })
    }

    fn shown(&self, frame: &Frame) -> Result<Vec<String>, ArrowError> {
        if self.wanted.rejected {
            return self.rejected(frame);
        }
        let (rows, changes) = frame.inputs_of_records();
        let mut lines = Vec::new();
        if let Some(usage) = frame.stored_usage(&self.schema)? {
            lines.extend(self.written("usage", &usage, &rows, ["meter", "subject"])?);
        }
        if let Some(stored) = frame.stored_changes(&self.schema)? {
            lines.extend(self.written("change", &stored, &changes, ["new_meter", "new_subject"])?);
        }
        lines.extend(self.files(frame)?);
        Ok(lines)
    }

    /// Files that became usage as they are: their rows are not read, and so not told apart.
    fn files(&self, frame: &Frame) -> Result<Vec<String>, ArrowError> {
        let (header, wanted) = (&frame.header, &self.wanted);
        if wanted.meter.is_some() || wanted.subject.is_some() || wanted.rule.is_some() {
            return Ok(Vec::new());
        }
        let inputs: Vec<&str> = header.inputs.iter().map(|progress| progress.input.as_str()).collect();
        if wanted.connector.as_deref().is_some_and(|name| !inputs.contains(&name)) {
            return Ok(Vec::new());
        }
        let shown = header.adopted.iter().map(|adopted| {
            let file = &adopted.file;
            let events = file.rows.saturating_sub(adopted.left_out.len() as u64);
            serde_json::to_string(&AdoptedLine {
                record: "file",
                connector: (inputs.len() == 1).then(|| inputs[0]),
                content_hash: &file.content_hash,
                events,
                time_min: format_instant(file.time_min),
                time_max: format_instant(file.time_max),
                ingested_at: format_instant(header.ingested_at),
            })
        });
        shown.collect::<Result<_, _>>().map_err(|error| ArrowError::ExternalError(error.into()))
    }

    fn rejected(&self, frame: &Frame) -> Result<Vec<String>, ArrowError> {
        let Some(rejected) = frame.stored_rejected()? else { return Ok(Vec::new()) };
        let inputs: Vec<Option<String>> = match rejected.column_by_name("connector") {
            Some(names) => names.as_string::<i32>().iter().map(|name| name.map(str::to_owned)).collect(),
            None => vec![None; rejected.num_rows()],
        };
        let inputs: Vec<Option<&str>> = inputs.iter().map(Option::as_deref).collect();
        self.written("rejected", &rejected, &inputs, ["meter", "subject"])
    }

    /// The wanted rows: what they are, by which connector they came, and their columns.
    fn written(
        &self,
        kind: &str,
        batch: &RecordBatch,
        inputs: &[Option<&str>],
        [meter, subject]: [&str; 2],
    ) -> Result<Vec<String>, ArrowError> {
        let wanted = &self.wanted;
        let texts = |name: &str| batch.column_by_name(name).map(|column| column.as_string::<i32>());
        let (meters, subjects) = (texts(meter), texts(subject));
        let value = |texts: Option<&'_ StringArray>, row: usize| {
            use arrow::array::Array;
            texts.filter(|texts| texts.is_valid(row)).map(|texts| texts.value(row).to_owned())
        };
        let is_wanted = |row: usize| {
            let meter = value(meters, row);
            wanted.connector.as_deref().is_none_or(|name| inputs.get(row).copied().flatten() == Some(name))
                && wanted.meter.as_ref().is_none_or(|name| meter.as_ref() == Some(name))
                && wanted.subject.as_ref().is_none_or(|name| value(subjects, row).as_ref() == Some(name))
                && wanted.rule.as_ref().is_none_or(|rule| meter.is_some_and(|meter| rule.iter().any(|rule| rule.reads(&meter))))
        };
        let mask: BooleanArray = (0..batch.num_rows()).map(|row| Some(is_wanted(row))).collect();
        let mut fields = vec![Field::new("record", DataType::Utf8, false), Field::new("connector", DataType::Utf8, true)];
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(StringArray::from(vec![kind; batch.num_rows()])), Arc::new(inputs.iter().copied().collect::<StringArray>())];
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            // The day is of the time; the connector is there.
            if !["day", "connector"].contains(&field.name().as_str()) {
                fields.push(field.as_ref().clone());
                columns.push(Arc::clone(column));
            }
        }
        let shown = filter_record_batch(&RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?, &mask)?;
        let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
        writer.write(&with_exact_texts(&shown)?)?;
        writer.finish()?;
        Ok(String::from_utf8_lossy(&writer.into_inner()).lines().map(str::to_owned).collect())
    }
}
