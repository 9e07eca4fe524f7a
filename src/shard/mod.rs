//! The event loop of one shard: one thread, pinned to one CPU, that owns its backend, its
//! connections, its part of the sessions, and its ends of the lanes. Read [`Shard::tick`] first.
//!
//! Never acts in reaction to a completion alone: a turn takes in everything there is, lets the
//! broker work, and lets everything out at its end, so that frames travel together.
//!
//! Invariants: at most one send in flight per connection; input keeps its order through pauses,
//! hand-over and the peer's end; a slot is used again only when nothing of its connection is in
//! the kernel; an idle shard sleeps until its next deadline, or for ever.
#![forbid(unsafe_code)]

mod accept;
mod conn;
mod conns;
mod control;
mod deadlines;
mod flush;
mod journal;
mod lanes;
mod receive;
mod stop;

pub use control::{ControlMessage, LoopCounters, ShardStats};
pub use journal::{Disk, Journal, JournalStats, Log, Memory, Start};
pub use lanes::Parcel;

use crate::broker::{self, Auth, Broker, Disconnection, DurableState, Method};
use crate::clock::Time;
use crate::ids::{ConnId, PlacementKey, ShardId};
use crate::io::{Backend, Completion, ListenerId, RecvBuf, RecvEnd, RecvMode, Wait, Waker};
use crate::journal::record::Clocks;
use crate::limits::{CLOSE_FLUSH, CLOSE_LINGER, INPUT_BYTES_MARK, LANE_RING_LEN, QUICK_ACK_READS};
use crate::mesh::Mesh;
use conn::{Ended, Receiving, Spares, Stage};
use conns::Conns;
use deadlines::Deadlines;
use journal::Journaling;
use lanes::Lanes;
use receive::{handle_input, receive};
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use stop::Stopping;

/// What a shard is made of.
#[derive(Debug)]
pub struct Setup<S = OwnedFd, L = TcpListener> {
    /// Which shard.
    pub id: ShardId,
    /// How many there are.
    pub shards: usize,
    /// Where sessions and retained topics live.
    pub placement: PlacementKey,
    /// The broker's configuration.
    pub broker: broker::Config,
    /// Seeds hash tables and the choice of assigned client ids.
    pub seed: u64,
    /// How long a connection may take to its CONNECT.
    pub connect_timeout: Duration,
    /// This shard's own listeners, bound with SO_REUSEPORT, in the order of the configuration.
    pub listeners: Vec<L>,
    /// Its end of the lanes.
    pub mesh: Mesh<Parcel<S>>,
    /// From the control thread.
    pub control: Receiver<ControlMessage>,
    /// Where time comes from: [`crate::clock::now`], or a simulation's.
    pub clock: fn() -> Time,
    /// Where what must last goes.
    pub journal: Journal,
    /// The same moment on both clocks, for all shards.
    pub clocks: Clocks,
    /// This shard's part of what the journal gave back; None when nothing is recorded.
    pub restored: Option<DurableState>,
}

/// One shard. See the [module](self).
#[derive(Debug)]
pub struct Shard<B: Backend> {
    id: ShardId,
    shards: usize,
    placement: PlacementKey,
    now: Time,
    clock: fn() -> Time,
    backend: B,
    broker: Broker,
    journaling: Journaling,
    mesh: Mesh<Parcel<B::Socket>>,
    lanes: Lanes<B::Socket>,
    /// Of all shards, by number.
    wakers: Vec<Waker>,
    control: Receiver<ControlMessage>,
    stopping: Option<Stopping>,
    /// Clients may come, and time has its effects.
    is_open: bool,
    /// Only once all shards know what the others want (SHARDS.md I6).
    opens_later: bool,

    conns: Conns,
    listeners: Vec<B::Listener>,
    listener_ids: Vec<ListenerId>,
    connect_size_max: usize,
    /// For CONNECT to come.
    connect_deadlines: Deadlines,
    /// For a closing connection to take what it was sent.
    close_deadlines: Deadlines,
    /// For the peer's end to come after ours.
    linger_deadlines: Deadlines,
    /// (old, new): the new connection's CONNECT waits until what was read of the old is handled.
    takeovers: Vec<(ConnId, ConnId)>,
    /// Connections whose send has ended while more was waiting.
    sendable: Vec<ConnId>,
    completions: Vec<Completion<B::Socket>>,
    spare_inputs: Spares,
    counters: LoopCounters,
}

