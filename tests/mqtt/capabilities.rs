//! What the operator decides: capabilities that are off, bounds of topics and of CONNECT, keep
//! alive, Response Information, another server, words.

use noctule::codec::mqtt::{
    Ack, ConnAck, Connect, ConnectProperties, Packet, PacketId, Publish, QoS, ReasonCode,
    Subscribe, SubscribeFilters, UserProperties, Version, Will,
};

use super::support::packets::{connect, filter, publish};
use super::support::{Broker, Builder, Wire, combinations, on_all, on_all_at_once};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V31, V311};

fn on_each(args: &[&str], test: impl Fn(&Broker) + Sync) {
    let build = |builder: Builder| args.iter().fold(builder, |builder, arg| builder.arg(arg));
    on_all_at_once(build, |broker, _| test(broker));
}

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(version, id));
    wire
}

/// Sends a CONNECT and hands its CONNACK to `look`.
fn connack<T>(wire: &mut Wire, connect: Connect<'_>, look: impl FnOnce(&ConnAck<'_>) -> T) -> T {
    wire.send(&Packet::Connect(connect));
    match wire.recv() {
        Packet::ConnAck(ack) => look(&ack),
        other => panic!("expected CONNACK, got {other:?}"),
    }
}

/// A CONNECT is refused with this reason, which is a return code before 5.0, and closed.
fn expect_refused(broker: &Broker, connect: Connect<'_>, reason: ReasonCode, code: u8) {
    let mut wire = broker.connect();
    if connect.version == V5 {
        assert_eq!(connack(&mut wire, connect, |ack| ack.reason), reason);
    } else {
        wire.send(&Packet::Connect(connect));
        wire.expect_bytes(&[0x20, 2, 0, code]);
    }
    wire.expect_closed();
}

fn will<'a>(topic: &'a str, payload: &'a [u8], qos: QoS, retain: bool) -> Option<Will<'a>> {
    let properties = Default::default();
    Some(Will { topic, payload, qos, retain, delay_interval: 0, properties })
}

fn subscribe(wire: &mut Wire, filters: &[&str], subscription_id: Option<u32>) {
    let lines: Vec<_> = filters.iter().map(|name| filter(name, ExactlyOnce)).collect();
    wire.send(&Packet::Subscribe(Subscribe {
        packet_id: PacketId::new(9).expect("not zero"),
        subscription_id,
        user_properties: UserProperties::default(),
        filters: SubscribeFilters::new(&lines),
    }));
}

fn expect_codes(wire: &mut Wire, expected: &[u8]) {
    match wire.recv() {
        Packet::SubAck(ack) => assert_eq!(ack.codes, expected),
        other => panic!("expected SUBACK, got {other:?}"),
    }
}

/// CONNACK says what is off, and of the rest nothing.
///
/// v5: 3.2.2-9
/// family: 20
#[test]
fn connack_says_what_is_off() {
    let told = |broker: &Broker| {
        connack(&mut broker.connect(), connect(V5, "c"), |ack| {
            let p = &ack.properties;
            assert_eq!((p.response_information, p.server_reference), (None, None));
            assert_eq!((p.assigned_client_id, p.session_expiry_interval), (None, None));
            (
                p.maximum_qos,
                [
                    p.retain_available,
                    p.wildcard_subscription_available,
                    p.subscription_ids_available,
                    p.shared_subscription_available,
                ],
            )
        })
    };
    on_all(|broker| assert_eq!(told(broker), (None, [None; 4])));
    let all_off = [
        "--maximum-qos=1",
        "--retain-available=false",
        "--wildcard-subscriptions=false",
        "--subscription-identifiers=false",
        "--shared-subscriptions=false",
    ];
    on_each(&all_off, |broker| {
        assert_eq!(told(broker), (Some(AtLeastOnce), [Some(false); 4]));
    });
}

