//! What the operator allows: capabilities, bounds of topics, keep alive, referral, words.
#![forbid(unsafe_code)]

use crate::broker::testing::*;
use crate::broker::{Config, Refer, Referral};
use crate::codec::mqtt::{
    Connect, ConnectProperties, Packet, PublishProperties, QoS, ReasonCode, Subscribe,
    SubscribeFilter, SubscribeFilters, SubscriptionOptions, UserProperties, Version,
};

use Version::{V5, V31, V311};

fn subscribe(world: &mut World, client: Client, filters: &[&str], id_: Option<u32>) -> Vec<Got> {
    let options = SubscriptionOptions::new(QoS::ExactlyOnce);
    let lines: Vec<_> = filters.iter().map(|filter| SubscribeFilter { filter, options }).collect();
    let subscribe = Subscribe {
        packet_id: id(1),
        subscription_id: id_,
        user_properties: UserProperties::default(),
        filters: SubscribeFilters::new(&lines),
    };
    world.send(client, &Packet::Subscribe(subscribe));
    world.take(client)
}

fn connack(world: &mut World, connect: &Connect<'_>) -> ReasonCode {
    let client = world.connect(connect);
    match world.take(client)[..] {
        [Got::ConnAck { reason, .. }] => reason,
        ref other => panic!("{other:?}"),
    }
}

/// What CONNACK says is off is a Protocol Error of 5.0 (3.2.2.3.11 to 3.2.2.3.13), refused line by
/// line in 3.1.1, and nothing that 3.1 could express.
///
/// family: 76
#[test]
fn kinds_of_subscriptions_that_are_off() {
    let config = Config {
        wildcard_subscriptions: false,
        subscription_identifiers: false,
        shared_subscriptions: false,
        ..Config::default()
    };
    let mut world = World::with_config(1, &config);
    for (filter, id_, reason) in [
        ("a/+", None, ReasonCode::WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED),
        ("$share/g/a", None, ReasonCode::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED),
        ("a", Some(1), ReasonCode::SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED),
    ] {
        let (client, _) = world.join(&hello(V5, "c"));
        let got = subscribe(&mut world, client, &["fine", filter], id_);
        assert_eq!(got, [Got::Disconnect(reason)]);
        assert!(world.is_closed(client));
    }
    let (client, _) = world.join(&hello(V311, "c"));
    let got = subscribe(&mut world, client, &["fine", "a/#", "$share/g/a"], None);
    assert_eq!(got, [Got::SubAck(1, vec![2, 0x80, 0x80])]);
    let (client, _) = world.join(&hello(V31, "d"));
    let got = subscribe(&mut world, client, &["fine", "a/#"], None);
    assert_eq!(got, [Got::SubAck(1, vec![2, 0])]);
    assert_eq!(world.brokers[0].stats.refused_subscription_kind, 6);
    let (client, _) = world.join(&hello(V5, "e"));
    world.connack(client, |p| {
        assert_eq!(p.wildcard_subscription_available, Some(false));
        assert_eq!(p.subscription_ids_available, Some(false));
        assert_eq!(p.shared_subscription_available, Some(false));
    });
}

/// `[MQTT-3.2.2-10]`: any QoS may be asked for, and is granted as far as it is supported.
///
/// family: 20
#[test]
fn the_granted_qos_is_capped() {
    let config = Config { maximum_qos: QoS::AtMostOnce, ..Config::default() };
    let mut world = World::with_config(1, &config);
    for version in [V31, V311, V5] {
        let (client, _) = world.join(&hello(version, "c"));
        assert_eq!(subscribe(&mut world, client, &["a"], None), [Got::SubAck(1, vec![0])]);
        world.publish(client, "b", "x", QoS::AtLeastOnce, 1);
        assert!(world.is_closed(client));
    }
    assert_eq!(world.brokers[0].stats.refused_maximum_qos, 3);
}

