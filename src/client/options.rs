//! What a client asks for when it connects, in owned form.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::codec::mqtt::{
    Connect, ConnectProperties, Packet, PublishProperties, QoS, UserProperties, Version,
    Will as WillPacket,
};
use crate::limits::{CONNECT_TIMEOUT, IN_FLIGHT_MAX};

/// Everything that CONNECT says, and how the client behaves. What a version cannot express is left
/// out of its CONNECT.
#[derive(Clone, Debug)]
pub struct Options {
    /// The protocol to speak.
    pub version: Version,
    /// May be empty: then the server assigns one (5.0), or needs to know none (3.1.1 with
    /// `clean_start`).
    pub client_id: String,
    /// Clean Session before 5.0: begin with an empty session.
    pub clean_start: bool,
    /// Seconds; 0 is off.
    pub keep_alive: u16,
    /// For authentication.
    pub user_name: Option<String>,
    /// For authentication; before 5.0 only with a user name.
    pub password: Option<Vec<u8>>,
    /// What the server publishes when we vanish.
    pub will: Option<Will>,
    /// Sets the bridge bit of the protocol level, which some brokers take as a hint.
    pub bridge: bool,
    /// Seconds that the session outlives its connection. Before 5.0 a session ends with its
    /// connection if `clean_start`, and never else.
    pub session_expiry_interval: u32,
    /// QoS 1 and 2 messages to us that may be unacknowledged. Held against the server, in any
    /// version, when it is given.
    pub receive_maximum: Option<u16>,
    /// Of a packet to us, in bytes. Held against the server, in any version, when it is given.
    pub maximum_packet_size: Option<u32>,
    /// Aliases that the server may use towards us.
    pub topic_alias_maximum: u16,
    /// Ask for the Response Information.
    pub request_response_information: Option<bool>,
    /// Ask for Reason Strings and User Properties in acknowledgements.
    pub request_problem_information: Option<bool>,
    /// Of the CONNECT.
    pub user_properties: Vec<(String, String)>,
    /// For enhanced authentication.
    pub authentication_method: Option<String>,
    /// For enhanced authentication.
    pub authentication_data: Option<Vec<u8>>,
    /// QoS 1 and 2 messages of ours that may be unacknowledged, if the server allows more.
    pub in_flight_max: u16,
    /// The user acknowledges messages with [`Client::acknowledge`](super::Client::acknowledge).
    pub manual_acks: bool,
    /// How long CONNACK may take.
    pub connect_timeout: Duration,
}

impl Options {
    /// A clean session with a keep alive of 60 seconds.
    pub fn new(version: Version, client_id: impl Into<String>) -> Self {
        Self {
            version,
            client_id: client_id.into(),
            clean_start: true,
            keep_alive: 60,
            user_name: None,
            password: None,
            will: None,
            bridge: false,
            session_expiry_interval: 0,
            receive_maximum: None,
            maximum_packet_size: None,
            topic_alias_maximum: 0,
            request_response_information: None,
            request_problem_information: None,
            user_properties: Vec::new(),
            authentication_method: None,
            authentication_data: None,
            in_flight_max: IN_FLIGHT_MAX,
            manual_acks: false,
            connect_timeout: CONNECT_TIMEOUT,
        }
    }

    /// Whether another connection may go on with the session, so that messages are kept until they
    /// are acknowledged.
    pub fn session_outlives_connection(&self) -> bool {
        match self.version {
            Version::V5 => self.session_expiry_interval > 0,
            _ => !self.clean_start,
        }
    }

    pub(super) fn encode_connect(&self, out: &mut Vec<u8>) {
        let pairs = borrow_pairs(&self.user_properties);
        let properties = ConnectProperties {
            session_expiry_interval: match self.session_expiry_interval {
                0 => None,
                seconds => Some(seconds),
            },
            receive_maximum: self.receive_maximum,
            maximum_packet_size: self.maximum_packet_size,
            topic_alias_maximum: match self.topic_alias_maximum {
                0 => None,
                most => Some(most),
            },
            request_response_information: self.request_response_information,
            request_problem_information: self.request_problem_information,
            user_properties: UserProperties::new(&pairs),
            authentication_method: self.authentication_method.as_deref(),
            authentication_data: self.authentication_data.as_deref(),
        };
        let will_pairs = self.will.as_ref().map(|will| will.properties.borrowed_pairs());
        let will = self.will.as_ref().map(|will| WillPacket {
            topic: &will.topic,
            payload: &will.payload,
            qos: will.qos,
            retain: will.retain,
            delay_interval: will.delay_interval,
            properties: will.properties.borrow(will_pairs.as_deref().unwrap_or_default()),
        });
        let connect = Connect {
            version: self.version,
            clean_start: self.clean_start,
            keep_alive: self.keep_alive,
            client_id: &self.client_id,
            user_name: self.user_name.as_deref(),
            password: self.password.as_deref(),
            will,
            bridge: self.bridge,
            properties,
        };
        Packet::Connect(connect).encode(self.version, out);
    }
}

/// A message that the server publishes for us.
#[derive(Clone, Debug)]
pub struct Will {
    /// Without wildcards.
    pub topic: String,
    /// Any bytes.
    pub payload: Vec<u8>,
    /// Of the message.
    pub qos: QoS,
    /// Of the message.
    pub retain: bool,
    /// Seconds between our vanishing and the message; the session's end comes first.
    pub delay_interval: u32,
    /// Of the message.
    pub properties: Properties,
}

/// Properties of a message, owned.
#[derive(Clone, Debug, Default)]
pub struct Properties {
    /// Whether the payload is UTF-8.
    pub payload_format: Option<bool>,
    /// Seconds.
    pub message_expiry_interval: Option<u32>,
    /// For a short way to the same topic.
    pub topic_alias: Option<std::num::NonZeroU16>,
    /// Where to answer.
    pub response_topic: Option<String>,
    /// What the answer shall carry.
    pub correlation_data: Option<Vec<u8>>,
    /// MIME type, by convention.
    pub content_type: Option<String>,
    /// Uninterpreted, in order.
    pub user_properties: Vec<(String, String)>,
}

impl Properties {
    /// The pairs that [`Properties::borrow`] needs.
    pub fn borrowed_pairs(&self) -> Vec<(&str, &str)> {
        borrow_pairs(&self.user_properties)
    }

    /// In the form in which they are published; `pairs` as [`Properties::borrowed_pairs`] gave them.
    pub fn borrow<'a>(&'a self, pairs: &'a [(&'a str, &'a str)]) -> PublishProperties<'a> {
        PublishProperties {
            payload_format: self.payload_format,
            message_expiry_interval: self.message_expiry_interval,
            topic_alias: self.topic_alias,
            response_topic: self.response_topic.as_deref(),
            correlation_data: self.correlation_data.as_deref(),
            content_type: self.content_type.as_deref(),
            user_properties: UserProperties::new(pairs),
            ..PublishProperties::default()
        }
    }
}

/// Owned pairs as borrowed ones.
pub fn borrow_pairs(pairs: &[(String, String)]) -> Vec<(&str, &str)> {
    pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}
