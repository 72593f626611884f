//! Rating the windows of a manifest: upstream rules first, each window once, differences to what is published.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::error::ArrowError;
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::{col, lit};
use ratemill_rules::session::{SessionLimits, session};
use ratemill_rules::{Evaluator, RateError, Rule, RuleProject, RuleWindow, WindowCharges};
use ratemill_schemas::{UsageSchema, Window};

use super::books::Grouped;
use super::changes::Changes;
use super::due;
use super::finalized::Finalized;
use super::manifest::{Manifest, WindowTask};
use super::run::{APPLICATION, EpochError, Epochs};
use super::state::EngineState;
use super::tables::Tables;
use crate::lake::Lake;
use crate::ledger::{self, Posting};

/// Charges that this epoch evaluated, by rule and window.
pub(super) type Evaluated = HashMap<String, BTreeMap<RuleWindow, RecordBatch>>;

/// What rating reads: the tables, and versions of rules and reference data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rating<'e> {
    pub(super) lake: &'e Lake,
    pub(super) tables: &'e Tables,
    pub(super) project: &'e Arc<RuleProject>,
    pub(super) schema: &'e Arc<UsageSchema>,
    pub(super) runtime: &'e Arc<RuntimeEnv>,
    pub(super) limits: &'e SessionLimits,
    /// The last epoch.
    pub(super) last: i64,
}

/// How far the rating of an epoch has come.
#[derive(Debug, Default)]
struct Progress {
    evaluated: Evaluated,
    /// Rules of which a window could not be rated.
    failed: HashSet<String>,
    /// Rules of which a window is left to the next epoch.
    left: HashSet<String>,
    /// The charges of the epoch are in the ledger, by an attempt before: nothing is added to them.
    is_posted: bool,
    postings: Vec<RecordBatch>,
}

impl Progress {
    /// Leaves windows to the next epoch, as if they were not in this one.
    fn leave<'t>(&mut self, tasks: impl IntoIterator<Item = &'t WindowTask>, state: &mut EngineState) {
        for task in tasks {
            tracing::info!(rule = task.rule, window = %task.window, "the charges of the epoch are written without this window; the next one has it");
            self.left.insert(task.rule.clone());
            // What is not final is due again.
            if task.cause != WindowTask::CLOSED || state.finalized.get(&task.rule, &task.window).is_some() {
                state.pending.push(task.clone());
            }
        }
    }
}

