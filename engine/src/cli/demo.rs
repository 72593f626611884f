//! `ratemill demo`: a month of a business centre, from usage to invoice and correction.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray, RecordBatch};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use ratemill_connectors::mqtt::publish;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::init::write_project;
use super::table::render;
use super::{Failure, start_metrics, stop_signal};
use crate::epoch::EpochReport;
use crate::live;
use crate::pipeline::{Pipeline, shown};
use crate::query::Reader;

/// `ratemill demo`
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// The folder to make the project in; it must not hold one yet.
    #[arg(default_value = "ratemill-demo", value_name = "DIR")]
    folder: PathBuf,
    /// Also send the meeting rooms over this MQTT broker, like mqtt://127.0.0.1:1883.
    #[arg(long, value_name = "URL")]
    mqtt: Option<String>,
}

/// How long the demo waits for an epoch before it gives up.
const PATIENCE: Duration = Duration::from_secs(50);

impl Demo {
    pub(super) async fn run(self) -> Result<(), Failure> {
        tokio::select! {
            outcome = self.demo() => outcome,
            () = stop_signal() => Err(Failure::interrupted()),
        }
    }

    async fn demo(&self) -> Result<(), Failure> {
        let started = Instant::now();
        let folder = std::path::absolute(&self.folder).map_err(Failure::failed)?;
        write_project(&folder)?;
        self.add_mqtt(&folder)?;
        println!("Made a project in {}: rules/*.sql, reference/*.csv, ratemill.toml\n", folder.display());
        let engine = Engine::start(&folder).await?;
        let outcome = self.send_and_show(&folder, &engine).await;
        engine.stop().await?;
        outcome?;
        println!(
            "\nDone in {:.1?}. Ask further:  ratemill sql -C {} -c \"SELECT * FROM charges\"",
            started.elapsed(),
            self.folder.display()
        );
        Ok(())
    }

    fn add_mqtt(&self, folder: &Path) -> Result<(), Failure> {
        let Some(url) = &self.mqtt else { return Ok(()) };
        let path = folder.join("ratemill.toml");
        let id = format!("{:08x}", rand::random::<u32>());
        let section = format!(
            "\n[[mqtt]]\nname = \"rooms\"\nurl = \"{url}\"\nclient_id = \"ratemill-demo-{id}\"\ntopics = [\"ratemill-demo-{id}/#\"]\ntemplate = \"ratemill-demo-{id}/{{site}}/{{subject}}\"\n"
        );
        let text = std::fs::read_to_string(&path).map_err(Failure::failed)?;
        std::fs::write(&path, text + &section).map_err(Failure::failed)?;
        Ok(())
    }

    async fn send_and_show(&self, folder: &Path, engine: &Engine) -> Result<(), Failure> {
        let (bookings, others): (Vec<Value>, Vec<Value>) =
            events().into_iter().partition(|event| self.mqtt.is_some() && event["type"] == "meeting_room");
        let calls = calls();
        let bar = ProgressBar::new((others.len() + bookings.len() + calls.len()) as u64);
        if let Ok(style) = ProgressStyle::with_template("Sending a month of usage {bar:30} {pos}/{len} events, {elapsed}  {msg}") {
            bar.set_style(style);
        }
        bar.set_message("file drop");
        drop_calls(folder, &calls)?;
        bar.inc(calls.len() as u64);
        bar.set_message("HTTP");
        for batch in others.chunks(100) {
            engine.post(batch).await?;
            bar.inc(batch.len() as u64);
        }
        if let Some(url) = &self.mqtt {
            bar.set_message("MQTT");
            let prefix = topic_prefix(folder)?;
            let messages = bookings
                .iter()
                .map(|event| (format!("{prefix}/city/{}", event["subject"].as_str().unwrap_or("?")), event.to_string().into_bytes()))
                .collect();
            publish(url, messages).await.map_err(Failure::failed)?;
            bar.inc(bookings.len() as u64);
        }
        bar.set_message("waiting for September to close");
        engine.wait(folder, "SELECT count(DISTINCT rule) FROM charges WHERE billing_period = '2026-09'", "4").await?;
        bar.finish_and_clear();
        println!(
            "Sent {} events: {} over HTTP, {} in a CSV drop, {} over MQTT. September is closed.\n",
            bar.length().unwrap_or_default(),
            others.len(),
            calls.len(),
            bookings.len()
        );
        let invoice = "SELECT item, quantity, unit, billed, currency FROM invoice_lines WHERE customer_id = 'acme' AND billing_period = '2026-09' ORDER BY item";
        show(folder, "Invoice of acme for September 2026", invoice).await?;
        show(folder, "All customers", TOTALS).await?;
        println!("A booking of 2.5 hours on 30 September arrives late …");
        engine.post(&[event("late-1", "meeting_room", "acme", "2026-09-30T15:00:00Z", "2.5")]).await?;
        engine.wait(folder, "SELECT count(*) FROM charges WHERE class = 'correction' AND billing_period = '2026-09'", "2").await?;
        show(folder, "… and becomes a correction: the old charge is taken back, the new one replaces it", CORRECTIONS).await?;
        show(folder, "Invoice of acme, with it", invoice).await?;
        println!("The charges are a Delta table of Parquet files:\n  {}/lake/charges/posting_period=2026-09/", folder.display());
        println!(
            "Read it with DuckDB:\n  duckdb -c \"SELECT customer_id, sum(amount) FROM read_parquet('{}/lake/charges/*/*.parquet') GROUP BY ALL\"",
            folder.display()
        );
        Ok(())
    }
}

