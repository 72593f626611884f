//! What is known of usage: the partial state of every open window.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::Int64Type;
use datafusion::common::{DataFusionError, Result, internal_datafusion_err};
use ratemill_schemas::Window;

use super::opening::{Forgotten, Openings};
use super::slots::{Slot, SlotRows, WINDOW};
use super::sources::{by_contract, targets_of_usage, usage_rows, usage_schema, windows_rows};
use super::{Fold, OpenWindows};
use crate::evaluate::{Blame, RateError, root_message};
use crate::reference::TableChanges;
use crate::rule::RuleWindow;

/// Below this, rows of new state are kept as they are.
const ROWS_MIN: usize = if cfg!(test) { 16 } else { 8192 };

/// Partial aggregates of all open windows of one version of a rule.
///
/// Usage that belongs to a position of the log is the caller's business: to cut there, it keeps two states and
/// [merges](Self::merge) them later.
#[derive(Debug, Clone)]
pub struct FoldState {
    pub(super) fold: Arc<Fold>,
    /// Windows by the number that they have in the state. A number is never given twice.
    pub(super) windows: BTreeMap<i64, RuleWindow>,
    pub(super) numbers: HashMap<RuleWindow, i64>,
    pub(super) next: i64,
    /// Windows that cannot be rated from this state.
    pub(super) failed: BTreeMap<i64, Failure>,
    /// One for each aggregate that is folded.
    pub(super) points: Vec<Partials>,
    /// Of a rule that reads `opening`, what was before the windows.
    pub(super) openings: Openings,
}

/// Why a window cannot be rated.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Failure {
    Query { subject: Option<String>, message: String },
    FanOut { subject: Option<String>, usage_source: String, id: String, table: String },
}

/// The state of one aggregate: one row for each group, and rows that came later.
#[derive(Debug, Clone, Default)]
pub(super) struct Partials {
    pub(super) reduced: Vec<RecordBatch>,
    pub(super) later: Vec<RecordBatch>,
    reduced_rows: usize,
    later_rows: usize,
}

fn rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

impl Partials {
    pub(super) fn new(reduced: Vec<RecordBatch>) -> Self {
        Self { reduced_rows: rows(&reduced), reduced, later: Vec::new(), later_rows: 0 }
    }

    pub(super) fn batches(&self) -> impl Iterator<Item = &RecordBatch> {
        self.reduced.iter().chain(&self.later)
    }

    pub(super) fn push(&mut self, batch: RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.later_rows += batch.num_rows();
        let mut batch = batch;
        // Small batches grow together, so that their number stays small and no row is moved often.
        while let Some(last) = self.later.pop_if(|last| last.num_rows() <= batch.num_rows() && batch.num_rows() < ROWS_MIN) {
            batch = concat_batches(&last.schema(), [&last, &batch])?;
        }
        self.later.push(batch);
        Ok(())
    }

    pub(super) fn is_due(&self) -> bool {
        self.later_rows > self.reduced_rows.max(ROWS_MIN)
    }

    /// Is due again when there is twice as much.
    fn postpone(&mut self) {
        self.reduced.append(&mut self.later);
        *self = Self::new(std::mem::take(&mut self.reduced));
    }

    pub(super) fn change(&mut self, mut change: impl FnMut(&RecordBatch) -> Result<RecordBatch>) -> Result<()> {
        let mut changed = |batches: &[RecordBatch]| -> Result<Vec<RecordBatch>> {
            let batches = batches.iter().map(&mut change).collect::<Result<Vec<_>>>()?;
            Ok(batches.into_iter().filter(|batch| batch.num_rows() > 0).collect())
        };
        let (reduced, later) = (changed(&self.reduced)?, changed(&self.later)?);
        *self = Self { reduced_rows: rows(&reduced), later_rows: rows(&later), reduced, later };
        Ok(())
    }

    pub(super) fn size(&self) -> usize {
        // Batches share buffers, each counts for its part.
        let column = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size());
        self.batches().flat_map(RecordBatch::columns).map(column).sum()
    }
}

/// Events with the numbers of their windows.
struct Events {
    usage: RecordBatch,
    windows: BTreeMap<i64, RuleWindow>,
}

impl Events {
    /// Whose an event is.
    fn subject(&self, source: &str, id: &str) -> Option<String> {
        let texts = |name| self.usage.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        let (sources, ids, subjects) = (texts("source")?, texts("id")?, texts("subject")?);
        let row = (0..self.usage.num_rows()).find(|row| sources.value(*row) == source && ids.value(*row) == id)?;
        Some(subjects.value(row).to_owned())
    }
}

