//! What a rule does, said without running it: its windows and inputs, whether all windows are evaluated together, where
//! each column comes from, and the plan.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{Column, DataFusionError};
use datafusion::datasource::MemTable;
use datafusion::logical_expr::utils::grouping_set_to_exprlist;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::sql::parser::Statement as PlanStatement;
use ratemill_schemas::decimal::DECIMAL;
use ratemill_schemas::time::format_instant;
use ratemill_schemas::{UsageSchema, WindowSpec};
use serde::Serialize;
use sqlparser::ast::Statement;

use crate::check::empty_session;
use crate::evaluate::{CHARGE_COLUMNS, Evaluator, is_identity, lifted_plan, stored_type};
use crate::fold::Fold;
use crate::inputs::Input;
use crate::lift::NotLifted;
use crate::project::RuleProject;
use crate::rule::{Reach, Rule};
use crate::session::{SessionLimits, runtime};

/// A rule, explained.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The rule.
    pub rule: String,
    /// Its version.
    pub version: String,
    /// Its file.
    pub file: String,
    /// Its windows, in words.
    pub windows: String,
    /// From when to when it rates, in words.
    pub effective: String,
    /// What it reads, in words.
    pub inputs: Vec<String>,
    /// Whether one execution covers many windows.
    pub lifted: bool,
    /// Why not, where it is not lifted.
    pub lifted_because: Option<String>,
    /// Whether open windows are kept as partial aggregates.
    pub incremental: bool,
    /// Why not; or what they keep that grows with usage.
    pub incremental_because: Option<String>,
    /// Which windows an event can change.
    pub reach: String,
    /// The output.
    pub columns: Vec<ColumnOrigin>,
    /// The logical plan: for all windows where the rule is lifted, else for one.
    pub plan: String,
}

/// An output column and where it comes from.
#[derive(Debug, Serialize)]
pub struct ColumnOrigin {
    /// Its name.
    pub name: String,
    /// Its type in the ledger.
    pub data_type: String,
    /// Whether it tells charges of one window apart.
    pub identity: bool,
    /// The columns of tables that it is made of; none for a constant.
    pub from: Vec<String>,
}

/// Explains a rule of a project.
///
/// # Errors
/// What planning says.
pub async fn explain(project: &Arc<RuleProject>, rule: &Rule) -> Result<Explanation, DataFusionError> {
    let context = empty_session(&project.reference, &rule.inputs)?;
    let statement = PlanStatement::Statement(Box::new(Statement::Query(rule.query.clone())));
    let written = context.state().statement_to_plan(statement).await?;
    let (lifted_because, plan) = if rule.reads_itself() {
        (Some("it reads its own earlier charges, so that windows follow each other".to_owned()), None)
    } else {
        match lifted_plan(&evaluator(project, &project.usage)?, rule).await {
            Ok(plan) => (None, Some(plan)),
            Err(NotLifted::Shape(shape)) => (Some(shape), None),
            Err(NotLifted::Error(error)) => return Err(error),
        }
    };
    let limits = SessionLimits::default();
    let (incremental, incremental_because) = match Fold::of(runtime(&limits)?, limits, Arc::clone(project), rule).await {
        Ok(fold) => (true, Some(fold.keeps()).filter(|keeps| !keeps.is_empty()).map(|keeps| format!("keeps {}", keeps.join(", ")))),
        Err(reason) => (false, Some(reason.to_string())),
    };
    let columns = written
        .schema()
        .fields()
        .iter()
        .enumerate()
        .map(|(index, field)| {
            let mut from = BTreeSet::new();
            origins(&written, index, &mut from);
            let known = ["customer_id", "contract_id", "item", "currency"].contains(&field.name().as_str());
            let further = !CHARGE_COLUMNS.contains(&field.name().as_str());
            let stored = match field.name().as_str() {
                "amount" | "quantity" | "unit_price" => DECIMAL,
                name if CHARGE_COLUMNS.contains(&name) => DataType::Utf8,
                _ => stored_type(field.data_type()),
            };
            ColumnOrigin {
                name: field.name().clone(),
                data_type: type_name(&stored),
                identity: known || (further && is_identity(&stored)),
                from: from.into_iter().collect(),
            }
        })
        .collect();
    Ok(Explanation {
        rule: rule.name.clone(),
        version: rule.version.clone(),
        file: rule.file.clone(),
        windows: windows(rule),
        effective: format!(
            "{} to {}",
            format_instant(rule.options.effective_from),
            rule.options.effective_to.map_or_else(|| "open".to_owned(), format_instant)
        ),
        inputs: inputs(project, rule, &written),
        lifted: lifted_because.is_none(),
        lifted_because,
        incremental,
        incremental_because,
        reach: match rule.reach {
            Reach::Own => "an event changes its own window".to_owned(),
            Reach::Onward => "an event changes its own window and may change later ones".to_owned(),
        },
        columns,
        plan: plan.unwrap_or(written).display_indent().to_string(),
    })
}

