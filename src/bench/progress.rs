//! The live line: how a run goes, while it goes.
//!
//! It is written to stderr, over itself, and removed at the end; nothing else is written meanwhile.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::time::Duration;

use super::report::{Grouped, Nanos};
use super::shared::Phase;
use super::worker::Interval;
use super::workload::Plan;
use crate::clock::Time;

/// Between two lines.
const EVERY: Duration = Duration::from_millis(500);
/// Back to the line's beginning, and nothing on it.
const CLEAR: &str = "\r\x1b[2K";

/// How things are.
pub(super) struct Moment {
    pub(super) phase: Phase,
    pub(super) left: Duration,
    pub(super) done: u64,
    pub(super) sent: u64,
    pub(super) arrived: u64,
    pub(super) missing: u64,
}

/// The line.
pub(super) struct Progress {
    on: bool,
    clients: usize,
    visits: bool,
    expected: u64,
    next: Time,
    /// When the last line was, and how many had come.
    last: Option<(Time, u64)>,
    rate: u64,
    /// Percentiles of the last second.
    latency: String,
}

impl Progress {
    pub(super) fn new(on: bool, plan: &Plan) -> Self {
        Self {
            on,
            clients: plan.clients(),
            visits: plan.headline_is_visits(),
            expected: 0,
            next: Time::ZERO,
            last: None,
            rate: 0,
            latency: String::new(),
        }
    }

    /// So many messages are to be stored, or to come.
    pub(super) fn expect(&mut self, messages: u64) {
        self.expected = messages;
    }

    /// A second is over.
    pub(super) fn on_second(&mut self, second: &Interval) {
        if !self.on {
            return;
        }
        let values = if self.visits { &second.visit_latency } else { &second.latency };
        self.latency = match values.is_empty() {
            true => String::new(),
            false => {
                let at = |quantile| Nanos(values.value_at_quantile(quantile));
                format!(", p50 {} p99 {} p99.9 {}", at(0.5), at(0.99), at(0.999))
            }
        };
        if self.visits {
            self.rate = values.len();
        }
    }

    /// Whether it is time to show how things are.
    pub(super) fn is_due(&self, now: Time) -> bool {
        self.on && now >= self.next
    }

    /// Shows how things are.
    pub(super) fn show(&mut self, now: Time, moment: &Moment) {
        self.next = now + EVERY;
        if let Some((at, arrived)) = self.last.filter(|_| !self.visits) {
            let seconds = now.since(at).as_secs_f64().max(1e-3);
            self.rate = (moment.arrived.saturating_sub(arrived) as f64 / seconds) as u64;
        }
        self.last = Some((now, moment.arrived));
        let line = self.line(moment);
        // A terminal that is gone is not worth a run.
        let _ = write!(std::io::stderr(), "{CLEAR}{line}");
    }

    fn line(&self, moment: &Moment) -> String {
        let Self { clients, expected, rate, latency, .. } = self;
        let rate = Grouped(*rate);
        match moment.phase {
            Phase::SetUp => format!("connected {} of {clients}", moment.done),
            Phase::Load if *expected > 0 => {
                format!("stored {} of {}", Grouped(moment.sent), Grouped(*expected))
            }
            Phase::Replay => {
                let (arrived, expected) = (Grouped(moment.arrived), Grouped(*expected));
                format!("replayed {arrived} of {expected}, {rate}/s{latency}")
            }
            Phase::Load => format!(
                "{rate}/s{latency}, {} lost, {:.0} s left",
                moment.missing,
                moment.left.as_secs_f64().ceil()
            ),
            Phase::Drain => format!("{rate}/s, waiting for what is under way"),
            Phase::CleanUp | Phase::Goodbye => "cleaning up".into(),
        }
    }

    /// Takes the line away.
    pub(super) fn end(&mut self) {
        if std::mem::take(&mut self.on) && self.last.is_some() {
            let _ = write!(std::io::stderr(), "{CLEAR}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::histogram;
    use super::super::workload::tests::plan;
    use super::*;

    #[test]
    fn the_line_says_what_is_asked_of_it() {
        let mut progress = Progress::new(true, &plan("workload = \"pairs\"").unwrap());
        let mut latency = histogram();
        latency.record(1500).unwrap();
        let empty = histogram();
        progress.on_second(&Interval {
            index: 0,
            length: Duration::from_secs(1),
            latency,
            visit_latency: empty.clone(),
            lateness: empty,
        });
        progress.rate = 12_345;
        let moment = |phase| Moment {
            phase,
            left: Duration::from_millis(2500),
            done: 3,
            sent: 0,
            arrived: 0,
            missing: 2,
        };
        let line = progress.line(&moment(Phase::Load));
        assert_eq!(line, "12,345/s, p50 1.5 µs p99 1.5 µs p99.9 1.5 µs, 2 lost, 3 s left");
        assert_eq!(progress.line(&moment(Phase::SetUp)), "connected 3 of 20");
        assert!(progress.is_due(Time::ZERO));
        progress.on = false;
        assert!(!progress.is_due(Time::ZERO), "quiet when not a terminal");
    }
}
