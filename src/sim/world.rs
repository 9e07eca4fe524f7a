//! The world: all shards on one thread, clients, the network and the clock, and who moves next.
//!
//! A run is some rounds. In each the world is rough for a while, then calm: faults stop, every
//! client connects, and everything must come to rest within a bound. Then the oracle settles what
//! should have arrived, and an auditor subscribes to everything to see what is retained.
//!
//! A shard sleeps between [`Shard::prepare`] and [`Shard::turn`], as it does between two kernel
//! entries, and is only run when it would be awake: a lost wake-up is a world at rest with
//! something undone.
#![forbid(unsafe_code)]

mod restart;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::backend::SimBackend;
use super::backend::{Kernel, Shared};
use super::client::{Client, Stage};
use super::disk::Disk;
use super::faults::{Faults, Kind};
use super::network::{self, Network, now, set_now};
use super::oracle::Oracle;
use super::random::Random;
use super::terms::Terms;
use super::trace::Trace;
use super::workload::Workload;
use super::{Options, Report};
use crate::broker::{Config, Stats};
use crate::clock::Time;
use crate::codec::mqtt::{SubscriptionOptions, Version};
use crate::ids::PlacementKey;
use crate::io::Wait;
use crate::shard::{ControlMessage, Shard, Turn};
use restart::{End, STALL_MICROS};

/// Turns in a calm world after which it should have come to rest.
const REST_STEPS: usize = 400_000;
/// The longest that time goes at once where nothing happens; [`Kind::ClockJump`] goes further. So
/// a session of 1,000,000 s outlives its world, which clients rely on.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Simulated time after which it should.
const REST_TIME: Duration = Duration::from_secs(300);

/// The clients that have sessions; the last is the auditor.
fn clients(random: &mut Random) -> Vec<Client> {
    let count = random.between(3, 9) as usize;
    let client = |index| {
        let version = random.pick(&[Version::V31, Version::V311, Version::V5, Version::V5]);
        Client::new(index, if index == count { Version::V5 } else { version })
    };
    (0..=count).map(client).collect()
}

/// The same, and strangers before the auditor where there are to be some.
fn with_strangers(mut clients: Vec<Client>, terms: Terms, random: &mut Random) -> Vec<Client> {
    if terms.refuses {
        // One of 3.x can only be closed, and sends the same again: it would never come to read what
        // the memory is full of.
        clients.iter_mut().for_each(|client| client.version = Version::V5);
    }
    let auditor = clients.pop();
    let count = random.between(2, 5);
    for _ in 0..if terms.few_sessions { count } else { 0 } {
        let version = random.pick(&[Version::V31, Version::V311, Version::V5]);
        let version = if terms.refuses { Version::V5 } else { version };
        let mut stranger = Client::new(clients.len(), version);
        stranger.id = format!("stranger-{}", clients.len());
        stranger.is_stranger = true;
        clients.push(stranger);
    }
    if let Some(mut auditor) = auditor {
        auditor.index = clients.len();
        clients.push(auditor);
    }
    clients
}

struct Runner {
    shard: Shard<SimBackend>,
    wait: Wait,
    control: Sender<ControlMessage>,
    stalled_until: Time,
    is_done: bool,
}

/// One world. See the [module](self).
pub struct World {
    shared: Shared,
    runners: Vec<Runner>,
    clients: Vec<Client>,
    oracle: Oracle,
    random: Random,
    terms: Terms,
    ring_len: usize,
    is_finale: bool,
    /// The disk is well from then on.
    disk_until: Time,
    /// How the process ends as soon as the journal writes, or after so many steps.
    doomed: Option<(End, u32)>,
    config: Config,
    seed: u64,
    rounds: u64,
    restarts: u64,
    stats: Stats,
    named: BTreeMap<&'static str, u64>,
    steps: u64,
}

