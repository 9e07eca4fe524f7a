//! The retained topics of a shard in the order of their bytes.
//!
//! Owns places in somebody's table, and no topics: who asks says which topic stands at a place.
//! Places stand in blocks, and beside each eight bytes of its topic, behind what all topics of its
//! block begin with; so a search reads topics, which are anywhere in memory, only where those eight
//! bytes do not tell them apart. A search tree with a reference to each topic takes three times as
//! much memory, and misses a cache at every step.
//!
//! Invariants: the topics of a block are not below its bound, and below the bound of the next; the
//! first bound is empty; only its block may be empty. Topics do not contain U+0000.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};

/// Places in one block at most; then it becomes two.
const BLOCK_MAX: usize = 256;
/// A block in which one head of so many is that of its neighbour gets a longer prefix, if it can.
const ALIKE: usize = 8;

/// Places by topic. See the module's text.
#[derive(Debug, Default)]
pub(crate) struct TopicOrder {
    blocks: BTreeMap<Box<[u8]>, Block>,
}

#[derive(Debug, Default)]
struct Block {
    /// What all of its topics begin with.
    prefix: Box<[u8]>,
    /// Of each, what comes behind that.
    heads: Vec<u64>,
    places: Vec<u32>,
}

impl TopicOrder {
    /// Adds a topic that is not there yet. `topics` tells which topic stands at a place.
    pub(crate) fn insert<'a>(&mut self, place: u32, topics: impl Fn(u32) -> &'a [u8]) {
        let topic = topics(place);
        if self.blocks.is_empty() {
            self.blocks.insert(Box::default(), Block::default());
        }
        let (_, block) = self.block_mut(topic).expect("invariant: the first bound is empty");
        block.insert(place, &topics);
        if block.places.len() > BLOCK_MAX {
            let (bound, behind) = block.split(topic, &topics);
            self.blocks.insert(bound, behind);
        }
    }

    /// Takes out a topic that is there. `topics` tells it still.
    pub(crate) fn remove<'a>(&mut self, place: u32, topics: impl Fn(u32) -> &'a [u8]) {
        let topic = topics(place);
        let (bound, block) = self.block_mut(topic).expect("invariant: it is there");
        let at = block.count_before(topic, &topics);
        assert_eq!(block.places.get(at), Some(&place), "invariant: it is where it belongs");
        block.remove(at);
        if block.places.is_empty() && !bound.is_empty() {
            let bound = bound.to_vec();
            self.blocks.remove(&*bound);
        }
    }

    /// The places of all topics that are not below `start`, in order.
    pub(crate) fn from<'s, 'a, T: Fn(u32) -> &'a [u8]>(
        &'s self,
        start: &[u8],
        topics: T,
    ) -> impl Iterator<Item = u32> + use<'s, 'a, T> {
        let first = self.blocks.range::<[u8], _>((Unbounded, Included(start))).next_back();
        let first = first.map_or(&[][..], |(_, block)| {
            let before = block.count_before(start, &topics);
            &block.places[before..]
        });
        let behind = self.blocks.range::<[u8], _>((Excluded(start), Unbounded));
        first.iter().chain(behind.flat_map(|(_, block)| &block.places)).copied()
    }

    /// The block in whose range a topic is, with its bound.
    fn block_mut(&mut self, topic: &[u8]) -> Option<(&[u8], &mut Block)> {
        let below = self.blocks.range_mut::<[u8], _>((Unbounded, Included(topic))).next_back();
        below.map(|(bound, block)| (&**bound, block))
    }
}

impl Block {
    /// How many of its topics are below this one.
    fn count_before<'a>(&self, topic: &[u8], topics: &impl Fn(u32) -> &'a [u8]) -> usize {
        let Some(rest) = topic.strip_prefix(&*self.prefix) else {
            return if *topic < *self.prefix { 0 } else { self.places.len() };
        };
        let head = head(rest);
        let below = self.heads.partition_point(|other| *other < head);
        let alike = self.heads[below..].partition_point(|other| *other == head);
        let alike = &self.places[below..below + alike];
        below + alike.partition_point(|place| topics(*place) < topic)
    }

    fn insert<'a>(&mut self, place: u32, topics: &impl Fn(u32) -> &'a [u8]) {
        let topic = topics(place);
        if self.places.is_empty() {
            self.prefix = topic.into();
        }
        let shared = shared_len(&self.prefix, topic);
        if shared < self.prefix.len() {
            self.set_prefix(&topic[..shared], topics);
        }
        let at = self.count_before(topic, topics);
        self.heads.insert(at, head(&topic[shared..]));
        self.places.insert(at, place);
    }

    fn remove(&mut self, at: usize) {
        self.heads.remove(at);
        self.places.remove(at);
        if self.places.len() * 4 < self.places.capacity() {
            self.heads.shrink_to(self.heads.len() * 2);
            self.places.shrink_to(self.places.len() * 2);
        }
    }

    /// Gives a part of its topics, with `new` just added, to a block of their own: half of them, or
    /// what was added at the end, where more of the kind may come. Tells the bound between both.
    fn split<'a>(&mut self, new: &[u8], topics: &impl Fn(u32) -> &'a [u8]) -> (Box<[u8]>, Self) {
        let last = self.places.len() - 1;
        let at = if topics(self.places[last]) == new { last } else { self.places.len() / 2 };
        let mut behind = Self {
            prefix: self.prefix.clone(),
            heads: self.heads.split_off(at),
            places: self.places.split_off(at),
        };
        for block in [&mut *self, &mut behind] {
            block.heads.shrink_to_fit();
            block.places.shrink_to_fit();
            block.tell_apart(topics);
        }
        let (below, above) = (topics(self.places[at - 1]), topics(behind.places[0]));
        (above[..=shared_len(below, above)].into(), behind)
    }

    /// Where heads are alike, a longer prefix may make them differ. Of one topic it is all.
    fn tell_apart<'a>(&mut self, topics: &impl Fn(u32) -> &'a [u8]) {
        let alike = self.heads.windows(2).filter(|pair| pair[0] == pair[1]).count();
        let last = self.places.len() - 1;
        if alike * ALIKE >= last {
            let (first, last) = (topics(self.places[0]), topics(self.places[last]));
            self.set_prefix(&first[..shared_len(first, last)], topics);
        }
    }

    fn set_prefix<'a>(&mut self, prefix: &[u8], topics: &impl Fn(u32) -> &'a [u8]) {
        if *prefix != *self.prefix {
            self.prefix = prefix.into();
            let heads = self.places.iter().map(|place| head(&topics(*place)[prefix.len()..]));
            self.heads.clear();
            self.heads.extend(heads);
        }
    }
}

