//! Wills: when, once, and what of them.
#![forbid(unsafe_code)]

use crate::broker::testing::*;
use crate::codec::mqtt::{Connect, Disconnect, Packet, QoS, ReasonCode, UserProperties, Version};
use crate::ids::{ShardId, ShardSet};
use crate::limits::DEFERRED_PER_TICK;

fn watched(shards: usize) -> (World, Client) {
    let mut world = World::new(shards);
    let (watcher, _) = world.join(&hello(Version::V5, "watcher"));
    world.subscribe(watcher, "w/#", QoS::AtLeastOnce);
    (world, watcher)
}

fn with_will(connect: Connect<'static>, delay: u32) -> Connect<'static> {
    Connect { will: will("w/1", "gone", delay), ..connect }
}

/// [MQTT-3.1.2-8], [MQTT-3.1.2-10], [MQTT-3.14.4-3], PITFALLS 32
#[test]
fn the_way_a_connection_ends_decides() {
    for version in [Version::V31, Version::V311, Version::V5] {
        let (mut world, watcher) = watched(1);
        let (client, _) = world.join(&with_will(hello(version, "c"), 0));
        world.leave(client);
        assert!(world.take_payloads(watcher).is_empty(), "normal");
        let (client, _) = world.join(&with_will(hello(version, "c"), 0));
        world.cut(client);
        assert_eq!(world.take_payloads(watcher), ["gone"], "cut");
        let (client, _) = world.join(&with_will(hello(version, "c"), 0));
        world.send_bytes(client, &[0xF1, 0x00]);
        assert_eq!(world.take_payloads(watcher), ["gone"], "malformed");
        let connect = Connect { keep_alive: 1, ..with_will(hello(version, "c"), 0) };
        world.join(&connect);
        world.advance(2);
        assert_eq!(world.take_payloads(watcher), ["gone"], "silent");
        assert_eq!(world.brokers[0].stats().wills_published, 3);
    }
    let (mut world, watcher) = watched(1);
    for reason in [ReasonCode::DISCONNECT_WITH_WILL, ReasonCode::UNSPECIFIED_ERROR] {
        let (client, _) = world.join(&with_will(hello(Version::V5, "c"), 0));
        world.send(client, &Packet::Disconnect(Disconnect::new(reason)));
        assert_eq!(world.take_payloads(watcher), ["gone"], "{reason:?}");
    }
    let (client, _) = world.join(&with_will(hello(Version::V5, "c"), 0));
    let (now, conn) = (world.now, world.brokers[0].owner_of("c").unwrap());
    world.brokers[0].handle_kick(now, conn, ReasonCode::ADMINISTRATIVE_ACTION);
    world.settle();
    assert_eq!(world.take(client), [Got::Disconnect(ReasonCode::ADMINISTRATIVE_ACTION)]);
    assert_eq!(world.take_payloads(watcher), ["gone"], "kicked");
}

/// [MQTT-3.1.3-9], PITFALLS 31, 34
#[test]
fn delayed_wills() {
    let (mut world, watcher) = watched(1);
    let connect = with_will(stay(Version::V5, "c"), 10);
    let (client, _) = world.join(&connect);
    world.cut(client);
    world.advance(9);
    assert!(world.take_payloads(watcher).is_empty());
    world.advance(2);
    assert_eq!(world.take_payloads(watcher), ["gone"]);
    world.advance(2000);
    assert!(world.take_payloads(watcher).is_empty(), "once only");

    // A new connection in time cancels it; the delay begins anew.
    let (client, _) = world.join(&connect);
    world.cut(client);
    world.advance(9);
    let (client, present) = world.join(&connect);
    assert!(present);
    world.advance(100);
    assert!(world.take_payloads(watcher).is_empty());
    world.cut(client);
    world.advance(11);
    assert_eq!(world.take_payloads(watcher), ["gone"]);

    // No later than the end of the session (3.1.3.2.2).
    let mut connect = with_will(stay(Version::V5, "d"), 100);
    connect.properties.session_expiry_interval = Some(5);
    let (client, _) = world.join(&connect);
    world.cut(client);
    world.advance(6);
    assert_eq!(world.take_payloads(watcher), ["gone"]);

    // A clean start ends the session that waits.
    connect.properties.session_expiry_interval = Some(500);
    let (client, _) = world.join(&connect);
    world.cut(client);
    world.advance(1);
    assert!(world.take_payloads(watcher).is_empty());
    world.join(&hello(Version::V5, "d"));
    assert_eq!(world.take_payloads(watcher), ["gone"]);
}

/// PITFALLS 29: at a takeover, by delay, expiry, and how the new one starts.
#[test]
fn takeover_cases() {
    let cases = [
        // delay, expiry, clean start of the new one, published
        (0, 0, false, true),
        (0, 0, true, true),
        (0, 100, false, true),
        (0, 100, true, true),
        (10, 0, false, true),
        (10, 0, true, true),
        (10, 100, true, true),
        (10, 100, false, false),
    ];
    for (delay, expiry, clean_start, published) in cases {
        let (mut world, watcher) = watched(1);
        let mut connect = with_will(hello(Version::V5, "c"), delay);
        connect.properties.session_expiry_interval = Some(expiry);
        let (old, _) = world.join(&connect);
        let new = Connect { clean_start, ..hello(Version::V5, "c") };
        let (_, present) = world.join(&new);
        assert_eq!(present, expiry > 0 && !clean_start);
        assert_eq!(world.take(old), [Got::Disconnect(ReasonCode::SESSION_TAKEN_OVER)]);
        let expected: &[&str] = if published { &["gone"] } else { &[] };
        let case = (delay, expiry, clean_start);
        assert_eq!(world.take_payloads(watcher), expected, "{case:?}");
        world.advance(1000);
        assert!(world.take_payloads(watcher).is_empty(), "once only {case:?}");
    }
}

/// PITFALLS 33, 46: the Will keeps its properties and its expiry counts from its publication; its
/// delay is not one of them.
#[test]
fn what_a_will_carries() {
    let (mut world, watcher) = watched(1);
    let mut connect = with_will(stay(Version::V5, "c"), 3);
    let pairs = [("a", "1"), ("a", "2")];
    let will = connect.will.as_mut().unwrap();
    will.properties.message_expiry_interval = Some(50);
    will.properties.user_properties = UserProperties::new(&pairs);
    let (client, _) = world.join(&connect);
    world.cut(client);
    world.advance(4);
    let got = world.take_messages(watcher);
    assert_eq!((got.len(), got[0].expiry, got[0].qos), (1, Some(50), 1));
    let pairs: Vec<(&str, &str)> =
        got[0].user_properties.iter().map(|(n, v)| (&**n, &**v)).collect();
    assert_eq!(pairs, [("a", "1"), ("a", "2")]);
}

/// SHARDS.md L5: a Will that has to go through a full lane waits where it is, and goes when there is
/// room.
#[test]
fn a_will_waits_for_a_full_lane() {
    let mut world = World::new(2);
    let (there, here) = (world.id_on(1, 0), world.id_on(0, 1));
    let (watcher, _) = world.join(&hello(Version::V5, &there));
    world.subscribe(watcher, "w/#", QoS::AtLeastOnce);
    world.take(watcher);
    let connect = Connect { will: will("w/1", "gone", 0), ..hello(Version::V5, &here) };
    let (client, _) = world.join(&connect);
    let mut full = ShardSet::EMPTY;
    full.insert(ShardId::new(1));
    let now = world.now;
    world.brokers[0].handle_lanes(now, full);
    world.cut(client);
    assert_eq!(world.brokers[0].stats().wills_published, 0);
    assert!(world.take_payloads(watcher).is_empty());
    world.brokers[0].handle_lanes(now, ShardSet::EMPTY);
    world.settle();
    assert_eq!(world.take_payloads(watcher), ["gone"]);
}

/// SHARDS.md L5, PITFALLS 34: many Wills are spread over ticks; each is published once.
#[test]
fn many_wills_are_paced() {
    let (mut world, watcher) = watched(1);
    let mut clients = Vec::new();
    for n in 0..3 * DEFERRED_PER_TICK {
        let id = format!("c{n}");
        let connect = Connect { will: will("w/1", &id, 0), ..hello(Version::V5, &id) };
        clients.push(world.join(&connect).0);
    }
    let now = world.now;
    world.brokers[0].handle_timeouts(now);
    for n in 0..clients.len() {
        let conn = world.brokers[0].owner_of(&format!("c{n}")).unwrap();
        let how = crate::broker::Disconnection::Error;
        world.brokers[0].handle_closed(now, conn, how);
    }
    assert_eq!(world.brokers[0].stats().wills_published, DEFERRED_PER_TICK as u64);
    assert_eq!(world.brokers[0].next_deadline(), Some(crate::clock::Time::ZERO));
    world.brokers[0].handle_timeouts(now);
    assert_eq!(world.brokers[0].stats().wills_published, 2 * DEFERRED_PER_TICK as u64);
    world.advance(1);
    assert_eq!(world.take_payloads(watcher).len(), clients.len());
}
