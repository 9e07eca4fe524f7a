//! What one client can make the broker hold, or do at once.
#![forbid(unsafe_code)]

use crate::broker::testing::*;
use crate::broker::{Config, Frame, Step, replay};
use crate::codec::mqtt::{
    Ack, Connect, Packet, QoS, ReasonCode, Subscribe, SubscribeFilter, SubscribeFilters,
    SubscriptionOptions, Unsubscribe, UnsubscribeFilters, UserProperties, Version,
};
use crate::limits::{FILTERS_PER_PACKET_MAX, INTEREST_LINGER_MAX, MATCH_CACHE_MERGED_MAX};

fn subscribe_all(world: &mut World, client: Client, n: u16, filters: &[&str]) {
    let options = SubscriptionOptions::new(QoS::AtLeastOnce);
    let lines: Vec<_> = filters.iter().map(|filter| SubscribeFilter { filter, options }).collect();
    let subscribe = Subscribe {
        packet_id: id(n),
        subscription_id: None,
        user_properties: UserProperties::default(),
        filters: SubscribeFilters::new(&lines),
    };
    world.send(client, &Packet::Subscribe(subscribe));
}

fn unsubscribe_all(world: &mut World, client: Client, filters: &[&str]) {
    let unsubscribe = Unsubscribe {
        packet_id: id(997),
        user_properties: UserProperties::default(),
        filters: UnsubscribeFilters::new(filters),
    };
    world.send(client, &Packet::Unsubscribe(unsubscribe));
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n}")).collect()
}

fn refs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// One packet does a bounded amount of work, however many filters it has.
#[test]
fn filters_of_one_packet() {
    let mut world = World::new(2);
    for version in [Version::V311, Version::V5] {
        let (client, _) = world.join(&hello(version, "c"));
        let names = names("t/", FILTERS_PER_PACKET_MAX + 2);
        subscribe_all(&mut world, client, 1, &refs(&names));
        let [Got::SubAck(1, codes)] = &world.take(client)[..] else { panic!("no SUBACK") };
        let (taken, refused) = codes.split_at(FILTERS_PER_PACKET_MAX);
        assert!(taken.iter().all(|code| *code == 1));
        let quota = if version == Version::V5 { ReasonCode::QUOTA_EXCEEDED.0 } else { 0x80 };
        assert_eq!(refused, [quota; 2]);
        unsubscribe_all(&mut world, client, &refs(&names));
        assert!(world.is_closed(client), "its answer could not say that it was refused");
        let farewell = [Got::Disconnect(ReasonCode::QUOTA_EXCEEDED)];
        let expected = if version == Version::V5 { &farewell[..] } else { &[] };
        assert_eq!(world.take(client), expected);
    }
}

/// A filter that is asked for again, while it is in the barrier, is one subscription.
#[test]
fn repeated_filters_count_once() {
    let mut world = World::new(2);
    world.brokers.iter_mut().for_each(|broker| broker.config.subscriptions_max = 2);
    let (client, _) = world.join(&hello(Version::V5, "c"));
    let quota = ReasonCode::QUOTA_EXCEEDED.0;
    subscribe_all(&mut world, client, 1, &["a", "a", "b", "c", "a", "b"]);
    assert_eq!(world.take(client), [Got::SubAck(1, vec![1, 1, 1, quota, 1, 1])]);
    unsubscribe_all(&mut world, client, &["a", "a"]);
    let not_there = ReasonCode::NO_SUBSCRIPTION_EXISTED.0;
    assert_eq!(world.take(client), [Got::UnsubAck(997, vec![0, not_there])]);
}

/// An acknowledgement sets one waiting replay of its session going, not all of them; that one
/// brings the others, while there is room.
#[test]
fn an_acknowledgement_wakes_one_replay() {
    let mut world = World::new(1);
    let mut connect = hello(Version::V5, "c");
    connect.properties.receive_maximum = Some(1);
    let (client, _) = world.join(&connect);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    for n in [3, 250, 499] {
        let topic = format!("n/{n}");
        let mut retained = publish(&topic, b"kept", QoS::AtLeastOnce, 1);
        retained.retain = true;
        world.send(publisher, &Packet::Publish(retained));
    }
    world.subscribe(client, "x", QoS::AtLeastOnce);
    world.publish(publisher, "x", "held", QoS::AtLeastOnce, 2);
    let [Got::Publish(held)] = &world.take(client)[..] else { panic!("no PUBLISH") };
    // With wildcards: that nothing is retained for most of them is not seen at once.
    let names = names("+/", 500);
    subscribe_all(&mut world, client, 1, &refs(&names));
    run_replays(&mut world);
    assert!(matches!(world.take(client)[..], [Got::SubAck(..)]), "its window is full");
    let session = world.brokers[0].sessions.find("c").expect("a session");
    replay::on_room(&mut world.brokers[0], session);
    assert_eq!(world.brokers[0].replays.ready_len(), 1);
    // The one that was to bring the others may end before its turn.
    unsubscribe_all(&mut world, client, &["+/0"]);
    run_replays(&mut world);
    assert!(matches!(world.take(client)[..], [Got::UnsubAck(..)]));
    world.send(client, &Packet::PubAck(Ack::new(id(held.id), ReasonCode::SUCCESS)));
    let mut topics = Vec::new();
    for _ in 0..4 {
        run_replays(&mut world);
        topics.extend(world.take_messages(client).into_iter().map(|message| message.topic));
    }
    topics.sort();
    assert_eq!(topics, ["n/250", "n/3", "n/499"]);
}

