//! From CONNECT to CONNACK: who a connection is, and which session it gets.
//!
//! CONNECT is checked, decided about (`auth`), and then accepted: an older connection of the same
//! client is told and closed, its session continued or ended, and CONNACK leaves when what it
//! promises is committed (SHARDS.md H5). How it ends is `disconnect`.
#![forbid(unsafe_code)]

use crate::clock::Time;
use crate::codec::mqtt::{
    ConnAck, ConnAckProperties, Connect, DecodeError, Packet, QoS, ReasonCode, Version,
};
use crate::ids::ConnId;

use super::alias::Aliases;
use super::auth::{ConnectRequest, Decision};
use super::authentication::Proof;
use super::change::{Parked, Record};
use super::conn::{Conn, State};
use super::disconnect::Leaving;
use super::policy::Refusal;
use super::session::{NEVER, SessionKey};
use super::will::Will;
use super::{Broker, Level, Step, membership};

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
        let Some(accepted) = self.conns.accepted(id) else { return Step::Close };
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
        if let Some(conn) = self.conns.get_mut(id) {
            conn.rare().connecting = Some(connecting);
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
            .and_then(Conn::take_connecting)
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
        let has_ended = self.changes.is_ending(&connecting.client_id);
        if self.changes.is_down() && (has_ended || self.is_recorded_for(id, existing, &connecting))
        {
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
            let is_over = session.is_some_and(|s| s.ends_at <= now);
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
        if self.changes.last() == changes {
            self.stand_behind_earlier(id, &connecting.client_id);
        }
        if let Some(conn) = self.conns.get_mut(id) {
            conn.rare().connecting = Some(connecting);
        }
        // An earlier CONNECT, to which nothing was said yet, may have ended what there was.
        if self.changes.last() == changes && !has_ended {
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
        self.config.durability.of_listener(self.conns.listener(id))
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
        self.conns.origin(id).map_or(Time::ZERO, |origin| origin.at)
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
        session.ends_at = Time::MAX;
        // A Will still waiting is not to be sent [MQTT-3.1.3-9]; the new one takes its place.
        let old_will = session.will.take();
        let waiting = [session.expiry_timer.take(), old_will.as_ref().and_then(|will| will.timer)];
        for timer in waiting.into_iter().flatten() {
            self.timers.cancel(timer);
        }
        let had_will = old_will.is_some();
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
        self.conns.set_connect_expiry(id, connecting.expiry_secs);
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
        let Some(connecting) = conn.take_connecting() else { return Step::Close };
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
        membership::on_presence(self, key, true);
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
}
