//! Reading run folders back. Whatever is wrong with one is said with its file and what to do.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::record::histogram;
use super::interval_log::{self, Interval};
use super::{ENVIRONMENT_JSON, Environment, RUN_TOML, SUMMARY_JSON, Series, Summary};
use super::{environment, summary};
use crate::limits::{COMPARE_FILE_BYTES_MAX, COMPARE_FOLDER_DEPTH_MAX, COMPARE_RUNS_MAX};

/// Why a run cannot be read, for its user.
#[derive(Debug)]
pub struct ReadError(String);

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ReadError {}

/// One run, as its folder tells it.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its folder.
    pub path: PathBuf,
    /// What it found.
    pub summary: Summary,
    /// What it ran on; `None` when the file is missing.
    pub environment: Option<Environment>,
    /// The scenario as it was resolved; empty when the file is missing.
    pub scenario: toml::Table,
    /// Latency and rate by interval; empty when the file is missing.
    pub moments: Vec<Moment>,
    /// Latency of all of it; empty when the file is missing.
    pub latency: Histogram<u64>,
}

impl Run {
    /// Reads the folder of one run.
    ///
    /// # Errors
    /// When a file is missing that every run has, cannot be read, or has a version that this
    /// program does not know.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let summary_path = path.join(SUMMARY_JSON);
        let Some(text) = read_file(&summary_path)? else {
            return Err(ReadError(format!(
                "{} is missing: the run did not end, or this is no run folder; repeat the run",
                summary_path.display()
            )));
        };
        let summary: Summary = parse_json(&summary_path, &text, summary::SCHEMA)?;
        let environment_path = path.join(ENVIRONMENT_JSON);
        let environment = read_file(&environment_path)?
            .map(|text| parse_json(&environment_path, &text, environment::SCHEMA))
            .transpose()?;
        let toml_path = path.join(RUN_TOML);
        let scenario = match read_file(&toml_path)? {
            Some(text) => text.parse().map_err(|error: toml::de::Error| {
                ReadError(format!("{}: {}", toml_path.display(), error.to_string().trim()))
            })?,
            None => toml::Table::new(),
        };
        let log_path = path.join(format!("{}.hlog", Series::Latency.name()));
        let mut moments = Vec::new();
        let mut latency = histogram();
        if let Some(text) = read_file(&log_path)? {
            interval_log::parse(&text, |interval| {
                moments.push(Moment::of(&interval));
                // All that fits into a histogram of nanoseconds fits into this one.
                let _ = latency.add(&interval.histogram);
            })
            .map_err(|error| {
                ReadError(format!("{}: {error}; repeat the run", log_path.display()))
            })?;
        }
        // What came in the drain is no part of how it went over time.
        let usual = moments.iter().map(|moment| moment.length).fold(0.0, f64::max);
        let is_whole =
            |moment: &Moment| moment.at < summary.seconds && moment.length >= usual / 2.0;
        moments.retain(is_whole);
        Ok(Self { path: path.to_owned(), summary, environment, scenario, moments, latency })
    }
}

/// What one interval of a run was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    /// Its begin, in seconds since the measurement's.
    pub at: f64,
    /// Seconds that it took.
    pub length: f64,
    /// Values in it, a second.
    pub rate: f64,
    /// Nanoseconds; 0 when there was no value.
    pub p50: u64,
    /// Nanoseconds; 0 when there was no value.
    pub p99: u64,
}

impl Moment {
    fn of(interval: &Interval) -> Self {
        let Interval { since_start, length, histogram } = interval;
        let seconds = length.as_secs_f64();
        Self {
            at: since_start.as_secs_f64(),
            length: seconds,
            rate: if seconds > 0.0 { histogram.len() as f64 / seconds } else { 0.0 },
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
        }
    }
}

/// Runs under one name: a run, or repetitions, of one scenario or of several.
#[derive(Clone, Debug)]
pub struct RunSet {
    /// What to call it.
    pub name: String,
    /// At least one, in the order of their folders' names.
    pub runs: Vec<Run>,
}

