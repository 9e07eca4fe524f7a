//! From publishers: PUBLISH and PUBREL.
//!
//! Checks come before any effect, so that a packet that has to wait can be offered again: then
//! nothing of it has happened. What is accepted goes to the routing half, and its answer leaves at
//! once or when its record is committed, in the order of the PUBLISHes.
#![forbid(unsafe_code)]

use std::num::NonZeroU16;
use std::rc::Rc;

use bytes::Bytes;

use crate::clock::Time;
use crate::codec::mqtt::{Ack, PacketId, PacketKind, Publish, QoS, ReasonCode, Version};
use crate::ids::ConnId;

use super::as_received::AsReceived;
use super::change::{Parked, Record};
use super::conn::Alias;
use super::inflight::Held;
use super::matches::Route;
use super::message::{Payload, STORED_OVERHEAD};
use super::policy::Refusal;
use super::publication::{Memo, Publication};
use super::session::SessionKey;
use super::{Broker, Frame, Level, Step, Wait, matches, memory, route};

/// Buffers of the publication in hand.
#[derive(Debug, Default)]
pub(crate) struct Publishing {
    forwarded: Vec<u8>,
}

/// A buffer for forwarded properties is kept up to this size.
const FORWARDED_BYTES_KEPT: usize = 64 * 1024;

impl Broker {
    /// PUBLISH (3.3).
    #[inline]
    pub(super) fn on_publish(
        &mut self,
        now: Time,
        conn: ConnId,
        publish: &Publish<'_>,
        frame: Frame<'_>,
    ) -> Step {
        let config = &self.config;
        if let Err(refusal) =
            config.check_capabilities(&mut self.stats, publish.qos, publish.retain)
        {
            return self.protocol_error_saying(now, conn, &refusal);
        }
        let Some(alias) = publish.properties.topic_alias else {
            return self.publish_to(now, conn, publish, publish.topic, frame);
        };
        self.publish_aliased(now, conn, publish, alias, frame)
    }

    fn publish_aliased(
        &mut self,
        now: Time,
        conn: ConnId,
        publish: &Publish<'_>,
        alias: NonZeroU16,
        frame: Frame<'_>,
    ) -> Step {
        // The topic leaves the table while the broker works with it.
        let known = match self.take_alias(conn, alias, publish.topic) {
            Ok(known) => known,
            Err(reason) => return self.protocol_error(now, conn, reason),
        };
        let step = self.publish_to(now, conn, publish, &known.topic, frame);
        if let Some(rare) = self.conns.get_mut(conn).and_then(|conn| conn.rare.as_mut())
            && let Some(slot) = rare.aliases.get_mut(usize::from(alias.get()) - 1)
        {
            *slot = Some(known);
        }
        step
    }

    /// The topic that an alias stands for, after this packet (3.3.2.3.4).
    fn take_alias(
        &mut self,
        conn: ConnId,
        alias: NonZeroU16,
        topic: &str,
    ) -> Result<Alias, ReasonCode> {
        // [MQTT-3.3.2-9]
        if alias.get() > self.config.topic_alias_maximum {
            return Err(ReasonCode::TOPIC_ALIAS_INVALID);
        }
        let conn = self.conns.get_mut(conn).ok_or(ReasonCode::UNSPECIFIED_ERROR)?;
        let aliases = &mut conn.rare().aliases;
        let index = usize::from(alias.get()) - 1;
        if index >= aliases.len() {
            aliases.resize_with(index + 1, || None);
        }
        let known = aliases[index].take();
        if topic.is_empty() {
            return known.ok_or(ReasonCode::PROTOCOL_ERROR);
        }
        if let Some(known) = known.filter(|known| *known.topic == *topic) {
            return Ok(known);
        }
        // What it replaces is gone.
        if !self.messages.may_charge(topic.len(), self.config.memory_budget) {
            return Err(ReasonCode::QUOTA_EXCEEDED);
        }
        Ok(Alias { topic: topic.into(), _charge: self.messages.charge(topic.len()) })
    }

