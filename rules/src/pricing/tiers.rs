//! Tiered prices.
//!
//! A tier covers `low < quantity <= up_to`, `low` being the bound before it and 0 for the first, so that no fractional
//! quantity falls between two tiers. A tier is entered when `quantity > low`; its flat fee is due once it is entered.
//! That tiers ascend is checked as far as a quantity walks through them.

use std::str::FromStr;

use ratemill_schemas::{Decimal, DecimalError};

use super::exact::ExactSum;
use super::{PricingError, computing};

/// One tier of a price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tier {
    /// The last quantity that still belongs to the tier; `None` is open.
    pub(crate) up_to: Option<Decimal>,
    /// Price of one unit, or a percentage.
    pub(crate) unit_price: Decimal,
    /// Due once the tier is entered.
    pub(crate) flat_fee: Decimal,
}

/// What one tier contributes to a graduated price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TierStep {
    /// Its number, from 1.
    pub(crate) tier: i64,
    /// The bound before it.
    pub(crate) low: Decimal,
    /// Its own bound; `None` is open.
    pub(crate) up_to: Option<Decimal>,
    /// How much of the quantity lies in it.
    pub(crate) quantity: Decimal,
    /// Price of one unit.
    pub(crate) unit_price: Decimal,
    /// Its flat fee.
    pub(crate) flat_fee: Decimal,
    /// What it adds to the price.
    pub(crate) amount: Decimal,
}

/// Which steps of a stair are paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum Steps {
    /// The one that holds the quantity.
    #[default]
    Reached,
    /// All that were entered.
    Cumulative,
}

impl FromStr for Steps {
    type Err = PricingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "reached" => Ok(Self::Reached),
            "cumulative" => Ok(Self::Cumulative),
            _ => Err(PricingError::Unknown { what: "mode", given: text.to_owned(), valid: "reached, cumulative" }),
        }
    }
}

/// Visits the tiers that `quantity` enters, each with its position and `low`, and returns the last of them.
///
/// A quantity of zero or less visits the first tier alone.
fn walk<'a>(
    quantity: Decimal,
    tiers: &'a [Tier],
    mut visit: impl FnMut(usize, Decimal, &'a Tier) -> Result<(), DecimalError>,
) -> Result<&'a Tier, PricingError> {
    if tiers.is_empty() {
        return Err(PricingError::Empty("tiers"));
    }
    let mut low = Decimal::ZERO;
    for (position, tier) in tiers.iter().enumerate() {
        if let Some(up_to) = tier.up_to.filter(|up_to| *up_to <= low) {
            return Err(PricingError::TiersDescend { low, up_to });
        }
        visit(position, low, tier).map_err(computing(format_args!("price of quantity {quantity}:")))?;
        match tier.up_to {
            Some(up_to) if quantity > up_to => low = up_to,
            _ => return Ok(tier),
        }
    }
    Err(PricingError::AboveTiers { quantity, low })
}

/// The part of `quantity` that lies in a tier which it has entered at `low`.
fn part(quantity: Decimal, low: Decimal, tier: &Tier) -> Result<Decimal, DecimalError> {
    tier.up_to.map_or(quantity, |up_to| up_to.min(quantity)).subtract(low)
}

fn enters(quantity: Decimal, flat_on_zero: bool) -> bool {
    quantity > Decimal::ZERO || (flat_on_zero && quantity == Decimal::ZERO)
}

/// `Σ (min(quantity, up_to) − low) × unit_price + flat_fee` over the tiers entered, unrounded.
fn graduated_sum(quantity: Decimal, tiers: &[Tier]) -> Result<ExactSum, PricingError> {
    let mut sum = ExactSum::of_products();
    walk(quantity, tiers, |_, low, tier| {
        sum.add_product(part(quantity, low, tier)?, tier.unit_price.raw())?;
        sum.add(tier.flat_fee)
    })?;
    Ok(sum)
}

/// `Σ (min(quantity, up_to) − low) × unit_price + flat_fee` over the tiers entered.
///
/// A quantity of 0 costs the first tier's flat fee if `flat_on_zero`, else nothing; below 0 costs nothing.
/// Example: tiers (100 at 0, then 0.05): 120 units cost 1.00.
pub(crate) fn graduated(quantity: Decimal, tiers: &[Tier], flat_on_zero: bool) -> Result<Decimal, PricingError> {
    if !enters(quantity, flat_on_zero) {
        return Ok(Decimal::ZERO);
    }
    graduated_sum(quantity, tiers)?.total().map_err(computing(format_args!("price of quantity {quantity}:")))
}

