//! The contract of [`Backend`] over readiness: edge-triggered epoll (mio), non-blocking calls, and
//! completions made up from what they return.
//!
//! Every socket is registered once, for both directions, and never again: an edge that comes while
//! nobody has asked is remembered in the connection. All work happens in [`Backend::poll`], in this
//! order: what was asked for since the last one (cancels, closes, sends), the one `epoll_wait`, then
//! accepts, then reads.
//!
//! Invariants:
//! - *ready*: a connection with a receive in flight and `readable` is in `ready`, once.
//! - *no spin*: `epoll_wait` is skipped over (timeout zero) only when the poll has something to
//!   hand out already, or can read.
//! - calls pass `MSG_DONTWAIT`, so it does not matter whether a socket is in non-blocking mode.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags};

use super::file::FileOp;
use super::files::Files;
use super::pool::Pool;
use super::socket::{self, AcceptTrouble, Reserve};
use super::spin::Spin;
use super::table::Table;
use super::token::Token;
use super::waker::Waker;
use super::{
    Backend, Completion, IoCounters, ListenerId, RecvBuf, RecvEnd, RecvMode, SendEnd, Settings,
    Wait,
};
use crate::buf::OutBuf;
use crate::clock::{self, Time};
use crate::ids::ConnId;
use crate::limits::{
    ACCEPT_PAUSE, ACCEPTS_PER_TICK, COMPLETIONS_PER_TICK, RECV_BYTES_PER_TICK, SEND_PIECES,
};

const KIND_CONN: u8 = 1;
const KIND_LISTENER: u8 = 2;
const KIND_WAKER: u8 = 3;

/// The epoll backend.
pub struct Epoll {
    epoll: mio::Poll,
    events: Events,
    waker: Waker,
    pool: Pool,
    conns: Table<Conn>,
    listeners: Vec<Option<Listener>>,
    reserve: Reserve,
    files: Files,
    /// Receives that were cancelled since the last poll.
    cancelled: Vec<ConnId>,
    /// Connections that were closed since the last poll.
    closed: Vec<ConnId>,
    /// Sends that were asked for since the last poll.
    sends: Vec<ConnId>,
    /// See *ready* above. Those that were closed or cancelled meanwhile are skipped.
    ready: VecDeque<ConnId>,
    counters: IoCounters,
    spin: Spin,
}

/// What a connection takes in the backend, in bytes.
#[cfg(test)]
pub(crate) const CONN_BYTES: usize = Table::<Conn>::SLOT_BYTES;

struct Conn {
    /// None when it is closing.
    socket: Option<OwnedFd>,
    recv: Option<RecvMode>,
    recv_cancelled: bool,
    /// An edge has come since the socket was last found empty.
    readable: bool,
    /// It stands in `ready`.
    queued: bool,
    /// The peer has closed: a short read does not mean that the socket is empty.
    hangup: bool,
    send: Option<Sending>,
    /// FIN follows the send in flight.
    fin_wanted: bool,
}

struct Sending {
    buf: OutBuf,
    offset: usize,
    end: SendEnd,
}

struct Listener {
    socket: TcpListener,
    /// An edge has come since accept last found nobody.
    ready: bool,
    resting_until: Option<Time>,
}

