//! Calls and data sessions: a walk through day parts, rate groups and increments.

use std::str::FromStr;

use jiff::tz::TimeZone;
use ratemill_schemas::time::DAY;
use ratemill_schemas::{Decimal, Rounding};

use super::clock::{LocalTime, SECOND, Weekdays, clock_reaches, format_time_of_day, local_time};
use super::exact::{ONE, steps_up};
use super::{PricingError, computing, not_negative, positive};

/// Most stretches that a call may be split into: a year of hourly day parts.
const STRETCHES_MAX: usize = 10_000;
/// Units of 10⁻¹⁸ seconds in a microsecond.
const MICROSECOND: i128 = ONE / SECOND as i128;

/// One row of a rate table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Weekdays of the day part.
    pub(crate) days: Weekdays,
    /// The second of the day at which the day part begins; it runs until the next start of that day, or midnight.
    pub(crate) start: i64,
    /// Due once for a call that begins in this day part.
    pub(crate) connect_fee: Decimal,
    /// Seconds into the call from which this rate counts.
    pub(crate) from_s: Decimal,
    /// Price of `per_s` seconds.
    pub(crate) rate: Decimal,
    /// Seconds that `rate` is for.
    pub(crate) per_s: Decimal,
    /// A stretch is rounded up to whole multiples of this.
    pub(crate) increment_s: Decimal,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum CallKind {
    /// Seconds, which move on through the day parts.
    #[default]
    Voice,
    /// Units of data: the day part at the start holds throughout.
    Data,
}

impl FromStr for CallKind {
    type Err = PricingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "voice" => Ok(Self::Voice),
            "data" => Ok(Self::Data),
            _ => Err(PricingError::Unknown { what: "kind", given: text.to_owned(), valid: "voice, data" }),
        }
    }
}

/// The billed part of a call at one rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Billed seconds, whole increments.
    pub(crate) seconds: Decimal,
    /// Their price, without the connection fee.
    pub(crate) amount: Decimal,
}

/// The charge of one call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct CallCharge {
    /// Connection fee and stretches together.
    pub(crate) amount: Decimal,
    /// The stretches in order; none for a call of zero length.
    pub(crate) stretches: Vec<Stretch>,
}

/// A rate table, ordered for the walk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CallRates {
    /// Monday first; the day parts of each in order of their start.
    weekdays: [Vec<DayPart>; 7],
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct DayPart {
    /// Second of the day.
    start: i64,
    connect_fee: Decimal,
    /// In order of `from_s`.
    groups: Vec<Rate>,
}

impl CallRates {
    /// Orders the rows, which may come in any order.
    ///
    /// # Errors
    /// Rates that contradict each other, or that could not be walked through.
    pub(crate) fn new(rates: &[Rate]) -> Result<Self, PricingError> {
        let mut table = Self::default();
        for rate in rates {
            positive("per_s", rate.per_s)?;
            positive("increment_s", rate.increment_s)?;
            not_negative("from_s", rate.from_s)?;
            if rate.start >= DAY / SECOND {
                return Err(PricingError::TimeOfDay(format_time_of_day(rate.start)));
            }
            for (parts, weekday) in table.weekdays.iter_mut().zip(1_i8..) {
                if rate.days.contains(weekday) {
                    add(parts, weekday, rate)?;
                }
            }
        }
        Ok(table)
    }

    /// The day part that holds at a local time.
    fn at(&self, local: LocalTime) -> Option<&DayPart> {
        let parts = self.of_day(local.weekday);
        parts[..parts.partition_point(|part| part.start * SECOND <= local.time)].last()
    }

    fn of_day(&self, weekday: i8) -> &[DayPart] {
        usize::try_from(weekday - 1).ok().and_then(|day| self.weekdays.get(day)).map_or(&[], Vec::as_slice)
    }

    /// The day part at `instant`, and the first instant at which another one holds.
    fn until(&self, instant: i64, zone: &TimeZone) -> Result<Option<(&DayPart, i64)>, PricingError> {
        let begin = local_time(instant, zone)?;
        let Some(part) = self.at(begin) else { return Ok(None) };
        let next = self.of_day(begin.weekday).iter().map(|part| part.start * SECOND).find(|start| *start > begin.time);
        let (mut at, mut now) = (instant, begin);
        // Where clocks are changed inside a day part, it goes on.
        loop {
            at = clock_reaches(next.unwrap_or(DAY), at, now, zone)?;
            now = local_time(at, zone)?;
            let same = now.date == begin.date && self.at(now).is_some_and(|held| held.start == part.start);
            if !same {
                return Ok(Some((part, at)));
            }
        }
    }
}

