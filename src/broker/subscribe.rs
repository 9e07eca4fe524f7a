//! SUBSCRIBE and UNSUBSCRIBE: what a session asked for, from the packet to the topic tree.
//!
//! A plain subscription begins when every shard has applied the interest that it needs (SHARDS.md
//! I4): only then it enters the topic tree, SUBACK leaves and the replay of retained messages
//! starts; until then its connection is paused (I5). With one shard that is at once. A Shared
//! Subscription joins its group at once, since nothing is replayed to it; its SUBACK waits alike.
//!
//! Owns the SUBSCRIBEs in the barrier and, in each [`Session`](super::session::Session), the list
//! of its subscriptions. Invariants: each subscription in that list stands once in its filter's
//! list, at the place that it names; each of them, and each one in the barrier, is one holder of
//! its filter's interest; a filter is in the tree exactly while somebody here or elsewhere has it.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use smallvec::SmallVec;

use crate::clock::Time;
use crate::codec::mqtt::topic::{Filter, check_filter};
use crate::codec::mqtt::{
    Packet, PacketId, QoS, ReasonCode, RetainHandling, SubAck, Subscribe, SubscribeFilter,
    SubscriptionOptions, Unsubscribe, Version,
};
use crate::ids::{ConnId, ShardId};
use crate::limits::{DEFERRED_PER_TICK, FILTERS_PER_PACKET_MAX, REPLAY_PIECES_PER_TICK};

use super::change::{Parked, Record};
use super::entry::Interest as Change;
use super::interest::{Announced, Key, Wanted};
use super::policy::Refusal;
use super::replay::{self, Running};
use super::session::{Session, SessionKey};
use super::shared_sub::{GroupId, Member, News};
use super::topic_tree::FilterId;
use super::{Broker, Place, Step};

/// How a client wants what a filter matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subscription {
    pub(crate) options: SubscriptionOptions,
    /// Subscription Identifier; 0 is none.
    pub(crate) id: u32,
}

impl Subscription {
    /// The identifiers to be delivered with what it matches.
    pub(crate) fn ids(&self) -> &[u32] {
        if self.id == 0 { &[] } else { std::slice::from_ref(&self.id) }
    }
}

/// A session that subscribes to a filter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subscriber {
    pub(crate) session: SessionKey,
    pub(crate) subscription: Subscription,
}

/// What the topic tree keeps for a filter.
#[derive(Debug, Default)]
pub(crate) struct FilterState {
    /// Plain subscriptions of this shard that have begun. Most filters have one, which needs no
    /// memory of its own.
    pub(crate) subscribers: SmallVec<[Subscriber; 1]>,
    /// Of those, durable ones.
    pub(crate) durable: u32,
    /// Those in the barrier.
    waiting: u32,
    /// Groups of this filter, wherever their members are.
    pub(crate) groups: Vec<GroupId>,
    /// Other shards that want it, if it has wildcards.
    pub(crate) remote: Wanted,
    /// What they were told of us, if it has wildcards.
    announced: Announced,
    /// The hash of the topic that it is, if it has none.
    exact: Option<u64>,
}

impl FilterState {
    fn is_unused(&self) -> bool {
        self.subscribers.is_empty()
            && self.waiting == 0
            && self.groups.is_empty()
            && self.remote.is_empty()
            && self.announced.is_idle()
    }
}

/// The subscriptions of one session.
#[derive(Debug, Default)]
pub(crate) struct SessionSubscriptions {
    plain: BTreeMap<FilterId, Held>,
    shared: BTreeMap<GroupId, ()>,
    /// While there is something in it.
    barrier: Option<Box<Barrier>>,
    /// Replays of retained messages, while some are under way.
    pub(crate) replays: Option<Box<Running>>,
}

/// What of one session waits until all shards know of it.
#[derive(Debug, Default)]
struct Barrier {
    /// Plain subscriptions: how often each.
    waiting: BTreeMap<FilterId, u32>,
    /// The SUBSCRIBEs: of this connection one, and of earlier ones.
    packets: Vec<Turn>,
}

