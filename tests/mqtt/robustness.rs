//! A broker with nothing to do sleeps; one in trouble serves on, counts, and does not spin.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use noctule::codec::mqtt::{
    Connect, ConnectProperties, Packet, PacketId, PacketKind, Publish, QoS, Version,
};
use rustix::process::Signal;

use super::notation::packet;
use super::support::packets::{connect, publish};
use super::support::{Broker, Next, Wire, combinations, on_all, on_all_at_once};

use QoS::{AtLeastOnce, AtMostOnce};
use Version::{V5, V311};

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(version, id));
    wire
}

/// How often each thread has gone to sleep and so woken: `voluntary_ctxt_switches`, by thread.
fn sleeps(broker: &Broker) -> BTreeMap<String, u64> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", broker.pid())).expect("its threads");
    tasks
        .map(|task| {
            let task = task.expect("a thread").path();
            let status = std::fs::read_to_string(task.join("status")).expect("its status");
            let field = |name| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.expect("a field").trim_start_matches(':').trim().to_owned()
            };
            let count = field("voluntary_ctxt_switches").parse().expect("a number");
            (format!("{} {}", field("Name"), field("Pid")), count)
        })
        .collect()
}

/// Processor time of the whole process.
fn cpu(broker: &Broker) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", broker.pid())).expect("its stat");
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let fields: Vec<u64> = fields.split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
    // utime and stime are the 14th and 15th, of which two came before; ticks of 10 ms.
    Duration::from_millis((fields[11] + fields[12]) * 10)
}

/// Resident memory, in bytes.
fn memory(broker: &Broker) -> usize {
    let statm =
        std::fs::read_to_string(format!("/proc/{}/statm", broker.pid())).expect("its statm");
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("a number of pages") * rustix::param::page_size()
}

/// Nothing wakes any thread for two seconds. A timer that had been armed before may still fire
/// once; what wakes again and again never passes.
fn assert_sleeps(broker: &Broker, when: &str) {
    let mut seen = Vec::new();
    for _ in 0..4 {
        let before = sleeps(broker);
        std::thread::sleep(Duration::from_secs(2));
        let after = sleeps(broker);
        if after == before {
            return;
        }
        seen.push((before, after));
    }
    panic!("{when}, it wakes again and again: {seen:?}");
}

/// Its processor time over a second stays far below that second.
fn assert_does_not_spin(broker: &Broker, when: &str) {
    let before = cpu(broker);
    std::thread::sleep(Duration::from_secs(1));
    let used = cpu(broker) - before;
    assert!(used < Duration::from_millis(300), "{when}, it used {used:?} of a second");
}

/// No client: no wake-up at all. The same with clients that say nothing.
///
/// family: 81
#[test]
fn idle_is_asleep() {
    on_all_at_once(
        |builder| builder,
        |broker, combination| {
            let clients: Vec<_> = (0..8)
                .map(|number| {
                    let mut wire = broker.connect();
                    let id = format!("quiet-{number}");
                    wire.handshake(Connect { keep_alive: 0, ..connect(V5, &id) });
                    wire.subscribe("quiet/+", AtLeastOnce);
                    wire
                })
                .collect();
            assert_sleeps(broker, &format!("{combination}, with silent clients"));
            drop(clients);
            broker.wait_for_count("loop", "connections", |count| count == 0);
            assert_sleeps(broker, &format!("{combination}, without a client"));
        },
    );
}

/// It sleeps as well when it may look for work before.
#[test]
fn idle_is_asleep_though_it_may_spin() {
    on_all_at_once(
        |builder| builder.arg("--spin-us=1000"),
        |broker, combination| {
            let mut wire = broker.connect();
            wire.handshake(Connect { keep_alive: 0, ..connect(V5, "quick") });
            for _ in 0..2000 {
                wire.send_bytes(&[0xc0, 0]);
                wire.expect_bytes(&[0xd0, 0]);
            }
            assert_sleeps(broker, &format!("{combination}, after a rush"));
        },
    );
}

