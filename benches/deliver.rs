//! What does it cost to give a publication to its subscribers, and what do Topic Aliases save?
//!
//! `cargo bench --bench deliver`. The broker alone, without sockets: a PUBLISH is handled, and the
//! outboxes are emptied. Quote medians of an idle machine, and ratios within one run; the bytes are
//! exact.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros")]
#![allow(clippy::print_stdout, reason = "the bytes are a result")]

mod clients;

use clients::{NOW, conn, connect};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use noctule::broker::{Broker, Config, Frame};
use noctule::codec::mqtt::Version;
use noctule::ids::{ConnId, PlacementKey, ShardId};
use std::hint::black_box;

/// 40 bytes.
const TOPIC: &str = "plant/7/line/3/machine/41/temperature/av";

/// Handles one frame, as bytes.
fn handle(broker: &mut Broker, conn: ConnId, frame: &[u8]) {
    let frame = Frame { bytes: frame, shared: None };
    let _ = broker.handle_frame(NOW, conn, broker.version_of(conn), frame, &mut "");
}

/// Empties the outboxes; how many bytes were in them.
fn flush(broker: &mut Broker) -> usize {
    let mut sent = 0;
    let mut dirty = std::mem::take(&mut broker.out.dirty.conns);
    for conn in dirty.drain(..) {
        let outbox = broker.outbox(conn);
        let len = outbox.len();
        outbox.clear();
        broker.handle_sent(NOW, conn, len);
        sent += len;
    }
    broker.out.dirty.conns = dirty;
    sent
}

/// A publisher, connection 0, and so many subscribers of everything.
fn world(subscribers: u32, aliases: Option<u16>) -> Broker {
    let mut broker = Broker::new(Config::default(), ShardId::new(0), 1, PlacementKey(1), 1);
    connect(&mut broker, 0, Version::V5, None);
    for index in 1..=subscribers {
        connect(&mut broker, index, Version::V5, aliases);
        handle(&mut broker, conn(index), b"\x82\x07\x00\x01\x00\x00\x01#\x00");
    }
    flush(&mut broker);
    broker
}

fn publish(topic: &str) -> Vec<u8> {
    let body = 2 + topic.len() + 1 + 20;
    let mut frame = vec![0x30, body as u8, 0, topic.len() as u8];
    frame.extend_from_slice(topic.as_bytes());
    frame.push(0);
    frame.extend_from_slice(&[0x55; 20]);
    frame
}

fn deliver(c: &mut Criterion) {
    let mut group = c.benchmark_group("deliver");
    for (subscribers, topics) in [(1, 1), (1, 8), (1, 32), (100, 1), (100, 8)] {
        for aliases in [None, Some(10)] {
            let mut broker = world(subscribers, aliases);
            let frames: Vec<Vec<u8>> =
                (0..topics).map(|n| publish(&TOPIC.replace("41", &format!("{n:02}")))).collect();
            let mut next = frames.iter().cycle();
            let mut one = || {
                handle(&mut broker, conn(0), next.next().expect("a cycle"));
                flush(&mut broker)
            };
            let bytes: usize = (0..3200).map(|_| one()).sum();
            let each = bytes as f64 / 3200.0 / f64::from(subscribers);
            let name = format!("to {subscribers}, {topics} topics, aliases {aliases:?}");
            println!("{name}: {each:.2} bytes a message");
            group.throughput(Throughput::Elements(u64::from(subscribers)));
            group.bench_function(name, |bench| bench.iter(|| black_box(one())));
        }
    }
    group.finish();
}

criterion_group!(benches, deliver);
criterion_main!(benches);
