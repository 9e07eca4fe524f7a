//! On every way that a message can take to a client: what is left of its time, its size, its
//! packet id, and the Subscription Identifiers that it carries.
#![forbid(unsafe_code)]

use std::collections::HashSet;

use crate::broker::testing::*;
use crate::codec::mqtt::{
    Ack, Disconnect, Packet, Publish, QoS, ReasonCode, SubscriptionOptions, Version,
};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};

fn publish_lasting(world: &mut World, client: Client, n: u16, secs: u32, retain: bool) {
    let payload = n.to_string();
    let mut publish = Publish { retain, ..publish("t", payload.as_bytes(), QoS::AtLeastOnce, n) };
    publish.properties.message_expiry_interval = Some(secs);
    world.send(client, &Packet::Publish(publish));
    world.take(client);
}

/// Payload and what is left of its time.
fn left(world: &mut World, client: Client) -> Vec<(String, Option<u32>)> {
    let one = |m: GotPublish| (String::from_utf8(m.payload).unwrap(), m.expiry);
    world.take_messages(client).into_iter().map(one).collect()
}

fn ends_now() -> Packet<'static> {
    let reason = ReasonCode::NORMAL_DISCONNECTION;
    Packet::Disconnect(Disconnect { session_expiry_interval: Some(0), ..Disconnect::new(reason) })
}

/// [MQTT-3.3.2-5], [MQTT-3.3.2-6], PITFALLS 46: 100 seconds, of which 40 have passed; and another
/// message whose 30 seconds are over.
#[test]
fn time_passes_on_every_way() {
    for shards in [1, 2] {
        let mut world = World::new(shards);
        let (publisher, _) = world.join(&hello(Version::V5, &world.id_on(0, 0)));
        let ids: Vec<String> = (0..8).map(|n| world.id_on(shards - 1, n + 1)).collect();
        let other = world.id_on(0, 20);
        let mut narrow = hello(Version::V5, &ids[0]);
        narrow.properties.receive_maximum = Some(1);
        let (live, _) = world.join(&hello(Version::V5, &ids[1]));
        let (narrow, _) = world.join(&narrow);
        let (offline, _) = world.join(&stay(Version::V5, &ids[2]));
        let (resent, _) = world.join(&stay(Version::V5, &ids[3]));
        let (member, _) = world.join(&stay(Version::V5, &ids[4]));
        let (away, _) = world.join(&stay(Version::V5, &ids[5]));
        for client in [live, narrow, offline, resent] {
            world.subscribe(client, "t", AtLeastOnce);
        }
        world.subscribe(member, "$share/sent/t", AtLeastOnce);
        world.subscribe(away, "$share/unsent/t", AtLeastOnce);
        world.cut(offline);
        world.cut(away);
        world.publish(publisher, "t", "0", AtLeastOnce, 1);
        world.take(publisher);
        publish_lasting(&mut world, publisher, 2, 30, false);
        publish_lasting(&mut world, publisher, 3, 100, true);
        let now = [("0", None), ("2", Some(30)), ("3", Some(100))];
        let now = now.map(|(payload, left)| (payload.to_owned(), left));
        assert_eq!(left(&mut world, live), now);
        assert_eq!(world.take(resent).len(), 3);
        world.advance(40);

        let none = ("0".to_owned(), None);
        let most = ("3".to_owned(), Some(60));
        // Behind the window: the first is still there.
        assert_eq!(left(&mut world, narrow), [none.clone(), most.clone()]);
        let (offline, _) = world.join(&stay(Version::V5, &ids[2]));
        assert_eq!(left(&mut world, offline), [none.clone(), most.clone()]);
        // What has been sent is sent again, whatever its time (4.4); nothing is left of that.
        world.cut(resent);
        let (resent, _) = world.join(&stay(Version::V5, &ids[3]));
        let over = ("2".to_owned(), Some(0));
        assert_eq!(left(&mut world, resent), [none.clone(), over, most.clone()]);
        // Retained.
        let (late, _) = world.join(&hello(Version::V5, &ids[6]));
        world.subscribe(late, "t", AtLeastOnce);
        assert_eq!(left(&mut world, late), std::slice::from_ref(&most));
        // From one member to another, of another shard if there is one.
        let (heir, _) = world.join(&hello(Version::V5, &other));
        world.subscribe(heir, "$share/sent/t", AtLeastOnce);
        world.send(member, &ends_now());
        assert_eq!(left(&mut world, heir), [none.clone(), most.clone()]);
        world.subscribe(heir, "$share/unsent/t", AtLeastOnce);
        let (away, _) = world.join(&hello(Version::V5, &ids[5]));
        assert_eq!(left(&mut world, heir), [none, most]);
        world.leave(away);
        world.advance(60);
        let (late, _) = world.join(&hello(Version::V5, &ids[7]));
        world.subscribe(late, "t", AtLeastOnce);
        assert!(left(&mut world, late).is_empty(), "its time is over");
    }
}

