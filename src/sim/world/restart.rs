//! The broker's process ends, and another begins: told to stop, killed, or with its machine.
//!
//! Where nothing lasts, the next one knows nothing. Where it does ([`Terms::durable`]) the journal
//! lies on the [simulated disk](crate::sim::disk), which the next one recovers from, with as many
//! shards as the seed says. The disk has troubles of its own, for some time each.
//!
//! [`Terms::durable`]: crate::sim::terms::Terms::durable
#![forbid(unsafe_code)]

use std::rc::Rc;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::{Runner, World};
use crate::broker::durable::DurableState;
use crate::broker::{Auth, Level};
use crate::clock::Time;
use crate::ids::{PlacementKey, ShardId};
use crate::io::{Wait, Waker};
use crate::journal::log::Options;
use crate::journal::record::Clocks;
use crate::journal::recover::{Recovered, recover_some};
use crate::mesh::mesh;
use crate::shard::{ControlMessage, Disk, Journal, Log, Memory, Setup, Shard};
use crate::sim::backend::SimBackend;
use crate::sim::disk::Trouble;
use crate::sim::faults::Kind;
use crate::sim::folder::{self, Folder};
use crate::sim::login::Countdown;
use crate::sim::network::{self, now, set_now};

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It had stopped by itself.
    Stopped,
    /// As with `kill -9`.
    Killed,
    /// The machine has gone with it.
    PowerCut,
}

/// The wall time at the world's beginning, in ms since the Unix epoch.
const UNIX_MS: u64 = 1_000_000_000_000;
/// The same moment on the world's clock, in seconds.
const BEGINS_SECS: u64 = 1000;
/// Steps after which a doomed process ends though nothing is written.
const DOOMED_STEPS: u32 = 2000;
/// The longest that a shard does not run, in µs.
pub(super) const STALL_MICROS: u64 = 3_000_000;
/// The longest that a trouble of the disk lasts, in ms.
const TROUBLE_MS: u64 = 3000;

impl World {
    /// Starts the broker.
    pub(super) fn start(&mut self) {
        self.shared
            .borrow_mut()
            .open_rings(self.terms.shards)
            .expect("invariant: eventfds are to be had");
        let shards = self.terms.shards;
        let (mut host, mut parts) = self.recover();
        self.runners = mesh(shards, self.ring_len)
            .into_iter()
            .enumerate()
            .map(|(index, mesh)| {
                let (control, receiver) = channel();
                let setup = Setup {
                    id: ShardId::new(index),
                    shards,
                    placement: PlacementKey(self.seed),
                    broker: self.config.clone(),
                    seed: self.seed.wrapping_add(index as u64),
                    connect_timeout: Duration::from_secs(10),
                    listeners: vec![()],
                    mesh,
                    control: receiver,
                    clock: network::now,
                    journal: match (self.config.record_changes, host.take()) {
                        (false, _) => Journal::Nowhere,
                        (true, Some(log)) => Journal::Host(log),
                        (true, None) => Journal::ToHost,
                    },
                    clocks: Clocks {
                        monotonic: Time::ZERO.plus_secs(BEGINS_SECS as u32),
                        unix_ms: UNIX_MS,
                    },
                    restored: parts.next(),
                };
                let backend = SimBackend::new(Rc::clone(&self.shared), index);
                let mut shard = Shard::new(setup, backend);
                shard.extend(Auth::AllowAll, vec![Box::new(Countdown)]);
                Runner {
                    shard,
                    wait: Wait::None,
                    control,
                    stalled_until: Time::ZERO,
                    is_done: false,
                }
            })
            .collect();
        self.begin_late();
        let wakers: Vec<Waker> = self.runners.iter().map(|runner| runner.shard.waker()).collect();
        for runner in &mut self.runners {
            runner.shard.start(wakers.clone()).expect("invariant: a simulated listener is watched");
            runner.wait = runner.shard.prepare();
        }
    }

    /// Threads begin when they are let: some have said nothing while others are long at work.
    fn begin_late(&mut self) {
        let network = &mut self.shared.borrow_mut().network;
        for (index, runner) in self.runners.iter_mut().enumerate() {
            if network.faults.strikes_by_weight(Kind::StalledShard, &mut self.random) {
                let micros = self.random.below(STALL_MICROS);
                runner.stalled_until = now() + Duration::from_micros(micros);
                network.trace.line(now(), || format!("shard {index} begins late"));
            }
        }
    }

    /// The first shard's log, and what each shard gets back.
    fn recover(&mut self) -> (Option<Log>, std::vec::IntoIter<DurableState>) {
        if !self.terms.durable {
            return (Some(Log::Memory(Box::<Memory>::default())), Vec::new().into_iter());
        }
        let options = Options {
            folder: folder::PATH.into(),
            placement: self.seed,
            segment_bytes_first: self.terms.segment_bytes,
            segment_bytes_max: self.terms.segment_bytes * 4,
            direct: true,
        };
        let most = if self.config.queues_evict { self.seed % 3 * 1000 } else { u64::MAX };
        let recovered = recover_some(&Folder(&self.shared.borrow().disk), options, self.seed, most);
        let Recovered { state, log, report } =
            recovered.expect("invariant: a simulated disk can be read");
        for (name, count) in [
            ("journal-torn", u64::from(report.torn.is_some())),
            ("journal-segments", report.segments),
            ("journal-records", report.records),
            ("recovered-messages", state.messages.len() as u64),
            ("recovered-retained", state.retained.len() as u64),
            ("recovered-groups", state.groups.len() as u64),
            ("recovered-wills", state.sessions.iter().filter(|s| s.will.is_some()).count() as u64),
            ("recovered-in-flight", state.sessions.iter().map(|s| s.in_flight.len() as u64).sum()),
            ("recovered-on-disk", state.sessions.iter().map(|s| s.on_disk.len() as u64).sum()),
            ("recovered-queued", state.sessions.iter().map(|s| s.queue.len() as u64).sum()),
        ] {
            *self.named.entry(name).or_default() += count;
        }
        if report.quarantined + report.missing_commits + report.unreadable > 0 {
            self.oracle.fail("journal", format!("{:?}", report.damage));
        }
        let parts = state.partition(PlacementKey(self.seed), self.terms.shards);
        (
            Some(Log::Disk(Box::new(Disk { log, tap: None, start: Default::default() }))),
            parts.into_iter(),
        )
    }

