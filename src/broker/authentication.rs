//! Enhanced authentication (4.12): the exchange of AUTH packets before CONNACK, and again later.
//!
//! What is said is an authentication [`Method`]'s matter; who may say what, and when, is decided
//! here. Between a CONNECT with a method and its CONNACK the connection is `Authenticating`: it
//! has no session, no Will, and takes over nobody until its exchange has succeeded. A
//! re-authentication runs beside the session, which goes on as before; its failure ends the
//! connection.
//!
//! Owns the registry of methods and, per connection, which method it chose; the state of an
//! exchange exists only while it runs. Invariants: an exchange that runs has a deadline, the time
//! allowed for a CONNECT; the data and the number of its steps are bounded by `limits`; it is
//! counted once as begun, and at its end as succeeded or failed. Nothing here is ever logged but
//! the method's name.
#![forbid(unsafe_code)]

use std::fmt;

use crate::clock::Time;
use crate::codec::mqtt::{Auth, Connect, Packet, ReasonCode};
use crate::ids::ConnId;
use crate::limits::{
    AUTHENTICATION_DATA_BYTES_MAX, AUTHENTICATION_METHODS_MAX, AUTHENTICATION_STEPS_MAX,
};

use super::auth::ConnectRequest;
use super::conn::{Conn, State};
use super::timers::{Due, TimerKey};
use super::{Accepted, Broker, Step};

/// Who begins an exchange.
#[derive(Clone, Copy)]
pub struct Claim<'a> {
    /// The connection, to be named with an outcome that comes later.
    pub conn: ConnId,
    /// How that came in.
    pub accepted: Accepted,
    /// The client id, an assigned one included.
    pub client_id: &'a str,
    /// The user name of the CONNECT; in a re-authentication the one that is in force.
    pub user_name: Option<&'a str>,
    /// The password of the CONNECT. Never to be logged.
    pub password: Option<&'a [u8]>,
    /// Whether the client is online already.
    pub is_again: bool,
}

impl fmt::Debug for Claim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("conn", &self.conn)
            .field("client_id", &self.client_id)
            .field("user_name", &self.user_name)
            .field("is_again", &self.is_again)
            .finish_non_exhaustive()
    }
}

/// How a step of an exchange came out.
#[derive(Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The client is to go on; Authentication Data for it, if any, of at most 65,535 bytes.
    Continue(Option<Vec<u8>>),
    /// The client is who it says it is.
    Success {
        /// The last Authentication Data for it, if any, of at most 65,535 bytes.
        data: Option<Vec<u8>>,
        /// Its user name, if the method has found one; else that of its CONNECT stands. A
        /// re-authentication that finds another one fails.
        user_name: Option<Box<str>>,
    },
    /// It is not: a reason of CONNACK, 0x80 or above. In a re-authentication one that DISCONNECT
    /// does not have becomes "Not authorized".
    Failure(ReasonCode),
    /// [`Broker::handle_authentication`] will say.
    Later,
}

/// Without the data: they are secrets.
impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Continue(_) => f.write_str("Continue"),
            Self::Success { user_name, .. } => write!(f, "Success as {user_name:?}"),
            Self::Failure(reason) => write!(f, "Failure: {reason}"),
            Self::Later => f.write_str("Later"),
        }
    }
}

/// An authentication method, on one shard. It must not block: what takes time comes out later.
pub trait Method: fmt::Debug {
    /// Its name, which clients give as Authentication Method: 1 to 65,535 bytes.
    fn name(&self) -> &str;
    /// Begins an exchange. Its first step follows at once, with the data of CONNECT or of the AUTH
    /// that asks for a re-authentication.
    fn begin(&mut self, claim: &Claim<'_>) -> Box<dyn Exchange>;
}

/// One client's way through a method.
pub trait Exchange {
    /// The client's next Authentication Data, if its packet had any. Never to be logged.
    fn step(&mut self, data: Option<&[u8]>) -> Outcome;
}

/// All methods of a shard.
#[derive(Debug, Default)]
pub(crate) struct Methods(Vec<Box<dyn Method>>);

/// What a connection that chose a method knows of it.
#[derive(Debug)]
pub(crate) struct Authentication {
    /// Its number in [`Methods`].
    method: usize,
    /// Of the CONNECT, or what the method has found.
    user_name: Option<Box<str>>,
    /// While it runs.
    running: Option<Running>,
}

/// An exchange that is under way.
struct Running {
    exchange: Box<dyn Exchange>,
    /// Steps taken.
    steps: u32,
    /// Whether the method has announced its outcome for later.
    is_pending: bool,
    /// Until it has fired.
    timer: Option<TimerKey>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("steps", &self.steps).finish_non_exhaustive()
    }
}

