//! How deep expressions nest, told from the tokens: the parser and what frees its tree take stack for every operator.

use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, Tokenizer};

use super::{Excess, NESTING_MAX, NESTING_SQUARES_MAX, SELECTS_MAX, STEPS_MAX};
use crate::diagnostics::Place;
use crate::dialect::RuleDialect;

/// What is counted between a parenthesis, or a CASE, and its end.
#[derive(Debug, Default)]
struct Level {
    /// AND and OR since the last comma or clause.
    links: usize,
    /// Other operators since the last AND or OR.
    run: usize,
    longest_run: usize,
    /// The deepest of the parentheses since the last comma or clause.
    inner: usize,
    /// The deepest expression before it.
    deepest: usize,
    set_operations: usize,
}

impl Level {
    /// Of the expression that is being read.
    fn current(&self) -> usize {
        self.links + self.longest_run.max(self.run) + self.inner
    }

    fn depth(&self) -> usize {
        self.deepest.max(self.current())
    }

    /// Begins another expression; returns the depth of the one before.
    fn next_expression(&mut self) -> usize {
        let current = self.current();
        *self = Self { deepest: self.depth(), set_operations: self.set_operations, ..Self::default() };
        current
    }

    fn link(&mut self) {
        self.links += 1;
        self.longest_run = self.longest_run.max(self.run);
        self.run = 0;
    }

    fn excess(&self) -> Option<(String, &'static str)> {
        if self.depth() > NESTING_MAX {
            let message = format!("this expression goes on for too long: at most {NESTING_MAX} operators may hang together");
            return Some((message, "write IN (…) for many values, or join a reference table"));
        }
        (self.set_operations > STEPS_MAX)
            .then(|| (format!("too many SELECTs are put together: at most {STEPS_MAX}"), "divide the rule into several"))
    }
}

/// What is counted in a whole rule.
#[derive(Debug)]
struct Rule {
    levels: Vec<Level>,
    squares: usize,
    selects: usize,
}

/// Where the text nests too deeply. What cannot be read as tokens is left to the parser.
pub(super) fn excess(text: &str) -> Option<Excess> {
    let tokens = Tokenizer::new(&RuleDialect, text).tokenize_with_location().ok()?;
    let mut rule = Rule { levels: vec![Level::default()], squares: 0, selects: 0 };
    let mut after_distinct = false;
    for token in tokens {
        match &token.token {
            Token::Whitespace(_) => continue,
            // IS DISTINCT FROM
            Token::Word(word) if word.keyword == Keyword::FROM && after_distinct => rule.operator(),
            other => rule.read(other),
        }
        after_distinct = matches!(&token.token, Token::Word(word) if word.keyword == Keyword::DISTINCT);
        if let Some((message, help)) = rule.excess() {
            return Some(Excess { place: Place::of(token.span), message, help });
        }
    }
    None
}

impl Rule {
    fn read(&mut self, token: &Token) {
        match token {
            Token::Word(word) if word.quote_style.is_none() => self.keyword(word.keyword),
            Token::LParen | Token::LBrace => self.levels.push(Level::default()),
            Token::LBracket => {
                self.operator();
                self.levels.push(Level::default());
            }
            Token::RParen | Token::RBracket | Token::RBrace => self.close(),
            Token::Comma | Token::SemiColon => self.next_expression(),
            Token::Period | Token::Word(_) | Token::Number(..) | Token::EOF => {}
            text if is_text(text) => {}
            _ => self.operator(),
        }
    }

    fn keyword(&mut self, keyword: Keyword) {
        match keyword {
            Keyword::CASE => self.levels.push(Level::default()),
            Keyword::END => self.close(),
            Keyword::AND | Keyword::OR | Keyword::XOR => self.with_level(Level::link),
            Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::MINUS => self.with_level(|level| level.set_operations += 1),
            Keyword::SELECT => {
                self.selects += 1;
                self.next_expression();
            }
            Keyword::FROM
            | Keyword::WHERE
            | Keyword::GROUP
            | Keyword::HAVING
            | Keyword::QUALIFY
            | Keyword::ORDER
            | Keyword::JOIN
            | Keyword::ON
            | Keyword::WHEN
            | Keyword::THEN
            | Keyword::ELSE => self.next_expression(),
            Keyword::NOT
            | Keyword::IS
            | Keyword::NOTNULL
            | Keyword::IN
            | Keyword::BETWEEN
            | Keyword::LIKE
            | Keyword::ILIKE
            | Keyword::SIMILAR
            | Keyword::RLIKE
            | Keyword::REGEXP
            | Keyword::COLLATE
            | Keyword::AT
            | Keyword::DIV
            | Keyword::OVERLAPS
            | Keyword::OPERATOR => self.operator(),
            _ => {}
        }
    }

    fn with_level(&mut self, change: impl FnOnce(&mut Level)) {
        if let Some(level) = self.levels.last_mut() {
            change(level);
        }
    }

    fn operator(&mut self) {
        self.with_level(|level| level.run += 1);
    }

    fn next_expression(&mut self) {
        let depth = self.levels.last_mut().map_or(0, Level::next_expression);
        self.squares = self.squares.saturating_add(depth * depth);
    }

    fn close(&mut self) {
        self.next_expression();
        if self.levels.len() > 1
            && let Some(closed) = self.levels.pop()
        {
            self.with_level(|level| level.inner = level.inner.max(closed.depth()));
        }
    }

    fn excess(&self) -> Option<(String, &'static str)> {
        if self.squares > NESTING_SQUARES_MAX {
            return Some(("the expressions of the rule are too long in all".to_owned(), "divide the rule into several"));
        }
        if self.selects > SELECTS_MAX {
            return Some((format!("the rule has too many SELECTs: at most {SELECTS_MAX}"), "divide the rule into several"));
        }
        self.levels.last().and_then(Level::excess)
    }
}

fn is_text(token: &Token) -> bool {
    matches!(
        token,
        Token::SingleQuotedString(_) | Token::DoubleQuotedString(_) | Token::NationalStringLiteral(_) | Token::HexStringLiteral(_)
    )
}
