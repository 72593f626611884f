//! The live engine: connectors, epochs and the HTTP surface, until it is told to stop.

mod between;
mod commands;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use ratemill_connectors::files::FileDrop;
use ratemill_connectors::http::EventsState;
use ratemill_connectors::mapping::Mapping;
use ratemill_connectors::mqtt::Mqtt;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use commands::{Command, Posted, Refusal, ReloadAnswer};

use crate::api::{self, Health, Operations, Questions};
use crate::capture::CaptureProgress;
use crate::epoch::{EpochError, EpochReport, Epochs, Finalize, RunningQuestion};
use crate::lake::{LakeError, Location};
use crate::pipeline::{OpenError, Pipeline};
use crate::pulse::{Beacon, Vitals};
use between::BetweenEpochs;
use commands::{COMMANDS, Commands, ProjectFiles, QUESTIONS};

/// Time for connectors to finish what is under way.
const DRAIN: Duration = Duration::from_secs(3);
/// Time for the last epoch.
const LAST_EPOCH: Duration = Duration::from_secs(4);
/// Longest pause before a failed epoch is tried again, unless epochs come seldomer: usage is in the lake soon after an outage.
const RETRY: Duration = Duration::from_secs(10);
/// Time for giving the lake up.
const RELEASE: Duration = Duration::from_secs(2);

/// Time for keeping the state of open windows at the end.
const LAST_CHECKPOINT: Duration = Duration::from_secs(2);

/// Runs until `stop`; `listening` is told the address of the HTTP listener, `epoch` every report. At each `hangup` rules and
/// reference data are read again.
///
/// # Errors
/// [`OpenError`] when a connector cannot start, or another process took the lake.
pub async fn run(
    mut pipeline: Pipeline,
    metrics: PrometheusHandle,
    stop: CancellationToken,
    hangup: Arc<Notify>,
    listening: impl FnOnce(SocketAddr),
    mut epoch: impl FnMut(&EpochReport),
) -> Result<(), OpenError> {
    pipeline.epochs.note_open_windows().await?;
    if pipeline.settings.config.epoch.fold {
        pipeline.epochs.start_folding().await?;
    }
    let vitals = Vitals::new(Arc::clone(&pipeline.progress), pipeline.intake.room(), pipeline.settings.log_quota)
        .holding(pipeline.epochs.generation());
    note_state(&pipeline.epochs, &pipeline.progress);
    let beacon = Beacon::start(pipeline.installation.folder(), vitals.clone())
        .map_err(|error| OpenError::Connector(format!("no thread for the status: {error}")))?;
    let connectors = CancellationToken::new();
    let mut tasks: JoinSet<Result<(), String>> = JoinSet::new();
    let ready = Arc::new(AtomicBool::new(false));
    start_mqtt(&pipeline, &connectors, &mut tasks)?;
    start_files(&pipeline, &connectors, &mut tasks)?;
    // Last, since the address is told: whoever reads it may send.
    let (questions, asked) = mpsc::channel(QUESTIONS);
    let (operations, queue) = mpsc::channel(COMMANDS);
    let (rules, names) = watch::channel(pipeline.epochs.project().rules.iter().map(|rule| rule.name.clone()).collect());
    pipeline.epochs.listen(Some(asked));
    let mut commands = Commands { queue, hangup, files: ProjectFiles::of(&pipeline.settings), rules };
    let surface = Surface { metrics, questions, operations, rules: names, vitals };
    start_http(&pipeline, &ready, (surface, &beacon), &connectors, &mut tasks, listening).await?;
    ready.store(true, Ordering::Release);
    let interval = Duration::from_micros(pipeline.settings.epoch_interval.unsigned_abs());
    let checkpoints = Duration::from_micros(pipeline.settings.checkpoint_interval.unsigned_abs());
    let mut between = BetweenEpochs::new(&pipeline.settings);
    let outcome = epochs(
        &mut pipeline.epochs,
        &pipeline.progress,
        (interval, checkpoints, pipeline.settings.epoch_bytes),
        &stop,
        &mut tasks,
        (&mut commands, &mut between),
        &mut epoch,
    )
    .await;
    drop(between);
    ready.store(false, Ordering::Release);
    // Who waits for an answer is told that there is none.
    drop(commands);
    pipeline.epochs.listen(None);
    connectors.cancel();
    let drained = tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("connectors did not finish in time; what they had not acknowledged will be sent again");
        tasks.abort_all();
    }
    if outcome.is_ok() {
        // What was accepted up to now goes into the lake, so that it is drained; else the log keeps it.
        match tokio::time::timeout(LAST_EPOCH, pipeline.epochs.run(Finalize::Live)).await {
            Ok(Ok(reports)) => {
                reports.iter().for_each(&mut epoch);
                match tokio::time::timeout(LAST_CHECKPOINT, pipeline.epochs.save_checkpoint()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!(%error, "no checkpoint; the next start reads the usage of open windows again"),
                    Err(_) => tracing::warn!("no time for a checkpoint; the next start reads the usage of open windows again"),
                }
            }
            Ok(Err(error)) => tracing::error!(%error, "the last epoch failed; the usage log keeps what is not in the lake"),
            Err(_) => tracing::error!("the lake did not answer in time; the usage log keeps what is not in it"),
        }
    }
    match tokio::time::timeout(RELEASE, pipeline.close()).await {
        Ok(closed) => closed?,
        Err(_) => tracing::warn!("the lake could not be released; its lease runs out by itself"),
    }
    outcome
}

