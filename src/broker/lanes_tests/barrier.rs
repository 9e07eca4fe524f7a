//! Subscriptions: from SUBSCRIBE to the moment at which every shard knows (SHARDS.md I1 to I5).
#![forbid(unsafe_code)]

use super::*;

fn is_wanted_durably(broker: &mut Broker, topic: &str) -> bool {
    let route = matches::find(broker, topic);
    let is_wanted = matches::is_wanted_durably(broker, &route);
    matches::put_back(broker, route);
    is_wanted
}

/// I1, I4, I5: SUBACK waits for the change's own number on every lane; until then the connection
/// is not parsed, and the subscription has not begun.
#[test]
fn suback_waits_until_all_shards_have_applied_the_change() {
    let mut world = World::new(3);
    let (client, publisher) = (world.plain(0), world.plain(0));
    world.subscribe(client, 1, "a", QoS::AtLeastOnce);
    assert!(world.clients[client].held, "I5: it is not parsed further");
    world.publish(publisher, "a", 1, false);
    assert!(world.clients[client].seen.is_empty(), "I4: it has not begun");
    world.deliver(0, 1);
    world.deliver(1, 0);
    assert!(!world.is_acked(client, 1), "one of two");
    world.deliver(0, 2);
    world.deliver(2, 0);
    assert!(world.is_acked(client, 1) && !world.clients[client].held);
    world.publish(publisher, "a", 2, false);
    assert_eq!(world.clients[client].seen.len(), 1);
}

/// I1: the acknowledgements of an earlier change do not answer for a later one.
#[test]
fn an_earlier_changes_acknowledgement_is_not_the_laters() {
    let mut world = World::new(2);
    let client = world.plain(0);
    world.subscribe(client, 1, "a", QoS::AtLeastOnce);
    world.settle();
    world.unsubscribe(client, "a");
    world.now = world.now + Duration::from_secs(1);
    world.tick(0);
    world.subscribe(client, 2, "a", QoS::AtLeastOnce);
    world.deliver(0, 1); // the removal only
    world.deliver(1, 0);
    assert!(!world.is_acked(client, 2));
    world.settle();
    assert!(world.is_acked(client, 2));
}

/// I2: a SUBSCRIBE that changes nothing waits for the filter's last change.
#[test]
fn who_joins_waits_for_the_change_in_flight() {
    let mut world = World::new(2);
    let (first, second) = (world.plain(0), world.plain(0));
    world.subscribe(first, 1, "a/+", QoS::AtMostOnce);
    world.subscribe(second, 1, "a/+", QoS::AtMostOnce);
    assert!(!world.is_acked(second, 1));
    world.settle();
    assert!(world.is_acked(first, 1) && world.is_acked(second, 1));
    world.subscribe(second, 2, "a/+", QoS::AtMostOnce);
    assert!(world.is_acked(second, 2), "now it is known everywhere");
}

/// I3: a durable session that joins what plain ones hold is a change of its own.
#[test]
fn raising_to_durable_has_a_barrier() {
    for filter in ["a", "+"] {
        let mut world = World::new(2);
        let (plain, durable) = (world.plain(0), world.durable(0));
        world.subscribe(plain, 1, filter, QoS::AtLeastOnce);
        world.settle();
        assert!(!is_wanted_durably(&mut world.brokers[1], "a"));
        world.subscribe(durable, 1, filter, QoS::AtMostOnce);
        assert!(world.is_acked(durable, 1), "QoS 0 is not durable");
        world.subscribe(durable, 2, filter, QoS::AtLeastOnce);
        assert!(!world.is_acked(durable, 2));
        world.settle();
        assert!(world.is_acked(durable, 2));
        assert!(is_wanted_durably(&mut world.brokers[1], "a"));
    }
}

/// I4: what is in the barrier belongs to the session. It begins although its connection is gone;
/// the new connection gets no SUBACK for it. With the session it is taken back whole.
#[test]
fn the_barrier_outlives_the_connection_and_not_the_session() {
    let mut world = World::new(2);
    let (client, publisher) = (world.durable(0), world.plain(1));
    world.subscribe(client, 1, "a", QoS::AtLeastOnce);
    world.cut(client);
    world.settle();
    assert!(!world.is_acked(client, 1));
    world.publish(publisher, "a", 1, false);
    world.settle();
    let properties =
        ConnectProperties { session_expiry_interval: Some(1000), ..Default::default() };
    world.connect(client, properties);
    world.settle();
    assert_eq!(world.clients[client].seen.len(), 1);
    assert!(!world.is_acked(client, 1), "its packet id was the other connection's");

    let mortal = world.plain(0);
    world.subscribe(mortal, 1, "b/#", QoS::AtLeastOnce);
    world.cut(mortal);
    assert!(world.brokers[0].subscribing.is_idle(), "nothing waits for a session that is over");
    world.settle();
    world.now = world.now + Duration::from_secs(1);
    world.settle();
    assert!(world.brokers.iter().all(|broker| broker.topic_tree.get("b/#").is_none()));
}

/// I4: UNSUBSCRIBE on a new connection takes back what an old one has in the barrier.
#[test]
fn unsubscribe_reaches_into_the_barrier() {
    let mut world = World::new(2);
    let (client, publisher) = (world.durable(0), world.plain(0));
    world.subscribe(client, 1, "a", QoS::AtLeastOnce);
    let properties =
        ConnectProperties { session_expiry_interval: Some(1000), ..Default::default() };
    world.cut(client);
    world.connect(client, properties);
    world.unsubscribe(client, "a");
    world.settle();
    world.publish(publisher, "a", 1, false);
    world.settle();
    assert!(world.clients[client].seen.is_empty());
}

