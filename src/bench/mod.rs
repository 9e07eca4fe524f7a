//! `noctule bench`: a load generator for any MQTT broker, and what it found.
//!
//! One thread drives all publishers and subscribers over the same [`Backend`] and the same sans-IO
//! [`Client`](crate::client::Client) that the rest of the program uses. [`workload`] says who talks
//! to whom, `pace` when a publisher may send, [`record`] what came, [`process`] what it cost,
//! [`report`] is what the user sees; `driver` is the loop.
//!
//! A run is bounded in time by its plan and the bounds in [`limits`](crate::limits), whatever the
//! broker does: connecting, the run itself, the drain, the end.
//!
//! What a run must not hide: lost, duplicated and reordered messages are counted in every run and
//! always shown; when the generator was the bottleneck it says so.
#![forbid(unsafe_code)]

pub mod compare;
mod driver;
mod pace;
pub mod process;
pub mod record;
pub mod report;
pub mod run;
pub mod workload;

use std::fmt;
use std::io;
use std::sync::atomic::AtomicBool;

use crate::io::probe::{self, Engine};
use crate::io::{Epoll, PoolSize, Settings, Uring};
use driver::Driver;
use report::Report;
use workload::Plan;

/// Why a run gave no report.
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

/// Runs the plan on this thread. `interrupted` ends it early, with a report of what there was.
///
/// # Errors
/// When the plan is wrong or the broker cannot be brought to the start line. What goes wrong later
/// stands in the report.
pub fn run(plan: &Plan, interrupted: &AtomicBool) -> Result<Report, Error> {
    plan.check()?;
    let settings = Settings {
        uring_pool: PoolSize { count: 512, bytes: 16 * 1024 },
        epoll_pool: PoolSize { count: 64, bytes: 64 * 1024 },
        ..Settings::default()
    };
    // Falling back needs no word here: the report names what was used.
    match probe::select(plan.io).map_err(Error::Plan)?.engine {
        Engine::Uring => {
            let backend = Uring::new(&settings).map_err(|error| refused("io_uring", error))?;
            Driver::new(plan, backend, interrupted)?.run()
        }
        Engine::Epoll => {
            let backend = Epoll::new(&settings).map_err(|error| refused("epoll", error))?;
            Driver::new(plan, backend, interrupted)?.run()
        }
    }
}

fn refused(backend: &str, error: io::Error) -> Error {
    Error::Io { doing: format!("use {backend}"), error }
}
