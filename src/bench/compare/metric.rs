//! What is compared: the figures of a run, by name, and what a set of runs makes of each.
#![forbid(unsafe_code)]

use serde::Serialize;

use super::stats::{self, Interval};
use super::units::Unit;
use crate::bench::run::read::Run;
use crate::bench::run::summary::{Better, Mode};

/// One figure of a run.
pub struct Metric {
    /// Its name on the command line and in JSON.
    pub key: &'static str,
    /// Its name for people.
    pub label: &'static str,
    /// What it is measured in.
    pub unit: Unit,
    /// Which way is better.
    pub better: Option<Better>,
    /// Whether figures of several runs are added up; else the median counts.
    pub is_sum: bool,
    /// The figure; `None` when the run does not have it.
    pub of: fn(&Run) -> Option<f64>,
}

/// The percentile, when there are enough values for it to be one and not just the highest.
fn percentile(run: &Run, value: u64, one_in: u64) -> Option<f64> {
    (run.summary.latency_nanos.count >= one_in).then_some(value as f64)
}

const fn lower(
    key: &'static str,
    label: &'static str,
    unit: Unit,
    of: fn(&Run) -> Option<f64>,
) -> Metric {
    Metric { key, label, unit, better: Some(Better::Lower), is_sum: false, of }
}

const fn neither(
    key: &'static str,
    label: &'static str,
    unit: Unit,
    of: fn(&Run) -> Option<f64>,
) -> Metric {
    Metric { key, label, unit, better: None, is_sum: false, of }
}

const fn fault(key: &'static str, label: &'static str, of: fn(&Run) -> Option<f64>) -> Metric {
    Metric { key, label, unit: Unit::Count, better: Some(Better::Lower), is_sum: true, of }
}

/// A percentile of the latency, one value in `$one_in` of which lies beyond.
macro_rules! latency {
    ($key:literal, $label:literal, $percentile:ident, $one_in:literal) => {
        lower($key, $label, Unit::Nanoseconds, |run| {
            percentile(run, run.summary.latency_nanos.$percentile, $one_in)
        })
    };
}

/// All of them, the headline first.
pub const METRICS: &[Metric] = &[
    lower("cpu", "CPU per delivered message", Unit::Microseconds, |run| {
        run.summary.broker?.cpu_micros_per_delivered
    }),
    Metric {
        key: "throughput",
        label: "Delivered",
        unit: Unit::PerSecond,
        better: Some(Better::Higher),
        is_sum: false,
        of: |run| Some(run.summary.delivered_per_second),
    },
    latency!("p50", "Latency, median", p50, 1),
    latency!("p90", "Latency, 90 %", p90, 10),
    latency!("p99", "Latency, 99 %", p99, 100),
    latency!("p99.9", "Latency, 99.9 %", p99_9, 1000),
    latency!("p99.99", "Latency, 99.99 %", p99_99, 10_000),
    latency!("max", "Latency, highest", max, 1),
    fault("lost", "Lost", |run| Some(run.summary.faults?.lost as f64)),
    fault("duplicated", "Duplicated", |run| Some(run.summary.faults?.duplicated as f64)),
    fault("reordered", "Out of order", |run| Some(run.summary.faults?.out_of_order as f64)),
    neither("broker-share", "Broker, of one CPU", Unit::Share, |run| {
        Some(run.summary.broker?.spent.cpu_share)
    }),
    lower("sleeps", "Sleeps per message", Unit::Other(String::new()), |run| {
        run.summary.broker?.sleeps_per_delivered
    }),
    lower("memory", "Broker's memory, at most", Unit::Bytes, |run| {
        Some(run.summary.broker?.spent.rss_peak_bytes as f64)
    }),
    neither("generator-share", "Generator, of one CPU", Unit::Share, |run| {
        Some(run.summary.generator.spent.cpu_share)
    }),
    neither("lateness", "Sent late, 99 %", Unit::Nanoseconds, |run| {
        Some(run.summary.lateness_nanos?.p99 as f64)
    }),
];

/// One figure of all sets.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Name on the command line.
    pub key: String,
    /// Name for people.
    pub label: String,
    /// What it is measured in.
    pub unit: Unit,
    /// Which way is better.
    pub better: Option<Better>,
    /// Whether figures of several runs are added up.
    pub is_sum: bool,
    /// One for each set; `None` where no run has the figure.
    pub cells: Vec<Option<Cell>>,
}

/// One figure of one set.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// Of each run that has it.
    pub values: Vec<f64>,
    /// The median of the runs, or their sum.
    pub value: f64,
    /// The lowest and the highest.
    pub spread: Interval,
    /// Beside the first set; `None` for that one, and where there is no ratio.
    pub versus: Option<Versus>,
}

