//! The way of a message from its publisher to whoever receives it, on this shard and on others.
//!
//! [`publish`] finds once who is interested: the filters of this shard, the groups, the other
//! shards. It delivers here, appends one entry for each other shard that has a duty, and gives a
//! retained message its number. [`on_batch`] is the other end of a lane.
//!
//! Choices where the specification leaves one: a session whose filters overlap gets one copy, at
//! the highest of their QoS `[MQTT-3.3.4-2]`, with the identifiers of all of them
//! `[MQTT-3.3.4-3]`, RETAIN kept if any of them asked for that; a filter with No Local counts for
//! nothing when the client itself publishes.
//!
//! Owns the memory of matches: a topic that is published again finds its receivers by one
//! comparison, as long as no subscription has changed. Invariants: a remembered match is used only
//! in the generation in which it was made; publishing does not allocate once that memory is warm.
#![forbid(unsafe_code)]

use crate::clock::Time;
use crate::codec::mqtt::QoS;
use crate::ids::{ShardId, ShardSet};
use crate::limits::{BATCH_BYTES, MATCH_CACHE_LEN, MATCH_CACHE_MERGED_MAX, MATCH_CACHE_TOPIC_MAX};

use super::alias::TopicId;
use super::entry::{Duty, Entry, Interest as Change, Message, Reader, Stamp, ToGroup};
use super::message::{MessageKey, Payload};
use super::publication::{Memo, Publication, Terms};
use super::retained::{self, Store};
use super::session::{Session, SessionKey};
use super::shared_sub::{Chosen, GroupId};
use super::strategy::Strategy;
use super::subscribe::{self, FilterState, Subscription};
use super::topic_tree::{FilterId, TopicTree};
use super::{Broker, Wait, deliver, memory, replay};

/// What became of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Routed {
    /// Whether anybody may receive it. False is certain.
    pub(crate) receivers: bool,
}

/// Who is interested in a topic.
#[derive(Debug, Default)]
struct Matches {
    /// Filters with subscribers here.
    filters: Vec<FilterId>,
    /// If there are several filters, their subscribers by session.
    merged: Vec<Merged>,
    parts: Vec<Subscription>,
    groups: Vec<GroupId>,
    remote: ShardSet,
    /// A durable session of some shard wants it at QoS 1 or 2; groups aside.
    durable: bool,
}

/// A session with the subscriptions by which it wants a topic: a range of `parts`.
#[derive(Clone, Copy, Debug)]
struct Merged {
    session: SessionKey,
    start: u32,
    end: u32,
}

/// Where a topic goes, as it is remembered. Taken with [`find`], given back with [`put_back`].
#[derive(Debug, Default)]
pub(crate) struct Route {
    topic: String,
    hash: u64,
    /// None of a topic that is too long to be remembered.
    id: TopicId,
    generation: u64,
    matches: Matches,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Routing {
    /// Lanes that take no more publishes for now.
    full: ShardSet,
    /// Lanes whose batch has its bytes: they take no more publishes in this tick.
    filled: ShardSet,
    /// By the topic's hash. Boxed, so that taking one moves a pointer.
    remembered: Vec<Option<Box<Route>>>,
    /// The one that was used last, out of its slot: a publisher mostly repeats its topic.
    in_hand: Option<Box<Route>>,
    generation: u64,
    /// Topics that were remembered so far.
    topics: u64,
    /// The groups of the publication in hand, each with the shard that was picked.
    picked: Vec<(ShardId, Chosen)>,
    /// The subscription identifiers of the delivery in hand.
    ids: Vec<u32>,
    spare: Spare,
    ending: Ending,
}

/// Where a stored message is copied to while it is delivered.
#[derive(Debug, Default)]
struct Spare {
    topic: String,
    forwarded: Vec<u8>,
    payload: Vec<u8>,
}

/// The protocol of section 7: nobody leaves while something may still come to it.
#[derive(Debug, Default)]
struct Ending {
    /// Shards whose full interest has come at the start.
    restored: ShardSet,
    said_restored: bool,
    began: bool,
    first: ShardSet,
    said_second: bool,
    second: ShardSet,
    last: ShardSet,
}

impl Routing {
    pub(crate) fn new() -> Self {
        Self {
            full: ShardSet::EMPTY,
            filled: ShardSet::EMPTY,
            remembered: Vec::new(),
            in_hand: None,
            generation: 1,
            topics: 0,
            picked: Vec::new(),
            ids: Vec::new(),
            spare: Spare::default(),
            ending: Ending::default(),
        }
    }

