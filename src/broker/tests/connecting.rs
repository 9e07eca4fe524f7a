//! CONNECT, CONNACK, takeover, expiry, keep alive, DISCONNECT.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::Duration;

use crate::broker::auth::{Authorize, ConnectRequest};
use crate::broker::testing::*;
use crate::broker::{Accepted, Auth, Broker, Config, Decision, Frame};
use crate::clock::Time;
use crate::codec::mqtt::{
    Ack, Connect, ConnectProperties, Disconnect, Packet, QoS, ReasonCode, Version,
};
use crate::ids::{ConnId, PlacementKey, ShardId};

const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

fn refused(reason: ReasonCode) -> Vec<Got> {
    vec![Got::ConnAck { session_present: false, reason }]
}

/// [MQTT-3.2.0-1], [MQTT-3.12.4-1]
#[test]
fn connects_and_pings() {
    for version in VERSIONS {
        let mut world = World::new(1);
        let (client, present) = world.join(&hello(version, "c"));
        assert!(!present);
        world.send(client, &Packet::PingReq);
        assert_eq!(world.take(client), [Got::PingResp]);
        world.leave(client);
        assert!(world.is_closed(client) && world.take(client).is_empty());
        assert_eq!(world.brokers[0].session_count(), 0);
        assert_eq!(world.brokers[0].online(), 0);
    }
}

/// [MQTT-3.1.0-1], [MQTT-3.1.0-2], PITFALLS 1
#[test]
fn the_first_packet_is_connect_and_no_other_is() {
    let mut world = World::new(1);
    let client = world.open(0, Version::V5);
    world.send(client, &Packet::PingReq);
    assert!(world.is_closed(client) && world.take(client).is_empty());

    let (client, _) = world.join(&hello(Version::V5, "c"));
    world.send(client, &Packet::Connect(hello(Version::V5, "c")));
    assert_eq!(world.take(client), [Got::Disconnect(ReasonCode::PROTOCOL_ERROR)]);
    assert!(world.is_closed(client));
}

/// PITFALLS 17, [MQTT-3.1.3-8 of 3.1.1], [MQTT-3.2.2-16]; SHARDS.md H6
#[test]
fn empty_client_ids() {
    let mut world = World::new(3);
    let client = world.open(0, Version::V31);
    world.send(client, &Packet::Connect(hello(Version::V31, "")));
    assert_eq!(world.take(client), refused(ReasonCode::CLIENT_IDENTIFIER_NOT_VALID));

    let client = world.open(0, Version::V311);
    world.send(client, &Packet::Connect(stay(Version::V311, "")));
    assert_eq!(world.take(client), refused(ReasonCode::CLIENT_IDENTIFIER_NOT_VALID));
    assert!(world.is_closed(client));

    for shard in 0..3 {
        for connect in [hello(Version::V5, ""), stay(Version::V5, "")] {
            let client = world.open(shard, Version::V5);
            world.send(client, &Packet::Connect(connect));
            assert!(matches!(world.take(client)[..], [Got::ConnAck { .. }]));
            let assigned = world.connack(client, |p| p.assigned_client_id.map(String::from));
            let assigned = assigned.expect("an assigned id");
            assert_eq!(world.home_of(&assigned), shard);
            assert!(world.brokers[shard].owner_of(&assigned).is_some());
        }
    }
}

/// PITFALLS 20, 22: CONNACK says what differs from what is presumed, and only that.
#[test]
fn connack_properties() {
    let config = Config {
        maximum_qos: QoS::AtLeastOnce,
        retain_available: false,
        session_expiry_max_secs: 60,
        keep_alive_max_secs: 30,
        ..Config::default()
    };
    let mut world = World::with_config(1, &config);
    let (client, _) = world.join(&stay(Version::V5, "c"));
    world.connack(client, |p| {
        assert_eq!(p.session_expiry_interval, Some(60));
        assert_eq!(p.maximum_qos, Some(QoS::AtLeastOnce));
        assert_eq!((p.retain_available, p.server_keep_alive), (Some(false), Some(30)));
        assert_eq!(p.assigned_client_id, None);
    });
    let mut connect = hello(Version::V5, "w");
    connect.will = will("t", "x", 0);
    connect.will.as_mut().unwrap().retain = true;
    let client = world.connect(&connect);
    assert_eq!(world.take(client), refused(ReasonCode::RETAIN_NOT_SUPPORTED));
    connect.will.as_mut().unwrap().retain = false;
    connect.will.as_mut().unwrap().qos = QoS::ExactlyOnce;
    let client = world.connect(&connect);
    assert_eq!(world.take(client), refused(ReasonCode::QOS_NOT_SUPPORTED));

    let mut world = World::new(1);
    let (client, _) = world.join(&stay(Version::V5, "c"));
    world.connack(client, |p| {
        assert_eq!((p.session_expiry_interval, p.maximum_qos), (None, None));
        assert_eq!((p.retain_available, p.server_keep_alive), (None, None));
    });
}

