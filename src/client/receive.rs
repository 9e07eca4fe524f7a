//! What comes from the server: frames out of reads, and one function per packet.
#![forbid(unsafe_code)]

use super::event::{Ending, Event};
use super::session::Arrival;
use super::window::Exchange;
use super::{Client, Inbound, ServerLimits, State};
use crate::clock::Time;
use crate::codec::mqtt::{
    Ack, ConnAck, Disconnect, Packet, PacketId, Publish, QoS, ReasonCode, Side, SubAck, Version,
    decode, frame_len,
};
use crate::limits::REMAINING_LENGTH_MAX;

/// The longest fixed header.
const FIXED_HEADER_MAX: usize = 5;
/// A buffer for a cut frame that has grown beyond this is given back.
const PARTIAL_KEEP: usize = 16 * 1024;
/// Reserved at most on the word of a header alone.
const PARTIAL_RESERVE: usize = 1024 * 1024;

/// The peer broke a rule: what a 5.0 server is told, and the words for our user.
struct Violation {
    reason: ReasonCode,
    what: &'static str,
}

const fn protocol(what: &'static str) -> Violation {
    Violation { reason: ReasonCode::PROTOCOL_ERROR, what }
}

impl Client {
    /// Takes what the network gave, in pieces of any size, and tells what it means.
    pub fn handle_bytes(
        &mut self,
        now: Time,
        bytes: &[u8],
        visitor: &mut impl FnMut(&mut Self, Event<'_>),
    ) {
        self.last_received = now;
        // Taken out so that events can borrow from it while the visitor has the client.
        let mut inbound = std::mem::take(&mut self.inbound);
        self.read_frames(now, bytes, &mut inbound, visitor);
        if !self.is_over() {
            self.inbound = inbound;
        }
    }

    fn read_frames(
        &mut self,
        now: Time,
        mut bytes: &[u8],
        inbound: &mut Inbound,
        visitor: &mut impl FnMut(&mut Self, Event<'_>),
    ) {
        let mut partial = std::mem::take(&mut inbound.partial);
        if !partial.is_empty() {
            if !self.complete(&mut partial, &mut bytes, visitor) {
                inbound.partial = partial;
                return;
            }
            self.on_frame(now, &partial, inbound, visitor);
            partial.clear();
            if partial.capacity() > PARTIAL_KEEP {
                partial = Vec::new();
            }
        }
        while !bytes.is_empty() && self.reads() {
            match self.next_frame_len(bytes, visitor) {
                Some(len) if len <= bytes.len() => {
                    let (frame, rest) = bytes.split_at(len);
                    bytes = rest;
                    self.on_frame(now, frame, inbound, visitor);
                }
                known => {
                    partial.reserve(known.unwrap_or(0).min(PARTIAL_RESERVE));
                    partial.extend_from_slice(bytes);
                    break;
                }
            }
        }
        inbound.partial = partial;
    }

    /// Moves bytes to the cut frame until it is whole; false when it is not yet, or never will be.
    fn complete(
        &mut self,
        partial: &mut Vec<u8>,
        bytes: &mut &[u8],
        visitor: &mut impl FnMut(&mut Self, Event<'_>),
    ) -> bool {
        loop {
            if !self.reads() {
                return false;
            }
            let wanted = match self.next_frame_len(partial, visitor) {
                Some(len) => len,
                None => partial.len() + 1,
            };
            let missing = wanted - partial.len();
            if missing == 0 {
                return true;
            }
            if bytes.is_empty() {
                return false;
            }
            let (piece, rest) = bytes.split_at(missing.min(bytes.len()));
            partial.extend_from_slice(piece);
            *bytes = rest;
        }
    }

    /// Whether packets are still wanted.
    fn reads(&self) -> bool {
        matches!(self.state, State::Connecting | State::Connected)
    }

    /// The length of the frame that `bytes` begins with; `None` when more are needed to know it, or
    /// when it is not one (then the connection is over).
    fn next_frame_len(
        &mut self,
        bytes: &[u8],
        visitor: &mut impl FnMut(&mut Self, Event<'_>),
    ) -> Option<usize> {
        match frame_len(bytes) {
            Ok(Some(len)) => {
                let limit = match self.options.maximum_packet_size {
                    Some(limit) => limit as usize,
                    None => FIXED_HEADER_MAX + REMAINING_LENGTH_MAX,
                };
                if len > limit {
                    let reason = ReasonCode::PACKET_TOO_LARGE;
                    let what = "packet larger than our Maximum Packet Size";
                    self.give_up(Ending::Protocol { reason, what }, reason, visitor);
                    return None;
                }
                Some(len)
            }
            Ok(None) => None,
            Err(error) => {
                self.give_up(Ending::Malformed(error), error.reason, visitor);
                None
            }
        }
    }

    fn on_frame(
        &mut self,
        now: Time,
        frame: &[u8],
        inbound: &mut Inbound,
        visitor: &mut impl FnMut(&mut Self, Event<'_>),
    ) {
        match decode(frame, Some(self.options.version), Side::Client) {
            Ok(packet) => {
                if let Err(violation) = self.on_packet(now, packet, inbound, visitor) {
                    let Violation { reason, what } = violation;
                    self.give_up(Ending::Protocol { reason, what }, reason, visitor);
                }
            }
            Err(error) => self.give_up(Ending::Malformed(error), error.reason, visitor),
        }
    }

    /// Ends the connection because the server is wrong; a 5.0 server is told why `[MQTT-4.13.1-1]`.
    fn give_up(
        &mut self,
        ending: Ending<'_>,
        reason: ReasonCode,
        visitor: &mut impl FnMut(&mut Self, Event<'_>),
    ) {
        if self.options.version == Version::V5 && self.state == State::Connected {
            Packet::Disconnect(Disconnect::new(reason)).encode(Version::V5, &mut self.out);
        }
        self.end(ending, visitor);
    }

    fn on_packet(
        &mut self,
        now: Time,
        packet: Packet<'_>,
        inbound: &mut Inbound,
        visitor: &mut impl FnMut(&mut Self, Event<'_>),
    ) -> Result<(), Violation> {
        if self.state == State::Connecting {
            return match packet {
                Packet::ConnAck(connack) => self.on_connack(now, &connack, visitor),
                Packet::Auth(auth) => {
                    visitor(self, Event::Auth(auth));
                    Ok(())
                }
                _ => Err(protocol("a packet before CONNACK")),
            };
        }
        match packet {
            Packet::Publish(publish) => self.on_publish(now, publish, inbound, visitor),
            Packet::PubAck(ack) => self.on_puback(now, &ack, visitor),
            Packet::PubRec(ack) => self.on_pubrec(now, &ack, visitor),
            Packet::PubRel(ack) => {
                self.on_pubrel(now, ack.packet_id);
                Ok(())
            }
            Packet::PubComp(ack) => {
                self.on_pubcomp(now, &ack, visitor);
                Ok(())
            }
            Packet::SubAck(ack) => self.on_suback(&ack, Exchange::Subscribe, visitor),
            Packet::UnsubAck(ack) => self.on_suback(&ack, Exchange::Unsubscribe, visitor),
            Packet::PingResp => {
                self.answer_due = None;
                visitor(self, Event::Pong);
                Ok(())
            }
            Packet::Disconnect(disconnect) => {
                let ending = Ending::Server {
                    reason: disconnect.reason,
                    reason_string: disconnect.reason_string,
                    server_reference: disconnect.server_reference,
                    user_properties: disconnect.user_properties,
                };
                self.end(ending, visitor);
                Ok(())
            }
            Packet::Auth(auth) => {
                visitor(self, Event::Auth(auth));
                Ok(())
            }
            Packet::ConnAck(_) => Err(protocol("a second CONNACK")),
            Packet::Connect(_)
            | Packet::Subscribe(_)
            | Packet::Unsubscribe(_)
            | Packet::PingReq => Err(protocol("a packet that only clients send")),
        }
    }

    fn on_connack(
        &mut self,
        now: Time,
        connack: &ConnAck<'_>,
        visitor: &mut impl FnMut(&mut Self, Event<'_>),
    ) -> Result<(), Violation> {
        let properties = &connack.properties;
        if connack.reason.is_error() {
            let ending = Ending::Refused {
                reason: connack.reason,
                reason_string: properties.reason_string,
                server_reference: properties.server_reference,
            };
            self.end(ending, visitor);
            return Ok(());
        }
        // Before 3.1.1 there is no Session Present: assume what we asked for.
        let session_present = match self.options.version {
            Version::V31 => !self.options.clean_start,
            _ => connack.session_present,
        };
        if session_present && self.options.clean_start {
            return Err(protocol("Session Present after Clean Start")); // [MQTT-3.2.2-4]
        }
        self.server = ServerLimits {
            maximum_qos: properties.maximum_qos.unwrap_or(QoS::ExactlyOnce),
            retain_available: properties.retain_available.unwrap_or(true),
            maximum_packet_size: properties.maximum_packet_size.unwrap_or(u32::MAX),
            topic_alias_maximum: properties.topic_alias_maximum.unwrap_or(0),
            receive_maximum: properties.receive_maximum.unwrap_or(u16::MAX),
            keep_alive: properties.server_keep_alive.unwrap_or(self.options.keep_alive),
        };
        if let Some(client_id) = properties.assigned_client_id {
            self.options.client_id = client_id.into(); // [MQTT-3.2.2-16]
        }
        self.state = State::Connected;
        self.answer_due = None;
        let mut lost = Vec::new();
        let quota = self.server.receive_maximum.min(self.options.in_flight_max);
        self.session.start(session_present, quota, |packet_id| lost.push(packet_id));
        self.resend(now);
        for packet_id in lost {
            visitor(self, Event::Discarded { packet_id });
        }
        visitor(self, Event::Connected { session_present, properties });
        Ok(())
    }

    fn resend(&mut self, now: Time) {
        let before = self.out.len();
        self.session.window.resend(self.options.version, &mut self.out);
        if self.out.len() > before {
            self.last_sent = now;
        }
    }

    fn on_publish(
        &mut self,
        now: Time,
        publish: Publish<'_>,
        inbound: &mut Inbound,
        visitor: &mut impl FnMut(&mut Self, Event<'_>),
    ) -> Result<(), Violation> {
        let publish = match self.resolve_alias(&publish, inbound)? {
            Some(topic) => Publish { topic, ..publish },
            None => publish,
        };
        let qos = publish.qos;
        let Some(packet_id) = publish.packet_id else {
            visitor(self, Event::Message(publish));
            return Ok(());
        };
        let manual = self.options.manual_acks;
        let allowed = self.options.receive_maximum.unwrap_or(u16::MAX);
        match self.session.on_publish(packet_id, qos, manual, allowed) {
            Arrival::TooMany => Err(Violation {
                reason: ReasonCode::RECEIVE_MAXIMUM_EXCEEDED,
                what: "more messages than our Receive Maximum",
            }),
            Arrival::Repeated => Ok(()),
            Arrival::RepeatedAcknowledged => {
                self.answer_publish(now, packet_id, qos, ReasonCode::SUCCESS);
                Ok(())
            }
            Arrival::New => {
                visitor(self, Event::Message(publish));
                // Acknowledged only after the user has had it; a user who disconnects instead
                // gets it again.
                if !manual && self.state == State::Connected {
                    self.answer_publish(now, packet_id, qos, ReasonCode::SUCCESS);
                }
                Ok(())
            }
        }
    }

    /// The topic that the alias stands for, when the packet has none; learns one when it has both.
    fn resolve_alias<'a>(
        &self,
        publish: &Publish<'_>,
        inbound: &'a mut Inbound,
    ) -> Result<Option<&'a str>, Violation> {
        let Some(alias) = publish.properties.topic_alias else { return Ok(None) };
        if alias.get() > self.options.topic_alias_maximum {
            let what = "a Topic Alias above our maximum";
            return Err(Violation { reason: ReasonCode::TOPIC_ALIAS_INVALID, what });
        }
        let index = usize::from(alias.get()) - 1;
        if !publish.topic.is_empty() {
            if inbound.aliases.len() <= index {
                inbound.aliases.resize(index + 1, None);
            }
            inbound.aliases[index] = Some(publish.topic.into());
            return Ok(None);
        }
        match inbound.aliases.get(index) {
            Some(Some(topic)) => Ok(Some(topic)),
            _ => Err(protocol("a Topic Alias without a topic")),
        }
    }

    fn on_puback(
        &mut self,
        now: Time,
        ack: &Ack<'_>,
        visitor: &mut impl FnMut(&mut Self, Event<'_>),
    ) -> Result<(), Violation> {
        if self.session.window.exchange(ack.packet_id) != Some(Exchange::AtLeastOnce) {
            return Err(protocol("PUBACK for a message that does not wait for it"));
        }
        self.finish(now, ack, visitor);
        Ok(())
    }

    /// The final answer to a message of ours.
    fn finish(&mut self, now: Time, ack: &Ack<'_>, visitor: &mut impl FnMut(&mut Self, Event<'_>)) {
        self.session.window.close(ack.packet_id);
        self.resend(now);
        let Ack { packet_id, reason, reason_string, .. } = *ack;
        visitor(self, Event::Acked { packet_id, reason, reason_string });
    }

    fn on_pubrec(
        &mut self,
        now: Time,
        ack: &Ack<'_>,
        visitor: &mut impl FnMut(&mut Self, Event<'_>),
    ) -> Result<(), Violation> {
        let packet_id = ack.packet_id;
        let mut pubrel = Ack::new(packet_id, ReasonCode::SUCCESS);
        let mut first = false;
        match self.session.window.exchange(packet_id) {
            Some(Exchange::ExactlyOnce) if ack.reason.is_error() => {
                self.finish(now, ack, visitor);
                return Ok(());
            }
            Some(Exchange::ExactlyOnce) => {
                self.session.window.release(packet_id);
                first = true;
            }
            Some(Exchange::Released) => {}
            None => pubrel.reason = ReasonCode::PACKET_IDENTIFIER_NOT_FOUND,
            Some(_) => return Err(protocol("PUBREC for a packet that is no QoS 2 PUBLISH")),
        }
        Packet::PubRel(pubrel).encode(self.options.version, &mut self.out);
        self.last_sent = now;
        if first {
            visitor(self, Event::Received { packet_id });
        }
        Ok(())
    }

    fn on_pubrel(&mut self, now: Time, packet_id: PacketId) {
        let known = self.session.on_release(packet_id);
        let reason =
            if known { ReasonCode::SUCCESS } else { ReasonCode::PACKET_IDENTIFIER_NOT_FOUND };
        let pubcomp = Ack::new(packet_id, reason);
        Packet::PubComp(pubcomp).encode(self.options.version, &mut self.out);
        self.last_sent = now;
    }

    /// A second PUBCOMP is the answer to a PUBREL that was sent twice: nothing waits for it.
    fn on_pubcomp(
        &mut self,
        now: Time,
        ack: &Ack<'_>,
        visitor: &mut impl FnMut(&mut Self, Event<'_>),
    ) {
        if self.session.window.exchange(ack.packet_id) == Some(Exchange::Released) {
            // Packet Identifier not found: the server has finished with it earlier.
            let done = Ack { reason: ReasonCode::SUCCESS, ..*ack };
            self.finish(now, &done, visitor);
        }
    }

    fn on_suback(
        &mut self,
        ack: &SubAck<'_>,
        expected: Exchange,
        visitor: &mut impl FnMut(&mut Self, Event<'_>),
    ) -> Result<(), Violation> {
        let SubAck { packet_id, codes, reason_string, .. } = *ack;
        if self.session.window.exchange(packet_id) != Some(expected) {
            return Err(protocol("SUBACK or UNSUBACK that answers nothing"));
        }
        let without_codes =
            expected == Exchange::Unsubscribe && self.options.version != Version::V5;
        if !without_codes && codes.len() != self.session.window.filters(packet_id) {
            return Err(protocol("SUBACK or UNSUBACK with another number of reason codes"));
        }
        self.session.window.close(packet_id);
        visitor(
            self,
            match expected {
                Exchange::Subscribe => Event::Subscribed { packet_id, codes, reason_string },
                _ => Event::Unsubscribed { packet_id, codes },
            },
        );
        Ok(())
    }
}
