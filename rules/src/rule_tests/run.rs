//! Running a test: the charges of its windows, from the input as it is given and as it could come otherwise.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::execution::runtime_env::RuntimeEnv;
use ratemill_schemas::Window;
use ratemill_schemas::nearest::did_you_mean;

use super::diff::{ChargeRow, Difference, Value, differences, shown};
use super::suite::{Cells, Fault, Suite, UnitTest, place_of_text};
use super::tables::{given, given_reference, given_usage, rows_of};
use super::upstream::{charge_columns, upstream_charges};
use super::windows::{RatedWindow, in_force, named, of_usage};
use super::{RuleCharges, TestOutcome};
use crate::evaluate::{Evaluator, Mode};
use crate::project::RuleProject;
use crate::rule::Rule;
use crate::session::SessionLimits;

/// Partitions that usage is dealt out to when it comes event by event.
const PARTITIONS: usize = 3;

/// What tests run on.
#[derive(Debug)]
pub(super) struct Engine<'a> {
    pub(super) runtime: &'a Arc<RuntimeEnv>,
    pub(super) limits: &'a SessionLimits,
}

/// A test with everything that it needs, checked.
pub(super) struct Case<'a> {
    pub(super) suite: &'a Suite,
    pub(super) test: &'a UnitTest,
    /// The project with the given reference tables.
    project: Arc<RuleProject>,
    usage: RecordBatch,
    upstream: Vec<(String, RecordBatch)>,
    /// The windows whose charges are compared.
    tested: Vec<RatedWindow<'a>>,
    /// Further windows that hold given usage.
    others: Vec<RatedWindow<'a>>,
    expected: Vec<Cells>,
    timezone: &'a str,
}

/// How usage comes.
#[derive(Debug, Clone, Copy)]
enum Arrival {
    /// In one batch, as written.
    Whole,
    /// Each event in a batch of its own, in another order, over several partitions.
    Pieces,
}

impl<'a> Case<'a> {
    pub(super) fn prepare(suite: &'a Suite, test: &'a UnitTest, project: &'a RuleProject, fixtures: &Path) -> Result<Self, Fault> {
        let model = &test.model.value;
        let versions: Vec<&Rule> = project.rules.iter().filter(|rule| rule.name == *model).collect();
        let Some(rule) = versions.first() else {
            let hint = did_you_mean(model, project.rules.iter().map(|rule| rule.name.as_str()));
            return Err(Fault::new(place_of_text(&test.model), format!("there is no rule `{model}`{hint}")));
        };
        let tables = given(test, project, fixtures)?;
        let reference = given_reference(&tables, project)?;
        let usage = given_usage(&tables, &project.usage)?;
        let at = place_of_text(test.window.as_ref().unwrap_or(&test.name));
        let fault = |message: String| Fault::new(at, message);
        let of_usage = of_usage(&versions, &usage.events, &reference).map_err(fault)?;
        let tested = match &test.window {
            Some(window) => {
                let windows = named(&versions, &window.value, &reference).map_err(fault)?;
                rated(&versions, &windows).map_err(fault)?
            }
            None if of_usage.is_empty() => {
                return Err(fault("no window is given, and no usage says which; add window: '2026-09'".to_owned()));
            }
            None => of_usage.clone(),
        };
        let windows: BTreeSet<Window> = tested.iter().map(|rated| rated.window).collect();
        let others = of_usage.into_iter().filter(|rated| !windows.contains(&rated.window)).collect();
        let upstream = upstream_charges(&tables, project, &reference, &versions, &windows.into_iter().collect::<Vec<_>>())?;
        let rows =
            rows_of(test.expect.format, test.expect.rows.as_ref(), test.expect.fixture.as_deref(), place_of_text(&test.name), fixtures)?;
        if let Some(row) = rows.iter().find(|row| row.cells.is_empty()) {
            return Err(row.fault("a row without columns would expect any charge; name customer_id, item and amount"));
        }
        let columns = charge_columns(&versions);
        rows.iter().try_for_each(|row| row.check_columns(&format!("rule `{model}`"), &columns))?;
        Ok(Self {
            suite,
            test,
            project: Arc::new(RuleProject { rules: project.rules.clone(), reference, usage: Arc::clone(&project.usage) }),
            usage: usage.batch,
            upstream,
            tested,
            others,
            expected: rows.into_iter().map(|row| row.cells).collect(),
            timezone: &rule.options.timezone,
        })
    }

