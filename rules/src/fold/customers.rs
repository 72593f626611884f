//! Whether the charges of a customer come of that customer's groups alone.
//!
//! Then, when usage has come, the groups of its customers are evaluated and no others. It is so where a group key of every
//! folded aggregate stays with its rows, through every join, grouping and window function above, up to `customer_id`.

use std::collections::BTreeSet;

use arrow::datatypes::DataType;
use datafusion::common::{Column, JoinType};
use datafusion::logical_expr::{Aggregate, Expr, Join, LogicalPlan};

use super::points::Point;
use super::slots::Slot;

/// Choices of group keys that are tried.
const CHOICES_MAX: usize = 64;

/// For each folded aggregate, the group key that is the customer of its rows; `None` where charges of one customer can come of
/// the groups of another. A row of `above` that depends on no group counts as one of its own customer.
pub(super) fn customer_keys(points: &[&Point], above: &LogicalPlan) -> Option<Vec<usize>> {
    let output = above.schema().fields().iter().position(|field| field.name() == "customer_id")?;
    if *above.schema().field(output).data_type() != DataType::Utf8 || points.is_empty() {
        return None;
    }
    let candidates: Vec<Vec<usize>> = points.iter().map(|point| texts(point)).collect();
    let choices = candidates.iter().try_fold(1_usize, |choices, keys| choices.checked_mul(keys.len()))?;
    let choice = |number: usize| -> Vec<usize> {
        let mut rest = number;
        candidates
            .iter()
            .map(|keys| {
                let key = keys[rest % keys.len()];
                rest /= keys.len();
                key
            })
            .collect()
    };
    (0..choices.min(CHOICES_MAX)).map(choice).find(|keys| {
        followed(above, keys).is_some_and(|rows| match rows {
            // No group is read at all.
            Rows::Fixed => false,
            Rows::Keyed(columns) => columns.contains(&output),
        })
    })
}

/// The group keys of an aggregate that may be customers.
fn texts(point: &Point) -> Vec<usize> {
    let LogicalPlan::Aggregate(aggregate) = &point.events else { return Vec::new() };
    let keys = 0..aggregate.group_expr.len().min(point.schema.fields().len());
    keys.filter(|key| *point.schema.field(*key).data_type() == DataType::Utf8).collect()
}

/// What the rows of a plan depend on.
enum Rows {
    /// No group: reference tables, windows, and what the caller holds still.
    Fixed,
    /// Of each of these columns: on groups only whose key has the value that the row has there, or on none.
    Keyed(BTreeSet<usize>),
}

impl Rows {
    fn has(&self, column: usize) -> bool {
        match self {
            Self::Fixed => true,
            Self::Keyed(columns) => columns.contains(&column),
        }
    }

    fn keyed(columns: impl IntoIterator<Item = usize>) -> Option<Self> {
        let columns: BTreeSet<usize> = columns.into_iter().collect();
        (!columns.is_empty()).then_some(Self::Keyed(columns))
    }
}

fn followed(plan: &LogicalPlan, keys: &[usize]) -> Option<Rows> {
    match plan {
        LogicalPlan::TableScan(scan) => match Slot::of(scan) {
            Some(Slot::Aggregate(number)) => {
                let key = format!("c{}", keys.get(number)?);
                Rows::keyed(scan.projected_schema.fields().iter().position(|field| *field.name() == key))
            }
            Some(Slot::Usage) => None,
            Some(Slot::Windows | Slot::Opening | Slot::Charges(_)) | None => Some(Rows::Fixed),
        },
        LogicalPlan::EmptyRelation(_) | LogicalPlan::Values(_) => Some(Rows::Fixed),
        LogicalPlan::Join(join) => joined(join, keys),
        LogicalPlan::Union(union) => {
            let parts = union.inputs.iter().map(|input| followed(input, keys)).collect::<Option<Vec<Rows>>>()?;
            if parts.iter().all(|part| matches!(part, Rows::Fixed)) {
                return Some(Rows::Fixed);
            }
            Rows::keyed((0..union.schema.fields().len()).filter(|column| parts.iter().all(|part| part.has(*column))))
        }
        _ => {
            let [input] = plan.inputs()[..] else { return None };
            match followed(input, keys)? {
                Rows::Fixed => is_deterministic(plan).then_some(Rows::Fixed),
                Rows::Keyed(columns) => Rows::keyed(above(plan, input, &columns)?),
            }
        }
    }
}

