//! From CONNECT to DISCONNECT: who a connection is, which session it gets, and how it ends.
//!
//! CONNECT is checked, decided about (`auth`), and then accepted: an older connection of the same
//! client is told and closed, its session continued or ended, and CONNACK leaves when what it
//! promises is committed (SHARDS.md H5). Every end of a connection comes through
//! [`Broker::leave`], which takes its session away at that moment; the last bytes stay in the
//! outbox for the shard to send.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::clock::Time;
use crate::codec::mqtt::{
    ConnAck, ConnAckProperties, Connect, DecodeError, Disconnect, Packet, QoS, ReasonCode, Version,
};
use crate::ids::ConnId;
use crate::limits::INPUT_AGE_COARSE;

use super::alias::Aliases;
use super::auth::{ConnectRequest, Decision};
use super::authentication::Proof;
use super::change::{Parked, Record};
use super::conn::State;
use super::policy::Refusal;
use super::session::{NEVER, SessionKey};
use super::timers::Due;
use super::will::Will;
use super::{Broker, Disconnection, Level, Step, subscribe};

/// A CONNECT that was read, as long as it is not answered.
#[derive(Debug)]
pub(crate) struct Connecting {
    client_id: Box<str>,
    is_assigned: bool,
    clean_start: bool,
    keep_alive_secs: u16,
    expiry_secs: u32,
    receive_maximum: u16,
    topic_alias_maximum: u16,
    packet_size_max: u32,
    problem_information: bool,
    response_information: bool,
    will: Option<Box<Will>>,
    /// Of an enhanced authentication.
    pub(super) proof: Option<Proof>,
    /// What CONNACK says, once that is known.
    pub(super) session_present: bool,
}

/// How a connection loses its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    /// The client said good-bye: its Will is deleted [MQTT-3.14.4-3].
    Normal,
    /// In any other way: its Will is published.
    Lost,
    /// A newer connection takes the session, or ends it when it starts clean.
    TakenOver { clean_start: bool },
    /// The broker stops: Wills stay where they are.
    Shutdown,
}

/// Makes the client ids that the server assigns: a counter behind a mixer (SplitMix64), keyed.
#[derive(Debug)]
pub(crate) struct Assigner(u64);

impl Assigner {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> String {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        format!("noctule-{:016x}", z ^ z >> 31)
    }
}

impl Connecting {
    pub(super) fn client_id(&self) -> &str {
        &self.client_id
    }
}

impl Broker {
    /// CONNECT (3.1), the first packet of a connection.
    pub(super) fn on_connect(
        &mut self,
        now: Time,
        id: ConnId,
        connect: &Connect<'_>,
        len: usize,
    ) -> Step {
        if self.must_sources_wait() {
            self.conns.set_waiting(id);
            return Step::Wait;
        }
        self.stats.packets_in += 1;
        self.stats.bytes_in += len as u64;
        let Some(conn) = self.conns.get_mut(id) else { return Step::Close };
        conn.set_version(connect.version);
        conn.packet_size_max = connect.properties.maximum_packet_size.unwrap_or(u32::MAX);
        conn.problem_information = connect.properties.request_problem_information.unwrap_or(true);
        let Some(accepted) = conn.cold.as_ref().map(|cold| cold.accepted) else {
            return Step::Close;
        };
        if let Some(reason) = self.config.refers_always() {
            self.stats.connects_referred += 1;
            return self.refuse(now, id, connect.client_id, reason);
        }
        if let Err(refusal) = self.check_connect(connect) {
            let Refusal { reason, why, .. } = refusal;
            return self.refuse_saying(now, id, connect.client_id, reason, &why);
        }
        // A Will is kept, and takes no more than its packet.
        if connect.will.is_some() && !self.messages.may_charge(len, self.config.memory_budget) {
            self.stats.connects_refused_memory += 1;
            return self.refuse(now, id, connect.client_id, ReasonCode::QUOTA_EXCEEDED);
        }
        if connect.properties.authentication_method.is_some() {
            return self.begin_authentication(now, id, accepted, connect);
        }
        let request = ConnectRequest {
            conn: id,
            accepted,
            version: connect.version,
            client_id: connect.client_id,
            user_name: connect.user_name,
            password: connect.password,
            method: None,
        };
        let decision = self.auth.connect(&request);
        if let Decision::Refuse(reason) = decision {
            return self.refuse(now, id, connect.client_id, reason);
        }
        let connecting = Box::new(self.read_connect(connect));
        self.on_decision(now, id, decision, connecting)
    }

