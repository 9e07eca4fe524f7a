//! QoS 2 publications that have waited: for their record (SHARDS.md J2), or behind others of their
//! connection (H7).
#![forbid(unsafe_code)]

use std::rc::Rc;

use crate::clock::Time;
use crate::codec::mqtt::PacketId;
use crate::ids::ConnId;

use super::change::Parked;
use super::message::{MessageKey, Stored};
use super::publication::{Memo, Publication};
use super::session::SessionKey;
use super::{Broker, matches};

impl<'a> Publication<'a> {
    /// One that was kept.
    fn of_stored(stored: &'a Stored, publisher_id: &'a str, publisher: SessionKey) -> Self {
        Self {
            topic: stored.topic(),
            payload: stored.payload(),
            qos: stored.qos,
            retain: stored.retain,
            deadline: stored.deadline,
            forwarded: stored.forwarded(),
            as_received: None,
            publisher: Some(publisher),
            publisher_id,
            id: stored.id,
            memo: Memo::default(),
        }
    }
}

impl Broker {
    /// It goes to its receivers: its record is committed, or nobody durable wants it.
    pub(super) fn forward_committed(
        &mut self,
        now: Time,
        conn: ConnId,
        message: MessageKey,
        packet_id: PacketId,
        session: SessionKey,
    ) {
        let stored = self.messages.take(message);
        let publisher = stored.publisher.clone().unwrap_or_default();
        let publication = Publication::of_stored(&stored, &publisher, session);
        let route = matches::find(self, publication.topic);
        let receivers = self.route(now, &publication, &route);
        matches::put_back(self, route);
        self.messages.give_back(message, stored);
        self.messages.release(message);
        let reason = self.receipt(conn, receivers);
        self.send_parked(conn, &Parked::PubRec(packet_id, reason), "");
    }

    /// One without a record leaves: nobody durable wanted it when it came. If somebody does by now,
    /// it is recorded first, and what is parked behind it waits with it. Whether it is so. *Else* it
    /// comes again after a crash that its PUBREC does not survive: twice.
    pub(super) fn record_late(
        &mut self,
        conn: ConnId,
        message: MessageKey,
        packet_id: PacketId,
        session: SessionKey,
    ) -> bool {
        let mut stored = self.messages.take(message);
        let publisher: Rc<str> = stored.publisher.clone().unwrap_or_default();
        let mut publication = Publication::of_stored(&stored, &publisher, session);
        let route = matches::find(self, publication.topic);
        let (topic, qos, retain) = (publication.topic, publication.qos, publication.retain);
        let level = self.level_of(Some(conn), &route, topic, qos, retain);
        matches::put_back(self, route);
        let origin = (&publisher, Some(packet_id), false);
        let change = self.record_publish(level, &mut publication, origin);
        stored.id = publication.id;
        self.messages.give_back(message, stored);
        if let Some(change) = change {
            self.hold_recorded(session, packet_id);
            self.changes.hold_back(change);
        }
        change.is_some()
    }
}
