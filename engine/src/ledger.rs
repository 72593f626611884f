//! The ledger: the difference between what a window was charged and what it is worth now, as rows to append.

pub mod chain;
pub mod net;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{
    Array, ArrayRef, AsArray, Decimal128Array, DynComparator, Int32Array, Int64Array, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray, UInt64Array, make_comparator,
};
use arrow::compute::{SortOptions, interleave, take};
use arrow::datatypes::{DataType, Decimal128Type, Field, Int32Type, Schema};
use arrow::error::ArrowError;
use ratemill_rules::evaluate::{CHARGE_COLUMNS, Identities};
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

impl Posting {
    /// The class of a charge of which nothing is in force.
    fn class_of_new(&self) -> ChargeClass {
        if self.published_before { ChargeClass::Correction } else { ChargeClass::Original }
    }
}

/// Bytes of a charge id, which is written in hexadecimal.
const ID_BYTES: usize = 16;

/// Rows of one batch of the ledger; texts of a batch are at most 2 GiB.
const ROWS_MAX: usize = 1 << 18;

/// One row to append.
struct Entry {
    /// Whether it takes back a published row; else it is a new one.
    reverses: bool,
    /// The row, of the published or of the new ones.
    row: usize,
    revision: i32,
    class: ChargeClass,
}

/// What the ledger holds of one identity.
#[derive(Default)]
struct Known {
    in_force: Option<usize>,
    revision: i32,
    charged_again: bool,
}

/// The rows that turn the published rows of a window (all of `charges` for its rule and window) into `new`.
///
/// Absent before → `original`, or `correction` in a window that was published; any column differs → reversal and
/// replacement; absent now → reversal; equal → nothing.
///
/// # Errors
/// When a batch does not have the columns of the ledger.
pub fn post(published: &RecordBatch, new: &RecordBatch, posting: &Posting) -> Result<Vec<RecordBatch>, ArrowError> {
    let old = as_charges(published, new)?;
    let entries = if published.num_rows() == 0 {
        let class = posting.class_of_new();
        (0..new.num_rows()).map(|row| Entry { reverses: false, row, revision: 1, class }).collect()
    } else {
        differences(published, &old, new, posting)?
    };
    in_parallel(entries.chunks(ROWS_MAX), |entries| build(entries, published, &old, new, posting))
}

