//! With a journal: what waits for a commit, and what happens in the meantime.
#![forbid(unsafe_code)]

use crate::broker::durable::MessageId;
use crate::broker::testing::*;
use crate::broker::{Config, Durability, Level, Record};
use crate::codec::mqtt::{
    Ack, Connect, Disconnect, Packet, Publish, QoS, ReasonCode, Subscribe, SubscribeFilter,
    SubscribeFilters, SubscriptionOptions, UserProperties, Version,
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

/// SHARDS.md J2: a QoS 2 message that nobody durable wants waits behind one that is being recorded (H7).
/// Who subscribes meanwhile gets it: so it has a record, or it would come again after a crash, and one
/// in its turn, since a restart delivers in the order of the names.
#[test]
fn what_waits_is_recorded_because_somebody_durable_may_come() {
    let mut world = recording(1);
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "durable", QoS::ExactlyOnce);
    let (publisher, _) = world.join(&stay(Version::V5, "p"));
    world.publish(publisher, "late", "0", QoS::ExactlyOnce, 1);
    assert_eq!(published(&world).len(), 0, "nothing is parked");
    assert_eq!(world.take(publisher), [Got::PubRec(1, ReasonCode::NO_MATCHING_SUBSCRIBERS)]);
    world.commits = false;
    world.publish(publisher, "durable", "1", QoS::ExactlyOnce, 2);
    world.publish(publisher, "late", "2", QoS::ExactlyOnce, 3);
    world.publish(publisher, "nobody", "3", QoS::AtLeastOnce, 4);
    let options = SubscriptionOptions::new(QoS::ExactlyOnce);
    world.send_subscribe(subscriber, "late", options, None);
    world.publish(publisher, "late", "4", QoS::ExactlyOnce, 5);
    let names: Vec<u64> = published(&world).iter().map(|id| id.sequence()).collect();
    assert!(names.len() == 3 && names.is_sorted(), "{names:?}");
    commit(&mut world);
    assert!(world.take_first(subscriber, |got| matches!(got, Got::SubAck(..))).is_some());
    assert_eq!(world.take_payloads(subscriber), ["1", "2", "4"]);
    let expected = [
        Got::PubRec(2, ReasonCode::SUCCESS),
        Got::PubRec(3, ReasonCode::SUCCESS),
        Got::PubAck(4, ReasonCode::NO_MATCHING_SUBSCRIBERS),
        Got::PubRec(5, ReasonCode::SUCCESS),
    ];
    assert_eq!(world.take(publisher), expected);
    // Its packet id is the journal's, too: its release is recorded.
    world.send(publisher, &Packet::PubRel(ack(3)));
    let is_released = |record: &Record| matches!(record, Record::Released { .. });
    assert!(world.records.iter().any(is_released));
}

