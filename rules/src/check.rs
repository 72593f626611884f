//! What must be true of a rule before it runs: known tables and functions, exact types, the required columns.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, SchemaError};
use datafusion::datasource::MemTable;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr as PlanExpr, ExprSchemable, LogicalPlan, Volatility};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement as PlanStatement;
use ratemill_schemas::charges;
use sqlparser::ast::{BinaryOperator, Expr, Query, SelectItem, SetExpr, Spanned, Statement, Value, visit_expressions};

use crate::diagnostics::{Diagnostic, Diagnostics, Place};
use crate::inputs::Inputs;
use crate::reference::ReferenceData;
use crate::rule::{OutputColumn, Rule};
use crate::session;

/// What the check learns of a rule.
pub(crate) struct Checked {
    pub(crate) output: Vec<OutputColumn>,
    pub(crate) meters: Option<Vec<String>>,
}

/// Plans the query against empty tables and looks at what it would do.
pub(crate) async fn output(
    query: &Query,
    usage_scans: usize,
    reference: &ReferenceData,
    inputs: &Inputs,
    file: &str,
    text: &str,
    diagnostics: &mut Diagnostics,
) -> Option<Checked> {
    let mut checker = Checker { file, text, diagnostics, query };
    let context = match empty_session(reference, inputs) {
        Ok(context) => context,
        Err(error) => {
            checker.plan_error(&error);
            return None;
        }
    };
    let statement = PlanStatement::Statement(Box::new(Statement::Query(Box::new(query.clone()))));
    let plan = match context.state().statement_to_plan(statement).await {
        Ok(plan) => plan,
        Err(error) => {
            error.iter().for_each(|error| checker.plan_error(error));
            return None;
        }
    };
    let before = checker.diagnostics.0.len();
    checker.expressions(&plan);
    // Coercion adds casts of its own.
    let state = context.state();
    if let Ok(analyzed) = state.analyzer().execute_and_check(plan.clone(), state.config_options(), |_, _| {}) {
        checker.casts(&analyzed);
    }
    match context.state().optimize(&plan) {
        Ok(optimized) => checker.floats(&optimized),
        Err(error) => checker.plan_error(&error),
    }
    let output: Vec<OutputColumn> = plan
        .schema()
        .fields()
        .iter()
        .map(|field| OutputColumn { name: field.name().clone(), data_type: field.data_type().clone() })
        .collect();
    checker.columns(&output);
    (checker.diagnostics.0.len() == before).then(|| Checked { output, meters: meters(query, usage_scans) })
}

/// The output columns of a query, where it can be planned.
pub(crate) async fn output_columns(query: &Query, reference: &ReferenceData, inputs: &Inputs) -> Option<Vec<OutputColumn>> {
    let context = empty_session(reference, inputs).ok()?;
    let statement = PlanStatement::Statement(Box::new(Statement::Query(Box::new(query.clone()))));
    let plan = context.state().statement_to_plan(statement).await.ok()?;
    let column = |field: &arrow::datatypes::FieldRef| OutputColumn { name: field.name().clone(), data_type: field.data_type().clone() };
    Some(plan.schema().fields().iter().map(column).collect())
}

/// A session in which every table is there and empty.
pub(crate) fn empty_session(reference: &ReferenceData, inputs: &Inputs) -> Result<SessionContext, DataFusionError> {
    let limits = session::SessionLimits { partitions: 1, ..session::SessionLimits::default() };
    let context = session::session(session::runtime(&limits)?, &limits);
    crate::functions::register_reference_functions(&context, reference)?;
    inputs.register(&context, |_, schema| Ok(Arc::new(MemTable::try_new(Arc::clone(schema), vec![vec![]])?)))?;
    for table in reference.tables() {
        context.register_table(table.name(), Arc::new(MemTable::try_new(table.schema(), vec![vec![]])?))?;
    }
    Ok(context)
}

