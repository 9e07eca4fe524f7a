//! What the threads of a run say to each other: the phase, a board for each thread, and who has
//! which clients.
//!
//! A board is written by its thread alone, with plain stores, once a tick; the others read it. So
//! nothing is shared per message, also where a publisher and its subscribers are on different
//! threads.
//!
//! Invariant *sleep*: who waits in its backend with its board's `sleeps` set has seen everything
//! that was on the other boards before; who changes something that it waits for looks at `sleeps`
//! afterwards and wakes it. Both sides are sequentially consistent, so one of them sees the other.
#![forbid(unsafe_code)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use super::workload::{Placement, Plan};
use crate::clock::Time;
use crate::io::Waker;

/// Where a run is. In this order, some left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Phase {
    /// Everybody connects and subscribes.
    SetUp,
    /// Publishers publish and visitors visit: warm-up and measurement.
    Load,
    /// What is under way is awaited.
    Drain,
    /// What was stored is delivered.
    Replay,
    /// What was left in the broker is taken out of it.
    CleanUp,
    /// Everybody disconnects.
    Goodbye,
}

impl Phase {
    const ALL: [Self; 6] =
        [Self::SetUp, Self::Load, Self::Drain, Self::Replay, Self::CleanUp, Self::Goodbye];
}

/// What one thread lets the others know.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Board {
    /// Clients that have done what the phase asks for.
    pub(super) ready: AtomicU64,
    /// Messages published.
    pub(super) sent: AtomicU64,
    /// Of them, accepted by the broker; only where messages are stored.
    pub(super) stored: AtomicU64,
    /// Different messages that came.
    pub(super) arrived: AtomicU64,
    /// Messages that came out of their turn or never, so far.
    pub(super) missing: AtomicU64,
    /// When something came last, in nanoseconds.
    pub(super) last_arrival: AtomicU64,
    /// Whether all that was to be begun has begun.
    pub(super) settled: AtomicBool,
    /// Changes whenever `completed` does.
    pub(super) version: AtomicU64,
    /// Messages that came here, by publisher; empty when nobody else needs to know.
    pub(super) completed: Vec<AtomicU64>,
    /// Whether it waits in its backend.
    pub(super) sleeps: AtomicBool,
}

/// What all threads of a run share.
#[derive(Debug)]
pub(super) struct Shared {
    phase: AtomicU8,
    start: AtomicU64,
    from: AtomicU64,
    to: AtomicU64,
    pub(super) boards: Vec<Board>,
    wakers: Mutex<Vec<Option<Waker>>>,
    /// When connecting began.
    pub(super) set_up_at: Time,
    /// Whether a publisher needs to know what came on another thread.
    pub(super) crosses: bool,
}

impl Shared {
    pub(super) fn new(plan: &Plan, set_up_at: Time) -> Self {
        let closed = matches!(plan.load, super::workload::Load::Closed { .. });
        let apart = plan.settings.placement == Some(Placement::Apart);
        let local = plan.layout().pattern() == super::workload::Pattern::OneToOne && !apart;
        let crosses = closed && plan.threads > 1 && !local && !plan.is_bounded();
        let board = || Board {
            completed: match crosses {
                true => (0..plan.publishers).map(|_| AtomicU64::new(0)).collect(),
                false => Vec::new(),
            },
            ..Board::default()
        };
        Self {
            phase: AtomicU8::new(Phase::SetUp as u8),
            start: AtomicU64::new(0),
            from: AtomicU64::new(0),
            to: AtomicU64::new(u64::MAX),
            boards: (0..plan.threads).map(|_| board()).collect(),
            wakers: Mutex::new(vec![None; plan.threads]),
            set_up_at,
            crosses,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// Everybody goes on to `phase`.
    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
        self.wake_all();
    }

    /// Says when the load begins, and what of it is measured. Before [`Phase::Load`].
    pub(super) fn set_times(&self, start: Time, from: Time, to: Time) {
        self.start.store(start.as_nanos(), Ordering::Release);
        self.from.store(from.as_nanos(), Ordering::Release);
        self.to.store(to.as_nanos(), Ordering::Release);
    }

    /// The measurement ends earlier.
    pub(super) fn end_at(&self, to: Time) {
        self.to.store(to.as_nanos(), Ordering::Release);
        self.wake_all();
    }

    /// When the load begins, when its measurement begins, and when it ends.
    pub(super) fn times(&self) -> (Time, Time, Time) {
        let time = |word: &AtomicU64| Time::from_nanos(word.load(Ordering::Acquire));
        (time(&self.start), time(&self.from), time(&self.to))
    }

    pub(super) fn set_waker(&self, thread: usize, waker: Waker) {
        if let Ok(mut wakers) = self.wakers.lock() {
            wakers[thread] = Some(waker);
        }
    }

    pub(super) fn waker(&self, thread: usize) -> Option<Waker> {
        self.wakers.lock().ok()?.get(thread)?.clone()
    }

    fn wake_all(&self) {
        if let Ok(wakers) = self.wakers.lock() {
            wakers.iter().flatten().for_each(Waker::wake);
        }
    }

    /// The sum of one word over all boards.
    pub(super) fn sum(&self, word: impl Fn(&Board) -> &AtomicU64) -> u64 {
        self.boards.iter().map(|board| word(board).load(Ordering::Acquire)).sum()
    }

    /// When something came last, to anybody.
    pub(super) fn last_arrival(&self) -> Time {
        let times = self.boards.iter().map(|board| board.last_arrival.load(Ordering::Acquire));
        Time::from_nanos(times.max().unwrap_or(0))
    }

    pub(super) fn all_settled(&self) -> bool {
        self.boards.iter().all(|board| board.settled.load(Ordering::Acquire))
    }
}

/// What a client is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Publishes.
    Publisher,
    /// Hears.
    Subscriber,
    /// Publishes requests and hears their answers.
    Requester,
    /// Answers.
    Responder,
    /// Comes, stays, goes.
    Visitor,
}

