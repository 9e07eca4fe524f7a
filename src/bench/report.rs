//! What a run found, for people and as JSON.
#![forbid(unsafe_code)]

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::driver::Look;
use super::process::Spent;
use super::record::{Faults, Recorder};
use super::workload::{Load, Plan, Workload};
use crate::codec::mqtt::Version;
use crate::limits::BENCH_STALL;

/// From this part of a CPU on, the generator may be what limits a closed loop.
const GENERATOR_BUSY: f64 = 0.90;
/// A broker below this part of a CPU was not the limit either.
const BROKER_BUSY: f64 = 0.95;
/// A broker that delivers takes more than this, in microseconds of CPU for each message.
const BROKER_MICROS_MIN: f64 = 0.02;
/// In the open loop: the 99th percentile of lateness, in nanoseconds, above which latencies are
/// partly the generator's own.
const LATE_NANOS: u64 = 200_000;

/// Percentiles of a histogram, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many values.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
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
    fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            count: histogram.len(),
            mean: histogram.mean(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p99_9: histogram.value_at_quantile(0.999),
            p99_99: histogram.value_at_quantile(0.9999),
            max: histogram.max(),
        }
    }
}

/// What the broker's process has used while it was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BrokerCost {
    /// Its process.
    pub pid: u32,
    /// The headline on a machine with noise: microseconds on a CPU for each delivered message.
    pub cpu_micros_per_delivered: f64,
    /// Times a thread slept for each delivered message.
    pub sleeps_per_delivered: f64,
    /// The rest.
    #[serde(flatten)]
    pub spent: Spent,
}

/// What the generator has used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GeneratorCost {
    /// Microseconds on a CPU for each delivered message.
    pub cpu_micros_per_delivered: f64,
    /// The rest.
    #[serde(flatten)]
    pub spent: Spent,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of this program.
    pub version: &'static str,
    /// The question.
    pub workload: Workload,
    /// `3.1`, `3.1.1` or `5.0`.
    pub mqtt: &'static str,
    /// Of messages and subscriptions.
    pub qos: u8,
    /// Bytes.
    pub payload: usize,
    /// How many.
    pub publishers: usize,
    /// How many.
    pub subscribers: usize,
    /// When they published.
    pub load: Load,
    /// Unacknowledged messages of each publisher; only at QoS 1 and 2.
    pub in_flight: Option<u16>,
    /// The generator's kernel interface.
    pub io: &'static str,
    /// The broker's address.
    pub broker_address: String,
    /// What was measured.
    pub seconds: f64,
    /// What was not, before it.
    pub warm_up_seconds: f64,
    /// Messages published while measured.
    pub published: u64,
    /// Messages delivered while measured.
    pub delivered: u64,
    /// A second.
    pub published_per_second: f64,
    /// A second.
    pub delivered_per_second: f64,
    /// Intended send to delivery.
    pub latency_nanos: Percentiles,
    /// Intended send to actual send; only in the open loop.
    pub lateness_nanos: Option<Percentiles>,
    /// Of the whole run.
    pub faults: Faults,
    /// Times the closed loop stood still and its windows were given up.
    pub stalls: u64,
    /// Messages that the open loop's schedule asked for and that could not be sent.
    pub unsent: u64,
    /// Only when its process is known.
    pub broker: Option<BrokerCost>,
    /// Our own.
    pub generator: GeneratorCost,
    /// Whether it was ended early.
    pub interrupted: bool,
    /// Why it ended early.
    pub failure: Option<String>,
    /// What to keep in mind when reading it.
    pub warnings: Vec<String>,
}

/// What a report is made of.
pub(super) struct Input<'a> {
    pub(super) plan: &'a Plan,
    pub(super) backend: &'static str,
    pub(super) first: Look,
    pub(super) last: Look,
    pub(super) recorder: &'a Recorder,
    pub(super) stalls: u64,
    pub(super) unsent: u64,
    pub(super) interrupted: bool,
    pub(super) failure: Option<String>,
}

