//! `noctule crashtest`: a broker that is killed again and again under load, and whether it has kept
//! what it acknowledged.
//!
//! Each round starts the broker on the data of the round before, mostly with another number of
//! shards, asks for what should be there, puts clients on it, and kills it (`kill -9`) at some moment;
//! now and then while it is still starting. With a power cut, the next start is on a copy of the
//! journal's files as the machine would have left them. After the last round everything has to
//! arrive that was ever sent. The first round that finds something is the last.
//!
//! The seed decides what is tried; when the broker does what, and so where a kill strikes it, is not
//! the same in two runs.
#![forbid(unsafe_code)]

mod checks;
mod cut;
mod ledger;
mod peer;
mod process;
mod world;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use checks::Checked;
use checks::Visitors;
pub use ledger::Counts;
use process::{Launch, Process, pause};
use serde::Serialize;
use world::World;

use crate::clock;
use crate::sim::random::Random;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often the broker is killed.
    pub rounds: u64,
    /// Whether each kill is a power cut.
    pub is_power_cut: bool,
    /// The broker's backend: `auto`, `uring` or `epoll`.
    pub io: String,
    /// Numbers of shards to choose from; not empty.
    pub shards: Vec<usize>,
    /// What decides what is tried.
    pub seed: u64,
    /// `process` or `power`.
    pub durability: &'static str,
    /// A folder that can be filled and removed.
    pub folder: PathBuf,
    /// `noctule` itself.
    pub program: PathBuf,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// See [`Options::seed`].
    pub seed: u64,
    /// Times that the broker was killed under load.
    pub rounds: u64,
    /// Times that it was killed while it started.
    pub early_kills: u64,
    /// Messages.
    #[serde(flatten)]
    pub counts: Counts,
    /// What else was asked for.
    pub checked: Checked,
    /// Bytes that were written and not synced when the power was cut.
    pub unsynced_bytes: u64,
    /// Milliseconds.
    pub took_ms: u64,
    /// How much went wrong.
    pub problem_count: u64,
    /// The first of it, described.
    pub problems: Vec<String>,
}

impl Report {
    /// Nothing went wrong.
    pub fn is_clean(&self) -> bool {
        self.problem_count == 0
    }
}

/// Why there is no report.
#[derive(Debug)]
pub enum Error {
    /// The machine has no room, no ports, no files.
    World(io::Error),
    /// The user wants to stop.
    Interrupted,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::World(error) => write!(f, "the test cannot go on: {error}"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::World(error)
    }
}

/// Runs it; `progress` is told of each round that is over, and says whether to go on.
///
/// # Errors
/// See [`Error`]. What the broker does wrong is in the report.
pub fn run(options: &Options, progress: &mut dyn FnMut(&Report) -> bool) -> Result<Report, Error> {
    let began = clock::now();
    let mut run = Run::new(options)?;
    let mut result = Ok(());
    for round in 0..options.rounds {
        result = run.round(round);
        // What is found once is not looked for again.
        if result.is_err() || run.world.state.ledger.problem_count > 0 {
            break;
        }
        if !progress(&run.report(began)) {
            return Err(Error::Interrupted);
        }
    }
    if result.is_ok() {
        result = run.last();
    }
    match result {
        Ok(()) => {}
        Err(Stop::World(error)) => return Err(error.into()),
        // It has gone, or does not come up: nothing more can be asked of it.
        Err(Stop::Broker(text)) => run.world.state.ledger.problem(text),
    }
    run.world.state.ledger.settle();
    run.look_at_log();
    Ok(run.report(began))
}

/// Why a run ends before its last round.
enum Stop {
    World(io::Error),
    Broker(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::World(error)
    }
}

struct Run<'a> {
    options: &'a Options,
    random: Random,
    world: World,
    visitors: Visitors,
    checked: Checked,
    data: PathBuf,
    /// Power cuts so far: each makes a data directory of its own.
    cuts: u64,
    early_kills: u64,
    unsynced_bytes: u64,
}

impl<'a> Run<'a> {
    fn new(options: &'a Options) -> io::Result<Self> {
        let data = options.folder.join("data");
        std::fs::create_dir_all(&data)?;
        Ok(Self {
            options,
            random: Random::new(options.seed, 0),
            world: World::new(options.seed),
            visitors: Visitors::default(),
            checked: Checked::default(),
            data,
            cuts: 0,
            early_kills: 0,
            unsynced_bytes: 0,
        })
    }

    fn report(&self, began: clock::Time) -> Report {
        let ledger = &self.world.state.ledger;
        let took = clock::now().since(began);
        Report {
            seed: self.options.seed,
            rounds: ledger.round,
            early_kills: self.early_kills,
            counts: ledger.counts,
            checked: self.checked,
            unsynced_bytes: self.unsynced_bytes,
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            problem_count: ledger.problem_count,
            problems: ledger.problems.clone(),
        }
    }

