//! The audit: every published window rated afresh from `usage`, with the versions that published it, against the ledger.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Decimal128Type, TimestampMicrosecondType};
use datafusion::catalog::TableProvider;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::functions_aggregate::expr_fn::sum;
use datafusion::prelude::{cast, col};
use ratemill_rules::session::{SessionLimits, runtime, session};
use ratemill_rules::{RuleProject, RuleWindow};
use ratemill_schemas::decimal::DecimalError;
use ratemill_schemas::invoicing::InvoicingCalendar;
use ratemill_schemas::time::format_instant;
use ratemill_schemas::{Decimal, UsageSchema, Window};
use serde::Serialize;

use super::books::Grouped;
use super::changes::Changes;
use super::manifest::Completion;
use super::rate::{Evaluated, Rating, closure, evaluate_apart};
use super::run::{APPLICATION, EpochError};
use super::state::EngineState;
use super::tables::{Tables, table_specs};
use super::unrated::Suspense;
use crate::adopted::Adopted;
use crate::lake::{Lake, LakeError, LakeTable};
use crate::ledger::net;

/// Windows that are rated and compared at once: bounds the charges in memory.
const WINDOWS_AT_ONCE: usize = 1024;

/// A place where the ledger is not what rating gives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The rule; of a sum over rules, none.
    pub rule: Option<String>,
    /// The window's first instant, RFC 3339; of a sum over windows, none.
    pub window_start: Option<String>,
    /// The first instant after it.
    pub window_end: Option<String>,
    /// The contract, where the window is a contract's own.
    pub contract_id: Option<String>,
    /// The month, where sums differ.
    pub billing_period: Option<String>,
    /// The customer.
    pub customer_id: Option<String>,
    /// The item.
    pub item: Option<String>,
    /// The currency.
    pub currency: Option<String>,
    /// The column that differs.
    pub column: String,
    /// What the ledger has.
    pub ledger: Option<String>,
    /// What rating gives.
    pub fresh: Option<String>,
}

impl Difference {
    fn of_window(rule: &str, rated: Option<&RuleWindow>, column: String) -> Self {
        Self {
            rule: Some(rule.to_owned()),
            window_start: rated.map(|rated| format_instant(rated.window.start)),
            window_end: rated.map(|rated| format_instant(rated.window.end)),
            contract_id: rated.and_then(|rated| rated.contract_id.clone()),
            column,
            ..Self::default()
        }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut place = Vec::new();
        place.extend(self.rule.as_ref().map(|rule| format!("rule `{rule}`")));
        place.extend(self.window_start.as_ref().zip(self.window_end.as_ref()).map(|(start, end)| format!("window {start} to {end}")));
        place.extend(self.contract_id.as_ref().map(|contract| format!("contract `{contract}`")));
        place.extend(self.billing_period.as_ref().map(|period| format!("billing period {period}")));
        place.extend(self.customer_id.as_ref().map(|customer| format!("customer `{customer}`")));
        place.extend(self.item.as_ref().map(|item| format!("item `{item}`")));
        let currency =
            self.currency.as_ref().filter(|_| self.column == "amount").map_or_else(String::new, |currency| format!(" {currency}"));
        let value =
            |value: &Option<String>| value.as_ref().map_or_else(|| "no such charge".to_owned(), |value| format!("{value}{currency}"));
        write!(f, "{}: {}: ledger {}, rated afresh {}", place.join(", "), self.column, value(&self.ledger), value(&self.fresh))
    }
}

/// What an audit found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// The last completed epoch, as of which everything was read.
    pub epoch: i64,
    /// Published windows that were rated afresh.
    pub windows: usize,
    /// Charges that this gave.
    pub charges: usize,
    /// Sums per customer, billing period and currency that were compared.
    pub sums: usize,
    /// Published windows with late usage that no epoch has rated yet: not compared.
    pub waiting: usize,
    /// Places that differ.
    pub differences: usize,
    /// The first of them.
    pub first: Option<Difference>,
}

impl AuditReport {
    fn add(&mut self, difference: Difference) {
        self.differences += 1;
        if self.first.is_none() {
            self.first = Some(difference);
        }
    }
}

