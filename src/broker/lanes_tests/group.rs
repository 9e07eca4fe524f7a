//! Groups of Shared Subscriptions with members on several shards (SHARDS.md S1 to S4).
#![forbid(unsafe_code)]

use super::*;

/// S1, S2, L9: members come and go on three shards, plain subscribers of the same filter are on
/// all of them, and each message reaches one member. Without the name in the entry it reaches one
/// per shard; without the way back it is lost.
#[test]
fn a_group_gets_each_message_once() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let mut world = World::new(3);
        let publishers: Vec<usize> = (0..3).map(|shard| world.plain(shard)).collect();
        let plain: Vec<usize> = (0..3).map(|shard| world.plain(shard)).collect();
        let members: Vec<usize> = (0..3).map(|_| world.plain(random.below(3))).collect();
        for client in plain.iter().copied().chain([members[0]]) {
            let is_member = members.contains(&client);
            let filter = if is_member { "$share/g/t/+" } else { "t/+" };
            world.subscribe_with(client, 1, &[(filter, QOS1)], is_member.then_some(7));
        }
        world.settle();
        let mut inside = [true, false, false];
        let mut number = 0;
        for _ in 0..150 {
            match random.below(5) {
                0 if number < 30 => {
                    number += 1;
                    world.publish(publishers[random.below(3)], "t/x", number, false);
                }
                1 => {
                    let i = 1 + random.below(2);
                    if world.clients[members[i]].held {
                        continue;
                    }
                    inside[i] = !inside[i];
                    if inside[i] {
                        world.subscribe_with(members[i], 1, &[("$share/g/t/+", QOS1)], Some(7));
                    } else {
                        world.unsubscribe(members[i], "$share/g/t/+");
                    }
                }
                _ => world.step(&mut random),
            }
        }
        world.settle();
        let mut times = vec![0; number as usize + 1];
        for &member in &members {
            for seen in &world.clients[member].seen {
                assert_eq!(seen.ids, [7]);
                times[seen.number as usize] += 1;
            }
        }
        assert!(times[1..].iter().all(|times| *times == 1), "seed {seed}: {times:?}");
        for &client in &plain {
            assert_eq!(world.clients[client].seen.len(), number as usize, "seed {seed}");
        }
    }
}

/// S2: only offline members at the chosen shard, online ones elsewhere: back once, then taken.
#[test]
fn a_message_goes_to_a_member_online_elsewhere() {
    let mut world = World::new(3);
    let (first, second, publisher) = (world.durable(1), world.durable(2), world.plain(0));
    let stays = ConnectProperties { session_expiry_interval: Some(1000), ..Default::default() };
    for client in [first, second] {
        world.subscribe(client, 1, "$share/g/t", QoS::AtLeastOnce);
    }
    world.cut(second);
    world.settle();
    world.publish(publisher, "t", 1, false);
    // While it is on its way to the first, that one goes and the second comes.
    world.cut(first);
    world.connect(second, stays);
    world.deliver(2, 1);
    world.deliver(2, 0);
    world.settle();
    assert_eq!(world.clients[second].seen.len(), 1);
    world.cut(second);
    world.settle();
    // Nobody is online: somebody's session keeps it.
    world.publish(publisher, "t", 2, false);
    world.settle();
    world.connect(first, stays);
    world.connect(second, stays);
    world.settle();
    let seen = [first, second].map(|client| world.clients[client].seen.len());
    assert_eq!(seen.iter().sum::<usize>(), 2, "{seen:?}");
}

/// S4: what a member holds when its session ends moves to another one, here or elsewhere, except
/// QoS 2 that was sent `[MQTT-4.8.2-5]`.
#[test]
fn a_members_messages_move_when_its_session_ends() {
    for shards in [1, 2] {
        let mut world = World::new(shards);
        let (ends, publisher) = (world.durable(0), world.plain(0));
        world.subscribe(ends, 1, "$share/g/t", QoS::AtLeastOnce);
        world.settle();
        // The first is sent and not acknowledged, the others wait for the connection.
        world.clients[ends].held = true;
        world.publish(publisher, "t", 1, false);
        world.cut(ends);
        for number in 2..=4 {
            world.publish(publisher, "t", number, false);
        }
        world.settle();
        let stays = world.plain(shards - 1);
        world.subscribe(stays, 1, "$share/g/t", QoS::AtLeastOnce);
        world.settle();
        assert!(world.clients[stays].seen.is_empty());
        world.now = world.now + Duration::from_secs(2000);
        world.settle();
        let numbers: Vec<u64> = world.clients[stays].seen.iter().map(|s| s.number).collect();
        assert_eq!(numbers, [1, 2, 3, 4], "{shards} shards");
        assert_eq!(world.brokers[0].messages.len(), 0, "nothing is left behind");
    }
}

/// L9: a shard that gets a message for its plain subscribers concludes nothing for its groups.
#[test]
fn a_target_concludes_no_duty_from_its_own_tables() {
    let mut world = World::new(2);
    let (plain, member, other) = (world.plain(1), world.plain(1), world.plain(0));
    let publisher = world.plain(0);
    world.subscribe(plain, 1, "t", QoS::AtLeastOnce);
    world.subscribe(member, 1, "$share/g/t", QoS::AtLeastOnce);
    world.subscribe(other, 1, "$share/g/t", QoS::AtLeastOnce);
    world.settle();
    for number in 1..=10 {
        world.publish(publisher, "t", number, false);
    }
    world.settle();
    let count = |client: usize| world.clients[client].seen.len();
    assert_eq!(count(plain), 10);
    assert_eq!((count(member), count(other)), (5, 5), "by weight, each message once");
}
