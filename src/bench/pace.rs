//! When an actor may begin its next operation: a window in the closed loop, a schedule in the open
//! one.
//!
//! An actor is a publisher, or a client that connects or pings; each thread has a [`Pace`] for the
//! actors that it owns, which know their numbers in the whole run.
//!
//! Invariants: in the closed loop at most `window` operations of an actor are not complete (or
//! written off); in the open loop the intended time of an operation depends on nothing but the
//! seed, the actor and the operation's number, whatever the broker does.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::workload::{Load, Schedule};
use crate::clock::Time;

/// What a pace is made of.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) load: Load,
    /// Actors of the whole run.
    pub(super) actors: usize,
    /// Those of this thread, by number, ascending.
    pub(super) numbers: Vec<u32>,
    /// How many completions an operation has.
    pub(super) receivers: u64,
    /// Operations of each actor, at most.
    pub(super) limit: u32,
    pub(super) seed: u64,
}

/// When each actor of this thread begins an operation. Actors are named by their place in
/// [`Setup::numbers`].
#[derive(Debug)]
pub(super) struct Pace {
    start: Time,
    /// Nothing becomes due from here on.
    end: Time,
    limit: u32,
    receivers: u64,
    /// Operations begun, by actor: the number of the next one.
    begun: Vec<u32>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Closed {
        /// Completions that may be missing.
        window: i64,
        /// Completions that are missing.
        missing: Vec<i64>,
    },
    Regular(Regular),
    Poisson(Poisson),
}

/// Equal distances, round by round; in a burst a round is all at once.
#[derive(Debug)]
struct Regular {
    numbers: Vec<u32>,
    actors: u64,
    /// Nanoseconds between two operations of the whole run.
    period: f64,
    burst: bool,
    /// The first operation, counted over the actors here, that has not been called for.
    cursor: u64,
}

/// Each actor by itself, with exponential distances: all of them together are a Poisson process
/// again, of the sum of their rates.
#[derive(Debug)]
struct Poisson {
    /// Nanoseconds between two operations of one actor, on average.
    mean: f64,
    next: Vec<Time>,
    random: Vec<Random>,
    /// When to call whom. An actor whose time has come is not in it until [`Pace::rearm`].
    calendar: BinaryHeap<Reverse<(Time, u32)>>,
    in_calendar: Vec<bool>,
}

impl Pace {
    pub(super) fn new(setup: Setup, start: Time, end: Time) -> Self {
        let Setup { load, actors, numbers, receivers, limit, seed } = setup;
        let count = numbers.len();
        let kind = match load {
            Load::Closed { window } => Kind::Closed {
                // Without receivers nothing is ever missing.
                window: i64::from(window) * i64::try_from(receivers.max(1)).unwrap_or(1 << 31),
                missing: vec![0; count],
            },
            Load::Open { rate, schedule: Schedule::Poisson } => {
                let mean = 1e9 * actors as f64 / rate;
                let mut random: Vec<_> =
                    numbers.iter().map(|n| Random::new(seed, u64::from(*n))).collect();
                let next: Vec<_> = random.iter_mut().map(|r| start + r.exponential(mean)).collect();
                let calendar = next.iter().zip(0..).map(|(at, actor)| Reverse((*at, actor)));
                let calendar = calendar.collect();
                Kind::Poisson(Poisson {
                    mean,
                    next,
                    random,
                    calendar,
                    in_calendar: vec![true; count],
                })
            }
            Load::Open { rate, schedule } => Kind::Regular(Regular {
                numbers,
                actors: actors as u64,
                period: 1e9 / rate,
                burst: schedule == Schedule::Burst,
                cursor: 0,
            }),
        };
        Self { start, end, limit, receivers, begun: vec![0; count], kind }
    }

    /// How many actors are here.
    pub(super) fn len(&self) -> usize {
        self.begun.len()
    }

    /// How many operations the actor has begun.
    pub(super) fn begun(&self, actor: usize) -> u32 {
        self.begun[actor]
    }

