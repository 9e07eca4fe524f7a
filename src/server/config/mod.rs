//! The configuration: from what was written ([`raw::Settings`]) to what holds ([`Config`]).
//!
//! A flag wins over a `NOCTULE_*` variable, that over the file, that over the default. A
//! [`Config`] is complete and checked: who has one needs no further validation.
#![forbid(unsafe_code)]

pub mod file;
pub mod raw;
pub mod units;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::broker::strategy::{self, Strategies};
use crate::broker::{Durability, QoS, Refer, Referral};
use crate::io::tap::TapOptions;
use crate::{io, limits};
pub use file::suggest;
use raw::{CapabilitySettings, LimitSettings, LogLevel, ReferralSettings, Settings};
use units::{ByteSize, CpuList, Span};

/// The documented configuration file; its values are the defaults.
pub const DEFAULT_FILE: &str = include_str!("../noctule.toml");

/// The whole configuration of one broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen; not empty.
    pub listeners: Vec<Listener>,
    /// How many shards.
    pub shards: ShardCount,
    /// CPUs to pin them to; `None` means those of the affinity mask.
    pub cpus: Option<CpuList>,
    /// Which kernel interface.
    pub io: io::Choice,
    /// How long an event loop looks for work before it sleeps, while work came that soon.
    pub spin: std::time::Duration,
    /// Where the state lives.
    pub data: PathBuf,
    /// Written when the broker serves.
    pub ready_file: Option<PathBuf>,
    /// Counters, at SIGUSR1 and exit.
    pub stats_file: Option<PathBuf>,
    /// What is logged, as `tracing-subscriber` directives.
    pub log_level: LogLevel,
    /// How.
    pub log_format: LogFormat,
    /// Bounds.
    pub limits: Limits,
    /// How the members of shared subscriptions share their messages.
    pub shared_strategies: Strategies,
    /// What is offered.
    pub capabilities: Capabilities,
    /// Another server, and when clients are sent there.
    pub referral: Option<Referral>,
    /// What an acknowledgement promises: to all, by listener, by topic filter.
    pub durability: Durability,
    /// What `noctule crashtest` and the tests have the journal do; nothing in service.
    pub rig: Rig,
}

/// See [`Config::rig`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rig {
    /// Between the journal and its files.
    pub tap: TapOptions,
    /// Size of its segments.
    pub segment_bytes: Option<u64>,
}

/// One address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its address; port 0 means any.
    pub address: SocketAddr,
}

/// Bounds in their final units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest packet accepted, in bytes, fixed header included.
    pub packet_size_max: usize,
    /// Largest CONNECT accepted, in bytes, fixed header included; at most `packet_size_max`.
    pub connect_size_max: usize,
    /// Longest topic, in bytes.
    pub topic_bytes_max: usize,
    /// Most levels of a topic; a filter has at most [`limits::TOPIC_LEVELS_MAX`].
    pub topic_levels_max: usize,
    /// Receive Maximum that the broker announces.
    pub receive_maximum: u16,
    /// Window towards a client, whatever it allows.
    pub in_flight_max: u16,
    /// Topic Alias Maximum that the broker announces.
    pub topic_alias_maximum: u16,
    /// Topic aliases that the broker uses towards one client.
    pub topic_aliases_out_max: u16,
    /// Messages queued for one session.
    pub queue_len_max: usize,
    /// Their bytes.
    pub queue_bytes_max: usize,
    /// Bytes of those that only the journal has.
    pub queue_disk_bytes_max: usize,
    /// Bytes waiting for one connection.
    pub outbox_bytes_max: usize,
    /// Sessions of the whole broker, at least one.
    pub sessions_max: usize,
    /// Subscriptions of one session.
    pub subscriptions_per_session_max: usize,
    /// Session Expiry Interval cap in seconds; `u32::MAX` for none.
    pub session_expiry_secs_max: u32,
    /// Keep Alive cap in seconds, if there is one.
    pub keep_alive_secs_max: Option<NonZeroU16>,
    /// Time for CONNECT.
    pub connect_timeout: std::time::Duration,
    /// Payload memory of the whole broker, in bytes.
    pub memory_budget: usize,
}

/// What is offered of that which MQTT leaves to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Highest QoS that is accepted and granted.
    pub maximum_qos: QoS,
    /// Retained messages.
    pub retain_available: bool,
    /// Wildcards in filters.
    pub wildcard_subscriptions: bool,
    /// Subscription Identifiers.
    pub subscription_identifiers: bool,
    /// Shared Subscriptions.
    pub shared_subscriptions: bool,
    /// Client ids for clients without one.
    pub assign_client_ids: bool,
    /// Payloads are what their Payload Format Indicator says.
    pub payload_format_check: bool,
    /// Response Information, `{client_id}` in it.
    pub response_information: Option<String>,
}

