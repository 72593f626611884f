//! Explicit rounding: `round_money(amount, currency[, mode])` and `round(number[, places[, mode]])`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array};
use arrow::datatypes::{DataType, Decimal128Type, Int64Type};
use datafusion::common::{Result, exec_datafusion_err, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use ratemill_schemas::decimal::{DECIMAL, Decimal};
use ratemill_schemas::{Currency, Rounding};

use super::arithmetic::is_exact_number;

fn is_text(data_type: &DataType) -> bool {
    data_type.is_null() || data_type.is_string()
}

fn mode(modes: Option<&ArrayRef>, row: usize) -> Result<Rounding> {
    match modes.map(|modes| modes.as_string::<i32>()) {
        Some(modes) if modes.is_valid(row) => modes.value(row).parse().map_err(|error| exec_datafusion_err!("{error}")),
        _ => Ok(Rounding::HalfUp),
    }
}

fn decimal(raw: i128) -> Result<Decimal> {
    Decimal::from_raw(raw).map_err(|error| exec_datafusion_err!("a decimal {error}"))
}

/// `round_money(amount, currency[, mode])`: to the currency's minor unit; `half_up` (halves away from zero) unless
/// `mode` says `half_even`, `up` (away from zero) or `down` (toward zero). `round_money(2.345, 'EUR')` is 2.35.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct RoundMoney {
    signature: Signature,
}

impl RoundMoney {
    pub(super) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for RoundMoney {
    fn name(&self) -> &str {
        "round_money"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        match types {
            [amount, texts @ ..] if matches!(texts.len(), 1 | 2) && is_exact_number(amount) && texts.iter().all(is_text) => {
                Ok([DECIMAL, DataType::Utf8, DataType::Utf8][..types.len()].to_vec())
            }
            _ => plan_err!("round_money(amount, currency[, mode]) takes an exact amount and texts"),
        }
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DECIMAL)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let (amounts, currencies) = (arrays[0].as_primitive::<Decimal128Type>(), arrays[1].as_string::<i32>());
        let rounded = (0..amounts.len())
            .map(|row| {
                if amounts.is_null(row) || currencies.is_null(row) {
                    return Ok(None);
                }
                let currency: Currency = currencies.value(row).parse().map_err(|error| exec_datafusion_err!("{error}"))?;
                let amount = decimal(amounts.value(row))?;
                let rounded = currency
                    .round(amount, mode(arrays.get(2), row)?)
                    .map_err(|error| exec_datafusion_err!("round_money of {amount}: {error}"))?;
                Ok(Some(rounded.raw()))
            })
            .collect::<Result<Decimal128Array>>()?;
        Ok(ColumnarValue::Array(Arc::new(rounded.with_data_type(DECIMAL))))
    }
}

/// `round(number[, places[, mode]])`: exact, halves away from zero unless `mode` says otherwise; `places` may be
/// negative (tens, hundreds). `round(2.345, 2)` is 2.35, `round(1250, -2, 'half_even')` is 1200.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Round {
    signature: Signature,
}

impl Round {
    pub(super) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Round {
    fn name(&self) -> &str {
        "round"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let valid = match types {
            [number] => is_exact_number(number),
            [number, places] => is_exact_number(number) && places.is_integer(),
            [number, places, mode] => is_exact_number(number) && places.is_integer() && is_text(mode),
            _ => false,
        };
        if !valid {
            return plan_err!("round(number[, places[, mode]]) takes an exact number, a whole number of places and a text");
        }
        Ok([DECIMAL, DataType::Int64, DataType::Utf8][..types.len()].to_vec())
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DECIMAL)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let numbers = arrays[0].as_primitive::<Decimal128Type>();
        let places = arrays.get(1).map(|places| places.as_primitive::<Int64Type>());
        let rounded = (0..numbers.len())
            .map(|row| {
                if numbers.is_null(row) || places.is_some_and(|places| places.is_null(row)) {
                    return Ok(None);
                }
                let places = places.map_or(0, |places| places.value(row).clamp(-40, 40));
                let number = decimal(numbers.value(row))?;
                let places = i32::try_from(places).unwrap_or_default();
                let rounded =
                    number.round(places, mode(arrays.get(2), row)?).map_err(|error| exec_datafusion_err!("round of {number}: {error}"))?;
                Ok(Some(rounded.raw()))
            })
            .collect::<Result<Decimal128Array>>()?;
        Ok(ColumnarValue::Array(Arc::new(rounded.with_data_type(DECIMAL))))
    }
}
