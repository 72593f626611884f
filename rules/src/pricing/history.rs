//! Figures from the history of one meter: levels over time, cumulative registers, percentiles.

use ratemill_schemas::Decimal;
use ratemill_schemas::time::format_instant;

use super::exact::{ExactSum, ONE};
use super::{PricingError, backwards, computing, not_negative};

/// An hour in microseconds.
const HOUR: i128 = 3_600_000_000;

/// Level × hours over `[start, end)`: each level holds from its time (not before `start`) until the next, the last until
/// `end`. Before the first level there is nothing. `levels` may come in any order and are sorted.
pub(crate) fn weighted(levels: &mut [(i64, Decimal)], start: i64, end: i64) -> Result<Decimal, PricingError> {
    if end < start {
        return Err(backwards("the window", format_instant(start), format_instant(end)));
    }
    sort("levels", levels)?;
    let failed = computing("levels times hours:");
    let mut sum = ExactSum::of_quotients(HOUR);
    for (position, (time, level)) in levels.iter().enumerate() {
        let until = levels.get(position + 1).map_or(end, |(next, _)| (*next).min(end));
        let held = until - (*time).max(start);
        if held > 0 {
            sum.add_product(*level, i128::from(held)).map_err(failed)?;
        }
    }
    sum.total().map_err(failed)
}

/// Consumption of a cumulative register: the steps between its readings in time order, which may come in any order and
/// are sorted; fewer than two readings have none.
///
/// A lower reading is a reset, counted from 0, or with `rollover` (the register's capacity) a turn-over:
/// `rollover − before + after`.
pub(crate) fn register_usage(readings: &mut [(i64, Decimal)], rollover: Option<Decimal>) -> Result<Decimal, PricingError> {
    sort("register readings", readings)?;
    for (time, reading) in readings.iter() {
        not_negative("register reading", *reading)?;
        if let Some(rollover) = rollover.filter(|rollover| reading > rollover) {
            return Err(PricingError::AboveRollover { reading: *reading, time: format_instant(*time), rollover });
        }
    }
    let mut usage = Decimal::ZERO;
    for pair in readings.windows(2) {
        let [(_, before), (time, after)] = pair else { continue };
        let step = match rollover {
            _ if after >= before => after.subtract(*before),
            Some(rollover) => rollover.subtract(*before).and_then(|left| left.plus(*after)),
            None => Ok(*after),
        };
        let sum = step.and_then(|step| usage.plus(step));
        usage = sum.map_err(|error| computing(format_args!("register usage up to {}:", format_instant(*time)))(error))?;
    }
    Ok(usage)
}

/// The value at position `ceil(percent ÷ 100 × n)` in ascending order (nearest rank); `None` of no values.
///
/// `values` are reordered.
pub(crate) fn percentile(values: &mut [Decimal], percent: Decimal) -> Result<Option<Decimal>, PricingError> {
    const WHOLE: i128 = 100 * ONE;
    if percent.raw() <= 0 || percent.raw() > WHOLE {
        return Err(PricingError::Percent(percent));
    }
    // At most 10^20 times a length in memory: far from 128 bits.
    let rank = (percent.raw() * values.len() as i128 + WHOLE - 1) / WHOLE;
    let Some(position) = usize::try_from(rank).ok().and_then(|rank| rank.checked_sub(1)) else { return Ok(None) };
    Ok(Some(*values.select_nth_unstable(position).1))
}