fn evaluator(project: &Arc<RuleProject>, usage: &UsageSchema) -> Result<Evaluator, DataFusionError> {
    let limits = SessionLimits::default();
    let empty = MemTable::try_new(usage.stored().clone(), vec![vec![]])?;
    Ok(Evaluator::new(runtime(&limits)?, limits, Arc::clone(project), Arc::new(empty)))
}

fn windows(rule: &Rule) -> String {
    let options = &rule.options;
    let grace = if options.grace == 0 { String::new() } else { format!(", final {} after their end", duration(options.grace)) };
    let anchor = options.anchor.as_ref().map_or_else(String::new, |anchor| format!(" from day {anchor}"));
    match &options.window {
        WindowSpec::BillingPeriod => format!("the billing period of each contract{grace}"),
        WindowSpec::Calendar { .. } => format!("{}{anchor}, {}{grace}", options.window_name, options.timezone),
        WindowSpec::Fixed { .. } => format!("{}, counted from 1970 UTC{grace}", options.window_name),
    }
}

/// A length in the largest unit that it is a whole number of.
fn duration(micros: i64) -> String {
    let units = [("day", ratemill_schemas::time::DAY), ("hour", 3_600_000_000), ("minute", 60_000_000), ("second", 1_000_000)];
    let (unit, length) = units.into_iter().find(|(_, length)| micros % length == 0).unwrap_or(("microsecond", 1));
    let count = micros / length;
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

fn inputs(project: &RuleProject, rule: &Rule, plan: &LogicalPlan) -> Vec<String> {
    use datafusion::common::tree_node::TreeNodeRecursion;
    let mut scanned = BTreeSet::new();
    let mut converts = false;
    let _ = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            scanned.insert(scan.table_name.table().to_owned());
        }
        converts |= node.display().to_string().contains("convert(");
        Ok(TreeNodeRecursion::Continue)
    });
    if converts {
        scanned.insert("exchange_rates".to_owned());
    }
    let mut found = Vec::new();
    if rule.reads_usage {
        found.push(match &rule.meters {
            Some(meters) if !meters.is_empty() => format!("usage of {}", meters.join(", ")),
            _ => "usage of every meter".to_owned(),
        });
    }
    for (input, _) in rule.inputs.iter() {
        match input {
            Input::Usage | Input::BillingWindow => {}
            Input::Opening => found.push(format!("opening: the last event before the window of each {}", rule.options.carry.join(", "))),
            Input::Upstream(name) => found.push(format!("charges of {name} in windows inside this one")),
            Input::Earlier(name) => {
                found.push(format!("charges of {name} in up to {} earlier windows", rule.options.history.unwrap_or_default()));
            }
        }
    }
    for table in project.reference.tables() {
        if scanned.contains(table.name()) {
            let validity = if table.has_validity() { ", valid for a time" } else { "" };
            found.push(format!("reference table {} ({} rows{validity})", table.name(), table.batch().num_rows()));
        }
    }
    found
}

fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 => "text".to_owned(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::Int64 => "whole number".to_owned(),
        DataType::Boolean => "true or false".to_owned(),
        DataType::Date32 => "date".to_owned(),
        DataType::Timestamp(..) => "instant".to_owned(),
        other => other.to_string(),
    }
}

/// What an aggregate that names no column is made of.
const COUNT: &str = "the number of rows";

