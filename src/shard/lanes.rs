//! What leaves for other shards: one parcel per shard and tick, and behind a full ring the spill.
//!
//! Invariants (SHARDS.md section 1): nothing passes the spill (L1); taking never waits for giving
//! (L3), so the spill has no bound of its own, but what fills it has (L4, L6).
#![forbid(unsafe_code)]

use crate::broker::evict::ReadBack;
use crate::broker::{Accepted, Batch};
use crate::ids::{ConnId, ShardId, ShardSet};
use crate::journal::read::Answer;
use crate::journal::record::Batch as Changes;
use crate::limits::{BATCH_BYTES_KEPT, QUESTIONS_MAX, SPILL_BYTES_MARK};
use crate::mesh::Mesh;
use crate::transport::Transport;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// All that one shard says to one other in one tick.
#[derive(Debug)]
pub struct Parcel<S = OwnedFd> {
    /// The broker's entries.
    pub(super) batch: Batch,
    /// Connections that come home.
    pub(super) moves: Vec<Move<S>>,
    /// How many connections the sender has taken from the receiver since it last said so.
    pub(super) moves_taken: u32,
    /// To the journal's host: what must last.
    pub(super) changes: Changes,
    /// From the journal's host: how many of the receiver's changes are committed; 0 is no news.
    pub(super) committed: u64,
    /// From the journal's host: whether the disk takes nothing for now, if that is news.
    pub(super) disk: Option<bool>,
    /// To the journal's host: what is to be read back.
    pub(super) reads: Vec<ReadBack>,
    /// From the journal's host: what was.
    pub(super) answers: Vec<Answer>,
}

impl<S> Default for Parcel<S> {
    fn default() -> Self {
        Self {
            batch: Batch::default(),
            moves: Vec::new(),
            moves_taken: 0,
            changes: Changes::default(),
            committed: 0,
            disk: None,
            reads: Vec::new(),
            answers: Vec::new(),
        }
    }
}

impl<S> Parcel<S> {
    fn is_empty(&self) -> bool {
        self.batch.is_empty()
            && self.moves.is_empty()
            && self.moves_taken == 0
            && self.changes.is_empty()
            && self.committed == 0
            && self.disk.is_none()
            && self.reads.is_empty()
            && self.answers.is_empty()
    }

    fn bytes(&self) -> usize {
        self.batch.size()
            + self.changes.bytes()
            + self.moves.iter().map(|m| m.read.len()).sum::<usize>()
            + self.answers.iter().map(Answer::bytes).sum::<usize>()
    }

    /// Empties it and keeps its memory.
    pub(super) fn clear(&mut self) {
        self.batch.clear();
        self.moves.clear();
        self.moves_taken = 0;
        self.changes.clear(BATCH_BYTES_KEPT);
        self.committed = 0;
        self.disk = None;
        self.reads.clear();
        self.answers.clear();
    }
}

/// A connection on its way home (SHARDS.md H1): quiet on its old shard, with all that was read.
#[derive(Debug)]
pub(super) struct Move<S> {
    pub socket: S,
    pub accepted: Accepted,
    pub transport: Transport,
    /// Its CONNECT and whatever came behind it.
    pub read: Vec<u8>,
}

/// The outgoing side of all lanes of one shard.
#[derive(Debug)]
pub(super) struct Lanes<S> {
    me: ShardId,
    to: Vec<Lane<S>>,
    full: ShardSet,
    /// Bytes ever written to lanes.
    copied: u64,
}

#[derive(Debug)]
struct Lane<S> {
    /// Grows until the end of the tick.
    open: Parcel<S>,
    spill: VecDeque<Parcel<S>>,
    spill_bytes: usize,
    moves_open: usize,
    /// Connections whose move waits for room among the open ones.
    moves_waiting: VecDeque<ConnId>,
}

impl<S> Default for Lane<S> {
    fn default() -> Self {
        Self {
            open: Parcel::default(),
            spill: VecDeque::new(),
            spill_bytes: 0,
            moves_open: 0,
            moves_waiting: VecDeque::new(),
        }
    }
}

impl<S> Lanes<S> {
    pub(super) fn new(me: ShardId, shards: usize) -> Self {
        let to = (0..shards).map(|_| Lane::default()).collect();
        Self { me, to, full: ShardSet::EMPTY, copied: 0 }
    }

