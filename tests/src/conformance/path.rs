//! Paths by which a mapping reaches into a case.
//!
//! | path | value |
//! |---|---|
//! | `params.tiers`, `input.units`, `currency` | a field of the case |
//! | `@`, `@.up_to`, `@index`, `@key` | the element that a row is made of, its field, its index from 1, its key |
//! | `^`, `^.start`, `^index`, `^key` | the same of the element around it, `^^` of the one around that |
//! | `'graduated'` | a constant |
//! | `params.mode\|'reached'` | the first of these that is there; null is not there |

use std::borrow::Cow;

use serde_json::Value;

use super::case::Case;

/// A value of a case, as a mapping names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    text: String,
    alternatives: Vec<Source>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Constant(String),
    Case(Vec<String>),
    /// A field of the element `up` levels around the row's own.
    Element {
        up: usize,
        fields: Vec<String>,
    },
    Index {
        up: usize,
    },
    Key {
        up: usize,
    },
}

/// What a row is made of: the elements around it, the outermost first, and its own.
#[derive(Debug, Clone, Default)]
pub struct Row<'a>(Vec<Element<'a>>);

#[derive(Debug, Clone, Copy)]
struct Element<'a> {
    value: &'a Value,
    /// From 1.
    index: usize,
    key: Option<&'a str>,
}

/// Which rows a case gives a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rows {
    /// One for the case.
    One,
    /// One per element of a list or entry of an object.
    Each {
        /// The path as it was written.
        text: String,
        /// For each alternative the path of the outermost list, then those of the lists inside its elements.
        alternatives: Vec<Vec<Vec<String>>>,
    },
}

impl Lookup {
    /// Reads a path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let alternatives = alternatives(text).map(source).collect::<Result<_, _>>()?;
        Ok(Self { text: text.trim().to_owned(), alternatives })
    }

    /// The value for a row.
    #[must_use]
    pub fn find<'a>(&self, case: &'a Case, row: &Row<'a>) -> Option<Cow<'a, Value>> {
        self.alternatives.iter().find_map(|source| source.find(case, row))
    }

    /// The path as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl Source {
    fn find<'a>(&self, case: &'a Case, row: &Row<'a>) -> Option<Cow<'a, Value>> {
        match self {
            Self::Constant(text) => Some(Cow::Owned(Value::from(text.as_str()))),
            Self::Case(fields) => case.field(fields).map(Cow::Borrowed),
            Self::Element { up, fields } => descend(row.element(*up)?.value, fields).map(Cow::Borrowed),
            Self::Index { up } => Some(Cow::Owned(Value::from(row.element(*up)?.index))),
            Self::Key { up } => row.element(*up)?.key.map(|key| Cow::Owned(Value::from(key))),
        }
    }
}

impl<'a> Row<'a> {
    fn element(&self, up: usize) -> Option<Element<'a>> {
        self.0.len().checked_sub(up + 1).and_then(|index| self.0.get(index)).copied()
    }

    fn inside(&self, value: &'a Value, index: usize, key: Option<&'a str>) -> Self {
        let mut elements = self.0.clone();
        elements.push(Element { value, index: index + 1, key });
        Self(elements)
    }
}

impl Rows {
    /// Reads `.`, `input.events` or `params.windows[].groups`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "." {
            return Ok(Self::One);
        }
        let alternatives = alternatives(text).map(stages).collect::<Result<_, _>>()?;
        Ok(Self::Each { text: text.to_owned(), alternatives })
    }

    /// The rows of a case, in the order of the case; none where the path is absent.
    ///
    /// # Errors
    /// When something on the path is neither a list nor an object.
    pub fn of<'a>(&self, case: &'a Case) -> Result<Vec<Row<'a>>, String> {
        let mut rows = vec![Row::default()];
        let Self::Each { text, alternatives } = self else { return Ok(rows) };
        let is_there = |stages: &&Vec<Vec<String>>| stages.first().is_some_and(|outermost| case.field(outermost).is_some());
        let Some(stages) = alternatives.iter().find(is_there) else { return Ok(Vec::new()) };
        for fields in stages {
            let mut inner = Vec::new();
            for row in &rows {
                let found = match row.element(0) {
                    Some(element) => descend(element.value, fields),
                    None => case.field(fields),
                };
                match found {
                    None => {}
                    Some(Value::Array(elements)) => {
                        inner.extend(elements.iter().enumerate().map(|(index, value)| row.inside(value, index, None)));
                    }
                    Some(Value::Object(entries)) => {
                        let entries = entries.iter().enumerate();
                        inner.extend(entries.map(|(index, (key, value))| row.inside(value, index, Some(key))));
                    }
                    Some(other) => return Err(format!("rows = \"{text}\" leads to {other}, which is neither a list nor an object")),
                }
            }
            rows = inner;
        }
        Ok(rows)
    }
}

/// The value at the end of a path; null counts as absent.
#[must_use]
pub fn descend<'a>(from: &'a Value, fields: &[String]) -> Option<&'a Value> {
    fields.iter().try_fold(from, |value, field| value.get(field.as_str())).filter(|value| !value.is_null())
}

/// Cuts at each `|` outside quotes.
fn alternatives(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |letter: char| {
        quoted ^= letter == '\'';
        letter == '|' && !quoted
    })
    .map(str::trim)
}

