//! Folding: open windows as partial aggregates.
//!
//! A live engine cannot read all events of a month again whenever one arrives. Where every event reaches the output of a
//! rule through an aggregate, the partial state of that aggregate stands for all events so far: a batch of events is
//! folded in by itself, and charges are evaluated from the state. What is folded is the lifted plan, which is for all
//! windows, so that one state holds every open window; the number of the window is a group key.
//!
//! [`Fold`] is the plan of one version of a rule and of the reference data, [`FoldState`] what is known of usage. Folded
//! charges equal those that [`crate::Evaluator`] gives for the same events, whatever their order and however they were cut
//! into batches and states.

mod checkpoint;
mod customers;
mod evaluation;
mod opening;
mod physical;
mod points;
mod reads;
mod running;
mod slots;
mod sources;
mod state;
#[cfg(test)]
mod tests;
mod trace;

use std::sync::Arc;

use datafusion::common::DataFusionError;
use datafusion::datasource::MemTable;
use datafusion::execution::SessionState;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::LogicalPlan;
use ratemill_schemas::Window;
use sha2::{Digest, Sha256};

pub use checkpoint::CheckpointError;
pub use opening::Forgotten;
pub use running::RunningCharges;
pub use state::FoldState;

use crate::evaluate::{Blame, Evaluator, RateError, lifted_over, planning_session, root_message};
use crate::lift::NotLifted;
use crate::project::RuleProject;
use crate::reference::{ReferenceData, TableChanges, Times};
use crate::rule::Rule;
use crate::session::SessionLimits;
use crate::window_set::WindowSet;
use customers::customer_keys;
use opening::Carry;
use physical::{Engine, Kept, Stages};
use points::{Divided, Point, divide};
use reads::versions_read;
use sources::SlotSources;

/// Why a rule is not folded, in a sentence for people; its open windows are read again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotFoldable(String);

