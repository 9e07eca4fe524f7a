//! Time, as an argument: the one file that reads a clock.
//!
//! Every layer below the shard gets a [`Time`] as an argument and never asks for it, so that the
//! simulation owns time. All shards of a process share one epoch, so a deadline may travel between
//! them as a [`Time`].
#![forbid(unsafe_code)]

use std::ops::{Add, Sub};
use std::time::Duration;

/// A point on the monotonic clock (`CLOCK_MONOTONIC`), in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The start of the clock; no deadline is earlier.
    pub const ZERO: Self = Self(0);
    /// Later than every deadline: "never".
    pub const MAX: Self = Self(u64::MAX);

    /// The point `nanos` nanoseconds after the epoch.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to `self`; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The point `secs` seconds later, [`Time::MAX`] when that cannot be expressed.
    pub const fn plus_secs(self, secs: u32) -> Self {
        Self(self.0.saturating_add(secs as u64 * 1_000_000_000))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    /// Saturates at [`Time::MAX`].
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;

    /// Saturates at [`Time::ZERO`].
    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Reads `CLOCK_MONOTONIC`.
pub fn now() -> Time {
    let ts = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let secs = u64::try_from(ts.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(ts.tv_nsec).unwrap_or(0);
    Time(secs.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// Reads `CLOCK_REALTIME`: the time since 1970 in UTC, for people to read. Nothing is decided by it.
pub fn unix_time() -> Duration {
    let ts = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let secs = u64::try_from(ts.tv_sec).unwrap_or(0);
    Duration::new(secs, u32::try_from(ts.tv_nsec).unwrap_or(0))
}

/// Reads `CLOCK_THREAD_CPUTIME_ID`: how long the calling thread has been on a CPU.
pub fn thread_cpu() -> Duration {
    let ts = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let secs = u64::try_from(ts.tv_sec).unwrap_or(0);
    Duration::new(secs, u32::try_from(ts.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saturates_instead_of_wrapping() {
        assert_eq!(Time::MAX.plus_secs(1), Time::MAX);
        assert_eq!(Time::ZERO - Duration::from_secs(1), Time::ZERO);
        assert_eq!(Time::from_nanos(5).since(Time::from_nanos(9)), Duration::ZERO);
    }

    #[test]
    fn moves_forward() {
        let a = now();
        assert!(now() >= a && a > Time::ZERO);
    }
}