impl Epochs {
    /// Evaluates the manifest's windows and returns the rows that the ledger needs. What an attempt before could not rate, and
    /// this one can, is left to the next epoch where the charges of this one are written.
    pub(super) async fn rate(
        &mut self,
        manifest: &Manifest,
        changes_after: Option<&Changes>,
        state: &mut EngineState,
        failures: &mut Vec<String>,
    ) -> Result<Vec<RecordBatch>, EpochError> {
        let is_posted = !std::mem::take(&mut self.is_first_attempt) && self.tables.charges.has(APPLICATION, manifest.epoch).await?;
        let mut progress = Progress { is_posted, ..Progress::default() };
        let versions: Vec<&Rule> = self.project.rules.iter().chain(&self.former).collect();
        for tasks in grouped(&versions, &manifest.tasks) {
            let Some(first) = tasks.first() else { continue };
            let (name, rule_version, reference_version) =
                (first.rule.as_str(), first.rule_version.as_str(), first.reference_version.as_str());
            let project = match self.rating().version(name, rule_version, reference_version).await {
                Ok(project) => project,
                Err(error @ EpochError::Version { .. }) => {
                    progress.failed.insert(name.to_owned());
                    self.note_failure(&error, name, &tasks, state, failures);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let wrong = |message: String| EpochError::Version { rule: name.to_owned(), version: rule_version.to_owned(), message };
            let Some(rule) = project.rule(name, rule_version) else {
                progress.failed.insert(name.to_owned());
                self.note_failure(&wrong("is not what its name in the lake says".to_owned()), name, &tasks, state, failures);
                continue;
            };
            let read = closure(&project, rule);
            if let Some(upstream) = read.iter().find(|upstream| progress.failed.contains(*upstream)) {
                let error = wrong(format!("rule `{upstream}`, which it reads, failed"));
                progress.failed.insert(name.to_owned());
                self.note_failure(&error, name, &tasks, state, failures);
                continue;
            }
            if read.iter().any(|upstream| progress.left.contains(upstream)) {
                progress.leave(tasks, state);
                continue;
            }
            let usage = changes_after.unwrap_or(&self.changes).over(self.usage()?)?;
            let evaluate = || self.evaluate_group(&project, rule, &tasks, Arc::clone(&usage), state, &progress.evaluated);
            let answered = self.questions.answered();
            let (mut results, mut errors) = self.answering(evaluate()).await?;
            if !errors.is_empty() && self.questions.answered() > answered {
                // A question may have had the memory.
                (results, errors) = evaluate().await?;
            }
            for (window, error) in errors {
                progress.failed.insert(name.to_owned());
                let of_window: Vec<&WindowTask> = tasks.iter().filter(|task| task.window.window == window).copied().collect();
                self.note_failure(&error, name, &of_window, state, failures);
            }
            self.post_group(manifest, &project, &tasks, &results, state, &mut progress).await?;
        }
        Ok(progress.postings)
    }

    /// The charges of the windows of a group that can be rated, folded or read, and the errors of the others.
    async fn evaluate_group(
        &self,
        project: &Arc<RuleProject>,
        rule: &Rule,
        tasks: &[&WindowTask],
        usage: Arc<dyn TableProvider>,
        state: &EngineState,
        evaluated: &Evaluated,
    ) -> Result<Apart, EpochError> {
        let started = std::time::Instant::now();
        let windows = windows_of(tasks);
        let read = closure(project, rule);
        let evaluator = self.rating().evaluator(Arc::clone(project), usage, &read, &windows, state, evaluated).await?;
        let mut results = self.folded(project, rule, tasks, &evaluator).await;
        let rest: Vec<Window> = windows.iter().copied().filter(|window| !results.contains_key(window)).collect();
        let (found, mut errors) = evaluate_apart(&evaluator, rule, &rest).await;
        results.extend(found);
        if let Some(unreadable) = errors.iter().position(|(_, error)| is_unreadable(error)) {
            return Err(errors.swap_remove(unreadable).1.into());
        }
        tracing::debug!(rule = rule.name, windows = windows.len(), elapsed = ?started.elapsed(), "evaluated");
        Ok((results, errors))
    }

    /// Compares the charges of a group with the ledger, and finalizes its windows.
    async fn post_group(
        &self,
        manifest: &Manifest,
        project: &RuleProject,
        tasks: &[&WindowTask],
        results: &HashMap<Window, RecordBatch>,
        state: &mut EngineState,
        progress: &mut Progress,
    ) -> Result<(), EpochError> {
        let arrow = |source| EpochError::Arrow { epoch: manifest.epoch, source };
        let Some(WindowTask { rule: name, .. }) = tasks.first() else { return Ok(()) };
        let started = std::time::Instant::now();
        let of_contracts = tasks.iter().all(|task| task.window.contract_id.is_some());
        let published = Grouped::by_window(self.rating().published(name, &windows_of(tasks)).await?, of_contracts);
        let results: HashMap<Window, Grouped> =
            results.iter().map(|(window, charges)| (*window, Grouped::of_window(charges, *window, of_contracts))).collect();
        let open: HashSet<RuleWindow> = state.open.iter().filter(|open| open.rule == *name).map(|open| open.window.clone()).collect();
        let mut closed: HashSet<&RuleWindow> = HashSet::new();
        for task in tasks {
            let Some(results) = results.get(&task.window.window) else { continue };
            let charges = results.rows_of(&task.window).map_err(arrow)?;
            let before = published.rows_of(&task.window).map_err(arrow)?;
            let known = state.finalized.get(&task.rule, &task.window).is_some_and(|range| range.published);
            let posting = self.posting(manifest, task, known)?;
            let rows = ledger::post(&before, &charges, &posting).map_err(arrow)?;
            if progress.is_posted && rows.iter().any(|rows| rows.num_rows() > 0) {
                progress.leave([*task], state);
                continue;
            }
            if due::is_current(&project.reference, &task.window)? {
                let published = known || open.contains(&task.window) || charges.num_rows() > 0;
                state.finalized.insert(Finalized::window(task, published));
                closed.insert(&task.window);
            } else {
                // The contract has no such period any more, and its charges are taken back.
                state.finalized.remove(&task.rule, &task.window);
            }
            progress.evaluated.entry(name.clone()).or_default().insert(task.window.clone(), charges);
            progress.postings.extend(rows);
        }
        state.close(name, &closed);
        tracing::debug!(rule = name, elapsed = ?started.elapsed(), "compared with the ledger");
        Ok(())
    }

    /// The charges of windows that close and are folded; what fails here is read from the table, for a better message.
    async fn folded(
        &self,
        project: &Arc<RuleProject>,
        rule: &Rule,
        tasks: &[&WindowTask],
        evaluator: &Evaluator,
    ) -> HashMap<Window, RecordBatch> {
        let mut windows: BTreeSet<Window> = tasks.iter().map(|task| task.window.window).collect();
        for task in tasks.iter().filter(|task| task.cause != WindowTask::CLOSED) {
            windows.remove(&task.window.window);
        }
        windows.retain(|window| self.folds.holds(rule, *window));
        // They follow each other: what is read from the table comes first, or between them.
        let follows = rule.reads_itself() && tasks.iter().any(|task| !windows.contains(&task.window.window));
        if !Arc::ptr_eq(project, &self.project) || windows.is_empty() || follows {
            return HashMap::new();
        }
        let windows: Vec<Window> = windows.into_iter().collect();
        match self.folds.evaluate(rule, &windows, evaluator).await {
            Some(Ok(found)) => {
                metrics::counter!("ratemill_windows_folded_total").increment(found.len() as u64);
                found.into_iter().map(|result| (result.window, result.charges)).collect()
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "folded windows are read again");
                HashMap::new()
            }
            None => HashMap::new(),
        }
    }

    /// The windows of a rule that failed stay as they were, and late ones are tried again.
    fn note_failure(
        &mut self,
        error: &dyn std::error::Error,
        rule: &str,
        tasks: &[&WindowTask],
        state: &mut EngineState,
        failures: &mut Vec<String>,
    ) {
        tracing::error!(%error, "a rule failed; its windows stay open until it is mended");
        metrics::counter!("ratemill_rule_failures_total", "rule" => rule.to_owned()).increment(1);
        let pinned = tasks.iter().any(|task| task.reference_version != self.project.reference.version());
        let hint = if pinned {
            "; the window was published with older reference data, which late usage is rated with: `ratemill apply` uses today's"
        } else {
            ""
        };
        failures.push(format!("{error}{hint}"));
        for task in tasks {
            self.failed.insert((task.rule.clone(), task.window.clone()));
            if task.is_late() {
                state.pending.push((*task).clone());
            }
            if task.cause == WindowTask::MENDED {
                self.look_again(state);
            }
        }
    }

    fn posting(&self, manifest: &Manifest, task: &WindowTask, published_before: bool) -> Result<Posting, EpochError> {
        let billing_period = self.calendar.billing_period(task.window.window)?;
        Ok(Posting {
            rule: task.rule.clone(),
            rule_version: task.rule_version.clone(),
            reference_version: task.reference_version.clone(),
            window: task.window.window,
            posting_period: manifest.state.posting_period(&self.calendar, &billing_period)?,
            billing_period,
            epoch: manifest.epoch,
            rated_at: manifest.clock,
            usage_version: i64::try_from(self.tables.usage.version()).unwrap_or(i64::MAX),
            cause: task.cause.clone(),
            published_before,
        })
    }

    /// What rating reads.
    pub(super) fn rating(&self) -> Rating<'_> {
        Rating {
            lake: &self.lake,
            tables: &self.tables,
            project: &self.project,
            schema: &self.schema,
            runtime: &self.runtime,
            limits: &self.limits,
            last: self.last,
        }
    }
}