/// One client of a thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    pub(super) role: Role,
    /// In its group, over the whole run.
    pub(super) number: u32,
    /// Among those of its group on this thread.
    pub(super) local: u32,
    /// Over all clients: when it connects.
    pub(super) order: u32,
}

/// Which clients each thread has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seating {
    threads: usize,
    /// Threads of publishers, and the first of those of subscribers with how many there are.
    publishing: usize,
    hearing: (usize, usize),
}

impl Seating {
    pub(super) fn new(plan: &Plan) -> Self {
        let threads = plan.threads;
        let apart = plan.settings.placement == Some(Placement::Apart)
            && threads > 1
            && plan.responders == 0;
        let half = threads / 2;
        match apart {
            true => Self { threads, publishing: half, hearing: (half, threads - half) },
            false => Self { threads, publishing: threads, hearing: (0, threads) },
        }
    }

    /// The publishers of a thread, ascending.
    pub(super) fn publishers(&self, thread: usize, all: usize) -> Vec<u32> {
        numbers(thread, 0, self.publishing, all)
    }

    /// The subscribers of a thread, ascending.
    pub(super) fn subscribers(&self, thread: usize, all: usize) -> Vec<u32> {
        numbers(thread, self.hearing.0, self.hearing.1, all)
    }

    /// Responders or visitors of a thread, ascending.
    pub(super) fn others(&self, thread: usize, all: usize) -> Vec<u32> {
        numbers(thread, 0, self.threads, all)
    }

    /// A publisher's thread, and its place there.
    pub(super) fn publisher(&self, number: usize) -> (usize, usize) {
        (number % self.publishing, number / self.publishing)
    }

    /// All clients of a thread; those who hear connect first.
    pub(super) fn seats(&self, plan: &Plan, thread: usize) -> Vec<Seat> {
        let both = plan.workload == super::workload::Workload::RequestResponse;
        let publishing = if both { Role::Requester } else { Role::Publisher };
        let hearing = if both { 0 } else { plan.subscribers };
        let groups = [
            (Role::Responder, self.others(thread, plan.responders), plan.responders),
            (Role::Subscriber, self.subscribers(thread, hearing), hearing),
            (publishing, self.publishers(thread, plan.publishers), plan.publishers),
            (Role::Visitor, self.others(thread, plan.visitors), plan.visitors),
        ];
        let mut seats = Vec::new();
        let mut before = 0;
        for (role, numbers, all) in groups {
            seats.extend(numbers.into_iter().zip(0..).map(|(number, local)| Seat {
                role,
                number,
                local,
                order: before + number,
            }));
            before += all as u32;
        }
        seats
    }
}

/// Every `step`th of `all`, for a thread of the `step` threads from `first` on.
fn numbers(thread: usize, first: usize, step: usize, all: usize) -> Vec<u32> {
    match thread.checked_sub(first) {
        Some(offset) if offset < step => (offset as u32..all as u32).step_by(step).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::workload::tests::plan;
    use super::*;

    #[test]
    fn everybody_has_one_seat_and_pairs_share_a_thread() {
        for (text, apart) in [
            ("workload = \"pairs\"\npairs = 7\nthreads = 3", false),
            ("workload = \"fan-out\"\npublishers = 5\nsubscribers = 9\nthreads = 3", false),
            ("workload = \"fan-in\"\npublishers = 5\nthreads = 4\nplacement = \"apart\"", true),
            ("workload = \"request-response\"\nsubscribers = 3\nthreads = 2", false),
            ("workload = \"storm\"\nclients = 5\npairs = 2\nthreads = 2", false),
        ] {
            let plan = plan(text).unwrap();
            let seating = Seating::new(&plan);
            let mut orders = Vec::new();
            for thread in 0..plan.threads {
                let seats = seating.seats(&plan, thread);
                for seat in &seats {
                    if matches!(seat.role, Role::Publisher | Role::Requester) {
                        let place = seating.publisher(seat.number as usize);
                        assert_eq!(place, (thread, seat.local as usize));
                    }
                }
                let has = |role| seats.iter().any(|seat| seat.role == role);
                if apart {
                    assert!(!(has(Role::Publisher) && has(Role::Subscriber)), "{text}");
                }
                orders.extend(seats.iter().map(|seat| seat.order));
            }
            orders.sort_unstable();
            assert_eq!(orders, (0..plan.clients() as u32).collect::<Vec<_>>(), "{text}");
        }
    }

    #[test]
    fn threads_report_to_each_other_only_where_it_is_needed() {
        let crosses = |text: &str| Shared::new(&plan(text).unwrap(), Time::ZERO).crosses;
        assert!(!crosses("workload = \"pairs\"\nthreads = 2"));
        assert!(crosses("workload = \"pairs\"\nthreads = 2\nplacement = \"apart\""));
        assert!(crosses("workload = \"fan-out\"\nthreads = 2"));
        assert!(!crosses("workload = \"fan-out\"\nthreads = 2\nrate = 5"));
        assert!(!crosses("workload = \"fan-out\""));
    }
}
