//! Several brokers whose lanes are as slow as a seed wants: the rules of SHARDS.md that only show
//! then. Each test is known to fail when the rule that its name or comment states is left out: the
//! rules were taken out one by one.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::topic_tree::tests::reference;
use super::*;
use crate::codec::mqtt::{
    Ack, Connect, ConnectProperties, Disconnect, PacketId, Publish, PublishProperties,
    RetainHandling, Side, Subscribe, SubscribeFilter, SubscribeFilters, SubscriptionOptions,
    Unsubscribe, UnsubscribeFilters, UserProperties, Version, decode, frame_len,
};

fn is_wanted_durably(broker: &mut Broker, topic: &str) -> bool {
    let route = matches::find(broker, topic);
    let is_wanted = matches::is_wanted_durably(broker, &route);
    matches::put_back(broker, route);
    is_wanted
}

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
        let connect = Connect {
            version: Version::V5,
            bridge: false,
            clean_start: false,
            keep_alive: 0,
            client_id: &client_id,
            user_name: None,
            password: None,
            will: None,
            properties,
        };
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

/// I1, I4, I5: SUBACK waits for the change's own number on every lane; until then the connection
/// is not parsed, and the subscription has not begun.
#[test]
fn suback_waits_until_all_shards_have_applied_the_change() {
    let mut world = World::new(3);
    let (client, publisher) = (world.plain(0), world.plain(0));
    world.subscribe(client, 1, "a", QoS::AtLeastOnce);
    assert!(world.clients[client].held, "I5: it is not parsed further");
    world.publish(publisher, "a", 1, false);
    assert!(world.clients[client].seen.is_empty(), "I4: it has not begun");
    world.deliver(0, 1);
    world.deliver(1, 0);
    assert!(!world.is_acked(client, 1), "one of two");
    world.deliver(0, 2);
    world.deliver(2, 0);
    assert!(world.is_acked(client, 1) && !world.clients[client].held);
    world.publish(publisher, "a", 2, false);
    assert_eq!(world.clients[client].seen.len(), 1);
}

/// I1: the acknowledgements of an earlier change do not answer for a later one.
#[test]
fn an_earlier_changes_acknowledgement_is_not_the_laters() {
    let mut world = World::new(2);
    let client = world.plain(0);
    world.subscribe(client, 1, "a", QoS::AtLeastOnce);
    world.settle();
    world.unsubscribe(client, "a");
    world.now = world.now + Duration::from_secs(1);
    world.tick(0);
    world.subscribe(client, 2, "a", QoS::AtLeastOnce);
    world.deliver(0, 1); // the removal only
    world.deliver(1, 0);
    assert!(!world.is_acked(client, 2));
    world.settle();
    assert!(world.is_acked(client, 2));
}

/// I2: a SUBSCRIBE that changes nothing waits for the filter's last change.
#[test]
fn who_joins_waits_for_the_change_in_flight() {
    let mut world = World::new(2);
    let (first, second) = (world.plain(0), world.plain(0));
    world.subscribe(first, 1, "a/+", QoS::AtMostOnce);
    world.subscribe(second, 1, "a/+", QoS::AtMostOnce);
    assert!(!world.is_acked(second, 1));
    world.settle();
    assert!(world.is_acked(first, 1) && world.is_acked(second, 1));
    world.subscribe(second, 2, "a/+", QoS::AtMostOnce);
    assert!(world.is_acked(second, 2), "now it is known everywhere");
}

/// I3: a durable session that joins what plain ones hold is a change of its own.
#[test]
fn raising_to_durable_has_a_barrier() {
    for filter in ["a", "+"] {
        let mut world = World::new(2);
        let (plain, durable) = (world.plain(0), world.durable(0));
        world.subscribe(plain, 1, filter, QoS::AtLeastOnce);
        world.settle();
        assert!(!is_wanted_durably(&mut world.brokers[1], "a"));
        world.subscribe(durable, 1, filter, QoS::AtMostOnce);
        assert!(world.is_acked(durable, 1), "QoS 0 is not durable");
        world.subscribe(durable, 2, filter, QoS::AtLeastOnce);
        assert!(!world.is_acked(durable, 2));
        world.settle();
        assert!(world.is_acked(durable, 2));
        assert!(is_wanted_durably(&mut world.brokers[1], "a"));
    }
}