#[allow(clippy::too_many_arguments)]
async fn epochs(
    epochs: &mut Epochs,
    progress: &CaptureProgress,
    (interval, checkpoints, bytes_max): (Duration, Duration, u64),
    stop: &CancellationToken,
    tasks: &mut JoinSet<Result<(), String>>,
    (commands, between): (&mut Commands, &mut BetweenEpochs),
    report: &mut impl FnMut(&EpochReport),
) -> Result<(), OpenError> {
    let mut pause = interval;
    let mut kept_at = tokio::time::Instant::now();
    let lost = epochs.ownership().lost();
    loop {
        let begun = tokio::time::Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = lost.cancelled() => break,
                () = tokio::time::sleep_until(begun + pause) => break,
                () = progress.grown.notified() => if progress.undrained_bytes.load(Ordering::Acquire) >= bytes_max { break },
                call = commands.next(epochs) => tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = commands.obey(call, epochs, report) => {}
                },
                work = between.next(epochs.running_is_stale()) => tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = between.run(epochs, work) => {}
                },
                Some(ended) = tasks.join_next() => {
                    match ended {
                        Ok(Ok(())) => {}
                        Ok(Err(message)) => return Err(OpenError::Connector(message)),
                        Err(error) => return Err(OpenError::Connector(format!("a connector failed: {error}"))),
                    }
                }
            }
        }
        if lost.is_cancelled() {
            // The lake says who has it now; where that cannot be read, the lake is away, and it is asked again.
            match epochs.ownership().check().await {
                Err(error @ LakeError::Held(_)) => return Err(error.into()),
                outcome => tracing::warn!(?outcome, "the lake was taken by another process, it seems"),
            }
        }
        let started = std::time::Instant::now();
        // An epoch that is dropped half-way is finished by its manifest, now or at the next start.
        let outcome = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            outcome = epochs.run(Finalize::Live) => outcome,
        };
        match outcome {
            Ok(reports) => {
                reports.iter().for_each(&mut *report);
                progress.pulse.note_epochs(&reports, started.elapsed());
                note_state(epochs, progress);
                pause = interval;
                if kept_at.elapsed() >= checkpoints && !reports.is_empty() {
                    kept_at = tokio::time::Instant::now();
                    if let Err(error) = epochs.save_checkpoint().await {
                        tracing::warn!(%error, "no checkpoint; it is tried again");
                    }
                }
            }
            Err(EpochError::Lake(error @ (LakeError::Fenced { .. } | LakeError::Held(_)))) => return Err(error.into()),
            Err(error) => {
                tracing::error!(%error, "the epoch failed; capture goes on, and it will be tried again");
                metrics::counter!("ratemill_epoch_failures_total").increment(1);
                progress.pulse.note_failure(&error);
                pause = (pause * 2).clamp(interval, RETRY.max(interval));
            }
        }
    }
}

