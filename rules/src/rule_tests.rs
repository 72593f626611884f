//! Rule tests: `tests/*.yml` in the shape of dbt's unit tests, and audits.
//!
//! A test gives usage, reference tables and charges of other rules, names a rule and a window, and expects charges. The
//! rule is evaluated as everywhere else, and once more with the input cut and ordered in other ways: an answer that
//! depends on that fails the test.

mod audits;
mod diff;
mod run;
mod suite;
mod tables;
mod upstream;
mod windows;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::RecordBatch;
use datafusion::execution::runtime_env::RuntimeEnv;
use ratemill_schemas::Window;
use ratemill_schemas::nearest::did_you_mean;

pub use audits::{Audit, ledger};
pub use diff::{CellDifference, Difference};

use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::project::RuleProject;
use crate::session::SessionLimits;
use run::{Case, Engine};
use suite::{Fault, Suite, UnitTest, place_of_text};

/// How a test or an audit went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TestOutcome {
    /// As expected.
    Passed,
    /// Other charges than expected.
    Failed(Vec<Difference>),
    /// The rule could not be evaluated.
    Error(String),
}

/// The result of one test or audit.
#[derive(Debug, Clone)]
pub struct TestResult {
    /// Its name.
    pub name: String,
    /// The rule, or `audit`.
    pub model: String,
    /// Its file, as the user named the project.
    pub file: String,
    /// How it went.
    pub outcome: TestOutcome,
    /// How long it took.
    pub duration_ms: u64,
}

/// Charges of one window.
#[derive(Debug, Clone)]
pub struct RuleCharges {
    /// The rule.
    pub rule: String,
    /// Its version.
    pub rule_version: String,
    /// The window.
    pub window: Window,
    /// In the columns of [`crate::WindowCharges`].
    pub charges: RecordBatch,
}

/// What the tests of a project gave.
#[derive(Debug, Default)]
pub struct TestReport {
    /// One result per test, in the order of the files.
    pub results: Vec<TestResult>,
    /// Every charge of the tested windows.
    pub charges: Vec<RuleCharges>,
}

/// Which tests are meant: `NAME`, `rule:NAME` or `file:NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// The test of this name.
    Test(String),
    /// The tests of a rule.
    Rule(String),
    /// The tests of a file, by its name with or without its ending.
    File(String),
}

impl Selection {
    /// Reads a selection; every text is one.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some(("rule", name)) => Self::Rule(name.to_owned()),
            Some(("file", name)) => Self::File(name.to_owned()),
            _ => Self::Test(text.to_owned()),
        }
    }

    fn names(&self, suite: &Suite, test: &UnitTest) -> bool {
        match self {
            Self::Test(name) => *name == test.name.value,
            Self::Rule(name) => *name == test.model.value,
            Self::File(name) => {
                let path = Path::new(&suite.file);
                suite.file == *name
                    || suite.file.ends_with(&format!("/{name}"))
                    || [path.file_name(), path.file_stem()].into_iter().flatten().any(|part| part == name.as_str())
            }
        }
    }
}

/// The rule tests of a project.
#[derive(Debug)]
pub struct RuleTests {
    suites: Vec<Suite>,
    fixtures: PathBuf,
}

impl RuleTests {
    /// Reads the tests of the project in `folder`; `shown` is how the folder is named in messages.
    ///
    /// # Errors
    /// Every file that cannot be read, and every name that is there twice for one rule.
    pub fn load(folder: &Path, shown: &str) -> Result<Self, Diagnostics> {
        let folder = folder.join("tests");
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(&folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default();
        let mut diagnostics = Diagnostics::default();
        for inner in paths.iter().filter(|path| path.is_dir() && path.file_name().is_some_and(|name| name != "fixtures")) {
            let name = format!("{shown}/tests/{}", inner.file_name().unwrap_or_default().to_string_lossy());
            let message = "is a folder; tests are files of tests/ itself, and their tables of tests/fixtures";
            diagnostics.push(Diagnostic::error("rule-test", &name, "", None, message));
        }
        paths.retain(|path| {
            path.is_file()
                && path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("yml") || ending.eq_ignore_ascii_case("yaml"))
        });
        paths.sort();
        let mut suites = Vec::new();
        for path in paths {
            let file = format!("{shown}/tests/{}", path.file_name().unwrap_or_default().to_string_lossy());
            match std::fs::read_to_string(&path) {
                Ok(text) => suites.extend(Suite::parse(&file, &text, &mut diagnostics)),
                Err(error) => diagnostics.push(Diagnostic::error("rule-test", &file, "", None, format!("cannot be read: {error}"))),
            }
        }
        check_names(&suites, &mut diagnostics);
        if diagnostics.has_errors() { Err(diagnostics) } else { Ok(Self { suites, fixtures: folder.join("fixtures") }) }
    }

