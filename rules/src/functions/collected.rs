//! Aggregates that need all of their rows: the state is the rows themselves, and the formula is in
//! [`crate::pricing::history`]. `latest` needs the last one only and keeps no other. The order of arrival never matters.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, TimestampMicrosecondType};
use datafusion::common::{Result, ScalarValue, exec_datafusion_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility};
use ratemill_schemas::Decimal;
use ratemill_schemas::decimal::{DECIMAL, SCALE};
use ratemill_schemas::time::instant_type;

use super::arithmetic::is_exact_number;
use crate::pricing::{PricingError, history};

/// Which aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Formula {
    /// `latest(value, time)`.
    Latest,
    /// `percentile(value, percent)`.
    Percentile,
    /// `weighted(level, time, window_start, window_end)`.
    Weighted,
    /// `register_usage(reading, time [, rollover])`.
    Register,
}

impl Formula {
    const ALL: [Self; 4] = [Self::Latest, Self::Percentile, Self::Weighted, Self::Register];

    fn name(self) -> &'static str {
        match self {
            Self::Latest => "latest",
            Self::Percentile => "percentile",
            Self::Weighted => "weighted",
            Self::Register => "register_usage",
        }
    }

    fn usage(self) -> &'static str {
        match self {
            Self::Latest => "latest(value, time)",
            Self::Percentile => "percentile(value, percent)",
            Self::Weighted => "weighted(level, time, window_start, window_end)",
            Self::Register => "register_usage(reading, time [, rollover])",
        }
    }

    /// The types of its arguments; the first is always the value.
    fn arguments(self) -> Vec<DataType> {
        match self {
            Self::Latest => vec![DECIMAL, instant_type()],
            Self::Percentile => vec![DECIMAL, DECIMAL],
            Self::Weighted => vec![DECIMAL, instant_type(), instant_type(), instant_type()],
            Self::Register => vec![DECIMAL, instant_type(), DECIMAL],
        }
    }

    fn evaluate(self, rows: &mut Rows) -> Result<Option<Decimal>, PricingError> {
        if rows.values.is_empty() {
            return Ok(None);
        }
        match self {
            Self::Latest => Ok(rows.values.iter().max().map(|(_, value)| *value)),
            Self::Percentile => {
                let percent = rows.number.unwrap_or_default();
                let mut values: Vec<Decimal> = rows.values.iter().map(|(_, value)| *value).collect();
                history::percentile(&mut values, percent)
            }
            Self::Weighted => {
                let (start, end) = rows.window.unwrap_or_default();
                history::weighted(&mut rows.values, start, end).map(Some)
            }
            Self::Register => history::register_usage(&mut rows.values, rows.number).map(Some),
        }
    }
}

/// The functions of this file.
pub(super) fn functions() -> impl Iterator<Item = Arc<AggregateUDF>> {
    Formula::ALL
        .into_iter()
        .map(|formula| Arc::new(AggregateUDF::from(Collected { formula, signature: Signature::user_defined(Volatility::Immutable) })))
}

#[derive(Debug)]
struct Collected {
    formula: Formula,
    signature: Signature,
}

impl PartialEq for Collected {
    fn eq(&self, other: &Self) -> bool {
        self.formula == other.formula
    }
}

impl Eq for Collected {}

impl Hash for Collected {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.formula.hash(state);
    }
}

impl AggregateUDFImpl for Collected {
    fn name(&self) -> &str {
        self.formula.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DECIMAL)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let wanted = self.formula.arguments();
        let least = if self.formula == Formula::Register { 2 } else { wanted.len() };
        let fits = |given: &DataType, wanted: &DataType| {
            given.is_null() || if *wanted == DECIMAL { is_exact_number(given) } else { matches!(given, DataType::Timestamp(_, Some(_))) }
        };
        if types.len() < least || types.len() > wanted.len() || !types.iter().zip(&wanted).all(|(given, wanted)| fits(given, wanted)) {
            return plan_err!("{}: write {}, with exact numbers and instants", self.name(), self.formula.usage());
        }
        Ok(wanted[..types.len()].to_vec())
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let list = |name: &str, data_type: DataType| {
            Arc::new(Field::new_list(format_state_name(args.name, name), Field::new_list_field(data_type, true), true)) as FieldRef
        };
        let bound = |name: &str| Arc::new(Field::new(format_state_name(args.name, name), instant_type(), true)) as FieldRef;
        let number = Arc::new(Field::new(format_state_name(args.name, "number"), DECIMAL, true));
        Ok(vec![list("times", instant_type()), list("values", DECIMAL), number, bound("start"), bound("end")])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return plan_err!("{} takes no DISTINCT", self.name());
        }
        Ok(Box::new(Rows { formula: self.formula, values: Vec::new(), number: None, window: None }))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

