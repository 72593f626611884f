//! The windows of one execution, and which of them a row belongs to.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, Int64Builder, ListBuilder};
use arrow::datatypes::{DataType, Field, TimestampMicrosecondType};
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use ratemill_schemas::time::instant_type;
use ratemill_schemas::windows::WindowError;
use ratemill_schemas::{BillingPeriods, Window, WindowSpec};

use crate::reference::ReferenceData;
use crate::rule::Rule;

/// What one run of a query is for: a window, and the contract where the window is a billing period.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) window: Window,
    pub(crate) contract: Option<String>,
    /// First instant of the earlier windows that the rule reads.
    pub(crate) history_from: i64,
}

/// Targets by their number.
#[derive(Debug)]
pub(crate) struct WindowSet {
    targets: Vec<Target>,
    /// Numbers by contract, ascending in time; plain windows are under "".
    numbers: BTreeMap<String, Vec<usize>>,
    /// Contracts of the set that a subject ever had.
    contracts: HashMap<String, Vec<String>>,
    periods: Option<Arc<BillingPeriods>>,
}

impl WindowSet {
    /// The targets of these windows of `rule`.
    pub(crate) fn of(rule: &Rule, reference: &ReferenceData, windows: &[Window]) -> Result<Self, WindowError> {
        let (Some(from), Some(to)) = (windows.iter().map(|w| w.start).min(), windows.iter().map(|w| w.end).max()) else {
            return Ok(Self::new(Vec::new(), None));
        };
        let back = rule.options.history.unwrap_or(0);
        if rule.options.window != WindowSpec::BillingPeriod {
            let mut first = from;
            for _ in 0..back {
                first = rule.options.window.window_of(first.saturating_sub(1))?.start;
            }
            let starts: Vec<i64> = match back {
                0 => Vec::new(),
                _ => rule.options.window.windows_between(first, to)?.iter().map(|window| window.start).collect(),
            };
            let history_from = |window: &Window| {
                let index = starts.partition_point(|start| *start < window.start);
                starts.get(index.saturating_sub(back as usize)).copied().unwrap_or(window.start)
            };
            let mut targets: Vec<Target> =
                windows.iter().map(|window| Target { window: *window, contract: None, history_from: history_from(window) }).collect();
            targets.sort();
            targets.dedup();
            return Ok(Self::new(targets, None));
        }
        let Some(periods) = reference.billing_periods() else { return Ok(Self::new(Vec::new(), None)) };
        let wanted: std::collections::HashSet<Window> = windows.iter().copied().collect();
        let mut before: HashMap<String, Vec<i64>> = HashMap::new();
        let mut targets = Vec::new();
        for period in periods.between(if back == 0 { from } else { i64::MIN }, to)? {
            let starts = before.entry(period.contract_id.clone()).or_default();
            starts.push(period.window.start);
            if wanted.contains(&period.window) {
                let history_from = starts[starts.len().saturating_sub(1 + back as usize)];
                targets.push(Target { window: period.window, contract: Some(period.contract_id), history_from });
            }
        }
        targets.sort();
        targets.dedup();
        Ok(Self::new(targets, Some(Arc::clone(periods))))
    }

    fn new(targets: Vec<Target>, periods: Option<Arc<BillingPeriods>>) -> Self {
        let mut numbers: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (number, target) in targets.iter().enumerate() {
            numbers.entry(target.contract.clone().unwrap_or_default()).or_default().push(number);
        }
        let mut contracts: HashMap<String, Vec<String>> = HashMap::new();
        if let Some(periods) = &periods {
            for (subject, contract) in periods.subjects().filter(|(_, contract)| numbers.contains_key(*contract)) {
                let of_subject = contracts.entry(subject.to_owned()).or_default();
                if !of_subject.iter().any(|known| known == contract) {
                    of_subject.push(contract.to_owned());
                }
            }
        }
        Self { targets, numbers, contracts, periods }
    }

    /// No windows of `rule`.
    pub(crate) fn empty(rule: &Rule, reference: &ReferenceData) -> Self {
        let by_contract = rule.options.window == WindowSpec::BillingPeriod;
        Self::new(Vec::new(), reference.billing_periods().filter(|_| by_contract).cloned())
    }

    pub(crate) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Whether every target belongs to a contract.
    pub(crate) fn by_contract(&self) -> bool {
        self.periods.is_some()
    }

    pub(crate) fn periods(&self) -> Option<&BillingPeriods> {
        self.periods.as_deref()
    }

    /// The windows of the set as ranges that do not touch.
    pub(crate) fn ranges(&self, history: bool) -> Vec<Window> {
        let mut spans: Vec<Window> = self
            .targets
            .iter()
            .map(|target| if history { Window { start: target.history_from, end: target.window.start } } else { target.window })
            .filter(|span| span.start < span.end)
            .collect();
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

    fn of_contract(&self, contract: &str) -> &[usize] {
        self.numbers.get(contract).map_or(&[], Vec::as_slice)
    }

    /// The target that holds `time`.
    fn holding(&self, contract: &str, time: i64) -> Option<usize> {
        let numbers = self.of_contract(contract);
        let number = *numbers[..numbers.partition_point(|number| self.targets[*number].window.start <= time)].last()?;
        (time < self.targets[number].window.end).then_some(number)
    }

    /// The targets whose history holds `span`.
    fn after(&self, contract: &str, span: Window) -> &[usize] {
        let numbers = self.of_contract(contract);
        let first = numbers.partition_point(|number| self.targets[*number].window.start < span.end);
        let last = numbers.partition_point(|number| self.targets[*number].history_from <= span.start);
        numbers.get(first..last.max(first)).unwrap_or_default()
    }

    /// The targets before whose start an event at `time` is the last of its key, the next being at `next`.
    fn opened(&self, contract: &str, time: i64, next: Option<i64>) -> &[usize] {
        let numbers = self.of_contract(contract);
        let first = numbers.partition_point(|number| self.targets[*number].window.start <= time);
        let last = next.map_or(numbers.len(), |next| numbers.partition_point(|number| self.targets[*number].window.start <= next));
        numbers.get(first..last.max(first)).unwrap_or_default()
    }
}

/// How rows find their targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lookup {
    /// `(time)` or `(time, subject)`: the target that holds it.
    Holding,
    /// `(start, end[, contract])`: the target that a span lies inside of.
    Inside,
    /// `(start, end[, contract])`: every target whose history holds a span.
    After,
    /// `(time, next, subject)`: every target that an event opens.
    Opened,
}

