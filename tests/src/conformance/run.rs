//! Checks and evaluates every case by the rule of its model.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::datasource::MemTable;
use datafusion::execution::runtime_env::RuntimeEnv;
use ratemill_rules::session::{self, SessionLimits};
use ratemill_rules::{Diagnostics, Evaluator, ReferenceData, Rule, RuleProject};
use ratemill_schemas::Window;
use ratemill_schemas::nearest::did_you_mean;
use serde_json::Value;
use tokio::runtime::Handle;

use super::case::{Case, Malformed};
use super::compare;
use super::disputed::{self, Disputed};
use super::mapping::Mapping;
use super::tables::{self, Usage};

/// The window that is rated when neither the case nor its usage names one: that of 2026-01-15, µs UTC.
const DEFAULT_INSTANT: i64 = 1_768_435_200_000_000;

/// The planner recurses deeply in builds without optimization.
const STACK_BYTES: usize = 16 << 20;

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The conformance file.
    pub cases: PathBuf,
    /// Only these models; none means all.
    pub models: Vec<String>,
    /// The folder of `MODEL.sql` and `MODEL.toml`.
    pub folder: PathBuf,
}

/// What came out.
#[derive(Debug)]
pub struct Results {
    /// Every case, in the order of the file.
    pub outcomes: Vec<Outcome>,
    /// The rules of the models that the cases name, in order of first appearance.
    pub rules: Vec<RuleFile>,
    /// Cases that are believed wrong.
    pub disputed: Vec<Disputed>,
    /// Warnings of the rule check, each once.
    pub warnings: BTreeSet<String>,
}

/// What came out of one case.
#[derive(Debug)]
pub struct Outcome {
    /// The case.
    pub id: String,
    /// Its model.
    pub model: String,
    /// Why it failed, if it did; lines after the first are detail.
    pub failure: Option<String>,
}

/// A rule as it was read.
#[derive(Debug, Clone)]
pub struct RuleFile {
    /// The model that it prices.
    pub model: String,
    /// The file, as messages name it.
    pub file: String,
    /// The SQL.
    pub text: String,
}

/// A model that has a rule.
#[derive(Debug)]
struct Model {
    rule: RuleFile,
    mapping: Result<Mapping, String>,
}

/// A model, or why its cases cannot be run.
type KnownModel = Result<Arc<Model>, String>;

/// What evaluations share.
#[derive(Clone)]
struct Engine {
    runtime: Arc<RuntimeEnv>,
    limits: SessionLimits,
}

/// The folder of the rules in the source tree.
#[must_use]
pub fn default_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance")
}

/// Runs the selected cases.
///
/// # Errors
/// When the cases or the folder cannot be read; what is wrong with a single case or rule is its outcome.
pub fn run(selection: &Selection) -> Result<Results, String> {
    let folder = &selection.folder;
    if !folder.is_dir() {
        return Err(format!("{} is not a folder", folder.display()));
    }
    let cases = select(read_cases(&selection.cases)?, &selection.models)?;
    let disputed = disputed::read(folder)?;
    let mut models: BTreeMap<String, KnownModel> = BTreeMap::new();
    let mut rules = Vec::new();
    for case in cases.iter().flatten() {
        if !models.contains_key(&case.model) {
            let model = Model::load(folder, &case.model).map(Arc::new);
            rules.extend(model.as_ref().ok().map(|model| model.rule.clone()));
            models.insert(case.model.clone(), model);
        }
    }
    let limits = SessionLimits { partitions: 1, ..SessionLimits::default() };
    let engine = Engine { runtime: session::runtime(&limits).map_err(|error| error.to_string())?, limits };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let (outcomes, warnings) = runtime.block_on(evaluate(cases, &models, &engine));
    Ok(Results { outcomes, rules, disputed, warnings })
}

type ReadCase = Result<Case, Malformed>;

fn read_cases(path: &Path) -> Result<Vec<ReadCase>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    match serde_json::from_str(&text) {
        Ok(Value::Array(cases)) => Ok(cases.into_iter().enumerate().map(|(index, json)| Case::read(index + 1, json)).collect()),
        Ok(_) => Err(format!("{} holds no list of cases", path.display())),
        Err(error) => Err(format!("{} is no JSON: {error}", path.display())),
    }
}

fn select(cases: Vec<ReadCase>, models: &[String]) -> Result<Vec<ReadCase>, String> {
    let present: BTreeSet<String> = cases.iter().map(|case| model_of(case).to_owned()).collect();
    if let Some(absent) = models.iter().find(|model| !present.contains(*model)) {
        return Err(format!("no case has the model `{absent}`{}", did_you_mean(absent, present.iter().map(String::as_str))));
    }
    Ok(cases.into_iter().filter(|case| models.is_empty() || models.iter().any(|model| model == model_of(case))).collect())
}

