//! An MQTT client as a state machine, for 3.1, 3.1.1 and 5.0: bytes and time come in, bytes and
//! events come out.
//!
//! It owns the session (packet ids, what is open in both directions), the keep alive and the
//! reassembly of frames, but no socket and no clock; whoever drives it does this:
//!
//! 1. [`Client::connect`], then send [`Client::out`] and clear it, after every verb;
//! 2. [`Client::handle_bytes`] with what the socket gave;
//! 3. [`Client::handle_timeout`] when [`Client::next_deadline`] has come;
//! 4. [`Client::handle_closed`] when the network is gone, and 1 again to reconnect.
//!
//! Events come through a callback, borrowed from the received bytes, together with the client
//! itself, so that an answer can be published at once. At QoS 0 nothing is allocated per message in
//! either direction, and at QoS 1 and 2 only what a session that outlives its connection must be
//! able to send again.
//!
//! Invariants: every connection that was begun ends with exactly one [`Event::Disconnected`];
//! after it nothing is sent and nothing is read. Those of the session are in `window.rs` (W1 to W3)
//! and `session.rs` (S1).
#![forbid(unsafe_code)]

mod event;
mod options;
mod receive;
mod session;
mod window;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use event::{Ending, Event, RequestError};
pub use options::{Options, Properties, Will, borrow_pairs};

use crate::clock::Time;
use crate::codec::mqtt::topic::check_topic_name;
use crate::codec::mqtt::{
    Ack, Auth, Disconnect, Packet, PacketId, Publish, PublishProperties, QoS, ReasonCode,
    Subscribe, SubscribeFilter, SubscribeFilters, SubscriptionIds, Unsubscribe, UnsubscribeFilters,
    UserProperties, Version,
};
use crate::limits::REMAINING_LENGTH_MAX;
use session::Session;
use window::Exchange;

/// Longest payload: what a packet can hold beside the longest topic and generous properties.
const PAYLOAD_MAX: usize = REMAINING_LENGTH_MAX - 8 * 65_536;

/// What to publish.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Without wildcards. Empty only with a Topic Alias.
    pub topic: &'a str,
    /// Any bytes.
    pub payload: &'a [u8],
    /// How it is acknowledged.
    pub qos: QoS,
    /// Whether the server keeps it for later subscribers.
    pub retain: bool,
    /// Left out before 5.0.
    pub properties: PublishProperties<'a>,
}

impl<'a> Message<'a> {
    /// Not retained, without properties.
    pub fn new(topic: &'a str, payload: &'a [u8], qos: QoS) -> Self {
        Self { topic, payload, qos, retain: false, properties: PublishProperties::default() }
    }
}

/// What the server said in its CONNACK that it allows; before 5.0 everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Highest QoS of a message to it.
    pub maximum_qos: QoS,
    /// Whether it retains.
    pub retain_available: bool,
    /// Of a packet to it, in bytes.
    pub maximum_packet_size: u32,
    /// Highest alias in a message to it; 0 is none.
    pub topic_alias_maximum: u16,
    /// QoS 1 and 2 messages to it that may be unacknowledged.
    pub receive_maximum: u16,
    /// Seconds; ours, or the server's instead.
    pub keep_alive: u16,
}

impl ServerLimits {
    const NONE: Self = Self {
        maximum_qos: QoS::ExactlyOnce,
        retain_available: true,
        maximum_packet_size: u32::MAX,
        topic_alias_maximum: 0,
        receive_maximum: u16::MAX,
        keep_alive: 0,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No connection.
    Idle,
    /// CONNECT sent.
    Connecting,
    /// CONNACK received.
    Connected,
    /// We said DISCONNECT; the network's end is awaited.
    Disconnecting,
    /// Over, [`Event::Disconnected`] was given.
    Closed,
}

/// Bytes and names that are valid on one connection only.
#[derive(Debug, Default)]
struct Inbound {
    /// The beginning of a frame.
    partial: Vec<u8>,
    /// Topics by alias; alias 1 first.
    aliases: Vec<Option<Box<str>>>,
}

/// One client, over any number of connections. See the [module](self).
#[derive(Debug)]
pub struct Client {
    /// Bytes to send. Whoever sends them takes them out; exchanging the buffer for another is fine.
    pub out: Vec<u8>,
    options: Box<Options>,
    session: Session,
    inbound: Inbound,
    state: State,
    server: ServerLimits,
    last_sent: Time,
    last_received: Time,
    /// When the answer that we wait for (CONNACK, PINGRESP) is too late.
    answer_due: Option<Time>,
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(options: Options) -> Self {
        Self {
            out: Vec::new(),
            options: Box::new(options),
            session: Session::new(),
            inbound: Inbound::default(),
            state: State::Idle,
            server: ServerLimits::NONE,
            last_sent: Time::ZERO,
            last_received: Time::ZERO,
            answer_due: None,
        }
    }

