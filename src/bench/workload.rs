//! What is measured: a [`Plan`] from complete [`Settings`], and the [`Layout`] of publishers, topics
//! and subscribers that it stands for.
//!
//! A workload is a group of publishers, a group of subscribers and a group of visitors (clients that
//! only come, stay or go), any of them empty; a pattern that says who hears whom; and for the
//! visitors one operation that they repeat. Each group is numbered from 0 over the whole run.
//!
//! A *stream* is what one subscriber hears of one publisher; order is promised within a stream and
//! nowhere else, so accounting is per stream.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Error;
use super::pace::mix;
use super::record::HEADER_LEN;
use super::scenario::Settings;
use crate::codec::mqtt::{QoS, Version};
use crate::io;
use crate::limits::{
    BENCH_CLIENTS_MAX, BENCH_DURATION_MAX, BENCH_PAYLOAD_MAX, BENCH_STREAMS_MAX, BENCH_THREADS_MAX,
    BENCH_WINDOW_MAX,
};

/// A keep alive longer than runs are.
const QUIET_KEEP_ALIVE: Duration = Duration::from_secs(10 * 3600);

/// The question that a run asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Each publisher has its own topic and one subscriber: what forwarding costs.
    Pairs,
    /// Pairs with one message under way each: what a message costs that nothing else shares.
    PingPong,
    /// Few publishers, many subscribers of all their topics: what a copy costs.
    FanOut,
    /// Many publishers, few subscribers with a wildcard: what gathering costs.
    FanIn,
    /// Publishers, and a group of subscribers that share the messages.
    Shared,
    /// Many subscribers with many wildcard filters each; each message is for one of them.
    Route,
    /// Requests, answered by responders; the time of both ways.
    RequestResponse,
    /// A fan-out of which some subscribers read slowly: what the others notice of it.
    SlowSubscriber,
    /// Messages are stored, each under its topic, and then replayed to new subscriptions.
    Retained,
    /// Messages are queued for sessions without connection, which then come back.
    Offline,
    /// Clients connect and stay.
    Connect,
    /// Sessions come, subscribe, and go.
    Churn,
    /// All clients lose their connection at the same time and come back.
    Storm,
    /// Connected clients that only ping.
    Idle,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Pairs,
        Self::PingPong,
        Self::FanOut,
        Self::FanIn,
        Self::Shared,
        Self::Route,
        Self::RequestResponse,
        Self::SlowSubscriber,
        Self::Retained,
        Self::Offline,
        Self::Connect,
        Self::Churn,
        Self::Storm,
        Self::Idle,
    ];

    /// Its name and what it is, for people.
    pub const fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Pairs => ("pairs", "publishers with a topic and a subscriber each"),
            Self::PingPong => ("ping-pong", "pairs with one message under way"),
            Self::FanOut => ("fan-out", "few publishers, many subscribers of all their topics"),
            Self::FanIn => ("fan-in", "many publishers, few subscribers with a wildcard"),
            Self::Shared => ("shared", "publishers, and subscribers that share the messages"),
            Self::Route => ("route", "many wildcard filters; each message is for one of them"),
            Self::RequestResponse => ("request-response", "requests, and responders that answer"),
            Self::SlowSubscriber => ("slow-subscriber", "a fan-out in which some read slowly"),
            Self::Retained => ("retained", "messages are stored, then replayed to subscribers"),
            Self::Offline => ("offline", "messages queue for absent sessions, which come back"),
            Self::Connect => ("connect", "clients connect and stay"),
            Self::Churn => ("churn", "sessions come, subscribe, and go"),
            Self::Storm => ("storm", "all clients reconnect at the same time, again and again"),
            Self::Idle => ("idle", "connected clients that only ping"),
        }
    }

    /// Whether subscriber *n* hears publisher *n* and nobody else: then both are `pairs`.
    pub const fn is_one_to_one(self) -> bool {
        matches!(self, Self::Pairs | Self::PingPong | Self::Offline) || self.has_visitors()
    }

    /// Whether it has clients that only come, stay or go.
    pub const fn has_visitors(self) -> bool {
        matches!(self, Self::Connect | Self::Churn | Self::Storm | Self::Idle)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe().0)
    }
}

