//! What a test gives: rows, CSV or fixtures become reference tables and usage.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::error::ArrowError;
use ratemill_schemas::nearest::{did_you_mean, nearest};
use ratemill_schemas::time::{day_of, parse_instant};
use ratemill_schemas::usage::{DimensionValue, RESERVED};
use ratemill_schemas::{Decimal, EventHasher, UsageBatchBuilder, UsageEvent, UsageSchema};

use super::suite::{ATTRIBUTE, Cell, Cells, Fault, Format, Rows, UnitTest, place_of_row, place_of_text};
use crate::diagnostics::{Diagnostics, Place};
use crate::project::RuleProject;
use crate::reference::ReferenceData;

/// Prefix of the tables that hold charges of earlier windows.
pub(super) const EARLIER: &str = "earlier.";
/// `source` of usage rows that name none.
const SOURCE: &str = "test";

/// A row and where it stands.
#[derive(Debug, Clone)]
pub(super) struct TestRow {
    pub(super) place: Option<Place>,
    pub(super) cells: Cells,
}

impl TestRow {
    pub(super) fn text(&self, column: &str) -> Option<&str> {
        match self.cells.get(column) {
            Some(Cell::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn fault(&self, message: impl Into<String>) -> Fault {
        Fault::new(self.place, message)
    }

    /// Every column is one of `known`.
    pub(super) fn check_columns(&self, table: &str, known: &[String]) -> Result<(), Fault> {
        match self.cells.keys().find(|name| !known.contains(name)) {
            Some(name) => {
                let hint = did_you_mean(name, known.iter().map(String::as_str));
                Err(self.fault(format!("{table} has no column `{name}`{hint}")))
            }
            None => Ok(()),
        }
    }
}

/// A table that a test gives.
pub(super) struct GivenTable {
    pub(super) name: String,
    pub(super) place: Option<Place>,
    pub(super) rows: Vec<TestRow>,
}

/// Every table of `given`, each once and each of a known name.
pub(super) fn given(test: &UnitTest, project: &RuleProject, fixtures: &Path) -> Result<Vec<GivenTable>, Fault> {
    let mut tables: Vec<GivenTable> = Vec::new();
    for given in &test.given {
        let (name, place) = (given.input.value.clone(), place_of_text(&given.input));
        if tables.iter().any(|table| table.name == name) {
            return Err(Fault::new(place, format!("`{name}` is given twice")));
        }
        check_input(&name, test, project).map_err(|message| Fault::new(place, message))?;
        let rows = rows_of(given.format, given.rows.as_ref(), given.fixture.as_deref(), place, fixtures)?;
        tables.push(GivenTable { name, place, rows });
    }
    Ok(tables)
}

fn check_input(name: &str, test: &UnitTest, project: &RuleProject) -> Result<(), String> {
    if name == "usage" || project.reference.table(name).is_some() {
        return Ok(());
    }
    if name == "opening" {
        return Err("`opening` is made from usage: give usage with times before the window".to_owned());
    }
    let model = &test.model.value;
    let mut versions = project.rules.iter().filter(|rule| rule.name == *model);
    let earlier = name.strip_prefix(EARLIER);
    if project.rules.iter().any(|rule| rule.name == earlier.unwrap_or(name)) {
        let reads = versions.any(|rule| match earlier {
            Some(earlier) => rule.earlier.iter().any(|read| read == earlier),
            None => rule.upstream.iter().any(|read| read == name),
        });
        return if reads { Ok(()) } else { Err(format!("rule `{model}` does not read `{name}`")) };
    }
    let rules = project.rules.iter().flat_map(|rule| [rule.name.clone(), format!("{EARLIER}{}", rule.name)]);
    let known: Vec<String> =
        project.reference.tables().map(|table| table.name().to_owned()).chain(rules).chain(["usage".to_owned()]).collect();
    let hint = did_you_mean(name, known.iter().map(String::as_str));
    Err(format!("`{name}` is neither usage nor a reference table nor a rule{hint}"))
}

/// The rows of `rows` or `fixture`, whatever their format.
pub(super) fn rows_of(
    format: Option<Format>,
    rows: Option<&Rows>,
    fixture: Option<&str>,
    place: Option<Place>,
    fixtures: &Path,
) -> Result<Vec<TestRow>, Fault> {
    let fault = |message: &str| Err(Fault::new(place, message));
    match (rows, fixture, format) {
        (Some(_), Some(_), _) => fault("rows and fixture are both given; write one of them"),
        (None, None, _) => fault("neither rows nor a fixture is given; no rows are written `rows: []`"),
        (Some(Rows::Mappings(_)), _, Some(Format::Csv)) => fault("format is csv, but rows is a list; write CSV after `rows: |`"),
        (Some(Rows::Csv(_)), _, Some(Format::Dict)) => fault("format is dict, but rows is a text; write a list of rows"),
        (_, Some(_), Some(Format::Dict)) => fault("format is dict, but a fixture is a CSV file"),
        (Some(Rows::Mappings(rows)), None, _) => {
            Ok(rows.iter().map(|row| TestRow { place: place_of_row(row), cells: row.value.0.clone() }).collect())
        }
        (Some(Rows::Csv(text)), None, _) => csv_rows(text, "rows", place),
        (None, Some(name), _) => csv_rows(&read_fixture(name, place, fixtures)?, &format!("fixture `{name}`"), place),
    }
}

fn read_fixture(name: &str, place: Option<Place>, fixtures: &Path) -> Result<String, Fault> {
    let stem = name.strip_suffix(".csv").unwrap_or(name);
    if stem.is_empty() || stem.contains(['/', '\\']) || stem.starts_with('.') {
        return Err(Fault::new(place, format!("fixture `{name}` is not the name of a file in tests/fixtures")));
    }
    std::fs::read_to_string(fixtures.join(format!("{stem}.csv"))).map_err(|error| {
        let known: Vec<String> = std::fs::read_dir(fixtures)
            .map(|entries| entries.flatten().filter_map(|entry| entry.path().file_stem()?.to_str().map(str::to_owned)).collect())
            .unwrap_or_default();
        let hint = did_you_mean(stem, known.iter().map(String::as_str));
        Fault::new(place, format!("fixture tests/fixtures/{stem}.csv cannot be read: {error}{hint}"))
    })
}

/// Rows of CSV with a header; an empty field is a null.
fn csv_rows(text: &str, table: &str, place: Option<Place>) -> Result<Vec<TestRow>, Fault> {
    let fault = |error: csv::Error| Fault::new(place, format!("{table}: {error}"));
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = reader.headers().map_err(fault)?.clone();
    let mut names = HashSet::new();
    if let Some(twice) = header.iter().find(|name| !names.insert(*name)) {
        return Err(Fault::new(place, format!("{table}: column `{twice}` is there twice")));
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(fault)?;
        let cell = |field: &str| if field.is_empty() { Cell::Null } else { Cell::Text(field.to_owned()) };
        let cells = header.iter().zip(record.iter()).map(|(name, field)| (name.to_owned(), cell(field))).collect();
        rows.push(TestRow { place, cells });
    }
    Ok(rows)
}

/// The project's reference data with the given tables in the place of its own.
pub(super) fn given_reference(tables: &[GivenTable], project: &RuleProject) -> Result<ReferenceData, Fault> {
    let replaced = |name: &str| tables.iter().find(|table| table.name == name);
    let mut files = project.reference.files();
    if !files.iter().any(|(name, ..)| replaced(name).is_some()) {
        return Ok(project.reference.clone());
    }
    for (name, declaration, csv) in &mut files {
        if let Some(table) = replaced(name) {
            *csv = as_csv(table, declaration)?;
        }
    }
    let mut diagnostics = Diagnostics::default();
    let reference = ReferenceData::from_files(files, "test", &mut diagnostics);
    let Some(diagnostic) = diagnostics.0.first() else { return Ok(reference) };
    let table = tables.iter().find(|table| diagnostic.file.ends_with(&format!("/{}.csv", table.name)));
    // The header is the first line of the file that was made of the rows.
    let row = diagnostic.place.and_then(|place| usize::try_from(place.line).ok()).and_then(|line| line.checked_sub(2));
    let place = table.and_then(|table| row.and_then(|row| table.rows.get(row)).map_or(table.place, |row| row.place));
    let name = table.map_or("reference", |table| table.name.as_str());
    Err(Fault::new(place, format!("{name}: {}", diagnostic.message)))
}

/// The rows as the file that the loader reads, in the columns of the declaration.
fn as_csv(table: &GivenTable, declaration: &str) -> Result<String, Fault> {
    let fault = |error: String| Fault::new(table.place, format!("{}: {error}", table.name));
    let declared: toml::Table = toml::from_str(declaration).map_err(|error| fault(error.to_string()))?;
    let columns: Vec<String> =
        declared.get("columns").and_then(toml::Value::as_table).map(|columns| columns.keys().cloned().collect()).unwrap_or_default();
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(&columns).map_err(|error| fault(error.to_string()))?;
    for row in &table.rows {
        row.check_columns(&format!("`{}`", table.name), &columns)?;
        let record = columns.iter().map(|column| row.text(column).unwrap_or_default());
        writer.write_record(record).map_err(|error| fault(error.to_string()))?;
    }
    let bytes = writer.into_inner().map_err(|error| fault(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| fault(error.to_string()))
}

/// Usage as rules see it.
pub(super) struct GivenUsage {
    /// Rows of `UsageSchema::stored`.
    pub(super) batch: RecordBatch,
    /// Subject and time of each row, µs UTC.
    pub(super) events: Vec<(String, i64)>,
}

/// The given usage, checked as every transport checks it.
pub(super) fn given_usage(tables: &[GivenTable], schema: &UsageSchema) -> Result<GivenUsage, Fault> {
    let rows = tables.iter().find(|table| table.name == "usage").map_or(&[] as &[TestRow], |table| table.rows.as_slice());
    let mut builder = UsageBatchBuilder::new(schema, EventHasher::new([0, 0]), i64::MAX, rows.len());
    let mut identities = HashSet::new();
    let mut events = Vec::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        check_usage_columns(row, schema)?;
        let number = (index + 1).to_string();
        let (source, id) = (row.text("source").unwrap_or(SOURCE), row.text("id").unwrap_or(&number));
        if !identities.insert((source.to_owned(), id.to_owned())) {
            return Err(row.fault(format!("two usage rows have the id `{id}` and the source `{source}`; a resent event is charged once")));
        }
        let instant = |column: &str, text: &str| parse_instant(text).map_err(|error| row.fault(format!("`{column}`: `{text}` {error}")));
        let quantity = required(row, "quantity")?;
        let mut dimensions = Vec::with_capacity(schema.dimensions().len());
        for dimension in schema.dimensions() {
            dimensions.push(match row.text(&dimension.name) {
                Some(text) => {
                    let value = dimension.kind.parse(Cow::Borrowed(text));
                    value.map_err(|error| row.fault(format!("`{}`: {error}", dimension.name)))?
                }
                None => DimensionValue::Null,
            });
        }
        let attributes: Vec<(Cow<'_, str>, Cow<'_, str>)> = row
            .cells
            .keys()
            .filter(|name| !is_usage_column(name, schema))
            .filter_map(|name| Some((Cow::Borrowed(name.strip_prefix(ATTRIBUTE).unwrap_or(name)), Cow::Borrowed(row.text(name)?))))
            .collect();
        let event = UsageEvent {
            source,
            id,
            meter: required(row, "meter")?,
            subject: required(row, "subject")?,
            time: instant("time", required(row, "time")?)?,
            quantity: quantity.parse::<Decimal>().map_err(|error| row.fault(format!("`quantity`: `{quantity}` {error}")))?,
            end: row.text("end").map(|text| instant("end", text)).transpose()?,
            dimensions: &dimensions,
            attributes: &attributes,
        };
        builder.append(&event).map_err(|(_, message)| row.fault(message))?;
        events.push((event.subject.to_owned(), event.time));
    }
    let batch = builder.finish().and_then(|(batch, ..)| stored(&batch, schema, &events));
    Ok(GivenUsage { batch: batch.map_err(|error| Fault::new(None, error.to_string()))?, events })
}

fn is_usage_column(name: &str, schema: &UsageSchema) -> bool {
    RESERVED.contains(&name) || schema.dimensions().iter().any(|dimension| dimension.name == name)
}

/// Fields beside the columns of usage are attributes, as on every transport; one that is a letter away from a column is
/// a slip of the pen.
fn check_usage_columns(row: &TestRow, schema: &UsageSchema) -> Result<(), Fault> {
    let columns: Vec<&str> =
        RESERVED[..7].iter().copied().chain(schema.dimensions().iter().map(|dimension| dimension.name.as_str())).collect();
    for name in row.cells.keys() {
        if ["attributes", "ingested_at", "log_position", "day"].contains(&name.as_str()) {
            return Err(row.fault(format!("`{name}` is filled in by Ratemill; an attribute is a column `{ATTRIBUTE}NAME`")));
        }
        let slip = columns.iter().find(|column| !row.cells.contains_key(**column) && strsim::damerau_levenshtein(name, column) == 1);
        if let Some(column) = slip.filter(|_| !columns.contains(&name.as_str())) {
            return Err(row.fault(format!("usage has no column `{name}`; did you mean `{column}`? An attribute is `{ATTRIBUTE}{name}`")));
        }
    }
    Ok(())
}

fn required<'a>(row: &'a TestRow, column: &str) -> Result<&'a str, Fault> {
    row.text(column).ok_or_else(|| {
        let others = row.cells.keys().map(String::as_str).filter(|name| !RESERVED.contains(name));
        let hint = nearest(column, others).map_or_else(String::new, |other| format!(", only `{other}`"));
        row.fault(format!("a usage row has no `{column}`{hint}"))
    })
}

/// The columns that the usage table has beside the decoded ones. Ingestion is at the event's own time, so that a test
/// gives the same at any time of day.
fn stored(batch: &RecordBatch, schema: &UsageSchema, events: &[(String, i64)]) -> Result<RecordBatch, ArrowError> {
    let times = events.iter().map(|(_, time)| *time);
    let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
    columns.push(Arc::new(TimestampMicrosecondArray::from_iter_values(times.clone()).with_timezone("UTC")));
    columns.push(Arc::new(Int64Array::from_iter_values(0..events.len() as i64)));
    columns.push(Arc::new(Date32Array::from_iter_values(times.map(day_of))));
    RecordBatch::try_new(schema.stored().clone(), columns)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ratemill_schemas::usage::{Dimension, DimensionType};

    use super::*;

    fn usage(csv: &str) -> Result<GivenUsage, String> {
        let schema = UsageSchema::new(vec![Dimension { name: "region".to_owned(), kind: DimensionType::Text }]);
        let rows = csv_rows(csv, "rows", None).map_err(|fault| fault.message)?;
        let table = GivenTable { name: "usage".to_owned(), place: None, rows };
        given_usage(&[table], &schema).map_err(|fault| fault.message)
    }

    #[test]
    fn usage_rows_are_events() {
        let found = usage(
            "subject,meter,time,quantity,region,floor\n\
             acme,call,2026-09-03T10:00:00Z,2.50,eu,3\n\
             bold,call,2026-09-04T10:00:00+02:00,1,,\n",
        )
        .unwrap();
        assert_eq!(found.batch.num_rows(), 2);
        assert_eq!(found.events[1], ("bold".to_owned(), parse_instant("2026-09-04T08:00:00Z").unwrap()));
        let schema = UsageSchema::new(vec![Dimension { name: "region".to_owned(), kind: DimensionType::Text }]);
        assert_eq!(found.batch.schema(), *schema.stored());
        assert_eq!(usage("subject,meter,time,quantity\n").unwrap().batch.num_rows(), 0);
    }

    #[test]
    fn usage_rows_that_are_no_events_say_why() {
        for (csv, message) in [
            ("meter,time,quantity\nm,2026-09-03T10:00:00Z,1\n", "a usage row has no `subject`"),
            ("subjects,meter,time,quantity\na,m,2026-09-03T10:00:00Z,1\n", "usage has no column `subjects`; did you mean `subject`?"),
            ("subject,meter,time,quantity,regoin\na,m,2026-09-03T10:00:00Z,1,eu\n", "did you mean `region`?"),
            ("subject,meter,time,quantity\na,m,2026-09-03,1\n", "`time`: `2026-09-03` is not a time"),
            ("subject,meter,time,quantity\na,m,2026-09-03T10:00:00Z,1.5.2\n", "`quantity`: `1.5.2` is not a decimal number"),
            (
                "id,subject,meter,time,quantity\n1,a,m,2026-09-03T10:00:00Z,1\n1,a,m,2026-09-03T10:00:00Z,1\n",
                "two usage rows have the id `1`",
            ),
            ("subject,subject\na,b\n", "column `subject` is there twice"),
        ] {
            let error = usage(csv).err().unwrap();
            assert!(error.contains(message), "{error}");
        }
    }
}