    /// Goes on with a CONNECT as was decided.
    pub(super) fn on_decision(
        &mut self,
        now: Time,
        id: ConnId,
        decision: Decision,
        connecting: Box<Connecting>,
    ) -> Step {
        match decision {
            Decision::Accept => return self.accept(now, id, connecting),
            Decision::Refuse(reason) => {
                return self.refuse(now, id, &connecting.client_id, reason);
            }
            Decision::Later => {}
        }
        if let Some(cold) = self.conns.get_mut(id).and_then(|conn| conn.cold.as_mut()) {
            cold.connecting = Some(connecting);
        }
        self.conns.set_state(id, State::Deciding);
        self.pause(id);
        Step::Pause
    }

    /// The decision that was announced for later.
    pub(super) fn on_connect_decision(&mut self, now: Time, id: ConnId, decision: Decision) {
        if self.conns.state(id) != Some(State::Deciding) || decision == Decision::Later {
            return;
        }
        let Some(connecting) = self
            .conns
            .get_mut(id)
            .filter(|conn| conn.session.is_none())
            .and_then(|conn| conn.cold.as_mut())
            .and_then(|cold| cold.connecting.take())
        else {
            return;
        };
        let step = match decision {
            Decision::Refuse(reason) => self.refuse(now, id, &connecting.client_id, reason),
            _ => self.accept(now, id, connecting),
        };
        if step == Step::Next {
            self.resume(now, id);
        }
    }

    /// What a CONNECT may not ask of this server.
    fn check_connect(&mut self, connect: &Connect<'_>) -> Result<(), Refusal> {
        let may_be_empty = match connect.version {
            Version::V31 => false,
            // [MQTT-3.1.3-8 of 3.1.1]: without an id there is no state to come back to.
            Version::V311 => connect.clean_start && self.config.assign_client_ids,
            Version::V5 => self.config.assign_client_ids,
        };
        if connect.client_id.is_empty() && !may_be_empty {
            return Err(ReasonCode::CLIENT_IDENTIFIER_NOT_VALID.into());
        }
        self.config.check_connect(&mut self.stats, connect)?;
        // A bridge that is taken as one relies on not getting back what it brought, and on the
        // publisher's RETAIN. We have neither for 3.x: refused, it comes back as a plain client.
        if connect.bridge {
            return Err(ReasonCode::UNSUPPORTED_PROTOCOL_VERSION.into());
        }
        Ok(())
    }

    pub(super) fn read_connect(&mut self, connect: &Connect<'_>) -> Connecting {
        let properties = &connect.properties;
        let is_assigned = connect.client_id.is_empty();
        let client_id =
            if is_assigned { self.assign_client_id() } else { connect.client_id.into() };
        let asked = match connect.version {
            Version::V5 => properties.session_expiry_interval.unwrap_or(0),
            _ if connect.clean_start => 0,
            _ => NEVER,
        };
        Connecting {
            client_id,
            is_assigned,
            clean_start: connect.clean_start,
            keep_alive_secs: connect.keep_alive,
            expiry_secs: asked,
            receive_maximum: properties.receive_maximum.unwrap_or(u16::MAX),
            topic_alias_maximum: properties.topic_alias_maximum.unwrap_or(0),
            packet_size_max: properties.maximum_packet_size.unwrap_or(u32::MAX),
            problem_information: properties.request_problem_information.unwrap_or(true),
            response_information: properties.request_response_information.unwrap_or(false),
            will: connect.will.as_ref().map(|will| Box::new(Will::new(will, &self.messages))),
            proof: None,
            session_present: false,
        }
    }

    /// A client id that has its home here and is nobody's (SHARDS.md H6).
    fn assign_client_id(&mut self) -> Box<str> {
        loop {
            let id = self.assigner.next();
            let home = self.place.key.home_of(&id, self.place.shards);
            if home == self.place.shard && self.sessions.find(&id).is_none() {
                return id.into();
            }
        }
    }

