//! What a client keeps between connections: its own open exchanges, and the messages that the
//! server has not finished with.
//!
//! Inbound ids are kept sorted: servers count upwards, so a new id goes to the end and the oldest
//! leaves at the front. Invariant *S1*: a QoS 2 message whose id is here was handed to the user
//! exactly once, and the id stays until its PUBREL or the end of the session.
#![forbid(unsafe_code)]

use super::window::Window;
use crate::codec::mqtt::{PacketId, QoS};

/// How far a message that we received has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Received {
    /// QoS 1, handed to the user, who has not acknowledged it (manual acknowledgement only).
    AtLeastOnce,
    /// QoS 2, handed to the user, who has not acknowledged it (manual acknowledgement only).
    ExactlyOnce,
    /// The same, on an earlier connection: its acknowledgement waits for the server's repetition.
    ExactlyOnceEarlier,
    /// QoS 2, PUBREC sent; PUBREL is awaited.
    Recorded,
}

/// What to do with a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Hand it to the user.
    New,
    /// It was handed over; the user acknowledges later.
    Repeated,
    /// It was handed over and acknowledged: acknowledge again.
    RepeatedAcknowledged,
    /// The server has more messages unacknowledged than we allowed.
    TooMany,
}

/// The session state of one client.
#[derive(Debug)]
pub(super) struct Session {
    /// What we opened.
    pub(super) window: Window,
    inbound: Vec<(u16, Received)>,
}

impl Session {
    pub(super) const fn new() -> Self {
        Self { window: Window::new(), inbound: Vec::new() }
    }

    /// A connection begins: with the session that the server kept, or with none.
    pub(super) fn start(&mut self, present: bool, quota_max: u16, lost: impl FnMut(PacketId)) {
        if present {
            // QoS 1 messages that were not acknowledged come again, with any id.
            self.inbound.retain(|(_, received)| *received != Received::AtLeastOnce);
            for (_, received) in &mut self.inbound {
                if *received == Received::ExactlyOnce {
                    *received = Received::ExactlyOnceEarlier;
                }
            }
            self.window.start_resumed(quota_max, lost);
        } else {
            self.inbound = Vec::new();
            self.window.start_empty(quota_max, lost);
        }
    }

    /// A QoS 1 or 2 PUBLISH has come. `receive_maximum` is what we told the server.
    pub(super) fn on_publish(
        &mut self,
        id: PacketId,
        qos: QoS,
        manual_acks: bool,
        receive_maximum: u16,
    ) -> Arrival {
        let at = match self.find(id) {
            Err(at) => at,
            Ok(at) => {
                let received = &mut self.inbound[at].1;
                return match (*received, qos) {
                    (Received::Recorded, _) => Arrival::RepeatedAcknowledged,
                    (Received::AtLeastOnce, _) => Arrival::Repeated,
                    _ => {
                        *received = Received::ExactlyOnce;
                        Arrival::Repeated
                    }
                };
            }
        };
        if self.inbound.len() >= usize::from(receive_maximum) {
            return Arrival::TooMany;
        }
        let received = match (qos, manual_acks) {
            (QoS::ExactlyOnce, true) => Received::ExactlyOnce,
            (QoS::ExactlyOnce, false) => Received::Recorded,
            (_, true) => Received::AtLeastOnce,
            (_, false) => return Arrival::New,
        };
        self.inbound.insert(at, (id.get(), received));
        Arrival::New
    }

    /// The user acknowledges by hand. The quality of the acknowledgement to send now, if any.
    pub(super) fn acknowledge(&mut self, id: PacketId) -> Option<QoS> {
        let at = self.find(id).ok()?;
        match self.inbound[at].1 {
            Received::Recorded => None,
            Received::AtLeastOnce => {
                self.inbound.remove(at);
                Some(QoS::AtLeastOnce)
            }
            Received::ExactlyOnce => {
                self.inbound[at].1 = Received::Recorded;
                Some(QoS::ExactlyOnce)
            }
            Received::ExactlyOnceEarlier => {
                self.inbound[at].1 = Received::Recorded;
                None
            }
        }
    }

    /// A PUBREC with an error ends the exchange.
    pub(super) fn refuse(&mut self, id: PacketId) {
        self.on_release(id);
    }

    /// PUBREL: whether the message was known.
    pub(super) fn on_release(&mut self, id: PacketId) -> bool {
        let Ok(at) = self.find(id) else { return false };
        if self.inbound[at].1 != Received::AtLeastOnce {
            self.inbound.remove(at);
            return true;
        }
        false
    }

    fn find(&self, id: PacketId) -> Result<usize, usize> {
        self.inbound.binary_search_by_key(&id.get(), |(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: u16) -> PacketId {
        PacketId::new(id).unwrap()
    }

    #[test]
    fn exactly_once_over_connections() {
        let mut session = Session::new();
        session.start(false, 10, |_| {});
        let arrive = |session: &mut Session| session.on_publish(id(7), QoS::ExactlyOnce, false, 10);
        assert_eq!(arrive(&mut session), Arrival::New);
        for present in [true, true] {
            assert_eq!(arrive(&mut session), Arrival::RepeatedAcknowledged);
            session.start(present, 10, |_| {});
        }
        assert!(session.on_release(id(7)));
        assert!(!session.on_release(id(7)));
        assert_eq!(arrive(&mut session), Arrival::New, "the id is free after PUBREL");
        session.start(false, 10, |_| {});
        assert_eq!(arrive(&mut session), Arrival::New, "a new session knows nothing");
    }

    #[test]
    fn a_late_manual_acknowledgement_waits_for_the_repetition() {
        let mut session = Session::new();
        session.start(false, 10, |_| {});
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
            assert_eq!(session.on_publish(id(qos as u16), qos, true, 10), Arrival::New);
        }
        assert_eq!(session.on_publish(id(1), QoS::AtLeastOnce, true, 10), Arrival::Repeated);
        session.start(true, 10, |_| {});
        assert_eq!(session.acknowledge(id(1)), None, "QoS 1 comes again as a new message");
        assert_eq!(session.acknowledge(id(2)), None, "the server's repetition is not here yet");
        let again = session.on_publish(id(2), QoS::ExactlyOnce, true, 10);
        assert_eq!(again, Arrival::RepeatedAcknowledged);
        session.start(true, 10, |_| {});
        session.on_publish(id(3), QoS::ExactlyOnce, true, 10);
        session.start(true, 10, |_| {});
        assert_eq!(session.on_publish(id(3), QoS::ExactlyOnce, true, 10), Arrival::Repeated);
        assert_eq!(session.acknowledge(id(3)), Some(QoS::ExactlyOnce));
        assert_eq!(session.acknowledge(id(3)), None);
    }

    #[test]
    fn the_receive_maximum_bounds_new_messages_only() {
        let mut session = Session::new();
        session.start(false, 10, |_| {});
        let mut arrive = |n| session.on_publish(id(n), QoS::ExactlyOnce, false, 2);
        assert_eq!(arrive(9), Arrival::New);
        assert_eq!(arrive(3), Arrival::New);
        assert_eq!(arrive(5), Arrival::TooMany);
        assert_eq!(arrive(9), Arrival::RepeatedAcknowledged);
    }
}