/// What CONNACK says of a successful exchange.
pub(crate) struct Proof {
    pub(crate) method: Box<str>,
    pub(crate) data: Option<Vec<u8>>,
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof").field("method", &self.method).finish_non_exhaustive()
    }
}

impl Methods {
    fn find(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|method| method.name() == name)
    }

    fn name(&self, index: usize) -> &str {
        self.0[index].name()
    }
}

impl Broker {
    /// Clients may authenticate by this method from now on. To be called before any connects.
    pub fn add_method(&mut self, method: Box<dyn Method>) {
        let methods = &self.methods;
        assert!(methods.find(method.name()).is_none(), "{} is there already", method.name());
        assert!(methods.0.len() < AUTHENTICATION_METHODS_MAX, "a bounded number of methods");
        self.methods.0.push(method);
    }

    /// The outcome that [`Outcome::Later`] announced. One that nobody waits for is ignored, a
    /// connection that is gone too.
    pub fn handle_authentication(&mut self, now: Time, conn: ConnId, outcome: Outcome) {
        let Some(running) = self.running_of(conn) else { return };
        if outcome == Outcome::Later || !std::mem::take(&mut running.is_pending) {
            return;
        }
        let was_paused = self.conns.state(conn) == Some(State::Authenticating);
        if self.on_outcome(now, conn, outcome) == Step::Next && was_paused {
            self.resume(now, conn);
        }
    }

    /// A CONNECT that names a method, checked in all else.
    pub(super) fn begin_authentication(
        &mut self,
        now: Time,
        id: ConnId,
        accepted: Accepted,
        connect: &Connect<'_>,
    ) -> Step {
        let properties = &connect.properties;
        let name = properties.authentication_method.unwrap_or_default();
        // [MQTT-4.12.0-1]
        let Some(method) = self.methods.find(name) else {
            return self.refuse(now, id, connect.client_id, ReasonCode::BAD_AUTHENTICATION_METHOD);
        };
        let data = properties.authentication_data;
        if is_too_long(data) {
            return self.refuse(now, id, connect.client_id, ReasonCode::QUOTA_EXCEEDED);
        }
        let connecting = Box::new(self.read_connect(connect));
        let claim = Claim {
            conn: id,
            accepted,
            client_id: connecting.client_id(),
            user_name: connect.user_name,
            password: connect.password,
            is_again: false,
        };
        self.log_authenticating(id, connect);
        let exchange = self.methods.0[method].begin(&claim);
        let user_name = connect.user_name.map(Box::from);
        let running = self.run_exchange(now, id, exchange);
        if let Some(conn) = self.conns.get_mut(id) {
            let authentication = Authentication { method, user_name, running: Some(running) };
            let rare = conn.rare();
            rare.connecting = Some(connecting);
            rare.authentication = Some(authentication);
        }
        self.conns.set_state(id, State::Authenticating);
        self.step(now, id, data)
    }

    fn run_exchange(&mut self, now: Time, id: ConnId, exchange: Box<dyn Exchange>) -> Running {
        self.stats.authentications_begun += 1;
        let timer = self.timers.arm(now + self.config.connect_timeout, Due::Authentication(id));
        Running { exchange, steps: 0, is_pending: false, timer: Some(timer) }
    }

    /// A packet between a CONNECT with a method and its CONNACK: AUTH or DISCONNECT
    /// [MQTT-3.1.2-30].
    pub(super) fn on_packet_before_connack(
        &mut self,
        now: Time,
        id: ConnId,
        packet: &Packet<'_>,
        len: usize,
    ) -> Step {
        // Its end may take over a session, which may publish a Will.
        if matches!(packet, Packet::Auth(_)) && self.must_sources_wait() {
            self.conns.set_waiting(id);
            return Step::Wait;
        }
        self.stats.packets_in += 1;
        self.stats.bytes_in += len as u64;
        match packet {
            Packet::Auth(auth) => match self.check_auth(id, auth) {
                Ok(()) => self.step(now, id, auth.authentication_data),
                Err(reason) => self.refuse_packet(now, id, reason),
            },
            Packet::Disconnect(disconnect) => self.on_disconnect(now, id, disconnect),
            _ => self.refuse_packet(now, id, ReasonCode::PROTOCOL_ERROR),
        }
    }

    /// AUTH (3.15) of a client that is online.
    pub(super) fn on_auth(&mut self, now: Time, id: ConnId, auth: &Auth<'_>) -> Step {
        if let Err(reason) = self.check_auth(id, auth) {
            return self.refuse_packet(now, id, reason);
        }
        if auth.reason == ReasonCode::RE_AUTHENTICATE {
            self.begin_again(now, id);
        }
        self.step(now, id, auth.authentication_data)
    }

