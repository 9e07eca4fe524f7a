//! How many instructions does a message take through codec and broker?
//!
//! Not timed: it is run under `valgrind --tool=callgrind`, which counts, and whose counts are the
//! same on a busy machine. `scripts/instructions.sh` runs every case twice, with N and with 2N
//! messages, and divides the difference, so that start and warm-up do not count.
//!
//! `cargo bench --bench instructions -- CASE N`, or without arguments for a list of cases.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "a program")]
#![allow(clippy::print_stdout, reason = "its result")]

mod clients;
mod stored;

use clients::{NOW, conn, connect};
use noctule::broker::{Broker, Config, Frame, Step};
use noctule::codec::mqtt::{self, Packet, Side, Version};
use noctule::ids::{ConnId, PlacementKey, ShardId};

/// Frames that one read brings.
const BATCH: usize = 64;

/// Name, version, QoS, publishers, subscribers of each topic, payload bytes.
type Case = (&'static str, Version, u8, u32, u32, usize);
const CASES: &[Case] = &[
    ("pairs-qos0-v4", Version::V311, 0, 10, 1, 16),
    ("pairs-qos0-v5", Version::V5, 0, 10, 1, 16),
    ("pairs-qos1-v4", Version::V311, 1, 10, 1, 16),
    ("pairs-qos2-v4", Version::V311, 2, 10, 1, 16),
    ("fan-out-100-v4", Version::V311, 0, 1, 100, 64),
    ("fan-in-100-v4", Version::V311, 0, 100, 0, 16),
];

const RETAINED: &str = "retained-qos0-v4";

/// Handles whole frames, as the shard does.
fn handle(broker: &mut Broker, conn: ConnId, mut data: &[u8]) {
    let version = broker.version_of(conn);
    let mut topic = "";
    while let Ok(Some(len)) = mqtt::frame_len(data) {
        let (frame, rest) = data.split_at(len);
        let frame = Frame { bytes: frame, shared: None };
        assert_ne!(broker.handle_frame(NOW, conn, version, frame, &mut topic), Step::Close);
        data = rest;
    }
}

/// Takes what is in the outboxes, as the shard does, and gives it to `each`.
fn flush(broker: &mut Broker, mut each: impl FnMut(ConnId, &[u8])) {
    let mut dirty = std::mem::take(&mut broker.out.dirty.conns);
    for conn in dirty.drain(..) {
        let mut bytes = Vec::new();
        std::mem::swap(broker.outbox(conn).tail(), &mut bytes);
        broker.handle_sent(NOW, conn, bytes.len());
        each(conn, &bytes);
        bytes.clear();
        let outbox = broker.outbox(conn);
        if outbox.is_empty() {
            std::mem::swap(outbox.tail(), &mut bytes);
        }
    }
    if broker.out.dirty.conns.is_empty() {
        broker.out.dirty.conns = dirty;
    }
}

/// A frame with a body of less than 128 bytes.
fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, u8::try_from(body.len()).expect("short")];
    frame.extend_from_slice(body);
    frame
}

fn topic(publisher: u32) -> String {
    format!("bench/pairs/{publisher:04}")
}

fn subscribe(broker: &mut Broker, index: u32, version: Version, filter: &str, qos: u8) {
    let mut body = vec![0, 1];
    if version == Version::V5 {
        body.push(0);
    }
    body.extend_from_slice(&[0, filter.len() as u8]);
    body.extend_from_slice(filter.as_bytes());
    body.push(qos);
    handle(broker, conn(index), &frame(0x82, &body));
}

fn publish(version: Version, qos: u8, topic: &str, packet_id: u16, payload: usize) -> Vec<u8> {
    let mut body = vec![0, topic.len() as u8];
    body.extend_from_slice(topic.as_bytes());
    if qos > 0 {
        body.extend_from_slice(&packet_id.to_be_bytes());
    }
    if version == Version::V5 {
        body.push(0);
    }
    body.extend(std::iter::repeat_n(0x55, payload));
    frame(0x30 | qos << 1, &body)
}

