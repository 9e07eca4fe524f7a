//! `noctule bench`: a load generator for any MQTT broker, and what it found.
//!
//! [`scenario`] is what is asked for, [`workload`] the plan that it becomes: who talks to whom. The
//! `conductor` starts threads and leads them from phase to phase; a `worker` is one thread with its
//! clients, over the same [`Backend`](crate::io::Backend) and the same sans-IO
//! [`Client`](crate::client::Client) that the rest of the program uses. `pace` says when a client
//! may act, `state` what its events change, [`record`] keeps account of what came, [`process`] of
//! what it cost; [`run`] is the folder that a run leaves behind, [`report`] what the user reads.
//! [`compare`] sets runs side by side. [`sink`] is a peer that only counts, to show the generator's
//! own ceiling.
//!
//! A run is bounded in time by its plan and the bounds in [`limits`](crate::limits), whatever the
//! broker does: connecting, the run itself, the drain, the end.
//!
//! What a run must not hide: lost, duplicated and reordered messages are counted in every run and
//! always shown; when the generator was the bottleneck it says so.
#![forbid(unsafe_code)]

pub mod compare;
mod conductor;
mod frames;
mod pace;
mod peer;
pub mod process;
mod progress;
pub mod record;
pub mod report;
pub mod run;
pub mod scenario;
mod shared;
pub mod sink;
mod state;
mod worker;
pub mod workload;

use std::fmt;
use std::io;
use std::sync::atomic::AtomicBool;

pub use conductor::{Options, pin};
use run::Summary;
use workload::Plan;

/// Why a run gave no summary.
#[derive(Debug)]
pub enum Error {
    /// The plan is not one.
    Plan(String),
    /// The world refused something.
    Io {
        /// What we did.
        doing: String,
        /// What it said.
        error: io::Error,
    },
    /// The broker refused something, or was too slow to set up.
    Broker(String),
    /// Interrupted before there was anything to report.
    Interrupted,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plan(what) | Self::Broker(what) => f.write_str(what),
            Self::Io { doing, error } => write!(f, "{doing}: {error}"),
            Self::Interrupted => f.write_str("interrupted before the measurement began"),
        }
    }
}

impl std::error::Error for Error {}

/// Runs the plan. `interrupted` ends it early, with a summary of what there was.
///
/// # Errors
/// When the broker cannot be brought to the start line, or the run's folder not be written. What
/// goes wrong later stands in the summary.
pub fn run(plan: &Plan, options: Options, interrupted: &AtomicBool) -> Result<Summary, Error> {
    conductor::run(plan, options, interrupted)
}
