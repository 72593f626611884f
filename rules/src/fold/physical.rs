//! Plans that are made once and executed for every batch of events.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{JoinType, Result, internal_datafusion_err};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PartitionMode};
use datafusion::physical_plan::streaming::StreamingTableExec;
use datafusion::physical_plan::udaf::AggregateFunctionExpr;
use datafusion::physical_plan::{ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions, collect};

use super::slots::SlotRows;

/// Executions after which a plan is made anew: the metrics of what is kept between executions grow with each of them.
const EXECUTIONS_MAX: usize = 1024;

/// What executes the plans of a fold.
#[derive(Debug, Clone)]
pub(super) struct Engine {
    state: SessionState,
}

impl Engine {
    /// `state` has one partition: a plan that deals rows out to several cannot be executed twice.
    pub(super) fn new(mut state: SessionState) -> Self {
        let options = state.config_mut().options_mut();
        options.execution.target_partitions = 1;
        // Filters that a join finds out while it runs would stay from one execution to the next.
        options.optimizer.enable_join_dynamic_filter_pushdown = false;
        options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
        options.optimizer.enable_topk_dynamic_filter_pushdown = false;
        Self { state }
    }

    pub(super) fn state(&self) -> &SessionState {
        &self.state
    }

    async fn plan(&self, plan: &LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
        self.state.query_planner().create_physical_plan(plan, &self.state).await
    }

    pub(super) async fn run(&self, plan: Arc<dyn ExecutionPlan>, rows: &Arc<SlotRows>) -> Result<Vec<RecordBatch>> {
        let config = self.state.config().clone().with_extension(Arc::clone(rows));
        let id = self.state.session_id().to_owned();
        let runtime = Arc::clone(self.state.runtime_env());
        let context = TaskContext::new(None, id, config, HashMap::new(), HashMap::new(), HashMap::new(), HashMap::new(), runtime);
        collect(plan, Arc::new(context)).await
    }
}

/// A plan over slots that is kept between executions.
#[derive(Debug)]
pub(super) struct Kept {
    logical: LogicalPlan,
    /// Whether the plan is an aggregate whose partial state is wanted.
    partial: bool,
    made: Mutex<Option<(Arc<dyn ExecutionPlan>, usize)>>,
}

impl Kept {
    pub(super) fn whole(logical: LogicalPlan) -> Self {
        Self { logical, partial: false, made: Mutex::default() }
    }

    pub(super) fn logical(&self) -> &LogicalPlan {
        &self.logical
    }

    fn partial(logical: LogicalPlan) -> Self {
        Self { logical, partial: true, made: Mutex::default() }
    }

    pub(super) async fn execute(&self, engine: &Engine, rows: &Arc<SlotRows>) -> Result<Vec<RecordBatch>> {
        let made = {
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            if made.as_ref().is_some_and(|(_, executions)| *executions >= EXECUTIONS_MAX) {
                *made = None;
            }
            made.as_mut().map(|(plan, executions)| {
                *executions += 1;
                Arc::clone(plan)
            })
        };
        let plan = match made {
            Some(plan) => plan,
            None => {
                let plan = if self.partial { partial(engine, &self.logical).await?.0 } else { engine.plan(&self.logical).await? };
                let plan = events_probe(plan)?;
                *self.made.lock().unwrap_or_else(PoisonError::into_inner) = Some((Arc::clone(&plan), 0));
                plan
            }
        };
        let result = engine.run(renewed(&plan)?, rows).await;
        if result.is_err() {
            // What a join keeps may be the error.
            *self.made.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        result
    }
}

/// An aggregate in its stages: rows to partial state, states to one state, state to final rows.
#[derive(Debug)]
pub(super) struct Stages {
    kept: Kept,
    groups: Arc<PhysicalGroupBy>,
    functions: Vec<Arc<AggregateFunctionExpr>>,
    input: SchemaRef,
    /// The columns of the state: the group keys, then what each function keeps.
    pub(super) state: SchemaRef,
}

impl Stages {
    pub(super) async fn new(engine: &Engine, logical: LogicalPlan) -> Result<Self> {
        let (plan, aggregate) = partial(engine, &logical).await?;
        let fields = plan.schema().fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>();
        Ok(Self {
            groups: Arc::new(aggregate.group_expr().as_final()),
            functions: aggregate.aggr_expr().to_vec(),
            input: aggregate.input_schema(),
            state: Arc::new(Schema::new(fields)),
            kept: Kept::partial(logical),
        })
    }

    /// The state of the rows that events give.
    pub(super) async fn partial(&self, engine: &Engine, rows: &Arc<SlotRows>) -> Result<Vec<RecordBatch>> {
        self.kept.execute(engine, rows).await?.into_iter().map(|batch| self.conform(batch)).collect()
    }

