//! The `charges` table: the append-only ledger.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::decimal::DECIMAL;
use crate::time::instant_type;

/// Why a ledger row was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChargeClass {
    /// The first charge of its identity, with its window's first publication.
    Original,
    /// A reversal, its replacement, or a charge that was added to a window published before.
    Correction,
}

impl ChargeClass {
    /// The word in the table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Correction => "correction",
        }
    }
}

/// Columns that every charge has, in the order of the ledger; a rule's further columns follow them.
///
/// `charge_id` and `revision` name the row; `reverses` the row that it takes back; `cause` what led to it
/// (`window closed`, `late usage`, …). Instants are UTC; `billing_period` and `posting_period` are months like
/// `2026-10`. `amount` is in `currency`, unrounded. `posting_period` is the partition.
#[must_use]
pub fn schema(further: &[Field]) -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    let optional = |name: &str| Field::new(name, DataType::Utf8, true);
    let mut fields = vec![
        text("charge_id"),
        Field::new("revision", DataType::Int32, false),
        text("customer_id"),
        optional("contract_id"),
        Field::new("window_start", instant_type(), false),
        Field::new("window_end", instant_type(), false),
        text("billing_period"),
        text("posting_period"),
        text("item"),
        text("currency"),
        Field::new("amount", DECIMAL, false),
        Field::new("quantity", DECIMAL, true),
        optional("unit"),
        Field::new("unit_price", DECIMAL, true),
        text("rule"),
        text("rule_version"),
        text("reference_version"),
        text("class"),
        optional("reverses"),
        text("cause"),
        Field::new("epoch", DataType::Int64, false),
        Field::new("rated_at", instant_type(), false),
        Field::new("usage_version", DataType::Int64, false),
        optional("detail"),
    ];
    fields.extend(further.iter().cloned());
    Arc::new(Schema::new(fields))
}

/// Names of the columns that a rule's output may not take for a further column.
#[must_use]
pub fn reserved() -> Vec<String> {
    schema(&[]).fields().iter().map(|field| field.name().clone()).collect()
}
