//! Messages of shared subscriptions that have to find another member (SHARDS.md S4).
//!
//! When a session ends, what it was picked for and has not answered moves to another member of the
//! group: QoS 1, and everything that was not sent yet. QoS 2 that was sent never does
//! [MQTT-4.8.2-5], nor what was answered with an error [MQTT-4.8.2-6], which is finished. The
//! messages wait here, and a bounded number per tick goes on (L5). Those that only the journal has
//! ([`evict`](super::evict)) are read back first; what waits for that costs the memory budget what it
//! cost in its queue, and nobody waits for it.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::clock::Time;
use crate::codec::mqtt::QoS;
use crate::limits::{DEFERRED_PER_TICK, MOVES_MAX};

use super::evict::{self, Asker, Found, ReadBack};
use super::message::{MessageId, MessageKey};
use super::queue::{Body, Left, Queued};
use super::session::Session;
use super::shared_sub::Chosen;
use super::{Broker, Wait, route};

/// Messages that are to move, each with its reference.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    waiting: VecDeque<(Chosen, MessageKey)>,
    /// Messages that are to be read back and then move.
    evicted: VecDeque<(Chosen, MessageId)>,
    /// The first of those were asked for.
    is_asking: bool,
    /// Moved since the tick began.
    moved: usize,
    /// The first waits for a lane.
    blocked: bool,
}

impl Moves {
    /// A tick begins: as many as it may move may be moved.
    pub(crate) fn start_tick(&mut self) {
        self.moved = 0;
    }

    /// Whether some can go on in the next tick.
    pub(crate) fn is_ready(&self) -> bool {
        !self.waiting.is_empty() && !self.blocked || self.may_ask()
    }

    /// Whether it is time to read some back: what is ready moves in one tick.
    fn may_ask(&self) -> bool {
        !self.is_asking && !self.evicted.is_empty() && self.waiting.len() < DEFERRED_PER_TICK
    }

    /// Whether what would end further sessions has to wait.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() >= MOVES_MAX
    }
}

impl Broker {
    /// A session has ended: what it held for its groups is to move, the rest is dropped.
    pub(super) fn give_up_messages(&mut self, session: &mut Session) {
        let Some(mut outgoing) = session.outgoing.take() else { return };
        let exchanges = outgoing.exchanges.drain().filter_map(|exchange| {
            let was_sent = exchange.was_sent;
            let Queued { message, qos, mut group, .. } = exchange.queued?;
            // Its ASSIGN has settled it for the group already.
            if let Some(chosen) = group.as_mut().filter(|_| exchange.assigned.is_some()) {
                chosen.is_owed = false;
            }
            Some((Left { body: Body::Held(message), qos, group }, was_sent))
        });
        let queued = outgoing.queue.drain().map(|left| (left, false));
        for (Left { body, qos, group }, was_sent) in exchanges.chain(queued) {
            match (group, body) {
                (Some(group), Body::Held(message)) if !was_sent || qos == QoS::AtLeastOnce => {
                    self.moves.waiting.push_back((group, message));
                }
                (Some(group), Body::Evicted(id)) => self.moves.evicted.push_back((group, id)),
                (group, body) => {
                    let id = body.release(&mut self.messages);
                    // Without this the journal would give it to another member (SHARDS.md J9).
                    if let Some(group) = group {
                        self.record_group_end(&group, id);
                    }
                    self.stats.dropped_session_ended += 1;
                }
            }
        }
    }

    /// Moves what waits, as far as this tick and the lanes allow.
    pub(crate) fn run_moves(&mut self, now: Time) {
        self.moves.blocked = false;
        let were_full = self.moves.is_full();
        self.ask_for_moves();
        while self.moves.moved < DEFERRED_PER_TICK {
            let Some(&(_, key)) = self.moves.waiting.front() else { break };
            if route::may_publish(self, self.messages.get(key).topic(), false) == Err(Wait) {
                self.moves.blocked = true;
                return;
            }
            let Some((group, key)) = self.moves.waiting.pop_front() else { break };
            self.moves.moved += 1;
            self.move_one(now, &group, key);
        }
        if were_full && !self.moves.is_full() {
            self.conns.resume_waiting(now, &mut self.out.resume);
        }
    }

    fn ask_for_moves(&mut self) {
        if self.ending.has_begun() || !self.moves.may_ask() {
            return;
        }
        let first = self.moves.evicted.iter().take(DEFERRED_PER_TICK);
        let messages = first.map(|(_, id)| *id).collect();
        self.moves.is_asking = true;
        self.out.reads.push(ReadBack { asker: Asker::MOVES, messages });
    }

    /// The journal's answer for the first that were evicted, or for the first of those.
    pub(super) fn take_moves<'a>(
        &mut self,
        now: Time,
        answer: impl Iterator<Item = (MessageId, Found<'a>)>,
    ) {
        self.moves.is_asking = false;
        for (id, found) in answer {
            let first = self.moves.evicted.pop_front().filter(|(_, first)| *first == id);
            let (group, _) = first.expect("invariant: as they were asked for");
            self.messages.forget_evicted();
            match evict::insert(&mut self.messages, &mut self.stats, id, found) {
                Some(key) => self.moves.waiting.push_back((group, key)),
                None => self.record_group_end(&group, Some(id)),
            }
        }
        self.run_moves(now);
    }

    fn move_one(&mut self, now: Time, group: &Chosen, key: MessageKey) {
        route::with_stored(self, key, |broker, publication| {
            route::to_group(broker, now, publication, group, false);
        });
        self.messages.release(key);
    }
}