    /// The state of the rows of another plan, under the same groups and functions.
    pub(super) async fn partial_of(&self, engine: &Engine, plan: &LogicalPlan) -> Result<Vec<RecordBatch>> {
        let (plan, _) = partial(engine, plan).await?;
        engine.run(plan, &Arc::default()).await?.into_iter().map(|batch| self.conform(batch)).collect()
    }

    /// One state of several.
    pub(super) async fn reduce(&self, engine: &Engine, states: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        let batches = self.stage(engine, AggregateMode::PartialReduce, states).await?;
        batches.into_iter().map(|batch| self.conform(batch)).collect()
    }

    /// The final rows, in the columns of `schema`.
    pub(super) async fn finish(&self, engine: &Engine, states: Vec<RecordBatch>, schema: &SchemaRef) -> Result<RecordBatch> {
        let batches = self.stage(engine, AggregateMode::Final, states).await?;
        let batches = batches.into_iter().map(|batch| conform(batch, schema)).collect::<Result<Vec<_>>>()?;
        Ok(arrow::compute::concat_batches(schema, &batches)?)
    }

    async fn stage(&self, engine: &Engine, mode: AggregateMode, states: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        let input = MemorySourceConfig::try_new_exec(&[states], Arc::clone(&self.state), None)?;
        let filters = vec![None; self.functions.len()];
        let functions = self.functions.clone();
        let plan = AggregateExec::try_new(mode, Arc::clone(&self.groups), functions, filters, input, Arc::clone(&self.input))?;
        engine.run(Arc::new(plan), &Arc::default()).await
    }

    fn conform(&self, batch: RecordBatch) -> Result<RecordBatch> {
        conform(batch, &self.state)
    }
}

/// The same columns under other names.
fn conform(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| -> Result<ArrayRef> {
        if column.data_type() == field.data_type() {
            return Ok(Arc::clone(column));
        }
        // Lists may differ in the name of their element.
        Ok(arrow::compute::cast(column, field.data_type())?)
    });
    Ok(RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_>>()?)?)
}

/// The partial stage of an aggregate, and the aggregate as it was planned.
async fn partial(engine: &Engine, logical: &LogicalPlan) -> Result<(Arc<dyn ExecutionPlan>, AggregateExec)> {
    let mut plan = engine.plan(logical).await?;
    loop {
        if let Some(aggregate) = plan.downcast_ref::<AggregateExec>()
            && matches!(aggregate.mode(), AggregateMode::Partial | AggregateMode::Single | AggregateMode::SinglePartitioned)
        {
            let (groups, functions) = (aggregate.group_expr().clone(), aggregate.aggr_expr().to_vec());
            let (filters, input) = (aggregate.filter_expr().to_vec(), Arc::clone(aggregate.input()));
            let partial = AggregateExec::try_new(AggregateMode::Partial, groups, functions, filters, input, aggregate.input_schema())?;
            return Ok((Arc::new(partial), aggregate.clone()));
        }
        let below = match plan.children().as_slice() {
            [input] => Arc::clone(input),
            _ => return Err(internal_datafusion_err!("an aggregate was planned as something else: {}", plan.name())),
        };
        plan = below;
    }
}

/// Whether the rows of a plan are other ones in each execution.
fn is_given_anew(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<StreamingTableExec>() || plan.children().into_iter().any(is_given_anew)
}

/// The plan with what stays the same on the left of its joins: a join builds its table of that side, and keeps it.
fn events_probe(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let [left, right] = node.children()[..] else { return Ok(Transformed::no(node)) };
        if !is_given_anew(left) || is_given_anew(right) {
            return Ok(Transformed::no(node));
        }
        let swapped = if let Some(join) = node.downcast_ref::<HashJoinExec>() {
            (!join.null_aware).then(|| join.swap_inputs(PartitionMode::CollectLeft)).transpose()?
        } else if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() {
            Some(join.swap_inputs()?)
        } else if let Some(join) = node.downcast_ref::<CrossJoinExec>() {
            Some(join.swap_inputs()?)
        } else {
            None
        };
        Ok(swapped.map_or_else(|| Transformed::no(node), Transformed::yes))
    })
    .data()
}

/// The plan as if it had never been executed, but for the tables that joins have built of what stays the same.
fn renewed(plan: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let keep = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
    if let Some(join) = plan.downcast_ref::<HashJoinExec>()
        && let [left, right] = plan.children()[..]
        && !is_given_anew(left)
        // Others take note in the table of which of its rows were met.
        && matches!(
            join.join_type(),
            JoinType::Inner | JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark
        )
    {
        let children = vec![Arc::clone(left), renewed(right)?];
        return Arc::clone(plan).replace_children(children, keep);
    }
    let children = plan.children().into_iter().map(renewed).collect::<Result<Vec<_>>>()?;
    if children.is_empty() {
        return Ok(Arc::clone(plan));
    }
    Arc::clone(plan).replace_children(children, keep)?.reset_state()
}
