//! `noctule bench` as its user runs it, against a real broker.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

mod support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use support::Broker;

fn command(broker: &Broker, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_noctule"));
    command.arg("bench").args(args).arg("--json");
    command.args(["--port", &broker.addr().port().to_string()]);
    if support::broker::external().is_none() {
        command.args(["--broker-pid", &broker.pid().to_string()]);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn start(broker: &Broker, flags: &str) -> Child {
    let args: Vec<_> = flags.split_whitespace().collect();
    command(broker, &args).spawn().expect("start noctule bench")
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {} {}", output.status, String::from_utf8_lossy(&output.stderr))
    })
}

fn run(broker: &Broker, flags: &str) -> Value {
    let output = start(broker, flags).wait_with_output().expect("wait for noctule bench");
    let report = report(&output);
    assert!(output.status.success(), "{flags}: {} {report:#}", output.status);
    report
}

/// Runs each line once, spread over the combinations, which run at the same time.
fn on_any<T: Sync>(lines: &[T], test: impl Fn(&Broker, &T) + Sync) {
    let combinations = support::combinations();
    std::thread::scope(|scope| {
        for (first, combination) in combinations.iter().enumerate() {
            let (test, step) = (&test, combinations.len());
            scope.spawn(move || {
                let broker = Broker::start(*combination);
                for line in lines.iter().skip(first).step_by(step) {
                    test(&broker, line);
                }
                broker.stop();
            });
        }
    });
}

/// Waits until more messages have come to the broker than are ever under way.
fn wait_for_traffic(broker: &Broker) {
    for _ in 0..200 {
        if broker.stats()["total"]["broker"]["packets_in"].as_u64() > Some(6000) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("nothing comes: {}", broker.stats());
}

fn signal(child: &Child, signal: Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).expect("signal our own child");
}

#[test]
fn every_workload_delivers_all_of_it() {
    // Flags, and how many deliveries there must be: the run ends with them, however long it takes.
    let lines = [
        ("pairs --pairs 3 --messages 300 --mqtt 5", 300),
        ("pairs --pairs 3 --messages 300 --mqtt 5 --topic-alias-maximum 1", 300),
        ("pairs --pairs 3 --messages 300 --qos 1", 300),
        ("pairs --pairs 3 --messages 300 --qos 2 --mqtt 5 --io epoll", 300),
        ("pairs --pairs 2 --messages 60 --payload 100000 --window 4", 60),
        ("pairs --pairs 3 --messages 300 --payload 16,400,9000", 300),
        ("pairs --pairs 3 --messages 300 --payload 4", 300),
        ("pairs --pairs 3 --messages 300 --qos 2 --subscriber-qos 1", 300),
        ("pairs --pairs 4 --messages 4000 --threads 2", 4000),
        ("pairs --pairs 4 --messages 4000 --threads 2 --placement apart", 4000),
        ("pairs --messages 200 --rate 1000", 200),
        ("pairs --messages 200 --rate 1000 --schedule burst --io epoll", 200),
        ("pairs --messages 200 --rate 1000 --schedule poisson --threads 2", 200),
        ("fan-out --messages 200 --subscribers 20", 4000),
        ("fan-out --messages 200 --publishers 2 --subscribers 10 --threads 3", 2000),
        ("fan-in --messages 2000 --publishers 20 --mqtt 3.1", 2000),
        ("fan-in --messages 900 --publishers 9 --threads 2 --placement apart --qos 1", 900),
        ("ping-pong --messages 90 --pairs 3", 90),
        ("shared --messages 900 --publishers 3 --subscribers 4", 900),
        ("shared --messages 900 --publishers 3 --subscribers 4 --qos 1 --threads 2 --mqtt 5", 900),
        ("route --messages 600 --publishers 2 --subscribers 20 --filters 3", 600),
        ("request-response --messages 80 --publishers 4 --subscribers 2", 80),
        ("request-response --messages 80 --publishers 4 --subscribers 3 --qos 1 --threads 2", 80),
        ("slow-subscriber --messages 300 --subscribers 4 --slow-pause 0.01", 900),
        ("churn --clients 5 --session-rate 100 --pairs 2 --messages 200 --mqtt 5", 200),
        ("storm --clients 10 --storm-every 0.1 --pairs 2 --messages 200 --threads 2", 200),
        ("retained --messages 300", 300),
        ("retained --messages 300 --qos 0 --publishers 2 --subscribers 3 --mqtt 5", 900),
        ("retained --messages 300 --qos 2 --subscribers 2 --threads 2 --io epoll", 600),
        ("offline --pairs 3 --messages 300", 300),
        ("offline --pairs 3 --messages 300 --qos 2 --mqtt 5 --threads 2", 300),
        ("connect --clients 50", 50),
        ("connect --clients 50 --ramp 500 --sources 3 --threads 2", 50),
    ];
    on_any(&lines, |broker, (flags, deliveries)| {
        let bounded = ["retained", "offline", "connect"].iter().any(|name| flags.starts_with(name));
        let bound = if bounded { "" } else { " --warm-up 0 --duration 60" };
        let report = run(broker, &format!("{flags}{bound}"));
        assert_eq!(report["delivered"], *deliveries, "{flags}: {report:#}");
        let latencies = if flags.ends_with("--payload 4") { 0 } else { *deliveries };
        assert_eq!(report["latency_nanos"]["count"], latencies, "{flags}: {report:#}");
        check(flags, &report);
        if flags.contains("--rate") {
            assert_eq!(report["lateness_nanos"]["count"], *deliveries, "{flags}: {report:#}");
        }
    });
    // These have no messages to end with.
    let lines = [
        "churn --clients 5",
        "storm --clients 10 --storm-every 0.1",
        "idle --clients 20 --keep-alive 1",
    ];
    on_any(&lines, |broker, flags| {
        let report = run(broker, &format!("{flags} --sources 3 --warm-up 0 --duration 2"));
        assert!(report["faults"].is_null(), "{flags}: {report:#}");
        check(flags, &report);
    });
}

