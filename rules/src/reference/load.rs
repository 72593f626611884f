//! From a declaration and CSV text to an Arrow table: types, lists, keys and validity.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Date32Builder, Decimal128Builder, Int64Builder, ListArray, RecordBatch, StringBuilder, StructArray,
    TimestampMicrosecondBuilder,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields, Schema};
use ratemill_schemas::decimal::DECIMAL;
use ratemill_schemas::nearest::did_you_mean;
use ratemill_schemas::time::{format_instant, instant_type, parse_instant};
use ratemill_schemas::{Decimal, windows};
use serde::Deserialize;

use crate::diagnostics::{Diagnostic, Diagnostics, Place, Severity};
use crate::functions::tiers_field;

/// Columns that make tiers.
const TIER_COLUMNS: [&str; 3] = ["up_to", "unit_price", "flat_fee"];

/// The declaration beside a CSV file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Declaration {
    #[serde(default)]
    key: Vec<String>,
    timezone: Option<String>,
    gaps: Option<Gaps>,
    columns: toml::Table,
    #[serde(default)]
    lists: BTreeMap<String, Vec<String>>,
}

/// Whether a key may be without a row for a time between two rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Gaps {
    Allowed,
    Refused,
}

/// A list column and the columns that it is made of.
struct ListColumn {
    name: String,
    columns: Vec<Column>,
    rows: Vec<Vec<Vec<Cell>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ColumnType {
    Text,
    Integer,
    Decimal,
    Boolean,
    Date,
    Timestamp,
}

#[derive(Debug, Clone)]
struct Column {
    name: String,
    kind: ColumnType,
    nullable: bool,
}

impl Column {
    /// Bounds of a validity are instants, however they are written.
    fn is_bound(&self) -> bool {
        self.name == "valid_from" || self.name == "valid_to"
    }

    fn arrow(&self) -> DataType {
        match self.kind {
            ColumnType::Text => DataType::Utf8,
            ColumnType::Integer => DataType::Int64,
            ColumnType::Decimal => DECIMAL,
            ColumnType::Boolean => DataType::Boolean,
            ColumnType::Date if self.is_bound() => instant_type(),
            ColumnType::Date => DataType::Date32,
            ColumnType::Timestamp => instant_type(),
        }
    }
}

/// One value of a CSV field.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Cell {
    Null,
    Text(String),
    Integer(i64),
    Decimal(Decimal),
    Boolean(bool),
    Date(i32),
    Instant(i64),
}

pub(super) struct Loader<'a> {
    pub(super) name: &'a str,
    pub(super) shown: &'a str,
    pub(super) declaration: &'a str,
    pub(super) csv: &'a str,
    pub(super) diagnostics: &'a mut Diagnostics,
}

/// A row and the line that it stands in.
type Row = (u64, Vec<Cell>);

