//! Made-up entries for the tests of this layer.
#![forbid(unsafe_code)]

use proptest::prelude::*;

use super::record::{Assign, Entry, Groups, Publish, Receiver, Receivers, Will};
use super::wire::Numbers;

/// An entry that owns its text.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    pub(crate) kind: u8,
    pub(crate) client_id: String,
    pub(crate) topic: String,
    pub(crate) forwarded: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    pub(crate) packet_id: Option<u16>,
    pub(crate) message: Option<u64>,
    pub(crate) place: Option<u64>,
    pub(crate) time: Option<u64>,
    pub(crate) number: u64,
    pub(crate) qos: u8,
    pub(crate) flags: (bool, bool),
    pub(crate) list: Vec<u64>,
}

prop_compose! {
    pub(crate) fn entry()(
        kind in 0u8..16,
        (client_id, topic) in ("\\PC{0,12}", "\\PC{0,20}"),
        (forwarded, payload) in
            (proptest::collection::vec(any::<u8>(), 0..20), proptest::collection::vec(any::<u8>(), 0..300)),
        packet_id in proptest::option::of(1u16..),
        message in proptest::option::of((1u64..1 << 56, 0u64..64).prop_map(|(n, origin)| n << 8 | origin)),
        (place, time) in (proptest::option::of(0..u64::MAX), proptest::option::of(0..u64::MAX)),
        number in any::<u64>(),
        qos in 0u8..3,
        flags in any::<(bool, bool)>(),
        list in proptest::collection::vec(any::<u64>(), 0..10),
    ) -> Owned {
        Owned {
            kind, client_id, topic, forwarded, payload, packet_id, message, place, time, number,
            qos, flags, list,
        }
    }
}

impl Owned {
    /// The bytes of its list, for [`Owned::borrow`].
    pub(crate) fn numbers(&self) -> Vec<u8> {
        let mut out = Vec::new();
        Numbers::write(self.list.iter().copied(), &mut out);
        out
    }

    /// The bytes of its receivers, for [`Owned::borrow`].
    pub(crate) fn receivers(&self, numbers: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, number) in self.list.iter().enumerate() {
            let receiver = Receiver {
                number: *number,
                is_group: index % 3 == 1,
                is_assigned: index % 5 == 2,
                qos: 1 + index as u8 % 2,
                retain: self.flags.0,
                subscription_ids: Numbers::of(self.list.len(), numbers),
            };
            receiver.put(&mut out);
        }
        out
    }

    pub(crate) fn borrow<'a>(&'a self, numbers: &'a [u8], receivers: &'a [u8]) -> Entry<'a> {
        let client_id = self.client_id.as_str();
        let packet_id = self.packet_id.unwrap_or(1);
        let list = Numbers::of(self.list.len(), numbers);
        match self.kind {
            0 => Entry::Publish(Publish {
                message: self.message.unwrap_or(0x100),
                is_copy: self.place.is_some(),
                is_value: self.time.is_some(),
                publisher: client_id,
                packet_id: self.packet_id,
                qos: self.qos,
                retain: self.flags.0,
                is_will: self.flags.1,
                deadline: self.time,
                topic: &self.topic,
                forwarded: &self.forwarded,
                payload: &self.payload,
                groups: Groups::default(),
                receivers: Receivers::parse(receivers).expect("as it was written"),
            }),
            1 => Entry::Session {
                client_id,
                expiry_secs: self.number as u32,
                offline_since: self.time,
                number: self.number,
            },
            2 => Entry::SessionEnded { client_id },
            3 => Entry::Subscribe {
                client_id,
                filter: &self.topic,
                options: self.qos,
                subscription_id: self.time.map(|t| t as u32),
                seen: list,
            },
            4 => Entry::Unsubscribe { client_id, filter: &self.topic, seen: list },
            5 => Entry::WillSet(Will {
                client_id,
                qos: self.qos,
                retain: self.flags.0,
                delay_secs: self.number as u32,
                expiry_secs: self.time.map(|t| t as u32),
                topic: &self.topic,
                forwarded: &self.forwarded,
                payload: &self.payload,
            }),
            6 => Entry::WillDeleted { client_id },
            7 => Entry::Assign(Assign {
                client_id,
                packet_id,
                message: self.message,
                retain: self.flags.1,
                group: self.time.map(|_| self.topic.as_str()),
                subscription_ids: list,
                copied: self.place.map(|place| (place, self.flags.0)),
            }),
            8 => Entry::Received { client_id, packet_id, message: self.message },
            9 => Entry::Acked { client_id, message: self.message.unwrap_or(0x100) },
            10 => Entry::Done { client_id, packet_id, message: self.message },
            11 => Entry::Released { client_id, packet_id },
            12 => Entry::GroupAck { group: client_id, message: self.message.unwrap_or(0x100) },
            13 => {
                Entry::Unreleased { client_id, packet_id, message: self.message.unwrap_or(0x100) }
            }
            14 => Entry::Group { group: client_id, number: self.number },
            _ => Entry::Ended { client_id, messages: list },
        }
    }
}
