//! A key as it is kept: three words, in memory and in files.

use ratemill_schemas::{EventKey, Verdict};

/// High and low word of the identity, then the content. Plain words, so that an empty table costs no writing; in
/// this order, so that entries sort by identity.
pub(super) type Entry = [u64; 3];

/// Bytes of an entry in a file.
pub(super) const ENTRY_BYTES: usize = 24;

#[allow(clippy::cast_possible_truncation)]
pub(super) fn entry(key: EventKey) -> Entry {
    [(key.identity >> 64) as u64, key.identity as u64, key.content]
}

pub(super) fn same_identity(one: &Entry, other: &Entry) -> bool {
    one[0] == other[0] && one[1] == other[1]
}

/// What an event with `content` is when its identity is known with `known`.
pub(super) fn judge(known: u64, content: u64) -> Verdict {
    if known == content { Verdict::Duplicate } else { Verdict::Conflict }
}

pub(super) fn write_entry(entry: &Entry, bytes: &mut [u8]) {
    for (word, bytes) in entry.iter().zip(bytes.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

pub(super) fn read_entry(bytes: &[u8]) -> Entry {
    [word(bytes, 0), word(bytes, 8), word(bytes, 16)]
}

/// The little-endian word at `at`; 0 beyond the end, which no checksum accepts.
pub(super) fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Where `high` falls when the whole range of words is cut into `parts`, and how far inside that part, as a fraction
/// of 2^64. Both grow with `high`.
#[allow(clippy::cast_possible_truncation)]
pub(super) fn place(high: u64, parts: u64) -> (u64, u64) {
    let place = u128::from(high) * u128::from(parts);
    ((place >> 64) as u64, place as u64)
}
