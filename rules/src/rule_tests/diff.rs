//! What a test expects against what the rule charged: rows are paired so that the cell that differs is shown.

use std::collections::BTreeMap;
use std::fmt;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Decimal128Type, DecimalType, Int64Type, TimeUnit, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use ratemill_schemas::decimal::SCALE;
use ratemill_schemas::time::format_instant;
use ratemill_schemas::{Decimal, windows};
use serde::Serialize;

use super::suite::{Cell, Cells};

/// Columns that say which charge a row is; rows that agree in them are shown as one row with other figures.
const IDENTITY: [&str; 5] = ["customer_id", "contract_id", "item", "currency", "window_start"];

/// One value of a charge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    Null,
    Text(String),
    Number(Decimal),
    /// µs UTC.
    Instant(i64),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => write!(f, "{number}"),
            Self::Instant(instant) => f.write_str(&format_instant(*instant)),
        }
    }
}

impl Value {
    /// The value of a column in one row.
    pub(super) fn of(column: &ArrayRef, row: usize) -> Self {
        if column.is_null(row) {
            return Self::Null;
        }
        match column.data_type() {
            DataType::Utf8 => Self::Text(column.as_string::<i32>().value(row).to_owned()),
            DataType::Int64 => Self::Number(Decimal::from_integer(column.as_primitive::<Int64Type>().value(row))),
            DataType::Timestamp(TimeUnit::Microsecond, _) => Self::Instant(column.as_primitive::<TimestampMicrosecondType>().value(row)),
            DataType::Decimal128(precision, scale) => {
                let raw = column.as_primitive::<Decimal128Type>().value(row);
                match Decimal::from_raw(raw) {
                    Ok(number) if *scale == SCALE => Self::Number(number),
                    _ => Self::Text(Decimal128Type::format_decimal(raw, *precision, *scale)),
                }
            }
            _ => Self::Text(
                ArrayFormatter::try_new(column, &FormatOptions::default())
                    .map_or_else(|error| error.to_string(), |formatter| formatter.value(row).to_string()),
            ),
        }
    }

    /// Whether a cell of a test means this value: numbers by value, instants also as dates in `timezone`.
    fn is(&self, expected: &Cell, timezone: &str) -> bool {
        let Cell::Text(text) = expected else { return *self == Self::Null };
        match self {
            Self::Null => false,
            Self::Text(value) => value == text,
            Self::Number(number) => text.parse::<Decimal>().is_ok_and(|expected| expected == *number),
            Self::Instant(instant) => windows::instant_of_day(text, timezone).is_ok_and(|expected| expected == *instant),
        }
    }

    /// The value beside `expected`: a number with as many places, so that the eye compares digit by digit.
    fn beside(&self, expected: &Cell) -> String {
        let shown = self.to_string();
        let (Self::Number(_), Cell::Text(expected)) = (self, expected) else { return shown };
        let places = |text: &str| text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
        let missing = places(expected).saturating_sub(places(&shown));
        let point = if missing > 0 && !shown.contains('.') { "." } else { "" };
        format!("{shown}{point}{}", "0".repeat(missing))
    }
}

/// A charge, by column.
pub(super) type ChargeRow = BTreeMap<String, Value>;

/// Every value of a row that there is.
pub(super) fn shown(row: &ChargeRow) -> String {
    listed(row.iter().filter(|(_, value)| **value != Value::Null).map(|(name, value)| format!("{name}: {value}")))
}

fn listed(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

/// One cell that is not as expected; a null is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CellDifference {
    /// The column.
    pub column: String,
    /// As the test writes it.
    pub expected: Option<String>,
    /// What the rule gave.
    pub actual: Option<String>,
}

impl fmt::Display for CellDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |text: &Option<String>| match text {
            Some(text) if text == "null" => "'null'".to_owned(),
            Some(text) => text.clone(),
            None => "null".to_owned(),
        };
        write!(f, "{}: {} → {}", self.column, show(&self.expected), show(&self.actual))
    }
}

/// One way in which the charges are not as expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Difference {
    /// A row is there with other values.
    Changed {
        /// Its values that are as expected.
        row: String,
        /// Those that are not.
        cells: Vec<CellDifference>,
    },
    /// An expected row is not there.
    Missing {
        /// The row as the test writes it.
        row: String,
    },
    /// A row is there that the test does not expect, or an audit found.
    Unexpected {
        /// The row.
        row: String,
    },
    /// The same input gave other charges when it came in another way.
    Unstable {
        /// In which way it came.
        how: String,
        /// What was different.
        difference: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed { row, cells } => {
                f.write_str(if row.is_empty() { "the row" } else { row })?;
                cells.iter().try_for_each(|cell| write!(f, "\n    {cell}"))
            }
            Self::Missing { row } => write!(f, "missing: {row}"),
            Self::Unexpected { row } => write!(f, "unexpected: {row}"),
            Self::Unstable { how, difference } => {
                write!(f, "the answer depends on how the input is cut or ordered: {how}, {difference}")
            }
        }
    }
}