impl SessionSubscriptions {
    /// How many, those in the barrier too.
    pub(crate) fn len(&self) -> usize {
        let waiting = self.barrier.as_ref().map_or(0, |barrier| barrier.waiting.len());
        self.plain.len() + self.shared.len() + waiting
    }

    /// The plain subscription to this filter, if it has begun.
    pub(crate) fn plain(&self, filter: FilterId) -> Option<&Subscription> {
        self.plain.get(&filter).map(|held| &held.subscription)
    }

    /// Whether a plain subscription to this filter is in the barrier.
    fn is_waiting(&self, filter: FilterId) -> bool {
        self.barrier.as_ref().is_some_and(|barrier| barrier.waiting.contains_key(&filter))
    }

    /// One in the barrier has begun or was taken back.
    fn stop_waiting(&mut self, filter: FilterId) {
        let barrier = self.barrier.as_mut().expect("invariant: there while something is in it");
        let Entry::Occupied(mut entry) = barrier.waiting.entry(filter) else {
            unreachable!("invariant: what is in the barrier is counted");
        };
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
        self.drop_barrier();
    }

    /// A SUBSCRIBE is answered.
    fn end_packet(&mut self, turn: Turn) {
        if let Some(barrier) = &mut self.barrier {
            barrier.packets.retain(|other| *other != turn);
        }
        self.drop_barrier();
    }

    fn drop_barrier(&mut self) {
        let is_empty =
            |barrier: &mut Box<Barrier>| barrier.waiting.is_empty() && barrier.packets.is_empty();
        self.barrier.take_if(is_empty);
    }
}

/// A plain subscription of a session.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Its place among the filter's subscribers.
    at: u32,
    /// Whether it was announced as durable.
    durable: bool,
    subscription: Subscription,
}

/// A plain subscription that is to begin.
#[derive(Clone, Copy, Debug)]
struct Beginning {
    filter: FilterId,
    durable: bool,
    subscription: Subscription,
}

/// A SUBSCRIBE that waits until all shards know of it.
#[derive(Debug)]
struct Waiting {
    conn: ConnId,
    session: SessionKey,
    packet_id: PacketId,
    codes: Vec<u8>,
    /// Words for the first filter that was refused.
    why: Option<Cow<'static, str>>,
    beginnings: Vec<Beginning>,
    /// Shared ones: they have begun, and are recorded when all shards know of them.
    joined: Vec<(GroupId, Subscription)>,
}

/// When a SUBSCRIBE is answered: by the change of interest that it waits for, then by arrival.
type Turn = (u64, u64);

/// All SUBSCRIBEs that wait, in the order in which they will be answered.
#[derive(Debug)]
pub(crate) struct Subscribing {
    waiting: BTreeMap<Turn, Waiting>,
    arrivals: u64,
}

impl Subscribing {
    pub(crate) fn new(_place: Place, _seed: u64) -> Self {
        Self { waiting: BTreeMap::new(), arrivals: 0 }
    }

