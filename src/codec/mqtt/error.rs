//! What can be wrong with the bytes of a peer: one [`Cause`] per rule, each with the reason code
//! that MQTT 5.0 gives it.
#![forbid(unsafe_code)]

use std::fmt;

use super::reason::ReasonCode;
use super::{PacketKind, Version};

macro_rules! causes {
    ($($(#[$doc:meta])* $name:ident, $reason:ident, $text:literal;)*) => {
        /// The rule that a packet broke. Small and dense, so that a counter per cause is an array
        /// indexed by `cause as usize`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Cause {
            $($(#[$doc])* $name,)*
        }

        impl Cause {
            /// All of them, in the order of their numbers.
            pub const ALL: [Cause; Cause::COUNT] = [$(Cause::$name,)*];
            /// How many there are.
            pub const COUNT: usize = [$(stringify!($name),)*].len();

            /// What is wrong, in a few lower-case words.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Cause::$name => $text,)*
                }
            }

            /// The reason code that the specification asks for.
            pub const fn reason(self) -> ReasonCode {
                match self {
                    $(Cause::$name => ReasonCode::$reason,)*
                }
            }
        }
    };
}

causes! {
    /// The packet ends before its fields do.
    Truncated, MALFORMED_PACKET, "the packet ends before its fields do";
    /// Bytes follow the last field.
    TrailingBytes, MALFORMED_PACKET, "bytes after the last field";
    /// A Variable Byte Integer of more than four bytes (1.5.5).
    VariableByteIntegerTooLong, MALFORMED_PACKET, "variable byte integer of more than four bytes";
    /// `[MQTT-1.5.5-1]`
    VariableByteIntegerNotMinimal, MALFORMED_PACKET, "variable byte integer with needless bytes";
    /// `[MQTT-1.5.4-1]`
    Utf8, MALFORMED_PACKET, "ill-formed UTF-8";
    /// `[MQTT-1.5.4-2]`
    NullCharacter, MALFORMED_PACKET, "null character in a string";
    /// Packet type 0, or 15 before MQTT 5.0.
    PacketType, MALFORMED_PACKET, "reserved packet type";
    /// `[MQTT-2.1.3-1]`
    FixedHeaderFlags, MALFORMED_PACKET, "reserved flags of the fixed header";
    /// More bytes than the receiver takes (3.1.2.11.4, 4.13).
    PacketTooLarge, PACKET_TOO_LARGE, "packet larger than allowed";
    /// A packet that only the other side may send.
    Direction, PROTOCOL_ERROR, "packet from the wrong side";
    /// `[MQTT-3.1.0-1]`
    ConnectExpected, PROTOCOL_ERROR, "first packet is not CONNECT";
    /// `[MQTT-3.1.0-2]`
    SecondConnect, PROTOCOL_ERROR, "second CONNECT";
    /// `[MQTT-3.1.2-1]`
    ProtocolName, UNSUPPORTED_PROTOCOL_VERSION, "unknown protocol name";
    /// `[MQTT-3.1.2-2]`
    ProtocolVersion, UNSUPPORTED_PROTOCOL_VERSION, "unknown protocol version";
    /// `[MQTT-3.1.2-3]`
    ConnectFlags, MALFORMED_PACKET, "reserved connect flag";
    /// `[MQTT-3.1.2-11]`, `[MQTT-3.1.2-13]`
    WillFlags, PROTOCOL_ERROR, "Will QoS or Will Retain without Will";
    /// `[MQTT-3.1.2-12]`
    WillQos, MALFORMED_PACKET, "Will QoS 3";
    /// `[MQTT-3.1.2-22 of 3.1.1]`
    PasswordWithoutUserName, PROTOCOL_ERROR, "password without user name";
    /// `[MQTT-3.2.2-1]`
    ConnAckFlags, MALFORMED_PACKET, "reserved CONNACK flags";
    /// `[MQTT-3.2.2-6]`
    SessionPresent, PROTOCOL_ERROR, "Session Present in a refusal";
    /// `[MQTT-3.3.1-4]`
    Qos, MALFORMED_PACKET, "QoS 3";
    /// `[MQTT-3.3.1-2]`
    DuplicateFlag, MALFORMED_PACKET, "DUP at QoS 0";
    /// `[MQTT-2.2.1-3]`
    PacketIdZero, PROTOCOL_ERROR, "packet identifier 0";
    /// `[MQTT-4.7.3-1]`; in MQTT 5.0 an empty Topic Name without a Topic Alias (3.3.2.1).
    TopicEmpty, PROTOCOL_ERROR, "empty Topic Name";
    /// `[MQTT-3.3.2-2]`
    TopicWildcard, PROTOCOL_ERROR, "wildcard in a Topic Name";
    /// `[MQTT-3.3.2-14]`
    ResponseTopic, PROTOCOL_ERROR, "empty Response Topic, or a wildcard in it";
    /// `[MQTT-3.3.2-8]`
    TopicAliasZero, TOPIC_ALIAS_INVALID, "Topic Alias 0";
    /// `[MQTT-3.3.4-6]`
    SubscriptionIdFromClient, PROTOCOL_ERROR, "Subscription Identifier in a client's PUBLISH";
    /// An identifier that no property has (2.2.2.2).
    PropertyUnknown, MALFORMED_PACKET, "unknown property";
    /// A property of another packet (2.2.2.2).
    PropertyNotAllowed, MALFORMED_PACKET, "property not allowed in this packet";
    /// A property a second time.
    PropertyRepeated, PROTOCOL_ERROR, "property given twice";
    /// A value that the property cannot have.
    PropertyValue, PROTOCOL_ERROR, "property value out of range";
    /// `[MQTT-3.14.2-2]` Session Expiry Interval in a DISCONNECT by the server.
    SessionExpiryFromServer, PROTOCOL_ERROR, "Session Expiry Interval in a server's DISCONNECT";
    /// Authentication Data without Authentication Method (3.1.2.11.10).
    AuthenticationData, PROTOCOL_ERROR, "Authentication Data without Authentication Method";
    /// AUTH without Authentication Method (3.15.2.2.2).
    AuthenticationMethod, PROTOCOL_ERROR, "AUTH without Authentication Method";
    /// `[MQTT-3.14.2-1]` and its like.
    ReasonCode, PROTOCOL_ERROR, "reason code not allowed in this packet";
    /// `[MQTT-3.8.3-2]`, `[MQTT-3.10.3-2]`
    PayloadEmpty, PROTOCOL_ERROR, "empty payload";
    /// `[MQTT-3.8.3-5]`
    SubscriptionOptions, MALFORMED_PACKET, "reserved subscription option bits";
    /// Maximum QoS 3 in a SUBSCRIBE (3.8.3.1).
    SubscriptionQos, PROTOCOL_ERROR, "requested QoS 3";
    /// Retain Handling 3 in a SUBSCRIBE (3.8.3.1).
    RetainHandling, PROTOCOL_ERROR, "Retain Handling 3";
    /// `[MQTT-3.8.3-4]`
    NoLocalShared, PROTOCOL_ERROR, "No Local on a Shared Subscription";
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a frame is not a packet. The connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// What to tell a 5.0 peer.
    pub reason: ReasonCode,
    /// The packet that it was, judged by its first byte.
    pub kind: PacketKind,
    /// The rule that it broke.
    pub cause: Cause,
    /// The version to answer in. Of a CONNECT it is as far as that was read: `None` until its
    /// protocol name and level are known; for a level that we do not speak the nearest that we do.
    pub version: Option<Version>,
}

impl DecodeError {
    pub(super) const fn new(kind: PacketKind, cause: Cause, version: Option<Version>) -> Self {
        Self { reason: cause.reason(), kind, cause, version }
    }

    /// A packet with this first byte is longer than the receiver takes. Found by who reads frames,
    /// before there is a frame to decode.
    pub const fn packet_too_large(first_byte: u8, version: Option<Version>) -> Self {
        Self::new(PacketKind::of(first_byte), Cause::PacketTooLarge, version)
    }

    /// A connection begins with this byte, which begins no CONNECT.
    pub const fn connect_expected(first_byte: u8) -> Self {
        Self::new(PacketKind::of(first_byte), Cause::ConnectExpected, None)
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict =
            if self.reason == ReasonCode::MALFORMED_PACKET { "malformed" } else { "unacceptable" };
        write!(f, "{verdict} {}: {}", self.kind, self.cause)
    }
}

impl std::error::Error for DecodeError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_dense_and_say_something() {
        for (index, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, index);
            assert!(!cause.as_str().is_empty());
            assert!(cause.reason().is_error());
        }
        assert_eq!(Cause::ALL.len(), Cause::COUNT);
    }

    #[test]
    fn display() {
        let error = DecodeError::new(PacketKind::Publish, Cause::Qos, None);
        assert_eq!(error.to_string(), "malformed PUBLISH: QoS 3");
        let error = DecodeError::new(PacketKind::Connect, Cause::SecondConnect, None);
        assert_eq!(error.to_string(), "unacceptable CONNECT: second CONNECT");
    }
}
