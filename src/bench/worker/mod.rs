//! One thread of the generator: its clients, its backend, its loop.
//!
//! It follows the phases that the conductor sets, and otherwise goes on by itself: what a tick's
//! completions allow is published after all of them were handled, and leaves in one send per
//! connection. `actors` is what leaves, `links` what becomes of connections, `margin` how early it
//! wakes for what is due.
#![forbid(unsafe_code)]

mod actors;
mod links;
mod margin;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::Error;
use super::conductor::add;
use super::peer::{After, Barrier, Link, Peer};
use super::record::{Receiver, histogram, nanos_between};
use super::shared::{Phase, Role, Seating, Shared};
use super::state::{State, Todo};
use super::workload::{Plan, Workload};
use crate::clock::{self, Time};
use crate::io::{Completion, Kernel, Wait, Waker};
use crate::limits::{BENCH_GOODBYE, BENCH_STALL};
use actors::Source;
use margin::Margin;

/// Nothing is waited for longer than this, so that a missed word does no harm.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// One second of the interval log.
const INTERVAL: Duration = Duration::from_secs(1);

/// What a thread says while it runs.
#[derive(Debug)]
pub(super) enum Word {
    /// A second is over.
    Interval(Box<Interval>),
    /// The run cannot go on.
    Failed(String),
}

/// What happened in one second.
#[derive(Clone, Debug)]
pub(super) struct Interval {
    /// Which, from 0.
    pub(super) index: usize,
    /// The last one is shorter.
    pub(super) length: Duration,
    pub(super) latency: Histogram<u64>,
    pub(super) visit_latency: Histogram<u64>,
    /// Intended send to actual send.
    pub(super) lateness: Histogram<u64>,
}

impl Interval {
    /// Adds the same second of another thread.
    pub(super) fn add(&mut self, other: &Self) {
        self.length = self.length.max(other.length);
        add(&mut self.latency, &other.latency);
        add(&mut self.visit_latency, &other.visit_latency);
        add(&mut self.lateness, &other.lateness);
    }
}

/// What a thread found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) receiver: Receiver,
    /// Messages sent, by publisher: its number and how many.
    pub(super) sent: Vec<(u32, u32)>,
    /// Messages sent while measuring.
    pub(super) published: u64,
    /// Visits that ended while measuring.
    pub(super) visited: u64,
    pub(super) connect_latency: Histogram<u64>,
    pub(super) stalls: u64,
    pub(super) unsent: u64,
    pub(super) slow_dismissed: u64,
    /// Part of a CPU that the thread used while measuring.
    pub(super) cpu_share: f64,
}

/// One thread of the generator.
pub(super) struct Worker<'a, B> {
    plan: &'a Plan,
    shared: &'a Shared,
    thread: usize,
    words: Sender<Word>,
    backend: B,
    completions: Vec<Completion>,
    peers: Vec<Peer>,
    /// Where publishers and visitors begin in `peers`.
    publishers_at: usize,
    visitors_at: usize,
    sources: Vec<Source>,
    /// The bytes of all payloads.
    filler: Vec<u8>,
    dirty: Vec<u32>,
    state: State<'a>,
    to_connect: VecDeque<u32>,
    /// Slow subscribers that rest, with the end of their rest.
    resting: VecDeque<(Time, u32)>,
    open_conns: usize,
    margin: Margin,
    /// Of what is published in this tick, when it was to be.
    sent_now: Vec<Time>,
    lateness: Histogram<u64>,
    sent: u64,
    published: u64,
    stalls: u64,
    /// What other threads had said of our publishers, by thread and publisher.
    heard: Vec<(u64, Vec<u64>)>,
    next_interval: Time,
    interval: usize,
    /// When it was first looked at while measuring, with the CPU time then, and the last.
    cpu: Option<[(Time, Duration); 2]>,
    settled_at: Time,
    goodbye_until: Time,
    said_failed: bool,
}

