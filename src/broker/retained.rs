//! The retained messages that this shard owns: all topics whose hash falls to it.
//!
//! Every retained publish, clears included, takes the next number of its pair (origin shard, owner
//! shard), which its live copies and its store copy carry (SHARDS.md section 3). As origin this
//! file gives the numbers. As owner it keeps, per topic, the value with its stamp and, per origin,
//! the *mark*: the last number processed, whether or not it could be stored. It answers the
//! questions of replays (`replay`) once its marks have reached what the asker knew (R1).
//!
//! Topics stand in order, so a filter's matches are found by seeking from one candidate to the
//! next, from any topic on, a bounded number of steps at a time.
//!
//! A value's topic, publisher and expiry are those of its message, and stand nowhere else.
//!
//! Invariants: `by_topic`, `ordered` and `values` hold the same topics; `deadlines` those with an
//! expiry; each value owns one reference to its message; marks only grow.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, VecDeque};
use std::hash::BuildHasher;
use std::rc::Rc;

use foldhash::fast::FixedState;
use slab::Slab;

use crate::clock::Time;
use crate::ids::ShardId;
use crate::index::Index;
use crate::limits::{
    DEFERRED_PER_TICK, REPLAY_PIECE, REPLAY_PIECE_BYTES, REPLAY_STEPS, RETAINED_TOPICS_MAX,
};

use super::entry::{Message, Query, Stamp};
use super::message::{MessageKey, Messages, Payload};
use super::topic_order::TopicOrder;
use super::{Broker, Place, memory};

/// One topic's retained message.
#[derive(Debug)]
pub(crate) struct Value {
    pub(crate) message: MessageKey,
    pub(crate) origin: ShardId,
    pub(crate) number: u64,
}

/// A question that is not to be answered yet (R1).
#[derive(Debug)]
struct Question {
    from: ShardId,
    id: u32,
    limit: u32,
    filter: Box<str>,
    start: Box<str>,
    known: Box<[u64]>,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Retained {
    place: Place,
    /// Per owner, the last number that we gave as origin.
    counters: Vec<u64>,
    /// Per origin, the last number that we processed as owner.
    marks: Vec<u64>,
    values: Slab<Value>,
    by_topic: Index,
    hasher: FixedState,
    ordered: TopicOrder,
    deadlines: BTreeSet<(Time, u32)>,
    /// Bounded by `QUESTIONS_MAX` per shard, where they are asked (L4).
    questions: VecDeque<Question>,
    /// Matches of the piece in hand.
    found: Vec<u32>,
    /// Of the value before: a publisher mostly goes on.
    publisher: Rc<str>,
}

/// What a retained publish does to its topic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Store<'a> {
    pub(crate) message: Message<'a>,
    pub(crate) origin: ShardId,
    pub(crate) number: u64,
}

impl Retained {
    pub(crate) fn new(place: Place, seed: u64) -> Self {
        Self {
            place,
            counters: vec![0; place.shards],
            marks: vec![0; place.shards],
            values: Slab::new(),
            by_topic: Index::new(),
            hasher: FixedState::with_seed(seed ^ 6),
            ordered: TopicOrder::default(),
            deadlines: BTreeSet::new(),
            questions: VecDeque::new(),
            found: Vec::new(),
            publisher: Rc::from(""),
        }
    }

    fn hash_of(&self, topic: &[u8]) -> u64 {
        self.hasher.hash_one(topic)
    }

    /// The place of the value of a topic with this hash.
    fn index_of(&self, messages: &Messages, hash: u64, topic: &str) -> Option<u32> {
        let topic_at = topics(&self.values, messages);
        self.by_topic.find(hash, |index| *topic_at(index) == *topic.as_bytes())
    }

    /// The id of a publisher, shared with the value before where it is the same.
    fn publisher(&mut self, id: &str) -> Rc<str> {
        if *self.publisher != *id {
            self.publisher = id.into();
        }
        self.publisher.clone()
    }

