//! `CREATE MATERIALIZED VIEW name WITH (…) AS SELECT …`: parsing.

use sqlparser::ast::{CreateTableOptions, CreateView, Query, Spanned, Statement};
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::Token;

use crate::diagnostics::{Diagnostic, Diagnostics, Place};
use crate::dialect::RuleDialect;
use crate::options::{OptionPlaces, Reader};
use crate::rule::RuleOptions;
use crate::source::Source;

/// What a rule file holds.
const SHAPE: &str = "a rule file holds one statement: CREATE MATERIALIZED VIEW name WITH (window = 'month', …) AS SELECT …";

/// A parsed rule file.
pub(crate) struct ParsedRule {
    pub(crate) name: String,
    pub(crate) name_place: Option<Place>,
    pub(crate) options: RuleOptions,
    pub(crate) places: OptionPlaces,
    pub(crate) query: Box<Query>,
}

pub(crate) fn parse(source: &Source, diagnostics: &mut Diagnostics) -> Option<ParsedRule> {
    let parser = Parser::new(&RuleDialect).with_recursion_limit(50).try_with_sql(&source.text);
    let mut statements = match parser.and_then(|mut parser| parser.parse_statements()) {
        Ok(statements) => statements,
        Err(error) => {
            diagnostics.push(syntax_error(source, &error));
            return None;
        }
    };
    if statements.len() != 1 {
        let message = format!("the file has {} statements", statements.len());
        diagnostics.push(source.error("one-statement", source.head(1), message).help(SHAPE));
        return None;
    }
    let Statement::CreateView(view) = statements.remove(0) else {
        diagnostics.push(not_a_rule(source));
        return None;
    };
    if let Some(diagnostic) = not_plain(source, &view) {
        diagnostics.push(diagnostic);
        return None;
    }
    let name_place = source.of_span(view.name.span());
    let name = match view.name.0.as_slice() {
        [part] => part.as_ident().map(|ident| if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }),
        _ => None,
    };
    let Some(name) = name else {
        let last = view.name.0.last().map(|part| part.to_string()).unwrap_or_default();
        diagnostics.push(source.error("rule-name", name_place, "the name of a rule is one word").help(format!("write {last}")));
        return None;
    };
    if !is_plain_name(&name) {
        let message = format!("`{name}` cannot be the name of a rule");
        diagnostics.push(source.error("rule-name", name_place, message).help("small letters, digits and _, beginning with a letter"));
        return None;
    }
    let given = match &view.options {
        CreateTableOptions::With(given) => given.as_slice(),
        _ => &[],
    };
    let (options, places) = Reader { source, diagnostics }.options(given)?;
    Some(ParsedRule { name, name_place, options, places, query: view.query })
}

/// Whether a rule or an output column can be called so.
pub(crate) fn is_plain_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn not_a_rule(source: &Source) -> Diagnostic {
    let word = match source.token_at(1, 1) {
        Some((Token::Word(word), _)) => word.value.to_uppercase(),
        _ => String::new(),
    };
    let help = match word.as_str() {
        "SELECT" | "WITH" => "put CREATE MATERIALIZED VIEW name WITH (window = 'month', …) AS before it",
        "INSERT" | "UPDATE" | "DELETE" | "MERGE" | "COPY" => {
            "a rule only reads; what it returns becomes charges: CREATE MATERIALIZED VIEW name WITH (…) AS SELECT …"
        }
        "DROP" => "a rule ends by effective_to = '2026-12-31'",
        "EXPLAIN" => "`ratemill check` says what is wrong with a rule; take EXPLAIN out",
        "CREATE" => "a rule begins CREATE MATERIALIZED VIEW name WITH (window = 'month', …) AS",
        _ => SHAPE,
    };
    let message = if word.is_empty() { "this is not a rule".to_owned() } else { format!("{word} is not a rule") };
    source.error("not-a-rule", source.head(0), message).help(help)
}