/// What holds between rules: versions of one name do not overlap, and further columns agree in type.
pub(crate) fn across(rules: &[Rule], diagnostics: &mut Diagnostics) {
    for (index, rule) in rules.iter().enumerate() {
        for other in &rules[..index] {
            let error = |code, message| Diagnostic::error(code, &rule.file, &rule.text, None, message);
            if other.name == rule.name {
                let overlap = other.options.effective_from < rule.options.effective_to.unwrap_or(i64::MAX)
                    && rule.options.effective_from < other.options.effective_to.unwrap_or(i64::MAX);
                if overlap {
                    let message = format!("rule `{}` is also in force by {} at the same time", rule.name, other.file);
                    diagnostics.push(error("versions-overlap", message).help("end the older version with effective_to"));
                }
                if other.options.window != rule.options.window {
                    diagnostics.push(error(
                        "versions-window",
                        format!("rule `{}` has another window in {}; give the new one another name", rule.name, other.file),
                    ));
                }
            }
            for column in rule.further_columns() {
                if let Some(known) = other.further_columns().find(|known| known.name.eq_ignore_ascii_case(&column.name))
                    && (known.name != column.name
                        || crate::evaluate::stored_type(&known.data_type) != crate::evaluate::stored_type(&column.data_type))
                {
                    let message = format!(
                        "column `{}` has type {} here and {} in {}; the ledger has one type for it",
                        column.name, column.data_type, known.data_type, other.file
                    );
                    diagnostics.push(error("column-type", message));
                }
            }
        }
    }
}

struct Checker<'a> {
    file: &'a str,
    text: &'a str,
    diagnostics: &'a mut Diagnostics,
    query: &'a Query,
}