    /// A value of a topic with this hash, that has none.
    fn insert(&mut self, messages: &Messages, hash: u64, value: Value) {
        let deadline = messages.get(value.message).deadline;
        let index = u32::try_from(self.values.insert(value)).expect("invariant: bounded");
        self.by_topic.insert(hash, index);
        self.ordered.insert(index, topics(&self.values, messages));
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, index));
        }
    }

    /// How many topics have a value here.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    #[cfg(test)]
    pub(crate) fn find(&self, messages: &Messages, topic: &str) -> Option<&Value> {
        let hash = self.hash_of(topic.as_bytes());
        self.index_of(messages, hash, topic).map(|index| self.value(index))
    }

    /// The owner of a topic, and the next number of a publish by this shard to it.
    pub(crate) fn next_stamp(&mut self, topic: &str) -> Stamp {
        let owner = self.place.key.owner_of(topic, self.place.shards);
        self.counters[owner.index()] += 1;
        Stamp { owner, number: self.counters[owner.index()] }
    }

    /// Per owner, the last number given here.
    pub(crate) fn counters(&self) -> &[u64] {
        &self.counters
    }

    /// Whether no question waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.questions.is_empty()
    }

    pub(crate) fn value(&self, index: u32) -> &Value {
        &self.values[index as usize]
    }

    /// Whether a scan may find something. False is certain, and costs one look-up.
    pub(crate) fn may_match(&self, messages: &Messages, filter: &str) -> bool {
        let topic_at = topics(&self.values, messages);
        let Some(at) = filter.find(['+', '#']) else {
            let hash = self.hash_of(filter.as_bytes());
            return self.index_of(messages, hash, filter).is_some();
        };
        // `a/#` matches `a`, too.
        let begin = &filter[..at];
        let begin = if filter[at..].starts_with('#') {
            begin.strip_suffix('/').unwrap_or(begin)
        } else {
            begin
        };
        let first = self.ordered.from(begin.as_bytes(), topic_at).next();
        first.is_some_and(|index| topic_at(index).starts_with(begin.as_bytes()))
    }

    /// Finds up to `limit` matches of a filter from `start` on, into `found`. Tells where the next
    /// piece starts; None when this one was the last. `[MQTT-3.3.1-9]`, with the same meaning of
    /// filters as for live messages.
    fn scan(
        &self,
        now: Time,
        (filter, start): (&str, &str),
        limit: usize,
        messages: &Messages,
        found: &mut Vec<u32>,
    ) -> Option<String> {
        found.clear();
        let mut bytes = 0;
        let mut take = |index: u32| {
            let message = messages.get(self.values[index as usize].message);
            if !message.is_expired(now) {
                found.push(index);
                bytes += message.size();
            }
            found.len() >= limit || bytes >= REPLAY_PIECE_BYTES
        };
        if !filter.bytes().any(|byte| byte == b'+' || byte == b'#') {
            let hash = self.hash_of(filter.as_bytes());
            if let Some(index) = self.index_of(messages, hash, filter) {
                take(index);
            }
            return None;
        }
        let mut start = start.to_owned();
        let topic_at = topics(&self.values, messages);
        let mut candidates = self.ordered.from(start.as_bytes(), topic_at);
        for _ in 0..REPLAY_STEPS {
            let index = candidates.next()?;
            let topic = messages.get(self.values[index as usize].message).topic();
            match compare(filter, topic) {
                Verdict::Match => {
                    if take(index) {
                        return Some(successor(topic));
                    }
                }
                Verdict::Next => {}
                Verdict::Seek(to) => {
                    debug_assert!(*to > *topic, "a scan moves forward");
                    start = to;
                    candidates = self.ordered.from(start.as_bytes(), topic_at);
                }
                Verdict::End => return None,
            }
            start.clear();
            start.push_str(topic);
        }
        Some(successor(&start))
    }

    /// The publish with this number is processed; numbers of an origin come in order.
    fn advance(&mut self, origin: ShardId, number: u64) {
        let mark = &mut self.marks[origin.index()];
        assert!(number > *mark, "invariant: an origin's retained publishes come in order");
        *mark = number;
    }

    fn remove(&mut self, messages: &mut Messages, index: u32) {
        self.ordered.remove(index, topics(&self.values, messages));
        let message = self.values.remove(index as usize).message;
        let stored = messages.get(message);
        self.by_topic.remove(self.hash_of(stored.topic_bytes()), index);
        if let Some(deadline) = stored.deadline {
            self.deadlines.remove(&(deadline, index));
        }
        messages.release(message);
    }

    /// When [`expire`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}

/// Which topic stands at a place.
fn topics<'a>(
    values: &'a Slab<Value>,
    messages: &'a Messages,
) -> impl Fn(u32) -> &'a [u8] + Copy + use<'a> {
    |index| messages.get(values[index as usize].message).topic_bytes()
}

/// The least string above `topic`: topics do not contain U+0000.
fn successor(topic: &str) -> String {
    let mut next = String::with_capacity(topic.len() + 1);
    next.push_str(topic);
    next.push('\0');
    next
}

