//! Charges from a state: the aggregates are finished, and the plan above them is evaluated.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;
use datafusion::common::{Result, internal_datafusion_err};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::collect;
use ratemill_schemas::Window;
use tokio::time::timeout_at;

use super::slots::{Slot, SlotRows, filled};
use super::sources::{charges_rows, windows_rows};
use super::state::{Failure, FoldState, has_no_window, renumbered};
use crate::evaluate::{Blame, Evaluator, RateError, Upstream, WINDOWS_AT_ONCE, WindowCharges, root_message, split_by_target};
use crate::rule::RuleWindow;
use crate::window_set::{Target, WindowSet};

impl FoldState {
    /// The charges of each window, in the order of `windows`, from the events of the state; a window without events is
    /// rated like every other. `evaluator` gives the charges of other rules and of earlier windows that the rule reads,
    /// and is of the same project.
    ///
    /// # Errors
    /// [`RateError`] names rule and window. Whoever reads the window again gets the same charges or an error that may
    /// name the subject or customer, too.
    pub async fn evaluate(&self, windows: &[Window], evaluator: &Evaluator) -> Result<Vec<WindowCharges>, RateError> {
        let (timed, deadline) = evaluator.timed();
        let Some(deadline) = deadline else { return self.evaluate_in_time(windows, &timed).await };
        let in_time = timeout_at(deadline, self.evaluate_in_time(windows, &timed)).await;
        in_time.unwrap_or_else(|_| Err(evaluator.too_late(&self.fold.rule, windows)))
    }

    async fn evaluate_in_time(&self, windows: &[Window], evaluator: &Evaluator) -> Result<Vec<WindowCharges>, RateError> {
        let rule = &self.fold.rule;
        let mut results: HashMap<Window, RecordBatch> = HashMap::with_capacity(windows.len());
        if rule.reads_itself() && !evaluator.gives_earlier(rule) {
            let mut ordered = windows.to_vec();
            ordered.sort_unstable();
            ordered.dedup();
            self.rate_missing(&ordered, evaluator).await?;
            for window in ordered {
                self.evaluate_together(&[window], evaluator, &mut results).await?;
                let charges = evaluator.charges_of(rule, window, results.get(&window));
                evaluator.keep(rule, &[charges]);
            }
        } else {
            for windows in windows.chunks(WINDOWS_AT_ONCE) {
                self.evaluate_together(windows, evaluator, &mut results).await?;
            }
        }
        Ok(windows.iter().map(|window| evaluator.charges_of(rule, *window, results.get(window))).collect())
    }

    /// Rates the windows that these read and that are neither among them nor published: what they held is not in the state.
    async fn rate_missing(&self, windows: &[Window], evaluator: &Evaluator) -> Result<(), RateError> {
        let rule = &self.fold.rule;
        let mut missing = Vec::new();
        for range in self.fold.set(windows)?.ranges(true) {
            let earlier = rule.windows_between(&self.fold.project.reference, range.start, range.end);
            let earlier = earlier.map_err(|source| RateError::Window { rule: rule.name.clone(), source })?;
            missing.extend(earlier.into_iter().filter(|window| !windows.contains(window) && !evaluator.is_published(rule, *window)));
        }
        if missing.is_empty() {
            return Ok(());
        }
        let charges = evaluator.evaluate(rule, &missing).await?;
        evaluator.keep(rule, &charges);
        Ok(())
    }

    async fn evaluate_together(
        &self,
        windows: &[Window],
        evaluator: &Evaluator,
        results: &mut HashMap<Window, RecordBatch>,
    ) -> Result<(), RateError> {
        let rule = &self.fold.rule;
        let set = self.fold.set(windows)?;
        if let Some(error) = self.failure(&set) {
            return Err(error);
        }
        let upstream = evaluator.upstream(rule, &set).await?;
        let outputs = match self.outputs(&set, &upstream).await {
            Ok(outputs) => outputs,
            Err(error) if windows.len() < 2 => {
                let window = windows.first().copied().unwrap_or(Window { start: 0, end: 0 });
                return Err(self.fold.failed(window, contract_of(&set), root_message(&error)));
            }
            Err(_) => {
                // One by one, the error names its window.
                let mut outputs = Vec::new();
                for window in windows {
                    let set = self.fold.set(std::slice::from_ref(window))?;
                    let of_window = self.outputs(&set, &upstream).await;
                    outputs.extend(of_window.map_err(|error| self.fold.failed(*window, contract_of(&set), root_message(&error)))?);
                }
                outputs
            }
        };
        evaluator.gather(rule, outputs, results)
    }

