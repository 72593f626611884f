//! `running_charges`: what open windows come to, as a table of the lake. It is provisional: no epoch waits for it or fails
//! with it, and whatever it held before is worth nothing.
//!
//! Windows that an epoch publishes leave the table with that epoch, so that no reader sees a charge in it and in the
//! ledger. What windows come to is evaluated between epochs, now and then, and only for those that were touched.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, Schema, TimestampMicrosecondType};
use arrow::error::ArrowError;
use datafusion::prelude::SessionContext;
use ratemill_rules::{Reach, Rule, RuleProject, RuleWindow};
use ratemill_schemas::decimal::DECIMAL;
use ratemill_schemas::time::instant_type;
use ratemill_schemas::{Window, WindowSpec, time};
use tokio::time::{Instant, timeout_at};

use super::changes::Changes;
use super::manifest::Manifest;
use super::rate::closure;
use super::run::{EpochError, Epochs};
use super::running::{Arrived, OpenCharges, Wanted, rows_of_window};
use super::state::EngineState;
use crate::adopted::Part;
use crate::lake::{AppendOutcome, Lake, LakeError, LakeTable, TableSpec};

/// Its name.
pub const RUNNING_CHARGES: &str = "running_charges";
/// Name of the application transactions of publications between two epochs.
pub(crate) const RUNNING: &str = "ratemill/running";
/// Time within which it does not matter when usage was, µs.
const BUCKET: i64 = 15 * 60_000_000;
/// Times that are told apart at most; with more, every window counts as touched.
const BUCKETS_MAX: usize = 1 << 16;

/// What the table is.
#[must_use]
pub fn running_spec() -> TableSpec {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    let optional = |name: &str| Field::new(name, DataType::Utf8, true);
    let fields = vec![
        text("rule"),
        Field::new("window_start", instant_type(), false),
        Field::new("window_end", instant_type(), false),
        text("customer_id"),
        optional("contract_id"),
        text("item"),
        text("currency"),
        Field::new("amount", DECIMAL, false),
        Field::new("quantity", DECIMAL, true),
        optional("unit"),
        Field::new("unit_price", DECIMAL, true),
        optional("detail"),
        Field::new("epoch", DataType::Int64, false),
        Field::new("rated_at", instant_type(), false),
    ];
    let statistics = &["rule", "window_start", "window_end", "customer_id", "contract_id", "item", "currency"];
    TableSpec { name: RUNNING_CHARGES, schema: Arc::new(Schema::new(fields)), partitions: &[], statistics }
}

/// A window of a rule.
type Key = (String, RuleWindow);

/// The table and what is known of it.
#[derive(Debug)]
pub(super) struct RunningTable {
    pub(super) table: LakeTable,
    /// What it has.
    rows: BTreeMap<Key, RecordBatch>,
    /// Windows that were evaluated since they were touched last.
    current: HashSet<Key>,
    /// Rules that had usage, or published something, since the last publication.
    moved: BTreeSet<String>,
    /// The rules and reference data of the last publication.
    project: Option<Arc<RuleProject>>,
    /// There may be something to publish.
    is_stale: bool,
    /// The table may have other rows than these.
    is_behind: bool,
}

impl RunningTable {
    /// Opens the table with what it has of these rules.
    pub(super) async fn open(lake: &Lake, context: &SessionContext, project: &RuleProject) -> Result<Self, EpochError> {
        let table = LakeTable::open_or_create(lake, &running_spec()).await?;
        let mut opened = Self {
            table,
            rows: BTreeMap::new(),
            current: HashSet::new(),
            moved: BTreeSet::new(),
            project: None,
            is_stale: true,
            is_behind: false,
        };
        for batch in context.read_table(opened.table.provider()?)?.collect().await? {
            let windows = windows_of(project, &batch);
            opened.is_behind |= windows.values().map(Vec::len).sum::<usize>() < batch.num_rows();
            for (key, rows) in windows {
                let rows = take_record_batch(&batch, &UInt32Array::from(rows)).map_err(|source| EpochError::Arrow { epoch: 0, source })?;
                // A window may lie in two batches.
                let rows = match opened.rows.remove(&key) {
                    Some(before) => arrow::compute::concat_batches(&batch.schema(), [&before, &rows])
                        .map_err(|source| EpochError::Arrow { epoch: 0, source })?,
                    None => rows,
                };
                opened.rows.insert(key, rows);
            }
        }
        Ok(opened)
    }