impl RunSet {
    /// Reads `FOLDER` or `NAME=FOLDER`: the folder of a run, or one that has such folders in it, at
    /// any depth up to [`COMPARE_FOLDER_DEPTH_MAX`].
    ///
    /// # Errors
    /// When there is no run in it, too many, or one cannot be read.
    pub fn read(argument: &str) -> Result<Self, ReadError> {
        // A folder may have a `=` in its own name.
        let (name, path) = match argument.split_once('=') {
            Some((name, path)) if !name.is_empty() && !Path::new(argument).exists() => {
                (Some(name), Path::new(path))
            }
            _ => (None, Path::new(argument)),
        };
        let mut folders = Vec::new();
        find_runs(path, COMPARE_FOLDER_DEPTH_MAX, &mut folders)?;
        if folders.is_empty() {
            return Err(ReadError(format!(
                "{}: no run in it: give a folder that `noctule bench --out` wrote, or one that has \
                 such folders in it",
                path.display()
            )));
        }
        if folders.len() > COMPARE_RUNS_MAX {
            return Err(ReadError(format!(
                "{}: {} runs in it, and {COMPARE_RUNS_MAX} are the most: give a folder with fewer",
                path.display(),
                folders.len()
            )));
        }
        folders.sort_by_key(|folder| natural_key(folder));
        let runs = folders.iter().map(|folder| Run::read(folder)).collect::<Result<_, _>>()?;
        let name = name.map_or_else(|| own_name(path), str::to_owned);
        Ok(Self { name, runs })
    }
}

/// Reads sets, and makes their names differ.
///
/// # Errors
/// As [`RunSet::read`].
pub fn read_sets(arguments: &[String]) -> Result<Vec<RunSet>, ReadError> {
    let mut sets: Vec<RunSet> = Vec::new();
    for argument in arguments {
        let mut set = RunSet::read(argument)?;
        let given = set.name.clone();
        let mut copies = 1;
        while sets.iter().any(|other| other.name == set.name) {
            copies += 1;
            set.name = format!("{given} ({copies})");
        }
        sets.push(set);
    }
    Ok(sets)
}

fn own_name(path: &Path) -> String {
    // `.` and `..` have no name of their own.
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    whole.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into())
}

/// Appends the run folders in `path`.
fn find_runs(path: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), ReadError> {
    let failed = |error: io::Error| {
        let fix = match error.kind() {
            io::ErrorKind::NotFound => ": give the folder of a run",
            io::ErrorKind::NotADirectory => ": give the folder, not a file of it",
            _ => "",
        };
        ReadError(format!("{}: {error}{fix}", path.display()))
    };
    let mut folders = Vec::new();
    let mut is_run = false;
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        is_run |= [SUMMARY_JSON, RUN_TOML].iter().any(|file| name == **file);
        if entry.path().is_dir() && !name.to_string_lossy().starts_with('.') {
            folders.push(entry.path());
        }
    }
    if is_run {
        found.push(path.to_owned());
    } else if depth > 0 {
        for folder in folders {
            find_runs(&folder, depth - 1, found)?;
        }
    }
    Ok(())
}

/// Words, each with the number behind it: sorts `run-10` behind `run-9`.
fn natural_key(path: &Path) -> Vec<(String, u64)> {
    let text = path.to_string_lossy();
    let mut rest = &*text;
    let mut key = Vec::new();
    while !rest.is_empty() {
        let word = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(word);
        let digits = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
        let (number, behind) = behind.split_at(digits);
        key.push((word.to_owned(), number.parse().unwrap_or(0)));
        rest = behind;
    }
    key
}

/// The text of a file; `None` when it is not there.
fn read_file(path: &Path) -> Result<Option<String>, ReadError> {
    let failed = |error: io::Error| ReadError(format!("{}: {error}", path.display()));
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if length > COMPARE_FILE_BYTES_MAX {
        return Err(ReadError(format!(
            "{}: {length} bytes, and {COMPARE_FILE_BYTES_MAX} are the most: is it of a run?",
            path.display()
        )));
    }
    fs::read_to_string(path).map(Some).map_err(failed)
}