/// A lake that is read for an audit; nothing is written and nobody is asked.
#[derive(Debug)]
pub struct LedgerAudit {
    pub(super) lake: Lake,
    tables: Tables,
    /// Voids and amendments.
    changes: Changes,
    adopted: Adopted,
    pub(super) project: Arc<RuleProject>,
    schema: Arc<UsageSchema>,
    runtime: Arc<RuntimeEnv>,
    limits: SessionLimits,
    calendar: InvoicingCalendar,
    pub(super) state: EngineState,
    epoch: i64,
}

/// Ledger and fresh sums by customer, billing period and currency.
type Sums = BTreeMap<(String, String, String), (Decimal, Decimal)>;

impl LedgerAudit {
    /// Opens the tables as of the last completed epoch. What somebody else committed since is seen, too.
    ///
    /// # Errors
    /// [`EpochError`]; [`EpochError::Lake`] also when a table is not there.
    pub async fn open(
        lake: Lake,
        completion: Completion,
        project: RuleProject,
        schema: Arc<UsageSchema>,
        limits: SessionLimits,
        calendar: InvoicingCalendar,
    ) -> Result<Self, EpochError> {
        let (versions, epoch) = (completion.versions, completion.epoch);
        let mut opened = Vec::new();
        let numbers = [versions.usage, versions.rejected, versions.files, versions.charges, versions.changes, versions.adopted];
        for (spec, version) in table_specs(&schema).into_iter().zip(numbers) {
            let missing = || LakeError::File { path: spec.name.to_owned(), message: "the table is not there".to_owned() };
            let table = LakeTable::open(&lake, spec.name, spec.partitions).await?.ok_or_else(missing)?;
            opened.push(table.before_number(&lake, version, APPLICATION, epoch).await?);
        }
        let Ok([usage, rejected, files, charges, changes, adopted]) = <[LakeTable; 6]>::try_from(opened) else {
            return Err(LakeError::File { path: "lake".to_owned(), message: "a table is not there".to_owned() }.into());
        };
        let runtime = runtime(&limits)?;
        let (authority, store) = lake.root_store();
        runtime.register_object_store(&authority, store);
        let (project, state) = (Arc::new(project), completion.state);
        let context = session(Arc::clone(&runtime), &limits);
        let in_force = Changes::load(&context, &changes, &schema, &state.waiting).await?;
        let files_of_usage = Adopted::load(&context, &lake, &adopted).await?;
        let tables = Tables { usage, rejected, files, charges, changes, adopted };
        Ok(Self { lake, tables, changes: in_force, adopted: files_of_usage, project, schema, runtime, limits, calendar, state, epoch })
    }

    /// The rules and the reference data.
    #[must_use]
    pub fn project(&self) -> &RuleProject {
        &self.project
    }

