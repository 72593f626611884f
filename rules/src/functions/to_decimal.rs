//! `parse_decimal(text)`: a number out of an attribute, exactly.

use std::sync::Arc;

use arrow::array::{AsArray, Decimal128Array};
use arrow::datatypes::DataType;
use datafusion::common::{Result, exec_datafusion_err, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use ratemill_schemas::decimal::{DECIMAL, Decimal};

/// `parse_decimal(text)`: every digit is kept or the rule stops; a plain cast would drop digits.
/// `parse_decimal(attributes['rate'])`, with the rate sent as `"0.0725"`, is 0.0725; null stays null.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct ParseDecimal {
    signature: Signature,
}

impl ParseDecimal {
    pub(super) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for ParseDecimal {
    fn name(&self) -> &str {
        "parse_decimal"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        match types {
            [text] if text.is_string() || text.is_null() => Ok(vec![DataType::Utf8]),
            _ => plan_err!("parse_decimal(text) takes a text"),
        }
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DECIMAL)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let numbers = arrays[0]
            .as_string::<i32>()
            .iter()
            .map(|text| {
                text.map(|text| text.parse::<Decimal>().map(Decimal::raw).map_err(|error| exec_datafusion_err!("`{text}` {error}")))
                    .transpose()
            })
            .collect::<Result<Decimal128Array>>()?;
        Ok(ColumnarValue::Array(Arc::new(numbers.with_data_type(DECIMAL))))
    }
}
