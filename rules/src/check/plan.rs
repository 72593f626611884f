//! What the planner finds, in words of rules.

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, SchemaError};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr as PlanExpr, ExprSchemable, LogicalPlan, Volatility};
use ratemill_schemas::nearest::did_you_mean;
use sqlparser::ast::{Expr, Query};

use super::Reading;
use crate::diagnostics::Place;
use crate::tree::{column_name, relations, selects, table_and_alias};

/// Says what is wrong with a plan; `culprit` is the innermost expression that cannot be planned by itself.
pub(super) fn error(error: &DataFusionError, written: &Query, culprit: Option<(Expr, String)>, reading: &mut Reading<'_>) {
    let root = error.find_root();
    if let DataFusionError::SchemaError(schema, _) = root {
        match schema.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let names: Vec<String> = valid_fields.iter().map(|column| column.flat_name()).collect();
                return unknown_column(&field.flat_name(), &names, span(error), written, reading);
            }
            SchemaError::AmbiguousReference { field } => {
                let place = span(error).or_else(|| culprit.as_ref().and_then(|(expr, _)| reading.source.of(expr)));
                let message = format!("several tables have a column `{}`", field.name());
                return reading.error("column-ambiguous", place, message, &format!("write which: u.{} or c.{0}", field.name()));
            }
            SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
                return reading.error("column-twice", None, format!("`{name}` is there twice"), "give one of them another name");
            }
        }
    }
    let (message, notes) = match error.diagnostic() {
        Some(found) => {
            let notes: Vec<String> = found.helps.iter().map(|help| help.message.clone()).collect();
            (found.message.clone(), notes.join("; "))
        }
        None => (root.strip_backtrace(), String::new()),
    };
    let place = span(error).or_else(|| culprit.as_ref().and_then(|(expr, _)| reading.source.of(expr)));
    let message = cleaned(&message);
    let (code, message, help) = classified(message, notes, culprit.as_ref().map(|(expr, _)| expr));
    let place = if code == "subquery" { first_subquery(written).and_then(|expr| reading.source.of(&expr)).or(place) } else { place };
    reading.error(code, place, message, &help);
}

/// The first subquery that stands for a value.
fn first_subquery(written: &Query) -> Option<Expr> {
    let mut found = None;
    let _: std::ops::ControlFlow<()> = sqlparser::ast::visit_expressions(written, |expr| {
        if matches!(expr, Expr::Subquery(_)) {
            found = Some(expr.clone());
            return std::ops::ControlFlow::Break(());
        }
        std::ops::ControlFlow::Continue(())
    });
    found
}

fn span(error: &DataFusionError) -> Option<Place> {
    let span = error.diagnostic()?.span?;
    Some(Place {
        line: span.start.line,
        column: span.start.column,
        end_line: span.end.line,
        end_column: span.end.column.max(span.start.column + 1),
    })
}

/// The planner's text without its own names for errors.
fn cleaned(message: &str) -> String {
    let mut text = message;
    for prefix in [
        "Error during planning: ",
        "Execution error: ",
        "Schema error: ",
        "Arrow error: ",
        "Cast error: ",
        "SQL error: ",
        "This feature is not implemented: ",
    ] {
        if let Some(index) = text.rfind(prefix) {
            text = &text[index + prefix.len()..];
        }
    }
    let text = text.split(". No function matches").next().unwrap_or(text);
    let text = text.split("\nBacktrace").next().unwrap_or(text);
    let text = text.split(" This issue was likely caused by").next().unwrap_or(text).trim();
    text.replace("Decimal128(38, 18)", "number").replace("Utf8", "text").replace("DataFusion", "the planner")
}

