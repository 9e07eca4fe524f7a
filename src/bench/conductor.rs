//! The conductor: starts the threads, leads them from phase to phase, looks at the clock and at both
//! processes, and puts together what they found.
//!
//! It waits for words of the threads and looks at their boards; it is never in the way of a message.
//! Every phase has an end in time, whatever the broker does.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::Error;
use super::process::Usage;
use super::progress::{Moment, Progress};
use super::record::histogram;
use super::report::{Input, Stage};
use super::run::{Environment, IntervalLog, RunFolder, Subject, Summary};
use super::shared::{Phase, Shared};
use super::worker::{Found, Interval, Word, Worker};
use super::workload::{Load, Plan, Visit, Workload};
use crate::clock::{self, Time};
use crate::io::probe::{self, Engine};
use crate::io::{Epoll, PoolSize, Settings, Uring, socket};
use crate::limits::{BENCH_CLEAN_UP, BENCH_SET_UP_STEP, BENCH_SILENCE};

/// How long at most until an interrupt or the end of a phase is noticed.
const LOOK_MAX: Duration = Duration::from_millis(50);
/// The same, where something short is awaited.
const LOOK_SHORT: Duration = Duration::from_millis(2);
/// Descriptors that are not connections.
const OTHER_DESCRIPTORS: u64 = 64;

/// What comes of a run besides its summary.
#[derive(Debug, Default)]
pub struct Options {
    /// Name of the scenario.
    pub scenario: String,
    /// Where the run is kept.
    pub folder: Option<RunFolder>,
    /// Whether a line on stderr shows how it goes.
    pub progress: bool,
}

/// The two processes at one time.
#[derive(Clone, Copy)]
pub(super) struct Look {
    pub(super) at: Time,
    pub(super) generator: Usage,
    pub(super) broker: Option<Usage>,
}

impl Look {
    fn take(plan: &Plan) -> Result<Self, Error> {
        let usage = |pid: u32, of: &str| {
            Usage::of(pid)
                .map_err(|error| Error::Io { doing: format!("look at process {pid}, {of}"), error })
        };
        let broker = plan.broker_pid.map(|pid| usage(pid, "the broker")).transpose()?;
        let generator = usage(std::process::id(), "ourselves")?;
        Ok(Self { at: clock::now(), generator, broker })
    }
}

/// Runs the plan. `interrupted` ends it early, with a summary of what there was.
pub(super) fn run(
    plan: &Plan,
    options: Options,
    interrupted: &AtomicBool,
) -> Result<Summary, Error> {
    let limit = socket::raise_descriptor_limit().soft;
    if (plan.clients() as u64).saturating_add(OTHER_DESCRIPTORS) > limit {
        return Err(Error::Plan(format!(
            "{} connections need more than the {limit} descriptors that a process may open",
            plan.clients()
        )));
    }
    if !plan.cpus.is_empty() {
        // Here as well: the other CPUs are the broker's.
        pin(&plan.cpus)?;
    }
    // Falling back needs no word here: the report names what was used.
    let engine = probe::select(plan.io).map_err(Error::Plan)?.engine;
    let backend = match engine {
        Engine::Uring => "uring",
        Engine::Epoll => "epoll",
    };
    let environment = Environment::collect(&Subject {
        broker_address: plan.broker.to_string(),
        broker_pid: plan.broker_pid,
        generator_io: backend.into(),
    });
    if let Some(folder) = &options.folder {
        folder.write_run_toml(&plan.settings.to_toml())?;
        folder.write_environment(&environment)?;
    }
    let before = Look::take(plan)?;
    let shared = Shared::new(plan, clock::now());
    let (said, words) = channel();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for thread in 0..plan.threads {
            let (said, shared) = (said.clone(), &shared);
            let name = format!("bench-{thread}");
            let spawned = std::thread::Builder::new()
                .name(name)
                .spawn_scoped(scope, move || work(plan, shared, thread, engine, said));
            threads.push(spawned.map_err(|error| {
                shared.set_phase(Phase::Goodbye);
                Error::Io { doing: "start a thread".into(), error }
            })?);
        }
        drop(said);
        let mut conductor = Conductor {
            plan,
            shared: &shared,
            interrupted,
            words,
            progress: Progress::new(options.progress, plan),
            log: IntervalSums::new(plan, options.folder.is_some()),
            failure: None,
            was_interrupted: false,
        };
        let course = conductor.lead(before);
        shared.set_phase(Phase::Goodbye);
        let mut found = Vec::new();
        for thread in threads {
            found.push(thread.join().expect("invariant: a thread of the generator panics never")?);
        }
        conductor.hear_all();
        conductor.progress.end();
        let course = course?;
        conductor.finish(course, &found, &environment, options)
    })
}

