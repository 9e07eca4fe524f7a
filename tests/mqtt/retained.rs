//! Retained messages: kept, replaced, cleared, and sent to who subscribes.

use std::collections::BTreeMap;

use noctule::codec::mqtt::{Packet, PacketKind, Publish, QoS, Version};

use super::notation::packet;
use super::support::packets::{connect, publish};
use super::support::{Broker, Wire, on_all};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V31, V311};

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(version, id));
    wire
}

fn retained<'a>(topic: &'a str, qos: QoS, payload: &'a [u8]) -> Publish<'a> {
    Publish { retain: true, ..publish(topic, qos, payload) }
}

/// The last one is kept, with its QoS, and sent with RETAIN at the smaller QoS; live it goes
/// without RETAIN. An empty one clears and is delivered like any other. In every version, from
/// every shard to every other.
///
/// v5: 3.3.1-5, 3.3.1-6, 3.3.1-7, 3.3.1-8, 3.3.1-12, 3.8.4-8
/// v3.1.1: 3.3.1-5, 3.3.1-6, 3.3.1-7, 3.3.1-8, 3.3.1-9, 3.3.1-10, 3.3.1-11, 3.3.1-12, 3.8.4-6
/// v3.1: 2.1
/// family: 59, 68
#[test]
fn kept_replaced_and_cleared() {
    on_all(|broker| {
        for (version, qos) in [(V31, AtMostOnce), (V311, AtLeastOnce), (V5, ExactlyOnce)] {
            for number in 0..4 {
                let topic = format!("{version:?}/{number}");
                let mut live = online(broker, version, "live");
                live.subscribe(&topic, ExactlyOnce);
                let mut publisher = online(broker, version, &format!("publisher-{number}"));
                publisher.publish(retained(&topic, qos, b"first"));
                publisher.publish(retained(&topic, qos, b"second"));
                assert_eq!(live.take_publish(&topic, qos, b"first"), (false, false));
                assert_eq!(live.take_publish(&topic, qos, b"second"), (false, false));
                // A message without RETAIN changes nothing.
                publisher.publish(publish(&topic, ExactlyOnce, b"passing"));
                live.take_publish(&topic, ExactlyOnce, b"passing");
                for granted in [AtMostOnce, ExactlyOnce] {
                    let mut late = online(broker, V311, "late");
                    late.subscribe(&topic, granted);
                    let got = late.take_publish(&topic, qos.min(granted), b"second");
                    assert_eq!(got, (false, true));
                    late.expect_nothing_before_ping();
                }
                publisher.publish(retained(&topic, ExactlyOnce, b""));
                assert_eq!(live.take_publish(&topic, ExactlyOnce, b""), (false, false));
                let mut late = online(broker, V5, "late");
                late.subscribe(&topic, AtLeastOnce);
                late.expect_nothing_before_ping();
            }
        }
    });
}

/// Retained messages are sent always, when the subscription is new, or never. What was given up is
/// new again; 3.x gets them always.
///
/// v5: 3.3.1-9, 3.3.1-10, 3.3.1-11, 3.8.4-4
/// v3.1.1: 3.8.4-3, 3.3.1-6
/// family: 66, 67
#[test]
fn retain_handling() {
    on_all(|broker| {
        let mut publisher = online(broker, V5, "publisher");
        publisher.publish(retained("a/b", AtLeastOnce, b"kept"));
        let mut wire = online(broker, V5, "subscriber");
        for (options, replayed) in
            [("20", false), ("10", false), ("00", true), ("00", true), ("10", false), ("20", false)]
        {
            wire.send_bytes(&packet(0x82, &format!("0001 {{}} 'a/+' {options}")));
            wire.expect_bytes(&packet(0x90, "0001 {} 00"));
            if replayed {
                wire.expect_bytes(&packet(0x31, "'a/b' {} 6b657074"));
            }
            wire.expect_nothing_before_ping();
        }
        wire.unsubscribe("a/+");
        wire.send_bytes(&packet(0x82, "0001 {} 'a/+' 10"));
        wire.expect_bytes(&packet(0x90, "0001 {} 00"));
        wire.expect_bytes(&packet(0x31, "'a/b' {} 6b657074"));
        let mut old = online(broker, V311, "old");
        for _ in 0..2 {
            old.subscribe("a/b", AtMostOnce);
            old.expect_bytes(&packet(0x31, "'a/b' 6b657074"));
            old.expect_nothing_before_ping();
        }
    });
}

/// RETAIN goes on as it was published where a subscription asks for it, else it is 0.
///
/// v5: 3.3.1-12, 3.3.1-13
/// family: 68
#[test]
fn retain_as_published() {
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        for (options, first) in [("00", 0x30), ("08", 0x31)] {
            let mut wire = online(broker, V5, "subscriber");
            wire.send_bytes(&packet(0x82, &format!("0001 {{}} 'a' {options}")));
            wire.expect_bytes(&packet(0x90, "0001 {} 00"));
            publisher.publish(retained("a", AtMostOnce, b"x"));
            wire.expect_bytes(&packet(first, "'a' {} 78"));
            publisher.publish(publish("a", AtMostOnce, b"y"));
            wire.expect_bytes(&packet(0x30, "'a' {} 79"));
            publisher.publish(retained("a", AtMostOnce, b""));
            wire.expect_bytes(&packet(first, "'a' {}"));
        }
    });
}

