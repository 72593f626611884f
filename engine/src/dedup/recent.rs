//! Keys of the last days, in memory.
//!
//! An open-addressing table with a byte of each key beside its slots, so that most questions are answered by one line
//! of memory. It is cut into partitions that grow one by one, by a quarter or less at a time: no insert ever waits for
//! more than a partition to be copied. They are of unequal width, so that at any time some of them grow into memory that
//! others have left, and a large table takes 33 bytes a key whatever its size.

use super::entry::{Entry, place, same_identity};

const PARTITIONS: usize = 1024;
/// The range of identities is dealt out to partitions in so many units, by their first bits.
const UNITS: usize = 1 << UNIT_BITS;
const UNIT_BITS: u32 = 16;
/// Bytes of the smallest partition, about.
const CLASS_BYTES: usize = 512;
/// Slots whose tags are looked at together.
const GROUP: usize = 8;
/// The tag of an empty slot.
const EMPTY: u8 = 0;
const ONES: u64 = 0x0101_0101_0101_0101;

/// Keys in memory.
#[derive(Debug)]
pub(super) struct RecentKeys {
    partitions: Vec<Partition>,
    /// The partition of each unit.
    dealt: Vec<u16>,
    len: usize,
}

/// The entries of some units. Each stands at its home slot or right of it, and all slots between are taken.
#[derive(Debug, Default)]
struct Partition {
    /// One for each slot, and a group of empty ones behind.
    tags: Vec<u8>,
    slots: Vec<Entry>,
    homes: u64,
    used: usize,
    class: usize,
    units: usize,
}

/// Where a key is, or would be.
enum Slot {
    Taken(usize),
    Free(usize),
}

