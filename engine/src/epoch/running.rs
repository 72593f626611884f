//! Running charges: what open windows come to by now, with all usage that is acknowledged. Nothing is written.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::catalog::TableProvider;
use datafusion::prelude::{col, lit};
use ratemill_rules::session::session;
use ratemill_rules::{Evaluator, Rule, RuleWindow, WindowCharges};
use ratemill_schemas::Window;
use ratemill_schemas::time::instant_type;

use super::adopting::parts_of;
use super::books::Grouped;
use super::changes::Effect;
use super::due;
use super::finalized::Finalized;
use super::manifest::WindowTask;
use super::rate::{Evaluated, closure, depth};
use super::run::{EpochError, Epochs};
use super::state::EngineState;
use super::tail::TailUsage;
use crate::adopted::Part;

/// Bytes of the log that are read for a question, two epochs or more.
const TAIL_BYTES_MIN: u64 = 256 << 20;

/// Usage after the last epoch, and what it does.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    usage: Vec<RecordBatch>,
    /// Of it, what is not in the folded state.
    unfolded: Vec<TailUsage>,
    /// Files that it adopts.
    parts: Vec<Arc<Part>>,
    effect: Effect,
}

/// The windows of a rule that are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All that are open.
    All,
    /// Of them, those among these.
    Among(HashSet<RuleWindow>),
}

impl Wanted {
    fn holds(&self, window: &RuleWindow) -> bool {
        match self {
            Self::All => true,
            Self::Among(windows) => windows.contains(window),
        }
    }
}

/// Open windows and what each comes to.
pub(super) type OpenCharges = Vec<(RuleWindow, RecordBatch)>;

impl Epochs {
    /// The charges of open windows by rule, rules that are read first; of one rule, where `only` names it. Rules with
    /// `emit = 'final'` are left out.
    ///
    /// # Errors
    /// [`EpochError`]; [`EpochError::Behind`] when more usage waits for the lake than a question reads.
    pub async fn running(&self, only: Option<&str>) -> Result<Vec<(String, WindowCharges)>, EpochError> {
        self.running_of(only, None).await
    }

    /// The same for one customer, where `customer` names one: charges of others may be missing.
    ///
    /// # Errors
    /// [`EpochError`].
    pub async fn running_of(&self, only: Option<&str>, customer: Option<&str>) -> Result<Vec<(String, WindowCharges)>, EpochError> {
        let arrived = self.arrived().await?;
        let rules = self.project.rules.iter().filter(|rule| only.is_none_or(|only| only == rule.name));
        let names = rules.flat_map(|rule| closure(&self.project, rule).into_iter().chain([rule.name.clone()]));
        let wanted = names.map(|name| (name, Wanted::All)).collect();
        let mut shown = Vec::new();
        for (name, found) in self.running_with(&arrived, &wanted, customer).await? {
            for (rated, charges) in found? {
                if only.is_none_or(|only| only == name) {
                    shown.push((name.clone(), WindowCharges { window: rated.window, charges }));
                }
            }
        }
        Ok(shown)
    }

    /// What came after the last epoch and is acknowledged.
    async fn arrived(&self) -> Result<Arrived, EpochError> {
        let mut tail = self.tail.lock().await;
        let undrained = (self.state.position, self.progress.position.load(Ordering::Acquire));
        tail.read(
            (&self.progress.recent, &self.log_folder),
            undrained,
            TAIL_BYTES_MIN.max(self.epoch_bytes.saturating_mul(2)),
            &self.schema,
        )?;
        let usage = tail.batches();
        let effect = self.effect_of(self.last, &tail.frames, &usage).await?;
        // An epoch that failed may have folded its usage already.
        let unfolded = tail.usage_from(self.folds.position).to_vec();
        Ok(Arrived { unfolded, parts: parts_of(&tail.frames), usage, effect })
    }

