//! Faults on the real thing: a backend around another one that makes the kernel look as bad as it
//! may be, by a seed.
//!
//! [`Fault`] keeps the contract of [`Backend`](super) and uses all the room that it leaves: input
//! in pieces down to a byte, sends in several, completions that come late and in another order
//! between connections, polls that return with nothing. With those a broker has to behave as ever.
//! With the others it may lose connections, and nothing else: reads and sends that fail, peers
//! turned away for want of descriptors, sockets that cannot be registered, files that fail, before
//! the operation or behind it.
//!
//! It exists in builds with debug assertions only: the black-box tests' broker, never a release. The
//! variable [`VARIABLE`] turns it on.
//!
//! Invariants: completions of one connection keep their order; one that is closed says nothing more
//! but `Closed`; a receive or send that has failed has failed for good, in both directions.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use foldhash::fast::FixedState;
use rustix::io::Errno;

use super::file::{FileDone, FileOp};
use super::{
    Backend, Completion, IoCounters, ListenerId, PoolSize, RecvBuf, RecvEnd, RecvMode, SendEnd,
    Settings, Wait, Waker,
};
use crate::buf::OutBuf;
use crate::clock::{self, Time};
use crate::ids::ConnId;

/// What turns it on: a [`Plan`] as text.
pub const VARIABLE: &str = "NOCTULE_TEST_FAULTS";

/// Buffers of our own have numbers from here on.
const OWN_BUFFERS: u32 = 1 << 31;
/// How long a completion is held, at most; now and then ten times that.
const DELAY_MAX: Duration = Duration::from_millis(3);
/// A connection that breaks does so within 2^4 bytes, or 2^5, and so on: so many powers of two.
const FATE_BITS: usize = 12;
/// Pieces of one buffer, and the rest.
const PIECES_MAX: usize = 64;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $harmless:literal, $per_mille:literal;)*) => {
        /// One kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Kind { $($(#[$doc])* $name,)* }

        /// Name, whether a broker has to behave as without it, and how often it strikes, at most.
        const KINDS: &[(&str, bool, u32)] = &[$(($text, $harmless, $per_mille),)*];
    };
}

kinds! {
    /// Input comes in pieces.
    ShortReads = "short-reads", true, 1000;
    /// Output goes in pieces.
    ShortSends = "short-sends", true, 300;
    /// Something that has happened is told later.
    Delays = "delays", true, 300;
    /// A poll that waits for nothing.
    Spurious = "spurious", true, 300;
    /// An operation on a file takes its time.
    SlowFiles = "slow-files", true, 500;
    /// A connection breaks, and its receive says so.
    RecvErrors = "recv-errors", false, 700;
    /// A connection breaks, and its send says so.
    SendErrors = "send-errors", false, 700;
    /// A peer is turned away.
    AcceptErrors = "accept-errors", false, 150;
    /// A socket that cannot be registered.
    RegisterErrors = "register-errors", false, 50;
    /// An operation on a file fails, and nothing of it is done.
    FileErrors = "file-errors", false, 60;
    /// One fails, and is done all the same.
    FileLies = "file-lies", false, 60;
}

const KIND_COUNT: usize = KINDS.len();

/// Which faults, by which seed. As text: the seed, and behind a colon `quiet` (those under which a
/// broker has to behave as without any) or names with commas between; without it, all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    seed: u64,
    on: [bool; KIND_COUNT],
}

impl Plan {
    /// What the environment asks for.
    ///
    /// # Panics
    /// When it says something that means nothing: a test would not test.
    pub fn from_env() -> Option<Self> {
        let text = std::env::var(VARIABLE).ok()?;
        Some(text.parse().unwrap_or_else(|error| panic!("{VARIABLE}={text}: {error}")))
    }

    /// For one of several backends.
    #[must_use]
    pub fn of_shard(&self, shard: usize) -> Self {
        Self { seed: self.seed ^ (shard as u64 + 1).wrapping_mul(0x9E37_79B9), ..self.clone() }
    }

