//! Where a plan is folded: its lowest aggregates above usage.
//!
//! Below such an aggregate every event must count by itself: `rows(A ∪ B) = rows(A) ∪ rows(B)`. Projections, filters and
//! joins with reference tables are like that, whichever side is preserved, as long as it is that of the events. Rows that
//! are there without events, such as a union with a reference table, are aggregated on demand and added. A join that
//! preserves the other side is taken apart: `R LEFT JOIN E = (R JOIN E) ∪ (rows of R that met no event)`, where those that
//! met one are an aggregate that is folded, too.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, JoinType, NullEquality, Result, ScalarValue};
use datafusion::logical_expr::{Aggregate, EmptyRelation, Expr, Join, LogicalPlan, Projection, Union, lit};

use super::NotFoldable;
use super::slots::{Slot, WINDOW, with_inputs};
use super::trace::{Origin, origin, window_keys};

/// An aggregate that is folded.
#[derive(Debug)]
pub(super) struct Point {
    /// The aggregate of what comes of events.
    pub(super) events: LogicalPlan,
    /// The aggregate of what is there without any.
    pub(super) rest: Option<LogicalPlan>,
    /// The group keys that are numbers of windows.
    pub(super) windows: Vec<usize>,
    /// The rows that take the place of the aggregate.
    pub(super) schema: SchemaRef,
    /// What its state keeps that grows with usage, in words.
    pub(super) keeps: Vec<String>,
}

/// A plan without its lowest aggregates: scans of their final rows are in their place.
pub(super) struct Divided {
    /// Those below others first.
    pub(super) points: Vec<Point>,
    pub(super) above: LogicalPlan,
}

/// Divides an optimized plan over slots.
pub(super) fn divide(plan: &LogicalPlan) -> Result<Divided, NotFoldable> {
    let mut divider = Divider { points: Vec::new(), named: 0 };
    let (above, rows) = divider.divide(plan)?;
    if rows == Rows::Events {
        return Err(NotFoldable::because("it charges events one by one: no sum or other aggregate stands above usage"));
    }
    Ok(Divided { points: divider.points, above })
}

/// What the rows of a plan depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rows {
    /// Reference tables and windows.
    Fixed,
    /// Aggregates that are folded, charges, or `opening`.
    Late,
    /// Each event by itself, and maybe more rows without events.
    Events,
}

struct Divider {
    points: Vec<Point>,
    named: usize,
}

impl Divider {
    fn divide(&mut self, plan: &LogicalPlan) -> Result<(LogicalPlan, Rows), NotFoldable> {
        if let LogicalPlan::Join(join) = plan {
            return self.join(join);
        }
        let mut inputs = Vec::new();
        let mut rows = Rows::Fixed;
        for input in plan.inputs() {
            let (input, of_input) = self.divide(input)?;
            inputs.push(input);
            rows = rows.max(of_input);
        }
        let plan = with_inputs(plan, inputs)?;
        match &plan {
            LogicalPlan::TableScan(scan) => {
                let rows = match Slot::of(scan) {
                    Some(Slot::Usage) => Rows::Events,
                    Some(Slot::Opening | Slot::Charges(_) | Slot::Aggregate(_)) => Rows::Late,
                    Some(Slot::Windows) | None => Rows::Fixed,
                };
                Ok((plan, rows))
            }
            LogicalPlan::Aggregate(aggregate) if rows == Rows::Events => Ok((self.point(aggregate)?, Rows::Late)),
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Union(_)
            | LogicalPlan::Unnest(_) => Ok((plan, rows)),
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => Ok((plan, rows)),
            LogicalPlan::Window(window) if rows == Rows::Events => {
                let function = window.window_expr.first().map_or_else(String::new, |function| function.schema_name().to_string());
                let name = function.split('(').next().unwrap_or_default();
                Err(NotFoldable::because(format!("a window function ({name}) looks at all events of the window")))
            }
            other if rows == Rows::Events => {
                let what = other.display().to_string();
                let what = what.split([':', ' ']).next().unwrap_or("a part of the query").to_owned();
                Err(NotFoldable::because(format!("{what} looks at all events of the window")))
            }
            _ => Ok((plan, rows)),
        }
    }

    fn name(&mut self) -> usize {
        self.named += 1;
        self.named
    }