    /// The intended time of the actor's next operation, if it may begin now.
    #[inline]
    pub(super) fn due(&self, actor: usize, now: Time) -> Option<Time> {
        if self.begun[actor] >= self.limit {
            return None;
        }
        match &self.kind {
            Kind::Closed { window, missing } => {
                (now < self.end && missing[actor] < *window).then_some(now)
            }
            _ => {
                let intended = self.intended(actor);
                (intended <= now && intended < self.end).then_some(intended)
            }
        }
    }

    /// When the actor's next operation is to begin; the end for one that has no schedule.
    fn intended(&self, actor: usize) -> Time {
        match &self.kind {
            Kind::Closed { .. } => self.end,
            Kind::Regular(regular) => regular.time(self.start, actor, self.begun[actor].into()),
            Kind::Poisson(poisson) => poisson.next[actor],
        }
    }

    /// The operation that was due begins; tells its number.
    #[inline]
    pub(super) fn begin(&mut self, actor: usize) -> u32 {
        let number = self.begun[actor];
        self.begun[actor] = number + 1;
        match &mut self.kind {
            Kind::Closed { missing, .. } => missing[actor] += self.receivers as i64,
            Kind::Regular(_) => {}
            Kind::Poisson(Poisson { mean, next, random, .. }) => {
                next[actor] = next[actor] + random[actor].exponential(*mean);
            }
        }
        number
    }

    /// So many of the completions that the actor waits for have come.
    #[inline]
    pub(super) fn complete(&mut self, actor: usize, count: u64) {
        if let Kind::Closed { missing, .. } = &mut self.kind {
            missing[actor] -= count as i64;
        }
    }

    /// Nothing moves any more: what is under way is given up, so that the run can go on. True when
    /// there was anything.
    pub(super) fn write_off(&mut self) -> bool {
        let Kind::Closed { missing, .. } = &mut self.kind else { return false };
        let any = missing.iter().any(|missing| *missing > 0);
        missing.iter_mut().for_each(|missing| *missing = (*missing).min(0));
        any
    }

    /// Calls `ready` for the actors whose operations have become due; more than once is possible.
    pub(super) fn advance(&mut self, now: Time, mut ready: impl FnMut(usize)) {
        match &mut self.kind {
            Kind::Closed { .. } => {}
            Kind::Regular(regular) => regular.advance(self.start, now, ready),
            Kind::Poisson(Poisson { calendar, in_calendar, .. }) => {
                while let Some(Reverse((at, actor))) = calendar.peek().copied() {
                    if at > now {
                        return;
                    }
                    calendar.pop();
                    in_calendar[actor as usize] = false;
                    ready(actor as usize);
                }
            }
        }
    }

    /// The actor has begun all that was due, or cannot go on by itself.
    pub(super) fn rearm(&mut self, actor: usize, now: Time) {
        if let Kind::Poisson(Poisson { next, calendar, in_calendar, .. }) = &mut self.kind
            && next[actor] > now
            && !std::mem::replace(&mut in_calendar[actor], true)
        {
            calendar.push(Reverse((next[actor], actor as u32)));
        }
    }

    /// When [`Pace::advance`] has something to do next; `None` when only completions decide it.
    pub(super) fn next_due(&self) -> Option<Time> {
        let due = match &self.kind {
            Kind::Closed { .. } => None,
            Kind::Regular(regular) => {
                (!self.begun.is_empty()).then(|| regular.time_at(self.start, regular.cursor))
            }
            Kind::Poisson(poisson) => poisson.calendar.peek().map(|Reverse((at, _))| *at),
        };
        due.filter(|at| *at < self.end)
    }

    /// The end is at `end`, perhaps earlier than was known.
    pub(super) fn set_end(&mut self, end: Time) {
        self.end = end;
    }

    /// Whether nothing is owed: all that was to begin before the end has begun.
    pub(super) fn is_settled(&self) -> bool {
        let owes = |actor| self.begun[actor] < self.limit && self.intended(actor) < self.end;
        !(0..self.len()).any(owes)
    }