fn model_of(case: &ReadCase) -> &str {
    match case {
        Ok(case) => &case.model,
        Err(malformed) => &malformed.model,
    }
}

impl Model {
    fn load(folder: &Path, name: &str) -> Result<Self, String> {
        let none = || "no rule for model".to_owned();
        // The name of a model is the name of a file in the folder, not a way out of it.
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
            return Err(none());
        }
        let read = |extension: &str| {
            let file = format!("{name}.{extension}");
            match std::fs::read_to_string(folder.join(&file)) {
                Ok(text) => Ok((file, text)),
                Err(error) if error.kind() == ErrorKind::NotFound && extension == "sql" => Err(none()),
                Err(error) => Err(format!("{file} cannot be read: {error}")),
            }
        };
        let (file, text) = read("sql")?;
        let mapping = read("toml").and_then(|(file, text)| Mapping::parse(&text).map_err(|message| format!("{file}: {message}")));
        Ok(Self { rule: RuleFile { model: name.to_owned(), file, text }, mapping })
    }
}

/// The outcome of every case in order, and the warnings of the checks. A case has a thread of its own, so that one that
/// panics is a failed case.
async fn evaluate(cases: Vec<ReadCase>, models: &BTreeMap<String, KnownModel>, engine: &Engine) -> (Vec<Outcome>, BTreeSet<String>) {
    let at_once = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut outcomes = Vec::with_capacity(cases.len());
    let mut warnings = BTreeSet::new();
    let mut cases = cases.into_iter();
    loop {
        let mut running = Vec::with_capacity(at_once);
        for case in cases.by_ref().take(at_once) {
            let (id, model, known) = match case {
                Ok(case) => (case.id.clone(), case.model.clone(), known_model(models, &case.model).map(|model| (case, model))),
                Err(malformed) => (malformed.id, malformed.model, Err(malformed.reason)),
            };
            let (handle, engine) = (Handle::current(), engine.clone());
            let task = tokio::task::spawn_blocking(move || match known {
                Ok((case, model)) => handle.block_on(outcome(&case, &model, &engine)),
                Err(reason) => (Some(reason), Vec::new()),
            });
            running.push((id, model, task));
        }
        if running.is_empty() {
            return (outcomes, warnings);
        }
        for (id, model, task) in running {
            let (failure, warned) = task.await.unwrap_or_else(|error| (Some(format!("the evaluation broke off: {error}")), Vec::new()));
            warnings.extend(warned);
            outcomes.push(Outcome { id, model, failure });
        }
    }
}

fn known_model(models: &BTreeMap<String, KnownModel>, name: &str) -> KnownModel {
    models.get(name).cloned().unwrap_or_else(|| Err("no rule for model".to_owned()))
}

/// Why the case failed, if it did, and the warnings of the check.
async fn outcome(case: &Case, model: &Model, engine: &Engine) -> (Option<String>, Vec<String>) {
    let mut warnings = Vec::new();
    let failure = match charges(case, model, engine, &mut warnings).await {
        Ok(charges) => {
            let differing = compare::mismatches(case, &charges);
            (!differing.is_empty()).then(|| differing.join("; "))
        }
        Err(reason) => Some(reason),
    };
    (failure, warnings)
}

/// The charges of a case, one batch per window.
async fn charges(case: &Case, model: &Model, engine: &Engine, warnings: &mut Vec<String>) -> Result<Vec<RecordBatch>, String> {
    let mapping = model.mapping.as_ref().map_err(String::clone)?;
    let mut diagnostics = Diagnostics::default();
    let reference = tables::reference(mapping, case, &mut diagnostics)?;
    let usage = tables::usage(mapping, case)?;
    let files = vec![(model.rule.file.clone(), model.rule.text.clone())];
    let schema = Arc::clone(&mapping.usage_schema);
    let (project, diagnostics) = RuleProject::check(files, reference, schema, diagnostics).await.map_err(|found| refused(&found))?;
    warnings.extend(diagnostics.0.iter().map(|warning| warning.render(false)));
    let project = Arc::new(project);
    let [rule] = project.rules.as_slice() else {
        return Err(format!("{} holds {} rules, not one", model.rule.file, project.rules.len()));
    };
    let windows = windows(rule, &project.reference, mapping, case, &usage)?;
    let table = MemTable::try_new(usage.batch.schema(), vec![vec![usage.batch]]).map_err(|error| error.to_string())?;
    rate(engine, &project, rule, table, &windows).await
}

/// The first error of a check on one line, then all findings in full.
fn refused(found: &Diagnostics) -> String {
    let first = found.0.iter().find(|finding| finding.severity == ratemill_rules::diagnostics::Severity::Error);
    format!("{}\n{found}", first.map_or("the rule was refused", |finding| finding.message.as_str()))
}

