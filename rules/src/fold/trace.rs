//! Which column of a slot a column of a plan is.

use arrow::datatypes::DataType;
use datafusion::common::{Column, JoinType};
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan};

use super::points::Point;
use super::slots::{Slot, WINDOW};

/// A column of a slot.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) slot: Slot,
    pub(super) column: String,
}

/// The column of a slot that an expression over `input` is, unchanged.
pub(super) fn origin(expr: &Expr, input: &LogicalPlan) -> Option<Origin> {
    match expr {
        Expr::Alias(alias) => origin(&alias.expr, input),
        Expr::Column(column) => of_column(input, position(input, column)?),
        _ => None,
    }
}

fn position(input: &LogicalPlan, column: &Column) -> Option<usize> {
    input.schema().maybe_index_of_column(column)
}

fn of_column(plan: &LogicalPlan, index: usize) -> Option<Origin> {
    match step(plan, index)? {
        Step::Slot(slot, column) => Some(Origin { slot, column }),
        Step::Expr(expr, input) => origin(expr, input),
        Step::Columns(columns) => match columns.as_slice() {
            [(input, index)] => of_column(input, *index),
            _ => None,
        },
    }
}

/// Where a column of a plan comes from.
enum Step<'a> {
    Slot(Slot, String),
    Expr(&'a Expr, &'a LogicalPlan),
    /// Columns of inputs; of a union, one for each.
    Columns(Vec<(&'a LogicalPlan, usize)>),
}

fn step(plan: &LogicalPlan, index: usize) -> Option<Step<'_>> {
    Some(match plan {
        LogicalPlan::TableScan(scan) => Step::Slot(Slot::of(scan)?, scan.projected_schema.field(index).name().clone()),
        LogicalPlan::Projection(projection) => Step::Expr(projection.expr.get(index)?, &projection.input),
        LogicalPlan::Aggregate(aggregate) => Step::Expr(aggregate.group_expr.get(index)?, &aggregate.input),
        LogicalPlan::Union(union) => Step::Columns(union.inputs.iter().map(|input| (input.as_ref(), index)).collect()),
        LogicalPlan::Unnest(unnest) => Step::Columns(vec![(unnest.input.as_ref(), *unnest.dependency_indices.get(index)?)]),
        LogicalPlan::Join(join) => {
            let left = join.left.schema().fields().len();
            let (input, index) = match join.join_type {
                JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => (join.right.as_ref(), index),
                JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => (join.left.as_ref(), index),
                _ if index < left => (join.left.as_ref(), index),
                _ => (join.right.as_ref(), index - left),
            };
            // The mark of a mark join is no column of an input.
            (index < input.schema().fields().len()).then_some(Step::Columns(vec![(input, index)]))?
        }
        LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::Sort(_) | LogicalPlan::Window(_) => {
            let input = *plan.inputs().first()?;
            (index < input.schema().fields().len()).then_some(Step::Columns(vec![(input, index)]))?
        }
        _ => return None,
    })
}

/// The group keys of an aggregate that are numbers of windows; `points` are those below it.
pub(super) fn window_keys(aggregate: &Aggregate, points: &[Point]) -> Vec<usize> {
    let keys = aggregate.group_expr.iter().enumerate();
    let is_number = |index: usize| *aggregate.schema.field(index).data_type() == DataType::Int64;
    keys.filter(|(index, key)| is_number(*index) && is_window(key, &aggregate.input, points)).map(|(index, _)| index).collect()
}

fn is_window(expr: &Expr, input: &LogicalPlan, points: &[Point]) -> bool {
    match expr {
        Expr::Alias(alias) => is_window(&alias.expr, input, points),
        Expr::Column(column) => position(input, column).is_some_and(|index| holds_windows(input, index, points)),
        // The one of two windows that is there: coalesce, as it is written and as it is simplified.
        Expr::ScalarFunction(call) => {
            call.func.name() == "coalesce" && !call.args.is_empty() && call.args.iter().all(|argument| is_window(argument, input, points))
        }
        Expr::Case(case) => {
            let values = case.when_then_expr.iter().map(|(_, then)| then).chain(&case.else_expr);
            case.else_expr.is_some() && values.into_iter().all(|value| is_window(value, input, points))
        }
        // An outer join has no window on one side.
        Expr::Literal(value, _) => value.is_null(),
        _ => false,
    }
}

fn holds_windows(plan: &LogicalPlan, index: usize, points: &[Point]) -> bool {
    match step(plan, index) {
        Some(Step::Slot(Slot::Aggregate(number), column)) => points
            .get(number)
            .is_some_and(|point| column.strip_prefix('c').and_then(|at| at.parse().ok()).is_some_and(|at| point.windows.contains(&at))),
        Some(Step::Slot(_, column)) => column == WINDOW,
        Some(Step::Expr(expr, input)) => is_window(expr, input, points),
        Some(Step::Columns(columns)) => columns.into_iter().all(|(input, index)| holds_windows(input, index, points)),
        None => matches!(plan, LogicalPlan::EmptyRelation(relation) if !relation.produce_one_row),
    }
}
