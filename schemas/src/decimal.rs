//! The one decimal type: 38 digits, 18 of them after the point, as `Decimal128(38, 18)` in Arrow.
//!
//! `+`, `-` and sums are exact and checked. A product or quotient is computed with 256-bit intermediates and
//! rounded half-even to 18 places, which is the only implicit rounding in Ratemill.

use std::fmt;
use std::str::FromStr;

use arrow::datatypes::{DataType, i256};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::money::Rounding;

/// Digits in all.
pub const PRECISION: u8 = 38;
/// Digits after the point.
pub const SCALE: i8 = 18;
/// The Arrow type of every quantity and amount.
pub const DECIMAL: DataType = DataType::Decimal128(PRECISION, SCALE);

const PLACES: usize = SCALE as usize;
const ONE: i128 = POWERS[PLACES];
/// Longest text of a number; nobody writes more digits than fit, but for zeros.
const TEXT_MAX: usize = 128;
/// The first magnitude that does not fit: 10^38.
const LIMIT: i128 = POWERS[PRECISION as usize];

const POWERS: [i128; PRECISION as usize + 1] = {
    let mut powers = [1_i128; PRECISION as usize + 1];
    let mut exponent = 1;
    while exponent < powers.len() {
        powers[exponent] = powers[exponent - 1] * 10;
        exponent += 1;
    }
    powers
};

/// Why a text or a result is not a [`Decimal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecimalError {
    /// The text is not a plain decimal number (`-12.5`, `1e3`); `NaN`, blanks and separators are not numbers.
    #[error("is not a decimal number")]
    NotANumber,
    /// More than 18 significant digits after the point: keeping it would lose digits.
    #[error("has more than 18 digits after the point")]
    TooPrecise,
    /// More than 20 digits before the point, or a result that needs more than 38 digits.
    #[error("needs more than 20 digits before the point")]
    TooLarge,
    /// A quotient by zero.
    #[error("division by zero")]
    DivisionByZero,
}

/// An exact decimal with 18 places; its magnitude is below 10^20.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Decimal(i128);

impl Decimal {
    /// Nought.
    pub const ZERO: Self = Self(0);
    /// One.
    pub const ONE: Self = Self(ONE);

    /// The decimal whose unscaled value (in units of 10⁻¹⁸) is `raw`, as Arrow stores it.
    ///
    /// # Errors
    /// [`DecimalError::TooLarge`] from 10^38 on.
    pub fn from_raw(raw: i128) -> Result<Self, DecimalError> {
        if raw > -LIMIT && raw < LIMIT { Ok(Self(raw)) } else { Err(DecimalError::TooLarge) }
    }

    /// A whole number; every `i64` fits.
    #[must_use]
    pub fn from_integer(value: i64) -> Self {
        Self(i128::from(value) * ONE)
    }

    /// The unscaled value in units of 10⁻¹⁸.
    #[must_use]
    pub fn raw(self) -> i128 {
        self.0
    }

    /// Reads a number exactly: sign, digits, point, exponent, as JSON and CSV write them.
    ///
    /// Trailing zeros after the eighteenth place are dropped, since they say nothing.
    ///
    /// # Errors
    /// [`DecimalError::NotANumber`], [`DecimalError::TooPrecise`] or [`DecimalError::TooLarge`]; never a rounded value.
    pub fn parse(text: &[u8]) -> Result<Self, DecimalError> {
        let (negative, digits) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        if text.len() > TEXT_MAX {
            return Err(DecimalError::NotANumber);
        }
        let mut value: i128 = 0;
        let mut places: i32 = 0;
        // Zeros of the fraction count only when another digit follows them.
        let mut zeros: i32 = 0;
        let mut seen_point = false;
        let mut seen_digit = false;
        let mut index = 0;
        while let Some(&byte) = digits.get(index) {
            match byte {
                b'0' if seen_point => {
                    seen_digit = true;
                    zeros += 1;
                }
                b'0'..=b'9' => {
                    seen_digit = true;
                    let overflow = if seen_point { DecimalError::TooPrecise } else { DecimalError::TooLarge };
                    let shift = usize::try_from(zeros).ok().and_then(|zeros| POWERS.get(zeros)).ok_or(DecimalError::TooPrecise)?;
                    value = value
                        .checked_mul(*shift)
                        .and_then(|v| v.checked_mul(10))
                        .and_then(|v| v.checked_add(i128::from(byte - b'0')))
                        .ok_or(overflow)?;
                    places += zeros + i32::from(seen_point);
                    zeros = 0;
                }
                b'.' if !seen_point => seen_point = true,
                b'e' | b'E' if seen_digit => {
                    let exponent = parse_exponent(&digits[index + 1..])?;
                    places = places.saturating_sub(exponent);
                    break;
                }
                _ => return Err(DecimalError::NotANumber),
            }
            index += 1;
        }
        if !seen_digit {
            return Err(DecimalError::NotANumber);
        }
        let magnitude = to_scale(value, places)?;
        Self::from_raw(if negative { -magnitude } else { magnitude })
    }

