//! Topic Aliases that the broker uses towards a client (3.3.2.3.4).

use noctule::codec::mqtt::{Connect, ConnectProperties, QoS, Version};

use super::notation::packet;
use super::support::packets::{connect, publish};
use super::support::{Broker, Wire, on_all};

use QoS::{AtLeastOnce, AtMostOnce};
use Version::{V5, V311};

const TOPIC: &str = "a/topic/that/is/worth/a/number";
const OTHER: &str = "another/topic/that/is/worth/one";

fn allowing(id: &str, aliases: Option<u16>) -> Connect<'_> {
    let properties = ConnectProperties {
        session_expiry_interval: Some(60),
        topic_alias_maximum: aliases,
        ..ConnectProperties::default()
    };
    Connect { clean_start: false, properties, ..connect(V5, id) }
}

fn online(broker: &Broker, connect: Connect<'_>) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect);
    wire
}

/// A client that allows one alias gets one, and a topic whose number was given to another has its
/// name again; clients that allow none get none, whoever else does.
///
/// v5: 3.1.2-26, 3.1.2-27, 3.3.2-8, 3.3.2-11
/// family: 50
#[test]
fn as_many_as_the_client_allows() {
    on_all(|broker| {
        let mut publisher = online(broker, connect(V311, "publisher"));
        let mut one = online(broker, allowing("one", Some(1)));
        let none = [None, Some(0)];
        let mut none: Vec<Wire> = ["absent", "zero"]
            .iter()
            .zip(none)
            .map(|(id, aliases)| online(broker, allowing(id, aliases)))
            .collect();
        none.push(online(broker, connect(V311, "old")));
        one.subscribe("#", AtMostOnce);
        none.iter_mut().for_each(|wire| wire.subscribe("#", AtMostOnce));
        for topic in [TOPIC, TOPIC, OTHER, OTHER, OTHER, TOPIC] {
            publisher.publish(publish(topic, AtMostOnce, b"x"));
        }
        let name =
            |topic: &str, properties: &str| packet(0x30, &format!("'{topic}' {{{properties}}} 78"));
        one.expect_bytes(&name(TOPIC, "23 0001"));
        one.expect_bytes(&name("", "23 0001"));
        one.expect_bytes(&name(OTHER, ""));
        one.expect_bytes(&name(OTHER, "23 0001"));
        one.expect_bytes(&name("", "23 0001"));
        one.expect_bytes(&name(TOPIC, ""));
        for wire in &mut none {
            for topic in [TOPIC, TOPIC, OTHER, OTHER, OTHER, TOPIC] {
                wire.expect_publish(topic, AtMostOnce, b"x");
                assert!(!wire.has_alias());
            }
        }
    });
}

/// What was sent by its number alone has its name when it is sent again on another connection, and
/// numbers are given anew there.
///
/// v5: 3.3.2-7
/// family: 50
#[test]
fn another_connection_knows_none() {
    on_all(|broker| {
        let mut publisher = online(broker, connect(V5, "publisher"));
        let mut wire = online(broker, allowing("s", Some(10)));
        wire.subscribe("#", AtLeastOnce);
        publisher.publish(publish(TOPIC, AtLeastOnce, b"1"));
        publisher.publish(publish(TOPIC, AtLeastOnce, b"2"));
        wire.expect_bytes(&packet(0x32, &format!("'{TOPIC}' 0001 {{23 0001}} 31")));
        wire.expect_bytes(&packet(0x32, "'' 0002 {23 0001} 32"));
        wire.reset();
        let mut wire = online(broker, allowing("s", Some(10)));
        wire.expect_bytes(&packet(0x3a, &format!("'{TOPIC}' 0001 {{}} 31")));
        wire.expect_bytes(&packet(0x3a, &format!("'{TOPIC}' 0002 {{}} 32")));
        publisher.publish(publish(TOPIC, AtLeastOnce, b"3"));
        wire.expect_bytes(&packet(0x32, &format!("'{TOPIC}' 0003 {{23 0001}} 33")));
    });
}

/// A packet that is too large for the client gives no topic a number; one that fits thanks to its
/// number is sent.
///
/// v5: 3.1.2-24, 3.1.2-25
/// family: 49, 50
#[test]
fn what_is_too_large_defines_nothing() {
    on_all(|broker| {
        let mut publisher = online(broker, connect(V5, "publisher"));
        let mut connect = allowing("s", Some(10));
        let by_name = packet(0x32, &format!("'{TOPIC}' 0001 {{}} 31323334")).len();
        connect.properties.maximum_packet_size = Some(by_name as u32);
        let mut wire = online(broker, connect);
        wire.subscribe("#", AtLeastOnce);
        publisher.publish(publish(TOPIC, AtLeastOnce, b"12345"));
        // As large as may be: by its name alone, for which there is just room.
        publisher.publish(publish(TOPIC, AtLeastOnce, b"1234"));
        wire.expect_bytes(&packet(0x32, &format!("'{TOPIC}' 0001 {{}} 31323334")));
        publisher.publish(publish(TOPIC, AtLeastOnce, b"1"));
        wire.expect_bytes(&packet(0x32, &format!("'{TOPIC}' 0002 {{23 0001}} 31")));
        publisher.publish(publish(TOPIC, AtLeastOnce, b"12345"));
        wire.expect_bytes(&packet(0x32, "'' 0003 {23 0001} 3132333435"));
    });
}
