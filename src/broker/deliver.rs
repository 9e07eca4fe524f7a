//! Towards subscribers: one publication into many outboxes, and a session's stored messages into
//! one.
//!
//! [`to_session`] is the routing half's way in. A publication is encoded once per variant (see
//! [`variant`](super::variant)) and copied into each outbox with the packet id patched; it is stored at most
//! once, however many sessions have to keep it. [`Broker::pump`] sends what a session has stored:
//! first again what was sent on an earlier connection, then what is queued, as far as the
//! client's window and its outbox have room.
//!
//! Invariant: a message that is dropped (too large, expired, no room) takes no packet id, no slot of
//! the window and no Topic Alias, and is counted. What is sent again carries its topic's name.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::clock::Time;
use crate::codec::mqtt::{Ack, Delivery, PacketId, PacketKind, QoS, ReasonCode};
use crate::ids::ConnId;
use crate::limits::{EVICT_PER_MESSAGE, OUTBOX_BYTES_MARK};

use super::alias::{Naming, TopicId};
use super::as_received::AsReceived;
use super::change::{Parked, Record};
use super::conn::{Conn, Conns, State};
use super::inflight::Stage;
use super::message::{MessageId, MessageKey, Messages, NewMessage, Payload, Stored};
use super::queue::{Body, Bounds, Left, Queued, SubscriptionIds};
use super::session::{Outgoing, SessionKey};
use super::shared_sub::Chosen;
use super::variant::Form;
use super::{Broker, Dirty, Stats, evict, memory, replay};

/// An Application Message on its way to its receivers.
#[derive(Debug)]
pub(crate) struct Publication<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: Payload<'a>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) deadline: Option<Time>,
    /// Properties as `append_forwarded` wrote them.
    pub(crate) forwarded: &'a [u8],
    /// The packet that it came in, if some may get it as it is.
    pub(crate) as_received: Option<AsReceived<'a>>,
    /// The publisher's session, if it is at home here (No Local).
    pub(crate) publisher: Option<SessionKey>,
    /// The publisher's client id.
    pub(crate) publisher_id: &'a str,
    /// Its name in the journal, if it has a record there.
    pub(crate) id: Option<MessageId>,
    /// What delivering it has learnt; begins as its default.
    pub(crate) memo: Memo,
}

/// What is copied for one receiver.
enum Source<'a> {
    AsReceived(AsReceived<'a>),
    Variant(Form),
}

/// What is made once per publication: [`Default`] for each new one.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    /// Names it among the variants' owners; 0 as long as nothing was encoded.
    serial: Cell<u64>,
    stored: Cell<Option<MessageKey>>,
    topic_id: Cell<TopicId>,
    /// The hash of the publisher's client id, once a group has asked for it.
    publisher_hash: Cell<Option<u64>>,
}

impl Memo {
    /// Of a publication that is made from a stored message, which stays as long as that is
    /// delivered.
    pub(crate) fn stored_as(key: MessageKey, topic_id: TopicId) -> Self {
        let (stored, topic_id) = (Cell::new(Some(key)), Cell::new(topic_id));
        Self { stored, topic_id, ..Self::default() }
    }

    /// The hash of the publisher's client id: made at most once, however many groups ask.
    #[inline]
    pub(crate) fn publisher_hash(&self, make: impl FnOnce() -> u64) -> u64 {
        let hash = self.publisher_hash.get().unwrap_or_else(make);
        self.publisher_hash.set(Some(hash));
        hash
    }

    /// Its topic, as routing remembers it; none as long as nobody has looked.
    #[inline]
    pub(crate) fn topic_id(&self) -> TopicId {
        self.topic_id.get()
    }

    #[inline]
    pub(crate) fn set_topic_id(&self, id: TopicId) {
        self.topic_id.set(id);
    }

    #[inline]
    pub(super) fn serial(&self) -> u64 {
        self.serial.get()
    }

    pub(super) fn set_serial(&self, serial: u64) {
        self.serial.set(serial);
    }
}

impl Publication<'_> {
    /// A reference to the stored message, for the caller to own. It must not be released while
    /// the publication is being delivered.
    pub(crate) fn store(&self, messages: &mut Messages) -> MessageKey {
        if let Some(key) = self.memo.stored.get() {
            return messages.retain(key);
        }
        let key = messages.insert(self.to_message(None));
        self.memo.stored.set(Some(key));
        key
    }

    /// Whether keeping it takes no further memory.
    #[inline]
    fn is_stored(&self) -> bool {
        self.memo.stored.get().is_some()
    }

    /// What would be stored.
    pub(crate) fn to_message<'b>(&'b self, publisher: Option<&'b Rc<str>>) -> NewMessage<'b> {
        NewMessage {
            topic: self.topic,
            forwarded: self.forwarded,
            payload: self.payload,
            qos: self.qos,
            retain: self.retain,
            deadline: self.deadline,
            id: self.id,
            topic_id: self.memo.topic_id(),
            publisher,
        }
    }
}

