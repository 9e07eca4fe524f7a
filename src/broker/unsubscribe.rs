//! UNSUBSCRIBE, and the end of a session's subscriptions.
//!
//! It takes effect at once, and reaches into the barrier, of an earlier connection too.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use crate::clock::Time;
use crate::codec::mqtt::topic::{Filter, check_filter};
use crate::codec::mqtt::{Packet, ReasonCode, SubAck, Unsubscribe};
use crate::ids::ConnId;
use crate::limits::FILTERS_PER_PACKET_MAX;

use super::announce::release;
use super::change::Record;
use super::membership::{group_key, leave};
use super::session::SessionKey;
use super::subscribe::{Acked, Beginning, acknowledge};
use super::subscription::Held;
use super::topic_tree::FilterId;
use super::{Broker, Step, replay};

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
    let held = owner.subscriptions.remove_plain(filter);
    if let Some(held) = held {
        replay::cancel(broker, session, filter);
        remove_subscriber(broker, held);
        release(broker, now, filter, held.durable());
    }
    held.is_some() || waited
}

/// Takes back what a session has in the barrier: of these filters, or all of it. The SUBACK is
/// still owed where its connection is still there.
pub(super) fn end_waiting(
    broker: &mut Broker,
    now: Time,
    session: SessionKey,
    filters: Option<&BTreeSet<FilterId>>,
) {
    let mut ended = Vec::new();
    let Some(owner) = broker.sessions.get_mut(session) else { return };
    for turn in owner.subscriptions.waiting_packets() {
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

fn remove_subscriber(broker: &mut Broker, held: Held) {
    broker.matches.forget();
    let state = &mut broker.topic_tree[held.filter];
    state.durable -= u32::from(held.durable());
    state.subscribers.swap_remove(held.at());
    let Some(moved) = state.subscribers.get(held.at()) else { return };
    let moved = broker.sessions.get_mut(moved.session).map(|session| &mut session.subscriptions);
    moved
        .and_then(|subscriptions| {
            let durable = subscriptions.plain(held.filter)?.durable();
            subscriptions.set_plain(Held::new(held.filter, held.at(), durable));
            Some(())
        })
        .expect("invariant: a subscriber's session holds the subscription");
}

/// All subscriptions of a session end, with it. To be called while it is still in the table.
pub(crate) fn end_session(broker: &mut Broker, now: Time, session: SessionKey) {
    end_waiting(broker, now, session, None);
    let Some(owner) = broker.sessions.get_mut(session) else { return };
    let mut subscriptions = std::mem::take(&mut owner.subscriptions);
    for replay in subscriptions.replays().iter().flat_map(|replays| replays.ids()) {
        broker.replays.remove(replay);
    }
    for held in subscriptions.take_plain() {
        remove_subscriber(broker, held);
        release(broker, now, held.filter, held.durable());
    }
    for group in subscriptions.groups() {
        leave(broker, session, group);
    }
    for turn in subscriptions.waiting_packets() {
        broker.subscribing.waiting.remove(turn);
    }
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
