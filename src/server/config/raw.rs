//! The configuration as written: by flags, by `NOCTULE_*` variables, or in a file.
//!
//! One structure for all three, so that every flag has a key in the file and they cannot drift
//! apart. Every setting is optional here; [`Settings::or`] lays one source over another.
#![forbid(unsafe_code)]

use std::fmt;
use std::num::{NonZeroU16, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use super::units::{ByteSize, CpuList, Span, deserialize_from_text};
use super::{LogFormat, ShardCount};
use crate::broker::strategy::Strategy;
use crate::broker::{Level, QoS, Refer};
use crate::io;

/// Everything that can be set. `None` means: not set by this source.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Address to listen on, repeatable; port 0 takes any free port [default: 127.0.0.1:1883]
    #[arg(long, value_name = "ADDR:PORT", env = "NOCTULE_LISTEN", value_delimiter = ',')]
    #[serde(skip)]
    pub listen: Vec<ListenAddress>,
    /// The same in the file: `[[listener]]`.
    #[arg(skip)]
    pub listener: Vec<RawListener>,
    /// Event-loop threads; auto is one per usable CPU [default: auto]
    #[arg(long, value_name = "N|auto", env = "NOCTULE_SHARDS")]
    pub shards: Option<ShardCount>,
    /// CPUs to pin the shards to, like 0,2-5; all that are usable when not given
    #[arg(long, value_name = "LIST", env = "NOCTULE_CPUS")]
    pub cpus: Option<CpuList>,
    /// Kernel interface; auto takes io_uring where it is complete, else epoll, and says why
    /// [default: auto]
    #[arg(long, value_name = "BACKEND", env = "NOCTULE_IO")]
    pub io: Option<io::Choice>,
    /// Microseconds to look for work before an event loop sleeps, while work lately came that soon:
    /// saves the time of waking up, for processor time; up to 1000 [default: 0]
    #[arg(long, value_name = "N", env = "NOCTULE_SPIN_US")]
    pub spin_us: Option<u32>,
    /// Directory for what must survive a restart, created when missing; without this
    /// $STATE_DIRECTORY, which systemd sets, or else noctule-data
    #[arg(long, value_name = "DIR", env = "NOCTULE_DATA")]
    pub data: Option<PathBuf>,
    /// Accept clients without credentials also on addresses that other machines can reach
    /// [default: false]
    #[arg(long, value_name = "BOOL", env = "NOCTULE_ALLOW_ANONYMOUS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_anonymous: Option<bool>,
    /// How the members of a shared subscription share its messages: round-robin, random, sticky,
    /// hash-client-id, hash-topic or least-in-flight [default: round-robin]
    #[arg(long, value_name = "STRATEGY", env = "NOCTULE_SHARED_STRATEGY")]
    pub shared_strategy: Option<Strategy>,
    /// `[[shared]]`: the same by group; the first that fits decides.
    #[arg(skip)]
    pub shared: Vec<SharedSettings>,
    /// Written when the broker serves: pid, addresses, backend and shards, as JSON
    #[arg(long, value_name = "FILE", env = "NOCTULE_READY_FILE")]
    pub ready_file: Option<PathBuf>,
    /// Counters as JSON, replaced at each SIGUSR1 and at exit
    #[arg(long, value_name = "FILE", env = "NOCTULE_STATS_FILE")]
    pub stats_file: Option<PathBuf>,
    /// `[log]`
    #[command(flatten)]
    pub log: LogSettings,
    /// `[limits]`
    #[command(flatten)]
    pub limits: LimitSettings,
    /// `[capabilities]`
    #[command(flatten)]
    pub capabilities: CapabilitySettings,
    /// `[referral]`
    #[command(flatten)]
    pub referral: ReferralSettings,
    /// `[durability]`
    #[command(flatten)]
    pub durability: DurabilitySettings,
    /// `[[rule]]`: settings for the topics under a filter.
    #[arg(skip)]
    pub rule: Vec<RuleSettings>,
}

/// One `[[listener]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawListener {
    /// Where to listen.
    pub address: ListenAddress,
    /// What an acknowledgement promises to who comes through it, where no rule says it.
    pub durability: Option<Level>,
}

