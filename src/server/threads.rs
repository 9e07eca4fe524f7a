//! The shards' threads: making them, and hearing of their end.
//!
//! A backend and its shard are made on the thread that runs them. No shard accepts before all
//! shards stand (SHARDS.md I6): each reports its waker, gets everybody's, and only then starts.
#![forbid(unsafe_code)]

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use super::StartError;
use super::affinity::{self, Plan};
use super::control::{Event, ShardHandle};
use super::extensions::Extensions;
use crate::broker::{self, DurableState};
use crate::clock;
use crate::ids::{PlacementKey, ShardId};
#[cfg(debug_assertions)]
use crate::io::fault;
use crate::io::probe::Engine;
use crate::io::{Epoll, Kernel, Settings, Uring, Waker};
use crate::journal::record::Clocks;
use crate::limits::LANE_RING_LEN;
use crate::mesh;
use crate::shard::{Journal, Log, Setup, Shard};

/// What the shards have in common.
#[derive(Debug)]
pub struct Common {
    /// Which backend to make.
    pub engine: Engine,
    /// The protocol's configuration.
    pub broker: broker::Config,
    /// What an embedding program adds.
    pub extensions: Arc<dyn Extensions>,
    /// Time for CONNECT.
    pub connect_timeout: std::time::Duration,
    /// How a backend is made.
    pub io: Settings,
    /// Where sessions and topics live.
    pub placement: PlacementKey,
    /// Seeds what must not be guessed, and differs per shard.
    pub seed: u64,
}

/// What stands once all shards run.
#[derive(Debug)]
pub struct Running {
    /// The control thread's ends, by shard.
    pub shards: Vec<ShardHandle>,
    /// Their backend's name.
    pub backend: &'static str,
    /// What of the kernel's optional features it uses.
    pub features: String,
}

/// What a shard reports before it may start.
struct Built {
    shard: ShardId,
    waker: Waker,
    backend: &'static str,
    features: String,
}

/// One shard's way from its thread's start to its loop.
struct Job {
    cpu: Option<usize>,
    engine: Engine,
    io: Settings,
    setup: Setup,
    extensions: Arc<dyn Extensions>,
    built: Sender<Result<Built, String>>,
    wakers: Receiver<Vec<Waker>>,
    started: Sender<Result<(), String>>,
    events: Sender<Event>,
}

/// What the journal brings to a start.
#[derive(Debug)]
pub struct Recovered {
    /// To be hosted by the first shard.
    pub log: Log,
    /// What lasts, by shard.
    pub parts: Vec<DurableState>,
    /// The same moment on both clocks.
    pub clocks: Clocks,
}

impl Recovered {
    /// Each shard's share.
    fn share(self) -> impl Iterator<Item = (Journal, Clocks, Option<DurableState>)> {
        let journals = [Journal::Host(self.log)].into_iter();
        let journals = journals.chain(std::iter::repeat_with(|| Journal::ToHost));
        journals.zip(self.parts).map(move |(journal, part)| (journal, self.clocks, Some(part)))
    }
}

/// Starts one thread per shard of `plan`; `listeners` are those of each shard. Without `recovered`
/// nothing lasts. Returns when all of them accept.
///
/// # Errors
/// When a thread, a backend or a listener cannot be set up.
pub fn start(
    plan: &Plan,
    common: &Common,
    recovered: Option<Recovered>,
    listeners: Vec<Vec<TcpListener>>,
    events: &Sender<Event>,
) -> Result<Running, StartError> {
    let shards = plan.shards();
    let (built_in, built) = mpsc::channel();
    let (started_in, started) = mpsc::channel();
    let mut waker_lists = Vec::with_capacity(shards);
    let mut controls = Vec::with_capacity(shards);
    let mut shares = recovered.map(Recovered::share);
    let parts = mesh::mesh(shards, LANE_RING_LEN).into_iter().zip(listeners).zip(&plan.cpus);
    for (index, ((mesh, listeners), cpu)) in parts.enumerate() {
        let (journal, clocks, restored) =
            shares.as_mut().and_then(Iterator::next).unwrap_or_default();
        let (control_in, control) = mpsc::channel();
        let (wakers_in, wakers) = mpsc::channel();
        controls.push(control_in);
        waker_lists.push(wakers_in);
        let setup = Setup {
            id: ShardId::new(index),
            shards,
            placement: common.placement,
            broker: common.broker.clone(),
            seed: common.seed.wrapping_add(index as u64),
            connect_timeout: common.connect_timeout,
            listeners,
            mesh,
            control,
            clock: clock::now,
            journal,
            clocks,
            restored,
        };
        spawn_shard(Job {
            cpu: *cpu,
            engine: common.engine,
            io: common.io.clone(),
            setup,
            extensions: Arc::clone(&common.extensions),
            built: built_in.clone(),
            wakers,
            started: started_in.clone(),
            events: events.clone(),
        })
        .map_err(|error| StartError::new(format!("cannot start a thread: {error}")))?;
    }
    drop((built_in, started_in));

    let mut reports = Vec::with_capacity(shards);
    for _ in 0..shards {
        reports.push(receive(&built)?);
    }
    reports.sort_by_key(|report: &Built| report.shard);
    let wakers: Vec<Waker> = reports.iter().map(|report| report.waker.clone()).collect();
    for list in waker_lists {
        // A thread that has gone is noticed by its missing report.
        let _ = list.send(wakers.clone());
    }
    for _ in 0..shards {
        receive(&started)?;
    }
    let shards = controls
        .into_iter()
        .zip(wakers)
        .map(|(control, waker)| ShardHandle { control, waker })
        .collect();
    let Built { backend, features, .. } = reports.swap_remove(0);
    Ok(Running { shards, backend, features })
}