/// Rows of partial state that events added, each with the number of its aggregate.
pub(super) type Added = Vec<(usize, RecordBatch)>;

/// What events add to a state, or why they cannot be folded.
enum Folded {
    Partials(Vec<Vec<RecordBatch>>),
    Failed(Failure),
}

impl FoldState {
    pub(super) fn new(fold: Arc<Fold>) -> Self {
        let points = fold.points.iter().map(|_| Partials::default()).collect();
        Self {
            fold,
            windows: BTreeMap::new(),
            numbers: HashMap::new(),
            next: 0,
            failed: BTreeMap::new(),
            points,
            openings: Openings::default(),
        }
    }

    /// How the rule is folded.
    #[must_use]
    pub fn fold_plan(&self) -> &Arc<Fold> {
        &self.fold
    }

    /// The same events as a state of another fold of the same version of the rule, between whose reference data and this one's
    /// there are these changes; windows that they touch are left out, and have to be folded anew. `None` where the rule is
    /// planned otherwise by now.
    #[must_use]
    pub fn under(&self, fold: &Arc<Fold>, changes: &TableChanges) -> Option<Self> {
        if fold.fingerprint != self.fold.fingerprint || fold.rule.version != self.fold.rule.version {
            return None;
        }
        if fold.carry.is_some() && by_contract(&fold.rule) && changes.contains_key("contracts") {
            // Time is cut elsewhere.
            return None;
        }
        let touched = fold.project.touched(&fold.rule, changes);
        let mut state = Self { fold: Arc::clone(fold), ..self.clone() };
        let windows: Vec<Window> = state.windows().into_iter().filter(|window| touched.touch(*window)).collect();
        state.drop_windows(&windows);
        Some(state)
    }

    /// Folds a batch of new events in: those in `open` windows and of meters that the rule reads, the others are left
    /// out. Of a rule that reads `opening`, every event is taken note of as one that a later window may open with. `usage` has the columns of `UsageSchema::decoded`, or of `UsageSchema::stored`, and no event that the state
    /// has already.
    ///
    /// No event is taken out again: when one is voided or amended, its window is dropped and folded anew.
    ///
    /// An event that the rule fails on stops its window and no other: [`Self::evaluate`] then gives the error for that
    /// window, until it is dropped.
    ///
    /// # Errors
    /// When memory is short for the batch, or it has not the columns of usage; the state is as it was.
    pub async fn fold(&mut self, usage: &RecordBatch, open: &OpenWindows) -> Result<(), RateError> {
        self.fold_in(usage, open).await.map(|_| ())
    }

    /// Folds events in, and returns what they added.
    pub(super) async fn fold_in(&mut self, usage: &RecordBatch, open: &OpenWindows) -> Result<Added, RateError> {
        let window = open.0.targets().first().map_or(Window { start: 0, end: 0 }, |target| target.window);
        let fold = Arc::clone(&self.fold);
        let failed = |error: DataFusionError| fold.failed(window, Blame::default(), root_message(&error));
        self.open_with(usage)?;
        let events = self.events(usage, open).map_err(failed)?;
        if events.windows.is_empty() {
            return Ok(Added::default());
        }
        let added = match self.folded(&events).await {
            Ok(Folded::Partials(partials)) => self.add(partials),
            Err(error) if is_exhausted(&error) => Err(error),
            // One window after the other says which of them is to blame.
            _ => self.fold_apart(&events).await,
        }
        .map_err(failed)?;
        self.reduce().await.map_err(failed)?;
        Ok(added)
    }

    /// Takes note of events as those that later windows may open with, and folds them into none: what was before all open
    /// windows. One that is known already changes nothing. Of a rule that does not read `opening` nothing is noted.
    ///
    /// # Errors
    /// When the batch has not the columns of usage.
    pub fn open_with(&mut self, usage: &RecordBatch) -> Result<(), RateError> {
        let Some(carry) = &self.fold.carry else { return Ok(()) };
        self.openings.add(carry, usage).map_err(|error| self.unopened(&error))
    }

    /// Forgets whatever windows open with of the subjects, or else all of it, that one of these events is of: it was voided
    /// or amended, and what was before it is not in the state. What is in force of them is then
    /// [noted](Self::open_with) anew.
    ///
    /// # Errors
    /// When Arrow cannot filter the rows.
    pub fn forget_openings(&mut self, is_changed: impl Fn(&str, &str) -> bool) -> Result<Forgotten, RateError> {
        let Some(carry) = &self.fold.carry else { return Ok(Forgotten::Nothing) };
        let forgotten = self.openings.forget(carry, is_changed);
        forgotten.map_err(|error| self.unopened(&error))
    }