    /// Whether every SUBSCRIBE that was read has been answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// SUBSCRIBE: each filter is judged on its own and gets its code in order `[MQTT-3.8.4-6]`, those
/// beyond [`FILTERS_PER_PACKET_MAX`] Quota exceeded. No Local on a Shared Subscription has been
/// refused when the packet was decoded `[MQTT-3.8.3-4]`.
pub(crate) fn on_subscribe(
    broker: &mut Broker,
    now: Time,
    conn: ConnId,
    packet: &Subscribe<'_>,
) -> Step {
    let Some(session) = broker.conns.get(conn).and_then(|conn| conn.session) else {
        return Step::Close;
    };
    if broker.version_of(conn) == Some(Version::V5)
        && let Err(refusal) = broker.config.check_subscribe(packet)
    {
        broker.stats.refused_subscription_kind += 1;
        return broker.protocol_error_saying(now, conn, &refusal);
    }
    let mut codes = Vec::new();
    let mut why: Option<Refusal> = None;
    let (mut beginnings, mut joined) = (Vec::new(), Vec::new());
    let mut barrier = 0;
    for line in packet.filters.iter().take(FILTERS_PER_PACKET_MAX) {
        let id = packet.subscription_id;
        codes.push(match judge(broker, session, &line, id) {
            Ok((filter, subscription)) => {
                let number = match filter.share_name {
                    Some(_) => {
                        let group = join(broker, session, line.filter, filter.filter, subscription);
                        joined.push((group, subscription));
                        broker.shared_subs.get(group).raised
                    }
                    None => {
                        let (number, beginning) =
                            prepare(broker, session, filter.filter, subscription);
                        beginnings.push(beginning);
                        number
                    }
                };
                barrier = barrier.max(number);
                subscription.options.qos as u8
            }
            Err(refusal) => {
                let code = refusal.reason.0;
                why = why.or(Some(refusal));
                code
            }
        });
    }
    codes.resize(packet.filters.count(), ReasonCode::QUOTA_EXCEEDED.0);
    let why = why.map(|refusal| refusal.why);
    let packet_id = packet.packet_id;
    let waiting = Waiting { conn, session, packet_id, codes, why, beginnings, joined };
    if broker.interest.is_applied(barrier) {
        return match finish(broker, now, waiting) {
            Acked::Now => Step::Next,
            Acked::WhenCommitted => {
                broker.pause(conn);
                Step::Pause
            }
        };
    }
    broker.pause(conn);
    broker.subscribing.arrivals += 1;
    let turn = (barrier, broker.subscribing.arrivals);
    broker.subscribing.waiting.insert(turn, waiting);
    if let Some(owner) = broker.sessions.get_mut(session) {
        owner.subscriptions.barrier.get_or_insert_default().packets.push(turn);
    }
    Step::Pause
}

/// Whether a filter may be subscribed to, and with what.
fn judge<'a>(
    broker: &mut Broker,
    session: SessionKey,
    line: &SubscribeFilter<'a>,
    id: Option<u32>,
) -> Result<(Filter<'a>, Subscription), Refusal> {
    let filter = check_filter(line.filter).map_err(|error| Refusal {
        why: format!("a Topic Filter is invalid: {error}").into(),
        ..ReasonCode::TOPIC_FILTER_INVALID.into()
    })?;
    if let Err(refusal) = broker.config.check_filter_size(filter) {
        broker.stats.refused_topic += 1;
        return Err(refusal);
    }
    if let Err(refusal) = broker.config.check_filter_kind(filter) {
        broker.stats.refused_subscription_kind += 1;
        return Err(refusal);
    }
    let owner = broker.sessions.get(session).ok_or(ReasonCode::UNSPECIFIED_ERROR)?;
    if !broker.auth.may_subscribe(&owner.client_id, filter.filter) {
        return Err(ReasonCode::NOT_AUTHORIZED.into());
    }
    if broker.changes.is_down() && owner.is_durable() {
        // SHARDS.md J8.
        broker.stats.refused_disk_session += 1;
        return Err(Refusal {
            why: "the server cannot store it now".into(),
            ..ReasonCode::IMPLEMENTATION_SPECIFIC_ERROR.into()
        });
    }
    let (held, most) = (&owner.subscriptions, broker.config.subscriptions_max);
    if held.len() >= most && !holds(broker, held, line.filter, filter) {
        broker.stats.refused_subscriptions_max += 1;
        return Err(Refusal {
            why: format!("a session may have {most} subscriptions").into(),
            ..ReasonCode::QUOTA_EXCEEDED.into()
        });
    }
    let qos = line.options.qos.min(broker.config.maximum_qos);
    let options = SubscriptionOptions { qos, ..line.options };
    Ok((filter, Subscription { options, id: id.unwrap_or(0) }))
}

/// Whether it replaces one that the session has or has asked for.
fn holds(broker: &Broker, held: &SessionSubscriptions, whole: &str, filter: Filter<'_>) -> bool {
    if filter.share_name.is_some() {
        let group = broker.shared_subs.find(group_key(whole));
        return group.is_some_and(|group| held.shared.contains_key(&group));
    }
    broker
        .topic_tree
        .find(filter.filter)
        .is_some_and(|id| held.plain.contains_key(&id) || held.is_waiting(id))
}

/// `share name/filter` of `$share/share name/filter`.
fn group_key(whole: &str) -> &str {
    whole.strip_prefix("$share/").expect("invariant: a filter with a ShareName")
}

