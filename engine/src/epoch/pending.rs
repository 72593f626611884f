//! Pending changes: published windows whose rule or reference data has changed since, with what they would be charged now.
//!
//! They are only looked for here; [`super::apply`] posts them. What cannot have changed is told without rating it: a window
//! whose rule is of the same version, and whose reference tables are as they were when it was published, or differ in rows
//! only that are valid at other times. Everything else is rated with the present versions and compared with the ledger, in the
//! way in which an epoch does it, and there is a change only where a row would be written.

mod report;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use ratemill_rules::reference::{TableChanges, Times};
use ratemill_rules::{Reach, Rule, RuleWindow};
use ratemill_schemas::windows::WindowError;
use ratemill_schemas::{Window, WindowSpec, time};

pub use report::{AmountChange, ChangeScope, PendingChanges, PendingWindow};

use super::audit::LedgerAudit;
use super::books::Grouped;
use super::due;
use super::finalized::Finalized;
use super::manifest::WindowTask;
use super::moved::MovedSubjects;
use super::rate::{Evaluated, Rating, closure, depth, evaluate_apart, grouped};
use super::run::EpochError;
use super::state::EngineState;
use super::versions::reference_files;
use crate::ledger::{self, Posting};
use report::Digest;

/// The cause of corrections after a rule's text, or that of one that it reads, was changed.
const RULE_CHANGED: &str = "rule changed";
/// The cause of corrections after reference tables were changed.
const REFERENCE_CHANGED: &str = "reference data changed";
/// The cause of corrections of a rule that reads charges which are corrected.
const CHARGES_CHANGED: &str = "charges read changed";

/// What is searched.
pub(super) struct Search<'s> {
    pub(super) rating: Rating<'s>,
    /// Usage as it is in force.
    pub(super) usage: Arc<dyn TableProvider>,
    pub(super) state: &'s EngineState,
    /// Versions that published windows and are no longer in the project.
    pub(super) former: &'s [Rule],
    pub(super) moved: &'s MovedSubjects,
    /// By which it is told what is due, µs UTC.
    pub(super) clock: i64,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) changes: PendingChanges,
    /// The windows to rate again, in the order of rating.
    pub(super) tasks: Vec<WindowTask>,
    /// Windows that the present versions charge as they are charged: they go on with these versions, so that late usage is
    /// rated by them, and nothing is written.
    pub(super) same: Vec<Finalized>,
    digest: Digest,
}

/// A window that may have changed.
#[derive(Debug)]
struct Candidate {
    task: WindowTask,
    /// Reference tables that differ from those that published it.
    tables: Vec<String>,
}

/// Candidates of one rule.
type Candidates = BTreeMap<RuleWindow, Candidate>;

/// What rating has come to.
struct Progress {
    /// Windows that are rated here count as published for those that read them.
    state: EngineState,
    evaluated: Evaluated,
    /// Windows with a difference, by rule.
    differing: BTreeMap<String, BTreeSet<Window>>,
    failed: HashSet<String>,
}

impl LedgerAudit {
    /// The pending changes as of the last completed epoch; nothing is written.
    ///
    /// # Errors
    /// [`EpochError`] when the lake cannot be read. A window that cannot be rated is told in the report.
    pub async fn pending(&self, scope: &ChangeScope) -> Result<PendingChanges, EpochError> {
        let moved = MovedSubjects::load(&self.lake, &self.state, &self.project).await?;
        let former = self.rating().former(&self.state).await;
        let (usage, clock) = (self.usage()?, time::now());
        let search = Search { rating: self.rating(), usage, state: &self.state, former: &former, moved: &moved, clock };
        Ok(search.find(scope).await?.changes)
    }
}

