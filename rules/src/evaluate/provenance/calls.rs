//! Calls of pricing functions: their arguments for a charge, what they give, and the steps of it.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result, ScalarValue};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, lit};
use serde::Serialize;
use serde_json::Value;

use super::lineage::{Leaf, Point, has_subquery, marker, traced_name};
use super::{Planned, values};
use crate::evaluate::root_message;
use crate::functions::signature;

/// The functions whose calls are shown.
const PRICING: [&str; 22] = [
    "graduated",
    "volume",
    "graduated_percentage",
    "stairstep",
    "capacity",
    "tier_fees",
    "prorated_graduated",
    "packages",
    "package",
    "tiered_blocks",
    "overage",
    "percentage",
    "at_least",
    "at_most",
    "increments",
    "prorate",
    "prorate_days",
    "prorate_by_day",
    "time_of_use",
    "call_charge",
    "convert",
    "round_money",
];

/// A call of a pricing function on the way to a charge.
#[derive(Debug, Serialize)]
pub struct PricingCall {
    /// The function.
    pub function: String,
    /// The column that it is in, as the query names or writes it.
    pub column: String,
    /// With how many different arguments it was called.
    pub count: usize,
    /// The first of them.
    pub calls: Vec<CallRow>,
}

/// One row of arguments.
#[derive(Debug, Serialize)]
pub struct CallRow {
    /// Name and value of each argument; decimals are exact texts.
    pub arguments: Vec<(String, Value)>,
    /// What the function gives; null where it gives nothing.
    pub result: Value,
    /// How that comes about: tiers, blocks, parts of time or of a call. Empty for a plain formula.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Value>,
}

/// A call in the expressions of a node.
pub(super) struct Call {
    function: ScalarFunction,
    column: String,
}

impl Call {
    pub(super) fn name(&self) -> &str {
        self.function.name()
    }

    /// The calls in the expressions of a node, equal ones once.
    pub(super) fn all_in(plan: &LogicalPlan) -> Vec<Self> {
        let mut calls: Vec<Self> = Vec::new();
        for root in plan.expressions() {
            let (column, inner) = match &root {
                Expr::Alias(alias) => (alias.name.clone(), alias.expr.as_ref()),
                other => (other.schema_name().to_string(), other),
            };
            let _ = inner.apply(|expr| {
                if let Expr::ScalarFunction(function) = expr
                    && PRICING.contains(&function.name())
                    && !function.args.iter().any(|argument| has_subquery(argument) || is_aggregate(argument))
                    && !calls.iter().any(|known| known.function == *function)
                {
                    calls.push(Self { function: function.clone(), column: column.clone() });
                }
                Ok(TreeNodeRecursion::Continue)
            });
        }
        calls
    }

    /// Names of the carried columns: a mark, and the arguments.
    pub(super) fn carried(&self) -> Vec<String> {
        let arguments = (0..self.function.args.len()).map(|index| traced_name(&format!("argument {index}")));
        std::iter::once(traced_name("call")).chain(arguments).collect()
    }

    /// The carried columns over the input of the node.
    pub(super) fn columns(&self) -> Vec<Expr> {
        let arguments = self.function.args.iter().zip(self.carried().into_iter().skip(1));
        std::iter::once(marker()).chain(arguments.map(|(argument, name)| argument.clone().alias(name))).collect()
    }
}

/// An aggregate within an expression of the node that computes it has no value for a row.
fn is_aggregate(expr: &Expr) -> bool {
    let mut found = false;
    let _ = expr.apply(|inner| {
        found |= matches!(inner, Expr::AggregateFunction(_) | Expr::WindowFunction(_));
        Ok(TreeNodeRecursion::Continue)
    });
    found
}

impl Planned {
    /// The arguments of a call for the charge, and what it gives; `None` where it is not called.
    pub(super) async fn call(&self, point: &Point, call: &Call, rows_max: usize) -> Result<Option<PricingCall>, String> {
        let mut notes = Vec::new();
        let Some(plan) = self.trace(point, &Leaf::Events, &mut notes)? else { return Ok(None) };
        let message = |error| root_message(&error);
        // Sorted, so that the same rows are shown each time.
        let columns = call.carried().into_iter().skip(1).map(|name| Expr::Column(Column::from_name(name)));
        let found = self.collect(LogicalPlanBuilder::from(plan).project(columns).and_then(LogicalPlanBuilder::build).map_err(message)?);
        let arguments = found.await.map_err(message)?;
        if arguments.num_rows() == 0 {
            return Ok(None);
        }
        let order = in_order(&arguments).map_err(|error| error.to_string())?;
        let arguments =
            arrow::compute::take_record_batch(&arguments, &order.slice(0, order.len().min(rows_max))).map_err(|error| error.to_string())?;
        let results = self.given(call, &arguments).await.map_err(message)?;
        let mut calls = Vec::new();
        for row in 0..arguments.num_rows() {
            calls.push(call_row(call, &arguments, &results, row).map_err(|error| error.to_string())?);
        }
        let (function, column) = (call.name().to_owned(), call.column.clone());
        Ok(Some(PricingCall { function, column, count: order.len(), calls }))
    }