fn has_wildcard(filter: &str) -> bool {
    filter.bytes().any(|byte| byte == b'+' || byte == b'#')
}

/// Where a filter is in the topic tree, from now on.
fn enter(broker: &mut Broker, filter: &str) -> FilterId {
    let exact = (!has_wildcard(filter)).then(|| broker.interest.topic_hash(filter));
    broker.topic_tree.insert_with(filter, || FilterState { exact, ..FilterState::default() })
}

/// Takes a filter out of the topic tree when nobody has it any more.
pub(crate) fn leave_if_unused(broker: &mut Broker, filter: FilterId) {
    if broker.topic_tree[filter].is_unused() {
        broker.topic_tree.remove_id(filter);
        broker.matches.forget();
    }
}

/// A plain subscription that begins when the change of this number is applied everywhere.
fn prepare(
    broker: &mut Broker,
    session: SessionKey,
    filter: &str,
    subscription: Subscription,
) -> (u64, Beginning) {
    let durable = subscription.options.qos > QoS::AtMostOnce
        && broker.sessions.get(session).is_some_and(|session| session.is_durable());
    let filter = enter(broker, filter);
    broker.topic_tree[filter].waiting += 1;
    if let Some(session) = broker.sessions.get_mut(session) {
        let barrier = session.subscriptions.barrier.get_or_insert_default();
        *barrier.waiting.entry(filter).or_default() += 1;
    }
    (hold(broker, filter, durable), Beginning { filter, durable, subscription })
}

/// One more holder of a filter's interest; the change that it has to wait for.
fn hold(broker: &mut Broker, filter: FilterId, durable: bool) -> u64 {
    if broker.place.shards == 1 {
        return 0;
    }
    let (number, said) = match broker.topic_tree[filter].exact {
        Some(hash) => {
            let mut announced = *broker.interest.ours(hash);
            let held = broker.interest.hold(&mut announced, durable);
            *broker.interest.ours(hash) = announced;
            held
        }
        None => broker.interest.hold(&mut broker.topic_tree[filter].announced, durable),
    };
    if let Some(said) = said {
        say_filter(broker, filter, said.number, said.state);
    }
    number
}

fn say_filter(broker: &mut Broker, filter: FilterId, number: u64, state: u8) {
    let batches = &mut broker.out.batches;
    match broker.topic_tree[filter].exact {
        Some(hash) => broker.interest.say(batches, number, Change::Exact { hash, state }),
        None => {
            let filter = broker.topic_tree.filter(filter);
            broker.interest.say(batches, number, Change::Wild { filter: &filter, state });
        }
    }
}

/// One holder less.
fn release(broker: &mut Broker, now: Time, filter: FilterId, durable: bool) {
    if broker.place.shards > 1 {
        match broker.topic_tree[filter].exact {
            Some(hash) => {
                let mut announced = *broker.interest.ours(hash);
                broker.interest.release(now, &mut announced, Key::Exact(hash), durable);
                *broker.interest.ours(hash) = announced;
            }
            None => {
                let announced = &mut broker.topic_tree[filter].announced;
                broker.interest.release(now, announced, Key::Wild(filter), durable);
            }
        }
    }
    leave_if_unused(broker, filter);
    // Whatever one packet or session gives up at once: no more than so many linger.
    while broker.interest.lingers_too_many() {
        lower_next(broker, now);
    }
}

/// Says what nobody here wants any more, where that has lingered long enough. A bounded number
/// per call.
pub(crate) fn lower_interest(broker: &mut Broker, now: Time) {
    for _ in 0..DEFERRED_PER_TICK {
        if !lower_next(broker, now) {
            return;
        }
    }
}

