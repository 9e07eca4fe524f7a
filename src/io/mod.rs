//! The kernel: sockets, submissions, completions.
//!
//! One trait, [`Backend`], shaped like completions: a shard asks for things (receive on this
//! connection, send these bytes), enters the kernel in [`Backend::poll`], once per tick, and gets
//! what has happened as a list of [`Completion`]s. `uring` does it with one `io_uring` per shard;
//! `epoll` keeps the same contract over readiness; the simulation has its own. Everything above
//! this folder is the same for all of them, and `tests.rs` holds them to the contract.
//!
//! # The contract
//!
//! *Connections.* [`Backend::add_socket`] gives a socket to the backend under a [`ConnId`] of the
//! caller's choice. Slots are dense (a table is indexed by them); a slot is used again only after
//! [`Completion::Closed`] or a successful [`Backend::detach`], with another generation. Verbs for a
//! connection that the backend does not know (never added, closing, detached) do nothing.
//!
//! *Receiving.* At most one receive is in flight per connection; asking for a second is a mistake
//! and panics. [`RecvMode::Once`] is followed by exactly one completion: `Received` or `RecvEnded`.
//! [`RecvMode::Multi`] is followed by any number of `Received` and then exactly one `RecvEnded`: at
//! the end of the input, on an error, or after [`Backend::cancel_recv`]. All received bytes are
//! delivered, in order, before the `RecvEnded`. Until it is asked again nothing is read, so the
//! peer is held back by TCP. A multishot receive that the kernel ends for reasons of its own (no
//! buffer, full completion queue) is begun again inside.
//!
//! *Buffers.* Received bytes lie in a buffer of the shard's pool. Its [`RecvBuf`] must be given
//! back with [`Backend::release`]; while all are out, nobody is read. So handle or copy the bytes
//! within the tick, and never keep a buffer for a connection that is paused. A `RecvBuf` that is
//! dropped is lost to the pool.
//!
//! *Sending.* One send in flight per connection (a second panics): two would interleave. It covers
//! the whole [`OutBuf`]; short sends go on inside. `Sent` returns the buffer, for reuse. The backend
//! owns the bytes until then. A send that [nobody awaits](SendEnd::Unawaited) and that goes out at
//! once does not end the wait: its `Sent` comes with whatever ends it. So a message that is alone on
//! the wire costs one turn of the loop and not two.
//!
//! *Closing.* [`Backend::close`] ends whatever is in flight and sends FIN behind what was sent. Of
//! that connection only `Closed` comes after the next poll begins: a receive or send that was in
//! flight ends silently, its buffers are freed inside. Completions handed out before the call may
//! still stand in the caller's list; their buffers remain the caller's to release.
//!
//! *Moving.* A connection is quiet when neither receive nor send is in flight. Then
//! [`Backend::detach`] takes its socket out, and another shard's backend may add it: nothing that
//! the peer has sent is lost between the two.
//!
//! *Files.* [`Backend::file`] asks for one operation on a file; [`Completion::File`] says that it is
//! over, and returns it with its buffer. Up to [`FILE_OPS_MAX`](limits::FILE_OPS_MAX) may be under
//! way; beyond, one fails with EAGAIN. Nothing is promised about the order of operations that are
//! under way at the same time: who needs one waits for the completion. Writes are not cut short:
//! one is whole, or failed, and then nobody knows what of it stands in the file, nor whether what
//! was written before and not synced is still there. With `sync` a write is on disk when it is over
//! (`RWF_DSYNC`); [`FileOp::Sync`] makes all earlier writes last, [`FileOp::SyncDir`] names. Files
//! may be opened for direct access (`O_DIRECT`), and are without where that is refused. A ring does reads
//! and writes itself; everything else that may wait is done by two threads of the backend, which
//! begin with their first operation: one for what is prepared or put away, one for the rest. Files stay open until they are closed, removed, or the backend
//! is dropped; that waits for what is under way.
//!
//! *Waiting.* [`Backend::poll`] is the only verb that waits. Submissions, deferred ends and wake-ups
//! happen in it. `Wait::Forever` with nothing to do costs no wake-up at all.
//!
//! *Threads.* A backend is made, used and dropped on one thread (a ring with deferred task work
//! belongs to the thread that made it). Only [`Waker`]s travel.
#![deny(unsafe_code)]

pub mod epoll;
#[cfg(debug_assertions)]
pub mod fault;
pub mod file;
mod files;
mod pool;
pub mod probe;
pub mod socket;
mod spin;
mod table;
pub mod tap;
#[cfg(test)]
mod tests;
mod token;
pub mod uring;
pub mod waker;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use crate::buf::OutBuf;
use crate::clock::Time;
use crate::ids::ConnId;
use crate::limits;

pub use epoll::Epoll;
pub use file::{FileDone, FileId, FileOp};
pub use uring::Uring;
pub use waker::Waker;

