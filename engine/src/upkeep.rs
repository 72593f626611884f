//! Upkeep of the lake by its owner, off the way of usage: small files are joined, tables get Delta checkpoints, and what
//! nobody needs any more is removed.
//!
//! A round reads and writes files beside the epochs. Its commits are made between two of them, by whoever runs them, to
//! exactly the version after the one that was read; nothing is repeated blindly. When it is killed, files stay that no
//! commit names, and a later round removes them.

mod adopted;
mod compaction;
mod retention;
mod round;
mod settings;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ratemill_rules::session::runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use round::{Extent, Round};
pub use round::{Request, TableReport, UpkeepReport};
pub use settings::{UpkeepConfig, UpkeepSettings};

use crate::config::Settings;
use crate::epoch::{EpochError, Epochs, lake_tables, latest_completion};
use crate::lake::{Lake, LakeError, LakeTable};
use crate::query::QueryError;

/// Longest time between two rounds that remove files.
const CLEAN_EVERY: Duration = Duration::from_secs(3600);
/// Longest time that a commit may keep the next epoch waiting. What becomes of one that takes longer, the table tells.
const COMMIT: Duration = Duration::from_secs(5);

/// The rounds of a running engine.
#[derive(Debug)]
pub struct Upkeep {
    settings: UpkeepSettings,
    round: Option<JoinHandle<()>>,
    requests: (mpsc::Sender<Request>, mpsc::Receiver<Request>),
    begin_at: Instant,
    clean_at: Instant,
}

impl Upkeep {
    /// The first round begins after the interval.
    #[must_use]
    pub fn new(settings: UpkeepSettings) -> Self {
        let begin_at = Instant::now() + settings.interval;
        Self { settings, round: None, requests: mpsc::channel(1), begin_at, clean_at: begin_at }
    }

    /// When the next round is due.
    pub(crate) fn begin_at(&self) -> Instant {
        self.begin_at
    }

    /// Begins a round beside the epochs, unless the last one goes on.
    pub(crate) fn begin(&mut self, epochs: &Epochs) {
        self.begin_at = Instant::now() + self.settings.interval;
        if self.round.as_ref().is_some_and(|round| !round.is_finished()) {
            return;
        }
        let cleans = self.clean_at <= Instant::now();
        if cleans {
            self.clean_at = Instant::now() + CLEAN_EVERY.min(Duration::from_secs(self.settings.keep_seconds));
        }
        let extent = if cleans { Extent::Clean } else { Extent::Join };
        let round = round_of(epochs, self.settings, extent, self.requests.0.clone());
        self.round = Some(tokio::spawn(async move {
            match round.run().await {
                Ok(report) => tracing::debug!(?report, "upkeep"),
                Err(error) => tracing::warn!(%error, "upkeep failed; it will be tried again"),
            }
        }));
    }

    /// The next commit that the round asks for.
    pub(crate) async fn requested(&mut self) -> Option<Request> {
        self.requests.1.recv().await
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        if let Some(round) = &self.round {
            round.abort();
        }
    }
}

/// Commits what a round asks for. A failure never stops an epoch.
pub(crate) async fn commit(epochs: &mut Epochs, request: Request) {
    let outcome = tokio::time::timeout(COMMIT, epochs.commit_upkeep(request.table, request.change)).await;
    let committed = match outcome {
        Ok(Ok(committed)) => committed,
        Ok(Err(error)) => {
            tracing::warn!(%error, table = request.table, "a commit of upkeep failed; it will be tried again");
            false
        }
        Err(_) => {
            tracing::warn!(table = request.table, "the lake took too long for a commit of upkeep; it will be looked at again");
            false
        }
    };
    // The round may be gone.
    let _ = request.answer.send(committed);
}

fn round_of(epochs: &Epochs, settings: UpkeepSettings, extent: Extent, requests: mpsc::Sender<Request>) -> Round {
    let (lake, runtime, limits) = epochs.reading();
    let (log_folder, adopting) = (epochs.log_folder().to_owned(), epochs.adopting());
    Round { lake, tables: epochs.upkeep_tables(), runtime, limits, settings, extent, requests, log_folder, adopting }
}

/// Does all there is to do, at once.
///
/// # Errors
/// [`EpochError::Lake`].
pub async fn at_once(epochs: &mut Epochs, settings: UpkeepSettings) -> Result<UpkeepReport, EpochError> {
    let (sender, mut requests) = mpsc::channel(1);
    let round = round_of(epochs, settings, Extent::All, sender).run();
    tokio::pin!(round);
    loop {
        tokio::select! {
            report = &mut round => return Ok(report?),
            Some(request) = requests.recv() => commit(epochs, request).await,
        }
    }
}

/// Says what there is to do in the lake of the project in `folder`, whoever owns it.
///
/// # Errors
/// [`QueryError`].
pub async fn look(folder: &Path) -> Result<UpkeepReport, QueryError> {
    let settings = Settings::load_for_reading(folder)?;
    let lake = Lake::open(&settings.config.lake.url, folder)?;
    if latest_completion(&lake).await?.is_none() {
        return Err(QueryError::Empty(lake.url().to_string()));
    }
    let mut tables: Vec<LakeTable> = Vec::new();
    for spec in lake_tables(&settings.schema) {
        tables.extend(LakeTable::open(&lake, spec.name, spec.partitions).await?);
    }
    let limits = settings.session_limits();
    let runtime = runtime(&limits)?;
    let (authority, store) = lake.root_store();
    runtime.register_object_store(&authority, store);
    let round = Round {
        lake,
        tables,
        runtime,
        limits,
        settings: settings.upkeep,
        extent: Extent::Look,
        requests: mpsc::channel(1).0,
        log_folder: settings.log_folder,
        adopting: Arc::default(),
    };
    round.run().await.map_err(|error: LakeError| error.into())
}
