//! The ways of usage through a lifted plan, each from a scan of usage up to where events are looked at together.
//!
//! A way is the part of the plan that makes rows of single events: projections, conditions, joins, one branch of each union.
//! It is made again with the number of the event in every row, cut off after each step that can lose an event.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::Field;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DataFusionError, JoinType, ScalarValue, TableReference};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{
    EmptyRelation, Expr, Filter, Join, LogicalPlan, LogicalPlanBuilder, Projection, SubqueryAlias, Union, Unnest,
};
use ratemill_schemas::time::format_instant;
use ratemill_schemas::{Decimal, WindowSpec};
use serde::Serialize;

use super::NotAnalysed;
use crate::evaluate::LiftedSources;
use crate::inputs::Input;
use crate::lift::Sources;
use crate::rule::Rule;

/// The column with the number of the event.
pub(super) const EVENT: &str = "__event";
/// What usage is called in the plan that is walked through.
const EVENTS: &str = "__events";
/// What is below the first node of a way, in whose place events are put.
const FIRST: &str = "__first";

/// What loses usage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// A join finds no row.
    Join {
        /// The tables that are joined.
        table: String,
        /// What the rows that fit by their keys do not fulfil; `None` where none fits.
        #[serde(skip_serializing_if = "Option::is_none")]
        condition: Option<String>,
    },
    /// NOT EXISTS or NOT IN finds a row.
    Excluded {
        /// The tables that are asked.
        table: String,
    },
    /// A condition is not true.
    Predicate {
        /// The condition.
        condition: String,
    },
    /// No rule claims it.
    NoRule,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join { table, condition: None } => write!(f, "no row of {table}"),
            Self::Join { table, condition: Some(condition) } => write!(f, "no row of {table} with {condition}"),
            Self::Excluded { table } => write!(f, "excluded by a row of {table}"),
            Self::Predicate { condition } => write!(f, "not {condition}"),
            Self::NoRule => f.write_str("no rule"),
        }
    }
}

/// One way of usage.
#[derive(Debug)]
pub(super) struct Path {
    /// The conditions on usage alone, over columns of usage; `None`: all is claimed.
    pub(super) claim: Option<Expr>,
    /// What the column with the number of the window is called in the first node.
    pub(super) window: String,
    /// What can lose events, in order.
    pub(super) steps: Vec<Step>,
    /// Whether charges are joined on the way.
    pub(super) reads_charges: bool,
}

/// A step that can lose events.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) reason: Reason,
    /// The numbers of the events that are past it, maybe several times.
    plan: LogicalPlan,
}

impl Step {
    /// The numbers of those of these events that are past the step.
    pub(super) fn over(&self, source: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
        let source = Arc::new(source);
        let plan = self.plan.clone().transform_up(|node| match &node {
            LogicalPlan::SubqueryAlias(alias) if alias.alias.table() == FIRST => {
                Ok(Transformed::yes(aliased(source.as_ref().clone(), TableReference::bare(FIRST))?))
            }
            _ => Ok(Transformed::no(node)),
        });
        plan.data()
    }
}

/// The tables of a lifted rule, usage being marked.
pub(super) struct PathSources<'a> {
    pub(super) inner: &'a LiftedSources<'a>,
}

impl Sources for PathSources<'_> {
    fn is_windowed(&self, table: &TableReference) -> bool {
        self.inner.is_windowed(table)
    }

    fn windowed(&self, table: &TableReference, window: &str) -> Result<LogicalPlan, DataFusionError> {
        let plan = self.inner.windowed(table, window)?;
        if *table == Input::Usage.table() { aliased(plan, TableReference::bare(EVENTS)) } else { Ok(plan) }
    }

    fn windows(&self, window: &str) -> Result<LogicalPlan, DataFusionError> {
        self.inner.windows(window)
    }
}

fn aliased(plan: LogicalPlan, name: TableReference) -> Result<LogicalPlan, DataFusionError> {
    Ok(LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(plan), name)?))
}