    /// The error of the first window that cannot be rated.
    fn failure(&self, set: &WindowSet) -> Option<RateError> {
        let rule = &self.fold.rule;
        set.targets().iter().find_map(|target| {
            let number = self.numbers.get(&rated(target))?;
            let blame = |subject: &Option<String>| Blame { contract: target.contract.clone(), customer: None, subject: subject.clone() };
            Some(match self.failed.get(number)? {
                Failure::Query { subject, message } => self.fold.failed(target.window, blame(subject), message.clone()),
                Failure::FanOut { subject, usage_source, id, table } => RateError::FanOut {
                    rule: rule.name.clone(),
                    window: target.window,
                    blame: Box::new(blame(subject)),
                    usage_source: usage_source.clone(),
                    id: id.clone(),
                    table: table.clone(),
                },
            })
        })
    }

    /// The output of the query for each target.
    async fn outputs(&self, set: &Arc<WindowSet>, upstream: &Upstream) -> Result<Vec<(Target, RecordBatch)>> {
        // Here the number of a window is that of its target.
        let mut targets = BTreeMap::new();
        let mut numbers = HashMap::new();
        for (target, number) in set.targets().iter().zip(0_i64..) {
            let rated = rated(target);
            numbers.extend(self.numbers.get(&rated).map(|of_state| (*of_state, number)));
            targets.insert(number, rated);
        }
        let mut rows = SlotRows(BTreeMap::from([(Slot::Windows, windows_rows(&targets)?)]));
        for (index, (input, _)) in self.fold.rule.inputs.iter().enumerate() {
            if let Some(charges) = upstream.get(input) {
                rows.0.insert(Slot::Charges(index), charges_rows(charges, input, set)?);
            }
        }
        let engine = &self.fold.engine;
        for (index, ((point, stages), partials)) in self.fold.points.iter().zip(&self.points).enumerate() {
            let states = partials.batches().map(|batch| renumbered(batch, &point.windows, &numbers));
            let mut states = states.collect::<Result<Vec<_>>>()?;
            states.retain(|batch| batch.num_rows() > 0);
            if let Some(rest) = &point.rest {
                let batches = stages.partial_of(engine, &filled(rest.clone(), &rows)?).await?;
                if batches.iter().any(|batch| has_no_window(batch, &point.windows)) {
                    return Err(internal_datafusion_err!("a row of a fold lost its window"));
                }
                states.extend(batches);
            }
            rows.0.insert(Slot::Aggregate(index), stages.finish(engine, states, &point.schema).await?);
        }
        let output = self.above(filled(self.fold.above.clone(), &rows)?).await?;
        split_by_target(&output, set)
    }

    async fn above(&self, plan: LogicalPlan) -> Result<RecordBatch> {
        let session = &self.fold.session;
        let plan = session.query_planner().create_physical_plan(&plan, session).await?;
        let schema = plan.schema();
        let batches = collect(plan, session.task_ctx()).await?;
        let output = concat_batches(&schema, &batches)?;
        if output.column(0).as_primitive::<Int64Type>().null_count() > 0 {
            return Err(internal_datafusion_err!("a charge lost its window"));
        }
        Ok(output)
    }
}

/// The contract of a window that one contract has.
fn contract_of(set: &WindowSet) -> Blame {
    match set.targets() {
        [target] => Blame { contract: target.contract.clone(), ..Blame::default() },
        _ => Blame::default(),
    }
}

fn rated(target: &Target) -> RuleWindow {
    RuleWindow { window: target.window, contract_id: target.contract.clone() }
}
