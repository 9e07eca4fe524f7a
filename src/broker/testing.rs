//! A world for tests: brokers that exchange batches, and clients that speak packets to them.
//!
//! Nothing happens by itself: [`World::send`] and its like hand something in and then let the
//! brokers talk until all is quiet ([`World::settle`]). Time stands still until
//! [`World::advance`].
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Time;
use crate::codec::mqtt::{
    Ack, Connect, Disconnect, Packet, PacketId, Publish, PublishProperties, QoS, ReasonCode, Side,
    Subscribe, SubscribeFilter, SubscribeFilters, SubscriptionOptions, Unsubscribe,
    UnsubscribeFilters, UserProperties, Version, Will, decode, frame_len,
};
use crate::ids::{ConnId, PlacementKey, ShardId};
use crate::limits::SHARE_PAYLOAD_FROM;

use super::evict::ReadBack;
use super::{Accepted, Batch, Broker, Config, Disconnection, Frame, Record, Step};

/// A client's connection, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client(usize);

/// A packet that a client received, as much of it as tests look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    ConnAck { session_present: bool, reason: ReasonCode },
    Publish(GotPublish),
    PubAck(u16, ReasonCode),
    PubRec(u16, ReasonCode),
    PubRel(u16, ReasonCode),
    PubComp(u16, ReasonCode),
    SubAck(u16, Vec<u8>),
    UnsubAck(u16, Vec<u8>),
    PingResp,
    Disconnect(ReasonCode),
    Auth { reason: ReasonCode, method: String, data: String },
}

/// A PUBLISH that a client received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GotPublish {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) dup: bool,
    /// 0 at QoS 0.
    pub(crate) id: u16,
    pub(crate) expiry: Option<u32>,
    /// Topic Alias; 0 is none.
    pub(crate) alias: u16,
    /// Bytes of the whole packet.
    pub(crate) len: usize,
    pub(crate) subscription_ids: Vec<u32>,
    pub(crate) user_properties: Vec<(String, String)>,
}

#[derive(Debug)]
struct Link {
    shard: usize,
    conn: ConnId,
    version: Version,
    /// Frames that are not consumed yet.
    input: VecDeque<Bytes>,
    held: bool,
    done: bool,
    closed: bool,
    /// Its socket takes nothing.
    stalled: bool,
    received: Vec<u8>,
    /// Every property of the last CONNACK is in here.
    connack: Vec<u8>,
}

/// Brokers, clients, and time.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) brokers: Vec<Broker>,
    pub(crate) now: Time,
    /// How long ago the last input of every client has arrived.
    pub(crate) input_age: Duration,
    /// Whether changes are committed in each tick.
    pub(crate) commits: bool,
    /// Changes that were said, and not committed, per shard.
    pub(crate) uncommitted: Vec<u64>,
    /// All that was said to the journal.
    pub(crate) records: Vec<Record>,
    /// What the journal was asked for.
    pub(crate) reads: Vec<ReadBack>,
    links: Vec<Link>,
    key: PlacementKey,
}

impl World {
    /// Says where sessions are at home.
    pub(crate) const KEY: PlacementKey = PlacementKey(11);

    pub(crate) fn new(shards: usize) -> Self {
        Self::with_config(shards, &Config::default())
    }

    pub(crate) fn with_config(shards: usize, config: &Config) -> Self {
        let key = Self::KEY;
        let broker = |i| Broker::new(config.clone(), ShardId::new(i), shards, key, 42 + i as u64);
        let mut world = Self {
            brokers: (0..shards).map(broker).collect(),
            now: Time::ZERO.plus_secs(1000),
            input_age: Duration::MAX,
            commits: true,
            uncommitted: vec![0; shards],
            records: Vec::new(),
            reads: Vec::new(),
            links: Vec::new(),
            key,
        };
        world.settle();
        world
    }

    /// The shard on which a client id is at home.
    pub(crate) fn home_of(&self, client_id: &str) -> usize {
        self.key.home_of(client_id, self.brokers.len()).index()
    }

