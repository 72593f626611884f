//! From frames of the log to rows of the lake, with nothing lost on the way.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::TimestampMicrosecondType;
use ratemill_rules::RuleWindow;
use ratemill_schemas::changes::{self, ChangeKey};
use ratemill_schemas::files::{self, FileClaim};
use ratemill_schemas::{EventHasher, EventKey, Reason, UsageSchema};

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

pub(super) fn rows_of(published: &RecordBatch, rated: &RuleWindow) -> Result<RecordBatch, arrow::error::ArrowError> {
    let bound = |name: &str| published.column_by_name(name).map(|column| column.as_primitive::<TimestampMicrosecondType>().clone());
    let window = rated.window;
    match (bound("window_start"), bound("window_end")) {
        (Some(starts), Some(ends)) => {
            let mask =
                starts.values().iter().zip(ends.values()).map(|(start, end)| Some(*start == window.start && *end == window.end)).collect();
            of_contract(&filter_record_batch(published, &mask)?, rated)
        }
        _ => Ok(published.slice(0, 0)),
    }
}

/// Of charges of several contracts, those of the window's own.
pub(super) fn of_contract(charges: &RecordBatch, rated: &RuleWindow) -> Result<RecordBatch, arrow::error::ArrowError> {
    match (&rated.contract_id, charges.column_by_name("contract_id")) {
        (Some(contract), Some(contracts)) => {
            let mask = contracts.as_string::<i32>().iter().map(|found| Some(found == Some(contract.as_str()))).collect();
            filter_record_batch(charges, &mask)
        }
        _ => Ok(charges.clone()),
    }
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