    /// A subscription or a shard's interest has changed.
    pub(crate) fn forget_matches(&mut self) {
        self.generation += 1;
    }

    /// Subscriptions and groups that are remembered for topics.
    #[cfg(test)]
    pub(crate) fn remembered_len(&self) -> usize {
        self.remembered
            .iter()
            .chain([&self.in_hand])
            .flatten()
            .map(|topic| topic.matches.held())
            .sum()
    }

    /// Whether no new questions are to be asked.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.began
    }

    /// Takes the slot of a hash out of the memory; it goes back with [`Routing::put_back`].
    fn take(&mut self, hash: u64) -> Box<Route> {
        if self.remembered.is_empty() {
            self.remembered.resize_with(MATCH_CACHE_LEN, || None);
        }
        if let Some(other) = self.in_hand.take()
            && other.id != TopicId::NONE
        {
            let at = slot(other.hash);
            self.remembered[at] = Some(other);
        }
        self.remembered[slot(hash)].take().unwrap_or_default()
    }

    #[inline]
    fn put_back(&mut self, mut route: Box<Route>) {
        if route.matches.held() > MATCH_CACHE_MERGED_MAX {
            route.matches = Matches::default();
            route.generation = 0;
        }
        self.in_hand = Some(route);
    }

    fn next_topic(&mut self, topic: &str) -> TopicId {
        if topic.len() > MATCH_CACHE_TOPIC_MAX {
            return TopicId::NONE;
        }
        self.topics += 1;
        TopicId::new(self.topics)
    }
}

#[inline]
fn slot(hash: u64) -> usize {
    hash as usize & (MATCH_CACHE_LEN - 1)
}

impl Matches {
    fn fill(
        &mut self,
        tree: &TopicTree<FilterState>,
        exactly: super::interest::Wanted,
        topic: &str,
    ) {
        self.filters.clear();
        self.merged.clear();
        self.parts.clear();
        self.groups.clear();
        self.remote = exactly.shards;
        self.durable = !exactly.durable.is_empty();
        tree.visit_matches(topic, |id, state| {
            if !state.subscribers.is_empty() {
                self.filters.push(id);
            }
            self.groups.extend_from_slice(&state.groups);
            self.remote = self.remote.union(state.remote.shards);
            self.durable |= state.durable > 0 || !state.remote.durable.is_empty();
        });
        if self.filters.len() > 1 {
            self.merge(tree);
        }
    }

    /// Of the subscribers of several filters, each session once.
    fn merge(&mut self, tree: &TopicTree<FilterState>) {
        let subscribers = self.filters.iter().flat_map(|filter| &tree[*filter].subscribers);
        let mut all: Vec<_> = subscribers.map(|s| (s.session, s.subscription)).collect();
        all.sort_by_key(|(session, _)| *session);
        for (session, subscription) in all {
            let end = self.parts.len() as u32 + 1;
            self.parts.push(subscription);
            match self.merged.last_mut() {
                Some(last) if last.session == session => last.end = end,
                _ => self.merged.push(Merged { session, start: end - 1, end }),
            }
        }
    }

    /// What it holds beyond the topic tree's own lists.
    fn held(&self) -> usize {
        self.parts.len() + self.groups.len()
    }

    fn has_receivers(&self) -> bool {
        !self.filters.is_empty() || !self.remote.is_empty()
    }
}

/// Who is interested in this topic, remembered or found.
#[inline]
pub(crate) fn find(broker: &mut Broker, topic: &str) -> Box<Route> {
    let routing = &mut broker.routing;
    let generation = routing.generation;
    match routing.in_hand.take_if(|it| it.generation == generation && it.topic == topic) {
        Some(found) => found,
        None => find_remembered(broker, topic),
    }
}

