//! What must be true of a rule before it runs: known tables and functions, exact types, the required columns.

mod currencies;
mod frames;
mod functions;
mod identity;
mod plan;
mod syntax;
mod tables;
mod typed;
mod types;
mod upstream;
mod warnings;

pub(crate) use upstream::check as upstream;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::DataFusionError;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement as PlanStatement;
use ratemill_schemas::{Currency, charges};
use sqlparser::ast::{BinaryOperator, Expr, Query, SelectItem, SetExpr, Statement, Value};

use crate::diagnostics::{Diagnostic, Diagnostics, Place};
use crate::evaluate::stored_type;
use crate::inputs::{Input, Inputs, without_arrival};
use crate::options::OptionPlaces;
use crate::reference::ReferenceData;
use crate::rule::{OutputColumn, Rule, RuleOptions};
use crate::session;
use crate::source::Source;
use crate::tree::{is_null_literal, selects, text_literal};

/// A rule that is being read, and what it can read.
pub(crate) struct Reading<'a> {
    pub(crate) source: &'a Source,
    pub(crate) reference: &'a ReferenceData,
    /// Names of rules, which can be read like tables.
    pub(crate) rules: &'a BTreeSet<String>,
    pub(crate) options: &'a RuleOptions,
    pub(crate) diagnostics: &'a mut Diagnostics,
}

impl Reading<'_> {
    fn error(&mut self, code: &'static str, place: Option<Place>, message: impl Into<String>, help: &str) {
        let diagnostic = self.source.error(code, place, message);
        self.diagnostics.push(if help.is_empty() { diagnostic } else { diagnostic.help(help) });
    }

    /// Warns once of what is there several times.
    fn warn(&mut self, code: &'static str, place: Option<Place>, message: impl Into<String>, help: &str) {
        let message = message.into();
        let is_same = |known: &Diagnostic| known.code == code && known.file == self.source.file && known.message == message;
        if self.diagnostics.0.iter().any(is_same) {
            return;
        }
        self.diagnostics.push(self.source.error(code, place, message).help(help).warning());
    }
}

/// The query as it was written, before anything is planned.
pub(crate) fn query(query: &Query, reading: &mut Reading<'_>) {
    tables::check(query, reading);
    syntax::check(query, reading);
    frames::check(query, reading);
}

/// What the check learns of a rule.
pub(crate) struct Checked {
    pub(crate) output: Vec<OutputColumn>,
    pub(crate) meters: Option<Vec<String>>,
}

/// Plans the query against empty tables and looks at what it would do; `written` is the query before it was rewritten.
pub(crate) async fn output(
    written: &Query,
    query: &Query,
    usage_scans: usize,
    inputs: &Inputs,
    reading: &mut Reading<'_>,
) -> Option<Checked> {
    let context = match empty_session(reading.reference, inputs) {
        Ok(context) => context,
        Err(error) => {
            plan::error(&error, written, None, reading);
            return None;
        }
    };
    let state = context.state();
    let errors = |reading: &Reading<'_>| reading.diagnostics.errors();
    let before = errors(reading);
    types::check(written, &state, reading).await;
    if errors(reading) > before {
        return None;
    }
    let statement = PlanStatement::Statement(Box::new(Statement::Query(Box::new(query.clone()))));
    let plan = match state.statement_to_plan(statement).await {
        Ok(plan) => plan,
        Err(error) => {
            let culprit = types::culprit(written, &state, reading).await;
            // The first mistake: others may only follow from it.
            let first = error.iter().next().unwrap_or(&error);
            plan::error(first, written, culprit, reading);
            return None;
        }
    };
    let analyzed = match state.analyzer().execute_and_check(plan.clone(), state.config_options(), |_, _| {}) {
        Ok(analyzed) => analyzed,
        Err(error) => {
            let culprit = types::culprit(written, &state, reading).await;
            plan::error(&error, written, culprit, reading);
            return None;
        }
    };
    let optimized = match state.optimize(&plan) {
        Ok(optimized) => optimized,
        Err(error) => {
            plan::error(&error, written, None, reading);
            return None;
        }
    };
    // Coercion adds casts and floats of its own; what stands in the text was found before.
    plan::expressions(&analyzed, reading);
    plan::floats(&optimized, reading);
    currencies::check(&plan, written, reading);
    let output: Vec<OutputColumn> = analyzed
        .schema()
        .fields()
        .iter()
        .map(|field| OutputColumn { name: field.name().clone(), data_type: field.data_type().clone() })
        .collect();
    Columns { written, reading }.check(&output);
    identity::check(written, &output, reading);
    if errors(reading) > before {
        return None;
    }
    warnings::check(written, reading);
    // What the planner only finds out when it makes the plan that runs.
    if let Err(error) = state.query_planner().create_physical_plan(&optimized, &state).await {
        plan::error(&error, written, None, reading);
        return None;
    }
    Some(Checked { output, meters: meters(query, usage_scans) })
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
    inputs.register(&context, |input, schema| {
        let schema = if matches!(input, Input::Usage | Input::Opening) { without_arrival(schema) } else { Arc::clone(schema) };
        Ok(Arc::new(MemTable::try_new(schema, vec![vec![]])?))
    })?;
    for table in reference.tables() {
        context.register_table(table.name(), Arc::new(MemTable::try_new(table.schema(), vec![vec![]])?))?;
    }
    Ok(context)
}