/// How many shards: a number, or by the CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShardCount {
    /// One per usable CPU.
    #[default]
    Auto,
    /// Exactly so many, from 1 to [`limits::SHARDS_MAX`].
    Exactly(usize),
}

impl FromStr for ShardCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        match text.parse() {
            Ok(count) if (1..=limits::SHARDS_MAX).contains(&count) => Ok(Self::Exactly(count)),
            _ => Err(format!(
                "\"{text}\" is not a number of shards; write auto, or 1 to {}",
                limits::SHARDS_MAX
            )),
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("\"{text}\" is not a log format; write text or json")),
        }
    }
}

/// The configuration cannot be used. Its text is one line that says what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where it was written, when that is known.
    place: Option<String>,
    /// `section.key`, when one is to blame.
    key: Option<String>,
    message: String,
}

impl ConfigError {
    fn new(message: impl Into<String>) -> Self {
        Self { place: None, key: None, message: message.into() }
    }

    /// A flag, or its variable, says it.
    fn by_flag(mut self) -> Self {
        self.place = self.key.as_deref().map(|key| {
            let key = key.rsplit('.').next().unwrap_or(key);
            let variable = key.to_ascii_uppercase();
            format!("--{} or NOCTULE_{variable}", key.replace('_', "-"))
        });
        self
    }

    /// The file says it.
    fn in_file(mut self, text: &str, path: &Path) -> Self {
        let position = self.key.as_deref().and_then(|key| file::position_of(text, key));
        self.place = Some(match position {
            Some((line, column)) => format!("{}:{line}:{column}", path.display()),
            None => path.display().to_string(),
        });
        self
    }