fn add(parts: &mut Vec<DayPart>, weekday: i8, rate: &Rate) -> Result<(), PricingError> {
    let start = || format_time_of_day(rate.start);
    let position = parts.partition_point(|part| part.start < rate.start);
    if parts.get(position).is_none_or(|part| part.start != rate.start) {
        parts.insert(position, DayPart { start: rate.start, connect_fee: rate.connect_fee, groups: Vec::new() });
    }
    let part = &mut parts[position];
    if part.connect_fee != rate.connect_fee {
        return Err(PricingError::TwoFees { weekday, start: start(), first: part.connect_fee, second: rate.connect_fee });
    }
    let position = part.groups.partition_point(|group| group.from_s < rate.from_s);
    if part.groups.get(position).is_some_and(|group| group.from_s == rate.from_s) {
        return Err(PricingError::TwoRates { weekday, start: start(), from_s: rate.from_s });
    }
    part.groups.insert(position, *rate);
    Ok(())
}

/// The charge of a call that begins at `start` and lasts `seconds`.
///
/// The walk stops at the end of the call, the next day part or the next group of rates; the stretch up to there is rounded
/// up to whole increments of its group, and the walk goes on from where that ends, so that a stretched part swallows what
/// follows. A stretch costs `seconds × rate ÷ per_s`; with `increment_places` d, each of its n increments costs
/// `round(round(cost, d) ÷ n, d)`, halves up. The connection fee of the first day part is due once.
pub(crate) fn call_charge(
    start: i64,
    seconds: Decimal,
    zone: &TimeZone,
    rates: &CallRates,
    kind: CallKind,
    increment_places: Option<i32>,
) -> Result<CallCharge, PricingError> {
    let mut charge = CallCharge::default();
    if not_negative("length of the call", seconds)? == Decimal::ZERO {
        return Ok(charge);
    }
    let what = format_args!("price of a call of {seconds} seconds:");
    let failed = computing(what);
    let mut walk = Walk { start, zone, rates, kind, part: None };
    charge.amount = walk.part_at(Decimal::ZERO)?.connect_fee;
    let mut at = Decimal::ZERO;
    while at < seconds {
        if charge.stretches.len() == STRETCHES_MAX {
            return Err(PricingError::TooManyParts { what: format!("a call of {seconds} seconds"), limit: STRETCHES_MAX });
        }
        let (group, stop) = walk.next(at)?;
        let length = stop.map_or(seconds, |stop| stop.min(seconds)).subtract(at).map_err(failed)?;
        let increments = steps_up(length, group.increment_s);
        let billed = group.increment_s.scaled_by(increments, 1).map_err(failed)?;
        let amount = price(billed, increments, group, increment_places).map_err(failed)?;
        charge.amount = charge.amount.plus(amount).map_err(failed)?;
        charge.stretches.push(Stretch { seconds: billed, amount });
        at = at.plus(billed).map_err(failed)?;
    }
    Ok(charge)
}

fn price(billed: Decimal, increments: i128, group: &Rate, places: Option<i32>) -> Result<Decimal, ratemill_schemas::DecimalError> {
    let cost = billed.scaled_by(group.rate.raw(), group.per_s.raw())?;
    let Some(places) = places else { return Ok(cost) };
    let each = cost.round(places, Rounding::HalfUp)?.scaled_by(1, increments)?.round(places, Rounding::HalfUp)?;
    each.scaled_by(increments, 1)
}

/// Where a call is in the rate table.
struct Walk<'a> {
    start: i64,
    zone: &'a TimeZone,
    rates: &'a CallRates,
    kind: CallKind,
    /// The current day part and the second of the call at which it ends; of data never.
    part: Option<(&'a DayPart, Option<Decimal>)>,
}

