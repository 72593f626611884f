//! `MODEL.toml`: how a case becomes reference tables and usage.
//!
//! ```toml
//! [tables.prices]
//! rows = "params.tiers"               # one row per element; "." is one row for the case
//! [tables.prices.columns]
//! up_to = "decimal? @.up_to"          # type and path; `?` where the path may be absent or null
//! [usage]
//! rows = "input.events"
//! columns = { subject = "text 'customer'", meter = "text 'usage'", time = "timestamp @.at", quantity = "decimal @.units" }
//! [run]                               # by default the windows that hold usage
//! from = "params.period_start"
//! to = "params.period_end"
//! ```

use std::sync::Arc;

use ratemill_schemas::UsageSchema;
use ratemill_schemas::nearest::did_you_mean;
use ratemill_schemas::usage::{Dimension, DimensionType, RESERVED};
use toml::{Table, Value};

use super::path::{Lookup, Rows};

/// A mapping.
#[derive(Debug)]
pub struct Mapping {
    /// The reference tables, by name.
    pub tables: Vec<TableMapping>,
    /// The usage events, where the cases have any.
    pub usage: Option<UsageMapping>,
    /// The columns of usage.
    pub usage_schema: Arc<UsageSchema>,
    /// The range whose windows are rated.
    pub run: Option<RunMapping>,
}

/// A reference table.
#[derive(Debug)]
pub struct TableMapping {
    /// Its name in SQL.
    pub name: String,
    /// Its rows.
    pub rows: Rows,
    /// Its columns after `case_id`.
    pub columns: Vec<ColumnMapping>,
    key: Vec<String>,
    lists: Vec<(String, Vec<String>)>,
}

/// A column of a table or of usage.
#[derive(Debug)]
pub struct ColumnMapping {
    /// Its name in SQL.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// Whether the value may be absent.
    pub nullable: bool,
    /// Where the value stands.
    pub value: Lookup,
}

/// Type of a column, as reference tables declare it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text; a list of scalars becomes `1,2,3`.
    Text,
    /// A whole number.
    Integer,
    /// An exact decimal.
    Decimal,
    /// `true` or `false`.
    Boolean,
    /// A date.
    Date,
    /// An instant; without an offset it is UTC, and a date is the first instant of its day.
    Timestamp,
}

/// Usage events.
#[derive(Debug)]
pub struct UsageMapping {
    /// The events.
    pub rows: Rows,
    /// Columns of usage; those that it does not have by itself are declared as dimensions.
    pub columns: Vec<ColumnMapping>,
}

/// The range `[from, to)` whose windows are rated.
#[derive(Debug)]
pub struct RunMapping {
    /// First instant.
    pub from: Lookup,
    /// First instant after.
    pub to: Lookup,
}

/// Columns that usage has by itself and a mapping may give, with the type that it writes.
const USAGE_COLUMNS: [(&str, Kind); 8] = [
    ("source", Kind::Text),
    ("id", Kind::Text),
    ("meter", Kind::Text),
    ("subject", Kind::Text),
    ("time", Kind::Timestamp),
    ("quantity", Kind::Decimal),
    ("end", Kind::Timestamp),
    ("ingested_at", Kind::Timestamp),
];

impl Mapping {
    /// Reads a mapping.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let document: Table = toml::from_str(text).map_err(|error| error.to_string())?;
        let document = Section { place: String::new(), table: &document };
        document.only(&["tables", "usage", "run"])?;
        let mut tables = Vec::new();
        if let Some(section) = document.section("tables")? {
            for name in section.table.keys() {
                if let Some(table) = section.section(name)? {
                    tables.push(TableMapping::read(name, &table)?);
                }
            }
        }
        let usage = document.section("usage")?.map(|section| UsageMapping::read(&section)).transpose()?;
        let usage_schema = Arc::new(UsageSchema::new(usage.as_ref().map_or_else(|| Ok(Vec::new()), UsageMapping::dimensions)?));
        let run = document.section("run")?.map(|section| RunMapping::read(&section)).transpose()?;
        Ok(Self { tables, usage, usage_schema, run })
    }
}

impl TableMapping {
    fn read(name: &str, section: &Section<'_>) -> Result<Self, String> {
        section.only(&["rows", "key", "lists", "columns"])?;
        let columns = section.columns()?;
        if columns.iter().any(|column| column.name == "case_id") {
            return Err(section.wrong("every table has a column `case_id` by itself"));
        }
        let key = section.names("key")?;
        let mut lists = Vec::new();
        if let Some(inner) = section.section("lists")? {
            for list in inner.table.keys() {
                plain(list).map_err(|message| inner.wrong(&message))?;
                lists.push((list.clone(), inner.names(list)?));
            }
        }
        for column in key.iter().chain(lists.iter().flat_map(|(_, members)| members)) {
            if column != "case_id" && !columns.iter().any(|known| known.name == *column) {
                let hint = did_you_mean(column, columns.iter().map(|known| known.name.as_str()));
                return Err(section.wrong(&format!("`{column}` is no column{hint}")));
            }
        }
        Ok(Self { name: name.to_owned(), rows: section.rows()?, columns, key, lists })
    }