/// How `actual` differs from `expected`, of which only the written columns count; rows are in no order.
pub(super) fn differences(expected: &[Cells], actual: &[ChargeRow], timezone: &str) -> Vec<Difference> {
    let comparison = Comparison { expected, actual, timezone };
    let mut pairs = comparison.equal_pairs();
    let mut found = comparison.changed(&mut pairs);
    let taken: Vec<usize> = pairs.iter().copied().flatten().collect();
    for (row, pair) in expected.iter().zip(&pairs) {
        if pair.is_none() {
            found.push(Difference::Missing { row: listed(row.iter().map(|(name, cell)| format!("{name}: {}", text_of(cell)))) });
        }
    }
    for (index, row) in actual.iter().enumerate() {
        if !taken.contains(&index) {
            found.push(Difference::Unexpected { row: comparison.written(row) });
        }
    }
    found
}

struct Comparison<'a> {
    expected: &'a [Cells],
    actual: &'a [ChargeRow],
    timezone: &'a str,
}

impl<'a> Comparison<'a> {
    fn value(&self, actual: usize, column: &str) -> &'a Value {
        self.actual[actual].get(column).unwrap_or(&Value::Null)
    }

    fn unequal(&self, expected: usize, actual: usize) -> Vec<&'a String> {
        let cells = self.expected[expected].iter();
        cells.filter(|(name, cell)| !self.value(actual, name).is(cell, self.timezone)).map(|(name, _)| name).collect()
    }

    /// By expected row the actual row that equals it, so that as many rows as possible have one: a row of few columns
    /// must not take the only one that fits another (Kuhn's augmenting paths).
    fn equal_pairs(&self) -> Vec<Option<usize>> {
        let fitting: Vec<Vec<usize>> = (0..self.expected.len())
            .map(|expected| (0..self.actual.len()).filter(|actual| self.unequal(expected, *actual).is_empty()).collect())
            .collect();
        let mut owners: Vec<Option<usize>> = vec![None; self.actual.len()];
        for expected in 0..self.expected.len() {
            augment(expected, &fitting, &mut vec![false; self.actual.len()], &mut owners);
        }
        let mut pairs = vec![None; self.expected.len()];
        for (actual, owner) in owners.into_iter().enumerate() {
            if let Some(expected) = owner {
                pairs[expected] = Some(actual);
            }
        }
        pairs
    }

    /// Pairs what is left, the most alike first, as far as two rows can be meant as one.
    fn changed(&self, pairs: &mut [Option<usize>]) -> Vec<Difference> {
        let left: Vec<usize> = (0..pairs.len()).filter(|expected| pairs[*expected].is_none()).collect();
        let taken: Vec<usize> = pairs.iter().copied().flatten().collect();
        let unclaimed: Vec<usize> = (0..self.actual.len()).filter(|actual| !taken.contains(actual)).collect();
        let alone = left.len() == 1 && unclaimed.len() == 1;
        let mut candidates = Vec::new();
        for &expected in &left {
            for &actual in &unclaimed {
                let unequal = self.unequal(expected, actual);
                let strangers = unequal.iter().filter(|name| IDENTITY.contains(&name.as_str())).count();
                let known = self.expected[expected].keys().any(|name| IDENTITY.contains(&name.as_str()));
                let meant = (known && strangers == 0) || unequal.len() * 2 <= self.expected[expected].len();
                if alone || meant {
                    candidates.push((strangers, unequal.len(), expected, actual));
                }
            }
        }
        candidates.sort_unstable();
        let mut found = Vec::new();
        let mut claimed = Vec::new();
        for (_, _, expected, actual) in candidates {
            if pairs[expected].is_none() && !claimed.contains(&actual) {
                pairs[expected] = Some(actual);
                claimed.push(actual);
                found.push(self.difference(expected, actual));
            }
        }
        found
    }

    fn difference(&self, expected: usize, actual: usize) -> Difference {
        let unequal = self.unequal(expected, actual);
        let row = &self.expected[expected];
        let cells = unequal
            .iter()
            .map(|name| {
                let (cell, value) = (&row[*name], self.value(actual, name));
                CellDifference {
                    column: (*name).clone(),
                    expected: if let Cell::Text(text) = cell { Some(text.clone()) } else { None },
                    actual: (*value != Value::Null).then(|| value.beside(cell)),
                }
            })
            .collect();
        let equal = row.iter().filter(|(name, _)| !unequal.contains(name));
        Difference::Changed { row: listed(equal.map(|(name, cell)| format!("{name}: {}", text_of(cell)))), cells }
    }

    /// The columns of an actual row that the test writes somewhere, or all that there are.
    fn written(&self, row: &ChargeRow) -> String {
        if self.expected.is_empty() {
            return shown(row);
        }
        let written = row.iter().filter(|(name, _)| self.expected.iter().any(|expected| expected.contains_key(*name)));
        listed(written.map(|(name, value)| format!("{name}: {value}")))
    }
}

fn text_of(cell: &Cell) -> &str {
    match cell {
        Cell::Null => "null",
        Cell::Text(text) => text,
    }
}

