//! Exchanges under way: QoS 1 and 2 messages sent and not finished, and the packet ids that the
//! client has not released.
//!
//! [`Outbound`] is ordered by first sending, the order in which MQTT re-sends. A packet id is live
//! exactly while its exchange is in it, and is not given out again before [MQTT-4.3.2-1]. The
//! exchanges before `resent` were sent on the present connection, those from it on wait for the
//! window; without a connection `resent` is 0. [`Inbound`] belongs to the session: it outlives the
//! connection, so that a PUBLISH sent again is not published again [MQTT-4.3.3-10].
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::codec::mqtt::PacketId;

use super::message::MessageId;
use super::queue::Queued;

/// Packet ids repeat after this many.
const IDS: u64 = u16::MAX as u64;

/// How far an exchange towards the client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// QoS 2 whose packet id is not recorded yet: it may not be sent (SHARDS.md J3).
    Assigning,
    /// PUBLISH was sent, or is to be sent again.
    Published,
    /// PUBREC came; PUBREL waits for its record (J3).
    Received,
    /// PUBREL was sent; the numbers order PUBRELs as their PUBRECs came [MQTT-4.6.0-4].
    Released(u32),
}

/// One message on its way.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// Which exchange of the session it is; its packet id follows from it.
    number: u64,
    pub(crate) stage: Stage,
    /// Whether PUBLISH was sent before, on whichever connection.
    pub(crate) was_sent: bool,
    /// The message that a record says to have this packet id.
    pub(crate) assigned: Option<MessageId>,
    /// The message; gone once PUBREC came.
    pub(crate) queued: Option<Queued>,
}

impl Exchange {
    pub(crate) fn id(&self) -> PacketId {
        id_of(self.number)
    }

    /// Whether PUBREC came.
    pub(crate) fn is_received(&self) -> bool {
        matches!(self.stage, Stage::Received | Stage::Released(_))
    }
}

fn id_of(number: u64) -> PacketId {
    PacketId::new((number % IDS) as u16 + 1).expect("invariant: counted from 1")
}

/// Messages on their way to the client.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    /// Ascending by number.
    exchanges: VecDeque<Exchange>,
    /// Exchanges before this index are under way on the present connection.
    resent: usize,
    /// Of those behind it, the ones past PUBREC: they count against the window all the same.
    received_behind: usize,
    next: u64,
    released: u32,
}

impl Outbound {
    /// Slots of the client's window in use; an exchange counts until it is finished.
    #[inline]
    pub(crate) fn used(&self) -> usize {
        self.resent + self.received_behind
    }

    pub(crate) fn len(&self) -> usize {
        self.exchanges.len()
    }

    /// As if so many exchanges had been begun in all; no fewer than there were.
    #[cfg(test)]
    pub(crate) fn skip_to(&mut self, next: u64) {
        assert!(next >= self.next);
        self.next = next;
    }

    /// Whether every exchange is on the present connection, so that a new one may begin.
    #[inline]
    pub(crate) fn is_resent(&self) -> bool {
        self.resent == self.exchanges.len()
    }

    /// Begins an exchange under a packet id that is not live.
    pub(crate) fn begin(&mut self, queued: Queued, stage: Stage) -> PacketId {
        debug_assert!(self.is_resent() && self.len() < usize::from(u16::MAX));
        let mut number = self.next;
        while self.is_lapped(number) {
            number += 1;
        }
        self.next = number + 1;
        let was_sent = stage == Stage::Published;
        let queued = Some(queued);
        self.exchanges.push_back(Exchange { number, stage, was_sent, assigned: None, queued });
        self.resent = self.exchanges.len();
        id_of(number)
    }

    /// An exchange that the journal gave back, behind those that are there: PUBLISH is to be sent
    /// again, or without a message PUBREL.
    pub(crate) fn restore(&mut self, id: PacketId, queued: Option<(Queued, Option<MessageId>)>) {
        let residue = u64::from(id.get() - 1);
        let number = self.next + (IDS + residue - self.next % IDS) % IDS;
        self.next = number + 1;
        let stage = match queued {
            Some(_) => Stage::Published,
            None => {
                self.released = self.released.wrapping_add(1);
                Stage::Released(self.released)
            }
        };
        let (queued, assigned) = queued.unzip();
        let assigned = assigned.flatten();
        self.exchanges.push_back(Exchange { number, stage, was_sent: true, assigned, queued });
    }

