//! The rules and reference files of this repository, as the seeds of strange ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ratemill_schemas::UsageSchema;
use ratemill_schemas::usage::{Dimension, DimensionType};
use toml::{Table, Value};

/// Rules that go with one another's reference data.
#[derive(Debug)]
pub struct Corpus {
    pub rules: Vec<(String, String)>,
    /// Rules that every case is checked beside.
    pub sound: Vec<(String, String)>,
    pub reference: Vec<(String, String, String)>,
    pub usage: Arc<UsageSchema>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    paths
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

fn rules(folder: &Path) -> Vec<(String, String)> {
    files(folder, "sql")
        .into_iter()
        .map(|path| (format!("project/rules/{}.sql", stem(&path)), fs::read_to_string(&path).unwrap()))
        .collect()
}

fn reference(folder: &Path) -> Vec<(String, String, String)> {
    files(folder, "csv")
        .into_iter()
        .map(|path| {
            let declaration = fs::read_to_string(path.with_extension("toml")).unwrap();
            (stem(&path), declaration, fs::read_to_string(&path).unwrap())
        })
        .collect()
}

fn dimensions(project: &Path) -> Arc<UsageSchema> {
    let text = fs::read_to_string(project.join("ratemill.toml")).unwrap();
    let document: Table = toml::from_str(&text).unwrap();
    let declared = document.get("dimensions").and_then(Value::as_table).cloned().unwrap_or_default();
    let dimensions = declared.into_iter().map(|(name, _)| Dimension { name, kind: DimensionType::Text });
    Arc::new(UsageSchema::new(dimensions.collect()))
}

/// Every corpus; the first is that of the wrong rules.
pub fn all() -> Vec<Arc<Corpus>> {
    let wrong = root().join("tests/wrong_rules");
    let mut corpora = vec![Corpus {
        rules: rules(&wrong),
        sound: rules(&wrong.join("rules")),
        reference: reference(&wrong.join("reference")),
        usage: dimensions(&wrong),
    }];
    let mut examples: Vec<PathBuf> = fs::read_dir(root().join("examples")).unwrap().map(|entry| entry.unwrap().path()).collect();
    examples.retain(|path| path.join("rules").is_dir());
    examples.sort();
    for example in examples {
        let rules = rules(&example.join("rules"));
        let reference = reference(&example.join("reference"));
        corpora.push(Corpus { sound: rules.clone(), rules, reference, usage: dimensions(&example) });
    }
    corpora.extend(files(&root().join("tests/conformance"), "sql").iter().filter_map(|path| conformance(path)));
    corpora.into_iter().map(Arc::new).collect()
}

/// A rule of the conformance suite beside empty tables with the columns of its mapping.
fn conformance(path: &Path) -> Option<Corpus> {
    let rule = (format!("project/rules/{}.sql", stem(path)), fs::read_to_string(path).unwrap());
    let mapping: Table = toml::from_str(&fs::read_to_string(path.with_extension("toml")).ok()?).ok()?;
    let columns_of = |table: &Table| -> Vec<(String, String)> {
        let columns = table.get("columns").and_then(Value::as_table).cloned().unwrap_or_default();
        let kind = |value: &Value| value.as_str().and_then(|text| text.split_whitespace().next()).unwrap_or("text").to_owned();
        columns.iter().map(|(name, value)| (name.clone(), kind(value))).collect()
    };
    let mut reference = Vec::new();
    for (name, table) in mapping.get("tables").and_then(Value::as_table).cloned().unwrap_or_default() {
        let table = table.as_table()?;
        let mut columns = columns_of(table);
        columns.push(("case_id".to_owned(), "text".to_owned()));
        let mut declaration = Table::new();
        declaration.extend(["key", "lists"].into_iter().filter_map(|field| Some((field.to_owned(), table.get(field)?.clone()))));
        let kinds = columns.iter().map(|(name, kind)| (name.clone(), Value::String(kind.clone())));
        declaration.insert("columns".to_owned(), Value::Table(kinds.collect()));
        let header: Vec<String> = columns.into_iter().map(|(name, _)| name).collect();
        reference.push((name, toml::to_string(&declaration).unwrap(), header.join(",") + "\n"));
    }
    let own = ["source", "id", "meter", "subject", "time", "quantity", "end", "ingested_at"];
    let usage = mapping.get("usage").and_then(Value::as_table).map(columns_of).unwrap_or_default();
    let further = usage.into_iter().filter(|(name, _)| !own.contains(&name.as_str()));
    let dimensions = further.map(|(name, kind)| Dimension {
        name,
        kind: match kind.trim_end_matches('?') {
            "integer" => DimensionType::Integer,
            "decimal" => DimensionType::Decimal,
            "boolean" => DimensionType::Boolean,
            "timestamp" => DimensionType::Timestamp,
            _ => DimensionType::Text,
        },
    });
    let usage = Arc::new(UsageSchema::new(dimensions.collect()));
    Some(Corpus { rules: vec![rule], sound: Vec::new(), reference, usage })
}
