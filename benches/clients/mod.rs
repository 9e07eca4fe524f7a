//! Clients of a broker without sockets, for benchmarks.

use noctule::broker::{Accepted, Broker, Frame};
use noctule::clock::Time;
use noctule::codec::mqtt::{Connect, ConnectProperties, Packet, Version};
use noctule::ids::ConnId;

/// The time of everything.
pub const NOW: Time = Time::from_nanos(1_000_000_000);

/// The connection of this client.
pub fn conn(index: u32) -> ConnId {
    ConnId { index, generation: 1 }
}

/// Connects it; one of 5.0 may allow Topic Aliases.
pub fn connect(broker: &mut Broker, index: u32, version: Version, aliases: Option<u16>) {
    open(broker, index);
    let properties =
        ConnectProperties { topic_alias_maximum: aliases, ..ConnectProperties::default() };
    let client_id = format!("client-{index}");
    let connect = Connect { properties, ..Connect::new(version, &client_id) };
    let mut frame = Vec::new();
    Packet::Connect(connect).encode(version, &mut frame);
    first(broker, index, &frame);
}

/// A connection.
pub fn open(broker: &mut Broker, index: u32) {
    broker.handle_open(NOW, conn(index), Accepted { at: NOW, listener: 0, peer: None });
}

/// Its CONNECT.
pub fn first(broker: &mut Broker, index: u32, frame: &[u8]) {
    let frame = Frame { bytes: frame, shared: None };
    let _ = broker.handle_frame(NOW, conn(index), None, frame, &mut "");
}
