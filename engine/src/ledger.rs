//! The ledger: the difference between what a window was charged and what it is worth now, as rows to append.

pub mod net;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{DataType, Decimal128Type, Field, Int32Type, Schema};
use arrow::error::ArrowError;
use ratemill_rules::evaluate::{CHARGE_COLUMNS, identity};
use ratemill_schemas::Window;
use ratemill_schemas::charges::{self, ChargeClass};
use ratemill_schemas::decimal::DECIMAL;
use sha2::{Digest, Sha256};

/// What all rows of one window and epoch share.
#[derive(Debug, Clone)]
pub struct Posting {
    /// The rule.
    pub rule: String,
    /// Its version.
    pub rule_version: String,
    /// The reference version.
    pub reference_version: String,
    /// The window.
    pub window: Window,
    /// Month that the window's last instant lies in.
    pub billing_period: String,
    /// Month in which it is billed.
    pub posting_period: String,
    /// The epoch.
    pub epoch: i64,
    /// The manifest's clock, µs UTC.
    pub rated_at: i64,
    /// Version of `usage` that was rated.
    pub usage_version: i64,
    /// Why.
    pub cause: String,
    /// Whether the window was published before.
    pub published_before: bool,
}

/// One row to append.
struct Entry<'a> {
    source: &'a RecordBatch,
    row: usize,
    revision: i32,
    identity: String,
    reverses: Option<String>,
    class: ChargeClass,
}

/// The published net of a window: of each identity the row in force and the highest revision.
struct Published {
    in_force: BTreeMap<String, usize>,
    revisions: HashMap<String, i32>,
}

/// The rows that turn the published rows of a window (all of `charges` for its rule and window) into `new`.
///
/// Absent before → `original`, or `correction` in a window that was published; any column differs → reversal and
/// replacement; absent now → reversal; equal → nothing.
///
/// # Errors
/// When a batch does not have the columns of the ledger.
pub fn post(published: &RecordBatch, new: &RecordBatch, posting: &Posting) -> Result<Option<RecordBatch>, ArrowError> {
    let old = as_charges(published, new)?;
    let state = in_force(published, &old);
    let mut entries: Vec<Entry<'_>> = Vec::new();
    let mut seen = HashSet::new();
    let charge_ids = published.column_by_name("charge_id").map(|column| column.as_string::<i32>().clone());
    let old_id = |row: usize| charge_ids.as_ref().map(|ids| ids.value(row).to_owned());
    for row in 0..new.num_rows() {
        let identity = identity(new, row);
        seen.insert(identity.clone());
        let next = state.revisions.get(&identity).map_or(1, |revision| revision + 1);
        match state.in_force.get(&identity) {
            None => {
                let class = if posting.published_before { ChargeClass::Correction } else { ChargeClass::Original };
                entries.push(Entry { source: new, row, revision: next, identity, reverses: None, class });
            }
            Some(old_row) if equal(&old, *old_row, new, row) => {}
            Some(old_row) => {
                let class = ChargeClass::Correction;
                entries.push(Entry {
                    source: &old,
                    row: *old_row,
                    revision: next,
                    identity: identity.clone(),
                    reverses: old_id(*old_row),
                    class,
                });
                entries.push(Entry { source: new, row, revision: next + 1, identity, reverses: None, class });
            }
        }
    }
    for (identity, old_row) in &state.in_force {
        if !seen.contains(identity) {
            let revision = state.revisions.get(identity).map_or(1, |revision| revision + 1);
            let class = ChargeClass::Correction;
            entries.push(Entry { source: &old, row: *old_row, revision, identity: identity.clone(), reverses: old_id(*old_row), class });
        }
    }
    if entries.is_empty() { Ok(None) } else { build(&entries, posting).map(Some) }
}

/// The rows in force: those that are no reversal and are not reversed.
///
/// # Errors
/// [`ArrowError`].
pub fn in_force_only(published: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let (Some(ids), Some(reverses)) = (published.column_by_name("charge_id"), published.column_by_name("reverses")) else {
        return Ok(published.clone());
    };
    let (ids, reverses) = (ids.as_string::<i32>(), reverses.as_string::<i32>());
    let reversed: HashSet<&str> = reverses.iter().flatten().collect();
    let mask = (0..published.num_rows()).map(|row| Some(reverses.is_null(row) && !reversed.contains(ids.value(row)))).collect();
    arrow::compute::filter_record_batch(published, &mask)
}