impl World {
    /// The world of a seed, before its first step.
    pub fn new(options: &Options) -> Self {
        let mut random = Random::new(options.seed, 1);
        let shards = random.pick(&[1, 2, 2, 2, 3, 3, 4]);
        let mut faults = Faults::choose(&mut Random::new(options.seed, 2), &options.without);
        let clients = clients(&mut random);
        let ids: Vec<String> = clients.iter().map(|client| client.id.clone()).collect();
        let placement = PlacementKey(options.seed);
        let (terms, config) = Terms::choose(&mut random, &mut faults, shards, placement, &ids);
        let clients = with_strangers(clients, terms, &mut random);
        let network = Network {
            links: Vec::new(),
            faults,
            random: Random::new(options.seed, 3),
            trace: Trace::new(options.trace),
            send_buffer: random.pick(&[600, 4096, 65_536]),
            delay: Duration::from_micros(random.pick(&[10, 100, 1000, 20_000])),
            last_jump: Time::ZERO,
        };
        set_now(Time::ZERO.plus_secs(1000));
        network::forget_dropped();
        let mut world = Self {
            shared: Rc::new(RefCell::new(Kernel {
                network,
                rings: Vec::new(),
                disk: Disk::new(options.seed),
            })),
            runners: Vec::new(),
            oracle: Oracle::new(clients.len(), config.record_changes, terms),
            clients,
            terms,
            ring_len: random.pick(&[1, 2, 16]),
            is_finale: false,
            disk_until: Time::ZERO,
            doomed: None,
            config,
            seed: options.seed,
            rounds: random.between(2, 4),
            random,
            restarts: 0,
            stats: Stats::default(),
            named: BTreeMap::new(),
            steps: 0,
        };
        world.shared.borrow_mut().network.trace.line(now(), || format!("{terms:?}"));
        world.start();
        world
    }

    fn keep_counters(&mut self) {
        for (index, runner) in self.runners.iter().enumerate() {
            let stats = runner.shard.stats();
            self.stats.add(&stats.broker);
            let counters = stats.shard_loop;
            for (name, count) in [
                ("moved-home", counters.moved_in),
                ("connect-timeout", counters.connect_timeouts),
                ("flush-timeout", counters.flush_timeouts),
                ("send-error", counters.send_errors),
                ("wake", counters.wakes),
                ("parcel", counters.parcels_in),
                ("accept-error", counters.accept_errors),
                ("short-send", self.shared.borrow().counters(index).short_sends),
            ] {
                *self.named.entry(name).or_default() += count;
            }
        }
    }

    /// All of it; what came of it.
    pub fn run(mut self, options: &Options) -> Report {
        let steps = options.steps / self.rounds;
        for round in 0..self.rounds {
            self.shared.borrow_mut().network.faults.set_calm(false);
            for step in 0..steps {
                self.is_finale = step >= steps - steps / 10;
                if self.oracle.violation().is_some() {
                    break;
                }
                self.step();
            }
            if self.oracle.violation().is_none() {
                self.rest(round);
            }
            if self.oracle.violation().is_some() {
                break;
            }
        }
        self.keep_counters();
        let kernel = self.shared.borrow();
        Report {
            seed: self.seed,
            violation: self.oracle.violation().cloned(),
            trace: kernel.network.trace.text().to_owned(),
            steps: self.steps,
            shards: self.terms.shards,
            clients: self.clients.len(),
            packets: self.clients.iter().map(|client| client.packets).sum(),
            messages: self.clients.iter().map(|client| client.got).sum(),
            proven: self.oracle.proven,
            simulated: now().since(Time::ZERO.plus_secs(1000)),
            restarts: self.restarts,
            struck: kernel.network.faults.struck().collect(),
            on: kernel.network.faults.on(),
            stats: self.stats.clone(),
            named: self.named.clone(),
        }
    }

