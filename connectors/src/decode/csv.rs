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
    let mut record = csv::ByteRecord::new();
    let mut line = first_line;
    for row in (Rows { bytes: body, delimiter: header.delimiter, at: 0 }) {
        let bytes = &body[row.start..row.end];
        let trimmed = bytes.trim_ascii();
        let breaks = bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        if !trimmed.is_empty() {
            if row.sound {
                let range = u32::try_from(row.start).ok().zip(u32::try_from(row.start + trimmed.len()).ok());
                split(bytes, header.delimiter, &mut record);
                let fields = fields(context, header, &record, trimmed);
                if !collector.record(&fields, Place::Line(line), trimmed, range)
                    && let Ok(fields) = &fields
                {
                    // With the names of the columns, so that the row can be replayed without its file.
                    collector.set_last_raw(fields.to_json().into_bytes());
                }
            } else {
                let message = "a quote is open at the end, or text follows a closing quote".to_owned();
                collector.reject(None, None, Place::Line(line), Reason::CsvMalformed, message, trimmed);
            }
        }
        line += breaks;
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

/// One row of a chunk.
struct Row {
    start: usize,
    end: usize,
    /// Its quotes are as RFC 4180 says.
    sound: bool,
}

/// The rows of a chunk. A row whose quotes are wrong ends with its line, so that it takes no other with it.
struct Rows<'a> {
    bytes: &'a [u8],
    delimiter: u8,
    at: usize,
}

impl Iterator for Rows<'_> {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        let start = self.at;
        if start >= self.bytes.len() {
            return None;
        }
        let rest = &self.bytes[start..];
        let (end, sound) = match row_end(rest, self.delimiter) {
            Some(end) => (end, true),
            None => (rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |index| index + 1), false),
        };
        self.at = start + end;
        Some(Row { start, end: start + end, sound })
    }
}

/// Where the first row ends, its line break included; `None` where its quotes are wrong or never closed.
///
/// A quote opens a quoted field only at the beginning of a field, as in RFC 4180; elsewhere it is a character.
fn row_end(bytes: &[u8], delimiter: u8) -> Option<usize> {
    let mut index = 0;
    loop {
        // At the beginning of a field.
        if bytes.get(index) == Some(&b'"') {
            index += 1;
            loop {
                index += bytes.get(index..)?.iter().position(|byte| *byte == b'"')? + 1;
                if bytes.get(index) != Some(&b'"') {
                    break;
                }
                index += 1;
            }
            match bytes.get(index) {
                None => return Some(index),
                Some(b'\r') if bytes.get(index + 1).is_none_or(|next| *next == b'\n') => index += 1,
                Some(byte) if *byte == delimiter || *byte == b'\n' => {}
                Some(_) => return None,
            }
        } else {
            index += bytes[index..].iter().position(|byte| *byte == delimiter || *byte == b'\n').unwrap_or(bytes.len() - index);
        }
        match bytes.get(index) {
            None => return Some(bytes.len()),
            Some(b'\n') => return Some(index + 1),
            Some(_) => index += 1,
        }
    }
}

/// The fields of a sound row.
fn split(row: &[u8], delimiter: u8, record: &mut csv::ByteRecord) {
    record.clear();
    let row = row.strip_suffix(b"\n").unwrap_or(row);
    let row = row.strip_suffix(b"\r").unwrap_or(row);
    let mut rest = row;
    loop {
        if let Some(quoted) = rest.strip_prefix(b"\"") {
            let mut value = Vec::new();
            let mut index = 0;
            while let Some(&byte) = quoted.get(index) {
                if byte == b'"' {
                    if quoted.get(index + 1) != Some(&b'"') {
                        break;
                    }
                    index += 1;
                }
                value.push(byte);
                index += 1;
            }
            record.push_field(&value);
            rest = quoted.get(index + 1..).unwrap_or_default();
        } else {
            let end = rest.iter().position(|byte| *byte == delimiter).unwrap_or(rest.len());
            record.push_field(&rest[..end]);
            rest = &rest[end..];
        }
        match rest.split_first() {
            Some((_, after)) => rest = after,
            None => return,
        }
    }
}

/// The length of the whole rows at the beginning of `bytes`. Where a quote is open to the end, more may follow that
/// closes it; `Rows` decides once the chunk is complete.
#[must_use]
pub fn whole_rows(bytes: &[u8], delimiter: u8) -> usize {
    let mut end = 0;
    while let Some(length) = row_end(&bytes[end..], delimiter) {
        if length == 0 || bytes[end + length - 1] != b'\n' {
            break;
        }
        end += length;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_with_wrong_quotes_takes_no_other_with_it() {
        let text = b"a,1\n\"lost\"x,2\nb,3\n\"open,4\nc,5\n";
        let rows: Vec<(String, bool)> = Rows { bytes: text, delimiter: b',', at: 0 }
            .map(|row| (String::from_utf8_lossy(&text[row.start..row.end]).trim().to_owned(), row.sound))
            .collect();
        let expected = [("a,1", true), ("\"lost\"x,2", false), ("b,3", true), ("\"open,4", false), ("c,5", true)];
        assert_eq!(rows, expected.map(|(row, sound)| (row.to_owned(), sound)));
    }

    #[test]
    fn fields_are_split_as_rfc_4180_says() {
        let mut record = csv::ByteRecord::new();
        split(b"a,\"b \"\"c\"\",\nd\",,5\" pipe\r\n", b',', &mut record);
        assert_eq!(record.iter().collect::<Vec<_>>(), [&b"a"[..], b"b \"c\",\nd", b"", b"5\" pipe"]);
    }

    #[test]
    fn a_line_break_in_quotes_ends_no_row() {
        assert_eq!(whole_rows(b"a,b\n\"x\ny\",2\n3,\"4\n", b','), 12);
        assert_eq!(whole_rows(b"a,b", b','), 0);
        assert_eq!(whole_rows(b"5\" pipe,1\nx,2\n", b','), 14);
        let quoted = b"\"say \"\"a\n\"\"\",1\n\"";
        assert_eq!(whole_rows(quoted, b','), quoted.len() - 1);
    }
}