impl NotFoldable {
    fn because(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl From<DataFusionError> for NotFoldable {
    fn from(error: DataFusionError) -> Self {
        Self(format!("it cannot be planned: {}", root_message(&error)))
    }
}

impl From<NotLifted> for NotFoldable {
    fn from(error: NotLifted) -> Self {
        match error {
            NotLifted::Shape(shape) => Self(format!("it runs window by window: {shape}")),
            NotLifted::Error(error) => error.into(),
        }
    }
}

/// How one version of a rule is folded, with one version of the reference data.
#[derive(Debug)]
pub struct Fold {
    project: Arc<RuleProject>,
    rule: Rule,
    /// Folds events, on one partition.
    engine: Engine,
    /// Plans what is evaluated.
    session: SessionState,
    points: Vec<(Point, Stages)>,
    checks: Vec<Check>,
    /// The plan above the aggregates that are folded.
    above: LogicalPlan,
    /// How what was before the windows is kept, where the rule reads it.
    carry: Option<Carry>,
    /// The group key of each point that is the customer, where charges of a customer come of that customer's groups alone.
    customers: Option<Vec<usize>>,
    fingerprint: String,
    /// The versions of the reference tables that the state depends on.
    reads: String,
}

/// The check of joins that may meet several rows.
#[derive(Debug)]
struct Check {
    plan: Kept,
    table: String,
}

/// Windows that are open: those that usage is folded into.
///
/// Made once for many batches; of billing periods it knows the contracts.
#[derive(Debug, Clone)]
pub struct OpenWindows(Arc<WindowSet>);

impl Fold {
    /// Plans how a rule of `project` is folded.
    ///
    /// # Errors
    /// [`NotFoldable`] says why it is not.
    pub async fn of(runtime: Arc<RuntimeEnv>, limits: SessionLimits, project: Arc<RuleProject>, rule: &Rule) -> Result<Self, NotFoldable> {
        let usage = MemTable::try_new(project.usage.stored().clone(), vec![vec![]])?;
        let evaluator = Evaluator::new(runtime, limits, Arc::clone(&project), Arc::new(usage));
        let context = planning_session(&evaluator, rule)?;
        let session = context.state();
        let engine = Engine::new(context.state());
        let sources = SlotSources { project: &project, rule };
        let lifted = lifted_over(&context, &rule.query, &sources).await?;
        let optimized = engine.state().optimize(&lifted)?;
        let Divided { points: divided, above } = divide(&optimized)?;
        let mut points = Vec::with_capacity(divided.len());
        for point in divided {
            let stages = Stages::new(&engine, point.events.clone()).await?;
            points.push((point, stages));
        }
        let mut checks = Vec::new();
        for check in rule.fan_out.iter().filter(|_| !rule.options.fan_out_allowed) {
            let mut query = check.query.clone();
            query.limit_clause = None;
            let plan = engine.state().optimize(&lifted_over(&context, &query, &sources).await?)?;
            let by_event = divide(&plan).is_ok_and(|divided| matches!(divided.points.as_slice(), [point] if point.rest.is_none()));
            if !by_event {
                return Err(NotFoldable::because(format!(
                    "whether an event matches several rows of `{}` shows in all events of the window only",
                    check.table
                )));
            }
            checks.push(Check { plan: Kept::whole(plan), table: check.table.clone() });
        }
        let fingerprint = fingerprint(&points, &above);
        let below = points.iter().map(|(point, _)| &point.events).chain(checks.iter().map(|check| check.plan.logical()));
        let reads = versions_read(below, rule, &project)?;
        let folded: Vec<&Point> = points.iter().map(|(point, _)| point).collect();
        let customers = customer_keys(&folded, &above);
        let carry = Carry::of(rule, &project, &optimized, &session)?;
        Ok(Self { project, rule: rule.clone(), engine, session, points, checks, above, carry, customers, fingerprint, reads })
    }

    /// A state without events.
    #[must_use]
    pub fn state(self: &Arc<Self>) -> FoldState {
        FoldState::new(Arc::clone(self))
    }

    /// The rule.
    #[must_use]
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// The reference data that events are joined with.
    #[must_use]
    pub fn reference(&self) -> &ReferenceData {
        &self.project.reference
    }

    /// The times at which these changes of reference tables touch what the rule charges.
    #[must_use]
    pub fn touched(&self, changes: &TableChanges) -> Times {
        self.project.touched(&self.rule, changes)
    }

    /// What the state keeps that grows with usage rather than with what is charged, in words.
    #[must_use]
    pub fn keeps(&self) -> Vec<String> {
        let mut keeps: Vec<String> = self.points.iter().flat_map(|(point, _)| point.keeps.clone()).collect();
        keeps.extend(self.carry.as_ref().map(Carry::keeps));
        keeps.sort();
        keeps.dedup();
        keeps
    }

    /// Whether the charges of a customer come of that customer's usage and groups alone, so that those of others need not be
    /// evaluated with them.
    #[must_use]
    pub fn tells_customers_apart(&self) -> bool {
        self.customers.is_some()
    }

    /// These windows of the rule, to fold usage into.
    ///
    /// # Errors
    /// [`RateError::Window`] for a window outside the calendar.
    pub fn open(&self, windows: &[Window]) -> Result<OpenWindows, RateError> {
        Ok(OpenWindows(self.set(windows)?))
    }

    fn set(&self, windows: &[Window]) -> Result<Arc<WindowSet>, RateError> {
        WindowSet::of(&self.rule, &self.project.reference, windows)
            .map(Arc::new)
            .map_err(|source| RateError::Window { rule: self.rule.name.clone(), source })
    }

    /// Whether states of the two are made of the same columns and reference data.
    fn is_like(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint && self.rule.version == other.rule.version && self.reads == other.reads
    }

    fn failed(&self, window: Window, blame: Blame, message: String) -> RateError {
        RateError::Query { rule: self.rule.name.clone(), window, blame: Box::new(blame), message, cause: None }
    }
}

/// States of one fingerprint have the same columns with the same meaning.
fn fingerprint(points: &[(Point, Stages)], above: &LogicalPlan) -> String {
    let mut hash = Sha256::new();
    for (point, stages) in points {
        hash.update(point.events.display_indent_schema().to_string());
        hash.update(point.rest.as_ref().map_or_else(String::new, |rest| rest.display_indent_schema().to_string()));
        hash.update(format!("{:?}", stages.state));
    }
    hash.update(above.display_indent_schema().to_string());
    hex::encode(&hash.finalize()[..16])
}
