//! `tests/*.yml`: the shape of rule tests, read with every scalar kept as it was written.

use std::collections::BTreeMap;
use std::fmt;

use ratemill_schemas::nearest::did_you_mean;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_saphyr::{Location, MessageFormatter, Spanned, UserMessageFormatter};

use crate::diagnostics::{Diagnostic, Diagnostics, Place};

/// Stable name of every finding about a test file.
const CODE: &str = "rule-test";

/// One cell of a row: a null, or the text as it stands in the file, so that no number passes through a float.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cell {
    Null,
    Text(String),
}

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Asked for a text, the YAML reader hands over the scalar as written: `31.00` stays `31.00`.
        Ok(Option::<String>::deserialize(deserializer)?.map_or(Self::Null, Self::Text))
    }
}

/// The columns of one row.
pub(crate) type Cells = BTreeMap<String, Cell>;

/// Prefix of the columns that a mapping under `attributes` becomes.
pub(super) const ATTRIBUTE: &str = "attributes.";

/// A row as a YAML mapping; a mapping under `attributes` becomes columns `attributes.NAME`.
#[derive(Debug, Clone, Default)]
pub(super) struct YamlRow(pub(super) Cells);

impl<'de> Deserialize<'de> for YamlRow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RowVisitor;

        impl<'de> Visitor<'de> for RowVisitor {
            type Value = YamlRow;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a row like {customer_id: acme, amount: 31.00}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<YamlRow, A::Error> {
                let mut cells = Cells::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "attributes" {
                        let attributes = map.next_value::<Option<YamlRow>>()?.unwrap_or_default();
                        cells.extend(attributes.0.into_iter().map(|(name, cell)| (format!("{ATTRIBUTE}{name}"), cell)));
                    } else {
                        cells.insert(name, map.next_value()?);
                    }
                }
                Ok(YamlRow(cells))
            }
        }

        deserializer.deserialize_map(RowVisitor)
    }
}

/// What stands under `rows`.
#[derive(Debug, Clone)]
pub(super) enum Rows {
    Mappings(Vec<Spanned<YamlRow>>),
    Csv(String),
}

impl<'de> Deserialize<'de> for Rows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RowsVisitor;

        impl<'de> Visitor<'de> for RowsVisitor {
            type Value = Rows;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of rows, or a text of CSV")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Rows, A::Error> {
                let mut rows = Vec::new();
                while let Some(row) = seq.next_element()? {
                    rows.push(row);
                }
                Ok(Rows::Mappings(rows))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rows, E> {
                Ok(Rows::Csv(text.to_owned()))
            }
        }

        deserializer.deserialize_any(RowsVisitor)
    }
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Format {
    Dict,
    Csv,
}

/// One of `given`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Given {
    /// `usage`, a reference table, a rule, or `earlier.` and a rule.
    pub(super) input: Spanned<String>,
    pub(super) format: Option<Format>,
    pub(super) rows: Option<Rows>,
    /// `NAME` of `tests/fixtures/NAME.csv`.
    pub(super) fixture: Option<String>,
}

/// `expect`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    pub(super) format: Option<Format>,
    pub(super) rows: Option<Rows>,
    pub(super) fixture: Option<String>,
}

/// One test.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UnitTest {
    pub(super) name: Spanned<String>,
    /// For people.
    #[serde(rename = "description")]
    pub(super) _description: Option<String>,
    /// The rule.
    pub(super) model: Spanned<String>,
    /// A month, day or year, or an instant inside the window.
    pub(super) window: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) given: Vec<Given>,
    pub(super) expect: Expect,
}

/// One test file.
#[derive(Debug, Clone)]
pub(super) struct Suite {
    /// The file, as the user named the project.
    pub(super) file: String,
    pub(super) text: String,
    pub(super) tests: Vec<UnitTest>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TestFile {
    unit_tests: Vec<UnitTest>,
}

impl Suite {
    /// Reads a test file; `None` when it cannot be read, which is then among the diagnostics.
    pub(super) fn parse(file: &str, text: &str, diagnostics: &mut Diagnostics) -> Option<Self> {
        match serde_saphyr::from_str::<TestFile>(text) {
            Ok(TestFile { unit_tests }) => Some(Self { file: file.to_owned(), text: text.to_owned(), tests: unit_tests }),
            Err(error) => {
                diagnostics.push(unreadable(file, text, error.without_snippet()));
                None
            }
        }
    }
}

fn unreadable(file: &str, text: &str, error: &serde_saphyr::Error) -> Diagnostic {
    let (message, help, length) = match error {
        serde_saphyr::Error::SerdeUnknownField { field, expected, .. } => {
            let hint = did_you_mean(field, expected.iter().copied());
            (format!("key `{field}` is unknown{hint}"), Some(format!("keys here are {}", expected.join(", "))), field.chars().count())
        }
        serde_saphyr::Error::SerdeMissingField { field, .. } => (format!("key `{field}` is missing"), None, 1),
        other => (UserMessageFormatter.format_message(other).into_owned(), None, 1),
    };
    let place = error.location().and_then(|location| place(location, length));
    let diagnostic = Diagnostic::error(CODE, file, text, place, message);
    match help {
        Some(help) => diagnostic.help(help),
        None => diagnostic,
    }
}

/// What is wrong with a test, and where.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) place: Option<Place>,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(place: Option<Place>, message: impl Into<String>) -> Self {
        Self { place, message: message.into() }
    }

    pub(super) fn in_suite(self, suite: &Suite) -> Diagnostic {
        Diagnostic::error(CODE, &suite.file, &suite.text, self.place, self.message)
    }
}

