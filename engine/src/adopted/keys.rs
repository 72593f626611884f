//! The keys of an adopted file, read again where nobody has them any more.

use std::sync::Arc;

use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use ratemill_schemas::{EventHasher, EventKey, UsageSchema};

use super::Part;
use super::scan::AdoptedRows;
use crate::lake::Lake;

/// The keys of the rows of `part` that are usage, in no order.
///
/// # Errors
/// [`DataFusionError`] when the file cannot be read.
pub(crate) async fn keys(
    lake: &Lake,
    part: &Arc<Part>,
    schema: &UsageSchema,
    hasher: &EventHasher,
) -> Result<Vec<EventKey>, DataFusionError> {
    let rows = AdoptedRows::new(lake.clone(), vec![Arc::clone(part)], Arc::clone(schema.decoded()));
    let names: Vec<&str> =
        schema.decoded().fields().iter().map(|field| field.name().as_str()).filter(|name| *name != "attributes").collect();
    let mut batches = SessionContext::new().read_table(Arc::new(rows))?.select_columns(&names)?.execute_stream().await?;
    let mut keys = Vec::with_capacity(part.events());
    while let Some(batch) = batches.try_next().await? {
        keys.append(&mut schema.keys(&batch, hasher)?);
    }
    Ok(keys)
}
