//! Reference data: `reference/NAME.csv` or `reference/NAME.parquet` with its columns declared in `reference/NAME.toml`.
//!
//! ```toml
//! # reference/contracts.toml
//! key = ["subject"]            # at most one row per key at any instant
//! gaps = "allowed"             # or "refused": whether a key may be without a row between two; a warning when not said
//! timezone = "Europe/London"   # zone of valid_from and valid_to when they are dates
//! [columns]
//! subject = "text"
//! monthly_fee = "decimal"
//! valid_from = "date"          # from the first instant of this day
//! valid_to = "date?"           # up to, not including, the first instant of this day; `?` may be empty
//! ```
//!
//! Rows of a price (tiers, parts of the day) are written flat and read as one list. `up_to`, `unit_price` and `flat_fee`
//! together become `tiers`; other lists are declared:
//!
//! ```toml
//! [lists]
//! windows = ["days", "from_time", "to_time", "unit_price"]
//! ```
//!
//! The table then has one row for each combination of its other columns, and the rows of a list are in the file's order.

mod changes;
mod load;
mod parquet_file;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, SchemaRef, TimestampMicrosecondType};
use ratemill_schemas::{BillingPeriods, ContractTerms};
use sha2::{Digest, Sha256};

pub use changes::{TableChange, TableChanges, Times};

use crate::diagnostics::{Diagnostic, Diagnostics};

/// One loaded table.
#[derive(Debug, Clone)]
pub struct ReferenceTable {
    name: String,
    key: Vec<String>,
    batch: RecordBatch,
    csv: String,
    declaration: String,
}

impl ReferenceTable {
    /// Its name in SQL.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Columns of which at most one row is valid at any instant.
    #[must_use]
    pub fn key(&self) -> &[String] {
        &self.key
    }

    /// Hash of its declaration and file.
    pub(crate) fn version(&self) -> String {
        let mut hash = Sha256::new();
        hash_parts(&mut hash, [&self.name, &self.declaration, &self.csv]);
        hex::encode(&hash.finalize()[..8])
    }

    /// Its rows.
    #[must_use]
    pub fn batch(&self) -> &RecordBatch {
        &self.batch
    }

    /// The columns.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        self.batch.schema()
    }

    /// Whether rows are valid for a time only.
    #[must_use]
    pub fn has_validity(&self) -> bool {
        self.schema().column_with_name("valid_from").is_some() && self.schema().column_with_name("valid_to").is_some()
    }
}

/// All reference tables of a project, as one immutable version.
#[derive(Debug, Clone, Default)]
pub struct ReferenceData {
    tables: BTreeMap<String, ReferenceTable>,
    periods: Option<Arc<BillingPeriods>>,
    version: String,
}

/// The files of one version, to be kept in the lake: name, declaration, CSV.
pub type ReferenceFiles = Vec<(String, String, String)>;

