//! Currencies (ISO 4217) and the rounding of money.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::decimal::{Decimal, DecimalError};

/// How digits are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Halves go away from zero: 2.345 → 2.35, −2.345 → −2.35. What an invoice does unless told otherwise.
    #[default]
    HalfUp,
    /// Halves go to the even neighbour: 2.345 → 2.34.
    HalfEven,
    /// Away from zero.
    Up,
    /// Toward zero.
    Down,
    /// Towards plus infinity.
    Ceiling,
    /// Towards minus infinity.
    Floor,
}

impl Rounding {
    /// Every mode.
    pub const ALL: [Self; 6] = [Self::HalfUp, Self::HalfEven, Self::Up, Self::Down, Self::Ceiling, Self::Floor];

    /// Whether a value lying `half` (less, equal, more) of the way to the next magnitude goes there.
    pub(crate) fn rounds_away(self, half: Ordering, odd: bool, negative: bool) -> bool {
        match self {
            Self::HalfUp => half != Ordering::Less,
            Self::HalfEven => half == Ordering::Greater || (half == Ordering::Equal && odd),
            Self::Up => true,
            Self::Down => false,
            Self::Ceiling => !negative,
            Self::Floor => negative,
        }
    }

    /// Its name in SQL and configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::HalfUp => "half_up",
            Self::HalfEven => "half_even",
            Self::Up => "up",
            Self::Down => "down",
            Self::Ceiling => "ceiling",
            Self::Floor => "floor",
        }
    }
}

impl FromStr for Rounding {
    type Err = UnknownRounding;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|mode| mode.name() == text).ok_or_else(|| UnknownRounding(text.to_owned()))
    }
}

/// A rounding mode that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("rounding `{0}` is unknown; it is one of half_up, half_even, up, down, ceiling, floor")]
pub struct UnknownRounding(pub String);

/// A currency of ISO 4217.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency(iso_currency::Currency);

impl Currency {
    /// Digits of the minor unit: 2 for EUR, 0 for JPY, 3 for KWD; 18 (no rounding) for those without one, like XAU.
    #[must_use]
    pub fn minor_units(self) -> i32 {
        self.0.exponent().map_or(i32::from(crate::decimal::SCALE), i32::from)
    }

    /// `amount` rounded to the minor unit.
    ///
    /// # Errors
    /// [`DecimalError::TooLarge`] when rounding away from zero passes the largest decimal.
    pub fn round(self, amount: Decimal, mode: Rounding) -> Result<Decimal, DecimalError> {
        amount.round(self.minor_units(), mode)
    }
}

/// A text that is no currency code.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a currency code of ISO 4217 (three capital letters, like EUR)")]
pub struct UnknownCurrency(String);

impl FromStr for Currency {
    type Err = UnknownCurrency;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        iso_currency::Currency::from_code(text).map(Self).ok_or_else(|| UnknownCurrency(text.to_owned()))
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.code())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn minor_units_follow_iso_4217() {
        for (code, units) in [("EUR", 2), ("JPY", 0), ("KWD", 3), ("CLF", 4), ("XAU", 18), ("ISK", 0), ("ZAR", 2)] {
            assert_eq!(code.parse::<Currency>().unwrap().minor_units(), units, "{code}");
        }
        assert!("eur".parse::<Currency>().is_err());
        assert!("XXY".parse::<Currency>().is_err());
    }
}
