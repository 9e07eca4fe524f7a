//! A scenario: what a file, the flags, or both ask for; and the same made complete.
//!
//! [`Settings`] is one structure for the file and the flags, so that every key has its flag. A flag
//! wins over the file, and what neither says has a default that depends on the workload.
//! [`Settings::resolve`] fills all of it in and checks it; what it returns can be written as
//! `run.toml` and run again.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Error;
use super::workload::{Placement, Schedule, Workload};

/// Similarity (Jaro-Winkler) from which a name is suggested for an unknown one.
const SUGGESTION_SIMILARITY_MIN: f64 = 0.75;

/// What can be asked for; what is absent has a default.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The question that the scenario answers, in one line
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// Who talks to whom
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,

    /// The broker's host [default: 127.0.0.1]
    #[arg(long, help_heading = "Broker")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The broker's port [default: 1883]
    #[arg(long, help_heading = "Broker")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Protocol version: 3.1, 3.1.1 or 5 [default: 3.1.1]
    #[arg(long, value_name = "VERSION", help_heading = "Broker")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<Mqtt>,

    /// Topic aliases that clients let the broker use towards them, MQTT 5 only [default: 0]
    #[arg(long, value_name = "N", help_heading = "Broker")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_alias_maximum: Option<u16>,

    /// Publishers with a subscriber each: pairs, ping-pong, offline; traffic beside churn, storm and
    /// idle, where there is none by default
    #[arg(long, value_name = "N", help_heading = "Clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs: Option<usize>,
    /// Publishers; requesters in request-response
    #[arg(long, value_name = "N", help_heading = "Clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publishers: Option<usize>,
    /// Subscribers; responders in request-response
    #[arg(long, value_name = "N", help_heading = "Clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscribers: Option<usize>,
    /// Of those, the ones that read slowly and are not counted
    #[arg(long, value_name = "N", help_heading = "Clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_subscribers: Option<usize>,
    /// Seconds that a slow subscriber waits between two reads [default: 0.1]
    #[arg(long, value_name = "SECONDS", help_heading = "Clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_pause: Option<f64>,
    /// Topic filters of each subscriber: route
    #[arg(long, value_name = "N", help_heading = "Clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filters: Option<usize>,
    /// Clients that only connect: connect, churn, storm, idle
    #[arg(long, value_name = "N", help_heading = "Clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clients: Option<usize>,
    /// Seconds of keep alive, and between two pings of a client: idle
    #[arg(long, value_name = "SECONDS", help_heading = "Clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<u16>,
    /// Seconds between two storms, in each of which all clients reconnect: storm
    #[arg(long, value_name = "SECONDS", help_heading = "Clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm_every: Option<f64>,
    /// Sessions a second that come and go: churn; absent: as fast as the clients can go round
    #[arg(long, value_name = "RATE", help_heading = "Clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_rate: Option<f64>,

    /// Of messages: 0, 1 or 2
    #[arg(long, help_heading = "Messages", value_parser = clap::value_parser!(u8).range(0..=2))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qos: Option<u8>,
    /// Of subscriptions [default: as of messages]
    #[arg(long, help_heading = "Messages", value_parser = clap::value_parser!(u8).range(0..=2))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscriber_qos: Option<u8>,
    /// Bytes of a message, or several sizes with a comma between, equally often; the first 16 bytes
    /// are for the accounting, smaller messages are only counted [default: 64]
    #[arg(long, value_name = "BYTES", help_heading = "Messages")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Sizes>,
    /// Messages in all; in retained and offline they are the run, elsewhere it ends with them
    #[arg(long, value_name = "N", help_heading = "Messages")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<u32>,

    /// Open loop: messages published a second, in all, whatever the broker does; latency counts
    /// from the intended time
    #[arg(long, help_heading = "Load")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Open loop: how the messages lie in time [default: constant]
    #[arg(long, value_enum, help_heading = "Load")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Closed loop: messages of each publisher that are under way, until its subscribers have them
    #[arg(long, conflicts_with = "rate", help_heading = "Load")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
    /// QoS 1 and 2: messages of each publisher that are unacknowledged [default: 20]
    #[arg(long, value_name = "N", help_heading = "Load")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inflight: Option<u16>,
    /// Seconds before the measurement [default: 1]
    #[arg(long, value_name = "SECONDS", help_heading = "Load")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<f64>,
    /// Seconds that are measured [default: 5]
    #[arg(long, value_name = "SECONDS", help_heading = "Load")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<f64>,
    /// Seconds that the last messages may take to arrive [default: 30]
    #[arg(long, value_name = "SECONDS", help_heading = "Load")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<f64>,
    /// Of everything random [default: 1]
    #[arg(long, help_heading = "Load")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,

    /// Connections a second while connecting; absent: as fast as the broker answers
    #[arg(long, value_name = "RATE", help_heading = "Generator")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ramp: Option<f64>,
    /// Without --ramp: connections that are being made at a time [default: 64]
    #[arg(long, value_name = "N", help_heading = "Generator")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connecting: Option<usize>,
    /// Connect from so many addresses, 127.0.0.1 and on; absent: from where the kernel likes
    #[arg(long, value_name = "N", help_heading = "Generator")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sources: Option<u8>,
    /// Threads that generate [default: as many as --cpus, or 1]
    #[arg(long, value_name = "N", help_heading = "Generator")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// CPUs for them, in turn, like 1 or 0,2-5
    #[arg(long, help_heading = "Generator")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<String>,
    /// Whether publishers and subscribers share threads [default: together]
    #[arg(long, value_enum, help_heading = "Generator")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// The generator's kernel interface: auto, uring or epoll [default: auto]
    #[arg(long, help_heading = "Generator")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<String>,
}

