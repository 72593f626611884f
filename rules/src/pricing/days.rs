//! Counting days, and buckets of time.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use ratemill_schemas::time::{DAY, format_instant};
use ratemill_schemas::{Decimal, Window, WindowSpec};

use super::clock::{SECOND, local_date, local_time, utc_offset};
use super::{PricingError, backwards, calendar_days, computing};

/// Days from one date to another, the end excluded; negative when `to` is before `from`.
///
/// With `month_days`, every month has that many days: `month_days × months apart + to.day − from.day`.
pub(crate) fn days_between(from: Date, to: Date, month_days: Option<i64>) -> Result<i64, PricingError> {
    let Some(month_days) = month_days else { return Ok(calendar_days(from, to)) };
    if !(1..=31).contains(&month_days) {
        return Err(PricingError::MonthDays(month_days));
    }
    let months = (i64::from(to.year()) - i64::from(from.year())) * 12 + i64::from(to.month()) - i64::from(from.month());
    Ok(month_days * months + i64::from(to.day()) - i64::from(from.day()))
}

/// Elapsed time plus the change of the UTC offset, plus a second when `to` is local midnight, rounded up to whole days.
///
/// An end at midnight so counts as part of its day.
pub(crate) fn elapsed_days(from: i64, to: i64, zone: &TimeZone) -> Result<i64, PricingError> {
    let change = (utc_offset(to, zone)? - utc_offset(from, zone)?) * SECOND;
    let midnight = if local_time(to, zone)?.time == 0 { SECOND } else { 0 };
    let elapsed = to - from + change + midnight;
    Ok(elapsed.div_euclid(DAY) + i64::from(elapsed.rem_euclid(DAY) != 0))
}

/// `amount × |active ∩ window| ÷ |window|`, by time; a null bound is open.
pub(crate) fn prorate(
    amount: Decimal,
    active_from: Option<i64>,
    active_to: Option<i64>,
    window_start: i64,
    window_end: i64,
) -> Result<Decimal, PricingError> {
    if window_end <= window_start {
        return Err(backwards("the window", format_instant(window_start), format_instant(window_end)));
    }
    let start = active_from.map_or(window_start, |from| from.max(window_start));
    let end = active_to.map_or(window_end, |to| to.min(window_end));
    let active = i128::from(end.saturating_sub(start).max(0));
    amount.scaled_by(active, i128::from(window_end - window_start)).map_err(computing(format_args!("prorated {amount}:")))
}

/// Local days of `[window_start, window_end)`: those of which any part is active, and all. A null bound is open.
pub(crate) fn active_days(
    active_from: Option<i64>,
    active_to: Option<i64>,
    window_start: i64,
    window_end: i64,
    zone: &TimeZone,
) -> Result<(i64, i64), PricingError> {
    if window_end <= window_start {
        return Err(backwards("the window", format_instant(window_start), format_instant(window_end)));
    }
    let start = active_from.map_or(window_start, |from| from.max(window_start));
    let end = active_to.map_or(window_end, |to| to.min(window_end));
    let active = if start < end { days_touched(start, end, zone)? } else { 0 };
    Ok((active, days_touched(window_start, window_end, zone)?))
}

/// Local days of which any part lies in the non-empty `[start, end)`.
fn days_touched(start: i64, end: i64, zone: &TimeZone) -> Result<i64, PricingError> {
    Ok(calendar_days(local_date(start, zone)?, local_date(end - 1, zone)?) + 1)
}

/// Buckets that are kept: the days of several years.
const BUCKETS_KEPT: usize = 1024;

/// Buckets of one length in one zone; those that were found are kept, since many instants share a few of them.
#[derive(Debug)]
pub(crate) struct Buckets {
    spec: WindowSpec,
    /// Ascending.
    found: Vec<Window>,
    last: usize,
}

impl Buckets {
    pub(crate) fn new(spec: WindowSpec) -> Self {
        Self { spec, found: Vec::new(), last: 0 }
    }