impl ReferenceData {
    /// Hash of all declarations and files: the version that charges carry.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A table by name.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&ReferenceTable> {
        self.tables.get(name)
    }

    /// All tables by name.
    pub fn tables(&self) -> impl Iterator<Item = &ReferenceTable> {
        self.tables.values()
    }

    /// The files that this version was read from.
    #[must_use]
    pub fn files(&self) -> ReferenceFiles {
        self.tables.values().map(|table| (table.name.clone(), table.declaration.clone(), table.csv.clone())).collect()
    }

    /// The names of the tables that are not as in `other`, a version's files: declared or written differently, new, or gone.
    #[must_use]
    pub fn tables_unlike(&self, other: &ReferenceFiles) -> BTreeSet<String> {
        let own: BTreeMap<&str, (&str, &str)> =
            self.tables.values().map(|table| (table.name.as_str(), (table.declaration.as_str(), table.csv.as_str()))).collect();
        let theirs: BTreeMap<&str, (&str, &str)> =
            other.iter().map(|(name, declaration, csv)| (name.as_str(), (declaration.as_str(), csv.as_str()))).collect();
        let names: BTreeSet<&str> = own.keys().chain(theirs.keys()).copied().collect();
        names.into_iter().filter(|name| own.get(name) != theirs.get(name)).map(str::to_owned).collect()
    }

    /// Reads `reference/` below a project; `shown` is how the project's folder is named in messages.
    pub fn load(folder: &Path, shown: &str, diagnostics: &mut Diagnostics) -> Self {
        let mut files = ReferenceFiles::new();
        let mut names: Vec<_> = match std::fs::read_dir(folder) {
            Ok(entries) => {
                let is_table = |path: &std::path::PathBuf| path.extension().is_some_and(|e| e == "csv" || e == "parquet");
                entries.flatten().map(|entry| entry.path()).filter(is_table).collect()
            }
            Err(_) => return Self::from_files(files, shown, diagnostics),
        };
        names.sort();
        for path in names {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let declared = path.with_extension("toml");
            let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let error = |message: String| Diagnostic::error("reference", &format!("{shown}/reference/{file_name}"), "", None, message);
            if files.iter().any(|(name, ..)| *name == stem) {
                diagnostics.push(error(format!("{stem} is there as CSV, too; keep one of them")));
                continue;
            }
            let rows = if path.extension().is_some_and(|e| e == "parquet") {
                parquet_file::as_csv(&path)
            } else {
                std::fs::read_to_string(&path).map_err(|error| format!("cannot be read: {error}"))
            };
            match (std::fs::read_to_string(&declared), rows) {
                (Ok(declaration), Ok(csv)) => files.push((stem, declaration, csv)),
                (Err(error), _) => diagnostics.push(
                    Diagnostic::error("reference", &format!("{shown}/reference/{stem}.toml"), "", None, format!("the columns of {file_name} are not declared: {error}"))
                        .help(format!("write reference/{stem}.toml with [columns] name = \"text\" | \"integer\" | \"decimal\" | \"boolean\" | \"date\" | \"timestamp\"")),
                ),
                (_, Err(message)) => diagnostics.push(error(message)),
            }
        }
        Self::from_files(files, shown, diagnostics)
    }

    /// Builds the tables from file contents, as they are kept in the lake.
    pub fn from_files(files: ReferenceFiles, shown: &str, diagnostics: &mut Diagnostics) -> Self {
        let mut hash = Sha256::new();
        let mut tables = BTreeMap::new();
        for (name, declaration, csv) in files {
            if let Some(message) = wrong_name(&name) {
                diagnostics.push(Diagnostic::error("reference", &format!("{shown}/reference/{name}.csv"), "", None, message));
                continue;
            }
            let csv = csv.replace("\r\n", "\n");
            hash_parts(&mut hash, [&name, &declaration, &csv]);
            let mut loader = load::Loader { name: &name, shown, declaration: &declaration, csv: &csv, diagnostics };
            if let Some((key, batch)) = loader.load() {
                tables.insert(name.clone(), ReferenceTable { name, key, batch, csv, declaration });
            }
        }
        let periods = tables.get("contracts").and_then(|table| match contract_terms(table)? {
            Ok(periods) => Some(Arc::new(periods)),
            Err(message) => {
                let file = format!("{shown}/reference/contracts.csv");
                diagnostics.push(Diagnostic::error("billing-period", &file, "", None, message));
                None
            }
        });
        Self { tables, periods, version: hex::encode(&hash.finalize()[..8]) }
    }

    /// The contracts' own billing periods, when `contracts` says where they begin: it has the columns `contract_id`,
    /// `subject`, `anchor_day` (a whole number), `valid_from`, `valid_to` and, if wanted, `timezone`.
    #[must_use]
    pub fn billing_periods(&self) -> Option<&Arc<BillingPeriods>> {
        self.periods.as_ref()
    }
}

fn hash_parts(hash: &mut Sha256, parts: [&String; 3]) {
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
}

/// The billing periods that `contracts` describes; `None` when it has no anchor days.
fn contract_terms(contracts: &ReferenceTable) -> Option<Result<BillingPeriods, String>> {
    let column = |name: &str| contracts.batch.column_by_name(name);
    let text = |name: &str| column(name).and_then(|column| column.as_string_opt::<i32>());
    let instants = |name: &str| column(name).and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
    let anchors = column("anchor_day")?.as_primitive_opt::<Int64Type>()?;
    let (contract, subject) = (text("contract_id")?, text("subject")?);
    let (from, to) = (instants("valid_from")?, instants("valid_to")?);
    let zones = text("timezone");
    let mut terms = Vec::with_capacity(anchors.len());
    for row in 0..anchors.len() {
        if anchors.is_null(row) || contract.is_null(row) || subject.is_null(row) {
            // A contract without an anchor has no billing period of its own.
            continue;
        }
        if from.is_null(row) {
            return Some(Err(format!("contract `{}`: a billing period needs a valid_from", contract.value(row))));
        }
        terms.push(ContractTerms {
            contract_id: contract.value(row).to_owned(),
            subject: subject.value(row).to_owned(),
            anchor_day: i8::try_from(anchors.value(row)).unwrap_or_default(),
            timezone: zones.filter(|zones| zones.is_valid(row)).map_or("UTC", |zones| zones.value(row)).to_owned(),
            from: from.value(row),
            to: to.is_valid(row).then(|| to.value(row)),
        });
    }
    Some(BillingPeriods::new(&terms))
}

