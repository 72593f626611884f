//! One window at a time: what a rule means.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::TimestampMicrosecondType;
use datafusion::common::{Column, DataFusionError, ScalarValue, TableReference};
use datafusion::datasource::{MemTable, ViewTable, provider_as_source};
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{Expr, ExprFunctionExt, LogicalPlan, LogicalPlanBuilder, lit};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement as PlanStatement;
use ratemill_schemas::Window;
use sqlparser::ast::{Query, Statement};

use super::charges::Upstream;
use super::{Evaluator, RateError, root_message};
use crate::functions;
use crate::inputs::{Input, window_schema};
use crate::rule::Rule;
use crate::session::session;
use crate::window_set::{Target, WindowSet};

/// Everything that one run of the query sees.
struct Run<'a> {
    evaluator: &'a Evaluator,
    rule: &'a Rule,
    set: &'a WindowSet,
    target: &'a Target,
    upstream: &'a Upstream,
}

/// The output of the query for one target.
pub(super) async fn run(
    evaluator: &Evaluator,
    rule: &Rule,
    set: &WindowSet,
    target: &Target,
    upstream: &Upstream,
) -> Result<RecordBatch, RateError> {
    let run = Run { evaluator, rule, set, target, upstream };
    if !rule.options.fan_out_allowed {
        run.refuse_fan_out().await?;
    }
    match run.query(&rule.query, None).await {
        Ok(batch) => Ok(batch),
        Err(error) => {
            let culprit = if rule.reads_usage { run.culprit().await } else { None };
            let culprit = culprit.map_or_else(String::new, |subject| format!(", subject `{subject}`"));
            Err(RateError::Query { rule: rule.name.clone(), window: target.window, culprit, message: root_message(&error) })
        }
    }
}

