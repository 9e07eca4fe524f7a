//! Retained messages of other shards: replays, exact whatever the timing (SHARDS.md R1 to R4).
#![forbid(unsafe_code)]

use super::*;

/// R1: the owner answers when it has processed what the asker knew of. Here the asker knows of a
/// value (its origin has said so with "applied") that is still on its way to the owner.
#[test]
fn an_owner_answers_when_it_has_what_the_asker_knew_of() {
    let mut world = World::new(3);
    let (publisher, client) = (world.plain(0), world.plain(1));
    let topic = (0..).map(|i| format!("t/{i}")).find(|t| KEY.owner_of(t, 3).index() == 2).unwrap();
    world.publish(publisher, &topic, 1, true);
    world.subscribe(client, 1, &topic, QoS::AtLeastOnce);
    for (from, to) in [(1, 0), (0, 1), (1, 2), (2, 1)] {
        world.deliver(from, to);
    }
    assert!(world.is_acked(client, 1));
    assert!(world.deliver(1, 2), "the question is asked");
    assert!(!world.deliver(2, 1), "and not answered yet");
    world.settle();
    assert_eq!(world.clients[client].seen.len(), 1);
}

/// What a random run of retained publishes and subscriptions showed to one client.
#[derive(Default, Debug)]
struct Faults {
    lost: u64,
    duplicate: u64,
    stale: u64,
    outdated: u64,
}

/// R1 to R4 in a random world: each alone left out shows as values lost, doubled, older after newer,
/// or outdated for good.
#[test]
fn a_replay_is_exact_whatever_the_timing() {
    let mut faults = Faults::default();
    for seed in 0..1000 {
        retained_run(seed, &mut faults);
    }
    let Faults { lost, duplicate, stale, outdated } = faults;
    assert_eq!((lost, duplicate, stale, outdated), (0, 0, 0, 0), "{faults:?}");
}

fn retained_run(seed: u64, faults: &mut Faults) {
    const TOPICS: [&str; 3] = ["t/0", "t/1", "u"];
    let mut random = Random::new(seed);
    let shards = 1 + random.below(4);
    let mut world = World::new(shards);
    let publishers: Vec<usize> = (0..shards).map(|shard| world.plain(shard)).collect();
    let home = random.below(shards);
    let clients: Vec<(usize, &str)> = (0..2)
        .map(|_| {
            let receive_maximum = Some(1 + random.below(3) as u16);
            let properties = ConnectProperties { receive_maximum, ..Default::default() };
            (world.client(home, properties), random.pick(&["t/0", "t/1", "t/+", "#", "+/#"]))
        })
        .collect();
    let mut subscribed = [false; 2];
    let mut number = 0;
    // Per value: origin, and its place among that origin's values for the owner of its topic.
    let mut origin_of: BTreeMap<u64, usize> = BTreeMap::new();
    for _ in 0..90 {
        match random.below(7) {
            0 if number < 12 => {
                number += 1;
                let (topic, at) = (random.pick(&TOPICS), random.below(shards));
                let clears = random.one_in(5);
                origin_of.insert(number, at);
                world.publish(publishers[at], topic, if clears { 0 } else { number }, true);
            }
            1 => {
                let i = random.below(2);
                if !std::mem::replace(&mut subscribed[i], true) {
                    world.subscribe(clients[i].0, 1, clients[i].1, QoS::AtLeastOnce);
                }
            }
            _ => world.step(&mut random),
        }
    }
    for i in 0..2 {
        if !subscribed[i] {
            world.subscribe(clients[i].0, 1, clients[i].1, QoS::AtLeastOnce);
        }
    }
    world.settle();
    for (client, filter) in clients {
        assert!(world.is_acked(client, 1), "seed {seed}: SUBACK never came");
        let seen = &world.clients[client].seen;
        for topic in TOPICS.into_iter().filter(|topic| reference(filter, topic)) {
            let seen: Vec<&Seen> = seen.iter().filter(|s| s.topic == topic).collect();
            let values: Vec<u64> = seen.iter().map(|s| s.number).filter(|n| *n > 0).collect();
            let distinct: BTreeSet<u64> = values.iter().copied().collect();
            faults.duplicate += u64::from(distinct.len() != values.len());
            let mut newest: BTreeMap<usize, u64> = BTreeMap::new();
            for value in &values {
                let newest = newest.entry(origin_of[value]).or_default();
                faults.stale += u64::from(*newest > *value);
                *newest = (*newest).max(*value);
            }
            match stored(&world, topic) {
                Some(last) if !distinct.contains(&last) => faults.lost += 1,
                last => {
                    let is_replay = seen.last().is_some_and(|s| s.retain);
                    let is_last = seen.last().map(|s| s.number) == last;
                    faults.outdated += u64::from(is_replay && !is_last);
                }
            }
        }
    }
    for broker in &world.brokers {
        assert!(broker.replays.is_idle() && broker.retained.is_idle(), "seed {seed}");
    }
}

/// The number of the retained message of a topic, at its owner.
fn stored(world: &World, topic: &str) -> Option<u64> {
    let owner = KEY.owner_of(topic, world.brokers.len()).index();
    let broker = &world.brokers[owner];
    let message = broker.messages.get(broker.retained.find(&broker.messages, topic)?.message);
    std::str::from_utf8(message.payload().bytes).unwrap().parse().ok()
}

