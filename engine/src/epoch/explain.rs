//! A charge explained: rated again with what it was rated with, and traced to what it is made of.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Decimal128Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::{col, lit};
use ratemill_rules::evaluate::{EventTotal, PricingCall, Provenance, ReadCharges, ReferenceRows, UsageEvent};
use ratemill_rules::session::{SessionLimits, runtime, session};
use ratemill_rules::{Evaluator, RateError, Rule, RuleProject, RuleWindow};
use ratemill_schemas::{UsageSchema, Window, WindowSpec};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::changes::Changes;
use super::manifest::{Completion, completion_name, read};
use super::rate::{Evaluated, Rating, closure};
use super::run::EpochError;
use super::tables::{Tables, table_specs};
use crate::adopted::Adopted;
use crate::lake::{Lake, LakeError, LakeTable};
use crate::ledger::{chain, in_force_only};
use crate::query::with_exact_texts;

/// Shortest beginning of an id that names a charge.
pub const ID_MIN: usize = 8;

/// Names of charges that are listed where a beginning fits several.
const LISTED: usize = 5;

/// Why a charge is not explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The id.
    #[error("{0}")]
    Id(String),
    /// It cannot be rated again.
    #[error("charge {charge_id} of epoch {epoch} cannot be rated again: {message}")]
    NotRated {
        /// The charge.
        charge_id: String,
        /// Its epoch.
        epoch: i64,
        /// Why.
        message: String,
    },
    /// The lake, or the rule.
    #[error(transparent)]
    Epoch(#[from] EpochError),
}

impl From<LakeError> for ExplainError {
    fn from(error: LakeError) -> Self {
        Self::Epoch(error.into())
    }
}

/// Column names and values, in the order of the table; null ones are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns(pub Vec<(String, String)>);

impl Columns {
    /// The value of a column.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Serialize for Columns {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// A row of the charge's chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChainRow {
    /// Its revision.
    pub revision: i32,
    /// Its id.
    pub charge_id: String,
    /// `original` or `correction`.
    pub class: String,
    /// Why it was written.
    pub cause: String,
    /// The row that it takes back.
    pub reverses: Option<String>,
    /// Its amount.
    pub amount: String,
    /// Its quantity.
    pub quantity: Option<String>,
    /// Month in which it is billed.
    pub posting_period: String,
    /// The epoch that wrote it.
    pub epoch: i64,
    /// Whether it is neither a reversal nor taken back.
    pub in_force: bool,
}

/// The stored charge and what rating it again gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recomputed {
    /// Whether every column agrees to the last digit.
    pub equal: bool,
    /// What the ledger has.
    pub stored_amount: String,
    /// What rating gives; none when it gives no such charge.
    pub recomputed_amount: Option<String>,
    /// Columns that differ: name, stored, recomputed.
    pub differences: Vec<(String, Option<String>, Option<String>)>,
    /// Version of the `usage` table that was rated.
    pub usage_version: u64,
}

/// Charges of another rule, or of earlier windows, that it was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadCharge {
    /// Its id; none where it was not published and was rated for this charge.
    pub charge_id: Option<String>,
    /// Its rule.
    pub rule: String,
    /// Whether it was read as a charge of an earlier window.
    pub earlier: bool,
    /// First instant of its window.
    pub window_start: String,
    /// Its item.
    pub item: String,
    /// Its amount.
    pub amount: String,
    /// Its currency.
    pub currency: String,
}

/// A charge, explained.
#[derive(Debug, Serialize)]
pub struct ChargeExplanation {
    /// Every column of the row.
    pub charge: Columns,
    /// All rows of its identity, by revision.
    pub chain: Vec<ChainRow>,
    /// The row that was rated again: of a reversal the one that it takes back.
    pub explains: String,
    /// Whether it is what rating gives.
    pub recomputed: Recomputed,
    /// Calls of pricing functions, with their arguments and steps.
    pub pricing: Vec<PricingCall>,
    /// Charges that it was made of.
    pub charges: Vec<ReadCharge>,
    /// Reference rows that it was made of.
    pub reference: Vec<ReferenceRows>,
    /// All usage events behind it, by meter.
    pub totals: Vec<EventTotal>,
    /// The first of them.
    pub events: Vec<UsageEvent>,
    /// What could not be traced, and why.
    pub notes: Vec<String>,
}

