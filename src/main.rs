//! The `noctule` command.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    noctule::cli::run()
}
