//! A broker as a real process: started, awaited, stopped by its id, its stderr kept.

use std::ffi::OsString;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::wire::Wire;

/// How long a broker may take to say that it is ready; far more than it needs, because the
/// machine may be busy.
const READY: Duration = Duration::from_secs(30);
/// How long it may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(15);

/// The variable with faults for a broker of a build with debug assertions.
const FAULTS: &str = "NOCTULE_TEST_FAULTS";

/// Which broker: its I/O backend and its number of shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Combination {
    /// `--io`
    pub io: &'static str,
    /// `--shards`
    pub shards: usize,
}

impl std::fmt::Display for Combination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} with {} shard{}",
            self.io,
            self.shards,
            if self.shards == 1 { "" } else { "s" }
        )
    }
}

/// All four combinations, or those that `NOCTULE_TEST_IO` and `NOCTULE_TEST_SHARDS` leave.
pub fn combinations() -> Vec<Combination> {
    let io = std::env::var("NOCTULE_TEST_IO").ok();
    let shards = std::env::var("NOCTULE_TEST_SHARDS").ok();
    let chosen: Vec<_> = ["uring", "epoll"]
        .into_iter()
        .flat_map(|io| [1, 2].map(|shards| Combination { io, shards }))
        .filter(|c| io.as_deref().is_none_or(|io| io == c.io))
        .filter(|c| shards.as_deref().is_none_or(|shards| shards == c.shards.to_string()))
        .collect();
    assert!(!chosen.is_empty(), "NOCTULE_TEST_IO={io:?} NOCTULE_TEST_SHARDS={shards:?}: no such");
    chosen
}

/// Runs `test` on a fresh broker of every combination; once when `NOCTULE_TEST_BROKER_ADDR` names
/// a broker.
pub fn on_all(test: impl Fn(&Broker)) {
    if external().is_some() {
        return test(&Broker::start(Combination { io: "external", shards: 1 }));
    }
    for combination in combinations() {
        // Shown when the test fails.
        println!("on {combination}");
        let broker = Broker::start(combination);
        test(&broker);
        broker.stop();
    }
}

/// As [`on_all`], all at the same time and each as `build` makes it: for tests that mostly wait.
pub fn on_all_at_once(
    build: impl Fn(Builder) -> Builder + Sync,
    test: impl Fn(&Broker, Combination) + Sync,
) {
    std::thread::scope(|scope| {
        for combination in combinations() {
            let (build, test) = (&build, &test);
            scope.spawn(move || {
                let broker = build(Broker::build(combination)).start();
                println!("{combination} is process {}", broker.pid());
                test(&broker, combination);
                broker.stop();
            });
        }
    });
}

/// A port on 127.0.0.1 that nobody listens on now. Prefer port 0 and the ready file.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind to any port");
    listener.local_addr().expect("a bound address").port()
}

/// The broker named by `NOCTULE_TEST_BROKER_ADDR`.
pub fn external() -> Option<SocketAddr> {
    let addr = std::env::var("NOCTULE_TEST_BROKER_ADDR").ok()?;
    Some(addr.parse().expect("NOCTULE_TEST_BROKER_ADDR is ADDR:PORT"))
}

/// Whether brokers run over faults that `NOCTULE_TEST_FAULTS` asks for: input and output of two
/// connections come in any order then.
pub fn has_faults() -> bool {
    std::env::var_os(FAULTS).is_some()
}

/// How to start a broker.
pub struct Builder {
    combination: Combination,
    listeners: usize,
    args: Vec<OsString>,
    data: Option<Arc<tempfile::TempDir>>,
    descriptors: Option<u32>,
    faults: Option<String>,
}

impl Builder {
    /// How many descriptors the process may have open, instead of what this machine allows.
    pub fn descriptors(mut self, limit: u32) -> Self {
        self.descriptors = Some(limit);
        self
    }

    /// Faults of the kernel, as `src/io/fault.rs` reads them; what `NOCTULE_TEST_FAULTS` says if
    /// not said here.
    pub fn faults(mut self, plan: impl Into<String>) -> Self {
        self.faults = Some(plan.into());
        self
    }

