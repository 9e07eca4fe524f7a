//! The flags that `pub`, `sub` and `rr` share: where to connect, as whom, with which session and
//! Will. They are named as in `mosquitto_pub` and `mosquitto_sub`.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;

use clap::Args;

use super::connection::Failure;
use super::properties::Given;
use crate::client::{Options, Will};
use crate::codec::mqtt::topic::check_topic_name;
use crate::codec::mqtt::{QoS, Version};

/// Seconds that stand for "never expires".
const NEVER: u32 = u32::MAX;

/// See the [module](self).
#[derive(Args, Debug)]
pub(super) struct ConnectFlags {
    /// Host name or address of the broker
    #[arg(short = 'h', long, value_name = "HOST", help_heading = "Connection")]
    host: Option<String>,
    /// Port of the broker [default: 1883]
    #[arg(short = 'p', long, value_name = "PORT", help_heading = "Connection")]
    port: Option<u16>,
    /// All in one: mqtt://[user[:password]@]host[:port][/topic]
    #[arg(short = 'L', long, value_name = "URL", help_heading = "Connection")]
    #[arg(conflicts_with_all = ["host", "port"])]
    url: Option<String>,
    /// Local address to connect from
    #[arg(short = 'A', long, value_name = "ADDRESS", help_heading = "Connection")]
    pub(super) bind: Option<std::net::IpAddr>,
    /// User name
    #[arg(short = 'u', long, value_name = "NAME", allow_hyphen_values = true)]
    #[arg(help_heading = "Connection")]
    username: Option<String>,
    /// Password; visible to other users of this machine, unlike --password-file
    #[arg(short = 'P', long, value_name = "PASSWORD", allow_hyphen_values = true)]
    #[arg(help_heading = "Connection")]
    pw: Option<String>,
    /// File whose first line is the password
    #[arg(long, value_name = "FILE", conflicts_with = "pw", help_heading = "Connection")]
    password_file: Option<PathBuf>,
    /// Protocol version: 5, 311 or 31 (also mqttv5, mqttv311, mqttv31)
    #[arg(short = 'V', long, value_name = "VERSION", default_value = "5")]
    #[arg(value_parser = parse_version, help_heading = "Connection")]
    protocol_version: Version,
    /// Client id [default: assigned by the broker]
    #[arg(short = 'i', long, value_name = "ID", help_heading = "Connection")]
    id: Option<String>,
    /// Client id made of this prefix and the process id
    #[arg(short = 'I', long, value_name = "PREFIX", conflicts_with = "id")]
    #[arg(help_heading = "Connection")]
    id_prefix: Option<String>,
    /// Keep alive in seconds, 0 for none
    #[arg(short = 'k', long, value_name = "SECONDS", default_value_t = 60)]
    #[arg(help_heading = "Connection")]
    keepalive: u16,
    /// Keep the session: go on with an earlier one, and leave it when we go
    #[arg(short = 'c', long, requires = "id", help_heading = "Connection")]
    pub(super) disable_clean_session: bool,
    /// Seconds that the session outlives the connection; -1 for ever [default: -1 with -c, else 0]
    #[arg(short = 'x', long, value_name = "SECONDS", allow_hyphen_values = true)]
    #[arg(value_parser = parse_expiry, help_heading = "Connection")]
    session_expiry_interval: Option<u32>,
    /// A property: packet, name and value, as `-D publish content-type text/plain` or
    /// `-D connect user-property KEY VALUE`. Packets: connect, publish, subscribe, unsubscribe,
    /// disconnect, will. May be repeated
    #[arg(short = 'D', long, num_args = 3..=4, value_names = ["PACKET", "NAME", "VALUE"])]
    #[arg(help_heading = "Connection")]
    property: Vec<String>,
    /// Unacknowledged messages allowed in flight
    #[arg(short = 'M', long, value_name = "COUNT", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..), help_heading = "Connection")]
    max_inflight: u16,

