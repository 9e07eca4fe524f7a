//! An index by hash: finds the place of a thing in somebody's table, and keeps no key of its own.
//!
//! [`Index`] holds eight bytes for each entry (half of the hash, and the place), sorted by hash as far
//! as room allows. Who asks compares with what stands at the place. A table of the standard library
//! holds its keys, grows to twice its size, and so takes three to six times as much.
//!
//! Invariants: entries stand in the order of their hashes, each at its home or behind it with no
//! empty bucket in between; at most four buckets in five of the homes are used.
#![forbid(unsafe_code)]

/// What no place is.
const EMPTY: u32 = u32::MAX;
/// Homes of the smallest index that holds something.
const HOMES_MIN: usize = 8;
/// Buckets that are moved at a time when it grows: few in tests, so that runs of them are cut.
const PIECE: usize = if cfg!(test) { 8 } else { 4096 };

#[derive(Clone, Copy, Debug)]
struct Bucket {
    hash: u32,
    /// Or [`EMPTY`].
    place: u32,
}

const NO_ENTRY: Bucket = Bucket { hash: 0, place: EMPTY };

/// Places by hash. See the module's text.
#[derive(Debug, Default)]
pub struct Index {
    /// The homes, and behind them what the last of these have pushed on.
    buckets: Vec<Bucket>,
    homes: usize,
    len: usize,
}

impl Index {
    #[cfg(test)]
    /// What an entry takes at most, in bytes, once there are some.
    pub const ENTRY_BYTES: usize = 13;

    /// An empty one, which owns no memory.
    pub const fn new() -> Self {
        Self { buckets: Vec::new(), homes: 0, len: 0 }
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The place of an entry with this hash of which `is` says that it is the one.
    #[inline]
    pub fn find(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let hash = upper(hash);
        let from = self.home(hash);
        for bucket in self.buckets.get(from..)? {
            if bucket.place == EMPTY || bucket.hash > hash {
                return None;
            }
            if bucket.hash == hash && is(bucket.place) {
                return Some(bucket.place);
            }
        }
        None
    }

    /// Adds an entry. The caller knows that it is not there yet.
    ///
    /// # Panics
    /// If `place` is `u32::MAX`.
    pub fn insert(&mut self, hash: u64, place: u32) {
        assert!(place != EMPTY, "invariant: a place is below u32::MAX");
        if (self.len + 1) * 5 > self.homes * 4 {
            // A quarter more each time: never much more memory than is used.
            self.resize((self.homes + self.homes / 4).max(HOMES_MIN));
        }
        self.put(Bucket { hash: upper(hash), place });
        self.len += 1;
    }

    /// Takes the entry of this hash and place out; whether there was one.
    pub fn remove(&mut self, hash: u64, place: u32) -> bool {
        let hash = upper(hash);
        let mut at = self.home(hash);
        loop {
            match self.buckets.get(at) {
                Some(bucket) if bucket.place != EMPTY && bucket.hash <= hash => {
                    if bucket.hash == hash && bucket.place == place {
                        break;
                    }
                }
                _ => return false,
            }
            at += 1;
        }
        // What was pushed on by it goes back.
        while let Some(&next) = self.buckets.get(at + 1)
            && next.place != EMPTY
            && self.home(next.hash) <= at
        {
            self.buckets[at] = next;
            at += 1;
        }
        self.buckets[at] = NO_ENTRY;
        self.len -= 1;
        if self.len == 0 {
            *self = Self::new();
        } else if self.homes > HOMES_MIN && self.len * 4 < self.homes {
            self.resize((self.len * 2).max(HOMES_MIN));
        }
        true
    }

    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.homes as u64) >> 32) as usize
    }

    fn put(&mut self, new: Bucket) {
        let mut at = self.home(new.hash);
        while self.buckets[at].place != EMPTY && self.buckets[at].hash <= new.hash {
            at += 1;
            self.extend_to(at);
        }
        let mut pushed = new;
        while pushed.place != EMPTY {
            pushed = std::mem::replace(&mut self.buckets[at], pushed);
            at += 1;
            if pushed.place != EMPTY {
                self.extend_to(at);
            }
        }
    }

    /// The last homes push entries on beyond the end.
    fn extend_to(&mut self, at: usize) {
        if at == self.buckets.len() {
            self.buckets.push(NO_ENTRY);
        }
    }

    /// In its own memory, which the system extends in place when it is large: a new table each time
    /// would leave a hole behind, and all of them together four times what the last one takes.
    fn resize(&mut self, homes: usize) {
        if homes > self.homes {
            self.grow(homes);
        } else {
            self.shrink(homes);
        }
    }

    /// None moves up, so each is read before something is written there.
    fn shrink(&mut self, homes: usize) {
        self.homes = homes;
        let mut next = 0;
        for from in 0..self.buckets.len() {
            let bucket = std::mem::replace(&mut self.buckets[from], NO_ENTRY);
            if bucket.place != EMPTY {
                let at = self.home(bucket.hash).max(next);
                self.buckets[at] = bucket;
                next = at + 1;
            }
        }
        self.buckets.resize(homes.max(next), NO_ENTRY);
        self.buckets.shrink_to(homes + HOMES_MIN);
    }

    /// None moves down. So pieces are moved from the last to the first, each by way of a copy; where
    /// each begins is found beforehand.
    fn grow(&mut self, homes: usize) {
        self.homes = homes;
        let (len, mut end) = (self.buckets.len(), 0);
        let mut starts = Vec::with_capacity(len / PIECE + 1);
        for piece in self.buckets.chunks(PIECE) {
            starts.push(end);
            for bucket in piece.iter().filter(|bucket| bucket.place != EMPTY) {
                end = end.max(self.home(bucket.hash)) + 1;
            }
        }
        // What the last homes had pushed on may be gone, and its buckets still be there.
        let new_len = homes.max(end);
        self.buckets.reserve_exact(new_len.saturating_sub(len));
        self.buckets.resize(new_len.max(len), NO_ENTRY);
        let mut copy: Vec<Bucket> = Vec::with_capacity(PIECE.min(len));
        for (piece, start) in starts.into_iter().enumerate().rev() {
            let piece = piece * PIECE..len.min((piece + 1) * PIECE);
            let used = self.buckets[piece.clone()].iter().filter(|bucket| bucket.place != EMPTY);
            copy.extend(used);
            self.buckets[piece].fill(NO_ENTRY);
            let mut next = start;
            for bucket in copy.drain(..) {
                let at = self.home(bucket.hash).max(next);
                self.buckets[at] = bucket;
                next = at + 1;
            }
        }
        self.buckets.truncate(new_len);
    }
}

