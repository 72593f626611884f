//! Rules with one mistake each: what the check says of them, word for word.
//!
//! Every file of `tests/wrong_rules` is checked beside the sound rules and the reference data of that folder. What is said
//! of `NAME.sql` stands in `snapshots/NAME.txt`; `RATEMILL_SNAPSHOTS=write` writes those files anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ratemill_rules::diagnostics::Severity;
use ratemill_rules::{Diagnostic, Diagnostics, ReferenceData, RuleProject};
use ratemill_schemas::UsageSchema;
use ratemill_schemas::usage::{Dimension, DimensionType};

/// Files that the check refuses or warns of, at the least.
const FINDINGS_MIN: usize = 80;

/// Different codes over all files, at the least.
const CODES_MIN: usize = 50;

/// Files whose mistake has no place in the text.
const WITHOUT_PLACE: [&str; 2] = ["empty_file", "nested_too_deeply"];

/// Files whose mistake only the engine's configuration shows: meters that nobody sends.
const BEYOND: [&str; 3] = ["meter_in_other_case", "meter_misspelt", "no_meter"];

/// Words of the planner that an analyst does not know.
const FOREIGN: [&str; 6] = ["Error during planning", "Internal error", "DataFusion", "Decimal128", "Utf8", "UDF"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("wrong_rules")
}

/// The files with this ending, in order.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == ending));
    paths.sort();
    paths
}

fn name_of(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// What is said of the rule in `path`.
async fn check(path: &Path, sound: &[(String, String)]) -> Vec<Diagnostic> {
    let mut diagnostics = Diagnostics::default();
    let reference = ReferenceData::load(&folder().join("reference"), "wrong_rules", &mut diagnostics);
    assert!(diagnostics.0.is_empty(), "{}", diagnostics.render(false));
    let region = Dimension { name: "region".to_owned(), kind: DimensionType::Text };
    let usage = Arc::new(UsageSchema::new(vec![region]));
    let mut rules = sound.to_vec();
    rules.push((format!("rules/{}.sql", name_of(path)), fs::read_to_string(path).unwrap()));
    match RuleProject::check(rules, reference, usage, diagnostics).await {
        Ok((_, warnings)) => warnings.0,
        Err(errors) => errors.0,
    }
}

#[tokio::test]
async fn every_mistake_is_told() {
    let sound: Vec<(String, String)> = files(&folder().join("rules"), "sql")
        .into_iter()
        .map(|path| (format!("rules/{}.sql", name_of(&path)), fs::read_to_string(&path).unwrap()))
        .collect();
    let write = std::env::var("RATEMILL_SNAPSHOTS").is_ok_and(|value| value == "write");
    let snapshots = folder().join("snapshots");
    fs::create_dir_all(&snapshots).unwrap();
    let mut codes = BTreeSet::new();
    let mut told = 0;
    let mut wrong = Vec::new();
    for path in files(&folder(), "sql") {
        let name = name_of(&path);
        let found = check(&path, &sound).await;
        told += usize::from(!found.is_empty());
        codes.extend(found.iter().map(|diagnostic| diagnostic.code));
        wrong.extend(found.iter().flat_map(|diagnostic| faults(&name, diagnostic)));
        if found.is_empty() != BEYOND.contains(&name.as_str()) {
            wrong.push(format!("{name}: {} findings", found.len()));
        }
        let rendered = found.iter().map(|diagnostic| diagnostic.render(false)).collect::<Vec<_>>().join("\n\n") + "\n";
        let snapshot = snapshots.join(format!("{name}.txt"));
        if write {
            fs::write(&snapshot, rendered).unwrap();
        } else if fs::read_to_string(&snapshot).unwrap_or_default() != rendered {
            wrong.push(format!("{name}: not as in snapshots/{name}.txt:\n{rendered}"));
        }
    }
    for snapshot in files(&snapshots, "txt") {
        let name = name_of(&snapshot);
        if !folder().join(format!("{name}.sql")).exists() {
            wrong.push(format!("{name}: a snapshot without a rule"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(told >= FINDINGS_MIN, "only {told} files are refused or warned of");
    assert!(codes.len() >= CODES_MIN, "only {} codes: {codes:?}", codes.len());
}

/// What is wrong with a finding itself.
fn faults(name: &str, diagnostic: &Diagnostic) -> Vec<String> {
    let mut faults = Vec::new();
    let message = &diagnostic.message;
    match diagnostic.place {
        None if diagnostic.severity == Severity::Error && !WITHOUT_PLACE.contains(&name) => {
            faults.push(format!("{name}: {} has no place: {message}", diagnostic.code));
        }
        Some(place) if place.end_line != place.line => faults.push(format!("{name}: {} underlines several lines", diagnostic.code)),
        _ => {}
    }
    if diagnostic.severity == Severity::Error && diagnostic.file != format!("rules/{name}.sql") {
        faults.push(format!("{name}: the finding is of {}", diagnostic.file));
    }
    let text = format!("{message} {}", diagnostic.help.as_deref().unwrap_or_default());
    faults.extend(FOREIGN.iter().filter(|word| text.contains(**word)).map(|word| format!("{name}: says `{word}`: {message}")));
    faults
}
