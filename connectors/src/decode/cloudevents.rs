//! CloudEvents 1.0: structured, batched and binary.
//!
//! Source: CloudEvents 1.0.2, the core specification and its JSON and HTTP bindings.

use std::borrow::Cow;
use std::sync::Arc;

use ratemill_schemas::usage::{Positions, RawRecords};
use ratemill_schemas::{Reason, UsageBatch};
use serde_json::value::RawValue;

use super::quick::Elements;
use super::{Collector, DecodeContext, Fields, Place, Value};
use crate::mapping::Mapping;

/// A body that cannot be read at all; nothing of it is kept.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Not UTF-8.
    #[error("the body is not UTF-8: {0}")]
    NotUtf8(#[source] std::str::Utf8Error),
    /// Not JSON, or not the JSON that the media type promises.
    #[error("{expected}: {found}")]
    Malformed {
        /// What the media type promises.
        expected: &'static str,
        /// What was found, and where.
        found: String,
    },
    /// More events than one call may have.
    #[error("the body has more than {0} events; send it in several calls")]
    TooManyEvents(usize),
    /// The decoded columns do not fit a batch.
    #[error("the body does not fit one batch")]
    TooLarge(#[source] arrow::error::ArrowError),
}

/// Reads one event, `application/cloudevents+json`.
///
/// # Errors
/// [`BodyError`] when it is not a JSON object; what is wrong inside it is a rejection.
pub fn structured(context: &DecodeContext, mapping: &Mapping, body: &[u8]) -> Result<UsageBatch, BodyError> {
    let text = utf8(body)?;
    let trimmed = text.trim_ascii();
    let fields = parse(trimmed, context);
    if let Err((Reason::NotJson | Reason::NotAnObject, message)) = &fields {
        return Err(BodyError::Malformed { expected: "the body is not one CloudEvent in JSON", found: message.clone() });
    }
    let mut collector = collector(context, mapping, body, 1);
    collector.record(&fields, Place::Index, trimmed.as_bytes(), Some(range(body, trimmed)));
    collector.finish().map_err(BodyError::TooLarge)
}

/// Reads an array of events, `application/cloudevents-batch+json`.
///
/// # Errors
/// [`BodyError`] when it is not a JSON array or has more than `events_max` elements.
pub fn batched(context: &DecodeContext, mapping: &Mapping, body: &[u8], events_max: usize) -> Result<UsageBatch, BodyError> {
    let text = utf8(body)?;
    batched_quickly(context, mapping, text, events_max).unwrap_or_else(|| batched_slowly(context, mapping, text, events_max))
}

/// The same, whatever the events are.
fn batched_slowly(context: &DecodeContext, mapping: &Mapping, text: &str, events_max: usize) -> Result<UsageBatch, BodyError> {
    let events: Vec<&RawValue> = serde_json::from_str(text)
        .map_err(|error| BodyError::Malformed { expected: "the body is not a JSON array of CloudEvents", found: error.to_string() })?;
    if events.len() > events_max {
        return Err(BodyError::TooManyEvents(events_max));
    }
    let mut collector = collector(context, mapping, text.as_bytes(), events.len());
    for event in events {
        let raw = event.get();
        collector.record(&parse(raw, context), Place::Index, raw.as_bytes(), Some(range(text.as_bytes(), raw)));
    }
    collector.finish().map_err(BodyError::TooLarge)
}

/// The same in one pass, where all events are plain.
fn batched_quickly(context: &DecodeContext, mapping: &Mapping, text: &str, events_max: usize) -> Option<Result<UsageBatch, BodyError>> {
    let mut elements = Elements::of(text, context.depth_max);
    let mut collector = collector(context, mapping, text.as_bytes(), text.len() / 200 + 1);
    while let Some((raw, entries)) = elements.next()? {
        if collector.records() as usize >= events_max {
            // Whether the rest is JSON says the library.
            return None;
        }
        let fields = fits(raw, context).and_then(|()| check(Fields::of(entries)?));
        collector.record(&fields, Place::Index, raw.as_bytes(), Some(range(text.as_bytes(), raw)));
    }
    Some(collector.finish().map_err(BodyError::TooLarge))
}

/// Reads events line by line, `application/x-ndjson`. A bad line is a rejection, unless every line is.
///
/// # Errors
/// [`BodyError`] when no line is JSON or there are more than `events_max` lines.
pub fn lines(context: &DecodeContext, mapping: &Mapping, body: &[u8], events_max: usize) -> Result<UsageBatch, BodyError> {
    let text = utf8(body)?;
    let mut collector = collector(context, mapping, body, body.len() / 200 + 1);
    let mut readable = 0_usize;
    let mut first_error = None;
    for line in text.split('\n').map(str::trim_ascii).filter(|line| !line.is_empty()) {
        if collector.records() as usize >= events_max {
            return Err(BodyError::TooManyEvents(events_max));
        }
        let fields = parse(line, context);
        match &fields {
            Err((Reason::NotJson, message)) => first_error = first_error.or_else(|| Some(message.clone())),
            _ => readable += 1,
        }
        collector.record(&fields, Place::Index, line.as_bytes(), Some(range(body, line)));
    }
    match first_error {
        Some(found) if readable == 0 => Err(BodyError::Malformed { expected: "no line of the body is JSON", found }),
        _ => collector.finish().map_err(BodyError::TooLarge),
    }
}

/// Reads one event in binary mode: `attributes` are the decoded `ce-*` headers, `body` is the data.
///
/// # Errors
/// [`BodyError`] when the body is not UTF-8.
pub fn binary(context: &DecodeContext, mapping: &Mapping, attributes: &[(String, String)], body: &[u8]) -> Result<UsageBatch, BodyError> {
    let text = utf8(body)?;
    let trimmed = text.trim_ascii();
    let raw = raw_binary(attributes, trimmed);
    let mut collector = Collector::new(context, mapping, Positions::Index, RawRecords::Messages(Vec::new()), 1);
    collector.record(&binary_fields(context, attributes, trimmed), Place::Index, &raw, None);
    collector.finish().map_err(BodyError::TooLarge)
}

/// The fields of an event whose attributes travel beside its data.
///
/// # Errors
/// The reason and message of the rejection.
pub fn binary_fields<'a>(
    context: &DecodeContext,
    attributes: &'a [(String, String)],
    data: &'a str,
) -> Result<Fields<'a>, (Reason, String)> {
    let mut fields = Fields::default();
    for (name, value) in attributes {
        fields.push(name.as_str(), Value::Text(Cow::Borrowed(value)));
    }
    if data.is_empty() {
        return Err((Reason::MissingData, "no data".to_owned()));
    }
    match fields.push_object("data", data, context.depth_max) {
        Err((Reason::NotAnObject, _)) => return Err((Reason::DataNotAnObject, "data is not a JSON object".to_owned())),
        other => other?,
    }
    check(fields)
}