/// A subscription for which nothing is retained leaves no replay behind, and what many of them took
/// is given back.
#[test]
fn a_replay_of_nothing_is_over_at_once() {
    let mut world = World::new(1);
    let (client, _) = world.join(&hello(Version::V5, "c"));
    let mut retained = publish("n/400/x", b"kept", QoS::AtMostOnce, 0);
    retained.retain = true;
    world.send(client, &Packet::Publish(retained));
    let subscribe = |world: &mut World, end: &str, count| {
        let names: Vec<String> = names("n/", count).iter().map(|name| name.clone() + end).collect();
        subscribe_all(world, client, 1, &refs(&names));
        run_replays(world);
        (world.take(client).len(), world.brokers[0].replays.room())
    };
    for end in ["", "/x/y", "/y/#", "/y/+"] {
        assert_eq!(subscribe(&mut world, end, 500), (1, 0), "{end}: SUBACK alone");
    }
    for end in ["/+", "/x", "/x/#", "/#"] {
        assert_eq!(subscribe(&mut world, end, 500).0, 2, "{end}: and what is kept");
    }
    // With a wildcard at the beginning it is not seen: 3,000 wait.
    let names = names("+/", 3000);
    subscribe_all(&mut world, client, 1, &refs(&names));
    run_replays(&mut world);
    assert!(world.brokers[0].replays.room() < 1500);
}

/// A replay waits until the outbox has room for a piece of it: it takes nothing of the queue, which
/// may be too short for it.
#[test]
fn a_replay_leaves_the_queue_alone() {
    const COUNT: usize = 300;
    for shards in [1, 2] {
        let config = Config { queue_len_max: 1, ..Config::default() };
        let mut world = World::with_config(shards, &config);
        let (publisher, _) = world.join(&hello(Version::V5, "p"));
        for topic in names("r/", COUNT) {
            let mut retained = publish(&topic, &[7; 3000], QoS::AtLeastOnce, 1);
            retained.retain = true;
            world.send(publisher, &Packet::Publish(retained));
        }
        let (client, _) = world.join(&hello(Version::V5, "c"));
        world.stall(client, true);
        subscribe_all(&mut world, client, 1, &["r/#"]);
        run_replays(&mut world);
        world.stall(client, false);
        assert!(world.take_first(client, |got| matches!(got, Got::SubAck(..))).is_some());
        let mut count = 0;
        for _ in 0..COUNT {
            run_replays(&mut world);
            count += world.take_messages(client).len();
        }
        assert_eq!(count, COUNT, "{shards} shards");
    }
}

fn run_replays(world: &mut World) {
    while world.brokers[0].replays.is_ready() {
        let now = world.now;
        world.brokers[0].handle_timeouts(now);
        world.settle();
    }
}

/// Each group knows its place in its filter, so leaving one does not look at the others.
#[test]
fn groups_of_one_filter_know_their_places() {
    let mut world = World::new(1);
    let (client, _) = world.join(&hello(Version::V5, "c"));
    let names: Vec<String> = (0..50).map(|n| format!("$share/g{n}/a")).collect();
    subscribe_all(&mut world, client, 1, &refs(&names));
    let mut left = refs(&names);
    for at in [0, 48, 20, 20, 3, 44, 0] {
        unsubscribe_all(&mut world, client, &[left.swap_remove(at)]);
        let broker = &world.brokers[0];
        let groups = broker.topic_tree.get("a").expect("a filter").groups();
        assert_eq!(groups.len(), left.len());
        for (at, group) in groups.iter().enumerate() {
            assert_eq!(broker.shared_subs.get(*group).at as usize, at);
        }
    }
    world.take(client);
    world.publish(client, "a", "one for each", QoS::AtMostOnce, 0);
    assert_eq!(world.take_messages(client).len(), left.len());
    world.leave(client);
    assert!(world.brokers[0].topic_tree.get("a").is_none());
}