/// Nodes whose rows are the same whenever those of their input are, in whatever order.
fn is_deterministic(plan: &LogicalPlan) -> bool {
    !matches!(plan, LogicalPlan::Limit(_) | LogicalPlan::Extension(_))
}

/// The columns of `plan` in which its rows keep what those of its input have in `columns`.
fn above(plan: &LogicalPlan, input: &LogicalPlan, columns: &BTreeSet<usize>) -> Option<Vec<usize>> {
    let is_key = |expr: &Expr| column_of(expr, input).is_some_and(|column| columns.contains(&column));
    let positions =
        |exprs: &[Expr]| -> Vec<usize> { exprs.iter().enumerate().filter(|(_, expr)| is_key(expr)).map(|(index, _)| index).collect() };
    match plan {
        LogicalPlan::Projection(projection) => Some(positions(&projection.expr)),
        LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => Some(columns.iter().copied().collect()),
        LogicalPlan::Sort(sort) if sort.fetch.is_none() => Some(columns.iter().copied().collect()),
        LogicalPlan::Aggregate(Aggregate { group_expr, .. }) => {
            (!group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_)))).then(|| positions(group_expr))
        }
        LogicalPlan::Window(window) => {
            let mut kept = columns.clone();
            for function in &window.window_expr {
                let partitions = partitions_of(function)?;
                kept.retain(|column| partitions.iter().any(|expr| column_of(expr, input) == Some(*column)));
            }
            Some(kept.into_iter().collect())
        }
        LogicalPlan::Unnest(unnest) => {
            let lists: BTreeSet<usize> = unnest.list_type_columns.iter().map(|(column, _)| *column).collect();
            let dependencies = unnest.dependency_indices.iter().enumerate();
            Some(dependencies.filter(|(_, from)| columns.contains(from) && !lists.contains(from)).map(|(index, _)| index).collect())
        }
        _ => None,
    }
}

fn partitions_of(function: &Expr) -> Option<&[Expr]> {
    match function {
        Expr::Alias(alias) => partitions_of(&alias.expr),
        Expr::WindowFunction(function) => Some(&function.params.partition_by),
        _ => None,
    }
}

/// The column of `input` that an expression is, unchanged.
fn column_of(expr: &Expr, input: &LogicalPlan) -> Option<usize> {
    match expr {
        Expr::Alias(alias) => column_of(&alias.expr, input),
        Expr::Column(column) => position(input, column),
        _ => None,
    }
}

fn position(input: &LogicalPlan, column: &Column) -> Option<usize> {
    input.schema().maybe_index_of_column(column)
}

fn joined(join: &Join, keys: &[usize]) -> Option<Rows> {
    use JoinType::{Full, Inner, Left, LeftAnti, LeftMark, LeftSemi, Right, RightAnti, RightMark, RightSemi};
    let (left, right) = (followed(&join.left, keys)?, followed(&join.right, keys)?);
    if matches!((&left, &right), (Rows::Fixed, Rows::Fixed)) {
        return Some(Rows::Fixed);
    }
    if join.null_aware {
        return None;
    }
    // Rows that meet have the same value here.
    let pairs: Vec<(usize, usize)> = join
        .on
        .iter()
        .filter_map(|(of_left, of_right)| Some((column_of(of_left, &join.left)?, column_of(of_right, &join.right)?)))
        .filter(|(of_left, of_right)| left.has(*of_left) && right.has(*of_right))
        .collect();
    // The columns of a side that stay true whatever the other side has.
    let of = |own: &Rows, other: &Rows, own_pairs: Vec<usize>| -> BTreeSet<usize> {
        match (own, other) {
            (Rows::Keyed(columns), Rows::Fixed) => columns.iter().copied().chain(own_pairs).collect(),
            _ => own_pairs.into_iter().collect(),
        }
    };
    let of_left = of(&left, &right, pairs.iter().map(|(column, _)| *column).collect());
    let of_right = of(&right, &left, pairs.iter().map(|(_, column)| *column).collect());
    let shift = join.left.schema().fields().len();
    match join.join_type {
        Inner => Rows::keyed(of_left.into_iter().chain(of_right.into_iter().map(|column| column + shift))),
        Left | LeftSemi | LeftAnti | LeftMark => Rows::keyed(of_left),
        Right => Rows::keyed(of_right.into_iter().map(|column| column + shift)),
        RightSemi | RightAnti | RightMark => Rows::keyed(of_right),
        Full => None,
    }
}
