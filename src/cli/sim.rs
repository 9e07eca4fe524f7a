//! `noctule sim`: seeds of the simulated world, one or many, with their traces and their table.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;

use super::{EXIT_BROKEN, EXIT_USAGE, fail};
use crate::sim::faults::Kind;
use crate::sim::{Options, Report, STEPS_DEFAULT, minimise, run as simulate};

/// Flags of `noctule sim`.
#[derive(Args, Debug)]
pub struct Flags {
    /// What decides everything; the same seed is the same run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, this one and those that follow it
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    seeds: u64,
    /// Steps in the rough; coming to rest takes more
    #[arg(long, default_value_t = STEPS_DEFAULT)]
    steps: u64,
    /// Print what happens, line by line
    #[arg(long)]
    trace: bool,
    /// What not to switch on, by the names that the table shows
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    without: Vec<String>,
    /// Shrink a seed that fails: fewer steps, fewer kinds of fault
    #[arg(long)]
    minimise: bool,
    /// Print how often each fault has struck, and each path was taken
    #[arg(long)]
    table: bool,
}

/// Runs them. Fails at the first that breaks a rule.
pub fn run(flags: Flags) -> ExitCode {
    let mut without = Vec::new();
    for name in &flags.without {
        match Kind::ALL.iter().find(|kind| kind.name() == name) {
            Some(kind) => without.push(*kind),
            None => {
                let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
                let names = names.join(", ");
                return fail(EXIT_USAGE, format_args!("--without {name}: there are {names}"));
            }
        }
    }
    let mut out = std::io::stdout().lock();
    let mut table = Table::default();
    for seed in flags.seed..flags.seed.saturating_add(flags.seeds) {
        let options =
            Options { seed, steps: flags.steps, trace: flags.trace, without: without.clone() };
        let report = simulate(&options);
        // Whoever closed the pipe has read enough.
        let _ = out.write_all(report.trace.as_bytes());
        if let Some(violation) = &report.violation {
            let _ = writeln!(out, "{}: {}", violation.rule, violation.text);
            let _ = writeln!(out, "replay: {} --trace", options.command());
            if flags.minimise {
                let smaller = minimise(&options, violation.rule);
                let _ = writeln!(out, "smaller: {} --trace", smaller.command());
            }
            return ExitCode::from(EXIT_BROKEN);
        }
        if flags.seeds == 1 {
            let _ = writeln!(out, "{}", summary(&report));
        }
        table.add(&report);
    }
    if flags.seeds > 1 {
        let _ = writeln!(out, "{} seeds from {}, none broke a rule", flags.seeds, flags.seed);
    }
    if flags.table {
        let _ = out.write_all(table.print().as_bytes());
    }
    ExitCode::SUCCESS
}

fn summary(report: &Report) -> String {
    let kinds = report.struck.iter().filter(|(_, count)| *count > 0).count();
    format!(
        "seed {}: {} shards, {} clients, {} packets, {kinds} kinds of fault and feature, {} \
         restarts, {} s of simulated time, {} messages proven to have arrived",
        report.seed,
        report.shards,
        report.clients,
        report.packets,
        report.restarts,
        report.simulated.as_secs(),
        report.proven
    )
}

/// Counters that stand still in every world, and why.
const ELSEWHERE: &[(&str, &str)] = &[
    ("connects_referred", "a server that refers clients to another one has none"),
    ("dropped_unreadable", "the simulated disk keeps what it has synced, and can read it"),
];

/// Sums over seeds.
#[derive(Debug, Default)]
struct Table {
    seeds: u64,
    kinds: BTreeMap<&'static str, (u64, u64)>,
    paths: BTreeMap<&'static str, (u64, u64)>,
    packets: Vec<u64>,
    shards: Vec<u64>,
    struck: Vec<u64>,
    faults: Vec<u64>,
    proven: u64,
}

impl Table {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        let add = |map: &mut BTreeMap<_, (u64, u64)>, name: &'static str, count: u64| {
            let (sum, seeds) = map.entry(name).or_default();
            *sum += count;
            *seeds += u64::from(count > 0);
        };
        for (kind, count) in &report.struck {
            add(&mut self.kinds, kind.name(), *count);
        }
        for (name, count) in &report.named {
            add(&mut self.paths, name, *count);
        }
        report.stats.each(|name, count| {
            if ELSEWHERE.iter().all(|(other, _)| *other != name) {
                add(&mut self.paths, name, count);
            }
        });
        self.packets.push(report.packets);
        self.shards.push(report.shards as u64);
        let struck = || report.struck.iter().filter(|(_, count)| *count > 0);
        self.struck.push(struck().count() as u64);
        self.faults.push(struck().filter(|(kind, _)| kind.is_fault()).count() as u64);
        self.proven += report.proven;
    }

    fn print(mut self) -> String {
        let mut text = format!(
            "median of {} seeds: {} packets, {} shards, {} kinds struck, {} of them faults; {} \
             messages proven\n",
            self.seeds,
            median(&mut self.packets),
            median(&mut self.shards),
            median(&mut self.struck),
            median(&mut self.faults),
            self.proven
        );
        for (heading, map) in [("faults and features", &self.kinds), ("paths", &self.paths)] {
            text += &format!("\n{heading:28} {:>12} {:>8}\n", "times", "seeds");
            for (name, (sum, seeds)) in map {
                text += &format!("{name:28} {sum:>12} {seeds:>8}\n");
            }
        }
        text += "\nnot in any world\n";
        for (name, why) in ELSEWHERE {
            text += &format!("{name:28} {why}\n");
        }
        text
    }
}

fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&mut [3, 1, 2]), 2);
        assert_eq!(median(&mut []), 0);
    }
}