    /// What the function gives for each row of arguments, and its steps where there are any.
    async fn given(&self, call: &Call, arguments: &RecordBatch) -> Result<RecordBatch> {
        let names: Vec<String> = call.carried().into_iter().skip(1).collect();
        let fields: Vec<Field> =
            names.iter().zip(arguments.columns()).map(|(name, column)| Field::new(name, column.data_type().clone(), true)).collect();
        let schema = Arc::new(Schema::new(fields));
        let rows = RecordBatch::try_new(Arc::clone(&schema), arguments.columns().to_vec())?;
        let provider = provider_as_source(Arc::new(MemTable::try_new(schema, vec![vec![rows]])?));
        // A literal stays one: some functions read it when they are planned.
        let argument = |index: usize| match &call.function.args[index] {
            literal @ Expr::Literal(..) => literal.clone(),
            _ => Expr::Column(Column::from_name(names[index].clone())),
        };
        let all: Vec<Expr> = (0..names.len()).map(argument).collect();
        let result = call.function.func.call(all.clone());
        let steps = match steps_of(call.name(), &all) {
            Some((function, arguments)) => self.context.state().scalar_functions()[function].call(arguments),
            None => lit(ScalarValue::Null),
        };
        let plan = LogicalPlanBuilder::scan("calls", provider, None)?.project(vec![result.alias("result"), steps.alias("steps")])?;
        self.collect(plan.build()?).await
    }
}

/// The function that tells the steps of another, and its arguments.
fn steps_of(function: &str, arguments: &[Expr]) -> Option<(&'static str, Vec<Expr>)> {
    let same = || arguments.to_vec();
    Some(match function {
        "graduated" => ("tier_breakdown", same()),
        // The tier is the last that is entered.
        "volume" => {
            let [quantity, tiers, rest @ ..] = arguments else { return None };
            let holder = match rest.get(1) {
                Some(tier_quantity) => datafusion::functions::core::expr_fn::coalesce(vec![tier_quantity.clone(), quantity.clone()]),
                None => quantity.clone(),
            };
            ("tier_breakdown", [holder, tiers.clone()].into_iter().chain(rest.first().cloned()).collect())
        }
        "tiered_blocks" => ("block_breakdown", same()),
        "time_of_use" => ("time_of_use_breakdown", same()),
        "call_charge" => ("call_breakdown", same()),
        _ => return None,
    })
}

fn call_row(
    call: &Call,
    arguments: &RecordBatch,
    results: &RecordBatch,
    row: usize,
) -> std::result::Result<CallRow, arrow::error::ArrowError> {
    let names = signature(call.name()).map(|signature| signature.parameters).unwrap_or_default();
    let mut shown = Vec::new();
    for (index, column) in arguments.columns().iter().enumerate() {
        let name = names.get(index).map_or_else(|| format!("argument {}", index + 1), |parameter| parameter.name.to_owned());
        shown.push((name, values::value(column, row)?));
    }
    let result = values::value(results.column(0), row)?;
    let mut steps = match values::value(results.column(1), row)? {
        Value::Array(steps) => steps,
        _ => Vec::new(),
    };
    if call.name() == "volume"
        && let Some(Value::Object(mut tier)) = steps.pop()
    {
        // The whole quantity is charged at the price of the tier that holds it.
        tier.extend(shown.first().map(|(_, quantity)| ("quantity".to_owned(), quantity.clone())));
        tier.insert("amount".to_owned(), result.clone());
        steps = vec![Value::Object(tier)];
    }
    Ok(CallRow { arguments: shown, result, steps })
}

/// Rows by their columns, where these have an order.
fn in_order(batch: &RecordBatch) -> std::result::Result<arrow::array::UInt32Array, arrow::error::ArrowError> {
    let columns: Vec<arrow::compute::SortColumn> = batch
        .columns()
        .iter()
        .filter(|column| !column.data_type().is_nested())
        .map(|column: &ArrayRef| arrow::compute::SortColumn { values: Arc::clone(column), options: None })
        .collect();
    if columns.is_empty() {
        return Ok((0..u32::try_from(batch.num_rows()).unwrap_or(u32::MAX)).collect());
    }
    arrow::compute::lexsort_to_indices(&columns, None)
}
