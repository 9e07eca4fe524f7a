//! `noctule pub`, `sub` and `rr` as a user runs them: command, output, exit code.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use support::{Broker, on_all};

/// A command with a broker's address, its arguments separated by spaces.
fn noctule(broker: &Broker, arguments: &str) -> Command {
    let mut words = arguments.split_whitespace();
    let mut command = Command::new(env!("CARGO_BIN_EXE_noctule"));
    command.arg(words.next().unwrap());
    command.args(["-h", &broker.addr().ip().to_string()]);
    command.args(["-p", &broker.addr().port().to_string()]);
    command.args(words);
    command.stdin(Stdio::null());
    command
}

/// Runs to its end.
fn run(broker: &Broker, arguments: &str) -> Output {
    noctule(broker, arguments).output().unwrap()
}

/// Runs to its end, which has to be good; what it printed.
#[track_caller]
fn ok(broker: &Broker, arguments: &str) -> String {
    success(&run(broker, arguments))
}

#[track_caller]
fn success(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Runs to its end, which has to be bad: its code, and what it said.
fn bad(broker: &Broker, arguments: &str) -> (i32, String) {
    let output = run(broker, arguments);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// A `sub` whose subscriptions the broker has acknowledged. Killed when it is dropped.
struct Sub {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Sub {
    fn start(broker: &Broker, arguments: &str) -> Self {
        let mut child = noctule(broker, &format!("sub -d -W 20 {arguments}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        while !text.contains("SUBACK") {
            assert!(stderr.read_line(&mut text).unwrap() > 0, "sub {arguments} ended: {text}");
        }
        Self { child, stderr }
    }

    /// What it prints until it ends, and how it ends.
    fn finish(mut self) -> (String, i32) {
        let mut text = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        (text, self.child.wait().unwrap().code().unwrap())
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Sub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_version_at_every_qos() {
    on_all(|broker| {
        for version in ["31", "311", "5"] {
            for qos in 0..=2 {
                let topic = format!("cli/{version}/{qos}");
                let sub = Sub::start(
                    broker,
                    &format!("-V {version} -q {qos} -t {topic} -C 3 -F %t|%p|%q|%r"),
                );
                let mut publisher =
                    noctule(broker, &format!("pub -V {version} -q {qos} -t {topic} -l"))
                        .stdin(Stdio::piped())
                        .spawn()
                        .unwrap();
                publisher.stdin.take().unwrap().write_all(b"one\n\nthree").unwrap();
                assert!(publisher.wait().unwrap().success());
                let expected = ["one", "", "three"].map(|p| format!("{topic}|{p}|{qos}|0\n"));
                assert_eq!(sub.finish(), (expected.concat(), 0));
            }
        }
    });
}

#[test]
fn many_messages_arrive_once_and_in_order() {
    on_all(|broker| {
        let lines: String = (0..5000).map(|n| format!("{n}\n")).collect();
        for qos in [1, 2] {
            let sub = Sub::start(broker, &format!("-q {qos} -t cli/many/{qos} -C 5000"));
            let mut publisher = noctule(broker, &format!("pub -q {qos} -t cli/many/{qos} -l"))
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            publisher.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
            assert!(publisher.wait().unwrap().success());
            assert_eq!(sub.finish(), (lines.clone(), 0));
        }
    });
}

#[test]
fn retained_messages() {
    on_all(|broker| {
        ok(broker, "pub -t cli/r/a -m kept -r -q 1");
        ok(broker, "pub -t cli/r/b -m other -r -q 1");
        assert_eq!(ok(broker, "sub -t cli/r/a -v -C 1 -W 20"), "cli/r/a kept\n");
        assert_eq!(ok(broker, "sub -t cli/r/+ -T cli/r/b -C 1 -W 20"), "kept\n");
        // -R hides them: nothing is printed until the time is over.
        let output = run(broker, "sub -t cli/r/# -R -W 0.3");
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(27), &b""[..]));
        // Ends by itself, once all are deleted.
        let removed = ok(broker, "sub -t cli/r/# --retained-only --remove-retained -W 20");
        assert_eq!(removed.lines().count(), 2);
        let output = run(broker, "sub -t cli/r/# -W 0.3");
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(27), &b""[..]));
    });
}

#[test]
fn a_will_is_published_for_who_is_killed_and_not_for_who_is_interrupted() {
    on_all(|broker| {
        let sub = Sub::start(broker, "-t cli/will/+ -v -C 1");
        let polite = Sub::start(broker, "-t cli/x --will-topic cli/will/polite --will-payload no");
        polite.signal(rustix::process::Signal::INT);
        assert_eq!(polite.finish().1, 0);
        let killed = Sub::start(
            broker,
            "-t cli/x --will-topic cli/will/killed --will-payload gone --will-qos 1",
        );
        killed.signal(rustix::process::Signal::KILL);
        assert_eq!(sub.finish(), ("cli/will/killed gone\n".into(), 0));
    });
}

#[test]
fn a_session_that_is_kept_loses_and_repeats_nothing() {
    on_all(|broker| {
        for version in ["311", "5"] {
            let session = format!("sub -V {version} -c -i cli-kept-{version} -q 2 -t cli/kept");
            ok(broker, &format!("{session} -E"));
            for n in 1..=3 {
                ok(broker, &format!("pub -t cli/kept -q 2 -m m{n}"));
            }
            assert_eq!(ok(broker, &format!("{session} -C 2 -W 20")), "m1\nm2\n");
            assert_eq!(ok(broker, &format!("{session} -C 1 -W 20")), "m3\n");
            ok(broker, &format!("sub -V {version} -i cli-kept-{version} -t cli/kept -E"));
        }
    });
}

#[test]
fn properties_travel() {
    on_all(|broker| {
        let sub = Sub::start(
            broker,
            "-t cli/p -C 1 -D subscribe subscription-identifier 9 -F %p|%C|%R|%D|%F|%P|%S",
        );
        ok(
            broker,
            "pub -t cli/p -m hi -D publish content-type text -D publish response-topic re \
             -D publish user-property k v -D publish correlation-data co \
             -D publish user-property k w -D publish payload-format-indicator 1",
        );
        assert_eq!(sub.finish(), ("hi|text|re|co|1|k:v k:w|9\n".into(), 0));
    });
}

#[test]
fn request_and_response() {
    on_all(|broker| {
        for version in ["5", "311"] {
            let topic = format!("cli/rr/{version}");
            let asked = Sub::start(broker, &format!("-t {topic} -C 1 -F %R|%D"));
            let asking = noctule(
                broker,
                &format!("rr -d -V {version} -t {topic} -e cli/answer -m question -v -W 20"),
            )
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
            let (request, code) = asked.finish();
            assert_eq!(code, 0);
            let answer = "pub -t cli/answer -q 1 -m";
            if version == "5" {
                let (to, correlation) = request.trim_end().split_once('|').unwrap();
                assert_eq!((to, correlation.len()), ("cli/answer", 16));
                ok(broker, &format!("{answer} wrong -D publish correlation-data nobody"));
                ok(broker, &format!("{answer} right -D publish correlation-data {correlation}"));
            } else {
                assert_eq!(request, "|\n");
                ok(broker, &format!("{answer} right"));
            }
            let output = asking.wait_with_output().unwrap();
            assert_eq!(success(&output), "cli/answer right\n");
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(said.contains("response after"), "{said}");
            assert_eq!(said.contains("discarded a message"), version == "5", "{said}");
        }
        // A responder that knows nothing of correlation data, on a topic that both know.
        let asked = Sub::start(broker, "-t cli/rr/plain -C 1");
        let asking = noctule(broker, "rr -t cli/rr/plain -e cli/plain -m question -W 20")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(asked.finish(), ("question\n".to_owned(), 0));
        ok(broker, "pub -t cli/plain -m answer");
        assert_eq!(success(&asking.wait_with_output().unwrap()), "answer\n");
        // On a topic of its own, it has to echo them.
        let asked = Sub::start(broker, "-t cli/rr/own -C 1 -F %R");
        let asking = noctule(broker, "rr -d -t cli/rr/own -m question -W 2")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        ok(broker, &format!("pub -t {} -m answer", asked.finish().0.trim_end()));
        let output = asking.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("no correlation data"), "{said}");
        assert_eq!(output.status.code(), Some(27));
        let (code, said) = bad(broker, "rr -t cli/nobody -m question -W 0.3");
        assert_eq!((code, &said[..]), (27, "noctule: no response in time (-W)\n"));
    });
}

#[test]
fn a_large_message_and_a_closed_pipe() {
    on_all(|broker| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![b'z'; 1_500_000]).unwrap();
        let sub = Sub::start(broker, "-t cli/large -q 1 -C 1 -N");
        ok(broker, &format!("pub -t cli/large -q 1 -f {}", file.path().display()));
        let (text, code) = sub.finish();
        assert_eq!((text.len(), code), (1_500_000, 0));

        let mut sub = Sub::start(broker, "-t cli/pipe");
        drop(sub.child.stdout.take());
        ok(broker, "pub -t cli/pipe -m x");
        let mut said = String::new();
        sub.stderr.read_to_string(&mut said).unwrap();
        assert_eq!((sub.child.wait().unwrap().code(), &said[..]), (Some(0), ""));
    });
}

