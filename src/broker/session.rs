//! Sessions: what is kept for a client id, connected or not.
//!
//! Owns the table of sessions and the index by client id, which has places only: the ids stand with
//! their sessions. Invariants: a client id names at most one session; a session's `conn` names a connection whose `session` names it, or is None.
#![forbid(unsafe_code)]

use std::hash::BuildHasher;
use std::num::NonZeroU32;
use std::rc::Rc;

use foldhash::quality::FixedState;

use crate::clock::Time;
use crate::ids::ConnId;
use crate::index::Index;

use super::inflight::{Inbound, Outbound};
use super::queue::Queue;
use super::subscription::SessionSubscriptions;
use super::timers::TimerKey;
use super::will::Will;

/// One session of this shard. A slot is used again with a new generation, so that a key outlives
/// its session without naming another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SessionKey {
    index: u32,
    /// Never zero, so that "no session" takes no more room than a key.
    generation: NonZeroU32,
}

/// "For ever" as a Session Expiry Interval.
pub(crate) const NEVER: u32 = u32::MAX;

/// What is kept for a client id.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client_id: Rc<str>,
    pub(crate) conn: Option<ConnId>,
    /// Session Expiry Interval, in seconds.
    pub(crate) expiry_secs: u32,
    pub(crate) expiry_timer: Option<TimerKey>,
    /// When it ends, while it has no connection; [`Time::MAX`] otherwise, or if it lives for ever.
    pub(crate) ends_at: Time,
    pub(crate) will: Option<Box<Will>>,
    /// QoS 1 and 2 towards the client: exists from the first such message on.
    pub(crate) outgoing: Option<Box<Outgoing>>,
    /// QoS 2 from the client: exists from the first such message on.
    pub(crate) inbound: Option<Box<Inbound>>,
    pub(crate) subscriptions: SessionSubscriptions,
    /// It began where nothing lasts.
    pub(crate) is_volatile: bool,
    /// The journal knows of it.
    pub(crate) is_recorded: bool,
    /// A subscription of it has come to want less than before: what the journal took for it until
    /// then may come now, and is not acknowledged by its client.
    pub(crate) wants_less: bool,
}

/// QoS 1 and 2 messages towards a client.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    pub(crate) exchanges: Outbound,
    pub(crate) queue: Queue,
}

impl Session {
    /// QoS 1 and 2 messages that wait for it: not acknowledged, or not sent.
    pub(crate) fn load(&self) -> usize {
        self.outgoing.as_ref().map_or(0, |o| o.exchanges.len() + o.queue.len())
    }

    /// Whether it outlives its connection, and so a restart.
    pub(crate) fn is_durable(&self) -> bool {
        self.expiry_secs > 0 && !self.is_volatile
    }
}

#[derive(Debug)]
struct Slot {
    generation: NonZeroU32,
    session: Option<Session>,
}

/// What a session takes in the table, with its place in the index, in bytes; its client id aside.
#[cfg(test)]
pub(crate) const SESSION_BYTES: usize = size_of::<Slot>() + Index::ENTRY_BYTES;

/// All sessions of this shard.
#[derive(Debug)]
pub(crate) struct Sessions {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_client_id: Index,
    hasher: FixedState,
}

impl Sessions {
    pub(crate) fn new(seed: u64) -> Self {
        let hasher = FixedState::with_seed(seed);
        Self { slots: Vec::new(), free: Vec::new(), by_client_id: Index::new(), hasher }
    }

    pub(crate) fn find(&self, client_id: &str) -> Option<SessionKey> {
        let is_its = |index| self.at(index).is_some_and(|session| *session.client_id == *client_id);
        let index = self.by_client_id.find(self.hasher.hash_one(client_id), is_its)?;
        Some(SessionKey { index, generation: self.slots[index as usize].generation })
    }

    fn at(&self, index: u32) -> Option<&Session> {
        self.slots[index as usize].session.as_ref()
    }

    /// A new session; there is none of this client id.
    pub(crate) fn insert(&mut self, client_id: &str) -> SessionKey {
        debug_assert!(self.find(client_id).is_none(), "one session per client id");
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: NonZeroU32::MIN, session: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        let key = SessionKey { index, generation: slot.generation };
        slot.session = Some(Session {
            client_id: client_id.into(),
            conn: None,
            expiry_secs: 0,
            expiry_timer: None,
            ends_at: Time::MAX,
            will: None,
            outgoing: None,
            inbound: None,
            subscriptions: SessionSubscriptions::default(),
            is_volatile: false,
            is_recorded: false,
            wants_less: false,
        });
        self.by_client_id.insert(self.hasher.hash_one(client_id), index);
        key
    }

    /// Takes a session out of the table.
    pub(crate) fn remove(&mut self, key: SessionKey) -> Option<Session> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let session = slot.session.take()?;
        slot.generation = slot.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        self.free.push(key.index);
        self.by_client_id.remove(self.hasher.hash_one(&*session.client_id), key.index);
        Some(session)
    }

    #[inline]
    pub(crate) fn get(&self, key: SessionKey) -> Option<&Session> {
        let slot = self.slots.get(key.index as usize)?;
        slot.session.as_ref().filter(|_| slot.generation == key.generation)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: SessionKey) -> Option<&mut Session> {
        let slot = self.slots.get_mut(key.index as usize)?;
        slot.session.as_mut().filter(|_| slot.generation == key.generation)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_client_id.len()
    }
}