impl Epoll {
    /// On the shard's thread.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn new(settings: &Settings) -> io::Result<Self> {
        let epoll = mio::Poll::new()?;
        let waker = Waker::new()?;
        epoll.registry().register(
            &mut SourceFd(&waker.eventfd().as_raw_fd()),
            mio_token(Token::plain(KIND_WAKER, 0)),
            Interest::READABLE,
        )?;
        let files = Files::new(waker.clone());
        Ok(Self {
            epoll,
            files,
            events: Events::with_capacity(COMPLETIONS_PER_TICK),
            waker,
            pool: Pool::new(settings.epoll_pool),
            conns: Table::new(),
            listeners: Vec::new(),
            reserve: Reserve::new(),
            cancelled: Vec::new(),
            closed: Vec::new(),
            sends: Vec::new(),
            ready: VecDeque::new(),
            counters: IoCounters::default(),
            spin: Spin::new(settings.spin),
        })
    }

    fn open_mut(&mut self, conn: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(conn).filter(|state| state.socket.is_some())
    }

    fn finish_cancels(&mut self, completions: &mut Vec<Completion>) {
        for conn in self.cancelled.drain(..) {
            let Some(state) = self.conns.get_mut(conn) else { continue };
            if std::mem::take(&mut state.recv_cancelled) && state.recv.take().is_some() {
                completions.push(Completion::RecvEnded { conn, reason: RecvEnd::Cancelled });
            }
        }
    }

    fn finish_closes(&mut self, completions: &mut Vec<Completion>) {
        for conn in self.closed.drain(..) {
            if self.conns.remove(conn).is_some() {
                completions.push(Completion::Closed { conn });
            }
        }
    }

    /// Whether the end of one was awaited, or bad.
    fn start_sends(&mut self, completions: &mut Vec<Completion>) -> bool {
        let mut is_awaited = false;
        for i in 0..self.sends.len() {
            is_awaited |= self.go_on_sending(self.sends[i], completions);
        }
        self.sends.clear();
        is_awaited
    }

    /// Sends until all is out or the socket is full. Whether that was the end, and it was awaited
    /// or bad.
    fn go_on_sending(&mut self, conn: ConnId, completions: &mut Vec<Completion>) -> bool {
        let Some(state) = self.conns.get_mut(conn) else { return false };
        let (Some(fd), Some(sending)) = (&state.socket, &mut state.send) else { return false };
        let result = loop {
            if sending.offset == sending.buf.len() {
                break Ok(());
            }
            match send_some(fd, sending) {
                Ok(n) => {
                    sending.offset += n;
                    self.counters.short_sends += u64::from(sending.offset < sending.buf.len());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Err(error) => break Err(error.into()),
            }
        };
        if std::mem::take(&mut state.fin_wanted) {
            socket::shutdown_write(fd);
        }
        let Sending { buf, end, .. } = state.send.take().expect("invariant: matched above");
        let is_awaited = end == SendEnd::Awaited || result.is_err();
        self.counters.sent += 1;
        self.counters.sent_bytes += if result.is_ok() { buf.len() as u64 } else { 0 };
        completions.push(Completion::Sent { conn, buf, result });
        is_awaited
    }

    /// How long to wait, once per poll.
    fn timeout(&self, wait: Wait, something_done: bool) -> Option<Duration> {
        let can_read = !self.ready.is_empty() && self.pool.has_free();
        let can_accept = self.listeners.iter().flatten().any(|l| l.ready && !l.rests());
        if something_done || can_read || can_accept || wait == Wait::None {
            return Some(Duration::ZERO);
        }
        let rest = self.listeners.iter().flatten().filter_map(|l| l.resting_until).min();
        let deadline = match (wait, rest) {
            (Wait::Until(a), Some(b)) => a.min(b),
            (Wait::Until(a), None) => a,
            (_, Some(b)) => b,
            (_, None) => return None,
        };
        Some(deadline.since(clock::now()))
    }

    /// Waits for events; looks first whether something comes soon.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let sleeps = timeout.is_none_or(|timeout| !timeout.is_zero());
        if let Some(until) = self.spin.until().filter(|_| sleeps) {
            let until = timeout.map_or(until, |timeout| until.min(clock::now() + timeout));
            while clock::now() < until {
                self.epoll.poll(&mut self.events, Some(Duration::ZERO))?;
                if !self.events.is_empty() {
                    return Ok(());
                }
                self.counters.enters += 1;
            }
        }
        self.epoll.poll(&mut self.events, timeout)
    }

    fn take_events(&mut self, completions: &mut Vec<Completion>) {
        // Taken out to be read while the rest is changed; its memory goes back below.
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            let token = Token::from_word(event.token().0 as u64);
            match token.kind() {
                KIND_WAKER => self.counters.wakes_received += 1,
                KIND_LISTENER => {
                    let listener = self.listeners.get_mut(token.index() as usize);
                    if let Some(Some(listener)) = listener {
                        listener.ready = true;
                    }
                }
                _ => self.on_conn_event(token.conn_id(), event, completions),
            }
        }
        self.events = events;
    }

    fn on_conn_event(
        &mut self,
        conn: ConnId,
        event: &mio::event::Event,
        completions: &mut Vec<Completion>,
    ) {
        let Some(state) = self.open_mut(conn) else {
            self.counters.stale += 1;
            return;
        };
        let broken = event.is_error();
        state.hangup |= broken || event.is_read_closed();
        if (event.is_readable() || state.hangup) && !state.readable {
            state.readable = true;
            self.queue_read(conn);
        }
        if event.is_writable() || broken {
            self.go_on_sending(conn, completions);
        }
    }

    fn accept_all(&mut self, completions: &mut Vec<Completion>) {
        for index in 0..self.listeners.len() {
            let Some(listener) = &mut self.listeners[index] else { continue };
            if listener.resting_until.is_some_and(|until| clock::now() >= until) {
                listener.resting_until = None;
            }
            if listener.ready && !listener.rests() {
                let id = ListenerId(index as u16);
                accept_some(id, listener, &mut self.reserve, &mut self.counters, completions);
            }
        }
    }

    /// Reads from all that were ready when it began, so that each gets its turn.
    fn read_all(&mut self, completions: &mut Vec<Completion>) {
        for _ in 0..self.ready.len() {
            if !self.pool.has_free() {
                self.counters.enobufs += 1;
                break;
            }
            let conn = self.ready.pop_front().expect("invariant: counted above");
            if let Some(state) = self.conns.get_mut(conn) {
                state.queued = false;
                self.read(conn, completions);
                self.queue_read(conn);
            }
        }
    }

    /// Puts `conn` in `ready` if that is where it belongs.
    fn queue_read(&mut self, conn: ConnId) {
        let Some(state) = self.open_mut(conn) else { return };
        if state.readable && state.recv.is_some() && !state.queued {
            state.queued = true;
            self.ready.push_back(conn);
        }
    }

    /// Reads until the socket is empty, or no more is wanted, or there is no room.
    fn read(&mut self, conn: ConnId, completions: &mut Vec<Completion>) {
        let Some(state) = self.conns.get_mut(conn) else { return };
        let Some(fd) = &state.socket else { return };
        let mut budget = RECV_BYTES_PER_TICK;
        let mut end = None;
        while let (Some(mode), true, None) = (state.recv, state.readable, &end) {
            if budget == 0 {
                return;
            }
            let Some(index) = self.pool.take() else { return };
            let memory = self.pool.memory(index);
            let room = memory.len();
            match rustix::net::recv(fd, memory, RecvFlags::DONTWAIT) {
                Ok((_, n)) if n > 0 => {
                    budget = budget.saturating_sub(n);
                    state.readable = n == room || state.hangup;
                    self.counters.received += 1;
                    self.counters.received_bytes += n as u64;
                    let buf = self.pool.hand_out(index, n);
                    completions.push(Completion::Received { conn, buf });
                    if mode == RecvMode::Once {
                        state.recv = None;
                    }
                    continue;
                }
                Ok(_) => end = Some(RecvEnd::Eof),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => state.readable = false,
                Err(error) => end = Some(RecvEnd::Error(error.into())),
            }
            self.pool.put_back(index);
        }
        if let Some(reason) = end {
            state.recv = None;
            completions.push(Completion::RecvEnded { conn, reason });
        }
    }
}

