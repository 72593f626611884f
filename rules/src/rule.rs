//! A checked rule.

use arrow::datatypes::DataType;
use ratemill_schemas::windows::WindowSpec;
use sqlparser::ast::Query;

use crate::as_of::FanOutCheck;

/// The options of `WITH (…)`.
#[derive(Debug, Clone)]
pub struct RuleOptions {
    /// How time is cut.
    pub window: WindowSpec,
    /// The window as it was written.
    pub window_name: String,
    /// Zone of calendar windows and of dates in options.
    pub timezone: String,
    /// How long after its end a window stays open, in µs.
    pub grace: i64,
    /// First instant whose windows are rated, µs UTC.
    pub effective_from: i64,
    /// First instant whose windows are no longer rated, µs UTC.
    pub effective_to: Option<i64>,
    /// Whether a usage row may match several reference rows.
    pub fan_out_allowed: bool,
}

/// A column of a rule's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputColumn {
    /// Its name.
    pub name: String,
    /// Its type as the query gives it.
    pub data_type: DataType,
}

/// A rule that has passed every check.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its name, which charges carry.
    pub name: String,
    /// Its file, as the user named the project.
    pub file: String,
    /// The text of the file.
    pub text: String,
    /// Hash of text and function versions: the version that charges carry.
    pub version: String,
    /// The options.
    pub options: RuleOptions,
    /// Meters that the query asks for, or `None` when it may read any.
    pub meters: Option<Vec<String>>,
    /// Whether the query reads usage at all.
    pub reads_usage: bool,
    /// The output columns, in order.
    pub output: Vec<OutputColumn>,
    /// The query with as-of joins written out.
    pub(crate) query: Box<Query>,
    /// Joins whose uniqueness must be checked at run time.
    pub(crate) fan_out: Vec<FanOutCheck>,
}

impl Rule {
    /// Whether an event of `meter` can change what the rule charges.
    #[must_use]
    pub fn reads(&self, meter: &str) -> bool {
        self.reads_usage && self.meters.as_ref().is_none_or(|meters| meters.iter().any(|known| known == meter))
    }

    /// Whether this version rates windows that begin at `start`.
    #[must_use]
    pub fn in_force_at(&self, start: i64) -> bool {
        self.options.effective_from <= start && self.options.effective_to.is_none_or(|to| start < to)
    }

    /// The further columns of the output: those that the ledger does not know, in order.
    pub fn further_columns(&self) -> impl Iterator<Item = &OutputColumn> {
        let known = ratemill_schemas::charges::reserved();
        self.output.iter().filter(move |column| !known.contains(&column.name))
    }
}