/// A stream of input has its acknowledgements held back, which saves segments. A peer with Nagle's
/// algorithm on that writes a packet in small pieces waits for them: now and then, not for each packet.
#[test]
fn a_peer_that_writes_in_small_pieces() {
    const PACKETS: usize = 60;
    on_all(|broker| {
        let mut subscriber = online(broker, V311, "subscriber");
        subscriber.subscribe("t", AtMostOnce);
        let mut publisher = online(broker, V311, "publisher");
        publisher.stream().set_nodelay(false).expect("Nagle's algorithm");
        let packet = [0x30, 5, 0, 1, b't', b'm', b'm'];
        let mut waits = 0;
        // Each round makes it a stream, then writes in pieces.
        for _ in 0..3 {
            for _ in 0..200 {
                publisher.send_bytes(&packet);
                subscriber.expect_bytes(&packet);
            }
            for _ in 0..PACKETS {
                let begun = Instant::now();
                for piece in packet.chunks(2) {
                    publisher.send_bytes(piece);
                }
                subscriber.expect_bytes(&packet);
                // The kernel's own delay is 40 ms.
                waits += usize::from(begun.elapsed() > Duration::from_millis(35));
            }
        }
        assert!(waits < PACKETS, "{waits} of {} packets waited", 3 * PACKETS);
    });
}

/// QoS 0 to a subscriber that never reads: dropped beyond its limit, counted, and no reason to
/// spin. When it reads at last it gets what had been kept, and what comes then.
///
/// family: 81
#[test]
fn a_subscriber_that_never_reads() {
    const SIZE: usize = 64 * 1024;
    const COUNT: usize = 400;
    on_all(|broker| {
        let mut deaf = online(broker, V311, "deaf");
        deaf.subscribe("flood", AtMostOnce);
        let mut other = online(broker, V311, "other");
        other.subscribe("other", AtLeastOnce);
        let mut publisher = online(broker, V5, "publisher");
        let mut payload = vec![b'x'; SIZE];
        for number in 0..COUNT {
            payload[..8].copy_from_slice(&(number as u64).to_be_bytes());
            publisher.publish(publish("flood", AtMostOnce, &payload));
        }
        publisher.publish(publish("other", AtLeastOnce, b"still here"));
        other.take_publish("other", AtLeastOnce, b"still here");
        broker.wait_for_count("broker", "dropped_outbox", |count| count > 0);
        assert_does_not_spin(broker, "with a subscriber that does not read");
        let dropped = broker.count("broker", "dropped_outbox") as usize;
        let mut last = None;
        for _ in 0..COUNT - dropped {
            let Packet::Publish(got) = deaf.recv() else { panic!("a PUBLISH") };
            let number = u64::from_be_bytes(got.payload[..8].try_into().expect("eight bytes"));
            assert!(last < Some(number), "{number} after {last:?}");
            last = Some(number);
        }
        deaf.expect_nothing_before_ping();
        publisher.publish(publish("flood", AtMostOnce, b"after"));
        deaf.expect_publish("flood", AtMostOnce, b"after");
    });
}

/// QoS 1 to a subscriber that does not read for a while: nothing is lost.
///
/// v5: 4.5.0-1, 4.6.0-5, 4.6.0-6
/// family: 55, 81
#[test]
fn a_subscriber_that_reads_late() {
    const SIZE: usize = 64 * 1024;
    const COUNT: u16 = 300;
    on_all(|broker| {
        let mut late = online(broker, V5, "late");
        late.subscribe("flood", AtLeastOnce);
        let mut publisher = online(broker, V311, "publisher");
        let payload = vec![b'x'; SIZE];
        let number = |number: u16| [&number.to_be_bytes()[..], &payload].concat();
        for sent in 0..COUNT {
            publisher.publish(publish("flood", AtLeastOnce, &number(sent)));
        }
        assert_does_not_spin(broker, "with a subscriber that does not read yet");
        for expected in 0..COUNT {
            late.take_publish("flood", AtLeastOnce, &number(expected));
        }
        late.expect_nothing_before_ping();
    });
}

