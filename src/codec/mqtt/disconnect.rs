//! DISCONNECT (3.14) and AUTH (3.15).
#![forbid(unsafe_code)]

use super::error::Cause;
use super::properties::{Section, UserProperties, id, put_binary, put_string, put_u32, set};
use super::reason::ReasonCode;
use super::wire::{Encode, Reader, Sink};
use super::{Side, Version};

const DISCONNECT_ALLOWED: u64 =
    set(&[id::SESSION_EXPIRY_INTERVAL, id::REASON_STRING, id::USER_PROPERTY, id::SERVER_REFERENCE]);
const AUTH_ALLOWED: u64 = set(&[
    id::AUTHENTICATION_METHOD,
    id::AUTHENTICATION_DATA,
    id::REASON_STRING,
    id::USER_PROPERTY,
]);

/// The last packet of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disconnect<'a> {
    /// Always normal before MQTT 5.0.
    pub reason: ReasonCode,
    /// Seconds; only from a client `[MQTT-3.14.2-2]`.
    pub session_expiry_interval: Option<u32>,
    /// For people.
    pub reason_string: Option<&'a str>,
    /// Another server to use.
    pub server_reference: Option<&'a str>,
    /// Anything else.
    pub user_properties: UserProperties<'a>,
}

/// A step of an extended authentication. MQTT 5.0 only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Auth<'a> {
    /// Success, Continue authentication or Re-authenticate.
    pub reason: ReasonCode,
    /// The same in the whole exchange; absent only in a success without any property.
    pub authentication_method: Option<&'a str>,
    /// What the method says.
    pub authentication_data: Option<&'a [u8]>,
    /// For people.
    pub reason_string: Option<&'a str>,
    /// Anything else.
    pub user_properties: UserProperties<'a>,
}

impl<'a> Disconnect<'a> {
    /// Nothing but a reason.
    pub const fn new(reason: ReasonCode) -> Self {
        Self {
            reason,
            session_expiry_interval: None,
            reason_string: None,
            server_reference: None,
            user_properties: UserProperties::EMPTY,
        }
    }

    fn has_properties(&self) -> bool {
        self.session_expiry_interval.is_some()
            || self.reason_string.is_some()
            || self.server_reference.is_some()
            || !self.user_properties.is_empty()
    }

    pub(super) fn read(
        packet: &mut Reader<'a>,
        version: Version,
        side: Side,
    ) -> Result<Self, Cause> {
        let mut disconnect = Self::default();
        if version != Version::V5 {
            // Before MQTT 5.0 only a client says good-bye.
            if side == Side::Client {
                return Err(Cause::Direction);
            }
            packet.finish()?;
            return Ok(disconnect);
        }
        // Both may be missing (3.14.2.1, 3.14.2.2.1).
        if packet.is_empty() {
            return Ok(disconnect);
        }
        disconnect.reason = check_disconnect_reason(ReasonCode(packet.u8()?), side)?;
        if packet.is_empty() {
            return Ok(disconnect);
        }
        let mut section = Section::take(packet, DISCONNECT_ALLOWED)?;
        while let Some(found) = section.next()? {
            match found {
                id::SESSION_EXPIRY_INTERVAL if side == Side::Client => {
                    return Err(Cause::SessionExpiryFromServer);
                }
                id::SESSION_EXPIRY_INTERVAL => {
                    disconnect.session_expiry_interval = Some(section.reader.u32()?);
                }
                id::REASON_STRING => disconnect.reason_string = Some(section.reader.string()?),
                _ => disconnect.server_reference = Some(section.reader.string()?),
            }
        }
        disconnect.user_properties = section.user_properties();
        packet.finish()?;
        Ok(disconnect)
    }

    pub(super) fn put<S: Sink>(&self, version: Version, out: &mut S) {
        let properties = self.has_properties();
        let bare = !properties && self.reason == ReasonCode::NORMAL_DISCONNECTION;
        if version != Version::V5 || bare {
            return;
        }
        out.u8(self.reason.0);
        if properties {
            self.put_with_len(out);
        }
    }
}

/// The property section.
impl Encode for Disconnect<'_> {
    fn put<S: Sink>(&self, out: &mut S) {
        put_u32(out, id::SESSION_EXPIRY_INTERVAL, self.session_expiry_interval);
        put_string(out, id::REASON_STRING, self.reason_string);
        put_string(out, id::SERVER_REFERENCE, self.server_reference);
        self.user_properties.put(out);
    }
}