/// A binary event as a structured one, which is how it is kept when it is rejected and how it can be replayed.
#[must_use]
pub fn raw_binary(attributes: &[(String, String)], data: &str) -> Vec<u8> {
    let mut object: serde_json::Map<String, serde_json::Value> =
        attributes.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    let parsed = serde_json::from_str::<Box<RawValue>>(data);
    let mut text = {
        object.remove("data");
        serde_json::Value::Object(object).to_string()
    };
    text.pop();
    if text.len() > 1 {
        text.push(',');
    }
    match parsed {
        Ok(raw) => text.push_str(&format!("\"data\":{}}}", raw.get())),
        Err(_) => text.push_str(&format!("\"data\":{}}}", serde_json::Value::from(data))),
    }
    text.into_bytes()
}

/// The fields of one structured event, checked as a CloudEvent.
///
/// # Errors
/// The reason and message of the rejection.
pub fn parse<'a>(raw: &'a str, context: &DecodeContext) -> Result<Fields<'a>, (Reason, String)> {
    fits(raw, context)?;
    check(Fields::parse(raw, context.depth_max)?)
}

fn fits(raw: &str, context: &DecodeContext) -> Result<(), (Reason, String)> {
    if raw.len() > context.record_bytes_max {
        return Err((Reason::RecordTooLarge, format!("the event has {} bytes; the limit is {}", raw.len(), context.record_bytes_max)));
    }
    Ok(())
}

