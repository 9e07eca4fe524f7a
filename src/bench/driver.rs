//! The loop: connect, subscribe, publish as the pace allows, drain, say goodbye.
//!
//! Peers are numbered publishers first; the number is the slot of the connection. What a tick's
//! completions allow is published after all of them were handled, and leaves in one send per
//! connection.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Error;
use super::pace::Pace;
use super::process::Usage;
use super::record::{Header, Recorder};
use super::report::{self, Report};
use super::workload::{Layout, Plan};
use crate::buf::OutBuf;
use crate::client::{Client, Event, Message, Options, RequestError};
use crate::clock::{self, Time};
use crate::codec::mqtt::{
    QoS, ReasonCode, RetainHandling, SubscribeFilter, SubscriptionOptions, UserProperties,
};
use crate::ids::ConnId;
use crate::io::{Backend, Completion, RecvMode, Wait, socket};
use crate::limits::{
    BENCH_DRAIN, BENCH_GOODBYE, BENCH_OUT_BYTES_MARK, BENCH_SETUP, BENCH_SILENCE, BENCH_STALL,
};

/// Nothing is waited for longer than this, so that an interrupt is noticed.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// Peers that are connected, or subscribed, before their answers are awaited.
const SETUP_BATCH: usize = 64;

/// One connection.
struct Peer {
    client: Client,
    /// None while it is being sent.
    buf: Option<OutBuf>,
    dirty: bool,
}

/// A list of peers or publishers without repetition.
#[derive(Default)]
struct Queue {
    list: Vec<u32>,
    queued: Vec<bool>,
}

impl Queue {
    fn new(len: usize) -> Self {
        Self { list: Vec::with_capacity(len), queued: vec![false; len] }
    }

    fn push(&mut self, index: usize) {
        if !std::mem::replace(&mut self.queued[index], true) {
            self.list.push(index as u32);
        }
    }

    fn pop(&mut self) -> Option<usize> {
        let index = self.list.pop()? as usize;
        self.queued[index] = false;
        Some(index)
    }
}

/// What the events of the clients change.
struct Events {
    layout: Layout,
    qos: QoS,
    run: u32,
    recorder: Recorder,
    pace: Pace,
    /// Publishers that may have something to send.
    ready: Queue,
    connected: usize,
    subscribed: usize,
    last_arrival: Time,
    /// Why the run cannot go on.
    failure: Option<String>,
    ending: bool,
}

impl Events {
    /// `peer` is its number; those from `publishers` on are subscribers.
    fn on_event(&mut self, now: Time, peer: usize, client: &mut Client, event: Event<'_>) {
        let publishers = self.ready.queued.len();
        match event {
            Event::Message(publish) if peer >= publishers => {
                let header = self.recorder.on_message(peer - publishers, publish.payload, now);
                if let Some(Header { publisher, sequence, .. }) = header
                    && self.pace.on_received(publisher as usize, sequence)
                {
                    self.ready.push(publisher as usize);
                }
                self.last_arrival = now;
            }
            Event::Acked { reason, .. } if peer < publishers => {
                if reason.is_error() {
                    self.fail(format!("publisher {peer} was refused: {}", reason.name()));
                }
                self.ready.push(peer);
            }
            Event::Connected { .. } => {
                self.connected += 1;
                if peer >= publishers {
                    self.subscribe(now, peer - publishers, client);
                }
            }
            Event::Subscribed { codes, .. } => {
                self.subscribed += 1;
                if codes != [self.qos as u8] {
                    self.fail(format!("the broker granted {codes:?} for QoS {}", self.qos as u8));
                }
            }
            Event::Disconnected(ending) if !self.ending => {
                let (role, number) = match peer < publishers {
                    true => ("publisher", peer),
                    false => ("subscriber", peer - publishers),
                };
                self.fail(format!("{role} {number}: {ending}"));
            }
            _ => {}
        }
    }

    fn subscribe(&mut self, now: Time, subscriber: usize, client: &mut Client) {
        let filter = self.layout.filter(self.run, subscriber);
        let options = SubscriptionOptions {
            retain_handling: RetainHandling::DoNotSend,
            ..SubscriptionOptions::new(self.qos)
        };
        let filters = [SubscribeFilter { filter: &filter, options }];
        if let Err(error) = client.subscribe(now, &filters, None, UserProperties::default()) {
            self.fail(format!("subscriber {subscriber}: {error}"));
        }
    }

    /// Keeps the first reason.
    fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }
}

/// Where the run is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Measure,
    Drain,
}

/// The two looks at the clock and at both processes between which everything is measured.
#[derive(Clone, Copy)]
pub(super) struct Look {
    pub(super) at: Time,
    pub(super) generator: Usage,
    pub(super) broker: Option<Usage>,
}

