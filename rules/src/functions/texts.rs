//! Functions that make longer texts out of shorter ones, with an end to it: texts that grow at every step would fill
//! the memory with a rule of three lines, and nothing accounts for the memory of an expression.

use std::hash::Hash;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::compute::kernels::length::length;
use arrow::compute::{cast, nullif};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::{DFSchema, Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{ColumnarValue, Expr, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature};
use datafusion::sql::sqlparser::ast::BinaryOperator;

/// Longest text that a function gives.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// How a text grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Growth {
    /// `concat(…)`: nulls are left out.
    Concat,
    /// `concat_ws(separator, …)`.
    ConcatWithSeparator,
    /// `a || b`: null where one of them is.
    Join,
    /// `replace(text, from, to)`.
    Replace,
}

/// A function of texts that refuses to give one of more than [`TEXT_BYTES_MAX`].
#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    growth: Growth,
    inner: Arc<ScalarUDF>,
}

/// `function`, bounded when it makes longer texts.
pub(super) fn bounded(function: Arc<ScalarUDF>) -> Arc<ScalarUDF> {
    let growth = match function.name() {
        "concat" => Growth::Concat,
        "concat_ws" => Growth::ConcatWithSeparator,
        "replace" => Growth::Replace,
        _ => return function,
    };
    Arc::new(ScalarUDF::from(Bounded { growth, inner: function }))
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        match self.growth {
            Growth::Join => "join_texts",
            _ => self.inner.name(),
        }
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn schema_name(&self, arguments: &[Expr]) -> Result<String> {
        let names: Vec<String> = arguments.iter().map(|argument| argument.schema_name().to_string()).collect();
        Ok(match self.growth {
            Growth::Join => names.join(" || "),
            _ => format!("{}({})", self.name(), names.join(",")),
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalar = args.args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let rows = if scalar { 1 } else { args.number_rows };
        let texts: Vec<ArrayRef> =
            args.args.iter().map(|argument| cast(&argument.to_array(rows)?, &DataType::Utf8).map_err(Into::into)).collect::<Result<_>>()?;
        if let Some(bytes) = self.lengths(&texts, rows)?.into_iter().find(|bytes| *bytes > TEXT_BYTES_MAX) {
            let name = if self.growth == Growth::Join { "||" } else { self.name() };
            return exec_err!("`{name}` would give a text of {bytes} bytes; a text has at most {TEXT_BYTES_MAX}");
        }
        let result = self.inner.invoke_with_args(args)?;
        if self.growth != Growth::Join {
            return Ok(result);
        }
        let unknown = (0..rows).map(|row| Some(texts.iter().any(|text| text.is_null(row)))).collect();
        let result = nullif(&result.into_array(rows)?, &unknown)?;
        Ok(if scalar { ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?) } else { ColumnarValue::Array(result) })
    }
}

impl Bounded {
    /// The length of the result in each row, in bytes.
    fn lengths(&self, texts: &[ArrayRef], rows: usize) -> Result<Vec<usize>> {
        if self.growth == Growth::Replace {
            let [text, from, to] = texts else { return plan_err!("replace(text, from, to) takes 3 texts") };
            let (text, from, to) = (text.as_string::<i32>(), from.as_string::<i32>(), to.as_string::<i32>());
            return Ok((0..rows).map(|row| replaced_length(text, from, to, row)).collect());
        }
        let mut total = vec![0_usize; rows];
        for (index, text) in texts.iter().enumerate() {
            let times = if self.growth == Growth::ConcatWithSeparator && index == 0 { texts.len().saturating_sub(2) } else { 1 };
            let lengths = cast(&length(text)?, &DataType::Int64)?;
            for (total, length) in total.iter_mut().zip(lengths.as_primitive::<Int64Type>()) {
                *total = total.saturating_add(usize::try_from(length.unwrap_or(0)).unwrap_or(0).saturating_mul(times));
            }
        }
        Ok(total)
    }
}

fn replaced_length(text: &StringArray, from: &StringArray, to: &StringArray, row: usize) -> usize {
    if text.is_null(row) || from.is_null(row) || to.is_null(row) {
        return 0;
    }
    let (text, from, to) = (text.value(row), from.value(row), to.value(row));
    // Counting is for the few that could be too long.
    let most = text.len().saturating_add((text.len() + 1).saturating_mul(to.len()));
    if most <= TEXT_BYTES_MAX {
        return most;
    }
    let found = text.matches(from).count();
    (text.len() - found * from.len()).saturating_add(found.saturating_mul(to.len()))
}

/// Plans `||` on texts as one bounded call; lists are not joined.
#[derive(Debug)]
pub(super) struct TextPlanner;

impl ExprPlanner for TextPlanner {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        if expr.op != BinaryOperator::StringConcat {
            return Ok(PlannerResult::Original(expr));
        }
        let is_chain = matches!(&expr.left, Expr::ScalarFunction(call) if call.func.name() == "join_texts");
        let left = if is_chain { Ok(DataType::Utf8) } else { expr.left.get_type(schema) };
        let (Ok(left), Ok(right)) = (left, expr.right.get_type(schema)) else {
            return Ok(PlannerResult::Original(expr));
        };
        if left.is_nested() || right.is_nested() {
            return plan_err!("`||` joins texts, not {left} and {right}");
        }
        if !left.is_string() && !right.is_string() {
            return Ok(PlannerResult::Original(expr));
        }
        let mut arguments = match expr.left {
            Expr::ScalarFunction(call) if is_chain => call.args,
            left => vec![left],
        };
        arguments.push(expr.right);
        let join = ScalarUDF::from(Bounded { growth: Growth::Join, inner: datafusion::functions::string::concat() });
        Ok(PlannerResult::Planned(join.call(arguments)))
    }
}