/// [MQTT-3.1.2-4], [MQTT-3.2.2-2], [MQTT-3.2.2-3], PITFALLS 18, 23
#[test]
fn session_present_and_expiry() {
    for version in [Version::V311, Version::V5] {
        let mut world = World::new(1);
        let (client, present) = world.join(&stay(version, "c"));
        assert!(!present);
        world.leave(client);
        let (client, present) = world.join(&stay(version, "c"));
        assert!(present);
        world.cut(client);
        let (client, present) = world.join(&hello(version, "c"));
        assert!(!present, "a clean start has no session");
        world.cut(client);
        assert_eq!(world.brokers[0].session_count(), 0, "nor does it leave one");
    }
    let mut world = World::new(1);
    let mut connect = stay(Version::V5, "c");
    for (secs, pause, survives) in [(10, 9, true), (10, 11, false), (0, 0, false)] {
        connect.properties.session_expiry_interval = Some(secs);
        let (client, _) = world.join(&connect);
        world.cut(client);
        world.advance(pause);
        assert_eq!(world.brokers[0].session_count(), usize::from(survives));
        let (client, present) = world.join(&connect);
        assert_eq!(present, survives);
        world.leave(client);
        world.advance(100);
    }
    // 0xFFFFFFFF never ends [MQTT-3.1.2.11.2].
    connect.properties.session_expiry_interval = Some(u32::MAX);
    let (client, _) = world.join(&connect);
    world.leave(client);
    world.advance(u32::MAX);
    assert!(world.join(&connect).1);
    assert_eq!(world.brokers[0].next_deadline(), None, "nothing wakes an idle broker");
}

/// [MQTT-3.1.2-23]: a session ends when its time is over, not when somebody gets round to ending it. Its
/// client may come first: what it had is not continued, and what waited for it does not come.
#[test]
fn a_session_is_over_in_time() {
    let mut world = World::new(1);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let mut connect = stay(Version::V5, "c");
    connect.properties.session_expiry_interval = Some(10);
    for (secs, survives) in [(9, true), (10, false), (3600, false)] {
        let (client, _) = world.join(&connect);
        world.subscribe(client, "t", QoS::AtLeastOnce);
        world.cut(client);
        world.publish(publisher, "t", "x", QoS::AtLeastOnce, 1);
        world.take(publisher);
        // No turn of the broker is in between.
        world.now = world.now.plus_secs(secs);
        let (client, present) = world.join(&connect);
        assert_eq!(present, survives, "after {secs} s");
        assert_eq!(world.take_payloads(client).len(), usize::from(survives), "after {secs} s");
        assert_eq!(world.brokers[0].session_count(), 2);
        world.send(client, &Packet::Disconnect(Disconnect::new(ReasonCode::SUCCESS)));
        world.advance(100);
    }
}

/// 3.14.2.2.2, PITFALLS 78
#[test]
fn expiry_changes_at_disconnect() {
    let mut world = World::new(1);
    let leave = |world: &mut World, client, secs| {
        let disconnect =
            Disconnect { session_expiry_interval: Some(secs), ..Disconnect::default() };
        world.send(client, &Packet::Disconnect(disconnect));
    };
    let (client, _) = world.join(&stay(Version::V5, "c"));
    leave(&mut world, client, 0);
    assert_eq!(world.brokers[0].session_count(), 0);

    let (client, _) = world.join(&stay(Version::V5, "c"));
    leave(&mut world, client, 5000);
    world.advance(4000);
    assert!(world.join(&stay(Version::V5, "c")).1);

    // It may not grow from zero.
    let (client, _) = world.join(&hello(Version::V5, "d"));
    leave(&mut world, client, 5);
    assert_eq!(world.take(client), [Got::Disconnect(ReasonCode::PROTOCOL_ERROR)]);

    // What counts is what CONNECT said, not what was granted.
    world.brokers[0].config.session_expiry_max_secs = 0;
    let (client, _) = world.join(&stay(Version::V5, "e"));
    leave(&mut world, client, 5);
    assert!(world.is_closed(client) && world.take(client).is_empty());
    assert!(world.brokers[0].sessions.find("e").is_none());
}

