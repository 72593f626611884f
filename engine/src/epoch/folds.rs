//! Open windows as folded state: what their usage has come to, as of the log position of the last epoch.
//!
//! The state is made from the `usage` table when the engine starts and follows the epochs from there; windows that are
//! due are then rated without reading their usage again. A rule that is not folded, and a window that is older than the
//! state, are read from the table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::error::ArrowError;
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::{col, lit};
use futures::TryStreamExt;
use ratemill_rules::reference::TableChanges;
use ratemill_rules::session::{SessionLimits, session};
use ratemill_rules::{Evaluator, Fold, FoldState, OpenWindows, RateError, ReferenceData, Rule, RuleProject, WindowCharges};
use ratemill_schemas::{Window, WindowSpec, time};

use super::asked::Asked;
use super::run::EpochError;
use super::state::EngineState;
use super::tail::TailUsage;

/// The position of a state that has a part of an epoch only.
const TORN: i64 = -1;

/// Rows that are folded at once.
const ROWS_AT_ONCE: usize = 1 << 16;

/// The state of every rule that can be folded.
#[derive(Debug, Default)]
pub(super) struct Folds {
    pub(super) rules: Vec<RuleFold>,
    /// Position of the log up to which usage is in the state.
    pub(super) position: i64,
    /// Whether usage is folded at all.
    pub(super) is_on: bool,
}

