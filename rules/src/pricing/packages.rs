//! Prices by whole packages, and rounding to whole steps.

use std::str::FromStr;

use ratemill_schemas::Decimal;

use super::exact::{steps_down, steps_up, whole_number};
use super::{PricingError, computing, not_negative, positive};

/// What becomes of a package that is used in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum PartPackage {
    /// It counts in full.
    #[default]
    Up,
    /// It does not count.
    Down,
}

impl FromStr for PartPackage {
    type Err = PricingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "up" => Ok(Self::Up),
            "down" => Ok(Self::Down),
            _ => Err(PricingError::Unknown { what: "rounding of packages", given: text.to_owned(), valid: "up, down" }),
        }
    }
}

/// Number of packages: `max(0, quantity − free) ÷ size`, whole.
pub(crate) fn packages(quantity: Decimal, size: Decimal, free: Decimal, part: PartPackage) -> Result<Decimal, PricingError> {
    count(quantity, size, free, part)
        .and_then(|count| whole_number(count).map_err(computing(format_args!("packages of {size} in {quantity}:"))))
}

/// That number times `price`.
pub(crate) fn package(quantity: Decimal, size: Decimal, price: Decimal, free: Decimal, part: PartPackage) -> Result<Decimal, PricingError> {
    let count = count(quantity, size, free, part)?;
    price.scaled_by(count, 1).map_err(computing(format_args!("price of {count} packages of {size}:")))
}

fn count(quantity: Decimal, size: Decimal, free: Decimal, part: PartPackage) -> Result<i128, PricingError> {
    let size = positive("package size", size)?;
    let billed = quantity.subtract(free).map_err(computing(format_args!("{quantity} less {free} free units:")))?.max(Decimal::ZERO);
    Ok(match part {
        PartPackage::Up => steps_up(billed, size),
        PartPackage::Down => steps_down(billed, size),
    })
}

/// Billed seconds: 0 stays 0; else at least `minimum`, then `first`, then whole steps of `next`.
pub(crate) fn increments(seconds: Decimal, first: Decimal, next: Decimal, minimum: Decimal) -> Result<Decimal, PricingError> {
    let next = positive("step of seconds", next)?;
    let first = not_negative("first step of seconds", first)?;
    if not_negative("duration", seconds)? == Decimal::ZERO {
        return Ok(Decimal::ZERO);
    }
    let billed = seconds.max(minimum);
    if billed <= first {
        return Ok(first);
    }
    let further = billed.subtract(first).and_then(|further| next.scaled_by(steps_up(further, next), 1));
    further.and_then(|further| first.plus(further)).map_err(computing(format_args!("{seconds} seconds in steps of {next}:")))
}

/// The least whole multiple of `step` that is not below `number`.
pub(crate) fn round_up_to(number: Decimal, step: Decimal) -> Result<Decimal, PricingError> {
    let steps = steps_up(number, positive("step", step)?);
    step.scaled_by(steps, 1).map_err(computing(format_args!("{number} rounded up to steps of {step}:")))
}

/// The greatest whole multiple of `step` that is not above `number`.
pub(crate) fn round_down_to(number: Decimal, step: Decimal) -> Result<Decimal, PricingError> {
    let steps = steps_down(number, positive("step", step)?);
    step.scaled_by(steps, 1).map_err(computing(format_args!("{number} rounded down to steps of {step}:")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pricing::d;

    #[test]
    fn packages_by_hand() {
        for (quantity, size, free, up, down) in [
            ("0", "10", "0", "0", "0"),
            ("-5", "10", "0", "0", "0"),
            ("0.000000000000000001", "10", "0", "1", "0"),
            ("10", "10", "0", "1", "1"),
            ("10.5", "10", "0", "2", "1"),
            ("25", "10", "5", "2", "2"),
            ("4", "10", "5", "0", "0"),
            ("0.3", "0.1", "0", "3", "3"),
        ] {
            let number = |part| packages(d(quantity), d(size), d(free), part).unwrap();
            assert_eq!((number(PartPackage::Up), number(PartPackage::Down)), (d(up), d(down)), "{quantity} in packages of {size}");
            let price = package(d(quantity), d(size), d("2.5"), d(free), PartPackage::Up).unwrap();
            assert_eq!(price, d(up).multiply(d("2.5")).unwrap());
        }
        let size = |size| packages(d("1"), d(size), Decimal::ZERO, PartPackage::Up);
        assert_eq!(size("0").unwrap_err().to_string(), "package size 0 is not above zero");
        assert!(size("-1").is_err());
        assert!(packages(d("99999999999999999999"), d("0.1"), Decimal::ZERO, PartPackage::Up).is_err());
        assert!("half_up".parse::<PartPackage>().is_err());
    }

    #[test]
    fn seconds_in_increments() {
        for (seconds, first, next, minimum, billed) in [
            ("0", "60", "1", "60", "0"),
            ("1.5", "1", "1", "0", "2"),
            ("83", "60", "1", "0", "83"),
            ("10", "30", "6", "0", "30"),
            ("30", "30", "6", "0", "30"),
            ("30.000001", "30", "6", "0", "36"),
            ("31", "30", "6", "0", "36"),
            ("126", "6", "6", "0", "126"),
            ("10", "30", "6", "45", "48"),
            ("7", "0", "6", "0", "12"),
        ] {
            let got = increments(d(seconds), d(first), d(next), d(minimum)).unwrap();
            assert_eq!(got, d(billed), "{seconds} s as {first}/{next}, at least {minimum}");
        }
        assert!(increments(d("-1"), d("1"), d("1"), d("0")).is_err());
        assert!(increments(d("1"), d("1"), d("0"), d("0")).is_err());
    }

    #[test]
    fn whole_multiples() {
        for (number, step, up, down) in
            [("7", "5", "10", "5"), ("-7", "5", "-5", "-10"), ("10", "5", "10", "10"), ("0.31", "0.1", "0.4", "0.3"), ("0", "3", "0", "0")]
        {
            assert_eq!(round_up_to(d(number), d(step)).unwrap(), d(up), "{number} up to {step}");
            assert_eq!(round_down_to(d(number), d(step)).unwrap(), d(down), "{number} down to {step}");
        }
        assert!(round_up_to(d("1"), d("0")).is_err());
    }
}
