//! Changes to texts that keep most of what makes sense in them.

use std::collections::BTreeSet;
use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::corpus::Corpus;

/// Texts that have been trouble somewhere.
const ODD: [&str; 42] = [
    "\0",
    "\u{feff}",
    "\r\n",
    "\r",
    "\t",
    "\u{a0}",
    "\u{2028}",
    "\u{202e}",
    "é",
    "ß",
    "İ",
    "漢",
    "🦀",
    "e\u{301}",
    "'",
    "\"",
    "`",
    "--",
    "/*",
    "*/",
    "$$",
    "\\",
    ";",
    "{{",
    "E'\\u0000'",
    "X'00'",
    "N'a'",
    "99999999999999999999999999999999999999999",
    "1e400",
    "1e-400",
    "-0",
    "0.0",
    "0.0000000000000000001",
    "9223372036854775808",
    "170141183460469231731687303715884105728",
    "NaN",
    "NULL",
    "' at Line: 0, Column: 0'",
    "9999-12-31",
    "0000-00-00",
    "-1",
    "18446744073709551616",
];

/// Heads and tails that can stand around an expression.
const AROUND: [(&str, &str); 12] = [
    ("(", ")"),
    ("-", ""),
    ("NOT ", ""),
    ("abs(", ")"),
    ("coalesce(", ", 1)"),
    ("CASE WHEN true THEN ", " END"),
    ("CAST(", " AS DECIMAL(38, 18))"),
    ("(SELECT ", ")"),
    ("sum(", ")"),
    ("replace('aaaa', 'a', ", ")"),
    ("[", "]"),
    ("/*", "*/"),
];

/// Words and texts of all corpora.
#[derive(Debug)]
pub struct Pool {
    words: Vec<String>,
    texts: Vec<String>,
}

impl Pool {
    pub fn of(corpora: &[Arc<Corpus>]) -> Self {
        let texts: Vec<String> = corpora
            .iter()
            .flat_map(|corpus| {
                let files = corpus.reference.iter().flat_map(|(_, declaration, csv)| [declaration.clone(), csv.clone()]);
                corpus.rules.iter().map(|(_, text)| text.clone()).chain(files).collect::<Vec<_>>()
            })
            .collect();
        let words: BTreeSet<String> = texts.iter().flat_map(|text| tokens(text)).filter(|token| !token.trim().is_empty()).collect();
        Self { words: words.into_iter().collect(), texts }
    }
}

/// Words, numbers, runs of blanks, and other characters one by one.
fn tokens(text: &str) -> Vec<String> {
    let class = |c: char| match c {
        c if c.is_alphanumeric() || c == '_' => 1,
        c if c.is_whitespace() => 2,
        _ => 0,
    };
    let mut tokens: Vec<String> = Vec::new();
    let mut last = 0;
    for c in text.chars() {
        match tokens.last_mut() {
            Some(token) if class(c) != 0 && class(c) == last => token.push(c),
            _ => tokens.push(c.to_string()),
        }
        last = class(c);
    }
    tokens
}

/// Changes texts at random.
pub struct Mutator<'a> {
    pub random: &'a mut StdRng,
    pub pool: &'a Pool,
}

impl Mutator<'_> {
    /// The text after one to four changes.
    pub fn mutated(&mut self, text: &str) -> String {
        let mut tokens = tokens(text);
        for _ in 0..self.random.random_range(1..=4) {
            self.change(&mut tokens);
        }
        let mut text: String = tokens.concat();
        match self.random.random_range(0..40) {
            0 => text = text.replace('\n', "\r\n"),
            1 => text.insert(0, '\u{feff}'),
            2 => text = text.chars().filter(|c| !c.is_whitespace()).collect(),
            3 => text = text.to_uppercase(),
            _ => {}
        }
        text
    }

    /// A number up to `most`, small ones being as likely as large ones.
    fn size(&mut self, most: u32) -> usize {
        let bits = self.random.random_range(0..=most.ilog2());
        self.random.random_range(1..=1_usize << bits)
    }

    fn range(&mut self, tokens: &[String]) -> std::ops::Range<usize> {
        let start = self.random.random_range(0..=tokens.len());
        let length = self.size(64).min(tokens.len() - start);
        start..start + length
    }

    fn change(&mut self, tokens: &mut Vec<String>) {
        let range = self.range(tokens);
        match self.random.random_range(0..11) {
            0 => drop(tokens.drain(range)),
            1 => {
                let copy = tokens[range.clone()].to_vec();
                let at = self.random.random_range(0..=tokens.len());
                tokens.splice(at..at, copy);
            }
            2 if tokens.len() > 1 => {
                let (a, b) = (self.random.random_range(0..tokens.len()), self.random.random_range(0..tokens.len()));
                tokens.swap(a, b);
            }
            3 => {
                let odd = (*ODD.choose(self.random).unwrap()).to_owned();
                tokens.insert(range.start, odd);
            }
            4 => {
                let odd = (*ODD.choose(self.random).unwrap()).to_owned();
                tokens.splice(range, [odd]);
            }
            5 => {
                let other = self::tokens(self.pool.texts.choose(self.random).unwrap());
                let from = self.range(&other).start;
                tokens.splice(range.start.., other[from..].iter().cloned());
            }
            6 => {
                let fragment = tokens[range.clone()].concat();
                let times = self.size(4096).min((1 << 20) / fragment.len().max(1));
                let separator = ["", " ", ", ", " AND ", " + ", "\n"].choose(self.random).unwrap();
                tokens.splice(range, [vec![fragment; times].join(separator)]);
            }
            7 => {
                let times = self.size(1024);
                let (head, tail) = AROUND.choose(self.random).unwrap();
                let inner = tokens[range.clone()].concat();
                tokens.splice(range, [format!("{}{inner}{}", head.repeat(times), tail.repeat(times))]);
            }
            // A word for another, so that types and names clash.
            _ => {
                let words: Vec<usize> = (0..tokens.len()).filter(|index| tokens[*index].starts_with(char::is_alphanumeric)).collect();
                if let Some(index) = words.choose(self.random) {
                    tokens[*index].clone_from(self.pool.words.choose(self.random).unwrap());
                }
            }
        }
    }
}
