//! `opening` of open windows: the last event of each key before them, kept while events arrive.
//!
//! Time is cut wherever a window begins, and the state has the last event of each key in each of these stretches. The
//! opening of a window is, for each key, the last event of the stretches before it. An event finds its stretch by itself,
//! so that the order of arrival does not matter, a late one is the opening of every window that it should be, and a window
//! that opens later has its opening without usage being read again. What lies before all windows that may still be asked
//! for is one stretch.

use std::cmp::Ordering;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, new_null_array};
use arrow::compute::{filter_record_batch, interleave_record_batch};
use arrow::datatypes::{Field, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::row::{Row, RowConverter, Rows, SortField};
use datafusion::common::cast::as_boolean_array;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result, ScalarValue, ToDFSchema, exec_datafusion_err, internal_datafusion_err};
use datafusion::execution::SessionState;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator};
use datafusion::physical_expr::PhysicalExpr;
use ratemill_schemas::time::DAY;
use ratemill_schemas::windows::WindowError;
use ratemill_schemas::{BillingPeriods, Window, WindowSpec};

use super::slots::{Slot, WINDOW};
use super::sources::{look_up, numbered_rows, opening_schema, times, usage_rows};
use super::state::Partials;
use crate::inputs::Input;
use crate::project::RuleProject;
use crate::rule::Rule;
use crate::window_set::{Lookup, WindowSet};

/// The stretch of what lies before all windows that may still be asked for.
pub(super) const BEFORE: i64 = i64::MIN;

/// Columns of usage that say which event of a key is the last, and whose it is.
const IDENTITY: [&str; 4] = ["source", "id", "subject", "time"];

/// How far ahead of events the beginnings of billing periods are worked out, µs.
const AHEAD: i64 = 400 * DAY;

/// How the opening of a rule's windows is kept.
#[derive(Debug)]
pub(super) struct Carry {
    keys: Vec<String>,
    cuts: Cuts,
    /// What the query asks of a key: of other keys nothing is kept.
    wanted: Option<Arc<dyn PhysicalExpr>>,
    /// The columns of usage that are kept, and the first instant of the stretch in the place of the window's number.
    pub(super) schema: SchemaRef,
    /// The columns of the slot.
    slot: SchemaRef,
}

/// Where time is cut.
#[derive(Debug)]
enum Cuts {
    Calendar(WindowSpec),
    Periods { periods: Arc<BillingPeriods>, known: Mutex<Starts> },
}

/// The first instants of all billing periods that begin before `until`, in order.
#[derive(Debug, Default)]
struct Starts {
    until: Option<i64>,
    starts: Vec<i64>,
}

impl Carry {
    /// How the opening of `rule`, whose optimized plan over slots is `plan`, is kept; `None` for a rule that does not read it.
    pub(super) fn of(rule: &Rule, project: &RuleProject, plan: &LogicalPlan, session: &SessionState) -> Result<Option<Self>> {
        if !rule.inputs.iter().any(|(input, _)| *input == Input::Opening) {
            return Ok(None);
        }
        let cuts = match (&rule.options.window, project.reference.billing_periods()) {
            (WindowSpec::BillingPeriod, periods) => {
                Cuts::Periods { periods: periods.map_or_else(Arc::default, Arc::clone), known: Mutex::default() }
            }
            (spec, _) => Cuts::Calendar(spec.clone()),
        };
        let keys = rule.options.carry.clone();
        let slot = opening_schema(&project.usage);
        let asked = Asked::of(plan, &keys)?;
        let is_kept =
            |name: &str| IDENTITY.contains(&name) || name == WINDOW || asked.columns.contains(name) || keys.iter().any(|key| key == name);
        let fields: Vec<Field> = slot.fields().iter().filter(|field| is_kept(field.name())).map(|field| field.as_ref().clone()).collect();
        let schema = Arc::new(Schema::new(fields));
        let wanted = asked.keys.map(|keys| session.create_physical_expr(keys, &schema.as_ref().clone().to_dfschema()?));
        Ok(Some(Self { keys, cuts, wanted: wanted.transpose()?, schema, slot }))
    }

    /// What the state keeps of it, in words.
    pub(super) fn keeps(&self) -> String {
        format!("the last event of each {}", self.keys.join(", "))
    }

