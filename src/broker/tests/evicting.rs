//! Queues that are left to the journal: what is asked for, and what becomes of the answer.
#![forbid(unsafe_code)]

use crate::broker::durable::MessageId;
use crate::broker::evict::Found;
use crate::broker::testing::*;
use crate::broker::{Config, Record};
use crate::codec::mqtt::{
    Ack, Connect, Packet, Publish, QoS, ReasonCode, SubscriptionOptions, Version,
};
use crate::limits::{DEFERRED_PER_TICK, READS_OPEN_MAX};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};

fn evicting(config: Config) -> World {
    World::with_config(1, &Config { record_changes: true, queues_evict: true, ..config })
}

/// Holds two messages of a few bytes.
fn small() -> Config {
    Config { queue_bytes_max: 150, ..Config::default() }
}

/// What a test's journal says of a message.
#[derive(Clone, Copy)]
enum Says {
    All,
    GoneAt(u64),
    UnreadableAt(u64),
}

/// The journal's answer to all that was asked for; how many messages that were.
fn answer(world: &mut World, says: Says) -> usize {
    let (reads, mut count) = (std::mem::take(&mut world.reads), 0);
    for read in reads {
        count += read.messages.len();
        let records = std::mem::take(&mut world.records);
        let (now, start) = (world.now, first_id(&records));
        let found = read.messages.iter().map(|id| {
            let number = id.sequence() - start;
            let found = match says {
                Says::GoneAt(n) if n == number => Found::Gone,
                Says::UnreadableAt(n) if n == number => Found::Unreadable,
                _ => find(&records, *id),
            };
            (*id, found)
        });
        world.brokers[0].handle_read_back(now, read.asker, found);
        world.records = records;
        world.settle();
    }
    count
}

fn first_id(records: &[Record]) -> u64 {
    let id = |record: &Record| match record {
        Record::Publish { message, .. } => Some(message.sequence()),
        _ => None,
    };
    records.iter().find_map(id).expect("something was published")
}

fn find(records: &[Record], id: MessageId) -> Found<'_> {
    let found = records.iter().find_map(|record| match record {
        Record::Publish { message, content, qos, retain, deadline, .. } if *message == id => {
            let (topic, forwarded) = (content.topic(), content.forwarded());
            let (payload, deadline) = (content.payload(), *deadline);
            Some(Found::Message { topic, forwarded, payload, qos: *qos, retain: *retain, deadline })
        }
        _ => None,
    });
    found.expect("only what was recorded is evicted")
}

fn publish_some(world: &mut World, numbers: std::ops::Range<u32>, qos: QoS) {
    let (publisher, _) = world.join(&hello(Version::V5, "publisher"));
    for number in numbers {
        world.publish(publisher, "t", &number.to_string(), qos, 1);
        if qos == ExactlyOnce {
            world.send(publisher, &Packet::PubRel(Ack::new(id(1), ReasonCode::SUCCESS)));
        }
    }
    world.cut(publisher);
}

/// Takes and acknowledges all that comes, with what has to be read back for that.
fn drain(world: &mut World, client: Client, says: Says) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let some = world.take_payloads(client);
        let read = answer(world, says);
        if some.is_empty() && read == 0 {
            return all;
        }
        all.extend(some);
    }
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

/// All of it comes, in order and under the terms of its subscription; memory holds little of it
/// meanwhile, and nothing at the end.
#[test]
fn a_queue_on_disk_comes_in_order() {
    for qos in [AtLeastOnce, ExactlyOnce] {
        let mut world = evicting(small());
        let mut connect = stay(Version::V5, "s");
        connect.properties.receive_maximum = Some(3);
        let (subscriber, _) = world.join(&connect);
        world.subscribe_with(subscriber, "t", SubscriptionOptions::new(qos), Some(7));
        world.cut(subscriber);
        publish_some(&mut world, 0..100, qos);
        assert_eq!(world.brokers[0].messages_evicted(), 98);
        assert_eq!(world.brokers[0].stats().messages_evicted, 98);
        assert!(world.brokers[0].message_bytes() < 100 * 100);
        assert!(world.reads.is_empty(), "nobody reads");
        let (subscriber, present) = world.join(&connect);
        assert!(present);
        let mut messages = Vec::new();
        loop {
            let some = world.take_messages(subscriber);
            let read = answer(&mut world, Says::All);
            if some.is_empty() && read == 0 {
                break;
            }
            messages.extend(some);
        }
        let payloads: Vec<String> =
            messages.iter().map(|m| String::from_utf8(m.payload.clone()).unwrap()).collect();
        assert_eq!(payloads, numbers(0..100));
        assert!(messages.iter().all(|m| (m.qos, &m.subscription_ids[..]) == (qos as u8, &[7])));
        assert_eq!(world.brokers[0].stats().messages_read_back, 98);
        assert_eq!(world.brokers[0].message_bytes(), 0);
        // And what comes now comes at once.
        publish_some(&mut world, 100..101, qos);
        assert_eq!(world.take_payloads(subscriber), ["100"]);
        assert!(world.reads.is_empty());
    }
}

