//! Prices of whole blocks, by tiers of blocks.

use std::str::FromStr;

use ratemill_schemas::Decimal;

use super::exact::{ONE, steps_up, whole_number};
use super::{PricingError, computing, not_negative, positive};

/// One tier of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockTier {
    /// Units in a block.
    pub(crate) block_size: Decimal,
    /// How many blocks the tier holds; `None` is open. Of the last tier it does not matter.
    pub(crate) max_blocks: Option<Decimal>,
    /// Price of one block.
    pub(crate) block_price: Decimal,
}

/// How tiers share the units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum BlockPolicy {
    /// Each tier is filled and passes the rest on.
    #[default]
    AllTiers,
    /// All units are priced in the blocks of the highest tier that is reached that way.
    TopTier,
}

impl FromStr for BlockPolicy {
    type Err = PricingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all_tiers" => Ok(Self::AllTiers),
            "top_tier" => Ok(Self::TopTier),
            _ => Err(PricingError::Unknown { what: "policy", given: text.to_owned(), valid: "all_tiers, top_tier" }),
        }
    }
}

/// What one tier of blocks contributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockStep {
    /// Its number, from 1.
    pub(crate) tier: i64,
    /// How many of its blocks are used.
    pub(crate) blocks: Decimal,
    /// Their price.
    pub(crate) amount: Decimal,
}

/// The price of `quantity` in whole blocks; 0 and below cost nothing.
pub(crate) fn tiered_blocks(quantity: Decimal, tiers: &[BlockTier], policy: BlockPolicy) -> Result<Decimal, PricingError> {
    let steps = block_breakdown(quantity, tiers, policy)?;
    let total = steps.iter().try_fold(Decimal::ZERO, |sum, step| sum.plus(step.amount));
    total.map_err(computing(format_args!("price of {quantity} in blocks:")))
}

/// The tiers of which blocks are used, in order; none for a quantity of 0 and below.
pub(crate) fn block_breakdown(quantity: Decimal, tiers: &[BlockTier], policy: BlockPolicy) -> Result<Vec<BlockStep>, PricingError> {
    let mut steps = Vec::new();
    if quantity <= Decimal::ZERO {
        return Ok(steps);
    }
    let what = format_args!("price of {quantity} in blocks:");
    let failed = computing(what);
    let mut left = quantity;
    for (position, tier) in tiers.iter().enumerate() {
        let needed = steps_up(left, positive("block size", tier.block_size)?);
        let held = match tier.max_blocks {
            Some(max_blocks) if position + 1 < tiers.len() => whole(max_blocks)?,
            _ => needed,
        };
        let last = needed <= held;
        let used = match policy {
            BlockPolicy::AllTiers => needed.min(held),
            BlockPolicy::TopTier if last => steps_up(quantity, tier.block_size),
            BlockPolicy::TopTier => 0,
        };
        if used > 0 {
            let amount = tier.block_price.scaled_by(used, 1).map_err(failed)?;
            let number = i64::try_from(position).unwrap_or(i64::MAX).saturating_add(1);
            steps.push(BlockStep { tier: number, blocks: whole_number(used).map_err(failed)?, amount });
        }
        if last {
            return Ok(steps);
        }
        left = tier.block_size.scaled_by(held, 1).and_then(|taken| left.subtract(taken)).map_err(failed)?;
    }
    Err(PricingError::Empty("blocks"))
}

fn whole(max_blocks: Decimal) -> Result<i128, PricingError> {
    let raw = not_negative("max_blocks", max_blocks)?.raw();
    if raw % ONE == 0 { Ok(raw / ONE) } else { Err(PricingError::PartBlock(max_blocks)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pricing::d;

    fn tiers(rows: &[(&str, &str, &str)]) -> Vec<BlockTier> {
        rows.iter()
            .map(|(size, max, price)| BlockTier {
                block_size: d(size),
                max_blocks: (!max.is_empty()).then(|| d(max)),
                block_price: d(price),
            })
            .collect()
    }

    fn shown(quantity: &str, rows: &[(&str, &str, &str)], policy: BlockPolicy) -> String {
        let steps = block_breakdown(d(quantity), &tiers(rows), policy).unwrap();
        let amount = tiered_blocks(d(quantity), &tiers(rows), policy).unwrap();
        let steps: Vec<String> = steps.iter().map(|s| format!("{}: {} {}", s.tier, s.blocks, s.amount)).collect();
        format!("{amount} = {}", steps.join(" + "))
    }

    #[test]
    fn blocks_by_hand() {
        use BlockPolicy::{AllTiers, TopTier};
        let two = [("100", "10", "1"), ("1000", "100", "1")];
        let falling = [("100", "10", "10"), ("100", "", "1")];
        let one = [("100", "10", "2")];
        for (quantity, rows, policy, expected) in [
            ("5325", &two[..], AllTiers, "15 = 1: 10 10 + 2: 5 5"),
            ("1000", &two, AllTiers, "10 = 1: 10 10"),
            ("1000.5", &two, AllTiers, "11 = 1: 10 10 + 2: 1 1"),
            ("0", &two, AllTiers, "0 = "),
            ("-1", &two, TopTier, "0 = "),
            ("2000", &falling, TopTier, "20 = 2: 20 20"),
            ("1000", &falling, TopTier, "100 = 1: 10 100"),
            ("199", &one, AllTiers, "4 = 1: 2 4"),
            ("2000", &one, AllTiers, "40 = 1: 20 40"),
            ("13", &[("1", "5", "2"), ("1", "10000", "1")], AllTiers, "18 = 1: 5 10 + 2: 8 8"),
            ("3", &[("1", "0", "9"), ("2", "", "1")], AllTiers, "2 = 2: 2 2"),
            ("3", &[("1", "", "9"), ("2", "", "1")], AllTiers, "27 = 1: 3 27"),
        ] {
            assert_eq!(shown(quantity, rows, policy), expected, "{quantity} {policy:?}");
        }
    }

    #[test]
    fn what_has_no_price_says_so() {
        for (rows, text) in [
            (&[][..], "the list of blocks is empty"),
            (&[("0", "", "1")], "block size 0 is not above zero"),
            (&[("1", "1.5", "1"), ("1", "", "1")], "max_blocks 1.5 is not a whole number"),
            (&[("1", "-1", "1"), ("1", "", "1")], "max_blocks -1 is below zero"),
        ] {
            assert_eq!(tiered_blocks(d("5"), &tiers(rows), BlockPolicy::AllTiers).unwrap_err().to_string(), text);
        }
        assert!("top".parse::<BlockPolicy>().is_err());
    }
}