/// I4: what is in the barrier belongs to the session. It begins although its connection is gone;
/// the new connection gets no SUBACK for it. With the session it is taken back whole.
#[test]
fn the_barrier_outlives_the_connection_and_not_the_session() {
    let mut world = World::new(2);
    let (client, publisher) = (world.durable(0), world.plain(1));
    world.subscribe(client, 1, "a", QoS::AtLeastOnce);
    world.cut(client);
    world.settle();
    assert!(!world.is_acked(client, 1));
    world.publish(publisher, "a", 1, false);
    world.settle();
    let properties =
        ConnectProperties { session_expiry_interval: Some(1000), ..Default::default() };
    world.connect(client, properties);
    world.settle();
    assert_eq!(world.clients[client].seen.len(), 1);
    assert!(!world.is_acked(client, 1), "its packet id was the other connection's");

    let mortal = world.plain(0);
    world.subscribe(mortal, 1, "b/#", QoS::AtLeastOnce);
    world.cut(mortal);
    assert!(world.brokers[0].subscribing.is_idle(), "nothing waits for a session that is over");
    world.settle();
    world.now = world.now + Duration::from_secs(1);
    world.settle();
    assert!(world.brokers.iter().all(|broker| broker.topic_tree.get("b/#").is_none()));
}

/// I4: UNSUBSCRIBE on a new connection takes back what an old one has in the barrier.
#[test]
fn unsubscribe_reaches_into_the_barrier() {
    let mut world = World::new(2);
    let (client, publisher) = (world.durable(0), world.plain(0));
    world.subscribe(client, 1, "a", QoS::AtLeastOnce);
    let properties =
        ConnectProperties { session_expiry_interval: Some(1000), ..Default::default() };
    world.cut(client);
    world.connect(client, properties);
    world.unsubscribe(client, "a");
    world.settle();
    world.publish(publisher, "a", 1, false);
    world.settle();
    assert!(world.clients[client].seen.is_empty());
}

/// The promise of SUBACK under churn, without order between the lanes: whoever has it gets every
/// message that is published from then on, once, in order; and a durable one is known as such to
/// every shard. Fails without I1, I2, I3, I4 (the subscription begins too early: harmless here),
/// and when lowering is said before it is true.
#[test]
fn nothing_is_lost_after_suback() {
    let filters = ["a", "a/b", "+", "a/#", "#"];
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let mut world = World::new(2 + random.below(2));
        let shards = world.brokers.len();
        let publishers: Vec<usize> = (0..shards).map(|shard| world.plain(shard)).collect();
        let clients: Vec<usize> = (0..3)
            .map(|i| match i {
                0 => world.durable(0),
                _ => world.plain(random.below(shards)),
            })
            .collect();
        // Per client and filter: the packet id of a SUBSCRIBE that is under way or answered.
        let mut wants: BTreeMap<(usize, usize), u16> = BTreeMap::new();
        let mut owed: BTreeSet<(usize, u64)> = BTreeSet::new();
        let mut number = 0;
        for _ in 0..220 {
            match random.below(6) {
                0 => {
                    let (client, f) = (random.pick(&clients), random.below(filters.len()));
                    let n = 10 + f as u16;
                    let busy = world.clients[client].held;
                    match wants.get(&(client, f)) {
                        None if !busy => {
                            wants.insert((client, f), n);
                            world.subscribe(client, n, filters[f], QoS::AtLeastOnce);
                        }
                        Some(_) if !busy && random.one_in(2) => {
                            wants.remove(&(client, f));
                            world.unsubscribe(client, filters[f]);
                            // What is on its way finds the subscription gone.
                            let seen = &world.clients[client].seen;
                            let came = |number| seen.iter().any(|seen| seen.number == number);
                            owed.retain(|(owner, number)| *owner != client || came(*number));
                        }
                        _ => {}
                    }
                }
                1 => {
                    number += 1;
                    let (topic, at) = (random.pick(&["a", "a/b", "c"]), random.below(shards));
                    for &(client, f) in wants.keys() {
                        let acked = world.is_acked(client, 10 + f as u16);
                        if acked && reference(filters[f], topic) {
                            owed.insert((client, number));
                            assert!(
                                client != clients[0]
                                    || is_wanted_durably(&mut world.brokers[at], topic),
                                "seed {seed}: I3"
                            );
                        }
                    }
                    world.publish(publishers[at], topic, number, false);
                }
                _ => world.step(&mut random),
            }
        }
        world.settle();
        for &client in &clients {
            let seen: Vec<u64> = world.clients[client].seen.iter().map(|s| s.number).collect();
            let distinct: BTreeSet<u64> = seen.iter().copied().collect();
            assert_eq!(seen.len(), distinct.len(), "seed {seed}: once each");
            for &(_, number) in owed.iter().filter(|(owner, _)| *owner == client) {
                assert!(distinct.contains(&number), "seed {seed}: {number} was lost");
            }
        }
        // When all have gone, nothing is left.
        for client in clients.into_iter().chain(publishers) {
            world.disconnect(client, Some(0));
        }
        for _ in 0..3 {
            world.now = world.now + Duration::from_secs(1);
            world.settle();
        }
        for broker in &world.brokers {
            assert!(broker.topic_tree.is_empty(), "seed {seed}: filters are left");
            assert!(broker.interest.is_empty(), "seed {seed}: interest is left");
        }
    }
}