fn find_remembered(broker: &mut Broker, topic: &str) -> Box<Route> {
    let generation = broker.routing.generation;
    let hash = broker.interest.topic_hash(topic);
    let mut found = broker.routing.take(hash);
    if found.generation != generation || found.topic != topic {
        found.generation = generation;
        if found.topic != topic || found.id == TopicId::NONE {
            found.topic.clear();
            found.topic.push_str(topic);
            found.hash = hash;
            found.id = broker.routing.next_topic(topic);
        }
        let exactly = broker.interest.wanted_exactly(hash);
        found.matches.fill(&broker.topic_tree, exactly, topic);
    }
    found
}

/// The other end of [`find`].
#[inline]
pub(crate) fn put_back(broker: &mut Broker, route: Box<Route>) {
    broker.routing.put_back(route);
}

/// Names the publication's topic as it is remembered here, for those who have a number for it.
fn recall(broker: &mut Broker, publication: &Publication<'_>) {
    let found = find(broker, publication.topic);
    publication.memo.set_topic_id(found.id);
    broker.routing.put_back(found);
}

/// Whether a publish to this topic may be read now: not while a lane that it may have to go
/// through is full, or has its bytes for this tick (SHARDS.md L4, L7).
#[inline]
pub(crate) fn may_publish(broker: &Broker, topic: &str, retain: bool) -> Result<(), Wait> {
    let full = broker.routing.full.union(broker.routing.filled);
    if full.is_empty() || find_targets(broker, topic, retain).intersection(full).is_empty() {
        Ok(())
    } else {
        Err(Wait)
    }
}

/// The shards to which a publish to this topic may go, besides this one.
pub(crate) fn find_targets(broker: &Broker, topic: &str, retain: bool) -> ShardSet {
    let hash = broker.interest.topic_hash(topic);
    let mut towards = broker.interest.wanted_exactly(hash).shards;
    if retain {
        towards.insert(broker.place.key.owner_of(topic, broker.place.shards));
    }
    broker.topic_tree.visit_matches(topic, |_, state| {
        towards = towards.union(state.remote.shards);
        for group in &state.groups {
            broker.shared_subs.get(*group).remote_shards().for_each(|shard| towards.insert(shard));
        }
    });
    towards.remove(broker.place.shard);
    towards
}

/// Whether a session that outlives its connection wants messages of this topic at QoS 1 or 2, on
/// whichever shard (SHARDS.md I3).
pub(crate) fn is_wanted_durably(broker: &Broker, route: &Route) -> bool {
    let mut groups = route.matches.groups.iter();
    route.matches.durable || groups.any(|group| broker.shared_subs.get(*group).is_durable())
}

/// The lanes that are full now. Tells whether one no longer is.
pub(crate) fn set_full_lanes(broker: &mut Broker, full: ShardSet) -> bool {
    let before = std::mem::replace(&mut broker.routing.full, full);
    before.intersection(full) != before
}

/// The shard has taken the batches. Tells whether one had its bytes: publishes may wait for that.
pub(crate) fn on_flushed(broker: &mut Broker) -> bool {
    !std::mem::take(&mut broker.routing.filled).is_empty()
}

/// Gives a publication of this shard to all who receive it. It cannot be refused or wait any more.
#[inline]
pub(crate) fn publish(
    broker: &mut Broker,
    now: Time,
    publication: &Publication<'_>,
    route: &Route,
) -> Routed {
    publication.memo.set_topic_id(route.id);
    to_plain(broker, now, publication, &route.matches);
    let mut receivers = route.matches.has_receivers();
    if publication.retain || !route.matches.groups.is_empty() || broker.place.shards > 1 {
        receivers |= publish_beyond(broker, now, publication, route);
    }
    Routed { receivers }
}