impl Rating<'_> {
    /// An evaluator that takes the charges of the rules that are read as they are published, or as this epoch has just
    /// evaluated them; only what is not published is evaluated for the reader.
    pub(super) async fn evaluator(
        &self,
        project: Arc<RuleProject>,
        usage: Arc<dyn TableProvider>,
        read: &BTreeSet<String>,
        windows: &[Window],
        state: &EngineState,
        evaluated: &Evaluated,
    ) -> Result<Evaluator, EpochError> {
        let arrow = |source| EpochError::Arrow { epoch: self.last, source };
        let mut evaluator = Evaluator::new(Arc::clone(self.runtime), self.limits.clone(), Arc::clone(&project), usage);
        let (Some(first), Some(last)) = (windows.iter().map(|w| w.start).min(), windows.iter().map(|w| w.end).max()) else {
            return Ok(evaluator);
        };
        for name in read {
            // What a reader of earlier windows needs may lie far back.
            let looks_back = project.rules.iter().any(|rule| rule.earlier.contains(name));
            let span = Window { start: if looks_back { i64::MIN } else { first }, end: last };
            let standing = self.standing(&project, name, span, state).await?;
            let fresh = evaluated.get(name);
            let mut charges = Vec::new();
            for (window, contracts) in standing {
                let mut parts = Vec::new();
                for (rated, ledger) in contracts {
                    parts.push(match fresh.and_then(|fresh| fresh.get(&rated)) {
                        Some(fresh) => fresh.clone(),
                        None => ledger,
                    });
                }
                charges.push(WindowCharges { window, charges: union(&parts).map_err(arrow)? });
            }
            evaluator = evaluator.with_published(name, charges);
        }
        Ok(evaluator)
    }

    /// The charges in force of a rule's published windows inside `span`; windows of billing periods only where every
    /// contract's is published.
    async fn standing(
        &self,
        project: &RuleProject,
        name: &str,
        span: Window,
        state: &EngineState,
    ) -> Result<BTreeMap<Window, Vec<(RuleWindow, RecordBatch)>>, EpochError> {
        let arrow = |source| EpochError::Arrow { epoch: self.last, source };
        let mut windows: BTreeMap<Window, Vec<RuleWindow>> = BTreeMap::new();
        let published = state.finalized.of_rule(name).filter(|range| range.published);
        let Some(from) = published.clone().map(|range| range.start).min() else { return Ok(BTreeMap::new()) };
        let mut versions: Vec<&Rule> = project.rules.iter().filter(|rule| rule.name == name).collect();
        versions.extend(self.project.rules.iter().filter(|rule| rule.name == name));
        let mut whole: BTreeMap<Window, bool> = BTreeMap::new();
        for version in versions {
            for rated in version.rated_between(&project.reference, from.max(span.start), span.end)? {
                let inside = span.start <= rated.window.start && rated.window.end <= span.end;
                let is_published = state.finalized.get(name, &rated).is_some_and(|range| range.published);
                let all = whole.entry(rated.window).or_insert(true);
                *all &= inside && is_published;
                let known = windows.entry(rated.window).or_default();
                if !known.contains(&rated) {
                    known.push(rated);
                }
            }
        }
        windows.retain(|window, _| whole.get(window) == Some(&true));
        let bounds: Vec<Window> = windows.keys().copied().collect();
        let ledger = self.published(name, &bounds).await?;
        let in_force = ledger::in_force_only(&ledger).map_err(arrow)?;
        let of_contracts = windows.values().flatten().all(|rated| rated.contract_id.is_some());
        let in_force = Grouped::by_window(in_force, of_contracts);
        let mut standing = BTreeMap::new();
        for (window, contracts) in windows {
            let mut of_window = Vec::new();
            for rated in contracts {
                let own = in_force.rows_of(&rated).map_err(arrow)?;
                of_window.push((rated, own));
            }
            standing.insert(window, of_window);
        }
        Ok(standing)
    }

    /// All ledger rows of a rule in the range of these windows.
    pub(super) async fn published(&self, rule: &str, windows: &[Window]) -> Result<RecordBatch, EpochError> {
        let schema = self.tables.charges.schema()?;
        let (Some(first), Some(last)) = (windows.iter().map(|w| w.start).min(), windows.iter().map(|w| w.start).max()) else {
            return Ok(RecordBatch::new_empty(schema));
        };
        let instant = |micros| lit(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())));
        let context = session(Arc::clone(self.runtime), self.limits);
        let batches = context
            .read_table(self.tables.charges.provider()?)?
            .filter(col("rule").eq(lit(rule)).and(col("window_start").gt_eq(instant(first))).and(col("window_start").lt_eq(instant(last))))?
            .collect()
            .await?;
        match batches.first() {
            Some(batch) => concat_batches(&batch.schema(), &batches).map_err(|source| EpochError::Arrow { epoch: self.last, source }),
            None => Ok(RecordBatch::new_empty(schema)),
        }
    }
}