    /// The charges of the windows that are wanted, rules that are read first, or why they are not known. Rules with
    /// `emit = 'final'` are evaluated for their readers, and left out. Of a rule that no other reads, charges of others than
    /// `customer` may be missing.
    pub(super) async fn running_with(
        &self,
        arrived: &Arrived,
        wanted: &BTreeMap<String, Wanted>,
        customer: Option<&str>,
    ) -> Result<Vec<(String, Result<OpenCharges, EpochError>)>, EpochError> {
        let mut state = self.state.clone();
        let batches: Vec<RecordBatch> = arrived.usage.iter().chain(&arrived.effect.moved).cloned().collect();
        let touched = due::touched(&self.project.rules, &self.project.reference, &state, &self.moved, &batches)?;
        // What is late becomes a correction with the next epoch.
        due::note_usage(&mut state, touched, None);
        self.late_adopted(&mut state, None, &arrived.parts).await?;
        let usage = arrived.effect.changes.as_ref().unwrap_or(&self.changes).over(self.usage_with(arrived)?)?;
        let all: Vec<&Rule> = self.project.rules.iter().collect();
        let mut rules = all.clone();
        rules.sort_by_cached_key(|rule| depth(&all, &rule.name));
        // What another rule reads must be whole.
        let read: BTreeSet<String> = rules.iter().flat_map(|rule| closure(&self.project, rule)).collect();
        let mut evaluated = Evaluated::new();
        let mut results = Vec::new();
        for rule in rules {
            let Some(wanted) = wanted.get(&rule.name) else { continue };
            let of_rule = state.open.iter().filter(|open| open.rule == rule.name && rule.in_force_at(open.window.window.start));
            let open: Vec<RuleWindow> = of_rule.map(|open| open.window.clone()).filter(|window| wanted.holds(window)).collect();
            if open.is_empty() {
                continue;
            }
            let found = match self
                .open_charges(rule, open, (arrived, customer.filter(|_| !read.contains(&rule.name))), &usage, &state, &evaluated)
                .await
            {
                Ok(found) => found,
                Err(error) => {
                    results.push((rule.name.clone(), Err(error)));
                    continue;
                }
            };
            if rule.options.provisional {
                results.push((rule.name.clone(), Ok(found.clone())));
            }
            for (rated, _) in &found {
                // Readers take it as they take what an epoch has just published.
                state.finalized.insert(Finalized::window(&self.as_task(rule, rated), true));
            }
            let by_window: BTreeMap<RuleWindow, RecordBatch> = found.into_iter().collect();
            state.close(&rule.name, &by_window.keys().collect());
            evaluated.entry(rule.name.clone()).or_default().extend(by_window);
        }
        Ok(results)
    }

    /// What these windows of a rule come to.
    async fn open_charges(
        &self,
        rule: &Rule,
        open: Vec<RuleWindow>,
        (arrived, customer): (&Arrived, Option<&str>),
        usage: &Arc<dyn TableProvider>,
        state: &EngineState,
        evaluated: &Evaluated,
    ) -> Result<OpenCharges, EpochError> {
        let windows: Vec<Window> = open.iter().map(|rated| rated.window).collect::<BTreeSet<_>>().into_iter().collect();
        let read = closure(&self.project, rule);
        let evaluator = self.rating().evaluator(Arc::clone(&self.project), Arc::clone(usage), &read, &windows, state, evaluated).await?;
        let charges = self.charges_now(rule, arrived, &windows, &evaluator, customer).await?;
        let of_contracts = open.iter().all(|rated| rated.contract_id.is_some());
        let charges: HashMap<Window, Grouped> =
            charges.iter().map(|result| (result.window, Grouped::of_window(&result.charges, result.window, of_contracts))).collect();
        let mut found = Vec::new();
        for rated in open {
            let Some(result) = charges.get(&rated.window) else { continue };
            let charges = result.rows_of(&rated).map_err(|source| EpochError::Arrow { epoch: self.last, source })?;
            found.push((rated, charges));
        }
        Ok(found)
    }

