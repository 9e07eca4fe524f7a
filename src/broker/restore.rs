//! A shard's part of the durable state becomes its broker's state again.
//!
//! Sessions come without a connection: each waits for its client, or for its end, as if the
//! connection had just been lost, or when it was. What has expired meanwhile ends once the shards
//! have told each other what they want (SHARDS.md I6), with the first timers. Bounds of queues and
//! memory do not count here: what was acknowledged is kept. What of a queue was left on disk begins
//! as evicted ([`evict`]).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::clock::Time;
use crate::codec::mqtt::SubscriptionOptions;

use super::alias::TopicId;
use super::change::Record;
use super::durable::{
    DurableEvicted, DurableExchange, DurableExtra, DurableMessage, DurableQueued, DurableSession,
    DurableState, DurableSubscription,
};
use super::entry::Message;
use super::message::{MessageKey, NewMessage, Payload};
use super::queue::{Queued, SubscriptionIds};
use super::session::{NEVER, SessionKey};
use super::shared_sub::Chosen;
use super::subscription::Subscription;
use super::timers::Due;
use super::will::Will;
use super::{Broker, evict, retained, subscribe};

/// The present moment on both clocks.
#[derive(Clone, Copy, Debug)]
struct Present {
    now: Time,
    unix_ms: u64,
}

impl Present {
    /// A moment of wall time; what is over is now.
    fn at(self, unix_ms: u64) -> Time {
        let left_ms = unix_ms.saturating_sub(self.unix_ms);
        Time::from_nanos(self.now.as_nanos().saturating_add(left_ms.saturating_mul(1_000_000)))
    }
}

impl Broker {
    /// Takes what the journal gave back to this shard. To be called once, on every shard, before
    /// anything else, and followed by [`Broker::handle_restored`]. `unix_ms` is the wall time at
    /// `now`.
    pub fn restore(&mut self, now: Time, unix_ms: u64, part: DurableState) {
        let present = Present { now, unix_ms };
        self.changes.start_behind(part.last_sequence);
        let DurableState { messages, sessions, retained, .. } = part;
        let keys: Vec<MessageKey> =
            messages.iter().map(|message| self.insert_restored(present, message)).collect();
        for place in retained {
            let message = &messages[place as usize];
            retained::restore(
                self,
                &Message {
                    topic: &message.topic,
                    payload: &message.payload,
                    shared: Some(&message.payload),
                    qos: message.qos,
                    retain: true,
                    deadline: message.deadline_ms.map(|at| present.at(at)),
                    forwarded: &message.forwarded,
                    publisher_id: &message.publisher,
                    id: None,
                },
            );
        }
        for session in sessions {
            self.restore_session(present, session, &keys);
            self.stats.sessions_restored += 1;
        }
        // Holders have their own references now.
        for key in keys {
            self.messages.release(key);
        }
    }

    fn insert_restored(&mut self, present: Present, message: &DurableMessage) -> MessageKey {
        self.messages.insert(NewMessage {
            topic: &message.topic,
            forwarded: &message.forwarded,
            payload: Payload { bytes: &message.payload, shared: Some(&message.payload) },
            qos: message.qos,
            retain: message.retain,
            deadline: message.deadline_ms.map(|at| present.at(at)),
            id: Some(message.id),
            topic_id: TopicId::NONE,
            publisher: None,
        })
    }

    fn restore_session(&mut self, present: Present, stored: DurableSession, keys: &[MessageKey]) {
        let now = present.now;
        let key = self.sessions.insert(&stored.client_id);
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.expiry_secs = stored.expiry_secs;
        session.is_recorded = true;
        for id in stored.unreleased {
            session.inbound.get_or_insert_with(Box::default).hold(id, true);
        }
        if let Some(inbound) = &mut session.inbound {
            inbound.suspend();
        }
        session.will = stored.will.map(|will| Box::new(Will::restore(will, &self.messages)));
        self.restore_timers(present, key, stored.offline_since_ms);
        for subscription in stored.subscriptions {
            self.restore_subscription(now, key, &subscription);
        }
        let waiting = (stored.in_flight, stored.queue, stored.on_disk);
        self.restore_outgoing(now, key, waiting, keys);
    }