/// Batches of charges as one; a column that one of them lacks is null there.
fn union(parts: &[RecordBatch]) -> Result<RecordBatch, arrow::error::ArrowError> {
    let mut fields: Vec<arrow::datatypes::Field> = Vec::new();
    for field in parts.iter().flat_map(|part| part.schema().fields().iter().cloned().collect::<Vec<_>>()) {
        if !fields.iter().any(|known| known.name() == field.name()) {
            fields.push(field.as_ref().clone().with_nullable(true));
        }
    }
    let schema = Arc::new(arrow::datatypes::Schema::new(fields));
    let conformed: Vec<RecordBatch> = parts
        .iter()
        .map(|part| {
            let columns = schema
                .fields()
                .iter()
                .map(|field| match part.column_by_name(field.name()) {
                    Some(column) => arrow::compute::cast(column, field.data_type()),
                    None => Ok(arrow::array::new_null_array(field.data_type(), part.num_rows())),
                })
                .collect::<Result<_, _>>()?;
            RecordBatch::try_new(Arc::clone(&schema), columns)
        })
        .collect::<Result<_, _>>()?;
    concat_batches(&schema, &conformed)
}

/// The windows of these tasks, each once, in order.
fn windows_of(tasks: &[&WindowTask]) -> Vec<Window> {
    tasks.iter().map(|task| task.window.window).collect::<BTreeSet<Window>>().into_iter().collect()
}