    /// Receive buffers that are as small as the faults want them: so input that is read once is
    /// short, too.
    #[must_use]
    pub fn settings(&self, settings: &Settings) -> Settings {
        if !self.on[Kind::ShortReads as usize] {
            return settings.clone();
        }
        let mut random = Random(self.seed ^ 0x5eed);
        // Before CONNECT each read is a turn: with fewer, the largest one would not come in its time.
        let bytes = random.pick(&[16, 61, 250, 1024, 4096]);
        let size = |pool: PoolSize| PoolSize { bytes: pool.bytes.min(bytes), ..pool };
        Settings {
            uring_pool: size(settings.uring_pool),
            epoll_pool: size(settings.epoll_pool),
            ..settings.clone()
        }
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (seed, kinds) = text.split_once(':').unwrap_or((text, "all"));
        let seed = seed.parse().map_err(|_| format!("{seed} is no seed"))?;
        let mut on = [false; KIND_COUNT];
        for word in kinds.split(',') {
            let before = on;
            for (on, (name, is_harmless, _)) in on.iter_mut().zip(KINDS) {
                *on |= word == *name || word == "all" || word == "quiet" && *is_harmless;
            }
            if on == before {
                return Err(format!("no fault is called {word}"));
            }
        }
        Ok(Self { seed, on })
    }
}

/// Numbers from a seed (`SplitMix64`).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// What has happened on a connection and is not told yet.
#[derive(Debug)]
enum Event {
    Received(RecvBuf),
    RecvEnded(RecvEnd),
    Sent(OutBuf, io::Result<()>),
    Closed,
}

/// What of a connection is held back or made up.
#[derive(Debug, Default)]
struct Conn {
    held: VecDeque<Event>,
    /// Nothing of it is told before.
    held_until: Time,
    is_listed: bool,
    /// The receive in flight, as the shard sees it.
    receiving: Option<RecvMode>,
    /// Whether one is in flight below.
    is_receiving_below: bool,
    /// A send that goes in pieces.
    sending: Option<Sending>,
    /// FIN follows the send.
    fin_wanted: bool,
    /// Broken: of what happens below nothing is told any more.
    is_dead: bool,
    is_closing: bool,
    /// Bytes until it breaks, received and sent; none if it does not.
    fates: [Option<usize>; 2],
}

impl Conn {
    /// So many bytes more, in one direction; whether it breaks now.
    fn breaks(&mut self, direction: usize, bytes: usize) -> bool {
        let Some(left) = &mut self.fates[direction] else { return false };
        let breaks = *left < bytes && !self.is_dead;
        *left = left.saturating_sub(bytes);
        breaks
    }
}

#[derive(Debug)]
struct Sending {
    /// The shard's.
    buf: OutBuf,
    bytes: Vec<u8>,
    at: usize,
}

impl Sending {
    /// The next piece, of any length or all that is left.
    fn next(&mut self, random: &mut Random, is_last: bool) -> OutBuf {
        let left = self.bytes.len() - self.at;
        let count = if is_last || left <= 1 { left } else { 1 + random.below(left) };
        let mut piece = OutBuf::new();
        piece.extend_from_slice(&self.bytes[self.at..self.at + count]);
        self.at += count;
        piece
    }
}

/// A backend with faults. See the [module](self).
#[derive(Debug)]
pub struct Fault<B: Backend> {
    inner: B,
    chance: Chance,
    conns: HashMap<ConnId, Conn, FixedState>,
    /// Connections of which something is held.
    listed: Vec<ConnId>,
    /// What belongs to no connection, with its time.
    others: Vec<(Time, Completion<B::Socket>)>,
    /// Received bytes, copied out of the other's buffers.
    own: Vec<Option<Vec<u8>>>,
    free: Vec<u32>,
    fresh: Vec<Completion<B::Socket>>,
}

/// What strikes, and when.
#[derive(Debug)]
struct Chance {
    random: Random,
    /// Times in a thousand, of this seed.
    weights: [u32; KIND_COUNT],
    has_struck: [bool; KIND_COUNT],
}