const TOTALS: &str =
    "SELECT customer_id, lines, billed, currency FROM invoice_totals WHERE billing_period = '2026-09' ORDER BY customer_id";
const CORRECTIONS: &str = "SELECT class, revision, item, quantity, amount, currency, cause, left(reverses, 8) AS reverses FROM charges \
     WHERE customer_id = 'acme' AND item = 'Meeting room hours' AND billing_period = '2026-09' ORDER BY revision";

/// The live engine in this process.
struct Engine {
    address: SocketAddr,
    client: reqwest::Client,
    stop: CancellationToken,
    epochs: watch::Receiver<i64>,
    task: tokio::task::JoinHandle<Result<(), Failure>>,
}

impl Engine {
    async fn start(folder: &Path) -> Result<Self, Failure> {
        let metrics = start_metrics()?;
        let pipeline = Pipeline::open(folder, &shown(folder)).await?;
        let stop = CancellationToken::new();
        let (told, address) = oneshot::channel();
        let (epoch, epochs) = watch::channel(0);
        let stopping = stop.clone();
        let task = tokio::spawn(async move {
            let listening = move |address| {
                let _ = told.send(address);
            };
            let report = move |report: &EpochReport| {
                report.failures.iter().for_each(|failure| eprintln!("error: {failure}"));
                let _ = epoch.send(report.epoch);
            };
            live::run(pipeline, metrics, stopping, Arc::default(), listening, report).await.map_err(Failure::from)
        });
        let address = address.await.map_err(|_| Failure::failed("the engine did not start"))?;
        Ok(Self { address, client: reqwest::Client::new(), stop, epochs, task })
    }

    async fn post(&self, events: &[Value]) -> Result<(), Failure> {
        let response = self
            .client
            .post(format!("http://{}/v1/events", self.address))
            .header("content-type", "application/cloudevents-batch+json")
            .body(Value::from(events.to_vec()).to_string())
            .send()
            .await
            .map_err(Failure::failed)?;
        if !response.status().is_success() {
            return Err(Failure::failed(format!(
                "the engine answered {}: {}",
                response.status(),
                response.text().await.unwrap_or_default()
            )));
        }
        Ok(())
    }

    /// Waits for the epoch after which the query's one value is `expected`.
    async fn wait(&self, folder: &Path, sql: &str, expected: &str) -> Result<(), Failure> {
        let mut epochs = self.epochs.clone();
        let answer = async {
            loop {
                if let Ok(reader) = Reader::open(folder).await
                    && let Ok(batch) = reader.query(sql).await
                    && value(&batch).as_deref() == Some(expected)
                {
                    return Ok(());
                }
                epochs.changed().await.map_err(|_| Failure::failed("the engine stopped"))?;
            }
        };
        tokio::time::timeout(PATIENCE, answer).await.map_err(|_| Failure::failed(format!("no epoch within {PATIENCE:?} brought: {sql}")))?
    }

