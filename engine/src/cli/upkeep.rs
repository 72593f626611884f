//! `ratemill upkeep`.

use clap::{Args, ValueEnum};

use super::{Failure, Project, stop_signal};
use crate::pipeline::{OpenError, Pipeline, shown};
use crate::upkeep::{UpkeepReport, at_once, look};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// `ratemill upkeep`
#[derive(Debug, Args)]
pub(super) struct Upkeep {
    #[command(flatten)]
    project: Project,
    /// Say what there is to do, and do nothing; also while an engine runs.
    #[arg(long)]
    dry_run: bool,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Upkeep {
    pub(super) async fn run(self) -> Result<(), Failure> {
        tokio::select! {
            outcome = self.keep() => outcome,
            () = stop_signal() => Err(Failure::interrupted()),
        }
    }

    async fn keep(&self) -> Result<(), Failure> {
        let folder = &self.project.folder;
        let report = if self.dry_run {
            look(folder).await?
        } else {
            let mut pipeline = Pipeline::open(folder, &shown(folder)).await?;
            let settings = pipeline.settings.upkeep;
            let report = at_once(&mut pipeline.epochs, settings).await;
            pipeline.close().await?;
            report.map_err(OpenError::from)?
        };
        match self.format {
            Format::Json => println!("{}", serde_json::to_string_pretty(&report).map_err(Failure::failed)?),
            Format::Text => print!("{}", text(&report)),
        }
        Ok(())
    }
}

fn text(report: &UpkeepReport) -> String {
    let mut lines = Vec::new();
    for table in &report.tables {
        let mut done = vec![format!("{} files, {} bytes", table.files, table.bytes)];
        if table.joined > 0 {
            let into = if report.dry_run { table.compactions } else { table.written };
            done.push(format!("{} joined into {into}", table.joined));
        }
        done.extend(table.checkpoint.map(|version| format!("Delta checkpoint of version {version}")));
        if table.removed > 0 {
            done.push(format!("{} old files removed", table.removed));
        }
        lines.push(format!("{:<16} {}", table.table, done.join("; ")));
    }
    if report.epoch_files_removed > 0 {
        lines.push(format!("{:<16} {} old files removed", "epochs", report.epoch_files_removed));
    }
    if report.adopted_files_removed > 0 {
        lines.push(format!("{:<16} {} files that became no usage removed", "adopted_files", report.adopted_files_removed));
    }
    if report.checkpoint_files_removed > 0 {
        lines.push(format!("{:<16} {} unfinished files removed", "checkpoints", report.checkpoint_files_removed));
    }
    if report.dry_run {
        lines.push("nothing was done (--dry-run)".to_owned());
    }
    lines.join("\n") + "\n"
}
