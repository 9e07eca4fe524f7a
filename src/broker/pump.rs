//! What a session has stored, on its way to the client.
//!
//! [`Broker::pump`] sends first again what was sent on an earlier connection, then what is queued, as
//! far as the client's window and its outbox have room. QoS 2 towards a session that outlives us
//! waits until its packet id is recorded (SHARDS.md J3).
//!
//! Invariant: what is sent again carries its topic's name, never an alias of an earlier connection.
#![forbid(unsafe_code)]

use crate::clock::Time;
use crate::codec::mqtt::{Delivery, PacketId, QoS};
use crate::ids::ConnId;
use crate::limits::OUTBOX_BYTES_MARK;

use super::alias::Naming;
use super::change::{Parked, Record};
use super::conn::Conn;
use super::deliver::{has_room, online};
use super::inflight::Stage;
use super::message::{Messages, Stored};
use super::publication::remaining_secs;
use super::queue::{Body, Left, Queued};
use super::session::{Outgoing, SessionKey};
use super::{Broker, Dirty, Stats, evict, replay};

/// What one step of [`Broker::pump`] did.
enum Pumped {
    /// Something; there may be more to do.
    Sent,
    /// This one is to be recorded first.
    Recorded(ConnId, Queued),
    /// This one was dropped.
    Dropped(Left),
    /// This exchange is too large for the connection.
    Unsent(usize),
    /// Nothing: there is no more, or no room.
    Done,
    /// The same; there is more on disk.
    Wanting,
}

impl Pumped {
    fn again_if(more: bool) -> Self {
        if more { Self::Sent } else { Self::Done }
    }

    fn done_but(wants: bool) -> Self {
        if wants { Self::Wanting } else { Self::Done }
    }
}

