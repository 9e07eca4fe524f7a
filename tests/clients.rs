//! Real client libraries against a real broker, on every combination: each connects, passes
//! messages of all three QoS around, and meets retained messages, Wills and a session that outlives
//! its connection. Beside them stands the public reader of our histograms, which is installed in
//! the same way.
//!
//! Python and JavaScript have their scenarios in their own language (`tests/clients/`), and
//! `scripts/test.sh clients` installs what they need. A client that is not installed is a visible
//! skip here, and a failure in CI.
#![forbid(unsafe_code)]
// Tests wait for real processes on the real clock.
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

#[path = "clients/mosquitto.rs"]
mod mosquitto;
#[path = "clients/rust_client.rs"]
mod rust_client;
mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{on_all, skip};

/// How long all scenarios of one library may take on one broker.
const SCENARIOS: Duration = Duration::from_secs(120);

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A prefix that no other run against the same broker uses. Short: a client id of MQTT 3.1 has 23
/// characters.
fn prefix() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static RUNS: AtomicU32 = AtomicU32::new(0);
    format!("{:x}-{:x}-", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed))
}

/// Runs a script with the broker's address and a prefix, and shows what it wrote when it fails.
fn run_script(program: &Path, script: &str, addr: SocketAddr) {
    let output = tempfile::NamedTempFile::new().expect("a file for the output");
    let mut child = Command::new(program)
        .arg(file(script))
        .args([addr.ip().to_string(), addr.port().to_string(), prefix()])
        .stdin(Stdio::null())
        .stdout(output.reopen().expect("share the file"))
        .stderr(output.reopen().expect("share the file"))
        .spawn()
        .expect("start the script");
    let deadline = Instant::now() + SCENARIOS;
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait for the script") {
            break Some(status);
        }
        if Instant::now() > deadline {
            child.kill().expect("kill our own child");
            child.wait().expect("wait for our own child");
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let text = std::fs::read_to_string(output.path()).expect("read what the script wrote");
    println!("{text}");
    match status {
        Some(status) => assert!(status.success(), "{script}: {status}"),
        None => panic!("{script}: not done within {SCENARIOS:?}"),
    }
}

#[test]
fn paho_python() {
    let python = file("target/clients/venv/bin/python3");
    if !python.exists() {
        return skip("paho_python", "target/clients/venv is missing: scripts/test.sh clients");
    }
    on_all(|broker| run_script(&python, "tests/clients/paho_python.py", broker.addr()));
}

/// No client: the public reader of the interval logs that `noctule bench --out` writes, which finds
/// in them what was recorded.
#[test]
fn hdrhistogram_python() {
    use noctule::bench::record::histogram;
    use noctule::bench::run::{RunFolder, Series};

    let python = file("target/clients/venv/bin/python3");
    if !python.exists() {
        return skip(
            "hdrhistogram_python",
            "target/clients/venv is missing: scripts/test.sh clients",
        );
    }
    let temp = tempfile::tempdir().expect("a temporary folder");
    let folder = RunFolder::create(temp.path()).expect("an empty folder");
    let mut log =
        folder.interval_log(Series::Latency, Duration::from_secs(1_795_260_000)).expect("a log");
    let mut expected = Vec::new();
    for second in 0..4u64 {
        let mut values = histogram();
        // From nanoseconds to most of an hour; the last interval is empty.
        for value in (1..=5000u64).filter(|_| second < 3) {
            values.record(value * value * 10u64.pow(2 * second as u32)).expect("within bounds");
        }
        log.write(Duration::from_secs(second), Duration::from_secs(1), &values).expect("write");
        expected.push(values);
    }
    let output = Command::new(&python)
        .arg(file("tests/clients/hdrhistogram_python.py"))
        .arg(temp.path().join("latency.hlog"))
        .output()
        .expect("start Python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("it speaks JSON");
    let read: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("it speaks JSON")).collect();
    assert_eq!(read.len(), expected.len(), "{text}");
    for (second, (read, written)) in read.iter().zip(&expected).enumerate() {
        let at = |key: &str| read[key].as_u64();
        assert_eq!(at("count"), Some(written.len()), "{read}");
        assert_eq!(at("p50"), Some(written.value_at_quantile(0.5)), "{read}");
        assert_eq!(at("p99"), Some(written.value_at_quantile(0.99)), "{read}");
        assert_eq!(at("max"), Some(written.max()), "{read}");
        let start = read["start"].as_f64().expect("a time in ms");
        assert_eq!(start as u64, 1_795_260_000_000 + 1000 * second as u64, "{read}");
    }
}

#[test]
fn mqtt_js() {
    if !file("tests/clients/node_modules/mqtt").exists() {
        return skip("mqtt_js", "tests/clients/node_modules is missing: scripts/test.sh clients");
    }
    on_all(|broker| run_script(Path::new("node"), "tests/clients/mqtt_js.js", broker.addr()));
}

#[test]
fn libmosquitto() {
    if Command::new("mosquitto_sub").arg("--version").output().is_err() {
        return skip("libmosquitto", "mosquitto_sub is missing: Debian's mosquitto-clients");
    }
    on_all(|broker| {
        for version in mosquitto::VERSIONS {
            let tools = mosquitto::Tools { addr: broker.addr(), version };
            let base = format!("{}{version}", prefix());
            tools.round_trips(&format!("{base}/round"));
            tools.retained(&format!("{base}/retained"));
            tools.will(&format!("{base}/will"));
            tools.session(&format!("{base}/session"));
        }
    });
}

#[test]
fn rumqttc_v4() {
    on_all(|broker| {
        use rust_client::v4;
        for scenario in [v4::round_trips, v4::retained, v4::will, v4::session] {
            scenario(broker.addr(), &prefix());
        }
    });
}

#[test]
fn rumqttc_v5() {
    on_all(|broker| {
        use rust_client::v5;
        for scenario in [v5::round_trips, v5::retained, v5::will, v5::session] {
            scenario(broker.addr(), &prefix());
        }
    });
}