/// `[MQTT-3.14.2-1]`: some are for one side only.
fn check_disconnect_reason(reason: ReasonCode, by: Side) -> Result<ReasonCode, Cause> {
    let allowed = match reason.0 {
        0x00 | 0x80..=0x83 | 0x90 | 0x93..=0x99 => true,
        0x04 => by == Side::Server,
        0x87 | 0x89 | 0x8B | 0x8D..=0x8F | 0x9A..=0xA2 => by == Side::Client,
        _ => false,
    };
    if allowed { Ok(reason) } else { Err(Cause::ReasonCode) }
}

impl<'a> Auth<'a> {
    fn has_properties(&self) -> bool {
        self.authentication_method.is_some()
            || self.authentication_data.is_some()
            || self.reason_string.is_some()
            || !self.user_properties.is_empty()
    }

    pub(super) fn read(packet: &mut Reader<'a>, side: Side) -> Result<Self, Cause> {
        let mut auth = Self::default();
        // Both may be missing in a success without properties (3.15.2.1).
        let short = packet.is_empty();
        if !short {
            auth.reason = ReasonCode(packet.u8()?);
        }
        // [MQTT-3.15.2-1], table 3-11
        match (auth.reason, side) {
            (ReasonCode::CONTINUE_AUTHENTICATION, _)
            | (ReasonCode::SUCCESS, Side::Client)
            | (ReasonCode::RE_AUTHENTICATE, Side::Server) => {}
            _ => return Err(Cause::ReasonCode),
        }
        if short {
            return Ok(auth);
        }
        let mut section = Section::take(packet, AUTH_ALLOWED)?;
        while let Some(found) = section.next()? {
            match found {
                id::AUTHENTICATION_METHOD => {
                    auth.authentication_method = Some(section.reader.string()?);
                }
                id::AUTHENTICATION_DATA => {
                    auth.authentication_data = Some(section.reader.binary()?);
                }
                _ => auth.reason_string = Some(section.reader.string()?),
            }
        }
        auth.user_properties = section.user_properties();
        packet.finish()?;
        if auth.authentication_method.is_none() {
            return Err(Cause::AuthenticationMethod);
        }
        Ok(auth)
    }

    /// The packet without its fixed header.
    pub(super) fn put_packet<S: Sink>(&self, out: &mut S) {
        if self.reason == ReasonCode::SUCCESS && !self.has_properties() {
            return;
        }
        out.u8(self.reason.0);
        self.put_with_len(out);
    }
}

