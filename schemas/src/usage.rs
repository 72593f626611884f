//! The `usage` table and the batches that connectors make for it.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayBuilder, ArrayRef, AsArray, BooleanBuilder, Decimal128Builder, Int64Builder, MapBuilder, MapFieldNames, RecordBatch,
    StringBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Decimal128Type, Field, Fields, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;

use crate::changes::{ChangeKey, is_change};
use crate::decimal::{DECIMAL, Decimal, PRECISION, SCALE};
use crate::identity::{EventHasher, EventKey};
use crate::rejected::{Reason, Rejection};
use crate::time::{EARLIEST, format_instant, instant_type, parse_instant};

/// Longest `source`, `id`, `meter` or `subject` in bytes.
pub const FIELD_BYTES_MAX: usize = 1024;

/// Type of a declared dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DimensionType {
    /// UTF-8 text.
    Text,
    /// 64-bit whole number.
    Integer,
    /// `Decimal128(38, 18)`.
    Decimal,
    /// `true` or `false`.
    Boolean,
    /// An instant in RFC 3339.
    Timestamp,
}

impl DimensionType {
    /// The Arrow type of the column.
    #[must_use]
    pub fn arrow(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Integer => DataType::Int64,
            Self::Decimal => DECIMAL,
            Self::Boolean => DataType::Boolean,
            Self::Timestamp => instant_type(),
        }
    }

    /// Reads a value of this type from its text.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse<'a>(self, text: Cow<'a, str>) -> Result<DimensionValue<'a>, String> {
        Ok(match self {
            Self::Text => DimensionValue::Text(text),
            Self::Integer => DimensionValue::Integer(text.parse().map_err(|_| format!("`{text}` is not a whole number"))?),
            Self::Decimal => DimensionValue::Decimal(text.parse().map_err(|error| format!("`{text}` {error}"))?),
            Self::Boolean => DimensionValue::Boolean(text.parse().map_err(|_| format!("`{text}` is neither true nor false"))?),
            Self::Timestamp => DimensionValue::Timestamp(parse_instant(&text).map_err(|error| format!("`{text}` {error}"))?),
        })
    }
}

/// One value of a declared dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DimensionValue<'a> {
    /// Not given.
    Null,
    /// Of type text.
    Text(Cow<'a, str>),
    /// Of type integer.
    Integer(i64),
    /// Of type decimal.
    Decimal(Decimal),
    /// Of type boolean.
    Boolean(bool),
    /// Of type timestamp, µs UTC.
    Timestamp(i64),
}

/// A dimension that the project declares: a typed column of `usage`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dimension {
    /// Column name.
    pub name: String,
    /// Column type.
    pub kind: DimensionType,
}

/// The canonical usage schema with the project's dimensions.
#[derive(Debug, Clone)]
pub struct UsageSchema {
    dimensions: Vec<Dimension>,
    decoded: SchemaRef,
    stored: SchemaRef,
}

/// Columns of `usage` that no dimension may be called after.
pub const RESERVED: [&str; 11] =
    ["source", "id", "meter", "subject", "time", "quantity", "end", "attributes", "ingested_at", "log_position", "day"];

impl UsageSchema {
    /// Columns `source`, `id`, `meter`, `subject`, `time`, `quantity`, `end`, the dimensions in declared order,
    /// `attributes`; stored rows also have `ingested_at`, `log_position` and the partition `day`.
    #[must_use]
    pub fn new(dimensions: Vec<Dimension>) -> Self {
        let mut fields = vec![
            Field::new("source", DataType::Utf8, false),
            Field::new("id", DataType::Utf8, false),
            Field::new("meter", DataType::Utf8, false),
            Field::new("subject", DataType::Utf8, false),
            Field::new("time", instant_type(), false),
            Field::new("quantity", DECIMAL, false),
            Field::new("end", instant_type(), true),
        ];
        fields.extend(dimensions.iter().map(|dimension| Field::new(&dimension.name, dimension.kind.arrow(), true)));
        fields.push(Field::new("attributes", attributes_type(), false));
        let decoded = Arc::new(Schema::new(fields.clone()));
        fields.push(Field::new("ingested_at", instant_type(), false));
        fields.push(Field::new("log_position", DataType::Int64, false));
        fields.push(Field::new("day", DataType::Date32, false));
        Self { dimensions, decoded, stored: Arc::new(Schema::new(fields)) }
    }

