//! A rule file and its tokens: the parser keeps only parts of the places of what it reads, the tokens have the rest.

use sqlparser::ast::{CastKind, Expr, Function, Spanned};
use sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer};

use crate::diagnostics::{Diagnostic, Place};
use crate::dialect::RuleDialect;

/// A rule file.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) file: String,
    pub(crate) text: String,
    /// Without blanks and comments; up to the first that cannot be read.
    tokens: Vec<TokenWithSpan>,
}

/// First and last token of something.
type Range = (usize, usize);

impl Source {
    pub(crate) fn new(file: String, text: String) -> Self {
        let mut tokens = Vec::new();
        // What cannot be read is an error of the parser, too.
        let _ = Tokenizer::new(&RuleDialect, &text).tokenize_with_location_into_buf(&mut tokens);
        tokens.retain(|token| !matches!(token.token, Token::Whitespace(_) | Token::EOF));
        Self { file, text, tokens }
    }

    /// An error in this file.
    pub(crate) fn error(&self, code: &'static str, place: Option<Place>, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(code, &self.file, &self.text, place, message)
    }

    /// The whole of an expression: closing parentheses, casts and OVER included.
    pub(crate) fn of(&self, expr: &Expr) -> Option<Place> {
        self.expression(expr).map(|range| self.place(range))
    }

    /// From the beginning of one expression to the end of another.
    pub(crate) fn between(&self, first: &Expr, last: &Expr) -> Option<Place> {
        let (first, last) = (self.expression(first)?, self.expression(last)?);
        Some(self.place((first.0, last.1.max(first.1))))
    }

    /// The place of a parsed node, whose parser knows all of it.
    pub(crate) fn of_span(&self, span: Span) -> Option<Place> {
        self.range(span).map(|range| self.place(self.balanced(range)))
    }

    /// The token at a place, or the one after it.
    pub(crate) fn token_at(&self, line: u64, column: u64) -> Option<(&Token, Place)> {
        let index = self.from(Location { line, column })?;
        Some((&self.tokens[index].token, self.place((index, index))))
    }

    /// The token before a place.
    pub(crate) fn token_before(&self, line: u64, column: u64) -> Option<(&Token, Place)> {
        let index = self.from(Location { line, column }).unwrap_or(self.tokens.len()).checked_sub(1)?;
        Some((&self.tokens[index].token, self.place((index, index))))
    }

    /// The last token.
    pub(crate) fn end(&self) -> Option<(&Token, Place)> {
        let index = self.tokens.len().checked_sub(1)?;
        Some((&self.tokens[index].token, self.place((index, index))))
    }

    /// The first place at or after `from` where these words stand one after the other.
    pub(crate) fn words(&self, from: Option<Place>, words: &[&str]) -> Option<Place> {
        let from = match from {
            Some(place) => self.from(Location { line: place.line, column: place.column })?,
            None => 0,
        };
        let index =
            (from..self.tokens.len()).find(|index| words.iter().enumerate().all(|(offset, word)| self.is_word(index + offset, word)))?;
        Some(self.place((index, index + words.len() - 1)))
    }

    /// Where a text in single quotes first stands.
    pub(crate) fn quoted(&self, text: &str) -> Option<Place> {
        let index = self.tokens.iter().position(|token| matches!(&token.token, Token::SingleQuotedString(found) if found == text))?;
        Some(self.place((index, index)))
    }

    /// From `first` to the end of the parentheses that open at or after it.
    pub(crate) fn with_parentheses(&self, first: Place) -> Place {
        let Some(index) = self.from(Location { line: first.line, column: first.column }) else { return first };
        let Some(open) = (index..self.tokens.len()).find(|index| self.tokens[*index].token == Token::LParen) else { return first };
        self.place((index, self.closing(open)))
    }

    /// From the beginning of one place to the end of another.
    pub(crate) fn join(first: Place, last: Place) -> Place {
        Place { end_line: last.end_line, end_column: last.end_column, ..first }
    }

    /// Begin of the statement of this number: its words up to the name, as in `CREATE TABLE pages`.
    pub(crate) fn head(&self, statement: usize) -> Option<Place> {
        let mut first = 0;
        for _ in 0..statement {
            first += self.tokens.get(first..)?.iter().position(|token| token.token == Token::SemiColon)? + 1;
        }
        let keywords = [
            "CREATE",
            "OR",
            "REPLACE",
            "MATERIALIZED",
            "VIEW",
            "TABLE",
            "INSERT",
            "INTO",
            "DELETE",
            "FROM",
            "DROP",
            "EXPLAIN",
            "ANALYZE",
            "ALTER",
        ];
        self.tokens.get(first)?;
        let mut last = first;
        while keywords.iter().any(|word| self.is_word(last, word)) && self.is_any_word(last + 1) && !self.is_word(last + 1, "SELECT") {
            last += 1;
        }
        Some(self.place((first, last)))
    }

