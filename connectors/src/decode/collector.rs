//! From fields to rows: the checks that every transport shares.

use std::borrow::Cow;
use std::sync::Arc;

use ratemill_schemas::changes::{ChangesBuilder, is_change};
use ratemill_schemas::usage::{DimensionValue, Positions, RawRecords, UsageEvent};
use ratemill_schemas::{Decimal, Reason, Rejection, UsageBatch, UsageBatchBuilder, time};

use super::fields::Layout;
use super::{DecodeContext, Fields, Value, changes};
use crate::mapping::{FieldRef, Mapping};

/// Where a record stood, told only when it is needed.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// Its index in the call.
    Index,
    /// Its line in a file.
    Line(u64),
    /// The topic of its message.
    Topic(&'a Arc<str>),
}

/// Index, place and raw record of a change.
struct Standing {
    index: u32,
    line: Option<u64>,
    topic: Option<Arc<str>>,
    range: Option<(u32, u32)>,
    message: Option<Arc<[u8]>>,
}

/// What a record was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Usage,
    Change,
}

/// Collects the records of one submission.
pub struct Collector<'c> {
    context: &'c DecodeContext,
    mapping: &'c Mapping,
    builder: UsageBatchBuilder,
    time_limit: i64,
    /// Voids and amendments, and where they stood: they follow the rows of usage.
    changes: Option<Box<ChangesBuilder>>,
    changes_at: Vec<Standing>,
    rows: Vec<u32>,
    positions: Positions,
    raw: RawRecords,
    rejections: Vec<Rejection>,
    records: u32,
    /// How the last record was laid out.
    layout: Layout,
}

impl<'c> Collector<'c> {
    /// A collector for about `capacity` records.
    #[must_use]
    pub fn new(context: &'c DecodeContext, mapping: &'c Mapping, positions: Positions, raw: RawRecords, capacity: usize) -> Self {
        let time_limit = time::now().saturating_add(context.future_skew);
        Self {
            context,
            mapping,
            builder: UsageBatchBuilder::new(&context.schema, context.hasher, time_limit, capacity),
            time_limit,
            changes: None,
            changes_at: Vec::new(),
            rows: Vec::with_capacity(capacity),
            positions,
            raw,
            rejections: Vec::new(),
            records: 0,
            layout: Layout::default(),
        }
    }

    /// Records so far, good and bad.
    #[must_use]
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Adds the record that `fields` holds and tells whether it was good; `range` is where it lies in the body, or
    /// `None` where messages or columns are kept.
    pub fn record(
        &mut self,
        fields: &Result<Fields<'_>, (Reason, String)>,
        place: Place<'_>,
        raw: &[u8],
        range: Option<(u32, u32)>,
    ) -> bool {
        let outcome = match fields {
            Ok(fields) => self.append(fields),
            Err((reason, message)) => Err((*reason, message.clone())),
        };
        match outcome {
            Ok(kind) => {
                let standing = Standing {
                    index: self.records,
                    line: if let Place::Line(line) = place { Some(line) } else { None },
                    topic: if let Place::Topic(topic) = place { Some(Arc::clone(topic)) } else { None },
                    range,
                    message: matches!(self.raw, RawRecords::Messages(_)).then(|| raw.into()),
                };
                match kind {
                    Kind::Usage => self.stand(standing),
                    Kind::Change => self.changes_at.push(standing),
                }
                self.records += 1;
                true
            }
            Err((reason, message)) => {
                let read = |reference: &FieldRef| match (fields, reference) {
                    (Ok(fields), FieldRef::Field(name)) => fields.get(name).and_then(Value::text).map(str::to_owned),
                    (_, FieldRef::Constant { constant }) => Some(constant.clone()),
                    (Err(_), FieldRef::Field(_)) => None,
                };
                let source = read(&self.mapping.source);
                let id = self.mapping.id.as_ref().and_then(read);
                self.reject(source, id, place, reason, message, raw);
                false
            }
        }
    }

    /// Notes where the next row stood.
    fn stand(&mut self, standing: Standing) {
        self.rows.push(standing.index);
        match (&mut self.positions, standing.line, standing.topic) {
            (Positions::Line { lines, .. }, Some(line), _) => lines.push(line),
            (Positions::Topic(topics), _, Some(topic)) => topics.push(topic),
            _ => {}
        }
        match (&mut self.raw, standing.range, standing.message) {
            (RawRecords::Slices { ranges, .. }, Some(range), _) => ranges.push(range),
            (RawRecords::Messages(messages), _, Some(message)) => messages.push(message),
            _ => {}
        }
    }

    /// Sets the raw record of the last rejection, where it is written only when it is needed.
    pub fn set_last_raw(&mut self, raw: Vec<u8>) {
        if let Some(last) = self.rejections.last_mut() {
            last.raw = raw;
        }
    }

