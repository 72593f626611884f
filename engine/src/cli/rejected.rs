//! `ratemill rejected list` and `replay`.

use std::sync::Arc;

use arrow::array::AsArray;
use clap::{Args, Subcommand};
use ratemill_connectors::decode::ndjson::Shape;
use ratemill_connectors::decode::{Collector, Place, ndjson};
use ratemill_connectors::files::{FileFormat, FilesConfig, Records};
use ratemill_connectors::mapping::Mapping;
use ratemill_connectors::mqtt::{Payload, TopicTemplate, bind};
use ratemill_schemas::usage::{Positions, RawRecords};
use ratemill_schemas::{Reason, UsageBatch, Verdict};

use super::table::{Format, print};
use super::{Failure, Project};
use crate::epoch::Finalize;
use crate::pipeline::{OpenError, Pipeline, shown};
use crate::query::Reader;

/// `ratemill rejected …`
#[derive(Debug, Subcommand)]
pub(super) enum Rejected {
    /// Show rejected records with reason, place and raw content.
    List(List),
    /// Decode rejected records again with the present configuration and accept those that are good now.
    Replay(Replay),
    /// Show every reason code with its meaning.
    Reasons,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    project: Project,
    /// Only records of this reason.
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// At most so many, the newest first.
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// How rows are written.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Args)]
pub(super) struct Replay {
    #[command(flatten)]
    project: Project,
    /// Only records of this reason.
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// Only records of this connector.
    #[arg(long, value_name = "NAME")]
    connector: Option<String>,
}

impl Rejected {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.run().await,
            Self::Replay(replay) => replay.run().await,
            Self::Reasons => {
                for reason in Reason::ALL {
                    println!("{:26} {}", reason.code(), reason.meaning());
                }
                Ok(())
            }
        }
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn check_reason(reason: Option<&String>) -> Result<(), Failure> {
    let Some(reason) = reason else { return Ok(()) };
    if Reason::ALL.iter().any(|known| known.code() == reason) {
        return Ok(());
    }
    let hint = ratemill_schemas::nearest::did_you_mean(reason, Reason::ALL.iter().map(|reason| reason.code()));
    Err(Failure::usage(format!("`{reason}` is no reason code{hint}; `ratemill rejected reasons` lists them")))
}

impl List {
    async fn run(self) -> Result<(), Failure> {
        check_reason(self.reason.as_ref())?;
        let reader = Reader::open(&self.project.folder).await?;
        let filter = self.reason.map_or_else(String::new, |reason| format!("WHERE reason = {}", quoted(&reason)));
        let sql = format!(
            "SELECT rejected_at, connector, position, source, id, reason, message, raw FROM rejected {filter} ORDER BY log_position DESC LIMIT {}",
            self.limit
        );
        print(&reader.query(&sql).await?, self.format)
    }
}

impl Replay {
    async fn run(self) -> Result<(), Failure> {
        check_reason(self.reason.as_ref())?;
        let folder = &self.project.folder;
        let records = {
            let reader = Reader::open(folder).await?;
            let conflicts: Vec<String> =
                Reason::ALL.iter().filter(|reason| reason.is_conflict()).map(|reason| quoted(reason.code())).collect();
            let mut filter = format!("WHERE reason NOT IN ({})", conflicts.join(", "));
            if let Some(reason) = &self.reason {
                filter.push_str(&format!(" AND reason = {}", quoted(reason)));
            }
            if let Some(connector) = &self.connector {
                filter.push_str(&format!(" AND connector = {}", quoted(connector)));
            }
            reader.query(&format!("SELECT connector, position, raw FROM rejected {filter} ORDER BY log_position")).await?
        };
        let mut pipeline = Pipeline::open(folder, &shown(folder)).await?;
        let (mut accepted, mut duplicates, mut still_bad) = (0, 0, 0);
        let (connectors, positions) = (records.column(0).as_string::<i32>(), records.column(1).as_string::<i32>());
        let raws = records.column(2).as_binary::<i32>();
        let mut names: Vec<&str> = connectors.iter().flatten().collect();
        names.sort_unstable();
        names.dedup();
        for (name, kind) in names.into_iter().flat_map(|name| [(name, FileKind::Ndjson), (name, FileKind::Other)]) {
            let rows: Vec<(&str, &[u8])> = (0..records.num_rows())
                .filter(|row| connectors.value(*row) == name && FileKind::of(positions.value(*row)) == kind && !raws.value(*row).is_empty())
                .map(|row| (positions.value(row), raws.value(row)))
                .collect();
            let (usage, bad) = decode(&pipeline, name, kind, &rows)?;
            still_bad += bad;
            if usage.rows.is_empty() {
                continue;
            }
            let receipt = pipeline.intake.submit(&name.into(), usage, Vec::new(), true).await.map_err(Failure::failed)?;
            accepted += receipt.verdicts.iter().filter(|verdict| **verdict == Verdict::Accepted).count();
            duplicates += receipt.verdicts.iter().filter(|verdict| **verdict != Verdict::Accepted).count();
        }
        pipeline.epochs.run(Finalize::Live).await.map_err(OpenError::from)?;
        pipeline.close().await?;
        println!("{accepted} accepted, {duplicates} had been accepted before, {still_bad} are still rejected");
        Ok(())
    }
}

/// What a rejected record's file was, told by its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileKind {
    Ndjson,
    Other,
}

