//! Evaluating a rule over windows.
//!
//! `result(W) = ⋃ over w in W of {w} × query(usage of w, opening(w), reference data)`. `single` does what this says,
//! window by window; `lifted` plans the query once for all windows and must give the same. A rule whose query has a
//! shape that cannot be lifted, or that reads its own earlier charges, runs window by window.

mod blame;
mod charges;
mod identity;
mod lifted;
#[cfg(test)]
mod property;
mod provenance;
mod shape;
mod single;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use datafusion::catalog::TableProvider;
use datafusion::common::DataFusionError;
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::future::BoxFuture;
use ratemill_schemas::Window;
use ratemill_schemas::windows::WindowError;
use tokio::time::{Instant, timeout_at};

pub use blame::Blame;
pub(crate) use charges::Upstream;
pub use identity::Identities;
pub(crate) use lifted::{LiftedSources, contracts_in, lifted_over, lifted_plan, planning_session, split_by_target};
pub use provenance::{EventTotal, PricingCall, Provenance, ReadCharges, ReferenceRows, UsageEvent};
pub use shape::{CHARGE_COLUMNS, is_identity, stored_type};
pub(crate) use single::between;

use crate::project::RuleProject;
use crate::rule::Rule;
use crate::session::SessionLimits;
use crate::window_set::{Target, WindowSet};
use charges::Evaluated;
use shape::Shaper;

/// Windows in one lifted execution: bounds its memory. Tests have few windows and several executions.
pub(crate) const WINDOWS_AT_ONCE: usize = if cfg!(test) { 4 } else { 16_384 };

/// The charges of one window: one row per identity.
///
/// Columns: `customer_id`, `contract_id`, `item`, `currency`, `amount`, `quantity`, `unit`, `unit_price`, `detail`
/// (absent ones as nulls), then the rule's further columns.
#[derive(Debug, Clone)]
pub struct WindowCharges {
    /// The window.
    pub window: Window,
    /// Its charges.
    pub charges: RecordBatch,
}

/// Why a window could not be rated.
#[derive(Debug, thiserror::Error)]
pub enum RateError {
    /// The query failed on the data.
    #[error("rule `{rule}`, window {window}{blame}: {message}")]
    Query {
        /// The rule.
        rule: String,
        /// The window.
        window: Window,
        /// Whose data it failed on.
        blame: Box<Blame>,
        /// What the query said.
        message: String,
        /// What `message` is about, where it is known: it may be no fault of the rule, but of what it read.
        cause: Option<Arc<DataFusionError>>,
    },
    /// A charge lacks what every charge must have.
    #[error("rule `{rule}`, window {window}{blame}: {message}")]
    Charge {
        /// The rule.
        rule: String,
        /// The window.
        window: Window,
        /// Whose charge it is.
        blame: Box<Blame>,
        /// What is wrong with the row.
        message: String,
    },
    /// A usage row met several reference rows, so that it would be charged several times.
    #[error(
        "rule `{rule}`, window {window}{blame}: usage event `{id}` of source `{usage_source}` matches several rows of `{table}` and would be charged several times; make the join unique, or allow it with fan_out = 'allowed'"
    )]
    FanOut {
        /// The rule.
        rule: String,
        /// The window.
        window: Window,
        /// Whose usage it is.
        blame: Box<Blame>,
        /// The event's source.
        usage_source: String,
        /// The event's id.
        id: String,
        /// The reference table.
        table: String,
    },
    /// The window comes after one whose charges it depends on, and which cannot be rated.
    #[error("rule `{rule}`, window {window}: its charges depend on those of window {earlier}, which cannot be rated")]
    Earlier {
        /// The rule.
        rule: String,
        /// The window.
        window: Window,
        /// The window that cannot be rated.
        earlier: Window,
    },
    /// The windows were not rated in time.
    #[error(
        "rule `{rule}`, {windows}: not rated within {limit:?}, with the rules that it reads; rate fewer windows at once, make the query read less (`ratemill explain` shows its plan), or give it more time"
    )]
    TimeLimit {
        /// The rule.
        rule: String,
        /// The window, or how many there are and the first and the last.
        windows: String,
        /// How long it may take.
        limit: Duration,
    },
    /// A window outside the calendar.
    #[error("rule `{rule}`: {source}")]
    Window {
        /// The rule.
        rule: String,
        /// What is wrong.
        source: WindowError,
    },
}

/// How a rule is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// All windows in one execution where the query allows it, else window by window.
    Auto,
    /// All windows in one execution; a query that does not allow it is an error.
    Lifted,
    /// Window by window.
    OneByOne,
}