/// What a candidate is to a filter with wildcards.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Match,
    /// Not it; look at the next one.
    Next,
    /// Not it, nor any before this.
    Seek(String),
    /// Nor any behind it.
    End,
}

/// Compares a topic with a filter, and where they differ tells how far ahead the next match can
/// be. Strings are ordered by bytes, so that all topics below `a/` stand together, from `a/` to
/// before `a0`: `0` follows `/`.
fn compare(filter: &str, topic: &str) -> Verdict {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        // [MQTT-4.7.2-1]; `%` follows `$`.
        return Verdict::Seek("%".to_owned());
    }
    // Where the topic's level begins; beyond its end when it has no more levels.
    let mut at = 0;
    let mut levels = filter.split('/').peekable();
    while let Some(wanted) = levels.next() {
        if wanted == "#" {
            return Verdict::Match;
        }
        let Some(rest) = topic.get(at..) else { return Verdict::Next };
        let level = rest.split('/').next().unwrap_or(rest);
        if wanted != "+" && wanted != level {
            return differ(&topic[..at], wanted, topic, levels.peek().is_some());
        }
        at += level.len() + 1;
    }
    if at > topic.len() {
        return Verdict::Match;
    }
    // The filter ends here: nothing below this level.
    Verdict::Seek(format!("{}0", &topic[..at - 1]))
}

fn differ(above: &str, wanted: &str, topic: &str, has_more: bool) -> Verdict {
    let at = format!("{above}{wanted}");
    if topic < at.as_str() {
        return Verdict::Seek(at);
    }
    let below = format!("{at}/");
    if has_more && topic < below.as_str() {
        return Verdict::Seek(below);
    }
    match above.strip_suffix('/') {
        None => Verdict::End,
        Some(above) => Verdict::Seek(format!("{above}0")),
    }
}

/// Processes a retained publish as owner: an empty payload clears, any other replaces
/// `[MQTT-3.3.1-5]`, `[MQTT-3.3.1-6]`. The mark advances whatever becomes of it.
pub(crate) fn store(broker: &mut Broker, now: Time, store: &Store<'_>) {
    let Broker { retained, messages, config, place, stats, .. } = broker;
    retained.advance(store.origin, store.number);
    let message = &store.message;
    let hash = retained.hash_of(message.topic.as_bytes());
    let existing = retained.index_of(messages, hash, message.topic);
    let is_over = message.deadline.is_some_and(|deadline| deadline <= now);
    if message.payload.is_empty() || is_over {
        if let Some(index) = existing {
            retained.remove(messages, index);
        }
        return;
    }
    let mut new = message.to_new();
    let has_room = existing.is_some() || retained.values.len() < RETAINED_TOPICS_MAX;
    if !has_room || messages.bytes() + new.size() > memory::bytes_max(config, *place) {
        // Nothing is better than the value that this one was to replace.
        if let Some(index) = existing {
            retained.remove(messages, index);
        }
        stats.dropped_memory += 1;
        return;
    }
    let Some(index) = existing else {
        let publisher = retained.publisher(message.publisher_id);
        new.publisher = Some(&publisher);
        let message = messages.insert(new);
        let value = Value { message, origin: store.origin, number: store.number };
        return retained.insert(messages, hash, value);
    };
    let replaced = retained.values[index as usize].message;
    let before = messages.get(replaced).deadline;
    let publisher = match &messages.get(replaced).publisher {
        Some(publisher) if **publisher == *message.publisher_id => publisher.clone(),
        _ => retained.publisher(message.publisher_id),
    };
    new.publisher = Some(&publisher);
    let (origin, number) = (store.origin, store.number);
    retained.values[index as usize] = Value { message: messages.insert(new), origin, number };
    messages.release(replaced);
    if before != message.deadline {
        before.map(|deadline| retained.deadlines.remove(&(deadline, index)));
        message.deadline.map(|deadline| retained.deadlines.insert((deadline, index)));
    }
}

/// A value that the journal gave back; its topic has none yet. Its stamp has the number 0: it is
/// older than whatever is published from now on (SHARDS.md section 3).
pub(crate) fn restore(broker: &mut Broker, message: &Message<'_>) {
    let Broker { retained, messages, .. } = broker;
    let hash = retained.hash_of(message.topic.as_bytes());
    let publisher = retained.publisher(message.publisher_id);
    let mut new = message.to_new();
    new.publisher = Some(&publisher);
    let (message, origin) = (messages.insert(new), retained.place.shard);
    retained.insert(messages, hash, Value { message, origin, number: 0 });
}