/// All of one run.
pub(super) struct Driver<'a, B> {
    plan: &'a Plan,
    interrupted: &'a AtomicBool,
    backend: B,
    completions: Vec<Completion>,
    peers: Vec<Peer>,
    dirty: Vec<u32>,
    topics: Vec<String>,
    /// Payload of the next message.
    payload: Vec<u8>,
    events: Events,
    open_conns: usize,
    stalls: u64,
}

impl<'a, B: Backend> Driver<'a, B> {
    pub(super) fn new(
        plan: &'a Plan,
        backend: B,
        interrupted: &'a AtomicBool,
    ) -> Result<Self, Error> {
        let layout = plan.layout();
        let run = std::process::id();
        let peers = plan.publishers + plan.subscribers;
        let limit = socket::raise_descriptor_limit();
        if (peers as u64).saturating_add(16) > limit.soft {
            let soft = limit.soft;
            return Err(Error::Plan(format!(
                "{peers} connections need more than the {soft} descriptors that a process may open"
            )));
        }
        // The schedule starts with the run; until then the pace is not asked.
        let pace = Pace::new(plan, Time::ZERO, Time::ZERO);
        Ok(Self {
            plan,
            interrupted,
            backend,
            completions: Vec::new(),
            peers: (0..peers).map(|index| new_peer(plan, run, index)).collect(),
            dirty: Vec::new(),
            topics: (0..plan.publishers).map(|p| layout.topic(run, p)).collect(),
            payload: vec![0x5a; plan.payload],
            events: Events {
                layout,
                qos: plan.qos,
                run,
                recorder: Recorder::new(layout, plan.publishers),
                pace,
                ready: Queue::new(plan.publishers),
                connected: 0,
                subscribed: 0,
                last_arrival: Time::ZERO,
                failure: None,
                ending: false,
            },
            open_conns: 0,
            stalls: 0,
        })
    }

