//! The net of a window's ledger rows, compared with charges that were rated afresh.

use std::collections::{BTreeMap, HashSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Decimal128Type;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use ratemill_schemas::Decimal;
use ratemill_schemas::decimal::DECIMAL;

use super::as_charges;

/// A charge whose net in the ledger is not what it is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetDifference {
    /// The customer.
    pub customer_id: String,
    /// The item.
    pub item: String,
    /// The currency.
    pub currency: String,
    /// The column that differs.
    pub column: String,
    /// What the ledger has; `None` when it has no such charge.
    pub ledger: Option<String>,
    /// What rating gives; `None` when it gives no such charge.
    pub fresh: Option<String>,
}

/// The rows of one identity.
#[derive(Default)]
struct Rows {
    ledger: Vec<usize>,
    fresh: Option<usize>,
}

/// The charges of one window whose net in `published`, all its ledger rows, is not what `fresh` says, by identity.
///
/// The sums of decimals (but unit prices) over all rows must agree, at most one row may be in force, and it must agree in
/// every other column.
///
/// # Errors
/// When a batch does not have the columns of the ledger, or a sum overflows.
pub fn compare(published: &RecordBatch, fresh: &RecordBatch) -> Result<Vec<NetDifference>, ArrowError> {
    let old = as_charges(published, fresh)?;
    let mut lines: BTreeMap<String, Rows> = BTreeMap::new();
    for (row, identity) in super::identity_texts(&old).into_iter().enumerate() {
        lines.entry(identity).or_default().ledger.push(row);
    }
    for (row, identity) in super::identity_texts(fresh).into_iter().enumerate() {
        lines.entry(identity).or_default().fresh = Some(row);
    }
    let in_force = rows_in_force(published);
    let mut differences = Vec::new();
    for rows in lines.into_values() {
        let found = match sums_differ(&old, fresh, &rows)? {
            Some(found) => Some(found),
            None => rows_differ(&old, fresh, &rows, &in_force)?,
        };
        let Some((column, ledger, worth)) = found else { continue };
        let (batch, row) = match rows.fresh {
            Some(row) => (fresh, row),
            None => (&old, rows.ledger[0]),
        };
        let text =
            |name: &str| batch.column_by_name(name).map_or_else(String::new, |column| column.as_string::<i32>().value(row).to_owned());
        differences.push(NetDifference {
            customer_id: text("customer_id"),
            item: text("item"),
            currency: text("currency"),
            column,
            ledger: (!rows.ledger.is_empty()).then_some(ledger),
            fresh: rows.fresh.map(|_| worth),
        });
    }
    Ok(differences)
}

/// The first decimal whose sum over the ledger is not the fresh one, with both.
fn sums_differ(old: &RecordBatch, fresh: &RecordBatch, rows: &Rows) -> Result<Option<(String, String, String)>, ArrowError> {
    for field in old.schema().fields().iter().filter(|field| *field.data_type() == DECIMAL && field.name() != "unit_price") {
        let sum = sum_of(old, field.name(), &rows.ledger)?;
        let worth = sum_of(fresh, field.name(), rows.fresh.as_slice())?;
        if sum != worth {
            return Ok(Some((field.name().clone(), sum.to_string(), worth.to_string())));
        }
    }
    Ok(None)
}

fn sum_of(charges: &RecordBatch, column: &str, rows: &[usize]) -> Result<Decimal, ArrowError> {
    let Some(column) = charges.column_by_name(column).map(|column| column.as_primitive::<Decimal128Type>()) else {
        return Ok(Decimal::default());
    };
    let failed = |error: ratemill_schemas::decimal::DecimalError| ArrowError::ComputeError(error.to_string());
    rows.iter()
        .filter(|row| column.is_valid(**row))
        .try_fold(Decimal::default(), |sum, row| Decimal::from_raw(column.value(*row)).and_then(|value| sum.plus(value)).map_err(failed))
}

/// How the rows in force differ from the charge, where the sums agree.
fn rows_differ(
    old: &RecordBatch,
    fresh: &RecordBatch,
    rows: &Rows,
    in_force: &HashSet<usize>,
) -> Result<Option<(String, String, String)>, ArrowError> {
    let standing: Vec<usize> = rows.ledger.iter().copied().filter(|row| in_force.contains(row)).collect();
    let expected = usize::from(rows.fresh.is_some());
    if standing.len() != expected {
        return Ok(Some(("rows in force".to_owned(), standing.len().to_string(), expected.to_string())));
    }
    let (Some(row), Some(fresh_row)) = (standing.first(), rows.fresh) else { return Ok(None) };
    for (field, column) in fresh.schema().fields().iter().zip(fresh.columns()) {
        let Some(stored) = old.column_by_name(field.name()) else { continue };
        if stored.slice(*row, 1).as_ref() != column.slice(fresh_row, 1).as_ref() {
            return Ok(Some((field.name().clone(), shown(stored, *row)?, shown(column, fresh_row)?)));
        }
    }
    Ok(None)
}

fn shown(column: &dyn Array, row: usize) -> Result<String, ArrowError> {
    let options = FormatOptions::default().with_null("null");
    Ok(ArrayFormatter::try_new(column, &options)?.value(row).to_string())
}

/// Rows that are no reversal and are not reversed.
fn rows_in_force(published: &RecordBatch) -> HashSet<usize> {
    let (Some(ids), Some(reverses)) = (published.column_by_name("charge_id"), published.column_by_name("reverses")) else {
        return HashSet::new();
    };
    let (ids, reverses) = (ids.as_string::<i32>(), reverses.as_string::<i32>());
    let reversed: HashSet<&str> = reverses.iter().flatten().collect();
    (0..published.num_rows()).filter(|row| reverses.is_null(*row) && !reversed.contains(ids.value(*row))).collect()
}
