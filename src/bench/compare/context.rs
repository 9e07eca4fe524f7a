//! What the runs ran on and how they were started, and where that differs.
#![forbid(unsafe_code)]

use serde::Serialize;

use super::units::Unit;
use crate::bench::run::environment::Environment;
use crate::bench::run::read::{Run, RunSet};

/// Something about the runs of each set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fact {
    /// What.
    pub label: &'static str,
    /// `Machine`, `Generator` or `Broker`.
    pub part: &'static str,
    /// Of each set; more than one value when its runs differ.
    pub values: Vec<Vec<String>>,
    /// Whether a difference spoils the comparison.
    pub must_agree: bool,
}

impl Fact {
    /// Whether the sets, as far as they are known, do not agree.
    pub fn differs(&self) -> bool {
        let known: Vec<_> = self.values.iter().filter(|values| !values.is_empty()).collect();
        known.windows(2).any(|pair| pair[0] != pair[1])
    }
}

type Of = fn(&Environment) -> Option<String>;

/// Part, label, whether it must agree, value.
const FACTS: &[(&str, &str, bool, Of)] = &[
    ("Machine", "CPU", true, |e| e.machine.cpu_model.clone()),
    ("Machine", "CPUs", true, |e| {
        let threads = e.machine.threads_per_core;
        let cores = threads.map_or_else(String::new, |t| format!(", {t} for each core"));
        Some(format!("{}{cores}", e.machine.cpus))
    }),
    ("Machine", "Memory", true, |e| Some(Unit::Bytes.show(e.machine.memory_bytes? as f64))),
    ("Machine", "Kernel", true, |e| Some(e.machine.kernel.clone())),
    ("Machine", "System", true, |e| e.machine.system.clone()),
    ("Machine", "Virtualised", true, |e| e.machine.virtualisation.clone()),
    ("Machine", "Governor", true, |e| {
        Some(e.machine.governor.clone().unwrap_or_else(|| "not visible".into()))
    }),
    ("Machine", "Boost", true, |e| Some(if e.machine.boost? { "on" } else { "off" }.into())),
    ("Machine", "Mitigations", true, |e| {
        let all = e.machine.mitigations.iter().map(|(name, state)| format!("{name}: {state}"));
        Some(all.collect::<Vec<_>>().join("; ")).filter(|text| !text.is_empty())
    }),
    ("Machine", "Congestion control", true, |e| e.machine.congestion_control.clone()),
    ("Machine", "Clock", true, |e| e.machine.clock_source.clone()),
    ("Machine", "Isolated CPUs", true, |e| e.machine.isolated_cpus.clone()),
    ("Machine", "Load before", false, |e| e.machine.load_average.clone()),
    ("Generator", "Version", true, |e| {
        let commit = e.generator.commit.as_deref().map(|c| format!(" ({c})")).unwrap_or_default();
        Some(format!("noctule {}{commit}, {}", e.generator.version, e.generator.profile))
    }),
    ("Generator", "Kernel interface", true, |e| Some(e.generator.io.clone())),
    ("Generator", "On CPUs", true, |e| e.generator.cpus.clone()),
    ("Broker", "Program", false, |e| e.broker.version.clone()),
    ("Broker", "Command", false, |e| Some(e.broker.command.as_ref()?.join(" "))),
    ("Broker", "On CPUs", true, |e| e.broker.cpus.clone()),
    ("Broker", "Threads", false, |e| Some(e.broker.threads?.to_string())),
];

/// All that is known, without what no set knows.
pub fn facts(sets: &[RunSet]) -> Vec<Fact> {
    let values = |of: Of| -> Vec<Vec<String>> {
        let of_set = |set: &RunSet| {
            let mut values: Vec<String> =
                set.runs.iter().filter_map(|run| of(run.environment.as_ref()?)).collect();
            values.sort();
            values.dedup();
            values
        };
        sets.iter().map(of_set).collect()
    };
    FACTS
        .iter()
        .map(|(part, label, must_agree, of)| Fact {
            label,
            part,
            values: values(*of),
            must_agree: *must_agree,
        })
        .filter(|fact| fact.values.iter().any(|values| !values.is_empty()))
        .collect()
}

/// What differs between the sets and should not, each in a sentence.
pub fn differences(sets: &[RunSet], facts: &[Fact]) -> Vec<String> {
    let mut differences = Vec::new();
    let unknown: Vec<&str> = sets
        .iter()
        .filter(|set| set.runs.iter().any(|run| run.environment.is_none()))
        .map(|set| set.name.as_str())
        .collect();
    if !unknown.is_empty() {
        differences.push(format!(
            "What {} ran on is not known: environment.json is missing.",
            unknown.join(" and ")
        ));
    }
    for fact in facts {
        let several = fact.values.iter().any(|values| values.len() > 1);
        if fact.must_agree && (fact.differs() || several) {
            let shown: Vec<String> = sets
                .iter()
                .zip(&fact.values)
                .map(|(set, values)| format!("{} {}", set.name, or_unknown(values)))
                .collect();
            let (part, label) = (fact.part, fact.label);
            differences.push(format!("{part}, {label}: {}.", shown.join(" | ")));
        }
    }
    differences.extend(scenario_differences(sets));
    differences
}

fn or_unknown(values: &[String]) -> String {
    match values {
        [] => "unknown".into(),
        values => values.join(" or "),
    }
}

/// Keys of `run.toml` that name the broker, and so differ as they should.
const OWN_KEYS: &[&str] = &[
    "host",
    "port",
    "broker",
    "broker_pid",
    "broker-pid",
    "pid",
    "out",
    "address",
    "broker_address",
];

/// Runs of one name whose scenarios are not the same.
fn scenario_differences(sets: &[RunSet]) -> Vec<String> {
    let mut differences = Vec::new();
    let all: Vec<&Run> = sets.iter().flat_map(|set| &set.runs).collect();
    for (i, run) in all.iter().enumerate() {
        let name = &run.summary.scenario;
        let Some(first) = all[..i].iter().find(|other| other.summary.scenario == *name) else {
            continue;
        };
        let mut found = Vec::new();
        table_differences("", &first.scenario, &run.scenario, &mut found);
        for difference in found {
            let sentence = format!("Scenario {name}, {difference}");
            if !differences.contains(&sentence) {
                differences.push(sentence);
            }
        }
    }
    differences
}

fn table_differences(path: &str, a: &toml::Table, b: &toml::Table, found: &mut Vec<String>) {
    let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        if OWN_KEYS.contains(&key.as_str()) {
            continue;
        }
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match (a.get(key), b.get(key)) {
            (Some(toml::Value::Table(a)), Some(toml::Value::Table(b))) => {
                table_differences(&path, a, b, found);
            }
            (a, b) if a != b => {
                let show = |value: Option<&toml::Value>| {
                    value.map_or_else(|| "not set".to_owned(), ToString::to_string)
                };
                found.push(format!("{path}: {} | {}.", show(a), show(b)));
            }
            _ => {}
        }
    }
}
