//! The results as text or JSON.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::disputed::Disputed;
use super::run::{Outcome, Results};

/// The cases of one model.
struct Count<'a> {
    model: &'a str,
    passed: usize,
    failed: usize,
}

impl Results {
    /// Cases that passed.
    #[must_use]
    pub fn passed(&self) -> usize {
        self.outcomes.len() - self.failed()
    }

    /// Cases that failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.failures().count()
    }

    fn failures(&self) -> impl Iterator<Item = (&Outcome, &str)> {
        self.outcomes.iter().filter_map(|outcome| outcome.failure.as_deref().map(|reason| (outcome, reason)))
    }

    /// Models in order of first appearance.
    fn counts(&self) -> Vec<Count<'_>> {
        let mut counts: Vec<Count<'_>> = Vec::new();
        for outcome in &self.outcomes {
            let index = counts.iter().position(|count| count.model == outcome.model).unwrap_or_else(|| {
                counts.push(Count { model: &outcome.model, passed: 0, failed: 0 });
                counts.len() - 1
            });
            match outcome.failure {
                Some(_) => counts[index].failed += 1,
                None => counts[index].passed += 1,
            }
        }
        counts
    }

    /// The cases that failed and are believed wrong.
    fn disputed_failures(&self) -> Vec<&Disputed> {
        let failed: BTreeSet<&str> = self.failures().map(|(outcome, _)| outcome.id.as_str()).collect();
        self.disputed.iter().filter(|disputed| failed.contains(disputed.id.as_str())).collect()
    }
}

/// The rules if asked for, each failure, a table of the models, disputed failures, and at the end `N passed, N failed`.
#[must_use]
pub fn text(results: &Results, show_rules: bool) -> String {
    let mut text = String::new();
    if show_rules {
        for rule in &results.rules {
            text.push_str(&format!("-- {}\n{}\n\n", rule.file, rule.text.trim_end()));
        }
    }
    let mut detailed = BTreeSet::new();
    for (outcome, reason) in results.failures() {
        let (first, detail) = reason.split_once('\n').unwrap_or((reason, ""));
        text.push_str(&format!("FAILED {} {}: {first}\n", outcome.id, outcome.model));
        // A rule that is refused is so for each of its cases: once is enough.
        if detailed.insert(detail) {
            detail.lines().for_each(|line| text.push_str(&format!("    {line}\n")));
        }
    }
    if results.failed() > 0 {
        text.push('\n');
    }
    let counts = results.counts();
    let width = counts.iter().map(|count| count.model.chars().count()).chain(["model".len()]).max().unwrap_or_default();
    text.push_str(&format!("{:width$}  {:>6}  {:>6}\n", "model", "passed", "failed"));
    for Count { model, passed, failed } in counts {
        text.push_str(&format!("{model:width$}  {passed:>6}  {failed:>6}\n"));
    }
    text.push('\n');
    let disputed = results.disputed_failures();
    if !disputed.is_empty() {
        text.push_str("believed wrong in their source, and counted as failed:\n");
        for Disputed { id, arithmetic } in disputed {
            text.push_str(&format!("  {id}: {}\n", arithmetic.trim().replace('\n', "\n    ")));
        }
        text.push('\n');
    }
    text.push_str(&format!("{} passed, {} failed\n", results.passed(), results.failed()));
    text
}

/// The same as one JSON object.
#[must_use]
pub fn json(results: &Results, show_rules: bool) -> String {
    let models: Vec<Value> =
        results.counts().iter().map(|count| json!({"model": count.model, "passed": count.passed, "failed": count.failed})).collect();
    let failures: Vec<Value> =
        results.failures().map(|(outcome, reason)| json!({"id": outcome.id, "model": outcome.model, "reason": reason})).collect();
    let disputed: Vec<Value> =
        results.disputed_failures().iter().map(|disputed| json!({"id": disputed.id, "arithmetic": disputed.arithmetic})).collect();
    let mut report = json!({
        "passed": results.passed(),
        "failed": results.failed(),
        "models": models,
        "failures": failures,
        "disputed": disputed,
    });
    if show_rules {
        let rules = results.rules.iter().map(|rule| json!({"model": rule.model, "file": rule.file, "text": rule.text}));
        report["rules"] = rules.collect();
    }
    format!("{report:#}\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::conformance::run::RuleFile;

    fn results() -> Results {
        let outcome = |id: &str, model: &str, failure: Option<&str>| Outcome {
            id: id.to_owned(),
            model: model.to_owned(),
            failure: failure.map(str::to_owned),
        };
        Results {
            outcomes: vec![
                outcome("a-1", "volume", None),
                outcome("b-1", "tou", Some("amount expected 3.6, got 2.8")),
                outcome("a-2", "volume", Some("refused\nin line 1")),
                outcome("a-3", "volume", Some("refused\nin line 1")),
            ],
            rules: vec![RuleFile { model: "tou".to_owned(), file: "tou.sql".to_owned(), text: "SELECT 1\n".to_owned() }],
            disputed: ["a-1", "b-1"].map(|id| Disputed { id: id.to_owned(), arithmetic: "10 x 0.28".to_owned() }).to_vec(),
            warnings: BTreeSet::new(),
        }
    }

    #[test]
    fn the_text_closes_with_the_counts() {
        let expected = "\
-- tou.sql
SELECT 1

FAILED b-1 tou: amount expected 3.6, got 2.8
FAILED a-2 volume: refused
    in line 1
FAILED a-3 volume: refused

model   passed  failed
volume       1       2
tou          0       1

believed wrong in their source, and counted as failed:
  b-1: 10 x 0.28

1 passed, 3 failed
";
        assert_eq!(text(&results(), true), expected);
    }

    #[test]
    fn the_json_says_the_same() {
        let report: Value = serde_json::from_str(&json(&results(), false)).unwrap();
        assert_eq!((&report["passed"], &report["failed"]), (&json!(1), &json!(3)));
        assert_eq!(report["models"][0], json!({"model": "volume", "passed": 1, "failed": 2}));
        assert_eq!(report["failures"][0]["reason"], "amount expected 3.6, got 2.8");
        assert_eq!(report["disputed"], json!([{"id": "b-1", "arithmetic": "10 x 0.28"}]));
        assert!(report.get("rules").is_none());
    }
}