    /// How many operations were to begin before the end and never did. The pace is over.
    pub(super) fn count_unsent(&mut self) -> u64 {
        if matches!(self.kind, Kind::Closed { .. }) {
            return 0;
        }
        let mut unsent = 0;
        for actor in 0..self.len() {
            while self.begun[actor] < self.limit && self.intended(actor) < self.end {
                self.begin(actor);
                unsent += 1;
            }
        }
        unsent
    }

    pub(super) fn is_open(&self) -> bool {
        !matches!(self.kind, Kind::Closed { .. })
    }
}

impl Regular {
    #[inline]
    fn time(&self, start: Time, actor: usize, operation: u64) -> Time {
        let within = if self.burst { 0 } else { u64::from(self.numbers[actor]) };
        let index = operation * self.actors + within;
        start + Duration::from_nanos((index as f64 * self.period) as u64)
    }

    /// The same, of an operation counted over the actors here.
    fn time_at(&self, start: Time, cursor: u64) -> Time {
        let here = self.numbers.len() as u64;
        self.time(start, (cursor % here) as usize, cursor / here)
    }

    fn advance(&mut self, start: Time, now: Time, mut ready: impl FnMut(usize)) {
        let here = self.numbers.len() as u64;
        if here == 0 {
            return;
        }
        let rounds = now.since(start).as_nanos() as f64 / (self.period * self.actors as f64);
        if rounds > ((self.cursor / here) + 2) as f64 {
            // After a stall: everybody is due, more than once.
            (0..here).for_each(|actor| ready(actor as usize));
            self.cursor = rounds as u64 * here;
        }
        while self.time_at(start, self.cursor) <= now {
            ready((self.cursor % here) as usize);
            self.cursor += 1;
        }
    }
}

/// Numbers from a seed (splitmix64): the same run again, wherever it runs.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Self(mix(seed ^ mix(stream.wrapping_add(1))))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// An exponentially distributed time.
    fn exponential(&mut self, mean: f64) -> Duration {
        // From (0, 1]: the logarithm is finite.
        let uniform = ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        Duration::from_nanos((-uniform.ln() * mean) as u64)
    }
}

