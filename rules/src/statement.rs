//! `CREATE MATERIALIZED VIEW name WITH (…) AS SELECT …`: parsing and options.

use ratemill_schemas::money::UnknownRounding;
use ratemill_schemas::nearest::did_you_mean;
use ratemill_schemas::time::parse_duration;
use ratemill_schemas::windows::{self, WindowSpec};
use sqlparser::ast::{CreateTableOptions, Expr, Ident, Query, Spanned, SqlOption, Statement, Value, ValueWithSpan};
use sqlparser::parser::{Parser, ParserError};

use crate::diagnostics::{Diagnostic, Diagnostics, Place};
use crate::dialect::RuleDialect;
use crate::rule::RuleOptions;

/// The options that a rule may have.
const OPTIONS: [&str; 11] =
    ["window", "timezone", "anchor", "grace", "emit", "effective_from", "effective_to", "fan_out", "carry", "history", "rounding"];

/// A parsed rule file.
pub(crate) struct ParsedRule {
    pub(crate) name: String,
    pub(crate) options: RuleOptions,
    pub(crate) query: Box<Query>,
}

pub(crate) fn parse(file: &str, text: &str, diagnostics: &mut Diagnostics) -> Option<ParsedRule> {
    let mut statements =
        match Parser::new(&RuleDialect).with_recursion_limit(50).try_with_sql(text).and_then(|mut parser| parser.parse_statements()) {
            Ok(statements) => statements,
            Err(error) => {
                diagnostics.push(syntax_error(file, text, &error));
                return None;
            }
        };
    let shape = "a rule file holds one statement: CREATE MATERIALIZED VIEW name WITH (window = 'month', …) AS SELECT …";
    if statements.len() != 1 {
        let place = statements.get(1).and_then(|statement| Place::of(statement.span()));
        diagnostics.push(
            Diagnostic::error("one-statement", file, text, place, format!("the file has {} statements", statements.len())).help(shape),
        );
        return None;
    }
    let statement = statements.remove(0);
    let place = Place::of(statement.span()).or(Some(Place::at(1, 1)));
    let Statement::CreateView(view) = statement else {
        diagnostics.push(Diagnostic::error("not-a-rule", file, text, place, "this is not a rule").help(shape));
        return None;
    };
    if !view.materialized || view.temporary || view.or_replace || !view.columns.is_empty() {
        diagnostics.push(Diagnostic::error("not-a-rule", file, text, place, "a rule is a plain CREATE MATERIALIZED VIEW").help(shape));
        return None;
    }
    let name = match view.name.0.as_slice() {
        [part] => part.as_ident().map(|ident| ident.value.to_lowercase()),
        _ => None,
    };
    let Some(name) = name else {
        diagnostics.push(Diagnostic::error("rule-name", file, text, place, "the name of a rule is one word"));
        return None;
    };
    let options = Reader { file, text, diagnostics }.options(&view.options, place)?;
    Some(ParsedRule { name, options, query: view.query })
}

fn syntax_error(file: &str, text: &str, error: &ParserError) -> Diagnostic {
    let message = match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message.clone(),
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply".to_owned(),
    };
    let (message, place) = match message.rfind(" at Line: ") {
        Some(index) => {
            let numbers: Vec<u64> =
                message[index..].split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect();
            let place = match numbers.as_slice() {
                [line, column, ..] => Some(Place::at(*line, *column)),
                _ => None,
            };
            (message[..index].to_owned(), place)
        }
        None => (message, None),
    };
    Diagnostic::error("syntax", file, text, place, message)
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    diagnostics: &'a mut Diagnostics,
}