fn check(fields: Fields<'_>) -> Result<Fields<'_>, (Reason, String)> {
    match fields.get("specversion") {
        Some(Value::Text(version)) if version == "1.0" => {}
        Some(Value::Null) | None => return Err((Reason::MissingSpecversion, "no specversion".to_owned())),
        Some(other) => {
            let found = other.text().unwrap_or("null");
            return Err((Reason::UnsupportedSpecversion, format!("specversion is {found}; only \"1.0\" is known")));
        }
    }
    if let Some(name) =
        fields.attribute_names().find(|name| !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'))
    {
        return Err((Reason::AttributeInvalid, format!("attribute `{name}` is not made of lower-case letters and digits")));
    }
    if let Some(Value::Text(media_type)) = fields.get("datacontenttype")
        && !is_json(media_type)
    {
        return Err((Reason::DataIsBinary, format!("data of type {media_type} is not JSON")));
    }
    if fields.get("data_base64").is_some() {
        return Err((Reason::DataIsBinary, "data_base64 is not read; send data as a JSON object".to_owned()));
    }
    if !fields.has_object("data") {
        return Err(match fields.get("data") {
            None | Some(Value::Null) => (Reason::MissingData, "no data".to_owned()),
            Some(_) => (Reason::DataNotAnObject, "data is not a JSON object".to_owned()),
        });
    }
    Ok(fields)
}

/// Whether a media type is JSON: `application/json`, `text/json` or any `+json`.
#[must_use]
pub fn is_json(media_type: &str) -> bool {
    media_type == "application/json"
        || media_type.parse::<mime::Mime>().is_ok_and(|mime| mime.subtype() == mime::JSON || mime.suffix() == Some(mime::JSON))
}

fn utf8(body: &[u8]) -> Result<&str, BodyError> {
    std::str::from_utf8(body).map_err(BodyError::NotUtf8)
}

fn collector<'c>(context: &'c DecodeContext, mapping: &'c Mapping, body: &[u8], capacity: usize) -> Collector<'c> {
    let raw = RawRecords::Slices { body: Arc::from(body), ranges: Vec::with_capacity(capacity) };
    Collector::new(context, mapping, Positions::Index, raw, capacity)
}

/// Where `part`, a slice of `body`, begins and ends; bodies are limited to far less than 4 GiB.
fn range(body: &[u8], part: &str) -> (u32, u32) {
    let start = part.as_ptr().addr() - body.as_ptr().addr();
    (u32::try_from(start).unwrap_or(u32::MAX), u32::try_from(start + part.len()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ratemill_schemas::{EventHasher, UsageSchema};

    use super::*;
    use crate::mapping::FieldRef;

    #[test]
    fn a_batch_that_is_read_quickly_is_what_it_is_read_slowly() {
        let context = DecodeContext {
            schema: Arc::new(UsageSchema::new(Vec::new())),
            hasher: EventHasher::new([7; 2]),
            future_skew: 0,
            depth_max: 4,
            record_bytes_max: 300,
        };
        let mapping = Mapping::cloud_events(&context.schema, Some(FieldRef::Field("data.value".to_owned())));
        let event = |id: &str, data: &str| {
            format!(
                r#"{{"specversion":"1.0","id":"{id}","source":"s","type":"kwh","subject":"a","time":"2026-09-01T00:00:00Z","data":{data}}}"#
            )
        };
        let good = |id: &str| event(id, r#"{"value":1.5,"unit":"kWh"}"#);
        let long = event("long", &format!(r#"{{"value":1,"note":"{}"}}"#, "x".repeat(300)));
        let wrong = event("wrong", r#"{"value":"much"}"#);
        let twice = event("twice", r#"{"value":1,"value":2}"#);
        let one = good("1");
        for (body, is_quick) in [
            (format!("[{one}]"), true),
            (format!(" [ {one} , {},\n{} ] ", good("2"), good("3")), true),
            (format!("[{one},{long},{wrong},{twice},{}]", good("ä")), true),
            (format!("[{one},{}]", event("void", r#"{"value":1}"#).replace("kwh", "ratemill.void")), true),
            (format!("[{one},{},{}]", good("2"), good("3")).replace("\"kwh\"", "7"), true),
            (format!("[{one},{}]", event("deep", r#"{"value":1,"a":{"b":{"c":{"d":1}}}}"#)), false),
            (format!("[{one},{}]", event("escape", r#"{"value":1,"note":"\n"}"#)), false),
            (format!("[{one},1]"), false),
            (format!("[{one}"), false),
            (format!("[{one}] x"), false),
            ("[]".to_owned(), false),
        ] {
            let quick = batched_quickly(&context, &mapping, &body, 5);
            assert_eq!(quick.is_some(), is_quick, "{body}");
            let slow = batched_slowly(&context, &mapping, &body, 5);
            assert_eq!(format!("{:?}", batched(&context, &mapping, body.as_bytes(), 5)), format!("{slow:?}"), "{body}");
        }
        let body = format!("[{one},{},{}]", good("2"), good("3"));
        let read = |most| batched(&context, &mapping, body.as_bytes(), most);
        assert!(matches!(read(2), Err(BodyError::TooManyEvents(2))));
        assert_eq!(read(3).unwrap().batch.num_rows(), 3);
    }
}
