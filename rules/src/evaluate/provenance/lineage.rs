//! A plan whose rows carry, in further columns, the rows of one table or the arguments of one call that they are made of.
//!
//! Rows may come several times, once for each that they are made of. Where a node looks at many rows at once (an
//! aggregate, a LIMIT), its own rows are computed as before and joined with the carried ones of their group: so a carried
//! row that is repeated changes no sum.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DataFusionError, JoinType, NullEquality, TableReference};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::{
    Aggregate, Distinct, Expr, Filter, Join, JoinConstraint, LogicalPlan, LogicalPlanBuilder, Projection, SubqueryAlias, Union,
    Window as WindowNode, lit,
};

use super::calls::Call;
use super::events;
use crate::evaluate::root_message;

/// What a table has that can be behind a charge.
pub(super) enum Leaf {
    /// Usage: events are told by source and id.
    Events,
    /// Rows in memory, told by their number.
    Rows(RecordBatch),
}

/// A place in a plan that rows are traced to.
pub(super) struct Point {
    /// The number of the node, counted from the root, parents first.
    node: usize,
    pub(super) what: What,
}

pub(super) enum What {
    Scan(TableReference),
    Call(Call),
}

impl Point {
    pub(super) fn name(&self) -> String {
        match &self.what {
            What::Scan(table) => table.to_string(),
            What::Call(call) => format!("{}(…)", call.name()),
        }
    }
}

/// A plan that carries.
pub(super) struct Traced {
    pub(super) plan: LogicalPlan,
    /// The carried columns; the first is never null where a row is carried.
    pub(super) names: Vec<String>,
    pub(super) notes: Vec<String>,
}

/// The name of a carried column. No table of a project can have a space in its names.
pub(super) fn traced_name(name: &str) -> String {
    format!("traced {name}")
}

/// The scans of a plan, and its calls of pricing functions.
pub(super) fn points(plan: &LogicalPlan) -> Vec<Point> {
    let mut points = Vec::new();
    number(plan, &mut 0, &mut points);
    points
}

fn number(plan: &LogicalPlan, next: &mut usize, points: &mut Vec<Point>) {
    let node = *next;
    *next += 1;
    match plan {
        LogicalPlan::TableScan(scan) => points.push(Point { node, what: What::Scan(scan.table_name.clone()) }),
        LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_) => {
            points.extend(Call::all_in(plan).into_iter().map(|call| Point { node, what: What::Call(call) }));
        }
        _ => {}
    }
    for input in plan.inputs() {
        number(input, next, points);
    }
}

/// `plan` carrying what is at `point`; `None` where no row of it can be of the output.
pub(super) fn traced(plan: &LogicalPlan, point: &Point, leaf: &Leaf) -> Result<Option<Traced>, String> {
    let names = match (&point.what, leaf) {
        (What::Call(call), _) => call.carried(),
        (What::Scan(_), Leaf::Events) => events::COLUMNS.map(traced_name).to_vec(),
        (What::Scan(_), Leaf::Rows(_)) => vec![traced_name("row")],
    };
    let mut tracer = Tracer { point, leaf, names: &names, next: 0, notes: Vec::new() };
    let found = tracer.trace(plan).map_err(|reason| reason.0)?;
    let notes = tracer.notes;
    Ok(found.map(|plan| Traced { plan, names: names.clone(), notes }))
}

/// Why something cannot be traced, in words.
struct Untraced(String);

impl From<DataFusionError> for Untraced {
    fn from(error: DataFusionError) -> Self {
        Self(root_message(&error))
    }
}

type Carrying = Result<LogicalPlan, Untraced>;

struct Tracer<'a> {
    point: &'a Point,
    leaf: &'a Leaf,
    names: &'a [String],
    next: usize,
    notes: Vec<String>,
}

fn columns_of(schema: &DFSchema) -> Vec<Expr> {
    schema.iter().map(|(qualifier, field)| Expr::Column(Column::new(qualifier.cloned(), field.name()))).collect()
}

/// The expression of a projection under the name that the projection's schema gives it.
fn named((expr, (qualifier, field)): (&Expr, (Option<&TableReference>, &FieldRef))) -> Expr {
    if expr.qualified_name() == (qualifier.cloned(), field.name().clone()) {
        return expr.clone();
    }
    expr.clone().alias_qualified(qualifier.cloned(), field.name())
}

