//! A publication towards one subscriber: into its outbox, or into its queue.
//!
//! [`to_session`] is the routing half's way in. A publication is encoded once per variant (see
//! [`variant`](super::variant)) and copied into each outbox with the packet id patched; it is stored
//! at most once, however many sessions have to keep it. What a session has stored goes out by `pump`.
//!
//! Invariant: a message that is dropped (too large, expired, no room) takes no packet id, no slot of
//! the window and no Topic Alias, and is counted.
#![forbid(unsafe_code)]

use crate::clock::Time;
use crate::codec::mqtt::QoS;
use crate::ids::ConnId;
use crate::limits::{EVICT_PER_MESSAGE, OUTBOX_BYTES_MARK};

use super::as_received::AsReceived;
use super::conn::{Conn, Conns, State};
use super::inflight::Stage;
use super::message::MessageKey;
use super::publication::{Publication, Terms};
use super::queue::Bounds;
use super::session::{Outgoing, SessionKey};
use super::variant::Form;
use super::{Broker, evict, memory};

/// What is copied for one receiver.
enum Source<'a> {
    AsReceived(AsReceived<'a>),
    Variant(Form),
}

/// The connection that may be sent to now, if the session has one.
#[inline]
pub(super) fn online(conns: &mut Conns, conn: Option<ConnId>) -> Option<(ConnId, &mut Conn)> {
    let id = conn?;
    conns.get_mut(id).filter(|conn| conn.state == State::Online).map(|conn| (id, conn))
}

/// Delivers a publication to one session: into its outbox if there is room, into its queue if the
/// message must not be lost, else nowhere, and counted.
pub(crate) fn to_session(
    broker: &mut Broker,
    now: Time,
    key: SessionKey,
    publication: &Publication<'_>,
    terms: &Terms<'_>,
) {
    let Broker { sessions, stats, .. } = broker;
    let Some(session) = sessions.get_mut(key) else { return };
    if publication.deadline.is_some_and(|deadline| deadline <= now) {
        stats.dropped_expired += 1;
        return broker.record_end(key, publication.id, terms.group);
    }
    let qos = publication.qos.min(terms.qos);
    if qos > QoS::AtMostOnce {
        return to_window_or_queue(broker, now, key, publication, qos, terms);
    }
    let conn = session.conn;
    if publication.id.is_some() && session.wants_less && terms.group.is_none() {
        broker.record_end(key, publication.id, None);
    }
    let Broker { conns, variants, out, stats, config, .. } = broker;
    let Some((id, conn)) = online(conns, conn) else {
        stats.dropped_offline += 1;
        return;
    };
    if conn.unsent() > config.outbox_bytes_max {
        stats.dropped_outbox += 1;
        return;
    }
    // Most of all messages.
    if let Some(AsReceived { bytes, .. }) =
        publication.as_received.filter(|it| it.fits(conn, qos, terms))
    {
        conn.append(id, &mut out.dirty, |outbox| outbox.extend_from_slice(bytes));
        stats.count_out(qos, bytes.len());
        return;
    }
    let Some(form) = variants.choose(now, publication, conn, qos, terms) else {
        stats.dropped_too_large += 1;
        return;
    };
    variants.append((id, conn), &mut out.dirty, publication, form, None);
    stats.count_out(qos, form.len);
}

fn to_window_or_queue(
    broker: &mut Broker,
    now: Time,
    key: SessionKey,
    publication: &Publication<'_>,
    qos: QoS,
    terms: &Terms<'_>,
) {
    let Broker { sessions, conns, messages, variants, out, stats, config, place, changes, .. } =
        broker;
    let Some(session) = sessions.get_mut(key) else { return };
    let size = publication.to_message(None).size();
    let is_short =
        !publication.is_stored() && messages.bytes() + size > memory::bytes_max(config, *place);
    if is_short && !evict::may_evict(config, changes, (key, session), publication.id, terms.group) {
        stats.dropped_memory += 1;
        return broker.record_end(key, publication.id, terms.group);
    }
    let is_recorded = qos == QoS::ExactlyOnce && changes.is_enabled() && session.is_durable();
    let outgoing = session.outgoing.get_or_insert_with(Box::default);
    if let Some((id, conn)) = online(conns, session.conn)
        && has_room(outgoing, conn)
        && outgoing.queue.is_empty()
        && outgoing.exchanges.is_resent()
        && !is_short
    {
        let received = publication.as_received.filter(|it| it.fits(conn, qos, terms));
        let source = match received {
            Some(received) => Some(Source::AsReceived(received)),
            None => variants.choose(now, publication, conn, qos, terms).map(Source::Variant),
        };
        let Some(source) = source else {
            stats.dropped_too_large += 1;
            return broker.record_end(key, publication.id, terms.group);
        };
        let queued = terms.to_queued(publication.store(messages), qos);
        if is_recorded {
            return broker.begin_recorded(key, id, queued);
        }
        let packet_id = outgoing.exchanges.begin(queued, Stage::Published);
        match source {
            Source::AsReceived(received) => {
                received.append((id, conn), &mut out.dirty, packet_id);
                stats.count_out(qos, received.bytes.len());
            }
            Source::Variant(form) => {
                variants.append((id, conn), &mut out.dirty, publication, form, Some(packet_id));
                stats.count_out(qos, form.len);
            }
        }
        return;
    }
    to_queue(broker, now, key, publication, (size, is_short), terms, qos);
}

/// Queues it, in memory or where the journal has it, if the queue has room.
fn to_queue(
    broker: &mut Broker,
    now: Time,
    key: SessionKey,
    publication: &Publication<'_>,
    (size, is_short): (usize, bool),
    terms: &Terms<'_>,
    qos: QoS,
) {
    let Broker { sessions, messages, stats, config, changes, .. } = broker;
    let Some(session) = sessions.get_mut(key) else { return };
    let evicted = publication
        .id
        .filter(|id| evict::may_evict(config, changes, (key, session), Some(*id), terms.group))
        .filter(|_| is_short || evict::is_over(config, session, messages, size));
    let is_online = session.conn.is_some();
    let outgoing = session.outgoing.get_or_insert_with(Box::default);
    let bounds = Bounds {
        len: config.queue_len_max,
        held: config.queue_bytes_max,
        evicted: config.queue_disk_bytes_max,
    };
    let mut expired = Vec::new();
    let queue = &mut outgoing.queue;
    let has_room = queue.make_room(now, size, evicted.is_some(), bounds, &mut expired);
    match evicted {
        _ if !has_room => {
            stats.dropped_queue_full += 1;
            broker.record_end(key, publication.id, terms.group);
        }
        Some(id) => {
            let queued = terms.to_queued(MessageKey::NONE, qos);
            queue.push_evicted((id, size, publication.deadline), queued, messages);
            stats.messages_queued += 1;
            stats.messages_evicted += 1;
            evict::relieve(broker, EVICT_PER_MESSAGE);
            if is_online {
                evict::ask(broker, now, key);
            }
        }
        None => {
            queue.push(terms.to_queued(publication.store(messages), qos), messages);
            stats.messages_queued += 1;
            evict::list(broker, key);
            evict::relieve(broker, EVICT_PER_MESSAGE);
        }
    }
    for left in expired {
        broker.stats.dropped_expired += 1;
        broker.drop_left(key, left);
    }
}

/// Whether the client's window and its outbox have room for one more exchange.
#[inline]
pub(super) fn has_room(outgoing: &Outgoing, conn: &Conn) -> bool {
    outgoing.exchanges.used() < usize::from(conn.window) && conn.unsent() < OUTBOX_BYTES_MARK
}
