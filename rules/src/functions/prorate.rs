//! `prorate`: the part of a period's amount that falls into an active time.

use std::sync::Arc;

use arrow::array::{Array, AsArray, Decimal128Array};
use arrow::datatypes::{DataType, Decimal128Type, TimestampMicrosecondType};
use datafusion::common::{Result, exec_datafusion_err, exec_err, plan_err, utils::take_function_args};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use ratemill_schemas::decimal::{DECIMAL, Decimal};
use ratemill_schemas::time::instant_type;

use super::arithmetic::is_exact_number;

/// `prorate(amount, active_from, active_to, window_start, window_end)`:
/// `amount × |[active_from, active_to) ∩ [window_start, window_end)| ÷ |[window_start, window_end)|`, by time.
///
/// An empty `active_from` or `active_to` is open. Full activity gives the amount itself, none gives 0.
/// Example: 300.00 a month, active from the 16th of a 30-day month: 150.00.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Prorate {
    signature: Signature,
}

impl Prorate {
    pub(super) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

fn is_instant(data_type: &DataType) -> bool {
    data_type.is_null() || matches!(data_type, DataType::Timestamp(_, Some(_)))
}

impl ScalarUDFImpl for Prorate {
    fn name(&self) -> &str {
        "prorate"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        match types {
            [amount, bounds @ ..] if bounds.len() == 4 && is_exact_number(amount) && bounds.iter().all(is_instant) => {
                Ok(vec![DECIMAL, instant_type(), instant_type(), instant_type(), instant_type()])
            }
            _ => plan_err!("prorate(amount, active_from, active_to, window_start, window_end) takes an exact amount and four instants"),
        }
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DECIMAL)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let [amount, from, to, start, end] = take_function_args(self.name(), ColumnarValue::values_to_arrays(&args.args)?)?;
        let amount = amount.as_primitive::<Decimal128Type>();
        let instants = |array: &arrow::array::ArrayRef| array.as_primitive::<TimestampMicrosecondType>().clone();
        let (from, to, start, end) = (instants(&from), instants(&to), instants(&start), instants(&end));
        let rows = if amount.len() == 1 && args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_))) { 1 } else { rows };
        let parts = (0..rows)
            .map(|row| {
                if amount.is_null(row) || start.is_null(row) || end.is_null(row) {
                    return Ok(None);
                }
                let (start, end) = (start.value(row), end.value(row));
                if end <= start {
                    return exec_err!("prorate: the window ends before it starts");
                }
                let from = if from.is_valid(row) { from.value(row).max(start) } else { start };
                let to = if to.is_valid(row) { to.value(row).min(end) } else { end };
                let amount = Decimal::from_raw(amount.value(row)).map_err(|error| exec_datafusion_err!("prorate: amount {error}"))?;
                let active = i128::from(to.saturating_sub(from).max(0));
                let part = amount
                    .scaled_by(active, i128::from(end - start))
                    .map_err(|error| exec_datafusion_err!("prorate of {amount}: {error}"))?;
                Ok(Some(part.raw()))
            })
            .collect::<Result<Decimal128Array>>()?;
        Ok(ColumnarValue::Array(Arc::new(parts.with_data_type(DECIMAL))))
    }
}