/// What a client answers to these frames.
fn answers(version: Version, mut data: &[u8], out: &mut Vec<u8>) {
    while let Ok(Some(len)) = mqtt::frame_len(data) {
        let packet = mqtt::decode(&data[..len], Some(version), Side::Client).expect("a packet");
        let (first, id) = match packet {
            Packet::Publish(publish) => match publish.packet_id {
                Some(id) if publish.qos as u8 == 1 => (0x40, id),
                Some(id) => (0x50, id),
                None => (0, mqtt::PacketId::MIN),
            },
            Packet::PubRec(ack) => (0x62, ack.packet_id),
            Packet::PubRel(ack) => (0x70, ack.packet_id),
            _ => (0, mqtt::PacketId::MIN),
        };
        if first != 0 {
            out.extend_from_slice(&[first, 2]);
            out.extend_from_slice(&id.get().to_be_bytes());
        }
        data = &data[len..];
    }
}

/// Clients answer what they get until nothing comes any more; `before` each flush.
fn acknowledge(broker: &mut Broker, version: Version, mut before: impl FnMut(&mut Broker)) {
    let mut replies: Vec<(ConnId, Vec<u8>)> = Vec::new();
    loop {
        before(broker);
        flush(broker, |conn, bytes| {
            let mut reply = Vec::new();
            answers(version, bytes, &mut reply);
            if !reply.is_empty() {
                replies.push((conn, reply));
            }
        });
        if replies.is_empty() {
            return;
        }
        for (conn, reply) in replies.drain(..) {
            handle(broker, conn, &reply);
        }
    }
}

/// Stores a retained message in each of so many topics, as a publisher that goes through them.
fn retain(messages: usize) {
    let config = Config { memory_budget: usize::MAX / 2, ..Config::default() };
    let mut broker = Broker::new(config, ShardId::new(0), 1, PlacementKey(1), 1);
    connect(&mut broker, 0, Version::V311, None);
    let mut input = Vec::new();
    for batch in 0..messages / BATCH {
        input.clear();
        for index in 0..BATCH {
            let topic = format!("bench/retained/{:08}", batch * BATCH + index);
            let mut frame = publish(Version::V311, 0, &topic, 0, 64);
            frame[0] |= 1;
            input.extend_from_slice(&frame);
        }
        handle(&mut broker, conn(0), &input);
    }
    let stored = messages / BATCH * BATCH;
    assert!(broker.message_bytes() >= 64 * stored, "all are stored");
    println!("{stored}");
}

fn run(case: &Case, messages: usize) {
    let &(_, version, qos, publishers, subscribers, payload) = case;
    let mut broker = Broker::new(Config::default(), ShardId::new(0), 1, PlacementKey(1), 1);
    for index in 0..publishers {
        connect(&mut broker, index, version, None);
    }
    let mut index = publishers;
    if subscribers == 0 {
        connect(&mut broker, index, version, None);
        subscribe(&mut broker, index, version, "bench/#", qos);
    }
    for publisher in 0..publishers {
        for _ in 0..subscribers {
            connect(&mut broker, index, version, None);
            subscribe(&mut broker, index, version, &topic(publisher), qos);
            index += 1;
        }
    }
    flush(&mut broker, |_, _| {});
    let window = if qos > 0 { 20 } else { BATCH };
    let inputs: Vec<Vec<u8>> = (0..publishers)
        .map(|publisher| {
            let topic = topic(publisher);
            (1..=window).flat_map(|id| publish(version, qos, &topic, id as u16, payload)).collect()
        })
        .collect();
    let mut delivered = 0;
    let per_round = window * publishers as usize * subscribers.max(1) as usize;
    while delivered < messages {
        for (publisher, input) in inputs.iter().enumerate() {
            handle(&mut broker, conn(publisher as u32), input);
        }
        delivered += per_round;
        if qos > 0 {
            acknowledge(&mut broker, version, |_| {});
        } else {
            flush(&mut broker, |_, _| {});
        }
    }
    let stats = broker.stats();
    let out = [stats.messages_out_qos0, stats.messages_out_qos1, stats.messages_out_qos2];
    assert_eq!(out.iter().sum::<u64>(), delivered as u64, "all were delivered");
    println!("{delivered}");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match &args[..] {
        [name, messages] => {
            let messages = messages.parse().expect("a number of messages");
            if name == RETAINED {
                return retain(messages);
            }
            match stored::CASES.iter().find(|case| case.name == name.as_str()) {
                Some(case) => stored::run(case, messages),
                None => {
                    let case = CASES.iter().find(|case| case.0 == name.as_str());
                    run(case.expect("a case"), messages);
                }
            }
        }
        _ => {
            CASES.iter().for_each(|case| println!("{}", case.0));
            stored::CASES.iter().for_each(|case| println!("{}", case.name));
            println!("{RETAINED}");
        }
    }
}
