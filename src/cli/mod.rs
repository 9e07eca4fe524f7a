//! The commands: one file each, with its flags and what it does. This file is only the table.
#![forbid(unsafe_code)]

mod bench;
mod compare;
mod connect;
mod connection;
mod crashtest;
mod doctor;
mod format;
mod journal;
mod message;
mod properties;
mod pub_;
mod rr;
mod serve;
mod sim;
mod sub;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit code for what the user can correct: a bad flag or configuration, a port or directory in
/// use, a missing permission. (clap uses the same for flags.)
const EXIT_USAGE: u8 = 2;
/// Exit code for what went wrong later, or was found wrong.
const EXIT_BROKEN: u8 = 1;

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
    /// Publish messages
    #[command(disable_help_flag = true)]
    Pub(Box<pub_::PubFlags>),
    /// Subscribe to topics and print their messages
    #[command(disable_help_flag = true)]
    Sub(Box<sub::SubFlags>),
    /// Publish a request and print the response
    #[command(disable_help_flag = true)]
    Rr(Box<rr::RrFlags>),
    /// Put a load on a broker and say what it cost
    Bench(Box<bench::Flags>),
    /// Hold runs of bench against each other
    Compare(compare::Flags),
    /// Run the broker in a simulated world, and check all that its clients see
    Sim(sim::Flags),
    /// Look into the journal of a broker, or check that it is whole
    Journal(journal::Flags),
    /// Kill a broker again and again, and check that it keeps what it has acknowledged
    Crashtest(crashtest::Flags),
    /// Try what the broker needs of this machine, and say what to do about the rest
    Doctor(doctor::Flags),
}

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    match Cli::parse().command {
        None => serve::run_default(),
        Some(Command::Serve(flags)) => serve::run(*flags),
        Some(Command::Doctor(flags)) => doctor::run(&flags),
        Some(Command::Bench(flags)) => bench::run(*flags),
        Some(Command::Compare(flags)) => compare::run(&flags),
        Some(Command::Journal(flags)) => journal::run(&flags),
        Some(Command::Sim(flags)) => sim::run(flags),
        Some(Command::Crashtest(flags)) => crashtest::run(flags),
        Some(Command::Pub(flags)) => pub_::run(&flags),
        Some(Command::Sub(flags)) => sub::run(&flags),
        Some(Command::Rr(flags)) => rr::run(&flags),
    }
}

/// Says why a command failed, in one line.
fn fail(code: u8, message: impl std::fmt::Display) -> ExitCode {
    eprintln!("noctule: {message}");
    ExitCode::from(code)
}

/// The end of a client command. Its exit codes: 0 all went well; 1 the network, the system or the
/// protocol failed; 2 wrong flags; 27 the time given by `-W` is over; else the code by which the
/// server refused (1 to 5 in a CONNACK before version 5, a reason code from 128 on in version 5).
fn end_client(result: Result<(), connection::Failure>, quiet: bool) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if quiet => ExitCode::from(failure.code),
        Err(failure) => fail(failure.code, &failure),
    }
}
