//! What a run found: its [`Summary`], the warnings that it deserves, and how it reads in a terminal.
//!
//! The thresholds of the warnings stand here; perf/README.md explains them.
#![forbid(unsafe_code)]

use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::conductor::Look;
use super::process::Spent;
use super::record::{Faults, tally};
use super::run::environment::rfc3339;
use super::run::summary::{Better, Cost, Figure, Mode, Percentiles, SCHEMA};
use super::run::{Environment, Summary};
use super::worker::Found;
use super::workload::{Load, Plan, Schedule, Visit, Workload};
use crate::limits::BENCH_STALL;

/// From this part of a CPU on, a thread of the generator may be what limits a closed loop.
const GENERATOR_BUSY: f64 = 0.90;
/// A broker below this part of a CPU was not the limit either.
const BROKER_BUSY: f64 = 0.95;
/// A broker that delivers takes more than this, in microseconds of CPU for each message.
const BROKER_MICROS_MIN: f64 = 0.02;
/// In the open loop: the 99th percentile of lateness, in nanoseconds, above which latencies are
/// partly the generator's own.
const LATE_NANOS: u64 = 200_000;

/// A part of a run between two looks.
pub(super) struct Stage {
    pub(super) seconds: f64,
    elapsed: Duration,
    generator: Spent,
    /// Of the broker, by how much it grew.
    grown_bytes: u64,
    /// What it has given to file systems.
    written_bytes: u64,
    broker: Option<(u32, Spent)>,
}

impl Stage {
    pub(super) fn new(plan: &Plan, [first, last]: [Look; 2]) -> Self {
        let elapsed = last.at.since(first.at);
        let broker = plan.broker_pid.zip(first.broker).zip(last.broker);
        let rss = |look: Look| look.broker.map_or(0, |usage| usage.rss_bytes);
        let written = |look: Look| look.broker.map_or(0, |usage| usage.written_bytes);
        Self {
            written_bytes: written(last).saturating_sub(written(first)),
            grown_bytes: rss(last).saturating_sub(rss(first)),
            seconds: elapsed.as_secs_f64(),
            elapsed,
            generator: last.generator.since(&first.generator, elapsed),
            broker: broker.map(|((pid, before), after)| (pid, after.since(&before, elapsed))),
        }
    }

    fn per_second(&self, count: u64) -> f64 {
        if self.elapsed.is_zero() { 0.0 } else { count as f64 / self.seconds }
    }

    fn broker_micros_each(&self, count: u64) -> Option<f64> {
        self.broker.filter(|_| count > 0).map(|(_, spent)| spent.cpu_seconds * 1e6 / count as f64)
    }
}

/// What a summary is made of.
pub(super) struct Input<'a> {
    pub(super) plan: &'a Plan,
    pub(super) scenario: String,
    pub(super) environment: &'a Environment,
    pub(super) started: Duration,
    pub(super) found: &'a [Found],
    pub(super) set_up: Stage,
    pub(super) load: Option<Stage>,
    pub(super) replay: Option<Stage>,
    pub(super) stored: u64,
    pub(super) headline: &'a Histogram<u64>,
    pub(super) visit_latency: &'a Histogram<u64>,
    pub(super) connect_latency: &'a Histogram<u64>,
    pub(super) lateness: Option<&'a Histogram<u64>>,
    pub(super) interrupted: bool,
    pub(super) failure: Option<String>,
}