/// Against nothing, or before there is a connection.
#[test]
fn wrong_use_is_said_in_one_line() {
    let said = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_noctule")).args(arguments).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    // Bound and not listening: nobody else can have it.
    let port = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    port.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let number = port.local_addr().unwrap().as_socket().unwrap().port().to_string();
    let (code, text) = said(&["pub", "-h", "127.0.0.1", "-p", &number, "-t", "x", "-m", "y"]);
    let expected = format!("cannot connect to 127.0.0.1:{number}: Connection refused");
    assert!(code == 1 && text.contains(&expected), "{code} {text}");
    for (arguments, expected) in [
        (&["pub", "-m", "y"][..], "-t TOPIC is missing"),
        (&["pub", "-t", "a/#", "-m", "y"], "\"a/#\""),
        (&["pub", "-t", "a"], "-m, -f, -l, -n and -s"),
        (&["pub", "-t", "a", "-m", "x", "-n"], "cannot be used with"),
        (
            &["pub", "-t", "a", "-m", "x", "-V", "311", "-D", "connect", "receive-maximum", "1"],
            "-V 5",
        ),
        (&["pub", "-t", "a", "-f", "/no/such/file"], "/no/such/file"),
        (&["sub"], "-t FILTER is missing"),
        (&["sub", "-t", "a#"], "\"a#\""),
        (&["sub", "-t", "a", "-F", "%y"], "%y"),
        (&["sub", "-t", "a", "-c"], "--id"),
        (&["rr", "-t", "a", "-l"], "noctule pub"),
    ] {
        let (code, text) = said(arguments);
        assert!(code == 2 && text.contains(expected), "{arguments:?}: {code} {text}");
    }
}