/// How the operations of an open loop lie in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// At equal distances, one actor after the other
    Constant,
    /// As a Poisson process, from the seed
    Poisson,
    /// All actors at the same time
    Burst,
}

/// Which thread has which clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Each thread has some of all; a pair shares a thread
    Together,
    /// Subscribers are on the second half of the threads
    Apart,
}

/// When an actor begins an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Closed loop: at most so many messages of each publisher are under way, counted over all its
    /// subscribers. Shows the highest rate; its latency is that of a full queue.
    Closed {
        /// Messages.
        window: u32,
    },
    /// Open loop: on a schedule that does not wait for the broker. Latency counts from the time at
    /// which a message was to be sent, so a stall of the broker shows in all that it delays.
    Open {
        /// Operations a second, of all actors together.
        rate: f64,
        /// How they lie in time.
        schedule: Schedule,
    },
}

/// What visitors do again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visit {
    /// Nothing: they stay.
    Stay,
    /// PINGREQ to PINGRESP.
    Ping,
    /// CONNECT, SUBSCRIBE, DISCONNECT.
    Session,
    /// The connection is closed without a word, and made again.
    Reconnect,
}

/// A run, complete and checked.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it was made of, complete.
    pub settings: Settings,
    /// The question.
    pub workload: Workload,
    /// How many.
    pub publishers: usize,
    /// How many, slow ones included: those are the last.
    pub subscribers: usize,
    /// How many of them are slow.
    pub slow: usize,
    /// Between two reads of a slow one.
    pub slow_pause: Duration,
    /// How many.
    pub responders: usize,
    /// How many.
    pub visitors: usize,
    /// Of messages.
    pub qos: QoS,
    /// Of subscriptions.
    pub subscriber_qos: QoS,
    /// Bytes of messages.
    pub payload: Vec<usize>,
    /// When publishers publish.
    pub load: Load,
    /// When visitors do what they do.
    pub visits: Load,
    /// Messages of each publisher, at most.
    pub messages_each: u32,
    /// Unacknowledged messages of each publisher at QoS 1 and 2.
    pub in_flight: u16,
    /// Of visitors, in seconds.
    pub keep_alive: u16,
    /// What is not measured, first.
    pub warm_up: Duration,
    /// What is measured; the longest that a run bounded by its messages may take.
    pub duration: Duration,
    /// How long the last messages may take.
    pub drain: Duration,
    /// The protocol.
    pub version: Version,
    /// The broker.
    pub broker: SocketAddr,
    /// The broker's process, when it can be watched.
    pub broker_pid: Option<u32>,
    /// Which kernel interface the generator uses.
    pub io: io::Choice,
    /// How many.
    pub threads: usize,
    /// For the threads, in turn; none: not pinned.
    pub cpus: Vec<usize>,
    /// Keeps the topics and client ids of runs apart.
    pub run: u32,
    layout: Layout,
}