impl Lookup {
    /// Whether a row can belong to several targets.
    pub(crate) fn is_list(self) -> bool {
        matches!(self, Self::After | Self::Opened)
    }
}

/// Numbers of the targets that a row belongs to, as a function of a plan.
#[derive(Debug)]
struct WindowLookup {
    lookup: Lookup,
    set: Arc<WindowSet>,
    signature: Signature,
}

impl PartialEq for WindowLookup {
    fn eq(&self, other: &Self) -> bool {
        self.lookup == other.lookup && Arc::ptr_eq(&self.set, &other.set)
    }
}

impl Eq for WindowLookup {}

impl Hash for WindowLookup {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.lookup.hash(state);
        Arc::as_ptr(&self.set).hash(state);
    }
}

/// The function that finds targets of `set`.
pub(crate) fn lookup_function(lookup: Lookup, set: &Arc<WindowSet>) -> ScalarUDF {
    ScalarUDF::from(WindowLookup { lookup, set: Arc::clone(set), signature: Signature::variadic_any(Volatility::Immutable) })
}

impl ScalarUDFImpl for WindowLookup {
    fn name(&self) -> &str {
        match self.lookup {
            Lookup::Holding => "window_holding",
            Lookup::Inside => "window_around",
            Lookup::After => "windows_after",
            Lookup::Opened => "windows_opened",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(if self.lookup.is_list() { DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true))) } else { DataType::Int64 })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let columns: Vec<ArrayRef> = args.args.into_iter().map(|arg| arg.into_array(rows)).collect::<Result<_>>()?;
        debug_assert_eq!(columns[0].data_type(), &instant_type());
        let first = columns[0].as_primitive::<TimestampMicrosecondType>();
        let number = |number: &usize| i64::try_from(*number).unwrap_or(i64::MAX);
        let set = &self.set;
        Ok(ColumnarValue::Array(match self.lookup {
            Lookup::Holding => {
                let subjects = columns.get(1).map(|column| column.as_string::<i32>());
                // Most rows fall into the window of the row before.
                let mut last: Option<usize> = None;
                let found = (0..rows).map(|row| {
                    if first.is_null(row) {
                        return None;
                    }
                    let time = first.value(row);
                    let found = match (subjects, set.periods()) {
                        (Some(subjects), Some(periods)) if subjects.is_valid(row) => {
                            set.holding(periods.contract_of(subjects.value(row), time)?, time)
                        }
                        (Some(_), Some(_)) => None,
                        _ if last.is_some_and(|last| set.targets[last].window.contains(time)) => last,
                        _ => set.holding("", time),
                    };
                    last = found.or(last);
                    found.as_ref().map(number)
                });
                Arc::new(found.collect::<Int64Array>())
            }
            Lookup::Inside => {
                let ends = columns[1].as_primitive::<TimestampMicrosecondType>();
                let found = (0..rows).map(|row| {
                    let contract = contract(&columns, row)?;
                    let target = set.holding(contract, first.value(row))?;
                    (ends.value(row) <= set.targets[target].window.end).then(|| number(&target))
                });
                Arc::new(found.collect::<Int64Array>())
            }
            Lookup::After => {
                let ends = columns[1].as_primitive::<TimestampMicrosecondType>();
                let mut lists = ListBuilder::new(Int64Builder::new());
                for row in 0..rows {
                    if let Some(contract) = contract(&columns, row) {
                        let span = Window { start: first.value(row), end: ends.value(row) };
                        set.after(contract, span).iter().for_each(|target| lists.values().append_value(number(target)));
                    }
                    lists.append(true);
                }
                Arc::new(lists.finish())
            }
            Lookup::Opened => {
                let nexts = columns[1].as_primitive::<TimestampMicrosecondType>();
                let subjects = columns[2].as_string::<i32>();
                let mut lists = ListBuilder::new(Int64Builder::new());
                for row in 0..rows {
                    let (time, next) = (first.value(row), nexts.is_valid(row).then(|| nexts.value(row)));
                    let mut add = |contract: &str| {
                        for target in set.opened(contract, time, next) {
                            // What a subject had under another contract is that contract's.
                            let start = set.targets[*target].window.start;
                            let belongs = |periods: &BillingPeriods| periods.contract_of(subjects.value(row), start) == Some(contract);
                            if set.periods().is_none_or(belongs) {
                                lists.values().append_value(number(target));
                            }
                        }
                    };
                    if set.by_contract() {
                        set.contracts.get(subjects.value(row)).into_iter().flatten().for_each(|contract| add(contract));
                    } else {
                        add("");
                    }
                    lists.append(true);
                }
                Arc::new(lists.finish())
            }
        }))
    }
}

/// The contract in the third column, where there is one; `None` when it is null.
fn contract(columns: &[ArrayRef], row: usize) -> Option<&str> {
    match columns.get(2) {
        None => Some(""),
        Some(contracts) => contracts.as_string::<i32>().is_valid(row).then(|| contracts.as_string::<i32>().value(row)),
    }
}
