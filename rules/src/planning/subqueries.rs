//! Subqueries, as SQL means them.
//!
//! DataFusion takes `(SELECT …)` for a value that has as many rows as there are, and believes that it is not null where
//! its column cannot be: `coalesce((SELECT …), 0)` is null without rows. Here several rows are an error and none are null.
//! What DataFusion answers wrongly in other subqueries is refused.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, JoinConstraint, Result, plan_err};
use datafusion::logical_expr::expr::{Exists, InSubquery};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::{merge_schema, split_conjunction};
use datafusion::logical_expr::{
    Aggregate, AggregateUDF, BinaryExpr, ColumnarValue, Distinct, Expr, ExprSchemable, LogicalPlan, Operator, Projection,
    ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Subquery, Volatility,
};
use datafusion::optimizer::analyzer::AnalyzerRule;

use crate::functions::OnlyValue;

#[derive(Debug)]
pub(super) struct Subqueries;

impl AnalyzerRule for Subqueries {
    fn name(&self) -> &str {
        "subqueries"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|node| {
            refuse(&node)?;
            let names = NamePreserver::new(&node);
            let named = |root: Expr| {
                let name = names.save(&root);
                Ok(root.transform_up(value)?.update_data(|root| name.restore(root)))
            };
            // What is above sees that it may be null, too.
            node.map_expressions(named)?.map_data(LogicalPlan::recompute_schema)
        })
        .data()
    }
}

/// A scalar subquery that is null without rows and fails with several.
fn value(expr: Expr) -> Result<Transformed<Expr>> {
    let Expr::ScalarSubquery(Subquery { subquery, outer_ref_columns, spans }) = expr else { return Ok(Transformed::no(expr)) };
    let (qualifier, field) = subquery.schema().qualified_field(0);
    let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
    let changed = if global_aggregate(&subquery).is_none() {
        let only = AggregateUDF::from(OnlyValue::new()).call(vec![column]);
        Some(LogicalPlan::Aggregate(Aggregate::try_new(Arc::clone(&subquery), Vec::new(), vec![only])?))
    } else if !field.is_nullable() {
        let nullable = ScalarUDF::from(Nullable::default()).call(vec![column]);
        Some(LogicalPlan::Projection(Projection::try_new(vec![nullable], Arc::clone(&subquery))?))
    } else {
        None
    };
    let changes = changed.is_some();
    let subquery = Expr::ScalarSubquery(Subquery { subquery: changed.map_or(subquery, Arc::new), outer_ref_columns, spans });
    Ok(if changes { Transformed::yes(subquery) } else { Transformed::no(subquery) })
}

/// The aggregate without groups that a plan is, whatever is done with its row then.
fn global_aggregate(plan: &LogicalPlan) -> Option<&Aggregate> {
    match plan {
        LogicalPlan::Projection(projection) => global_aggregate(&projection.input),
        LogicalPlan::Filter(filter) => global_aggregate(&filter.input),
        LogicalPlan::Sort(sort) => global_aggregate(&sort.input),
        LogicalPlan::SubqueryAlias(alias) => global_aggregate(&alias.input),
        LogicalPlan::Distinct(Distinct::All(input)) => global_aggregate(input),
        LogicalPlan::Aggregate(aggregate) => Some(aggregate).filter(|aggregate| aggregate.group_expr.is_empty()),
        _ => None,
    }
}

fn refuse(node: &LogicalPlan) -> Result<()> {
    node.apply_expressions(|root| {
        root.apply(|expr| {
            if let Expr::Exists(Exists { subquery, .. }) | Expr::InSubquery(InSubquery { subquery, .. }) = expr {
                let aggregate = global_aggregate(&subquery.subquery);
                if aggregate.is_some_and(|aggregate| !aggregate.input.all_out_ref_exprs().is_empty()) {
                    return plan_err!(
                        "EXISTS and IN cannot look at an aggregate of rows that depend on the outer row; \
                         compare the aggregate, as in (SELECT count(*) …) > 0"
                    );
                }
            }
            if let Expr::Exists(Exists { subquery, .. }) | Expr::InSubquery(InSubquery { subquery, .. }) | Expr::ScalarSubquery(subquery) =
                expr
            {
                refuse_using(subquery)?;
            }
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    if let LogicalPlan::Filter(filter) = node {
        let schema = merge_schema(&node.inputs());
        for condition in split_conjunction(&filter.predicate) {
            // NOT IN by itself minds nulls.
            let by_itself = match condition {
                Expr::Not(inner) => matches!(**inner, Expr::InSubquery(_)),
                condition => matches!(condition, Expr::InSubquery(_)),
            };
            if !by_itself {
                refuse_unknown(condition, &schema)?;
            }
        }
    }
    Ok(())
}

/// Refuses IN with nulls where it matters that it is unknown rather than false: anywhere but below AND and OR.
fn refuse_unknown(expr: &Expr, schema: &DFSchema) -> Result<()> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And | Operator::Or, right }) => {
            refuse_unknown(left, schema)?;
            refuse_unknown(right, schema)
        }
        Expr::InSubquery(InSubquery { negated: false, .. }) => Ok(()),
        expr => {
            let mut found = false;
            expr.apply(|part| {
                if let Expr::InSubquery(InSubquery { expr, subquery, .. }) = part {
                    found |= expr.nullable(schema)? || subquery.subquery.schema().field(0).is_nullable();
                }
                Ok(TreeNodeRecursion::Continue)
            })?;
            if found {
                return plan_err!("NOT IN with values that may be null, beside OR; write NOT EXISTS (SELECT … WHERE …)");
            }
            Ok(())
        }
    }
}

/// A column of USING that is named by itself in a subquery is taken for the outer table's.
fn refuse_using(subquery: &Subquery) -> Result<()> {
    let mut using = BTreeSet::new();
    let mut outer = BTreeSet::new();
    subquery.subquery.apply_with_subqueries(|node| {
        if let LogicalPlan::Join(join) = node
            && join.join_constraint == JoinConstraint::Using
        {
            using.extend(join.on.iter().filter_map(|(left, _)| left.try_as_col().map(|column| column.name.clone())));
        }
        node.apply_expressions(|root| {
            root.apply(|expr| {
                if let Expr::OuterReferenceColumn(_, column) = expr {
                    outer.insert(column.name.clone());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    match using.intersection(&outer).next() {
        Some(name) => plan_err!(
            "in a subquery, `{name}` of USING ({name}) would be the outer table's; write the join with ON and {name} with its table"
        ),
        None => Ok(()),
    }
}

/// Its argument, of which it is not known that it is never null.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Nullable(Signature);

impl Default for Nullable {
    fn default() -> Self {
        Self(Signature::any(1, Volatility::Immutable))
    }
}

impl ScalarUDFImpl for Nullable {
    fn name(&self) -> &str {
        "nullable"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(arguments[0].clone())
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(arguments.args[0].clone())
    }
}