    pub(super) async fn run(&self, engine: &Engine<'_>) -> (TestOutcome, Vec<RuleCharges>) {
        let charges = match self.rate(engine, Arrival::Whole, Mode::Auto, &self.tested).await {
            Ok(charges) => charges,
            Err(message) => return (TestOutcome::Error(message), Vec::new()),
        };
        let charged = rows(&charges);
        let mut found = differences(&self.expected, &charged, self.timezone);
        found.extend(self.instability(engine, &charged).await);
        let outcome = if found.is_empty() { TestOutcome::Passed } else { TestOutcome::Failed(found) };
        (outcome, charges)
    }

    /// Where the same input gives other charges: event by event, window by window, and beside the other windows that
    /// usage is given for.
    async fn instability(&self, engine: &Engine<'_>, charged: &[ChargeRow]) -> Vec<Difference> {
        let mut found = Vec::new();
        if self.usage.num_rows() > 1 {
            let pieces = self.rate(engine, Arrival::Pieces, Mode::Auto, &self.tested).await;
            found.extend(unstable("event by event in another order", charged, pieces));
        }
        if self.tested.len() > 1 {
            let alone = self.rate(engine, Arrival::Whole, Mode::OneByOne, &self.tested).await;
            found.extend(unstable("window by window", charged, alone));
        }
        let mut windows = self.tested.clone();
        for other in &self.others {
            // A window that the test does not speak of may lack what its charges need.
            if self.rate(engine, Arrival::Whole, Mode::OneByOne, &[*other]).await.is_ok() {
                windows.push(*other);
            }
        }
        if windows.len() > self.tested.len() {
            windows.sort_by_key(|rated| rated.window);
            let together = self.rate(engine, Arrival::Whole, Mode::Auto, &windows).await.map(|mut charges| {
                charges.retain(|charges| self.tested.iter().any(|rated| rated.window == charges.window));
                charges
            });
            found.extend(unstable("all windows of the usage at once", charged, together));
        }
        found
    }

    /// The charges of `windows`; versions follow each other in time, so that runs of windows share one.
    async fn rate(
        &self,
        engine: &Engine<'_>,
        arrival: Arrival,
        mode: Mode,
        windows: &[RatedWindow<'_>],
    ) -> Result<Vec<RuleCharges>, String> {
        let evaluator = self.evaluator(engine, arrival, mode)?;
        let mut charges = Vec::with_capacity(windows.len());
        for windows in windows.chunk_by(|a, b| a.rule.version == b.rule.version) {
            let Some(RatedWindow { rule, .. }) = windows.first() else { continue };
            let spans: Vec<Window> = windows.iter().map(|rated| rated.window).collect();
            let results = evaluator.evaluate(rule, &spans).await.map_err(|error| error.to_string())?;
            charges.extend(results.into_iter().map(|result| RuleCharges {
                rule: rule.name.clone(),
                rule_version: rule.version.clone(),
                window: result.window,
                charges: result.charges,
            }));
        }
        Ok(charges)
    }

    fn evaluator(&self, engine: &Engine<'_>, arrival: Arrival, mode: Mode) -> Result<Evaluator, String> {
        let partitions = match arrival {
            Arrival::Whole => vec![vec![self.usage.clone()]],
            Arrival::Pieces => pieces(&self.usage),
        };
        let limits = SessionLimits { partitions: partitions.len(), ..engine.limits.clone() };
        let usage = MemTable::try_new(self.project.usage.stored().clone(), partitions).map_err(|error| error.to_string())?;
        let usage: Arc<dyn TableProvider> = Arc::new(usage);
        let evaluator = Evaluator::new(Arc::clone(engine.runtime), limits, Arc::clone(&self.project), usage).with_mode(mode);
        Ok(self.upstream.iter().fold(evaluator, |evaluator, (table, charges)| evaluator.with_charges(table, charges.clone())))
    }
}

/// The windows that a version rates; of billing periods, some may begin before any is in force.
fn rated<'a>(versions: &[&'a Rule], windows: &[Window]) -> Result<Vec<RatedWindow<'a>>, String> {
    let rated: Vec<RatedWindow<'a>> = windows.iter().filter_map(|window| in_force(versions, *window)).collect();
    match windows.first() {
        Some(window) if rated.is_empty() => Err(format!("no version of the rule is in force in the window {window}; see effective_from")),
        _ => Ok(rated),
    }
}