    /// Keeps the tests that one of the selections names.
    ///
    /// # Errors
    /// A selection that names none, with the nearest name.
    pub fn select(&mut self, selections: &[Selection]) -> Result<(), String> {
        for selection in selections {
            if !self.tests().any(|(suite, test)| selection.names(suite, test)) {
                return Err(self.no_such(selection));
            }
        }
        for suite in &mut self.suites {
            let mut tests = std::mem::take(&mut suite.tests);
            tests.retain(|test| selections.iter().any(|selection| selection.names(suite, test)));
            suite.tests = tests;
        }
        Ok(())
    }

    fn no_such(&self, selection: &Selection) -> String {
        match selection {
            Selection::Test(name) => {
                let hint = did_you_mean(name, self.tests().map(|(_, test)| test.name.value.as_str()));
                format!("there is no test `{name}`{hint}")
            }
            Selection::Rule(name) => {
                let hint = did_you_mean(name, self.tests().map(|(_, test)| test.model.value.as_str()));
                format!("no test is of rule `{name}`{hint}")
            }
            Selection::File(name) => {
                let stems = self.suites.iter().filter_map(|suite| Path::new(&suite.file).file_stem()?.to_str());
                format!("there is no test file `{name}`{}", did_you_mean(name, stems))
            }
        }
    }

    fn tests(&self) -> impl Iterator<Item = (&Suite, &UnitTest)> {
        self.suites.iter().flat_map(|suite| suite.tests.iter().map(move |test| (suite, test)))
    }

    /// Runs every test.
    ///
    /// # Errors
    /// What is wrong with the tests themselves: an unknown rule, table or column, or a value that is none. Then no test is run.
    pub async fn run(&self, project: &RuleProject, runtime: &Arc<RuntimeEnv>, limits: &SessionLimits) -> Result<TestReport, Diagnostics> {
        let mut diagnostics = Diagnostics::default();
        let mut cases = Vec::new();
        for (suite, test) in self.tests() {
            match Case::prepare(suite, test, project, &self.fixtures) {
                Ok(case) => cases.push(case),
                Err(fault) => diagnostics.push(fault.in_suite(suite)),
            }
        }
        if diagnostics.has_errors() {
            return Err(diagnostics);
        }
        let engine = Engine { runtime, limits };
        let mut report = TestReport::default();
        for case in &cases {
            let begin = Instant::now();
            let (outcome, charges) = case.run(&engine).await;
            report.results.push(TestResult {
                name: case.test.name.value.clone(),
                model: case.test.model.value.clone(),
                file: case.suite.file.clone(),
                outcome,
                duration_ms: milliseconds(begin),
            });
            report.charges.extend(charges);
        }
        Ok(report)
    }
}

/// A rule has one test of a name.
fn check_names(suites: &[Suite], diagnostics: &mut Diagnostics) {
    let mut names = HashSet::new();
    for suite in suites {
        for test in &suite.tests {
            if !names.insert((&test.model.value, &test.name.value)) {
                let message = format!("rule `{}` has two tests of the name `{}`", test.model.value, test.name.value);
                diagnostics.push(Fault::new(place_of_text(&test.name), message).in_suite(suite));
            }
        }
    }
}

fn milliseconds(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn selections() {
        let text = "\
unit_tests:
  - {name: one, model: rooms, expect: {rows: []}}
  - {name: two, model: calls, expect: {rows: []}}
";
        let select = |selections: &[&str]| {
            let suite = Suite::parse("project/tests/rooms.yml", text, &mut Diagnostics::default()).unwrap();
            let mut tests = RuleTests { suites: vec![suite], fixtures: PathBuf::new() };
            let selections: Vec<Selection> = selections.iter().map(|text| Selection::parse(text)).collect();
            tests.select(&selections).map(|()| tests.tests().map(|(_, test)| test.name.value.clone()).collect::<Vec<_>>())
        };
        assert_eq!(select(&["one"]).unwrap(), ["one"]);
        assert_eq!(select(&["rule:calls", "one"]).unwrap(), ["one", "two"]);
        assert_eq!(select(&["file:rooms"]).unwrap(), ["one", "two"]);
        assert_eq!(select(&["file:rooms.yml"]).unwrap(), ["one", "two"]);
        assert_eq!(select(&["file:tests/rooms.yml"]).unwrap(), ["one", "two"]);
        assert_eq!(select(&["rule:cals"]).unwrap_err(), "no test is of rule `cals`; did you mean `calls`?");
        assert_eq!(select(&["file:roms"]).unwrap_err(), "there is no test file `roms`; did you mean `rooms`?");
    }
}