#[derive(Debug)]
pub(super) struct RuleFold {
    pub(super) fold: Arc<Fold>,
    pub(super) state: FoldState,
    /// Open windows that have usage, and whether all of it is in the state.
    pub(super) known: BTreeMap<Window, bool>,
    /// A window from this time on that has its first usage now had none before, µs UTC.
    pub(super) fresh_from: i64,
    /// Usage could not be folded: nothing is held until the next start.
    pub(super) is_given_up: bool,
    /// It came out of a checkpoint.
    pub(super) is_loaded: bool,
    /// Windows that it had in the state and has not any more, since reference data that touches them was changed.
    touched: BTreeSet<Window>,
    /// Whether the state has all that windows open with, or the rule does not read it.
    pub(super) opens: bool,
    /// What is kept between questions.
    pub(super) asked: Asked,
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
                    rules.push(RuleFold {
                        state: fold.state(),
                        fold,
                        known: BTreeMap::new(),
                        fresh_from: i64::MAX,
                        is_given_up: false,
                        is_loaded: false,
                        touched: BTreeSet::new(),
                        opens: rule.options.carry.is_empty(),
                        asked: Asked::default(),
                        open: None,
                    });
                }
                Err(reason) => tracing::info!(rule = rule.name, %reason, "open windows of this rule are read again"),
            }
        }
        Self { rules, position: 0, is_on: true }
    }

    /// The rules that are folded.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| rule.fold.rule().name.as_str())
    }

    /// Takes over what `before` has at the position of `now`, for rules that it has in the same version, but for windows that
    /// changed reference data touches; returns the rules' names. [`Self::catch_up`] from that position goes on with them.
    pub(super) fn take_over(&mut self, before: &Self, now: &EngineState, changes: &TableChanges) -> BTreeSet<String> {
        let mut kept = BTreeSet::new();
        if before.position != now.position {
            return kept;
        }
        for rule in &mut self.rules {
            let Some(before) = before.of(rule.fold.rule()).filter(|before| !before.is_given_up && before.opens) else { continue };
            let Some(state) = before.state.under(&rule.fold, changes) else { continue };
            let (touched, open) = (rule.fold.touched(changes), open_windows(rule.fold.rule(), now));
            rule.state = state;
            rule.known = before.known.clone();
            rule.touched = rule.known.keys().copied().filter(|window| touched.touch(*window)).collect();
            // A window that has usage by this project only is not in the state, whatever is said of new ones.
            rule.touched.extend(open.into_iter().filter(|window| !before.known.contains_key(window)));
            rule.is_loaded = true;
            if rule.touched.is_empty() {
                kept.insert(rule.fold.rule().name.clone());
            }
        }
        kept
    }

    /// Brings the state to the position of `state`: rules that were loaded have usage up to `loaded`, the others none.
    /// Returns how many events were read.
    pub(super) async fn catch_up(
        &mut self,
        usage: Arc<dyn TableProvider>,
        state: &EngineState,
        loaded: i64,
        session: (&Arc<RuntimeEnv>, &SessionLimits),
    ) -> Result<usize, EpochError> {
        for rule in &mut self.rules {
            rule.fresh_from = rule.tracked_from(state);
            if rule.is_loaded {
                // Of windows that opened since, the state has no usage yet; of those that were dropped it has none any more.
                let touched: Vec<Window> = rule.touched.iter().copied().collect();
                rule.open = if touched.is_empty() { None } else { Some((touched.clone(), rule.fold.open(&touched)?)) };
                rule.known.extend(touched.into_iter().map(|window| (window, true)));
                rule.touched.clear();
            } else {
                // Whatever the table has of an open window is read.
                rule.known = open_windows(rule.fold.rule(), state).into_iter().map(|window| (window, true)).collect();
                rule.open_known()?;
            }
        }
        let older = self.read(Arc::clone(&usage), (0, loaded), session).await?;
        for rule in self.rules.iter_mut().filter(|rule| rule.is_loaded) {
            rule.note_open(state);
            rule.read_again(state, loaded);
            rule.open_known()?;
        }
        let newer = self.read(usage, (loaded, state.position), session).await?;
        self.position = state.position;
        self.keep_open(state);
        Ok(older + newer)
    }

    /// Folds the events of these positions into the windows that are open for folding.
    async fn read(
        &mut self,
        usage: Arc<dyn TableProvider>,
        (from, to): (i64, i64),
        (runtime, limits): (&Arc<RuntimeEnv>, &SessionLimits),
    ) -> Result<usize, EpochError> {
        let open = self.rules.iter().filter_map(|rule| rule.open.as_ref()).flat_map(|(windows, _)| windows);
        let span = open.map(|window| (window.start, window.end)).reduce(|(from, to), (start, end)| (from.min(start), to.max(end)));
        let Some((start, end)) = span.filter(|_| from < to) else { return Ok(0) };
        let instant = |micros| lit(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())));
        let day = |micros| lit(ScalarValue::Date32(Some(time::day_of(micros))));
        let in_days = col("day").gt_eq(day(start)).and(col("day").lt_eq(day(end)));
        let in_time = col("time").gt_eq(instant(start)).and(col("time").lt(instant(end)));
        let in_log = col("log_position").gt_eq(lit(from)).and(col("log_position").lt(lit(to)));
        let context = session(Arc::clone(runtime), limits);
        let stream = context.read_table(usage)?.filter(in_days.and(in_time).and(in_log))?.execute_stream().await?;
        self.fold_stream(stream).await
    }

    /// Folds rows as they come; returns how many.
    async fn fold_stream(&mut self, mut stream: SendableRecordBatchStream) -> Result<usize, EpochError> {
        let mut waiting: Vec<RecordBatch> = Vec::new();
        let (mut rows, mut events) = (0, 0);
        while let Some(batch) = stream.try_next().await? {
            rows += batch.num_rows();
            waiting.push(batch);
            if rows >= ROWS_AT_ONCE {
                events += std::mem::take(&mut rows);
                self.fold_all(&std::mem::take(&mut waiting)).await?;
            }
        }
        self.fold_all(&waiting).await?;
        Ok(events + rows)
    }

    /// Folds the usage of an epoch in, and that of files which it adopts, whose windows are open by `state`. A retry of the
    /// same epoch adds nothing.
    pub(super) async fn follow(
        &mut self,
        (from, to): (i64, i64),
        usage: &[RecordBatch],
        adopted: Option<SendableRecordBatchStream>,
        state: &EngineState,
    ) -> Result<(), EpochError> {
        if self.position == to || self.rules.is_empty() {
            return Ok(());
        }
        if self.position != from {
            // It missed usage: nothing that it holds is believed any more.
            self.rules.iter_mut().for_each(RuleFold::give_up);
        }
        for rule in &mut self.rules {
            rule.note_open(state);
            rule.read_again(state, from);
            rule.open_known()?;
        }
        // Who stops the epoch half-way must not find some of it folded.
        self.position = TORN;
        self.fold_all(usage).await?;
        if let Some(adopted) = adopted {
            self.fold_stream(adopted).await?;
        }
        self.position = to;
        Ok(())
    }

    async fn fold_all(&mut self, usage: &[RecordBatch]) -> Result<(), EpochError> {
        for batch in joined(usage) {
            let batch = batch.map_err(|source| EpochError::Arrow { epoch: 0, source })?;
            for rule in &mut self.rules {
                rule.fold(&batch).await;
            }
        }
        Ok(())
    }

    /// Whether the state has all usage of this window, which is not final.
    pub(super) fn holds(&self, rule: &Rule, window: Window) -> bool {
        self.position != TORN
            && self.of(rule).is_some_and(|fold| {
                let opens = fold.opens && fold.state.opens(window.start);
                opens && fold.known.get(&window).copied().unwrap_or(window.start >= fold.fresh_from)
            })
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

    /// The same with usage that came after the epoch, for a question; `None` where the rule is not folded. Where `customer` is
    /// named, charges of others may be missing.
    pub(super) async fn evaluate_with(
        &self,
        rule: &Rule,
        tail: &[TailUsage],
        windows: &[Window],
        evaluator: &Evaluator,
        customer: Option<&str>,
    ) -> Option<Result<Vec<WindowCharges>, EpochError>> {
        let fold = self.of(rule)?;
        Some(fold.asked.charges((fold, self.position), tail, windows, evaluator, customer).await)
    }

    /// Forgets windows that are open no longer.
    pub(super) fn keep_open(&mut self, state: &EngineState) {
        for rule in &mut self.rules {
            let open = open_windows(rule.fold.rule(), state);
            rule.known.retain(|window, _| open.contains(window));
            rule.asked.known.get_mut().retain(|window| open.contains(window));
            let closed: Vec<Window> = rule.state.windows().into_iter().filter(|window| !open.contains(window)).collect();
            if !closed.is_empty() {
                rule.state.drop_windows(&closed);
            }
            if let Err(error) = rule.forget_passed(state) {
                tracing::warn!(%error, rule = rule.fold.rule().name, "what was before the windows is lost; they are read again");
                rule.give_up();
            }
        }
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!("ratemill_fold_state_bytes").set(self.bytes() as f64);
    }

    /// Bytes that the state takes.
    pub(super) fn bytes(&self) -> usize {
        self.rules.iter().map(|rule| rule.state.size()).sum()
    }
}