    /// The client may connect: it gets its session.
    fn accept(&mut self, now: Time, id: ConnId, mut connecting: Box<Connecting>) -> Step {
        if !self.can_take_connack(id, &connecting) {
            // [MQTT-3.1.2-24]: refused before anything else happens, and cannot be told.
            self.stats.dropped_too_large += 1;
            return self.close_silently(now, id);
        }
        let changes = self.changes.last();
        let existing = self.sessions.find(&connecting.client_id);
        if self.changes.is_down() && self.is_recorded_for(id, existing, &connecting) {
            // SHARDS.md J8: nothing has happened yet.
            self.stats.refused_disk_session += 1;
            return self.refuse(now, id, &connecting.client_id, ReasonCode::SERVER_UNAVAILABLE);
        }
        if let Some(old) = existing.and_then(|key| self.sessions.get(key)).and_then(|s| s.conn) {
            if self.accepted_at(id) < self.accepted_at(old) {
                // SHARDS.md H3: this is the older one; it came the longer way.
                self.stats.takeovers_late += 1;
                return self.close_silently(now, id);
            }
            self.take_over(now, old, connecting.clean_start);
        }
        // The session may have ended with its connection, or its time may be over.
        let mut existing = self.sessions.find(&connecting.client_id);
        if let Some(key) = existing {
            let session = self.sessions.get(key);
            let is_over = session.is_some_and(|s| s.ends_at.is_some_and(|at| at <= now));
            if connecting.clean_start || is_over {
                self.end_session(now, key);
                existing = None;
            }
        }
        if existing.is_none() && self.sessions.len() >= self.config.sessions_max {
            self.stats.connects_refused_sessions += 1;
            return self.refuse(now, id, &connecting.client_id, ReasonCode::QUOTA_EXCEEDED);
        }
        connecting.session_present = existing.is_some();
        let key = existing.unwrap_or_else(|| self.begin_session(id, &connecting.client_id));
        self.attach(id, key, &mut connecting);
        if let Some(cold) = self.conns.get_mut(id).and_then(|conn| conn.cold.as_mut()) {
            cold.connecting = Some(connecting);
        }
        if self.changes.last() == changes {
            return self.welcome(now, id);
        }
        // What CONNACK says of the session is to be as durable as that.
        self.conns.set_state(id, State::Deciding);
        self.changes.park(self.changes.last(), id, Parked::ConnAck);
        self.pause(id);
        Step::Pause
    }

    /// Whether what this CONNECT does to its session is to be recorded.
    fn is_recorded_for(
        &self,
        id: ConnId,
        existing: Option<SessionKey>,
        connecting: &Connecting,
    ) -> bool {
        let existing = existing.and_then(|key| self.sessions.get(key));
        let lasts = connecting.expiry_secs > 0 && self.level_at(id) > Level::None;
        self.changes.is_enabled() && existing.map_or(lasts, |s| s.is_recorded || lasts)
    }

    /// A new session, at the level of the listener that this connection came through.
    fn begin_session(&mut self, id: ConnId, client_id: &str) -> SessionKey {
        let is_volatile = self.level_at(id) == Level::None;
        let key = self.sessions.insert(client_id);
        if let Some(session) = self.sessions.get_mut(key) {
            session.is_volatile = is_volatile;
        }
        key
    }

    fn level_at(&self, id: ConnId) -> Level {
        let cold = self.conns.get(id).and_then(|conn| conn.cold.as_ref());
        self.config.durability.of_listener(cold.map(|cold| cold.accepted.listener))
    }

    /// Whether CONNACK, without what may be left out, is within the client's Maximum Packet Size.
    fn can_take_connack(&self, id: ConnId, connecting: &Connecting) -> bool {
        let expiry_secs = connecting.expiry_secs.min(self.config.session_expiry_max_secs);
        let keep_alive_secs = self.keep_alive_of(connecting.keep_alive_secs);
        let properties = self.connack_properties(connecting, expiry_secs, keep_alive_secs);
        let connack = ConnAck { session_present: false, reason: ReasonCode::SUCCESS, properties };
        self.fits(id, &Packet::ConnAck(connack))
    }

    fn accepted_at(&self, id: ConnId) -> Time {
        let cold = self.conns.get(id).and_then(|conn| conn.cold.as_ref());
        cold.map_or(Time::ZERO, |cold| cold.accepted.at)
    }

    /// The older connection of a client is told [MQTT-3.1.4-3] and closed; its Will is judged.
    fn take_over(&mut self, now: Time, old: ConnId, clean_start: bool) {
        self.stats.takeovers += 1;
        self.log_end(old, "a newer connection", &ReasonCode::SESSION_TAKEN_OVER);
        self.write_disconnect(old, ReasonCode::SESSION_TAKEN_OVER, "", None);
        self.leave(now, old, Leaving::TakenOver { clean_start });
    }

