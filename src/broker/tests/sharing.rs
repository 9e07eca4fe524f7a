//! Shared Subscriptions (4.8.2): which member gets a message, and what happens to it then.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use crate::broker::Config;
use crate::broker::entry::ToGroup;
use crate::broker::strategy::{Rule, Strategies, Strategy};
use crate::broker::testing::*;
use crate::codec::mqtt::{
    Ack, Packet, Publish, QoS, ReasonCode, RetainHandling, SubscriptionOptions, Version,
};
use crate::limits::LEAST_IN_FLIGHT_LOOKS;

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};

/// Groups have the strategy of their name.
fn world(shards: usize) -> World {
    let rule = |strategy: Strategy| Rule { group: format!("{strategy}*"), strategy };
    let rules = Strategy::ALL.map(rule).into();
    let shared_strategies = Strategies { default: Strategy::RoundRobin, rules };
    World::with_config(shards, &Config { shared_strategies, ..Config::default() })
}

/// A client on this shard.
fn on(world: &mut World, shard: usize, n: usize) -> Client {
    let id = world.id_on(shard, n);
    world.join(&hello(Version::V5, &id)).0
}

/// `each` members of the group on every shard, and a publisher on every shard.
fn group(
    world: &mut World,
    strategy: Strategy,
    each: usize,
    qos: QoS,
) -> (Vec<Client>, Vec<Client>) {
    let shards = world.brokers.len();
    let filter = format!("$share/{strategy}/t/#");
    let places = (0..shards).flat_map(|shard| (0..each).map(move |n| (shard, n)));
    let members: Vec<_> = places.map(|(shard, n)| on(world, shard, n)).collect();
    members.iter().for_each(|member| world.subscribe(*member, &filter, qos));
    let publishers = (0..shards).map(|shard| on(world, shard, each)).collect();
    (members, publishers)
}

fn publish_many(world: &mut World, publishers: &[Client], count: u16) {
    for n in 1..=count {
        let publisher = publishers[usize::from(n) % publishers.len()];
        let topic = format!("t/{}", n % 50);
        world.publish(publisher, &topic, &n.to_string(), AtLeastOnce, n);
    }
}

/// Per member, the payloads that came.
fn taken(world: &mut World, members: &[Client]) -> Vec<Vec<String>> {
    members.iter().map(|member| world.take_payloads(*member)).collect()
}

#[test]
fn every_strategy_gives_each_message_to_one() {
    for strategy in Strategy::ALL {
        for (shards, each) in [(1, 1), (1, 4), (2, 3), (3, 2)] {
            let mut world = world(shards);
            let (members, publishers) = group(&mut world, strategy, each, AtLeastOnce);
            publish_many(&mut world, &publishers, 300);
            let counts: Vec<usize> = taken(&mut world, &members).iter().map(Vec::len).collect();
            assert_eq!(counts.iter().sum::<usize>(), 300, "{strategy}: {counts:?}");
            let members = members.len();
            let all = 300 / members;
            match strategy {
                Strategy::RoundRobin => {
                    assert!(counts.iter().all(|n| n.abs_diff(all) <= shards), "{counts:?}");
                }
                Strategy::Sticky => assert!(counts.contains(&300), "{counts:?}"),
                // As few as there are publishers.
                Strategy::HashClientId => {}
                // Seeded, so these are what they are.
                _ => assert!(counts.iter().all(|n| *n > all / 4), "{strategy}: {counts:?}"),
            }
        }
    }
}

/// One member gets all, from every shard, until it is gone; then another, and that one keeps it.
#[test]
fn sticky_stays() {
    for shards in [1, 2, 3] {
        let mut world = world(shards);
        let (members, publishers) = group(&mut world, Strategy::Sticky, 2, AtLeastOnce);
        let mut left: Vec<Client> = members;
        let mut holder = None;
        while !left.is_empty() {
            publish_many(&mut world, &publishers, 30);
            let counts: Vec<usize> = taken(&mut world, &left).iter().map(Vec::len).collect();
            let now = counts.iter().position(|n| *n == 30).expect("one member gets all");
            if let Some(before) = holder.replace(left[now]) {
                assert_eq!(before, left[now], "it stays");
            }
            if left.len().is_multiple_of(2) {
                world.cut(left.remove(now));
                holder = None;
            } else {
                let other = (now + 1) % left.len();
                if left.len() > 1 {
                    world.cut(left.remove(other));
                } else {
                    left.clear();
                }
            }
        }
    }
}

