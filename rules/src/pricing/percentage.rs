//! Percentages, allowances and limits.

use ratemill_schemas::Decimal;

use super::exact::ONE;
use super::{PricingError, computing};

/// `amount × rate ÷ 100 + fixed_fee`, then not below `minimum`, then not above `maximum`.
pub(crate) fn percentage(
    amount: Decimal,
    rate: Decimal,
    fixed_fee: Decimal,
    minimum: Option<Decimal>,
    maximum: Option<Decimal>,
) -> Result<Decimal, PricingError> {
    let charge = amount.scaled_by(rate.raw(), 100 * ONE).and_then(|part| part.plus(fixed_fee));
    let charge = charge.map_err(computing(format_args!("{rate} percent of {amount}:")))?;
    Ok(at_most(at_least(charge, minimum), maximum))
}

/// `max(0, quantity − included)`.
pub(crate) fn overage(quantity: Decimal, included: Decimal) -> Result<Decimal, PricingError> {
    let over = quantity.subtract(included).map_err(computing(format_args!("{quantity} less {included} included:")))?;
    Ok(over.max(Decimal::ZERO))
}

/// `amount`, but not below `minimum`.
pub(crate) fn at_least(amount: Decimal, minimum: Option<Decimal>) -> Decimal {
    minimum.map_or(amount, |minimum| amount.max(minimum))
}

/// `amount`, but not above `maximum`.
pub(crate) fn at_most(amount: Decimal, maximum: Option<Decimal>) -> Decimal {
    maximum.map_or(amount, |maximum| amount.min(maximum))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pricing::d;

    #[test]
    fn percentages_and_their_limits() {
        for (amount, rate, fee, minimum, maximum, expected) in [
            ("400", "1.3", "2", "", "", "7.2"),
            ("0", "1.3", "2", "", "", "2"),
            ("-100", "5", "0", "", "", "-5"),
            ("100", "1", "0.5", "1.75", "2", "1.75"),
            ("1000", "1", "0.5", "1.75", "2", "2"),
            // Contradicting limits: the maximum holds.
            ("100", "1", "0", "5", "3", "3"),
            ("0.000000000000000001", "50", "0", "", "", "0"),
            ("99999999999999999999", "100", "0", "", "", "99999999999999999999"),
        ] {
            let limit = |text: &str| (!text.is_empty()).then(|| d(text));
            let got = percentage(d(amount), d(rate), d(fee), limit(minimum), limit(maximum)).unwrap();
            assert_eq!(got, d(expected), "{rate} percent of {amount}");
        }
        let error = percentage(d("99999999999999999999"), d("101"), Decimal::ZERO, None, None).unwrap_err();
        assert_eq!(error.to_string(), "101 percent of 99999999999999999999: needs more than 20 digits before the point");
    }

    #[test]
    fn allowances_and_limits() {
        for (quantity, included, over) in [("5", "3", "2"), ("3", "3", "0"), ("2", "3", "0"), ("-1", "0", "0")] {
            assert_eq!(overage(d(quantity), d(included)).unwrap(), d(over));
        }
        assert_eq!(at_least(d("1"), None), d("1"));
        assert_eq!(at_least(d("1"), Some(d("2"))), d("2"));
        assert_eq!(at_most(d("1"), None), d("1"));
        assert_eq!(at_most(d("3"), Some(d("2"))), d("2"));
    }
}
