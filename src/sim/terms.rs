//! What the broker of a world allows: often little, so that its bounds are met. And what of it its
//! clients keep to, and the oracle reckons with.
#![forbid(unsafe_code)]

use super::faults::{Faults, Kind};
use super::random::Random;
use crate::broker::strategy::{Strategies, Strategy};
use crate::broker::{Config, Durability, Level, QoS};
use crate::ids::PlacementKey;

/// See the [module](self).
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How many shards there are.
    pub shards: usize,
    /// Largest packet towards the broker.
    pub packet_max: usize,
    /// Longest keep alive; 0 is no cap.
    pub keep_alive_max: u16,
    /// Subscriptions of one session.
    pub subscriptions_max: usize,
    /// Whether there may be no room for another session.
    pub few_sessions: bool,
    /// Whether messages may be dropped, and are counted then.
    pub drops: bool,
    /// Whether little may wait for a client that does not read.
    pub small_outbox: bool,
    /// Whether publications may be refused for want of memory.
    pub refuses: bool,
    /// Whether what is acknowledged survives the end of the process.
    pub durable: bool,
    /// Whether the number of shards may change with it.
    pub reshards: bool,
    /// Size of the journal's first segment.
    pub segment_bytes: u64,
    /// Whether queues are left to the journal alone.
    pub evicts: bool,
    /// Highest QoS that it supports.
    pub qos_max: QoS,
    /// Whether it retains messages.
    pub retains: bool,
    /// Whether subscriptions may have identifiers.
    pub identifiers: bool,
}

const STRATEGIES: [Strategy; 6] = [
    Strategy::RoundRobin,
    Strategy::Random,
    Strategy::Sticky,
    Strategy::HashClientId,
    Strategy::HashTopic,
    Strategy::LeastInFlight,
];

/// Levels of a topic that it takes.
pub const LEVELS_MAX: usize = 20;

impl Terms {
    /// A seed's choice, for clients with these ids that are to have their sessions at any time.
    pub fn choose(
        random: &mut Random,
        faults: &mut Faults,
        shards: usize,
        placement: PlacementKey,
        clients: &[String],
    ) -> (Self, Config) {
        // Chance is asked whether the kind is on or not: without one, the rest stays as it was.
        let mut limits = |kind: Kind| {
            let strikes = random.chance(300);
            strikes && faults.strikes(kind, &mut Random::new(0, 0), 1000)
        };
        let mut queue = limits(Kind::QueueLimit);
        let mut outbox = limits(Kind::OutboxLimit);
        let mut memory = limits(Kind::MemoryLimit);
        let few_sessions = limits(Kind::SessionLimit);
        let subscriptions = limits(Kind::SubscriptionLimit);
        let packets = limits(Kind::PacketLimit);
        let keep_alive = limits(Kind::KeepAliveLimit);
        // A stream of its own: whoever asked before the journal was there is answered the same.
        let mut lasting = Random::new(placement.0, 4);
        let durable = faults.is_on(Kind::Durability) && lasting.chance(700);
        if durable {
            faults.strikes(Kind::Durability, &mut Random::new(0, 0), 1000);
            // What is dropped, a restart may bring back.
            (queue, outbox, memory) = (false, false, false);
        }
        let mut evicting = Random::new(placement.0, 5);
        let evicts = durable && faults.is_on(Kind::Evict) && evicting.chance(600);
        if evicts {
            faults.strikes(Kind::Evict, &mut Random::new(0, 0), 1000);
        }
        let lacks = lacks(faults, placement);
        let level = lasting.pick(&[Level::Process, Level::Power, Level::Power]);
        let default = Config::default();
        let most_sessions = most_sessions(shards, placement, clients);
        let mut choose = |on: bool, little: &[usize], much: usize| {
            let little = random.pick(little);
            if on { little } else { much }
        };
        let config = Config {
            maximum_qos: if lacks == Some(0) { QoS::AtLeastOnce } else { QoS::ExactlyOnce },
            retain_available: lacks != Some(1),
            subscription_identifiers: lacks != Some(2),
            payload_format_check: true,
            topic_levels_max: LEVELS_MAX,
            maximum_packet_size: choose(packets, &[300, 2000], 2 * 1024 * 1024) as u32,
            keep_alive_max_secs: choose(keep_alive, &[5, 30], 0) as u16,
            queue_len_max: choose(queue, &[1, 4, 20], default.queue_len_max),
            queue_bytes_max: choose(queue, &[400, 3000, 100_000], default.queue_bytes_max),
            outbox_bytes_max: choose(outbox, &[200, 3000, 50_000], default.outbox_bytes_max),
            memory_budget: choose(memory, &[6000, 30_000], default.memory_budget),
            sessions_max: choose(few_sessions, &[most_sessions], default.sessions_max),
            subscriptions_max: choose(subscriptions, &[2, 4, 7], default.subscriptions_max),
            in_flight_max: choose(true, &[1, 2, 10, 1024], 0) as u16,
            receive_maximum: choose(true, &[1, 2, 5, 50, 1024], 0) as u16,
            record_changes: random.chance(400) || durable,
            queues_evict: evicts,
            evict_above: if evicts {
                evicting.pick(&[0, 200, 1000, 10_000])
            } else {
                default.evict_above
            },
            durability: Durability::of_all(level),
            shared_strategies: Strategies {
                default: random.pick(&STRATEGIES),
                ..Strategies::default()
            },
            ..default
        };
        // An outbox has room for the answers to a whole window, or a client that answers all at once
        // is closed each time. The least that can be configured has room for that a hundred times.
        let window = u16::try_from(config.outbox_bytes_max / 20).unwrap_or(u16::MAX);
        let config = Config {
            in_flight_max: config.in_flight_max.min(window),
            receive_maximum: config.receive_maximum.min(window),
            ..config
        };
        let terms = Self {
            shards,
            packet_max: config.maximum_packet_size as usize,
            keep_alive_max: config.keep_alive_max_secs,
            subscriptions_max: config.subscriptions_max,
            few_sessions,
            drops: queue || outbox || memory,
            small_outbox: outbox,
            refuses: memory,
            durable,
            reshards: durable && !few_sessions,
            segment_bytes: lasting.pick(&[16, 32, 128]) * 1024,
            evicts,
            qos_max: config.maximum_qos,
            retains: config.retain_available && !memory,
            identifiers: config.subscription_identifiers,
        };
        (terms, config)
    }
}

/// What it does without, if anything: QoS 2, retained messages, Subscription Identifiers.
fn lacks(faults: &Faults, placement: PlacementKey) -> Option<u64> {
    let mut random = Random::new(placement.0, 6);
    (faults.is_on(Kind::Refusals) && random.chance(400)).then(|| random.below(3))
}

/// How many clients are at home on the shard that has most.
fn most_sessions(shards: usize, placement: PlacementKey, clients: &[String]) -> usize {
    let at = |shard: usize| {
        let is_home = |id: &&String| placement.home_of(id, shards).index() == shard;
        clients.iter().filter(is_home).count()
    };
    (0..shards).map(at).max().unwrap_or(0)
}