/// A lake in which charges are explained. Nothing is written and nobody is asked.
#[derive(Debug)]
pub struct ChargeExplainer {
    lake: Lake,
    /// The ledger as of the last completed epoch.
    ledger: LakeTable,
    project: Arc<RuleProject>,
    schema: Arc<UsageSchema>,
    runtime: Arc<RuntimeEnv>,
    limits: SessionLimits,
}

/// What an epoch rated with.
struct Rated {
    tables: Tables,
    completion: Completion,
    changes: Changes,
    adopted: Adopted,
}

impl ChargeExplainer {
    /// Opens the ledger as of the last completed epoch.
    ///
    /// # Errors
    /// [`EpochError`].
    pub async fn open(
        lake: Lake,
        completion: &Completion,
        project: RuleProject,
        schema: Arc<UsageSchema>,
        limits: SessionLimits,
    ) -> Result<Self, EpochError> {
        let runtime = runtime(&limits)?;
        let (authority, store) = lake.root_store();
        runtime.register_object_store(&authority, store);
        let ledger = table(&lake, &schema, "charges").await?.with_rows(col("epoch").lt_eq(lit(completion.epoch)));
        Ok(Self { lake, ledger, project: Arc::new(project), schema, runtime, limits })
    }

    /// Explains the charge whose id begins with `id`, with at most `events` events.
    ///
    /// # Errors
    /// [`ExplainError`].
    pub async fn explain(&self, id: &str, events: usize) -> Result<ChargeExplanation, ExplainError> {
        let row = self.find(id).await?;
        let rows = self.rows_of_identity(&row).await?;
        let reverses = text(&row, "reverses");
        let explained = match &reverses {
            Some(reversed) => with_id(&rows, reversed)?.ok_or_else(|| {
                ExplainError::Id(format!("charge {} takes back {reversed}, which is not in the ledger", text_or(&row, "charge_id")))
            })?,
            None => row.clone(),
        };
        let rated = self.rated_with(&explained).await?;
        let (project, rule) = self.rule_of(&rated, &explained).await?;
        let window = window_of(&rule, &explained);
        let (evaluator, fresh) = self.evaluate(&rated, &project, &rule, &window, &explained).await?;
        let recomputed = recompute(&row, &explained, &fresh, &rated)?;
        let charge = chain::output_of(&explained).map_err(EpochError::arrow)?;
        let behind = evaluator.provenance(&rule, &window, &charge, events).await;
        let Provenance { calls, events, totals, charges, reference, mut notes } = behind.unwrap_or_else(|error: RateError| Provenance {
            notes: vec![format!("what is behind the charge is not shown: {error}")],
            ..Provenance::default()
        });
        let charges = self.read_charges(&rated, charges).await?;
        if !rule.reads_usage {
            notes.push("the rule reads no usage".to_owned());
        } else if totals.is_empty() && !charges.is_empty() {
            notes.push("usage reaches it through the charges that it reads: explain these for their events".to_owned());
        }
        Ok(ChargeExplanation {
            charge: columns(&row, 0)?,
            chain: chain_rows(&rows)?,
            explains: text_or(&explained, "charge_id"),
            recomputed,
            pricing: calls,
            charges,
            reference,
            totals,
            events,
            notes,
        })
    }