impl Input<'_> {
    pub(super) fn into_summary(self) -> Summary {
        let plan = self.plan;
        let sum = |count: fn(&Found) -> u64| self.found.iter().map(count).sum::<u64>();
        let main = self.replay.as_ref().or(self.load.as_ref()).unwrap_or(&self.set_up);
        let bounded = plan.is_bounded();
        let (published, delivered) = match plan.workload {
            Workload::Connect => (0, self.connect_latency.len()),
            _ if bounded && self.replay.is_some() => {
                (self.stored, sum(|found| found.receiver.arrived))
            }
            _ if plan.headline_is_visits() => (0, sum(|found| found.visited)),
            _ => (sum(|found| found.published), sum(|found| found.receiver.delivered)),
        };
        let load = self.load.as_ref().unwrap_or(main);
        let mut summary = Summary {
            schema: SCHEMA,
            scenario: self.scenario.clone(),
            workload: plan.workload.to_string(),
            description: describe(plan),
            mode: mode(plan),
            started: rfc3339(self.started),
            seconds: main.seconds,
            warm_up_seconds: plan.warm_up.as_secs_f64(),
            published,
            delivered,
            published_per_second: load.per_second(published),
            delivered_per_second: main.per_second(delivered),
            latency_of: latency_of(plan).into(),
            latency_nanos: Percentiles::of(self.headline),
            lateness_nanos: self.lateness.map(Percentiles::of),
            faults: (plan.publishers > 0).then(|| self.faults()),
            stalls: sum(|found| found.stalls),
            unsent: sum(|found| found.unsent),
            figures: Vec::new(),
            broker: main.broker.map(|(pid, spent)| Cost::new(pid, spent, delivered)),
            generator: Cost::new(std::process::id(), main.generator, delivered),
            interrupted: self.interrupted,
            failure: self.failure.clone(),
            warnings: Vec::new(),
        };
        summary.figures = self.figures();
        let busiest = self.found.iter().map(|found| found.cpu_share).fold(0.0, f64::max);
        summary.warnings = warnings(plan, &summary, busiest, self.environment);
        summary
    }

    fn faults(&self) -> Faults {
        let mut sent = vec![0; self.plan.publishers];
        for (publisher, count) in self.found.iter().flat_map(|found| &found.sent) {
            sent[*publisher as usize] = *count;
        }
        let receivers: Vec<_> = self.found.iter().map(|found| &found.receiver).collect();
        tally(&sent, &receivers)
    }

    /// What only some workloads have.
    fn figures(&self) -> Vec<Figure> {
        let plan = self.plan;
        let mut figures = Vec::new();
        let mut figure = |name: &str, value: f64, unit: &str, better| {
            figures.push(Figure { name: name.into(), value, unit: unit.into(), better });
        };
        let (lower, higher) = (Some(Better::Lower), Some(Better::Higher));
        let millis =
            |latency: &Histogram<u64>, quantile| latency.value_at_quantile(quantile) as f64 / 1e6;
        let connected = self.connect_latency.len();
        if connected > 0 {
            let rate_was_ours = plan.settings.ramp.is_some();
            let better = if rate_was_ours { None } else { higher };
            figure("connections a second", self.set_up.per_second(connected), "1/s", better);
            if plan.workload != Workload::Connect {
                figure("connect p99", millis(self.connect_latency, 0.99), "ms", lower);
            }
            if let Some(micros) = self.set_up.broker_micros_each(connected) {
                figure("broker CPU for each connection", micros, "µs", lower);
            }
        }
        if self.set_up.broker.is_some() && plan.workload.has_visitors() && connected > 0 {
            let bytes = self.set_up.grown_bytes as f64 / connected as f64;
            figure("broker memory for each connection", bytes.round(), "B", lower);
        }
        if let Some(load) = self.load.as_ref().filter(|_| plan.is_bounded()) {
            figure("stored a second", load.per_second(self.stored), "1/s", higher);
            if !self.visit_latency.is_empty() {
                figure("store p50", millis(self.visit_latency, 0.5), "ms", lower);
                figure("store p99", millis(self.visit_latency, 0.99), "ms", lower);
            }
            if let Some(micros) = load.broker_micros_each(self.stored) {
                figure("broker CPU for each stored", micros, "µs", lower);
            }
            if load.broker.is_some() && self.stored > 0 {
                let bytes = load.grown_bytes as f64 / self.stored as f64;
                figure("broker memory for each stored", bytes.round(), "B", lower);
                let bytes = load.written_bytes as f64 / self.stored as f64;
                figure("broker bytes written for each stored", bytes.round(), "B", lower);
            }
        }
        if let Some(replay) = &self.replay {
            figure("replay", replay.seconds * 1e3, "ms", lower);
        }
        let visited: u64 = self.found.iter().map(|found| found.visited).sum();
        if plan.publishers > 0 && visited > 0 {
            let (name, load) = (unit(plan), self.load.as_ref().unwrap_or(&self.set_up));
            figure(&format!("{name} a second"), load.per_second(visited), "1/s", None);
            figure(&format!("{name} p50"), millis(self.visit_latency, 0.5), "ms", lower);
            figure(&format!("{name} p99"), millis(self.visit_latency, 0.99), "ms", lower);
            figure(&format!("{name} max"), millis(self.visit_latency, 1.0), "ms", lower);
        }
        if plan.slow > 0 {
            let slow: u64 = self.found.iter().map(|found| found.receiver.slow_arrived).sum();
            let gone: u64 = self.found.iter().map(|found| found.slow_dismissed).sum();
            figure("messages to slow subscribers", slow as f64, "", None);
            figure("slow subscribers that the broker disconnected", gone as f64, "", None);
        }
        for (thread, found) in self.found.iter().enumerate() {
            let name = format!("generator thread {thread}");
            figure(&name, found.cpu_share * 100.0, "% of a core", None);
        }
        figures
    }
}

