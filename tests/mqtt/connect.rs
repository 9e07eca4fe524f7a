//! CONNECT and CONNACK, keep alive, PINGREQ, AUTH.

use std::time::Duration;

use noctule::codec::mqtt::{
    ConnAck, Connect, ConnectProperties, Packet, QoS, ReasonCode, Version, Will,
};

use super::notation::packet;
use super::support::packets::{connect, publish};
use super::support::{Broker, Next, Wire, combinations, on_all, on_all_at_once};

use Version::{V5, V31, V311};

/// Sends a CONNECT and hands its CONNACK to `look`.
fn connack<T>(wire: &mut Wire, connect: Connect<'_>, look: impl FnOnce(&ConnAck<'_>) -> T) -> T {
    wire.send(&Packet::Connect(connect));
    match wire.recv() {
        Packet::ConnAck(ack) => look(&ack),
        other => panic!("expected CONNACK, got {other:?}"),
    }
}

/// A successful CONNACK comes first, in the bytes of 3.1 and 3.1.1, and with what 5.0 announces.
///
/// v5: 3.1.4-5, 3.2.0-1
/// v3.1.1: 3.1.4-4, 3.2.0-1, 7.0.0-2
/// v3.1: 2.2
/// family: 13, 20
#[test]
fn connack_in_every_version() {
    on_all(|broker| {
        let mut wire = broker.connect();
        wire.send_bytes(&packet(0x10, "'MQIsdp' 03 02 003c 'a'"));
        wire.expect_hex("20 02 0000");
        let mut wire = broker.connect();
        wire.send_bytes(&packet(0x10, "'MQTT' 04 02 003c 'b'"));
        wire.expect_hex("20 02 0000");
        let mut wire = broker.connect();
        connack(&mut wire, connect(V5, "c"), |ack| {
            assert_eq!((ack.session_present, ack.reason), (false, ReasonCode::SUCCESS));
            let properties = &ack.properties;
            // 3.2.2.3.4: there is no way to say 2.
            assert_eq!(properties.maximum_qos, None);
            assert_eq!(properties.receive_maximum, Some(1024));
            assert_eq!(properties.maximum_packet_size, Some(2 * 1024 * 1024));
            assert_eq!(properties.topic_alias_maximum, Some(32));
            assert_eq!(properties.assigned_client_id, None);
            assert_eq!(properties.server_keep_alive, None);
            assert_eq!(properties.session_expiry_interval, None);
            assert_eq!(properties.retain_available, None);
        });
        wire.expect_nothing_before_ping();
    });
}

/// Session Present tells whether there was a session; 3.1 has no such flag.
///
/// v5: 3.1.2-6, 3.1.4-4, 3.2.2-2, 3.2.2-3
/// v3.1.1: 3.1.4-3, 3.2.2-1, 3.2.2-2, 3.2.2-3
/// v3.1: 3.2
/// family: 18
#[test]
fn session_present() {
    on_all(|broker| {
        for (version, present) in [(V31, false), (V311, true), (V5, true)] {
            let id = format!("present-{version:?}");
            let session = |clean_start| {
                let properties = ConnectProperties {
                    session_expiry_interval: (version == V5).then_some(60),
                    ..ConnectProperties::default()
                };
                Connect { clean_start, properties, ..connect(version, &id) }
            };
            assert!(!broker.connect().handshake(session(false)));
            assert_eq!(broker.connect().handshake(session(false)), present);
            assert_eq!(broker.connect().handshake(session(false)), present);
            assert!(!broker.connect().handshake(session(true)));
        }
    });
}