/// Sorts by time; two different values at one time are an error, since neither can be preferred.
fn sort(what: &'static str, values: &mut [(i64, Decimal)]) -> Result<(), PricingError> {
    values.sort_unstable();
    match values.windows(2).find(|pair| pair[0].0 == pair[1].0 && pair[0].1 != pair[1].1) {
        Some(pair) => Err(PricingError::Ambiguous { what, time: format_instant(pair[0].0), first: pair[0].1, second: pair[1].1 }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pricing::d;

    const MINUTE: i64 = 60_000_000;

    fn series(rows: &[(i64, &str)]) -> Vec<(i64, Decimal)> {
        rows.iter().map(|(minutes, value)| (minutes * MINUTE, d(value))).collect()
    }

    #[test]
    fn levels_times_hours() {
        let day = 1440;
        for (levels, expected) in [
            (&[][..], "0"),
            (&[(0, "5")], "120"),
            (&[(-600, "5")], "120"),
            (&[(60, "3")], "69"),
            (&[(0, "10"), (720, "20")], "360"),
            (&[(720, "20"), (0, "10")], "360"),
            (&[(-600, "7"), (-10, "1"), (720, "0")], "12"),
            (&[(0, "1"), (1440, "99"), (2000, "5")], "24"),
            (&[(0, "2"), (0, "2")], "48"),
            (&[(0, "-2")], "-48"),
            // 1 and 2 minutes: sixtieths of an hour, rounded once.
            (&[(0, "1"), (1, "0"), (2, "1"), (3, "0"), (4, "1"), (5, "0")], "0.05"),
            (&[(0, "0.000000000000000001"), (30, "0"), (60, "0.000000000000000001"), (90, "0")], "0.000000000000000001"),
            // More than 128 bits on the way.
            (&[(0, "999999999999999999")], "23999999999999999976"),
        ] {
            assert_eq!(weighted(&mut series(levels), 0, day * MINUTE).unwrap(), d(expected), "{levels:?}");
        }
        assert_eq!(weighted(&mut series(&[(0, "5")]), 7, 7).unwrap(), Decimal::ZERO);
        assert!(weighted(&mut [], 8, 7).is_err());
        assert!(weighted(&mut series(&[(0, "99999999999999999999")]), 0, day * MINUTE).is_err());
        let error = weighted(&mut series(&[(0, "5"), (1, "3"), (0, "4")]), 0, MINUTE).unwrap_err();
        assert_eq!(error.to_string(), "there are two levels at 1970-01-01T00:00:00Z: 4 and 5");
    }

    #[test]
    fn a_split_window_has_the_same_level_hours() {
        let levels = [(-5, "7"), (13, "11"), (100, "0.6"), (1003, "3")];
        let whole = weighted(&mut series(&levels), 0, 1440 * MINUTE).unwrap();
        for split in [30, 100, 720, 1380] {
            let first = weighted(&mut series(&levels), 0, split * MINUTE).unwrap();
            let second = weighted(&mut series(&levels), split * MINUTE, 1440 * MINUTE).unwrap();
            let difference = first.plus(second).unwrap().subtract(whole).unwrap();
            assert!(difference.raw().abs() <= 1, "split at minute {split}");
        }
    }

    #[test]
    fn registers_reset_or_turn_over() {
        for (readings, rollover, usage) in [
            (&[][..], None, "0"),
            (&[(0, "100")], None, "0"),
            (&[(0, "100"), (1, "130.5"), (2, "130.5")], None, "30.5"),
            (&[(2, "140"), (0, "100"), (1, "130")], None, "40"),
            (&[(0, "100"), (1, "20"), (2, "25")], None, "25"),
            (&[(0, "99990"), (1, "15")], Some("100000"), "25"),
            (&[(0, "100"), (0, "100"), (1, "101")], None, "1"),
        ] {
            let got = register_usage(&mut series(readings), rollover.map(d)).unwrap();
            assert_eq!(got, d(usage), "{readings:?}");
        }
        for (readings, rollover, text) in [
            (&[(0, "1"), (1, "5"), (1, "4")][..], None, "there are two register readings at 1970-01-01T00:01:00Z: 4 and 5"),
            (&[(0, "1"), (1, "-5")], None, "register reading -5 is below zero"),
            (
                &[(0, "11"), (1, "5")],
                Some("10"),
                "register reading 11 at 1970-01-01T00:00:00Z is outside 0 to 10, the capacity of the register",
            ),
            (
                &[(0, "0"), (1, "99999999999999999999"), (2, "1")],
                None,
                "register usage up to 1970-01-01T00:02:00Z: needs more than 20 digits before the point",
            ),
        ] {
            assert_eq!(register_usage(&mut series(readings), rollover.map(d)).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn percentiles_are_values_of_the_series() {
        for (values, percent, expected) in [
            ("15 20 35 40 50", "5", "15"),
            ("15 20 35 40 50", "20", "15"),
            ("50 40 35 20 15", "20.000000000000000001", "20"),
            ("15 20 35 40 50", "30", "20"),
            ("15 20 35 40 50", "40", "20"),
            ("15 20 35 40 50", "50", "35"),
            ("15 20 35 40 50", "100", "50"),
            ("7", "95", "7"),
        ] {
            let mut values: Vec<Decimal> = values.split(' ').map(d).collect();
            assert_eq!(percentile(&mut values, d(percent)).unwrap(), Some(d(expected)), "{percent} of {values:?}");
        }
        assert_eq!(percentile(&mut [], d("95")).unwrap(), None);
        for percent in ["0", "-1", "100.1"] {
            assert!(percentile(&mut [Decimal::ONE], d(percent)).is_err());
        }
    }
}
