//! What a simulated client reads: checked as far as it can see for itself, answered when it likes,
//! and told to the oracle.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::{Client, Exchange, Stage, brief};
use crate::clock::Time;
use crate::codec::mqtt::{
    Ack, Auth, ConnAck, Packet, PacketId, Publish, PublishProperties, QoS, ReasonCode, Side,
    SubAck, Version, decode, frame_len,
};
use crate::sim::faults::Kind;
use crate::sim::judge::{judge_end, judge_silent_end};
use crate::sim::login;
use crate::sim::network::{Network, Read, now};
use crate::sim::oracle::{Arrival, Oracle};

impl Client {
    pub(super) fn read_old(&mut self, network: &mut Network, oracle: &mut Oracle) {
        let (index, version) = (self.index, self.version);
        self.old.retain_mut(|old| match network.client_read(old.link) {
            Read::Nothing => true,
            Read::Bytes(bytes) => {
                old.inbox.extend_from_slice(&bytes);
                while let Ok(Some(len)) = frame_len(&old.inbox) {
                    if len > old.inbox.len() {
                        break;
                    }
                    let frame: Vec<u8> = old.inbox.drain(..len).collect();
                    old.last_reason = match decode(&frame, Some(version), Side::Client) {
                        Ok(Packet::Disconnect(packet)) => Some(packet.reason),
                        Ok(Packet::ConnAck(connack)) if !connack.reason.is_error() => {
                            old.was_online = true;
                            None
                        }
                        _ => None,
                    };
                }
                true
            }
            end => {
                let told = old.last_reason.is_some() || version != Version::V5 || !old.was_online;
                if end == Read::End && !told {
                    judge_silent_end(index, network, oracle, old.link);
                }
                network.client_close(old.link);
                oracle.on_will_end(old.link);
                false
            }
        });
    }

    pub(super) fn read(&mut self, network: &mut Network, oracle: &mut Oracle) {
        let Some(link) = self.link else { return };
        match network.client_read(link) {
            Read::Nothing => {}
            Read::Bytes(bytes) => {
                self.inbox.extend_from_slice(&bytes);
                self.read_frames(network, oracle, link);
            }
            end => {
                let index = self.index;
                network.trace.line(now(), || format!("client {index}: {end:?}"));
                if !self.inbox.is_empty() && end == Read::End && !network.links[link].is_cut {
                    oracle.fail("cut", format!("client {index}: the stream ends in a packet"));
                }
                if end == Read::End {
                    if self.stage == Stage::Online && !network.links[link].is_cut {
                        judge_end(self, network, oracle, link, None);
                    }
                    if let Some(secs) = self.changed_expiry.filter(|_| !network.links[link].is_cut)
                    {
                        oracle.on_expiry_known(index, secs);
                    }
                    network.client_close(link);
                }
                self.lose(network, oracle);
            }
        }
    }

    fn read_frames(&mut self, network: &mut Network, oracle: &mut Oracle, link: usize) {
        let inbox = std::mem::take(&mut self.inbox);
        let mut rest = &inbox[..];
        while self.link == Some(link) {
            let len = match frame_len(rest) {
                Ok(Some(len)) if len <= rest.len() => len,
                Ok(_) => break,
                Err(error) => {
                    oracle.fail("malformed", format!("client {}: {error}", self.index));
                    break;
                }
            };
            let (frame, next) = rest.split_at(len);
            rest = next;
            if self.asked.packet_max > 0 && len > self.asked.packet_max as usize {
                oracle.fail("packet-size", format!("client {}: {len} bytes", self.index));
            }
            self.packets += 1;
            match decode(frame, Some(self.version), Side::Client) {
                Ok(packet) => self.on_packet(network, oracle, link, &packet),
                Err(error) => {
                    oracle.fail("malformed", format!("client {}: {error}", self.index));
                }
            }
        }
        if self.link == Some(link) {
            self.inbox = rest.to_vec();
        }
    }

