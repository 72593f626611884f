//! What pending changes come to: by window and customer, by customer, and in total, per currency.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Decimal128Type;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use ratemill_schemas::decimal::DecimalError;
use ratemill_schemas::time::format_instant;
use ratemill_schemas::{Decimal, Window};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::super::manifest::WindowTask;

/// Which windows are looked at: all, where nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeScope {
    /// Those of one rule; rules that read it go along where their charges change.
    pub rule: Option<String>,
    /// Those that begin at this instant or later, µs UTC.
    pub from: Option<i64>,
    /// Those that end at this instant or before, µs UTC.
    pub to: Option<i64>,
}

impl ChangeScope {
    pub(super) fn covers(&self, window: Window) -> bool {
        self.from.is_none_or(|from| from <= window.start) && self.to.is_none_or(|to| window.end <= to)
    }
}

/// What is charged, and what it would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AmountChange {
    /// The customer; of a total, none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer_id: Option<String>,
    /// The currency.
    pub currency: String,
    /// The net of the ledger.
    pub charged: Decimal,
    /// What rating gives now.
    pub would_be: Decimal,
    /// `would_be` less `charged`.
    pub difference: Decimal,
}

impl AmountChange {
    fn add(&mut self, other: &Self) -> Result<(), DecimalError> {
        self.charged = self.charged.plus(other.charged)?;
        self.would_be = self.would_be.plus(other.would_be)?;
        self.difference = self.difference.plus(other.difference)?;
        Ok(())
    }
}

/// A published window that would be charged otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingWindow {
    /// The rule.
    pub rule: String,
    /// The window's first instant, RFC 3339.
    pub window_start: String,
    /// The first instant after it.
    pub window_end: String,
    /// The contract, where the window is a contract's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contract_id: Option<String>,
    /// Why: `rule changed`, `reference data changed`, `charges read changed`.
    pub cause: String,
    /// Reference tables that differ from those that published it, of those that its charges depend on.
    pub tables: Vec<String>,
    /// Ledger rows that would be written: reversals and replacements.
    pub rows: usize,
    /// Customers with such rows; where no amount changes, but another column, the difference is 0.
    pub customers: Vec<AmountChange>,
}

impl PendingWindow {
    /// `before` are all ledger rows of the window, `charges` those that it would have, `rows` what would be written.
    pub(super) fn of(
        task: &WindowTask,
        tables: &[String],
        (before, charges): (&RecordBatch, &RecordBatch),
        rows: &[RecordBatch],
    ) -> Result<Self, DecimalError> {
        let mut amounts: BTreeMap<(String, String), AmountChange> = BTreeMap::new();
        for batch in rows {
            for (customer, currency, _) in lines(batch)? {
                let key = (customer.to_owned(), currency.to_owned());
                amounts.entry(key).or_insert_with(|| AmountChange {
                    customer_id: Some(customer.to_owned()),
                    currency: currency.to_owned(),
                    ..AmountChange::default()
                });
            }
        }
        for (batch, is_new) in [(before, false), (charges, true)] {
            for (customer, currency, amount) in lines(batch)? {
                let Some(change) = amounts.get_mut(&(customer.to_owned(), currency.to_owned())) else { continue };
                let sum = if is_new { &mut change.would_be } else { &mut change.charged };
                *sum = sum.plus(amount)?;
            }
        }
        for change in amounts.values_mut() {
            change.difference = change.would_be.subtract(change.charged)?;
        }
        Ok(Self {
            rule: task.rule.clone(),
            window_start: format_instant(task.window.window.start),
            window_end: format_instant(task.window.window.end),
            contract_id: task.window.contract_id.clone(),
            cause: task.cause.clone(),
            tables: tables.to_vec(),
            rows: rows.iter().map(RecordBatch::num_rows).sum(),
            customers: amounts.into_values().collect(),
        })
    }

    /// What the window would be charged otherwise, by currency.
    ///
    /// # Errors
    /// When a sum overflows.
    pub fn totals(&self) -> Result<Vec<AmountChange>, DecimalError> {
        totals(self.customers.iter())
    }
}

