//! What the operator allows: capabilities, bounds of topics, another server for clients; and the
//! words for those who go beyond.
//!
//! Everything here is decided from [`Config`] alone. What refuses carries the reason code of the
//! specification, and words (Reason String) where those say more; they are made only when something
//! is refused. [`Broker::write_explained`] leaves them away for clients that want none
//! `[MQTT-3.1.2-29]` or cannot take them `[MQTT-3.2.2-19]`.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use crate::codec::mqtt::topic::{Filter, check_filter, check_topic_name, level_count};
use crate::codec::mqtt::{Connect, Packet, PublishProperties, QoS, ReasonCode, Subscribe, Version};
use crate::ids::ConnId;
use crate::limits::FILTERS_PER_PACKET_MAX;

use super::{Broker, Config, Stats};

/// When clients are sent to another server (4.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refer {
    /// When this one stops: "Use another server", with the last DISCONNECT.
    #[default]
    AtShutdown,
    /// Always, for now: "Use another server".
    Temporarily,
    /// Always, and for ever: "Server moved".
    Permanently,
}

/// Another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referral {
    /// As clients are told (Server Reference).
    pub server_reference: String,
    /// When they are.
    pub when: Refer,
}

/// Why something is refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) reason: ReasonCode,
    /// Words for people; may be empty.
    pub(crate) why: Cow<'static, str>,
    /// Where no packet can say it, it ends the connection.
    pub(crate) ends: bool,
}

impl From<ReasonCode> for Refusal {
    fn from(reason: ReasonCode) -> Self {
        Self { reason, why: Cow::Borrowed(""), ends: false }
    }
}

fn refusal(reason: ReasonCode, why: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal { reason, why: why.into(), ends: true }
}

impl Config {
    /// The answer to every CONNECT, when this server is not to be used.
    pub(super) fn refers_always(&self) -> Option<ReasonCode> {
        match self.referral.as_ref()?.when {
            Refer::AtShutdown => None,
            Refer::Temporarily => Some(ReasonCode::USE_ANOTHER_SERVER),
            Refer::Permanently => Some(ReasonCode::SERVER_MOVED),
        }
    }

    /// What clients are told at the end, and which server to use then.
    pub(super) fn farewell(&self) -> (ReasonCode, Option<String>) {
        match &self.referral {
            None => (ReasonCode::SERVER_SHUTTING_DOWN, None),
            Some(referral) => {
                let reason = self.refers_always().unwrap_or(ReasonCode::USE_ANOTHER_SERVER);
                (reason, Some(referral.server_reference.clone()))
            }
        }
    }

    /// The Server Reference that belongs to this reason (3.2.2.3.16, 3.14.2.2.5).
    pub(super) fn server_reference(&self, reason: ReasonCode) -> Option<&str> {
        let refers = matches!(reason, ReasonCode::USE_ANOTHER_SERVER | ReasonCode::SERVER_MOVED);
        self.referral.as_ref().filter(|_| refers).map(|r| r.server_reference.as_str())
    }

    /// Response Information for this client (3.2.2.3.15). One whose id would make it no beginning
    /// of a Topic Name, or one below another client's or among the server's, is told none.
    pub(super) fn response_information_for(&self, client_id: &str) -> Option<String> {
        const ID: &str = "{client_id}";
        let template = self.response_information.as_ref()?;
        let is_below = template.contains(ID) && client_id.contains('/');
        let is_ours = template.starts_with(ID) && client_id.starts_with('$');
        if is_below || is_ours {
            return None;
        }
        let told = template.replace(ID, client_id);
        (check_topic_name(&told).is_ok() && self.allows_topic(&told)).then_some(told)
    }

    /// Whether a topic is within our bounds: one that is shorter than its levels may be many has
    /// not so many.
    #[inline]
    pub(super) fn allows_topic(&self, topic: &str) -> bool {
        (topic.len() < self.topic_levels_max && topic.len() <= self.topic_bytes_max)
            || self.allows_long_topic(topic)
    }

    #[cold]
    fn allows_long_topic(&self, topic: &str) -> bool {
        topic.len() <= self.topic_bytes_max && level_count(topic) <= self.topic_levels_max
    }

    /// Why `topic`, which is `what`, is beyond our bounds.
    fn beyond(&self, what: &str, topic: &str) -> String {
        if topic.len() > self.topic_bytes_max {
            let most = self.topic_bytes_max;
            return format!("{what} has {} bytes; this server takes {most}", topic.len());
        }
        let (levels, most) = (level_count(topic), self.topic_levels_max);
        format!("{what} has {levels} levels; this server takes {most}")
    }

