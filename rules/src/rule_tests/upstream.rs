//! Charges of other rules that a test gives instead of the usage behind them.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Date32Array, Decimal128Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, SchemaRef};
use ratemill_schemas::decimal::{PRECISION, SCALE};
use ratemill_schemas::time::format_instant;
use ratemill_schemas::{Decimal, Window, windows};

use super::suite::{Cell, Cells, Fault};
use super::tables::{EARLIER, GivenTable, TestRow};
use crate::evaluate::CHARGE_COLUMNS;
use crate::inputs::charges_schema;
use crate::project::RuleProject;
use crate::reference::ReferenceData;
use crate::rule::Rule;

/// Every table of charges that the rule reads, by its name in SQL; those that the test does not give are empty.
pub(super) fn upstream_charges(
    tables: &[GivenTable],
    project: &RuleProject,
    reference: &ReferenceData,
    versions: &[&Rule],
    tested: &[Window],
) -> Result<Vec<(String, RecordBatch)>, Fault> {
    let given = given_upstream(tables, project, reference, tested)?;
    let mut names: Vec<String> = Vec::new();
    for version in versions {
        names.extend(version.upstream.iter().cloned());
        names.extend(version.earlier.iter().map(|rule| format!("{EARLIER}{rule}")));
    }
    names.sort();
    names.dedup();
    let mut charges = Vec::with_capacity(names.len());
    for name in names {
        let rule = name.strip_prefix(EARLIER).unwrap_or(&name);
        let schema = charges_schema(project.rules.iter().filter(|version| version.name == rule));
        let rows = given.iter().find(|(table, _)| *table == name).map_or(&[] as &[Cells], |(_, rows)| rows.as_slice());
        let timezone = versions_of(project, rule).first().map_or("UTC", |version| version.options.timezone.as_str());
        let batch = as_charges(rows, &schema, timezone).map_err(|message| {
            let place = tables.iter().find(|table| table.name == name).and_then(|table| table.place);
            Fault::new(place, format!("{name}: {message}"))
        })?;
        charges.push((name, batch));
    }
    Ok(charges)
}

/// The charges of other rules that the test gives, as (rule or `earlier.rule`, rows). Every row has `window_start` and
/// `window_end` as instants in RFC 3339; other columns are as written.
fn given_upstream(
    tables: &[GivenTable],
    project: &RuleProject,
    reference: &ReferenceData,
    tested: &[Window],
) -> Result<Vec<(String, Vec<Cells>)>, Fault> {
    let mut upstream = Vec::new();
    for table in tables {
        let rule = table.name.strip_prefix(EARLIER).unwrap_or(&table.name);
        let versions = versions_of(project, rule);
        let Some(version) = versions.first() else { continue };
        let columns = charge_columns(&versions);
        // Charges of the same window are the usual case; which earlier window is meant must be said.
        let same: &[Window] = if table.name == rule { tested } else { &[] };
        let mut rows = Vec::with_capacity(table.rows.len());
        for row in &table.rows {
            row.check_columns(&format!("rule `{rule}`"), &columns)?;
            let window = window_of_row(row, version, reference, same)?;
            let mut cells = row.cells.clone();
            cells.insert("window_start".to_owned(), Cell::Text(format_instant(window.start)));
            cells.insert("window_end".to_owned(), Cell::Text(format_instant(window.end)));
            rows.push(cells);
        }
        upstream.push((table.name.clone(), rows));
    }
    Ok(upstream)
}

fn versions_of<'a>(project: &'a RuleProject, name: &str) -> Vec<&'a Rule> {
    project.rules.iter().filter(|version| version.name == name).collect()
}

/// The columns that charges of a rule have in tests and for other rules.
pub(super) fn charge_columns(versions: &[&Rule]) -> Vec<String> {
    let mut columns: Vec<String> = ["window_start", "window_end"].into_iter().chain(CHARGE_COLUMNS).map(str::to_owned).collect();
    for further in versions.iter().flat_map(|version| version.further_columns()) {
        if !columns.contains(&further.name) {
            columns.push(further.name.clone());
        }
    }
    columns
}

/// The window of a given charge: as written, or by its start, or the one that the test is about.
fn window_of_row(row: &TestRow, rule: &Rule, reference: &ReferenceData, same: &[Window]) -> Result<Window, Fault> {
    let bound = |column: &str| -> Result<Option<i64>, Fault> {
        let instant = row.text(column).map(|text| windows::instant_of_day(text, &rule.options.timezone));
        instant.transpose().map_err(|error| row.fault(format!("`{column}`: {error}")))
    };
    let unclear = || row.fault(format!("a charge of `{}` belongs to a window; give it a window_start", rule.name));
    match (bound("window_start")?, bound("window_end")?, same) {
        (Some(start), Some(end), _) if start < end => match rule.options.window.window_of(start) {
            Ok(window) if window != (Window { start, end }) => {
                let given = Window { start, end };
                Err(row.fault(format!("{given} is no window of `{}`; one is {window}", rule.name)))
            }
            // The periods of contracts are known by their contract alone.
            _ => Ok(Window { start, end }),
        },
        (Some(_), Some(_), _) => Err(row.fault("window_end is not after window_start")),
        (Some(start), None, _) => match rule.options.window.window_of(start) {
            Ok(window) if window.start == start => Ok(window),
            Ok(window) => Err(row.fault(format!("no window of `{}` begins at {}; one is {window}", rule.name, format_instant(start)))),
            Err(error) => Err(row.fault(format!("window_end is missing: {error}"))),
        },
        (None, None, [window]) => Ok(*window),
        (None, None, windows) => window_of_contract(row, reference, windows).ok_or_else(unclear),
        (None, Some(_), _) => Err(unclear()),
    }
}