/// The replay carries the identifier of the subscription that asked, and the message's properties.
///
/// v5: 3.3.4-3, 3.3.2-17, 3.3.2-20
/// family: 69
#[test]
fn a_replay_carries_what_a_live_message_would() {
    on_all(|broker| {
        let mut publisher = online(broker, V5, "publisher");
        publisher.send_bytes(&packet(0x33, "'a/b' 0001 {03 't' 26 'k' 'v'} 78"));
        publisher.expect_ack(PacketKind::PubAck, 1);
        let mut wire = online(broker, V5, "subscriber");
        for id in [5, 6] {
            wire.send_bytes(&packet(0x82, &format!("0001 {{0b{id:02x}}} 'a/#' 00")));
            wire.expect_bytes(&packet(0x90, "0001 {} 00"));
            let Packet::Publish(got) = wire.recv() else { panic!("a PUBLISH") };
            assert!(got.retain);
            assert_eq!(got.properties.content_type, Some("t"));
            assert_eq!(got.properties.user_properties.iter().collect::<Vec<_>>(), [("k", "v")]);
            assert_eq!(got.properties.subscription_ids.iter().collect::<Vec<_>>(), [id]);
        }
    });
}

/// A replay too large to be sent at once: every one comes, once, while other things go on.
///
/// v3.1.1: 3.3.1-6, 3.3.1-8
#[test]
fn many_retained_messages() {
    const COUNT: usize = 3000;
    on_all(|broker| {
        let mut publisher = online(broker, V311, "publisher");
        let mut all = Vec::new();
        for number in 0..COUNT {
            let topic = format!("many/{}/{number}", number % 7);
            Packet::Publish(retained(&topic, AtMostOnce, &[b'x'; 100])).encode(V311, &mut all);
        }
        publisher.send_bytes(&all);
        publisher.publish(retained("many/last", AtLeastOnce, b"x"));
        let mut wire = online(broker, V311, "subscriber");
        wire.subscribe("many/#", AtLeastOnce);
        wire.send_hex("c000");
        let (mut seen, mut pong) = (BTreeMap::new(), false);
        while seen.len() <= COUNT || !pong {
            match wire.recv() {
                Packet::Publish(got) => {
                    assert!(got.retain);
                    *seen.entry(got.topic.to_owned()).or_insert(0) += 1;
                    if let Some(id) = got.packet_id {
                        wire.send_ack(PacketKind::PubAck, id.get());
                    }
                }
                Packet::PingResp => pong = true,
                other => panic!("{other:?}"),
            }
        }
        wire.expect_nothing_before_ping();
        assert!(seen.values().all(|count| *count == 1));
        assert_eq!(seen.len(), COUNT + 1);
    });
}

/// A replay of more than an outbox takes at once goes on as its bytes leave. At QoS 0 nothing else
/// wakes it: its client says nothing.
///
/// v3.1.1: 3.3.1-6
#[test]
fn a_large_replay_to_a_client_that_says_nothing() {
    const COUNT: usize = 300;
    on_all(|broker| {
        let mut publisher = online(broker, V5, "publisher");
        for number in 0..COUNT {
            let topic = format!("large/{number}");
            publisher.publish(retained(&topic, AtLeastOnce, &[7; 3000]));
        }
        let mut late = online(broker, V311, "late");
        late.subscribe("large/#", AtMostOnce);
        for _ in 0..COUNT {
            let Packet::Publish(got) = late.recv() else { panic!("no PUBLISH") };
            assert!(got.retain);
        }
    });
}

/// Subscribing while values change: the newest value is the last one that arrives, and no value
/// comes after a newer one.
///
/// v5: 3.3.1-9, 3.3.1-5
/// family: 65
#[test]
fn subscribing_while_the_value_changes() {
    const COUNT: u32 = 300;
    on_all(|broker| {
        let addr = broker.addr();
        let sender = std::thread::spawn(move || {
            let mut publisher = Wire::open(addr);
            publisher.handshake(connect(V311, "publisher"));
            for number in 1..=COUNT {
                publisher.publish(retained("value", AtLeastOnce, &number.to_be_bytes()));
            }
            publisher
        });
        for round in 0.. {
            let done = sender.is_finished();
            let mut wire = online(broker, V5, &format!("subscriber-{round}"));
            wire.send_bytes(&packet(0x82, "0001 {} 'value' 00"));
            wire.expect_bytes(&packet(0x90, "0001 {} 00"));
            let mut last = 0;
            let target = if done { COUNT } else { 1 };
            // The very first rounds may be before the first value.
            while last < target {
                let Packet::Publish(got) = wire.recv() else { panic!("a PUBLISH") };
                let value = u32::from_be_bytes(got.payload.try_into().expect("four bytes"));
                assert!(value > last, "{value} after {last} in round {round}");
                last = value;
            }
            if done {
                wire.expect_nothing_before_ping();
                break;
            }
        }
        drop(sender.join().expect("the publisher"));
    });
}