    async fn stop(self) -> Result<(), Failure> {
        self.stop.cancel();
        self.task.await.map_err(Failure::failed)?
    }
}

fn value(batch: &RecordBatch) -> Option<String> {
    let text = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8).ok()?;
    let text = text.as_string::<i32>();
    (text.len() == 1 && text.is_valid(0)).then(|| text.value(0).to_owned())
}

async fn show(folder: &Path, title: &str, sql: &str) -> Result<(), Failure> {
    let batch = Reader::open(folder).await?.query(sql).await?;
    println!("{title}\n{}\n", render(&batch)?);
    Ok(())
}

fn topic_prefix(folder: &Path) -> Result<String, Failure> {
    let settings = crate::config::Settings::load(folder).map_err(Failure::usage)?;
    let topic = settings.config.mqtt.first().and_then(|mqtt| mqtt.topics.first()).cloned().unwrap_or_default();
    Ok(topic.trim_end_matches("/#").to_owned())
}

/// Calls taken in September by tenant, and the number of them.
const CALLS: [(&str, u32); 4] = [("acme", 240), ("birch", 80), ("cedar", 30), ("lumen", 900)];
/// Pages a day by tenant, and the number of days.
const PAGES: [(&str, u32, u32); 4] = [("acme", 40, 30), ("birch", 10, 30), ("cedar", 10, 10), ("lumen", 120, 30)];
/// Bookings by tenant: how many, and how long each.
const BOOKINGS: [(&str, u32, &str); 4] = [("acme", 8, "1.5"), ("birch", 4, "2"), ("cedar", 1, "1.25"), ("lumen", 20, "1")];

fn event(id: &str, meter: &str, tenant: &str, time: &str, quantity: &str) -> Value {
    json!({"specversion": "1.0", "source": "business-centre", "id": id, "type": meter, "subject": tenant, "time": time, "data": {"quantity": quantity, "site": "city"}})
}

/// Pages and bookings; the last ones are of October, so that September can close.
fn events() -> Vec<Value> {
    let mut events = Vec::new();
    for (tenant, pages, days) in PAGES {
        for day in 1..=days {
            events.push(event(
                &format!("pages-{tenant}-{day}"),
                "printed_page",
                tenant,
                &format!("2026-09-{day:02}T16:30:00Z"),
                &pages.to_string(),
            ));
        }
    }
    for (tenant, bookings, hours) in BOOKINGS {
        for number in 1..=bookings {
            events.push(event(
                &format!("room-{tenant}-{number}"),
                "meeting_room",
                tenant,
                &format!("2026-09-{number:02}T10:00:00Z"),
                hours,
            ));
        }
    }
    events.push(event("pages-acme-october", "printed_page", "acme", "2026-10-03T09:00:00Z", "1"));
    events.push(event("room-acme-october", "meeting_room", "acme", "2026-10-03T09:00:00Z", "1"));
    events
}

/// Rows of the telephone system: call, tenant, time.
fn calls() -> Vec<(String, &'static str, String)> {
    let mut calls = Vec::new();
    for (tenant, count) in CALLS {
        for number in 0..count {
            let (day, minute) = (number % 30 + 1, number / 30);
            calls.push((format!("{tenant}-{number}"), tenant, format!("2026-09-{day:02}T09:{minute:02}:00Z")));
        }
    }
    calls.push(("acme-october".to_owned(), "acme", "2026-10-03T09:00:00Z".to_owned()));
    calls
}

/// Drops the calls as a CSV file, under another name until it is complete.
fn drop_calls(folder: &Path, calls: &[(String, &str, String)]) -> Result<(), Failure> {
    let drops = folder.join("drops/calls");
    let mut csv = String::from("call_id,tenant,answered_at,site\n");
    for (id, tenant, time) in calls {
        let _ = writeln!(csv, "{id},{tenant},{time},city");
    }
    let written = std::fs::create_dir_all(&drops)
        .and_then(|()| std::fs::write(drops.join("2026-09.csv.tmp"), csv))
        .and_then(|()| std::fs::rename(drops.join("2026-09.csv.tmp"), drops.join("2026-09.csv")));
    written.map_err(|error| Failure::failed(format!("cannot write to {}: {error}", drops.display())))
}
