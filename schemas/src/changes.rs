//! Voids and amendments of usage events, and the `changes` table that keeps them.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Int64Builder, MapBuilder, RecordBatch, StringBuilder, UInt32Array,
};
use arrow::compute::{filter_record_batch, take};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;

use crate::identity::{EventHasher, EventKey};
use crate::rejected::Reason;
use crate::time::{day_of, instant_type};
use crate::usage::{FIELD_BYTES_MAX, UsageBatchBuilder, UsageEvent, UsageSchema, attribute_fields, attributes_type, check_field};

/// CloudEvents type of a void.
pub const VOID: &str = "ratemill.void";
/// CloudEvents type of an amendment.
pub const AMEND: &str = "ratemill.amend";
/// What the columns of an amended event begin with, so that no dimension can be taken for a column of the change.
const NEW: &str = "new_";
/// Columns before those of the amended event.
const OWN_COLUMNS: usize = 7;

/// Whether events of this type change other events.
#[must_use]
pub fn is_change(meter: &str) -> bool {
    meter == VOID || meter == AMEND
}

/// One void or amendment on its way into a batch.
#[derive(Debug)]
pub struct Change<'a> {
    /// Its own CloudEvents `source`.
    pub source: &'a str,
    /// Its own CloudEvents `id`.
    pub id: &'a str,
    /// Source of the event that it changes.
    pub target_source: &'a str,
    /// Id of the event that it changes.
    pub target_id: &'a str,
    /// Version and new event of an amendment, under the identity of the target; `None` of a void.
    pub amended: Option<(i64, UsageEvent<'a>)>,
    /// Every other field of the change, by name.
    pub attributes: &'a [(Cow<'a, str>, Cow<'a, str>)],
}

/// What makes a change the same change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeKey {
    /// Its own identity and content.
    pub own: EventKey,
    /// Of an amendment: its target and version, and the new event's content.
    pub version: Option<EventKey>,
}

impl ChangeKey {
    /// The keys that the dedup index holds of an accepted change.
    pub fn keys(self) -> impl Iterator<Item = EventKey> {
        std::iter::once(self.own).chain(self.version)
    }

    fn new(hasher: &EventHasher, identity: [&str; 2], target: [&str; 2], amended: Option<(i64, u64)>) -> Self {
        let mut content = hasher.content();
        content.text(if amended.is_some() { AMEND } else { VOID });
        content.text(target[0]);
        content.text(target[1]);
        content.number(amended.map(|(version, _)| i128::from(version)));
        content.number(amended.map(|(_, event)| i128::from(event)));
        Self {
            own: EventKey { identity: hasher.identity(identity[0], identity[1]), content: content.finish() },
            version: amended.map(|(version, event)| EventKey { identity: hasher.amendment(target[0], target[1], version), content: event }),
        }
    }
}

/// What the log holds of changes: `source`, `id`, `kind` (`void` or `amend`), `target_source`, `target_id`, `version`,
/// `attributes`, and the columns of the amended event from `new_meter` on, which are null in voids.
#[must_use]
pub fn decoded(usage: &UsageSchema) -> SchemaRef {
    Arc::new(Schema::new(decoded_fields(usage)))
}

/// What the `changes` table holds: the logged columns, `ingested_at` and `log_position`.
#[must_use]
pub fn stored(usage: &UsageSchema) -> SchemaRef {
    let mut fields = decoded_fields(usage);
    fields.push(Field::new("ingested_at", instant_type(), false));
    fields.push(Field::new("log_position", DataType::Int64, false));
    Arc::new(Schema::new(fields))
}

fn decoded_fields(usage: &UsageSchema) -> Vec<Field> {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    let mut fields = vec![
        text("source"),
        text("id"),
        text("kind"),
        text("target_source"),
        text("target_id"),
        Field::new("version", DataType::Int64, true),
        Field::new("attributes", attributes_type(), false),
    ];
    debug_assert_eq!(fields.len(), OWN_COLUMNS);
    fields.extend(event_fields(usage).map(|field| Field::new(format!("{NEW}{}", field.name()), field.data_type().clone(), true)));
    fields
}

/// The columns of an event but its identity.
fn event_fields(usage: &UsageSchema) -> impl Iterator<Item = &Field> {
    usage.decoded().fields().iter().skip(2).map(AsRef::as_ref)
}