/// What is logged, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// What is logged to stderr: error, warn, info, debug or trace, also per module [default: info]
    #[arg(long = "log-level", value_name = "LEVEL", env = "NOCTULE_LOG")]
    pub level: Option<LogLevel>,
    /// How it is logged [default: text]
    #[arg(long = "log-format", value_name = "FORMAT", env = "NOCTULE_LOG_FORMAT")]
    pub format: Option<LogFormat>,
}

/// Bounds that can be chosen. What has no key is in `limits.rs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Limits")]
pub struct LimitSettings {
    /// Largest packet accepted, in whole [default: 2MiB]
    #[arg(long, value_name = "BYTES", env = "NOCTULE_PACKET_SIZE_MAX")]
    pub packet_size_max: Option<ByteSize>,
    /// Largest CONNECT accepted, in whole; larger ones are refused before they are read
    /// [default: 128KiB]
    #[arg(long, value_name = "BYTES", env = "NOCTULE_CONNECT_SIZE_MAX")]
    pub connect_size_max: Option<ByteSize>,
    /// Longest topic name or filter, in bytes [default: 65535]
    #[arg(long, value_name = "N", env = "NOCTULE_TOPIC_BYTES_MAX")]
    pub topic_bytes_max: Option<NonZeroU16>,
    /// Most levels of a topic name or filter; a filter has no more than 128 [default: 65536]
    #[arg(long, value_name = "N", env = "NOCTULE_TOPIC_LEVELS_MAX")]
    pub topic_levels_max: Option<NonZeroUsize>,
    /// Unacknowledged QoS 1 and 2 messages allowed from one client [default: 1024]
    #[arg(long, value_name = "N", env = "NOCTULE_RECEIVE_MAXIMUM")]
    pub receive_maximum: Option<NonZeroU16>,
    /// Unacknowledged QoS 1 and 2 messages towards one client, if it allows as many [default: 1024]
    #[arg(long, value_name = "N", env = "NOCTULE_IN_FLIGHT_MAX")]
    pub in_flight_max: Option<NonZeroU16>,
    /// Topic aliases that a client may define [default: 32]
    #[arg(long, value_name = "N", env = "NOCTULE_TOPIC_ALIAS_MAXIMUM")]
    pub topic_alias_maximum: Option<u16>,
    /// Topic aliases that the broker uses towards one client, if it allows as many [default: 16]
    #[arg(long, value_name = "N", env = "NOCTULE_TOPIC_ALIASES_OUT_MAX")]
    pub topic_aliases_out_max: Option<u16>,
    /// Messages queued for one session behind those in flight [default: 100000]
    #[arg(long, value_name = "N", env = "NOCTULE_QUEUE_LEN_MAX")]
    pub queue_len_max: Option<usize>,
    /// Bytes of those in memory; with a journal, more of them are left to it [default: 64MiB]
    #[arg(long, value_name = "BYTES", env = "NOCTULE_QUEUE_BYTES_MAX")]
    pub queue_bytes_max: Option<ByteSize>,
    /// Bytes of those that only the journal has [default: 4GiB]
    #[arg(long, value_name = "BYTES", env = "NOCTULE_QUEUE_DISK_BYTES_MAX")]
    pub queue_disk_bytes_max: Option<ByteSize>,
    /// Bytes waiting for one connection above which its QoS 0 messages are dropped [default: 4MiB]
    #[arg(long, value_name = "BYTES", env = "NOCTULE_OUTBOX_BYTES_MAX")]
    pub outbox_bytes_max: Option<ByteSize>,
    /// Sessions, connected or not; beyond, clients without one are refused [default: 1000000]
    #[arg(long, value_name = "N", env = "NOCTULE_SESSIONS_MAX")]
    pub sessions_max: Option<NonZeroUsize>,
    /// Subscriptions of one session [default: 100000]
    #[arg(long, value_name = "N", env = "NOCTULE_SUBSCRIPTIONS_PER_SESSION_MAX")]
    pub subscriptions_per_session_max: Option<usize>,
    /// How long a session may outlive its connection, whatever the client asks for [default: never]
    #[arg(long, value_name = "TIME", env = "NOCTULE_SESSION_EXPIRY_MAX")]
    pub session_expiry_max: Option<Span>,
    /// Longest keep alive; an MQTT 5 client that asks for more, or for none, is given this one, an
    /// older one is refused [default: never]
    #[arg(long, value_name = "TIME", env = "NOCTULE_KEEP_ALIVE_MAX")]
    pub keep_alive_max: Option<Span>,
    /// How long a connection may take to send its CONNECT [default: 10s]
    #[arg(long, value_name = "TIME", env = "NOCTULE_CONNECT_TIMEOUT")]
    pub connect_timeout: Option<Span>,
    /// Payload memory of queued, in-flight and retained messages and Wills, of the whole broker
    /// [default: 1GiB]
    #[arg(long, value_name = "BYTES", env = "NOCTULE_MEMORY_BUDGET")]
    pub memory_budget: Option<ByteSize>,
}