/// Lowers the next filter that is due. Tells whether there was one.
fn lower_next(broker: &mut Broker, now: Time) -> bool {
    let Some(key) = broker.interest.take_due(now) else { return false };
    match key {
        Key::Exact(hash) => {
            let mut announced = *broker.interest.ours(hash);
            let said = broker.interest.lower(&mut announced);
            *broker.interest.ours(hash) = announced;
            broker.interest.forget_if_idle(hash);
            if let Some(said) = said {
                let change = Change::Exact { hash, state: said.state };
                broker.interest.say(&mut broker.out.batches, said.number, change);
            }
        }
        Key::Wild(filter) => {
            let said = broker.interest.lower(&mut broker.topic_tree[filter].announced);
            if let Some(said) = said {
                say_filter(broker, filter, said.number, said.state);
            }
            leave_if_unused(broker, filter);
        }
    }
    true
}

/// Another shard wants a filter with wildcards, or no longer does.
pub(crate) fn on_remote(broker: &mut Broker, from: ShardId, filter: &str, state: u8) {
    let filter = enter(broker, filter);
    broker.topic_tree[filter].remote.set(from, state);
    broker.matches.forget();
    leave_if_unused(broker, filter);
}

/// All SUBSCRIBEs whose barrier is reached begin.
pub(crate) fn on_applied(broker: &mut Broker, now: Time) {
    let through = broker.interest.applied_by_all();
    while let Some(first) = broker.subscribing.waiting.first_entry() {
        if first.key().0 > through {
            return;
        }
        let (turn, waiting) = first.remove_entry();
        let conn = waiting.conn;
        if let Some(owner) = broker.sessions.get_mut(waiting.session) {
            owner.subscriptions.end_packet(turn);
        }
        if finish(broker, now, waiting) == Acked::Now {
            broker.resume(now, conn);
        }
    }
}

/// When an answer leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Acked {
    Now,
    /// With the commit of what it promises; that resumes the connection, too.
    WhenCommitted,
}

/// The subscriptions begin, SUBACK leaves (unless the connection is another one now), and behind
/// it come the retained messages.
fn finish(broker: &mut Broker, now: Time, waiting: Waiting) -> Acked {
    let Waiting { conn, session, packet_id, codes, why, beginnings, joined } = waiting;
    for (group, subscription) in joined {
        record_joined(broker, session, group, subscription);
    }
    let mut replays = Vec::new();
    for beginning in &beginnings {
        let is_new = begin(broker, now, session, beginning);
        if broker.changes.is_enabled() {
            let filter = broker.topic_tree.filter(beginning.filter);
            record(broker, session, &filter, beginning.subscription);
        }
        let replay = match beginning.subscription.options.retain_handling {
            RetainHandling::Send => true,
            RetainHandling::SendIfNew => is_new,
            RetainHandling::DoNotSend => false,
        };
        if replay {
            replays.push(beginning.filter);
        }
    }
    let mut acked = Acked::Now;
    if broker.conns.get(conn).is_some_and(|conn| conn.session == Some(session)) {
        let bare = SubAck::new(packet_id, &codes);
        let reason_string = why.as_deref().filter(|why| !why.is_empty());
        let said = Packet::SubAck(SubAck { reason_string, ..bare });
        let suback = if broker.may_explain(conn, &said) { said } else { Packet::SubAck(bare) };
        acked = acknowledge(broker, conn, session, &suback);
    }
    // Mostly there is little to replay: what fits goes out with the SUBACK.
    for (index, filter) in replays.into_iter().enumerate() {
        replay::start(broker, now, session, filter, index < REPLAY_PIECES_PER_TICK);
    }
    acked
}

/// SUBACK or UNSUBACK: for a session that outlives us, when what it promises is committed.
fn acknowledge(
    broker: &mut Broker,
    conn: ConnId,
    session: SessionKey,
    packet: &Packet<'_>,
) -> Acked {
    let is_durable = broker.sessions.get(session).is_some_and(Session::is_durable);
    match broker.changes.pending().filter(|_| is_durable) {
        None => {
            broker.write(conn, packet);
            Acked::Now
        }
        Some(change) => {
            let version = broker.version_of(conn).unwrap_or(Version::V311);
            let mut bytes = Vec::with_capacity(packet.encoded_len(version));
            packet.encode(version, &mut bytes);
            broker.changes.park(change, conn, Parked::Encoded(bytes.into()));
            Acked::WhenCommitted
        }
    }
}