    /// The declaration that stands beside the CSV file of the table.
    #[must_use]
    pub fn declaration(&self) -> String {
        // Names are plain, so that Rust and TOML quote them alike.
        let mut text = String::new();
        if !self.key.is_empty() {
            text.push_str(&format!("key = {:?}\n", self.key));
        }
        text.push_str("[columns]\ncase_id = \"text\"\n");
        for column in &self.columns {
            let optional = if column.nullable { "?" } else { "" };
            text.push_str(&format!("{} = \"{}{optional}\"\n", column.name, column.kind.word()));
        }
        if !self.lists.is_empty() {
            text.push_str("[lists]\n");
            for (name, columns) in &self.lists {
                text.push_str(&format!("{name} = {columns:?}\n"));
            }
        }
        text
    }
}

impl UsageMapping {
    fn read(section: &Section<'_>) -> Result<Self, String> {
        section.only(&["rows", "columns"])?;
        let columns = section.columns()?;
        for (name, kind) in USAGE_COLUMNS {
            match columns.iter().find(|column| column.name == name) {
                Some(column) if column.kind != kind => {
                    return Err(section.wrong(&format!("`{name}` has type {}, not {}", kind.word(), column.kind.word())));
                }
                None if matches!(name, "meter" | "subject" | "time" | "quantity") => {
                    return Err(section.wrong(&format!("column `{name}` is missing")));
                }
                _ => {}
            }
        }
        Ok(Self { rows: section.rows()?, columns })
    }

    /// The columns that are declared beside those which usage has by itself.
    fn dimensions(&self) -> Result<Vec<Dimension>, String> {
        let own = |name: &str| USAGE_COLUMNS.iter().any(|(known, _)| *known == name);
        self.columns
            .iter()
            .filter(|column| !own(&column.name))
            .map(|column| {
                let name = column.name.clone();
                if RESERVED.contains(&name.as_str()) {
                    return Err(format!("[usage] `{name}` cannot be given"));
                }
                let kind = match column.kind {
                    Kind::Text => DimensionType::Text,
                    Kind::Integer => DimensionType::Integer,
                    Kind::Decimal => DimensionType::Decimal,
                    Kind::Boolean => DimensionType::Boolean,
                    Kind::Timestamp => DimensionType::Timestamp,
                    Kind::Date => return Err(format!("[usage] `{name}`: a dimension of usage is no date; write text or timestamp")),
                };
                Ok(Dimension { name, kind })
            })
            .collect()
    }
}

impl RunMapping {
    fn read(section: &Section<'_>) -> Result<Self, String> {
        section.only(&["from", "to"])?;
        let lookup = |name: &str| Lookup::parse(section.text(name)?).map_err(|message| section.wrong(&message));
        Ok(Self { from: lookup("from")?, to: lookup("to")? })
    }
}

impl ColumnMapping {
    /// Reads `decimal? @.up_to`.
    fn parse(name: &str, text: &str) -> Result<Self, String> {
        plain(name)?;
        let shape = || format!("`{name}` is written \"type path\", like \"decimal? @.up_to\"");
        let (word, path) = text.trim().split_once(char::is_whitespace).ok_or_else(shape)?;
        let (word, nullable) = word.strip_suffix('?').map_or((word, false), |word| (word, true));
        let kind = Kind::named(word).ok_or_else(|| {
            let words = Kind::ALL.map(Kind::word);
            format!("`{name}` has type `{word}`, which is none of {}{}", words.join(", "), did_you_mean(word, words))
        })?;
        let value = Lookup::parse(path).map_err(|message| format!("`{name}`: {message}"))?;
        Ok(Self { name: name.to_owned(), kind, nullable, value })
    }
}

impl Kind {
    const ALL: [Self; 6] = [Self::Text, Self::Integer, Self::Decimal, Self::Boolean, Self::Date, Self::Timestamp];

    fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }

    /// The type as declarations write it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Integer => "integer",
            Self::Decimal => "decimal",
            Self::Boolean => "boolean",
            Self::Date => "date",
            Self::Timestamp => "timestamp",
        }
    }
}

/// A table of the mapping and its place, for messages.
struct Section<'a> {
    place: String,
    table: &'a Table,
}

impl<'a> Section<'a> {
    fn wrong(&self, message: &str) -> String {
        if self.place.is_empty() { message.to_owned() } else { format!("[{}] {message}", self.place) }
    }

