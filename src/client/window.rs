//! What we have sent and the server has not yet answered: packet ids, the send quota, resending.
//!
//! Ids are given out in a circle, 1 to 65,535, and an entry stands at its id's distance from the
//! oldest one, so finding it is arithmetic. An answered entry leaves once it is the oldest; until
//! then it holds its id. Invariants:
//! - *W1* an id is never given out while its exchange is open (it would need the circle to close);
//! - *W2* at most `quota_max` QoS 1 and 2 messages are unanswered on one connection;
//! - *W3* after a resume nothing new is published before all that was open has been sent again, in
//!   its first order.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::codec::mqtt::{Ack, Packet, PacketId, ReasonCode, Version};

/// How many ids there are.
const IDS: usize = 65_535;
/// The DUP flag in the first byte of a PUBLISH.
const DUP: u8 = 0x08;

/// How far an exchange has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exchange {
    /// Answered; waits for older ones to leave.
    Done,
    /// SUBSCRIBE sent.
    Subscribe,
    /// UNSUBSCRIBE sent.
    Unsubscribe,
    /// QoS 1 PUBLISH sent.
    AtLeastOnce,
    /// QoS 2 PUBLISH sent.
    ExactlyOnce,
    /// PUBREC received, PUBREL sent.
    Released,
}

#[derive(Debug)]
struct Entry {
    exchange: Exchange,
    /// Filters of a SUBSCRIBE or UNSUBSCRIBE.
    filters: u16,
    /// The PUBLISH, when it may have to be sent again.
    packet: Option<Box<[u8]>>,
}

/// The exchanges that we opened, oldest first.
#[derive(Debug)]
pub(super) struct Window {
    entries: VecDeque<Entry>,
    /// The id of the oldest entry; of the next one when there is none.
    first: u16,
    quota: u16,
    quota_max: u16,
    /// Entries before this one were sent on this connection.
    resent: usize,
}

impl Window {
    pub(super) const fn new() -> Self {
        Self { entries: VecDeque::new(), first: 1, quota: 0, quota_max: 0, resent: 0 }
    }

    /// The id that the next [`Window::open`] takes; `None` when all are in use.
    pub(super) fn next_id(&self) -> Option<PacketId> {
        if self.entries.len() < IDS { Some(self.id_at(self.entries.len())) } else { None }
    }

    /// Whether a QoS 1 or 2 message may be published now.
    pub(super) fn may_publish(&self) -> bool {
        self.quota > 0 && self.resent == self.entries.len() && self.entries.len() < IDS
    }

    /// How many QoS 1 and 2 messages are not yet fully acknowledged.
    pub(super) fn unacknowledged(&self) -> usize {
        self.entries
            .iter()
            .filter(|entry| {
                matches!(
                    entry.exchange,
                    Exchange::AtLeastOnce | Exchange::ExactlyOnce | Exchange::Released
                )
            })
            .count()
    }

    /// Opens the exchange that [`Window::next_id`] names.
    pub(super) fn open(&mut self, exchange: Exchange, filters: u16, packet: Option<Box<[u8]>>) {
        if matches!(exchange, Exchange::AtLeastOnce | Exchange::ExactlyOnce) {
            assert!(self.may_publish(), "invariant: W2, W3");
            self.quota -= 1;
        }
        if self.resent == self.entries.len() {
            self.resent += 1;
        }
        self.entries.push_back(Entry { exchange, filters, packet });
    }

    /// How far the exchange of `id` is; `None` when it is not open.
    pub(super) fn exchange(&self, id: PacketId) -> Option<Exchange> {
        let entry = self.entries.get(self.index_of(id))?;
        (entry.exchange != Exchange::Done).then_some(entry.exchange)
    }

    /// Filters of the SUBSCRIBE or UNSUBSCRIBE of `id`.
    pub(super) fn filters(&self, id: PacketId) -> usize {
        self.entries.get(self.index_of(id)).map_or(0, |entry| usize::from(entry.filters))
    }

    /// PUBREC: the server has the message; what may have to be sent again is the PUBREL.
    pub(super) fn release(&mut self, id: PacketId) {
        let index = self.index_of(id);
        if let Some(entry) = self.entries.get_mut(index) {
            entry.exchange = Exchange::Released;
            entry.packet = None;
        }
    }

    /// The final answer has come: the id is free as soon as older ones are.
    pub(super) fn close(&mut self, id: PacketId) {
        let index = self.index_of(id);
        let Some(entry) = self.entries.get_mut(index) else { return };
        match entry.exchange {
            Exchange::Done => return,
            Exchange::Subscribe | Exchange::Unsubscribe => {}
            Exchange::AtLeastOnce | Exchange::ExactlyOnce | Exchange::Released => {
                self.quota = self.quota.saturating_add(1).min(self.quota_max);
            }
        }
        entry.exchange = Exchange::Done;
        entry.packet = None;
        self.forget_answered();
    }

    /// A connection begins without our session: everything open is lost. Tells which messages.
    pub(super) fn start_empty(&mut self, quota_max: u16, mut lost: impl FnMut(PacketId)) {
        for index in 0..self.entries.len() {
            if self.entries[index].exchange != Exchange::Done {
                lost(self.id_at(index));
            }
        }
        // Ids go on where they were: reusing them at once would be legal, but hard to read in traces.
        self.first = self.id_at(self.entries.len()).get();
        self.entries.clear();
        self.quota_max = quota_max;
        self.quota = quota_max;
        self.resent = 0;
    }

