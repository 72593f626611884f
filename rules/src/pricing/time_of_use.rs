//! Time-of-use tariffs: a quantity is shared among the tariff windows that its interval crosses.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use ratemill_schemas::Decimal;
use ratemill_schemas::time::{DAY, format_instant};

use super::clock::{LocalTime, SECOND, Weekdays, clock_reaches, is_between, local_time};
use super::{PricingError, backwards, computing};

/// Most pieces that an interval may be split into: years of half-hourly tariffs.
const PIECES_MAX: usize = 100_000;
/// A holiday counts as this weekday.
const SUNDAY: i8 = 7;

/// When a unit price holds, by the local clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TariffWindow {
    /// On these weekdays.
    pub(crate) days: Weekdays,
    /// From this second of the day. With `from > to` the window holds at both ends of each of its days: `22:00` to `06:00`
    /// on Monday is Monday before six and Monday from ten.
    pub(crate) from: i64,
    /// Until before this second of the day.
    pub(crate) to: i64,
    /// Price of one unit.
    pub(crate) unit_price: Decimal,
}

/// The part of an interval that lies in one tariff window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// First instant.
    pub(crate) from: i64,
    /// First instant after.
    pub(crate) to: i64,
    /// Its share of the quantity.
    pub(crate) quantity: Decimal,
    /// Price of one unit.
    pub(crate) unit_price: Decimal,
    /// Quantity times price.
    pub(crate) amount: Decimal,
}

/// Shares `quantity` among the tariff windows that `[start, end)` crosses, in proportion to elapsed time; the last part is
/// the remainder, so that the parts add up. Without an end, or with one that equals the start, all is used at `start`.
///
/// Of several windows that hold, the first counts. A holiday counts as a Sunday. Neighbours in one window are one part.
pub(crate) fn time_of_use(
    start: i64,
    end: Option<i64>,
    quantity: Decimal,
    zone: &TimeZone,
    windows: &[TariffWindow],
    holidays: &[Date],
) -> Result<Vec<Part>, PricingError> {
    let end = end.unwrap_or(start);
    if end < start {
        return Err(backwards("the usage", format_instant(start), format_instant(end)));
    }
    let crossed = windows_crossed(start, end, zone, windows, holidays)?;
    let what = format_args!("time of use of {quantity}:");
    let failed = computing(what);
    let mut parts = Vec::with_capacity(crossed.len());
    let mut left = quantity;
    for (position, (from, window)) in crossed.iter().enumerate() {
        let next = crossed.get(position + 1).map(|(next, _)| *next);
        let share = match next {
            Some(next) => quantity.scaled_by(i128::from(next - from), i128::from(end - start)).map_err(failed)?,
            None => left,
        };
        left = left.subtract(share).map_err(failed)?;
        let unit_price = windows[*window].unit_price;
        let amount = share.multiply(unit_price).map_err(failed)?;
        parts.push(Part { from: *from, to: next.unwrap_or(end), quantity: share, unit_price, amount });
    }
    Ok(parts)
}

/// What the parts cost together.
pub(crate) fn total(parts: &[Part]) -> Result<Decimal, PricingError> {
    let total = parts.iter().try_fold(Decimal::ZERO, |sum, part| sum.plus(part.amount));
    total.map_err(computing("time of use:"))
}

/// From when on which window holds, starting with `start`; each differs from the one before.
fn windows_crossed(
    start: i64,
    end: i64,
    zone: &TimeZone,
    windows: &[TariffWindow],
    holidays: &[Date],
) -> Result<Vec<(i64, usize)>, PricingError> {
    let mut crossed: Vec<(i64, usize)> = Vec::with_capacity(1);
    let mut instant = start;
    for _ in 0..PIECES_MAX {
        let now = local_time(instant, zone)?;
        let window = window_at(now, windows, holidays)?;
        if crossed.last().is_none_or(|(_, before)| *before != window) {
            crossed.push((instant, window));
        }
        instant = clock_reaches(next_bound(now.time, windows), instant, now, zone)?;
        if instant >= end {
            return Ok(crossed);
        }
    }
    let what = format!("usage from {} to {}", format_instant(start), format_instant(end));
    Err(PricingError::TooManyParts { what, limit: PIECES_MAX })
}

fn window_at(now: LocalTime, windows: &[TariffWindow], holidays: &[Date]) -> Result<usize, PricingError> {
    let weekday = if holidays.contains(&now.date) { SUNDAY } else { now.weekday };
    let holds = |window: &TariffWindow| window.days.contains(weekday) && is_between(now.time, window.from, window.to);
    windows.iter().position(holds).ok_or_else(|| PricingError::NoTariff(now.to_string()))
}

