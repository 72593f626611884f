//! A state as bytes: Arrow IPC streams one after the other. The first has no rows: its metadata tells of which versions the
//! state is and holds a hash of what follows, which are the windows, then the rows of each aggregate, then what was before
//! the windows.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use ratemill_schemas::Window;
use sha2::{Digest, Sha256};

use super::Fold;
use super::opening::Openings;
use super::state::{Failure, FoldState, Partials, has_no_window};
use crate::functions::FUNCTIONS_VERSION;
use crate::rule::RuleWindow;

/// Changes when older bytes cannot be read any more.
const FORMAT: &str = "2";

/// Why a checkpoint cannot be used; the state is then made again from usage.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It is of another version of something.
    #[error("the checkpoint is of {what} `{found}`, wanted is `{wanted}`")]
    Other {
        /// Of what.
        what: &'static str,
        /// The version in the checkpoint.
        found: String,
        /// The version of the fold.
        wanted: String,
    },
    /// It is no checkpoint, or a damaged one.
    #[error("the checkpoint cannot be read")]
    Unreadable(#[from] ArrowError),
}

impl Fold {
    fn versions(&self) -> [(&'static str, String); 6] {
        [
            ("format", FORMAT.to_owned()),
            ("rule", self.rule.name.clone()),
            ("rule_version", self.rule.version.clone()),
            ("reference", self.reads.clone()),
            ("functions_version", FUNCTIONS_VERSION.to_owned()),
            ("plan", self.fingerprint.clone()),
        ]
    }
}

/// Hash of the bytes after the first stream.
const HASH: &str = "sha256";
/// Metadata of the windows: the number of the next one.
const NEXT: &str = "next";
/// Metadata of what was before the windows: from when on it is told apart.
const FROM: &str = "from";

fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn windows_schema() -> Schema {
    let number = |name| Field::new(name, DataType::Int64, false);
    let text = |name| Field::new(name, DataType::Utf8, true);
    Schema::new(vec![number("number"), number("window_start"), number("window_end"), text("contract_id"), text("failure")])
}

fn damaged(what: &str) -> ArrowError {
    ArrowError::IpcError(what.to_owned())
}

impl FoldState {
    /// The state as bytes, with the versions of rule, reference data, functions and format.
    ///
    /// # Errors
    /// [`CheckpointError::Unreadable`] when Arrow cannot write it.
    pub fn encode(&self) -> Result<Vec<u8>, CheckpointError> {
        let numbers = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
        let failures = self.windows.keys().map(|number| serde_json::to_string(self.failed.get(number)?).ok());
        let columns = vec![
            numbers(self.windows.keys().copied().collect()),
            numbers(self.windows.values().map(|rated| rated.window.start).collect()),
            numbers(self.windows.values().map(|rated| rated.window.end).collect()),
            Arc::new(self.windows.values().map(|rated| rated.contract_id.clone()).collect::<StringArray>()),
            Arc::new(failures.collect::<StringArray>()),
        ];
        let next = HashMap::from([(NEXT.to_owned(), self.next.to_string())]);
        let schema = Arc::new(windows_schema().with_metadata(next));
        let windows = RecordBatch::try_new(Arc::clone(&schema), columns)?;
        let mut state = Vec::new();
        write(&mut state, &schema, [&windows].into_iter())?;
        for (partials, (_, stages)) in self.points.iter().zip(&self.fold.points) {
            write(&mut state, &stages.state, partials.batches())?;
        }
        if let Some(carry) = &self.fold.carry {
            let (from, batches) = self.openings.encode();
            let from = HashMap::from([(FROM.to_owned(), from.to_string())]);
            write(&mut state, &Arc::new(carry.schema.as_ref().clone().with_metadata(from)), batches)?;
        }
        let versions = self.fold.versions().into_iter().chain([(HASH, hash(&state))]);
        let versions = versions.map(|(what, version)| (what.to_owned(), version)).collect();
        let mut bytes = Vec::with_capacity(state.len() + 1024);
        write(&mut bytes, &Arc::new(Schema::empty().with_metadata(versions)), std::iter::empty())?;
        bytes.extend(state);
        Ok(bytes)
    }