/// An empty client identifier: refused where the version says so, else one is assigned, which is nobody
/// else's.
///
/// v5: 3.1.3-6, 3.1.3-7, 3.2.2-16
/// v3.1.1: 3.1.3-6, 3.1.3-7, 3.1.3-8, 3.1.3-9, 3.2.2-4, 3.2.2-5
/// v3.1: 3.2
/// family: 17
#[test]
fn an_empty_client_identifier() {
    on_all(|broker| {
        // 3.1 wants 1 to 23 characters.
        for (body, code) in [("'MQIsdp' 03 02 003c ''", 2), ("'MQTT' 04 00 003c ''", 2)] {
            let mut wire = broker.connect();
            wire.send_bytes(&packet(0x10, body));
            wire.expect_bytes(&[0x20, 2, 0, code]);
            wire.expect_closed();
        }
        let mut nameless: Vec<_> = (0..3).map(|_| broker.connect()).collect();
        for wire in &mut nameless {
            wire.handshake(connect(V311, ""));
        }
        for wire in &mut nameless {
            wire.expect_nothing_before_ping();
        }

        let assigned = |wire: &mut Wire| {
            connack(wire, connect(V5, ""), |ack| {
                ack.properties.assigned_client_id.expect("an id").to_owned()
            })
        };
        let (mut one, mut two) = (broker.connect(), broker.connect());
        let (one_id, two_id) = (assigned(&mut one), assigned(&mut two));
        assert_ne!(one_id, two_id);
        // The id is one like any other: who comes with it takes over.
        broker.connect().handshake(connect(V5, &one_id));
        one.expect_disconnect(ReasonCode::SESSION_TAKEN_OVER);
        two.expect_nothing_before_ping();
    });
}

/// What every server must take, and beyond: any UTF-8 is a client identifier, long ones too.
///
/// v5: 3.1.3-5
/// v3.1.1: 3.1.3-5
#[test]
fn any_client_identifier() {
    let long = "x".repeat(65_535);
    on_all(|broker| {
        for id in [
            "0",
            "0123456789abcdefghijklm",
            "nopqrstuvwxyzABCDEFGHIJ",
            "KLMNOPQRSTUVWXYZ",
            "0123456789abcdefghijklmn",
            "ä/+#$ \u{7}\u{feff}",
            &long,
        ] {
            for version in [V31, V311, V5] {
                let mut wire = broker.connect();
                wire.handshake(connect(version, id));
                wire.expect_nothing_before_ping();
            }
        }
    });
}

/// All combinations of user name and password that the versions allow.
///
/// family: 16
#[test]
fn user_name_and_password_are_accepted_from_anybody() {
    on_all(|broker| {
        let given = [
            (V311, Some(""), None),
            (V311, Some("user"), Some(&b"\0\xff"[..])),
            (V5, None, Some(&b"secret"[..])),
            (V5, Some("user"), Some(&b""[..])),
        ];
        for (version, user_name, password) in given {
            let mut wire = broker.connect();
            wire.handshake(Connect { user_name, password, ..connect(version, "user") });
            wire.expect_nothing_before_ping();
        }
        assert!(!broker.stderr().contains("secret"));
    });
}

/// Refused, then closed. No Will of who was refused, which its next message proves.
///
/// v5: 3.1.4-2, 3.2.2-6, 3.2.2-7, 4.12.0-1, 4.13.2-1
/// family: 27, 33
#[test]
fn an_authentication_method_that_we_do_not_have() {
    on_all(|broker| {
        let mut other = broker.connect();
        other.handshake(connect(V5, "other"));
        other.subscribe("#", QoS::AtMostOnce);
        let mut wire = broker.connect();
        let will = Will {
            topic: "will",
            payload: b"never",
            qos: QoS::AtMostOnce,
            retain: false,
            delay_interval: 0,
            properties: Default::default(),
        };
        let properties = ConnectProperties {
            authentication_method: Some("SCRAM-SHA-1"),
            authentication_data: Some(b"n,,n=user"),
            ..ConnectProperties::default()
        };
        let refused = Connect { will: Some(will), properties, ..connect(V5, "refused") };
        connack(&mut wire, refused, |ack| {
            assert_eq!(ack.reason, ReasonCode::BAD_AUTHENTICATION_METHOD);
            assert!(!ack.session_present);
        });
        wire.expect_closed();
        let mut next = broker.connect();
        next.handshake(connect(V5, "refused"));
        next.publish(publish("next", QoS::AtMostOnce, b""));
        other.expect_publish("next", QoS::AtMostOnce, b"");
    });
}

/// A bridge announces itself by the highest bit of the level, and then relies on a treatment that
/// it does not get here: refused, it tries again as a plain client.
///
/// family: 13
#[test]
fn the_bridge_bit_is_refused() {
    on_all(|broker| {
        for body in ["'MQTT' 84 02 003c 'bridge'", "'MQIsdp' 83 02 003c 'bridge'"] {
            let mut wire = broker.connect();
            wire.send_bytes(&packet(0x10, body));
            wire.expect_hex("20 02 00 01");
            wire.expect_closed();
        }
    });
}