/// [MQTT-3.1.4-3], PITFALLS 28, 30, 35, 37
#[test]
fn a_newer_connection_takes_over() {
    for version in VERSIONS {
        let mut world = World::new(1);
        let (old, _) = world.join(&stay(version, "c"));
        world.subscribe(old, "t", QoS::AtLeastOnce);
        let (new, present) = world.join(&stay(version, "c"));
        // 3.1 has no flag for it.
        assert_eq!(present, version != Version::V31);
        let told = match version {
            Version::V5 => vec![Got::Disconnect(ReasonCode::SESSION_TAKEN_OVER)],
            _ => vec![],
        };
        assert_eq!(world.take(old), told);
        assert!(world.is_closed(old) && !world.is_closed(new));
        // The old one's late end touches nothing.
        world.cut(old);
        world.publish(new, "t", "x", QoS::AtLeastOnce, 1);
        assert!(matches!(
            world.take(new)[..],
            [Got::Publish(_), Got::PubAck(1, _)] | [Got::PubAck(1, _), Got::Publish(_)]
        ));
        assert_eq!((world.brokers[0].session_count(), world.brokers[0].online()), (1, 1));
    }
    // A session that ends with its connection is not inherited.
    let mut world = World::new(1);
    let (old, _) = world.join(&hello(Version::V5, "c"));
    world.subscribe(old, "t", QoS::AtLeastOnce);
    let mut connect = hello(Version::V5, "c");
    connect.clean_start = false;
    let (new, present) = world.join(&connect);
    assert!(!present);
    world.publish(new, "t", "x", QoS::AtMostOnce, 0);
    assert!(world.take(new).is_empty());
}

/// SHARDS.md H3: the connection that was accepted earlier loses, whenever its CONNECT arrives.
#[test]
fn an_older_connection_does_not_take_over() {
    let mut world = World::new(1);
    let early = world.now;
    world.advance(1);
    let (newer, _) = world.join(&hello(Version::V5, "c"));
    let older = world.open_at(0, Version::V5, early);
    world.send(older, &Packet::Connect(hello(Version::V5, "c")));
    assert!(world.is_closed(older) && world.take(older).is_empty(), "closed without CONNACK");
    assert!(!world.is_closed(newer) && world.take(newer).is_empty());
    assert_eq!(world.brokers[0].stats().takeovers_late, 1);
}

/// [MQTT-3.1.2-22], PITFALLS 24
#[test]
fn keep_alive() {
    for version in VERSIONS {
        let mut world = World::new(1);
        let connect = Connect { keep_alive: 10, ..hello(version, "c") };
        let (client, _) = world.join(&connect);
        for _ in 0..5 {
            world.advance(14);
            world.send(client, &Packet::PingReq);
            assert_eq!(world.take(client), [Got::PingResp]);
        }
        world.advance(14);
        assert!(!world.is_closed(client));
        world.advance(2);
        assert!(world.is_closed(client));
        let told = match version {
            Version::V5 => vec![Got::Disconnect(ReasonCode::KEEP_ALIVE_TIMEOUT)],
            _ => vec![],
        };
        assert_eq!(world.take(client), told);
        assert_eq!(world.brokers[0].stats().keep_alive_timeouts, 1);
    }
    // Zero is never; who is told a shorter one is held to it [MQTT-3.2.2-21].
    let mut world = World::new(1);
    let (client, _) = world.join(&hello(Version::V5, "c"));
    world.advance(1_000_000);
    assert!(!world.is_closed(client));
    let mut world = World::with_config(1, &Config { keep_alive_max_secs: 10, ..Config::default() });
    let (client, _) = world.join(&hello(Version::V5, "c"));
    world.advance(16);
    assert!(world.is_closed(client));
}

/// What has arrived and stands unread, because the shard was busy, is no silence; once, because
/// single bytes are no packet.
#[test]
fn keep_alive_of_a_client_that_is_not_read() {
    let mut world = World::new(1);
    let connect = Connect { keep_alive: 20, ..hello(Version::V5, "c") };
    let (client, _) = world.join(&connect);
    world.input_age = Duration::from_secs(1);
    world.advance(31);
    assert!(!world.is_closed(client), "its ping is there and not read");
    world.send(client, &Packet::PingReq);
    assert_eq!(world.take(client), [Got::PingResp]);
    world.advance(31);
    assert!(!world.is_closed(client), "and again");
    world.advance(8);
    assert!(world.is_closed(client), "it never becomes a packet");
    assert_eq!(world.brokers[0].stats().keep_alive_timeouts, 1);
    // What was heard is not counted again because clocks are coarse.
    let (client, _) = world.join(&connect);
    world.input_age = Duration::from_millis(30_990);
    world.advance(31);
    assert!(world.is_closed(client));
}