    /// Start of the bucket that holds `instant`.
    pub(crate) fn start_of(&mut self, instant: i64) -> Result<i64, PricingError> {
        if let Some(last) = self.found.get(self.last)
            && last.contains(instant)
        {
            return Ok(last.start);
        }
        let place = self.found.partition_point(|bucket| bucket.end <= instant);
        if let Some(found) = self.found.get(place)
            && found.contains(instant)
        {
            self.last = place;
            return Ok(found.start);
        }
        let bucket = self.spec.window_of(instant)?;
        if self.found.len() >= BUCKETS_KEPT {
            self.found.clear();
        }
        self.last = place.min(self.found.len());
        self.found.insert(self.last, bucket);
        Ok(bucket.start)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ratemill_schemas::time::parse_instant;
    use ratemill_schemas::windows::zone;

    use super::*;

    fn date(text: &str) -> Date {
        text.parse().unwrap()
    }

    fn at(text: &str) -> i64 {
        parse_instant(text).unwrap()
    }

    #[test]
    fn days_between_dates() {
        for (from, to, month_days, days) in [
            ("2024-05-01", "2024-05-05", None, 4),
            ("2024-05-01", "2024-05-01", None, 0),
            ("2024-05-05", "2024-05-01", None, -4),
            ("2024-02-28", "2024-03-01", None, 2),
            ("2026-02-28", "2026-03-01", None, 1),
            ("2024-12-30", "2025-01-02", None, 3),
            ("2000-01-01", "2400-01-01", None, 146_097),
            ("2023-05-23", "2023-06-15", Some(30), 22),
            ("2023-05-10", "2023-05-15", Some(30), 5),
            ("2023-01-31", "2023-03-01", Some(30), 30),
            ("2023-06-15", "2023-05-23", Some(30), -22),
            ("2023-12-15", "2024-12-15", Some(30), 360),
        ] {
            assert_eq!(days_between(date(from), date(to), month_days).unwrap(), days, "{from} to {to}, {month_days:?}");
        }
        assert!(days_between(date("2023-01-01"), date("2023-02-01"), Some(0)).is_err());
    }

    #[test]
    fn elapsed_days_follow_the_local_clock() {
        for (from, to, name, days) in [
            ("2023-12-01T00:00:00Z", "2023-12-07T00:00:00Z", "UTC", 7),
            ("2023-12-01T00:00:00Z", "2023-12-06T23:59:59Z", "UTC", 6),
            ("2023-12-01T10:00:00Z", "2023-12-01T10:00:00Z", "UTC", 0),
            ("2023-12-01T00:00:00Z", "2023-12-01T00:00:00Z", "UTC", 1),
            ("2023-12-01T10:00:00Z", "2023-12-01T10:00:01Z", "UTC", 1),
            // 23 hours from midnight to the second before midnight, and to midnight.
            ("2026-03-08T05:00:00Z", "2026-03-09T03:59:59Z", "America/New_York", 1),
            ("2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z", "America/New_York", 2),
            // 25 hours to the second before midnight.
            ("2026-11-01T04:00:00Z", "2026-11-02T04:59:59Z", "America/New_York", 1),
        ] {
            assert_eq!(elapsed_days(at(from), at(to), &zone(name).unwrap()).unwrap(), days, "{from} to {to} in {name}");
        }
    }

    #[test]
    fn active_days_count_when_any_part_is_active() {
        let london = zone("Europe/London").unwrap();
        // March 2026 in London: 31 days, one of 23 hours.
        let (start, end) = (at("2026-03-01T00:00:00Z"), at("2026-03-31T23:00:00Z"));
        for (from, to, days) in [
            (None, None, 31),
            (Some("2026-03-16T00:00:00Z"), None, 16),
            (Some("2026-03-16T23:59:59.999999Z"), None, 16),
            (None, Some("2026-03-16T00:00:00Z"), 15),
            (None, Some("2026-03-16T00:00:00.000001Z"), 16),
            // Clocks are ahead by an hour: 23:00 is midnight.
            (Some("2026-03-29T23:00:00Z"), Some("2026-03-30T23:00:00Z"), 1),
            (Some("2026-03-29T22:59:59Z"), Some("2026-03-30T23:00:00Z"), 2),
            (Some("2026-03-29T00:00:00Z"), Some("2026-03-29T23:00:00Z"), 1),
            (Some("2026-04-01T00:00:00Z"), None, 0),
            (None, Some("2026-03-01T00:00:00Z"), 0),
            (Some("2026-03-10T00:00:00Z"), Some("2026-03-10T00:00:00Z"), 0),
            (Some("2026-03-10T00:00:00Z"), Some("2026-03-09T00:00:00Z"), 0),
        ] {
            let got = active_days(from.map(at), to.map(at), start, end, &london).unwrap();
            assert_eq!(got, (days, 31), "{from:?} to {to:?}");
        }
        assert!(active_days(None, None, start, start, &london).is_err());
    }

    #[test]
    fn buckets_of_time() {
        let berlin = || zone("Europe/Berlin").unwrap();
        for (instant, length, start) in [
            ("2026-03-29T12:14:59Z", "15 minutes", "2026-03-29T12:00:00Z"),
            ("2026-03-29T12:00:00Z", "day", "2026-03-28T23:00:00Z"),
            ("2026-03-31T22:00:00Z", "month", "2026-03-31T22:00:00Z"),
        ] {
            let mut buckets = Buckets::new(WindowSpec::parse(length, berlin()).unwrap());
            assert_eq!(format_instant(buckets.start_of(at(instant)).unwrap()), start, "{instant} by {length}");
        }
    }

    #[test]
    fn buckets_that_were_found_before_are_the_same() {
        // Both nights on which the clocks change, backwards and forwards, and more buckets than are kept.
        let spec = || WindowSpec::parse("day", zone("Europe/Berlin").unwrap()).unwrap();
        let mut buckets = Buckets::new(spec());
        let (first, step) = (at("2025-01-01T00:00:00Z"), 5 * 3600 * 1_000_000 + 1);
        for number in (0..9000).rev().chain(0..9000).chain((0..9000).map(|number| number * 7919 % 9000)) {
            let instant = first + number * step;
            assert_eq!(buckets.start_of(instant).unwrap(), spec().window_of(instant).unwrap().start);
        }
        assert!(buckets.found.len() <= BUCKETS_KEPT);
    }
}
