//! `noctule crashtest`: kills a broker again and again, and says whether it kept its word.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueEnum};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{EXIT_BROKEN, EXIT_USAGE, fail};
use crate::crashtest::{self, Error, Options, Report};
use crate::io::Choice;
use crate::limits::SHARDS_MAX;

/// Rounds between two lines about how far it has come.
const ROUNDS_PER_LINE: u64 = 20;
/// Exit code of an interrupt: 128 and the signal's number, as shells count.
const EXIT_INTERRUPTED: u8 = 130;

/// Flags of `noctule crashtest`.
#[derive(Args, Debug)]
pub struct Flags {
    /// How often the broker is killed (kill -9)
    #[arg(long, default_value_t = 20, value_name = "N")]
    rounds: u64,
    /// Start each time on a copy of the journal's files as a power cut would have left them: what was
    /// not synced is lost in part, writes are torn, names vanish
    #[arg(long)]
    powercut: bool,
    /// The broker's kernel interface: auto, uring or epoll
    #[arg(long, default_value = "auto", value_name = "BACKEND")]
    io: Choice,
    /// Numbers of shards, from which each start takes one
    #[arg(long, default_value = "1,2", value_delimiter = ',', value_name = "N,…")]
    shards: Vec<usize>,
    /// What the broker promises
    #[arg(long, default_value = "power", value_name = "LEVEL")]
    durability: Promise,
    /// What decides what is tried; where a kill strikes is another in each run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A folder to work in, on the disk in question; it must not exist, and is removed at the end
    /// unless something went wrong [default: one in the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Promise {
    Process,
    Power,
}

/// Runs it: 0 when nothing was lost.
pub fn run(flags: Flags) -> ExitCode {
    if flags.powercut && flags.durability == Promise::Process {
        return fail(EXIT_USAGE, "--durability process promises nothing about --powercut");
    }
    if flags.shards.iter().any(|shards| !(1..=SHARDS_MAX).contains(shards)) {
        return fail(EXIT_USAGE, format_args!("--shards: each from 1 to {SHARDS_MAX}"));
    }
    let name = format!("noctule-crashtest-{}", std::process::id());
    let folder = flags.folder.clone().unwrap_or_else(|| std::env::temp_dir().join(name));
    if let Err(error) = std::fs::create_dir(&folder) {
        return fail(EXIT_USAGE, format_args!("--folder {}: {error}", folder.display()));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let prepared = std::env::current_exe().and_then(|program| {
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        Ok(program)
    });
    let program = match prepared {
        Ok(program) => program,
        Err(error) => return fail(EXIT_BROKEN, error),
    };
    let options = Options {
        rounds: flags.rounds,
        is_power_cut: flags.powercut,
        io: flags.io.to_string(),
        shards: flags.shards.clone(),
        seed: flags.seed,
        durability: if flags.durability == Promise::Power { "power" } else { "process" },
        folder: folder.clone(),
        program,
    };
    let result = crashtest::run(&options, &mut |report| {
        if !flags.json && report.rounds.is_multiple_of(ROUNDS_PER_LINE) {
            eprintln!("round {} of {}: {}", report.rounds, flags.rounds, messages(report));
        }
        !stop.load(Ordering::Relaxed)
    });
    let outcome = result.map(|report| {
        print(&report, &flags, &folder);
        report.is_clean()
    });
    if !matches!(outcome, Ok(false) | Err(Error::World(_)))
        && let Err(error) = std::fs::remove_dir_all(&folder)
    {
        eprintln!("noctule: {} is left: {error}", folder.display());
    }
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_BROKEN),
        Err(Error::Interrupted) => ExitCode::from(EXIT_INTERRUPTED),
        Err(error) => fail(EXIT_BROKEN, error),
    }
}

fn messages(report: &Report) -> String {
    let counts = report.counts;
    format!(
        "acked {}, recovered {}, lost {}, duplicated (QoS 2) {}",
        counts.acked, counts.recovered, counts.lost, counts.duplicated
    )
}

fn print(report: &Report, flags: &Flags, folder: &Path) {
    let mut out = std::io::stdout().lock();
    // Whoever closed the pipe has read enough.
    if flags.json {
        let json = serde_json::to_string(report).expect("invariant: a report is plain data");
        let _ = writeln!(out, "{json}");
    } else {
        let checked = report.checked;
        let cut = if flags.powercut {
            format!(" by power cut, with {} bytes not synced", report.unsynced_bytes)
        } else {
            String::new()
        };
        let _ = writeln!(
            out,
            "{}\nchecked {} retained messages, {} subscriptions, {} sessions\n{} kills{cut}, {} \
             more while starting, in {:.1} s; seed {}",
            messages(report),
            checked.retained,
            checked.subscriptions,
            checked.sessions,
            report.rounds,
            report.early_kills,
            report.took_ms as f64 / 1000.0,
            report.seed,
        );
        for problem in &report.problems {
            let _ = writeln!(out, "{problem}");
        }
    }
    if !report.is_clean() {
        eprintln!(
            "noctule: {} problems; the data and the broker's log are in {}",
            report.problem_count,
            folder.display()
        );
    }
}