/// The one of `windows` that is a billing period of the row's contract.
fn window_of_contract(row: &TestRow, reference: &ReferenceData, windows: &[Window]) -> Option<Window> {
    let (contract, periods) = (row.text("contract_id")?, reference.billing_periods()?);
    windows.iter().copied().find(|window| periods.period_of(contract, window.start).is_ok_and(|period| period == Some(*window)))
}

/// Rows in the columns in which rules read the charges of others.
fn as_charges(rows: &[Cells], schema: &SchemaRef, timezone: &str) -> Result<RecordBatch, String> {
    let columns: Result<Vec<ArrayRef>, String> = schema
        .fields()
        .iter()
        .map(|field| {
            let texts: Vec<Option<&str>> = rows.iter().map(|row| text_of(row, field.name())).collect();
            array(&texts, field.data_type(), timezone).map_err(|error| format!("`{}`: {error}", field.name()))
        })
        .collect();
    RecordBatch::try_new(Arc::clone(schema), columns?).map_err(|error| error.to_string())
}

fn text_of<'a>(row: &'a Cells, column: &str) -> Option<&'a str> {
    match row.get(column) {
        Some(Cell::Text(text)) => Some(text),
        _ => None,
    }
}

fn array(texts: &[Option<&str>], data_type: &DataType, timezone: &str) -> Result<ArrayRef, String> {
    let array: ArrayRef = match data_type {
        DataType::Utf8 => Arc::new(texts.iter().copied().collect::<StringArray>()),
        DataType::Decimal128(..) => {
            let number = |text: &str| text.parse::<Decimal>().map(Decimal::raw).map_err(|error| format!("`{text}` {error}"));
            let numbers: Decimal128Array = parsed(texts, number)?.into_iter().collect();
            Arc::new(numbers.with_precision_and_scale(PRECISION, SCALE).map_err(|error| error.to_string())?)
        }
        DataType::Int64 => {
            let number = |text: &str| text.parse::<i64>().map_err(|_| format!("`{text}` is not a whole number"));
            Arc::new(parsed(texts, number)?.into_iter().collect::<Int64Array>())
        }
        DataType::Boolean => {
            let truth = |text: &str| text.parse::<bool>().map_err(|_| format!("`{text}` is neither true nor false"));
            Arc::new(parsed(texts, truth)?.into_iter().collect::<BooleanArray>())
        }
        DataType::Date32 => Arc::new(parsed(texts, windows::days_of_date)?.into_iter().collect::<Date32Array>()),
        DataType::Timestamp(..) => {
            let instants = parsed(texts, |text| windows::instant_of_day(text, timezone))?;
            Arc::new(instants.into_iter().collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
        }
        other => return Err(format!("a test cannot give a column of type {other}")),
    };
    Ok(array)
}

fn parsed<T>(texts: &[Option<&str>], parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<Option<T>>, String> {
    texts.iter().map(|text| text.map(&parse).transpose()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::Decimal128Type;

    use super::*;

    #[test]
    fn given_charges_are_typed() {
        let cells = |amount: &str| {
            let text = |text: &str| Cell::Text(text.to_owned());
            Cells::from([
                ("window_start".to_owned(), text("2026-09-01")),
                ("window_end".to_owned(), text("2026-09-30T23:00:00Z")),
                ("customer_id".to_owned(), text("acme")),
                ("amount".to_owned(), text(amount)),
                ("quantity".to_owned(), Cell::Null),
            ])
        };
        let schema = charges_schema(std::iter::empty());
        let batch = as_charges(&[cells("31.00"), cells("-0.000000000000000001")], &schema, "Europe/London").unwrap();
        let column = |name: &str| batch.column_by_name(name).unwrap();
        assert_eq!(column("amount").as_primitive::<Decimal128Type>().value(1), -1);
        assert!(column("quantity").is_null(0) && column("contract_id").is_null(0));
        assert_eq!(column("customer_id").as_string::<i32>().value(0), "acme");
        assert_eq!(as_charges(&[], &schema, "UTC").unwrap().num_rows(), 0);
        assert_eq!(as_charges(&[cells("31,00")], &schema, "UTC").unwrap_err(), "`amount`: `31,00` is not a decimal number");
    }
}