impl Chance {
    fn new(plan: &Plan) -> Self {
        let mut random = Random(plan.seed);
        let mut weights = [0; KIND_COUNT];
        for ((weight, on), (_, is_harmless, most)) in weights.iter_mut().zip(plan.on).zip(KINDS) {
            let parts = if *is_harmless { [1, 3, 10] } else { [1, 1, 2] };
            let chosen = most / random.pick(&parts);
            *weight = if on { chosen.max(1) } else { 0 };
        }
        Self { random, weights, has_struck: [false; KIND_COUNT] }
    }

    fn is_chosen(&mut self, kind: Kind) -> bool {
        let weight = self.weights[kind as usize];
        weight > 0 && self.random.below(1000) < weight as usize
    }

    fn strikes(&mut self, kind: Kind) -> bool {
        let strikes = self.is_chosen(kind);
        if strikes {
            self.note(kind);
        }
        strikes
    }

    /// A test wants to know that it has tested.
    fn note(&mut self, kind: Kind) {
        if !std::mem::replace(&mut self.has_struck[kind as usize], true) {
            tracing::info!(fault = KINDS[kind as usize].0, "the first of its kind");
        }
    }

    /// After how many bytes in one direction a connection breaks, if it does: most do early.
    fn fate(&mut self, kind: Kind) -> Option<usize> {
        let longest = 1 << (4 + self.random.below(FATE_BITS));
        self.is_chosen(kind).then(|| self.random.below(longest))
    }

    /// When something that has happened now is told.
    fn time_to_tell(&mut self, kind: Kind) -> Time {
        if !self.strikes(kind) {
            return Time::ZERO;
        }
        let longest = DELAY_MAX * if self.random.below(50) == 0 { 10 } else { 1 };
        clock::now() + longest / 64 * (1 + self.random.below(64)) as u32
    }

    /// Where a buffer of this length is cut.
    fn cuts(&mut self, len: usize) -> Vec<usize> {
        let mut cuts = Vec::new();
        if self.strikes(Kind::ShortReads) {
            let longest = self.random.pick(&[1, 2, 5, 50, 1000]);
            let mut at = 0;
            while cuts.len() < PIECES_MAX && at < len {
                at += 1 + self.random.below(longest);
                cuts.push(at.min(len));
            }
        }
        if cuts.last() != Some(&len) {
            cuts.push(len);
        }
        cuts
    }
}

impl<B: Backend> Fault<B> {
    /// Around a backend, that of one shard.
    pub fn new(inner: B, plan: &Plan) -> Self {
        Self {
            inner,
            chance: Chance::new(plan),
            conns: HashMap::with_hasher(FixedState::with_seed(0)),
            listed: Vec::new(),
            others: Vec::new(),
            own: Vec::new(),
            free: Vec::new(),
            fresh: Vec::new(),
        }
    }

    fn open_mut(&mut self, conn: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(&conn).filter(|state| !state.is_closing)
    }

    fn keep(&mut self, bytes: &[u8]) -> RecvBuf {
        let index = self.free.pop().unwrap_or_else(|| {
            self.own.push(None);
            self.own.len() as u32 - 1
        });
        self.own[index as usize] = Some(bytes.to_vec());
        RecvBuf::new(OWN_BUFFERS + index, bytes.len() as u32)
    }

