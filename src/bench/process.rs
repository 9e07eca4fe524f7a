//! What a process costs, read from `/proc`.
//!
//! CPU time is the scheduler's own nanoseconds of all threads, not the tick counters, which are
//! too coarse for runs of seconds; those split it into user and system, and say the least that was
//! spent: a thread that ends takes its nanoseconds with it, but its ticks stay with the process. A
//! kernel thread that io_uring starts for a process is one of its threads and counted.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What one process has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// On a CPU, all threads, in nanoseconds.
    pub cpu_nanos: u64,
    /// In user mode, in ticks.
    pub user_ticks: u64,
    /// In the kernel, in ticks.
    pub system_ticks: u64,
    /// Times it slept.
    pub voluntary_switches: u64,
    /// Times it was made to wait.
    pub involuntary_switches: u64,
    /// Resident memory now.
    pub rss_bytes: u64,
    /// Its highest value.
    pub rss_peak_bytes: u64,
    /// Given to file systems to be written; 0 where the kernel does not say.
    pub written_bytes: u64,
}

/// What it has used between two looks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Seconds on a CPU.
    pub cpu_seconds: f64,
    /// As a part of one CPU: 1.0 is a whole one.
    pub cpu_share: f64,
    /// Part of the CPU time that was in user mode.
    pub user_part: f64,
    /// Times it slept.
    pub voluntary_switches: u64,
    /// Times it was made to wait.
    pub involuntary_switches: u64,
    /// Resident memory at the end.
    pub rss_bytes: u64,
    /// Its highest value ever.
    pub rss_peak_bytes: u64,
}

impl Usage {
    /// Reads it.
    ///
    /// # Errors
    /// When the process does not exist or must not be looked at.
    pub fn of(pid: u32) -> io::Result<Self> {
        let process = Path::new("/proc").join(pid.to_string());
        let mut usage = Self::default();
        let stat = fs::read_to_string(process.join("stat"))?;
        (usage.user_ticks, usage.system_ticks) = parse_stat(&stat).ok_or_else(unreadable)?;
        let status = fs::read_to_string(process.join("status"))?;
        usage.rss_bytes = field(&status, "VmRSS:") * 1024;
        usage.rss_peak_bytes = field(&status, "VmHWM:") * 1024;
        let io = fs::read_to_string(process.join("io")).unwrap_or_default();
        usage.written_bytes = field(&io, "write_bytes:");
        for task in fs::read_dir(process.join("task"))? {
            // A thread may end while we look.
            let task = task?.path();
            let Ok(schedstat) = fs::read_to_string(task.join("schedstat")) else { continue };
            let Ok(status) = fs::read_to_string(task.join("status")) else { continue };
            usage.cpu_nanos += parse_schedstat(&schedstat).ok_or_else(unreadable)?;
            usage.voluntary_switches += field(&status, "voluntary_ctxt_switches:");
            usage.involuntary_switches += field(&status, "nonvoluntary_ctxt_switches:");
        }
        Ok(usage)
    }

    /// What was spent since `earlier`, in `elapsed`.
    pub fn since(&self, earlier: &Self, elapsed: Duration) -> Spent {
        let user = self.user_ticks.saturating_sub(earlier.user_ticks);
        let system = self.system_ticks.saturating_sub(earlier.system_ticks);
        // Each of the four counts is rounded: two ticks more may be shown than were spent.
        let ticks = (user + system).saturating_sub(2);
        let at_least = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        let living = self.cpu_nanos.saturating_sub(earlier.cpu_nanos) as f64 / 1e9;
        let cpu_seconds = living.max(at_least);
        let switches = |now: u64, then: u64| now.saturating_sub(then);
        Spent {
            cpu_seconds,
            cpu_share: cpu_seconds / elapsed.as_secs_f64(),
            user_part: user as f64 / (user + system).max(1) as f64,
            voluntary_switches: switches(self.voluntary_switches, earlier.voluntary_switches),
            involuntary_switches: switches(self.involuntary_switches, earlier.involuntary_switches),
            rss_bytes: self.rss_bytes,
            rss_peak_bytes: self.rss_peak_bytes,
        }
    }
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "/proc is not as expected")
}

/// utime and stime: fields 14 and 15, behind a name that may contain anything.
fn parse_stat(stat: &str) -> Option<(u64, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Nanoseconds on a CPU: the first field.
fn parse_schedstat(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().next()?.parse().ok()
}

/// The number behind `name` at the start of a line; 0 when there is none.
fn field(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|v| v.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_with_brackets_and_spaces() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 31 42 0 0 20 0 1 0 5 6 7";
        assert_eq!(parse_stat(stat), Some((31, 42)));
        assert_eq!(parse_stat("7 nothing"), None);
        assert_eq!(parse_schedstat("123 45 6\n"), Some(123));
        assert_eq!(field("VmHWM:\t  12 kB\nVmRSS:\t  8 kB\n", "VmRSS:"), 8);
        let io = "wchar: 5\nwrite_bytes: 4096\ncancelled_write_bytes: 7\n";
        assert_eq!(field(io, "write_bytes:"), 4096);
    }

    /// Also when the thread that was busy has ended: other tests' threads do so all the time.
    #[test]
    fn a_busy_process_spends() {
        let pid = std::process::id();
        let before = Usage::of(pid).unwrap();
        let busy = std::thread::spawn(move || {
            let ticks = |usage: &Usage| usage.user_ticks + usage.system_ticks;
            for _ in 0..10_000 {
                (0..1_000_000u64).for_each(|i| _ = std::hint::black_box(i));
                if ticks(&Usage::of(pid).unwrap()) >= ticks(&before) + 10 {
                    return;
                }
            }
        });
        busy.join().unwrap();
        let spent = Usage::of(pid).unwrap().since(&before, Duration::from_secs(1));
        assert!(spent.cpu_seconds > 0.05 && spent.rss_bytes > 0, "{spent:?}");
        assert!(Usage::of(u32::MAX).is_err());
    }
}