    /// Rates every published window and compares.
    ///
    /// # Errors
    /// [`EpochError`] when the lake cannot be read. A window that cannot be rated is a difference.
    pub async fn run(&self) -> Result<AuditReport, EpochError> {
        let mut report = AuditReport { epoch: self.epoch, ..AuditReport::default() };
        let mut sums = Sums::new();
        let mut seen: HashSet<(String, RuleWindow)> =
            self.state.pending.iter().map(|task| (task.rule.clone(), task.window.clone())).collect();
        report.waiting = seen.len();
        for ((rule, rule_version, reference_version), ranges) in self.state.finalized.published_by_version() {
            let project = match self.rating().version(&rule, &rule_version, &reference_version).await {
                Ok(project) => project,
                Err(error @ EpochError::Version { .. }) => {
                    report.add(not_rated(&rule, None, &error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let windows = windows_of(&project, &rule, &rule_version, &ranges)?;
            let windows: Vec<RuleWindow> = windows.into_iter().filter(|window| seen.insert((rule.clone(), window.clone()))).collect();
            for part in windows.chunks(WINDOWS_AT_ONCE) {
                self.compare(&project, &rule, &rule_version, part, &mut report, &mut sums).await?;
            }
        }
        self.find_strays(&seen, &mut report).await?;
        report.sums = sums.len();
        for ((customer, period, currency), (ledger, fresh)) in sums.into_iter().filter(|(_, (ledger, fresh))| ledger != fresh) {
            report.add(Difference {
                billing_period: Some(period),
                customer_id: Some(customer),
                currency: Some(currency),
                column: "amount".to_owned(),
                ledger: Some(ledger.to_string()),
                fresh: Some(fresh.to_string()),
                ..Difference::default()
            });
        }
        Ok(report)
    }

    /// Usage as it is in force.
    pub(super) fn usage(&self) -> Result<Arc<dyn TableProvider>, EpochError> {
        Ok(self.changes.over(self.adopted.over(self.tables.usage.provider()?))?)
    }

    pub(super) fn rating(&self) -> Rating<'_> {
        Rating {
            lake: &self.lake,
            tables: &self.tables,
            project: &self.project,
            schema: &self.schema,
            runtime: &self.runtime,
            limits: &self.limits,
            last: self.epoch,
        }
    }

    /// The names of the rules.
    pub fn rules(&self) -> impl Iterator<Item = &str> + Clone {
        self.project.rules.iter().map(|rule| rule.name.as_str())
    }

    /// What telling unrated usage reads.
    pub(super) fn suspense(&self) -> Suspense<'_> {
        Suspense { rating: self.rating(), changes: &self.changes, adopted: &self.adopted, state: &self.state }
    }

    /// The last completed epoch.
    pub(super) fn epoch(&self) -> i64 {
        self.epoch
    }

    fn arrow(&self, source: arrow::error::ArrowError) -> EpochError {
        EpochError::Arrow { epoch: self.epoch, source }
    }

    /// Rates these windows of one version and compares each with its ledger rows.
    async fn compare(
        &self,
        project: &Arc<RuleProject>,
        name: &str,
        version: &str,
        rated: &[RuleWindow],
        report: &mut AuditReport,
        sums: &mut Sums,
    ) -> Result<(), EpochError> {
        let Some(rule) = project.rule(name, version) else {
            report.add(not_rated(name, rated.first(), &"is not what its name in the lake says"));
            return Ok(());
        };
        let windows: Vec<Window> = rated.iter().map(|rated| rated.window).collect::<BTreeSet<Window>>().into_iter().collect();
        let read = closure(project, rule);
        let usage = self.usage()?;
        let evaluator = self.rating().evaluator(Arc::clone(project), usage, &read, &windows, &self.state, &Evaluated::new()).await?;
        let (fresh, errors) = evaluate_apart(&evaluator, rule, &windows).await;
        for (window, error) in errors {
            report.add(not_rated(name, rated.iter().find(|rated| rated.window == window), &error));
        }
        let of_contracts = rated.iter().all(|rated| rated.contract_id.is_some());
        let ledger = Grouped::by_window(self.rating().published(name, &windows).await?, of_contracts);
        let fresh: HashMap<Window, Grouped> =
            fresh.iter().map(|(window, charges)| (*window, Grouped::of_window(charges, *window, of_contracts))).collect();
        for rated in rated {
            let Some(charges) = fresh.get(&rated.window) else { continue };
            let fresh = charges.rows_of(rated).map_err(|source| self.arrow(source))?;
            let before = ledger.rows_of(rated).map_err(|source| self.arrow(source))?;
            report.windows += 1;
            report.charges += fresh.num_rows();
            for found in net::compare(&before, &fresh).map_err(|source| self.arrow(source))? {
                report.add(Difference {
                    customer_id: Some(found.customer_id),
                    item: Some(found.item),
                    currency: Some(found.currency),
                    ledger: found.ledger,
                    fresh: found.fresh,
                    ..Difference::of_window(name, Some(rated), found.column)
                });
            }
            let period = self.calendar.billing_period(rated.window)?;
            add_sums(sums, &fresh, Some(&period), |sums| &mut sums.1).map_err(|error| self.overflow(&error))?;
            add_sums(sums, &before, None, |sums| &mut sums.0).map_err(|error| self.overflow(&error))?;
        }
        Ok(())
    }

    fn overflow(&self, error: &DecimalError) -> EpochError {
        EpochError::Books { epoch: self.epoch, message: format!("sum per customer and period: {error}") }
    }

    /// Ledger rows of windows that were never published, or whose charges were taken back, must come to nothing.
    async fn find_strays(&self, seen: &HashSet<(String, RuleWindow)>, report: &mut AuditReport) -> Result<(), EpochError> {
        let keys = ["rule", "contract_id", "currency", "window_start", "window_end", "customer_id", "item"];
        let group = keys.iter().map(|name| col(*name)).collect();
        let charges = session(Arc::clone(&self.runtime), &self.limits).read_table(self.tables.charges.provider()?)?;
        let decimal = ratemill_schemas::decimal::DECIMAL;
        let found = charges.aggregate(group, vec![cast(sum(col("amount")), decimal).alias("net")])?.collect().await?;
        for batch in found {
            let text = |index: usize, row: usize| {
                let column = batch.column(index).as_string::<i32>();
                column.is_valid(row).then(|| column.value(row).to_owned())
            };
            let starts = batch.column(3).as_primitive::<TimestampMicrosecondType>();
            let ends = batch.column(4).as_primitive::<TimestampMicrosecondType>();
            let nets = batch.column(7).as_primitive::<Decimal128Type>();
            for row in (0..batch.num_rows()).filter(|row| nets.value(*row) != 0) {
                let rule = text(0, row).unwrap_or_default();
                let window = Window { start: starts.value(row), end: ends.value(row) };
                let own = RuleWindow { window, contract_id: text(1, row) };
                let known = |contract_id: Option<String>| seen.contains(&(rule.clone(), RuleWindow { window, contract_id }));
                if known(None) || known(own.contract_id.clone()) {
                    continue;
                }
                report.add(Difference {
                    customer_id: text(5, row),
                    item: text(6, row),
                    currency: text(2, row),
                    ledger: Decimal::from_raw(nets.value(row)).ok().map(|net| net.to_string()),
                    ..Difference::of_window(&rule, Some(&own), "amount".to_owned())
                });
            }
        }
        Ok(())
    }
}

/// The windows of ranges that one version of a rule published.
pub(super) fn windows_of(
    project: &RuleProject,
    rule: &str,
    rule_version: &str,
    ranges: &[RuleWindow],
) -> Result<BTreeSet<RuleWindow>, EpochError> {
    let mut windows = BTreeSet::new();
    for range in ranges {
        let between = match (&range.contract_id, project.rule(rule, rule_version)) {
            (None, Some(version)) => version.rated_between(&project.reference, range.window.start, range.window.end)?,
            _ => vec![range.clone()],
        };
        let inside = |rated: &RuleWindow| range.window.start <= rated.window.start && rated.window.end <= range.window.end;
        windows.extend(between.into_iter().filter(inside));
    }
    Ok(windows)
}

fn not_rated(rule: &str, window: Option<&RuleWindow>, error: &dyn std::fmt::Display) -> Difference {
    Difference {
        ledger: Some("published".to_owned()),
        fresh: Some(format!("failed ({error})")),
        ..Difference::of_window(rule, window, "charges".to_owned())
    }
}

/// Adds amounts to the sums of their customers: of `period`, or of that which each row names.
fn add_sums(
    sums: &mut Sums,
    charges: &RecordBatch,
    period: Option<&str>,
    side: impl Fn(&mut (Decimal, Decimal)) -> &mut Decimal,
) -> Result<(), DecimalError> {
    let text = |name: &str| charges.column_by_name(name).map(|column| column.as_string::<i32>());
    let (Some(customers), Some(currencies), Some(amounts)) = (text("customer_id"), text("currency"), charges.column_by_name("amount"))
    else {
        return Ok(());
    };
    let (periods, amounts) = (text("billing_period"), amounts.as_primitive::<Decimal128Type>());
    for row in 0..charges.num_rows() {
        let period = period.or_else(|| periods.map(|periods| periods.value(row))).unwrap_or_default();
        let key = (customers.value(row).to_owned(), period.to_owned(), currencies.value(row).to_owned());
        let sum = side(sums.entry(key).or_default());
        *sum = sum.plus(Decimal::from_raw(amounts.value(row))?)?;
    }
    Ok(())
}
