//! Event-time windows: fixed lengths and calendar periods in a time zone.
//!
//! A window is half-open, `[start, end)`, and its bounds are instants in UTC. Calendar windows begin at the first
//! instant of a local day, so a day is 23 or 25 hours long where clocks change. jiff with its bundled copy of the
//! IANA database decides; the machine's own database is never read.

use jiff::civil::{Date, Weekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, ToSpan};

use crate::time::{DAY, format_instant};

/// One window, `[start, end)`, in microseconds since 1970 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Window {
    /// First instant of the window.
    pub start: i64,
    /// First instant after the window.
    pub end: i64,
}

impl Window {
    /// Whether `instant` lies in the window.
    #[must_use]
    pub fn contains(self, instant: i64) -> bool {
        self.start <= instant && instant < self.end
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", format_instant(self.start), format_instant(self.end))
    }
}

/// How time is cut into windows.
#[derive(Debug, Clone, PartialEq)]
pub enum WindowSpec {
    /// Windows of one length, counted from 1970-01-01T00:00:00Z.
    Fixed {
        /// Length in microseconds.
        length: i64,
    },
    /// Calendar periods in a zone.
    Calendar {
        /// Which period.
        period: Period,
        /// The zone whose days count.
        zone: TimeZone,
    },
}

/// A calendar period. Weeks begin on Monday (ISO 8601), quarters in January, April, July and October.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// A local day.
    Day,
    /// Seven local days from Monday.
    Week,
    /// A calendar month.
    Month,
    /// Three calendar months.
    Quarter,
    /// A calendar year.
    Year,
}

/// Why a window cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// The text names no window.
    #[error("`{0}` is not a window; it is day, week, month, quarter, year or a length like '15 minutes' or 'hour'")]
    UnknownWindow(String),
    /// The text names no zone of the IANA database.
    #[error("`{zone}` is not a time zone of the IANA database{hint}")]
    UnknownZone {
        /// What was given.
        zone: String,
        /// "; did you mean …?" or nothing.
        hint: String,
    },
    /// The instant is outside the years 1 to 9998.
    #[error("{0} is outside the calendar")]
    OutOfRange(String),
}

/// The zone of an IANA name, from the bundled database.
///
/// # Errors
/// [`WindowError::UnknownZone`].
pub fn zone(name: &str) -> Result<TimeZone, WindowError> {
    let database = TimeZoneDatabase::bundled();
    database.get(name).map_err(|_| {
        let names: Vec<String> = database.available().map(|name| name.to_string()).collect();
        WindowError::UnknownZone { zone: name.to_owned(), hint: crate::nearest::did_you_mean(name, names.iter().map(String::as_str)) }
    })
}

/// The instant that a date or a time with an offset means: of a date, the first instant of that day in `timezone`.
///
/// # Errors
/// What is wrong with the text or the zone.
pub fn instant_of_day(text: &str, timezone: &str) -> Result<i64, String> {
    if let Ok(instant) = crate::time::parse_instant(text) {
        return Ok(instant);
    }
    let date: Date = (text.len() == 10)
        .then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| format!("`{text}` is neither a date like 2026-01-01 nor a time with an offset"))?;
    let zone = zone(timezone).map_err(|error| error.to_string())?;
    let start = date.to_zoned(zone).map_err(|_| format!("`{text}` is outside the calendar"))?;
    Ok(start.timestamp().as_microsecond())
}

/// Days since 1970-01-01 of a date like `2026-01-01`.
///
/// # Errors
/// What is wrong with the text.
pub fn days_of_date(text: &str) -> Result<i32, String> {
    let wrong = || format!("`{text}` is not a date like 2026-01-01");
    let date: Date = (text.len() == 10).then(|| text.parse().ok()).flatten().ok_or_else(wrong)?;
    let start = date.to_zoned(TimeZone::UTC).map_err(|_| wrong())?;
    Ok(crate::time::day_of(start.timestamp().as_microsecond()))
}

impl WindowSpec {
    /// Reads `'month'`, `'15 minutes'`, … ; `zone` decides calendar periods and does not matter to lengths.
    ///
    /// # Errors
    /// [`WindowError::UnknownWindow`].
    pub fn parse(text: &str, zone: TimeZone) -> Result<Self, WindowError> {
        let period = match text {
            "day" => Period::Day,
            "week" => Period::Week,
            "month" => Period::Month,
            "quarter" => Period::Quarter,
            "year" => Period::Year,
            _ => {
                let length = crate::time::parse_duration(text)
                    .ok()
                    .filter(|length| *length >= 1_000_000 && *length < 366 * DAY)
                    .ok_or_else(|| WindowError::UnknownWindow(text.to_owned()))?;
                return Ok(Self::Fixed { length });
            }
        };
        Ok(Self::Calendar { period, zone })
    }

