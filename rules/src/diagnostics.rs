//! Errors and warnings that point at a place in a file, shown like those of rustc.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Serialize;

/// Most findings of one severity that are kept of a file: nobody reads more, and each holds the file's text.
const FINDINGS_MAX: usize = 100;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The project cannot run.
    Error,
    /// The project can run, but probably not as meant.
    Warning,
}

/// A place in a file; lines and columns count from 1, `end` is exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Place {
    /// First line.
    pub line: u64,
    /// First column, in characters.
    pub column: u64,
    /// Last line.
    pub end_line: u64,
    /// Column after the last character.
    pub end_column: u64,
}

impl Place {
    /// One character.
    #[must_use]
    pub fn at(line: u64, column: u64) -> Self {
        Self { line, column, end_line: line, end_column: column + 1 }
    }

    /// The place of a parsed node; `None` where the parser kept none.
    #[must_use]
    pub fn of(span: sqlparser::tokenizer::Span) -> Option<Self> {
        (span.start.line > 0).then(|| Self {
            line: span.start.line,
            column: span.start.column,
            end_line: span.end.line.max(span.start.line),
            end_column: span.end.column.max(span.start.column + 1),
        })
    }

    /// The part on the first line: what is wrong is read at a glance.
    fn on_one_line(self, text: &str) -> Self {
        if self.end_line <= self.line {
            return self;
        }
        let line = usize::try_from(self.line).unwrap_or(1).checked_sub(1).and_then(|index| text.lines().nth(index)).unwrap_or_default();
        let end_column = line.trim_end().chars().count() as u64 + 1;
        Self { end_line: self.line, end_column: end_column.max(self.column + 1), ..self }
    }

    fn bytes(self, text: &str) -> Range<usize> {
        let offset = |line: u64, column: u64| {
            let start: usize = text.split_inclusive('\n').take(usize::try_from(line).unwrap_or(1).saturating_sub(1)).map(str::len).sum();
            let characters = usize::try_from(column).unwrap_or(1).saturating_sub(1);
            let within: usize = text[start..].chars().take_while(|c| *c != '\n').take(characters).map(char::len_utf8).sum();
            start + within
        };
        let start = offset(self.line, self.column).min(text.len());
        start..offset(self.end_line, self.end_column).clamp(start, text.len())
    }
}

/// One finding.
#[derive(Debug, Clone, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// A stable name of the check.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// The file, as the user named the project.
    pub file: String,
    /// Where; `None` for the file as a whole.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// What to write instead.
    pub help: Option<String>,
    #[serde(skip)]
    text: String,
}

impl Diagnostic {
    /// An error in `file`, whose content is `text`.
    #[must_use]
    pub fn error(code: &'static str, file: &str, text: &str, place: Option<Place>, message: impl Into<String>) -> Self {
        let place = place.map(|place| place.on_one_line(text));
        Self { severity: Severity::Error, code, message: message.into(), file: file.to_owned(), place, help: None, text: text.to_owned() }
    }

    /// The same as a warning.
    #[must_use]
    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// Adds what to write instead.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The finding with the source text underlined.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let span = self.place.map_or(0..0, |place| place.bytes(&self.text));
        let snippet = Snippet::source(self.text.as_str()).path(self.file.as_str()).line_start(1);
        let title = level.primary_title(self.message.as_str()).id(self.code);
        let group = match self.place {
            Some(_) => title.element(snippet.annotation(AnnotationKind::Primary.span(span))),
            None => title.element(annotate_snippets::Origin::path(self.file.as_str())),
        };
        let group = match &self.help {
            Some(help) => group.element(Level::HELP.message(help.as_str())),
            None => group,
        };
        renderer.render(&[group])
    }
}

/// Every finding of a check.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// Whether the project cannot run.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// How many findings are errors.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.0.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count()
    }

    /// Keeps the first of findings that say the same of one file.
    pub(crate) fn deduplicate(&mut self) {
        let mut known: Vec<(&'static str, String, String)> = Vec::new();
        self.0.retain(|diagnostic| {
            let key = (diagnostic.code, diagnostic.file.clone(), diagnostic.message.clone());
            let is_new = !diagnostic.file.ends_with(".sql") || !known.contains(&key);
            known.push(key);
            is_new
        });
    }

    /// Adds a finding, unless its file has enough of them already.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        if !self.is_full(&diagnostic.file, diagnostic.severity) {
            self.0.push(diagnostic);
        }
    }

    /// Whether further findings of a file are left out.
    #[must_use]
    pub fn is_full(&self, file: &str, severity: Severity) -> bool {
        self.0.iter().filter(|known| known.severity == severity && known.file == file).count() >= FINDINGS_MAX
    }

    /// All findings with their source texts underlined.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        self.0.iter().map(|diagnostic| diagnostic.render(color)).collect::<Vec<_>>().join("\n\n")
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}
