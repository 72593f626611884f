//! Invoicing months: closed one after the other, each by an epoch, after which corrections go to the month that is open.

use datafusion::functions_aggregate::expr_fn::min;
use datafusion::prelude::col;
use ratemill_rules::session::session;
use ratemill_schemas::invoicing::InvoicingCalendar;
use ratemill_schemas::windows::WindowError;
use ratemill_schemas::{Window, time};
use serde::{Deserialize, Serialize};

use super::due::{self, Finalize};
use super::manifest::Manifest;
use super::run::{EpochError, Epochs};
use super::state::EngineState;
use crate::failpoint::Failpoint;

/// Windows that a refusal names before it counts the rest.
const WINDOWS_NAMED: usize = 5;

/// A closed invoicing month.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedPeriod {
    /// The month, like `2026-06`.
    pub period: String,
    /// When it was closed, µs UTC.
    pub closed_at: i64,
    /// The epoch that closed it.
    pub epoch: i64,
}

/// What closing does about windows of the month that have ended and are not due yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitingWindows {
    /// Refuses, naming them.
    Refuse,
    /// Closes: their charges will be posted to the month after.
    PostLater,
}

/// Whether a month was closed by this call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// It is closed now.
    Closed,
    /// It had been closed before; nothing was done.
    AlreadyClosed,
}

/// Why a month was not closed.
#[derive(Debug, thiserror::Error)]
pub enum PeriodError {
    /// The text names no month.
    #[error("`{0}` is no invoicing month; write it like 2026-06")]
    Unknown(String),
    /// The month goes on.
    #[error("{period} is not over before {end}; close it after that")]
    NotOver {
        /// The month.
        period: String,
        /// Its end.
        end: String,
    },
    /// A month before it is open.
    #[error("{earliest} is still open, and months are closed in order; first run `ratemill period close {earliest}`, then close {period}")]
    Earlier {
        /// The month.
        period: String,
        /// The earliest open one.
        earliest: String,
    },
    /// Windows of it have no final charges yet.
    #[error("{period} cannot be closed, {}: {}{}; {advice}", counted(windows.len()), windows[..windows.len().min(WINDOWS_NAMED)].join("; "), rest(windows.len()))]
    Unpublished {
        /// The month.
        period: String,
        /// The windows, and why each waits.
        windows: Vec<String>,
        /// How they become published.
        advice: &'static str,
    },
    /// The epoch.
    #[error(transparent)]
    Epoch(#[from] EpochError),
}

fn counted(windows: usize) -> String {
    if windows == 1 { "1 window is not published".to_owned() } else { format!("{windows} windows are not published") }
}

fn rest(windows: usize) -> String {
    if windows > WINDOWS_NAMED { format!("; and {} more", windows - WINDOWS_NAMED) } else { String::new() }
}

impl EngineState {
    /// The month that charges of `billing_period` are posted to: it, while it is open, else the earliest open one.
    ///
    /// # Errors
    /// [`WindowError`] when the closed month is the calendar's last.
    pub fn posting_period(&self, calendar: &InvoicingCalendar, billing_period: &str) -> Result<String, WindowError> {
        match self.closed.last() {
            Some(last) if billing_period <= last.period.as_str() => calendar.following(&last.period),
            _ => Ok(billing_period.to_owned()),
        }
    }
}

impl Epochs {
    /// Closes an invoicing month by an epoch of its own. What the log holds goes into the lake first, without closing
    /// windows.
    ///
    /// # Errors
    /// [`PeriodError`] when it cannot be closed; nothing has changed then.
    pub async fn close_period(&mut self, period: &str, waiting: WaitingWindows) -> Result<Closing, PeriodError> {
        let month = self.calendar.month(period).ok_or_else(|| PeriodError::Unknown(period.to_owned()))?;
        self.run(Finalize::Nothing).await?;
        if self.state.closed.last().is_some_and(|last| period <= last.period.as_str()) {
            return Ok(Closing::AlreadyClosed);
        }
        let clock = time::now();
        if clock.max(self.state.watermark.unwrap_or(clock)) < month.end {
            return Err(PeriodError::NotOver { period: period.to_owned(), end: time::format_instant(month.end) });
        }
        if let Some(earliest) = self.earliest_open().await?.filter(|earliest| earliest.as_str() < period) {
            return Err(PeriodError::Earlier { period: period.to_owned(), earliest });
        }
        self.check_published(period, month, clock, waiting)?;
        Failpoint::PeriodChecked.reached();
        let state = self.state.clone();
        let closing = Some(ClosedPeriod { period: period.to_owned(), closed_at: clock, epoch: self.last + 1 });
        let manifest = Manifest { closing, ..self.manifest(self.state.position, clock, Vec::new(), state) };
        self.begin(manifest).await?;
        Failpoint::PeriodManifestWritten.reached();
        self.finish().await?;
        Failpoint::PeriodClosed.reached();
        Ok(Closing::Closed)
    }

