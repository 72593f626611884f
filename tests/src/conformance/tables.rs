//! Reference tables and usage of one case.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Date32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use ratemill_rules::{Diagnostics, ReferenceData};
use ratemill_schemas::time::{day_of, parse_instant};
use ratemill_schemas::usage::DimensionValue;
use ratemill_schemas::{Decimal, EventHasher, UsageBatchBuilder, UsageEvent, UsageSchema};
use serde_json::Value;

use super::case::{Case, scalar_text};
use super::mapping::{ColumnMapping, Kind, Mapping, RunMapping, TableMapping, UsageMapping};
use super::path::{Lookup, Row};

/// The usage events of a case.
#[derive(Debug)]
pub struct Usage {
    /// Rows of `UsageSchema::stored`.
    pub batch: RecordBatch,
    /// The subject and time (µs UTC) of each row.
    pub events: Vec<(String, i64)>,
}

/// The reference data of a case, read as the files of a project are.
///
/// # Errors
/// When the case lacks what the mapping asks for; what the files lack goes into `diagnostics`.
pub fn reference(mapping: &Mapping, case: &Case, diagnostics: &mut Diagnostics) -> Result<ReferenceData, String> {
    let mut files = Vec::with_capacity(mapping.tables.len());
    for table in &mapping.tables {
        let rows = csv_of(table, case).map_err(|message| format!("table `{}`: {message}", table.name))?;
        files.push((table.name.clone(), table.declaration(), rows));
    }
    Ok(ReferenceData::from_files(files, &case.id, diagnostics))
}

fn csv_of(table: &TableMapping, case: &Case) -> Result<String, String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = std::iter::once("case_id").chain(table.columns.iter().map(|column| column.name.as_str()));
    writer.write_record(header).map_err(|error| error.to_string())?;
    for row in table.rows.of(case)? {
        let mut cells = vec![case.id.clone()];
        for column in &table.columns {
            cells.push(column.cell(case, &row)?.unwrap_or_default());
        }
        writer.write_record(&cells).map_err(|error| error.to_string())?;
    }
    let bytes = writer.into_inner().map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

impl ColumnMapping {
    /// The value for a row as CSV writes it; `None` where it may be absent and is.
    fn cell(&self, case: &Case, row: &Row<'_>) -> Result<Option<String>, String> {
        let wrong = |message: String| format!("column `{}`: `{}` {message}", self.name, self.value.text());
        match self.value.find(case, row) {
            Some(value) => self.kind.text(&value).map(Some).map_err(wrong),
            None if self.nullable => Ok(None),
            None => Err(wrong("is absent or null; write the type with `?` where it may be".to_owned())),
        }
    }
}

impl Kind {
    fn text(self, value: &Value) -> Result<String, String> {
        match (self, value) {
            (Self::Text, Value::Array(items)) if items.iter().all(|item| !item.is_array() && !item.is_object() && !item.is_null()) => {
                Ok(items.iter().map(scalar_text).collect::<Result<Vec<_>, _>>()?.join(","))
            }
            (Self::Text, Value::Array(_) | Value::Object(_)) => Ok(value.to_string()),
            (Self::Timestamp, _) => scalar_text(value).map(|text| with_offset(&text)),
            _ => scalar_text(value),
        }
    }
}

/// A time without an offset is UTC, and a date is the first instant of its day; any other text is left as it is.
#[must_use]
pub fn with_offset(text: &str) -> String {
    let Some((date, rest)) = text.split_at_checked("2026-01-01".len()) else { return text.to_owned() };
    if rest.is_empty() {
        return format!("{date}T00:00:00Z");
    }
    let (time, offset) = rest.split_at(rest.find(['Z', 'z', '+', '-']).unwrap_or(rest.len()));
    let seconds = if time.len() == "T09:30".len() { ":00" } else { "" };
    let offset = if offset.is_empty() { "Z" } else { offset };
    format!("{date}{time}{seconds}{offset}")
}

/// The usage of a case; no rows where the mapping has none.
///
/// # Errors
/// When the case lacks what the mapping asks for, or an event would be rejected.
pub fn usage(mapping: &Mapping, case: &Case) -> Result<Usage, String> {
    let Some(usage) = &mapping.usage else {
        return Ok(Usage { batch: RecordBatch::new_empty(mapping.usage_schema.stored().clone()), events: Vec::new() });
    };
    let rows = usage.rows.of(case).map_err(|message| format!("usage: {message}"))?;
    let mut events = Events::new(&mapping.usage_schema, rows.len());
    for (index, row) in rows.iter().enumerate() {
        let position = (index + 1).to_string();
        events.add(usage, case, row, &position).map_err(|message| format!("usage event {position}: {message}"))?;
    }
    events.finish()
}

