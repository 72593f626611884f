//! Lifting: one plan for many windows.
//!
//! The author wrote a query for one window. The lifted plan carries the window's number through every node: it is added
//! to the windowed scans, to group and partition keys, and to join conditions. An input that does not depend on the
//! window is crossed with the windows where the query would give a row for a window without usage: where an outer,
//! anti or semi join preserves it, where a union puts it beside windowed rows, at the root. A global aggregate gives one
//! row for each window, with or without input.
//!
//! The plan that comes in is analyzed and its subqueries are joins already ([`decorrelate`]). What is not understood is
//! not lifted, and says why.

use std::sync::Arc;

use datafusion::common::{Column, DFSchema, DataFusionError, JoinType, TableReference};
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::{AggregateFunction, WindowFunction};
use datafusion::logical_expr::{
    Aggregate, Distinct, Expr, Filter, Join, LogicalPlan, LogicalPlanBuilder, Projection, SubqueryAlias, Union, Window as WindowNode, lit,
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

/// A plan for all windows.
pub(crate) struct Lifted {
    pub(crate) plan: LogicalPlan,
    /// The column with the window's number, first in the output.
    pub(crate) window: Column,
}

/// Gives the plan of a windowed table for all windows, and the column with the window's number, whose name is given.
pub(crate) trait Sources {
    /// `None` when the table does not depend on the window.
    fn windowed(&self, table: &TableReference, window: &str) -> Result<Option<LogicalPlan>, DataFusionError>;

    /// One row for each window: its number in a column of this name.
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

/// Lifts a decorrelated plan; the output is the window's number and the columns of `plan`.
pub(crate) fn lift(plan: &LogicalPlan, sources: &dyn Sources) -> Result<Lifted, NotLifted> {
    let mut lifter = Lifter { sources, named: 0 };
    let node = lifter.lift(plan)?;
    let node = lifter.windowed(node)?;
    let window = node.window.clone().ok_or_else(|| NotLifted::Shape("the root has no window".to_owned()))?;
    let mut columns = vec![Expr::Column(window)];
    columns.extend(columns_of(plan.schema()));
    let name = "__window";
    columns[0] = columns[0].clone().alias(name);
    let plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(node.plan))?);
    Ok(Lifted { plan, window: Column::from_name(name) })
}

struct Node {
    plan: LogicalPlan,
    window: Option<Column>,
}

struct Lifter<'a> {
    sources: &'a dyn Sources,
    named: usize,
}

fn columns_of(schema: &DFSchema) -> Vec<Expr> {
    schema.iter().map(|(qualifier, field)| Expr::Column(Column::new(qualifier.cloned(), field.name()))).collect()
}

fn shape(what: &str) -> NotLifted {
    NotLifted::Shape(what.to_owned())
}