    /// The process ends now, or in the middle of a write.
    pub(super) fn doom(&mut self, end: End) {
        let waits = {
            let faults = &mut self.shared.borrow_mut().network.faults;
            self.terms.durable && faults.strikes(Kind::MidWrite, &mut self.random, 700)
        };
        if waits {
            self.doomed = Some((end, DOOMED_STEPS));
        } else {
            self.crash(end);
        }
    }

    /// Whether the process was doomed, and has ended now.
    pub(super) fn is_doomed(&mut self) -> bool {
        let Some((end, left)) = self.doomed else { return false };
        let is_time = left == 0 || self.shared.borrow().disk.is_writing();
        self.doomed = Some((end, left.saturating_sub(1)));
        if is_time {
            self.crash(end);
        }
        is_time
    }

    /// The process ends, and another begins.
    pub(super) fn crash(&mut self, end: End) {
        self.keep_counters();
        self.restarts += 1;
        self.doomed = None;
        {
            let kernel = &mut *self.shared.borrow_mut();
            let shards = self.terms.shards;
            kernel.network.trace.line(now(), || format!("the broker of {shards} shards: {end:?}"));
        }
        self.runners.clear();
        {
            let kernel = &mut *self.shared.borrow_mut();
            kernel.kill();
            if end == End::PowerCut {
                kernel.disk.cut_power();
            }
        }
        if self.terms.durable {
            self.oracle.on_crash();
        } else {
            self.oracle.on_restart();
        }
        for client in &mut self.clients {
            client.on_restart(&self.shared.borrow().network, &mut self.oracle);
        }
        if self.terms.reshards {
            let network = &mut self.shared.borrow_mut().network;
            if network.faults.strikes_by_weight(Kind::Reshard, &mut self.random) {
                self.terms.shards = self.random.between(1, 4) as usize;
            }
        }
        self.start();
    }

    /// The broker stops as it should, while clients go on; then another is started.
    pub(super) fn stop(&mut self) {
        self.oracle.on_stop();
        {
            let kernel = &mut *self.shared.borrow_mut();
            kernel.network.trace.line(now(), || "the broker is told to stop".to_owned());
            for (runner, ring) in self.runners.iter().zip(&mut kernel.rings) {
                // A shard that has gone needs no message.
                let _ = runner.control.send(ControlMessage::Shutdown);
                ring.is_woken = true;
            }
        }
        let deadline = now() + Duration::from_secs(20);
        while !self.runners.iter().all(|runner| runner.is_done) {
            if now() > deadline {
                return self.oracle.fail("stop", "the broker does not stop".to_owned());
            }
            self.end_disk_trouble();
            let ready = self.ready_shards();
            let moving = self.moving_clients();
            if !ready.is_empty() && self.random.chance(600) {
                let index = self.random.pick(&ready);
                self.turn(index);
            } else if !moving.is_empty() && self.random.chance(600) {
                let index = self.random.pick(&moving);
                self.move_client(index);
            } else if ready.is_empty() && moving.is_empty() {
                self.pass_to_next_event();
            } else {
                set_now(now() + Duration::from_micros(self.random.between(1, 300)));
            }
            if self.oracle.violation().is_some() {
                return;
            }
        }
        self.crash(End::Stopped);
    }

    /// What goes wrong with the disk now. Whether the power is cut comes back.
    pub(super) fn disturb_disk(&mut self) -> bool {
        self.end_disk_trouble();
        let kernel = &mut *self.shared.borrow_mut();
        let network = &mut kernel.network;
        let random = &mut self.random;
        let mut trouble = Trouble::default();
        let mut is_new = false;
        for kind in [
            Kind::DiskStuck,
            Kind::DiskWriteError,
            Kind::DiskSyncError,
            Kind::DiskFull,
            Kind::DiskReadOnly,
        ] {
            let weight = network.faults.weight(kind);
            if random.below(1200) > 0 || !network.faults.strikes(kind, random, weight) {
                continue;
            }
            is_new = true;
            match kind {
                Kind::DiskStuck => trouble.is_stuck = true,
                Kind::DiskWriteError => trouble.write_error = random.pick(&[100, 500, 1000]),
                Kind::DiskSyncError => trouble.sync_error = random.pick(&[100, 500, 1000]),
                Kind::DiskFull => trouble.is_full = true,
                _ => trouble.is_read_only = true,
            }
        }
        if is_new {
            kernel.disk.trouble = trouble;
            self.disk_until = now() + Duration::from_millis(random.between(1, TROUBLE_MS));
            network.trace.line(now(), || format!("the disk: {trouble:?}"));
            self.oracle.on_disk_trouble();
        }
        let weight = network.faults.weight(Kind::PowerCut);
        self.config.durability.highest() == Level::Power
            && random.below(4000) == 0
            && network.faults.strikes(Kind::PowerCut, random, weight)
    }

    /// The disk is well again, if its time has come.
    pub(super) fn end_disk_trouble(&self) {
        if now() >= self.disk_until {
            self.shared.borrow_mut().disk.trouble = Trouble::default();
        }
    }
}
