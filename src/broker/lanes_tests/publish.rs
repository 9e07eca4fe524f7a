//! Messages through lanes: copies, room, and what comes last (SHARDS.md L4, L7, section 7).
#![forbid(unsafe_code)]

use super::*;

/// L7: a publish towards a full lane waits, others go on; it goes when there is room.
#[test]
fn a_publish_towards_a_full_lane_waits() {
    let mut world = World::new(2);
    let (there, here) = (world.plain(1), world.plain(0));
    let (first, second) = (world.plain(0), world.plain(0));
    world.subscribe(there, 1, "far", QoS::AtLeastOnce);
    world.subscribe(here, 1, "near", QoS::AtLeastOnce);
    world.settle();
    let mut full = ShardSet::EMPTY;
    full.insert(ShardId::new(1));
    let now = world.now;
    world.brokers[0].handle_lanes(now, full);
    world.publish(first, "far", 1, false);
    assert!(world.clients[first].held);
    world.publish(second, "near", 2, false);
    assert!(!world.clients[second].held);
    world.brokers[0].handle_lanes(now, ShardSet::EMPTY);
    world.collect(0);
    world.settle();
    assert_eq!(world.clients[there].seen.len(), 1);
    assert_eq!(world.clients[here].seen.len(), 1);
}

/// L4, L7: one tick brings so many bytes into a lane and no more, however small the packets that
/// make them; the publishers go on in the next tick, each in its turn.
#[test]
fn a_batch_is_bounded_in_bytes() {
    let mut world = World::new(2);
    let there = world.plain(1);
    let publishers = [world.plain(0), world.plain(0), world.plain(0)];
    let topic = "x".repeat(60_000);
    world.subscribe(there, 1, "#", QoS::AtMostOnce);
    world.settle();
    for publisher in publishers {
        for number in 0..20 {
            let properties = PublishProperties {
                topic_alias: std::num::NonZeroU16::new(1),
                ..PublishProperties::default()
            };
            let payload = format!("{}", 100 * publisher + number);
            let publish = Publish {
                dup: false,
                qos: QoS::AtMostOnce,
                retain: false,
                topic: if number == 0 { &topic } else { "" },
                packet_id: None,
                properties,
                payload: payload.as_bytes(),
            };
            let mut frame = Vec::new();
            Packet::Publish(publish).encode(Version::V5, &mut frame);
            world.clients[publisher].input.push_back(frame);
        }
    }
    for publisher in publishers {
        world.parse(publisher);
    }
    let sizes: Vec<usize> = world.lanes[&(0, 1)].iter().map(Batch::size).collect();
    assert!(sizes.len() >= 60 * 60_000 / (limits::BATCH_BYTES + 60_100), "{sizes:?}");
    assert!(sizes.iter().all(|size| *size < limits::BATCH_BYTES + 60_100), "{sizes:?}");
    world.settle();
    let numbers: Vec<u64> = world.clients[there].seen.iter().map(|seen| seen.number).collect();
    assert_eq!(numbers.len(), 60);
    for publisher in publishers {
        let of = |n: &&u64| **n / 100 == publisher as u64;
        assert!(numbers.iter().filter(of).is_sorted());
    }
}

/// What a burst has grown is given up again.
#[test]
fn an_emptied_batch_keeps_little() {
    let mut batch = Batch::default();
    batch.bytes.resize(4 * limits::BATCH_BYTES, 0);
    batch.clear();
    assert!(batch.bytes.capacity() <= limits::BATCH_BYTES_KEPT);
    assert_eq!(batch.size(), 0);
}

/// Section 7: nobody has ended while another may still say something, an answer that it waits for
/// included.
#[test]
fn the_end_comes_behind_everything_else() {
    let mut world = World::new(3);
    let (client, publisher) = (world.plain(0), world.plain(1));
    world.subscribe(client, 1, "a", QoS::AtLeastOnce);
    world.settle();
    world.publish(publisher, "a", 1, false);
    world.subscribe(client, 2, "b/#", QoS::AtLeastOnce);
    for shard in 0..3 {
        world.brokers[shard].handle_end();
        world.collect(shard);
    }
    assert!(world.brokers.iter().all(|broker| !broker.has_ended()));
    // All but what shard 2 has to apply: shard 0's question stays open.
    for _ in 0..3 {
        for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1), (2, 0)] {
            while world.deliver(from, to) {}
        }
    }
    assert!(!world.brokers[0].has_ended() && !world.is_acked(client, 2));
    world.settle();
    assert!(world.brokers.iter().all(Broker::has_ended));
    assert!(world.is_acked(client, 2));
    assert_eq!(world.clients[client].seen.len(), 1);
    assert!(world.lanes.values().all(VecDeque::is_empty));
}

/// Overlapping filters: one copy, the highest QoS, all identifiers; No Local for each filter on
/// its own (family 70).
#[test]
fn overlapping_filters_give_one_copy() {
    for shards in [1, 2] {
        let mut world = World::new(shards);
        let (publisher, client) = (world.plain(shards - 1), world.plain(0));
        let no_local = SubscriptionOptions { no_local: true, ..QOS1 };
        let keeps = SubscriptionOptions { retain_as_published: true, ..QOS1 };
        world.subscribe_with(client, 1, &[("a/+", no_local)], Some(1));
        world.settle();
        world.subscribe_with(client, 2, &[("a/#", SubscriptionOptions::default())], Some(2));
        world.settle();
        world.subscribe_with(client, 3, &[("a/b", keeps)], Some(3));
        world.settle();
        world.publish(publisher, "a/b", 1, true);
        world.settle();
        let seen = std::mem::take(&mut world.clients[client].seen);
        let [seen] = &seen[..] else { panic!("{shards}: one copy, not {seen:?}") };
        let ids: BTreeSet<u32> = seen.ids.iter().copied().collect();
        assert_eq!(ids, BTreeSet::from([1, 2, 3]));
        assert!(seen.retain, "one of them keeps the flag");
        world.publish(client, "a/b", 2, false);
        world.settle();
        let ids: BTreeSet<u32> = world.clients[client].seen[0].ids.iter().copied().collect();
        assert_eq!(ids, BTreeSet::from([2, 3]), "No Local counts for its own filter");
        world.unsubscribe(client, "a/b");
        world.unsubscribe(client, "a/#");
        world.publish(client, "a/b", 3, false);
        world.settle();
        assert_eq!(world.clients[client].seen.len(), 1);
    }
}
