//! Running charges: what open windows come to by now, with all usage that is acknowledged. Nothing is written.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::concat_batches;
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
use crate::adopted::Part;
use crate::log;

/// Usage after the last epoch, and what it does.
#[derive(Debug, Default)]
pub(super) struct Tail {
    usage: Vec<RecordBatch>,
    /// Of it, what is not in the folded state.
    unfolded: Vec<RecordBatch>,
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
    /// [`EpochError`].
    pub async fn running(&self, only: Option<&str>) -> Result<Vec<(String, WindowCharges)>, EpochError> {
        let frames = log::read_range(&self.log_folder, self.state.position, self.progress.position.load(Ordering::Acquire), u64::MAX)?;
        let usage = self.usage_of(self.last, &frames)?;
        let effect = self.effect_of(self.last, &frames, &usage).await?;
        // An epoch that failed may have folded its usage already.
        let unfolded: Vec<_> = frames.iter().filter(|frame| frame.header.position >= self.folds.position).cloned().collect();
        let tail = Tail { unfolded: self.usage_of(self.last, &unfolded)?, parts: parts_of(&frames), usage, effect };
        let rules = self.project.rules.iter().filter(|rule| only.is_none_or(|only| only == rule.name));
        let names = rules.flat_map(|rule| closure(&self.project, rule).into_iter().chain([rule.name.clone()]));
        let wanted = names.map(|name| (name, Wanted::All)).collect();
        let mut shown = Vec::new();
        for (name, found) in self.running_with(&tail, &wanted).await? {
            for (rated, charges) in found? {
                if only.is_none_or(|only| only == name) {
                    shown.push((name.clone(), WindowCharges { window: rated.window, charges }));
                }
            }
        }
        Ok(shown)
    }

    /// The charges of the windows that are wanted, rules that are read first, or why they are not known. Rules with
    /// `emit = 'final'` are evaluated for their readers, and left out.
    pub(super) async fn running_with(
        &self,
        tail: &Tail,
        wanted: &BTreeMap<String, Wanted>,
    ) -> Result<Vec<(String, Result<OpenCharges, EpochError>)>, EpochError> {
        let mut state = self.state.clone();
        let batches: Vec<RecordBatch> = tail.usage.iter().chain(&tail.effect.moved).cloned().collect();
        let touched = due::touched(&self.project.rules, &self.project.reference, &state, &self.moved, &batches)?;
        // What is late becomes a correction with the next epoch.
        due::note_usage(&mut state, touched, None);
        self.late_adopted(&mut state, None, &tail.parts).await?;
        let usage = tail.effect.changes.as_ref().unwrap_or(&self.changes).over(self.usage_with(tail)?)?;
        let mut rules: Vec<&Rule> = self.project.rules.iter().collect();
        rules.sort_by_key(|rule| depth(&self.project, &rule.name));
        let mut evaluated = Evaluated::new();
        let mut results = Vec::new();
        for rule in rules {
            let Some(wanted) = wanted.get(&rule.name) else { continue };
            let of_rule = state.open.iter().filter(|open| open.rule == rule.name && rule.in_force_at(open.window.window.start));
            let open: Vec<RuleWindow> = of_rule.map(|open| open.window.clone()).filter(|window| wanted.holds(window)).collect();
            if open.is_empty() {
                continue;
            }
            let found = match self.open_charges(rule, open, tail, &usage, &state, &evaluated).await {
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
        tail: &Tail,
        usage: &Arc<dyn TableProvider>,
        state: &EngineState,
        evaluated: &Evaluated,
    ) -> Result<OpenCharges, EpochError> {
        let windows: Vec<Window> = open.iter().map(|rated| rated.window).collect::<BTreeSet<_>>().into_iter().collect();
        let read = closure(&self.project, rule);
        let evaluator = self.rating().evaluator(Arc::clone(&self.project), Arc::clone(usage), &read, &windows, state, evaluated).await?;
        let charges = self.charges_now(rule, tail, &windows, &evaluator).await?;
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

    /// From the folded state and the usage after it; else from all usage, as where events were changed, or files adopted
    /// since.
    async fn charges_now(
        &self,
        rule: &Rule,
        tail: &Tail,
        windows: &[Window],
        evaluator: &Evaluator,
    ) -> Result<Vec<WindowCharges>, EpochError> {
        let is_held = |window: &Window| self.folds.holds(rule, *window) && !tail.effect.times.iter().any(|time| window.contains(*time));
        if tail.parts.is_empty() && windows.iter().all(is_held) {
            let folded = if tail.unfolded.is_empty() {
                self.folds.evaluate(rule, windows, evaluator).await
            } else {
                self.folds.evaluate_with(rule, &tail.unfolded, windows, evaluator).await
            };
            if let Some(Ok(charges)) = folded {
                return Ok(charges);
            }
        }
        Ok(evaluator.evaluate(rule, windows).await?)
    }

    /// Usage in the lake and what came after it.
    fn usage_with(&self, tail: &Tail) -> Result<Arc<dyn TableProvider>, EpochError> {
        let usage = self.usage()?;
        if tail.usage.is_empty() && tail.parts.is_empty() && self.unfinished.is_none() {
            return Ok(usage);
        }
        let context = session(Arc::clone(&self.runtime), &self.limits);
        // An epoch that is not completed may have stored its usage already.
        let mut stored = context.read_table(usage)?.filter(col("log_position").lt(lit(self.state.position)))?;
        if !tail.parts.is_empty() {
            let columns = Arc::new(stored.schema().as_arrow().clone());
            stored = stored.union(context.read_table(Arc::new(self.adopted.rows(tail.parts.clone(), columns)))?)?;
        }
        let Some(first) = tail.usage.first() else { return Ok(stored.into_view()) };
        let names: Vec<&str> = first.schema_ref().fields().iter().map(|field| field.name().as_str()).collect();
        let tail = concat_batches(&first.schema(), &tail.usage).map_err(|source| EpochError::Arrow { epoch: self.last, source })?;
        Ok(stored.select_columns(&names)?.union(context.read_batch(tail)?)?.into_view())
    }

    fn as_task(&self, rule: &Rule, rated: &RuleWindow) -> WindowTask {
        WindowTask {
            rule: rule.name.clone(),
            rule_version: rule.version.clone(),
            reference_version: self.project.reference.version().to_owned(),
            window: rated.clone(),
            cause: "window closed".to_owned(),
        }
    }
}

/// Running charges as one batch of a rule's columns, led by `rule`, `window_start` and `window_end`.
///
/// # Errors
/// When the batches do not fit together.
pub fn running_rows(charges: &[(String, WindowCharges)]) -> Result<Vec<RecordBatch>, arrow::error::ArrowError> {
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