fn project(columns: Vec<Expr>, input: LogicalPlan) -> Carrying {
    Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input))?))
}

impl Tracer<'_> {
    fn trace(&mut self, plan: &LogicalPlan) -> Result<Option<LogicalPlan>, Untraced> {
        let node = self.next;
        self.next += 1;
        // Every node is visited, lest the numbers be others than those of the points.
        let mut inputs = Vec::new();
        for input in plan.inputs() {
            inputs.push(self.trace(input)?);
        }
        if node == self.point.node {
            return self.begin(plan).map(Some);
        }
        match inputs.into_iter().enumerate().find_map(|(side, input)| input.map(|input| (side, input))) {
            Some((side, input)) => self.carry(plan, side, input),
            None => Ok(None),
        }
    }

    /// The carried columns.
    fn carried(&self) -> impl Iterator<Item = Expr> {
        self.names.iter().map(|name| Expr::Column(Column::from_name(name.clone())))
    }

    /// The columns of `plan` and the carried ones.
    fn with_carried(&self, schema: &DFSchema) -> Vec<Expr> {
        columns_of(schema).into_iter().chain(self.carried()).collect()
    }

    /// The node that holds the point.
    fn begin(&self, plan: &LogicalPlan) -> Carrying {
        match (&self.point.what, plan) {
            (What::Scan(_), LogicalPlan::TableScan(scan)) => match self.leaf {
                Leaf::Events => {
                    let of_scan = |name: &str| Expr::Column(Column::new(Some(scan.table_name.clone()), name));
                    let carried = events::COLUMNS.iter().map(|name| of_scan(name).alias(traced_name(name)));
                    project(columns_of(plan.schema()).into_iter().chain(carried).collect(), plan.clone())
                }
                Leaf::Rows(batch) => self.numbered(&scan.table_name, plan.schema(), batch),
            },
            (What::Call(call), LogicalPlan::Projection(projection)) => {
                let columns = projection.expr.iter().zip(projection.schema.iter()).map(named);
                project(columns.chain(call.columns()).collect(), projection.input.as_ref().clone())
            }
            (What::Call(call), LogicalPlan::Aggregate(aggregate)) => {
                let input = aggregate.input.as_ref().clone();
                let columns = columns_of(input.schema()).into_iter().chain(call.columns()).collect();
                self.aggregate(aggregate, project(columns, input)?)
            }
            _ => Err(Untraced("the plan is another one".to_owned())),
        }
    }

    /// A scan of rows in memory that carries their numbers.
    fn numbered(&self, table: &TableReference, schema: &DFSchema, batch: &RecordBatch) -> Carrying {
        let mut fields: Vec<FieldRef> = batch.schema().fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new(&self.names[0], DataType::Int64, false)));
        let numbers: ArrayRef = Arc::new((0_i64..).take(batch.num_rows()).collect::<Int64Array>());
        let columns = batch.columns().iter().cloned().chain([numbers]).collect();
        let fields = Arc::new(Schema::new(fields));
        let rows = RecordBatch::try_new(Arc::clone(&fields), columns).map_err(DataFusionError::from)?;
        let provider = provider_as_source(Arc::new(MemTable::try_new(fields, vec![vec![rows]])?));
        let scan = LogicalPlanBuilder::scan(table.clone(), provider, None)?.build()?;
        let number = Expr::Column(Column::new(Some(table.clone()), &self.names[0])).alias(&self.names[0]);
        project(columns_of(schema).into_iter().chain([number]).collect(), scan)
    }

    /// `plan` over `input`, which carries and is one of its inputs.
    fn carry(&mut self, plan: &LogicalPlan, side: usize, input: LogicalPlan) -> Result<Option<LogicalPlan>, Untraced> {
        let carried = match plan {
            LogicalPlan::Projection(projection) => {
                let columns = projection.expr.iter().zip(projection.schema.iter()).map(named);
                project(columns.chain(self.carried()).collect(), input)?
            }
            LogicalPlan::Filter(filter) => LogicalPlan::Filter(Filter::try_new(filter.predicate.clone(), Arc::new(input))?),
            LogicalPlan::SubqueryAlias(subquery) => {
                let alias = &subquery.alias;
                let mut columns = columns_of(&subquery.schema);
                let of_alias = |name: &String| Expr::Column(Column::new(Some(alias.clone()), name)).alias(name);
                columns.extend(self.names.iter().map(of_alias));
                project(columns, LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(input), alias.clone())?))?
            }
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => input,
            LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => self.equal_rows(plan, input)?,
            LogicalPlan::Distinct(Distinct::All(_)) => input,
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate, input)?,
            LogicalPlan::Union(union) => self.union(union, side, input)?,
            LogicalPlan::Window(window) => self.window(window, plan, input)?,
            LogicalPlan::Join(join) => return self.join(join, side, input),
            LogicalPlan::Unnest(unnest) => {
                LogicalPlanBuilder::from(input).unnest_columns_with_options(unnest.exec_columns.clone(), unnest.options.clone())?.build()?
            }
            other => {
                let what = other.display().to_string();
                return Err(Untraced(format!("{} is not seen through", what.split([':', ' ']).next().unwrap_or("the query"))));
            }
        };
        Ok(Some(carried))
    }

    /// The rows of `original`, each with what the rows of `input` carry that agree with it in the keys.
    fn matched(&self, original: LogicalPlan, keys: Vec<(Expr, Expr)>, input: LogicalPlan) -> Carrying {
        let key = |index: usize| format!("traced key {index}");
        let columns = keys.iter().enumerate().map(|(index, (_, of_input))| of_input.clone().alias(key(index)));
        let mut carried = project(columns.chain(self.carried()).collect(), input)?;
        if !matches!(self.leaf, Leaf::Events) || matches!(self.point.what, What::Call(_)) {
            carried = LogicalPlanBuilder::from(carried).distinct()?.build()?;
        }
        let kept = self.with_carried(original.schema());
        if keys.is_empty() {
            return project(kept, LogicalPlanBuilder::from(original).cross_join(carried)?.build()?);
        }
        let on = keys.into_iter().enumerate().map(|(index, (of_original, _))| (of_original, Expr::Column(Column::from_name(key(index)))));
        let (original, carried) = (Arc::new(original), Arc::new(carried));
        let equal_nulls = NullEquality::NullEqualsNull;
        let join = Join::try_new(original, carried, on.collect(), None, JoinType::Inner, JoinConstraint::On, equal_nulls, false)?;
        project(kept, LogicalPlan::Join(join))
    }

    fn aggregate(&self, aggregate: &Aggregate, input: LogicalPlan) -> Carrying {
        if matches!(aggregate.group_expr.as_slice(), [Expr::GroupingSet(_)]) {
            return Err(Untraced("ROLLUP, CUBE and GROUPING SETS group rows in several ways at once".to_owned()));
        }
        let input = match self.counted(aggregate) {
            Some(any) => LogicalPlan::Filter(Filter::try_new(any, Arc::new(input))?),
            None => input,
        };
        let keys = aggregate.group_expr.iter().enumerate().map(|(index, key)| {
            let (qualifier, field) = aggregate.schema.qualified_field(index);
            (Expr::Column(Column::new(qualifier.cloned(), field.name())), key.clone())
        });
        self.matched(LogicalPlan::Aggregate(aggregate.clone()), keys.collect(), input)
    }

    /// Which rows the aggregates look at, where each of them has a FILTER.
    fn counted(&self, aggregate: &Aggregate) -> Option<Expr> {
        let mut any: Option<Expr> = None;
        for function in &aggregate.aggr_expr {
            let mut inner = function;
            while let Expr::Alias(alias) = inner {
                inner = &alias.expr;
            }
            let Expr::AggregateFunction(call) = inner else { return None };
            let filter = call.params.filter.as_deref()?.clone();
            any = Some(any.map_or(filter.clone(), |any| any.or(filter)));
        }
        any
    }

    /// For each row of `plan` what the rows of its input carry that are equal to it.
    fn equal_rows(&self, plan: &LogicalPlan, input: LogicalPlan) -> Carrying {
        let of_input = plan.inputs().first().map(|input| Arc::clone(input.schema()));
        let Some(schema) = of_input else { return Err(Untraced("a node has no input".to_owned())) };
        let equal = |(_, field): &(Option<&TableReference>, &FieldRef)| !matches!(field.data_type(), DataType::Map(..));
        let columns = schema.iter().filter(equal).map(|(qualifier, field)| {
            let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
            (column.clone(), column)
        });
        self.matched(plan.clone(), columns.collect(), input)
    }

    /// A window function looks at its partition. Rows in memory are few, and all of them are told; of events, the row's own.
    fn window(&mut self, window: &WindowNode, plan: &LogicalPlan, input: LogicalPlan) -> Carrying {
        if !matches!((&self.point.what, self.leaf), (What::Scan(_), Leaf::Rows(_))) {
            if matches!(self.point.what, What::Scan(_)) {
                let function = window.window_expr.first().map_or_else(String::new, |function| function.schema_name().to_string());
                let name = function.split('(').next().unwrap_or_default();
                self.notes.push(format!("a window function ({name}) looks at further rows of its partition, whose events are not listed"));
            }
            return self.equal_rows(plan, input);
        }
        let mut keys: Option<Vec<Expr>> = None;
        for function in &window.window_expr {
            let mut inner = function;
            while let Expr::Alias(alias) = inner {
                inner = &alias.expr;
            }
            let Expr::WindowFunction(function) = inner else { return self.equal_rows(plan, input) };
            let partition = &function.params.partition_by;
            keys = Some(match keys {
                Some(keys) => keys.into_iter().filter(|key| partition.contains(key)).collect(),
                None => partition.clone(),
            });
        }
        let keys = keys.unwrap_or_default().into_iter().map(|key| (key.clone(), key)).collect();
        self.matched(plan.clone(), keys, input)
    }

    /// The rows of one branch; the others carry nothing.
    fn union(&self, union: &Union, side: usize, input: LogicalPlan) -> Carrying {
        let branch = union.inputs.get(side).ok_or_else(|| Untraced("a union lost a branch".to_owned()))?;
        let columns = columns_of(branch.schema()).into_iter().zip(union.schema.iter());
        let columns = columns.map(|(column, (qualifier, field))| column.alias_qualified(qualifier.cloned(), field.name()));
        project(columns.chain(self.carried()).collect(), input)
    }

    fn join(&self, join: &Join, side: usize, input: LogicalPlan) -> Result<Option<LogicalPlan>, Untraced> {
        use JoinType::{Full, Inner, Left, LeftAnti, LeftMark, LeftSemi, Right, RightAnti, RightMark, RightSemi};
        let input = Arc::new(input);
        let again = |left: Arc<LogicalPlan>, right: Arc<LogicalPlan>, kind: JoinType| {
            let (on, filter) = (join.on.clone(), join.filter.clone());
            let null_aware = join.null_aware && kind == join.join_type;
            Join::try_new(left, right, on, filter, kind, join.join_constraint, join.null_equality, null_aware).map(LogicalPlan::Join)
        };
        let kept = self.with_carried(&join.schema);
        let left_carries = side == 0;
        let (left, right) = (Arc::clone(&join.left), Arc::clone(&join.right));
        let plan = match (join.join_type, left_carries) {
            (Inner | Left | Right | Full | LeftSemi | LeftAnti | LeftMark, true) => again(input, right, join.join_type)?,
            (Inner | Left | Right | Full | RightSemi | RightAnti | RightMark, false) => again(left, input, join.join_type)?,
            // Who met something met this.
            (LeftSemi, false) => again(left, input, Inner)?,
            (RightSemi, true) => again(input, right, Inner)?,
            // The mark is kept, and with it what was met, if anything.
            (LeftMark, false) => again(Arc::new(LogicalPlan::Join(join.clone())), input, Left)?,
            (RightMark, true) => again(input, Arc::new(LogicalPlan::Join(join.clone())), Right)?,
            // Rows are there because nothing was met.
            (LeftAnti, false) | (RightAnti, true) => return Ok(None),
        };
        project(kept, plan).map(Some)
    }
}

/// Whether an expression holds a subquery, which is no input of its node.
pub(super) fn has_subquery(expr: &Expr) -> bool {
    let mut found = false;
    let _ = expr.apply(|inner| {
        found |= matches!(inner, Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_));
        Ok(TreeNodeRecursion::Continue)
    });
    found
}

/// A column that is there wherever a row is carried.
pub(super) fn marker() -> Expr {
    lit(1_i64).alias(traced_name("call"))
}
