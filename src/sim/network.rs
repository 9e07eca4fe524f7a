//! The simulated network: links between clients and listeners, each two pipes of segments that
//! arrive when a seed says so.
//!
//! A [`Link`] is one TCP connection as both ends see it. The client's end is used by `client`, the
//! broker's end by `backend`; who knows both ends (when did the broker see the end? had it read
//! everything?) is the oracle.
//!
//! Invariant: a pipe is a byte stream. Bytes arrive in order, each once, and the end behind them.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Duration;

use super::faults::{Faults, Kind};
use super::random::Random;
use super::trace::Trace;
use crate::clock::Time;

thread_local! {
    static NOW: Cell<Time> = const { Cell::new(Time::ZERO) };
    static DROPPED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// The simulation's clock: the world of this thread's.
pub fn now() -> Time {
    NOW.get()
}

/// Sets it.
pub fn set_now(now: Time) {
    NOW.set(now);
}

/// Forgets sockets of an earlier world of this thread.
pub fn forget_dropped() {
    DROPPED.with_borrow_mut(Vec::clear);
}

/// The broker's end of a link, between two backends. Dropping it closes it.
#[derive(Debug)]
pub struct Socket(usize);

impl Socket {
    /// The broker's end of this link.
    pub fn new(link: usize) -> Self {
        Self(link)
    }

    /// Which link; it is the caller's to close now.
    pub fn into_link(self) -> usize {
        let link = self.0;
        std::mem::forget(self);
        link
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        DROPPED.with_borrow_mut(|dropped| dropped.push(self.0));
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Pipe {
    segments: VecDeque<(Time, Vec<u8>)>,
    /// Of the first segment, read already.
    at: usize,
    /// Not yet read, on their way or arrived.
    bytes: usize,
    /// When the last segment arrives, or has.
    last: Time,
    /// When the end arrives.
    fin: Option<Time>,
}

impl Pipe {
    fn write(&mut self, arrives: Time, bytes: &[u8]) {
        self.last = self.last.max(arrives);
        self.bytes += bytes.len();
        self.segments.push_back((self.last, bytes.to_vec()));
    }

    fn finish(&mut self, arrives: Time) {
        self.fin.get_or_insert(self.last.max(arrives));
    }

    fn has_arrived(&self, now: Time) -> bool {
        self.segments.front().is_some_and(|(at, _)| *at <= now)
    }

    fn at_end(&self, now: Time) -> bool {
        self.segments.is_empty() && self.fin.is_some_and(|at| at <= now)
    }

    fn next(&self) -> Option<Time> {
        self.segments.front().map(|(at, _)| *at).or(self.fin)
    }

    /// Up to `max` bytes that have arrived, and when the last of them did.
    fn read(&mut self, now: Time, max: usize) -> (Vec<u8>, Time) {
        let mut out = Vec::new();
        let mut last = Time::ZERO;
        while out.len() < max && self.has_arrived(now) {
            let (arrived, segment) = &self.segments[0];
            last = *arrived;
            let end = segment.len().min(self.at + max - out.len());
            out.extend_from_slice(&segment[self.at..end]);
            self.at = end;
            if end == segment.len() {
                self.segments.pop_front();
                self.at = 0;
            }
        }
        self.bytes -= out.len();
        (out, last)
    }

    fn clear(&mut self) {
        *self = Self { last: self.last, ..Self::default() };
    }
}

/// What reading finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// Bytes, at least one.
    Bytes(Vec<u8>),
    /// Nothing yet.
    Nothing,
    /// The other side has ended its stream.
    End,
    /// The connection broke.
    Broken,
}

/// One TCP connection.
#[derive(Debug)]
pub struct Link {
    /// Whose.
    pub client: usize,
    /// The shard whose listener got it.
    pub shard: usize,
    /// Waits in the listener's backlog.
    pub is_waiting: bool,
    /// When it gets there.
    arrives: Time,
    up: Pipe,
    down: Pipe,
    /// Broken, for both sides.
    broken: bool,
    /// The client has closed; what arrives is answered by a reset.
    client_closed: bool,
    /// The client's machine is gone: nothing travels any more.
    vanished: bool,
    /// When the client's end ended, in whatever way.
    pub client_end: Option<Time>,
    /// When the broker began to end it: FIN sent, closed, or its end was seen.
    pub server_end: Option<Time>,
    /// When the broker had closed it.
    pub server_closed: Option<Time>,
    /// The broker has said that nothing more comes, before it closed.
    pub finished: bool,
    /// The broker has read all there was before it began to end it.
    pub drained: bool,
    /// The broker closed it with something unsent.
    pub is_cut: bool,
    /// When the last byte that the broker has read had arrived.
    pub heard: Time,
    /// When the broker has read last.
    read_at: Time,
    /// The longest time between two reads.
    silence: Duration,
    /// When its first packet had arrived whole, as far as the client knows its length.
    pub connect_len: usize,
    /// Bytes that the broker has read.
    pub read: usize,
    /// When the CONNECT had arrived.
    pub connect_arrived: Option<Time>,
}

/// All links, and what decides about them.
#[derive(Debug)]
pub struct Network {
    /// By number; never removed.
    pub links: Vec<Link>,
    /// What can go wrong.
    pub faults: Faults,
    /// Decides about the network and the kernel.
    pub random: Random,
    /// What happens is written here.
    pub trace: Trace,
    /// Bytes that the broker's kernel holds for a client that does not read.
    pub send_buffer: usize,
    /// The base of all delays.
    pub delay: Duration,
    /// When hours have passed at once last.
    pub last_jump: Time,
}

impl Network {
    fn delay(&mut self) -> Duration {
        let base = self.delay.as_nanos() as u64;
        let mut nanos = self.random.between(base / 2, base * 2);
        let long = self.faults.weight(Kind::Delays) / 10;
        if self.faults.strikes(Kind::Delays, &mut self.random, long) {
            nanos += self.random.between(1, 2_000) * 1_000_000;
        }
        Duration::from_nanos(nanos)
    }

    /// A client connects to the listener of `shard`.
    pub fn connect(&mut self, client: usize, shard: usize) -> usize {
        let arrives = now() + self.delay();
        self.links.push(Link {
            client,
            shard,
            is_waiting: true,
            arrives,
            up: Pipe { last: arrives, ..Pipe::default() },
            down: Pipe::default(),
            broken: false,
            client_closed: false,
            vanished: false,
            client_end: None,
            server_end: None,
            server_closed: None,
            finished: false,
            drained: false,
            is_cut: false,
            heard: Time::ZERO,
            read_at: Time::ZERO,
            silence: Duration::ZERO,
            connect_len: 0,
            read: 0,
            connect_arrived: None,
        });
        self.links.len() - 1
    }

    /// The client sends; how much was taken.
    pub fn client_send(&mut self, link: usize, bytes: &[u8]) -> usize {
        const ROOM: usize = 64 * 1024;
        let arrives = now() + self.delay();
        let link = &mut self.links[link];
        if link.broken || link.client_closed || link.vanished || link.server_closed.is_some() {
            return bytes.len();
        }
        let count = bytes.len().min(ROOM.saturating_sub(link.up.bytes));
        if count > 0 {
            link.up.write(arrives, &bytes[..count]);
        }
        count
    }

    /// The client reads.
    pub fn client_read(&mut self, link: usize) -> Read {
        let link = &mut self.links[link];
        if link.vanished {
            return Read::Nothing;
        }
        let now = now();
        if link.down.has_arrived(now) {
            return Read::Bytes(link.down.read(now, usize::MAX).0);
        }
        if link.broken {
            return Read::Broken;
        }
        if link.down.at_end(now) { Read::End } else { Read::Nothing }
    }

    /// Whether [`Network::client_read`] would find something.
    pub fn client_can_read(&self, link: usize) -> bool {
        let (link, now) = (&self.links[link], now());
        !link.vanished && (link.down.has_arrived(now) || link.broken || link.down.at_end(now))
    }

    /// Whether the client could send more.
    pub fn client_can_send(&self, link: usize) -> bool {
        self.links[link].up.bytes < 64 * 1024
    }

    /// The client closes: FIN behind all it sent.
    pub fn client_close(&mut self, link: usize) {
        let arrives = now() + self.delay();
        let link = &mut self.links[link];
        link.client_end.get_or_insert(now());
        link.client_closed = true;
        link.up.finish(arrives);
    }

    /// The connection breaks.
    pub fn reset(&mut self, link: usize) {
        let keep = self.random.chance(500);
        let link = &mut self.links[link];
        link.client_end.get_or_insert(now());
        link.broken = true;
        // What had arrived may still be read, what is on its way is lost.
        let now = now();
        if keep {
            while link.up.segments.back().is_some_and(|(at, _)| *at > now) {
                let (_, lost) = link.up.segments.pop_back().expect("invariant: just looked at");
                link.up.bytes -= lost.len();
            }
            if link.up.segments.is_empty() {
                link.up.at = 0;
                link.up.bytes = 0;
            }
        } else {
            link.up.clear();
        }
        link.down.clear();
    }

    /// The client's machine is gone.
    pub fn vanish(&mut self, link: usize) {
        let link = &mut self.links[link];
        link.client_end.get_or_insert(now());
        link.vanished = true;
        let now = now();
        link.up.segments.retain(|(at, _)| *at <= now);
        link.up.bytes = link.up.segments.iter().map(|(_, segment)| segment.len()).sum();
        if link.up.segments.is_empty() {
            link.up.at = 0;
        }
        link.up.bytes -= link.up.at;
        link.up.fin = link.up.fin.filter(|at| *at <= now);
    }

    /// The longest time for which the broker read nothing on this link, until it began to end it.
    /// What has arrived and was not read does not count: a shard that did not run may be late.
    pub fn longest_silence(&self, link: usize) -> Duration {
        let link = &self.links[link];
        link.server_end.map_or(link.silence, |end| link.silence.max(end.since(link.read_at)))
    }

    /// A link on which something is on its way, or waits to be read by anybody.
    pub fn restless(&self) -> Option<usize> {
        self.links.iter().position(|link| {
            let is_over = link.broken || link.vanished || link.server_closed.is_some();
            !is_over && (link.is_waiting || link.up.bytes > 0 || link.down.bytes > 0)
        })
    }

    /// When something arrives next at a client or in a backlog; the backends know the rest.
    pub fn next_event(&self) -> Option<Time> {
        let backlog = self.links.iter().filter(|link| link.is_waiting).map(|link| link.arrives);
        let down = self.links.iter().filter(|link| !link.vanished).filter_map(|l| l.down.next());
        backlog.chain(down).filter(|at| *at > now()).min()
    }

    // ---- the broker's end ----

    /// The first link in the backlog of `shard`, if one has arrived.
    pub fn backlog(&self, shard: usize) -> Option<usize> {
        let now = now();
        let is_there = |link: &Link| link.is_waiting && link.shard == shard && link.arrives <= now;
        self.links.iter().position(is_there)
    }

    /// Whether reading would find something.
    pub fn server_can_read(&self, link: usize) -> bool {
        let (link, now) = (&self.links[link], now());
        link.up.has_arrived(now) || link.broken || link.up.at_end(now)
    }

    /// When it will.
    pub fn server_readable_at(&self, link: usize) -> Option<Time> {
        self.links[link].up.next()
    }

    /// The broker reads up to `max` bytes.
    pub fn server_read(&mut self, link: usize, max: usize) -> Read {
        let now = now();
        let link = &mut self.links[link];
        let found = if link.up.has_arrived(now) {
            let (bytes, arrived) = link.up.read(now, max);
            if link.read > 0 {
                link.silence = link.silence.max(now.since(link.read_at));
            }
            link.read_at = now;
            link.heard = arrived;
            link.read += bytes.len();
            if link.read >= link.connect_len && link.connect_len > 0 {
                link.connect_arrived.get_or_insert(arrived);
            }
            return Read::Bytes(bytes);
        } else if link.broken {
            Read::Broken
        } else if link.up.at_end(now) {
            Read::End
        } else {
            return Read::Nothing;
        };
        link.drained |= link.server_end.is_none() && found == Read::End;
        link.server_end.get_or_insert(now);
        found
    }

    /// Room for the broker to send; none says that the connection is broken.
    pub fn server_room(&self, link: usize) -> Option<usize> {
        let link = &self.links[link];
        (!link.broken).then(|| self.send_buffer.saturating_sub(link.down.bytes))
    }

    /// The broker sends what it has room for.
    pub fn server_write(&mut self, link: usize, bytes: &[u8]) {
        let arrives = now() + self.delay();
        let link = &mut self.links[link];
        // A peer that has closed, and reads no more, answers with a reset.
        if link.client_closed && !link.vanished {
            link.broken = true;
            link.down.clear();
        } else {
            link.down.write(arrives, bytes);
        }
    }

    /// The broker sends FIN.
    pub fn server_finish(&mut self, link: usize) {
        let arrives = now() + self.delay();
        let link = &mut self.links[link];
        link.drained |= link.server_end.is_none() && link.up.bytes == 0;
        link.server_end.get_or_insert(now());
        link.finished = true;
        link.down.finish(arrives);
    }

    /// The broker closes. With something unread it sends a reset, which destroys what the client
    /// has not read.
    pub fn server_close(&mut self, link: usize, with_unsent: bool) {
        let arrives = now() + self.delay();
        let link = &mut self.links[link];
        link.is_waiting = false;
        if link.server_closed.is_some() {
            return;
        }
        let now = now();
        link.drained |= link.server_end.is_none() && link.up.bytes == 0;
        link.server_end.get_or_insert(now);
        link.server_closed = Some(now);
        link.is_cut |= with_unsent;
        if link.up.has_arrived(now) {
            link.is_cut |= link.down.bytes > 0;
            link.broken = true;
            link.down.clear();
        }
        link.down.finish(arrives);
    }

    /// Closes the sockets that were dropped on their way between backends.
    pub fn close_dropped(&mut self) {
        for link in DROPPED.with_borrow_mut(std::mem::take) {
            self.server_close(link, false);
        }
    }
}