    /// The state that [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`CheckpointError::Other`] for a state of another version of rule, functions or format, or of reference tables that
    /// events are joined with, and
    /// [`CheckpointError::Unreadable`] for what is no state.
    pub fn decode(fold: &Arc<Fold>, bytes: &[u8]) -> Result<Self, CheckpointError> {
        let mut bytes = Cursor::new(bytes);
        let (versions, _) = read(&mut bytes)?;
        let version = |what: &str| versions.metadata().get(what).cloned().unwrap_or_default();
        for (what, wanted) in fold.versions() {
            let found = version(what);
            if found != wanted {
                return Err(CheckpointError::Other { what, found, wanted });
            }
        }
        let begin = usize::try_from(bytes.position()).unwrap_or(usize::MAX);
        if bytes.get_ref().get(begin..).is_none_or(|state| hash(state) != version(HASH)) {
            return Err(damaged("it is cut off or was changed").into());
        }
        let (schema, windows) = read(&mut bytes)?;
        if schema.fields() != windows_schema().fields() {
            return Err(damaged("other columns of windows").into());
        }
        let mut state = fold.state();
        let next = schema.metadata().get(NEXT).and_then(|next| next.parse().ok());
        state.next = next.ok_or_else(|| damaged("no next number"))?;
        for batch in &windows {
            state.read_windows(batch)?;
        }
        let mut points = Vec::with_capacity(fold.points.len());
        for (point, stages) in &fold.points {
            let (schema, batches) = read(&mut bytes)?;
            if schema.fields() != stages.state.fields() || batches.iter().any(|batch| has_no_window(batch, &point.windows)) {
                return Err(damaged("other columns of a state").into());
            }
            points.push(Partials::new(batches));
        }
        state.points = points;
        if let Some(carry) = &fold.carry {
            let (schema, batches) = read(&mut bytes)?;
            let from = schema.metadata().get(FROM).and_then(|from| from.parse().ok());
            let from = from.filter(|_| schema.fields() == carry.schema.fields()).ok_or_else(|| damaged("other columns of opening"))?;
            // Metadata of one stream is none of the rows.
            let rows = batches.into_iter().map(|batch| RecordBatch::try_new(Arc::clone(&carry.schema), batch.columns().to_vec()));
            state.openings = Openings::new(rows.collect::<Result<_, _>>()?, from);
        }
        Ok(state)
    }

    fn read_windows(&mut self, windows: &RecordBatch) -> Result<(), ArrowError> {
        let number = |column: usize| windows.column(column).as_primitive::<Int64Type>();
        let text = |column: usize, row: usize| {
            let column = windows.column(column).as_string::<i32>();
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        let mut known = BTreeMap::new();
        for row in 0..windows.num_rows() {
            let window = Window { start: number(1).value(row), end: number(2).value(row) };
            let rated = RuleWindow { window, contract_id: text(3, row) };
            known.insert(number(0).value(row), rated);
            if let Some(failure) = text(4, row) {
                let failure: Failure = serde_json::from_str(&failure).map_err(|error| damaged(&error.to_string()))?;
                self.failed.insert(number(0).value(row), failure);
            }
        }
        self.numbers.extend(known.iter().map(|(number, rated)| (rated.clone(), *number)));
        self.windows.extend(known);
        Ok(())
    }
}

fn write<'a>(bytes: &mut Vec<u8>, schema: &SchemaRef, batches: impl Iterator<Item = &'a RecordBatch>) -> Result<(), ArrowError> {
    let mut writer = StreamWriter::try_new(bytes, schema)?;
    for batch in batches {
        writer.write(batch)?;
    }
    writer.finish()
}

fn read(bytes: &mut Cursor<&[u8]>) -> Result<(SchemaRef, Vec<RecordBatch>), ArrowError> {
    let reader = StreamReader::try_new(bytes, None)?;
    let schema = reader.schema();
    Ok((schema, reader.collect::<Result<_, _>>()?))
}
