//! `noctule compare`: what differs between sets of runs, and how sure one can be of it.
//!
//! A [`Comparison`] is made of [`RunSet`]s; the first set is what the others are held against.
//! Runs are compared within a scenario only. [`text`] prints it, [`page`] is the HTML report,
//! [`chart`] draws, as SVG; [`stats`] says what is a difference, [`metric`] what is compared.
//!
//! What a comparison must not hide: few runs (the spread is unknown), lost and repeated messages,
//! runs that ended early, generators that were the limit, machines and scenarios that differ.
#![forbid(unsafe_code)]

pub mod chart;
pub mod context;
pub mod curve;
pub mod metric;
pub mod page;
pub mod stats;
pub mod svg;
pub mod text;
pub mod units;

use serde::Serialize;

use super::run::read::{Run, RunSet};
use super::run::summary::Mode;
use crate::limits::{COMPARE_SETS_MAX, COMPARE_VERDICT_RUNS_MIN};
use context::Fact;
use metric::{Row, capitalised};

/// Version of what [`Comparison`] means as JSON.
pub const SCHEMA: u32 = 1;

/// Sets of runs beside each other.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// [`SCHEMA`] of the program that wrote it.
    pub schema: u32,
    /// Their names; the first is what the others are held against.
    pub sets: Vec<String>,
    /// By name.
    pub scenarios: Vec<Scenario>,
    /// Machine, programs and brokers, one value for each set.
    pub environment: Vec<Fact>,
    /// What differs between the sets and should not.
    pub differences: Vec<String>,
}

/// One question and its answers.
#[derive(Debug, Serialize)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What it is to find out, when its file says so.
    pub question: Option<String>,
    /// What runs, in one line.
    pub description: String,
    /// What latency is the time of.
    pub latency_of: String,
    /// What its figures are for one of: a message, or what is done where none is published.
    pub counted: &'static str,
    /// Whether messages were sent in a closed loop: its latency is that of a queue kept full.
    pub is_closed: bool,
    /// Runs of each set.
    pub runs: Vec<usize>,
    /// The figures.
    pub rows: Vec<Row>,
    /// What to keep in mind.
    pub notes: Vec<String>,
    /// What is drawn.
    #[serde(skip)]
    pub curves: curve::Curves,
}

impl Scenario {
    /// The row of a metric.
    pub fn row(&self, key: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.key == key)
    }
}

impl Comparison {
    /// Compares `sets` with the first of them.
    ///
    /// # Errors
    /// When there is none, or more than can be told apart.
    pub fn new(sets: &[RunSet]) -> Result<Self, String> {
        if sets.is_empty() || sets.len() > COMPARE_SETS_MAX {
            return Err(format!("{} sets of runs: give from 1 to {COMPARE_SETS_MAX}", sets.len()));
        }
        let mut names: Vec<&str> = Vec::new();
        for run in sets.iter().flat_map(|set| &set.runs) {
            if !names.contains(&run.summary.scenario.as_str()) {
                names.push(&run.summary.scenario);
            }
        }
        names.sort_unstable();
        let scenarios = names.iter().filter_map(|name| Scenario::new(name, sets)).collect();
        let environment = context::facts(sets);
        let differences = context::differences(sets, &environment);
        let sets = sets.iter().map(|set| set.name.clone()).collect();
        Ok(Self { schema: SCHEMA, sets, scenarios, environment, differences })
    }
}