/// Customer, currency and amount of each row.
fn lines(batch: &RecordBatch) -> Result<Vec<(&str, &str, Decimal)>, DecimalError> {
    let text = |name: &str| batch.column_by_name(name).map(|column| column.as_string::<i32>());
    let amounts = batch.column_by_name("amount").map(|column| column.as_primitive::<Decimal128Type>());
    let (Some(customers), Some(currencies), Some(amounts)) = (text("customer_id"), text("currency"), amounts) else {
        return Ok(Vec::new());
    };
    (0..batch.num_rows()).map(|row| Ok((customers.value(row), currencies.value(row), Decimal::from_raw(amounts.value(row))?))).collect()
}

fn totals<'a>(changes: impl Iterator<Item = &'a AmountChange>) -> Result<Vec<AmountChange>, DecimalError> {
    let mut totals: BTreeMap<&str, AmountChange> = BTreeMap::new();
    for change in changes {
        let new = || AmountChange { currency: change.currency.clone(), ..AmountChange::default() };
        totals.entry(&change.currency).or_insert_with(new).add(change)?;
    }
    Ok(totals.into_values().collect())
}

/// The changes that [`super::super::Epochs::apply`] would post.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingChanges {
    /// The last completed epoch, as of which they were computed.
    pub epoch: i64,
    /// Names exactly this difference; empty where there is none.
    pub digest: String,
    /// The windows that would be charged otherwise, rules that are read first.
    pub windows: Vec<PendingWindow>,
    /// The same by customer and currency.
    pub customers: Vec<AmountChange>,
    /// The same by currency.
    pub totals: Vec<AmountChange>,
    /// Ledger rows that would be written.
    pub rows: usize,
    /// Windows that were rated with the present versions and would be charged the same.
    pub unchanged: usize,
    /// Windows of older reference data that were not rated: nothing that their rule reads has changed.
    pub untouched: usize,
    /// Billing periods that share usage with one that is not looked at, or that is not over: they stay as they are.
    pub held: Vec<String>,
    /// Windows with late usage that is not rated yet.
    pub waiting: usize,
    /// Windows that cannot be rated with the present versions, and why.
    pub failures: Vec<String>,
}

impl PendingChanges {
    /// Adds up, once all windows are there.
    pub(super) fn finish(&mut self, digest: &mut Digest) -> Result<(), DecimalError> {
        let mut customers: BTreeMap<(&Option<String>, &str), AmountChange> = BTreeMap::new();
        for change in self.windows.iter().flat_map(|window| &window.customers) {
            let of_customer = customers.entry((&change.customer_id, &change.currency)).or_insert_with(|| AmountChange {
                customer_id: change.customer_id.clone(),
                currency: change.currency.clone(),
                ..AmountChange::default()
            });
            of_customer.add(change)?;
        }
        let customers: Vec<AmountChange> = customers.into_values().collect();
        self.totals = totals(customers.iter())?;
        self.customers = customers;
        self.rows = self.windows.iter().map(|window| window.rows).sum();
        self.digest = digest.text();
        Ok(())
    }
}

/// A hash of everything that a difference would write, whatever order it was found in.
#[derive(Debug, Default)]
pub(super) struct Digest {
    rows: BTreeSet<[u8; 32]>,
}

