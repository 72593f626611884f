//! Evaluating a rule over windows.
//!
//! `result(W) = ⋃ over w in W of {w} × query(usage of w, reference data)`: here every window is planned and run by
//! itself. Whatever is faster must give the same; it belongs behind [`Evaluator::evaluate`], which is therefore given
//! all windows at once.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Decimal128Type, Field, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::catalog::TableProvider;
use datafusion::common::{Column, DataFusionError, ScalarValue, TableReference};
use datafusion::datasource::{MemTable, ViewTable, provider_as_source};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, lit};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement as PlanStatement;
use ratemill_schemas::decimal::{DECIMAL, Decimal};
use ratemill_schemas::time::format_instant;
use ratemill_schemas::{Currency, Window};
use sqlparser::ast::{Query, Statement};

use crate::check::window_schema;
use crate::reference::ReferenceData;
use crate::rule::Rule;
use crate::session::{SessionLimits, session};

/// The charges of one window: one row per identity.
///
/// Columns: `customer_id`, `contract_id`, `item`, `currency`, `amount`, `quantity`, `unit`, `unit_price`, `detail`
/// (absent ones as nulls), then the rule's further columns.
#[derive(Debug, Clone)]
pub struct WindowCharges {
    /// The window.
    pub window: Window,
    /// Its charges.
    pub charges: RecordBatch,
}

/// Why a window could not be rated.
#[derive(Debug, thiserror::Error)]
pub enum RateError {
    /// The query failed on the data.
    #[error("rule `{rule}`, window {window}{culprit}: {message}")]
    Query {
        /// The rule.
        rule: String,
        /// The window.
        window: Window,
        /// ", subject `s`", where one is to blame.
        culprit: String,
        /// What the query said.
        message: String,
    },
    /// A charge lacks what every charge must have.
    #[error("rule `{rule}`, window {window}, customer `{customer}`: {message}")]
    Charge {
        /// The rule.
        rule: String,
        /// The window.
        window: Window,
        /// The customer, or `?`.
        customer: String,
        /// What is wrong with the row.
        message: String,
    },
    /// A usage row met several reference rows, so that it would be charged several times.
    #[error(
        "rule `{rule}`, window {window}: usage event `{id}` of source `{usage_source}` matches several rows of `{table}` and would be charged several times; make the join unique, or allow it with fan_out = 'allowed'"
    )]
    FanOut {
        /// The rule.
        rule: String,
        /// The window.
        window: Window,
        /// The event's source.
        usage_source: String,
        /// The event's id.
        id: String,
        /// The reference table.
        table: String,
    },
}

/// Rates windows with one version of the reference data.
#[derive(Debug, Clone)]
pub struct Evaluator {
    runtime: Arc<RuntimeEnv>,
    limits: SessionLimits,
    reference: ReferenceData,
    usage: Arc<dyn TableProvider>,
}

impl Evaluator {
    /// An evaluator over `usage`, which has the columns of `UsageSchema::stored` and holds every event once.
    #[must_use]
    pub fn new(runtime: Arc<RuntimeEnv>, limits: SessionLimits, reference: ReferenceData, usage: Arc<dyn TableProvider>) -> Self {
        Self { runtime, limits, reference, usage }
    }

    /// The charges of each window, in order.
    ///
    /// # Errors
    /// [`RateError`] names rule, window and, where it can be found, the subject or customer.
    pub async fn evaluate(&self, rule: &Rule, windows: &[Window]) -> Result<Vec<WindowCharges>, RateError> {
        let mut results = Vec::with_capacity(windows.len());
        for window in windows {
            results.push(WindowCharges { window: *window, charges: self.window(rule, *window).await? });
        }
        Ok(results)
    }

    async fn window(&self, rule: &Rule, window: Window) -> Result<RecordBatch, RateError> {
        if !rule.options.fan_out_allowed {
            self.refuse_fan_out(rule, window).await?;
        }
        match self.run(&rule.query, window, None).await {
            Ok(batch) => Shaper { rule, window }.shape(&batch),
            Err(error) => {
                let culprit = if rule.reads_usage { self.culprit(rule, window).await } else { None };
                let culprit = culprit.map_or_else(String::new, |subject| format!(", subject `{subject}`"));
                Err(RateError::Query { rule: rule.name.clone(), window, culprit, message: root_message(&error) })
            }
        }
    }

    async fn refuse_fan_out(&self, rule: &Rule, window: Window) -> Result<(), RateError> {
        for check in &rule.fan_out {
            let found = self.run(&check.query, window, None).await.map_err(|error| RateError::Query {
                rule: rule.name.clone(),
                window,
                culprit: String::new(),
                message: root_message(&error),
            })?;
            if found.num_rows() > 0 {
                let text = |index: usize| found.column(index).as_string::<i32>().value(0).to_owned();
                return Err(RateError::FanOut {
                    rule: rule.name.clone(),
                    window,
                    usage_source: text(0),
                    id: text(1),
                    table: check.table.clone(),
                });
            }
        }
        Ok(())
    }