/// The ways of usage through the plan of a rule over [`PathSources`].
pub(super) fn paths(plan: &LogicalPlan, rule: &Rule) -> Result<Vec<Path>, NotAnalysed> {
    let charges = rule.upstream.iter().cloned().chain(rule.earlier.iter().map(|name| format!("earlier.{name}")));
    let by_contract = rule.options.window == WindowSpec::BillingPeriod;
    let mut walker = Walker { by_contract, charges: charges.collect(), paths: Vec::new() };
    let walks = walker.walk(plan)?;
    walker.end(walks)?;
    Ok(walker.paths)
}

/// A way as far as it has been walked.
struct Walk {
    plan: LogicalPlan,
    event: Column,
    /// Columns of the plan that are made of columns of usage alone.
    of_usage: HashMap<Column, Expr>,
    claims: Vec<Expr>,
    window: String,
    steps: Vec<Step>,
    /// A cross join that may have lost events; what comes next tells.
    crossed: Option<Reason>,
    reads_charges: bool,
}

impl Walk {
    fn step(&mut self, reason: Reason, plan: &LogicalPlan) -> Result<(), DataFusionError> {
        let number = Expr::Column(self.event.clone()).alias(EVENT);
        let plan = LogicalPlan::Projection(Projection::try_new(vec![number], Arc::new(plan.clone()))?);
        self.steps.push(Step { reason, plan });
        self.crossed = None;
        Ok(())
    }

    /// The expression over columns of usage, where it is of them alone.
    fn over_usage(&self, expr: &Expr) -> Option<Expr> {
        let mut is_whole = true;
        let over = expr.clone().transform_down(|node| {
            Ok(match &node {
                Expr::Column(column) => match self.of_usage.get(column) {
                    Some(known) => Transformed::new(known.clone(), true, TreeNodeRecursion::Jump),
                    None => {
                        is_whole = false;
                        Transformed::no(node)
                    }
                },
                Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) => {
                    is_whole = false;
                    Transformed::no(node)
                }
                _ => Transformed::no(node),
            })
        });
        over.data().ok().filter(|_| is_whole)
    }

    /// Splits a condition: what is of usage alone is claimed by it, and the rest is returned.
    fn claim(&mut self, condition: Expr) -> Vec<Expr> {
        let mut rest = Vec::new();
        for part in split_conjunction_owned(condition) {
            match self.over_usage(&part) {
                Some(claim) if !part.column_refs().is_empty() => self.claims.push(claim),
                _ => rest.push(part),
            }
        }
        rest
    }
}

struct Walker {
    by_contract: bool,
    charges: Vec<String>,
    paths: Vec<Path>,
}

