//! Whose data a query fails on: who is left in and out until one customer, or one subject, is found that fails alone.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::{Column, DataFusionError, JoinType, Result, TableReference};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::{LogicalPlanBuilder, lit};
use sqlparser::ast::{Expr, Query, Select, SelectItem, Visit, Visitor};
use tokio::time::Instant;

use super::root_message;
use super::single::Run;
use crate::inputs::Input;
use crate::tree::{folded, tables_in};

/// How long it is looked for who is to blame. Tests run on busy machines.
const SEARCH_MAX: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 5 });

/// Keys that are tried together with one that is to blame although others fail, too.
const WITNESSES: usize = 3;

/// Who an error is about, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blame {
    /// The contract whose billing period the window is.
    pub contract: Option<String>,
    /// The customer.
    pub customer: Option<String>,
    /// The subject whose usage it is.
    pub subject: Option<String>,
}

impl std::fmt::Display for Blame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        [("contract", &self.contract), ("customer", &self.customer), ("subject", &self.subject)]
            .into_iter()
            .try_for_each(|(what, name)| name.as_ref().map_or(Ok(()), |name| write!(f, ", {what} `{name}`")))
    }
}

/// What a run leaves out of the data.
#[derive(Debug, Clone, Default)]
pub(super) struct Without {
    customers: HashSet<String>,
    /// Contracts and subjects of these customers alone.
    contracts: HashSet<String>,
    subjects: HashSet<String>,
    /// Usage of all other subjects is left out, too.
    subjects_kept: Option<HashSet<String>>,
}

/// How a table says whose its rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    Customer(String),
    Contract,
    Subject,
}

/// The customers of a window, and what is theirs.
#[derive(Debug, Default)]
pub(super) struct Customers {
    /// Columns from which the query takes `customer_id`.
    columns: Vec<String>,
    all: BTreeSet<String>,
    of_contract: HashMap<String, HashSet<String>>,
    of_subject: HashMap<String, HashSet<String>>,
}

impl Customers {
    /// Those in the tables that `query` names.
    pub(super) fn of(run: &Run<'_>, query: &Query) -> Result<Self> {
        let mut taken = TakenFrom(Vec::new());
        let _ = query.visit(&mut taken);
        taken.0.push("customer_id".to_owned());
        let mut customers = Self { columns: taken.0, ..Self::default() };
        let named = tables_in(query);
        for table in run.evaluator.project.reference.tables().filter(|table| named.contains(table.name())) {
            customers.read(&run.reference_rows(table)?)?;
        }
        for (input, _) in run.rule.inputs.iter() {
            if let (Input::Upstream(_) | Input::Earlier(_), Some(charges)) = (input, run.upstream.get(input)) {
                customers.read(&run.charges(charges, matches!(input, Input::Earlier(_)))?)?;
            }
        }
        Ok(customers)
    }

    fn read(&mut self, rows: &RecordBatch) -> Result<()> {
        let Some(Owner::Customer(column)) = self.owner(rows) else { return Ok(()) };
        let Some(customers) = texts(rows, &column)? else { return Ok(()) };
        let owned = [(texts(rows, "contract_id")?, &mut self.of_contract), (texts(rows, "subject")?, &mut self.of_subject)];
        for (keys, owners) in owned {
            for (key, customer) in keys.iter().flatten().zip(&customers).filter_map(|(key, customer)| key.zip(customer)) {
                if !owners.get(key).is_some_and(|owners| owners.contains(customer)) {
                    owners.entry(key.to_owned()).or_default().insert(customer.to_owned());
                }
            }
        }
        self.all.extend(customers.iter().flatten().map(str::to_owned));
        Ok(())
    }

    fn owner(&self, rows: &RecordBatch) -> Option<Owner> {
        let has = |name: &str| rows.column_by_name(name).is_some();
        let customer = self.columns.iter().find(|name| has(name)).cloned().map(Owner::Customer);
        customer.or_else(|| has("contract_id").then_some(Owner::Contract)).or_else(|| has("subject").then_some(Owner::Subject))
    }

    /// Everything but what is of these customers.
    fn only(&self, kept: &[&str]) -> Without {
        let kept: HashSet<&str> = kept.iter().copied().collect();
        let none_kept = |owners: &HashSet<String>| !owners.iter().any(|owner| kept.contains(owner.as_str()));
        let left_out = |owned: &HashMap<String, HashSet<String>>| {
            owned.iter().filter(|(_, owners)| none_kept(owners)).map(|(key, _)| key.clone()).collect()
        };
        Without {
            customers: self.all.iter().filter(|customer| !kept.contains(customer.as_str())).cloned().collect(),
            contracts: left_out(&self.of_contract),
            subjects: left_out(&self.of_subject),
            subjects_kept: None,
        }
    }