/// Does the same with each part, on all cores; the results are in the order of the parts.
fn in_parallel<P: Send, R: Send>(
    parts: impl Iterator<Item = P>,
    work: impl Fn(P) -> Result<R, ArrowError> + Sync,
) -> Result<Vec<R>, ArrowError> {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let parts: Vec<P> = parts.collect();
    if parts.len() < 2 || threads < 2 {
        return parts.into_iter().map(work).collect();
    }
    let (waiting, done) = (Mutex::new(parts.into_iter().enumerate()), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some((number, part)) = waiting.lock().unwrap_or_else(PoisonError::into_inner).next() else { break };
                    let result = work(part);
                    done.lock().unwrap_or_else(PoisonError::into_inner).insert(number, result);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

fn differences(published: &RecordBatch, old: &RecordBatch, new: &RecordBatch, posting: &Posting) -> Result<Vec<Entry>, ArrowError> {
    let names = identity_texts(old);
    let mut known = known_of(published, &names);
    let equal = comparators(old, new)?;
    let class = ChargeClass::Correction;
    let mut entries = Vec::new();
    let mut identities = Identities::of(new);
    let mut identity = String::new();
    for row in 0..new.num_rows() {
        identities.write(row, &mut identity);
        let found = known.get_mut(identity.as_str());
        let next = found.as_ref().map_or(1, |found| found.revision + 1);
        match found.and_then(|found| {
            found.charged_again = true;
            found.in_force
        }) {
            None => entries.push(Entry { reverses: false, row, revision: next, class: posting.class_of_new() }),
            Some(old_row) if equal.iter().all(|compare| compare(old_row, row).is_eq()) => {}
            Some(old_row) => {
                entries.push(Entry { reverses: true, row: old_row, revision: next, class });
                entries.push(Entry { reverses: false, row, revision: next + 1, class });
            }
        }
    }
    let mut gone: Vec<(&str, usize, i32)> = known
        .iter()
        .filter(|(_, known)| !known.charged_again)
        .filter_map(|(identity, known)| known.in_force.map(|row| (*identity, row, known.revision + 1)))
        .collect();
    gone.sort_unstable();
    entries.extend(gone.into_iter().map(|(_, row, revision)| Entry { reverses: true, row, revision, class }));
    Ok(entries)
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

fn identity_texts(charges: &RecordBatch) -> Vec<String> {
    let mut identities = Identities::of(charges);
    let text = |row| {
        let mut text = String::new();
        identities.write(row, &mut text);
        text
    };
    (0..charges.num_rows()).map(text).collect()
}

/// Of each identity the row in force and the highest revision; `names` are the identities of the published rows.
fn known_of<'n>(published: &RecordBatch, names: &'n [String]) -> HashMap<&'n str, Known> {
    let mut known: HashMap<&str, Known> = HashMap::new();
    let (Some(ids), Some(reverses), Some(revisions)) =
        (published.column_by_name("charge_id"), published.column_by_name("reverses"), published.column_by_name("revision"))
    else {
        return known;
    };
    let (ids, reverses, revisions) = (ids.as_string::<i32>(), reverses.as_string::<i32>(), revisions.as_primitive::<Int32Type>());
    let reversed: HashSet<&str> = reverses.iter().flatten().collect();
    for (row, name) in names.iter().enumerate() {
        let of_name = known.entry(name).or_default();
        of_name.revision = of_name.revision.max(revisions.value(row));
        if reverses.is_null(row) && !reversed.contains(ids.value(row)) {
            of_name.in_force = Some(row);
        }
    }
    known
}

/// Whether two charges of one identity agree: a comparison for each column of `new`, which `old` has in the same order.
fn comparators(old: &RecordBatch, new: &RecordBatch) -> Result<Vec<DynComparator>, ArrowError> {
    let columns = old.columns().iter().zip(new.columns());
    columns.map(|(old, new)| make_comparator(old, new, SortOptions::default())).collect()
}

fn build(
    entries: &[Entry],
    published: &RecordBatch,
    old: &RecordBatch,
    new: &RecordBatch,
    posting: &Posting,
) -> Result<RecordBatch, ArrowError> {
    let rows = entries.len();
    let text = |value: &str| Arc::new(StringArray::from(vec![value; rows])) as ArrayRef;
    let instant = |micros: i64| Arc::new(TimestampMicrosecondArray::from(vec![micros; rows]).with_timezone("UTC")) as ArrayRef;
    let old_ids = published.column_by_name("charge_id").map(|ids| ids.as_string::<i32>());
    // Columns that only the old charges have are told with them alone.
    let widest = if entries.iter().any(|entry| entry.reverses) { old } else { new };
    let further: Vec<Field> =
        widest.schema().fields().iter().skip(CHARGE_COLUMNS.len()).map(|field| field.as_ref().clone().with_nullable(true)).collect();
    let schema = charges::schema(&further);
    let columns = schema
        .fields()
        .iter()
        .map(|field| {
            Ok(match field.name().as_str() {
                "charge_id" => charge_ids(entries, old, new, posting),
                "revision" => Arc::new(entries.iter().map(|entry| entry.revision).collect::<Int32Array>()) as ArrayRef,
                "window_start" => instant(posting.window.start),
                "window_end" => instant(posting.window.end),
                "billing_period" => text(&posting.billing_period),
                "posting_period" => text(&posting.posting_period),
                "rule" => text(&posting.rule),
                "rule_version" => text(&posting.rule_version),
                "reference_version" => text(&posting.reference_version),
                "class" => Arc::new(entries.iter().map(|entry| Some(entry.class.as_str())).collect::<StringArray>()),
                "reverses" => {
                    let of_old = |entry: &Entry| old_ids.filter(|_| entry.reverses).map(|ids| ids.value(entry.row));
                    Arc::new(entries.iter().map(of_old).collect::<StringArray>())
                }
                "cause" => text(&posting.cause),
                "epoch" => Arc::new(Int64Array::from(vec![posting.epoch; rows])),
                "rated_at" => instant(posting.rated_at),
                "usage_version" => Arc::new(Int64Array::from(vec![posting.usage_version; rows])),
                name => output_column(entries, old, new, name, field.data_type())?,
            })
        })
        .collect::<Result<Vec<_>, ArrowError>>()?;
    RecordBatch::try_new(schema, columns)
}

/// A column of the rules' output; amounts, quantities and further decimals of reversals are negated.
fn output_column(
    entries: &[Entry],
    old: &RecordBatch,
    new: &RecordBatch,
    name: &str,
    data_type: &DataType,
) -> Result<ArrayRef, ArrowError> {
    let of = |charges: &RecordBatch| match charges.column_by_name(name) {
        None => Ok(arrow::array::new_null_array(data_type, charges.num_rows())),
        Some(column) => exact_cast(column, data_type),
    };
    let reversals = entries.iter().filter(|entry| entry.reverses).count();
    if reversals == 0 {
        let in_sequence = entries.windows(2).all(|pair| pair[0].row + 1 == pair[1].row);
        let column = of(new)?;
        if let (true, Some(first)) = (in_sequence, entries.first()) {
            return Ok(column.slice(first.row, entries.len()));
        }
        let rows = UInt64Array::from_iter_values(entries.iter().map(|entry| entry.row as u64));
        return take(&column, &rows, None);
    }
    let rows: Vec<(usize, usize)> = entries.iter().map(|entry| (usize::from(!entry.reverses), entry.row)).collect();
    let column = interleave(&[of(old)?.as_ref(), of(new)?.as_ref()], &rows)?;
    if *data_type != DECIMAL || name == "unit_price" {
        return Ok(column);
    }
    // The range of decimals is symmetric: a checked decimal has a negative.
    let signed = column.as_primitive::<Decimal128Type>().iter().zip(entries);
    let signed: Decimal128Array = signed.map(|(raw, entry)| raw.map(|raw| if entry.reverses { -raw } else { raw })).collect();
    Ok(Arc::new(signed.with_data_type(DECIMAL)))
}

/// A cast that fails rather than lose a value.
fn exact_cast(column: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
    arrow::compute::cast_with_options(column, to, &options)
}

/// The names of ledger rows: the same in every run that replays the same manifests.
fn charge_ids(entries: &[Entry], old: &RecordBatch, new: &RecordBatch, posting: &Posting) -> ArrayRef {
    let mut of_window = Sha256::new();
    let part = |hash: &mut Sha256, part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    for shared in [posting.rule.as_bytes(), &posting.window.start.to_le_bytes(), &posting.window.end.to_le_bytes()] {
        part(&mut of_window, shared);
    }
    let of_part = |entries: &[Entry]| {
        let (mut of_old, mut of_new) = (Identities::of(old), Identities::of(new));
        let (mut identity, mut id) = (String::new(), [0; ID_BYTES * 2]);
        let mut ids = StringBuilder::with_capacity(entries.len(), entries.len() * id.len());
        for entry in entries {
            let identities = if entry.reverses { &mut of_old } else { &mut of_new };
            identities.write(entry.row, &mut identity);
            let mut hash = of_window.clone();
            part(&mut hash, identity.as_bytes());
            part(&mut hash, &entry.revision.to_le_bytes());
            let written = hex::encode_to_slice(&hash.finalize()[..ID_BYTES], &mut id).is_ok();
            ids.append_option(std::str::from_utf8(&id).ok().filter(|_| written));
        }
        ids.finish()
    };
    Arc::new(of_part(entries))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::compute::concat_batches;

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
            for new in post(&rows, &charges(version), &posting(epoch)).unwrap() {
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

    #[test]
    fn names_of_rows_stay_as_they_are() {
        let first = &post(&RecordBatch::new_empty(charges::schema(&[])), &charges(&[("a", 7)]), &posting(1)).unwrap()[0];
        let again = &post(first, &charges(&[("a", 8), ("b", 1)]), &posting(2)).unwrap()[0];
        let ids = |rows: &RecordBatch, name: &str| -> Vec<Option<String>> {
            rows.column_by_name(name).unwrap().as_string::<i32>().iter().map(|id| id.map(str::to_owned)).collect()
        };
        // SHA-256 over the rule, the window, `customer_id=1:a;item=5:calls;currency=3:EUR;` and the revision, each with its length.
        let known = [
            "0a704a5d21ed60627129de516639c646",
            "1bed763ea5a17bae186a8d04848d6a84",
            "64072151030b03c275b8748c7fde5085",
            "0292cdab7e14cc9031e410144b6578a0",
        ]
        .map(|name| Some(name.to_owned()));
        assert_eq!(ids(first, "charge_id"), known[..1]);
        assert_eq!(ids(again, "charge_id"), known[1..]);
        assert_eq!(ids(again, "reverses"), [known[0].clone(), None, None]);
    }
}
