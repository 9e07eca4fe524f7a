//! Fuzz target of the MQTT codec. Run it by `scripts/fuzz.sh codec 60`.
//!
//! The first byte of the input chooses version and side, the rest is what a peer sent: any number
//! of frames. No input may panic, and what is accepted must survive being written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use noctule::codec::mqtt::{Packet, PublishProperties, Side, Version, decode, frame_len, topic};

fuzz_target!(|input: &[u8]| {
    let Some((&choice, mut bytes)) = input.split_first() else { return };
    let mut version = match choice & 0b11 {
        0 => None,
        1 => Some(Version::V31),
        2 => Some(Version::V311),
        _ => Some(Version::V5),
    };
    let side = if choice & 0b100 == 0 { Side::Server } else { Side::Client };
    while let Ok(Some(len)) = frame_len(bytes) {
        let Some((frame, rest)) = bytes.split_at_checked(len) else {
            // A frame that never ends is refused or not, but not with a panic.
            let _ = decode(bytes, version, side);
            return;
        };
        bytes = rest;
        let Ok(packet) = decode(frame, version, side) else { return };
        round_trip(&packet, version, side);
        if let Packet::Connect(connect) = packet {
            version = Some(connect.version);
        }
    }
});

/// What was understood is written, and understood the same.
fn round_trip(packet: &Packet<'_>, version: Option<Version>, side: Side) {
    let written_as = match packet {
        Packet::Connect(connect) => connect.version,
        // A refusal, which 3.1 cannot write but servers send.
        Packet::SubAck(ack) if version == Some(Version::V31) && ack.codes.contains(&0x80) => return,
        _ => version.expect("only CONNECT comes without a version"),
    };
    let mut encoded = Vec::new();
    packet.encode(written_as, &mut encoded);
    assert_eq!(encoded.len(), packet.encoded_len(written_as));
    assert_eq!(frame_len(&encoded), Ok(Some(encoded.len())));
    assert_eq!(decode(&encoded, version, side).as_ref(), Ok(packet));
    match packet {
        Packet::Publish(publish) => {
            let _ = topic::check_topic_name(publish.topic);
            forward(&publish.properties);
        }
        Packet::Subscribe(subscribe) => {
            for line in subscribe.filters {
                if let Ok(filter) = topic::check_filter(line.filter) {
                    let _ = topic::matches(filter.filter, line.filter);
                }
            }
        }
        _ => {}
    }
}

/// What is forwarded verbatim is what would be written field by field.
fn forward(properties: &PublishProperties<'_>) {
    let mut forwarded = Vec::new();
    properties.append_forwarded(&mut forwarded);
    assert_eq!(forwarded.len(), properties.forwarded_len());
    let rebuilt = PublishProperties { verbatim: Default::default(), ..*properties };
    assert_eq!(rebuilt.forwarded_len(), forwarded.len());
}