    /// Takes note of an aggregate and gives the scan of its final rows.
    fn point(&mut self, aggregate: &Aggregate) -> Result<LogicalPlan, NotFoldable> {
        let (events, has_rest) = events_only(aggregate.input.as_ref().clone())?;
        let over = |input: LogicalPlan| -> Result<LogicalPlan> {
            let (groups, functions) = (aggregate.group_expr.clone(), aggregate.aggr_expr.clone());
            Ok(LogicalPlan::Aggregate(Aggregate::try_new_with_schema(Arc::new(input), groups, functions, Arc::clone(&aggregate.schema))?))
        };
        let windows = window_keys(aggregate, &self.points);
        if windows.is_empty() {
            return Err(NotFoldable::because("an aggregate of events is not grouped by the window"));
        }
        let fields = aggregate.schema.fields().iter().enumerate();
        let schema = Arc::new(Schema::new(
            fields.map(|(index, field)| Field::new(format!("c{index}"), field.data_type().clone(), true)).collect::<Vec<_>>(),
        ));
        let slot = Slot::Aggregate(self.points.len());
        let columns = aggregate
            .schema
            .iter()
            .enumerate()
            .map(|(index, (qualifier, field))| {
                Expr::Column(Column::from_name(format!("c{index}"))).alias_qualified(qualifier.cloned(), field.name())
            })
            .collect();
        let scan = slot.scan("", &schema)?.build()?;
        self.points.push(Point {
            events: over(events)?,
            rest: if has_rest { Some(over(without_events(aggregate.input.as_ref().clone())?)?) } else { None },
            windows,
            schema,
            keeps: keeps(aggregate),
        });
        Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(scan))?))
    }

    fn join(&mut self, join: &Join) -> Result<(LogicalPlan, Rows), NotFoldable> {
        use JoinType::{Full, Inner, Left, LeftAnti, LeftMark, LeftSemi, Right, RightAnti, RightMark, RightSemi};
        let (left, of_left) = self.divide(&join.left)?;
        let (right, of_right) = self.divide(&join.right)?;
        let events_left = match (of_left, of_right) {
            (Rows::Events, Rows::Events) => return Err(NotFoldable::because("events are joined with each other")),
            (Rows::Events, _) => true,
            (_, Rows::Events) => false,
            _ => {
                let plan = with_inputs(&LogicalPlan::Join(join.clone()), vec![left, right])?;
                return Ok((plan, of_left.max(of_right)));
            }
        };
        let sides = Sides { join, left, right, events_left, other: of_left.min(of_right) };
        match (join.join_type, events_left) {
            (Inner, _) | (Left | LeftSemi | LeftAnti | LeftMark, true) | (Right | RightSemi | RightAnti | RightMark, false) => {
                if sides.other == Rows::Late {
                    let with = sides.late();
                    return Err(NotFoldable::because(format!("events are joined with {with}")));
                }
                Ok((with_inputs(&LogicalPlan::Join(join.clone()), vec![sides.left, sides.right])?, Rows::Events))
            }
            (Left | Right | Full, _) => self.outer(&sides),
            (LeftSemi | LeftAnti | LeftMark | RightSemi | RightAnti | RightMark, _) => self.existence(&sides),
        }
    }

    /// Rows of the other side, and whether they met an event.
    fn existence(&mut self, sides: &Sides<'_>) -> Result<(LogicalPlan, Rows), NotFoldable> {
        use JoinType::{LeftAnti, LeftMark, LeftSemi, RightAnti, RightMark, RightSemi};
        let join = sides.join;
        if join.null_aware {
            return Err(NotFoldable::because("NOT IN looks at all events of the window; write NOT EXISTS"));
        }
        let tested = if sides.other == Rows::Late {
            // What the condition looks at in the events stands for them.
            let distinct = grouped(sides.events().clone(), sides.keys(sides.events_left))?;
            let distinct = self.point(&distinct)?;
            let inputs = if sides.events_left { [distinct, sides.right.clone()] } else { [sides.left.clone(), distinct] };
            let [left, right] = inputs.map(Arc::new);
            Join::try_new(
                left,
                right,
                join.on.clone(),
                join.filter.clone(),
                join.join_type,
                join.join_constraint,
                join.null_equality,
                false,
            )?
        } else {
            let kind = match join.join_type {
                LeftSemi | RightSemi => LeftSemi,
                LeftAnti | RightAnti => LeftAnti,
                _ => LeftMark,
            };
            self.met(sides, kind)?
        };
        if !matches!(join.join_type, LeftMark | RightMark) {
            return Ok((LogicalPlan::Join(tested), Rows::Late));
        }
        let last = tested.schema.fields().len() - 1;
        let (mark_of, mark) = tested.schema.qualified_field(last);
        let mark = Expr::Column(Column::new(mark_of.cloned(), mark.name()));
        let columns = join.schema.iter().enumerate().map(|(index, (qualifier, field))| {
            if index == last {
                mark.clone().alias_qualified(qualifier.cloned(), field.name())
            } else {
                Expr::Column(Column::new(qualifier.cloned(), field.name()))
            }
        });
        let columns = columns.collect();
        Ok((LogicalPlan::Projection(Projection::try_new(columns, Arc::new(LogicalPlan::Join(tested)))?), Rows::Late))
    }

    /// The rows of the other side, joined in this way with those of them that met an event.
    fn met(&mut self, sides: &Sides<'_>, kind: JoinType) -> Result<Join, NotFoldable> {
        let keys = sides.keys(!sides.events_left);
        let met = self.point(&grouped(LogicalPlan::Join(sides.inner(JoinType::Inner)?), keys.clone())?)?;
        let number = self.name();
        let name = |index: usize| format!("fold met {number} {index}");
        let columns = keys.iter().enumerate().map(|(index, key)| Expr::Column(key.clone()).alias(name(index))).collect();
        let met = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(met))?);
        let on = keys.iter().enumerate().map(|(index, key)| (Expr::Column(key.clone()), Expr::Column(Column::from_name(name(index)))));
        let other = Arc::new(sides.other().clone());
        let constraint = sides.join.join_constraint;
        Ok(Join::try_new(other, Arc::new(met), on.collect(), None, kind, constraint, NullEquality::NullEqualsNull, false)?)
    }

    /// A join that preserves the other side.
    fn outer(&mut self, sides: &Sides<'_>) -> Result<(LogicalPlan, Rows), NotFoldable> {
        if sides.other == Rows::Late {
            let what = sides.late();
            return Err(NotFoldable::because(format!("{what} is joined with events that may be missing (an outer join)")));
        }
        let join = sides.join;
        let number = self.name();
        let name = |index: usize| format!("fold outer {number} {index}");
        let left = join.left.schema().fields().len();
        // The columns of one side, the others being null.
        let part = |plan: LogicalPlan, of_left: bool, of_right: bool| -> Result<Arc<LogicalPlan>> {
            let columns = join.schema.iter().enumerate().map(|(index, (qualifier, field))| {
                let kept = if index < left { of_left } else { of_right };
                let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
                let value = if kept { column } else { lit(ScalarValue::try_from(field.data_type())?) };
                Ok(value.alias(name(index)))
            });
            let columns = columns.collect::<Result<_>>()?;
            Ok(Arc::new(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?)))
        };
        let both = part(LogicalPlan::Join(sides.inner(JoinType::Inner)?), true, true)?;
        let unmet = part(LogicalPlan::Join(self.met(sides, JoinType::LeftAnti)?), !sides.events_left, sides.events_left)?;
        let mut parts = vec![both, unmet];
        if join.join_type == JoinType::Full {
            let kind = if sides.events_left { JoinType::LeftAnti } else { JoinType::RightAnti };
            parts.push(part(LogicalPlan::Join(sides.inner(kind)?), sides.events_left, !sides.events_left)?);
        }
        let all = LogicalPlan::Union(Union::try_new(parts)?);
        let columns = join.schema.iter().enumerate();
        let columns = columns.map(|(index, (qualifier, field))| {
            Expr::Column(Column::from_name(name(index))).alias_qualified(qualifier.cloned(), field.name())
        });
        Ok((LogicalPlan::Projection(Projection::try_new(columns.collect(), Arc::new(all))?), Rows::Events))
    }
}