    /// The other shards.
    pub(super) fn peers(&self) -> impl Iterator<Item = ShardId> + use<S> {
        let me = self.me;
        (0..self.to.len()).map(ShardId::new).filter(move |shard| *shard != me)
    }

    /// Whether one more connection may be on its way to `home`; one that may not stands in line.
    pub(super) fn may_move(&mut self, home: ShardId, conn: ConnId) -> bool {
        let lane = &mut self.to[home.index()];
        if lane.moves_open < QUESTIONS_MAX {
            return true;
        }
        lane.moves_waiting.push_back(conn);
        false
    }

    /// Sends a connection home.
    pub(super) fn send_move(&mut self, home: ShardId, sent: Move<S>) {
        let lane = &mut self.to[home.index()];
        lane.moves_open += 1;
        lane.open.moves.push(sent);
    }

    /// Notes that a connection from `from` was taken, to be said with the next parcel.
    pub(super) fn took_move(&mut self, from: ShardId) {
        self.to[from.index()].open.moves_taken += 1;
    }

    /// `home` has taken `count` of ours; the connections that may try again.
    pub(super) fn moves_were_taken(&mut self, home: ShardId, count: u32) -> Vec<ConnId> {
        let lane = &mut self.to[home.index()];
        lane.moves_open = lane
            .moves_open
            .checked_sub(count as usize)
            .expect("invariant: a shard takes each connection once");
        let room = QUESTIONS_MAX - lane.moves_open;
        let count = room.min(lane.moves_waiting.len());
        lane.moves_waiting.drain(..count).collect()
    }

    /// What is said to this shard at the end of the tick.
    pub(super) fn to(&mut self, shard: ShardId) -> &mut Parcel<S> {
        &mut self.to[shard.index()].open
    }

    /// Bytes that wait because other shards have no room.
    pub(super) fn spill_bytes(&self) -> usize {
        self.to.iter().map(|lane| lane.spill_bytes).sum()
    }

    /// Bytes that were copied into lanes, since the start; shared payloads are not.
    pub(super) fn copied(&self) -> u64 {
        self.copied
    }

    /// Whether nothing waits on our side.
    pub(super) fn are_empty(&self) -> bool {
        self.to.iter().all(|lane| lane.spill.is_empty() && lane.open.is_empty())
    }

    /// The end of the tick: one parcel for each shard that we have something for. Returns the
    /// lanes whose spill stands above its mark, if that set has changed.
    pub(super) fn flush(
        &mut self,
        mesh: &mut Mesh<Parcel<S>>,
        batches: &mut [Batch],
    ) -> Option<ShardSet> {
        let mut full = ShardSet::EMPTY;
        for shard in self.peers() {
            let lane = &mut self.to[shard.index()];
            std::mem::swap(&mut lane.open.batch, &mut batches[shard.index()]);
            self.copied += lane.open.batch.copied() as u64;
            lane.flush(mesh, shard);
            if lane.spill_bytes > SPILL_BYTES_MARK {
                full.insert(shard);
            }
        }
        (full != self.full).then(|| {
            self.full = full;
            full
        })
    }
}

impl<S> Lane<S> {
    fn flush(&mut self, mesh: &mut Mesh<Parcel<S>>, to: ShardId) {
        let had_spill = !self.spill.is_empty();
        while let Some(parcel) = self.spill.pop_front() {
            let bytes = parcel.bytes();
            if let Err(parcel) = mesh.push(to, parcel) {
                self.spill.push_front(parcel);
                break;
            }
            self.spill_bytes -= bytes;
        }
        if !self.open.is_empty() {
            let parcel = std::mem::replace(&mut self.open, mesh.reuse(to).unwrap_or_default());
            if self.spill.is_empty() {
                if let Err(parcel) = mesh.push(to, parcel) {
                    self.keep(parcel);
                }
            } else {
                self.keep(parcel);
            }
        }
        let has_spill = !self.spill.is_empty();
        if had_spill != has_spill {
            mesh.announce_spill(to, has_spill);
        }
    }

    fn keep(&mut self, parcel: Parcel<S>) {
        self.spill_bytes += parcel.bytes();
        self.spill.push_back(parcel);
    }
}
