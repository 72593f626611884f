//! Months from an anchor day, and billing cycles counted in advance.

use std::str::FromStr;

use jiff::ToSpan;
use jiff::civil::Date;
use ratemill_schemas::windows::anchor_day;
use ratemill_schemas::{Decimal, Rounding};

use super::exact::whole_number;
use super::{PricingError, backwards, calendar_days, computing};

/// Digits after the point of the fraction of a stub cycle.
const STUB_PLACES: i32 = 9;

/// How long a billing cycle is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cycle {
    /// So many days, counted from the start; there is no anchor day.
    Days(i32),
    /// So many months, on the anchor day.
    Months(i32),
}

impl FromStr for Cycle {
    type Err = PricingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "daily" => Self::Days(1),
            "weekly" => Self::Days(7),
            "biweekly" => Self::Days(14),
            "monthly" => Self::Months(1),
            "bimonthly" => Self::Months(2),
            "quarterly" => Self::Months(3),
            "triannual" => Self::Months(4),
            "biannual" => Self::Months(6),
            "annual" => Self::Months(12),
            "biennial" => Self::Months(24),
            _ => {
                return Err(PricingError::Unknown {
                    what: "period",
                    given: text.to_owned(),
                    valid: "daily, weekly, biweekly, monthly, bimonthly, quarterly, triannual, biannual, annual, biennial",
                });
            }
        })
    }
}

/// The date so many months later, on the anchor day (by default the date's own) cut to the month's length.
pub(crate) fn add_months(date: Date, months: i64, anchor_day: Option<i64>) -> Result<Date, PricingError> {
    on_anchor(month_of(date).saturating_add(months), anchor_day.map_or(Ok(date.day()), anchor)?)
}

/// Monthly starts on the anchor day (cut to the month, restored when it allows), the first being that of the period that
/// holds `from`; `until` is excluded. None when `until` is not after `from`.
pub(crate) fn period_starts(from: Date, until: Date, anchor_day: i64) -> Result<Vec<Date>, PricingError> {
    let anchor_day = anchor(anchor_day)?;
    let mut starts = Vec::new();
    if until <= from {
        return Ok(starts);
    }
    let mut month = month_of(from);
    let mut start = on_anchor(month, anchor_day)?;
    if start > from {
        month -= 1;
        start = on_anchor(month, anchor_day)?;
    }
    while start < until {
        starts.push(start);
        month += 1;
        start = on_anchor(month, anchor_day)?;
    }
    Ok(starts)
}

/// Number of cycles billed in advance up to `target`, for a service from `start` until before `end` (`None` is open).
///
/// The first cycle begins on the anchor day of the start's month, or one period later if that is before the start. Days
/// before it are a leading stub: their part of the period that ends with it. Each cycle that begins at or before `target`
/// counts one; where `end` cuts it, a trailing stub counts instead. Stubs are rounded to 9 places, halves up, and the
/// period that they are a part of steps from its cut date itself, while cycles return to the anchor day.
pub(crate) fn billing_cycles(start: Date, end: Option<Date>, target: Date, cycle: Cycle, anchor_day: i64) -> Result<Decimal, PricingError> {
    let anchor_day = anchor(anchor_day)?;
    if let Some(end) = end.filter(|end| *end < start) {
        return Err(backwards("the service", start, end));
    }
    if target < start {
        return Ok(Decimal::ZERO);
    }
    let mut dates = CycleDates::first(start, cycle, anchor_day)?;
    let mut stubs = Decimal::ZERO;
    let what = format_args!("billing cycles from {start} to {target}:");
    let failed = computing(what);
    if start < dates.begin {
        let used = calendar_days(start, end.map_or(dates.begin, |end| end.min(dates.begin)));
        stubs = stub(used, calendar_days(step(dates.begin, cycle, -1)?, dates.begin))?;
    }
    let mut whole = 0;
    while dates.begin <= target && end.is_none_or(|end| dates.begin < end) {
        let next = dates.next()?;
        if let Some(end) = end.filter(|end| *end < next.begin) {
            let trailing = stub(calendar_days(dates.begin, end), calendar_days(dates.begin, step(dates.begin, cycle, 1)?))?;
            stubs = stubs.plus(trailing).map_err(failed)?;
            break;
        }
        whole += 1;
        dates = next;
    }
    whole_number(whole).and_then(|whole| whole.plus(stubs)).map_err(failed)
}

