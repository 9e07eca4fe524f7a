//! Several brokers whose lanes are as slow as a seed wants: the rules of SHARDS.md that only show
//! then. Each test is known to fail when the rule that its name or comment states is left out: the
//! rules were taken out one by one.
#![forbid(unsafe_code)]

mod barrier;
mod group;
mod publish;
mod replay;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::topic_tree::tests::reference;
use super::*;
use crate::codec::mqtt::{
    Ack, Connect, ConnectProperties, Disconnect, PacketId, Publish, PublishProperties,
    RetainHandling, Side, Subscribe, SubscribeFilter, SubscribeFilters, SubscriptionOptions,
    Unsubscribe, UnsubscribeFilters, UserProperties, Version, decode, frame_len,
};

/// xorshift64*: the tests' own, so that a seed stays what it was.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    topic: String,
    number: u64,
    retain: bool,
    ids: Vec<u32>,
}

struct Client {
    shard: usize,
    conn: ConnId,
    id: String,
    online: bool,
    /// Frames that the broker has not taken.
    input: VecDeque<Vec<u8>>,
    held: bool,
    /// Nothing of it arrives at the broker.
    mute: bool,
    received: Vec<u8>,
    seen: Vec<Seen>,
    /// SUBACKs, by packet id.
    subacks: BTreeMap<u16, Vec<u8>>,
    closed: bool,
}

struct World {
    brokers: Vec<Broker>,
    lanes: BTreeMap<(usize, usize), VecDeque<Batch>>,
    clients: Vec<Client>,
    now: Time,
}

const KEY: PlacementKey = PlacementKey(3);

impl World {
    fn new(shards: usize) -> Self {
        let broker = |i| Broker::new(Config::default(), ShardId::new(i), shards, KEY, i as u64);
        Self {
            brokers: (0..shards).map(broker).collect(),
            lanes: BTreeMap::new(),
            clients: Vec::new(),
            now: Time::ZERO.plus_secs(10),
        }
    }

    fn client(&mut self, shard: usize, properties: ConnectProperties<'_>) -> usize {
        let index = self.clients.len();
        self.clients.push(Client {
            shard,
            conn: ConnId { index: index as u32, generation: 0 },
            id: format!("client-{index}"),
            online: false,
            input: VecDeque::new(),
            held: false,
            mute: false,
            received: Vec::new(),
            seen: Vec::new(),
            subacks: BTreeMap::new(),
            closed: true,
        });
        self.connect(index, properties);
        index
    }

    fn plain(&mut self, shard: usize) -> usize {
        self.client(shard, ConnectProperties::default())
    }

    fn durable(&mut self, shard: usize) -> usize {
        let session_expiry_interval = Some(1000);
        self.client(shard, ConnectProperties { session_expiry_interval, ..Default::default() })
    }

    fn connect(&mut self, index: usize, properties: ConnectProperties<'_>) {
        let client = &mut self.clients[index];
        client.conn.generation += 1;
        (client.online, client.closed, client.held) = (true, false, false);
        client.input.clear();
        let accepted = Accepted { at: self.now, listener: 0, peer: None };
        self.brokers[client.shard].handle_open(self.now, client.conn, accepted);
        let client_id = client.id.clone();
        let fresh = Connect::new(Version::V5, &client_id);
        let connect = Connect { clean_start: false, properties, ..fresh };
        self.send(index, &Packet::Connect(connect));
    }

    fn cut(&mut self, index: usize) {
        let client = &mut self.clients[index];
        (client.online, client.closed) = (false, true);
        let conn = client.conn;
        self.brokers[client.shard].handle_closed(self.now, conn, Disconnection::Error);
        self.collect(client_shard(self, index));
    }

    fn disconnect(&mut self, index: usize, expiry: Option<u32>) {
        let mut disconnect = Disconnect::new(ReasonCode::NORMAL_DISCONNECTION);
        disconnect.session_expiry_interval = expiry;
        self.send(index, &Packet::Disconnect(disconnect));
        self.clients[index].online = false;
    }

    fn send(&mut self, index: usize, packet: &Packet<'_>) {
        let mut frame = Vec::new();
        packet.encode(Version::V5, &mut frame);
        self.clients[index].input.push_back(frame);
        self.parse(index);
    }

    fn parse(&mut self, index: usize) {
        let client = &mut self.clients[index];
        while !client.held && !client.mute && !client.closed {
            let Some(frame) = client.input.pop_front() else { break };
            let broker = &mut self.brokers[client.shard];
            let version = broker.version_of(client.conn);
            let info = Frame { bytes: &frame, shared: None };
            let step = broker.handle_frame(self.now, client.conn, version, info, &mut "");
            match step {
                Step::Next => {}
                Step::Pause => client.held = true,
                Step::Wait => {
                    client.held = true;
                    client.input.push_front(frame);
                }
                Step::Close => break,
            }
        }
        self.collect(client_shard(self, index));
    }