/// Topics up to the bounds are taken, and one beyond them is not, wherever it stands.
#[test]
fn bounds_of_topics() {
    let config = Config { topic_bytes_max: 8, topic_levels_max: 3, ..Config::default() };
    let mut world = World::with_config(1, &config);
    let longest = ["a/b/c", "12345678", "1/345/78"];
    let beyond = ["a/b/c/d", "123456789", "a/b/c/"];
    for version in [V31, V311, V5] {
        let is_v5 = version == V5;
        let (client, _) = world.join(&hello(version, "c"));
        for topic in longest {
            assert!(!matches!(
                subscribe(&mut world, client, &[topic], None)[..],
                [Got::SubAck(1, ref codes)] if codes != &[2]
            ));
            world.publish(client, topic, "x", QoS::AtMostOnce, 0);
            assert_eq!(world.take_payloads(client), ["x"]);
        }
        let refused = match version {
            V31 => 0,
            V311 => 0x80,
            V5 => ReasonCode::TOPIC_FILTER_INVALID.0,
        };
        let got = subscribe(&mut world, client, &beyond, None);
        assert_eq!(got, [Got::SubAck(1, vec![refused; 3])]);
        for (number, topic) in beyond.into_iter().enumerate() {
            for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
                let (client, _) = world.join(&hello(version, "p"));
                world.publish(client, topic, "x", qos, 7);
                let reason = ReasonCode::TOPIC_NAME_INVALID;
                let expected = match qos {
                    _ if !is_v5 => vec![],
                    QoS::AtMostOnce => vec![Got::Disconnect(reason)],
                    QoS::AtLeastOnce => vec![Got::PubAck(7, reason)],
                    QoS::ExactlyOnce => vec![Got::PubRec(7, reason)],
                };
                assert_eq!(world.take(client), expected, "{number} {qos:?}");
                let ends = !is_v5 || qos == QoS::AtMostOnce;
                assert_eq!(world.is_closed(client), ends);
            }
            let mut connect = hello(version, "w");
            connect.will = will(topic, "x", 0);
            let reason = connack(&mut world, &connect);
            let expected =
                if is_v5 { ReasonCode::TOPIC_NAME_INVALID } else { ReasonCode::NOT_AUTHORIZED };
            assert_eq!(reason, expected);
        }
    }
    // A Response Topic.
    let (client, _) = world.join(&hello(V5, "r"));
    let mut message = publish("a", b"x", QoS::AtLeastOnce, 3);
    message.properties.response_topic = Some("a/b/c/d");
    world.send(client, &Packet::Publish(message));
    assert_eq!(world.take(client), [Got::PubAck(3, ReasonCode::TOPIC_NAME_INVALID)]);
    assert_eq!(world.brokers[0].stats.refused_topic, 3 * (3 + 9 + 3) + 1);
}

/// CVE-2020-13849: 5.0 is told the Server Keep Alive, and it holds; before, a client that asks for
/// more, or for none, is refused.
///
/// family: 24
#[test]
fn the_longest_keep_alive() {
    let config = Config { keep_alive_max_secs: 30, ..Config::default() };
    let mut world = World::with_config(1, &config);
    for version in [V31, V311, V5] {
        for (asked, may) in [(30, true), (1, true), (31, version == V5), (0, version == V5)] {
            let connect = Connect { keep_alive: asked, ..hello(version, "c") };
            let expected = if may { ReasonCode::SUCCESS } else { ReasonCode::NOT_AUTHORIZED };
            assert_eq!(connack(&mut world, &connect), expected, "{version:?} {asked}");
        }
    }
    assert_eq!(world.brokers[0].stats.refused_keep_alive, 4);
    let (client, _) = world.join(&hello(V5, "d"));
    assert_eq!(world.connack(client, |p| p.server_keep_alive), Some(30));
    world.advance(44);
    assert!(!world.is_closed(client));
    world.advance(2);
    assert_eq!(world.take(client), [Got::Disconnect(ReasonCode::KEEP_ALIVE_TIMEOUT)]);
}

/// Only who asks is told, and only what can begin a topic `[MQTT-3.1.2-28]`.
#[test]
fn response_information() {
    let told = |world: &mut World, client_id: &str, asked| {
        let properties =
            ConnectProperties { request_response_information: asked, ..Default::default() };
        let (client, _) = world.join(&Connect { properties, ..hello(V5, client_id) });
        world.connack(client, |p| p.response_information.map(String::from))
    };
    let template = Some("r/{client_id}".to_owned());
    let config = Config { response_information: template, ..Config::default() };
    let mut world = World::with_config(1, &config);
    assert_eq!(told(&mut world, "c", Some(true)).as_deref(), Some("r/c"));
    for (client_id, asked) in [("c", Some(false)), ("c", None), ("#", Some(true))] {
        assert_eq!(told(&mut world, client_id, asked), None);
    }
    assert_eq!(told(&mut World::new(1), "c", Some(true)), None);
    // It is one client's alone: below it lies no other's, and nothing of the server's.
    assert_eq!(told(&mut world, "c/d", Some(true)), None);
    assert_eq!(told(&mut world, "$d", Some(true)).as_deref(), Some("r/$d"));
    for (template, client_id, expected) in
        [("{client_id}/r", "$SYS", None), ("{client_id}", "$share", None), ("r", "c/d", Some("r"))]
    {
        world.brokers[0].config.response_information = Some(template.to_owned());
        assert_eq!(told(&mut world, client_id, Some(true)).as_deref(), expected, "{template}");
    }
}