/// Rates windows with one version of the rules and of the reference data.
#[derive(Debug, Clone)]
pub struct Evaluator {
    pub(crate) runtime: Arc<RuntimeEnv>,
    pub(crate) limits: SessionLimits,
    pub(crate) project: Arc<RuleProject>,
    pub(crate) usage: Arc<dyn TableProvider>,
    mode: Mode,
    /// Charges that are given instead of evaluated, by the name of their table.
    given: Arc<BTreeMap<String, RecordBatch>>,
    /// Charges of windows that are published, by rule: read as they are.
    published: Arc<HashMap<String, BTreeMap<Window, RecordBatch>>>,
    /// When the call must end; `None` outside of one.
    deadline: Option<Instant>,
    evaluated: Arc<Mutex<Evaluated>>,
}

impl Evaluator {
    /// An evaluator over `usage`, which has the columns of `UsageSchema::stored` and holds every event once.
    #[must_use]
    pub fn new(runtime: Arc<RuntimeEnv>, limits: SessionLimits, project: Arc<RuleProject>, usage: Arc<dyn TableProvider>) -> Self {
        Self {
            runtime,
            limits,
            project,
            usage,
            mode: Mode::Auto,
            given: Arc::default(),
            published: Arc::default(),
            deadline: None,
            evaluated: Arc::default(),
        }
    }