/// Where a text stands.
pub(super) fn place_of_text(text: &Spanned<String>) -> Option<Place> {
    place(text.referenced, text.value.chars().count())
}

/// Where a row begins.
pub(super) fn place_of_row(row: &Spanned<YamlRow>) -> Option<Place> {
    place(row.referenced, 1)
}

fn place(location: Location, length: usize) -> Option<Place> {
    let (line, column) = (location.line(), location.column());
    (line > 0 && column > 0).then(|| Place { line, column, end_line: line, end_column: column + length.max(1) as u64 })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn text(cell: &str) -> Cell {
        Cell::Text(cell.to_owned())
    }

    #[allow(clippy::result_large_err)]
    fn parse(text: &str) -> Result<Suite, Diagnostic> {
        let mut diagnostics = Diagnostics::default();
        Suite::parse("tests/rooms.yml", text, &mut diagnostics).ok_or_else(|| diagnostics.0.remove(0))
    }

    const SOUND: &str = "\
unit_tests:
  - name: two_hours
    description: Two hours at the first tier.
    model: meeting_rooms
    window: 2026-09
    given:
      - input: usage
        rows:
          - {id: 007, subject: acme, time: 2026-09-03T10:00:00Z, quantity: 2.50, region: ~, attributes: {floor: 3}}
      - input: prices
        format: csv
        rows: |
          plan,up_to
          basic,
      - input: offices
        fixture: offices
    expect:
      rows:
        - {customer_id: acme, amount: 31.00, waived: true, note: 'null', unit_price: null, large: 12345678901234567890.123456789012345678}
";

    #[test]
    fn scalars_stay_as_written() {
        let suite = parse(SOUND).unwrap();
        let test = &suite.tests[0];
        assert_eq!(test.name.value, "two_hours");
        assert_eq!(test.window.as_ref().unwrap().value, "2026-09");
        let Some(Rows::Mappings(usage)) = &test.given[0].rows else { panic!("rows of usage") };
        assert_eq!(usage[0].value.0["id"], text("007"));
        assert_eq!(usage[0].value.0["quantity"], text("2.50"));
        assert_eq!(usage[0].value.0["time"], text("2026-09-03T10:00:00Z"));
        assert_eq!(usage[0].value.0["region"], Cell::Null);
        assert_eq!(usage[0].value.0["attributes.floor"], text("3"));
        assert_eq!(place_of_row(&usage[0]).unwrap().line, 9);
        assert!(matches!(&test.given[1].rows, Some(Rows::Csv(csv)) if csv == "plan,up_to\nbasic,\n"));
        assert_eq!(test.given[1].format, Some(Format::Csv));
        assert_eq!(test.given[2].fixture.as_deref(), Some("offices"));
        let Some(Rows::Mappings(expected)) = &test.expect.rows else { panic!("expected rows") };
        let expected = &expected[0].value.0;
        assert_eq!(expected["amount"], text("31.00"));
        assert_eq!(expected["waived"], text("true"));
        assert_eq!(expected["note"], text("null"));
        assert_eq!(expected["unit_price"], Cell::Null);
        assert_eq!(expected["large"], text("12345678901234567890.123456789012345678"));
    }

    #[test]
    fn faults_name_their_line_and_the_nearest_key() {
        for (from, to, line, message) in [
            ("    model:", "    modle:", 4, "key `modle` is unknown; did you mean `model`?"),
            ("        fixture:", "        fixtures:", 16, "key `fixtures` is unknown; did you mean `fixture`?"),
            ("unit_tests:", "unit_test:", 1, "key `unit_test` is unknown; did you mean `unit_tests`?"),
        ] {
            let diagnostic = parse(&SOUND.replacen(from, to, 1)).unwrap_err();
            assert_eq!(diagnostic.message, message);
            assert_eq!(diagnostic.place.unwrap().line, line, "{message}");
            assert_eq!(diagnostic.file, "tests/rooms.yml");
        }
        let missing = parse("unit_tests:\n  - name: a\n    model: b\n").unwrap_err();
        assert_eq!(missing.message, "key `expect` is missing");
        assert!(parse(&SOUND.replacen("format: csv", "format: json", 1)).is_err());
        assert!(parse("unit_tests: [").is_err());
        assert!(parse("").is_err());
        // A column that is written twice is a slip of the pen, never the last one.
        assert!(parse(&SOUND.replacen("subject: acme", "id: 8", 1)).is_err());
    }
}
