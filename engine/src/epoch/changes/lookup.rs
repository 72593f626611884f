//! Finding the events that changes name.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use datafusion::prelude::{Expr, col, lit};
use ratemill_rules::session::session;

use super::{EventId, Identities, Place, effective, places};
use crate::epoch::run::{EpochError, Epochs};

impl Epochs {
    /// Those of these events that `usage` holds: one scan, of files whose statistics do not rule them out.
    pub(super) async fn find_usage(&self, sought: &BTreeSet<&EventId>) -> Result<HashMap<EventId, Place>, EpochError> {
        let mut identities = Identities::new();
        for target in sought {
            identities.entry(target.id.clone()).or_default().insert(target.source.clone());
        }
        let among = |name: &str, values: BTreeSet<&str>| -> Option<Expr> {
            Some(col(name).gt_eq(lit(*values.first()?)).and(col(name).lt_eq(lit(*values.last()?))))
        };
        let sources = among("source", sought.iter().map(|target| target.source.as_str()).collect());
        let ids = among("id", sought.iter().map(|target| target.id.as_str()).collect());
        let Some(range) = sources.zip(ids).map(|(sources, ids)| sources.and(ids)) else { return Ok(HashMap::new()) };
        let found = session(Arc::clone(&self.runtime), &self.limits)
            .read_table(self.usage()?)?
            .filter(range.and(effective::is_among(&Arc::new(identities))))?
            .select_columns(&["source", "id", "meter", "subject", "time"])?
            .collect()
            .await?;
        Ok(found.iter().flat_map(places).collect())
    }
}

/// The rows whose identity is one of these.
pub(super) fn rows_among(usage: &RecordBatch, identities: &Identities) -> Vec<usize> {
    let (Some(sources), Some(ids)) = (usage.column_by_name("source"), usage.column_by_name("id")) else { return Vec::new() };
    let (sources, ids) = (sources.as_string::<i32>(), ids.as_string::<i32>());
    let is_among = |row: &usize| identities.get(ids.value(*row)).is_some_and(|known| known.contains(sources.value(*row)));
    (0..ids.len()).filter(is_among).collect()
}
