//! What was acknowledged is there after `kill -9`: a real broker process on its data directory,
//! killed and started again, also with another number of shards and another backend.
#![forbid(unsafe_code)]
// Tests wait for a real process on the real clock.
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

mod support;

use std::time::Duration;

use noctule::codec::mqtt::{
    Connect, ConnectProperties, Packet, PacketId, PacketKind, Publish, PublishProperties, QoS,
    Version, Will,
};
use support::packets::{begin, connect, lasting, leave, publish, publisher, resume};
use support::{Broker, Combination, Wire, combinations};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V31, V311};

const VERSIONS: [Version; 3] = [V31, V311, V5];

/// Runs a test on every combination, for the levels that survive a kill. It is given a broker and
/// what kills it and starts the next on the same data: with another number of shards, and on the
/// other backend.
fn on_all_levels(test: impl Fn(Broker, &dyn Fn(Broker) -> Broker)) {
    for combination in combinations() {
        for level in ["power", "process"] {
            println!("on {combination}, durability {level}");
            let start = |combination| Broker::build(combination).arg("--durability").arg(level);
            let restart = |broker: Broker| {
                let data = broker.data();
                broker.kill();
                let shards = 3 - combination.shards;
                let io = if combination.io == "uring" { "epoll" } else { "uring" };
                start(Combination { io, shards }).data(&data).start()
            };
            test(start(combination).start(), &restart);
        }
    }
}

/// What a session has taken so far of messages that are numbered, even ones at QoS 1 and odd ones at
/// QoS 2: order holds for each QoS.
#[derive(Default)]
struct Taken {
    next: [u8; 2],
}

impl Taken {
    /// Takes one and acknowledges it to the end. One of QoS 1 may come again after a crash.
    fn take(&mut self, wire: &mut Wire) -> Option<u8> {
        let (payload, qos, id) = match wire.recv() {
            Packet::Publish(got) => (got.payload.to_vec(), got.qos, got.packet_id),
            // Of one that had PUBREC before; PUBCOMP may have been lost with the process.
            Packet::PubRel(ack) => {
                let id = ack.packet_id.get();
                wire.send_ack(PacketKind::PubComp, id);
                return None;
            }
            other => panic!("{other:?}"),
        };
        let id = id.map_or(0, PacketId::get);
        let [number] = payload[..] else { panic!("{payload:?}") };
        let lane = usize::from(number % 2);
        assert_eq!(qos, [AtLeastOnce, ExactlyOnce][lane]);
        match qos {
            AtLeastOnce => wire.send_ack(PacketKind::PubAck, id),
            _ => {
                wire.send_ack(PacketKind::PubRec, id);
                let [high, low] = id.to_be_bytes();
                wire.expect_among_others(&[0x62, 2, high, low]);
                wire.send_ack(PacketKind::PubComp, id);
            }
        }
        let expected = self.next[lane] * 2 + lane as u8;
        if qos == AtLeastOnce && number < expected {
            return None;
        }
        assert_eq!(number, expected, "in order, and once");
        self.next[lane] += 1;
        Some(number)
    }
}

/// Subscriptions and the queues of sessions without a connection; in order, once at QoS 2, and
/// after a second kill what was not taken meanwhile. Subscriptions match what is published later.
///
/// family: 38, 55
#[test]
fn queued_messages() {
    on_all_levels(|broker, restart| {
        for version in VERSIONS {
            let mut wire = begin(&broker, version, &format!("{version:?}"));
            wire.subscribe("q/#", ExactlyOnce);
            leave(wire);
        }
        let mut wire = publisher(&broker);
        let qos_of = |number: u8| if number.is_multiple_of(2) { AtLeastOnce } else { ExactlyOnce };
        for number in 0..40 {
            wire.publish(publish("q/x", qos_of(number), &[number]));
        }
        let broker = restart(broker);
        let mut taken: Vec<Taken> = VERSIONS.iter().map(|_| Taken::default()).collect();
        for (version, taken) in VERSIONS.into_iter().zip(&mut taken) {
            let mut wire = resume(&broker, version, &format!("{version:?}"));
            (0..20).for_each(|_| assert!(taken.take(&mut wire).is_some()));
            // What else was sent stays unacknowledged.
            wire.send_hex("e0 00");
        }
        let mut wire = publisher(&broker);
        for number in 40..42 {
            wire.publish(publish("q/new", qos_of(number), &[number]));
        }
        let broker = restart(broker);
        for (version, taken) in VERSIONS.into_iter().zip(&mut taken) {
            let mut wire = resume(&broker, version, &format!("{version:?}"));
            while taken.next != [21, 21] {
                taken.take(&mut wire);
            }
        }
        broker.stop();
    });
}

