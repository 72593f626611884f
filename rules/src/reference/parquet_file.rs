//! A reference table that is kept as Parquet, as the CSV text that the loader reads: values are exact in both.

use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Decimal128Type, Schema, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use ratemill_schemas::decimal::{DECIMAL, Decimal};
use ratemill_schemas::time::format_instant;

/// Rows of a reference table: beyond this it is no table to keep in memory.
const ROWS_MAX: i64 = 10_000_000;

/// The file as CSV with a header.
///
/// # Errors
/// A file that is no Parquet, or a column whose values would not come out exactly.
pub(super) fn as_csv(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| format!("is no Parquet file: {error}"))?;
    let rows = builder.metadata().file_metadata().num_rows();
    if rows > ROWS_MAX {
        return Err(format!("has {rows} rows; a reference table has at most {ROWS_MAX}"));
    }
    let schema = builder.schema().clone();
    check_types(&schema)?;
    let reader = builder.build().map_err(|error| error.to_string())?;
    let mut csv = csv::Writer::from_writer(Vec::new());
    let wrong = |error: csv::Error| error.to_string();
    csv.write_record(schema.fields().iter().map(|field| field.name())).map_err(wrong)?;
    for batch in reader {
        let batch = batch.map_err(|error| error.to_string())?;
        for row in 0..batch.num_rows() {
            let cells: Result<Vec<String>, String> = batch.columns().iter().map(|column| cell(column, row)).collect();
            csv.write_record(cells?).map_err(wrong)?;
        }
    }
    let bytes = csv.into_inner().map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

fn check_types(schema: &Schema) -> Result<(), String> {
    for field in schema.fields() {
        let exact = match field.data_type() {
            DataType::Decimal128(_, scale) => (0..=18).contains(scale),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean | DataType::Date32 | DataType::Null => true,
            DataType::Timestamp(unit, zone) => zone.is_some() && *unit != TimeUnit::Nanosecond,
            other => other.is_integer(),
        };
        if !exact {
            return Err(format!(
                "column `{}` is {}; it can be a text, whole number, DECIMAL with up to 18 places, boolean, date, or timestamp with a zone in µs",
                field.name(),
                field.data_type()
            ));
        }
    }
    Ok(())
}

fn cell(column: &ArrayRef, row: usize) -> Result<String, String> {
    if column.is_null(row) {
        return Ok(String::new());
    }
    let cast = |to: &DataType| arrow::compute::cast(&column.slice(row, 1), to).map_err(|error| error.to_string());
    match column.data_type() {
        DataType::Decimal128(..) => {
            let raw = cast(&DECIMAL)?.as_primitive::<Decimal128Type>().value(0);
            Decimal::from_raw(raw).map(|value| value.to_string()).map_err(|error| format!("a decimal {error}"))
        }
        DataType::Timestamp(..) => {
            let instants = cast(&ratemill_schemas::time::instant_type())?;
            Ok(format_instant(instants.as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(0)))
        }
        _ => {
            let formatter = ArrayFormatter::try_new(column, &FormatOptions::default()).map_err(|error| error.to_string())?;
            Ok(formatter.value(row).to_string())
        }
    }
}