/// Keeps the calling thread on `cpus`.
///
/// # Errors
/// When this process may not run there.
pub fn pin(cpus: &[usize]) -> Result<(), Error> {
    let mut set = rustix::thread::CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    rustix::thread::sched_setaffinity(None, &set)
        .map_err(|error| Error::Plan(format!("cpus: CPU {cpus:?} cannot be used: {error}")))
}

/// A thread of the generator.
fn work(
    plan: &Plan,
    shared: &Shared,
    thread: usize,
    engine: Engine,
    said: Sender<Word>,
) -> Result<Found, Error> {
    if let Some(cpu) = plan.cpus.get(thread % plan.cpus.len().max(1))
        && let Err(error) = pin(&[*cpu])
    {
        let _ = said.send(Word::Failed(error.to_string()));
        return Err(error);
    }
    let settings = Settings {
        uring_pool: PoolSize { count: 512, bytes: 16 * 1024 },
        epoll_pool: PoolSize { count: 64, bytes: 64 * 1024 },
        ..Settings::default()
    };
    let failed = said.clone();
    let refused = |backend: &str, error: std::io::Error| {
        let _ = failed.send(Word::Failed(format!("use {backend}: {error}")));
        Error::Io { doing: format!("use {backend}"), error }
    };
    match engine {
        Engine::Uring => {
            let backend = Uring::new(&settings).map_err(|error| refused("io_uring", error))?;
            Worker::new(plan, shared, thread, backend, said).run()
        }
        Engine::Epoll => {
            let backend = Epoll::new(&settings).map_err(|error| refused("epoll", error))?;
            Worker::new(plan, shared, thread, backend, said).run()
        }
    }
}

/// What was seen on the way.
struct Course {
    /// When the measurement began, since 1970.
    started: Duration,
    set_up: [Look; 2],
    /// Warm-up apart.
    load: Option<[Look; 2]>,
    replay: Option<[Look; 2]>,
}

struct Conductor<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    interrupted: &'a AtomicBool,
    words: Receiver<Word>,
    progress: Progress,
    log: IntervalSums,
    failure: Option<String>,
    was_interrupted: bool,
}

