//! Running charges: what open windows come to by now, with all usage that is acknowledged. Nothing is written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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
use super::due;
use super::finalized::Finalized;
use super::manifest::WindowTask;
use super::rate::{Evaluated, closure, depth};
use super::run::{EpochError, Epochs};
use crate::adopted::Part;
use crate::log;

impl Epochs {
    /// The charges of open windows by rule, rules that are read first; of one rule, where `only` names it. Rules with
    /// `emit = 'final'` are left out.
    ///
    /// # Errors
    /// [`EpochError`].
    pub async fn running(&self, only: Option<&str>) -> Result<Vec<(String, WindowCharges)>, EpochError> {
        let frames = log::read_range(&self.log_folder, self.state.position, self.progress.position.load(Ordering::Acquire), u64::MAX)?;
        let tail = self.usage_of(self.last, &frames)?;
        let effect = self.effect_of(self.last, &frames, &tail).await?;
        let mut state = self.state.clone();
        let batches: Vec<RecordBatch> = tail.iter().chain(&effect.moved).cloned().collect();
        let touched = due::touched(&self.project.rules, &self.project.reference, &state, &self.moved, &batches)?;
        // What is late becomes a correction with the next epoch.
        due::note_usage(&mut state, touched, None);
        let parts = parts_of(&frames);
        self.late_adopted(&mut state, None, &parts).await?;
        let usage = effect.changes.as_ref().unwrap_or(&self.changes).over(self.usage_with(&tail, parts.clone())?)?;
        // An epoch that failed may have folded its usage already.
        let folded_tail: Vec<_> = frames.iter().filter(|frame| frame.header.position >= self.folds.position).cloned().collect();
        let folded_tail = self.usage_of(self.last, &folded_tail)?;
        let wanted: Option<BTreeSet<String>> = only.map(|name| {
            let of_rule = self.project.rules.iter().filter(|rule| rule.name == name);
            of_rule.flat_map(|rule| closure(&self.project, rule)).chain([name.to_owned()]).collect()
        });
        let mut rules: Vec<&Rule> = self.project.rules.iter().collect();
        rules.retain(|rule| wanted.as_ref().is_none_or(|wanted| wanted.contains(&rule.name)));
        rules.sort_by_key(|rule| depth(&self.project, &rule.name));
        let mut evaluated = Evaluated::new();
        let mut results = Vec::new();
        for rule in rules {
            let open: Vec<RuleWindow> = state
                .open
                .iter()
                .filter(|open| open.rule == rule.name && rule.in_force_at(open.window.window.start))
                .map(|open| open.window.clone())
                .collect();
            let windows: Vec<Window> = open.iter().map(|rated| rated.window).collect::<BTreeSet<_>>().into_iter().collect();
            if windows.is_empty() {
                continue;
            }
            let read = closure(&self.project, rule);
            let evaluator =
                self.rating().evaluator(Arc::clone(&self.project), Arc::clone(&usage), &read, &windows, &state, &evaluated).await?;
            let charges = self.charges_now(rule, (&folded_tail, &effect.times, parts.is_empty()), &windows, &evaluator).await?;
            let of_contracts = open.iter().all(|rated| rated.contract_id.is_some());
            let charges: HashMap<Window, Grouped> =
                charges.iter().map(|result| (result.window, Grouped::of_window(&result.charges, result.window, of_contracts))).collect();
            let mut by_window: BTreeMap<RuleWindow, RecordBatch> = BTreeMap::new();
            for rated in open {
                let Some(result) = charges.get(&rated.window) else { continue };
                let charges = result.rows_of(&rated).map_err(|source| EpochError::Arrow { epoch: self.last, source })?;
                if rule.options.provisional && only.is_none_or(|only| only == rule.name) {
                    results.push((rule.name.clone(), WindowCharges { window: rated.window, charges: charges.clone() }));
                }
                // Readers take it as they take what an epoch has just published.
                state.finalized.insert(Finalized::window(&self.as_task(rule, &rated), true));
                by_window.insert(rated, charges);
            }
            state.close(&rule.name, &by_window.keys().collect());
            evaluated.entry(rule.name.clone()).or_default().extend(by_window);
        }
        Ok(results)
    }

    /// From the folded state and the usage after it; else from all usage, as where events of `moved` times are changed, or
    /// files were adopted since.
    async fn charges_now(
        &self,
        rule: &Rule,
        (tail, moved, is_whole): (&[RecordBatch], &[i64], bool),
        windows: &[Window],
        evaluator: &Evaluator,
    ) -> Result<Vec<WindowCharges>, EpochError> {
        let is_held = |window: &Window| self.folds.holds(rule, *window) && !moved.iter().any(|time| window.contains(*time));
        if is_whole
            && windows.iter().all(is_held)
            && let Some(Ok(charges)) = self.folds.evaluate_with(rule, tail, windows, evaluator).await
        {
            return Ok(charges);
        }
        Ok(evaluator.evaluate(rule, windows).await?)
    }

    /// Usage in the lake and what came after it.
    fn usage_with(&self, tail: &[RecordBatch], parts: Vec<Arc<Part>>) -> Result<Arc<dyn TableProvider>, EpochError> {
        let usage = self.usage()?;
        if tail.is_empty() && parts.is_empty() && self.unfinished.is_none() {
            return Ok(usage);
        }
        let context = session(Arc::clone(&self.runtime), &self.limits);
        // An epoch that is not completed may have stored its usage already.
        let mut stored = context.read_table(usage)?.filter(col("log_position").lt(lit(self.state.position)))?;
        if !parts.is_empty() {
            let columns = Arc::new(stored.schema().as_arrow().clone());
            stored = stored.union(context.read_table(Arc::new(self.adopted.rows(parts, columns)))?)?;
        }
        let Some(first) = tail.first() else { return Ok(stored.into_view()) };
        let names: Vec<&str> = first.schema_ref().fields().iter().map(|field| field.name().as_str()).collect();
        let tail = concat_batches(&first.schema(), tail).map_err(|source| EpochError::Arrow { epoch: self.last, source })?;
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
    charges
        .iter()
        .filter(|(_, result)| result.charges.num_rows() > 0)
        .map(|(rule, WindowCharges { window, charges })| {
            let rows = charges.num_rows();
            let bound = |instant| Arc::new(TimestampMicrosecondArray::from_value(instant, rows).with_timezone("UTC")) as ArrayRef;
            let mut fields = vec![
                Field::new("rule", DataType::Utf8, false),
                Field::new("window_start", instant_type(), false),
                Field::new("window_end", instant_type(), false),
            ];
            fields.extend(charges.schema().fields().iter().map(|field| field.as_ref().clone()));
            let mut columns =
                vec![Arc::new(StringArray::from(vec![rule.as_str(); rows])) as ArrayRef, bound(window.start), bound(window.end)];
            columns.extend(charges.columns().iter().cloned());
            RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
        })
        .collect()
}
