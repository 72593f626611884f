//! Adopted files: large Parquet files whose bytes the lake keeps as they came, and whose rows are usage from there.
//!
//! A file is adopted when each of its columns becomes one of usage without a loss, and each of its rows is good. Then no
//! row is written again: the log holds the file's name and range, and readers of `usage` read the file.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Date32Array, Int64Array, MapArray, RecordBatch, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use serde::{Deserialize, Serialize};

use crate::changes::is_change;
use crate::decimal::{DECIMAL, PRECISION, SCALE};
use crate::exact_text::{is_readable, texts};
use crate::time::{EARLIEST, day_of, instant_type};
use crate::usage::{DimensionType, FIELD_BYTES_MAX, UsageSchema, attributes_type};

/// Where a text column of usage comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextSource {
    /// A column of the file.
    Column(String),
    /// The same text for each row.
    Constant(String),
}

impl TextSource {
    fn column(&self) -> Option<&str> {
        match self {
            Self::Column(name) => Some(name),
            Self::Constant(_) => None,
        }
    }
}

/// Which columns of the file become which of usage; all others are attributes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedColumns {
    /// `source`.
    pub source: TextSource,
    /// `id`.
    pub id: String,
    /// `meter`.
    pub meter: TextSource,
    /// `subject`.
    pub subject: TextSource,
    /// `time`.
    pub time: String,
    /// `end`, where the file has it.
    pub end: Option<String>,
    /// `quantity`.
    pub quantity: String,
    /// Declared dimensions that the file has, each with the column that it comes from.
    pub dimensions: Vec<(String, String)>,
}

/// A file that is usage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedFile {
    /// SHA-256 of its content in hexadecimal: its name in the lake.
    pub content_hash: String,
    /// Its bytes.
    pub bytes: u64,
    /// Its rows, those left out included: row `n` has the log position of the first row plus `n`.
    pub rows: u64,
    /// Its earliest event time, µs UTC.
    pub time_min: i64,
    /// Its latest event time, µs UTC.
    pub time_max: i64,
    /// Its columns.
    pub columns: AdoptedColumns,
}

impl AdoptedFile {
    /// The path of the file with this content below the lake's root.
    #[must_use]
    pub fn path(content_hash: &str) -> String {
        format!("adopted_files/{content_hash}.parquet")
    }
}

/// Columns of the `adopted` table: `adopted_at`, `content_hash`, `log_position` (of the first row), `rows`, `left_out`
/// (row numbers that are no usage because their events were there before, as a JSON list), `file` (the rest as JSON).
#[must_use]
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("adopted_at", instant_type(), false),
        Field::new("content_hash", DataType::Utf8, false),
        Field::new("log_position", DataType::Int64, false),
        Field::new("rows", DataType::Int64, false),
        Field::new("left_out", DataType::Utf8, false),
        Field::new("file", DataType::Utf8, false),
    ]))
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, value) => is_text(value),
        _ => false,
    }
}

/// Instants in UTC that microseconds hold exactly.
fn is_instant(data_type: &DataType) -> bool {
    let DataType::Timestamp(unit, Some(zone)) = data_type else { return false };
    *unit != TimeUnit::Nanosecond && ["UTC", "Z", "+00:00"].contains(&zone.as_ref())
}

/// Decimals and whole numbers that the decimal of usage holds, whatever their value.
fn is_quantity(data_type: &DataType) -> bool {
    match data_type {
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) | DataType::Decimal128(precision, scale) => {
            let whole = i16::from(*precision) - i16::from(*scale);
            (0..=SCALE).contains(scale) && whole <= i16::from(PRECISION) - i16::from(SCALE)
        }
        other => other.is_integer(),
    }
}

impl AdoptedColumns {
    /// Whether every column that is used has a type that becomes the one of usage without a loss.
    #[must_use]
    pub fn fit(&self, file: &Schema, usage: &UsageSchema) -> bool {
        let is = |name: &str, fits: fn(&DataType) -> bool| file.field_with_name(name).is_ok_and(|field| fits(field.data_type()));
        let texts = [self.source.column(), Some(self.id.as_str()), self.meter.column(), self.subject.column()];
        let of_dimension = |kind: DimensionType| -> fn(&DataType) -> bool {
            match kind {
                DimensionType::Text => is_text,
                DimensionType::Integer => |found| *found == DataType::Int64,
                DimensionType::Decimal => is_quantity,
                DimensionType::Boolean => |found| *found == DataType::Boolean,
                DimensionType::Timestamp => is_instant,
            }
        };
        let dimensions_fit = self.dimensions.iter().all(|(name, column)| {
            let declared = usage.dimensions().iter().find(|dimension| dimension.name == *name);
            declared.is_some_and(|dimension| is(column, of_dimension(dimension.kind)))
        });
        texts.into_iter().flatten().all(|name| is(name, is_text))
            && is(&self.time, is_instant)
            && self.end.as_ref().is_none_or(|end| is(end, is_instant))
            && is(&self.quantity, is_quantity)
            && dimensions_fit
            && file.fields().iter().enumerate().all(|(index, field)| file.index_of(field.name()).is_ok_and(|found| found == index))
    }

