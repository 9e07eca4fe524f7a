//! Crashes anywhere, with the real broker, log, fold and recovery.
//!
//! A few brokers, one per shard, on one thread. FIFO lanes lead from each to each; the seed decides
//! which of them moves, when the log writes, when the disk is done, and when the process is killed
//! or the power cut. Some lanes are slow. After each crash there are as many shards as the seed
//! says. P1 publishes at QoS 1 and P2 at QoS 2, and sends again what it does not hear of; S1 and S2
//! have sessions that last, and subscribe at QoS 2; S2 goes and comes. Clients keep their side of
//! MQTT through lost connections and crashes.
//!
//! What was acknowledged arrives, at QoS 2 once and in order, and when all is quiet nobody waits and
//! the journal owes nothing (SHARDS.md J1 to J7).
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::disk::Disk;
use super::folder::{self, Folder};
use super::random::Random;
use crate::broker::evict::{Found, ReadBack};
use crate::broker::{Accepted, Batch, Broker, Config, Disconnection, Frame, Step};
use crate::clock::Time;
use crate::codec::mqtt::{
    Ack, Connect, ConnectProperties, Packet, PacketId, Publish, PublishProperties, QoS, ReasonCode,
    Side, Subscribe, SubscribeFilter, SubscribeFilters, SubscriptionOptions, Unsubscribe,
    UnsubscribeFilters, UserProperties, Version, decode, frame_len,
};
use crate::ids::{ConnId, PlacementKey, ShardId};
use crate::journal::log::{Log, Options};
use crate::journal::read::{Answer, Question, Record};
use crate::journal::record::{Batch as Changes, Clocks, Entry, decode as decode_record};
use crate::journal::recover::{Recovered, recover, recover_some};

const TOPIC: &str = "t";
/// Times that all becomes quiet.
const ROUNDS: u32 = 4;
/// Messages of each publisher in a round.
const MESSAGES: u32 = 12;
/// Unacknowledged ones.
const WINDOW: usize = 2;
/// Runs, each under a seed of its own, where `NOCTULE_CRASH_SEEDS` says nothing else.
const SEEDS: u64 = 30;
/// Steps of a round.
const STEPS: u32 = 1500;
/// Of those, the last in which nothing crashes any more.
const STEPS_CALM: u32 = 300;
/// Things that are tried in a step until one happens.
const TRIES: u32 = 40;
/// Wall time of the run's beginning.
const UNIX_MS: u64 = 1_000_000_000_000;

/// What one shard says to another, in its order.
enum Said {
    Entries(Batch),
    Changes(Changes),
    Committed(u64),
    Reads(Vec<ReadBack>),
    Answer(Answer),
}

/// A client's connection.
struct Wire {
    shard: usize,
    conn: ConnId,
    to_broker: VecDeque<Vec<u8>>,
    to_client: Vec<u8>,
    /// The broker parses no further for now.
    held: bool,
}

struct Client {
    name: &'static str,
    /// Of a publisher; None of a subscriber.
    qos: Option<QoS>,
    wire: Option<Wire>,
    /// CONNACK has come.
    online: bool,
    next: u32,
    /// A publisher's: packet id, payload, released; in order.
    out: Vec<(u16, String, bool)>,
    /// Goes and comes.
    is_restless: bool,
    subscribed: bool,
    /// SUBSCRIBE or UNSUBSCRIBE was sent.
    is_asking: bool,
    /// A subscriber's QoS 2 packet ids.
    held: BTreeSet<u16>,
    got: Vec<String>,
    due: BTreeSet<String>,
}

struct World {
    random: Random,
    disk: Disk,
    log: Log,
    brokers: Vec<Broker>,
    /// Of `from`, to `to`: `lanes[from][to]`.
    lanes: Vec<Vec<VecDeque<Said>>>,
    /// How eager each is, in a thousand.
    eager: Vec<Vec<u32>>,
    round: u32,
    told: Vec<u64>,
    clients: Vec<Client>,
    now: Time,
    connections: u32,
    crashes: u32,
    is_open: bool,
    /// What was left to the journal, and read back, in processes that are gone.
    evicted: u64,
    read_back: u64,
}

