//! `ratemill run`: the live engine.

use std::sync::Arc;

use clap::Args;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Failure, Project, start_metrics, stop_signal};
use crate::live;
use crate::pipeline::{Pipeline, shown};

/// `ratemill run`
#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    project: Project,
}

impl Run {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let metrics = start_metrics()?;
        let folder = &self.project.folder;
        let pipeline = Pipeline::open(folder, &shown(folder)).await?;
        let stop = CancellationToken::new();
        let signal = stop.clone();
        tokio::spawn(async move {
            stop_signal().await;
            tracing::info!("stopping");
            signal.cancel();
            // A second signal does not wait.
            stop_signal().await;
            std::process::exit(130);
        });
        let hangup = Arc::new(Notify::new());
        tokio::spawn(notify_of_hangups(Arc::clone(&hangup)));
        live::run(
            pipeline,
            metrics,
            stop,
            hangup,
            |address| println!("listening http://{address}"),
            |report| {
                tracing::info!(
                    epoch = report.epoch,
                    usage = report.usage,
                    rejected = report.rejected,
                    changes = report.changes,
                    windows = report.windows,
                    charges = report.charges,
                    corrections = report.corrections,
                    "epoch"
                );
            },
        )
        .await?;
        Ok(())
    }
}

/// SIGHUP, which by itself would end the process, has it read rules and reference data again.
async fn notify_of_hangups(hangup: Arc<Notify>) {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::hangup()) {
        Ok(mut signal) => {
            while signal.recv().await.is_some() {
                hangup.notify_one();
            }
        }
        Err(error) => tracing::warn!(%error, "SIGHUP does not reload; POST /v1/reload does"),
    }
}
