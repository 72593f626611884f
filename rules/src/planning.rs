//! Where the planner of DataFusion 55 changes what a query means, put right.

mod subqueries;

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::LogicalPlan;
use datafusion::optimizer::analyzer::{Analyzer, AnalyzerRule};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::{Optimizer, OptimizerConfig, OptimizerRule};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::ExecutionPlan;

pub(crate) fn analyzer_rules() -> Vec<Arc<dyn AnalyzerRule + Send + Sync>> {
    let mut rules: Vec<Arc<dyn AnalyzerRule + Send + Sync>> = vec![Arc::new(subqueries::Subqueries)];
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

pub(crate) fn physical_optimizer_rules() -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    PhysicalOptimizer::new()
        .rules
        .into_iter()
        .map(|rule| if rule.name().starts_with("FilterPushdown") { Arc::new(FiltersOfUniqueColumns(rule)) } else { rule })
        .collect()
}

/// Filters of a physical plan move down where every column has a name of its own. They find their columns by name, and of
/// two sides of a join that both have a `k`, `coalesce(a.k, b.k) > 1` would be moved to one, as if it looked at that `k` only.
#[derive(Debug)]
struct FiltersOfUniqueColumns(Arc<dyn PhysicalOptimizerRule + Send + Sync>);

impl PhysicalOptimizerRule for FiltersOfUniqueColumns {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        if has_unique_columns(&plan) {
            return self.0.optimize(plan, config);
        }
        Ok(plan.map_children(|input| Ok(Transformed::yes(self.optimize(input, config)?)))?.data)
    }

    fn schema_check(&self) -> bool {
        self.0.schema_check()
    }
}