/// The next time on the clock at which another window may hold: a bound of any of them, or midnight.
fn next_bound(time: i64, windows: &[TariffWindow]) -> i64 {
    let bounds = windows.iter().flat_map(|window| [window.from * SECOND, window.to * SECOND]);
    bounds.filter(|bound| *bound > time).fold(DAY, i64::min)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ratemill_schemas::time::parse_instant;
    use ratemill_schemas::windows::zone;

    use super::*;
    use crate::pricing::clock::time_of_day;
    use crate::pricing::d;

    fn windows(rows: &[(&str, &str, &str, &str)]) -> Vec<TariffWindow> {
        rows.iter()
            .map(|(days, from, to, price)| TariffWindow {
                days: days.parse().unwrap(),
                from: time_of_day(from).unwrap(),
                to: time_of_day(to).unwrap(),
                unit_price: d(price),
            })
            .collect()
    }

    /// Peak on weekdays from 7 to 20, off-peak else.
    fn peak_and_off_peak() -> Vec<TariffWindow> {
        windows(&[("1-5", "07:00", "20:00", "3"), ("1-7", "00:00", "24:00", "1")])
    }

    fn shown(parts: &[Part]) -> String {
        let part = |part: &Part| format!("{} {} at {}", format_instant(part.from), part.quantity, part.unit_price);
        parts.iter().map(part).collect::<Vec<_>>().join(", ")
    }

    fn check(name: &str, start: &str, end: &str, quantity: &str, tariff: &[TariffWindow], expected: &str) {
        let end = (!end.is_empty()).then(|| parse_instant(end).unwrap());
        let parts = time_of_use(parse_instant(start).unwrap(), end, d(quantity), &zone(name).unwrap(), tariff, &[]).unwrap();
        assert_eq!(shown(&parts), expected, "{start} to {end:?} in {name}");
        let sum = parts.iter().fold(Decimal::ZERO, |sum, part| sum.plus(part.quantity).unwrap());
        assert_eq!(sum, d(quantity));
        assert!(parts.windows(2).all(|pair| pair[0].to == pair[1].from));
    }

    #[test]
    fn usage_is_shared_by_elapsed_time() {
        let tariff = peak_and_off_peak();
        // 2026-06-02 is a Tuesday.
        check(
            "UTC",
            "2026-06-02T06:00:00Z",
            "2026-06-02T08:00:00Z",
            "10",
            &tariff,
            "2026-06-02T06:00:00Z 5 at 1, 2026-06-02T07:00:00Z 5 at 3",
        );
        check("UTC", "2026-06-02T07:00:00Z", "2026-06-02T20:00:00Z", "13", &tariff, "2026-06-02T07:00:00Z 13 at 3");
        check("UTC", "2026-06-02T07:00:00Z", "", "10", &tariff, "2026-06-02T07:00:00Z 10 at 3");
        check("UTC", "2026-06-02T20:00:00Z", "2026-06-02T20:00:00Z", "10", &tariff, "2026-06-02T20:00:00Z 10 at 1");
        check("UTC", "2026-06-02T06:59:59.999999Z", "", "-4", &tariff, "2026-06-02T06:59:59.999999Z -4 at 1");
        // The same moment is peak in Berlin.
        check("Europe/Berlin", "2026-06-02T06:00:00Z", "2026-06-02T08:00:00Z", "10", &tariff, "2026-06-02T06:00:00Z 10 at 3");
        // A third does not come out even: the last part is the remainder.
        check(
            "UTC",
            "2026-06-02T06:30:00Z",
            "2026-06-02T08:00:00Z",
            "1",
            &tariff,
            "2026-06-02T06:30:00Z 0.333333333333333333 at 1, 2026-06-02T07:00:00Z 0.666666666666666667 at 3",
        );
    }

    #[test]
    fn midnights_and_weekends_are_one_part_in_one_window() {
        let tariff = peak_and_off_peak();
        // From Friday 20:00 to Monday 07:00 is one stretch of 59 hours.
        check(
            "UTC",
            "2026-06-05T19:00:00Z",
            "2026-06-08T08:00:00Z",
            "61",
            &tariff,
            "2026-06-05T19:00:00Z 1 at 3, 2026-06-05T20:00:00Z 59 at 1, 2026-06-08T07:00:00Z 1 at 3",
        );
    }

    #[test]
    fn days_on_which_clocks_change() {
        let nights = windows(&[("1-7", "00:00", "06:00", "1"), ("1-7", "06:00", "24:00", "2")]);
        // Berlin, 2026-03-29: the night from midnight to six has five hours.
        check(
            "Europe/Berlin",
            "2026-03-28T23:00:00Z",
            "2026-03-29T22:00:00Z",
            "23",
            &nights,
            "2026-03-28T23:00:00Z 5 at 1, 2026-03-29T04:00:00Z 18 at 2",
        );
        // Berlin, 2026-10-25: seven hours.
        check(
            "Europe/Berlin",
            "2026-10-24T22:00:00Z",
            "2026-10-25T23:00:00Z",
            "25",
            &nights,
            "2026-10-24T22:00:00Z 7 at 1, 2026-10-25T05:00:00Z 18 at 2",
        );
        // The hour from 02:00 to 03:00 comes twice, so that a bound at 02:30 is passed twice.
        let half = windows(&[("1-7", "00:00", "02:30", "1"), ("1-7", "02:30", "24:00", "2")]);
        check(
            "Europe/Berlin",
            "2026-10-25T00:00:00Z",
            "2026-10-25T02:00:00Z",
            "4",
            &half,
            "2026-10-25T00:00:00Z 1 at 1, 2026-10-25T00:30:00Z 1 at 2, 2026-10-25T01:00:00Z 1 at 1, 2026-10-25T01:30:00Z 1 at 2",
        );
        // And a bound that the clock jumps over takes hold at the jump.
        check(
            "Europe/Berlin",
            "2026-03-29T00:00:00Z",
            "2026-03-29T02:00:00Z",
            "2",
            &half,
            "2026-03-29T00:00:00Z 1 at 1, 2026-03-29T01:00:00Z 1 at 2",
        );
    }

    #[test]
    fn every_minute_of_a_part_has_its_price() {
        let rows = [
            ("1-5", "07:15", "20:00", "3"),
            ("6,7", "01:40", "02:50", "4"),
            ("1-7", "22:00", "02:10", "2"),
            ("1-7", "00:00", "24:00", "1"),
        ];
        let tariff = windows(&rows);
        for (name, start) in [
            ("Europe/Berlin", "2026-03-27T11:00:00Z"),
            ("Europe/Berlin", "2026-10-23T11:00:00Z"),
            ("Australia/Lord_Howe", "2026-04-03T05:00:00Z"),
            ("Australia/Lord_Howe", "2026-10-02T05:00:00Z"),
            ("Asia/Beirut", "2026-03-27T11:00:00Z"),
            ("America/St_Johns", "2026-10-30T11:00:00Z"),
        ] {
            let (zone, start) = (zone(name).unwrap(), parse_instant(start).unwrap());
            let end = start + 4 * DAY;
            let parts = time_of_use(start, Some(end), d("5760"), &zone, &tariff, &[]).unwrap();
            assert!(parts.windows(2).all(|pair| pair[0].unit_price != pair[1].unit_price));
            for part in &parts {
                assert_eq!(part.quantity, Decimal::from_integer((part.to - part.from) / (60 * SECOND)), "one unit a minute in {name}");
                for minute in (part.from..part.to).step_by(60_000_000) {
                    let alone = time_of_use(minute, None, Decimal::ONE, &zone, &tariff, &[]).unwrap();
                    assert_eq!(alone[0].unit_price, part.unit_price, "{} in {name}", format_instant(minute));
                }
            }
        }
    }

    #[test]
    fn holidays_count_as_sundays_and_the_first_window_wins() {
        let holidays: [Date; 1] = ["2026-06-02".parse().unwrap()];
        let tariff = peak_and_off_peak();
        let utc = TimeZone::UTC;
        let start = parse_instant("2026-06-02T22:00:00Z").unwrap();
        let noon = parse_instant("2026-06-02T12:00:00Z").unwrap();
        let on = |instant, holidays: &[Date]| total(&time_of_use(instant, None, d("10"), &utc, &tariff, holidays).unwrap()).unwrap();
        assert_eq!(on(noon, &holidays), d("10"));
        assert_eq!(on(noon, &[]), d("30"));
        let end = parse_instant("2026-06-03T08:00:00Z").unwrap();
        let parts = time_of_use(start, Some(end), d("10"), &utc, &tariff, &holidays).unwrap();
        assert_eq!(shown(&parts), "2026-06-02T22:00:00Z 9 at 1, 2026-06-03T07:00:00Z 1 at 3");
        assert_eq!(total(&parts).unwrap(), d("12"));
    }

    #[test]
    fn windows_may_run_over_midnight() {
        let tariff = windows(&[("1-7", "22:00", "06:00", "1"), ("1-7", "06:00", "22:00", "2")]);
        check(
            "UTC",
            "2026-06-02T21:00:00Z",
            "2026-06-03T07:00:00Z",
            "10",
            &tariff,
            "2026-06-02T21:00:00Z 1 at 2, 2026-06-02T22:00:00Z 8 at 1, 2026-06-03T06:00:00Z 1 at 2",
        );
    }

    #[test]
    fn what_cannot_be_shared_says_so() {
        let gap = windows(&[("1-5", "00:00", "24:00", "1")]);
        let saturday = parse_instant("2026-06-06T10:30:00Z").unwrap();
        let error =
            |start, end, tariff: &[TariffWindow]| time_of_use(start, end, d("1"), &TimeZone::UTC, tariff, &[]).unwrap_err().to_string();
        let text = "no tariff window covers 2026-06-06 10:30:00 (weekday 6); every time of every day needs one";
        assert_eq!(error(saturday, None, &gap), text);
        let friday = saturday - 11 * 3_600_000_000;
        let text = "no tariff window covers 2026-06-06 00:00:00 (weekday 6); every time of every day needs one";
        assert_eq!(error(friday, Some(saturday), &gap), text);
        assert!(error(saturday, Some(friday), &gap).starts_with("the usage ends at"));
        let decades = Some(saturday + 500 * 366 * DAY);
        assert!(error(saturday, decades, &peak_and_off_peak()).contains("more than 100000 parts"));
    }
}
