//! With a journal: what a shared subscription's group is owed, and that each such debt is settled once
//! by name, whoever is known to be in the group by then (SHARDS.md J9).
#![forbid(unsafe_code)]

use crate::broker::durable::MessageId;
use crate::broker::testing::*;
use crate::broker::{Config, Record};
use crate::codec::mqtt::{Ack, Packet, QoS, ReasonCode, Version};

const GROUP: &str = "$share/g/t";

fn recording(shards: usize) -> World {
    World::with_config(shards, &Config { record_changes: true, ..Config::default() })
}

/// The messages that have a PUB, each with the groups that this names.
fn debts(world: &World) -> Vec<(MessageId, Vec<&str>)> {
    let debt = |record| match record {
        &Record::Publish { message, ref groups, .. } => {
            let keys = groups.iter().flat_map(|all| all.iter()).map(|group| group.key());
            let mut keys: Vec<&str> = keys.collect();
            keys.sort_unstable();
            Some((message, keys))
        }
        _ => None,
    };
    world.records.iter().filter_map(debt).collect()
}

/// The messages that the group is said to be done with, in that order.
fn settled(world: &World) -> Vec<MessageId> {
    let end = |record: &Record| match record {
        Record::GroupAck { group, message } if group.key() == "g/t" => Some(*message),
        _ => None,
    };
    world.records.iter().filter_map(end).collect()
}

fn names(world: &World) -> Vec<MessageId> {
    debts(world).into_iter().map(|(message, _)| message).collect()
}

/// A PUB names the groups that may keep its message, as far as its origin knows, and no others.
#[test]
fn a_pub_names_the_groups_that_it_is_given_to() {
    for shards in [1, 2] {
        let mut world = recording(shards);
        let (keeper, _) = world.join(&stay(Version::V5, &world.id_on(0, 0)));
        world.subscribe(keeper, "t", QoS::AtLeastOnce);
        let (member, _) = world.join(&hello(Version::V5, &world.id_on(shards - 1, 1)));
        world.subscribe(member, GROUP, QoS::AtLeastOnce);
        let (publisher, _) = world.join(&hello(Version::V5, &world.id_on(0, 2)));
        world.publish(publisher, "t", "nobody in it keeps it", QoS::AtLeastOnce, 1);
        let (lasting, _) = world.join(&stay(Version::V5, &world.id_on(shards - 1, 3)));
        world.subscribe(lasting, GROUP, QoS::AtLeastOnce);
        world.subscribe(lasting, "$share/h/+", QoS::AtLeastOnce);
        world.subscribe(lasting, "$share/i/+", QoS::AtMostOnce);
        world.publish(publisher, "t", "1", QoS::AtLeastOnce, 2);
        world.publish(publisher, "t", "2", QoS::ExactlyOnce, 3);
        let groups: Vec<_> = debts(&world).into_iter().map(|(_, groups)| groups).collect();
        assert_eq!(groups, [vec![], vec!["g/t", "h/+"], vec!["g/t", "h/+"]], "{shards} shards");
        assert!(!settled(&world).contains(&names(&world)[0]), "it is not owed that");
    }
}

/// What the last member that is known had is dropped with its session, sent or not, and that is said:
/// somebody may have joined elsewhere, where it would stay owed.
#[test]
fn a_group_ends_with_its_last_member_and_what_it_is_owed() {
    for shards in [1, 2] {
        let mut world = recording(shards);
        let last = world.id_on(shards - 1, 0);
        let (member, _) = world.join(&stay(Version::V5, &last));
        world.subscribe(member, GROUP, QoS::ExactlyOnce);
        let (publisher, _) = world.join(&hello(Version::V5, &world.id_on(0, 1)));
        world.publish(publisher, "t", "sent", QoS::AtLeastOnce, 1);
        world.cut(member);
        world.publish(publisher, "t", "queued", QoS::AtLeastOnce, 2);
        world.publish(publisher, "t", "queued too", QoS::ExactlyOnce, 3);
        world.join(&hello(Version::V5, &last));
        assert_eq!(names(&world).len(), 3);
        assert_eq!(settled(&world), names(&world), "{shards} shards");
    }
}

/// QoS 2 leaves behind its PUB: a group that is gone by then does not get it, and that is said.
#[test]
fn a_group_that_is_gone_at_the_commit_is_done_with_the_message() {
    for shards in [1, 2] {
        let mut world = recording(shards);
        let last = world.id_on(shards - 1, 0);
        let (member, _) = world.join(&stay(Version::V5, &last));
        world.subscribe(member, GROUP, QoS::ExactlyOnce);
        let (publisher, _) = world.join(&hello(Version::V5, &world.id_on(0, 1)));
        world.commits = false;
        world.publish(publisher, "t", "held", QoS::ExactlyOnce, 1);
        world.cut(member);
        world.connect(&hello(Version::V5, &last));
        assert_eq!((names(&world).len(), settled(&world)), (1, vec![]));
        world.commits = true;
        world.settle();
        assert_eq!(settled(&world), names(&world), "{shards} shards");
    }
}

/// A client leaves a group, and the group ends; what it had been sent it still acknowledges.
#[test]
fn an_acknowledgement_settles_for_a_group_that_is_gone() {
    let mut world = recording(1);
    let (member, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(member, GROUP, QoS::AtLeastOnce);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    world.publish(publisher, "t", "sent", QoS::AtLeastOnce, 1);
    let got = world.take(member);
    let [Got::Publish(sent)] = &got[..] else { panic!("{got:?}") };
    world.unsubscribe(member, GROUP);
    assert_eq!((names(&world).len(), settled(&world)), (1, vec![]));
    world.send(member, &Packet::PubAck(Ack::new(id(sent.id), ReasonCode::SUCCESS)));
    assert_eq!(settled(&world), names(&world));
}
