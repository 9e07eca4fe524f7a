//! The client against a server of a few lines: the test itself, which reads what was sent and
//! encodes the answers.
#![forbid(unsafe_code)]

use super::*;
use crate::codec::mqtt::{
    ConnAck, ConnAckProperties, Side, SubAck, SubscriptionOptions, decode, frame_len,
};

/// A client, its clock, and a line for each event.
struct World {
    client: Client,
    now: Time,
    events: Vec<String>,
}

fn options(version: Version) -> Options {
    Options { keep_alive: 10, ..Options::new(version, "c") }
}

fn durable(version: Version) -> Options {
    Options { clean_start: false, session_expiry_interval: 100, ..options(version) }
}

fn line(event: &Event<'_>) -> String {
    match event {
        Event::Connected { session_present, .. } => format!("connected {session_present}"),
        Event::Message(publish) => format!(
            "message {} {} qos {}{}",
            publish.topic,
            String::from_utf8_lossy(publish.payload),
            publish.qos as u8,
            if publish.dup { " dup" } else { "" }
        ),
        Event::Received { packet_id } => format!("received {}", packet_id.get()),
        Event::Acked { packet_id, reason, .. } => format!("acked {} {reason}", packet_id.get()),
        Event::Subscribed { packet_id, codes, .. } => {
            format!("subscribed {} {codes:?}", packet_id.get())
        }
        Event::Unsubscribed { packet_id, codes } => {
            format!("unsubscribed {} {codes:?}", packet_id.get())
        }
        Event::Discarded { packet_id } => format!("discarded {}", packet_id.get()),
        Event::Pong => "pong".into(),
        Event::Auth(_) => "auth".into(),
        Event::Disconnected(ending) => format!("ended: {ending}"),
    }
}

impl World {
    fn new(options: Options) -> Self {
        Self { client: Client::new(options), now: Time::from_nanos(1), events: Vec::new() }
    }

    /// Connected, its CONNECT read, with these properties in the CONNACK.
    fn connected(options: Options, properties: ConnAckProperties<'_>) -> Self {
        let mut world = Self::new(options);
        world.reconnect(false, properties);
        world
    }

    fn reconnect(&mut self, session_present: bool, properties: ConnAckProperties<'_>) {
        self.client.connect(self.now);
        assert!(matches!(self.sent()[..], [0x10, ..]));
        let reason = ReasonCode::SUCCESS;
        self.receive(&Packet::ConnAck(ConnAck { session_present, reason, properties }));
    }

    fn version(&self) -> Version {
        self.client.options().version
    }

    fn receive(&mut self, packet: &Packet<'_>) {
        let mut bytes = Vec::new();
        packet.encode(self.version(), &mut bytes);
        self.receive_bytes(&bytes);
    }

    fn receive_bytes(&mut self, bytes: &[u8]) {
        let events = &mut self.events;
        self.client.handle_bytes(self.now, bytes, &mut |_, event| events.push(line(&event)));
    }

    fn pass(&mut self, seconds: u32) {
        self.now = self.now.plus_secs(seconds);
        let events = &mut self.events;
        self.client.handle_timeout(self.now, &mut |_, event| events.push(line(&event)));
    }

    fn cut(&mut self) {
        let events = &mut self.events;
        self.client.handle_closed(&mut |_, event| events.push(line(&event)));
    }

    fn sent(&mut self) -> Vec<u8> {
        self.client.take_output()
    }

    /// The kinds and ids of what was sent.
    fn sent_packets(&mut self) -> String {
        let bytes = self.sent();
        let mut rest = &bytes[..];
        let mut lines = Vec::new();
        while !rest.is_empty() {
            let len = frame_len(rest).unwrap().unwrap();
            let packet = decode(&rest[..len], Some(self.version()), Side::Server).unwrap();
            let with = |kind: &str, ack: &Ack<'_>| match ack.reason {
                ReasonCode::SUCCESS => format!("{kind} {}", ack.packet_id.get()),
                reason => format!("{kind} {} 0x{:02X}", ack.packet_id.get(), reason.0),
            };
            lines.push(match &packet {
                Packet::Publish(publish) => format!(
                    "PUBLISH{} {}",
                    if publish.dup { " dup" } else { "" },
                    publish.packet_id.map_or(0, PacketId::get)
                ),
                Packet::PubAck(ack) => with("PUBACK", ack),
                Packet::PubRec(ack) => with("PUBREC", ack),
                Packet::PubRel(ack) => with("PUBREL", ack),
                Packet::PubComp(ack) => with("PUBCOMP", ack),
                Packet::Disconnect(disconnect) => {
                    format!("DISCONNECT 0x{:02X}", disconnect.reason.0)
                }
                other => other.kind().name().to_owned(),
            });
            rest = &rest[len..];
        }
        lines.join(", ")
    }

    fn events(&mut self) -> String {
        std::mem::take(&mut self.events).join(", ")
    }

    fn publish(&mut self, qos: QoS) -> Result<Option<PacketId>, RequestError> {
        self.client.publish(self.now, &Message::new("t", b"x", qos))
    }
}

