//! What is drawn, before it is drawn: axes with their marks, and the lines of each set.
#![forbid(unsafe_code)]

use super::curve::{Curve, Curves, Point};
use super::units::Unit;

/// How values are spread over an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    is_log: bool,
}

impl Scale {
    /// Evenly, from 0 to somewhat above `high`.
    pub fn linear(high: f64) -> Self {
        let high = if high > 0.0 { high } else { 1.0 };
        let step = nice_step(high);
        Self { low: 0.0, high: (high / step).ceil() * step, is_log: false }
    }

    /// Evenly, from exactly `low` to exactly `high`.
    pub fn exact(low: f64, high: f64) -> Self {
        Self { low, high: if high > low { high } else { low + 1.0 }, is_log: false }
    }

    /// By ratio, rounded outwards to 1, 2 or 5 times a power of ten.
    pub fn log(low: f64, high: f64) -> Self {
        let low = if low > 0.0 { low } else { 1.0 };
        let high = high.max(low);
        let below = log_marks(low / 10.0, low).last().copied().unwrap_or(low);
        let above = log_marks(high, high * 10.0).into_iter().find(|mark| *mark > below);
        let above = above.unwrap_or(high * 10.0);
        Self { low: below, high: above, is_log: true }
    }

    /// Where `value` is, from 0 to 1; what is outside is put on the edge.
    pub fn place(&self, value: f64) -> f64 {
        let place = match self.is_log {
            true => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        place.clamp(0.0, 1.0)
    }

    /// Values to mark.
    pub fn marks(&self) -> Vec<f64> {
        if !self.is_log {
            let step = nice_step(self.high - self.low);
            let count = ((self.high - self.low) / step + 1e-9) as usize;
            return (0..=count).map(|i| rounded(self.low + i as f64 * step, step)).collect();
        }
        let marks = log_marks(self.low, self.high);
        if marks.len() <= 12 {
            return marks;
        }
        let is_power = |v: &f64| (v.log10() - v.log10().round()).abs() < 1e-6;
        marks.into_iter().filter(is_power).collect()
    }
}

/// The multiple of `step` that is meant: 3 × 0.2 is not 0.6 in binary, and would be written so.
fn rounded(value: f64, step: f64) -> f64 {
    let digits = (1.0 / step).log10().ceil().max(0.0) as i32;
    let power = 10f64.powi(digits);
    (value * power).round() / power
}

/// 1, 2 and 5 times the powers of ten from `low` to `high`.
fn log_marks(low: f64, high: f64) -> Vec<f64> {
    let first = low.log10().floor() as i32;
    let last = high.log10().ceil() as i32;
    (first..=last)
        .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)))
        .filter(|mark| (low * (1.0 - 1e-9)..=high * (1.0 + 1e-9)).contains(mark))
        .collect()
}

/// A step that gives from four to eight marks up to `length`.
fn nice_step(length: f64) -> f64 {
    let power = 10f64.powf((length / 4.0).log10().floor());
    let step = [5.0, 2.0, 1.0].into_iter().find(|digit| length / (digit * power) >= 4.0);
    step.unwrap_or(1.0) * power
}

/// One side of a chart.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it measures.
    pub label: String,
    /// How.
    pub scale: Scale,
    /// Values with what is written at them.
    pub marks: Vec<(f64, String)>,
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stroke {
    /// The line that the chart is about.
    Main,
    /// One that goes along with it.
    Faint,
}

/// A curve of a set.
#[derive(Clone, Debug)]
pub struct Line {
    /// Which set.
    pub set: usize,
    /// How it is drawn.
    pub stroke: Stroke,
    /// From left to right.
    pub points: Vec<Point>,
    /// Where its markers stand; they tell lines apart without colour.
    pub markers: Vec<f64>,
}

/// One drawing.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What it is.
    pub title: String,
    /// What it shows, for who cannot see it.
    pub description: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// Behind first.
    pub lines: Vec<Line>,
    /// What x is at a point, for the readout: `99.9 %`, `12 s`.
    pub x_text: fn(f64) -> String,
    /// Unit of the values.
    pub unit: Unit,
}

/// How latency is spread upwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// By ratio: all of the distribution is seen.
    Log,
    /// Evenly: what is twice as slow is twice as high.
    Linear,
}