fn options() -> Options {
    Options {
        folder: folder::PATH.into(),
        placement: KEY.0,
        segment_bytes_first: 32 * 1024,
        segment_bytes_max: 64 * 1024,
        direct: true,
    }
}

const KEY: PlacementKey = PlacementKey(77);

fn client(name: &'static str, qos: Option<QoS>) -> Client {
    Client {
        name,
        qos,
        wire: None,
        online: false,
        next: 1,
        out: Vec::new(),
        is_restless: name == "S2",
        subscribed: false,
        is_asking: false,
        held: BTreeSet::new(),
        got: Vec::new(),
        due: BTreeSet::new(),
    }
}

fn id(n: u16) -> PacketId {
    PacketId::new(n).expect("not zero")
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = Disk::new(seed);
        let Recovered { log, .. } =
            recover(&Folder(&disk), options(), seed).expect("an empty disk");
        let mut world = Self {
            random: Random::new(seed, 1),
            disk,
            log,
            brokers: Vec::new(),
            lanes: Vec::new(),
            eager: Vec::new(),
            round: 0,
            told: Vec::new(),
            clients: vec![
                client("P1", Some(QoS::AtLeastOnce)),
                client("P2", Some(QoS::ExactlyOnce)),
                client("S1", None),
                client("S2", None),
            ],
            now: Time::ZERO.plus_secs(1000),
            connections: 0,
            crashes: 0,
            is_open: false,
            evicted: 0,
            read_back: 0,
        };
        world.start();
        world
    }

    fn clocks(&self) -> Clocks {
        let start = Clocks { monotonic: Time::ZERO.plus_secs(1000), unix_ms: UNIX_MS };
        Clocks { monotonic: self.now, unix_ms: start.unix_ms_of(self.now) }
    }

    /// The process begins: whatever the disk has, on so many shards.
    fn start(&mut self) {
        let shards = self.random.pick(&[1, 2, 3, 4]);
        let seed = self.random.number();
        // Most of what is queued is only in the journal, or nothing is.
        let queues_evict = self.random.chance(700);
        let most = if queues_evict { self.random.pick(&[0, 200, u64::MAX]) } else { u64::MAX };
        let Recovered { state, log, .. } = recover_some(&Folder(&self.disk), options(), seed, most)
            .expect("a disk that can be read");
        self.log = log;
        let defaults = Config::default();
        let bytes = self.random.pick(&[100, 200, 400]);
        let config = Config {
            record_changes: true,
            in_flight_max: 2,
            queues_evict,
            queue_bytes_max: if queues_evict { bytes } else { defaults.queue_bytes_max },
            ..defaults
        };
        self.count_evicted();
        let broker = |i| Broker::new(config.clone(), ShardId::new(i), shards, KEY, seed + i as u64);
        self.brokers = (0..shards).map(broker).collect();
        let (now, unix_ms) = (self.now, self.clocks().unix_ms);
        for (broker, part) in self.brokers.iter_mut().zip(state.partition(KEY, shards)) {
            broker.restore(now, unix_ms, part);
            broker.handle_restored();
        }
        let lane = || (0..shards).map(|_| VecDeque::new()).collect();
        self.lanes = (0..shards).map(|_| lane()).collect();
        let mut eager = || (0..shards).map(|_| self.random.pick(&[20, 300, 1000])).collect();
        self.eager = (0..shards).map(|_| eager()).collect();
        self.told = vec![0; shards];
        self.is_open = false;
    }

    fn crash(&mut self) {
        self.crashes += 1;
        match self.random.chance(500) {
            true => self.disk.kill(),
            false => self.disk.cut_power(),
        }
        for client in &mut self.clients {
            client.wire = None;
            client.online = false;
        }
        self.start();
    }

    /// The end of a shard's tick: what the broker has said goes on its way.
    fn tick(&mut self, shard: usize) -> bool {
        let clocks = self.clocks();
        let now = self.now;
        let broker = &mut self.brokers[shard];
        if self.is_open {
            broker.handle_timeouts(now);
        }
        let mut moved = false;
        if !broker.out.changes.is_empty() {
            let mut batch = Changes::default();
            for change in broker.out.changes.drain(..) {
                batch.push(ShardId::new(shard), change.number, &change.record, clocks);
            }
            batch.sync = true;
            self.lanes[shard][0].push_back(Said::Changes(batch));
            moved = true;
        }
        let reads = std::mem::take(&mut self.brokers[shard].out.reads);
        if !reads.is_empty() {
            self.lanes[shard][0].push_back(Said::Reads(reads));
            moved = true;
        }
        for to in 0..self.brokers.len() {
            let batch = std::mem::take(&mut self.brokers[shard].out.batches[to]);
            if !batch.is_empty() {
                self.lanes[shard][to].push_back(Said::Entries(batch));
                moved = true;
            }
        }
        let broker = &mut self.brokers[shard];
        broker.handle_flushed(now);
        broker.out.dirty.conns.clear();
        let resumed = std::mem::take(&mut broker.out.resume);
        let closed = std::mem::take(&mut broker.out.close);
        for client in &mut self.clients {
            let Some(wire) = client.wire.as_mut().filter(|wire| wire.shard == shard) else {
                continue;
            };
            let outbox = broker.outbox(wire.conn);
            let sent = outbox.len();
            wire.to_client.extend(outbox.slices_from(0).flatten());
            outbox.clear();
            if sent > 0 {
                broker.handle_sent(now, wire.conn, sent);
                moved = true;
            }
            if resumed.contains(&wire.conn) {
                wire.held = false;
                moved = true;
            }
            if closed.contains(&wire.conn) {
                broker.handle_closed(now, wire.conn, Disconnection::Closed);
                client.wire = None;
                client.online = false;
                moved = true;
            }
        }
        moved
    }

    fn take_lane(&mut self, from: usize, to: usize) -> bool {
        let Some(said) = self.lanes[from][to].pop_front() else { return false };
        match said {
            Said::Entries(batch) => {
                self.brokers[to].handle_entries(self.now, ShardId::new(from), &batch);
            }
            Said::Changes(batch) => self.log.append(ShardId::new(from), &batch),
            Said::Committed(through) => self.brokers[to].handle_committed(self.now, through),
            Said::Reads(reads) => {
                for ReadBack { asker, messages } in reads {
                    self.log.ask(Question { from: ShardId::new(from), asker, messages });
                }
            }
            Said::Answer(answer) => {
                let clocks = self.clocks();
                let records = answer.records();
                let found = records.map(|(id, record)| (id, found(record, clocks)));
                self.brokers[to].handle_read_back(self.now, answer.asker, found);
            }
        }
        true
    }

    fn write(&mut self) -> bool {
        self.log.set_clocks(self.clocks());
        let op = self.log.next_op();
        let is_news = self.send_answers();
        match op {
            Some(op) => self.disk.submit(0, op),
            None => return is_news,
        }
        true
    }

    fn send_answers(&mut self) -> bool {
        assert_eq!(self.log.counters().unreadable, 0, "{:?}", self.log.take_troubles());
        let answers = self.log.take_answers();
        let is_news = !answers.is_empty();
        for answer in answers {
            self.lanes[0][answer.to.index()].push_back(Said::Answer(answer));
        }
        is_news
    }

    fn count_evicted(&mut self) {
        for broker in &self.brokers {
            self.evicted += broker.stats().messages_evicted;
            self.read_back += broker.stats().messages_read_back;
        }
    }

    fn finish_write(&mut self) -> bool {
        let Some(done) = self.disk.finish_one(0) else { return false };
        self.log.set_clocks(self.clocks());
        self.log.handle_done(done);
        for shard in 0..self.brokers.len() {
            let committed = self.log.committed(ShardId::new(shard));
            if committed > self.told[shard] {
                self.told[shard] = committed;
                self.lanes[0][shard].push_back(Said::Committed(committed));
            }
        }
        true
    }

    fn connect(&mut self, index: usize) -> bool {
        let is_open = self.brokers.iter().all(Broker::is_open);
        self.is_open |= is_open && self.log.is_idle();
        if !self.is_open || self.clients[index].wire.is_some() {
            return false;
        }
        let name = self.clients[index].name;
        let shard = KEY.home_of(name, self.brokers.len()).index();
        self.connections += 1;
        let conn = ConnId { index: self.connections, generation: 1 };
        let accepted = Accepted { at: self.now, listener: 0, peer: None };
        self.brokers[shard].handle_open(self.now, conn, accepted);
        let properties = ConnectProperties {
            session_expiry_interval: Some(100_000),
            ..ConnectProperties::default()
        };
        let fresh = Connect::new(Version::V5, name);
        let connect = Connect { clean_start: false, properties, ..fresh };
        let (to_broker, to_client) = (VecDeque::new(), Vec::new());
        let client = &mut self.clients[index];
        client.wire = Some(Wire { shard, conn, to_broker, to_client, held: false });
        client.say(&Packet::Connect(connect));
        true
    }

    fn cut(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.online = false;
        if let Some(wire) = client.wire.take() {
            self.brokers[wire.shard].handle_closed(self.now, wire.conn, Disconnection::Error);
        }
    }

    /// The broker takes one packet of a client.
    fn hear(&mut self, index: usize) -> bool {
        let Some(wire) = self.clients[index].wire.as_mut().filter(|wire| !wire.held) else {
            return false;
        };
        let Some(frame) = wire.to_broker.pop_front() else { return false };
        let broker = &mut self.brokers[wire.shard];
        let version = broker.version_of(wire.conn);
        let packet = decode(&frame, version, Side::Server).expect("clients send packets");
        let whole = Frame { bytes: &frame, shared: None };
        match broker.handle_packet(self.now, wire.conn, &packet, whole) {
            Step::Next | Step::Close => {}
            Step::Pause => wire.held = true,
            Step::Wait => {
                wire.held = true;
                wire.to_broker.push_front(frame);
            }
        }
        true
    }

    /// A client takes one packet of the broker.
    fn answer(&mut self, index: usize) -> bool {
        let client = &mut self.clients[index];
        let Some(wire) = &mut client.wire else { return false };
        let Ok(Some(len)) = frame_len(&wire.to_client) else { return false };
        let frame: Vec<u8> = wire.to_client.drain(..len).collect();
        let packet = decode(&frame, Some(Version::V5), Side::Client).expect("brokers, too");
        client.on_packet(&packet);
        true
    }

    fn publish(&mut self, index: usize) -> bool {
        let client = &mut self.clients[index];
        let Some(qos) = client.qos else { return false };
        let most = MESSAGES * (self.round + 1);
        if !client.online || client.out.len() >= WINDOW || client.next > most {
            return false;
        }
        let used: Vec<u16> = client.out.iter().map(|(n, _, _)| *n).collect();
        let n = (1..).find(|n| !used.contains(n)).expect("there are more");
        let payload = format!("{} {:03}", client.name, client.next);
        client.next += 1;
        client.out.push((n, payload.clone(), false));
        client.say(&to_publish(qos, n, &payload, false));
        for subscriber in self.clients.iter_mut().filter(|client| client.subscribed) {
            subscriber.due.insert(payload.clone());
        }
        true
    }

    /// A QoS 2 PUBLISH once more, on the same connection: as clients of 3.1 do.
    fn repeat(&mut self, index: usize) -> bool {
        let client = &mut self.clients[index];
        let Some((n, payload, false)) = client.out.first().cloned() else { return false };
        if client.qos != Some(QoS::ExactlyOnce) || !client.online {
            return false;
        }
        client.say(&to_publish(QoS::ExactlyOnce, n, &payload, true));
        true
    }

    /// A subscription ends, or begins anew.
    fn turn_over(&mut self, index: usize) -> bool {
        let client = &mut self.clients[index];
        if !client.is_restless || !client.online || client.is_asking {
            return false;
        }
        client.ask(!client.subscribed);
        true
    }

    /// One thing that can happen, if it can.
    fn step(&mut self, what: u64) -> bool {
        let shards = self.brokers.len();
        let (one, other) = (self.random.index(shards), self.random.index(shards));
        let client = self.random.index(self.clients.len());
        match what {
            0 => self.tick(one),
            1 | 2 => self.random.chance(self.eager[one][other]) && self.take_lane(one, other),
            3 => self.write(),
            4 => self.finish_write(),
            5 => self.connect(client),
            6 => self.hear(client),
            7 => self.answer(client),
            8 if self.random.chance(50) => self.repeat(client),
            8 if self.random.chance(100) => self.turn_over(client),
            _ => self.publish(client),
        }
    }

    /// Everything that can happen, until nothing does.
    fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..100_000 {
            self.now = self.now + Duration::from_millis(1);
            let mut moved = false;
            for one in 0..self.brokers.len() {
                moved |= self.tick(one);
                for other in 0..self.brokers.len() {
                    moved |= self.take_lane(one, other);
                }
            }
            while self.write() {
                moved = true;
            }
            moved |= self.finish_write();
            for client in 0..self.clients.len() {
                moved |= self.connect(client) | self.hear(client) | self.answer(client);
                moved |= self.publish(client);
            }
            quiet = if moved { 0 } else { quiet + 1 };
            if quiet > 20 {
                return;
            }
        }
        panic!("it never becomes quiet");
    }

    fn run(mut self) -> (u32, u64, u64) {
        for round in 0..ROUNDS {
            self.round = round;
            self.rough();
            self.settle();
            self.check();
            // What is left in the journal is what is owed: nothing.
            self.crash();
            assert_eq!(self.log.fold().messages(), 0, "the journal owes something");
            for broker in &self.brokers {
                assert_eq!(broker.message_bytes(), 0, "the journal owes something");
            }
        }
        self.settle();
        self.check();
        self.count_evicted();
        (self.crashes, self.evicted, self.read_back)
    }

    fn rough(&mut self) {
        let eager: Vec<u32> = (0..9).map(|_| self.random.pick(&[50, 300, 1000])).collect();
        let crashes = self.random.pick(&[1, 2, 6]);
        let cuts = self.random.pick(&[2, 5, 30]);
        for step in 0..STEPS {
            self.now = self.now + Duration::from_micros(self.random.between(1, 500));
            if step < STEPS - STEPS_CALM && self.random.chance(crashes) {
                self.crash();
            }
            if self.random.chance(cuts) {
                let client = self.random.index(self.clients.len());
                self.cut(client);
            }
            // Something happens, if anything can.
            for _ in 0..TRIES {
                let what = self.random.below(9);
                if self.random.chance(eager[what as usize]) && self.step(what) {
                    break;
                }
            }
        }
    }

    fn check(&self) {
        for client in &self.clients {
            assert!(client.out.is_empty(), "{} is not answered: {:?}", client.name, client.out);
            let got: BTreeSet<String> = client.got.iter().cloned().collect();
            let lost: Vec<_> = client.due.difference(&got).collect();
            assert!(lost.is_empty(), "{} lost {lost:?} of {:?}", client.name, client.got);
            let exact: Vec<_> = client.got.iter().filter(|p| p.starts_with("P2")).collect();
            assert!(exact.is_sorted(), "{}: disorder {exact:?}", client.name);
            assert!(
                exact.windows(2).all(|two| two[0] != two[1]),
                "{}: twice {exact:?}",
                client.name
            );
        }
    }
}