impl Conductor<'_> {
    fn lead(&mut self, before: Look) -> Result<Course, Error> {
        self.set_up()?;
        let up = Look::take(self.plan)?;
        let mut course =
            Course { started: clock::unix_time(), set_up: [before, up], load: None, replay: None };
        let plan = self.plan;
        if plan.workload == Workload::Connect {
            return Ok(course);
        }
        // Without a warm-up all of the load belongs to the measurement.
        let start_look = plan.warm_up.is_zero().then_some(Look::take(plan)?);
        let start = clock::now() + Duration::from_millis(2);
        let from = start + plan.warm_up;
        self.shared.set_times(start, from, from + plan.duration);
        course.started = clock::unix_time() + plan.warm_up;
        self.shared.set_phase(Phase::Load);
        course.load = Some(match plan.is_bounded() {
            true => self.store(up)?,
            false => self.measure(start_look, from, from + plan.duration)?,
        });
        if plan.is_bounded() {
            if !self.is_over() {
                course.replay = Some(self.replay()?);
            }
            self.clean_up();
        } else {
            self.drain();
        }
        Ok(course)
    }

    /// Waits for a word, at most until `until`, and handles all there are.
    fn hear(&mut self, until: Time, most: Duration) {
        let wait = until.since(clock::now()).min(most);
        match self.words.recv_timeout(wait) {
            Ok(word) => self.on_word(word),
            // All threads have ended, which they say by what they return.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        self.hear_all();
        self.was_interrupted |= self.interrupted.load(Ordering::Relaxed);
    }

    fn hear_all(&mut self) {
        while let Ok(word) = self.words.try_recv() {
            self.on_word(word);
        }
    }

    fn on_word(&mut self, word: Word) {
        match word {
            Word::Failed(failure) => _ = self.failure.get_or_insert(failure),
            Word::Interval(interval) => {
                if let Some(second) = self.log.add(*interval) {
                    self.progress.on_second(&second);
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        self.failure.is_some() || self.was_interrupted
    }

    /// How many clients have done what `phase` asks for.
    fn done(&self, phase: Phase) -> u64 {
        let words = self.shared.boards.iter().map(|board| board.ready.load(Ordering::Acquire));
        words.filter(|word| word >> 32 == phase as u64).map(|word| word & 0xffff_ffff).sum()
    }

    fn show(&mut self, phase: Phase, end: Time) {
        let now = clock::now();
        if !self.progress.is_due(now) {
            return;
        }
        let moment = Moment {
            phase,
            left: end.since(now),
            done: self.done(phase),
            sent: self.shared.sum(|board| &board.sent),
            arrived: self.shared.sum(|board| &board.arrived),
            missing: self.shared.sum(|board| &board.missing),
        };
        self.progress.show(now, &moment);
    }

    /// Waits until everybody is connected and subscribed. As long as it goes on, it may.
    fn set_up(&mut self) -> Result<(), Error> {
        let visits = self.plan.visit() == Visit::Session;
        let wanted = (self.plan.clients() - if visits { self.plan.visitors } else { 0 }) as u64;
        let ramp = self.plan.settings.ramp.map_or(0.0, |ramp| wanted as f64 / ramp);
        let (mut last, mut last_at) = (0, clock::now());
        loop {
            let done = self.done(Phase::SetUp);
            if let Some(failure) = self.failure.take() {
                return Err(Error::Broker(failure));
            }
            if done >= wanted {
                return Ok(());
            }
            if self.was_interrupted {
                return Err(Error::Interrupted);
            }
            let now = clock::now();
            if done > last {
                (last, last_at) = (done, now);
            }
            let slowest = Duration::from_secs_f64(ramp / wanted.max(1) as f64 * 2.0);
            if now.since(last_at) > BENCH_SET_UP_STEP + slowest {
                return Err(Error::Broker(format!(
                    "only {done} of {wanted} clients are connected and subscribed, and none more \
                     for {} s",
                    BENCH_SET_UP_STEP.as_secs()
                )));
            }
            self.show(Phase::SetUp, now);
            self.hear(Time::MAX, LOOK_SHORT);
        }
    }

    /// Warm-up and measurement.
    fn measure(&mut self, first: Option<Look>, from: Time, to: Time) -> Result<[Look; 2], Error> {
        while clock::now() < from && !self.is_over() {
            self.show(Phase::Load, to);
            self.hear(from, LOOK_MAX);
        }
        let first = first.map_or_else(|| Look::take(self.plan), Ok)?;
        // With a number of messages it ends when all of them have come.
        let all = self.plan.settings.messages.map(|_| self.plan.messages());
        let (all, look) =
            (all.unwrap_or(u64::MAX), if all.is_some() { LOOK_SHORT } else { LOOK_MAX });
        let has_all = |shared: &Shared| {
            let receivers = self.plan.layout().receivers();
            all != u64::MAX && shared.sum(|board| &board.arrived) >= all * receivers
        };
        while clock::now() < to && !self.is_over() && !has_all(self.shared) {
            self.show(Phase::Load, to);
            self.hear(to, look);
        }
        let now = clock::now();
        if now < to {
            self.shared.end_at(now);
        }
        Ok([first, Look::take(self.plan)?])
    }

    /// Waits for what is under way, or until no more is to be expected.
    fn drain(&mut self) {
        self.shared.set_phase(Phase::Drain);
        let since = clock::now();
        let receivers = self.plan.layout().receivers();
        while self.failure.is_none() {
            let now = clock::now();
            let arrived = self.shared.sum(|board| &board.arrived);
            let all = self.shared.sum(|board| &board.sent) * receivers;
            let quiet = now.since(self.shared.last_arrival().max(since)) >= BENCH_SILENCE;
            let late = now >= since + self.plan.drain;
            if quiet || late || self.shared.all_settled() && arrived >= all {
                return;
            }
            self.show(Phase::Drain, since + self.plan.drain);
            self.hear(Time::MAX, LOOK_SHORT);
        }
    }

    /// Waits until the broker has accepted all that it is to store.
    fn store(&mut self, first: Look) -> Result<[Look; 2], Error> {
        let all = self.plan.messages();
        self.progress.expect(all);
        let since = clock::now();
        loop {
            let stored = self.shared.sum(|board| &board.stored);
            if stored >= all || self.is_over() {
                break;
            }
            let now = clock::now();
            if now.since(self.shared.last_arrival().max(since)) >= BENCH_SILENCE {
                self.failure = Some(format!(
                    "the broker has accepted {stored} of {all} messages, and none more for {} s",
                    BENCH_SILENCE.as_secs()
                ));
                break;
            }
            self.show(Phase::Load, Time::MAX);
            self.hear(Time::MAX, LOOK_SHORT);
        }
        self.shared.end_at(clock::now());
        Ok([first, Look::take(self.plan)?])
    }

    /// Waits until all that was stored has come.
    fn replay(&mut self) -> Result<[Look; 2], Error> {
        let first = Look::take(self.plan)?;
        let all = self.shared.sum(|board| &board.sent) * self.plan.layout().receivers();
        self.progress.expect(all);
        self.shared.set_phase(Phase::Replay);
        let since = clock::now();
        let mut seen = 0;
        let mut end = first;
        while !self.is_over() {
            let arrived = self.shared.sum(|board| &board.arrived);
            if arrived > seen {
                seen = arrived;
                // The last look that saw something new: silence is not part of the replay.
                if arrived >= all {
                    return Ok([first, Look::take(self.plan)?]);
                }
                end = Look::take(self.plan)?;
            }
            let now = clock::now();
            if now.since(self.shared.last_arrival().max(since)) >= BENCH_SILENCE {
                break;
            }
            self.show(Phase::Replay, Time::MAX);
            self.hear(Time::MAX, LOOK_SHORT);
        }
        Ok([first, end])
    }

    /// Takes what was stored out of the broker again.
    fn clean_up(&mut self) {
        self.shared.set_phase(Phase::CleanUp);
        let wanted = match self.plan.workload {
            Workload::Retained => self.plan.publishers,
            _ => self.plan.subscribers,
        };
        let deadline = clock::now() + BENCH_CLEAN_UP;
        while self.done(Phase::CleanUp) < wanted as u64 && clock::now() < deadline {
            self.hear(deadline, LOOK_SHORT);
        }
    }

    fn finish(
        mut self,
        course: Course,
        found: &[Found],
        environment: &Environment,
        options: Options,
    ) -> Result<Summary, Error> {
        let plan = self.plan;
        let mut connect_latency = histogram();
        for found in found {
            add(&mut connect_latency, &found.connect_latency);
        }
        let seconds = self.log.take_all();
        let headline = match plan.workload {
            Workload::Connect => connect_latency.clone(),
            _ if plan.headline_is_visits() => sum(&seconds, |second| &second.visit_latency),
            _ => sum(&seconds, |second| &second.latency),
        };
        let lateness = sum(&seconds, |second| &second.lateness);
        let stage = |looks: [Look; 2]| Stage::new(plan, looks);
        let open = matches!(plan.load, Load::Open { .. }) && plan.publishers > 0
            || matches!(plan.visits, Load::Open { .. }) && plan.visit() != Visit::Stay;
        let summary = Input {
            plan,
            scenario: options.scenario,
            environment,
            started: course.started,
            found,
            set_up: stage(course.set_up),
            load: course.load.map(stage),
            replay: course.replay.map(stage),
            stored: self.shared.sum(|board| &board.stored),
            headline: &headline,
            visit_latency: &sum(&seconds, |second| &second.visit_latency),
            connect_latency: &connect_latency,
            lateness: open.then_some(&lateness),
            interrupted: self.was_interrupted,
            failure: self.failure.take(),
        }
        .into_summary();
        if let Some(folder) = options.folder {
            use super::run::Series;
            folder.write_percentiles(Series::Latency, &headline)?;
            let mut log = folder.interval_log(Series::Latency, course.started)?;
            if plan.workload == Workload::Connect {
                let [from, to] = course.set_up;
                log.write(Duration::ZERO, to.at.since(from.at), &headline)?;
            }
            let visits = plan.headline_is_visits();
            write_log(&mut log, &seconds, |second| match visits {
                true => &second.visit_latency,
                false => &second.latency,
            })?;
            if open {
                folder.write_percentiles(Series::Lateness, &lateness)?;
                let mut log = folder.interval_log(Series::Lateness, course.started)?;
                write_log(&mut log, &seconds, |second| &second.lateness)?;
            }
            folder.write_summary(&summary)?;
        }
        Ok(summary)
    }
}

fn write_log(
    log: &mut IntervalLog,
    seconds: &[Interval],
    series: impl Fn(&Interval) -> &Histogram<u64>,
) -> Result<(), Error> {
    for second in seconds {
        let from = Duration::from_secs(second.index as u64);
        log.write(from, second.length, series(second))?;
    }
    Ok(())
}

/// The intervals of all threads, added up.
struct IntervalSums {
    threads: usize,
    /// Whether all of them are kept; else only their sum.
    keep: bool,
    /// Those that not all threads have given yet, with how many have.
    open: Vec<(Interval, usize)>,
    done: Vec<Interval>,
}

impl IntervalSums {
    fn new(plan: &Plan, keep: bool) -> Self {
        Self { threads: plan.threads, keep, open: Vec::new(), done: Vec::new() }
    }

    /// The whole second, when this was its last part.
    fn add(&mut self, interval: Interval) -> Option<Interval> {
        let threads = self.threads;
        let at = self.open.iter().position(|(open, _)| open.index == interval.index);
        let at = match at {
            None => {
                self.open.push((interval, 1));
                self.open.len() - 1
            }
            Some(at) => {
                let (open, count) = &mut self.open[at];
                open.add(&interval);
                *count += 1;
                at
            }
        };
        (self.open[at].1 == threads).then(|| {
            let (second, _) = self.open.swap_remove(at);
            let copy = second.clone();
            self.close(second);
            copy
        })
    }

    fn close(&mut self, second: Interval) {
        match self.done.last_mut().filter(|_| !self.keep) {
            Some(sum) => sum.add(&second),
            None => self.done.push(second),
        }
    }

    fn take_all(&mut self) -> Vec<Interval> {
        let mut open = std::mem::take(&mut self.open);
        open.sort_unstable_by_key(|(interval, _)| interval.index);
        for (interval, _) in open {
            self.close(interval);
        }
        std::mem::take(&mut self.done)
    }
}

/// Adds `more`, which has the same bounds.
pub(super) fn add(to: &mut Histogram<u64>, more: &Histogram<u64>) {
    to.add(more).expect("invariant: all histograms have the same bounds");
}

fn sum(seconds: &[Interval], series: impl Fn(&Interval) -> &Histogram<u64>) -> Histogram<u64> {
    let mut all = histogram();
    for second in seconds {
        add(&mut all, series(second));
    }
    all
}
