//! The contract of [`Backend`] over the simulated network: what the kernel may do between two
//! polls, decided by a seed.
//!
//! Completions of one connection come in their order, those of different ones in any. A receive
//! gets one byte or many, or waits because no buffer is free; a send is taken in pieces; a
//! cancelled receive still brings data, or not; a closed connection is gone at once, or later.
//!
//! The state of all backends lies in [`Kernel`], where the world sees whether a shard that sleeps
//! would be woken. Invariant: a backend never waits.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::disk::Disk;
use super::faults::Kind;
use super::network::{Network, Read, Socket, now};
use crate::buf::OutBuf;
use crate::clock::Time;
use crate::ids::ConnId;
use crate::io::{
    Backend, Completion, FileOp, IoCounters, ListenerId, RecvBuf, RecvEnd, RecvMode, SendEnd, Wait,
    Waker,
};

/// The network, and what each shard has asked of it.
#[derive(Debug)]
pub struct Kernel {
    /// All links.
    pub network: Network,
    /// By shard.
    pub rings: Vec<Ring>,
    /// The disk of all of them. It outlives the broker's process.
    pub disk: Disk,
}

/// What one shard has asked for.
#[derive(Debug)]
pub struct Ring {
    waker: Waker,
    /// Somebody has woken it since its last poll.
    pub is_woken: bool,
    is_listening: bool,
    conns: BTreeMap<u32, Conn>,
    counters: IoCounters,
}

#[derive(Debug)]
struct Conn {
    id: ConnId,
    link: usize,
    recv: Option<RecvMode>,
    is_cancelled: bool,
    send: Option<Sending>,
    fin_wanted: bool,
    /// Closed; gone in so many polls.
    closing: Option<u32>,
}

#[derive(Debug)]
struct Sending {
    buf: OutBuf,
    bytes: Vec<u8>,
    at: usize,
    /// All of it went at once, and nobody waits for its end: no reason to wake up.
    is_quiet: bool,
}

/// All of it, shared by the backends and the world.
pub type Shared = Rc<RefCell<Kernel>>;