/// Removes what has expired; a bounded number per call.
pub(crate) fn expire(broker: &mut Broker, now: Time) {
    for _ in 0..DEFERRED_PER_TICK {
        match broker.retained.deadlines.first() {
            Some(&(deadline, index)) if deadline <= now => {
                broker.retained.remove(&mut broker.messages, index);
            }
            _ => return,
        }
    }
}

/// Takes up to `limit` matches out of the store, for a replay of this shard. Tells where the next
/// piece starts.
pub(crate) fn take_piece(
    broker: &mut Broker,
    now: Time,
    range: (&str, &str),
    limit: usize,
) -> (Vec<u32>, Option<String>) {
    let Broker { retained, messages, .. } = broker;
    let mut found = std::mem::take(&mut retained.found);
    let next = retained.scan(now, range, limit, messages, &mut found);
    (found, next)
}

/// Gives the list of [`take_piece`] back.
pub(crate) fn recycle(broker: &mut Broker, found: Vec<u32>) {
    broker.retained.found = found;
}

/// A question of another shard's replay: answered now, or when the marks have reached what the
/// asker knew (R1).
pub(crate) fn on_query(broker: &mut Broker, now: Time, from: ShardId, query: &Query<'_>) {
    let question = Question {
        from,
        id: query.id,
        limit: query.limit,
        filter: query.filter.into(),
        start: query.after.into(),
        known: query.known.iter().collect(),
    };
    if broker.retained.is_reached(&question.known) {
        answer(broker, now, &question);
    } else {
        broker.retained.questions.push_back(question);
    }
}

/// The marks have moved: questions that waited for that are answered.
pub(crate) fn answer_waiting(broker: &mut Broker, now: Time) {
    for _ in 0..broker.retained.questions.len() {
        let Some(question) = broker.retained.questions.pop_front() else { return };
        if broker.retained.is_reached(&question.known) {
            answer(broker, now, &question);
        } else {
            broker.retained.questions.push_back(question);
        }
    }
}

impl Retained {
    /// Whether all that the asker knew of has been processed here. Of what this shard publishes
    /// itself nothing is ever outstanding.
    fn is_reached(&self, known: &[u64]) -> bool {
        self.marks.iter().zip(known).all(|(mark, known)| mark >= known)
    }
}