    /// The value of `key` cannot be used; `message` goes on from its name.
    fn of(key: &str, message: impl Into<String>) -> Self {
        Self { place: None, key: Some(key.to_owned()), message: message.into() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for before in self.place.iter().map(|place| format!("{place}: ")) {
            f.write_str(&before)?;
        }
        if let Some(key) = &self.key {
            write!(f, "{key} ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

/// The configuration from `flags` (in which `NOCTULE_*` variables already stand for what no flag
/// says), over the file at `path`, over the defaults.
pub fn load(flags: Settings, path: Option<&Path>) -> Result<Config, ConfigError> {
    let Some(path) = path else { return resolve(flags).map_err(ConfigError::by_flag) };
    let text = file::read(path)?;
    let file = file::parse(&text, path)?;
    resolve(flags.clone().or(file)).map_err(|error| match resolve(flags) {
        // It is wrong without the file, too.
        Err(alone) if alone.key == error.key => alone.by_flag(),
        _ => error.in_file(&text, path),
    })
}

/// Checks `settings` and puts defaults where they say nothing.
pub fn resolve(settings: Settings) -> Result<Config, ConfigError> {
    Ok(Config {
        listeners: resolve_listeners(&settings)?,
        durability: resolve_durability(&settings),
        rig: Rig::default(),
        shards: settings.shards.unwrap_or_default(),
        cpus: settings.cpus,
        io: settings.io.unwrap_or_default(),
        spin: spin(settings.spin_us)?,
        data: settings.data.unwrap_or_else(|| default_data(std::env::var_os("STATE_DIRECTORY"))),
        ready_file: settings.ready_file,
        stats_file: settings.stats_file,
        log_level: settings.log.level.unwrap_or_else(|| LogLevel("info".to_owned())),
        log_format: settings.log.format.unwrap_or_default(),
        limits: resolve_limits(&settings.limits)?,
        shared_strategies: Strategies {
            default: settings.shared_strategy.unwrap_or_default(),
            rules: settings
                .shared
                .into_iter()
                .map(|rule| strategy::Rule { group: rule.group, strategy: rule.strategy })
                .collect(),
        },
        capabilities: resolve_capabilities(settings.capabilities),
        referral: resolve_referral(settings.referral)?,
    })
}

/// The first directory that systemd has made for the service (`StateDirectory=`), else one in the
/// working directory.
fn default_data(state_directories: Option<OsString>) -> PathBuf {
    let given = state_directories.as_deref().and_then(|all| std::env::split_paths(all).next());
    given.filter(|path| path.is_absolute()).unwrap_or_else(|| PathBuf::from("noctule-data"))
}

fn resolve_durability(settings: &Settings) -> Durability {
    // Those that flags name come first, and have the default.
    let mut listeners = vec![None; settings.listen.len()];
    listeners.extend(settings.listener.iter().map(|listener| listener.durability));
    while listeners.pop_if(|level| level.is_none()).is_some() {}
    let topics = settings.rule.iter();
    Durability {
        default: settings.durability.default.unwrap_or_default(),
        listeners,
        topics: topics
            .filter_map(|rule| Some((rule.filter.0.as_str().into(), rule.durability?)))
            .collect(),
    }
}

fn resolve_listeners(settings: &Settings) -> Result<Vec<Listener>, ConfigError> {
    let written: Vec<SocketAddr> = settings
        .listen
        .iter()
        .map(|listen| listen.0)
        .chain(settings.listener.iter().map(|listener| listener.address.0))
        .collect();
    if written.is_empty() {
        return Ok(vec![Listener { address: limits::LISTEN_DEFAULT }]);
    }
    for (i, address) in written.iter().enumerate() {
        if address.port() != 0 && written[..i].contains(address) {
            return Err(ConfigError::new(format!(
                "the listener {address} is given twice; give each address once"
            )));
        }
        if !address.ip().to_canonical().is_loopback() && settings.allow_anonymous != Some(true) {
            return Err(ConfigError::new(format!(
                "the listener {address} can be reached from other machines, and this version has \
                 no users: listen on 127.0.0.1, or allow everyone with --allow-anonymous"
            )));
        }
    }
    if written.len() > limits::LISTENERS_MAX {
        return Err(ConfigError::new(format!(
            "{} listeners are given; at most {}",
            written.len(),
            limits::LISTENERS_MAX
        )));
    }
    Ok(written.into_iter().map(|address| Listener { address }).collect())
}

fn resolve_limits(written: &LimitSettings) -> Result<Limits, ConfigError> {
    let packet_size_max = bytes_within(
        "packet_size_max",
        written.packet_size_max,
        limits::PACKET_SIZE_DEFAULT,
        (limits::PACKET_SIZE_LEAST, limits::PACKET_SIZE_MAX),
    )?;
    let connect_size_max = bytes_within(
        "connect_size_max",
        written.connect_size_max,
        limits::CONNECT_SIZE_DEFAULT,
        (limits::CONNECT_SIZE_LEAST, limits::PACKET_SIZE_MAX),
    )?;
    let topic_levels_max =
        written.topic_levels_max.map_or(limits::TOPIC_NAME_LEVELS_MAX, NonZeroUsize::get);
    if topic_levels_max > limits::TOPIC_NAME_LEVELS_MAX {
        return Err(ConfigError::of(
            "limits.topic_levels_max",
            format!(
                "is {topic_levels_max}; it must be from 1 to {}",
                limits::TOPIC_NAME_LEVELS_MAX
            ),
        ));
    }
    let connect_timeout = written.connect_timeout.unwrap_or(Span(limits::CONNECT_TIMEOUT));
    if connect_timeout.0.is_zero() || connect_timeout == Span::NEVER {
        return Err(ConfigError::of(
            "limits.connect_timeout",
            format!("is {connect_timeout}; it must be a time above zero"),
        ));
    }
    let keep_alive_max = written.keep_alive_max.unwrap_or(Span::NEVER);
    // Longer than any client can ask for still is a cap for those that ask for none.
    let keep_alive_secs = u16::try_from(keep_alive_max.as_secs()).unwrap_or(u16::MAX);
    if keep_alive_secs == 0 {
        let message = "is 0s; write never for no limit";
        return Err(ConfigError::of("limits.keep_alive_max", message));
    }
    let keep_alive_secs_max =
        NonZeroU16::new(keep_alive_secs).filter(|_| keep_alive_max != Span::NEVER);
    let topic_aliases_out_max =
        written.topic_aliases_out_max.unwrap_or(limits::TOPIC_ALIASES_OUT_MAX);
    if topic_aliases_out_max > limits::TOPIC_ALIASES_OUT_LIMIT {
        return Err(ConfigError::of(
            "limits.topic_aliases_out_max",
            format!(
                "is {topic_aliases_out_max}; it must be from 0 to {}",
                limits::TOPIC_ALIASES_OUT_LIMIT
            ),
        ));
    }
    Ok(Limits {
        packet_size_max,
        connect_size_max: connect_size_max.min(packet_size_max),
        topic_bytes_max: written
            .topic_bytes_max
            .map_or(limits::TOPIC_BYTES_MAX, |n| n.get().into()),
        topic_levels_max,
        receive_maximum: written.receive_maximum.map_or(limits::RECEIVE_MAXIMUM, u16::from),
        in_flight_max: written.in_flight_max.map_or(limits::IN_FLIGHT_MAX, u16::from),
        topic_alias_maximum: written.topic_alias_maximum.unwrap_or(limits::TOPIC_ALIAS_MAX),
        topic_aliases_out_max,
        queue_len_max: written.queue_len_max.unwrap_or(limits::QUEUE_LEN_MAX),
        queue_bytes_max: bytes_within(
            "queue_bytes_max",
            written.queue_bytes_max,
            limits::QUEUE_BYTES_MAX,
            (0, usize::MAX),
        )?,
        queue_disk_bytes_max: bytes_within(
            "queue_disk_bytes_max",
            written.queue_disk_bytes_max,
            limits::QUEUE_DISK_BYTES_MAX,
            (0, usize::MAX),
        )?,
        outbox_bytes_max: bytes_within(
            "outbox_bytes_max",
            written.outbox_bytes_max,
            limits::OUTBOX_BYTES_MAX,
            (limits::OUTBOX_BYTES_MARK, usize::MAX),
        )?,
        sessions_max: written.sessions_max.map_or(limits::SESSIONS_MAX, NonZeroUsize::get),
        subscriptions_per_session_max: written
            .subscriptions_per_session_max
            .unwrap_or(limits::SUBSCRIPTIONS_PER_SESSION_MAX),
        session_expiry_secs_max: written.session_expiry_max.unwrap_or(Span::NEVER).as_secs(),
        keep_alive_secs_max,
        connect_timeout: connect_timeout.0,
        memory_budget: bytes_within(
            "memory_budget",
            written.memory_budget,
            limits::MEMORY_BUDGET_DEFAULT,
            (packet_size_max, usize::MAX),
        )?,
    })
}

fn resolve_capabilities(written: CapabilitySettings) -> Capabilities {
    Capabilities {
        maximum_qos: written.maximum_qos.map_or(QoS::ExactlyOnce, |qos| qos.0),
        retain_available: written.retain_available.unwrap_or(true),
        wildcard_subscriptions: written.wildcard_subscriptions.unwrap_or(true),
        subscription_identifiers: written.subscription_identifiers.unwrap_or(true),
        shared_subscriptions: written.shared_subscriptions.unwrap_or(true),
        assign_client_ids: written.assign_client_ids.unwrap_or(true),
        payload_format_check: written.payload_format_check.unwrap_or(false),
        response_information: written.response_information.map(|template| template.0),
    }
}

fn resolve_referral(written: ReferralSettings) -> Result<Option<Referral>, ConfigError> {
    let when = written.refer_clients.unwrap_or_default();
    let Some(server_reference) = written.server_reference else {
        return match when {
            Refer::AtShutdown => Ok(None),
            _ => Err(ConfigError::of(
                "referral.refer_clients",
                "sends clients to another server, and referral.server_reference does not say which",
            )),
        };
    };
    if server_reference.contains('\0') {
        return Err(ConfigError::of(
            "referral.server_reference",
            "has a null character, which MQTT cannot express",
        ));
    }
    if server_reference.is_empty() || server_reference.len() > limits::SERVER_REFERENCE_BYTES_MAX {
        return Err(ConfigError::of(
            "referral.server_reference",
            format!(
                "has {} bytes; it must have from 1 to {}",
                server_reference.len(),
                limits::SERVER_REFERENCE_BYTES_MAX
            ),
        ));
    }
    Ok(Some(Referral { server_reference, when }))
}

fn spin(micros: Option<u32>) -> Result<std::time::Duration, ConfigError> {
    let micros = micros.unwrap_or(0);
    if micros > limits::SPIN_MICROS_MAX {
        let most = limits::SPIN_MICROS_MAX;
        return Err(ConfigError::of(
            "spin_us",
            format!("is {micros}; it must be from 0 to {most}"),
        ));
    }
    Ok(std::time::Duration::from_micros(micros.into()))
}

fn bytes_within(
    key: &str,
    written: Option<ByteSize>,
    default: usize,
    (least, most): (usize, usize),
) -> Result<usize, ConfigError> {
    let Some(size) = written else { return Ok(default) };
    match usize::try_from(size.0) {
        Ok(bytes) if (least..=most).contains(&bytes) => Ok(bytes),
        _ => Err(ConfigError::of(
            &format!("limits.{key}"),
            format!(
                "is {size}; it must be from {} to {}",
                ByteSize(least as u64),
                ByteSize(most as u64)
            ),
        )),
    }
}

#[cfg(test)]
mod tests;
