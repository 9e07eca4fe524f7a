//! What a client tells its user: events, the end of a connection, and why a request was refused.
#![forbid(unsafe_code)]

use std::fmt;

use crate::codec::mqtt::error::DecodeError;
use crate::codec::mqtt::topic::TopicError;
use crate::codec::mqtt::{Auth, ConnAckProperties, PacketId, Publish, ReasonCode, UserProperties};

/// Something happened. It borrows from the bytes that were received.
#[derive(Debug)]
pub enum Event<'a> {
    /// The server accepted the connection.
    Connected {
        /// Whether it still had our session; then what was open is being sent again.
        session_present: bool,
        /// What it allows and assigns. Also kept as [`Client::server`](super::Client::server).
        properties: &'a ConnAckProperties<'a>,
    },
    /// A message for us. Its Topic Alias, if it had one, is resolved.
    Message(Publish<'a>),
    /// PUBREC: the server has the QoS 2 message and answers for it from here on.
    Received {
        /// Of the PUBLISH.
        packet_id: PacketId,
    },
    /// Our message has its final acknowledgement, or was refused with a reason.
    Acked {
        /// Of the PUBLISH; free from now on.
        packet_id: PacketId,
        /// An error when the message was refused.
        reason: ReasonCode,
        /// For people.
        reason_string: Option<&'a str>,
    },
    /// SUBACK.
    Subscribed {
        /// Of the SUBSCRIBE.
        packet_id: PacketId,
        /// A reason code per filter, in order.
        codes: &'a [u8],
        /// For people.
        reason_string: Option<&'a str>,
    },
    /// UNSUBACK.
    Unsubscribed {
        /// Of the UNSUBSCRIBE.
        packet_id: PacketId,
        /// A reason code per filter, in order; none before 5.0.
        codes: &'a [u8],
    },
    /// A request of an earlier connection will never be answered, because the session is gone or
    /// because the request is not part of a session. Whether the server acted on it is unknown.
    Discarded {
        /// Of the request; free from now on.
        packet_id: PacketId,
    },
    /// PINGRESP.
    Pong,
    /// A step of an enhanced authentication; answer with [`Client::authenticate`](super::Client::authenticate).
    Auth(Auth<'a>),
    /// The connection is over: send what is left in `out`, close the socket. Exactly one for each
    /// connection.
    Disconnected(Ending<'a>),
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy)]
pub enum Ending<'a> {
    /// We asked for it.
    Requested,
    /// The server refused the connection.
    Refused {
        /// Before 5.0 the nearest code; its `connack_v3` is what was sent.
        reason: ReasonCode,
        /// For people.
        reason_string: Option<&'a str>,
        /// Where to go instead.
        server_reference: Option<&'a str>,
    },
    /// The server said DISCONNECT.
    Server {
        /// Why.
        reason: ReasonCode,
        /// For people.
        reason_string: Option<&'a str>,
        /// Where to go instead.
        server_reference: Option<&'a str>,
        /// Uninterpreted.
        user_properties: UserProperties<'a>,
    },
    /// The server sent what is not a packet.
    Malformed(DecodeError),
    /// The server sent a packet that it must not send, or that it must not send now.
    Protocol {
        /// What a 5.0 server was told.
        reason: ReasonCode,
        /// What was wrong.
        what: &'static str,
    },
    /// No CONNACK within the connect timeout.
    ConnectTimeout,
    /// No PINGRESP within the keep alive.
    KeepAliveTimeout,
    /// The network closed without a word.
    Network,
}

impl fmt::Display for Ending<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => f.write_str("disconnected"),
            Self::Refused { reason, reason_string, server_reference } => {
                write!(f, "the server refused the connection: {reason}")?;
                write_details(f, *reason_string, *server_reference)
            }
            Self::Server { reason, reason_string, server_reference, .. } => {
                write!(f, "the server disconnected us: {reason}")?;
                write_details(f, *reason_string, *server_reference)
            }
            Self::Malformed(error) => write!(f, "the server sent a {error}"),
            Self::Protocol { reason, what } => {
                write!(f, "the server broke the protocol: {what} ({})", reason.name())
            }
            Self::ConnectTimeout => f.write_str("the server did not answer our CONNECT in time"),
            Self::KeepAliveTimeout => f.write_str("the server did not answer our PINGREQ in time"),
            Self::Network => f.write_str("the connection was lost"),
        }
    }
}

fn write_details(
    f: &mut fmt::Formatter<'_>,
    reason_string: Option<&str>,
    server_reference: Option<&str>,
) -> fmt::Result {
    if let Some(text) = reason_string {
        write!(f, ", {text:?}")?;
    }
    if let Some(server) = server_reference {
        write!(f, ", use {server:?}")?;
    }
    Ok(())
}

/// Why a request was not made. Nothing was sent, no id was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// There is no accepted connection.
    NotConnected,
    /// The server's Receive Maximum, our own bound, or the packet ids are exhausted, or a resumed
    /// session is still being sent again: try again after the next [`Event::Acked`].
    WindowFull,
    /// The topic is not one that can be published to.
    Topic(TopicError),
    /// The server's Maximum QoS is lower.
    QosNotSupported,
    /// The server does not retain messages.
    RetainNotSupported,
    /// The server's Maximum Packet Size is smaller.
    PacketTooLarge,
    /// The Topic Alias is above the server's maximum, or it would have to be sent again on another
    /// connection: a QoS 1 or 2 message carries its topic.
    TopicAlias,
    /// A SUBSCRIBE or UNSUBSCRIBE with no filter, or with more than 65,535.
    FilterCount,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConnected => f.write_str("not connected"),
            Self::WindowFull => f.write_str("too many messages are unacknowledged"),
            Self::Topic(error) => write!(f, "bad topic: {error}"),
            Self::QosNotSupported => f.write_str("the server does not support this QoS"),
            Self::RetainNotSupported => f.write_str("the server does not retain messages"),
            Self::PacketTooLarge => f.write_str("the packet is larger than the server accepts"),
            Self::TopicAlias => f.write_str("the server does not accept this topic alias"),
            Self::FilterCount => f.write_str("no topic filter, or too many in one request"),
        }
    }
}

impl std::error::Error for RequestError {}