/// A join of events with something else.
struct Sides<'a> {
    join: &'a Join,
    left: LogicalPlan,
    right: LogicalPlan,
    events_left: bool,
    other: Rows,
}

impl Sides<'_> {
    fn events(&self) -> &LogicalPlan {
        if self.events_left { &self.left } else { &self.right }
    }

    fn other(&self) -> &LogicalPlan {
        if self.events_left { &self.right } else { &self.left }
    }

    /// What the other side is, where it is only known when all events are there.
    fn late(&self) -> &'static str {
        let reads = |wanted: fn(Slot) -> bool| {
            let other = self.other();
            other.exists(|node| Ok(matches!(node, LogicalPlan::TableScan(scan) if Slot::of(scan).is_some_and(wanted)))).unwrap_or(false)
        };
        if reads(|slot| slot == Slot::Opening) {
            "opening, which a late event can change (what reads both by UNION ALL is folded)"
        } else if reads(|slot| matches!(slot, Slot::Aggregate(_))) {
            "what is aggregated from all events of the window"
        } else {
            "what other windows or rules charge"
        }
    }

    /// The columns of a side that the condition looks at.
    fn keys(&self, left: bool) -> Vec<Column> {
        let schema = if left { self.left.schema() } else { self.right.schema() };
        let on = self.join.on.iter().map(|(of_left, of_right)| if left { of_left } else { of_right });
        let columns: BTreeSet<&Column> = on.chain(&self.join.filter).flat_map(Expr::column_refs).collect();
        columns.into_iter().filter(|column| schema.has_column(column)).cloned().collect()
    }

    /// The same join of another type.
    fn inner(&self, kind: JoinType) -> Result<Join> {
        let join = self.join;
        let (left, right) = (Arc::new(self.left.clone()), Arc::new(self.right.clone()));
        Join::try_new(left, right, join.on.clone(), join.filter.clone(), kind, join.join_constraint, join.null_equality, false)
    }
}