/// What [`publish`] does besides plain subscriptions of this shard: retained store, groups, other
/// shards. Whether a group has received it.
fn publish_beyond(
    broker: &mut Broker,
    now: Time,
    publication: &Publication<'_>,
    route: &Route,
) -> bool {
    let Route { hash, ref matches, .. } = *route;
    let me = broker.place.shard;
    let message = Message::of(publication);
    let stamp = publication.retain.then(|| broker.retained.next_stamp(publication.topic));
    if let Some(stamp) = stamp {
        broker.replays.on_live(me, stamp, hash, !matches.filters.is_empty());
        if stamp.owner == me {
            retained::store(broker, now, &Store { message, origin: me, number: stamp.number });
        }
    }
    let mut receivers = false;
    let mut picked = std::mem::take(&mut broker.routing.picked);
    for &group in &matches.groups {
        let chosen = choose(broker, group, publication, hash);
        match broker.shared_subs.pick_shard(chosen) {
            Some(shard) if shard == me => to_member(broker, now, publication, chosen),
            Some(shard) => picked.push((shard, chosen)),
            None => continue,
        }
        receivers = true;
    }
    if broker.place.shards > 1 {
        to_shards(broker, &message, matches.remote, stamp, &picked);
    }
    picked.clear();
    broker.routing.picked = picked;
    receivers
}

/// One entry for each shard that has something to do (SHARDS.md L9).
fn to_shards(
    broker: &mut Broker,
    message: &Message<'_>,
    wanted: ShardSet,
    stamp: Option<Stamp>,
    picked: &[(ShardId, Chosen)],
) {
    let Broker { out, shared_subs, place, routing, .. } = broker;
    let mut targets = wanted;
    picked.iter().for_each(|(shard, _)| targets.insert(*shard));
    stamp.iter().for_each(|stamp| targets.insert(stamp.owner));
    targets.remove(place.shard);
    for target in targets.iter() {
        let batch = &mut out.batches[target.index()];
        let store = stamp.is_some_and(|stamp| stamp.owner == target);
        let duty = Duty { plain: wanted.contains(target), store, stamp };
        let groups = picked.iter().filter(|(shard, _)| *shard == target);
        batch.push_publish(message, duty, groups.clone().count());
        for (_, Chosen { group, spread }) in groups {
            let key = &shared_subs.get(*group).key;
            batch.push_group(ToGroup { key, spread: *spread, returned: false });
        }
        if batch.size() > BATCH_BYTES {
            routing.filled.insert(target);
        }
    }
}

/// Delivers to the plain subscriptions of this shard.
fn to_plain(broker: &mut Broker, now: Time, publication: &Publication<'_>, matches: &Matches) {
    if let [filter] = matches.filters[..] {
        // Delivering changes no subscription; the list is asked anew for each subscriber so that
        // nothing has to be moved out of the tree.
        let mut at = 0;
        while let Some(&subscriber) = broker.topic_tree[filter].subscribers.get(at) {
            at += 1;
            let subscription = &subscriber.subscription;
            if is_local(broker, publication, subscriber.session, subscription) {
                on_own(broker, publication, subscriber.session);
                continue;
            }
            let terms = to_terms(publication, subscription);
            deliver::to_session(broker, now, subscriber.session, publication, &terms);
        }
        return;
    }
    let mut ids = std::mem::take(&mut broker.routing.ids);
    for &Merged { session, start, end } in &matches.merged {
        let (mut qos, mut keeps_retain) = (None, false);
        ids.clear();
        for subscription in &matches.parts[start as usize..end as usize] {
            if is_local(broker, publication, session, subscription) {
                continue;
            }
            qos = qos.max(Some(subscription.options.qos));
            keeps_retain |= subscription.options.retain_as_published;
            ids.extend_from_slice(subscription.ids());
        }
        let Some(qos) = qos else {
            on_own(broker, publication, session);
            continue;
        };
        let retain = publication.retain && keeps_retain;
        let terms = Terms { qos, retain, subscription_ids: &ids, group: None };
        deliver::to_session(broker, now, session, publication, &terms);
    }
    broker.routing.ids = ids;
}

/// A client's own publication does not go to it. The journal may owe it all the same.
fn on_own(broker: &mut Broker, publication: &Publication<'_>, session: SessionKey) {
    let wants_less = |session: &Session| session.wants_less;
    if publication.id.is_some() && broker.sessions.get(session).is_some_and(wants_less) {
        broker.record_end(session, publication.id, None);
    }
}