    /// Will be told, in its turn.
    fn tell(&mut self, conn: ConnId, event: Event) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        state.held_until = state.held_until.max(self.chance.time_to_tell(Kind::Delays));
        state.held.push_back(event);
        if !std::mem::replace(&mut state.is_listed, true) {
            self.listed.push(conn);
        }
    }

    /// Breaks it: from now on there is no input, and sends fail.
    fn kill(&mut self, conn: ConnId) {
        let Some(state) = self.open_mut(conn) else { return };
        state.is_dead = true;
        if std::mem::take(&mut state.is_receiving_below) {
            self.inner.cancel_recv(conn);
            self.tell(conn, Event::RecvEnded(RecvEnd::Error(Errno::CONNRESET.into())));
        }
    }

    fn take_in(&mut self, completion: Completion<B::Socket>) {
        match completion {
            Completion::Received { conn, buf } => {
                self.on_received(conn, &buf);
                self.inner.release(buf);
            }
            Completion::RecvEnded { conn, reason } => {
                if let Some(state) = self.open_mut(conn)
                    && std::mem::take(&mut state.is_receiving_below)
                {
                    self.tell(conn, Event::RecvEnded(reason));
                }
            }
            Completion::Sent { conn, buf, result } => self.on_sent(conn, buf, result),
            Completion::Closed { conn } => self.tell(conn, Event::Closed),
            Completion::Accepted { listener, socket } => {
                let mut completion = Completion::Accepted { listener, socket };
                if self.chance.strikes(Kind::AcceptErrors) {
                    let errors = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::CONNABORTED];
                    let error = self.chance.random.pick(&errors).into();
                    completion = Completion::AcceptFailed { listener, error };
                }
                let at = self.chance.time_to_tell(Kind::Delays);
                self.others.push((at, completion));
            }
            Completion::File(mut done) => {
                if done.result.is_ok() && self.chance.strikes(Kind::FileLies) {
                    done.result = Err(Errno::IO.into());
                }
                let at = self.chance.time_to_tell(Kind::SlowFiles);
                self.others.push((at, Completion::File(done)));
            }
            failed @ Completion::AcceptFailed { .. } => self.others.push((Time::ZERO, failed)),
        }
    }

    fn on_received(&mut self, conn: ConnId, buf: &RecvBuf) {
        let Some(state) = self.open_mut(conn) else { return };
        if state.is_dead {
            return;
        }
        let is_once = state.receiving == Some(RecvMode::Once);
        if state.breaks(0, buf.len()) {
            self.chance.note(Kind::RecvErrors);
            return self.kill(conn);
        }
        if is_once && let Some(state) = self.open_mut(conn) {
            state.is_receiving_below = false;
        }
        let bytes = self.inner.bytes(buf).to_vec();
        // What is read once is one piece: nothing can be put back.
        let cuts = if is_once { vec![bytes.len()] } else { self.chance.cuts(bytes.len()) };
        let mut from = 0;
        for to in cuts {
            let piece = self.keep(&bytes[from..to]);
            self.tell(conn, Event::Received(piece));
            from = to;
        }
    }

    fn on_sent(&mut self, conn: ConnId, buf: OutBuf, mut result: io::Result<()>) {
        let Some(state) = self.open_mut(conn) else { return };
        if state.breaks(1, buf.len()) {
            self.chance.note(Kind::SendErrors);
            self.kill(conn);
        }
        let Self { conns, chance, inner, .. } = self;
        let state = conns.get_mut(&conn).expect("invariant: it was just looked at");
        if state.is_dead {
            result = Err(Errno::PIPE.into());
        }
        let buf = match state.sending.take() {
            None => buf,
            Some(mut sending) if result.is_ok() && sending.at < sending.bytes.len() => {
                let is_last = !chance.strikes(Kind::ShortSends);
                inner.send(conn, sending.next(&mut chance.random, is_last), SendEnd::Awaited);
                state.sending = Some(sending);
                return;
            }
            Some(sending) => {
                if std::mem::take(&mut state.fin_wanted) {
                    inner.shutdown_write(conn);
                }
                sending.buf
            }
        };
        self.tell(conn, Event::Sent(buf, result));
    }

    /// How long to wait below.
    fn wait(&mut self, wait: Wait) -> Wait {
        if self.chance.strikes(Kind::Spurious) {
            return Wait::None;
        }
        let conns = self.listed.iter().filter_map(|conn| self.conns.get(conn));
        let held = conns.map(|state| state.held_until);
        match (wait, held.chain(self.others.iter().map(|(at, _)| *at)).min()) {
            (Wait::Until(asked), Some(at)) => Wait::Until(asked.min(at)),
            (Wait::Forever, Some(at)) => Wait::Until(at),
            (wait, _) => wait,
        }
    }

    /// Tells what is due.
    fn tell_due(&mut self, completions: &mut Vec<Completion<B::Socket>>) {
        let now = clock::now();
        for (at, completion) in std::mem::take(&mut self.others) {
            if at > now {
                self.others.push((at, completion));
            } else {
                completions.push(completion);
            }
        }
        let mut listed = std::mem::take(&mut self.listed);
        listed.retain(|conn| self.tell_of(*conn, now, completions));
        // Nothing has been listed meanwhile.
        self.listed = listed;
    }

    /// Tells of a connection; whether there is more.
    fn tell_of(
        &mut self,
        conn: ConnId,
        now: Time,
        completions: &mut Vec<Completion<B::Socket>>,
    ) -> bool {
        let Some(state) = self.conns.get_mut(&conn) else { return false };
        let may_stop = self.chance.weights[Kind::Delays as usize] > 0;
        while state.held_until <= now
            && let Some(event) = state.held.pop_front()
        {
            completions.push(match event {
                Event::Received(buf) => {
                    if state.receiving == Some(RecvMode::Once) {
                        state.receiving = None;
                    }
                    Completion::Received { conn, buf }
                }
                Event::RecvEnded(reason) => {
                    state.receiving = None;
                    Completion::RecvEnded { conn, reason }
                }
                Event::Sent(buf, result) => Completion::Sent { conn, buf, result },
                Event::Closed => {
                    completions.push(Completion::Closed { conn });
                    self.conns.remove(&conn);
                    return false;
                }
            });
            // The rest in another tick.
            if may_stop && self.chance.random.below(4) == 0 {
                break;
            }
        }
        state.is_listed = !state.held.is_empty();
        state.is_listed
    }
}