fn parse_json<T: DeserializeOwned>(path: &Path, text: &str, known: u32) -> Result<T, ReadError> {
    let shown = path.display();
    let value: Value = serde_json::from_str(text).map_err(|error| {
        ReadError(format!("{shown}: {error}: it is damaged, or was cut; repeat the run"))
    })?;
    let found = value.get("schema").and_then(Value::as_u64).ok_or_else(|| {
        ReadError(format!("{shown} has no \"schema\": it is not of a run folder"))
    })?;
    if found > u64::from(known) {
        return Err(ReadError(format!(
            "{shown} has schema {found}, and this noctule knows {known}: use the newer noctule that \
             wrote it"
        )));
    }
    if found < u64::from(known) {
        return Err(ReadError(format!(
            "{shown} has schema {found}, older than the {known} of this noctule: repeat the run, or \
             compare with the noctule that wrote it"
        )));
    }
    serde_json::from_value(value)
        .map_err(|error| ReadError(format!("{shown}: {error}: it is damaged; repeat the run")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{IntervalLog, RunFolder};
    use super::*;

    /// A run of two seconds whose last messages came in the drain.
    fn write_run(path: &Path) {
        let folder = RunFolder::create(path).unwrap();
        let mut log = folder.interval_log(Series::Latency, Duration::ZERO).unwrap();
        let write = |log: &mut IntervalLog, at: u64, length: u64, count: u64| {
            let mut values = histogram();
            values.record_n(1000, count).unwrap();
            let [at, length] = [at, length].map(Duration::from_millis);
            log.write(at, length, &values).unwrap();
        };
        write(&mut log, 0, 1000, 500);
        write(&mut log, 1000, 1000, 600);
        write(&mut log, 2000, 70, 7);
        let summary = r#"{"schema": 1, "scenario": "s", "workload": "pairs", "description": "d",
            "mode": {"loop": "open", "rate": 5.0, "schedule": "constant"}, "started": "",
            "seconds": 2.0, "warm_up_seconds": 0.0, "published": 0, "delivered": 0,
            "published_per_second": 0.0, "delivered_per_second": 0.0, "latency_of": "",
            "latency_nanos": {"count": 0, "mean": 0.0, "min": 0, "p50": 0, "p90": 0, "p99": 0,
            "p99_9": 0, "p99_99": 0, "max": 0}, "lateness_nanos": null, "faults": null,
            "stalls": 0, "unsent": 0, "broker": null, "generator": {"pid": 1,
            "cpu_micros_per_delivered": null, "sleeps_per_delivered": null, "cpu_seconds": 0.0,
            "cpu_share": 0.0, "user_part": 0.0, "voluntary_switches": 0,
            "involuntary_switches": 0, "rss_bytes": 0, "rss_peak_bytes": 0},
            "interrupted": false, "failure": null, "warnings": []}"#;
        fs::write(path.join(SUMMARY_JSON), summary).unwrap();
    }

    #[test]
    fn the_drain_counts_for_latency_but_not_over_time() {
        let temp = tempfile::tempdir().unwrap();
        write_run(&temp.path().join("run"));
        let run = Run::read(&temp.path().join("run")).unwrap();
        assert_eq!(run.latency.len(), 1107);
        let rates: Vec<f64> = run.moments.iter().map(|moment| moment.rate).collect();
        assert_eq!(rates, [500.0, 600.0]);
        assert!(run.environment.is_none() && run.scenario.is_empty());
    }

    #[test]
    fn repetitions_are_read_in_their_order_and_names_differ() {
        let temp = tempfile::tempdir().unwrap();
        for run in ["a/10", "a/9", "b/a/1"] {
            write_run(&temp.path().join(run));
        }
        let [a, b] = ["a", "b/a"].map(|name| temp.path().join(name).display().to_string());
        let sets = read_sets(&[a.clone(), b, format!("x={a}")]).unwrap();
        let names: Vec<&str> = sets.iter().map(|set| set.name.as_str()).collect();
        assert_eq!(names, ["a", "a (2)", "x"]);
        let runs: Vec<_> = sets[0].runs.iter().map(|run| run.path.file_name().unwrap()).collect();
        assert_eq!(runs, ["9", "10"]);
    }
}
