//! The run folder: all that is kept of one run, in files that other tools read as well.
//!
//! | file | what |
//! |---|---|
//! | `run.toml` | the scenario as it was resolved |
//! | `environment.json` | the machine, the program, the command ([`Environment`]) |
//! | `summary.json` | what was found ([`Summary`]) |
//! | `latency.hlog` | latency, an HdrHistogram interval log V2, one interval a second |
//! | `latency.hgrm` | latency of the whole run, HdrHistogram's percentile text |
//! | `lateness.hlog`, `lateness.hgrm` | intended to actual send, in the same way; open loop only |
//!
//! A folder of run folders is a set of repetitions.
//!
//! `summary.json` is written last: a folder without it is a run that did not end.
#![forbid(unsafe_code)]

pub mod environment;
pub mod interval_log;
pub mod percentiles;
pub mod read;
pub mod summary;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::Error;
pub use environment::{Environment, Subject};
pub use interval_log::IntervalLog;
pub use summary::Summary;

/// The scenario as it was resolved.
pub const RUN_TOML: &str = "run.toml";
/// An [`Environment`].
pub const ENVIRONMENT_JSON: &str = "environment.json";
/// A [`Summary`].
pub const SUMMARY_JSON: &str = "summary.json";

/// A histogram of which a run keeps an interval log and the percentiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    /// Intended send to delivery.
    Latency,
    /// Intended send to actual send.
    Lateness,
}

impl Series {
    /// The name of its files, without their ending.
    pub fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Lateness => "lateness",
        }
    }
}

/// A folder that a run writes to.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Takes a folder that is empty, or makes it.
    ///
    /// # Errors
    /// [`Error::Plan`] when there is something at `path` that a run must not be mixed with;
    /// [`Error::Io`] when it cannot be made.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let shown = path.display();
        match fs::read_dir(&path) {
            Ok(mut entries) => match entries.next() {
                None => {}
                Some(_) => {
                    return Err(Error::Plan(format!(
                        "--out {shown} is not empty: a run has a folder of its own, give one that \
                         is empty or not there yet"
                    )));
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(&path)
                .map_err(|error| Error::Io { doing: format!("create {shown}"), error })?,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(Error::Plan(format!("--out {shown} is not a folder")));
            }
            Err(error) => return Err(Error::Io { doing: format!("look into {shown}"), error }),
        }
        // What cannot be written to is found now, not after the run.
        let folder = Self { path };
        folder.write(".writable", b"")?;
        let probe = folder.path.join(".writable");
        fs::remove_file(&probe)
            .map_err(|error| Error::Io { doing: format!("remove {}", probe.display()), error })?;
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the scenario as it was resolved, as TOML.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_run_toml(&self, text: &str) -> Result<(), Error> {
        self.write(RUN_TOML, text.as_bytes())
    }

    /// Writes what the run ran on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_environment(&self, environment: &Environment) -> Result<(), Error> {
        self.write_json(ENVIRONMENT_JSON, environment)
    }

    /// Begins an interval log; `start` is the time since 1970 at which the measurement begins, from
    /// which [`IntervalLog::write`] counts.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn interval_log(&self, series: Series, start: Duration) -> Result<IntervalLog, Error> {
        IntervalLog::create(self.path.join(format!("{}.hlog", series.name())), start)
    }

    /// Writes the percentiles of the whole run, in HdrHistogram's text format.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_percentiles(
        &self,
        series: Series,
        histogram: &Histogram<u64>,
    ) -> Result<(), Error> {
        let text = percentiles::to_hgrm(histogram);
        self.write(&format!("{}.hgrm", series.name()), text.as_bytes())
    }

    /// Writes what was found; the last thing that a run does.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_summary(&self, summary: &Summary) -> Result<(), Error> {
        self.write_json(SUMMARY_JSON, summary)
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), Error> {
        let mut text = serde_json::to_string_pretty(value).expect("invariant: it is JSON");
        text.push('\n');
        self.write(name, text.as_bytes())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path.join(name);
        fs::write(&path, bytes)
            .map_err(|error| Error::Io { doing: format!("write {}", path.display()), error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_a_folder_of_its_own() {
        let temp = tempfile::tempdir().unwrap();
        let new = temp.path().join("a/b");
        let folder = RunFolder::create(&new).unwrap();
        assert_eq!(fs::read_dir(&new).unwrap().count(), 0, "nothing is left of the probe");
        folder.write_run_toml("x = 1\n").unwrap();
        let refused = RunFolder::create(&new).unwrap_err();
        assert!(matches!(&refused, Error::Plan(why) if why.contains("is not empty")), "{refused}");
        let file = new.join(RUN_TOML);
        let refused = RunFolder::create(&file).unwrap_err();
        assert!(matches!(&refused, Error::Plan(why) if why.contains("not a folder")), "{refused}");
        assert_eq!(fs::read_to_string(file).unwrap(), "x = 1\n", "nothing was touched");
    }
}
