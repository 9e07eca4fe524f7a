//! The simulated world: a seed is the same run every time, and the seeds that found something once
//! find nothing any more. Fresh seeds are `scripts/sim.sh`'s.
#![forbid(unsafe_code)]

use noctule::sim::faults::Kind;
use noctule::sim::{Options, run};

/// The options of a line such as `--seed 7 --steps 900 --without resets,vanish`.
fn options(line: &str) -> Options {
    let mut options = Options::new(0);
    let mut words = line.split_whitespace();
    while let (Some(flag), Some(value)) = (words.next(), words.next()) {
        match flag {
            "--seed" => options.seed = value.parse().expect("a seed"),
            "--steps" => options.steps = value.parse().expect("a number of steps"),
            "--without" => {
                let kind = |name: &str| {
                    let kind = Kind::ALL.iter().find(|kind| kind.name() == name);
                    *kind.unwrap_or_else(|| panic!("no fault is called {name}"))
                };
                options.without = value.split(',').map(kind).collect();
            }
            _ => panic!("corpus: what is {flag}?"),
        }
    }
    options
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 11, 42] {
        let options = Options { trace: true, steps: 4000, ..Options::new(seed) };
        let (first, second) = (run(&options), run(&options));
        assert!(first.trace.len() > 10_000, "seed {seed} does something");
        assert!(first.trace == second.trace, "seed {seed}: two runs, two traces");
        assert_eq!((first.steps, first.packets), (second.steps, second.packets));
    }
}

#[test]
fn past_failures_stay_mended() {
    for line in include_str!("sim/corpus.txt").lines() {
        let command = line.split('#').next().unwrap_or_default().trim();
        if command.is_empty() {
            continue;
        }
        let options = options(command);
        let report = run(&options);
        assert_eq!(report.violation, None, "replay: {} --trace", options.command());
    }
}
