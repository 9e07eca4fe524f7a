//! Topic filters and what is kept for each, found by topic name.
//!
//! [`TopicTree`] holds one value per filter. Levels are interned, nodes are small and live in one
//! table, the children of all nodes in one index, which has no keys of its own; `+` and `#` are fields
//! of a node, so a topic of n levels costs n look-ups where nothing but one filter is near it. A walk
//! visits each node at most once, and never allocates.
//!
//! Invariants: a node exists exactly while a filter at or below it does; a level is interned
//! exactly while a node has it; the depth of the tree is at most [`TOPIC_LEVELS_MAX`]. Filters are
//! checked by the codec before they come here.
#![forbid(unsafe_code)]

use std::hash::BuildHasher;
use std::ops::{Index, IndexMut};

use foldhash::quality::FixedState;
use slab::Slab;

use crate::codec::mqtt::topic;
use crate::index::Index as HashIndex;
use crate::limits::TOPIC_LEVELS_MAX;

const NONE: u32 = u32::MAX;
const ROOT: u32 = 0;

/// Where a stored filter's value is; valid until that filter is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilterId(u32);

#[derive(Debug)]
struct Node {
    parent: u32,
    /// What its parent knows it by.
    step: Step,
    /// Child for `+`.
    plus: u32,
    /// Child for `#`.
    hash: u32,
    /// Children for literal levels.
    literals: u32,
    value: u32,
}

/// A literal level's number, or one of those below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step(u32);

impl Step {
    const ROOT: Self = Self(u32::MAX);
    const PLUS: Self = Self(u32::MAX - 1);
    const HASH: Self = Self(u32::MAX - 2);
}

#[derive(Debug)]
struct Level {
    name: Box<str>,
    nodes: u32,
}

#[derive(Debug)]
struct Stored<V> {
    node: u32,
    value: V,
}

/// A map from topic filters to values, to be asked with topic names. See the module's text.
#[derive(Debug)]
pub struct TopicTree<V> {
    nodes: Vec<Node>,
    /// Those of them that are not in use.
    free_nodes: Vec<u32>,
    /// Child of a node for a literal level, by both numbers.
    children: HashIndex,
    levels: Slab<Level>,
    /// By its name.
    level_ids: HashIndex,
    values: Slab<Stored<V>>,
    hasher: FixedState,
}