impl Plan {
    /// Makes a plan of what `settings` asks for. `cpus` is its key of that name, parsed.
    ///
    /// # Errors
    /// Says which setting is wrong, and what would be right.
    pub fn new(
        settings: Settings,
        cpus: Vec<usize>,
        broker_pid: Option<u32>,
        run: u32,
    ) -> Result<Self, Error> {
        let settings = settings.fill();
        let workload = settings.workload.unwrap_or(Workload::Pairs);
        let one_to_one = workload.is_one_to_one();
        let pairs = settings.pairs.unwrap_or(0);
        let publishers = if one_to_one { pairs } else { settings.publishers.unwrap_or(0) };
        let mut subscribers = if one_to_one { pairs } else { settings.subscribers.unwrap_or(0) };
        let mut responders = 0;
        if workload == Workload::RequestResponse {
            // A requester hears the answers to its own requests.
            (responders, subscribers) = (subscribers, publishers);
        }
        let visitors = settings.clients.filter(|_| workload.has_visitors()).unwrap_or(0);
        let seconds = |key: &str, value: Option<f64>| {
            Duration::try_from_secs_f64(value.unwrap_or(0.0))
                .map_err(|error| Error::Plan(format!("{key}: {error}")))
        };
        let qos = |key: &str, value: Option<u8>| {
            QoS::from_bits(value.unwrap_or(0))
                .ok_or_else(|| Error::Plan(format!("{key} is 0, 1 or 2")))
        };
        let load = match (settings.rate, settings.schedule) {
            (Some(rate), schedule) => {
                Load::Open { rate, schedule: schedule.unwrap_or(Schedule::Constant) }
            }
            (None, _) => Load::Closed { window: settings.window.unwrap_or(1) },
        };
        let seed = settings.seed.unwrap_or(1);
        let (bounded, messages) = (settings.messages.is_some(), settings.messages.unwrap_or(0));
        let plan = Self {
            workload,
            publishers,
            subscribers,
            slow: settings.slow_subscribers.unwrap_or(0),
            slow_pause: seconds("slow_pause", settings.slow_pause)?,
            responders,
            visitors,
            qos: qos("qos", settings.qos)?,
            subscriber_qos: qos("subscriber_qos", settings.subscriber_qos)?,
            payload: settings
                .payload
                .as_ref()
                .map_or_else(Vec::new, super::scenario::Sizes::to_vec),
            load,
            visits: visits_load(&settings, workload, visitors),
            messages_each: match bounded {
                true => messages / u32::try_from(publishers.max(1)).unwrap_or(u32::MAX),
                false => u32::MAX - 1,
            },
            in_flight: settings.inflight.unwrap_or(20),
            keep_alive: settings.keep_alive.unwrap_or(0),
            warm_up: seconds("warm_up", settings.warm_up)?,
            duration: match settings.duration {
                Some(_) => seconds("duration", settings.duration)?,
                None => BENCH_DURATION_MAX,
            },
            drain: seconds("drain", settings.drain)?,
            version: settings.mqtt.map_or(Version::V311, |mqtt| mqtt.0),
            broker: resolve(&settings)?,
            broker_pid,
            io: settings.io.as_deref().unwrap_or("auto").parse().map_err(Error::Plan)?,
            threads: settings.threads.unwrap_or(cpus.len().max(1)),
            cpus,
            run,
            layout: Layout {
                workload,
                publishers,
                heard: subscribers - settings.slow_subscribers.unwrap_or(0).min(subscribers),
                filters: settings.filters.unwrap_or(1),
                seed,
                run,
            },
            settings,
        };
        plan.check()?;
        Ok(plan)
    }

    /// The keep alive, in seconds, of clients that never ping: longer than the run. None at all
    /// only where no number is long enough, because some brokers refuse that (rumqttd).
    pub(super) fn quiet_keep_alive(&self) -> u16 {
        // What ends with its messages has no duration, and takes no hours.
        let duration =
            if self.settings.duration.is_some() { self.duration } else { Duration::ZERO };
        let is_short = self.warm_up + duration + self.drain < QUIET_KEEP_ALIVE;
        if is_short { QUIET_KEEP_ALIVE.as_secs() as u16 } else { 0 }
    }

