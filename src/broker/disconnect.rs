//! How a connection ends, and with it perhaps its session.
//!
//! DISCONNECT by the client, an end that the broker makes, a network connection that is gone, the
//! broker's own end: each comes through [`Broker::leave`] or [`Broker::on_closed`], which take the
//! session away at that moment. A session without a connection ends, or waits for the next until
//! its time is over; its Will is published, put off or deleted as the way it was left says. The last
//! bytes stay in the outbox for the shard to send.
#![forbid(unsafe_code)]

use crate::clock::Time;
use crate::codec::mqtt::{Disconnect, Packet, ReasonCode, Version};
use crate::ids::ConnId;

use super::change::Record;
use super::conn::State;
use super::policy::Refusal;
use super::session::{NEVER, SessionKey};
use super::timers::Due;
use super::{Broker, Disconnection, Step, membership, unsubscribe};

/// How a connection loses its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    /// The client said good-bye: its Will is deleted [MQTT-3.14.4-3].
    Normal,
    /// In any other way: its Will is published.
    Lost,
    /// A newer connection takes the session, or ends it when it starts clean.
    TakenOver { clean_start: bool },
    /// The broker stops: Wills stay where they are.
    Shutdown,
}

impl Broker {
    /// DISCONNECT (3.14) by the client.
    pub(super) fn on_disconnect(
        &mut self,
        now: Time,
        id: ConnId,
        disconnect: &Disconnect<'_>,
    ) -> Step {
        if let Some(secs) = disconnect.session_expiry_interval {
            let origin = self.conns.origin(id);
            // 3.14.2.2.2: a session that was to end with its connection does.
            if secs > 0 && origin.is_some_and(|origin| origin.connect_expiry_secs == 0) {
                return self.protocol_error(now, id, ReasonCode::PROTOCOL_ERROR);
            }
            let key = self.conns.get(id).and_then(|conn| conn.session);
            if let Some(session) = key.and_then(|key| self.sessions.get_mut(key)) {
                session.expiry_secs = secs.min(self.config.session_expiry_max_secs);
            }
        }
        self.stats.disconnects_by_client += 1;
        self.log_end(id, "the client", &disconnect.reason);
        let leaving = match disconnect.reason {
            ReasonCode::NORMAL_DISCONNECTION => Leaving::Normal,
            _ => Leaving::Lost,
        };
        self.leave(now, id, leaving);
        Step::Close
    }

    /// A rule was broken by a packet that is well-formed in itself.
    pub(crate) fn protocol_error(&mut self, now: Time, id: ConnId, reason: ReasonCode) -> Step {
        self.protocol_error_saying(now, id, &reason.into())
    }

    /// The same, with words for people.
    pub(crate) fn protocol_error_saying(
        &mut self,
        now: Time,
        id: ConnId,
        refusal: &Refusal,
    ) -> Step {
        self.stats.protocol_errors += 1;
        self.disconnect_saying(now, id, refusal.reason, &refusal.why)
    }

    /// Ends a connection with a reason, for those who can be told [MQTT-4.13.1-1].
    pub(crate) fn disconnect(&mut self, now: Time, id: ConnId, reason: ReasonCode) -> Step {
        self.disconnect_saying(now, id, reason, "")
    }

    /// The same, with words for people.
    pub(crate) fn disconnect_saying(
        &mut self,
        now: Time,
        id: ConnId,
        reason: ReasonCode,
        why: &str,
    ) -> Step {
        self.stats.disconnects_by_broker += 1;
        self.log_end(id, "the broker", &reason);
        self.write_disconnect(id, reason, why, None);
        self.leave(now, id, Leaving::Lost);
        Step::Close
    }

    /// Ends a connection that is owed no word.
    pub(super) fn close_silently(&mut self, now: Time, id: ConnId) -> Step {
        self.leave(now, id, Leaving::Lost);
        Step::Close
    }

    pub(super) fn write_disconnect(
        &mut self,
        id: ConnId,
        reason: ReasonCode,
        why: &str,
        server_reference: Option<&str>,
    ) {
        let Some(conn) = self.conns.get(id) else { return };
        // Never before CONNACK [MQTT-3.14.0-1], and 3.x servers have no such packet.
        if conn.state == State::Online && conn.version() == Version::V5 {
            let reason_string = Some(why).filter(|why| !why.is_empty());
            let bare = Packet::Disconnect(Disconnect::new(reason));
            let told = Disconnect { server_reference, ..Disconnect::new(reason) };
            let said = Packet::Disconnect(Disconnect { reason_string, ..told });
            let told = Packet::Disconnect(told);
            self.write_explained(id, &said, if self.fits(id, &told) { &told } else { &bare });
        }
    }

