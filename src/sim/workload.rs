//! What clients do of themselves: one step at a time, chosen by the seed.
#![forbid(unsafe_code)]

use std::num::NonZeroU16;
use std::time::Duration;

use super::client::{Asked, Client, Exchange, Stage};
use super::faults::Kind;
use super::network::{Network, now};
use super::oracle::{Message, Oracle, WillTerms};
use super::random::Random;
use super::terms::Terms;
use crate::codec::mqtt::{
    Connect, ConnectProperties, Disconnect, Packet, Publish, PublishProperties, QoS, ReasonCode,
    RetainHandling, Subscribe, SubscribeFilter, SubscribeFilters, SubscriptionOptions, Unsubscribe,
    UnsubscribeFilters, UserProperties, Version, Will,
};

/// Topics that anybody subscribes to.
const TOPICS: [&str; 7] = ["a", "a/b", "a/c", "b", "b/c/d", "/e", "a/b/c"];
/// Topics for shared subscriptions; members have no others there.
const SHARED_TOPICS: [&str; 3] = ["g/a", "g/b", "g/c/d"];
const FILTERS: [&str; 9] = ["a", "a/b", "a/c", "b", "b/c/d", "/e", "a/b/c", "g/a", "g/b"];
const WILD: [&str; 10] = ["m/#", "m/+", "#", "a/#", "+", "+/b", "a/+", "+/+/+", "/+", "b/#"];
/// Messages until the herd goes on to another topic.
const HERD_MESSAGES: u64 = 20;
const SHARED_FILTERS: [&str; 5] =
    ["$share/one/g/a", "$share/one/g/+", "$share/two/g/#", "$share/two/g/b", "$share/one/g/c/d"];

/// What a client does in one step.
pub struct Workload<'a> {
    /// Who.
    pub client: &'a mut Client,
    /// Where.
    pub network: &'a mut Network,
    /// To be told.
    pub oracle: &'a mut Oracle,
    /// Decides.
    pub random: &'a mut Random,
    /// What the broker allows.
    pub terms: Terms,
    /// The last part of a round, see [`Workload::act_finale`].
    pub is_finale: bool,
}