/// The property section.
impl Encode for Auth<'_> {
    fn put<S: Sink>(&self, out: &mut S) {
        put_string(out, id::AUTHENTICATION_METHOD, self.authentication_method);
        put_binary(out, id::AUTHENTICATION_DATA, self.authentication_data);
        put_string(out, id::REASON_STRING, self.reason_string);
        self.user_properties.put(out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ALL_VERSIONS, accepted, bad, good, written};
    use super::super::{Cause, Packet};
    use super::*;

    #[test]
    fn disconnect_in_all_versions() {
        for version in ALL_VERSIONS {
            good(version, Side::Server, 0xE0, "", Packet::Disconnect(Disconnect::default()));
            let full = Disconnect {
                reason_string: Some("bye"),
                ..Disconnect::new(ReasonCode::DISCONNECT_WITH_WILL)
            };
            if version != Version::V5 {
                bad(version, Side::Server, 0xE0, "00", Cause::TrailingBytes);
                bad(version, Side::Client, 0xE0, "", Cause::Direction);
                written(version, Packet::Disconnect(full), 0xE0, "");
            } else {
                good(version, Side::Server, 0xE0, "04 06 1F 'bye'", Packet::Disconnect(full));
            }
        }
    }

    #[test]
    fn disconnect_of_5() {
        let five = Version::V5;
        let taken_over = Disconnect::new(ReasonCode::SESSION_TAKEN_OVER);
        good(five, Side::Client, 0xE0, "8E", Packet::Disconnect(taken_over));
        accepted(five, Side::Client, 0xE0, "8E 00", Packet::Disconnect(taken_over));
        let normal = Disconnect::default();
        accepted(five, Side::Server, 0xE0, "00", Packet::Disconnect(normal));
        accepted(five, Side::Server, 0xE0, "00 00", Packet::Disconnect(normal));
        let expiry = Disconnect { session_expiry_interval: Some(0), ..normal };
        good(five, Side::Server, 0xE0, "00 05 1100000000", Packet::Disconnect(expiry));
        let moved = Disconnect {
            server_reference: Some("b:1"),
            ..Disconnect::new(ReasonCode::SERVER_MOVED)
        };
        good(five, Side::Client, 0xE0, "9D 06 1C 'b:1'", Packet::Disconnect(moved));
    }

    /// `[MQTT-3.14.2-1]`, `[MQTT-3.14.2-2]`; PITFALLS F78.
    #[test]
    fn refused_disconnects() {
        let bad = |side, body, cause| bad(Version::V5, side, 0xE0, body, cause).reason.0;
        assert_eq!(bad(Side::Server, "01", Cause::ReasonCode), 0x82);
        assert_eq!(bad(Side::Server, "8E", Cause::ReasonCode), 0x82, "only servers take over");
        assert_eq!(bad(Side::Client, "04", Cause::ReasonCode), 0x82, "servers have no Will");
        assert_eq!(bad(Side::Client, "84", Cause::ReasonCode), 0x82, "of CONNACK");
        let expiry = "00 05 1100000001";
        assert_eq!(bad(Side::Client, expiry, Cause::SessionExpiryFromServer), 0x82);
        let twice = "00 0A 1100000001 1100000001";
        assert_eq!(bad(Side::Server, twice, Cause::PropertyRepeated), 0x82);
        assert_eq!(bad(Side::Server, "00 02 0101", Cause::PropertyNotAllowed), 0x81);
        assert_eq!(bad(Side::Server, "00 00 00", Cause::TrailingBytes), 0x81);
        assert_eq!(bad(Side::Server, "00 01", Cause::Truncated), 0x81);
        for code in 0..=0xFF {
            let from_client = check_disconnect_reason(ReasonCode(code), Side::Server).is_ok();
            let from_server = check_disconnect_reason(ReasonCode(code), Side::Client).is_ok();
            assert!(!from_client || from_server || code == 4, "0x{code:02X}");
            assert!(!from_server || ReasonCode(code).name() != "Reserved", "0x{code:02X}");
        }
    }

    #[test]
    fn auth() {
        let five = Version::V5;
        let go_on = Auth {
            reason: ReasonCode::CONTINUE_AUTHENTICATION,
            authentication_method: Some("M"),
            authentication_data: Some(&[1, 2]),
            ..Auth::default()
        };
        let body = "18 09 15 'M' 16 0002 0102";
        good(five, Side::Server, 0xF0, body, Packet::Auth(go_on));
        good(five, Side::Client, 0xF0, body, Packet::Auth(go_on));
        let pairs = [("k", "v")];
        let again = Auth {
            reason: ReasonCode::RE_AUTHENTICATE,
            authentication_method: Some("M"),
            reason_string: Some("r"),
            user_properties: UserProperties::new(&pairs),
            ..Auth::default()
        };
        let body = "19 0F 15 'M' 1F 'r' 26 'k' 'v'";
        good(five, Side::Server, 0xF0, body, Packet::Auth(again));
        good(five, Side::Client, 0xF0, "", Packet::Auth(Auth::default()));
        let bad = |side, body, cause| bad(Version::V5, side, 0xF0, body, cause).reason.0;
        // [MQTT-3.15.2-1], table 3-11
        assert_eq!(bad(Side::Server, "", Cause::ReasonCode), 0x82);
        assert_eq!(bad(Side::Client, "19 04 15 'M'", Cause::ReasonCode), 0x82);
        assert_eq!(bad(Side::Server, "01 04 15 'M'", Cause::ReasonCode), 0x82);
        assert_eq!(bad(Side::Server, "18 00", Cause::AuthenticationMethod), 0x82);
        assert_eq!(bad(Side::Server, "18 05 16 0002 0102", Cause::AuthenticationMethod), 0x82);
        assert_eq!(bad(Side::Server, "18", Cause::Truncated), 0x81);
        assert_eq!(bad(Side::Server, "18 08 15 'M' 15 'M'", Cause::PropertyRepeated), 0x82);
        assert_eq!(bad(Side::Server, "18 00 00", Cause::TrailingBytes), 0x81);
    }
}
