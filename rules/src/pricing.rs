//! The mathematics of prices: plain functions over exact decimals and instants.
//!
//! Nothing here knows SQL or Arrow; the functions of rules bind to these and add null handling and types. Every
//! result is computed in full and rounded once, half-even to 18 places, unless its formula itself rounds.

pub(crate) mod blocks;
pub(crate) mod calls;
pub(crate) mod clock;
pub(crate) mod cycles;
pub(crate) mod days;
pub(crate) mod exact;
pub(crate) mod history;
pub(crate) mod packages;
pub(crate) mod percentage;
pub(crate) mod tiers;
pub(crate) mod time_of_use;

use std::fmt;

use jiff::civil::Date;
use ratemill_schemas::windows::WindowError;
use ratemill_schemas::{Decimal, DecimalError};

/// Why a price cannot be computed. The texts name the values; who adds rule, window and customer is the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PricingError {
    /// A step of the computation left the decimals.
    #[error("{what} {error}")]
    Number {
        /// What was being computed, with its figures.
        what: String,
        /// Why that is no decimal.
        error: DecimalError,
    },
    /// A list of tiers or blocks has no element.
    #[error("the list of {0} is empty")]
    Empty(&'static str),
    /// A bound is not above the one before it.
    #[error("tiers do not ascend: up_to {up_to} follows {low}")]
    TiersDescend {
        /// The bound before, 0 for the first tier.
        low: Decimal,
        /// The bound that should be above it.
        up_to: Decimal,
    },
    /// The last tier has a bound and the quantity is above it.
    #[error("quantity {quantity} is above the last tier, which ends at {low}; give the last tier an empty up_to")]
    AboveTiers {
        /// What was to be priced.
        quantity: Decimal,
        /// Where the last tier ends.
        low: Decimal,
    },
    /// A size, step or length must be above zero.
    #[error("{what} {value} is not above zero")]
    NotPositive {
        /// What it is.
        what: &'static str,
        /// What was given.
        value: Decimal,
    },
    /// A figure must not be below zero.
    #[error("{what} {value} is below zero")]
    Negative {
        /// What it is.
        what: &'static str,
        /// What was given.
        value: Decimal,
    },
    /// Blocks are counted in whole numbers.
    #[error("max_blocks {0} is not a whole number")]
    PartBlock(Decimal),
    /// A percentile outside its range.
    #[error("percentile {0} is not above 0 and at most 100")]
    Percent(Decimal),
    /// A word that is none of the choices.
    #[error("{what} `{given}` is unknown; it is one of {valid}")]
    Unknown {
        /// What the word chooses.
        what: &'static str,
        /// What was given.
        given: String,
        /// All that is valid.
        valid: &'static str,
    },
    /// A text of weekdays that is not of the accepted form.
    #[error("`{0}` does not name weekdays; write them like '1-5', '6,7' or '1-7' (1 is Monday)")]
    Weekdays(String),
    /// A text that is no time of day.
    #[error("`{0}` is not a time of day; write it like '07:00', '07:00:30' or '24:00'")]
    TimeOfDay(String),
    /// The anchor day of a period is no day of a month.
    #[error("anchor day {0} is not between 1 and 31")]
    AnchorDay(i64),
    /// A month is given a length that no calendar has.
    #[error("month_days {0} is not between 1 and 31")]
    MonthDays(i64),
    /// A date that the calendar cannot hold would be needed.
    #[error("{0} is outside the calendar")]
    OutOfCalendar(String),
    /// A period that ends before it begins, or is empty where it must not be.
    #[error("{what} ends at {end}, which is not after its start {start}")]
    Backwards {
        /// Which period.
        what: &'static str,
        /// Its start.
        start: String,
        /// Its end.
        end: String,
    },
    /// A window of the calendar cannot be had.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// No tariff window covers a local time.
    #[error("no tariff window covers {0}; every time of every day needs one")]
    NoTariff(String),
    /// No rate applies at a point of the call.
    #[error("no rate applies {seconds} seconds into the call that began at {start}")]
    NoRate {
        /// Local start of the call.
        start: String,
        /// How far the call has gone.
        seconds: Decimal,
    },
    /// Two rates are meant for the same point of a call.
    #[error("weekday {weekday} has two rates from {start} and second {from_s} of the call")]
    TwoRates {
        /// 1 is Monday.
        weekday: i8,
        /// Start of the day part.
        start: String,
        /// Start of the group.
        from_s: Decimal,
    },
    /// The rows of one day part disagree on its connection fee.
    #[error("weekday {weekday} has two connection fees, {first} and {second}, from {start}")]
    TwoFees {
        /// 1 is Monday.
        weekday: i8,
        /// Start of the day part.
        start: String,
        /// One of them.
        first: Decimal,
        /// The other.
        second: Decimal,
    },
    /// A walk through time would not come to an end in reasonable time.
    #[error("{what} falls into more than {limit} parts")]
    TooManyParts {
        /// What is being split.
        what: String,
        /// How many are allowed.
        limit: usize,
    },
    /// Two different values at one time: neither can be preferred.
    #[error("there are two {what} at {time}: {first} and {second}")]
    Ambiguous {
        /// What there are two of.
        what: &'static str,
        /// The time of both.
        time: String,
        /// The lesser.
        first: Decimal,
        /// The greater.
        second: Decimal,
    },
    /// A register cannot have shown this.
    #[error("register reading {reading} at {time} is outside 0 to {rollover}, the capacity of the register")]
    AboveRollover {
        /// What was read.
        reading: Decimal,
        /// When.
        time: String,
        /// What the register holds at most.
        rollover: Decimal,
    },
}

/// Turns a [`DecimalError`] into one that says what was being computed; the text is only made on failure.
pub(crate) fn computing<W: fmt::Display + Copy>(what: W) -> impl Fn(DecimalError) -> PricingError + Copy {
    move |error| PricingError::Number { what: what.to_string(), error }
}

/// `value`, or an error when it is not above zero.
fn positive(what: &'static str, value: Decimal) -> Result<Decimal, PricingError> {
    if value > Decimal::ZERO { Ok(value) } else { Err(PricingError::NotPositive { what, value }) }
}

/// `value`, or an error when it is below zero.
fn not_negative(what: &'static str, value: Decimal) -> Result<Decimal, PricingError> {
    if value >= Decimal::ZERO { Ok(value) } else { Err(PricingError::Negative { what, value }) }
}

fn backwards(what: &'static str, start: impl fmt::Display, end: impl fmt::Display) -> PricingError {
    PricingError::Backwards { what, start: start.to_string(), end: end.to_string() }
}

/// Days from one date to another, the end excluded; negative when `to` is before `from`.
fn calendar_days(from: Date, to: Date) -> i64 {
    from.duration_until(to).as_hours() / 24
}

#[cfg(test)]
pub(crate) fn d(text: &str) -> Decimal {
    text.parse().unwrap_or_else(|error| panic!("{text} {error}"))
}
