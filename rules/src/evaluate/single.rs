//! One window at a time: what a rule means.

use std::collections::BTreeSet;
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

use super::blame::{Blame, Customers, Part, blame};
use super::charges::Upstream;
use super::{Evaluator, RateError};
use crate::functions;
use crate::inputs::{Input, window_schema};
use crate::reference::ReferenceTable;
use crate::rule::Rule;
use crate::session::session;
use crate::window_set::{Target, WindowSet};

/// Everything that one run of the query sees.
pub(super) struct Run<'a> {
    pub(super) evaluator: &'a Evaluator,
    pub(super) rule: &'a Rule,
    set: &'a WindowSet,
    pub(super) target: &'a Target,
    pub(super) upstream: &'a Upstream,
}

/// The output of the query for one target.
pub(super) async fn run(
    evaluator: &Evaluator,
    rule: &Rule,
    set: &WindowSet,
    target: &Target,
    upstream: &Upstream,
) -> Result<RecordBatch, RateError> {
    let run = Run::new(evaluator, rule, set, target, upstream);
    if !rule.options.fan_out_allowed {
        run.refuse_fan_out().await?;
    }
    run.rated(&rule.query).await
}

impl<'a> Run<'a> {
    pub(super) fn new(evaluator: &'a Evaluator, rule: &'a Rule, set: &'a WindowSet, target: &'a Target, upstream: &'a Upstream) -> Self {
        Self { evaluator, rule, set, target, upstream }
    }
}