impl Input<'_> {
    pub(super) fn into_report(self) -> Report {
        let Self { plan, recorder, first, last, .. } = self;
        let elapsed = last.at.since(first.at);
        let seconds = elapsed.as_secs_f64();
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let delivered = recorder.delivered;
        let each = |whole: f64| if delivered > 0 { whole / delivered as f64 } else { f64::NAN };
        let generator = last.generator.since(&first.generator, elapsed);
        let broker = plan.broker_pid.zip(first.broker).zip(last.broker).map(|((pid, a), b)| {
            let spent = b.since(&a, elapsed);
            BrokerCost {
                pid,
                cpu_micros_per_delivered: each(spent.cpu_seconds * 1e6),
                sleeps_per_delivered: each(spent.voluntary_switches as f64),
                spent,
            }
        });
        let open = matches!(plan.load, Load::Open { .. });
        let mut report = Report {
            version: env!("CARGO_PKG_VERSION"),
            workload: plan.workload,
            mqtt: match plan.version {
                Version::V31 => "3.1",
                Version::V311 => "3.1.1",
                Version::V5 => "5.0",
            },
            qos: plan.qos as u8,
            payload: plan.payload,
            publishers: plan.publishers,
            subscribers: plan.subscribers,
            load: plan.load,
            in_flight: (plan.qos as u8 > 0).then_some(plan.in_flight),
            io: self.backend,
            broker_address: plan.broker.to_string(),
            seconds,
            warm_up_seconds: plan.warm_up.as_secs_f64(),
            published: recorder.published,
            delivered,
            published_per_second: per_second(recorder.published),
            delivered_per_second: per_second(delivered),
            latency_nanos: Percentiles::of(&recorder.latency),
            lateness_nanos: open.then(|| Percentiles::of(&recorder.lateness)),
            faults: recorder.faults(),
            stalls: self.stalls,
            unsent: self.unsent,
            broker,
            generator: GeneratorCost {
                cpu_micros_per_delivered: each(generator.cpu_seconds * 1e6),
                spent: generator,
            },
            interrupted: self.interrupted,
            failure: self.failure,
            warnings: Vec::new(),
        };
        report.warnings = report.find_warnings();
        report
    }
}

impl Report {
    /// Whether the run did what was asked and nothing went wrong.
    pub fn is_clean(&self) -> bool {
        self.failure.is_none() && self.faults.none() && self.delivered > 0
    }

    fn find_warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let own = self.generator.spent.cpu_share;
        match &self.lateness_nanos {
            Some(lateness) if lateness.p99 > LATE_NANOS => warnings.push(format!(
                "the generator sent late (p99 {}): latencies are partly its own",
                Nanos(lateness.p99)
            )),
            Some(_) => {}
            None if own >= GENERATOR_BUSY => {
                let broker = self.broker.map(|b| b.spent.cpu_share);
                if broker.is_none_or(|share| share < BROKER_BUSY) {
                    warnings.push(format!(
                        "the generator used {:.0} % of a core and may have been the limit: \
                         the rate is a floor",
                        own * 100.0
                    ));
                }
            }
            None => {}
        }
        if let Some(broker) = self.broker
            && broker.cpu_micros_per_delivered < BROKER_MICROS_MIN
        {
            warnings.push(format!(
                "process {} used almost no CPU: is it the broker's pid?",
                broker.pid
            ));
        }
        if self.stalls > 0 {
            warnings.push(format!(
                "nothing came for {} s, {} times, with messages under way",
                BENCH_STALL.as_secs(),
                self.stalls
            ));
        }
        if self.unsent > 0 {
            warnings.push(format!(
                "{} messages of the schedule could not be sent: the rate is above what the broker \
                 takes, and latencies are too good",
                self.unsent
            ));
        }
        if self.delivered == 0 {
            warnings.push("nothing was delivered".into());
        }
        warnings
    }
}

/// A time for people.
struct Nanos(u64);

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..1_000 => write!(f, "{} ns", self.0),
            1_000..1_000_000 => write!(f, "{:.1} µs", self.0 as f64 / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.2} ms", self.0 as f64 / 1e6),
            _ => write!(f, "{:.2} s", self.0 as f64 / 1e9),
        }
    }
}

