//! The figures that a rule gave against those that the case expects.
//!
//! Scalar figures are columns of the one row with `item` 'total'. Lists and objects are rows with `item` 'part' that
//! have a value in the figure's column: of a list in the order of `position`, of an object told apart by `name`.

use std::collections::BTreeMap;
use std::fmt;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Decimal128Type, Int64Type, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use ratemill_schemas::Decimal;
use ratemill_schemas::decimal::SCALE;
use ratemill_schemas::time::{format_instant, instant_type, parse_instant};
use serde_json::Value;

use super::case::{Case, FigureRounding, scalar_text};
use super::tables::with_offset;

/// What differs from the expected figures, one text for each; `charges` holds one batch per window, in order.
#[must_use]
pub fn mismatches(case: &Case, charges: &[RecordBatch]) -> Vec<String> {
    let lines = match Lines::read(case, charges) {
        Ok(lines) => lines,
        Err(message) => return vec![message],
    };
    let mut found = Vec::new();
    for (figure, expected) in &case.expected {
        let rounding = case.rounding.get(figure).copied();
        let differing = match expected {
            Value::Array(elements) => lines.list(figure, elements, rounding),
            Value::Object(entries) => lines.object(figure, entries, rounding),
            scalar => lines.scalar(figure, scalar, rounding),
        };
        match differing {
            Ok(differing) => found.extend(differing),
            Err(message) => found.push(format!("{figure} expected {}, got {message}", shown(expected))),
        }
    }
    found
}

/// A charge of one window.
#[derive(Debug, Clone, Copy)]
struct Line<'a> {
    window: usize,
    charges: &'a RecordBatch,
    row: usize,
}

/// The charges of a case by kind.
#[derive(Debug, Default)]
struct Lines<'a> {
    totals: Vec<Line<'a>>,
    parts: Vec<Line<'a>>,
}

impl<'a> Lines<'a> {
    fn read(case: &Case, charges: &'a [RecordBatch]) -> Result<Self, String> {
        let mut lines = Self::default();
        for (window, charges) in charges.iter().enumerate() {
            let (customers, items) = (texts(charges, "customer_id")?, texts(charges, "item")?);
            for row in 0..charges.num_rows() {
                let line = Line { window, charges, row };
                if customers.value(row) != case.id {
                    return Err(format!("customer_id is the id of the case, got {}", customers.value(row)));
                }
                match items.value(row) {
                    "total" => lines.totals.push(line),
                    "part" => lines.parts.push(line),
                    other => return Err(format!("item is 'total' or 'part', got '{other}'")),
                }
            }
        }
        Ok(lines)
    }

    fn scalar(&self, figure: &str, expected: &Value, rounding: Option<FigureRounding>) -> Result<Vec<String>, String> {
        let [total] = self.totals.as_slice() else {
            return Err(format!("{} rows with item 'total'", self.totals.len()));
        };
        let found = total.value(figure)?.rounded(rounding)?;
        Ok(found.differing(figure, expected).into_iter().collect())
    }

    fn list(&self, figure: &str, expected: &[Value], rounding: Option<FigureRounding>) -> Result<Vec<String>, String> {
        let mut found = Vec::new();
        for (line, value) in self.parts_with(figure, rounding)? {
            let Figure::Number(position) = line.value("position")? else {
                return Err("a row without a number in `position`".to_owned());
            };
            found.push((line.window, position, value));
        }
        found.sort_by_key(|(window, position, _)| (*window, *position));
        if let Some(pair) = found.windows(2).find(|pair| pair[0].0 == pair[1].0 && pair[0].1 == pair[1].1) {
            return Err(format!("two rows at position {}", pair[0].1));
        }
        if found.len() != expected.len() {
            let values: Vec<String> = found.iter().map(|(.., value)| value.to_string()).collect();
            return Err(format!("{} rows [{}]", values.len(), values.join(", ")));
        }
        let pairs = found.iter().zip(expected).enumerate();
        Ok(pairs.filter_map(|(index, ((.., value), expected))| value.differing(&format!("{figure}[{}]", index + 1), expected)).collect())
    }

    fn object(
        &self,
        figure: &str,
        expected: &serde_json::Map<String, Value>,
        rounding: Option<FigureRounding>,
    ) -> Result<Vec<String>, String> {
        let mut found: BTreeMap<String, Figure> = BTreeMap::new();
        for (line, value) in self.parts_with(figure, rounding)? {
            let Figure::Text(name) = line.value("name")? else {
                return Err("a row without a text in `name`".to_owned());
            };
            if found.contains_key(&name) {
                return Err(format!("two rows of the name {name}"));
            }
            found.insert(name, value);
        }
        let mut differing = Vec::new();
        for (name, expected) in expected {
            match found.remove(name) {
                Some(value) => differing.extend(value.differing(&format!("{figure}.{name}"), expected)),
                None => differing.push(format!("{figure}.{name} expected {}, got nothing", shown(expected))),
            }
        }
        differing.extend(found.iter().map(|(name, value)| format!("{figure}.{name} expected nothing, got {value}")));
        Ok(differing)
    }

