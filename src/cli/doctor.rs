//! `noctule doctor`: is this machine fit, and if not, what to do.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::EXIT_BROKEN;
use crate::io::probe::{Feature, Verdict, obstacle, probe};

/// Flags of `noctule doctor`.
#[derive(Args, Debug)]
pub struct Flags {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Tries what Noctule uses of the kernel. Fails when `io_uring` cannot be used.
pub fn run(flags: &Flags) -> ExitCode {
    let features = probe();
    let obstacle = obstacle(&features);
    let report = if flags.json {
        to_json(&features, obstacle.as_deref())
    } else {
        to_table(&features, obstacle.is_none())
    };
    // Whoever closed the pipe has read enough.
    let _ = std::io::stdout().write_all(report.as_bytes());
    if obstacle.is_none() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_BROKEN) }
}

fn to_table(features: &[Feature], usable: bool) -> String {
    let width = features.iter().map(|feature| feature.name.len()).max().unwrap_or(0);
    let mut table = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        writeln!(table, "{text}").expect("invariant: a String takes everything");
    };
    for Feature { name, verdict, detail, fix } in features {
        line(format_args!("{name:width$}  {verdict:7}  {detail}"));
        if let Some(fix) = fix {
            line(format_args!("{:width$}           -> {fix}", ""));
        }
    }
    let lesser = features.iter().any(|feature| feature.verdict == Verdict::Lesser);
    line(format_args!(
        "\n{}",
        match (usable, lesser) {
            (true, false) => "All is well: `noctule serve` runs on io_uring.",
            (true, true) =>
                "Good enough: `noctule serve` runs on io_uring, without what is lesser.",
            (false, _) => {
                "io_uring cannot be used: `noctule serve` runs on epoll, at a price. What is \
                 missing is to be mended from the top."
            }
        }
    ));
    table
}

fn to_json(features: &[Feature], obstacle: Option<&str>) -> String {
    let features: Vec<_> = features
        .iter()
        .map(|feature| {
            json!({
                "name": feature.name,
                "verdict": feature.verdict.to_string(),
                "detail": feature.detail,
                "fix": feature.fix,
            })
        })
        .collect();
    let io = if obstacle.is_none() { "uring" } else { "epoll" };
    format!("{}\n", json!({ "io": io, "obstacle": obstacle, "features": features }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(verdict: Verdict, fix: Option<&str>) -> Feature {
        Feature { name: "ring", verdict, detail: "found".to_owned(), fix: fix.map(str::to_owned) }
    }

    #[test]
    fn a_fix_stands_below_what_it_mends() {
        let features = [feature(Verdict::Good, None), feature(Verdict::Missing, Some("mend it"))];
        let table = to_table(&features, false);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "ring  good     found");
        assert_eq!(lines[1], "ring  missing  found");
        assert_eq!(lines[2].trim(), "-> mend it");
        assert!(lines[4].contains("epoll"));
    }
}
