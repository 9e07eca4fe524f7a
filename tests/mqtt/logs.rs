//! What the broker writes down: what clients call themselves cannot forge a line, and their secrets
//! stay theirs.

use noctule::codec::mqtt::{Connect, Version};

use super::notation::packet;
use super::support::packets::connect;
use super::support::{Broker, combinations};

use Version::{V5, V31, V311};

/// On every combination, in both formats, with a broker that logs all it can.
fn on_all_logging(look: impl Fn(&mut Broker, &str)) {
    for combination in combinations() {
        for format in ["text", "json"] {
            let mut broker = Broker::build(combination)
                .arg("--log-level=trace")
                .arg(format!("--log-format={format}"))
                .start();
            look(&mut broker, format);
            broker.stop();
        }
    }
}

/// User names, passwords and their like are in no line of the log, however much is logged, and in
/// no counter.
///
/// family: 85
#[test]
fn passwords_are_not_written_down() {
    on_all_logging(|broker, format| {
        for version in [V31, V311, V5] {
            let mut wire = broker.connect();
            wire.handshake(Connect {
                user_name: Some("somebody"),
                password: Some(b"open sesame"),
                ..connect(version, "keeps a secret")
            });
            wire.expect_nothing_before_ping();
            wire.reset();
        }
        // Refused ones, and a malformed one, are not shown, either.
        for (first, body) in [
            (0x10, "'MQTT' 05 c2 003c {15 'open' 16 'open sesame'} 'id' 'name' 'open sesame'"),
            (0x10, "'MQTT' 04 c0 003c '' 'name' 'open sesame'"),
            (0x10, "'MQTT' 04 c2 003c 'id' 'name' 'open sesame' 'open sesame'"),
            (0x10, "'MQTT' 05 c3 003c {} 'id' 'name' 'open sesame'"),
        ] {
            let mut wire = broker.connect();
            wire.send_bytes(&packet(first, body));
            let _ = wire.next_within(std::time::Duration::from_secs(10));
        }
        let stats = broker.stats().to_string();
        assert!(!stats.contains("sesame"), "{stats}");
        let written = broker.stderr();
        assert!(written.len() > 100, "{format}: nothing was logged");
        for secret in ["sesame", "6f70656e20736573616d65", "111, 112, 101, 110"] {
            assert!(!written.contains(secret), "{format}: {written}");
        }
    });
}

/// A client identifier may hold any characters; no line of the log begins where it says so, and no
/// terminal is told anything.
///
/// family: 84
#[test]
fn control_characters_are_not_written_down() {
    let id = "evil\n2026-01-01 ERROR forged\r\u{1b}[2J\u{7}\u{85}\u{9b}";
    on_all_logging(|broker, format| {
        for version in [V31, V311, V5] {
            let mut wire = broker.connect();
            wire.handshake(Connect { user_name: Some(id), ..connect(version, id) });
            wire.expect_nothing_before_ping();
            let mut newer = broker.connect();
            newer.handshake(connect(version, id));
            newer.send_bytes(&packet(0x36, "'a' 0001"));
            let _ = newer.next_within(std::time::Duration::from_secs(10));
        }
        let written = broker.stderr();
        for line in written.lines() {
            assert!(!line.starts_with("2026-01-01 ERROR forged"), "{written}");
            let control = line.chars().find(|c| c.is_control());
            assert_eq!(control, None, "{format}: {line:?}");
        }
    });
}