/// A client that asks and asks and never reads an answer: it is ended before what the broker holds
/// for it has no end, and a newer connection of it need not wait.
///
/// family: 35, 81
#[test]
fn a_client_that_never_reads_its_answers() {
    const MOST: usize = 24 << 20;
    on_all(|broker| {
        let deaf = online(broker, V311, "deaf");
        let before = memory(broker);
        // Answered with as many bytes.
        let pings = [0xc0, 0].repeat(32 * 1024);
        let mut stream: &TcpStream = deaf.stream();
        let (mut sent, mut grown) = (0, 0);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match stream.write(&pings[sent % 2..]) {
                Ok(n) => sent += n,
                Err(e)
                    if [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&e.kind()) =>
                {
                    break;
                }
                Err(e) => panic!("{e}"),
            }
            grown = memory(broker).saturating_sub(before).max(grown);
            assert!(grown < MOST, "{grown} bytes are held for who does not read");
            // It is read on for a moment behind the end, so that the last word may arrive.
            assert!(Instant::now() < deadline, "{sent} bytes were taken from who reads no answer");
        }
        assert_eq!(broker.count("broker", "disconnects_unread"), 1);
        let mut newer = online(broker, V311, "deaf");
        newer.expect_nothing_before_ping();
        assert_does_not_spin(broker, "after a client that read no answer");
    });
}

/// No descriptor left: who cannot be accepted is turned away at once and counted, who is there is
/// served, nothing spins, and when some leave there is room again.
///
/// family: 81
#[test]
fn descriptors_run_out() {
    for combination in combinations() {
        println!("on {combination}");
        let broker = Broker::build(combination).descriptors(48).start();
        let mut first = online(&broker, V5, "first");
        first.subscribe("a", AtLeastOnce);
        let mut inside = Vec::new();
        let mut outside = 0;
        for number in 0..80 {
            let mut wire = broker.connect();
            let hello = packet(0x10, &format!("'MQTT' 04 02 003c 'number {number}'"));
            if wire.try_send_bytes(&hello).is_err() {
                outside += 1;
                continue;
            }
            match wire.next_within(Duration::from_secs(10)) {
                Next::Frame(frame) => {
                    assert_eq!(frame, [0x20, 2, 0, 0]);
                    inside.push(wire);
                }
                Next::Closed => outside += 1,
                Next::Silence => panic!("number {number} is neither in nor out"),
            }
        }
        assert!(outside > 20 && inside.len() > 5, "{outside} outside, {} inside", inside.len());
        assert_does_not_spin(&broker, "without a descriptor");
        // Somebody who waits outside is no reason to spin either.
        let _knocking: Vec<_> = (0..5).map(|_| TcpStream::connect(broker.addr())).collect();
        assert_does_not_spin(&broker, "with somebody knocking");
        first.publish(publish("a", AtMostOnce, b"still here"));
        first.expect_publish("a", AtMostOnce, b"still here");
        for wire in &mut inside {
            wire.expect_nothing_before_ping();
        }
        assert!(broker.count("io", "emfile") >= outside);
        inside.clear();
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let mut wire = broker.connect();
            let hello = packet(0x10, "'MQTT' 04 02 003c 'room again'");
            if wire.try_send_bytes(&hello).is_ok()
                && let Next::Frame(frame) = wire.next_within(Duration::from_secs(10))
            {
                assert_eq!(frame, [0x20, 2, 0, 0]);
                wire.expect_nothing_before_ping();
                break;
            }
            assert!(Instant::now() < deadline, "nobody gets in any more");
        }
        first.expect_nothing_before_ping();
        broker.stop();
    }
}