/// A version of the protocol, as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mqtt(pub crate::codec::mqtt::Version);

impl FromStr for Mqtt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        use crate::codec::mqtt::Version;
        match text {
            "3.1" => Ok(Self(Version::V31)),
            "3.1.1" => Ok(Self(Version::V311)),
            "5" | "5.0" => Ok(Self(Version::V5)),
            _ => Err(format!("\"{text}\" is no version of MQTT: 3.1, 3.1.1 or 5.0")),
        }
    }
}

impl TryFrom<String> for Mqtt {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mqtt> for String {
    fn from(version: Mqtt) -> Self {
        version.0.to_string()
    }
}

/// One size of messages, or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Sizes {
    /// All the same.
    One(usize),
    /// Each as often as the others.
    Several(Vec<usize>),
}

impl Sizes {
    /// All of them.
    pub fn to_vec(&self) -> Vec<usize> {
        match self {
            Self::One(size) => vec![*size],
            Self::Several(sizes) => sizes.clone(),
        }
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sizes: Result<Vec<usize>, _> =
            text.split(',').map(|size| size.trim().parse()).collect();
        match sizes {
            Ok(sizes) if sizes.len() == 1 => Ok(Self::One(sizes[0])),
            Ok(sizes) => Ok(Self::Several(sizes)),
            Err(_) => Err(format!("\"{text}\" is no size in bytes; write it like 64 or 16,256")),
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.to_vec().iter().map(usize::to_string).collect();
        f.write_str(&sizes.join(","))
    }
}

/// Takes what `over` says, and the rest from `under`.
macro_rules! overlay {
    ($over:ident, $under:ident, $($field:ident),* $(,)?) => {
        Settings { $($field: $over.$field.or($under.$field)),* }
    };
}

impl Settings {
    /// Reads the scenario at `path`.
    ///
    /// # Errors
    /// Names the file, the line, the key, and the key that was probably meant.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::Plan(format!(
                "cannot read the scenario {}: {error}; a workload's name or a file is expected, \
                 see --help",
                path.display()
            ))
        })?;
        Self::parse(&text, path)
    }

    /// Parses `text`, which stands in `path`.
    ///
    /// # Errors
    /// As [`Settings::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let settings: Self = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start).min(text.len());
            let line = text.as_bytes()[..start].iter().filter(|b| **b == b'\n').count() + 1;
            let message = error.message().trim().replace('\n', ", ");
            // Serde does not name the key of a wrong value.
            let key = key_at(text, start).filter(|key| !message.contains(&format!("`{key}`")));
            let key = key.map(|key| format!("{key}: ")).unwrap_or_default();
            let hint = suggestion(&message).map(|name| format!("; did you mean `{name}`?"));
            let hint = hint.unwrap_or_default();
            Error::Plan(format!("{}:{line}: {key}{message}{hint}", path.display()))
        })?;
        if settings.workload.is_none() {
            let names = Workload::ALL.map(|w| w.to_string()).join(", ");
            return Err(Error::Plan(format!(
                "{}: workload is missing; write workload = \"pairs\", or one of {names}",
                path.display()
            )));
        }
        if settings.rate.is_some() && settings.window.is_some() {
            return Err(Error::Plan(format!(
                "{}: rate and window exclude each other: a rate is an open loop, a window a closed \
                 one; remove one of them",
                path.display()
            )));
        }
        Ok(settings)
    }

    /// Takes what `self` says, and the rest from `file`. The load is one thing: who gives a rate
    /// takes away the window, and the other way round.
    pub fn over(self, mut file: Self) -> Self {
        if self.rate.is_some() {
            file.window = None;
        }
        if self.window.is_some() {
            (file.rate, file.schedule) = (None, None);
        }
        overlay!(
            self,
            file,
            question,
            workload,
            host,
            port,
            mqtt,
            topic_alias_maximum,
            pairs,
            publishers,
            subscribers,
            slow_subscribers,
            slow_pause,
            filters,
            clients,
            keep_alive,
            storm_every,
            session_rate,
            qos,
            subscriber_qos,
            payload,
            messages,
            rate,
            schedule,
            window,
            inflight,
            warm_up,
            duration,
            drain,
            seed,
            ramp,
            connecting,
            sources,
            threads,
            cpus,
            placement,
            io,
        )
    }

    /// As a file that can be run.
    pub fn to_toml(&self) -> String {
        let text = toml::to_string(self).expect("invariant: keys and plain values");
        format!("# As it ran. `noctule bench` takes this file again.\n{text}")
    }

    /// Fills in what is absent, for its workload. Everything that has a value in the run has one
    /// here; what has no meaning in the workload stays absent.
    pub fn fill(mut self) -> Self {
        use Workload::{
            Churn, Connect, FanIn, FanOut, Idle, Offline, Pairs, PingPong, RequestResponse,
            Retained, Route, Shared, SlowSubscriber, Storm,
        };
        let workload = *self.workload.get_or_insert(Pairs);
        self.host.get_or_insert_with(|| "127.0.0.1".into());
        self.port.get_or_insert(1883);
        self.mqtt.get_or_insert(Mqtt(crate::codec::mqtt::Version::V311));
        let (publishers, subscribers, window) = match workload {
            Pairs => (10, 10, 256),
            PingPong => (10, 10, 1),
            FanOut => (1, 100, 64),
            FanIn => (100, 1, 64),
            Shared => (10, 10, 64),
            Route => (4, 1000, 64),
            RequestResponse => (10, 1, 1),
            SlowSubscriber => (1, 11, 64),
            Retained => (1, 1, 64),
            Offline => (10, 10, 64),
            Connect | Churn | Storm | Idle => (0, 0, 64),
        };
        if workload.is_one_to_one() {
            self.pairs.get_or_insert(publishers);
        } else {
            self.publishers.get_or_insert(publishers);
            self.subscribers.get_or_insert(subscribers);
        }
        if workload.has_visitors() {
            self.clients.get_or_insert(match workload {
                Churn => 100,
                _ => 1000,
            });
        }
        match workload {
            Idle => _ = self.keep_alive.get_or_insert(60),
            Storm => _ = self.storm_every.get_or_insert(5.0),
            Route => _ = self.filters.get_or_insert(10),
            SlowSubscriber => {
                self.slow_subscribers.get_or_insert(1);
                self.slow_pause.get_or_insert(0.1);
            }
            Retained => _ = self.messages.get_or_insert(10_000),
            Offline => _ = self.messages.get_or_insert(50_000),
            _ => {}
        }
        let stores = matches!(workload, Retained | Offline);
        let qos = *self.qos.get_or_insert(u8::from(stores));
        self.subscriber_qos.get_or_insert(qos);
        self.payload.get_or_insert(Sizes::One(64));
        if self.has_messages() {
            match self.rate {
                Some(_) => _ = self.schedule.get_or_insert(Schedule::Constant),
                None => _ = self.window.get_or_insert(window),
            }
            if qos > 0 {
                self.inflight.get_or_insert(20);
            }
        }
        if !stores && workload != Connect {
            self.warm_up.get_or_insert(1.0);
            self.duration.get_or_insert(5.0);
        }
        self.drain.get_or_insert(30.0);
        self.seed.get_or_insert(1);
        if self.ramp.is_none() {
            self.connecting.get_or_insert(64);
        }
        self.placement.get_or_insert(Placement::Together);
        self.io.get_or_insert_with(|| "auto".into());
        self
    }

    /// Whether anything is published.
    fn has_messages(&self) -> bool {
        self.pairs.or(self.publishers).is_some_and(|count| count > 0)
    }
}

