//! Which entries of a sorted file an identity may be: mostly none, and else its exact place.
//!
//! The first words of the identities, cut to about log2(keys) + `REMAINDER` bits, in Elias-Fano form: for each key
//! two bits and a remainder, plus a bit of counts. Hashes spread evenly, so a strange identity is taken for a
//! known one with probability 2^-remainder; one that is there is always found, and with its place in the file, so
//! that the file needs no other index.

use super::entry::place;

/// Parts of the range of words between two counts.
const GROUP: u64 = 32;

/// Where identities stand in a sorted file.
#[derive(Debug, Default)]
pub(super) struct PlaceFilter {
    parts: u64,
    remainder_bits: u32,
    keys: u64,
    /// Keys before each group of parts.
    counts: Vec<u32>,
    /// For each part a one for each key, then a zero.
    unary: Vec<u64>,
    remainders: Vec<u64>,
}

/// Bits of a remainder for so many keys: few files are large, and many lookups ask all of them.
pub(super) fn remainder_bits(keys: u64) -> u32 {
    match keys {
        0..0x80_0000 => 16,
        0x80_0000..0x400_0000 => 12,
        _ => 10,
    }
}

/// The shape of a filter, which a file's head keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FilterShape {
    pub(super) parts: u64,
    pub(super) remainder_bits: u32,
    pub(super) keys: u64,
}

impl PlaceFilter {
    /// An empty filter for about `keys_max` keys, which must be added in order.
    pub(super) fn new(keys_max: u64) -> Self {
        let parts = keys_max.max(1);
        let mut filter = Self { parts, remainder_bits: remainder_bits(keys_max), ..Self::default() };
        let shape = FilterShape { keys: keys_max, ..filter.shape() };
        let [counts, unary, remainders] = shape.lengths();
        filter.counts = Vec::with_capacity(counts);
        filter.unary = Vec::with_capacity(unary);
        filter.remainders = Vec::with_capacity(remainders);
        filter
    }

    /// Adds the first word of the next identity.
    pub(super) fn push(&mut self, high: u64) {
        let (part, within) = place(high, self.parts);
        self.count_to(part);
        set(&mut self.unary, self.keys + part, 1, 1);
        let remainder = within >> (64 - self.remainder_bits);
        set(&mut self.remainders, self.keys * u64::from(self.remainder_bits), self.remainder_bits, remainder);
        self.keys += 1;
    }

    /// Ends adding.
    pub(super) fn finish(&mut self) {
        self.count_to(self.parts - 1);
        let [_, unary, remainders] = self.shape().lengths();
        self.unary.resize(unary, 0);
        self.remainders.resize(remainders, 0);
    }

    fn count_to(&mut self, part: u64) {
        while self.counts.len() as u64 <= part / GROUP {
            self.counts.push(u32::try_from(self.keys).unwrap_or(u32::MAX));
        }
    }

    /// Places, from the first to before the second, at which this identity may stand.
    pub(super) fn places(&self, high: u64) -> Option<(u64, u64)> {
        let (part, within) = place(high, self.parts);
        let group = part / GROUP;
        let count = u64::from(*self.counts.get(usize::try_from(group).ok()?)?);
        // The part begins behind as many zeros as there are parts before it.
        let bit = skip_zeros(&self.unary, group * GROUP + count, part % GROUP)?;
        let mut key = bit - part;
        let wanted = within >> (64 - self.remainder_bits);
        let mut first = None;
        while get(&self.unary, key + part, 1) == 1 {
            let remainder = get(&self.remainders, key * u64::from(self.remainder_bits), self.remainder_bits);
            if remainder == wanted {
                first = first.or(Some(key));
            } else if remainder > wanted {
                break;
            }
            key += 1;
        }
        first.map(|first| (first, key))
    }

    /// Reads what [`Self::places`] will look at for each of these words, one independent of the other, so that memory is
    /// waited for once.
    pub(super) fn touch(&self, highs: impl Iterator<Item = u64>) {
        let sum = highs.fold(0, |sum, high| {
            let first = place(high, self.parts).0 / GROUP;
            let count = self.counts.get(usize::try_from(first).unwrap_or(usize::MAX)).copied().map_or(0, u64::from);
            let unary = self.unary.get(index(first * GROUP + count).0).copied().unwrap_or_default();
            // About where the remainder is: in the middle of those of its group.
            let remainder = self.remainders.get(index((count + GROUP / 2) * u64::from(self.remainder_bits)).0).copied().unwrap_or_default();
            sum ^ unary ^ remainder
        });
        std::hint::black_box(sum);
    }