    /// Why a publication or Will to `topic` is refused, with these properties, judged by its topics
    /// and its payload. For what is in order this is a few comparisons.
    #[inline]
    pub(super) fn check_message(
        &self,
        stats: &mut Stats,
        topic: &str,
        properties: &PublishProperties<'_>,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        if !self.allows_topic(topic) {
            stats.refused_topic += 1;
            let why = self.beyond("the Topic Name", topic);
            return Err(refusal(ReasonCode::TOPIC_NAME_INVALID, why));
        }
        if let Some(response) = properties.response_topic
            && !self.allows_topic(response)
        {
            stats.refused_topic += 1;
            let why = self.beyond("the Response Topic", response);
            return Err(refusal(ReasonCode::TOPIC_NAME_INVALID, why));
        }
        if self.payload_format_check
            && properties.payload_format == Some(true)
            && std::str::from_utf8(payload).is_err()
        {
            stats.refused_payload_format += 1;
            let why = "Payload Format Indicator is 1, and the payload is not UTF-8";
            return Err(refusal(ReasonCode::PAYLOAD_FORMAT_INVALID, why));
        }
        Ok(())
    }

    /// The QoS and RETAIN of a publication or Will that the server does not support
    /// `[MQTT-3.2.2-11]` to `[MQTT-3.2.2-14]`.
    #[inline]
    pub(super) fn check_capabilities(
        &self,
        stats: &mut Stats,
        qos: QoS,
        retain: bool,
    ) -> Result<(), Refusal> {
        if qos > self.maximum_qos {
            stats.refused_maximum_qos += 1;
            let why = format!("Maximum QoS of this server is {}", self.maximum_qos as u8);
            return Err(refusal(ReasonCode::QOS_NOT_SUPPORTED, why));
        }
        if retain && !self.retain_available {
            stats.refused_retain += 1;
            let why = "this server keeps no retained messages";
            return Err(refusal(ReasonCode::RETAIN_NOT_SUPPORTED, why));
        }
        Ok(())
    }

    /// What a CONNECT asks for beyond what this server offers.
    pub(super) fn check_connect(
        &self,
        stats: &mut Stats,
        connect: &Connect<'_>,
    ) -> Result<(), Refusal> {
        if let Some(will) = &connect.will {
            self.check_capabilities(stats, will.qos, will.retain)?;
            self.check_message(stats, will.topic, &will.properties, will.payload)?;
        }
        // Before 5.0 a client cannot be told a shorter Keep Alive. It is refused for good: 5, not 3,
        // after which it would try again as it is.
        let most = self.keep_alive_max_secs;
        let is_longer = connect.keep_alive == 0 || connect.keep_alive > most;
        if connect.version != Version::V5 && most > 0 && is_longer {
            stats.refused_keep_alive += 1;
            return Err(refusal(ReasonCode::NOT_AUTHORIZED, ""));
        }
        Ok(())
    }

    /// What of a SUBSCRIBE of 5.0 is a Protocol Error, because CONNACK said that the server does
    /// not support it (3.2.2.3.11 to 3.2.2.3.13).
    pub(super) fn check_subscribe(&self, packet: &Subscribe<'_>) -> Result<(), Refusal> {
        if packet.subscription_id.is_some() && !self.subscription_identifiers {
            let why = "this server has no Subscription Identifiers";
            return Err(refusal(ReasonCode::SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED, why));
        }
        if self.wildcard_subscriptions && self.shared_subscriptions {
            return Ok(());
        }
        for line in packet.filters.iter().take(FILTERS_PER_PACKET_MAX) {
            if let Ok(filter) = check_filter(line.filter) {
                self.check_filter_kind(filter)?;
            }
        }
        Ok(())
    }

    /// A kind of filter that the server does not support.
    pub(super) fn check_filter_kind(&self, filter: Filter<'_>) -> Result<(), Refusal> {
        if filter.share_name.is_some() && !self.shared_subscriptions {
            let why = "this server has no Shared Subscriptions";
            return Err(refusal(ReasonCode::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED, why));
        }
        if !self.wildcard_subscriptions && filter.filter.contains(['+', '#']) {
            let why = "this server has no Wildcard Subscriptions";
            return Err(refusal(ReasonCode::WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED, why));
        }
        Ok(())
    }

    /// A filter, or the name of its group, that is beyond our bounds.
    pub(super) fn check_filter_size(&self, filter: Filter<'_>) -> Result<(), Refusal> {
        let share_name = filter.share_name.unwrap_or_default();
        if !self.allows_topic(filter.filter) {
            let why = self.beyond("a Topic Filter", filter.filter);
            return Err(refusal(ReasonCode::TOPIC_FILTER_INVALID, why));
        }
        if share_name.len() > self.topic_bytes_max {
            let why = self.beyond("a ShareName", share_name);
            return Err(refusal(ReasonCode::TOPIC_FILTER_INVALID, why));
        }
        Ok(())
    }
}

impl Broker {
    /// Writes `said`, or `bare` (the same without words) to a client that wants no words
    /// `[MQTT-3.1.2-29]`, or that cannot take a packet of their size `[MQTT-3.2.2-19]`,
    /// `[MQTT-3.4.2-2]`, `[MQTT-3.14.2-3]` and their like.
    pub(super) fn write_explained(&mut self, id: ConnId, said: &Packet<'_>, bare: &Packet<'_>) {
        self.write(id, if self.may_explain(id, said) { said } else { bare });
    }

    /// Whether a packet with words may be sent to this client.
    pub(super) fn may_explain(&self, id: ConnId, said: &Packet<'_>) -> bool {
        self.conns.get(id).is_some_and(|conn| conn.problem_information) && self.fits(id, said)
    }

    /// Whether a packet is within this client's Maximum Packet Size [MQTT-3.1.2-24].
    pub(super) fn fits(&self, id: ConnId, packet: &Packet<'_>) -> bool {
        self.conns
            .get(id)
            .is_some_and(|conn| packet.encoded_len(conn.version()) <= conn.packet_size_max as usize)
    }
}
