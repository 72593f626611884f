//! Where usage belongs: the windows that are looked at, and usage that has none for want of a contract.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionImplementation, ScalarUDF, Volatility, create_udf};
use ratemill_schemas::time::instant_type;
use ratemill_schemas::{BillingPeriods, Window};

use crate::reference::ReferenceData;
use crate::rule::RuleWindow;

/// The number of the place of usage that no contract gives a billing period.
pub const ASTRAY: i64 = -1;

/// Windows by number.
#[derive(Debug, Clone, Default)]
pub struct Places {
    windows: Vec<RuleWindow>,
    /// Numbers of a contract's windows, ascending in time; those of no contract are under "".
    numbers: HashMap<String, Vec<usize>>,
    /// Who has which contract, the first that knows a place for an event decides.
    periods: Vec<Arc<BillingPeriods>>,
    /// When usage without a contract counts.
    astray: Option<Window>,
}

impl Places {
    /// These windows of a rule.
    #[must_use]
    pub fn of(mut windows: Vec<RuleWindow>) -> Self {
        windows.sort();
        windows.dedup();
        let mut numbers: HashMap<String, Vec<usize>> = HashMap::new();
        for (number, rated) in windows.iter().enumerate() {
            numbers.entry(rated.contract_id.clone().unwrap_or_default()).or_default().push(number);
        }
        Self { windows, numbers, periods: Vec::new(), astray: None }
    }

    /// The same, where an event that has no place yet has one by the contracts of this reference data.
    #[must_use]
    pub fn or_by(mut self, reference: &ReferenceData) -> Self {
        self.periods.extend(reference.billing_periods().map(Arc::clone));
        self
    }

    /// The same, with usage of this time that no contract gives a billing period, as [`ASTRAY`].
    #[must_use]
    pub fn or_astray(mut self, time: Window) -> Self {
        self.astray = Some(time);
        self
    }

    /// The windows by number.
    #[must_use]
    pub fn windows(&self) -> &[RuleWindow] {
        &self.windows
    }

    /// The number of the place of usage of `subject` at `time`.
    #[must_use]
    pub fn find(&self, time: i64, subject: &str) -> Option<i64> {
        if let Some(number) = self.holding("", time) {
            return Some(number);
        }
        let mut has_contract = false;
        for periods in &self.periods {
            if let Some(contract) = periods.contract_of(subject, time) {
                has_contract = true;
                if let Some(number) = self.holding(contract, time) {
                    return Some(number);
                }
            }
        }
        (!has_contract && self.astray.is_some_and(|astray| astray.contains(time))).then_some(ASTRAY)
    }

    fn holding(&self, contract: &str, time: i64) -> Option<i64> {
        let numbers = self.numbers.get(contract)?;
        let last = numbers.partition_point(|number| self.windows[*number].window.start <= time).checked_sub(1)?;
        let number = numbers[last];
        (time < self.windows[number].window.end).then(|| i64::try_from(number).unwrap_or(i64::MAX))
    }

    /// The time of all places, as ranges that do not touch.
    pub(super) fn ranges(&self) -> Vec<Window> {
        let mut spans: Vec<Window> = self.windows.iter().map(|rated| rated.window).chain(self.astray).collect();
        spans.retain(|span| span.start < span.end);
        spans.sort_unstable();
        let mut ranges: Vec<Window> = Vec::new();
        for span in spans {
            match ranges.last_mut() {
                Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
                _ => ranges.push(span),
            }
        }
        ranges
    }

    /// `place(time, subject)`.
    pub(super) fn function(self: &Arc<Self>) -> ScalarUDF {
        let places = Arc::clone(self);
        let find = of_rows(move |times, subjects| {
            Arc::new((0..times.len()).map(|row| places.find(times.value(row), subjects.value(row))).collect::<Int64Array>())
        });
        create_udf("place_of_usage", vec![instant_type(), DataType::Utf8], DataType::Int64, Volatility::Immutable, find)
    }
}

/// A function of the times and subjects of events.
pub(super) fn of_rows(
    find: impl Fn(&TimestampMicrosecondArray, &StringArray) -> ArrayRef + Send + Sync + 'static,
) -> ScalarFunctionImplementation {
    Arc::new(move |arguments: &[ColumnarValue]| -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(arguments)?;
        Ok(ColumnarValue::Array(find(arrays[0].as_primitive::<TimestampMicrosecondType>(), arrays[1].as_string::<i32>())))
    })
}
