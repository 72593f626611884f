//! `+ - * / %` on exact numbers: whole numbers stay whole under `+ - * %`, everything else is `Decimal128(38, 18)`.
//! Overflow is an error; a product or quotient is rounded half-even to 18 places.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, Int64Array};
use arrow::compute::try_binary;
use arrow::datatypes::{DataType, Decimal128Type, Int64Type};
use arrow::error::ArrowError;
use datafusion::common::{DFSchema, Result, plan_err, utils::take_function_args};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{ColumnarValue, Expr, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use datafusion::sql::sqlparser::ast::BinaryOperator;
use ratemill_schemas::decimal::{DECIMAL, Decimal, DecimalError};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

impl Operator {
    const ALL: [Self; 5] = [Self::Add, Self::Subtract, Self::Multiply, Self::Divide, Self::Modulo];

    fn name(self) -> &'static str {
        match self {
            Self::Add => "checked_add",
            Self::Subtract => "checked_subtract",
            Self::Multiply => "checked_multiply",
            Self::Divide => "checked_divide",
            Self::Modulo => "checked_modulo",
        }
    }

    fn symbol(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Modulo => "%",
        }
    }

    fn decimals(self, left: i128, right: i128) -> Result<i128, ArrowError> {
        let decimal = |raw| Decimal::from_raw(raw).map_err(|error| self.failed(&raw, &"", error));
        let (x, y) = (decimal(left)?, decimal(right)?);
        let result = match self {
            Self::Add => x.plus(y),
            Self::Subtract => x.subtract(y),
            Self::Multiply => x.multiply(y),
            Self::Divide => x.divide(y),
            Self::Modulo => x.remainder(y),
        };
        result.map(Decimal::raw).map_err(|error| self.failed(&x, &y, error))
    }

    fn integers(self, left: i64, right: i64) -> Result<i64, ArrowError> {
        let result = match self {
            Self::Add => left.checked_add(right),
            Self::Subtract => left.checked_sub(right),
            Self::Multiply => left.checked_mul(right),
            Self::Divide | Self::Modulo => left.checked_rem(right),
        };
        result.ok_or_else(|| {
            let error = if right == 0 { DecimalError::DivisionByZero } else { DecimalError::TooLarge };
            self.failed(&left, &right, error)
        })
    }

    fn failed(self, left: &dyn std::fmt::Display, right: &dyn std::fmt::Display, error: DecimalError) -> ArrowError {
        match error {
            DecimalError::DivisionByZero => ArrowError::ComputeError(format!("{left} {} {right}: division by zero", self.symbol())),
            other => ArrowError::ComputeError(format!("{left} {} {right} {other}", self.symbol())),
        }
    }
}

/// One checked operator.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    operator: Operator,
    signature: Signature,
}

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    Operator::ALL.into_iter().map(function).collect()
}

fn function(operator: Operator) -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(Checked { operator, signature: Signature::user_defined(Volatility::Immutable) }))
}

pub(super) fn is_exact_number(data_type: &DataType) -> bool {
    data_type.is_null() || (data_type.is_numeric() && !data_type.is_floating())
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        self.operator.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let [left, right] = types else { return plan_err!("{} takes 2 arguments", self.name()) };
        if !is_exact_number(left) || !is_exact_number(right) {
            return plan_err!("`{}` needs exact numbers, not {left} and {right}", self.operator.symbol());
        }
        let whole = left.is_integer() && right.is_integer() && self.operator != Operator::Divide;
        Ok(vec![if whole { DataType::Int64 } else { DECIMAL }; 2])
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(if types.iter().all(DataType::is_integer) && self.operator != Operator::Divide { DataType::Int64 } else { DECIMAL })
    }

    fn schema_name(&self, arguments: &[Expr]) -> Result<String> {
        match arguments {
            [left, right] => Ok(format!("({} {} {})", left.schema_name(), self.operator.symbol(), right.schema_name())),
            _ => plan_err!("{} takes 2 arguments", self.name()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let whole = args.return_field.data_type() == &DataType::Int64;
        let scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if scalar { 1 } else { args.number_rows };
        let [left, right] = take_function_args(self.name(), args.args)?;
        let (left, right) = (left.into_array(rows)?, right.into_array(rows)?);
        let result: ArrayRef = if whole {
            let values: Int64Array =
                try_binary(left.as_primitive::<Int64Type>(), right.as_primitive::<Int64Type>(), |x, y| self.operator.integers(x, y))?;
            Arc::new(values)
        } else {
            let values: Decimal128Array =
                try_binary(left.as_primitive::<Decimal128Type>(), right.as_primitive::<Decimal128Type>(), |x, y| {
                    self.operator.decimals(x, y)
                })?;
            Arc::new(values.with_data_type(DECIMAL))
        };
        if scalar && !result.is_empty() {
            return Ok(ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&result, 0)?));
        }
        Ok(ColumnarValue::Array(result))
    }
}

/// Plans the operators of SQL as checked functions.
#[derive(Debug)]
pub(super) struct ArithmeticPlanner {
    functions: Vec<(Operator, Arc<ScalarUDF>)>,
}

impl Default for ArithmeticPlanner {
    fn default() -> Self {
        Self { functions: Operator::ALL.into_iter().map(|operator| (operator, function(operator))).collect() }
    }
}

impl ExprPlanner for ArithmeticPlanner {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let operator = match expr.op {
            BinaryOperator::Plus => Operator::Add,
            BinaryOperator::Minus => Operator::Subtract,
            BinaryOperator::Multiply => Operator::Multiply,
            BinaryOperator::Divide => Operator::Divide,
            BinaryOperator::Modulo => Operator::Modulo,
            _ => return Ok(PlannerResult::Original(expr)),
        };
        // An unknown column must reach the planner's own error, which knows where it stands.
        let (Ok(left), Ok(right)) = (expr.left.get_type(schema), expr.right.get_type(schema)) else {
            return Ok(PlannerResult::Original(expr));
        };
        if !is_exact_number(&left) || !is_exact_number(&right) {
            return Ok(PlannerResult::Original(expr));
        }
        let Some((_, function)) = self.functions.iter().find(|(known, _)| *known == operator) else {
            return Ok(PlannerResult::Original(expr));
        };
        Ok(PlannerResult::Planned(function.call(vec![expr.left, expr.right])))
    }
}