    /// The declared dimensions.
    #[must_use]
    pub fn dimensions(&self) -> &[Dimension] {
        &self.dimensions
    }

    /// What a connector makes and the log holds.
    #[must_use]
    pub fn decoded(&self) -> &SchemaRef {
        &self.decoded
    }

    /// What the `usage` table holds: the decoded columns, `ingested_at`, `log_position`, `day`.
    #[must_use]
    pub fn stored(&self) -> &SchemaRef {
        &self.stored
    }

    /// Identity and content keys of rows of `usage`, for rebuilding the index. Columns go by their names; a dimension
    /// that was declared later is null in older rows, and a null says nothing.
    ///
    /// # Errors
    /// When a column is missing that every event has, or a dimension changed its type.
    pub fn keys(&self, batch: &RecordBatch, hasher: &EventHasher) -> Result<Vec<EventKey>, ArrowError> {
        let column =
            |name: &str| batch.column_by_name(name).ok_or_else(|| ArrowError::SchemaError(format!("usage has no column `{name}`")));
        let text = |name: &str| -> Result<&arrow::array::StringArray, ArrowError> { Ok(column(name)?.as_string::<i32>()) };
        let (source, id, meter, subject) = (text("source")?, text("id")?, text("meter")?, text("subject")?);
        let time = column("time")?.as_primitive::<TimestampMicrosecondType>();
        let quantity = column("quantity")?.as_primitive::<Decimal128Type>();
        let end = column("end")?.as_primitive::<TimestampMicrosecondType>();
        let mut dimensions = Vec::new();
        for dimension in &self.dimensions {
            if let Some(column) = batch.column_by_name(&dimension.name) {
                if *column.data_type() != dimension.kind.arrow() {
                    let message =
                        format!("dimension `{}` was {}, declared is {}", dimension.name, column.data_type(), dimension.kind.arrow());
                    return Err(ArrowError::SchemaError(message));
                }
                dimensions.push((dimension, column));
            }
        }
        Ok((0..batch.num_rows())
            .map(|row| {
                let mut content = hasher.content();
                content.text(meter.value(row));
                content.text(subject.value(row));
                content.number(Some(i128::from(time.value(row))));
                content.number(end.is_valid(row).then(|| i128::from(end.value(row))));
                content.number(Some(quantity.value(row)));
                for (dimension, column) in &dimensions {
                    if column.is_null(row) {
                        continue;
                    }
                    content.text(&dimension.name);
                    match dimension.kind {
                        DimensionType::Text => content.text(column.as_string::<i32>().value(row)),
                        DimensionType::Integer => content.number(Some(i128::from(column.as_primitive::<Int64Type>().value(row)))),
                        DimensionType::Decimal => content.number(Some(column.as_primitive::<Decimal128Type>().value(row))),
                        DimensionType::Boolean => content.number(Some(i128::from(column.as_boolean().value(row)))),
                        DimensionType::Timestamp => {
                            content.number(Some(i128::from(column.as_primitive::<TimestampMicrosecondType>().value(row))));
                        }
                    }
                }
                EventKey { identity: hasher.identity(source.value(row), id.value(row)), content: content.finish() }
            })
            .collect())
    }
}

pub(crate) fn attribute_fields() -> MapFieldNames {
    MapFieldNames { entry: "key_value".to_owned(), key: "key".to_owned(), value: "value".to_owned() }
}

/// `Map<Utf8, Utf8>` as Delta and Parquet name it.
#[must_use]
pub fn attributes_type() -> DataType {
    let names = attribute_fields();
    let entries = Fields::from(vec![Field::new(names.key, DataType::Utf8, false), Field::new(names.value, DataType::Utf8, true)]);
    DataType::Map(Arc::new(Field::new(names.entry, DataType::Struct(entries), false)), false)
}

