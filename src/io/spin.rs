//! Looking before sleeping: a wake-up from sleep takes the kernel 15 to 30 µs, which a loop that is
//! still awake saves. It costs the processor time that it looks, so it looks only while things
//! lately came sooner, one behind the other, than it would look: an idle broker sleeps.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::clock::{self, Time};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Spin {
    /// The longest look; zero turns it off.
    budget: Duration,
    /// Mean time between polls that found something, the last ones first.
    mean_gap: Duration,
    last: Time,
}

/// Of the mean, how much the last gap counts: one in so many.
const WEIGHT: u32 = 8;
/// A gap counts as no more than so many budgets, so that a pause is forgotten.
const GAP_MAX: u32 = 4;

impl Spin {
    pub(super) const fn new(budget: Duration) -> Self {
        Self { budget, mean_gap: Duration::MAX, last: Time::ZERO }
    }

    /// Until when to look for what comes, if that is worth it.
    pub(super) fn until(&self) -> Option<Time> {
        (self.mean_gap < self.budget).then(|| clock::now() + self.budget)
    }

    /// A poll has found something.
    pub(super) fn found(&mut self) {
        if self.budget.is_zero() {
            return;
        }
        let now = clock::now();
        let longest = self.budget * GAP_MAX;
        let gap = now.since(self.last).min(longest);
        self.mean_gap = (self.mean_gap.min(longest) * (WEIGHT - 1) + gap) / WEIGHT;
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_secs(3600);

    #[test]
    fn looks_while_things_come_soon() {
        let mut spin = Spin::new(BUDGET);
        assert_eq!(spin.until(), None, "nothing has come yet");
        for _ in 0..100 {
            spin.found();
        }
        assert!(spin.until().is_some());
        // As if each had come after a long time.
        for _ in 0..4 {
            spin.last = Time::ZERO;
            spin.mean_gap += BUDGET / 2;
        }
        assert_eq!(spin.until(), None);
    }

    #[test]
    fn zero_is_never() {
        let mut spin = Spin::new(Duration::ZERO);
        for _ in 0..100 {
            spin.found();
        }
        assert_eq!(spin.until(), None);
    }
}