    /// The first instant of the stretch that each of these times is in; those before `from` are in one.
    fn stretches(&self, times: &[i64], from: i64) -> Result<Vec<i64>> {
        let outside = |error: WindowError| exec_datafusion_err!("{error}");
        match &self.cuts {
            Cuts::Calendar(spec) => {
                // Most events fall into the window of the one before.
                let mut last: Option<Window> = None;
                let mut stretch = |time: i64| -> Result<i64> {
                    if time < from {
                        return Ok(BEFORE);
                    }
                    let window = match last {
                        Some(window) if Window::contains(window, time) => window,
                        _ => spec.window_of(time).map_err(outside)?,
                    };
                    last = Some(window);
                    Ok(window.start)
                };
                times.iter().map(|time| stretch(*time)).collect()
            }
            Cuts::Periods { periods, known } => {
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                let latest = times.iter().max().copied().unwrap_or(i64::MIN);
                if known.until.is_none_or(|until| until <= latest) {
                    let until = latest.saturating_add(AHEAD);
                    let mut starts: Vec<i64> =
                        periods.windows_between(i64::MIN, until).map_err(outside)?.iter().map(|window| window.start).collect();
                    starts.sort_unstable();
                    starts.dedup();
                    *known = Starts { until: Some(until), starts };
                }
                let starts = &known.starts;
                let before = |time: i64| starts[..starts.partition_point(|start| *start <= time)].last().copied().unwrap_or(BEFORE);
                Ok(times.iter().map(|time| if *time < from { BEFORE } else { before(*time) }).collect())
            }
        }
    }

    /// Of rows with the columns of `schema`, the last of each key in each stretch, in order of key and stretch.
    fn last_of_each(&self, batches: &[RecordBatch]) -> Result<RecordBatch> {
        let sorted = Sorted::new(self, batches, true)?;
        let mut last: HashMap<Row<'_>, (usize, usize)> = HashMap::new();
        for (batch, rows) in sorted.rows.iter().enumerate() {
            for (row, key) in rows.iter().enumerate() {
                match last.entry(key) {
                    Entry::Vacant(entry) => {
                        entry.insert((batch, row));
                    }
                    Entry::Occupied(mut entry) => {
                        if sorted.compare(*entry.get(), (batch, row)).is_lt() {
                            entry.insert((batch, row));
                        }
                    }
                }
            }
        }
        let mut last: Vec<(Row<'_>, (usize, usize))> = last.into_iter().collect();
        last.sort_unstable_by_key(|(key, _)| *key);
        let last: Vec<(usize, usize)> = last.into_iter().map(|(_, at)| at).collect();
        picked(&self.schema, batches, &last)
    }

    /// Rows of events, each with its stretch.
    fn rows_of(&self, usage: &RecordBatch, from: i64) -> Result<RecordBatch> {
        let stretches = self.stretches(times(usage)?.values(), from)?;
        let rows = usage_rows(usage, stretches, &self.schema)?;
        let Some(wanted) = &self.wanted else { return Ok(rows) };
        let wanted = wanted.evaluate(&rows)?.into_array(rows.num_rows())?;
        Ok(filter_record_batch(&rows, as_boolean_array(&wanted)?)?)
    }

    /// The rows of the slot of `opening`: those that open a target, once for each that they open.
    pub(super) fn opening(&self, states: &[&Openings], set: &Arc<WindowSet>) -> Result<RecordBatch> {
        let from = states.iter().map(|state| state.from).max().unwrap_or(BEFORE);
        if let Some(target) = set.targets().iter().find(|target| target.window.start < from) {
            return Err(exec_datafusion_err!("what was before window {} is not told apart any more", target.window));
        }
        let batches: Vec<RecordBatch> = states.iter().flat_map(|state| state.rows.batches().cloned()).collect();
        let sorted = Sorted::new(self, &batches, false)?;
        let mut order: Vec<(usize, usize)> =
            batches.iter().enumerate().flat_map(|(batch, rows)| (0..rows.num_rows()).map(move |row| (batch, row))).collect();
        order.sort_unstable_by(|a, b| sorted.key(*a).cmp(&sorted.key(*b)).then_with(|| sorted.compare(*a, *b)));
        // The next event of the same key may be an earlier one of its stretch, but no window begins between the two.
        let next = (0..order.len()).map(|index| {
            let following = order.get(index + 1).filter(|next| sorted.key(**next) == sorted.key(order[index]));
            following.map(|next| sorted.time(*next))
        });
        let next: TimestampMicrosecondArray = next.collect::<TimestampMicrosecondArray>().with_timezone("UTC");
        let rows = picked(&self.schema, &batches, &order)?;
        let rows = without_stretch(&rows)?;
        let columns = ["time", "subject"].map(|name| rows.column_by_name(name).cloned());
        let [Some(time), Some(subject)] = columns else { return Err(internal_datafusion_err!("opening has no time or subject")) };
        let found = look_up(Lookup::Opened, set, vec![time, Arc::new(next), subject], rows.num_rows())?;
        // Columns that nobody asks for are null.
        let of_slot = self.slot.fields().iter().filter(|field| field.name() != WINDOW);
        let columns = of_slot.map(|field| match rows.column_by_name(field.name()) {
            Some(column) => Arc::clone(column),
            None => new_null_array(field.data_type(), rows.num_rows()),
        });
        let fields: Vec<_> = self.slot.fields().iter().filter(|field| field.name() != WINDOW).cloned().collect();
        let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.collect())?;
        numbered_rows(&rows, &found, &self.slot)
    }
}