/// Finds a fitting row for `expected`, moving other rows to further ones that fit them.
fn augment(expected: usize, fitting: &[Vec<usize>], seen: &mut [bool], owners: &mut [Option<usize>]) -> bool {
    for &actual in &fitting[expected] {
        if seen[actual] {
            continue;
        }
        seen[actual] = true;
        let free = match owners[actual] {
            None => true,
            Some(other) => augment(other, fitting, seen, owners),
        };
        if free {
            owners[actual] = Some(expected);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn expected(rows: &[&[(&str, &str)]]) -> Vec<Cells> {
        let cell = |text: &str| if text == "null" { Cell::Null } else { Cell::Text(text.to_owned()) };
        rows.iter().map(|row| row.iter().map(|(name, text)| ((*name).to_owned(), cell(text))).collect()).collect()
    }

    fn charge(customer: &str, item: &str, amount: &str) -> ChargeRow {
        ChargeRow::from([
            ("customer_id".to_owned(), Value::Text(customer.to_owned())),
            ("item".to_owned(), Value::Text(item.to_owned())),
            ("amount".to_owned(), Value::Number(amount.parse().unwrap())),
            ("unit".to_owned(), Value::Null),
            ("window_start".to_owned(), Value::Instant(windows::instant_of_day("2026-09-01", "Europe/London").unwrap())),
        ])
    }

    fn check(rows: &[&[(&str, &str)]], actual: &[ChargeRow], shown: &[&str]) {
        let found: Vec<String> =
            differences(&expected(rows), actual, "Europe/London").iter().map(|difference| difference.to_string()).collect();
        assert_eq!(found, shown);
    }

    #[test]
    fn equal_rows_are_equal_in_any_order_and_by_value() {
        let actual = [charge("acme", "Rooms", "31"), charge("bold", "Rooms", "-0.5")];
        check(
            &[
                &[("customer_id", "bold"), ("amount", "-0.500"), ("unit", "null")],
                &[("amount", "31.00"), ("window_start", "2026-09-01"), ("item", "Rooms")],
            ],
            &actual,
            &[],
        );
        check(&[&[("window_start", "2026-08-31T23:00:00Z")], &[]], &actual, &[]);
        check(&[], &[], &[]);
    }

    #[test]
    fn the_cell_that_differs_is_shown() {
        check(
            &[&[("customer_id", "acme"), ("item", "Rooms"), ("amount", "31.00")]],
            &[charge("acme", "Rooms", "30.5")],
            &["customer_id: acme, item: Rooms\n    amount: 31.00 → 30.50"],
        );
        check(&[&[("amount", "31.00")]], &[charge("acme", "Rooms", "30")], &["the row\n    amount: 31.00 → 30.00"]);
        check(
            &[&[("customer_id", "acme"), ("item", "Rooms"), ("unit", "hour")]],
            &[charge("acme", "Rooms", "1")],
            &["customer_id: acme, item: Rooms\n    unit: hour → null"],
        );
        // A text is compared as a text, a number never as one.
        check(
            &[&[("customer_id", "acme"), ("amount", "thirty")]],
            &[charge("acme", "Rooms", "30")],
            &["customer_id: acme\n    amount: thirty → 30"],
        );
    }

    #[test]
    fn missing_and_unexpected_rows_are_listed() {
        check(
            &[&[("customer_id", "acme"), ("amount", "1")], &[("customer_id", "bold"), ("amount", "2")]],
            &[charge("acme", "Rooms", "1"), charge("core", "Pages", "3"), charge("deli", "Pages", "4")],
            &[
                "missing: amount: 2, customer_id: bold",
                "unexpected: amount: 3, customer_id: core",
                "unexpected: amount: 4, customer_id: deli",
            ],
        );
        check(
            &[],
            &[charge("acme", "Rooms", "1")],
            &["unexpected: amount: 1, customer_id: acme, item: Rooms, window_start: 2026-08-31T23:00:00Z"],
        );
    }

    #[test]
    fn equal_rows_count_as_often_as_they_are_there() {
        let twice: &[&[(&str, &str)]] = &[&[("amount", "1")], &[("amount", "1")]];
        check(twice, &[charge("acme", "Rooms", "1"), charge("bold", "Rooms", "1")], &[]);
        check(twice, &[charge("acme", "Rooms", "1")], &["missing: amount: 1"]);
    }

    #[test]
    fn a_row_of_few_columns_does_not_take_the_only_fit_of_another() {
        let actual = [charge("acme", "Rooms", "5"), charge("acme", "Pages", "7")];
        check(&[&[("customer_id", "acme")], &[("customer_id", "acme"), ("amount", "5")]], &actual, &[]);
    }

    #[test]
    fn rows_are_paired_with_the_most_alike() {
        check(
            &[&[("item", "Rooms"), ("amount", "5")], &[("item", "Pages"), ("amount", "7")]],
            &[charge("acme", "Pages", "8"), charge("acme", "Rooms", "6")],
            &["item: Rooms\n    amount: 5 → 6", "item: Pages\n    amount: 7 → 8"],
        );
    }
}
