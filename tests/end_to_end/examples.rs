//! The example projects, as a newcomer runs them: sound, tested, and charging what a person worked out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ratemill_schemas::Decimal;

use crate::engine::{ok, sql};

/// Name, and how its usage files are read.
pub const EXAMPLES: [(&str, &[&str]); 5] = [
    ("business-centre", &[]),
    ("cloud-metering", &[]),
    ("data-rights", &[]),
    ("electricity-utility", &["--as", "readings"]),
    ("telecom", &["--as", "records"]),
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)
}

/// A copy, so that the lake of a test stays out of the repository.
pub fn copy(name: &str) -> tempfile::TempDir {
    fn copy_all(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy_all(&entry.path(), &target)
            } else {
                std::fs::copy(entry.path(), target).map(drop).unwrap()
            }
        }
    }
    let copied = tempfile::tempdir().unwrap();
    copy_all(&folder(name), copied.path());
    copied
}

#[test]
fn every_example_charges_what_was_worked_out_by_hand() {
    let found: Vec<String> =
        std::fs::read_dir(folder("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found.len(), EXAMPLES.len(), "{found:?}");
    for (name, options) in EXAMPLES {
        let copied = copy(name);
        let project = copied.path().to_str().unwrap();
        ok(&["check", project]);
        let usage = copied.path().join("usage");
        ok(&[&["rate", "-C", project, "--usage", usage.to_str().unwrap()], options].concat());
        assert_eq!(sql(copied.path(), "SELECT count(*) FROM rejected"), ["0"], "{name}");
        let charged: BTreeMap<String, Decimal> = sql(
            copied.path(),
            "SELECT sum(amount), customer_id, coalesce(contract_id, ''), window_start, item, currency FROM charges
             GROUP BY customer_id, contract_id, window_start, item, currency",
        )
        .into_iter()
        .map(|line| line.split_once(',').map(|(amount, key)| (key.to_owned(), amount.parse().unwrap())).unwrap())
        .collect();
        let expected: BTreeMap<String, Decimal> = std::fs::read_to_string(copied.path().join("expected/charges.csv"))
            .unwrap()
            .lines()
            .skip(1)
            .map(|line| line.rsplit_once(',').map(|(key, amount)| (key.to_owned(), amount.parse().unwrap())).unwrap())
            .collect();
        assert!(expected.len() > 10, "{name}");
        assert_eq!(charged, expected, "{name}");
        ok(&["audit", "-C", project]);
    }
}

#[test]
fn every_example_passes_its_rule_tests_and_audits() {
    for (name, _) in EXAMPLES {
        let copied = copy(name);
        let shown = ok(&["test", "-C", copied.path().to_str().unwrap()]);
        assert!(shown.contains(", 0 failed"), "{name}:\n{shown}");
    }
}

#[test]
fn every_rule_of_the_examples_is_lifted_or_says_why() {
    for (name, _) in EXAMPLES {
        for rule in std::fs::read_dir(folder(name).join("rules")).unwrap() {
            let rule = rule.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
            let text = ok(&["explain", &rule, "-C", folder(name).to_str().unwrap(), "--format", "json"]);
            let explained: serde_json::Value = serde_json::from_str(&text).unwrap();
            // The demand ratchet reads its own earlier charges.
            let expected = !(name == "electricity-utility" && rule == "demand");
            assert_eq!(explained[0]["lifted"], expected, "{name} {rule}: {}", explained[0]["lifted_because"]);
            assert_eq!(explained[0]["lifted_because"].is_null(), expected, "{name} {rule}");
        }
    }
}