impl Scenario {
    fn new(name: &str, sets: &[RunSet]) -> Option<Self> {
        let of_set = |set: &RunSet| -> Vec<usize> {
            (0..set.runs.len()).filter(|i| set.runs[*i].summary.scenario == name).collect()
        };
        let runs: Vec<Vec<&Run>> = sets
            .iter()
            .map(|set| of_set(set).into_iter().map(|i| &set.runs[i]).collect())
            .collect();
        let first = runs.iter().flatten().next()?;
        let question = first.scenario.get("question").and_then(|text| text.as_str());
        let first = &first.summary;
        let counted = counted(&first.latency_of);
        let mut rows = metric::rows(&runs);
        if counted != "message" {
            for row in &mut rows {
                row.label = match row.key.as_str() {
                    "cpu" => format!("CPU per {counted}"),
                    "throughput" => capitalised(counted) + "s a second",
                    "sleeps" => format!("Sleeps per {counted}"),
                    _ => continue,
                };
            }
        }
        Some(Self {
            name: name.to_owned(),
            counted,
            question: question.map(capitalised),
            description: first.description.clone(),
            latency_of: first.latency_of.clone(),
            is_closed: matches!(first.mode, Mode::Closed { .. }),
            runs: runs.iter().map(Vec::len).collect(),
            rows,
            notes: notes(sets, &runs),
            curves: curve::Curves::new(&runs),
        })
    }
}

/// What ends when this latency does.
fn counted(latency_of: &str) -> &'static str {
    let ends = [("to CONNACK", "connection"), ("to PINGRESP", "ping"), ("to SUBACK", "session")];
    ends.iter().find(|(end, _)| latency_of.ends_with(end)).map_or("message", |(_, what)| what)
}

/// What every reader of the figures has to know.
fn notes(sets: &[RunSet], runs: &[Vec<&Run>]) -> Vec<String> {
    let mut notes = Vec::new();
    let fewest = runs.iter().map(Vec::len).filter(|len| *len > 0).min().unwrap_or(0);
    if fewest < COMPARE_VERDICT_RUNS_MIN && runs.len() > 1 {
        notes.push(format!(
            "The spread is unknown: with fewer than {COMPARE_VERDICT_RUNS_MIN} runs of each, a ratio \
             may be chance."
        ));
    }
    let is_closed = |run: &&&Run| matches!(run.summary.mode, Mode::Closed { .. });
    if runs.iter().flatten().any(|run| is_closed(&run)) {
        notes.push(
            "Closed loop: latency here is that of a queue kept full. It says how long the queue is, \
             not how quick the broker is."
                .into(),
        );
    }
    let mut said: Vec<(String, Vec<&str>)> = Vec::new();
    for (set, runs) in sets.iter().zip(runs) {
        for text in notes_of_set(runs) {
            // What holds for several sets is said once.
            match said.iter_mut().find(|(known, _)| *known == text) {
                Some((_, names)) => names.push(&set.name),
                None => said.push((text, vec![&set.name])),
            }
        }
    }
    notes.extend(said.into_iter().map(|(text, names)| format!("{}: {text}.", names.join(", "))));
    notes
}

/// What is to be known of the runs of one set.
fn notes_of_set(runs: &[&Run]) -> Vec<String> {
    if runs.is_empty() {
        return vec!["no run of this scenario".into()];
    }
    let of = |count: usize| match runs.len() {
        1 => String::new(),
        all if all == count => format!(" (in all {all} runs)"),
        all => format!(" (in {count} of {all} runs)"),
    };
    let mut notes = Vec::new();
    let faulty = runs.iter().filter(|r| r.summary.faults.is_some_and(|f| !f.none())).count();
    if faulty > 0 {
        notes.push(format!("messages were lost, repeated or reordered{}", of(faulty)));
    }
    let early = runs.iter().filter(|r| r.summary.interrupted).count();
    if early > 0 {
        notes.push(format!("interrupted{}", of(early)));
    }
    // The same warning of several runs differs by its figures only.
    let mut warnings: Vec<(String, &str, usize)> = Vec::new();
    let failures = runs.iter().filter_map(|r| r.summary.failure.as_deref());
    for text in failures.chain(runs.iter().flat_map(|r| r.summary.warnings.iter().map(|w| &**w))) {
        let kind: String = text.chars().filter(|c| !c.is_ascii_digit() && *c != '.').collect();
        match warnings.iter_mut().find(|(known, ..)| *known == kind) {
            Some((.., count)) => *count += 1,
            None => warnings.push((kind, text, 1)),
        }
    }
    notes.extend(warnings.iter().map(|(_, text, count)| format!("{text}{}", of(*count))));
    notes
}