/// Events on their way into a batch of stored usage.
struct Events<'a> {
    schema: &'a UsageSchema,
    builder: UsageBatchBuilder,
    events: Vec<(String, i64)>,
    ingested: Vec<i64>,
}

impl<'a> Events<'a> {
    fn new(schema: &'a UsageSchema, capacity: usize) -> Self {
        // Nothing is deduplicated here: the keys do not matter.
        let builder = UsageBatchBuilder::new(schema, EventHasher::new([0, 0]), i64::MAX, capacity);
        Self { schema, builder, events: Vec::with_capacity(capacity), ingested: Vec::with_capacity(capacity) }
    }

    fn add(&mut self, usage: &UsageMapping, case: &Case, row: &Row<'_>, position: &str) -> Result<(), String> {
        let mut cells: BTreeMap<&str, String> = BTreeMap::new();
        for column in &usage.columns {
            if let Some(text) = column.cell(case, row)? {
                cells.insert(&column.name, text);
            }
        }
        let text = |name: &str| cells.get(name).map(String::as_str);
        let instant = |name: &str| text(name).map(instant_of).transpose().map_err(|message| format!("column `{name}`: {message}"));
        let time = instant("time")?.ok_or("`time` is absent")?;
        let quantity = text("quantity").ok_or("`quantity` is absent")?;
        let quantity: Decimal = quantity.parse().map_err(|error| format!("column `quantity`: `{quantity}` {error}"))?;
        let dimensions: Vec<DimensionValue<'_>> = self
            .schema
            .dimensions()
            .iter()
            .map(|dimension| text(&dimension.name).map_or(Ok(DimensionValue::Null), |text| dimension.kind.parse(Cow::Borrowed(text))))
            .collect::<Result<_, String>>()?;
        let event = UsageEvent {
            source: text("source").unwrap_or("conformance"),
            id: text("id").unwrap_or(position),
            meter: text("meter").unwrap_or_default(),
            subject: text("subject").unwrap_or_default(),
            time,
            quantity,
            end: instant("end")?,
            dimensions: &dimensions,
            attributes: &[],
        };
        self.builder.append(&event).map_err(|(_, message)| message)?;
        self.events.push((event.subject.to_owned(), time));
        self.ingested.push(instant("ingested_at")?.unwrap_or(time));
        Ok(())
    }

    fn finish(self) -> Result<Usage, String> {
        let (decoded, ..) = self.builder.finish().map_err(|error| error.to_string())?;
        let mut columns = decoded.columns().to_vec();
        columns.push(Arc::new(TimestampMicrosecondArray::from_iter_values(self.ingested).with_timezone("UTC")));
        columns.push(Arc::new(Int64Array::from_iter_values((0..).take(self.events.len()))));
        columns.push(Arc::new(Date32Array::from_iter_values(self.events.iter().map(|(_, time)| day_of(*time)))));
        let batch = RecordBatch::try_new(self.schema.stored().clone(), columns).map_err(|error| error.to_string())?;
        Ok(Usage { batch, events: self.events })
    }
}

/// The range that the case asks for; `None` where it does not say.
///
/// # Errors
/// When a bound is no time.
pub fn range(run: &RunMapping, case: &Case) -> Result<Option<(i64, i64)>, String> {
    let bound = |lookup: &Lookup| -> Result<Option<i64>, String> {
        let Some(value) = lookup.find(case, &Row::default()) else { return Ok(None) };
        let text = Kind::Timestamp.text(&value).map_err(|message| format!("[run] `{}` {message}", lookup.text()))?;
        instant_of(&text).map(Some).map_err(|message| format!("[run] `{}`: {message}", lookup.text()))
    };
    Ok(bound(&run.from)?.zip(bound(&run.to)?))
}