    fn only(&self, known: &[&str]) -> Result<(), String> {
        match self.table.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(self.wrong(&format!("`{key}` is unknown{}", did_you_mean(key, known.iter().copied())))),
            None => Ok(()),
        }
    }

    fn section(&self, name: &str) -> Result<Option<Section<'a>>, String> {
        let place = if self.place.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place) };
        match self.table.get(name) {
            None => Ok(None),
            Some(Value::Table(table)) => Ok(Some(Section { place, table })),
            Some(_) => Err(self.wrong(&format!("`{name}` is not a table"))),
        }
    }

    fn text(&self, name: &str) -> Result<&'a str, String> {
        self.table.get(name).and_then(Value::as_str).ok_or_else(|| self.wrong(&format!("`{name}` is missing or no text")))
    }

    fn rows(&self) -> Result<Rows, String> {
        Rows::parse(self.text("rows")?).map_err(|message| self.wrong(&message))
    }

    fn columns(&self) -> Result<Vec<ColumnMapping>, String> {
        let Some(inner) = self.section("columns")? else { return Err(self.wrong("`columns` is missing")) };
        inner.table.keys().map(|name| ColumnMapping::parse(name, inner.text(name)?).map_err(|message| inner.wrong(&message))).collect()
    }

    fn names(&self, name: &str) -> Result<Vec<String>, String> {
        let wrong = || self.wrong(&format!("`{name}` is a list of column names"));
        let Some(value) = self.table.get(name) else { return Ok(Vec::new()) };
        value.as_array().ok_or_else(wrong)?.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
    }
}

/// Names that need no quotes, neither in SQL nor in TOML.
fn plain(name: &str) -> Result<(), String> {
    let sound = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if sound { Ok(()) } else { Err(format!("`{name}` is not a name of lower-case letters, digits and _")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_table_is_declared_as_reference_data_is() {
        let mapping = Mapping::parse(
            r#"
            [tables.tariff]
            rows = "params.windows"
            key = ["case_id", "days"]
            lists = { windows = ["from_time", "price"] }
            [tables.tariff.columns]
            days = "text @.days"
            from_time = "text @.from"
            price = "decimal? @.price|'0'"
            "#,
        )
        .unwrap();
        let expected = r#"key = ["case_id", "days"]
[columns]
case_id = "text"
days = "text"
from_time = "text"
price = "decimal?"
[lists]
windows = ["from_time", "price"]
"#;
        assert_eq!(mapping.tables[0].declaration(), expected);
        assert!(mapping.usage.is_none() && mapping.run.is_none());
    }

    #[test]
    fn columns_of_the_case_become_dimensions_of_usage() {
        let usage =
            "[usage]\nrows = \"input.events\"\n[usage.columns]\nsubject = \"text 's'\"\nmeter = \"text 'm'\"\ntime = \"timestamp @.at\"\n";
        let mapping = Mapping::parse(&format!("{usage}quantity = \"decimal @.units\"\nregion = \"text? @.region\"")).unwrap();
        assert_eq!(mapping.usage_schema.dimensions(), [Dimension { name: "region".to_owned(), kind: DimensionType::Text }]);
        assert_eq!(Mapping::parse(usage).unwrap_err(), "[usage] column `quantity` is missing");
        let wrong = Mapping::parse(&format!("{usage}quantity = \"integer @.units\"")).unwrap_err();
        assert_eq!(wrong, "[usage] `quantity` has type decimal, not integer");
    }

    #[test]
    fn mistakes_name_their_place() {
        for (text, expected) in [
            ("[table.x]", "`table` is unknown; did you mean `tables`?"),
            ("[tables.x]\nrow = \".\"", "[tables.x] `row` is unknown; did you mean `rows`?"),
            ("[tables.x]\nrows = \".\"", "[tables.x] `columns` is missing"),
            (
                "[tables.x]\nrows = \".\"\ncolumns = { a = \"text\" }",
                "[tables.x.columns] `a` is written \"type path\", like \"decimal? @.up_to\"",
            ),
            ("[tables.x]\nrows = \".\"\ncolumns = { case_id = \"text id\" }", "[tables.x] every table has a column `case_id` by itself"),
            (
                "[tables.x]\nrows = \".\"\nkey = [\"b\"]\ncolumns = { a = \"text params.a\" }",
                "[tables.x] `b` is no column; did you mean `a`?",
            ),
            ("[run]\nfrom = \"input.from\"", "[run] `to` is missing or no text"),
        ] {
            assert_eq!(Mapping::parse(text).unwrap_err(), expected, "{text}");
        }
        let message = Mapping::parse("[tables.x]\nrows = \".\"\ncolumns = { a = \"number params.a\" }").unwrap_err();
        assert!(message.starts_with("[tables.x.columns] `a` has type `number`, which is none of text, integer"), "{message}");
    }
}