/// [MQTT-3.1.2-24], [MQTT-3.1.2-25], PITFALLS 49: to the byte, on every way; what is dropped takes
/// no packet id and no slot.
#[test]
fn the_size_is_exact_on_every_way() {
    // Type, length, topic, packet id, two Subscription Identifiers of two bytes each.
    let head = |qos: QoS| 2 + 3 + if qos == AtMostOnce { 0 } else { 2 } + 1 + 4;
    for qos in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
        let max = head(qos) + 10;
        let mut world = World::new(2);
        let (publisher, _) = world.join(&hello(Version::V5, "p"));
        let mut connect = stay(Version::V5, "s");
        connect.properties.maximum_packet_size = Some(max as u32);
        connect.properties.receive_maximum = Some(1);
        let (client, _) = world.join(&connect);
        for (filter, id) in [("t", 1), ("+", 2)] {
            world.subscribe_with(client, filter, SubscriptionOptions::new(qos), Some(id));
        }
        let send = |world: &mut World, len: usize, n| {
            world.send(publisher, &Packet::Publish(publish("t", &vec![b'x'; len], qos, n)));
        };
        for n in 0..5 {
            send(&mut world, 11, 10 * n + 1);
            send(&mut world, 10, 10 * n + 2);
        }
        let got = world.take_messages(client);
        assert!(got.iter().all(|m| m.len == max && m.subscription_ids.len() == 2), "{got:?}");
        assert_eq!(got.len(), 5);
        let ids: Vec<u16> = got.iter().map(|m| m.id).collect();
        let expected = if qos == AtMostOnce { [0; 5] } else { [1, 2, 3, 4, 5] };
        assert_eq!(ids, expected, "none is left out");
        if qos == AtMostOnce {
            continue;
        }
        // Queued, and then sent on a connection that takes less than at first.
        world.cut(client);
        send(&mut world, 10, 60);
        send(&mut world, 9, 61);
        connect.properties.maximum_packet_size = Some(max as u32 - 1);
        let (client, _) = world.join(&connect);
        let got = world.take_messages(client);
        assert!(matches!(&got[..], [m] if m.len == max - 1 && m.id == 6), "{got:?}");
        // Sent, and to be sent again on one that takes less still: as if it had been.
        send(&mut world, 9, 70);
        send(&mut world, 8, 71);
        assert_eq!(world.take(client).len(), 1);
        world.cut(client);
        connect.properties.maximum_packet_size = Some(max as u32 - 2);
        let (client, _) = world.join(&connect);
        let got = world.take_messages(client);
        assert!(matches!(&got[..], [m] if m.len == max - 2 && m.id == 8), "{got:?}");
        let home = world.home_of("s");
        assert_eq!(world.brokers[home].message_bytes(), 0);
    }
}

