//! Time in prices as SQL functions: proration, local calendars, tariffs by the time of day, calls.

use jiff::civil::Date;

use super::binding::Kind::{self, Boolean, Dates, Instant, Integer, List, Number, Text};
use super::binding::Need::{Given, Nullable, Optional};
use super::binding::{Definition, Elements, Row, Value};
use crate::pricing::calls::{self, CallRates, Rate};
use crate::pricing::clock::{self, time_of_day};
use crate::pricing::time_of_use::{self, TariffWindow};
use crate::pricing::{PricingError, computing, cycles, days};

/// Members of `windows`.
const WINDOWS: Kind = List(&[("days", Text), ("from_time", Text), ("to_time", Text), ("unit_price", Number)]);
/// Members of `holidays`.
const HOLIDAYS: Kind = List(&[("date", Kind::Date)]);
/// Members of `rates`.
const RATES: Kind = List(&[
    ("days", Text),
    ("start", Text),
    ("connect_fee", Number),
    ("from_s", Number),
    ("rate", Number),
    ("per_s", Number),
    ("increment_s", Number),
]);

fn windows_of(elements: &Elements<'_>) -> Result<Vec<TariffWindow>, PricingError> {
    (0..elements.len())
        .map(|row| {
            Ok(TariffWindow {
                days: elements.text("days", row).parse()?,
                from: time_of_day(elements.text("from_time", row))?,
                to: time_of_day(elements.text("to_time", row))?,
                unit_price: elements.number("unit_price", row)?.unwrap_or_default(),
            })
        })
        .collect()
}

fn dates_of(elements: &Elements<'_>) -> Result<Vec<Date>, PricingError> {
    (0..elements.len()).filter_map(|row| elements.date("date", row).transpose()).collect()
}

fn rates_of(elements: &Elements<'_>) -> Result<CallRates, PricingError> {
    let rates: Vec<Rate> = (0..elements.len())
        .map(|row| {
            let number = |name: &str| elements.number(name, row).map(Option::unwrap_or_default);
            Ok(Rate {
                days: elements.text("days", row).parse()?,
                start: time_of_day(elements.text("start", row))?,
                connect_fee: number("connect_fee")?,
                from_s: number("from_s")?,
                rate: number("rate")?,
                per_s: number("per_s")?,
                increment_s: number("increment_s")?,
            })
        })
        .collect::<Result<_, PricingError>>()?;
    CallRates::new(&rates)
}

fn call_of(row: &Row<'_>) -> Result<calls::CallCharge, PricingError> {
    let rates = row.list(3, rates_of)?.unwrap_or_default();
    let places = row.integer(5).and_then(|places| i32::try_from(places).ok());
    calls::call_charge(row.instant(0).unwrap_or_default(), row.number(1)?, &row.zone(2)?, &rates, row.word(4)?, places)
}

fn parts_of(row: &Row<'_>) -> Result<Vec<time_of_use::Part>, PricingError> {
    let windows = row.list(4, windows_of)?.unwrap_or_default();
    let holidays = row.list(5, dates_of)?.unwrap_or_default();
    time_of_use::time_of_use(row.instant(0).unwrap_or_default(), row.instant(1), row.number(2)?, &row.zone(3)?, &windows, &holidays)
}

fn whole(days: i64) -> Value {
    Value::Integer(days)
}

const CALL: &[super::binding::Parameter] = &[
    ("start", Instant, Given),
    ("seconds", Number, Given),
    ("timezone", Text, Given),
    ("rates", RATES, Given),
    ("kind", Text, Optional),
    ("increment_places", Integer, Optional),
];
const USE: &[super::binding::Parameter] = &[
    ("start", Instant, Given),
    ("end", Instant, Nullable),
    ("quantity", Number, Given),
    ("timezone", Text, Given),
    ("windows", WINDOWS, Given),
    ("holidays", HOLIDAYS, Nullable),
];

