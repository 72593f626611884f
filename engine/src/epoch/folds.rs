//! Open windows as folded state: what their usage has come to, as of the log position of the last epoch.
//!
//! The state is made from the `usage` table when the engine starts and follows the epochs from there; windows that are
//! due are then rated without reading their usage again. A rule that is not folded, and a window that is older than the
//! state, are read from the table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::{col, lit};
use futures::TryStreamExt;
use ratemill_rules::session::{SessionLimits, session};
use ratemill_rules::{Evaluator, Fold, FoldState, OpenWindows, RateError, Rule, RuleProject, WindowCharges};
use ratemill_schemas::{Window, time};

use super::run::EpochError;
use super::state::EngineState;

/// Rows that are folded at once.
const ROWS_AT_ONCE: usize = 1 << 16;

/// The state of every rule that can be folded.
#[derive(Debug, Default)]
pub(super) struct Folds {
    rules: Vec<RuleFold>,
    /// Position of the log up to which usage is in the state.
    position: i64,
}

#[derive(Debug)]
struct RuleFold {
    fold: Arc<Fold>,
    state: FoldState,
    /// Open windows that have usage, and whether all of it is in the state.
    known: BTreeMap<Window, bool>,
    /// A window from this time on that has its first usage now had none before, µs UTC.
    fresh_from: i64,
    /// The open windows that were folded into last.
    open: Option<(Vec<Window>, OpenWindows)>,
}

impl Folds {
    /// Plans the folding of every rule that has it.
    pub(super) async fn plan(project: &Arc<RuleProject>, runtime: &Arc<RuntimeEnv>, limits: &SessionLimits) -> Self {
        let mut rules = Vec::new();
        for rule in project.rules.iter().filter(|rule| rule.reads_usage) {
            match Fold::of(Arc::clone(runtime), limits.clone(), Arc::clone(project), rule).await {
                Ok(fold) => {
                    let fold = Arc::new(fold);
                    rules.push(RuleFold { state: fold.state(), fold, known: BTreeMap::new(), fresh_from: i64::MAX, open: None });
                }
                Err(reason) => tracing::info!(rule = rule.name, %reason, "open windows of this rule are read again"),
            }
        }
        Self { rules, position: 0 }
    }