    /// A client id that is at home on `shard`, one for each `n`.
    pub(crate) fn id_on(&self, shard: usize, n: usize) -> String {
        let ids = (0..).map(|i| format!("client-{i}"));
        ids.filter(|id| self.home_of(id) == shard).nth(n).unwrap()
    }

    /// A network connection, accepted at this moment, on `shard`.
    pub(crate) fn open(&mut self, shard: usize, version: Version) -> Client {
        let at = self.now;
        self.open_at(shard, version, at)
    }

    pub(crate) fn open_at(&mut self, shard: usize, version: Version, at: Time) -> Client {
        // Slots are used again, as the shard does.
        let free = |link: &Link| link.shard == shard && link.closed;
        let mut index = self.links.iter().filter(|link| link.shard == shard).count() as u32;
        let mut generation = 1;
        if let Some(old) = self.links.iter().rev().find(|link| free(link)) {
            let taken = |link: &&Link| {
                link.shard == shard && link.conn.index == old.conn.index && !link.closed
            };
            if self.links.iter().find(taken).is_none() {
                index = old.conn.index;
                let used = self.links.iter().filter(|l| l.shard == shard && l.conn.index == index);
                generation = used.map(|link| link.conn.generation).max().unwrap() + 1;
            }
        }
        let conn = ConnId { index, generation };
        self.brokers[shard].handle_open(self.now, conn, Accepted { at, listener: 0, peer: None });
        self.links.push(Link {
            shard,
            conn,
            version,
            input: VecDeque::new(),
            held: false,
            done: false,
            closed: false,
            stalled: false,
            received: Vec::new(),
            connack: Vec::new(),
        });
        Client(self.links.len() - 1)
    }

    /// Opens a connection at the client's home and sends CONNECT; CONNACK is left to be taken.
    pub(crate) fn connect(&mut self, connect: &Connect<'_>) -> Client {
        let client = self.open(self.home_of(connect.client_id), connect.version);
        self.send(client, &Packet::Connect(*connect));
        client
    }

    /// A client that is connected, its CONNACK taken: whether its session was present.
    pub(crate) fn join(&mut self, connect: &Connect<'_>) -> (Client, bool) {
        let client = self.connect(connect);
        match self.take_first(client, |_| true) {
            Some(Got::ConnAck { session_present, reason: ReasonCode::SUCCESS }) => {
                (client, session_present)
            }
            other => panic!("no CONNACK but {other:?}"),
        }
    }

    /// Sends packets, each in its own frame, and lets everything settle.
    pub(crate) fn send(&mut self, client: Client, packet: &Packet<'_>) {
        self.send_all(client, std::slice::from_ref(packet));
    }