    /// One more argument of `serve`.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// How many listeners, each on a port of the system's choice; one if not said.
    pub fn listeners(mut self, listeners: usize) -> Self {
        self.listeners = listeners;
        self
    }

    /// The data directory of an earlier broker: see [`Broker::data`].
    pub fn data(mut self, data: &Arc<tempfile::TempDir>) -> Self {
        self.data = Some(Arc::clone(data));
        self
    }

    /// Starts it and waits until it listens.
    ///
    /// # Panics
    /// With what it wrote, when it ends or is not ready in time.
    pub fn start(self) -> Broker {
        let files = tempfile::tempdir().expect("a temporary directory");
        if let Some(addr) = external() {
            return Broker { child: None, addrs: vec![addr], shards: 0, data: None, files };
        }
        let ready = files.path().join("ready.json");
        let stderr = files.path().join("stderr");
        let data =
            self.data.unwrap_or_else(|| Arc::new(tempfile::tempdir().expect("a data directory")));
        let mut command = match self.descriptors {
            None => Command::new(env!("CARGO_BIN_EXE_noctule")),
            Some(limit) => {
                // exec: the process id stays the broker's.
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\"")]);
                shell.arg(env!("CARGO_BIN_EXE_noctule"));
                shell
            }
        };
        command.arg("serve");
        for _ in 0..self.listeners {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.arg("--ready-file").arg(&ready);
        command.args(["--io", self.combination.io]);
        command.args(["--shards", &self.combination.shards.to_string()]);
        command.arg("--data").arg(data.path());
        command.args(&self.args);
        // What the caller has set for its own broker is none of ours.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NOCTULE_") {
                command.env_remove(name);
            }
        }
        if let Some(faults) = self.faults.or_else(|| std::env::var(FAULTS).ok()) {
            println!("with {FAULTS}={faults}");
            command.env(FAULTS, faults);
        }
        let output = File::create(&stderr).expect("create the stderr file");
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("share the stderr file"))
            .stderr(output);
        let child = command.spawn().expect("start the broker");
        let mut broker =
            Broker { child: Some(child), addrs: Vec::new(), shards: 0, data: Some(data), files };
        broker.wait_until_ready(&ready);
        broker
    }
}

/// A running broker. Dropped, it is killed; its stderr is shown when the test failed.
pub struct Broker {
    child: Option<Child>,
    addrs: Vec<SocketAddr>,
    shards: usize,
    data: Option<Arc<tempfile::TempDir>>,
    files: tempfile::TempDir,
}

/// How a broker ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// All that it wrote.
    pub stderr: String,
}

impl Broker {
    /// A broker with one listener and an empty data directory.
    pub fn start(combination: Combination) -> Self {
        Self::build(combination).start()
    }

    /// A broker to be described further.
    pub fn build(combination: Combination) -> Builder {
        Builder {
            combination,
            listeners: 1,
            args: Vec::new(),
            data: None,
            descriptors: None,
            faults: None,
        }
    }

    /// Where its first listener is.
    pub fn addr(&self) -> SocketAddr {
        self.addrs[0]
    }

