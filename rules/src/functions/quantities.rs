//! Quantity models as SQL functions: the formulas are in [`crate::pricing`], the reference is `FUNCTIONS.md`.

use super::binding::Kind::{Boolean, Integer, List, Number, Text};
use super::binding::Need::{Given, Nullable, Optional};
use super::binding::{Definition, Elements, Kind, Row, Value};
use crate::pricing::blocks::{self, BlockTier};
use crate::pricing::tiers::{self, Tier};
use crate::pricing::{PricingError, packages, percentage};

/// Members of `tiers`.
const TIERS: Kind = List(&[("up_to", Number), ("unit_price", Number), ("flat_fee", Number)]);
/// Members of `blocks`.
const BLOCKS: Kind = List(&[("block_size", Number), ("max_blocks", Number), ("block_price", Number)]);

fn tiers_of(elements: &Elements<'_>) -> Result<Vec<Tier>, PricingError> {
    (0..elements.len())
        .map(|row| {
            Ok(Tier {
                up_to: elements.number("up_to", row)?,
                unit_price: elements.number("unit_price", row)?.unwrap_or_default(),
                flat_fee: elements.number("flat_fee", row)?.unwrap_or_default(),
            })
        })
        .collect()
}

fn blocks_of(elements: &Elements<'_>) -> Result<Vec<BlockTier>, PricingError> {
    (0..elements.len())
        .map(|row| {
            Ok(BlockTier {
                block_size: elements.number("block_size", row)?.unwrap_or_default(),
                max_blocks: elements.number("max_blocks", row)?,
                block_price: elements.number("block_price", row)?.unwrap_or_default(),
            })
        })
        .collect()
}

fn tiers_at(row: &Row<'_>, index: usize) -> Result<std::sync::Arc<Vec<Tier>>, PricingError> {
    row.list(index, tiers_of).map(Option::unwrap_or_default)
}

