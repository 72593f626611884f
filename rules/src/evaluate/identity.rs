//! What tells the charges of one rule and window apart.

use std::collections::HashMap;
use std::fmt::Write;

use arrow::array::{Array, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, TimeUnit};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::hash_utils::{QualityRandomState, create_hashes};
use ratemill_schemas::time::format_instant;

use super::shape::{CHARGE_COLUMNS, is_identity};

/// Instants whose text is kept: those of days and hours come again in many rows.
const INSTANTS_KEPT: usize = 4096;

/// The identities of the charges of one rule and window: `customer_id`, `contract_id`, `item`, `currency` and every
/// further column that is no decimal, each as a text in which no two identities agree.
pub struct Identities<'a> {
    columns: Vec<(String, Values<'a>)>,
}

enum Values<'a> {
    Text(&'a StringArray),
    Instant(&'a TimestampMicrosecondArray, HashMap<i64, String>),
    Shown(&'a dyn Array, ArrayFormatter<'a>, String),
    /// A type that has no text: all its values are one.
    Failed(&'a dyn Array, String),
}

impl<'a> Identities<'a> {
    /// The identities of `charges`, which has the columns of [`super::WindowCharges`].
    #[must_use]
    pub fn of(charges: &'a RecordBatch) -> Self {
        let columns = identity_columns(charges).map(|index| {
            let column = charges.column(index).as_ref();
            let values = match column.data_type() {
                DataType::Utf8 => Values::Text(column.as_string::<i32>()),
                DataType::Timestamp(TimeUnit::Microsecond, _) => Values::Instant(column.as_primitive(), HashMap::new()),
                _ => match ArrayFormatter::try_new(column, &FormatOptions::default()) {
                    Ok(formatter) => Values::Shown(column, formatter, String::new()),
                    Err(error) => Values::Failed(column, error.to_string()),
                },
            };
            (charges.schema().field(index).name().clone(), values)
        });
        Self { columns: columns.collect() }
    }

    /// Writes the identity of a row into `text`, in the place of what was there.
    pub fn write(&mut self, row: usize, text: &mut String) {
        text.clear();
        for (name, values) in &mut self.columns {
            // A column that a rule gained later is null in older charges: absent and null are one.
            let value = match values {
                Values::Text(texts) if texts.is_valid(row) => texts.value(row),
                Values::Instant(instants, known) if instants.is_valid(row) => {
                    let instant = instants.value(row);
                    if known.len() >= INSTANTS_KEPT && !known.contains_key(&instant) {
                        known.clear();
                    }
                    known.entry(instant).or_insert_with(|| format_instant(instant)).as_str()
                }
                Values::Shown(column, formatter, shown) if column.is_valid(row) => {
                    shown.clear();
                    let _ = write!(shown, "{}", formatter.value(row));
                    shown.as_str()
                }
                Values::Failed(column, error) if column.is_valid(row) => error.as_str(),
                _ => continue,
            };
            text.push_str(name);
            text.push('=');
            push_number(text, value.len());
            text.push(':');
            text.push_str(value);
            text.push(';');
        }
    }
}

/// Appends a length in decimal digits: formatting is the larger part of writing an identity.
fn push_number(text: &mut String, number: usize) {
    if number >= 10 {
        push_number(text, number / 10);
    }
    text.push(char::from(b'0' + (number % 10) as u8));
}

impl std::fmt::Debug for Identities<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.columns.iter().map(|(name, _)| name)).finish()
    }
}

fn identity_columns(charges: &RecordBatch) -> impl Iterator<Item = usize> + use<> {
    let schema = charges.schema();
    let further = (CHARGE_COLUMNS.len()..charges.num_columns()).filter(move |index| is_identity(schema.field(*index).data_type()));
    [0, 1, 2, 3].into_iter().chain(further)
}