fn answer(broker: &mut Broker, now: Time, question: &Question) {
    let limit = (question.limit as usize).clamp(1, REPLAY_PIECE);
    let (found, next) = take_piece(broker, now, (&question.filter, &question.start), limit);
    let Broker { retained, messages, out, .. } = broker;
    let batch = &mut out.batches[question.from.index()];
    let next = next.as_deref().unwrap_or("");
    batch.push_reply(question.id, next, &retained.marks, found.len() as u32);
    for &index in &found {
        let value = retained.value(index);
        let stored = messages.get(value.message);
        let Payload { bytes: payload, shared } = stored.payload();
        let message = Message {
            topic: stored.topic(),
            payload,
            shared,
            qos: stored.qos,
            retain: true,
            deadline: stored.deadline,
            forwarded: stored.forwarded(),
            publisher_id: stored.publisher.as_deref().unwrap_or(""),
            id: None,
        };
        batch.push_value(&message, value.origin, value.number);
    }
    recycle(broker, found);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::topic_tree::tests::{filter, reference, topic};
    use super::*;
    use crate::codec::mqtt::QoS;
    use crate::ids::PlacementKey;

    fn message(topic: &str) -> Message<'_> {
        Message {
            topic,
            payload: b"x",
            shared: None,
            qos: QoS::AtMostOnce,
            retain: true,
            deadline: None,
            forwarded: &[],
            publisher_id: "p",
            id: None,
        }
    }

    fn broker() -> Broker {
        Broker::new(super::super::Config::default(), ShardId::new(0), 1, PlacementKey(1), 1)
    }

    fn put(broker: &mut Broker, message: Message<'_>) {
        let stamp = broker.retained.next_stamp(message.topic);
        let origin = ShardId::new(0);
        store(broker, Time::ZERO, &Store { message, origin, number: stamp.number });
    }

    /// All topics that a filter finds, taken in pieces.
    fn replayed(broker: &mut Broker, filter: &str, limit: usize) -> Vec<String> {
        let (mut all, mut start) = (Vec::new(), String::new());
        loop {
            let (found, next) = take_piece(broker, Time::ZERO, (filter, &start), limit);
            assert!(found.len() <= limit);
            let topic_at = topics(&broker.retained.values, &broker.messages);
            all.extend(found.iter().map(|at| str::from_utf8(topic_at(*at)).unwrap().to_owned()));
            recycle(broker, found);
            match next {
                Some(next) => start = next,
                None => return all,
            }
        }
    }

    proptest! {
        /// Family 63: the same meaning of filters for live and for retained messages; R4: in
        /// pieces of any size nothing is left out or found twice.
        #[test]
        fn a_scan_equals_the_naive_matcher(
            topics in prop::collection::btree_set(
                prop_oneof![topic(), "[ab!/0$]{1,6}".prop_map(|topic: String| topic)], 0..40),
            filters in prop::collection::vec(filter(), 1..12),
            limit in 1usize..5,
        ) {
            let mut broker = broker();
            for topic in &topics {
                put(&mut broker, message(topic));
            }
            for filter in filters {
                let expected: Vec<String> =
                    topics.iter().filter(|topic| reference(&filter, topic)).cloned().collect();
                let may_match = broker.retained.may_match(&broker.messages, &filter);
                prop_assert!(may_match || expected.is_empty());
                prop_assert_eq!(replayed(&mut broker, &filter, limit), expected);
            }
        }
    }

    /// Values of one publisher in a row share its id; and a value that is replaced keeps what it has, so
    /// publishers that take turns cost no memory for each message.
    #[test]
    fn a_publisher_that_is_known_is_not_written_down_again() {
        let mut broker = broker();
        let all = [("a", "p"), ("b", "p"), ("c", "q")];
        let store = |broker: &mut Broker| {
            all.map(|(topic, publisher_id)| {
                put(broker, Message { publisher_id, ..message(topic) });
                let message = broker.retained.find(&broker.messages, topic).unwrap().message;
                broker.messages.get(message).publisher.clone().unwrap()
            })
        };
        let [first, second, third] = store(&mut broker);
        assert!(Rc::ptr_eq(&first, &second) && !Rc::ptr_eq(&second, &third));
        let again = store(&mut broker);
        assert!([first, second, third].iter().zip(&again).all(|(old, new)| Rc::ptr_eq(old, new)));
    }

    #[test]
    fn an_empty_payload_clears_and_memory_is_given_back() {
        let mut broker = broker();
        put(&mut broker, message("a/b"));
        put(&mut broker, Message { payload: b"second", ..message("a/b") });
        assert_eq!((broker.retained.len(), broker.messages.len()), (1, 1));
        put(&mut broker, Message { payload: b"", ..message("a/b") });
        assert_eq!((broker.retained.len(), broker.messages.bytes()), (0, 0));
        assert_eq!(broker.retained.marks, [3], "a clear has its number too");
    }

    #[test]
    fn the_mark_advances_when_there_is_no_memory() {
        let mut broker = broker();
        broker.config.memory_budget = 100;
        put(&mut broker, Message { payload: &[0; 200], ..message("a") });
        assert_eq!((broker.retained.len(), broker.stats.dropped_memory), (0, 1));
        assert_eq!(broker.retained.marks, [1]);
    }

    #[test]
    fn what_has_expired_is_neither_found_nor_kept() {
        let mut broker = broker();
        let deadline = Some(Time::from_nanos(10));
        put(&mut broker, Message { deadline, ..message("a") });
        put(&mut broker, Message { deadline, ..message("b") });
        put(&mut broker, message("b"));
        assert_eq!(broker.retained.next_deadline(), deadline);
        let (found, _) = take_piece(&mut broker, Time::from_nanos(10), ("#", ""), 9);
        assert_eq!(found.len(), 1);
        expire(&mut broker, Time::from_nanos(10));
        assert_eq!((broker.retained.len(), broker.retained.next_deadline()), (1, None));
    }

    #[test]
    fn a_scan_seeks_over_what_cannot_match() {
        let mut topics = BTreeSet::new();
        for i in 0..50_000 {
            topics.insert(format!("b/{i}"));
        }
        topics.extend(["a/x".to_owned(), "c/x".to_owned()]);
        let mut broker = broker();
        for topic in &topics {
            put(&mut broker, message(topic));
        }
        // 50,000 candidates, and one piece: it has not looked at them.
        let (found, next) = take_piece(&mut broker, Time::ZERO, ("+/x", ""), 9);
        assert_eq!((found.len(), next), (2, None));
    }
}