    /// What was before windows that begin before `start` is not asked for any more.
    ///
    /// # Errors
    /// When Arrow cannot make the rows anew; the opening is then of no use.
    pub fn open_from(&mut self, start: i64) -> Result<(), RateError> {
        let Some(carry) = &self.fold.carry else { return Ok(()) };
        self.openings.cut_from(carry, start).map_err(|error| self.unopened(&error))
    }

    /// Whether the state knows what a window that begins at `start` opens with, or the rule does not read it.
    #[must_use]
    pub fn opens(&self, start: i64) -> bool {
        self.fold.carry.is_none() || self.openings.tells(start)
    }

    fn unopened(&self, error: &DataFusionError) -> RateError {
        self.fold.failed(Window { start: 0, end: 0 }, Blame::default(), root_message(error))
    }

    /// Forgets windows that are final.
    pub fn drop_windows(&mut self, windows: &[Window]) {
        let dropped: BTreeSet<i64> =
            self.windows.iter().filter(|(_, rated)| windows.contains(&rated.window)).map(|(number, _)| *number).collect();
        self.windows.retain(|number, _| !dropped.contains(number));
        self.numbers.retain(|_, number| !dropped.contains(number));
        self.failed.retain(|number, _| !dropped.contains(number));
        // Rows that stay by an error are of a window that has no number any more: nothing reads them.
        let _ = self.forget(&dropped);
    }

    /// Adds the events of another state of the same fold.
    ///
    /// # Errors
    /// When Arrow cannot hold the rows; both states are then of no use.
    ///
    /// # Panics
    /// When the states are of two folds.
    pub async fn merge(&mut self, other: Self) -> Result<(), RateError> {
        assert!(self.fold.is_like(&other.fold), "states of one fold");
        let fold = Arc::clone(&self.fold);
        let numbers: HashMap<i64, i64> = other.windows.iter().map(|(number, rated)| (*number, self.number(rated))).collect();
        for (number, failure) in &other.failed {
            self.failed.entry(numbers[number]).or_insert_with(|| failure.clone());
        }
        let merged: Result<()> = async {
            for (index, partials) in other.points.iter().enumerate() {
                for batch in partials.batches() {
                    let batch = renumbered(batch, &fold.points[index].0.windows, &numbers)?;
                    self.points[index].push(batch)?;
                }
            }
            if let Some(carry) = &fold.carry {
                self.openings.merge(carry, &other.openings)?;
            }
            let failed: BTreeSet<i64> = self.failed.keys().copied().collect();
            self.forget(&failed)?;
            self.reduce().await
        }
        .await;
        let window = other.windows.values().next().map_or(Window { start: 0, end: 0 }, |rated| rated.window);
        merged.map_err(|error| fold.failed(window, Blame::default(), root_message(&error)))
    }

    /// Bytes that the state holds.
    #[must_use]
    pub fn size(&self) -> usize {
        let windows = self.windows.len() * (size_of::<RuleWindow>() + size_of::<i64>() + 64);
        windows + self.points.iter().map(Partials::size).sum::<usize>() + self.openings.size()
    }