/// What a state does not know any more of what its windows open with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forgotten {
    /// Nothing.
    Nothing,
    /// Whatever is of these subjects.
    Subjects(BTreeSet<String>),
    /// Everything.
    All,
}

/// The last events, by key and stretch.
#[derive(Debug, Clone)]
pub(super) struct Openings {
    rows: Partials,
    /// First instant from which stretches are told apart, µs UTC.
    from: i64,
}

impl Default for Openings {
    fn default() -> Self {
        Self { rows: Partials::default(), from: BEFORE }
    }
}

impl Openings {
    /// What [`Self::encode`] gave.
    pub(super) fn new(rows: Vec<RecordBatch>, from: i64) -> Self {
        Self { rows: Partials::new(rows), from }
    }

    /// First instant from which stretches are told apart, and the rows.
    pub(super) fn encode(&self) -> (i64, impl Iterator<Item = &RecordBatch>) {
        (self.from, self.rows.batches())
    }

    pub(super) fn size(&self) -> usize {
        self.rows.size()
    }

    /// Takes note of events; one that is known changes nothing.
    pub(super) fn add(&mut self, carry: &Carry, usage: &RecordBatch) -> Result<()> {
        if usage.num_rows() == 0 {
            return Ok(());
        }
        let last = carry.last_of_each(&[carry.rows_of(usage, self.from)?])?;
        self.push(carry, last)
    }

    /// Takes over what another state knows.
    pub(super) fn merge(&mut self, carry: &Carry, other: &Self) -> Result<()> {
        self.cut_from(carry, other.from)?;
        for batch in other.rows.batches() {
            let batch = if other.from < self.from { carry.rows_of(&without_stretch(batch)?, self.from)? } else { batch.clone() };
            self.push(carry, batch)?;
        }
        Ok(())
    }

    fn push(&mut self, carry: &Carry, batch: RecordBatch) -> Result<()> {
        self.rows.push(batch)?;
        if self.rows.is_due() {
            self.reduce(carry)?;
        }
        Ok(())
    }

    fn reduce(&mut self, carry: &Carry) -> Result<()> {
        let batches: Vec<RecordBatch> = self.rows.batches().cloned().collect();
        self.rows = Partials::new(vec![carry.last_of_each(&batches)?]);
        Ok(())
    }

    /// Whether the opening of a window that begins at `start` is told.
    pub(super) fn tells(&self, start: i64) -> bool {
        self.from <= start
    }

    /// No window that begins before `from` is asked for any more: what lies before becomes one stretch.
    pub(super) fn cut_from(&mut self, carry: &Carry, from: i64) -> Result<()> {
        if from <= self.from {
            return Ok(());
        }
        self.from = from;
        self.rows.change(|batch| carry.rows_of(&without_stretch(batch)?, from))?;
        self.reduce(carry)
    }

    /// Forgets what is of the subjects of these events, or all where a key is not of one subject.
    pub(super) fn forget(&mut self, carry: &Carry, is_changed: impl Fn(&str, &str) -> bool) -> Result<Forgotten> {
        let mut of: BTreeSet<String> = BTreeSet::new();
        for batch in self.rows.batches() {
            let [sources, ids, subjects] = ["source", "id", "subject"].map(|name| text(batch, name));
            let (sources, ids, subjects) = (sources?, ids?, subjects?);
            let changed = (0..batch.num_rows()).filter(|row| is_changed(sources.value(*row), ids.value(*row)));
            of.extend(changed.map(|row| subjects.value(row).to_owned()));
        }
        if of.is_empty() {
            return Ok(Forgotten::Nothing);
        }
        if !carry.keys.iter().any(|key| key == "subject") {
            self.rows = Partials::default();
            return Ok(Forgotten::All);
        }
        self.rows.change(|batch| {
            let kept: BooleanArray =
                text(batch, "subject")?.iter().map(|subject| Some(subject.is_none_or(|subject| !of.contains(subject)))).collect();
            Ok(filter_record_batch(batch, &kept)?)
        })?;
        Ok(Forgotten::Subjects(of))
    }

    /// The earliest stretch that it has an event in.
    pub(super) fn earliest(&self) -> Option<i64> {
        let stretches = |batch: &RecordBatch| arrow::compute::min(stretch_of(batch)?);
        self.rows.batches().filter_map(stretches).min()
    }
}

fn text<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b StringArray> {
    let column = batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
    column.ok_or_else(|| internal_datafusion_err!("usage has no {name}"))
}