/// What MQTT leaves to a server to offer.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Capabilities")]
pub struct CapabilitySettings {
    /// Highest QoS of a publication: 0, 1 or 2 [default: 2]
    #[arg(long, value_name = "QOS", env = "NOCTULE_MAXIMUM_QOS")]
    pub maximum_qos: Option<MaximumQos>,
    /// Keep retained messages [default: true]
    #[arg(long, value_name = "BOOL", env = "NOCTULE_RETAIN_AVAILABLE", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub retain_available: Option<bool>,
    /// Allow + and # in subscriptions [default: true]
    #[arg(long, value_name = "BOOL", env = "NOCTULE_WILDCARD_SUBSCRIPTIONS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub wildcard_subscriptions: Option<bool>,
    /// Allow Subscription Identifiers [default: true]
    #[arg(long, value_name = "BOOL", env = "NOCTULE_SUBSCRIPTION_IDENTIFIERS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub subscription_identifiers: Option<bool>,
    /// Allow Shared Subscriptions ($share/...) [default: true]
    #[arg(long, value_name = "BOOL", env = "NOCTULE_SHARED_SUBSCRIPTIONS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub shared_subscriptions: Option<bool>,
    /// Give a client id to clients that bring none [default: true]
    #[arg(long, value_name = "BOOL", env = "NOCTULE_ASSIGN_CLIENT_IDS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub assign_client_ids: Option<bool>,
    /// Refuse payloads that are said to be UTF-8 and are not [default: false]
    #[arg(long, value_name = "BOOL", env = "NOCTULE_PAYLOAD_FORMAT_CHECK", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub payload_format_check: Option<bool>,
    /// Response Information for clients that ask for it, such as responses/{client_id}
    #[arg(long, value_name = "TOPIC", env = "NOCTULE_RESPONSE_INFORMATION")]
    pub response_information: Option<ResponseTemplate>,
}

/// Where clients are sent instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Referral")]
pub struct ReferralSettings {
    /// Another server for clients to use, such as other.example:1883
    #[arg(long, value_name = "SERVER", env = "NOCTULE_SERVER_REFERENCE")]
    pub server_reference: Option<String>,
    /// When clients are sent there: at-shutdown, temporarily or permanently [default: at-shutdown]
    #[arg(long, value_name = "WHEN", env = "NOCTULE_REFER_CLIENTS")]
    pub refer_clients: Option<Refer>,
}

/// `[durability]`: what an acknowledgement promises.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Durability")]
pub struct DurabilitySettings {
    /// What sessions that outlive their connection, their messages and retained messages survive
    /// once they are acknowledged: none (a restart loses them), process (kill -9) or power (a power
    /// cut) [default: power]
    #[arg(long = "durability", value_name = "LEVEL", env = "NOCTULE_DURABILITY")]
    pub default: Option<Level>,
}

/// One `[[rule]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSettings {
    /// The topics it is for.
    pub filter: RuleFilter,
    /// What an acknowledgement promises there.
    pub durability: Option<Level>,
}

/// One `[[shared]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedSettings {
    /// The groups it is for: a ShareName, or with a slash `ShareName/filter`; `*` stands for any
    /// characters.
    pub group: String,
    /// How their members share.
    pub strategy: Strategy,
}

