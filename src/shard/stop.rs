//! Shutdown (SHARDS.md section 7): nothing that was acknowledged or handed over is stranded in a
//! lane.
//!
//! All shards stop reading and firing timers, and their brokers say END to each other behind
//! everything else ([`Broker::handle_end`](crate::broker::Broker::handle_end)); when all have said
//! it twice the lanes are empty, and clients are told goodbye. The whole is bounded in time: a
//! shard that does not answer does not keep the process alive.
#![forbid(unsafe_code)]

use super::conn::{Receiving, Stage};
use super::{Shard, Turn};
use crate::clock::Time;
use crate::io::Backend;
use crate::limits::SHUTDOWN_FLUSH;

/// How far the shutdown of this shard has come.
#[derive(Debug)]
pub(super) struct Stopping {
    /// When what is left is dropped.
    deadline: Time,
    /// Clients have been told.
    closing: bool,
}

impl Stopping {
    pub(super) fn deadline(&self) -> Time {
        self.deadline
    }
}

impl<B: Backend> Shard<B> {
    /// Stops accepting and reading.
    pub(super) fn begin_stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        for listener in self.listener_ids.drain(..) {
            self.backend.remove_listener(listener);
        }
        for id in self.conns.ids() {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            // What still arrives is kept and not handled: nothing may follow END into a lane.
            conn.paused = true;
            if conn.stage == Stage::Opening {
                self.close(id);
            } else if conn.receiving == Receiving::Armed {
                conn.receiving = Receiving::Cancelling;
                self.backend.cancel_recv(id);
            }
        }
        self.broker.out.reads.clear();
        self.journaling.forget_reads();
        self.broker.handle_end();
        let deadline = self.now + SHUTDOWN_FLUSH;
        self.stopping = Some(Stopping { deadline, closing: false });
    }

    /// Takes the shutdown on, if one is under way.
    pub(super) fn advance_stop(&mut self) -> Turn {
        let Some(stopping) = &mut self.stopping else { return Turn::Again };
        let late = self.now >= stopping.deadline;
        let told = self.broker.has_ended() && self.lanes.are_empty();
        if !stopping.closing && (told || late) {
            stopping.closing = true;
            stopping.deadline = self.now + SHUTDOWN_FLUSH;
            self.broker.handle_shutdown(self.now);
            if self.journaling.exists() {
                self.broker.handle_last_end();
            }
        } else if late || self.has_stopped() {
            return Turn::Done;
        }
        Turn::Again
    }

    /// Whether the shutdown has nothing left to wait for.
    pub(super) fn has_stopped(&self) -> bool {
        self.stopping.as_ref().is_some_and(|stopping| stopping.closing)
            && self.conns.len() == 0
            && self.lanes.are_empty()
            && self.is_kept()
    }

    /// Whether the journal has all that was said here, and at its host by anybody.
    fn is_kept(&self) -> bool {
        !self.journaling.exists()
            || !self.broker.has_uncommitted()
                && (!self.journaling.is_host()
                    || self.broker.has_heard_last() && self.journaling.is_idle(self.shards))
    }
}