/// The classic percentile plot: latency by 1/(1-p), so that the rare has as much room as the usual.
pub fn spectrum(
    curves: &Curves,
    sets: &[String],
    latency_of: &str,
    latency: Latency,
) -> Option<Chart> {
    let (low, high) = range(&curves.spectrum)?;
    let decades =
        curves.spectrum.iter().filter_map(|c| c.points.last()).map(|p| p.x).fold(1.0, f64::max);
    let lines = lines(&curves.spectrum, Stroke::Main, |points| {
        (1..=decades as usize)
            .map(|decade| decade as f64)
            .filter(|x| points.last().is_some_and(|last| last.x >= *x))
            .collect()
    });
    let marks = (0..=decades as usize).map(|decade| (decade as f64, percent(decade as f64)));
    Some(Chart {
        title: "Percentile spectrum".into(),
        description: describe(
            &curves.spectrum,
            sets,
            "latency",
            &[std::f64::consts::LOG10_2, 2.0, 3.0],
            percent,
        ),
        x: Axis {
            label: "percentile, by 1/(1−p)".into(),
            scale: Scale::exact(0.0, decades),
            marks: marks.collect(),
        },
        y: latency_axis(&sentence(latency_of), latency, low, high),
        lines,
        x_text: percent,
        unit: Unit::Nanoseconds,
    })
}

/// Whether there is more than one moment to show.
fn is_a_course(curves: &[Curve]) -> bool {
    curves.iter().any(|curve| curve.points.len() > 1)
}

/// Latency by second: 99 %, and the median faintly. None of a run within one second.
pub fn latency_over_time(curves: &Curves, sets: &[String]) -> Option<Chart> {
    if !is_a_course(&curves.p99) {
        return None;
    }
    let (low, high) = range(&curves.p50)?;
    let (also_low, also_high) = range(&curves.p99)?;
    let mut both = lines(&curves.p50, Stroke::Faint, |_| Vec::new());
    both.extend(lines(&curves.p99, Stroke::Main, last_only));
    Some(Chart {
        title: "Latency over time".into(),
        description: describe(&curves.p99, sets, "99 % latency", &[0.0], at_second),
        x: time_axis(&curves.p99),
        y: latency_axis(
            "99 % (line), median (dots)",
            Latency::Log,
            low.min(also_low),
            high.max(also_high),
        ),
        lines: both,
        x_text: at_second,
        unit: Unit::Nanoseconds,
    })
}

/// Deliveries a second by second. None of a run within one second.
pub fn rate_over_time(curves: &Curves, sets: &[String]) -> Option<Chart> {
    if !is_a_course(&curves.rate) {
        return None;
    }
    let (_, high) = range(&curves.rate)?;
    let scale = Scale::linear(high * 1.02);
    let marks = scale.marks().into_iter().map(|v| (v, Unit::Other(String::new()).show(v)));
    let marks = marks.map(|(v, text)| (v, if v == 0.0 { "0".into() } else { text })).collect();
    Some(Chart {
        title: "Throughput over time".into(),
        description: describe(&curves.rate, sets, "deliveries a second", &[0.0], at_second),
        x: time_axis(&curves.rate),
        y: Axis { label: "Delivered a second".into(), scale, marks },
        lines: lines(&curves.rate, Stroke::Main, last_only),
        x_text: at_second,
        unit: Unit::PerSecond,
    })
}

fn lines(curves: &[Curve], stroke: Stroke, markers: impl Fn(&[Point]) -> Vec<f64>) -> Vec<Line> {
    // The first set, which the others are held against, is on top.
    let all = curves.iter().rev().map(|curve| Line {
        set: curve.set,
        stroke,
        points: curve.points.clone(),
        markers: markers(&curve.points),
    });
    all.collect()
}

fn last_only(points: &[Point]) -> Vec<f64> {
    points.last().map(|last| last.x).into_iter().collect()
}

/// From the lowest to the highest value above 0; `None` when there is nothing to draw.
fn range(curves: &[Curve]) -> Option<(f64, f64)> {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let low = all().map(|p| p.low).filter(|v| *v > 0.0).fold(f64::INFINITY, f64::min);
    let high = all().map(|p| p.high).fold(0.0, f64::max);
    (high > 0.0).then_some((low.min(high), high))
}

fn latency_axis(label: &str, latency: Latency, low: f64, high: f64) -> Axis {
    let scale = match latency {
        Latency::Log => Scale::log(low, high),
        Latency::Linear => Scale::linear(high),
    };
    let text = |value: f64| match value {
        0.0 => "0".to_owned(),
        value => short(&Unit::Nanoseconds.show(value)),
    };
    let marks = scale.marks().into_iter().map(|v| (v, text(v))).collect();
    Axis { label: label.into(), scale, marks }
}

