//! `noctule serve`: the broker.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser};
use rustix::process::Signal;

use super::{EXIT_BROKEN, EXIT_USAGE, fail};
use crate::io::tap::TapOptions;
use crate::limits::LISTEN_DEFAULT;
use crate::server::config::raw::Settings;
use crate::server::config::{self, LogFormat, Rig};
use crate::server::{self, Failure, Ready, logging};

/// Added to a signal's number for the exit code, as shells do.
const EXIT_SIGNAL: u8 = 128;

/// Every flag has a `NOCTULE_*` variable and, but for the first two, a key in the file.
#[derive(Args, Debug)]
pub struct Flags {
    /// Configuration file; flags and NOCTULE_* variables win over it
    #[arg(long, value_name = "FILE", env = "NOCTULE_CONFIG")]
    config: Option<PathBuf>,
    /// Print the documented default configuration file and exit
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    rig: RigFlags,
}

/// For `noctule crashtest` and the tests: what stands between the journal and its files.
#[derive(Args, Debug)]
struct RigFlags {
    /// Where all operations on the journal's files are recorded
    #[arg(long, hide = true, value_name = "FILE")]
    rig_tape: Option<PathBuf>,
    /// Which of them fail or are late; read before each
    #[arg(long, hide = true, value_name = "FILE")]
    rig_faults: Option<PathBuf>,
    /// Size of the journal's segments
    #[arg(long, hide = true, value_name = "BYTES")]
    rig_segment_bytes: Option<u64>,
    /// End when the process that has started this one ends
    #[arg(long, hide = true)]
    rig_child: bool,
}

/// `noctule` alone: as `noctule serve` without flags, and it says what to try next.
pub fn run_default() -> ExitCode {
    #[derive(Parser)]
    struct NoFlags {
        #[command(flatten)]
        flags: Flags,
    }
    // NOCTULE_* variables count here as well.
    start(NoFlags::parse_from(["noctule"]).flags, true)
}

/// Serves until told to stop.
pub fn run(flags: Flags) -> ExitCode {
    if flags.print_config {
        // Whoever closed the pipe has read enough.
        let _ = std::io::stdout().write_all(config::DEFAULT_FILE.as_bytes());
        return ExitCode::SUCCESS;
    }
    start(flags, false)
}

fn start(flags: Flags, greet: bool) -> ExitCode {
    let mut config = match config::load(flags.settings, flags.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(EXIT_USAGE, error),
    };
    let RigFlags { rig_tape, rig_faults, rig_segment_bytes, rig_child } = flags.rig;
    config.rig = Rig {
        tap: TapOptions { tape: rig_tape, faults: rig_faults },
        segment_bytes: rig_segment_bytes,
    };
    if rig_child {
        // Should the kernel refuse, then who has started this one ends it, or nobody does.
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    }
    logging::init(&config.log_level, config.log_format);
    warn_of_unknown_variables();
    let text = config.log_format == LogFormat::Text;
    let outcome = server::serve(&config, |ready| {
        if greet && text {
            say_what_to_try(ready);
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure @ Failure::Start(_)) => fail(EXIT_USAGE, failure),
        Err(failure @ Failure::Broken(_)) => fail(EXIT_BROKEN, failure),
        Err(failure @ Failure::Killed(signal)) => {
            fail(EXIT_SIGNAL.saturating_add(u8::try_from(signal).unwrap_or(0)), failure)
        }
    }
}

/// A misspelt variable would change nothing and say nothing. It is not refused: Kubernetes gives
/// each container such variables as NOCTULE_PORT for a service of the name.
fn warn_of_unknown_variables() {
    let command = Flags::augment_args(clap::Command::new("serve"));
    let known: Vec<&str> =
        command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        #[cfg(debug_assertions)]
        if name == crate::io::fault::VARIABLE {
            continue;
        }
        if !name.starts_with("NOCTULE_") || known.contains(&&*name) {
            continue;
        }
        match config::suggest(&name, known.iter().copied()) {
            Some(meant) => tracing::warn!("unknown variable {name}; did you mean {meant}?"),
            None => tracing::warn!("unknown variable {name}; it is ignored"),
        }
    }
}

fn say_what_to_try(ready: &Ready) {
    let address = ready.listeners[0];
    let flags = if address == LISTEN_DEFAULT {
        String::new()
    } else {
        format!(" -h {} -p {}", address.ip(), address.port())
    };
    eprintln!(
        "\nTry it, in two other terminals:\n  \
         noctule sub{flags} -t 'hello/#' -v\n  \
         noctule pub{flags} -t hello/world -m 'good evening'\n\
         Ctrl-C stops the broker. `noctule serve --help` shows what can be set.\n"
    );
}