/// A subscription of a session that outlives us has begun or changed.
fn record(broker: &mut Broker, session: SessionKey, filter: &str, subscription: Subscription) {
    let Some(owner) = broker.sessions.get(session) else { return };
    if !broker.changes.is_enabled() || !owner.is_durable() {
        return;
    }
    let record = Record::Subscribe {
        client_id: owner.client_id.clone(),
        filter: filter.into(),
        options: subscription.options.to_byte(),
        subscription_id: Some(subscription.id).filter(|id| *id != 0),
        seen: broker.changes.seen(),
    };
    broker.changes.record(&mut broker.out.changes, record);
}

/// One of its subscriptions has ended before the session did.
fn record_end(broker: &mut Broker, session: SessionKey, filter: &str) {
    let Some(owner) = broker.sessions.get(session) else { return };
    if broker.changes.is_enabled() && owner.is_durable() {
        let (client_id, seen) = (owner.client_id.clone(), broker.changes.seen());
        let record = Record::Unsubscribe { client_id, filter: filter.into(), seen };
        broker.changes.record(&mut broker.out.changes, record);
    }
}

/// A subscription that the journal gave back begins; other shards are told of it.
pub(crate) fn restore(
    broker: &mut Broker,
    now: Time,
    session: SessionKey,
    filter: &str,
    subscription: Subscription,
) {
    match check_filter(filter) {
        Ok(Filter { share_name: Some(_), filter: plain }) => {
            join(broker, session, filter, plain, subscription);
        }
        Ok(Filter { filter, .. }) => {
            let (_, beginning) = prepare(broker, session, filter, subscription);
            begin(broker, now, session, &beginning);
        }
        // It was one when it was recorded.
        Err(_) => {}
    }
}

/// A plain subscription enters the topic tree, or replaces the one that is there: same place, so
/// nothing is lost or doubled in between `[MQTT-3.8.4-3]`. Tells whether it is new.
fn begin(broker: &mut Broker, now: Time, session: SessionKey, beginning: &Beginning) -> bool {
    let Beginning { filter, durable, subscription } = *beginning;
    let Some(owner) = broker.sessions.get_mut(session) else {
        unreachable!("invariant: what waits ends before its session does");
    };
    owner.subscriptions.stop_waiting(filter);
    let state = &mut broker.topic_tree[filter];
    state.waiting -= 1;
    state.durable += u32::from(durable);
    broker.matches.forget();
    match owner.subscriptions.plain.entry(filter) {
        Entry::Vacant(entry) => {
            let at = state.subscribers.len() as u32;
            state.subscribers.push(Subscriber { session, subscription });
            entry.insert(Held { at, durable, subscription });
            true
        }
        Entry::Occupied(mut entry) => {
            let old = *entry.get();
            let (before, wanted) = (old.subscription.options, subscription.options);
            owner.wants_less |= before.qos > wanted.qos && wanted.qos == QoS::AtMostOnce
                || wanted.no_local && !before.no_local;
            entry.insert(Held { at: old.at, durable, subscription });
            state.subscribers[old.at as usize].subscription = subscription;
            state.durable -= u32::from(old.durable);
            release(broker, now, filter, old.durable);
            false
        }
    }
}

/// A session joins a group. Its SUBACK waits for the change that raised that last.
fn join(
    broker: &mut Broker,
    session: SessionKey,
    whole: &str,
    filter: &str,
    subscription: Subscription,
) -> GroupId {
    let key = group_key(whole);
    let group = find_or_insert_group(broker, key, filter);
    let Some(owner) = broker.sessions.get_mut(session) else { return group };
    let durable = owner.is_durable() && subscription.options.qos > QoS::AtMostOnce;
    owner.subscriptions.shared.insert(group, ());
    let online = owner.conn.is_some();
    let hash = broker.interest.topic_hash(&owner.client_id);
    let member = Member { session, subscription, durable, hash };
    broker.shared_subs.get_mut(group).join(member, online);
    broker.matches.forget();
    tell_members(broker, group);
    group
}