/// One event on its way into a batch.
#[derive(Debug)]
pub struct UsageEvent<'a> {
    /// CloudEvents `source`.
    pub source: &'a str,
    /// CloudEvents `id`.
    pub id: &'a str,
    /// What was used: CloudEvents `type`.
    pub meter: &'a str,
    /// Who or what used it.
    pub subject: &'a str,
    /// When, µs UTC; of an interval its start.
    pub time: i64,
    /// How much.
    pub quantity: Decimal,
    /// End of an interval, µs UTC.
    pub end: Option<i64>,
    /// One value per declared dimension, in declared order.
    pub dimensions: &'a [DimensionValue<'a>],
    /// Every other field, by name.
    pub attributes: &'a [(Cow<'a, str>, Cow<'a, str>)],
}

/// A decoded submission: the good rows as a batch, the bad ones as rejections.
#[derive(Debug)]
pub struct UsageBatch {
    /// Rows of [`UsageSchema::decoded`].
    pub batch: RecordBatch,
    /// Identity and content of each row.
    pub keys: Vec<EventKey>,
    /// Voids and amendments, in the schema of [`crate::changes::decoded`].
    pub changes: Option<RecordBatch>,
    /// What makes each change the same change.
    pub change_keys: Vec<ChangeKey>,
    /// Index of each row in what was submitted; changes follow the rows of usage here, in `positions`, `raw` and verdicts.
    pub rows: Vec<u32>,
    /// Where each row stood in its transport, for the rejected table; parallel to `rows`.
    pub positions: Positions,
    /// The bytes of each row as they came, where they are kept.
    pub raw: RawRecords,
    /// Records that were not accepted.
    pub rejections: Vec<Rejection>,
    /// Highest event time of the rows, µs UTC.
    pub time_max: Option<i64>,
}

/// How the position of a row is told.
#[derive(Debug, Clone)]
pub enum Positions {
    /// `event N`, counted from 0 as in the answer.
    Index,
    /// `PATH line N`.
    Line {
        /// The file.
        path: Arc<str>,
        /// Line of each row, from 1.
        lines: Vec<u64>,
    },
    /// `topic T`.
    Topic(Vec<Arc<str>>),
}

impl Positions {
    /// The position of row `row` whose submitted index is `index`.
    #[must_use]
    pub fn describe(&self, row: usize, index: u32) -> String {
        match self {
            Self::Index => format!("event {index}"),
            Self::Line { path, lines } => format!("{path} line {}", lines.get(row).copied().unwrap_or_default()),
            Self::Topic(topics) => format!("topic {}", topics.get(row).map_or("", |topic| topic)),
        }
    }
}

/// The bytes of the rows as they came.
#[derive(Debug, Clone)]
pub enum RawRecords {
    /// Rows came in a columnar file: the raw record is written from the columns.
    Columns,
    /// Each row is a slice of one body.
    Slices {
        /// The body.
        body: Arc<[u8]>,
        /// Start and end of each row.
        ranges: Vec<(u32, u32)>,
    },
    /// Each row is a message of its own.
    Messages(Vec<Arc<[u8]>>),
}

impl UsageBatch {
    /// Source and id of row `row`; changes follow usage.
    #[must_use]
    pub fn identity_of(&self, row: usize) -> [String; 2] {
        let usage = self.batch.num_rows();
        let (batch, row) = if row < usage { (Some(&self.batch), row) } else { (self.changes.as_ref(), row - usage) };
        [0, 1].map(|column| batch.map(|batch| batch.column(column).as_string::<i32>().value(row).to_owned()).unwrap_or_default())
    }

    /// The raw record of row `row`.
    #[must_use]
    pub fn raw_of(&self, row: usize) -> Vec<u8> {
        match &self.raw {
            RawRecords::Columns => row_as_json(&self.batch, row),
            RawRecords::Slices { body, ranges } => {
                let (start, end) = ranges[row];
                body[start as usize..end as usize].to_vec()
            }
            RawRecords::Messages(messages) => messages[row].to_vec(),
        }
    }

    /// A submission without any row.
    #[must_use]
    pub fn empty(schema: &UsageSchema) -> Self {
        Self {
            batch: RecordBatch::new_empty(schema.decoded.clone()),
            keys: Vec::new(),
            changes: None,
            change_keys: Vec::new(),
            rows: Vec::new(),
            positions: Positions::Index,
            raw: RawRecords::Columns,
            rejections: Vec::new(),
            time_max: None,
        }
    }