impl Lifter<'_> {
    fn name(&mut self) -> String {
        self.named += 1;
        format!("__window_{}", self.named)
    }

    fn lift(&mut self, plan: &LogicalPlan) -> Result<Node, NotLifted> {
        refuse_subqueries(plan)?;
        match plan {
            LogicalPlan::TableScan(scan) => {
                if scan.fetch.is_some() {
                    return Err(shape("LIMIT counts the rows of all windows together"));
                }
                let name = self.name();
                match self.sources.windowed(&scan.table_name, &name)? {
                    None => Ok(Node { plan: plan.clone(), window: None }),
                    Some(source) => {
                        let aliased = SubqueryAlias::try_new(Arc::new(source), scan.table_name.clone())?;
                        let mut plan = LogicalPlan::SubqueryAlias(aliased);
                        for filter in &scan.filters {
                            plan = LogicalPlan::Filter(Filter::try_new(filter.clone(), Arc::new(plan))?);
                        }
                        Ok(Node { plan, window: Some(Column::new(Some(scan.table_name.clone()), name)) })
                    }
                }
            }
            LogicalPlan::EmptyRelation(_) | LogicalPlan::Values(_) => Ok(Node { plan: plan.clone(), window: None }),
            LogicalPlan::Projection(projection) => {
                let input = self.lift(&projection.input)?;
                let mut columns = projection.expr.clone();
                columns.extend(input.window.clone().map(Expr::Column));
                let plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input.plan))?);
                Ok(Node { plan, window: input.window })
            }
            LogicalPlan::Filter(filter) => {
                let input = self.lift(&filter.input)?;
                let plan = LogicalPlan::Filter(Filter::try_new(filter.predicate.clone(), Arc::new(input.plan))?);
                Ok(Node { plan, window: input.window })
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let input = self.lift(&alias.input)?;
                // Only what the alias had before: two tables below may have columns of one name that nobody reads.
                let input = self.only(&input, alias.input.schema())?;
                let plan = LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(input.plan), alias.alias.clone())?);
                Ok(Node { plan, window: input.window.map(|window| Column::new(Some(alias.alias.clone()), window.name)) })
            }
            LogicalPlan::Sort(sort) => match sort.fetch {
                Some(_) => Err(shape("LIMIT counts the rows of all windows together")),
                None => self.lift(&sort.input),
            },
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate),
            LogicalPlan::Window(window) => self.window_functions(window),
            LogicalPlan::Join(join) => self.join(join),
            LogicalPlan::Union(union) => self.union(union),
            LogicalPlan::Distinct(Distinct::All(input)) => {
                let node = self.lift(input)?;
                let node = self.only(&node, input.schema())?;
                Ok(Node { plan: LogicalPlan::Distinct(Distinct::All(Arc::new(node.plan))), window: node.window })
            }
            LogicalPlan::Unnest(unnest) => {
                let input = self.lift(&unnest.input)?;
                let plan = LogicalPlanBuilder::from(input.plan)
                    .unnest_columns_with_options(unnest.exec_columns.clone(), unnest.options.clone())?
                    .build()?;
                Ok(Node { plan, window: input.window })
            }
            LogicalPlan::Limit(_) => Err(shape("LIMIT counts the rows of all windows together")),
            LogicalPlan::Distinct(Distinct::On(_)) => Err(shape("DISTINCT ON")),
            LogicalPlan::Subquery(_) => Err(shape("a lateral subquery that is no join")),
            other => Err(shape(other.display().to_string().split([':', ' ']).next().unwrap_or("this part of the query"))),
        }
    }

    /// The same rows for each window, where there is no window yet.
    fn windowed(&mut self, node: Node) -> Result<Node, NotLifted> {
        if node.window.is_some() {
            return Ok(node);
        }
        let name = self.name();
        let windows = self.sources.windows(&name)?;
        let plan = LogicalPlanBuilder::from(windows).cross_join(node.plan)?.build()?;
        Ok(Node { plan, window: Some(Column::from_name(name)) })
    }

    /// The columns of `schema` and the window's.
    fn only(&mut self, node: &Node, schema: &DFSchema) -> Result<Node, NotLifted> {
        let mut columns = columns_of(schema);
        columns.extend(node.window.clone().map(Expr::Column));
        let plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(node.plan.clone()))?);
        Ok(Node { plan, window: node.window.clone() })
    }

    /// Gives the window's column a new name, so that two sides of a join differ.
    fn renamed(&mut self, node: Node) -> Result<Node, NotLifted> {
        let Some(window) = node.window else { return Ok(node) };
        let name = self.name();
        let columns = columns_of(node.plan.schema())
            .into_iter()
            .map(|column| if column == Expr::Column(window.clone()) { column.alias(name.clone()) } else { column })
            .collect();
        let plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(node.plan))?);
        Ok(Node { plan, window: Some(Column::from_name(name)) })
    }

    fn aggregate(&mut self, aggregate: &Aggregate) -> Result<Node, NotLifted> {
        if aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) {
            return Err(shape("GROUPING SETS, ROLLUP or CUBE"));
        }
        let mut input = self.lift(&aggregate.input)?;
        let Some(mut window) = input.window.clone() else {
            let same = Aggregate::try_new(Arc::new(input.plan), aggregate.group_expr.clone(), aggregate.aggr_expr.clone())?;
            return Ok(Node { plan: LogicalPlan::Aggregate(same), window: None });
        };
        let mut aggregates = aggregate.aggr_expr.clone();
        if aggregate.group_expr.is_empty() {
            // One row for each window, with or without input: windows keep their row, and the aggregates see only what is there.
            let present = format!("{}_present", self.name());
            let mut columns = columns_of(input.plan.schema());
            columns.push(lit(true).alias(present.clone()));
            let right = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input.plan))?);
            let name = self.name();
            let left = self.sources.windows(&name)?;
            let key = Column::from_name(name);
            let joined = LogicalPlanBuilder::from(left).join(right, JoinType::Left, (vec![key.clone()], vec![window]), None)?.build()?;
            window = key;
            input = Node { plan: joined, window: Some(window.clone()) };
            let there = Expr::Column(Column::from_name(present)).is_not_null();
            aggregates = aggregates.into_iter().map(|expr| filtered(expr, &there)).collect::<Result<_, _>>()?;
        }
        let mut groups = aggregate.group_expr.clone();
        groups.push(Expr::Column(window.clone()));
        let lifted = Aggregate::try_new(Arc::new(input.plan), groups, aggregates)?;
        // Aggregates get back the names that the query knows them by.
        let keys = aggregate.group_expr.len();
        let renamed: Vec<Expr> = aggregate
            .schema
            .iter()
            .enumerate()
            .map(|(index, (qualifier, field))| {
                let now = lifted.schema.qualified_field(if index < keys { index } else { index + 1 });
                Expr::Column(Column::new(now.0.cloned(), now.1.name())).alias_qualified(qualifier.cloned(), field.name())
            })
            .chain([Expr::Column(window.clone())])
            .collect();
        let plan = LogicalPlan::Projection(Projection::try_new(renamed, Arc::new(LogicalPlan::Aggregate(lifted)))?);
        Ok(Node { plan, window: Some(window) })
    }

    fn window_functions(&mut self, node: &WindowNode) -> Result<Node, NotLifted> {
        let input = self.lift(&node.input)?;
        let Some(window) = input.window else {
            let same = WindowNode::try_new(node.window_expr.clone(), Arc::new(input.plan))?;
            return Ok(Node { plan: LogicalPlan::Window(same), window: None });
        };
        let before = input.plan.schema().fields().len();
        let functions: Vec<Expr> = node.window_expr.iter().map(|expr| partitioned(expr.clone(), &window)).collect::<Result<_, _>>()?;
        let lifted = WindowNode::try_new(functions, Arc::new(input.plan))?;
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
        Ok(Node { plan, window: Some(window) })
    }

    fn join(&mut self, join: &Join) -> Result<Node, NotLifted> {
        if join.null_aware {
            return Err(shape("NOT IN (it compares with the nulls of all windows); write NOT EXISTS"));
        }
        let (mut left, mut right) = (self.lift(&join.left)?, self.lift(&join.right)?);
        if left.window.is_some() || right.window.is_some() {
            if matches!(join.join_type, JoinType::Left | JoinType::Full | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark) {
                left = self.windowed(left)?;
            }
            if matches!(join.join_type, JoinType::Right | JoinType::Full | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark)
            {
                right = self.windowed(right)?;
            }
        }
        right = self.renamed(right)?;
        let mut on = join.on.clone();
        if let (Some(left), Some(right)) = (&left.window, &right.window) {
            on.push((Expr::Column(left.clone()), Expr::Column(right.clone())));
        }
        let windows = (left.window.clone(), right.window.clone());
        let plan = LogicalPlan::Join(Join::try_new(
            Arc::new(left.plan),
            Arc::new(right.plan),
            on,
            join.filter.clone(),
            join.join_type,
            join.join_constraint,
            join.null_equality,
            join.null_aware,
        )?);
        let window = match join.join_type {
            JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => windows.1,
            JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => windows.0,
            JoinType::Inner => windows.0.or(windows.1),
            JoinType::Full => {
                let (Some(left), Some(right)) = windows else { return Ok(Node { plan, window: None }) };
                let name = self.name();
                let either = datafusion::functions::core::expr_fn::coalesce(vec![Expr::Column(left), Expr::Column(right)]);
                let mut columns = columns_of(&join.schema);
                columns.push(either.alias(name.clone()));
                let plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?);
                return Ok(Node { plan, window: Some(Column::from_name(name)) });
            }
        };
        Ok(Node { plan, window })
    }

    fn union(&mut self, union: &Union) -> Result<Node, NotLifted> {
        let mut inputs: Vec<Node> = union.inputs.iter().map(|input| self.lift(input)).collect::<Result<_, _>>()?;
        if inputs.iter().all(|input| input.window.is_none()) {
            let inputs = inputs.into_iter().map(|input| Arc::new(input.plan)).collect();
            return Ok(Node { plan: LogicalPlan::Union(Union { inputs, schema: Arc::clone(&union.schema) }), window: None });
        }
        let name = self.name();
        let place = |index: usize| format!("{name}_{index}");
        for (input, before) in inputs.iter_mut().zip(&union.inputs) {
            let whole = std::mem::replace(input, Node { plan: LogicalPlan::default(), window: None });
            let whole = self.windowed(whole)?;
            let window = whole.window.into_iter().map(|window| Expr::Column(window).alias(name.clone()));
            let columns: Vec<Expr> = columns_of(before.schema())
                .into_iter()
                .enumerate()
                .map(|(index, column)| column.alias(place(index)))
                .chain(window)
                .collect();
            input.plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(whole.plan))?);
        }
        let all = Union::try_new(inputs.into_iter().map(|input| Arc::new(input.plan)).collect())?;
        let columns: Vec<Expr> = union
            .schema
            .iter()
            .enumerate()
            .map(|(index, (qualifier, field))| {
                Expr::Column(Column::from_name(place(index))).alias_qualified(qualifier.cloned(), field.name())
            })
            .chain([Expr::Column(Column::from_name(name.clone()))])
            .collect();
        let plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(LogicalPlan::Union(all)))?);
        Ok(Node { plan, window: Some(Column::from_name(name)) })
    }
}

fn refuse_subqueries(plan: &LogicalPlan) -> Result<(), NotLifted> {
    use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
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

/// The aggregate over the rows for which `there` holds.
fn filtered(expr: Expr, there: &Expr) -> Result<Expr, NotLifted> {
    match expr {
        Expr::Alias(mut alias) => {
            *alias.expr = filtered(*alias.expr, there)?;
            Ok(Expr::Alias(alias))
        }
        Expr::AggregateFunction(AggregateFunction { func, mut params }) => {
            params.filter = Some(Box::new(match params.filter {
                Some(filter) => filter.and(there.clone()),
                None => there.clone(),
            }));
            Ok(Expr::AggregateFunction(AggregateFunction { func, params }))
        }
        _ => Err(shape("an aggregate that is no plain function")),
    }
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
