//! Queues that are larger than memory: a real broker with a small memory budget holds a session's
//! queue on disk, survives `kill -9`, and gives all of it back in order.
#![forbid(unsafe_code)]
// Tests wait for a real process on the real clock.
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

mod support;

use std::os::unix::fs::FileExt as _;

use noctule::codec::mqtt::{
    Connect, ConnectProperties, Packet, PacketId, PacketKind, Publish, QoS, Version,
};
use support::packets::{connect, lasting, publish};
use support::{Broker, Builder, Combination, Wire, combinations};

use QoS::{AtLeastOnce, ExactlyOnce};
use Version::V5;

/// Bytes of a message.
const SIZE: usize = 16 * 1024;
/// Messages of the large queue: 100 MiB.
const MESSAGES: u32 = 6400;
/// Bytes that the broker may have taken at any time.
const MEMORY_MAX: u64 = 100 * 1024 * 1024;

fn builder(combination: Combination, more: &[&str]) -> Builder {
    let args = ["--memory-budget", "16MiB", "--packet-size-max", "64KiB", "--queue-bytes-max"];
    let mut builder = Broker::build(combination);
    for arg in args.iter().chain(&["2MiB"]).chain(more) {
        builder = builder.arg(*arg);
    }
    builder
}

fn payload(number: u32) -> Vec<u8> {
    let mut payload = vec![number as u8; SIZE];
    payload[..4].copy_from_slice(&number.to_le_bytes());
    payload
}

/// Publishes messages at QoS 1, many at a time; all are acknowledged when it returns.
fn fill(wire: &mut Wire, topic: &str, numbers: std::ops::Range<u32>) {
    let numbers: Vec<u32> = numbers.collect();
    for some in numbers.chunks(64) {
        for number in some {
            let payload = payload(*number);
            let id = PacketId::new((*number % 1000 + 1) as u16);
            let packet = Publish { packet_id: id, ..publish(topic, AtLeastOnce, &payload) };
            wire.send(&Packet::Publish(packet));
        }
        for number in some {
            wire.expect_ack(PacketKind::PubAck, (*number % 1000 + 1) as u16);
        }
    }
}

/// Takes messages at QoS 1 until it has had this number; in order, where some may come again first.
fn drain(wire: &mut Wire, numbers: std::ops::Range<u32>) {
    let mut next = numbers.start;
    while next < numbers.end {
        let (number, id) = match wire.recv() {
            Packet::Publish(got) => {
                assert_eq!(got.payload.len(), SIZE);
                let (number, rest) = got.payload.split_first_chunk().expect("a number");
                let number = u32::from_le_bytes(*number);
                assert!(rest.iter().all(|byte| *byte == number as u8), "message {number}");
                (number, got.packet_id.expect("QoS 1"))
            }
            other => panic!("{other:?}"),
        };
        wire.send_ack(PacketKind::PubAck, id.get());
        assert!(number <= next, "message {number} came, and {next} was lost");
        next = next.max(number + 1);
    }
}

/// The most memory that the process has had, in bytes.
fn most_memory(broker: &Broker) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", broker.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says it");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