/// A session's membership is known to all shards, if it has not left since.
fn record_joined(
    broker: &mut Broker,
    session: SessionKey,
    group: GroupId,
    subscription: Subscription,
) {
    let Some(owner) = broker.sessions.get(session) else { return };
    if !broker.changes.is_enabled() || !owner.subscriptions.shared.contains_key(&group) {
        return;
    }
    if let Some(key) = broker.shared_subs.key_of(group) {
        let filter = format!("$share/{key}");
        record(broker, session, &filter, subscription);
    }
}

/// The group of this key, from now on.
pub(crate) fn find_or_insert_group(broker: &mut Broker, key: &str, filter: &str) -> GroupId {
    if let Some(group) = broker.shared_subs.find(key) {
        return group;
    }
    let place = enter(broker, filter);
    let groups = &mut broker.topic_tree[place].groups;
    let group = broker.shared_subs.insert(key, place, groups.len() as u32);
    groups.push(group);
    broker.matches.forget();
    group
}

/// Says the members of a group to the others, if they should hear of them.
fn tell_members(broker: &mut Broker, group: GroupId) {
    let (members, raises) = match broker.shared_subs.get_mut(group).take_news(broker.place.shard) {
        News::None => return,
        News::Say(members) => (members, false),
        News::Raise(members) => (members, true),
    };
    let number = broker.interest.next_number();
    let group = broker.shared_subs.get_mut(group);
    if raises {
        group.raised = number;
    }
    let change = Change::Group { key: &group.key, members };
    broker.interest.say(&mut broker.out.batches, number, change);
}

/// Forgets a group that nobody has any more, here or elsewhere.
pub(crate) fn leave_group_if_idle(broker: &mut Broker, group: GroupId) {
    if let Some((filter, at)) = broker.shared_subs.remove_if_idle(group) {
        let groups = &mut broker.topic_tree[filter].groups;
        groups.swap_remove(at as usize);
        if let Some(&moved) = groups.get(at as usize) {
            broker.shared_subs.get_mut(moved).at = at;
        }
        broker.matches.forget();
        leave_if_unused(broker, filter);
    }
}

/// UNSUBSCRIBE: takes effect at once, and tells for each filter whether it was subscribed to
/// `[MQTT-3.11.3-1]`. UNSUBACK of 3.1.1 can refuse nothing, that of 5.0 has no code for a quota: one
/// with more than [`FILTERS_PER_PACKET_MAX`] filters ends its connection, before anything is done.
pub(crate) fn on_unsubscribe(
    broker: &mut Broker,
    now: Time,
    conn: ConnId,
    packet: &Unsubscribe<'_>,
) -> Step {
    let Some(session) = broker.conns.get(conn).and_then(|conn| conn.session) else {
        return Step::Close;
    };
    if packet.filters.iter().nth(FILTERS_PER_PACKET_MAX).is_some() {
        return broker.disconnect(now, conn, ReasonCode::QUOTA_EXCEEDED);
    }
    let mut codes = Vec::new();
    let mut taken_back = BTreeSet::new();
    for whole in packet.filters.iter() {
        let removed = match check_filter(whole) {
            Err(_) => Err(ReasonCode::TOPIC_FILTER_INVALID),
            Ok(Filter { share_name: Some(_), .. }) => Ok(broker
                .shared_subs
                .find(group_key(whole))
                .is_some_and(|group| leave(broker, session, group))),
            Ok(Filter { filter, .. }) => Ok(broker
                .topic_tree
                .find(filter)
                .is_some_and(|id| end_plain(broker, now, session, id, &mut taken_back))),
        };
        codes.push(match removed {
            Ok(true) => {
                record_end(broker, session, whole);
                ReasonCode::SUCCESS.0
            }
            Ok(false) => ReasonCode::NO_SUBSCRIPTION_EXISTED.0,
            Err(reason) => reason.0,
        });
    }
    if !taken_back.is_empty() {
        end_waiting(broker, now, session, Some(&taken_back));
    }
    let packet_id = packet.packet_id;
    match acknowledge(broker, conn, session, &Packet::UnsubAck(SubAck::new(packet_id, &codes))) {
        Acked::Now => Step::Next,
        Acked::WhenCommitted => {
            broker.pause(conn);
            Step::Pause
        }
    }
}