/// A number that looks random, made of another.
pub(super) const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: Time = Time::from_nanos(1_000_000);

    fn at(nanos: u64) -> Time {
        START + Duration::from_nanos(nanos)
    }

    fn pace(load: Load, actors: usize, numbers: &[u32], end: Time) -> Pace {
        let numbers = numbers.to_vec();
        let setup = Setup { load, actors, numbers, receivers: 1, limit: u32::MAX, seed: 7 };
        Pace::new(setup, START, end)
    }

    fn open(rate: f64, schedule: Schedule) -> Load {
        Load::Open { rate, schedule }
    }

    #[test]
    fn a_window_counts_what_all_receivers_have() {
        let load = Load::Closed { window: 2 };
        let setup = Setup { load, actors: 1, numbers: vec![0], receivers: 3, limit: 100, seed: 0 };
        let mut pace = Pace::new(setup, START, Time::MAX);
        for _ in 0..2 {
            assert_eq!(pace.due(0, START), Some(START));
            pace.begin(0);
        }
        assert_eq!(pace.due(0, START), None);
        pace.complete(0, 1);
        assert!(pace.due(0, START).is_some(), "a receiver has one more");
        pace.begin(0);
        pace.complete(0, 2);
        assert_eq!(pace.due(0, START), None, "six are missing");
        assert!(pace.write_off() && !pace.write_off());
        assert!(pace.due(0, START).is_some());
        pace.set_end(at(5));
        assert_eq!(pace.due(0, at(5)), None, "over");
        assert_eq!((pace.is_settled(), pace.count_unsent()), (true, 0));
    }

    #[test]
    fn the_schedule_does_not_wait() {
        let mut pace = pace(open(1e6, Schedule::Constant), 3, &[0, 1, 2], at(1_001_500));
        let mut called = Vec::new();
        pace.advance(START, |p| called.push(p));
        assert_eq!(called, [0]);
        assert_eq!(pace.next_due(), Some(at(1_000)));
        pace.advance(at(2_500), |p| called.push(p));
        assert_eq!(called, [0, 1, 2]);
        pace.begin(0);
        assert_eq!(pace.due(0, at(2_999)), None);
        assert_eq!(pace.due(0, at(9_000)), Some(at(3_000)), "late, with its intended time");
        called.clear();
        pace.advance(at(1_000_500), |p| called.push(p));
        assert_eq!(called[..3], [0, 1, 2]);
        assert!(called.len() < 10, "a stall costs a round, not one call per message: {called:?}");
        assert_eq!(pace.next_due(), Some(at(1_001_000)));
        for _ in 0..333 {
            pace.begin(0);
        }
        assert_eq!(pace.due(0, at(9_000_000)), None, "behind the end");
        assert!(!pace.is_settled());
        // 1002 messages in all, of which 334 have begun.
        assert_eq!((pace.count_unsent(), pace.is_settled()), (668, true));
    }

    #[test]
    fn a_burst_is_all_at_once() {
        let mut pace = pace(open(3.0, Schedule::Burst), 3, &[0, 2], Time::MAX);
        let mut called = Vec::new();
        pace.advance(START, |p| called.push(p));
        assert_eq!(called, [0, 1]);
        assert_eq!(pace.next_due(), Some(at(1_000_000_000)), "each once a second");
    }

    #[test]
    fn a_schedule_is_the_same_however_it_is_spread_over_threads() {
        for schedule in [Schedule::Constant, Schedule::Poisson, Schedule::Burst] {
            let times = |parts: &[&[u32]]| {
                let mut all = Vec::new();
                for numbers in parts {
                    let mut pace = pace(open(1e3, schedule), 4, numbers, Time::MAX);
                    for actor in 0..numbers.len() {
                        for _ in 0..50 {
                            let due = pace.due(actor, Time::from_nanos(u64::MAX - 1)).unwrap();
                            all.push((numbers[actor], pace.begin(actor), due));
                        }
                    }
                }
                all.sort_unstable();
                all
            };
            assert_eq!(times(&[&[0, 1, 2, 3]]), times(&[&[0, 2], &[1, 3]]), "{schedule:?}");
        }
    }

    #[test]
    fn poisson_has_its_rate_and_its_spread() {
        let mut pace = pace(open(1e6, Schedule::Poisson), 1, &[0], Time::MAX);
        let mut last = START;
        let (mut sum, mut squares) = (0.0, 0.0);
        const COUNT: u32 = 100_000;
        for _ in 0..COUNT {
            let due = pace.due(0, Time::from_nanos(u64::MAX - 1)).unwrap();
            pace.begin(0);
            let distance = due.since(last).as_nanos() as f64;
            sum += distance;
            squares += distance * distance;
            last = due;
        }
        let mean = sum / f64::from(COUNT);
        let variance = squares / f64::from(COUNT) - mean * mean;
        assert!((980.0..1020.0).contains(&mean), "{mean}");
        assert!((0.96..1.04).contains(&(variance / (mean * mean))), "{variance}");
    }

    proptest! {
        /// Whatever the calls' times are, each actor is called before it is late for good.
        #[test]
        fn nobody_is_forgotten(
            steps in prop::collection::vec(1u64..4_000_000, 1..50),
            kind in 0usize..3,
        ) {
            let schedule = [Schedule::Constant, Schedule::Poisson, Schedule::Burst][kind];
            let mut pace = pace(open(2e3, schedule), 5, &[1, 3, 4], Time::MAX);
            let mut now = START;
            for step in steps {
                now = now + Duration::from_nanos(step);
                let mut called = Vec::new();
                pace.advance(now, |actor| called.push(actor));
                for actor in called {
                    while pace.due(actor, now).is_some() {
                        pace.begin(actor);
                    }
                    pace.rearm(actor, now);
                }
                for actor in 0..3 {
                    prop_assert_eq!(pace.due(actor, now), None);
                }
                prop_assert!(pace.next_due().is_some_and(|due| due > now));
            }
        }
    }
}
