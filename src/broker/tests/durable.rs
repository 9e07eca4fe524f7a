//! With a journal: what waits for a commit, and what happens in the meantime.
#![forbid(unsafe_code)]

use crate::broker::Config;
use crate::broker::testing::*;
use crate::codec::mqtt::{
    Ack, Packet, Publish, QoS, ReasonCode, Subscribe, SubscribeFilter, SubscribeFilters,
    SubscriptionOptions, UserProperties, Version,
};

fn recording(shards: usize) -> World {
    World::with_config(shards, &Config { record_changes: true, ..Config::default() })
}

fn ack(n: u16) -> Ack<'static> {
    Ack::new(id(n), ReasonCode::SUCCESS)
}

fn commit(world: &mut World) {
    world.commits = true;
    world.settle();
    world.commits = false;
}

/// SHARDS.md J1, J2, H7: answers wait for their record, in order; QoS 1 is forwarded at once,
/// QoS 2 when it is committed.
#[test]
fn answers_wait_for_their_commit_in_order() {
    let mut world = recording(1);
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "durable", QoS::AtLeastOnce);
    let (plain, _) = world.join(&hello(Version::V5, "plain"));
    world.subscribe(plain, "plain", QoS::AtLeastOnce);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    world.commits = false;

    // Nobody durable wants this: at once.
    world.publish(publisher, "plain", "0", QoS::AtLeastOnce, 1);
    assert_eq!(world.take(publisher), [Got::PubAck(1, ReasonCode::SUCCESS)]);
    world.publish(publisher, "durable", "1", QoS::AtLeastOnce, 2);
    world.publish(publisher, "durable", "2", QoS::ExactlyOnce, 3);
    world.publish(publisher, "plain", "3", QoS::ExactlyOnce, 4);
    world.publish(publisher, "plain", "4", QoS::AtLeastOnce, 5);
    assert!(world.take(publisher).is_empty());
    assert_eq!(world.take_payloads(subscriber), ["1"]);
    assert_eq!(world.take_payloads(plain), ["0", "4"]);
    commit(&mut world);
    let expected = [
        Got::PubAck(2, ReasonCode::SUCCESS),
        Got::PubRec(3, ReasonCode::SUCCESS),
        Got::PubRec(4, ReasonCode::SUCCESS),
        Got::PubAck(5, ReasonCode::SUCCESS),
    ];
    assert_eq!(world.take(publisher), expected);
    assert_eq!(world.take_payloads(subscriber), ["2"]);
    assert_eq!(world.take_payloads(plain), ["3"]);
}

/// [MQTT-3.1.2-24]: an answer that waited and is too large is dropped, and counted as any other.
#[test]
fn a_late_answer_that_is_too_large_is_counted() {
    for mut world in [recording(1), World::new(1)] {
        let mut connect = stay(Version::V5, "c");
        connect.properties.maximum_packet_size = Some(100);
        let (client, _) = world.join(&connect);
        let options = SubscriptionOptions::new(QoS::AtLeastOnce);
        let lines = [SubscribeFilter { filter: "a", options }; 100];
        let subscribe = Subscribe {
            packet_id: id(1),
            subscription_id: None,
            user_properties: UserProperties::default(),
            filters: SubscribeFilters::new(&lines),
        };
        world.send_all(client, &[Packet::Subscribe(subscribe), Packet::PingReq]);
        assert_eq!(world.take(client), [Got::PingResp]);
        assert_eq!(world.brokers[0].stats().dropped_too_large, 1);
    }
}

/// SHARDS.md J4, J5: a parked answer dies with its connection; the PUBLISH sent again on the next
/// one is parked again, and published once.
#[test]
fn a_parked_answer_belongs_to_its_connection() {
    let mut world = recording(1);
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "t", QoS::AtLeastOnce);
    let (publisher, _) = world.join(&stay(Version::V5, "p"));
    world.commits = false;
    world.publish(publisher, "t", "1", QoS::ExactlyOnce, 1);
    world.cut(publisher);
    // CONNACK waits for what the session has said (H5).
    let publisher = world.connect(&stay(Version::V5, "p"));
    assert!(world.take(publisher).is_empty());
    commit(&mut world);
    assert!(matches!(world.take(publisher)[..], [Got::ConnAck { session_present: true, .. }]));
    assert_eq!(world.take_payloads(subscriber), ["1"], "forwarded though its publisher was gone");
    let again = Publish { dup: true, ..publish("t", b"1", QoS::ExactlyOnce, 1) };
    world.send(publisher, &Packet::Publish(again));
    commit(&mut world);
    assert_eq!(world.take(publisher), [Got::PubRec(1, ReasonCode::SUCCESS)]);
    assert!(world.take_payloads(subscriber).is_empty());
    world.send(publisher, &Packet::PubRel(ack(1)));
    assert!(world.take(publisher).is_empty(), "PUBCOMP waits for its record");
    commit(&mut world);
    assert_eq!(world.take(publisher), [Got::PubComp(1, ReasonCode::SUCCESS)]);
}

