//! The reference data that a state depends on: what events were joined with before they were aggregated.
//!
//! What is read above the aggregates is read when somebody asks, so that a new price list or a new rate of tax leaves the
//! state as it is.

use std::collections::BTreeMap;

use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan};

use super::slots::Slot;
use super::sources::by_contract;
use crate::functions::EXCHANGE_RATES;
use crate::project::RuleProject;
use crate::rule::Rule;

/// The versions of the reference tables that these plans read, as one text.
pub(super) fn versions_read<'p>(plans: impl Iterator<Item = &'p LogicalPlan>, rule: &Rule, project: &RuleProject) -> Result<String> {
    let mut read: BTreeMap<String, String> = BTreeMap::new();
    let mut note = |table: &str| {
        let version = project.reference.table(table).map_or_else(|| "none".to_owned(), |table| table.version());
        read.insert(table.to_owned(), version);
    };
    if by_contract(rule) {
        // They say which window an event is in.
        note("contracts");
    }
    for plan in plans {
        plan.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node
                && Slot::of(scan).is_none()
            {
                note(scan.table_name.table());
            }
            node.apply_expressions(|expr| {
                expr.apply(|expr| {
                    if matches!(expr, Expr::ScalarFunction(call) if call.func.name() == "convert") {
                        note(EXCHANGE_RATES);
                    }
                    Ok(TreeNodeRecursion::Continue)
                })
            })
        })?;
    }
    Ok(read.into_iter().map(|(table, version)| format!("{table} {version}")).collect::<Vec<_>>().join(", "))
}