    /// Makes the state anew from the `usage` table. `rated` are the versions of rules that the last epoch knew: of these,
    /// every window with usage is in `state`. Of others, a window counts from `until` on, which no event has reached yet.
    pub(super) async fn rebuild(
        &mut self,
        usage: Arc<dyn TableProvider>,
        state: &EngineState,
        rated: &[(String, String)],
        until: i64,
        (runtime, limits): (&Arc<RuntimeEnv>, &SessionLimits),
    ) -> Result<(), EpochError> {
        for rule in &mut self.rules {
            let of_rule = rule.fold.rule();
            let is_rated = rated.iter().any(|(name, version)| *name == of_rule.name && *version == of_rule.version);
            rule.fresh_from = if is_rated { i64::MIN } else { until };
            rule.known = open_windows(of_rule, state).into_iter().map(|window| (window, is_rated)).collect();
            rule.open_known()?;
        }
        self.position = state.position;
        let held = self.rules.iter().flat_map(|rule| rule.held().map(|window| (window.start, window.end)));
        let Some((from, to)) = held.reduce(|(from, to), (start, end)| (from.min(start), to.max(end))) else { return Ok(()) };
        let instant = |micros| lit(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())));
        let day = |micros| lit(ScalarValue::Date32(Some(time::day_of(micros))));
        let in_days = col("day").gt_eq(day(from)).and(col("day").lt_eq(day(to)));
        let context = session(Arc::clone(runtime), limits);
        let rows = context.read_table(usage)?.filter(in_days.and(col("time").gt_eq(instant(from))).and(col("time").lt(instant(to))))?;
        let mut stream = rows.execute_stream().await?;
        let mut waiting: Vec<RecordBatch> = Vec::new();
        let mut events = 0;
        while let Some(batch) = stream.try_next().await? {
            events += batch.num_rows();
            waiting.push(batch);
            if waiting.iter().map(RecordBatch::num_rows).sum::<usize>() >= ROWS_AT_ONCE {
                self.fold_all(&std::mem::take(&mut waiting)).await?;
            }
        }
        self.fold_all(&waiting).await?;
        tracing::info!(events, rules = self.rules.len(), "open windows are folded");
        Ok(())
    }

    /// Folds the usage of an epoch in, whose windows are open by `state`. A retry of the same epoch adds nothing.
    pub(super) async fn follow(&mut self, from: i64, to: i64, usage: &[RecordBatch], state: &EngineState) -> Result<(), EpochError> {
        if self.position == to || self.rules.is_empty() {
            return Ok(());
        }
        if self.position != from {
            // It missed usage: nothing that it holds is believed any more.
            self.rules.iter_mut().for_each(RuleFold::give_up);
        }
        for rule in &mut self.rules {
            for window in open_windows(rule.fold.rule(), state) {
                rule.known.entry(window).or_insert(window.start >= rule.fresh_from);
            }
            rule.open_known()?;
        }
        self.fold_all(usage).await?;
        self.position = to;
        Ok(())
    }

    async fn fold_all(&mut self, usage: &[RecordBatch]) -> Result<(), EpochError> {
        let mut rest = usage;
        while let Some(first) = rest.first() {
            let mut rows = first.num_rows();
            let mut count = 1;
            while let Some(next) = rest.get(count)
                && rows + next.num_rows() <= ROWS_AT_ONCE
            {
                rows += next.num_rows();
                count += 1;
            }
            let batch = concat_batches(&first.schema(), &rest[..count]).map_err(|source| EpochError::Arrow { epoch: 0, source })?;
            rest = &rest[count..];
            for rule in &mut self.rules {
                rule.fold(&batch).await;
            }
        }
        Ok(())
    }

    /// Whether the state has all usage of this window, which is not final.
    pub(super) fn holds(&self, rule: &Rule, window: Window) -> bool {
        self.of(rule).is_some_and(|fold| fold.known.get(&window).copied().unwrap_or(window.start >= fold.fresh_from))
    }

    fn of(&self, rule: &Rule) -> Option<&RuleFold> {
        self.rules.iter().find(|fold| fold.fold.rule().name == rule.name && fold.fold.rule().version == rule.version)
    }

    /// The charges of windows that the state [holds](Self::holds).
    pub(super) async fn evaluate(
        &self,
        rule: &Rule,
        windows: &[Window],
        evaluator: &Evaluator,
    ) -> Option<Result<Vec<WindowCharges>, RateError>> {
        Some(self.of(rule)?.state.evaluate(windows, evaluator).await)
    }

    /// The same with usage that came after the epoch; `None` where the rule is not folded.
    pub(super) async fn evaluate_with(
        &self,
        rule: &Rule,
        tail: &[RecordBatch],
        windows: &[Window],
        evaluator: &Evaluator,
    ) -> Option<Result<Vec<WindowCharges>, RateError>> {
        let fold = self.of(rule)?;
        let mut state = fold.state.clone();
        let with_tail = async {
            let open = fold.fold.open(windows)?;
            for batch in tail {
                state.fold(batch, &open).await?;
            }
            state.evaluate(windows, evaluator).await
        };
        Some(with_tail.await)
    }

    /// Forgets windows that are open no longer.
    pub(super) fn keep_open(&mut self, state: &EngineState) {
        for rule in &mut self.rules {
            let open = open_windows(rule.fold.rule(), state);
            rule.known.retain(|window, _| open.contains(window));
            let closed: Vec<Window> = rule.state.windows().into_iter().filter(|window| !open.contains(window)).collect();
            if !closed.is_empty() {
                rule.state.drop_windows(&closed);
            }
        }
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!("ratemill_fold_state_bytes").set(self.rules.iter().map(|rule| rule.state.size()).sum::<usize>() as f64);
    }
}

impl RuleFold {
    /// The windows whose usage is all in the state.
    fn held(&self) -> impl Iterator<Item = Window> {
        self.known.iter().filter(|(_, held)| **held).map(|(window, _)| *window)
    }

    /// Opens the windows that are held, for folding.
    fn open_known(&mut self) -> Result<(), EpochError> {
        let windows: Vec<Window> = self.held().collect();
        if self.open.as_ref().is_none_or(|(open, _)| *open != windows) {
            self.open = if windows.is_empty() { None } else { Some((windows.clone(), self.fold.open(&windows)?)) };
        }
        Ok(())
    }

    async fn fold(&mut self, usage: &RecordBatch) {
        let Some((_, open)) = &self.open else { return };
        if let Err(error) = self.state.fold(usage, open).await {
            tracing::warn!(%error, rule = self.fold.rule().name, "usage could not be folded; open windows are read again");
            self.give_up();
        }
    }

    /// Holds no window any more.
    fn give_up(&mut self) {
        self.known.values_mut().for_each(|held| *held = false);
        self.fresh_from = i64::MAX;
        self.state = self.fold.state();
        self.open = None;
    }
}

/// The windows of a rule's version that have usage and are not final; of billing periods, for some contract.
fn open_windows(rule: &Rule, state: &EngineState) -> BTreeSet<Window> {
    let of_rule = state.open.iter().filter(|open| open.rule == rule.name && rule.in_force_at(open.window.window.start));
    of_rule.map(|open| open.window.window).collect()
}