/// Whether the subscription does not want it because its own client has published it
/// `[MQTT-3.8.3-3]`. Whoever has this client id is at home here, so this is known here.
#[inline]
fn is_local(
    broker: &Broker,
    publication: &Publication<'_>,
    session: SessionKey,
    subscription: &Subscription,
) -> bool {
    if !subscription.options.no_local {
        return false;
    }
    match publication.publisher {
        Some(publisher) if publisher == session => true,
        Some(publisher) if broker.sessions.get(publisher).is_some() => false,
        // A Will, or what waited for a commit: their session may be over, and a new one there.
        _ => broker
            .sessions
            .get(session)
            .is_some_and(|session| *session.client_id == *publication.publisher_id),
    }
}

#[inline]
fn to_terms<'a>(publication: &Publication<'_>, subscription: &'a Subscription) -> Terms<'a> {
    Terms {
        qos: subscription.options.qos,
        // [MQTT-3.3.1-12], [MQTT-3.3.1-13]
        retain: publication.retain && subscription.options.retain_as_published,
        subscription_ids: subscription.ids(),
        group: None,
    }
}

/// What the group's strategy chooses by.
#[inline]
fn choose(broker: &Broker, group: GroupId, publication: &Publication<'_>, hash: u64) -> Chosen {
    let spread = match broker.shared_subs.get(group).strategy() {
        Strategy::HashTopic => hash as u32,
        Strategy::HashClientId => {
            let make = || broker.interest.topic_hash(publication.publisher_id);
            publication.memo.publisher_hash(make) as u32
        }
        _ => 0,
    };
    Chosen { group, spread }
}

/// Delivers to the member of this shard that the group's strategy picks; without one the message is
/// dropped, and counted.
fn to_member(broker: &mut Broker, now: Time, publication: &Publication<'_>, chosen: Chosen) {
    let Broker { shared_subs, sessions, .. } = broker;
    let is_kept = publication.qos > QoS::AtMostOnce;
    let load = |session| sessions.get(session).map_or(0, Session::load);
    let Some(member) = shared_subs.pick_member(chosen, is_kept, load) else {
        broker.stats.dropped_no_member += 1;
        return;
    };
    let terms = Terms { group: Some(chosen), ..to_terms(publication, &member.subscription) };
    deliver::to_session(broker, now, member.session, publication, &terms);
    if publication.qos.min(terms.qos) == QoS::AtMostOnce {
        // The group is done with it (SHARDS.md J9).
        broker.record_end(member.session, publication.id, Some(chosen));
    }
}