    /// What it was made with; an id that the server assigned has been filled in.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// To change what the next [`Client::connect`] asks for. The version and the client id belong
    /// to the session and must stay.
    pub fn options_mut(&mut self) -> &mut Options {
        &mut self.options
    }

    /// What the server of the current connection allows.
    pub fn server(&self) -> &ServerLimits {
        &self.server
    }

    /// Whether the server has accepted the connection, and it is not over.
    pub fn is_connected(&self) -> bool {
        self.state == State::Connected
    }

    /// Whether the connection is over: send what is in `out`, then close the socket.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Closed | State::Disconnecting)
    }

    /// Whether [`Client::publish`] would accept a QoS 1 or 2 message now.
    pub fn may_publish(&self) -> bool {
        self.is_connected() && self.session.window.may_publish()
    }

    /// QoS 1 and 2 messages of ours that are not yet fully acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.session.window.unacknowledged()
    }

    /// All bytes to send, taken out.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Begins a connection, on a socket that is open: CONNECT goes into `out`.
    ///
    /// # Panics
    /// If the last connection is not over.
    pub fn connect(&mut self, now: Time) {
        assert!(matches!(self.state, State::Idle | State::Closed), "one connection at a time");
        self.out.clear();
        self.inbound = Inbound::default();
        self.server = ServerLimits { keep_alive: self.options.keep_alive, ..ServerLimits::NONE };
        self.options.encode_connect(&mut self.out);
        self.state = State::Connecting;
        self.last_sent = now;
        self.last_received = now;
        self.answer_due = Some(now + self.options.connect_timeout);
    }

    /// Publishes; the packet goes into `out`. The id by which [`Event::Acked`] will name it; none
    /// at QoS 0.
    pub fn publish(
        &mut self,
        now: Time,
        message: &Message<'_>,
    ) -> Result<Option<PacketId>, RequestError> {
        if self.state != State::Connected {
            return Err(RequestError::NotConnected);
        }
        self.check_message(message)?;
        let mut publish = Publish {
            dup: false,
            qos: message.qos,
            retain: message.retain,
            topic: message.topic,
            packet_id: None,
            // A received message's identifiers must not go back [MQTT-3.3.4-6].
            properties: PublishProperties {
                subscription_ids: SubscriptionIds::EMPTY,
                ..message.properties
            },
            payload: message.payload,
        };
        if message.qos != QoS::AtMostOnce {
            if !self.session.window.may_publish() {
                return Err(RequestError::WindowFull);
            }
            publish.packet_id = self.session.window.next_id();
        }
        let packet_id = publish.packet_id;
        let at = self.out.len();
        self.send(now, &Packet::Publish(publish))?;
        if packet_id.is_some() {
            let exchange = match message.qos {
                QoS::ExactlyOnce => Exchange::ExactlyOnce,
                _ => Exchange::AtLeastOnce,
            };
            let kept = self.options.session_outlives_connection();
            let packet = kept.then(|| self.out[at..].to_vec().into_boxed_slice());
            self.session.window.open(exchange, 0, packet);
        }
        Ok(packet_id)
    }

    fn check_message(&self, message: &Message<'_>) -> Result<(), RequestError> {
        if message.payload.len() > PAYLOAD_MAX {
            return Err(RequestError::PacketTooLarge);
        }
        match message.properties.topic_alias {
            None => check_topic_name(message.topic).map_err(RequestError::Topic)?,
            Some(alias) => {
                let known = alias.get() <= self.server.topic_alias_maximum;
                if !known || message.qos != QoS::AtMostOnce {
                    return Err(RequestError::TopicAlias);
                }
                if !message.topic.is_empty() {
                    check_topic_name(message.topic).map_err(RequestError::Topic)?;
                }
            }
        }
        if message.qos > self.server.maximum_qos {
            return Err(RequestError::QosNotSupported); // [MQTT-3.2.2-11]
        }
        if message.retain && !self.server.retain_available {
            return Err(RequestError::RetainNotSupported); // [MQTT-3.2.2-14]
        }
        Ok(())
    }

    /// Subscribes; [`Event::Subscribed`] answers with the id. The subscription identifier and the
    /// user properties are left out before 5.0.
    pub fn subscribe(
        &mut self,
        now: Time,
        filters: &[SubscribeFilter<'_>],
        subscription_id: Option<u32>,
        user_properties: UserProperties<'_>,
    ) -> Result<PacketId, RequestError> {
        let (packet_id, count) = self.next_request(filters.len())?;
        let filters = SubscribeFilters::new(filters);
        let subscribe = Subscribe { packet_id, subscription_id, user_properties, filters };
        self.send(now, &Packet::Subscribe(subscribe))?;
        self.session.window.open(Exchange::Subscribe, count, None);
        Ok(packet_id)
    }

    /// Unsubscribes; [`Event::Unsubscribed`] answers with the id.
    pub fn unsubscribe(
        &mut self,
        now: Time,
        filters: &[&str],
        user_properties: UserProperties<'_>,
    ) -> Result<PacketId, RequestError> {
        let (packet_id, count) = self.next_request(filters.len())?;
        let filters = UnsubscribeFilters::new(filters);
        let unsubscribe = Unsubscribe { packet_id, user_properties, filters };
        self.send(now, &Packet::Unsubscribe(unsubscribe))?;
        self.session.window.open(Exchange::Unsubscribe, count, None);
        Ok(packet_id)
    }

    fn next_request(&self, filters: usize) -> Result<(PacketId, u16), RequestError> {
        if self.state != State::Connected {
            return Err(RequestError::NotConnected);
        }
        let count = match u16::try_from(filters) {
            Ok(count) if count > 0 => count,
            _ => return Err(RequestError::FilterCount),
        };
        let packet_id = self.session.window.next_id().ok_or(RequestError::WindowFull)?;
        Ok((packet_id, count))
    }

    /// Acknowledges a message by hand, when the options say that acknowledgements are manual. Call
    /// it in the order in which the messages came `[MQTT-4.6.0-2]`, `[MQTT-4.6.0-3]`. False when
    /// there is nothing to acknowledge (any more): the message will come again.
    pub fn acknowledge(&mut self, now: Time, packet_id: PacketId, reason: ReasonCode) -> bool {
        let connected = self.state == State::Connected;
        let Some(qos) = self.session.acknowledge(packet_id) else { return false };
        if !connected {
            return false;
        }
        self.answer_publish(now, packet_id, qos, reason);
        true
    }

    /// PINGREQ, beyond those of the keep alive; [`Event::Pong`] answers.
    pub fn ping(&mut self, now: Time) -> Result<(), RequestError> {
        if self.state != State::Connected {
            return Err(RequestError::NotConnected);
        }
        self.send_ping(now);
        Ok(())
    }

    /// Sends AUTH, the client's step of an enhanced authentication.
    pub fn authenticate(&mut self, now: Time, auth: Auth<'_>) -> Result<(), RequestError> {
        let open = matches!(self.state, State::Connecting | State::Connected);
        if !open || self.options.version != Version::V5 {
            return Err(RequestError::NotConnected);
        }
        self.send(now, &Packet::Auth(auth))
    }

    /// Ends the connection with a DISCONNECT. Send `out`, close the socket, and say so with
    /// [`Client::handle_closed`].
    pub fn disconnect(&mut self, now: Time, reason: ReasonCode) {
        self.disconnect_with(now, &Disconnect::new(reason));
    }

    /// The same, with properties.
    pub fn disconnect_with(&mut self, now: Time, disconnect: &Disconnect<'_>) {
        match self.state {
            State::Connected => {
                // Before 5.0 a DISCONNECT is always a normal one: with another reason (the Will
                // shall be published) the network is closed without.
                let normal = disconnect.reason == ReasonCode::NORMAL_DISCONNECTION;
                if normal || self.options.version == Version::V5 {
                    // Too large for the server only with properties: then without them.
                    if self.send(now, &Packet::Disconnect(*disconnect)).is_err() {
                        let plain = Packet::Disconnect(Disconnect::new(disconnect.reason));
                        plain.encode(self.options.version, &mut self.out);
                    }
                }
                self.state = State::Disconnecting;
            }
            State::Connecting => self.state = State::Disconnecting,
            State::Idle | State::Disconnecting | State::Closed => {}
        }
        self.answer_due = None;
    }

    /// When [`Client::handle_timeout`] is to be called next; later changes can only move it later,
    /// except by the verbs of this type.
    pub fn next_deadline(&self) -> Option<Time> {
        let ping =
            (self.state == State::Connected && self.server.keep_alive > 0).then(|| self.ping_due());
        match (self.answer_due, ping) {
            (Some(answer), _) => Some(answer),
            (None, ping) => ping,
        }
    }

    /// Time has passed: sends the keep alive's PINGREQ, or gives the connection up.
    pub fn handle_timeout(&mut self, now: Time, visitor: &mut impl FnMut(&mut Self, Event<'_>)) {
        if let Some(due) = self.answer_due {
            if now >= due {
                let ending = match self.state {
                    State::Connecting => Ending::ConnectTimeout,
                    _ => Ending::KeepAliveTimeout,
                };
                self.end(ending, visitor);
            }
        } else if self.state == State::Connected
            && self.server.keep_alive > 0
            && now >= self.ping_due()
        {
            self.send_ping(now);
        }
    }

    /// The network is gone, by us or by the server. Idempotent.
    pub fn handle_closed(&mut self, visitor: &mut impl FnMut(&mut Self, Event<'_>)) {
        match self.state {
            State::Idle | State::Closed => {}
            State::Disconnecting => self.end(Ending::Requested, visitor),
            State::Connecting | State::Connected => self.end(Ending::Network, visitor),
        }
    }

    /// PINGREQ is due when nothing was sent (the server closes after one and a half of it), or when
    /// nothing came (to learn that the server is gone).
    fn ping_due(&self) -> Time {
        self.last_sent.min(self.last_received).plus_secs(u32::from(self.server.keep_alive))
    }

    fn send_ping(&mut self, now: Time) {
        Packet::PingReq.encode(self.options.version, &mut self.out);
        self.last_sent = now;
        let wait = match self.server.keep_alive {
            0 => self.options.connect_timeout,
            seconds => Duration::from_secs(u64::from(seconds)),
        };
        self.answer_due.get_or_insert(now + wait);
    }

    /// Encodes into `out`, unless the server refuses packets of this size `[MQTT-3.2.2-15]`.
    fn send(&mut self, now: Time, packet: &Packet<'_>) -> Result<(), RequestError> {
        let version = self.options.version;
        let limit = self.server.maximum_packet_size;
        if limit != u32::MAX && packet.encoded_len(version) > limit as usize {
            return Err(RequestError::PacketTooLarge);
        }
        packet.encode(version, &mut self.out);
        self.last_sent = now;
        Ok(())
    }

    /// PUBACK or PUBREC.
    fn answer_publish(&mut self, now: Time, packet_id: PacketId, qos: QoS, reason: ReasonCode) {
        let ack = Ack::new(packet_id, reason);
        let packet = match qos {
            QoS::ExactlyOnce => Packet::PubRec(ack),
            _ => Packet::PubAck(ack),
        };
        if qos == QoS::ExactlyOnce && reason.is_error() {
            self.session.refuse(packet_id);
        }
        packet.encode(self.options.version, &mut self.out);
        self.last_sent = now;
    }

    /// The connection is over.
    fn end(&mut self, ending: Ending<'_>, visitor: &mut impl FnMut(&mut Self, Event<'_>)) {
        self.state = State::Closed;
        self.answer_due = None;
        self.inbound = Inbound::default();
        visitor(self, Event::Disconnected(ending));
    }
}
