//! Batches on stdout, as a table for people and as CSV or JSON for programs.

use arrow::array::RecordBatch;
use arrow::util::display::FormatOptions;
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
        Format::Csv => arrow::csv::Writer::new(stdout).write(&batch).map_err(Failure::failed)?,
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

/// The batch as a table with lines.
pub(crate) fn render(batch: &RecordBatch) -> Result<String, Failure> {
    let batch = with_exact_texts(batch).map_err(Failure::failed)?;
    let options = FormatOptions::default().with_null("");
    pretty_format_batches_with_options(&[batch], &options).map(|table| table.to_string()).map_err(Failure::failed)
}