/// Why a table cannot have this name.
fn wrong_name(name: &str) -> Option<String> {
    const TAKEN: [&str; 8] = ["usage", "billing_window", "opening", "charges", "rejected", "files", "invoice_lines", "invoice_totals"];
    if TAKEN.contains(&name) {
        return Some(format!("`{name}` is a table of Ratemill's own; call the file something else"));
    }
    let sound =
        name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') && !name.starts_with(|c: char| c.is_ascii_digit());
    (!sound).then(|| format!("`{name}` cannot be a table name; use lower-case letters, digits and _"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::{Date32Array, Decimal128Array, StringArray, TimestampMicrosecondArray};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    const DECLARED: &str = "key = [\"plan\"]\n[columns]\nplan = \"text\"\nprice = \"decimal?\"\nday = \"date\"\nvalid_from = \"timestamp\"\nvalid_to = \"timestamp?\"\n";

    fn load(name: &str, declaration: &str, csv: &str) -> (ReferenceData, Diagnostics) {
        let mut diagnostics = Diagnostics::default();
        let files = vec![(name.to_owned(), declaration.to_owned(), csv.to_owned())];
        (ReferenceData::from_files(files, "project", &mut diagnostics), diagnostics)
    }

    #[test]
    fn tables_are_told_apart_by_rows_and_declaration() {
        let csv = "plan,price,day,valid_from,valid_to\nhome,1,2026-01-01,2026-01-01T00:00:00Z,\n";
        let (data, diagnostics) = load("prices", DECLARED, csv);
        assert!(diagnostics.0.is_empty(), "{diagnostics}");
        let file = |name: &str, declaration: &str, csv: &str| (name.to_owned(), declaration.to_owned(), csv.to_owned());
        let unlike = |files: Vec<(String, String, String)>| data.tables_unlike(&files).into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(unlike(vec![file("prices", DECLARED, csv)]), "");
        assert_eq!(unlike(vec![file("prices", DECLARED, &csv.replace(",1,", ",2,"))]), "prices");
        assert_eq!(unlike(vec![file("prices", &DECLARED.replace("[\"plan\"]", "[]"), csv)]), "prices");
        assert_eq!(unlike(vec![file("prices", DECLARED, csv), file("contracts", "", "")]), "contracts");
        assert_eq!(unlike(Vec::new()), "prices");
    }

    #[test]
    fn a_parquet_table_is_the_same_as_its_csv() {
        let folder = std::env::temp_dir().join(format!("ratemill-parquet-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("plans.toml"), DECLARED).unwrap();
        let instants = |values: Vec<Option<i64>>| Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"));
        let schema = Arc::new(Schema::new(vec![
            Field::new("plan", DataType::Utf8, false),
            Field::new("price", DataType::Decimal128(20, 4), true),
            Field::new("day", DataType::Date32, false),
            Field::new("valid_from", DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("UTC".into())), false),
            Field::new("valid_to", DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("UTC".into())), true),
        ]));
        let prices = Decimal128Array::from(vec![Some(12_345), None]).with_precision_and_scale(20, 4).unwrap();
        let batch = RecordBatch::try_new(
            Arc::clone(&schema),
            vec![
                Arc::new(StringArray::from(vec!["a, \"b\"", "c"])),
                Arc::new(prices),
                Arc::new(Date32Array::from(vec![20_454, 20_455])),
                instants(vec![Some(0), Some(1)]),
                instants(vec![Some(86_400_000_000), None]),
            ],
        )
        .unwrap();
        let file = std::fs::File::create(folder.join("plans.parquet")).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, schema, None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let mut diagnostics = Diagnostics::default();
        let from_parquet = ReferenceData::load(&folder, "project", &mut diagnostics);
        assert!(diagnostics.0.is_empty(), "{diagnostics}");
        let csv = "plan,price,day,valid_from,valid_to\n\"a, \"\"b\"\"\",1.2345,2026-01-01,1970-01-01T00:00:00Z,1970-01-02T00:00:00Z\nc,,2026-01-02,1970-01-01T00:00:00.000001Z,\n";
        let (from_csv, _) = load("plans", DECLARED, csv);
        assert_eq!(from_parquet.table("plans").unwrap().batch(), from_csv.table("plans").unwrap().batch());
        assert_eq!(from_parquet.version(), from_csv.version());
        // A float is no exact value.
        let schema = Arc::new(Schema::new(vec![Field::new("plan", DataType::Float64, false)]));
        let file = std::fs::File::create(folder.join("plans.parquet")).unwrap();
        parquet::arrow::ArrowWriter::try_new(file, schema, None).unwrap().close().unwrap();
        let mut diagnostics = Diagnostics::default();
        ReferenceData::load(&folder, "project", &mut diagnostics);
        assert!(diagnostics.to_string().contains("column `plan` is Float64"), "{diagnostics}");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn gaps_and_overlaps_of_a_key_are_found() {
        let declared =
            |gaps: &str| format!("{gaps}key = [\"plan\"]\n[columns]\nplan = \"text\"\nvalid_from = \"date\"\nvalid_to = \"date?\"\n");
        let gap = "plan,valid_from,valid_to\na,2026-01-01,2026-02-01\na,2026-03-01,\n";
        let (_, warned) = load("plans", &declared(""), gap);
        assert!(
            !warned.has_errors() && warned.to_string().contains("has no row from 2026-02-01T00:00:00Z to 2026-03-01T00:00:00Z"),
            "{warned}"
        );
        assert!(load("plans", &declared("gaps = \"refused\"\n"), gap).1.has_errors());
        assert!(load("plans", &declared("gaps = \"allowed\"\n"), gap).1.0.is_empty());
        let overlap = "plan,valid_from,valid_to\na,2026-01-01,2026-02-01\na,2026-01-31,\n";
        assert!(load("plans", &declared("gaps = \"allowed\"\n"), overlap).1.to_string().contains("two rows that are valid at once"));
        assert!(load("plans", &declared("gaps = \"sometimes\"\n"), gap).1.has_errors());
    }

    #[test]
    fn rows_of_a_list_become_one_column() {
        let declared = "key = [\"tariff\"]\n[columns]\ntariff = \"text\"\ndays = \"text\"\nfrom_time = \"text\"\nto_time = \"text\"\nunit_price = \"decimal\"\n[lists]\nwindows = [\"days\", \"from_time\", \"to_time\", \"unit_price\"]\n";
        let (data, found) = load(
            "tariffs",
            declared,
            "tariff,days,from_time,to_time,unit_price\nt,1-5,00:00,24:00,1\ns,1-7,00:00,24:00,2\nt,6,00:00,24:00,3\n",
        );
        assert!(found.0.is_empty(), "{found}");
        let batch = data.table("tariffs").unwrap().batch();
        assert_eq!((batch.num_rows(), batch.num_columns()), (2, 2));
        assert_eq!(batch.column(1).as_list::<i32>().value(0).len(), 2);
        let wrong = declared.replace("\"from_time\", \"to_time\"", "\"from_tim\", \"to_time\"");
        assert!(load("tariffs", &wrong, "tariff,days,from_time,to_time,unit_price\n").1.to_string().contains("did you mean `from_time`"));
    }

    #[test]
    fn contracts_that_contradict_each_other_are_refused() {
        let declared = "key = [\"contract_id\", \"subject\"]\n[columns]\ncontract_id = \"text\"\nsubject = \"text\"\nanchor_day = \"integer\"\nvalid_from = \"date\"\nvalid_to = \"date?\"\n";
        let header = "contract_id,subject,anchor_day,valid_from,valid_to\n";
        assert!(load("contracts", declared, &format!("{header}k,s,31,2026-01-31,\n")).0.billing_periods().is_some());
        let (data, found) = load("contracts", declared, &format!("{header}k,s,1,2026-01-01,\nl,s,1,2026-02-01,\n"));
        assert!(data.billing_periods().is_none() && found.to_string().contains("subject `s` has two contracts at once"), "{found}");
    }
}
