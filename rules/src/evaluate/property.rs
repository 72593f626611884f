//! Lifted = one by one, folded = one by one, claimed = rated + unrated, and charges traced to what is enough for them, held over
//! rules, reference data and usage that are made by chance.
//!
//! `RATEMILL_SEED` is the seed of the first case, `RATEMILL_CASES` their number; a case that fails names its seed.
#![allow(clippy::unwrap_used)]

mod data;
mod folding;
mod provenance;
mod random;
mod relations;
mod rules;
mod templates;
mod unrated;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::datasource::MemTable;
use ratemill_schemas::Window;

use super::{Evaluator, Mode, RateError, WindowCharges};
use crate::diagnostics::Diagnostics;
use crate::project::RuleProject;
use crate::session::{SessionLimits, runtime};
use data::{Setup, dealt_out, usage_schema};
use provenance::Traced;
use random::Random;

/// Windows that are rated in one case.
const WINDOWS_MAX: usize = 6;

/// What must come up in every run.
const SHAPES: [&str; 35] = [
    "aggregate",
    "aggregate distinct",
    "aggregate filter",
    "anchored periods",
    "anti join",
    "billing periods",
    "carry",
    "charges of another rule",
    "correlated scalar subquery",
    "cte",
    "distinct",
    "earlier charges",
    "empty windows",
    "errors",
    "exists",
    "filter",
    "full join",
    "global aggregate",
    "having",
    "in",
    "inner join",
    "left join",
    "local time",
    "mark join",
    "not exists",
    "projection",
    "reference LEFT JOIN usage",
    "right join",
    "scalar subquery",
    "semi join",
    "sub-aggregate",
    "union",
    "union with a reference-only branch",
    "unnest",
    "window function",
];

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

#[tokio::test]
async fn lifted_is_one_by_one() {
    let (seed, cases) = (number("RATEMILL_SEED", 1), number("RATEMILL_CASES", 150));
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut folded = Folded::default();
    for case in 0..cases {
        let seed = seed + case;
        let mut random = Random::new(seed);
        let setup = Setup::new(&mut random);
        let rules = rules::rules(&setup, &mut random);
        let texts: String = rules.files.iter().map(|(_, text)| format!("\n{text}")).collect();
        let case = match Case::new(setup, rules, &mut random).await {
            Ok(case) => case,
            Err(diagnostics) => {
                println!("seed {seed} is refused:\n{diagnostics}\n{texts}");
                *counts.entry("refused by the check").or_default() += 1;
                continue;
            }
        };
        match case.run(&mut random, &mut folded).await {
            Ok(found) => found.into_iter().for_each(|shape| *counts.entry(shape).or_default() += 1),
            Err(message) => panic!("seed {seed}: {message}\n{texts}"),
        }
    }
    println!("{counts:#?}\n{folded:#?}");
    let count = |shape: &str| counts.get(shape).copied().unwrap_or(0);
    if cases >= 150 {
        let missing: Vec<&str> = SHAPES.into_iter().filter(|shape| count(shape) == 0).collect();
        assert!(missing.is_empty(), "never came up: {missing:?}");
        let missing: Vec<&str> = folding::FOLDED.into_iter().filter(|shape| !folded.shapes.contains_key(shape)).collect();
        assert!(missing.is_empty(), "never folded: {missing:?}");
        assert!(folded.told * 10 < folded.traced + folded.rated_from_events, "too many charges were not traced: {folded:?}");
        assert!(folded.traced > 20 && folded.rated_from_events > 10, "too few charges were traced: {folded:?}");
        for outcome in [unrated::LOST, unrated::SAME] {
            let times = folded.unrated.iter().filter(|(found, _)| found.contains(outcome)).map(|(_, times)| times).sum::<usize>();
            assert!(times * 50 > usize::try_from(cases).unwrap(), "only {times} of {cases} cases: {outcome}");
        }
        let useful = count("charges");
        assert!(useful * 2 > usize::try_from(cases).unwrap(), "only {useful} of {cases} cases charged anything");
    }
}