/// R1: the owner answers when it has processed what the asker knew of. Here the asker knows of a
/// value (its origin has said so with "applied") that is still on its way to the owner.
#[test]
fn an_owner_answers_when_it_has_what_the_asker_knew_of() {
    let mut world = World::new(3);
    let (publisher, client) = (world.plain(0), world.plain(1));
    let topic = (0..).map(|i| format!("t/{i}")).find(|t| KEY.owner_of(t, 3).index() == 2).unwrap();
    world.publish(publisher, &topic, 1, true);
    world.subscribe(client, 1, &topic, QoS::AtLeastOnce);
    for (from, to) in [(1, 0), (0, 1), (1, 2), (2, 1)] {
        world.deliver(from, to);
    }
    assert!(world.is_acked(client, 1));
    assert!(world.deliver(1, 2), "the question is asked");
    assert!(!world.deliver(2, 1), "and not answered yet");
    world.settle();
    assert_eq!(world.clients[client].seen.len(), 1);
}

/// What a random run of retained publishes and subscriptions showed to one client.
#[derive(Default, Debug)]
struct Faults {
    lost: u64,
    duplicate: u64,
    stale: u64,
    outdated: u64,
}

/// R1 to R4 in a world like that of models/retained_cut.py: each alone left out shows as values
/// lost, doubled, older after newer, or outdated for good.
#[test]
fn a_replay_is_exact_whatever_the_timing() {
    let mut faults = Faults::default();
    for seed in 0..1000 {
        retained_run(seed, &mut faults);
    }
    let Faults { lost, duplicate, stale, outdated } = faults;
    assert_eq!((lost, duplicate, stale, outdated), (0, 0, 0, 0), "{faults:?}");
}

fn retained_run(seed: u64, faults: &mut Faults) {
    const TOPICS: [&str; 3] = ["t/0", "t/1", "u"];
    let mut random = Random::new(seed);
    let shards = 1 + random.below(4);
    let mut world = World::new(shards);
    let publishers: Vec<usize> = (0..shards).map(|shard| world.plain(shard)).collect();
    let home = random.below(shards);
    let clients: Vec<(usize, &str)> = (0..2)
        .map(|_| {
            let receive_maximum = Some(1 + random.below(3) as u16);
            let properties = ConnectProperties { receive_maximum, ..Default::default() };
            (world.client(home, properties), random.pick(&["t/0", "t/1", "t/+", "#", "+/#"]))
        })
        .collect();
    let mut subscribed = [false; 2];
    let mut number = 0;
    // Per value: origin, and its place among that origin's values for the owner of its topic.
    let mut origin_of: BTreeMap<u64, usize> = BTreeMap::new();
    for _ in 0..90 {
        match random.below(7) {
            0 if number < 12 => {
                number += 1;
                let (topic, at) = (random.pick(&TOPICS), random.below(shards));
                let clears = random.one_in(5);
                origin_of.insert(number, at);
                world.publish(publishers[at], topic, if clears { 0 } else { number }, true);
            }
            1 => {
                let i = random.below(2);
                if !std::mem::replace(&mut subscribed[i], true) {
                    world.subscribe(clients[i].0, 1, clients[i].1, QoS::AtLeastOnce);
                }
            }
            _ => world.step(&mut random),
        }
    }
    for i in 0..2 {
        if !subscribed[i] {
            world.subscribe(clients[i].0, 1, clients[i].1, QoS::AtLeastOnce);
        }
    }
    world.settle();
    for (client, filter) in clients {
        assert!(world.is_acked(client, 1), "seed {seed}: SUBACK never came");
        let seen = &world.clients[client].seen;
        for topic in TOPICS.into_iter().filter(|topic| reference(filter, topic)) {
            let seen: Vec<&Seen> = seen.iter().filter(|s| s.topic == topic).collect();
            let values: Vec<u64> = seen.iter().map(|s| s.number).filter(|n| *n > 0).collect();
            let distinct: BTreeSet<u64> = values.iter().copied().collect();
            faults.duplicate += u64::from(distinct.len() != values.len());
            let mut newest: BTreeMap<usize, u64> = BTreeMap::new();
            for value in &values {
                let newest = newest.entry(origin_of[value]).or_default();
                faults.stale += u64::from(*newest > *value);
                *newest = (*newest).max(*value);
            }
            match stored(&world, topic) {
                Some(last) if !distinct.contains(&last) => faults.lost += 1,
                last => {
                    let is_replay = seen.last().is_some_and(|s| s.retain);
                    let is_last = seen.last().map(|s| s.number) == last;
                    faults.outdated += u64::from(is_replay && !is_last);
                }
            }
        }
    }
    for broker in &world.brokers {
        assert!(broker.replays.is_idle() && broker.retained.is_idle(), "seed {seed}");
    }
}