/// The rows so far.
#[derive(Debug)]
struct Rows {
    formula: Formula,
    values: Vec<(i64, Decimal)>,
    /// The percentile or the rollover.
    number: Option<Decimal>,
    window: Option<(i64, i64)>,
}

impl Rows {
    /// Forgets what no later row can bring back.
    fn tidy(&mut self) {
        if self.formula == Formula::Latest && self.values.len() > 1 {
            self.values = self.values.iter().max().copied().into_iter().collect();
        }
    }

    fn failed(&self, error: impl std::fmt::Display) -> datafusion::common::DataFusionError {
        exec_datafusion_err!("{}: {error}", self.formula.name())
    }

    fn decimal(&self, raw: i128) -> Result<Decimal> {
        Decimal::from_raw(raw).map_err(|error| self.failed(format!("a decimal {error}")))
    }

    /// Takes note of a figure that must be the same in every row.
    fn constant(&mut self, number: Decimal) -> Result<()> {
        match self.number {
            Some(known) if known != number => Err(self.failed(format!("its last argument is {known} in one row and {number} in another"))),
            _ => {
                self.number = Some(number);
                Ok(())
            }
        }
    }

    fn window(&mut self, start: i64, end: i64) -> Result<()> {
        match self.window {
            Some(known) if known != (start, end) => Err(self.failed("its rows are of different windows; group by the window")),
            _ => {
                self.window = Some((start, end));
                Ok(())
            }
        }
    }
}

impl Accumulator for Rows {
    fn update_batch(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let values = columns[0].as_primitive::<Decimal128Type>();
        let numbers = match self.formula {
            Formula::Percentile => columns.get(1),
            Formula::Register => columns.get(2),
            _ => None,
        }
        .map(|column| column.as_primitive::<Decimal128Type>());
        let times = (self.formula != Formula::Percentile).then(|| columns[1].as_primitive::<TimestampMicrosecondType>());
        let bounds = (self.formula == Formula::Weighted)
            .then(|| (columns[2].as_primitive::<TimestampMicrosecondType>(), columns[3].as_primitive::<TimestampMicrosecondType>()));
        for row in 0..values.len() {
            if values.is_null(row) || times.is_some_and(|times| times.is_null(row)) {
                continue;
            }
            if let Some(numbers) = numbers.filter(|numbers| numbers.is_valid(row)) {
                let number = self.decimal(numbers.value(row))?;
                self.constant(number)?;
            }
            if let Some((starts, ends)) = bounds.filter(|(starts, ends)| starts.is_valid(row) && ends.is_valid(row)) {
                self.window(starts.value(row), ends.value(row))?;
            }
            let value = self.decimal(values.value(row))?;
            self.values.push((times.map_or(0, |times| times.value(row)), value));
        }
        self.tidy();
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (times, values) = (states[0].as_list::<i32>(), states[1].as_list::<i32>());
        let numbers = states[2].as_primitive::<Decimal128Type>();
        let (starts, ends) = (states[3].as_primitive::<TimestampMicrosecondType>(), states[4].as_primitive::<TimestampMicrosecondType>());
        for row in 0..times.len() {
            if times.is_null(row) || values.is_null(row) {
                continue;
            }
            if numbers.is_valid(row) {
                let number = self.decimal(numbers.value(row))?;
                self.constant(number)?;
            }
            if starts.is_valid(row) && ends.is_valid(row) {
                self.window(starts.value(row), ends.value(row))?;
            }
            let (times, values) = (times.value(row), values.value(row));
            let times = times.as_primitive::<TimestampMicrosecondType>().values();
            for (time, raw) in times.iter().zip(values.as_primitive::<Decimal128Type>().values()) {
                let value = self.decimal(*raw)?;
                self.values.push((*time, value));
            }
        }
        self.tidy();
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let instant = |micros| ScalarValue::TimestampMicrosecond(micros, Some("UTC".into()));
        let times: Vec<ScalarValue> = self.values.iter().map(|(time, _)| instant(Some(*time))).collect();
        let values: Vec<ScalarValue> = self.values.iter().map(|(_, value)| ScalarValue::Decimal128(Some(value.raw()), 38, SCALE)).collect();
        Ok(vec![
            ScalarValue::List(ScalarValue::new_list_nullable(&times, &instant_type())),
            ScalarValue::List(ScalarValue::new_list_nullable(&values, &DECIMAL)),
            ScalarValue::Decimal128(self.number.map(Decimal::raw), 38, SCALE),
            instant(self.window.map(|(start, _)| start)),
            instant(self.window.map(|(_, end)| end)),
        ])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let formula = self.formula;
        let result = formula.evaluate(self).map_err(|error| self.failed(error))?;
        Ok(ScalarValue::Decimal128(result.map(Decimal::raw), 38, SCALE))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.capacity() * size_of::<(i64, Decimal)>()
    }
}
