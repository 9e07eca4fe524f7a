//! The simulated world: the whole broker on one thread, under a seed.
//!
//! Codec, broker, transport, shard loop and lanes are the real ones; below them the [`backend`]
//! stands in for the kernel and the [`network`] for TCP. A seed decides everything: which shard
//! runs next, how far the clock goes, what the network and the kernel do, what [`client`]s do
//! ([`workload`]), and which of all these it has switched on ([`faults`]). The [`oracle`] says what
//! each client may receive and must.
//!
//! `noctule sim --seed S` runs one; the same seed is the same run, to the byte of its trace.
//! Invariant: nothing here reads a clock, a random source or an environment.
#![forbid(unsafe_code)]

pub mod backend;
pub mod client;
#[cfg(test)]
mod crash;
pub mod disk;
pub mod faults;
mod folder;
#[cfg(test)]
mod group_debts;
#[cfg(test)]
mod journal;
mod judge;
mod login;
pub mod network;
pub mod oracle;
pub mod random;
mod refusals;
pub mod terms;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod workload;
pub mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::broker::Stats;
use faults::Kind;
use oracle::Violation;
pub use oracle::{number, payload};

/// Steps of a run by default: about a second.
pub const STEPS_DEFAULT: u64 = 12_000;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// Steps in the rough; coming to rest needs more.
    pub steps: u64,
    /// Whether to keep a trace.
    pub trace: bool,
    /// What not to switch on.
    pub without: Vec<Kind>,
}

impl Options {
    /// A seed, and the rest by default.
    pub fn new(seed: u64) -> Self {
        Self { seed, steps: STEPS_DEFAULT, trace: false, without: Vec::new() }
    }

    /// The command that runs it again.
    pub fn command(&self) -> String {
        let mut command = format!("noctule sim --seed {}", self.seed);
        if self.steps != STEPS_DEFAULT {
            command += &format!(" --steps {}", self.steps);
        }
        if !self.without.is_empty() {
            let names: Vec<_> = self.without.iter().map(|kind| kind.name()).collect();
            command += &format!(" --without {}", names.join(","));
        }
        command
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Of the run.
    pub seed: u64,
    /// The first rule that was broken.
    pub violation: Option<Violation>,
    /// If it was asked for.
    pub trace: String,
    /// Steps, rest included.
    pub steps: u64,
    /// How many.
    pub shards: usize,
    /// How many, the auditor included.
    pub clients: usize,
    /// Packets that clients sent and received.
    pub packets: u64,
    /// PUBLISH that they received.
    pub messages: u64,
    /// Messages that had to arrive, and did.
    pub proven: u64,
    /// The broker's time that has passed.
    pub simulated: Duration,
    /// How often the broker was stopped or killed.
    pub restarts: u64,
    /// How often each kind has struck.
    pub struck: Vec<(Kind, u64)>,
    /// What was on.
    pub on: Vec<Kind>,
    /// The broker's counters.
    pub stats: Stats,
    /// The loop's and the kernel's.
    pub named: BTreeMap<&'static str, u64>,
}

/// Runs a seed. A panic of the broker is a violation; where panics end the process, it ends.
pub fn run(options: &Options) -> Report {
    let outcome = catch_unwind(AssertUnwindSafe(|| world::World::new(options).run(options)));
    outcome.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        Report {
            seed: options.seed,
            violation: Some(Violation { rule: "panic", text }),
            trace: String::new(),
            steps: 0,
            shards: 0,
            clients: 0,
            packets: 0,
            messages: 0,
            proven: 0,
            simulated: Duration::ZERO,
            restarts: 0,
            struck: Vec::new(),
            on: Vec::new(),
            stats: Stats::default(),
            named: BTreeMap::new(),
        }
    })
}

/// A smaller run that breaks the same rule: without what is not needed for it, and with fewer
/// steps.
pub fn minimise(options: &Options, rule: &str) -> Options {
    let fails = |options: &Options| run(options).violation.is_some_and(|v| v.rule == rule);
    let mut best = Options { trace: false, ..options.clone() };
    for kind in Kind::ALL {
        if !best.without.contains(kind) {
            let mut fewer = best.clone();
            fewer.without.push(*kind);
            if fails(&fewer) {
                best = fewer;
            }
        }
    }
    let mut cut = best.steps / 2;
    while cut > 0 {
        let fewer = Options { steps: best.steps - cut, ..best.clone() };
        if fails(&fewer) {
            best = fewer;
        } else {
            cut /= 2;
        }
    }
    best
}