    /// Topic of a message that the broker publishes if we vanish
    #[arg(long, value_name = "TOPIC", help_heading = "Will")]
    will_topic: Option<String>,
    /// Its payload
    #[arg(long, value_name = "TEXT", requires = "will_topic", allow_hyphen_values = true)]
    #[arg(help_heading = "Will")]
    will_payload: Option<String>,
    /// Its QoS
    #[arg(long, value_name = "0|1|2", default_value = "0", requires = "will_topic")]
    #[arg(value_parser = parse_qos, help_heading = "Will")]
    will_qos: QoS,
    /// Retain it
    #[arg(long, requires = "will_topic", help_heading = "Will")]
    will_retain: bool,

    /// Say on stderr what happens
    #[arg(short = 'd', long, help_heading = "Output")]
    pub(super) debug: bool,
    /// Say nothing about errors; the exit code remains
    #[arg(long, help_heading = "Output")]
    pub(super) quiet: bool,
    /// Print this help
    #[arg(long, action = clap::ArgAction::HelpShort, help_heading = "Output")]
    help: Option<bool>,
}

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The flags, checked and put together.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) target: Target,
    /// For the client.
    pub(super) options: Options,
    /// From the URL.
    pub(super) topic: Option<String>,
    /// What `-D` gave for packets other than CONNECT.
    pub(super) given: Given,
}

impl ConnectFlags {
    /// `command` names the client where the protocol version wants a name.
    pub(super) fn resolve(&self, command: &str) -> Result<Resolved, Failure> {
        let url = self.url.as_deref().map(Url::parse).transpose().map_err(Failure::usage)?;
        let url = url.unwrap_or_default();
        let target = Target {
            host: self.host.clone().or(url.host).unwrap_or_else(|| "localhost".into()),
            port: self.port.or(url.port).unwrap_or(1883),
        };
        let version = self.protocol_version;
        let mut given = Given::parse(&self.property).map_err(Failure::usage)?;
        if version != Version::V5 && !self.property.is_empty() {
            return Err(Failure::usage("properties (-D) need protocol version 5 (-V 5)"));
        }
        if given.will_used && self.will_topic.is_none() {
            return Err(Failure::usage("-D will needs --will-topic"));
        }
        let client_id = match (&self.id, &self.id_prefix) {
            (Some(id), _) => id.clone(),
            (None, Some(prefix)) => format!("{prefix}{}", std::process::id()),
            // 3.1 knows no assigned ids.
            (None, None) if version == Version::V31 => {
                format!("noctule-{command}-{}", std::process::id())
            }
            (None, None) => String::new(),
        };
        let mut options = Options::new(version, client_id);
        given.connect.apply(&mut options);
        options.clean_start = !self.disable_clean_session;
        options.keep_alive = self.keepalive;
        options.user_name = self.username.clone().or(url.user);
        options.password = match (&self.pw, &self.password_file) {
            (Some(password), _) => Some(password.clone().into_bytes()),
            (None, Some(file)) => Some(read_password(file)?),
            (None, None) => url.password.map(String::into_bytes),
        };
        if version != Version::V5 && options.password.is_some() && options.user_name.is_none() {
            return Err(Failure::usage("before version 5 a password needs a user name (-u)"));
        }
        if let Some(seconds) = self.session_expiry_interval {
            options.session_expiry_interval = seconds;
        } else if self.disable_clean_session && options.session_expiry_interval == 0 {
            options.session_expiry_interval = NEVER;
        }
        options.in_flight_max = self.max_inflight;
        options.will = self.will(&mut given)?;
        Ok(Resolved { target, options, topic: url.topic, given })
    }

    fn will(&self, given: &mut Given) -> Result<Option<Will>, Failure> {
        let Some(topic) = &self.will_topic else { return Ok(None) };
        check_topic_name(topic)
            .map_err(|error| Failure::usage(format!("--will-topic {topic:?}: {error}")))?;
        Ok(Some(Will {
            topic: topic.clone(),
            payload: self.will_payload.clone().unwrap_or_default().into_bytes(),
            qos: self.will_qos,
            retain: self.will_retain,
            delay_interval: given.will_delay,
            properties: std::mem::take(&mut given.will),
        }))
    }
}