impl Walker {
    /// The ways that come out of a plan.
    fn walk(&mut self, plan: &LogicalPlan) -> Result<Vec<Walk>, NotAnalysed> {
        match plan {
            LogicalPlan::SubqueryAlias(alias) if alias.alias.table() == EVENTS => Ok(vec![self.first(alias)?]),
            LogicalPlan::Join(join) => self.join(join),
            LogicalPlan::Union(union) => self.union(union),
            LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) | LogicalPlan::Window(_) => {
                for input in plan.inputs() {
                    let walks = self.walk(input)?;
                    self.end(walks)?;
                }
                Ok(Vec::new())
            }
            _ => {
                let mut walks = Vec::new();
                for input in plan.inputs() {
                    for walk in self.walk(input)? {
                        walks.push(through(plan, walk)?);
                    }
                }
                Ok(walks)
            }
        }
    }

    /// The end of ways: events that come so far are rated.
    fn end(&mut self, walks: Vec<Walk>) -> Result<(), NotAnalysed> {
        for mut walk in walks {
            if let Some(reason) = walk.crossed.take() {
                let plan = walk.plan.clone();
                walk.step(reason, &plan)?;
            }
            let Walk { claims, window, steps, reads_charges, .. } = walk;
            self.paths.push(Path { claim: conjunction(claims), window, steps, reads_charges });
        }
        Ok(())
    }

    fn first(&self, alias: &SubqueryAlias) -> Result<Walk, NotAnalysed> {
        let mut fields: Vec<(Option<TableReference>, Arc<Field>)> =
            alias.input.schema().iter().map(|(_, field)| (None, Arc::clone(field))).collect();
        let window = fields.last().map(|(_, field)| field.name().clone()).unwrap_or_default();
        let event = Field::new(EVENT, arrow::datatypes::DataType::Int64, true);
        fields.push((None, Arc::new(event)));
        let schema = Arc::new(DFSchema::new_with_metadata(fields, HashMap::new())?);
        let nothing = LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema });
        let plan = aliased(aliased(nothing, TableReference::bare(FIRST))?, TableReference::bare(EVENTS))?;
        let of_first = |name: &str| Column::new(Some(EVENTS), name);
        let names = plan.schema().fields().iter().map(|field| field.name()).filter(|name| **name != window && *name != EVENT);
        let of_usage = names.map(|name| (of_first(name), Expr::Column(Column::from_name(name)))).collect();
        let mut walk = Walk {
            event: of_first(EVENT),
            of_usage,
            claims: Vec::new(),
            steps: Vec::new(),
            crossed: None,
            reads_charges: false,
            window: window.clone(),
            plan,
        };
        if self.by_contract {
            // Without a contract there is no billing period.
            let has_window = Expr::Column(of_first(&window)).is_not_null();
            walk.plan = LogicalPlan::Filter(Filter::try_new(has_window, Arc::new(walk.plan))?);
            let plan = walk.plan.clone();
            walk.step(Reason::Join { table: "contracts".to_owned(), condition: None }, &plan)?;
        }
        Ok(walk)
    }

    fn union(&mut self, union: &Union) -> Result<Vec<Walk>, NotAnalysed> {
        let mut walks = Vec::new();
        for input in &union.inputs {
            for mut walk in self.walk(input)? {
                let mut columns = Vec::new();
                let mut of_usage = HashMap::new();
                for (before, (qualifier, field)) in input.schema().columns().into_iter().zip(union.schema.iter()) {
                    if let Some(known) = walk.of_usage.get(&before) {
                        of_usage.insert(Column::new(qualifier.cloned(), field.name()), known.clone());
                    }
                    columns.push(Expr::Column(before).alias_qualified(qualifier.cloned(), field.name()));
                }
                columns.push(Expr::Column(walk.event.clone()));
                walk.plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(walk.plan))?);
                walk.of_usage = of_usage;
                walks.push(walk);
            }
        }
        Ok(walks)
    }

    fn join(&mut self, join: &Join) -> Result<Vec<Walk>, NotAnalysed> {
        use JoinType::{Full, Inner, Left, LeftAnti, LeftMark, LeftSemi, Right, RightAnti, RightMark, RightSemi};
        let mut walks = Vec::new();
        for (input, other, of_left) in [(&join.left, &join.right, true), (&join.right, &join.left, false)] {
            for walk in self.walk(input)? {
                // Of an outer join, rows of the other side alone are of no event.
                let walk = match (join.join_type, of_left) {
                    (LeftSemi | LeftAnti | LeftMark, false) | (RightSemi | RightAnti | RightMark, true) => continue,
                    (Left | Full, true) => keeping(join, Left, walk, of_left)?,
                    (Right | Full, false) => keeping(join, Right, walk, of_left)?,
                    (LeftMark, true) | (RightMark, false) => keeping(join, join.join_type, walk, of_left)?,
                    (Inner | Right, true) | (Inner | Left, false) => self.losing(join, Inner, walk, (other.as_ref(), of_left))?,
                    (kind @ (LeftSemi | LeftAnti), true) | (kind @ (RightSemi | RightAnti), false) => {
                        self.losing(join, kind, walk, (other.as_ref(), of_left))?
                    }
                };
                walks.push(walk);
            }
        }
        Ok(walks)
    }

    /// A join that drops the events for which it finds no row, or one.
    fn losing(&self, join: &Join, kind: JoinType, mut walk: Walk, (other, of_left): (&LogicalPlan, bool)) -> Result<Walk, NotAnalysed> {
        use JoinType::{LeftAnti, LeftSemi, RightAnti, RightSemi};
        let tables = tables(other);
        walk.reads_charges |= tables.iter().any(|table| self.charges.contains(table));
        let is_window_alone = tables.len() == 1 && tables.contains("billing_window");
        let table = named(&tables);
        if matches!(kind, LeftAnti | RightAnti) {
            walk.plan = joined(join, kind, &walk.plan, of_left, join.filter.clone())?;
            let plan = walk.plan.clone();
            walk.step(Reason::Excluded { table }, &plan)?;
            return Ok(walk);
        }
        let filter = join.filter.clone().and_then(|filter| conjunction(walk.claim(filter)));
        if is_window_alone || join.on.is_empty() {
            walk.plan = joined(join, kind, &walk.plan, of_left, filter.clone())?;
            let plan = walk.plan.clone();
            match filter {
                Some(filter) if is_window_alone => walk.step(Reason::Predicate { condition: text(&filter) }, &plan)?,
                Some(filter) => walk.step(Reason::Join { table, condition: Some(text(&filter)) }, &plan)?,
                None if is_window_alone => {}
                None => walk.crossed = Some(Reason::Join { table, condition: None }),
            }
            return Ok(walk);
        }
        if filter.is_some() {
            let by_keys = joined(join, if of_left { LeftSemi } else { RightSemi }, &walk.plan, of_left, None)?;
            walk.step(Reason::Join { table: table.clone(), condition: None }, &by_keys)?;
        }
        walk.plan = joined(join, kind, &walk.plan, of_left, filter.clone())?;
        let plan = walk.plan.clone();
        walk.step(Reason::Join { table, condition: filter.as_ref().map(text) }, &plan)?;
        Ok(walk)
    }
}