    /// Whether a column of the file is an attribute: its rows must be readable as long as the lake has them, so that what
    /// cannot be written as text is left out.
    fn keeps(&self, field: &Field) -> bool {
        !self.uses(field.name()) && is_readable(field.data_type())
    }

    /// Whether a column of the file feeds a column of usage, so that it is no attribute.
    fn uses(&self, name: &str) -> bool {
        let texts = [self.source.column(), self.meter.column(), self.subject.column(), self.end.as_deref()];
        [self.id.as_str(), &self.time, &self.quantity].contains(&name)
            || texts.into_iter().flatten().any(|used| used == name)
            || self.dimensions.iter().any(|(_, column)| column == name)
    }

    /// The columns of the file that are needed for these columns of usage, by their places.
    #[must_use]
    pub fn needed(&self, file: &Schema, wanted: &Schema) -> Vec<usize> {
        let is_needed = |found: &Field| {
            let name = found.name().as_str();
            wanted.fields().iter().any(|field| match field.name().as_str() {
                "source" => self.source.column() == Some(name),
                "id" => self.id == name,
                "meter" => self.meter.column() == Some(name),
                "subject" => self.subject.column() == Some(name),
                "time" | "day" => self.time == name,
                "end" => self.end.as_deref() == Some(name),
                "quantity" => self.quantity == name,
                "attributes" => self.keeps(found),
                other => self.dimensions.iter().any(|(dimension, column)| dimension == other && column == name),
            })
        };
        (0..file.fields().len()).filter(|index| is_needed(file.field(*index))).collect()
    }

    /// Rows of the file as the `wanted` columns of usage. `positions` are their log positions, where they are
    /// wanted, `ingested_at` the instant of their frame, µs UTC.
    ///
    /// # Errors
    /// When a column is missing or cannot be converted, which [`Self::fit`] excludes.
    pub fn to_usage(
        &self,
        batch: &RecordBatch,
        wanted: &SchemaRef,
        positions: &[i64],
        ingested_at: i64,
    ) -> Result<RecordBatch, ArrowError> {
        let rows = batch.num_rows();
        let column = |name: &str| {
            batch.column_by_name(name).ok_or_else(|| ArrowError::SchemaError(format!("the adopted file has no column `{name}`")))
        };
        let text = |source: &TextSource| match source {
            TextSource::Column(name) => exact(column(name)?, &DataType::Utf8),
            TextSource::Constant(constant) => Ok(Arc::new(StringArray::from_iter_values(std::iter::repeat_n(constant, rows))) as ArrayRef),
        };
        let columns = wanted.fields().iter().map(|field| -> Result<ArrayRef, ArrowError> {
            match field.name().as_str() {
                "source" => text(&self.source),
                "id" => exact(column(&self.id)?, &DataType::Utf8),
                "meter" => text(&self.meter),
                "subject" => text(&self.subject),
                "time" => exact(column(&self.time)?, &instant_type()),
                "quantity" => exact(column(&self.quantity)?, &DECIMAL),
                "end" => match &self.end {
                    Some(end) => exact(column(end)?, &instant_type()),
                    None => Ok(arrow::array::new_null_array(&instant_type(), rows)),
                },
                "attributes" => self.attributes(batch),
                "ingested_at" => Ok(Arc::new(TimestampMicrosecondArray::from_value(ingested_at, rows).with_timezone("UTC"))),
                "log_position" => Ok(Arc::new(Int64Array::from(positions.to_vec()))),
                "day" => {
                    let times = exact(column(&self.time)?, &instant_type())?;
                    let days: Date32Array = times.as_primitive::<TimestampMicrosecondType>().unary(day_of);
                    Ok(Arc::new(days))
                }
                other => match self.dimensions.iter().find(|(dimension, _)| dimension == other) {
                    Some((_, from)) => exact(column(from)?, field.data_type()),
                    None => Ok(arrow::array::new_null_array(field.data_type(), rows)),
                },
            }
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(wanted), columns, &options)
    }

    /// Every column that is not used and can be read, where it has a value, by its exact text.
    fn attributes(&self, batch: &RecordBatch) -> Result<ArrayRef, ArrowError> {
        let DataType::Map(entries, _) = attributes_type() else { unreachable!("attributes are a map") };
        let DataType::Struct(fields) = entries.data_type() else { unreachable!("a map has entries") };
        let schema = batch.schema();
        let kept = schema.fields().iter().zip(batch.columns()).filter(|(field, _)| self.keeps(field));
        let columns: Vec<(&str, StringArray)> = kept.map(|(field, column)| (field.name().as_str(), texts(column))).collect();
        let (mut keys, mut values) = (arrow::array::StringBuilder::new(), arrow::array::StringBuilder::new());
        let mut lengths = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            let mut entries = 0;
            for (name, column) in columns.iter().filter(|(_, column)| column.is_valid(row)) {
                keys.append_value(name);
                values.append_value(column.value(row));
                entries += 1;
            }
            lengths.push(entries);
        }
        let entries_array = StructArray::try_new(fields.clone(), vec![Arc::new(keys.finish()), Arc::new(values.finish())], None)?;
        let map = MapArray::try_new(Arc::clone(&entries), OffsetBuffer::from_lengths(lengths), entries_array, None, false)?;
        Ok(Arc::new(map))
    }
}