/// The new events of the amendments among these changes, under the identities of their targets: rows of
/// [`UsageSchema::decoded`], or of [`UsageSchema::stored`] where the changes are stored.
///
/// # Errors
/// When a column is missing.
pub fn events(usage: &UsageSchema, changes: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let is_amendment: BooleanArray = column(changes, "version")?.as_primitive::<Int64Type>().iter().map(|v| Some(v.is_some())).collect();
    let amendments = filter_record_batch(changes, &is_amendment)?;
    let mut columns = vec![Arc::clone(column(&amendments, "target_source")?), Arc::clone(column(&amendments, "target_id")?)];
    for field in event_fields(usage) {
        columns.push(match amendments.column_by_name(&format!("{NEW}{}", field.name())) {
            Some(column) => Arc::clone(column),
            // A dimension that was declared later.
            None => arrow::array::new_null_array(field.data_type(), amendments.num_rows()),
        });
    }
    let (Some(ingested), Some(positions)) = (amendments.column_by_name("ingested_at"), amendments.column_by_name("log_position")) else {
        return RecordBatch::try_new(usage.decoded().clone(), columns);
    };
    let days: Date32Array =
        column(&amendments, "new_time")?.as_primitive::<TimestampMicrosecondType>().iter().map(|time| time.map(day_of)).collect();
    columns.extend([Arc::clone(ingested), Arc::clone(positions), Arc::new(days)]);
    RecordBatch::try_new(usage.stored().clone(), columns)
}

fn column<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b ArrayRef, ArrowError> {
    batch.column_by_name(name).ok_or_else(|| ArrowError::SchemaError(format!("changes have no column `{name}`")))
}

/// Keys of logged or stored changes, for rebuilding the index.
///
/// # Errors
/// When a column is missing, or a dimension changed its type.
pub fn keys(usage: &UsageSchema, changes: &RecordBatch, hasher: &EventHasher) -> Result<Vec<ChangeKey>, ArrowError> {
    let mut contents = usage.keys(&events(usage, changes)?, hasher)?.into_iter();
    let text = |name: &str| Ok::<_, ArrowError>(column(changes, name)?.as_string::<i32>());
    let (source, id) = (text("source")?, text("id")?);
    let (target_source, target_id) = (text("target_source")?, text("target_id")?);
    let versions = column(changes, "version")?.as_primitive::<Int64Type>();
    Ok((0..changes.num_rows())
        .map(|row| {
            let amended = versions.is_valid(row).then(|| (versions.value(row), contents.next().map_or(0, |key| key.content)));
            ChangeKey::new(hasher, [source.value(row), id.value(row)], [target_source.value(row), target_id.value(row)], amended)
        })
        .collect())
}

/// Collects changes.
pub struct ChangesBuilder {
    schema: SchemaRef,
    hasher: EventHasher,
    texts: [StringBuilder; 5],
    versions: Int64Builder,
    attributes: MapBuilder<StringBuilder, StringBuilder>,
    events: UsageBatchBuilder,
    event_rows: Vec<Option<u32>>,
}

impl ChangesBuilder {
    /// A builder; times of amended events from `time_limit` (µs UTC) on are refused as future.
    #[must_use]
    pub fn new(usage: &UsageSchema, hasher: EventHasher, time_limit: i64) -> Self {
        Self {
            schema: decoded(usage),
            hasher,
            texts: std::array::from_fn(|_| StringBuilder::new()),
            versions: Int64Builder::new(),
            attributes: MapBuilder::new(Some(attribute_fields()), StringBuilder::new(), StringBuilder::new()),
            events: UsageBatchBuilder::new(usage, hasher, time_limit, 1),
            event_rows: Vec::new(),
        }
    }