/// What is counted, where nothing is published: and beside messages, what visitors do.
fn unit(plan: &Plan) -> &'static str {
    match plan.visit() {
        Visit::Stay if plan.workload == Workload::Connect => "connections",
        Visit::Stay => "messages",
        Visit::Ping => "pings",
        Visit::Session => "sessions",
        Visit::Reconnect => "reconnections",
    }
}

fn latency_of(plan: &Plan) -> &'static str {
    match (plan.workload, plan.headline_is_visits()) {
        (Workload::Connect, _) => "intended connect to CONNACK",
        (Workload::Idle, true) => "intended PINGREQ to PINGRESP",
        (Workload::Churn, true) => "intended connect to SUBACK",
        (Workload::Storm, true) => "loss of the connection to CONNACK",
        (Workload::RequestResponse, _) => "intended request to response",
        (Workload::Retained, _) => "SUBSCRIBE to delivery",
        (Workload::Offline, _) => "reconnect to delivery",
        _ if !plan.has_header() => "nothing: payloads are too small to say when they were sent",
        _ => "intended send to delivery",
    }
}

fn mode(plan: &Plan) -> Mode {
    let load = if plan.headline_is_visits() { plan.visits } else { plan.load };
    match load {
        Load::Closed { window } => Mode::Closed { window },
        Load::Open { rate, schedule } => Mode::Open { rate, schedule: name(schedule).into() },
    }
}

fn name(schedule: Schedule) -> &'static str {
    match schedule {
        Schedule::Constant => "constant",
        Schedule::Poisson => "poisson",
        Schedule::Burst => "burst",
    }
}

/// The run in one line.
fn describe(plan: &Plan) -> String {
    let mut text = plan.workload.to_string() + ":";
    // Writing to a string does not fail.
    if plan.publishers > 0 {
        let _ = match (plan.workload, plan.responders) {
            (Workload::RequestResponse, responders) => {
                write!(text, " {} requesters, {responders} responders,", plan.publishers)
            }
            _ => write!(text, " {} to {} clients,", plan.publishers, plan.subscribers),
        };
    }
    if plan.slow > 0 {
        let _ = write!(text, " {} of them slow,", plan.slow);
    }
    if plan.visitors > 0 {
        let _ = write!(
            text,
            " {} {},",
            plan.visitors,
            match plan.visit() {
                Visit::Stay => "that connect",
                Visit::Ping => "that ping",
                Visit::Session => "that come and go",
                Visit::Reconnect => "that reconnect",
            }
        );
    }
    let _ = write!(text, " MQTT {}", plan.version);
    if plan.publishers > 0 {
        let (qos, subscribed) = (plan.qos as u8, plan.subscriber_qos as u8);
        let sizes: Vec<_> = plan.payload.iter().map(usize::to_string).collect();
        let _ = write!(text, ", QoS {qos}");
        if qos != subscribed {
            let _ = write!(text, " (subscribed {subscribed})");
        }
        let _ = write!(text, ", {} B", sizes.join("/"));
    }
    if plan.settings.messages.is_some() {
        let _ = write!(text, ", {} messages", Grouped(plan.messages()));
    }
    if plan.workload == Workload::Connect {
        let _ = match (plan.settings.ramp, plan.settings.connecting) {
            (Some(ramp), _) => write!(text, ", open loop, {ramp} connections a second"),
            (None, many) => write!(text, ", closed loop, {} at a time", many.unwrap_or(1)),
        };
        return text;
    }
    let _ = match mode(plan) {
        Mode::Closed { .. } if plan.is_bounded() => write!(text, ", as fast as it is taken"),
        Mode::Closed { window } => write!(text, ", closed loop, window {window}"),
        Mode::Open { rate, schedule } => {
            let unit = if plan.headline_is_visits() { unit(plan) } else { "messages" };
            write!(text, ", open loop, {rate} {unit} a second, {schedule}")
        }
    };
    if plan.publishers > 0 && plan.qos as u8 > 0 {
        let _ = write!(text, ", {} unacknowledged", plan.in_flight);
    }
    text
}

/// Whether the run did what was asked and nothing went wrong.
pub fn is_clean(summary: &Summary) -> bool {
    let sound = summary.faults.is_none_or(|faults| faults.none());
    let any = summary.delivered > 0 || summary.latency_nanos.count > 0;
    summary.failure.is_none() && sound && any
}