/// The number of the retained message of a topic, at its owner.
fn stored(world: &World, topic: &str) -> Option<u64> {
    let owner = KEY.owner_of(topic, world.brokers.len()).index();
    let broker = &world.brokers[owner];
    let message = broker.messages.get(broker.retained.find(topic)?.message);
    std::str::from_utf8(message.payload().bytes).unwrap().parse().ok()
}

/// S1, S2, L9: members come and go on three shards, plain subscribers of the same filter are on
/// all of them, and each message reaches one member. Without the name in the entry it reaches one
/// per shard; without the way back it is lost.
#[test]
fn a_group_gets_each_message_once() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let mut world = World::new(3);
        let publishers: Vec<usize> = (0..3).map(|shard| world.plain(shard)).collect();
        let plain: Vec<usize> = (0..3).map(|shard| world.plain(shard)).collect();
        let members: Vec<usize> = (0..3).map(|_| world.plain(random.below(3))).collect();
        for client in plain.iter().copied().chain([members[0]]) {
            let is_member = members.contains(&client);
            let filter = if is_member { "$share/g/t/+" } else { "t/+" };
            world.subscribe_with(client, 1, &[(filter, QOS1)], is_member.then_some(7));
        }
        world.settle();
        let mut inside = [true, false, false];
        let mut number = 0;
        for _ in 0..150 {
            match random.below(5) {
                0 if number < 30 => {
                    number += 1;
                    world.publish(publishers[random.below(3)], "t/x", number, false);
                }
                1 => {
                    let i = 1 + random.below(2);
                    if world.clients[members[i]].held {
                        continue;
                    }
                    inside[i] = !inside[i];
                    if inside[i] {
                        world.subscribe_with(members[i], 1, &[("$share/g/t/+", QOS1)], Some(7));
                    } else {
                        world.unsubscribe(members[i], "$share/g/t/+");
                    }
                }
                _ => world.step(&mut random),
            }
        }
        world.settle();
        let mut times = vec![0; number as usize + 1];
        for &member in &members {
            for seen in &world.clients[member].seen {
                assert_eq!(seen.ids, [7]);
                times[seen.number as usize] += 1;
            }
        }
        assert!(times[1..].iter().all(|times| *times == 1), "seed {seed}: {times:?}");
        for &client in &plain {
            assert_eq!(world.clients[client].seen.len(), number as usize, "seed {seed}");
        }
    }
}