    /// A connection begins and the server has our session: what is open is sent again by
    /// [`Window::resend`]. SUBSCRIBE and UNSUBSCRIBE are not part of a session: tells which are lost.
    pub(super) fn start_resumed(&mut self, quota_max: u16, mut lost: impl FnMut(PacketId)) {
        for index in 0..self.entries.len() {
            let exchange = self.entries[index].exchange;
            if matches!(exchange, Exchange::Subscribe | Exchange::Unsubscribe) {
                self.entries[index].exchange = Exchange::Done;
                lost(self.id_at(index));
            }
        }
        self.forget_answered();
        self.quota_max = quota_max;
        self.quota = quota_max;
        self.resent = 0;
    }

    /// Sends again what is left to send again, as far as the quota allows `[MQTT-4.4.0-1]`.
    pub(super) fn resend(&mut self, version: Version, out: &mut Vec<u8>) {
        while let Some(entry) = self.entries.get(self.resent) {
            match entry.exchange {
                Exchange::Done | Exchange::Subscribe | Exchange::Unsubscribe => {}
                Exchange::Released => {
                    let id = self.id_at(self.resent);
                    Packet::PubRel(Ack::new(id, ReasonCode::SUCCESS)).encode(version, out);
                }
                Exchange::AtLeastOnce | Exchange::ExactlyOnce => {
                    if self.quota == 0 {
                        return;
                    }
                    self.quota -= 1;
                    let packet = entry
                        .packet
                        .as_ref()
                        .expect("invariant: a session that is resumed keeps its packets");
                    let at = out.len();
                    out.extend_from_slice(packet);
                    out[at] |= DUP; // [MQTT-3.3.1-1]
                }
            }
            self.resent += 1;
        }
    }

    fn forget_answered(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.exchange == Exchange::Done) {
            self.first = self.id_at(1).get();
            self.entries.pop_front();
            self.resent = self.resent.saturating_sub(1);
        }
        if self.entries.is_empty() && self.entries.capacity() > 1024 {
            self.entries.shrink_to(64);
        }
    }

    fn id_at(&self, index: usize) -> PacketId {
        let id = (usize::from(self.first) - 1 + index) % IDS + 1;
        PacketId::new(id as u16).expect("invariant: 1 to 65,535")
    }

    fn index_of(&self, id: PacketId) -> usize {
        (usize::from(id.get()) + IDS - usize::from(self.first)) % IDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(window: &mut Window, exchange: Exchange) -> PacketId {
        let id = window.next_id().unwrap();
        let packet = vec![0x32, 2, id.get() as u8, 0].into_boxed_slice();
        window.open(exchange, 0, Some(packet));
        id
    }

    fn started(quota: u16) -> Window {
        let mut window = Window::new();
        window.start_empty(quota, |_| panic!("nothing to lose"));
        window
    }

    #[test]
    fn an_id_is_not_given_out_again_while_it_is_open() {
        let mut window = started(u16::MAX);
        let stuck = open(&mut window, Exchange::ExactlyOnce);
        for _ in 0..IDS - 1 {
            let id = open(&mut window, Exchange::AtLeastOnce);
            assert_ne!(id, stuck);
            window.close(id);
        }
        assert_eq!(window.next_id(), None, "the circle is closed");
        assert!(!window.may_publish());
        window.close(stuck);
        assert_eq!(window.next_id(), Some(stuck));
        assert_eq!(window.unacknowledged(), 0);
    }

    #[test]
    fn the_quota_counts_messages_only_and_never_exceeds_its_maximum() {
        let mut window = started(2);
        let a = open(&mut window, Exchange::AtLeastOnce);
        let sub = open(&mut window, Exchange::Subscribe);
        let b = open(&mut window, Exchange::ExactlyOnce);
        assert!(!window.may_publish());
        window.release(b);
        assert!(!window.may_publish(), "PUBREC gives no quota back [MQTT-4.9.0-2]");
        window.close(sub);
        assert!(!window.may_publish());
        window.close(b);
        window.close(b);
        assert!(window.may_publish());
        open(&mut window, Exchange::AtLeastOnce);
        assert!(!window.may_publish());
        window.close(a);
        assert!(window.may_publish());
    }

    #[test]
    fn resends_in_order_with_dup_as_far_as_the_quota_allows() {
        let mut window = started(10);
        let ids: Vec<_> = (0..4).map(|_| open(&mut window, Exchange::ExactlyOnce)).collect();
        open(&mut window, Exchange::Subscribe);
        window.release(ids[1]);
        let mut lost = Vec::new();
        window.start_resumed(2, |id| lost.push(id.get()));
        assert_eq!(lost, [5]);
        let mut out = Vec::new();
        window.resend(Version::V311, &mut out);
        assert_eq!(out, [0x3a, 2, 1, 0, 0x62, 2, 0, 2, 0x3a, 2, 3, 0]);
        assert!(!window.may_publish(), "W3");
        out.clear();
        window.close(ids[0]);
        window.resend(Version::V311, &mut out);
        assert_eq!(out, [0x3a, 2, 4, 0]);
        window.close(ids[1]);
        window.close(ids[2]);
        window.resend(Version::V311, &mut out);
        assert!(window.may_publish());
        assert_eq!(window.unacknowledged(), 1);
    }

    #[test]
    fn an_empty_session_loses_what_was_open() {
        let mut window = started(10);
        let a = open(&mut window, Exchange::AtLeastOnce);
        open(&mut window, Exchange::AtLeastOnce);
        window.close(a);
        let mut lost = Vec::new();
        window.start_empty(10, |id| lost.push(id.get()));
        assert_eq!(lost, [2]);
        assert_eq!(window.next_id().map(PacketId::get), Some(3));
    }
}