    /// The window that holds `instant`.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`].
    pub fn window_of(&self, instant: i64) -> Result<Window, WindowError> {
        let out_of_range = || WindowError::OutOfRange(format_instant(instant));
        match self {
            Self::Fixed { length } => {
                let start = instant.div_euclid(*length).checked_mul(*length).ok_or_else(out_of_range)?;
                Ok(Window { start, end: start.checked_add(*length).ok_or_else(out_of_range)? })
            }
            Self::Calendar { period, zone } => {
                let local = Timestamp::from_microsecond(instant).map_err(|_| out_of_range())?.to_zoned(zone.clone()).date();
                let first = period.first_day(local).ok_or_else(out_of_range)?;
                let next = period.next(first).ok_or_else(out_of_range)?;
                let bound =
                    |date: Date| date.to_zoned(zone.clone()).map(|zoned| zoned.timestamp().as_microsecond()).map_err(|_| out_of_range());
                Ok(Window { start: bound(first)?, end: bound(next)? })
            }
        }
    }

    /// Every window that overlaps `[from, to)`, in order.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`].
    pub fn windows_between(&self, from: i64, to: i64) -> Result<Vec<Window>, WindowError> {
        let mut windows = Vec::new();
        let mut instant = from;
        while instant < to {
            let window = self.window_of(instant)?;
            instant = window.end;
            windows.push(window);
        }
        Ok(windows)
    }
}

impl Period {
    fn first_day(self, date: Date) -> Option<Date> {
        Some(match self {
            Self::Day => date,
            Self::Week => {
                let days = i64::from(date.weekday().since(Weekday::Monday));
                date.checked_sub(days.days()).ok()?
            }
            Self::Month => date.first_of_month(),
            Self::Quarter => Date::new(date.year(), (date.month() - 1) / 3 * 3 + 1, 1).ok()?,
            Self::Year => date.first_of_year(),
        })
    }

    fn next(self, first: Date) -> Option<Date> {
        let span = match self {
            Self::Day => 1.day(),
            Self::Week => 7.days(),
            Self::Month => 1.month(),
            Self::Quarter => 3.months(),
            Self::Year => 1.year(),
        };
        first.checked_add(span).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::time::parse_instant;

    fn check(window: &str, name: &str, instant: &str, expected: &str) {
        let spec = WindowSpec::parse(window, zone(name).unwrap()).unwrap();
        let found = spec.window_of(parse_instant(instant).unwrap()).unwrap();
        assert_eq!(found.to_string(), expected, "{window} in {name} at {instant}");
    }

    #[test]
    fn days_and_months_follow_the_local_calendar() {
        // 25 hours: clocks go back in London on 2026-10-25.
        check("day", "Europe/London", "2026-10-25T12:00:00Z", "2026-10-24T23:00:00Z to 2026-10-26T00:00:00Z");
        // 23 hours: clocks go forward in New York on 2026-03-08.
        check("day", "America/New_York", "2026-03-08T12:00:00Z", "2026-03-08T05:00:00Z to 2026-03-09T04:00:00Z");
        check("month", "Europe/London", "2026-10-31T23:59:59.999999Z", "2026-09-30T23:00:00Z to 2026-11-01T00:00:00Z");
        check("month", "Europe/London", "2026-11-01T00:00:00Z", "2026-11-01T00:00:00Z to 2026-12-01T00:00:00Z");
        check("month", "Pacific/Auckland", "2026-09-30T11:00:00Z", "2026-09-30T11:00:00Z to 2026-10-31T11:00:00Z");
        check("month", "UTC", "2024-02-29T23:00:00Z", "2024-02-01T00:00:00Z to 2024-03-01T00:00:00Z");
        check("week", "UTC", "2026-11-22T10:00:00Z", "2026-11-16T00:00:00Z to 2026-11-23T00:00:00Z");
        check("quarter", "UTC", "2026-11-22T10:00:00Z", "2026-10-01T00:00:00Z to 2027-01-01T00:00:00Z");
        check("year", "UTC", "2026-11-22T10:00:00Z", "2026-01-01T00:00:00Z to 2027-01-01T00:00:00Z");
        // Midnight does not exist in Beirut on 2026-03-29: the day begins at 01:00.
        check("day", "Asia/Beirut", "2026-03-29T12:00:00Z", "2026-03-28T22:00:00Z to 2026-03-29T21:00:00Z");
        check("15 minutes", "UTC", "2026-11-22T10:14:59Z", "2026-11-22T10:00:00Z to 2026-11-22T10:15:00Z");
        check("hour", "UTC", "1969-12-31T23:30:00Z", "1969-12-31T23:00:00Z to 1970-01-01T00:00:00Z");
    }

    #[test]
    fn windows_tile_the_time_line() {
        for (window, name) in [("day", "Europe/London"), ("month", "America/St_Johns"), ("week", "Australia/Lord_Howe")] {
            let spec = WindowSpec::parse(window, zone(name).unwrap()).unwrap();
            let from = parse_instant("2024-01-15T00:00:00Z").unwrap();
            let to = parse_instant("2027-01-15T00:00:00Z").unwrap();
            let windows = spec.windows_between(from, to).unwrap();
            assert!(windows.iter().zip(&windows[1..]).all(|(a, b)| a.end == b.start));
            assert!(windows[0].contains(from) && windows[windows.len() - 1].end >= to);
        }
    }

    #[test]
    fn unknown_names_are_refused_with_a_hint() {
        let error = zone("Europe/Londn").unwrap_err().to_string();
        assert!(error.contains("Europe/London"), "{error}");
        assert!(WindowSpec::parse("fortnight", TimeZone::UTC).is_err());
    }
}