fn source(text: &str) -> Result<Source, String> {
    if let Some(rest) = text.strip_prefix('\'') {
        let constant = rest.strip_suffix('\'').ok_or_else(|| format!("{text} has no closing quote"))?;
        return Ok(Source::Constant(constant.replace("''", "'")));
    }
    let (up, rest) = match text.strip_prefix('@') {
        Some(rest) => (0, rest),
        None => {
            let rest = text.trim_start_matches('^');
            (text.len() - rest.len(), rest)
        }
    };
    if !text.starts_with(['@', '^']) {
        return case_fields(text).map(Source::Case);
    }
    match rest {
        "" => Ok(Source::Element { up, fields: Vec::new() }),
        "index" => Ok(Source::Index { up }),
        "key" => Ok(Source::Key { up }),
        _ => {
            let rest = rest.strip_prefix('.').ok_or_else(|| format!("`{text}` is none of @, @.field, @index, @key"))?;
            Ok(Source::Element { up, fields: fields(rest)? })
        }
    }
}

/// `params.windows[].groups`: the path of the outermost list, then of the list inside each element.
fn stages(text: &str) -> Result<Vec<Vec<String>>, String> {
    let mut parts = text.strip_suffix("[]").unwrap_or(text).split("[]");
    let mut stages = vec![case_fields(parts.next().unwrap_or_default())?];
    for part in parts {
        stages.push(match part.strip_prefix('.') {
            Some(rest) => fields(rest)?,
            None if part.is_empty() => Vec::new(),
            None => return Err(format!("`{text}`: after [] comes a point")),
        });
    }
    Ok(stages)
}

fn case_fields(text: &str) -> Result<Vec<String>, String> {
    let fields = fields(text)?;
    match fields.first().map(String::as_str) {
        Some(answer @ ("expected" | "rounding")) => Err(format!("`{text}`: a rule must not see `{answer}`")),
        _ => Ok(fields),
    }
}

fn fields(text: &str) -> Result<Vec<String>, String> {
    let wrong = |field: &str| field.is_empty() || field.contains(['[', ']', '@', '^', '\'']);
    if text.split('.').any(wrong) {
        return Err(format!("`{text}` is not a path like params.tiers"));
    }
    Ok(text.split('.').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn case() -> Case {
        let json = json!({
            "id": "a", "model": "m", "expected": {"amount": "1"}, "currency": "EUR",
            "params": {
                "mode": null,
                "base": {"mode": "volume"},
                "windows": [
                    {"start": "00:00", "groups": [{"rate": "1"}, {"rate": "2"}]},
                    {"start": "18:00", "groups": [{"rate": "3"}]},
                    {"start": "20:00"},
                ],
            },
            "input": {"groups": {"eu": {"units": "1"}, "us": {"units": "2"}}, "amounts": ["5", "6"], "matrix": [["1"], ["2", "3"]]},
        });
        Case::read(1, json).unwrap()
    }

    /// One text per row: the values of the paths with a blank between them, `-` for what is absent.
    fn check(rows: &str, paths: &[&str], expected: &[&str]) {
        let case = case();
        let lookups: Vec<Lookup> = paths.iter().map(|path| Lookup::parse(path).unwrap()).collect();
        let show = |value: Option<Cow<'_, Value>>| match value.as_deref() {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => "-".to_owned(),
        };
        let rows = Rows::parse(rows).unwrap().of(&case).unwrap();
        let found: Vec<String> =
            rows.iter().map(|row| lookups.iter().map(|lookup| show(lookup.find(&case, row))).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(found, expected, "{paths:?}");
    }

    #[test]
    fn one_row_for_the_case() {
        check(".", &["currency", "params.base.mode", "params.mode", "params.absent.deeper", "@"], &["EUR volume - - -"]);
    }

    #[test]
    fn null_gives_way_to_the_next_alternative() {
        check(".", &["params.mode|params.base.mode|'none'", "params.mode | 'it''s|none'"], &["volume it's|none"]);
    }

    #[test]
    fn rows_of_lists_and_objects() {
        check("input.amounts", &["@", "@index", "@key"], &["5 1 -", "6 2 -"]);
        check("input.groups", &["@key", "@.units", "@index"], &["eu 1 1", "us 2 2"]);
        check("input.absent|input.amounts[]", &["@"], &["5", "6"]);
        check("input.absent", &["@"], &[]);
    }

    #[test]
    fn nested_rows_know_what_is_around_them() {
        let expected = ["1 1 00:00 1 -", "2 2 00:00 1 -", "3 1 18:00 2 -"];
        check("params.windows[].groups", &["@.rate", "@index", "^.start", "^index", "^^index"], &expected);
        check("input.matrix[][]", &["@", "@index", "^index"], &["1 1 1", "2 1 2", "3 2 2"]);
        check("input.groups[]", &["@key", "^key"], &["eu -", "us -"]);
        check("input.groups[]", &["@.units"], &["1", "2"]);
    }

    #[test]
    fn wrong_paths_are_refused() {
        for path in ["", "params..tiers", "'open", "@units", "params.windows[].start", "expected.amount", "^.a..b", "params.mode|"] {
            assert!(Lookup::parse(path).is_err(), "{path}");
        }
        for rows in ["", "params.windows[]groups", "rounding.amount", "@.groups"] {
            assert!(Rows::parse(rows).is_err(), "{rows}");
        }
        let message = Rows::parse("params.base.mode").unwrap().of(&case()).unwrap_err();
        assert!(message.contains("neither a list nor an object"), "{message}");
    }
}