impl<'a, B: Kernel> Worker<'a, B> {
    pub(super) fn new(
        plan: &'a Plan,
        shared: &'a Shared,
        thread: usize,
        backend: B,
        words: Sender<Word>,
    ) -> Self {
        let seating = Seating::new(plan);
        let seats = seating.seats(plan, thread);
        let peers: Vec<_> = seats.into_iter().map(|seat| Peer::new(plan, seat)).collect();
        let first = |roles: [Role; 2]| peers.iter().position(|p| roles.contains(&p.seat.role));
        let publishers_at = first([Role::Publisher, Role::Requester]).unwrap_or(0);
        let visitors_at = first([Role::Visitor; 2]).unwrap_or(0);
        let state = State::new(plan, thread, shared.crosses);
        let margin = Margin::new(backend.name());
        let sources = seating.publishers(thread, plan.publishers);
        let sources: Vec<_> = sources.into_iter().map(|p| Source::new(plan, p as usize)).collect();
        let here = sources.len();
        let to_connect = (0..peers.len() as u32)
            .filter(|index| peers[*index as usize].is_in_set_up(plan))
            .collect();
        Self {
            plan,
            shared,
            thread,
            words,
            backend,
            completions: Vec::new(),
            peers,
            publishers_at,
            visitors_at,
            sources,
            filler: vec![0x5a; plan.payload.iter().copied().max().unwrap_or(0)],
            dirty: Vec::new(),
            state,
            to_connect,
            resting: VecDeque::new(),
            open_conns: 0,
            margin,
            sent_now: Vec::new(),
            lateness: histogram(),
            sent: 0,
            published: 0,
            stalls: 0,
            heard: vec![(0, vec![0; if shared.crosses { here } else { 0 }]); plan.threads],
            next_interval: Time::MAX,
            interval: 0,
            cpu: None,
            settled_at: Time::ZERO,
            goodbye_until: Time::MAX,
            said_failed: false,
        }
    }

    pub(super) fn run(mut self) -> Result<Found, Error> {
        // A late wake-up is a late message: ask for exact ones.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        self.shared.set_waker(self.thread, self.backend.waker());
        loop {
            self.follow_phase();
            let now = clock::now();
            match self.state.phase {
                Phase::SetUp | Phase::Replay => self.connect_due(now),
                Phase::Load | Phase::Drain => self.work(now),
                Phase::CleanUp => {
                    self.connect_due(now);
                    self.clear_stored(now);
                }
                Phase::Goodbye => {}
            }
            if self.state.phase == Phase::Goodbye && self.has_left(now) {
                break;
            }
            self.resume_slow(now);
            self.do_todo();
            self.flush();
            self.note_lateness();
            self.report(now);
            let wait = self.wait(now);
            self.tick(wait)?;
        }
        Ok(self.into_found())
    }

    fn into_found(mut self) -> Found {
        let numbers = Seating::new(self.plan).publishers(self.thread, self.plan.publishers);
        let sent = (0..numbers.len()).map(|p| (numbers[p], self.state.pace.begun(p))).collect();
        let cpu_share = self.cpu.map_or(0.0, |[(from, before), (to, after)]| {
            let elapsed = to.since(from).as_secs_f64();
            if elapsed > 0.0 { after.saturating_sub(before).as_secs_f64() / elapsed } else { 0.0 }
        });
        Found {
            sent,
            published: self.published,
            visited: self.state.visited,
            unsent: self.state.pace.count_unsent() + self.state.visits.count_unsent(),
            stalls: self.stalls,
            slow_dismissed: self.state.slow_dismissed,
            connect_latency: self.state.connect_latency,
            receiver: self.state.receiver,
            cpu_share,
        }
    }

    // ---- phases ----

    fn follow_phase(&mut self) {
        let phase = self.shared.phase();
        if phase == self.state.phase {
            return;
        }
        let now = clock::now();
        self.state.phase = phase;
        self.state.done = 0;
        match phase {
            Phase::SetUp | Phase::Drain => {}
            Phase::Load => {
                let (start, from, to) = self.shared.times();
                self.state.start(start, from, to);
                self.next_interval = from + INTERVAL;
            }
            Phase::Replay => self.begin_replay(now),
            Phase::CleanUp => self.begin_clean_up(now),
            Phase::Goodbye => self.begin_goodbye(now),
        }
    }

    /// Subscribers subscribe, or come back to their sessions.
    fn begin_replay(&mut self, now: Time) {
        self.state.last_arrival = now;
        for index in 0..self.peers.len() {
            if self.peers[index].seat.role != Role::Subscriber {
                continue;
            }
            self.peers[index].life.since = Some(now);
            if self.plan.workload == Workload::Offline {
                self.peers[index].life.up = false;
                self.to_connect.push_back(index as u32);
                continue;
            }
            let Peer { seat, life, client, .. } = &mut self.peers[index];
            let filters = self.plan.layout().filters(seat.number as usize);
            self.state.subscribe(now, (*seat, life), client, &filters);
            self.mark_dirty(index);
        }
    }

    /// Retained messages are removed, sessions ended.
    fn begin_clean_up(&mut self, now: Time) {
        for index in 0..self.peers.len() {
            let peer = &mut self.peers[index];
            match (self.plan.workload, peer.seat.role) {
                (Workload::Offline, Role::Subscriber) => {
                    peer.life.after = After::EndSession;
                    match peer.link {
                        Link::Open => self.state.todo.push((index as u32, Todo::Leave)),
                        Link::Down => self.on_closed(index, now),
                        Link::Closing => {}
                    }
                }
                (Workload::Retained, Role::Publisher) => peer.life.barrier = Barrier::None,
                _ => {}
            }
        }
    }