/// SHARDS.md J7, J9: a message that was named before a subscription began, and comes to it all the same,
/// the journal does not owe to it: it stays in memory, however little may.
#[test]
fn what_is_older_than_its_subscription_is_not_left_to_the_journal() {
    for filter in ["t", "$share/g/t"] {
        let mut world = evicting(Config { evict_above: 1, ..Config::default() });
        let (keeper, _) = world.join(&stay(Version::V5, "keeper"));
        world.subscribe(keeper, "t", ExactlyOnce);
        let (subscriber, _) = world.join(&stay(Version::V5, "s"));
        let (publisher, _) = world.join(&hello(Version::V5, "publisher"));
        world.commits = false;
        world.publish(publisher, "t", "older", ExactlyOnce, 1);
        world.send_subscribe(subscriber, filter, SubscriptionOptions::new(ExactlyOnce), None);
        world.cut(subscriber);
        world.commits = true;
        world.settle();
        world.publish(publisher, "t", "newer", ExactlyOnce, 2);
        assert_eq!(world.brokers[0].messages_evicted(), 1, "{filter}: the newer one");
        let (subscriber, _) = world.join(&stay(Version::V5, "s"));
        assert_eq!(drain(&mut world, subscriber, Says::GoneAt(0)), ["older", "newer"]);
    }
}

/// SHARDS.md J9: a message that its PUB does not name a group for is owed to nobody in that: a member
/// whose session lasts, and to whom it moves, keeps it in memory.
#[test]
fn what_is_not_owed_to_a_group_is_not_left_to_the_journal() {
    let mut world = evicting(Config { evict_above: 1, ..Config::default() });
    let (keeper, _) = world.join(&stay(Version::V5, "keeper"));
    world.subscribe(keeper, "t", AtLeastOnce);
    let mut connect = hello(Version::V5, "passing");
    connect.properties.receive_maximum = Some(1);
    let (passing, _) = world.join(&connect);
    world.subscribe(passing, "$share/g/t", AtLeastOnce);
    publish_some(&mut world, 0..3, AtLeastOnce);
    let (lasting, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(lasting, "$share/g/t", AtLeastOnce);
    world.cut(lasting);
    world.cut(passing);
    assert_eq!(world.brokers[0].messages_evicted(), 0);
    let (lasting, _) = world.join(&stay(Version::V5, "s"));
    assert_eq!(drain(&mut world, lasting, Says::All).len(), 3);
}

/// What the journal does not give back is dropped and counted, and holds up nothing; its end is
/// recorded, so that the journal forgets it, too.
#[test]
fn what_is_lost_holds_up_nothing() {
    for says in [Says::GoneAt(5), Says::UnreadableAt(5)] {
        let mut world = evicting(small());
        let (subscriber, _) = world.join(&stay(Version::V5, "s"));
        world.subscribe(subscriber, "t", AtLeastOnce);
        world.cut(subscriber);
        publish_some(&mut world, 0..10, AtLeastOnce);
        let (subscriber, _) = world.join(&stay(Version::V5, "s"));
        let mut expected = numbers(0..10);
        expected.remove(5);
        assert_eq!(drain(&mut world, subscriber, says), expected);
        let stats = world.brokers[0].stats();
        assert_eq!(stats.dropped_unreadable + stats.dropped_not_owed, 1);
        assert_eq!(stats.dropped_unreadable, u64::from(matches!(says, Says::UnreadableAt(_))));
        assert_eq!(world.brokers[0].message_bytes(), 0);
        let ended = |record: &&Record| matches!(record, Record::Acked { .. });
        assert_eq!(world.records.iter().filter(ended).count(), 10);
    }
}

/// With a journal the memory budget is met by evicting: nothing is refused while something can be.
#[test]
fn shedding_evicts_first() {
    let payload = "x".repeat(1000);
    for evicts in [true, false] {
        let config = Config {
            memory_budget: 40_000,
            record_changes: true,
            queues_evict: evicts,
            ..Config::default()
        };
        let mut world = World::with_config(1, &config);
        for n in 0..4 {
            let (subscriber, _) = world.join(&stay(Version::V5, &format!("s{n}")));
            world.subscribe(subscriber, &format!("t/{n}"), AtLeastOnce);
            world.cut(subscriber);
        }
        let (publisher, _) = world.join(&hello(Version::V5, "publisher"));
        for n in 0..80 {
            world.publish(publisher, &format!("t/{}", n % 4), &payload, AtLeastOnce, 1);
        }
        let stats = world.brokers[0].stats();
        assert_eq!(stats.publishes_refused > 0, !evicts, "{}", stats.publishes_refused);
        assert_eq!(stats.messages_evicted > 0, evicts);
        assert!(world.brokers[0].message_bytes() <= 40_000);
        if evicts {
            let (subscriber, _) = world.join(&stay(Version::V5, "s1"));
            assert_eq!(drain(&mut world, subscriber, Says::All).len(), 20);
        }
    }
}

/// What the journal does not have for a session stays in memory, within its bound: messages of a
/// session that ends with its connection, and retained messages that a subscription begins with.
#[test]
fn what_no_journal_has_is_not_evicted() {
    let mut world = evicting(small());
    let mut connect = hello(Version::V5, "plain");
    connect.properties.receive_maximum = Some(1);
    let (plain, _) = world.join(&connect);
    world.subscribe(plain, "t", AtLeastOnce);
    // Somebody durable wants it as well, so that it has a record.
    let (durable, _) = world.join(&stay(Version::V5, "durable"));
    world.subscribe(durable, "t", AtLeastOnce);
    world.cut(durable);
    publish_some(&mut world, 0..10, AtLeastOnce);
    assert_eq!(world.brokers[0].messages_evicted(), 8, "of the durable one");
    assert_eq!(drain(&mut world, plain, Says::All), numbers(0..3));
    assert_eq!(world.brokers[0].stats().dropped_queue_full, 7);
    assert_eq!(world.brokers[0].stats().messages_read_back, 0);
    world.publish(plain, "t", "0", AtMostOnce, 0);
}

/// A message that expires on disk is dropped without being read; one whose deadline only its record
/// tells, when that was read.
#[test]
fn time_goes_on_for_what_is_on_disk() {
    let mut world = evicting(small());
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "t", AtLeastOnce);
    world.cut(subscriber);
    let (publisher, _) = world.join(&hello(Version::V5, "publisher"));
    for n in 0..10 {
        let payload = [b'0' + n];
        let mut packet: Publish<'_> = publish("t", &payload, AtLeastOnce, 1);
        packet.properties.message_expiry_interval = (n % 2 == 1).then_some(10);
        world.send(publisher, &Packet::Publish(packet));
    }
    world.advance(11);
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    assert_eq!(drain(&mut world, subscriber, Says::All), ["0", "2", "4", "6", "8"]);
    assert_eq!(world.brokers[0].stats().dropped_expired, 5);
    assert_eq!(world.brokers[0].stats().messages_read_back, 4);
}