    /// Adds a record that could not be read at all.
    pub fn reject(&mut self, source: Option<String>, id: Option<String>, place: Place<'_>, reason: Reason, message: String, raw: &[u8]) {
        let position = match (place, &self.positions) {
            (Place::Line(line), Positions::Line { path, .. }) => format!("{path} line {line}"),
            (Place::Topic(topic), _) => format!("topic {topic}"),
            _ => format!("event {}", self.records),
        };
        let kept = raw.len().min(self.context.record_bytes_max);
        self.rejections.push(Rejection { index: self.records, source, id, position, reason, message, raw: raw[..kept].to_vec() });
        self.records += 1;
    }

    /// The decoded submission.
    ///
    /// # Errors
    /// When a column passes 2 GiB, which the limits on bodies and chunks prevent.
    pub fn finish(mut self) -> Result<UsageBatch, arrow::error::ArrowError> {
        for standing in std::mem::take(&mut self.changes_at) {
            self.stand(standing);
        }
        let changes = self.changes.map(|changes| changes.finish(&self.context.schema)).transpose()?;
        let (changes, change_keys) = changes.map_or((None, Vec::new()), |(changes, keys)| (Some(changes), keys));
        let (batch, keys, time_max) = self.builder.finish()?;
        Ok(UsageBatch {
            batch,
            keys,
            changes,
            change_keys,
            rows: self.rows,
            positions: self.positions,
            raw: self.raw,
            rejections: self.rejections,
            time_max,
        })
    }

    fn append(&mut self, fields: &Fields<'_>) -> Result<Kind, (Reason, String)> {
        let mapping = self.mapping;
        if let Some(amended) = &mapping.amended
            && lookup(fields, &mapping.meter).and_then(Value::text).is_some_and(is_change)
        {
            let context = self.context;
            let new = || Box::new(ChangesBuilder::new(&context.schema, context.hasher, self.time_limit));
            let builder = self.changes.get_or_insert_with(new);
            changes::with_change(context, mapping, amended, fields, |change| builder.append(change))?;
            return Ok(Kind::Change);
        }
        let source = required(fields, &mapping.source, "source", Reason::MissingSource, Some(Reason::SourceNotText))?;
        let Decoded { meter, subject, time, end, quantity, dimensions } = Decoded::read(self.context, mapping, fields)?;
        let id: Cow<'_, str> = match mapping.id.as_ref().and_then(|id| lookup(fields, id)) {
            Some(Value::Text(text)) => Cow::Borrowed(text.as_ref()),
            // A file's id column may hold numbers; a CloudEvents id may not.
            Some(Value::Number(text)) if !mapping.identity.is_empty() || mapping.id != Some(FieldRef::Field("id".to_owned())) => {
                Cow::Borrowed(text.as_ref())
            }
            Some(Value::Null) | None if !mapping.identity.is_empty() => {
                Cow::Owned(self.identity(fields, meter, subject, time, end, quantity)?)
            }
            Some(Value::Null) | None => return Err((Reason::MissingId, "no id".to_owned())),
            Some(_) => return Err((Reason::IdNotText, "id is not a text".to_owned())),
        };
        let attributes = fields.rest_like(&mut self.layout, |is| mapping.uses(is) || is("specversion") || is("datacontenttype"));
        self.builder.append(&UsageEvent {
            source,
            id: &id,
            meter,
            subject,
            time,
            quantity,
            end,
            dimensions: &dimensions,
            attributes: &attributes,
        })?;
        Ok(Kind::Usage)
    }

    /// The id that the declared rule makes: values joined by `|`, so that it can be read.
    fn identity(
        &self,
        fields: &Fields<'_>,
        meter: &str,
        subject: &str,
        time: i64,
        end: Option<i64>,
        quantity: Decimal,
    ) -> Result<String, (Reason, String)> {
        let mut id = String::new();
        for name in &self.mapping.identity {
            let value: Cow<'_, str> = match name.as_str() {
                "meter" => Cow::Borrowed(meter),
                "subject" => Cow::Borrowed(subject),
                "time" => Cow::Owned(time::format_instant(time)),
                "end" => end.map(time::format_instant).map(Cow::Owned).ok_or_else(|| incomplete("end"))?,
                "quantity" => Cow::Owned(quantity.to_string()),
                other => fields.get(other).and_then(Value::text).map(Cow::Borrowed).ok_or_else(|| incomplete(other))?,
            };
            if !id.is_empty() {
                id.push('|');
            }
            id.push_str(&value.replace('\\', "\\\\").replace('|', "\\|"));
        }
        Ok(id)
    }
}