fn exact(column: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    if column.data_type() == to {
        return Ok(Arc::clone(column));
    }
    cast_with_options(column, to, &CastOptions { safe: false, ..CastOptions::default() })
}

/// Whether every row of usage, in the decoded columns but for its attributes, passes the checks that all transports share;
/// `time_limit` (µs UTC) is the first instant that lies too far in the future.
#[must_use]
pub fn all_good(batch: &RecordBatch, time_limit: i64) -> bool {
    let texts_are_good = ["source", "id", "meter", "subject"].into_iter().all(|name| {
        let Some(texts) = batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>()) else { return false };
        let offsets = texts.value_offsets();
        let (Some(first), Some(last)) = (offsets.first(), offsets.last()) else { return true };
        let bounds = usize::try_from(*first).ok().zip(usize::try_from(*last).ok());
        let bytes = bounds.and_then(|(first, last)| texts.value_data().get(first..last)).unwrap_or_default();
        let lengths_are_good = offsets.windows(2).all(|pair| (1..=FIELD_BYTES_MAX as i32).contains(&(pair[1] - pair[0])));
        // Without a branch for each byte, which the processor takes many of at once.
        let has_control = bytes.iter().fold(false, |found, byte| found | (*byte < 0x20) | (*byte == 0x7f));
        texts.null_count() == 0 && lengths_are_good && !has_control
    });
    let instants = |name: &str| batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
    let (Some(times), Some(ends)) = (instants("time"), instants("end")) else { return false };
    let times_are_good = times.null_count() == 0 && times.values().iter().all(|time| (EARLIEST..time_limit).contains(time));
    let ends_are_good = ends.null_count() == ends.len()
        || times.values().iter().zip(ends).all(|(time, end)| end.is_none_or(|end| (*time..time_limit).contains(&end)));
    let quantities_are_there = batch.column_by_name("quantity").is_some_and(|column| column.null_count() == 0);
    let no_change = || batch.column_by_name("meter").is_some_and(|meters| !meters.as_string::<i32>().iter().flatten().any(is_change));
    texts_are_good && times_are_good && ends_are_good && quantities_are_there && no_change()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::{Decimal128Array, Int32Array, TimestampMillisecondArray};

    use super::*;
    use crate::usage::Dimension;

    fn columns() -> AdoptedColumns {
        AdoptedColumns {
            source: TextSource::Constant("drop".to_owned()),
            id: "uuid".to_owned(),
            meter: TextSource::Column("type".to_owned()),
            subject: TextSource::Column("who".to_owned()),
            time: "at".to_owned(),
            end: None,
            quantity: "value".to_owned(),
            dimensions: vec![("region".to_owned(), "where".to_owned())],
        }
    }

    fn file(time: i64, meter: &str, id: &str) -> RecordBatch {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("uuid", Arc::new(StringArray::from(vec![id, "b"]))),
            ("type", Arc::new(StringArray::from(vec![meter, "kwh"]))),
            ("who", Arc::new(StringArray::from(vec!["m1", "m2"]))),
            ("at", Arc::new(TimestampMillisecondArray::from(vec![time / 1000, EARLIEST / 1000 + 5]).with_timezone("UTC"))),
            ("value", Arc::new(Decimal128Array::from(vec![12_345, 5]).with_precision_and_scale(18, 4).unwrap())),
            ("where", Arc::new(StringArray::from(vec![Some("eu"), None]))),
            ("floor", Arc::new(Int32Array::from(vec![None, Some(3)]))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    #[test]
    fn rows_of_a_file_are_usage() {
        let schema = UsageSchema::new(vec![Dimension { name: "region".to_owned(), kind: DimensionType::Text }]);
        let batch = file(EARLIEST, "kwh", "a");
        assert!(columns().fit(batch.schema_ref(), &schema));
        let usage = columns().to_usage(&batch, schema.stored(), &[100, 102], 7).unwrap();
        let shown = String::from_utf8(crate::usage::row_as_json(&usage, 0)).unwrap();
        assert!(
            shown.contains(r#""quantity":"1.2345""#) && shown.contains(r#""region":"eu""#) && shown.contains(r#""source":"drop""#),
            "{shown}"
        );
        assert_eq!(
            usage.column_by_name("log_position").unwrap().as_primitive::<arrow::datatypes::Int64Type>().values().to_vec(),
            [100, 102]
        );
        let attributes = usage.column_by_name("attributes").unwrap().as_map();
        assert_eq!((attributes.value(0).len(), attributes.value(1).len()), (0, 1));
        assert_eq!(attributes.values().as_string::<i32>().value(0), "3");
        let needed = columns().needed(batch.schema_ref(), &schema.stored().project(&[2, 5]).unwrap());
        assert_eq!(needed, [1, 4]);
    }

    #[test]
    fn columns_without_a_text_stand_in_no_rows_way() {
        use arrow::array::{BinaryViewArray, DictionaryArray, FixedSizeBinaryArray, Int8Array};
        let schema = UsageSchema::new(Vec::new());
        let columns = AdoptedColumns { dimensions: Vec::new(), ..columns() };
        let uuids: ArrayRef = Arc::new(FixedSizeBinaryArray::try_from_iter([[0xff_u8; 16], [1; 16]].into_iter()).unwrap());
        let indexed = DictionaryArray::<arrow::datatypes::Int8Type>::new(Int8Array::from(vec![0, 1]), Arc::clone(&uuids));
        let file = file(EARLIEST, "kwh", "a");
        let unreadable: Vec<(&str, ArrayRef)> = vec![
            ("device", uuids),
            ("indexed", Arc::new(indexed)),
            ("raw", Arc::new(BinaryViewArray::from_iter_values([b"\xff\xfe", b"ok"]))),
            ("until", Arc::new(TimestampMicrosecondArray::from(vec![i64::MAX, 0]).with_timezone("UTC"))),
        ];
        let all = file.schema().fields().iter().map(|field| field.name().clone()).zip(file.columns().iter().cloned()).collect::<Vec<_>>();
        let all = all.into_iter().chain(unreadable.into_iter().map(|(name, column)| (name.to_owned(), column)));
        let batch = RecordBatch::try_from_iter(all).unwrap();
        assert!(columns.fit(batch.schema_ref(), &schema));
        let usage = columns.to_usage(&batch, schema.stored(), &[100, 101], 7).unwrap();
        let attributes = usage.column_by_name("attributes").unwrap().as_map();
        let names = |row: usize| attributes.value(row).column(0).as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!((names(0), names(1)), (vec!["where".to_owned()], vec!["floor".to_owned(), "until".to_owned()]));
        let attributes = schema.stored().project(&[schema.stored().index_of("attributes").unwrap()]).unwrap();
        let read: Vec<String> =
            columns.needed(batch.schema_ref(), &attributes).into_iter().map(|index| batch.schema().field(index).name().clone()).collect();
        assert_eq!(read, ["where", "floor", "until"]);
    }

    #[test]
    fn a_bad_row_is_seen() {
        let schema = UsageSchema::new(vec![Dimension { name: "region".to_owned(), kind: DimensionType::Text }]);
        let good = |batch: &RecordBatch| {
            let usage = columns().to_usage(batch, schema.decoded(), &[], 0).unwrap();
            all_good(&usage, EARLIEST + 1_000_000)
        };
        assert!(good(&file(EARLIEST, "kwh", "a")));
        for bad in [
            file(EARLIEST - 1000, "kwh", "a"),
            file(EARLIEST + 1_000_000, "kwh", "a"),
            file(EARLIEST, "ratemill.void", "a"),
            file(EARLIEST, "kwh", ""),
            file(EARLIEST, "kw\nh", "a"),
            file(EARLIEST, "kwh", &"x".repeat(FIELD_BYTES_MAX + 1)),
        ] {
            assert!(!good(&bad));
        }
    }

    #[test]
    fn types_that_lose_something_do_not_fit() {
        let schema = UsageSchema::new(Vec::new());
        let mut columns = columns();
        columns.dimensions.clear();
        let batch = file(EARLIEST, "kwh", "a");
        assert!(columns.fit(batch.schema_ref(), &schema));
        for (name, to) in [
            ("value", DataType::Float64),
            ("value", DataType::Decimal128(38, 10)),
            ("at", DataType::Timestamp(TimeUnit::Microsecond, None)),
            ("at", DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))),
            ("who", DataType::Int64),
        ] {
            let fields: Vec<Field> = batch
                .schema()
                .fields()
                .iter()
                .map(|field| if field.name() == name { Field::new(name, to.clone(), true) } else { field.as_ref().clone() })
                .collect();
            assert!(!columns.fit(&Schema::new(fields), &schema), "{name} {to}");
        }
    }
}
