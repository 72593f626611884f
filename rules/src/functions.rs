//! The functions that rules may use: a small set of DataFusion's own, and the exact ones of this crate.

mod arithmetic;
mod binding;
mod collected;
mod convert;
mod only_value;
mod quantities;
mod rounding;
mod signature;
mod sum;
mod texts;
mod times;
mod to_decimal;

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use datafusion::common::Result;
use datafusion::logical_expr::planner::ExprPlanner;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF, WindowUDF};

pub(crate) use convert::EXCHANGE_RATES;
pub(crate) use only_value::OnlyValue;

use datafusion::prelude::SessionContext;

use ratemill_schemas::decimal::DECIMAL;

pub(crate) use signature::{Parameter, documented, signature};

use crate::reference::ReferenceData;

/// The element of a `tiers` column: ascending by `up_to`, which is null where a tier has no bound.
#[must_use]
pub fn tiers_field() -> FieldRef {
    let fields = Fields::from(vec![
        Field::new("up_to", DECIMAL, true),
        Field::new("unit_price", DECIMAL, false),
        Field::new("flat_fee", DECIMAL, false),
    ]);
    Arc::new(Field::new_list_field(DataType::Struct(fields), true))
}

/// Changes when the result of any pricing function changes, and with it the version of every rule.
pub const FUNCTIONS_VERSION: &str = "2";

/// DataFusion's scalar functions that are exact and depend on nothing but their arguments.
const SCALARS: [&str; 31] = [
    "abs",
    "arrow_typeof",
    "btrim",
    "character_length",
    "coalesce",
    "concat",
    "concat_ws",
    "date_part",
    "date_trunc",
    "ends_with",
    "get_field",
    "greatest",
    "least",
    "left",
    "lower",
    "ltrim",
    "map_extract",
    "nullif",
    "nvl",
    "octet_length",
    "replace",
    "reverse",
    "right",
    "rtrim",
    "split_part",
    "starts_with",
    "strpos",
    "substr",
    "to_date",
    "upper",
    "array_element",
];
const AGGREGATES: [&str; 5] = ["count", "min", "max", "bool_and", "bool_or"];
const WINDOWS: [&str; 9] = ["row_number", "rank", "dense_rank", "lag", "lead", "first_value", "last_value", "nth_value", "ntile"];

/// Scalar functions by name.
#[must_use]
pub fn scalar_functions() -> Vec<Arc<ScalarUDF>> {
    let allowed: HashSet<&str> = SCALARS.into_iter().collect();
    datafusion::functions::all_default_functions()
        .into_iter()
        .chain(datafusion::functions_nested::all_default_nested_functions())
        .filter(|function| allowed.contains(function.name()))
        .map(texts::bounded)
        .chain(arithmetic::functions())
        .chain(quantities::FUNCTIONS.iter().chain(times::FUNCTIONS).map(binding::bind))
        .chain([
            Arc::new(ScalarUDF::from(rounding::RoundMoney::new())),
            Arc::new(ScalarUDF::from(rounding::Round::new())),
            Arc::new(ScalarUDF::from(to_decimal::ParseDecimal::new())),
        ])
        .collect()
}

/// Registers the functions that read reference tables.
///
/// # Errors
/// When a table that a function reads lacks a column.
pub fn register_reference_functions(context: &SessionContext, reference: &ReferenceData) -> Result<()> {
    context.register_udf(convert::function(reference)?);
    Ok(())
}

/// Aggregate functions by name; `sum` is checked.
#[must_use]
pub fn aggregate_functions() -> Vec<Arc<AggregateUDF>> {
    let allowed: HashSet<&str> = AGGREGATES.into_iter().collect();
    datafusion::functions_aggregate::all_default_aggregate_functions()
        .into_iter()
        .filter(|function| allowed.contains(function.name()))
        .chain([Arc::new(AggregateUDF::from(sum::CheckedSum::new()))])
        .chain(collected::functions())
        .collect()
}

/// Window functions by name.
#[must_use]
pub fn window_functions() -> Vec<Arc<WindowUDF>> {
    let allowed: HashSet<&str> = WINDOWS.into_iter().collect();
    datafusion::functions_window::all_default_window_functions().into_iter().filter(|function| allowed.contains(function.name())).collect()
}

/// The planners that turn `+ - * / %` on numbers into checked operations, and `||` on texts into a bounded one.
#[must_use]
pub fn operator_planners() -> Vec<Arc<dyn ExprPlanner>> {
    vec![Arc::new(arithmetic::ArithmeticPlanner), Arc::new(texts::TextPlanner)]
}
