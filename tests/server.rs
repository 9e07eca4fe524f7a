//! Starting, configuring and stopping, from outside: a real process, its exit code, its words.
#![forbid(unsafe_code)]
// These tests wait for a real process on the real clock.
#![allow(clippy::disallowed_methods)]

mod support;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use support::{Broker, Combination, Wire, combinations};

/// How long anything here may take: it fails a test and never delays one.
const PATIENCE: Duration = Duration::from_secs(30);

/// CONNECT of an MQTT 5 client with a clean start and the id `test`.
const CONNECT_V5: &str = "10 11 0004 4d515454 05 02 003c 00 0004 74657374";

/// `noctule` with `args` in the directory `dir`, without the caller's variables.
fn noctule(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_noctule"));
    command.args(args).current_dir(dir).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("NOCTULE_") {
            command.env_remove(name);
        }
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a `noctule` that must refuse to start, and returns the one line that says why.
fn refused(mut command: Command) -> String {
    let output = command.output().expect("run noctule");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let line = stderr.strip_suffix('\n').expect("a whole line");
    assert!(line.starts_with("noctule: ") && !line.contains('\n'), "not one line: {stderr}");
    line.to_owned()
}

/// A running `noctule serve` whose flags are all the test's own.
struct Served {
    child: Child,
    ready: serde_json::Value,
}

impl Served {
    /// Starts `command` and waits for its ready file, which is at `ready` in its directory.
    fn start(mut command: Command, ready: &Path) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start noctule");
        let parsed = eventually(|| {
            if child.try_wait().expect("wait").is_some() {
                panic!("it ended at once");
            }
            let bytes = std::fs::read(ready).ok()?;
            Some(serde_json::from_slice(&bytes).expect("a ready file is written whole"))
        });
        Self { child, ready: parsed }
    }

    fn addr(&self) -> SocketAddr {
        self.ready["listeners"][0].as_str().expect("an address").parse().expect("an address")
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("not zero");
        rustix::process::kill_process(pid, signal).expect("signal our own child");
    }

    fn stop(self) -> Output {
        self.signal(Signal::TERM);
        self.wait()
    }

    fn wait(mut self) -> Output {
        eventually(|| self.child.try_wait().expect("wait"));
        self.child.wait_with_output().expect("its output")
    }
}

fn eventually<T>(mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "it did not happen within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const ANY_PORT: [&str; 7] =
    ["serve", "--listen", "127.0.0.1:0", "--ready-file", "ready.json", "--data", "data"];

#[test]
fn an_unknown_key_is_refused_with_its_place_and_a_suggestion() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("n.toml"), "[limits]\nqueue_len_mx = 5\n").expect("write");
    let line = refused(noctule(dir.path(), &["serve", "--config", "n.toml"]));
    assert!(line.starts_with("noctule: n.toml:2:1: unknown field `queue_len_mx`"), "{line}");
    assert!(line.ends_with("did you mean `queue_len_max`?"), "{line}");
}

#[test]
fn wrong_configuration_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("n.toml"), "shards = 2\nio = \"urng\"\n").expect("write");
    let line = refused(noctule(dir.path(), &["serve", "--config", "n.toml"]));
    assert!(line.contains("n.toml:2:6: ") && line.contains("uring"), "{line}");
    let line = refused(noctule(dir.path(), &["serve", "--config", "missing.toml"]));
    assert!(line.contains("missing.toml"), "{line}");
    let line = refused(noctule(dir.path(), &["serve", "--packet-size-max", "1GiB"]));
    assert!(line.contains("packet_size_max is 1GiB"), "{line}");
    let line = refused(noctule(dir.path(), &["serve", "--cpus", "4000"]));
    assert!(line.contains("CPU 4000"), "{line}");
    let output = noctule(dir.path(), &["serve", "--shards", "0"]).output().expect("run noctule");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--shards"), "{}", text(&output.stderr));
}

#[test]
fn a_port_in_use_is_noticed_by_one_shard_and_by_many() {
    let dir = tempfile::tempdir().expect("a directory");
    let holder = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = holder.local_addr().expect("an address").to_string();
    for shards in ["1", "2"] {
        let args = ["serve", "--listen", &address, "--shards", shards];
        let line = refused(noctule(dir.path(), &args));
        assert!(line.contains(&address) && line.contains("in use"), "{line}");
    }
}

#[test]
fn another_broker_on_the_port_is_noticed() {
    let first = Broker::start(Combination { io: "epoll", shards: 2 });
    let dir = tempfile::tempdir().expect("a directory");
    let args = ["serve", "--listen", &first.addr().to_string(), "--shards", "2"];
    assert!(refused(noctule(dir.path(), &args)).contains("in use"));
    assert_eq!(std::fs::read_dir(dir.path()).expect("read").count(), 0, "nothing is left behind");
    first.stop();
}