    /// Takes note of an epoch: what it touched is to be evaluated again.
    fn note(&mut self, project: &RuleProject, manifest: &Manifest, state: &EngineState, times: &Times<'_>) {
        self.is_stale = true;
        if self.project.is_none() {
            // Nothing was published yet, as in a batch: all is to be evaluated anyway.
            return;
        }
        let mut read: BTreeMap<&str, BTreeSet<i64>> = BTreeMap::new();
        for rule in &project.rules {
            read.entry(&rule.name).or_default().extend(times.read_by(rule));
        }
        // What was before a window opens it, be it of no window itself.
        let opens = |name: &str| project.rules.iter().any(|rule| rule.name == name && !rule.options.carry.is_empty());
        let reaches = |name: &str| project.rules.iter().any(|rule| rule.name == name && rule.reach == Reach::Onward);
        let changed: HashSet<(&str, &RuleWindow)> =
            state.open.iter().filter(|open| open.changed_at > manifest.from).map(|open| (open.rule.as_str(), &open.window)).collect();
        self.current.retain(|(rule, rated)| {
            let Some(read) = read.get(rule.as_str()) else { return false };
            let Window { start, end } = rated.window;
            let is_touched = times.too_many || read.range(start.div_euclid(BUCKET)..=(end - 1).div_euclid(BUCKET)).next().is_some();
            let is_reached = is_touched || (!read.is_empty() && reaches(rule));
            let is_opened_anew = times.are_changed && opens(rule);
            !is_reached && !is_opened_anew && !changed.contains(&(rule.as_str(), rated))
        });
        let with_usage = read.iter().filter(|(_, read)| times.too_many || !read.is_empty()).map(|(rule, _)| (*rule).to_owned());
        self.moved.extend(with_usage.chain(manifest.tasks.iter().map(|task| task.rule.clone())));
        self.moved.extend(changed.iter().map(|(rule, _)| (*rule).to_owned()));
        if times.are_changed {
            self.moved.extend(project.rules.iter().map(|rule| &rule.name).filter(|name| opens(name)).cloned());
        }
    }

    /// What is to be evaluated: windows that are not current, and what rules read whose charges may have changed.
    fn wanted(&self, project: &Arc<RuleProject>, state: &EngineState) -> BTreeMap<String, Wanted> {
        let is_same = self.project.as_ref().is_some_and(|before| Arc::ptr_eq(before, project));
        let mut open: BTreeMap<&str, HashSet<RuleWindow>> = BTreeMap::new();
        for window in &state.open {
            let key = (window.rule.clone(), window.window.clone());
            let of_rule = open.entry(window.rule.as_str()).or_default();
            if !is_same || !self.current.contains(&key) {
                of_rule.insert(key.1);
            }
        }
        let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
        for rule in project.rules.iter().filter(|rule| rule.options.provisional) {
            let Some(stale) = open.get(rule.name.as_str()) else { continue };
            let read = closure(project, rule);
            if read.is_empty() && !stale.is_empty() {
                wanted.entry(rule.name.clone()).or_insert_with(|| Wanted::Among(stale.clone()));
            } else if !stale.is_empty() || read.iter().any(|name| self.moved.contains(name)) {
                // A reader needs all that it reads.
                wanted.extend(read.into_iter().chain([rule.name.clone()]).map(|name| (name, Wanted::All)));
            }
        }
        wanted
    }
}

impl Epochs {
    /// Takes windows out of the table that are open no longer. An epoch never fails with it.
    pub(super) async fn close_running(&mut self, manifest: &Manifest, state: &EngineState) {
        let mut rows = self.running.rows.clone();
        keep_shown(&mut rows, &self.project, state);
        if rows.len() == self.running.rows.len() && !self.running.is_behind {
            return;
        }
        if let Err(error) = self.write_running(rows, super::run::APPLICATION, manifest.epoch, None).await {
            tracing::warn!(%error, "closed windows stay in running_charges until it is published next");
        }
    }

    /// Takes note of what a completed epoch touched.
    pub(super) fn note_running(&mut self, manifest: &Manifest, times: &Times<'_>) {
        self.running.note(&self.project, manifest, &self.state, times);
    }