/// SHARDS.md L4: questions are bounded where they are asked, and all who wait get their turn; a
/// session that ends with a question open leaves nothing behind.
#[test]
fn questions_are_bounded() {
    let mut world = evicting(small());
    let count = READS_OPEN_MAX + 5;
    let mut clients = Vec::new();
    for n in 0..count {
        let (subscriber, _) = world.join(&stay(Version::V5, &format!("s{n}")));
        world.subscribe(subscriber, "t", AtLeastOnce);
        world.cut(subscriber);
    }
    publish_some(&mut world, 0..10, AtLeastOnce);
    for n in 0..count {
        let name = format!("s{n}");
        clients.push(world.join(&stay(Version::V5, &name)).0);
    }
    assert_eq!(world.reads.len(), READS_OPEN_MAX);
    // One begins anew.
    world.cut(clients[0]);
    let (anew, present) = world.join(&hello(Version::V5, "s0"));
    assert!(!present);
    while answer(&mut world, Says::All) > 0 {}
    for client in &clients[1..] {
        assert_eq!(drain(&mut world, *client, Says::All), numbers(0..10));
    }
    assert!(world.take(anew).is_empty());
    assert_eq!(world.brokers[0].message_bytes(), 0);
}

/// SHARDS.md S4: what a session had of a group when it ended moves to another member, from the disk
/// as well, a piece at a time; of what cannot be read the journal hears that the group is done with it.
#[test]
fn what_a_group_has_on_disk_moves() {
    const COUNT: u32 = 3 * DEFERRED_PER_TICK as u32;
    for says in [Says::All, Says::GoneAt(7), Says::UnreadableAt(7)] {
        let mut world = evicting(small());
        let (member, _) = world.join(&stay(Version::V5, "a"));
        world.subscribe(member, "$share/g/t", AtLeastOnce);
        world.cut(member);
        publish_some(&mut world, 0..COUNT, AtLeastOnce);
        assert!(world.brokers[0].messages_evicted() > 2 * DEFERRED_PER_TICK);
        let (other, _) = world.join(&stay(Version::V5, "b"));
        world.subscribe(other, "$share/g/t", AtLeastOnce);
        assert!(world.take_payloads(other).is_empty());
        world.join(&Connect { clean_start: true, ..stay(Version::V5, "a") });
        let mut got = Vec::new();
        loop {
            world.advance(1);
            assert!(world.reads.len() <= 1);
            let some = drain(&mut world, other, says);
            if some.is_empty() && world.reads.is_empty() {
                break;
            }
            got.extend(some);
        }
        got.sort_unstable_by_key(|number| number.parse::<u32>().unwrap());
        let mut expected = numbers(0..COUNT);
        if !matches!(says, Says::All) {
            expected.remove(7);
        }
        assert_eq!(got, expected);
        assert_eq!(world.brokers[0].message_bytes(), 0);
        let ended = |record: &&Record| matches!(record, Record::GroupAck { .. });
        assert_eq!(world.records.iter().filter(ended).count(), COUNT as usize);
    }
}