/// Notes how far the lake is, for those who ask.
fn note_state(epochs: &Epochs, progress: &CaptureProgress) {
    progress.pulse.note_state(epochs.last(), epochs.state(), epochs.fold_bytes());
}

/// What the HTTP surface is made of.
struct Surface {
    metrics: PrometheusHandle,
    questions: mpsc::Sender<RunningQuestion>,
    operations: mpsc::Sender<Command>,
    /// Names of the rules.
    rules: watch::Receiver<Vec<String>>,
    /// What the engine knows of itself.
    vitals: Vitals,
}

async fn start_http(
    pipeline: &Pipeline,
    ready: &Arc<AtomicBool>,
    (surface, beacon): (Surface, &Beacon),
    stop: &CancellationToken,
    tasks: &mut JoinSet<Result<(), String>>,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), OpenError> {
    let Some(http) = &pipeline.settings.config.http else { return Ok(()) };
    let context = pipeline.settings.decode_context(pipeline.installation.hasher());
    let events = EventsState {
        input: "http".into(),
        intake: pipeline.intake.clone(),
        mapping: Mapping::cloud_events(&context.schema, http.quantity()),
        context,
        keys: http.api_keys().map_err(OpenError::Connector)?,
        limits: http.limits().map_err(OpenError::Connector)?,
    };
    let questions = Questions { queue: surface.questions, keys: events.keys.clone(), rules: surface.rules, vitals: surface.vitals.clone() };
    let operations = Operations { queue: surface.operations, keys: events.keys.clone() };
    let health = Health { ready: Arc::clone(ready), metrics: surface.metrics };
    let routes = api::routes(Arc::new(events), health, questions, operations);
    let (listener, address) =
        api::listen(http.listen).await.map_err(|error| OpenError::Connector(format!("http.listen = \"{}\": {error}", http.listen)))?;
    surface.vitals.listens(address);
    beacon.write_now();
    listening(address);
    let stop = stop.clone();
    tasks.spawn(async move { api::serve(listener, routes, stop).await.map_err(|error| format!("http: {error}")) });
    Ok(())
}

fn start_mqtt(pipeline: &Pipeline, stop: &CancellationToken, tasks: &mut JoinSet<Result<(), String>>) -> Result<(), OpenError> {
    for config in &pipeline.settings.config.mqtt {
        let context = pipeline.settings.decode_context(pipeline.installation.hasher());
        let mqtt = Mqtt::new(config.clone(), context, pipeline.intake.clone()).map_err(|error| OpenError::Connector(error.to_string()))?;
        let stop = stop.clone();
        tasks.spawn(async move { mqtt.run(stop).await.map_err(|error| error.to_string()) });
    }
    Ok(())
}

fn start_files(pipeline: &Pipeline, stop: &CancellationToken, tasks: &mut JoinSet<Result<(), String>>) -> Result<(), OpenError> {
    for config in &pipeline.settings.config.files {
        let location = Location::open(&config.url, &pipeline.settings.folder)?;
        let reader = pipeline.file_reader(config)?;
        let claims = pipeline.claims_of(&config.name);
        let drop = FileDrop::new(config, reader, location.store, location.path, claims)
            .map_err(|error| OpenError::Connector(error.to_string()))?;
        let stop = stop.clone();
        tasks.spawn(async move {
            drop.run(stop).await;
            Ok(())
        });
    }
    Ok(())
}
