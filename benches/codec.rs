//! What does a packet cost to read, and what to write?
//!
//! `cargo bench --bench codec`. A question of nanoseconds: quote medians of an idle machine, and
//! ratios within one run.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use noctule::codec::mqtt::{self, Delivery, PacketId, QoS, Side, Version};
use std::hint::black_box;

const TOPIC: &str = "plant/7/line/3/machine/41/temperature";

fn publish(version: Version, qos: QoS) -> Vec<u8> {
    let payload = [0x55; 64];
    let head = Delivery {
        topic: TOPIC,
        qos,
        dup: false,
        retain: false,
        packet_id: (qos > QoS::AtMostOnce).then(|| PacketId::new(7).expect("not zero")),
        message_expiry_interval: None,
        topic_alias: None,
        subscription_ids: &[],
        forwarded: &[],
        payload_len: payload.len(),
    };
    let mut frame = Vec::new();
    head.encode_head(version, &mut frame);
    frame.extend_from_slice(&payload);
    frame
}

fn read(c: &mut Criterion) {
    let mut group = c.benchmark_group("read");
    group.throughput(Throughput::Elements(1));
    let frames = [
        ("PUBLISH 3.1.1 QoS 0", publish(Version::V311, QoS::AtMostOnce), Version::V311),
        ("PUBLISH 5.0 QoS 0", publish(Version::V5, QoS::AtMostOnce), Version::V5),
        ("PUBLISH 3.1.1 QoS 1", publish(Version::V311, QoS::AtLeastOnce), Version::V311),
        ("PUBACK 3.1.1", vec![0x40, 2, 0, 7], Version::V311),
        ("PINGREQ", vec![0xc0, 0], Version::V311),
    ];
    for (name, frame, version) in &frames {
        group.bench_function(*name, |b| {
            b.iter(|| {
                let frame = black_box(frame.as_slice());
                let len = mqtt::frame_len(frame).expect("whole").expect("whole");
                black_box(mqtt::decode(&frame[..len], Some(*version), Side::Server))
                    .expect("well-formed");
            });
        });
    }
    group.finish();
}

fn write(c: &mut Criterion) {
    let mut group = c.benchmark_group("write");
    group.throughput(Throughput::Elements(1));
    let mut out = Vec::with_capacity(4096);
    for (name, version) in [("PUBLISH 3.1.1", Version::V311), ("PUBLISH 5.0", Version::V5)] {
        let head = Delivery {
            topic: TOPIC,
            qos: QoS::AtLeastOnce,
            dup: false,
            retain: false,
            packet_id: PacketId::new(7),
            message_expiry_interval: None,
            topic_alias: None,
            subscription_ids: &[],
            forwarded: &[],
            payload_len: 64,
        };
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                black_box(&head).encode_head(version, &mut out);
                out.extend_from_slice(black_box(&[0x55; 64]));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, read, write);
criterion_main!(benches);
