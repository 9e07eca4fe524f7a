//! Packets on a [`Wire`]: for tests whose point is not the bytes. Encoding and decoding are the
//! broker's own codec from the client's side; where that could hide a fault, send hex.

use noctule::codec::mqtt::{
    Connect, ConnectProperties, Packet, PacketId, PacketKind, Publish, QoS, ReasonCode,
    RetainHandling, Side, Subscribe, SubscribeFilter, SubscribeFilters, SubscriptionOptions,
    Unsubscribe, UnsubscribeFilters, UserProperties, Version, decode,
};

use super::broker::Broker;
use super::wire::{Wire, hex};

/// A CONNECT with Clean Start and nothing else; change its fields for more.
pub fn connect(version: Version, client_id: &str) -> Connect<'_> {
    Connect { keep_alive: 60, ..Connect::new(version, client_id) }
}

/// A CONNECT to a session that outlives its connection, and that an earlier one may have begun.
pub fn lasting(version: Version, client_id: &str) -> Connect<'_> {
    let expiry = (version == Version::V5).then_some(300);
    let properties =
        ConnectProperties { session_expiry_interval: expiry, ..ConnectProperties::default() };
    Connect { clean_start: false, properties, ..connect(version, client_id) }
}

/// Begins a session that lasts.
pub fn begin(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    assert!(!wire.handshake(lasting(version, id)));
    wire
}

/// Comes back to one.
pub fn resume(broker: &Broker, version: Version, id: &str) -> Wire {
    let mut wire = broker.connect();
    // 3.1 cannot say whether a session is there.
    assert_eq!(wire.handshake(lasting(version, id)), version != Version::V31);
    wire
}

/// Says good-bye; the session stays.
pub fn leave(mut wire: Wire) {
    wire.send_hex("e0 00");
    wire.expect_closed();
}

/// A client of 5.0 that only publishes.
pub fn publisher(broker: &Broker) -> Wire {
    let mut wire = broker.connect();
    wire.handshake(connect(Version::V5, "publisher"));
    wire
}

/// A PUBLISH without properties; its packet id is 1 where it has one.
pub fn publish<'a>(topic: &'a str, qos: QoS, payload: &'a [u8]) -> Publish<'a> {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic,
        packet_id: if qos == QoS::AtMostOnce { None } else { PacketId::new(1) },
        properties: Default::default(),
        payload,
    }
}

/// A filter with a QoS and no other option.
pub fn filter(filter: &str, qos: QoS) -> SubscribeFilter<'_> {
    SubscribeFilter {
        filter,
        options: SubscriptionOptions {
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::default(),
        },
    }
}

impl Wire {
    /// Sends a packet in the version of the CONNECT before it.
    pub fn send(&mut self, packet: &Packet<'_>) {
        if let Packet::Connect(connect) = packet {
            self.version = connect.version;
        }
        let mut bytes = Vec::new();
        packet.encode(self.version, &mut bytes);
        self.send_bytes(&bytes);
    }

