//! Decimals against an independent arbitrary-precision oracle: products, quotients and every rounding mode.
#![allow(clippy::unwrap_used)]

use bigdecimal::num_bigint::BigInt;
use bigdecimal::{BigDecimal, RoundingMode};
use proptest::prelude::*;
use ratemill_schemas::{Decimal, Rounding};

const LIMIT: i128 = 10_i128.pow(38);
const MODES: [(Rounding, RoundingMode); 6] = [
    (Rounding::HalfUp, RoundingMode::HalfUp),
    (Rounding::HalfEven, RoundingMode::HalfEven),
    (Rounding::Up, RoundingMode::Up),
    (Rounding::Down, RoundingMode::Down),
    (Rounding::Ceiling, RoundingMode::Ceiling),
    (Rounding::Floor, RoundingMode::Floor),
];

fn big(raw: i128) -> BigDecimal {
    BigDecimal::new(BigInt::from(raw), 18)
}

/// The oracle's value as ours; `None` when it does not fit into 38 digits.
fn expected(value: &BigDecimal) -> Option<Decimal> {
    let (digits, _) = value.with_scale(18).into_bigint_and_exponent();
    i128::try_from(digits).ok().filter(|raw| raw.abs() < LIMIT).map(|raw| Decimal::from_raw(raw).unwrap())
}

/// Raw decimals of every size, halves and whole numbers among them.
fn raw() -> impl Strategy<Value = i128> {
    let power = (0_u32..38).prop_map(|power| 10_i128.pow(power));
    prop_oneof![
        -LIMIT + 1..LIMIT,
        (-1000_i128..1000, power.clone()).prop_filter_map("fits", |(n, power)| n.checked_mul(power).filter(|raw| raw.abs() < LIMIT)),
        (-1000_i128..1000, power)
            .prop_filter_map("fits", |(n, power)| n.checked_mul(power)?.checked_add(power / 2).filter(|raw| raw.abs() < LIMIT)),
        -1_000_000_i128..1_000_000,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn rounding_agrees(raw in raw(), places in -20_i32..20) {
        let value = Decimal::from_raw(raw).unwrap();
        for (mode, oracle) in MODES {
            let rounded = big(raw).with_scale_round(i64::from(places.min(18)), oracle);
            prop_assert_eq!(value.round(places, mode).ok(), expected(&rounded), "{} to {} places, {:?}", value, places, mode);
        }
    }

    #[test]
    fn products_agree(a in raw(), b in raw()) {
        let exact = big(a) * big(b);
        let rounded = exact.with_scale_round(18, RoundingMode::HalfEven);
        prop_assert_eq!(Decimal::from_raw(a).unwrap().multiply(Decimal::from_raw(b).unwrap()).ok(), expected(&rounded));
    }

    #[test]
    fn shares_agree(a in raw(), n in -1_000_000_000_i128..1_000_000_000, d in 1_i128..1_000_000_000) {
        // a × n ÷ d exactly, by whole numbers: half-even on the remainder.
        let product = BigInt::from(a) * BigInt::from(n);
        let (d_big, two) = (BigInt::from(d), BigInt::from(2));
        let mut quotient = &product / &d_big;
        let remainder = &product % &d_big;
        let twice = BigInt::from(remainder.magnitude().clone()) * &two;
        let odd = (&quotient % &two) != BigInt::from(0);
        if twice > d_big || (twice == d_big && odd) {
            quotient += if product < BigInt::from(0) { -1 } else { 1 };
        }
        let fits = i128::try_from(quotient).ok().filter(|raw| raw.abs() < LIMIT).map(|raw| Decimal::from_raw(raw).unwrap());
        prop_assert_eq!(Decimal::from_raw(a).unwrap().scaled_by(n, d).ok(), fits);
    }
}
