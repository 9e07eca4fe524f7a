//! The broker under test: a process of its own, started, awaited and killed by its id.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{Timespec, poll};

use crate::clock;

/// How long a start may take: far more than it needs, the machine may be busy.
const START_WAIT: Duration = Duration::from_secs(60);
/// Between two looks at what a start has come to.
const LOOK: Duration = Duration::from_millis(2);

/// How to start a broker.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    /// The program, `noctule` itself.
    pub(super) program: PathBuf,
    /// Its data directory.
    pub(super) data: PathBuf,
    /// Where its ready file and its log are.
    pub(super) folder: PathBuf,
    /// `--io`
    pub(super) io: String,
    /// `--shards`
    pub(super) shards: usize,
    /// `--durability`
    pub(super) durability: &'static str,
    /// Size of the journal's segments.
    pub(super) segment_bytes: u64,
    /// Where operations on the journal's files are recorded.
    pub(super) tape: Option<PathBuf>,
}

/// A broker that runs. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    log: PathBuf,
}

impl Launch {
    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Starts it, and waits for nothing.
    pub(super) fn spawn(&self) -> Result<Process, String> {
        let cannot = |error| format!("cannot start {}: {error}", self.program.display());
        let ready = self.ready();
        let _ = std::fs::remove_file(&ready);
        let output = OpenOptions::new().create(true).append(true).open(self.log());
        let output = output.map_err(cannot)?;
        let mut command = Command::new(&self.program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--rig-child", "--log-level", "warn"]);
        command.arg("--ready-file").arg(&ready).arg("--data").arg(&self.data);
        command.args(["--io", &self.io, "--shards", &self.shards.to_string()]);
        command.args(["--durability", self.durability]);
        command.args(["--rig-segment-bytes", &self.segment_bytes.to_string()]);
        if let Some(tape) = &self.tape {
            command.arg("--rig-tape").arg(tape);
        }
        // What the user has set for a broker of theirs is none of ours.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NOCTULE_") {
                command.env_remove(name);
            }
        }
        let errors = output.try_clone().map_err(cannot)?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        // Ctrl-C is for us: a broker that ends with it would look like one that broke.
        command.process_group(0);
        Ok(Process { child: command.spawn().map_err(cannot)?, log: self.log() })
    }

    /// Starts it, and waits until it serves: where.
    pub(super) fn start(&self) -> Result<(Process, SocketAddr), String> {
        let mut process = self.spawn()?;
        let give_up = clock::now() + START_WAIT;
        loop {
            if let Some(address) = read_ready(&self.ready()) {
                return Ok((process, address));
            }
            process.check()?;
            if clock::now() > give_up {
                return Err(format!("the broker does not serve within {START_WAIT:?}"));
            }
            pause(LOOK);
        }
    }

    fn ready(&self) -> PathBuf {
        self.folder.join("ready.json")
    }
}

impl Process {
    /// It still runs.
    pub(super) fn check(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let last = log.lines().last().unwrap_or("it said nothing");
                Err(format!("the broker ended by itself ({status}): {last}"))
            }
            Err(error) => Err(format!("cannot wait for the broker: {error}")),
        }
    }

    /// It still runs after a moment: who is about to end has the time to.
    pub(super) fn wait_a_moment(&mut self) -> Result<(), String> {
        for _ in 0..500 {
            self.check()?;
            pause(LOOK);
        }
        Ok(())
    }

    /// `kill -9`, and waits until it is gone.
    pub(super) fn kill(mut self) -> Result<(), String> {
        self.check()?;
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map(drop).map_err(|error| format!("cannot kill the broker: {error}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits, and does nothing.
pub(super) fn pause(time: Duration) {
    let timespec = Timespec::try_from(time).ok();
    // A signal may cut it short.
    let _ = poll(&mut [], timespec.as_ref());
}

fn read_ready(path: &Path) -> Option<SocketAddr> {
    #[derive(serde::Deserialize)]
    struct Ready {
        listeners: Vec<SocketAddr>,
    }
    let ready: Ready = serde_json::from_reader(File::open(path).ok()?).ok()?;
    ready.listeners.first().copied()
}