    fn check(&self) -> Result<(), Error> {
        let within = |what: &str, value: u128, least: u128, most: u128| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(Error::Plan(format!("{what} must be from {least} to {most}, and is {value}")))
        };
        let most = BENCH_CLIENTS_MAX as u128;
        let (least, names) = match self.workload.is_one_to_one() {
            true => (u128::from(!self.workload.has_visitors()), ["pairs", "pairs"]),
            false => (1, ["publishers", "subscribers"]),
        };
        within(names[0], self.publishers as u128, least, most)?;
        within(names[1], self.subscribers as u128, least, most)?;
        if self.workload == Workload::RequestResponse {
            within("subscribers", self.responders as u128, 1, most)?;
        }
        if self.workload.has_visitors() {
            within("clients", self.visitors as u128, 1, most)?;
        }
        within("all clients together", self.clients() as u128, 1, most)?;
        within("slow_subscribers", self.slow as u128, 0, self.subscribers as u128)?;
        within(
            "publishers times subscribers",
            self.layout.streams(),
            0,
            BENCH_STREAMS_MAX as u128,
        )?;
        within("filters", self.layout.filters as u128, 1, 10_000)?;
        within("payload sizes", self.payload.len() as u128, 1, 64)?;
        for size in &self.payload {
            within("payload", *size as u128, 0, BENCH_PAYLOAD_MAX as u128)?;
        }
        within("inflight", u128::from(self.in_flight), 1, u128::from(u16::MAX))?;
        within("messages for each publisher", u128::from(self.messages_each), 1, 1 << 32)?;
        let most = BENCH_DURATION_MAX.as_millis();
        within("duration in milliseconds", self.duration.as_millis(), 1, most)?;
        within("warm_up in milliseconds", self.warm_up.as_millis(), 0, most)?;
        within("drain in milliseconds", self.drain.as_millis(), 0, most)?;
        within("threads", self.threads as u128, 1, BENCH_THREADS_MAX as u128)?;
        within("connecting", self.settings.connecting.unwrap_or(1) as u128, 1, 60_000)?;
        if let Some(sources) = self.settings.sources {
            within("sources", u128::from(sources), 1, 250)?;
            if !self.broker.ip().is_loopback() || self.broker.is_ipv6() {
                return Err(Error::Plan(
                    "sources are addresses 127.0.0.x: only for a broker on 127.0.0.0/8".into(),
                ));
            }
        }
        for (key, load) in [("rate", self.load), ("session_rate", self.visits)] {
            match load {
                Load::Closed { window } => {
                    within("window", u128::from(window), 1, u128::from(BENCH_WINDOW_MAX))?;
                }
                Load::Open { rate, .. } => check_rate(key, rate)?,
            }
        }
        if self.workload == Workload::Connect && self.publishers > 0 {
            return Err(Error::Plan("pairs: nothing is published in connect; remove it".into()));
        }
        if let Some(ramp) = self.settings.ramp {
            check_rate("ramp", ramp)?;
        }
        if self.settings.topic_alias_maximum.is_some() && self.version != Version::V5 {
            return Err(Error::Plan(
                "topic_alias_maximum: topic aliases are of MQTT 5; write mqtt = \"5.0\" as well"
                    .into(),
            ));
        }
        self.check_accounting()
    }

    /// What cannot be done with messages too small for a header.
    fn check_accounting(&self) -> Result<(), Error> {
        if self.has_header() {
            return Ok(());
        }
        if self.payload.len() > 1 {
            return Err(Error::Plan(format!(
                "payload: of several sizes each must have {HEADER_LEN} bytes for the accounting"
            )));
        }
        let known = matches!(self.workload, Workload::Pairs | Workload::PingPong)
            || self.publishers == 1 && self.layout.pattern() == Pattern::All;
        if !known {
            return Err(Error::Plan(format!(
                "payload: less than {HEADER_LEN} bytes cannot say whose they are, which {} needs",
                self.workload
            )));
        }
        Ok(())
    }

    /// Whether messages carry their accounting.
    pub fn has_header(&self) -> bool {
        self.payload.iter().all(|size| *size >= HEADER_LEN)
    }

    /// Who hears whom.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// All connections.
    pub fn clients(&self) -> usize {
        let both = self.workload == Workload::RequestResponse;
        let hearing = if both { 0 } else { self.subscribers };
        self.publishers + hearing + self.responders + self.visitors
    }

    /// Messages in all, at most.
    pub(super) fn messages(&self) -> u64 {
        u64::from(self.messages_each) * self.publishers as u64
    }

    /// Whether messages are stored first, and delivered when all of them were.
    pub(super) fn is_bounded(&self) -> bool {
        matches!(self.workload, Workload::Retained | Workload::Offline)
    }

    /// Whether latency is that of visits, because nothing is published.
    pub(super) fn headline_is_visits(&self) -> bool {
        self.publishers == 0
    }

    pub(super) fn visit(&self) -> Visit {
        match self.workload {
            Workload::Idle => Visit::Ping,
            Workload::Churn => Visit::Session,
            Workload::Storm => Visit::Reconnect,
            _ => Visit::Stay,
        }
    }
}