impl Digest {
    /// Adds the rows that a window's difference would write.
    pub(super) fn add(&mut self, task: &WindowTask, rows: &[RecordBatch]) -> Result<(), ArrowError> {
        let options = FormatOptions::default().with_null("\u{0}");
        for batch in rows {
            let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options)).collect::<Result<Vec<_>, _>>()?;
            for row in 0..batch.num_rows() {
                let mut hash = Sha256::new();
                let mut part = |text: &str| {
                    hash.update((text.len() as u64).to_le_bytes());
                    hash.update(text);
                };
                part(&task.window.to_string());
                for (field, column) in batch.schema_ref().fields().iter().zip(&columns) {
                    part(field.name());
                    part(&column.value(row).try_to_string()?);
                }
                self.rows.insert(hash.finalize().into());
            }
        }
        Ok(())
    }

    fn text(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let mut hash = Sha256::new();
        self.rows.iter().for_each(|row| hash.update(row));
        hex::encode(&hash.finalize()[..8])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Decimal128Array, StringArray};
    use ratemill_rules::RuleWindow;
    use ratemill_schemas::decimal::DECIMAL;

    use super::*;

    fn rows(rows: &[(&str, &str, &str)]) -> RecordBatch {
        let text = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
        let amounts = rows.iter().map(|row| row.2.parse::<Decimal>().unwrap().raw());
        let amounts: ArrayRef = Arc::new(Decimal128Array::from_iter_values(amounts).with_data_type(DECIMAL));
        let customers = text(rows.iter().map(|row| row.0).collect());
        let currencies = text(rows.iter().map(|row| row.1).collect());
        RecordBatch::try_from_iter([("customer_id", customers), ("currency", currencies), ("amount", amounts)]).unwrap()
    }

    fn task() -> WindowTask {
        WindowTask {
            rule: "energy".to_owned(),
            rule_version: "v".to_owned(),
            reference_version: "r".to_owned(),
            window: RuleWindow { window: Window { start: 0, end: 10 }, contract_id: None },
            cause: "rule changed".to_owned(),
        }
    }

    #[test]
    fn a_window_is_told_by_customer_and_currency() {
        let before = rows(&[("a", "EUR", "8"), ("a", "USD", "1"), ("b", "EUR", "5"), ("a", "EUR", "-8"), ("a", "EUR", "9")]);
        let charges = rows(&[("a", "EUR", "10.5"), ("a", "USD", "1"), ("b", "EUR", "5")]);
        let written = rows(&[("a", "EUR", "-9"), ("a", "EUR", "10.5")]);
        let window = PendingWindow::of(&task(), &["prices".to_owned()], (&before, &charges), &[written]).unwrap();
        let shown = |change: &AmountChange| format!("{} {} {} {}", change.currency, change.charged, change.would_be, change.difference);
        assert_eq!(window.customers.iter().map(shown).collect::<Vec<_>>(), ["EUR 9 10.5 1.5"]);
        assert_eq!(window.rows, 2);
        let mut changes = PendingChanges { windows: vec![window.clone(), window], ..PendingChanges::default() };
        changes.finish(&mut Digest::default()).unwrap();
        assert_eq!(changes.totals.iter().map(shown).collect::<Vec<_>>(), ["EUR 18 21 3"]);
        assert_eq!((changes.customers.len(), changes.rows, changes.digest.as_str()), (1, 4, ""));
        let text = serde_json::to_string(&changes).unwrap();
        assert!(text.contains("\"would_be\":\"10.5\""), "{text}");
        assert_eq!(serde_json::from_str::<PendingChanges>(&text).unwrap(), changes);
    }

    #[test]
    fn a_digest_knows_rows_and_not_their_order() {
        let digest = |batches: &[RecordBatch]| {
            let mut digest = Digest::default();
            digest.add(&task(), batches).unwrap();
            digest.text()
        };
        let (one, other) = (("a", "EUR", "1"), ("b", "EUR", "2"));
        let together = digest(&[rows(&[one, other])]);
        assert_eq!(together, digest(&[rows(&[other, one])]));
        assert_eq!(together, digest(&[rows(&[other]), rows(&[one])]));
        assert_ne!(together, digest(&[rows(&[one, ("b", "EUR", "2.0000000001")])]));
        assert_ne!(together, digest(&[rows(&[one])]));
    }

    #[test]
    fn a_scope_holds_whole_windows() {
        let scope = ChangeScope { from: Some(5), to: Some(20), ..ChangeScope::default() };
        let covers = |start, end| scope.covers(Window { start, end });
        assert_eq!([covers(5, 20), covers(5, 10), covers(4, 10), covers(10, 21)], [true, true, false, false]);
    }
}