    /// From the folded state and the usage after it; else from all usage, as windows are in which events were changed, or where
    /// files were adopted since.
    async fn charges_now(
        &self,
        rule: &Rule,
        arrived: &Arrived,
        windows: &[Window],
        evaluator: &Evaluator,
        customer: Option<&str>,
    ) -> Result<Vec<WindowCharges>, EpochError> {
        let moved = &arrived.effect.times;
        // A window may open with an event of any time before.
        let opens = !rule.options.carry.is_empty();
        let is_changed = |window: &Window| moved.iter().any(|time| window.contains(*time) || (opens && *time < window.start));
        let is_held = |window: &Window| arrived.parts.is_empty() && self.folds.holds(rule, *window) && !is_changed(window);
        let (mut held, mut rest): (Vec<Window>, Vec<Window>) = windows.iter().partition(|window| is_held(window));
        if rule.reads_itself() && !rest.is_empty() {
            // They follow each other.
            rest = windows.to_vec();
            held.clear();
        }
        let mut charges = Vec::new();
        if !held.is_empty() {
            match self.folds.evaluate_with(rule, &arrived.unfolded, &held, evaluator, customer).await {
                Some(Ok(found)) => charges = found,
                // Who reads them says what is wrong, and with whom.
                _ => rest.append(&mut held),
            }
        }
        if !rest.is_empty() {
            charges.extend(evaluator.evaluate(rule, &rest).await?);
        }
        Ok(charges)
    }

    /// Usage in the lake and what came after it.
    fn usage_with(&self, arrived: &Arrived) -> Result<Arc<dyn TableProvider>, EpochError> {
        let usage = self.usage()?;
        if arrived.usage.is_empty() && arrived.parts.is_empty() && self.unfinished.is_none() {
            return Ok(usage);
        }
        let context = session(Arc::clone(&self.runtime), &self.limits);
        // An epoch that is not completed may have stored its usage already.
        let mut stored = context.read_table(usage)?.filter(col("log_position").lt(lit(self.state.position)))?;
        if !arrived.parts.is_empty() {
            let columns = Arc::new(stored.schema().as_arrow().clone());
            stored = stored.union(context.read_table(Arc::new(self.adopted.rows(arrived.parts.clone(), columns)))?)?;
        }
        let Some(first) = arrived.usage.first() else { return Ok(stored.into_view()) };
        let schema = first.schema();
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        Ok(stored.select_columns(&names)?.union(context.read_batches(arrived.usage.clone())?)?.into_view())
    }

    fn as_task(&self, rule: &Rule, rated: &RuleWindow) -> WindowTask {
        WindowTask {
            rule: rule.name.clone(),
            rule_version: rule.version.clone(),
            reference_version: self.project.reference.version().to_owned(),
            window: rated.clone(),
            cause: WindowTask::CLOSED.to_owned(),
        }
    }
}

/// Running charges as one batch of a rule's columns, led by `rule`, `window_start` and `window_end`.
///
/// # Errors
/// When the batches do not fit together.
pub(super) fn running_rows(charges: &[(String, WindowCharges)]) -> Result<Vec<RecordBatch>, arrow::error::ArrowError> {
    let found = charges.iter().filter(|(_, result)| result.charges.num_rows() > 0);
    found.map(|(rule, WindowCharges { window, charges })| rows_of_window(rule, *window, charges)).collect()
}

/// The charges of a window, led by `rule`, `window_start` and `window_end`.
pub(super) fn rows_of_window(rule: &str, window: Window, charges: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let rows = charges.num_rows();
    let bound = |instant| Arc::new(TimestampMicrosecondArray::from_value(instant, rows).with_timezone("UTC")) as ArrayRef;
    let mut fields = vec![
        Field::new("rule", DataType::Utf8, false),
        Field::new("window_start", instant_type(), false),
        Field::new("window_end", instant_type(), false),
    ];
    fields.extend(charges.schema().fields().iter().map(|field| field.as_ref().clone()));
    let mut columns = vec![Arc::new(StringArray::from(vec![rule; rows])) as ArrayRef, bound(window.start), bound(window.end)];
    columns.extend(charges.columns().iter().cloned());
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}