    /// Ties session and connection together, with what this CONNECT says.
    fn attach(&mut self, id: ConnId, key: SessionKey, connecting: &mut Connecting) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.conn = Some(id);
        let expiry_secs = connecting.expiry_secs.min(self.config.session_expiry_max_secs);
        session.expiry_secs = expiry_secs;
        session.ends_at = None;
        let waiting = [session.expiry_timer.take(), session.will_timer.take()];
        for timer in waiting.into_iter().flatten() {
            self.timers.cancel(timer);
        }
        // A Will still waiting is not to be sent [MQTT-3.1.3-9]; the new one takes its place.
        let had_will = session.will.take().is_some();
        session.will = connecting.will.take();
        if self.changes.is_enabled() && (session.is_recorded || session.is_durable()) {
            session.is_recorded = true;
            let client_id = session.client_id.clone();
            let changes = &mut self.out.changes;
            let record =
                Record::Session { client_id: client_id.clone(), expiry_secs, offline_since: None };
            self.changes.record(changes, record);
            match &session.will {
                Some(will) => {
                    self.changes.record(changes, will.to_record(client_id));
                }
                None if had_will => {
                    self.changes.record(changes, Record::WillDeleted { client_id });
                }
                None => {}
            }
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.session = Some(key);
        conn.window = connecting.receive_maximum.min(self.config.in_flight_max);
        conn.aliases =
            Aliases::new(connecting.topic_alias_maximum, self.config.topic_aliases_out_max);
        conn.packet_size_max = connecting.packet_size_max;
        conn.problem_information = connecting.problem_information;
        if let Some(cold) = &mut conn.cold {
            cold.connect_expiry_secs = connecting.expiry_secs;
        }
    }

    /// The changes that CONNACK waited for are committed.
    pub(super) fn on_connect_committed(&mut self, now: Time, id: ConnId) {
        let conn = self.conns.get(id);
        if conn.is_some_and(|conn| conn.state == State::Deciding && conn.session.is_some())
            && self.welcome(now, id) == Step::Next
        {
            self.resume(now, id);
        }
    }

    /// CONNACK, then what the session has waiting.
    fn welcome(&mut self, now: Time, id: ConnId) -> Step {
        let Some(conn) = self.conns.get_mut(id) else { return Step::Close };
        let Some(key) = conn.session else { return Step::Close };
        let Some(connecting) = conn.cold.as_mut().and_then(|cold| cold.connecting.take()) else {
            return Step::Close;
        };
        let expiry_secs = self.sessions.get(key).map_or(0, |session| session.expiry_secs);
        let keep_alive_secs = self.keep_alive_of(connecting.keep_alive_secs);
        self.conns.set_state(id, State::Online);
        // [MQTT-3.1.2-28]
        let response_information = match connecting.response_information {
            true => self.config.response_information_for(&connecting.client_id),
            false => None,
        };
        let properties = self.connack_properties(&connecting, expiry_secs, keep_alive_secs);
        let connack = |response_information| {
            Packet::ConnAck(ConnAck {
                session_present: connecting.session_present,
                reason: ReasonCode::SUCCESS,
                properties: ConnAckProperties { response_information, ..properties },
            })
        };
        let told = connack(response_information.as_deref());
        let connack = if self.fits(id, &told) { told } else { connack(None) };
        if !self.write(id, &connack) {
            self.leave(now, id, Leaving::Lost);
            return Step::Close;
        }
        self.stats.connects_accepted += 1;
        self.log_connected(id, &connecting, keep_alive_secs);
        match connecting.session_present {
            true => self.stats.sessions_resumed += 1,
            false => self.stats.sessions_created += 1,
        }
        self.arm_keep_alive(now, id, keep_alive_secs);
        self.resume_exchanges(now, key);
        subscribe::on_presence(self, key, true);
        Step::Next
    }