/// Above Maximum QoS a PUBLISH ends its connection (0x9B) and a Will its CONNECT; subscriptions
/// are granted what there is.
///
/// v5: 3.2.2-10, 3.2.2-12, 3.2.2-11
/// family: 21, 53
#[test]
fn maximum_qos() {
    on_each(&["--maximum-qos=1"], |broker| {
        for version in [V31, V311, V5] {
            let mut wire = online(broker, version, "c");
            subscribe(&mut wire, &["a"], None);
            expect_codes(&mut wire, &[1]);
            wire.publish(publish("b", AtLeastOnce, b"x"));
            wire.send(&Packet::Publish(publish("a", ExactlyOnce, b"x")));
            wire.expect_disconnect(ReasonCode::QOS_NOT_SUPPORTED);
            let refused =
                Connect { will: will("a", b"", ExactlyOnce, false), ..connect(version, "w") };
            expect_refused(broker, refused, ReasonCode::QOS_NOT_SUPPORTED, 5);
        }
        assert_eq!(broker.count("broker", "refused_maximum_qos"), 6);
    });
}

/// Without retained messages RETAIN ends a connection (0x9A), and a Will with it its CONNECT.
///
/// v5: 3.2.2-13, 3.2.2-14
/// family: 21, 53
#[test]
fn retain_not_available() {
    on_each(&["--retain-available=false"], |broker| {
        for version in [V31, V311, V5] {
            for payload in [&b"x"[..], b""] {
                let mut wire = online(broker, version, "c");
                let message = Publish { retain: true, ..publish("a", AtLeastOnce, payload) };
                wire.send(&Packet::Publish(message));
                wire.expect_disconnect(ReasonCode::RETAIN_NOT_SUPPORTED);
            }
            let refused =
                Connect { will: will("a", b"", AtMostOnce, true), ..connect(version, "w") };
            expect_refused(broker, refused, ReasonCode::RETAIN_NOT_SUPPORTED, 5);
        }
        assert_eq!(broker.count("broker", "refused_retain"), 9);
    });
}

/// Wildcards, identifiers and groups that are off: 5.0 was told, so it is a Protocol Error (3.2.2.3.11
/// to 3.2.2.3.13); 3.1.1 gets 0x80 for that filter, 3.1 has no way to say it.
///
/// v3.1.1: 3.8.3-2
/// v3.1: 3.9
/// family: 76
#[test]
fn kinds_of_subscriptions() {
    let off = [
        "--wildcard-subscriptions=false",
        "--subscription-identifiers=false",
        "--shared-subscriptions=false",
    ];
    on_each(&off, |broker| {
        for (name, id, reason) in [
            ("a/+", None, ReasonCode::WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED),
            ("#", None, ReasonCode::WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED),
            ("a", Some(7), ReasonCode::SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED),
            ("$share/g/a", None, ReasonCode::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED),
        ] {
            let mut wire = online(broker, V5, "c");
            subscribe(&mut wire, &["fine"], None);
            expect_codes(&mut wire, &[2]);
            subscribe(&mut wire, &["fine", name], id);
            wire.expect_disconnect(reason);
        }
        for (version, refused) in [(V311, 0x80), (V31, 0)] {
            let mut wire = online(broker, version, "c");
            subscribe(&mut wire, &["a/+", "fine", "$share/g/a"], None);
            expect_codes(&mut wire, &[refused, 2, refused]);
            wire.publish(publish("a/b", AtMostOnce, b"not wanted"));
            wire.publish(publish("a", AtMostOnce, b"not wanted"));
            wire.expect_nothing_before_ping();
        }
        assert_eq!(broker.count("broker", "refused_subscription_kind"), 8);
    });
}