/// [MQTT-2.2.1-3], PITFALLS 44: ids begin again at 1, leave out those that are live, and a session
/// that is continued keeps them.
#[test]
fn packet_ids_wrap_around_live_ones() {
    let mut world = World::new(1);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let (client, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(client, "t", ExactlyOnce);
    let mut n = 0;
    let mut send = |world: &mut World, qos| {
        n += 1;
        world.publish(publisher, "t", &n.to_string(), qos, n);
    };
    let ids = |got: Vec<Got>| -> Vec<u16> {
        let id = |got| match got {
            Got::Publish(p) => p.id,
            Got::ConnAck { .. } => 0,
            Got::PubRel(n, _) => n,
            other => panic!("{other:?}"),
        };
        got.into_iter().map(id).collect()
    };
    for qos in [AtLeastOnce, ExactlyOnce, AtLeastOnce, ExactlyOnce] {
        send(&mut world, qos);
    }
    assert_eq!(ids(world.take(client)), [1, 2, 3, 4]);
    // 1 is over; 2 is past PUBREC; 3 and 4 are not answered.
    let ack = |n| Ack::new(id(n), ReasonCode::SUCCESS);
    world.send(client, &Packet::PubAck(ack(1)));
    world.send(client, &Packet::PubRec(ack(2)));
    assert_eq!(world.take(client), [Got::PubRel(2, ReasonCode::SUCCESS)]);
    let key = world.brokers[0].sessions.find("s").unwrap();
    let session = world.brokers[0].sessions.get_mut(key).unwrap();
    session.outgoing.as_mut().unwrap().exchanges.skip_to(65_533);
    for _ in 0..5 {
        send(&mut world, AtLeastOnce);
    }
    assert_eq!(ids(world.take(client)), [65_534, 65_535, 1, 5, 6]);
    world.cut(client);
    send(&mut world, AtLeastOnce);
    let client = world.connect(&stay(Version::V5, "s"));
    assert_eq!(ids(world.take(client)), [0, 2, 3, 4, 65_534, 65_535, 1, 5, 6, 7]);
    for n in [3, 65_534, 65_535, 1, 5, 6, 7] {
        world.send(client, &Packet::PubAck(ack(n)));
    }
    world.send(client, &Packet::PubComp(ack(2)));
    world.send_all(client, &[Packet::PubRec(ack(4)), Packet::PubComp(ack(4))]);
    assert_eq!(world.take(client), [Got::PubRel(4, ReasonCode::SUCCESS)]);
    let stats = world.brokers[0].stats();
    assert_eq!((stats.acks_unknown, world.brokers[0].message_bytes()), (0, 0));
}

/// [MQTT-3.3.4-9], PITFALLS 47: never more than Receive Maximum, and always as many as that; QoS 0
/// is not counted, and what is too large takes no part of it.
#[test]
fn the_window_is_full_and_not_more() {
    for window in [1_u16, 2, 5] {
        let mut world = World::new(2);
        let (publisher, _) = world.join(&hello(Version::V5, "p"));
        let mut connect = stay(Version::V5, "s");
        connect.properties.receive_maximum = Some(window);
        connect.properties.maximum_packet_size = Some(40);
        let (mut client, _) = world.join(&connect);
        world.subscribe(client, "t", ExactlyOnce);
        let mut open: Vec<(u16, u8, bool)> = Vec::new();
        let mut random = 7_u64 + u64::from(window);
        let (mut n, mut zeros) = (0_u16, 0);
        let (mut waiting, mut seen) = (0_usize, HashSet::new());
        for _ in 0..600 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            let roll = (random >> 33) as usize;
            match roll % 10 {
                0..=3 => {
                    n += 1;
                    let payload = n.to_string();
                    let large = [b'x'; 50];
                    let (payload, qos) = match roll / 10 % 5 {
                        0 => (&large[..], AtLeastOnce),
                        1 => (payload.as_bytes(), AtMostOnce),
                        2 => (payload.as_bytes(), AtLeastOnce),
                        _ => (payload.as_bytes(), ExactlyOnce),
                    };
                    waiting += usize::from(qos > AtMostOnce && payload.len() < 40);
                    zeros += usize::from(qos == AtMostOnce);
                    world.send(publisher, &Packet::Publish(publish("t", payload, qos, n)));
                    if qos == ExactlyOnce {
                        let ack = Ack::new(id(n), ReasonCode::SUCCESS);
                        world.send(publisher, &Packet::PubRel(ack));
                    }
                    world.take(publisher);
                }
                4 if (roll / 10).is_multiple_of(8) => {
                    world.cut(client);
                    (client, _) = world.join(&connect);
                    // All that is open comes again, in whichever form.
                    open.clear();
                }
                _ if !open.is_empty() => {
                    let at = roll / 10 % open.len();
                    let (id, qos, released) = open[at];
                    let ack = Ack::new(self::id(id), ReasonCode::SUCCESS);
                    let packet = match (qos, released) {
                        (1, _) => Packet::PubAck(ack),
                        (_, false) => Packet::PubRec(ack),
                        (_, true) => Packet::PubComp(ack),
                    };
                    // PUBREC frees nothing.
                    if qos == 1 || released {
                        open.swap_remove(at);
                    }
                    world.send(client, &packet);
                }
                _ => {}
            }
            for got in world.take(client) {
                match got {
                    Got::Publish(p) if p.qos == 0 => zeros -= 1,
                    Got::Publish(p) => {
                        assert!(open.iter().all(|(id, ..)| *id != p.id), "{} is live", p.id);
                        let is_new = seen.insert(p.payload);
                        assert!(is_new || p.dup, "only what is sent again comes twice");
                        waiting -= usize::from(is_new);
                        open.push((p.id, p.qos, false));
                    }
                    Got::PubRel(id, _) => {
                        open.retain(|(open, ..)| *open != id);
                        open.push((id, 2, true));
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert!(open.len() <= usize::from(window), "{open:?}");
            assert!(open.len() == usize::from(window) || waiting == 0, "{waiting}: {open:?}");
            assert_eq!(zeros, 0, "QoS 0 does not wait");
        }
    }
}

/// [MQTT-3.3.4-3] to [MQTT-3.3.4-5], [MQTT-3.8.3-3], PITFALLS 69, 70: the identifiers of all that
/// match, in one copy, and of no others; of a retained message that of its own subscription.
#[test]
fn identifiers_are_those_of_what_matches() {
    for shards in [1, 2] {
        let mut world = World::new(shards);
        let (publisher, _) = world.join(&hello(Version::V5, &world.id_on(0, 0)));
        let id = world.id_on(shards - 1, 1);
        let (client, _) = world.join(&stay(Version::V5, &id));
        let (other, _) = world.join(&hello(Version::V5, &world.id_on(shards - 1, 2)));
        let retained = Publish { retain: true, ..publish("a/b", b"kept", AtLeastOnce, 1) };
        world.send(publisher, &Packet::Publish(retained));
        let granted = SubscriptionOptions::new(AtLeastOnce);
        let quiet = SubscriptionOptions { no_local: true, ..granted };
        for (filter, options, id) in [
            ("a/b", granted, Some(1)),
            ("a/+", granted, Some(200)),
            ("+/b", quiet, Some(70_000)),
            ("#", granted, None),
            ("c", granted, Some(3)),
        ] {
            world.subscribe_with(client, filter, options, id);
            let got = world.take_messages(client);
            let ids: Vec<Vec<u32>> = got.into_iter().map(|m| m.subscription_ids).collect();
            match filter {
                "c" => assert!(ids.is_empty()),
                _ => assert_eq!(ids, [id.into_iter().collect::<Vec<_>>()], "{filter}"),
            }
        }
        world.subscribe_with(other, "a/#", granted, Some(9));
        world.take(other);
        let ids = |got: Vec<GotPublish>| -> Vec<Vec<u32>> {
            let sorted = |mut m: GotPublish| {
                m.subscription_ids.sort_unstable();
                m.subscription_ids
            };
            got.into_iter().map(sorted).collect()
        };
        world.publish(publisher, "a/b", "x", AtLeastOnce, 2);
        assert_eq!(ids(world.take_messages(client)), [[1, 200, 70_000]]);
        assert_eq!(ids(world.take_messages(other)), [[9]]);
        // Its own: without the one that does not want that.
        world.publish(client, "a/b", "own", AtMostOnce, 0);
        assert_eq!(ids(world.take_messages(client)), [[1, 200]]);
        world.take(other);
        // From the queue, and sent again.
        world.cut(client);
        world.publish(publisher, "a/b", "x", AtLeastOnce, 3);
        let client = world.connect(&stay(Version::V5, &id));
        assert_eq!(world.take(client).len(), 2);
        world.cut(client);
        let (client, _) = world.join(&stay(Version::V5, &id));
        let got = world.take_messages(client);
        assert!(got[0].dup);
        assert_eq!(ids(got), [[1, 200, 70_000]]);
    }
}

/// A PUBLISH goes on byte by byte only where nothing of it is to change: [MQTT-3.3.1-2],
/// [MQTT-3.3.1-12], [MQTT-3.3.2-6], [MQTT-3.3.2-7], [MQTT-3.3.4-3].
#[test]
fn what_is_passed_on_as_it_came() {
    let mut world = World::new(1);
    let mut join = |version, id: &str, options: &[u8]| {
        let (client, _) = world.join(&hello(version, id));
        let mut frame = vec![0x82, 0, 0, 1];
        if version == Version::V5 {
            frame.extend_from_slice(options);
        }
        frame.extend_from_slice(b"\x00\x01t\x00");
        frame[1] = frame.len() as u8 - 2;
        world.send_bytes(client, &frame);
        world.take(client);
        client
    };
    let three = join(Version::V311, "three", &[]);
    let oldest = join(Version::V31, "oldest", &[]);
    let five = join(Version::V5, "five", &[0]);
    let numbered = join(Version::V5, "numbered", &[2, 0x0B, 7]);
    let (from_31, _) = world.join(&hello(Version::V31, "from 3.1"));
    let (from_3, _) = world.join(&hello(Version::V311, "from 3"));
    let (from_5, _) = world.join(&hello(Version::V5, "from 5"));
    let bare: &[u8] = b"\x30\x05\0\x01thi";
    let empty: &[u8] = b"\x30\x06\0\x01t\0hi";
    let typed: &[u8] = b"\x30\x08\0\x01t\x02\x01\x01hi";
    let lasting: &[u8] = b"\x30\x0b\0\x01t\x05\x02\0\0\0\x09hi";
    for (publisher, sent, to_five) in [
        (from_3, bare, empty),
        (from_31, b"\x38\x05\0\x01thi", empty),
        (from_3, b"\x31\x05\0\x01thi", empty),
        (from_5, empty, empty),
        (from_5, typed, typed),
        (from_5, lasting, lasting),
        (from_5, b"\x30\x09\0\x01t\x03\x23\0\x01hi", empty),
        (from_5, b"\x30\x08\0\0\x03\x23\0\x01hi", empty),
    ] {
        world.send_bytes(publisher, sent);
        for client in [three, oldest] {
            assert_eq!(world.take_bytes(client), bare, "of {sent:02x?}");
        }
        assert_eq!(world.take_bytes(five), to_five, "of {sent:02x?}");
        let with_id = world.take_messages(numbered);
        assert_eq!(with_id[0].subscription_ids, [7], "of {sent:02x?}");
    }
}

/// What is acknowledged goes on with the receiver's own packet id and without DUP [MQTT-3.3.1-3],
/// whichever way it is written.
#[test]
fn what_is_passed_on_with_another_packet_id() {
    let mut world = World::new(1);
    for version in [Version::V31, Version::V311, Version::V5] {
        let (publisher, _) = world.join(&hello(version, "publisher"));
        let (subscriber, _) = world.join(&hello(version, "subscriber"));
        world.subscribe(subscriber, "t", ExactlyOnce);
        for (n, first, long) in
            [(1, 0x32, false), (2, 0x3A, false), (3, 0x34, true), (4, 0x3C, true)]
        {
            let payload = vec![b'x'; if long { 200 } else { 2 }];
            let mut body = b"\0\x01t\x12\x34".to_vec();
            if version == Version::V5 {
                body.push(0);
            }
            body.extend_from_slice(&payload);
            let len: &[u8] = if long { &[body.len() as u8 | 0x80, 1] } else { &[body.len() as u8] };
            world.send_bytes(publisher, &[&[first], len, &body].concat());
            let got = world.take_messages(subscriber);
            let ids = (got[0].id, got[0].dup, got[0].qos);
            assert_eq!((got.len(), ids), (1, (n, false, first >> 1 & 3)), "{version} {first:02x}");
            assert_eq!(got[0].payload, payload);
            if first & 0x04 != 0 {
                world.send_bytes(publisher, b"\x62\x02\x12\x34");
            }
            world.take_bytes(publisher);
        }
        world.cut(publisher);
        world.cut(subscriber);
    }
}