    /// Rows of state: groups, and rows that will become one group.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.points.iter().map(|partials| partials.reduced_rows + partials.later_rows).sum()
    }

    /// The windows that have events, in order.
    #[must_use]
    pub fn windows(&self) -> Vec<Window> {
        let windows: BTreeSet<Window> = self.windows.values().map(|rated| rated.window).collect();
        windows.into_iter().collect()
    }

    /// The events of a batch that count, with the numbers of their windows.
    fn events(&mut self, usage: &RecordBatch, open: &OpenWindows) -> Result<Events> {
        let set = &open.0;
        let schema = usage_schema(&self.fold.project.usage);
        let mut windows = BTreeMap::new();
        if !self.fold.rule.reads_usage || self.points.is_empty() && self.fold.checks.is_empty() {
            return Ok(Events { usage: RecordBatch::new_empty(schema), windows });
        }
        let mut usage = usage.clone();
        if let Some(meters) = &self.fold.rule.meters
            && let Some(of) = usage.column_by_name("meter").and_then(|column| column.as_string_opt::<i32>())
        {
            let wanted = of.iter().map(|meter| Some(meter.is_some_and(|meter| meters.iter().any(|known| known == meter))));
            let wanted: BooleanArray = wanted.collect();
            if wanted.true_count() < usage.num_rows() {
                usage = filter_record_batch(&usage, &wanted)?;
            }
        }
        let targets = targets_of_usage(&usage, set)?;
        let mut numbers: HashMap<i64, Option<i64>> = HashMap::new();
        let (mut kept, mut of_rows) = (Vec::with_capacity(usage.num_rows()), Vec::with_capacity(usage.num_rows()));
        for (row, target) in targets.iter().enumerate() {
            let Some(target) = target else { continue };
            let number = match numbers.get(&target) {
                Some(number) => *number,
                None => {
                    let found = usize::try_from(target).ok().and_then(|target| set.targets().get(target));
                    let found = found.ok_or_else(|| internal_datafusion_err!("no target {target}"))?;
                    let rated = RuleWindow { window: found.window, contract_id: found.contract.clone() };
                    let number = self.number(&rated);
                    let number = (!self.failed.contains_key(&number)).then_some(number);
                    windows.extend(number.map(|number| (number, rated)));
                    numbers.insert(target, number);
                    number
                }
            };
            if let Some(number) = number {
                kept.push(u32::try_from(row).map_err(|_| internal_datafusion_err!("too many events in a batch"))?);
                of_rows.push(number);
            }
        }
        if kept.len() < usage.num_rows() {
            usage = take_record_batch(&usage, &UInt32Array::from(kept))?;
        }
        Ok(Events { usage: usage_rows(&usage, of_rows, &schema)?, windows })
    }

    fn number(&mut self, rated: &RuleWindow) -> i64 {
        if let Some(number) = self.numbers.get(rated) {
            return *number;
        }
        self.next += 1;
        self.windows.insert(self.next, rated.clone());
        self.numbers.insert(rated.clone(), self.next);
        self.next
    }

    /// The state of these events alone.
    async fn folded(&self, events: &Events) -> Result<Folded> {
        let rows = BTreeMap::from([(Slot::Usage, events.usage.clone()), (Slot::Windows, windows_rows(&events.windows)?)]);
        let rows = Arc::new(SlotRows(rows));
        let engine = &self.fold.engine;
        for check in &self.fold.checks {
            let found = check.plan.execute(engine, &rows).await?;
            if let Some(found) = found.iter().find(|found| found.num_rows() > 0) {
                // The first column is the window.
                let text = |index: usize| found.column(index).as_string::<i32>().value(0).to_owned();
                let (usage_source, id, table) = (text(1), text(2), check.table.clone());
                let subject = events.subject(&usage_source, &id);
                return Ok(Folded::Failed(Failure::FanOut { subject, usage_source, id, table }));
            }
        }
        let mut partials = Vec::with_capacity(self.points.len());
        for (point, stages) in &self.fold.points {
            let batches = stages.partial(engine, &rows).await?;
            if batches.iter().any(|batch| has_no_window(batch, &point.windows)) {
                return Err(internal_datafusion_err!("a row of a fold lost its window"));
            }
            partials.push(batches);
        }
        Ok(Folded::Partials(partials))
    }

    async fn fold_apart(&mut self, events: &Events) -> Result<Added> {
        let numbers = events.usage.column_by_name(WINDOW).map(|column| column.as_primitive::<Int64Type>().clone());
        let numbers = numbers.ok_or_else(|| internal_datafusion_err!("events without windows"))?;
        let mut outcomes = Vec::new();
        for (number, rated) in &events.windows {
            let of_window: BooleanArray = numbers.iter().map(|of_row| Some(of_row == Some(*number))).collect();
            let usage = filter_record_batch(&events.usage, &of_window)?;
            let events = Events { usage, windows: BTreeMap::from([(*number, rated.clone())]) };
            let outcome = match self.folded(&events).await {
                Ok(outcome) => outcome,
                Err(error) if is_exhausted(&error) => return Err(error),
                Err(error) => Folded::Failed(Failure::Query { subject: self.culprit(&events).await, message: root_message(&error) }),
            };
            outcomes.push((*number, outcome));
        }
        let mut added = Added::default();
        for (number, outcome) in outcomes {
            match outcome {
                Folded::Partials(partials) => added.extend(self.add(partials)?),
                Folded::Failed(failure) => {
                    self.failed.insert(number, failure);
                    self.forget(&BTreeSet::from([number]))?;
                }
            }
        }
        Ok(added)
    }

    /// The one subject whose events of a window cannot be folded.
    async fn culprit(&self, events: &Events) -> Option<String> {
        let subjects = events.usage.column_by_name("subject")?.as_string_opt::<i32>()?;
        let mut suspects: Vec<&str> = subjects.iter().flatten().collect::<BTreeSet<_>>().into_iter().collect();
        while !suspects.is_empty() {
            let half = suspects.split_off(suspects.len() / 2);
            let of_half: BooleanArray =
                subjects.iter().map(|subject| Some(subject.is_some_and(|subject| half.contains(&subject)))).collect();
            let usage = filter_record_batch(&events.usage, &of_half).ok()?;
            if self.folded(&Events { usage, windows: events.windows.clone() }).await.is_err() {
                suspects = half;
                if let [one] = suspects.as_slice() {
                    return Some((*one).to_owned());
                }
            }
        }
        None
    }

    fn add(&mut self, partials: Vec<Vec<RecordBatch>>) -> Result<Added> {
        let mut added = Added::default();
        for (index, (state, batches)) in self.points.iter_mut().zip(partials).enumerate() {
            for batch in batches {
                added.push((index, batch.clone()));
                state.push(batch)?;
            }
        }
        Ok(added)
    }

    /// Makes one state of what is much more than before: each row is then moved a bounded number of times. What memory is
    /// too short for stays as it is.
    async fn reduce(&mut self) -> Result<()> {
        for index in 0..self.points.len() {
            if !self.points[index].is_due() {
                continue;
            }
            let (_, stages) = &self.fold.points[index];
            let batches = self.points[index].batches().cloned().collect();
            match stages.reduce(&self.fold.engine, batches).await {
                Ok(batches) => self.points[index] = Partials::new(batches),
                Err(error) if is_exhausted(&error) => self.points[index].postpone(),
                Err(_) => self.reduce_apart(index).await?,
            }
        }
        Ok(())
    }

    /// Window by window: a state that contradicts itself stops its window only.
    async fn reduce_apart(&mut self, index: usize) -> Result<()> {
        let fold = Arc::clone(&self.fold);
        let (point, stages) = &fold.points[index];
        let mut reduced = Vec::new();
        for number in self.windows.keys().copied().collect::<Vec<_>>() {
            let of_window = HashMap::from([(number, number)]);
            let batches = self.points[index].batches().map(|batch| renumbered(batch, &point.windows, &of_window));
            let batches = batches.collect::<Result<Vec<_>>>()?;
            match stages.reduce(&fold.engine, batches.clone()).await {
                Ok(batches) => reduced.extend(batches),
                Err(error) if is_exhausted(&error) => reduced.extend(batches),
                Err(error) => {
                    self.failed.insert(number, Failure::Query { subject: None, message: root_message(&error) });
                }
            }
        }
        self.points[index] = Partials::new(reduced);
        let failed: BTreeSet<i64> = self.failed.keys().copied().collect();
        self.forget(&failed)
    }

    /// Forgets the rows of windows.
    fn forget(&mut self, dropped: &BTreeSet<i64>) -> Result<()> {
        for (partials, (point, _)) in self.points.iter_mut().zip(&self.fold.points) {
            partials.change(|batch| {
                let kept: BooleanArray =
                    numbers_of(batch, &point.windows).map(|number| Some(number.is_some_and(|number| !dropped.contains(&number)))).collect();
                Ok(filter_record_batch(batch, &kept)?)
            })?;
        }
        Ok(())
    }
}