/// [`graduated`] with a percentage as unit price; flat fees are amounts.
pub(crate) fn graduated_percentage(amount: Decimal, tiers: &[Tier], flat_on_zero: bool) -> Result<Decimal, PricingError> {
    if !enters(amount, flat_on_zero) {
        return Ok(Decimal::ZERO);
    }
    let mut percents = ExactSum::of_products();
    walk(amount, tiers, |_, low, tier| {
        percents.add_product(part(amount, low, tier)?, tier.unit_price.raw())?;
        percents.add_product(tier.flat_fee, Decimal::from_integer(100).raw())
    })?;
    percents.hundredth().map_err(computing(format_args!("percentages of {amount}:")))
}

/// `quantity × unit_price + flat_fee` of the one tier that holds `tier_quantity`, or `quantity` itself if there is none.
///
/// Quantities of 0 and below are as in [`graduated`]; a `tier_quantity` of 0 or below falls into the first tier.
/// Example: tiers (100 at 0, then 0.05): 120 units cost 6.00.
pub(crate) fn volume(
    quantity: Decimal,
    tiers: &[Tier],
    flat_on_zero: bool,
    tier_quantity: Option<Decimal>,
) -> Result<Decimal, PricingError> {
    if !enters(quantity, flat_on_zero) {
        return Ok(Decimal::ZERO);
    }
    let holder = if quantity == Decimal::ZERO { quantity } else { tier_quantity.unwrap_or(quantity) };
    let tier = walk(holder, tiers, |_, _, _| Ok(()))?;
    let amount = quantity.multiply(tier.unit_price).and_then(|price| price.plus(tier.flat_fee));
    amount.map_err(computing(format_args!("price of quantity {quantity}:")))
}

/// The tiers that [`graduated`] enters, in order. Their amounts add up to its result exactly: each is the rounded price
/// up to and with the tier less what came before.
pub(crate) fn breakdown(quantity: Decimal, tiers: &[Tier], flat_on_zero: bool) -> Result<Vec<TierStep>, PricingError> {
    let mut steps = Vec::new();
    if !enters(quantity, flat_on_zero) {
        return Ok(steps);
    }
    let mut sum = ExactSum::of_products();
    let mut before = Decimal::ZERO;
    walk(quantity, tiers, |position, low, tier| {
        let part = part(quantity, low, tier)?;
        sum.add_product(part, tier.unit_price.raw())?;
        sum.add(tier.flat_fee)?;
        let after = sum.total()?;
        let amount = after.subtract(before)?;
        before = after;
        let Tier { up_to, unit_price, flat_fee } = *tier;
        let number = i64::try_from(position).unwrap_or(i64::MAX).saturating_add(1);
        steps.push(TierStep { tier: number, low, up_to, quantity: part, unit_price, flat_fee, amount });
        Ok(())
    })?;
    Ok(steps)
}

/// The flat fee of the tier that holds the quantity, or of all tiers entered; 0 and below cost nothing.
pub(crate) fn stairstep(quantity: Decimal, tiers: &[Tier], steps: Steps) -> Result<Decimal, PricingError> {
    match steps {
        _ if quantity <= Decimal::ZERO => Ok(Decimal::ZERO),
        Steps::Reached => walk(quantity, tiers, |_, _, _| Ok(())).map(|tier| tier.flat_fee),
        Steps::Cumulative => tier_fees(quantity, tiers),
    }
}

/// The flat fee of the first tier with `quantity <= up_to`; 0 and below fall into the first tier.
pub(crate) fn capacity(quantity: Decimal, tiers: &[Tier]) -> Result<Decimal, PricingError> {
    walk(quantity, tiers, |_, _, _| Ok(())).map(|tier| tier.flat_fee)
}

/// The flat fees of the first tier and of every further tier entered up to `quantity`.
pub(crate) fn tier_fees(quantity: Decimal, tiers: &[Tier]) -> Result<Decimal, PricingError> {
    let mut fees = Decimal::ZERO;
    walk(quantity, tiers, |_, _, tier| {
        fees = fees.plus(tier.flat_fee)?;
        Ok(())
    })?;
    Ok(fees)
}

/// `share × (G(after) − G(before))`: the charge of one change of a running quantity, due for a share of the period.
///
/// `G` is [`graduated`] without flat fees, and with the first tier's price below 0. Since `G` itself is a rounded price,
/// changes with share 1 add up to the price of the final quantity exactly.
pub(crate) fn prorated_graduated(before: Decimal, after: Decimal, share: Decimal, tiers: &[Tier]) -> Result<Decimal, PricingError> {
    let change = without_fees(after, tiers)?.subtract(without_fees(before, tiers)?);
    change
        .and_then(|change| change.multiply(share))
        .map_err(computing(format_args!("price of the change from {before} to {after}, times {share}:")))
}

