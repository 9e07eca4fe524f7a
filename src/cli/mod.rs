//! The commands: one file each, with its flags and what it does. This file is only the table.
#![forbid(unsafe_code)]

mod bench;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit code for what the user can correct: a bad flag or configuration, a port or directory in
/// use, a missing permission. (clap uses the same for flags.)
const EXIT_USAGE: u8 = 2;

/// An MQTT broker for Linux. Without a command it serves on 127.0.0.1:1883.
#[derive(Debug, Parser)]
#[command(name = "noctule", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the broker
    Serve(Box<serve::Flags>),
    /// Put a load on a broker and say what it cost
    Bench(bench::Flags),
}

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    match Cli::parse().command {
        None => serve::run_default(),
        Some(Command::Serve(flags)) => serve::run(*flags),
        Some(Command::Bench(flags)) => bench::run(flags),
    }
}

/// Says why a command failed, in one line.
fn fail(code: u8, message: impl std::fmt::Display) -> ExitCode {
    eprintln!("noctule: {message}");
    ExitCode::from(code)
}