    /// Whether an exchange from an earlier turn through the ids still holds this one's id.
    fn is_lapped(&self, number: u64) -> bool {
        self.exchanges.front().is_some_and(|first| first.number + IDS <= number)
            && self.exchanges.iter().any(|e| e.number % IDS == number % IDS)
    }

    /// Where the exchange with this id is. Ids are finished nearly in order, so that it is where
    /// its distance from the first says; else it is searched.
    pub(crate) fn find(&self, id: PacketId) -> Option<usize> {
        let first = self.exchanges.front()?.number;
        let last = self.next - 1;
        let residue = u64::from(id.get() - 1);
        let back = (last % IDS + IDS - residue) % IDS;
        let number = last.checked_sub(back).filter(|number| *number >= first)?;
        let guess = ((number - first) as usize).min(self.exchanges.len() - 1);
        if self.exchanges[guess].number == number {
            return Some(guess);
        }
        if let Ok(index) = self.exchanges.binary_search_by_key(&number, |e| e.number) {
            return Some(index);
        }
        // A client that leaves one unanswered for 65,535 others.
        if first + IDS <= number {
            return self.exchanges.iter().position(|e| e.number % IDS == residue);
        }
        None
    }

    pub(crate) fn get(&self, index: usize) -> &Exchange {
        &self.exchanges[index]
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> &mut Exchange {
        &mut self.exchanges[index]
    }

    /// Ends an exchange; its id is free.
    pub(crate) fn finish(&mut self, index: usize) -> Option<Queued> {
        let exchange = self.exchanges.remove(index)?;
        if index < self.resent {
            self.resent -= 1;
        } else if exchange.is_received() {
            self.received_behind -= 1;
        }
        if self.exchanges.is_empty() && self.exchanges.capacity() > 64 {
            self.exchanges = VecDeque::new();
        }
        exchange.queued
    }

    /// PUBREC came: the message is no longer needed, the id is.
    pub(crate) fn receive(&mut self, index: usize) -> Option<Queued> {
        let exchange = &mut self.exchanges[index];
        if !exchange.is_received() {
            exchange.stage = Stage::Received;
            if index >= self.resent {
                self.received_behind += 1;
            }
        }
        exchange.queued.take()
    }

    /// PUBREL may leave.
    pub(crate) fn release(&mut self, index: usize) {
        debug_assert!(self.exchanges[index].is_received());
        self.released = self.released.wrapping_add(1);
        self.exchanges[index].stage = Stage::Released(self.released);
    }

    /// The connection is gone: everything is to be sent again.
    pub(crate) fn suspend(&mut self) {
        self.resent = 0;
        self.received_behind = 0;
    }

    /// A connection is there: the ids whose PUBREL is owed, in the order of their PUBRECs.
    pub(crate) fn resume(&mut self) -> Vec<PacketId> {
        self.resent = 0;
        self.received_behind = self.exchanges.iter().filter(|e| e.is_received()).count();
        let latest = self.released;
        let mut owed: Vec<(u32, PacketId)> = self
            .exchanges
            .iter()
            .filter_map(|e| match e.stage {
                Stage::Released(order) => Some((latest.wrapping_sub(order), e.id())),
                _ => None,
            })
            .collect();
        owed.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
        owed.into_iter().map(|(_, id)| id).collect()
    }

    /// The next PUBLISH to send again, if `window` has room for it.
    pub(crate) fn next_resend(&mut self, window: usize) -> Option<usize> {
        while let Some(exchange) = self.exchanges.get(self.resent) {
            match exchange.stage {
                Stage::Received | Stage::Released(_) => self.received_behind -= 1,
                _ if self.used() >= window => return None,
                // It leaves when its record is committed.
                Stage::Assigning => {}
                Stage::Published => {
                    self.resent += 1;
                    return Some(self.resent - 1);
                }
            }
            self.resent += 1;
        }
        None
    }

    /// Whether the exchange at `index` is under way on the present connection.
    pub(crate) fn is_on_connection(&self, index: usize) -> bool {
        index < self.resent
    }

    /// All exchanges, in order; for the end of the session.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Exchange> {
        self.suspend();
        std::mem::take(&mut self.exchanges).into_iter()
    }
}