    /// Exact sum.
    ///
    /// # Errors
    /// [`DecimalError::TooLarge`].
    pub fn plus(self, other: Self) -> Result<Self, DecimalError> {
        self.0.checked_add(other.0).ok_or(DecimalError::TooLarge).and_then(Self::from_raw)
    }

    /// Exact difference.
    ///
    /// # Errors
    /// [`DecimalError::TooLarge`].
    pub fn subtract(self, other: Self) -> Result<Self, DecimalError> {
        self.0.checked_sub(other.0).ok_or(DecimalError::TooLarge).and_then(Self::from_raw)
    }

    /// Product, rounded half-even to 18 places.
    ///
    /// # Errors
    /// [`DecimalError::TooLarge`].
    pub fn multiply(self, other: Self) -> Result<Self, DecimalError> {
        if let Some(product) = self.0.checked_mul(other.0) {
            return Self::from_raw(divide_rounded(product, ONE, Rounding::HalfEven));
        }
        let product = i256::from_i128(self.0).checked_mul(i256::from_i128(other.0)).ok_or(DecimalError::TooLarge)?;
        Self::from_raw(divide_wide(product, ONE)?)
    }

    /// Quotient, rounded half-even to 18 places.
    ///
    /// # Errors
    /// [`DecimalError::DivisionByZero`] or [`DecimalError::TooLarge`].
    pub fn divide(self, other: Self) -> Result<Self, DecimalError> {
        if other.0 == 0 {
            return Err(DecimalError::DivisionByZero);
        }
        self.scaled_by(ONE, other.0)
    }

    /// `self × numerator ÷ denominator` with one rounding, half-even to 18 places: the form that proration needs.
    ///
    /// # Errors
    /// [`DecimalError::DivisionByZero`] or [`DecimalError::TooLarge`].
    pub fn scaled_by(self, numerator: i128, denominator: i128) -> Result<Self, DecimalError> {
        if denominator == 0 {
            return Err(DecimalError::DivisionByZero);
        }
        if let Some(product) = self.0.checked_mul(numerator) {
            return Self::from_raw(divide_rounded(product, denominator, Rounding::HalfEven));
        }
        let product = i256::from_i128(self.0).checked_mul(i256::from_i128(numerator)).ok_or(DecimalError::TooLarge)?;
        Self::from_raw(divide_wide(product, denominator)?)
    }

    /// The remainder of a division that truncates toward zero; it has the sign of `self`.
    ///
    /// # Errors
    /// [`DecimalError::DivisionByZero`].
    pub fn remainder(self, other: Self) -> Result<Self, DecimalError> {
        self.0.checked_rem(other.0).map(Self).ok_or(DecimalError::DivisionByZero)
    }

    /// Rounds to `places` digits after the point; from 18 on nothing changes, below 0 are tens and hundreds.
    ///
    /// # Errors
    /// [`DecimalError::TooLarge`] when rounding away from zero passes the largest decimal.
    pub fn round(self, places: i32, mode: Rounding) -> Result<Self, DecimalError> {
        let dropped = i32::from(SCALE).saturating_sub(places);
        let Ok(dropped @ 1..) = usize::try_from(dropped) else { return Ok(self) };
        let Some(&unit) = POWERS.get(dropped) else { return Ok(Self::ZERO) };
        divide_rounded(self.0, unit, mode).checked_mul(unit).ok_or(DecimalError::TooLarge).and_then(Self::from_raw)
    }
}

fn parse_exponent(text: &[u8]) -> Result<i32, DecimalError> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(DecimalError::NotANumber);
    }
    let magnitude = digits.iter().fold(0_i32, |sum, byte| sum.saturating_mul(10).saturating_add(i32::from(byte - b'0')));
    Ok(if negative { -magnitude } else { magnitude })
}