/// A server that is not to be used says which is; 3.x has a code, and no place for that.
#[test]
fn referral() {
    for (when, at_connect, at_end) in [
        (Refer::AtShutdown, None, ReasonCode::USE_ANOTHER_SERVER),
        (Refer::Temporarily, Some(ReasonCode::USE_ANOTHER_SERVER), ReasonCode::USE_ANOTHER_SERVER),
        (Refer::Permanently, Some(ReasonCode::SERVER_MOVED), ReasonCode::SERVER_MOVED),
    ] {
        let referral = Some(Referral { server_reference: "b:1883".to_owned(), when });
        let mut world = World::new(1);
        let (online, _) = world.join(&hello(V5, "online"));
        world.brokers[0].config.referral = referral;
        if let Some(reason) = at_connect {
            let client = world.connect(&hello(V5, "c"));
            assert_eq!(world.take(client), [Got::ConnAck { session_present: false, reason }]);
            let told = world.connack(client, |p| p.server_reference.map(String::from));
            assert_eq!(told.as_deref(), Some("b:1883"));
            for version in [V31, V311] {
                let reason = connack(&mut world, &hello(version, "c"));
                assert_eq!(reason, ReasonCode::SERVER_UNAVAILABLE);
            }
            assert_eq!(world.brokers[0].stats.connects_referred, 3);
        }
        let now = world.now;
        world.brokers[0].handle_shutdown(now);
        world.settle();
        assert_eq!(world.take(online), [Got::Disconnect(at_end)]);
    }
}

/// What says that it is UTF-8 is; 0 and none say nothing.
///
/// family: 58
#[test]
fn payload_format() {
    let properties = |format| PublishProperties { payload_format: format, ..Default::default() };
    for check in [true, false] {
        let config = Config { payload_format_check: check, ..Config::default() };
        let mut world = World::with_config(1, &config);
        for (format, payload, fits) in [
            (Some(true), &b"\xff"[..], !check),
            (Some(true), "\u{fc}".as_bytes(), true),
            (Some(false), b"\xff", true),
            (None, b"\xff", true),
        ] {
            for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
                let (client, _) = world.join(&hello(V5, "c"));
                let mut message = publish("a", payload, qos, 5);
                message.properties = properties(format);
                world.send(client, &Packet::Publish(message));
                let ok = ReasonCode::NO_MATCHING_SUBSCRIBERS;
                let reason = if fits { ok } else { ReasonCode::PAYLOAD_FORMAT_INVALID };
                let expected = match qos {
                    QoS::AtMostOnce if fits => vec![],
                    QoS::AtMostOnce => vec![Got::Disconnect(reason)],
                    QoS::AtLeastOnce => vec![Got::PubAck(5, reason)],
                    QoS::ExactlyOnce => vec![Got::PubRec(5, reason)],
                };
                assert_eq!(world.take(client), expected);
            }
            let mut connect = hello(V5, "w");
            connect.will = will("a", "", 0);
            let will = connect.will.as_mut().unwrap();
            (will.payload, will.properties) = (payload, properties(format));
            let reason = connack(&mut world, &connect);
            let refused = ReasonCode::PAYLOAD_FORMAT_INVALID;
            assert_eq!(reason, if fits { ReasonCode::SUCCESS } else { refused });
        }
        let expected = if check { 4 } else { 0 };
        assert_eq!(world.brokers[0].stats.refused_payload_format, expected);
    }
}

/// A CONNACK or DISCONNECT that a client cannot take is cut: first the words, then Response
/// Information and Server Reference `[MQTT-3.1.2-24]`.
#[test]
fn what_may_be_left_out_is_left_out_for_small_clients() {
    let config = Config { response_information: Some("r".repeat(300)), ..Config::default() };
    let mut world = World::with_config(1, &config);
    let small = |client_id| {
        let mut connect = hello(V5, client_id);
        connect.properties.request_response_information = Some(true);
        connect.properties.maximum_packet_size = Some(64);
        connect
    };
    let (online, _) = world.join(&small("small"));
    assert_eq!(world.connack(online, |p| p.response_information.map(String::from)), None);

    let server_reference = "s".repeat(300);
    let referral = Some(Referral { server_reference, when: Refer::Temporarily });
    world.brokers[0].config.referral = referral;
    let reason = ReasonCode::USE_ANOTHER_SERVER;
    assert_eq!(connack(&mut world, &small("other")), reason);
    let now = world.now;
    world.brokers[0].handle_shutdown(now);
    world.settle();
    assert_eq!(world.take(online), [Got::Disconnect(reason)]);
}
