//! Reading the lake with SQL: the tables as of the last completed epoch, and the views that every surface shares.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Decimal128Type, Field, Schema};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::prelude::{SQLOptions, SessionConfig, SessionContext};
use datafusion::sql::parser::DFParser;
use ratemill_rules::session::{SessionLimits, runtime};
use ratemill_rules::{Diagnostics, ReferenceData, functions};
use ratemill_schemas::{Decimal, Rounding};

use crate::adopted::Adopted;
use crate::config::{ConfigError, Settings};
use crate::epoch::{Changes, ClosedPeriod, OWNER, RUNNING, latest_completion, running_spec, table_specs};
use crate::lake::{Lake, LakeError, LakeTable};

/// Why a query was not answered.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The lake.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// The statement or its execution.
    #[error("{0}")]
    Query(String),
    /// It took too long.
    #[error("the query ran longer than {0} seconds (limits.query_time)")]
    Timeout(u64),
    /// There is nothing to read yet.
    #[error("{0} holds no completed epoch yet: start `ratemill run` or `ratemill rate` first")]
    Empty(String),
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        Self::Query(error.find_root().strip_backtrace())
    }
}

/// A read-only session over one project's lake.
pub struct Reader {
    context: SessionContext,
    timeout: Duration,
}

impl Reader {
    /// Opens the lake of the project in `folder` as of its last completed epoch.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn open(folder: &Path) -> Result<Self, QueryError> {
        let settings = Settings::load_for_reading(folder)?;
        let lake = Lake::open(&settings.config.lake.url, folder)?;
        let completion = latest_completion(&lake).await?.ok_or_else(|| QueryError::Empty(lake.url().to_string()))?;
        let context = session(&settings.session_limits())?;
        let (authority, store) = lake.root_store();
        context.runtime_env().register_object_store(&authority, store);
        let versions = completion.versions;
        let mut changes = Changes::default();
        let mut adopted = None;
        for (spec, version) in table_specs(&settings.schema).into_iter().zip([
            versions.usage,
            versions.rejected,
            versions.files,
            versions.charges,
            versions.changes,
            versions.adopted,
        ]) {
            if let Some(table) = LakeTable::open(&lake, spec.name, spec.partitions).await? {
                let table = table.from_version(&lake, version, &[OWNER]).await?;
                if spec.name == "changes" {
                    changes = Changes::load(&context, &table, &settings.schema, &completion.state.waiting).await?;
                }
                if spec.name == "adopted" {
                    adopted = Some(Adopted::load(&context, &lake, &table).await?);
                }
                context.register_table(spec.name, table.provider()?)?;
            }
        }
        let running = running_spec();
        let provisional: Arc<dyn TableProvider> = match LakeTable::open(&lake, running.name, running.partitions).await? {
            // Publications between two epochs are as of the epoch before.
            Some(table) => table.from_version(&lake, versions.running_charges, &[OWNER, RUNNING]).await?.provider()?,
            None => Arc::new(MemTable::try_new(running.schema, vec![Vec::new()])?),
        };
        context.register_table(running.name, provisional)?;
        if let Ok(stored) = context.table_provider("usage").await {
            let usage = adopted.map_or_else(|| Arc::clone(&stored), |adopted| adopted.over(Arc::clone(&stored)));
            context.deregister_table("usage")?;
            context.register_table("usage", Arc::clone(&usage))?;
            context.register_table("effective_usage", changes.over(usage)?)?;
        }
        let reference = ReferenceData::load(&folder.join("reference"), "", &mut Diagnostics::default());
        for table in reference.tables() {
            context.register_table(table.name(), Arc::new(MemTable::try_new(table.schema(), vec![vec![table.batch().clone()]])?))?;
        }
        context.register_table("closed_periods", closed_periods(&completion.state.closed)?)?;
        for (name, sql) in views(settings.config.billing.rounding) {
            context.register_table(name, context.sql(&sql).await?.into_view())?;
        }
        Ok(Self { context, timeout: Duration::from_micros(settings.query_time.unsigned_abs()) })
    }

    /// Runs one SELECT.
    ///
    /// # Errors
    /// [`QueryError`] for anything that is no SELECT, and beyond the limits of memory and time.
    pub async fn query(&self, sql: &str) -> Result<RecordBatch, QueryError> {
        let mut statements = DFParser::parse_sql(sql)?;
        if statements.len() != 1 {
            return Err(QueryError::Query(format!("send one statement, not {}", statements.len())));
        }
        let Some(statement) = statements.pop_front() else { return Err(QueryError::Query("send a statement".to_owned())) };
        let run = async {
            let plan = self.context.state().statement_to_plan(statement).await?;
            SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false).verify_plan(&plan)?;
            let schema = Arc::clone(plan.schema().inner());
            let batches = self.context.execute_logical_plan(plan).await?.collect().await?;
            match batches.first() {
                Some(first) => Ok(arrow::compute::concat_batches(&first.schema(), &batches)?),
                None => Ok(RecordBatch::new_empty(schema)),
            }
        };
        match tokio::time::timeout(self.timeout, run).await {
            Ok(Ok(batch)) => Ok(batch),
            Ok(Err(error)) => Err(DataFusionError::into(error)),
            Err(_) => Err(QueryError::Timeout(self.timeout.as_secs())),
        }
    }
}