    fn launch(&mut self) -> Launch {
        Launch {
            program: self.options.program.clone(),
            data: self.data.clone(),
            folder: self.options.folder.clone(),
            io: self.options.io.clone(),
            shards: self.options.shards[self.random.index(self.options.shards.len())],
            durability: self.options.durability,
            // Small ones, so that they are changed and freed often.
            segment_bytes: self.random.pick(&[64 << 10, 256 << 10, 1 << 20]),
            tape: self.options.is_power_cut.then(|| self.tape()),
        }
    }

    fn tape(&self) -> PathBuf {
        self.options.folder.join("tape")
    }

    /// What a start finds, when a power cut is to follow it.
    fn snapshot(&self) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
        if self.options.is_power_cut { cut::files_of(&self.data) } else { Ok(Vec::new()) }
    }

    /// The broker is gone; if that was a power cut, the next one starts on what it leaves.
    fn after_kill(&mut self, files: Vec<(PathBuf, Vec<u8>)>) -> io::Result<()> {
        if !self.options.is_power_cut {
            return Ok(());
        }
        self.cuts += 1;
        let next = self.options.folder.join(format!("data-{}", self.cuts));
        let seed = self.random.number();
        self.unsynced_bytes += cut::cut(seed, files, &self.tape(), &self.data, &next)?;
        let before = std::mem::replace(&mut self.data, next);
        remove(&self.tape())?;
        std::fs::remove_dir_all(before)
    }

    fn round(&mut self, round: u64) -> Result<(), Stop> {
        if round > 0 && self.random.chance(150) {
            self.kill_early()?;
        }
        let files = self.snapshot()?;
        let launch = self.launch();
        let (process, address) = launch.start().map_err(Stop::Broker)?;
        let result = self.load(address, round == 0);
        self.kill(process, result)?;
        self.after_kill(files)?;
        self.world.state.ledger.round = round + 1;
        Ok(())
    }

    fn load(&mut self, address: SocketAddr, is_first: bool) -> io::Result<()> {
        if is_first {
            self.world.set_up(address)?;
        } else {
            self.check(address)?;
        }
        self.world.connect(address, false)?;
        let time = Duration::from_millis(self.random.between(1, 250));
        let acked = self.random.between(1, 1500);
        self.world.traffic(clock::now() + time, acked, 1500)
    }

    fn check(&mut self, address: SocketAddr) -> io::Result<()> {
        let Self { world, checked, visitors, random, .. } = self;
        checks::retained(address, &mut world.state, checked)?;
        checks::subscriptions(address, world, checked)?;
        checks::sessions(address, &mut world.state, visitors, random, checked)
    }

    fn kill(&mut self, mut process: Process, load: io::Result<()>) -> Result<(), Stop> {
        // A broker that ends by itself explains why nobody could connect.
        let ended = if load.is_err() { process.wait_a_moment() } else { Ok(()) };
        let killed = process.kill();
        self.world.lose_all();
        ended.and(killed).map_err(Stop::Broker)?;
        Ok(load?)
    }

    /// Killed while it reads what there is.
    fn kill_early(&mut self) -> Result<(), Stop> {
        let files = self.snapshot()?;
        let process = self.launch().spawn().map_err(Stop::Broker)?;
        pause(Duration::from_millis(self.random.below(40)));
        process.kill().map_err(Stop::Broker)?;
        self.early_kills += 1;
        Ok(self.after_kill(files)?)
    }

    /// Everything that was sent arrives.
    fn last(&mut self) -> Result<(), Stop> {
        let launch = self.launch();
        let (process, address) = launch.start().map_err(Stop::Broker)?;
        let result = self.drain(address);
        self.kill(process, result)
    }

    fn drain(&mut self, address: SocketAddr) -> io::Result<()> {
        self.check(address)?;
        self.world.connect(address, true)?;
        let mut missing = u64::MAX;
        // As long as something comes.
        while !self.world.is_done() {
            let now = self.world.state.ledger.missing();
            if now >= missing && missing > 0 {
                break;
            }
            missing = now;
            self.world.wait(|world| world.is_done() || world.state.ledger.missing() * 2 < now)?;
        }
        if !self.world.is_done() && self.world.state.ledger.missing() == 0 {
            self.world.state.ledger.problem("messages are never acknowledged");
        }
        Ok(())
    }

    /// A broker that finds its journal damaged says so.
    fn look_at_log(&mut self) {
        let log = std::fs::read_to_string(self.options.folder.join("log")).unwrap_or_default();
        for line in log.lines().filter(|line| line.contains(" ERROR ") || line.contains("panicked"))
        {
            self.world.state.ledger.problem(format!("the broker says: {line}"));
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
