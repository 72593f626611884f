//! `ratemill test`: rule tests and audits.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};
use ratemill_rules::RuleProject;
use ratemill_rules::rule_tests::{Audit, Difference, RuleTests, Selection, TestOutcome, TestResult, ledger};
use ratemill_rules::session::runtime;
use ratemill_schemas::invoicing::InvoicingCalendar;
use ratemill_schemas::windows;
use serde_json::{Value, json};

use super::{Failure, Project, stop_signal};
use crate::config::Settings;
use crate::pipeline::shown;

/// Exit code of a test that gave other charges than expected.
const MISMATCH: u8 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Human,
    Json,
    Junit,
}

/// `ratemill test`
#[derive(Debug, Args)]
pub(super) struct Test {
    #[command(flatten)]
    project: Project,
    /// Run these tests only, without audits: NAME, rule:NAME or file:NAME.
    #[arg(long, value_name = "TEST", num_args = 1..)]
    select: Vec<String>,
    /// How results are written.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
    /// Write the results to this file, and those for people to stdout.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Test {
    pub(super) async fn run(self) -> Result<(), Failure> {
        tokio::select! {
            outcome = self.test() => outcome,
            () = stop_signal() => Err(Failure::interrupted()),
        }
    }

    async fn test(&self) -> Result<(), Failure> {
        let results = self.results().await?;
        let written = match self.format {
            Format::Human => human(&results),
            Format::Json => as_json(&results)?,
            Format::Junit => junit(&results).map_err(Failure::failed)?,
        };
        match &self.output {
            Some(file) => {
                std::fs::write(file, written).map_err(|error| Failure::failed(format!("cannot write {}: {error}", file.display())))?;
                print!("{}", human(&results));
            }
            None => print!("{written}"),
        }
        verdict(&results)
    }

    /// The tests, and the audits over the charges that the tests gave.
    async fn results(&self) -> Result<Vec<TestResult>, Failure> {
        let folder = &self.project.folder;
        let name = shown(folder);
        let settings = Settings::load_for_reading(folder).map_err(Failure::usage)?;
        let loaded = RuleProject::load(folder, &name, Arc::clone(&settings.schema)).await;
        let (project, _) = loaded.map_err(Failure::rules)?;
        let mut tests = RuleTests::load(folder, &name).map_err(Failure::usage)?;
        let audits = if self.select.is_empty() { Audit::load(folder, &name).map_err(Failure::usage)? } else { Vec::new() };
        if !self.select.is_empty() {
            let selections: Vec<Selection> = self.select.iter().map(|text| Selection::parse(text)).collect();
            tests.select(&selections).map_err(Failure::usage)?;
        }
        let limits = settings.session_limits();
        let runtime = runtime(&limits).map_err(Failure::failed)?;
        let report = tests.run(&project, &runtime, &limits).await.map_err(Failure::usage)?;
        let mut results = report.results;
        if !audits.is_empty() {
            let zone = windows::zone(&settings.config.billing.timezone).map_err(Failure::usage)?;
            let calendar = InvoicingCalendar::new(zone);
            let charges = ledger(&report.charges, project.reference.version(), &calendar).map_err(Failure::failed)?;
            for audit in &audits {
                results.push(audit.run(&charges, &project, &runtime, &limits).await);
            }
        }
        Ok(results)
    }
}

fn verdict(results: &[TestResult]) -> Result<(), Failure> {
    let failed = results.iter().filter(|result| matches!(result.outcome, TestOutcome::Failed(_))).count();
    let errors = results.iter().filter(|result| matches!(result.outcome, TestOutcome::Error(_))).count();
    match (failed, errors) {
        (0, 0) => Ok(()),
        (0, _) => Err(Failure::rules(format!("{errors} of {} tests could not be evaluated", results.len()))),
        _ => Err(Failure { code: MISMATCH, message: format!("{} of {} tests failed", failed + errors, results.len()) }),
    }
}

/// A line for each test, under it what differs, and the count at the end.
fn human(results: &[TestResult]) -> String {
    let mut text = String::new();
    let mut passed = 0;
    for result in results {
        let word = match result.outcome {
            TestOutcome::Passed => {
                passed += 1;
                "ok"
            }
            TestOutcome::Failed(_) => "FAILED",
            TestOutcome::Error(_) => "ERROR",
        };
        text.push_str(&format!("{word:<6}  {}: {}  {} ms\n", result.model, result.name, result.duration_ms));
        for line in details(&result.outcome).lines() {
            text.push_str(&format!("        {line}\n"));
        }
    }
    text.push_str(&format!("{passed} passed, {} failed\n", results.len() - passed));
    text
}

fn details(outcome: &TestOutcome) -> String {
    match outcome {
        TestOutcome::Passed => String::new(),
        TestOutcome::Failed(differences) => differences.iter().map(Difference::to_string).collect::<Vec<_>>().join("\n"),
        TestOutcome::Error(message) => message.clone(),
    }
}

fn as_json(results: &[TestResult]) -> Result<String, Failure> {
    let tests: Vec<Value> = results
        .iter()
        .map(|result| {
            let (outcome, differences, error) = match &result.outcome {
                TestOutcome::Passed => ("passed", json!([]), Value::Null),
                TestOutcome::Failed(differences) => ("failed", json!(differences), Value::Null),
                TestOutcome::Error(message) => ("error", json!([]), json!(message)),
            };
            json!({
                "name": result.name,
                "model": result.model,
                "file": result.file,
                "outcome": outcome,
                "duration_ms": result.duration_ms,
                "differences": differences,
                "error": error,
            })
        })
        .collect();
    serde_json::to_string_pretty(&tests).map(|text| text + "\n").map_err(Failure::failed)
}