    /// The connection is to be closed; it loses its session now.
    pub(super) fn leave(&mut self, now: Time, id: ConnId, leaving: Leaving) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.state == State::Closing {
            return;
        }
        let (session, has_parked) = (conn.session.take(), conn.parked > 0);
        if let Some(timer) = conn.keep_alive_timer.take() {
            self.timers.cancel(timer);
        }
        self.give_up_exchange(id);
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.rare = None;
        self.conns.set_state(id, State::Closing);
        self.out.close.push(id);
        if let Some(key) = session {
            self.leave_parked(key, has_parked);
            self.detach(now, key, leaving);
        }
    }

    /// The network connection is gone.
    pub(super) fn on_closed(&mut self, now: Time, id: ConnId, how: Disconnection) {
        if self.conns.get(id).is_some_and(|conn| conn.session.is_some()) {
            self.log_end(id, "the network", &how.as_str());
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        let (session, has_parked) = (conn.session.take(), conn.parked > 0);
        self.stats.connections_closed += 1;
        self.give_up_exchange(id);
        if let Some(timer) = self.conns.free(id) {
            self.timers.cancel(timer);
        }
        if let Some(key) = session {
            if how != Disconnection::Closed {
                self.stats.disconnects_lost += 1;
            }
            self.leave_parked(key, has_parked);
            self.detach(now, key, Leaving::Lost);
        }
    }

    fn leave_parked(&mut self, key: SessionKey, has_parked: bool) {
        if has_parked && let Some(session) = self.sessions.get(key) {
            self.changes.leave_parked(session.client_id.clone());
        }
    }

    /// A session has lost its connection: it ends, or waits for the next.
    fn detach(&mut self, now: Time, key: SessionKey, leaving: Leaving) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.conn = None;
        if let Some(outgoing) = &mut session.outgoing {
            outgoing.exchanges.suspend();
        }
        if let Some(inbound) = &mut session.inbound {
            inbound.suspend();
            if inbound.len() == 0 {
                session.inbound = None;
            }
        }
        let (expiry_secs, ends) = (session.expiry_secs, session.expiry_secs == 0);
        let delay_secs = session.will.as_ref().map(|will| will.delay_secs);
        match (leaving, delay_secs) {
            (_, None) => {}
            // It is recorded, or lost with the session; nobody is there to hear it.
            (Leaving::Shutdown, Some(_)) => session.will = None,
            (Leaving::Normal, Some(_)) => self.delete_will(key),
            // The end of the session publishes it, and is no later (3.1.3.2.2).
            (_, Some(0)) => self.publish_will(now, key),
            (_, Some(_)) if ends => self.publish_will(now, key),
            (Leaving::TakenOver { clean_start: true }, Some(_)) => self.publish_will(now, key),
            // The newer connection is there before the delay is over.
            (Leaving::TakenOver { clean_start: false }, Some(_)) => self.delete_will(key),
            (Leaving::Lost, Some(delay_secs)) => {
                let at = now.plus_secs(delay_secs);
                let timer = self.timers.arm(at, Due::Will(key));
                if let Some(will) = self.sessions.get_mut(key).and_then(|s| s.will.as_mut()) {
                    will.timer = Some(timer);
                }
            }
        }
        if ends {
            return self.end_session(now, key);
        }
        let ends_at = if expiry_secs == NEVER { Time::MAX } else { now.plus_secs(expiry_secs) };
        let timer =
            (expiry_secs != NEVER).then(|| self.timers.arm(ends_at, Due::SessionExpiry(key)));
        if let Some(session) = self.sessions.get_mut(key) {
            session.expiry_timer = timer;
            session.ends_at = ends_at;
            if self.changes.is_enabled() && session.is_durable() {
                session.is_recorded = true;
                let client_id = session.client_id.clone();
                let record = Record::Session { client_id, expiry_secs, offline_since: Some(now) };
                self.changes.record(&mut self.out.changes, record);
            }
        }
        membership::on_presence(self, key, false);
    }

    /// A session is over, with all that it holds; it has no connection any more. Its Will, if one
    /// is left, is published.
    pub(super) fn end_session(&mut self, now: Time, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let timer = session.expiry_timer.take();
        if let Some(timer) = timer {
            self.timers.cancel(timer);
        }
        self.publish_will(now, key);
        unsubscribe::end_session(self, now, key);
        let Some(mut session) = self.sessions.remove(key) else { return };
        self.give_up_messages(&mut session);
        self.run_moves(now);
        self.stats.sessions_ended += 1;
        if session.is_recorded {
            self.changes.end(&mut self.out.changes, session.client_id);
        }
    }

    /// The end of the broker (SHARDS.md section 7).
    pub(super) fn on_shutdown(&mut self, now: Time) {
        let (reason, server_reference) = self.config.farewell();
        for id in self.conns.ids() {
            self.log_end(id, "the broker", &reason);
            self.write_disconnect(id, reason, "", server_reference.as_deref());
            self.leave(now, id, Leaving::Shutdown);
        }
    }
}