/// Packet ids per page.
const PAGE: usize = 512;
/// Two bits per id in words of 64.
const PAGE_WORDS: usize = PAGE * 2 / 64;

/// What is known of a packet id of the client's QoS 2 publications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Free: a PUBLISH with it is a new message.
    No,
    /// Published on an earlier connection, and not released.
    Earlier,
    /// Published on this connection, and not released.
    Present,
}

/// The QoS 2 packet ids that the client has published and not released. Two bits each (0 free, 1
/// of an earlier connection, 2 of the present one, 3 of that and recorded), in pages that exist
/// while one of their ids is held.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    pages: Vec<Option<Box<[u64; PAGE_WORDS]>>>,
    held: u32,
}

impl Inbound {
    pub(crate) fn get(&self, id: PacketId) -> Held {
        let (page, word, shift) = place(id);
        let bits = match self.pages.get(page) {
            Some(Some(words)) => words[word] >> shift & 3,
            _ => 0,
        };
        match bits {
            0 => Held::No,
            1 => Held::Earlier,
            _ => Held::Present,
        }
    }

    /// The id is held, as one of the present connection; `recorded` if the journal has it.
    pub(crate) fn hold(&mut self, id: PacketId, recorded: bool) {
        let (page, word, shift) = place(id);
        if self.get(id) == Held::No {
            self.held += 1;
        }
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        let words = self.pages[page].get_or_insert_with(|| Box::new([0; PAGE_WORDS]));
        words[word] = words[word] & !(3 << shift) | (2 | u64::from(recorded)) << shift;
    }

    /// Whether the journal may have this id, so that its release is to be recorded.
    pub(crate) fn is_recorded(&self, id: PacketId) -> bool {
        let (page, word, shift) = place(id);
        // Of an earlier connection this is not known any more.
        matches!(self.pages.get(page), Some(Some(words)) if words[word] >> shift & 1 == 1)
    }

    /// The id is free; tells how it was held.
    pub(crate) fn release(&mut self, id: PacketId) -> Held {
        let held = self.get(id);
        if held == Held::No {
            return held;
        }
        self.held -= 1;
        let (page, word, shift) = place(id);
        if self.held == 0 && self.pages.len() > 4 {
            self.pages = Vec::new();
        } else if let Some(Some(words)) = self.pages.get_mut(page) {
            words[word] &= !(3 << shift);
            // The last page is kept for the next id; one behind it is given back when empty.
            if words.iter().all(|word| *word == 0) && (self.held > 0 || page > 0) {
                self.pages[page] = None;
            }
        }
        held
    }

    /// The connection is gone.
    pub(crate) fn suspend(&mut self) {
        const PRESENT: u64 = 0xAAAA_AAAA_AAAA_AAAA;
        for word in self.pages.iter_mut().flatten().flat_map(|page| page.iter_mut()) {
            *word = (*word & PRESENT) >> 1 | *word & !PRESENT;
        }
    }

    /// How many are held.
    pub(crate) fn len(&self) -> usize {
        self.held as usize
    }
}

fn place(id: PacketId) -> (usize, usize, u32) {
    let id = usize::from(id.get());
    (id / PAGE, id % PAGE / 32, (id % 32 * 2) as u32)
}

#[cfg(test)]
mod tests {
    use super::super::message::{MessageKey, Messages, NewMessage, Payload};
    use super::super::queue::SubscriptionIds;
    use super::*;
    use crate::codec::mqtt::QoS;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    fn key() -> MessageKey {
        Messages::default().insert(NewMessage {
            topic: "t",
            forwarded: &[],
            payload: Payload { bytes: &[], shared: None },
            qos: QoS::AtLeastOnce,
            retain: false,
            deadline: None,
            id: None,
            topic_id: Default::default(),
            publisher: None,
        })
    }