impl Run<'_> {
    async fn refuse_fan_out(&self) -> Result<(), RateError> {
        for check in &self.rule.fan_out {
            let found = self.rated(&check.query).await?;
            if found.num_rows() > 0 {
                let text = |index: usize| found.column(index).as_string::<i32>().value(0).to_owned();
                let (usage_source, id) = (text(0), text(1));
                let blame = Box::new(self.blame_of_event(&check.query, &usage_source, &id).await);
                let (rule, window, table) = (self.rule.name.clone(), self.target.window, check.table.clone());
                return Err(RateError::FanOut { rule, window, blame, usage_source, id, table });
            }
        }
        Ok(())
    }

    async fn rated(&self, query: &Query) -> Result<RecordBatch, RateError> {
        match self.query(query, None).await {
            Ok(batch) => Ok(batch),
            Err(error) => {
                let (blame, message) = blame(self, query, &error).await;
                let (rule, window, cause) = (self.rule.name.clone(), self.target.window, Some(Arc::new(error)));
                Err(RateError::Query { rule, window, blame: Box::new(blame), message, cause })
            }
        }
    }

    /// Whose an event is.
    async fn blame_of_event(&self, query: &Query, source: &str, id: &str) -> Blame {
        let column = |name: &str| Expr::Column(Column::from_name(name));
        let event = column("source").eq(lit(source)).and(column("id").eq(lit(id)));
        let subject = self.subjects_where(Some(event), None).await.ok().and_then(|mut subjects| subjects.pop());
        let customers = Customers::of(self, query).ok();
        let customer = customers.zip(subject.as_ref()).and_then(|(customers, subject)| customers.owner_of(subject).map(str::to_owned));
        Blame { contract: self.target.contract.clone(), customer, subject }
    }

    /// The subjects whose usage a run sees, in order.
    pub(super) async fn subjects(&self, part: Option<Part<'_>>) -> Result<Vec<String>, DataFusionError> {
        self.subjects_where(None, part).await
    }

    async fn subjects_where(&self, event: Option<Expr>, part: Option<Part<'_>>) -> Result<Vec<String>, DataFusionError> {
        let mut subjects = BTreeSet::new();
        let opening = (!self.rule.options.carry.is_empty() && event.is_none()).then(|| self.opening(part));
        for rows in std::iter::once(self.usage(part)).chain(opening) {
            let subject = vec![Expr::Column(Column::from_name("subject"))];
            let rows = LogicalPlanBuilder::from(rows?).filter(event.clone().unwrap_or_else(|| lit(true)))?.project(subject)?.distinct()?;
            let batches = self.context(part)?.execute_logical_plan(rows.build()?).await?.collect().await?;
            for batch in &batches {
                subjects.extend(batch.column(0).as_string::<i32>().iter().flatten().map(str::to_owned));
            }
        }
        Ok(subjects.into_iter().collect())
    }

    pub(super) async fn query(&self, query: &Query, part: Option<Part<'_>>) -> Result<RecordBatch, DataFusionError> {
        let context = self.context(part)?;
        let statement = PlanStatement::Statement(Box::new(Statement::Query(Box::new(query.clone()))));
        let plan = context.state().statement_to_plan(statement).await?;
        let schema = Arc::clone(plan.schema().inner());
        let batches = context.execute_logical_plan(plan).await?.collect().await?;
        match batches.first() {
            Some(first) => Ok(concat_batches(&first.schema(), &batches)?),
            None => Ok(RecordBatch::new_empty(schema)),
        }
    }

    /// A session in which every windowed table holds what belongs to the target, and to `part`.
    pub(super) fn context(&self, part: Option<Part<'_>>) -> Result<SessionContext, DataFusionError> {
        let evaluator = self.evaluator;
        let context = session(Arc::clone(&evaluator.runtime), &evaluator.limits);
        functions::register_reference_functions(&context, &evaluator.project.reference)?;
        self.rule.inputs.register(&context, |input, schema| {
            let rows = match input {
                Input::Usage => return Ok(Arc::new(ViewTable::new(self.usage(part)?, None))),
                Input::Opening => return Ok(Arc::new(ViewTable::new(self.opening(part)?, None))),
                Input::BillingWindow => {
                    let window = self.target.window;
                    let bound = |instant| Arc::new(TimestampMicrosecondArray::from(vec![instant]).with_timezone("UTC")) as ArrayRef;
                    RecordBatch::try_new(window_schema(), vec![bound(window.start), bound(window.end)])?
                }
                Input::Upstream(_) | Input::Earlier(_) => match self.upstream.get(input) {
                    Some(charges) => left(part, self.charges(charges, matches!(input, Input::Earlier(_)))?)?,
                    None => RecordBatch::new_empty(Arc::clone(schema)),
                },
            };
            Ok(Arc::new(MemTable::try_new(Arc::clone(schema), vec![vec![rows]])?))
        })?;
        for table in evaluator.project.reference.tables() {
            let rows = left(part, self.reference_rows(table)?)?;
            let provider = MemTable::try_new(table.schema(), vec![vec![rows]])?;
            context.register_table(TableReference::bare(table.name()), Arc::new(provider))?;
        }
        Ok(context)
    }

    /// The rows of a reference table that belong to the target.
    pub(super) fn reference_rows(&self, table: &ReferenceTable) -> Result<RecordBatch, DataFusionError> {
        if table.name() == "contracts" { self.contracts(table.batch()) } else { Ok(table.batch().clone()) }
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
    pub(super) fn charges(&self, charges: &RecordBatch, earlier: bool) -> Result<RecordBatch, DataFusionError> {
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

    pub(super) fn usage(&self, part: Option<Part<'_>>) -> Result<LogicalPlan, DataFusionError> {
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
        self.scan(filter, part)
    }

    /// The last event of each key before the window.
    pub(super) fn opening(&self, part: Option<Part<'_>>) -> Result<LogicalPlan, DataFusionError> {
        let mut filter = before(self.target.window.start);
        if let (Some(contract), Some(periods)) = (&self.target.contract, self.set.periods()) {
            // What a subject had under another contract is that contract's.
            let of_contract: Vec<Expr> = periods.subjects_at(contract, self.target.window.start).map(lit).collect();
            let none = of_contract.is_empty();
            let belongs = Expr::Column(Column::from_name("subject")).in_list(of_contract, false);
            filter = filter.and(if none { lit(false) } else { belongs });
        }
        let before = self.scan(filter, part)?;
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

    fn scan(&self, filter: Expr, part: Option<Part<'_>>) -> Result<LogicalPlan, DataFusionError> {
        let provider = provider_as_source(Arc::clone(&self.evaluator.usage));
        let usage = LogicalPlanBuilder::scan(TableReference::bare("usage"), provider, None)?.filter(filter)?;
        match part {
            Some(part) => part.usage(usage)?.build(),
            None => usage.build(),
        }
    }
}

/// The rows that `part` leaves.
fn left(part: Option<Part<'_>>, rows: RecordBatch) -> Result<RecordBatch, DataFusionError> {
    match part {
        Some(part) => part.rows(rows),
        None => Ok(rows),
    }
}

fn instant(micros: i64) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())))
}

fn day(micros: i64) -> Expr {
    lit(ScalarValue::Date32(Some(ratemill_schemas::time::day_of(micros))))
}

/// `start <= time < end`; the partition column lets whole days be passed over.
pub(crate) fn between(start: i64, end: i64) -> Expr {
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
