//! Message Expiry Interval on every way that a message can wait.

use std::time::Duration;

use noctule::codec::mqtt::{
    Connect, ConnectProperties, Packet, PacketKind, Publish, PublishProperties, QoS, Version, Will,
};

use super::support::packets::{connect, publish};
use super::support::{Broker, Wire, on_all, on_all_at_once};

use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};
use Version::{V5, V311};

/// Longer than the short interval, and more than two whole seconds.
const WAIT: Duration = Duration::from_millis(2100);
const SHORT: Option<u32> = Some(1);
const LONG: Option<u32> = Some(100);

fn online(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(version, id));
    wire
}

fn expiring(seconds: Option<u32>) -> PublishProperties<'static> {
    PublishProperties { message_expiry_interval: seconds, ..PublishProperties::default() }
}

/// The next packet is this PUBLISH, with this DUP; returns its packet id and the time that is left.
fn next(wire: &mut Wire, payload: &[u8], dup: bool) -> (u16, Option<u32>) {
    let [only] = next_of(wire, [payload], dup);
    only
}

/// The next packets are these, in whatever order: there is none between QoS 1 and 2.
fn next_of<const N: usize>(
    wire: &mut Wire,
    payloads: [&[u8]; N],
    dup: bool,
) -> [(u16, Option<u32>); N] {
    let mut all = payloads.map(|_| None);
    for _ in 0..N {
        let Packet::Publish(got) = wire.recv() else { panic!("expected {payloads:?}") };
        let place = payloads.iter().position(|payload| *payload == got.payload);
        let place = place.unwrap_or_else(|| panic!("expected {payloads:?}, got {got:?}"));
        assert!(got.dup == dup && all[place].is_none(), "{got:?}");
        let id = got.packet_id.map_or(0, |id| id.get());
        all[place] = Some((id, got.properties.message_expiry_interval));
    }
    all.map(|one| one.expect("as many as were expected"))
}

fn has_waited(left: Option<u32>) -> bool {
    left.is_some_and(|left| (90..=98).contains(&left))
}

/// Behind a full window: what expires there is dropped, the others say what is left. What has been
/// sent is sent again, expired or not, and goes on with its exchange; its interval counts down too.
///
/// v5: 3.3.2-5, 3.3.2-6, 4.3.3-7
/// family: 45, 46
#[test]
fn behind_a_full_window_and_sent_again() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let properties = ConnectProperties {
                receive_maximum: Some(2),
                session_expiry_interval: Some(60),
                ..ConnectProperties::default()
            };
            let session = Connect { clean_start: false, properties, ..connect(V5, "subscriber") };
            let mut wire = broker.connect();
            wire.handshake(session);
            wire.subscribe("a", ExactlyOnce);
            let mut publisher = online(broker, V5, "publisher");
            for (payload, qos, seconds) in [
                (b"1", ExactlyOnce, SHORT),
                (b"2", AtLeastOnce, LONG),
                (b"3", AtLeastOnce, SHORT),
                (b"4", AtLeastOnce, LONG),
                (b"5", AtLeastOnce, None),
            ] {
                let properties = expiring(seconds);
                publisher.publish(Publish { properties, ..publish("a", qos, payload) });
            }
            let [(first, short), (second, left)] = next_of(&mut wire, [b"1", b"2"], false);
            assert_eq!(short, SHORT);
            assert!(left.is_some_and(|left| (99..=100).contains(&left)), "{left:?}");
            wire.expect_nothing_before_ping();
            std::thread::sleep(WAIT);
            wire.reset();
            let mut wire = broker.connect();
            assert!(wire.handshake(session));
            let [(id, _), (other, left)] = next_of(&mut wire, [b"1", b"2"], true);
            assert_eq!((id, other), (first, second));
            assert!(has_waited(left), "{left:?}");
            wire.expect_nothing_before_ping();
            wire.send_ack(PacketKind::PubRec, first);
            wire.expect_ack(PacketKind::PubRel, first);
            wire.send_ack(PacketKind::PubComp, first);
            wire.send_ack(PacketKind::PubAck, second);
            let (_, left) = next(&mut wire, b"4", false);
            assert!(has_waited(left), "{left:?}");
            assert_eq!(next(&mut wire, b"5", false).1, None);
            wire.expect_nothing_before_ping();
            assert_eq!(broker.count("broker", "dropped_expired"), 1);
        },
    );
}

/// A Will's interval begins when it is published, not when it is left, and then counts as any
/// other's.
///
/// v5: 3.3.2-5, 3.3.2-6
/// family: 46
#[test]
fn of_a_will() {
    on_all_at_once(
        |builder| builder,
        |broker, _| {
            let session = ConnectProperties {
                session_expiry_interval: Some(60),
                ..ConnectProperties::default()
            };
            let sleeper =
                Connect { clean_start: false, properties: session, ..connect(V5, "sleeper") };
            let mut wire = broker.connect();
            wire.handshake(sleeper);
            wire.subscribe("will/+", AtLeastOnce);
            wire.send_hex("e0 00");
            wire.expect_closed();
            let mut owners: Vec<_> = [("will/short", SHORT), ("will/long", LONG)]
                .map(|(topic, seconds)| {
                    let will = Will {
                        topic,
                        payload: b"w",
                        qos: AtLeastOnce,
                        retain: true,
                        delay_interval: 0,
                        properties: expiring(seconds),
                    };
                    let mut wire = broker.connect();
                    wire.handshake(Connect { will: Some(will), ..connect(V5, topic) });
                    wire
                })
                .into();
            // This time is the connection's, not the message's.
            std::thread::sleep(WAIT);
            let mut live = online(broker, V5, "live");
            live.subscribe("will/+", AtLeastOnce);
            owners.drain(..).for_each(Wire::reset);
            for _ in 0..2 {
                let Packet::Publish(got) = live.recv() else { panic!("a PUBLISH") };
                let whole = if got.topic == "will/long" { LONG } else { SHORT };
                assert_eq!(got.properties.message_expiry_interval, whole, "{got:?}");
            }
            std::thread::sleep(WAIT);
            let mut wire = broker.connect();
            assert!(wire.handshake(sleeper));
            let (id, left) = next(&mut wire, b"w", false);
            assert!(has_waited(left), "{left:?}");
            wire.send_ack(PacketKind::PubAck, id);
            wire.expect_nothing_before_ping();
            let mut late = online(broker, V5, "late");
            late.subscribe("will/+", AtMostOnce);
            assert!(has_waited(next(&mut late, b"w", false).1));
            late.expect_nothing_before_ping();
        },
    );
}

/// An interval of 0 is one that is over at once: who is there may have the message, and nobody
/// later.
///
/// family: 46
#[test]
fn of_zero() {
    on_all(|broker| {
        let mut publisher = online(broker, V5, "publisher");
        let message = Publish {
            retain: true,
            properties: expiring(Some(0)),
            ..publish("a", AtLeastOnce, b"0")
        };
        let mut sleeper = broker.connect();
        let session = Connect { clean_start: false, ..connect(V311, "sleeper") };
        sleeper.handshake(session);
        sleeper.subscribe("a", AtLeastOnce);
        sleeper.send_hex("e0 00");
        sleeper.expect_closed();
        publisher.publish(message);
        let mut late = online(broker, V5, "late");
        late.subscribe("a", AtMostOnce);
        late.expect_nothing_before_ping();
        let mut sleeper = broker.connect();
        assert!(sleeper.handshake(session));
        sleeper.expect_nothing_before_ping();
    });
}