    pub(super) fn shape(&self) -> FilterShape {
        FilterShape { parts: self.parts, remainder_bits: self.remainder_bits, keys: self.keys }
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.counts.len() * 4 + (self.unary.len() + self.remainders.len()) * 8
    }

    /// The filter as it stands in a file, in pieces.
    pub(super) fn write(&self, mut put: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        for counts in self.counts.chunks(1 << 17) {
            bytes.clear();
            counts.iter().for_each(|count| bytes.extend_from_slice(&count.to_le_bytes()));
            put(&bytes)?;
        }
        for words in self.unary.chunks(1 << 16).chain(self.remainders.chunks(1 << 16)) {
            bytes.clear();
            words.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
            put(&bytes)?;
        }
        Ok(())
    }

    /// Reads what [`Self::write`] wrote.
    pub(super) fn read(shape: FilterShape, mut take: impl FnMut(&mut [u8]) -> std::io::Result<()>) -> std::io::Result<Self> {
        let [counts, unary, remainders] = shape.lengths();
        let mut bytes = vec![0; 1 << 19];
        let mut filter = Self { parts: shape.parts, remainder_bits: shape.remainder_bits, keys: shape.keys, ..Self::default() };
        filter.counts.reserve_exact(counts);
        while filter.counts.len() < counts {
            let piece = &mut bytes[..(counts - filter.counts.len()).min(1 << 17) * 4];
            take(piece)?;
            filter.counts.extend(piece.chunks_exact(4).map(|count| count.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte))));
        }
        for (words, length) in [(&mut filter.unary, unary), (&mut filter.remainders, remainders)] {
            words.reserve_exact(length);
            while words.len() < length {
                let piece = &mut bytes[..(length - words.len()).min(1 << 16) * 8];
                take(piece)?;
                words.extend(piece.chunks_exact(8).map(|word| super::entry::word(word, 0)));
            }
        }
        Ok(filter)
    }
}

impl FilterShape {
    /// Numbers of counts, of words of the unary part and of words of remainders.
    fn lengths(self) -> [usize; 3] {
        let words = |bits: u64| usize::try_from(bits.div_ceil(64) + 1).unwrap_or(usize::MAX);
        let counts = usize::try_from(self.parts.div_ceil(GROUP)).unwrap_or(usize::MAX);
        [counts, words(self.keys + self.parts), words(self.keys * u64::from(self.remainder_bits))]
    }

    /// Bytes in a file.
    pub(super) fn file_bytes(self) -> u64 {
        let [counts, unary, remainders] = self.lengths();
        counts as u64 * 4 + (unary as u64 + remainders as u64) * 8
    }
}

fn index(bit: u64) -> (usize, u32) {
    (usize::try_from(bit / 64).unwrap_or(usize::MAX), u32::try_from(bit % 64).unwrap_or_default())
}

/// The `bits` bits from `bit` on; zeros beyond the end.
fn get(words: &[u64], bit: u64, bits: u32) -> u64 {
    let (at, shift) = index(bit);
    let low = words.get(at).copied().unwrap_or_default() >> shift;
    let high = if shift + bits > 64 { words.get(at + 1).copied().unwrap_or_default() << (64 - shift) } else { 0 };
    (low | high) & (u64::MAX >> (64 - bits))
}

/// Sets bits that are zeros; the words grow as they must.
fn set(words: &mut Vec<u64>, bit: u64, bits: u32, value: u64) {
    let (at, shift) = index(bit);
    let last = at + usize::from(shift + bits > 64);
    if words.len() <= last {
        words.resize(last + 1, 0);
    }
    words[at] |= value << shift;
    if last > at {
        words[last] |= value >> (64 - shift);
    }
}