impl Workload<'_> {
    fn strikes(&mut self, kind: Kind) -> bool {
        self.network.faults.strikes_by_weight(kind, self.random)
    }

    fn strikes_of(&mut self, kind: Kind, per_mille: u32) -> bool {
        self.network.faults.strikes(kind, self.random, per_mille)
    }

    /// One step.
    pub fn act(&mut self) {
        match self.client.stage {
            Stage::Idle => {
                if now() >= self.client.away_until {
                    self.connect();
                }
            }
            Stage::Connecting => {
                if !self.client.is_stranger && self.strikes_of(Kind::Abandon, 20) {
                    self.client.abandon(self.network, self.oracle);
                }
            }
            Stage::Ending | Stage::Broken => {}
            Stage::Online if self.is_finale => self.act_finale(),
            Stage::Online => self.act_online(),
        }
    }

    fn act_online(&mut self) {
        match self.random.below(100) {
            0..15 => self.subscribe(),
            15..18 => self.unsubscribe(),
            18..20 => self.leave(),
            20..22 if !self.client.is_stranger && self.strikes(Kind::Takeover) => {
                self.client.abandon(self.network, self.oracle);
                self.connect();
            }
            22 if self.strikes_of(Kind::Misbehave, 300) => self.misbehave(),
            23 => {
                // As an application that is silent for a while.
                let secs = self.random.between(1, 20);
                self.client.away_until = now() + Duration::from_secs(secs);
            }
            24 if self.strikes(Kind::LoginAgain) => {
                let steps = self.random.below(3) as u8;
                self.client.log_in_again(self.network, steps);
            }
            25..27 if self.strikes(Kind::Refusals) => self.ask_too_much(),
            _ if self.strikes(Kind::Herd) => self.follow(),
            _ => self.publish(),
        }
    }

    /// Whatever is new: the same topic for all, until another one is.
    fn follow(&mut self) {
        let topic = format!("h/{}", self.oracle.message_count() / HERD_MESSAGES);
        if self.random.chance(600) && self.is_new(&topic) {
            let qos =
                self.random.pick(&[QoS::AtLeastOnce, QoS::ExactlyOnce]).min(self.terms.qos_max);
            self.subscribe_to(&[(topic, SubscriptionOptions::new(qos))], None);
        } else {
            self.publish_one(Some((topic, false)));
        }
    }

    /// Whether its client neither holds this filter nor has asked for it.
    fn is_new(&self, filter: &str) -> bool {
        let is_asked = |exchange: &Exchange| match exchange {
            Exchange::Subscribe(filters) => filters.iter().any(|(f, _)| f == filter),
            _ => false,
        };
        !self.client.held.contains_key(filter) && !self.client.exchanges.values().any(is_asked)
    }

    /// Before all is quiet: retained messages to few topics, and first subscriptions to them. What
    /// goes wrong there then stays wrong, and shows.
    fn act_finale(&mut self) {
        let topic = format!("m/{}", self.random.below(12));
        if self.random.chance(400) && self.is_new(&topic) {
            let options = SubscriptionOptions::new(QoS::AtLeastOnce);
            self.subscribe_to(&[(topic, options)], None);
        } else if self.network.faults.is_on(Kind::Retain) {
            self.publish_one(Some((topic, true)));
        }
    }

    /// Opens a connection.
    pub fn connect(&mut self) {
        let version = self.client.version;
        let index = self.client.index;
        let mut asked = Asked::default();
        let may_last = index % 3 != 2 && !self.client.is_stranger;
        let must = self.client.must_start_clean(self.network);
        asked.clean = !may_last || must || self.strikes_of(Kind::CleanStart, 100);
        let seconds = match version {
            Version::V5 if may_last => {
                if self.strikes(Kind::SessionExpiry) {
                    self.random.between(1, 60) as u32
                } else {
                    1_000_000
                }
            }
            Version::V5 => 0,
            _ if asked.clean => 0,
            _ => u32::MAX,
        };
        asked.expiry_secs = seconds;
        if version == Version::V5 {
            if self.strikes(Kind::Window) {
                asked.receive_maximum = self.random.between(1, 4) as u16;
            }
            if self.strikes(Kind::AliasesOut) {
                asked.alias_max = self.random.between(1, 5) as u16;
            }
            if index % 4 == 1 && self.strikes(Kind::PacketMax) {
                asked.packet_max = self.random.between(100, 3000) as u32;
            }
        }
        asked.keep_alive = self.keep_alive();
        if version == Version::V5 && self.strikes(Kind::Login) {
            asked.login = Some(self.random.below(4) as u8);
        }
        let shard = self.random.index(self.terms.shards);
        self.client.takes_lowest_id = self.strikes(Kind::LowestId);
        let link = self.network.connect(index, shard);
        let will = self.will(link, seconds);
        self.network.trace.line(now(), || {
            format!("client {index} -> CONNECT {version} on link {link} at shard {shard}, {asked:?}, will {will:?}")
        });
        // A DISCONNECT that the broker has not read may come too late now.
        let earlier = self.network.links.iter().enumerate();
        for (other, _) in earlier.filter(|(_, l)| l.client == index && l.server_end.is_none()) {
            if other != link {
                self.oracle.on_will_unsure(other);
            }
        }
        self.oracle.on_will_connect(index, asked.clean);
        let max = if asked.packet_max > 0 { asked.packet_max } else { u32::MAX };
        self.oracle.on_connect(index, link, asked.clean, (seconds, max));
        let known = will.map(|id| self.oracle.message(id));
        let payload = will.map(|id| super::payload(id, known.map_or(0, |m| m.len)));
        let is_v5 = version == Version::V5;
        let login = asked.login.map(|steps| [steps]);
        let connect = Connect {
            version,
            bridge: false,
            clean_start: asked.clean,
            keep_alive: asked.keep_alive,
            client_id: &self.client.id.clone(),
            user_name: None,
            password: None,
            will: known.map(|message| Will {
                topic: &message.topic,
                payload: payload.as_deref().unwrap_or_default(),
                qos: message.qos,
                retain: message.retain,
                delay_interval: message.will.as_ref().map_or(0, |will| will.delay_secs),
                properties: PublishProperties::default(),
            }),
            properties: ConnectProperties {
                session_expiry_interval: (is_v5 && seconds > 0).then_some(seconds),
                receive_maximum: (asked.receive_maximum > 0).then_some(asked.receive_maximum),
                maximum_packet_size: (asked.packet_max > 0).then_some(asked.packet_max),
                topic_alias_maximum: (asked.alias_max > 0).then_some(asked.alias_max),
                authentication_method: login.map(|_| super::login::NAME),
                authentication_data: login.as_ref().map(|steps| &steps[..]),
                ..ConnectProperties::default()
            },
        };
        let mut bytes = Vec::new();
        Packet::Connect(connect).encode(version, &mut bytes);
        self.client.begin(self.network, link, asked, &bytes);
        if self.client.may_be_early() && self.strikes(Kind::Behind) {
            self.client.set_early();
            for _ in 0..self.random.between(1, 4) {
                if self.random.chance(300) { self.subscribe() } else { self.publish_one(None) }
            }
        }
    }

    fn keep_alive(&mut self) -> u16 {
        let wanted =
            if self.strikes(Kind::KeepAlive) { self.random.between(1, 20) as u16 } else { 0 };
        let most = self.terms.keep_alive_max;
        if self.client.version == Version::V5 || most == 0 {
            return wanted;
        }
        // One of 3.x cannot be told of a cap, and is refused beyond it.
        let within = self.random.between(1, u64::from(most)) as u16;
        if self.strikes(Kind::Refusals) { most + 1 } else { within }
    }

    fn will(&mut self, link: usize, expiry_secs: u32) -> Option<u64> {
        if !self.strikes(Kind::Will) {
            return None;
        }
        let delayed = self.client.version == Version::V5 && self.strikes(Kind::WillDelay);
        let delay_secs = if delayed { self.random.between(1, 30) as u32 } else { 0 };
        // Of a large one it is seen that there is no memory for it.
        let is_large = self.terms.refuses && self.network.faults.is_on(Kind::Refusals);
        let len = if is_large { 1000 } else { 20 };
        let message = Message {
            retain: self.terms.retains && self.strikes_of(Kind::Retain, 200),
            will: Some(WillTerms::new(link, delay_secs, expiry_secs)),
            ..self.message(len)
        };
        Some(self.oracle.on_new_message(message))
    }

    fn message(&mut self, len: usize) -> Message {
        let topic = match self.random.below(10) {
            0..3 if self.network.faults.is_on(Kind::Shared) => self.random.pick(&SHARED_TOPICS),
            _ => self.random.pick(&TOPICS),
        };
        let topic = match self.strikes(Kind::ManyTopics) {
            true => format!("m/{}", self.random.below(150)),
            false => topic.to_owned(),
        };
        let link = self.client.link.unwrap_or_default();
        Message::new(self.client.index, link, topic, self.qos(), len)
    }

    fn qos(&mut self) -> QoS {
        let all = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
        self.random.pick(&all).min(self.terms.qos_max)
    }

    /// Publishes one message, or a burst.
    pub fn publish(&mut self) {
        let count = if self.random.chance(100) { self.random.between(2, 30) } else { 1 };
        for _ in 0..count {
            self.publish_one(None);
        }
    }

    /// One message; to this topic, if there is one, and retained there.
    fn publish_one(&mut self, to: Option<(String, bool)>) {
        let limit = usize::from(self.client.receive_max.min(40));
        let mut len = self.random.between(8, 60) as usize;
        if self.strikes_of(Kind::Large, 30) {
            len = self.random.between(1000, 20_000) as usize;
        }
        if self.strikes_of(Kind::Huge, 10) {
            len = self.random.between(50_000, 120_000) as usize;
        }
        // The rest of a packet is small.
        len = len.min(self.terms.packet_max - 100);
        if self.terms.refuses {
            len = len.min(1500);
        }
        let mut message = self.message(len);
        if self.client.in_flight() >= limit {
            message.qos = QoS::AtMostOnce;
        }
        // Memory that is kept for good would never be enough.
        message.retain = self.terms.retains && self.strikes(Kind::Retain);
        if message.retain && self.strikes_of(Kind::Clear, 100) {
            message.len = 0;
        }
        if let Some((topic, retain)) = to
            && (self.terms.retains || !retain)
        {
            message.topic = topic;
            message.retain |= retain;
        }
        let is_v5 = self.client.version == Version::V5;
        if is_v5 && self.strikes_of(Kind::MessageExpiry, 100) {
            message.expiry = Some(self.random.between(1, 20) as u32);
        }
        let qos = message.qos;
        let packet_id = if qos > QoS::AtMostOnce { self.client.free_id() } else { None };
        if qos > QoS::AtMostOnce && packet_id.is_none() {
            return;
        }
        let (topic, retain, len, expiry) =
            (message.topic.clone(), message.retain, message.len, message.expiry);
        let id = self.oracle.on_new_message(message);
        let payload = if len == 0 { Vec::new() } else { super::payload(id, len) };
        let (topic, alias) = self.alias(&topic);
        let publish = Publish {
            dup: false,
            qos,
            retain,
            topic: &topic,
            packet_id,
            properties: PublishProperties {
                message_expiry_interval: expiry,
                topic_alias: alias,
                ..PublishProperties::default()
            },
            payload: &payload,
        };
        if let Some(packet_id) = packet_id {
            let order = self.client.next_order();
            let exchange = Exchange::Publish { message: id, qos, released: false, order };
            self.client.open(packet_id, exchange);
        }
        self.client.send(self.network, &Packet::Publish(publish));
    }

    /// The topic, or an alias instead of it, or both.
    fn alias(&mut self, topic: &str) -> (String, Option<NonZeroU16>) {
        if self.client.version != Version::V5
            || self.client.alias_max == 0
            || !self.strikes(Kind::Aliases)
        {
            return (topic.to_owned(), None);
        }
        if let Some(alias) = self.client.aliases.get(topic) {
            return (String::new(), NonZeroU16::new(*alias));
        }
        let alias = self.random.between(1, u64::from(self.client.alias_max.min(3))) as u16;
        self.client.aliases.retain(|_, other| *other != alias);
        self.client.aliases.insert(topic.to_owned(), alias);
        (topic.to_owned(), NonZeroU16::new(alias))
    }

    fn subscribe(&mut self) {
        let count = self.random.between(1, 3);
        let mut filters: Vec<(String, SubscriptionOptions)> = Vec::new();
        for _ in 0..count {
            let is_member = self.client.index.is_multiple_of(2);
            let filter = match self.random.below(10) {
                0..4 if is_member && self.strikes_of(Kind::Shared, 900) => {
                    self.random.pick(&SHARED_FILTERS)
                }
                4..7 if self.strikes_of(Kind::Wildcards, 900) => self.random.pick(&WILD),
                _ => self.random.pick(&FILTERS),
            };
            let is_shared = filter.starts_with("$share");
            // Members of groups have no plain subscription where groups are.
            let overlaps = ["#", "g/a", "g/b", "+/b"].contains(&filter)
                || (filter.starts_with('+') && filter.len() > 1);
            if (is_member && overlaps) || filters.iter().any(|(f, _)| f == filter) {
                continue;
            }
            let mut options = SubscriptionOptions::new(self.qos());
            // MQTT 3.1 has no code for what is refused, and is told QoS 0.
            let may_be_refused = self.terms.subscriptions_max < 100 || self.terms.durable;
            if is_shared || (may_be_refused && self.client.version == Version::V31) {
                options.qos = options.qos.max(QoS::AtLeastOnce);
            }
            if self.client.version == Version::V5 && !is_shared && self.strikes(Kind::Options) {
                options.no_local = self.random.chance(300);
                options.retain_as_published = self.random.chance(400);
                options.retain_handling = self.random.pick(&[
                    RetainHandling::Send,
                    RetainHandling::SendIfNew,
                    RetainHandling::DoNotSend,
                ]);
            }
            filters.push((filter.to_owned(), options));
        }
        let may_have = self.client.version == Version::V5 && self.terms.identifiers;
        let id =
            (may_have && self.strikes(Kind::Identifiers)).then(|| self.random.between(1, 9) as u32);
        self.subscribe_to(&filters, id);
    }

    /// Subscribes to these.
    pub fn subscribe_to(&mut self, filters: &[(String, SubscriptionOptions)], id: Option<u32>) {
        let (Some(link), false) = (self.client.link, filters.is_empty()) else { return };
        let Some(packet_id) = self.client.free_id() else { return };
        for (filter, options) in filters {
            self.oracle.on_subscribe(self.client.index, link, filter, *options, id);
        }
        let asked = filters.iter().map(|(filter, o)| (filter.clone(), o.qos)).collect();
        self.client.open(packet_id, Exchange::Subscribe(asked));
        let lines: Vec<SubscribeFilter<'_>> = filters
            .iter()
            .map(|(filter, options)| SubscribeFilter { filter, options: *options })
            .collect();
        let subscribe = Subscribe {
            packet_id,
            subscription_id: id,
            user_properties: UserProperties::default(),
            filters: SubscribeFilters::new(&lines),
        };
        self.client.send(self.network, &Packet::Subscribe(subscribe));
    }

    fn unsubscribe(&mut self) {
        if self.client.held.is_empty() || !self.strikes(Kind::Unsubscribe) {
            return;
        }
        let at = self.random.index(self.client.held.len());
        let filter = self.client.held.keys().nth(at).cloned().unwrap_or_default();
        // A filter that is being subscribed to again: which comes first is not asked here.
        let is_asked = |exchange: &Exchange| match exchange {
            Exchange::Subscribe(filters) => filters.iter().any(|(f, _)| *f == filter),
            Exchange::Unsubscribe(filters) => filters.contains(&filter),
            Exchange::Publish { .. } => false,
        };
        if !self.client.exchanges.values().any(is_asked) {
            self.unsubscribe_from(&filter);
        }
    }

    /// Unsubscribes from it.
    pub fn unsubscribe_from(&mut self, filter: &str) {
        let Some(packet_id) = self.client.free_id() else { return };
        self.oracle.on_unsubscribe(self.client.index, filter);
        self.client.open(packet_id, Exchange::Unsubscribe(vec![filter.to_owned()]));
        let filters = [filter];
        let unsubscribe = Unsubscribe {
            packet_id,
            user_properties: UserProperties::default(),
            filters: UnsubscribeFilters::new(&filters),
        };
        self.client.send(self.network, &Packet::Unsubscribe(unsubscribe));
    }

    /// Ends the connection: with DISCONNECT or without.
    fn leave(&mut self) {
        let Some(link) = self.client.link else { return };
        let secs = if self.random.chance(500) { 0 } else { self.random.between(1, 40) };
        self.client.away_until = now() + Duration::from_secs(secs);
        if self.random.chance(300) {
            return self.client.close(self.network, self.oracle);
        }
        let mut disconnect = Disconnect::new(ReasonCode::NORMAL_DISCONNECTION);
        let is_v5 = self.client.version == Version::V5;
        if is_v5 && self.strikes(Kind::Disconnects) && self.random.chance(500) {
            disconnect.reason = ReasonCode::DISCONNECT_WITH_WILL;
        }
        let normal = disconnect.reason == ReasonCode::NORMAL_DISCONNECTION;
        self.oracle.on_will_disconnect(link, normal);
        // A session that was to end with its connection cannot be prolonged.
        if is_v5 && self.client.asked.expiry_secs > 0 && self.strikes(Kind::ExpiryChange) {
            let secs = self.random.pick(&[0, 1, 20, 1_000_000]);
            disconnect.session_expiry_interval = Some(secs);
            self.client.change_expiry(secs);
            self.oracle.on_expiry_changed(self.client.index, secs);
            self.oracle.on_will_shortened(link, secs);
        }
        if self.client.asked.keep_alive > 0 || self.client.has_old() {
            self.oracle.on_will_unsure(link);
        }
        self.client.send(self.network, &Packet::Disconnect(disconnect));
        if self.random.chance(500) {
            self.client.close(self.network, self.oracle);
        } else {
            self.oracle.on_will_end(link);
            self.client.stage = Stage::Ending;
        }
    }

    /// Breaks the protocol; the broker has to close.
    fn misbehave(&mut self) {
        let Some(link) = self.client.link else { return };
        self.oracle.on_will_end(link);
        let bad: &[&[u8]] = &[
            // A reserved type, a PUBLISH with QoS 3, one to a wildcard, SUBSCRIBE without filter,
            // a second CONNECT, a length of five bytes.
            &[0x00, 0x00],
            &[0x36, 0x03, 0x00, 0x01, 0x61],
            &[0x30, 0x05, 0x00, 0x01, 0x23, 0x00, 0x00],
            &[0x82, 0x02, 0x00, 0x01],
            &[0x10, 0x00],
            &[0x30, 0xff, 0xff, 0xff, 0xff, 0x01],
        ];
        let bytes = self.random.pick(bad);
        self.client.send_bytes(self.network, bytes);
        self.client.stage = Stage::Broken;
    }
}