/// More input at once than there are receive buffers: all of it is read, in order (ENOBUFS ends a
/// multishot receive, and somebody has to begin it again).
///
/// v5: 4.2.0-1
/// v3.1.1: 7.1.1-1
/// family: 12
#[test]
fn receive_buffers_run_out() {
    const CLIENTS: usize = 160;
    const MESSAGES: u16 = 12;
    let payload = vec![b'x'; 16 * 1024];
    on_all(|broker| {
        let mut clients: Vec<_> =
            (0..CLIENTS).map(|number| online(broker, V311, &format!("client-{number}"))).collect();
        let mut all = Vec::new();
        for id in 1..=MESSAGES {
            let packet_id = PacketId::new(id);
            let message = Publish { packet_id, ..publish("nobody", AtLeastOnce, &payload) };
            Packet::Publish(message).encode(V311, &mut all);
        }
        // While it stands still, everybody writes as much as the kernel takes.
        broker.signal(Signal::STOP);
        let mut written = Vec::new();
        for wire in &clients {
            let mut stream = wire.stream();
            stream.set_nonblocking(true).expect("not to block");
            let mut sent = 0;
            while sent < all.len() {
                match stream.write(&all[sent..]) {
                    Ok(n) => sent += n,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) => panic!("{e}"),
                }
            }
            stream.set_nonblocking(false).expect("to block again");
            written.push(sent);
        }
        assert!(written.iter().sum::<usize>() > 10 << 20, "{written:?}");
        broker.signal(Signal::CONT);
        for (wire, sent) in clients.iter_mut().zip(written) {
            wire.send_bytes(&all[sent..]);
        }
        for wire in &mut clients {
            for id in 1..=MESSAGES {
                wire.expect_ack(PacketKind::PubAck, id);
            }
            wire.expect_nothing_before_ping();
        }
        println!("{} times without a buffer", broker.count("io", "enobufs"));
        assert_does_not_spin(broker, "after its buffers had run out");
    });
}

/// Connections that come and go in every way leave nothing behind.
///
/// v5: 4.1.0-2
/// family: 12, 81
#[test]
fn connections_that_come_and_go() {
    on_all(|broker| {
        for round in 0..200 {
            let mut wire = broker.connect();
            match round % 5 {
                0 => {}
                1 => wire.reset(),
                2 => {
                    wire.handshake(connect(V5, &format!("goes-{round}")));
                    wire.reset();
                }
                3 => {
                    wire.handshake(connect(V311, &format!("goes-{round}")));
                    wire.subscribe("a/#", AtLeastOnce);
                    wire.send_bytes(&packet(0x30, "'a' 68656c6c6f")[..6]);
                }
                _ => {
                    wire.send_bytes(&packet(0x10, "'MQTT' 04 02 003c 'half'")[..11]);
                    wire.finish();
                }
            }
        }
        broker.wait_for_count("loop", "connections", |count| count == 0);
        let stats = broker.stats();
        let count = |name| stats["total"]["broker"][name].as_u64().expect("a counter");
        assert_eq!(count("sessions_created"), count("sessions_ended"));
        assert_eq!(count("connections_opened"), count("connections_closed"));
    });
}

/// A peer that says DISCONNECT, or breaks a rule, and then neither reads nor closes: its
/// connection is given up in time.
///
/// v5: 3.14.4-2, 4.13.1-1
/// family: 81
#[test]
fn a_peer_that_does_not_close() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let mut polite = online(broker, V5, "polite");
            polite.send_hex("e0 00");
            let mut rude = online(broker, V5, "rude");
            rude.send_hex("00 00");
            broker.wait_for_count("loop", "connections", |count| count == 0);
        },
    );
}

/// The last packet before a close is not lost, though the peer had more to say (a reset would take
/// it away).
///
/// v5: 4.13.1-1
/// family: 79, 81
#[test]
fn the_reason_arrives_though_the_peer_still_sends() {
    on_all(|broker| {
        for _ in 0..10 {
            let mut wire = broker.connect();
            let properties =
                ConnectProperties { session_expiry_interval: Some(0), ..Default::default() };
            wire.handshake(Connect { properties, ..connect(V5, "chatty") });
            let mut all = packet(0x36, "'a' 0001 {}");
            all.extend([0x30, 0xff, 0xff, 0x03].iter().chain(&[b'x'; 60_000]));
            wire.send_bytes(&all);
            wire.expect_disconnect(noctule::codec::mqtt::ReasonCode::MALFORMED_PACKET);
        }
    });
}
