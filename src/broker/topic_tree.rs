//! Topic filters and what is kept for each, found by topic name.
//!
//! [`TopicTree`] holds one value per filter. Levels are interned, nodes are small and live in one
//! slab, the children of all nodes in one table; `+` and `#` are fields of a node, so a topic of n
//! levels costs n look-ups where nothing but one filter is near it. A walk visits each node at most
//! once, and never allocates.
//!
//! Invariants: a node exists exactly while a filter at or below it does; a level is interned
//! exactly while a node has it; the depth of the tree is at most [`TOPIC_LEVELS_MAX`]. Filters are
//! checked by the codec before they come here.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::{Index, IndexMut};

use foldhash::fast::FixedState;
use slab::Slab;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Root,
    Literal(u32),
    Plus,
    Hash,
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
    nodes: Slab<Node>,
    /// Child of a node for a literal level; both numbers in one key.
    children: HashMap<u64, u32, FixedState>,
    levels: Slab<Level>,
    level_ids: HashMap<Box<str>, u32, FixedState>,
    values: Slab<Stored<V>>,
}

impl<V> TopicTree<V> {
    /// An empty tree whose tables hash with `seed`.
    pub fn new(seed: u64) -> Self {
        let mut nodes = Slab::new();
        nodes.insert(Node::new(NONE, Step::Root));
        Self {
            nodes,
            children: HashMap::with_hasher(FixedState::with_seed(seed)),
            levels: Slab::new(),
            level_ids: HashMap::with_hasher(FixedState::with_seed(seed.rotate_left(32) ^ 1)),
            values: Slab::new(),
        }
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
            let Node { parent, step, .. } = self.nodes.remove(node as usize);
            let above = &mut self.nodes[parent as usize];
            match step {
                Step::Plus => above.plus = NONE,
                Step::Hash => above.hash = NONE,
                Step::Literal(level) => {
                    above.literals -= 1;
                    self.children.remove(&child_key(parent, level));
                    self.release_level(level);
                }
                Step::Root => unreachable!("invariant: the root is never unused"),
            }
            node = parent;
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
                Step::Root => break,
                Step::Plus => "+",
                Step::Hash => "#",
                Step::Literal(level) => &self.levels[level as usize].name,
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
        // One more than a filter can have: the rest of a longer topic changes nothing.
        let mut levels = [NONE; TOPIC_LEVELS_MAX + 1];
        let mut count = 0;
        for (slot, level) in levels.iter_mut().zip(topic.split('/')) {
            *slot = self.level_ids.get(level).copied().unwrap_or(NONE);
            count += 1;
        }
        let root = self.node(ROOT);
        let levels = &levels[..count];
        if topic.starts_with('$') {
            if let Some(child) = self.literal_child(ROOT, levels[0]) {
                self.walk(child, &levels[1..], &mut visit);
            }
        } else if root.literals > 0 || root.plus != NONE || root.hash != NONE {
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
        self.children.get(&child_key(parent, level)).copied()
    }

    fn child(&self, parent: u32, level: &str) -> Option<u32> {
        let child = match level {
            "+" => self.node(parent).plus,
            "#" => self.node(parent).hash,
            name => return self.literal_child(parent, *self.level_ids.get(name)?),
        };
        (child != NONE).then_some(child)
    }

    fn add_child(&mut self, parent: u32, level: &str) -> u32 {
        let step = match level {
            "+" => Step::Plus,
            "#" => Step::Hash,
            name => Step::Literal(self.hold_level(name)),
        };
        let child = index(self.nodes.insert(Node::new(parent, step)));
        let above = &mut self.nodes[parent as usize];
        match step {
            Step::Plus => above.plus = child,
            Step::Hash => above.hash = child,
            Step::Literal(level) => {
                above.literals += 1;
                self.children.insert(child_key(parent, level), child);
            }
            Step::Root => unreachable!("invariant: a child is not the root"),
        }
        child
    }

    fn hold_level(&mut self, name: &str) -> u32 {
        // Two look-ups when new; only inserting a filter pays them.
        if let Some(&id) = self.level_ids.get(name) {
            self.levels[id as usize].nodes += 1;
            return id;
        }
        let id = index(self.levels.insert(Level { name: name.into(), nodes: 1 }));
        self.level_ids.insert(name.into(), id);
        id
    }

    fn release_level(&mut self, id: u32) {
        let level = &mut self.levels[id as usize];
        level.nodes -= 1;
        if level.nodes == 0 {
            let Level { name, .. } = self.levels.remove(id as usize);
            match self.level_ids.entry(name) {
                Entry::Occupied(entry) => entry.remove(),
                Entry::Vacant(_) => unreachable!("invariant: a held level is interned"),
            };
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
            && self.step != Step::Root
    }
}

const fn child_key(parent: u32, level: u32) -> u64 {
    (parent as u64) << 32 | level as u64
}

fn index(slot: usize) -> u32 {
    let index = u32::try_from(slot).expect("invariant: fewer than 2^32 nodes");
    assert!(index != NONE, "invariant: fewer than 2^32 nodes");
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