fn check(flags: &str, report: &Value) {
    if let Some(faults) = report["faults"].as_object() {
        for (kind, count) in faults {
            assert_eq!(count, 0, "{flags}: {kind} {report:#}");
        }
    }
    assert_eq!(report["unsent"], 0, "{flags}: {report:#}");
    if support::broker::external().is_none() {
        let cost = report["broker"]["cpu_micros_per_delivered"].as_f64();
        assert!(cost.is_some(), "{flags}: {report:#}");
    }
}

/// With `--topic-alias-maximum` the broker may leave topics out, and does.
#[test]
fn the_broker_may_use_aliases() {
    if support::broker::external().is_some() {
        return println!("skipped: needs a broker of its own");
    }
    let broker = Broker::start(support::combinations()[0]);
    let bytes = |more: &str| {
        let before = broker.stats()["total"]["loop"]["copied_to_outboxes"].as_u64();
        let line = "pairs --pairs 2 --messages 1000 --mqtt 5 --warm-up 0 --duration 60";
        run(&broker, &format!("{line}{more}"));
        let after = broker.stats()["total"]["loop"]["copied_to_outboxes"].as_u64();
        after.zip(before).map(|(after, before)| after - before).expect("the broker counts")
    };
    let (plain, aliased) = (bytes(""), bytes(" --topic-alias-maximum 2"));
    assert!(aliased + 8 * 1000 < plain, "{aliased} with aliases, {plain} without");
}