/// Topics are bounded in bytes and levels, wherever they stand.
#[test]
fn topics_are_bounded() {
    on_each(&["--topic-bytes-max=10", "--topic-levels-max=3"], |broker| {
        let invalid = ReasonCode::TOPIC_NAME_INVALID;
        for version in [V31, V311, V5] {
            let mut wire = online(broker, version, "fine");
            wire.subscribe("a/b/c", AtMostOnce);
            wire.subscribe("0123456789", AtMostOnce);
            wire.publish(publish("a/b/c", AtMostOnce, b"x"));
            wire.expect_publish("a/b/c", AtMostOnce, b"x");
            wire.publish(publish("0123456789", AtMostOnce, b"x"));
            wire.expect_publish("0123456789", AtMostOnce, b"x");
            let refused = match version {
                V5 => ReasonCode::TOPIC_FILTER_INVALID.0,
                V311 => 0x80,
                V31 => 0,
            };
            subscribe(&mut wire, &["+/+/+/+", "01234567890", "$share/g/a/b/c"], None);
            expect_codes(&mut wire, &[refused, refused, 2]);
            for topic in ["a/b/c/d", "01234567890"] {
                for qos in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
                    let mut wire = online(broker, version, "c");
                    wire.send(&Packet::Publish(publish(topic, qos, b"x")));
                    if version == V5 && qos != AtMostOnce {
                        let reason = match wire.recv() {
                            Packet::PubAck(ack) | Packet::PubRec(ack) => ack.reason,
                            other => panic!("no acknowledgement: {other:?}"),
                        };
                        assert_eq!(reason, invalid);
                        wire.expect_nothing_before_ping();
                    } else {
                        wire.expect_disconnect(invalid);
                    }
                }
                let refused =
                    Connect { will: will(topic, b"", AtMostOnce, false), ..connect(version, "w") };
                expect_refused(broker, refused, invalid, 5);
            }
        }
        assert_eq!(broker.count("broker", "refused_topic"), 3 * (2 + 2 * 4));
    });
}

/// SlowITe (CVE-2020-13849): who may not stay silent for so long is told a Server Keep Alive, or
/// refused where there is no way to tell.
///
/// family: 24
#[test]
fn the_longest_keep_alive() {
    on_each(&["--keep-alive-max=30s"], |broker| {
        for (asked, told) in [(30, None), (10, None), (31, Some(30)), (0, Some(30))] {
            let asks = |version| Connect { keep_alive: asked, ..connect(version, "c") };
            let look = |ack: &ConnAck<'_>| ack.properties.server_keep_alive;
            assert_eq!(connack(&mut broker.connect(), asks(V5), look), told);
            for version in [V31, V311] {
                match told {
                    None => drop(broker.connect().handshake(asks(version))),
                    Some(_) => {
                        expect_refused(broker, asks(version), ReasonCode::NOT_AUTHORIZED, 5);
                    }
                }
            }
        }
        assert_eq!(broker.count("broker", "refused_keep_alive"), 4);
    });
}

/// A CONNECT up to its bound is taken; a larger one is refused before the rest of it has come: with
/// 0x95, once it is known to be of 5.0.
#[test]
fn the_largest_connect() {
    on_each(&["--connect-size-max=1KiB"], |broker| {
        for version in [V311, V5] {
            let sized = |size: usize| {
                let fixed = if version == V5 { 1 } else { 0 };
                let id = "i".repeat(size - 3 - 6 - 4 - fixed - 2);
                let mut bytes = Vec::new();
                Packet::Connect(connect(version, &id)).encode(version, &mut bytes);
                assert_eq!(bytes.len(), size);
                bytes
            };
            let mut wire = broker.connect();
            wire.version = version;
            wire.send_bytes(&sized(1024));
            assert!(matches!(wire.recv(), Packet::ConnAck(ack) if !ack.reason.is_error()));
            let mut wire = broker.connect();
            wire.version = version;
            wire.send_bytes(&sized(1025)[..20]);
            if version == V5 {
                let ack = wire.recv();
                let too_large = ReasonCode::PACKET_TOO_LARGE;
                assert!(matches!(ack, Packet::ConnAck(ack) if ack.reason == too_large), "{ack:?}");
            }
            wire.expect_closed();
        }
    });
}