/// When visitors do what they do.
fn visits_load(settings: &Settings, workload: Workload, visitors: usize) -> Load {
    let schedule = Schedule::Constant;
    match workload {
        Workload::Idle => {
            let seconds = f64::from(settings.keep_alive.unwrap_or(60).max(1));
            Load::Open { rate: visitors as f64 / seconds, schedule }
        }
        Workload::Storm => {
            let every = settings.storm_every.unwrap_or(5.0);
            Load::Open { rate: visitors as f64 / every, schedule: Schedule::Burst }
        }
        _ => match settings.session_rate {
            Some(rate) => Load::Open { rate, schedule },
            None => Load::Closed { window: 1 },
        },
    }
}

fn check_rate(key: &str, rate: f64) -> Result<(), Error> {
    if rate.is_finite() && (0.001..=1e8).contains(&rate) {
        return Ok(());
    }
    Err(Error::Plan(format!("{key} must be from 0.001 to 100000000 a second, and is {rate}")))
}

fn resolve(settings: &Settings) -> Result<SocketAddr, Error> {
    let host = settings.host.as_deref().unwrap_or("127.0.0.1");
    let found = (host, settings.port.unwrap_or(1883)).to_socket_addrs();
    let mut found = found.map_err(|error| Error::Plan(format!("host {host}: {error}")))?;
    found.next().ok_or_else(|| Error::Plan(format!("host {host} has no address")))
}

/// Who hears whom, as the accounting sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Subscriber *n* hears publisher *n*.
    OneToOne,
    /// Everybody hears everybody.
    All,
    /// Of each message one subscriber hears.
    AnyOne,
    /// Everybody hears everybody, in no order.
    Unordered,
}

/// Who hears whom, and by which topics.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    workload: Workload,
    publishers: usize,
    /// Subscribers that are counted.
    heard: usize,
    filters: usize,
    seed: u64,
    run: u32,
}

impl Layout {
    pub(super) fn pattern(&self) -> Pattern {
        match self.workload {
            Workload::FanOut | Workload::FanIn | Workload::SlowSubscriber => Pattern::All,
            Workload::Shared | Workload::Route => Pattern::AnyOne,
            Workload::Retained => Pattern::Unordered,
            _ => Pattern::OneToOne,
        }
    }

    /// How many pairs of a publisher and a subscriber are to be kept account of.
    fn streams(&self) -> u128 {
        match self.pattern() {
            Pattern::OneToOne => self.publishers as u128,
            _ => self.publishers as u128 * self.heard as u128,
        }
    }

    /// How many publishers there are.
    pub(super) fn publishers(&self) -> usize {
        self.publishers
    }

    /// How many subscribers are counted: those behind are slow.
    pub(super) fn heard(&self) -> usize {
        self.heard
    }

    /// How many subscribers get each message.
    pub(super) fn receivers(&self) -> u64 {
        match self.pattern() {
            Pattern::OneToOne | Pattern::AnyOne => 1,
            Pattern::All | Pattern::Unordered => self.heard as u64,
        }
    }