impl Kernel {
    /// Rings for that many shards, nothing asked for.
    ///
    /// # Errors
    /// When the machine has no descriptor left for wakers.
    pub fn open_rings(&mut self, shards: usize) -> io::Result<()> {
        self.rings = (0..shards)
            .map(|_| {
                Ok(Ring {
                    waker: Waker::new()?,
                    is_woken: false,
                    is_listening: false,
                    conns: BTreeMap::new(),
                    counters: IoCounters::default(),
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(())
    }

    /// All sockets of the broker are closed, as when its process ends.
    pub fn kill(&mut self) {
        for link in 0..self.network.links.len() {
            self.network.server_close(link, true);
        }
        self.rings.clear();
        self.network.close_dropped();
        self.disk.kill();
    }

    /// Whether a poll of this shard would find something.
    pub fn has_work(&self, shard: usize) -> bool {
        let ring = &self.rings[shard];
        ring.is_woken
            || (self.disk.is_busy(shard) && !self.disk.trouble.is_stuck)
            || (ring.is_listening && self.network.backlog(shard).is_some())
            || ring.conns.values().any(|conn| self.conn_has_work(conn))
    }

    fn conn_has_work(&self, conn: &Conn) -> bool {
        let can_send = conn.send.as_ref().is_some_and(|send| match send.at == send.bytes.len() {
            true => !send.is_quiet,
            false => self.network.server_room(conn.link) != Some(0),
        });
        conn.closing.is_some()
            || conn.is_cancelled
            || can_send
            || (conn.recv.is_some() && self.network.server_can_read(conn.link))
    }

    /// When something arrives next for this shard.
    pub fn next_event(&self, shard: usize) -> Option<Time> {
        let readable = |conn: &Conn| {
            conn.recv?;
            self.network.server_readable_at(conn.link)
        };
        self.rings[shard].conns.values().filter_map(readable).min()
    }

    /// What a shard's kernel has counted.
    pub fn counters(&self, shard: usize) -> IoCounters {
        self.rings[shard].counters
    }
}

/// One shard's view of it.
#[derive(Debug)]
pub struct SimBackend {
    shared: Shared,
    shard: usize,
    buffers: Vec<Option<Vec<u8>>>,
}

impl SimBackend {
    /// For shard number `shard`, whose ring is open.
    pub fn new(shared: Shared, shard: usize) -> Self {
        Self { shared, shard, buffers: Vec::new() }
    }

    fn with<T>(&self, what: impl FnOnce(&mut Network, &mut Ring) -> T) -> T {
        let kernel = &mut *self.shared.borrow_mut();
        what(&mut kernel.network, &mut kernel.rings[self.shard])
    }

    fn with_conn<T>(
        &self,
        id: ConnId,
        what: impl FnOnce(&mut Network, &mut Conn) -> T,
    ) -> Option<T> {
        self.with(|network, ring| {
            let conn = ring.conns.get_mut(&id.index)?;
            (conn.id == id && conn.closing.is_none()).then(|| what(network, conn))
        })
    }

    fn keep(&mut self, bytes: Vec<u8>) -> RecvBuf {
        let len = bytes.len() as u32;
        let free = self.buffers.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            self.buffers.push(None);
            self.buffers.len() - 1
        });
        self.buffers[index] = Some(bytes);
        RecvBuf::new(index as u32, len)
    }

    fn accept(&self, completions: &mut Vec<Completion<Socket>>) {
        let shard = self.shard;
        self.with(|network, ring| {
            while let Some(link) = network.backlog(shard).filter(|_| ring.is_listening) {
                network.links[link].is_waiting = false;
                let Network { faults, random, .. } = network;
                let per_mille = faults.weight(Kind::Emfile) / 4;
                if faults.strikes(Kind::Emfile, random, per_mille) {
                    network.server_close(link, false);
                    ring.counters.accept_failed += 1;
                    ring.counters.emfile += 1;
                    completions.push(Completion::AcceptFailed {
                        listener: ListenerId(0),
                        error: io::Error::other("no descriptor left"),
                    });
                } else {
                    ring.counters.accepted += 1;
                    completions.push(Completion::Accepted {
                        listener: ListenerId(0),
                        socket: Socket::new(link),
                    });
                }
            }
        });
    }

    /// One connection's turn.
    fn advance(&mut self, index: u32, completions: &mut Vec<Completion<Socket>>) {
        let closing = self.with(|network, ring| {
            let conn = ring.conns.get_mut(&index)?;
            let left = conn.closing.as_mut()?;
            *left = left.saturating_sub(1);
            let (left, conn) = (*left, conn.id);
            if left == 0 {
                ring.conns.remove(&index);
                completions.push(Completion::Closed { conn });
            }
            let _ = network;
            Some(())
        });
        if closing.is_some() {
            return;
        }
        let recv_first = self.with(|network, _| network.random.chance(500));
        if recv_first {
            self.advance_recv(index, completions);
            self.advance_send(index, completions);
        } else {
            self.advance_send(index, completions);
            self.advance_recv(index, completions);
        }
    }

    fn advance_send(&self, index: u32, completions: &mut Vec<Completion<Socket>>) {
        self.with(|network, ring| {
            let Some(conn) = ring.conns.get_mut(&index) else { return };
            let Some(sending) = &mut conn.send else { return };
            let left = sending.bytes.len() - sending.at;
            let result = match network.server_room(conn.link) {
                None => Err(io::Error::from(io::ErrorKind::ConnectionReset)),
                Some(0) if left > 0 => return,
                Some(room) => {
                    let mut count = left.min(room);
                    let Network { faults, random, .. } = network;
                    if count > 1 && faults.strikes_by_weight(Kind::ShortWrites, random) {
                        count = 1 + random.index(count - 1);
                    }
                    let end = sending.at + count;
                    network.server_write(conn.link, &sending.bytes[sending.at..end]);
                    sending.at = end;
                    if end < sending.bytes.len() {
                        ring.counters.short_sends += 1;
                        return;
                    }
                    Ok(())
                }
            };
            let Sending { buf, .. } = conn.send.take().expect("invariant: matched above");
            if std::mem::take(&mut conn.fin_wanted) {
                network.server_finish(conn.link);
            }
            ring.counters.sent += 1;
            completions.push(Completion::Sent { conn: conn.id, buf, result });
        });
    }

    fn advance_recv(&mut self, index: u32, completions: &mut Vec<Completion<Socket>>) {
        for _ in 0..16 {
            let found = self.with(|network, ring| {
                let conn = ring.conns.get_mut(&index)?;
                let mode = conn.recv?;
                let id = conn.id;
                if conn.is_cancelled {
                    let Network { faults, random, .. } = network;
                    // It may still bring data, and its end may come in a later poll.
                    if !faults.strikes_by_weight(Kind::LateEnds, random) {
                        conn.recv = None;
                        conn.is_cancelled = false;
                        return Some((id, Err(RecvEnd::Cancelled)));
                    }
                }
                let Network { faults, random, .. } = network;
                if faults.strikes_by_weight(Kind::NoBuffers, random) {
                    ring.counters.enobufs += 1;
                    ring.counters.rearmed += 1;
                    return None;
                }
                let small = faults.strikes_by_weight(Kind::SmallReads, random);
                let max = if small { random.between(1, 3) as usize } else { 4096 };
                let end = match network.server_read(conn.link, max) {
                    Read::Nothing => return None,
                    Read::Bytes(bytes) => {
                        if mode == RecvMode::Once {
                            conn.recv = None;
                            conn.is_cancelled = false;
                        }
                        return Some((id, Ok(bytes)));
                    }
                    Read::End => RecvEnd::Eof,
                    Read::Broken => RecvEnd::Error(io::Error::from(io::ErrorKind::ConnectionReset)),
                };
                conn.recv = None;
                conn.is_cancelled = false;
                Some((id, Err(end)))
            });
            match found {
                None => return,
                Some((conn, Ok(bytes))) => {
                    self.with(|_, ring| ring.counters.received += 1);
                    let buf = self.keep(bytes);
                    completions.push(Completion::Received { conn, buf });
                }
                Some((conn, Err(reason))) => {
                    completions.push(Completion::RecvEnded { conn, reason });
                }
            }
        }
    }
}

impl SimBackend {
    /// Any number of them end, in any order.
    fn finish_file_ops(&self, completions: &mut Vec<Completion<Socket>>) {
        let kernel = &mut *self.shared.borrow_mut();
        while kernel.disk.is_busy(self.shard) && kernel.network.random.chance(500) {
            let Some(done) = kernel.disk.finish_one(self.shard) else { return };
            completions.push(Completion::File(Box::new(done)));
        }
    }
}

impl Backend for SimBackend {
    type Socket = Socket;
    type Listener = ();

    fn name(&self) -> &'static str {
        "sim"
    }

    fn features(&self) -> String {
        "simulated".to_owned()
    }

    fn add_listener(&mut self, (): ()) -> io::Result<ListenerId> {
        self.with(|_, ring| ring.is_listening = true);
        Ok(ListenerId(0))
    }

    fn remove_listener(&mut self, _id: ListenerId) {
        let shard = self.shard;
        self.with(|network, ring| {
            ring.is_listening = false;
            while let Some(link) = network.backlog(shard) {
                network.server_close(link, false);
            }
        });
    }

    fn add_socket(&mut self, conn: ConnId, socket: Socket) -> io::Result<()> {
        let failed = self.with(|network, _| {
            let Network { faults, random, .. } = network;
            let per_mille = faults.weight(Kind::RegisterError) / 8;
            faults.strikes(Kind::RegisterError, random, per_mille)
        });
        if failed {
            return Err(io::Error::other("it cannot be registered"));
        }
        self.with(|_, ring| {
            let old = ring.conns.insert(
                conn.index,
                Conn {
                    id: conn,
                    link: socket.into_link(),
                    recv: None,
                    is_cancelled: false,
                    send: None,
                    fin_wanted: false,
                    closing: None,
                },
            );
            assert!(old.is_none(), "invariant: a slot is used again only after Closed or detach");
        });
        Ok(())
    }

    fn recv(&mut self, conn: ConnId, mode: RecvMode) {
        self.with_conn(conn, |_, state| {
            assert!(state.recv.is_none(), "invariant: one receive in flight per connection");
            state.recv = Some(mode);
        });
    }

    fn cancel_recv(&mut self, conn: ConnId) {
        self.with_conn(conn, |_, state| state.is_cancelled |= state.recv.is_some());
    }

    fn send(&mut self, conn: ConnId, buf: OutBuf, end: SendEnd) {
        self.with_conn(conn, |network, state| {
            assert!(state.send.is_none(), "invariant: one send in flight per connection");
            let bytes: Vec<u8> = buf.slices_from(0).flatten().copied().collect();
            let mut at = 0;
            // What is awaited, or finds no room, goes in polls.
            let room = network.server_room(state.link).unwrap_or(0);
            let Network { faults, random, .. } = network;
            let is_quiet = end == SendEnd::Unawaited
                && room >= bytes.len()
                && !faults.strikes_by_weight(Kind::ShortWrites, random);
            if is_quiet {
                network.server_write(state.link, &bytes);
                at = bytes.len();
            }
            state.send = Some(Sending { buf, bytes, at, is_quiet });
        });
    }

    fn shutdown_write(&mut self, conn: ConnId) {
        self.with_conn(conn, |network, state| {
            if let Some(send) = &mut state.send {
                send.is_quiet = false;
                state.fin_wanted = true;
            } else {
                network.server_finish(state.link);
            }
        });
    }

    fn close(&mut self, conn: ConnId) {
        self.with_conn(conn, |network, state| {
            let with_unsent = state.send.take().is_some_and(|send| send.at < send.bytes.len());
            state.recv = None;
            network.server_close(state.link, with_unsent);
            let Network { faults, random, .. } = network;
            let late = faults.strikes_by_weight(Kind::LateEnds, random);
            state.closing = Some(if late { random.between(2, 6) as u32 } else { 1 });
        });
    }

    fn detach(&mut self, conn: ConnId) -> Option<Socket> {
        let quiet = |_: &mut Network, state: &mut Conn| {
            (state.recv.is_none() && state.send.is_none()).then_some(state.link)
        };
        let link = self.with_conn(conn, quiet)??;
        self.with(|_, ring| ring.conns.remove(&conn.index));
        Some(Socket::new(link))
    }

    fn peer_addr(&self, _socket: &Socket) -> Option<SocketAddr> {
        None
    }

    fn poll(&mut self, _wait: Wait, completions: &mut Vec<Completion<Socket>>) -> io::Result<()> {
        let mut indices: Vec<u32> = self.with(|network, ring| {
            network.close_dropped();
            ring.is_woken = false;
            ring.counters.enters += 1;
            ring.conns.keys().copied().collect()
        });
        self.with(|network, ring| {
            let Network { faults, random, .. } = network;
            if faults.strikes_by_weight(Kind::Shuffled, random) {
                random.shuffle(&mut indices);
            }
            if !indices.is_empty() && faults.strikes_by_weight(Kind::FewCompletions, random) {
                let first = random.index(indices.len());
                indices.rotate_left(first);
                // A poll that has not heard all does not let the next one sleep: what it has not
                // said of a quiet send is to be heard.
                for index in indices.drain(1..) {
                    let send = ring.conns.get_mut(&index).and_then(|conn| conn.send.as_mut());
                    send.into_iter().for_each(|send| send.is_quiet = false);
                }
            }
        });
        self.accept(completions);
        self.finish_file_ops(completions);
        for index in indices {
            self.advance(index, completions);
        }
        Ok(())
    }

    fn file(&mut self, op: FileOp) {
        self.shared.borrow_mut().disk.submit(self.shard, op);
    }

    fn bytes(&self, buf: &RecvBuf) -> &[u8] {
        self.buffers[buf.index()].as_deref().expect("invariant: a buffer that is out")
    }

    fn release(&mut self, buf: RecvBuf) {
        let released = self.buffers[buf.index()].take();
        assert!(released.is_some(), "invariant: only a buffer that is out is released");
    }

    fn waker(&self) -> Waker {
        self.with(|_, ring| ring.waker.clone())
    }

    fn wake(&mut self, target: &Waker) {
        let kernel = &mut *self.shared.borrow_mut();
        kernel.rings[self.shard].counters.wakes_sent += 1;
        for ring in &mut kernel.rings {
            ring.is_woken |= ring.waker.same(target);
        }
    }

    fn set_quick_ack(&mut self, _conn: ConnId, _on: bool) {}

    fn input_age(&self, conn: ConnId) -> Duration {
        self.with_conn(conn, |network, state| {
            let age = now().since(network.links[state.link].heard);
            let Network { faults, random, .. } = network;
            match faults.strikes_by_weight(Kind::CoarseAges, random) {
                true => Duration::from_millis(age.as_millis() as u64 / 4 * 4),
                false => age,
            }
        })
        .unwrap_or_default()
    }

    fn counters(&self) -> IoCounters {
        self.with(|_, ring| ring.counters)
    }
}