    fn publish_to(
        &mut self,
        now: Time,
        conn: ConnId,
        publish: &Publish<'_>,
        topic: &str,
        frame: Frame<'_>,
    ) -> Step {
        let Some(key) = self.conns.get(conn).and_then(|conn| conn.session) else {
            return Step::Close;
        };
        if let Some(id) = publish.packet_id {
            if publish.qos == QoS::ExactlyOnce && self.held(key, id) != Held::No {
                // [MQTT-4.3.3-10]: it is here already, and takes no slot of the quota. Its record
                // may be under way still (SHARDS.md J4).
                self.stats.duplicates_in += 1;
                let pending = self.pending_of(key);
                self.use_slot(conn, key, id, Held::Earlier);
                self.answer_publish(conn, pending, Parked::PubRec(id, ReasonCode::SUCCESS));
                return Step::Next;
            }
            if self.is_quota_used(conn) {
                // [MQTT-3.3.4-9]
                return self.protocol_error(now, conn, ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
            }
        }
        if (publish.packet_id.is_some() || publish.retain) && self.changes.is_full() {
            return Step::Wait;
        }
        if route::may_publish(self, topic, publish.retain) == Err(Wait) {
            return Step::Wait;
        }
        self.count_in(publish.qos);
        if let Err(refusal) = self.check_publish((conn, key), publish, topic, frame) {
            return self.refuse_publish(now, conn, key, publish, &refusal);
        }
        self.accept_publish(now, conn, key, publish, topic, frame);
        Step::Next
    }

    /// Why a publication is not taken, if it is not.
    #[inline]
    fn check_publish(
        &mut self,
        (conn, key): (ConnId, SessionKey),
        publish: &Publish<'_>,
        topic: &str,
        frame: Frame<'_>,
    ) -> Result<(), Refusal> {
        let Self { config, stats, .. } = self;
        config.check_message(stats, topic, &publish.properties, publish.payload)?;
        let is_kept = publish.qos > QoS::AtMostOnce || publish.retain;
        let size = if is_kept { topic.len() + frame.bytes.len() + STORED_OVERHEAD } else { 0 };
        // What clears a retained message gives memory back.
        let is_clear = publish.retain && publish.payload.is_empty();
        let has_room = self.messages.bytes() + size <= self.config.memory_budget;
        // QoS 0 has no answer: it is dropped, and counted by its cause.
        let is_dropped = u64::from(publish.qos == QoS::AtMostOnce);
        if !(is_clear && has_room) && memory::is_short_for(self, topic, publish.retain, size) {
            self.stats.dropped_memory += is_dropped;
            return Err(ReasonCode::QUOTA_EXCEEDED.into());
        }
        if is_reserved(topic) {
            self.stats.dropped_not_authorized += is_dropped;
            return Err(ReasonCode::TOPIC_NAME_INVALID.into());
        }
        let Self { sessions, auth, stats, .. } = self;
        if sessions.get(key).is_some_and(|session| !auth.may_publish(&session.client_id, topic)) {
            stats.dropped_not_authorized += is_dropped;
            return Err(ReasonCode::NOT_AUTHORIZED.into());
        }
        if self.changes.is_down() && self.is_to_be_recorded(conn, publish, topic) {
            // Before any copy of it leaves (SHARDS.md J8).
            self.stats.refused_disk += 1;
            self.stats.dropped_disk += is_dropped;
            let why = "the server cannot store it now".into();
            return Err(Refusal { why, ..ReasonCode::QUOTA_EXCEEDED.into() });
        }
        Ok(())
    }

    fn is_to_be_recorded(&mut self, conn: ConnId, publish: &Publish<'_>, topic: &str) -> bool {
        let route = matches::find(self, topic);
        let level = self.level_of(Some(conn), &route, topic, publish.qos, publish.retain);
        matches::put_back(self, route);
        level > Level::None
    }

    /// What a publication's record is to survive; none if it has no record: nobody who outlives a
    /// restart wants it, and it is not retained (SHARDS.md J1).
    #[inline]
    fn level_of(
        &self,
        conn: Option<ConnId>,
        route: &Route,
        topic: &str,
        qos: QoS,
        retain: bool,
    ) -> Level {
        let at_least_once = qos > QoS::AtMostOnce;
        let is_wanted = self.changes.is_enabled()
            && (retain || at_least_once && matches::is_wanted_durably(self, route));
        match is_wanted {
            true => self.level_at_most(conn, topic),
            false => Level::None,
        }
    }

    /// What it is if somebody durable wants it.
    fn level_at_most(&self, conn: Option<ConnId>, topic: &str) -> Level {
        let listener = conn.and_then(|conn| self.conns.listener(conn));
        self.config.durability.of_message(listener, topic)
    }

    /// A refused publication: 5.0 has a code for it. Before, there is only the positive answer
    /// (which the specification allows for what is not authorized), or the end of the connection.
    fn refuse_publish(
        &mut self,
        now: Time,
        conn: ConnId,
        key: SessionKey,
        publish: &Publish<'_>,
        refusal: &Refusal,
    ) -> Step {
        let Refusal { reason, ref why, ends } = *refusal;
        let is_ours = reason == ReasonCode::QUOTA_EXCEEDED;
        let Some(id) = publish.packet_id else {
            if ends {
                return self.disconnect_saying(now, conn, reason, why);
            }
            return Step::Next;
        };
        self.stats.publishes_refused += 1;
        let is_v5 = self.version(conn) == Version::V5;
        if !is_v5 && (is_ours || ends) {
            return self.disconnect(now, conn, reason);
        }
        if publish.qos == QoS::AtLeastOnce {
            self.use_slot(conn, key, id, Held::No);
            self.answer_refused(conn, Parked::PubAck(id, reason), why);
        } else {
            // With an error the exchange is over; 3.x goes through all of it.
            let held = if is_v5 { Held::No } else { Held::Present };
            self.use_slot(conn, key, id, held);
            let reason = if is_v5 { reason } else { ReasonCode::SUCCESS };
            self.answer_refused(conn, Parked::PubRec(id, reason), why);
        }
        Step::Next
    }

    fn accept_publish(
        &mut self,
        now: Time,
        conn: ConnId,
        key: SessionKey,
        publish: &Publish<'_>,
        topic: &str,
        frame: Frame<'_>,
    ) {
        let Some(publisher_id) = self.sessions.get(key).map(|session| session.client_id.clone())
        else {
            return;
        };
        let mut buf = std::mem::take(&mut self.publishing.forwarded);
        let forwarded = publish.properties.forwarded(&mut buf);
        let shared = frame.shared.map(|frame| shared_tail(frame, publish.payload.len()));
        let mut publication = Publication {
            topic,
            payload: Payload { bytes: publish.payload, shared: shared.as_ref() },
            qos: publish.qos,
            retain: publish.retain,
            deadline: publish.properties.message_expiry_interval.map(|secs| now.plus_secs(secs)),
            forwarded,
            as_received: AsReceived::of(publish, frame, self.version(conn)),
            publisher: Some(key),
            publisher_id: &publisher_id,
            id: None,
            named: None,
            memo: Memo::default(),
        };
        let route = matches::find(self, topic);
        let origin = (&publisher_id, publish.packet_id, false);
        let is_behind = publish.qos == QoS::ExactlyOnce
            && self.conns.get(conn).is_some_and(|conn| conn.parked > 0);
        let level = match self.level_of(Some(conn), &route, topic, publish.qos, publish.retain) {
            // Whoever is there when it leaves gets it, somebody durable as well (SHARDS.md J2). It
            // is named now: names are the order in which a restart delivers.
            Level::None if is_behind && self.changes.is_enabled() => {
                self.level_at_most(Some(conn), topic)
            }
            level => level,
        };
        let change = self.record_publish(level, &mut publication, &route, origin);
        match publish.packet_id {
            None => {
                self.route(now, &publication, &route);
            }
            Some(id) if publish.qos == QoS::AtLeastOnce => {
                self.use_slot(conn, key, id, Held::No);
                let receivers = self.route(now, &publication, &route);
                let reason = self.receipt(conn, receivers);
                self.answer_publish(conn, change, Parked::PubAck(id, reason));
            }
            Some(id) => {
                self.use_slot(conn, key, id, Held::Present);
                if change.is_some() {
                    self.hold_recorded(key, id);
                }
                if change.is_some() || is_behind {
                    // SHARDS.md J2, and H7: later QoS 2 waits behind it.
                    let message = self.messages.insert(publication.to_message(Some(&publisher_id)));
                    let named = publication.named.take();
                    let forward = Parked::Forward { message, packet_id: id, session: key, named };
                    self.answer_publish(conn, change, forward);
                } else {
                    let receivers = self.route(now, &publication, &route);
                    let reason = self.receipt(conn, receivers);
                    self.answer_publish(conn, None, Parked::PubRec(id, reason));
                }
            }
        }
        matches::put_back(self, route);
        buf.shrink_to(FORWARDED_BYTES_KEPT);
        self.publishing.forwarded = buf;
    }

    /// Records a publication, if [`Broker::level_of`] says so (SHARDS.md J1); the change that its
    /// answer waits for, if it waits. It comes from a client, under this packet id, or is its Will.
    #[inline]
    fn record_publish(
        &mut self,
        level: Level,
        publication: &mut Publication<'_>,
        route: &Route,
        origin: (&Rc<str>, Option<PacketId>, bool),
    ) -> Option<u64> {
        match level {
            Level::None => None,
            level => self.record_at(level, publication, route, origin),
        }
    }

    fn record_at(
        &mut self,
        level: Level,
        publication: &mut Publication<'_>,
        route: &Route,
        (publisher, packet_id, is_will): (&Rc<str>, Option<PacketId>, bool),
    ) -> Option<u64> {
        let message = self.changes.next_message_id(publication.qos);
        publication.id = Some(message);
        if publication.qos > QoS::AtMostOnce {
            publication.named = matches::name_groups(self, route);
        }
        let mut content = self.out.contents.pop().unwrap_or_default();
        content.fill(publication.topic, publication.forwarded, publication.payload);
        let record = Record::Publish {
            message,
            publisher: publisher.clone(),
            packet_id: packet_id.filter(|_| publication.qos == QoS::ExactlyOnce),
            content,
            qos: publication.qos,
            retain: publication.retain,
            deadline: publication.deadline,
            is_will,
            groups: publication.named.clone(),
        };
        let change = self.changes.record_at(level, &mut self.out.changes, record);
        (publication.qos > QoS::AtMostOnce).then_some(change)
    }

    /// Records the Will of a client that is published now. Whether it has a record.
    pub(super) fn record_will(
        &mut self,
        publication: &mut Publication<'_>,
        route: &Route,
        client_id: &Rc<str>,
        is_will: bool,
    ) -> bool {
        let (topic, qos, retain) = (publication.topic, publication.qos, publication.retain);
        let level = self.level_of(None, route, topic, qos, retain);
        self.record_publish(level, publication, route, (client_id, None, is_will));
        publication.id.is_some()
    }

    /// Gives a publication to the routing half; whether anybody receives it.
    #[inline]
    pub(super) fn route(
        &mut self,
        now: Time,
        publication: &Publication<'_>,
        route: &Route,
    ) -> bool {
        let routed = route::publish(self, now, publication, route);
        if !routed.receivers {
            self.stats.messages_unmatched += 1;
        }
        routed.receivers
    }

    /// The reason of a positive PUBACK or PUBREC.
    pub(super) fn receipt(&self, conn: ConnId, receivers: bool) -> ReasonCode {
        if receivers || self.version(conn) != Version::V5 {
            ReasonCode::SUCCESS
        } else {
            ReasonCode::NO_MATCHING_SUBSCRIBERS
        }
    }

    /// PUBREL (3.6) of a message that we received.
    pub(super) fn on_pubrel(&mut self, conn: ConnId, ack: &Ack<'_>) -> Step {
        let id = ack.packet_id;
        let Some(key) = self.conns.get(conn).and_then(|conn| conn.session) else {
            return Step::Close;
        };
        let Some(session) = self.sessions.get_mut(key) else { return Step::Close };
        let lasts = self.changes.is_enabled() && session.is_durable();
        let is_recorded =
            lasts && session.inbound.as_ref().is_some_and(|inbound| inbound.is_recorded(id));
        let held = session.inbound.as_mut().map_or(Held::No, |inbound| inbound.release(id));
        if held == Held::No {
            self.stats.acks_unknown += 1;
            let reason = ReasonCode::PACKET_IDENTIFIER_NOT_FOUND;
            // PUBREL came twice: the record of the first may be under way still (SHARDS.md J4).
            let pending = if lasts { self.changes.pending() } else { None };
            self.answer_pubrel(conn, pending, id, reason);
            return Step::Next;
        }
        let client_id = is_recorded.then(|| session.client_id.clone());
        if held == Held::Present
            && let Some(conn) = self.conns.get_mut(conn)
        {
            conn.inbound_used = conn.inbound_used.saturating_sub(1);
        }
        let change = client_id.map(|client_id| {
            let record = Record::Released { client_id, packet_id: id };
            self.changes.record(&mut self.out.changes, record)
        });
        self.answer_pubrel(conn, change, id, ReasonCode::SUCCESS);
        Step::Next
    }

    /// PUBCOMP, when the change is committed (SHARDS.md J4).
    fn answer_pubrel(
        &mut self,
        conn: ConnId,
        change: Option<u64>,
        id: PacketId,
        reason: ReasonCode,
    ) {
        match change {
            Some(change) => self.changes.park(change, conn, Parked::PubComp(id, reason)),
            None => self.write_ack(conn, PacketKind::PubComp, id, reason),
        }
    }

    fn held(&self, key: SessionKey, id: PacketId) -> Held {
        let inbound = self.sessions.get(key).and_then(|session| session.inbound.as_ref());
        inbound.map_or(Held::No, |inbound| inbound.get(id))
    }

    /// The change that an answer for this session may have to wait for.
    fn pending_of(&self, key: SessionKey) -> Option<u64> {
        if !self.changes.is_enabled() {
            return None;
        }
        self.sessions.get(key).and_then(|_| self.changes.pending())
    }

    /// A QoS 1 or 2 publication takes a slot of the client's quota, unless it is a repeated one;
    /// `held` says what its packet id is from now on.
    fn use_slot(&mut self, conn: ConnId, key: SessionKey, id: PacketId, held: Held) {
        if held != Held::Earlier
            && let Some(conn) = self.conns.get_mut(conn)
        {
            conn.inbound_used += 1;
        }
        if held == Held::Present
            && let Some(session) = self.sessions.get_mut(key)
        {
            session.inbound.get_or_insert_with(Box::default).hold(id, false);
        }
    }

    /// The same for one with a record: its release is to be recorded, too.
    fn hold_recorded(&mut self, key: SessionKey, id: PacketId) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.inbound.get_or_insert_with(Box::default).hold(id, true);
        }
    }

    /// 3.x knows no quota; the number of packet ids is its bound.
    fn is_quota_used(&self, conn: ConnId) -> bool {
        self.conns.get(conn).is_some_and(|conn| {
            conn.version() == Version::V5
                && conn.inbound_used >= u32::from(self.config.receive_maximum)
        })
    }

    fn count_in(&mut self, qos: QoS) {
        match qos {
            QoS::AtMostOnce => self.stats.messages_in_qos0 += 1,
            QoS::AtLeastOnce => self.stats.messages_in_qos1 += 1,
            QoS::ExactlyOnce => self.stats.messages_in_qos2 += 1,
        }
    }

    pub(super) fn version(&self, conn: ConnId) -> Version {
        self.conns.get(conn).map_or(Version::V311, super::conn::Conn::version)
    }
}

/// Topics that only the server publishes to (4.7.2), or that are filters in truth.
pub(super) fn is_reserved(topic: &str) -> bool {
    topic.starts_with("$SYS/") || topic.starts_with("$share/")
}

/// The last `len` bytes of a frame, which are its payload.
fn shared_tail(frame: &Bytes, len: usize) -> Bytes {
    frame.slice(frame.len().saturating_sub(len)..)
}
