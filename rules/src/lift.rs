//! Lifting: one plan for many windows.
//!
//! The author wrote a query for one window. The lifted plan carries the window's number through every node: it is added
//! to the windowed scans, to group and partition keys, and to join conditions. An input that does not depend on the
//! window stays as it is, and is crossed with the windows where the query would give a row for a window without usage:
//! where an outer, anti or semi join preserves it, where a union puts it beside windowed rows, at the root. A global
//! aggregate gives one row for each window, with or without input.
//!
//! The plan that comes in is analyzed and its subqueries are joins already ([`decorrelate`]). What is not understood is
//! not lifted, and says why.

use std::sync::Arc;

use arrow::datatypes::FieldRef;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DataFusionError, JoinType, TableReference};
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::{
    Aggregate, Distinct, EmptyRelation, Expr, Filter, Join, LogicalPlan, LogicalPlanBuilder, Projection, SubqueryAlias, Union,
    Window as WindowNode, when,
};
use datafusion::optimizer::decorrelate_lateral_join::DecorrelateLateralJoin;
use datafusion::optimizer::decorrelate_predicate_subquery::DecorrelatePredicateSubquery;
use datafusion::optimizer::extract_equijoin_predicate::ExtractEquijoinPredicate;
use datafusion::optimizer::optimizer::Optimizer;
use datafusion::optimizer::rewrite_set_comparison::RewriteSetComparison;
use datafusion::optimizer::scalar_subquery_to_join::ScalarSubqueryToJoin;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;

/// Why a plan is not lifted.
#[derive(Debug)]
pub(crate) enum NotLifted {
    /// It has a shape that only runs one window at a time.
    Shape(String),
    /// Planning failed.
    Error(DataFusionError),
}

impl From<DataFusionError> for NotLifted {
    fn from(error: DataFusionError) -> Self {
        Self::Error(error)
    }
}

/// Gives the windowed tables for all windows; the column with the window's number has the name that is asked for.
pub(crate) trait Sources: Sync {
    /// Whether the rows of a table depend on the window.
    fn is_windowed(&self, table: &TableReference) -> bool;

    /// A windowed table.
    fn windowed(&self, table: &TableReference, window: &str) -> Result<LogicalPlan, DataFusionError>;

    /// One row for each window: its number.
    fn windows(&self, window: &str) -> Result<LogicalPlan, DataFusionError>;
}

/// Coerces types and turns subqueries into joins.
pub(crate) fn decorrelate(state: &SessionState, plan: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    let analyzed = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})?;
    let optimizer = Optimizer::with_rules(vec![
        Arc::new(RewriteSetComparison::new()),
        Arc::new(SimplifyExpressions::new()),
        Arc::new(DecorrelatePredicateSubquery::new()),
        Arc::new(ScalarSubqueryToJoin::new()),
        Arc::new(DecorrelateLateralJoin::new()),
        Arc::new(ExtractEquijoinPredicate::new()),
    ]);
    optimizer.optimize(analyzed, state, |_, _| {})
}

/// Lifts a decorrelated plan; the output is the window's number, in a column `__window`, and the columns of `plan`.
pub(crate) fn lift(plan: &LogicalPlan, sources: &dyn Sources) -> Result<LogicalPlan, NotLifted> {
    let node = Lifter { sources, named: 0 }.lift(plan)?;
    let mut columns = vec![Expr::Column(node.window).alias("__window")];
    columns.extend(columns_of(plan.schema()));
    Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(node.plan))?))
}

/// A plan for all windows: the columns of the plan for one window and, among others, the window's number.
struct Node {
    plan: LogicalPlan,
    window: Column,
}

struct Lifter<'a> {
    sources: &'a dyn Sources,
    named: usize,
}

fn columns_of(schema: &DFSchema) -> Vec<Expr> {
    schema.iter().map(|(qualifier, field)| Expr::Column(Column::new(qualifier.cloned(), field.name()))).collect()
}

/// The expression of a projection under the name that the projection's schema gives it: an input of a union has the
/// names of the union, and a filter that finds its column under another one is moved to a wrong place.
fn named((expr, (qualifier, field)): (&Expr, (Option<&TableReference>, &FieldRef))) -> Expr {
    if expr.qualified_name() == (qualifier.cloned(), field.name().clone()) {
        return expr.clone();
    }
    expr.clone().alias_qualified(qualifier.cloned(), field.name())
}

fn shape(what: &str) -> NotLifted {
    NotLifted::Shape(what.to_owned())
}