fn warnings(
    plan: &Plan,
    summary: &Summary,
    busiest: f64,
    environment: &Environment,
) -> Vec<String> {
    let mut warnings = Vec::new();
    match &summary.lateness_nanos {
        Some(lateness) if lateness.p99 > LATE_NANOS => warnings.push(format!(
            "the generator sent late (p99 {}): latencies are partly its own",
            Nanos(lateness.p99)
        )),
        Some(_) => {}
        None if busiest >= GENERATOR_BUSY => {
            let broker = summary.broker.map(|broker| broker.spent.cpu_share);
            if broker.is_none_or(|share| share < BROKER_BUSY) {
                warnings.push(format!(
                    "a thread of the generator used {:.0} % of a core and may have been the limit: \
                     the rate is a floor",
                    busiest * 100.0
                ));
            }
        }
        None => {}
    }
    if let Some(broker) = summary.broker
        && broker.cpu_micros_per_delivered.is_some_and(|micros| micros < BROKER_MICROS_MIN)
    {
        warnings
            .push(format!("process {} used almost no CPU: is it the broker's pid?", broker.pid));
    }
    if summary.stalls > 0 {
        warnings.push(format!(
            "nothing came for {} s, {} times, with messages under way",
            BENCH_STALL.as_secs(),
            summary.stalls
        ));
    }
    if summary.unsent > 0 {
        warnings.push(format!(
            "{} operations of the schedule could not begin: the rate is above what the broker \
             takes, and latencies are too good",
            summary.unsent
        ));
    }
    if summary.delivered == 0 {
        warnings.push(format!("no {} at all", unit(plan)));
    }
    if plan.publishers > 0 && !plan.has_header() {
        warnings.push(
            "payloads below 16 bytes have no accounting: what is lost is only counted, and when \
             it was sent is not known"
                .into(),
        );
    }
    if environment.generator.profile != "release" {
        warnings.push("this is a debug build: the generator is many times slower".into());
    }
    warnings
}

/// A time for people.
pub(super) struct Nanos(pub(super) u64);

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
pub(super) struct Grouped(pub(super) u64);

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

/// A summary for a terminal.
pub struct Text<'a>(pub &'a Summary);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let summary = self.0;
        let Summary { seconds, warm_up_seconds, .. } = summary;
        write!(f, "{}; {seconds:.1} s", summary.description)?;
        if *warm_up_seconds > 0.0 {
            write!(f, " after {warm_up_seconds:.1} s")?;
        }
        let grouped = |value: f64| Grouped(value as u64);
        writeln!(
            f,
            "\n  delivered    {} a second ({} in all), published {} a second",
            grouped(summary.delivered_per_second),
            Grouped(summary.delivered),
            grouped(summary.published_per_second)
        )?;
        if let Some(Cost { cpu_micros_per_delivered, sleeps_per_delivered, spent, .. }) =
            &summary.broker
        {
            writeln!(
                f,
                "  broker       {:.3} µs of CPU per delivered message; {:.0} % of a core ({:.0} % \
                 of that in user mode), {:.4} sleeps a message, {:.1} MiB",
                cpu_micros_per_delivered.unwrap_or(f64::NAN),
                spent.cpu_share * 100.0,
                spent.user_part * 100.0,
                sleeps_per_delivered.unwrap_or(f64::NAN),
                spent.rss_bytes as f64 / 1_048_576.0
            )?;
        }
        writeln!(f, "  latency      {}", summary.latency_of)?;
        if summary.latency_nanos.count > 0 {
            writeln!(f, "               {}", Line(&summary.latency_nanos))?;
        }
        if let Some(lateness) = &summary.lateness_nanos {
            writeln!(f, "  sent late    {}", Line(lateness))?;
        }
        if let Some(faults) = summary.faults {
            let Faults { lost, duplicated, out_of_order, foreign, streams_affected } = faults;
            writeln!(
                f,
                "  accounting   {lost} lost, {duplicated} duplicated, {out_of_order} out of order, \
                 {foreign} foreign ({streams_affected} streams affected)"
            )?;
        }
        for Figure { name, value, unit, .. } in &summary.figures {
            let digits = if value.fract() == 0.0 || *value >= 1000.0 { 0 } else { 2 };
            writeln!(f, "  {name}: {value:.digits$} {unit}")?;
        }
        if summary.interrupted {
            writeln!(f, "  interrupted")?;
        }
        if let Some(failure) = &summary.failure {
            writeln!(f, "  FAILED       {failure}")?;
        }
        for warning in &summary.warnings {
            writeln!(f, "  warning      {warning}")?;
        }
        Ok(())
    }
}

/// Percentiles in a line.
struct Line<'a>(&'a Percentiles);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Percentiles { p50, p90, p99, p99_9, max, .. } = *self.0;
        let [p50, p90, p99, p99_9, max] = [p50, p90, p99, p99_9, max].map(Nanos);
        write!(f, "p50 {p50}   p90 {p90}   p99 {p99}   p99.9 {p99_9}   max {max}")
    }
}
