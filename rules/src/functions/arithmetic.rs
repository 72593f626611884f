//! `+ - * / %` on exact numbers: whole numbers stay whole under `+ - * %`, everything else is `Decimal128(38, 18)`.
//! Overflow is an error; a product or quotient is rounded half-even to 18 places.
//!
//! `a + b - c` is one call with two operators, not two calls in each other: the planner asks for the type and the name of
//! every call again at every step, which over nested calls takes time that grows with the cube of their number.

use std::any::Any;
use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, Int64Array};
use arrow::compute::try_binary;
use arrow::datatypes::{DataType, Decimal128Type, Int64Type};
use arrow::error::ArrowError;
use datafusion::common::{DFSchema, Result, plan_err};
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

    /// Whether a chain of these two runs from left to right without parentheses.
    fn is_level_with(self, other: Self) -> bool {
        let additive = |operator| matches!(operator, Self::Add | Self::Subtract);
        additive(self) == additive(other)
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
            if right == 0 && self == Self::Modulo {
                return self.failed(&left, &right, DecimalError::DivisionByZero);
            }
            ArrowError::ComputeError(format!(
                "{left} {} {right} does not fit into a whole number, which ends at 9223372036854775807; 1.0 * x {0} y is a decimal",
                self.symbol()
            ))
        })
    }

    fn apply(self, left: &ArrayRef, right: &ArrayRef, whole: bool) -> Result<ArrayRef> {
        if whole {
            let (left, right) = (left.as_primitive::<Int64Type>(), right.as_primitive::<Int64Type>());
            let values: Int64Array = try_binary(left, right, |x, y| self.integers(x, y))?;
            return Ok(Arc::new(values));
        }
        let (left, right) = (left.as_primitive::<Decimal128Type>(), right.as_primitive::<Decimal128Type>());
        let values: Decimal128Array = try_binary(left, right, |x, y| self.decimals(x, y))?;
        Ok(Arc::new(values.with_data_type(DECIMAL)))
    }

    fn failed(self, left: &dyn std::fmt::Display, right: &dyn std::fmt::Display, error: DecimalError) -> ArrowError {
        match error {
            DecimalError::DivisionByZero => ArrowError::ComputeError(format!("{left} {} {right}: division by zero", self.symbol())),
            other => ArrowError::ComputeError(format!("{left} {} {right} {other}", self.symbol())),
        }
    }
}

/// Checked operators of one level, applied from left to right.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    operators: Vec<Operator>,
    signature: Signature,
}

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    Operator::ALL.into_iter().map(|operator| function(vec![operator])).collect()
}

fn function(operators: Vec<Operator>) -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(Checked { operators, signature: Signature::user_defined(Volatility::Immutable) }))
}

/// The operators of a call that this module planned.
fn operators_of(expr: &Expr) -> Option<&[Operator]> {
    let Expr::ScalarFunction(call) = expr else { return None };
    let inner: &dyn Any = call.func.inner().as_ref();
    inner.downcast_ref::<Checked>().map(|checked| checked.operators.as_slice())
}

impl Checked {
    /// Whether whole numbers give a whole number.
    fn keeps_whole(&self) -> bool {
        !self.operators.contains(&Operator::Divide)
    }

    fn check_count<T>(&self, arguments: &[T]) -> Result<()> {
        let count = self.operators.len() + 1;
        if arguments.len() == count { Ok(()) } else { plan_err!("{} takes {count} arguments", self.name()) }
    }
}

pub(super) fn is_exact_number(data_type: &DataType) -> bool {
    data_type.is_null() || (data_type.is_numeric() && !data_type.is_floating())
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        match self.operators.as_slice() {
            [operator] => operator.name(),
            [operator, ..] if operator.is_level_with(Operator::Add) => "checked_sums",
            _ => "checked_products",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.check_count(types)?;
        for ((left, right), operator) in types.iter().zip(&types[1..]).zip(&self.operators) {
            if !is_exact_number(left) || !is_exact_number(right) {
                return plan_err!("`{}` needs exact numbers, not {left} and {right}", operator.symbol());
            }
        }
        Ok(vec![self.return_type(types)?; types.len()])
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(if types.iter().all(DataType::is_integer) && self.keeps_whole() { DataType::Int64 } else { DECIMAL })
    }

    fn schema_name(&self, arguments: &[Expr]) -> Result<String> {
        self.check_count(arguments)?;
        let mut name = "(".repeat(self.operators.len());
        write!(name, "{}", arguments[0].schema_name())?;
        for (operator, argument) in self.operators.iter().zip(&arguments[1..]) {
            write!(name, " {} {})", operator.symbol(), argument.schema_name())?;
        }
        Ok(name)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.check_count(&args.args)?;
        let whole = args.return_field.data_type() == &DataType::Int64;
        let scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if scalar { 1 } else { args.number_rows };
        let mut arguments = args.args.into_iter().map(|argument| argument.into_array(rows));
        let mut result: ArrayRef = arguments.next().unwrap_or_else(|| plan_err!("{} takes arguments", self.name()))?;
        for (operator, argument) in self.operators.iter().zip(arguments) {
            result = operator.apply(&result, &argument?, whole)?;
        }
        if scalar && !result.is_empty() {
            return Ok(ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&result, 0)?));
        }
        Ok(ColumnarValue::Array(result))
    }
}

/// Plans the operators of SQL as checked functions.
#[derive(Debug, Default)]
pub(super) struct ArithmeticPlanner;

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
        let is_number = |expr: &Expr| expr.get_type(schema).is_ok_and(|data_type| is_exact_number(&data_type));
        let chain = operators_of(&expr.left).map(<[Operator]>::to_vec);
        if !(chain.is_some() || is_number(&expr.left)) || !is_number(&expr.right) {
            return Ok(PlannerResult::Original(expr));
        }
        let (operators, mut arguments) = match (chain, expr.left) {
            (Some(chain), Expr::ScalarFunction(call)) if operator.is_level_with(chain[0]) => ([chain, vec![operator]].concat(), call.args),
            (_, left) => (vec![operator], vec![left]),
        };
        arguments.push(expr.right);
        Ok(PlannerResult::Planned(function(operators).call(arguments)))
    }
}