#[test]
fn a_data_directory_in_use_is_refused_and_names_its_user() {
    let first = Broker::start(Combination { io: "epoll", shards: 1 });
    let data = first.data();
    let mut command = noctule(data.path(), &["serve", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(data.path());
    let line = refused(command);
    assert!(line.contains(&format!("in use by process {}", first.pid())), "{line}");
    // The lock ends with its holder, also when that is killed.
    first.kill();
    Broker::build(Combination { io: "epoll", shards: 1 }).data(&data).start().stop();
    let lock = std::fs::read(data.path().join("lock")).expect("the lock file");
    assert_eq!(lock, b"", "no pid stays after a stop");
}

#[test]
fn a_data_directory_that_cannot_be_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("file"), "").expect("write");
    let line =
        refused(noctule(dir.path(), &["serve", "--listen", "127.0.0.1:0", "--data", "file/data"]));
    assert!(line.contains("file/data") && line.contains("--data"), "{line}");
}

#[test]
fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = "shards = 3\nio = \"epoll\"\n";
    std::fs::write(dir.path().join("n.toml"), file).expect("write");
    let with_file = [&ANY_PORT[..], &["--config", "n.toml"]].concat();
    let with_flag = [&with_file[..], &["--shards", "1"]].concat();
    for (args, variable, shards) in
        [(&with_file, None, 3), (&with_file, Some("2"), 2), (&with_flag, Some("2"), 1)]
    {
        let mut command = noctule(dir.path(), args);
        if let Some(value) = variable {
            command.env("NOCTULE_SHARDS", value);
        }
        let served = Served::start(command, &dir.path().join("ready.json"));
        assert_eq!(served.ready["shards"], shards);
        assert_eq!(served.ready["io"], "epoll");
        assert!(served.stop().status.success());
    }
}

#[test]
fn the_printed_configuration_is_accepted() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = noctule(dir.path(), &["serve", "--print-config"]).output().expect("run noctule");
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), include_str!("../src/server/noctule.toml"));
    std::fs::write(dir.path().join("n.toml"), &output.stdout).expect("write");
    let args = [&ANY_PORT[..], &["--config", "n.toml"]].concat();
    let served = Served::start(noctule(dir.path(), &args), &dir.path().join("ready.json"));
    assert!(served.stop().status.success());
}

#[test]
fn the_ready_file_says_what_serves_and_goes_with_it() {
    for (io, shards) in [("uring", 2), ("epoll", 1)] {
        let dir = tempfile::tempdir().expect("a directory");
        let count = shards.to_string();
        let more = ["--listen", "[::1]:0", "--io", io, "--shards", &count];
        let args = [&ANY_PORT[..], &more].concat();
        let ready = dir.path().join("ready.json");
        // An old file must not be taken for a new broker.
        std::fs::write(&ready, "old").expect("write");
        std::fs::remove_file(&ready).expect("remove");
        let served = Served::start(noctule(dir.path(), &args), &ready);
        assert_eq!(served.ready["pid"], served.child.id());
        assert_eq!(served.ready["io"], io);
        assert_eq!(served.ready["shards"], shards);
        let listeners = served.ready["listeners"].as_array().expect("a list");
        assert_eq!(listeners.len(), 2);
        for listener in listeners {
            let addr: SocketAddr = listener.as_str().expect("text").parse().expect("an address");
            assert_ne!(addr.port(), 0);
            // Whichever shard the kernel chooses.
            for _ in 0..8 {
                let mut wire = Wire::open(addr);
                wire.send_hex(CONNECT_V5);
                assert_eq!(wire.frame()[0], 0x20);
            }
        }
        assert!(served.stop().status.success());
        assert!(!ready.exists());
    }
}

#[test]
fn strangers_are_let_in_only_when_said_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let line = refused(noctule(dir.path(), &["serve", "--listen", "0.0.0.0:0"]));
    assert!(line.contains("0.0.0.0:0") && line.contains("--allow-anonymous"), "{line}");
    let args = [&ANY_PORT[..], &["--listen", "0.0.0.0:0", "--allow-anonymous"]].concat();
    let served = Served::start(noctule(dir.path(), &args), &dir.path().join("ready.json"));
    assert!(served.stop().status.success());
}

#[test]
fn noctule_alone_serves_and_says_what_to_try() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = noctule(dir.path(), &[]);
    command.env("NOCTULE_LISTEN", "127.0.0.1:0").env("NOCTULE_READY_FILE", "ready.json");
    let output = Served::start(command, &dir.path().join("ready.json")).stop();
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("noctule sub") && stderr.contains("noctule pub"), "{stderr}");
    assert!(dir.path().join("noctule-data/placement.key").exists());
}