/// S2: only offline members at the chosen shard, online ones elsewhere: back once, then taken.
#[test]
fn a_message_goes_to_a_member_online_elsewhere() {
    let mut world = World::new(3);
    let (first, second, publisher) = (world.durable(1), world.durable(2), world.plain(0));
    let stays = ConnectProperties { session_expiry_interval: Some(1000), ..Default::default() };
    for client in [first, second] {
        world.subscribe(client, 1, "$share/g/t", QoS::AtLeastOnce);
    }
    world.cut(second);
    world.settle();
    world.publish(publisher, "t", 1, false);
    // While it is on its way to the first, that one goes and the second comes.
    world.cut(first);
    world.connect(second, stays);
    world.deliver(2, 1);
    world.deliver(2, 0);
    world.settle();
    assert_eq!(world.clients[second].seen.len(), 1);
    world.cut(second);
    world.settle();
    // Nobody is online: somebody's session keeps it.
    world.publish(publisher, "t", 2, false);
    world.settle();
    world.connect(first, stays);
    world.connect(second, stays);
    world.settle();
    let seen = [first, second].map(|client| world.clients[client].seen.len());
    assert_eq!(seen.iter().sum::<usize>(), 2, "{seen:?}");
}

/// S4: what a member holds when its session ends moves to another one, here or elsewhere, except
/// QoS 2 that was sent `[MQTT-4.8.2-5]`.
#[test]
fn a_members_messages_move_when_its_session_ends() {
    for shards in [1, 2] {
        let mut world = World::new(shards);
        let (ends, publisher) = (world.durable(0), world.plain(0));
        world.subscribe(ends, 1, "$share/g/t", QoS::AtLeastOnce);
        world.settle();
        // The first is sent and not acknowledged, the others wait for the connection.
        world.clients[ends].held = true;
        world.publish(publisher, "t", 1, false);
        world.cut(ends);
        for number in 2..=4 {
            world.publish(publisher, "t", number, false);
        }
        world.settle();
        let stays = world.plain(shards - 1);
        world.subscribe(stays, 1, "$share/g/t", QoS::AtLeastOnce);
        world.settle();
        assert!(world.clients[stays].seen.is_empty());
        world.now = world.now + Duration::from_secs(2000);
        world.settle();
        let numbers: Vec<u64> = world.clients[stays].seen.iter().map(|s| s.number).collect();
        assert_eq!(numbers, [1, 2, 3, 4], "{shards} shards");
        assert_eq!(world.brokers[0].messages.len(), 0, "nothing is left behind");
    }
}

/// SUBACK and UNSUBACK of a session that outlives us wait for their records.
#[test]
fn suback_waits_for_its_record() {
    let mut world = World::new(1);
    let config = Config { record_changes: true, ..Config::default() };
    world.brokers[0] = Broker::new(config, ShardId::new(0), 1, KEY, 1);
    let (durable, plain) = (world.durable(0), world.plain(0));
    let commit = |world: &mut World| {
        let number = world.brokers[0].out.changes.last().map(|change| change.number);
        world.brokers[0].out.changes.clear();
        let now = world.now;
        world.brokers[0].handle_committed(now, number.unwrap_or(0));
        world.collect(0);
    };
    commit(&mut world);
    world.subscribe(durable, 1, "a", QoS::AtLeastOnce);
    world.subscribe(plain, 1, "a", QoS::AtLeastOnce);
    assert!(!world.is_acked(durable, 1) && world.is_acked(plain, 1));
    assert!(world.clients[durable].held);
    commit(&mut world);
    assert!(world.is_acked(durable, 1) && !world.clients[durable].held);
}

/// L9: a shard that gets a message for its plain subscribers concludes nothing for its groups.
#[test]
fn a_target_concludes_no_duty_from_its_own_tables() {
    let mut world = World::new(2);
    let (plain, member, other) = (world.plain(1), world.plain(1), world.plain(0));
    let publisher = world.plain(0);
    world.subscribe(plain, 1, "t", QoS::AtLeastOnce);
    world.subscribe(member, 1, "$share/g/t", QoS::AtLeastOnce);
    world.subscribe(other, 1, "$share/g/t", QoS::AtLeastOnce);
    world.settle();
    for number in 1..=10 {
        world.publish(publisher, "t", number, false);
    }
    world.settle();
    let count = |client: usize| world.clients[client].seen.len();
    assert_eq!(count(plain), 10);
    assert_eq!((count(member), count(other)), (5, 5), "by weight, each message once");
}

