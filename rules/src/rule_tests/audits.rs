//! `audits/*.sql`: queries over charges and reference tables that must return no row.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, new_null_array};
use arrow::compute::concat_batches;
use arrow::datatypes::{Field, SchemaRef};
use datafusion::common::DataFusionError;
use datafusion::datasource::MemTable;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::sql::parser::{DFParser, Statement as PlanStatement};
use ratemill_schemas::charges::{ChargeClass, schema};
use ratemill_schemas::invoicing::InvoicingCalendar;
use ratemill_schemas::nearest::did_you_mean;
use sqlparser::ast::Statement;

use super::diff::{Difference, Value};
use super::{RuleCharges, TestOutcome, TestResult, milliseconds};
use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::evaluate::CHARGE_COLUMNS;
use crate::project::RuleProject;
use crate::session::{SessionLimits, session};

/// Rows that a failed audit shows.
const ROWS_SHOWN: usize = 20;

/// One audit.
#[derive(Debug, Clone)]
pub struct Audit {
    /// Its name: that of its file.
    pub name: String,
    /// Its file, as the user named the project.
    pub file: String,
    /// One SELECT.
    pub sql: String,
}

impl Audit {
    /// The audits of the project in `folder`, by name; `shown` is how the folder is named in messages.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn load(folder: &Path, shown: &str) -> Result<Vec<Self>, Diagnostics> {
        let Ok(entries) = std::fs::read_dir(folder.join("audits")) else { return Ok(Vec::new()) };
        let mut paths: Vec<_> =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "sql")).collect();
        paths.sort();
        let mut audits = Vec::new();
        let mut diagnostics = Diagnostics::default();
        for path in paths {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let file = format!("{shown}/audits/{name}.sql");
            match std::fs::read_to_string(&path) {
                Ok(sql) => audits.push(Self { name, file, sql }),
                Err(error) => diagnostics.push(Diagnostic::error("audit", &file, "", None, format!("cannot be read: {error}"))),
            }
        }
        if diagnostics.has_errors() { Err(diagnostics) } else { Ok(audits) }
    }

    /// Runs the audit over `charges`, which has the columns of the ledger, and the project's reference tables.
    pub async fn run(&self, charges: &RecordBatch, project: &RuleProject, runtime: &Arc<RuntimeEnv>, limits: &SessionLimits) -> TestResult {
        let begin = Instant::now();
        let outcome = match self.rows(charges, project, runtime, limits).await {
            Ok(rows) if rows.is_empty() => TestOutcome::Passed,
            Ok(rows) => TestOutcome::Failed(rows.into_iter().map(|row| Difference::Unexpected { row }).collect()),
            Err(error) => TestOutcome::Error(message(&error, project)),
        };
        let (name, file) = (self.name.clone(), self.file.clone());
        TestResult { name, model: "audit".to_owned(), file, outcome, duration_ms: milliseconds(begin) }
    }

    async fn rows(
        &self,
        charges: &RecordBatch,
        project: &RuleProject,
        runtime: &Arc<RuntimeEnv>,
        limits: &SessionLimits,
    ) -> Result<Vec<String>, DataFusionError> {
        let context = session(Arc::clone(runtime), limits);
        context.register_table("charges", Arc::new(MemTable::try_new(charges.schema(), vec![vec![charges.clone()]])?))?;
        for table in project.reference.tables() {
            let provider = MemTable::try_new(table.schema(), vec![vec![table.batch().clone()]])?;
            context.register_table(table.name(), Arc::new(provider))?;
        }
        let plan = context.state().statement_to_plan(self.select()?).await?;
        let batches = context.execute_logical_plan(plan).await?.collect().await?;
        let mut rows = Vec::new();
        for batch in &batches {
            for row in 0..batch.num_rows() {
                let cells = batch
                    .schema()
                    .fields()
                    .iter()
                    .zip(batch.columns())
                    .map(|(field, column)| format!("{}: {}", field.name(), Value::of(column, row)))
                    .collect::<Vec<_>>();
                rows.push(cells.join(", "));
            }
        }
        if rows.len() > ROWS_SHOWN {
            let more = rows.len() - ROWS_SHOWN;
            rows.truncate(ROWS_SHOWN);
            rows.push(format!("and {more} more"));
        }
        Ok(rows)
    }

    fn select(&self) -> Result<PlanStatement, DataFusionError> {
        let mut statements = DFParser::parse_sql(&self.sql)?;
        match (statements.pop_front(), statements.is_empty()) {
            (Some(PlanStatement::Statement(statement)), true) if matches!(*statement, Statement::Query(_)) => {
                Ok(PlanStatement::Statement(statement))
            }
            _ => Err(DataFusionError::Plan("an audit is one SELECT".to_owned())),
        }
    }
}