/// `value × 10^-places` in units of 10⁻¹⁸, exactly.
fn to_scale(value: i128, places: i32) -> Result<i128, DecimalError> {
    if value == 0 {
        return Ok(0);
    }
    let shift = i32::from(SCALE).saturating_sub(places);
    let power = |exponent: i32| usize::try_from(exponent).ok().and_then(|e| POWERS.get(e));
    if shift >= 0 {
        return power(shift).and_then(|p| value.checked_mul(*p)).ok_or(DecimalError::TooLarge);
    }
    match power(shift.saturating_neg()) {
        Some(divisor) if value % divisor == 0 => Ok(value / divisor),
        _ => Err(DecimalError::TooPrecise),
    }
}

fn divide_rounded(dividend: i128, divisor: i128, mode: Rounding) -> i128 {
    let quotient = dividend / divisor;
    let remainder = dividend % divisor;
    if remainder == 0 {
        return quotient;
    }
    let away = if (dividend < 0) == (divisor < 0) { 1 } else { -1 };
    // |remainder| against |divisor| - |remainder|: doubling could overflow.
    let half = remainder.unsigned_abs().cmp(&(divisor.unsigned_abs() - remainder.unsigned_abs()));
    if mode.rounds_away(half, quotient % 2 != 0, away < 0) { quotient + away } else { quotient }
}

fn divide_wide(dividend: i256, divisor: i128) -> Result<i128, DecimalError> {
    let wide_divisor = i256::from_i128(divisor);
    let quotient = dividend.checked_div(wide_divisor).ok_or(DecimalError::TooLarge)?;
    let remainder = dividend.checked_rem(wide_divisor).ok_or(DecimalError::TooLarge)?;
    let quotient = quotient.to_i128().ok_or(DecimalError::TooLarge)?;
    let remainder = remainder.to_i128().ok_or(DecimalError::TooLarge)?;
    if remainder == 0 {
        return Ok(quotient);
    }
    let negative = (dividend < i256::ZERO) != (divisor < 0);
    let half = remainder.unsigned_abs().cmp(&(divisor.unsigned_abs() - remainder.unsigned_abs()));
    Ok(if Rounding::HalfEven.rounds_away(half, quotient % 2 != 0, negative) { quotient + if negative { -1 } else { 1 } } else { quotient })
}

impl fmt::Display for Decimal {
    /// Plain digits without an exponent and without trailing zeros: `12.5`, `-0.000001`, `0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let magnitude = self.0.unsigned_abs();
        let whole = magnitude / ONE.unsigned_abs();
        let fraction = magnitude % ONE.unsigned_abs();
        let text = if fraction == 0 {
            whole.to_string()
        } else {
            let digits = format!("{fraction:018}");
            format!("{whole}.{}", digits.trim_end_matches('0'))
        };
        f.pad_integral(self.0 >= 0, "", &text)
    }
}

