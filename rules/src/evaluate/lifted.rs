//! All windows of a rule in one execution.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::{concat_batches, sort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion::common::{Column, DataFusionError, JoinType, TableReference};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::functions_window::expr_fn::lead;
use datafusion::logical_expr::{Expr, ExprFunctionExt, LogicalPlan, LogicalPlanBuilder};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement as PlanStatement;
use ratemill_schemas::time::instant_type;
use sqlparser::ast::{Query, Statement};

use super::charges::Upstream;
use super::single::{before, between};
use super::{Evaluator, RateError, root_message};
use crate::functions;
use crate::inputs::Input;
use crate::lift::{NotLifted, Sources, decorrelate, lift};
use crate::reference::ReferenceTable;
use crate::rule::Rule;
use crate::session::session;
use crate::window_set::{Lookup, Target, WindowSet, lookup_function};

/// Ranges of time that a scan of usage names one by one; of more, the time from the first to the last is read. Tests have
/// few windows and see both.
const RANGES_MAX: usize = if cfg!(test) { 2 } else { 32 };

/// Why the windows were not evaluated together.
#[derive(Debug)]
pub(super) enum LiftedError {
    NotLifted(NotLifted),
    Rate(RateError),
}

impl From<NotLifted> for LiftedError {
    fn from(error: NotLifted) -> Self {
        Self::NotLifted(error)
    }
}

impl From<DataFusionError> for LiftedError {
    fn from(error: DataFusionError) -> Self {
        Self::NotLifted(NotLifted::Error(error))
    }
}

impl LiftedError {
    /// The error as one of the whole set.
    pub(super) fn of(self, rule: &Rule, set: &WindowSet) -> RateError {
        let (message, cause) = match self {
            Self::Rate(error) => return error,
            Self::NotLifted(NotLifted::Shape(shape)) => (format!("not lifted: {shape}"), None),
            Self::NotLifted(NotLifted::Error(error)) => (root_message(&error), Some(Arc::new(error))),
        };
        let window = set.targets().first().map_or(ratemill_schemas::Window { start: 0, end: 0 }, |target| target.window);
        RateError::Query { rule: rule.name.clone(), window, blame: Box::default(), message, cause }
    }
}

/// The output of the query for each target of the set.
pub(super) async fn run(
    evaluator: &Evaluator,
    rule: &Rule,
    set: &Arc<WindowSet>,
    upstream: &Upstream,
) -> Result<Vec<(Target, RecordBatch)>, LiftedError> {
    let context = planning_session(evaluator, rule)?;
    let sources = LiftedSources { evaluator, rule, set, upstream };
    if !rule.options.fan_out_allowed {
        for check in &rule.fan_out {
            let mut query = check.query.clone();
            query.limit_clause = None;
            let found = execute(&context, &query, &sources).await?;
            if found.num_rows() > 0 {
                let number = found.column(0).as_primitive::<Int64Type>().value(0);
                let target = usize::try_from(number).ok().and_then(|number| set.targets().get(number));
                let text = |index: usize| found.column(index).as_string::<i32>().value(0).to_owned();
                return Err(LiftedError::Rate(RateError::FanOut {
                    rule: rule.name.clone(),
                    window: target.map_or(ratemill_schemas::Window { start: 0, end: 0 }, |target| target.window),
                    blame: Box::default(),
                    usage_source: text(1),
                    id: text(2),
                    table: check.table.clone(),
                }));
            }
        }
    }
    let output = execute(&context, &rule.query, &sources).await?;
    if output.column(0).null_count() > 0 {
        return Err(NotLifted::Shape("a row lost its window".to_owned()).into());
    }
    Ok(split_by_target(&output, set)?)
}