    fn begin_goodbye(&mut self, now: Time) {
        self.goodbye_until = now + BENCH_GOODBYE;
        for index in 0..self.peers.len() {
            self.peers[index].life.after = After::Nothing;
            if self.peers[index].link == Link::Open {
                self.state.todo.push((index as u32, Todo::Leave));
            }
        }
    }

    fn has_left(&mut self, now: Time) -> bool {
        if now < self.goodbye_until {
            return self.open_conns == 0;
        }
        // Who does not read keeps nobody.
        for index in 0..self.peers.len() {
            if self.peers[index].link == Link::Open {
                self.close(index);
            }
        }
        now >= self.goodbye_until + BENCH_GOODBYE || self.open_conns == 0
    }

    /// Messages and visits that are due.
    fn work(&mut self, now: Time) {
        let (start, _, to) = self.shared.times();
        if now < start {
            return;
        }
        self.state.pace.set_end(to);
        self.state.visits.set_end(to);
        if self.state.receiver.measured.end > to {
            self.state.receiver.measured.end = to;
        }
        self.hear_others();
        let State { pace, visits, ready, visitors_ready, .. } = &mut self.state;
        pace.advance(now, |publisher| ready.push(publisher));
        visits.advance(now, |visitor| visitors_ready.push(visitor));
        while let Some(publisher) = self.state.ready.pop() {
            self.publish(publisher);
        }
        while let Some(visitor) = self.state.visitors_ready.pop() {
            self.visit(visitor);
        }
        self.notice_stall(now);
    }

    /// In the closed loop a lost message takes its place in the window with it. When nothing has
    /// come for long, all that is under way is given up, and counted as lost if it never comes.
    fn notice_stall(&mut self, now: Time) {
        let quiet = now.since(self.state.last_arrival) >= BENCH_STALL;
        let waits = self.state.phase == Phase::Load && !self.plan.is_bounded();
        if quiet && waits && !self.state.pace.is_open() {
            if self.state.pace.write_off() {
                self.stalls += 1;
            }
            self.state.last_arrival = now;
            self.state.ready.push_all();
        }
    }

    /// What has come on other threads to subscribers of our publishers.
    fn hear_others(&mut self) {
        if !self.shared.crosses {
            return;
        }
        let seating = Seating::new(self.plan);
        for (thread, board) in self.shared.boards.iter().enumerate() {
            let version = board.version.load(Ordering::SeqCst);
            let (seen, counts) = &mut self.heard[thread];
            if thread == self.thread || std::mem::replace(seen, version) == version {
                continue;
            }
            let numbers = seating.publishers(self.thread, self.plan.publishers);
            for (place, number) in numbers.into_iter().enumerate() {
                let count = board.completed[number as usize].load(Ordering::Acquire);
                let news = count - std::mem::replace(&mut counts[place], count);
                if news > 0 {
                    self.state.pace.complete(place, news);
                    self.state.ready.push(place);
                    self.state.last_arrival = clock::now();
                }
            }
        }
    }

    /// What was published in this tick is with the kernel, or as good as.
    fn note_lateness(&mut self) {
        if self.sent_now.is_empty() {
            return;
        }
        let now = clock::now();
        for intended in self.sent_now.drain(..) {
            if self.state.receiver.measured.contains(&intended) {
                self.lateness.saturating_record(nanos_between(intended, now));
            }
        }
    }

    // ---- what others see ----

    fn report(&mut self, now: Time) {
        let board = &self.shared.boards[self.thread];
        let state = &mut self.state;
        let ready = (state.phase as u64) << 32 | state.done;
        board.ready.store(ready, Ordering::Release);
        board.sent.store(self.sent, Ordering::Release);
        board.stored.store(state.stored, Ordering::Release);
        board.arrived.store(state.receiver.arrived, Ordering::Release);
        board.last_arrival.store(state.last_arrival.as_nanos(), Ordering::Release);
        if state.phase == Phase::Drain && now >= self.settled_at {
            let settled = state.pace.is_settled() && state.visits.is_settled();
            board.settled.store(settled, Ordering::Release);
            self.settled_at = now + Duration::from_millis(5);
        }
        if self.shared.crosses {
            self.tell_others();
        }
        let (_, from, to) = self.shared.times();
        if self.state.phase == Phase::Load && now >= from && (now <= to || self.cpu.is_none()) {
            self.note_cpu(now);
        }
        if now >= self.next_interval {
            if let Some(missing) = self.state.receiver.missing() {
                board.missing.store(missing, Ordering::Release);
            }
            self.end_interval(INTERVAL);
            self.next_interval = self.next_interval + INTERVAL;
        }
        if self.state.phase == Phase::Goodbye && self.next_interval != Time::MAX {
            let left = self.next_interval.since(now);
            self.end_interval(INTERVAL.saturating_sub(left));
            self.next_interval = Time::MAX;
        }
        if let Some(failure) = self.state.failure.as_ref().filter(|_| !self.said_failed) {
            self.said_failed = true;
            // Nobody listens any more: then it is of no interest.
            let _ = self.words.send(Word::Failed(failure.clone()));
        }
    }

