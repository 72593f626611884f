//! Tables whose rows are given anew for each execution, so that a plan is made once and executed many times.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{DataFusionError, Result, TableReference, internal_datafusion_err};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder, TableScan};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;

/// The column of a slot with the number of the window. No table of a project can have a space in its names.
pub(super) const WINDOW: &str = "fold window";

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Slot {
    /// Events, each with its window.
    Usage,
    /// One row for each window.
    Windows,
    /// The last events before each window.
    Opening,
    /// Charges of other rules or of other windows, by the place of the table among the rule's inputs.
    Charges(usize),
    /// The final rows of an aggregate that is folded.
    Aggregate(usize),
}

impl Slot {
    fn prefix(self) -> String {
        match self {
            Self::Usage => "fold usage".to_owned(),
            Self::Windows => "fold windows".to_owned(),
            Self::Opening => "fold opening".to_owned(),
            Self::Charges(index) => format!("fold charges {index}"),
            Self::Aggregate(index) => format!("fold aggregate {index}"),
        }
    }

    /// The slot that a scan reads, if it reads one.
    pub(super) fn of(scan: &TableScan) -> Option<Self> {
        let mut words = scan.table_name.table().split(' ');
        if words.next() != Some("fold") {
            return None;
        }
        let (kind, index) = (words.next()?, words.next());
        match kind {
            "usage" => Some(Self::Usage),
            "windows" => Some(Self::Windows),
            "opening" => Some(Self::Opening),
            "charges" => index?.parse().ok().map(Self::Charges),
            "aggregate" => index?.parse().ok().map(Self::Aggregate),
            _ => None,
        }
    }

    /// A scan of the slot; `name` tells scans of one slot apart.
    pub(super) fn scan(self, name: &str, schema: &SchemaRef) -> Result<LogicalPlanBuilder> {
        let rows = SlotStream { slot: self, schema: Arc::clone(schema) };
        let table = StreamingTable::try_new(Arc::clone(schema), vec![Arc::new(rows)])?;
        let name = if name.is_empty() { self.prefix() } else { format!("{} {name}", self.prefix()) };
        LogicalPlanBuilder::scan(TableReference::bare(name), provider_as_source(Arc::new(table)), None)
    }
}

/// The rows of one execution; a slot without rows is empty.
#[derive(Debug, Clone, Default)]
pub(super) struct SlotRows(pub(super) BTreeMap<Slot, RecordBatch>);

#[derive(Debug)]
struct SlotStream {
    slot: Slot,
    schema: SchemaRef,
}

impl PartitionStream for SlotStream {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let given = context.session_config().get_extension::<SlotRows>();
        let rows = given.and_then(|rows| rows.0.get(&self.slot).cloned());
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), futures::stream::iter(rows.map(Ok))))
    }
}

/// The plan with its slots filled for good; of rows in memory the planner knows how many there are.
pub(super) fn filled(plan: LogicalPlan, rows: &SlotRows) -> Result<LogicalPlan> {
    plan.transform_up(|node| match node {
        LogicalPlan::TableScan(mut scan) => match Slot::of(&scan) {
            None => Ok(Transformed::no(LogicalPlan::TableScan(scan))),
            Some(slot) => {
                let schema = scan.source.schema();
                let batches = rows.0.get(&slot).cloned().into_iter().collect();
                scan.source = provider_as_source(Arc::new(MemTable::try_new(schema, vec![batches])?));
                Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
            }
        },
        other => Ok(Transformed::no(other)),
    })
    .data()
}

/// The same node over other inputs.
pub(super) fn with_inputs(node: &LogicalPlan, inputs: Vec<LogicalPlan>) -> Result<LogicalPlan> {
    let mut inputs = inputs.into_iter();
    let mut next = || inputs.next().ok_or_else(|| internal_datafusion_err!("a plan lost an input"));
    node.clone().map_children(|_| Ok::<_, DataFusionError>(Transformed::yes(next()?))).data()
}