impl RecentKeys {
    pub(super) fn new() -> Self {
        let mut partitions: Vec<Partition> = (0..PARTITIONS).map(|_| Partition::default()).collect();
        // The last one is twice as wide as the first.
        let begin = |partition: usize| (2 * PARTITIONS + partition - 1) * partition;
        let mut last = 0;
        let dealt = (0..UNITS).map(|unit| {
            while begin(last + 1) * UNITS <= unit * begin(PARTITIONS) {
                last += 1;
            }
            partitions[last].units += 1;
            u16::try_from(last).unwrap_or_default()
        });
        Self { dealt: dealt.collect(), partitions, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Makes room for `keys` in all, so that loading them copies nothing.
    pub(super) fn reserve(&mut self, keys: usize) {
        for partition in &mut self.partitions {
            let mean = keys * partition.units / UNITS;
            // Hashes spread evenly: four standard deviations above the mean are enough for nearly every partition.
            let wanted = mean + 4 * mean.isqrt();
            if partition.full(wanted) {
                partition.resize(wanted);
            }
        }
    }

    /// The content known for this identity.
    pub(super) fn find(&self, entry: &Entry) -> Option<u64> {
        let partition = &self.partitions[self.part(entry)];
        match partition.search(entry) {
            Slot::Taken(slot) => partition.slots.get(slot).map(|known| known[2]),
            Slot::Free(_) => None,
        }
    }

    /// Adds an entry unless its identity is there; returns the content that was known.
    pub(super) fn insert(&mut self, entry: &Entry) -> Option<u64> {
        let known = self.partition(entry).insert(entry);
        self.len += usize::from(known.is_none());
        known
    }

    /// Removes an identity; returns whether it was there.
    pub(super) fn remove(&mut self, entry: &Entry) -> bool {
        let was = self.partition(entry).remove(entry);
        self.len -= usize::from(was);
        was
    }

    /// Reads where these entries are at home, one independent of the other, so that memory is waited for once.
    pub(super) fn touch(&self, entries: &[Entry]) {
        let sum = entries.iter().fold(0, |sum, entry| {
            let partition = &self.partitions[self.part(entry)];
            let home = partition.home(entry);
            let tag = partition.tags.get(home).copied().unwrap_or_default();
            sum ^ u64::from(tag) ^ partition.slots.get(home).map_or(0, |slot| slot[0])
        });
        std::hint::black_box(sum);
    }

    fn part(&self, entry: &Entry) -> usize {
        usize::try_from(entry[0] >> (64 - UNIT_BITS)).map_or(0, |unit| usize::from(self.dealt[unit]))
    }

    fn partition(&mut self, entry: &Entry) -> &mut Partition {
        let part = self.part(entry);
        &mut self.partitions[part]
    }
}

/// A byte that has nothing to do with the place of an entry.
fn tag(entry: &Entry) -> u8 {
    entry[1].to_le_bytes()[7].max(EMPTY + 1)
}

/// Slots of a size class. Classes are the sizes that allocators round up to: four for each power of two.
fn class_slots(class: usize) -> usize {
    (((4 + class % 4) * CLASS_BYTES / 4) << (class / 4)) / size_of::<Entry>()
}

/// Slots at the end that are nobody's home: what finds no place before goes there.
fn spare(slots: usize) -> usize {
    (slots / 16).clamp(4, 256)
}

/// A bit for each byte that is zero; the lowest of them is exact, higher ones may be wrong.
fn zeros(group: u64) -> u64 {
    group.wrapping_sub(ONES) & !group & (ONES << 7)
}

impl Partition {
    fn home(&self, entry: &Entry) -> usize {
        usize::try_from(place(entry[0] << UNIT_BITS, self.homes).0).unwrap_or_default()
    }

    fn full(&self, keys: usize) -> bool {
        keys as u64 * 7 > self.homes * 6
    }

    fn search(&self, entry: &Entry) -> Slot {
        let wanted = ONES * u64::from(tag(entry));
        let mut first = self.home(entry);
        while let Some(group) = self.tags.get(first..first + GROUP).and_then(|tags| tags.try_into().ok()).map(u64::from_le_bytes) {
            let empty = zeros(group);
            // Only what is left of the first empty slot.
            let mut alike = zeros(group ^ wanted) & (empty & empty.wrapping_neg()).wrapping_sub(1);
            while alike != 0 {
                let slot = first + (alike.trailing_zeros() / 8) as usize;
                if self.slots.get(slot).is_some_and(|there| same_identity(there, entry)) {
                    return Slot::Taken(slot);
                }
                alike &= alike - 1;
            }
            if empty != 0 {
                return Slot::Free(first + (empty.trailing_zeros() / 8) as usize);
            }
            first += GROUP;
        }
        Slot::Free(self.slots.len())
    }

    fn insert(&mut self, entry: &Entry) -> Option<u64> {
        loop {
            match self.search(entry) {
                Slot::Taken(slot) => return self.slots.get(slot).map(|known| known[2]),
                Slot::Free(slot) if slot < self.slots.len() && !self.full(self.used + 1) => {
                    self.put(slot, entry);
                    self.used += 1;
                    return None;
                }
                Slot::Free(_) => self.resize(self.used + 1),
            }
        }
    }

    fn put(&mut self, slot: usize, entry: &Entry) {
        self.tags[slot] = tag(entry);
        self.slots[slot] = *entry;
    }

    fn remove(&mut self, entry: &Entry) -> bool {
        let Slot::Taken(mut hole) = self.search(entry) else { return false };
        // What could not stand in the hole before may move into it now, and so on to the next empty slot.
        let mut next = hole + 1;
        while self.tags[next] != EMPTY {
            let moving = self.slots[next];
            if self.home(&moving) <= hole {
                self.put(hole, &moving);
                hole = next;
            }
            next += 1;
        }
        self.tags[hole] = EMPTY;
        self.used -= 1;
        // Memory of keys that went to disk is given back.
        if self.class > 0 && (self.used as u64) * 8 < self.homes * 3 {
            self.class = 0;
            self.resize(self.used);
        }
        true
    }

    /// Moves to the next size class, and further up until `keys` fit.
    fn resize(&mut self, keys: usize) {
        let (tags, slots) = (std::mem::take(&mut self.tags), std::mem::take(&mut self.slots));
        loop {
            self.class += usize::from(self.homes > 0);
            let count = class_slots(self.class);
            self.homes = (count - spare(count)) as u64;
            if self.full(keys) {
                continue;
            }
            self.tags = vec![EMPTY; count + GROUP];
            self.slots = vec![[0; 3]; count];
            // In the order of the old slots, which is nearly that of the new ones.
            let fits = tags.iter().zip(&slots).filter(|(tag, _)| **tag != EMPTY).all(|(_, entry)| match self.search(entry) {
                Slot::Free(slot) if slot < count => {
                    self.put(slot, entry);
                    true
                }
                _ => false,
            });
            if fits {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn random_inserts_and_removals_agree_with_a_model() {
        // Few first words crowd one partition, few partitions grow and shrink, and many are nearly empty.
        for (highs, shift) in [(40, 0), (3000, 52), (3000, 40), (u64::MAX, 0)] {
            let (mut keys, mut model) = (RecentKeys::new(), HashMap::new());
            let mut state = 1_u64;
            for step in 0..200_000_u64 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let random = state ^ state >> 29;
                let entry = [(random % highs) << shift, random >> 40 & 3, step];
                let identity = (entry[0], entry[1]);
                // More comes than goes at first, then the other way round.
                if (state >> 33) % 10 < if step < 120_000 { 8 } else { 2 } {
                    let known = model.get(&identity).copied();
                    assert_eq!(keys.insert(&entry), known);
                    model.entry(identity).or_insert(step);
                } else {
                    assert_eq!(keys.remove(&entry), model.remove(&identity).is_some());
                }
                if step % 1000 == 0 {
                    keys.reserve(model.len() + 500);
                }
            }
            assert_eq!(keys.len(), model.len());
            for (identity, content) in model {
                assert_eq!(keys.find(&[identity.0, identity.1, 0]), Some(content));
            }
        }
    }

    #[test]
    fn a_key_takes_little_more_than_its_24_bytes() {
        let mut keys = RecentKeys::new();
        for number in 1..3_000_000_u64 {
            keys.insert(&[number.wrapping_mul(0x9e37_79b9_7f4a_7c15), number, 0]);
            if number % 100_000 == 0 && number >= 1_000_000 {
                let slots: usize = keys.partitions.iter().map(|partition| partition.slots.capacity()).sum();
                let bytes = u64::try_from(slots * (size_of::<Entry>() + 1)).unwrap_or_default();
                assert!(bytes <= 40 * number, "{bytes} bytes for {number} keys");
            }
        }
    }
}
