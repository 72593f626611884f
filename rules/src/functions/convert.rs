//! `convert(amount, from, to, instant)`: by the rates of the reference table `exchange_rates`.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array};
use arrow::datatypes::{DataType, Decimal128Type, TimestampMicrosecondType};
use datafusion::common::{Result, exec_datafusion_err, exec_err, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use ratemill_schemas::Decimal;
use ratemill_schemas::decimal::DECIMAL;
use ratemill_schemas::time::{format_instant, instant_type};

use super::arithmetic::is_exact_number;
use crate::reference::{ReferenceData, ReferenceTable};

/// The reference table that `convert` reads.
pub(crate) const EXCHANGE_RATES: &str = "exchange_rates";

/// The columns that rates need.
const COLUMNS: &str = "from_currency, to_currency (text), rate (decimal), valid_from and valid_to";

/// A rate and when it holds, µs UTC.
#[derive(Debug, Clone, Copy)]
struct ExchangeRate {
    from: i64,
    to: i64,
    rate: Decimal,
}

#[derive(Debug)]
struct Convert {
    /// By currency pair, in order of time; or why there are none, which is said to a rule that converts.
    rates: Result<HashMap<(String, String), Vec<ExchangeRate>>, String>,
    version: String,
    signature: Signature,
}

impl PartialEq for Convert {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version
    }
}

impl Eq for Convert {}

impl Hash for Convert {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.version.hash(state);
    }
}

/// The function over the project's rates.
pub(super) fn function(reference: &ReferenceData) -> Result<ScalarUDF> {
    let missing = || format!("convert reads the reference table exchange_rates, which is not there; it has the columns {COLUMNS}");
    let rates =
        reference.table(EXCHANGE_RATES).map_or_else(|| Err(missing()), |table| read(table).map_err(|error| error.strip_backtrace()));
    Ok(ScalarUDF::from(Convert {
        rates,
        version: reference.version().to_owned(),
        signature: Signature::user_defined(Volatility::Immutable),
    }))
}

fn read(table: &ReferenceTable) -> Result<HashMap<(String, String), Vec<ExchangeRate>>> {
    let column = |name: &str| table.batch().column_by_name(name);
    let text = |name: &str| column(name).and_then(|column| column.as_string_opt::<i32>());
    let instants = |name: &str| column(name).and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
    let (Some(from), Some(to), Some(rate), Some(start), Some(end)) = (
        text("from_currency"),
        text("to_currency"),
        column("rate").and_then(|column| column.as_primitive_opt::<Decimal128Type>()),
        instants("valid_from"),
        instants("valid_to"),
    ) else {
        return plan_err!("convert reads the reference table exchange_rates, which needs the columns {COLUMNS}");
    };
    let mut rates: HashMap<(String, String), Vec<ExchangeRate>> = HashMap::new();
    for row in 0..rate.len() {
        if rate.is_null(row) || from.is_null(row) || to.is_null(row) {
            return plan_err!("exchange_rates: row {} lacks a currency or a rate", row + 1);
        }
        let value = Decimal::from_raw(rate.value(row)).map_err(|error| exec_datafusion_err!("exchange_rates: rate {error}"))?;
        let from_instant = if start.is_valid(row) { start.value(row) } else { i64::MIN };
        let to_instant = if end.is_valid(row) { end.value(row) } else { i64::MAX };
        let pair = (from.value(row).to_owned(), to.value(row).to_owned());
        rates.entry(pair).or_default().push(ExchangeRate { from: from_instant, to: to_instant, rate: value });
    }
    for (pair, rates) in &mut rates {
        rates.sort_by_key(|rate| rate.from);
        if let Some(twice) = rates.windows(2).find(|pair| pair[1].from < pair[0].to) {
            return plan_err!(
                "exchange_rates has two rates from {} to {} at once from {}",
                pair.0,
                pair.1,
                if twice[1].from == i64::MIN { "the beginning".to_owned() } else { format_instant(twice[1].from) }
            );
        }
    }
    Ok(rates)
}

impl Convert {
    fn rate(&self, from: &str, to: &str, instant: i64) -> Option<Decimal> {
        let rates = self.rates.as_ref().ok()?.get(&(from.to_owned(), to.to_owned()))?;
        let rate = rates[..rates.partition_point(|rate| rate.from <= instant)].last()?;
        (instant < rate.to).then_some(rate.rate)
    }
}

impl ScalarUDFImpl for Convert {
    fn name(&self) -> &str {
        "convert"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let text = |given: &DataType| given.is_string() || given.is_null();
        if let Err(message) = &self.rates {
            return plan_err!("{message}");
        }
        match types {
            [amount, from, to, at]
                if is_exact_number(amount) && text(from) && text(to) && matches!(at, DataType::Timestamp(_, Some(_))) =>
            {
                Ok(vec![DECIMAL, DataType::Utf8, DataType::Utf8, instant_type()])
            }
            _ => plan_err!("convert: write convert(amount, from, to, instant), with an exact amount, two currencies and an instant"),
        }
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DECIMAL)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let columns: Vec<ArrayRef> = args.args.into_iter().map(|arg| arg.into_array(rows)).collect::<Result<_>>()?;
        let amounts = columns[0].as_primitive::<Decimal128Type>();
        let (from, to) = (columns[1].as_string::<i32>(), columns[2].as_string::<i32>());
        let instants = columns[3].as_primitive::<TimestampMicrosecondType>();
        let converted = (0..rows)
            .map(|row| {
                if columns.iter().any(|column| column.is_null(row)) {
                    return Ok(None);
                }
                let (from, to, instant) = (from.value(row), to.value(row), instants.value(row));
                let amount = Decimal::from_raw(amounts.value(row)).map_err(|error| exec_datafusion_err!("convert: amount {error}"))?;
                if from == to {
                    return Ok(Some(amount.raw()));
                }
                let Some(rate) = self.rate(from, to, instant) else {
                    return exec_err!("convert: exchange_rates has no rate from {from} to {to} at {}", format_instant(instant));
                };
                amount.multiply(rate).map(|amount| Some(amount.raw())).map_err(|error| exec_datafusion_err!("convert of {amount}: {error}"))
            })
            .collect::<Result<Decimal128Array>>()?;
        Ok(ColumnarValue::Array(Arc::new(converted.with_data_type(DECIMAL))))
    }
}
