//! `noctule serve`: the broker.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser};

use super::{EXIT_USAGE, fail};
use crate::server::config::{self, raw::Settings};

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
    let config = match config::load(flags.settings, flags.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(EXIT_USAGE, error),
    };
    let _ = (config, greet);
    ExitCode::SUCCESS
}
