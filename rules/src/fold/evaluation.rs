//! Charges from a state: the aggregates are finished, and the plan above them is evaluated.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::Int64Type;
use datafusion::common::{Result, internal_datafusion_err};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::collect;
use ratemill_schemas::Window;
use tokio::time::timeout_at;

use super::Fold;
use super::opening::Openings;
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
        Ok(Evaluation { fold: &self.fold, states: &[self], only: None }.charges(windows, evaluator).await?.charges)
    }

    /// The same from the events of this state and of one of the same fold that has what came later.
    ///
    /// # Errors
    /// As [`Self::evaluate`].
    pub async fn evaluate_with(&self, later: &Self, windows: &[Window], evaluator: &Evaluator) -> Result<Vec<WindowCharges>, RateError> {
        Ok(Evaluation { fold: &self.fold, states: &[self, later], only: None }.charges(windows, evaluator).await?.charges)
    }
}

/// One evaluation.
pub(super) struct Evaluation<'a> {
    pub(super) fold: &'a Arc<Fold>,
    /// States of the fold, whose events are rated together.
    pub(super) states: &'a [&'a FoldState],
    /// Only charges of these customers are wanted; of a fold whose customers are not told apart, all are given.
    pub(super) only: Option<&'a HashSet<String>>,
}

/// What was evaluated.
pub(super) struct Outcome {
    pub(super) charges: Vec<WindowCharges>,
    /// Rows of state that went into it.
    pub(super) groups: usize,
}