/// Ends a plain subscription. One that is still in the barrier of an earlier connection, the caller
/// takes back with all others of that kind. Tells whether there was either.
fn end_plain(
    broker: &mut Broker,
    now: Time,
    session: SessionKey,
    filter: FilterId,
    taken_back: &mut BTreeSet<FilterId>,
) -> bool {
    let Some(owner) = broker.sessions.get_mut(session) else { return false };
    let waited = owner.subscriptions.is_waiting(filter) && taken_back.insert(filter);
    let held = owner.subscriptions.plain.remove(&filter);
    if let Some(held) = held {
        replay::cancel(broker, session, filter);
        remove_subscriber(broker, filter, held);
        release(broker, now, filter, held.durable);
    }
    held.is_some() || waited
}

/// Takes back what a session has in the barrier: of these filters, or all of it. The SUBACK is
/// still owed where its connection is still there.
fn end_waiting(
    broker: &mut Broker,
    now: Time,
    session: SessionKey,
    filters: Option<&BTreeSet<FilterId>>,
) {
    let mut ended = Vec::new();
    let Some(owner) = broker.sessions.get_mut(session) else { return };
    for turn in owner.subscriptions.barrier.iter().flat_map(|barrier| &barrier.packets) {
        let Some(waiting) = broker.subscribing.waiting.get_mut(turn) else { continue };
        let ends = |b: &mut Beginning| filters.is_none_or(|filters| filters.contains(&b.filter));
        ended.extend(waiting.beginnings.extract_if(.., ends));
    }
    for beginning in &ended {
        owner.subscriptions.stop_waiting(beginning.filter);
    }
    for beginning in &ended {
        broker.topic_tree[beginning.filter].waiting -= 1;
        release(broker, now, beginning.filter, beginning.durable);
    }
}

fn remove_subscriber(broker: &mut Broker, filter: FilterId, held: Held) {
    broker.matches.forget();
    let state = &mut broker.topic_tree[filter];
    state.durable -= u32::from(held.durable);
    state.subscribers.swap_remove(held.at as usize);
    let Some(moved) = state.subscribers.get(held.at as usize) else { return };
    broker
        .sessions
        .get_mut(moved.session)
        .and_then(|session| session.subscriptions.plain.get_mut(&filter))
        .expect("invariant: a subscriber's session holds the subscription")
        .at = held.at;
}

/// A session leaves a group. Tells whether it was a member.
fn leave(broker: &mut Broker, session: SessionKey, group: GroupId) -> bool {
    if !broker.shared_subs.get_mut(group).leave(session) {
        return false;
    }
    if let Some(owner) = broker.sessions.get_mut(session) {
        owner.subscriptions.shared.remove(&group);
    }
    tell_members(broker, group);
    leave_group_if_idle(broker, group);
    true
}

/// All subscriptions of a session end, with it. To be called while it is still in the table.
pub(crate) fn end_session(broker: &mut Broker, now: Time, session: SessionKey) {
    end_waiting(broker, now, session, None);
    let Some(owner) = broker.sessions.get_mut(session) else { return };
    let subscriptions = std::mem::take(&mut owner.subscriptions);
    for replay in subscriptions.replays.iter().flat_map(|replays| replays.ids()) {
        broker.replays.remove(replay);
    }
    for (filter, held) in subscriptions.plain {
        remove_subscriber(broker, filter, held);
        release(broker, now, filter, held.durable);
    }
    for group in subscriptions.shared.into_keys() {
        leave(broker, session, group);
    }
    for turn in subscriptions.barrier.iter().flat_map(|barrier| &barrier.packets) {
        broker.subscribing.waiting.remove(turn);
    }
}

/// A session's connection comes or goes: its groups prefer members that are there, its replays go
/// on when it is.
pub(crate) fn on_presence(broker: &mut Broker, session: SessionKey, online: bool) {
    let Some(owner) = broker.sessions.get(session) else { return };
    if !owner.subscriptions.shared.is_empty() {
        let groups: Vec<GroupId> = owner.subscriptions.shared.keys().copied().collect();
        for group in groups {
            broker.shared_subs.get_mut(group).set_online(session, online);
            tell_members(broker, group);
        }
    }
    if online {
        replay::on_room(broker, session);
    }
}