    /// Sends several packets before anything else happens.
    pub(crate) fn send_all(&mut self, client: Client, packets: &[Packet<'_>]) {
        for packet in packets {
            let link = &mut self.links[client.0];
            let mut bytes = Vec::new();
            packet.encode(link.version, &mut bytes);
            assert_eq!(bytes.len(), packet.encoded_len(link.version));
            link.input.push_back(bytes.into());
        }
        self.parse(client.0);
        self.settle();
    }

    /// Sends a frame as it is.
    pub(crate) fn send_bytes(&mut self, client: Client, frame: &[u8]) {
        self.links[client.0].input.push_back(Bytes::copy_from_slice(frame));
        self.parse(client.0);
        self.settle();
    }

    fn parse(&mut self, index: usize) {
        loop {
            let link = &mut self.links[index];
            if link.held || link.done || link.closed {
                return;
            }
            let Some(frame) = link.input.pop_front() else { return };
            let broker = &mut self.brokers[link.shard];
            let version = broker.version_of(link.conn);
            let shared = (frame.len() >= SHARE_PAYLOAD_FROM).then_some(&frame);
            let info = Frame { bytes: &frame, shared };
            let step = broker.handle_frame(self.now, link.conn, version, info, &mut "");
            match step {
                Step::Next => {}
                Step::Pause => link.held = true,
                Step::Wait => {
                    link.held = true;
                    link.input.push_front(frame);
                }
                Step::Close => link.done = true,
            }
        }
    }

    /// Lets the brokers talk and the clients receive until nothing moves.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.tick() {
                return;
            }
        }
        panic!("it never becomes quiet");
    }

    fn tick(&mut self) -> bool {
        let mut moved = false;
        for shard in 0..self.brokers.len() {
            let now = self.now;
            self.brokers[shard].handle_timeouts(now);
            for id in std::mem::take(&mut self.brokers[shard].out.silent) {
                self.brokers[shard].handle_silence(now, id, self.input_age);
            }
            moved |= !self.brokers[shard].out.is_empty();
            self.commit(shard);
            moved |= !self.brokers[shard].out.is_empty();
            self.flush(shard);
            for id in std::mem::take(&mut self.brokers[shard].out.resume) {
                if let Some(index) = self.find(shard, id) {
                    self.links[index].held = false;
                    self.parse(index);
                }
            }
            for to in 0..self.brokers.len() {
                let batch: Batch = std::mem::take(&mut self.brokers[shard].out.batches[to]);
                if !batch.is_empty() {
                    assert_ne!(to, shard, "a shard says nothing to itself");
                    self.brokers[to].handle_entries(now, ShardId::new(shard), &batch);
                    moved = true;
                }
            }
            self.brokers[shard].handle_flushed(now);
            moved |= !self.brokers[shard].out.is_empty();
        }
        moved
    }

    fn commit(&mut self, shard: usize) {
        let broker = &mut self.brokers[shard];
        self.reads.append(&mut broker.out.reads);
        if let Some(last) = broker.out.changes.last() {
            self.uncommitted[shard] = last.number;
        }
        self.records.extend(broker.out.changes.drain(..).map(|change| change.record));
        if self.commits && self.uncommitted[shard] > 0 {
            let through = std::mem::take(&mut self.uncommitted[shard]);
            broker.handle_committed(self.now, through);
        }
    }

    fn flush(&mut self, shard: usize) {
        let broker = &mut self.brokers[shard];
        broker.out.dirty.conns.clear();
        for link in self.links.iter_mut().filter(|link| link.shard == shard && !link.closed) {
            let closing = broker.out.close.contains(&link.conn);
            if link.stalled && !closing {
                continue;
            }
            let outbox = broker.outbox(link.conn);
            let sent = outbox.len();
            link.received.extend(outbox.slices_from(0).flatten());
            outbox.clear();
            if sent > 0 {
                broker.handle_sent(self.now, link.conn, sent);
            }
            if closing {
                link.done = true;
                link.closed = true;
                broker.handle_closed(self.now, link.conn, Disconnection::Closed);
            }
        }
        broker.out.close.clear();
    }

    fn find(&self, shard: usize, conn: ConnId) -> Option<usize> {
        self.links.iter().position(|link| link.shard == shard && link.conn == conn)
    }

    /// The client's network is gone.
    pub(crate) fn cut(&mut self, client: Client) {
        let link = &mut self.links[client.0];
        if !link.closed {
            link.closed = true;
            let conn = link.conn;
            self.brokers[link.shard].handle_closed(self.now, conn, Disconnection::Error);
        }
        self.settle();
    }

    /// The client's socket takes nothing, or goes on.
    pub(crate) fn stall(&mut self, client: Client, stalled: bool) {
        self.links[client.0].stalled = stalled;
        self.settle();
    }

    /// Whether the broker has closed it.
    pub(crate) fn is_closed(&self, client: Client) -> bool {
        self.links[client.0].closed
    }

    /// Time passes; every deadline on the way is met when it comes.
    pub(crate) fn advance(&mut self, secs: u32) {
        let end = self.now.plus_secs(secs);
        loop {
            let next = self.brokers.iter().filter_map(Broker::next_deadline).min();
            match next.filter(|next| *next <= end) {
                Some(next) => self.now = self.now.max(next),
                None => break,
            }
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    /// Everything that the client received since the last look.
    pub(crate) fn take(&mut self, client: Client) -> Vec<Got> {
        std::iter::from_fn(|| self.take_first(client, |_| true)).collect()
    }

    /// The same as bytes.
    pub(crate) fn take_bytes(&mut self, client: Client) -> Vec<u8> {
        std::mem::take(&mut self.links[client.0].received)
    }

    /// The first that is of this kind; what stands before it is left.
    pub(crate) fn take_first(
        &mut self,
        client: Client,
        is_it: impl Fn(&Got) -> bool,
    ) -> Option<Got> {
        let link = &mut self.links[client.0];
        let mut at = 0;
        while let Some(len) = frame_len(&link.received[at..]).unwrap() {
            let frame = &link.received[at..at + len];
            let packet = decode(frame, Some(link.version), Side::Client).unwrap();
            let got = to_got(&packet, len);
            if is_it(&got) {
                if let Packet::ConnAck(_) = packet {
                    link.connack = frame.to_vec();
                }
                link.received.drain(at..at + len);
                return Some(got);
            }
            at += len;
        }
        None
    }

    /// Looks at the last CONNACK with all of its properties.
    pub(crate) fn connack<T>(
        &self,
        client: Client,
        look: impl FnOnce(&crate::codec::mqtt::ConnAckProperties<'_>) -> T,
    ) -> T {
        let link = &self.links[client.0];
        match decode(&link.connack, Some(link.version), Side::Client).unwrap() {
            Packet::ConnAck(connack) => look(&connack.properties),
            _ => unreachable!(),
        }
    }

    /// Only the PUBLISHes among what was received since the last look; each is acknowledged, to
    /// the end.
    pub(crate) fn take_messages(&mut self, client: Client) -> Vec<GotPublish> {
        let mut messages = Vec::new();
        loop {
            let got = self.take(client);
            if got.is_empty() {
                return messages;
            }
            for got in got {
                match got {
                    Got::Publish(publish) => {
                        if publish.qos > 0 {
                            let ack = Ack::new(id(publish.id), ReasonCode::SUCCESS);
                            let ack = match publish.qos {
                                1 => Packet::PubAck(ack),
                                _ => Packet::PubRec(ack),
                            };
                            self.send(client, &ack);
                        }
                        messages.push(publish);
                    }
                    Got::PubRel(n, _) => {
                        self.send(client, &Packet::PubComp(Ack::new(id(n), ReasonCode::SUCCESS)));
                    }
                    other => panic!("not a message: {other:?}"),
                }
            }
        }
    }

    /// The payloads of [`World::take_messages`], as text.
    pub(crate) fn take_payloads(&mut self, client: Client) -> Vec<String> {
        let text = |m: GotPublish| String::from_utf8(m.payload).unwrap();
        self.take_messages(client).into_iter().map(text).collect()
    }

    /// Subscribes to one filter; SUBACK is taken and checked.
    pub(crate) fn subscribe(&mut self, client: Client, filter: &str, qos: QoS) {
        self.subscribe_with(client, filter, SubscriptionOptions::new(qos), None);
    }

    pub(crate) fn subscribe_with(
        &mut self,
        client: Client,
        filter: &str,
        options: SubscriptionOptions,
        subscription_id: Option<u32>,
    ) {
        self.send_subscribe(client, filter, options, subscription_id);
        let suback = self.take_first(client, |got| matches!(got, Got::SubAck(..)));
        assert_eq!(suback, Some(Got::SubAck(999, vec![options.qos as u8])));
    }

    /// Asks for one filter, whatever comes of it.
    pub(crate) fn send_subscribe(
        &mut self,
        client: Client,
        filter: &str,
        options: SubscriptionOptions,
        subscription_id: Option<u32>,
    ) {
        let filters = [SubscribeFilter { filter, options }];
        let subscribe = Subscribe {
            packet_id: id(999),
            subscription_id,
            user_properties: UserProperties::default(),
            filters: SubscribeFilters::new(&filters),
        };
        self.send(client, &Packet::Subscribe(subscribe));
    }

    pub(crate) fn unsubscribe(&mut self, client: Client, filter: &str) {
        let filters = [filter];
        let unsubscribe = Unsubscribe {
            packet_id: id(998),
            user_properties: UserProperties::default(),
            filters: UnsubscribeFilters::new(&filters),
        };
        self.send(client, &Packet::Unsubscribe(unsubscribe));
        let unsuback = self.take_first(client, |got| matches!(got, Got::UnsubAck(..)));
        assert!(matches!(unsuback, Some(Got::UnsubAck(998, _))), "{unsuback:?}");
    }

    /// Publishes; `n` is the packet id from QoS 1 on.
    pub(crate) fn publish(&mut self, client: Client, topic: &str, payload: &str, qos: QoS, n: u16) {
        self.send(client, &Packet::Publish(publish(topic, payload.as_bytes(), qos, n)));
    }

    /// Says good-bye.
    pub(crate) fn leave(&mut self, client: Client) {
        let disconnect = Disconnect::new(ReasonCode::NORMAL_DISCONNECTION);
        self.send(client, &Packet::Disconnect(disconnect));
    }
}

/// A packet id.
pub(crate) fn id(n: u16) -> PacketId {
    PacketId::new(n).unwrap()
}

/// A topic alias.
pub(crate) fn alias(n: u16) -> Option<NonZeroU16> {
    NonZeroU16::new(n)
}

/// A CONNECT: clean, without anything else.
pub(crate) fn hello(version: Version, client_id: &str) -> Connect<'_> {
    Connect::new(version, client_id)
}

/// A CONNECT for a session that stays: whatever it held is continued.
pub(crate) fn stay(version: Version, client_id: &str) -> Connect<'_> {
    let mut connect = Connect { clean_start: false, ..hello(version, client_id) };
    if version == Version::V5 {
        connect.properties.session_expiry_interval = Some(1000);
    }
    connect
}

