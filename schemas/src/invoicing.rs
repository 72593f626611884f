//! The invoicing calendar: the months, in the seller's zone, that charges are billed in.

use jiff::Timestamp;
use jiff::civil::Date;
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
        let month = self.month_of(window.end - 1)?;
        let start = Timestamp::from_microsecond(month.start).map_err(|_| WindowError::OutOfRange(window.to_string()))?;
        let date = start.to_zoned(self.zone.clone()).date();
        Ok(format!("{:04}-{:02}", date.year(), date.month()))
    }

    /// The month that is written as `2026-10`; `None` for a text that names none.
    #[must_use]
    pub fn month(&self, period: &str) -> Option<Window> {
        let (year, month) = period.split_once('-')?;
        let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(year, 4) || !digits(month, 2) {
            return None;
        }
        let middle = Date::new(year.parse().ok()?, month.parse().ok()?, 15).ok()?;
        let instant = middle.at(12, 0, 0, 0).to_zoned(self.zone.clone()).ok()?.timestamp().as_microsecond();
        self.month_of(instant).ok()
    }

    /// The month after `period`.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`], also for a text that names no month.
    pub fn following(&self, period: &str) -> Result<String, WindowError> {
        let month = self.month(period).ok_or_else(|| WindowError::OutOfRange(period.to_owned()))?;
        self.billing_period(Window { start: month.end, end: month.end + 1 })
    }

    fn month_of(&self, instant: i64) -> Result<Window, WindowError> {
        WindowSpec::Calendar { period: Period::Month, zone: self.zone.clone(), anchor: 1 }.window_of(instant)
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

    #[test]
    fn months_are_named_and_follow_each_other() {
        let calendar = InvoicingCalendar::new(crate::windows::zone("Europe/London").unwrap());
        let month = calendar.month("2026-10").unwrap();
        assert_eq!(month.to_string(), "2026-09-30T23:00:00Z to 2026-11-01T00:00:00Z");
        assert_eq!(calendar.billing_period(month).unwrap(), "2026-10");
        for (period, next) in [("2026-10", "2026-11"), ("2026-12", "2027-01"), ("2028-02", "2028-03")] {
            assert_eq!(calendar.following(period).unwrap(), next);
        }
        for wrong in ["2026", "2026-13", "2026-00", "26-10", "2026-1", "2026-10-01", "+026-10", ""] {
            assert!(calendar.month(wrong).is_none(), "{wrong}");
        }
    }
}