/// The kernel, seen from one shard. The module's header is the contract.
pub trait Backend {
    /// A connected socket on its way into a backend or from one to another: [`OwnedFd`], but for
    /// the simulation. Dropping it closes it.
    type Socket: Send + fmt::Debug;

    /// What is accepted from: [`TcpListener`], but for the simulation.
    type Listener: fmt::Debug;

    /// `uring`, `epoll` or `sim`.
    fn name(&self) -> &'static str;

    /// What of the kernel's optional features is in use, for the banner.
    fn features(&self) -> String;

    /// Accepts continuously from `listener` until [`Backend::remove_listener`]; connections come as
    /// [`Completion::Accepted`].
    ///
    /// # Errors
    /// When the kernel refuses to watch it.
    fn add_listener(&mut self, listener: Self::Listener) -> io::Result<ListenerId>;

    /// Stops accepting and closes the listener. Connections that the kernel had already accepted
    /// are closed.
    fn remove_listener(&mut self, id: ListenerId);

    /// Registers a connected socket under `conn`. Nothing is received until it is asked for.
    ///
    /// # Errors
    /// When the kernel refuses to watch it; the socket is closed.
    fn add_socket(&mut self, conn: ConnId, socket: Self::Socket) -> io::Result<()>;

    /// Asks for input.
    ///
    /// # Panics
    /// If a receive is in flight on `conn`.
    fn recv(&mut self, conn: ConnId, mode: RecvMode);

    /// Ends the receive in flight: its last completion follows, as [`RecvMode`] says, and may still
    /// bring data. Nothing happens when none is in flight.
    fn cancel_recv(&mut self, conn: ConnId);

    /// Sends all of `buf`. [`Completion::Sent`] gives it back, at once or later, as `end` says.
    ///
    /// # Panics
    /// If a send is in flight on `conn`.
    fn send(&mut self, conn: ConnId, buf: OutBuf, end: SendEnd);

    /// Sends FIN behind all that was sent, the send in flight included. Receiving goes on.
    fn shutdown_write(&mut self, conn: ConnId);

    /// Ends everything and closes. [`Completion::Closed`] follows, and then the slot is free.
    fn close(&mut self, conn: ConnId);

    /// Takes the socket back, to hand it over: `None` unless the connection is quiet. The slot is
    /// free at once.
    fn detach(&mut self, conn: ConnId) -> Option<Self::Socket>;

    /// Who is at the other end, where that can be told.
    fn peer_addr(&self, socket: &Self::Socket) -> Option<SocketAddr>;

    /// Enters the kernel: submits everything, waits as `wait` says for something to happen, appends
    /// all that did, up to the bounds of a tick. One entry, but for a ring that has more to say than
    /// the kernel tells at once. It may return early with nothing (woken, interrupted by a signal).
    ///
    /// # Errors
    /// When the kernel refuses the entry itself; the shard cannot go on.
    fn poll(
        &mut self,
        wait: Wait,
        completions: &mut Vec<Completion<Self::Socket>>,
    ) -> io::Result<()>;

    /// Asks for an operation on a file.
    fn file(&mut self, op: FileOp);

    /// The bytes of `buf`; never none.
    fn bytes(&self, buf: &RecvBuf) -> &[u8];

    /// Gives a buffer back.
    fn release(&mut self, buf: RecvBuf);

    /// What ends this backend's wait, from any thread.
    fn waker(&self) -> Waker;

    /// Wakes another shard: the cheapest way for this pair, at the latest in the next poll.
    fn wake(&mut self, target: &Waker);

    /// Sets `TCP_QUICKACK`; off lets acknowledgements ride on our data. When to do it is the
    /// shard's business.
    fn set_quick_ack(&mut self, conn: ConnId, on: bool);

    /// How long ago at least the last input of this connection reached the machine, read or not:
    /// a shard that was busy reads late. Zero when nobody knows.
    fn input_age(&self, conn: ConnId) -> Duration;

    /// What it has counted since it was made.
    fn counters(&self) -> IoCounters;
}

/// A backend over this machine's sockets.
pub trait Kernel: Backend<Socket = OwnedFd, Listener = TcpListener> {}

impl<B: Backend<Socket = OwnedFd, Listener = TcpListener>> Kernel for B {}

/// A listener of one backend. Never used again within that backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub u16);

/// How much to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvMode {
    /// One buffer of data, or the end. Exactly one completion follows, cancelled or not.
    Once,
    /// Data until the end, an error, or [`Backend::cancel_recv`]; then one `RecvEnded`.
    Multi,
}

/// Whether the end of a send is a reason to stop waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendEnd {
    /// Something follows it: the poll returns with it.
    Awaited,
    /// Nothing does. If the kernel takes all of it at once, the poll that hands it over may go on
    /// waiting, and returns it with whatever happens next.
    Unawaited,
}

/// How long [`Backend::poll`] may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    None,
    /// Until this time (`epoll` rounds up to a millisecond).
    Until(Time),
    /// Until something happens.
    Forever,
}

