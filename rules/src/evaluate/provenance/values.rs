//! Values as JSON: decimals and instants as exact texts.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use serde_json::Value;

use crate::evaluate::shape::as_json;

/// A value, lists and structs with what is in them.
pub(super) fn value(array: &ArrayRef, row: usize) -> Result<Value, ArrowError> {
    if array.is_null(row) || array.data_type().is_null() {
        return Ok(Value::Null);
    }
    match array.data_type() {
        DataType::List(_) => {
            let elements = array.as_list::<i32>().value(row);
            (0..elements.len()).map(|element| value(&elements, element)).collect::<Result<_, _>>().map(Value::Array)
        }
        DataType::Struct(fields) => {
            let members = array.as_struct();
            let mut object = serde_json::Map::new();
            for (field, column) in fields.iter().zip(members.columns()) {
                if column.is_valid(row) {
                    object.insert(field.name().clone(), value(column, row)?);
                }
            }
            Ok(Value::Object(object))
        }
        _ => as_json(array, row),
    }
}

/// The first rows as objects of what is not null.
pub(super) fn objects(batch: &RecordBatch, rows_max: usize) -> Result<Vec<Value>, ArrowError> {
    (0..batch.num_rows().min(rows_max))
        .map(|row| {
            let mut object = serde_json::Map::new();
            for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                if column.is_valid(row) {
                    object.insert(field.name().clone(), value(column, row)?);
                }
            }
            Ok(Value::Object(object))
        })
        .collect()
}