/// A QoS 2 message that was sent comes again under its packet id; one whose PUBREC came does not,
/// only its PUBREL does.
///
/// family: 40
#[test]
fn messages_in_flight() {
    on_all_levels(|broker, restart| {
        for version in VERSIONS {
            let mut wire = begin(&broker, version, &format!("{version:?}"));
            let topic = format!("f/{version:?}");
            wire.subscribe(&topic, ExactlyOnce);
            let mut source = publisher(&broker);
            for payload in [b"1", b"2", b"3"] {
                source.publish(publish(&topic, ExactlyOnce, payload));
            }
            let mut id = |payload: &[u8; 1]| {
                wire.expect_publish(&topic, ExactlyOnce, payload).expect("a packet id").get()
            };
            let ids = [b"1", b"2", b"3"].map(&mut id);
            wire.send_ack(PacketKind::PubRec, ids[0]);
            wire.expect_ack(PacketKind::PubRel, ids[0]);
            wire.send_ack(PacketKind::PubRec, ids[1]);
            wire.expect_ack(PacketKind::PubRel, ids[1]);
            wire.send_ack(PacketKind::PubComp, ids[1]);
            drop(source);
            publisher(&broker).publish(publish("nobody", AtLeastOnce, b""));
            std::fs::write(
                broker.data().path().join(format!("{version:?}")),
                [ids[0] as u8, ids[2] as u8],
            )
            .expect("note the ids");
        }
        let broker = restart(broker);
        for version in VERSIONS {
            let ids = std::fs::read(broker.data().path().join(format!("{version:?}")));
            let ids = ids.expect("the ids");
            let mut wire = resume(&broker, version, &format!("{version:?}"));
            let mut released = false;
            loop {
                match wire.recv() {
                    // That of the second may come again: PUBCOMP needs no commit.
                    Packet::PubRel(ack) => {
                        let id = ack.packet_id.get();
                        released |= id == u16::from(ids[0]);
                        wire.send_ack(PacketKind::PubComp, id);
                    }
                    Packet::Publish(got) => {
                        assert_eq!((got.payload, got.dup), (&b"3"[..], true));
                        assert_eq!(got.packet_id.map(PacketId::get), Some(u16::from(ids[1])));
                        break;
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert!(released, "PUBREL comes first");
            wire.expect_nothing_before_ping();
        }
        broker.stop();
    });
}

/// A QoS 2 publication that is sent again after the kill is not published again; once it is
/// released its packet id is free.
///
/// family: 40
#[test]
fn publications_are_known_again() {
    on_all_levels(|broker, restart| {
        let mut subscriber = begin(&broker, V5, "subscriber");
        subscriber.subscribe("p", ExactlyOnce);
        leave(subscriber);
        for version in VERSIONS {
            let mut wire = begin(&broker, version, &format!("{version:?}"));
            wire.send(&Packet::Publish(publish("p", ExactlyOnce, b"once")));
            wire.expect_ack(PacketKind::PubRec, 1);
        }
        let broker = restart(broker);
        for version in VERSIONS {
            let mut wire = resume(&broker, version, &format!("{version:?}"));
            let again = Publish { dup: true, ..publish("p", ExactlyOnce, b"once") };
            wire.send(&Packet::Publish(again));
            wire.expect_ack(PacketKind::PubRec, 1);
            wire.send_ack(PacketKind::PubRel, 1);
            wire.expect_ack(PacketKind::PubComp, 1);
            wire.publish(publish("p", ExactlyOnce, b"new"));
        }
        let mut subscriber = resume(&broker, V5, "subscriber");
        for payload in [&b"once"[..], b"once", b"once", b"new", b"new", b"new"] {
            subscriber.take_publish("p", ExactlyOnce, payload);
        }
        subscriber.expect_nothing_before_ping();
        broker.stop();
    });
}

/// Retained messages, the last of each topic, and none where it was cleared; those whose time is
/// over do not come back.
///
/// family: 60
#[test]
fn retained_messages() {
    on_all_levels(|broker, restart| {
        let mut wire = publisher(&broker);
        for number in 0..20 {
            let topic = format!("r/{number}");
            for payload in [&b"old"[..], b"new"] {
                let retained = Publish { retain: true, ..publish(&topic, AtLeastOnce, payload) };
                wire.publish(retained);
            }
            if number % 2 == 0 {
                wire.publish(Publish { retain: true, ..publish(&topic, AtLeastOnce, b"") });
            }
        }
        let properties =
            PublishProperties { message_expiry_interval: Some(1), ..Default::default() };
        let short = publish("r/short", AtLeastOnce, b"short");
        wire.publish(Publish { retain: true, properties, ..short });
        std::thread::sleep(Duration::from_millis(1100));
        let broker = restart(broker);
        let mut wire = broker.connect();
        wire.handshake(connect(V311, "new"));
        wire.subscribe("r/+", AtMostOnce);
        let mut topics: Vec<String> = (0..10)
            .map(|_| match wire.recv() {
                Packet::Publish(got) => {
                    assert_eq!((got.payload, got.retain), (&b"new"[..], true));
                    got.topic.to_owned()
                }
                other => panic!("{other:?}"),
            })
            .collect();
        wire.expect_nothing_before_ping();
        topics.sort();
        let mut expected: Vec<String> = (0..10).map(|n| format!("r/{}", 2 * n + 1)).collect();
        expected.sort();
        assert_eq!(topics, expected);
        broker.stop();
    });
}

/// A session whose expiry passes while nothing runs is gone, its Will is published; one that lasts
/// longer is there. The Will of a client that was connected to the last is published, too.
///
/// family: 23, 31
#[test]
fn time_goes_on_while_nothing_runs() {
    on_all_levels(|broker, restart| {
        let mut watcher = begin(&broker, V311, "watcher");
        watcher.subscribe("will/#", AtLeastOnce);
        leave(watcher);
        let with_will = |id, expiry, topic, delay_interval| {
            let properties = ConnectProperties {
                session_expiry_interval: Some(expiry),
                ..ConnectProperties::default()
            };
            let will = Will {
                topic,
                payload: b"will",
                qos: AtLeastOnce,
                retain: false,
                delay_interval,
                properties: PublishProperties::default(),
            };
            Connect { properties, will: Some(will), ..connect(V5, id) }
        };
        let mut short = broker.connect();
        short.handshake(with_will("short", 1, "will/short", 100));
        short.reset();
        let mut connected = broker.connect();
        connected.handshake(with_will("connected", 100, "will/connected", 0));
        broker.wait_for_count("broker", "disconnects_lost", |count| count == 1);
        publisher(&broker).publish(publish("nobody", AtLeastOnce, b""));
        std::thread::sleep(Duration::from_millis(200));
        let data = broker.data();
        broker.kill();
        std::thread::sleep(Duration::from_millis(1000));
        let power = Broker::build(combinations()[0]).arg("--durability").arg("power");
        let broker = restart(power.data(&data).start());
        let mut watcher = resume(&broker, V311, "watcher");
        let mut topics = Vec::new();
        for _ in 0..2 {
            match watcher.recv() {
                Packet::Publish(got) => topics.push(got.topic.to_owned()),
                other => panic!("{other:?}"),
            }
        }
        topics.sort();
        assert_eq!(topics, ["will/connected", "will/short"], "each once");
        watcher.expect_nothing_before_ping();
        let mut short = broker.connect();
        assert!(!short.handshake(lasting(V5, "short")));
        resume(&broker, V5, "connected");
        broker.stop();
    });
}

/// Shared subscriptions come back with their members, and what waits for a group is taken by one.
///
/// family: 74
#[test]
fn shared_subscriptions() {
    on_all_levels(|broker, restart| {
        for member in ["a", "b", "c"] {
            let mut wire = begin(&broker, V5, member);
            wire.subscribe("$share/g/s", AtLeastOnce);
            leave(wire);
        }
        let mut wire = publisher(&broker);
        for number in 0..30 {
            wire.publish(publish("s", AtLeastOnce, &[number]));
        }
        let broker = restart(broker);
        let mut seen = Vec::new();
        for member in ["a", "b", "c"] {
            let mut wire = resume(&broker, V5, member);
            for _ in 0..10 {
                match wire.recv() {
                    Packet::Publish(got) => seen.push(got.payload[0]),
                    other => panic!("{other:?}"),
                }
            }
            wire.expect_nothing_before_ping();
            drop(wire);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..30).collect::<Vec<u8>>());
        broker.stop();
    });
}

/// Ten messages for a session of each version, `kill -9`, and what a restart gives of them when
/// `spoil` was at the file that holds the last: its bytes, and where the messages' payloads lie.
fn spoiled(spoil: impl Fn(&mut [u8], &[usize]), said: &str, expected: &[u8]) {
    for combination in combinations() {
        println!("on {combination}");
        let broker = Broker::build(combination).start();
        for version in VERSIONS {
            let mut wire = begin(&broker, version, &format!("{version:?}"));
            wire.subscribe("s", ExactlyOnce);
            leave(wire);
        }
        let mut wire = publisher(&broker);
        let payload = |number: u8| format!("payload of message {number}");
        for number in 0..10 {
            let qos = [AtLeastOnce, ExactlyOnce][usize::from(number % 2)];
            wire.publish(publish("s", qos, payload(number).as_bytes()));
        }
        let data = broker.data();
        broker.kill();
        let files = std::fs::read_dir(data.path().join("journal")).expect("a journal");
        for path in files.map(|file| file.expect("a file").path()) {
            let mut bytes = std::fs::read(&path).expect("it can be read");
            let find = |number| {
                let needle = payload(number).into_bytes();
                bytes.windows(needle.len()).position(|window| window == needle)
            };
            let places: Vec<usize> = (0..10).filter_map(find).collect();
            if places.len() == 10 {
                spoil(&mut bytes, &places);
                std::fs::write(&path, bytes).expect("it can be written");
            }
        }
        let broker = Broker::build(combination).data(&data).start();
        assert!(broker.stderr().contains(said), "{}", broker.stderr());
        for version in VERSIONS {
            let mut wire = resume(&broker, version, &format!("{version:?}"));
            let mut got = Vec::new();
            while got.len() < expected.len() {
                if let Packet::Publish(publish) = wire.recv() {
                    let number = publish.payload.last().expect("a number") - b'0';
                    got.push(number);
                    let id = publish.packet_id.expect("QoS 1 or 2").get();
                    let kind = [PacketKind::PubAck, PacketKind::PubRec][usize::from(number % 2)];
                    wire.send_ack(kind, id);
                }
            }
            got.sort_unstable();
            assert_eq!(got, expected);
        }
        // And it goes on: what comes now is kept as well.
        publisher(&broker).publish(publish("s", AtLeastOnce, b"x"));
        broker.stop();
        let broker = Broker::build(combination).data(&data).start();
        let mut wire = resume(&broker, V5, "V5");
        while !matches!(wire.recv(), Packet::Publish(publish) if publish.payload == b"x") {}
        broker.stop();
    }
}

/// A file that ends in the middle of its last commit: that one is left out, it starts, and says so.
#[test]
fn a_torn_journal() {
    let tear = |bytes: &mut [u8], places: &[usize]| bytes[places[9]..].fill(0);
    spoiled(tear, "torn", &[0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

/// A byte in the middle is another: its message is lost, named, and no other.
#[test]
fn a_damaged_journal() {
    let damage = |bytes: &mut [u8], places: &[usize]| bytes[places[4]] ^= 1;
    spoiled(damage, "the journal is damaged", &[0, 1, 2, 3, 5, 6, 7, 8, 9]);
}

/// With durability `none` nothing is written, and nothing comes back.
#[test]
fn none_keeps_nothing() {
    for combination in combinations() {
        println!("on {combination}");
        let start = || Broker::build(combination).arg("--durability").arg("none");
        let broker = start().start();
        let mut wire = begin(&broker, V5, "session");
        wire.subscribe("t", AtLeastOnce);
        let data = broker.data();
        assert!(!data.path().join("journal").exists());
        broker.kill();
        let broker = start().data(&data).start();
        begin(&broker, V5, "session");
        broker.stop();
    }
}

/// An orderly stop leaves nothing to be repaired, and a start behind it has all, too.
#[test]
fn stop_and_start() {
    for combination in combinations() {
        println!("on {combination}");
        let start = || Broker::build(combination).arg("--durability").arg("power");
        let broker = start().start();
        let mut subscriber = begin(&broker, V311, "subscriber");
        subscriber.subscribe("t", ExactlyOnce);
        publisher(&broker).publish(publish("t", ExactlyOnce, b"1"));
        subscriber.expect_publish("t", ExactlyOnce, b"1");
        let data = broker.data();
        broker.stop();
        let broker = start().data(&data).start();
        assert!(!broker.stderr().contains("torn"), "{}", broker.stderr());
        let mut subscriber = resume(&broker, V311, "subscriber");
        let (dup, _) = subscriber.take_publish("t", ExactlyOnce, b"1");
        assert!(dup);
        broker.stop();
    }
}