/// The plan of a rule for all windows; the windows themselves are none.
pub(crate) async fn lifted_plan(evaluator: &Evaluator, rule: &Rule) -> Result<LogicalPlan, NotLifted> {
    let set = Arc::new(WindowSet::empty(rule, &evaluator.project.reference));
    let context = planning_session(evaluator, rule)?;
    let upstream = Upstream::new();
    let sources = LiftedSources { evaluator, rule, set: &set, upstream: &upstream };
    let plan = lifted_over(&context, &rule.query, &sources).await?;
    Ok(context.state().optimize(&plan)?)
}

/// A session for planning: reference tables are there, windowed ones are empty until they are lifted.
pub(crate) fn planning_session(evaluator: &Evaluator, rule: &Rule) -> Result<SessionContext, DataFusionError> {
    let context = session(Arc::clone(&evaluator.runtime), &evaluator.limits);
    functions::register_reference_functions(&context, &evaluator.project.reference)?;
    rule.inputs.register(&context, |_, schema| Ok(Arc::new(MemTable::try_new(Arc::clone(schema), vec![vec![]])?)))?;
    for table in evaluator.project.reference.tables() {
        let provider = MemTable::try_new(table.schema(), vec![vec![table.batch().clone()]])?;
        context.register_table(TableReference::bare(table.name()), Arc::new(provider))?;
    }
    Ok(context)
}

/// The plan of a query for all windows of `sources`.
pub(crate) async fn lifted_over(context: &SessionContext, query: &Query, sources: &dyn Sources) -> Result<LogicalPlan, NotLifted> {
    let statement = PlanStatement::Statement(Box::new(Statement::Query(Box::new(query.clone()))));
    let state = context.state();
    let plan = state.statement_to_plan(statement).await?;
    lift(&decorrelate(&state, plan)?, sources)
}

async fn execute(context: &SessionContext, query: &Query, sources: &LiftedSources<'_>) -> Result<RecordBatch, LiftedError> {
    let plan = lifted_over(context, query, sources).await?;
    let schema = Arc::clone(plan.schema().inner());
    let batches = context.execute_logical_plan(plan).await?.collect().await?;
    match batches.first() {
        Some(first) => Ok(concat_batches(&first.schema(), &batches).map_err(DataFusionError::from)?),
        None => Ok(RecordBatch::new_empty(schema)),
    }
}

/// The rows of each target, without the number of the target, which is the first column and never null.
pub(crate) fn split_by_target(output: &RecordBatch, set: &WindowSet) -> Result<Vec<(Target, RecordBatch)>, DataFusionError> {
    let numbers = output.column(0);
    let order = sort_to_indices(numbers, None, None)?;
    let sorted = take_record_batch(output, &order)?;
    let numbers = sorted.column(0).as_primitive::<Int64Type>();
    let columns: Vec<usize> = (1..sorted.num_columns()).collect();
    let rows = sorted.project(&columns)?;
    let values = numbers.values();
    Ok(set
        .targets()
        .iter()
        .enumerate()
        .map(|(number, target)| {
            let number = i64::try_from(number).unwrap_or(i64::MAX);
            let first = values.partition_point(|value| *value < number);
            let last = values.partition_point(|value| *value <= number);
            (target.clone(), rows.slice(first, last - first))
        })
        .collect())
}

/// The windowed tables of one rule for all targets.
pub(crate) struct LiftedSources<'a> {
    pub(crate) evaluator: &'a Evaluator,
    pub(crate) rule: &'a Rule,
    pub(crate) set: &'a Arc<WindowSet>,
    pub(crate) upstream: &'a Upstream,
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::from_name(name))
}