    fn on_packet(
        &mut self,
        network: &mut Network,
        oracle: &mut Oracle,
        link: usize,
        packet: &Packet<'_>,
    ) {
        let index = self.index;
        network.trace.line(now(), || format!("client {index} <- {}", brief(packet)));
        match (self.stage, packet) {
            (Stage::Connecting, Packet::ConnAck(connack)) => {
                self.on_connack(network, oracle, connack);
            }
            (Stage::Connecting | Stage::Online, Packet::Auth(auth)) => {
                self.on_auth(network, oracle, auth);
            }
            (Stage::Connecting, _) => {
                oracle.fail("before-connack", format!("client {index}: {}", brief(packet)));
            }
            (_, Packet::ConnAck(_)) => {
                oracle.fail("connack-twice", format!("client {index}"));
            }
            // What comes behind a DISCONNECT of ours is thrown away, but for the end that the broker
            // has made before it came to ours.
            (Stage::Ending, Packet::Disconnect(disconnect)) => {
                judge_end(self, network, oracle, link, Some(disconnect.reason));
                oracle.on_will_unsure(link);
                self.changed_expiry = None;
            }
            (Stage::Broken, Packet::Disconnect(disconnect)) => {
                let of_packet = [ReasonCode::MALFORMED_PACKET, ReasonCode::PROTOCOL_ERROR];
                let is_due = match self.awaits {
                    Some(reason) => disconnect.reason == reason,
                    None => of_packet.contains(&disconnect.reason),
                };
                if !is_due {
                    judge_end(self, network, oracle, link, Some(disconnect.reason));
                }
            }
            (Stage::Ending | Stage::Broken, _) => {}
            (_, Packet::Publish(publish)) => self.on_publish(network, oracle, link, publish),
            (_, Packet::PubAck(ack)) => self.on_answer(oracle, ack, QoS::AtLeastOnce, false),
            (_, Packet::PubRec(ack)) => {
                self.on_answer(oracle, ack, QoS::ExactlyOnce, false);
                if !ack.reason.is_error() {
                    let ack = Ack::new(ack.packet_id, ReasonCode::SUCCESS);
                    self.send(network, &Packet::PubRel(ack));
                }
            }
            (_, Packet::PubComp(ack)) => self.on_answer(oracle, ack, QoS::ExactlyOnce, true),
            (_, Packet::PubRel(ack)) => {
                let id = ack.packet_id.get();
                self.received.remove(&id);
                self.answer(
                    network,
                    &Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::SUCCESS)),
                );
            }
            (_, Packet::SubAck(ack)) => self.on_suback(oracle, ack),
            (_, Packet::UnsubAck(ack)) => self.on_unsuback(oracle, ack),
            (_, Packet::PingResp) => {
                if !std::mem::take(&mut self.ping_sent) {
                    oracle.fail("pingresp", format!("client {index}: nobody asked"));
                }
            }
            (_, Packet::Disconnect(disconnect)) => {
                if self.version != Version::V5 {
                    oracle.fail("disconnect", format!("client {index} of 3.x is told"));
                }
                judge_end(self, network, oracle, link, Some(disconnect.reason));
                oracle.on_will_unsure(link);
                self.stage = Stage::Ending;
            }
            _ => oracle.fail("direction", format!("client {index}: {}", brief(packet))),
        }
    }

    fn on_connack(&mut self, network: &mut Network, oracle: &mut Oracle, connack: &ConnAck<'_>) {
        let index = self.index;
        if connack.reason.is_error() {
            // One of 3.x cannot be told a shorter keep alive.
            let most = oracle.terms().keep_alive_max;
            let is_too_long =
                self.version != Version::V5 && most > 0 && self.asked.keep_alive > most;
            let may_not = is_too_long || self.is_late_login();
            oracle.on_refused(index, self.asked.clean, may_not, connack.reason);
            self.away_until = now() + Duration::from_millis(500);
            self.stage = Stage::Ending;
            return;
        }
        self.check_connack(oracle, connack);
        let clean = self.asked.clean;
        let present = match self.version {
            Version::V31 => {
                let lost = std::mem::take(&mut self.lost);
                if lost { Some(false) } else { None }
            }
            _ => Some(connack.session_present),
        };
        self.lost = false;
        let assumed = present.unwrap_or(!clean);
        if present == Some(true) && self.version != Version::V31 {
            oracle.on_present(index, network);
        }
        oracle.on_connack(index, clean, present.or(Some(assumed)), network);
        if let Some(link) = self.link {
            oracle.on_will_armed(link);
            oracle.on_will_connack(index, link, clean);
        }
        self.is_unsure &= !clean;
        self.is_early = false;
        self.stage = Stage::Online;
        self.alias_max = connack.properties.topic_alias_maximum.unwrap_or(0);
        self.receive_max = connack.properties.receive_maximum.unwrap_or(u16::MAX);
        if assumed {
            self.resend(network, oracle);
        } else {
            self.forget_earlier();
        }
    }

    /// What CONNACK says of keep alive and authentication.
    fn check_connack(&mut self, oracle: &mut Oracle, connack: &ConnAck<'_>) {
        let properties = &connack.properties;
        let most = oracle.terms().keep_alive_max;
        let asked = self.asked.keep_alive;
        let granted = properties.server_keep_alive.unwrap_or(asked);
        let may = if most > 0 && (asked == 0 || asked > most) { most } else { asked };
        let method = self.asked.login.map(|_| login::NAME);
        let data = self.asked.login.map(|_| login::DONE);
        let is_login = (properties.authentication_method, properties.authentication_data);
        if granted != may || is_login != (method, data) {
            oracle.fail("connack", format!("client {}: {:?}", self.index, properties));
        }
        self.asked.keep_alive = granted;
        self.logs_in = false;
    }

    /// What was not acknowledged, again, in its order.
    fn resend(&mut self, network: &mut Network, oracle: &mut Oracle) {
        let mut open: Vec<(u64, u16, u64, QoS, bool)> = self
            .exchanges
            .iter()
            .filter_map(|(id, exchange)| match exchange {
                Exchange::Publish { message, qos, released, order } if *order <= self.begun => {
                    Some((*order, *id, *message, *qos, *released))
                }
                _ => None,
            })
            .collect();
        open.sort_unstable();
        for (_, id, message, qos, released) in open {
            let packet_id = PacketId::new(id).expect("invariant: ids are not zero");
            if released {
                let ack = Ack::new(packet_id, ReasonCode::SUCCESS);
                self.send(network, &Packet::PubRel(ack));
            } else {
                oracle.on_resent(message, self.link);
                let known = oracle.message(message);
                let (topic, retain, len) = (known.topic.clone(), known.retain, known.len);
                let expiry = known.expiry;
                let payload = if len == 0 { Vec::new() } else { crate::sim::payload(message, len) };
                let properties = PublishProperties {
                    message_expiry_interval: expiry,
                    ..PublishProperties::default()
                };
                let publish = Publish {
                    dup: true,
                    qos,
                    retain,
                    topic: &topic,
                    packet_id: Some(packet_id),
                    properties,
                    payload: &payload,
                };
                self.send(network, &Packet::Publish(publish));
            }
        }
    }

    fn on_publish(
        &mut self,
        network: &mut Network,
        oracle: &mut Oracle,
        link: usize,
        publish: &Publish<'_>,
    ) {
        self.got += 1;
        let topic = match self.resolve(publish) {
            Ok(topic) => topic,
            Err(text) => return oracle.fail("alias", format!("client {}: {text}", self.index)),
        };
        let publish = &Publish { topic: &topic, ..*publish };
        let id = publish.packet_id.map_or(0, PacketId::get);
        let repeats = self.received.get(&id).copied().filter(|_| id > 0);
        let arrival = Arrival { client: self.index, link, publish: *publish, repeats };
        let message = oracle.on_arrival(&arrival, network).unwrap_or(0);
        let Some(packet_id) = publish.packet_id else { return };
        if repeats.is_none()
            && let Some(before) = self.unacknowledged.insert(id, message)
        {
            let text = format!("client {}: {id} of {before} for {message}", self.index);
            oracle.fail("packet-id", text);
        }
        let maximum = self.asked.receive_maximum;
        if maximum > 0 && self.unacknowledged.len() > usize::from(maximum) {
            let text = format!("client {}: {:?}", self.index, self.unacknowledged);
            oracle.fail("receive-maximum", text);
        }
        let ack = Ack::new(packet_id, ReasonCode::SUCCESS);
        if publish.qos == QoS::ExactlyOnce {
            self.received.insert(id, message);
            self.unacknowledged.insert(id, message);
            self.answer(network, &Packet::PubRec(ack));
        } else {
            self.answer(network, &Packet::PubAck(ack));
        }
    }

    /// The topic, which an alias may stand for.
    fn resolve(&mut self, publish: &Publish<'_>) -> Result<String, String> {
        let Some(alias) = publish.properties.topic_alias else {
            return Ok(publish.topic.to_owned());
        };
        let alias = alias.get();
        if alias > self.asked.alias_max {
            return Err(format!("{alias}, and it allows {}", self.asked.alias_max));
        }
        if !publish.topic.is_empty() {
            self.names.insert(alias, publish.topic.to_owned());
        }
        self.names.get(&alias).cloned().ok_or_else(|| format!("{alias} stands for nothing"))
    }

    /// Answers, now or later, in order. An id counts as unacknowledged until the answer is written.
    fn answer(&mut self, network: &mut Network, packet: &Packet<'_>) {
        let Network { faults, random, .. } = network;
        let late = faults.strikes_by_weight(Kind::SlowAck, random);
        let wait = if late { random.between(1, 400) } else { 0 };
        let after = self.answers.back().map_or(Time::ZERO, |(at, ..)| *at);
        let mut bytes = Vec::new();
        packet.encode(self.version, &mut bytes);
        let id = match packet {
            Packet::PubAck(ack) | Packet::PubComp(ack) => ack.packet_id.get(),
            _ => 0,
        };
        let index = self.index;
        network.trace.line(now(), || format!("client {index} -> {} (in {wait} ms)", brief(packet)));
        self.answers.push_back(((now() + Duration::from_millis(wait)).max(after), bytes, id));
    }

    fn on_answer(&mut self, oracle: &mut Oracle, ack: &Ack<'_>, qos: QoS, is_last: bool) {
        let id = ack.packet_id.get();
        let index = self.index;
        let Some(Exchange::Publish { message, qos: asked, released, .. }) =
            self.exchanges.get_mut(&id)
        else {
            return oracle.fail("ack", format!("client {index}: {id} is not open"));
        };
        if *asked != qos || (is_last && !*released) {
            return oracle.fail("ack", format!("client {index}: {id} waits for another answer"));
        }
        let is_error = ack.reason.is_error();
        if !is_last {
            oracle.on_acked(*message, is_error);
            let may = oracle.may_refuse() && ack.reason == ReasonCode::QUOTA_EXCEEDED;
            if is_error && !may {
                let text = format!("client {index}: {id} by {}", ack.reason.name());
                oracle.fail("publish-refused", text);
            }
        }
        *released = true;
        if qos == QoS::AtLeastOnce || is_last || is_error {
            self.exchanges.remove(&id);
        }
    }

    fn on_suback(&mut self, oracle: &mut Oracle, ack: &SubAck<'_>) {
        let id = ack.packet_id.get();
        let Some(Exchange::Subscribe(filters)) = self.exchanges.remove(&id) else {
            return oracle.fail("ack", format!("client {}: SUBACK {id}", self.index));
        };
        if filters.len() != ack.codes.len() {
            return oracle.fail("suback", format!("client {}: {:?}", self.index, ack.codes));
        }
        for ((filter, qos), code) in filters.into_iter().zip(ack.codes) {
            if oracle.on_suback(self.index, &filter, *code, qos) {
                self.held.insert(filter, qos);
            }
        }
    }

    fn on_unsuback(&mut self, oracle: &mut Oracle, ack: &SubAck<'_>) {
        let id = ack.packet_id.get();
        let Some(Exchange::Unsubscribe(filters)) = self.exchanges.remove(&id) else {
            return oracle.fail("ack", format!("client {}: UNSUBACK {id}", self.index));
        };
        for filter in filters {
            oracle.on_unsuback(self.index, &filter);
            self.held.remove(&filter);
        }
    }

    fn on_auth(&mut self, network: &mut Network, oracle: &mut Oracle, auth: &Auth<'_>) {
        let data = auth.authentication_data.unwrap_or_default();
        let is_last = auth.reason == ReasonCode::SUCCESS;
        let fits = auth.authentication_method == Some(login::NAME)
            && (data == login::DONE || data.len() == 1)
            && is_last == (data == login::DONE)
            && !(is_last && self.stage == Stage::Connecting);
        if !self.logs_in || !fits {
            return oracle.fail("auth", format!("client {}: {auth:?}", self.index));
        }
        self.logs_in = !is_last;
        if !is_last {
            self.say(network, ReasonCode::CONTINUE_AUTHENTICATION, data);
        }
    }
}