impl Run<'_> {
    async fn refuse_fan_out(&self) -> Result<(), RateError> {
        for check in &self.rule.fan_out {
            let found = self.query(&check.query, None).await.map_err(|error| RateError::Query {
                rule: self.rule.name.clone(),
                window: self.target.window,
                culprit: String::new(),
                message: root_message(&error),
            })?;
            if found.num_rows() > 0 {
                let text = |index: usize| found.column(index).as_string::<i32>().value(0).to_owned();
                return Err(RateError::FanOut {
                    rule: self.rule.name.clone(),
                    window: self.target.window,
                    usage_source: text(0),
                    id: text(1),
                    table: check.table.clone(),
                });
            }
        }
        Ok(())
    }

    /// The one subject whose usage makes the query fail: halves the subjects until one is left.
    async fn culprit(&self) -> Option<String> {
        let query = &self.rule.query;
        let context = self.context(None).ok()?;
        let batches = context.sql("SELECT DISTINCT subject FROM usage ORDER BY subject").await.ok()?.collect().await.ok()?;
        let mut subjects: Vec<String> = batches
            .iter()
            .flat_map(|batch| batch.column(0).as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        while subjects.len() > 1 {
            let right = subjects.split_off(subjects.len() / 2);
            if self.query(query, Some(&subjects)).await.is_ok() {
                if self.query(query, Some(&right)).await.is_ok() {
                    return None;
                }
                subjects = right;
            }
        }
        let subject = subjects.pop()?;
        self.query(query, Some(std::slice::from_ref(&subject))).await.is_err().then_some(subject)
    }

    async fn query(&self, query: &Query, subjects: Option<&[String]>) -> Result<RecordBatch, DataFusionError> {
        let context = self.context(subjects)?;
        let statement = PlanStatement::Statement(Box::new(Statement::Query(Box::new(query.clone()))));
        let plan = context.state().statement_to_plan(statement).await?;
        let schema = Arc::clone(plan.schema().inner());
        let batches = context.execute_logical_plan(plan).await?.collect().await?;
        match batches.first() {
            Some(first) => Ok(concat_batches(&first.schema(), &batches)?),
            None => Ok(RecordBatch::new_empty(schema)),
        }
    }

    /// A session in which every windowed table holds what belongs to the target.
    fn context(&self, subjects: Option<&[String]>) -> Result<SessionContext, DataFusionError> {
        let evaluator = self.evaluator;
        let context = session(Arc::clone(&evaluator.runtime), &evaluator.limits);
        functions::register_reference_functions(&context, &evaluator.project.reference)?;
        self.rule.inputs.register(&context, |input, schema| {
            let rows = match input {
                Input::Usage => return Ok(Arc::new(ViewTable::new(self.usage(subjects)?, None))),
                Input::Opening => return Ok(Arc::new(ViewTable::new(self.opening(subjects)?, None))),
                Input::BillingWindow => {
                    let window = self.target.window;
                    let bound = |instant| Arc::new(TimestampMicrosecondArray::from(vec![instant]).with_timezone("UTC")) as ArrayRef;
                    RecordBatch::try_new(window_schema(), vec![bound(window.start), bound(window.end)])?
                }
                Input::Upstream(_) | Input::Earlier(_) => match self.upstream.get(input) {
                    Some(charges) => self.charges(charges, matches!(input, Input::Earlier(_)))?,
                    None => RecordBatch::new_empty(Arc::clone(schema)),
                },
            };
            Ok(Arc::new(MemTable::try_new(Arc::clone(schema), vec![vec![rows]])?))
        })?;
        for table in evaluator.project.reference.tables() {
            let rows = if table.name() == "contracts" { self.contracts(table.batch())? } else { table.batch().clone() };
            let provider = MemTable::try_new(table.schema(), vec![vec![rows]])?;
            context.register_table(TableReference::bare(table.name()), Arc::new(provider))?;
        }
        Ok(context)
    }

    /// Of a billing period, the rows of its contract that are valid in it.
    fn contracts(&self, contracts: &RecordBatch) -> Result<RecordBatch, DataFusionError> {
        let Some(contract) = &self.target.contract else { return Ok(contracts.clone()) };
        let window = self.target.window;
        let column = |name: &str| contracts.column_by_name(name).cloned();
        let (Some(ids), Some(from), Some(to)) = (column("contract_id"), column("valid_from"), column("valid_to")) else {
            return Ok(contracts.clone());
        };
        let (ids, from, to) =
            (ids.as_string::<i32>(), from.as_primitive::<TimestampMicrosecondType>(), to.as_primitive::<TimestampMicrosecondType>());
        let mask = (0..ids.len())
            .map(|row| {
                Some(
                    ids.is_valid(row)
                        && ids.value(row) == contract
                        && (from.is_null(row) || from.value(row) < window.end)
                        && (to.is_null(row) || to.value(row) > window.start),
                )
            })
            .collect();
        Ok(filter_record_batch(contracts, &mask)?)
    }

    /// The charges of windows inside the target, or of those in its history.
    fn charges(&self, charges: &RecordBatch, earlier: bool) -> Result<RecordBatch, DataFusionError> {
        let bound = |index: usize| charges.column(index).as_primitive::<TimestampMicrosecondType>();
        let (starts, ends) = (bound(0), bound(1));
        let contracts = charges.column_by_name("contract_id").map(AsArray::as_string::<i32>);
        let Window { start, end } = self.target.window;
        let mask = (0..charges.num_rows())
            .map(|row| {
                let span = (starts.value(row), ends.value(row));
                let in_time =
                    if earlier { self.target.history_from <= span.0 && span.1 <= start } else { start <= span.0 && span.1 <= end };
                let of_contract = match (&self.target.contract, contracts) {
                    (Some(contract), Some(contracts)) => contracts.is_valid(row) && contracts.value(row) == contract,
                    _ => true,
                };
                Some(in_time && of_contract)
            })
            .collect();
        Ok(filter_record_batch(charges, &mask)?)
    }

    fn usage(&self, subjects: Option<&[String]>) -> Result<LogicalPlan, DataFusionError> {
        let Window { start, end } = self.target.window;
        let mut filter = between(start, end);
        if let (Some(contract), Some(periods)) = (&self.target.contract, self.set.periods()) {
            // A subject may belong to the contract for a part of the window only.
            let column = |name: &str| Expr::Column(Column::from_name(name));
            let spans = periods.spans_of(contract).map(|(subject, from, to)| {
                column("subject").eq(lit(subject)).and(column("time").gt_eq(instant(from))).and(column("time").lt(instant(to)))
            });
            filter = filter.and(spans.reduce(Expr::or).unwrap_or_else(|| lit(false)));
        }
        self.scan(filter, subjects)
    }

    /// The last event of each key before the window.
    fn opening(&self, subjects: Option<&[String]>) -> Result<LogicalPlan, DataFusionError> {
        let mut filter = before(self.target.window.start);
        if let (Some(contract), Some(periods)) = (&self.target.contract, self.set.periods()) {
            // What a subject had under another contract is that contract's.
            let of_contract: Vec<Expr> = periods.subjects_at(contract, self.target.window.start).map(lit).collect();
            let none = of_contract.is_empty();
            let belongs = Expr::Column(Column::from_name("subject")).in_list(of_contract, false);
            filter = filter.and(if none { lit(false) } else { belongs });
        }
        let before = self.scan(filter, subjects)?;
        let column = |name: &str| Expr::Column(Column::from_name(name));
        let columns: Vec<Expr> = before.schema().fields().iter().map(|field| column(field.name())).collect();
        let number = row_number()
            .partition_by(self.rule.options.carry.iter().map(|key| column(key)).collect())
            .order_by(vec![column("time").sort(false, false), column("source").sort(false, false), column("id").sort(false, false)])
            .build()?
            .alias("__number");
        LogicalPlanBuilder::from(before)
            .window(vec![number.clone()])?
            .filter(Expr::Column(Column::from_name("__number")).eq(lit(1_u64)))?
            .project(columns)?
            .build()
    }

    fn scan(&self, mut filter: Expr, subjects: Option<&[String]>) -> Result<LogicalPlan, DataFusionError> {
        if let Some(subjects) = subjects {
            let wanted = subjects.iter().map(|subject| lit(subject.as_str())).collect();
            filter = filter.and(Expr::Column(Column::from_name("subject")).in_list(wanted, false));
        }
        LogicalPlanBuilder::scan(TableReference::bare("usage"), provider_as_source(Arc::clone(&self.evaluator.usage)), None)?
            .filter(filter)?
            .build()
    }
}

fn instant(micros: i64) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())))
}

fn day(micros: i64) -> Expr {
    lit(ScalarValue::Date32(Some(ratemill_schemas::time::day_of(micros))))
}

/// `start <= time < end`; the partition column lets whole days be passed over.
pub(super) fn between(start: i64, end: i64) -> Expr {
    let column = |name: &str| Expr::Column(Column::from_name(name));
    column("day")
        .gt_eq(day(start))
        .and(column("day").lt_eq(day(end - 1)))
        .and(column("time").gt_eq(instant(start)))
        .and(column("time").lt(instant(end)))
}

/// `time < end`.
pub(super) fn before(end: i64) -> Expr {
    let column = |name: &str| Expr::Column(Column::from_name(name));
    column("day").lt_eq(day(end - 1)).and(column("time").lt(instant(end)))
}