impl Sources for LiftedSources<'_> {
    fn is_windowed(&self, table: &TableReference) -> bool {
        (table.table() == "contracts" && self.set.by_contract()) || self.rule.inputs.iter().any(|(input, _)| input.table() == *table)
    }

    fn windowed(&self, table: &TableReference, window: &str) -> Result<LogicalPlan, DataFusionError> {
        let Some((input, _)) = self.rule.inputs.iter().find(|(input, _)| input.table() == *table) else {
            return self.contracts(window);
        };
        match input {
            Input::Usage => self.usage(window),
            Input::BillingWindow => self.rows(&["window_start", "window_end"], window),
            Input::Opening => self.opening(window),
            Input::Upstream(_) => self.charges(input, Lookup::Inside, window),
            Input::Earlier(_) => self.charges(input, Lookup::After, window),
        }
    }

    fn windows(&self, window: &str) -> Result<LogicalPlan, DataFusionError> {
        self.rows(&[], window)
    }
}

impl LiftedSources<'_> {
    /// One row for each target: these columns and the number.
    fn rows(&self, columns: &[&str], window: &str) -> Result<LogicalPlan, DataFusionError> {
        let targets = self.set.targets();
        let schema = Arc::new(Schema::new(vec![
            Field::new("window_start", instant_type(), false),
            Field::new("window_end", instant_type(), false),
            Field::new("contract_id", DataType::Utf8, true),
            Field::new("number", DataType::Int64, false),
        ]));
        let instants = |values: Vec<i64>| Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) as ArrayRef;
        let batch = RecordBatch::try_new(
            Arc::clone(&schema),
            vec![
                instants(targets.iter().map(|target| target.window.start).collect()),
                instants(targets.iter().map(|target| target.window.end).collect()),
                Arc::new(targets.iter().map(|target| target.contract.clone()).collect::<arrow::array::StringArray>()),
                Arc::new(Int64Array::from_iter_values((0..targets.len()).map(|number| i64::try_from(number).unwrap_or(i64::MAX)))),
            ],
        )?;
        let provider = Arc::new(MemTable::try_new(schema, vec![vec![batch]])?);
        let mut kept: Vec<Expr> = columns.iter().map(|name| column(name)).collect();
        kept.push(column("number").alias(window));
        LogicalPlanBuilder::scan(TableReference::bare(format!("{window}_rows")), provider_as_source(provider), None)?.project(kept)?.build()
    }

    fn raw_usage(&self, filter: Expr) -> Result<LogicalPlanBuilder, DataFusionError> {
        LogicalPlanBuilder::scan(TableReference::bare("usage"), provider_as_source(Arc::clone(&self.evaluator.usage)), None)?.filter(filter)
    }

    fn usage(&self, window: &str) -> Result<LogicalPlan, DataFusionError> {
        let ranges = self.set.ranges(false);
        let filter = ranges.iter().map(|range| between(range.start, range.end)).reduce(Expr::or);
        let filter = filter
            .filter(|_| ranges.len() <= RANGES_MAX)
            .unwrap_or_else(|| between(ranges.first().map_or(0, |range| range.start), ranges.last().map_or(1, |range| range.end)));
        let lookup = lookup_function(Lookup::Holding, self.set);
        let number =
            if self.set.by_contract() { lookup.call(vec![column("time"), column("subject")]) } else { lookup.call(vec![column("time")]) };
        let raw = self.raw_usage(filter)?;
        let mut columns = columns_of(&raw);
        columns.push(number.alias(window));
        let numbered = raw.project(columns)?;
        // Windows of the calendar without gaps hold every event of their range.
        if !self.set.by_contract() && ranges.len() <= RANGES_MAX {
            return numbered.build();
        }
        numbered.filter(column(window).is_not_null())?.build()
    }

    /// The last event of each key before each window.
    fn opening(&self, window: &str) -> Result<LogicalPlan, DataFusionError> {
        let end = self.set.targets().iter().map(|target| target.window.start).max().unwrap_or(0);
        let raw = self.raw_usage(before(end))?;
        let columns = columns_of(&raw);
        let keys = self.rule.options.carry.iter().map(|key| column(key)).collect();
        let order = ["time", "source", "id"].map(|name| column(name).sort(true, false)).to_vec();
        let next = lead(column("time"), Some(1), None).partition_by(keys).order_by(order).build()?.alias("__next");
        let opened = lookup_function(Lookup::Opened, self.set).call(vec![column("time"), column("__next"), column("subject")]);
        self.unnested(raw.window(vec![next])?, columns, opened, window)
    }

    fn charges(&self, input: &Input, lookup: Lookup, window: &str) -> Result<LogicalPlan, DataFusionError> {
        let schema = self.rule.inputs.iter().find(|(known, _)| *known == input).map(|(_, schema)| Arc::clone(schema));
        let schema = schema.ok_or_else(|| DataFusionError::Internal(format!("no input {input:?}")))?;
        let rows = self.upstream.get(input).cloned().unwrap_or_else(|| RecordBatch::new_empty(Arc::clone(&schema)));
        let provider = Arc::new(MemTable::try_new(schema, vec![vec![rows]])?);
        let raw = LogicalPlanBuilder::scan(input.table(), provider_as_source(provider), None)?;
        let mut arguments = vec![column("window_start"), column("window_end")];
        if self.set.by_contract() {
            arguments.push(column("contract_id"));
        }
        let number = lookup_function(lookup, self.set).call(arguments);
        let mut columns = columns_of(&raw);
        if lookup.is_list() {
            return self.unnested(raw, columns, number, window);
        }
        columns.push(number.alias(window));
        raw.project(columns)?.filter(column(window).is_not_null())?.build()
    }

    /// A row for each number of a list.
    fn unnested(
        &self,
        raw: LogicalPlanBuilder,
        mut columns: Vec<Expr>,
        numbers: Expr,
        window: &str,
    ) -> Result<LogicalPlan, DataFusionError> {
        columns.push(numbers.alias(window));
        raw.project(columns)?.unnest_column(Column::from_name(window))?.filter(column(window).is_not_null())?.build()
    }

    /// The rows of each billing period's contract that are valid in it.
    fn contracts(&self, window: &str) -> Result<LogicalPlan, DataFusionError> {
        let table = self.evaluator.project.reference.table("contracts");
        let table = table.ok_or_else(|| DataFusionError::Plan("there are no contracts".to_owned()))?;
        contracts_in(table, self.rows(&["window_start", "window_end", "contract_id"], window)?, window)
    }
}

