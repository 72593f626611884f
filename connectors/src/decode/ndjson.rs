//! Plain JSON with a mapping: lines of a file, or one MQTT message.

use std::sync::Arc;

use ratemill_schemas::usage::{Positions, RawRecords};
use ratemill_schemas::{Reason, UsageBatch};

use super::{Collector, DecodeContext, Fields, Place, cloudevents};
use crate::mapping::Mapping;

/// What one line of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A CloudEvent.
    CloudEvent,
    /// An object of any fields, read by the mapping.
    Plain,
}

/// Reads a chunk of whole lines of the file `path`, the first of which is line `first_line` (from 1).
///
/// # Errors
/// When a column passes 2 GiB, which the size of chunks prevents.
pub fn chunk(
    context: &DecodeContext,
    mapping: &Mapping,
    shape: Shape,
    path: &Arc<str>,
    first_line: u64,
    body: &[u8],
) -> Result<UsageBatch, arrow::error::ArrowError> {
    let capacity = body.len() / 150 + 1;
    let raw = RawRecords::Slices { body: Arc::from(body), ranges: Vec::with_capacity(capacity) };
    let positions = Positions::Line { path: Arc::clone(path), lines: Vec::with_capacity(capacity) };
    let mut collector = Collector::new(context, mapping, positions, raw, capacity);
    let mut start = 0;
    for (line_number, line) in (first_line..).zip(body.split(|byte| *byte == b'\n')) {
        let end = start + line.len();
        let trimmed = line.trim_ascii_end();
        if !trimmed.trim_ascii().is_empty() {
            let range = u32::try_from(start).ok().zip(u32::try_from(start + trimmed.len()).ok());
            collector.record(&parse(context, shape, trimmed), Place::Line(line_number), trimmed, range);
        }
        start = end + 1;
    }
    collector.finish()
}

/// The fields of one record.
///
/// # Errors
/// The reason and message of the rejection.
pub fn parse<'a>(context: &DecodeContext, shape: Shape, raw: &'a [u8]) -> Result<Fields<'a>, (Reason, String)> {
    let text = std::str::from_utf8(raw).map_err(|error| (Reason::NotUtf8, format!("not UTF-8: {error}")))?;
    match shape {
        Shape::CloudEvent => cloudevents::parse(text, context),
        Shape::Plain if text.len() > context.record_bytes_max => {
            Err((Reason::RecordTooLarge, format!("the record has {} bytes; the limit is {}", text.len(), context.record_bytes_max)))
        }
        Shape::Plain => Fields::parse(text, context.depth_max),
    }
}