/// What was folded, and why the rest was not.
#[derive(Debug, Default)]
struct Folded {
    shapes: BTreeMap<&'static str, usize>,
    reasons: BTreeMap<String, usize>,
    /// Charges that were traced, and those that were rated from their events alone, too.
    traced: usize,
    /// Charges of which it was told that they cannot be traced.
    told: usize,
    rated_from_events: usize,
    /// What came of the analysis of unrated usage.
    unrated: BTreeMap<String, usize>,
}

/// One rule with everything that it reads.
struct Case {
    project: Arc<RuleProject>,
    windows: Vec<Window>,
    usage: RecordBatch,
    shapes: BTreeSet<&'static str>,
    one_by_one: bool,
}

/// What a rule charges, as texts: the rows of each window in order, or why there are none.
type Charged = Result<BTreeMap<Window, Vec<String>>, String>;

impl Case {
    async fn new(setup: Setup, rules: rules::Rules, random: &mut Random) -> Result<Self, Diagnostics> {
        let reference = setup.reference(random);
        let (project, _) = RuleProject::check(rules.files, reference, usage_schema(), Diagnostics::default()).await?;
        let rated = project.rules.iter().find(|rule| rule.name == "rated").unwrap();
        let mut windows = rated.windows_between(&project.reference, setup.from, setup.to).unwrap();
        windows.truncate(WINDOWS_MAX);
        let usage = setup.usage(&windows, &project.usage, random);
        Ok(Self { project: Arc::new(project), windows, usage, shapes: rules.shapes, one_by_one: rules.one_by_one })
    }

    /// Rates the windows in every way; returns what came up.
    async fn run(mut self, random: &mut Random, folded: &mut Folded) -> Result<BTreeSet<&'static str>, String> {
        let whole = vec![vec![self.usage.clone()]];
        let expected = self.rate(Mode::OneByOne, 1, whole.clone(), &self.windows).await;
        let lifted = self.rate(Mode::Lifted, 1, whole.clone(), &self.windows).await;
        match &lifted {
            Err(message) if message.contains("not lifted") => {
                self.shapes = BTreeSet::from(["one window at a time"]);
                // What fails in every window need not be understood for all of them.
                if !self.one_by_one && expected.is_ok() {
                    return Err(message.clone());
                }
            }
            _ => same("lifted", &expected, &lifted, false)?,
        }
        let auto = self.rate(Mode::Auto, 1, whole, &self.windows).await;
        same("by itself", &expected, &auto, true)?;
        for partitions in [2, 8] {
            let dealt = dealt_out(&self.usage, partitions, random);
            let shuffled = self.rate(Mode::Auto, partitions, dealt, &self.windows).await;
            same(&format!("shuffled over {partitions} partitions"), &expected, &shuffled, false)?;
        }
        match folding::folded(&self, &expected, random).await? {
            Ok(customers_apart) => {
                let apart = customers_apart.then_some(&"customers apart");
                self.shapes.iter().chain(apart).for_each(|shape| *folded.shapes.entry(shape).or_default() += 1);
            }
            Err(reason) => *folded.reasons.entry(reason.to_string()).or_default() += 1,
        }
        match provenance::traced(&self, random).await? {
            Traced::Nothing => {}
            Traced::Told => folded.told += 1,
            Traced::Found => folded.traced += 1,
            Traced::Enough => folded.rated_from_events += 1,
        }
        match unrated::told(&self, &expected).await? {
            Ok(outcome) => *folded.unrated.entry(outcome).or_default() += 1,
            Err(reason) => *folded.unrated.entry(format!("not analysed: {reason}")).or_default() += 1,
        }
        let mut some = self.windows.clone();
        some.retain(|_| random.chance(50));
        some.extend(some.first().copied());
        random.shuffle(&mut some);
        let subset = self.rate(Mode::Auto, 1, dealt_out(&self.usage, 1, random), &some).await;
        if let (Ok(expected), Ok(subset)) = (&expected, &subset) {
            let expected: BTreeMap<_, _> = some.iter().map(|window| (*window, expected[window].clone())).collect();
            same("some windows", &Ok(expected), &Ok(subset.clone()), false)?;
        } else if let (Ok(_), Err(message)) = (&expected, &subset) {
            return Err(format!("some windows fail: {message}"));
        }
        self.outcome(&expected);
        Ok(self.shapes)
    }

    fn outcome(&mut self, expected: &Charged) {
        match expected {
            Ok(charges) => {
                if charges.values().any(|rows| !rows.is_empty()) {
                    self.shapes.insert("charges");
                }
                let times = self.usage.column_by_name("time").unwrap();
                let times = arrow::array::AsArray::as_primitive::<arrow::datatypes::TimestampMicrosecondType>(times);
                if self.windows.iter().any(|window| !times.values().iter().any(|time| window.contains(*time))) {
                    self.shapes.insert("empty windows");
                }
            }
            Err(message) => {
                println!("{message}");
                self.shapes = BTreeSet::from(["errors"]);
            }
        }
    }

    async fn rate(&self, mode: Mode, partitions: usize, usage: Vec<Vec<RecordBatch>>, windows: &[Window]) -> Charged {
        let rated = self.project.rules.iter().find(|rule| rule.name == "rated").unwrap();
        charged(self.evaluator(mode, partitions, usage).evaluate(rated, windows).await, windows)
    }

    fn evaluator(&self, mode: Mode, partitions: usize, usage: Vec<Vec<RecordBatch>>) -> Evaluator {
        let limits = SessionLimits { partitions, ..SessionLimits::default() };
        let usage = Arc::new(MemTable::try_new(Arc::clone(self.project.usage.stored()), usage).unwrap());
        Evaluator::new(runtime(&limits).unwrap(), limits, Arc::clone(&self.project), usage).with_mode(mode)
    }
}