/// The key in the line of a byte offset.
fn key_at(text: &str, offset: usize) -> Option<&str> {
    let line_start = text[..offset].rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next()?;
    let (key, _) = line.split_once('=')?;
    Some(key.trim()).filter(|key| !key.is_empty() && !key.starts_with('#'))
}

/// The accepted name most like the unknown one. Serde says both in one sentence, in backticks:
/// unknown field `a`, expected one of `b`, `c`.
fn suggestion(message: &str) -> Option<&str> {
    let rest = message.strip_prefix("unknown ")?;
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    quoted
        .map(|name| (strsim::jaro_winkler(unknown, name), name))
        .filter(|(similarity, _)| *similarity >= SUGGESTION_SIMILARITY_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

/// What the positional argument of `noctule bench` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A workload with its defaults.
    Workload(Workload),
    /// A scenario file.
    File(PathBuf),
}

impl FromStr for Source {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let workload = Workload::ALL.into_iter().find(|workload| workload.to_string() == text);
        Ok(workload.map_or_else(|| Self::File(text.into()), Self::Workload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Settings::parse(text, Path::new("s.toml")).expect_err("must be refused").to_string()
    }

    #[test]
    fn errors_name_file_line_key_and_fix() {
        for (text, start, words) in [
            ("workload = \"pairs\"\nraet = 5\n", "s.toml:2: ", "did you mean `rate`?"),
            ("workload = \"pairz\"\n", "s.toml:1: workload: ", "did you mean `pairs`?"),
            ("workload = \"pairs\"\n\npayload = \"x\"\n", "s.toml:3: payload: ", "match"),
            ("workload = \"pairs\"\nmqtt = \"4\"\n", "s.toml:2: mqtt: ", "3.1.1"),
            ("workload = \"pairs\"\nrate = 1\nwindow = 1\n", "s.toml: rate and window", "remove"),
            ("rate = 1\n", "s.toml: workload is missing", "fan-out"),
            ("workload = \"pairs\"\nduration = \n", "s.toml:2: ", "duration"),
        ] {
            let message = error(text);
            assert!(message.starts_with(start) && message.contains(words), "{text}: {message}");
        }
        let missing = Settings::read(Path::new("/nonexistent/s.toml")).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/s.toml"), "{missing}");
    }

    #[test]
    fn flags_win_and_a_load_is_one_thing() {
        let file = "workload = \"pairs\"\nrate = 100\nschedule = \"poisson\"\npairs = 3\nqos = 1";
        let file = Settings::parse(file, Path::new("s.toml")).unwrap();
        let flags = Settings { window: Some(8), pairs: Some(5), ..Settings::default() };
        let both = flags.over(file.clone());
        assert_eq!((both.rate, both.schedule, both.window), (None, None, Some(8)));
        assert_eq!((both.pairs, both.qos), (Some(5), Some(1)));
        let faster = Settings { rate: Some(9.0), ..Settings::default() }.over(file);
        assert_eq!((faster.rate, faster.schedule), (Some(9.0), Some(Schedule::Poisson)));
    }

    #[test]
    fn what_ran_can_be_run_again() {
        for workload in Workload::ALL {
            let settings = Settings { workload: Some(workload), ..Settings::default() }.fill();
            let text = settings.to_toml();
            let again = Settings::parse(&text, Path::new("run.toml")).unwrap();
            assert_eq!(again, settings, "{text}");
            assert_eq!(again.clone().fill(), again, "nothing is left to fill in");
        }
        let sizes = Settings { payload: Some("16,256".parse().unwrap()), ..Settings::default() };
        let text = sizes.fill().to_toml();
        let again = Settings::parse(&text, Path::new("run.toml")).unwrap();
        assert_eq!(again.payload, Some(Sizes::Several(vec![16, 256])));
    }

    #[test]
    fn the_argument_is_a_workload_or_a_file() {
        assert_eq!("fan-out".parse(), Ok(Source::Workload(Workload::FanOut)));
        assert_eq!("fan-out.toml".parse(), Ok(Source::File("fan-out.toml".into())));
    }
}