/// The rows of `contracts` that are of the contract of a billing period and valid in it; `windows` has their columns
/// `window_start`, `window_end`, `contract_id` and the number of the window.
pub(crate) fn contracts_in(contracts: &ReferenceTable, windows: LogicalPlan, window: &str) -> Result<LogicalPlan, DataFusionError> {
    let provider = Arc::new(MemTable::try_new(contracts.schema(), vec![vec![contracts.batch().clone()]])?);
    let raw = LogicalPlanBuilder::scan(TableReference::bare("contracts"), provider_as_source(provider), None)?;
    let mut kept = columns_of(&raw);
    kept.push(column(window));
    let of = |name: &str| Expr::Column(Column::new(Some("contracts"), name));
    let windows = LogicalPlanBuilder::from(windows).alias("__periods")?;
    let at = |name: &str| Expr::Column(Column::new(Some("__periods"), name));
    let overlap = of("valid_from")
        .is_null()
        .or(of("valid_from").lt(at("window_end")))
        .and(of("valid_to").is_null().or(of("valid_to").gt(at("window_start"))));
    raw.join(
        windows.build()?,
        JoinType::Inner,
        (vec![Column::new(Some("contracts"), "contract_id")], vec![Column::new(Some("__periods"), "contract_id")]),
        Some(overlap),
    )?
    .project(kept)?
    .build()
}

/// Every column of a plan.
fn columns_of(plan: &LogicalPlanBuilder) -> Vec<Expr> {
    plan.schema().iter().map(|(qualifier, field)| Expr::Column(Column::new(qualifier.cloned(), field.name()))).collect()
}