    /// The one subject whose usage makes the query fail: halves the subjects until one is left.
    async fn culprit(&self, rule: &Rule, window: Window) -> Option<String> {
        let context = self.context(window, None).ok()?;
        let batches = context.sql("SELECT DISTINCT subject FROM usage ORDER BY subject").await.ok()?.collect().await.ok()?;
        let mut subjects: Vec<String> = batches
            .iter()
            .flat_map(|batch| batch.column(0).as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        while subjects.len() > 1 {
            let right = subjects.split_off(subjects.len() / 2);
            if self.run(&rule.query, window, Some(&subjects)).await.is_ok() {
                if self.run(&rule.query, window, Some(&right)).await.is_ok() {
                    return None;
                }
                subjects = right;
            }
        }
        let subject = subjects.pop()?;
        self.run(&rule.query, window, Some(std::slice::from_ref(&subject))).await.is_err().then_some(subject)
    }

    async fn run(&self, query: &Query, window: Window, subjects: Option<&[String]>) -> Result<RecordBatch, DataFusionError> {
        let context = self.context(window, subjects)?;
        let statement = PlanStatement::Statement(Box::new(Statement::Query(Box::new(query.clone()))));
        let plan = context.state().statement_to_plan(statement).await?;
        let schema = Arc::clone(plan.schema().inner());
        let batches = context.execute_logical_plan(plan).await?.collect().await?;
        match batches.first() {
            Some(first) => Ok(concat_batches(&first.schema(), &batches)?),
            None => Ok(RecordBatch::new_empty(schema)),
        }
    }

    /// A session in which `usage` holds one window and `billing_window` its row.
    fn context(&self, window: Window, subjects: Option<&[String]>) -> Result<SessionContext, DataFusionError> {
        let context = session(Arc::clone(&self.runtime), &self.limits);
        let plan = self.usage_of(window, subjects)?;
        context.register_table(TableReference::bare("usage"), Arc::new(ViewTable::new(plan, None)))?;
        let bound = |instant| Arc::new(TimestampMicrosecondArray::from(vec![instant]).with_timezone("UTC")) as ArrayRef;
        let row = RecordBatch::try_new(window_schema(), vec![bound(window.start), bound(window.end)])?;
        context.register_table(TableReference::bare("billing_window"), Arc::new(MemTable::try_new(window_schema(), vec![vec![row]])?))?;
        for table in self.reference.tables() {
            let provider = MemTable::try_new(table.schema(), vec![vec![table.batch().clone()]])?;
            context.register_table(TableReference::bare(table.name()), Arc::new(provider))?;
        }
        Ok(context)
    }

    fn usage_of(&self, window: Window, subjects: Option<&[String]>) -> Result<LogicalPlan, DataFusionError> {
        let column = |name: &str| Expr::Column(Column::from_name(name));
        let instant = |micros| lit(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())));
        // The partition column lets whole days be passed over.
        let day = |micros| lit(ScalarValue::Date32(Some(ratemill_schemas::time::day_of(micros))));
        let mut filter = column("day")
            .gt_eq(day(window.start))
            .and(column("day").lt_eq(day(window.end - 1)))
            .and(column("time").gt_eq(instant(window.start)))
            .and(column("time").lt(instant(window.end)));
        if let Some(subjects) = subjects {
            filter = filter.and(column("subject").in_list(subjects.iter().map(|subject| lit(subject.as_str())).collect(), false));
        }
        LogicalPlanBuilder::scan(TableReference::bare("usage"), provider_as_source(Arc::clone(&self.usage)), None)?.filter(filter)?.build()
    }
}

fn root_message(error: &DataFusionError) -> String {
    let message = error.find_root().strip_backtrace();
    ["Execution error: ", "Compute error: ", "Arrow error: ", "Error during planning: "]
        .iter()
        .fold(message, |message, prefix| message.strip_prefix(prefix).map(str::to_owned).unwrap_or(message))
}

/// Brings a rule's output into the columns of the ledger and checks every row.
struct Shaper<'a> {
    rule: &'a Rule,
    window: Window,
}

/// Columns that a rule's output has in the ledger, before its further columns.
pub const CHARGE_COLUMNS: [&str; 9] =
    ["customer_id", "contract_id", "item", "currency", "amount", "quantity", "unit", "unit_price", "detail"];

/// Further columns that are part of a charge's identity: every one that is no decimal.
#[must_use]
pub fn is_identity(data_type: &DataType) -> bool {
    !matches!(data_type, DataType::Decimal128(..))
}

/// The type in which the ledger stores a further column.
#[must_use]
pub fn stored_type(data_type: &DataType) -> DataType {
    match data_type {
        other if other.is_string() || other.is_null() => DataType::Utf8,
        other if other.is_integer() => DataType::Int64,
        DataType::Timestamp(..) => ratemill_schemas::time::instant_type(),
        DataType::Decimal128(..) => DECIMAL,
        other => other.clone(),
    }
}

