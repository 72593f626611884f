//! Batches on stdout, as a table for people and as CSV or JSON for programs.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches_with_options;
use clap::ValueEnum;

use super::Failure;
use crate::query::with_exact_texts;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Csv,
    Json,
    Ndjson,
}

/// Writes a batch; decimals are exact texts in every format.
pub(crate) fn print(batch: &RecordBatch, format: Format) -> Result<(), Failure> {
    let batch = with_exact_texts(batch).map_err(Failure::failed)?;
    let stdout = std::io::stdout().lock();
    match format {
        Format::Table => println!("{}", render(&batch)?),
        Format::Csv => arrow::csv::Writer::new(stdout).write(&flat(&batch)?).map_err(Failure::failed)?,
        Format::Ndjson => {
            let mut writer = arrow::json::LineDelimitedWriter::new(stdout);
            writer.write(&batch).and_then(|()| writer.finish()).map_err(Failure::failed)?;
        }
        Format::Json => {
            let mut writer = arrow::json::ArrayWriter::new(stdout);
            writer.write(&batch).and_then(|()| writer.finish()).map_err(Failure::failed)?;
            println!();
        }
    }
    Ok(())
}

/// Nested columns, which CSV cannot hold, as texts.
fn flat(batch: &RecordBatch) -> Result<RecordBatch, Failure> {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if column.data_type().is_nested() {
            let options = FormatOptions::default();
            let formatter = ArrayFormatter::try_new(column, &options).map_err(Failure::failed)?;
            let texts: StringArray = (0..column.len()).map(|row| column.is_valid(row).then(|| formatter.value(row).to_string())).collect();
            fields.push(Field::new(field.name(), DataType::Utf8, true));
            columns.push(Arc::new(texts));
        } else {
            fields.push(field.as_ref().clone());
            columns.push(Arc::clone(column));
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(Failure::failed)
}

/// Texts as a table with lines.
pub(crate) fn rows_of_texts<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> Result<String, Failure> {
    let columns = titles.iter().enumerate().map(|(index, title)| {
        let texts: StringArray = rows.iter().map(|row| Some(row[index].as_str())).collect();
        (*title, Arc::new(texts) as ArrayRef)
    });
    render(&RecordBatch::try_from_iter(columns).map_err(Failure::failed)?)
}

/// The batch as a table with lines.
pub(crate) fn render(batch: &RecordBatch) -> Result<String, Failure> {
    let batch = with_exact_texts(batch).map_err(Failure::failed)?;
    let options = FormatOptions::default().with_null("");
    pretty_format_batches_with_options(&[batch], &options).map(|table| table.to_string()).map_err(Failure::failed)
}