    /// Whether there may be running charges that the table does not have.
    #[must_use]
    pub fn running_is_stale(&self) -> bool {
        let is_reloaded = self.running.project.as_ref().is_some_and(|before| !Arc::ptr_eq(before, &self.project));
        (self.running.is_stale || is_reloaded) && self.unfinished.is_none()
    }

    /// Publishes what open windows come to as of the last epoch, in the table `running_charges`. Of a rule that cannot be
    /// evaluated, the table has nothing. `false` says that it was given up, for
    /// want of time or since an attempt before came first; it may be tried again.
    ///
    /// # Errors
    /// [`EpochError`] when the lake cannot be read or written; it may be tried again.
    pub async fn publish_running(&mut self, within: Duration) -> Result<bool, EpochError> {
        if self.unfinished.is_some() {
            return Ok(true);
        }
        let deadline = Instant::now() + within;
        let started = std::time::Instant::now();
        let wanted = self.running.wanted(&self.project, &self.state);
        let nothing = Arrived::default();
        let found = if wanted.is_empty() {
            Vec::new()
        } else {
            match self.answering(timeout_at(deadline, self.running_with(&nothing, &wanted, None))).await {
                Ok(found) => found?,
                Err(_) => return Ok(false),
            }
        };
        let mut rows = self.running.rows.clone();
        keep_shown(&mut rows, &self.project, &self.state);
        let mut is_changed = self.running.is_behind || rows.len() != self.running.rows.len();
        for (name, found) in found {
            match found {
                Ok(found) => is_changed |= self.take_over(&mut rows, &name, found)?,
                Err(error) => {
                    tracing::warn!(%error, rule = name, "running charges of this rule are not known; it is tried again with new usage");
                    metrics::counter!("ratemill_running_failures_total", "rule" => name.clone()).increment(1);
                    let before = rows.len();
                    rows.retain(|(rule, _), _| *rule != name);
                    is_changed |= rows.len() != before;
                }
            }
        }
        if is_changed {
            let number = self.running.table.last_transaction(RUNNING).await?.unwrap_or(0) + 1;
            if !self.write_running(rows, RUNNING, number, Some(deadline)).await? {
                return Ok(false);
            }
            metrics::counter!("ratemill_running_publications_total").increment(1);
        }
        metrics::histogram!("ratemill_running_publication_duration_seconds").record(started.elapsed());
        self.running.current = self.state.open.iter().map(|open| (open.rule.clone(), open.window.clone())).collect();
        self.running.project = Some(Arc::clone(&self.project));
        self.running.moved.clear();
        self.running.is_stale = false;
        Ok(true)
    }

    /// Puts what was evaluated in the place of what was there; whether anything is different.
    fn take_over(&self, rows: &mut BTreeMap<Key, RecordBatch>, rule: &str, found: OpenCharges) -> Result<bool, EpochError> {
        let mut is_changed = false;
        for (rated, charges) in found {
            let key = (rule.to_owned(), rated);
            if charges.num_rows() == 0 {
                is_changed |= rows.remove(&key).is_some();
                continue;
            }
            let stamped = rows_of_window(rule, key.1.window, &charges)
                .and_then(|led| stamp(&led, self.last, time::now()))
                .map_err(|source| EpochError::Arrow { epoch: self.last, source })?;
            rows.insert(key, stamped);
            is_changed = true;
        }
        Ok(is_changed)
    }

    /// Writes the table; `false` where that took too long, or another attempt has written something as this number.
    async fn write_running(
        &mut self,
        rows: BTreeMap<Key, RecordBatch>,
        application: &str,
        number: i64,
        deadline: Option<Instant>,
    ) -> Result<bool, LakeError> {
        let batches: Vec<RecordBatch> = rows.values().cloned().collect();
        // Nobody knows what the table has when this is stopped half-way.
        self.running.rows = rows;
        self.running.is_behind = true;
        self.running.is_stale = true;
        let mut table = self.running.table.clone();
        let written = async {
            let writing = table.replace_rows(&batches, application, number);
            match deadline {
                Some(deadline) => timeout_at(deadline, writing).await.ok().transpose(),
                None => writing.await.map(Some),
            }
        };
        let Some(outcome) = self.answering(written).await? else { return Ok(false) };
        self.running.table = table;
        self.running.is_behind = outcome == AppendOutcome::AlreadyThere;
        Ok(!self.running.is_behind)
    }
}

