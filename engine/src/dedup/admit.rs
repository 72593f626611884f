//! Many keys at once: those of a whole file, all of them or none.

use ratemill_schemas::EventKey;

use super::entry::{Entry, entry};
use super::{DedupIndex, TOGETHER};
use crate::log::LogError;

/// Keys are put in the order of so many of their first bits, so that one part of the index after the other is in the cache.
const ORDER_BITS: u32 = 12;

/// What the index says of the keys of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// All are known from now on. These rows, ascending, were known before with the same content, or stand further up in the
    /// file.
    Admitted(Vec<u32>),
    /// A key is known with other content; the index is as it was.
    Conflict,
}

impl DedupIndex {
    /// Makes all `keys` known, unless one of them has other content than what is known.
    ///
    /// # Errors
    /// [`LogError::Io`] when a file cannot be read: then nothing may be accepted.
    pub fn admit(&mut self, keys: &[EventKey]) -> Result<Admission, LogError> {
        let order = in_order(keys);
        let mut known_rows = Vec::new();
        let mut entries: Vec<Entry> = Vec::with_capacity(TOGETHER);
        for (chunk, rows) in order.chunks(TOGETHER).enumerate() {
            entries.clear();
            entries.extend(rows.iter().map(|row| entry(keys[*row as usize])));
            self.recent.touch(&entries);
            let on_disk = self.on_disk(&entries)?;
            for (place, (row, entry)) in rows.iter().zip(&entries).enumerate() {
                let known = match on_disk.get(place).copied().flatten() {
                    None => self.recent.insert(entry),
                    known => known,
                };
                match known {
                    None => {}
                    Some(content) if content == entry[2] => known_rows.push(*row),
                    Some(_) => {
                        let seen = &order[..chunk * TOGETHER + place];
                        self.take_back(keys, seen, known_rows);
                        return Ok(Admission::Conflict);
                    }
                }
            }
        }
        known_rows.sort_unstable();
        Ok(Admission::Admitted(known_rows))
    }

    /// Forgets the keys of these rows, but for those that were known.
    fn take_back(&mut self, keys: &[EventKey], rows: &[u32], mut known: Vec<u32>) {
        known.sort_unstable();
        for row in rows.iter().filter(|row| known.binary_search(row).is_err()) {
            self.recent.remove(&entry(keys[*row as usize]));
        }
    }
}

/// Rows by the first bits of their keys, else in their order: of two rows with one identity the first stays first.
fn in_order(keys: &[EventKey]) -> Vec<u32> {
    let bucket = |key: &EventKey| usize::try_from(key.identity >> (128 - ORDER_BITS)).unwrap_or_default();
    let mut ends = vec![0_usize; (1 << ORDER_BITS) + 1];
    for key in keys {
        ends[bucket(key) + 1] += 1;
    }
    for index in 1..ends.len() {
        ends[index] += ends[index - 1];
    }
    let mut order = vec![0; keys.len()];
    for (row, key) in (0..).zip(keys) {
        let place = &mut ends[bucket(key)];
        order[*place] = row;
        *place += 1;
    }
    order
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ratemill_schemas::Verdict;

    use super::*;

    fn key(identity: u64, content: u64) -> EventKey {
        EventKey { identity: u128::from(identity.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64 | u128::from(identity), content }
    }

    #[test]
    fn a_file_is_admitted_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let (mut index, _) = DedupIndex::open(folder.path(), 0).unwrap();
        index.check(key(7, 70)).unwrap();
        let mut keys: Vec<EventKey> = (0..10_000).map(|number| key(number, number * 10)).collect();
        keys.push(key(5, 50));
        assert_eq!(index.admit(&keys).unwrap(), Admission::Admitted(vec![7, 10_000]));
        assert_eq!(index.admit(&keys).unwrap(), Admission::Admitted((0..10_001).collect()));
        // One key with other content, known before or within the file: no other key of the file is known.
        for conflict in [key(7, 71), key(20_001, 1)] {
            let mut keys: Vec<EventKey> = (20_000..30_000).map(|number| key(number, number)).collect();
            keys.push(key(6, 60));
            keys.push(conflict);
            assert_eq!(index.admit(&keys).unwrap(), Admission::Conflict);
            assert_eq!(index.len().0, 10_000);
            assert_eq!(index.look_up(key(20_000, 0)).unwrap(), Verdict::Accepted);
            assert_eq!(index.look_up(key(6, 60)).unwrap(), Verdict::Duplicate);
        }
    }
}
