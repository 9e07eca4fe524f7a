//! `noctule bench` as its user runs it, against a real broker.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

mod support;

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use support::Broker;

fn start(broker: &Broker, flags: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_noctule"));
    command.arg("bench").args(flags.split_whitespace()).arg("--json");
    command.args(["--port", &broker.addr().port().to_string()]);
    if support::broker::external().is_none() {
        command.args(["--broker-pid", &broker.pid().to_string()]);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start noctule bench")
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

#[test]
fn every_workload_delivers_all_of_it() {
    const SHORT: &str = "--duration 0.2 --warm-up 0.05";
    support::on_all(|broker| {
        for flags in [
            "pairs --pairs 3 --mqtt 5",
            "pairs --pairs 3 --qos 1",
            "pairs --pairs 3 --qos 2 --mqtt 5 --io epoll",
            "pairs --pairs 2 --payload 100000 --window 4",
            "fan-out --subscribers 20",
            "fan-in --publishers 20 --mqtt 3.1",
            "ping-pong --pairs 3",
            "pairs --rate 1000",
        ] {
            let report = run(broker, &format!("{flags} {SHORT}"));
            assert!(report["delivered"].as_u64() > Some(0), "{flags}: {report:#}");
            assert_eq!(report["faults"]["lost"], 0, "{flags}: {report:#}");
            assert!(report["latency_nanos"]["p50"].as_u64() > Some(0), "{flags}: {report:#}");
            if support::broker::external().is_none() {
                let cost = report["broker"]["cpu_micros_per_delivered"].as_f64();
                assert!(cost > Some(0.0), "{flags}: {report:#}");
            }
        }
    });
}

#[test]
fn an_interrupted_run_still_reports() {
    let broker = Broker::start(support::combinations()[0]);
    let bench = start(&broker, "pairs --duration 60 --warm-up 0");
    std::thread::sleep(Duration::from_millis(500));
    let pid = rustix::process::Pid::from_child(&bench);
    rustix::process::kill_process(pid, Signal::INT).expect("signal our own child");
    let output = bench.wait_with_output().expect("wait for noctule bench");
    let report = report(&output);
    assert!(output.status.success(), "{report:#}");
    assert_eq!(report["interrupted"], true);
    assert!(report["delivered"].as_u64() > Some(0), "{report:#}");
    assert_eq!(report["faults"]["lost"], 0, "what was under way is awaited: {report:#}");
}

/// While the broker stands still, messages keep becoming due; all of them were late.
#[test]
fn a_stalled_broker_shows_in_the_latency() {
    let broker = Broker::start(support::combinations()[0]);
    let bench = start(&broker, "pairs --rate 2000 --duration 2 --warm-up 0");
    std::thread::sleep(Duration::from_millis(800));
    broker.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(500));
    broker.signal(Signal::CONT);
    let output = bench.wait_with_output().expect("wait for noctule bench");
    let report = report(&output);
    // A quarter of the run: the later half of those messages waited less than 250 ms.
    let p90 = report["latency_nanos"]["p90"].as_u64();
    assert!(p90 > Some(200_000_000), "{report:#}");
    assert_eq!(report["latency_nanos"]["count"], 4000, "each message counts: {report:#}");
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