impl Settings {
    /// These settings, and `below` for what they do not set. Listeners are one setting: those
    /// given here replace all of those below.
    #[must_use]
    pub fn or(self, below: Self) -> Self {
        let (listen, listener) = if self.listen.is_empty() && self.listener.is_empty() {
            (below.listen, below.listener)
        } else {
            (self.listen, self.listener)
        };
        Self {
            listen,
            listener,
            shards: self.shards.or(below.shards),
            cpus: self.cpus.or(below.cpus),
            io: self.io.or(below.io),
            spin_us: self.spin_us.or(below.spin_us),
            data: self.data.or(below.data),
            allow_anonymous: self.allow_anonymous.or(below.allow_anonymous),
            shared_strategy: self.shared_strategy.or(below.shared_strategy),
            shared: if self.shared.is_empty() { below.shared } else { self.shared },
            ready_file: self.ready_file.or(below.ready_file),
            stats_file: self.stats_file.or(below.stats_file),
            log: LogSettings {
                level: self.log.level.or(below.log.level),
                format: self.log.format.or(below.log.format),
            },
            limits: self.limits.or(below.limits),
            capabilities: self.capabilities.or(below.capabilities),
            referral: ReferralSettings {
                server_reference: self
                    .referral
                    .server_reference
                    .or(below.referral.server_reference),
                refer_clients: self.referral.refer_clients.or(below.referral.refer_clients),
            },
            durability: DurabilitySettings {
                default: self.durability.default.or(below.durability.default),
            },
            rule: if self.rule.is_empty() { below.rule } else { self.rule },
        }
    }
}

impl LimitSettings {
    fn or(self, below: Self) -> Self {
        Self {
            packet_size_max: self.packet_size_max.or(below.packet_size_max),
            connect_size_max: self.connect_size_max.or(below.connect_size_max),
            topic_bytes_max: self.topic_bytes_max.or(below.topic_bytes_max),
            topic_levels_max: self.topic_levels_max.or(below.topic_levels_max),
            receive_maximum: self.receive_maximum.or(below.receive_maximum),
            in_flight_max: self.in_flight_max.or(below.in_flight_max),
            topic_alias_maximum: self.topic_alias_maximum.or(below.topic_alias_maximum),
            topic_aliases_out_max: self.topic_aliases_out_max.or(below.topic_aliases_out_max),
            queue_len_max: self.queue_len_max.or(below.queue_len_max),
            queue_bytes_max: self.queue_bytes_max.or(below.queue_bytes_max),
            queue_disk_bytes_max: self.queue_disk_bytes_max.or(below.queue_disk_bytes_max),
            outbox_bytes_max: self.outbox_bytes_max.or(below.outbox_bytes_max),
            sessions_max: self.sessions_max.or(below.sessions_max),
            subscriptions_per_session_max: self
                .subscriptions_per_session_max
                .or(below.subscriptions_per_session_max),
            session_expiry_max: self.session_expiry_max.or(below.session_expiry_max),
            keep_alive_max: self.keep_alive_max.or(below.keep_alive_max),
            connect_timeout: self.connect_timeout.or(below.connect_timeout),
            memory_budget: self.memory_budget.or(below.memory_budget),
        }
    }
}

impl CapabilitySettings {
    fn or(self, below: Self) -> Self {
        Self {
            maximum_qos: self.maximum_qos.or(below.maximum_qos),
            retain_available: self.retain_available.or(below.retain_available),
            wildcard_subscriptions: self.wildcard_subscriptions.or(below.wildcard_subscriptions),
            subscription_identifiers: self
                .subscription_identifiers
                .or(below.subscription_identifiers),
            shared_subscriptions: self.shared_subscriptions.or(below.shared_subscriptions),
            assign_client_ids: self.assign_client_ids.or(below.assign_client_ids),
            payload_format_check: self.payload_format_check.or(below.payload_format_check),
            response_information: self.response_information.or(below.response_information),
        }
    }
}

/// An address with its port: `127.0.0.1:1883`, `[::1]:1883`, `localhost:1883`, or a port alone for
/// loopback. Names are not looked up: what a broker binds must not depend on a resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenAddress(pub std::net::SocketAddr);

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let loopback = |port: &str| {
            port.parse::<u16>().ok().map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port)))
        };
        text.parse()
            .ok()
            .or_else(|| text.strip_prefix("localhost:").and_then(loopback))
            .or_else(|| loopback(text))
            .map(Self)
            .ok_or_else(|| {
                format!("\"{text}\" is not an address; write it like 127.0.0.1:1883 or [::]:1883")
            })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A level, or `tracing-subscriber` directives like `info,noctule::io=debug`. Known to parse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel(pub String);

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.parse::<tracing_subscriber::filter::Targets>();
        match parsed {
            Ok(targets) if !text.trim().is_empty() && only_known_levels(&targets) => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(format!(
                "\"{text}\" is not a log level; write error, warn, info, debug or trace, or \
                 module=level pairs like info,noctule::io=debug"
            )),
        }
    }
}