/// All of one key goes to one member, whichever shard it is published on; when a member goes, only
/// its keys move.
#[test]
fn hashes_move_few() {
    for shards in [1, 2, 3] {
        let mut world = world(shards);
        let (mut members, publishers) = group(&mut world, Strategy::HashTopic, 3, AtMostOnce);
        let spread = |world: &mut World, members: &[Client]| {
            let mut of = BTreeMap::new();
            for n in 0..60 {
                for publisher in &publishers {
                    world.publish(*publisher, &format!("t/{n}"), "x", AtMostOnce, 0);
                }
                for member in members {
                    let got = world.take_messages(*member).len();
                    if got > 0 {
                        assert_eq!(got, publishers.len(), "all of one topic go to one member");
                        of.insert(n, member.to_owned());
                    }
                }
            }
            of
        };
        let before = spread(&mut world, &members);
        assert_eq!(before.len(), 60);
        assert_eq!(spread(&mut world, &members), before);
        let gone = members.remove(0);
        world.cut(gone);
        let after = spread(&mut world, &members);
        let stayed = before.iter().filter(|(n, member)| after[n] == **member).count();
        let lost = before.values().filter(|member| **member == gone).count();
        assert!(lost > 0);
        match shards {
            1 => assert_eq!(stayed, 60 - lost),
            // Its shard has less weight now: a share of the others' keys there moves as well.
            _ => assert!(stayed >= 40, "{stayed} of 60 stayed, {lost} were lost"),
        }
    }
}

#[test]
fn all_of_a_publisher_go_to_one() {
    for shards in [1, 2] {
        let mut world = world(shards);
        let (members, _) = group(&mut world, Strategy::HashClientId, 3, AtMostOnce);
        let mut used = std::collections::BTreeSet::new();
        for n in 10..22 {
            let publisher = on(&mut world, n % shards, n);
            for topic in ["t/a", "t/b", "t/c"] {
                world.publish(publisher, topic, "x", AtMostOnce, 0);
            }
            let counts: Vec<usize> = taken(&mut world, &members).iter().map(Vec::len).collect();
            used.insert(counts.iter().position(|n| *n == 3).expect("one member gets all"));
        }
        assert!(used.len() > 1);
    }
}

#[test]
fn the_least_loaded_gets_it() {
    let mut world = world(1);
    let (members, publishers) = group(&mut world, Strategy::LeastInFlight, 3, AtLeastOnce);
    // One never acknowledges: when it has one, the others are preferred as long as they have none.
    let mut stuck = 0;
    for n in 1..=30 {
        world.publish(publishers[0], "t/a", "x", AtLeastOnce, n);
        stuck += world.take(members[0]).len();
        world.take_messages(members[1]);
        world.take_messages(members[2]);
    }
    assert_eq!(stuck, 1);
}

/// A message does not look at thousands of members, and each has its turn all the same.
#[test]
fn the_least_loaded_of_some() {
    let mut world = world(1);
    let each = LEAST_IN_FLIGHT_LOOKS + 50;
    group(&mut world, Strategy::LeastInFlight, each, AtLeastOnce);
    let groups = &mut world.brokers[0].shared_subs;
    let key = "least-in-flight/t/#";
    let chosen = groups.chosen(ToGroup { key, spread: 0, returned: false, is_owed: false });
    let mut picked = BTreeSet::new();
    for _ in 0..each {
        let looks = Cell::new(0);
        let load = |_| {
            looks.set(looks.get() + 1);
            1
        };
        let member = groups.pick_member(&chosen, true, load);
        picked.insert(member.expect("a member").session);
        assert_eq!(looks.get(), LEAST_IN_FLIGHT_LOOKS);
    }
    assert_eq!(picked.len(), each);
}

/// Members that are connected come first, on whichever shard; with none, QoS 0 is dropped and
/// counted, and the rest goes to one that can keep it.
#[test]
fn those_who_are_there_come_first() {
    for strategy in Strategy::ALL {
        for shards in [1, 2] {
            let mut world = world(shards);
            let filter = format!("$share/{strategy}/t/#");
            let ids: Vec<String> = (0..4).map(|n| world.id_on(n % shards, n)).collect();
            let mut members: Vec<Client> =
                ids.iter().map(|id| world.join(&stay(Version::V5, id)).0).collect();
            for (n, member) in members.iter().enumerate() {
                // One on the last shard cannot keep anything.
                let qos = if n == 3 { AtMostOnce } else { AtLeastOnce };
                world.subscribe(*member, &filter, qos);
            }
            let publisher = on(&mut world, 0, 9);
            for member in &members[1..] {
                world.cut(*member);
            }
            publish_many(&mut world, &[publisher], 20);
            assert_eq!(world.take_payloads(members[0]).len(), 20, "{strategy}");
            world.cut(members[0]);
            let dropped = |world: &World| -> u64 {
                world.brokers.iter().map(|broker| broker.stats().dropped_offline).sum()
            };
            world.publish(publisher, "t/a", "lost", AtMostOnce, 0);
            assert_eq!(dropped(&world), 1);
            publish_many(&mut world, &[publisher], 20);
            let mut all = 0;
            for (n, id) in ids.iter().enumerate() {
                members[n] = world.join(&stay(Version::V5, id)).0;
                all += world.take_payloads(members[n]).len();
            }
            // What is on the last member's shard alone may be dropped by no shard: it has others.
            assert_eq!((all, dropped(&world)), (20, 1), "{strategy} with {shards}");
        }
    }
}