/// The position behind the `zeros`-th zero from `bit` on.
fn skip_zeros(words: &[u64], bit: u64, zeros: u64) -> Option<u64> {
    if zeros == 0 {
        return Some(bit);
    }
    let (mut at, shift) = index(bit);
    let mut open = !words.get(at)? & (u64::MAX << shift);
    let mut left = zeros;
    loop {
        let sums = sums_of_bytes(open);
        let count = sums >> 56;
        if left <= count {
            return Some(at as u64 * 64 + u64::from(nth_one(open, sums, left)) + 1);
        }
        left -= count;
        at += 1;
        open = !*words.get(at)?;
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;

/// In each byte, how many ones this byte and the lower ones have.
fn sums_of_bytes(word: u64) -> u64 {
    let pairs = word - (word >> 1 & 0x5555_5555_5555_5555);
    let nibbles = (pairs & 0x3333_3333_3333_3333) + (pairs >> 2 & 0x3333_3333_3333_3333);
    ((nibbles + (nibbles >> 4)) & (ONES * 0x0f)).wrapping_mul(ONES)
}

/// Position of the `nth` one, counted from 1; `sums` are those of its bytes.
fn nth_one(word: u64, sums: u64, nth: u64) -> u32 {
    // The first byte whose sum reaches `nth`: no sum is above 64, so that no byte borrows from the next.
    let reached = ((sums | ONES << 7) - nth * ONES) & (ONES << 7);
    let shift = reached.trailing_zeros() / 8 * 8;
    let before = (sums << 8) >> shift & 0xff;
    let mut byte = word >> shift;
    for _ in before + 1..nth {
        byte &= byte - 1;
    }
    shift + byte.trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(number: u64) -> u64 {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(32)
    }

    #[test]
    fn every_key_is_found_at_its_place_and_few_others_are() {
        for keys in [0_u64, 1, 2, 63, 64, 65, 1000, 100_000] {
            let mut highs: Vec<u64> = (0..keys).map(spread).collect();
            highs.sort_unstable();
            // The number of keys is a guess when files with common keys are merged.
            for guess in [keys, keys + keys / 3 + 1] {
                let mut filter = PlaceFilter::new(guess);
                highs.iter().for_each(|high| filter.push(*high));
                filter.finish();
                let mut bytes = Vec::new();
                filter
                    .write(|piece| {
                        bytes.extend_from_slice(piece);
                        Ok(())
                    })
                    .unwrap();
                assert_eq!(bytes.len() as u64, filter.shape().file_bytes());
                let mut rest = &bytes[..];
                let read = PlaceFilter::read(filter.shape(), |piece| std::io::Read::read_exact(&mut rest, piece)).unwrap();
                for (place, high) in highs.iter().enumerate() {
                    let (from, to) = read.places(*high).unwrap();
                    assert!((from..to).contains(&(place as u64)), "{place} of {keys} is not in {from}..{to}");
                }
                let wrong = (keys..keys + 100_000).filter(|number| read.places(spread(*number)).is_some()).count();
                assert!(wrong < 20, "{wrong} of 100000 strange keys may be among {keys}");
            }
        }
    }

    #[test]
    fn ones_are_counted() {
        for word in [1, u64::MAX, 1 << 63, 0x8000_0000_0000_0001, spread(1), spread(2), spread(3) & spread(4), 0x00ff_0000_0100_0080] {
            let places: Vec<u32> = (0..64).filter(|bit| word >> bit & 1 == 1).collect();
            let sums = sums_of_bytes(word);
            assert_eq!(sums >> 56, places.len() as u64);
            for (nth, place) in (1..).zip(places) {
                assert_eq!(nth_one(word, sums, nth), place, "{word:x}");
            }
        }
    }

    #[test]
    fn equal_and_extreme_words_keep_their_places() {
        let highs = [0, 0, 0, 5, u64::MAX / 2, u64::MAX / 2, u64::MAX - 1, u64::MAX, u64::MAX];
        let mut filter = PlaceFilter::new(9);
        highs.iter().for_each(|high| filter.push(*high));
        filter.finish();
        for (place, high) in highs.iter().enumerate() {
            let (from, to) = filter.places(*high).unwrap();
            assert!((from..to).contains(&(place as u64)), "{place}: {from}..{to}");
        }
    }
}
