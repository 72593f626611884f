//! Parquet files: columns by name, every value by its exact text.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, StringArray};
use arrow::datatypes::Schema;
use ratemill_schemas::exact_text::{is_exact, is_readable, texts};
use ratemill_schemas::usage::{Positions, RawRecords};
use ratemill_schemas::{Reason, UsageBatch};

use super::{Collector, DecodeContext, Fields, Place, Value};
use crate::mapping::Mapping;

/// Checks that the file has the columns that the mapping needs, in types that keep every digit.
///
/// # Errors
/// The reason and message with which the whole file is rejected.
pub fn check(schema: &Schema, mapping: &Mapping) -> Result<(), (Reason, String)> {
    for name in mapping.required_fields() {
        if schema.field_with_name(name).is_err() {
            let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            return Err((Reason::ColumnMissing, format!("no column `{name}`; the file has {}", columns.join(", "))));
        }
    }
    for field in schema.fields() {
        if mapping.uses(|name| name == field.name()) && !is_exact(field.data_type()) {
            let message = format!("column `{}` has type {}, which does not hold exact values", field.name(), field.data_type());
            return Err((Reason::ColumnTypeUnsupported, message));
        }
    }
    Ok(())
}

/// Reads one batch of the file `path`, whose first row is row `first_row` (from 1).
///
/// # Errors
/// When a column passes 2 GiB, which the size of batches prevents.
pub fn batch(
    context: &DecodeContext,
    mapping: &Mapping,
    path: &Arc<str>,
    first_row: u64,
    batch: &RecordBatch,
) -> Result<UsageBatch, arrow::error::ArrowError> {
    let columns = text_columns(batch);
    let positions = Positions::Line { path: Arc::clone(path), lines: Vec::with_capacity(batch.num_rows()) };
    let mut collector = Collector::new(context, mapping, positions, RawRecords::Columns, batch.num_rows());
    for (line, row) in (first_row..).zip(0..batch.num_rows()) {
        let mut fields = Fields::default();
        for (name, column, number) in &columns {
            let value = match column {
                column if column.is_null(row) => Value::Null,
                column if *number => Value::Number(Cow::Borrowed(column.value(row))),
                column => Value::Text(Cow::Borrowed(column.value(row))),
            };
            fields.push(name.as_str(), value);
        }
        let fields = Ok(fields);
        if !collector.record(&fields, Place::Line(line), b"", None)
            && let Ok(fields) = &fields
        {
            collector.set_last_raw(fields.to_json().into_bytes());
        }
    }
    collector.finish()
}

/// Each readable column as texts, and whether it holds numbers.
fn text_columns(batch: &RecordBatch) -> Vec<(String, StringArray, bool)> {
    let schema = batch.schema();
    let readable = schema.fields().iter().zip(batch.columns()).filter(|(field, _)| is_readable(field.data_type()));
    readable.map(|(field, column)| (field.name().clone(), texts(column), field.data_type().is_numeric())).collect()
}