/// So many clients of one shard have asked the other for the same four retained messages: as many
/// questions are open as may be.
fn many_replays(clients: usize) -> (World, Vec<usize>) {
    let mut world = World::new(2);
    let publisher = world.plain(1);
    for i in 0..4 {
        world.publish(publisher, &format!("t/{i}"), 1 + i, true);
    }
    world.settle();
    let clients: Vec<usize> = (0..clients).map(|_| world.plain(0)).collect();
    world.subscribe(clients[0], 1, "t/+", QoS::AtMostOnce);
    world.settle();
    for &client in &clients[1..] {
        world.subscribe(client, 1, "t/+", QoS::AtMostOnce);
    }
    for _ in 0..20 {
        world.tick(0);
    }
    assert_eq!(world.brokers[0].replays.open_to(ShardId::new(1)), limits::QUESTIONS_MAX);
    (world, clients)
}

/// L4: no more than so many questions are open to one owner; the rest wait where they are.
#[test]
fn questions_to_one_owner_are_limited() {
    let (mut world, clients) = many_replays(limits::QUESTIONS_MAX + 50);
    world.settle();
    for client in clients {
        assert_eq!(world.clients[client].seen.len(), 4);
    }
}

/// L4: a replay that stands in line goes on though the one that an answer let on was over by then.
#[test]
fn a_replay_in_line_is_not_forgotten() {
    let (mut world, clients) = many_replays(2 * limits::QUESTIONS_MAX + 9);
    while world.deliver(0, 1) {}
    while world.deliver(1, 0) {}
    assert_eq!(world.brokers[0].replays.open_to(ShardId::new(1)), 0);
    // Those that the answers let on are gone before they do.
    let (gone, stay) = clients[1 + limits::QUESTIONS_MAX..].split_at(limits::QUESTIONS_MAX);
    for &client in gone {
        world.cut(client);
    }
    world.settle();
    for &client in stay {
        assert_eq!(world.clients[client].seen.len(), 4);
    }
}

/// R4: a replay asks for what its client has room for, holds nothing behind a full window, and an
/// hour later goes on with the base that it began with: what came live meanwhile is not repeated.
#[test]
fn a_replay_waits_for_its_client() {
    for shards in [1, 2] {
        let mut world = World::new(shards);
        let publisher = world.plain(0);
        let topics: Vec<String> = (0..40).map(|i| format!("t/{i}")).collect();
        for (i, topic) in topics.iter().enumerate() {
            world.publish(publisher, topic, 1 + i as u64, true);
        }
        world.settle();
        let properties = ConnectProperties { receive_maximum: Some(3), ..Default::default() };
        let client = world.client(shards - 1, properties);
        world.subscribe(client, 1, "t/+", QoS::AtLeastOnce);
        world.clients[client].mute = true;
        for _ in 0..3 {
            for shard in 0..shards {
                world.tick(shard);
            }
            while (0..shards).any(|to| shards > 1 && world.deliver(1 - to, to)) {}
        }
        assert_eq!(world.clients[client].seen.len(), 3, "as many as the window takes");
        let key = world.brokers[shards - 1].sessions.find(&world.clients[client].id).unwrap();
        let session = world.brokers[shards - 1].sessions.get(key).unwrap();
        assert!(session.outgoing.as_ref().unwrap().queue.is_empty(), "nothing is held behind it");
        // New values of all topics: some of them replayed, most of them not yet.
        world.now = world.now + Duration::from_secs(3600);
        for (i, topic) in topics.iter().enumerate() {
            world.publish(publisher, topic, 101 + i as u64, true);
        }
        world.clients[client].mute = false;
        world.settle();
        let mut numbers: Vec<u64> = world.clients[client].seen.iter().map(|s| s.number).collect();
        let replayed = world.clients[client].seen.iter().filter(|s| s.retain).count();
        numbers.sort_unstable();
        let before = numbers.len();
        numbers.dedup();
        assert_eq!((replayed, before), (3, numbers.len()), "{shards} shards");
        assert!((101..141).all(|number| numbers.contains(&number)));
    }
}

/// Retain Handling 0, 1 and 2 `[MQTT-3.3.1-9]` to `[MQTT-3.3.1-11]`, No Local of a replay by the
/// publisher's client id, and the replay's flag and identifier (families 67 to 70).
#[test]
fn a_replay_follows_the_options() {
    for shards in [1, 3] {
        let mut world = World::new(shards);
        let (publisher, client) = (world.plain(0), world.plain(shards - 1));
        world.publish(publisher, "t/1", 1, true);
        world.publish(publisher, "t/2", 2, true);
        world.settle();
        let mut n = 0;
        let mut replayed = |world: &mut World, client: usize, options| {
            n += 1;
            world.clients[client].seen.clear();
            world.subscribe_with(client, n, &[("t/+", options)], Some(5));
            world.settle();
            assert!(world.is_acked(client, n));
            let seen = &world.clients[client].seen;
            assert!(seen.iter().all(|seen| seen.retain && seen.ids == [5]));
            seen.len()
        };
        let with = |retain_handling| SubscriptionOptions { retain_handling, ..QOS1 };
        assert_eq!(replayed(&mut world, client, with(RetainHandling::DoNotSend)), 0);
        assert_eq!(replayed(&mut world, client, with(RetainHandling::SendIfNew)), 0);
        assert_eq!(replayed(&mut world, client, with(RetainHandling::Send)), 2);
        assert_eq!(replayed(&mut world, client, with(RetainHandling::Send)), 2);
        world.unsubscribe(client, "t/+");
        assert_eq!(replayed(&mut world, client, with(RetainHandling::SendIfNew)), 2);
        let no_local = SubscriptionOptions { no_local: true, ..QOS1 };
        assert_eq!(replayed(&mut world, publisher, no_local), 0, "No Local holds for a replay");
        assert_eq!(replayed(&mut world, publisher, QOS1), 2);
    }
}