    /// Adds a change; an amended event is checked as any other.
    ///
    /// # Errors
    /// The reason and message of the rejection; then nothing was added.
    pub fn append(&mut self, change: &Change<'_>) -> Result<(), (Reason, String)> {
        check_field(change.source, "source", Reason::EmptySource)?;
        check_field(change.id, "id", Reason::EmptyId)?;
        for (value, name) in [(change.target_source, "source"), (change.target_id, "id")] {
            if value.is_empty() || value.len() > FIELD_BYTES_MAX || value.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
                let message =
                    format!("data.target.{name} is not the {name} of an event: 1 to {FIELD_BYTES_MAX} bytes without control characters");
                return Err((Reason::TargetInvalid, message));
            }
        }
        if (change.source, change.id) == (change.target_source, change.target_id) {
            return Err((Reason::TargetInvalid, "data.target names the change itself; it needs an id of its own".to_owned()));
        }
        let mut event_row = None;
        if let Some((version, event)) = &change.amended {
            if *version < 1 {
                return Err((Reason::VersionInvalid, format!("version {version} is less than 1")));
            }
            self.events.append(event)?;
            event_row = u32::try_from(self.events.len() - 1).ok();
        }
        let kind = if change.amended.is_some() { "amend" } else { "void" };
        let values = [change.source, change.id, kind, change.target_source, change.target_id];
        for (builder, value) in self.texts.iter_mut().zip(values) {
            builder.append_value(value);
        }
        self.versions.append_option(change.amended.as_ref().map(|(version, _)| *version));
        for (name, value) in change.attributes {
            self.attributes.keys().append_value(name);
            self.attributes.values().append_value(value);
        }
        // Keys and values were appended in pairs, so closing the row cannot fail.
        let closed = self.attributes.append(true);
        debug_assert!(closed.is_ok());
        self.event_rows.push(event_row);
        Ok(())
    }

    /// The batch, in the schema of [`decoded`], and the keys of its rows.
    ///
    /// # Errors
    /// An [`ArrowError`] when a column passes 2 GiB.
    pub fn finish(mut self, usage: &UsageSchema) -> Result<(RecordBatch, Vec<ChangeKey>), ArrowError> {
        let (events, ..) = self.events.finish()?;
        let rows = UInt32Array::from(self.event_rows);
        let mut columns: Vec<ArrayRef> = self.texts.iter_mut().map(|builder| Arc::new(builder.finish()) as ArrayRef).collect();
        columns.push(Arc::new(self.versions.finish()));
        columns.push(Arc::new(self.attributes.finish()));
        for column in events.columns().iter().skip(2) {
            columns.push(take(column, &rows, None)?);
        }
        let batch = RecordBatch::try_new(self.schema, columns)?;
        let keys = keys(usage, &batch, &self.hasher)?;
        Ok((batch, keys))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::usage::{Dimension, DimensionType, DimensionValue};

    fn event<'a>(quantity: &str, dimensions: &'a [DimensionValue<'a>]) -> UsageEvent<'a> {
        let quantity = quantity.parse().unwrap();
        UsageEvent {
            source: "s",
            id: "a",
            meter: "m",
            subject: "c",
            time: crate::time::EARLIEST + 5,
            quantity,
            end: None,
            dimensions,
            attributes: &[],
        }
    }

    fn build(schema: &UsageSchema, changes: &[(&str, Option<(i64, &str)>)]) -> (RecordBatch, Vec<ChangeKey>) {
        let mut builder = ChangesBuilder::new(schema, EventHasher::new([7, 8]), i64::MAX);
        for (id, amended) in changes {
            let dimensions = [DimensionValue::Text("eu".into())];
            let amended = amended.map(|(version, quantity)| (version, event(quantity, &dimensions)));
            let change = Change { source: "s", id, target_source: "s", target_id: "a", amended, attributes: &[] };
            builder.append(&change).unwrap();
        }
        builder.finish(schema).unwrap()
    }

    #[test]
    fn keys_tell_versions_and_contents_apart() {
        let schema = UsageSchema::new(vec![Dimension { name: "kind".to_owned(), kind: DimensionType::Text }]);
        let (batch, keys) =
            build(&schema, &[("v", None), ("x", Some((1, "2"))), ("y", Some((1, "2.0"))), ("z", Some((1, "3"))), ("w", Some((2, "2")))]);
        assert_eq!(batch.schema(), decoded(&schema));
        assert_eq!(super::keys(&schema, &batch, &EventHasher::new([7, 8])).unwrap(), keys);
        assert_eq!(keys[0].version, None);
        assert_eq!(keys[1].version, keys[2].version);
        let version = |row: usize| keys[row].version.unwrap();
        assert_eq!(version(1).identity, version(3).identity);
        assert_ne!(version(1).content, version(3).content);
        assert_ne!(version(1).identity, version(4).identity);
        let events = events(&schema, &batch).unwrap();
        assert_eq!((events.num_rows(), events.schema()), (4, schema.decoded().clone()));
        // A dimension that is declared later changes no key of what is there.
        let mut later = schema.dimensions().to_vec();
        later.push(Dimension { name: "added".to_owned(), kind: DimensionType::Integer });
        assert_eq!(super::keys(&UsageSchema::new(later), &batch, &EventHasher::new([7, 8])).unwrap(), keys);
    }

    #[test]
    fn a_bad_change_leaves_nothing_behind() {
        let schema = UsageSchema::new(Vec::new());
        let mut builder = ChangesBuilder::new(&schema, EventHasher::new([7, 8]), i64::MAX);
        let change = |target_id, amended| Change { source: "s", id: "c", target_source: "s", target_id, amended, attributes: &[] };
        assert_eq!(builder.append(&change("", None)).unwrap_err().0, Reason::TargetInvalid);
        assert_eq!(builder.append(&change("c", None)).unwrap_err().0, Reason::TargetInvalid);
        assert_eq!(builder.append(&change("a", Some((0, event("1", &[]))))).unwrap_err().0, Reason::VersionInvalid);
        let early = UsageEvent { time: 5, ..event("1", &[]) };
        assert_eq!(builder.append(&change("a", Some((1, early)))).unwrap_err().0, Reason::TimeTooOld);
        assert_eq!(builder.finish(&schema).unwrap().0.num_rows(), 0);
    }
}