/// L7: a publish towards a full lane waits, others go on; it goes when there is room.
#[test]
fn a_publish_towards_a_full_lane_waits() {
    let mut world = World::new(2);
    let (there, here) = (world.plain(1), world.plain(0));
    let (first, second) = (world.plain(0), world.plain(0));
    world.subscribe(there, 1, "far", QoS::AtLeastOnce);
    world.subscribe(here, 1, "near", QoS::AtLeastOnce);
    world.settle();
    let mut full = ShardSet::EMPTY;
    full.insert(ShardId::new(1));
    let now = world.now;
    world.brokers[0].handle_lanes(now, full);
    world.publish(first, "far", 1, false);
    assert!(world.clients[first].held);
    world.publish(second, "near", 2, false);
    assert!(!world.clients[second].held);
    world.brokers[0].handle_lanes(now, ShardSet::EMPTY);
    world.collect(0);
    world.settle();
    assert_eq!(world.clients[there].seen.len(), 1);
    assert_eq!(world.clients[here].seen.len(), 1);
}

/// L4, L7: one tick brings so many bytes into a lane and no more, however small the packets that
/// make them; the publishers go on in the next tick, each in its turn.
#[test]
fn a_batch_is_bounded_in_bytes() {
    let mut world = World::new(2);
    let there = world.plain(1);
    let publishers = [world.plain(0), world.plain(0), world.plain(0)];
    let topic = "x".repeat(60_000);
    world.subscribe(there, 1, "#", QoS::AtMostOnce);
    world.settle();
    for publisher in publishers {
        for number in 0..20 {
            let properties = PublishProperties {
                topic_alias: std::num::NonZeroU16::new(1),
                ..PublishProperties::default()
            };
            let payload = format!("{}", 100 * publisher + number);
            let publish = Publish {
                dup: false,
                qos: QoS::AtMostOnce,
                retain: false,
                topic: if number == 0 { &topic } else { "" },
                packet_id: None,
                properties,
                payload: payload.as_bytes(),
            };
            let mut frame = Vec::new();
            Packet::Publish(publish).encode(Version::V5, &mut frame);
            world.clients[publisher].input.push_back(frame);
        }
    }
    for publisher in publishers {
        world.parse(publisher);
    }
    let sizes: Vec<usize> = world.lanes[&(0, 1)].iter().map(Batch::size).collect();
    assert!(sizes.len() >= 60 * 60_000 / (limits::BATCH_BYTES + 60_100), "{sizes:?}");
    assert!(sizes.iter().all(|size| *size < limits::BATCH_BYTES + 60_100), "{sizes:?}");
    world.settle();
    let numbers: Vec<u64> = world.clients[there].seen.iter().map(|seen| seen.number).collect();
    assert_eq!(numbers.len(), 60);
    for publisher in publishers {
        let of = |n: &&u64| **n / 100 == publisher as u64;
        assert!(numbers.iter().filter(of).is_sorted());
    }
}

/// What a burst has grown is given up again.
#[test]
fn an_emptied_batch_keeps_little() {
    let mut batch = Batch::default();
    batch.bytes.resize(4 * limits::BATCH_BYTES, 0);
    batch.clear();
    assert!(batch.bytes.capacity() <= limits::BATCH_BYTES_KEPT);
    assert_eq!(batch.size(), 0);
}

/// Section 7: nobody has ended while another may still say something, an answer that it waits for
/// included.
#[test]
fn the_end_comes_behind_everything_else() {
    let mut world = World::new(3);
    let (client, publisher) = (world.plain(0), world.plain(1));
    world.subscribe(client, 1, "a", QoS::AtLeastOnce);
    world.settle();
    world.publish(publisher, "a", 1, false);
    world.subscribe(client, 2, "b/#", QoS::AtLeastOnce);
    for shard in 0..3 {
        world.brokers[shard].handle_end();
        world.collect(shard);
    }
    assert!(world.brokers.iter().all(|broker| !broker.has_ended()));
    // All but what shard 2 has to apply: shard 0's question stays open.
    for _ in 0..3 {
        for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1), (2, 0)] {
            while world.deliver(from, to) {}
        }
    }
    assert!(!world.brokers[0].has_ended() && !world.is_acked(client, 2));
    world.settle();
    assert!(world.brokers.iter().all(Broker::has_ended));
    assert!(world.is_acked(client, 2));
    assert_eq!(world.clients[client].seen.len(), 1);
    assert!(world.lanes.values().all(VecDeque::is_empty));
}