/// Adds the columns of tables that an output column of a plan is made of.
fn origins(plan: &LogicalPlan, index: usize, found: &mut BTreeSet<String>) {
    let of_expr = |expr: &Expr, input: &LogicalPlan, found: &mut BTreeSet<String>| {
        for column in expr.column_refs() {
            of_column(input, column, found);
        }
        of_subqueries(expr, found);
    };
    match plan {
        LogicalPlan::TableScan(scan) => {
            found.insert(format!("{}.{}", scan.table_name, scan.projected_schema.field(index).name()));
        }
        LogicalPlan::Projection(projection) => of_expr(&projection.expr[index], &projection.input, found),
        LogicalPlan::Aggregate(aggregate) => {
            let keys = grouping_set_to_exprlist(&aggregate.group_expr).unwrap_or_default();
            // Grouping sets have a column of their own between keys and aggregates.
            let groups = aggregate.schema.fields().len().saturating_sub(aggregate.aggr_expr.len());
            match index.checked_sub(groups).and_then(|index| aggregate.aggr_expr.get(index)) {
                Some(expr) if expr.column_refs().is_empty() => {
                    found.insert(COUNT.to_owned());
                }
                Some(expr) => of_expr(expr, &aggregate.input, found),
                None => keys.get(index).into_iter().for_each(|key| of_expr(key, &aggregate.input, found)),
            }
        }
        LogicalPlan::Window(window) => {
            let before = window.input.schema().fields().len();
            match index.checked_sub(before) {
                Some(function) => of_expr(&window.window_expr[function], &window.input, found),
                None => origins(&window.input, index, found),
            }
        }
        LogicalPlan::Join(join) => {
            let left = join.left.schema().fields().len();
            if index < left { origins(&join.left, index, found) } else { origins(&join.right, index - left, found) }
        }
        LogicalPlan::Union(union) => union.inputs.iter().for_each(|input| origins(input, index, found)),
        LogicalPlan::Unnest(unnest) => {
            if let Some(before) = unnest.dependency_indices.get(index) {
                origins(&unnest.input, *before, found);
            }
        }
        other => {
            if let [input] = other.inputs().as_slice()
                && index < input.schema().fields().len()
            {
                origins(input, index, found);
            }
        }
    }
}

fn of_column(input: &LogicalPlan, column: &Column, found: &mut BTreeSet<String>) {
    if let Ok(index) = input.schema().index_of_column(column) {
        origins(input, index, found);
    }
}

fn of_subqueries(expr: &Expr, found: &mut BTreeSet<String>) {
    use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
    let _ = expr.apply(|expr| {
        if let Expr::ScalarSubquery(subquery) = expr {
            origins(&subquery.subquery, 0, found);
        }
        Ok(TreeNodeRecursion::Continue)
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::diagnostics::Diagnostics;
    use crate::reference::ReferenceData;

    use super::*;

    #[tokio::test]
    async fn columns_are_as_they_are_stored() {
        let rule = "CREATE MATERIALIZED VIEW calls WITH (window = 'month', effective_from = '2026-01-01') AS
             SELECT u.subject AS customer_id, 'Calls' AS item, count(*) AS quantity, 2 * count(*) AS amount, 'GBP' AS currency,
                    max(u.quantity) AS longest, count(*) AS calls
             FROM usage u GROUP BY ROLLUP (u.subject)";
        let usage = Arc::new(UsageSchema::new(Vec::new()));
        let rules = vec![("calls.sql".to_owned(), rule.to_owned())];
        let (project, _) = RuleProject::check(rules, ReferenceData::default(), usage, Diagnostics::default()).await.unwrap();
        let project = Arc::new(project);
        let explained = explain(&project, &project.rules[0]).await.unwrap();
        let columns: Vec<String> =
            explained.columns.iter().map(|column| format!("{} {}: {}", column.name, column.data_type, column.from.join(", "))).collect();
        assert_eq!(
            columns,
            [
                "customer_id text: usage.subject",
                "item text: ",
                "quantity DECIMAL(38, 18): the number of rows",
                "amount DECIMAL(38, 18): the number of rows",
                "currency text: ",
                "longest DECIMAL(38, 18): usage.quantity",
                "calls whole number: the number of rows",
            ]
        );
    }
}
