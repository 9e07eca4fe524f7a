//! How long before something is due a thread of the generator is awake, to spin for the rest.
//!
//! A timed wait ends late: by what the kernel rounds up, by how deeply an idle CPU sleeps (long, in
//! a virtual machine), by who else has it. A message that is sent late for that is late in the
//! figures. So the margin follows what was seen: at once upwards, slowly down again, and never far,
//! because who is awake all the time loses its turn on a CPU that it shares.
#![forbid(unsafe_code)]

use std::time::Duration;

/// With exact waits: what waking takes at best.
const EXACT: Duration = Duration::from_micros(60);
/// With waits that are rounded up to a millisecond.
const ROUNDED: Duration = Duration::from_micros(1100);
/// How far it grows.
const GROWTH_MAX: Duration = Duration::from_micros(340);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Margin {
    least: Duration,
    now: Duration,
}

impl Margin {
    /// For a backend of this name.
    pub(super) fn new(backend: &str) -> Self {
        let least = if backend == "epoll" { ROUNDED } else { EXACT };
        Self { least, now: least }
    }

    /// The margin as it is.
    #[inline]
    pub(super) fn get(&self) -> Duration {
        self.now
    }

    /// A wait that was to end by itself has ended this late.
    pub(super) fn on_late(&mut self, late: Duration) {
        let wanted = (late + late / 4).min(self.least + GROWTH_MAX);
        self.now = wanted.max(self.now - (self.now - self.least) / 256);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_what_was_late_and_comes_back() {
        let micros = Duration::from_micros;
        let mut margin = Margin::new("uring");
        margin.on_late(micros(20));
        assert_eq!(margin.get(), EXACT);
        margin.on_late(micros(200));
        assert_eq!(margin.get(), micros(250));
        margin.on_late(micros(100));
        assert!(margin.get() < micros(250) && margin.get() > micros(240));
        for _ in 0..2000 {
            margin.on_late(micros(10));
        }
        assert!(margin.get() < EXACT + micros(1), "{margin:?}");
        margin.on_late(Duration::from_millis(9));
        assert_eq!(margin.get(), EXACT + GROWTH_MAX, "no more than that");
        assert_eq!(Margin::new("epoll").get(), ROUNDED);
    }
}