    /// The one row whose id begins so.
    async fn find(&self, id: &str) -> Result<RecordBatch, ExplainError> {
        if id.len() < ID_MIN || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let message = format!("`{id}` names no charge: give the charge_id, or at least its first {ID_MIN} characters");
            return Err(ExplainError::Id(message));
        }
        let id = id.to_ascii_lowercase();
        // No character of an id comes after `f`.
        let range = col("charge_id").gt_eq(lit(id.as_str())).and(col("charge_id").lt(lit(format!("{id}g"))));
        let found = self.select(&self.ledger, range).await?;
        match found.num_rows() {
            0 => Err(ExplainError::Id(format!(
                "no charge has an id that begins with {id}; `ratemill sql -c \"SELECT charge_id, … FROM charges\"` lists them"
            ))),
            1 => Ok(found),
            several => {
                let mut ids: Vec<String> = found
                    .column_by_name("charge_id")
                    .into_iter()
                    .flat_map(|ids| ids.as_string::<i32>().iter().flatten())
                    .map(str::to_owned)
                    .collect();
                ids.sort();
                ids.truncate(LISTED);
                let more = if several > LISTED { ", …" } else { "" };
                Err(ExplainError::Id(format!("{several} charges have an id that begins with {id}: {}{more}", ids.join(", "))))
            }
        }
    }

    async fn select(&self, table: &LakeTable, filter: datafusion::prelude::Expr) -> Result<RecordBatch, EpochError> {
        let context = session(Arc::clone(&self.runtime), &self.limits);
        let batches = context.read_table(table.provider()?)?.filter(filter)?.collect().await?;
        match batches.first() {
            Some(first) => concat_batches(&first.schema(), &batches).map_err(EpochError::arrow),
            None => Ok(RecordBatch::new_empty(table.schema()?)),
        }
    }

    /// The rows of the charge's identity, by revision.
    async fn rows_of_identity(&self, row: &RecordBatch) -> Result<RecordBatch, EpochError> {
        let same = |name: &str| {
            let value = row.column_by_name(name).map(|column| datafusion::common::ScalarValue::try_from_array(column, 0)).transpose();
            value.map(|value| value.map_or_else(|| lit(true), |value| col(name).eq(lit(value))))
        };
        let filter = same("rule")?.and(same("customer_id")?).and(same("window_start")?).and(same("window_end")?);
        let rows = self.select(&self.ledger, filter).await?;
        let wanted = chain::identities(&chain::output_of(row).map_err(EpochError::arrow)?);
        let found = chain::identities(&chain::output_of(&rows).map_err(EpochError::arrow)?);
        let mask = found.iter().map(|identity| Some(wanted.first() == Some(identity))).collect();
        let rows = arrow::compute::filter_record_batch(&rows, &mask).map_err(EpochError::arrow)?;
        let Some(revisions) = rows.column_by_name("revision") else { return Ok(rows) };
        let order = arrow::compute::sort_to_indices(revisions, None, None).map_err(EpochError::arrow)?;
        arrow::compute::take_record_batch(&rows, &order).map_err(EpochError::arrow)
    }

    /// The tables, voids and amendments as the epoch of a charge left them.
    async fn rated_with(&self, charge: &RecordBatch) -> Result<Rated, ExplainError> {
        let epoch = number(charge, "epoch");
        let missing = |message: String| ExplainError::NotRated { charge_id: text_or(charge, "charge_id"), epoch, message };
        let completion = read::<Completion>(&self.lake, &completion_name(epoch)).await?;
        let completion = completion.ok_or_else(|| missing("the record of the epoch is not in the lake any more".to_owned()))?;
        // Rows are only ever added: the files of that version may be joined and gone, its rows are there.
        let logged = || col("log_position").lt(lit(completion.state.position));
        let at = |name: &'static str| table(&self.lake, &self.schema, name);
        let tables = Tables {
            usage: at("usage").await?.with_rows(logged()),
            rejected: at("rejected").await?.with_rows(logged()),
            files: at("files").await?,
            charges: at("charges").await?.with_rows(col("epoch").lt_eq(lit(epoch))),
            changes: at("changes").await?.with_rows(logged()),
            adopted: at("adopted").await?.with_rows(logged()),
        };
        let context = session(Arc::clone(&self.runtime), &self.limits);
        let changes = Changes::load(&context, &tables.changes, &self.schema, &completion.state.waiting).await.map_err(EpochError::from)?;
        let adopted = Adopted::load(&context, &self.lake, &tables.adopted).await.map_err(EpochError::from)?;
        Ok(Rated { tables, completion, changes, adopted })
    }

    fn rating<'r>(&'r self, rated: &'r Rated) -> Rating<'r> {
        Rating {
            lake: &self.lake,
            tables: &rated.tables,
            project: &self.project,
            schema: &self.schema,
            runtime: &self.runtime,
            limits: &self.limits,
            last: rated.completion.epoch,
        }
    }

    async fn rule_of(&self, rated: &Rated, charge: &RecordBatch) -> Result<(Arc<RuleProject>, Rule), ExplainError> {
        let [name, version, reference] = ["rule", "rule_version", "reference_version"].map(|name| text_or(charge, name));
        let project = self.rating(rated).version(&name, &version, &reference).await?;
        let rule = project.rule(&name, &version).cloned().ok_or_else(|| EpochError::Version {
            rule: name,
            version,
            message: "is not what its name in the lake says".to_owned(),
        })?;
        Ok((project, rule))
    }

    /// The evaluator of the charge's window, and the charge that it gives, if it gives one of that identity.
    async fn evaluate(
        &self,
        rated: &Rated,
        project: &Arc<RuleProject>,
        rule: &Rule,
        window: &RuleWindow,
        charge: &RecordBatch,
    ) -> Result<(Evaluator, Option<RecordBatch>), ExplainError> {
        let usage = rated.changes.over(rated.adopted.over(rated.tables.usage.provider()?)).map_err(EpochError::from)?;
        let (read, windows, state) = (closure(project, rule), [window.window], &rated.completion.state);
        let rating = self.rating(rated);
        let evaluator = rating.evaluator(Arc::clone(project), usage, &read, &windows, state, &Evaluated::new()).await?;
        let charges = evaluator.evaluate(rule, &windows).await.map_err(EpochError::from)?;
        let wanted = chain::identities(&chain::output_of(charge).map_err(EpochError::arrow)?);
        let fresh = charges.first().and_then(|found| {
            let row = chain::identities(&found.charges).iter().position(|identity| Some(identity) == wanted.first())?;
            Some(found.charges.slice(row, 1))
        });
        Ok((evaluator, fresh))
    }

    /// The ids of charges that were read.
    async fn read_charges(&self, rated: &Rated, read: Vec<ReadCharges>) -> Result<Vec<ReadCharge>, EpochError> {
        let mut found = Vec::new();
        for ReadCharges { rule, earlier, rows } in read {
            let windows: BTreeSet<Window> = (0..rows.num_rows()).map(|row| window_at(&rows, row)).collect();
            let windows: Vec<Window> = windows.into_iter().collect();
            let ledger = self.rating(rated).published(&rule, &windows).await?;
            let ledger = in_force_only(&ledger).map_err(EpochError::arrow)?;
            let names = chain::identities(&chain::output_of(&ledger).map_err(EpochError::arrow)?);
            let ids: HashMap<(Window, String), String> = names
                .into_iter()
                .enumerate()
                .map(|(row, name)| ((window_at(&ledger, row), name), text_at(&ledger, "charge_id", row).unwrap_or_default()))
                .collect();
            let names = chain::identities(&chain::output_of(&rows).map_err(EpochError::arrow)?);
            for (row, name) in names.into_iter().enumerate() {
                let shown = columns(&rows, row)?;
                let text = |name: &str| shown.get(name).unwrap_or_default().to_owned();
                found.push(ReadCharge {
                    charge_id: ids.get(&(window_at(&rows, row), name)).cloned(),
                    rule: rule.clone(),
                    earlier,
                    window_start: text("window_start"),
                    item: text("item"),
                    amount: text("amount"),
                    currency: text("currency"),
                });
            }
        }
        found.sort_by(|a, b| (&a.rule, &a.window_start, &a.item, &a.charge_id).cmp(&(&b.rule, &b.window_start, &b.item, &b.charge_id)));
        Ok(found)
    }
}