/// Code and words for what the planner says.
fn classified(message: String, notes: String, culprit: Option<&Expr>) -> (&'static str, String, String) {
    let shown = culprit.map_or_else(String::new, |expr| format!("`{expr}`"));
    let has = |part: &str| message.contains(part);
    if has("must appear in the GROUP BY") || has("must appear in GROUP BY") || has("could not be resolved from available columns") {
        let column = message.split('"').nth(1).or_else(|| message.split('\'').nth(1)).unwrap_or("a column").to_owned();
        let help = format!("write sum({column}) or max({column}), or add it to GROUP BY");
        return ("not-grouped", format!("`{column}` is neither grouped by nor summed"), help);
    }
    if has("Aggregate function calls cannot be nested") || has("aggregate function") || has("Window function") || has("window function") {
        return ("aggregate-place", message, "compute it in a subquery; a condition on a sum stands in HAVING".to_owned());
    }
    if has("UNION queries have") || has("UNION types") {
        return ("union", message, "both sides of UNION return the same columns in the same order".to_owned());
    }
    if has("Too many columns")
        || has("scalar subquery")
        || has("Scalar subquery")
        || has("ScalarSubquery")
        || has("should only return one column")
        || has("single column")
    {
        return (
            "subquery",
            "a subquery in an expression returns one column and one row".to_owned(),
            "take one column, and max(…), sum(…) or a condition on the whole key".to_owned(),
        );
    }
    if has("exchange_rates") {
        let help = "add reference/exchange_rates.csv with from_currency, to_currency, rate, valid_from and valid_to";
        return ("exchange-rates", message, help.to_owned());
    }
    if has("Invalid function") || has("There is no UDAF") || has("Unable to find expected") {
        return ("function-unknown", message, "FUNCTIONS.md lists the functions of rules".to_owned());
    }
    if has("Cannot cast string") || has("Error parsing") {
        return ("date-invalid", message, "a date is written 2026-06-30".to_owned());
    }
    if has("Unsupported SQL type") || has("Unsupported custom") {
        return ("type-unknown", message, "types are DECIMAL(38, 18), BIGINT, VARCHAR, BOOLEAN, DATE and TIMESTAMP".to_owned());
    }
    if has("incompatible types") || has("exact numbers") || has("Cannot coerce") || has("common") {
        let message = if shown.is_empty() { message } else { format!("{shown}: {message}") };
        return ("operand-type", message, "a text becomes a number by parse_decimal(text)".to_owned());
    }
    if has("Division by zero") || has("division by zero") {
        return ("division-by-zero", message, "nullif(x, 0) as a divisor gives null where x is 0".to_owned());
    }
    ("plan", message, notes)
}

fn unknown_column(field: &str, valid: &[String], place: Option<Place>, written: &Query, reading: &mut Reading<'_>) {
    let (table, column) = field.rsplit_once('.').map_or(("", field), |(table, column)| (table, column));
    let found = find_column(written, table, column);
    let place = found.as_ref().and_then(|expr| reading.source.of(expr)).or(place);
    let quoted = found.as_ref().and_then(column_name).is_some_and(|ident| ident.quote_style.is_some());
    let of_table: Vec<&str> = valid
        .iter()
        .filter_map(|name| name.rsplit_once('.'))
        .filter(|(known, _)| table.is_empty() || *known == table)
        .map(|(_, column)| column)
        .collect();
    let is_usage = selects(&written.body).iter().any(|select| {
        relations(select).filter_map(table_and_alias).any(|(name, alias)| name == "usage" && alias.value.eq_ignore_ascii_case(table))
    });
    let near = did_you_mean(&column.to_lowercase(), of_table.iter().copied());
    if crate::inputs::ARRIVAL.contains(&column) {
        let message = format!("`{column}` says when usage arrived, and a charge must not depend on it");
        return reading.error("lineage-column", place, message, "use time: when it happened");
    }
    let (message, help) = if table.is_empty() {
        let help = if quoted && near.is_empty() { format!("a text is written in single quotes: '{column}'") } else { String::new() };
        (format!("there is no column `{column}`{near}"), help)
    } else if of_table.is_empty() {
        let mut tables: Vec<&str> = valid.iter().filter_map(|name| name.rsplit_once('.')).map(|(table, _)| table).collect();
        tables.dedup();
        (format!("there is no table or alias `{table}` here"), format!("columns are of {}", tables.join(", ")))
    } else {
        let help = if matches!(column, "unit_price" | "up_to" | "flat_fee") && of_table.contains(&"tiers") {
            format!("up_to, unit_price and flat_fee are one column here: {table}.tiers")
        } else if matches!(column, "timestamp" | "date" | "ts" | "occurred_at") && of_table.contains(&"quantity") {
            format!("write {table}.time")
        } else if is_usage && near.is_empty() {
            format!("declare it under [dimensions] of ratemill.toml, or read {table}.attributes['{column}']")
        } else {
            format!("its columns are {}", of_table.join(", "))
        };
        (format!("`{table}` has no column `{column}`{near}"), help)
    };
    reading.error("column-unknown", place, message, &help);
}

