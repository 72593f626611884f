//! What the living owner of a lake is told to do between two epochs: to post pending changes, to read the project again. It is
//! asked for running charges then, too.

use std::path::PathBuf;
use std::sync::Arc;

use ratemill_rules::RuleProject;
use ratemill_schemas::UsageSchema;
use serde::Serialize;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::config::Settings;
use crate::epoch::{Applied, ApplyError, ApplyRequest, EpochReport, Epochs, Finalize, PendingChanges, Reloaded, RunningQuestion};
use crate::pipeline::shown;

/// Questions that wait.
pub(super) const QUESTIONS: usize = 64;
/// Commands that do.
pub(super) const COMMANDS: usize = 16;

/// What somebody wants of the engine between two epochs.
#[derive(Debug)]
pub(super) enum Call {
    /// Running charges.
    Question(RunningQuestion),
    /// Something to do.
    Command(Command),
    /// The process was told to read its files again; nobody waits for an answer.
    Hangup,
}

/// Something to do between two epochs.
#[derive(Debug)]
pub enum Command {
    /// Post pending changes.
    Apply {
        /// Which.
        request: ApplyRequest,
        /// What was posted.
        answer: oneshot::Sender<Result<Posted, Refusal>>,
    },
    /// Read rules and reference data again.
    Reload {
        /// What differs.
        answer: oneshot::Sender<Result<ReloadAnswer, Refusal>>,
    },
}

/// Why a command was not done; nothing has changed then, but for what `Failed` says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The difference is another than the one that was shown.
    #[error("{0}")]
    Differs(String),
    /// The engine and the project folder have different rules or reference data.
    #[error("{0}")]
    OtherProject(String),
    /// Rules, or windows that cannot be rated.
    #[error("{0}")]
    Rules(String),
    /// The lake or the log.
    #[error("{0}")]
    Failed(String),
}

impl From<ApplyError> for Refusal {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Differs { .. } => Self::Differs(error.to_string()),
            ApplyError::OtherProject => Self::OtherProject(error.to_string()),
            ApplyError::Failing(_) => Self::Rules(error.to_string()),
            ApplyError::Epoch(error) => Self::Failed(format!("{error}; an epoch that was begun is finished by the next one")),
        }
    }
}

/// What was posted.
#[derive(Debug, Clone, Serialize, serde::Deserialize)]
pub struct Posted {
    /// The epoch that posted it; `None` where there was nothing to do.
    pub posted_epoch: Option<i64>,
    /// Ledger rows that it wrote.
    pub rows_posted: usize,
    /// The changes.
    #[serde(flatten)]
    pub changes: PendingChanges,
}

impl From<Applied> for Posted {
    fn from(applied: Applied) -> Self {
        Self { posted_epoch: applied.epoch, rows_posted: applied.rows, changes: applied.changes }
    }
}

/// What a reload has found.
#[derive(Debug, Clone, Serialize)]
pub struct ReloadAnswer {
    /// What differs.
    #[serde(flatten)]
    pub reloaded: Reloaded,
    /// `ratemill.toml` was changed: it is read at a start only.
    pub restart_needed: bool,
    /// What the check warns of.
    pub warnings: Vec<String>,
}

/// Where the project is read from, and as what.
#[derive(Debug)]
pub(super) struct ProjectFiles {
    folder: PathBuf,
    schema: Arc<UsageSchema>,
    /// `ratemill.toml` as it was at the start.
    config: Option<String>,
}

impl ProjectFiles {
    pub(super) fn of(settings: &Settings) -> Self {
        let mut files = Self { folder: settings.folder.clone(), schema: Arc::clone(&settings.schema), config: None };
        files.config = files.config_now();
        files
    }

    fn config_now(&self) -> Option<String> {
        std::fs::read_to_string(self.folder.join("ratemill.toml")).ok()
    }
}

/// The questions and commands to an engine, and what it needs for them.
#[derive(Debug)]
pub(super) struct Commands {
    pub(super) queue: mpsc::Receiver<Command>,
    /// Notified when the process is told to read its files again.
    pub(super) hangup: Arc<Notify>,
    pub(super) files: ProjectFiles,
    /// Names of the rules, for those who ask.
    pub(super) rules: watch::Sender<Vec<String>>,
}

impl Commands {
    /// The next call to `epochs`. Nothing is lost when the caller stops waiting.
    pub(super) async fn next(&mut self, epochs: &Epochs) -> Call {
        tokio::select! {
            question = epochs.question() => Call::Question(question),
            Some(command) = self.queue.recv() => Call::Command(command),
            () = self.hangup.notified() => Call::Hangup,
        }
    }

    /// Does what is wanted. What is dropped half-way is finished by the manifest of its epoch, or was not begun.
    pub(super) async fn obey(&mut self, call: Call, epochs: &mut Epochs, report: &mut impl FnMut(&EpochReport)) {
        // Who asked may be gone.
        match call {
            Call::Question(question) => epochs.answer(question).await,
            Call::Command(Command::Apply { request, answer }) => {
                let outcome = epochs.apply(&request, Finalize::Live).await;
                if let Ok(applied) = &outcome {
                    applied.reports.iter().for_each(report);
                }
                let _ = answer.send(outcome.map(Posted::from).map_err(Refusal::from));
            }
            Call::Command(Command::Reload { answer }) => {
                let _ = answer.send(self.reload(epochs, report).await);
            }
            Call::Hangup => {
                let _ = self.reload(epochs, report).await;
            }
        }
    }

    async fn reload(&self, epochs: &mut Epochs, report: &mut impl FnMut(&EpochReport)) -> Result<ReloadAnswer, Refusal> {
        let outcome = self.read_again(epochs, report).await;
        match &outcome {
            Ok(ReloadAnswer { reloaded, .. }) => {
                metrics::counter!("ratemill_reloads_total", "outcome" => "done").increment(1);
                tracing::info!(rules = ?reloaded.rules, tables = ?reloaded.tables, folded_again = ?reloaded.folded_again, "rules and reference data are reloaded");
            }
            Err(refusal) => {
                metrics::counter!("ratemill_reloads_total", "outcome" => "refused").increment(1);
                tracing::error!("not reloaded, the engine goes on with the rules and reference data that it has: {refusal}");
            }
        }
        outcome
    }

    async fn read_again(&self, epochs: &mut Epochs, report: &mut impl FnMut(&EpochReport)) -> Result<ReloadAnswer, Refusal> {
        let files = &self.files;
        let loaded = RuleProject::load(&files.folder, &shown(&files.folder), Arc::clone(&files.schema)).await;
        let (project, warnings) = loaded.map_err(|diagnostics| Refusal::Rules(diagnostics.to_string()))?;
        let warnings: Vec<String> = warnings.0.iter().map(|warning| warning.render(false)).collect();
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let reloaded = epochs.reload(project).await.map_err(|error| match error {
            error @ (crate::epoch::EpochError::Version { .. } | crate::epoch::EpochError::Window(_)) => Refusal::Rules(error.to_string()),
            error => Refusal::Failed(error.to_string()),
        })?;
        reloaded.report.iter().for_each(report);
        let names = epochs.project().rules.iter().map(|rule| rule.name.clone()).collect();
        self.rules.send_replace(names);
        let restart_needed = files.config != files.config_now();
        if restart_needed {
            tracing::warn!("ratemill.toml was changed; it is read at a start only: restart the engine for what it says");
        }
        Ok(ReloadAnswer { reloaded, restart_needed, warnings })
    }
}