    fn queued() -> Queued {
        let subscription_ids = SubscriptionIds::None;
        Queued {
            message: key(),
            qos: QoS::ExactlyOnce,
            retain: false,
            subscription_ids,
            group: None,
        }
    }

    fn id(n: u16) -> PacketId {
        PacketId::new(n).unwrap()
    }

    /// [MQTT-4.3.2-1], PITFALLS 44: a live id is not used again, also after the ids wrapped.
    #[test]
    fn wrapping_skips_live_ids() {
        let mut outbound = Outbound::default();
        let first = outbound.begin(queued(), Stage::Published);
        assert_eq!(first, id(1));
        let mut seen = HashSet::new();
        for _ in 0..3 * usize::from(u16::MAX) {
            let next = outbound.begin(queued(), Stage::Published);
            assert_ne!(next, first);
            seen.insert(next.get());
            let index = outbound.find(next).unwrap();
            outbound.finish(index);
        }
        assert_eq!(seen.len(), usize::from(u16::MAX) - 1);
        assert_eq!(outbound.find(first), Some(0));
        outbound.finish(0);
        assert_eq!(outbound.find(first), None);
    }

    #[test]
    fn owed_pubrels_come_in_the_order_of_their_pubrecs() {
        let mut outbound = Outbound::default();
        let ids: Vec<PacketId> =
            (0..4).map(|_| outbound.begin(queued(), Stage::Published)).collect();
        for i in [2, 0] {
            let index = outbound.find(ids[i]).unwrap();
            outbound.receive(index);
            outbound.release(index);
        }
        outbound.suspend();
        assert_eq!(outbound.resume(), [ids[2], ids[0]]);
        // Two of the window are taken by them; one PUBLISH fits into a window of three.
        assert_eq!(outbound.used(), 2);
        let index = outbound.next_resend(3).unwrap();
        assert_eq!(outbound.get(index).id(), ids[1]);
        assert_eq!(outbound.next_resend(3), None);
        outbound.finish(0);
        let index = outbound.next_resend(3).unwrap();
        assert_eq!(outbound.get(index).id(), ids[3]);
        assert!(outbound.is_resent() || outbound.next_resend(3).is_none());
    }

    proptest! {
        #[test]
        fn find_equals_a_map(
            steps in prop::collection::vec((any::<bool>(), any::<u16>()), 0..200),
            start in 0u64..200_000,
        ) {
            let mut outbound = Outbound { next: start, ..Outbound::default() };
            let mut live: Vec<PacketId> = Vec::new();
            for (begin, which) in steps {
                if begin || live.is_empty() {
                    let id = outbound.begin(queued(), Stage::Published);
                    prop_assert!(!live.contains(&id));
                    live.push(id);
                } else {
                    let id = live.remove(usize::from(which) % live.len());
                    let index = outbound.find(id).unwrap();
                    prop_assert_eq!(outbound.get(index).id(), id);
                    outbound.finish(index);
                    prop_assert_eq!(outbound.find(id), None);
                }
                prop_assert_eq!((outbound.len(), outbound.used()), (live.len(), live.len()));
            }
        }

        #[test]
        fn inbound_equals_a_map(
            steps in prop::collection::vec((0u8..8, 1u16..2000), 0..300)
        ) {
            let mut inbound = Inbound::default();
            let mut reference: HashMap<u16, Held> = HashMap::new();
            for (what, n) in steps {
                match what {
                    0..4 => {
                        inbound.hold(id(n), false);
                        reference.insert(n, Held::Present);
                    }
                    4..7 => {
                        let held = reference.remove(&n).unwrap_or(Held::No);
                        prop_assert_eq!(inbound.release(id(n)), held);
                    }
                    _ => {
                        inbound.suspend();
                        reference.values_mut().for_each(|held| *held = Held::Earlier);
                    }
                }
                prop_assert_eq!(inbound.len(), reference.len());
                for n in [1, n, 1999] {
                    let held = reference.get(&n).copied().unwrap_or(Held::No);
                    prop_assert_eq!(inbound.get(id(n)), held);
                }
            }
        }
    }
}
