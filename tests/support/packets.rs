//! Packets on a [`Wire`]: for tests whose point is not the bytes. Encoding and decoding are the
//! broker's own codec from the client's side; where that could hide a fault, send hex.

use noctule::codec::mqtt::{
    Connect, ConnectProperties, Packet, PacketId, Publish, QoS, ReasonCode, RetainHandling, Side,
    Subscribe, SubscribeFilter, SubscribeFilters, SubscriptionOptions, Unsubscribe,
    UnsubscribeFilters, UserProperties, Version, decode,
};

use super::wire::{Wire, hex};

/// A CONNECT with Clean Start and nothing else; change its fields for more.
pub fn connect(version: Version, client_id: &str) -> Connect<'_> {
    Connect {
        version,
        clean_start: true,
        keep_alive: 60,
        client_id,
        user_name: None,
        password: None,
        will: None,
        bridge: false,
        properties: ConnectProperties::default(),
    }
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
        match self.recv() {
            Packet::SubAck(ack) => assert_eq!(ack.codes, [qos as u8], "{ack:?}"),
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