/// Where the current cycle begins, and how the next one is found.
struct CycleDates {
    begin: Date,
    month: i64,
    anchor_day: i8,
    cycle: Cycle,
}

impl CycleDates {
    fn first(start: Date, cycle: Cycle, anchor_day: i8) -> Result<Self, PricingError> {
        let month = month_of(start);
        let begin = match cycle {
            Cycle::Days(_) => start,
            Cycle::Months(_) => on_anchor(month, anchor_day)?,
        };
        let dates = Self { begin, month, anchor_day, cycle };
        if begin < start { dates.next() } else { Ok(dates) }
    }

    fn next(&self) -> Result<Self, PricingError> {
        let Self { begin, month, anchor_day, cycle } = *self;
        Ok(match cycle {
            Cycle::Days(_) => Self { begin: step(begin, cycle, 1)?, month, anchor_day, cycle },
            Cycle::Months(months) => {
                let month = month + i64::from(months);
                Self { begin: on_anchor(month, anchor_day)?, month, anchor_day, cycle }
            }
        })
    }
}

/// The date one period later, or earlier with a `direction` of −1, from its own day.
fn step(date: Date, cycle: Cycle, direction: i32) -> Result<Date, PricingError> {
    match cycle {
        Cycle::Days(days) => date.checked_add((days * direction).days()).map_err(|_| PricingError::OutOfCalendar(date.to_string())),
        Cycle::Months(months) => add_months(date, i64::from(months * direction), None),
    }
}

fn stub(days: i64, period_days: i64) -> Result<Decimal, PricingError> {
    let part = Decimal::from_integer(days).scaled_by(1, i128::from(period_days));
    part.and_then(|part| part.round(STUB_PLACES, Rounding::HalfUp)).map_err(computing(format_args!("{days} of {period_days} days:")))
}

fn anchor(day: i64) -> Result<i8, PricingError> {
    i8::try_from(day).ok().filter(|day| (1..=31).contains(day)).ok_or(PricingError::AnchorDay(day))
}

/// Months since January of the year 0.
fn month_of(date: Date) -> i64 {
    i64::from(date.year()) * 12 + i64::from(date.month()) - 1
}