/// A count or rate for people: 1,234,567.
struct Grouped(u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (i, digit) in digits.char_indices() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "p50 {}   p90 {}   p99 {}   p99.9 {}   max {}",
            Nanos(self.p50),
            Nanos(self.p90),
            Nanos(self.p99),
            Nanos(self.p99_9),
            Nanos(self.max)
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} to {} clients, MQTT {}, QoS {}, {} B, ",
            self.workload, self.publishers, self.subscribers, self.mqtt, self.qos, self.payload
        )?;
        match self.load {
            Load::Closed { window } => write!(f, "closed loop, window {window}")?,
            Load::Open { rate } => write!(f, "open loop, {rate} messages a second")?,
        }
        if let Some(in_flight) = self.in_flight {
            write!(f, ", {in_flight} unacknowledged")?;
        }
        writeln!(f, "; {:.1} s after {:.1} s, on {}", self.seconds, self.warm_up_seconds, self.io)?;
        writeln!(
            f,
            "  delivered    {} a second ({} in all), published {} a second",
            Grouped(self.delivered_per_second as u64),
            Grouped(self.delivered),
            Grouped(self.published_per_second as u64)
        )?;
        if let Some(broker) = &self.broker {
            let BrokerCost { spent, .. } = broker;
            writeln!(
                f,
                "  broker       {:.3} µs of CPU per delivered message; {:.0} % of a core ({:.0} % \
                 of that in user mode), {:.4} sleeps a message, {:.1} MiB",
                broker.cpu_micros_per_delivered,
                spent.cpu_share * 100.0,
                spent.user_part * 100.0,
                broker.sleeps_per_delivered,
                spent.rss_bytes as f64 / 1_048_576.0
            )?;
        }
        writeln!(f, "  latency      {}", self.latency_nanos)?;
        if let Some(lateness) = &self.lateness_nanos {
            writeln!(f, "  sent late    {lateness}")?;
        }
        let Faults { lost, duplicated, out_of_order, foreign, streams_affected } = self.faults;
        writeln!(
            f,
            "  accounting   {lost} lost, {duplicated} duplicated, {out_of_order} out of order, \
             {foreign} foreign ({streams_affected} streams affected)"
        )?;
        writeln!(
            f,
            "  generator    {:.0} % of a core, {:.3} µs per delivered message",
            self.generator.spent.cpu_share * 100.0,
            self.generator.cpu_micros_per_delivered
        )?;
        if self.interrupted {
            writeln!(f, "  interrupted")?;
        }
        if let Some(failure) = &self.failure {
            writeln!(f, "  FAILED       {failure}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "  warning      {warning}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::process::Usage;
    use super::super::workload::tests::plan;
    use super::*;
    use crate::clock::Time;

    fn look(secs: u64, own: f64, broker: f64) -> Look {
        let usage = |secs: f64| Usage { cpu_nanos: (secs * 1e9) as u64, ..Usage::default() };
        Look {
            at: Time::from_nanos(secs * 1_000_000_000),
            generator: usage(own),
            broker: Some(usage(broker)),
        }
    }

    fn report(load: Load, own: f64, broker: f64, late: u64) -> Report {
        let plan = Plan { load, broker_pid: Some(7), ..plan(Workload::Pairs, 1, 1) };
        let mut recorder = Recorder::new(plan.layout(), 1);
        recorder.measuring = true;
        recorder.measured = Time::ZERO..Time::MAX;
        for _ in 0..1000 {
            recorder.on_published(0, Time::from_nanos(0), Time::from_nanos(late));
        }
        recorder.delivered = 1000;
        Input {
            plan: &plan,
            backend: "test",
            first: look(10, 0.0, 1.0),
            last: look(12, own, 1.0 + broker),
            recorder: &recorder,
            stalls: 0,
            unsent: 0,
            interrupted: false,
            failure: None,
        }
        .into_report()
    }

    const CLOSED: Load = Load::Closed { window: 4 };

    #[test]
    fn the_headline_is_cpu_time_per_delivered_message() {
        let report = report(CLOSED, 0.5, 1.0, 0);
        let broker = report.broker.unwrap();
        assert!((broker.cpu_micros_per_delivered - 1000.0).abs() < 1e-6);
        assert!((broker.spent.cpu_share - 0.5).abs() < 1e-9);
        assert!((report.delivered_per_second - 500.0).abs() < 1e-9);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["broker"]["cpu_seconds"], 1.0);
        assert_eq!(json["load"]["window"], 4);
        assert_eq!(json["faults"]["lost"], 1000);
        let text = report.to_string();
        assert!(text.contains("1000.000 µs of CPU per delivered message"), "{text}");
        assert!(text.contains("1000 lost, 0 duplicated, 0 out of order"), "{text}");
    }

    #[test]
    fn says_when_the_generator_was_the_limit() {
        let warned = |report: Report| !report.warnings.is_empty();
        assert!(warned(report(CLOSED, 1.9, 1.0, 0)), "busy, and the broker was not");
        assert!(!warned(report(CLOSED, 1.9, 2.0, 0)), "both busy: the broker was");
        assert!(!warned(report(CLOSED, 1.0, 1.0, 0)));
        let open = Load::Open { rate: 1e3 };
        assert!(warned(report(open, 0.1, 0.1, 1_000_000)), "late");
        assert!(!warned(report(open, 2.0, 0.1, 1_000)), "it spins in the open loop");
    }

    #[test]
    fn says_when_the_pid_is_not_the_brokers() {
        let asked = |report: Report| report.to_string().contains("is it the broker's pid?");
        assert!(asked(report(CLOSED, 0.5, 0.0, 0)));
        assert!(!asked(report(CLOSED, 0.5, 0.001, 0)));
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(Grouped(1_234_567).to_string(), "1,234,567");
        assert_eq!(Grouped(123).to_string(), "123");
        let nanos = [(999, "999 ns"), (1_500, "1.5 µs"), (2_340_000, "2.34 ms")];
        for (value, text) in nanos {
            assert_eq!(Nanos(value).to_string(), text);
        }
    }
}