/// What lingers is bounded at once, not tick by tick.
#[test]
fn what_lingers_is_bounded_within_one_packet() {
    let mut world = World::new(2);
    let (client, _) = world.join(&hello(Version::V5, "c"));
    let mine = world.home_of("c");
    for (n, prefix) in [(1, "a/"), (2, "+/")] {
        let names = names(prefix, INTEREST_LINGER_MAX + 500);
        subscribe_all(&mut world, client, n, &refs(&names));
        world.take(client);
        let filters = refs(&names);
        let unsubscribe = Unsubscribe {
            packet_id: id(997),
            user_properties: UserProperties::default(),
            filters: UnsubscribeFilters::new(&filters),
        };
        let conn = world.brokers[mine].owner_of("c").expect("connected");
        let packet = Packet::Unsubscribe(unsubscribe);
        let (now, frame) = (world.now, Frame { bytes: &[0; 100], shared: None });
        let step = world.brokers[mine].handle_packet(now, conn, &packet, frame);
        assert_eq!(step, Step::Next);
        assert_eq!(world.brokers[mine].interest.lingering_len(), INTEREST_LINGER_MAX);
        world.settle();
        world.take(client);
        world.advance(60);
    }
    let broker = &world.brokers[1 - mine];
    assert!(broker.interest.is_empty() && broker.topic_tree.is_empty(), "it was told of all");
}

/// 0x97, or 0x03 for 3.1.1; who has a session gets it, and a session that ends makes room.
#[test]
fn sessions_are_bounded() {
    let config = Config { sessions_max: 2, ..Config::default() };
    let mut world = World::with_config(1, &config);
    let (stays, _) = world.join(&stay(Version::V311, "stays"));
    world.cut(stays);
    let (mortal, _) = world.join(&hello(Version::V5, "mortal"));
    for version in [Version::V311, Version::V5] {
        let refused = world.connect(&stay(version, "third"));
        let reason = match version {
            Version::V5 => ReasonCode::QUOTA_EXCEEDED,
            _ => ReasonCode::SERVER_UNAVAILABLE,
        };
        assert_eq!(world.take(refused), [Got::ConnAck { session_present: false, reason }]);
        assert!(world.is_closed(refused));
    }
    assert_eq!(world.brokers[0].stats().connects_refused_sessions, 2);
    assert!(world.join(&stay(Version::V311, "stays")).1);
    world.join(&hello(Version::V311, "stays"));
    world.leave(mortal);
    world.join(&stay(Version::V5, "third"));
    assert_eq!(world.brokers[0].session_count(), 2);
}

/// Wills and topic aliases, which are kept for long, are of the budget too, and may not use it up.
#[test]
fn wills_and_aliases_are_of_the_memory_budget() {
    let config = Config { memory_budget: 40_000, ..Config::default() };
    let mut world = World::with_config(1, &config);
    let payload = "x".repeat(6_000);
    let mut clients = Vec::new();
    for (client_id, reason) in
        [("a", ReasonCode::SUCCESS), ("b", ReasonCode::QUOTA_EXCEEDED), ("a", ReasonCode::SUCCESS)]
    {
        let connect = Connect { will: will("w", &payload, 500), ..stay(Version::V5, client_id) };
        let client = world.connect(&connect);
        let got = world.take(client);
        assert!(matches!(got[..], [Got::ConnAck { reason: r, .. }] if r == reason), "{client_id}");
        assert_eq!(world.brokers[0].message_bytes(), 6_001);
        world.cut(client);
        clients.push(client);
        if clients.len() == 2 {
            world.advance(501);
            assert_eq!(world.brokers[0].message_bytes(), 0, "its Will is published");
            assert_eq!(world.brokers[0].stats().connects_refused_memory, 1);
        }
    }
    let (client, _) = world.join(&hello(Version::V5, "c"));
    for (n, len, expected) in
        [(1, 2_000, 8_001), (2, 1_500, 9_501), (2, 500, 8_501), (3, 2_000, 6_001)]
    {
        let topic = "t".repeat(len);
        let mut message = publish(&topic, b"", QoS::AtMostOnce, 0);
        message.properties.topic_alias = alias(n);
        world.send(client, &Packet::Publish(message));
        assert_eq!(world.brokers[0].message_bytes(), expected, "alias {n}");
    }
    assert_eq!(world.take(client), [Got::Disconnect(ReasonCode::QUOTA_EXCEEDED)]);
}

/// What is remembered of a topic is bounded, groups included: one session may have very many.
#[test]
fn remembered_groups_are_bounded() {
    let mut world = World::new(1);
    let (client, _) = world.join(&hello(Version::V5, "c"));
    let names: Vec<String> = (0..1000).map(|n| format!("$share/g{n}/a/#")).collect();
    subscribe_all(&mut world, client, 1, &refs(&names));
    world.take(client);
    for n in 0..20 {
        world.publish(client, &format!("a/{n}"), "x", QoS::AtMostOnce, 0);
        assert_eq!(world.take_messages(client).len(), names.len());
    }
    assert!(world.brokers[0].matches.held_len() <= 20 * MATCH_CACHE_MERGED_MAX);
    for name in &names[100..] {
        world.unsubscribe(client, name);
    }
    world.publish(client, "a/0", "x", QoS::AtMostOnce, 0);
    assert_eq!(world.brokers[0].matches.held_len(), 100);
}