impl Search<'_> {
    /// Rates what may have changed within `scope`.
    ///
    /// # Errors
    /// [`EpochError`] when the lake cannot be read.
    pub(super) async fn find(&self, scope: &ChangeScope) -> Result<Found, EpochError> {
        let mut found = Found::default();
        found.changes.epoch = self.rating.last;
        found.changes.waiting = self.state.pending.len();
        let mut candidates = self.candidates(scope, &mut found).await?;
        let mut progress =
            Progress { state: self.state.clone(), evaluated: Evaluated::new(), differing: BTreeMap::new(), failed: HashSet::new() };
        let names: BTreeSet<&str> = self.rating.project.rules.iter().map(|rule| rule.name.as_str()).collect();
        let mut names: Vec<&str> = names.into_iter().collect();
        let versions: Vec<&Rule> = self.rating.project.rules.iter().chain(self.former).collect();
        names.sort_by_cached_key(|name| depth(&versions, name));
        for name in names {
            let mut of_rule = candidates.remove(name).unwrap_or_default();
            self.add_readers(name, &progress, &mut of_rule)?;
            for tasks in grouped(&versions, of_rule.values().map(|candidate| &candidate.task)) {
                self.rate(&tasks, &of_rule, &mut progress, &mut found).await?;
            }
        }
        found.changes.finish(&mut found.digest).map_err(|error| self.overflow(&error))?;
        Ok(found)
    }

    fn overflow(&self, error: &ratemill_schemas::decimal::DecimalError) -> EpochError {
        EpochError::Books { epoch: self.rating.last, message: format!("sum of a difference: {error}") }
    }

    /// The windows that may have changed, by rule; those that cannot have are noted as the same.
    async fn candidates(&self, scope: &ChangeScope, found: &mut Found) -> Result<BTreeMap<String, Candidates>, EpochError> {
        let (project, present) = (self.rating.project, self.rating.project.reference.version());
        let versions: BTreeSet<&str> = self.state.finalized.iter().map(|range| range.reference_version.as_str()).collect();
        let mut changes: HashMap<&str, Option<TableChanges>> = HashMap::from([(present, Some(TableChanges::new()))]);
        for version in versions.into_iter().filter(|version| *version != present) {
            let files = reference_files(self.rating.lake, version).await?;
            changes.insert(version, files.map(|files| project.reference.changes_from(&files)));
        }
        let mut changed: HashMap<(&str, &str), (Times, Vec<String>)> = HashMap::new();
        let mut candidates: BTreeMap<String, Candidates> = BTreeMap::new();
        for range in self.state.finalized.iter().filter(|range| scope.rule.as_ref().is_none_or(|rule| *rule == range.rule)) {
            if range.published && !project.rules.iter().any(|rule| rule.name == range.rule) {
                let missing = format!("rule `{}` has published windows, but its file is gone", range.rule);
                if !found.changes.failures.contains(&missing) {
                    found.changes.failures.push(missing);
                }
            }
            for (rule, rated) in self.windows_of(range)? {
                let is_present = range.rule_version == rule.version && range.reference_version == present;
                if is_present || !scope.covers(rated.window) {
                    continue;
                }
                let (times, tables) = changed.entry((rule.version.as_str(), range.reference_version.as_str())).or_insert_with(|| {
                    let tables = project.reference_tables(rule);
                    match changes.get(range.reference_version.as_str()) {
                        Some(Some(changes)) => {
                            let changed = tables.into_iter().filter(|table| changes.contains_key(table));
                            (project.touched(rule, changes), changed.collect())
                        }
                        // What published it is not there any more: anything may have changed.
                        _ => (Times::always(), tables.into_iter().collect()),
                    }
                });
                let is_same_rule = range.rule_version == rule.version;
                let cause = if is_same_rule { REFERENCE_CHANGED } else { RULE_CHANGED };
                let task = self.task(rule, rated.clone(), cause);
                if is_same_rule && !times.touch(rated.window) {
                    found.changes.untouched += 1;
                    found.same.push(Finalized::window(&task, range.published));
                } else {
                    candidates.entry(range.rule.clone()).or_default().insert(rated, Candidate { task, tables: tables.clone() });
                }
            }
        }
        let is_stale = |range: &&Finalized| range.contract_id.is_some() && range.published && range.reference_version != present;
        let stale: BTreeSet<&str> = self.state.finalized.iter().filter(is_stale).map(|range| range.rule.as_str()).collect();
        for name in stale.into_iter().filter(|name| scope.rule.as_ref().is_none_or(|rule| rule == name)) {
            self.settle_periods(name, scope, candidates.entry(name.to_owned()).or_default(), found)?;
        }
        Ok(candidates)
    }

    /// The windows of a finalized range, each with the version that is in force for it now.
    fn windows_of(&self, range: &Finalized) -> Result<Vec<(&Rule, RuleWindow)>, WindowError> {
        let mut windows = Vec::new();
        for rule in self.rating.project.rules.iter().filter(|rule| rule.name == range.rule) {
            if range.contract_id.is_some() {
                windows.extend(rule.in_force_at(range.start).then(|| (rule, range.rated())));
                continue;
            }
            let between = rule.rated_between(&self.rating.project.reference, range.start, range.end)?;
            let inside =
                |rated: &RuleWindow| rated.contract_id.is_none() && range.start <= rated.window.start && rated.window.end <= range.end;
            windows.extend(between.into_iter().filter(inside).map(|rated| (rule, rated)));
        }
        Ok(windows)
    }

    fn task(&self, rule: &Rule, window: RuleWindow, cause: &str) -> WindowTask {
        WindowTask {
            rule: rule.name.clone(),
            rule_version: rule.version.clone(),
            reference_version: self.rating.project.reference.version().to_owned(),
            window,
            cause: cause.to_owned(),
        }
    }

    /// Billing periods are rated together with those that share their usage, or not at all: what waits to be published
    /// since it shares usage with a published period is a part of the change.
    fn settle_periods(&self, name: &str, scope: &ChangeScope, of_rule: &mut Candidates, found: &mut Found) -> Result<(), EpochError> {
        let reference = &self.rating.project.reference;
        for rule in self.rating.project.rules.iter().filter(|rule| rule.name == name && rule.options.window == WindowSpec::BillingPeriod) {
            for rated in due::held_periods(self.state, reference, self.moved, rule, self.clock)? {
                if scope.covers(rated.window) {
                    let task = self.task(rule, rated.clone(), REFERENCE_CHANGED);
                    of_rule.insert(rated, Candidate { task, tables: vec!["contracts".to_owned()] });
                }
            }
            let own = of_rule.iter().filter(|(_, candidate)| candidate.task.rule_version == rule.version);
            let own: Vec<(RuleWindow, &str)> = own.map(|(rated, _)| (rated.clone(), REFERENCE_CHANGED)).collect();
            let all: Vec<RuleWindow> = own.iter().map(|(rated, _)| rated.clone()).collect();
            let kept: BTreeSet<RuleWindow> =
                due::without_held(self.state, self.moved, rule, own).into_iter().map(|(rated, _)| rated).collect();
            for rated in all.into_iter().filter(|rated| !kept.contains(rated)) {
                found.changes.held.push(format!("rule `{name}`, window {rated}"));
                of_rule.remove(&rated);
            }
        }
        Ok(())
    }

    /// Adds the windows of a rule that read charges which differ: around them or, where it looks back, after them. Their own
    /// usage stays at the prices that they were published with.
    fn add_readers(&self, name: &str, progress: &Progress, of_rule: &mut Candidates) -> Result<(), EpochError> {
        let present = &self.rating.project.rules;
        for rule in present.iter().chain(self.former).filter(|rule| rule.name == name) {
            let is_present = present.iter().any(|other| other.name == name && other.version == rule.version);
            let read = rule.upstream.iter().chain(&rule.earlier).filter(|read| *read != name);
            let mut changed: BTreeSet<Window> = read.filter_map(|read| progress.differing.get(read)).flatten().copied().collect();
            if rule.reads_itself() {
                changed.extend(of_rule.keys().map(|rated| rated.window));
            }
            let end = self.state.finalized.of_rule(name).map(|range| range.end).max();
            let (Some(first), Some(end)) = (changed.first().map(|window| window.start), end) else { continue };
            for rated in rule.rated_between(&self.rating.project.reference, first, end)? {
                let window = rated.window;
                let from = Window { start: window.start, end: i64::MIN };
                let around = changed.range(from..).take_while(|read| read.start < window.end).any(|read| read.end <= window.end);
                let is_read = around || (rule.reach == Reach::Onward && first <= window.start);
                let is_its_own = |range: &&Finalized| is_present || range.rule_version == rule.version;
                let published = self.state.finalized.get(name, &rated).filter(is_its_own);
                if let Some(range) = published.filter(|_| is_read && !of_rule.contains_key(&rated)) {
                    let task = WindowTask {
                        rule: name.to_owned(),
                        rule_version: range.rule_version.clone(),
                        reference_version: range.reference_version.clone(),
                        window: rated.clone(),
                        cause: CHARGES_CHANGED.to_owned(),
                    };
                    of_rule.insert(rated, Candidate { task, tables: Vec::new() });
                }
            }
        }
        Ok(())
    }

    /// Rates windows of one rule and one version, and compares each with its ledger rows.
    async fn rate(
        &self,
        tasks: &[&WindowTask],
        candidates: &Candidates,
        progress: &mut Progress,
        found: &mut Found,
    ) -> Result<(), EpochError> {
        let arrow = |source| EpochError::Arrow { epoch: self.rating.last, source };
        let Some(WindowTask { rule: name, rule_version, reference_version, .. }) = tasks.first() else { return Ok(()) };
        let mut fail = |progress: &mut Progress, message: String| {
            progress.failed.insert(name.clone());
            found.changes.failures.push(message);
        };
        let project = match self.rating.version(name, rule_version, reference_version).await {
            Ok(project) => project,
            Err(error @ EpochError::Version { .. }) => {
                fail(progress, error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let Some(rule) = project.rule(name, rule_version) else {
            fail(progress, format!("rule `{name}`, version {rule_version}: is not what its name in the lake says"));
            return Ok(());
        };
        let read = closure(&project, rule);
        if let Some(upstream) = read.iter().find(|upstream| progress.failed.contains(*upstream)) {
            fail(progress, format!("rule `{name}`: rule `{upstream}`, which it reads, failed"));
            return Ok(());
        }
        let windows: Vec<Window> = tasks.iter().map(|task| task.window.window).collect::<BTreeSet<Window>>().into_iter().collect();
        let (state, evaluated) = (&progress.state, &progress.evaluated);
        let evaluator = self.rating.evaluator(Arc::clone(&project), Arc::clone(&self.usage), &read, &windows, state, evaluated).await?;
        let (results, errors) = evaluate_apart(&evaluator, rule, &windows).await;
        for (_, error) in errors {
            fail(progress, error.to_string());
        }
        let of_contracts = tasks.iter().all(|task| task.window.contract_id.is_some());
        let published = Grouped::by_window(self.rating.published(name, &windows).await?, of_contracts);
        let results: HashMap<Window, Grouped> =
            results.iter().map(|(window, charges)| (*window, Grouped::of_window(charges, *window, of_contracts))).collect();
        let open: HashSet<&RuleWindow> = self.state.open.iter().filter(|open| open.rule == *name).map(|open| &open.window).collect();
        for task in tasks {
            let Some(results) = results.get(&task.window.window) else { continue };
            let charges = results.rows_of(&task.window).map_err(arrow)?;
            let before = published.rows_of(&task.window).map_err(arrow)?;
            let known = progress.state.finalized.get(name, &task.window).is_some_and(|range| range.published);
            let rows = ledger::post(&before, &charges, &difference(task, known)).map_err(arrow)?;
            let published = Finalized::window(task, known || open.contains(&task.window) || charges.num_rows() > 0);
            if due::is_current(&project.reference, &task.window)? {
                progress.state.finalized.insert(published.clone());
            } else {
                progress.state.finalized.remove(name, &task.window);
            }
            let differs = rows.iter().any(|rows| rows.num_rows() > 0);
            if differs {
                progress.differing.entry(name.clone()).or_default().insert(task.window.window);
                let tables = candidates.get(&task.window).map_or(&[][..], |candidate| &candidate.tables);
                let window = PendingWindow::of(task, tables, (&before, &charges), &rows).map_err(|error| self.overflow(&error))?;
                found.changes.windows.push(window);
                found.digest.add(task, &rows).map_err(arrow)?;
            } else {
                found.changes.unchanged += 1;
            }
            // Windows that are rated with others are so again when it is posted; the rest goes on as it is.
            if differs || rule.reads_itself() || task.window.contract_id.is_some() {
                found.tasks.push((*task).clone());
            } else {
                found.same.push(published);
            }
            progress.evaluated.entry(name.clone()).or_default().insert(task.window.clone(), charges);
        }
        Ok(())
    }
}

/// The posting of a difference that is not posted: whatever the epoch decides is left out.
fn difference(task: &WindowTask, published_before: bool) -> Posting {
    Posting {
        rule: task.rule.clone(),
        rule_version: task.rule_version.clone(),
        reference_version: task.reference_version.clone(),
        window: task.window.window,
        billing_period: String::new(),
        posting_period: String::new(),
        epoch: 0,
        rated_at: 0,
        usage_version: 0,
        cause: task.cause.clone(),
        published_before,
    }
}
