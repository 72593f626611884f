//! Usage as it is in force: the events as they came, but for the changed ones, and the new events of amendments.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::DataType;
use datafusion::catalog::TableProvider;
use datafusion::common::{Result, TableReference};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlanBuilder, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, col, not,
};
use ratemill_rules::OpaqueTable;

use super::Identities;

/// `usage` without the `changed` events, with those that are in force in their place.
pub(super) fn usage(usage: Arc<dyn TableProvider>, changed: &Arc<Identities>, in_force: &RecordBatch) -> Result<Arc<dyn TableProvider>> {
    let schema = usage.schema();
    let columns = schema
        .fields()
        .iter()
        .map(|field| match in_force.column_by_name(field.name()) {
            Some(column) => arrow::compute::cast(column, field.data_type()),
            // A dimension that is not declared any more.
            None => Ok(arrow::array::new_null_array(field.data_type(), in_force.num_rows())),
        })
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let in_force = RecordBatch::try_new(Arc::clone(&schema), columns)?;
    let amended = MemTable::try_new(Arc::clone(&schema), vec![vec![in_force]])?;
    let scan =
        |provider: Arc<dyn TableProvider>| LogicalPlanBuilder::scan(TableReference::bare("usage"), provider_as_source(provider), None);
    let plan = scan(usage)?.filter(not(is_among(changed)))?.union(scan(Arc::new(amended))?.build()?)?.build()?;
    // Rules see a scan of `usage`, whatever it is made of.
    Ok(Arc::new(OpaqueTable::new(schema, plan)))
}

/// Whether the identity of a row is one of these.
pub(in crate::epoch) fn is_among(identities: &Arc<Identities>) -> Expr {
    let among = IsAmong {
        signature: Signature::exact(vec![DataType::Utf8, DataType::Utf8], Volatility::Immutable),
        identities: Arc::clone(identities),
    };
    ScalarUDF::new_from_impl(among).call(vec![col("source"), col("id")])
}

/// `is_among(source, id)`.
#[derive(Debug)]
struct IsAmong {
    signature: Signature,
    identities: Arc<Identities>,
}

impl PartialEq for IsAmong {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.identities, &other.identities)
    }
}

impl Eq for IsAmong {}

impl Hash for IsAmong {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.identities).hash(state);
    }
}

impl ScalarUDFImpl for IsAmong {
    fn name(&self) -> &str {
        "is_among"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let (sources, ids) = (arrays[0].as_string::<i32>(), arrays[1].as_string::<i32>());
        let among: BooleanArray = sources
            .iter()
            .zip(ids)
            .map(|(source, id)| {
                Some(id.and_then(|id| self.identities.get(id)).zip(source).is_some_and(|(sources, source)| sources.contains(source)))
            })
            .collect();
        Ok(ColumnarValue::Array(Arc::new(among)))
    }
}