    /// A copy that shares the columns, for trying a submission again.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self {
            batch: self.batch.clone(),
            keys: self.keys.clone(),
            changes: self.changes.clone(),
            change_keys: self.change_keys.clone(),
            rows: self.rows.clone(),
            positions: self.positions.clone(),
            raw: self.raw.clone(),
            rejections: self.rejections.clone(),
            time_max: self.time_max,
        }
    }

    /// Records in all, good and bad.
    #[must_use]
    pub fn records(&self) -> usize {
        self.rows.len() + self.rejections.len()
    }
}

/// A row as a CloudEvent in JSON, decimals as exact texts.
#[must_use]
pub fn row_as_json(batch: &RecordBatch, row: usize) -> Vec<u8> {
    let mut object = serde_json::Map::new();
    let mut data = serde_json::Map::new();
    object.insert("specversion".to_owned(), "1.0".into());
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if column.is_null(row) {
            continue;
        }
        let text = match field.data_type() {
            DataType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
            DataType::Int64 => column.as_primitive::<Int64Type>().value(row).to_string(),
            DataType::Boolean => column.as_boolean().value(row).to_string(),
            DataType::Decimal128(..) => {
                Decimal::from_raw(column.as_primitive::<Decimal128Type>().value(row)).map(|v| v.to_string()).unwrap_or_default()
            }
            DataType::Timestamp(..) => format_instant(column.as_primitive::<TimestampMicrosecondType>().value(row)),
            _ => continue,
        };
        match field.name().as_str() {
            "source" | "id" | "subject" | "time" => object.insert(field.name().clone(), text.into()),
            "meter" => object.insert("type".to_owned(), text.into()),
            name => data.insert(name.to_owned(), text.into()),
        };
    }
    object.insert("data".to_owned(), data.into());
    serde_json::Value::Object(object).to_string().into_bytes()
}

enum DimensionBuilder {
    Text(StringBuilder),
    Integer(Int64Builder),
    Decimal(Decimal128Builder),
    Boolean(BooleanBuilder),
    Timestamp(TimestampMicrosecondBuilder),
}

impl DimensionBuilder {
    fn new(kind: DimensionType, capacity: usize) -> Self {
        match kind {
            DimensionType::Text => Self::Text(StringBuilder::with_capacity(capacity, capacity * 8)),
            DimensionType::Integer => Self::Integer(Int64Builder::with_capacity(capacity)),
            DimensionType::Decimal => Self::Decimal(Decimal128Builder::with_capacity(capacity).with_data_type(DECIMAL)),
            DimensionType::Boolean => Self::Boolean(BooleanBuilder::with_capacity(capacity)),
            DimensionType::Timestamp => Self::Timestamp(instants(capacity)),
        }
    }

    /// Appends a value of the builder's own type, anything else as null.
    fn append(&mut self, value: &DimensionValue<'_>) {
        match (self, value) {
            (Self::Text(builder), DimensionValue::Text(text)) => builder.append_value(text),
            (Self::Integer(builder), DimensionValue::Integer(number)) => builder.append_value(*number),
            (Self::Decimal(builder), DimensionValue::Decimal(number)) => builder.append_value(number.raw()),
            (Self::Boolean(builder), DimensionValue::Boolean(truth)) => builder.append_value(*truth),
            (Self::Timestamp(builder), DimensionValue::Timestamp(instant)) => builder.append_value(*instant),
            (Self::Text(builder), _) => builder.append_null(),
            (Self::Integer(builder), _) => builder.append_null(),
            (Self::Decimal(builder), _) => builder.append_null(),
            (Self::Boolean(builder), _) => builder.append_null(),
            (Self::Timestamp(builder), _) => builder.append_null(),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Text(builder) => ArrayBuilder::finish(builder),
            Self::Integer(builder) => ArrayBuilder::finish(builder),
            Self::Decimal(builder) => ArrayBuilder::finish(builder),
            Self::Boolean(builder) => ArrayBuilder::finish(builder),
            Self::Timestamp(builder) => ArrayBuilder::finish(builder),
        }
    }
}