fn charged(charges: Result<Vec<WindowCharges>, RateError>, windows: &[Window]) -> Charged {
    match charges {
        Ok(charges) => {
            assert_eq!(charges.iter().map(|charges| charges.window).collect::<Vec<_>>(), windows);
            Ok(charges.iter().map(|charges| (charges.window, rows(charges))).collect())
        }
        // Which of several rows is named depends on their order.
        Err(RateError::FanOut { window, .. }) => Err(format!("fan-out in {window}")),
        Err(RateError::Charge { window, .. }) => Err(format!("charges in {window}")),
        Err(error) => Err(error.to_string()),
    }
}

/// The charges as texts, in order.
fn rows(charges: &WindowCharges) -> Vec<String> {
    let options = FormatOptions::default().with_null("null");
    let schema = charges.charges.schema();
    let formatters: Vec<ArrayFormatter<'_>> =
        charges.charges.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
    let mut rows: Vec<String> = (0..charges.charges.num_rows())
        .map(|row| {
            let mut text = String::new();
            for (field, formatter) in schema.fields().iter().zip(&formatters) {
                write!(text, "{}={} ", field.name(), formatter.value(row)).unwrap();
            }
            text
        })
        .collect();
    rows.sort();
    rows
}

/// Fails where charges differ; errors must agree in that there is one and, where they are `exact`, in what they say.
fn same(what: &str, expected: &Charged, found: &Charged, exact: bool) -> Result<(), String> {
    match (expected, found) {
        (Ok(expected), Ok(found)) if expected == found => Ok(()),
        (Ok(expected), Ok(found)) => {
            let mut message = format!("{what}: other charges");
            for (window, expected) in expected {
                let found = &found[window];
                if expected != found {
                    write!(message, "\nin {window} expected\n  {}\nfound\n  {}", expected.join("\n  "), found.join("\n  ")).unwrap();
                }
            }
            Err(message)
        }
        (Err(expected), Err(found)) if !exact || expected == found => Ok(()),
        (Err(expected), Err(found)) => Err(format!("{what}: expected the error {expected}\nfound {found}")),
        (Ok(_), Err(found)) => Err(format!("{what}: no error expected, found {found}")),
        (Err(expected), Ok(_)) => Err(format!("{what}: expected the error {expected}")),
    }
}
