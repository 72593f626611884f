//! The tables of the lake that an epoch commits to.

use ratemill_schemas::{UsageSchema, adopted, changes, charges, files, rejected};

use super::running_table::running_spec;
use crate::lake::{Lake, LakeError, LakeTable, TableSpec};

/// The tables of the lake.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) usage: LakeTable,
    pub(super) rejected: LakeTable,
    pub(super) files: LakeTable,
    pub(super) charges: LakeTable,
    pub(super) changes: LakeTable,
    pub(super) adopted: LakeTable,
}

impl Tables {
    /// Opens the tables, and creates those that are not there.
    pub(super) async fn open_or_create(lake: &Lake, schema: &UsageSchema) -> Result<Self, LakeError> {
        let [usage, rejected, files, charges, changes, adopted] = table_specs(schema);
        Ok(Self {
            usage: LakeTable::open_or_create(lake, &usage).await?,
            rejected: LakeTable::open_or_create(lake, &rejected).await?,
            files: LakeTable::open_or_create(lake, &files).await?,
            charges: LakeTable::open_or_create(lake, &charges).await?,
            changes: LakeTable::open_or_create(lake, &changes).await?,
            adopted: LakeTable::open_or_create(lake, &adopted).await?,
        })
    }
}

/// The specifications of the lake's tables.
#[must_use]
pub fn table_specs(schema: &UsageSchema) -> [TableSpec; 6] {
    [
        TableSpec {
            name: "usage",
            schema: schema.stored().clone(),
            partitions: &["day"],
            statistics: &["source", "id", "meter", "subject", "time", "log_position"],
        },
        TableSpec {
            name: "rejected",
            schema: rejected::schema(),
            partitions: &[],
            statistics: &["rejected_at", "connector", "reason", "log_position"],
        },
        TableSpec { name: "files", schema: files::schema(), partitions: &[], statistics: &["claimed_at", "connector", "path"] },
        TableSpec {
            name: "charges",
            schema: charges::schema(&[]),
            partitions: &["posting_period"],
            statistics: &[
                "charge_id",
                "customer_id",
                "contract_id",
                "window_start",
                "window_end",
                "billing_period",
                "item",
                "currency",
                "rule",
                "epoch",
            ],
        },
        TableSpec {
            name: "changes",
            schema: changes::stored(schema),
            partitions: &[],
            statistics: &["source", "id", "target_source", "target_id", "log_position"],
        },
        TableSpec {
            name: "adopted",
            schema: adopted::schema(),
            partitions: &[],
            statistics: &["adopted_at", "content_hash", "log_position"],
        },
    ]
}

/// Those, and the table of running charges.
#[must_use]
pub fn lake_tables(schema: &UsageSchema) -> Vec<TableSpec> {
    table_specs(schema).into_iter().chain([running_spec()]).collect()
}