fn ack(id: u16) -> Ack<'static> {
    Ack::new(PacketId::new(id).unwrap(), ReasonCode::SUCCESS)
}

fn failed(id: u16, reason: ReasonCode) -> Ack<'static> {
    Ack::new(PacketId::new(id).unwrap(), reason)
}

fn message(id: u16, qos: QoS, dup: bool) -> Packet<'static> {
    Packet::Publish(Publish {
        dup,
        qos,
        retain: false,
        topic: "a/b",
        packet_id: PacketId::new(id),
        properties: PublishProperties::default(),
        payload: b"hi",
    })
}

#[test]
fn connects_in_every_version() {
    for (version, hex) in [
        (Version::V31, &b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x0a\x00\x01c"[..]),
        (Version::V311, b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x0a\x00\x01c"),
        (Version::V5, b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x01c"),
    ] {
        let mut world = World::new(options(version));
        world.client.connect(world.now);
        assert_eq!(world.sent(), hex, "{version}");
        assert_eq!(world.publish(QoS::AtMostOnce), Err(RequestError::NotConnected));
        let connack: &[u8] = match version {
            Version::V5 => &[0x20, 3, 0, 0, 0],
            _ => &[0x20, 2, 0, 0],
        };
        world.receive_bytes(connack);
        assert_eq!(world.events(), "connected false");
        assert!(world.client.is_connected());
    }
}

#[test]
fn a_refusal_ends_the_connection() {
    let mut world = World::new(options(Version::V311));
    world.client.connect(world.now);
    world.receive_bytes(&[0x20, 2, 0, 5]);
    assert_eq!(world.events(), "ended: the server refused the connection: Not authorized (0x87)");
    assert!(world.client.is_over());
    world.cut();
    assert_eq!(world.events(), "", "told once");
    world.reconnect(false, ConnAckProperties::default());
    assert!(world.client.is_connected());
}

#[test]
fn frames_may_be_cut_anywhere_and_glued_together() {
    let mut bytes = vec![0x20, 2, 0, 0];
    for packet in [message(0, QoS::AtMostOnce, false), message(9, QoS::AtLeastOnce, false)] {
        packet.encode(Version::V311, &mut bytes);
    }
    let large = Publish {
        payload: &[b'z'; 300],
        ..match message(0, QoS::AtMostOnce, false) {
            Packet::Publish(publish) => publish,
            _ => unreachable!(),
        }
    };
    Packet::Publish(large).encode(Version::V311, &mut bytes);
    let mut whole = None;
    for piece in [usize::MAX, 1, 2, 3, 7, 64] {
        let mut world = World::new(options(Version::V311));
        world.client.connect(world.now);
        world.sent();
        for bytes in bytes.chunks(piece.min(bytes.len())) {
            world.receive_bytes(bytes);
        }
        assert_eq!(world.sent_packets(), "PUBACK 9");
        let events = world.events();
        assert_eq!(events.matches("message").count(), 3);
        assert_eq!(whole.get_or_insert(events.clone()), &events, "pieces of {piece}");
        assert!(world.client.inbound.partial.is_empty());
    }
}

/// `[MQTT-4.3.2-1]`, `[MQTT-4.3.3-1]` to `[MQTT-4.3.3-7]`
#[test]
fn our_messages_are_acknowledged() {
    for version in [Version::V31, Version::V311, Version::V5] {
        let mut world = World::connected(options(version), ConnAckProperties::default());
        assert_eq!(world.publish(QoS::AtMostOnce), Ok(None));
        assert_eq!(world.publish(QoS::AtLeastOnce), Ok(PacketId::new(1)));
        assert_eq!(world.publish(QoS::ExactlyOnce), Ok(PacketId::new(2)));
        assert_eq!(world.sent_packets(), "PUBLISH 0, PUBLISH 1, PUBLISH 2");
        world.events();
        world.receive(&Packet::PubRec(ack(2)));
        assert_eq!(world.sent_packets(), "PUBREL 2");
        world.receive(&Packet::PubAck(ack(1)));
        world.receive(&Packet::PubComp(ack(2)));
        assert_eq!(world.events(), "received 2, acked 1 Success (0x00), acked 2 Success (0x00)");
        assert_eq!(world.client.unacknowledged(), 0);
        assert_eq!(world.sent_packets(), "");
    }
}

/// PUBREC with an error ends the exchange (4.3.3); PUBREC for what we do not know gets its PUBREL.
#[test]
fn refused_messages_and_unknown_ids() {
    let mut world = World::connected(options(Version::V5), ConnAckProperties::default());
    world.publish(QoS::ExactlyOnce).unwrap();
    world.sent();
    world.events();
    world.receive(&Packet::PubRec(failed(1, ReasonCode::QUOTA_EXCEEDED)));
    assert_eq!(world.events(), "acked 1 Quota exceeded (0x97)");
    assert_eq!(world.sent_packets(), "");
    world.receive(&Packet::PubRec(ack(7)));
    assert_eq!(world.sent_packets(), "PUBREL 7 0x92");
    world.receive(&Packet::PubRel(ack(8)));
    assert_eq!(world.sent_packets(), "PUBCOMP 8 0x92");
    world.receive(&Packet::PubComp(ack(7)));
    assert!(world.client.is_connected());
    world.receive(&Packet::PubAck(ack(9)));
    assert_eq!(world.sent_packets(), "DISCONNECT 0x82");
    assert!(world.events().starts_with("ended: the server broke the protocol: PUBACK"));
}

/// `[MQTT-4.9.0-1]` to `[MQTT-4.9.0-3]`, `[MQTT-3.3.4-7]`
#[test]
fn the_servers_receive_maximum_holds_messages_back() {
    let properties = ConnAckProperties { receive_maximum: Some(2), ..Default::default() };
    let mut world = World::connected(options(Version::V5), properties);
    world.publish(QoS::AtLeastOnce).unwrap();
    world.publish(QoS::ExactlyOnce).unwrap();
    assert_eq!(world.publish(QoS::AtLeastOnce), Err(RequestError::WindowFull));
    assert_eq!(world.publish(QoS::AtMostOnce), Ok(None), "QoS 0 is not held back");
    let filter =
        [SubscribeFilter { filter: "a", options: SubscriptionOptions::new(QoS::AtMostOnce) }];
    world.client.subscribe(world.now, &filter, None, UserProperties::EMPTY).unwrap();
    world.receive(&Packet::PubRec(ack(2)));
    assert!(!world.client.may_publish());
    world.receive(&Packet::PubComp(ack(2)));
    assert_eq!(world.publish(QoS::AtLeastOnce), Ok(PacketId::new(4)));
}

/// `[MQTT-4.4.0-1]`, `[MQTT-3.3.1-1]`, `[MQTT-4.6.0-1]`
#[test]
fn a_resumed_session_sends_again_in_order() {
    for version in [Version::V31, Version::V311, Version::V5] {
        let mut world = World::connected(durable(version), ConnAckProperties::default());
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce, QoS::ExactlyOnce] {
            world.publish(qos).unwrap();
        }
        world.publish(QoS::AtMostOnce).unwrap();
        world.receive(&Packet::PubRec(ack(3)));
        world.cut();
        assert_eq!(world.publish(QoS::AtLeastOnce), Err(RequestError::NotConnected));
        world.events();
        world.reconnect(true, ConnAckProperties::default());
        assert_eq!(world.events(), "connected true");
        assert_eq!(world.sent_packets(), "PUBLISH dup 1, PUBLISH dup 2, PUBREL 3");
        assert_eq!(world.publish(QoS::AtLeastOnce), Ok(PacketId::new(4)));
    }
}

#[test]
fn a_resume_respects_a_smaller_receive_maximum() {
    let mut world = World::connected(durable(Version::V5), ConnAckProperties::default());
    for _ in 0..3 {
        world.publish(QoS::AtLeastOnce).unwrap();
    }
    world.cut();
    let properties = ConnAckProperties { receive_maximum: Some(1), ..Default::default() };
    world.reconnect(true, properties);
    assert_eq!(world.sent_packets(), "PUBLISH dup 1");
    assert!(!world.client.may_publish());
    world.receive(&Packet::PubAck(ack(1)));
    world.receive(&Packet::PubAck(ack(2)));
    assert_eq!(world.sent_packets(), "PUBLISH dup 2, PUBLISH dup 3");
}

#[test]
fn a_lost_session_discards_what_was_open() {
    let mut world = World::connected(durable(Version::V5), ConnAckProperties::default());
    world.publish(QoS::AtLeastOnce).unwrap();
    world.receive(&message(5, QoS::ExactlyOnce, false));
    world.cut();
    world.events();
    world.reconnect(false, ConnAckProperties::default());
    assert_eq!(world.sent_packets(), "");
    assert_eq!(world.events(), "discarded 1, connected false");
    world.receive(&message(5, QoS::ExactlyOnce, false));
    assert_eq!(world.events(), "message a/b hi qos 2", "another session's id");
}

/// `[MQTT-3.2.2-4]`
#[test]
fn a_session_that_we_did_not_want_is_an_error() {
    let mut world = World::new(options(Version::V5));
    world.reconnect(true, ConnAckProperties::default());
    assert!(world.events().starts_with("ended: the server broke the protocol: Session Present"));
}

/// `[MQTT-4.3.3-8]` to `[MQTT-4.3.3-12]`
#[test]
fn inbound_exactly_once_over_connections() {
    let mut world = World::connected(durable(Version::V311), ConnAckProperties::default());
    world.events();
    world.receive(&message(5, QoS::ExactlyOnce, false));
    world.receive(&message(5, QoS::ExactlyOnce, true));
    assert_eq!(world.sent_packets(), "PUBREC 5, PUBREC 5");
    world.cut();
    world.reconnect(true, ConnAckProperties::default());
    world.receive(&message(5, QoS::ExactlyOnce, true));
    world.receive(&Packet::PubRel(ack(5)));
    world.receive(&message(5, QoS::ExactlyOnce, false));
    assert_eq!(world.sent_packets(), "PUBREC 5, PUBCOMP 5, PUBREC 5");
    assert_eq!(world.events().matches("message").count(), 2);
}

#[test]
fn manual_acknowledgement() {
    let manual = Options { manual_acks: true, ..options(Version::V5) };
    let mut world = World::connected(manual, ConnAckProperties::default());
    world.receive(&message(1, QoS::AtLeastOnce, false));
    world.receive(&message(2, QoS::ExactlyOnce, false));
    assert_eq!(world.sent_packets(), "");
    let id = |id| PacketId::new(id).unwrap();
    assert!(world.client.acknowledge(world.now, id(1), ReasonCode::SUCCESS));
    assert!(world.client.acknowledge(world.now, id(2), ReasonCode::QUOTA_EXCEEDED));
    assert!(!world.client.acknowledge(world.now, id(2), ReasonCode::SUCCESS));
    assert_eq!(world.sent_packets(), "PUBACK 1, PUBREC 2 0x97");
    world.receive(&message(2, QoS::ExactlyOnce, false));
    assert_eq!(world.events().matches("message").count(), 3, "refused, so the id is new");
}

/// `[MQTT-3.3.2-8]` to `[MQTT-3.3.2-12]`
#[test]
fn inbound_topic_aliases() {
    let with = |topic, alias| {
        let topic_alias = std::num::NonZeroU16::new(alias);
        let Packet::Publish(publish) = message(0, QoS::AtMostOnce, false) else { unreachable!() };
        let properties = PublishProperties { topic_alias, ..publish.properties };
        Packet::Publish(Publish { topic, properties, ..publish })
    };
    let aliasing = Options { topic_alias_maximum: 2, ..options(Version::V5) };
    let mut world = World::connected(aliasing, ConnAckProperties::default());
    world.events();
    world.receive(&with("x", 2));
    world.receive(&with("", 2));
    world.receive(&with("y", 2));
    world.receive(&with("", 2));
    let topics: Vec<_> = ["x", "x", "y", "y"].map(|t| format!("message {t} hi qos 0")).into();
    assert_eq!(world.events(), topics.join(", "));
    world.receive(&with("", 1));
    assert_eq!(world.sent_packets(), "DISCONNECT 0x82");
    world.reconnect(false, ConnAckProperties::default());
    world.receive(&with("x", 3));
    assert_eq!(world.sent_packets(), "DISCONNECT 0x94");
}

/// `[MQTT-3.1.2-20]`, `[MQTT-3.2.2-21]`
#[test]
fn keep_alive() {
    let mut world = World::connected(options(Version::V311), ConnAckProperties::default());
    assert_eq!(world.client.next_deadline(), Some(world.now.plus_secs(10)));
    world.pass(9);
    assert_eq!(world.sent_packets(), "");
    world.pass(1);
    assert_eq!(world.sent_packets(), "PINGREQ");
    world.receive(&Packet::PingResp);
    assert_eq!(world.client.next_deadline(), Some(world.now.plus_secs(10)));
    world.pass(10);
    world.pass(9);
    assert!(world.client.is_connected());
    world.events();
    world.pass(1);
    assert_eq!(world.events(), "ended: the server did not answer our PINGREQ in time");

    let server = ConnAckProperties { server_keep_alive: Some(3), ..Default::default() };
    let mut world = World::connected(options(Version::V5), server);
    assert_eq!(world.client.next_deadline(), Some(world.now.plus_secs(3)));
    let server = ConnAckProperties { server_keep_alive: Some(0), ..Default::default() };
    world.cut();
    world.reconnect(false, server);
    assert_eq!(world.client.next_deadline(), None);
}

#[test]
fn connack_may_not_take_for_ever() {
    let mut world = World::new(options(Version::V5));
    world.client.connect(world.now);
    let due = world.client.next_deadline().unwrap();
    assert_eq!(due, world.now + Options::new(Version::V5, "").connect_timeout);
    world.pass(3600);
    assert_eq!(world.events(), "ended: the server did not answer our CONNECT in time");
}

#[test]
fn what_the_server_does_not_support_is_not_sent() {
    let properties = ConnAckProperties {
        maximum_qos: Some(QoS::AtLeastOnce),
        retain_available: Some(false),
        maximum_packet_size: Some(20),
        topic_alias_maximum: Some(1),
        ..Default::default()
    };
    let mut world = World::connected(options(Version::V5), properties);
    assert_eq!(world.publish(QoS::ExactlyOnce), Err(RequestError::QosNotSupported));
    let now = world.now;
    let plain = Message::new("t", b"0123456789abcde", QoS::AtLeastOnce);
    let mut refused = |message: &Message<'_>| world.client.publish(now, message).unwrap_err();
    assert_eq!(refused(&Message { retain: true, ..plain }), RequestError::RetainNotSupported);
    assert_eq!(refused(&plain), RequestError::PacketTooLarge);
    assert!(matches!(refused(&Message { topic: "t/#", ..plain }), RequestError::Topic(_)));
    let topic_alias = std::num::NonZeroU16::new(2);
    let properties = PublishProperties { topic_alias, ..Default::default() };
    let aliased = Message { properties, qos: QoS::AtMostOnce, ..plain };
    assert_eq!(refused(&aliased), RequestError::TopicAlias);
    assert_eq!(world.sent_packets(), "", "nothing was sent, no id was used");
    assert_eq!(world.publish(QoS::AtLeastOnce), Ok(PacketId::new(1)));
}

#[test]
fn subscriptions_are_answered_one_code_per_filter() {
    let mut world = World::connected(options(Version::V5), ConnAckProperties::default());
    world.events();
    let options = SubscriptionOptions::new(QoS::ExactlyOnce);
    let filters = ["a", "b"].map(|filter| SubscribeFilter { filter, options });
    let now = world.now;
    let id = world.client.subscribe(now, &filters, Some(7), UserProperties::EMPTY).unwrap();
    world.receive(&Packet::SubAck(SubAck::new(id, &[2, 0x87])));
    let id = world.client.unsubscribe(now, &["a"], UserProperties::EMPTY).unwrap();
    world.receive(&Packet::UnsubAck(SubAck::new(id, &[0])));
    assert_eq!(world.events(), "subscribed 1 [2, 135], unsubscribed 2 [0]");
    let id = world.client.subscribe(now, &filters, None, UserProperties::EMPTY).unwrap();
    world.receive(&Packet::SubAck(SubAck::new(id, &[2])));
    assert!(world.events().starts_with("ended: the server broke the protocol"));
    assert_eq!(
        world.client.subscribe(now, &filters, None, UserProperties::EMPTY),
        Err(RequestError::NotConnected)
    );
}

#[test]
fn our_limits_hold_against_the_server() {
    let limited =
        Options { receive_maximum: Some(1), maximum_packet_size: Some(30), ..options(Version::V5) };
    let mut world = World::connected(limited, ConnAckProperties::default());
    world.receive(&message(1, QoS::ExactlyOnce, false));
    world.receive(&message(2, QoS::ExactlyOnce, false));
    assert_eq!(world.sent_packets(), "PUBREC 1, DISCONNECT 0x93");
    world.reconnect(false, ConnAckProperties::default());
    world.receive_bytes(&[0x30, 29]);
    assert_eq!(world.sent_packets(), "DISCONNECT 0x95", "before it is buffered");
    assert!(world.client.is_over());
}

#[test]
fn what_is_no_packet_ends_the_connection() {
    let mut world = World::connected(options(Version::V5), ConnAckProperties::default());
    world.receive_bytes(&[0x30, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(world.sent_packets(), "DISCONNECT 0x81");
    world.receive_bytes(&[0x30, 0xff]);
    assert_eq!(world.sent_packets(), "", "nothing is read any more");
    let mut world = World::new(options(Version::V311));
    world.client.connect(world.now);
    world.sent();
    world.receive(&Packet::PingResp);
    assert_eq!(world.sent_packets(), "", "3.1.1 just closes");
    assert_eq!(
        world.events(),
        "ended: the server broke the protocol: a packet before CONNACK (Protocol Error)"
    );
}

#[test]
fn disconnects() {
    let mut world = World::connected(options(Version::V5), ConnAckProperties::default());
    world.events();
    world.client.disconnect(world.now, ReasonCode::DISCONNECT_WITH_WILL);
    assert_eq!(world.sent_packets(), "DISCONNECT 0x04");
    assert!(world.client.is_over());
    assert_eq!(world.client.next_deadline(), None);
    world.receive(&message(1, QoS::AtLeastOnce, false));
    assert_eq!(world.sent_packets(), "", "nothing after DISCONNECT [MQTT-3.14.4-1]");
    world.cut();
    assert_eq!(world.events(), "ended: disconnected");
    let mut world = World::connected(options(Version::V311), ConnAckProperties::default());
    world.client.disconnect(world.now, ReasonCode::DISCONNECT_WITH_WILL);
    assert_eq!(world.sent_packets(), "", "a 3.1.1 DISCONNECT would delete the Will");
    let mut world = World::connected(options(Version::V5), ConnAckProperties::default());
    world.events();
    world.receive(&Packet::Disconnect(Disconnect::new(ReasonCode::SESSION_TAKEN_OVER)));
    assert_eq!(world.events(), "ended: the server disconnected us: Session taken over (0x8E)");
}

/// The visitor has the client: an echo needs no copy.
#[test]
fn a_visitor_may_publish_and_disconnect() {
    let mut world = World::connected(options(Version::V311), ConnAckProperties::default());
    let mut bytes = Vec::new();
    message(3, QoS::AtLeastOnce, false).encode(Version::V311, &mut bytes);
    message(4, QoS::AtLeastOnce, false).encode(Version::V311, &mut bytes);
    let now = world.now;
    let mut count = 0;
    world.client.handle_bytes(now, &bytes, &mut |client, event| {
        if let Event::Message(publish) = event {
            count += 1;
            let echo = Message::new("echo", publish.payload, publish.qos);
            client.publish(now, &echo).unwrap();
            client.disconnect(now, ReasonCode::NORMAL_DISCONNECTION);
        }
    });
    assert_eq!(count, 1, "nothing is read after the user disconnected");
    assert_eq!(world.sent_packets(), "PUBLISH 1, DISCONNECT 0x00");
}

#[test]
fn an_assigned_id_is_kept_for_the_session() {
    let properties = ConnAckProperties { assigned_client_id: Some("auto-7"), ..Default::default() };
    let unnamed = Options { client_id: String::new(), ..durable(Version::V5) };
    let world = World::connected(unnamed, properties);
    assert_eq!(world.client.options().client_id, "auto-7");
}

#[test]
fn is_small() {
    assert!(size_of::<Client>() <= 256, "{}", size_of::<Client>());
}