    /// The one customer whom a subject ever belongs to.
    pub(super) fn owner_of(&self, subject: &str) -> Option<&str> {
        let owners = self.of_subject.get(subject)?;
        owners.iter().next().filter(|_| owners.len() == 1).map(String::as_str)
    }

    /// The rows that are left.
    fn filter(&self, rows: RecordBatch, without: &Without) -> Result<RecordBatch> {
        let (column, left_out) = match self.owner(&rows) {
            Some(Owner::Customer(column)) => (column, &without.customers),
            Some(Owner::Contract) => ("contract_id".to_owned(), &without.contracts),
            Some(Owner::Subject) => ("subject".to_owned(), &without.subjects),
            None => return Ok(rows),
        };
        let Some(keys) = texts(&rows, &column)?.filter(|_| !left_out.is_empty()) else { return Ok(rows) };
        let mask = keys.iter().map(|key| Some(key.is_none_or(|key| !left_out.contains(key)))).collect();
        Ok(filter_record_batch(&rows, &mask)?)
    }
}

/// A column as texts.
fn texts(rows: &RecordBatch, column: &str) -> Result<Option<StringArray>> {
    let Some(column) = rows.column_by_name(column).filter(|column| !column.data_type().is_nested()) else { return Ok(None) };
    Ok(Some(cast(column, &DataType::Utf8)?.as_string::<i32>().clone()))
}

/// The columns that a query calls `customer_id`.
struct TakenFrom(Vec<String>);

impl Visitor for TakenFrom {
    type Break = ();

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        for item in &select.projection {
            let SelectItem::ExprWithAlias { expr, alias } = item else { continue };
            let column = match expr {
                Expr::Identifier(column) => Some(column),
                Expr::CompoundIdentifier(parts) => parts.last(),
                _ => None,
            };
            self.0.extend(column.filter(|_| folded(alias) == "customer_id").map(folded));
        }
        ControlFlow::Continue(())
    }
}

/// What a run leaves out, as the tables of a session need it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) customers: &'a Customers,
    pub(super) without: &'a Without,
}

impl Part<'_> {
    /// Rows of a table in memory.
    pub(super) fn rows(self, rows: RecordBatch) -> Result<RecordBatch> {
        self.customers.filter(rows, self.without)
    }

    /// Rows of usage.
    pub(super) fn usage(self, mut usage: LogicalPlanBuilder) -> Result<LogicalPlanBuilder> {
        if !self.without.subjects.is_empty() {
            usage = joined(usage, JoinType::LeftAnti, &self.without.subjects)?;
        }
        match &self.without.subjects_kept {
            Some(kept) if kept.is_empty() => usage.filter(lit(false)),
            Some(kept) => joined(usage, JoinType::LeftSemi, kept),
            None => Ok(usage),
        }
    }
}

fn joined(usage: LogicalPlanBuilder, kind: JoinType, subjects: &HashSet<String>) -> Result<LogicalPlanBuilder> {
    let schema = Arc::new(Schema::new(vec![Field::new("subject", DataType::Utf8, false)]));
    let rows = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(StringArray::from_iter_values(subjects))])?;
    let provider = Arc::new(MemTable::try_new(schema, vec![vec![rows]])?);
    let listed = LogicalPlanBuilder::scan(TableReference::bare("__listed"), provider_as_source(provider), None)?.build()?;
    let key = |table: &str| vec![Column::new(Some(table), "subject")];
    usage.join(listed, kind, (key("usage"), key("__listed")), None)
}

/// Finds who is to blame for an error of `query`, and what the query says of them alone.
pub(super) async fn blame(run: &Run<'_>, query: &Query, error: &DataFusionError) -> (Blame, String) {
    let mut found = (Blame { contract: run.target.contract.clone(), ..Blame::default() }, root_message(error));
    if is_of_data(error)
        && let Ok(customers) = Customers::of(run, query)
    {
        let end = Instant::now() + SEARCH_MAX;
        let end = run.evaluator.deadline.map_or(end, |deadline| deadline.min(end));
        let search = Search { run, query, customers: &customers, kind: kind(&found.1) };
        // Who is found by then is named.
        let _ = tokio::time::timeout_at(end, search.run(&mut found)).await;
    }
    found
}

/// Whether the data can be to blame: memory, files and stores are not.
fn is_of_data(error: &DataFusionError) -> bool {
    let root = error.find_root();
    !matches!(root, DataFusionError::ResourcesExhausted(_) | DataFusionError::IoError(_) | DataFusionError::ParquetError(_))
        && !root.strip_backtrace().starts_with("Object Store error")
}