fn instant_of(text: &str) -> Result<i64, String> {
    parse_instant(text).map_err(|error| format!("`{text}` {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::AsArray;
    use arrow::datatypes::Decimal128Type;
    use serde_json::json;

    use super::*;

    fn case() -> Case {
        let json = json!({
            "id": "a, \"b\"", "model": "m", "expected": {"amount": "1"},
            "params": {"windows": [{"days": [1, 2, 5], "price": "0.28"}, {"days": [], "price": null}], "base": {"unit": ["x"]}},
            "input": {"from": "2024-03-04", "events": [
                {"at": "2024-03-04T15:00:00", "units": "10"},
                {"at": "2024-03-05T01:00:00+02:00", "units": "-0.5", "stored_at": "2024-03-06"},
            ]},
        });
        Case::read(1, json).unwrap()
    }

    fn mapping(columns: &str) -> Mapping {
        Mapping::parse(&format!("[tables.t]\nrows = \"params.windows\"\ncolumns = {{ {columns} }}")).unwrap()
    }

    #[test]
    fn rows_become_csv() {
        let mapping =
            mapping(r#"base = "text params.base", days = "text @.days", position = "integer @index", price = "decimal? @.price""#);
        let expected = "case_id,base,days,position,price\n\
            \"a, \"\"b\"\"\",\"{\"\"unit\"\":[\"\"x\"\"]}\",\"1,2,5\",1,0.28\n\
            \"a, \"\"b\"\"\",\"{\"\"unit\"\":[\"\"x\"\"]}\",,2,\n";
        assert_eq!(csv_of(&mapping.tables[0], &case()).unwrap(), expected);
    }

    #[test]
    fn what_the_case_lacks_is_named() {
        let error = csv_of(&mapping(r#"price = "decimal @.price""#).tables[0], &case()).unwrap_err();
        assert_eq!(error, "column `price`: `@.price` is absent or null; write the type with `?` where it may be");
        let error = csv_of(&mapping(r#"days = "integer @.days""#).tables[0], &case()).unwrap_err();
        assert!(error.contains("is a list or an object"), "{error}");
    }

    #[test]
    fn the_loader_reads_what_is_written() {
        let mut diagnostics = Diagnostics::default();
        let mapping = mapping(r#"days = "text? @.days", price = "decimal? @.price""#);
        let reference = reference(&mapping, &case(), &mut diagnostics).unwrap();
        assert!(!diagnostics.has_errors(), "{diagnostics}");
        assert_eq!(reference.table("t").unwrap().batch().num_rows(), 2);
    }

    #[test]
    fn times_without_an_offset_are_utc() {
        for (text, expected) in [
            ("2024-03-04", "2024-03-04T00:00:00Z"),
            ("2024-03-04T15:00:00", "2024-03-04T15:00:00Z"),
            ("2024-03-04T15:00", "2024-03-04T15:00:00Z"),
            ("2024-03-04T15:00:00.25Z", "2024-03-04T15:00:00.25Z"),
            ("2024-03-04T15:00-05:00", "2024-03-04T15:00:00-05:00"),
            ("2024-03-04 15:00:00+02:00", "2024-03-04 15:00:00+02:00"),
            ("soon", "soon"),
        ] {
            assert_eq!(with_offset(text), expected);
        }
    }

    #[test]
    fn events_become_stored_usage() {
        let text = r#"
            [usage]
            rows = "input.events"
            [usage.columns]
            subject = "text 'customer'"
            meter = "text 'usage'"
            time = "timestamp @.at"
            quantity = "decimal @.units"
            ingested_at = "timestamp? @.stored_at"
            case_id = "text id"
            [run]
            from = "input.from"
            to = "'2024-04-01'"
        "#;
        let mapping = Mapping::parse(text).unwrap();
        let usage = usage(&mapping, &case()).unwrap();
        let at = |text: &str| parse_instant(text).unwrap();
        let times: Vec<i64> = usage.events.iter().map(|(_, time)| *time).collect();
        assert_eq!(times, [at("2024-03-04T15:00:00Z"), at("2024-03-04T23:00:00Z")]);
        let quantities = usage.batch.column_by_name("quantity").unwrap().as_primitive::<Decimal128Type>();
        assert_eq!(Decimal::from_raw(quantities.value(1)).unwrap(), "-0.5".parse().unwrap());
        let ids = usage.batch.column_by_name("id").unwrap().as_string::<i32>();
        assert_eq!(ids.iter().flatten().collect::<Vec<_>>(), ["1", "2"]);
        let range = range(mapping.run.as_ref().unwrap(), &case()).unwrap();
        assert_eq!(range, Some((at("2024-03-04T00:00:00Z"), at("2024-04-01T00:00:00Z"))));
    }
}
