//! A real broker on a kernel that fails: short and late input and output, connections that break in
//! the middle of anything, peers turned away, files that cannot be written. Real clients over TCP,
//! which come back until all is done: nothing that was acknowledged is lost, order holds, QoS 2 comes
//! once, a connection that breaks is closed and its Will published, and nothing is left behind.
//!
//! The faults are those of `src/io/fault.rs`, by a seed; NOCTULE_TEST_SEED is one more.
#![forbid(unsafe_code)]
// Tests wait for a real process on the real clock.
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

mod support;

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use noctule::codec::mqtt::{
    Connect, Packet, PacketId, PacketKind, Publish, QoS, ReasonCode, Side, Subscribe,
    SubscribeFilters, UserProperties, Version, Will, decode, frame_len,
};
use support::packets::{connect, filter, lasting, publish};
use support::{Broker, Builder, Combination, combinations};

use QoS::{AtLeastOnce, ExactlyOnce};

/// How long a client tries.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long it waits for a packet before it looks at its clock.
const PACKET: Duration = Duration::from_millis(500);
/// Faults that break connections, and all those that must change nothing.
const BREAKING: &str = "quiet,recv-errors,send-errors,accept-errors,register-errors";
/// Messages of each publisher.
const MESSAGES: u16 = 200;
/// Unacknowledged ones.
const WINDOW: usize = 12;

/// The connection is gone.
#[derive(Debug)]
struct Lost;

/// A connection that may end at any time.
struct Link {
    stream: TcpStream,
    input: Vec<u8>,
    frame: Vec<u8>,
    version: Version,
}

impl Link {
    /// Connects. Whether there was a session.
    fn begin(addr: SocketAddr, packet: &Connect<'_>) -> Result<(Self, bool), Lost> {
        let stream = TcpStream::connect(addr).map_err(|_| Lost)?;
        stream.set_nodelay(true).map_err(|_| Lost)?;
        let version = packet.version;
        let mut link = Self { stream, input: Vec::new(), frame: Vec::new(), version };
        link.send(&Packet::Connect(*packet))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match link.recv()? {
                Some(Packet::ConnAck(ack)) if ack.reason == ReasonCode::SUCCESS => {
                    let present = ack.session_present;
                    return Ok((link, present));
                }
                // The disk takes nothing just now.
                Some(Packet::ConnAck(_)) => return Err(Lost),
                None => assert!(Instant::now() < deadline, "no CONNACK"),
                Some(other) => panic!("expected CONNACK, got {other:?}"),
            }
        }
    }

    fn send(&mut self, packet: &Packet<'_>) -> Result<(), Lost> {
        let mut bytes = Vec::new();
        packet.encode(self.version, &mut bytes);
        self.stream.write_all(&bytes).map_err(|_| Lost)
    }

    fn send_ack(&mut self, kind: PacketKind, id: PacketId) -> Result<(), Lost> {
        let first = (kind as u8) << 4 | if kind == PacketKind::PubRel { 2 } else { 0 };
        let [high, low] = id.get().to_be_bytes();
        self.stream.write_all(&[first, 2, high, low]).map_err(|_| Lost)
    }

    /// The next packet, none for a while.
    fn recv(&mut self) -> Result<Option<Packet<'_>>, Lost> {
        self.stream.set_read_timeout(Some(PACKET)).map_err(|_| Lost)?;
        loop {
            let len = frame_len(&self.input).expect("a length");
            if let Some(len) = len.filter(|len| *len <= self.input.len()) {
                self.frame = self.input.drain(..len).collect();
                let packet = decode(&self.frame, Some(self.version), Side::Client);
                return Ok(Some(packet.expect("a packet")));
            }
            let mut buf = [0; 4096];
            match self.stream.read(&mut buf) {
                Ok(0) => return Err(Lost),
                Ok(n) => self.input.extend_from_slice(&buf[..n]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => return Ok(None),
                Err(_) => return Err(Lost),
            }
        }
    }
}

/// A client with a session that outlives its connections.
struct Lasting {
    addr: SocketAddr,
    version: Version,
    id: String,
    is_known: bool,
    connections: u32,
    deadline: Instant,
}

