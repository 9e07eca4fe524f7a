//! What does a packet cost to read, and what to write?
//!
//! `cargo bench --bench codec`. A question of nanoseconds: quote medians of an idle machine, and
//! ratios within one run.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use noctule::codec::mqtt::{
    self, Ack, Auth, ConnAck, ConnAckProperties, Connect, ConnectProperties, Delivery, Disconnect,
    Packet, PacketId, PacketKind, Publish, PublishProperties, QoS, ReasonCode, Side, SubAck,
    Subscribe, SubscribeFilter, SubscribeFilters, SubscriptionOptions, Unsubscribe,
    UnsubscribeFilters, UserProperties, Version, Will,
};
use std::hint::black_box;

const TOPIC: &str = "plant/7/line/3/machine/41/temperature";

/// The usual packet of each kind, in MQTT 5.0, with who reads it.
fn visit_kinds(mut visit: impl FnMut(&str, Side, &Packet<'_>)) {
    let id = PacketId::new(7).expect("not zero");
    let user_properties = UserProperties::new(&[("region", "north"), ("shift", "2")]);
    let ack = Ack::new(id, ReasonCode::SUCCESS);
    let lines = [TOPIC, "plant/+/line/3/#", "$share/pool/plant/7/alarms"].map(|filter| {
        SubscribeFilter { filter, options: SubscriptionOptions::new(QoS::AtLeastOnce) }
    });
    let names = lines.map(|line| line.filter);
    let publish = Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: TOPIC,
        packet_id: None,
        properties: PublishProperties::default(),
        payload: &[0x55; 64],
    };
    let acknowledged = Publish { qos: QoS::AtLeastOnce, packet_id: Some(id), ..publish };
    let with_properties = Publish {
        properties: PublishProperties {
            message_expiry_interval: Some(60),
            content_type: Some("application/json"),
            response_topic: Some("answers/7"),
            correlation_data: Some(&[1; 8]),
            user_properties,
            ..PublishProperties::default()
        },
        ..publish
    };
    let connect = Connect {
        version: Version::V5,
        bridge: false,
        clean_start: true,
        keep_alive: 60,
        client_id: "machine-41-of-line-3",
        user_name: Some("machine"),
        password: Some(b"a password"),
        will: Some(Will {
            topic: TOPIC,
            payload: b"gone",
            qos: QoS::AtLeastOnce,
            retain: true,
            delay_interval: 10,
            properties: PublishProperties::default(),
        }),
        properties: ConnectProperties {
            session_expiry_interval: Some(3600),
            receive_maximum: Some(100),
            ..ConnectProperties::default()
        },
    };
    let connack = ConnAck {
        session_present: false,
        reason: ReasonCode::SUCCESS,
        properties: ConnAckProperties {
            receive_maximum: Some(1024),
            topic_alias_maximum: Some(32),
            maximum_packet_size: Some(2 << 20),
            ..ConnAckProperties::default()
        },
    };
    let subscribe = Subscribe {
        packet_id: id,
        subscription_id: Some(9),
        user_properties: UserProperties::EMPTY,
        filters: SubscribeFilters::new(&lines),
    };
    let unsubscribe = Unsubscribe {
        packet_id: id,
        user_properties: UserProperties::EMPTY,
        filters: UnsubscribeFilters::new(&names),
    };
    let auth = Auth {
        reason: ReasonCode::CONTINUE_AUTHENTICATION,
        authentication_method: Some("SCRAM-SHA-256"),
        authentication_data: Some(&[7; 32]),
        reason_string: None,
        user_properties: UserProperties::EMPTY,
    };
    let disconnect = Disconnect::new(ReasonCode::NORMAL_DISCONNECTION);
    let mut kinds = std::collections::BTreeSet::new();
    for (name, side, packet) in [
        ("CONNECT", Side::Server, Packet::Connect(connect)),
        ("CONNACK", Side::Client, Packet::ConnAck(connack)),
        ("PUBLISH QoS 0", Side::Server, Packet::Publish(publish)),
        ("PUBLISH QoS 1", Side::Server, Packet::Publish(acknowledged)),
        ("PUBLISH with properties", Side::Server, Packet::Publish(with_properties)),
        ("PUBACK", Side::Server, Packet::PubAck(ack)),
        ("PUBREC", Side::Server, Packet::PubRec(ack)),
        ("PUBREL", Side::Server, Packet::PubRel(ack)),
        ("PUBCOMP", Side::Server, Packet::PubComp(ack)),
        ("SUBSCRIBE", Side::Server, Packet::Subscribe(subscribe)),
        ("SUBACK", Side::Client, Packet::SubAck(SubAck::new(id, &[1, 1, 1]))),
        ("UNSUBSCRIBE", Side::Server, Packet::Unsubscribe(unsubscribe)),
        ("UNSUBACK", Side::Client, Packet::UnsubAck(SubAck::new(id, &[0, 0, 0]))),
        ("PINGREQ", Side::Server, Packet::PingReq),
        ("PINGRESP", Side::Client, Packet::PingResp),
        ("DISCONNECT", Side::Server, Packet::Disconnect(disconnect)),
        ("AUTH", Side::Server, Packet::Auth(auth)),
    ] {
        kinds.insert(packet.kind());
        visit(name, side, &packet);
    }
    assert_eq!(kinds.len(), PacketKind::COUNT - 1, "all but the reserved one");
}

fn frame_of(version: Version, packet: &Packet<'_>) -> Vec<u8> {
    let mut frame = Vec::new();
    packet.encode(version, &mut frame);
    frame
}

/// What the packet reads as before any other was: nothing but CONNECT is legal then.
fn known_version(version: Version, packet: &Packet<'_>) -> Option<Version> {
    (packet.kind() != PacketKind::Connect).then_some(version)
}

fn read(c: &mut Criterion) {
    let mut group = c.benchmark_group("read");
    group.throughput(Throughput::Elements(1));
    visit_kinds(|name, side, packet| {
        // The older form of what makes up the traffic.
        let is_old = matches!(packet, Packet::PubAck(_)) || name.starts_with("PUBLISH QoS");
        for version in [Version::V5, Version::V311] {
            if version == Version::V311 && !is_old {
                continue;
            }
            let frame = frame_of(version, packet);
            let known = known_version(version, packet);
            group.bench_function(format!("{name} {version}"), |b| {
                b.iter(|| {
                    let frame = black_box(frame.as_slice());
                    let len = mqtt::frame_len(frame).expect("whole").expect("whole");
                    black_box(mqtt::decode(&frame[..len], known, side)).expect("well-formed");
                });
            });
        }
    });
    group.finish();
}

fn write(c: &mut Criterion) {
    let mut group = c.benchmark_group("write");
    group.throughput(Throughput::Elements(1));
    let mut out = Vec::with_capacity(4096);
    visit_kinds(|name, _, packet| {
        group.bench_function(format!("{name} 5.0"), |b| {
            b.iter(|| {
                out.clear();
                black_box(packet).encode(Version::V5, &mut out);
                black_box(&out);
            });
        });
    });
    // The broker's short way.
    for (name, version) in [("delivery 3.1.1", Version::V311), ("delivery 5.0", Version::V5)] {
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