    /// One step: somebody moves, or time passes.
    fn step(&mut self) {
        self.steps += 1;
        if self.is_doomed() {
            return;
        }
        if self.terms.durable && self.disturb_disk() {
            return self.doom(End::PowerCut);
        }
        match self.disturb() {
            (true, _) => return self.doom(End::Killed),
            (_, true) => return self.stop(),
            _ => {}
        }
        let ready = self.ready_shards();
        let moving = self.moving_clients();
        let choice = self.random.below(100);
        if !ready.is_empty() && (choice < 45 || moving.is_empty() && choice < 80) {
            let index = self.random.pick(&ready);
            self.turn(index);
        } else if !moving.is_empty() && choice < 75 {
            let index = self.random.pick(&moving);
            self.move_client(index);
        } else if choice < 92 {
            let index = self.random.index(self.clients.len() - 1);
            self.act(index);
        } else if ready.is_empty() && moving.is_empty() {
            self.pass_to_next_event();
        } else {
            let micros = self.random.between(1, 300);
            set_now(now() + Duration::from_micros(micros));
        }
    }

    fn ready_shards(&self) -> Vec<usize> {
        let kernel = self.shared.borrow();
        let is_ready = |index: &usize| {
            let runner = &self.runners[*index];
            let due = match runner.wait {
                Wait::None => true,
                Wait::Until(at) => at <= now(),
                Wait::Forever => false,
            };
            runner.stalled_until <= now() && !runner.is_done && (due || kernel.has_work(*index))
        };
        (0..self.runners.len()).filter(is_ready).collect()
    }

    fn moving_clients(&self) -> Vec<usize> {
        let kernel = self.shared.borrow();
        let moves = |index: &usize| self.clients[*index].has_work(&kernel.network);
        (0..self.clients.len()).filter(moves).collect()
    }

    fn turn(&mut self, index: usize) {
        let runner = &mut self.runners[index];
        let wait = runner.wait;
        match runner.shard.turn(wait) {
            Ok(Turn::Again) => runner.wait = runner.shard.prepare(),
            Ok(Turn::Done) => runner.is_done = true,
            Err(error) => self.oracle.fail("shard", format!("shard {index} failed: {error}")),
        }
    }

    fn move_client(&mut self, index: usize) {
        let kernel = &mut *self.shared.borrow_mut();
        self.clients[index].step(&mut kernel.network, &mut self.oracle);
    }

    fn act(&mut self, index: usize) {
        if now() >= self.clients[index].away_until {
            self.workload(index, |mut workload| workload.act());
        }
    }

