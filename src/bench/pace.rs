//! When a publisher may send its next message: a window in the closed loop, a schedule in the open
//! one.
//!
//! Invariants: in the closed loop message *n* of a publisher is sent only when message *n - window*
//! is with all its receivers (or was written off); in the open loop the intended time of a message
//! depends on nothing but its number.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::workload::{Load, Plan};
use crate::clock::Time;

/// One place in a window.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    sequence: u32,
    /// Receivers that do not have it yet; 0 is a free place.
    missing: u32,
}

/// When each publisher sends.
#[derive(Debug)]
pub(super) enum Pace {
    Closed {
        window: u32,
        receivers: u32,
        /// `window` places for each publisher.
        slots: Vec<Slot>,
    },
    Open {
        publishers: u64,
        start: Time,
        /// Nothing becomes due from here on.
        end: Time,
        /// Nanoseconds between two messages of the whole run.
        period: f64,
        /// The first message, counted over all publishers, that has not been called for.
        cursor: u64,
    },
}

impl Pace {
    pub(super) fn new(plan: &Plan, start: Time, end: Time) -> Self {
        match plan.load {
            Load::Closed { window } => Self::Closed {
                window,
                receivers: plan.layout().receivers(),
                slots: vec![Slot::default(); window as usize * plan.publishers],
            },
            Load::Open { rate } => {
                let publishers = plan.publishers as u64;
                Self::Open { publishers, start, end, period: 1e9 / rate, cursor: 0 }
            }
        }
    }

    /// The intended time of the publisher's message `sequence`, if it may be sent now.
    pub(super) fn due(&self, publisher: usize, sequence: u32, now: Time) -> Option<Time> {
        match self {
            Self::Closed { window, slots, .. } => {
                let slot = &slots[slot_index(*window, publisher, sequence)];
                (slot.missing == 0).then_some(now)
            }
            Self::Open { publishers, start, end, period, .. } => {
                let index = u64::from(sequence) * publishers + publisher as u64;
                let intended = time_of(*start, *period, index);
                (intended <= now && intended < *end).then_some(intended)
            }
        }
    }

    /// The message was sent.
    pub(super) fn on_published(&mut self, publisher: usize, sequence: u32) {
        if let Self::Closed { window, receivers, slots } = self {
            slots[slot_index(*window, publisher, sequence)] =
                Slot { sequence, missing: *receivers };
        }
    }

    /// One receiver has it, for the first time. True when the publisher may send on.
    pub(super) fn on_received(&mut self, publisher: usize, sequence: u32) -> bool {
        let Self::Closed { window, slots, .. } = self else { return false };
        let slot = &mut slots[slot_index(*window, publisher, sequence)];
        if slot.sequence != sequence || slot.missing == 0 {
            return false;
        }
        slot.missing -= 1;
        slot.missing == 0
    }

    /// Nothing moves any more: what is under way is given up, so that the run can go on. True when
    /// there was anything.
    pub(super) fn write_off(&mut self) -> bool {
        let Self::Closed { slots, .. } = self else { return false };
        let mut any = false;
        for slot in slots {
            any |= slot.missing > 0;
            slot.missing = 0;
        }
        any
    }

    /// Calls `ready` for the publishers of messages that have become due; more than once is
    /// possible.
    pub(super) fn advance(&mut self, now: Time, mut ready: impl FnMut(usize)) {
        let Self::Open { publishers, start, period, cursor, .. } = self else { return };
        let behind = now.since(*start).as_nanos() as f64 / *period;
        if behind > (*cursor + *publishers) as f64 {
            // After a stall: everybody is due, more than once.
            (0..*publishers).for_each(|publisher| ready(publisher as usize));
            *cursor = behind as u64;
        }
        while time_of(*start, *period, *cursor) <= now {
            ready((*cursor % *publishers) as usize);
            *cursor += 1;
        }
    }

    /// When [`Pace::advance`] has something to do next; `None` when only receivers decide it.
    pub(super) fn next_due(&self) -> Option<Time> {
        match self {
            Self::Closed { .. } => None,
            Self::Open { start, period, cursor, .. } => Some(time_of(*start, *period, *cursor)),
        }
    }

    /// The end comes early.
    pub(super) fn stop(&mut self, now: Time) {
        if let Self::Open { end, .. } = self {
            *end = now.min(*end);
        }
    }

    /// Messages that were to be sent before the end, of which so many were: how many were not.
    pub(super) fn unsent(&self, sent: u64) -> u64 {
        let Self::Open { start, end, period, .. } = self else { return 0 };
        let mut due = (end.since(*start).as_nanos() as f64 / period) as u64;
        while time_of(*start, *period, due) < *end {
            due += 1;
        }
        due.saturating_sub(sent)
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }
}

fn slot_index(window: u32, publisher: usize, sequence: u32) -> usize {
    publisher * window as usize + (sequence % window) as usize
}

fn time_of(start: Time, period: f64, index: u64) -> Time {
    start + Duration::from_nanos((index as f64 * period) as u64)
}

#[cfg(test)]
mod tests {
    use super::super::workload::Workload;
    use super::super::workload::tests::plan;
    use super::*;

    const START: Time = Time::from_nanos(1_000_000);

    fn at(nanos: u64) -> Time {
        START + Duration::from_nanos(nanos)
    }

    #[test]
    fn a_window_opens_when_all_receivers_have_the_oldest() {
        let mut pace = Pace::new(&plan(Workload::FanOut, 1, 2), START, Time::MAX);
        let may = |pace: &Pace, sequence| pace.due(0, sequence, START).is_some();
        for sequence in 0..4 {
            assert!(may(&pace, sequence));
            pace.on_published(0, sequence);
        }
        assert!(!may(&pace, 4));
        assert!(!pace.on_received(0, 1) && pace.on_received(0, 1));
        assert!(!may(&pace, 4), "0 is still under way");
        assert!(!pace.on_received(0, 0) && pace.on_received(0, 0));
        assert!(!pace.on_received(0, 0), "a third receiver is nobody");
        assert!(may(&pace, 4));
        pace.on_published(0, 4);
        assert!(!pace.on_received(0, 0), "late, its place has another message");
        assert!(pace.write_off() && !pace.write_off());
        assert!(may(&pace, 8));
    }

    #[test]
    fn the_schedule_does_not_wait() {
        let plan = Plan { load: Load::Open { rate: 1e6 }, ..plan(Workload::Pairs, 3, 3) };
        let mut pace = Pace::new(&plan, START, at(1_001_500));
        let mut called = Vec::new();
        pace.advance(START, |p| called.push(p));
        assert_eq!(called, [0]);
        assert_eq!(pace.next_due(), Some(at(1_000)));
        pace.advance(at(2_500), |p| called.push(p));
        assert_eq!(called, [0, 1, 2]);
        assert_eq!(pace.due(0, 1, at(2_999)), None);
        assert_eq!(pace.due(0, 1, at(9_000)), Some(at(3_000)), "late, with its intended time");
        called.clear();
        pace.advance(at(1_000_500), |p| called.push(p));
        assert_eq!(called[..3], [0, 1, 2]);
        assert!(called.len() < 8, "a stall costs one round, not one call per message");
        assert_eq!(pace.next_due(), Some(at(1_001_000)));
        assert_eq!(pace.due(2, 333, at(9_000_000)), Some(at(1_001_000)));
        assert_eq!(pace.due(0, 334, at(9_000_000)), None, "behind the end");
        assert_eq!((pace.unsent(1000), pace.unsent(1002)), (2, 0));
        pace.stop(at(1_001_000));
        assert_eq!(pace.unsent(1000), 1);
    }
}