    fn note_cpu(&mut self, now: Time) {
        // Often enough that the last look is near the end, seldom enough to cost nothing.
        if self.cpu.is_some_and(|[_, (last, _)]| now.since(last) < Duration::from_millis(5)) {
            return;
        }
        let look = (now, clock::thread_cpu());
        self.cpu = Some([self.cpu.map_or(look, |[first, _]| first), look]);
    }

    fn tell_others(&mut self) {
        let board = &self.shared.boards[self.thread];
        let mut any = false;
        while let Some(publisher) = self.state.elsewhere_changed.pop() {
            let count = self.state.elsewhere[publisher];
            board.completed[publisher].store(count, Ordering::Release);
            any = true;
        }
        if !any {
            return;
        }
        let version = board.version.load(Ordering::Relaxed) + 1;
        board.version.store(version, Ordering::SeqCst);
        for (thread, other) in self.shared.boards.iter().enumerate() {
            if thread != self.thread
                && other.sleeps.load(Ordering::SeqCst)
                && let Some(waker) = self.shared.waker(thread)
            {
                other.sleeps.store(false, Ordering::SeqCst);
                Waker::wake(&waker);
            }
        }
    }

    fn end_interval(&mut self, length: Duration) {
        let state = &mut self.state;
        let interval = Interval {
            index: self.interval,
            length,
            latency: std::mem::replace(&mut state.receiver.latency, histogram()),
            visit_latency: std::mem::replace(&mut state.visit_latency, histogram()),
            lateness: std::mem::replace(&mut self.lateness, histogram()),
        };
        self.interval += 1;
        let _ = self.words.send(Word::Interval(Box::new(interval)));
    }

    // ---- the kernel ----

    /// How long the next poll may wait.
    fn wait(&self, now: Time) -> Wait {
        let mut until = now + WAIT_MAX;
        let sooner = |until: Time, at: Option<Time>| at.map_or(until, |at| at.min(until));
        let mut due = None;
        match self.state.phase {
            Phase::Load if now < self.shared.times().0 => due = Some(self.shared.times().0),
            Phase::Load | Phase::Drain => {
                due = self.state.pace.next_due();
                due = match (due, self.state.visits.next_due()) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
                until = until.min(self.next_interval);
            }
            Phase::SetUp => {
                if let (Some(index), Some(ramp)) =
                    (self.to_connect.front(), self.plan.settings.ramp)
                {
                    let order = f64::from(self.peers[*index as usize].seat.order);
                    due = Some(self.shared.set_up_at + Duration::from_secs_f64(order / ramp));
                }
            }
            _ => {}
        }
        until = sooner(until, self.resting.front().map(|(at, _)| *at));
        let Some(due) = due else { return Wait::Until(until) };
        let margin = self.margin.get();
        if due <= now + margin { Wait::None } else { Wait::Until(until.min(due - margin)) }
    }

    fn tick(&mut self, mut wait: Wait) -> Result<(), Error> {
        let board = &self.shared.boards[self.thread];
        if self.shared.crosses && wait != Wait::None {
            board.sleeps.store(true, Ordering::SeqCst);
            let heard = self.heard.iter().map(|(version, _)| *version).enumerate();
            let news = heard.into_iter().any(|(thread, version)| {
                let board = &self.shared.boards[thread];
                thread != self.thread && board.version.load(Ordering::SeqCst) != version
            });
            if news {
                wait = Wait::None;
            }
        }
        let mut completions = std::mem::take(&mut self.completions);
        self.backend
            .poll(wait, &mut completions)
            .map_err(|error| Error::Io { doing: "wait for the kernel".into(), error })?;
        if let Wait::Until(until) = wait
            && completions.is_empty()
        {
            self.margin.on_late(clock::now().since(until));
        }
        if self.shared.crosses {
            board.sleeps.store(false, Ordering::SeqCst);
        }
        // What came may be of a phase that another thread has begun already.
        self.follow_phase();
        for completion in completions.drain(..) {
            self.on_completion(completion);
        }
        self.completions = completions;
        Ok(())
    }
}
