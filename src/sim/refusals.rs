//! Clients that ask for what the broker does not take: each request is refused at once, before any
//! of it has gone on.
#![forbid(unsafe_code)]

use super::client::Stage;
use super::terms::LEVELS_MAX;
use super::workload::Workload;
use crate::codec::mqtt::{
    Packet, Publish, PublishProperties, QoS, ReasonCode, Subscribe, SubscribeFilter,
    SubscribeFilters, SubscriptionOptions, UserProperties, Version,
};

/// No message has this number, and it is no UTF-8.
const PAYLOAD: [u8; 8] = [0xff; 8];

impl Workload<'_> {
    /// One such request. The broker drops it, or closes and says why.
    pub(super) fn ask_too_much(&mut self) {
        let is_v5 = self.client.version == Version::V5;
        let no_retain = !self.terms.retains && !self.terms.refuses;
        let no_ids = ReasonCode::SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED;
        let mut all = vec![ReasonCode::NOT_AUTHORIZED, ReasonCode::TOPIC_NAME_INVALID];
        // What this broker does not have at all is asked for most.
        for (may, reason) in [
            (is_v5, ReasonCode::PAYLOAD_FORMAT_INVALID),
            (self.terms.qos_max < QoS::ExactlyOnce, ReasonCode::QOS_NOT_SUPPORTED),
            (no_retain, ReasonCode::RETAIN_NOT_SUPPORTED),
            (is_v5 && !self.terms.identifiers, no_ids),
        ] {
            if may {
                all.extend([reason; 2]);
            }
        }
        let reason = self.random.pick(&all);
        let Some(link) = self.client.link else { return };
        let Some(packet_id) = self.client.free_id() else { return };
        let deep = ["a"; LEVELS_MAX + 1].join("/");
        let mut publish = Publish {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: false,
            topic: "b",
            packet_id: None,
            properties: PublishProperties::default(),
            payload: &PAYLOAD,
        };
        match reason {
            // The server's own topics. At QoS 0 nobody is told.
            ReasonCode::NOT_AUTHORIZED => {
                publish.topic = "$SYS/a";
                return self.client.send(self.network, &Packet::Publish(publish));
            }
            ReasonCode::TOPIC_NAME_INVALID => publish.topic = &deep,
            ReasonCode::PAYLOAD_FORMAT_INVALID => publish.properties.payload_format = Some(true),
            ReasonCode::QOS_NOT_SUPPORTED => {
                (publish.qos, publish.packet_id) = (QoS::ExactlyOnce, Some(packet_id));
            }
            _ => publish.retain = true,
        }
        self.oracle.on_will_end(link);
        if reason == no_ids {
            let lines = [SubscribeFilter {
                filter: "b",
                options: SubscriptionOptions::new(QoS::AtMostOnce),
            }];
            let subscribe = Subscribe {
                packet_id,
                subscription_id: Some(1),
                user_properties: UserProperties::default(),
                filters: SubscribeFilters::new(&lines),
            };
            self.client.send(self.network, &Packet::Subscribe(subscribe));
        } else {
            self.client.send(self.network, &Packet::Publish(publish));
        }
        self.client.awaits = Some(reason);
        self.client.stage = Stage::Broken;
    }
}
