//! `ratemill rate`: files in, charges out, once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Decimal128Type;
use clap::Args;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use object_store::local::LocalFileSystem;
use object_store::path::Path as StorePath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};
use ratemill_connectors::files::{Claims, FileReader, FilesConfig};
use ratemill_connectors::mapping::FieldRef;
use ratemill_schemas::{Decimal, windows};

use super::table::{Format, print};
use super::{Failure, Project, stop_signal};
use crate::epoch::{EpochError, EpochReport, Finalize};
use crate::pipeline::{OpenError, Pipeline, shown};
use crate::query::Reader;

/// `ratemill rate --usage FILES`
#[derive(Debug, Args)]
pub(super) struct Rate {
    #[command(flatten)]
    project: Project,
    /// Usage files or folders: .ndjson (CloudEvents), .csv, .parquet, each also .gz or .zst.
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present = "re_rate")]
    usage: Vec<PathBuf>,
    /// Read the files as this [[files]] drop of ratemill.toml would: its mapping, identity and name.
    #[arg(long = "as", value_name = "NAME")]
    as_drop: Option<String>,
    /// First day (in the invoicing time zone) or instant whose windows are made final.
    #[arg(long, value_name = "DATE")]
    from: Option<String>,
    /// First day or instant whose windows are no longer made final; by default the last event time.
    #[arg(long, value_name = "DATE")]
    to: Option<String>,
    /// Make all windows with usage final, also those that have not ended by the last event.
    #[arg(long, conflicts_with = "to")]
    close: bool,
    /// Rate published windows of the range again with the present rules and reference data, and post the difference.
    #[arg(long)]
    re_rate: bool,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

impl Rate {
    pub(super) async fn run(self) -> Result<(), Failure> {
        tokio::select! {
            outcome = self.rate() => outcome,
            () = stop_signal() => Err(Failure::interrupted()),
        }
    }

    async fn rate(&self) -> Result<(), Failure> {
        let folder = &self.project.folder;
        let mut pipeline = Pipeline::open(folder, &shown(folder)).await?;
        let files = self.files()?;
        let config = self.drop_config(&pipeline)?;
        let reader = pipeline.file_reader(&config)?;
        let claims = pipeline.claims_of(&config.name);
        let mut capturing = tokio::spawn(capture(reader, claims, files));
        // Usage goes into the lake beside capture; nothing closes before the last event time is known.
        let mut reports = Vec::new();
        let captured = loop {
            tokio::select! {
                captured = &mut capturing => break captured.map_err(Failure::failed)?,
                () = pipeline.progress.grown.notified() => {
                    if pipeline.progress.undrained_bytes.load(Ordering::Acquire) >= pipeline.settings.epoch_bytes {
                        reports.extend(pipeline.epochs.run(Finalize::Nothing).await.map_err(OpenError::from)?);
                    }
                }
            }
        };
        reports.extend(pipeline.epochs.run(Finalize::Nothing).await.map_err(OpenError::from)?);
        let finalize = self.range(&pipeline)?;
        reports.extend(pipeline.epochs.run(finalize).await.map_err(OpenError::from)?);
        let failures: Vec<String> = reports.iter().flat_map(|report| report.failures.clone()).collect();
        summary(&reports);
        let provisional = provisional(&pipeline).await;
        pipeline.close().await?;
        let reader = Reader::open(folder).await?;
        let totals = reader
            .query("SELECT billing_period, currency, count(DISTINCT customer_id) AS customers, sum(lines) AS lines, sum(billed) AS billed FROM invoice_totals GROUP BY billing_period, currency ORDER BY billing_period, currency")
            .await?;
        print(&totals, self.format)?;
        provisional?;
        captured?;
        if failures.is_empty() { Ok(()) } else { Err(Failure::rules(failures.join("\n"))) }
    }

    fn files(&self) -> Result<Vec<PathBuf>, Failure> {
        let mut files = Vec::new();
        for path in &self.usage {
            let failed = |error: std::io::Error| Failure::usage(format!("cannot read {}: {error}", path.display()));
            let path = std::fs::canonicalize(path).map_err(failed)?;
            if path.is_dir() {
                let mut inside: Vec<PathBuf> =
                    std::fs::read_dir(&path).map_err(failed)?.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
                inside.sort();
                files.extend(inside);
            } else {
                files.push(path);
            }
        }
        Ok(files)
    }

    fn drop_config(&self, pipeline: &Pipeline) -> Result<FilesConfig, Failure> {
        match &self.as_drop {
            Some(name) => {
                let drops = &pipeline.settings.config.files;
                drops.iter().find(|drop| drop.name == *name).cloned().ok_or_else(|| {
                    let hint = ratemill_schemas::nearest::did_you_mean(name, drops.iter().map(|drop| drop.name.as_str()));
                    Failure::usage(format!("ratemill.toml has no [[files]] called `{name}`{hint}"))
                })
            }
            None => Ok(canonical()),
        }
    }

    fn range(&self, pipeline: &Pipeline) -> Result<Finalize, Failure> {
        let zone = &pipeline.settings.config.billing.timezone;
        let instant = |text: &String| windows::instant_of_day(text, zone).map_err(Failure::usage);
        let state = pipeline.epochs.state();
        let last = state.inputs.values().filter_map(|input| input.time_max).max();
        let from = self.from.as_ref().map(instant).transpose()?.unwrap_or(i64::MIN);
        let to = match &self.to {
            Some(text) => instant(text)?,
            None if self.close => state.open.iter().map(|open| open.window.window.end).chain(last).max().unwrap_or(from),
            None => last.unwrap_or(from),
        };
        // Closing ends what has begun by the last event, amended ones included, and nothing that lies in the future of every rule.
        let last = last.max(state.open.iter().map(|open| open.window.window.start).max());
        let begun = if self.close && self.to.is_none() { last.unwrap_or(i64::MAX) } else { i64::MAX };
        Ok(Finalize::Range { from, to, begun, re_rate: self.re_rate })
    }
}