    /// Where its listeners are.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a broker of our own").id()
    }

    /// Its data directory, which lives as long as somebody holds it: to start the next broker on.
    pub fn data(&self) -> Arc<tempfile::TempDir> {
        Arc::clone(self.data.as_ref().expect("a broker of our own"))
    }

    /// A new connection to its first listener; nothing is sent.
    pub fn connect(&self) -> Wire {
        Wire::open(self.addr())
    }

    /// All that it has written so far.
    pub fn stderr(&self) -> String {
        let bytes = std::fs::read(self.stderr_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// All its counters, now: `stats()["total"]["broker"]["packets_in"]`.
    ///
    /// # Panics
    /// When they do not come.
    pub fn stats(&self) -> serde_json::Value {
        // From its output rather than a file: that works without a descriptor left, too.
        let reports = || {
            let output = self.stderr();
            let whole = output.rfind('\n').map_or("", |end| &output[..end]);
            let mut reports = whole.lines().filter(|line| line.starts_with("{\"pid\""));
            (reports.clone().count(), reports.next_back().unwrap_or_default().to_owned())
        };
        let (mut before, _) = reports();
        self.signal(rustix::process::Signal::USR1);
        let deadline = Instant::now() + READY;
        loop {
            let (count, last) = reports();
            if count > before {
                let stats: serde_json::Value =
                    serde_json::from_str(&last).expect("counters as JSON");
                if stats["shards"].as_array().map_or(0, Vec::len) == self.shards {
                    return stats;
                }
                // A shard had no time to answer: the machine is busy. Ask again.
                before = count;
                self.signal(rustix::process::Signal::USR1);
            }
            assert!(Instant::now() < deadline, "no counters within {READY:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// One counter, of all shards: `group` is `broker`, `io` or `loop`.
    ///
    /// # Panics
    /// When there is no such counter.
    pub fn count(&self, group: &str, name: &str) -> u64 {
        let stats = self.stats();
        let count = stats["total"][group][name].as_u64();
        count.unwrap_or_else(|| panic!("no counter {group}.{name} in {stats}"))
    }

    /// Waits until a counter is what it should be: for what the broker does unseen.
    ///
    /// # Panics
    /// When that does not come about.
    pub fn wait_for_count(&self, group: &str, name: &str, wanted: impl Fn(u64) -> bool) -> u64 {
        let deadline = Instant::now() + READY;
        loop {
            let count = self.count(group, name);
            if wanted(count) {
                return count;
            }
            assert!(Instant::now() < deadline, "{group}.{name} stays at {count}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().expect("wait").is_none())
    }

    /// Sends it a signal, by its id.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.pid()).expect("a pid");
        let pid = rustix::process::Pid::from_raw(pid).expect("not zero");
        rustix::process::kill_process(pid, signal).expect("signal our own child");
    }

    /// Ends it with SIGTERM.
    ///
    /// # Panics
    /// When it does not end in time, or not with success.
    pub fn stop(mut self) {
        if self.child.is_some() {
            self.signal(rustix::process::Signal::TERM);
            let ended = self.wait(STOP);
            assert!(ended.status.success(), "ended with {}:\n{}", ended.status, ended.stderr);
        }
    }

    /// Ends it with SIGKILL, as a crash.
    pub fn kill(mut self) -> Ended {
        self.signal(rustix::process::Signal::KILL);
        self.wait(STOP)
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// When that takes longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> Ended {
        let deadline = Instant::now() + limit;
        let mut child = self.child.take().expect("a broker of our own");
        loop {
            if let Some(status) = child.try_wait().expect("wait for our own child") {
                return Ended { status, stderr: self.stderr() };
            }
            if Instant::now() > deadline {
                // Back, so that it is killed.
                self.child = Some(child);
                panic!("the broker did not end within {limit:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn wait_until_ready(&mut self, ready: &Path) {
        #[derive(serde::Deserialize)]
        struct Ready {
            pid: u32,
            listeners: Vec<SocketAddr>,
            shards: usize,
        }
        let deadline = Instant::now() + READY;
        loop {
            // A file that cannot be parsed is one that is still being written.
            let parsed = std::fs::read(ready).ok().and_then(|b| serde_json::from_slice(&b).ok());
            if let Some(Ready { pid, listeners, shards }) = parsed {
                assert_eq!(pid, self.pid(), "the ready file names the broker");
                assert!(!listeners.is_empty(), "the ready file names the listeners");
                self.addrs = listeners;
                self.shards = shards;
                return;
            }
            assert!(self.is_running(), "the broker ended at once:\n{}", self.stderr());
            assert!(Instant::now() < deadline, "not ready within {READY:?}:\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn stderr_path(&self) -> PathBuf {
        self.files.path().join("stderr")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            println!("the broker wrote:\n{}", self.stderr());
        }
    }
}