/// The windows that the mapping names, else those that hold usage, else a default one.
fn windows(rule: &Rule, reference: &ReferenceData, mapping: &Mapping, case: &Case, usage: &Usage) -> Result<Vec<Window>, String> {
    let range = match &mapping.run {
        Some(run) => tables::range(run, case)?,
        None => None,
    };
    let windows = match range {
        Some((from, to)) => rule.windows_between(reference, from, to).map_err(|error| error.to_string())?,
        None if usage.events.is_empty() => {
            rule.windows_between(reference, DEFAULT_INSTANT, DEFAULT_INSTANT + 1).map_err(|error| error.to_string())?
        }
        None => {
            let mut windows = BTreeSet::new();
            for (subject, time) in &usage.events {
                windows.extend(rule.window_of(reference, subject, *time).map_err(|error| error.to_string())?);
            }
            windows.into_iter().collect()
        }
    };
    match windows.iter().find(|window| !rule.in_force_at(window.start)) {
        Some(window) => Err(format!("the rule is not in force in the window {window}; see effective_from and effective_to")),
        None if windows.is_empty() => Err("there is no window to rate; see [run], effective_from and the contracts".to_owned()),
        None => Ok(windows),
    }
}

/// Rates the windows; nothing else here knows how an evaluator is made.
async fn rate(
    engine: &Engine,
    project: &Arc<RuleProject>,
    rule: &Rule,
    usage: MemTable,
    windows: &[Window],
) -> Result<Vec<RecordBatch>, String> {
    let evaluator = Evaluator::new(Arc::clone(&engine.runtime), engine.limits.clone(), Arc::clone(project), Arc::new(usage));
    let rated = evaluator.evaluate(rule, windows).await.map_err(|error| error.to_string())?;
    Ok(rated.into_iter().map(|window| window.charges).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::conformance::report;

    const RULE: &str = "CREATE MATERIALIZED VIEW per_unit WITH (window = 'year', effective_from = '2000-01-01') AS
SELECT c.case_id AS customer_id, 'total' AS item, c.units * c.unit_price AS amount, 'USD' AS currency FROM cases AS c";

    const MAPPING: &str = r#"
        [tables.cases]
        rows = "."
        [tables.cases.columns]
        units = "decimal input.units"
        unit_price = "decimal params.unit_price"
    "#;

    #[test]
    fn the_default_instant_is_in_2026() {
        assert_eq!(ratemill_schemas::time::format_instant(DEFAULT_INSTANT), "2026-01-15T00:00:00Z");
    }

    #[test]
    fn every_case_passes_or_says_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("per_unit.sql", RULE);
        write("per_unit.toml", MAPPING);
        write("broken.sql", "SELECT 1");
        write("broken.toml", MAPPING);
        write("disputed.toml", "[[case]]\nid = \"b\"\narithmetic = \"2 x 0.5 = 1\"\n");
        let case = |id: &str, model: &str, units: Value, amount: &str| {
            let params = json!({"unit_price": "0.5"});
            json!({"id": id, "model": model, "params": params, "input": {"units": units}, "expected": {"amount": amount}})
        };
        let cases = json!([
            case("a", "per_unit", json!("3"), "1.5"),
            case("b", "per_unit", json!("2"), "1.01"),
            case("c", "per_unit", json!(null), "0"),
            case("d", "../secret", json!("1"), "0.5"),
            case("e", "broken", json!("1"), "0.5"),
            {"id": "f", "model": "per_unit"},
            "nonsense",
        ]);
        write("cases.json", &cases.to_string());
        let selection = |models: &[&str]| Selection {
            cases: folder.path().join("cases.json"),
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            folder: folder.path().to_owned(),
        };
        let results = run(&selection(&[])).unwrap();
        let text = report::text(&results, true);
        for line in [
            "-- per_unit.sql",
            "FAILED b per_unit: amount expected 1.01, got 1",
            "FAILED d ../secret: no rule for model",
            "FAILED f per_unit: `params` is missing or no object",
            "FAILED case 7 ?: the case is not an object",
            "  b: 2 x 0.5 = 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.contains("FAILED c per_unit: table `cases`: column `units`: `input.units` is absent or null"), "{text}");
        assert!(text.contains("\nFAILED e broken: "), "{text}");
        assert!(text.ends_with("\n1 passed, 6 failed\n"), "{text}");
        let some = run(&selection(&["broken"])).unwrap();
        assert!(report::text(&some, false).ends_with("0 passed, 1 failed\n"));
        assert!(run(&selection(&["per_unit", "brokn"])).unwrap_err().contains("did you mean `broken`?"));
    }
}