/// Where the data are, when nobody has said it: where systemd has made room, and said in the log.
#[test]
fn data_is_where_systemd_says_and_memory_is_warned_of() {
    let dir = tempfile::tempdir().expect("a directory");
    let ready = dir.path().join("ready.json");
    let args = ["serve", "--listen", "127.0.0.1:0", "--ready-file", "ready.json"];
    let state = dir.path().join("state");
    let mut command = noctule(dir.path(), &args);
    command.env("STATE_DIRECTORY", &state);
    let stderr = text(&Served::start(command, &ready).stop().stderr);
    assert!(state.join("journal").is_dir(), "{stderr}");
    assert!(stderr.contains(state.to_str().expect("UTF-8")), "{stderr}");
    // A file system in memory, where there is one.
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return };
    let data = memory.path().to_str().expect("UTF-8");
    for (level, is_warned) in [("power", true), ("process", false)] {
        let args = [&args[..], &["--data", data, "--durability", level]].concat();
        let stderr = text(&Served::start(noctule(dir.path(), &args), &ready).stop().stderr);
        assert_eq!(stderr.contains("survives a power cut"), is_warned, "{level}: {stderr}");
    }
}

#[test]
fn the_log_is_json_when_asked_for_and_quiet_when_asked_to() {
    let dir = tempfile::tempdir().expect("a directory");
    let ready = dir.path().join("ready.json");
    let args = [&ANY_PORT[..], &["--log-format", "json"]].concat();
    let stderr = text(&Served::start(noctule(dir.path(), &args), &ready).stop().stderr);
    let lines: Vec<serde_json::Value> =
        stderr.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for message in ["noctule", "kernel interface", "shards", "limits", "listening", "stopped"] {
        assert!(lines.iter().any(|line| line["message"] == message), "{message}: {stderr}");
    }
    let args = [&ANY_PORT[..], &["--log-level", "error"]].concat();
    let stderr = text(&Served::start(noctule(dir.path(), &args), &ready).stop().stderr);
    assert_eq!(stderr, "");
}

/// A v5 client is told that the server shuts down.
#[test]
fn sigterm_says_goodbye_and_exits_with_zero() {
    for combination in combinations() {
        let mut broker = Broker::start(combination);
        let mut wire = broker.connect();
        wire.send_hex(CONNECT_V5);
        assert_eq!(wire.frame()[0], 0x20);
        broker.signal(Signal::TERM);
        let goodbye = wire.frame();
        assert_eq!((goodbye[0], goodbye[2]), (0xe0, 0x8b), "{combination}");
        wire.expect_closed();
        drop(wire);
        let ended = broker.wait(PATIENCE);
        assert!(ended.status.success(), "{combination}: {}", ended.stderr);
    }
}

/// The bound on a shutdown is for clients that do not read, not a time that all have to wait.
#[test]
fn with_nobody_there_it_stops_at_once() {
    for combination in combinations() {
        let mut broker = Broker::start(combination);
        let begin = Instant::now();
        broker.signal(Signal::TERM);
        assert!(broker.wait(PATIENCE).status.success());
        let took = begin.elapsed();
        assert!(took < noctule::limits::SHUTDOWN_FLUSH / 2, "{combination}: {took:?}");
    }
}

#[test]
fn a_second_signal_exits_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let args = [&ANY_PORT[..], &["--io", "epoll"]].concat();
    let served = Served::start(noctule(dir.path(), &args), &dir.path().join("ready.json"));
    // A client that never closes its end keeps the shutdown waiting for a while.
    let mut wire = Wire::open(served.addr());
    wire.send_hex(CONNECT_V5);
    assert_eq!(wire.frame()[0], 0x20);
    served.signal(Signal::TERM);
    assert_eq!(wire.frame()[0], 0xe0);
    served.signal(Signal::INT);
    let output = served.wait();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(128 + 2), "{stderr}");
    assert!(stderr.contains("second signal"), "{stderr}");
}

