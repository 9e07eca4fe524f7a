//! After a restart: the durable state becomes sessions again, whatever the number of shards.
#![forbid(unsafe_code)]

use bytes::Bytes;

use crate::broker::durable::*;
use crate::broker::testing::*;
use crate::broker::{Config, Record};
use crate::codec::mqtt::{Ack, Packet, Publish, QoS, ReasonCode, SubscriptionOptions, Version};
use crate::ids::ShardId;

/// 2001-09-09, in milliseconds.
const NOW_MS: u64 = 1_000_000_000_000;

fn message(n: u64, topic: &str, qos: QoS) -> DurableMessage {
    DurableMessage {
        id: MessageId::new(ShardId::new(0), n),
        publisher: "p".into(),
        topic: topic.into(),
        forwarded: Box::default(),
        payload: Bytes::from(n.to_string()),
        qos,
        retain: false,
        deadline_ms: None,
    }
}

fn queued(message: u32, qos: QoS) -> DurableQueued {
    DurableQueued { message, qos, retain: false, extra: None }
}

fn subscription(filter: &str, qos: QoS) -> DurableSubscription {
    let options = SubscriptionOptions::new(qos).to_byte();
    DurableSubscription { filter: filter.into(), options, subscription_id: None }
}

fn session(client_id: &str) -> DurableSession {
    DurableSession {
        client_id: client_id.into(),
        expiry_secs: 1000,
        offline_since_ms: Some(NOW_MS - 10_000),
        ..DurableSession::default()
    }
}

fn world(shards: usize, state: DurableState) -> World {
    let config = Config { record_changes: true, ..Config::default() };
    let mut world = World::with_config(shards, &config);
    let now = world.now;
    for (broker, part) in world.brokers.iter_mut().zip(state.partition(World::KEY, shards)) {
        broker.restore(now, NOW_MS, part);
        broker.handle_restored();
    }
    assert!(shards == 1 || !world.brokers[0].is_open(), "the others are to say what they want");
    world.settle();
    assert!(world.brokers.iter().all(|broker| broker.is_open()));
    world
}

/// Unfinished exchanges first, in the order of their ASSIGNs and under their packet ids, then the
/// queue; what is published after the start comes behind, from whichever shard.
#[test]
fn exchanges_then_the_queue_then_what_is_new() {
    for shards in [1, 2, 3] {
        let mut stored = session("s");
        stored.subscriptions = vec![subscription("t/#", QoS::ExactlyOnce)];
        let exchange = |packet_id, is_received, message: Option<u32>| DurableExchange {
            packet_id: id(packet_id),
            is_received,
            message: message.map(|message| queued(message, QoS::ExactlyOnce)),
        };
        stored.in_flight =
            vec![exchange(7, false, Some(2)), exchange(3, true, None), exchange(5, false, Some(0))];
        stored.queue = vec![queued(1, QoS::AtLeastOnce), queued(3, QoS::ExactlyOnce)];
        let topics = (1..=4).map(|n| message(n, "t/1", QoS::ExactlyOnce));
        let state = DurableState {
            last_sequence: 4,
            messages: topics.collect(),
            sessions: vec![stored],
            ..DurableState::default()
        };
        let mut world = world(shards, state);
        let client = world.connect(&stay(Version::V5, "s"));
        let got = world.take(client);
        let publishes: Vec<_> = got
            .iter()
            .filter_map(|got| match got {
                Got::Publish(p) => {
                    Some((p.id, String::from_utf8(p.payload.clone()).unwrap(), p.dup))
                }
                _ => None,
            })
            .collect();
        assert!(matches!(got[0], Got::ConnAck { session_present: true, .. }), "{got:?}");
        assert_eq!(got[1], Got::PubRel(3, ReasonCode::SUCCESS));
        let text = String::from;
        assert_eq!(publishes[0], (7, text("3"), true));
        assert_eq!(publishes[1], (5, text("1"), true));
        assert_eq!(publishes[2..].iter().map(|p| &*p.1).collect::<Vec<_>>(), ["2", "4"]);
        assert!(publishes[2..].iter().all(|(n, _, dup)| ![3, 5, 7].contains(n) && !dup));
        for n in [7, 5] {
            world.send(client, &Packet::PubRec(Ack::new(id(n), ReasonCode::SUCCESS)));
        }
        world.take(client);
        let name = world.id_on(shards - 1, 0);
        let (publisher, _) = world.join(&hello(Version::V311, &name));
        world.publish(publisher, "t/2", "new", QoS::AtLeastOnce, 1);
        assert_eq!(world.take_payloads(client), ["new"]);
    }
}

