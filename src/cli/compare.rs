//! `noctule compare`: holds runs of `noctule bench` against each other.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{EXIT_BROKEN, EXIT_USAGE, fail};
use crate::bench::compare::chart::{self, Latency};
use crate::bench::compare::{Comparison, metric, page, svg, text, units};
use crate::bench::run::read::read_sets;
use crate::limits::COMPARE_VERDICT_RUNS_MIN;

/// Characters of a line when the output is no terminal.
const WIDTH_DEFAULT: usize = 120;

/// Holds runs against each other.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes: 0 compared; 1 --fail-above found something worse; 2 wrong flags, or a run that cannot \
be read.")]
pub struct Flags {
    /// Folders that `noctule bench --out` wrote, or folders of such, which are repetitions; all
    /// others are held against the first
    #[arg(required = true, value_name = "[NAME=]FOLDER")]
    runs: Vec<String>,
    /// Only this scenario; may be given again
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Write the report as one HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Heading of the report
    #[arg(long, requires = "html")]
    title: Option<String>,
    /// Write the percentile spectrum as SVG; for one scenario
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Exit with 1 when a set is worse than the first by more than this ratio, and the runs are
    /// enough to know it
    #[arg(long, value_name = "RATIO", value_parser = parse_ratio)]
    fail_above: Option<f64>,
    /// What --fail-above looks at: names as in --json [default: cpu, and throughput in a closed
    /// loop, p50 and p99 in an open one]
    #[arg(long, value_name = "FIGURE,...", value_delimiter = ',', requires = "fail_above")]
    fail_on: Vec<String>,
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if ratio >= 1.0 && ratio.is_finite() => Ok(ratio),
        _ => Err("a number from 1 on: 1.1 allows for a tenth".into()),
    }
}

/// Runs it and prints what it found.
pub fn run(flags: &Flags) -> ExitCode {
    match compare(flags) {
        Ok(code) => code,
        Err(message) => fail(EXIT_USAGE, message),
    }
}

fn compare(flags: &Flags) -> Result<ExitCode, String> {
    let mut sets = read_sets(&flags.runs).map_err(|error| error.to_string())?;
    if !flags.scenario.is_empty() {
        for name in &flags.scenario {
            if !sets.iter().flat_map(|set| &set.runs).any(|run| run.summary.scenario == *name) {
                return Err(format!("--scenario {name}: no run of it; {}", known(&sets)));
            }
        }
        for set in &mut sets {
            set.runs.retain(|run| flags.scenario.contains(&run.summary.scenario));
        }
    }
    let comparison = Comparison::new(&sets)?;
    let failures = match flags.fail_above {
        Some(allowed) => worse(&comparison, allowed, &flags.fail_on)?,
        None => Vec::new(),
    };
    if let Some(path) = &flags.html {
        write(path, &page::page(&comparison, flags.title.as_deref()))?;
    }
    if let Some(path) = &flags.svg {
        write(path, &spectrum(&comparison)?)?;
    }
    let text = match flags.json {
        true => {
            let json = serde_json::to_string_pretty(&comparison);
            json.expect("invariant: a comparison is JSON") + "\n"
        }
        false => text::print(&comparison, width()),
    };
    // Whoever closed the pipe has read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    for failure in &failures {
        eprintln!("noctule: {failure}");
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_BROKEN) })
}

fn known(sets: &[crate::bench::run::read::RunSet]) -> String {
    let mut names: Vec<&str> =
        sets.iter().flat_map(|set| &set.runs).map(|run| run.summary.scenario.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    format!("there are {}", names.join(", "))
}

fn spectrum(comparison: &Comparison) -> Result<String, String> {
    let [scenario] = comparison.scenarios.as_slice() else {
        let names: Vec<&str> = comparison.scenarios.iter().map(|s| s.name.as_str()).collect();
        return Err(format!(
            "--svg draws one scenario: choose with --scenario from {}",
            names.join(", ")
        ));
    };
    let latency_of = &scenario.latency_of;
    chart::spectrum(&scenario.curves, &comparison.sets, latency_of, Latency::Log)
        .map(|chart| svg::draw_alone(&chart, &comparison.sets))
        .ok_or_else(|| "--svg: no run has a latency.hlog with values in it".into())
}

/// What is worse than the first set by more than `allowed`, each in a sentence.
///
/// A gate that cannot close is an error: too few runs, a figure that no run has.
fn worse(comparison: &Comparison, allowed: f64, on: &[String]) -> Result<Vec<String>, String> {
    if comparison.sets.len() < 2 {
        return Err("--fail-above holds sets against the first: give two or more".into());
    }
    if let Some(name) = on.iter().find(|name| !metric::METRICS.iter().any(|m| m.key == **name)) {
        let keys: Vec<&str> =
            metric::METRICS.iter().filter(|m| m.better.is_some()).map(|m| m.key).collect();
        return Err(format!("--fail-on {name}: there are {}", keys.join(", ")));
    }
    let mut failures = Vec::new();
    let mut looked_at = 0;
    for scenario in &comparison.scenarios {
        if let Some(runs) = scenario.runs.iter().find(|runs| **runs < COMPARE_VERDICT_RUNS_MIN) {
            return Err(format!(
                "--fail-above: {} has a set of {}, and with fewer than {COMPARE_VERDICT_RUNS_MIN} \
                 of each nothing can be told from chance: repeat it",
                scenario.name,
                text::count(*runs, "run", "runs")
            ));
        }
        let usual: &[&str] =
            if scenario.is_closed { &["cpu", "throughput"] } else { &["cpu", "p50", "p99"] };
        let keys: Vec<&str> = match on.is_empty() {
            true => usual.to_vec(),
            false => on.iter().map(String::as_str).collect(),
        };
        for row in keys.iter().filter_map(|key| scenario.row(key)) {
            for (name, cell) in comparison.sets.iter().zip(&row.cells).skip(1) {
                let Some(versus) = cell.as_ref().and_then(|cell| cell.versus) else { continue };
                looked_at += 1;
                if let Some(by) = versus.worse_by(row.better).filter(|by| *by > allowed) {
                    failures.push(format!(
                        "{}: {name} is worse than {} in {} by {} (allowed {})",
                        scenario.name,
                        comparison.sets[0],
                        row.key,
                        units::ratio(by),
                        units::ratio(allowed)
                    ));
                }
            }
        }
    }
    if looked_at == 0 {
        return Err("--fail-above: no run has a figure that it could look at".into());
    }
    Ok(failures)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("write {}: {error}", path.display()))
}

fn width() -> usize {
    let stdout = std::io::stdout();
    let columns = stdout
        .is_terminal()
        .then(|| rustix::termios::tcgetwinsize(&stdout).ok())
        .flatten()
        .map(|size| usize::from(size.ws_col));
    columns.filter(|columns| *columns >= 40).unwrap_or(WIDTH_DEFAULT)
}
