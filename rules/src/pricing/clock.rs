//! Local clocks: weekdays, times of day, and when a local clock reaches a time.
//!
//! Instants are microseconds since 1970 UTC. A walk through local time goes from instant to instant and never assumes
//! that a day has 24 hours.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use ratemill_schemas::time::{DAY, format_instant};

use super::PricingError;

/// A second in microseconds.
pub(crate) const SECOND: i64 = 1_000_000;

/// A set of weekdays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Weekdays(u8);

impl Weekdays {
    /// Whether `weekday` (1 is Monday, 7 is Sunday) is one of them.
    pub(crate) fn contains(self, weekday: i8) -> bool {
        self.0 & (1 << weekday) != 0
    }
}

impl FromStr for Weekdays {
    type Err = PricingError;

    /// Reads `1-5`, `6,7`, `1-3,7`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let day = |text: &str| text.trim().parse::<u8>().ok().filter(|day| (1..=7).contains(day));
        let days = |part: &str| match part.split_once('-') {
            Some((first, last)) => Some(day(first)?..=day(last)?).filter(|days| !days.is_empty()),
            None => day(part).map(|day| day..=day),
        };
        let mut set = 0;
        for part in text.split(',') {
            for day in days(part).ok_or_else(|| PricingError::Weekdays(text.to_owned()))? {
                set |= 1 << day;
            }
        }
        Ok(Self(set))
    }
}

/// Seconds since local midnight of `HH:MM` or `HH:MM:SS`; `24:00` ends a day.
pub(crate) fn time_of_day(text: &str) -> Result<i64, PricingError> {
    let wrong = || PricingError::TimeOfDay(text.to_owned());
    let mut seconds = 0;
    let mut fields = 0;
    for (field, unit) in text.split(':').zip([3600, 60, 1]) {
        let value = Some(field).filter(|field| field.len() == 2 && field.bytes().all(|byte| byte.is_ascii_digit()));
        let value: i64 = value.and_then(|field| field.parse().ok()).ok_or_else(wrong)?;
        if value > if unit == 3600 { 24 } else { 59 } {
            return Err(wrong());
        }
        seconds += value * unit;
        fields += 1;
    }
    if fields < 2 || text.split(':').count() != fields || seconds > DAY / SECOND { Err(wrong()) } else { Ok(seconds) }
}

/// `HH:MM:SS` of seconds since midnight.
pub(crate) fn format_time_of_day(seconds: i64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// What a local clock and calendar show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalTime {
    /// The local date.
    pub(crate) date: Date,
    /// Its weekday, 1 = Monday to 7 = Sunday.
    pub(crate) weekday: i8,
    /// Microseconds on the clock since midnight; not always those that have passed.
    pub(crate) time: i64,
}

impl fmt::Display for LocalTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (weekday {})", self.date, format_time_of_day(self.time / SECOND), self.weekday)
    }
}

/// The local time at `instant`.
pub(crate) fn local_time(instant: i64, zone: &TimeZone) -> Result<LocalTime, PricingError> {
    let local = zone.to_datetime(timestamp(instant)?);
    let date = local.date();
    let time = local.time();
    let seconds = (i64::from(time.hour()) * 60 + i64::from(time.minute())) * 60 + i64::from(time.second());
    let time = seconds * SECOND + i64::from(time.subsec_nanosecond() / 1000);
    Ok(LocalTime { date, weekday: weekday(date), time })
}

/// The local date at `instant`.
pub(crate) fn local_date(instant: i64, zone: &TimeZone) -> Result<Date, PricingError> {
    Ok(zone.to_datetime(timestamp(instant)?).date())
}

/// The first instant of a local day.
pub(crate) fn local_midnight(date: Date, zone: &TimeZone) -> Result<i64, PricingError> {
    let start = date.to_zoned(zone.clone()).map_err(|_| PricingError::OutOfCalendar(date.to_string()))?;
    Ok(start.timestamp().as_microsecond())
}

/// 1 = Monday to 7 = Sunday.
pub(crate) fn weekday(date: Date) -> i8 {
    date.weekday().to_monday_one_offset()
}

/// Seconds by which the local clock is ahead of UTC.
pub(crate) fn utc_offset(instant: i64, zone: &TimeZone) -> Result<i64, PricingError> {
    Ok(i64::from(zone.to_offset(timestamp(instant)?).seconds()))
}

/// Whether the clock shows `from <= time < to`, in seconds since midnight; `from > to` runs over midnight and
/// `from = to` is empty.
pub(crate) fn is_between(time: i64, from: i64, to: i64) -> bool {
    let (from, to) = (from * SECOND, to * SECOND);
    if from <= to { from <= time && time < to } else { from <= time || time < to }
}

/// Whether the local time at `instant` lies in `[from, to)`; see [`is_between`].
pub(crate) fn in_time_of_day(instant: i64, zone: &TimeZone, from: i64, to: i64) -> Result<bool, PricingError> {
    Ok(is_between(local_time(instant, zone)?.time, from, to))
}

/// The first instant after `instant` at which the clock, which shows `now`, reaches `until` (microseconds since midnight,
/// later than `now`), or at which clocks are changed if that comes before: what holds then has to be looked up again.
pub(crate) fn clock_reaches(until: i64, instant: i64, now: LocalTime, zone: &TimeZone) -> Result<i64, PricingError> {
    let reached = instant.saturating_add(until - now.time);
    if utc_offset(instant, zone)? == utc_offset(reached, zone)? {
        // Within a day, clocks are not changed twice.
        return Ok(reached);
    }
    let change = zone.following(timestamp(instant)?).next().map(|change| change.timestamp().as_microsecond());
    Ok(change.map_or(reached, |change| change.min(reached)))
}

