//! `noctule crashtest` as its user runs it: a few rounds of `kill -9` and of power cuts, on both
//! backends. That it finds what is wrong is for planted bugs to show; here it finds nothing.
#![forbid(unsafe_code)]

mod support;

use std::process::{Command, Output};

fn crashtest(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_noctule"));
    command.arg("crashtest").args(arguments).output().expect("run noctule")
}

fn nothing_is_lost(arguments: &[&str]) {
    let mut backends: Vec<&str> = support::combinations().iter().map(|c| c.io).collect();
    backends.dedup();
    for io in backends {
        let folder = tempfile::tempdir().expect("a directory");
        let inner = folder.path().join("work");
        let place = inner.to_str().expect("UTF-8");
        let common = ["--rounds", "6", "--json", "--io", io, "--folder", place];
        let output = crashtest(&[&common[..], arguments].concat());
        let (stdout, stderr) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(stdout).expect("JSON");
        assert!(output.status.success(), "{report:#}\n{stderr}");
        for name in ["lost", "duplicated", "disordered", "problem_count"] {
            assert_eq!(report[name], 0, "{name}: {report:#}");
        }
        for name in ["acked", "recovered"] {
            assert!(report[name].as_u64() > Some(50), "{name}: {report:#}");
        }
        for name in ["retained", "subscriptions", "sessions"] {
            assert!(report["checked"][name].as_u64() > Some(5), "{name}: {report:#}");
        }
        assert_eq!(report["rounds"], 6);
        assert!(!inner.exists(), "what it made is removed");
    }
}

/// `kill -9` under load, and while it starts; restarted with another number of shards.
#[test]
fn kills() {
    nothing_is_lost(&["--seed", "5"]);
}

/// The same at the level that promises no more than that.
#[test]
fn kills_at_process_durability() {
    nothing_is_lost(&["--seed", "6", "--durability", "process"]);
}

/// What was not synced when the power is cut is lost in part.
#[test]
fn power_cuts() {
    nothing_is_lost(&["--seed", "7", "--powercut"]);
}

#[test]
fn what_cannot_be_tested_is_refused() {
    for (arguments, expected) in [
        (&["--powercut", "--durability", "process"][..], "--powercut"),
        (&["--shards", "0"], "--shards"),
        (&["--folder", "/"], "--folder /"),
    ] {
        let output = crashtest(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    }
}