/// A misspelt level parses as the name of a target with everything on: `wran` would log all of a
/// crate that does not exist, and nothing else.
fn only_known_levels(targets: &tracing_subscriber::filter::Targets) -> bool {
    targets.default_level().is_some() || targets.iter().all(|(name, _)| name.contains("noctule"))
}

/// The highest QoS that is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaximumQos(pub QoS);

impl FromStr for MaximumQos {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "0" => Ok(Self(QoS::AtMostOnce)),
            "1" => Ok(Self(QoS::AtLeastOnce)),
            "2" => Ok(Self(QoS::ExactlyOnce)),
            _ => Err(format!("\"{text}\" is not a QoS; write 0, 1 or 2")),
        }
    }
}

/// A Topic Name in which `{client_id}` stands for the client's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseTemplate(pub String);

impl FromStr for ResponseTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.replace("{client_id}", "");
        if text.is_empty() || plain.contains(['+', '#', '\0', '{', '}']) {
            return Err(format!(
                "\"{text}\" is not a beginning of topics; write one without wildcards, in which \
                 {{client_id}} stands for the client's id, like responses/{{client_id}}"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for Refer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "at-shutdown" => Ok(Self::AtShutdown),
            "temporarily" => Ok(Self::Temporarily),
            "permanently" => Ok(Self::Permanently),
            _ => Err(format!(
                "\"{text}\" does not say when clients are sent to another server; write \
                 at-shutdown, temporarily or permanently"
            )),
        }
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::None, Self::Process, Self::Power]
            .into_iter()
            .find(|level| level.as_str() == text)
            .ok_or_else(|| format!("\"{text}\" is not a durability; write none, process or power"))
    }
}

/// A topic filter in the configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleFilter(pub String);

impl FromStr for RuleFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let levels: Vec<&str> = text.split('/').collect();
        let wrong_level = |(i, level): (usize, &&str)| {
            level.len() > 1 && level.contains(['#', '+']) || *level == "#" && i + 1 != levels.len()
        };
        if text.is_empty() || text.contains('\0') || levels.iter().enumerate().any(wrong_level) {
            return Err(format!(
                "\"{text}\" is not a topic filter; + stands for one whole level, # for all of the \
                 rest"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

deserialize_from_text!(
    ListenAddress,
    LogLevel,
    Level,
    RuleFilter,
    Strategy,
    MaximumQos,
    ResponseTemplate,
    Refer,
    ShardCount,
    io::Choice,
    LogFormat
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, address) in [
            ("127.0.0.1:1883", "127.0.0.1:1883"),
            ("1884", "127.0.0.1:1884"),
            ("localhost:0", "127.0.0.1:0"),
            ("[::1]:1883", "[::1]:1883"),
            ("0.0.0.0:1883", "0.0.0.0:1883"),
        ] {
            let parsed: ListenAddress = text.parse().expect("an address");
            assert_eq!(parsed.to_string(), address);
        }
        for text in ["", "127.0.0.1", "::1:x", "example.org:1883", "70000", "127.0.0.1:70000"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn log_levels() {
        for text in ["info", "WARN", "off", "info,noctule::io=debug", "noctule=trace"] {
            assert!(text.parse::<LogLevel>().is_ok(), "{text}");
        }
        for text in ["", "wran", "noctule=loud"] {
            assert!(text.parse::<LogLevel>().is_err(), "{text}");
        }
    }

    #[test]
    fn filters() {
        for text in ["#", "+", "a/b", "a/+/c", "a/#", "/", "$SYS/#"] {
            assert!(text.parse::<RuleFilter>().is_ok(), "{text}");
        }
        for text in ["", "a/#/b", "a+", "a/b#", "##", "a\0"] {
            assert!(text.parse::<RuleFilter>().is_err(), "{text}");
        }
    }
}
