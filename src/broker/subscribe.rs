//! SUBSCRIBE: what a session asked for, from the packet to the topic tree.
//!
//! A plain subscription begins when every shard has applied the interest that it needs (SHARDS.md
//! I4): only then it enters the topic tree, SUBACK leaves and the replay of retained messages
//! starts; until then its connection is paused (I5). With one shard that is at once. A Shared
//! Subscription joins its group at once (`membership`); its SUBACK waits alike.
//!
//! Owns the SUBSCRIBEs in the barrier. Invariant: each plain subscription, begun or in the barrier,
//! is one holder of its filter's interest.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::clock::Time;
use crate::codec::mqtt::topic::{Filter, check_filter};
use crate::codec::mqtt::{
    Packet, PacketId, QoS, ReasonCode, RetainHandling, SubAck, Subscribe, SubscribeFilter,
    SubscriptionOptions, Version,
};
use crate::ids::ConnId;
use crate::limits::{FILTERS_PER_PACKET_MAX, REPLAY_PIECES_PER_TICK};

use super::announce::{enter, hold, release};
use super::change::{Parked, Record};
use super::membership::{group_key, join};
use super::policy::Refusal;
use super::session::{Session, SessionKey};
use super::shared_sub::GroupId;
use super::subscription::{Held, SessionSubscriptions, Subscriber, Subscription};
use super::topic_tree::FilterId;
use super::{Broker, Step, replay};

/// A plain subscription that is to begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beginning {
    pub(super) filter: FilterId,
    pub(super) durable: bool,
    subscription: Subscription,
}

/// A SUBSCRIBE that waits until all shards know of it.
#[derive(Debug)]
pub(super) struct Waiting {
    conn: ConnId,
    session: SessionKey,
    packet_id: PacketId,
    codes: Vec<u8>,
    /// Words for the first filter that was refused.
    why: Option<Cow<'static, str>>,
    pub(super) beginnings: Vec<Beginning>,
    /// Shared ones: they have begun, and are recorded when all shards know of them.
    joined: Vec<(GroupId, Subscription)>,
}

/// When a SUBSCRIBE is answered: by the change of interest that it waits for, then by arrival.
pub(super) type Turn = (u64, u64);

/// All SUBSCRIBEs that wait, in the order in which they will be answered.
#[derive(Debug, Default)]
pub(crate) struct Subscribing {
    pub(super) waiting: BTreeMap<Turn, Waiting>,
    arrivals: u64,
}

impl Subscribing {
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
        owner.subscriptions.barrier().packets.push(turn);
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
        return group.is_some_and(|group| held.is_member(group));
    }
    broker
        .topic_tree
        .find(filter.filter)
        .is_some_and(|id| held.plain(id).is_some() || held.is_waiting(id))
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
        let barrier = session.subscriptions.barrier();
        *barrier.waiting.entry(filter).or_default() += 1;
    }
    (hold(broker, filter, durable), Beginning { filter, durable, subscription })
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
pub(super) enum Acked {
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
pub(super) fn acknowledge(
    broker: &mut Broker,
    conn: ConnId,
    session: SessionKey,
    packet: &Packet<'_>,
) -> Acked {
    let is_durable = broker.sessions.get(session).is_some_and(Session::is_durable);
    // Who is refused everything is promised nothing.
    let is_refused = match packet {
        Packet::SubAck(ack) => ack.codes.iter().all(|code| ReasonCode(*code).is_error()),
        _ => false,
    };
    match broker.changes.pending().filter(|_| is_durable && !is_refused) {
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
    broker.changes.begin(&mut broker.out.changes, session, record);
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
    let Some(old) = owner.subscriptions.plain(filter) else {
        owner.subscriptions.set_plain(Held::new(filter, state.subscribers.len(), durable));
        state.subscribers.push(Subscriber { session, subscription });
        return true;
    };
    owner.subscriptions.set_plain(Held::new(filter, old.at(), durable));
    let before = std::mem::replace(&mut state.subscribers[old.at()].subscription, subscription);
    let (before, wanted) = (before.options, subscription.options);
    owner.wants_less |= before.qos > wanted.qos && wanted.qos == QoS::AtMostOnce
        || wanted.no_local && !before.no_local;
    state.durable -= u32::from(old.durable());
    release(broker, now, filter, old.durable());
    false
}

/// A session's membership is known to all shards, if it has not left since.
fn record_joined(
    broker: &mut Broker,
    session: SessionKey,
    group: GroupId,
    subscription: Subscription,
) {
    let Some(owner) = broker.sessions.get(session) else { return };
    if !broker.changes.is_enabled() || !owner.subscriptions.is_member(group) {
        return;
    }
    if broker.shared_subs.contains(group) {
        let filter = format!("$share/{}", broker.shared_subs.get(group).name.key());
        record(broker, session, &filter, subscription);
    }
}
