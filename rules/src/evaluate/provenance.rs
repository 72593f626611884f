//! What is behind a charge: the usage events, reference rows and charges of other rules that reach it, and the arguments
//! of the pricing functions on the way.
//!
//! The query of the rule is planned for the charge's window, and the plan is rewritten so that each row of the output
//! carries the rows that it is made of (`lineage`): once for each table that is read and for each call of a pricing
//! function, so that several of them do not multiply. What is left is to keep the rows of the charge.

mod calls;
mod events;
mod lineage;
mod values;

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::Int64Type;
use datafusion::common::{Column, DataFusionError, ScalarValue, TableReference};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, lit};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement as PlanStatement;
use serde::Serialize;
use sqlparser::ast::Statement;
use tokio::time::timeout_at;

pub use calls::PricingCall;
pub use events::{EventTotal, UsageEvent};

use super::shape::{CHARGE_COLUMNS, is_identity, stored_type};
use super::single::Run;
use super::{Blame, Evaluator, RateError, root_message};
use crate::inputs::Input;
use crate::lift::decorrelate;
use crate::opaque::OpaqueTable;
use crate::rule::{Rule, RuleWindow};
use crate::window_set::Target;
use lineage::{Leaf, Point, What, points, traced};

/// Rows of one reference table that are shown.
const REFERENCE_ROWS_MAX: usize = 20;

/// What is behind one charge.
#[derive(Debug, Default)]
pub struct Provenance {
    /// Calls of pricing functions on the way to the charge.
    pub calls: Vec<PricingCall>,
    /// The first events behind it, by time.
    pub events: Vec<UsageEvent>,
    /// All of them, by meter.
    pub totals: Vec<EventTotal>,
    /// Charges of other rules, or of earlier windows, that it is made of.
    pub charges: Vec<ReadCharges>,
    /// Rows of reference tables that it is made of.
    pub reference: Vec<ReferenceRows>,
    /// What could not be traced, and why.
    pub notes: Vec<String>,
}

/// Charges that a charge is made of.
#[derive(Debug)]
pub struct ReadCharges {
    /// Their rule.
    pub rule: String,
    /// Whether they are of earlier windows.
    pub earlier: bool,
    /// The charges: `window_start`, `window_end`, then the columns of [`super::WindowCharges`].
    pub rows: RecordBatch,
}

/// Rows of a reference table that a charge is made of.
#[derive(Debug, Serialize)]
pub struct ReferenceRows {
    /// The table.
    pub table: String,
    /// How many there are.
    pub count: usize,
    /// The first of them, each with the columns that are not null.
    pub rows: Vec<serde_json::Value>,
}

impl Evaluator {
    /// What is behind a charge of `rated`: `charge` is one row with the columns of [`super::WindowCharges`]. At most
    /// `rows_max` events, and as many calls of one place, are listed.
    ///
    /// A rule that reads its own earlier charges must have been evaluated before.
    ///
    /// # Errors
    /// [`RateError`] when the window is not one of the rule, or time is up. What cannot be traced is a note.
    pub async fn provenance(
        &self,
        rule: &Rule,
        rated: &RuleWindow,
        charge: &RecordBatch,
        rows_max: usize,
    ) -> Result<Provenance, RateError> {
        let (timed, deadline) = self.timed();
        let Some(deadline) = deadline else { return timed.provenance_in_time(rule, rated, charge, rows_max).await };
        let in_time = timeout_at(deadline, timed.provenance_in_time(rule, rated, charge, rows_max)).await;
        in_time.unwrap_or_else(|_| Err(self.too_late(rule, &[rated.window])))
    }

    async fn provenance_in_time(
        &self,
        rule: &Rule,
        rated: &RuleWindow,
        charge: &RecordBatch,
        rows_max: usize,
    ) -> Result<Provenance, RateError> {
        let failed = |message: String| RateError::Query {
            rule: rule.name.clone(),
            window: rated.window,
            blame: Box::new(Blame { contract: rated.contract_id.clone(), ..Blame::default() }),
            message,
            cause: None,
        };
        let set = self.set(rule, &[rated.window])?;
        let is_target = |target: &&Target| target.window == rated.window && target.contract == rated.contract_id;
        let target = set.targets().iter().find(is_target).ok_or_else(|| failed("is no window of the rule".to_owned()))?;
        let upstream = self.upstream(rule, &set).await?;
        let run = Run::new(self, rule, &set, target, &upstream);
        let planned = Planned::of(&run, charge).await.map_err(|error| failed(root_message(&error)))?;
        Ok(planned.provenance(rows_max).await)
    }
}