    /// The parts that have a value in the column of a figure.
    fn parts_with(&self, figure: &str, rounding: Option<FigureRounding>) -> Result<Vec<(Line<'a>, Figure)>, String> {
        let mut found = Vec::new();
        for line in &self.parts {
            match line.value(figure)?.rounded(rounding)? {
                Figure::Null => {}
                value => found.push((*line, value)),
            }
        }
        Ok(found)
    }
}

fn texts<'a>(charges: &'a RecordBatch, name: &str) -> Result<&'a StringArray, String> {
    charges
        .column_by_name(name)
        .and_then(|column| column.as_string_opt::<i32>())
        .ok_or_else(|| format!("the charges have no text `{name}`"))
}

impl Line<'_> {
    fn value(&self, name: &str) -> Result<Figure, String> {
        let column = self.charges.column_by_name(name).ok_or_else(|| format!("no column `{name}`"))?;
        Figure::read(column, self.row)
    }
}

/// A figure that a rule gave.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Figure {
    Null,
    Number(Decimal),
    Boolean(bool),
    Instant(i64),
    /// Also a date.
    Text(String),
}

impl Figure {
    fn read(column: &ArrayRef, row: usize) -> Result<Self, String> {
        if column.is_null(row) {
            return Ok(Self::Null);
        }
        Ok(match column.data_type() {
            DataType::Null => Self::Null,
            DataType::Decimal128(_, SCALE) => {
                let raw = column.as_primitive::<Decimal128Type>().value(row);
                Self::Number(Decimal::from_raw(raw).map_err(|error| format!("a decimal that {error}"))?)
            }
            DataType::Int64 => Self::Number(Decimal::from_integer(column.as_primitive::<Int64Type>().value(row))),
            DataType::Boolean => Self::Boolean(column.as_boolean().value(row)),
            DataType::Utf8 => Self::Text(column.as_string::<i32>().value(row).to_owned()),
            other if *other == instant_type() => Self::Instant(column.as_primitive::<TimestampMicrosecondType>().value(row)),
            _ => {
                let formatter = ArrayFormatter::try_new(column, &FormatOptions::default()).map_err(|error| error.to_string())?;
                Self::Text(formatter.value(row).to_string())
            }
        })
    }

    fn rounded(self, rounding: Option<FigureRounding>) -> Result<Self, String> {
        match (self, rounding) {
            (Self::Number(number), Some(rounding)) => number
                .round(rounding.places, rounding.mode)
                .map(Self::Number)
                .map_err(|error| format!("{number}, which cannot be rounded: the result {error}")),
            (figure, _) => Ok(figure),
        }
    }

    fn agrees(&self, expected: &Value) -> bool {
        let Ok(text) = scalar_text(expected) else {
            return expected.is_null() && *self == Self::Null;
        };
        match self {
            Self::Null => false,
            Self::Number(number) => text.parse::<Decimal>() == Ok(*number),
            Self::Boolean(truth) => text == truth.to_string(),
            Self::Instant(instant) => parse_instant(&with_offset(&text)) == Ok(*instant),
            Self::Text(found) => text == *found,
        }
    }