fn is_exhausted(error: &DataFusionError) -> bool {
    matches!(error.find_root(), DataFusionError::ResourcesExhausted(_))
}

/// The number of each row's window, which is in one of these columns at least.
pub(super) fn numbers_of<'a>(batch: &'a RecordBatch, windows: &'a [usize]) -> impl Iterator<Item = Option<i64>> + 'a {
    let columns: Vec<&Int64Array> = windows.iter().map(|index| batch.column(*index).as_primitive::<Int64Type>()).collect();
    (0..batch.num_rows()).map(move |row| columns.iter().find(|column| column.is_valid(row)).map(|column| column.value(row)))
}

pub(super) fn has_no_window(batch: &RecordBatch, windows: &[usize]) -> bool {
    numbers_of(batch, windows).any(|number| number.is_none())
}

/// The rows of the windows in `numbers`, with other numbers.
pub(super) fn renumbered(batch: &RecordBatch, windows: &[usize], numbers: &HashMap<i64, i64>) -> Result<RecordBatch> {
    let kept: BooleanArray =
        numbers_of(batch, windows).map(|number| Some(number.is_some_and(|number| numbers.contains_key(&number)))).collect();
    let kept = if kept.true_count() < batch.num_rows() { filter_record_batch(batch, &kept)? } else { batch.clone() };
    let mut columns = kept.columns().to_vec();
    for index in windows {
        let old = kept.column(*index).as_primitive::<Int64Type>();
        let new: Int64Array = old.iter().map(|number| number.and_then(|number| numbers.get(&number).copied())).collect();
        columns[*index] = Arc::new(new);
    }
    Ok(RecordBatch::try_new(kept.schema(), columns)?)
}