fn timestamp(instant: i64) -> Result<Timestamp, PricingError> {
    Timestamp::from_microsecond(instant).map_err(|_| PricingError::OutOfCalendar(format_instant(instant)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ratemill_schemas::time::parse_instant;
    use ratemill_schemas::windows::zone;

    use super::*;

    #[test]
    fn weekdays_as_text() {
        for (text, days) in
            [("1-5", "12345"), ("6,7", "67"), ("1-7", "1234567"), ("1,3-4, 7", "1347"), ("3-3", "3"), ("1,2,3,4,5", "12345")]
        {
            let set: Weekdays = text.parse().unwrap();
            let shown: String = (1..=7).filter(|day| set.contains(*day)).map(|day| day.to_string()).collect();
            assert_eq!(shown, days, "{text}");
        }
        for text in ["", "0", "8", "5-1", "1-", "mon", "1;2", "1-5-7", ","] {
            assert!(text.parse::<Weekdays>().is_err(), "{text}");
        }
    }

    #[test]
    fn times_of_day_as_text() {
        for (text, seconds) in [("00:00", 0), ("07:30", 27_000), ("23:59:59", 86_399), ("24:00", 86_400), ("24:00:00", 86_400)] {
            assert_eq!(time_of_day(text).unwrap(), seconds, "{text}");
        }
        for text in ["", "7:30", "07", "07:60", "24:01", "25:00", "07:30:00:00", "07:30:", "-1:00", "+7:00", "0730"] {
            assert!(time_of_day(text).is_err(), "{text}");
        }
        assert_eq!(format_time_of_day(27_005), "07:30:05");
    }

    #[test]
    fn membership_in_a_part_of_the_day() {
        for (at, name, from, to, inside) in [
            ("2026-06-02T09:00:00Z", "UTC", "09:00", "17:00", true),
            ("2026-06-02T16:59:59.999999Z", "UTC", "09:00", "17:00", true),
            ("2026-06-02T17:00:00Z", "UTC", "09:00", "17:00", false),
            ("2026-06-02T08:59:00Z", "UTC", "09:00", "17:00", false),
            ("2026-06-02T00:00:00Z", "UTC", "00:00", "24:00", true),
            ("2026-06-02T23:59:00Z", "UTC", "00:00", "24:00", true),
            ("2026-06-02T09:00:00Z", "UTC", "09:00", "09:00", false),
            ("2026-06-02T13:00:00+05:30", "UTC", "09:00", "17:00", false),
            ("2026-06-02T23:00:00Z", "UTC", "22:00", "06:00", true),
            ("2026-06-02T05:59:00Z", "UTC", "22:00", "06:00", true),
            ("2026-06-02T06:00:00Z", "UTC", "22:00", "06:00", false),
            ("2026-07-01T21:30:00Z", "Europe/London", "22:00", "06:00", true),
            ("2026-01-01T21:30:00Z", "Europe/London", "22:00", "06:00", false),
        ] {
            let (from, to) = (time_of_day(from).unwrap(), time_of_day(to).unwrap());
            let got = in_time_of_day(parse_instant(at).unwrap(), &zone(name).unwrap(), from, to).unwrap();
            assert_eq!(got, inside, "{at} in {name}");
        }
    }

    #[test]
    fn clocks_reach_a_time_or_are_changed_before() {
        for (at, name, until, reached) in [
            ("2026-06-02T09:00:00Z", "UTC", "24:00", "2026-06-03T00:00:00Z"),
            // 02:30 does not exist: clocks go from 02:00 to 03:00.
            ("2026-03-29T00:30:00Z", "Europe/Berlin", "02:30", "2026-03-29T01:00:00Z"),
            // Clocks go back from 03:00 to 02:00 before 05:00 is reached.
            ("2026-10-25T00:30:00Z", "Europe/Berlin", "05:00", "2026-10-25T01:00:00Z"),
            ("2026-10-25T01:00:00Z", "Europe/Berlin", "05:00", "2026-10-25T04:00:00Z"),
            // Midnight does not exist in Beirut.
            ("2026-03-28T20:00:00Z", "Asia/Beirut", "24:00", "2026-03-28T22:00:00Z"),
        ] {
            let (instant, zone) = (parse_instant(at).unwrap(), zone(name).unwrap());
            let now = local_time(instant, &zone).unwrap();
            let got = clock_reaches(time_of_day(until).unwrap() * SECOND, instant, now, &zone).unwrap();
            assert_eq!(format_instant(got), reached, "{at} in {name} until {until}");
        }
    }

    #[test]
    fn dates_and_midnights() {
        let beirut = zone("Asia/Beirut").unwrap();
        let date: Date = "2026-03-29".parse().unwrap();
        let midnight = local_midnight(date, &beirut).unwrap();
        assert_eq!(format_instant(midnight), "2026-03-28T22:00:00Z");
        assert_eq!(local_date(midnight, &beirut).unwrap(), date);
        assert_eq!(local_time(midnight, &beirut).unwrap().to_string(), "2026-03-29 01:00:00 (weekday 7)");
        assert!(local_date(i64::MAX, &beirut).is_err());
    }
}