impl Broker {
    /// QoS 2 towards a session that outlives us: its packet id is recorded before it is sent
    /// (SHARDS.md J3).
    pub(super) fn begin_recorded(&mut self, key: SessionKey, conn: ConnId, queued: Queued) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let outgoing = session.outgoing.get_or_insert_with(Box::default);
        let message = self.messages.get(queued.message).id;
        let (retain, subscription_ids) = (queued.retain, queued.subscription_ids.as_slice().into());
        let group = queued.group.as_ref().map(|chosen| chosen.group.key().into());
        let packet_id = outgoing.exchanges.begin(queued, Stage::Assigning);
        let last = outgoing.exchanges.len() - 1;
        outgoing.exchanges.get_mut(last).assigned = message;
        let client_id = session.client_id.clone();
        let record =
            Record::Assign { client_id, packet_id, message, retain, subscription_ids, group };
        let change = self.changes.record(&mut self.out.changes, record);
        self.changes.park(change, conn, Parked::Publish { session: key, packet_id });
    }

    /// The record of a packet id is committed: its PUBLISH leaves.
    pub(super) fn on_assigned(&mut self, now: Time, key: SessionKey, packet_id: PacketId) {
        let Self { sessions, conns, messages, out, stats, .. } = self;
        let Some(session) = sessions.get_mut(key) else { return };
        let conn = session.conn;
        let Some(exchanges) = session.outgoing.as_mut().map(|o| &mut o.exchanges) else { return };
        let Some(index) = exchanges.find(packet_id) else { return };
        let is_on_connection = exchanges.is_on_connection(index);
        let exchange = exchanges.get_mut(index);
        if exchange.stage != Stage::Assigning {
            return;
        }
        exchange.stage = Stage::Published;
        if !is_on_connection {
            return;
        }
        if let (Some((id, conn)), Some(queued)) = (online(conns, conn), &exchange.queued) {
            let stored = messages.get(queued.message);
            if stored.is_expired(now) {
                stats.dropped_expired += 1;
                return self.finish_exchange(now, key, index);
            }
            let mut delivery = to_delivery(now, stored, queued, packet_id, false);
            let Some(naming) = choose_stored(conn, stored, &mut delivery) else {
                // The connection is another one by now, and takes less.
                stats.dropped_too_large += 1;
                return self.finish_exchange(now, key, index);
            };
            let len = append_stored((id, conn), &mut out.dirty, stored, (&delivery, naming));
            exchange.was_sent = true;
            stats.count_out(queued.qos, len);
        }
    }

    /// What a connection is owed from earlier ones: PUBRELs at once, PUBLISHes as far as its
    /// window allows [MQTT-4.4.0-1].
    pub(super) fn resume_exchanges(&mut self, now: Time, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(conn) = session.conn else { return };
        let owed = match &mut session.outgoing {
            Some(outgoing) => outgoing.exchanges.resume(),
            None => return,
        };
        for packet_id in owed {
            self.write_pubrel_again(conn, packet_id);
        }
        self.pump(now, key);
    }

    /// Sends what the session has stored, as far as window and outbox have room.
    pub(crate) fn pump(&mut self, now: Time, key: SessionKey) {
        loop {
            match self.pump_one(now, key) {
                Pumped::Sent => {}
                Pumped::Recorded(conn, queued) => self.begin_recorded(key, conn, queued),
                Pumped::Dropped(left) => self.drop_left(key, left),
                Pumped::Unsent(index) => {
                    self.settle_exchange(key, index);
                }
                Pumped::Done => return replay::on_room(self, key),
                Pumped::Wanting => {
                    evict::ask(self, now, key);
                    return replay::on_room(self, key);
                }
            }
        }
    }

    #[inline]
    fn pump_one(&mut self, now: Time, key: SessionKey) -> Pumped {
        let Self { sessions, conns, messages, out, stats, changes, .. } = self;
        let Some(session) = sessions.get_mut(key) else { return Pumped::Done };
        let is_durable = session.is_durable();
        let Some(outgoing) = &mut session.outgoing else { return Pumped::Done };
        let Some((id, conn)) = online(conns, session.conn) else { return Pumped::Done };
        if conn.unsent() >= OUTBOX_BYTES_MARK {
            return Pumped::Done;
        }
        let dirty = &mut out.dirty;
        if !outgoing.exchanges.is_resent() {
            let Some(index) = outgoing.exchanges.next_resend(usize::from(conn.window)) else {
                return Pumped::again_if(outgoing.exchanges.is_resent());
            };
            let exchange = outgoing.exchanges.get_mut(index);
            let packet_id = exchange.id();
            let Some(queued) = &exchange.queued else { return Pumped::Sent };
            let stored = messages.get(queued.message);
            let dup = exchange.was_sent;
            if !dup && stored.is_expired(now) {
                // It has a packet id, and never left [MQTT-3.3.2-5].
                stats.dropped_expired += 1;
                return Pumped::Unsent(index);
            }
            // By its name: what this connection knows of aliases says nothing of an earlier one.
            let delivery = to_delivery(now, stored, queued, packet_id, dup);
            if !fits(conn, &delivery) {
                // As if it had been sent and acknowledged [MQTT-3.1.2-25].
                stats.dropped_too_large += 1;
                return Pumped::Unsent(index);
            }
            let len = append_stored((id, conn), dirty, stored, (&delivery, Naming::Name));
            let qos = queued.qos;
            exchange.was_sent = true;
            stats.messages_resent += u64::from(dup);
            stats.count_out(qos, len);
            return Pumped::Sent;
        }
        Self::pump_queued(now, (id, conn), outgoing, (messages, dirty, stats), |qos| {
            is_durable && qos == QoS::ExactlyOnce && changes.is_enabled()
        })
    }

    /// The next of the queue, if there is one and it has room.
    #[inline]
    fn pump_queued(
        now: Time,
        (id, conn): (ConnId, &mut Conn),
        outgoing: &mut Outgoing,
        (messages, dirty, stats): (&mut Messages, &mut Dirty, &mut Stats),
        is_recorded: impl Fn(QoS) -> bool,
    ) -> Pumped {
        let queue = &mut outgoing.queue;
        let Some(front) = queue.front(now) else { return Pumped::Done };
        let message = match front.body {
            _ if front.is_expired => {
                stats.dropped_expired += 1;
                return queue.pop_left().map_or(Pumped::Done, Pumped::Dropped);
            }
            Body::Held(message) => message,
            Body::Evicted(_) => return Pumped::Wanting,
            // Counted when it was found to be lost.
            Body::Lost(_) => return queue.pop_left().map_or(Pumped::Done, Pumped::Dropped),
        };
        if !has_room(outgoing, conn) {
            return Pumped::done_but(outgoing.queue.evicted() > 0);
        }
        let Some(queued) = outgoing.queue.pop() else { return Pumped::Done };
        let stored = messages.get(message);
        let any_id = PacketId::new(1).expect("invariant: 1 is not 0");
        let is_recorded = is_recorded(queued.qos);
        let mut delivery = to_delivery(now, stored, &queued, any_id, false);
        let naming = match is_recorded {
            true => fits(conn, &delivery).then_some(Naming::Name),
            false => choose_stored(conn, stored, &mut delivery),
        };
        let Some(naming) = naming else {
            stats.dropped_too_large += 1;
            let Queued { qos, group, .. } = queued;
            return Pumped::Dropped(Left { body: Body::Held(message), qos, group });
        };
        if is_recorded {
            return Pumped::Recorded(id, queued);
        }
        let qos = queued.qos;
        let packet_id = outgoing.exchanges.begin(queued, Stage::Published);
        let index = outgoing.exchanges.len() - 1;
        let Some(queued) = &outgoing.exchanges.get(index).queued else { return Pumped::Done };
        let stored = messages.get(message);
        let mut delivery = to_delivery(now, stored, queued, packet_id, false);
        naming.apply(&mut delivery);
        let len = append_stored((id, conn), dirty, stored, (&delivery, naming));
        stats.count_out(qos, len);
        Pumped::Sent
    }
}

