//! A checked rule.

use std::collections::BTreeSet;

use arrow::datatypes::DataType;
use ratemill_schemas::windows::{WindowError, WindowSpec};
use ratemill_schemas::{Rounding, Window};
use sqlparser::ast::Query;

use crate::as_of::FanOutCheck;
use crate::inputs::Inputs;
use crate::reference::ReferenceData;

/// The options of `WITH (…)`.
#[derive(Debug, Clone)]
pub struct RuleOptions {
    /// How time is cut.
    pub window: WindowSpec,
    /// The window as it was written.
    pub window_name: String,
    /// Zone of calendar windows and of dates in options.
    pub timezone: String,
    /// Day of the month on which windows begin, where it is not the first.
    pub anchor: Option<String>,
    /// How long after its end a window stays open, in µs.
    pub grace: i64,
    /// First instant whose windows are rated, µs UTC.
    pub effective_from: i64,
    /// First instant whose windows are no longer rated, µs UTC.
    pub effective_to: Option<i64>,
    /// Whether a usage row may match several reference rows.
    pub fan_out_allowed: bool,
    /// Whether open windows show provisional charges.
    pub provisional: bool,
    /// Mode of `round_money` and `round` where a call names none.
    pub rounding: Option<Rounding>,
    /// Columns of usage of whose every combination `opening` holds the last event before the window.
    pub carry: Vec<String>,
    /// How many earlier windows `earlier.NAME` holds.
    pub history: Option<u32>,
}

/// A window that a rule rates: of a billing period, together with its contract.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct RuleWindow {
    /// When.
    pub window: Window,
    /// Whose, where the window is a contract's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contract_id: Option<String>,
}

impl std::fmt::Display for RuleWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.contract_id {
            Some(contract) => write!(f, "{} of contract `{contract}`", self.window),
            None => self.window.fmt(f),
        }
    }
}

/// How far an event reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Only the window that holds it.
    Own,
    /// Later windows, too: through `opening`, or through charges of earlier windows.
    Onward,
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
    /// Rules whose charges of the same window, or of windows inside it, the query reads.
    pub upstream: Vec<String>,
    /// Rules whose charges of earlier windows the query reads; it may be the rule itself.
    pub earlier: Vec<String>,
    /// How far a usage event reaches.
    pub reach: Reach,
    /// Names of the tables that its charges depend on, those of reference data among them.
    pub tables: BTreeSet<String>,
    /// Of these, the ones that are read only as of the time of an event: rows that are valid at other times do not matter.
    pub(crate) as_of_usage: BTreeSet<String>,
    /// The query may see when rows are valid, beside that they are.
    pub(crate) sees_validity: bool,
    /// Meters that the query, or a rule that it reads, asks for, or `None` when it may read any.
    pub meters: Option<Vec<String>>,
    /// Whether the query, or a rule that it reads, reads usage at all.
    pub reads_usage: bool,
    /// The output columns, in order.
    pub output: Vec<OutputColumn>,
    /// The query with as-of joins written out.
    pub(crate) query: Box<Query>,
    /// Joins whose uniqueness must be checked at run time.
    pub(crate) fan_out: Vec<FanOutCheck>,
    /// The windowed tables that the query may name.
    pub(crate) inputs: Inputs,
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

    /// The window of usage of `subject` at `time`; `None` where no contract gives it one.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`].
    pub fn window_of(&self, reference: &ReferenceData, subject: &str, time: i64) -> Result<Option<Window>, WindowError> {
        match &self.options.window {
            WindowSpec::BillingPeriod => match reference.billing_periods() {
                Some(periods) => match periods.contract_of(subject, time) {
                    Some(contract) => periods.period_of(contract, time),
                    None => Ok(None),
                },
                None => Ok(None),
            },
            spec => spec.window_of(time).map(Some),
        }
    }

    /// Every window that overlaps `[from, to)` and that this version rates, in order.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`].
    pub fn windows_between(&self, reference: &ReferenceData, from: i64, to: i64) -> Result<Vec<Window>, WindowError> {
        let from = from.max(self.options.effective_from);
        let mut windows = match &self.options.window {
            WindowSpec::BillingPeriod => match reference.billing_periods() {
                Some(periods) => periods.windows_between(from, to)?,
                None => Vec::new(),
            },
            spec => spec.windows_between(from, to)?,
        };
        windows.retain(|window| self.in_force_at(window.start));
        Ok(windows)
    }

    /// The same windows, of billing periods one for each contract.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`].
    pub fn rated_between(&self, reference: &ReferenceData, from: i64, to: i64) -> Result<Vec<RuleWindow>, WindowError> {
        if self.options.window != WindowSpec::BillingPeriod {
            let windows = self.windows_between(reference, from, to)?;
            return Ok(windows.into_iter().map(|window| RuleWindow { window, contract_id: None }).collect());
        }
        let Some(periods) = reference.billing_periods() else { return Ok(Vec::new()) };
        let mut windows: Vec<RuleWindow> = periods
            .between(from.max(self.options.effective_from), to)?
            .into_iter()
            .map(|period| RuleWindow { window: period.window, contract_id: Some(period.contract_id) })
            .collect();
        windows.retain(|rated| self.in_force_at(rated.window.start));
        Ok(windows)
    }

    /// Whether the rule reads its own earlier charges, so that its windows are rated one after the other.
    #[must_use]
    pub fn reads_itself(&self) -> bool {
        self.earlier.contains(&self.name)
    }

    /// The further columns of the output: those that the ledger does not know, in order.
    pub fn further_columns(&self) -> impl Iterator<Item = &OutputColumn> {
        let known = ratemill_schemas::charges::reserved();
        self.output.iter().filter(move |column| !known.contains(&column.name))
    }
}
