//! Columns of files as texts: which can be read, and what stands for a value.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;

/// Whether values of this type are kept to the last digit.
#[must_use]
pub fn is_exact(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => is_exact(value),
        other => {
            other.is_integer()
                || matches!(
                    other,
                    DataType::Utf8
                        | DataType::LargeUtf8
                        | DataType::Utf8View
                        | DataType::Boolean
                        | DataType::Decimal32(..)
                        | DataType::Decimal64(..)
                        | DataType::Decimal128(..)
                        | DataType::Decimal256(..)
                        | DataType::Timestamp(..)
                        | DataType::Date32
                )
        }
    }
}

/// Whether a column of this type can be an attribute. Nested and binary values are left out.
#[must_use]
pub fn is_readable(data_type: &DataType) -> bool {
    is_exact(data_type) || data_type.is_floating()
}

/// Each value of a column by its exact text; null where it has none, as a date has that lies outside of the calendar.
#[must_use]
pub fn texts(column: &ArrayRef) -> StringArray {
    if let Ok(texts) = cast(column, &DataType::Utf8) {
        return texts.as_string::<i32>().clone();
    }
    // One value that cannot be written fails the cast of a whole column, or of a whole dictionary.
    let plain = match column.data_type() {
        DataType::Dictionary(_, value) => cast(column, value).unwrap_or_else(|_| Arc::clone(column)),
        _ => Arc::clone(column),
    };
    let text = |row| {
        cast(&plain.slice(row, 1), &DataType::Utf8).ok().and_then(|text| text.as_string::<i32>().iter().flatten().next().map(str::to_owned))
    };
    (0..plain.len()).map(text).collect()
}

#[cfg(test)]
mod tests {
    use arrow::array::{Date32Array, DictionaryArray, Int8Array, TimestampMillisecondArray};
    use arrow::datatypes::Int8Type;

    use super::*;

    #[test]
    fn a_value_outside_of_the_calendar_has_no_text() {
        let columns: [(ArrayRef, &str); 3] = [
            (Arc::new(Date32Array::from(vec![Some(0), Some(i32::MAX), None])), "1970-01-01"),
            (Arc::new(TimestampMillisecondArray::from(vec![Some(0), Some(i64::MAX), None]).with_timezone("UTC")), "1970-01-01T00:00:00Z"),
            (
                Arc::new(DictionaryArray::<Int8Type>::new(
                    Int8Array::from(vec![Some(1), Some(0), None]),
                    Arc::new(Date32Array::from(vec![i32::MAX, 0])),
                )),
                "1970-01-01",
            ),
        ];
        for (column, expected) in columns {
            assert!(is_readable(column.data_type()));
            assert_eq!(texts(&column).iter().collect::<Vec<_>>(), [Some(expected), None, None]);
        }
    }
}