/// So many clients of one shard have asked the other for the same four retained messages: as many
/// questions are open as may be.
fn many_replays(clients: usize) -> (World, Vec<usize>) {
    let mut world = World::new(2);
    let publisher = world.plain(1);
    for i in 0..4 {
        world.publish(publisher, &format!("t/{i}"), 1 + i, true);
    }
    world.settle();
    let clients: Vec<usize> = (0..clients).map(|_| world.plain(0)).collect();
    world.subscribe(clients[0], 1, "t/+", QoS::AtMostOnce);
    world.settle();
    for &client in &clients[1..] {
        world.subscribe(client, 1, "t/+", QoS::AtMostOnce);
    }
    for _ in 0..20 {
        world.tick(0);
    }
    assert_eq!(world.brokers[0].replays.open_to(ShardId::new(1)), limits::QUESTIONS_MAX);
    (world, clients)
}

/// L4: no more than so many questions are open to one owner; the rest wait where they are.
#[test]
fn questions_to_one_owner_are_limited() {
    let (mut world, clients) = many_replays(limits::QUESTIONS_MAX + 50);
    world.settle();
    for client in clients {
        assert_eq!(world.clients[client].seen.len(), 4);
    }
}

/// L4: a replay that stands in line goes on though the one that an answer let on was over by then.
#[test]
fn a_replay_in_line_is_not_forgotten() {
    let (mut world, clients) = many_replays(2 * limits::QUESTIONS_MAX + 9);
    while world.deliver(0, 1) {}
    while world.deliver(1, 0) {}
    assert_eq!(world.brokers[0].replays.open_to(ShardId::new(1)), 0);
    // Those that the answers let on are gone before they do.
    let (gone, stay) = clients[1 + limits::QUESTIONS_MAX..].split_at(limits::QUESTIONS_MAX);
    for &client in gone {
        world.cut(client);
    }
    world.settle();
    for &client in stay {
        assert_eq!(world.clients[client].seen.len(), 4);
    }
}

/// R4: a replay asks for what its client has room for, holds nothing behind a full window, and an
/// hour later goes on with the base that it began with: what came live meanwhile is not repeated.
#[test]
fn a_replay_waits_for_its_client() {
    for shards in [1, 2] {
        let mut world = World::new(shards);
        let publisher = world.plain(0);
        let topics: Vec<String> = (0..40).map(|i| format!("t/{i}")).collect();
        for (i, topic) in topics.iter().enumerate() {
            world.publish(publisher, topic, 1 + i as u64, true);
        }
        world.settle();
        let properties = ConnectProperties { receive_maximum: Some(3), ..Default::default() };
        let client = world.client(shards - 1, properties);
        world.subscribe(client, 1, "t/+", QoS::AtLeastOnce);
        world.clients[client].mute = true;
        for _ in 0..3 {
            for shard in 0..shards {
                world.tick(shard);
            }
            while (0..shards).any(|to| shards > 1 && world.deliver(1 - to, to)) {}
        }
        assert_eq!(world.clients[client].seen.len(), 3, "as many as the window takes");
        let key = world.brokers[shards - 1].sessions.find(&world.clients[client].id).unwrap();
        let session = world.brokers[shards - 1].sessions.get(key).unwrap();
        assert!(session.outgoing.as_ref().unwrap().queue.is_empty(), "nothing is held behind it");
        // New values of all topics: some of them replayed, most of them not yet.
        world.now = world.now + Duration::from_secs(3600);
        for (i, topic) in topics.iter().enumerate() {
            world.publish(publisher, topic, 101 + i as u64, true);
        }
        world.clients[client].mute = false;
        world.settle();
        let mut numbers: Vec<u64> = world.clients[client].seen.iter().map(|s| s.number).collect();
        let replayed = world.clients[client].seen.iter().filter(|s| s.retain).count();
        numbers.sort_unstable();
        let before = numbers.len();
        numbers.dedup();
        assert_eq!((replayed, before), (3, numbers.len()), "{shards} shards");
        assert!((101..141).all(|number| numbers.contains(&number)));
    }
}

