//! Sums of products and quotients that are rounded once, at the end.

use std::cmp::Ordering;

use ratemill_schemas::decimal::SCALE;
use ratemill_schemas::{Decimal, DecimalError};

/// The unscaled value of one.
pub(crate) const ONE: i128 = 10_i128.pow(SCALE.unsigned_abs() as u32);

/// `Σ a × n ÷ divisor`, kept as a whole part and a rest, so that nothing is rounded before the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExactSum {
    divisor: i128,
    /// The sum is `whole + rest ÷ divisor`, in units of 10⁻¹⁸.
    whole: i128,
    rest: i128,
}

impl ExactSum {
    /// A sum of products of two decimals.
    pub(crate) fn of_products() -> Self {
        Self::of_quotients(ONE)
    }

    /// A sum of products of a decimal and a number, all divided by `divisor`, which lies between 1 and 10^18.
    pub(crate) fn of_quotients(divisor: i128) -> Self {
        debug_assert!((1..=ONE).contains(&divisor), "divisor {divisor} is not between 1 and 10^18");
        Self { divisor, whole: 0, rest: 0 }
    }

    /// Adds `value × number ÷ divisor`.
    pub(crate) fn add_product(&mut self, value: Decimal, number: i128) -> Result<(), DecimalError> {
        let (value, divisor) = (value.raw(), self.divisor);
        if let Some(product) = value.checked_mul(number) {
            return self.carry(product / divisor, product % divisor);
        }
        // The parts of one number have its sign, so that nothing cancels: what overflows here does not fit in the end.
        let (value_whole, value_rest) = (value / divisor, value % divisor);
        let (number_whole, number_rest) = (number / divisor, number % divisor);
        let rest = value_rest * number_rest;
        let whole = value_whole
            .checked_mul(number)
            .and_then(|whole| whole.checked_add(value_rest.checked_mul(number_whole)?))
            .and_then(|whole| whole.checked_add(rest / divisor))
            .ok_or(DecimalError::TooLarge)?;
        self.carry(whole, rest % divisor)
    }

    /// Adds `value` itself.
    pub(crate) fn add(&mut self, value: Decimal) -> Result<(), DecimalError> {
        self.carry(value.raw(), 0)
    }

    fn carry(&mut self, whole: i128, rest: i128) -> Result<(), DecimalError> {
        self.rest = self.rest.checked_add(rest).ok_or(DecimalError::TooLarge)?;
        self.whole = self.whole.checked_add(whole).ok_or(DecimalError::TooLarge)?;
        Ok(())
    }

    /// The sum, rounded half-even to 18 places.
    pub(crate) fn total(self) -> Result<Decimal, DecimalError> {
        let floor = self.whole.checked_add(self.rest.div_euclid(self.divisor)).ok_or(DecimalError::TooLarge)?;
        let above = self.rest.rem_euclid(self.divisor);
        let up = match (above * 2).cmp(&self.divisor) {
            Ordering::Less => 0,
            Ordering::Equal => floor.rem_euclid(2),
            Ordering::Greater => 1,
        };
        Decimal::from_raw(floor.checked_add(up).ok_or(DecimalError::TooLarge)?)
    }

    /// A hundredth of the sum, rounded half-even to 18 places.
    pub(crate) fn hundredth(self) -> Result<Decimal, DecimalError> {
        let rest = self.whole.rem_euclid(100) * self.divisor + self.rest;
        Self { divisor: self.divisor * 100, whole: self.whole.div_euclid(100), rest }.total()
    }
}

/// `count` as a decimal.
pub(crate) fn whole_number(count: i128) -> Result<Decimal, DecimalError> {
    count.checked_mul(ONE).ok_or(DecimalError::TooLarge).and_then(Decimal::from_raw)
}

/// `value ÷ step` towards plus infinity; `step` is above zero.
pub(crate) fn steps_up(value: Decimal, step: Decimal) -> i128 {
    steps_down(value, step) + i128::from(value.raw().rem_euclid(step.raw()) != 0)
}

/// `value ÷ step` towards minus infinity; `step` is above zero.
pub(crate) fn steps_down(value: Decimal, step: Decimal) -> i128 {
    value.raw().div_euclid(step.raw())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pricing::d;

    #[test]
    fn sums_round_once_half_even() {
        for (products, expected) in [
            (&[("2", "3"), ("-1", "0.5")][..], "5.5"),
            // Each product alone would round to 0.
            (&[("0.000000000000000001", "0.5"), ("0.000000000000000001", "0.5")], "0.000000000000000001"),
            (&[("0.000000000000000001", "0.5")], "0"),
            (&[("0.000000000000000003", "0.5")], "0.000000000000000002"),
            (&[("-0.000000000000000001", "0.5")], "0"),
            (&[("-0.000000000000000003", "0.5")], "-0.000000000000000002"),
            (&[("-0.000000000000000001", "0.6")], "-0.000000000000000001"),
            (&[("1", "1"), ("-0.000000000000000001", "0.4")], "1"),
            // Wider than 128 bits on the way.
            (&[("9999999999.999999999999999999", "3")], "29999999999.999999999999999997"),
            (&[("-9999999999.999999999999999999", "9999999999.999999999999999999")], "-99999999999999999999.99999998"),
        ] {
            let mut sum = ExactSum::of_products();
            for (a, b) in products {
                sum.add_product(d(a), d(b).raw()).unwrap();
            }
            assert_eq!(sum.total().unwrap(), d(expected), "{products:?}");
        }
    }

    #[test]
    fn single_products_agree_with_the_decimal_type() {
        let samples = ["0", "1", "-1", "0.000000000000000001", "-7.77", "123456789.123456789123456789", "99999999999999999999", "-4.5e10"];
        for a in samples {
            for b in samples {
                let mut sum = ExactSum::of_products();
                let total = sum.add_product(d(a), d(b).raw()).and_then(|()| sum.total());
                assert_eq!(total, d(a).multiply(d(b)), "{a} × {b}");
                let hundredth = sum.hundredth();
                if total.is_ok() {
                    assert_eq!(hundredth, d(a).scaled_by(d(b).raw(), 100 * ONE), "{a} × {b} ÷ 100");
                }
            }
        }
    }

    #[test]
    fn whole_steps() {
        for (value, step, up, down) in [("7", "5", 2, 1), ("10", "5", 2, 2), ("-7", "5", -1, -2), ("0", "5", 0, 0), ("0.3", "0.1", 3, 3)] {
            assert_eq!((steps_up(d(value), d(step)), steps_down(d(value), d(step))), (up, down), "{value} by {step}");
        }
        assert_eq!(whole_number(10_i128.pow(20)), Err(DecimalError::TooLarge));
    }
}
