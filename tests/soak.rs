//! A day's habit in a few seconds: steady, reconnecting and taken-over clients, subscriptions that
//! come and go, messages of 0 B to 1 MiB at every QoS, all at once and as fast as they go, against
//! a real broker over real sockets.
//!
//! What must hold:
//! - a stream (one publisher, one subscriber, one topic) loses nothing and reorders nothing;
//!   without reconnects, and at QoS 2 always, it repeats nothing;
//! - QoS 0 is paced so that the broker has no reason to drop, and its counters say it did not;
//! - what a client has subscribed to when SUBACK comes reaches it, whoever publishes;
//! - a connection whose session was taken over is closed;
//! - at the end there is no session, no connection, and no more memory than after the warm-up.
//!
//! `NOCTULE_SOAK_SECS` is the time for each combination of backend and shards (5 if not said; 60
//! for the full soak), `NOCTULE_SOAK_SEED` makes another one.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

mod support;

#[path = "soak/churn.rs"]
mod churn;
#[path = "soak/net.rs"]
mod net;
#[path = "soak/stream.rs"]
mod stream;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use noctule::bench::process::Usage;
use noctule::codec::mqtt::{QoS, Version};

use stream::{Kind, Stream};
use support::Broker;

/// Resident memory may end this much above where the warm-up left it: what an allocator keeps.
const GROWTH_MAX: u64 = 24 * 1024 * 1024;
/// Nothing in here waits longer for the broker than this.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Threads with clients that come and go.
const CHURNERS: u64 = 3;

/// What all threads of one round share.
pub struct Round {
    /// The broker.
    pub addr: SocketAddr,
    /// Publishing stops here.
    pub until: Instant,
    /// Keeps the names of rounds apart, and the random numbers.
    pub seed: u64,
    /// One thread has failed: the others need not go on.
    pub failed: AtomicBool,
    /// Messages that came, of all streams.
    pub messages: AtomicU64,
    /// Connections that were cut or taken over.
    pub cuts: AtomicU64,
    /// Clients that came and went.
    pub churned: AtomicU64,
}

/// Tells the others when its thread panics.
struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// A small generator of random numbers: xorshift64*.
pub struct Random(u64);

impl Random {
    /// With the same seed, the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    /// True in `part` of 100.
    pub fn percent(&mut self, part: u64) -> bool {
        self.below(100) < part
    }
}

fn from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

/// Every kind of stream in both versions: enough clients that, on two shards, publishers and
/// subscribers are at home on different ones.
fn streams(seed: u64) -> Vec<Stream> {
    let kinds = [
        Kind { qos: QoS::AtMostOnce, publisher_cut: false, subscriber_cut: false },
        Kind { qos: QoS::AtLeastOnce, publisher_cut: false, subscriber_cut: false },
        Kind { qos: QoS::ExactlyOnce, publisher_cut: false, subscriber_cut: false },
        Kind { qos: QoS::AtLeastOnce, publisher_cut: false, subscriber_cut: true },
        Kind { qos: QoS::AtLeastOnce, publisher_cut: true, subscriber_cut: false },
        Kind { qos: QoS::ExactlyOnce, publisher_cut: false, subscriber_cut: true },
        Kind { qos: QoS::ExactlyOnce, publisher_cut: true, subscriber_cut: false },
        Kind { qos: QoS::ExactlyOnce, publisher_cut: true, subscriber_cut: true },
    ];
    let versions = [Version::V311, Version::V5];
    let all = kinds.iter().flat_map(|kind| versions.map(|version| (*kind, version)));
    all.enumerate().map(|(n, (kind, version))| Stream::new(seed, n as u64, kind, version)).collect()
}

/// All clients, from the first connect to the last goodbye.
fn round(addr: SocketAddr, time: Duration, seed: u64) {
    let round = Round {
        addr,
        until: Instant::now() + time,
        seed,
        failed: AtomicBool::new(false),
        messages: AtomicU64::new(0),
        cuts: AtomicU64::new(0),
        churned: AtomicU64::new(0),
    };
    let round = &round;
    let streams = streams(seed);
    std::thread::scope(|scope| {
        for stream in &streams {
            scope.spawn(move || {
                let _alarm = Alarm(&round.failed);
                stream.run_subscriber(round);
            });
            scope.spawn(move || {
                let _alarm = Alarm(&round.failed);
                stream.run_publisher(round);
            });
        }
        for number in 0..CHURNERS {
            scope.spawn(move || {
                let _alarm = Alarm(&round.failed);
                churn::run(round, number);
            });
        }
    });
    println!(
        "  {} messages, {} connections cut or taken over, {} clients came and went",
        round.messages.load(Ordering::Relaxed),
        round.cuts.load(Ordering::Relaxed),
        round.churned.load(Ordering::Relaxed),
    );
    assert!(round.messages.load(Ordering::Relaxed) > 0);
}

/// What the broker says about itself when it has ended.
fn check_counters(stats: &serde_json::Value) {
    let get = |name: &str| {
        let count = stats["total"]["broker"][name].as_u64();
        count.unwrap_or_else(|| panic!("no counter {name} in {stats:#}"))
    };
    assert_eq!(get("sessions_created"), get("sessions_ended"), "sessions are left: {stats:#}");
    assert_eq!(get("connections_opened"), get("connections_closed"), "connections are left");
    // No stream has lost anything, so nothing may have been dropped for one. What was on its way
    // to a client that left is no loss.
    for name in ["dropped_outbox", "dropped_queue_full", "dropped_memory", "dropped_too_large"] {
        assert_eq!(get(name), 0, "{name}: {stats:#}");
    }
    assert_eq!(get("protocol_errors"), 0, "protocol_errors: {stats:#}");
    assert!(get("takeovers") > 0, "no session was taken over");
}

fn soak(broker: Broker, stats_file: &std::path::Path, time: Duration, seed: u64) {
    let rss = |broker: &Broker| Usage::of(broker.pid()).expect("look at the broker").rss_bytes;
    // The journal's segments, and what keeps books of them, have their size after some seconds.
    let warm_up = (time / 4).clamp(Duration::from_secs(4), Duration::from_secs(10));
    round(broker.addr(), warm_up, seed);
    let before = rss(&broker);
    round(broker.addr(), time - time / 4, seed + 1);
    let after = rss(&broker);
    println!("  RSS {} KiB after the warm-up, {} KiB at the end", before / 1024, after / 1024);
    assert!(
        after <= before + GROWTH_MAX,
        "memory grew from {before} to {after} bytes, more than {GROWTH_MAX}"
    );
    broker.stop();
    let stats = std::fs::read_to_string(stats_file).expect("read the stats file");
    let last = stats.lines().last().expect("a line of stats");
    check_counters(&serde_json::from_str(last).expect("the stats are JSON"));
}

#[test]
fn nothing_is_lost_repeated_or_reordered() {
    let time = Duration::from_secs(from_env("NOCTULE_SOAK_SECS", 5).max(2));
    let seed = from_env("NOCTULE_SOAK_SEED", 1);
    if let Some(addr) = support::broker::external() {
        // Its inside is not ours to judge.
        return round(addr, time, seed);
    }
    for combination in support::combinations() {
        println!("on {combination}, for {time:?}, seed {seed}");
        let files = tempfile::tempdir().expect("a temporary directory");
        let stats_file = files.path().join("stats.json");
        let broker =
            Broker::build(combination).arg("--stats-file").arg(stats_file.as_os_str()).start();
        soak(broker, &stats_file, time, seed);
    }
}