/// The functions of this file.
pub(super) const FUNCTIONS: &[Definition] = &[
    Definition {
        name: "prorate",
        parameters: &[
            ("amount", Number, Given),
            ("active_from", Instant, Nullable),
            ("active_to", Instant, Nullable),
            ("window_start", Instant, Given),
            ("window_end", Instant, Given),
        ],
        result: Number,
        call: |row| {
            let (start, end) = (row.instant(3).unwrap_or_default(), row.instant(4).unwrap_or_default());
            days::prorate(row.number(0)?, row.instant(1), row.instant(2), start, end).map(Value::Number)
        },
    },
    Definition {
        name: "prorate_days",
        parameters: &[("amount", Number, Given), ("days", Number, Given), ("days_in_period", Number, Given)],
        result: Number,
        call: |row| {
            let (amount, days, period) = (row.number(0)?, row.number(1)?, row.number(2)?);
            let what = format_args!("{amount} × {days} ÷ {period} days:");
            amount.scaled_by(days.raw(), period.raw()).map(Value::Number).map_err(computing(what))
        },
    },
    Definition {
        name: "prorate_by_day",
        parameters: &[
            ("amount", Number, Given),
            ("active_from", Instant, Nullable),
            ("active_to", Instant, Nullable),
            ("window_start", Instant, Given),
            ("window_end", Instant, Given),
            ("timezone", Text, Given),
        ],
        result: Number,
        call: |row| {
            let amount = row.number(0)?;
            let (start, end) = (row.instant(3).unwrap_or_default(), row.instant(4).unwrap_or_default());
            let (active, all) = days::active_days(row.instant(1), row.instant(2), start, end, &row.zone(5)?)?;
            let what = format_args!("{amount} × {active} ÷ {all} days:");
            amount.scaled_by(active.into(), all.into()).map(Value::Number).map_err(computing(what))
        },
    },
    Definition {
        name: "days_between",
        parameters: &[("from", Kind::Date, Given), ("to", Kind::Date, Given), ("month_days", Integer, Optional)],
        result: Integer,
        call: |row| match row.date(0)?.zip(row.date(1)?) {
            Some((from, to)) => days::days_between(from, to, row.integer(2)).map(whole),
            None => Ok(Value::Null),
        },
    },
    Definition {
        name: "elapsed_days",
        parameters: &[("from", Instant, Given), ("to", Instant, Given), ("timezone", Text, Given)],
        result: Integer,
        call: |row| days::elapsed_days(row.instant(0).unwrap_or_default(), row.instant(1).unwrap_or_default(), &row.zone(2)?).map(whole),
    },
    Definition {
        name: "local_date",
        parameters: &[("instant", Instant, Given), ("timezone", Text, Given)],
        result: Kind::Date,
        call: |row| clock::local_date(row.instant(0).unwrap_or_default(), &row.zone(1)?).map(Value::Date),
    },
    Definition {
        name: "local_midnight",
        parameters: &[("date", Kind::Date, Given), ("timezone", Text, Given)],
        result: Instant,
        call: |row| match row.date(0)? {
            Some(date) => clock::local_midnight(date, &row.zone(1)?).map(Value::Instant),
            None => Ok(Value::Null),
        },
    },
    Definition {
        name: "weekday",
        parameters: &[("date", Kind::Date, Given)],
        result: Integer,
        call: |row| Ok(row.date(0)?.map_or(Value::Null, |date| whole(clock::weekday(date).into()))),
    },
    Definition {
        name: "time_bucket",
        parameters: &[("instant", Instant, Given), ("length", Text, Given), ("timezone", Text, Optional)],
        result: Instant,
        call: |row| row.bucket_start(1, 2, row.instant(0).unwrap_or_default()).map(Value::Instant),
    },
    Definition {
        name: "seconds_between",
        parameters: &[("from", Instant, Given), ("to", Instant, Given)],
        result: Number,
        call: |row| {
            let micros = i128::from(row.instant(1).unwrap_or_default()) - i128::from(row.instant(0).unwrap_or_default());
            let one = ratemill_schemas::Decimal::from_integer(1);
            one.scaled_by(micros, 1_000_000).map(Value::Number).map_err(computing("seconds between two instants:"))
        },
    },
    Definition {
        name: "in_time_of_day",
        parameters: &[("instant", Instant, Given), ("timezone", Text, Given), ("from_time", Text, Given), ("to_time", Text, Given)],
        result: Boolean,
        call: |row| {
            let (from, to) = (time_of_day(row.text(2).unwrap_or_default())?, time_of_day(row.text(3).unwrap_or_default())?);
            clock::in_time_of_day(row.instant(0).unwrap_or_default(), &row.zone(1)?, from, to).map(Value::Boolean)
        },
    },
    Definition {
        name: "add_months",
        parameters: &[("date", Kind::Date, Given), ("months", Integer, Given), ("anchor_day", Integer, Optional)],
        result: Kind::Date,
        call: |row| match row.date(0)? {
            Some(date) => cycles::add_months(date, row.integer(1).unwrap_or_default(), row.integer(2)).map(Value::Date),
            None => Ok(Value::Null),
        },
    },
    Definition {
        name: "period_starts",
        parameters: &[("from", Kind::Date, Given), ("until", Kind::Date, Given), ("anchor_day", Integer, Given)],
        result: Dates,
        call: |row| match row.date(0)?.zip(row.date(1)?) {
            Some((from, until)) => {
                let starts = cycles::period_starts(from, until, row.integer(2).unwrap_or_default())?;
                Ok(Value::Rows(starts.into_iter().map(|date| vec![Value::Date(date)]).collect()))
            }
            None => Ok(Value::Null),
        },
    },
    Definition {
        name: "billing_cycles",
        parameters: &[
            ("start", Kind::Date, Given),
            ("end", Kind::Date, Nullable),
            ("target", Kind::Date, Given),
            ("period", Text, Given),
            ("anchor_day", Integer, Given),
        ],
        result: Number,
        call: |row| match row.date(0)?.zip(row.date(2)?) {
            Some((start, target)) => {
                let cycle = row.text(3).unwrap_or_default().parse()?;
                cycles::billing_cycles(start, row.date(1)?, target, cycle, row.integer(4).unwrap_or_default()).map(Value::Number)
            }
            None => Ok(Value::Null),
        },
    },
    Definition { name: "time_of_use", parameters: USE, result: Number, call: |row| time_of_use::total(&parts_of(row)?).map(Value::Number) },
    Definition {
        name: "time_of_use_breakdown",
        parameters: USE,
        result: List(&[("from", Instant), ("to", Instant), ("quantity", Number), ("unit_price", Number), ("amount", Number)]),
        call: |row| {
            let part = |part: time_of_use::Part| {
                vec![
                    Value::Instant(part.from),
                    Value::Instant(part.to),
                    Value::Number(part.quantity),
                    Value::Number(part.unit_price),
                    Value::Number(part.amount),
                ]
            };
            Ok(Value::Rows(parts_of(row)?.into_iter().map(part).collect()))
        },
    },
    Definition { name: "call_charge", parameters: CALL, result: Number, call: |row| Ok(Value::Number(call_of(row)?.amount)) },
    Definition {
        name: "call_breakdown",
        parameters: CALL,
        result: List(&[("stretch", Integer), ("seconds", Number), ("amount", Number)]),
        call: |row| {
            let stretch = |(number, stretch): (i64, calls::Stretch)| {
                vec![Value::Integer(number), Value::Number(stretch.seconds), Value::Number(stretch.amount)]
            };
            Ok(Value::Rows((1..).zip(call_of(row)?.stretches).map(stretch).collect()))
        },
    },
];
