//! Queues that are larger than memory: messages that only the journal has.
//!
//! A queued message that the journal has for its session need not be in memory while it waits. It is
//! evicted when its queue, or this shard, holds more than a mark: the queue's entry then names it,
//! and its bytes are gone. For a client that takes what is ready, the next ones are asked for ahead
//! ([`Outputs::reads`](super::Outputs)); the answer puts the bytes back into their places
//! ([`Broker::handle_read_back`]), and what is sent is what it would have been.
//!
//! Whether its record is committed yet does not matter here: the journal's host answers when it can
//! read it, and what was accepted and not committed was promised to nobody. The journal may have let
//! go of a message that stands in a queue: it has expired, or a subscription has ended that it was
//! owed by. Then it is dropped, and counted; so is one whose record cannot be read.
//!
//! What a session had of a group when it ended is read back to be moved (SHARDS.md S4): see
//! [`moving`](super::moving).
//!
//! Owns who has something to evict, and what is asked. Invariants: a queue has one question open at
//! most, and the queues of a shard [`READS_OPEN_MAX`] (SHARDS.md L4), besides the one of what moves;
//! evicting and asking wait for nobody.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::clock::Time;
use crate::codec::mqtt::QoS;
use crate::limits::{
    EVICT_STEP, READ_PIECE_BYTES, READ_PIECE_LEN, READ_WINDOW_BYTES, READS_OPEN_MAX,
};

use super::Broker;
use super::Config;
use super::Stats;
use super::alias::TopicId;
use super::change::Changes;
use super::conn::State;
use super::message::{MessageId, MessageKey, Messages, NewMessage, Payload};
use super::session::{Session, SessionKey};
use super::shared_sub::Chosen;

/// A question to the journal: messages of one queue, in its order.
#[derive(Debug)]
pub struct ReadBack {
    /// Who asks. It comes back with the answer.
    pub asker: Asker,
    /// Which messages.
    pub messages: Vec<MessageId>,
}

/// Who asks, of the shard that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker(Whose);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// The queue of this session.
    Queue(SessionKey),
    /// What is to move to other members of its groups.
    Moves,
}

impl Asker {
    /// Messages that are to move.
    pub(super) const MOVES: Self = Self(Whose::Moves);

    /// Of a question that no broker has asked.
    #[cfg(test)]
    pub(crate) fn nobody() -> Self {
        Self::MOVES
    }
}

/// What the journal has of a message.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// This.
    Message {
        /// Topic Name.
        topic: &'a str,
        /// Properties as `append_forwarded` wrote them.
        forwarded: &'a [u8],
        /// The payload.
        payload: &'a [u8],
        /// As published.
        qos: QoS,
        /// As published.
        retain: bool,
        /// When it expires.
        deadline: Option<Time>,
    },
    /// Nobody is owed it any more.
    Gone,
    /// A record that cannot be read.
    Unreadable,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Evicting {
    /// Sessions whose queue may hold what can be evicted, each once.
    queues: VecDeque<SessionKey>,
    /// Questions without an answer.
    open: usize,
    /// Sessions that would ask, and wait until fewer questions are open.
    waiting: VecDeque<SessionKey>,
}

/// Bytes of messages above which a shard evicts.
pub(crate) fn mark(config: &Config) -> usize {
    config.memory_budget / 2
}

/// Bytes of one queue that are in memory, of what may be evicted.
fn held_max(config: &Config) -> usize {
    config.evict_above.min(config.queue_bytes_max)
}

/// Bytes that are to be ready for a client that reads.
fn window(config: &Config) -> usize {
    READ_WINDOW_BYTES.min(held_max(config))
}

/// Whether this message, for this session and perhaps by way of a group, may be left to the journal:
/// it owes it to the session, or to the group, until that says otherwise. What a subscription is given
/// while its SUB is on its way to the disk may have been taken before that (SHARDS.md J7), and a group
/// is owed what names it (J9): the rest stays in memory.
#[inline]
pub(crate) fn may_evict(
    config: &Config,
    changes: &Changes,
    (key, session): (SessionKey, &Session),
    id: Option<MessageId>,
    group: Option<&Chosen>,
) -> bool {
    config.queues_evict
        && id.is_some()
        && session.is_recorded
        && session.is_durable()
        && group.is_none_or(|chosen| chosen.is_owed)
        && !changes.is_beginning(key)
}

/// Whether the next message of this size is to be evicted right where it is queued.
pub(crate) fn is_over(
    config: &Config,
    session: &Session,
    messages: &Messages,
    size: usize,
) -> bool {
    let Some(outgoing) = &session.outgoing else { return false };
    let queue = &outgoing.queue;
    queue.evicted() > 0
        || queue.held_bytes() + size > held_max(config)
        || messages.bytes() + size > mark(config)
}

/// This session's queue holds messages.
pub(crate) fn list(broker: &mut Broker, key: SessionKey) {
    let Broker { sessions, evicting, config, .. } = broker;
    if !config.queues_evict {
        return;
    }
    let queues = &mut evicting.queues;
    let Some(outgoing) = sessions.get_mut(key).and_then(|session| session.outgoing.as_mut()) else {
        return;
    };
    if std::mem::replace(&mut outgoing.queue.is_listed, true) {
        return;
    }
    queues.push_back(key);
    // Sessions that have ended are in it still.
    if queues.len() > 2 * sessions.len() + 64 {
        queues.retain(|key| sessions.get(*key).is_some());
    }
}