/// A figure beside that of the first set.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Versus {
    /// Of the medians.
    pub ratio: f64,
    /// Where the ratio is at 95 %; `None` when there are too few runs.
    pub interval: Option<Interval>,
    /// What to make of it.
    pub verdict: Verdict,
}

/// What to make of a ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Different, for the better.
    Better,
    /// Different, for the worse.
    Worse,
    /// Different, and neither is better.
    Different,
    /// The spread is larger than the difference.
    NoDifference,
    /// There are too few runs to know the spread.
    Unknown,
}

impl Row {
    fn new(
        key: &str,
        label: &str,
        unit: &Unit,
        better: Option<Better>,
        is_sum: bool,
        values: Vec<Vec<f64>>,
    ) -> Option<Self> {
        let base = values.first().cloned().unwrap_or_default();
        let cells: Vec<_> = values
            .into_iter()
            .enumerate()
            .map(|(set, values)| {
                let value = match is_sum {
                    true if values.is_empty() => None,
                    true => Some(values.iter().sum()),
                    false => stats::median(&values),
                }?;
                let low = values.iter().copied().fold(f64::INFINITY, f64::min);
                let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let versus =
                    (set > 0 && !is_sum).then(|| Versus::new(&base, &values, better)).flatten();
                Some(Cell { values, value, spread: Interval { low, high }, versus })
            })
            .collect();
        cells.iter().any(Option::is_some).then(|| Self {
            key: key.into(),
            label: label.into(),
            unit: unit.clone(),
            better,
            is_sum,
            cells,
        })
    }
}

impl Versus {
    fn new(base: &[f64], other: &[f64], better: Option<Better>) -> Option<Self> {
        let ratio = stats::median(other)? / stats::median(base)?;
        if !ratio.is_finite() {
            return None;
        }
        let interval = stats::ratio_interval(base, other);
        let verdict = match (interval, better) {
            (None, _) => Verdict::Unknown,
            (Some(interval), _) if interval.contains(1.0) => Verdict::NoDifference,
            (_, None) => Verdict::Different,
            (_, Some(Better::Higher)) if ratio > 1.0 => Verdict::Better,
            (_, Some(Better::Lower)) if ratio < 1.0 => Verdict::Better,
            _ => Verdict::Worse,
        };
        Some(Self { ratio, interval, verdict })
    }

    /// How many times worse it is, if it is.
    pub fn worse_by(&self, better: Option<Better>) -> Option<f64> {
        let worse = match better? {
            Better::Lower => self.ratio,
            Better::Higher => 1.0 / self.ratio,
        };
        (self.verdict == Verdict::Worse).then_some(worse)
    }
}

/// The rows of one scenario: `sets` are the runs of each set.
pub fn rows(sets: &[Vec<&Run>]) -> Vec<Row> {
    let is_paced = sets.iter().flatten().all(|run| matches!(run.summary.mode, Mode::Open { .. }));
    let mut rows: Vec<Row> = METRICS
        .iter()
        .filter_map(|metric| {
            // In the open loop the rate is what was asked for.
            let better = metric.better.filter(|_| !(is_paced && metric.key == "throughput"));
            let values = sets
                .iter()
                .map(|runs| runs.iter().filter_map(|run| (metric.of)(run)).collect())
                .collect();
            Row::new(metric.key, metric.label, &metric.unit, better, metric.is_sum, values)
        })
        .collect();
    rows.extend(own_figures(sets));
    rows
}

/// As the beginning of a line.
pub(super) fn capitalised(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The figures that only this workload has, in the order in which they come.
fn own_figures(sets: &[Vec<&Run>]) -> Vec<Row> {
    let mut names: Vec<&str> = Vec::new();
    for figure in sets.iter().flatten().flat_map(|run| &run.summary.figures) {
        // What all of them took is there already.
        let is_known = figure.name.starts_with("generator thread ");
        if !is_known && !names.contains(&figure.name.as_str()) {
            names.push(&figure.name);
        }
    }
    let row = |name: &str| {
        let of = |run: &&Run| run.summary.figures.iter().find(|f| f.name == name).cloned();
        let values = sets
            .iter()
            .map(|runs| runs.iter().filter_map(|run| Some(of(run)?.value)).collect())
            .collect();
        let first = sets.iter().flatten().find_map(of)?;
        let unit = match first.unit.as_str() {
            "ns" => Unit::Nanoseconds,
            "µs" => Unit::Microseconds,
            "B" => Unit::Bytes,
            "/s" | "1/s" => Unit::PerSecond,
            other => Unit::Other(other.to_owned()),
        };
        Row::new(name, &capitalised(name), &unit, first.better, false, values)
    };
    names.into_iter().filter_map(row).collect()
}