fn not_plain(source: &Source, view: &CreateView) -> Option<Diagnostic> {
    let error = |place, message: &str, help: &str| Some(source.error("not-a-rule", place, message).help(help));
    if view.or_replace || view.or_alter {
        let help = "a new version of a rule is a new file with its own effective_from; the older one ends by effective_to";
        return error(source.words(None, &["OR", "REPLACE"]).or(source.head(0)), "a rule does not replace another", help);
    }
    if !view.materialized {
        return error(source.head(0), "a rule is a materialized view", "write CREATE MATERIALIZED VIEW");
    }
    if let Some((first, last)) = view.columns.first().zip(view.columns.last()) {
        let place = source.of_span(first.name.span).zip(source.of_span(last.name.span)).map(|(first, last)| Source::join(first, last));
        return error(place, "a rule has no list of columns", "name the columns in the SELECT: … AS name");
    }
    if view.temporary || view.if_not_exists || view.secure {
        return error(source.head(0), "a rule is a plain CREATE MATERIALIZED VIEW", SHAPE);
    }
    None
}

fn syntax_error(source: &Source, error: &ParserError) -> Diagnostic {
    let message = match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message.clone(),
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply".to_owned(),
    };
    let Some(index) = message.rfind(" at Line: ") else { return source.error("syntax", None, message) };
    let numbers: Vec<u64> = message[index..].split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect();
    let message = message[..index].to_owned();
    let (line, column) = match numbers.as_slice() {
        [line, column, ..] => (*line, *column),
        _ => (1, 1),
    };
    let found = message.rsplit_once("found: ").map_or("", |(_, found)| found).to_owned();
    if message.starts_with("Unterminated string") {
        let place = Place { line, column, end_line: line + 1, end_column: 1 };
        return source.error("syntax", Some(place), "the text is not closed").help("a text ends with ' on the same line as it begins");
    }
    // The parser names the token that it did not expect, but not always its place.
    let is_found = |token: Option<(&Token, Place)>| token.filter(|(token, _)| token.to_string() == found).map(|(_, place)| place);
    let place = is_found(source.token_at(line, column))
        .or_else(|| is_found(source.token_before(line, column)))
        .or_else(|| source.token_at(line, column).map(|(_, place)| place))
        .or_else(|| source.end().map(|(_, place)| place))
        .unwrap_or(Place::at(line, column));
    let before = source.token_before(place.line, place.column).map(|(token, _)| token.clone());
    let after = source.words(Some(place), &["SYSTEM_TIME", "AS", "OF"]).is_some();
    let help = syntax_help(&message, &found, before.as_ref(), after);
    let message = message.replacen("sql parser error: ", "", 1).replace("Expected: ", "expected ").replace(", found: ", ", found ");
    let diagnostic = source.error("syntax", Some(place), message);
    if help.is_empty() { diagnostic } else { diagnostic.help(help) }
}

fn syntax_help(message: &str, found: &str, before: Option<&Token>, as_of: bool) -> String {
    let after_word = matches!(before, Some(Token::Word(_) | Token::SingleQuotedString(_) | Token::Number(..) | Token::RParen));
    match found {
        "‘" | "’" | "“" | "”" | "„" => "a text is written in straight single quotes: 'Pages'".to_owned(),
        "`" => "names need no quotes, or double ones".to_owned(),
        "{" | "}" => "templates are not filled in; write the SQL itself".to_owned(),
        "SYSTEM_TIME" if as_of => "the alias comes last: contracts FOR SYSTEM_TIME AS OF u.time AS c".to_owned(),
        "SYSTEM_TIME" => "only FOR SYSTEM_TIME AS OF is read".to_owned(),
        "BETWEEN" => "only FOR SYSTEM_TIME AS OF an instant is read".to_owned(),
        "WITH" => "the options stand before AS: CREATE MATERIALIZED VIEW name WITH (…) AS SELECT …".to_owned(),
        "EXPLAIN" => "a rule is a SELECT; take EXPLAIN out".to_owned(),
        "FROM" | ")" | "WHERE" | "GROUP" if matches!(before, Some(Token::Comma)) => format!("take the comma before {found} out"),
        ")" | "," if message.contains("'='") || message.contains("=,") => "an option is written name = 'value'".to_owned(),
        _ if message.contains("end of statement") && after_word => {
            format!("a comma is missing before {found}, or it stands in the wrong place")
        }
        _ => String::new(),
    }
}