/// The closed invoicing months as a table: `period`, `closed_at`, `epoch`.
fn closed_periods(closed: &[ClosedPeriod]) -> Result<Arc<MemTable>, DataFusionError> {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("period", Arc::new(closed.iter().map(|closed| Some(&closed.period)).collect::<StringArray>())),
        (
            "closed_at",
            Arc::new(closed.iter().map(|closed| Some(closed.closed_at)).collect::<TimestampMicrosecondArray>().with_timezone("UTC")),
        ),
        ("epoch", Arc::new(closed.iter().map(|closed| closed.epoch).collect::<Int64Array>())),
    ];
    let batch = RecordBatch::try_from_iter(columns)?;
    Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
}

fn session(limits: &SessionLimits) -> Result<SessionContext, QueryError> {
    let mut config = SessionConfig::new().with_target_partitions(limits.partitions).with_information_schema(true);
    let options = config.options_mut();
    options.sql_parser.parse_float_as_decimal = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.parquet.schema_force_view_types = false;
    options.execution.time_zone = Some("UTC".to_owned());
    let mut state = SessionStateBuilder::new().with_config(config).with_runtime_env(runtime(limits)?).with_default_features();
    let planners = state.expr_planners().take().unwrap_or_default();
    let mut with_arithmetic = functions::operator_planners();
    with_arithmetic.extend(planners);
    let context = SessionContext::new_with_state(state.with_expr_planners(with_arithmetic).build());
    for function in functions::scalar_functions() {
        context.register_udf(function.as_ref().clone());
    }
    for function in functions::aggregate_functions() {
        context.register_udaf(function.as_ref().clone());
    }
    // Endless work for nothing.
    for name in ["generate_series", "range"] {
        context.deregister_udtf(name);
    }
    Ok(context)
}

/// The views: name and SQL.
fn views(rounding: Rounding) -> [(&'static str, String); 2] {
    let mode = rounding.name();
    // A line is (customer, contract, item, currency, billing period). A posting period bills what the line is worth,
    // rounded, less what was billed before: so Σ billed = round(Σ amount), whatever corrections come. The last period
    // comes first: frames that reach to the end are computed from whole partitions, at a third of the cost for each line.
    let lines = format!(
        "WITH posted AS (
            SELECT customer_id, contract_id, item, currency, billing_period, posting_period,
                   sum(amount) AS amount, sum(quantity) AS quantity, max(unit) AS unit, count(*) AS charges
            FROM charges
            GROUP BY customer_id, contract_id, item, currency, billing_period, posting_period
        ), to_date AS (
            SELECT *, sum(amount) OVER (
                       PARTITION BY customer_id, contract_id, item, currency, billing_period
                       ORDER BY posting_period DESC ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS due,
                   sum(amount) OVER (
                       PARTITION BY customer_id, contract_id, item, currency, billing_period
                       ORDER BY posting_period DESC ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING) AS due_before
            FROM posted
        )
        SELECT customer_id, contract_id, billing_period, posting_period, item, quantity, unit, currency, amount,
               round_money(due, currency, '{mode}') - coalesce(round_money(due_before, currency, '{mode}'), 0) AS billed,
               charges
        FROM to_date"
    );
    let totals =
        "SELECT customer_id, billing_period, posting_period, currency, count(*) AS lines, sum(amount) AS amount, sum(billed) AS billed
        FROM invoice_lines GROUP BY customer_id, billing_period, posting_period, currency";
    [("invoice_lines", lines), ("invoice_totals", totals.to_owned())]
}

/// The batch with decimals as exact texts without trailing zeros, which is how they leave Ratemill.
///
/// # Errors
/// When the batch cannot be rebuilt.
pub fn with_exact_texts(batch: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        match column.data_type() {
            DataType::Decimal128(_, scale) => {
                let decimals = column.as_primitive::<Decimal128Type>();
                let shown: StringArray = decimals.iter().map(|raw| raw.map(|raw| show(raw, *scale))).collect();
                fields.push(Field::new(field.name(), DataType::Utf8, true));
                columns.push(Arc::new(shown));
            }
            DataType::Binary => {
                let shown: StringArray =
                    column.as_binary::<i32>().iter().map(|bytes| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned())).collect();
                fields.push(Field::new(field.name(), DataType::Utf8, true));
                columns.push(Arc::new(shown));
            }
            _ => {
                fields.push(field.as_ref().clone());
                columns.push(Arc::clone(column));
            }
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn show(raw: i128, scale: i8) -> String {
    if scale == ratemill_schemas::decimal::SCALE
        && let Ok(value) = Decimal::from_raw(raw)
    {
        return value.to_string();
    }
    let shown = <Decimal128Type as arrow::datatypes::DecimalType>::format_decimal(raw, 38, scale);
    if shown.contains('.') { shown.trim_end_matches('0').trim_end_matches('.').to_owned() } else { shown }
}

#[cfg(test)]
mod tests;