impl<B: Backend> Backend for Fault<B> {
    type Socket = B::Socket;
    type Listener = B::Listener;

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn features(&self) -> String {
        format!("{}, with faults", self.inner.features())
    }

    fn add_listener(&mut self, listener: B::Listener) -> io::Result<ListenerId> {
        self.inner.add_listener(listener)
    }

    fn remove_listener(&mut self, id: ListenerId) {
        self.inner.remove_listener(id);
        let of_it = |completion: &Completion<B::Socket>| match completion {
            Completion::Accepted { listener, .. } => *listener == id,
            _ => false,
        };
        self.others.retain(|(_, completion)| !of_it(completion));
    }

    fn add_socket(&mut self, conn: ConnId, socket: B::Socket) -> io::Result<()> {
        if self.chance.strikes(Kind::RegisterErrors) {
            return Err(Errno::NOMEM.into());
        }
        self.inner.add_socket(conn, socket)?;
        let fates = [Kind::RecvErrors, Kind::SendErrors].map(|kind| self.chance.fate(kind));
        self.conns.insert(conn, Conn { fates, ..Conn::default() });
        Ok(())
    }

    fn recv(&mut self, conn: ConnId, mode: RecvMode) {
        let Some(state) = self.open_mut(conn) else { return };
        assert!(state.receiving.is_none(), "invariant: one receive in flight per connection");
        state.receiving = Some(mode);
        if state.is_dead {
            return self.tell(conn, Event::RecvEnded(RecvEnd::Error(Errno::CONNRESET.into())));
        }
        state.is_receiving_below = true;
        self.inner.recv(conn, mode);
    }

    fn cancel_recv(&mut self, conn: ConnId) {
        if self.open_mut(conn).is_some_and(|state| state.is_receiving_below) {
            self.inner.cancel_recv(conn);
        }
    }

