//! Assembles a broker: configuration, sockets, data directory, shard threads, and the control
//! thread that waits for signals.
//!
//! [`serve`] is the whole of it, in order; [`start`] is the same for a program that has the broker
//! in itself, without signals. Whatever can be wrong with the machine or the
//! configuration is found before the first connection is accepted, and said in one line.
#![forbid(unsafe_code)]

pub mod affinity;
pub mod config;
pub mod control;
pub mod extensions;
pub mod instance;
pub mod logging;
pub mod signals;
pub mod threads;

use std::fmt;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use serde::Serialize;

use crate::broker::Level;
use crate::io::Settings;
use crate::io::probe::{self, Selected};
use crate::io::socket;
use crate::io::tap::Tap;
use crate::journal::record::Clocks;
use crate::journal::{log, recover};
use crate::shard::{Disk, Log, ShardStats, Start};
use crate::{broker, clock, limits};
use affinity::Plan;
use config::Config;
use control::{Control, Event};
use extensions::Extensions;
use instance::DataDir;
use threads::{Common, Running};

/// Why a broker could not start. Its text is one line that names the thing and the fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartError(String);

impl StartError {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

/// Why [`serve`] did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It could not start.
    Start(StartError),
    /// It ran, and broke.
    Broken(String),
    /// A second signal, of this number.
    Killed(i32),
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::Start(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(error) => error.fmt(f),
            Self::Broken(reason) => f.write_str(reason),
            Self::Killed(signal) => write!(f, "stopped at once by a second signal ({signal})"),
        }
    }
}

impl std::error::Error for Failure {}

/// What a ready file says, and who waits for the broker to serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ready {
    /// Of this process.
    pub pid: u32,
    /// Where it listens, ports as they are.
    pub listeners: Vec<SocketAddr>,
    /// `uring` or `epoll`.
    pub io: &'static str,
    /// How many.
    pub shards: usize,
}

/// Runs a broker until it is told to stop. `on_ready` is called once it accepts connections.
///
/// # Errors
/// When it cannot start, breaks, or is killed by a second signal.
pub fn serve(config: &Config, on_ready: impl FnOnce(&Ready)) -> Result<(), Failure> {
    let (events_in, events) = mpsc::channel();
    signals::watch(events_in.clone())
        .map_err(|error| StartError::new(format!("cannot handle signals: {error}")))?;
    let server = assemble(config, Arc::new(()), events_in, events)?;
    on_ready(&server.ready);
    let outcome = server.control.run();
    remove_ready_file(config);
    outcome
}

/// Starts a broker within this process, with `extensions`; it serves when this returns. Signals
/// are the caller's.
///
/// # Errors
/// When it cannot start.
pub fn start(config: &Config, extensions: Arc<dyn Extensions>) -> Result<Server, StartError> {
    let (events_in, events) = mpsc::channel();
    assemble(config, extensions, events_in, events)
}

/// A broker that serves. Dropped, it stops, and nobody waits for it.
#[derive(Debug)]
pub struct Server {
    ready: Ready,
    control: Control,
    /// Held: its lock is the broker's.
    _data: DataDir,
    /// Held: while it is there the control thread waits.
    _events: Sender<Event>,
}

impl Server {
    /// Where it listens, and on what it runs.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// All counters, by shard.
    pub fn stats(&self) -> Vec<ShardStats> {
        self.control.collect()
    }

    /// Stops as at SIGTERM: clients are told. The last counters, by shard.
    ///
    /// # Errors
    /// When a shard has ended by itself or does not stop in time.
    pub fn stop(self) -> Result<Vec<ShardStats>, Failure> {
        self.control.stop()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.control.begin_stop();
    }
}

fn assemble(
    config: &Config,
    extensions: Arc<dyn Extensions>,
    events_in: Sender<Event>,
    events: Receiver<Event>,
) -> Result<Server, StartError> {
    let since = clock::now();
    let descriptors = socket::raise_descriptor_limit();
    let plan = affinity::plan(config.shards, config.cpus.as_ref())?;
    // Before the data directory, for a start that fails to leave nothing behind.
    let (addresses, listeners) = bind(config, plan.shards())?;
    let Selected { engine, reason } =
        probe::select(config.io).map_err(|why| StartError::new(with_doctor(&why)))?;
    let data = DataDir::open(&config.data)?;
    remove_ready_file(config);
    let seed = instance::random_u64()
        .map_err(|error| StartError::new(format!("cannot get random numbers: {error}")))?;
    let common = Common {
        engine,
        broker: broker_config(config, plan.shards()),
        extensions,
        connect_timeout: config.limits.connect_timeout,
        io: Settings { spin: config.spin, ..Settings::default() },
        placement: data.placement(),
        seed,
    };
    let recovered = recover(config, &data, plan.shards(), seed)?;
    let Running { shards, backend, features } =
        threads::start(&plan, &common, recovered, listeners, &events_in)?;

    let ready =
        Ready { pid: std::process::id(), listeners: addresses, io: backend, shards: plan.shards() };
    banner(config, &data, &ready, &plan, &features, descriptors.soft);
    if config.durability.highest() == Level::Power && data.is_in_memory() {
        tracing::warn!(
            path = %data.path().display(),
            "the data directory is in memory, where nothing survives a power cut: choose one on a \
             disk with --data, or say --durability process"
        );
    }
    if let Some(why) = reason {
        tracing::warn!("serving on epoll: {}", with_doctor(&why));
    }
    write_ready_file(config, &ready)?;
    let stats_file = config.stats_file.clone();
    let control = Control { shards, events, stats_file, since };
    Ok(Server { ready, control, _data: data, _events: events_in })
}

