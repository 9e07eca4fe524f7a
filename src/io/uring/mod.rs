//! The contract of [`Backend`] over one `io_uring` per shard.
//!
//! `ring` is the ring, `ops` what is submitted to it, `buf_ring` the receive buffers; here is what
//! they are for: which operation is in flight on which connection, and what its completion means.
//! Submissions are queued by the verbs and enter the kernel in [`Backend::poll`].
//!
//! Invariants:
//! - *one each*: at most one receive and one send of a connection are in flight; `recv` and `send`
//!   of its entry say so from the submission to the completion without F_MORE, whoever wants it.
//! - *slot*: a connection stays in the table until both are over, so a completion always finds its
//!   connection and the generation in its token is a second line of defence.
//! - *memory*: what a send in flight points to stays in `sends` until its completion.
//! - *quiet*: a send that nobody awaits has a completion only if the kernel could not take all of it
//!   at once. It is over when the kernel has taken its submission, all completions made by then have
//!   been looked at, and none was its own.
//! - *starved*: a receive that ended for want of buffers is begun again when there are some, and
//!   not before: with an empty buffer ring it would end at once.
#![allow(unsafe_code)]

pub(super) mod ring;

mod accept;
mod buf_ring;
mod files;
mod ops;

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use io_uring::cqueue;
use rustix::io::Errno;
use rustix::net::Shutdown;
use slab::Slab;

use self::accept::Listener;
use self::buf_ring::BufRing;
use self::files::FileWork;
use self::ops::{Gather, Op, SendOp};
use self::ring::Ring;
use super::file::FileOp;
use super::files::Files;
use super::socket::{self, Reserve};
use super::spin::Spin;
use super::table::Table;
use super::token::Token;
use super::waker::Waker;
use super::{
    Backend, Completion, IoCounters, ListenerId, RecvBuf, RecvEnd, RecvMode, SendEnd, Settings,
    Wait,
};
use crate::buf::OutBuf;
use crate::clock;
use crate::ids::ConnId;
use crate::limits::COMPLETIONS_PER_TICK;

const KIND_RECV: u8 = 1;
const KIND_SEND: u8 = 2;
const KIND_ACCEPT: u8 = 3;
/// Our own eventfd has been written to.
const KIND_EVENTFD: u8 = 4;
/// Another ring has sent us a message.
const KIND_WOKEN: u8 = 5;
/// Our message to another ring has failed.
const KIND_MESSAGE: u8 = 6;
/// Our cancelling of a receive, or of a send, or of an accept, has found nothing.
const KIND_CANCEL_RECV: u8 = 7;
const KIND_CANCEL_SEND: u8 = 8;
const KIND_CANCEL_ACCEPT: u8 = 9;
/// Somebody wants to be accepted.
const KIND_PEER_WAITS: u8 = 10;
/// A write to a file, or a read.
const KIND_FILE: u8 = 11;

/// Pieces of deferred work that one entry runs, if it does not wait for more: IO_LOCAL_TW_DEFAULT_MAX
/// of the kernel's io_uring.h, since Linux 6.14. Before, it runs all.
const DEFERRED_WORK_MAX: usize = 20;
/// Lists of pieces kept for later sends.
const SPARE_GATHERS_MAX: usize = 64;
/// How long dropping the backend waits for the kernel to let go.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

/// The `io_uring` backend.
pub struct Uring {
    /// Dropped before the memory that its operations use.
    ring: Ring,
    buffers: BufRing,
    sends: Slab<SendOp>,
    file_ops: Slab<FileWork>,
    files: Files,
    spare_gathers: Vec<Gather>,
    conns: Table<Conn>,
    listeners: Vec<Option<Listener>>,
    reserve: Reserve,
    waker: Waker,
    /// Whom we have sent messages to; a failed one comes back with the number here.
    targets: Vec<Waker>,
    /// Receives to begin again when there are buffers.
    starved: VecDeque<ConnId>,
    /// Receives that were cancelled while starved: nothing is in flight to tell.
    cancelled: Vec<ConnId>,
    /// Connections that were closed while quiet.
    closed: Vec<ConnId>,
    /// Sends of nothing.
    empty_sends: Vec<(ConnId, OutBuf)>,
    /// Sends in flight that will say nothing if all goes well.
    quiet_sends: Vec<ConnId>,
    /// One of them has become awaited.
    quiet_awaited: bool,
    reaped: Vec<cqueue::Entry>,
    counters: IoCounters,
    spin: Spin,
}

