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
        /// Day of the month, 1 to 31, on which months, quarters and years begin; cut to the month's length.
        anchor: i8,
    },
    /// The billing period of each contract: [`crate::BillingPeriods`] cuts it, from the contracts.
    BillingPeriod,
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
    #[error("`{0}` is not a window; it is day, week, month, quarter, year, billing_period or a length like '15 minutes' or 'hour'")]
    UnknownWindow(String),
    /// The text names no zone of the IANA database.
    #[error("`{zone}` is not a time zone of the IANA database{hint}")]
    UnknownZone {
        /// What was given.
        zone: String,
        /// "; did you mean …?" or nothing.
        hint: String,
    },
    /// A billing period belongs to a contract, so that no instant alone has one.
    #[error("a billing period belongs to a contract")]
    NeedsContract,
    /// The anchor is no day of a month, or the window has no months.
    #[error("{0}")]
    Anchor(String),
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
            "billing_period" => return Ok(Self::BillingPeriod),
            _ => {
                let length = crate::time::parse_duration(text)
                    .ok()
                    .filter(|length| *length >= 1_000_000 && *length < 366 * DAY)
                    .ok_or_else(|| WindowError::UnknownWindow(text.to_owned()))?;
                return Ok(Self::Fixed { length });
            }
        };
        Ok(Self::Calendar { period, zone, anchor: 1 })
    }

    /// The same with months, quarters or years that begin on a day of the month.
    ///
    /// # Errors
    /// [`WindowError::Anchor`].
    pub fn anchored(self, day: &str) -> Result<Self, WindowError> {
        let Some(anchor) = day.parse().ok().filter(|anchor| (1..=31).contains(anchor) && !day.starts_with('+')) else {
            return Err(WindowError::Anchor(format!("`{day}` is no day of a month; an anchor is '1' to '31'")));
        };
        match self {
            Self::Calendar { period: period @ (Period::Month | Period::Quarter | Period::Year), zone, .. } => {
                Ok(Self::Calendar { period, zone, anchor })
            }
            Self::BillingPeriod => Err(WindowError::Anchor("the contract gives a billing period its anchor: column anchor_day".to_owned())),
            _ => Err(WindowError::Anchor("only months, quarters and years have an anchor".to_owned())),
        }
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
            Self::Calendar { period, zone, anchor } => period.window_of(instant, zone, *anchor).ok_or_else(out_of_range),
            Self::BillingPeriod => Err(WindowError::NeedsContract),
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
    /// The period that holds `instant`, by the local days of `zone`.
    pub(crate) fn window_of(self, instant: i64, zone: &TimeZone, anchor: i8) -> Option<Window> {
        let date = Timestamp::from_microsecond(instant).ok()?.to_zoned(zone.clone()).date();
        let (window, next) = self.window_of_date(date, zone, anchor)?;
        // Where clocks went back over midnight, the day before is read once more after the next one began.
        if instant < window.end { Some(window) } else { self.window_of_date(next, zone, anchor).map(|(window, _)| window) }
    }

    /// The period that holds a date, and the first date of the next one.
    fn window_of_date(self, date: Date, zone: &TimeZone, anchor: i8) -> Option<(Window, Date)> {
        let (first, next) = match self {
            Self::Day => (date, date.checked_add(1.day()).ok()?),
            Self::Week => {
                let days = i64::from(date.weekday().since(Weekday::Monday));
                let monday = date.checked_sub(days.days()).ok()?;
                (monday, monday.checked_add(7.days()).ok()?)
            }
            Self::Month => anchored(date, 1, anchor)?,
            Self::Quarter => anchored(date, 3, anchor)?,
            Self::Year => anchored(date, 12, anchor)?,
        };
        let bound = |date: Date| Some(date.to_zoned(zone.clone()).ok()?.timestamp().as_microsecond());
        Some((Window { start: bound(first)?, end: bound(next)? }, next))
    }
}

/// First day of the period of so many months that holds `date`, and of the next one.
fn anchored(date: Date, months: i32, anchor: i8) -> Option<(Date, Date)> {
    let month = i32::from(date.year()) * 12 + i32::from(date.month()) - 1;
    let this = month.div_euclid(months) * months;
    let first = anchor_day(this, anchor)?;
    if date < first { Some((anchor_day(this - months, anchor)?, first)) } else { Some((first, anchor_day(this + months, anchor)?)) }
}

/// The anchor day of a month counted from January of the year 0, cut to the month's length; `None` outside the calendar.
#[must_use]
pub fn anchor_day(month: i32, anchor: i8) -> Option<Date> {
    let first = Date::new(i16::try_from(month.div_euclid(12)).ok()?, i8::try_from(month.rem_euclid(12)).ok()? + 1, 1).ok()?;
    Date::new(first.year(), first.month(), anchor.min(first.days_in_month())).ok()
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