impl Shaper<'_> {
    fn shape(&self, batch: &RecordBatch) -> Result<RecordBatch, RateError> {
        let mut fields = Vec::new();
        let mut columns: Vec<ArrayRef> = Vec::new();
        for name in CHARGE_COLUMNS {
            let data_type = if matches!(name, "amount" | "quantity" | "unit_price") { DECIMAL } else { DataType::Utf8 };
            let column = match batch.column_by_name(name) {
                Some(column) => self.convert(name, column, &data_type)?,
                None => arrow::array::new_null_array(&data_type, batch.num_rows()),
            };
            fields.push(Field::new(name, data_type, true));
            columns.push(column);
        }
        for output in self.rule.further_columns() {
            let data_type = stored_type(&output.data_type);
            if let Some(column) = batch.column_by_name(&output.name) {
                columns.push(self.convert(&output.name, column, &data_type)?);
                fields.push(Field::new(&output.name, data_type, true));
            }
        }
        let shaped = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|error| self.failed("?", error.to_string()))?;
        self.check(&shaped)?;
        Ok(shaped)
    }

    fn convert(&self, name: &str, column: &ArrayRef, to: &DataType) -> Result<ArrayRef, RateError> {
        if let DataType::Decimal128(_, scale) = column.data_type()
            && *to == DECIMAL
            && *scale > ratemill_schemas::decimal::SCALE
        {
            return Err(self.failed("?", format!("`{name}` has {scale} places; round it to 18")));
        }
        let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
        arrow::compute::cast_with_options(column, to, &options).map_err(|error| self.failed("?", format!("`{name}`: {error}")))
    }

    fn check(&self, charges: &RecordBatch) -> Result<(), RateError> {
        let text = |index: usize| charges.column(index).as_string::<i32>();
        let (customers, items, currencies) = (text(0), text(2), text(3));
        let amounts = charges.column(4).as_primitive::<Decimal128Type>();
        let mut known: HashMap<String, usize> = HashMap::with_capacity(charges.num_rows());
        let mut valid_currencies: HashMap<&str, ()> = HashMap::new();
        for row in 0..charges.num_rows() {
            let customer = if customers.is_null(row) { "?" } else { customers.value(row) };
            for (name, null) in [
                ("customer_id", customers.is_null(row)),
                ("item", items.is_null(row)),
                ("currency", currencies.is_null(row)),
                ("amount", amounts.is_null(row)),
            ] {
                if null {
                    return Err(self.failed(
                        customer,
                        format!("`{name}` is null; every charge has one (a sum over no rows is null: write coalesce(sum(…), 0))"),
                    ));
                }
            }
            let currency = currencies.value(row);
            if !valid_currencies.contains_key(currency) {
                currency.parse::<Currency>().map_err(|error| self.failed(customer, error.to_string()))?;
                valid_currencies.insert(currency, ());
            }
            for column in charges.columns() {
                if let DataType::Decimal128(..) = column.data_type() {
                    let decimals = column.as_primitive::<Decimal128Type>();
                    if decimals.is_valid(row) {
                        Decimal::from_raw(decimals.value(row)).map_err(|error| self.failed(customer, format!("a decimal {error}")))?;
                    }
                }
            }
            if let Some(other) = known.insert(identity(charges, row), row) {
                let message = format!(
                    "two charges of the same identity (customer `{customer}`, item `{}`, currency {currency}): {} and {}; group them, or tell them apart by item or a further column",
                    items.value(row),
                    show(amounts.value(other)),
                    show(amounts.value(row)),
                );
                return Err(self.failed(customer, message));
            }
        }
        Ok(())
    }

    fn failed(&self, customer: &str, message: String) -> RateError {
        RateError::Charge { rule: self.rule.name.clone(), window: self.window, customer: customer.to_owned(), message }
    }
}

fn show(raw: i128) -> String {
    Decimal::from_raw(raw).map_or_else(|_| raw.to_string(), |value| value.to_string())
}

/// The identity of a charge within its rule and window: `customer_id`, `contract_id`, `item`, `currency` and every
/// further column that is no decimal, as a text in which no two identities agree.
///
/// # Panics
/// When the batch does not have the columns of [`WindowCharges`].
#[must_use]
pub fn identity(charges: &RecordBatch, row: usize) -> String {
    let mut text = String::new();
    let schema = charges.schema();
    let further = (CHARGE_COLUMNS.len()..charges.num_columns()).filter(|index| is_identity(schema.field(*index).data_type()));
    for index in [0, 1, 2, 3].into_iter().chain(further) {
        let column = charges.column(index);
        if column.is_null(row) {
            // A column that a rule gained later is null in older charges: absent and null are one.
            continue;
        }
        let value = match column.data_type() {
            DataType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
            DataType::Timestamp(..) => format_instant(column.as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(row)),
            _ => ArrayFormatter::try_new(column, &FormatOptions::default())
                .map_or_else(|error| error.to_string(), |formatter| formatter.value(row).to_string()),
        };
        text.push_str(&format!("{}={}:{value};", schema.field(index).name(), value.len()));
    }
    text
}
