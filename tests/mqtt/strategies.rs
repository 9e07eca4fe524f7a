//! Who of a shared subscription gets a message (4.8.2): the strategies of the configuration.

use std::time::Duration;

use noctule::codec::mqtt::{Packet, QoS, Version};

use super::support::packets::{connect, publish};
use super::support::{Broker, Next, Wire, on_all_at_once};

use QoS::{AtLeastOnce, AtMostOnce};
use Version::V5;

fn online(broker: &Broker, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(V5, id));
    wire
}

fn members(broker: &Broker, share: &str, count: usize) -> Vec<Wire> {
    let member = |n| {
        let mut wire = online(broker, &format!("{share}-{n}"));
        wire.subscribe(&format!("$share/{share}/#"), AtLeastOnce);
        wire
    };
    (0..count).map(member).collect()
}

/// How many messages come to each, until `wanted` have come in all; none is acknowledged.
fn counts(wires: &mut [Wire], wanted: usize) -> Vec<usize> {
    let mut counts = vec![0; wires.len()];
    let deadline = std::time::Instant::now() + Duration::from_secs(15);
    while counts.iter().sum::<usize>() < wanted {
        assert!(std::time::Instant::now() < deadline, "{counts:?} of {wanted} have come");
        for (wire, count) in wires.iter_mut().zip(&mut counts) {
            while let Next::Frame(frame) = wire.next_within(Duration::from_millis(1)) {
                assert_eq!(frame[0] >> 4, 3, "a PUBLISH");
                *count += 1;
            }
        }
    }
    wires.iter_mut().for_each(Wire::expect_nothing_before_ping);
    counts
}

fn publish_to_all(publisher: &mut Wire, count: u8) {
    for n in 0..count {
        publisher.publish(publish("a", AtLeastOnce, &[n]));
    }
}

/// The strategy of the flag holds for every group: with "sticky" one member gets all, and when it is
/// gone another one does.
///
/// family: 73
#[test]
fn the_default_strategy() {
    on_all_at_once(
        |builder| builder.arg("--shared-strategy").arg("sticky"),
        |broker, _| {
            let mut publishers = [online(broker, "p"), online(broker, "q"), online(broker, "r")];
            let mut members = members(broker, "g", 4);
            let all = 30;
            for left in (1..=4).rev() {
                publishers.iter_mut().for_each(|publisher| publish_to_all(publisher, 10));
                let counts = counts(&mut members, all);
                let holder = counts.iter().position(|count| *count == all);
                let holder = holder.unwrap_or_else(|| panic!("one gets all: {counts:?}"));
                // It has acknowledged nothing: that goes on to the next one.
                members[holder].unsubscribe("$share/g/#");
                assert_eq!(members.len(), left);
                drop(members.remove(holder));
                broker.wait_for_count("loop", "connections", |count| count == 2 + left as u64);
                if left > 1 {
                    let moved = self::counts(&mut members, all);
                    assert!(moved.contains(&all), "{moved:?}");
                    let holder = moved.iter().position(|count| *count == all).expect("one");
                    acknowledge(&mut members[holder], all);
                }
            }
        },
    );
}

/// Acknowledges what came first to this client.
fn acknowledge(wire: &mut Wire, count: usize) {
    for id in 1..=count as u16 {
        wire.send_ack(noctule::codec::mqtt::PacketKind::PubAck, id);
    }
}

/// Groups have the strategy of the first rule of the file whose pattern fits: one by topic, one by
/// the publisher, one to who has least to do, and the rest in turns.
///
/// family: 73
#[test]
fn strategies_by_group() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let rules = [
        ("topic*", "hash-topic"),
        ("*/never", "random"),
        ("publisher/#", "hash-client-id"),
        ("idle", "least-in-flight"),
        ("idle", "sticky"),
    ];
    let rule =
        |(group, strategy)| format!("[[shared]]\ngroup = '{group}'\nstrategy = '{strategy}'\n");
    let text: String = rules.map(rule).concat();
    std::fs::write(file.path(), text).expect("written");
    on_all_at_once(
        |builder| builder.arg("--config").arg(file.path()),
        |broker, combination| {
            let mut publishers: Vec<Wire> =
                (0..6).map(|n| online(broker, &format!("p-{n}"))).collect();
            let groups = ["topics", "publisher", "idle", "others"];
            let mut groups = groups.map(|share| members(broker, share, 3));
            let topics: Vec<String> = (0..8).map(|n| format!("topic/{n}")).collect();
            // Who got what: topic and publisher.
            let mut got = vec![vec![Vec::new(); 3]; 4];
            for (n, publisher) in publishers.iter_mut().enumerate() {
                for topic in &topics {
                    publisher.publish(publish(topic, AtMostOnce, &[n as u8]));
                }
            }
            publishers.iter_mut().for_each(Wire::expect_nothing_before_ping);
            let all = publishers.len() * topics.len();
            for (group, got) in groups.iter_mut().zip(&mut got) {
                let deadline = std::time::Instant::now() + Duration::from_secs(15);
                while got.iter().map(Vec::len).sum::<usize>() < all {
                    assert!(std::time::Instant::now() < deadline, "{got:?}");
                    for (wire, got) in group.iter_mut().zip(&mut *got) {
                        while let Next::Frame(frame) = wire.next_within(Duration::from_millis(1)) {
                            let side = noctule::codec::mqtt::Side::Client;
                            match noctule::codec::mqtt::decode(&frame, Some(V5), side) {
                                Ok(Packet::Publish(p)) => {
                                    got.push((p.topic.to_owned(), p.payload[0]));
                                }
                                other => panic!("{other:?}"),
                            }
                        }
                    }
                }
            }
            for topic in &topics {
                let has = got[0].iter().filter(|got| got.iter().any(|(t, _)| t == topic)).count();
                assert_eq!(has, 1, "{topic} goes to one member: {:?}", got[0]);
            }
            for n in 0..publishers.len() as u8 {
                let has = got[1].iter().filter(|got| got.iter().any(|(_, p)| *p == n)).count();
                assert_eq!(has, 1, "all of publisher {n} go to one member: {:?}", got[1]);
            }
            // With nothing in flight the least loaded are taken in turns.
            for got in &got[2..] {
                let counts: Vec<usize> = got.iter().map(Vec::len).collect();
                // Each shard has turns of its own, and knows of the others' members only how many
                // there are: even in the long run, and nobody goes without.
                let is_even = |count: &usize| match combination.shards {
                    1 => *count == all / 3,
                    _ => *count >= all / 12,
                };
                assert!(counts.iter().all(is_even), "{combination}: {counts:?}");
            }
        },
    );
}