/// How this client gets a stored message, by its name or by an alias: fits the delivery to it. None
/// when the client takes no packet of that size.
fn choose_stored(conn: &mut Conn, stored: &Stored, delivery: &mut Delivery<'_>) -> Option<Naming> {
    let naming = conn.choose_naming(stored.topic_id, delivery.topic.len());
    naming.apply(delivery);
    if fits(conn, delivery) {
        return Some(naming);
    }
    if let Naming::Both(_) = naming {
        delivery.topic_alias = None;
        return fits(conn, delivery).then_some(Naming::Name);
    }
    None
}

/// Whether the client takes a packet of this size [MQTT-3.1.2-24].
fn fits(conn: &Conn, delivery: &Delivery<'_>) -> bool {
    delivery.encoded_len(conn.version()) <= conn.packet_size_max as usize
}

/// Appends a stored message; its length.
fn append_stored(
    (id, conn): (ConnId, &mut Conn),
    dirty: &mut Dirty,
    stored: &Stored,
    (delivery, naming): (&Delivery<'_>, Naming),
) -> usize {
    let version = conn.version();
    let payload = stored.payload();
    conn.append(id, dirty, |outbox| {
        delivery.encode_head(version, outbox.tail());
        match payload.shared {
            Some(shared) => outbox.push_shared(shared.clone()),
            None => outbox.extend_from_slice(payload.bytes),
        }
    });
    conn.on_named(stored.topic_id, naming);
    delivery.encoded_len(version)
}

fn to_delivery<'a>(
    now: Time,
    stored: &'a Stored,
    queued: &'a Queued,
    packet_id: PacketId,
    dup: bool,
) -> Delivery<'a> {
    Delivery {
        topic: stored.topic(),
        qos: queued.qos,
        dup,
        retain: queued.retain,
        packet_id: Some(packet_id),
        message_expiry_interval: remaining_secs(stored.deadline, now),
        topic_alias: None,
        subscription_ids: queued.subscription_ids.as_slice(),
        forwarded: stored.forwarded(),
        payload_len: stored.payload().bytes.len(),
    }
}
