//! Curves of a scenario: the percentile spectrum, and latency and rate over time. Of several runs
//! of a set the curve is the median, with a band from the lowest to the highest.
#![forbid(unsafe_code)]

use super::stats;
use crate::bench::run::read::{Moment, Run};
use crate::limits::COMPARE_POINTS_MAX;

/// Points of the spectrum for each factor of ten in 1/(1-p).
const POINTS_PER_DECADE: f64 = 16.0;

/// A place on a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Seconds, or the decades of 1/(1-p): 2 is the 99th percentile.
    pub x: f64,
    /// Median of the runs.
    pub mid: f64,
    /// Lowest of the runs.
    pub low: f64,
    /// Highest of the runs.
    pub high: f64,
}

/// What one set shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// Number of the set.
    pub set: usize,
    /// From left to right; at least one.
    pub points: Vec<Point>,
}

/// All curves of a scenario; a set without data has none.
#[derive(Clone, Debug, Default)]
pub struct Curves {
    /// Latency in nanoseconds by the decades of 1/(1-p).
    pub spectrum: Vec<Curve>,
    /// Median latency in nanoseconds by second.
    pub p50: Vec<Curve>,
    /// 99 % latency in nanoseconds by second.
    pub p99: Vec<Curve>,
    /// Deliveries a second by second.
    pub rate: Vec<Curve>,
}

impl Curves {
    /// Of the runs of each set.
    pub fn new(sets: &[Vec<&Run>]) -> Self {
        let over_time =
            |of: fn(&[Moment]) -> f64| -> Vec<Curve> { curves(sets, |runs| by_second(runs, of)) };
        Self {
            spectrum: curves(sets, spectrum),
            p50: over_time(|group| highest(group, |m| m.p50 as f64)),
            p99: over_time(|group| highest(group, |m| m.p99 as f64)),
            rate: over_time(|group| group.iter().map(|m| m.rate).sum::<f64>() / group.len() as f64),
        }
    }
}

fn curves(sets: &[Vec<&Run>], points: impl Fn(&[&Run]) -> Vec<Point>) -> Vec<Curve> {
    let all = sets.iter().enumerate().map(|(set, runs)| Curve { set, points: points(runs) });
    all.filter(|curve| !curve.points.is_empty()).collect()
}

fn highest(group: &[Moment], of: fn(&Moment) -> f64) -> f64 {
    group.iter().map(of).fold(0.0, f64::max)
}

fn point(x: f64, values: &[f64]) -> Option<Point> {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Some(Point { x, mid: stats::median(values)?, low, high })
}

/// As far to the right as the run with the fewest values has percentiles of its own.
fn spectrum(runs: &[&Run]) -> Vec<Point> {
    let runs: Vec<_> = runs.iter().filter(|run| !run.latency.is_empty()).collect();
    let Some(fewest) = runs.iter().map(|run| run.latency.len()).min() else { return Vec::new() };
    let end = (fewest as f64).log10();
    let steps = (end * POINTS_PER_DECADE).ceil() as usize;
    let xs = (0..steps).map(|step| step as f64 / POINTS_PER_DECADE).chain([end]);
    xs.filter_map(|x| {
        let quantile = 1.0 - 10f64.powf(-x);
        let values: Vec<f64> =
            runs.iter().map(|run| run.latency.value_at_quantile(quantile) as f64).collect();
        point(x, &values)
    })
    .collect()
}

/// One point a second, or for each group of them when there are too many. Seconds after the last
/// one that all runs have are left out.
fn by_second(runs: &[&Run], of: fn(&[Moment]) -> f64) -> Vec<Point> {
    let runs: Vec<&[Moment]> =
        runs.iter().map(|run| run.moments.as_slice()).filter(|m| !m.is_empty()).collect();
    let Some(seconds) = runs.iter().map(|moments| moments.len()).min() else { return Vec::new() };
    let group = seconds.div_ceil(COMPARE_POINTS_MAX);
    (0..seconds)
        .step_by(group)
        .filter_map(|first| {
            let last = (first + group).min(seconds);
            let values: Vec<f64> = runs.iter().map(|moments| of(&moments[first..last])).collect();
            point(runs[0][first].at, &values)
        })
        .collect()
}