/// The rule's query for the window of the charge, with the tables that it reads.
struct Planned {
    context: SessionContext,
    plan: LogicalPlan,
    /// Whether a row of the output is the charge.
    is_charge: Expr,
    tables: Vec<Table>,
}

/// A table that the query can read.
struct Table {
    name: TableReference,
    leaf: Leaf,
    is: Kind,
}

enum Kind {
    /// Usage of the window, or the last before it.
    Events,
    Charges {
        rule: String,
        earlier: bool,
    },
    Reference,
    /// The one row of the window.
    Window,
}

impl Planned {
    async fn of(run: &Run<'_>, charge: &RecordBatch) -> Result<Self, DataFusionError> {
        let context = run.context(None)?;
        let tables = tables(run, &context)?;
        let statement = PlanStatement::Statement(Box::new(Statement::Query(run.rule.query.clone())));
        let state = context.state();
        let plan = decorrelate(&state, state.statement_to_plan(statement).await?)?;
        let is_charge = is_charge(&plan, charge)?;
        Ok(Self { context, plan, is_charge, tables })
    }

    async fn provenance(&self, rows_max: usize) -> Provenance {
        let mut found = Provenance::default();
        let points = points(&self.plan);
        self.events(&points, rows_max, &mut found).await;
        for point in &points {
            match &point.what {
                What::Scan(name) => self.rows(point, name, &mut found).await,
                What::Call(call) => match self.call(point, call, rows_max).await {
                    Ok(call) => found.calls.extend(call),
                    Err(message) => found.notes.push(format!("the arguments of {}(…) are not shown: {message}", call.name())),
                },
            }
        }
        if points.iter().any(|point| matches!(&point.what, What::Call(call) if call.name() == "convert")) {
            found.notes.push("the rows of exchange_rates that convert(…) looked up are not listed".to_owned());
        }
        found.notes.sort();
        found.notes.dedup();
        found
    }

    /// The events that reach the charge, over all scans of usage.
    async fn events(&self, points: &[Point], rows_max: usize, found: &mut Provenance) {
        let mut plans = Vec::new();
        for point in points {
            let What::Scan(name) = &point.what else { continue };
            if !matches!(self.table(name), Some(Table { is: Kind::Events, .. })) {
                continue;
            }
            match self.trace(point, &Leaf::Events, &mut found.notes) {
                Ok(Some(plan)) => plans.push(events::of(plan, name)),
                Ok(None) => {}
                Err(message) => found.notes.push(format!("the events of {name} are not listed: {message}")),
            }
        }
        if plans.is_empty() {
            return;
        }
        let listed = async {
            let plan = events::all(plans)?;
            events::list(&self.context, plan, rows_max).await
        };
        match listed.await {
            Ok((events, totals)) => (found.events, found.totals) = (events, totals),
            Err(error) => found.notes.push(format!("the events are not listed: {}", root_message(&error))),
        }
    }

    /// The rows of a table in memory that reach the charge.
    async fn rows(&self, point: &Point, name: &TableReference, found: &mut Provenance) {
        let Some(table) = self.table(name) else { return };
        let Leaf::Rows(batch) = &table.leaf else { return };
        if matches!(table.is, Kind::Window) {
            return;
        }
        let rows = match self.trace(point, &table.leaf, &mut found.notes) {
            Ok(Some(plan)) => self.numbers(plan).await.map_err(|error| root_message(&error)),
            Ok(None) => return,
            Err(message) => Err(message),
        };
        let rows = rows.and_then(|rows| take_record_batch(batch, &rows).map_err(|error| error.to_string()));
        match (rows, &table.is) {
            (Err(message), _) => found.notes.push(format!("the rows of {name} are not listed: {message}")),
            (Ok(rows), Kind::Charges { rule, earlier }) => {
                found.charges.push(ReadCharges { rule: rule.clone(), earlier: *earlier, rows });
            }
            (Ok(rows), _) if rows.num_rows() > 0 => match values::objects(&rows, REFERENCE_ROWS_MAX) {
                Ok(shown) => {
                    found.reference.push(ReferenceRows { table: name.table().to_owned(), count: rows.num_rows(), rows: shown });
                }
                Err(error) => found.notes.push(format!("the rows of {name} are not listed: {error}")),
            },
            _ => {}
        }
    }