impl RuleFold {
    /// The windows whose usage is all in the state.
    fn held(&self) -> impl Iterator<Item = Window> {
        self.known.iter().filter(|(_, held)| **held).map(|(window, _)| *window)
    }

    /// From when on a window that is not open has no usage, µs UTC.
    pub(super) fn tracked_from(&self, state: &EngineState) -> i64 {
        let rule = self.fold.rule();
        state.fresh_from(&rule.name, &tracked_version(rule, self.fold.reference()))
    }

    /// Takes note of windows that have usage now: where they had none before, all of it will be in the state.
    fn note_open(&mut self, state: &EngineState) {
        if !self.is_given_up {
            self.fresh_from = self.tracked_from(state);
        }
        for window in open_windows(self.fold.rule(), state) {
            self.known.entry(window).or_insert(window.start >= self.fresh_from);
        }
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
        let folded = match &self.open {
            Some((_, open)) => self.state.fold_noting(usage, open, self.asked.known.get_mut()).await,
            None => self.state.open_with(usage),
        };
        if let Err(error) = folded {
            tracing::warn!(%error, rule = self.fold.rule().name, "usage could not be folded; open windows are read again");
            self.give_up();
        }
    }

    /// Holds no window any more in which events were voided or amended since this position of the log: what is in the state
    /// cannot be taken out again.
    fn read_again(&mut self, state: &EngineState, since: i64) {
        let rule = self.fold.rule();
        let changed = state.open.iter().filter(|open| open.rule == rule.name && open.changed_at > since);
        let windows: Vec<Window> = changed.map(|open| open.window.window).collect();
        for window in &windows {
            self.known.insert(*window, false);
        }
        if !windows.is_empty() {
            self.state.drop_windows(&windows);
            self.asked.known.get_mut().retain(|window| !windows.contains(window));
        }
    }

    /// Holds no window any more.
    pub(super) fn give_up(&mut self) {
        self.known.values_mut().for_each(|held| *held = false);
        self.fresh_from = i64::MAX;
        self.is_given_up = true;
        self.opens = false;
        self.asked = Asked::default();
        self.state = self.fold.state();
        self.open = None;
    }
}

/// The rows in batches of the size that is folded at once: each costs as much as many rows.
pub(super) fn joined(batches: &[RecordBatch]) -> impl Iterator<Item = Result<RecordBatch, ArrowError>> {
    let mut rest = batches;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let mut rows = 0;
        let fit = |batch: &&RecordBatch| {
            rows += batch.num_rows();
            rows <= ROWS_AT_ONCE
        };
        let count = rest.iter().take_while(fit).count().max(1);
        let (now, later) = rest.split_at(count);
        rest = later;
        Some(concat_batches(&first.schema(), now))
    })
}

/// The version under which it is known which windows of a rule have usage: contracts say which window an event is in.
pub(super) fn tracked_version(rule: &Rule, reference: &ReferenceData) -> String {
    match rule.options.window {
        WindowSpec::BillingPeriod => format!("{} {}", rule.version, reference.version()),
        _ => rule.version.clone(),
    }
}

/// The windows of a rule's version that have usage and are not final; of billing periods, for some contract.
pub(super) fn open_windows(rule: &Rule, state: &EngineState) -> BTreeSet<Window> {
    let of_rule = state.open.iter().filter(|open| open.rule == rule.name && rule.in_force_at(open.window.window.start));
    of_rule.map(|open| open.window.window).collect()
}