/// A join that keeps every event.
fn keeping(join: &Join, kind: JoinType, mut walk: Walk, of_left: bool) -> Result<Walk, NotAnalysed> {
    walk.plan = joined(join, kind, &walk.plan, of_left, join.filter.clone())?;
    Ok(walk)
}

/// The same join with another plan on one side.
fn joined(join: &Join, kind: JoinType, plan: &LogicalPlan, of_left: bool, filter: Option<Expr>) -> Result<LogicalPlan, DataFusionError> {
    let plan = Arc::new(plan.clone());
    let (left, right) = if of_left { (plan, Arc::clone(&join.right)) } else { (Arc::clone(&join.left), plan) };
    let null_aware = join.null_aware && kind == join.join_type;
    Ok(LogicalPlan::Join(Join::try_new(left, right, join.on.clone(), filter, kind, join.join_constraint, join.null_equality, null_aware)?))
}

/// A node with one input.
fn through(node: &LogicalPlan, mut walk: Walk) -> Result<Walk, NotAnalysed> {
    match node {
        LogicalPlan::Filter(filter) => condition(filter, walk),
        LogicalPlan::Projection(projection) => {
            let mut columns = Vec::with_capacity(projection.expr.len() + 1);
            let mut of_usage = HashMap::new();
            for (expr, (qualifier, field)) in projection.expr.iter().zip(projection.schema.iter()) {
                let column = Column::new(qualifier.cloned(), field.name());
                if let Some(known) = walk.over_usage(&expr.clone().unalias()) {
                    of_usage.insert(column.clone(), known);
                }
                let has_name = expr.qualified_name() == (qualifier.cloned(), field.name().clone());
                columns.push(if has_name { expr.clone() } else { expr.clone().alias_qualified(qualifier.cloned(), field.name()) });
            }
            columns.push(Expr::Column(walk.event.clone()));
            walk.plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(walk.plan))?);
            walk.of_usage = of_usage;
            Ok(walk)
        }
        LogicalPlan::SubqueryAlias(alias) => {
            // Only what the alias had: two tables below may have columns of one name.
            let mut columns: Vec<Expr> = alias.input.schema().columns().into_iter().map(Expr::Column).collect();
            columns.push(Expr::Column(walk.event.clone()));
            let plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(walk.plan))?);
            let requalified = |name: String| Column::new(Some(alias.alias.clone()), name);
            let of_usage = std::mem::take(&mut walk.of_usage);
            let is_kept = |column: &Column| alias.input.schema().has_column(column);
            let kept = of_usage.into_iter().filter(|(column, _)| is_kept(column));
            walk.of_usage = kept.map(|(column, known)| (requalified(column.name), known)).collect();
            walk.event = requalified(walk.event.name);
            walk.plan = aliased(plan, alias.alias.clone())?;
            Ok(walk)
        }
        LogicalPlan::Unnest(unnest) => unnested(unnest, walk),
        LogicalPlan::Sort(sort) if sort.fetch.is_none() => Ok(walk),
        other => {
            let what = other.display().to_string();
            let what = what.split([':', ' ']).next().unwrap_or("a part of the query").to_owned();
            Err(NotAnalysed::because(format!("it is not known which events come through {what}")))
        }
    }
}