    /// The next packet.
    ///
    /// # Panics
    /// When none comes, or not one that a client may be sent.
    pub fn recv(&mut self) -> Packet<'_> {
        self.frame = self.frame();
        decode(&self.frame, Some(self.version), Side::Client)
            .unwrap_or_else(|error| panic!("{error}: {}", hex(&self.frame)))
    }

    /// Connects, successfully. Returns Session Present.
    pub fn handshake(&mut self, connect: Connect<'_>) -> bool {
        self.send(&Packet::Connect(connect));
        match self.recv() {
            Packet::ConnAck(ack) => {
                assert_eq!(ack.reason, ReasonCode::SUCCESS, "{ack:?}");
                ack.session_present
            }
            other => panic!("expected CONNACK, got {other:?}"),
        }
    }

    /// Subscribes to one filter and waits for its SUBACK, which must grant the QoS.
    pub fn subscribe(&mut self, name: &str, qos: QoS) {
        self.send(&Packet::Subscribe(Subscribe {
            packet_id: PacketId::new(0x5b).expect("not zero"),
            subscription_id: None,
            user_properties: UserProperties::default(),
            filters: SubscribeFilters::new(&[filter(name, qos)]),
        }));
        // What the subscription matches may come before SUBACK (MQTT 5, 3.8.4).
        let ack = self.frame_behind(|frame| frame[0] >> 4 == PacketKind::Publish as u8);
        match decode(&ack, Some(self.version), Side::Client) {
            Ok(Packet::SubAck(ack)) => assert_eq!(ack.codes, [qos as u8], "{ack:?}"),
            other => panic!("expected SUBACK, got {other:?}"),
        }
    }

    /// Unsubscribes from one filter and waits for its UNSUBACK.
    pub fn unsubscribe(&mut self, name: &str) {
        self.send(&Packet::Unsubscribe(Unsubscribe {
            packet_id: PacketId::new(0x5c).expect("not zero"),
            user_properties: UserProperties::default(),
            filters: UnsubscribeFilters::new(&[name]),
        }));
        match self.recv() {
            Packet::UnsubAck(_) => {}
            other => panic!("expected UNSUBACK, got {other:?}"),
        }
    }

    /// Publishes, and goes through the whole exchange of its QoS with packet id 1.
    pub fn publish(&mut self, publish: Publish<'_>) {
        self.send(&Packet::Publish(publish));
        match publish.qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => drop(self.expect_ack(PacketKind::PubAck, 1)),
            QoS::ExactlyOnce => {
                let reason = self.expect_ack(PacketKind::PubRec, 1);
                assert!(!reason.is_error(), "{reason}");
                self.send_hex("62 02 0001");
                self.expect_hex("70 02 0001");
            }
        }
    }

    /// The next packet is this acknowledgement; returns its reason.
    pub fn expect_ack(&mut self, kind: PacketKind, packet_id: u16) -> ReasonCode {
        let packet = self.recv();
        assert_eq!(packet.kind(), kind, "{packet:?}");
        match packet {
            Packet::PubAck(ack)
            | Packet::PubRec(ack)
            | Packet::PubRel(ack)
            | Packet::PubComp(ack) => {
                assert_eq!(ack.packet_id.get(), packet_id, "{ack:?}");
                ack.reason
            }
            other => panic!("{other:?} is no acknowledgement"),
        }
    }

    /// Sends an acknowledgement without a reason code, which is success in all versions.
    pub fn send_ack(&mut self, kind: PacketKind, packet_id: u16) {
        let first = (kind as u8) << 4 | if kind == PacketKind::PubRel { 2 } else { 0 };
        let [high, low] = packet_id.to_be_bytes();
        self.send_bytes(&[first, 2, high, low]);
    }

    /// The broker ends the connection: an MQTT 5 client is told why.
    pub fn expect_disconnect(&mut self, reason: ReasonCode) {
        if self.version == Version::V5 {
            match self.recv() {
                Packet::Disconnect(disconnect) => {
                    assert_eq!(disconnect.reason, reason, "{disconnect:?}");
                    // [MQTT-3.14.2-2]
                    assert_eq!(disconnect.session_expiry_interval, None);
                }
                other => panic!("expected DISCONNECT, got {other:?}"),
            }
        }
        self.expect_closed();
    }

    /// The next packet is this PUBLISH, and it is acknowledged as its QoS demands. Returns whether
    /// it had DUP and RETAIN.
    pub fn take_publish(&mut self, topic: &str, qos: QoS, payload: &[u8]) -> (bool, bool) {
        let id = self.expect_publish(topic, qos, payload).map_or(0, PacketId::get);
        let first = self.frame[0];
        match qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => self.send_ack(PacketKind::PubAck, id),
            QoS::ExactlyOnce => {
                self.send_ack(PacketKind::PubRec, id);
                let [high, low] = id.to_be_bytes();
                self.expect_among_others(&[0x62, 2, high, low]);
                self.send_ack(PacketKind::PubComp, id);
            }
        }
        (first & 0x08 != 0, first & 0x01 != 0)
    }

    /// These messages of one topic come for the first time, and are acknowledged. Those of one QoS
    /// come in their order; between QoS 1 and 2 there is none: those of QoS 2 wait for their record.
    pub fn take_publishes(&mut self, topic: &str, expected: &[(QoS, &[u8])]) {
        let mut left = expected.to_vec();
        while !left.is_empty() {
            let Packet::Publish(got) = self.recv() else { panic!("expected PUBLISH to {topic}") };
            let qos = got.qos;
            let payload = got.payload.to_vec();
            let next = left.iter().position(|(other, _)| *other == qos);
            let next = next.unwrap_or_else(|| panic!("no more of {qos:?} expected: {payload:?}"));
            self.early.push_front(std::mem::take(&mut self.frame));
            let (dup, _) = self.take_publish(topic, qos, left.remove(next).1);
            assert!(!dup, "{payload:?}");
        }
    }

    /// Whether the PUBLISH that was read last has a Topic Alias.
    pub fn has_alias(&self) -> bool {
        match decode(&self.frame, Some(self.version), Side::Client) {
            Ok(Packet::Publish(publish)) => publish.properties.topic_alias.is_some(),
            other => panic!("{other:?} is no PUBLISH"),
        }
    }

    /// The next packet is this PUBLISH, whatever its properties; returns its packet id.
    pub fn expect_publish(&mut self, topic: &str, qos: QoS, payload: &[u8]) -> Option<PacketId> {
        match self.recv() {
            Packet::Publish(got) => {
                assert_eq!((got.topic, got.qos, got.payload), (topic, qos, payload), "{got:?}");
                got.packet_id
            }
            other => panic!("expected PUBLISH to {topic}, got {other:?}"),
        }
    }
}