/// What lasts of earlier runs, and the log that goes on behind it; None if nothing is to last.
fn recover(
    config: &Config,
    data: &DataDir,
    shards: usize,
    seed: u64,
) -> Result<Option<threads::Recovered>, StartError> {
    let folder = data.path().join("journal");
    if config.durability.highest() == Level::None {
        if folder.exists() {
            tracing::warn!(
                path = %folder.display(),
                "the journal of an earlier run is neither read nor written: durability is none"
            );
        }
        return Ok(None);
    }
    let began = clock::now();
    let rig = &config.rig;
    let options = log::Options {
        folder: folder.clone(),
        placement: data.placement().0,
        segment_bytes_first: rig.segment_bytes.unwrap_or(limits::JOURNAL_SEGMENT_BYTES_FIRST),
        segment_bytes_max: rig.segment_bytes.unwrap_or(limits::JOURNAL_SEGMENT_BYTES_MAX),
        // Who asks for no more than what survives the process is not to wait for a device.
        direct: config.durability.highest() == Level::Power,
    };
    let tap = Tap::new(&rig.tap)
        .map_err(|error| StartError::new(format!("cannot record the journal: {error}")))?;
    // What queues hold beyond that stays on disk.
    let most = config.limits.memory_budget as u64 / limits::RECOVER_MEMORY_PART;
    let recover::Recovered { state, log, report } = recover::open_some(options, seed, most)
        .map_err(|error| StartError::new(format!("cannot recover: {error}")))?;
    let now = clock::now();
    let took = format!("{:?}", now.since(began));
    tracing::info!(
        path = %folder.display(),
        took,
        records = report.records,
        sessions = state.sessions.len(),
        messages = state.messages.len(),
        retained = state.retained.len(),
        quarantined = report.quarantined,
        missing_commits = report.missing_commits,
        unreadable = report.unreadable,
        "recovered"
    );
    if let Some((file, offset)) = &report.torn {
        tracing::warn!(file, offset, "the last commit was torn: nobody had been told of it");
    }
    for damage in &report.damage {
        tracing::error!(damage, "the journal is damaged");
    }
    let unix_ms = u64::try_from(clock::unix_time().as_millis()).unwrap_or(u64::MAX);
    let start = Start {
        recovery_ms: u64::try_from(now.since(began).as_millis()).unwrap_or(u64::MAX),
        recovered_records: report.records,
        recovered_sessions: state.sessions.len() as u64,
        recovered_messages: state.messages.len() as u64,
        quarantined: report.quarantined,
        missing_commits: report.missing_commits,
        unreadable_at_start: report.unreadable,
    };
    Ok(Some(threads::Recovered {
        log: Log::Disk(Box::new(Disk { log, tap, start })),
        parts: state.partition(data.placement(), shards),
        clocks: Clocks { monotonic: now, unix_ms },
    }))
}

fn with_doctor(why: &str) -> String {
    format!("{why} (`noctule doctor` shows more)")
}

/// Binds every listener once per shard: the addresses as they came out, and the sockets by shard,
/// each shard's in the order of the configuration.
fn bind(
    config: &Config,
    shards: usize,
) -> Result<(Vec<SocketAddr>, Vec<Vec<TcpListener>>), StartError> {
    let mut addresses = Vec::with_capacity(config.listeners.len());
    let mut by_shard: Vec<Vec<TcpListener>> = (0..shards).map(|_| Vec::new()).collect();
    for listener in &config.listeners {
        let wanted = listener.address;
        let cannot = |error| cannot_listen(wanted, &error);
        let sockets = socket::listen(wanted, shards, limits::LISTEN_BACKLOG).map_err(cannot)?;
        for (of_shard, socket) in by_shard.iter_mut().zip(sockets) {
            of_shard.push(socket);
        }
        let bound = by_shard[0].last().expect("invariant: there is a shard, and it got a socket");
        addresses.push(bound.local_addr().map_err(cannot)?);
    }
    Ok((addresses, by_shard))
}

fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> StartError {
    let (what, fix) = match error.kind() {
        ErrorKind::AddrInUse => (
            "the address is in use".to_owned(),
            "stop who listens there (`ss -ltnp` shows it) or choose another port with --listen",
        ),
        ErrorKind::PermissionDenied => (
            "permission denied".to_owned(),
            "choose a port from 1024 on with --listen, or allow it with `setcap \
             cap_net_bind_service=+ep` on the binary",
        ),
        ErrorKind::AddrNotAvailable => (
            "no interface of this machine has that address".to_owned(),
            "choose one that `ip address` shows with --listen",
        ),
        _ => (error.to_string(), "choose another address with --listen"),
    };
    StartError::new(format!("cannot listen on {address}: {what}; {fix}"))
}

/// The protocol's configuration for one of `shards` shards.
fn broker_config(config: &Config, shards: usize) -> broker::Config {
    let (limits, capabilities) = (&config.limits, &config.capabilities);
    broker::Config {
        maximum_qos: capabilities.maximum_qos,
        retain_available: capabilities.retain_available,
        wildcard_subscriptions: capabilities.wildcard_subscriptions,
        subscription_identifiers: capabilities.subscription_identifiers,
        shared_subscriptions: capabilities.shared_subscriptions,
        assign_client_ids: capabilities.assign_client_ids,
        payload_format_check: capabilities.payload_format_check,
        response_information: capabilities.response_information.clone(),
        referral: config.referral.clone(),
        shared_strategies: config.shared_strategies.clone(),
        connect_size_max: limits.connect_size_max,
        topic_bytes_max: limits.topic_bytes_max,
        topic_levels_max: limits.topic_levels_max,
        maximum_packet_size: u32::try_from(limits.packet_size_max)
            .expect("invariant: PACKET_SIZE_MAX fits"),
        receive_maximum: limits.receive_maximum,
        in_flight_max: limits.in_flight_max,
        topic_alias_maximum: limits.topic_alias_maximum,
        topic_aliases_out_max: limits.topic_aliases_out_max,
        session_expiry_max_secs: limits.session_expiry_secs_max,
        keep_alive_max_secs: limits.keep_alive_secs_max.map_or(0, u16::from),
        queue_len_max: limits.queue_len_max,
        queue_bytes_max: limits.queue_bytes_max,
        queue_disk_bytes_max: limits.queue_disk_bytes_max,
        evict_above: limits.queue_bytes_max,
        queues_evict: config.durability.highest() > Level::None,
        // Client ids spread evenly, not exactly so.
        sessions_max: limits.sessions_max.div_ceil(shards),
        subscriptions_max: limits.subscriptions_per_session_max,
        outbox_bytes_max: limits.outbox_bytes_max,
        memory_budget: limits.memory_budget / shards,
        connect_timeout: limits.connect_timeout,
        record_changes: config.durability.highest() > Level::None,
        durability: config.durability.clone(),
    }
}

fn banner(
    config: &Config,
    data: &DataDir,
    ready: &Ready,
    plan: &Plan,
    features: &str,
    descriptors: u64,
) {
    use config::units::{ByteSize, Span};
    let size = |bytes: usize| ByteSize(bytes as u64).to_string();
    let limits = &config.limits;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), pid = ready.pid, "noctule");
    tracing::info!(backend = ready.io, features, "kernel interface");
    tracing::info!(count = ready.shards, cpus = plan.describe_cpus(), "shards");
    tracing::info!(
        packet_size_max = size(limits.packet_size_max),
        connect_size_max = size(limits.connect_size_max),
        topic_bytes_max = limits.topic_bytes_max,
        topic_levels_max = limits.topic_levels_max,
        receive_maximum = limits.receive_maximum,
        in_flight_max = limits.in_flight_max,
        topic_alias_maximum = limits.topic_alias_maximum,
        topic_aliases_out_max = limits.topic_aliases_out_max,
        queue_len_max = limits.queue_len_max,
        queue_bytes_max = size(limits.queue_bytes_max),
        queue_disk_bytes_max = size(limits.queue_disk_bytes_max),
        outbox_bytes_max = size(limits.outbox_bytes_max),
        sessions_max = limits.sessions_max,
        subscriptions_per_session_max = limits.subscriptions_per_session_max,
        connect_timeout = %Span(limits.connect_timeout),
        memory_budget = size(limits.memory_budget),
        descriptors,
        "limits"
    );
    // Where that is depends on the working directory, unless it is said.
    let data = std::path::absolute(data.path()).unwrap_or_else(|_| data.path().to_owned());
    tracing::info!(path = %data.display(), durability = config.durability.highest().as_str(), "data directory");
    for address in &ready.listeners {
        tracing::info!(%address, "listening");
    }
}

fn write_ready_file(config: &Config, ready: &Ready) -> Result<(), StartError> {
    let Some(path) = &config.ready_file else { return Ok(()) };
    let json = serde_json::to_string(ready).expect("invariant: Ready is plain data");
    instance::replace_file(path, format!("{json}\n").as_bytes()).map_err(|error| {
        StartError::new(format!("cannot write the ready file {}: {error}", path.display()))
    })
}

/// An old one would say that a broker serves that has gone or is not up yet.
fn remove_ready_file(config: &Config) {
    if let Some(path) = &config.ready_file {
        let _ = std::fs::remove_file(path);
    }
}
