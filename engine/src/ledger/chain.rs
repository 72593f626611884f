//! The rows of one charge: its original, reversals and replacements.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema};
use arrow::error::ArrowError;
use ratemill_rules::evaluate::CHARGE_COLUMNS;
use ratemill_schemas::charges;

use super::{as_charges, identity_texts};

/// Ledger rows in the columns of a rule's output: the known ones, then every further column of the ledger.
///
/// # Errors
/// When a column has another type than the ledger's.
pub fn output_of(ledger: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let known = charges::schema(&[]);
    let fields: Vec<Field> = CHARGE_COLUMNS.iter().filter_map(|name| known.field_with_name(name).ok().cloned()).collect();
    let none: Vec<ArrayRef> = fields.iter().map(|field| arrow::array::new_empty_array(field.data_type())).collect();
    as_charges(ledger, &RecordBatch::try_new(Arc::new(Schema::new(fields)), none)?)
}

/// The identity of each row of [`output_of`], or of a rule's output.
#[must_use]
pub fn identities(charges: &RecordBatch) -> Vec<String> {
    identity_texts(charges)
}