impl Loader<'_> {
    fn csv_error(&mut self, line: u64, message: impl Into<String>) {
        let file = format!("{}/reference/{}.csv", self.shown, self.name);
        if self.diagnostics.is_full(&file, Severity::Error) {
            return;
        }
        let place = self.place_of_line(line);
        self.diagnostics.push(Diagnostic::error("reference", &file, self.csv, Some(place), message));
    }

    fn toml_error(&mut self, place: Option<Place>, message: impl Into<String>) {
        let file = format!("{}/reference/{}.toml", self.shown, self.name);
        self.diagnostics.push(Diagnostic::error("reference", &file, self.declaration, place, message));
    }

    pub(super) fn load(&mut self) -> Option<(Vec<String>, RecordBatch)> {
        let declaration: Declaration = match toml::from_str(self.declaration) {
            Ok(declaration) => declaration,
            Err(error) => {
                let place = error.span().map(|span| place_of_byte(self.declaration, span.start));
                self.toml_error(place, error.message().to_owned());
                return None;
            }
        };
        let columns = self.columns(&declaration)?;
        let timezone = declaration.timezone.clone().unwrap_or_else(|| "UTC".to_owned());
        if let Err(error) = windows::zone(&timezone) {
            self.toml_error(None, error.to_string());
            return None;
        }
        let rows = self.rows(&columns, &timezone)?;
        let (columns, rows, list) = match self.list(&declaration, &columns)? {
            Some((name, members)) => {
                let (columns, rows, list) = self.group(&name, &members, &columns, rows)?;
                (columns, rows, Some(list))
            }
            None => (columns, rows, None),
        };
        self.check_key(&declaration, &columns, &rows)?;
        match build(&columns, &rows, list) {
            Ok(batch) => Some((declaration.key, batch)),
            Err(error) => {
                self.toml_error(None, error.to_string());
                None
            }
        }
    }

    /// The list of the table, if it has one: name and member columns.
    #[allow(clippy::option_option)]
    fn list(&mut self, declaration: &Declaration, columns: &[Column]) -> Option<Option<(String, Vec<String>)>> {
        let known = |name: &str| columns.iter().any(|column| column.name == name);
        let mut lists = declaration.lists.iter();
        let Some((name, members)) = lists.next() else {
            let tiered = TIER_COLUMNS.iter().all(|name| known(name));
            return Some(tiered.then(|| ("tiers".to_owned(), TIER_COLUMNS.map(str::to_owned).to_vec())));
        };
        if lists.next().is_some() {
            self.toml_error(None, "a table has one list; put the other one into a table of its own");
            return None;
        }
        if let Some(wrong) = members.iter().find(|member| !known(member)) {
            let hint = did_you_mean(wrong, columns.iter().map(|column| column.name.as_str()));
            self.toml_error(None, format!("list `{name}` names `{wrong}`, which is no column{hint}"));
            return None;
        }
        if members.is_empty() || known(name) || declaration.key.iter().any(|key| members.contains(key)) {
            self.toml_error(None, format!("list `{name}` needs columns that are no key, and a name that is no column"));
            return None;
        }
        Some(Some((name.clone(), members.clone())))
    }

    fn columns(&mut self, declaration: &Declaration) -> Option<Vec<Column>> {
        let mut columns = Vec::new();
        for (name, value) in &declaration.columns {
            let text = value.as_str().unwrap_or_default();
            let (word, nullable) = text.strip_suffix('?').map_or((text, false), |word| (word, true));
            let kind = match word {
                "text" => ColumnType::Text,
                "integer" => ColumnType::Integer,
                "decimal" => ColumnType::Decimal,
                "boolean" => ColumnType::Boolean,
                "date" => ColumnType::Date,
                "timestamp" => ColumnType::Timestamp,
                _ => {
                    let hint = did_you_mean(word, ["text", "integer", "decimal", "boolean", "date", "timestamp"]);
                    self.toml_error(None, format!("column `{name}` has type `{text}`, which is none of text, integer, decimal, boolean, date, timestamp (with `?` where it may be empty){hint}"));
                    return None;
                }
            };
            if nullable && matches!(name.as_str(), "unit_price" | "flat_fee") {
                self.toml_error(None, format!("`{name}` of a tier cannot be empty; write 0 and declare it without `?`"));
                return None;
            }
            columns.push(Column { name: name.clone(), kind, nullable });
        }
        for key in &declaration.key {
            if !columns.iter().any(|column| column.name == *key) {
                self.toml_error(
                    None,
                    format!("key names `{key}`, which is no column{}", did_you_mean(key, columns.iter().map(|c| c.name.as_str()))),
                );
                return None;
            }
        }
        let bounds = columns.iter().filter(|column| column.is_bound()).count();
        if bounds == 1 {
            self.toml_error(None, "valid_from and valid_to go together");
            return None;
        }
        if columns.iter().any(|column| column.is_bound() && !matches!(column.kind, ColumnType::Date | ColumnType::Timestamp)) {
            self.toml_error(None, "valid_from and valid_to are of type date or timestamp");
            return None;
        }
        Some(columns)
    }

    fn rows(&mut self, columns: &[Column], timezone: &str) -> Option<Vec<Row>> {
        let mut reader = csv::ReaderBuilder::new().from_reader(self.csv.as_bytes());
        let header: Vec<String> = match reader.headers() {
            Ok(header) => header.iter().map(|name| name.trim().to_owned()).collect(),
            Err(error) => {
                self.csv_error(1, error.to_string());
                return None;
            }
        };
        let mut order = Vec::new();
        for column in columns {
            match header.iter().position(|name| *name == column.name) {
                Some(index) => order.push(index),
                None => {
                    self.csv_error(1, format!("no column `{}`, which {}.toml declares", column.name, self.name));
                    return None;
                }
            }
        }
        if let Some(extra) = header.iter().find(|name| !columns.iter().any(|column| column.name == **name)) {
            self.csv_error(1, format!("column `{extra}` is not declared in {}.toml", self.name));
            return None;
        }
        let mut rows = Vec::new();
        let mut sound = true;
        for record in reader.records() {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    let line = error.position().map_or(1, csv::Position::line);
                    self.csv_error(line, error.to_string());
                    return None;
                }
            };
            let line = record.position().map_or(1, csv::Position::line);
            let cells: Result<Vec<Cell>, String> = columns
                .iter()
                .zip(&order)
                .map(|(column, index)| {
                    cell(column, record.get(*index).unwrap_or_default().trim(), timezone)
                        .map_err(|error| format!("column `{}`: {error}", column.name))
                })
                .collect();
            match cells {
                Ok(cells) => rows.push((line, cells)),
                Err(message) => {
                    self.csv_error(line, message);
                    sound = false;
                }
            }
        }
        sound.then_some(rows)
    }

    /// Gathers the rows by the columns that are not in the list.
    fn group(&mut self, name: &str, members: &[String], columns: &[Column], rows: Vec<Row>) -> Option<(Vec<Column>, Vec<Row>, ListColumn)> {
        let at: Vec<usize> = members.iter().filter_map(|member| columns.iter().position(|column| column.name == *member)).collect();
        let mut groups: Vec<(Row, Vec<Row>)> = Vec::new();
        let mut known: HashMap<Vec<Cell>, usize> = HashMap::new();
        for (line, cells) in rows {
            let element: Vec<Cell> = at.iter().map(|index| cells[*index].clone()).collect();
            let rest: Vec<Cell> = cells.into_iter().enumerate().filter(|(index, _)| !at.contains(index)).map(|(_, cell)| cell).collect();
            let group = *known.entry(rest.clone()).or_insert_with(|| {
                groups.push(((line, rest), Vec::new()));
                groups.len() - 1
            });
            groups[group].1.push((line, element));
        }
        let mut sound = true;
        if members == TIER_COLUMNS {
            for (_, tiers) in &mut groups {
                sound &= self.ascending(tiers);
            }
        }
        let list = ListColumn {
            name: name.to_owned(),
            columns: at.iter().map(|index| columns[*index].clone()).collect(),
            rows: groups.iter_mut().map(|(_, elements)| elements.drain(..).map(|(_, cells)| cells).collect()).collect(),
        };
        let columns = columns.iter().filter(|column| !members.contains(&column.name)).cloned().collect();
        sound.then(|| (columns, groups.into_iter().map(|(row, _)| row).collect(), list))
    }

    /// Sorts tiers by `up_to`, the open one last; two with one bound, or a bound at 0 or below, are refused.
    fn ascending(&mut self, tiers: &mut [Row]) -> bool {
        tiers.sort_by(|(_, a), (_, b)| match (&a[0], &b[0]) {
            (Cell::Null, Cell::Null) => std::cmp::Ordering::Equal,
            (Cell::Null, _) => std::cmp::Ordering::Greater,
            (_, Cell::Null) => std::cmp::Ordering::Less,
            (a, b) => a.cmp(b),
        });
        let mut sound = true;
        for pair in tiers.windows(2) {
            if pair[0].1[0] == pair[1].1[0] {
                self.csv_error(pair[1].0, format!("two tiers of the same price end at the same up_to (line {} is the other)", pair[0].0));
                sound = false;
            }
        }
        if let Some((line, first)) = tiers.first()
            && matches!(&first[0], Cell::Decimal(bound) if *bound <= Decimal::ZERO)
        {
            self.csv_error(*line, "up_to must be above 0");
            sound = false;
        }
        sound
    }

    /// At most one row per key is valid at any instant.
    fn check_key(&mut self, declaration: &Declaration, columns: &[Column], rows: &[Row]) -> Option<()> {
        let key = declaration.key.as_slice();
        let index = |name: &str| columns.iter().position(|column| column.name == name);
        let bounds = index("valid_from").zip(index("valid_to"));
        let instant = |cell: &Cell, open: i64| if let Cell::Instant(instant) = cell { *instant } else { open };
        let mut sound = true;
        if let Some((from, to)) = bounds {
            for (line, cells) in rows {
                if instant(&cells[to], i64::MAX) <= instant(&cells[from], i64::MIN) {
                    self.csv_error(*line, "valid_to is not after valid_from");
                    sound = false;
                }
            }
        }
        if key.is_empty() {
            return sound.then_some(());
        }
        let positions: Vec<usize> = key.iter().filter_map(|name| index(name)).collect();
        let mut groups: HashMap<Vec<&Cell>, Vec<(i64, i64, u64)>> = HashMap::new();
        for (line, cells) in rows {
            let (from, to) =
                bounds.map_or((i64::MIN, i64::MAX), |(from, to)| (instant(&cells[from], i64::MIN), instant(&cells[to], i64::MAX)));
            groups.entry(positions.iter().map(|position| &cells[*position]).collect()).or_default().push((from, to, *line));
        }
        for spans in groups.values_mut() {
            spans.sort_unstable();
            for pair in spans.windows(2) {
                if pair[1].0 < pair[0].1 {
                    let since = if pair[1].0 == i64::MIN { "always".to_owned() } else { format!("from {}", format_instant(pair[1].0)) };
                    self.csv_error(
                        pair[1].2,
                        format!("key ({}) has two rows that are valid at once {since}: line {} is the other", key.join(", "), pair[0].2),
                    );
                    sound = false;
                }
                if pair[1].0 > pair[0].1 && declaration.gaps != Some(Gaps::Allowed) {
                    let message = format!(
                        "key ({}) has no row from {} to {}: line {} ends before this one begins",
                        key.join(", "),
                        format_instant(pair[0].1),
                        format_instant(pair[1].0),
                        pair[0].2
                    );
                    let diagnostic = self.gap(pair[1].2, message);
                    if declaration.gaps == Some(Gaps::Refused) {
                        sound = false;
                        self.diagnostics.push(diagnostic);
                    } else {
                        let help = format!("if that is so, write gaps = \"allowed\" into {}.toml", self.name);
                        self.diagnostics.push(diagnostic.help(help).warning());
                    }
                }
            }
        }
        sound.then_some(())
    }

    fn gap(&self, line: u64, message: String) -> Diagnostic {
        let file = format!("{}/reference/{}.csv", self.shown, self.name);
        Diagnostic::error("reference-gap", &file, self.csv, Some(self.place_of_line(line)), message)
    }

    fn place_of_line(&self, line: u64) -> Place {
        let length =
            self.csv.lines().nth(usize::try_from(line).unwrap_or(1).saturating_sub(1)).map_or(1, |text| text.chars().count() as u64);
        Place { line, column: 1, end_line: line, end_column: length.max(1) + 1 }
    }
}

