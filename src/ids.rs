//! Names of things that several layers speak of: shards, sets of shards, connections, the home of
//! a client id.
#![forbid(unsafe_code)]

use crate::limits::SHARDS_MAX;

/// One shard: an event-loop thread and all that it owns. Below [`SHARDS_MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(u8);

impl ShardId {
    /// The shard with this number.
    ///
    /// # Panics
    /// If `index` is not below [`SHARDS_MAX`].
    pub const fn new(index: usize) -> Self {
        assert!(index < SHARDS_MAX, "invariant: shard numbers are below SHARDS_MAX");
        Self(index as u8)
    }

    /// Its number, to index arrays with one element per shard.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A set of shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ShardSet(u64);

const _: () = assert!(SHARDS_MAX <= u64::BITS as usize, "a ShardSet is one word");

impl ShardSet {
    /// No shard.
    pub const EMPTY: Self = Self(0);

    /// Only `shard`.
    pub const fn only(shard: ShardId) -> Self {
        Self(1 << shard.0)
    }

    /// Whether no shard is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `shard` is in it.
    pub const fn contains(self, shard: ShardId) -> bool {
        self.0 & (1 << shard.0) != 0
    }

    /// Adds `shard`.
    pub const fn insert(&mut self, shard: ShardId) {
        self.0 |= 1 << shard.0;
    }

    /// Takes `shard` out.
    pub const fn remove(&mut self, shard: ShardId) {
        self.0 &= !(1 << shard.0);
    }

    /// The shards of either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The shards of both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// How many.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// In ascending order.
    pub fn iter(self) -> impl Iterator<Item = ShardId> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let lowest = rest.trailing_zeros();
            rest &= rest - 1;
            Some(ShardId(lowest as u8))
        })
    }
}

/// One network connection of one shard: a slot and the generation of its use.
///
/// A slot is used again; whoever holds an id of an earlier use must not touch the later one, so
/// both parts are compared. Completions carry both (24 bits of generation suffice: a stale
/// completion is at most a few ticks old).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    /// Slot in the shard's table of connections.
    pub index: u32,
    /// Which use of the slot, below 2^24.
    pub generation: u32,
}

impl ConnId {
    /// Generations wrap here.
    pub const GENERATIONS: u32 = 1 << 24;
}

/// The keys of the hashes that place things on shards. Made at first start, kept in the data
/// directory (SHARDS.md H6), the same for all shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementKey(pub u64);

impl PlacementKey {
    /// The home shard of the session of this client id.
    pub fn home_of(self, client_id: &str, shards: usize) -> ShardId {
        self.place(client_id, 0x686f_6d65, shards)
    }

    /// The shard that owns the retained message of this topic.
    pub fn owner_of(self, topic: &str, shards: usize) -> ShardId {
        self.place(topic, 0x6f77_6e65, shards)
    }

    fn place(self, name: &str, purpose: u64, shards: usize) -> ShardId {
        if shards == 1 {
            return ShardId(0);
        }
        let hash = keyed_hash(self.0 ^ purpose, name.as_bytes());
        ShardId::new((hash % shards as u64) as usize)
    }
}

/// SipHash-1-3 of `bytes` under `key`: stable across builds and machines, and not to be steered by
/// clients who do not know the key.
pub fn keyed_hash(key: u64, bytes: &[u8]) -> u64 {
    siphash13(key, key.rotate_left(32) ^ 0x6e6f_6374_756c_6531, bytes)
}

/// SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", with 1 and 3 rounds).
/// Written out because the standard library's is unstable in its keyed form, and the value is
/// kept on disk: it must not depend on a library's version.
fn siphash13(k0: u64, k1: u64, bytes: &[u8]) -> u64 {
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let m = u64::from_le_bytes(word.try_into().expect("invariant: chunks of eight"));
        v[3] ^= m;
        sip_round(&mut v);
        v[0] ^= m;
    }
    let mut last = (bytes.len() as u64) << 56;
    for (i, byte) in words.remainder().iter().enumerate() {
        last |= u64::from(*byte) << (8 * i);
    }
    v[3] ^= last;
    sip_round(&mut v);
    v[0] ^= last;
    v[2] ^= 0xff;
    for _ in 0..3 {
        sip_round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn sip_round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siphash_matches_the_standard_library() {
        use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hasher};
        // DefaultHasher::default() is SipHash-1-3 with zero keys.
        for len in 0..40u8 {
            let bytes: Vec<u8> = (0..len).collect();
            let mut reference = BuildHasherDefault::<DefaultHasher>::default().build_hasher();
            reference.write(&bytes);
            assert_eq!(siphash13(0, 0, &bytes), reference.finish(), "length {len}");
        }
    }

    #[test]
    fn placement_uses_every_shard_and_only_those() {
        let key = PlacementKey(7);
        let mut seen = ShardSet::EMPTY;
        for i in 0..200 {
            seen.insert(key.home_of(&format!("client-{i}"), 5));
        }
        assert_eq!(seen.iter().map(ShardId::index).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    /// SHARDS.md H6: who does not know the key cannot fill one shard.
    #[test]
    fn the_key_decides_on_the_place() {
        let homes = |key| {
            let home = |i| PlacementKey(key).home_of(&format!("client-{i}"), 5);
            (0..200).map(home).collect::<Vec<_>>()
        };
        let same = homes(7).iter().zip(homes(8)).filter(|(a, b)| *a == b).count();
        assert!((10..80).contains(&same), "{same} of 200 are at home where they were");
        assert_eq!(homes(7), homes(7));
    }

    #[test]
    fn shard_set_is_a_set() {
        let mut set = ShardSet::EMPTY;
        assert!(set.is_empty());
        set.insert(ShardId::new(63));
        set.insert(ShardId::new(0));
        set.insert(ShardId::new(63));
        assert_eq!(set.len(), 2);
        assert!(set.contains(ShardId::new(63)));
        set.remove(ShardId::new(63));
        assert_eq!(set, ShardSet::only(ShardId::new(0)));
    }
}
