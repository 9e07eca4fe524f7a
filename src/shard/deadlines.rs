//! Deadlines that all lie the same time ahead, so that their order is the order of their setting.
#![forbid(unsafe_code)]

use crate::clock::Time;
use crate::ids::ConnId;
use std::collections::VecDeque;
use std::time::Duration;

/// A queue of them. One whose reason has gone stays until it is due, and is then found to be
/// nothing: who asks looks at the connection.
#[derive(Debug)]
pub(super) struct Deadlines {
    delay: Duration,
    queue: VecDeque<(Time, ConnId)>,
}

impl Deadlines {
    pub(super) fn new(delay: Duration) -> Self {
        Self { delay, queue: VecDeque::new() }
    }

    /// One for `conn`, from now.
    pub(super) fn set(&mut self, now: Time, conn: ConnId) {
        self.queue.push_back((now + self.delay, conn));
    }

    /// Lets go of the earliest ones whose reason has gone, two at most: with each that is set, so
    /// that as many wait as there are reasons, or little more.
    pub(super) fn forget_first(&mut self, mut has_reason: impl FnMut(ConnId) -> bool) {
        for _ in 0..2 {
            if self.queue.front().is_none_or(|(_, conn)| has_reason(*conn)) {
                return;
            }
            self.queue.pop_front();
        }
    }

    /// The earliest.
    pub(super) fn next(&self) -> Option<Time> {
        self.queue.front().map(|(at, _)| *at)
    }

    /// Takes the earliest, if it has come.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<ConnId> {
        self.next().filter(|at| *at <= now)?;
        self.queue.pop_front().map(|(_, conn)| conn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn come_in_order_and_not_early() {
        let mut deadlines = Deadlines::new(Duration::from_nanos(10));
        let conn = |index| ConnId { index, generation: 0 };
        deadlines.set(Time::from_nanos(1), conn(1));
        deadlines.set(Time::from_nanos(2), conn(2));
        assert_eq!(deadlines.next(), Some(Time::from_nanos(11)));
        assert_eq!(deadlines.pop_due(Time::from_nanos(10)), None);
        assert_eq!(deadlines.pop_due(Time::from_nanos(11)), Some(conn(1)));
        assert_eq!(deadlines.pop_due(Time::from_nanos(11)), None);
        assert_eq!(deadlines.pop_due(Time::from_nanos(12)), Some(conn(2)));
        assert_eq!(deadlines.next(), None);
    }

    #[test]
    fn those_without_a_reason_do_not_pile_up() {
        let mut deadlines = Deadlines::new(Duration::from_nanos(10));
        for index in 0..1000 {
            deadlines.forget_first(|conn| conn.index >= index);
            deadlines.set(Time::from_nanos(1), ConnId { index, generation: 0 });
            assert_eq!(deadlines.queue.len(), 1);
        }
        deadlines.forget_first(|_| true);
        assert_eq!(deadlines.queue.len(), 1, "who has a reason stays");
    }
}