fn move_retained(shards: usize, was_sent: bool) -> Vec<bool> {
    let mut world = World::new(shards);
    let (first, second) = (world.id_on(0, 0), world.id_on(shards - 1, 1));
    let (first, _) = world.join(&stay(Version::V5, &first));
    let (second, _) = world.join(&hello(Version::V5, &second));
    let publisher = on(&mut world, shards - 1, 5);
    let keeps = SubscriptionOptions {
        retain_as_published: true,
        retain_handling: RetainHandling::DoNotSend,
        ..SubscriptionOptions::new(AtLeastOnce)
    };
    world.subscribe(first, "$share/g/t", AtLeastOnce);
    if !was_sent {
        world.cut(first);
    }
    for (n, retain) in [(1, true), (2, false)] {
        let publish = Publish { retain, ..publish("t", b"x", AtLeastOnce, n) };
        world.send(publisher, &Packet::Publish(publish));
    }
    world.subscribe_with(second, "$share/g/t", keeps, Some(9));
    // Its session ends.
    match was_sent {
        true => {
            let ends = crate::codec::mqtt::Disconnect {
                session_expiry_interval: Some(0),
                ..crate::codec::mqtt::Disconnect::new(ReasonCode::NORMAL_DISCONNECTION)
            };
            world.send(first, &Packet::Disconnect(ends));
        }
        false => world.advance(2000),
    }
    let got = world.take_messages(second);
    assert!(got.iter().all(|m| m.subscription_ids == [9] && !m.dup && m.qos == 1));
    got.into_iter().map(|m| m.retain).collect()
}

/// [MQTT-3.3.1-13]: what moves to another member has the RETAIN flag that this one asked for.
#[test]
fn what_moves_keeps_its_retain_flag() {
    for shards in [1, 2] {
        for was_sent in [true, false] {
            assert_eq!(move_retained(shards, was_sent), [true, false], "{shards} {was_sent}");
        }
    }
}

/// [MQTT-4.8.2-4], [MQTT-4.8.2-5]: QoS 2 that was sent is for the one member only: it gets it when
/// it comes back, and nobody gets it when its session ends.
#[test]
fn qos_2_stays_with_its_member() {
    for ends in [false, true] {
        for past_pubrec in [false, true] {
            let mut world = World::new(1);
            let (first, _) = world.join(&stay(Version::V5, "first"));
            let (second, _) = world.join(&hello(Version::V5, "second"));
            let (publisher, _) = world.join(&hello(Version::V5, "p"));
            world.subscribe(first, "$share/g/t", ExactlyOnce);
            world.publish(publisher, "t", "x", ExactlyOnce, 1);
            assert_eq!(world.take(first).len(), 1);
            let ack = Ack::new(id(1), ReasonCode::SUCCESS);
            if past_pubrec {
                world.send(first, &Packet::PubRec(ack));
            }
            world.subscribe(second, "$share/g/t", ExactlyOnce);
            world.cut(first);
            if ends {
                world.advance(2000);
            } else {
                let client = world.connect(&stay(Version::V5, "first"));
                let got = world.take(client);
                match past_pubrec {
                    true => assert_eq!(got[1..], [Got::PubRel(1, ReasonCode::SUCCESS)]),
                    false => {
                        assert!(matches!(&got[1..], [Got::Publish(p)] if p.dup && p.id == 1));
                    }
                }
            }
            assert!(world.take(second).is_empty());
            assert_eq!(world.brokers[0].stats().dropped_no_member, 0);
        }
    }
}

/// [MQTT-4.8.2-6]: refused by PUBACK or PUBREC, it is discarded; so is what it is in the way of.
#[test]
fn what_is_refused_goes_to_nobody_else() {
    for qos in [AtLeastOnce, ExactlyOnce] {
        let mut world = World::new(1);
        let (first, _) = world.join(&hello(Version::V5, "first"));
        let (publisher, _) = world.join(&hello(Version::V5, "p"));
        world.subscribe(first, "$share/g/t", qos);
        world.publish(publisher, "t", "x", qos, 1);
        assert_eq!(world.take(first).len(), 1);
        let (second, _) = world.join(&hello(Version::V5, "second"));
        world.subscribe(second, "$share/g/t", qos);
        let refused = Ack::new(id(1), ReasonCode::QUOTA_EXCEEDED);
        world.send(
            first,
            &match qos {
                AtLeastOnce => Packet::PubAck(refused),
                _ => Packet::PubRec(refused),
            },
        );
        world.leave(first);
        assert!(world.take(second).is_empty());
        assert_eq!(world.brokers[0].message_bytes(), 0);
    }
}