fn instants(capacity: usize) -> TimestampMicrosecondBuilder {
    TimestampMicrosecondBuilder::with_capacity(capacity).with_data_type(instant_type())
}

/// Collects events column by column and computes their keys on the way.
pub struct UsageBatchBuilder {
    schema: SchemaRef,
    hasher: EventHasher,
    time_limit: i64,
    source: StringBuilder,
    id: StringBuilder,
    meter: StringBuilder,
    subject: StringBuilder,
    time: TimestampMicrosecondBuilder,
    quantity: Decimal128Builder,
    end: TimestampMicrosecondBuilder,
    dimensions: Vec<DimensionBuilder>,
    dimension_names: Vec<String>,
    attributes: MapBuilder<StringBuilder, StringBuilder>,
    keys: Vec<EventKey>,
    time_max: Option<i64>,
}

impl UsageBatchBuilder {
    /// A builder for about `capacity` rows; event times from `time_limit` (µs UTC) on are refused as future.
    #[must_use]
    pub fn new(schema: &UsageSchema, hasher: EventHasher, time_limit: i64, capacity: usize) -> Self {
        let text = |bytes: usize| StringBuilder::with_capacity(capacity, capacity * bytes);
        Self {
            schema: schema.decoded.clone(),
            hasher,
            time_limit,
            source: text(16),
            id: text(36),
            meter: text(12),
            subject: text(16),
            time: instants(capacity),
            quantity: Decimal128Builder::with_capacity(capacity).with_data_type(DataType::Decimal128(PRECISION, SCALE)),
            end: instants(capacity),
            dimensions: schema.dimensions.iter().map(|dimension| DimensionBuilder::new(dimension.kind, capacity)).collect(),
            dimension_names: schema.dimensions.iter().map(|dimension| dimension.name.clone()).collect(),
            attributes: MapBuilder::new(Some(attribute_fields()), StringBuilder::new(), StringBuilder::new()),
            keys: Vec::with_capacity(capacity),
            time_max: None,
        }
    }

    /// Rows so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Adds an event after the checks that every transport shares.
    ///
    /// # Errors
    /// The reason and message of the rejection; then no row was added.
    pub fn append(&mut self, event: &UsageEvent<'_>) -> Result<(), (Reason, String)> {
        check_field(event.source, "source", Reason::EmptySource)?;
        check_field(event.id, "id", Reason::EmptyId)?;
        check_field(event.meter, "type", Reason::EmptyMeter)?;
        check_field(event.subject, "subject", Reason::EmptySubject)?;
        if is_change(event.meter) {
            return Err((Reason::ChangeUnsupported, format!("`{}` is no meter; send voids and amendments as CloudEvents", event.meter)));
        }
        if event.time < EARLIEST {
            return Err((Reason::TimeTooOld, format!("time {} is before 2000", format_instant(event.time))));
        }
        if event.time >= self.time_limit {
            return Err((
                Reason::TimeInFuture,
                format!("time {} is further ahead than the allowed clock skew", format_instant(event.time)),
            ));
        }
        if let Some(end) = event.end {
            if end < event.time {
                return Err((Reason::EndBeforeTime, format!("end {} is before time {}", format_instant(end), format_instant(event.time))));
            }
            if end >= self.time_limit {
                return Err((Reason::TimeInFuture, format!("end {} is further ahead than the allowed clock skew", format_instant(end))));
            }
        }
        self.push(event);
        Ok(())
    }

