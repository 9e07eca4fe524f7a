//! QoS 1 and 2 messages that wait behind a session's in-flight window, or for its connection.
//!
//! Owns one reference per entry. Bounded by count and bytes; a full queue first forgets what has
//! expired, then refuses the new message: what was queued first was promised first.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::clock::Time;
use crate::codec::mqtt::QoS;

use super::message::{MessageKey, Messages};
use super::shared_sub::Chosen;

/// The Subscription Identifiers that a delivery carries; nearly always none or one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum SubscriptionIds {
    #[default]
    None,
    One(u32),
    Many(Box<[u32]>),
}

impl SubscriptionIds {
    pub(crate) fn new(ids: &[u32]) -> Self {
        match ids {
            [] => Self::None,
            [id] => Self::One(*id),
            _ => Self::Many(ids.into()),
        }
    }

    pub(crate) fn as_slice(&self) -> &[u32] {
        match self {
            Self::None => &[],
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }
}

/// One message for one session.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) message: MessageKey,
    /// At which it is delivered, 1 or 2.
    pub(crate) qos: QoS,
    /// Retain flag that it is delivered with.
    pub(crate) retain: bool,
    pub(crate) subscription_ids: SubscriptionIds,
    /// The group that it was picked for, if that is how the session came by it.
    pub(crate) group: Option<Chosen>,
}

/// The queue of one session.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: VecDeque<Queued>,
    bytes: usize,
    /// No deadline in it is earlier.
    earliest: Option<Time>,
}

impl Queue {
    /// Whether a message of `size` bytes has room, once what has expired is forgotten; `expired`
    /// gets that, references included.
    pub(crate) fn make_room(
        &mut self,
        now: Time,
        size: usize,
        bounds: (usize, usize),
        messages: &Messages,
        expired: &mut Vec<Queued>,
    ) -> bool {
        if !self.has_room(size, bounds) && self.earliest.is_some_and(|earliest| earliest <= now) {
            self.take_expired(now, messages, expired);
        }
        self.has_room(size, bounds)
    }

    /// Takes a message with its reference; there is room.
    pub(crate) fn push(&mut self, queued: Queued, messages: &Messages) {
        let stored = messages.get(queued.message);
        self.bytes += stored.size();
        self.earliest = match (self.earliest, stored.deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.entries.push_back(queued);
    }

    /// The first in line.
    pub(crate) fn front(&self) -> Option<&Queued> {
        self.entries.front()
    }

    /// Takes the first in line, and its reference.
    pub(crate) fn pop(&mut self, messages: &Messages) -> Option<Queued> {
        let queued = self.entries.pop_front()?;
        self.bytes -= messages.get(queued.message).size();
        if self.entries.is_empty() {
            self.earliest = None;
            if self.entries.capacity() > 64 {
                self.entries = VecDeque::new();
            }
        }
        Some(queued)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Messages in it.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Gives every entry away, references included.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Queued> {
        self.bytes = 0;
        self.earliest = None;
        std::mem::take(&mut self.entries).into_iter()
    }

    fn has_room(&self, size: usize, (len_max, bytes_max): (usize, usize)) -> bool {
        self.entries.len() < len_max && self.bytes + size <= bytes_max
    }

    fn take_expired(&mut self, now: Time, messages: &Messages, expired: &mut Vec<Queued>) {
        let entries = std::mem::take(&mut self.entries);
        self.earliest = None;
        for queued in entries {
            let stored = messages.get(queued.message);
            if stored.is_expired(now) {
                self.bytes -= stored.size();
                expired.push(queued);
                continue;
            }
            if let Some(deadline) = stored.deadline {
                self.earliest = Some(self.earliest.map_or(deadline, |e| e.min(deadline)));
            }
            self.entries.push_back(queued);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{NewMessage, Payload};
    use super::*;

    fn message(messages: &mut Messages, payload: &[u8], deadline: Option<Time>) -> Queued {
        let message = messages.insert(NewMessage {
            topic: "t",
            forwarded: &[],
            payload: Payload { bytes: payload, shared: None },
            qos: QoS::AtLeastOnce,
            retain: false,
            deadline,
            id: None,
            topic_id: Default::default(),
            publisher: None,
        });
        let subscription_ids = SubscriptionIds::None;
        Queued { message, qos: QoS::AtLeastOnce, retain: false, subscription_ids, group: None }
    }

    fn offer(
        queue: &mut Queue,
        messages: &mut Messages,
        queued: Queued,
        now: Time,
        bounds: (usize, usize),
    ) -> (bool, u64) {
        let (size, mut expired) = (messages.get(queued.message).size(), Vec::new());
        let room = queue.make_room(now, size, bounds, messages, &mut expired);
        expired.iter().for_each(|queued| messages.release(queued.message));
        if room {
            queue.push(queued, messages);
        } else {
            messages.release(queued.message);
        }
        (room, expired.len() as u64)
    }

    #[test]
    fn refuses_the_new_one_after_forgetting_the_expired() {
        let (mut messages, mut queue) = (Messages::default(), Queue::default());
        let bounds = (2, usize::MAX);
        let now = Time::from_nanos(10);
        for deadline in [Some(Time::from_nanos(5)), None] {
            let queued = message(&mut messages, b"1", deadline);
            assert_eq!(offer(&mut queue, &mut messages, queued, Time::ZERO, bounds), (true, 0));
        }
        let third = message(&mut messages, b"3", None);
        assert_eq!(offer(&mut queue, &mut messages, third, now, bounds), (true, 1));
        assert_eq!((queue.len(), messages.len()), (2, 2));
        let fourth = message(&mut messages, b"4", None);
        assert_eq!(offer(&mut queue, &mut messages, fourth, now, bounds), (false, 0));
        assert_eq!((queue.len(), messages.len()), (2, 2));
        for _ in 0..2 {
            let queued = queue.pop(&messages).unwrap();
            messages.release(queued.message);
        }
        assert_eq!((queue.bytes, messages.len()), (0, 0));
    }

    #[test]
    fn is_bounded_in_bytes() {
        let (mut messages, mut queue) = (Messages::default(), Queue::default());
        let first = message(&mut messages, &[0; 100], None);
        let bounds = (100, messages.get(first.message).size());
        assert!(offer(&mut queue, &mut messages, first, Time::ZERO, bounds).0);
        let second = message(&mut messages, b"", None);
        assert!(!offer(&mut queue, &mut messages, second, Time::ZERO, bounds).0);
    }
}