/// SHARDS.md J4: a QoS 2 publication that was not released is not published again; J8 of the
/// names: what is named now is above all that was named before.
#[test]
fn unreleased_packet_ids_are_known_and_names_are_new() {
    let mut publisher = session("p");
    publisher.unreleased = vec![id(9)];
    let mut subscriber = session("s");
    subscriber.subscriptions = vec![subscription("t", QoS::ExactlyOnce)];
    let last_sequence = 5 << 32 | 77;
    let sessions = vec![publisher, subscriber];
    let state = DurableState { last_sequence, sessions, ..DurableState::default() };
    let mut world = world(1, state);
    let (client, present) = world.join(&stay(Version::V311, "p"));
    assert!(present);
    let again = Publish { dup: true, ..publish("t", b"again", QoS::ExactlyOnce, 9) };
    world.send(client, &Packet::Publish(again));
    assert_eq!(world.take(client), [Got::PubRec(9, ReasonCode::SUCCESS)]);
    world.send(client, &Packet::PubRel(Ack::new(id(9), ReasonCode::SUCCESS)));
    assert_eq!(world.take(client), [Got::PubComp(9, ReasonCode::SUCCESS)]);
    world.records.clear();
    world.publish(client, "t", "new", QoS::ExactlyOnce, 9);
    let named = world.records.iter().find_map(|record| match record {
        Record::Publish { message, .. } => Some(message.sequence()),
        _ => None,
    });
    assert_eq!(named, Some((6 << 32) + 1));
    let (subscriber, _) = world.join(&stay(Version::V311, "s"));
    assert_eq!(world.take_payloads(subscriber), ["new"]);
}

/// Retained messages are there for new subscribers, those of other shards too, but not those whose
/// time was over before the start.
#[test]
fn retained_messages_come_back() {
    for shards in [1, 2] {
        let mut messages: Vec<_> =
            (1..=6).map(|n| message(n, &format!("t/{n}"), QoS::AtLeastOnce)).collect();
        messages[1].deadline_ms = Some(NOW_MS - 1);
        messages[2].deadline_ms = Some(NOW_MS + 5000);
        messages.iter_mut().for_each(|message| message.retain = true);
        let retained = (0..6).collect();
        let mut world =
            world(shards, DurableState { messages, retained, ..DurableState::default() });
        let (client, _) = world.join(&hello(Version::V5, "new"));
        world.subscribe(client, "t/+", QoS::AtLeastOnce);
        let mut got = world.take_messages(client);
        got.sort_by(|a, b| a.topic.cmp(&b.topic));
        let topics: Vec<_> = got.iter().map(|m| &*m.topic).collect();
        assert_eq!(topics, ["t/1", "t/3", "t/4", "t/5", "t/6"]);
        assert!(got.iter().all(|m| m.retain));
        assert_eq!(got[1].expiry, Some(5));
    }
}

/// Time goes on while nothing runs: a session ends when it would have ended, its Will is published
/// then or when its delay is over; one that had a connection counts from the start.
#[test]
fn time_that_passed_counts() {
    for shards in [1, 2] {
        let will = |payload: &'static str, delay_secs| DurableWill {
            topic: "will".into(),
            forwarded: Box::default(),
            payload: Bytes::from(payload),
            qos: QoS::AtLeastOnce,
            retain: false,
            delay_secs,
            expiry_secs: None,
        };
        let with_will = |name: &str, secs_ago: Option<u64>, will| DurableSession {
            offline_since_ms: secs_ago.map(|secs| NOW_MS - secs * 1000),
            expiry_secs: 100,
            will: Some(will),
            ..session(name)
        };
        let mut watcher = session("watcher");
        watcher.subscriptions = vec![subscription("will", QoS::AtLeastOnce)];
        let sessions = vec![
            watcher,
            with_will("over", Some(101), will("over", 500)),
            with_will("later", Some(40), will("later", 60)),
            with_will("connected", None, will("connected", 30)),
        ];
        let mut world = world(shards, DurableState { sessions, ..DurableState::default() });
        let (watcher, present) = world.join(&stay(Version::V5, "watcher"));
        assert!(present);
        world.advance(1);
        assert_eq!(world.take_payloads(watcher), ["over"]);
        let (_, present) = world.join(&stay(Version::V5, "over"));
        assert!(!present);
        world.advance(21);
        assert_eq!(world.take_payloads(watcher), ["later"]);
        world.advance(10);
        assert_eq!(world.take_payloads(watcher), ["connected"]);
        world.advance(60);
        let (_, present) = world.join(&stay(Version::V5, "connected"));
        assert!(present, "its time counts from the start");
        let (_, present) = world.join(&stay(Version::V5, "later"));
        assert!(!present);
    }
}

/// SHARDS.md J9: what a group is owed goes to its members, and is settled with GROUPACK.
#[test]
fn groups_go_on() {
    let members = ["a", "b"].map(|name| {
        let mut member = session(name);
        member.subscriptions = vec![subscription("$share/g/t", QoS::AtLeastOnce)];
        member
    });
    let messages = (1..=4).map(|n| message(n, "t", QoS::AtLeastOnce)).collect();
    let groups = vec![DurableGroup { key: "g/t".into(), owed: vec![0, 1, 2, 3], on_disk: vec![] }];
    let state =
        DurableState { messages, sessions: members.to_vec(), groups, ..DurableState::default() };
    let mut world = world(2, state);
    world.records.clear();
    let mut all = Vec::new();
    for name in ["a", "b"] {
        let (client, _) = world.join(&stay(Version::V5, name));
        all.extend(world.take_payloads(client));
    }
    all.sort();
    assert_eq!(all, ["1", "2", "3", "4"]);
    let settled = world
        .records
        .iter()
        .filter(|record| matches!(record, Record::GroupAck { group, .. } if group.key() == "g/t"));
    assert_eq!(settled.count(), 4);
}