async fn table(lake: &Lake, schema: &UsageSchema, name: &'static str) -> Result<LakeTable, EpochError> {
    let missing = || LakeError::File { path: name.to_owned(), message: "the table is not there".to_owned() };
    let spec = table_specs(schema).into_iter().find(|spec| spec.name == name).ok_or_else(missing)?;
    Ok(LakeTable::open(lake, spec.name, spec.partitions).await?.ok_or_else(missing)?)
}

fn window_of(rule: &Rule, charge: &RecordBatch) -> RuleWindow {
    let contract_id = if rule.options.window == WindowSpec::BillingPeriod { text(charge, "contract_id") } else { None };
    RuleWindow { window: window_at(charge, 0), contract_id }
}

fn window_at(charges: &RecordBatch, row: usize) -> Window {
    let instant =
        |name: &str| charges.column_by_name(name).map_or(0, |column| column.as_primitive::<TimestampMicrosecondType>().value(row));
    Window { start: instant("window_start"), end: instant("window_end") }
}

fn text_at(batch: &RecordBatch, name: &str, row: usize) -> Option<String> {
    let column = batch.column_by_name(name)?.as_string_opt::<i32>()?;
    column.is_valid(row).then(|| column.value(row).to_owned())
}

fn text(batch: &RecordBatch, name: &str) -> Option<String> {
    text_at(batch, name, 0)
}