/// The first eight bytes as a number: in the order of the bytes, and the end before all.
fn head(rest: &[u8]) -> u64 {
    match rest.first_chunk() {
        Some(bytes) => u64::from_be_bytes(*bytes),
        None => {
            let mut bytes = [0; 8];
            bytes[..rest.len()].copy_from_slice(rest);
            u64::from_be_bytes(bytes)
        }
    }
}

/// How many bytes both begin with.
fn shared_len(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl TopicOrder {
        fn check(&self, topics: &[String]) {
            let topic = |place: u32| topics[place as usize].as_bytes();
            let mut last: Option<&[u8]> = None;
            for (bound, block) in &self.blocks {
                assert!(bound.is_empty() || !block.places.is_empty() && last < Some(bound));
                assert!(block.places.len() <= BLOCK_MAX);
                assert_eq!(block.heads.len(), block.places.len());
                for (place, known) in block.places.iter().zip(&block.heads) {
                    assert!(last < Some(topic(*place)) && **bound <= *topic(*place));
                    assert!(topic(*place).starts_with(&block.prefix));
                    assert_eq!(*known, head(&topic(*place)[block.prefix.len()..]));
                    last = Some(topic(*place));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Against a set: topics that share much and little, in any order, up and down.
        #[test]
        fn equals_a_set(
            numbers in prop::collection::vec(0u32..3000, 0..2500),
            style in 0..4,
            ascending in any::<bool>(),
            starts in prop::collection::vec(0usize..3100, 8),
        ) {
            let topics: Vec<String> = (0..3100u32).map(|n| match style {
                0 => format!("{n}"),
                1 => format!("site/{}/a long name that all have/{:05}", n % 3, n / 3),
                2 => format!("{}/{n}", "x".repeat(n as usize % 40)),
                _ => format!("a/{n:03}\u{10ffff}"),
            }).collect();
            let topic = |place: u32| topics[place as usize].as_bytes();
            let mut numbers = numbers;
            if ascending {
                numbers.sort_by_key(|number| topic(*number));
                numbers.dedup();
            }
            let (mut order, mut reference) = (TopicOrder::default(), BTreeMap::new());
            for (step, number) in numbers.iter().enumerate() {
                if reference.remove(topic(*number)).is_some() {
                    order.remove(*number, topic);
                } else {
                    reference.insert(topic(*number), *number);
                    order.insert(*number, topic);
                }
                if step % 256 == 0 {
                    order.check(&topics);
                }
            }
            order.check(&topics);
            for start in starts {
                let start = topics[start].as_bytes();
                for start in [start, &[start, b"\0"].concat(), &start[..start.len() / 2]] {
                    let expected = reference.range::<[u8], _>((Included(start), Unbounded));
                    prop_assert!(order.from(start, topic).eq(expected.map(|(_, place)| *place)));
                }
            }
            while let Some((_, place)) = reference.pop_first() {
                order.remove(place, topic);
            }
            prop_assert!(order.from(b"", topic).next().is_none() && order.blocks.len() <= 1);
        }
    }

    /// Blocks hold what they may where topics come in order, and memory follows what is there.
    #[test]
    fn takes_few_bytes_a_topic_and_gives_them_back() {
        let topics: Vec<String> = (0..50_000).map(|n| format!("bench/retained/{n:08}")).collect();
        let topic = |place: u32| topics[place as usize].as_bytes();
        let bytes = |order: &TopicOrder| -> usize {
            let block = |block: &Block| 12 * block.places.capacity() + block.prefix.len();
            let blocks = order.blocks.iter();
            blocks
                .map(|(bound, it)| size_of::<(Box<[u8]>, Block)>() + bound.len() + block(it))
                .sum()
        };
        let mut order = TopicOrder::default();
        (0..50_000).for_each(|place| order.insert(place, topic));
        assert!(bytes(&order) < 14 * 50_000, "{}", bytes(&order));
        assert!(order.blocks.values().skip(1).all(|block| block.prefix.len() > 15));
        (0..50_000).filter(|place| place % 50 > 0).for_each(|place| order.remove(place, topic));
        assert!(bytes(&order) < 80 * 1000, "{}", bytes(&order));
        (0..50_000).step_by(50).for_each(|place| order.remove(place, topic));
        assert!(bytes(&order) < 200, "{}", bytes(&order));
    }
}