/// [MQTT-3.1.2-24], PITFALLS 25: what the client cannot take is not sent, CONNACK included.
#[test]
fn a_client_that_cannot_take_connack() {
    let mut world = World::new(1);
    let mut connect = hello(Version::V5, "c");
    connect.properties.maximum_packet_size = Some(2);
    let client = world.connect(&connect);
    assert!(world.is_closed(client) && world.take(client).is_empty());
    assert_eq!(world.brokers[0].session_count(), 0);
    // It is refused: it takes over nobody, leaves no session behind, and has no Will.
    let (old, _) = world.join(&stay(Version::V5, "c"));
    world.subscribe(old, "#", QoS::AtMostOnce);
    connect.will = will("t", "x", 0);
    for client_id in ["c", "d"] {
        let client = world.connect(&Connect { client_id, ..connect });
        assert!(world.is_closed(client) && world.take(client).is_empty());
        assert!(!world.is_closed(old) && world.take(old).is_empty());
    }
    let stats = world.brokers[0].stats();
    assert_eq!((stats.sessions_created, stats.sessions_ended, stats.takeovers), (1, 0, 0));
}

/// PITFALLS 19, 27: [MQTT-4.12.0-1], [MQTT-4.12.0-7]
#[test]
fn authentication_methods_are_not_supported() {
    let mut world = World::new(1);
    let mut connect = hello(Version::V5, "c");
    connect.properties =
        ConnectProperties { authentication_method: Some("SCRAM"), ..ConnectProperties::default() };
    let client = world.connect(&connect);
    assert_eq!(world.take(client), refused(ReasonCode::BAD_AUTHENTICATION_METHOD));
    let (client, _) = world.join(&hello(Version::V5, "c"));
    let auth = crate::codec::mqtt::Auth {
        reason: ReasonCode::RE_AUTHENTICATE,
        authentication_method: Some("SCRAM"),
        ..crate::codec::mqtt::Auth::default()
    };
    world.send(client, &Packet::Auth(auth));
    assert_eq!(world.take(client), [Got::Disconnect(ReasonCode::PROTOCOL_ERROR)]);
}

#[derive(Debug)]
struct Script(VecDeque<Decision>);

impl Authorize for Script {
    fn connect(&mut self, request: &ConnectRequest<'_>) -> Decision {
        assert!(!format!("{request:?}").contains("secret"), "PITFALLS 85");
        self.0.pop_front().unwrap()
    }

    fn publish(&mut self, _: &str, topic: &str) -> bool {
        topic != "forbidden"
    }

    fn subscribe(&mut self, _: &str, _: &str) -> bool {
        true
    }
}

/// [MQTT-3.2.2-6], PITFALLS 18, 33: a refused client gets one CONNACK, and has no Will.
#[test]
fn decisions_come_at_once_or_later() {
    let mut world = World::new(1);
    let (watcher, _) = world.join(&hello(Version::V5, "w"));
    world.subscribe(watcher, "#", QoS::AtMostOnce);
    let refuse = Decision::Refuse(ReasonCode::NOT_AUTHORIZED);
    let script = [refuse, Decision::Later, Decision::Later, Decision::Later];
    world.brokers[0].set_auth(Auth::Decided(Box::new(Script(script.into()))));
    let mut connect = stay(Version::V5, "c");
    connect.user_name = Some("u");
    connect.password = Some(b"secret");
    connect.will = will("t", "x", 0);
    let client = world.connect(&connect);
    assert_eq!(world.take(client), refused(ReasonCode::NOT_AUTHORIZED));
    assert!(world.is_closed(client));

    // While the decision is awaited nothing is parsed, and nothing sent.
    let conn = |generation| ConnId { index: 1, generation };
    let client = world.open(0, Version::V5);
    world.send_all(client, &[Packet::Connect(connect), Packet::PingReq]);
    assert!(world.take(client).is_empty());
    let now = world.now;
    world.brokers[0].handle_connect_decision(now, conn(2), Decision::Accept);
    world.settle();
    assert!(matches!(world.take(client)[..], [Got::ConnAck { .. }, Got::PingResp]));
    world.leave(client);

    let client = world.connect(&connect);
    world.brokers[0].handle_connect_decision(now, conn(3), refuse);
    world.settle();
    assert_eq!(world.take(client), refused(ReasonCode::NOT_AUTHORIZED));

    // Gone before the decision, or asked about twice: nothing happens.
    let client = world.connect(&connect);
    world.cut(client);
    world.brokers[0].handle_connect_decision(now, conn(4), Decision::Accept);
    world.brokers[0].handle_connect_decision(now, conn(2), refuse);
    world.settle();
    assert!(world.take(watcher).is_empty(), "no Will of a refused client");
    assert_eq!(world.brokers[0].online(), 1);
}