fn receive<T>(reports: &Receiver<Result<T, String>>) -> Result<T, StartError> {
    let report = reports.recv().unwrap_or_else(|_| Err("a shard has died at its start".to_owned()));
    report.map_err(StartError::new)
}

fn spawn_shard(job: Job) -> io::Result<()> {
    let name = format!("shard-{}", job.setup.id.index());
    thread::Builder::new().name(name).spawn(move || job.run()).map(drop)
}

impl Job {
    fn run(self) {
        if let Some(cpu) = self.cpu
            && !affinity::pin(cpu)
        {
            tracing::warn!(shard = self.setup.id.index(), cpu, "cannot pin the shard to its CPU");
        }
        let settings = self.io.clone();
        #[cfg(debug_assertions)]
        if let Some(plan) = fault::Plan::from_env() {
            return self.run_with_faults(&settings, &plan);
        }
        match self.engine {
            Engine::Uring => self.run_with(Uring::new(&settings)),
            Engine::Epoll => self.run_with(Epoll::new(&settings)),
        }
    }

    /// For the black-box tests.
    #[cfg(debug_assertions)]
    fn run_with_faults(self, settings: &Settings, plan: &fault::Plan) {
        let plan = plan.of_shard(self.setup.id.index());
        let settings = plan.settings(settings);
        match self.engine {
            Engine::Uring => {
                self.run_with(Uring::new(&settings).map(|inner| fault::Fault::new(inner, &plan)));
            }
            Engine::Epoll => {
                self.run_with(Epoll::new(&settings).map(|inner| fault::Fault::new(inner, &plan)));
            }
        }
    }

    fn run_with<B: Kernel>(self, backend: io::Result<B>) {
        let Self { setup, extensions, built, wakers, started, events, .. } = self;
        let id = setup.id;
        let backend = match backend {
            Ok(backend) => backend,
            Err(error) => {
                let text = format!(
                    "cannot set up the backend of shard {}: {error}; `noctule doctor` says what is \
                     missing",
                    id.index()
                );
                // Nobody listens once another shard has failed.
                let _ = built.send(Err(text));
                return;
            }
        };
        let report = Built {
            shard: id,
            waker: backend.waker(),
            backend: backend.name(),
            features: backend.features(),
        };
        let _ = built.send(Ok(report));
        let mut shard = Shard::new(setup, backend);
        shard.extend(extensions.auth(id), extensions.methods(id));
        drop(built);
        let Ok(wakers) = wakers.recv() else { return };
        let outcome = start_shard(&mut shard, wakers);
        let accepts = outcome.is_ok();
        let _ = started.send(outcome);
        drop(started);
        if !accepts {
            return;
        }
        let mut end = End { shard: id, outcome: None, events };
        let outcome = shard.run().map_err(|error| format!("the event loop failed: {error}"));
        end.outcome = Some(outcome.map(|()| Box::new(shard.stats())));
    }
}

/// Runs a shard until it accepts.
fn start_shard<B: Kernel>(shard: &mut Shard<B>, wakers: Vec<Waker>) -> Result<(), String> {
    let cannot = |error| format!("cannot accept: {error}");
    shard.start(wakers).map_err(cannot)?;
    while !shard.is_open() {
        shard.tick().map_err(cannot)?;
    }
    Ok(())
}

/// Tells the control thread of a shard's end, even when that is a panic.
struct End {
    shard: ShardId,
    outcome: Option<Result<Box<crate::shard::ShardStats>, String>>,
    events: Sender<Event>,
}

impl Drop for End {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(|| Err("it panicked".to_owned()));
        // The control thread may have given up waiting.
        let _ = self.events.send(Event::ShardEnded(self.shard, outcome));
    }
}