/// What a run leaves in the broker is taken out of it again.
#[test]
fn nothing_stays_behind() {
    if support::broker::external().is_some() {
        return println!("skipped: needs a broker of its own");
    }
    let broker = Broker::start(support::combinations()[0]);
    run(&broker, "retained --messages 20");
    run(&broker, "offline --pairs 2 --messages 20");
    run(&broker, "offline --pairs 2 --messages 20 --mqtt 5");
    let sub = Command::new(env!("CARGO_BIN_EXE_noctule"))
        .args(["sub", "-t", "#", "-W", "1", "-p", &broker.addr().port().to_string()])
        .output()
        .expect("run noctule sub");
    assert_eq!(sub.status.code(), Some(27), "its time was over");
    assert_eq!(String::from_utf8_lossy(&sub.stdout), "", "nothing is retained");
    // The broker learns of the last disconnect a little later than we do.
    for _ in 0..100 {
        let stats = broker.stats();
        let total = &stats["total"]["broker"];
        if total["sessions_created"] == total["sessions_ended"] {
            assert!(total["sessions_created"].as_u64() > Some(0), "{stats:#}");
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("sessions are left: {:#}", broker.stats());
}

/// Every scenario of perf/scenarios, made small.
#[test]
fn every_scenario_runs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("perf/scenarios");
    let mut scenarios: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("list perf/scenarios")
        .map(|entry| entry.expect("list perf/scenarios").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    scenarios.sort();
    assert!(scenarios.len() > 20, "{scenarios:?}");
    let temp = tempfile::tempdir().expect("a temporary folder");
    on_any(&scenarios, |broker, path| {
        let text = std::fs::read_to_string(path).expect("read a scenario");
        assert!(text.starts_with("# ") && text.contains("Shows: "), "{}", path.display());
        assert!(text.contains("annot show: "), "{}", path.display());
        let mut scenario: toml::Table = text.parse().expect("a scenario is TOML");
        assert!(scenario.contains_key("question"), "{}", path.display());
        for (key, value) in &mut scenario {
            let most = match key.as_str() {
                "pairs" | "publishers" | "subscribers" | "clients" => 12,
                "filters" => 3,
                "messages" => 240,
                "rate" | "session_rate" => 240,
                _ => continue,
            };
            let number = value.as_integer().expect("a number");
            *value = number.min(most).into();
        }
        let workload = scenario["workload"].as_str().expect("a name").to_owned();
        if scenario.contains_key("storm_every") {
            scenario.insert("storm_every".into(), 0.1.into());
        }
        if workload == "idle" {
            scenario.insert("keep_alive".into(), 1.into());
            scenario.insert("duration".into(), 2.into());
        } else if !["retained", "offline", "connect"].contains(&workload.as_str()) {
            scenario.insert("messages".into(), 60.into());
            scenario.insert("duration".into(), 60.into());
            scenario.insert("warm_up".into(), 0.into());
        }
        let small = temp.path().join(path.file_name().expect("a file"));
        std::fs::write(&small, scenario.to_string()).expect("write a scenario");
        let report = run(broker, &small.display().to_string());
        assert!(report["delivered"].as_u64() > Some(0), "{}: {report:#}", path.display());
        check(&path.display().to_string(), &report);
        let name = path.file_stem().expect("a file").to_string_lossy();
        assert_eq!(report["scenario"], *name);
    });
}

#[test]
fn a_run_leaves_a_folder_that_can_be_run_again() {
    let broker = Broker::start(support::combinations()[0]);
    let temp = tempfile::tempdir().expect("a temporary folder");
    let (first, second) = (temp.path().join("first"), temp.path().join("second"));
    let flags = "fan-out --subscribers 3 --rate 400 --schedule poisson --duration 2.2 --warm-up 0";
    run(&broker, &format!("{flags} --out {}", first.display()));
    for name in ["run.toml", "environment.json", "summary.json", "latency.hlog", "latency.hgrm"] {
        assert!(first.join(name).is_file(), "{name}");
    }
    let log = std::fs::read_to_string(first.join("latency.hlog")).expect("read the log");
    let intervals = log.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    assert!(intervals.count() >= 2, "an interval a second: {log}");
    run(&broker, &format!("{} --out {}", first.join("run.toml").display(), second.display()));
    let read = |folder: &Path| std::fs::read_to_string(folder.join("run.toml")).expect("read it");
    assert_eq!(read(&first), read(&second));
    let again = start(&broker, &format!("{flags} --out {}", first.display()));
    let output = again.wait_with_output().expect("wait for noctule bench");
    assert_eq!(output.status.code(), Some(2), "a folder is used once");
}

#[test]
fn an_interrupted_run_still_reports() {
    let broker = Broker::start(support::combinations()[0]);
    let temp = tempfile::tempdir().expect("a temporary folder");
    let out = temp.path().join("run");
    let flags = format!("pairs --duration 60 --warm-up 0 --out {}", out.display());
    let bench = start(&broker, &flags);
    wait_for_traffic(&broker);
    signal(&bench, Signal::INT);
    let output = bench.wait_with_output().expect("wait for noctule bench");
    let report = report(&output);
    assert!(output.status.success(), "{report:#}");
    assert_eq!(report["interrupted"], true);
    assert!(report["delivered"].as_u64() > Some(0), "{report:#}");
    assert_eq!(report["faults"]["lost"], 0, "what was under way is awaited: {report:#}");
    assert!(out.join("summary.json").is_file() && out.join("latency.hlog").is_file());
}

/// The first interrupt waits for what is under way; the second does not.
#[test]
fn the_second_interrupt_ends_at_once() {
    let broker = Broker::start(support::combinations()[0]);
    let mut bench = start(&broker, "pairs --duration 60 --warm-up 0");
    wait_for_traffic(&broker);
    broker.signal(Signal::STOP);
    signal(&bench, Signal::INT);
    std::thread::sleep(Duration::from_millis(400));
    assert!(bench.try_wait().expect("look at it").is_none(), "it waits for the broker");
    signal(&bench, Signal::INT);
    let status = bench.wait().expect("wait for noctule bench");
    broker.signal(Signal::CONT);
    assert_eq!(status.code(), Some(128 + 2));
}

/// Coordinated omission. A broker that stands still for half a second delays a twentieth of what an
/// open loop of ten seconds sends, so its 99th percentile must show it; a closed loop on the same
/// broker at the same time has one message under way, waits with it, and does not notice.
#[test]
fn a_stalled_broker_shows_in_the_open_loop_and_not_in_the_closed() {
    const STALL: Duration = Duration::from_millis(500);
    let broker = Broker::start(support::combinations()[0]);
    let open = start(&broker, "pairs --pairs 4 --rate 1000 --duration 10 --warm-up 0");
    let closed = start(&broker, "ping-pong --pairs 1 --duration 10 --warm-up 0");
    std::thread::sleep(Duration::from_secs(5));
    broker.signal(Signal::STOP);
    std::thread::sleep(STALL);
    broker.signal(Signal::CONT);
    let [open, closed] = [open, closed]
        .map(|bench| report(&bench.wait_with_output().expect("wait for noctule bench")));
    let nanos = |report: &Value, key: &str| report["latency_nanos"][key].as_u64().unwrap_or(0);
    assert_eq!(nanos(&open, "count"), 10_000, "each message counts: {open:#}");
    // Of the 500 that were due meanwhile, 300 had to wait for at least 200 ms.
    assert!(nanos(&open, "p99") >= 200_000_000, "{open:#}");
    // One message was under way.
    assert!(nanos(&closed, "max") >= 400_000_000, "{closed:#}");
    assert!(nanos(&closed, "count") > 200, "{closed:#}");
    assert!(nanos(&closed, "p99") < 200_000_000, "{closed:#}");
}

#[test]
fn no_broker_no_figures() {
    let port = support::free_port();
    let output = Command::new(env!("CARGO_BIN_EXE_noctule"))
        .args(["bench", "pairs", "--port", &port.to_string()])
        .output()
        .expect("start noctule bench");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with(&format!("noctule: connect to 127.0.0.1:{port}: ")), "{stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_wrong_scenario_is_refused_with_its_place() {
    let temp = tempfile::tempdir().expect("a temporary folder");
    let path = temp.path().join("s.toml");
    std::fs::write(&path, "workload = \"pairs\"\nraet = 5\n").expect("write a scenario");
    let output = Command::new(env!("CARGO_BIN_EXE_noctule"))
        .arg("bench")
        .arg(&path)
        .output()
        .expect("start noctule bench");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let place = format!("noctule: {}:2: ", path.display());
    assert!(stderr.starts_with(&place) && stderr.contains("did you mean `rate`?"), "{stderr}");
}

/// The peer that only counts: everything comes back, at any QoS, and is counted there as well. It
/// says what it does not do.
#[test]
fn the_sink_counts() {
    for io in ["uring", "epoll"] {
        let mut sink = Command::new(env!("CARGO_BIN_EXE_noctule"))
            .args(["bench", "--sink", "127.0.0.1:0", "--io", io])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the sink");
        let mut stderr = BufReader::new(sink.stderr.take().expect("its stderr"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("read where it listens");
        let port = line.trim().rsplit(':').next().expect("a port").to_owned();
        let mut sent = 0;
        let run = |flags: &str| {
            Command::new(env!("CARGO_BIN_EXE_noctule"))
                .args(["bench", "--json", "--port", &port, "--duration", "0.2", "--warm-up", "0"])
                .args(flags.split_whitespace())
                .output()
                .expect("run noctule bench")
        };
        for flags in [
            "pairs --pairs 3",
            "pairs --pairs 2 --mqtt 5",
            "fan-out --subscribers 3",
            "fan-in --publishers 4",
        ] {
            let output = run(flags);
            let report = report(&output);
            assert!(output.status.success(), "{flags}: {report:#}");
            sent += report["published"].as_u64().expect("a count");
        }
        for (flags, why) in [("", "Unspecified error"), ("--mqtt 5", "Shared Subscriptions not")] {
            let output = run(&format!("shared --publishers 1 --subscribers 1 {flags}"));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && stderr.contains(why), "{stderr}");
        }
        signal(&sink, Signal::INT);
        let output = sink.wait_with_output().expect("wait for the sink");
        let counts: Value = serde_json::from_slice(&output.stdout).expect("its counts");
        assert!(counts["connections"].as_u64() >= Some(19), "{counts}");
        assert!(counts["messages"].as_u64() >= Some(sent) && sent > 0, "{counts} {sent}");
        assert_eq!(counts["dropped"], 0, "{counts}");
    }
}