impl Lifter<'_> {
    /// A name that no other column has.
    fn name(&mut self) -> String {
        self.named += 1;
        format!("__window_{}", self.named)
    }

    fn lift(&mut self, plan: &LogicalPlan) -> Result<Node, NotLifted> {
        if !self.depends_on_window(plan)? {
            return self.crossed(plan);
        }
        refuse_subqueries(plan)?;
        let node = self.node(plan)?;
        let columns = node.plan.schema().columns();
        if plan.schema().columns().iter().all(|column| columns.contains(column)) {
            Ok(node)
        } else {
            Err(shape("columns under other names"))
        }
    }

    fn node(&mut self, plan: &LogicalPlan) -> Result<Node, NotLifted> {
        match plan {
            LogicalPlan::TableScan(scan) => {
                let name = self.name();
                let table = scan.table_name.clone();
                let mut plan = alias(self.sources.windowed(&table, &name)?, table.clone())?;
                for filter in &scan.filters {
                    plan = LogicalPlan::Filter(Filter::try_new(filter.clone(), Arc::new(plan))?);
                }
                Ok(Node { plan, window: Column::new(Some(table), name) })
            }
            LogicalPlan::Projection(projection) => {
                let input = self.lift(&projection.input)?;
                let mut columns: Vec<Expr> = projection.expr.iter().zip(projection.schema.iter()).map(named).collect();
                columns.push(Expr::Column(input.window.clone()));
                let plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input.plan))?);
                Ok(Node { plan, window: input.window })
            }
            LogicalPlan::Filter(filter) => {
                let input = self.lift(&filter.input)?;
                let plan = LogicalPlan::Filter(Filter::try_new(filter.predicate.clone(), Arc::new(input.plan))?);
                Ok(Node { plan, window: input.window })
            }
            LogicalPlan::SubqueryAlias(subquery) => {
                // Only what the alias had before: two tables below may have columns of one name that nobody reads.
                let input = self.only(&subquery.input)?;
                let window = Column::new(Some(subquery.alias.clone()), input.window.name);
                Ok(Node { plan: alias(input.plan, subquery.alias.clone())?, window })
            }
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => self.lift(&sort.input),
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate),
            LogicalPlan::Window(window) => self.window_functions(window),
            LogicalPlan::Join(join) => self.join(join),
            LogicalPlan::Union(union) => self.union(union),
            LogicalPlan::Distinct(Distinct::All(input)) => {
                let input = self.only(input)?;
                Ok(Node { plan: LogicalPlan::Distinct(Distinct::All(Arc::new(input.plan))), window: input.window })
            }
            LogicalPlan::Unnest(unnest) => {
                let input = self.lift(&unnest.input)?;
                let plan = LogicalPlanBuilder::from(input.plan)
                    .unnest_columns_with_options(unnest.exec_columns.clone(), unnest.options.clone())?
                    .build()?;
                Ok(Node { plan, window: input.window })
            }
            LogicalPlan::Limit(_) | LogicalPlan::Sort(_) => Err(shape("LIMIT counts the rows of all windows together")),
            LogicalPlan::Distinct(Distinct::On(_)) => Err(shape("DISTINCT ON")),
            LogicalPlan::Subquery(_) => Err(shape("a lateral subquery that is no join")),
            other => Err(shape(other.display().to_string().split([':', ' ']).next().unwrap_or("this part of the query"))),
        }
    }

    /// Whether a windowed table is read below, in subqueries, too.
    fn depends_on_window(&self, plan: &LogicalPlan) -> Result<bool, NotLifted> {
        let mut found = false;
        plan.apply_with_subqueries(|node| {
            found |= matches!(node, LogicalPlan::TableScan(scan) if self.sources.is_windowed(&scan.table_name));
            Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })?;
        Ok(found)
    }

    /// The same rows for each window.
    fn crossed(&mut self, plan: &LogicalPlan) -> Result<Node, NotLifted> {
        let name = self.name();
        let plan = LogicalPlanBuilder::from(self.sources.windows(&name)?).cross_join(plan.clone())?.build()?;
        Ok(Node { plan, window: Column::from_name(name) })
    }

    /// Lifted, with no columns but its own and the window's.
    fn only(&mut self, plan: &LogicalPlan) -> Result<Node, NotLifted> {
        let node = self.lift(plan)?;
        let mut columns = columns_of(plan.schema());
        columns.push(Expr::Column(node.window.clone()));
        Ok(Node { plan: LogicalPlan::Projection(Projection::try_new(columns, Arc::new(node.plan))?), window: node.window })
    }

    fn aggregate(&mut self, aggregate: &Aggregate) -> Result<Node, NotLifted> {
        if aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) {
            return Err(shape("GROUPING SETS, ROLLUP or CUBE"));
        }
        let input = self.lift(&aggregate.input)?;
        if aggregate.group_expr.is_empty() {
            return self.global_aggregate(aggregate, input);
        }
        let mut groups = aggregate.group_expr.clone();
        groups.push(Expr::Column(input.window.clone()));
        let lifted = Aggregate::try_new(Arc::new(input.plan), groups, aggregate.aggr_expr.clone())?;
        let mut columns = columns_of(&lifted.schema);
        let window = columns.remove(aggregate.group_expr.len());
        columns.push(window);
        let plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(LogicalPlan::Aggregate(lifted)))?);
        Ok(Node { plan, window: input.window })
    }

    /// One row for each window: the aggregates of its rows or, where it has none, those of no rows.
    fn global_aggregate(&mut self, aggregate: &Aggregate, input: Node) -> Result<Node, NotLifted> {
        let nothing = LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema: Arc::clone(input.plan.schema()) });
        let nothing = Aggregate::try_new(Arc::new(nothing), Vec::new(), aggregate.aggr_expr.clone())?;
        let groups = vec![Expr::Column(input.window)];
        let something = Aggregate::try_new(Arc::new(input.plan), groups, aggregate.aggr_expr.clone())?;
        let (window, some, none) = (self.name(), self.name(), self.name());
        let nothing = numbered(LogicalPlan::Aggregate(nothing), &none)?;
        let something = numbered(LogicalPlan::Aggregate(something), &some)?;
        // The first column of `something` is the window.
        let (left, right) = (Column::from_name(window.clone()), Column::from_name(format!("{some}_0")));
        let plan = LogicalPlanBuilder::from(self.sources.windows(&window)?)
            .join(something, JoinType::Left, (vec![left.clone()], vec![right.clone()]), None)?
            .cross_join(nothing)?
            .build()?;
        let mut columns = Vec::with_capacity(aggregate.aggr_expr.len() + 1);
        for (index, (qualifier, field)) in aggregate.schema.iter().enumerate() {
            let value = |name: &str, index: usize| Expr::Column(Column::from_name(format!("{name}_{index}")));
            let there = Expr::Column(right.clone()).is_not_null();
            let either = when(there, value(&some, index + 1)).otherwise(value(&none, index))?;
            columns.push(either.alias_qualified(qualifier.cloned(), field.name()));
        }
        columns.push(Expr::Column(left.clone()));
        Ok(Node { plan: LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?), window: left })
    }

    fn window_functions(&mut self, node: &WindowNode) -> Result<Node, NotLifted> {
        let Node { plan: input, window } = self.lift(&node.input)?;
        let before = input.schema().fields().len();
        let functions: Vec<Expr> = node.window_expr.iter().map(|expr| partitioned(expr.clone(), &window)).collect::<Result<_, _>>()?;
        let lifted = WindowNode::try_new(functions, Arc::new(input))?;
        let old = node.input.schema().fields().len();
        let columns: Vec<Expr> = lifted
            .schema
            .iter()
            .enumerate()
            .map(|(index, (qualifier, field))| {
                let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
                if index < before {
                    return column;
                }
                let (qualifier, field) = node.schema.qualified_field(old + index - before);
                column.alias_qualified(qualifier.cloned(), field.name())
            })
            .collect();
        let plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(LogicalPlan::Window(lifted)))?);
        Ok(Node { plan, window })
    }

    fn join(&mut self, join: &Join) -> Result<Node, NotLifted> {
        use JoinType::{Full, Inner, Left, LeftAnti, LeftMark, LeftSemi, Right, RightAnti, RightMark, RightSemi};
        let (left, left_window) = self.side(&join.left, matches!(join.join_type, Left | Full | LeftSemi | LeftAnti | LeftMark))?;
        let (right, right_window) = self.side(&join.right, matches!(join.join_type, Right | Full | RightSemi | RightAnti | RightMark))?;
        let mut on = join.on.clone();
        if let (Some(left), Some(right)) = (&left_window, &right_window) {
            if join.null_aware {
                return Err(shape("NOT IN (it compares with the nulls of all windows); write NOT EXISTS"));
            }
            on.push((Expr::Column(left.clone()), Expr::Column(right.clone())));
        }
        let plan = LogicalPlan::Join(Join::try_new(
            Arc::new(left),
            Arc::new(right),
            on,
            join.filter.clone(),
            join.join_type,
            join.join_constraint,
            join.null_equality,
            join.null_aware,
        )?);
        let window = match (join.join_type, left_window, right_window) {
            (Full, Some(left), Some(right)) => {
                let name = self.name();
                let either = datafusion::functions::core::expr_fn::coalesce(vec![Expr::Column(left), Expr::Column(right)]);
                let mut columns = columns_of(&join.schema);
                columns.push(either.alias(name.clone()));
                let plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?);
                return Ok(Node { plan, window: Column::from_name(name) });
            }
            (Inner | Left | LeftSemi | LeftAnti | LeftMark, Some(window), _)
            | (Inner | Right | RightSemi | RightAnti | RightMark, _, Some(window)) => window,
            _ => return Err(shape("a join whose rows have no window")),
        };
        Ok(Node { plan, window })
    }

    /// One side of a join, its window under a name of its own. A side without a window stays as it is, where it is not
    /// `preserved`: its rows are there once for each window then.
    fn side(&mut self, plan: &LogicalPlan, preserved: bool) -> Result<(LogicalPlan, Option<Column>), NotLifted> {
        if !preserved && !self.depends_on_window(plan)? {
            return Ok((plan.clone(), None));
        }
        let node = self.lift(plan)?;
        // The mark of a mark join is called after the one table on its right, so the window is of that table, too.
        let mut tables: Vec<&TableReference> = plan.schema().iter().filter_map(|(qualifier, _)| qualifier).collect();
        tables.dedup();
        let table = if let [table] = tables.as_slice() { Some((*table).clone()) } else { None };
        let window = Column::new(table, self.name());
        let mut columns = columns_of(plan.schema());
        columns.push(Expr::Column(node.window).alias_qualified(window.relation.clone(), window.name.clone()));
        let plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(node.plan))?);
        Ok((plan, Some(window)))
    }

    fn union(&mut self, union: &Union) -> Result<Node, NotLifted> {
        let name = self.name();
        let place = |index: usize| format!("{name}_{index}");
        let mut inputs = Vec::with_capacity(union.inputs.len());
        for input in &union.inputs {
            let node = self.lift(input)?;
            let mut columns: Vec<Expr> =
                columns_of(input.schema()).into_iter().enumerate().map(|(index, column)| column.alias(place(index))).collect();
            columns.push(Expr::Column(node.window).alias(name.clone()));
            inputs.push(Arc::new(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(node.plan))?)));
        }
        let columns: Vec<Expr> = union
            .schema
            .iter()
            .enumerate()
            .map(|(index, (qualifier, field))| {
                Expr::Column(Column::from_name(place(index))).alias_qualified(qualifier.cloned(), field.name())
            })
            .chain([Expr::Column(Column::from_name(name.clone()))])
            .collect();
        let all = LogicalPlan::Union(Union::try_new(inputs)?);
        let plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(all))?);
        Ok(Node { plan, window: Column::from_name(name) })
    }
}