/// A message without the values in it, which differ from row to row.
fn kind(message: &str) -> String {
    let words = message.split('`').step_by(2);
    words.flat_map(str::chars).filter(|letter| !letter.is_numeric() && !matches!(letter, '-' | '.')).collect()
}

struct Search<'a> {
    run: &'a Run<'a>,
    query: &'a Query,
    customers: &'a Customers,
    kind: String,
}

/// A key that fails where those before it, or after it, do not.
struct Suspect<'k> {
    key: &'k str,
    /// The keys that do not fail without it.
    sound: &'k [String],
    message: String,
}

impl Search<'_> {
    async fn run(&self, found: &mut (Blame, String)) {
        let customers: Vec<String> = self.customers.all.iter().cloned().collect();
        let mut without = Without::default();
        if let Some((customer, message)) = self.culprit(&customers, &|kept| self.customers.only(kept)).await {
            without = self.customers.only(&[&customer]);
            found.0.customer = Some(customer);
            found.1 = message;
        }
        let Ok(subjects) = self.run.subjects(Some(self.part(&without))).await else { return };
        let only = |kept: &[&str]| {
            let kept = kept.iter().map(|subject| (*subject).to_owned()).collect();
            Without { subjects_kept: Some(kept), ..without.clone() }
        };
        if let Some((subject, message)) = self.culprit(&subjects, &only).await {
            found.0.subject = Some(subject);
            found.1 = message;
        }
    }

    fn part<'a>(&'a self, without: &'a Without) -> Part<'a> {
        Part { customers: self.customers, without }
    }

    /// What the query says when it fails as it did; `None` when it does not fail, or for another reason.
    async fn fails(&self, without: Without) -> Option<String> {
        let error = self.run.query(self.query, Some(self.part(&without))).await.err()?;
        Some(root_message(&error)).filter(|message| kind(message) == self.kind)
    }

    /// The key on which the query fails, both alone and among others that do not fail.
    async fn culprit(&self, keys: &[String], only: &(dyn Fn(&[&str]) -> Without + Send + Sync)) -> Option<(String, String)> {
        if keys.is_empty() || self.fails(only(&[])).await.is_some() {
            return None;
        }
        let mut suspects: Vec<Suspect<'_>> = Vec::new();
        for forward in [true, false] {
            let Some(suspect) = self.suspect(keys, forward, only).await else { continue };
            let others: Vec<&str> = keys.iter().map(String::as_str).filter(|key| *key != suspect.key).collect();
            if others.is_empty() || self.fails(only(&others)).await.is_none() {
                return Some((suspect.key.to_owned(), suspect.message));
            }
            suspects.push(suspect);
        }
        // Several fail; or one is found only for being alone, and that shows among others.
        let sound = suspects.iter().map(|suspect| suspect.sound).max_by_key(|sound| sound.len())?;
        for suspect in &suspects {
            let witnesses: Vec<Vec<&str>> = if sound.is_empty() {
                let others = keys.iter().rev().map(String::as_str).filter(|key| *key != suspect.key);
                others.step_by(keys.len().div_ceil(WITNESSES)).map(|key| vec![key]).collect()
            } else {
                vec![sound.iter().map(String::as_str).collect()]
            };
            let mut confirmed = true;
            for mut together in witnesses {
                together.push(suspect.key);
                confirmed = confirmed && self.fails(only(&together)).await.is_some();
            }
            if confirmed {
                return Some((suspect.key.to_owned(), suspect.message.clone()));
            }
        }
        None
    }

    /// Halves the keys to the first, or last, with which they fail; `None` when it does not fail alone.
    async fn suspect<'k>(
        &self,
        keys: &'k [String],
        forward: bool,
        only: &(dyn Fn(&[&str]) -> Without + Send + Sync),
    ) -> Option<Suspect<'k>> {
        let some = |count: usize| if forward { &keys[..count] } else { &keys[keys.len() - count..] };
        let (mut sound, mut failing) = (0, keys.len());
        while failing - sound > 1 {
            let middle = sound.midpoint(failing);
            let kept: Vec<&str> = some(middle).iter().map(String::as_str).collect();
            if self.fails(only(&kept)).await.is_some() {
                failing = middle;
            } else {
                sound = middle;
            }
        }
        let key = if forward { &keys[failing - 1] } else { &keys[keys.len() - failing] };
        let message = self.fails(only(&[key.as_str()])).await?;
        Some(Suspect { key, sound: some(sound), message })
    }
}