/// Whether the loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Call [`Shard::tick`] again.
    Again,
    /// The shutdown is complete.
    Done,
}

impl<B: Backend> Shard<B> {
    /// A shard that does not accept yet: [`Shard::start`] comes when all others stand.
    pub fn new(setup: Setup<B::Socket, B::Listener>, backend: B) -> Self {
        let now = (setup.clock)();
        let mut broker =
            Broker::new(setup.broker, setup.id, setup.shards, setup.placement, setup.seed);
        let opens_later = setup.restored.is_some();
        if let Some(part) = setup.restored {
            broker.restore(now, setup.clocks.unix_ms_of(now), part);
            if !matches!(setup.journal, Journal::Host(_)) {
                broker.handle_restored();
            }
        }
        Self {
            id: setup.id,
            shards: setup.shards,
            placement: setup.placement,
            now,
            clock: setup.clock,
            backend,
            connect_size_max: broker.config.connect_size_max,
            broker,
            journaling: Journaling::new(setup.journal, setup.clocks),
            is_open: false,
            opens_later,
            lanes: Lanes::new(setup.id, setup.shards),
            mesh: setup.mesh,
            wakers: Vec::new(),
            control: setup.control,
            stopping: None,
            conns: Conns::default(),
            listeners: setup.listeners,
            listener_ids: Vec::new(),
            connect_deadlines: Deadlines::new(setup.connect_timeout),
            close_deadlines: Deadlines::new(CLOSE_FLUSH),
            linger_deadlines: Deadlines::new(CLOSE_LINGER),
            takeovers: Vec::new(),
            sendable: Vec::new(),
            completions: Vec::new(),
            spare_inputs: Spares::default(),
            counters: LoopCounters::default(),
        }
    }

    /// Replaces who decides about connections and topics, and adds authentication methods; before
    /// the start.
    pub fn extend(&mut self, auth: Auth, methods: Vec<Box<dyn Method>>) {
        self.broker.set_auth(auth);
        for method in methods {
            self.broker.add_method(method);
        }
    }

    /// Wakes this shard from any thread.
    pub fn waker(&self) -> Waker {
        self.backend.waker()
    }

    /// Begins, with the wakers of all shards by number. It accepts at once; after a restart when all
    /// shards have told each other what they want, in one of the next ticks (SHARDS.md I6).
    ///
    /// # Errors
    /// When a listener cannot be registered.
    pub fn start(&mut self, wakers: Vec<Waker>) -> io::Result<()> {
        assert_eq!(wakers.len(), self.shards, "invariant: one waker per shard");
        self.wakers = wakers;
        if self.opens_later {
            self.commit();
        }
        let opens = !self.opens_later || self.broker.is_open();
        if opens { self.open() } else { Ok(()) }
    }