/// The functions of this file.
pub(super) const FUNCTIONS: &[Definition] = &[
    Definition {
        name: "graduated",
        parameters: &[("quantity", Number, Given), ("tiers", TIERS, Given), ("flat_on_zero", Boolean, Optional)],
        result: Number,
        call: |row| tiers::graduated(row.number(0)?, &tiers_at(row, 1)?, row.is_true(2)).map(Value::Number),
    },
    Definition {
        name: "volume",
        parameters: &[
            ("quantity", Number, Given),
            ("tiers", TIERS, Given),
            ("flat_on_zero", Boolean, Optional),
            ("tier_quantity", Number, Optional),
        ],
        result: Number,
        call: |row| tiers::volume(row.number(0)?, &tiers_at(row, 1)?, row.is_true(2), row.number_or_none(3)?).map(Value::Number),
    },
    Definition {
        name: "graduated_percentage",
        parameters: &[("amount", Number, Given), ("tiers", TIERS, Given), ("flat_on_zero", Boolean, Optional)],
        result: Number,
        call: |row| tiers::graduated_percentage(row.number(0)?, &tiers_at(row, 1)?, row.is_true(2)).map(Value::Number),
    },
    Definition {
        name: "tier_breakdown",
        parameters: &[("quantity", Number, Given), ("tiers", TIERS, Given), ("flat_on_zero", Boolean, Optional)],
        result: List(&[
            ("tier", Integer),
            ("low", Number),
            ("up_to", Number),
            ("quantity", Number),
            ("unit_price", Number),
            ("flat_fee", Number),
            ("amount", Number),
        ]),
        call: |row| {
            let steps = tiers::breakdown(row.number(0)?, &tiers_at(row, 1)?, row.is_true(2))?;
            let step = |step: tiers::TierStep| {
                vec![
                    Value::Integer(step.tier),
                    Value::Number(step.low),
                    step.up_to.map_or(Value::Null, Value::Number),
                    Value::Number(step.quantity),
                    Value::Number(step.unit_price),
                    Value::Number(step.flat_fee),
                    Value::Number(step.amount),
                ]
            };
            Ok(Value::Rows(steps.into_iter().map(step).collect()))
        },
    },
    Definition {
        name: "stairstep",
        parameters: &[("quantity", Number, Given), ("tiers", TIERS, Given), ("mode", Text, Optional)],
        result: Number,
        call: |row| tiers::stairstep(row.number(0)?, &tiers_at(row, 1)?, row.word(2)?).map(Value::Number),
    },
    Definition {
        name: "capacity",
        parameters: &[("quantity", Number, Given), ("tiers", TIERS, Given)],
        result: Number,
        call: |row| tiers::capacity(row.number(0)?, &tiers_at(row, 1)?).map(Value::Number),
    },
    Definition {
        name: "tier_fees",
        parameters: &[("quantity", Number, Given), ("tiers", TIERS, Given)],
        result: Number,
        call: |row| tiers::tier_fees(row.number(0)?, &tiers_at(row, 1)?).map(Value::Number),
    },
    Definition {
        name: "prorated_graduated",
        parameters: &[("before", Number, Given), ("after", Number, Given), ("share", Number, Given), ("tiers", TIERS, Given)],
        result: Number,
        call: |row| tiers::prorated_graduated(row.number(0)?, row.number(1)?, row.number(2)?, &tiers_at(row, 3)?).map(Value::Number),
    },
    Definition {
        name: "packages",
        parameters: &[("quantity", Number, Given), ("size", Number, Given), ("free", Number, Optional), ("rounding", Text, Optional)],
        result: Number,
        call: |row| packages::packages(row.number(0)?, row.number(1)?, row.number(2)?, row.word(3)?).map(Value::Number),
    },
    Definition {
        name: "package",
        parameters: &[
            ("quantity", Number, Given),
            ("size", Number, Given),
            ("price", Number, Given),
            ("free", Number, Optional),
            ("rounding", Text, Optional),
        ],
        result: Number,
        call: |row| packages::package(row.number(0)?, row.number(1)?, row.number(2)?, row.number(3)?, row.word(4)?).map(Value::Number),
    },
    Definition {
        name: "tiered_blocks",
        parameters: &[("quantity", Number, Given), ("blocks", BLOCKS, Given), ("policy", Text, Optional)],
        result: Number,
        call: |row| {
            let tiers = row.list(1, blocks_of)?.unwrap_or_default();
            blocks::tiered_blocks(row.number(0)?, &tiers, row.word(2)?).map(Value::Number)
        },
    },
    Definition {
        name: "block_breakdown",
        parameters: &[("quantity", Number, Given), ("blocks", BLOCKS, Given), ("policy", Text, Optional)],
        result: List(&[("tier", Integer), ("blocks", Number), ("amount", Number)]),
        call: |row| {
            let tiers = row.list(1, blocks_of)?.unwrap_or_default();
            let steps = blocks::block_breakdown(row.number(0)?, &tiers, row.word(2)?)?;
            let step = |step: blocks::BlockStep| vec![Value::Integer(step.tier), Value::Number(step.blocks), Value::Number(step.amount)];
            Ok(Value::Rows(steps.into_iter().map(step).collect()))
        },
    },
    Definition {
        name: "overage",
        parameters: &[("quantity", Number, Given), ("included", Number, Nullable)],
        result: Number,
        call: |row| percentage::overage(row.number(0)?, row.number(1)?).map(Value::Number),
    },
    Definition {
        name: "percentage",
        parameters: &[
            ("amount", Number, Given),
            ("rate", Number, Given),
            ("fixed_fee", Number, Optional),
            ("minimum", Number, Optional),
            ("maximum", Number, Optional),
        ],
        result: Number,
        call: |row| {
            percentage::percentage(row.number(0)?, row.number(1)?, row.number(2)?, row.number_or_none(3)?, row.number_or_none(4)?)
                .map(Value::Number)
        },
    },
    Definition {
        name: "at_least",
        parameters: &[("amount", Number, Given), ("minimum", Number, Nullable)],
        result: Number,
        call: |row| Ok(Value::Number(percentage::at_least(row.number(0)?, row.number_or_none(1)?))),
    },
    Definition {
        name: "at_most",
        parameters: &[("amount", Number, Given), ("maximum", Number, Nullable)],
        result: Number,
        call: |row| Ok(Value::Number(percentage::at_most(row.number(0)?, row.number_or_none(1)?))),
    },
    Definition {
        name: "increments",
        parameters: &[("seconds", Number, Given), ("first", Number, Given), ("next", Number, Given), ("minimum", Number, Optional)],
        result: Number,
        call: |row| packages::increments(row.number(0)?, row.number(1)?, row.number(2)?, row.number(3)?).map(Value::Number),
    },
    Definition {
        name: "round_up_to",
        parameters: &[("number", Number, Given), ("step", Number, Given)],
        result: Number,
        call: |row| packages::round_up_to(row.number(0)?, row.number(1)?).map(Value::Number),
    },
    Definition {
        name: "round_down_to",
        parameters: &[("number", Number, Given), ("step", Number, Given)],
        result: Number,
        call: |row| packages::round_down_to(row.number(0)?, row.number(1)?).map(Value::Number),
    },
];