/// Whether no two columns of a node, or of the sides of a join, have one name, here and below.
fn has_unique_columns(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let unique = |schemas: &[SchemaRef]| {
        let mut names = HashSet::new();
        schemas.iter().flat_map(|schema| schema.fields()).all(|field| names.insert(field.name()))
    };
    let inputs: Vec<SchemaRef> = plan.children().into_iter().map(|input| input.schema()).collect();
    let joins = plan.name().ends_with("JoinExec");
    unique(&[plan.schema()]) && (!joins || unique(&inputs)) && plan.children().into_iter().all(has_unique_columns)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::session::{SessionLimits, runtime, session};

    /// The first column of a query over `numbers`, whose `x` is 1, 2, 3.
    async fn rows(query: &str) -> Result<String, datafusion::common::DataFusionError> {
        rows_on(query, 1).await
    }

    async fn rows_on(query: &str, partitions: usize) -> Result<String, datafusion::common::DataFusionError> {
        let limits = SessionLimits { partitions, ..SessionLimits::default() };
        let context = session(runtime(&limits).unwrap(), &limits);
        let query = format!("WITH numbers AS (SELECT * FROM (VALUES (1), (2), (3)) AS t(x)) {query}");
        let batches = context.sql(&query).await?.collect().await?;
        let rows = batches.iter().flat_map(|batch| {
            let column = batch.column(0);
            (0..column.len()).map(|row| arrow::util::display::array_value_to_string(column, row).unwrap())
        });
        Ok(rows.collect::<Vec<_>>().join(" "))
    }

    async fn check(query: &str, expected: &str) {
        let found = rows(query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
        assert_eq!(found, expected, "{query}");
    }

    async fn refused(query: &str, expected: &str) {
        let error = rows(query).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{query}: {error}");
    }

    #[tokio::test]
    async fn filters_look_at_the_columns_that_they_name() {
        // The smaller side becomes the left one, and both have a column of one name.
        let joined = "SELECT coalesce(a.k, b.k) AS k, b.x FROM (SELECT x + 100 AS k, x FROM numbers) a \
            RIGHT JOIN (SELECT x AS k, x FROM numbers WHERE x < 2) b ON a.x = b.x";
        for partitions in [1, 2] {
            let found = rows_on(&format!("SELECT c.x FROM ({joined}) c WHERE c.k > 100"), partitions).await.unwrap();
            assert_eq!(found, "1", "{partitions}");
        }
    }

    #[tokio::test]
    async fn filters_stay_above_global_aggregates() {
        check("SELECT a.total FROM (SELECT 'all' AS key, max(x) AS total FROM numbers) a WHERE a.key IN ('none', 'other')", "").await;
        check("SELECT a.total FROM (SELECT 'all' AS key, max(x) AS total FROM numbers) a WHERE a.key = 'all' AND a.total > 2", "3").await;
        check("SELECT max(x) FROM numbers HAVING 'a' = 'b'", "").await;
        check("SELECT a.x FROM (SELECT x, count(*) AS n FROM numbers GROUP BY x) a WHERE a.x > 1 ORDER BY a.x", "2 3").await;
    }

    #[tokio::test]
    async fn scalar_subqueries_without_rows_are_null() {
        check("SELECT coalesce((SELECT 7 FROM numbers WHERE x > 5), 0)", "0").await;
        check("SELECT coalesce((SELECT 7 FROM numbers WHERE x > 2), 0)", "7").await;
        check("SELECT (SELECT 7 FROM numbers WHERE x > 5) IS NULL", "true").await;
        check("SELECT coalesce(a.y, 0) FROM (SELECT (SELECT 7 FROM numbers WHERE x > 5) AS y UNION ALL SELECT 1) a", "0 1").await;
        check("SELECT x FROM numbers WHERE coalesce((SELECT 7 FROM numbers WHERE x > 5), 0) = 0 ORDER BY x", "1 2 3").await;
        check("SELECT (SELECT count(*) FROM numbers b WHERE b.x > 2 AND b.x = a.x) FROM numbers a ORDER BY a.x", "0 0 1").await;
        check("SELECT coalesce((SELECT count(*) FROM numbers b WHERE b.x = a.x HAVING count(*) > 1), 9) FROM numbers a", "9 9 9").await;
    }

    #[tokio::test]
    async fn scalar_subqueries_have_one_row() {
        refused("SELECT (SELECT b.x FROM numbers b WHERE b.x > 1)", "gives 2 rows").await;
        check("SELECT (SELECT b.x FROM numbers b WHERE b.x > 2)", "3").await;
        check("SELECT (SELECT b.x FROM numbers b WHERE b.x = a.x + 1) AS y FROM numbers a ORDER BY a.x", "2 3 ").await;
        check("SELECT coalesce((SELECT b.x FROM numbers b WHERE b.x = a.x + 1), 0) FROM numbers a ORDER BY a.x", "2 3 0").await;
        check("SELECT (SELECT b.x FROM numbers b ORDER BY b.x DESC LIMIT 1)", "3").await;
        check("SELECT x FROM numbers a WHERE a.x = (SELECT b.x FROM numbers b WHERE b.x = a.x AND b.x > 1) ORDER BY x", "2 3").await;
    }

    #[tokio::test]
    async fn aggregates_of_no_rows_are_counted() {
        check("SELECT coalesce((SELECT max(b.x) FROM numbers b WHERE b.x = a.x + 2), 0) FROM numbers a ORDER BY a.x", "3 0 0").await;
        check("SELECT (SELECT coalesce(max(b.x), 5) FROM numbers b WHERE b.x = a.x + 2) FROM numbers a ORDER BY a.x", "3 5 5").await;
        check("SELECT (SELECT 1 + count(*) FROM numbers b WHERE b.x = a.x + 2) FROM numbers a ORDER BY a.x", "2 1 1").await;
        check("SELECT x FROM numbers a WHERE (SELECT count(*) FROM numbers b WHERE b.x = a.x + 2) = 0 ORDER BY a.x", "2 3").await;
        let lateral = "LATERAL (SELECT coalesce(max(b.x), 5) AS m FROM numbers b WHERE b.x = a.x + 2) c";
        check(&format!("SELECT c.m FROM numbers a CROSS JOIN {lateral} ORDER BY a.x"), "3 5 5").await;
        refused("SELECT x FROM numbers a WHERE EXISTS (SELECT count(*) FROM numbers b WHERE b.x = a.x + 100)", "compare the aggregate")
            .await;
        check("SELECT x FROM numbers a WHERE EXISTS (SELECT count(*) FROM numbers b WHERE b.x = 100) ORDER BY x", "1 2 3").await;
        check("SELECT x FROM numbers a WHERE EXISTS (SELECT max(b.x) FROM numbers b HAVING max(b.x) = a.x)", "3").await;
    }

    #[tokio::test]
    async fn nulls_are_minded_by_in() {
        let nulls = "(SELECT nullif(b.x, 3) FROM numbers b)";
        check(&format!("SELECT x FROM numbers a WHERE a.x NOT IN {nulls}"), "").await;
        check(&format!("SELECT x FROM numbers a WHERE a.x > 2 OR a.x IN {nulls} ORDER BY x"), "1 2 3").await;
        refused(&format!("SELECT x FROM numbers a WHERE a.x > 100 OR a.x NOT IN {nulls}"), "write NOT EXISTS").await;
        refused(&format!("SELECT x FROM numbers a WHERE (a.x IN {nulls}) IS NULL"), "write NOT EXISTS").await;
        check("SELECT x FROM numbers a WHERE 3 > ALL (SELECT b.x FROM numbers b WHERE b.x > 100) ORDER BY x", "1 2 3").await;
        check("SELECT x FROM numbers a WHERE a.x >= ALL (SELECT b.x FROM numbers b)", "3").await;
        check("SELECT x FROM numbers a WHERE a.x > ANY (SELECT b.x FROM numbers b) ORDER BY x", "2 3").await;
    }

    #[tokio::test]
    async fn columns_of_using_are_of_their_subquery() {
        refused("SELECT x FROM numbers a WHERE EXISTS (SELECT 1 FROM numbers b JOIN numbers c USING (x) WHERE x = 2)", "USING").await;
        check("SELECT x FROM numbers a JOIN numbers c USING (x) ORDER BY x", "1 2 3").await;
    }
}
