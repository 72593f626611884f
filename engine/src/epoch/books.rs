//! From frames of the log to rows of the lake, with nothing lost on the way.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::{concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::TimestampMicrosecondType;
use ratemill_rules::RuleWindow;
use ratemill_schemas::changes::{self, ChangeKey};
use ratemill_schemas::files::{self, FileClaim};
use ratemill_schemas::{EventHasher, EventKey, Reason, UsageSchema, Window};

use super::manifest::Manifest;
use super::run::EpochError;
use crate::log::Frame;

/// Keys of everything that a frame holds, rejections included.
pub(crate) fn frame_keys(
    frame: &Frame,
    schema: &UsageSchema,
    hasher: &EventHasher,
    keys: &mut Vec<EventKey>,
) -> Result<(), arrow::error::ArrowError> {
    if let Some(usage) = &frame.usage {
        keys.extend(schema.keys(usage, hasher)?);
    }
    if let Some(rejected) = &frame.rejected {
        keys.extend(rejection_keys(rejected, hasher));
    }
    if let Some(changes) = &frame.changes {
        keys.extend(changes::keys(schema, changes, hasher)?.into_iter().flat_map(ChangeKey::keys));
    }
    Ok(())
}

/// Keys of rejected rows, in any batch that has their columns.
pub(crate) fn rejection_keys(rejected: &RecordBatch, hasher: &EventHasher) -> Vec<EventKey> {
    let column = |name: &str| rejected.column_by_name(name);
    let (Some(connector), Some(position), Some(reason), Some(raw)) =
        (column("connector"), column("position"), column("reason"), column("raw"))
    else {
        return Vec::new();
    };
    let (connector, position, reason, raw) =
        (connector.as_string::<i32>(), position.as_string::<i32>(), reason.as_string::<i32>(), raw.as_binary::<i32>());
    let conflicts: Vec<&str> = Reason::ALL.iter().filter(|reason| reason.is_conflict()).map(|reason| reason.code()).collect();
    (0..rejected.num_rows())
        .map(|row| {
            let position = if conflicts.contains(&reason.value(row)) { "" } else { position.value(row) };
            EventKey { identity: hasher.rejection(connector.value(row), position, reason.value(row), raw.value(row)), content: 0 }
        })
        .collect()
}

pub(super) fn check_books(
    manifest: &Manifest,
    frames: &[Frame],
    usage: &[RecordBatch],
    rejected: &[RecordBatch],
    changes: &[RecordBatch],
) -> Result<(), EpochError> {
    let wrong = |message: String| Err(EpochError::Books { epoch: manifest.epoch, message });
    let end = frames.last().map_or(manifest.from, |frame| frame.header.end());
    if end != manifest.to {
        return wrong(format!("the log holds positions {} to {end}, the manifest says {}", manifest.from, manifest.to));
    }
    let rows = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).sum::<usize>();
    let logged: usize = frames.iter().map(|frame| frame.header.rows).sum();
    if rows(usage) != logged {
        return wrong(format!("{logged} events were logged, {} would be stored", rows(usage)));
    }
    let logged: usize = frames.iter().map(|frame| frame.header.rejected).sum();
    if rows(rejected) != logged {
        return wrong(format!("{logged} records were rejected, {} would be stored", rows(rejected)));
    }
    let logged: usize = frames.iter().map(|frame| frame.header.changes).sum();
    if rows(changes) != logged {
        return wrong(format!("{logged} voids and amendments were logged, {} would be stored", rows(changes)));
    }
    Ok(())
}

/// One batch for all rows, so that each day becomes one file.
pub(super) fn merge_days(batches: &[RecordBatch]) -> Result<Vec<RecordBatch>, arrow::error::ArrowError> {
    const ROWS_MAX: usize = 1 << 20;
    let mut merged = Vec::new();
    let mut start = 0;
    while start < batches.len() {
        let mut end = start + 1;
        let mut rows = batches[start].num_rows();
        while end < batches.len() && rows + batches[end].num_rows() <= ROWS_MAX {
            rows += batches[end].num_rows();
            end += 1;
        }
        merged.push(concat_batches(&batches[start].schema(), &batches[start..end])?);
        start = end;
    }
    Ok(merged)
}

/// Charges by window and, where all windows are those of contracts, by contract: grouped once for all of them.
pub(super) struct Grouped {
    charges: RecordBatch,
    by_contract: bool,
    rows: HashMap<(Window, Option<String>), Vec<u32>>,
}

impl Grouped {
    /// Ledger rows, by their own windows.
    pub(super) fn by_window(charges: RecordBatch, of_contracts: bool) -> Self {
        let bound =
            |name: &str| charges.column_by_name(name).map(|column| column.as_primitive::<TimestampMicrosecondType>().values().clone());
        let windows = match (bound("window_start"), bound("window_end")) {
            (Some(starts), Some(ends)) => starts.iter().zip(ends.iter()).map(|(start, end)| Window { start: *start, end: *end }).collect(),
            _ => Vec::new(),
        };
        Self::new(charges, windows.into_iter(), of_contracts)
    }