    /// What 5.0 clients learn of this server; what is as the specification presumes is left out.
    fn connack_properties<'a>(
        &self,
        connecting: &'a Connecting,
        expiry_secs: u32,
        keep_alive_secs: u16,
    ) -> ConnAckProperties<'a> {
        let config = &self.config;
        let unless = |available: bool| (!available).then_some(false);
        let nonzero = |value: u16| (value > 0).then_some(value);
        ConnAckProperties {
            session_expiry_interval: (expiry_secs != connecting.expiry_secs).then_some(expiry_secs),
            receive_maximum: (config.receive_maximum < u16::MAX).then_some(config.receive_maximum),
            // [MQTT-3.2.2-9] and its like: never 2.
            maximum_qos: Some(config.maximum_qos).filter(|qos| *qos < QoS::ExactlyOnce),
            retain_available: unless(config.retain_available),
            maximum_packet_size: Some(config.maximum_packet_size),
            assigned_client_id: connecting.is_assigned.then_some(&*connecting.client_id),
            topic_alias_maximum: nonzero(config.topic_alias_maximum),
            wildcard_subscription_available: unless(config.wildcard_subscriptions),
            subscription_ids_available: unless(config.subscription_identifiers),
            shared_subscription_available: unless(config.shared_subscriptions),
            server_keep_alive: (keep_alive_secs != connecting.keep_alive_secs)
                .then_some(keep_alive_secs),
            // [MQTT-4.12.0-5], [MQTT-4.12.0-6]
            authentication_method: connecting.proof.as_ref().map(|proof| &*proof.method),
            authentication_data: connecting.proof.as_ref().and_then(|proof| proof.data.as_deref()),
            ..ConnAckProperties::default()
        }
    }

    /// The keep alive in force: the client's, within the server's cap.
    fn keep_alive_of(&self, asked_secs: u16) -> u16 {
        match self.config.keep_alive_max_secs {
            0 => asked_secs,
            cap if asked_secs == 0 => cap,
            cap => asked_secs.min(cap),
        }
    }

    fn arm_keep_alive(&mut self, now: Time, id: ConnId, secs: u16) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        // One and a half times [MQTT-3.1.2-22].
        conn.silence_max_ms = u32::from(secs) * 1500;
        conn.heard = now;
        if secs > 0 {
            let at = now + Duration::from_millis(u64::from(conn.silence_max_ms));
            conn.keep_alive_timer = Some(self.timers.arm(at, Due::KeepAlive(id)));
        }
    }

    /// A refused CONNECT: its CONNACK, then the end. There is no session, and no Will.
    /// `client_id` is for the log, empty where it is not known.
    pub(super) fn refuse(
        &mut self,
        now: Time,
        id: ConnId,
        client_id: &str,
        reason: ReasonCode,
    ) -> Step {
        self.refuse_saying(now, id, client_id, reason, "")
    }

    /// The same, with words for people.
    pub(super) fn refuse_saying(
        &mut self,
        now: Time,
        id: ConnId,
        client_id: &str,
        reason: ReasonCode,
        why: &str,
    ) -> Step {
        self.stats.connects_refused += 1;
        self.log_refused(id, client_id, reason);
        let server_reference = self.config.server_reference(reason).map(str::to_owned);
        let server_reference = server_reference.as_deref();
        let connack = |reason_string, server_reference| {
            let properties =
                ConnAckProperties { reason_string, server_reference, ..Default::default() };
            Packet::ConnAck(ConnAck { session_present: false, reason, properties })
        };
        let said = connack(Some(why).filter(|why| !why.is_empty()), server_reference);
        let (told, bare) = (connack(None, server_reference), connack(None, None));
        self.write_explained(id, &said, if self.fits(id, &told) { &told } else { &bare });
        self.close_silently(now, id)
    }

    /// A first packet that is none. Only a CONNECT, as far as it can be told, is answered; a
    /// malformed one of 3.x "without sending a CONNACK" [MQTT-3.1.4-1 of 3.1.1].
    pub(super) fn refuse_undecoded(&mut self, now: Time, id: ConnId, error: &DecodeError) -> Step {
        let is_answered = error.version == Some(Version::V5)
            || error.reason == ReasonCode::UNSUPPORTED_PROTOCOL_VERSION;
        match error.version.filter(|_| is_answered) {
            Some(version) => {
                if let Some(conn) = self.conns.get_mut(id) {
                    conn.set_version(version);
                }
                self.refuse_saying(now, id, "", error.reason, &error.to_string())
            }
            None => self.close_silently(now, id),
        }
    }

    /// DISCONNECT (3.14) by the client.
    pub(super) fn on_disconnect(
        &mut self,
        now: Time,
        id: ConnId,
        disconnect: &Disconnect<'_>,
    ) -> Step {
        if let Some(secs) = disconnect.session_expiry_interval {
            let cold = self.conns.get(id).and_then(|conn| conn.cold.as_ref());
            // 3.14.2.2.2: a session that was to end with its connection does.
            if secs > 0 && cold.is_some_and(|cold| cold.connect_expiry_secs == 0) {
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

    /// PINGREQ (3.12).
    pub(super) fn on_pingreq(&mut self, id: ConnId) -> Step {
        self.write(id, &Packet::PingResp);
        Step::Next
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

    fn write_disconnect(
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
    fn leave(&mut self, now: Time, id: ConnId, leaving: Leaving) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.state == State::Closing {
            return;
        }
        let session = conn.session.take();
        if let Some(timer) = conn.keep_alive_timer.take() {
            self.timers.cancel(timer);
        }
        self.give_up_exchange(id);
        let Some(conn) = self.conns.get_mut(id) else { return };
        if let Some(cold) = &mut conn.cold {
            cold.connecting = None;
            cold.aliases = Vec::new();
        }
        self.conns.set_state(id, State::Closing);
        self.out.close.push(id);
        if let Some(key) = session {
            self.detach(now, key, leaving);
        }
    }

    /// The network connection is gone.
    pub(super) fn on_closed(&mut self, now: Time, id: ConnId, how: Disconnection) {
        if self.conns.get(id).is_some_and(|conn| conn.session.is_some()) {
            self.log_end(id, "the network", &how.as_str());
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        let session = conn.session.take();
        self.stats.connections_closed += 1;
        self.give_up_exchange(id);
        if let Some(timer) = self.conns.free(id) {
            self.timers.cancel(timer);
        }
        if let Some(key) = session {
            if how != Disconnection::Closed {
                self.stats.disconnects_lost += 1;
            }
            self.detach(now, key, Leaving::Lost);
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
                if let Some(session) = self.sessions.get_mut(key) {
                    session.will_timer = Some(timer);
                }
            }
        }
        if ends {
            return self.end_session(now, key);
        }
        let ends_at = (expiry_secs != NEVER).then(|| now.plus_secs(expiry_secs));
        let timer = ends_at.map(|at| self.timers.arm(at, Due::SessionExpiry(key)));
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
        subscribe::on_presence(self, key, false);
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
        subscribe::end_session(self, now, key);
        let Some(mut session) = self.sessions.remove(key) else { return };
        self.give_up_messages(&mut session);
        self.run_moves(now);
        self.stats.sessions_ended += 1;
        if session.is_recorded {
            let client_id = session.client_id;
            self.changes.record(&mut self.out.changes, Record::SessionEnded { client_id });
        }
    }

    /// All deadlines up to `now`, a bounded number of them.
    pub(super) fn run_timers(&mut self, now: Time) {
        for _ in 0..crate::limits::DEFERRED_PER_TICK {
            if self.must_sources_wait() {
                return;
            }
            let Some(due) = self.timers.pop(now) else { return };
            match due {
                Due::KeepAlive(id) => self.on_keep_alive(now, id),
                Due::Authentication(id) => self.on_authentication_timeout(now, id),
                Due::SessionExpiry(key) => {
                    if let Some(session) = self.sessions.get_mut(key) {
                        session.expiry_timer = None;
                        self.end_session(now, key);
                    }
                }
                Due::Will(key) => {
                    if let Some(session) = self.sessions.get_mut(key) {
                        session.will_timer = None;
                        self.publish_will(now, key);
                    }
                }
                #[cfg(test)]
                Due::Test(_) => {}
            }
        }
    }

    /// A client may have been silent for too long; it is asked only now, so that hearing from it
    /// costs nothing.
    fn on_keep_alive(&mut self, now: Time, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.keep_alive_timer = None;
        let silence_max = Duration::from_millis(u64::from(conn.silence_max_ms));
        // While we do not read it, it cannot be heard (SHARDS.md L7).
        if conn.is_held() {
            conn.heard = now;
        }
        let at = conn.heard + silence_max;
        if at > now {
            conn.was_spared = false;
            conn.keep_alive_timer = Some(self.timers.arm(at, Due::KeepAlive(id)));
            return;
        }
        self.out.silent.push(id);
    }

    /// It was not heard for too long; `age` ago something of it has arrived, read or not. What a
    /// shard that was busy has not read yet counts (SHARDS.md L7): it is given time to be read, once,
    /// so that a client that never ends a packet is not kept by its single bytes.
    pub(super) fn on_silence(&mut self, now: Time, id: ConnId, age: Duration) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let arrived = now - age;
        if arrived > conn.heard + INPUT_AGE_COARSE && !conn.was_spared {
            conn.was_spared = true;
            let at = now + Duration::from_millis(u64::from(conn.silence_max_ms / 4));
            conn.keep_alive_timer = Some(self.timers.arm(at, Due::KeepAlive(id)));
            return;
        }
        self.stats.keep_alive_timeouts += 1;
        let _ = self.disconnect(now, id, ReasonCode::KEEP_ALIVE_TIMEOUT);
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