/// [MQTT-4.6.0-5], SHARDS.md H7: what a client's earlier connection has published and waits for its
/// record is not overtaken by what its next one publishes for nobody durable. No other client waits.
#[test]
fn a_client_that_comes_again_does_not_overtake_itself() {
    let mut world = recording(1);
    let (durable, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(durable, "t", QoS::AtLeastOnce);
    let (plain, _) = world.join(&hello(Version::V5, "plain"));
    world.subscribe(plain, "t", QoS::AtLeastOnce);
    let (other, _) = world.join(&hello(Version::V5, "other"));
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    world.commits = false;
    world.publish(publisher, "t", "1", QoS::ExactlyOnce, 1);
    let mut end = Disconnect::new(ReasonCode::SUCCESS);
    end.session_expiry_interval = Some(0);
    world.send(durable, &Packet::Disconnect(end));
    world.send(publisher, &Packet::Disconnect(Disconnect::new(ReasonCode::SUCCESS)));
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    world.publish(publisher, "t", "2", QoS::ExactlyOnce, 1);
    world.publish(other, "t", "3", QoS::ExactlyOnce, 1);
    assert_eq!(world.take_payloads(plain), ["3"]);
    commit(&mut world);
    assert_eq!(world.take_payloads(plain), ["1", "2"]);
    assert_eq!(world.take(publisher), [Got::PubRec(1, ReasonCode::SUCCESS)]);
    // All of it is over: the next one waits for nobody.
    world.cut(publisher);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    world.publish(publisher, "t", "4", QoS::ExactlyOnce, 1);
    assert_eq!(world.take_payloads(plain), ["4"]);
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

/// A durable subscriber, and a publisher that has sent "1" at QoS 2 and was cut off before that was
/// committed.
fn cut_before_commit(publisher: &Connect<'_>) -> (World, Client) {
    let mut world = recording(1);
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "t", QoS::AtLeastOnce);
    let (publisher, _) = world.join(publisher);
    world.commits = false;
    world.publish(publisher, "t", "1", QoS::ExactlyOnce, 1);
    world.cut(publisher);
    (world, subscriber)
}

/// [MQTT-3.8.3-3]: No Local is by client id, and what waited for its commit knows it when the session
/// that published it is over and the client has another.
#[test]
fn no_local_outlives_the_session_of_the_publisher() {
    let (mut world, subscriber) = cut_before_commit(&hello(Version::V5, "p"));
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let options =
        SubscriptionOptions { no_local: true, ..SubscriptionOptions::new(QoS::AtLeastOnce) };
    world.subscribe_with(publisher, "t", options, None);
    world.take(publisher);
    commit(&mut world);
    assert_eq!(world.take_payloads(subscriber), ["1"]);
    assert!(world.take_payloads(publisher).is_empty(), "it is its own");
}

/// SHARDS.md J4, J5: a parked answer dies with its connection; the PUBLISH sent again on the next
/// one is parked again, and published once.
#[test]
fn a_parked_answer_belongs_to_its_connection() {
    let (mut world, subscriber) = cut_before_commit(&stay(Version::V5, "p"));
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
    // Twice, as after a PUBREC that came twice: whoever is told that the packet id is free uses it.
    world.send(publisher, &Packet::PubRel(ack(1)));
    assert!(world.take(publisher).is_empty(), "PUBCOMP waits for its record");
    commit(&mut world);
    let unknown = ReasonCode::PACKET_IDENTIFIER_NOT_FOUND;
    let expected = [Got::PubComp(1, ReasonCode::SUCCESS), Got::PubComp(1, unknown)];
    assert_eq!(world.take(publisher), expected);
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

/// SHARDS.md J1, MQTT-3.1.2-4: CONNACK says that there is no session any more, whoever has ended it. A
/// CONNECT that was taken over before its own answer has, and the end may be undone by a crash.
#[test]
fn connack_waits_for_the_end_of_the_session_before() {
    let mut world = recording(1);
    world.join(&stay(Version::V5, "s"));
    world.commits = false;
    let first = world.connect(&hello(Version::V5, "s"));
    assert_eq!(world.take(first), [], "the end is not committed");
    let second = world.connect(&hello(Version::V5, "s"));
    assert!(world.is_closed(first));
    assert_eq!(world.take(second), [], "nor is it now");
    let other = world.connect(&hello(Version::V5, "other"));
    assert!(matches!(world.take(other)[..], [Got::ConnAck { .. }]), "who has nothing to wait for");
    commit(&mut world);
    let success = Got::ConnAck { session_present: false, reason: ReasonCode::SUCCESS };
    assert_eq!(world.take(second), [success]);
    // It is over: another one has nothing to wait for.
    world.commits = false;
    let third = world.connect(&hello(Version::V5, "s"));
    assert!(matches!(world.take(third)[..], [Got::ConnAck { .. }]));
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

fn published(world: &World) -> Vec<MessageId> {
    let name = |record: &Record| match record {
        Record::Publish { message, .. } => Some(*message),
        _ => None,
    };
    world.records.iter().filter_map(name).collect()
}

/// SHARDS.md J6: the name of a message goes with it to whatever shard, and whoever is done with it
/// says so by that name: acknowledged, dropped for want of room, or expired.
#[test]
fn the_end_of_a_message_is_said_by_its_name() {
    for shards in [1, 2] {
        let config = Config { record_changes: true, queue_len_max: 1, ..Config::default() };
        let mut world = World::with_config(shards, &config);
        let (from, to) = (world.id_on(0, 0), world.id_on(shards - 1, 1));
        let (subscriber, _) = world.join(&stay(Version::V5, &to));
        world.subscribe(subscriber, "t", QoS::ExactlyOnce);
        let (publisher, _) = world.join(&hello(Version::V5, &from));
        world.publish(publisher, "t", "1", QoS::AtLeastOnce, 1);
        world.publish(publisher, "t", "2", QoS::ExactlyOnce, 2);
        assert_eq!(world.take_payloads(subscriber), ["1", "2"]);
        world.cut(subscriber);
        let expiring = |n| {
            let mut message = publish("t", b"x", QoS::AtLeastOnce, n);
            message.properties.message_expiry_interval = Some(1);
            Packet::Publish(message)
        };
        world.send(publisher, &expiring(3));
        world.publish(publisher, "t", "dropped", QoS::AtLeastOnce, 4);
        world.advance(2);
        world.publish(publisher, "t", "kept", QoS::AtLeastOnce, 5);
        let names = published(&world);
        assert_eq!(names.len(), 5);
        let acked = |name| {
            let is_it = |record: &&Record| {
                matches!(record, Record::Acked { client_id, message }
                    if **client_id == *to && *message == name)
            };
            world.records.iter().filter(is_it).count()
        };
        let ends: Vec<_> = names.iter().map(|name| acked(*name)).collect();
        assert_eq!(ends, [1, 0, 1, 1, 0]);
        for (kind, count) in [("Assign", 1), ("Received", 1), ("Done", 1)] {
            let named = world.records.iter().filter(|record| match record {
                Record::Assign { message, .. } => kind == "Assign" && *message == Some(names[1]),
                Record::Received { message, .. } => {
                    kind == "Received" && *message == Some(names[1])
                }
                Record::Done { message, .. } => kind == "Done" && *message == Some(names[1]),
                _ => false,
            });
            assert_eq!(named.count(), count, "{kind}");
        }
    }
}

/// SHARDS.md J7: a subscription says which messages its shard had seen, those of other shards included
/// that had nothing for it. A QoS 2 message counts, because a Will at QoS 2 does not wait for its record.
#[test]
fn a_subscription_says_what_was_seen() {
    let mut world = recording(2);
    let (here, there) = (world.id_on(0, 0), world.id_on(1, 0));
    let (keeper, _) = world.join(&stay(Version::V5, &here));
    world.subscribe(keeper, "own", QoS::AtLeastOnce);
    let (publisher, _) = world.join(&hello(Version::V5, &world.id_on(0, 1)));
    world.publish(publisher, "own", "1", QoS::AtLeastOnce, 1);
    world.publish(publisher, "own", "2", QoS::ExactlyOnce, 2);
    let last = published(&world)[1];
    let (other, _) = world.join(&stay(Version::V5, &there));
    for filter in ["own", "$share/g/own"] {
        world.records.clear();
        world.subscribe(other, filter, QoS::AtLeastOnce);
        let seen = world.records.iter().find_map(|record| match record {
            Record::Subscribe { seen, filter: of, .. } if **of == *filter => Some(seen.clone()),
            _ => None,
        });
        assert_eq!(seen.as_deref(), Some(&[last][..]), "{filter}");
    }
}

/// SHARDS.md J8: while the disk takes nothing, what would have to be recorded is refused before any
/// copy of it leaves; the rest goes on, and so does everything when the disk does.
#[test]
fn without_a_disk_what_lasts_is_refused() {
    let mut world = recording(1);
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "lasts", QoS::AtMostOnce);
    world.subscribe(subscriber, "durable/#", QoS::ExactlyOnce);
    let (plain, _) = world.join(&hello(Version::V5, "plain"));
    world.subscribe(plain, "#", QoS::ExactlyOnce);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    let (older, _) = world.join(&hello(Version::V311, "older"));
    world.brokers[0].handle_disk(true);
    for (n, qos) in [(1, QoS::AtLeastOnce), (2, QoS::ExactlyOnce)] {
        world.publish(publisher, "durable/t", "refused", qos, n);
    }
    let retained = Publish { retain: true, ..publish("plain", b"x", QoS::AtMostOnce, 0) };
    world.send(publisher, &Packet::Publish(retained));
    world.publish(older, "durable/t", "refused", QoS::AtLeastOnce, 1);
    let refused = ReasonCode::QUOTA_EXCEEDED;
    assert_eq!(world.take(publisher), [Got::PubAck(1, refused), Got::PubRec(2, refused)]);
    assert!(world.take(older).is_empty() && world.is_closed(older));
    assert!(world.take_payloads(plain).is_empty() && world.take_payloads(subscriber).is_empty());
    world.publish(publisher, "plain", "goes on", QoS::AtLeastOnce, 1);
    assert_eq!(world.take(publisher), [Got::PubAck(1, ReasonCode::SUCCESS)]);
    assert_eq!(world.take_payloads(plain), ["goes on"]);
    let new = world.connect(&stay(Version::V5, "new"));
    let answer = Got::ConnAck { session_present: false, reason: ReasonCode::SERVER_UNAVAILABLE };
    assert_eq!(world.take(new), [answer]);
    world.join(&hello(Version::V5, "short"));
    let filters =
        [SubscribeFilter { filter: "x", options: SubscriptionOptions::new(QoS::AtMostOnce) }];
    let subscribe = Subscribe {
        packet_id: id(7),
        subscription_id: None,
        user_properties: UserProperties::default(),
        filters: SubscribeFilters::new(&filters),
    };
    world.send(subscriber, &Packet::Subscribe(subscribe));
    assert_eq!(world.take(subscriber), [Got::SubAck(7, vec![0x83])]);
    let stats = world.brokers[0].stats();
    // The retained one at QoS 0 has no answer: it is dropped for the disk, and not for memory.
    assert_eq!((stats.refused_disk, stats.dropped_disk, stats.dropped_memory), (4, 1, 0));
    assert_eq!(world.brokers[0].stats().refused_disk_session, 2);
    world.brokers[0].handle_disk(false);
    world.publish(publisher, "durable/t", "again", QoS::ExactlyOnce, 2);
    assert_eq!(world.take(publisher), [Got::PubRec(2, ReasonCode::SUCCESS)]);
    assert_eq!(world.take_payloads(subscriber), ["again"]);
}

/// Levels: what has none is not recorded and waits for nothing, be it by its topic or by the
/// listener of its session.
#[test]
fn what_has_no_level_waits_for_nothing() {
    let durability = Durability {
        default: Level::Power,
        listeners: Vec::new(),
        topics: vec![("fast/#".into(), Level::None), ("slow/#".into(), Level::Process)],
    };
    let config = Config { record_changes: true, durability, ..Config::default() };
    let mut world = World::with_config(1, &config);
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "#", QoS::AtLeastOnce);
    let (publisher, _) = world.join(&hello(Version::V5, "p"));
    world.commits = false;
    world.publish(publisher, "fast/t", "1", QoS::AtLeastOnce, 1);
    world.publish(publisher, "slow/t", "2", QoS::AtLeastOnce, 2);
    assert_eq!(world.take(publisher), [Got::PubAck(1, ReasonCode::SUCCESS)]);
    assert_eq!(published(&world).len(), 1);
    commit(&mut world);
    assert_eq!(world.take(publisher), [Got::PubAck(2, ReasonCode::SUCCESS)]);

    let durability =
        Durability { listeners: vec![Some(Level::None)], ..Durability::of_all(Level::Power) };
    let config = Config { record_changes: true, durability, ..Config::default() };
    let mut world = World::with_config(1, &config);
    world.commits = false;
    let (subscriber, _) = world.join(&stay(Version::V5, "s"));
    world.subscribe(subscriber, "#", QoS::ExactlyOnce);
    world.publish(subscriber, "t", "1", QoS::ExactlyOnce, 1);
    world.send(subscriber, &Packet::PubRel(ack(1)));
    world.cut(subscriber);
    assert!(world.records.is_empty(), "{:?}", world.records);
}

/// SHARDS.md J9: a group with a durable member is done with a message whoever of it took it, and
/// however.
#[test]
fn a_group_says_when_it_is_done() {
    for (qos, expected) in [(QoS::AtMostOnce, 3), (QoS::AtLeastOnce, 3), (QoS::ExactlyOnce, 3)] {
        let mut world = recording(2);
        let (keeper, _) = world.join(&stay(Version::V5, &world.id_on(0, 0)));
        world.subscribe(keeper, "$share/g/t", QoS::AtLeastOnce);
        world.cut(keeper);
        let (member, _) = world.join(&hello(Version::V5, &world.id_on(1, 0)));
        world.subscribe(member, "$share/g/t", qos);
        let (publisher, _) = world.join(&hello(Version::V5, &world.id_on(0, 1)));
        for n in 1..=3 {
            world.publish(publisher, "t", "x", QoS::ExactlyOnce, n);
        }
        assert_eq!(world.take_payloads(member).len(), 3);
        let names = published(&world);
        let settled = world.records.iter().filter(|record| {
            matches!(record, Record::GroupAck { group, message }
                if group.key() == "g/t" && names.contains(message))
        });
        assert_eq!(settled.count(), expected, "{qos:?}");
    }
}

/// A retained message is nobody's Will: what its publisher has left stays set.
#[test]
fn a_will_is_settled_once() {
    let mut world = recording(1);
    let mut connect = stay(Version::V5, "c");
    connect.will = will("w", "will", 0);
    let (client, _) = world.join(&connect);
    let retained = Publish { retain: true, ..publish("r", b"x", QoS::AtMostOnce, 0) };
    world.send(client, &Packet::Publish(retained));
    let settled = |world: &World| {
        let is_end = |record: &&Record| {
            matches!(record, Record::WillDeleted { .. } | Record::Publish { is_will: true, .. })
        };
        world.records.iter().filter(is_end).count()
    };
    assert_eq!(settled(&world), 0);
    world.cut(client);
    assert_eq!(settled(&world), 1, "nobody wanted it, and it is over");
}

/// [MQTT-3.3.2-5]: a message that has its packet id and has never left expires like any other,
/// whether its connection is gone or its commit comes late.
#[test]
fn what_never_left_expires() {
    for is_cut in [true, false] {
        let mut world = recording(1);
        let (subscriber, _) = world.join(&stay(Version::V5, "s"));
        world.subscribe(subscriber, "a", QoS::ExactlyOnce);
        let (publisher, _) = world.join(&hello(Version::V5, "p"));
        world.commits = false;
        let mut message = publish("a", b"1", QoS::ExactlyOnce, 1);
        message.properties.message_expiry_interval = Some(5);
        world.send(publisher, &Packet::Publish(message));
        // It is committed and forwarded, and its packet id is not.
        let through = std::mem::take(&mut world.uncommitted[0]);
        let now = world.now;
        world.brokers[0].handle_committed(now, through);
        world.settle();
        assert!(world.uncommitted[0] > 0, "there is a packet id to commit");
        if is_cut {
            world.cut(subscriber);
            commit(&mut world);
            world.advance(6);
        } else {
            world.advance(6);
            commit(&mut world);
        }
        world.commits = true;
        assert!(world.take_payloads(subscriber).is_empty());
        let (again, is_present) = world.join(&stay(Version::V5, "s"));
        assert!(is_present && world.take_payloads(again).is_empty());
        assert_eq!(world.brokers[0].stats.dropped_expired, 1);
        // Its packet id is free, and what is still in time arrives.
        world.publish(publisher, "a", "2", QoS::ExactlyOnce, 2);
        assert_eq!(world.take_payloads(again), ["2"]);
    }
}