    fn expression(&self, expr: &Expr) -> Option<Range> {
        let own = || self.range(expr.span());
        let range = match expr {
            Expr::Nested(inner) => {
                let (first, last) = self.expression(inner)?;
                if first > 0 && self.tokens[first - 1].token == Token::LParen { (first - 1, last) } else { (first, last) }
            }
            Expr::Function(call) => self.call(call)?,
            Expr::Cast { kind: CastKind::DoubleColon, expr: inner, .. } => {
                let (first, last) = self.expression(inner)?;
                (first, self.after_type(last))
            }
            Expr::Cast { expr: inner, .. } | Expr::Convert { expr: inner, .. } => {
                self.keyword_call(inner, &["CAST", "TRY_CAST", "SAFE_CAST", "CONVERT", "TRY_CONVERT"])?
            }
            Expr::Extract { expr: inner, .. } => self.keyword_call(inner, &["EXTRACT"])?,
            Expr::Ceil { expr: inner, .. } => self.keyword_call(inner, &["CEIL", "CEILING"])?,
            Expr::Floor { expr: inner, .. } => self.keyword_call(inner, &["FLOOR"])?,
            Expr::Substring { expr: inner, .. } => self.keyword_call(inner, &["SUBSTRING", "SUBSTR"])?,
            Expr::Trim { expr: inner, .. } => self.keyword_call(inner, &["TRIM"])?,
            Expr::Position { expr: inner, .. } => self.keyword_call(inner, &["POSITION"])?,
            Expr::BinaryOp { left, right, .. } => (self.expression(left)?.0, self.expression(right)?.1),
            Expr::AtTimeZone { timestamp, time_zone } => (self.expression(timestamp)?.0, self.expression(time_zone)?.1),
            Expr::Between { expr, high, .. } => (self.expression(expr)?.0, self.expression(high)?.1),
            Expr::Like { expr, pattern, .. } | Expr::ILike { expr, pattern, .. } => (self.expression(expr)?.0, self.expression(pattern)?.1),
            Expr::IsNull(inner) | Expr::IsTrue(inner) | Expr::IsFalse(inner) => self.followed(inner, 2)?,
            Expr::IsNotNull(inner) | Expr::IsNotTrue(inner) | Expr::IsNotFalse(inner) => self.followed(inner, 3)?,
            Expr::InList { expr: inner, list, .. } => {
                let first = self.expression(inner)?.0;
                (first, self.expression(list.last()?)?.1 + 1)
            }
            Expr::UnaryOp { expr: inner, .. } => {
                let (first, last) = self.expression(inner)?;
                (first.saturating_sub(1), last)
            }
            Expr::Interval(_) | Expr::TypedString(_) | Expr::Prefixed { .. } => {
                let (first, last) = own()?;
                (if self.is_any_word(first) { first } else { first.saturating_sub(1) }, last)
            }
            Expr::Subquery(_) => {
                let (first, last) = own()?;
                (first.saturating_sub(1), last)
            }
            Expr::CompoundFieldAccess { .. } => {
                let (first, last) = own()?;
                let closing = self.tokens.get(last + 1).is_some_and(|token| token.token == Token::RBracket);
                (first, last + usize::from(closing))
            }
            _ => own()?,
        };
        Some(self.balanced(range))
    }

    /// `name(…) FILTER (…) OVER (…)`.
    fn call(&self, call: &Function) -> Option<Range> {
        let (first, name) = self.range(call.name.span())?;
        let mut last = name;
        if self.tokens.get(name + 1).is_some_and(|token| token.token == Token::LParen) {
            last = self.closing(name + 1);
        }
        while ["FILTER", "OVER", "WITHIN", "IGNORE", "RESPECT"].iter().any(|word| self.is_word(last + 1, word)) {
            let next = last + 2;
            last = if self.tokens.get(next).is_some_and(|token| token.token == Token::LParen) { self.closing(next) } else { next };
            if self.is_word(last, "GROUP") {
                last = self.closing(last + 1);
            }
        }
        Some((first, last.min(self.tokens.len() - 1)))
    }

    /// `CAST(inner AS …)` and its like: the parser knows only the inner expression.
    fn keyword_call(&self, inner: &Expr, words: &[&str]) -> Option<Range> {
        let (first, last) = self.expression(inner)?;
        let name = (0..first).rev().find(|index| words.iter().any(|word| self.is_word(*index, word)));
        Some(name.map_or((first, last), |name| (name, self.closing(name + 1))))
    }

    fn followed(&self, inner: &Expr, words: usize) -> Option<Range> {
        let (first, last) = self.expression(inner)?;
        Some((first, (last + words).min(self.tokens.len() - 1)))
    }

