//! A disk that takes nothing, under a real broker: what would have to be stored is refused or waits,
//! everything else goes on, and when the disk is back so is the broker, with all that it promised.
//! The errors are put between the journal and its files (`io/tap.rs`).
#![forbid(unsafe_code)]
// Tests wait for a real process on the real clock.
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

mod support;

use std::path::PathBuf;

use noctule::codec::mqtt::{Connect, Packet, PacketKind, Publish, QoS, ReasonCode, Version};
use support::packets::{connect, filter, lasting, publish};
use support::{Broker, Combination, Wire, combinations};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V31, V311};

/// A broker, and the file that says what fails.
struct Rig {
    broker: Broker,
    faults: PathBuf,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn start(combination: Combination) -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let faults = folder.path().join("faults");
        let broker = Broker::build(combination).arg("--rig-faults").arg(&faults).start();
        Self { broker, faults, _folder: folder }
    }

    fn say(&self, faults: &str) {
        std::fs::write(&self.faults, faults).expect("say what fails");
    }

    fn online(&self, connect: Connect<'_>) -> Wire {
        let mut wire = self.broker.connect();
        wire.handshake(connect);
        wire
    }
}

/// Non-durable traffic at every QoS passes.
fn live_traffic_passes(rig: &Rig) {
    let mut to = rig.online(connect(V5, "live"));
    to.subscribe("live", ExactlyOnce);
    let mut from = rig.online(connect(V311, "talker"));
    for qos in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
        from.publish(publish("live", qos, b"x"));
        to.take_publish("live", qos, b"x");
    }
}

/// What would have to be stored is refused: by its code in 5.0; in older versions without an
/// acknowledgement, by the end of the connection.
fn what_is_durable_is_refused(rig: &Rig) {
    let mut new = rig.online(connect(V5, "refused"));
    for (qos, kind) in [(AtLeastOnce, PacketKind::PubAck), (ExactlyOnce, PacketKind::PubRec)] {
        new.send(&Packet::Publish(publish("d", qos, b"refused")));
        assert_eq!(new.expect_ack(kind, 1), ReasonCode::QUOTA_EXCEEDED);
        let retained = Publish { retain: true, ..publish("nobody", qos, b"refused") };
        new.send(&Packet::Publish(retained));
        assert_eq!(new.expect_ack(kind, 1), ReasonCode::QUOTA_EXCEEDED);
    }
    for version in [V31, V311] {
        for qos in [AtLeastOnce, ExactlyOnce] {
            let mut old = rig.online(connect(version, "refused"));
            old.send(&Packet::Publish(publish("d", qos, b"refused")));
            old.expect_closed();
        }
    }
    let mut session = rig.broker.connect();
    session.send(&Packet::Connect(lasting(V5, "another")));
    match session.recv() {
        Packet::ConnAck(ack) => assert_eq!(ack.reason, ReasonCode::SERVER_UNAVAILABLE),
        other => panic!("{other:?}"),
    }
    let mut session = rig.broker.connect();
    session.send(&Packet::Connect(lasting(V311, "another")));
    session.expect_hex("20 02 00 03");
}

/// ENOSPC, EROFS, EIO at a write, and a sync that fails behind a write that was made.
#[test]
fn a_disk_that_takes_nothing() {
    for combination in combinations() {
        for fault in ["write ENOSPC", "all EROFS", "write EIO", "sync EIO"] {
            println!("{fault} on {combination}");
            let rig = Rig::start(combination);
            let mut durable = rig.online(lasting(V5, "durable"));
            durable.subscribe("d", ExactlyOnce);
            rig.say(fault);
            // Who finds out waits: what it has sent is written as soon as that is possible.
            let mut first = rig.online(connect(V5, "first"));
            first.send(&Packet::Publish(publish("d", AtLeastOnce, b"first")));
            rig.broker.wait_for_count("journal", "is_down", |down| down == 1);
            durable.take_publish("d", AtLeastOnce, b"first");
            what_is_durable_is_refused(&rig);
            live_traffic_passes(&rig);
            // A subscription that would have to be stored is refused.
            durable.send(&Packet::Subscribe(noctule::codec::mqtt::Subscribe {
                packet_id: noctule::codec::mqtt::PacketId::new(9).expect("not zero"),
                subscription_id: None,
                user_properties: Default::default(),
                filters: noctule::codec::mqtt::SubscribeFilters::new(&[filter("e", AtLeastOnce)]),
            }));
            // At once: it waits for nothing of what the session had to have recorded before.
            match durable.recv() {
                Packet::SubAck(ack) => {
                    assert_eq!(ack.codes, [ReasonCode::IMPLEMENTATION_SPECIFIC_ERROR.0]);
                }
                other => panic!("{other:?}"),
            }
            // By itself, when the disk does.
            rig.say("");
            assert_eq!(first.expect_ack(PacketKind::PubAck, 1), ReasonCode::SUCCESS);
            rig.broker.wait_for_count("journal", "is_down", |down| down == 0);
            for qos in [AtLeastOnce, ExactlyOnce] {
                first.publish(publish("d", qos, b"later"));
                durable.take_publish("d", qos, b"later");
            }
            let stats = rig.broker.stats();
            let journal = &stats["total"]["journal"];
            assert!(journal["errors"].as_u64() > Some(0), "{journal}");
            assert_eq!(journal["downs"], 1, "{journal}");
            assert!(journal["commits"].as_u64() > Some(3), "{journal}");
            assert!(stats["total"]["broker"]["refused_disk"].as_u64() >= Some(8), "{stats}");
            assert!(
                stats["total"]["broker"]["refused_disk_session"].as_u64() >= Some(3),
                "{stats}"
            );
            // And what it acknowledged after all of this is there.
            drop(durable);
            first.publish(publish("d", ExactlyOnce, b"last"));
            let data = rig.broker.data();
            rig.broker.kill();
            let broker = Broker::build(combination).data(&data).start();
            assert!(!broker.stderr().contains("damaged"), "{}", broker.stderr());
            let mut durable = broker.connect();
            assert!(durable.handshake(lasting(V5, "durable")));
            durable.take_publish("d", ExactlyOnce, b"last");
            durable.expect_nothing_before_ping();
            broker.stop();
        }
    }
}

/// A disk that answers late makes wait who waits for it, and nobody else.
#[test]
fn a_slow_disk() {
    std::thread::scope(|scope| {
        for combination in combinations() {
            scope.spawn(move || {
                let rig = Rig::start(combination);
                let mut durable = rig.online(lasting(V5, "durable"));
                durable.subscribe("d", AtLeastOnce);
                rig.say("all 4000");
                let mut slow = rig.online(connect(V5, "slow"));
                slow.send(&Packet::Publish(publish("d", AtLeastOnce, b"x")));
                slow.expect_nothing_before_ping();
                live_traffic_passes(&rig);
                slow.expect_nothing_before_ping();
                rig.say("");
                assert_eq!(slow.expect_ack(PacketKind::PubAck, 1), ReasonCode::SUCCESS);
                rig.broker.stop();
            });
        }
    });
}
