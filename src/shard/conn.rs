//! One network connection as the event loop sees it: what of it is in the kernel's hands, what was
//! read and not yet handled, and how far its closing has come.
//!
//! Invariants: bytes that were read keep their order (`input` before anything newer), and survive
//! a pause and the peer's end; a connection is *quiet* when neither a receive nor a send is in
//! flight, and only a quiet one may move to another shard (SHARDS.md H1).
#![forbid(unsafe_code)]

use crate::broker::Accepted;
use crate::buf::OutBuf;
use crate::clock::Time;
use crate::codec::mqtt::Version;
use crate::ids::ConnId;
use crate::limits::{SPARE_INPUT_BYTES, SPARE_INPUTS};
use crate::transport::Transport;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// No CONNECT yet; nothing of it was interpreted.
    Opening,
    /// The broker has its CONNECT.
    Live,
    /// The broker is done with it: what waits is sent, then our end is shut.
    Flushing,
    /// Our end is shut; the peer's last bytes are read and thrown away.
    Lingering,
    /// Closed; the slot waits for the backend to say that nothing is in flight any more.
    Closed,
}

/// Whether a receive is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    /// None is.
    Idle,
    /// One is.
    Armed,
    /// One is, and was asked to end.
    Cancelling,
}

/// A connection. What the broker knows of it (session, outbox, keep alive) lives in the broker
/// under the same [`ConnId`](crate::ids::ConnId).
#[derive(Debug)]
pub(super) struct Conn {
    pub stage: Stage,
    pub receiving: Receiving,
    /// Bytes of the send that is in flight; none is when zero.
    pub sending: usize,
    /// The broker takes no more packets until it names the connection in `Outputs::resume`.
    pub paused: bool,
    /// The CONNECT in `input` waits: for an older connection of its session, for room among the
    /// open moves, or for the broker to take it.
    pub waiting: bool,
    /// A send failed: nothing more is sent.
    pub broken: bool,
    /// The protocol version, once CONNECT was read.
    pub version: Option<Version>,
    /// Input has ended; what is in `input` is still handled.
    pub ended: Option<Ended>,
    /// Largest frame that it may send now, in bytes.
    pub frame_max: u32,
    /// Read and not yet handled.
    pub input: Input,
    /// Bytes of `input` that were handled, ever.
    pub handled: u64,
    /// What is left of the outbox when the broker is done with the connection.
    pub last: Option<Box<OutBuf>>,
    pub transport: Transport,
    /// Until the broker has it.
    pub opening: Option<Box<Opening>>,
    /// Reads since `reads_since`, for the delayed-ACK policy.
    pub reads: u16,
    pub reads_since: Time,
}

/// What is known of a connection before the broker has its CONNECT.
#[derive(Debug)]
pub(super) struct Opening {
    pub accepted: Accepted,
    /// Its CONNECT has come, and `accepted` says when.
    pub stamped: bool,
    /// The older connection of its session that its CONNECT waits for, and what that has to have
    /// handled: all that was read of it when the CONNECT came, and nothing that came later.
    pub waits_for: Option<(ConnId, u64)>,
}

/// How input ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The peer shut its end.
    Eof,
    /// The connection broke.
    Error,
}

impl Conn {
    pub(super) fn new(accepted: Accepted, transport: Transport, frame_max: usize) -> Self {
        Self {
            stage: Stage::Opening,
            receiving: Receiving::Idle,
            sending: 0,
            paused: false,
            waiting: false,
            broken: false,
            version: None,
            ended: None,
            frame_max: u32::try_from(frame_max).unwrap_or(u32::MAX),
            input: Input::default(),
            handled: 0,
            last: None,
            transport,
            reads: 0,
            reads_since: accepted.at,
            opening: Some(Box::new(Opening { accepted, stamped: false, waits_for: None })),
        }
    }

    /// Whether nothing of it is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        self.receiving == Receiving::Idle && self.sending == 0
    }

    /// What the broker is told of it when it begins there.
    pub(super) fn accepted(&self) -> Accepted {
        self.opening.as_ref().expect("invariant: the broker is told once").accepted
    }

    /// The older connection that its CONNECT waits for.
    pub(super) fn waits_for(&self) -> Option<(ConnId, u64)> {
        self.opening.as_ref().and_then(|opening| opening.waits_for)
    }

    /// Whether its CONNECT has not come yet. One that has, and waits for us, is in time.
    pub(super) fn is_awaited(&self) -> bool {
        self.stage == Stage::Opening && !self.waiting
    }

    /// Whether some of the input up to `target` is still to be handled, and cannot be now.
    pub(super) fn holds_back(&self, target: u64) -> bool {
        self.stage == Stage::Live && self.paused && !self.input.is_empty() && self.handled < target
    }

    /// Whether input may be handed to the broker now.
    pub(super) fn may_parse(&self) -> bool {
        self.stage == Stage::Live && !self.paused
    }
}

