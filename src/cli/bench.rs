//! `noctule bench`: puts a load on a broker and says what it cost.
#![forbid(unsafe_code)]

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{EXIT_USAGE, fail};
use crate::bench::workload::{Load, Plan, Workload};
use crate::bench::{self, Error};
use crate::codec::mqtt::{QoS, Version};
use crate::io;
use crate::server::config::units::CpuList;

/// Exit code of a run that failed, or that found lost, duplicated or reordered messages.
const EXIT_FAULTS: u8 = 1;

/// One workload against one broker.
#[derive(Args, Debug)]
pub struct Flags {
    /// What to measure
    #[arg(value_enum)]
    workload: Shape,
    /// The broker's host
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The broker's port
    #[arg(long, default_value_t = 1883)]
    port: u16,
    /// The broker's process on this machine: its CPU time per message is the best figure there is
    #[arg(long, value_name = "PID")]
    broker_pid: Option<u32>,
    /// Publishers, each with one subscriber: pairs and ping-pong
    #[arg(long, default_value_t = 10)]
    pairs: usize,
    /// Publishers: fan-in
    #[arg(long, default_value_t = 100)]
    publishers: usize,
    /// Subscribers: fan-out
    #[arg(long, default_value_t = 100)]
    subscribers: usize,
    /// Of messages and subscriptions: 0, 1 or 2
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// Bytes of a message; the first 16 are for the accounting
    #[arg(long, default_value_t = 64)]
    payload: usize,
    /// Closed loop: messages of each publisher that are under way, until all its subscribers have
    /// them [default: 256 for pairs, 64 for fan-out and fan-in, 1 for ping-pong]
    #[arg(long, conflicts_with = "rate")]
    window: Option<u32>,
    /// QoS 1 and 2: messages of each publisher that are unacknowledged
    #[arg(long, default_value_t = 20)]
    inflight: u16,
    /// Open loop: messages published a second, in all, whatever the broker does; latency counts
    /// from the intended time
    #[arg(long)]
    rate: Option<f64>,
    /// Seconds that are measured
    #[arg(long, default_value_t = 5.0)]
    duration: f64,
    /// Seconds before that
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Protocol version: 3.1, 3.1.1 or 5
    #[arg(long, default_value = "3.1.1", value_parser = parse_version)]
    mqtt: Version,
    /// CPUs for the generator, like 1 or 0,2-5
    #[arg(long)]
    cpus: Option<CpuList>,
    /// The generator's kernel interface: auto, uring or epoll
    #[arg(long, default_value_t = io::Choice::Auto)]
    io: io::Choice,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shape {
    /// Publishers with a topic and a subscriber each
    Pairs,
    /// Pairs with one message under way
    PingPong,
    /// One publisher, many subscribers
    FanOut,
    /// Many publishers, one subscriber
    FanIn,
}

fn parse_version(text: &str) -> Result<Version, String> {
    match text {
        "3.1" => Ok(Version::V31),
        "3.1.1" => Ok(Version::V311),
        "5" | "5.0" => Ok(Version::V5),
        _ => Err("3.1, 3.1.1 or 5".into()),
    }
}

/// Runs it and prints what it found.
pub fn run(flags: Flags) -> ExitCode {
    if let Some(cpus) = &flags.cpus
        && let Err(error) = pin(cpus)
    {
        return fail(EXIT_USAGE, format!("--cpus {cpus}: {error}"));
    }
    let json = flags.json;
    let plan = match flags.into_plan() {
        Ok(plan) => plan,
        Err(message) => return fail(EXIT_USAGE, message),
    };
    let interrupted = match interrupt_flag() {
        Ok(flag) => flag,
        Err(error) => return fail(EXIT_FAULTS, format!("handle Ctrl-C: {error}")),
    };
    let report = match bench::run(&plan, &interrupted) {
        Ok(report) => report,
        Err(error @ Error::Plan(_)) => return fail(EXIT_USAGE, error),
        Err(error) => return fail(EXIT_FAULTS, error),
    };
    let text = match json {
        true => serde_json::to_string_pretty(&report).expect("invariant: a report is JSON") + "\n",
        false => report.to_string(),
    };
    // Whoever closed the pipe has read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAULTS) }
}

impl Flags {
    fn into_plan(self) -> Result<Plan, String> {
        let (workload, publishers, subscribers, window) = match self.workload {
            Shape::Pairs => (Workload::Pairs, self.pairs, self.pairs, 256),
            Shape::PingPong => (Workload::PingPong, self.pairs, self.pairs, 1),
            Shape::FanOut => (Workload::FanOut, 1, self.subscribers, 64),
            Shape::FanIn => (Workload::FanIn, self.publishers, 1, 64),
        };
        let load = match (self.rate, self.window) {
            (Some(rate), _) => Load::Open { rate },
            (None, chosen) => Load::Closed { window: chosen.unwrap_or(window) },
        };
        Ok(Plan {
            workload,
            publishers,
            subscribers,
            qos: QoS::from_bits(self.qos).ok_or("--qos is 0, 1 or 2")?,
            payload: self.payload,
            load,
            in_flight: self.inflight,
            warm_up: seconds("--warm-up", self.warm_up)?,
            duration: seconds("--duration", self.duration)?,
            version: self.mqtt,
            broker: resolve(&self.host, self.port)?,
            broker_pid: self.broker_pid,
            io: self.io,
        })
    }
}

fn seconds(flag: &str, value: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(value).map_err(|error| format!("{flag} {value}: {error}"))
}

fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
    let mut found = (host, port).to_socket_addrs().map_err(|e| format!("--host {host}: {e}"))?;
    found.next().ok_or_else(|| format!("--host {host} has no address"))
}

fn pin(cpus: &CpuList) -> rustix::io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    for cpu in &cpus.0 {
        set.set(*cpu);
    }
    rustix::thread::sched_setaffinity(None, &set)
}

/// Set by the first SIGINT or SIGTERM; the second ends the process.
fn interrupt_flag() -> std::io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let code = 128 + signal;
        signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn plan(line: &str) -> Result<Plan, String> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        Line::try_parse_from(words).map_err(|e| e.to_string())?.flags.into_plan()
    }

    #[test]
    fn each_workload_has_its_shape() {
        let shape = |line: &str| {
            let plan = plan(line).unwrap();
            (plan.publishers, plan.subscribers, plan.load)
        };
        let closed = |window| Load::Closed { window };
        assert_eq!(shape("pairs --pairs 3"), (3, 3, closed(256)));
        assert_eq!(shape("ping-pong"), (10, 10, closed(1)));
        assert_eq!(shape("fan-out --subscribers 7 --window 9"), (1, 7, closed(9)));
        assert_eq!(shape("fan-in --publishers 5"), (5, 1, closed(64)));
        assert_eq!(shape("pairs --rate 2e3"), (10, 10, Load::Open { rate: 2000.0 }));
    }

    #[test]
    fn bad_flags_are_refused() {
        let lines =
            ["pairs --qos 3", "pairs --rate 1 --window 1", "pairs --duration -1", "pairs --mqtt 4"];
        for line in lines {
            assert!(plan(line).is_err(), "{line}");
        }
        assert_eq!(plan("pairs --mqtt 5 --qos 2").unwrap().version, Version::V5);
    }
}
