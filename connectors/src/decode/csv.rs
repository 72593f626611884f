//! CSV with a header, as RFC 4180 describes it.

use std::borrow::Cow;
use std::sync::Arc;

use ratemill_schemas::usage::{Positions, RawRecords};
use ratemill_schemas::{Reason, UsageBatch};

use super::{Collector, DecodeContext, Fields, Place, Value};
use crate::mapping::Mapping;

/// The columns of a CSV file and what divides them.
#[derive(Debug, Clone)]
pub struct Header {
    columns: Arc<[String]>,
    delimiter: u8,
}

impl Header {
    /// Reads the header line and checks that it has the columns that the mapping needs.
    ///
    /// # Errors
    /// The reason and message with which the whole file is rejected.
    pub fn read(line: &[u8], delimiter: u8, mapping: &Mapping) -> Result<Self, (Reason, String)> {
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        let mut reader = csv::ReaderBuilder::new().has_headers(false).delimiter(delimiter).from_reader(line);
        let record = reader.records().next().transpose().map_err(|error| (Reason::HeaderInvalid, format!("header: {error}")))?;
        let columns: Vec<String> = record.iter().flatten().map(|name| name.trim().to_owned()).collect();
        if columns.is_empty() || columns.iter().any(String::is_empty) {
            return Err((Reason::HeaderInvalid, "the header is missing or has an empty name".to_owned()));
        }
        if let Some(name) = columns.iter().enumerate().find_map(|(index, name)| columns[..index].contains(name).then_some(name)) {
            return Err((Reason::HeaderInvalid, format!("the header names `{name}` twice")));
        }
        if let Some(missing) = mapping.required_fields().find(|field| !columns.iter().any(|column| column == field)) {
            return Err((Reason::ColumnMissing, format!("no column `{missing}`; the file has {}", columns.join(", "))));
        }
        Ok(Self { columns: columns.into(), delimiter })
    }
}

/// Reads a chunk of whole rows of the file `path`, the first of which is line `first_line` (from 1).
///
/// # Errors
/// When a column passes 2 GiB, which the size of chunks prevents.
pub fn chunk(
    context: &DecodeContext,
    mapping: &Mapping,
    header: &Header,
    path: &Arc<str>,
    first_line: u64,
    body: &[u8],
) -> Result<UsageBatch, arrow::error::ArrowError> {
    let capacity = body.len() / 60 + 1;
    let raw = RawRecords::Slices { body: Arc::from(body), ranges: Vec::with_capacity(capacity) };
    let positions = Positions::Line { path: Arc::clone(path), lines: Vec::with_capacity(capacity) };
    let mut collector = Collector::new(context, mapping, positions, raw, capacity);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).delimiter(header.delimiter).flexible(true).from_reader(body);
    let mut record = csv::ByteRecord::new();
    loop {
        let start = usize::try_from(reader.position().byte()).unwrap_or(usize::MAX);
        match reader.read_byte_record(&mut record) {
            Ok(false) => break,
            Ok(true) => {
                let from = record.position().map_or(start, |position| usize::try_from(position.byte()).unwrap_or(start));
                let line = first_line + record.position().map_or(0, |position| position.line() - 1);
                let end = usize::try_from(reader.position().byte()).unwrap_or(body.len());
                let bytes = body.get(from..end).unwrap_or_default().trim_ascii();
                if bytes.is_empty() {
                    continue;
                }
                let range = u32::try_from(from).ok().zip(u32::try_from(from + bytes.len()).ok());
                let fields = fields(context, header, &record, bytes);
                if !collector.record(&fields, Place::Line(line), bytes, range)
                    && let Ok(fields) = &fields
                {
                    // With the names of the columns, so that the row can be replayed without its file.
                    collector.set_last_raw(fields.to_json().into_bytes());
                }
            }
            Err(error) => {
                collector.reject(
                    None,
                    None,
                    Place::Line(first_line),
                    Reason::CsvMalformed,
                    error.to_string(),
                    &body[start.min(body.len())..],
                );
                break;
            }
        }
    }
    collector.finish()
}

fn fields<'a>(
    context: &DecodeContext,
    header: &'a Header,
    record: &'a csv::ByteRecord,
    raw: &[u8],
) -> Result<Fields<'a>, (Reason, String)> {
    if raw.len() > context.record_bytes_max {
        return Err((Reason::RecordTooLarge, format!("the row has {} bytes; the limit is {}", raw.len(), context.record_bytes_max)));
    }
    if record.len() != header.columns.len() {
        return Err((Reason::CsvFieldCount, format!("the row has {} fields; the header has {}", record.len(), header.columns.len())));
    }
    let mut fields = Fields::default();
    for (name, value) in header.columns.iter().zip(record) {
        let text = std::str::from_utf8(value).map_err(|error| (Reason::NotUtf8, format!("column `{name}` is not UTF-8: {error}")))?;
        let value = if text.is_empty() { Value::Null } else { Value::Text(Cow::Borrowed(text)) };
        fields.push(name.as_str(), value);
    }
    Ok(fields)
}

/// The length of the whole rows at the beginning of `bytes`: up to the last line break that ends a row.
///
/// A quote opens a quoted field only at the beginning of a field, as in RFC 4180; elsewhere it is a character.
#[must_use]
pub fn whole_rows(bytes: &[u8], delimiter: u8) -> usize {
    let (mut quoted, mut at_start, mut end) = (false, true, 0);
    for (index, byte) in bytes.iter().enumerate() {
        match *byte {
            // A doubled quote closes and opens again, so it needs no state of its own.
            b'"' if quoted => quoted = false,
            b'"' if at_start || (index > 0 && bytes[index - 1] == b'"') => quoted = true,
            b'\n' if !quoted => {
                end = index + 1;
                at_start = true;
                continue;
            }
            _ => {}
        }
        at_start = !quoted && *byte == delimiter;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_break_in_quotes_ends_no_row() {
        assert_eq!(whole_rows(b"a,b\n\"x\ny\",2\n3,\"4\n", b','), 12);
        assert_eq!(whole_rows(b"a,b", b','), 0);
        assert_eq!(whole_rows(b"5\" pipe,1\nx,2\n", b','), 16);
        assert_eq!(whole_rows(b"\"say \"\"a\n\"\"\",1\n\"", b','), 18);
    }
}