/// A rule as it was written.
pub(crate) struct Written {
    pub(crate) source: Source,
    pub(crate) places: OptionPlaces,
    pub(crate) query: Box<Query>,
}

/// What holds between rules: versions of one name do not overlap, and further columns agree in type.
pub(crate) fn across(rules: &[Rule], written: &BTreeMap<String, Written>, diagnostics: &mut Diagnostics) {
    for (index, rule) in rules.iter().enumerate() {
        let Some(own) = written.get(&rule.file) else { continue };
        for other in &rules[..index] {
            if other.name == rule.name {
                versions(rule, other, own, diagnostics);
            }
            for (index, column) in rule.output.iter().enumerate().filter(|(_, column)| !KNOWN.contains(&column.name.as_str())) {
                if let Some(known) = other.further_columns().find(|known| known.name.eq_ignore_ascii_case(&column.name))
                    && (known.name != column.name || stored_type(&known.data_type) != stored_type(&column.data_type))
                {
                    let message = format!(
                        "column `{}` is {} here and {} in {}; the ledger has one type for it",
                        column.name,
                        types::describe(&column.data_type),
                        types::describe(&known.data_type),
                        other.file
                    );
                    let place = item_place(&own.query, index, &own.source);
                    diagnostics.push(own.source.error("column-type", place, message).help("give it another name, or the same type"));
                }
            }
        }
    }
}

fn versions(rule: &Rule, other: &Rule, own: &Written, diagnostics: &mut Diagnostics) {
    let overlap = other.options.effective_from < rule.options.effective_to.unwrap_or(i64::MAX)
        && rule.options.effective_from < other.options.effective_to.unwrap_or(i64::MAX);
    if overlap {
        let message = format!("rule `{}` is also in force by {} at the same time", rule.name, other.file);
        let (earlier, later) = if other.options.effective_from <= rule.options.effective_from {
            (&other.file, own.places.text("effective_from"))
        } else {
            (&rule.file, None)
        };
        let help = match later {
            Some(from) => format!("write effective_to = '{from}' in {earlier}"),
            None => format!("end {earlier} with effective_to"),
        };
        diagnostics.push(own.source.error("versions-overlap", own.places.value("effective_from"), message).help(help));
    }
    if other.options.window != rule.options.window {
        let message = format!("rule `{}` has another window in {}", rule.name, other.file);
        diagnostics.push(own.source.error("versions-window", own.places.value("window"), message).help("give the new one another name"));
    }
}

/// A column of the SELECT with its name.
fn item_place(query: &Query, index: usize, source: &Source) -> Option<Place> {
    match selects(&query.body).first()?.projection.get(index)? {
        SelectItem::UnnamedExpr(expr) => source.of(expr),
        SelectItem::ExprWithAlias { expr, alias } => {
            source.of(expr).zip(source.of_span(alias.span)).map(|(expr, alias)| Source::join(expr, alias))
        }
        _ => None,
    }
}

/// The output of a rule.
struct Columns<'r, 'a> {
    written: &'r Query,
    reading: &'r mut Reading<'a>,
}

/// Columns that the ledger knows; every other one is kept as a further column.
const KNOWN: [&str; 9] = ["customer_id", "contract_id", "item", "currency", "amount", "quantity", "unit", "unit_price", "detail"];

impl Columns<'_, '_> {
    /// The required columns, in types that the ledger can hold.
    fn check(&mut self, output: &[OutputColumn]) {
        self.required(output);
        for (index, column) in output.iter().enumerate() {
            self.column(index, column);
        }
        let arms: Vec<_> = selects(&self.written.body).into_iter().cloned().collect();
        for arm in &arms {
            self.literals(&arm.projection, output);
        }
    }