/// Evicts up to so many messages while this shard holds more than its mark.
pub(crate) fn relieve(broker: &mut Broker, most: usize) {
    let Broker { sessions, evicting, config, messages, stats, changes, .. } = broker;
    if !config.queues_evict {
        return;
    }
    let mut left = most;
    while left > 0
        && messages.bytes() > mark(config)
        && let Some(key) = evicting.queues.pop_front()
    {
        let Some(session) = sessions.get_mut(key) else { continue };
        let is_kept = session.is_recorded && session.is_durable() && !changes.is_beginning(key);
        let Some(outgoing) = &mut session.outgoing else { continue };
        let queue = &mut outgoing.queue;
        queue.is_listed = false;
        if !is_kept {
            continue;
        }
        let mut has_more = true;
        for _ in 0..EVICT_STEP {
            if left == 0 || messages.bytes() <= mark(config) {
                break;
            }
            has_more = queue.evict_one(config.queue_disk_bytes_max, messages);
            if !has_more {
                break;
            }
            left -= 1;
            stats.messages_evicted += 1;
        }
        if has_more {
            queue.is_listed = true;
            evicting.queues.push_back(key);
        }
    }
}

/// Asks for the next messages of a queue whose client reads, if it is time to.
pub(crate) fn ask(broker: &mut Broker, now: Time, key: SessionKey) {
    let Broker { sessions, evicting, config, messages, conns, out, ending, .. } = broker;
    let Some(session) = sessions.get_mut(key) else { return };
    let is_online = session.conn.is_some_and(|conn| conns.state(conn) == Some(State::Online));
    let Some(outgoing) = &mut session.outgoing else { return };
    let queue = &mut outgoing.queue;
    let window = window(config);
    if !is_online || ending.has_begun() || !queue.wants_read(window) {
        return;
    }
    if evicting.open >= READS_OPEN_MAX {
        if !std::mem::replace(&mut queue.is_waiting, true) {
            evicting.waiting.push_back(key);
        }
        return;
    }
    // With little memory left, little is fetched at once.
    let is_tight = messages.bytes() > mark(config);
    let bytes = if is_tight { READ_PIECE_BYTES / 16 } else { READ_PIECE_BYTES };
    let bytes = bytes.min(window.saturating_sub(queue.held_bytes()));
    let ids = queue.to_read(now, READ_PIECE_LEN, bytes);
    if ids.is_empty() {
        return;
    }
    queue.is_asking = true;
    evicting.open += 1;
    out.reads.push(ReadBack { asker: Asker(Whose::Queue(key)), messages: ids });
}

/// What was found is in memory again, with a reference; what was not is counted.
pub(super) fn insert(
    messages: &mut Messages,
    stats: &mut Stats,
    id: MessageId,
    found: Found<'_>,
) -> Option<MessageKey> {
    match found {
        Found::Message { topic, forwarded, payload, qos, retain, deadline } => {
            stats.messages_read_back += 1;
            Some(messages.insert(NewMessage {
                topic,
                forwarded,
                payload: Payload { bytes: payload, shared: None },
                qos,
                retain,
                deadline,
                id: Some(id),
                topic_id: TopicId::NONE,
                publisher: None,
            }))
        }
        Found::Gone => {
            stats.dropped_not_owed += 1;
            None
        }
        Found::Unreadable => {
            stats.dropped_unreadable += 1;
            None
        }
    }
}

impl Broker {
    /// An answer to one of [`Outputs::reads`](super::Outputs): what was found of the messages asked
    /// for, in the same order, or of the first of them. The others are asked for again.
    pub fn handle_read_back<'a>(
        &mut self,
        now: Time,
        Asker(whose): Asker,
        answer: impl Iterator<Item = (MessageId, Found<'a>)>,
    ) {
        match whose {
            Whose::Queue(key) => self.fill_queue(now, key, answer),
            Whose::Moves => self.take_moves(now, answer),
        }
    }

    fn fill_queue<'a>(
        &mut self,
        now: Time,
        key: SessionKey,
        answer: impl Iterator<Item = (MessageId, Found<'a>)>,
    ) {
        self.evicting.open -= 1;
        let Self { sessions, messages, stats, .. } = self;
        let queue = sessions.get_mut(key).and_then(|session| session.outgoing.as_mut());
        if let Some(queue) = queue.map(|outgoing| &mut outgoing.queue) {
            queue.is_asking = false;
            let mut from = 0;
            for (id, found) in answer {
                // What has expired meanwhile may have been dropped.
                let Some(index) = queue.find_evicted(from, id) else { continue };
                from = index + 1;
                let key = insert(messages, stats, id, found);
                queue.fill(index, key, messages);
            }
            list(self, key);
            self.pump(now, key);
        }
        while self.evicting.open < READS_OPEN_MAX
            && let Some(key) = self.evicting.waiting.pop_front()
        {
            let session = self.sessions.get_mut(key);
            if let Some(outgoing) = session.and_then(|session| session.outgoing.as_mut()) {
                outgoing.queue.is_waiting = false;
                ask(self, now, key);
            }
        }
    }

    /// Messages in queues here that only the journal has.
    pub fn messages_evicted(&self) -> usize {
        self.messages.evicted()
    }
}