/// Retain Handling 0, 1 and 2 `[MQTT-3.3.1-9]` to `[MQTT-3.3.1-11]`, No Local of a replay by the
/// publisher's client id, and the replay's flag and identifier (families 67 to 70).
#[test]
fn a_replay_follows_the_options() {
    for shards in [1, 3] {
        let mut world = World::new(shards);
        let (publisher, client) = (world.plain(0), world.plain(shards - 1));
        world.publish(publisher, "t/1", 1, true);
        world.publish(publisher, "t/2", 2, true);
        world.settle();
        let mut n = 0;
        let mut replayed = |world: &mut World, client: usize, options| {
            n += 1;
            world.clients[client].seen.clear();
            world.subscribe_with(client, n, &[("t/+", options)], Some(5));
            world.settle();
            assert!(world.is_acked(client, n));
            let seen = &world.clients[client].seen;
            assert!(seen.iter().all(|seen| seen.retain && seen.ids == [5]));
            seen.len()
        };
        let with = |retain_handling| SubscriptionOptions { retain_handling, ..QOS1 };
        assert_eq!(replayed(&mut world, client, with(RetainHandling::DoNotSend)), 0);
        assert_eq!(replayed(&mut world, client, with(RetainHandling::SendIfNew)), 0);
        assert_eq!(replayed(&mut world, client, with(RetainHandling::Send)), 2);
        assert_eq!(replayed(&mut world, client, with(RetainHandling::Send)), 2);
        world.unsubscribe(client, "t/+");
        assert_eq!(replayed(&mut world, client, with(RetainHandling::SendIfNew)), 2);
        let no_local = SubscriptionOptions { no_local: true, ..QOS1 };
        assert_eq!(replayed(&mut world, publisher, no_local), 0, "No Local holds for a replay");
        assert_eq!(replayed(&mut world, publisher, QOS1), 2);
    }
}

/// Overlapping filters: one copy, the highest QoS, all identifiers; No Local for each filter on
/// its own (family 70).
#[test]
fn overlapping_filters_give_one_copy() {
    for shards in [1, 2] {
        let mut world = World::new(shards);
        let (publisher, client) = (world.plain(shards - 1), world.plain(0));
        let no_local = SubscriptionOptions { no_local: true, ..QOS1 };
        let keeps = SubscriptionOptions { retain_as_published: true, ..QOS1 };
        world.subscribe_with(client, 1, &[("a/+", no_local)], Some(1));
        world.settle();
        world.subscribe_with(client, 2, &[("a/#", SubscriptionOptions::default())], Some(2));
        world.settle();
        world.subscribe_with(client, 3, &[("a/b", keeps)], Some(3));
        world.settle();
        world.publish(publisher, "a/b", 1, true);
        world.settle();
        let seen = std::mem::take(&mut world.clients[client].seen);
        let [seen] = &seen[..] else { panic!("{shards}: one copy, not {seen:?}") };
        let ids: BTreeSet<u32> = seen.ids.iter().copied().collect();
        assert_eq!(ids, BTreeSet::from([1, 2, 3]));
        assert!(seen.retain, "one of them keeps the flag");
        world.publish(client, "a/b", 2, false);
        world.settle();
        let ids: BTreeSet<u32> = world.clients[client].seen[0].ids.iter().copied().collect();
        assert_eq!(ids, BTreeSet::from([2, 3]), "No Local counts for its own filter");
        world.unsubscribe(client, "a/b");
        world.unsubscribe(client, "a/#");
        world.publish(client, "a/b", 3, false);
        world.settle();
        assert_eq!(world.clients[client].seen.len(), 1);
    }
}

/// A code for each filter in order `[MQTT-3.8.4-6]`, families 62, 72 and 76; No Local on a shared
/// subscription is a Protocol Error, and nothing of that packet is done `[MQTT-3.8.3-4]`.
#[test]
fn each_filter_has_its_code() {
    let mut world = World::new(1);
    world.brokers[0].config.subscriptions_max = 3;
    let client = world.plain(0);
    let filters =
        ["a", "a/#/b", "$share/g/a", "$share//a", "$share/g+/a", "+x", "b", "c", "a", "$share/g/a"];
    let lines: Vec<_> = filters.iter().map(|filter| (*filter, QOS1)).collect();
    world.subscribe_with(client, 1, &lines, None);
    let codes = &world.clients[client].subacks[&1];
    assert_eq!(codes[..], [1, 0x8f, 1, 0x8f, 0x8f, 0x8f, 1, 0x97, 1, 1]);
    let no_local = SubscriptionOptions { no_local: true, ..QOS1 };
    let before = world.brokers[0].topic_tree.len();
    world.subscribe_with(client, 2, &[("d", QOS1), ("$share/g/e", no_local)], None);
    assert!(!world.is_acked(client, 2) && world.clients[client].closed);
    assert!(world.brokers[0].topic_tree.len() < before, "its session is over, its filters too");
}