/// Where a column is first named.
fn find_column(written: &Query, table: &str, column: &str) -> Option<Expr> {
    let mut found = None;
    let _: std::ops::ControlFlow<()> = sqlparser::ast::visit_expressions(written, |expr| {
        let named = match expr {
            Expr::Identifier(ident) => (table.is_empty() || table == ident.value) && ident.value.eq_ignore_ascii_case(column),
            Expr::CompoundIdentifier(parts) => {
                let same = parts.last().is_some_and(|ident| ident.value.eq_ignore_ascii_case(column));
                same && (table.is_empty() || parts.first().is_some_and(|ident| ident.value.eq_ignore_ascii_case(table)))
            }
            _ => false,
        };
        if named {
            found = Some(expr.clone());
            return std::ops::ControlFlow::Break(());
        }
        std::ops::ControlFlow::Continue(())
    });
    found
}

/// Determinism, and casts that lose digits: those that the planner adds.
pub(super) fn expressions(plan: &LogicalPlan, reading: &mut Reading<'_>) {
    let mut problem: Option<(&'static str, String, &'static str)> = None;
    let walked = plan.apply_with_subqueries(|node| {
        let schema = merge_schema(&node.inputs());
        node.apply_expressions(|root| {
            root.apply(|expr| {
                match expr {
                    PlanExpr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                        let message = format!("`{}` does not depend on its arguments alone", call.func.name());
                        problem = Some(("volatile", message, "use window_start and window_end of billing_window"));
                    }
                    PlanExpr::Cast(cast) => {
                        let from = cast.expr.get_type(&schema).unwrap_or(DataType::Null);
                        if let Some(message) = lossy(&from, cast.field.data_type()) {
                            problem = Some(("lossy-cast", message, "use parse_decimal(text) or round(number, places)"));
                        }
                    }
                    PlanExpr::TryCast(_) => {
                        problem = Some(("lossy-cast", "TRY_CAST turns what does not fit into null".to_owned(), "use CAST"))
                    }
                    _ => {}
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    if let Err(error) = walked {
        reading.error("plan", None, cleaned(&error.strip_backtrace()), "");
    }
    if let Some((code, message, help)) = problem {
        reading.error(code, None, message, help);
    }
}

/// No float anywhere in the plan that runs: a float that touches money loses digits.
pub(super) fn floats(plan: &LogicalPlan, reading: &mut Reading<'_>) {
    let mut culprit = None;
    let walked = plan.apply_with_subqueries(|node| {
        let schema = merge_schema(&node.inputs());
        node.apply_expressions(|root| {
            root.apply(|expr| {
                if culprit.is_none() && expr.get_type(&schema).is_ok_and(|data_type| has_float(&data_type)) {
                    culprit = Some(expr.schema_name().to_string());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    if let Err(error) = walked {
        reading.error("plan", None, cleaned(&error.strip_backtrace()), "");
    }
    if let Some(name) = culprit {
        let message = format!("`{name}` is a floating-point number, which cannot hold money exactly");
        reading.error("float", None, message, "use DECIMAL(38, 18); an average is sum(x) / count(x)");
    }
}

pub(super) fn lossy(from: &DataType, to: &DataType) -> Option<String> {
    match (from, to) {
        (from, DataType::Decimal128(..) | DataType::Decimal256(..)) if from.is_string() => {
            Some("a cast of a text to DECIMAL drops digits that do not fit".to_owned())
        }
        (DataType::Decimal128(_, from), DataType::Decimal128(_, to)) if to < from => {
            Some(format!("a cast from {from} to {to} places rounds without a word"))
        }
        (_, DataType::Decimal256(..)) => Some("DECIMAL has at most 38 digits".to_owned()),
        (DataType::Decimal128(..), to) if to.is_integer() => Some("a cast of a decimal to a whole number drops its fraction".to_owned()),
        _ => None,
    }
}

pub(super) fn has_float(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) | DataType::Map(field, _) => {
            has_float(field.data_type())
        }
        DataType::Struct(fields) => fields.iter().any(|field| has_float(field.data_type())),
        DataType::Dictionary(_, value) => has_float(value),
        other => other.is_floating(),
    }
}
