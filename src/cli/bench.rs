//! `noctule bench`: puts a load on a broker and says what it cost.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;

use super::{EXIT_USAGE, fail};
use crate::bench::run::RunFolder;
use crate::bench::scenario::{Settings, Source};
use crate::bench::workload::{Plan, Workload};
use crate::bench::{self, Error, Options, report, sink};
use crate::server::config::units::CpuList;

/// Exit code of a run that failed, or that found lost, duplicated or reordered messages.
const EXIT_FAULTS: u8 = 1;

/// One workload against one broker.
#[derive(Args, Debug)]
#[command(after_help = after_help())]
pub struct Flags {
    /// A scenario file, or the name of a workload; flags override what the file says
    #[arg(value_name = "SCENARIO|WORKLOAD", required_unless_present = "sink")]
    what: Option<Source>,
    /// Instead of generating, be a peer that only counts and hands on at QoS 0, on this address: to
    /// show what the generator itself can do. It is no broker: it knows topic filters, but no shared
    /// subscriptions, retained messages or sessions
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "127.0.0.1:1883",
          conflicts_with = "what")]
    sink: Option<SocketAddr>,
    /// The broker's process on this machine: its CPU time per message is the best figure there is
    #[arg(long, value_name = "PID", help_heading = "Broker")]
    broker_pid: Option<u32>,
    #[command(flatten)]
    settings: Settings,
    /// Keep the run in this folder, which must be empty or not there yet
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// No live line, even on a terminal
    #[arg(long, help_heading = "Output")]
    quiet: bool,
}

fn after_help() -> String {
    let lines = Workload::ALL.map(|workload| {
        let (name, what) = workload.describe();
        format!("  {name:<18}{what}\n")
    });
    format!("Workloads:\n{}\nScenarios to begin with are in perf/scenarios.", lines.concat())
}

/// Runs it and prints what it found.
pub fn run(flags: Flags) -> ExitCode {
    if let Some(addr) = flags.sink {
        return sink(addr, &flags);
    }
    let (json, out) = (flags.json, flags.out.clone());
    let progress = !flags.quiet && std::io::stderr().is_terminal();
    let scenario = match &flags.what {
        Some(Source::Workload(workload)) => workload.to_string(),
        Some(Source::File(path)) => {
            path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
        }
        None => String::new(),
    };
    let prepared = flags.into_plan().and_then(|plan| {
        let folder = out.map(RunFolder::create).transpose()?;
        Ok((plan, Options { scenario, folder, progress }))
    });
    let (plan, options) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return fail(EXIT_USAGE, error),
    };
    let interrupted = match interrupt_flag() {
        Ok(flag) => flag,
        Err(error) => return fail(EXIT_FAULTS, format!("handle Ctrl-C: {error}")),
    };
    let summary = match bench::run(&plan, options, &interrupted) {
        Ok(summary) => summary,
        Err(error @ Error::Plan(_)) => return fail(EXIT_USAGE, error),
        Err(error) => return fail(EXIT_FAULTS, error),
    };
    let text = match json {
        true => {
            serde_json::to_string_pretty(&summary).expect("invariant: a summary is JSON") + "\n"
        }
        false => report::Text(&summary).to_string(),
    };
    // Whoever closed the pipe has read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if report::is_clean(&summary) { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAULTS) }
}

impl Flags {
    fn into_plan(self) -> Result<Plan, Error> {
        let file = match self.what {
            Some(Source::File(path)) => Settings::read(&path)?,
            Some(Source::Workload(workload)) => {
                Settings { workload: Some(workload), ..Settings::default() }
            }
            None => Settings::default(),
        };
        let settings = self.settings.over(file);
        let cpus = cpu_list(&settings)?;
        Plan::new(settings, cpus, self.broker_pid, std::process::id())
    }
}

fn cpu_list(settings: &Settings) -> Result<Vec<usize>, Error> {
    let cpus = settings.cpus.as_deref().map(str::parse::<CpuList>).transpose();
    let cpus = cpus.map_err(|error| Error::Plan(format!("cpus: {error}")))?;
    Ok(cpus.map_or_else(Vec::new, |list| list.0))
}

/// Counts until it is interrupted, and prints what came.
fn sink(addr: SocketAddr, flags: &Flags) -> ExitCode {
    let run = || -> Result<sink::Counts, Error> {
        let cpus = cpu_list(&flags.settings)?;
        if !cpus.is_empty() {
            bench::pin(&cpus)?;
        }
        let io = flags.settings.io.as_deref().unwrap_or("auto").parse().map_err(Error::Plan)?;
        let interrupted =
            interrupt_flag().map_err(|error| Error::Io { doing: "handle Ctrl-C".into(), error })?;
        let mut last = 0;
        sink::run(
            addr,
            io,
            &interrupted,
            |addr| {
                eprintln!(
                    "noctule: no broker (no shared subscriptions, retained messages, sessions, \
                     QoS 1 or 2 to subscribers), counting on {addr}"
                );
            },
            |counts| {
                if counts.messages > last && !flags.quiet {
                    eprintln!("noctule: {} messages in this second", counts.messages - last);
                }
                last = counts.messages;
            },
        )
    };
    match run() {
        Ok(counts) => {
            let text = serde_json::to_string(&counts).expect("invariant: counts are JSON");
            // Whoever closed the pipe has read enough.
            let _ = writeln!(std::io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error @ Error::Plan(_)) => fail(EXIT_USAGE, error),
        Err(error) => fail(EXIT_FAULTS, error),
    }
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
    use crate::bench::workload::{Load, Schedule};
    use crate::codec::mqtt::Version;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn plan(line: &str) -> Result<Plan, String> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        let flags = Line::try_parse_from(words).map_err(|e| e.to_string())?.flags;
        flags.into_plan().map_err(|error| error.to_string())
    }

    #[test]
    fn each_workload_has_its_shape() {
        let shape = |line: &str| {
            let plan = plan(line).unwrap();
            (plan.publishers, plan.subscribers, plan.load)
        };
        let closed = |window| Load::Closed { window };
        let open = |rate| Load::Open { rate, schedule: Schedule::Constant };
        assert_eq!(shape("pairs --pairs 3"), (3, 3, closed(256)));
        assert_eq!(shape("ping-pong"), (10, 10, closed(1)));
        assert_eq!(shape("fan-out --subscribers 7 --window 9"), (1, 7, closed(9)));
        assert_eq!(shape("fan-in --publishers 5"), (5, 1, closed(64)));
        assert_eq!(shape("pairs --rate 2e3"), (10, 10, open(2000.0)));
    }

    #[test]
    fn bad_flags_are_refused() {
        for line in [
            "pairs --qos 3",
            "pairs --rate 1 --window 1",
            "pairs --duration -1",
            "pairs --mqtt 4",
            "pairs --cpus x",
            "no-such-file.toml",
        ] {
            assert!(plan(line).is_err(), "{line}");
        }
        assert_eq!(plan("pairs --mqtt 5 --qos 2").unwrap().version, Version::V5);
        assert_eq!(plan("pairs --cpus 0,2-3").unwrap().threads, 3);
    }

    #[test]
    fn flags_override_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.toml");
        std::fs::write(&path, "workload = \"pairs\"\npairs = 3\nrate = 5\n").unwrap();
        let plan = plan(&format!("{} --window 7", path.display())).unwrap();
        assert_eq!((plan.publishers, plan.load), (3, Load::Closed { window: 7 }));
    }
}