    fn send(&mut self, conn: ConnId, buf: OutBuf, end: SendEnd) {
        let is_split = self.chance.strikes(Kind::ShortSends);
        let Self { conns, chance, inner, .. } = self;
        let Some(state) = conns.get_mut(&conn).filter(|state| !state.is_closing) else { return };
        assert!(state.sending.is_none(), "invariant: one send in flight per connection");
        if state.is_dead {
            return self.tell(conn, Event::Sent(buf, Err(Errno::PIPE.into())));
        }
        if !is_split || buf.is_empty() {
            return inner.send(conn, buf, end);
        }
        let bytes = buf.slices_from(0).flatten().copied().collect();
        let mut sending = Sending { buf, bytes, at: 0 };
        inner.send(conn, sending.next(&mut chance.random, false), SendEnd::Awaited);
        state.sending = Some(sending);
    }

    fn shutdown_write(&mut self, conn: ConnId) {
        let Some(state) = self.open_mut(conn) else { return };
        if state.sending.is_some() {
            state.fin_wanted = true;
        } else {
            self.inner.shutdown_write(conn);
        }
    }

    fn close(&mut self, conn: ConnId) {
        let Some(state) = self.open_mut(conn) else { return };
        state.is_closing = true;
        state.sending = None;
        for event in std::mem::take(&mut state.held) {
            if let Event::Received(buf) = event {
                self.release(buf);
            }
        }
        self.inner.close(conn);
    }

    fn detach(&mut self, conn: ConnId) -> Option<B::Socket> {
        let state = self.open_mut(conn)?;
        if state.receiving.is_some() || !state.held.is_empty() {
            return None;
        }
        let socket = self.inner.detach(conn)?;
        self.conns.remove(&conn);
        Some(socket)
    }

    fn peer_addr(&self, socket: &B::Socket) -> Option<SocketAddr> {
        self.inner.peer_addr(socket)
    }

    fn poll(&mut self, wait: Wait, completions: &mut Vec<Completion<B::Socket>>) -> io::Result<()> {
        let wait = self.wait(wait);
        let mut fresh = std::mem::take(&mut self.fresh);
        self.inner.poll(wait, &mut fresh)?;
        for completion in fresh.drain(..) {
            self.take_in(completion);
        }
        self.fresh = fresh;
        self.tell_due(completions);
        Ok(())
    }

    fn file(&mut self, op: FileOp) {
        if !self.chance.strikes(Kind::FileErrors) {
            return self.inner.file(op);
        }
        let error = self.chance.random.pick(&[Errno::IO, Errno::NOSPC, Errno::MFILE]);
        let at = self.chance.time_to_tell(Kind::SlowFiles);
        let done = FileDone { op, result: Err(error.into()) };
        self.others.push((at, Completion::File(Box::new(done))));
    }

    fn bytes(&self, buf: &RecvBuf) -> &[u8] {
        self.own[own_index(buf)].as_deref().expect("invariant: a buffer that is out")
    }

    fn release(&mut self, buf: RecvBuf) {
        let index = own_index(&buf);
        let bytes = self.own[index].take();
        assert!(bytes.is_some(), "invariant: only a buffer that is out is released");
        self.free.push(index as u32);
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }

    fn wake(&mut self, target: &Waker) {
        self.inner.wake(target);
    }

    fn set_quick_ack(&mut self, conn: ConnId, on: bool) {
        self.inner.set_quick_ack(conn, on);
    }

    fn input_age(&self, conn: ConnId) -> Duration {
        self.inner.input_age(conn)
    }

    fn counters(&self) -> IoCounters {
        self.inner.counters()
    }
}

/// Which of our own buffers: those of the backend inside are copied, and never come out.
fn own_index(buf: &RecvBuf) -> usize {
    buf.index().checked_sub(OWN_BUFFERS as usize).expect("invariant: all that come out are ours")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_a_seed_and_names() {
        let count = |text: &str| {
            let plan: Plan = text.parse().unwrap();
            (plan.seed, plan.on.iter().filter(|on| **on).count())
        };
        assert_eq!(count("7"), (7, KIND_COUNT));
        assert_eq!(count("7:quiet"), (7, 5));
        assert_eq!(count("0:short-reads,file-errors"), (0, 2));
        for bad in ["", "x", "1:", "1:short", "1:delays,"] {
            assert!(bad.parse::<Plan>().is_err(), "{bad}");
        }
    }
}