    fn differing(&self, name: &str, expected: &Value) -> Option<String> {
        (!self.agrees(expected)).then(|| format!("{name} expected {}, got {self}", shown(expected)))
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Boolean(truth) => write!(f, "{truth}"),
            Self::Instant(instant) => f.write_str(&format_instant(*instant)),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// An expected figure as it stands in the case, texts without quotes.
fn shown(expected: &Value) -> String {
    match expected {
        Value::String(text) => text.clone(),
        Value::Array(elements) => format!("[{}]", elements.iter().map(shown).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::array::{BooleanArray, Date32Array, Decimal128Array, Int64Array, new_null_array};
    use ratemill_schemas::decimal::DECIMAL;
    use ratemill_schemas::windows::days_of_date;
    use serde_json::json;

    use super::*;

    fn texts(values: &[Option<&str>]) -> ArrayRef {
        Arc::new(StringArray::from(values.to_vec()))
    }

    fn decimals(values: &[Option<&str>]) -> ArrayRef {
        let raw = values.iter().map(|value| value.map(|text| text.parse::<Decimal>().unwrap().raw()));
        Arc::new(raw.collect::<Decimal128Array>().with_data_type(DECIMAL))
    }

    fn integers(values: &[Option<i64>]) -> ArrayRef {
        Arc::new(Int64Array::from(values.to_vec()))
    }

    /// Charges of the case `c`: its items, then further columns.
    fn charges(items: &[&str], further: &[(&str, ArrayRef)]) -> RecordBatch {
        let customers = texts(&vec![Some("c"); items.len()]);
        let items = texts(&items.iter().map(|item| Some(*item)).collect::<Vec<_>>());
        let columns = [("customer_id", customers), ("item", items)].into_iter().chain(further.iter().cloned());
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
    }

    fn check(expected: Value, rounding: Value, charges: &[RecordBatch], mismatches_expected: &[&str]) {
        let json = json!({"id": "c", "model": "m", "params": {}, "input": {}, "expected": expected, "rounding": rounding});
        assert_eq!(mismatches(&Case::read(1, json).unwrap(), charges), mismatches_expected);
    }

    #[test]
    fn scalars_are_columns_of_the_total() {
        let total = charges(
            &["total"],
            &[
                ("amount", decimals(&[Some("57.0967")])),
                ("days", integers(&[Some(7)])),
                ("inside", Arc::new(BooleanArray::from(vec![true])) as ArrayRef),
                ("to", Arc::new(Date32Array::from(vec![days_of_date("2026-02-28").unwrap()])) as ArrayRef),
                ("note", texts(&[None])),
                ("empty", new_null_array(&DataType::Null, 1)),
            ],
        );
        let total = std::slice::from_ref(&total);
        let half_up = json!({"amount": {"mode": "half_up", "dp": 2}, "tax": {"mode": "half_up", "dp": 2}});
        check(json!({"amount": "57.10", "days": 7, "inside": true, "to": "2026-02-28"}), half_up.clone(), total, &[]);
        check(json!({"amount": "57.0967", "days": "7"}), Value::Null, total, &[]);
        check(json!({"amount": "57.10"}), Value::Null, total, &["amount expected 57.10, got 57.0967"]);
        check(json!({"amount": "57.09"}), half_up, total, &["amount expected 57.09, got 57.1"]);
        check(
            json!({"days": true, "inside": false}),
            Value::Null,
            total,
            &["days expected true, got 7", "inside expected false, got true"],
        );
        check(json!({"empty": "0", "note": "x"}), Value::Null, total, &["empty expected 0, got null", "note expected x, got null"]);
        check(json!({"packages": "2"}), Value::Null, total, &["packages expected 2, got no column `packages`"]);
        let negative = json!({"amount": {"mode": "ceil", "dp": -1}});
        check(json!({"amount": "60"}), negative, total, &[]);
    }

    #[test]
    fn there_is_one_total_of_the_case() {
        let amount = |values: &[Option<&str>]| [("amount", decimals(values))];
        let two = [charges(&["total"], &amount(&[Some("1")])), charges(&["total"], &amount(&[Some("1")]))];
        check(json!({"amount": "1"}), Value::Null, &two, &["amount expected 1, got 2 rows with item 'total'"]);
        check(json!({"amount": "1"}), Value::Null, &[], &["amount expected 1, got 0 rows with item 'total'"]);
        let stray = [charges(&["usage"], &amount(&[Some("1")]))];
        check(json!({"amount": "1"}), Value::Null, &stray, &["item is 'total' or 'part', got 'usage'"]);
    }

    #[test]
    fn lists_are_parts_in_order_of_position() {
        let parts = charges(
            &["part", "total", "part", "part"],
            &[
                ("position", integers(&[Some(2), None, Some(1), Some(3)])),
                ("nets", decimals(&[Some("6.666"), None, Some("0"), None])),
                ("tiers", decimals(&[None, None, None, Some("4")])),
            ],
        );
        let parts = std::slice::from_ref(&parts);
        let half_up = json!({"nets": {"mode": "half_up", "dp": 2}});
        check(json!({"nets": ["0", "6.67"], "tiers": ["4"]}), half_up.clone(), parts, &[]);
        check(json!({"nets": ["0", "6.66"]}), half_up.clone(), parts, &["nets[2] expected 6.66, got 6.67"]);
        check(json!({"nets": ["0"]}), half_up, parts, &["nets expected [0], got 2 rows [0, 6.67]"]);
        let one = |position| charges(&["part"], &[("position", integers(&[position])), ("nets", decimals(&[Some("5")]))]);
        check(json!({"nets": ["5", "5"]}), Value::Null, &[one(Some(1)), one(Some(1))], &[]);
        check(json!({"nets": ["5"]}), Value::Null, &[one(None)], &["nets expected [5], got a row without a number in `position`"]);
    }

    #[test]
    fn objects_are_parts_by_name() {
        let parts =
            charges(&["part", "part"], &[("name", texts(&[Some("eu"), Some("us")])), ("amounts", decimals(&[Some("10"), Some("20")]))]);
        let parts = std::slice::from_ref(&parts);
        check(json!({"amounts": {"us": "20", "eu": "10"}}), Value::Null, parts, &[]);
        let expected = ["amounts.ap expected 1, got nothing", "amounts.eu expected 11, got 10", "amounts.us expected nothing, got 20"];
        check(json!({"amounts": {"ap": "1", "eu": "11"}}), Value::Null, parts, &expected);
    }
}
