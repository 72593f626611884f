//! A table made of a plan that is not seen through.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::{TableType, ViewTable};
use datafusion::logical_expr::{Expr, LogicalPlan, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;

/// A table and no view: a plan that reads it has a scan of the table, whatever that is made of.
#[derive(Debug)]
pub struct OpaqueTable {
    schema: SchemaRef,
    view: ViewTable,
}

impl OpaqueTable {
    /// The rows of `plan` as a table with the columns of `schema`.
    #[must_use]
    pub fn new(schema: SchemaRef, plan: LogicalPlan) -> Self {
        Self { schema, view: ViewTable::new(plan, None) }
    }
}

#[async_trait]
impl TableProvider for OpaqueTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn get_logical_plan(&'_ self) -> Option<Cow<'_, LogicalPlan>> {
        None
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        self.view.supports_filters_pushdown(filters)
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.view.scan(state, projection, filters, limit).await
    }
}