    /// Whether this AUTH may come now.
    fn check_auth(&self, id: ConnId, auth: &Auth<'_>) -> Result<(), ReasonCode> {
        let conn = self.conns.get(id).ok_or(ReasonCode::PROTOCOL_ERROR)?;
        // [MQTT-4.12.0-7]
        let authentication = conn.authentication().ok_or(ReasonCode::PROTOCOL_ERROR)?;
        let may_come = match (auth.reason, &authentication.running) {
            // [MQTT-4.12.0-3]; while the method thinks it is not the client's turn.
            (ReasonCode::CONTINUE_AUTHENTICATION, Some(running)) => !running.is_pending,
            // [MQTT-4.12.1-1]
            (ReasonCode::RE_AUTHENTICATE, None) => conn.state == State::Online,
            _ => false,
        };
        // [MQTT-4.12.0-5], [MQTT-4.12.1-1]
        let method = self.methods.name(authentication.method);
        if !may_come || auth.authentication_method != Some(method) {
            return Err(ReasonCode::PROTOCOL_ERROR);
        }
        match is_too_long(auth.authentication_data) {
            true => Err(ReasonCode::QUOTA_EXCEEDED),
            false => Ok(()),
        }
    }

    fn begin_again(&mut self, now: Time, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        let Some(session) = conn.session.and_then(|key| self.sessions.get(key)) else { return };
        let Some(accepted) = self.conns.accepted(id) else { return };
        let Some(authentication) = conn.authentication() else { return };
        let claim = Claim {
            conn: id,
            accepted,
            client_id: &session.client_id,
            user_name: authentication.user_name.as_deref(),
            password: None,
            is_again: true,
        };
        let exchange = self.methods.0[authentication.method].begin(&claim);
        let running = self.run_exchange(now, id, exchange);
        if let Some(authentication) = self.authentication_of(id) {
            authentication.running = Some(running);
        }
    }

    fn authentication_of(&mut self, id: ConnId) -> Option<&mut Authentication> {
        self.conns.get_mut(id)?.rare.as_mut()?.authentication.as_mut()
    }

    fn running_of(&mut self, id: ConnId) -> Option<&mut Running> {
        self.authentication_of(id)?.running.as_mut()
    }

    /// One step of the exchange that runs.
    fn step(&mut self, now: Time, id: ConnId, data: Option<&[u8]>) -> Step {
        let Some(running) = self.running_of(id) else { return Step::Close };
        running.steps += 1;
        let outcome = running.exchange.step(data);
        self.on_outcome(now, id, outcome)
    }

    fn on_outcome(&mut self, now: Time, id: ConnId, outcome: Outcome) -> Step {
        match outcome {
            Outcome::Continue(Some(data)) | Outcome::Success { data: Some(data), .. }
                if data.len() > usize::from(u16::MAX) =>
            {
                self.fail(now, id, ReasonCode::IMPLEMENTATION_SPECIFIC_ERROR)
            }
            Outcome::Continue(data) => self.go_on(now, id, data.as_deref()),
            Outcome::Success { data, user_name } => self.succeed(now, id, data, user_name),
            Outcome::Failure(reason) => self.fail(now, id, reason),
            Outcome::Later => {
                if let Some(running) = self.running_of(id) {
                    running.is_pending = true;
                }
                if self.conns.state(id) != Some(State::Authenticating) {
                    return Step::Next;
                }
                self.pause(id);
                Step::Pause
            }
        }
    }

    /// The client's turn again [MQTT-4.12.0-2].
    fn go_on(&mut self, now: Time, id: ConnId, data: Option<&[u8]>) -> Step {
        if self.running_of(id).is_none_or(|running| running.steps >= AUTHENTICATION_STEPS_MAX) {
            return self.fail(now, id, ReasonCode::QUOTA_EXCEEDED);
        }
        self.write_auth(now, id, ReasonCode::CONTINUE_AUTHENTICATION, data)
    }

    fn write_auth(
        &mut self,
        now: Time,
        id: ConnId,
        reason: ReasonCode,
        data: Option<&[u8]>,
    ) -> Step {
        let Some(method) = self.authentication_of(id).map(|a| a.method) else {
            return Step::Close;
        };
        // [MQTT-4.12.0-5]
        let auth = Auth {
            reason,
            authentication_method: Some(self.methods.0[method].name()),
            authentication_data: data,
            ..Auth::default()
        };
        let packet = Packet::Auth(auth);
        match self.conns.write(id, &packet, &mut self.out, &mut self.stats) {
            true => Step::Next,
            // Without it the client cannot go on [MQTT-3.1.2-24].
            false => self.fail(now, id, ReasonCode::PACKET_TOO_LARGE),
        }
    }

