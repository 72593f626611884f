//! Where the planner of DataFusion 55 changes what a query means, put right.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::Column;
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, Projection, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Subquery, Volatility,
};
use datafusion::optimizer::analyzer::{Analyzer, AnalyzerRule};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::{Optimizer, OptimizerConfig, OptimizerRule};

pub(crate) fn analyzer_rules() -> Vec<Arc<dyn AnalyzerRule + Send + Sync>> {
    let mut rules: Vec<Arc<dyn AnalyzerRule + Send + Sync>> = vec![Arc::new(ScalarSubqueriesMayBeNull)];
    rules.extend(Analyzer::new().rules);
    rules
}

pub(crate) fn optimizer_rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    Optimizer::new()
        .rules
        .into_iter()
        .map(|rule| if rule.name() == "push_down_filter" { Arc::new(FiltersAboveGlobalAggregates::default()) } else { rule })
        .collect()
}

/// Filters move down, but stay above an aggregate that has no groups: one that names no column, such as
/// `'all' IN (…)`, would be moved below it, and the aggregate has a row all the same.
#[derive(Debug, Default)]
struct FiltersAboveGlobalAggregates(PushDownFilter);

impl OptimizerRule for FiltersAboveGlobalAggregates {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let mut below = &plan;
        while let LogicalPlan::Filter(filter) = below {
            below = &filter.input;
        }
        match below {
            LogicalPlan::Aggregate(aggregate) if aggregate.group_expr.is_empty() => Ok(Transformed::no(plan)),
            _ => self.0.rewrite(plan, config),
        }
    }
}

/// A scalar subquery without rows is null, even where its column cannot be. The planner believes the column, and takes
/// `coalesce((SELECT …), 0)` and `(SELECT …) IS NULL` away.
#[derive(Debug)]
struct ScalarSubqueriesMayBeNull;

impl AnalyzerRule for ScalarSubqueriesMayBeNull {
    fn name(&self) -> &str {
        "scalar_subqueries_may_be_null"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|node| {
            // What is above sees it, too.
            node.map_expressions(|root| root.transform_up(nullable_subquery))?.map_data(LogicalPlan::recompute_schema)
        })
        .data()
    }
}

fn nullable_subquery(expr: Expr) -> Result<Transformed<Expr>> {
    let Expr::ScalarSubquery(Subquery { subquery, outer_ref_columns, spans }) = expr else { return Ok(Transformed::no(expr)) };
    let (qualifier, field) = subquery.schema().qualified_field(0);
    if field.is_nullable() {
        return Ok(Transformed::no(Expr::ScalarSubquery(Subquery { subquery, outer_ref_columns, spans })));
    }
    let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
    let nullable = ScalarUDF::from(Nullable::default()).call(vec![column]).alias_qualified(qualifier.cloned(), field.name());
    let subquery = Arc::new(LogicalPlan::Projection(Projection::try_new(vec![nullable], Arc::clone(&subquery))?));
    Ok(Transformed::yes(Expr::ScalarSubquery(Subquery { subquery, outer_ref_columns, spans })))
}

/// Its argument, of which nothing is known.
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
