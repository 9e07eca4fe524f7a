//! Exchanges with a receiver: PUBACK, PUBREC and PUBCOMP of what we sent, and the end of each.
//!
//! An exchange that is over gives its message back and makes room for the next. For a session that
//! outlives us each end is recorded; PUBREL leaves when the record of its PUBREC is committed
//! (SHARDS.md J3).
#![forbid(unsafe_code)]

use crate::clock::Time;
use crate::codec::mqtt::{Ack, PacketId, PacketKind, QoS, ReasonCode};
use crate::ids::ConnId;

use super::change::{Parked, Record};
use super::deliver::online;
use super::inflight::Stage;
use super::matches::Route;
use super::message::{MessageId, MessageKey, Messages};
use super::publication::Publication;
use super::queue::{Left, Queued};
use super::session::SessionKey;
use super::shared_sub::Chosen;
use super::{Broker, Step, replay};

impl Broker {
    /// PUBACK of a message that we sent.
    pub(super) fn on_puback(&mut self, now: Time, conn: ConnId, ack: &Ack<'_>) -> Step {
        let Some((key, index, exchange_qos, _)) = self.find_exchange(conn, ack.packet_id) else {
            self.stats.acks_unknown += 1;
            return Step::Next;
        };
        if exchange_qos != QoS::AtLeastOnce {
            return self.protocol_error(now, conn, ReasonCode::PROTOCOL_ERROR);
        }
        self.finish_exchange(now, key, index);
        Step::Next
    }

    /// PUBREC of a message that we sent.
    pub(super) fn on_pubrec(&mut self, now: Time, conn: ConnId, ack: &Ack<'_>) -> Step {
        let packet_id = ack.packet_id;
        let Some((key, index, qos, stage)) = self.find_exchange(conn, packet_id) else {
            self.stats.acks_unknown += 1;
            // It is over here; the answer lets the client end it as well.
            if !ack.reason.is_error() {
                let reason = ReasonCode::PACKET_IDENTIFIER_NOT_FOUND;
                self.write_ack(conn, PacketKind::PubRel, packet_id, reason);
            }
            return Step::Next;
        };
        if qos != QoS::ExactlyOnce {
            return self.protocol_error(now, conn, ReasonCode::PROTOCOL_ERROR);
        }
        if ack.reason.is_error() && matches!(stage, Stage::Published | Stage::Assigning) {
            // [MQTT-4.4.0-2]: it is over, and there is no PUBREL.
            self.finish_exchange(now, key, index);
            return Step::Next;
        }
        match stage {
            Stage::Published | Stage::Assigning => self.receive_exchange(key, conn, index),
            Stage::Received => {}
            Stage::Released(_) => {
                self.write_ack(conn, PacketKind::PubRel, packet_id, ReasonCode::SUCCESS);
            }
        }
        Step::Next
    }

    /// PUBCOMP of a message that we sent.
    pub(super) fn on_pubcomp(&mut self, now: Time, conn: ConnId, ack: &Ack<'_>) -> Step {
        match self.find_exchange(conn, ack.packet_id) {
            Some((key, index, _, Stage::Released(_) | Stage::Received)) => {
                self.finish_exchange(now, key, index);
            }
            // Before PUBREL it says nothing.
            _ => self.stats.acks_unknown += 1,
        }
        Step::Next
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
                self.record_end(key, stored_id(&self.messages, message), group.as_ref());
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

    pub(super) fn finish_exchange(&mut self, now: Time, key: SessionKey, index: usize) {
        match self.settle_exchange(key, index) {
            true => replay::on_room(self, key),
            false => self.pump(now, key),
        }
    }

    /// An exchange is over; whether nothing else waits for the session's window.
    pub(super) fn settle_exchange(&mut self, key: SessionKey, index: usize) -> bool {
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
                self.record_end(key, stored_id(&self.messages, message), group.as_ref());
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
        group: Option<&Chosen>,
    ) {
        // Without a record of it there is no end to be recorded.
        if let Some(message) = id
            && self.changes.is_enabled()
        {
            self.record_end_of(key, message, group);
        }
    }

    /// The same for what leaves the queue unsent, with its reference.
    pub(super) fn drop_left(&mut self, key: SessionKey, Left { body, group, .. }: Left) {
        let id = body.release(&mut self.messages);
        self.record_end(key, id, group.as_ref());
    }

    fn record_end_of(&mut self, key: SessionKey, message: MessageId, group: Option<&Chosen>) {
        if let Some(group) = group {
            return self.record_group_end(group, Some(message));
        }
        let client_id = match self.sessions.get(key) {
            Some(session) if session.is_durable() => session.client_id.clone(),
            _ => return,
        };
        self.changes.record(&mut self.out.changes, Record::Acked { client_id, message });
    }

    /// The group is done with this message, whoever had it, and whether anybody is known to be in it
    /// or not (SHARDS.md J9).
    pub(super) fn record_group_end(&mut self, chosen: &Chosen, message: Option<MessageId>) {
        if let Some(message) = message.filter(|_| chosen.is_owed) {
            let record = Record::GroupAck { group: chosen.group.clone(), message };
            self.changes.record(&mut self.out.changes, record);
        }
    }

    /// A message leaves behind its PUB: groups that this names, and that are gone, do not get it.
    pub(super) fn end_in_groups_gone(&mut self, publication: &Publication<'_>, route: &Route) {
        for group in publication.named() {
            if !route.matches.groups.contains(&group.id()) {
                let chosen = Chosen { group: group.clone(), spread: 0, is_owed: true };
                self.record_group_end(&chosen, publication.id);
            }
        }
    }
}

fn stored_id(messages: &Messages, message: MessageKey) -> Option<MessageId> {
    messages.get(message).id
}