/// 100 MiB for one session without a connection, with 16 MiB for messages: taken, killed, and given
/// back by another number of shards on the other backend, killed again in the middle of it.
///
/// family: 38, 55
#[test]
fn a_queue_larger_than_memory() {
    for combination in combinations() {
        println!("on {combination}");
        let broker = builder(combination, &[]).start();
        let data = broker.data();
        let mut wire = broker.connect();
        assert!(!wire.handshake(lasting(V5, "archive")));
        wire.subscribe("large/#", AtLeastOnce);
        drop(wire);
        let mut source = broker.connect();
        source.handshake(connect(V5, "source"));
        fill(&mut source, "large/x", 0..MESSAGES);
        assert!(broker.count("broker", "messages_evicted") > u64::from(MESSAGES) / 2);
        assert_eq!(broker.count("broker", "dropped_memory"), 0);
        let most = most_memory(&broker);
        println!("{} MiB of memory at most", most >> 20);
        assert!(most < MEMORY_MAX, "{most} bytes for a queue of 100 MiB");
        broker.kill();

        let io = if combination.io == "uring" { "epoll" } else { "uring" };
        let other = Combination { io, shards: 3 - combination.shards };
        let broker = builder(other, &[]).data(&data).start();
        let mut wire = broker.connect();
        assert!(wire.handshake(lasting(V5, "archive")));
        drain(&mut wire, 0..MESSAGES / 3);
        // Behind what is on disk.
        let mut source = broker.connect();
        source.handshake(connect(V5, "source"));
        fill(&mut source, "large/y", MESSAGES..MESSAGES + 500);
        let most = most_memory(&broker);
        println!("{} MiB of memory at most, restarted", most >> 20);
        assert!(most < MEMORY_MAX, "{most} bytes for a queue of 100 MiB");
        broker.kill();

        let broker = builder(combination, &[]).data(&data).start();
        let mut wire = broker.connect();
        assert!(wire.handshake(lasting(V5, "archive")));
        let first = match wire.recv() {
            Packet::Publish(got) => {
                let (number, _) = got.payload.split_first_chunk().expect("a number");
                u32::from_le_bytes(*number)
            }
            other => panic!("{other:?}"),
        };
        // What was acknowledged last may come again.
        assert!(first <= MESSAGES / 3, "{first}");
        drop(wire);
        let mut wire = broker.connect();
        assert!(wire.handshake(lasting(V5, "archive")));
        drain(&mut wire, first..MESSAGES + 500);
        for lost in ["dropped_unreadable", "dropped_not_owed", "dropped_memory"] {
            assert_eq!(broker.count("broker", lost), 0, "{lost}");
        }
        assert!(broker.count("broker", "messages_read_back") > u64::from(MESSAGES) / 2);
        broker.stop();
    }
}

/// What has a bound is refused beyond it, also on disk: the newest messages, and they are counted.
#[test]
fn the_queue_on_disk_has_a_bound() {
    for combination in combinations() {
        println!("on {combination}");
        let broker = builder(combination, &["--queue-disk-bytes-max", "4MiB"]).start();
        let mut wire = broker.connect();
        wire.handshake(lasting(V5, "archive"));
        wire.subscribe("bound/#", AtLeastOnce);
        drop(wire);
        // Otherwise the first messages are sent to it, and come again later.
        broker.wait_for_count("loop", "connections", |count| count == 0);
        let mut source = broker.connect();
        source.handshake(connect(V5, "source"));
        fill(&mut source, "bound/x", 0..640);
        let dropped = broker.count("broker", "dropped_queue_full");
        // 2 MiB in memory, 4 MiB on disk, of 10 MiB.
        let kept = 640 - dropped as u32;
        assert!((370..=384).contains(&kept), "{kept}");
        let mut wire = broker.connect();
        assert!(wire.handshake(lasting(V5, "archive")));
        drain(&mut wire, 0..kept);
        wire.expect_nothing_before_ping();
        broker.stop();
    }
}

/// Writes over a part of this message where it lies in the journal.
fn damage(broker: &Broker, number: u32) {
    let folder = broker.data().path().join("journal");
    let needle = &payload(number)[..64];
    for file in std::fs::read_dir(folder).expect("there is a journal") {
        let path = file.expect("a file").path();
        // Segments that are free may be removed meanwhile.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        if let Some(at) = bytes.windows(needle.len()).position(|bytes| bytes == needle) {
            let file = std::fs::OpenOptions::new().write(true).open(&path).expect("ours");
            file.write_all_at(&[0xee; 100], at as u64 + 200).expect("written over");
            return file.sync_all().expect("synced");
        }
    }
    panic!("message {number} is not in the journal");
}