    fn workload(&mut self, index: usize, what: impl FnOnce(Workload<'_>)) {
        let kernel = &mut *self.shared.borrow_mut();
        what(Workload {
            client: &mut self.clients[index],
            network: &mut kernel.network,
            oracle: &mut self.oracle,
            random: &mut self.random,
            terms: self.terms,
            is_finale: self.is_finale,
        });
    }

    /// Time goes to the next thing that happens of itself.
    fn pass_to_next_event(&self) {
        let kernel = self.shared.borrow();
        let mut next = kernel.network.next_event();
        let mut consider = |at: Option<Time>| {
            if let Some(at) = at.filter(|at| *at > now()) {
                next = Some(next.map_or(at, |before: Time| before.min(at)));
            }
        };
        for (index, runner) in self.runners.iter().enumerate() {
            if let Wait::Until(at) = runner.wait {
                consider(Some(at));
            }
            consider(Some(runner.stalled_until));
            consider(kernel.next_event(index));
        }
        consider(Some(self.disk_until));
        for client in &self.clients {
            consider(client.next_event());
            consider(Some(client.away_until));
        }
        let at = next.unwrap_or(now() + Duration::from_millis(10));
        drop(kernel);
        set_now(at.min(now() + IDLE_MAX));
    }

    /// What goes wrong now. Whether the broker is to be killed, or to be stopped, comes back.
    fn disturb(&mut self) -> (bool, bool) {
        let shared = Rc::clone(&self.shared);
        let mut kernel = shared.borrow_mut();
        let kernel = &mut *kernel;
        let network = &mut kernel.network;
        let random = &mut self.random;
        let mut strikes = |network: &mut Network, kind: Kind, part: u32| {
            let per_mille = network.faults.weight(kind);
            random.below(u64::from(part)) == 0 && network.faults.strikes(kind, random, per_mille)
        };
        let victim = |clients: &[Client], random: u64| {
            let index = random as usize % clients.len();
            clients[index].link.map(|link| (index, link))
        };
        let number = now().as_nanos() / 7 + self.steps;
        if strikes(network, Kind::Resets, 400)
            && let Some((index, link)) = victim(&self.clients, number)
        {
            network.trace.line(now(), || format!("link {link} of client {index} breaks"));
            network.reset(link);
            self.oracle.on_will_end(link);
        }
        if strikes(network, Kind::Vanish, 800)
            && let Some((index, link)) = victim(&self.clients, number)
            && !self.clients[index].is_stranger
        {
            network.trace.line(now(), || format!("client {index} vanishes from link {link}"));
            network.vanish(link);
            self.clients[index].lose(network, &mut self.oracle);
        }
        if strikes(network, Kind::ZeroWindow, 300) {
            let index = number as usize % self.clients.len();
            self.clients[index].deaf_until = now() + Duration::from_millis(number % 5_000);
            network.trace.line(now(), || format!("client {index} does not read for a while"));
        }
        if strikes(network, Kind::StalledShard, 300) {
            let index = number as usize % self.runners.len();
            self.runners[index].stalled_until =
                now() + Duration::from_micros(number % STALL_MICROS);
            network.trace.line(now(), || format!("shard {index} stalls"));
        }
        if strikes(network, Kind::Spurious, 50) {
            let index = number as usize % self.runners.len();
            kernel.rings[index].is_woken = true;
        }
        if strikes(network, Kind::ClockJump, 1500) {
            let secs = number % 4000;
            network.trace.line(now(), || format!("{secs} s pass"));
            set_now(now() + Duration::from_secs(secs));
            network.last_jump = now();
        }
        // Where nothing lasts, what comes of a crash is little to look at.
        let part = if self.terms.durable { 2000 } else { 8000 };
        let crash = strikes(network, Kind::Crash, part);
        let restart = strikes(network, Kind::Restart, part);
        (crash, restart)
    }

    /// Faults stop: everything has to come to rest.
    fn rest(&mut self, round: u64) {
        {
            let network = &mut self.shared.borrow_mut().network;
            network.faults.set_calm(true);
            network.trace.line(now(), || format!("round {round}: calm"));
        }
        for runner in &mut self.runners {
            runner.stalled_until = Time::ZERO;
        }
        self.disk_until = Time::ZERO;
        self.doomed = None;
        self.end_disk_trouble();
        for client in &mut self.clients {
            client.deaf_until = Time::ZERO;
            // Some come back only when what was to happen in their absence has.
            let secs = if self.random.chance(400) { self.random.between(1, 60) } else { 0 };
            client.away_until = now() + Duration::from_secs(secs);
            if client.is_stranger {
                client.close(&mut self.shared.borrow_mut().network, &mut self.oracle);
            }
        }
        if self.come_to_rest() && self.audit_begins() && self.come_to_rest() {
            self.settle();
        }
    }

    /// Lets all go on until nothing moves any more for some seconds. False if it does not.
    fn come_to_rest(&mut self) -> bool {
        let deadline = now() + REST_TIME;
        let mut quiet_since = None;
        for _ in 0..REST_STEPS {
            if self.oracle.violation().is_some() {
                return false;
            }
            if now() > deadline {
                break;
            }
            self.steps += 1;
            let ready = self.ready_shards();
            let moving = self.moving_clients();
            if !ready.is_empty() && (moving.is_empty() || self.random.chance(600)) {
                let index = self.random.pick(&ready);
                self.turn(index);
                continue;
            }
            if !moving.is_empty() {
                let index = self.random.pick(&moving);
                self.move_client(index);
                continue;
            }
            let is_idle =
                |c: &Client| c.stage == Stage::Idle && c.away_until <= now() && !c.is_stranger;
            let idle = self.clients.iter().position(is_idle);
            if let Some(index) = idle {
                self.workload(index, |mut workload| workload.connect());
                continue;
            }
            if let Some(index) = self.sleeps_on_a_spill() {
                let text = format!("shard {index} sleeps, and its lanes have room");
                self.oracle.fail("spill", text);
                return false;
            }
            let wills = self.oracle.has_unjudged_wills();
            let still = self.shared.borrow().network.restless().is_none();
            let is_at_rest = |client: &Client| client.is_quiet() || client.is_stranger;
            let quiet = self.clients.iter().all(|client| is_at_rest(client) && !client.has_old());
            if quiet {
                let since = *quiet_since.get_or_insert(now());
                // Wills with a delay are judged when they are long due.
                let enough = if wills { 45 } else { 3 };
                if still && now().since(since) > Duration::from_secs(enough) {
                    return true;
                }
            } else {
                quiet_since = None;
            }
            let before = now();
            self.pass_to_next_event();
            // Pings and timers are no reason to wait longer.
            set_now(now().min(before + Duration::from_millis(500)));
        }
        let restless = self.clients.iter().find(|c| !c.is_quiet() && !c.is_stranger);
        let text = match restless {
            Some(client) => format!("client {}: {}", client.index, client.state()),
            None if self.clients.iter().any(Client::has_old) => {
                "an old connection is still open".to_owned()
            }
            None => {
                let network = &self.shared.borrow().network;
                format!("{:?}", network.restless().map(|link| &network.links[link]))
            }
        };
        self.oracle.fail("stuck", text);
        false
    }

    /// A shard that holds a spill while nobody has anything to do: all lanes have been emptied.
    fn sleeps_on_a_spill(&self) -> Option<usize> {
        let holds = |runner: &Runner| runner.shard.stats().shard_loop.spill_bytes > 0;
        self.runners.iter().position(holds)
    }

    /// The auditor asks for everything that is retained.
    fn audit_begins(&mut self) -> bool {
        let auditor = self.clients.len() - 1;
        self.workload(auditor, |mut workload| {
            let options = SubscriptionOptions::new(workload.terms.qos_max);
            workload.subscribe_to(&[("#".to_owned(), options)], None);
        });
        self.oracle.begin_audit(auditor);
        true
    }

    fn settle(&mut self) {
        let auditor = self.clients.len() - 1;
        let retained = self.oracle.end_audit();
        // What is not retained at QoS 0 for want of a disk counts as dropped.
        let had_trouble = self.oracle.disk_ever_failed();
        let dropped = |stats: &Stats| {
            let memory = stats.dropped_queue_full + stats.dropped_memory;
            memory + stats.dropped_outbox + stats.dropped_disk
        };
        let drops: u64 = self.runners.iter().map(|r| dropped(&r.shard.stats().broker)).sum();
        {
            let kernel = self.shared.borrow();
            self.oracle.settle(&kernel.network, &retained, drops);
        }
        // All are there, and have acknowledged all.
        let log = self.runners[0].shard.log();
        let owed = log.and_then(|log| log.fold().all_owed().next());
        if let Some((sequence, holder)) = owed {
            let text = format!("{holder} is owed message {sequence} by the journal alone");
            self.oracle.fail("owed", text);
        }
        self.workload(auditor, |mut workload| workload.unsubscribe_from("#"));
        if drops > 0 && !self.terms.drops && !had_trouble {
            self.oracle.fail("dropped", format!("{drops} messages, and there was room"));
        }
    }
}
