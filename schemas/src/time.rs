//! Instants as microseconds since 1970 in UTC, as Arrow stores them, and their texts.

use arrow::datatypes::{DataType, TimeUnit};
use jiff::Timestamp;

/// The Arrow type of every instant: `Timestamp(µs, UTC)`.
#[must_use]
pub fn instant_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// Microseconds in a day of 24 hours.
pub const DAY: i64 = 86_400_000_000;

/// Earliest event time that counts as meant (2000-01-01): devices without a clock report 1970.
pub const EARLIEST: i64 = 946_684_800_000_000;

/// A text that is no instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a time of RFC 3339 with an offset, like 2026-10-01T09:30:00Z")]
pub struct NotAnInstant;

/// Reads RFC 3339 with an offset. Digits beyond the microsecond are cut: no window has a finer bound.
///
/// # Errors
/// [`NotAnInstant`] for anything else, a local time without an offset included.
pub fn parse_instant(text: &str) -> Result<i64, NotAnInstant> {
    if let Some(micros) = parse_utc(text.as_bytes()) {
        return Ok(micros);
    }
    // RFC 3339 asks for `T`, `t` or a blank between date and time, and for an offset; jiff alone takes more.
    let bytes = text.as_bytes();
    let shape = bytes.len() >= 20
        && bytes[4] == b'-'
        && bytes[7] == b'-'
        && matches!(bytes[10], b'T' | b't' | b' ')
        && bytes[13] == b':'
        && bytes[16] == b':';
    if !shape || text.contains('[') || !has_offset(bytes) {
        return Err(NotAnInstant);
    }
    let timestamp: Timestamp = text.parse().map_err(|_| NotAnInstant)?;
    Ok(timestamp.as_nanosecond().div_euclid(1000).try_into().unwrap_or(i64::MAX))
}

/// Whether a time ends in `Z` or an offset of hours and minutes that a clock can show.
fn has_offset(bytes: &[u8]) -> bool {
    match bytes {
        [.., b'Z' | b'z'] => true,
        [.., b'+' | b'-', h1 @ b'0'..=b'2', h2 @ b'0'..=b'9', b':', b'0'..=b'5', b'0'..=b'9'] => *h1 < b'2' || *h2 < b'4',
        _ => false,
    }
}

/// The common shape `YYYY-MM-DDTHH:MM:SS[.fraction]Z`, without the general parser.
fn parse_utc(b: &[u8]) -> Option<i64> {
    if b.len() < 20 || b[b.len() - 1] != b'Z' || b[4] != b'-' || b[7] != b'-' || b[10] != b'T' || b[13] != b':' || b[16] != b':' {
        return None;
    }
    let number = |range: std::ops::Range<usize>| {
        b[range].iter().try_fold(0_i64, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + i64::from(byte - b'0')))
    };
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut micros = 0;
    if b.len() > 20 {
        if b[19] != b'.' || b.len() == 21 {
            return None;
        }
        let mut unit = 100_000;
        for byte in &b[20..b.len() - 1] {
            if !byte.is_ascii_digit() {
                return None;
            }
            micros += unit * i64::from(byte - b'0');
            unit /= 10;
        }
    }
    let days = days_from_civil(year, month, day);
    Some(((days * 24 + hour) * 60 + minute) * 60_000_000 + second * 1_000_000 + micros)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar (Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted - era * 400;
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// RFC 3339 in UTC with as many digits of the second as it needs.
#[must_use]
pub fn format_instant(micros: i64) -> String {
    Timestamp::from_microsecond(micros).map_or_else(|_| format!("{micros}us"), |timestamp| timestamp.to_string())
}

/// The UTC day of an instant, in days since 1970-01-01: the partition of the `usage` table.
#[must_use]
pub fn day_of(micros: i64) -> i32 {
    i32::try_from(micros.div_euclid(DAY)).unwrap_or(i32::MAX)
}

/// `2 days`, `90 minutes`, `1 hour`, `45 seconds` in microseconds; a day is 24 hours.
///
/// # Errors
/// A message that shows the accepted form.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    let wrong = || format!("`{text}` is not a duration; write it like '2 days', '90 minutes' or '30 seconds'");
    let mut words = text.split_whitespace();
    let (number, unit) = match (words.next(), words.next(), words.next()) {
        (Some(number), Some(unit), None) => (number.parse::<i64>().map_err(|_| wrong())?, unit),
        (Some(unit), None, None) => (1, unit),
        _ => return Err(wrong()),
    };
    let unit = match unit.trim_end_matches('s') {
        "millisecond" => 1000,
        "second" => 1_000_000,
        "minute" => 60_000_000,
        "hour" => 3_600_000_000,
        "day" => DAY,
        "week" => 7 * DAY,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).filter(|micros| *micros >= 0).ok_or_else(wrong)
}

/// The clock, read once per epoch and handed on, so that a retry sees the same instant.
#[must_use]
pub fn now() -> i64 {
    Timestamp::now().as_microsecond()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_rfc_3339_and_nothing_looser() {
        for (text, expected) in [
            ("2026-10-01T00:00:00Z", Some("2026-10-01T00:00:00Z")),
            ("2026-10-01T02:00:00+02:00", Some("2026-10-01T00:00:00Z")),
            ("2026-10-01T00:00:00.5Z", Some("2026-10-01T00:00:00.5Z")),
            ("2026-10-01T00:00:00.123456789Z", Some("2026-10-01T00:00:00.123456Z")),
            ("2024-02-29T12:00:00Z", Some("2024-02-29T12:00:00Z")),
            ("2026-02-29T12:00:00Z", None),
            ("2026-10-01", None),
            ("2026-10-01T00:00:00", None),
            ("2026-10-01T25:00:00Z", None),
            ("2026-13-01T00:00:00Z", None),
            ("1790812800", None),
            ("2026-10-01T02:00:00+25:00", None),
            ("2026-10-01T02:00:00+02", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(parse_instant(text).ok().map(format_instant).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("2 days").unwrap(), 2 * DAY);
        assert_eq!(parse_duration("hour").unwrap(), DAY / 24);
        assert!(parse_duration("2 fortnights").is_err());
        assert!(parse_duration("-1 day").is_err());
    }

    proptest! {
        #[test]
        fn the_quick_parser_agrees_with_jiff(micros in EARLIEST..4_102_444_800_000_000_i64) {
            let text = format_instant(micros);
            prop_assert_eq!(parse_utc(text.as_bytes()), Some(micros));
        }
    }
}