impl Lasting {
    fn new(addr: SocketAddr, version: Version, id: &str) -> Self {
        let (id, deadline) = (id.to_owned(), Instant::now() + PATIENCE);
        Self { addr, version, id, is_known: false, connections: 0, deadline }
    }

    /// Connects until it works; the session is there from the first CONNACK on.
    fn begin(&mut self) -> Link {
        loop {
            assert!(Instant::now() < self.deadline, "{} does not come to an end", self.id);
            if let Ok((link, present)) = Link::begin(self.addr, &lasting(self.version, &self.id)) {
                assert!(present || !self.is_known || self.version == Version::V31, "{}", self.id);
                self.is_known = true;
                self.connections += 1;
                return link;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn qos_of(number: u16) -> QoS {
    if number.is_multiple_of(2) { AtLeastOnce } else { ExactlyOnce }
}

/// A publication that is not acknowledged to its end.
struct Open {
    id: PacketId,
    number: u16,
    is_received: bool,
}

/// Publishes numbers, even ones at QoS 1 and odd ones at QoS 2, until all are acknowledged to the
/// end. How many connections that took.
fn publish_all(addr: SocketAddr, version: Version, publisher: u8) -> u32 {
    let mut client = Lasting::new(addr, version, &format!("publisher-{publisher}"));
    let mut open: VecDeque<Open> = VecDeque::new();
    let mut next = 0;
    while next < MESSAGES || !open.is_empty() {
        let mut link = client.begin();
        // Ok is the end, and Lost is another turn.
        let _ = publish_on(&mut link, publisher, &mut next, &mut open, client.deadline);
    }
    client.connections
}

fn publish_on(
    link: &mut Link,
    publisher: u8,
    next: &mut u16,
    open: &mut VecDeque<Open>,
    deadline: Instant,
) -> Result<(), Lost> {
    let topic = format!("t/{publisher}");
    let send = |link: &mut Link, open: &Open, dup| {
        let [high, low] = open.number.to_be_bytes();
        // Some are long, and are cut somewhere.
        let mut payload = vec![publisher, high, low];
        payload.resize(3 + usize::from(open.number % 7) * 211, 0x2a);
        let packet = publish(&topic, qos_of(open.number), &payload);
        link.send(&Packet::Publish(Publish { dup, packet_id: Some(open.id), ..packet }))
    };
    for open in &*open {
        match open.is_received {
            true => link.send_ack(PacketKind::PubRel, open.id)?,
            false => send(link, open, true)?,
        }
    }
    loop {
        while open.len() < WINDOW && *next < MESSAGES {
            let id = PacketId::new(*next + 1).expect("not zero");
            open.push_back(Open { id, number: *next, is_received: false });
            *next += 1;
            send(link, &open[open.len() - 1], false)?;
        }
        if open.is_empty() {
            return Ok(());
        }
        let (kind, id) = match link.recv()? {
            None => {
                assert!(Instant::now() < deadline, "{topic}: {} open, no answer", open.len());
                continue;
            }
            Some(Packet::PubComp(ack)) => (PacketKind::PubComp, ack.packet_id),
            Some(Packet::PubAck(ack)) => {
                assert!(!ack.reason.is_error(), "{ack:?}");
                (PacketKind::PubAck, ack.packet_id)
            }
            Some(Packet::PubRec(ack)) => {
                assert!(!ack.reason.is_error(), "{ack:?}");
                (PacketKind::PubRec, ack.packet_id)
            }
            Some(other) => panic!("{other:?}"),
        };
        let at = open.iter().position(|open| open.id == id).expect("it is under way");
        if kind == PacketKind::PubRec {
            open[at].is_received = true;
            link.send_ack(PacketKind::PubRel, id)?;
        } else {
            open.remove(at);
        }
    }
}

/// Subscribes, says so, and takes what comes until `on_message` has all: topic, QoS, payload.
fn take_all(
    mut client: Lasting,
    topic: &str,
    ready: &Sender<()>,
    mut on_message: impl FnMut(QoS, &[u8]) -> bool,
) -> u32 {
    let mut is_subscribed = false;
    // QoS 2 messages between PUBLISH and PUBREL.
    let mut received: HashSet<PacketId> = HashSet::new();
    loop {
        let mut link = client.begin();
        let mut turn = || -> Result<bool, Lost> {
            if !is_subscribed {
                link.send(&Packet::Subscribe(Subscribe {
                    packet_id: PacketId::new(1).expect("not zero"),
                    subscription_id: None,
                    user_properties: UserProperties::default(),
                    filters: SubscribeFilters::new(&[filter(topic, ExactlyOnce)]),
                }))?;
            }
            loop {
                let (qos, id, is_last) = match link.recv()? {
                    None => {
                        assert!(Instant::now() < client.deadline, "{topic}: not all has come");
                        continue;
                    }
                    Some(Packet::SubAck(ack)) => {
                        assert_eq!(ack.codes, [2]);
                        is_subscribed = true;
                        ready.send(()).expect("the test waits");
                        continue;
                    }
                    Some(Packet::PubRel(ack)) => {
                        let id = ack.packet_id;
                        received.remove(&id);
                        link.send_ack(PacketKind::PubComp, id)?;
                        continue;
                    }
                    Some(Packet::Publish(got)) => {
                        let id = got.packet_id.expect("QoS 1 or 2");
                        let is_new = got.qos == AtLeastOnce || received.insert(id);
                        assert!(is_new || got.dup, "sent again without DUP");
                        (got.qos, id, is_new && on_message(got.qos, got.payload))
                    }
                    Some(other) => panic!("{other:?}"),
                };
                let kind = if qos == AtLeastOnce { PacketKind::PubAck } else { PacketKind::PubRec };
                link.send_ack(kind, id)?;
                if is_last {
                    return Ok(true);
                }
            }
        };
        if let Ok(true) = turn() {
            return client.connections;
        }
    }
}

/// What a subscriber expects of each publisher, for each QoS: the next number.
struct Expected {
    next: Vec<[u16; 2]>,
}

impl Expected {
    /// Whether all has come.
    fn take(&mut self, qos: QoS, payload: &[u8]) -> bool {
        let number = u16::from_be_bytes([payload[1], payload[2]]);
        assert_eq!(qos, qos_of(number));
        assert_eq!(payload.len(), 3 + usize::from(number % 7) * 211, "whole");
        let lane = usize::from(number % 2);
        let next = &mut self.next[usize::from(payload[0])][lane];
        // One of QoS 1 may come again, from its publisher or from the broker.
        let is_again = qos == AtLeastOnce && number < *next;
        assert!(is_again || number == *next, "{number} instead of {next}, {qos:?}");
        if number == *next {
            *next += 2;
        }
        let ends = [MESSAGES.next_multiple_of(2), MESSAGES + 1 - MESSAGES % 2];
        self.next.iter().all(|next| *next == ends)
    }
}

/// Seeds for a test, and the one that is asked for.
fn seeds(usual: &[u64]) -> Vec<u64> {
    let asked = std::env::var("NOCTULE_TEST_SEED").ok();
    let asked = asked.map(|seed| seed.parse().expect("NOCTULE_TEST_SEED is a number"));
    asked.map_or_else(|| usual.to_vec(), |seed| vec![seed])
}

/// Runs a test on every combination, each with its own seeds.
fn on_all(usual: &[u64], kinds: &str, test: impl Fn(&Broker) + Sync) {
    for seed in seeds(usual) {
        thread::scope(|scope| {
            for combination in combinations() {
                let (test, plan) = (&test, format!("{seed}:{kinds}"));
                scope.spawn(move || {
                    println!("on {combination}, faults {plan}");
                    let broker = build(combination).faults(plan).start();
                    test(&broker);
                    broker.wait_for_count("loop", "connections", |count| count == 0);
                    let stats = broker.stats();
                    let count = |name: &str| stats["total"]["broker"][name].as_u64();
                    assert_eq!(count("connections_opened"), count("connections_closed"));
                    assert_eq!(stats["total"]["loop"]["spill_bytes"], 0);
                    broker.stop();
                });
            }
        });
    }
}

fn build(combination: Combination) -> Builder {
    Broker::build(combination)
}

/// The broker has been through each of these.
fn assert_struck(broker: &Broker, kinds: &[&str]) {
    let log = broker.stderr();
    for kind in kinds {
        let struck =
            log.lines().any(|line| line.contains("first of its kind") && line.contains(kind));
        assert!(struck, "{kind} has not struck");
    }
}

/// Two publishers and two subscribers of each version.
fn traffic(broker: &Broker) -> u32 {
    let addr = broker.addr();
    let (ready_in, ready) = channel();
    let versions = [Version::V31, Version::V311, Version::V5];
    thread::scope(|scope| {
        let takers: Vec<_> = versions
            .into_iter()
            .map(|version| {
                let client = Lasting::new(addr, version, &format!("taker-{version:?}"));
                let ready = ready_in.clone();
                let mut expected = Expected { next: vec![[0, 1]; versions.len()] };
                scope.spawn(move || {
                    take_all(client, "t/#", &ready, |qos, payload| expected.take(qos, payload))
                })
            })
            .collect();
        for _ in &takers {
            ready.recv_timeout(PATIENCE).expect("all subscribe");
        }
        let publishers: Vec<_> = (0..)
            .zip(versions)
            .map(|(i, version)| scope.spawn(move || publish_all(addr, version, i)))
            .collect();
        let all = publishers.into_iter().chain(takers);
        all.map(|client| client.join().expect("a client")).sum()
    })
}

/// Faults that must change nothing: no connection is lost.
#[test]
fn pieces_and_delays_change_nothing() {
    on_all(&[1, 2], "quiet", |broker| {
        assert_eq!(traffic(broker), 6, "one connection for each client");
        assert_struck(broker, &["short-reads", "short-sends", "delays", "spurious"]);
        // Who has all goes at once, so the last send to it may fail.
        for name in ["accept_errors", "register_errors"] {
            assert_eq!(broker.count("loop", name), 0, "{name}");
        }
    });
}

/// Sessions are there when their clients come back: what was acknowledged arrives, in order, and at
/// QoS 2 once.
///
/// family: 1, 2
#[test]
fn connections_that_break_lose_nothing() {
    on_all(&[3, 4, 5], BREAKING, |broker| {
        let connections = traffic(broker);
        println!("{connections} connections");
        assert!(connections > 6, "none has broken");
    });
}

/// Who loses the connection without a DISCONNECT has its Will published.
#[test]
fn a_broken_connection_publishes_its_will() {
    const CLIENTS: u8 = 60;
    on_all(&[6, 7], BREAKING, |broker| {
        let addr = broker.addr();
        let (ready_in, ready) = channel();
        let (lost_in, lost) = channel::<u8>();
        thread::scope(|scope| {
            scope.spawn(move || {
                let watcher = Lasting::new(addr, Version::V5, "watcher");
                let mut seen: BTreeSet<u8> = BTreeSet::new();
                take_all(watcher, "will", &ready_in, |_, payload| {
                    seen.extend(payload);
                    seen.contains(&CLIENTS)
                });
                // All that were lost, and the last.
                for client in lost {
                    assert!(seen.contains(&client), "the Will of {client} has not come");
                }
            });
            ready.recv_timeout(PATIENCE).expect("the watcher subscribes");
            let clients: Vec<_> = (0..4)
                .map(|part| {
                    let lost = lost_in.clone();
                    scope.spawn(move || {
                        for client in (0..CLIENTS).filter(|client| client % 4 == part) {
                            if live_with_will(addr, client) {
                                lost.send(client).expect("the watcher waits");
                            }
                        }
                    })
                })
                .collect();
            clients.into_iter().for_each(|client| client.join().expect("a client"));
            drop(lost_in);
            // Wills are published when the broker sees the end; the last one behind all of them.
            broker.wait_for_count("loop", "connections", |count| count <= 1);
            while !live_with_will(addr, CLIENTS) {}
        });
    });
}

/// Connects with a Will, and pings until the connection is gone; it breaks it itself when that takes
/// long. Whether CONNACK had come.
fn live_with_will(addr: SocketAddr, client: u8) -> bool {
    let id = format!("will-{client}");
    let payload = [client];
    let will = Will {
        qos: AtLeastOnce,
        retain: false,
        topic: "will",
        payload: &payload,
        delay_interval: 0,
        properties: Default::default(),
    };
    let packet = Connect { will: Some(will), ..connect(Version::V5, &id) };
    let Ok((mut link, _)) = Link::begin(addr, &packet) else { return false };
    for _ in 0..200 {
        if link.send(&Packet::PingReq).is_err() || link.recv().is_err() {
            return true;
        }
    }
    let socket = socket2::SockRef::from(&link.stream);
    socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    true
}

/// A disk that fails now and then: what was acknowledged is there after a kill, in order; what could
/// not be stored is refused.
#[test]
fn what_a_failing_disk_has_taken_stays() {
    for seed in seeds(&[8, 9]) {
        thread::scope(|scope| {
            for combination in combinations() {
                scope.spawn(move || failing_disk(combination, seed));
            }
        });
    }
}

fn failing_disk(combination: Combination, seed: u64) {
    let plan = format!("{seed}:slow-files,file-errors,file-lies");
    println!("on {combination}, faults {plan}");
    let start = || build(combination).arg("--durability").arg("power");
    let broker = start().faults(plan).start();
    let addr = broker.addr();
    // It may be told that the disk takes nothing just now.
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "it never subscribes");
        let mut client = Lasting::new(addr, Version::V5, "taker");
        let mut link = client.begin();
        link.send(&Packet::Subscribe(Subscribe {
            packet_id: PacketId::new(1).expect("not zero"),
            subscription_id: None,
            user_properties: UserProperties::default(),
            filters: SubscribeFilters::new(&[filter("d", AtLeastOnce)]),
        }))
        .expect("nothing breaks connections here");
        let code = loop {
            match link.recv().expect("nothing breaks connections here") {
                Some(Packet::SubAck(ack)) => break ack.codes[0],
                None => assert!(Instant::now() < deadline, "no SUBACK"),
                other => panic!("{other:?}"),
            }
        };
        if code == 1 {
            // It is away while the others publish.
            let _ = link.stream.write_all(&[0xe0, 0]);
            break;
        }
    }
    let (mut taken, mut refused) = (Vec::new(), 0);
    let (mut link, _) = Link::begin(addr, &connect(Version::V5, "publisher")).expect("connects");
    for number in 0..MESSAGES {
        let payload = number.to_be_bytes();
        let packet = publish("d", AtLeastOnce, &payload);
        link.send(&Packet::Publish(packet)).expect("nothing breaks connections here");
        let reason = loop {
            match link.recv().expect("nothing breaks connections here") {
                Some(Packet::PubAck(ack)) => break ack.reason,
                None => assert!(Instant::now() < deadline, "no PUBACK"),
                other => panic!("{other:?}"),
            }
        };
        match reason {
            ReasonCode::SUCCESS => taken.push(number),
            ReasonCode::QUOTA_EXCEEDED => {
                refused += 1;
                thread::sleep(Duration::from_millis(10));
            }
            other => panic!("{other:?}"),
        }
    }
    println!("{} taken, {refused} refused", taken.len());
    assert_struck(&broker, &["slow-files", "file-errors", "file-lies"]);
    assert!(!taken.is_empty(), "the disk has taken something");
    let data = broker.data();
    broker.kill();
    let broker = start().data(&data).start();
    let mut client = Lasting::new(broker.addr(), Version::V5, "taker");
    client.is_known = true;
    let mut link = client.begin();
    for number in taken {
        let id = loop {
            match link.recv().expect("there are no faults any more") {
                Some(Packet::Publish(got)) => {
                    let came = u16::from_be_bytes([got.payload[0], got.payload[1]]);
                    // One that was refused when it was written already may come.
                    assert!(came <= number, "{number} is lost, here is {came}");
                    let id = got.packet_id.expect("QoS 1");
                    if came == number {
                        break id;
                    }
                    link.send_ack(PacketKind::PubAck, id).expect("there are no faults any more");
                }
                None => assert!(Instant::now() < deadline, "{number} does not come"),
                other => panic!("{other:?}"),
            }
        };
        link.send_ack(PacketKind::PubAck, id).expect("there are no faults any more");
    }
    drop(link);
    broker.stop();
}
