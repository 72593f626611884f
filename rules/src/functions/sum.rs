//! `sum`: exact, with a state of 76 digits, so that only a result that does not fit fails, whatever the order.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Decimal256Array};
use arrow::compute::{not, nullif, prep_null_mask_filter};
use arrow::datatypes::{DataType, Decimal128Type, Decimal256Type, Field, FieldRef, i256};
use datafusion::common::{Result, ScalarValue, exec_datafusion_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature, Volatility};
use datafusion::physical_expr::NullState;
use ratemill_schemas::decimal::{DECIMAL, Decimal, SCALE};

use super::arithmetic::is_exact_number;

const STATE: DataType = DataType::Decimal256(76, SCALE);

fn narrow(sum: i256) -> Result<i128> {
    sum.to_i128()
        .and_then(|raw| Decimal::from_raw(raw).ok())
        .map(Decimal::raw)
        .ok_or_else(|| exec_datafusion_err!("sum needs more than 20 digits before the point"))
}

/// The checked `sum` over exact numbers; its result is `Decimal128(38, 18)`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct CheckedSum {
    signature: Signature,
}

impl CheckedSum {
    pub(super) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for CheckedSum {
    fn name(&self) -> &str {
        "sum"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DECIMAL)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        match types {
            [one] if is_exact_number(one) => Ok(vec![DECIMAL]),
            [one] => plan_err!("sum needs exact numbers, not {one}"),
            _ => plan_err!("sum takes 1 argument"),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let field = if args.is_distinct {
            Field::new_list(format_state_name(args.name, "distinct"), Field::new_list_field(DECIMAL, true), false)
        } else {
            Field::new(format_state_name(args.name, "sum"), STATE, true)
        };
        Ok(vec![Arc::new(field)])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(if args.is_distinct { Box::new(DistinctSum::default()) } else { Box::new(Sum::default()) })
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        self.accumulator(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(GroupSums { sums: Vec::new(), nulls: NullState::new() }))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }
}

#[derive(Debug, Default)]
struct Sum {
    sum: i256,
    count: i64,
}

impl Accumulator for Sum {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in values[0].as_primitive::<Decimal128Type>().iter().flatten() {
            self.sum = self.sum.wrapping_add(i256::from_i128(value));
            self.count += 1;
        }
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in values[0].as_primitive::<Decimal128Type>().iter().flatten() {
            self.sum = self.sum.wrapping_sub(i256::from_i128(value));
            self.count -= 1;
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for value in states[0].as_primitive::<Decimal256Type>().iter().flatten() {
            self.sum = self.sum.wrapping_add(value);
            self.count += 1;
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::Decimal256((self.count > 0).then_some(self.sum), 76, SCALE)])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let sum = if self.count > 0 { Some(narrow(self.sum)?) } else { None };
        Ok(ScalarValue::Decimal128(sum, 38, SCALE))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

#[derive(Debug, Default)]
struct DistinctSum {
    counts: HashMap<i128, u64>,
}

impl DistinctSum {
    fn add(&mut self, values: &Decimal128Array) {
        for value in values.iter().flatten() {
            *self.counts.entry(value).or_default() += 1;
        }
    }
}

impl Accumulator for DistinctSum {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.add(values[0].as_primitive::<Decimal128Type>());
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in values[0].as_primitive::<Decimal128Type>().iter().flatten() {
            if let Some(count) = self.counts.get_mut(&value) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&value);
                }
            }
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for values in states[0].as_list::<i32>().iter().flatten() {
            self.add(values.as_primitive::<Decimal128Type>());
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let values: Vec<ScalarValue> = self.counts.keys().map(|value| ScalarValue::Decimal128(Some(*value), 38, SCALE)).collect();
        Ok(vec![ScalarValue::List(ScalarValue::new_list_nullable(&values, &DECIMAL))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let sum = self.counts.keys().fold(i256::ZERO, |sum, value| sum.wrapping_add(i256::from_i128(*value)));
        let sum = if self.counts.is_empty() { None } else { Some(narrow(sum)?) };
        Ok(ScalarValue::Decimal128(sum, 38, SCALE))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.counts.capacity() * size_of::<(i128, u64)>()
    }
}

struct GroupSums {
    sums: Vec<i256>,
    nulls: NullState,
}

impl GroupsAccumulator for GroupSums {
    fn update_batch(&mut self, values: &[ArrayRef], groups: &[usize], filter: Option<&BooleanArray>, total: usize) -> Result<()> {
        self.sums.resize(total, i256::ZERO);
        let sums = &mut self.sums;
        self.nulls.accumulate(groups, values[0].as_primitive::<Decimal128Type>(), filter, total, |group, value| {
            sums[group] = sums[group].wrapping_add(i256::from_i128(value));
        });
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.sums.resize(total, i256::ZERO);
        let sums = &mut self.sums;
        self.nulls.accumulate(groups, states[0].as_primitive::<Decimal256Type>(), None, total, |group, value| {
            sums[group] = sums[group].wrapping_add(value);
        });
        Ok(())
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        let sums = emit.take_needed(&mut self.sums);
        let nulls = self.nulls.build(emit);
        let values = sums
            .into_iter()
            .enumerate()
            .map(|(group, sum)| if nulls.as_ref().is_some_and(|nulls| nulls.is_null(group)) { Ok(0) } else { narrow(sum) })
            .collect::<Result<Vec<i128>>>()?;
        Ok(Arc::new(Decimal128Array::new(values.into(), nulls).with_data_type(DECIMAL)))
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        let sums = emit.take_needed(&mut self.sums);
        let nulls = self.nulls.build(emit);
        Ok(vec![Arc::new(Decimal256Array::new(sums.into(), nulls).with_data_type(STATE))])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let wide: Decimal256Array =
            values[0].as_primitive::<Decimal128Type>().unary::<_, Decimal256Type>(i256::from_i128).with_data_type(STATE);
        let state: ArrayRef = match filter {
            None => Arc::new(wide),
            Some(filter) => {
                let filter = if filter.null_count() > 0 { prep_null_mask_filter(filter) } else { filter.clone() };
                nullif(&wide, &not(&filter)?)?
            }
        };
        Ok(vec![state])
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<i256>() + self.nulls.size()
    }
}