/// Files that are read at once: while one is looked through, the next waits for the disk.
const FILES_AT_ONCE: usize = 2;

/// What became of a file.
enum Outcome {
    Taken,
    TakenBefore,
    Refused(String),
}

/// Takes the files, with a progress bar.
async fn capture(reader: FileReader, claims: Claims, files: Vec<PathBuf>) -> Result<(), Failure> {
    let bar = progress_bar(files.len());
    let rows = reader.rows_read();
    let ticking = {
        let (bar, rows) = (bar.clone(), Arc::clone(&rows));
        tokio::spawn(async move {
            loop {
                bar.set_prefix(format!("{} rows", rows.load(Ordering::Relaxed)));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
    };
    let (claims, count) = (Arc::new(claims), files.len());
    let shown = bar.clone();
    let read = move |file| take(reader.clone(), Arc::clone(&claims), file, shown.clone());
    let mut under_way = futures::stream::iter(files).map(read).buffered(FILES_AT_ONCE);
    let mut taken = 0;
    let mut refused = Vec::new();
    while let Some(outcome) = under_way.next().await {
        match outcome? {
            Outcome::Taken => taken += 1,
            Outcome::TakenBefore => {}
            Outcome::Refused(path) => {
                taken += 1;
                refused.push(path);
            }
        }
        bar.inc(1);
    }
    ticking.abort();
    bar.finish_and_clear();
    eprintln!("{taken} of {count} files taken, {} rows", rows.load(Ordering::Relaxed));
    if refused.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(format!("refused as a whole: {}; see `ratemill rejected list`", refused.join(", "))))
}

async fn take(reader: FileReader, claims: Arc<Claims>, file: PathBuf, bar: ProgressBar) -> Result<Outcome, Failure> {
    bar.set_message(file.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new());
    let (meta, path) = meta(store.as_ref(), &file).await?;
    let etag = meta.e_tag.clone().unwrap_or_default();
    if claims.get(&path).is_some_and(|claims| claims.iter().any(|claim| claim.etag == etag)) {
        eprintln!("{path} was taken before");
        return Ok(Outcome::TakenBefore);
    }
    let claim = reader.take(&store, &meta, &path).await.map_err(Failure::failed)?;
    if claim.rows == 0 && claim.rejected > 0 {
        return Ok(Outcome::Refused(path));
    }
    if claim.rejected > 0 {
        eprintln!("{path}: {} of {} rows were rejected; see `ratemill rejected list`", claim.rejected, claim.rows);
    }
    Ok(Outcome::Taken)
}

/// Name of the connector of files that no drop of the project reads.
pub(super) const CONNECTOR: &str = "rate";

/// A drop whose rows have the canonical column names.
pub(super) fn canonical() -> FilesConfig {
    let mut config = FilesConfig::named(CONNECTOR, "");
    config.mapping.id = Some(FieldRef::Field("id".to_owned()));
    config.mapping.source = Some(FieldRef::Field("source".to_owned()));
    config
}

async fn meta(store: &dyn ObjectStore, file: &Path) -> Result<(ObjectMeta, String), Failure> {
    let failed = |error: object_store::Error| Failure::failed(format!("cannot read {}: {error}", file.display()));
    let location = StorePath::from_absolute_path(file).map_err(|error| Failure::usage(error.to_string()))?;
    let meta = store.head(&location).await.map_err(failed)?;
    Ok((meta, file.display().to_string()))
}

fn progress_bar(files: usize) -> ProgressBar {
    let bar = ProgressBar::new(files as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} files  {prefix}  {elapsed}  {msg}") {
        bar.set_style(style);
    }
    bar
}

fn summary(reports: &[EpochReport]) {
    let sum = |value: fn(&EpochReport) -> usize| reports.iter().map(value).sum::<usize>();
    let changes = sum(|report| report.changes);
    eprintln!(
        "{} events stored, {}{} records rejected, {} windows evaluated, {} ledger rows of which {} corrections",
        sum(|report| report.usage),
        if changes > 0 { format!("{changes} voids and amendments, ") } else { String::new() },
        sum(|report| report.rejected),
        sum(|report| report.windows),
        sum(|report| report.charges),
        sum(|report| report.corrections),
    );
}

/// Shows what the windows that stay open would be charged by now.
async fn provisional(pipeline: &Pipeline) -> Result<(), Failure> {
    let open = pipeline.epochs.running(None).await.map_err(|error| match error {
        EpochError::Rate(error) => Failure::rules(error),
        other => Failure::failed(other),
    })?;
    for (rule, result) in open {
        let (currencies, amounts) =
            (result.charges.column(3).as_string::<i32>(), result.charges.column(4).as_primitive::<Decimal128Type>());
        let mut totals: std::collections::BTreeMap<&str, Decimal> = std::collections::BTreeMap::new();
        for row in 0..result.charges.num_rows() {
            let total = totals.entry(currencies.value(row)).or_default();
            *total = Decimal::from_raw(amounts.value(row)).and_then(|amount| total.plus(amount)).map_err(Failure::failed)?;
        }
        for (currency, total) in totals {
            eprintln!(
                "provisional: {rule}, window {}: {total} {currency} so far (not in the ledger; --to or --close makes it final)",
                result.window
            );
        }
    }
    Ok(())
}
