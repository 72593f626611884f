//! What a running engine does between two epochs beside answering questions: commits that upkeep asks for, and running
//! charges as a table. Each keeps the next epoch waiting for a bounded time and a question under way, and a failure stops nothing.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Settings;
use crate::epoch::Epochs;
use crate::upkeep::{self, Request, Upkeep};

/// Longest time that publishing running charges may keep an epoch waiting; what takes longer is given up.
const PUBLISH: Duration = Duration::from_secs(10);

/// So many times as long as it took, nothing is published after a publication.
const PUBLISH_SHARE: u32 = 9;

/// The next thing to do.
#[derive(Debug)]
pub(super) enum Work {
    /// A commit of upkeep.
    Commit(Request),
    /// A round of upkeep is due.
    Begin,
    /// Running charges are to be published.
    Publish,
}

/// What is done between two epochs, and when.
#[derive(Debug)]
pub(super) struct BetweenEpochs {
    upkeep: Option<Upkeep>,
    running: Option<Duration>,
    publish_at: Instant,
}

impl BetweenEpochs {
    pub(super) fn new(settings: &Settings) -> Self {
        let running = settings.running_interval.map(|micros| Duration::from_micros(micros.unsigned_abs()));
        Self { upkeep: settings.upkeep.live.then(|| Upkeep::new(settings.upkeep)), running, publish_at: Instant::now() }
    }

    /// Waits for the next thing to do; `is_stale` says that there may be running charges to publish.
    pub(super) async fn next(&mut self, is_stale: bool) -> Work {
        let publishes = is_stale && self.running.is_some();
        let Some(upkeep) = &mut self.upkeep else {
            return if publishes {
                tokio::time::sleep_until(self.publish_at).await;
                Work::Publish
            } else {
                std::future::pending().await
            };
        };
        let begin_at = upkeep.begin_at();
        tokio::select! {
            Some(request) = upkeep.requested() => Work::Commit(request),
            () = tokio::time::sleep_until(self.publish_at), if publishes => Work::Publish,
            () = tokio::time::sleep_until(begin_at) => Work::Begin,
        }
    }

    /// Does it.
    pub(super) async fn run(&mut self, epochs: &mut Epochs, work: Work) {
        match work {
            Work::Commit(request) => upkeep::commit(epochs, request).await,
            Work::Begin => {
                if let Some(upkeep) = &mut self.upkeep {
                    upkeep.begin(epochs);
                }
            }
            Work::Publish => {
                let begun = Instant::now();
                match epochs.publish_running(PUBLISH).await {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::warn!("running charges were not published in the time that there is for it; it will be tried again")
                    }
                    Err(error) => tracing::warn!(%error, "running charges were not published; it will be tried again"),
                }
                // What takes long comes seldom.
                self.publish_at = Instant::now() + self.running.unwrap_or_default().max(begun.elapsed() * PUBLISH_SHARE);
            }
        }
    }
}
