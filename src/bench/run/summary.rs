//! `summary.json`: what a run found, in figures.
//!
//! Durations are nanoseconds where the name says so. A figure that does not exist in a run is
//! `null`, never 0. Fields may be added; a change of meaning raises [`SCHEMA`].
#![forbid(unsafe_code)]

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::super::process::Spent;
use super::super::record::Faults;

/// Version of what [`Summary`] means.
pub const SCHEMA: u32 = 1;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// [`SCHEMA`] of the program that wrote it.
    pub schema: u32,
    /// Name of the scenario: the file's, or the workload's when there is no file.
    pub scenario: String,
    /// Who talks to whom, by its name in the scenario file: `pairs`, `fan-out` …
    pub workload: String,
    /// The scenario in one line for people: clients, protocol, QoS, payload, load.
    pub description: String,
    /// When messages were sent.
    pub mode: Mode,
    /// When the measurement began: RFC 3339, UTC.
    pub started: String,
    /// Seconds that were measured.
    pub seconds: f64,
    /// Seconds before that were not.
    pub warm_up_seconds: f64,
    /// Messages published while measured.
    pub published: u64,
    /// Messages delivered while measured.
    pub delivered: u64,
    /// A second.
    pub published_per_second: f64,
    /// A second.
    pub delivered_per_second: f64,
    /// What [`Summary::latency_nanos`] is the time of: `intended send to delivery`,
    /// `connect to CONNACK` …
    pub latency_of: String,
    /// In nanoseconds.
    pub latency_nanos: Percentiles,
    /// Intended to actual send, in nanoseconds; open loop only.
    pub lateness_nanos: Option<Percentiles>,
    /// Of the whole run, warm-up included; `None` when payloads are too small for accounting.
    pub faults: Option<Faults>,
    /// Times the closed loop stood still and its windows were given up.
    pub stalls: u64,
    /// Messages that the open loop's schedule asked for and that could not be sent.
    pub unsent: u64,
    /// Figures that only this workload has.
    #[serde(default)]
    pub figures: Vec<Figure>,
    /// The broker's process, when it is known.
    pub broker: Option<Cost>,
    /// The generator's process.
    pub generator: Cost,
    /// Whether it was ended early.
    pub interrupted: bool,
    /// Why it ended early.
    pub failure: Option<String>,
    /// What to keep in mind when reading it.
    pub warnings: Vec<String>,
}

/// When messages were sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "loop")]
pub enum Mode {
    /// So many messages of each publisher are under way.
    Closed {
        /// Messages.
        window: u32,
    },
    /// On a schedule that does not wait for the broker.
    Open {
        /// Messages a second, of all publishers together.
        rate: f64,
        /// `constant` or `poisson`.
        schedule: String,
    },
}

/// A figure with its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it is, for people: `connections a second`.
    pub name: String,
    /// Its value.
    pub value: f64,
    /// Its unit, empty for a count.
    pub unit: String,
    /// Which way is better; `None` when neither is.
    pub better: Option<Better>,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// As a rate.
    Higher,
    /// As a time.
    Lower,
}

/// Percentiles of a histogram, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// How many values.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The lowest.
    pub min: u64,
    /// Half of them are not above.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p99_9: u64,
    /// 99.99 %.
    pub p99_99: u64,
    /// The highest.
    pub max: u64,
}

impl Percentiles {
    /// Those of `histogram`; all 0 when it is empty.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            count: histogram.len(),
            mean: histogram.mean(),
            min: histogram.min(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p99_9: histogram.value_at_quantile(0.999),
            p99_99: histogram.value_at_quantile(0.9999),
            max: histogram.max(),
        }
    }
}

/// What a process has used while it was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Its process.
    pub pid: u32,
    /// Microseconds on a CPU for each delivered message: for the broker, the headline on a machine
    /// with noise. `None` when nothing was delivered.
    pub cpu_micros_per_delivered: Option<f64>,
    /// Times a thread slept for each delivered message.
    pub sleeps_per_delivered: Option<f64>,
    /// The rest.
    #[serde(flatten)]
    pub spent: Spent,
}

impl Cost {
    /// What `spent` was for each of `delivered` messages.
    pub fn new(pid: u32, spent: Spent, delivered: u64) -> Self {
        let each = |whole: f64| (delivered > 0).then(|| whole / delivered as f64);
        Self {
            pid,
            cpu_micros_per_delivered: each(spent.cpu_seconds * 1e6),
            sleeps_per_delivered: each(spent.voluntary_switches as f64),
            spent,
        }
    }
}
