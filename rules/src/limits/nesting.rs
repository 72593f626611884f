//! How deep expressions nest, told from the tokens: the parser and what frees its tree take stack for every operator.

use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, Tokenizer};

use super::{Excess, NESTING_MAX, NESTING_SQUARES_MAX, READ_TWICE_MAX, SELECTS_MAX, STEPS_MAX};
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
    /// The calls around it that the parser reads twice.
    read_twice: usize,
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
        *self = Self { deepest: self.depth(), set_operations: self.set_operations, read_twice: self.read_twice, ..Self::default() };
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
        if self.read_twice > READ_TWICE_MAX {
            let message =
                format!("CASE, CAST, NOT, CEIL, FLOOR and the like are nested too deeply: at most {READ_TWICE_MAX} in each other");
            return Some((message, "give the inner one a name in a CTE"));
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
    previous: Keyword,
}

/// Where the text nests too deeply. What cannot be read as tokens is left to the parser.
pub(super) fn excess(text: &str) -> Option<Excess> {
    let tokens = Tokenizer::new(&RuleDialect, text).tokenize_with_location().ok()?;
    let mut rule = Rule { levels: vec![Level::default()], squares: 0, selects: 0, previous: Keyword::NoKeyword };
    for token in tokens {
        if matches!(token.token, Token::Whitespace(_)) {
            continue;
        }
        rule.read(&token.token);
        if let Some((message, help)) = rule.excess() {
            return Some(Excess { place: Place::of(token.span), message, help });
        }
    }
    None
}

impl Rule {
    fn read(&mut self, token: &Token) {
        let mut keyword = Keyword::NoKeyword;
        match token {
            Token::Word(word) if word.quote_style.is_none() => {
                keyword = word.keyword;
                self.keyword(keyword);
            }
            Token::LParen | Token::LBrace => self.open(),
            Token::LBracket => {
                self.operator();
                self.open();
            }
            Token::RParen | Token::RBracket | Token::RBrace => self.close(),
            Token::Comma | Token::SemiColon => self.next_expression(),
            Token::Period | Token::Word(_) | Token::Number(..) | Token::EOF => {}
            text if is_text(text) => {}
            _ => self.operator(),
        }
        self.previous = keyword;
    }

    fn keyword(&mut self, keyword: Keyword) {
        match keyword {
            // IS DISTINCT FROM
            Keyword::FROM if self.previous == Keyword::DISTINCT => self.operator(),
            Keyword::CASE => {
                self.previous = keyword;
                self.open();
            }
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

    fn open(&mut self) {
        let around = self.levels.last().map_or(0, |level| level.read_twice);
        let read_twice = around + usize::from(is_read_twice(self.previous));
        self.levels.push(Level { read_twice, ..Level::default() });
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

/// Whether the parser takes the word for what it is first, and for a name when that fails.
fn is_read_twice(word: Keyword) -> bool {
    matches!(
        word,
        Keyword::CASE
            | Keyword::CAST
            | Keyword::TRY_CAST
            | Keyword::SAFE_CAST
            | Keyword::CONVERT
            | Keyword::TRY_CONVERT
            | Keyword::CEIL
            | Keyword::FLOOR
            | Keyword::EXTRACT
            | Keyword::POSITION
            | Keyword::SUBSTR
            | Keyword::SUBSTRING
            | Keyword::OVERLAY
            | Keyword::TRIM
            | Keyword::INTERVAL
            | Keyword::ARRAY
            | Keyword::NOT
            | Keyword::MATCH
            | Keyword::STRUCT
    )
}

fn is_text(token: &Token) -> bool {
    matches!(
        token,
        Token::SingleQuotedString(_) | Token::DoubleQuotedString(_) | Token::NationalStringLiteral(_) | Token::HexStringLiteral(_)
    )
}