fn read_password(file: &std::path::Path) -> Result<Vec<u8>, Failure> {
    let text = std::fs::read(file)
        .map_err(|error| Failure::usage(format!("--password-file {}: {error}", file.display())))?;
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(line.strip_suffix(b"\r").unwrap_or(line).to_vec())
}

/// `mqtt://[user[:password]@]host[:port][/topic]`, with %-escapes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Url {
    host: Option<String>,
    port: Option<u16>,
    user: Option<String>,
    password: Option<String>,
    topic: Option<String>,
}

impl Url {
    fn parse(url: &str) -> Result<Self, String> {
        let rest = match url.split_once("://") {
            Some(("mqtt", rest)) => rest,
            Some(("mqtts", _)) => return Err("mqtts: TLS is not supported yet".into()),
            _ => return Err(format!("URL {url:?} does not begin with mqtt://")),
        };
        let (authority, topic) = match rest.split_once('/') {
            Some((authority, topic)) => (authority, Some(topic)),
            None => (rest, None),
        };
        let (user_info, host_port) = match authority.rsplit_once('@') {
            Some((user_info, host_port)) => (Some(user_info), host_port),
            None => (None, authority),
        };
        let mut parsed = Self::default();
        if let Some(user_info) = user_info {
            let (user, password) = match user_info.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (user_info, None),
            };
            parsed.user = Some(unescape(user)?);
            parsed.password = password.map(unescape).transpose()?;
        }
        let (host, port) = match host_port.strip_prefix('[').and_then(|h| h.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None => match host_port.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (host_port, None),
            },
        };
        if host.is_empty() {
            return Err(format!("URL {url:?} names no host"));
        }
        parsed.host = Some(host.into());
        let bad_port = || format!("URL {url:?} has a bad port");
        parsed.port = port.map(str::parse).transpose().map_err(|_| bad_port())?;
        parsed.topic = topic.filter(|topic| !topic.is_empty()).map(unescape).transpose()?;
        Ok(parsed)
    }
}

fn unescape(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(value.ok_or_else(|| format!("bad %-escape in {text:?}"))?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| format!("{text:?} is not UTF-8"))
}

fn parse_version(text: &str) -> Result<Version, String> {
    match text {
        "5" | "50" | "5.0" | "mqttv5" => Ok(Version::V5),
        "311" | "3.1.1" | "4" | "mqttv311" => Ok(Version::V311),
        "31" | "3.1" | "3" | "mqttv31" => Ok(Version::V31),
        _ => Err("expected 5, 311 or 31".into()),
    }
}

/// For flags that take a QoS.
pub(super) fn parse_qos(text: &str) -> Result<QoS, String> {
    let bits = text.parse().ok().and_then(QoS::from_bits);
    bits.ok_or_else(|| "expected 0, 1 or 2".into())
}

fn parse_expiry(text: &str) -> Result<u32, String> {
    match text {
        "-1" | "∞" => Ok(NEVER),
        _ => text.parse().map_err(|_| "expected seconds, or -1 for never".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let url = Url::parse("mqtt://us%40er:p:w@example.org:1884/a/b%20c").unwrap();
        assert_eq!(url.user.as_deref(), Some("us@er"));
        assert_eq!(url.password.as_deref(), Some("p:w"));
        assert_eq!(url.host.as_deref(), Some("example.org"));
        assert_eq!(url.port, Some(1884));
        assert_eq!(url.topic.as_deref(), Some("a/b c"));
        let url = Url::parse("mqtt://[::1]:1885").unwrap();
        assert_eq!((url.host.as_deref(), url.port, url.topic), (Some("::1"), Some(1885), None));
        let bad_ones =
            ["localhost", "http://x", "mqtts://x", "mqtt://", "mqtt://x:y", "mqtt://h/%zz"];
        for bad in bad_ones {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn small_values() {
        assert_eq!(parse_expiry("-1"), Ok(u32::MAX));
        assert!(parse_expiry("-2").is_err());
        assert_eq!(parse_version("mqttv31"), Ok(Version::V31));
        assert_eq!(parse_qos("2"), Ok(QoS::ExactlyOnce));
        assert!(parse_qos("3").is_err());
    }
}