/// What a connection takes in the backend, in bytes.
#[cfg(test)]
pub(crate) const CONN_BYTES: usize = Table::<Conn>::SLOT_BYTES;

struct Conn {
    socket: OwnedFd,
    recv: Recv,
    recv_cancelled: bool,
    send: Send,
    /// FIN follows the send in flight.
    fin_wanted: bool,
    closing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recv {
    Idle,
    InFlight(RecvMode),
    Starved(RecvMode),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Send {
    Idle,
    /// Its place in `sends`.
    InFlight(u32),
    /// Done in the next poll.
    Empty,
}

impl Conn {
    /// Nothing of it is with the kernel.
    const fn is_idle(&self) -> bool {
        !matches!(self.recv, Recv::InFlight(_)) && !matches!(self.send, Send::InFlight(_))
    }
}

impl Uring {
    /// On the shard's thread.
    ///
    /// # Errors
    /// When the kernel has no `io_uring` as we need it (see `io::probe`), or no descriptor left.
    pub fn new(settings: &Settings) -> io::Result<Self> {
        let ring = Ring::new(settings.ring_entries)?;
        // SAFETY: `buffers` lies behind `ring` in the struct, so it is dropped after it; `drop`
        // ends all receives first, and leaks it when that cannot be done.
        let buffers = unsafe { BufRing::new(ring.submitter(), settings.uring_pool)? };
        let waker = Waker::new()?;
        waker.set_ring(Some(ring.fd()));
        let mut this = Self {
            ring,
            buffers,
            sends: Slab::new(),
            file_ops: Slab::new(),
            files: Files::new(waker.clone()),
            spare_gathers: Vec::new(),
            conns: Table::new(),
            listeners: Vec::new(),
            reserve: Reserve::new(),
            waker,
            targets: Vec::new(),
            starved: VecDeque::new(),
            cancelled: Vec::new(),
            closed: Vec::new(),
            empty_sends: Vec::new(),
            quiet_sends: Vec::new(),
            quiet_awaited: false,
            reaped: Vec::with_capacity(COMPLETIONS_PER_TICK),
            counters: IoCounters::default(),
            spin: Spin::new(settings.spin),
        };
        this.watch_eventfd();
        Ok(this)
    }

    /// Which of the optional things the ring has.
    pub(super) const fn ring_features(&self) -> ring::Features {
        self.ring.features()
    }

    fn push(&mut self, op: Op) {
        if self.ring.push(op) {
            self.counters.enters += 1;
            self.counters.extra_submits += 1;
        }
    }

    fn watch_eventfd(&mut self) {
        let fd = self.waker.eventfd().as_raw_fd();
        self.push(Op::poll_multi(fd, Token::plain(KIND_EVENTFD, 0)));
    }

    fn open_mut(&mut self, conn: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(conn).filter(|state| !state.closing)
    }

    fn start_recv(&mut self, conn: ConnId, mode: RecvMode) {
        let state = self.conns.get_mut(conn).expect("invariant: the caller has found it");
        state.recv = Recv::InFlight(mode);
        let fd = state.socket.as_raw_fd();
        let token = Token::conn(KIND_RECV, conn);
        self.push(match mode {
            RecvMode::Once => Op::recv_once(fd, token),
            RecvMode::Multi => Op::recv_multi(fd, token),
        });
    }

    fn start_send(&mut self, conn: ConnId, key: u32, end: SendEnd) {
        let state = self.conns.get(conn).expect("invariant: the caller has found it");
        let fd = state.socket.as_raw_fd();
        let send = &mut self.sends[key as usize];
        // SAFETY: the send stays in `sends`, untouched, until `on_sent` gets its completion: the
        // connection says InFlight until then, and is neither removed nor sent on. For a quiet one
        // `finish_quiet_sends` waits until the kernel is done with it. `drop` waits for that, or
        // leaks `sends`.
        let op =
            unsafe { send.submission(fd, Token::conn(KIND_SEND, conn), end == SendEnd::Unawaited) };
        if send.is_quiet().is_some() {
            self.quiet_sends.push(conn);
        }
        self.push(op);
    }

    /// The entry of a poll. One that would sleep looks first whether something comes soon: in our own
    /// memory, without an entry.
    fn enter(&mut self, wait: bool, timeout: Option<Duration>) -> io::Result<()> {
        let Some(until) = self.spin.until().filter(|_| wait) else {
            return self.ring.enter(wait, timeout);
        };
        self.ring.enter(false, None)?;
        let until = timeout.map_or(until, |timeout| until.min(clock::now() + timeout));
        let has_come = |ring: &Ring| ring.has_deferred_work() || ring.has_more();
        while !has_come(&self.ring) && clock::now() < until {
            std::hint::spin_loop();
        }
        self.counters.enters += 1;
        self.ring.enter(!has_come(&self.ring), timeout)
    }

    /// What the kernel has taken and says nothing of was sent whole. One that did say something is
    /// over, or goes on as a send that is not quiet. `submitted` says whether the entry took all.
    fn finish_quiet_sends(&mut self, submitted: bool, completions: &mut Vec<Completion>) {
        if self.quiet_sends.is_empty() {
            self.quiet_awaited = false;
            return;
        }
        if !submitted || !self.ring.has_heard_all() {
            // Nothing may ever come that would end a wait.
            self.quiet_awaited = true;
            return;
        }
        let mut quiet_sends = std::mem::take(&mut self.quiet_sends);
        for conn in quiet_sends.drain(..) {
            let send = self.conns.get(conn).and_then(|state| match state.send {
                Send::InFlight(key) => self.sends[key as usize].is_quiet(),
                _ => None,
            });
            if let Some(asked) = send {
                self.on_sent(conn, asked as i32, completions);
            }
        }
        self.quiet_sends = quiet_sends;
        self.quiet_awaited = false;
    }

    /// What was asked for since the last poll and needs no kernel.
    fn finish_deferred(&mut self, completions: &mut Vec<Completion>) {
        for conn in self.cancelled.drain(..) {
            let Some(state) = self.conns.get_mut(conn) else { continue };
            if !state.closing && state.recv_cancelled && matches!(state.recv, Recv::Starved(_)) {
                state.recv = Recv::Idle;
                state.recv_cancelled = false;
                completions.push(Completion::RecvEnded { conn, reason: RecvEnd::Cancelled });
            }
        }
        for (conn, buf) in self.empty_sends.drain(..) {
            let Some(state) = self.conns.get_mut(conn) else { continue };
            if !state.closing {
                state.send = Send::Idle;
                completions.push(Completion::Sent { conn, buf, result: Ok(()) });
            }
        }
        for conn in self.closed.drain(..) {
            if self.conns.remove(conn).is_some() {
                completions.push(Completion::Closed { conn });
            }
        }
    }

    /// Begins starved receives again, as many as there are buffers: each takes at least one.
    fn feed_starved(&mut self) {
        let mut feed = self.buffers.available();
        while feed > 0
            && let Some(conn) = self.starved.pop_front()
        {
            let Some(state) = self.conns.get(conn) else { continue };
            let Recv::Starved(mode) = state.recv else { continue };
            if state.closing || state.recv_cancelled {
                continue;
            }
            self.counters.rearmed += 1;
            self.start_recv(conn, mode);
            feed -= 1;
        }
    }

    /// Looks at what the kernel has said, at most so much; how much it was.
    fn reap(&mut self, max: usize, completions: &mut Vec<Completion>) -> usize {
        let mut reaped = std::mem::take(&mut self.reaped);
        self.ring.reap(&mut reaped, max);
        let count = reaped.len();
        for entry in reaped.drain(..) {
            self.on_completion(&entry, completions);
        }
        self.reaped = reaped;
        count
    }

    fn on_completion(&mut self, entry: &cqueue::Entry, completions: &mut Vec<Completion>) {
        let token = Token::from_word(entry.user_data());
        let (result, flags) = (entry.result(), entry.flags());
        match token.kind() {
            KIND_RECV => self.on_recv(token.conn_id(), result, flags, completions),
            KIND_SEND => self.on_sent(token.conn_id(), result, completions),
            KIND_ACCEPT => self.on_accept(token.index(), result, flags, completions),
            KIND_PEER_WAITS => self.on_peer_waits(token.index()),
            KIND_EVENTFD => {
                self.counters.wakes_received += 1;
                if !cqueue::more(flags) {
                    self.watch_eventfd();
                }
            }
            KIND_WOKEN => self.counters.wakes_received += 1,
            KIND_MESSAGE => {
                self.counters.messages_failed += 1;
                if let Some(target) = self.targets.get(token.index() as usize) {
                    target.wake();
                }
            }
            KIND_FILE => self.on_file(token.index(), result),
            KIND_CANCEL_RECV => self.cancel_again(token.conn_id(), KIND_RECV),
            KIND_CANCEL_SEND => self.cancel_again(token.conn_id(), KIND_SEND),
            // An accept that had ended by itself.
            KIND_CANCEL_ACCEPT => {}
            _ => self.counters.stale += 1,
        }
    }

    fn on_recv(
        &mut self,
        conn: ConnId,
        result: i32,
        flags: u32,
        completions: &mut Vec<Completion>,
    ) {
        let buffer = cqueue::buffer_select(flags);
        let state = self.conns.get_mut(conn);
        let Some((state, mode)) = state.and_then(|state| match state.recv {
            Recv::InFlight(mode) => Some((state, mode)),
            _ => None,
        }) else {
            self.counters.stale += 1;
            if let Some(id) = buffer {
                self.buffers.discard(id);
            }
            return;
        };
        let ended = !cqueue::more(flags);
        if ended {
            state.recv = Recv::Idle;
        }
        if state.closing {
            if let Some(id) = buffer {
                self.buffers.discard(id);
            }
            self.close_if_idle(conn, completions);
            return;
        }
        let cancelled = state.recv_cancelled;
        if ended {
            state.recv_cancelled = false;
        }
        match (buffer, usize::try_from(result).unwrap_or(0)) {
            (Some(id), n) if n > 0 => {
                self.counters.received += 1;
                self.counters.received_bytes += n as u64;
                let buf = self.buffers.hand_out(id, n);
                completions.push(Completion::Received { conn, buf });
            }
            (Some(id), _) => self.buffers.discard(id),
            (None, _) => {}
        }
        if ended {
            self.on_recv_ended(conn, mode, result, cancelled, completions);
        }
    }

    /// The kernel will say no more about this receive: it is over, or begins again.
    fn on_recv_ended(
        &mut self,
        conn: ConnId,
        mode: RecvMode,
        result: i32,
        cancelled: bool,
        completions: &mut Vec<Completion>,
    ) {
        let reason = match result {
            1.. if mode == RecvMode::Once => return,
            0 => RecvEnd::Eof,
            1.. => {
                if !cancelled {
                    // Silently: the completion queue was full.
                    self.counters.rearmed += 1;
                    return self.start_recv(conn, mode);
                }
                RecvEnd::Cancelled
            }
            _ => match Errno::from_raw_os_error(-result) {
                Errno::NOBUFS | Errno::INTR | Errno::AGAIN | Errno::CANCELED if cancelled => {
                    RecvEnd::Cancelled
                }
                Errno::NOBUFS => {
                    self.counters.enobufs += 1;
                    self.buffers.ran_dry();
                    if let Some(state) = self.conns.get_mut(conn) {
                        state.recv = Recv::Starved(mode);
                        self.starved.push_back(conn);
                    }
                    return;
                }
                Errno::INTR | Errno::AGAIN => {
                    self.counters.rearmed += 1;
                    return self.start_recv(conn, mode);
                }
                error => RecvEnd::Error(error.into()),
            },
        };
        completions.push(Completion::RecvEnded { conn, reason });
    }

    fn on_sent(&mut self, conn: ConnId, result: i32, completions: &mut Vec<Completion>) {
        let state = self.conns.get_mut(conn);
        let Some((state, key)) = state.and_then(|state| match state.send {
            Send::InFlight(key) => Some((state, key)),
            _ => None,
        }) else {
            self.counters.stale += 1;
            return;
        };
        let send = &mut self.sends[key as usize];
        let error = match usize::try_from(result) {
            Ok(n) => {
                self.counters.short_sends += u64::from(send.advance(n));
                // A send of something that takes nothing would be tried for ever.
                (n == 0).then_some(Errno::IO)
            }
            Err(_) => Some(Errno::from_raw_os_error(-result)),
        };
        let again = matches!(error, None | Some(Errno::INTR | Errno::AGAIN)) && !send.is_done();
        if again && !state.closing {
            return self.start_send(conn, key, SendEnd::Awaited);
        }
        state.send = Send::Idle;
        let (buf, gather) = self.sends.remove(key as usize).into_parts();
        if let Some(gather) = gather
            && self.spare_gathers.len() < SPARE_GATHERS_MAX
        {
            self.spare_gathers.push(gather);
        }
        if state.closing {
            self.close_if_idle(conn, completions);
            return;
        }
        if std::mem::take(&mut state.fin_wanted) {
            socket::shutdown_write(&state.socket);
        }
        self.counters.sent += 1;
        let result = match error {
            None => {
                self.counters.sent_bytes += buf.len() as u64;
                Ok(())
            }
            Some(error) => Err(error.into()),
        };
        completions.push(Completion::Sent { conn, buf, result });
    }

    /// A cancel that found nothing was too late, and then the completion is here already; or it was
    /// in the way of the kernel's own handling, and is tried again.
    fn cancel_again(&mut self, conn: ConnId, kind: u8) {
        let Some(state) = self.conns.get(conn) else { return };
        let wanted = state.closing || (kind == KIND_RECV && state.recv_cancelled);
        let in_flight = match kind {
            KIND_RECV => matches!(state.recv, Recv::InFlight(_)),
            _ => matches!(state.send, Send::InFlight(_)),
        };
        if wanted && in_flight {
            self.push_cancel(conn, kind);
        }
    }

    fn push_cancel(&mut self, conn: ConnId, kind: u8) {
        let own = if kind == KIND_RECV { KIND_CANCEL_RECV } else { KIND_CANCEL_SEND };
        self.push(Op::cancel(Token::conn(kind, conn), Token::conn(own, conn)));
    }

    /// The kernel has no memory of ours to write to or to read from.
    fn has_left_the_kernel(&self) -> bool {
        self.conns.is_empty() && self.file_ops.is_empty()
    }

    /// Whether there is something to do before the kernel has anything to say.
    fn must_not_wait(&self) -> bool {
        let can_feed = !self.starved.is_empty() && self.buffers.available() > 0;
        can_feed || self.ring.has_more() || (self.quiet_awaited && !self.quiet_sends.is_empty())
    }

    fn close_if_idle(&mut self, conn: ConnId, completions: &mut Vec<Completion>) {
        if self.conns.get(conn).is_some_and(|state| state.closing && state.is_idle()) {
            self.conns.remove(conn);
            completions.push(Completion::Closed { conn });
        }
    }
}

impl Backend for Uring {
    type Socket = OwnedFd;
    type Listener = TcpListener;

    fn name(&self) -> &'static str {
        "uring"
    }

    fn features(&self) -> String {
        let features = self.ring.features();
        let mut text = String::from("DEFER_TASKRUN, provided buffers, multishot");
        for (there, name) in [
            (features.no_sqarray, "NO_SQARRAY"),
            (features.registered_fd, "registered ring"),
            (features.no_iowait, "NO_IOWAIT"),
        ] {
            if there {
                text.push_str(", ");
                text.push_str(name);
            }
        }
        text
    }

    fn add_listener(&mut self, listener: TcpListener) -> io::Result<ListenerId> {
        let id = u16::try_from(self.listeners.len())
            .map_err(|_| io::Error::other("too many listeners over time"))?;
        // For turning peers away, which must not block.
        listener.set_nonblocking(true)?;
        self.listeners.push(Some(Listener::new(listener)));
        Ok(ListenerId(id))
    }

    fn remove_listener(&mut self, id: ListenerId) {
        let index = usize::from(id.0);
        let Some(listener) = self.listeners.get_mut(index).and_then(Option::take) else { return };
        if let Some(kind) = listener.armed() {
            let token = |kind| Token::plain(kind, u32::from(id.0));
            self.push(Op::cancel(token(kind), token(KIND_CANCEL_ACCEPT)));
        }
    }

    fn add_socket(&mut self, conn: ConnId, socket: OwnedFd) -> io::Result<()> {
        self.conns.insert(
            conn,
            Conn {
                socket,
                recv: Recv::Idle,
                recv_cancelled: false,
                send: Send::Idle,
                fin_wanted: false,
                closing: false,
            },
        );
        Ok(())
    }

    fn recv(&mut self, conn: ConnId, mode: RecvMode) {
        let Some(state) = self.open_mut(conn) else { return };
        assert!(state.recv == Recv::Idle, "invariant: one receive in flight per connection");
        self.start_recv(conn, mode);
    }

    fn cancel_recv(&mut self, conn: ConnId) {
        let Some(state) = self.open_mut(conn) else { return };
        if state.recv == Recv::Idle || state.recv_cancelled {
            return;
        }
        state.recv_cancelled = true;
        if matches!(state.recv, Recv::Starved(_)) {
            self.cancelled.push(conn);
        } else {
            self.push_cancel(conn, KIND_RECV);
        }
    }

    fn send(&mut self, conn: ConnId, buf: OutBuf, end: SendEnd) {
        let Some(state) = self.open_mut(conn) else { return };
        assert!(state.send == Send::Idle, "invariant: one send in flight per connection");
        if buf.is_empty() {
            state.send = Send::Empty;
            self.empty_sends.push((conn, buf));
            return;
        }
        let gather =
            (!buf.is_contiguous()).then(|| self.spare_gathers.pop().unwrap_or_else(Gather::new));
        let key = self.sends.insert(SendOp::new(buf, gather)) as u32;
        self.conns.get_mut(conn).expect("invariant: found above").send = Send::InFlight(key);
        self.start_send(conn, key, end);
    }

    fn shutdown_write(&mut self, conn: ConnId) {
        let Some(state) = self.open_mut(conn) else { return };
        if matches!(state.send, Send::InFlight(_)) {
            state.fin_wanted = true;
            self.quiet_awaited = true;
        } else {
            socket::shutdown_write(&state.socket);
        }
    }

    /// An operation in flight holds the file, so closing the descriptor alone would send no FIN.
    /// The shutdown sends it and ends both operations; cancelling catches what it might not.
    fn close(&mut self, conn: ConnId) {
        let Some(state) = self.open_mut(conn) else { return };
        state.closing = true;
        if matches!(state.recv, Recv::Starved(_)) {
            state.recv = Recv::Idle;
        }
        if state.is_idle() {
            self.closed.push(conn);
            return;
        }
        let _ = rustix::net::shutdown(&state.socket, Shutdown::Both);
        let recv = matches!(state.recv, Recv::InFlight(_)) && !state.recv_cancelled;
        let send = matches!(state.send, Send::InFlight(_));
        if recv {
            self.push_cancel(conn, KIND_RECV);
        }
        if send {
            self.quiet_awaited = true;
            self.push_cancel(conn, KIND_SEND);
        }
    }

    fn detach(&mut self, conn: ConnId) -> Option<OwnedFd> {
        let state = self.open_mut(conn)?;
        if state.recv != Recv::Idle || state.send != Send::Idle {
            return None;
        }
        Some(self.conns.remove(conn)?.socket)
    }

    fn peer_addr(&self, socket: &OwnedFd) -> Option<SocketAddr> {
        socket::peer_addr(socket)
    }

    fn poll(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()> {
        let before = completions.len();
        self.finish_deferred(completions);
        self.files.take(&mut self.counters, completions);
        self.buffers.publish();
        self.feed_starved();
        let rested = self.arm_listeners();
        let busy = completions.len() > before || self.must_not_wait();
        let (wait, timeout) = match (wait, rested) {
            _ if busy => (false, None),
            (Wait::None, _) => (false, None),
            (Wait::Forever, None) => (true, None),
            (Wait::Until(time), None) | (Wait::Forever, Some(time)) => {
                let left = time.since(clock::now());
                (!left.is_zero(), Some(left))
            }
            (Wait::Until(a), Some(b)) => {
                let left = a.min(b).since(clock::now());
                (!left.is_zero(), Some(left))
            }
        };
        self.counters.enters += 1;
        self.enter(wait, timeout)?;
        // Before completions are looked at, which may push more: none of that is quiet.
        let submitted = self.ring.has_submitted_all();
        self.counters.overflow += u64::from(self.ring.overflown());
        let (mut left, mut has_come) = (COMPLETIONS_PER_TICK, false);
        loop {
            let count = self.reap(left, completions);
            left -= count;
            has_come |= count > 0;
            // All that was ready belongs into this tick: its answers leave together. An entry costs
            // a tenth of a microsecond, a send of its own three. What has come since the entry waits
            // for the next one: to go on for that would keep the answers back.
            if count < DEFERRED_WORK_MAX || left == 0 || !self.ring.has_deferred_work() {
                break;
            }
            self.buffers.publish();
            self.counters.enters += 1;
            self.counters.extra_drains += 1;
            self.ring.enter(false, None)?;
        }
        self.finish_quiet_sends(submitted, completions);
        self.files.take(&mut self.counters, completions);
        if has_come {
            self.spin.found();
        }
        Ok(())
    }

    fn file(&mut self, op: FileOp) {
        self.start_file(op);
    }

    fn bytes(&self, buf: &RecvBuf) -> &[u8] {
        self.buffers.bytes(buf)
    }

    fn release(&mut self, buf: RecvBuf) {
        self.buffers.release(buf);
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn wake(&mut self, target: &Waker) {
        self.counters.wakes_sent += 1;
        let Some(ring) = target.ring() else { return target.wake() };
        let known = self.targets.iter().position(|known| known.same(target));
        let index = known.unwrap_or_else(|| {
            self.targets.push(target.clone());
            self.targets.len() - 1
        });
        let token = Token::plain(KIND_MESSAGE, index as u32);
        self.push(Op::message(ring, Token::plain(KIND_WOKEN, 0), token));
    }

    fn set_quick_ack(&mut self, conn: ConnId, on: bool) {
        if let Some(state) = self.open_mut(conn) {
            socket::set_quick_ack(&state.socket, on);
        }
    }

    fn input_age(&self, conn: ConnId) -> Duration {
        self.conns.get(conn).map_or(Duration::ZERO, |state| socket::input_age(&state.socket))
    }

    fn counters(&self) -> IoCounters {
        self.counters
    }
}

impl Drop for Uring {
    /// Ends everything in flight and waits until the kernel has said so: what it may still write
    /// or read must not be freed.
    fn drop(&mut self) {
        self.waker.set_ring(None);
        for index in 0..self.listeners.len() {
            self.remove_listener(ListenerId(index as u16));
        }
        for conn in self.conns.ids() {
            self.close(conn);
        }
        let patience = clock::now() + DROP_PATIENCE;
        let mut ignored = Vec::new();
        while !self.has_left_the_kernel() && clock::now() < patience {
            if self.poll(Wait::Until(patience), &mut ignored).is_err() {
                break;
            }
            ignored.clear();
        }
        if self.has_left_the_kernel() {
            let _ = self.ring.submitter().unregister_buf_ring(ops::BUFFER_GROUP);
        } else {
            std::mem::forget(std::mem::take(&mut self.sends));
            std::mem::forget(std::mem::take(&mut self.file_ops));
            self.buffers.leak();
        }
    }
}
