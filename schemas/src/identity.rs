//! What makes two events the same event, and what is answered about each.

use siphasher::sip128::{Hash128, Hasher128, SipHasher13};
use std::hash::Hasher;

use crate::rejected::Reason;

/// The identity of an event and a print of its content, as the dedup index keeps them.
///
/// Both come from SipHash-1-3 under a secret key, so that nobody can choose colliding ids. Two identities collide
/// with probability 2⁻¹²⁸ per pair: at 10^12 events less than 2⁻⁴⁸ in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventKey {
    /// 128-bit hash of (`source`, `id`).
    pub identity: u128,
    /// 64-bit hash of what was said: meter, subject, time, end, quantity by value and the declared dimensions.
    pub content: u64,
}

/// What the dedup index says of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// First of its identity: it will be rated.
    Accepted,
    /// The same event again; nothing changes.
    Duplicate,
    /// The identity is taken by an event with other content; this one is kept in `rejected`.
    Conflict,
    /// The version of this amendment is taken by one with another new event; this one is kept in `rejected`.
    AmendmentConflict,
}

impl Verdict {
    /// Of a conflict, the reason and one sentence for its sender.
    #[must_use]
    pub fn conflict(self) -> Option<(Reason, &'static str)> {
        match self {
            Self::Accepted | Self::Duplicate => None,
            Self::Conflict => Some((Reason::IdentityConflict, "this source and id were used before by an event with other content")),
            Self::AmendmentConflict => {
                Some((Reason::AmendmentConflict, "this version was used before by an amendment of the same target with another new event"))
            }
        }
    }
}

/// Bytes that are hashed at once: most identities and contents.
const WAITING_BYTES: usize = 128;

/// Hashes identities and contents under the key of one installation.
#[derive(Debug, Clone, Copy)]
pub struct EventHasher {
    key: [u64; 2],
}

impl EventHasher {
    /// A hasher under a secret of 128 random bits.
    #[must_use]
    pub fn new(key: [u64; 2]) -> Self {
        Self { key }
    }

    /// The identity hash of (`source`, `id`).
    #[must_use]
    pub fn identity(&self, source: &str, id: &str) -> u128 {
        self.hash(b'e', &[source.as_bytes(), id.as_bytes()])
    }

    /// The identity hash of a version of an event that amendments make.
    #[must_use]
    pub fn amendment(&self, target_source: &str, target_id: &str, version: i64) -> u128 {
        self.hash(b'a', &[target_source.as_bytes(), target_id.as_bytes(), &version.to_le_bytes()])
    }

    /// The identity hash of a rejected record: where it came from, why it was rejected, and its bytes.
    #[must_use]
    pub fn rejection(&self, connector: &str, position: &str, reason: &str, raw: &[u8]) -> u128 {
        self.hash(b'r', &[connector.as_bytes(), position.as_bytes(), reason.as_bytes(), raw])
    }

    /// Starts the content print of an event.
    #[must_use]
    pub fn content(&self) -> ContentHasher {
        ContentHasher(KeyedHasher::new(self.key))
    }

    fn hash(&self, kind: u8, parts: &[&[u8]]) -> u128 {
        let mut hasher = KeyedHasher::new(self.key);
        hasher.write(&[kind]);
        for part in parts {
            hasher.write(&part.len().to_le_bytes());
            hasher.write(part);
        }
        hasher.finish().as_u128()
    }
}

/// SipHash-1-3 that is given its bytes in large pieces: hashing many small ones takes twice the time, with the same result.
#[derive(Debug)]
struct KeyedHasher {
    hasher: SipHasher13,
    /// Bytes that are not hashed yet, up to `len`.
    waiting: [u8; WAITING_BYTES],
    len: usize,
}

impl KeyedHasher {
    #[inline]
    fn new(key: [u64; 2]) -> Self {
        Self { hasher: SipHasher13::new_with_keys(key[0], key[1]), waiting: [0; WAITING_BYTES], len: 0 }
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        if let Some(room) = self.waiting.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
            return;
        }
        self.hasher.write(&self.waiting[..self.len]);
        self.hasher.write(bytes);
        self.len = 0;
    }

    #[inline]
    fn finish(mut self) -> Hash128 {
        self.hasher.write(&self.waiting[..self.len]);
        self.hasher.finish128()
    }
}

/// Collects the content of one event, field by field, in schema order.
#[derive(Debug)]
pub struct ContentHasher(KeyedHasher);

impl ContentHasher {
    /// A text.
    pub fn text(&mut self, value: &str) {
        self.0.write(&value.len().to_le_bytes());
        self.0.write(value.as_bytes());
    }

    /// A number, instant or decimal by value.
    pub fn number(&mut self, value: Option<i128>) {
        self.0.write(&[u8::from(value.is_some())]);
        self.0.write(&value.unwrap_or_default().to_le_bytes());
    }

    /// The print.
    #[must_use]
    pub fn finish(self) -> u64 {
        self.0.finish().h1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_between_source_and_id_counts() {
        let hasher = EventHasher::new([1, 2]);
        assert_ne!(hasher.identity("ab", "c"), hasher.identity("a", "bc"));
        assert_eq!(hasher.identity("ab", "c"), hasher.identity("ab", "c"));
        assert_ne!(hasher.identity("ab", "c"), EventHasher::new([1, 3]).identity("ab", "c"));
    }

    #[test]
    fn keys_are_those_of_plain_siphash() {
        for length in (0..140).chain([1000]) {
            let (source, id) = ("s".repeat(length), "i".repeat(length / 2));
            let mut plain = SipHasher13::new_with_keys(1, 2);
            plain.write_u8(b'e');
            for part in [&source, &id] {
                plain.write_usize(part.len());
                plain.write(part.as_bytes());
            }
            assert_eq!(EventHasher::new([1, 2]).identity(&source, &id), plain.finish128().as_u128(), "{length}");
            let mut plain = SipHasher13::new_with_keys(1, 2);
            plain.write_usize(source.len());
            plain.write(source.as_bytes());
            plain.write_u8(1);
            plain.write_i128(-7);
            let mut content = EventHasher::new([1, 2]).content();
            content.text(&source);
            content.number(Some(-7));
            assert_eq!(content.finish(), plain.finish128().h1, "{length}");
        }
    }
}