    /// The charges of one window.
    pub(super) fn of_window(charges: &RecordBatch, window: Window, of_contracts: bool) -> Self {
        Self::new(charges.clone(), std::iter::repeat_n(window, charges.num_rows()), of_contracts)
    }

    fn new(charges: RecordBatch, windows: impl Iterator<Item = Window>, of_contracts: bool) -> Self {
        let contracts = contracts_of(&charges).filter(|_| of_contracts);
        let mut rows: HashMap<_, Vec<u32>> = HashMap::new();
        for (row, window) in (0..).zip(windows) {
            let of_row = |contracts: &StringArray| contracts.is_valid(row).then(|| contracts.value(row).to_owned());
            rows.entry((window, contracts.and_then(of_row))).or_default().push(u32::try_from(row).unwrap_or(u32::MAX));
        }
        Self { by_contract: contracts.is_some(), charges, rows }
    }

    /// The charges of a window, in their order.
    pub(super) fn rows_of(&self, rated: &RuleWindow) -> Result<RecordBatch, arrow::error::ArrowError> {
        let contract = rated.contract_id.clone();
        let rows = self.rows.get(&(rated.window, contract.clone().filter(|_| self.by_contract))).map_or(&[][..], Vec::as_slice);
        let charges = match (rows.first(), rows.last()) {
            (None, _) | (_, None) => self.charges.slice(0, 0),
            (Some(first), Some(last)) if (last - first) as usize + 1 == rows.len() => self.charges.slice(*first as usize, rows.len()),
            _ => take_record_batch(&self.charges, &UInt32Array::from(rows.to_vec()))?,
        };
        match (contract, contracts_of(&charges)) {
            (Some(contract), Some(contracts)) if !self.by_contract => {
                let mask = contracts.iter().map(|found| Some(found == Some(contract.as_str()))).collect();
                filter_record_batch(&charges, &mask)
            }
            _ => Ok(charges),
        }
    }
}

fn contracts_of(charges: &RecordBatch) -> Option<&StringArray> {
    charges.column_by_name("contract_id").map(|contracts| contracts.as_string::<i32>())
}

pub(super) fn claims_batch(frames: &[Frame]) -> Result<RecordBatch, arrow::error::ArrowError> {
    let claims: Vec<(i64, &FileClaim)> =
        frames.iter().flat_map(|frame| frame.header.claims.iter().map(|claim| (frame.header.ingested_at, claim))).collect();
    let text =
        |value: fn(&FileClaim) -> &str| Arc::new(claims.iter().map(|(_, claim)| Some(value(claim))).collect::<StringArray>()) as ArrayRef;
    let number = |value: fn(&FileClaim) -> u64| {
        Arc::new(claims.iter().map(|(_, claim)| i64::try_from(value(claim)).ok()).collect::<Int64Array>()) as ArrayRef
    };
    let times: TimestampMicrosecondArray = claims.iter().map(|(at, _)| Some(*at)).collect();
    RecordBatch::try_new(
        files::schema(),
        vec![
            Arc::new(times.with_timezone("UTC")),
            text(|claim| &claim.connector),
            text(|claim| &claim.path),
            text(|claim| &claim.etag),
            number(|claim| claim.size),
            text(|claim| &claim.content_hash),
            text(|claim| claim.state.as_str()),
            number(|claim| claim.rows),
            number(|claim| claim.rejected),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::{Field, Schema};

    #[test]
    fn charges_of_a_window_are_those_of_its_bounds_and_contract() -> Result<(), arrow::error::ArrowError> {
        let instants = |values: Vec<i64>| Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) as ArrayRef;
        let columns = vec![
            instants(vec![0, 0, 10, 0, 0]),
            instants(vec![10, 10, 20, 10, 5]),
            Arc::new(StringArray::from(vec![Some("a"), Some("b"), Some("a"), Some("a"), None])) as ArrayRef,
            Arc::new(Int64Array::from(vec![0, 1, 2, 3, 4])),
        ];
        let names = ["window_start", "window_end", "contract_id", "row"];
        let fields: Vec<Field> =
            names.iter().zip(&columns).map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
        let charges = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
        for of_contracts in [true, false] {
            let grouped = Grouped::by_window(charges.clone(), of_contracts);
            for (start, end, contract, expected) in [
                (0, 10, Some("a"), vec![0, 3]),
                (0, 10, Some("b"), vec![1]),
                (10, 20, Some("a"), vec![2]),
                (10, 20, Some("b"), vec![]),
                (20, 30, Some("a"), vec![]),
            ] {
                let rated = RuleWindow { window: Window { start, end }, contract_id: contract.map(str::to_owned) };
                let found = grouped.rows_of(&rated)?;
                assert_eq!(found.column(3).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec(), expected, "{rated}");
            }
        }
        let whole = Grouped::by_window(charges, false).rows_of(&RuleWindow { window: Window { start: 0, end: 10 }, contract_id: None })?;
        assert_eq!(whole.num_rows(), 3);
        Ok(())
    }
}