/// Whether it is sure, without looking at each text, that no identity comes twice.
pub(super) fn surely_distinct(charges: &RecordBatch) -> Result<bool, ArrowError> {
    let plain = |data_type: &DataType| {
        matches!(
            data_type,
            DataType::Utf8 | DataType::Int64 | DataType::Boolean | DataType::Date32 | DataType::Timestamp(TimeUnit::Microsecond, _)
        )
    };
    // Of other types, equal texts may be of unequal values.
    if !identity_columns(charges).all(|index| plain(charges.column(index).data_type())) {
        return Ok(false);
    }
    let columns: Vec<_> = identity_columns(charges).map(|index| charges.column(index)).collect();
    let mut hashes = vec![0; charges.num_rows()];
    create_hashes(columns.iter().copied(), &QualityRandomState::with_seed(0), &mut hashes)?;
    let mut rows: Vec<(u64, u32)> = hashes.into_iter().zip(0..).collect();
    rows.sort_unstable();
    Ok(rows.windows(2).all(|pair| pair[0].0 != pair[1].0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, TimestampMicrosecondArray, new_null_array};
    use arrow::datatypes::{Field, Schema};
    use ratemill_schemas::decimal::DECIMAL;

    use super::*;

    /// Charges of these customers and items with these further columns.
    fn charges(names: &[(&str, &str)], further: Vec<(&str, ArrayRef)>) -> RecordBatch {
        let text = |value: fn(&(&str, &str)) -> String| Arc::new(StringArray::from_iter_values(names.iter().map(value))) as ArrayRef;
        let columns = CHARGE_COLUMNS.iter().map(|name| match *name {
            "customer_id" => (*name, text(|(customer, _)| (*customer).to_owned())),
            "item" => (*name, text(|(_, item)| (*item).to_owned())),
            "currency" => (*name, text(|_| "EUR".to_owned())),
            "amount" | "quantity" | "unit_price" => (*name, new_null_array(&DECIMAL, names.len())),
            _ => (*name, new_null_array(&DataType::Utf8, names.len())),
        });
        let (fields, columns): (Vec<Field>, Vec<ArrayRef>) =
            columns.chain(further).map(|(name, column)| (Field::new(name, column.data_type().clone(), true), column)).unzip();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    }

    fn texts(charges: &RecordBatch) -> Vec<String> {
        let mut identities = Identities::of(charges);
        let text = |row| {
            let mut text = "of another row".to_owned();
            identities.write(row, &mut text);
            text
        };
        (0..charges.num_rows()).map(text).collect()
    }

    #[test]
    fn identities_are_texts_of_what_is_there() {
        let days = TimestampMicrosecondArray::from(vec![Some(0), None, Some(0)]).with_timezone("UTC");
        let numbers = Int64Array::from(vec![None, Some(-7), None]);
        let found = charges(&[("a", "x;y"), ("ä", "x"), ("a", "x;y")], vec![("day", Arc::new(days)), ("number", Arc::new(numbers))]);
        assert_eq!(
            texts(&found),
            [
                "customer_id=1:a;item=3:x;y;currency=3:EUR;day=20:1970-01-01T00:00:00Z;",
                "customer_id=2:ä;item=1:x;currency=3:EUR;number=2:-7;",
                "customer_id=1:a;item=3:x;y;currency=3:EUR;day=20:1970-01-01T00:00:00Z;",
            ]
        );
        assert!(!surely_distinct(&found).unwrap());
        assert!(surely_distinct(&found.slice(0, 2)).unwrap());
    }

    #[test]
    fn values_that_trade_places_are_other_identities() {
        let names: Vec<String> = (0..400).map(|number| number.to_string()).collect();
        let pairs: Vec<(&str, &str)> =
            names.iter().flat_map(|customer| names.iter().take(50).map(move |item| (customer.as_str(), item.as_str()))).collect();
        let found = charges(&pairs, Vec::new());
        assert!(surely_distinct(&found).unwrap());
        let distinct: std::collections::HashSet<String> = texts(&found).into_iter().collect();
        assert_eq!(distinct.len(), pairs.len());
        let again: Vec<(&str, &str)> = pairs.iter().copied().chain([("17", "3")]).collect();
        assert!(!surely_distinct(&charges(&again, Vec::new())).unwrap());
    }
}