/// JUnit XML as Jenkins and GitLab read it: a suite for each file.
fn junit(results: &[TestResult]) -> io::Result<String> {
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let totals = Totals::of(results);
    writer.create_element("testsuites").with_attribute(("name", "ratemill")).with_attributes(totals.attributes()).write_inner_content(
        |writer| {
            for suite in results.chunk_by(|a, b| a.file == b.file) {
                let Some(first) = suite.first() else { continue };
                let totals = Totals::of(suite);
                let element = writer.create_element("testsuite").with_attribute(("name", printable(&first.file).as_str()));
                element
                    .with_attributes(totals.attributes())
                    .write_inner_content(|writer| suite.iter().try_for_each(|result| test_case(writer, result)))?;
            }
            Ok(())
        },
    )?;
    let mut text = String::from_utf8(writer.into_inner()).map_err(io::Error::other)?;
    text.push('\n');
    Ok(text)
}

/// Counts of a suite, as attributes want them.
struct Totals {
    tests: String,
    failures: String,
    errors: String,
    time: String,
}

impl Totals {
    fn of(results: &[TestResult]) -> Self {
        let count = |is: fn(&TestOutcome) -> bool| results.iter().filter(|result| is(&result.outcome)).count().to_string();
        Self {
            tests: results.len().to_string(),
            failures: count(|outcome| matches!(outcome, TestOutcome::Failed(_))),
            errors: count(|outcome| matches!(outcome, TestOutcome::Error(_))),
            time: seconds(results.iter().map(|result| result.duration_ms).sum()),
        }
    }

    fn attributes(&self) -> [(&'static str, &str); 4] {
        [("tests", self.tests.as_str()), ("failures", &self.failures), ("errors", &self.errors), ("time", &self.time)]
    }
}

fn test_case(writer: &mut Writer<Vec<u8>>, result: &TestResult) -> io::Result<()> {
    let (name, class, file) = (printable(&result.name), printable(&result.model), printable(&result.file));
    let time = seconds(result.duration_ms);
    let attributes = [("name", name.as_str()), ("classname", class.as_str()), ("file", file.as_str()), ("time", time.as_str())];
    let element = writer.create_element("testcase").with_attributes(attributes);
    let kind = match result.outcome {
        TestOutcome::Passed => return element.write_empty().map(|_| ()),
        TestOutcome::Failed(_) => "failure",
        TestOutcome::Error(_) => "error",
    };
    let details = printable(&details(&result.outcome));
    let message = details.lines().next().unwrap_or_default();
    element
        .write_inner_content(|writer| {
            writer.create_element(kind).with_attribute(("message", message)).write_text_content(BytesText::new(&details)).map(|_| ())
        })
        .map(|_| ())
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000)
}

/// The text without the characters that XML 1.0 cannot hold.
fn printable(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ratemill_rules::rule_tests::CellDifference;

    use super::*;

    fn results() -> Vec<TestResult> {
        let result = |name: &str, outcome| TestResult {
            name: name.to_owned(),
            model: "rooms".to_owned(),
            file: "tests/rooms.yml".to_owned(),
            outcome,
            duration_ms: 1012,
        };
        let cells =
            vec![CellDifference { column: "amount".to_owned(), expected: Some("31.00".to_owned()), actual: Some("30.50".to_owned()) }];
        vec![
            result("one", TestOutcome::Passed),
            result("two", TestOutcome::Failed(vec![Difference::Changed { row: "customer_id: a & b".to_owned(), cells }])),
            result("three", TestOutcome::Error("tiers end at <10>\u{1}".to_owned())),
        ]
    }

    #[test]
    fn people_see_the_cell_that_differs() {
        let expected = "\
ok      rooms: one  1012 ms
FAILED  rooms: two  1012 ms
        customer_id: a & b
            amount: 31.00 → 30.50
ERROR   rooms: three  1012 ms
        tiers end at <10>\u{1}
1 passed, 2 failed
";
        assert_eq!(human(&results()), expected);
        assert_eq!(human(&[]), "0 passed, 0 failed\n");
    }

    #[test]
    fn json_has_an_object_for_each_test() {
        let parsed: Value = serde_json::from_str(&as_json(&results()).unwrap()).unwrap();
        assert_eq!(parsed[0]["outcome"], "passed");
        assert_eq!(parsed[1]["differences"][0]["kind"], "changed");
        assert_eq!(parsed[1]["differences"][0]["cells"][0], json!({"column": "amount", "expected": "31.00", "actual": "30.50"}));
        assert_eq!(parsed[2]["duration_ms"], 1012);
    }

    #[test]
    fn junit_counts_and_escapes() {
        let xml = junit(&results()).unwrap();
        for part in [
            r#"<?xml version="1.0" encoding="UTF-8"?>"#,
            r#"<testsuites name="ratemill" tests="3" failures="1" errors="1" time="3.036">"#,
            r#"<testsuite name="tests/rooms.yml" tests="3" failures="1" errors="1" time="3.036">"#,
            r#"<testcase name="one" classname="rooms" file="tests/rooms.yml" time="1.012"/>"#,
            r#"<failure message="customer_id: a &amp; b">customer_id: a &amp; b"#,
            r#"<error message="tiers end at &lt;10&gt;">tiers end at &lt;10&gt;</error>"#,
        ] {
            assert!(xml.contains(part), "{part} in {xml}");
        }
        assert!(junit(&[]).unwrap().contains(r#"tests="0""#));
    }

    #[test]
    fn a_mismatch_is_not_a_rule_error() {
        let all = results();
        assert!(verdict(&all[..1]).is_ok());
        assert_eq!(verdict(&all).unwrap_err().code, MISMATCH);
        assert_eq!(verdict(&all[2..]).unwrap_err().code, 3);
    }
}
