//! What is logged of single clients, at debug level: connected, refused, taken over, ended, and
//! why. Never on the path of a message.
//!
//! Invariants: whatever a client has chosen (its id, its method) is escaped and cut before it is
//! logged, so that no client can forge or flood a line; passwords, Authentication Data, topics and
//! payloads are never logged.
#![forbid(unsafe_code)]

use std::fmt::{self, Display, Write};

use tracing::field::display;

use crate::codec::mqtt::{Connect, ReasonCode};
use crate::ids::ConnId;
use crate::limits::LOGGED_CHARS_MAX;

use super::conn::State;
use super::connect::Connecting;
use super::{Accepted, Broker};

/// A string that a client has chosen, safe to be shown: control characters and the like are
/// escaped, and of a long one the beginning stands for it.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        for c in chars.by_ref().take(LOGGED_CHARS_MAX) {
            write!(f, "{}", c.escape_debug())?;
        }
        match chars.as_str().len() {
            0 => Ok(()),
            more => {
                f.write_char('…')?;
                write!(f, "({more} more bytes)")
            }
        }
    }
}

fn is_on() -> bool {
    tracing::enabled!(tracing::Level::DEBUG)
}

impl Broker {
    /// CONNACK says yes.
    pub(super) fn log_connected(&self, id: ConnId, connecting: &Connecting, keep_alive_secs: u16) {
        if !is_on() {
            return;
        }
        let method = connecting.proof.as_ref().map(|proof| display(Shown(&proof.method)));
        tracing::debug!(
            client = %Shown(connecting.client_id()),
            peer = self.accepted_of(id).and_then(|a| a.peer).map(display),
            version = self.version_of(id).map(display),
            session_present = connecting.session_present,
            keep_alive_secs,
            method,
            "connected"
        );
    }

    /// CONNACK says no; the client's id where it is known.
    pub(super) fn log_refused(&self, id: ConnId, client_id: &str, reason: ReasonCode) {
        if is_on() {
            let peer = self.accepted_of(id).and_then(|a| a.peer).map(display);
            tracing::debug!(client = %Shown(client_id), peer, %reason, "refused");
        }
    }

    /// A connection ends, by whom and why.
    pub(super) fn log_end(&self, id: ConnId, by: &'static str, reason: &dyn Display) {
        if !is_on() || self.conns.state(id) == Some(State::Closing) {
            return;
        }
        let session = self.conns.get(id).and_then(|conn| conn.session);
        let client = session.and_then(|key| self.sessions.get(key)).map(|s| &*s.client_id);
        let peer = self.accepted_of(id).and_then(|a| a.peer).map(display);
        tracing::debug!(client = client.map(|c| display(Shown(c))), peer, by, %reason, "disconnected");
    }

    /// What had been received of a client that is refused or closed for it.
    pub(super) fn log_broken(&self, id: ConnId, cause: &'static str) {
        if is_on() {
            let peer = self.accepted_of(id).and_then(|a| a.peer).map(display);
            tracing::debug!(peer, cause, "no valid packet");
        }
    }

    /// An exchange of authentication begins.
    pub(super) fn log_authenticating(&self, id: ConnId, connect: &Connect<'_>) {
        if is_on() {
            let peer = self.accepted_of(id).and_then(|a| a.peer).map(display);
            let method = connect.properties.authentication_method.unwrap_or_default();
            let (client, method) = (Shown(connect.client_id), Shown(method));
            tracing::debug!(%client, peer, %method, "authenticating");
        }
    }

    fn accepted_of(&self, id: ConnId) -> Option<Accepted> {
        self.conns.accepted(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PITFALLS 84
    #[test]
    fn what_clients_choose_is_shown_safely() {
        let shown = |text: &str| Shown(text).to_string();
        assert_eq!(shown("sensor-7/ä"), "sensor-7/ä");
        assert_eq!(shown("a\nb\r\t\u{1b}[31m\u{7f}"), r"a\nb\r\t\u{1b}[31m\u{7f}");
        assert_eq!(shown("\u{85}\u{202e}\u{2028}"), r"\u{85}\u{202e}\u{2028}");
        assert_eq!(shown("\"\\"), r#"\"\\"#);
        let long = "x".repeat(LOGGED_CHARS_MAX);
        assert_eq!(shown(&long), long);
        assert_eq!(shown(&format!("{long}yz")), format!("{long}…(2 more bytes)"));
        let most = shown(&"\u{1}".repeat(65_535));
        assert!(most.len() < LOGGED_CHARS_MAX * 10 + 40, "{} bytes", most.len());
    }
}