/// What an event says, but for its identity and attributes.
pub(super) struct Decoded<'f> {
    pub(super) meter: &'f str,
    pub(super) subject: &'f str,
    pub(super) time: i64,
    pub(super) end: Option<i64>,
    pub(super) quantity: Decimal,
    pub(super) dimensions: Vec<DimensionValue<'f>>,
}

impl<'f> Decoded<'f> {
    /// Reads the fields that `mapping` names.
    pub(super) fn read(context: &DecodeContext, mapping: &'f Mapping, fields: &'f Fields<'_>) -> Result<Self, (Reason, String)> {
        let meter = required(fields, &mapping.meter, "type", Reason::MissingMeter, Some(Reason::MeterNotText))?;
        let subject = required(fields, &mapping.subject, "subject", Reason::MissingSubject, Some(Reason::SubjectNotText))?;
        let time_text = required(fields, &mapping.time, "time", Reason::MissingTime, None)?;
        let time = mapping.time(time_text).map_err(|message| (Reason::TimeInvalid, format!("time {message}")))?;
        let end = lookup(fields, &mapping.end)
            .and_then(Value::text)
            .map(|text| mapping.time(text).map_err(|message| (Reason::EndInvalid, format!("end {message}"))))
            .transpose()?;
        let quantity = quantity(fields, &mapping.quantity)?;
        let dimensions = dimensions(context, mapping, fields)?;
        Ok(Self { meter, subject, time, end, quantity, dimensions })
    }
}

fn dimensions<'f>(
    context: &DecodeContext,
    mapping: &'f Mapping,
    fields: &'f Fields<'_>,
) -> Result<Vec<DimensionValue<'f>>, (Reason, String)> {
    let declared = context.schema.dimensions().iter().zip(&mapping.dimensions);
    declared
        .map(|(dimension, references)| match references.iter().find_map(|reference| constant_or_text(fields, reference)) {
            None => Ok(DimensionValue::Null),
            Some(text) => dimension
                .kind
                .parse(Cow::Borrowed(text))
                .map_err(|message| (Reason::DimensionInvalid, format!("dimension {}: {message}", dimension.name))),
        })
        .collect()
}

fn incomplete(name: &str) -> (Reason, String) {
    (Reason::IdentityIncomplete, format!("the identity rule needs field `{name}`, which the record does not have"))
}

fn lookup<'f, 'a>(fields: &'f Fields<'a>, reference: &FieldRef) -> Option<&'f Value<'a>> {
    match reference {
        FieldRef::Field(name) => fields.get(name),
        FieldRef::Constant { .. } => None,
    }
}

fn constant_or_text<'f>(fields: &'f Fields<'_>, reference: &'f FieldRef) -> Option<&'f str> {
    match reference {
        FieldRef::Field(name) => fields.get(name).and_then(Value::text),
        FieldRef::Constant { constant } => Some(constant),
    }
}

pub(super) fn required<'f>(
    fields: &'f Fields<'_>,
    reference: &'f FieldRef,
    name: &str,
    missing: Reason,
    not_text: Option<Reason>,
) -> Result<&'f str, (Reason, String)> {
    let from = match reference {
        FieldRef::Constant { constant } => return Ok(constant),
        FieldRef::Field(from) => from,
    };
    match fields.get(from) {
        Some(Value::Text(text)) => Ok(text),
        Some(Value::Number(text)) if not_text.is_none() => Ok(text),
        Some(Value::Null) | None => {
            let field = if from == name { String::new() } else { format!(" (field `{from}`)") };
            Err((missing, format!("no {name}{field}")))
        }
        Some(other) => match not_text {
            Some(reason) => Err((reason, format!("{name} is not a text, but {}", other.text().unwrap_or("null")))),
            None => Err((Reason::TimeInvalid, format!("{name} is neither a text nor a number"))),
        },
    }
}

fn quantity(fields: &Fields<'_>, references: &[FieldRef]) -> Result<Decimal, (Reason, String)> {
    for reference in references {
        let text = match reference {
            FieldRef::Constant { constant } => constant.as_str(),
            FieldRef::Field(name) => match fields.get(name) {
                None | Some(Value::Null) => continue,
                Some(Value::Text(text) | Value::Number(text)) => text,
                Some(other) => {
                    let found = other.text().unwrap_or("null");
                    return Err((Reason::QuantityNotANumber, format!("`{name}` is neither a number nor a numeric text, but {found}")));
                }
            },
        };
        return Decimal::parse(text.as_bytes()).map_err(|error| (Reason::of_quantity(error), format!("quantity `{text}` {error}")));
    }
    let names: Vec<&str> = references
        .iter()
        .filter_map(|reference| match reference {
            FieldRef::Field(name) => Some(name.as_str()),
            FieldRef::Constant { .. } => None,
        })
        .collect();
    Err((Reason::MissingQuantity, format!("no quantity in `{}`", names.join("` or `"))))
}