impl Reader<'_> {
    fn error(&mut self, code: &'static str, place: Option<Place>, message: impl Into<String>) {
        self.diagnostics.push(Diagnostic::error(code, self.file, self.text, place, message));
    }

    fn options(&mut self, options: &CreateTableOptions, place: Option<Place>) -> Option<RuleOptions> {
        let given = match options {
            CreateTableOptions::With(given) => given.as_slice(),
            _ => &[],
        };
        let mut values: Vec<(Ident, String, Option<Place>)> = Vec::new();
        for option in given {
            let SqlOption::KeyValue { key, value } = option else {
                self.error("option", place, "an option is written name = 'value'");
                continue;
            };
            let at = Place::of(key.span);
            let name = key.value.to_lowercase();
            if !OPTIONS.contains(&name.as_str()) {
                let message = format!("option `{name}` is unknown{}", did_you_mean(&name, OPTIONS));
                self.diagnostics.push(
                    Diagnostic::error("option-unknown", self.file, self.text, at, message)
                        .help(format!("options are {}", OPTIONS.join(", "))),
                );
                continue;
            }
            let Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), span }) = value else {
                self.error("option", Place::of(value.span()), format!("the value of `{name}` is a text in single quotes"));
                continue;
            };
            if values.iter().any(|(known, ..)| known.value.eq_ignore_ascii_case(&name)) {
                self.error("option", at, format!("option `{name}` is given twice"));
            }
            values.push((Ident::new(name), text.clone(), Place::of(*span)));
        }
        let get = |name: &str| values.iter().find(|(key, ..)| key.value == name).map(|(_, text, place)| (text.clone(), *place));
        let (timezone, zone_place) = get("timezone").unwrap_or_else(|| ("UTC".to_owned(), None));
        let Some((window, window_place)) = get("window") else {
            self.error("option-missing", place, "the rule has no window; add WITH (window = 'month')");
            return None;
        };
        let zone = match windows::zone(&timezone) {
            Ok(zone) => zone,
            Err(error) => {
                self.error("timezone", zone_place, error.to_string());
                return None;
            }
        };
        let mut spec = match WindowSpec::parse(&window, zone) {
            Ok(spec) => spec,
            Err(error) => {
                self.error("window", window_place, error.to_string());
                return None;
            }
        };
        let anchor = get("anchor");
        if let Some((day, place)) = &anchor {
            match spec.anchored(day) {
                Ok(anchored) => spec = anchored,
                Err(error) => {
                    self.error("anchor", *place, error.to_string());
                    return None;
                }
            }
        }
        let Some((from, from_place)) = get("effective_from") else {
            let place = place.or(window_place);
            self.diagnostics.push(
                Diagnostic::error("option-missing", self.file, self.text, place, "the rule has no effective_from")
                    .help("add effective_from = '2026-01-01': the first day whose windows the rule rates"),
            );
            return None;
        };
        let mut instant = |text: &str, place| match windows::instant_of_day(text, &timezone) {
            Ok(instant) => Some(instant),
            Err(message) => {
                self.diagnostics.push(Diagnostic::error("option", self.file, self.text, place, message));
                None
            }
        };
        let effective_from = instant(&from, from_place)?;
        let effective_to = match get("effective_to") {
            Some((text, place)) => Some(instant(&text, place)?),
            None => None,
        };
        if effective_to.is_some_and(|to| to <= effective_from) {
            self.error("option", get("effective_to").and_then(|(_, place)| place), "effective_to is not after effective_from");
        }
        let grace = match get("grace").map(|(text, place)| (parse_duration(&text), place)) {
            None => 0,
            Some((Ok(grace), _)) => grace,
            Some((Err(message), place)) => {
                self.error("option", place, message);
                return None;
            }
        };
        let fan_out_allowed = match get("fan_out").as_ref().map(|(text, place)| (text.as_str(), *place)) {
            None => false,
            Some(("allowed", _)) => true,
            Some((other, place)) => {
                self.error("option", place, format!("fan_out is 'allowed' or not given, not '{other}'"));
                return None;
            }
        };
        let provisional = match get("emit").as_ref().map(|(text, place)| (text.as_str(), *place)) {
            None | Some(("running", _)) => true,
            Some(("final", _)) => false,
            Some((other, place)) => {
                self.error("option", place, format!("emit is 'running' (open windows show provisional charges) or 'final', not '{other}'"));
                return None;
            }
        };
        let rounding = match get("rounding").map(|(text, place)| (text.parse(), place)) {
            None => None,
            Some((Ok(mode), _)) => Some(mode),
            Some((Err(UnknownRounding(text)), place)) => {
                let modes = ["half_up", "half_even", "up", "down", "ceiling", "floor"];
                let hint = did_you_mean(&text, modes);
                self.error("rounding", place, format!("rounding `{text}` is unknown; it is one of {}{hint}", modes.join(", ")));
                return None;
            }
        };
        let carry: Vec<String> = match get("carry") {
            None => Vec::new(),
            Some((text, place)) => {
                let columns: Vec<String> = text.split(',').map(|column| column.trim().to_owned()).collect();
                if columns.iter().any(String::is_empty) {
                    self.error("carry", place, "carry names columns of usage, as in carry = 'subject, meter'");
                    return None;
                }
                columns
            }
        };
        let history = match get("history") {
            None => None,
            Some((text, place)) => {
                let number = text.trim_end_matches("windows").trim_end_matches("window").trim();
                let Some(windows) = number.parse::<u32>().ok().filter(|windows| (1..=1200).contains(windows) && number.len() < text.len()) else {
                    self.error("history", place, format!("history is a number of earlier windows, as in '11 windows' (up to 1200), not '{text}'"));
                    return None;
                };
                Some(windows)
            }
        };
        Some(RuleOptions {
            window: spec,
            window_name: window,
            timezone,
            anchor: anchor.map(|(day, _)| day),
            grace,
            effective_from,
            effective_to,
            fan_out_allowed,
            provisional,
            rounding,
            carry,
            history,
        })
    }
}