    /// The topic that `publisher` publishes all its messages to; `None` when each has another.
    pub(super) fn fixed_topic(&self, publisher: usize) -> Option<String> {
        let run = self.run;
        match self.workload {
            Workload::Route | Workload::Retained => None,
            Workload::RequestResponse => Some(format!("bench/{run}/q/{publisher}")),
            _ => Some(format!("bench/{run}/m/{publisher}")),
        }
    }

    /// Whether each message has a topic of its own.
    pub(super) fn has_many_topics(&self) -> bool {
        matches!(self.workload, Workload::Route | Workload::Retained)
    }

    /// Writes the topic of the publisher's message `sequence`, where each has another.
    pub(super) fn write_topic(&self, publisher: usize, sequence: u32, topic: &mut String) {
        use std::fmt::Write as _;
        topic.clear();
        let run = self.run;
        // Writing to a string does not fail.
        let _ = match self.workload {
            Workload::Route => {
                let (subscriber, filter) = self.target(publisher, sequence);
                write!(topic, "bench/{run}/r/{subscriber}/{filter}/{publisher}")
            }
            _ => write!(topic, "bench/{run}/m/{publisher}/{sequence}"),
        };
    }

    /// For whom a message of [`Workload::Route`] is: subscriber and filter.
    pub(super) fn target(&self, publisher: usize, sequence: u32) -> (usize, usize) {
        let number = (publisher as u64) << 32 | u64::from(sequence);
        let random = mix(self.seed ^ mix(number.wrapping_add(0x9e37_79b9_7f4a_7c15)));
        let subscriber = (random >> 32) as usize % self.heard.max(1);
        (subscriber, (random & 0xffff_ffff) as usize % self.filters)
    }

    /// What `subscriber` subscribes to.
    pub(super) fn filters(&self, subscriber: usize) -> Vec<String> {
        let run = self.run;
        match self.workload {
            Workload::Shared => vec![format!("$share/bench/bench/{run}/m/+")],
            Workload::Route => (0..self.filters)
                .map(|filter| format!("bench/{run}/r/{subscriber}/{filter}/+"))
                .collect(),
            Workload::Retained => vec![format!("bench/{run}/m/#")],
            Workload::RequestResponse => vec![self.answer_topic(subscriber)],
            _ => match (self.pattern(), self.publishers) {
                (Pattern::OneToOne, _) => vec![format!("bench/{run}/m/{subscriber}")],
                (_, 1) => vec![format!("bench/{run}/m/0")],
                _ => vec![format!("bench/{run}/m/+")],
            },
        }
    }

    /// What `responder`, one of so many, subscribes to: the requests of every so manieth requester.
    pub(super) fn request_filters(&self, responder: usize, responders: usize) -> Vec<String> {
        let run = self.run;
        let requesters = (responder..self.publishers).step_by(responders.max(1));
        requesters.map(|requester| format!("bench/{run}/q/{requester}")).collect()
    }

    /// Where the answers to a requester go.
    pub(super) fn answer_topic(&self, requester: usize) -> String {
        format!("bench/{}/a/{requester}", self.run)
    }