/// Charges by window, and the windows that cannot be rated.
type Apart = (HashMap<Window, RecordBatch>, Vec<(Window, RateError)>);

/// The charges of the windows that can be rated, and the errors of the others: a mistake in one window stands in no other's
/// way, unless the rule reads its own earlier charges.
pub(super) async fn evaluate_apart(evaluator: &Evaluator, rule: &Rule, windows: &[Window]) -> Apart {
    let by_window = |found: Vec<WindowCharges>| found.into_iter().map(|result| (result.window, result.charges));
    let mut errors = Vec::new();
    if let Ok(found) = evaluator.evaluate(rule, windows).await {
        return (by_window(found).collect(), errors);
    }
    if rule.reads_itself() {
        return evaluate_onward(evaluator, rule, windows).await;
    }
    let mut charges = HashMap::new();
    for window in windows {
        match evaluator.evaluate(rule, std::slice::from_ref(window)).await {
            Ok(found) => charges.extend(by_window(found)),
            Err(error) => errors.push((*window, error)),
        }
    }
    (charges, errors)
}

/// The same window after window, each with the charges of those before as they are by now; none after one that cannot be
/// rated.
async fn evaluate_onward(evaluator: &Evaluator, rule: &Rule, windows: &[Window]) -> Apart {
    let mut ordered = windows.to_vec();
    ordered.sort_unstable();
    let mut evaluator = evaluator.clone();
    let (mut charges, mut errors) = (HashMap::new(), Vec::<(Window, RateError)>::new());
    for window in ordered {
        if let Some((earlier, _)) = errors.first() {
            errors.push((window, RateError::Earlier { rule: rule.name.clone(), window, earlier: *earlier }));
            continue;
        }
        match evaluator.evaluate(rule, &[window]).await {
            Ok(found) => {
                charges.extend(found.iter().map(|result| (result.window, result.charges.clone())));
                evaluator = evaluator.with_published(&rule.name, found);
            }
            Err(error) => errors.push((window, error)),
        }
    }
    (charges, errors)
}