    /// The month that corrections of closed months are posted to, for people.
    #[must_use]
    pub fn next_open(&self) -> String {
        self.state.closed.last().and_then(|last| self.calendar.following(&last.period).ok()).unwrap_or_default()
    }

    /// The month that is closed next: the one after the last closed, or the first with charges.
    async fn earliest_open(&self) -> Result<Option<String>, EpochError> {
        if let Some(last) = self.state.closed.last() {
            return Ok(Some(self.calendar.following(&last.period)?));
        }
        let charges = session(self.runtime.clone(), &self.limits).read_table(self.tables.charges.provider()?)?;
        let found = charges.aggregate(Vec::new(), vec![min(col("billing_period"))])?.collect().await?;
        Ok(found.iter().find_map(first_text))
    }

    fn check_published(&self, period: &str, month: Window, clock: i64, waiting: WaitingWindows) -> Result<(), PeriodError> {
        let mut late = self.state.pending.iter().filter(|task| task.window.window.end <= month.end).peekable();
        if late.peek().is_some() {
            let windows =
                late.map(|task| format!("rule `{}`, window {}: its late usage is not rated yet", task.rule, task.window)).collect();
            let advice = "start `ratemill run`, which rates it, and mend the rule if it fails";
            return Err(PeriodError::Unpublished { period: period.to_owned(), windows, advice });
        }
        let unpublished = due::unpublished(&self.state, &self.project, month, clock).map_err(EpochError::from)?;
        let (due, early): (Vec<_>, Vec<_>) = unpublished.into_iter().partition(|window| window.due_at.is_none());
        if !due.is_empty() {
            let tasks =
                due::due(&self.state, (&self.project, &self.former), &self.moved, clock, Finalize::Live).map_err(EpochError::from)?;
            let windows = due.iter().map(|window| {
                let is_held = !tasks.iter().any(|task| task.rule == window.rule && task.window == window.rated);
                let why = if is_held { "is held, since its contract or subjects were changed after publication" } else { "is due" };
                format!("rule `{}`, window {} {why}", window.rule, window.rated)
            });
            let advice = "start `ratemill run`, which publishes what is due, or `ratemill rate --usage … --to …`; what is held needs `ratemill apply`";
            return Err(PeriodError::Unpublished { period: period.to_owned(), windows: windows.collect(), advice });
        }
        if waiting == WaitingWindows::Refuse && !early.is_empty() {
            let due_at = |at: Option<i64>| at.map(time::format_instant).unwrap_or_default();
            let windows =
                early.iter().map(|window| format!("rule `{}`, window {} is due at {}", window.rule, window.rated, due_at(window.due_at)));
            let advice = "wait for it, publish it by `ratemill rate --usage … --to …`, or close with --early, which posts its charges to the month after";
            return Err(PeriodError::Unpublished { period: period.to_owned(), windows: windows.collect(), advice });
        }
        Ok(())
    }
}

fn first_text(batch: &arrow::array::RecordBatch) -> Option<String> {
    let column = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8).ok()?;
    arrow::array::AsArray::as_string::<i32>(&column).iter().flatten().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn charges_of_a_closed_month_are_posted_to_the_earliest_open_one() {
        let calendar = InvoicingCalendar::new(ratemill_schemas::windows::zone("UTC").unwrap());
        let mut state = EngineState::default();
        let posted = |state: &EngineState, period: &str| state.posting_period(&calendar, period).unwrap();
        assert_eq!(posted(&state, "2026-06"), "2026-06");
        for (epoch, period) in (1..).zip(["2026-11", "2026-12"]) {
            state.closed.push(ClosedPeriod { period: period.to_owned(), closed_at: 0, epoch });
        }
        for (billing, posting) in [("2026-06", "2027-01"), ("2026-12", "2027-01"), ("2027-01", "2027-01"), ("2027-05", "2027-05")] {
            assert_eq!(posted(&state, billing), posting);
        }
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<EngineState>(&text).unwrap().closed, state.closed);
    }

    #[test]
    fn a_refusal_names_some_windows_and_counts_the_rest() {
        let refused = |windows: usize| {
            let windows = (0..windows).map(|n| format!("w{n}")).collect();
            PeriodError::Unpublished { period: "2026-06".to_owned(), windows, advice: "wait" }.to_string()
        };
        assert_eq!(refused(1), "2026-06 cannot be closed, 1 window is not published: w0; wait");
        assert_eq!(refused(7), "2026-06 cannot be closed, 7 windows are not published: w0; w1; w2; w3; w4; and 2 more; wait");
    }
}