/// Every event in a batch of its own, dealt out to partitions in an order that is the same in every run.
fn pieces(usage: &RecordBatch) -> Vec<Vec<RecordBatch>> {
    let mut partitions = vec![Vec::new(); PARTITIONS];
    for (turn, row) in shuffled(usage.num_rows()).into_iter().enumerate() {
        partitions[turn % PARTITIONS].push(usage.slice(row, 1));
    }
    partitions
}

/// The numbers below `count` in another order (Fisher and Yates; Knuth's linear congruential generator, seeded with 1).
fn shuffled(count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut state: u64 = 1;
    for last in (1..count).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(last, usize::try_from(state >> 33).unwrap_or_default() % (last + 1));
    }
    if order.is_sorted() {
        order.reverse();
    }
    order
}

/// Every charge with its window, by column.
fn rows(charges: &[RuleCharges]) -> Vec<ChargeRow> {
    let mut rows = Vec::new();
    for RuleCharges { window, charges, .. } in charges {
        for row in 0..charges.num_rows() {
            let mut charge = ChargeRow::from([
                ("window_start".to_owned(), Value::Instant(window.start)),
                ("window_end".to_owned(), Value::Instant(window.end)),
            ]);
            for (field, column) in charges.schema().fields().iter().zip(charges.columns()) {
                charge.insert(field.name().clone(), Value::of(column, row));
            }
            rows.push(charge);
        }
    }
    rows
}

fn unstable(how: &str, charged: &[ChargeRow], other: Result<Vec<RuleCharges>, String>) -> Option<Difference> {
    let difference = match other {
        Ok(other) => apart(charged, rows(&other))?,
        Err(message) => message,
    };
    Some(Difference::Unstable { how: how.to_owned(), difference })
}

/// The first row that is not in both.
fn apart(charged: &[ChargeRow], mut other: Vec<ChargeRow>) -> Option<String> {
    let mut lost = None;
    for row in charged {
        match other.iter().position(|candidate| candidate == row) {
            Some(index) => {
                other.swap_remove(index);
            }
            None => lost = lost.or(Some(row)),
        }
    }
    match (lost, other.first()) {
        (None, None) => None,
        (Some(row), Some(other)) => Some(format!("{} becomes {}", shown(row), shown(other))),
        (Some(row), None) => Some(format!("{} is lost", shown(row))),
        (None, Some(other)) => Some(format!("{} is added", shown(other))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_shuffle_is_another_order_and_the_same_every_time() {
        for count in 0..50 {
            let order = shuffled(count);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..count).collect::<Vec<_>>());
            assert!(count < 2 || order != sorted, "{count}");
            assert_eq!(order, shuffled(count));
        }
    }

    #[test]
    fn charges_are_compared_as_often_as_they_are_there() {
        let row = |amount: &str| ChargeRow::from([("amount".to_owned(), Value::Number(amount.parse().unwrap()))]);
        assert_eq!(apart(&[row("1"), row("2")], vec![row("2"), row("1")]), None);
        assert_eq!(apart(&[row("1")], vec![row("1.5")]).unwrap(), "amount: 1 becomes amount: 1.5");
        assert_eq!(apart(&[row("1"), row("1")], vec![row("1")]).unwrap(), "amount: 1 is lost");
        assert_eq!(apart(&[], vec![row("1")]).unwrap(), "amount: 1 is added");
    }
}