impl<V> TopicTree<V> {
    /// An empty tree whose tables hash with `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            nodes: vec![Node::new(NONE, Step::ROOT)],
            free_nodes: Vec::new(),
            children: HashIndex::new(),
            levels: Slab::new(),
            level_ids: HashIndex::new(),
            values: Slab::new(),
            hasher: FixedState::with_seed(seed),
        }
    }

    #[cfg(test)]
    /// What a filter takes here at most, in bytes, its value included; `nodes` of its levels are no
    /// other's. The text of levels aside, which filters share.
    pub const fn bytes_per_filter(nodes: usize) -> usize {
        // A slab's entry is what an Option is.
        size_of::<Option<Stored<V>>>() + nodes * (size_of::<Node>() + HashIndex::ENTRY_BYTES)
    }

    /// How many filters are stored.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether no filter is stored.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Where this very filter is stored.
    pub fn find(&self, filter: &str) -> Option<FilterId> {
        let mut node = ROOT;
        for level in filter.split('/') {
            node = self.child(node, level)?;
        }
        let value = self.node(node).value;
        (value != NONE).then_some(FilterId(value))
    }

    /// The value of this very filter.
    pub fn get(&self, filter: &str) -> Option<&V> {
        self.find(filter).map(|id| &self[id])
    }

    /// The value of this very filter, to be changed.
    pub fn get_mut(&mut self, filter: &str) -> Option<&mut V> {
        self.find(filter).map(|id| &mut self[id])
    }

    /// Stores `filter` if it is not stored yet, and says where it is.
    ///
    /// # Panics
    /// If the filter has more than [`TOPIC_LEVELS_MAX`] levels: the caller refuses those.
    pub fn insert_with(&mut self, filter: &str, value: impl FnOnce() -> V) -> FilterId {
        assert!(
            filter.split('/').nth(TOPIC_LEVELS_MAX).is_none(),
            "invariant: filters within the level limit"
        );
        let mut node = ROOT;
        for level in filter.split('/') {
            node = match self.child(node, level) {
                Some(child) => child,
                None => self.add_child(node, level),
            };
        }
        let stored = self.node(node).value;
        if stored != NONE {
            return FilterId(stored);
        }
        let id = index(self.values.insert(Stored { node, value: value() }));
        self.nodes[node as usize].value = id;
        FilterId(id)
    }

    /// Removes this very filter and gives its value back.
    pub fn remove(&mut self, filter: &str) -> Option<V> {
        self.find(filter).map(|id| self.remove_id(id))
    }

    /// Removes the filter stored at `id`.
    ///
    /// # Panics
    /// If none is.
    pub fn remove_id(&mut self, id: FilterId) -> V {
        let Stored { mut node, value } = self.values.remove(id.0 as usize);
        self.nodes[node as usize].value = NONE;
        while self.node(node).is_unused() {
            let Node { parent, step, .. } = self.nodes[node as usize];
            let above = &mut self.nodes[parent as usize];
            match step {
                Step::PLUS => above.plus = NONE,
                Step::HASH => above.hash = NONE,
                Step(level) => {
                    above.literals -= 1;
                    self.children.remove(self.child_hash(parent, level), node);
                    self.release_level(level);
                }
            }
            self.free_nodes.push(node);
            node = parent;
        }
        if self.values.is_empty() {
            self.give_back();
        }
        value
    }

    /// The filter stored at `id`, written out again.
    pub fn filter(&self, id: FilterId) -> String {
        let mut levels = Vec::new();
        let mut node = self.values[id.0 as usize].node;
        loop {
            let Node { parent, step, .. } = self.node(node);
            levels.push(match *step {
                Step::ROOT => break,
                Step::PLUS => "+",
                Step::HASH => "#",
                Step(level) => &self.levels[level as usize].name,
            });
            node = *parent;
        }
        levels.reverse();
        levels.join("/")
    }

    /// Calls `visit` once for each stored filter that matches the topic name, in no particular
    /// order. A topic that begins with `$` is not matched by a wildcard in the first level
    /// `[MQTT-4.7.2-1]`.
    pub fn visit_matches<'a>(&'a self, topic: &str, mut visit: impl FnMut(FilterId, &'a V)) {
        let root = self.node(ROOT);
        if root.literals == 0 && root.plus == NONE && root.hash == NONE {
            return;
        }
        // One more than a filter can have: the rest of a longer topic changes nothing.
        let mut levels = [NONE; TOPIC_LEVELS_MAX + 1];
        let mut count = 0;
        for (slot, level) in levels.iter_mut().zip(topic::levels(topic)) {
            *slot = self.level_id(level).unwrap_or(NONE);
            count += 1;
        }
        let levels = &levels[..count];
        if topic.starts_with('$') {
            if let Some(child) = self.literal_child(ROOT, levels[0]) {
                self.walk(child, &levels[1..], &mut visit);
            }
        } else {
            self.walk(ROOT, levels, &mut visit);
        }
    }

    fn walk<'a>(&'a self, at: u32, levels: &[u32], visit: &mut impl FnMut(FilterId, &'a V)) {
        let node = self.node(at);
        if node.hash != NONE {
            // `#` stands for its parent level too, and any number below it. [MQTT-4.7.1-2]
            self.emit(node.hash, visit);
        }
        let Some((&level, rest)) = levels.split_first() else {
            self.emit(at, visit);
            return;
        };
        if node.plus != NONE {
            self.walk(node.plus, rest, visit);
        }
        if node.literals > 0
            && let Some(child) = self.literal_child(at, level)
        {
            self.walk(child, rest, visit);
        }
    }

    fn emit<'a>(&'a self, node: u32, visit: &mut impl FnMut(FilterId, &'a V)) {
        let value = self.node(node).value;
        if value != NONE {
            visit(FilterId(value), &self.values[value as usize].value);
        }
    }

    fn node(&self, index: u32) -> &Node {
        &self.nodes[index as usize]
    }

    fn literal_child(&self, parent: u32, level: u32) -> Option<u32> {
        if level == NONE {
            return None;
        }
        self.children.find(self.child_hash(parent, level), |child| {
            let node = self.node(child);
            node.parent == parent && node.step == Step(level)
        })
    }

    #[inline]
    fn child_hash(&self, parent: u32, level: u32) -> u64 {
        self.hasher.hash_one(child_key(parent, level))
    }

    #[inline]
    fn level_id(&self, name: &str) -> Option<u32> {
        let is = |id| *self.levels[id as usize].name == *name;
        self.level_ids.find(self.hasher.hash_one(name.as_bytes()), is)
    }

    fn child(&self, parent: u32, level: &str) -> Option<u32> {
        let child = match level {
            "+" => self.node(parent).plus,
            "#" => self.node(parent).hash,
            name => return self.literal_child(parent, self.level_id(name)?),
        };
        (child != NONE).then_some(child)
    }

    fn add_child(&mut self, parent: u32, level: &str) -> u32 {
        let step = match level {
            "+" => Step::PLUS,
            "#" => Step::HASH,
            name => Step(self.hold_level(name)),
        };
        let child = self.add_node(Node::new(parent, step));
        let above = &mut self.nodes[parent as usize];
        match step {
            Step::PLUS => above.plus = child,
            Step::HASH => above.hash = child,
            Step(level) => {
                above.literals += 1;
                self.children.insert(self.child_hash(parent, level), child);
            }
        }
        child
    }

    fn add_node(&mut self, node: Node) -> u32 {
        match self.free_nodes.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                index(self.nodes.len() - 1)
            }
        }
    }

    /// No filter is left: what they took is given back.
    fn give_back(&mut self) {
        self.nodes.truncate(1);
        self.nodes.shrink_to_fit();
        self.free_nodes = Vec::new();
        self.levels = Slab::new();
        self.values = Slab::new();
    }

    fn hold_level(&mut self, name: &str) -> u32 {
        // Two look-ups when new; only inserting a filter pays them.
        if let Some(id) = self.level_id(name) {
            self.levels[id as usize].nodes += 1;
            return id;
        }
        let id = index(self.levels.insert(Level { name: name.into(), nodes: 1 }));
        self.level_ids.insert(self.hasher.hash_one(name.as_bytes()), id);
        id
    }

    fn release_level(&mut self, id: u32) {
        let level = &mut self.levels[id as usize];
        level.nodes -= 1;
        if level.nodes == 0 {
            let Level { name, .. } = self.levels.remove(id as usize);
            let was_there = self.level_ids.remove(self.hasher.hash_one(name.as_bytes()), id);
            assert!(was_there, "invariant: a held level is interned");
        }
    }
}