/// Response Information: only for who asks, made from its client id.
///
/// v5: 3.1.2-28
#[test]
fn response_information() {
    on_each(&["--response-information=responses/{client_id}"], |broker| {
        let told = |id: &str, asked| {
            let properties =
                ConnectProperties { request_response_information: asked, ..Default::default() };
            let connect = Connect { properties, ..connect(V5, id) };
            connack(&mut broker.connect(), connect, |ack| {
                ack.properties.response_information.map(str::to_owned)
            })
        };
        assert_eq!(told("me", Some(true)).as_deref(), Some("responses/me"));
        assert_eq!(told("+", Some(true)), None, "it would be everybody's");
        assert_eq!(told("me", Some(false)), None);
        assert_eq!(told("me", None), None);
    });
}

/// A server that is not to be used any more names another: at CONNECT, and when it stops.
#[test]
fn server_reference() {
    let server = "other.example:1883";
    for (when, reason) in
        [("temporarily", ReasonCode::USE_ANOTHER_SERVER), ("permanently", ReasonCode::SERVER_MOVED)]
    {
        let args = [format!("--server-reference={server}"), format!("--refer-clients={when}")];
        on_each(&[&args[0], &args[1]], |broker| {
            let mut wire = broker.connect();
            let told = connack(&mut wire, connect(V5, "c"), |ack| {
                (ack.reason, ack.properties.server_reference.map(str::to_owned))
            });
            assert_eq!(told, (reason, Some(server.to_owned())));
            wire.expect_closed();
            expect_refused(broker, connect(V311, "c"), reason, 3);
            assert_eq!(broker.count("broker", "connects_referred"), 2);
        });
    }
    for combination in combinations() {
        let mut broker =
            Broker::build(combination).arg(format!("--server-reference={server}")).start();
        let mut wire = online(&broker, V5, "c");
        let mut old = online(&broker, V311, "old");
        broker.signal(rustix::process::Signal::TERM);
        match wire.recv() {
            Packet::Disconnect(told) => {
                assert_eq!(told.reason, ReasonCode::USE_ANOTHER_SERVER);
                assert_eq!(told.server_reference, Some(server));
            }
            other => panic!("expected DISCONNECT, got {other:?}"),
        }
        wire.expect_closed();
        old.expect_closed();
        assert!(broker.wait(std::time::Duration::from_secs(15)).status.success());
    }
}

/// Words for people on CONNACK, DISCONNECT, PUBACK and SUBACK: not for who wants none, nor for who
/// cannot take a packet of their size.
///
/// v5: 3.1.2-29, 3.2.2-19, 3.4.2-2, 3.9.2-1, 3.14.2-3
/// family: 25, 26
#[test]
fn reason_strings() {
    on_each(&["--topic-levels-max=2", "--maximum-qos=1"], |broker| {
        for (wanted, size, expected) in [
            (None, None, true),
            (Some(true), None, true),
            (Some(false), None, false),
            (None, Some(24), false),
        ] {
            let properties = ConnectProperties {
                request_problem_information: wanted,
                ..ConnectProperties::default()
            };
            // What CONNACK says of the server is not small: the refused one is.
            let limited = ConnectProperties { maximum_packet_size: size, ..properties };
            let refused = Connect {
                properties: limited,
                will: will("a/b/c", b"", AtMostOnce, false),
                ..connect(V5, "w")
            };
            let said = connack(&mut broker.connect(), refused, |ack| {
                assert_eq!(ack.reason, ReasonCode::TOPIC_NAME_INVALID);
                ack.properties.reason_string.is_some()
            });
            assert_eq!(said, expected, "CONNACK");
            let mut wire = broker.connect();
            wire.handshake(Connect { properties: limited, ..connect(V5, "c") });
            wire.send(&Packet::Publish(publish("a/b/c", AtLeastOnce, b"")));
            match wire.recv() {
                Packet::PubAck(Ack { reason_string, .. }) => {
                    assert_eq!(reason_string.is_some(), expected, "PUBACK");
                }
                other => panic!("expected PUBACK, got {other:?}"),
            }
            subscribe(&mut wire, &["a", "a/b/c"], None);
            match wire.recv() {
                Packet::SubAck(ack) => {
                    assert_eq!(ack.codes, [1, ReasonCode::TOPIC_FILTER_INVALID.0]);
                    assert_eq!(ack.reason_string.is_some(), expected, "SUBACK");
                }
                other => panic!("expected SUBACK, got {other:?}"),
            }
            wire.send(&Packet::Publish(publish("a", ExactlyOnce, b"")));
            match wire.recv() {
                Packet::Disconnect(told) => {
                    assert_eq!(told.reason, ReasonCode::QOS_NOT_SUPPORTED);
                    assert_eq!(told.reason_string.is_some(), expected, "DISCONNECT");
                }
                other => panic!("expected DISCONNECT, got {other:?}"),
            }
        }
    });
}