impl Evaluation<'_> {
    pub(super) async fn charges(&self, windows: &[Window], evaluator: &Evaluator) -> Result<Outcome, RateError> {
        let (timed, deadline) = evaluator.timed();
        let Some(deadline) = deadline else { return self.evaluate_in_time(windows, &timed).await };
        let in_time = timeout_at(deadline, self.evaluate_in_time(windows, &timed)).await;
        in_time.unwrap_or_else(|_| Err(evaluator.too_late(&self.fold.rule, windows)))
    }

    async fn evaluate_in_time(&self, windows: &[Window], evaluator: &Evaluator) -> Result<Outcome, RateError> {
        let rule = &self.fold.rule;
        let mut results: HashMap<Window, RecordBatch> = HashMap::with_capacity(windows.len());
        let mut groups = 0;
        if rule.reads_itself() && !evaluator.gives_earlier(rule) {
            let mut ordered = windows.to_vec();
            ordered.sort_unstable();
            ordered.dedup();
            self.bring_earlier(&ordered, evaluator).await?;
            for window in ordered {
                groups += self.evaluate_together(&[window], evaluator, &mut results).await?;
                let charges = evaluator.charges_of(rule, window, results.get(&window));
                evaluator.keep(rule, &[charges]);
            }
        } else {
            for windows in windows.chunks(WINDOWS_AT_ONCE) {
                groups += self.evaluate_together(windows, evaluator, &mut results).await?;
            }
        }
        let charges = windows.iter().map(|window| evaluator.charges_of(rule, *window, results.get(window)));
        Ok(Outcome { charges: charges.collect(), groups })
    }

    /// Brings the charges of the windows that these read and that are not among them: as they are published; what is not
    /// is rated, since what those windows held is not in the state.
    async fn bring_earlier(&self, windows: &[Window], evaluator: &Evaluator) -> Result<(), RateError> {
        let (rule, project) = (&self.fold.rule, &self.fold.project);
        let ranges = self.fold.set(windows)?.ranges(true);
        for version in project.rules.iter().filter(|version| version.name == rule.name) {
            let mut missing = Vec::new();
            for range in &ranges {
                let earlier = version.windows_between(&project.reference, range.start, range.end);
                let earlier = earlier.map_err(|source| RateError::Window { rule: rule.name.clone(), source })?;
                for window in earlier.into_iter().filter(|window| !windows.contains(window)) {
                    match evaluator.published_charges(version, window) {
                        Some(charges) => evaluator.keep(version, &[charges]),
                        None => missing.push(window),
                    }
                }
            }
            if !missing.is_empty() {
                let charges = evaluator.evaluate(version, &missing).await?;
                evaluator.keep(version, &charges);
            }
        }
        Ok(())
    }

    async fn evaluate_together(
        &self,
        windows: &[Window],
        evaluator: &Evaluator,
        results: &mut HashMap<Window, RecordBatch>,
    ) -> Result<usize, RateError> {
        let mut groups = 0;
        let rule = &self.fold.rule;
        let set = self.fold.set(windows)?;
        if let Some(error) = self.failure(&set) {
            return Err(error);
        }
        let upstream = evaluator.upstream(rule, &set).await?;
        let outputs = match self.outputs(&set, &upstream, &mut groups).await {
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
                    let of_window = self.outputs(&set, &upstream, &mut groups).await;
                    outputs.extend(of_window.map_err(|error| self.fold.failed(*window, contract_of(&set), root_message(&error)))?);
                }
                outputs
            }
        };
        evaluator.gather(rule, outputs, results)?;
        Ok(groups)
    }

    /// The error of the first window that cannot be rated.
    pub(super) fn failure(&self, set: &WindowSet) -> Option<RateError> {
        let rule = &self.fold.rule;
        if self.states.iter().all(|state| state.failed.is_empty()) {
            return None;
        }
        set.targets().iter().find_map(|target| {
            let rated = rated(target);
            let blame = |subject: &Option<String>| Blame { contract: target.contract.clone(), customer: None, subject: subject.clone() };
            let failure = self.states.iter().find_map(|state| state.failed.get(state.numbers.get(&rated)?));
            Some(match failure? {
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

    /// The output of the query for each target; counts the rows of state that go into it.
    async fn outputs(&self, set: &Arc<WindowSet>, upstream: &Upstream, groups: &mut usize) -> Result<Vec<(Target, RecordBatch)>> {
        // Here the number of a window is that of its target.
        let mut targets = BTreeMap::new();
        let mut numbers: Vec<HashMap<i64, i64>> = self.states.iter().map(|_| HashMap::new()).collect();
        for (target, number) in set.targets().iter().zip(0_i64..) {
            let rated = rated(target);
            for (state, numbers) in self.states.iter().zip(&mut numbers) {
                numbers.extend(state.numbers.get(&rated).map(|of_state| (*of_state, number)));
            }
            targets.insert(number, rated);
        }
        let mut rows = SlotRows(BTreeMap::from([(Slot::Windows, windows_rows(&targets)?)]));
        for (index, (input, _)) in self.fold.rule.inputs.iter().enumerate() {
            if let Some(charges) = upstream.get(input) {
                rows.0.insert(Slot::Charges(index), charges_rows(charges, input, set)?);
            }
        }
        if let Some(carry) = &self.fold.carry {
            let openings: Vec<&Openings> = self.states.iter().map(|state| &state.openings).collect();
            rows.0.insert(Slot::Opening, carry.opening(&openings, set)?);
        }
        let engine = &self.fold.engine;
        for (index, (point, stages)) in self.fold.points.iter().enumerate() {
            let mut batches = Vec::new();
            for (state, numbers) in self.states.iter().zip(&numbers) {
                for batch in state.points[index].batches() {
                    batches.push(renumbered(&self.wanted(index, batch.clone())?, &point.windows, numbers)?);
                }
            }
            if let Some(rest) = &point.rest {
                for batch in stages.partial_of(engine, &filled(rest.clone(), &rows)?).await? {
                    if has_no_window(&batch, &point.windows) {
                        return Err(internal_datafusion_err!("a row of a fold lost its window"));
                    }
                    batches.push(self.wanted(index, batch)?);
                }
            }
            batches.retain(|batch| batch.num_rows() > 0);
            *groups += batches.iter().map(RecordBatch::num_rows).sum::<usize>();
            rows.0.insert(Slot::Aggregate(index), stages.finish(engine, batches, &point.schema).await?);
        }
        let output = self.above(filled(self.fold.above.clone(), &rows)?).await?;
        split_by_target(&output, set)
    }

    /// The rows of an aggregate that are of the wanted customers.
    fn wanted(&self, point: usize, batch: RecordBatch) -> Result<RecordBatch> {
        let (Some(only), Some(key)) = (self.only, self.fold.customers.as_ref().and_then(|keys| keys.get(point))) else { return Ok(batch) };
        let customers = customers_of(&batch, *key)?;
        let kept: BooleanArray = customers.iter().map(|customer| Some(customer.is_some_and(|customer| only.contains(customer)))).collect();
        Ok(filter_record_batch(&batch, &kept)?)
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

/// The customer of each row of an aggregate.
pub(super) fn customers_of(batch: &RecordBatch, key: usize) -> Result<&StringArray> {
    let customers = batch.columns().get(key).and_then(|column| column.as_string_opt::<i32>());
    customers.ok_or_else(|| internal_datafusion_err!("a customer is no text"))
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