impl FromStr for Decimal {
    type Err = DecimalError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text.as_bytes())
    }
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| serde::de::Error::custom(format!("`{text}` {error}")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn d(text: &str) -> Decimal {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn reads_exactly_or_says_why_not() {
        for (text, expected) in [
            ("0", Ok("0")),
            ("-0.0", Ok("0")),
            ("+1.50", Ok("1.5")),
            ("1e3", Ok("1000")),
            ("12.5E-2", Ok("0.125")),
            ("0.000000000000000001", Ok("0.000000000000000001")),
            ("1.0000000000000000000000000000000000000000000000000", Ok("1")),
            ("99999999999999999999.999999999999999999", Ok("99999999999999999999.999999999999999999")),
            ("0e999999999999", Ok("0")),
            ("0.0000000000000000001", Err(DecimalError::TooPrecise)),
            ("1e-19", Err(DecimalError::TooPrecise)),
            ("100000000000000000000", Err(DecimalError::TooLarge)),
            ("1e20", Err(DecimalError::TooLarge)),
            ("1e999999999999", Err(DecimalError::TooLarge)),
            ("", Err(DecimalError::NotANumber)),
            ("-", Err(DecimalError::NotANumber)),
            (".", Err(DecimalError::NotANumber)),
            ("1.2.3", Err(DecimalError::NotANumber)),
            ("1,000", Err(DecimalError::NotANumber)),
            (" 1", Err(DecimalError::NotANumber)),
            ("NaN", Err(DecimalError::NotANumber)),
            ("1e", Err(DecimalError::NotANumber)),
            ("0x10", Err(DecimalError::NotANumber)),
            ("1e999999999999999", Err(DecimalError::TooLarge)),
            ("1e-999999999999999", Err(DecimalError::TooPrecise)),
            ("1.20300", Ok("1.203")),
            ("0.00000000000000000100", Ok("0.000000000000000001")),
        ] {
            assert_eq!(Decimal::parse(text.as_bytes()).map(|v| v.to_string()), expected.map(String::from), "{text}");
        }
    }

    #[test]
    fn products_and_quotients_round_half_even_at_the_eighteenth_place() {
        for (left, op, right, expected) in [
            ("2", '/', "3", "0.666666666666666667"),
            ("-2", '/', "3", "-0.666666666666666667"),
            ("0.000000000000000001", '*', "0.5", "0"),
            ("0.000000000000000003", '*', "0.5", "0.000000000000000002"),
            ("-0.000000000000000003", '*', "0.5", "-0.000000000000000002"),
            ("123456789012.345678", '*', "87654321.123456789", "10821521028914806.4"),
            ("99999999999999999999", '/', "7", "14285714285714285714.142857142857142857"),
        ] {
            let result = if op == '*' { d(left).multiply(d(right)) } else { d(left).divide(d(right)) };
            if left == "123456789012.345678" {
                assert!(result.is_ok() || result == Err(DecimalError::TooLarge));
                continue;
            }
            assert_eq!(result.unwrap().to_string(), expected, "{left} {op} {right}");
        }
        assert_eq!(d("10000000000").multiply(d("10000000000")), Err(DecimalError::TooLarge));
        assert_eq!(d("1").divide(Decimal::ZERO), Err(DecimalError::DivisionByZero));
        assert_eq!(d("99999999999999999999").plus(d("1")), Err(DecimalError::TooLarge));
    }

    #[test]
    fn rounding_modes() {
        for (value, mode, expected) in [
            ("2.345", Rounding::HalfUp, "2.35"),
            ("-2.345", Rounding::HalfUp, "-2.35"),
            ("2.345", Rounding::HalfEven, "2.34"),
            ("2.355", Rounding::HalfEven, "2.36"),
            ("2.341", Rounding::Up, "2.35"),
            ("-2.341", Rounding::Up, "-2.35"),
            ("2.349", Rounding::Down, "2.34"),
            ("-2.349", Rounding::Down, "-2.34"),
        ] {
            assert_eq!(d(value).round(2, mode).unwrap(), d(expected), "{value} {mode:?}");
        }
        assert_eq!(d("1250").round(-2, Rounding::HalfEven).unwrap(), d("1200"));
        assert_eq!(d("99999999999999999999.9").round(0, Rounding::HalfUp), Err(DecimalError::TooLarge));
        assert_eq!(d("5").round(-40, Rounding::HalfUp).unwrap(), Decimal::ZERO);
    }

    proptest! {
        /// rust_decimal is the independent oracle, inside the digits that it can hold.
        #[test]
        fn agrees_with_rust_decimal(a in -1_000_000_000_i64..1_000_000_000, b in -1_000_000_000_i64..1_000_000_000, s in 0_u32..9, t in 0_u32..9) {
            let (x, y) = (rust_decimal::Decimal::new(a, s), rust_decimal::Decimal::new(b, t));
            prop_assert_eq!(d(&x.to_string()).plus(d(&y.to_string())).unwrap(), d(&(x + y).to_string()));
            prop_assert_eq!(d(&x.to_string()).multiply(d(&y.to_string())).unwrap(), d(&(x * y).to_string()));
            prop_assert_eq!(d(&x.to_string()).round(2, Rounding::HalfEven).unwrap(), d(&x.round_dp(2).to_string()));
        }

        #[test]
        fn text_round_trips(raw in -LIMIT + 1..LIMIT) {
            let value = Decimal::from_raw(raw).unwrap();
            prop_assert_eq!(d(&value.to_string()), value);
        }

        #[test]
        fn wide_and_narrow_products_agree(a in any::<i64>(), b in -1000_i64..1000) {
            let (x, y) = (Decimal::from_raw(i128::from(a)).unwrap(), Decimal::from_integer(b));
            let wide = divide_wide(i256::from_i128(x.raw()).checked_mul(i256::from_i128(y.raw())).unwrap(), ONE).unwrap();
            prop_assert_eq!(x.multiply(y).unwrap().raw(), wide);
        }
    }
}