/// SHARDS.md J3: towards a durable session, PUBLISH at QoS 2 waits for ASSIGN, PUBREL for
/// RECEIVED.
#[test]
fn qos_2_towards_a_durable_session() {
    let mut world = recording(1);
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "t", QoS::ExactlyOnce);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    world.commits = false;
    world.publish(publisher, "t", "1", QoS::ExactlyOnce, 1);
    commit(&mut world);
    let got = world.take(subscriber);
    assert!(matches!(&got[..], [Got::Publish(p)] if p.id == 1 && !p.dup), "{got:?}");
    world.send(subscriber, &Packet::PubRec(ack(1)));
    assert!(world.take(subscriber).is_empty());
    commit(&mut world);
    assert_eq!(world.take(subscriber), [Got::PubRel(1, ReasonCode::SUCCESS)]);
    world.send(subscriber, &Packet::PubComp(ack(1)));
    commit(&mut world);
    assert_eq!(world.brokers[0].message_bytes(), 0);
}

/// An exchange whose ASSIGN was not committed when the connection went is sent on the next, for
/// the first time.
#[test]
fn an_assignment_committed_between_connections() {
    let mut world = recording(1);
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "t", QoS::ExactlyOnce);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    world.commits = false;
    // Waits for its ASSIGN only: the publisher's record is not asked for at QoS 1.
    world.publish(publisher, "t", "1", QoS::ExactlyOnce, 1);
    let through = std::mem::take(&mut world.uncommitted[0]);
    let now = world.now;
    world.brokers[0].handle_committed(now, through);
    world.settle();
    assert!(world.take(subscriber).is_empty());
    world.cut(subscriber);
    let client = world.connect(&stay(Version::V5, "s"));
    commit(&mut world);
    let got = world.take(client);
    assert!(
        matches!(&got[..], [Got::ConnAck { .. }, Got::Publish(p)] if p.id == 1 && !p.dup),
        "{got:?}"
    );
}

/// SHARDS.md H5: a PUBREL whose RECEIVED is committed between CONNECT and CONNACK comes behind
/// CONNACK, once.
#[test]
fn an_owed_pubrel_does_not_pass_connack() {
    let mut world = recording(1);
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "t", QoS::ExactlyOnce);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    world.publish(publisher, "t", "1", QoS::ExactlyOnce, 1);
    world.take(subscriber);
    world.commits = false;
    world.send(subscriber, &Packet::PubRec(ack(1)));
    world.cut(subscriber);
    let subscriber = world.connect(&stay(Version::V5, "s"));
    commit(&mut world);
    let got = world.take(subscriber);
    assert!(
        matches!(&got[..], [Got::ConnAck { .. }, Got::PubRel(1, ReasonCode::SUCCESS)]),
        "{got:?}"
    );
}

/// Everything above with a commit in each tick is as without: no difference is seen.
#[test]
fn with_commits_nothing_looks_different() {
    for shards in [1, 2] {
        let mut world = recording(shards);
        let (subscriber, _) = world.join(&stay(Version::V5, "s"));
        world.subscribe(subscriber, "t", QoS::ExactlyOnce);
        let (publisher, _) = world.join(&stay(Version::V311, "p"));
        for n in 1..=50 {
            world.publish(publisher, "t", &n.to_string(), QoS::ExactlyOnce, n);
            world.send(publisher, &Packet::PubRel(ack(n)));
        }
        let expected: Vec<String> = (1..=50).map(|n| n.to_string()).collect();
        assert_eq!(world.take_payloads(subscriber), expected);
        assert_eq!(world.take(publisher).len(), 100);
        world.cut(subscriber);
        for n in 1..=50 {
            world.publish(publisher, "t", &n.to_string(), QoS::AtLeastOnce, n);
        }
        let (subscriber, present) = world.join(&stay(Version::V5, "s"));
        assert!(present);
        assert_eq!(world.take_payloads(subscriber), expected);
    }
}