fn without_fees(quantity: Decimal, tiers: &[Tier]) -> Result<Decimal, PricingError> {
    let mut sum = ExactSum::of_products();
    walk(quantity, tiers, |_, low, tier| sum.add_product(part(quantity, low, tier)?, tier.unit_price.raw()))?;
    sum.total().map_err(computing(format_args!("price of quantity {quantity}:")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pricing::d;

    fn tiers(rows: &[(&str, &str, &str)]) -> Vec<Tier> {
        rows.iter()
            .map(|(up_to, price, fee)| Tier { up_to: (!up_to.is_empty()).then(|| d(up_to)), unit_price: d(price), flat_fee: d(fee) })
            .collect()
    }

    fn hundredths(value: i64) -> Decimal {
        Decimal::from_integer(value).scaled_by(1, 100).unwrap()
    }

    #[test]
    fn amounts_by_hand() {
        let table = tiers(&[("10", "5", "1"), ("20", "4", "0"), ("", "3", "2")]);
        for (quantity, by_graduated, by_volume, reached, cumulative, by_capacity) in [
            ("0", "0", "0", "0", "0", "1"),
            ("-3", "0", "0", "0", "0", "1"),
            ("0.5", "3.5", "3.5", "1", "1", "1"),
            ("10", "51", "51", "1", "1", "1"),
            ("10.000000000000000001", "51.000000000000000004", "40.000000000000000004", "0", "1", "0"),
            ("10.5", "53", "42", "0", "1", "0"),
            ("20", "91", "80", "0", "1", "0"),
            ("25", "108", "77", "2", "3", "2"),
        ] {
            let q = d(quantity);
            assert_eq!(graduated(q, &table, false).unwrap(), d(by_graduated), "graduated({quantity})");
            assert_eq!(volume(q, &table, false, None).unwrap(), d(by_volume), "volume({quantity})");
            assert_eq!(stairstep(q, &table, Steps::Reached).unwrap(), d(reached), "reached({quantity})");
            assert_eq!(stairstep(q, &table, Steps::Cumulative).unwrap(), d(cumulative), "cumulative({quantity})");
            assert_eq!(capacity(q, &table).unwrap(), d(by_capacity), "capacity({quantity})");
            let steps = breakdown(q, &table, false).unwrap();
            let sum = steps.iter().fold(Decimal::ZERO, |sum, step| sum.plus(step.amount).unwrap());
            assert_eq!(sum, d(by_graduated), "breakdown({quantity})");
        }
    }

    #[test]
    fn zero_may_cost_the_first_flat_fee() {
        let table = tiers(&[("10", "5", "1.5"), ("", "3", "2")]);
        assert_eq!(graduated(Decimal::ZERO, &table, true).unwrap(), d("1.5"));
        assert_eq!(graduated_percentage(Decimal::ZERO, &table, true).unwrap(), d("1.5"));
        assert_eq!(volume(Decimal::ZERO, &table, true, None).unwrap(), d("1.5"));
        assert_eq!(volume(Decimal::ZERO, &table, true, Some(d("50"))).unwrap(), d("1.5"));
        assert_eq!(breakdown(Decimal::ZERO, &table, true).unwrap().len(), 1);
        assert_eq!(graduated(d("-0.1"), &table, true).unwrap(), Decimal::ZERO);
        assert!(breakdown(Decimal::ZERO, &table, false).unwrap().is_empty());
    }

    #[test]
    fn the_tier_of_a_volume_price_may_be_another_quantitys() {
        let table = tiers(&[("10", "5", "1"), ("", "3", "2")]);
        assert_eq!(volume(d("4"), &table, false, Some(d("12"))).unwrap(), d("14"));
        assert_eq!(volume(d("12"), &table, false, Some(d("10"))).unwrap(), d("61"));
        assert_eq!(volume(d("4"), &table, false, Some(Decimal::ZERO)).unwrap(), d("21"));
    }

    #[test]
    fn steps_name_the_tiers_entered() {
        // getlago/lago-api: graduated_range.
        let table = tiers(&[("10", "10", "2"), ("20", "8", "1"), ("", "5", "0")]);
        let steps = breakdown(d("15"), &table, true).unwrap();
        let shown: Vec<String> = steps
            .iter()
            .map(|s| format!("{} {} {:?} {} {}", s.tier, s.low, s.up_to.map(|u| u.to_string()), s.quantity, s.amount))
            .collect();
        assert_eq!(shown, ["1 0 Some(\"10\") 10 102", "2 10 Some(\"20\") 5 41"]);
    }

    #[test]
    fn percentages_by_hand() {
        let table = tiers(&[("2", "10", "10"), ("", "20", "20")]);
        assert_eq!(graduated_percentage(d("5"), &table, true).unwrap(), d("30.8"));
        assert_eq!(graduated_percentage(d("1"), &tiers(&[("", "3", "0.01")]), true).unwrap(), d("0.04"));
        assert_eq!(graduated_percentage(d("-1"), &table, true).unwrap(), Decimal::ZERO);
    }

    #[test]
    fn changes_of_a_running_quantity() {
        // getlago/lago-api: 10 units all month, then 2 more for 26 of 31 days.
        let table = tiers(&[("5", "0", "0"), ("", "12", "0")]);
        let share = d("26").divide(d("31")).unwrap();
        assert_eq!(prorated_graduated(d("0"), d("10"), d("1"), &table).unwrap(), d("60"));
        let charge = prorated_graduated(d("10"), d("12"), share, &table).unwrap();
        assert_eq!(charge.round(2, ratemill_schemas::Rounding::HalfUp).unwrap(), d("20.13"));
        let table = tiers(&[("5", "10", "100"), ("", "5", "50")]);
        assert_eq!(prorated_graduated(d("5"), d("-95"), d("0.5"), &table).unwrap(), d("-500"), "below 0 the first price holds");
        assert_eq!(prorated_graduated(d("4"), d("7"), d("0.5"), &table).unwrap(), d("10"));
        assert_eq!(tier_fees(d("5"), &table).unwrap(), d("100"));
        assert_eq!(tier_fees(d("5.1"), &table).unwrap(), d("150"));
        assert_eq!(tier_fees(d("-1"), &table).unwrap(), d("100"));
    }

    #[test]
    fn what_has_no_price_says_so() {
        let bounded = tiers(&[("10", "1", "0")]);
        for (quantity, table, text) in [
            ("11", bounded.clone(), "quantity 11 is above the last tier, which ends at 10; give the last tier an empty up_to"),
            ("11", tiers(&[("10", "1", "0"), ("5", "1", "0")]), "tiers do not ascend: up_to 5 follows 10"),
            ("11", tiers(&[("10", "1", "0"), ("10", "1", "0")]), "tiers do not ascend: up_to 10 follows 10"),
            ("1", tiers(&[("0", "1", "0"), ("", "1", "0")]), "tiers do not ascend: up_to 0 follows 0"),
            ("1", Vec::new(), "the list of tiers is empty"),
            (
                "99999999999999999999",
                tiers(&[("", "2", "0")]),
                "price of quantity 99999999999999999999: needs more than 20 digits before the point",
            ),
        ] {
            for result in [graduated(d(quantity), &table, false), volume(d(quantity), &table, false, None)] {
                assert_eq!(result.unwrap_err().to_string(), text);
            }
        }
        assert!(stairstep(d("11"), &bounded, Steps::Cumulative).is_err());
        assert!(capacity(d("11"), &bounded).is_err());
        assert_eq!("all".parse::<Steps>().unwrap_err().to_string(), "mode `all` is unknown; it is one of reached, cumulative");
    }

    #[test]
    fn graduated_is_continuous_at_bounds_and_never_falls() {
        let table = tiers(&[("0.1", "10", "0"), ("1", "5.123456789", "0"), ("7.5", "0", "0"), ("", "0.000000000000000007", "0")]);
        let smallest = Decimal::from_raw(1).unwrap();
        for bound in ["0.1", "1", "7.5"] {
            let at = graduated(d(bound), &table, false).unwrap();
            let above = graduated(d(bound).plus(smallest).unwrap(), &table, false).unwrap();
            let below = graduated(d(bound).subtract(smallest).unwrap(), &table, false).unwrap();
            let jump = above.subtract(below).unwrap();
            assert!(below <= at && at <= above && jump.raw() <= 20, "at {bound}: {below} {at} {above}");
        }
        let mut before = Decimal::ZERO;
        for step in 1..2000 {
            let price = graduated(hundredths(step), &table, false).unwrap();
            assert!(price >= before, "at {step} hundredths");
            before = price;
        }
    }

    #[test]
    fn steps_and_changes_add_up_to_the_price() {
        // Prices with 18 places, so that every product needs rounding.
        let table =
            tiers(&[("0.37", "0.333333333333333333", "0"), ("2.01", "0.142857142857142857", "0"), ("", "0.012345678901234567", "0")]);
        let mut changes = Decimal::ZERO;
        for step in 1..700 {
            let quantity = hundredths(step);
            let price = graduated(quantity, &table, false).unwrap();
            let steps = breakdown(quantity, &table, false).unwrap();
            assert_eq!(steps.iter().fold(Decimal::ZERO, |sum, s| sum.plus(s.amount).unwrap()), price, "steps of {quantity}");
            assert_eq!(steps.iter().fold(Decimal::ZERO, |sum, s| sum.plus(s.quantity).unwrap()), quantity);
            let change = prorated_graduated(hundredths(step - 1), quantity, Decimal::ONE, &table).unwrap();
            changes = changes.plus(change).unwrap();
            assert_eq!(changes, price, "changes up to {quantity}");
        }
    }
}