/// The anchor day in a month, cut to the month's length.
fn on_anchor(month: i64, anchor: i8) -> Result<Date, PricingError> {
    i32::try_from(month)
        .ok()
        .and_then(|month| anchor_day(month, anchor))
        .ok_or_else(|| PricingError::OutOfCalendar(format!("month {} of the year {}", month.rem_euclid(12) + 1, month.div_euclid(12))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pricing::d;

    fn date(text: &str) -> Date {
        text.parse().unwrap()
    }

    #[test]
    fn month_steps_are_cut_to_the_month() {
        for (from, months, anchor_day, to) in [
            ("2026-01-31", 1, Some(31), "2026-02-28"),
            ("2028-01-31", 1, Some(31), "2028-02-29"),
            ("2026-02-28", 1, Some(31), "2026-03-31"),
            ("2026-02-28", 1, None, "2026-03-28"),
            ("2026-03-31", -1, None, "2026-02-28"),
            ("2024-02-29", 12, None, "2025-02-28"),
            ("2024-02-29", 48, None, "2028-02-29"),
            ("2026-12-15", 1, None, "2027-01-15"),
            ("2026-01-15", 0, Some(20), "2026-01-20"),
        ] {
            assert_eq!(add_months(date(from), months, anchor_day).unwrap(), date(to), "{from} and {months} months, {anchor_day:?}");
        }
        assert!(add_months(date("2026-01-01"), 1, Some(32)).is_err());
        assert!(add_months(date("9999-12-01"), 1, None).is_err());
        assert!(add_months(date("2026-01-01"), i64::MAX, None).is_err());
    }

    #[test]
    fn monthly_starts() {
        for (from, until, anchor_day, starts) in [
            ("2024-01-03", "2024-02-06", 5, "2023-12-05 2024-01-05 2024-02-05"),
            ("2024-01-10", "2024-03-10", 5, "2024-01-05 2024-02-05 2024-03-05"),
            ("2024-01-05", "2024-02-05", 5, "2024-01-05"),
            ("2024-01-31", "2024-05-01", 31, "2024-01-31 2024-02-29 2024-03-31 2024-04-30"),
            ("2024-01-10", "2024-01-10", 5, ""),
        ] {
            let shown: Vec<String> = period_starts(date(from), date(until), anchor_day).unwrap().iter().map(Date::to_string).collect();
            assert_eq!(shown.join(" "), starts, "{from} to {until} on {anchor_day}");
        }
    }

    /// Figures of killbill/killbill, its invoice proration tests.
    #[test]
    fn cycles_of_published_cases() {
        for (period, anchor_day, start, end, target, cycles) in [
            ("monthly", 13, "2011-02-01", "", "2011-02-01", "0.387096774"),
            ("monthly", 13, "2011-02-01", "", "2011-02-13", "1.387096774"),
            ("monthly", 13, "2011-02-01", "", "2011-04-13", "3.387096774"),
            ("monthly", 13, "2011-02-01", "2011-04-13", "2011-02-01", "0.387096774"),
            ("monthly", 10, "2011-02-10", "2011-02-24", "2011-03-06", "0.5"),
            ("monthly", 10, "2011-02-24", "", "2011-03-06", "0.5"),
            ("monthly", 3, "2011-02-17", "", "2011-03-03", "1.5"),
            ("monthly", 1, "2012-02-01", "2012-02-15", "2012-02-19", "0.482758621"),
            ("monthly", 7, "2011-02-07", "2011-02-15", "2011-04-21", "0.285714286"),
            ("monthly", 7, "2011-02-07", "2011-03-07", "2011-04-21", "1"),
            ("monthly", 7, "2011-01-31", "2011-03-10", "2011-04-21", "1.322580646"),
            ("annual", 15, "2011-01-01", "2012-01-27", "2012-01-15", "1.071143049"),
            ("annual", 15, "2011-01-01", "2013-04-27", "2012-02-26", "2.038356164"),
            ("annual", 4, "2010-12-15", "", "2012-01-13", "1.969863014"),
            ("annual", 17, "2010-06-17", "2011-06-25", "2011-06-17", "1.021857923"),
        ] {
            let end = (!end.is_empty()).then(|| date(end));
            let got = billing_cycles(date(start), end, date(target), period.parse().unwrap(), anchor_day).unwrap();
            assert_eq!(got, d(cycles), "{period} on {anchor_day} from {start} to {end:?}, target {target}");
        }
    }

    #[test]
    fn cycles_at_the_edges() {
        for (period, anchor_day, start, end, target, cycles) in [
            ("monthly", 1, "2026-01-15", "", "2026-01-14", "0"),
            ("monthly", 1, "2026-01-15", "2026-01-15", "2026-05-01", "0"),
            // The service ends inside of the leading stub: 3 of the 31 days of January.
            ("monthly", 1, "2026-01-15", "2026-01-18", "2026-05-01", "0.096774194"),
            // Anchor 31: January 31, February 28, March 31.
            ("monthly", 31, "2026-01-31", "", "2026-03-30", "2"),
            ("monthly", 31, "2026-01-31", "", "2026-03-31", "3"),
            // The last cycle begins on February 28; 10 of the 28 days to March 28.
            ("monthly", 31, "2026-01-31", "2026-03-10", "2026-12-01", "1.357142857"),
            ("weekly", 1, "2026-01-14", "", "2026-01-28", "3"),
            ("weekly", 1, "2026-01-14", "2026-01-29", "2026-12-28", "2.142857143"),
            ("quarterly", 15, "2026-01-15", "", "2026-07-14", "2"),
        ] {
            let end = (!end.is_empty()).then(|| date(end));
            let got = billing_cycles(date(start), end, date(target), period.parse().unwrap(), anchor_day).unwrap();
            assert_eq!(got, d(cycles), "{period} on {anchor_day} from {start} to {end:?}, target {target}");
        }
        let monthly = Cycle::Months(1);
        assert!(billing_cycles(date("2026-01-02"), Some(date("2026-01-01")), date("2026-02-01"), monthly, 1).is_err());
        assert!(billing_cycles(date("2026-01-02"), None, date("2026-02-01"), monthly, 0).is_err());
        assert!("fortnightly".parse::<Cycle>().is_err());
    }
}