/// A disk that cannot be read for some seconds loses nothing. A record that is damaged is lost, and it
/// alone: counted and named, and what stands behind it comes.
#[test]
fn what_cannot_be_read_is_skipped() {
    const COUNT: u32 = 200;
    for combination in combinations() {
        println!("on {combination}");
        let folder = tempfile::tempdir().expect("a directory");
        let faults = folder.path().join("faults");
        std::fs::write(&faults, "").expect("written");
        let rig = ["--rig-faults", faults.to_str().expect("a plain path")];
        let broker = builder(combination, &rig).start();
        let mut wire = broker.connect();
        wire.handshake(lasting(V5, "archive"));
        wire.subscribe("bad/#", AtLeastOnce);
        drop(wire);
        let mut source = broker.connect();
        source.handshake(connect(V5, "source"));
        fill(&mut source, "bad/x", 0..COUNT);
        let evicted = broker.count("broker", "messages_evicted");
        assert!(evicted > 60, "{evicted}");
        damage(&broker, 180);
        std::fs::write(&faults, "read EIO\n").expect("written");
        let mut wire = broker.connect();
        assert!(wire.handshake(lasting(V5, "archive")));
        let mut got = Vec::new();
        let mut take = |wire: &mut Wire, until: usize| {
            while got.len() < until {
                let Packet::Publish(publish) = wire.recv() else { panic!("only messages") };
                let (number, _) = publish.payload.split_first_chunk().expect("a number");
                let (number, id) = (u32::from_le_bytes(*number), publish.packet_id);
                wire.send_ack(PacketKind::PubAck, id.expect("QoS 1").get());
                got.push(number);
            }
        };
        take(&mut wire, COUNT as usize - evicted as usize);
        // Seconds of a disk that cannot be read say nothing about a message.
        broker.wait_for_count("journal", "read_errors", |failed| failed >= 7);
        assert_eq!(broker.count("broker", "dropped_unreadable"), 0);
        std::fs::write(&faults, "").expect("written");
        broker.wait_for_count("loop", "messages_on_disk", |left| left == 0);
        assert_eq!(broker.count("broker", "dropped_unreadable"), 1);
        take(&mut wire, COUNT as usize - 1);
        assert_eq!(got, (0..COUNT).filter(|n| *n != 180).collect::<Vec<_>>());
        let log = broker.stderr();
        assert!(log.contains("cannot be read and is lost"));
        assert!(log.contains(".journal: byte "));
        broker.stop();
    }
}

/// QoS 2 messages on disk come once each, across a kill; what a client has unsubscribed from
/// meanwhile may come or not, and nothing behind it is lost.
///
/// family: 40
#[test]
fn exactly_once_from_disk() {
    const COUNT: u32 = 400;
    for combination in combinations() {
        println!("on {combination}");
        let broker = builder(combination, &["--queue-len-max", "5000"]).start();
        let data = broker.data();
        let mut wire = broker.connect();
        wire.handshake(lasting(V5, "once"));
        wire.subscribe("once", ExactlyOnce);
        drop(wire);
        let mut source = broker.connect();
        source.handshake(connect(V5, "source"));
        for number in 0..COUNT {
            source.publish(publish("once", ExactlyOnce, &number.to_le_bytes().repeat(4096)));
        }
        let mut next = 0;
        let take = |wire: &mut Wire, until: u32, next: &mut u32| {
            while *next < until {
                let (number, id) = match wire.recv() {
                    Packet::Publish(got) => {
                        let (number, _) = got.payload.split_first_chunk().expect("a number");
                        (u32::from_le_bytes(*number), got.packet_id.expect("QoS 2").get())
                    }
                    Packet::PubRel(ack) => {
                        let id = ack.packet_id.get();
                        wire.send_ack(PacketKind::PubComp, id);
                        continue;
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!(number, *next, "in order, and once");
                *next += 1;
                wire.send_ack(PacketKind::PubRec, id);
                let [high, low] = id.to_be_bytes();
                wire.expect_among_others(&[0x62, 2, high, low]);
                wire.send_ack(PacketKind::PubComp, id);
            }
        };
        let window = |client: &'static str| Connect {
            properties: ConnectProperties {
                receive_maximum: Some(8),
                ..lasting(V5, client).properties
            },
            ..lasting(V5, client)
        };
        let mut wire = broker.connect();
        assert!(wire.handshake(window("once")));
        take(&mut wire, COUNT / 2, &mut next);
        broker.kill();
        let broker = builder(combination, &["--queue-len-max", "5000"]).data(&data).start();
        let mut wire = broker.connect();
        assert!(wire.handshake(window("once")));
        take(&mut wire, COUNT, &mut next);
        wire.expect_nothing_before_ping();
        broker.stop();
    }
}
