//! `ratemill audit`: the ledger against a fresh rating.

use clap::{Args, ValueEnum};

use super::{Failure, Project, stop_signal};
use crate::pipeline::{open_audit, shown};
use crate::query::QueryError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// `ratemill audit`
#[derive(Debug, Args)]
pub(super) struct Audit {
    #[command(flatten)]
    project: Project,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Audit {
    pub(super) async fn run(self) -> Result<(), Failure> {
        tokio::select! {
            outcome = self.audit() => outcome,
            () = stop_signal() => Err(Failure::interrupted()),
        }
    }

    async fn audit(&self) -> Result<(), Failure> {
        let folder = &self.project.folder;
        let Some(audit) = open_audit(folder, &shown(folder)).await? else {
            return Err(QueryError::Empty(shown(folder)).into());
        };
        let report = audit.run().await.map_err(crate::pipeline::OpenError::from)?;
        match (self.format, &report.first) {
            (Format::Json, _) => println!("{}", serde_json::to_string_pretty(&report).map_err(Failure::failed)?),
            (Format::Text, Some(first)) => println!("{first}"),
            (Format::Text, None) => println!(
                "the ledger is what {} published windows are worth: {} charges and {} sums per customer and period agree, as of epoch {}",
                report.windows, report.charges, report.sums, report.epoch
            ),
        }
        if report.waiting > 0 {
            eprintln!("{} windows have late usage that is not rated yet and were not compared", report.waiting);
        }
        match report.differences {
            0 => Ok(()),
            1 => Err(Failure::mismatch("the ledger differs from a fresh rating in 1 place")),
            places => {
                Err(Failure::mismatch(format!("the ledger differs from a fresh rating in {places} places, of which the first is shown")))
            }
        }
    }
}
