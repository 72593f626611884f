//! The invoicing calendar: the months, in the seller's zone, that charges are billed in.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::windows::{Period, Window, WindowError, WindowSpec};

/// Calendar months in one zone. A charge belongs to the month that holds its window's last instant.
#[derive(Debug, Clone)]
pub struct InvoicingCalendar {
    zone: TimeZone,
}

impl InvoicingCalendar {
    /// Months of `zone`.
    #[must_use]
    pub fn new(zone: TimeZone) -> Self {
        Self { zone }
    }

    /// The billing period of a window's charges, as `2026-10`.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`].
    pub fn billing_period(&self, window: Window) -> Result<String, WindowError> {
        let last = window.end - 1;
        let month = WindowSpec::Calendar { period: Period::Month, zone: self.zone.clone(), anchor: 1 }.window_of(last)?;
        let start = Timestamp::from_microsecond(month.start).map_err(|_| WindowError::OutOfRange(window.to_string()))?;
        let date = start.to_zoned(self.zone.clone()).date();
        Ok(format!("{:04}-{:02}", date.year(), date.month()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::time::parse_instant;

    #[test]
    fn the_last_instant_decides() {
        let calendar = InvoicingCalendar::new(crate::windows::zone("Europe/London").unwrap());
        let window = |start: &str, end: &str| Window { start: parse_instant(start).unwrap(), end: parse_instant(end).unwrap() };
        for (start, end, expected) in [
            ("2026-09-30T23:00:00Z", "2026-11-01T00:00:00Z", "2026-10"),
            ("2026-10-31T23:00:00Z", "2026-11-01T00:00:00Z", "2026-10"),
            ("2026-10-31T23:30:00Z", "2026-11-01T00:30:00Z", "2026-11"),
        ] {
            assert_eq!(calendar.billing_period(window(start, end)).unwrap(), expected);
        }
    }
}