impl Checker<'_> {
    fn push(&mut self, code: &'static str, place: Option<Place>, message: impl Into<String>, help: &str) {
        let diagnostic = Diagnostic::error(code, self.file, self.text, place, message);
        self.diagnostics.push(if help.is_empty() { diagnostic } else { diagnostic.help(help) });
    }

    fn plan_error(&mut self, error: &DataFusionError) {
        if let Some(found) = error.diagnostic() {
            let place = found.span.map(|span| Place {
                line: span.start.line,
                column: span.start.column,
                end_line: span.end.line,
                end_column: span.end.column.max(span.start.column + 1),
            });
            let help: Vec<&str> =
                found.notes.iter().map(|note| note.message.as_str()).chain(found.helps.iter().map(|help| help.message.as_str())).collect();
            self.push("plan", place, found.message.clone(), &help.join("; "));
            return;
        }
        let root = error.find_root();
        if let DataFusionError::SchemaError(error, _) = root
            && let SchemaError::FieldNotFound { field, valid_fields } = error.as_ref()
        {
            let hint = ratemill_schemas::nearest::did_you_mean(field.name(), valid_fields.iter().map(datafusion::common::Column::name));
            let place = self.find_word(field.name());
            self.push("plan", place, format!("column `{}` not found{hint}", field.name()), "");
            return;
        }
        let message = root.strip_backtrace();
        // Errors about a function's arguments name the function: point at its first use.
        let place = message.split(|c: char| !(c.is_alphanumeric() || c == '_')).find_map(|word| self.find_call(word));
        self.push("plan", place, message, "");
    }

    /// Where an identifier first stands as a word of its own.
    fn find_word(&self, word: &str) -> Option<Place> {
        let mut found = None;
        let _: ControlFlow<()> = visit_expressions(self.query, |expr| {
            let named = match expr {
                Expr::Identifier(ident) => ident.value.eq_ignore_ascii_case(word),
                Expr::CompoundIdentifier(parts) => parts.last().is_some_and(|ident| ident.value.eq_ignore_ascii_case(word)),
                _ => false,
            };
            if named {
                found = Place::of(expr.span());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        found
    }

    fn find_call(&self, name: &str) -> Option<Place> {
        let mut found = None;
        let _: ControlFlow<()> = visit_expressions(self.query, |expr| {
            if let Expr::Function(function) = expr
                && function.name.to_string().eq_ignore_ascii_case(name)
            {
                found = Place::of(expr.span());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        found
    }

    /// Determinism and casts that lose digits, on the plan as written.
    fn expressions(&mut self, plan: &LogicalPlan) {
        let mut problems: Vec<(&'static str, String, &'static str, Option<String>)> = Vec::new();
        let walked = plan.apply_with_subqueries(|node| {
            let inputs = node.inputs();
            let schema = merge_schema(&inputs);
            node.apply_expressions(|root| {
                root.apply(|expr| {
                    match expr {
                        PlanExpr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                            let name = call.func.name().to_owned();
                            problems.push((
                                "volatile",
                                format!("`{name}` does not depend on its arguments alone"),
                                "use window_start and window_end of billing_window",
                                Some(name),
                            ));
                        }
                        PlanExpr::Cast(cast) => {
                            let from = cast.expr.get_type(&schema).unwrap_or(DataType::Null);
                            if let Some(message) = lossy(&from, cast.field.data_type()) {
                                problems.push(("lossy-cast", message, "use parse_decimal(text) or round(number, places)", None));
                            }
                        }
                        PlanExpr::TryCast(_) => problems.push((
                            "lossy-cast",
                            "TRY_CAST turns what does not fit into null".to_owned(),
                            "use CAST, parse_decimal(text) or round(number, places)",
                            None,
                        )),
                        _ => {}
                    }
                    Ok(TreeNodeRecursion::Continue)
                })
            })
        });
        if let Err(error) = walked {
            self.plan_error(&error);
        }
        for (code, message, help, function) in problems {
            let place = match function {
                Some(name) => self.find_call(&name),
                None => self.find_cast(),
            };
            self.push(code, place, message, help);
        }
    }

    /// Casts that the planner adds for comparisons and arguments.
    fn casts(&mut self, plan: &LogicalPlan) {
        let mut found = None;
        let walked = plan.apply_with_subqueries(|node| {
            let schema = merge_schema(&node.inputs());
            node.apply_expressions(|root| {
                root.apply(|expr| {
                    if let PlanExpr::Cast(cast) = expr
                        && found.is_none()
                    {
                        let from = cast.expr.get_type(&schema).unwrap_or(DataType::Null);
                        found = lossy(&from, cast.field.data_type());
                    }
                    Ok(TreeNodeRecursion::Continue)
                })
            })
        });
        if let Err(error) = walked {
            self.plan_error(&error);
        }
        if let Some(message) = found
            && !self.diagnostics.0.iter().any(|known| known.code == "lossy-cast" && known.file == self.file)
        {
            self.push("lossy-cast", self.find_cast(), message, "use parse_decimal(text) or round(number, places)");
        }
    }

    fn find_cast(&self) -> Option<Place> {
        let mut found = None;
        let _: ControlFlow<()> = visit_expressions(self.query, |expr| {
            if matches!(expr, Expr::Cast { .. }) {
                found = Place::of(expr.span());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        found
    }

    /// No float anywhere in the plan that runs: a float that touches money loses digits.
    fn floats(&mut self, plan: &LogicalPlan) {
        let mut culprit = None;
        let walked = plan.apply_with_subqueries(|node| {
            let schema = merge_schema(&node.inputs());
            node.apply_expressions(|root| {
                root.apply(|expr| {
                    if culprit.is_none() && expr.get_type(&schema).is_ok_and(|data_type| has_float(&data_type)) {
                        culprit = Some(expr.clone());
                    }
                    Ok(TreeNodeRecursion::Continue)
                })
            })
        });
        if let Err(error) = walked {
            self.plan_error(&error);
        }
        if let Some(expr) = culprit {
            let message = format!("`{}` is a floating-point number, which cannot hold money exactly", expr.schema_name());
            let place = match &expr {
                PlanExpr::ScalarFunction(call) => self.find_call(call.func.name()),
                PlanExpr::AggregateFunction(call) => self.find_call(call.func.name()),
                PlanExpr::Cast(_) => self.find_cast(),
                _ => None,
            };
            self.push("float", place, message, "use DECIMAL(38, 18); an average is sum(x) / count(x)");
        }
    }

    /// The required columns, in types that the ledger can hold.
    fn columns(&mut self, output: &[OutputColumn]) {
        let query_place = Place::of(self.query.span());
        for required in ["customer_id", "item", "amount", "currency"] {
            if !output.iter().any(|column| column.name == required) {
                let hint = ratemill_schemas::nearest::did_you_mean(required, output.iter().map(|column| column.name.as_str()));
                let message = format!("the rule has no column `{required}`{hint}");
                self.push(
                    "column-missing",
                    query_place.map(|place| Place::at(place.line, place.column)),
                    message,
                    "every rule returns customer_id, item, amount and currency",
                );
            }
        }
        let reserved = charges::reserved();
        let own = ["customer_id", "contract_id", "item", "currency", "amount", "quantity", "unit", "unit_price", "detail"];
        for (index, column) in output.iter().enumerate() {
            let place = self.output_place(index);
            let data_type = &column.data_type;
            let text = data_type.is_string() || data_type.is_null();
            let number = data_type.is_null() || (data_type.is_numeric() && !data_type.is_floating());
            match column.name.as_str() {
                // A list, such as the steps through the tiers, becomes JSON.
                "detail" if matches!(data_type, DataType::List(_)) => {}
                "customer_id" | "contract_id" | "item" | "currency" | "unit" | "detail" if !text => {
                    self.push("column-type", place, format!("`{}` is {data_type}; it must be a text", column.name), "");
                }
                "amount" | "quantity" | "unit_price" if has_float(data_type) => {
                    self.push(
                        "float",
                        place,
                        format!("`{}` is a floating-point number, which cannot hold money exactly", column.name),
                        "use DECIMAL(38, 18)",
                    );
                }
                "amount" | "quantity" | "unit_price" if !number => {
                    self.push("column-type", place, format!("`{}` is {data_type}; it must be an exact number", column.name), "");
                }
                name if !own.contains(&name) && reserved.iter().any(|known| known.eq_ignore_ascii_case(name)) => {
                    self.push("column-reserved", place, format!("`{name}` is a column that Ratemill fills in; call it something else"), "");
                }
                name if !own.contains(&name) && !can_be_stored(data_type) => {
                    self.push(
                        "column-type",
                        place,
                        format!("further column `{name}` is {data_type}; it can be a text, number, boolean, date or instant"),
                        "",
                    );
                }
                _ => {}
            }
            if output[..index].iter().any(|other| other.name.eq_ignore_ascii_case(&column.name)) {
                self.push("column-twice", place, format!("`{}` is returned twice", column.name), "");
            }
        }
    }

    fn output_place(&self, index: usize) -> Option<Place> {
        let SetExpr::Select(select) = self.query.body.as_ref() else { return None };
        match select.projection.get(index) {
            Some(SelectItem::UnnamedExpr(expr)) => Place::of(expr.span()),
            Some(SelectItem::ExprWithAlias { expr, .. }) => Place::of(expr.span()),
            _ => None,
        }
    }
}

fn can_be_stored(data_type: &DataType) -> bool {
    data_type.is_string()
        || data_type.is_integer()
        || data_type.is_null()
        || matches!(data_type, DataType::Boolean | DataType::Date32 | DataType::Timestamp(..) | DataType::Decimal128(..))
}

fn lossy(from: &DataType, to: &DataType) -> Option<String> {
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

fn has_float(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) | DataType::Map(field, _) => {
            has_float(field.data_type())
        }
        DataType::Struct(fields) => fields.iter().any(|field| has_float(field.data_type())),
        DataType::Dictionary(_, value) => has_float(value),
        other => other.is_floating(),
    }
}

/// The meters that the WHERE clause asks for, when every row must have one of them.
fn meters(query: &Query, usage_scans: usize) -> Option<Vec<String>> {
    let SetExpr::Select(select) = query.body.as_ref() else { return None };
    // Another scan of usage (a subquery, a second FROM item) could ask for other meters.
    if usage_scans != 1 {
        return None;
    }
    let usage = select.from.iter().find_map(|item| match &item.relation {
        sqlparser::ast::TableFactor::Table { name, alias, .. } if name.to_string().trim_matches('"') == "usage" => {
            Some(alias.as_ref().map_or_else(|| "usage".to_owned(), |alias| alias.name.value.clone()))
        }
        _ => None,
    })?;
    meters_of(select.selection.as_ref()?, &usage)
}

fn meters_of(expr: &Expr, usage: &str) -> Option<Vec<String>> {
    let is_meter = |expr: &Expr| match expr {
        Expr::CompoundIdentifier(parts) => {
            matches!(parts.as_slice(), [table, column] if table.value.eq_ignore_ascii_case(usage) && column.value.eq_ignore_ascii_case("meter"))
        }
        _ => false,
    };
    let text = |expr: &Expr| match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Some(text.clone()),
            _ => None,
        },
        _ => None,
    };
    match expr {
        Expr::Nested(inner) => meters_of(inner, usage),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => meters_of(left, usage).or_else(|| meters_of(right, usage)),
        Expr::BinaryOp { left, op: BinaryOperator::Eq, right } if is_meter(left) => text(right).map(|meter| vec![meter]),
        Expr::BinaryOp { left, op: BinaryOperator::Eq, right } if is_meter(right) => text(left).map(|meter| vec![meter]),
        Expr::InList { expr, list, negated: false } if is_meter(expr) => list.iter().map(text).collect(),
        _ => None,
    }
}