    /// What a visitor subscribes to.
    pub(super) fn visitor_filter(&self, visitor: usize) -> String {
        format!("bench/{}/v/{visitor}", self.run)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::codec::mqtt::topic::matches;

    /// A plan from a scenario's text.
    pub(in crate::bench) fn plan(text: &str) -> Result<Plan, Error> {
        let settings = Settings::parse(text, std::path::Path::new("test.toml"))?;
        Plan::new(settings, Vec::new(), None, 7)
    }

    #[test]
    fn filters_match_the_topics_of_those_who_are_heard() {
        for text in [
            "workload = \"pairs\"\npairs = 3",
            "workload = \"fan-out\"\nsubscribers = 3",
            "workload = \"fan-out\"\npublishers = 2\nsubscribers = 3",
            "workload = \"fan-in\"\npublishers = 3",
            "workload = \"storm\"\npairs = 3",
        ] {
            let plan = plan(text).unwrap();
            let layout = plan.layout();
            for publisher in 0..plan.publishers {
                let topic = layout.fixed_topic(publisher).unwrap();
                let heard = (0..plan.subscribers)
                    .filter(|s| layout.filters(*s).iter().any(|f| matches(f, &topic)));
                assert_eq!(heard.count() as u64, layout.receivers(), "{text}");
            }
        }
    }

    #[test]
    fn each_routed_message_has_one_receiver_and_all_are_reached() {
        let plan = plan("workload = \"route\"\nsubscribers = 5\nfilters = 3").unwrap();
        let layout = plan.layout();
        let mut reached = std::collections::BTreeSet::new();
        let mut topic = String::new();
        for sequence in 0..200 {
            layout.write_topic(1, sequence, &mut topic);
            let (target, filter) = layout.target(1, sequence);
            reached.insert((target, filter));
            for subscriber in 0..5 {
                let hears = layout.filters(subscriber).iter().any(|f| matches(f, &topic));
                assert_eq!(hears, subscriber == target, "{topic}");
            }
        }
        assert_eq!(reached.len(), 15);
    }

    #[test]
    fn requests_reach_one_responder() {
        let text = "workload = \"request-response\"\npublishers = 5\nsubscribers = 2";
        let plan = plan(text).unwrap();
        let layout = plan.layout();
        assert_eq!((plan.responders, plan.clients()), (2, 7));
        let all: Vec<_> = (0..2).flat_map(|r| layout.request_filters(r, 2)).collect();
        for requester in 0..5 {
            let topic = layout.fixed_topic(requester).unwrap();
            assert_eq!(all.iter().filter(|f| **f == topic).count(), 1);
        }
    }

    #[test]
    fn plans_out_of_bounds_are_refused_with_the_key() {
        for (text, words) in [
            ("workload = \"pairs\"\npairs = 0", "pairs must be from 1"),
            ("workload = \"pairs\"\nwindow = 0", "window must be from 1"),
            ("workload = \"pairs\"\nrate = nan", "rate must be from 0.001"),
            ("workload = \"pairs\"\nduration = 0", "duration"),
            ("workload = \"pairs\"\nduration = -1", "duration"),
            ("workload = \"pairs\"\nqos = 3", "qos is 0, 1 or 2"),
            ("workload = \"pairs\"\nio = \"x\"", "auto, uring or epoll"),
            ("workload = \"pairs\"\ntopic_alias_maximum = 3", "write mqtt = \"5.0\""),
            ("workload = \"pairs\"\nhost = \"192.0.2.1\"\nsources = 2", "127.0.0.x"),
            ("workload = \"fan-in\"\npublishers = 60000\nsubscribers = 9", "together"),
            ("workload = \"fan-in\"\npublishers = 30000\nsubscribers = 9000", "times"),
            ("workload = \"fan-in\"\npayload = 8", "payload: less than 16"),
            ("workload = \"pairs\"\npayload = [8, 64]", "payload: of several"),
            ("workload = \"retained\"\nmessages = 1\npublishers = 2", "messages for each"),
        ] {
            let error = plan(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(plan("workload = \"pairs\"\npayload = 8").is_ok());
    }

    #[test]
    fn who_never_pings_has_a_keep_alive_longer_than_the_run() {
        let keep_alive = |text: &str| plan(text).unwrap().quiet_keep_alive();
        assert_eq!(keep_alive("workload = \"pairs\""), 36_000);
        assert_eq!(keep_alive("workload = \"offline\""), 36_000);
        assert_eq!(keep_alive("workload = \"connect\""), 36_000);
        assert_eq!(keep_alive("workload = \"pairs\"\nduration = 40_000"), 0);
    }
}