impl<'a> Walk<'a> {
    /// The group of rates at a second of the call, and the second at which another may hold.
    fn next(&mut self, at: Decimal) -> Result<(&'a Rate, Option<Decimal>), PricingError> {
        let groups = &self.part_at(at)?.groups;
        let position = groups.partition_point(|group| group.from_s <= at);
        let group = position.checked_sub(1).and_then(|position| groups.get(position)).ok_or_else(|| self.no_rate(at))?;
        let part_end = self.part.and_then(|(_, end)| end);
        let next_group = groups.get(position).map(|group| group.from_s);
        Ok((group, part_end.into_iter().chain(next_group).min()))
    }

    fn part_at(&mut self, at: Decimal) -> Result<&'a DayPart, PricingError> {
        if let Some((part, end)) = self.part
            && end.is_none_or(|end| at < end)
        {
            return Ok(part);
        }
        let found = self.rates.until(self.instant(at)?, self.zone)?;
        let (part, until) = found.ok_or_else(|| self.no_rate(at))?;
        let end = match self.kind {
            CallKind::Voice => Some(self.second(until)?),
            CallKind::Data => None,
        };
        self.part = Some((part, end));
        Ok(part)
    }

    /// The instant of a second of the call.
    fn instant(&self, at: Decimal) -> Result<i64, PricingError> {
        let instant = i64::try_from(at.raw() / MICROSECOND).ok().and_then(|passed| self.start.checked_add(passed));
        instant.ok_or_else(|| PricingError::OutOfCalendar(format!("a call of {at} seconds")))
    }

    /// The second of the call at an instant.
    fn second(&self, instant: i64) -> Result<Decimal, PricingError> {
        let passed = i128::from(instant) - i128::from(self.start);
        Decimal::from_raw(passed * MICROSECOND).map_err(computing("length of a call:"))
    }

    fn no_rate(&self, at: Decimal) -> PricingError {
        let start = local_time(self.start, self.zone).map_or_else(|error| error.to_string(), |local| local.to_string());
        PricingError::NoRate { start, seconds: at }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ratemill_schemas::time::parse_instant;
    use ratemill_schemas::windows::zone;

    use super::*;
    use crate::pricing::clock::time_of_day;
    use crate::pricing::d;

    /// Rows of `days start connect_fee from_s rate per_s increment_s`.
    fn rates(rows: &str) -> Vec<Rate> {
        let rate = |row: &str| {
            let fields: Vec<&str> = row.split_whitespace().collect();
            Rate {
                days: fields[0].parse().unwrap(),
                start: time_of_day(fields[1]).unwrap(),
                connect_fee: d(fields[2]),
                from_s: d(fields[3]),
                rate: d(fields[4]),
                per_s: d(fields[5]),
                increment_s: d(fields[6]),
            }
        };
        rows.split(';').map(rate).collect()
    }

    fn charge(name: &str, rows: &str, start: &str, seconds: &str, kind: CallKind, places: Option<i32>) -> Result<CallCharge, PricingError> {
        let table = CallRates::new(&rates(rows))?;
        call_charge(parse_instant(start).unwrap(), d(seconds), &zone(name).unwrap(), &table, kind, places)
    }

    fn stretches(charge: &CallCharge) -> String {
        charge.stretches.iter().map(|s| format!("{}:{}", s.seconds, s.amount)).collect::<Vec<_>>().join(" ")
    }

    const PEAK: &str = "1-5 00:00 1 0 1 1 1; 1-5 18:00 0 0 0.5 1 1; 6,7 00:00 0 0 0.5 1 1";
    const FIRST_MINUTE: &str = "1-7 00:00 0 0 1 1 60; 1-7 00:00 0 60 1 1 1";

    /// Figures of cgrates/cgrates, rounded as its cases say.
    #[test]
    fn amounts_of_published_cases() {
        use CallKind::{Data, Voice};
        for (rows, start, seconds, kind, places, round, amount) in [
            (PEAK, "2012-02-08T23:50:00Z", "30", Voice, Some(6), Some((Rounding::HalfUp, 4)), "15"),
            ("1-7 00:00 0 0 0.1 60 1", "2017-02-02T17:30:00Z", "180", Voice, Some(6), None, "0.30006"),
            (FIRST_MINUTE, "2013-10-08T09:23:02Z", "85", Voice, Some(6), None, "85"),
            (FIRST_MINUTE, "2013-10-07T14:50:00Z", "132", Voice, Some(6), None, "132"),
            (FIRST_MINUTE, "2012-02-02T17:30:00Z", "1", Data, Some(6), None, "60"),
            ("1-7 00:00 0.15 0 0.05 60 1", "2012-02-02T17:30:00Z", "24", Voice, Some(6), Some((Rounding::Up, 2)), "0.17"),
            ("1-7 00:00 0.15 0 0.05 60 1", "2012-02-02T17:30:00Z", "180", Voice, Some(6), Some((Rounding::Up, 2)), "0.3"),
            ("1-7 00:00 0 0 1 60 1", "2012-02-05T17:45:00Z", "600", Voice, None, None, "10"),
            ("1-7 00:00 0 0 1 1 1", "2013-08-07T17:30:00Z", "0", Voice, Some(5), Some((Rounding::Up, 4)), "0"),
            ("1-7 00:00 0 0 0.002 10 10", "2012-01-03T00:05:00Z", "20", Data, Some(5), Some((Rounding::Up, 4)), "0.004"),
            ("1-7 00:00 0 0 0.002 10 10", "2012-01-03T00:05:00Z", "640113", Data, Some(5), Some((Rounding::Up, 4)), "128.024"),
            ("1-7 00:00 0 0 10 60 1", "2017-12-01T14:25:00Z", "10", Voice, Some(5), Some((Rounding::Up, 4)), "1.6667"),
            ("1-7 00:00 0 0 0.033 1 1", "2017-12-01T14:25:00Z", "10", Voice, Some(5), Some((Rounding::Up, 1)), "0.4"),
            ("1-7 00:00 0 0 0.01 1 1", "2014-08-04T13:00:00Z", "3600", Voice, Some(5), Some((Rounding::Up, 4)), "36"),
            ("1-7 00:00 0 0 0.1 60 1", "2012-02-05T17:45:00Z", "60", Voice, None, None, "0.1"),
            ("1-7 00:00 0 0 1 60 1", "2024-01-01T00:00:00Z", "15", Voice, None, None, "0.25"),
        ] {
            let exact = charge("UTC", rows, start, seconds, kind, places).unwrap().amount;
            let got = round.map_or(exact, |(mode, places)| exact.round(places, mode).unwrap());
            assert_eq!(got, d(amount), "{seconds} s by {rows}");
        }
    }

    /// The same source: stretches are rounded up and swallow what follows.
    #[test]
    fn stretches_of_published_cases() {
        for (rows, seconds, amount, expected) in [
            ("1-7 00:00 0 0 2 1 1; 1-7 00:00 0 900 1 1 1", "1800", "2700", "900:1800 900:900"),
            ("1-7 00:00 0 0 2 1 1; 1-7 00:00 0 30 1 1 60", "60", "120", "30:60 60:60"),
            ("1-7 00:00 0 0 0 1 60; 1-7 00:00 0 30 0 1 1", "45", "0", "60:0"),
            ("1-7 00:00 0 0 0 1 15; 1-7 00:00 0 20 0 1 1", "40", "0", "30:0 10:0"),
            ("1-7 00:00 0 0 0 1 45; 1-7 00:00 0 30 0 1 1", "60", "0", "45:0 15:0"),
        ] {
            let charge = charge("UTC", rows, "2012-02-03T17:30:00Z", seconds, CallKind::Voice, None).unwrap();
            assert_eq!((charge.amount, stretches(&charge).as_str()), (d(amount), expected), "{seconds} s by {rows}");
        }
    }

    #[test]
    fn calls_cross_day_parts_and_midnight() {
        for (name, start, seconds, amount, expected) in [
            // The connection fee is that of the first day part.
            ("UTC", "2012-02-08T17:59:30Z", "60", "46", "30:30 30:15"),
            ("UTC", "2012-02-08T18:00:00Z", "60", "30", "60:30"),
            ("UTC", "2012-02-08T23:59:30Z", "60", "45", "30:15 30:30"),
            // Friday evening into Saturday, in UTC and by the clocks of Berlin.
            ("UTC", "2012-02-10T23:59:30Z", "60", "30", "30:15 30:15"),
            ("Europe/Berlin", "2012-02-10T22:59:30Z", "60", "30", "30:15 30:15"),
            ("UTC", "2012-02-08T10:00:00Z", "0.000001", "2", "1:1"),
        ] {
            let charge = charge(name, PEAK, start, seconds, CallKind::Voice, None).unwrap();
            assert_eq!((charge.amount, stretches(&charge).as_str()), (d(amount), expected), "{seconds} s from {start} in {name}");
        }
        let data = charge("UTC", PEAK, "2012-02-08T17:59:30Z", "60", CallKind::Data, None).unwrap();
        assert_eq!(stretches(&data), "60:60");
    }

    #[test]
    fn clocks_that_change_during_a_call() {
        let nights = "1-7 00:00 0 0 1 3600 1; 1-7 06:00 0 0 2 3600 1";
        for (start, seconds, expected) in [
            // Berlin: 5 hours of night in spring and 7 in autumn, each in one stretch.
            ("2026-03-28T23:00:00Z", "21600", "18000:5 3600:2"),
            ("2026-10-24T22:00:00Z", "28800", "25200:7 3600:2"),
        ] {
            let charge = charge("Europe/Berlin", nights, start, seconds, CallKind::Voice, None).unwrap();
            assert_eq!(stretches(&charge), expected, "{start}");
        }
        // The hour from 02:00 comes twice, and so does what begins at 02:30.
        let half = "1-7 00:00 0 0 1 3600 1; 1-7 02:30 0 0 2 3600 1";
        let charge = charge("Europe/Berlin", half, "2026-10-25T00:00:00Z", "7200", CallKind::Voice, None).unwrap();
        assert_eq!(stretches(&charge), "1800:0.5 1800:1 1800:0.5 1800:1");
    }

    #[test]
    fn what_cannot_be_rated_says_so() {
        let day = "1-5 08:00 0 0 1 60 1";
        let on = |rows, start, seconds| charge("UTC", rows, start, seconds, CallKind::Voice, None).unwrap_err().to_string();
        for (rows, start, seconds, text) in [
            (day, "2012-02-08T07:00:00Z", "60", "no rate applies 0 seconds into the call that began at 2012-02-08 07:00:00 (weekday 3)"),
            (day, "2012-02-10T23:59:00Z", "90", "no rate applies 60 seconds into the call that began at 2012-02-10 23:59:00 (weekday 5)"),
            (
                "1-7 00:00 0 5 1 60 1",
                "2012-02-08T07:00:00Z",
                "60",
                "no rate applies 0 seconds into the call that began at 2012-02-08 07:00:00 (weekday 3)",
            ),
            (day, "2012-02-08T09:00:00Z", "-1", "length of the call -1 is below zero"),
            ("1-7 00:00 0 0 1 0 1", "2012-02-08T09:00:00Z", "1", "per_s 0 is not above zero"),
            ("1-7 00:00 0 0 1 60 0", "2012-02-08T09:00:00Z", "1", "increment_s 0 is not above zero"),
            (
                "1-7 24:00 0 0 1 60 1",
                "2012-02-08T09:00:00Z",
                "1",
                "`24:00:00` is not a time of day; write it like '07:00', '07:00:30' or '24:00'",
            ),
            (
                "1-7 00:00 0 0 1 60 1; 3 00:00 0 0 2 60 1",
                "2012-02-08T09:00:00Z",
                "1",
                "weekday 3 has two rates from 00:00:00 and second 0 of the call",
            ),
            (
                "1-7 00:00 1 0 1 60 1; 3 00:00 0 9 2 60 1",
                "2012-02-08T09:00:00Z",
                "1",
                "weekday 3 has two connection fees, 1 and 0, from 00:00:00",
            ),
            ("1-7 00:00 0 0 1 60 1", "2012-02-08T09:00:00Z", "1e9", "a call of 1000000000 seconds falls into more than 10000 parts"),
        ] {
            assert_eq!(on(rows, start, seconds), text);
        }
        // A long session without day parts is one stretch, however many increments it has.
        let long = charge("UTC", "1-7 00:00 0 0 1 1 0.000001", "2012-02-08T09:00:00Z", "1e12", CallKind::Data, None).unwrap();
        assert_eq!(long.stretches.len(), 1);
    }
}