fn text_or(batch: &RecordBatch, name: &str) -> String {
    text(batch, name).unwrap_or_default()
}

fn number(batch: &RecordBatch, name: &str) -> i64 {
    batch.column_by_name(name).map_or(0, |column| column.as_primitive::<Int64Type>().value(0))
}

fn with_id(rows: &RecordBatch, id: &str) -> Result<Option<RecordBatch>, ExplainError> {
    let found = (0..rows.num_rows()).find(|row| text_at(rows, "charge_id", *row).as_deref() == Some(id));
    Ok(found.map(|row| rows.slice(row, 1)))
}

/// The columns of a row that are not null, as texts.
fn columns(batch: &RecordBatch, row: usize) -> Result<Columns, EpochError> {
    let shown = with_exact_texts(&batch.slice(row, 1)).map_err(EpochError::arrow)?;
    let mut columns = Vec::new();
    for (field, column) in shown.schema().fields().iter().zip(shown.columns()).filter(|(_, column)| column.is_valid(0)) {
        columns.push((field.name().clone(), value_text(column)?));
    }
    Ok(Columns(columns))
}

/// The first value of a column as text; decimals are texts by now.
fn value_text(column: &ArrayRef) -> Result<String, EpochError> {
    match column.as_primitive_opt::<TimestampMicrosecondType>() {
        Some(instants) => Ok(ratemill_schemas::time::format_instant(instants.value(0))),
        None => {
            let formatter = ArrayFormatter::try_new(column.as_ref(), &FormatOptions::default()).map_err(EpochError::arrow)?;
            Ok(formatter.value(0).to_string())
        }
    }
}

fn chain_rows(rows: &RecordBatch) -> Result<Vec<ChainRow>, EpochError> {
    let reversed: BTreeSet<String> = (0..rows.num_rows()).filter_map(|row| text_at(rows, "reverses", row)).collect();
    (0..rows.num_rows())
        .map(|row| {
            let shown = columns(rows, row)?;
            let text = |name: &str| shown.get(name).unwrap_or_default().to_owned();
            let revisions = rows.column_by_name("revision").map(|column| column.as_primitive::<Int32Type>());
            let reverses = shown.get("reverses").map(str::to_owned);
            Ok(ChainRow {
                revision: revisions.map_or(0, |revisions| revisions.value(row)),
                charge_id: text("charge_id"),
                class: text("class"),
                cause: text("cause"),
                in_force: reverses.is_none() && !reversed.contains(&text("charge_id")),
                reverses,
                amount: text("amount"),
                quantity: shown.get("quantity").map(str::to_owned),
                posting_period: text("posting_period"),
                epoch: number(&rows.slice(row, 1), "epoch"),
            })
        })
        .collect()
}

/// Compares every column of the charge, and of a reversal what it takes back.
fn recompute(row: &RecordBatch, explained: &RecordBatch, fresh: &Option<RecordBatch>, rated: &Rated) -> Result<Recomputed, EpochError> {
    let stored = chain::output_of(explained).map_err(EpochError::arrow)?;
    let (stored_columns, fresh_columns) = (columns(&stored, 0)?, fresh.as_ref().map(|fresh| columns(fresh, 0)).transpose()?);
    let mut differences = Vec::new();
    for field in stored.schema().fields() {
        let name = field.name();
        let before = stored_columns.get(name).map(str::to_owned);
        let now = fresh_columns.as_ref().and_then(|columns| columns.get(name)).map(str::to_owned);
        if before != now {
            differences.push((name.clone(), before, now));
        }
    }
    let amount = |batch: &RecordBatch| batch.column_by_name("amount").map(|column| column.as_primitive::<Decimal128Type>().value(0));
    if text(row, "reverses").is_some() && amount(row) != amount(explained).map(|amount| -amount) {
        let taken = columns(row, 0)?.get("amount").map(str::to_owned);
        differences.push(("reversed amount".to_owned(), taken, stored_columns.get("amount").map(|amount| format!("-({amount})"))));
    }
    Ok(Recomputed {
        equal: differences.is_empty(),
        stored_amount: stored_columns.get("amount").unwrap_or_default().to_owned(),
        recomputed_amount: fresh_columns.as_ref().and_then(|columns| columns.get("amount")).map(str::to_owned),
        differences,
        usage_version: rated.completion.versions.usage,
    })
}