/// `2.00 ms` is `2 ms` on an axis.
fn short(text: &str) -> String {
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text.to_owned(),
    }
}

fn time_axis(curves: &[Curve]) -> Axis {
    let end = curves.iter().filter_map(|c| c.points.last()).map(|p| p.x).fold(0.0, f64::max);
    let scale = Scale::exact(0.0, end.max(1.0));
    let marks = scale.marks().into_iter().map(|v| (v, format!("{v}")));
    Axis { label: "seconds".into(), scale, marks: marks.collect() }
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// 2 is `99 %`, 3 is `99.9 %`.
pub fn percent(decades: f64) -> String {
    let missing = 100.0 * 10f64.powf(-decades);
    let places = if decades < 1.0 { 0 } else { (decades.floor() as usize).saturating_sub(2) };
    // Between the marks one place more, rounded down: nothing but all is 100 %.
    let places = places + usize::from((decades - decades.round()).abs() > 1e-6 && decades > 1.0);
    let unit = 10f64.powi(places as i32);
    format!("{:.places$} %", ((100.0 - missing) * unit + 1e-6).floor() / unit)
}

fn at_second(second: f64) -> String {
    format!("{} s", (second * 10.0).round() / 10.0)
}

/// The drawing in words: each set at some places.
fn describe(
    curves: &[Curve],
    sets: &[String],
    what: &str,
    at: &[f64],
    x_text: fn(f64) -> String,
) -> String {
    let unit = if what.starts_with("deliveries") { Unit::PerSecond } else { Unit::Nanoseconds };
    let of_curve = |curve: &Curve| {
        let values = at.iter().filter_map(|x| {
            let point = curve.points.iter().find(|point| point.x >= x - 1e-9)?;
            let value = unit.show(point.mid);
            Some(if at.len() == 1 { value } else { format!("{} {value}", x_text(*x)) })
        });
        let values: Vec<String> = match at {
            // Over time: all of it, from lowest to highest.
            [_] => {
                let low = curve.points.iter().map(|p| p.mid).fold(f64::INFINITY, f64::min);
                let high = curve.points.iter().map(|p| p.mid).fold(0.0, f64::max);
                vec![format!("from {} to {}", unit.show(low), unit.show(high))]
            }
            _ => values.collect(),
        };
        format!("{}: {}", sets[curve.set], values.join(", "))
    };
    let all: Vec<String> = curves.iter().map(of_curve).collect();
    format!("{}. {}.", sentence(what), all.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_enclose_the_values() {
        let scale = Scale::linear(87.0);
        assert_eq!(scale.marks(), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!((scale.place(0.0), scale.place(50.0), scale.place(200.0)), (0.0, 0.5, 1.0));
        let scale = Scale::log(30.0, 800.0);
        assert_eq!(scale.marks(), [20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]);
        let middle = scale.place((20.0f64 * 1000.0).sqrt());
        assert!((middle - 0.5).abs() < 1e-9);
        let wide = Scale::log(1e3, 1e9);
        assert_eq!(wide.marks().len(), 7, "powers of ten only: {:?}", wide.marks());
        assert_eq!(Scale::log(0.0, 0.0).place(0.0), 0.0);
        assert!(Scale::linear(0.0).place(0.0).is_finite());
    }

    #[test]
    fn percentiles_are_written_as_people_do() {
        let cases =
            [(0.0, "0 %"), (1.0, "90 %"), (2.0, "99 %"), (3.0, "99.9 %"), (5.0, "99.999 %")];
        for (decades, text) in cases {
            assert_eq!(percent(decades), text);
        }
        assert_eq!(percent(std::f64::consts::LOG10_2), "50 %");
        assert_eq!(percent(2.5), "99.6 %");
        assert_eq!(percent(3.99), "99.98 %");
    }

    #[test]
    fn steps_give_a_few_marks() {
        for length in [0.3, 1.0, 7.0, 42.0, 99.0, 1234.0] {
            let marks = length / nice_step(length);
            assert!((4.0..=10.0).contains(&marks), "{length}: {marks}");
            for mark in Scale::exact(0.0, length).marks() {
                assert!(format!("{mark}").len() <= 5, "{length}: {mark}");
            }
        }
    }
}