    /// The same, evaluating in this way.
    #[must_use]
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self.evaluated = Arc::default();
        self
    }

    /// The same, with the charges of a rule given instead of evaluated: `table` is the rule's name or `earlier.NAME`, and
    /// `charges` has columns of [`WindowCharges`] and `window_start`, `window_end`.
    #[must_use]
    pub fn with_charges(mut self, table: &str, charges: RecordBatch) -> Self {
        Arc::make_mut(&mut self.given).insert(table.to_owned(), charges);
        self
    }

    /// The same, reading these charges of a rule's published windows as they are, whatever the rule would give now.
    #[must_use]
    pub fn with_published(mut self, rule: &str, charges: Vec<WindowCharges>) -> Self {
        let published = Arc::make_mut(&mut self.published).entry(rule.to_owned()).or_default();
        published.extend(charges.into_iter().map(|charges| (charges.window, charges.charges)));
        self
    }

    /// The charges of each window, in the order of `windows`.
    ///
    /// # Errors
    /// [`RateError`] names rule, window and, where it can be found, the customer and the subject.
    pub async fn evaluate(&self, rule: &Rule, windows: &[Window]) -> Result<Vec<WindowCharges>, RateError> {
        let (timed, deadline) = self.timed();
        let Some(deadline) = deadline else { return timed.evaluate_in_time(rule, windows).await };
        timeout_at(deadline, timed.evaluate_in_time(rule, windows)).await.unwrap_or_else(|_| Err(self.too_late(rule, windows)))
    }

    /// The same with a time at which a call must end; within a call, a rule that another reads has what is left of that
    /// one's time.
    pub(crate) fn timed(&self) -> (Self, Option<Instant>) {
        let deadline = self.deadline.or_else(|| Instant::now().checked_add(self.limits.evaluation_max));
        (Self { deadline, ..self.clone() }, deadline)
    }

    pub(crate) fn too_late(&self, rule: &Rule, windows: &[Window]) -> RateError {
        let windows = match windows {
            [first, .., last] => format!("{} windows ({first}, …, {last})", windows.len()),
            [one] => format!("window {one}"),
            [] => "no window".to_owned(),
        };
        RateError::TimeLimit { rule: rule.name.clone(), windows, limit: self.limits.evaluation_max }
    }

    async fn evaluate_in_time(&self, rule: &Rule, windows: &[Window]) -> Result<Vec<WindowCharges>, RateError> {
        let mut results: HashMap<Window, RecordBatch> = HashMap::with_capacity(windows.len());
        if rule.reads_itself() && !self.gives_earlier(rule) {
            self.in_sequence(rule, windows, &mut results).await?;
        } else {
            for windows in windows.chunks(WINDOWS_AT_ONCE) {
                let set = self.set(rule, windows)?;
                let charges = self.targets(rule, set).await?;
                self.gather(rule, charges, &mut results)?;
            }
        }
        Ok(windows.iter().map(|window| self.charges_of(rule, *window, results.get(window))).collect())
    }

    /// The charges that were found for a window, none where nothing was.
    pub(crate) fn charges_of(&self, rule: &Rule, window: Window, found: Option<&RecordBatch>) -> WindowCharges {
        WindowCharges { window, charges: found.cloned().unwrap_or_else(|| Shaper { rule, window }.empty()) }
    }

    /// Whether the charges of a rule's own earlier windows are given.
    pub(crate) fn gives_earlier(&self, rule: &Rule) -> bool {
        self.given.contains_key(&format!("earlier.{}", rule.name))
    }

    /// The charges of a window as they are published.
    pub(crate) fn published_charges(&self, rule: &Rule, window: Window) -> Option<WindowCharges> {
        let charges = self.published.get(&rule.name)?.get(&window)?.clone();
        Some(WindowCharges { window, charges })
    }

    fn set(&self, rule: &Rule, windows: &[Window]) -> Result<Arc<WindowSet>, RateError> {
        WindowSet::of(rule, &self.project.reference, windows)
            .map(Arc::new)
            .map_err(|source| RateError::Window { rule: rule.name.clone(), source })
    }

    /// Windows one after the other, each seeing the charges of those before; the rule reads its own.
    async fn in_sequence(&self, rule: &Rule, windows: &[Window], results: &mut HashMap<Window, RecordBatch>) -> Result<(), RateError> {
        let outside = |source| RateError::Window { rule: rule.name.clone(), source };
        let wanted: std::collections::HashSet<Window> = windows.iter().copied().collect();
        let to = windows.iter().map(|window| window.end).max().unwrap_or(i64::MIN);
        let mut versions: Vec<&Rule> = self.project.rules.iter().filter(|version| version.name == rule.name).collect();
        if !versions.iter().any(|version| version.version == rule.version) {
            versions.push(rule);
        }
        let mut all: Vec<(Window, &Rule)> = Vec::new();
        for version in versions {
            let windows = version.windows_between(&self.project.reference, i64::MIN, to).map_err(outside)?;
            all.extend(windows.into_iter().map(|window| (window, version)));
        }
        all.extend(windows.iter().filter(|window| !rule.in_force_at(window.start)).map(|window| (*window, rule)));
        all.sort_by_key(|(window, _)| *window);
        all.dedup_by_key(|(window, _)| *window);
        for (window, version) in all {
            if let Some(published) = self.published_charges(version, window).filter(|_| !wanted.contains(&window)) {
                self.keep(version, &[published]);
                continue;
            }
            if wanted.contains(&window) && version.version != rule.version {
                // The caller says which version rates its windows.
                continue;
            }
            let set = self.set(version, &[window])?;
            let charges = self.targets(version, set).await?;
            let mut one = HashMap::new();
            self.gather(version, charges, &mut one)?;
            let batch = one.remove(&window).unwrap_or_else(|| Shaper { rule: version, window }.empty());
            self.keep(version, &[WindowCharges { window, charges: batch.clone() }]);
            if wanted.contains(&window) {
                results.insert(window, batch);
            }
        }
        Ok(())
    }

    /// The output of the query for each target.
    fn targets<'a>(&'a self, rule: &'a Rule, set: Arc<WindowSet>) -> BoxFuture<'a, Result<Vec<(Target, RecordBatch)>, RateError>> {
        Box::pin(async move {
            let upstream = self.upstream(rule, &set).await?;
            let several = set.targets().len() > 1 || self.mode == Mode::Lifted;
            if self.mode != Mode::OneByOne && several && !rule.reads_itself() {
                match lifted::run(self, rule, &set, &upstream).await {
                    Ok(charges) => return Ok(charges),
                    Err(error) if self.mode == Mode::Lifted => return Err(error.of(rule, &set)),
                    // Window by window, an error names the window and the customer.
                    Err(_) => {}
                }
            }
            let mut charges = Vec::with_capacity(set.targets().len());
            for target in set.targets() {
                charges.push((target.clone(), single::run(self, rule, &set, target, &upstream).await?));
            }
            Ok(charges)
        })
    }

    /// Joins the contracts of each window, and checks the charges.
    pub(crate) fn gather(
        &self,
        rule: &Rule,
        outputs: Vec<(Target, RecordBatch)>,
        results: &mut HashMap<Window, RecordBatch>,
    ) -> Result<(), RateError> {
        // In order, so that of several errors the first is told.
        let mut by_window: BTreeMap<Window, Vec<RecordBatch>> = BTreeMap::new();
        for (target, output) in outputs {
            if let Some(contract) = &target.contract {
                let shaper = Shaper { rule, window: target.window };
                shaper.of_contract(&output, contract)?;
            }
            by_window.entry(target.window).or_default().push(output);
        }
        for (window, outputs) in by_window {
            let shaper = Shaper { rule, window };
            let whole = match outputs.as_slice() {
                [one] => one.clone(),
                [first, ..] => {
                    concat_batches(&first.schema(), &outputs).map_err(|error| shaper.failed(Blame::default(), error.to_string()))?
                }
                [] => continue,
            };
            results.insert(window, shaper.shape(&whole)?);
        }
        Ok(())
    }
}

pub(crate) fn root_message(error: &DataFusionError) -> String {
    let message = error.find_root().strip_backtrace();
    ["External error: ", "Execution error: ", "Arrow error: ", "Compute error: ", "Error during planning: "]
        .iter()
        .fold(message, |message, prefix| message.strip_prefix(prefix).map(str::to_owned).unwrap_or(message))
}