    fn push(&mut self, event: &UsageEvent<'_>) {
        let mut content = self.hasher.content();
        content.text(event.meter);
        content.text(event.subject);
        content.number(Some(i128::from(event.time)));
        content.number(event.end.map(i128::from));
        content.number(Some(event.quantity.raw()));
        for ((builder, name), value) in self.dimensions.iter_mut().zip(&self.dimension_names).zip(event.dimensions) {
            builder.append(value);
            if *value == DimensionValue::Null {
                continue;
            }
            content.text(name);
            match value {
                DimensionValue::Null => {}
                DimensionValue::Text(text) => content.text(text),
                DimensionValue::Integer(number) => content.number(Some(i128::from(*number))),
                DimensionValue::Decimal(number) => content.number(Some(number.raw())),
                DimensionValue::Boolean(truth) => content.number(Some(i128::from(*truth))),
                DimensionValue::Timestamp(instant) => content.number(Some(i128::from(*instant))),
            }
        }
        self.source.append_value(event.source);
        self.id.append_value(event.id);
        self.meter.append_value(event.meter);
        self.subject.append_value(event.subject);
        self.time.append_value(event.time);
        self.quantity.append_value(event.quantity.raw());
        self.end.append_option(event.end);
        for (name, value) in event.attributes {
            self.attributes.keys().append_value(name);
            self.attributes.values().append_value(value);
        }
        // Keys and values were appended in pairs, so closing the row cannot fail.
        let closed = self.attributes.append(true);
        debug_assert!(closed.is_ok());
        self.keys.push(EventKey { identity: self.hasher.identity(event.source, event.id), content: content.finish() });
        self.time_max = self.time_max.max(Some(event.time));
    }

    /// The batch, its keys and its highest event time.
    ///
    /// # Errors
    /// An [`ArrowError`] when a column passes 2 GiB.
    pub fn finish(mut self) -> Result<(RecordBatch, Vec<EventKey>, Option<i64>), ArrowError> {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.source.finish()),
            Arc::new(self.id.finish()),
            Arc::new(self.meter.finish()),
            Arc::new(self.subject.finish()),
            Arc::new(self.time.finish()),
            Arc::new(self.quantity.finish()),
            Arc::new(self.end.finish()),
        ];
        columns.extend(self.dimensions.iter_mut().map(DimensionBuilder::finish));
        columns.push(Arc::new(self.attributes.finish()));
        Ok((RecordBatch::try_new(self.schema, columns)?, self.keys, self.time_max))
    }
}

pub(crate) fn check_field(value: &str, name: &str, empty: Reason) -> Result<(), (Reason, String)> {
    if value.is_empty() {
        return Err((empty, format!("{name} is empty")));
    }
    if value.len() > FIELD_BYTES_MAX {
        return Err((Reason::FieldTooLong, format!("{name} has {} bytes; the limit is {FIELD_BYTES_MAX}", value.len())));
    }
    if value.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        return Err((Reason::ControlCharacter, format!("{name} holds a control character")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keys_from_events_and_from_stored_rows_are_the_same() {
        let dimension = |name: &str, kind| Dimension { name: name.to_owned(), kind };
        let schema = UsageSchema::new(vec![
            dimension("region", DimensionType::Text),
            dimension("floor", DimensionType::Integer),
            dimension("size", DimensionType::Decimal),
        ]);
        let hasher = EventHasher::new([7, 8]);
        let mut builder = UsageBatchBuilder::new(&schema, hasher, i64::MAX, 2);
        for (id, dimensions) in [
            ("a", vec![DimensionValue::Text("eu".into()), DimensionValue::Integer(3), DimensionValue::Null]),
            ("b", vec![DimensionValue::Null, DimensionValue::Null, DimensionValue::Decimal("1.5".parse().unwrap())]),
        ] {
            builder
                .append(&UsageEvent {
                    source: "s",
                    id,
                    meter: "m",
                    subject: "c",
                    time: EARLIEST + 5,
                    quantity: "2.5".parse().unwrap(),
                    end: None,
                    dimensions: &dimensions,
                    attributes: &[("x".into(), "y".into())],
                })
                .unwrap();
        }
        let (batch, keys, time_max) = builder.finish().unwrap();
        assert_eq!(schema.keys(&batch, &hasher).unwrap(), keys);
        // A dimension that is declared later changes no key of what is there.
        let mut later = schema.dimensions().to_vec();
        later.insert(0, dimension("added", DimensionType::Text));
        assert_eq!(UsageSchema::new(later).keys(&batch, &hasher).unwrap(), keys);
        assert_eq!(time_max, Some(EARLIEST + 5));
        let json = String::from_utf8(row_as_json(&batch, 0)).unwrap();
        assert!(json.contains(r#""quantity":"2.5""#) && json.contains(r#""type":"m""#), "{json}");
    }
}
