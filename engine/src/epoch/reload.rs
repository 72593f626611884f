//! Rules and reference data that are read again while the engine runs.
//!
//! Everything that depends on the project is made for the new one first, and put in place of the old one at once: whatever
//! fails before leaves the engine as it was, and capture goes on all the while.

use std::collections::BTreeSet;
use std::sync::Arc;

use ratemill_rules::{Rule, RuleProject};
use serde::{Deserialize, Serialize};

use super::due;
use super::folds::Folds;
use super::mended::Examine;
use super::moved::MovedSubjects;
use super::rate::Rating;
use super::run::{EpochError, EpochReport, Epochs};
use super::state::OpenWindow;

/// What the engine knows by its project, folded windows left out.
#[derive(Debug)]
pub(super) struct Fitted {
    project: Arc<RuleProject>,
    open: Vec<OpenWindow>,
    former: Vec<Rule>,
    moved: MovedSubjects,
}

/// What differs after a reload.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Reloaded {
    /// Rules of which a version is new or gone.
    pub rules: Vec<String>,
    /// Reference tables that are new, gone or changed.
    pub tables: Vec<String>,
    /// Rules whose folded windows were read again from usage.
    pub folded_again: Vec<String>,
    /// The interrupted epoch that was finished before, if there was one.
    #[serde(skip)]
    pub report: Option<EpochReport>,
}

impl Reloaded {
    fn between(before: &RuleProject, now: &RuleProject) -> Self {
        let versions = |project: &RuleProject| -> BTreeSet<(String, String)> {
            project.rules.iter().map(|rule| (rule.name.clone(), rule.version.clone())).collect()
        };
        let (old, new) = (versions(before), versions(now));
        let rules: BTreeSet<String> = old.symmetric_difference(&new).map(|(name, _)| name.clone()).collect();
        let tables = now.reference.tables_unlike(&before.reference.files());
        Self { rules: rules.into_iter().collect(), tables: tables.into_iter().collect(), ..Self::default() }
    }
}

impl Epochs {
    /// What this project makes of the state; a project that does not fit what is published is refused.
    pub(super) async fn fit(&self, project: Arc<RuleProject>) -> Result<Fitted, EpochError> {
        self.check_against_ledger(&project)?;
        let mut state = self.state.clone();
        due::drop_strange(&mut state, &project)?;
        let former = Rating { project: &project, ..self.rating() }.former(&self.state).await;
        let moved = MovedSubjects::load(&self.lake, &state, &project).await?;
        moved.warn(&state);
        Ok(Fitted { project, open: state.open, former, moved })
    }

    /// Goes on with this project, and returns what was before. Windows whose rule failed are tried again. Whatever else depends
    /// on the project belongs here, or into [`Self::fit`] where it can fail: a start and a reload go the same way.
    pub(super) fn take(&mut self, fitted: Fitted) -> Fitted {
        self.failed.clear();
        self.examine = Examine::Due;
        Fitted {
            project: std::mem::replace(&mut self.project, fitted.project),
            open: std::mem::replace(&mut self.state.open, fitted.open),
            former: std::mem::replace(&mut self.former, fitted.former),
            moved: std::mem::replace(&mut self.moved, fitted.moved),
        }
    }

    /// Goes on with another project, of the same usage schema, from the next epoch on; published windows stay with the
    /// versions that published them until somebody [applies](Self::apply) the difference.
    ///
    /// # Errors
    /// [`EpochError`]; the project is the one before then.
    pub async fn reload(&mut self, project: RuleProject) -> Result<Reloaded, EpochError> {
        // Its manifest is of the project before.
        let report = self.finish().await?;
        let reloaded = Reloaded { report, ..Reloaded::between(&self.project, &project) };
        if reloaded.rules.is_empty() && reloaded.tables.is_empty() {
            return Ok(reloaded);
        }
        let project = Arc::new(project);
        self.keep_versions(&project).await?;
        let fitted = self.fit(project).await?;
        let state = self.state.clone();
        let before = self.take(fitted);
        // Who stops the engine in the middle must not rate from windows that are folded with the reference data before.
        let folds = std::mem::take(&mut self.folds);
        match self.open_again(&before.project, &folds).await {
            Ok(folded_again) => Ok(Reloaded { folded_again, ..reloaded }),
            Err(error) => {
                self.take(before);
                self.state = state;
                self.folds = folds;
                Err(error)
            }
        }
    }

    /// Notes the open windows of rules that are new, and folds what the project `before` did not have as it is now. Returns the
    /// rules whose usage was read for it.
    async fn open_again(&mut self, before: &RuleProject, folds_before: &Folds) -> Result<Vec<String>, EpochError> {
        self.note_open_windows().await?;
        if !folds_before.is_on {
            return Ok(Vec::new());
        }
        let mut folds = Folds::plan(&self.project, &self.runtime, &self.limits).await;
        let changes = self.project.reference.changes_from(&before.reference.files());
        let kept = folds.take_over(folds_before, &self.state, &changes);
        let folded_again: Vec<String> = folds.names().filter(|name| !kept.contains(*name)).map(str::to_owned).collect();
        let usage = self.changes.over(self.usage()?)?;
        let (position, session) = (self.state.position, (&self.runtime, &self.limits));
        let events = folds.catch_up(Arc::clone(&usage), &self.state, position, session).await?;
        folds.catch_up_openings(&usage, &self.changes, position, session).await?;
        tracing::info!(events, rules = ?folded_again, "open windows of changed rules are folded again");
        self.folds = folds;
        Ok(folded_again)
    }
}