/// PITFALLS 54, 82: who may not publish is told in 5.0; in 3.x it looks accepted.
#[test]
fn publishing_without_the_right() {
    for (version, reason) in
        [(Version::V311, ReasonCode::SUCCESS), (Version::V5, ReasonCode::NOT_AUTHORIZED)]
    {
        let mut world = World::new(1);
        let script = Script([Decision::Accept].into());
        world.brokers[0].set_auth(Auth::Decided(Box::new(script)));
        let (client, _) = world.join(&hello(version, "c"));
        world.subscribe(client, "#", QoS::ExactlyOnce);
        for (qos, n) in [(QoS::AtMostOnce, 0), (QoS::AtLeastOnce, 1), (QoS::ExactlyOnce, 2)] {
            world.publish(client, "forbidden", "x", qos, n);
        }
        let got = world.take(client);
        assert_eq!(got, [Got::PubAck(1, reason), Got::PubRec(2, reason)]);
        if version == Version::V311 {
            world.send(client, &Packet::PubRel(Ack::new(id(2), ReasonCode::SUCCESS)));
            assert_eq!(world.take(client), [Got::PubComp(2, ReasonCode::SUCCESS)]);
        }
    }
}

/// SHARDS.md section 7
#[test]
fn shutdown_tells_everybody_and_publishes_no_will() {
    let mut world = World::new(1);
    let (client, _) = world.join(&Connect { will: will("t", "x", 0), ..hello(Version::V5, "c") });
    // It is told after the client, so it would hear of the Will.
    let (watcher, _) = world.join(&hello(Version::V311, "w"));
    world.subscribe(watcher, "#", QoS::AtMostOnce);
    let early = world.open(0, Version::V5);
    let now = world.now;
    world.brokers[0].handle_shutdown(now);
    world.settle();
    assert_eq!(world.take(client), [Got::Disconnect(ReasonCode::SERVER_SHUTTING_DOWN)]);
    assert!(world.take(watcher).is_empty());
    assert!(world.is_closed(watcher) && world.is_closed(client) && world.is_closed(early));
}

/// Answers have a bound: who asks and never reads is ended, whatever its deliveries are.
#[test]
fn a_client_that_never_reads_its_answers_is_ended() {
    let config = Config { outbox_bytes_max: 1000, ..Config::default() };
    let mut world = World::with_config(1, &config);
    let (client, _) = world.join(&hello(Version::V5, "c"));
    // Reading in between, it may ask as long as it likes.
    for _ in 0..3 {
        world.send_all(client, &[Packet::PingReq; 400]);
        assert_eq!(world.take(client).len(), 400);
    }
    world.stall(client, true);
    for _ in 0..5 {
        world.send_all(client, &[Packet::PingReq; 400]);
    }
    world.stall(client, false);
    let got = world.take(client);
    assert_eq!(got.last(), Some(&Got::Disconnect(ReasonCode::QUOTA_EXCEEDED)));
    assert!(got.len() <= 503, "1000 bytes are 500 answers, and one more is noticed: {}", got.len());
    assert!(world.is_closed(client));
    assert_eq!(world.brokers[0].stats().disconnects_unread, 1);
}

/// What comes on a connection in the moment in which it is taken over may be as large as before.
#[test]
fn a_takeover_makes_no_packet_too_large() {
    let config = Config::default();
    let mut broker = Broker::new(config.clone(), ShardId::new(0), 1, PlacementKey(1), 1);
    let mut frame = Vec::new();
    Packet::Connect(hello(Version::V5, "c")).encode(Version::V5, &mut frame);
    let conns = [0, 1].map(|index| ConnId { index, generation: 1 });
    let max = |broker: &Broker| conns.map(|conn| broker.packet_size_max(conn));
    for conn in conns {
        broker.handle_open(Time::ZERO, conn, Accepted { at: Time::ZERO, listener: 0, peer: None });
    }
    let strange = config.connect_size_max;
    assert_eq!(max(&broker), [strange; 2]);
    for (conn, expected) in conns.into_iter().zip([1, 2]) {
        let frame = Frame { bytes: &frame, shared: None };
        let _ = broker.handle_frame(Time::ZERO, conn, None, frame, &mut "");
        let known = max(&broker).into_iter().filter(|max| *max > strange).count();
        assert_eq!(known, expected);
    }
    assert_eq!(broker.stats().takeovers, 1);
}