fn grouped(input: LogicalPlan, keys: Vec<Column>) -> Result<Aggregate> {
    Aggregate::try_new(Arc::new(input), keys.into_iter().map(Expr::Column).collect(), Vec::new())
}

fn reads_usage(plan: &LogicalPlan) -> Result<bool> {
    plan.exists(|node| Ok(matches!(node, LogicalPlan::TableScan(scan) if Slot::of(scan) == Some(Slot::Usage))))
}

fn nothing(plan: &LogicalPlan) -> LogicalPlan {
    LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema: Arc::clone(plan.schema()) })
}

/// The plan without the branches of unions that read no usage; whether there are any.
fn events_only(plan: LogicalPlan) -> Result<(LogicalPlan, bool)> {
    let mut found = false;
    let plan = plan.transform_down(|node| {
        let LogicalPlan::Union(union) = &node else { return Ok(Transformed::no(node)) };
        let reads = union.inputs.iter().map(|input| reads_usage(input)).collect::<Result<Vec<_>>>()?;
        if !reads.contains(&true) || !reads.contains(&false) {
            return Ok(Transformed::no(node));
        }
        found = true;
        let inputs = union.inputs.iter().zip(&reads);
        let inputs = inputs.map(|(input, reads)| if *reads { input.as_ref().clone() } else { nothing(input) });
        Ok(Transformed::yes(with_inputs(&node, inputs.collect())?))
    });
    Ok((plan.data()?, found))
}

/// The plan over no events.
fn without_events(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up(|node| match &node {
        LogicalPlan::TableScan(scan) if Slot::of(scan) == Some(Slot::Usage) => Ok(Transformed::yes(nothing(&node))),
        _ => Ok(Transformed::no(node)),
    })
    .data()
}

/// What the state of an aggregate keeps that grows with usage rather than with what is charged.
fn keeps(aggregate: &Aggregate) -> Vec<String> {
    let mut found = BTreeSet::new();
    for key in &aggregate.group_expr {
        let of_event = |name: &str| name != WINDOW && ["id", "time", "end"].contains(&name);
        if let Some(Origin { slot: Slot::Usage, column }) = origin(key, &aggregate.input).filter(|origin| of_event(&origin.column)) {
            found.insert(format!("a row for each `{column}` of usage"));
        }
    }
    for function in &aggregate.aggr_expr {
        let _ = function.apply(|expr| {
            if let Expr::AggregateFunction(call) = expr {
                let name = call.func.name();
                if ["percentile", "weighted", "register_usage"].contains(&name) {
                    found.insert(format!("every value of {name}"));
                } else if call.params.distinct && !["min", "max"].contains(&name) {
                    found.insert(format!("every distinct value of {name}"));
                }
            }
            Ok(TreeNodeRecursion::Continue)
        });
    }
    found.into_iter().collect()
}
