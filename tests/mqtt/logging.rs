//! What the broker logs of single clients: at debug level what happens to them and why, in lines
//! that no client can forge, and never a secret.

use std::time::Duration;

use noctule::codec::mqtt::{Connect, ConnectProperties, Packet, ReasonCode, Version};

use super::support::broker::external;
use super::support::packets::connect;
use super::support::{Broker, combinations};

use Version::{V5, V311};

/// A client id, a user name and a method that would like to be log lines.
const FORGED: &str = "evil\n2026-01-01T00:00:00Z  INFO forged\r\u{1b}[31m\u{85}";
const ESCAPED: &str = r"evil\n2026-01-01T00:00:00Z  INFO forged\r\u{1b}[31m\u{85}";
const SECRET: &str = "correct horse battery staple";

/// All that a broker logs while clients connect, are refused, are taken over and go.
fn logged(level: &str, format: &str) -> String {
    let combination = combinations()[0];
    let mut broker = Broker::build(combination)
        .arg(format!("--log-level={level}"))
        .arg(format!("--log-format={format}"))
        .start();
    let credentials = |version, id| Connect {
        user_name: Some(FORGED),
        password: Some(SECRET.as_bytes()),
        ..connect(version, id)
    };
    for version in [V311, V5] {
        let mut old = broker.connect();
        old.handshake(credentials(version, FORGED));
        let mut new = broker.connect();
        new.handshake(credentials(version, FORGED));
        old.expect_disconnect(ReasonCode::SESSION_TAKEN_OVER);
        new.send_hex("e0 00");
        new.expect_closed();
    }
    let long = "x".repeat(60_000);
    let mut wire = broker.connect();
    wire.handshake(credentials(V5, &long));
    wire.send_hex("36 00");
    wire.expect_disconnect(ReasonCode::MALFORMED_PACKET);
    let properties = ConnectProperties {
        authentication_method: Some(FORGED),
        authentication_data: Some(SECRET.as_bytes()),
        ..ConnectProperties::default()
    };
    let mut wire = broker.connect();
    wire.send(&Packet::Connect(Connect { properties, ..credentials(V5, "refused") }));
    assert_eq!(wire.frame()[3], 0x8c);
    wire.expect_closed();
    let mut wire = broker.connect();
    wire.handshake(credentials(V5, "lost"));
    wire.reset();
    broker.wait_for_count("loop", "connections", |count| count == 0);
    broker.signal(rustix::process::Signal::TERM);
    let ended = broker.wait(Duration::from_secs(15));
    assert!(ended.status.success());
    // The counters are no log lines.
    ended.stderr.lines().filter(|line| !line.starts_with("{\"pid\"")).collect::<Vec<_>>().join("\n")
}

/// Connected, refused, taken over, disconnected: by whom and why. Nothing a client chose can begin a
/// line or colour one, and it is cut.
///
/// family: 84
#[test]
fn what_happens_to_clients_is_logged_safely() {
    if external().is_some() {
        return;
    }
    let log = logged("debug", "text");
    for (expected, count) in [
        (format!("client={ESCAPED} "), 8),
        (" connected client=".to_owned(), 6),
        (" refused client=refused ".to_owned(), 1),
        ("Bad authentication method (0x8C)".to_owned(), 1),
        ("by=\"a newer connection\" reason=Session taken over (0x8E)".to_owned(), 2),
        ("by=\"the client\"".to_owned(), 2),
        ("reason=Malformed Packet (0x81)".to_owned(), 1),
        ("by=\"the network\" reason=connection lost".to_owned(), 1),
        ("…(59936 more bytes)".to_owned(), 2),
    ] {
        assert_eq!(log.matches(&expected).count(), count, "{expected} in:\n{log}");
    }
    for line in log.lines() {
        assert!(!line.starts_with("2026-01-01T00:00:00Z"), "forged: {line}");
        assert!(line.chars().all(|c| !c.is_control()), "{line:?}");
        assert!(line.len() < 1000, "{} bytes: {line}", line.len());
    }
    // At the level of a user nothing of it is there.
    assert!(!logged("info", "text").contains("evil"));
}

/// A password, or what an authentication method is told, is in no log line of any level.
///
/// family: 85
#[test]
fn secrets_are_never_logged() {
    if external().is_some() {
        return;
    }
    for format in ["text", "json"] {
        let log = logged("trace", format);
        assert!(log.contains("Bad authentication method"), "{log}");
        assert!(!log.contains("horse") && !log.contains("staple"), "{log}");
        // Nor as numbers, as bytes are shown for debugging, or in hex.
        assert!(!log.contains("99, 111, 114") && !log.contains("636f7272"), "{log}");
    }
}
