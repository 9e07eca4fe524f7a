//! The end of a tick: what the broker has written leaves, each thing once.
//!
//! In this order, so that acknowledgements ride with everything else: the journal's commit, the
//! lanes, closings, one send per connection that has something to say.
#![forbid(unsafe_code)]

use super::Shard;
use super::conn::{Ended, Receiving, Stage};
use crate::broker::Disconnection;
use crate::buf::OutBuf;
use crate::ids::ConnId;
use crate::io::{Backend, RecvMode, SendEnd};
use crate::limits::{REPLAY_OUTBOX_BYTES_MAX, SPARE_BUFFER_BYTES, SPARE_BUFFERS};

impl<B: Backend> Shard<B> {
    pub(super) fn flush(&mut self) {
        self.commit();
        self.flush_lanes();
        // The last words of a connection are awaited: before what is not.
        self.flush_closing();
        self.flush_outboxes();
    }

    fn flush_lanes(&mut self) {
        if self.shards == 1 {
            return;
        }
        if let Some(full) = self.lanes.flush(&mut self.mesh, &mut self.broker.out.batches) {
            self.broker.handle_lanes(self.now, full);
        }
        self.broker.handle_flushed(self.now);
        for target in self.mesh.take_wakes().iter() {
            self.counters.wakes += 1;
            self.backend.wake(&self.wakers[target.index()]);
        }
    }

    fn flush_outboxes(&mut self) {
        let mut dirty = std::mem::take(&mut self.broker.out.dirty.conns);
        for id in dirty.drain(..) {
            self.send_outbox(id);
        }
        self.broker.out.dirty.conns = dirty;
        let mut sendable = std::mem::take(&mut self.sendable);
        for id in sendable.drain(..) {
            self.send_outbox(id);
        }
        self.sendable = sendable;
    }

    /// Sends what waits for the connection, unless a send is in flight: then [`Shard::on_sent`]
    /// comes back to it.
    fn send_outbox(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.sending > 0 || conn.stage != Stage::Live || conn.broken {
            return;
        }
        let outbox = self.broker.outbox(id);
        if outbox.is_empty() {
            return;
        }
        let plaintext = std::mem::take(outbox);
        conn.sending = plaintext.len();
        // What is not copied into an outbox is shared. Counted here, once a send.
        self.counters.copied_to_outboxes += plaintext.contiguous().len() as u64;
        // Up to there nothing in the broker has stopped for want of room here: replays stop first.
        let is_awaited = conn.sending > REPLAY_OUTBOX_BYTES_MAX;
        let end = if is_awaited { SendEnd::Awaited } else { SendEnd::Unawaited };
        let wire = conn.transport.seal(plaintext);
        self.counters.sends += 1;
        self.backend.send(id, wire, end);
    }

    pub(super) fn on_sent(&mut self, id: ConnId, buf: OutBuf, result: std::io::Result<()>) {
        self.keep_spare(buf);
        let Some(conn) = self.conns.get_mut(id) else { return };
        let sent = std::mem::take(&mut conn.sending);
        match result {
            Ok(()) => self.counters.bytes_sent += sent as u64,
            Err(_) => {
                // The receiving side will say how it ended; until then nothing more is sent.
                conn.broken = true;
                self.counters.send_errors += 1;
                if conn.receiving == Receiving::Idle {
                    conn.ended.get_or_insert(Ended::Error);
                    self.after_input(id);
                }
            }
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        match conn.stage {
            Stage::Live => {
                self.broker.handle_sent(self.now, id, sent);
                if !self.broker.outbox(id).is_empty() {
                    self.sendable.push(id);
                }
            }
            Stage::Flushing => self.advance_close(id),
            Stage::Opening | Stage::Lingering | Stage::Closed => {}
        }
    }

    fn keep_spare(&mut self, mut buf: OutBuf) {
        let spare = &mut self.broker.out.dirty.spare;
        if buf.capacity() > 0 && spare.len() < SPARE_BUFFERS {
            buf.clear();
            buf.shrink(SPARE_BUFFER_BYTES);
            spare.push(buf);
        }
    }

    /// Begins to close what the broker is done with.
    fn flush_closing(&mut self) {
        while let Some(id) = self.broker.out.close.pop() {
            if self.conns.get_mut(id).is_some_and(|conn| conn.stage == Stage::Live) {
                let last = std::mem::take(self.broker.outbox(id));
                self.finish(id, last);
            }
        }
    }

    /// The broker is done with it: what waits is still sent, within a bound.
    pub(super) fn finish(&mut self, id: ConnId, last: OutBuf) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.stage = Stage::Flushing;
        conn.last = (!last.is_empty()).then(|| Box::new(last));
        conn.input.take();
        self.close_deadlines.set(self.now, id);
        self.advance_close(id);
    }

    /// Takes a closing connection one step on: send, shut our end, read to theirs, close. A close
    /// with unread input would send a reset, which may destroy the last packet on its way.
    pub(super) fn advance_close(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.stage != Stage::Flushing || conn.sending > 0 {
            return;
        }
        if conn.broken || (conn.ended.is_some() && conn.last.is_none()) {
            self.close(id);
        } else if let Some(plaintext) = conn.last.take() {
            conn.sending = plaintext.len();
            let wire = conn.transport.seal(*plaintext);
            self.counters.sends += 1;
            self.backend.send(id, wire, SendEnd::Awaited);
        } else {
            conn.stage = Stage::Lingering;
            self.backend.shutdown_write(id);
            self.linger_deadlines.set(self.now, id);
            self.arm(id, RecvMode::Multi);
        }
    }

    /// Closes at once. The slot stays until the backend says that nothing is in flight.
    pub(super) fn close(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.stage == Stage::Closed {
            return;
        }
        conn.stage = Stage::Closed;
        conn.input.take();
        conn.last = None;
        self.backend.close(id);
    }

    pub(super) fn on_closed(&mut self, id: ConnId) {
        self.broker.handle_closed(self.now, id, Disconnection::Closed);
        self.conns.remove(id);
    }

    /// The last bytes of closing connections were not read in time, or their end did not come.
    pub(super) fn expire_closing(&mut self) {
        while let Some(id) = self.close_deadlines.pop_due(self.now) {
            if self.conns.get_mut(id).is_some_and(|conn| conn.stage == Stage::Flushing) {
                self.counters.flush_timeouts += 1;
                self.close(id);
            }
        }
        while let Some(id) = self.linger_deadlines.pop_due(self.now) {
            if self.conns.get_mut(id).is_some_and(|conn| conn.stage == Stage::Lingering) {
                self.close(id);
            }
        }
    }
}