/// Memory for starts of frames: which connection has one changes with every buffer.
#[derive(Debug, Default)]
#[expect(clippy::vec_box, reason = "what is handed on is the box")]
pub(super) struct Spares(Vec<Box<Held>>);

/// Bytes that were read and not yet handled: the start of a frame that the end of a buffer cut, or
/// everything that came during a pause. Most connections have none, and then no memory for it.
#[derive(Debug, Default)]
pub(super) struct Input(Option<Box<Held>>);

#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    /// Handled up to here.
    at: usize,
}

impl Input {
    /// A new one that holds `bytes`.
    pub(super) fn from_vec(bytes: Vec<u8>) -> Self {
        Self(Some(Box::new(Held { bytes, at: 0 })))
    }

    /// What waits.
    pub(super) fn unread(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |held| &held.bytes[held.at..])
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.unread().len()
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.unread().is_empty()
    }

    /// Appends; `expect` is the length of the frame that the bytes begin, when it is known, so
    /// that a large frame gets a buffer of exactly its size.
    pub(super) fn append(&mut self, bytes: &[u8], expect: usize) {
        let held = self.0.get_or_insert_default();
        if held.at > 0 {
            held.bytes.drain(..held.at);
            held.at = 0;
        }
        if expect > held.bytes.capacity() {
            held.bytes.reserve_exact(expect - held.bytes.len());
        }
        held.bytes.extend_from_slice(bytes);
    }

    /// The first `count` waiting bytes are handled. With the last of them goes the memory: a
    /// connection that once sent a large packet does not keep its buffer.
    pub(super) fn consume(&mut self, count: usize) {
        assert!(count <= self.len(), "invariant: only what waits is consumed");
        if let Some(held) = &mut self.0 {
            held.at += count;
        }
        self.0.take_if(|held| held.at == held.bytes.len());
    }

    /// All waiting bytes, out of it; put them back with [`Input::restore`].
    pub(super) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Puts back what was taken, minus the `consumed` first bytes. Nothing came in between.
    pub(super) fn restore(&mut self, mut taken: Self, consumed: usize) {
        assert!(self.is_empty(), "invariant: nothing was read while its input was being handled");
        taken.consume(consumed);
        *self = taken;
    }

    /// A start of a frame comes next: with memory that another has left, if that suffices.
    pub(super) fn lend(&mut self, expect: usize, spares: &mut Spares) {
        if self.0.is_none() && expect <= SPARE_INPUT_BYTES {
            self.0 = spares.0.pop();
        }
    }

    /// All of it was handled, and its memory may serve others.
    pub(super) fn give_up(self, spares: &mut Spares) {
        if let Some(mut held) = self.0
            && held.bytes.capacity() <= SPARE_INPUT_BYTES
            && spares.0.len() < SPARE_INPUTS
        {
            held.bytes.clear();
            held.at = 0;
            spares.0.push(held);
        }
    }

    /// The waiting bytes as one vector.
    pub(super) fn into_vec(self) -> Vec<u8> {
        self.0.map_or_else(Vec::new, |mut held| {
            held.bytes.drain(..held.at);
            held.bytes
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A connection that was just accepted.
    pub(in crate::shard) fn some_conn() -> Conn {
        Conn::new(Accepted { at: Time::ZERO, listener: 0, peer: None }, Transport::Tcp, 1024)
    }

    #[test]
    fn input_keeps_order_and_gives_memory_back() {
        let mut input = Input::default();
        input.append(b"abc", 0);
        input.consume(2);
        input.append(b"de", 4096);
        assert_eq!(input.unread(), b"cde");
        assert!(input.0.as_ref().is_some_and(|held| held.bytes.capacity() >= 4096));
        let taken = input.take();
        assert!(input.is_empty());
        input.restore(taken, 1);
        assert_eq!(input.unread(), b"de");
        input.consume(2);
        assert!(input.is_empty());
        assert!(input.0.is_none());
    }
}