/// 3.1.4: "Clients are allowed to send further packets immediately after sending a CONNECT"; all of
/// them travel with the connection when it moves to its home shard. Many clients, so that on two
/// shards some move and some do not.
///
/// family: 12
#[test]
fn packets_right_behind_connect() {
    let large = vec![b'x'; 100_000];
    on_all(|broker| {
        for number in 0..8 {
            let topic = format!("behind/{number}");
            let mut all = packet(0x10, &format!("'MQTT' 04 02 003c 'behind-{number}'"));
            all.extend(packet(0x82, &format!("0001 '{topic}' 01")));
            all.extend(packet(0x32, &format!("'{topic}' 0002 68656c6c6f")));
            let mut wire = broker.connect();
            wire.version = V311;
            let mut publish = Vec::new();
            let large = noctule::codec::mqtt::Publish {
                packet_id: noctule::codec::mqtt::PacketId::new(3),
                ..super::support::packets::publish(&topic, QoS::AtLeastOnce, &large)
            };
            Packet::Publish(large).encode(V311, &mut publish);
            // Half of the large one comes with the CONNECT, half of it later.
            let (now, later) = publish.split_at(publish.len() / 2);
            all.extend(now);
            wire.send_bytes(&all);
            wire.expect_hex("20 02 0000");
            wire.expect_hex("90 03 0001 01");
            wire.send_bytes(later);
            let mut acks = Vec::new();
            let mut payloads = Vec::new();
            while acks.len() + payloads.len() < 4 {
                match wire.recv() {
                    Packet::PubAck(ack) => acks.push(ack.packet_id.get()),
                    Packet::Publish(publish) => payloads.push(publish.payload.len()),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!((acks, payloads), (vec![2, 3], vec![5, large.payload.len()]));
        }
    });
}

/// Every PINGREQ has its PINGRESP.
///
/// v5: 3.12.4-1
/// v3.1.1: 3.12.4-1
/// v3.1: 3.12
/// family: 77
#[test]
fn pings_are_answered() {
    on_all(|broker| {
        for version in [V31, V311, V5] {
            let mut wire = broker.connect();
            wire.handshake(connect(version, "ping"));
            wire.send_hex("c000 c000 c000");
            for _ in 0..3 {
                wire.expect_hex("d000");
            }
        }
    });
}

/// Silent for one and a half times its keep alive, a client is gone; one that says anything is not, and
/// nobody is with keep alive 0. The Will of the silent one is published.
///
/// v5: 3.1.2-22, 3.2.2-22
/// v3.1.1: 3.1.2-24
/// family: 24
#[test]
fn keep_alive() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let mut other = broker.connect();
            other.handshake(Connect { keep_alive: 0, ..connect(V311, "other") });
            other.subscribe("will", QoS::AtMostOnce);
            let mut silent = broker.connect();
            let will = Will {
                topic: "will",
                payload: b"silent",
                qos: QoS::AtMostOnce,
                retain: false,
                delay_interval: 0,
                properties: Default::default(),
            };
            let one = |version, id| Connect { keep_alive: 1, ..connect(version, id) };
            silent.handshake(Connect { will: Some(will), ..one(V5, "silent") });
            let mut silent_v3 = broker.connect();
            silent_v3.handshake(one(V311, "silent-v3"));
            let mut awake = broker.connect();
            awake.handshake(one(V5, "awake"));
            // Not pings only: any packet counts.
            let until = std::time::Instant::now() + Duration::from_millis(2500);
            while std::time::Instant::now() < until {
                awake.publish(publish("awake", QoS::AtLeastOnce, b""));
                std::thread::sleep(Duration::from_millis(100));
            }
            awake.expect_nothing_before_ping();
            silent.expect_disconnect(ReasonCode::KEEP_ALIVE_TIMEOUT);
            silent_v3.expect_closed();
            other.expect_publish("will", QoS::AtMostOnce, b"silent");
        },
    );
}

