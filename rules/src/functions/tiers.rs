//! Tiered prices: `graduated` (each tier prices its own part) and `volume` (one tier prices everything).
//!
//! A tier covers `low < quantity <= up_to`, `low` being the bound before it and 0 for the first, so that no fractional
//! quantity falls between two tiers. A tier is entered when `quantity > low`; its flat fee is due once it is entered.
//! A quantity of zero or less enters no tier and costs nothing.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, StructArray};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Fields};
use datafusion::common::{Result, exec_err, plan_err, utils::take_function_args};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use ratemill_schemas::decimal::{DECIMAL, Decimal, DecimalError};

/// `List<Struct<up_to, unit_price, flat_fee>>`, ascending by `up_to`, whose last may be null (no upper bound).
#[must_use]
pub fn tiers_type() -> DataType {
    DataType::List(tiers_field())
}

/// The element of [`tiers_type`].
#[must_use]
pub fn tiers_field() -> FieldRef {
    let fields = Fields::from(vec![
        Field::new("up_to", DECIMAL, true),
        Field::new("unit_price", DECIMAL, false),
        Field::new("flat_fee", DECIMAL, false),
    ]);
    Arc::new(Field::new_list_field(DataType::Struct(fields), true))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Model {
    Graduated,
    Volume,
}

/// `graduated(quantity, tiers)` and `volume(quantity, tiers)`.
///
/// * graduated: `Σ (min(quantity, up_to) − low) × unit_price + flat_fee` over the tiers entered.
/// * volume: `quantity × unit_price + flat_fee` of the one tier with `low < quantity <= up_to`.
///
/// Example: tiers (100 at 0, then 0.05): `graduated(120, tiers)` is 1.00, `volume(120, tiers)` is 6.00.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Tiered {
    model: Model,
    signature: Signature,
}

impl Tiered {
    pub(super) fn graduated() -> Self {
        Self { model: Model::Graduated, signature: Signature::user_defined(Volatility::Immutable) }
    }

    pub(super) fn volume() -> Self {
        Self { model: Model::Volume, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

#[derive(Debug, Clone, Copy)]
struct Tier {
    up_to: Option<Decimal>,
    unit_price: Decimal,
    flat_fee: Decimal,
}

impl Model {
    fn amount(self, quantity: Decimal, tiers: &[Tier]) -> Result<Decimal> {
        if quantity <= Decimal::ZERO {
            return Ok(Decimal::ZERO);
        }
        let failed = |error: DecimalError| datafusion::common::exec_datafusion_err!("price of quantity {quantity}: {error}");
        let mut low = Decimal::ZERO;
        let mut amount = Decimal::ZERO;
        for tier in tiers {
            if tier.up_to.is_some_and(|up_to| up_to <= low) {
                return exec_err!("tiers do not ascend: up_to {} follows {low}", tier.up_to.unwrap_or_default());
            }
            let last = tier.up_to.is_none_or(|up_to| quantity <= up_to);
            match self {
                Self::Volume if last => {
                    return quantity.multiply(tier.unit_price).and_then(|price| price.plus(tier.flat_fee)).map_err(failed);
                }
                Self::Volume => {}
                Self::Graduated => {
                    let upper = if last { quantity } else { tier.up_to.unwrap_or(quantity) };
                    let part =
                        upper.subtract(low).and_then(|part| part.multiply(tier.unit_price)).and_then(|price| price.plus(tier.flat_fee));
                    amount = part.and_then(|part| amount.plus(part)).map_err(failed)?;
                    if last {
                        return Ok(amount);
                    }
                }
            }
            low = tier.up_to.unwrap_or(low);
        }
        exec_err!("quantity {quantity} is above the last tier, which ends at {low}; give the last tier an empty up_to")
    }
}

impl ScalarUDFImpl for Tiered {
    fn name(&self) -> &str {
        match self.model {
            Model::Graduated => "graduated",
            Model::Volume => "volume",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        match types {
            [quantity, tiers] if super::arithmetic::is_exact_number(quantity) && *tiers == tiers_type() => Ok(vec![DECIMAL, tiers_type()]),
            [_, tiers] if *tiers != tiers_type() => {
                plan_err!(
                    "{}: the second argument is the `tiers` column of a reference table with up_to, unit_price and flat_fee",
                    self.name()
                )
            }
            _ => plan_err!("{}(quantity, tiers) takes an exact quantity and tiers", self.name()),
        }
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DECIMAL)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let [quantities, tiers] = take_function_args(self.name(), args.args)?;
        let (quantities, tiers) = (quantities.into_array(rows)?, tiers.into_array(rows)?);
        let quantities = quantities.as_primitive::<Decimal128Type>();
        let lists = tiers.as_list::<i32>();
        let amounts = (0..rows)
            .map(|row| {
                if quantities.is_null(row) || lists.is_null(row) {
                    return Ok(None);
                }
                let quantity = decimal(quantities.value(row))?;
                self.model.amount(quantity, &read(&lists.value(row))?).map(|amount| Some(amount.raw()))
            })
            .collect::<Result<Decimal128Array>>()?;
        Ok(ColumnarValue::Array(Arc::new(amounts.with_data_type(DECIMAL))))
    }
}

fn decimal(raw: i128) -> Result<Decimal> {
    Decimal::from_raw(raw).map_err(|error| datafusion::common::exec_datafusion_err!("a stored decimal {error}"))
}

fn read(tiers: &ArrayRef) -> Result<Vec<Tier>> {
    let tiers: &StructArray = tiers.as_struct();
    let column = |index: usize| tiers.column(index).as_primitive::<Decimal128Type>();
    let (up_to, unit_price, flat_fee) = (column(0), column(1), column(2));
    (0..tiers.len())
        .map(|row| {
            Ok(Tier {
                up_to: up_to.is_valid(row).then(|| decimal(up_to.value(row))).transpose()?,
                unit_price: decimal(unit_price.value(row))?,
                flat_fee: decimal(flat_fee.value(row))?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tiers(rows: &[(&str, &str, &str)]) -> Vec<Tier> {
        rows.iter()
            .map(|(up_to, price, fee)| Tier {
                up_to: (!up_to.is_empty()).then(|| up_to.parse().unwrap()),
                unit_price: price.parse().unwrap(),
                flat_fee: fee.parse().unwrap(),
            })
            .collect()
    }

    #[test]
    fn amounts_by_hand() {
        let table = tiers(&[("10", "5", "1"), ("20", "4", "0"), ("", "3", "2")]);
        for (quantity, graduated, volume) in [
            ("0", "0", "0"),
            ("-3", "0", "0"),
            ("0.5", "3.5", "3.5"),
            ("10", "51", "51"),
            ("10.5", "53", "42"),
            ("20", "91", "80"),
            ("25", "108", "77"),
        ] {
            let quantity: Decimal = quantity.parse().unwrap();
            assert_eq!(Model::Graduated.amount(quantity, &table).unwrap().to_string(), graduated, "graduated({quantity})");
            assert_eq!(Model::Volume.amount(quantity, &table).unwrap().to_string(), volume, "volume({quantity})");
        }
        assert!(Model::Graduated.amount("11".parse().unwrap(), &tiers(&[("10", "1", "0")])).is_err());
        assert!(Model::Graduated.amount("11".parse().unwrap(), &tiers(&[("10", "1", "0"), ("5", "1", "0")])).is_err());
    }
}