impl FileKind {
    fn of(position: &str) -> Self {
        let path = position.split(" line ").next().unwrap_or(position).to_ascii_lowercase();
        let stem = path.strip_suffix(".gz").or_else(|| path.strip_suffix(".zst")).unwrap_or(&path);
        if [".ndjson", ".jsonl", ".json"].iter().any(|ending| stem.ends_with(ending)) { Self::Ndjson } else { Self::Other }
    }
}

/// Whether a drop reads its records as CloudEvents: NDJSON, unless it says otherwise.
fn is_cloud_event(config: &FilesConfig, kind: FileKind) -> bool {
    let lines = config.format.map_or(kind == FileKind::Ndjson, |format| format == FileFormat::Ndjson);
    lines && config.records == Records::CloudEvents
}

/// Decodes raw records as their connector would now; what is still bad stays in `rejected` as it is.
fn decode(pipeline: &Pipeline, connector: &str, place: FileKind, rows: &[(&str, &[u8])]) -> Result<(UsageBatch, usize), Failure> {
    let settings = &pipeline.settings;
    let context = settings.decode_context(pipeline.installation.hasher());
    let schema = Arc::clone(&settings.schema);
    let plain = |name: &str, mapping: &_, identity: &[String]| Mapping::plain(name, mapping, identity, &schema).map_err(Failure::usage);
    let mqtt = settings.config.mqtt.iter().find(|mqtt| mqtt.name == connector);
    let files = settings.config.files.iter().find(|files| files.name == connector);
    let (mapping, shape) = match (mqtt, files) {
        (Some(mqtt), _) if mqtt.payload == Payload::Json => (plain(connector, &mqtt.mapping, &mqtt.identity)?, Shape::Plain),
        (_, Some(files)) if !is_cloud_event(files, place) => (plain(connector, &files.mapping, &files.identity)?, Shape::Plain),
        (_, Some(files)) => (Mapping::cloud_events(&schema, files.mapping.quantity.clone()), Shape::CloudEvent),
        _ if connector == super::rate::CONNECTOR => {
            let config = super::rate::canonical();
            if is_cloud_event(&config, place) {
                (Mapping::cloud_events(&schema, None), Shape::CloudEvent)
            } else {
                (plain(connector, &config.mapping, &config.identity)?, Shape::Plain)
            }
        }
        _ => {
            (Mapping::cloud_events(&schema, settings.config.http.as_ref().and_then(crate::config::HttpConfig::quantity)), Shape::CloudEvent)
        }
    };
    let mut collector = Collector::new(&context, &mapping, Positions::Index, RawRecords::Messages(Vec::new()), rows.len());
    let template = mqtt.and_then(|mqtt| mqtt.template.as_deref()).and_then(|template| TopicTemplate::parse(template).ok());
    for (position, raw) in rows {
        let mut fields = ndjson::parse(&context, shape, raw);
        let bound = template.as_ref().zip(position.strip_prefix("topic ")).and_then(|(template, topic)| template.bind(topic));
        if let (Ok(record), Some(bound)) = (&mut fields, bound)
            && let Err(mismatch) = bind(record, &bound, &mapping)
        {
            fields = Err(mismatch);
        }
        collector.record(&fields, Place::Index, raw, None);
    }
    let mut usage = collector.finish().map_err(Failure::failed)?;
    let bad = std::mem::take(&mut usage.rejections).len();
    Ok((usage, bad))
}