/// Keeps rows of windows that are open, and of which the project shows what they come to.
fn keep_shown(rows: &mut BTreeMap<Key, RecordBatch>, project: &RuleProject, state: &EngineState) {
    if rows.is_empty() {
        return;
    }
    let open: HashSet<(&str, &RuleWindow)> = state.open.iter().map(|open| (open.rule.as_str(), &open.window)).collect();
    let is_shown =
        |name: &str, start: i64| project.rules.iter().any(|rule| rule.name == name && rule.options.provisional && rule.in_force_at(start));
    rows.retain(|(rule, rated), _| open.contains(&(rule.as_str(), rated)) && is_shown(rule, rated.window.start));
}

/// The rows with the epoch as of which they were evaluated, and when that was.
fn stamp(rows: &RecordBatch, epoch: i64, rated_at: i64) -> Result<RecordBatch, ArrowError> {
    let mut fields: Vec<Field> = rows.schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.extend([Field::new("epoch", DataType::Int64, false), Field::new("rated_at", instant_type(), false)]);
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(Int64Array::from(vec![epoch; rows.num_rows()])) as ArrayRef);
    columns.push(Arc::new(TimestampMicrosecondArray::from_value(rated_at, rows.num_rows()).with_timezone("UTC")));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// The rows of each window in a batch of the table; those of rules that are gone are left out.
fn windows_of(project: &RuleProject, batch: &RecordBatch) -> HashMap<Key, Vec<u32>> {
    let column = |name: &str| batch.column_by_name(name);
    let (Some(rules), Some(contracts)) = (column("rule"), column("contract_id")) else { return HashMap::new() };
    let (Some(starts), Some(ends)) = (column("window_start"), column("window_end")) else { return HashMap::new() };
    let (rules, contracts): (&StringArray, &StringArray) = (rules.as_string(), contracts.as_string());
    let (starts, ends) = (starts.as_primitive::<TimestampMicrosecondType>(), ends.as_primitive::<TimestampMicrosecondType>());
    let mut windows: HashMap<Key, Vec<u32>> = HashMap::new();
    for (row, number) in (0..batch.num_rows()).zip(0..) {
        let name = rules.value(row);
        let Some(rule) = project.rules.iter().find(|rule| rule.name == name) else { continue };
        let own = matches!(rule.options.window, WindowSpec::BillingPeriod).then(|| contracts.value(row).to_owned());
        let window = Window { start: starts.value(row), end: ends.value(row) };
        windows.entry((name.to_owned(), RuleWindow { window, contract_id: own })).or_default().push(number);
    }
    windows
}

/// When usage was, by meter, about.
#[derive(Debug, Default)]
pub(super) struct Times<'u> {
    by_meter: HashMap<&'u str, BTreeSet<i64>>,
    /// They were not told apart.
    too_many: bool,
    /// Usage of other times may have been voided or amended.
    are_changed: bool,
}

impl<'u> Times<'u> {
    /// Of the usage of an epoch, of the files that it adopted, and of the voids and amendments in force after it where they are
    /// others than before.
    pub(super) fn of(usage: &'u [RecordBatch], adopted: &[Arc<Part>], changes: Option<&Changes>) -> Self {
        let mut times = Self { are_changed: changes.is_some(), ..Self::default() };
        let mut count = 0;
        for batch in usage {
            let (Some(meters), Some(instants)) = (batch.column_by_name("meter"), batch.column_by_name("time")) else { continue };
            let meters: &StringArray = meters.as_string();
            let mut last = None;
            for (meter, time) in meters.iter().zip(instants.as_primitive::<TimestampMicrosecondType>().values()) {
                let found = (meter.unwrap_or_default(), time.div_euclid(BUCKET));
                // Most rows are like the one before.
                if last.replace(found) != Some(found) && times.by_meter.entry(found.0).or_default().insert(found.1) {
                    count += 1;
                }
            }
        }
        times.too_many = count > BUCKETS_MAX || !adopted.is_empty();
        times
    }

    /// Times of usage that a rule reads.
    fn read_by(&self, rule: &Rule) -> BTreeSet<i64> {
        self.by_meter.iter().filter(|(meter, _)| rule.reads(meter)).flat_map(|(_, times)| times.iter().copied()).collect()
    }
}