    fn table(&self, name: &TableReference) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == *name)
    }

    /// The distinct rows of a leaf that reach the charge; `None` where none can.
    fn trace(&self, point: &Point, leaf: &Leaf, notes: &mut Vec<String>) -> Result<Option<LogicalPlan>, String> {
        let Some(traced) = traced(&self.plan, point, leaf)? else {
            notes.push(format!("{} is only looked at for what is not there (NOT EXISTS), which has no rows to list", point.name()));
            return Ok(None);
        };
        notes.extend(traced.notes);
        let kept = LogicalPlanBuilder::from(traced.plan)
            .filter(self.is_charge.clone())
            .and_then(|plan| plan.filter(Expr::Column(Column::from_name(traced.names[0].clone())).is_not_null()))
            .and_then(|plan| plan.project(traced.names.iter().map(|name| Expr::Column(Column::from_name(name.clone())))))
            .and_then(LogicalPlanBuilder::distinct)
            .and_then(LogicalPlanBuilder::build);
        kept.map(Some).map_err(|error| root_message(&error))
    }

    /// The numbers of rows in the only column of a plan, ascending.
    async fn numbers(&self, plan: LogicalPlan) -> Result<UInt32Array, DataFusionError> {
        let mut numbers: Vec<u32> = Vec::new();
        for batch in self.context.execute_logical_plan(plan).await?.collect().await? {
            let found = batch.column(0).as_primitive::<Int64Type>().iter().flatten();
            numbers.extend(found.filter_map(|number| u32::try_from(number).ok()));
        }
        numbers.sort_unstable();
        Ok(numbers.into())
    }

    async fn collect(&self, plan: LogicalPlan) -> Result<RecordBatch, DataFusionError> {
        let schema = Arc::clone(plan.schema().inner());
        let batches = self.context.execute_logical_plan(plan).await?.collect().await?;
        match batches.first() {
            Some(first) => Ok(concat_batches(&first.schema(), &batches)?),
            None => Ok(RecordBatch::new_empty(schema)),
        }
    }
}

/// The tables of a run; those of events are registered again, so that a plan does not see through them.
fn tables(run: &Run<'_>, context: &SessionContext) -> Result<Vec<Table>, DataFusionError> {
    let mut tables = Vec::new();
    for (input, schema) in run.rule.inputs.iter() {
        let name = input.table();
        let is = match input {
            Input::Usage | Input::Opening => {
                let plan = if *input == Input::Usage { run.usage(None)? } else { run.opening(None)? };
                context.deregister_table(name.clone())?;
                context.register_table(name.clone(), Arc::new(OpaqueTable::new(Arc::clone(schema), plan)))?;
                tables.push(Table { name, leaf: Leaf::Events, is: Kind::Events });
                continue;
            }
            Input::BillingWindow => Kind::Window,
            Input::Upstream(rule) => Kind::Charges { rule: rule.clone(), earlier: false },
            Input::Earlier(rule) => Kind::Charges { rule: rule.clone(), earlier: true },
        };
        let rows = match run.upstream.get(input) {
            Some(charges) => run.charges(charges, matches!(input, Input::Earlier(_)))?,
            None => RecordBatch::new_empty(Arc::clone(schema)),
        };
        tables.push(Table { name, leaf: Leaf::Rows(rows), is });
    }
    for table in run.evaluator.project.reference.tables() {
        let name = TableReference::bare(table.name());
        tables.push(Table { name, leaf: Leaf::Rows(run.reference_rows(table)?), is: Kind::Reference });
    }
    Ok(tables)
}

/// Whether a row of the output of `plan` has the identity of the charge.
fn is_charge(plan: &LogicalPlan, charge: &RecordBatch) -> Result<Expr, DataFusionError> {
    let mut same = lit(true);
    for (qualifier, field) in plan.schema().iter() {
        let (name, stored) = (field.name(), stored_type(field.data_type()));
        let known = ["customer_id", "contract_id", "item", "currency"].contains(&name.as_str());
        let further = !CHARGE_COLUMNS.contains(&name.as_str()) && is_identity(&stored) && !stored.is_nested();
        let Some(value) = charge.column_by_name(name).filter(|_| known || further) else { continue };
        let column = Expr::Column(Column::new(qualifier.cloned(), name));
        let column = if *field.data_type() == *value.data_type() { column } else { cast(column, value.data_type().clone()) };
        same = same.and(if value.is_null(0) { column.is_null() } else { column.eq(lit(ScalarValue::try_from_array(value, 0)?)) });
    }
    Ok(same)
}