/// A Will at QoS 1.
pub(crate) fn will<'a>(topic: &'a str, payload: &'a str, delay_interval: u32) -> Option<Will<'a>> {
    Some(Will {
        topic,
        payload: payload.as_bytes(),
        qos: QoS::AtLeastOnce,
        retain: false,
        delay_interval,
        properties: PublishProperties::default(),
    })
}

/// A PUBLISH; `n` is the packet id from QoS 1 on.
pub(crate) fn publish<'a>(topic: &'a str, payload: &'a [u8], qos: QoS, n: u16) -> Publish<'a> {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic,
        packet_id: (qos > QoS::AtMostOnce).then(|| id(n)),
        properties: PublishProperties::default(),
        payload,
    }
}

fn to_got(packet: &Packet<'_>, len: usize) -> Got {
    match packet {
        Packet::ConnAck(p) => Got::ConnAck { session_present: p.session_present, reason: p.reason },
        Packet::Publish(p) => Got::Publish(GotPublish {
            topic: p.topic.into(),
            payload: p.payload.into(),
            qos: p.qos as u8,
            retain: p.retain,
            dup: p.dup,
            id: p.packet_id.map_or(0, PacketId::get),
            expiry: p.properties.message_expiry_interval,
            alias: p.properties.topic_alias.map_or(0, NonZeroU16::get),
            len,
            subscription_ids: p.properties.subscription_ids.iter().collect(),
            user_properties: p
                .properties
                .user_properties
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        }),
        Packet::PubAck(p) => Got::PubAck(p.packet_id.get(), p.reason),
        Packet::PubRec(p) => Got::PubRec(p.packet_id.get(), p.reason),
        Packet::PubRel(p) => Got::PubRel(p.packet_id.get(), p.reason),
        Packet::PubComp(p) => Got::PubComp(p.packet_id.get(), p.reason),
        Packet::SubAck(p) => Got::SubAck(p.packet_id.get(), p.codes.into()),
        Packet::UnsubAck(p) => Got::UnsubAck(p.packet_id.get(), p.codes.into()),
        Packet::PingResp => Got::PingResp,
        Packet::Disconnect(p) => Got::Disconnect(p.reason),
        Packet::Auth(p) => Got::Auth {
            reason: p.reason,
            method: p.authentication_method.unwrap_or_default().into(),
            data: String::from_utf8(p.authentication_data.unwrap_or_default().into()).unwrap(),
        },
        other => panic!("a server does not send {other:?}"),
    }
}