fn alias(plan: LogicalPlan, name: TableReference) -> Result<LogicalPlan, DataFusionError> {
    Ok(LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(plan), name)?))
}

/// The same columns, called `NAME_0`, `NAME_1`, ….
fn numbered(plan: LogicalPlan, name: &str) -> Result<LogicalPlan, DataFusionError> {
    let columns =
        columns_of(plan.schema()).into_iter().enumerate().map(|(index, column)| column.alias(format!("{name}_{index}"))).collect();
    Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?))
}

fn refuse_subqueries(plan: &LogicalPlan) -> Result<(), NotLifted> {
    let mut found = false;
    plan.apply_expressions(|root| {
        root.apply(|expr| {
            found |= matches!(
                expr,
                Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_) | Expr::OuterReferenceColumn(..)
            );
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    if found { Err(shape("a subquery that cannot be turned into a join")) } else { Ok(()) }
}

/// The window function within each window.
fn partitioned(expr: Expr, window: &Column) -> Result<Expr, NotLifted> {
    match expr {
        Expr::Alias(mut alias) => {
            *alias.expr = partitioned(*alias.expr, window)?;
            Ok(Expr::Alias(alias))
        }
        Expr::WindowFunction(function) => {
            let WindowFunction { fun, mut params } = *function;
            params.partition_by.push(Expr::Column(window.clone()));
            Ok(Expr::WindowFunction(Box::new(WindowFunction { fun, params })))
        }
        _ => Err(shape("a window function that is no plain one")),
    }
}