    /// Whether it accepts.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    fn open(&mut self) -> io::Result<()> {
        self.is_open = true;
        for listener in std::mem::take(&mut self.listeners) {
            let id = self.backend.add_listener(listener)?;
            self.listener_ids.push(id);
        }
        Ok(())
    }

    /// Ticks until the shutdown is complete.
    ///
    /// # Errors
    /// When the kernel refuses the loop's own call, which nothing can be done about.
    pub fn run(&mut self) -> io::Result<()> {
        while self.tick()? == Turn::Again {}
        Ok(())
    }

    /// One turn: take in all there is, work, let all out. Sleeps in the kernel when there is
    /// nothing to do.
    ///
    /// # Errors
    /// As [`Shard::run`].
    pub fn tick(&mut self) -> io::Result<Turn> {
        let wait = self.prepare();
        self.turn(wait)
    }

    /// The tick behind its first step: enters the kernel, and works.
    ///
    /// # Errors
    /// As [`Shard::run`].
    pub fn turn(&mut self, wait: Wait) -> io::Result<Turn> {
        let mut completions = std::mem::take(&mut self.completions);
        self.backend.poll(wait, &mut completions)?;
        self.mesh.awake();
        self.now = (self.clock)();
        self.counters.ticks += 1;
        for completion in completions.drain(..) {
            self.on_completion(completion);
        }
        self.completions = completions;
        self.drain_control();
        self.drain_mesh();
        self.expire();
        self.resume();
        let turn = self.advance_stop();
        self.flush();
        if !self.is_open && self.stopping.is_none() && self.broker.is_open() {
            self.open()?;
        }
        Ok(turn)
    }

    /// The first step of a tick: how long the backend may sleep. Until the next deadline, and not
    /// at all when another shard has said something in between. From here to [`Shard::turn`] other
    /// shards count this one as asleep; a simulation lets time pass between the two.
    pub fn prepare(&mut self) -> Wait {
        if !self.sendable.is_empty()
            || !self.broker.out.is_empty()
            || self.has_stopped()
            || !self.mesh.prepare_sleep()
        {
            return Wait::None;
        }
        let own = [&self.connect_deadlines, &self.close_deadlines, &self.linger_deadlines];
        let deadlines = own.into_iter().filter_map(Deadlines::next);
        let stop = self.stopping.as_ref().map(Stopping::deadline);
        let is_timed = self.is_open && self.stopping.is_none();
        let broker = if is_timed { self.broker.next_deadline() } else { None };
        match deadlines.chain(broker).chain(stop).chain(self.journaling.deadline()).min() {
            Some(at) => Wait::Until(at),
            None => Wait::Forever,
        }
    }

    fn on_completion(&mut self, completion: Completion<B::Socket>) {
        match completion {
            Completion::Received { conn, buf } => self.on_received(conn, buf),
            Completion::Sent { conn, buf, result } => self.on_sent(conn, buf, result),
            Completion::Accepted { listener, socket } => self.on_accepted(listener, socket),
            Completion::RecvEnded { conn, reason } => self.on_receive_ended(conn, &reason),
            Completion::Closed { conn } => self.on_closed(conn),
            Completion::File(done) => self.journaling.on_done(*done),
            Completion::AcceptFailed { error, .. } => {
                self.counters.accept_errors += 1;
                tracing::debug!(%error, "accept failed");
            }
        }
    }

    fn on_received(&mut self, id: ConnId, buf: RecvBuf) {
        if let Some(conn) = self.conns.get_mut(id) {
            let bytes = conn.transport.open(self.backend.bytes(&buf));
            self.counters.bytes_received += bytes.len() as u64;
            match conn.stage {
                Stage::Live => {
                    let copied = receive(
                        &mut self.broker,
                        conn,
                        self.now,
                        id,
                        bytes,
                        &mut self.spare_inputs,
                    );
                    self.counters.copied_from_input += copied as u64;
                    let pause = conn.input.len() > INPUT_BYTES_MARK && conn.paused;
                    self.after_received(id, pause);
                }
                Stage::Opening => {
                    conn.receiving = Receiving::Idle;
                    self.counters.copied_from_input += bytes.len() as u64;
                    conn.input.append(bytes, 0);
                    self.on_opening(id);
                }
                Stage::Flushing | Stage::Lingering | Stage::Closed => {}
            }
        }
        self.backend.release(buf);
    }

    fn after_received(&mut self, id: ConnId, pause: bool) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if pause && conn.receiving == Receiving::Armed {
            conn.receiving = Receiving::Cancelling;
            self.backend.cancel_recv(id);
        }
        // Pure ACKs cost a segment each. Where input comes often enough that the next data will
        // carry the acknowledgement, they are held back, once a second at most: the kernel goes
        // back to immediate ones by itself when the peer makes us wait.
        conn.reads = conn.reads.saturating_add(1);
        if self.now.since(conn.reads_since) >= Duration::from_secs(1) {
            conn.reads = 1;
            conn.reads_since = self.now;
        } else if conn.reads == QUICK_ACK_READS {
            self.backend.set_quick_ack(id, false);
        }
    }

    fn on_receive_ended(&mut self, id: ConnId, reason: &RecvEnd) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.receiving = Receiving::Idle;
        let ended = match reason {
            RecvEnd::Cancelled => None,
            RecvEnd::Eof => Some(Ended::Eof),
            RecvEnd::Error(_) => Some(Ended::Error),
        };
        conn.ended = conn.ended.or(ended);
        match conn.stage {
            Stage::Opening => self.on_opening(id),
            Stage::Live => self.after_input(id),
            Stage::Flushing => self.advance_close(id),
            Stage::Lingering if conn.ended.is_some() => self.close(id),
            Stage::Lingering => self.arm(id, RecvMode::Multi),
            Stage::Closed => {}
        }
    }

    /// After input was handled: reads on, or closes when the peer has ended and all that it sent
    /// is handled.
    pub(super) fn after_input(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !conn.may_parse() || self.stopping.is_some() {
            return;
        }
        match conn.ended {
            None => self.arm(id, RecvMode::Multi),
            // A frame that its end has cut will not be whole any more.
            Some(ended) => {
                let how = match ended {
                    Ended::Eof => Disconnection::Eof,
                    Ended::Error => Disconnection::Error,
                };
                let last = std::mem::take(self.broker.outbox(id));
                self.broker.handle_closed(self.now, id, how);
                self.finish(id, last);
            }
        }
    }

    fn drain_control(&mut self) {
        while let Ok(message) = self.control.try_recv() {
            match message {
                ControlMessage::Shutdown => self.begin_stop(),
                // A control thread that has gone needs no answer.
                ControlMessage::Stats(reply) => drop(reply.send(self.stats())),
            }
        }
    }

    /// A copy of all counters.
    pub fn stats(&self) -> ShardStats {
        let mut counters = self.counters;
        counters.connections = self.conns.len() as u64;
        counters.spill_bytes = self.lanes.spill_bytes() as u64;
        counters.messages_on_disk = self.broker.messages_evicted() as u64;
        counters.copied_to_lanes = self.lanes.copied();
        counters.copied_to_store = self.broker.stored_bytes_copied();
        #[cfg(feature = "count-alloc")]
        {
            let own = crate::alloc::allocations();
            counters.allocations = own.count;
            counters.allocated_bytes = own.bytes;
        }
        ShardStats {
            shard: self.id,
            broker: self.broker.stats().clone(),
            io: self.backend.counters(),
            shard_loop: counters,
            journal: self.journaling.stats(),
        }
    }

    /// The journal's log, if it is on disk and this shard is its host.
    pub fn log(&self) -> Option<&crate::journal::log::Log> {
        self.journaling.log()
    }

    /// Takes what other shards say, each lane in its order, whatever our own spills look like
    /// (SHARDS.md L3). Bounded by what the rings hold.
    fn drain_mesh(&mut self) {
        if self.shards == 1 {
            return;
        }
        for from in self.lanes.peers() {
            for _ in 0..LANE_RING_LEN {
                let Some(mut parcel) = self.mesh.pop(from) else { break };
                self.counters.parcels_in += 1;
                for id in self.lanes.moves_were_taken(from, parcel.moves_taken) {
                    self.retry_opening(id);
                }
                self.on_journal_news(from, &mut parcel);
                self.broker.handle_entries(self.now, from, &parcel.batch);
                for moved in parcel.moves.drain(..) {
                    self.adopt(from, moved);
                }
                parcel.clear();
                self.mesh.recycle(from, parcel);
            }
        }
    }

    fn expire(&mut self) {
        let is_timed = self.is_open && self.stopping.is_none();
        if is_timed && self.broker.next_deadline().is_some_and(|at| at <= self.now) {
            self.broker.handle_timeouts(self.now);
            while let Some(id) = self.broker.out.silent.pop() {
                self.broker.handle_silence(self.now, id, self.backend.input_age(id));
            }
        }
        while let Some(id) = self.connect_deadlines.pop_due(self.now) {
            if self.conns.get_mut(id).is_some_and(|conn| conn.is_awaited()) {
                self.counters.connect_timeouts += 1;
                tracing::debug!(peer = ?self.peer_of(id), "no CONNECT in time");
                self.close(id);
            }
        }
        self.expire_closing();
    }

    fn peer_of(&mut self, id: ConnId) -> Option<std::net::SocketAddr> {
        self.conns.get_mut(id)?.opening.as_ref()?.accepted.peer
    }

    /// Goes on with the connections that the broker had made wait.
    fn resume(&mut self) {
        let mut resumed = std::mem::take(&mut self.broker.out.resume);
        for id in resumed.drain(..) {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            if self.stopping.is_some() {
                continue;
            }
            if conn.stage == Stage::Opening {
                self.retry_opening(id);
                continue;
            }
            if conn.stage != Stage::Live {
                continue;
            }
            conn.paused = false;
            handle_input(&mut self.broker, conn, self.now, id, &mut self.spare_inputs);
            self.after_input(id);
        }
        if self.broker.out.resume.is_empty() {
            self.broker.out.resume = resumed;
        }
        if !self.takeovers.is_empty() {
            self.retry_takeovers();
        }
    }
}

#[cfg(test)]
mod tests;