/// The published rows with the columns of a rule's output, in the same order as `new` has them.
fn as_charges(published: &RecordBatch, new: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = new.schema();
    let mut fields: Vec<Field> = schema.fields().iter().map(|field| field.as_ref().clone()).collect();
    // A further column that the rule no longer has is part of the old identity still.
    let reserved = charges::reserved();
    for field in published.schema().fields() {
        if !reserved.contains(field.name()) && schema.field_with_name(field.name()).is_err() {
            fields.push(field.as_ref().clone());
        }
    }
    let columns: Vec<ArrayRef> = fields
        .iter()
        .map(|field| match published.column_by_name(field.name()) {
            Some(column) => exact_cast(column, field.data_type()),
            None => Ok(arrow::array::new_null_array(field.data_type(), published.num_rows())),
        })
        .collect::<Result<_, _>>()?;
    let fields: Vec<Field> = fields.into_iter().map(|field| field.with_nullable(true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn in_force(published: &RecordBatch, charges: &RecordBatch) -> Published {
    let mut state = Published { in_force: BTreeMap::new(), revisions: HashMap::new() };
    let (Some(ids), Some(reverses), Some(revisions)) =
        (published.column_by_name("charge_id"), published.column_by_name("reverses"), published.column_by_name("revision"))
    else {
        return state;
    };
    let (ids, reverses, revisions) = (ids.as_string::<i32>(), reverses.as_string::<i32>(), revisions.as_primitive::<Int32Type>());
    let reversed: HashSet<&str> = reverses.iter().flatten().collect();
    for row in 0..published.num_rows() {
        let identity = identity(charges, row);
        let revision = state.revisions.entry(identity.clone()).or_default();
        *revision = (*revision).max(revisions.value(row));
        if reverses.is_null(row) && !reversed.contains(ids.value(row)) {
            state.in_force.insert(identity, row);
        }
    }
    state
}

/// Whether two charges of one identity agree in every column.
fn equal(old: &RecordBatch, old_row: usize, new: &RecordBatch, new_row: usize) -> bool {
    new.schema().fields().iter().zip(new.columns()).all(|(field, column)| {
        old.column_by_name(field.name()).is_some_and(|old| old.slice(old_row, 1).as_ref() == column.slice(new_row, 1).as_ref())
    })
}

fn build(entries: &[Entry<'_>], posting: &Posting) -> Result<RecordBatch, ArrowError> {
    let rows = entries.len();
    let text = |value: &str| Arc::new(StringArray::from(vec![value; rows])) as ArrayRef;
    let instant = |micros: i64| Arc::new(TimestampMicrosecondArray::from(vec![micros; rows]).with_timezone("UTC")) as ArrayRef;
    let ids: StringArray = entries.iter().map(|entry| Some(charge_id(posting, &entry.identity, entry.revision))).collect();
    let revisions: Int32Array = entries.iter().map(|entry| entry.revision).collect();
    let reverses: StringArray = entries.iter().map(|entry| entry.reverses.clone()).collect();
    let classes: StringArray = entries.iter().map(|entry| Some(entry.class.as_str())).collect();
    let further: Vec<Field> = entries
        .iter()
        .flat_map(|entry| {
            entry
                .source
                .schema()
                .fields()
                .iter()
                .skip(CHARGE_COLUMNS.len())
                .map(|field| field.as_ref().clone().with_nullable(true))
                .collect::<Vec<_>>()
        })
        .fold(Vec::new(), |mut fields, field| {
            if !fields.iter().any(|known: &Field| known.name() == field.name()) {
                fields.push(field);
            }
            fields
        });
    let schema = charges::schema(&further);
    let columns = schema
        .fields()
        .iter()
        .map(|field| {
            Ok(match field.name().as_str() {
                "charge_id" => Arc::new(ids.clone()) as ArrayRef,
                "revision" => Arc::new(revisions.clone()),
                "window_start" => instant(posting.window.start),
                "window_end" => instant(posting.window.end),
                "billing_period" => text(&posting.billing_period),
                "posting_period" => text(&posting.posting_period),
                "rule" => text(&posting.rule),
                "rule_version" => text(&posting.rule_version),
                "reference_version" => text(&posting.reference_version),
                "class" => Arc::new(classes.clone()),
                "reverses" => Arc::new(reverses.clone()),
                "cause" => text(&posting.cause),
                "epoch" => Arc::new(Int64Array::from(vec![posting.epoch; rows])),
                "rated_at" => instant(posting.rated_at),
                "usage_version" => Arc::new(Int64Array::from(vec![posting.usage_version; rows])),
                name => output_column(entries, name, field.data_type())?,
            })
        })
        .collect::<Result<Vec<_>, ArrowError>>()?;
    RecordBatch::try_new(schema, columns)
}

/// A column of the rules' output; amounts, quantities and further decimals of reversals are negated.
fn output_column(entries: &[Entry<'_>], name: &str, data_type: &DataType) -> Result<ArrayRef, ArrowError> {
    let parts = entries
        .iter()
        .map(|entry| match entry.source.column_by_name(name) {
            None => Ok(arrow::array::new_null_array(data_type, 1)),
            Some(column) => {
                let index = UInt32Array::from(vec![u32::try_from(entry.row).unwrap_or(u32::MAX)]);
                let value = exact_cast(&take(column, &index, None)?, data_type)?;
                let negated = entry.reverses.is_some() && *data_type == DECIMAL && name != "unit_price";
                Ok(if negated { negate(&value) } else { value })
            }
        })
        .collect::<Result<Vec<ArrayRef>, ArrowError>>()?;
    let schema = Arc::new(Schema::new(vec![Field::new(name, data_type.clone(), true)]));
    let batches = parts.into_iter().map(|part| RecordBatch::try_new(Arc::clone(&schema), vec![part])).collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::clone(concat_batches(&schema, &batches)?.column(0)))
}

/// A cast that fails rather than lose a value.
fn exact_cast(column: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
    arrow::compute::cast_with_options(column, to, &options)
}

fn negate(value: &ArrayRef) -> ArrayRef {
    // The range of decimals is symmetric: a checked decimal has a negative.
    let negated: Decimal128Array = value.as_primitive::<Decimal128Type>().unary(|raw| -raw);
    Arc::new(negated.with_data_type(DECIMAL))
}

/// The name of a ledger row: the same in every run that replays the same manifests.
fn charge_id(posting: &Posting, identity: &str, revision: i32) -> String {
    let mut hash = Sha256::new();
    for part in [
        posting.rule.as_bytes(),
        &posting.window.start.to_le_bytes(),
        &posting.window.end.to_le_bytes(),
        identity.as_bytes(),
        &revision.to_le_bytes(),
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..16])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn charges(rows: &[(&str, i128)]) -> RecordBatch {
        let text = |value: Vec<Option<String>>| Arc::new(StringArray::from(value)) as ArrayRef;
        let nulls = |data_type: &DataType| arrow::array::new_null_array(data_type, rows.len());
        let decimal = |values: Vec<i128>| Arc::new(Decimal128Array::from(values).with_data_type(DECIMAL)) as ArrayRef;
        let columns = vec![
            text(rows.iter().map(|(customer, _)| Some((*customer).to_owned())).collect()),
            nulls(&DataType::Utf8),
            text(vec![Some("calls".to_owned()); rows.len()]),
            text(vec![Some("EUR".to_owned()); rows.len()]),
            decimal(rows.iter().map(|(_, amount)| *amount).collect()),
            nulls(&DECIMAL),
            nulls(&DataType::Utf8),
            nulls(&DECIMAL),
            nulls(&DataType::Utf8),
        ];
        let fields: Vec<Field> =
            CHARGE_COLUMNS.iter().zip(&columns).map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    }

    fn posting(epoch: i64) -> Posting {
        Posting {
            rule: "calls".into(),
            rule_version: "v".into(),
            reference_version: "r".into(),
            window: Window { start: 0, end: 10 },
            billing_period: "2026-09".into(),
            posting_period: "2026-09".into(),
            epoch,
            rated_at: 1,
            usage_version: 1,
            cause: "test".into(),
            published_before: epoch > 1,
        }
    }

    /// Applies versions of a window one after the other and shows the ledger.
    fn ledger(versions: &[&[(&str, i128)]]) -> String {
        let mut rows = RecordBatch::new_empty(charges::schema(&[]));
        let mut shown = String::new();
        for (epoch, version) in (1..).zip(versions) {
            if let Some(new) = post(&rows, &charges(version), &posting(epoch)).unwrap() {
                let column = |name: &str| new.column_by_name(name).unwrap().clone();
                for row in 0..new.num_rows() {
                    let text = |name: &str| column(name).as_string::<i32>().value(row).to_owned();
                    let amount = column("amount").as_primitive::<Decimal128Type>().value(row);
                    let revision = column("revision").as_primitive::<Int32Type>().value(row);
                    let reverses = column("reverses").is_valid(row);
                    shown.push_str(&format!(
                        "{epoch} {} {} r{revision} {amount}{}\n",
                        text("class"),
                        text("customer_id"),
                        if reverses { " reversal" } else { "" }
                    ));
                }
                rows = concat_batches(&rows.schema(), [&rows, &new]).unwrap();
            }
        }
        let total: i128 = rows.column_by_name("amount").unwrap().as_primitive::<Decimal128Type>().values().iter().sum();
        let worth: i128 = versions.last().unwrap().iter().map(|(_, amount)| amount).sum();
        assert_eq!(total, worth, "the sum of the ledger is what the window is worth");
        shown
    }

    #[test]
    fn corrections_are_reversals_and_replacements() {
        assert_eq!(
            ledger(&[&[("a", 7)], &[("a", 7)], &[("a", 9)]]),
            "1 original a r1 7\n3 correction a r2 -7 reversal\n3 correction a r3 9\n"
        );
        assert_eq!(ledger(&[&[("a", 7), ("b", 1)], &[("b", 1)]]), "1 original a r1 7\n1 original b r1 1\n2 correction a r2 -7 reversal\n");
        assert_eq!(
            ledger(&[&[("a", 7)], &[], &[("a", 7)], &[("a", 8)]]),
            "1 original a r1 7\n2 correction a r2 -7 reversal\n3 correction a r3 7\n4 correction a r4 -7 reversal\n4 correction a r5 8\n"
        );
        assert_eq!(ledger(&[&[], &[("a", 5)]]), "2 correction a r1 5\n");
    }
}