    /// The end of the session, and its Will's time.
    fn restore_timers(&mut self, present: Present, key: SessionKey, since_ms: Option<u64>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let expiry_secs = session.expiry_secs;
        let since = since_ms.unwrap_or(present.unix_ms);
        let after = |secs: u32| present.at(since.saturating_add(u64::from(secs) * 1000));
        if expiry_secs != NEVER {
            session.ends_at = after(expiry_secs);
            let timer = self.timers.arm(session.ends_at, Due::SessionExpiry(key));
            session.expiry_timer = Some(timer);
        }
        if let Some(will) = &mut session.will {
            will.timer = Some(self.timers.arm(after(will.delay_secs), Due::Will(key)));
        }
        if since_ms.is_none() {
            // It had a connection to the last: from here on its time counts.
            let (client_id, offline_since) = (session.client_id.clone(), Some(present.now));
            let record = Record::Session { client_id, expiry_secs, offline_since };
            self.changes.record(&mut self.out.changes, record);
        }
    }

    fn restore_subscription(&mut self, now: Time, key: SessionKey, stored: &DurableSubscription) {
        // It was valid when it was recorded.
        let Ok(options) = SubscriptionOptions::from_byte(stored.options) else { return };
        let subscription = Subscription { options, id: stored.subscription_id.unwrap_or(0) };
        subscribe::restore(self, now, key, &stored.filter, subscription);
    }

    fn restore_outgoing(
        &mut self,
        now: Time,
        key: SessionKey,
        (in_flight, queue, on_disk): (
            Vec<DurableExchange>,
            Vec<DurableQueued>,
            Vec<DurableEvicted>,
        ),
        keys: &[MessageKey],
    ) {
        if in_flight.is_empty() && queue.is_empty() && on_disk.is_empty() {
            return;
        }
        let mut groups = BTreeMap::new();
        let Self { sessions, messages, shared_subs, stats, .. } = self;
        let Some(session) = sessions.get_mut(key) else { return };
        let outgoing = session.outgoing.get_or_insert_with(Box::default);
        let mut ended = Vec::new();
        let mut chosen = |group: Option<Box<str>>| {
            let found = groups.entry(group?).or_insert_with_key(|key| {
                let group = shared_subs.find(key)?;
                Some(shared_subs.get(group).name.clone())
            });
            found.clone().map(|group| Chosen { group, spread: 0, is_owed: true })
        };
        let mut terms = |message, qos, retain, extra: Option<Box<DurableExtra>>| {
            let DurableExtra { subscription_ids, group } =
                extra.map(|extra| *extra).unwrap_or_default();
            let subscription_ids = SubscriptionIds::new(&subscription_ids);
            Queued { message, qos, retain, subscription_ids, group: chosen(group) }
        };
        let mut take = |stored: DurableQueued, messages: &mut super::message::Messages| {
            let message = messages.retain(keys[stored.message as usize]);
            terms(message, stored.qos, stored.retain, stored.extra)
        };
        for exchange in in_flight {
            let queued = exchange.message.filter(|_| !exchange.is_received).map(|stored| {
                let queued = take(stored, messages);
                let id = messages.get(queued.message).id;
                (queued, id)
            });
            outgoing.exchanges.restore(exchange.packet_id, queued);
        }
        for stored in queue {
            let queued = take(stored, messages);
            if messages.get(queued.message).is_expired(now) {
                ended.push(queued);
            } else {
                outgoing.queue.push(queued, messages);
            }
        }
        for stored in on_disk {
            let DurableEvicted { id, size, qos, retain, extra } = stored;
            let terms = terms(MessageKey::NONE, qos, retain, extra);
            outgoing.queue.push_evicted((id, size as usize, None), terms, messages);
        }
        stats.dropped_expired += ended.len() as u64;
        for Queued { message, group, .. } in ended {
            self.record_end(key, self.messages.get(message).id, group.as_ref());
            self.messages.release(message);
        }
        evict::list(self, key);
    }
}