fn found(record: Record<'_>, clocks: Clocks) -> Found<'_> {
    let Record::Body(body) = record else {
        return if record == Record::Gone { Found::Gone } else { Found::Unreadable };
    };
    let Ok((_, Entry::Publish(publish))) = decode_record(body) else { panic!("{body:?}") };
    Found::Message {
        topic: publish.topic,
        forwarded: publish.forwarded,
        payload: publish.payload,
        qos: QoS::from_bits(publish.qos).expect("a QoS"),
        retain: publish.retain,
        deadline: publish.deadline.map(|at| clocks.time_of(at)),
    }
}

fn to_publish(qos: QoS, n: u16, payload: &str, dup: bool) -> Packet<'_> {
    Packet::Publish(Publish {
        dup,
        qos,
        retain: false,
        topic: TOPIC,
        packet_id: Some(id(n)),
        properties: PublishProperties::default(),
        payload: payload.as_bytes(),
    })
}

impl Client {
    fn say(&mut self, packet: &Packet<'_>) {
        let Some(wire) = &mut self.wire else { return };
        let mut bytes = Vec::new();
        packet.encode(Version::V5, &mut bytes);
        wire.to_broker.push_back(bytes);
    }

    fn on_packet(&mut self, packet: &Packet<'_>) {
        let done = |ack: &Ack<'_>| Ack::new(ack.packet_id, ReasonCode::SUCCESS);
        match packet {
            Packet::ConnAck(connack) => {
                assert_eq!(connack.reason, ReasonCode::SUCCESS);
                self.online = true;
                self.begin(connack.session_present);
            }
            Packet::SubAck(_) => (self.subscribed, self.is_asking) = (true, false),
            Packet::UnsubAck(_) => self.is_asking = false,
            Packet::PubAck(ack) => self.out.retain(|(n, _, _)| *n != ack.packet_id.get()),
            Packet::PubRec(ack) => {
                assert!(!ack.reason.is_error(), "{}: {ack:?}", self.name);
                for out in self.out.iter_mut().filter(|out| out.0 == ack.packet_id.get()) {
                    out.2 = true;
                }
                self.say(&Packet::PubRel(done(ack)));
            }
            Packet::PubComp(ack) => {
                self.out.retain(|(n, _, released)| !(*released && *n == ack.packet_id.get()));
            }
            Packet::PubRel(ack) => {
                self.held.remove(&ack.packet_id.get());
                self.say(&Packet::PubComp(done(ack)));
            }
            Packet::Publish(publish) => {
                let payload = String::from_utf8_lossy(publish.payload).into_owned();
                let packet_id = publish.packet_id.expect("QoS 1 and 2 have one");
                let ack = Ack::new(packet_id, ReasonCode::SUCCESS);
                if publish.qos == QoS::AtLeastOnce {
                    self.got.push(payload);
                    return self.say(&Packet::PubAck(ack));
                }
                if self.held.insert(packet_id.get()) {
                    self.got.push(payload);
                }
                self.say(&Packet::PubRec(ack));
            }
            other => panic!("{}: {other:?}", self.name),
        }
    }