fn cell(column: &Column, text: &str, timezone: &str) -> Result<Cell, String> {
    if text.is_empty() {
        return if column.nullable { Ok(Cell::Null) } else { Err("is empty; write the type with `?` where it may be".to_owned()) };
    }
    Ok(match column.kind {
        ColumnType::Text => Cell::Text(text.to_owned()),
        ColumnType::Integer => Cell::Integer(text.parse().map_err(|_| format!("`{text}` is not a whole number"))?),
        ColumnType::Decimal => Cell::Decimal(text.parse().map_err(|error| format!("`{text}` {error}"))?),
        ColumnType::Boolean => Cell::Boolean(text.parse().map_err(|_| format!("`{text}` is neither true nor false"))?),
        ColumnType::Date if column.is_bound() => Cell::Instant(windows::instant_of_day(text, timezone)?),
        ColumnType::Date => Cell::Date(windows::days_of_date(text)?),
        ColumnType::Timestamp => Cell::Instant(parse_instant(text).map_err(|error| format!("`{text}` {error}"))?),
    })
}

fn build(columns: &[Column], rows: &[Row], list: Option<ListColumn>) -> Result<RecordBatch, arrow::error::ArrowError> {
    let mut fields: Vec<Field> = columns.iter().map(|column| Field::new(&column.name, column.arrow(), column.nullable)).collect();
    let mut arrays: Vec<ArrayRef> =
        (0..columns.len()).map(|index| array(&columns[index], rows.iter().map(|(_, cells)| &cells[index]))).collect();
    if let Some(list) = list {
        let element: Fields = list.columns.iter().map(|column| Field::new(&column.name, column.arrow(), column.nullable)).collect();
        let element = if list.name == "tiers" { tiers_field() } else { Arc::new(Field::new_list_field(DataType::Struct(element), true)) };
        let members: Vec<ArrayRef> = (0..list.columns.len())
            .map(|index| array(&list.columns[index], list.rows.iter().flatten().map(|cells| &cells[index])))
            .collect();
        let DataType::Struct(struct_fields) = element.data_type().clone() else {
            return Err(arrow::error::ArrowError::SchemaError("a list holds structs".to_owned()));
        };
        let values = StructArray::try_new(struct_fields, members, None)?;
        let offsets = OffsetBuffer::from_lengths(list.rows.iter().map(Vec::len));
        fields.push(Field::new(list.name, DataType::List(Arc::clone(&element)), false));
        arrays.push(Arc::new(ListArray::try_new(element, offsets, Arc::new(values), None)?));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
}

fn array<'a>(column: &Column, cells: impl Iterator<Item = &'a Cell>) -> ArrayRef {
    macro_rules! collect {
        ($builder:expr, $pattern:pat => $value:expr) => {{
            let mut builder = $builder;
            for cell in cells {
                match cell {
                    $pattern => builder.append_value($value),
                    _ => builder.append_null(),
                }
            }
            Arc::new(builder.finish())
        }};
    }
    match column.arrow() {
        DataType::Int64 => collect!(Int64Builder::new(), Cell::Integer(value) => *value),
        DataType::Boolean => collect!(BooleanBuilder::new(), Cell::Boolean(value) => *value),
        DataType::Date32 => collect!(Date32Builder::new(), Cell::Date(value) => *value),
        DataType::Timestamp(..) => {
            collect!(TimestampMicrosecondBuilder::new().with_data_type(instant_type()), Cell::Instant(value) => *value)
        }
        DataType::Decimal128(..) => collect!(Decimal128Builder::new().with_data_type(DECIMAL), Cell::Decimal(value) => value.raw()),
        _ => collect!(StringBuilder::new(), Cell::Text(value) => value),
    }
}

fn place_of_byte(text: &str, offset: usize) -> Place {
    let before = &text[..offset.min(text.len())];
    let line = before.matches('\n').count() as u64 + 1;
    let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) as u64 + 1;
    Place::at(line, column)
}
