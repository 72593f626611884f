//! Voids and amendments: `data.target`, `data.version` and the full new event in `data.event`.

use std::borrow::Cow;

use ratemill_schemas::Reason;
use ratemill_schemas::changes::{AMEND, Change};
use ratemill_schemas::usage::UsageEvent;

use super::collector::{Decoded, required};
use super::{DecodeContext, Fields, Value};
use crate::mapping::{AMENDED_EVENT, Mapping};

/// Reads a change and gives it to `append`; `amended` is the mapping of the new event of an amendment.
///
/// # Errors
/// The reason and message of the rejection.
pub(super) fn with_change(
    context: &DecodeContext,
    mapping: &Mapping,
    amended: &Mapping,
    fields: &Fields<'_>,
    append: impl FnOnce(&Change<'_>) -> Result<(), (Reason, String)>,
) -> Result<(), (Reason, String)> {
    let source = required(fields, &mapping.source, "source", Reason::MissingSource, Some(Reason::SourceNotText))?;
    let kind = required(fields, &mapping.meter, "type", Reason::MissingMeter, Some(Reason::MeterNotText))?;
    let id = match mapping.id.as_ref() {
        Some(id) => required(fields, id, "id", Reason::MissingId, Some(Reason::IdNotText))?,
        None => return Err((Reason::MissingId, "no id".to_owned())),
    };
    let invalid = Some(Reason::TargetInvalid);
    let target_source = required(fields, &amended.source, "data.target.source", Reason::TargetInvalid, invalid)?;
    let target_id = match amended.id.as_ref() {
        Some(id) => required(fields, id, "data.target.id", Reason::TargetInvalid, invalid)?,
        None => return Err((Reason::TargetInvalid, "no data.target.id".to_owned())),
    };
    let others = fields.rest(|is| is("source") || is("id") || is("type") || is("specversion") || is("datacontenttype"));
    if kind != AMEND {
        let attributes: Vec<_> = others.into_iter().filter(|(name, _)| !name.starts_with("data.target.")).collect();
        return append(&Change { source, id, target_source, target_id, amended: None, attributes: &attributes });
    }
    let version = version(fields)?;
    check_event(fields, target_source, target_id)?;
    let decoded = Decoded::read(context, amended, fields)?;
    let is_own = |name: &str| name == "data.version" || name.starts_with("data.target.") || name.starts_with(AMENDED_EVENT);
    let attributes: Vec<_> = others.into_iter().filter(|(name, _)| !is_own(name)).collect();
    let of_event = attributes_of_event(amended, fields);
    let event = UsageEvent {
        source: target_source,
        id: target_id,
        meter: decoded.meter,
        subject: decoded.subject,
        time: decoded.time,
        quantity: decoded.quantity,
        end: decoded.end,
        dimensions: &decoded.dimensions,
        attributes: &of_event,
    };
    append(&Change { source, id, target_source, target_id, amended: Some((version, event)), attributes: &attributes })
}

fn version(fields: &Fields<'_>) -> Result<i64, (Reason, String)> {
    let wrong = |message: String| (Reason::VersionInvalid, message);
    match fields.get("data.version") {
        None | Some(Value::Null) => Err(wrong("no data.version; number the amendments of an event from 1".to_owned())),
        Some(Value::Number(text) | Value::Text(text)) => {
            text.parse().map_err(|_| wrong(format!("data.version `{text}` is not a whole number from 1")))
        }
        Some(other) => Err(wrong(format!("data.version {} is not a whole number from 1", other.text().unwrap_or("null")))),
    }
}

/// The new event is there, and of no other identity than the one that it takes the place of.
fn check_event(fields: &Fields<'_>, target_source: &str, target_id: &str) -> Result<(), (Reason, String)> {
    let given = |name: &str| fields.get(&format!("{AMENDED_EVENT}{name}")).and_then(Value::text);
    if ["type", "subject", "time"].iter().all(|name| given(name).is_none()) {
        return Err((
            Reason::AmendedEventMissing,
            "an amendment carries the full new event in data.event: type, subject, time, data".to_owned(),
        ));
    }
    for (name, target) in [("source", target_source), ("id", target_id)] {
        if let Some(other) = given(name).filter(|given| *given != target) {
            let message = format!("data.event.{name} is `{other}`, data.target.{name} `{target}`; an amendment keeps the identity");
            return Err((Reason::TargetInvalid, message));
        }
    }
    Ok(())
}

/// Every field of the new event that is no column of it, named as in the event itself.
fn attributes_of_event<'f>(amended: &Mapping, fields: &'f Fields<'_>) -> Vec<(Cow<'f, str>, Cow<'f, str>)> {
    let used = ["source", "id", "specversion", "datacontenttype"];
    fields
        .rest(|is| amended.uses(is))
        .into_iter()
        .filter_map(|(name, value)| {
            let name = name.strip_prefix(AMENDED_EVENT)?.to_owned();
            (!used.contains(&name.as_str())).then_some((Cow::Owned(name), value))
        })
        .collect()
}