impl Backend for Epoll {
    type Socket = OwnedFd;
    type Listener = TcpListener;

    fn name(&self) -> &'static str {
        "epoll"
    }

    fn features(&self) -> String {
        "edge-triggered".to_owned()
    }

    fn add_listener(&mut self, listener: TcpListener) -> io::Result<ListenerId> {
        let id = u16::try_from(self.listeners.len())
            .map_err(|_| io::Error::other("too many listeners over time"))?;
        listener.set_nonblocking(true)?;
        self.epoll.registry().register(
            &mut SourceFd(&listener.as_raw_fd()),
            mio_token(Token::plain(KIND_LISTENER, u32::from(id))),
            Interest::READABLE,
        )?;
        self.listeners.push(Some(Listener { socket: listener, ready: false, resting_until: None }));
        Ok(ListenerId(id))
    }

    fn remove_listener(&mut self, id: ListenerId) {
        if let Some(slot) = self.listeners.get_mut(usize::from(id.0)) {
            *slot = None;
        }
    }

    fn add_socket(&mut self, conn: ConnId, socket: OwnedFd) -> io::Result<()> {
        self.epoll.registry().register(
            &mut SourceFd(&socket.as_raw_fd()),
            mio_token(Token::conn(KIND_CONN, conn)),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        self.conns.insert(
            conn,
            Conn {
                socket: Some(socket),
                recv: None,
                recv_cancelled: false,
                readable: false,
                queued: false,
                hangup: false,
                send: None,
                fin_wanted: false,
            },
        );
        Ok(())
    }

    fn recv(&mut self, conn: ConnId, mode: RecvMode) {
        let Some(state) = self.open_mut(conn) else { return };
        assert!(state.recv.is_none(), "invariant: one receive in flight per connection");
        state.recv = Some(mode);
        self.queue_read(conn);
    }

    fn cancel_recv(&mut self, conn: ConnId) {
        let Some(state) = self.open_mut(conn) else { return };
        if state.recv.is_some() && !state.recv_cancelled {
            state.recv_cancelled = true;
            self.cancelled.push(conn);
        }
    }

    fn send(&mut self, conn: ConnId, buf: OutBuf, end: SendEnd) {
        let Some(state) = self.open_mut(conn) else { return };
        assert!(state.send.is_none(), "invariant: one send in flight per connection");
        state.send = Some(Sending { buf, offset: 0, end });
        self.sends.push(conn);
    }

    fn shutdown_write(&mut self, conn: ConnId) {
        let Some(state) = self.open_mut(conn) else { return };
        if state.send.is_some() {
            state.fin_wanted = true;
        } else if let Some(fd) = &state.socket {
            socket::shutdown_write(fd);
        }
    }

    fn close(&mut self, conn: ConnId) {
        let Some(state) = self.open_mut(conn) else { return };
        // Closing takes it out of epoll as well: nobody else holds the file.
        state.socket = None;
        state.send = None;
        state.recv = None;
        self.closed.push(conn);
    }

    fn detach(&mut self, conn: ConnId) -> Option<OwnedFd> {
        let state = self.conns.get(conn)?;
        let quiet = state.recv.is_none() && state.send.is_none();
        if state.socket.is_none() || !quiet {
            return None;
        }
        let socket = self.conns.remove(conn)?.socket?;
        // It fails only for a descriptor that is not registered.
        let _ = self.epoll.registry().deregister(&mut SourceFd(&socket.as_raw_fd()));
        Some(socket)
    }

    fn peer_addr(&self, socket: &OwnedFd) -> Option<SocketAddr> {
        socket::peer_addr(socket)
    }

    fn poll(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()> {
        let before = completions.len();
        self.finish_cancels(completions);
        self.finish_closes(completions);
        self.files.take(&mut self.counters, completions);
        let something_done = completions.len() > before;
        let something_awaited = self.start_sends(completions);
        let timeout = self.timeout(wait, something_done || something_awaited);
        self.counters.enters += 1;
        match self.wait(timeout) {
            Ok(()) => self.take_events(completions),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        self.files.take(&mut self.counters, completions);
        self.accept_all(completions);
        self.read_all(completions);
        if !self.events.is_empty() {
            self.spin.found();
        }
        Ok(())
    }

    fn file(&mut self, op: FileOp) {
        self.files.submit(op);
    }

    fn bytes(&self, buf: &RecvBuf) -> &[u8] {
        self.pool.bytes(buf)
    }

    fn release(&mut self, buf: RecvBuf) {
        self.pool.release(buf);
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn wake(&mut self, target: &Waker) {
        self.counters.wakes_sent += 1;
        target.wake();
    }

    fn set_quick_ack(&mut self, conn: ConnId, on: bool) {
        if let Some(Conn { socket: Some(fd), .. }) = self.conns.get(conn) {
            socket::set_quick_ack(fd, on);
        }
    }

    fn input_age(&self, conn: ConnId) -> Duration {
        match self.conns.get(conn) {
            Some(Conn { socket: Some(fd), .. }) => socket::input_age(fd),
            _ => Duration::ZERO,
        }
    }

    fn counters(&self) -> IoCounters {
        self.counters
    }
}

impl Listener {
    const fn rests(&self) -> bool {
        self.resting_until.is_some()
    }
}

const fn mio_token(token: Token) -> mio::Token {
    const { assert!(usize::BITS == 64, "a token is one word") };
    mio::Token(token.word() as usize)
}

/// One call: from the offset on, as much as fits.
fn send_some(fd: &OwnedFd, sending: &Sending) -> Result<usize, Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if sending.buf.is_contiguous() {
        return rustix::net::send(fd, &sending.buf.contiguous()[sending.offset..], flags);
    }
    let mut pieces = [IoSlice::new(&[]); SEND_PIECES];
    let mut count = 0;
    for (piece, slice) in pieces.iter_mut().zip(sending.buf.slices_from(sending.offset)) {
        *piece = IoSlice::new(slice);
        count += 1;
    }
    rustix::net::sendmsg(fd, &pieces[..count], &mut SendAncillaryBuffer::default(), flags)
}

fn accept_some(
    id: ListenerId,
    listener: &mut Listener,
    reserve: &mut Reserve,
    counters: &mut IoCounters,
    completions: &mut Vec<Completion>,
) {
    for _ in 0..ACCEPTS_PER_TICK {
        let error = match rustix::net::accept_with(&listener.socket, SocketFlags::CLOEXEC) {
            Ok(socket) if !reserve.admits(&socket) => {
                counters.emfile += 1;
                continue;
            }
            Ok(socket) => {
                counters.accepted += 1;
                completions.push(Completion::Accepted { listener: id, socket });
                continue;
            }
            Err(Errno::AGAIN) => {
                listener.ready = false;
                return;
            }
            Err(error) => io::Error::from(error),
        };
        counters.accept_failed += 1;
        match socket::accept_trouble(&error) {
            AcceptTrouble::Next => continue,
            AcceptTrouble::NoDescriptors => {
                let turned = reserve.turn_away(&listener.socket);
                counters.emfile += turned.count as u64;
                listener.ready = !turned.drained;
                if turned.rest {
                    listener.resting_until = Some(clock::now() + ACCEPT_PAUSE);
                }
            }
            AcceptTrouble::Rest => listener.resting_until = Some(clock::now() + ACCEPT_PAUSE),
        }
        completions.push(Completion::AcceptFailed { listener: id, error });
        return;
    }
}