    pub(super) fn run(mut self) -> Result<Report, Error> {
        // A late wake-up is a late message: ask for exact ones.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        self.set_up()?;
        let (first, last) = self.measure()?;
        self.say_goodbye()?;
        Ok(report::Input {
            plan: self.plan,
            backend: self.backend.name(),
            first,
            last,
            recorder: &self.events.recorder,
            stalls: self.stalls,
            unsent: self.unsent(),
            interrupted: self.is_interrupted(),
            failure: self.events.failure,
        }
        .into_report())
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Connects all peers, and waits until the subscribers have subscribed.
    fn set_up(&mut self) -> Result<(), Error> {
        let deadline = clock::now() + BENCH_SETUP;
        // Subscribers first: nothing is published before all of them hear.
        for index in (0..self.peers.len()).rev() {
            let addr = self.plan.broker;
            let socket = socket::connect(addr)
                .map_err(|error| Error::Io { doing: format!("connect to {addr}"), error })?;
            let conn = conn_id(index);
            self.backend
                .add_socket(conn, socket)
                .map_err(|error| Error::Io { doing: "watch a connection".into(), error })?;
            self.open_conns += 1;
            self.backend.recv(conn, RecvMode::Multi);
            self.peers[index].client.connect(clock::now());
            self.mark_dirty(index);
            if index % SETUP_BATCH == 0 {
                let connected = self.peers.len() - index;
                self.await_setup(deadline, |events| events.connected == connected)?;
            }
        }
        let subscribers = self.plan.subscribers;
        self.await_setup(deadline, |events| events.subscribed == subscribers)
    }

    fn await_setup(&mut self, deadline: Time, done: impl Fn(&Events) -> bool) -> Result<(), Error> {
        loop {
            if let Some(failure) = self.events.failure.take() {
                return Err(Error::Broker(failure));
            }
            if done(&self.events) {
                return Ok(());
            }
            if self.is_interrupted() {
                return Err(Error::Interrupted);
            }
            if clock::now() >= deadline {
                let Events { connected, subscribed, .. } = self.events;
                return Err(Error::Broker(format!(
                    "after {} s only {connected} of {} clients were connected and {subscribed} of \
                     {} subscribed",
                    BENCH_SETUP.as_secs(),
                    self.peers.len(),
                    self.plan.subscribers
                )));
            }
            self.flush();
            self.tick(Wait::Until(clock::now() + WAIT_MAX))?;
        }
    }

    /// Warm-up, measurement, drain.
    fn measure(&mut self) -> Result<(Look, Look), Error> {
        let start = clock::now();
        let measure_from = start + self.plan.warm_up;
        let measure_to = measure_from + self.plan.duration;
        let mut drain_from = measure_to;
        let mut first = self.look()?;
        let mut last = None;
        let mut phase = Phase::WarmUp;
        self.events.pace = Pace::new(self.plan, start, measure_to);
        self.events.recorder.measured = measure_from..measure_to;
        self.events.last_arrival = start;
        for publisher in 0..self.plan.publishers {
            self.events.ready.push(publisher);
        }
        loop {
            let now = clock::now();
            if phase == Phase::WarmUp && now >= measure_from {
                first = self.look()?;
                self.events.recorder.measuring = true;
                phase = Phase::Measure;
            }
            let over = self.is_interrupted() || self.events.failure.is_some();
            if phase != Phase::Drain && (now >= measure_to || over) {
                last = Some(self.look()?);
                self.events.recorder.measuring = false;
                self.events.pace.stop(now);
                drain_from = now;
                phase = Phase::Drain;
            }
            // What was due before the end and could not leave in time is still owed.
            if phase != Phase::Drain || self.events.pace.is_open() {
                self.publish_due(now);
            }
            if phase != Phase::Drain {
                self.notice_stall(now);
            } else if self.has_drained(now, drain_from) {
                break;
            }
            self.flush();
            let end = match phase {
                Phase::WarmUp => measure_from,
                Phase::Measure => measure_to,
                Phase::Drain => drain_from + BENCH_DRAIN,
            };
            let wait = self.wait(now, end, phase);
            self.tick(wait)?;
        }
        Ok((first, last.expect("invariant: the drain follows the measurement")))
    }

    /// Whether all that is under way has come, or no more is to be expected.
    fn has_drained(&self, now: Time, since: Time) -> bool {
        let quiet = now.since(self.events.last_arrival.max(since)) >= BENCH_SILENCE;
        let late = now >= since + BENCH_DRAIN;
        let all = self.unsent() == 0 && self.events.recorder.all_arrived();
        all || quiet || late || self.events.failure.is_some()
    }

    fn unsent(&self) -> u64 {
        self.events.pace.unsent(self.events.recorder.sent())
    }

    fn look(&self) -> Result<Look, Error> {
        let usage = |pid: u32, of: &str| {
            Usage::of(pid)
                .map_err(|error| Error::Io { doing: format!("look at process {pid}, {of}"), error })
        };
        let broker = self.plan.broker_pid.map(|pid| usage(pid, "the broker")).transpose()?;
        let generator = usage(std::process::id(), "ourselves")?;
        Ok(Look { at: clock::now(), generator, broker })
    }

    /// How long the next poll may wait.
    fn wait(&self, now: Time, end: Time, phase: Phase) -> Wait {
        let latest = end.min(now + WAIT_MAX);
        let due = match phase {
            Phase::Drain => None,
            _ => self.events.pace.next_due(),
        };
        let Some(due) = due else { return Wait::Until(latest) };
        // Where a wait is rounded up, or waking takes longer than what is left, spin instead.
        let spin = match self.backend.name() {
            "epoll" => Duration::from_micros(1100),
            _ => Duration::from_micros(60),
        };
        if due <= now + spin { Wait::None } else { Wait::Until(latest.min(due - spin)) }
    }

    /// In the closed loop a lost message takes its place in the window with it. When nothing has
    /// come for long, all that is under way is given up, and counted as lost if it never comes.
    fn notice_stall(&mut self, now: Time) {
        let quiet = now.since(self.events.last_arrival) >= BENCH_STALL;
        if quiet && !self.events.pace.is_open() {
            if self.events.pace.write_off() {
                self.stalls += 1;
            }
            self.events.last_arrival = now;
            for publisher in 0..self.plan.publishers {
                self.events.ready.push(publisher);
            }
        }
    }

    fn publish_due(&mut self, now: Time) {
        let Events { pace, ready, .. } = &mut self.events;
        pace.advance(now, |publisher| ready.push(publisher));
        while let Some(publisher) = self.events.ready.pop() {
            self.publish(publisher);
        }
    }

    /// Publishes as much as pace, window and buffer allow.
    fn publish(&mut self, publisher: usize) {
        let now = clock::now();
        let client = &mut self.peers[publisher].client;
        let Events { recorder, pace, failure, .. } = &mut self.events;
        let acknowledged = self.plan.qos != QoS::AtMostOnce;
        let mut any = false;
        // Whatever stops it calls for this publisher again: Sent, Acked, the pace.
        while client.out.len() < BENCH_OUT_BYTES_MARK && (!acknowledged || client.may_publish()) {
            let sequence = recorder.next_sequence(publisher);
            let Some(intended) = pace.due(publisher, sequence, now) else { break };
            if sequence == u32::MAX {
                failure.get_or_insert("a publisher has used up its sequence numbers".into());
                break;
            }
            Header { publisher: publisher as u32, sequence, intended }.write(&mut self.payload);
            let message = Message::new(&self.topics[publisher], &self.payload, self.plan.qos);
            match client.publish(now, &message) {
                Ok(_) => {}
                Err(RequestError::WindowFull) => break,
                Err(error) => {
                    failure.get_or_insert_with(|| format!("publisher {publisher}: {error}"));
                    break;
                }
            }
            pace.on_published(publisher, sequence);
            recorder.on_published(publisher, intended, now);
            any = true;
        }
        if any {
            self.mark_dirty(publisher);
        }
    }

    fn mark_dirty(&mut self, peer: usize) {
        if !std::mem::replace(&mut self.peers[peer].dirty, true) {
            self.dirty.push(peer as u32);
        }
    }

    /// One send for each peer with something to say and nothing on its way.
    fn flush(&mut self) {
        for index in self.dirty.drain(..) {
            let peer = &mut self.peers[index as usize];
            peer.dirty = false;
            if peer.client.out.is_empty() {
                continue;
            }
            // Without its buffer it is sending, and the end of that marks it dirty again.
            if let Some(mut buf) = peer.buf.take() {
                std::mem::swap(buf.tail(), &mut peer.client.out);
                self.backend.send(conn_id(index as usize), buf);
            }
        }
    }

    fn tick(&mut self, wait: Wait) -> Result<(), Error> {
        let mut completions = std::mem::take(&mut self.completions);
        self.backend
            .poll(wait, &mut completions)
            .map_err(|error| Error::Io { doing: "wait for the kernel".into(), error })?;
        for completion in completions.drain(..) {
            self.on_completion(completion);
        }
        self.completions = completions;
        Ok(())
    }

    fn on_completion(&mut self, completion: Completion) {
        match completion {
            Completion::Received { conn, buf } => {
                let now = clock::now();
                let index = conn.index as usize;
                let peer = &mut self.peers[index];
                let events = &mut self.events;
                let bytes = self.backend.bytes(&buf);
                peer.client.handle_bytes(now, bytes, &mut |client, event| {
                    events.on_event(now, index, client, event);
                });
                self.backend.release(buf);
                if !self.peers[index].client.out.is_empty() {
                    self.mark_dirty(index);
                }
            }
            Completion::Sent { conn, mut buf, result } => {
                let index = conn.index as usize;
                buf.clear();
                self.peers[index].buf = Some(buf);
                match result {
                    Ok(()) => self.mark_dirty(index),
                    Err(_) => self.on_network_end(index),
                }
                if index < self.plan.publishers {
                    self.events.ready.push(index);
                }
            }
            Completion::RecvEnded { conn, .. } => self.on_network_end(conn.index as usize),
            Completion::Closed { .. } => self.open_conns -= 1,
            Completion::Accepted { .. } | Completion::AcceptFailed { .. } => {}
        }
    }

    fn on_network_end(&mut self, index: usize) {
        let now = clock::now();
        let events = &mut self.events;
        self.peers[index].client.handle_closed(&mut |client, event| {
            events.on_event(now, index, client, event);
        });
    }

    /// DISCONNECT from all, and the ends of their connections awaited for a while.
    fn say_goodbye(&mut self) -> Result<(), Error> {
        self.events.ending = true;
        let deadline = clock::now() + BENCH_GOODBYE;
        for index in 0..self.peers.len() {
            let now = clock::now();
            self.peers[index].client.disconnect(now, ReasonCode::NORMAL_DISCONNECTION);
            self.mark_dirty(index);
        }
        self.flush();
        while self.peers.iter().any(|peer| peer.buf.is_none()) && clock::now() < deadline {
            self.tick(Wait::Until(deadline.min(clock::now() + WAIT_MAX)))?;
            self.flush();
        }
        for index in 0..self.peers.len() {
            self.backend.close(conn_id(index));
        }
        while self.open_conns > 0 && clock::now() < deadline {
            self.tick(Wait::Until(deadline.min(clock::now() + WAIT_MAX)))?;
        }
        Ok(())
    }
}

fn new_peer(plan: &Plan, run: u32, index: usize) -> Peer {
    let mut options = Options::new(plan.version, format!("bench-{run}-{index}"));
    // A closed window may be silent for long; nobody has to ping because of it.
    options.keep_alive = 0;
    options.in_flight_max = plan.in_flight;
    Peer { client: Client::new(options), buf: Some(OutBuf::new()), dirty: false }
}

fn conn_id(index: usize) -> ConnId {
    ConnId { index: index as u32, generation: 0 }
}