/// Makes a publication of a stored message, whose reference the caller holds meanwhile.
pub(crate) fn with_stored(
    broker: &mut Broker,
    message: MessageKey,
    deliver: impl FnOnce(&mut Broker, &Publication<'_>),
) {
    let mut spare = std::mem::take(&mut broker.routing.spare);
    let stored = broker.messages.get(message);
    spare.topic.clear();
    spare.topic.push_str(stored.topic());
    spare.forwarded.clear();
    spare.forwarded.extend_from_slice(stored.forwarded());
    let shared = stored.payload().shared.cloned();
    spare.payload.clear();
    if shared.is_none() {
        spare.payload.extend_from_slice(stored.payload().bytes);
    }
    let publisher = stored.publisher.clone();
    let bytes = shared.as_ref().map_or(&spare.payload[..], |shared| &shared[..]);
    let publication = Publication {
        topic: &spare.topic,
        payload: Payload { bytes, shared: shared.as_ref() },
        qos: stored.qos,
        retain: stored.retain,
        deadline: stored.deadline,
        forwarded: &spare.forwarded,
        as_received: None,
        publisher: None,
        publisher_id: publisher.as_deref().unwrap_or(""),
        id: stored.id,
        memo: Memo::stored_as(message, stored.topic_id),
    };
    deliver(broker, &publication);
    broker.routing.spare = spare;
}

/// A message for this group has to find a shard: it came back (S2), or its member's session has
/// ended (S4).
pub(crate) fn to_group(
    broker: &mut Broker,
    now: Time,
    publication: &Publication<'_>,
    chosen: Chosen,
    returned: bool,
) {
    let Chosen { group, spread } = chosen;
    let picked = match broker.shared_subs.contains(group) {
        true => broker.shared_subs.pick_shard(chosen),
        false => None,
    };
    match picked {
        None => broker.stats.dropped_no_member += 1,
        Some(shard) if shard == broker.place.shard => {
            to_member(broker, now, publication, chosen);
        }
        Some(shard) => {
            let batch = &mut broker.out.batches[shard.index()];
            let duty = Duty { plain: false, store: false, stamp: None };
            batch.push_publish(&Message::of(publication), duty, 1);
            let key = &broker.shared_subs.get(group).key;
            batch.push_group(ToGroup { key, spread, returned });
            if batch.size() > BATCH_BYTES {
                broker.routing.filled.insert(shard);
            }
        }
    }
}

/// All that another shard said in one parcel, in its order; what it has to hear of that.
pub(crate) fn on_batch(broker: &mut Broker, now: Time, from: ShardId, batch: &super::Batch) {
    let heard = broker.interest.heard(from);
    let mut entries = Reader::new(batch);
    while let Some(entry) = entries.next() {
        match entry {
            Entry::Publish { message, duty, groups } => {
                let publication = message.to_publication();
                if let Some(id) = publication.id {
                    broker.changes.on_seen(from, id, publication.qos);
                }
                on_message(broker, now, from, &publication, duty);
                if groups.len() > 0 && !duty.plain {
                    recall(broker, &publication);
                }
                for group in groups {
                    on_group_message(broker, now, from, &publication, group);
                }
            }
            Entry::Back { message, key, spread } => {
                let publication = message.to_publication();
                match broker.shared_subs.find(key).map(|group| Chosen { group, spread }) {
                    Some(chosen) => to_group(broker, now, &publication, chosen, true),
                    None => broker.stats.dropped_no_member += 1,
                }
            }
            Entry::Interest { number, change } => on_interest(broker, from, number, change),
            Entry::Applied { through, seen, counters } => {
                broker.changes.on_seen_through(from, seen);
                broker.replays.learn_row(from, counters.iter());
                if broker.interest.on_applied(from, through) {
                    subscribe::on_applied(broker, now);
                }
            }
            Entry::Query(query) => retained::on_query(broker, now, from, &query),
            Entry::Reply(reply) => replay::on_reply(broker, now, from, &reply, &mut entries),
            Entry::End { step } => broker.routing.ending.hear(from, step),
            Entry::Memory { is_short } => broker.memory.hear(from, is_short),
        }
    }
    if !broker.retained.is_idle() {
        retained::answer_waiting(broker, now);
    }
    let through = broker.interest.heard(from);
    if through > heard {
        let Broker { out, retained, changes, .. } = broker;
        let batch = &mut out.batches[from.index()];
        batch.push_applied(through, changes.seen_here(), retained.counters());
    }
    // At once: meanwhile the others go on sending.
    memory::say(broker);
    go_on_ending(broker);
}

/// A message from its publisher's shard: what is to be done with it stands in the entry.
fn on_message(
    broker: &mut Broker,
    now: Time,
    from: ShardId,
    publication: &Publication<'_>,
    duty: Duty,
) {
    let mut matched = false;
    if duty.plain {
        let found = find(broker, publication.topic);
        publication.memo.set_topic_id(found.id);
        matched = !found.matches.filters.is_empty();
        if matched {
            to_plain(broker, now, publication, &found.matches);
        }
        broker.routing.put_back(found);
    }
    let Some(stamp) = duty.stamp else { return };
    let hash = broker.interest.topic_hash(publication.topic);
    broker.replays.on_live(from, stamp, hash, matched);
    if duty.store {
        let message = Message::of(publication);
        let store = Store { message, origin: from, number: stamp.number };
        retained::store(broker, now, &store);
    }
}

/// A message for a group for which we were chosen. Without a member it goes back to the sender;
/// with none online, while others have some, once.
fn on_group_message(
    broker: &mut Broker,
    now: Time,
    from: ShardId,
    publication: &Publication<'_>,
    to: ToGroup<'_>,
) {
    if let Some(id) = broker.shared_subs.find(to.key) {
        let group = broker.shared_subs.get(id);
        let takes = group.online() > 0 || to.returned || !group.is_online_elsewhere();
        if takes && group.len() > 0 {
            let chosen = Chosen { group: id, spread: to.spread };
            return to_member(broker, now, publication, chosen);
        }
    }
    broker.out.batches[from.index()].push_back(&Message::of(publication), to.key, to.spread);
}

/// What another shard wants has changed.
fn on_interest(broker: &mut Broker, from: ShardId, number: u64, change: Change<'_>) {
    broker.interest.on_change(from, number);
    match change {
        Change::Exact { hash, state } => {
            broker.interest.on_exact(from, hash, state);
            broker.routing.forget_matches();
        }
        Change::Wild { filter, state } => subscribe::on_remote(broker, from, filter, state),
        Change::Group { key, members } => {
            let (_, filter) = key.split_once('/').expect("invariant: share name/filter");
            let group = subscribe::find_or_insert_group(broker, key, filter);
            broker.shared_subs.set_remote(group, from, members);
            subscribe::leave_group_if_idle(broker, group);
        }
    }
}

impl Ending {
    fn hear(&mut self, from: ShardId, step: u8) {
        match step {
            RESTORED => self.restored.insert(from),
            1 => self.first.insert(from),
            2 => self.second.insert(from),
            _ => self.last.insert(from),
        }
    }
}

/// The step of an END that says at the start: what I want stands before this.
const RESTORED: u8 = 0;
/// The step of the END behind which there are no more changes.
const LAST: u8 = 3;

/// Says the second END once all have said the first and no question is open: the journal's, too.
pub(crate) fn go_on_ending(broker: &mut Broker) {
    let Broker { routing: Routing { ending, .. }, place, .. } = broker;
    let others = place.shards - 1;
    if !ending.began || ending.said_second || ending.first.len() < others {
        return;
    }
    if broker.replays.is_idle()
        && broker.retained.is_idle()
        && broker.subscribing.is_idle()
        && broker.changes.pending().is_none()
    {
        ending.said_second = true;
        say_end(broker, 2);
    }
}

fn say_end(broker: &mut Broker, step: u8) {
    let me = broker.place.shard.index();
    for (index, batch) in broker.out.batches.iter_mut().enumerate() {
        if index != me {
            batch.push_end(step);
        }
    }
}

impl Broker {
    /// What the journal gave back is safe where it is: the others may hear that it is all. Clients
    /// may come when [`Broker::is_open`]. Idempotent.
    pub fn handle_restored(&mut self) {
        if !std::mem::replace(&mut self.routing.ending.said_restored, true) {
            say_end(self, RESTORED);
        }
    }

    /// Whether all shards know what each other wants, after [`Broker::handle_restored`] was called
    /// on each: only then may clients come (SHARDS.md I6).
    pub fn is_open(&self) -> bool {
        self.routing.ending.said_restored
            && self.routing.ending.restored.len() == self.place.shards - 1
            && self.interest.is_applied_everywhere()
    }

    /// The shard reads no more: the first END goes out behind everything else (SHARDS.md section
    /// 7). Idempotent. Lanes are drained on until [`Broker::has_ended`]; then
    /// [`Broker::handle_shutdown`] closes the connections.
    pub fn handle_end(&mut self) {
        if !std::mem::replace(&mut self.routing.ending.began, true) {
            say_end(self, 1);
            go_on_ending(self);
        }
    }

    /// The connections are closed: this shard says no more changes. The journal's host stays until
    /// all have said so.
    pub fn handle_last_end(&mut self) {
        say_end(self, LAST);
    }

    /// Whether all other shards have said their last change.
    pub fn has_heard_last(&self) -> bool {
        self.routing.ending.last.len() == self.place.shards - 1
    }

    /// Whether nothing can come from another shard any more, and no other shard waits for us.
    pub fn has_ended(&self) -> bool {
        let ending = &self.routing.ending;
        ending.said_second && ending.second.len() == self.place.shards - 1
    }
}
