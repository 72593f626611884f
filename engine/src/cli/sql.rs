//! `ratemill sql`.

use clap::Args;

use super::table::{Format, print};
use super::{Failure, Project};
use crate::query::Reader;

/// `ratemill sql -c "SELECT …"`
#[derive(Debug, Args)]
pub(super) struct Sql {
    #[command(flatten)]
    project: Project,
    /// One SELECT over usage, charges, rejected, files, invoice_lines, invoice_totals, closed_periods or a reference table.
    #[arg(short = 'c', long, value_name = "SQL")]
    command: String,
    /// How rows are written; decimals are exact texts.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

impl Sql {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let reader = Reader::open(&self.project.folder).await?;
        let batch = reader.query(&self.command).await?;
        print(&batch, self.format)
    }
}