/// The keep alive that the server tells is what counts, not the client's.
///
/// v5: 3.1.2-21, 3.2.2-21
/// family: 24
#[test]
fn server_keep_alive() {
    on_all_at_once(
        |builder| builder.arg("--keep-alive-max=1s"),
        |broker, _| {
            let mut wire = broker.connect();
            let told = connack(&mut wire, connect(V5, "a"), |ack| ack.properties.server_keep_alive);
            assert_eq!(told, Some(1));
            wire.expect_disconnect(ReasonCode::KEEP_ALIVE_TIMEOUT);
        },
    );
}

/// A connection that does not say who it is, is closed; of one that says it slowly the same.
///
/// v3.1: 3.1
#[test]
fn connect_must_come_in_time() {
    on_all_at_once(
        |builder| builder.arg("--connect-timeout=1s"),
        |broker, _| {
            let mut silent = broker.connect();
            let mut slow = broker.connect();
            slow.send_bytes(&packet(0x10, "'MQTT' 04 02 003c 'slow'")[..9]);
            let mut quick = broker.connect();
            quick.handshake(connect(V5, "quick"));
            silent.expect_closed();
            slow.expect_closed();
            quick.expect_nothing_before_ping();
            assert_eq!(broker.count("loop", "connect_timeouts"), 2);
        },
    );
}

/// A client that takes no packet as large as its CONNACK gets none.
///
/// v5: 3.1.2-24
/// family: 25
#[test]
fn a_client_that_cannot_take_its_connack() {
    on_all(|broker| {
        let mut wire = broker.connect();
        let properties =
            ConnectProperties { maximum_packet_size: Some(4), ..ConnectProperties::default() };
        wire.send(&Packet::Connect(Connect { properties, ..connect(V5, "small") }));
        wire.expect_closed();
    });
}

/// Nothing counts behind a DISCONNECT, and the broker closes.
///
/// v5: 3.14.4-1
/// v3.1.1: 3.14.4-2
/// v3.1: 3.14
/// family: 78
#[test]
fn disconnect_is_the_last_packet() {
    on_all(|broker| {
        let mut other = broker.connect();
        other.handshake(connect(V311, "other"));
        other.subscribe("#", QoS::AtMostOnce);
        for (version, properties) in [(V31, ""), (V311, ""), (V5, "{}")] {
            let mut wire = broker.connect();
            wire.handshake(connect(version, "leaves"));
            let mut all = packet(0x30, &format!("'a' {properties} 31"));
            all.extend(packet(0xe0, ""));
            all.extend(packet(0x30, &format!("'a' {properties} 32")));
            all.extend(packet(0xc0, ""));
            wire.send_bytes(&all);
            wire.expect_closed();
            other.expect_publish("a", QoS::AtMostOnce, b"1");
        }
        let mut wire = broker.connect();
        wire.handshake(connect(V311, "leaves"));
        wire.publish(publish("a", QoS::AtMostOnce, b"3"));
        other.expect_publish("a", QoS::AtMostOnce, b"3");
    });
}

/// SIGTERM: who speaks MQTT 5 is told (0x8B), everybody is closed, no Will is published, and what
/// was accepted before still arrives.
///
/// v5: 3.14.2-1, 3.14.4-2
/// family: 79
#[test]
fn sigterm() {
    for combination in combinations() {
        let mut broker = Broker::start(combination);
        let will = Will {
            topic: "will",
            payload: b"a storm",
            qos: QoS::AtMostOnce,
            retain: false,
            delay_interval: 0,
            properties: Default::default(),
        };
        let mut watching = broker.connect();
        watching.handshake(connect(V5, "watching"));
        watching.subscribe("will", QoS::AtMostOnce);
        let mut clients: Vec<_> = (0..8)
            .map(|number| {
                let version = if number % 2 == 0 { V5 } else { V311 };
                let mut wire = broker.connect();
                let id = format!("client-{number}");
                wire.handshake(Connect { will: Some(will), ..connect(version, &id) });
                wire
            })
            .collect();
        let mut stranger = broker.connect();
        broker.signal(rustix::process::Signal::TERM);
        for wire in &mut clients {
            wire.expect_disconnect(ReasonCode::SERVER_SHUTTING_DOWN);
        }
        watching.expect_disconnect(ReasonCode::SERVER_SHUTTING_DOWN);
        assert_eq!(stranger.next_within(Duration::from_secs(10)), Next::Closed);
        let ended = broker.wait(Duration::from_secs(15));
        assert!(ended.status.success(), "{ended:?}");
    }
}