    fn succeed(
        &mut self,
        now: Time,
        id: ConnId,
        data: Option<Vec<u8>>,
        user_name: Option<Box<str>>,
    ) -> Step {
        let is_online = self.conns.state(id) == Some(State::Online);
        let Some(authentication) = self.authentication_of(id) else { return Step::Close };
        if is_online && user_name.is_some() && user_name != authentication.user_name {
            return self.fail(now, id, ReasonCode::NOT_AUTHORIZED);
        }
        if user_name.is_some() {
            authentication.user_name = user_name;
        }
        let method = authentication.method;
        self.end_exchange(id);
        self.stats.authentications_succeeded += 1;
        if is_online {
            return self.write_auth(now, id, ReasonCode::SUCCESS, data.as_deref());
        }
        let method = self.methods.name(method);
        let Some(accepted) = self.conns.accepted(id) else { return Step::Close };
        let Some(conn) = self.conns.get_mut(id) else { return Step::Close };
        let Some(mut connecting) = conn.take_connecting() else { return Step::Close };
        let version = crate::codec::mqtt::Version::V5;
        let request = ConnectRequest {
            conn: id,
            accepted,
            version,
            client_id: connecting.client_id(),
            user_name: conn.authentication().and_then(|a| a.user_name.as_deref()),
            password: None,
            method: Some(method),
        };
        let decision = self.auth.connect(&request);
        connecting.proof = Some(Proof { method: method.into(), data });
        self.on_decision(now, id, decision, connecting)
    }

    /// A packet that may not come now.
    fn refuse_packet(&mut self, now: Time, id: ConnId, reason: ReasonCode) -> Step {
        self.stats.protocol_errors += u64::from(reason == ReasonCode::PROTOCOL_ERROR);
        self.fail(now, id, reason)
    }

    /// The exchange has failed, whosever fault it is: CONNACK before the client is online
    /// [MQTT-4.12.0-4], then DISCONNECT [MQTT-4.12.1-2]; in both cases the end.
    pub(super) fn fail(&mut self, now: Time, id: ConnId, reason: ReasonCode) -> Step {
        let conn = self.conns.get_mut(id);
        if conn.as_ref().is_some_and(|conn| conn.state == State::Online) {
            return self.disconnect(now, id, of_disconnect(reason));
        }
        let connecting = conn.and_then(Conn::take_connecting);
        let client_id = connecting.as_ref().map_or("", |connecting| connecting.client_id());
        let reason = match reason {
            // Of a PUBLISH, which may not come yet; CONNACK does not have it.
            ReasonCode::TOPIC_ALIAS_INVALID => ReasonCode::PROTOCOL_ERROR,
            reason if reason.is_error() => reason,
            _ => ReasonCode::NOT_AUTHORIZED,
        };
        self.refuse(now, id, client_id, reason)
    }

    /// The time for it is over.
    pub(super) fn on_authentication_timeout(&mut self, now: Time, id: ConnId) {
        let Some(running) = self.running_of(id) else { return };
        running.timer = None;
        self.stats.authentications_timed_out += 1;
        let _ = self.fail(now, id, ReasonCode::NOT_AUTHORIZED);
    }

    /// An exchange that still ran when its connection ended has failed.
    pub(super) fn give_up_exchange(&mut self, id: ConnId) {
        if self.end_exchange(id) {
            self.stats.authentications_failed += 1;
        }
    }

    /// Takes the exchange's state away; whether there was one.
    fn end_exchange(&mut self, id: ConnId) -> bool {
        let running = self.authentication_of(id).and_then(|a| a.running.take());
        if let Some(timer) = running.as_ref().and_then(|running| running.timer) {
            self.timers.cancel(timer);
        }
        running.is_some()
    }
}

fn is_too_long(data: Option<&[u8]>) -> bool {
    data.is_some_and(|data| data.len() > AUTHENTICATION_DATA_BYTES_MAX)
}

/// Of what a method may say, what DISCONNECT can (table 3-10).
fn of_disconnect(reason: ReasonCode) -> ReasonCode {
    match reason {
        ReasonCode::UNSPECIFIED_ERROR
        | ReasonCode::PROTOCOL_ERROR
        | ReasonCode::IMPLEMENTATION_SPECIFIC_ERROR
        | ReasonCode::SERVER_BUSY
        | ReasonCode::PACKET_TOO_LARGE
        | ReasonCode::QUOTA_EXCEEDED
        | ReasonCode::ADMINISTRATIVE_ACTION => reason,
        _ => ReasonCode::NOT_AUTHORIZED,
    }
}