/// The promise of SUBACK under churn, without order between the lanes: whoever has it gets every
/// message that is published from then on, once, in order; and a durable one is known as such to
/// every shard. Fails without I1, I2, I3, I4 (the subscription begins too early: harmless here),
/// and when lowering is said before it is true.
#[test]
fn nothing_is_lost_after_suback() {
    let filters = ["a", "a/b", "+", "a/#", "#"];
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let mut world = World::new(2 + random.below(2));
        let shards = world.brokers.len();
        let publishers: Vec<usize> = (0..shards).map(|shard| world.plain(shard)).collect();
        let clients: Vec<usize> = (0..3)
            .map(|i| match i {
                0 => world.durable(0),
                _ => world.plain(random.below(shards)),
            })
            .collect();
        // Per client and filter: the packet id of a SUBSCRIBE that is under way or answered.
        let mut wants: BTreeMap<(usize, usize), u16> = BTreeMap::new();
        let mut owed: BTreeSet<(usize, u64)> = BTreeSet::new();
        let mut number = 0;
        for _ in 0..220 {
            match random.below(6) {
                0 => {
                    let (client, f) = (random.pick(&clients), random.below(filters.len()));
                    let n = 10 + f as u16;
                    let busy = world.clients[client].held;
                    match wants.get(&(client, f)) {
                        None if !busy => {
                            wants.insert((client, f), n);
                            world.subscribe(client, n, filters[f], QoS::AtLeastOnce);
                        }
                        Some(_) if !busy && random.one_in(2) => {
                            wants.remove(&(client, f));
                            world.unsubscribe(client, filters[f]);
                            // What is on its way finds the subscription gone.
                            let seen = &world.clients[client].seen;
                            let came = |number| seen.iter().any(|seen| seen.number == number);
                            owed.retain(|(owner, number)| *owner != client || came(*number));
                        }
                        _ => {}
                    }
                }
                1 => {
                    number += 1;
                    let (topic, at) = (random.pick(&["a", "a/b", "c"]), random.below(shards));
                    for &(client, f) in wants.keys() {
                        let acked = world.is_acked(client, 10 + f as u16);
                        if acked && reference(filters[f], topic) {
                            owed.insert((client, number));
                            assert!(
                                client != clients[0]
                                    || is_wanted_durably(&mut world.brokers[at], topic),
                                "seed {seed}: I3"
                            );
                        }
                    }
                    world.publish(publishers[at], topic, number, false);
                }
                _ => world.step(&mut random),
            }
        }
        world.settle();
        for &client in &clients {
            let seen: Vec<u64> = world.clients[client].seen.iter().map(|s| s.number).collect();
            let distinct: BTreeSet<u64> = seen.iter().copied().collect();
            assert_eq!(seen.len(), distinct.len(), "seed {seed}: once each");
            for &(_, number) in owed.iter().filter(|(owner, _)| *owner == client) {
                assert!(distinct.contains(&number), "seed {seed}: {number} was lost");
            }
        }
        // When all have gone, nothing is left.
        for client in clients.into_iter().chain(publishers) {
            world.disconnect(client, Some(0));
        }
        for _ in 0..3 {
            world.now = world.now + Duration::from_secs(1);
            world.settle();
        }
        for broker in &world.brokers {
            assert!(broker.topic_tree.is_empty(), "seed {seed}: filters are left");
            assert!(broker.interest.is_empty(), "seed {seed}: interest is left");
        }
    }
}

/// SUBACK and UNSUBACK of a session that outlives us wait for their records.
#[test]
fn suback_waits_for_its_record() {
    let mut world = World::new(1);
    let config = Config { record_changes: true, ..Config::default() };
    world.brokers[0] = Broker::new(config, ShardId::new(0), 1, KEY, 1);
    let (durable, plain) = (world.durable(0), world.plain(0));
    let commit = |world: &mut World| {
        let number = world.brokers[0].out.changes.last().map(|change| change.number);
        world.brokers[0].out.changes.clear();
        let now = world.now;
        world.brokers[0].handle_committed(now, number.unwrap_or(0));
        world.collect(0);
    };
    commit(&mut world);
    world.subscribe(durable, 1, "a", QoS::AtLeastOnce);
    world.subscribe(plain, 1, "a", QoS::AtLeastOnce);
    assert!(!world.is_acked(durable, 1) && world.is_acked(plain, 1));
    assert!(world.clients[durable].held);
    commit(&mut world);
    assert!(world.is_acked(durable, 1) && !world.clients[durable].held);
}

/// A code for each filter in order `[MQTT-3.8.4-6]`, families 62, 72 and 76; No Local on a shared
/// subscription is a Protocol Error, and nothing of that packet is done `[MQTT-3.8.3-4]`.
#[test]
fn each_filter_has_its_code() {
    let mut world = World::new(1);
    world.brokers[0].config.subscriptions_max = 3;
    let client = world.plain(0);
    let filters =
        ["a", "a/#/b", "$share/g/a", "$share//a", "$share/g+/a", "+x", "b", "c", "a", "$share/g/a"];
    let lines: Vec<_> = filters.iter().map(|filter| (*filter, QOS1)).collect();
    world.subscribe_with(client, 1, &lines, None);
    let codes = &world.clients[client].subacks[&1];
    assert_eq!(codes[..], [1, 0x8f, 1, 0x8f, 0x8f, 0x8f, 1, 0x97, 1, 1]);
    let no_local = SubscriptionOptions { no_local: true, ..QOS1 };
    let before = world.brokers[0].topic_tree.len();
    world.subscribe_with(client, 2, &[("d", QOS1), ("$share/g/e", no_local)], None);
    assert!(!world.is_acked(client, 2) && world.clients[client].closed);
    assert!(world.brokers[0].topic_tree.len() < before, "its session is over, its filters too");
}
