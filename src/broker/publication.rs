//! An Application Message on its way, and the terms on which one session gets it.
//!
//! Owns nothing: a [`Publication`] borrows the packet or the stored message that it comes from. What
//! delivering it has learnt is in its [`Memo`], so that nothing is looked up or stored twice however
//! many receive it.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::clock::Time;
use crate::codec::mqtt::QoS;

use super::alias::TopicId;
use super::as_received::AsReceived;
use super::message::{MessageId, MessageKey, Messages, NewMessage, Payload};
use super::queue::{Queued, SubscriptionIds};
use super::session::SessionKey;
use super::shared_sub::{Chosen, GroupName, Named};

/// An Application Message on its way to its receivers.
#[derive(Debug)]
pub(crate) struct Publication<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: Payload<'a>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) deadline: Option<Time>,
    /// Properties as `append_forwarded` wrote them.
    pub(crate) forwarded: &'a [u8],
    /// The packet that it came in, if some may get it as it is.
    pub(crate) as_received: Option<AsReceived<'a>>,
    /// The publisher's session, if it is at home here (No Local).
    pub(crate) publisher: Option<SessionKey>,
    /// The publisher's client id.
    pub(crate) publisher_id: &'a str,
    /// Its name in the journal, if it has a record there.
    pub(crate) id: Option<MessageId>,
    /// See [`Publication::named`].
    pub(crate) named: Named,
    /// What delivering it has learnt; begins as its default.
    pub(crate) memo: Memo,
}

/// What is made once per publication: [`Default`] for each new one.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    /// Names it among the variants' owners; 0 as long as nothing was encoded.
    serial: Cell<u64>,
    stored: Cell<Option<MessageKey>>,
    topic_id: Cell<TopicId>,
    /// The hash of the publisher's client id, once a group has asked for it.
    publisher_hash: Cell<Option<u64>>,
}

impl Memo {
    /// Of a publication that is made from a stored message, which stays as long as that is
    /// delivered.
    pub(crate) fn stored_as(key: MessageKey, topic_id: TopicId) -> Self {
        let (stored, topic_id) = (Cell::new(Some(key)), Cell::new(topic_id));
        Self { stored, topic_id, ..Self::default() }
    }

    /// The hash of the publisher's client id: made at most once, however many groups ask.
    #[inline]
    pub(crate) fn publisher_hash(&self, make: impl FnOnce() -> u64) -> u64 {
        let hash = self.publisher_hash.get().unwrap_or_else(make);
        self.publisher_hash.set(Some(hash));
        hash
    }

    /// Its topic, as routing remembers it; none as long as nobody has looked.
    #[inline]
    pub(crate) fn topic_id(&self) -> TopicId {
        self.topic_id.get()
    }

    #[inline]
    pub(crate) fn set_topic_id(&self, id: TopicId) {
        self.topic_id.set(id);
    }

    #[inline]
    pub(super) fn serial(&self) -> u64 {
        self.serial.get()
    }

    pub(super) fn set_serial(&self, serial: u64) {
        self.serial.set(serial);
    }
}

impl Publication<'_> {
    /// A reference to the stored message, for the caller to own. It must not be released while
    /// the publication is being delivered.
    pub(crate) fn store(&self, messages: &mut Messages) -> MessageKey {
        if let Some(key) = self.memo.stored.get() {
            return messages.retain(key);
        }
        let key = messages.insert(self.to_message(None));
        self.memo.stored.set(Some(key));
        key
    }

    /// The groups that its PUB names.
    pub(crate) fn named(&self) -> impl Iterator<Item = &Rc<GroupName>> {
        self.named.iter().flat_map(|named| named.iter())
    }

    /// Whether keeping it takes no further memory.
    #[inline]
    pub(super) fn is_stored(&self) -> bool {
        self.memo.stored.get().is_some()
    }

    /// What would be stored.
    pub(crate) fn to_message<'b>(&'b self, publisher: Option<&'b Rc<str>>) -> NewMessage<'b> {
        NewMessage {
            topic: self.topic,
            forwarded: self.forwarded,
            payload: self.payload,
            qos: self.qos,
            retain: self.retain,
            deadline: self.deadline,
            id: self.id,
            topic_id: self.memo.topic_id(),
            publisher,
        }
    }
}

/// How one session gets it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    /// Granted; the publication's may be lower.
    pub(crate) qos: QoS,
    /// The flag to be sent.
    pub(crate) retain: bool,
    pub(crate) subscription_ids: &'a [u32],
    /// The shared subscription's group, if it is one.
    pub(crate) group: Option<&'a Chosen>,
}

impl Terms<'_> {
    /// What is kept of them with a message for one session.
    #[inline]
    pub(super) fn to_queued(self, message: MessageKey, qos: QoS) -> Queued {
        Queued {
            message,
            qos,
            retain: self.retain,
            subscription_ids: SubscriptionIds::new(self.subscription_ids),
            group: self.group.cloned(),
        }
    }
}

/// By how much this shard's time may be behind that of the shard a message comes from: each reads the
/// clock at the start of its tick.
const TICK_SKEW: Duration = Duration::from_millis(200);

/// Seconds left, as they are sent: rounded up, so that an untouched interval arrives as it was, and
/// never longer than it was [MQTT-3.3.2-6].
pub(crate) fn remaining_secs(deadline: Option<Time>, now: Time) -> Option<u32> {
    let left = deadline?.since(now);
    let secs = left.saturating_sub(TICK_SKEW).as_nanos().div_ceil(1_000_000_000);
    // What has not expired is not 0, which would say that it has.
    let secs = if left.is_zero() { secs } else { secs.max(1) };
    Some(u32::try_from(secs).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untouched_expiry_interval_arrives_as_it_was() {
        let now = Time::from_nanos(5);
        assert_eq!(remaining_secs(None, now), None);
        assert_eq!(remaining_secs(Some(now.plus_secs(10)), now), Some(10));
        let later = Time::from_nanos(1_500_000_005);
        assert_eq!(remaining_secs(Some(now.plus_secs(10)), later), Some(9));
        assert_eq!(remaining_secs(Some(Time::MAX), Time::ZERO), Some(u32::MAX));
        // The shard that received it read the clock a little later than the one that sends it.
        let ahead = now + Duration::from_millis(20);
        assert_eq!(remaining_secs(Some(ahead.plus_secs(10)), now), Some(10));
        assert_eq!(remaining_secs(Some(now + Duration::from_millis(20)), now), Some(1));
        assert_eq!(remaining_secs(Some(now), now), Some(0));
    }
}