    /// The last token of `:: TYPE(…)` after `last`.
    fn after_type(&self, last: usize) -> usize {
        let mut end =
            (last + 1..self.tokens.len()).find(|index| self.tokens[*index].token == Token::DoubleColon).map_or(last, |colons| colons + 1);
        if self.tokens.get(end + 1).is_some_and(|token| token.token == Token::LParen) {
            end = self.closing(end + 1);
        }
        end.min(self.tokens.len() - 1)
    }

    /// Goes on to the parenthesis that closes the last one open.
    fn balanced(&self, (first, last): Range) -> Range {
        let mut open = 0_i32;
        for token in &self.tokens[first..=last] {
            match token.token {
                Token::LParen => open += 1,
                Token::RParen => open -= 1,
                _ => {}
            }
        }
        let mut end = last;
        while open > 0 && end + 1 < self.tokens.len() {
            end += 1;
            match self.tokens[end].token {
                Token::LParen => open += 1,
                Token::RParen => open -= 1,
                _ => {}
            }
        }
        (first, end)
    }

    /// The parenthesis that closes the one at `open`; `open` itself where there is none.
    fn closing(&self, open: usize) -> usize {
        if self.tokens.get(open).is_none_or(|token| token.token != Token::LParen) {
            return open.min(self.tokens.len().saturating_sub(1));
        }
        self.balanced((open, open)).1
    }

    fn range(&self, span: Span) -> Option<Range> {
        if span.start.line == 0 {
            return None;
        }
        let first = self.from(span.start)?;
        let mut last = first;
        while self.tokens.get(last + 1).is_some_and(|token| token.span.end <= span.end) {
            last += 1;
        }
        Some((first, last))
    }

    /// The first token that ends after a location.
    fn from(&self, location: Location) -> Option<usize> {
        self.tokens.iter().position(|token| token.span.end > location)
    }

    fn place(&self, (first, last): Range) -> Place {
        let (start, end) = (self.tokens[first].span.start, self.tokens[last].span.end);
        Place { line: start.line, column: start.column, end_line: end.line, end_column: end.column }
    }

    fn is_word(&self, index: usize, word: &str) -> bool {
        let Some(Token::Word(found)) = self.tokens.get(index).map(|token| &token.token) else { return false };
        found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word)
    }

    fn is_any_word(&self, index: usize) -> bool {
        matches!(self.tokens.get(index).map(|token| &token.token), Some(Token::Word(_)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What is underlined of each column of a SELECT.
    fn check(select: &str, expected: &[&str]) {
        let text = format!("-- comment\n{select}");
        let source = Source::new("r.sql".to_owned(), text.clone());
        let statements = sqlparser::parser::Parser::new(&RuleDialect).try_with_sql(&text).unwrap().parse_statements().unwrap();
        let sqlparser::ast::Statement::Query(query) = &statements[0] else { panic!("a query") };
        let sqlparser::ast::SetExpr::Select(parsed) = query.body.as_ref() else { panic!("a SELECT") };
        let shown: Vec<String> = parsed
            .projection
            .iter()
            .map(|item| match item {
                sqlparser::ast::SelectItem::UnnamedExpr(expr) | sqlparser::ast::SelectItem::ExprWithAlias { expr, .. } => {
                    let place = source.of(expr).unwrap();
                    let columns = usize::try_from(place.column).unwrap() - 1..usize::try_from(place.end_column).unwrap() - 1;
                    select[columns].to_owned()
                }
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn expressions_are_underlined_whole() {
        check(
            "SELECT CAST(sum(a) AS DECIMAL(10, 2)) * 2, sum(a)::NUMERIC(3, 1), TRY_CAST(a AS DATE)",
            &["CAST(sum(a) AS DECIMAL(10, 2)) * 2", "sum(a)::NUMERIC(3, 1)", "TRY_CAST(a AS DATE)"],
        );
        check(
            "SELECT lag(a) OVER (PARTITION BY b ORDER BY c) AS x, count(*) FILTER (WHERE (a)) , f(g(1), (2))",
            &["lag(a) OVER (PARTITION BY b ORDER BY c)", "count(*) FILTER (WHERE (a))", "f(g(1), (2))"],
        );
        check(
            "SELECT -a, NOT a, (a + b) * c, INTERVAL '1 day', DATE '2026-01-01', EXTRACT(hour FROM t)",
            &["-a", "NOT a", "(a + b) * c", "INTERVAL '1 day'", "DATE '2026-01-01'", "EXTRACT(hour FROM t)"],
        );
        check(
            "SELECT a IS NOT NULL, a IN (1, (2)), a BETWEEN 1 AND f(2), m['x'], ceil(a), CASE WHEN a THEN 1 END",
            &["a IS NOT NULL", "a IN (1, (2))", "a BETWEEN 1 AND f(2)", "m['x']", "ceil(a)", "CASE WHEN a THEN 1 END"],
        );
    }
}