/// Why an audit cannot run, with the nearest table where it names none.
fn message(error: &DataFusionError, project: &RuleProject) -> String {
    let text = error.find_root().strip_backtrace().replace("datafusion.public.", "");
    let unknown = text.split_once("table '").and_then(|(_, rest)| rest.split_once("' not found"));
    match unknown {
        Some((name, _)) => {
            let tables = project.reference.tables().map(|table| table.name()).chain(["charges"]);
            format!("there is no table `{name}`{}", did_you_mean(name, tables))
        }
        None => text,
    }
}

/// The charges as rows of the ledger, as if every window had just been published for the first time.
///
/// # Errors
/// When a window is outside the calendar, or a further column has two types.
pub fn ledger(charges: &[RuleCharges], reference_version: &str, calendar: &InvoicingCalendar) -> Result<RecordBatch, String> {
    let mut further: Vec<Field> = Vec::new();
    for RuleCharges { charges, .. } in charges {
        for field in charges.schema().fields().iter().skip(CHARGE_COLUMNS.len()) {
            if !further.iter().any(|known| known.name() == field.name()) {
                further.push(field.as_ref().clone());
            }
        }
    }
    let schema = schema(&further);
    let mut batches = Vec::with_capacity(charges.len());
    let mut number = 0;
    for charges in charges {
        let period = calendar.billing_period(charges.window).map_err(|error| error.to_string())?;
        batches.push(ledger_rows(charges, number, &period, reference_version, &schema)?);
        number += charges.charges.num_rows();
    }
    concat_batches(&schema, &batches).map_err(|error| error.to_string())
}

fn ledger_rows(
    charges: &RuleCharges,
    first: usize,
    period: &str,
    reference_version: &str,
    schema: &SchemaRef,
) -> Result<RecordBatch, String> {
    let count = charges.charges.num_rows();
    let text = |text: &str| Arc::new(StringArray::from_iter_values(std::iter::repeat_n(text, count))) as ArrayRef;
    let instant = |instant: i64| Arc::new(TimestampMicrosecondArray::from_value(instant, count).with_timezone("UTC")) as ArrayRef;
    let columns = schema
        .fields()
        .iter()
        .map(|field| -> ArrayRef {
            match field.name().as_str() {
                "charge_id" => Arc::new(StringArray::from_iter_values((first..first + count).map(|number| number.to_string()))),
                "revision" => Arc::new(Int32Array::from_value(1, count)),
                "window_start" => instant(charges.window.start),
                "window_end" | "rated_at" => instant(charges.window.end),
                "billing_period" | "posting_period" => text(period),
                "rule" => text(&charges.rule),
                "rule_version" => text(&charges.rule_version),
                "reference_version" => text(reference_version),
                "class" => text(ChargeClass::Original.as_str()),
                "cause" => text("window closed"),
                "epoch" | "usage_version" => Arc::new(Int64Array::from_value(0, count)),
                name => match charges.charges.column_by_name(name) {
                    Some(column) => Arc::clone(column),
                    None => new_null_array(field.data_type(), count),
                },
            }
        })
        .collect();
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn audit(sql: &str) -> Audit {
        Audit { name: "a".to_owned(), file: "audits/a.sql".to_owned(), sql: sql.to_owned() }
    }

    #[test]
    fn an_audit_is_one_select() {
        assert!(audit("-- nobody owes less than nothing\nSELECT * FROM charges WHERE amount < 0;").select().is_ok());
        assert!(audit("WITH c AS (SELECT 1) SELECT * FROM c").select().is_ok());
        for sql in ["", "SELECT 1; SELECT 2", "DROP TABLE charges", "EXPLAIN SELECT 1", "COPY charges TO 'x.csv'"] {
            assert!(audit(sql).select().is_err(), "{sql}");
        }
    }

    #[test]
    fn no_charges_are_an_empty_ledger() {
        let calendar = InvoicingCalendar::new(ratemill_schemas::windows::zone("UTC").unwrap());
        let batch = ledger(&[], "r", &calendar).unwrap();
        assert_eq!((batch.num_rows(), batch.schema()), (0, schema(&[])));
    }
}