impl<V> Index<FilterId> for TopicTree<V> {
    type Output = V;

    fn index(&self, id: FilterId) -> &V {
        &self.values[id.0 as usize].value
    }
}

impl<V> IndexMut<FilterId> for TopicTree<V> {
    fn index_mut(&mut self, id: FilterId) -> &mut V {
        &mut self.values[id.0 as usize].value
    }
}

impl Node {
    const fn new(parent: u32, step: Step) -> Self {
        Self { parent, step, plus: NONE, hash: NONE, literals: 0, value: NONE }
    }

    fn is_unused(&self) -> bool {
        self.value == NONE
            && self.plus == NONE
            && self.hash == NONE
            && self.literals == 0
            && self.step != Step::ROOT
    }
}

const fn child_key(parent: u32, level: u32) -> u64 {
    (parent as u64) << 32 | level as u64
}

fn index(slot: usize) -> u32 {
    let index = u32::try_from(slot).expect("invariant: fewer than 2^32 nodes");
    assert!(index < Step::HASH.0, "invariant: fewer than 2^32 nodes");
    index
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The specification's section 4.7, written down level by level.
    pub(crate) fn naive_matches(filter: &str, topic: &str) -> bool {
        let wild = filter.starts_with('+') || filter.starts_with('#');
        if wild && topic.starts_with('$') {
            return false;
        }
        let mut topic = topic.split('/');
        for level in filter.split('/') {
            if level == "#" {
                return true;
            }
            match topic.next() {
                Some(name) if level == "+" || level == name => {}
                _ => return false,
            }
        }
        topic.next().is_none()
    }

    /// `a/#` also matches `a`: the naive matcher above with the parent rule. [MQTT-4.7.1-2]
    pub(crate) fn reference(filter: &str, topic: &str) -> bool {
        naive_matches(filter, topic)
            || filter.strip_suffix("/#").is_some_and(|parent| naive_matches(parent, topic))
    }

    fn matches(tree: &TopicTree<String>, topic: &str) -> Vec<String> {
        let mut found = Vec::new();
        tree.visit_matches(topic, |_, filter| found.push(filter.clone()));
        found.sort();
        found
    }

    fn tree_of(filters: &[&str]) -> TopicTree<String> {
        let mut tree = TopicTree::new(7);
        for filter in filters {
            tree.insert_with(filter, || (*filter).to_owned());
        }
        tree
    }

    /// The specification's examples, and families 63 and 64 of known mistakes.
    #[test]
    fn matches_as_the_specification_says() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("sport/#", "sports", false),
            ("#", "a/b", true),
            ("#", "/", true),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("+/+", "a", false),
            ("/#", "/", true),
            ("/#", "a", false),
            ("a//b", "a//b", true),
            ("a/+/b", "a//b", true),
            ("a/", "a", false),
            ("a/b", "a/b/", false),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("+/#", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("$SYS/+", "$SYS/x", true),
            ("a/$x", "a/$x", true),
            ("+/$x", "a/$x", true),
        ] {
            let tree = tree_of(&[filter]);
            assert_eq!(!matches(&tree, topic).is_empty(), expected, "{filter} on {topic}");
            assert_eq!(reference(filter, topic), expected, "reference: {filter} on {topic}");
        }
    }

    #[test]
    fn a_topic_deeper_than_any_filter_is_matched_by_a_wildcard_only() {
        let deepest = vec!["a"; TOPIC_LEVELS_MAX].join("/");
        let tree = tree_of(&["#", &deepest, "a/#"]);
        assert_eq!(matches(&tree, &deepest).len(), 3);
        assert_eq!(matches(&tree, &format!("{deepest}/a")), ["#", "a/#"]);
        assert_eq!(matches(&tree, &format!("{deepest}/a/a")), ["#", "a/#"]);
    }

    #[test]
    fn removing_everything_leaves_nothing() {
        let filters = ["a/b/c", "a/+/c", "a/#", "#", "+", "a", "/", "a/b", "$x/y"];
        let mut tree = tree_of(&filters);
        for filter in filters {
            assert_eq!(tree.remove(filter).as_deref(), Some(filter));
            assert_eq!(tree.remove(filter), None);
        }
        assert!(tree.is_empty() && tree.children.is_empty());
        assert!(tree.levels.is_empty() && tree.level_ids.is_empty());
        assert_eq!(tree.nodes.len(), 1, "the root stays");
    }

    fn level() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["a", "b", "", "$x", "cc"])
    }

    pub(crate) fn topic() -> impl Strategy<Value = String> {
        prop::collection::vec(level(), 1..5).prop_map(|levels| levels.join("/"))
    }

    pub(crate) fn filter() -> impl Strategy<Value = String> {
        let level = prop_oneof![3 => level(), 1 => Just("+")];
        (prop::collection::vec(level, 0..5), any::<bool>()).prop_map(|(mut levels, hash)| {
            if hash || levels.is_empty() {
                levels.push("#");
            }
            levels.join("/")
        })
    }

    proptest! {
        #[test]
        fn equals_the_naive_matcher(
            changes in prop::collection::vec((any::<bool>(), filter()), 0..60),
            topics in prop::collection::vec(topic(), 1..10),
        ) {
            let mut tree = TopicTree::new(3);
            let mut stored = BTreeSet::new();
            for (add, filter) in changes {
                if add {
                    let id = tree.insert_with(&filter, || filter.clone());
                    prop_assert_eq!(&tree.filter(id), &filter);
                    stored.insert(filter);
                } else {
                    prop_assert_eq!(tree.remove(&filter).is_some(), stored.remove(&filter));
                }
            }
            prop_assert_eq!(tree.len(), stored.len());
            for topic in topics {
                let expected: Vec<String> =
                    stored.iter().filter(|filter| reference(filter, &topic)).cloned().collect();
                prop_assert_eq!(matches(&tree, &topic), expected);
            }
        }
    }
}