/// With the check on, what says that it is UTF-8 has to be: messages and Wills (0x99).
///
/// family: 54, 58
#[test]
fn payload_format() {
    let invalid = ReasonCode::PAYLOAD_FORMAT_INVALID;
    let message = |qos, payload| {
        let mut message = publish("a", qos, payload);
        message.properties.payload_format = Some(true);
        Packet::Publish(message)
    };
    on_each(&["--payload-format-check"], |broker| {
        let mut wire = online(broker, V5, "c");
        wire.subscribe("a", AtMostOnce);
        wire.send(&message(AtMostOnce, "\u{e9}".as_bytes()));
        wire.expect_publish("a", AtMostOnce, "\u{e9}".as_bytes());
        wire.send(&message(AtLeastOnce, b"\xc3"));
        assert!(matches!(wire.recv(), Packet::PubAck(ack) if ack.reason == invalid));
        wire.send(&message(ExactlyOnce, b"\xc3"));
        assert!(matches!(wire.recv(), Packet::PubRec(ack) if ack.reason == invalid));
        wire.expect_nothing_before_ping();
        wire.send(&message(AtMostOnce, b"\xc3"));
        wire.expect_disconnect(invalid);
        let mut refused =
            Connect { will: will("a", b"\xc3", AtMostOnce, false), ..connect(V5, "w") };
        refused.will.as_mut().expect("a Will").properties.payload_format = Some(true);
        expect_refused(broker, refused, invalid, 0);
    });
    on_all(|broker| {
        let mut wire = online(broker, V5, "c");
        wire.subscribe("a", AtMostOnce);
        wire.send(&message(AtMostOnce, b"\xc3"));
        wire.expect_publish("a", AtMostOnce, b"\xc3");
    });
}

/// A session lasts no longer than the operator lets it, and CONNACK says so; and has no more
/// subscriptions than it may (0x97, 0x80).
///
/// family: 22, 76
#[test]
fn sessions_are_bounded() {
    on_each(&["--session-expiry-max=1h", "--subscriptions-per-session-max=2"], |broker| {
        for (asked, told) in [
            (None, None),
            (Some(3600), None),
            (Some(3601), Some(3600)),
            (Some(u32::MAX), Some(3600)),
        ] {
            let properties =
                ConnectProperties { session_expiry_interval: asked, ..Default::default() };
            let look = |ack: &ConnAck<'_>| ack.properties.session_expiry_interval;
            let connect = Connect { properties, ..connect(V5, "c") };
            assert_eq!(connack(&mut broker.connect(), connect, look), told);
        }
        for (version, refused) in [(V5, ReasonCode::QUOTA_EXCEEDED.0), (V311, 0x80)] {
            let mut wire = online(broker, version, "s");
            subscribe(&mut wire, &["a", "b", "c", "a"], None);
            expect_codes(&mut wire, &[2, 2, refused, 2]);
        }
        assert_eq!(broker.count("broker", "refused_subscriptions_max"), 2);
    });
}

/// Without assigned client ids an empty one is refused.
///
/// v5: 3.1.3-8
/// v3.1.1: 3.1.3-9
/// family: 17
#[test]
fn client_ids_are_not_assigned() {
    on_each(&["--assign-client-ids=false"], |broker| {
        for version in [V31, V311, V5] {
            let reason = ReasonCode::CLIENT_IDENTIFIER_NOT_VALID;
            expect_refused(broker, connect(version, ""), reason, 2);
        }
    });
}