    /// A connection is there: everything unfinished again, in its order.
    fn begin(&mut self, session_present: bool) {
        if let Some(qos) = self.qos {
            for (n, payload, released) in self.out.clone() {
                match released {
                    true => self.say(&Packet::PubRel(Ack::new(id(n), ReasonCode::SUCCESS))),
                    false => self.say(&to_publish(qos, n, &payload, true)),
                }
            }
            return;
        }
        assert!(session_present || !self.subscribed, "{} has lost its session", self.name);
        // Whoever was not answered asks again, but for one that wants to go: it may stay.
        self.is_asking = false;
        if !self.subscribed {
            self.ask(true);
        }
    }

    /// Asks for the subscription, or for its end.
    fn ask(&mut self, to_have: bool) {
        self.is_asking = true;
        let user_properties = UserProperties::default();
        if to_have {
            let options = SubscriptionOptions::new(QoS::ExactlyOnce);
            let filters = [SubscribeFilter { filter: TOPIC, options }];
            let filters = SubscribeFilters::new(&filters);
            let (packet_id, subscription_id) = (id(1), None);
            let subscribe = Subscribe { packet_id, subscription_id, user_properties, filters };
            return self.say(&Packet::Subscribe(subscribe));
        }
        self.subscribed = false;
        // What is under way may come, or not.
        self.due.clear();
        let filters = UnsubscribeFilters::new(&[TOPIC]);
        self.say(&Packet::Unsubscribe(Unsubscribe { packet_id: id(1), user_properties, filters }));
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_comes_twice() {
    let (mut crashes, mut evicted, mut read_back) = (0, 0, 0);
    let seeds = std::env::var("NOCTULE_CRASH_SEEDS").ok().and_then(|n| n.parse().ok());
    let seeds = seeds.unwrap_or(SEEDS);
    for seed in 0..seeds {
        let run = || World::new(seed).run();
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok((a, b, c)) => {
                crashes += u64::from(a);
                evicted += b;
                read_back += c;
            }
            Err(_) => panic!("seed {seed} fails as said above"),
        }
    }
    assert!(crashes >= seeds, "{crashes}");
    assert!(evicted >= seeds && read_back >= seeds, "{evicted} {read_back}");
}