/// Tasks in the order of rating, those of one rule and of the same versions together: rules that are read first. A rule that
/// reads its own earlier charges is rated in the order of time, whatever versions follow each other. `rules` has the
/// versions of the tasks, and may have more.
pub(super) fn grouped<'t>(rules: &[&Rule], tasks: impl IntoIterator<Item = &'t WindowTask>) -> Vec<Vec<&'t WindowTask>> {
    let versions = |task: &'t WindowTask| (&task.rule_version, &task.reference_version);
    let mut by_rule: BTreeMap<&str, Vec<&WindowTask>> = BTreeMap::new();
    for task in tasks {
        by_rule.entry(&task.rule).or_default().push(task);
    }
    let mut by_rule: Vec<(&str, Vec<&WindowTask>)> = by_rule.into_iter().collect();
    by_rule.sort_by_key(|(name, _)| depth(rules, name));
    let mut groups = Vec::new();
    for (name, mut tasks) in by_rule {
        if rules.iter().any(|rule| rule.name == name && rule.reads_itself()) {
            tasks.sort_by_key(|task| &task.window);
        } else {
            tasks.sort_by_key(|task| versions(task));
        }
        groups.extend(tasks.chunk_by(|one, next| versions(one) == versions(next)).map(<[&WindowTask]>::to_vec));
    }
    groups
}

/// Whether a rule failed since its usage could not be read, of which the rule is innocent: the epoch is tried again.
fn is_unreadable(error: &RateError) -> bool {
    let RateError::Query { cause: Some(cause), .. } = error else { return false };
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(cause.as_ref());
    while let Some(error) = next {
        let of_store = error.is::<object_store::Error>() || error.is::<std::io::Error>() || error.is::<deltalake_core::DeltaTableError>();
        let of_file = error.is::<parquet::errors::ParquetError>() || matches!(error.downcast_ref(), Some(ArrowError::ParquetError(_)));
        if of_store || of_file {
            return true;
        }
        next = error.source();
    }
    false
}

/// Every rule whose charges `rule` reads, itself or through others.
pub(super) fn closure(project: &RuleProject, rule: &Rule) -> BTreeSet<String> {
    read_through(&project.rules.iter().collect::<Vec<_>>(), std::iter::once(rule))
}

/// Every rule whose charges these read, themselves or through others of `rules`.
fn read_through<'r>(rules: &[&'r Rule], readers: impl Iterator<Item = &'r Rule>) -> BTreeSet<String> {
    let mut read = BTreeSet::new();
    let mut next: Vec<&String> = readers.flat_map(|rule| rule.upstream.iter().chain(&rule.earlier)).collect();
    while let Some(name) = next.pop() {
        if read.insert(name.clone()) {
            next.extend(rules.iter().filter(|other| other.name == *name).flat_map(|other| other.upstream.iter().chain(&other.earlier)));
        }
    }
    read
}

/// How many rules lie before a rule, by any of its versions: what it reads is rated before it.
pub(super) fn depth(rules: &[&Rule], name: &str) -> usize {
    let versions = rules.iter().copied().filter(|rule| rule.name == name);
    read_through(rules, versions).iter().filter(|read| *read != name).count()
}