    fn required(&mut self, output: &[OutputColumn]) {
        let contract = (self.reading.options.window == ratemill_schemas::WindowSpec::BillingPeriod).then_some("contract_id");
        let required: Vec<&str> = ["customer_id", "item", "amount", "currency"].into_iter().chain(contract).collect();
        for name in &required {
            if output.iter().any(|column| column.name == *name) {
                continue;
            }
            let others = output.iter().map(|column| column.name.as_str()).filter(|other| !KNOWN.contains(other));
            let near = ratemill_schemas::nearest::nearest(name, others);
            let select =
                self.reading.source.words(None, &["AS", "SELECT"]).and_then(|place| self.reading.source.words(Some(place), &["SELECT"]));
            let place = match near.and_then(|near| output.iter().position(|column| column.name == near)) {
                Some(index) => self.place(index),
                None => select.or_else(|| self.reading.source.words(None, &["SELECT"])),
            };
            let hint = near.map_or_else(String::new, |near| format!("; `{near}` is near"));
            let help = if *name == "contract_id" {
                "every rule with window = 'billing_period' returns contract_id"
            } else {
                "every rule returns customer_id, item, amount and currency"
            };
            self.reading.error("column-missing", place, format!("the rule has no column `{name}`{hint}"), help);
        }
    }

    fn column(&mut self, index: usize, column: &OutputColumn) {
        let place = self.place(index);
        let OutputColumn { name, data_type } = column;
        let shown = types::describe(data_type);
        let text = data_type.is_string() || data_type.is_null();
        let number = data_type.is_null() || (data_type.is_numeric() && !data_type.is_floating());
        let reserved = charges::reserved();
        match name.as_str() {
            // A list, such as the steps through the tiers, becomes JSON.
            "detail" if matches!(data_type, DataType::List(_)) => {}
            "customer_id" | "contract_id" | "item" | "currency" | "unit" | "detail" if !text => {
                self.reading.error("column-type", place, format!("`{name}` is {shown}; it must be a text"), "write CAST(… AS VARCHAR)");
            }
            "amount" | "quantity" | "unit_price" if !number => {
                let help = match data_type {
                    DataType::List(_) => "write graduated(quantity, p.tiers); a list can be returned as detail",
                    other if other.is_string() => "write the number without quotes, or parse_decimal(text)",
                    _ => "write a number",
                };
                self.reading.error("column-type", place, format!("`{name}` is {shown}; it must be an exact number"), help);
            }
            name if !KNOWN.contains(&name) && reserved.iter().any(|known| known.eq_ignore_ascii_case(name)) => {
                let help = "call it something else";
                self.reading.error("column-reserved", place, format!("`{name}` is a column that Ratemill fills in"), help);
            }
            name if !KNOWN.contains(&name) && !can_be_stored(data_type) => {
                let help = "a further column is a text, number, true or false, date or instant; a list goes to detail";
                self.reading.error("column-type", place, format!("further column `{name}` is {shown}"), help);
            }
            _ => {}
        }
    }

    /// Literals among the required columns, which are the same in every charge.
    fn literals(&mut self, projection: &[SelectItem], output: &[OutputColumn]) {
        for (item, column) in projection.iter().zip(output) {
            let (SelectItem::ExprWithAlias { expr, .. } | SelectItem::UnnamedExpr(expr)) = item else { continue };
            let place = self.reading.source.of(expr);
            let name = column.name.as_str();
            if !["customer_id", "item", "amount", "currency"].contains(&name) {
                continue;
            }
            if is_null_literal(expr) {
                self.reading.error(
                    "column-null",
                    place,
                    format!("`{name}` is always null"),
                    "every charge has customer_id, item, amount and currency",
                );
            }
            match text_literal(expr) {
                Some("") => self.reading.error("column-empty", place, format!("`{name}` is empty"), "write what it is"),
                Some(text) if name == "currency" && text.parse::<Currency>().is_err() => {
                    let upper = text.to_uppercase();
                    let help = if upper.parse::<Currency>().is_ok() {
                        format!("write '{upper}'")
                    } else {
                        "a currency is three capital letters, such as 'GBP'".to_owned()
                    };
                    self.reading.error("currency", place, format!("`{text}` is no currency of ISO 4217"), &help);
                }
                _ => {}
            }
        }
    }

    fn place(&self, index: usize) -> Option<Place> {
        let select = *selects(&self.written.body).first()?;
        match select.projection.get(index)? {
            SelectItem::ExprWithAlias { expr, alias } if KNOWN.contains(&alias.value.as_str()) => self.reading.source.of(expr),
            _ => item_place(self.written, index, self.reading.source),
        }
    }
}

fn can_be_stored(data_type: &DataType) -> bool {
    data_type.is_string()
        || data_type.is_integer()
        || data_type.is_null()
        || matches!(data_type, DataType::Boolean | DataType::Date32 | DataType::Timestamp(..) | DataType::Decimal128(..))
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
