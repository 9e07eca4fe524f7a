//! The way of a message from its publisher to whoever receives it, on this shard and on others.
//!
//! [`publish`] finds once who is interested: the filters of this shard, the groups, the other
//! shards (`matches`). It delivers here, appends one entry for each other shard that has a duty, and
//! gives a retained message its number. The other end of a lane is `lane`.
//!
//! Choices where the specification leaves one: a session whose filters overlap gets one copy, at
//! the highest of their QoS `[MQTT-3.3.4-2]`, with the identifiers of all of them
//! `[MQTT-3.3.4-3]`, RETAIN kept if any of them asked for that; a filter with No Local counts for
//! nothing when the client itself publishes.
//!
//! Owns what is known of the lanes' room: a publish does not go on towards one that is full.
#![forbid(unsafe_code)]

use crate::clock::Time;
use crate::codec::mqtt::QoS;
use crate::ids::{ShardId, ShardSet};
use crate::limits::BATCH_BYTES;

use super::entry::{Duty, Message, Stamp};
use super::matches::{Matches, Merged, Route};
use super::message::{MessageKey, Payload};
use super::publication::{Memo, Publication, Terms};
use super::retained::{self, Store};
use super::session::{Session, SessionKey};
use super::shared_sub::{Chosen, GroupId};
use super::strategy::Strategy;
use super::subscription::Subscription;
use super::{Broker, Wait, deliver};

/// What became of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Routed {
    /// Whether anybody may receive it. False is certain.
    pub(crate) receivers: bool,
}

/// What routing keeps between messages: which lanes have room, and memory that is used again.
#[derive(Debug)]
pub(crate) struct Routing {
    /// Lanes that take no more publishes for now.
    full: ShardSet,
    /// Lanes whose batch has its bytes: they take no more publishes in this tick.
    filled: ShardSet,
    /// The groups of the publication in hand, each with the shard that was picked.
    picked: Vec<(ShardId, Chosen)>,
    /// The subscription identifiers of the delivery in hand.
    ids: Vec<u32>,
    spare: Spare,
}

/// Where a stored message is copied to while it is delivered.
#[derive(Debug, Default)]
struct Spare {
    topic: String,
    forwarded: Vec<u8>,
    payload: Vec<u8>,
}

impl Routing {
    pub(crate) fn new() -> Self {
        Self {
            full: ShardSet::EMPTY,
            filled: ShardSet::EMPTY,
            picked: Vec::new(),
            ids: Vec::new(),
            spare: Spare::default(),
        }
    }
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
        towards = towards.union(state.remote().shards);
        for group in state.groups() {
            broker.shared_subs.get(*group).remote_shards().for_each(|shard| towards.insert(shard));
        }
    });
    towards.remove(broker.place.shard);
    towards
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
        match broker.shared_subs.pick_shard(&chosen) {
            Some(shard) if shard == me => to_member(broker, now, publication, &chosen),
            Some(shard) => picked.push((shard, chosen)),
            None => {
                broker.record_group_end(&chosen, publication.id);
                continue;
            }
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
    let Broker { out, place, routing, .. } = broker;
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
        for (_, chosen) in groups {
            batch.push_group(chosen.to_lane(false));
        }
        if batch.size() > BATCH_BYTES {
            routing.filled.insert(target);
        }
    }
}

/// Delivers to the plain subscriptions of this shard.
pub(super) fn to_plain(
    broker: &mut Broker,
    now: Time,
    publication: &Publication<'_>,
    matches: &Matches,
) {
    if let [filter] = matches.filters[..] {
        // Delivering asks for no subscription and changes none, so the list can be out of the tree
        // meanwhile: it is two words.
        let subscribers = std::mem::take(&mut broker.topic_tree[filter].subscribers);
        for subscriber in subscribers.iter() {
            let subscription = &subscriber.subscription;
            if is_local(broker, publication, subscriber.session, subscription) {
                on_own(broker, publication, subscriber.session);
                continue;
            }
            let terms = to_terms(publication, subscription);
            deliver::to_session(broker, now, subscriber.session, publication, &terms);
        }
        broker.topic_tree[filter].subscribers = subscribers;
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
    let is_owed = publication.named().any(|name| name.id() == group);
    Chosen { group: broker.shared_subs.get(group).name.clone(), spread, is_owed }
}

/// Delivers to the member of this shard that the group's strategy picks; without one the message is
/// dropped, and counted.
pub(super) fn to_member(
    broker: &mut Broker,
    now: Time,
    publication: &Publication<'_>,
    chosen: &Chosen,
) {
    let Broker { shared_subs, sessions, .. } = broker;
    let is_kept = publication.qos > QoS::AtMostOnce;
    let load = |session| sessions.get(session).map_or(0, Session::load);
    let Some(member) = shared_subs.pick_member(chosen, is_kept, load) else {
        return drop_without_member(broker, publication, chosen);
    };
    let terms = Terms { group: Some(chosen), ..to_terms(publication, &member.subscription) };
    deliver::to_session(broker, now, member.session, publication, &terms);
    if publication.qos.min(terms.qos) == QoS::AtMostOnce {
        // The group is done with it (SHARDS.md J9).
        broker.record_end(member.session, publication.id, Some(chosen));
    }
}

/// Nobody is known to be in the group.
pub(super) fn drop_without_member(
    broker: &mut Broker,
    publication: &Publication<'_>,
    chosen: &Chosen,
) {
    broker.stats.dropped_no_member += 1;
    broker.record_group_end(chosen, publication.id);
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
        named: None,
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
    chosen: &Chosen,
    returned: bool,
) {
    let picked = match broker.shared_subs.contains(chosen.group.id()) {
        true => broker.shared_subs.pick_shard(chosen),
        false => None,
    };
    match picked {
        None => drop_without_member(broker, publication, chosen),
        Some(shard) if shard == broker.place.shard => {
            to_member(broker, now, publication, chosen);
        }
        Some(shard) => {
            let batch = &mut broker.out.batches[shard.index()];
            let duty = Duty { plain: false, store: false, stamp: None };
            batch.push_publish(&Message::of(publication), duty, 1);
            batch.push_group(chosen.to_lane(returned));
            if batch.size() > BATCH_BYTES {
                broker.routing.filled.insert(shard);
            }
        }
    }
}