fn condition(filter: &Filter, mut walk: Walk) -> Result<Walk, NotAnalysed> {
    let rest = walk.claim(filter.predicate.clone());
    // After a cross join one condition at a time would cross the tables.
    let parts = if walk.crossed.is_some() { conjunction(rest).into_iter().collect() } else { rest };
    for part in parts {
        let reason = Reason::Predicate { condition: text(&part) };
        walk.plan = LogicalPlan::Filter(Filter::try_new(part, Arc::new(walk.plan))?);
        let plan = walk.plan.clone();
        walk.step(reason, &plan)?;
    }
    Ok(walk)
}

fn unnested(unnest: &Unnest, mut walk: Walk) -> Result<Walk, NotAnalysed> {
    let names: Vec<&str> = unnest.exec_columns.iter().map(|column| column.name.as_str()).collect();
    let reason = Reason::Predicate { condition: format!("unnest({})", names.join(", ")) };
    walk.plan =
        LogicalPlanBuilder::from(walk.plan).unnest_columns_with_options(unnest.exec_columns.clone(), unnest.options.clone())?.build()?;
    walk.of_usage.retain(|column, _| !unnest.exec_columns.contains(column) && unnest.schema.has_column(column));
    let plan = walk.plan.clone();
    walk.step(reason, &plan)?;
    Ok(walk)
}

/// The tables below a plan, as a rule names them.
fn tables(plan: &LogicalPlan) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let _ = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let name = scan.table_name.to_string();
            found.insert(if name.starts_with("__window") { "billing_window".to_owned() } else { name });
        }
        Ok(TreeNodeRecursion::Continue)
    });
    // Windows are crossed with whatever must be there for each of them.
    if found.len() > 1 {
        found.remove("billing_window");
    }
    found
}

fn named(tables: &BTreeSet<String>) -> String {
    if tables.is_empty() { "a subquery".to_owned() } else { tables.iter().cloned().collect::<Vec<_>>().join(" and ") }
}

/// A condition as a rule would write it: literals as they are, no casts.
fn text(condition: &Expr) -> String {
    let shown = condition.clone().transform_up(|node| {
        Ok(match node {
            Expr::Literal(value, _) => Transformed::yes(Expr::Column(Column::from_name(literal(&value)))),
            Expr::Cast(cast) => Transformed::yes(*cast.expr),
            Expr::Alias(alias) => Transformed::yes(*alias.expr),
            other => Transformed::no(other),
        })
    });
    shown.data().map_or_else(|_| condition.to_string(), |shown| shown.to_string())
}

fn literal(value: &ScalarValue) -> String {
    match value {
        ScalarValue::Utf8(Some(text)) | ScalarValue::LargeUtf8(Some(text)) | ScalarValue::Utf8View(Some(text)) => format!("'{text}'"),
        ScalarValue::TimestampMicrosecond(Some(instant), _) => format!("'{}'", format_instant(*instant)),
        ScalarValue::Decimal128(Some(raw), _, 18) => Decimal::from_raw(*raw).map_or_else(|_| raw.to_string(), |value| value.to_string()),
        value if value.is_null() => "NULL".to_owned(),
        value => value.to_string(),
    }
}