/// Something has happened.
#[derive(Debug)]
pub enum Completion<S = OwnedFd> {
    /// A peer has connected.
    Accepted {
        /// To where.
        listener: ListenerId,
        /// Its socket, not yet known to the backend.
        socket: S,
    },
    /// The kernel could not accept; the backend goes on by itself. Without descriptors
    /// (`EMFILE`) the waiting peers have been turned away.
    AcceptFailed {
        /// Where.
        listener: ListenerId,
        /// Why.
        error: io::Error,
    },
    /// Bytes have arrived.
    Received {
        /// From whom.
        conn: ConnId,
        /// Where they lie; to be released.
        buf: RecvBuf,
    },
    /// The receive is over.
    RecvEnded {
        /// Whose.
        conn: ConnId,
        /// Why.
        reason: RecvEnd,
    },
    /// The send is over.
    Sent {
        /// Whose.
        conn: ConnId,
        /// The buffer, as it was given.
        buf: OutBuf,
        /// Whether all of it was sent; on an error nobody knows how much.
        result: io::Result<()>,
    },
    /// The connection is gone and its slot is free.
    Closed {
        /// Which.
        conn: ConnId,
    },
    /// An operation on a file is over.
    File(Box<FileDone>),
}

/// Why a receive has ended.
#[derive(Debug)]
pub enum RecvEnd {
    /// The peer has sent FIN; all it sent was delivered before.
    Eof,
    /// [`Backend::cancel_recv`] was called.
    Cancelled,
    /// The connection is broken.
    Error(io::Error),
}

/// A received buffer, owned by who holds this. Not `Clone`: one release per buffer.
#[derive(Debug)]
#[must_use = "an unreleased buffer is lost to the pool"]
pub struct RecvBuf {
    index: u32,
    len: u32,
}

impl RecvBuf {
    /// The first `len` bytes of buffer `index`. For backends.
    pub const fn new(index: u32, len: u32) -> Self {
        Self { index, len }
    }

    /// Which buffer of the pool. For backends.
    pub const fn index(&self) -> usize {
        self.index as usize
    }

    /// How many bytes.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub const fn len(&self) -> usize {
        self.len as usize
    }
}

/// A pool of receive buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSize {
    /// Buffers.
    pub count: usize,
    /// Bytes of each.
    pub bytes: usize,
}

/// What a backend is made with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Submission queue entries of a ring; a power of two.
    pub ring_entries: u32,
    /// Provided buffers of a ring; the count is a power of two, at most 32,768.
    pub uring_pool: PoolSize,
    /// Buffers of the epoll backend, allocated when first used.
    pub epoll_pool: PoolSize,
    /// How long to look for something before sleeping, while things come that soon; zero for never.
    pub spin: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ring_entries: limits::RING_ENTRIES,
            uring_pool: PoolSize { count: limits::RECV_BUFFERS, bytes: limits::RECV_BUFFER_BYTES },
            epoll_pool: PoolSize {
                count: limits::EPOLL_BUFFERS,
                bytes: limits::EPOLL_BUFFER_BYTES,
            },
            spin: Duration::ZERO,
        }
    }
}

/// What a backend counts. Plain integers; each only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IoCounters {
    /// Times the kernel was entered to submit or wait (`io_uring_enter`, `epoll_wait`).
    pub enters: u64,
    /// Of those, the ones in the middle of a tick because the submission queue was full.
    pub extra_submits: u64,
    /// Of those, the ones that only fetched more: recent kernels run deferred work by twenties.
    pub extra_drains: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Failures to accept, of any kind.
    pub accept_failed: u64,
    /// Connections turned away for want of descriptors.
    pub emfile: u64,
    /// Buffers received.
    pub received: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Sends completed.
    pub sent: u64,
    /// Bytes of those.
    pub sent_bytes: u64,
    /// Sends that the kernel took in part and that were resumed.
    pub short_sends: u64,
    /// Times a connection had to wait for a receive buffer.
    pub enobufs: u64,
    /// Multishot operations begun again after the kernel ended them.
    pub rearmed: u64,
    /// Polls that found the completion queue overflown.
    pub overflow: u64,
    /// Completions of earlier uses of a slot, ignored.
    pub stale: u64,
    /// Wake-ups sent to other shards.
    pub wakes_sent: u64,
    /// Messages to other rings that failed, made up for by their eventfd.
    pub messages_failed: u64,
    /// Wake-ups received.
    pub wakes_received: u64,
    /// Operations on files that are over.
    pub file_ops: u64,
    /// Of those, the ones that failed.
    pub file_errors: u64,
}

/// Which backend to use: `--io`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// `io_uring` where all that it needs is there, else epoll, saying why.
    #[default]
    Auto,
    /// `io_uring` or nothing.
    Uring,
    /// epoll.
    Epoll,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        })
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "auto" => Ok(Self::Auto),
            "uring" | "io_uring" => Ok(Self::Uring),
            "epoll" => Ok(Self::Epoll),
            _ => Err(format!("unknown I/O backend {s:?}: auto, uring or epoll")),
        }
    }
}