/// How one session gets it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    /// Granted; the publication's may be lower.
    pub(crate) qos: QoS,
    /// The flag to be sent.
    pub(crate) retain: bool,
    pub(crate) subscription_ids: &'a [u32],
    /// The shared subscription's group, if it is one.
    pub(crate) group: Option<Chosen>,
}

/// By how much this shard's time may be behind that of the shard a message comes from: each reads the
/// clock at the start of its tick.
const TICK_SKEW: Duration = Duration::from_millis(200);

/// Seconds left, as they are sent: rounded up, so that an untouched interval arrives as it was, and
/// never longer than it was [MQTT-3.3.2-6].
pub(crate) fn remaining_secs(deadline: Option<Time>, now: Time) -> Option<u32> {
    let left = deadline?.since(now);
    let secs = left.saturating_sub(TICK_SKEW).as_nanos().div_ceil(1_000_000_000);
    // What has not expired is not 0, which would say that it has.
    let secs = if left.is_zero() { secs } else { secs.max(1) };
    Some(u32::try_from(secs).unwrap_or(u32::MAX))
}

/// The connection that may be sent to now, if the session has one.
#[inline]
fn online(conns: &mut Conns, conn: Option<ConnId>) -> Option<(ConnId, &mut Conn)> {
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
    if publication.id.is_some() && session.wants_less && terms.group.is_none() {
        broker.record_end(key, publication.id, None);
    }
    let Broker { sessions, conns, variants, out, stats, config, .. } = broker;
    let Some(session) = sessions.get_mut(key) else { return };
    let Some((id, conn)) = online(conns, session.conn) else {
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
    if is_short && !evict::may_evict(config, session, publication.id) {
        stats.dropped_memory += 1;
        return broker.record_end(key, publication.id, terms.group);
    }
    let is_recorded = qos == QoS::ExactlyOnce && changes.is_enabled() && session.is_durable();
    let outgoing = session.outgoing.get_or_insert_with(Box::default);
    let queued = |message| Queued {
        message,
        qos,
        retain: terms.retain,
        subscription_ids: SubscriptionIds::new(terms.subscription_ids),
        group: terms.group,
    };
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
        let queued = queued(publication.store(messages));
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
    let Broker { sessions, messages, stats, config, .. } = broker;
    let Some(session) = sessions.get_mut(key) else { return };
    let evicted = publication
        .id
        .filter(|id| evict::may_evict(config, session, Some(*id)))
        .filter(|_| is_short || evict::is_over(config, session, messages, size));
    let is_online = session.conn.is_some();
    let outgoing = session.outgoing.get_or_insert_with(Box::default);
    let bounds = Bounds {
        len: config.queue_len_max,
        held: config.queue_bytes_max,
        evicted: config.queue_disk_bytes_max,
    };
    let queued = |message| Queued {
        message,
        qos,
        retain: terms.retain,
        subscription_ids: SubscriptionIds::new(terms.subscription_ids),
        group: terms.group,
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
            let terms = queued(MessageKey::NONE);
            queue.push_evicted((id, size, publication.deadline), terms, messages);
            stats.messages_queued += 1;
            stats.messages_evicted += 1;
            evict::relieve(broker, EVICT_PER_MESSAGE);
            if is_online {
                evict::ask(broker, now, key);
            }
        }
        None => {
            queue.push(queued(publication.store(messages)), messages);
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
fn has_room(outgoing: &Outgoing, conn: &Conn) -> bool {
    outgoing.exchanges.used() < usize::from(conn.window) && conn.unsent() < OUTBOX_BYTES_MARK
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

impl Broker {
    /// QoS 2 towards a session that outlives us: its packet id is recorded before it is sent
    /// (SHARDS.md J3).
    fn begin_recorded(&mut self, key: SessionKey, conn: ConnId, queued: Queued) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let outgoing = session.outgoing.get_or_insert_with(Box::default);
        let message = self.messages.get(queued.message).id;
        let (retain, subscription_ids) = (queued.retain, queued.subscription_ids.as_slice().into());
        let group = queued.group.and_then(|chosen| self.shared_subs.key_of(chosen.group));
        let packet_id = outgoing.exchanges.begin(queued, Stage::Assigning);
        let last = outgoing.exchanges.len() - 1;
        outgoing.exchanges.get_mut(last).assigned = message;
        let client_id = session.client_id.clone();
        let group = group.map(Into::into);
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

    /// PUBACK of a message that we sent.
    pub(super) fn on_puback(&mut self, now: Time, conn: ConnId, ack: &Ack<'_>) -> super::Step {
        let Some((key, index, exchange_qos, _)) = self.find_exchange(conn, ack.packet_id) else {
            self.stats.acks_unknown += 1;
            return super::Step::Next;
        };
        if exchange_qos != QoS::AtLeastOnce {
            return self.protocol_error(now, conn, ReasonCode::PROTOCOL_ERROR);
        }
        self.finish_exchange(now, key, index);
        super::Step::Next
    }

    /// PUBREC of a message that we sent.
    pub(super) fn on_pubrec(&mut self, now: Time, conn: ConnId, ack: &Ack<'_>) -> super::Step {
        let packet_id = ack.packet_id;
        let Some((key, index, qos, stage)) = self.find_exchange(conn, packet_id) else {
            self.stats.acks_unknown += 1;
            // It is over here; the answer lets the client end it as well.
            if !ack.reason.is_error() {
                let reason = ReasonCode::PACKET_IDENTIFIER_NOT_FOUND;
                self.write_ack(conn, PacketKind::PubRel, packet_id, reason);
            }
            return super::Step::Next;
        };
        if qos != QoS::ExactlyOnce {
            return self.protocol_error(now, conn, ReasonCode::PROTOCOL_ERROR);
        }
        if ack.reason.is_error() && matches!(stage, Stage::Published | Stage::Assigning) {
            // [MQTT-4.4.0-2]: it is over, and there is no PUBREL.
            self.finish_exchange(now, key, index);
            return super::Step::Next;
        }
        match stage {
            Stage::Published | Stage::Assigning => self.receive_exchange(key, conn, index),
            Stage::Received => {}
            Stage::Released(_) => {
                self.write_ack(conn, PacketKind::PubRel, packet_id, ReasonCode::SUCCESS);
            }
        }
        super::Step::Next
    }

    /// PUBCOMP of a message that we sent.
    pub(super) fn on_pubcomp(&mut self, now: Time, conn: ConnId, ack: &Ack<'_>) -> super::Step {
        match self.find_exchange(conn, ack.packet_id) {
            Some((key, index, _, Stage::Released(_) | Stage::Received)) => {
                self.finish_exchange(now, key, index);
            }
            // Before PUBREL it says nothing.
            _ => self.stats.acks_unknown += 1,
        }
        super::Step::Next
    }

    fn find_exchange(
        &self,
        conn: ConnId,
        packet_id: PacketId,
    ) -> Option<(SessionKey, usize, QoS, Stage)> {
        let key = self.conns.get(conn)?.session?;
        let exchanges = &self.sessions.get(key)?.outgoing.as_ref()?.exchanges;
        let index = exchanges.find(packet_id)?;
        let exchange = exchanges.get(index);
        // What is past PUBREC has given its message back, and was QoS 2.
        let qos = exchange.queued.as_ref().map_or(QoS::ExactlyOnce, |queued| queued.qos);
        Some((key, index, qos, exchange.stage))
    }

    fn receive_exchange(&mut self, key: SessionKey, conn: ConnId, index: usize) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let is_recorded = self.changes.is_enabled() && session.is_durable();
        let Some(outgoing) = &mut session.outgoing else { return };
        let packet_id = outgoing.exchanges.get(index).id();
        let message = outgoing.exchanges.get(index).assigned;
        let received = outgoing.exchanges.receive(index);
        if is_recorded {
            let client_id = session.client_id.clone();
            let record = Record::Received { client_id, packet_id, message };
            let change = self.changes.record(&mut self.out.changes, record);
            self.changes.park(change, conn, Parked::PubRel { session: key, packet_id });
        } else {
            outgoing.exchanges.release(index);
            self.write_ack(conn, PacketKind::PubRel, packet_id, ReasonCode::SUCCESS);
        }
        if let Some(Queued { message, group, .. }) = received {
            // The ASSIGN of a durable session has said as much.
            if !is_recorded && group.is_some() {
                self.record_end(key, stored_id(&self.messages, message), group);
            }
            self.messages.release(message);
        }
    }

    /// The record of a PUBREC is committed: its PUBREL leaves (SHARDS.md J3).
    pub(super) fn on_received(&mut self, key: SessionKey, packet_id: PacketId) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(outgoing) = &mut session.outgoing else { return };
        let Some(index) = outgoing.exchanges.find(packet_id) else { return };
        if outgoing.exchanges.get(index).stage != Stage::Received {
            return;
        }
        outgoing.exchanges.release(index);
        // One whose CONNACK is still to come gets it behind that (SHARDS.md H5).
        if let Some((conn, _)) = online(&mut self.conns, session.conn) {
            self.write_ack(conn, PacketKind::PubRel, packet_id, ReasonCode::SUCCESS);
        }
    }

    fn finish_exchange(&mut self, now: Time, key: SessionKey, index: usize) {
        match self.settle_exchange(key, index) {
            true => replay::on_room(self, key),
            false => self.pump(now, key),
        }
    }

    /// An exchange is over; whether nothing else waits for the session's window.
    fn settle_exchange(&mut self, key: SessionKey, index: usize) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return true };
        let is_recorded = self.changes.is_enabled() && session.is_durable();
        let Some(outgoing) = &mut session.outgoing else { return true };
        let (packet_id, message) = {
            let exchange = outgoing.exchanges.get(index);
            (exchange.id(), exchange.assigned)
        };
        let finished = outgoing.exchanges.finish(index);
        let is_idle = outgoing.exchanges.is_resent() && outgoing.queue.is_empty();
        let is_assigned = finished.as_ref().is_none_or(|queued| queued.qos > QoS::AtLeastOnce);
        if is_recorded && is_assigned {
            let client_id = session.client_id.clone();
            let record = Record::Done { client_id, packet_id, message };
            self.changes.record(&mut self.out.changes, record);
        }
        if let Some(Queued { message, group, .. }) = finished {
            if !(is_recorded && is_assigned) {
                self.record_end(key, stored_id(&self.messages, message), group);
            }
            self.messages.release(message);
        }
        is_idle
    }

    /// This session is done with a message that it has under no recorded packet id: it was
    /// acknowledged, or dropped. Nobody waits for that record (SHARDS.md J6).
    #[inline]
    pub(crate) fn record_end(
        &mut self,
        key: SessionKey,
        id: Option<MessageId>,
        group: Option<Chosen>,
    ) {
        // Without a record of it there is no end to be recorded.
        if let Some(message) = id
            && self.changes.is_enabled()
        {
            self.record_end_of(key, message, group);
        }
    }

    /// The same for what leaves the queue unsent, with its reference.
    fn drop_left(&mut self, key: SessionKey, Left { body, group, .. }: Left) {
        let id = body.release(&mut self.messages);
        self.record_end(key, id, group);
    }

    fn record_end_of(&mut self, key: SessionKey, message: MessageId, group: Option<Chosen>) {
        if let Some(group) = group {
            return self.record_group_end(group, message);
        }
        let client_id = match self.sessions.get(key) {
            Some(session) if session.is_durable() => session.client_id.clone(),
            _ => return,
        };
        self.changes.record(&mut self.out.changes, Record::Acked { client_id, message });
    }

    /// The group is done with this message, whoever had it (SHARDS.md J9).
    pub(super) fn record_group_end(&mut self, chosen: Chosen, message: MessageId) {
        let Self { shared_subs, changes, out, .. } = self;
        if let Some(key) = shared_subs.key_of(chosen.group)
            && shared_subs.get(chosen.group).is_durable()
            && changes.is_enabled()
        {
            let group = key.into();
            changes.record(&mut out.changes, Record::GroupAck { group, message });
        }
    }
}

fn stored_id(messages: &Messages, message: MessageKey) -> Option<MessageId> {
    messages.get(message).id
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untouched_expiry_interval_arrives_as_it_was() {
        let now = Time::from_nanos(5);
        assert_eq!(remaining_secs(None, now), None);
        assert_eq!(remaining_secs(Some(now.plus_secs(10)), now), Some(10));
        let later = Time::from_nanos(1_500_000_005);
        assert_eq!(remaining_secs(Some(now.plus_secs(10)), later), Some(9));
        assert_eq!(remaining_secs(Some(Time::MAX), Time::ZERO), Some(u32::MAX));
        // The shard that received it read the clock a little later than the one that sends it.
        let ahead = now + Duration::from_millis(20);
        assert_eq!(remaining_secs(Some(ahead.plus_secs(10)), now), Some(10));
        assert_eq!(remaining_secs(Some(now + Duration::from_millis(20)), now), Some(1));
        assert_eq!(remaining_secs(Some(now), now), Some(0));
    }
}
