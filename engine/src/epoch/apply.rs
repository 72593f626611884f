//! Posting pending changes: an epoch of its own that rates exactly the windows with a difference, and lets the others go on
//! with the present versions.

use ratemill_schemas::time;

use super::due::Finalize;
use super::manifest::Manifest;
use super::pending::{ChangeScope, Found, PendingChanges, Search};
use super::run::{EpochError, EpochReport, Epochs};

/// What is to be posted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApplyRequest {
    /// Which windows.
    pub scope: ChangeScope,
    /// The difference that was shown: no other is posted.
    pub digest: Option<String>,
    /// [The fingerprint](ratemill_rules::RuleProject::fingerprint) of the project that the request is about.
    pub project: Option<String>,
}

/// What was posted.
#[derive(Debug)]
pub struct Applied {
    /// The changes, as they were before.
    pub changes: PendingChanges,
    /// The epoch that posted them; `None` where there was nothing to do.
    pub epoch: Option<i64>,
    /// Ledger rows that it wrote.
    pub rows: usize,
    /// The epochs that this ran.
    pub reports: Vec<EpochReport>,
}

/// Why nothing was posted.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The difference is another by now.
    #[error("the difference is not `{shown}` any more, it is {}; look at `ratemill pending` again", if now.is_empty() { "none".to_owned() } else { format!("`{now}`") })]
    Differs {
        /// What was shown.
        shown: String,
        /// What it is.
        now: String,
    },
    /// The engine has other rules or reference data.
    #[error(
        "the engine runs with other rules or reference data than the project folder has; let it read them first, by `ratemill reload` or SIGHUP"
    )]
    OtherProject,
    /// Windows cannot be rated with the present versions.
    #[error("{}; mend it, or leave it out with --rule, --from and --to; nothing was posted", .0.join("\n"))]
    Failing(Vec<String>),
    /// The epoch.
    #[error(transparent)]
    Epoch(#[from] EpochError),
}

impl Epochs {
    /// Posts the pending changes. What the log holds goes into the lake first, by an epoch that finalizes what `finalize`
    /// says and rates late usage with the versions that published its windows.
    ///
    /// # Errors
    /// [`ApplyError`]; nothing is posted then, unless it is an [`EpochError`] of the posting epoch, which is finished by the
    /// next one.
    pub async fn apply(&mut self, request: &ApplyRequest, finalize: Finalize) -> Result<Applied, ApplyError> {
        if request.project.as_ref().is_some_and(|project| *project != self.project.fingerprint()) {
            return Err(ApplyError::OtherProject);
        }
        // Usage that is mended is a part of the difference that was shown.
        let mut reports = self.run_log(finalize).await?;
        let clock = time::now();
        let usage = self.changes.over(self.usage()?).map_err(EpochError::from)?;
        let search = Search { rating: self.rating(), usage, state: &self.state, former: &self.former, moved: &self.moved, clock };
        let Found { changes, tasks, same, .. } = search.find(&request.scope).await?;
        if let Some(shown) = request.digest.as_ref().filter(|shown| **shown != changes.digest) {
            return Err(ApplyError::Differs { shown: shown.clone(), now: changes.digest });
        }
        if !changes.failures.is_empty() {
            return Err(ApplyError::Failing(changes.failures));
        }
        if tasks.is_empty() && same.is_empty() {
            return Ok(Applied { changes, epoch: None, rows: 0, reports });
        }
        let mut state = self.state.clone();
        for window in same {
            state.finalized.insert(window);
        }
        // Late usage that its own versions could not be rated with is rated with these.
        state.pending.retain(|late| !tasks.iter().any(|task| task.rule == late.rule && task.window == late.window));
        let manifest: Manifest = self.manifest(self.state.position, clock, tasks, state);
        self.begin(manifest).await?;
        let report = self.finish().await?;
        let failures: Vec<String> = report.iter().flat_map(|report| report.failures.clone()).collect();
        let (epoch, rows) = report.as_ref().map_or((None, 0), |report| (Some(report.epoch), report.charges));
        reports.extend(report);
        if failures.is_empty() { Ok(Applied { changes, epoch, rows, reports }) } else { Err(ApplyError::Failing(failures)) }
    }
}