#[test]
fn counters_come_at_sigusr1_and_at_exit() {
    let dir = tempfile::tempdir().expect("a directory");
    let stats = dir.path().join("stats.json");
    let args = [&ANY_PORT[..], &["--stats-file", "stats.json", "--shards", "2"]].concat();
    let served = Served::start(noctule(dir.path(), &args), &dir.path().join("ready.json"));
    let mut wires: Vec<Wire> = (0..3).map(|_| Wire::open(served.addr())).collect();
    for (i, wire) in wires.iter_mut().enumerate() {
        wire.send_hex(&format!("10 11 0004 4d515454 05 02 003c 00 0004 7465737{i}"));
        assert_eq!(wire.frame()[0], 0x20);
    }
    let report = |signal: bool| -> serde_json::Value {
        let _ = std::fs::remove_file(&stats);
        if signal {
            served.signal(Signal::USR1);
        }
        let bytes = eventually(|| std::fs::read(&stats).ok());
        serde_json::from_slice(&bytes).expect("JSON")
    };
    let mut stranger = Wire::open(served.addr());
    stranger.send_hex("00 00");
    stranger.expect_closed();
    let first = report(true);
    assert_eq!(first["pid"], served.child.id());
    assert_eq!(first["shards"].as_array().expect("a list").len(), 2);
    assert_eq!(first["total"]["loop"]["accepted"], 4);
    assert_eq!(first["total"]["broker"]["connects_accepted"], 3);
    let errors = first["total"]["decode_errors"].as_object().expect("counters");
    assert_eq!(errors.values().filter_map(serde_json::Value::as_u64).sum::<u64>(), 1, "{errors:?}");
    let sum: u64 = (0..2).filter_map(|i| first["shards"][i]["io"]["sent"].as_u64()).sum();
    assert_eq!(first["total"]["io"]["sent"], sum);

    let output = served.stop();
    let stdout = text(&output.stdout);
    let lines: Vec<serde_json::Value> =
        stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2, "one at SIGUSR1, one at exit: {stdout}");
    assert_eq!(lines[1]["total"]["loop"]["connections"], 0);
    let last: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&stats).expect("a file")).expect("JSON");
    assert_eq!(last, lines[1]);
}

/// Whoever has nothing to do sleeps: between two reports each shard wakes for the report alone.
#[test]
fn idle_costs_nothing() {
    for combination in combinations() {
        let broker = Broker::start(combination);
        let ticks = |nth: usize| -> u64 {
            broker.signal(Signal::USR1);
            eventually(|| {
                let output = broker.stderr();
                let line = output.lines().filter(|line| line.starts_with('{')).nth(nth)?;
                let report: serde_json::Value = serde_json::from_str(line).ok()?;
                report["total"]["loop"]["ticks"].as_u64()
            })
        };
        let before = ticks(0);
        std::thread::sleep(Duration::from_millis(1500));
        let turns = ticks(1) - before;
        // The second report wakes each shard once, and a turn may follow that finds nothing.
        assert!(turns <= 2 * combination.shards as u64, "{combination}: {turns} turns");
        broker.stop();
    }
}

/// `--io auto` under a seccomp filter that refuses io_uring, as containers have it.
#[test]
fn auto_falls_back_and_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let args = [&ANY_PORT[..], &["--io", "auto"]].concat();
    let served = without_io_uring(|| {
        Served::start(noctule(dir.path(), &args), &dir.path().join("ready.json"))
    });
    assert_eq!(served.ready["io"], "epoll");
    let mut wire = Wire::open(served.addr());
    wire.send_hex(CONNECT_V5);
    assert_eq!(wire.frame()[0], 0x20);
    drop(wire);
    let output = served.stop();
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let why: Vec<&str> = stderr.lines().filter(|line| line.contains("io_uring")).collect();
    assert_eq!(why.len(), 1, "one line: {stderr}");
    assert!(why[0].contains("WARN") && why[0].contains("doctor"), "{stderr}");

    // Who asks for io_uring gets that or nothing.
    let args = [&ANY_PORT[..], &["--io", "uring"]].concat();
    let line = without_io_uring(|| refused(noctule(dir.path(), &args)));
    assert!(line.contains("io_uring") && line.contains("doctor"), "{line}");
}

/// Runs `start` where every process it makes is refused io_uring.
fn without_io_uring<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let filter = SeccompFilter::new(
        [(libc::SYS_io_uring_setup, vec![])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(u32::try_from(libc::EPERM).expect("positive")),
        std::env::consts::ARCH.try_into().expect("a known architecture"),
    );
    let filter: BpfProgram = filter.expect("a filter").try_into().expect("a program");
    // A filter holds for a thread and for the processes that it starts.
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            seccompiler::apply_filter(&filter).expect("the filter is accepted");
            start()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn doctor_gives_a_verdict_for_every_need() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = noctule(dir.path(), &["doctor"]).output().expect("run noctule");
    let table = text(&output.stdout);
    let output = noctule(dir.path(), &["doctor", "--json"]).output().expect("run noctule");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let features = report["features"].as_array().expect("a list");
    assert!(features.len() > 5, "{report}");
    for feature in features {
        let name = feature["name"].as_str().expect("a name");
        assert!(table.contains(name), "{name} is not in the table:\n{table}");
        assert!(feature["verdict"].is_string(), "{feature}");
    }
}

#[test]
fn doctor_says_what_refuses_io_uring() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = without_io_uring(|| noctule(dir.path(), &["doctor"]).output().expect("run it"));
    let table = text(&output.stdout);
    assert!(table.contains("seccomp"), "{table}");
}
