//! HdrHistogram interval logs, version 1.3, with V2 compressed histograms: what `HistogramLogReader`
//! of the public HdrHistogram libraries (Java, C, Python, JavaScript, Rust, Go) reads.
//!
//! Values are nanoseconds; timestamps are seconds since the log's start.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, IntervalLogWriterError, LogEntry,
    LogIteratorError,
};
use hdrhistogram::serialization::{Deserializer, V2DeflateSerializeError, V2DeflateSerializer};

use super::super::Error;
use super::environment::rfc3339;

/// A log that is being written. Each interval reaches the file at once, so that a run that is
/// killed leaves what it had.
#[derive(Debug)]
pub struct IntervalLog {
    path: PathBuf,
    file: BufWriter<File>,
    serializer: Serializer,
}

/// With a `Debug` that its library does not have.
struct Serializer(V2DeflateSerializer);

impl std::fmt::Debug for Serializer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("V2DeflateSerializer")
    }
}

impl IntervalLog {
    /// Begins a log at `path`; it starts at `start`, a time since 1970.
    ///
    /// # Errors
    /// When the file is there already or cannot be written.
    pub fn create(path: PathBuf, start: Duration) -> Result<Self, Error> {
        let file = File::create_new(&path)
            .map_err(|error| Error::Io { doing: format!("create {}", path.display()), error })?;
        let serializer = Serializer(V2DeflateSerializer::new());
        let mut log = Self { path, file: BufWriter::new(file), serializer };
        let seconds = start.as_secs_f64();
        let head = format!(
            "#[Written by noctule {version}; values are nanoseconds]\n\
             #[Histogram log format version 1.3]\n\
             #[BaseTime: {seconds:.3} (seconds since epoch)]\n\
             #[StartTime: {seconds:.3} (seconds since epoch), {date}]\n\
             \"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\
             \"Interval_Compressed_Histogram\"\n",
            version = env!("CARGO_PKG_VERSION"),
            date = rfc3339(start),
        );
        let written = log.file.write_all(head.as_bytes()).and_then(|()| log.file.flush());
        written.map_err(|error| log.failed(error))?;
        Ok(log)
    }

    /// Writes the interval that began `since_start` after the log's start and took `length`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(
        &mut self,
        since_start: Duration,
        length: Duration,
        histogram: &Histogram<u64>,
    ) -> Result<(), Error> {
        // A writer of the library borrows what it writes to; one without comments and times writes
        // no header, so there may be one per interval.
        let written =
            IntervalLogWriterBuilder::new()
                .begin_log_with(&mut self.file, &mut self.serializer.0)
                .map_err(IntervalLogWriterError::IoError)
                .and_then(|mut writer| writer.write_histogram(histogram, since_start, length, None))
                .map_err(|error| match error {
                    IntervalLogWriterError::IoError(error)
                    | IntervalLogWriterError::SerializeError(V2DeflateSerializeError::IoError(
                        error,
                    )) => error,
                    IntervalLogWriterError::SerializeError(error) => std::io::Error::other(error),
                })
                .and_then(|()| self.file.flush());
        written.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::Io { doing: format!("write {}", self.path.display()), error }
    }
}

/// One interval of a log.
#[derive(Clone)]
pub struct Interval {
    /// When it began, since the log's start.
    pub since_start: Duration,
    /// How long it took.
    pub length: Duration,
    /// What was recorded in it.
    pub histogram: Histogram<u64>,
}

impl std::fmt::Debug for Interval {
    /// Without the thousands of buckets that a histogram has.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { since_start, length, histogram } = self;
        write!(f, "{} values in {length:?} from {since_start:?}", histogram.len())
    }
}

/// Reads the intervals of a log that have no tag, one after the other: a histogram is large.
///
/// # Errors
/// Says what is wrong, by line.
pub fn parse(text: &str, mut visit: impl FnMut(Interval)) -> Result<(), String> {
    // The line that is being written when a run is killed.
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    let mut number = 0;
    let mut deserializer = Deserializer::new();
    for entry in IntervalLogIterator::new(whole.as_bytes()) {
        let entry = entry.map_err(|LogIteratorError::ParseError { offset }| {
            format!("line {} is no interval", whole[..offset].matches('\n').count() + 1)
        })?;
        let LogEntry::Interval(interval) = entry else { continue };
        if interval.tag().is_some() {
            continue;
        }
        number += 1;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(interval.encoded_histogram())
            .map_err(|error| format!("interval {number} is not base64: {error}"))?;
        let histogram = deserializer
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| format!("interval {number} is no histogram: {error}"))?;
        let (since_start, length) = (interval.start_timestamp(), interval.duration());
        visit(Interval { since_start, length, histogram });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::record::histogram;
    use super::*;

    fn log() -> (tempfile::TempDir, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("latency.hlog");
        let mut log = IntervalLog::create(path.clone(), Duration::from_millis(5_500)).unwrap();
        for second in 0..3u64 {
            let mut values = histogram();
            for value in 1..=1000 {
                values.record(value * 1000 * (second + 1)).unwrap();
            }
            log.write(Duration::from_secs(second), Duration::from_secs(1), &values).unwrap();
        }
        log.write(Duration::from_secs(3), Duration::from_millis(250), &histogram()).unwrap();
        (temp, path)
    }

    fn all_of(text: &str) -> Result<Vec<Interval>, String> {
        let mut intervals = Vec::new();
        parse(text, |interval| intervals.push(interval)).map(|()| intervals)
    }

    #[test]
    fn what_was_written_is_read() {
        let (_temp, path) = log();
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "#[Histogram log format version 1.3]");
        assert_eq!(lines[3], "#[StartTime: 5.500 (seconds since epoch), 1970-01-01T00:00:05Z]");
        assert!(lines[4].starts_with("\"StartTimestamp\",\"Interval_Length\""));
        assert!(lines[6].starts_with("1.000,1.000,2000895.000,HISTFAAA"), "{}", lines[6]);
        let intervals = all_of(&text).unwrap();
        assert_eq!(intervals.len(), 4);
        assert_eq!(intervals[1].since_start, Duration::from_secs(1));
        assert_eq!(intervals[1].histogram.len(), 1000);
        assert_eq!(intervals[1].histogram.value_at_quantile(0.5), 1_000_447);
        assert_eq!(intervals[3].length, Duration::from_millis(250));
        assert!(intervals[3].histogram.is_empty());
    }

    #[test]
    fn a_log_that_was_cut_is_read_as_far_as_it_goes() {
        let (_temp, path) = log();
        let text = std::fs::read_to_string(path).unwrap();
        let cut = &text[..text.trim_end().len() - 10];
        assert_eq!(all_of(cut).unwrap().len(), 3);
        assert!(all_of("").unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_said_by_its_place() {
        let (_temp, path) = log();
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(all_of("#x\nhello\n").unwrap_err(), "line 2 is no interval");
        let broken = text.replacen("HISTFAAA", "HIST!AAA", 1);
        assert!(all_of(&broken).unwrap_err().starts_with("interval 1 is not base64"));
        let broken = text.replacen("HISTFAAA", "AAAAFAAA", 1);
        assert!(all_of(&broken).unwrap_err().starts_with("interval 1 is no histogram"));
    }
}