fn stretch_of(batch: &RecordBatch) -> Option<&Int64Array> {
    batch.columns().last().and_then(|column| column.as_primitive_opt::<Int64Type>())
}

/// The rows without their last column.
fn without_stretch(batch: &RecordBatch) -> Result<RecordBatch> {
    let columns: Vec<usize> = (0..batch.num_columns().saturating_sub(1)).collect();
    Ok(batch.project(&columns)?)
}

/// What a plan asks of `opening`.
#[derive(Debug, Default)]
struct Asked {
    columns: BTreeSet<String>,
    /// A condition on keys alone, which every row that is used meets.
    keys: Option<Expr>,
}

impl Asked {
    fn of(plan: &LogicalPlan, keys: &[String]) -> Result<Self> {
        let mut asked = Self::default();
        let (mut scans, mut conditions) = (0, Vec::new());
        plan.apply(|node| {
            match node {
                LogicalPlan::TableScan(scan) if Slot::of(scan) == Some(Slot::Opening) => {
                    scans += 1;
                    asked.columns.extend(scan.projected_schema.fields().iter().map(|field| field.name().clone()));
                }
                LogicalPlan::Filter(filter) if matches!(filter.input.as_ref(), LogicalPlan::TableScan(scan) if Slot::of(scan) == Some(Slot::Opening)) => {
                    let of_keys = split_conjunction(&filter.predicate).into_iter().filter_map(|part| of_key(part, keys));
                    conditions.extend(of_keys.reduce(Expr::and));
                }
                _ => {}
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        if conditions.len() == scans {
            asked.keys = conditions.into_iter().reduce(Expr::or);
        }
        Ok(asked)
    }
}

/// The condition, if it compares a key with texts.
fn of_key(condition: &Expr, keys: &[String]) -> Option<Expr> {
    let key = |expr: &Expr| match expr {
        Expr::Column(column) if keys.contains(&column.name) => Some(Expr::Column(Column::from_name(&column.name))),
        _ => None,
    };
    let is_text = |expr: &Expr| matches!(expr, Expr::Literal(ScalarValue::Utf8(Some(_)), _));
    match condition {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) if is_text(right) => Some(key(left)?.eq(right.as_ref().clone())),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => Some(of_key(left, keys)?.or(of_key(right, keys)?)),
        Expr::InList(list) if !list.negated && list.list.iter().all(is_text) => Some(key(&list.expr)?.in_list(list.list.clone(), false)),
        _ => None,
    }
}

/// Rows of events as they are compared: by key, then by time, source and id.
struct Sorted<'a> {
    rows: Vec<Rows>,
    times: Vec<&'a arrow::array::PrimitiveArray<TimestampMicrosecondType>>,
    identities: Vec<[&'a StringArray; 2]>,
}

impl<'a> Sorted<'a> {
    /// `by_stretch` makes the stretch a part of the key.
    fn new(carry: &Carry, batches: &'a [RecordBatch], by_stretch: bool) -> Result<Self> {
        let mut columns = carry.keys.iter().map(|key| Ok(carry.schema.index_of(key)?)).collect::<Result<Vec<usize>>>()?;
        if by_stretch {
            columns.push(carry.schema.fields().len() - 1);
        }
        let fields = columns.iter().map(|column| SortField::new(carry.schema.field(*column).data_type().clone())).collect();
        let converter = RowConverter::new(fields)?;
        let mut sorted = Self { rows: Vec::new(), times: Vec::new(), identities: Vec::new() };
        for batch in batches {
            let keys: Vec<ArrayRef> = columns.iter().map(|column| Arc::clone(batch.column(*column))).collect();
            sorted.rows.push(converter.convert_columns(&keys)?);
            sorted.times.push(times(batch)?);
            sorted.identities.push([text(batch, "source")?, text(batch, "id")?]);
        }
        Ok(sorted)
    }

    fn key(&self, (batch, row): (usize, usize)) -> Row<'_> {
        self.rows[batch].row(row)
    }

    fn time(&self, (batch, row): (usize, usize)) -> i64 {
        self.times[batch].value(row)
    }

    fn compare(&self, a: (usize, usize), b: (usize, usize)) -> Ordering {
        let identity = |(batch, row): (usize, usize)| self.identities[batch].map(|texts| texts.value(row));
        self.time(a).cmp(&self.time(b)).then_with(|| identity(a).cmp(&identity(b)))
    }
}

/// These rows, by batch and row in it.
fn picked(schema: &SchemaRef, batches: &[RecordBatch], rows: &[(usize, usize)]) -> Result<RecordBatch> {
    if rows.is_empty() {
        return Ok(RecordBatch::new_empty(Arc::clone(schema)));
    }
    let batches: Vec<&RecordBatch> = batches.iter().collect();
    Ok(interleave_record_batch(&batches, rows)?)
}