/// The half of a hash that is kept: the better one, by which the homes are ordered.
fn upper(hash: u64) -> u32 {
    (hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    impl Index {
        fn check(&self) {
            let used = self.buckets.iter().enumerate().filter(|(_, b)| b.place != EMPTY);
            let mut last = None;
            for (at, bucket) in used {
                let home = self.home(bucket.hash);
                assert!(home <= at && self.buckets[home..at].iter().all(|b| b.place != EMPTY));
                assert!(last <= Some(bucket.hash), "in order");
                last = Some(bucket.hash);
            }
        }
    }

    proptest! {
        /// Against a set; few hashes, so that entries share them and push each other on.
        #[test]
        fn equals_a_set(
            steps in prop::collection::vec((any::<bool>(), 0u64..24, 0u32..6), 0..200),
            spread in prop::sample::select(vec![1u64 << 32, 0x0aaa_aaaa << 32, 0xf << 60]),
        ) {
            let mut index = Index::new();
            let mut reference = BTreeSet::new();
            for (add, hash, place) in steps {
                let hash = hash.wrapping_mul(spread);
                let key = (upper(hash), place);
                if !add {
                    prop_assert_eq!(index.remove(hash, place), reference.remove(&key));
                } else if reference.insert(key) {
                    index.insert(hash, place);
                }
                index.check();
                prop_assert_eq!(index.len(), reference.len());
                for place in 0..6 {
                    let found = index.find(hash, |at| at == place);
                    prop_assert_eq!(found.is_some(), reference.contains(&(upper(hash), place)));
                }
            }
        }
    }

    /// What the last home had pushed on beyond the end is gone, and its buckets are there, when the
    /// index grows by less than those.
    #[test]
    fn grows_with_empty_buckets_behind_its_homes() {
        let mut index = Index::new();
        (0..6).for_each(|place| index.insert(u64::MAX, place));
        let pushed_to = index.buckets.len();
        (1..6).for_each(|place| assert!(index.remove(u64::MAX, place)));
        let mut place = 6;
        while index.homes == HOMES_MIN {
            index.insert(u64::from(place) << 32, place);
            place += 1;
        }
        assert!(index.homes < pushed_to && index.buckets.len() == index.homes);
        index.check();
        assert!(index.find(u64::MAX, |at| at == 0).is_some());
        assert!((6..place).all(|n| index.find(u64::from(n) << 32, |at| at == n).is_some()));
    }

    #[test]
    fn takes_ten_to_thirteen_bytes_an_entry_and_gives_them_back() {
        let hash = |n: u32| u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut index = Index::new();
        for n in 0..100_000 {
            index.insert(hash(n), n);
            let bytes = index.buckets.capacity() * size_of::<Bucket>();
            assert!(
                n < 1000 || bytes <= Index::ENTRY_BYTES * index.len(),
                "{bytes} B for {}",
                index.len()
            );
            if n % 4999 == 0 {
                index.check();
            }
        }
        assert!((0..100_000).all(|n| index.find(hash(n), |at| at == n) == Some(n)));
        assert_eq!(index.find(hash(100_000), |at| at == 100_000), None);
        for n in 0..100_000 {
            assert!(index.remove(hash(n), n) && !index.remove(hash(n), n));
            assert!(index.buckets.capacity() < 5 * index.len() + 64, "it shrinks");
        }
        assert!(index.is_empty() && index.buckets.capacity() == 0);
    }
}