    /// Takes what a broker says, to lanes and clients.
    fn collect(&mut self, shard: usize) {
        for to in 0..self.brokers.len() {
            let batch = std::mem::take(&mut self.brokers[shard].out.batches[to]);
            if !batch.is_empty() {
                assert_ne!(to, shard);
                self.lanes.entry((shard, to)).or_default().push_back(batch);
            }
        }
        self.brokers[shard].handle_flushed(self.now);
        let out = &mut self.brokers[shard].out;
        out.dirty.conns.clear();
        let (closing, resumed) = (std::mem::take(&mut out.close), std::mem::take(&mut out.resume));
        for index in 0..self.clients.len() {
            if self.clients[index].shard == shard {
                self.receive(index, closing.contains(&self.clients[index].conn));
            }
        }
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            if client.shard == shard && resumed.contains(&client.conn) {
                client.held = false;
                self.parse(index);
            }
        }
    }

    fn receive(&mut self, index: usize, closing: bool) {
        let client = &mut self.clients[index];
        if client.closed {
            return;
        }
        let broker = &mut self.brokers[client.shard];
        let outbox = broker.outbox(client.conn);
        client.received.extend(outbox.slices_from(0).flatten());
        let sent = outbox.len();
        outbox.clear();
        if sent > 0 {
            broker.handle_sent(self.now, client.conn, sent);
        }
        if closing {
            broker.handle_closed(self.now, client.conn, Disconnection::Closed);
            (client.closed, client.online) = (true, false);
        }
        let bytes = std::mem::take(&mut client.received);
        let mut rest = &bytes[..];
        while let Some(len) = frame_len(rest).unwrap() {
            let (frame, next) = rest.split_at(len);
            rest = next;
            match decode(frame, Some(Version::V5), Side::Client).unwrap() {
                Packet::Publish(publish) => {
                    client.seen.push(Seen {
                        topic: publish.topic.to_owned(),
                        number: std::str::from_utf8(publish.payload).unwrap().parse().unwrap_or(0),
                        retain: publish.retain,
                        ids: publish.properties.subscription_ids.iter().collect(),
                    });
                    if let Some(packet_id) = publish.packet_id {
                        assert_eq!(publish.qos, QoS::AtLeastOnce);
                        let mut frame = Vec::new();
                        Packet::PubAck(Ack::new(packet_id, ReasonCode::SUCCESS))
                            .encode(Version::V5, &mut frame);
                        client.input.push_back(frame);
                    }
                }
                Packet::SubAck(ack) => {
                    client.subacks.insert(ack.packet_id.get(), ack.codes.to_vec());
                }
                _ => {}
            }
        }
    }

    fn subscribe_with(
        &mut self,
        index: usize,
        n: u16,
        filters: &[(&str, SubscriptionOptions)],
        subscription_id: Option<u32>,
    ) {
        let filters: Vec<_> = filters
            .iter()
            .map(|(filter, options)| SubscribeFilter { filter, options: *options })
            .collect();
        let subscribe = Subscribe {
            packet_id: PacketId::new(n).unwrap(),
            subscription_id,
            user_properties: UserProperties::EMPTY,
            filters: SubscribeFilters::new(&filters),
        };
        self.clients[index].subacks.remove(&n);
        self.send(index, &Packet::Subscribe(subscribe));
    }

    fn subscribe(&mut self, index: usize, n: u16, filter: &str, qos: QoS) {
        self.subscribe_with(index, n, &[(filter, SubscriptionOptions::new(qos))], None);
    }

    fn unsubscribe(&mut self, index: usize, filter: &str) {
        let filters = [filter];
        let unsubscribe = Unsubscribe {
            packet_id: PacketId::new(9).unwrap(),
            user_properties: UserProperties::EMPTY,
            filters: UnsubscribeFilters::new(&filters),
        };
        self.send(index, &Packet::Unsubscribe(unsubscribe));
    }

    fn is_acked(&self, index: usize, n: u16) -> bool {
        self.clients[index].subacks.contains_key(&n)
    }

    /// Publishes at QoS 1; `retain` with number 0 clears.
    fn publish(&mut self, index: usize, topic: &str, number: u64, retain: bool) {
        let payload = if number == 0 { String::new() } else { number.to_string() };
        let publish = Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain,
            topic,
            packet_id: PacketId::new(1 + (number % 60_000) as u16),
            properties: PublishProperties::default(),
            payload: payload.as_bytes(),
        };
        self.send(index, &Packet::Publish(publish));
    }

    /// The next batch of a lane arrives. Tells whether there was one.
    fn deliver(&mut self, from: usize, to: usize) -> bool {
        let Some(batch) = self.lanes.get_mut(&(from, to)).and_then(VecDeque::pop_front) else {
            return false;
        };
        self.brokers[to].handle_entries(self.now, ShardId::new(from), &batch);
        self.collect(to);
        true
    }

    fn tick(&mut self, shard: usize) {
        self.brokers[shard].handle_timeouts(self.now);
        self.collect(shard);
    }

    /// Something of the machinery moves.
    fn step(&mut self, random: &mut Random) {
        let shards = self.brokers.len();
        match random.below(8) {
            0 => self.tick(random.below(shards)),
            1 if !self.clients.is_empty() => self.parse(random.below(self.clients.len())),
            2 if random.one_in(6) => self.now = self.now + Duration::from_millis(300),
            _ => {
                let waiting: Vec<_> =
                    self.lanes.iter().filter(|(_, l)| !l.is_empty()).map(|(p, _)| *p).collect();
                if !waiting.is_empty() {
                    let (from, to) = random.pick(&waiting);
                    self.deliver(from, to);
                }
            }
        }
    }

    /// Everything that is under way arrives.
    fn settle(&mut self) {
        for _ in 0..2_000 {
            let mut moved = false;
            for from in 0..self.brokers.len() {
                for to in 0..self.brokers.len() {
                    while self.deliver(from, to) {
                        moved = true;
                    }
                }
                moved |= self.brokers[from].next_deadline().is_some_and(|at| at <= self.now);
                self.tick(from);
            }
            for index in 0..self.clients.len() {
                let client = &self.clients[index];
                moved |= !client.held && !client.mute && !client.input.is_empty();
                self.parse(index);
            }
            if !moved {
                return;
            }
        }
        panic!("it never becomes quiet");
    }
}

fn client_shard(world: &World, index: usize) -> usize {
    world.clients[index].shard
}

const QOS1: SubscriptionOptions = SubscriptionOptions::new(QoS::AtLeastOnce);
