//! Enhanced authentication: AUTH before CONNACK and later. The broker of these tests runs within
//! their own process, on real sockets, because it has a method that no broker of a user has.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use noctule::broker::{Claim, Exchange, Method, Outcome};
use noctule::codec::mqtt::{Connect, ConnectProperties, QoS, ReasonCode, Version, Will};
use noctule::ids::ShardId;
use noctule::server::config::{self, Config, Listener, ShardCount, raw::Settings};
use noctule::server::extensions::Extensions;
use noctule::server::{self, Server};

use super::notation::packet;
use super::support::broker::external;
use super::support::packets::{connect, publish};
use super::support::{self, Wire, combinations};

use Version::{V5, V311};

/// Two rounds: each challenge is a number, its answer that number, doubled.
#[derive(Debug)]
struct Doubling;

struct Doubled(u32);

impl Method for Doubling {
    fn name(&self) -> &str {
        "DOUBLE"
    }

    fn begin(&mut self, _: &Claim<'_>) -> Box<dyn Exchange> {
        Box::new(Doubled(0))
    }
}

impl Exchange for Doubled {
    fn step(&mut self, data: Option<&[u8]>) -> Outcome {
        self.0 += 1;
        match (self.0, data) {
            (1, Some(b"at once")) => Outcome::Success { data: None, user_name: None },
            (1, _) => Outcome::Continue(Some(b"4".to_vec())),
            (2, Some(b"8")) => Outcome::Continue(Some(b"21".to_vec())),
            (3, Some(b"42")) => Outcome::Success { data: Some(b"ok".to_vec()), user_name: None },
            (_, Some(b"banned")) => Outcome::Failure(ReasonCode::BANNED),
            _ => Outcome::Failure(ReasonCode::NOT_AUTHORIZED),
        }
    }
}

#[derive(Debug)]
struct WithDoubling;

impl Extensions for WithDoubling {
    fn methods(&self, _: ShardId) -> Vec<Box<dyn Method>> {
        vec![Box::new(Doubling)]
    }
}

/// A broker in this process.
struct Embedded {
    server: Server,
}

impl Embedded {
    fn connect(&self) -> Wire {
        Wire::open(self.addr())
    }

    fn addr(&self) -> SocketAddr {
        self.server.ready().listeners[0]
    }

    /// A counter of the broker layer, over all shards.
    fn count(&self, name: &str) -> u64 {
        let mut sum = 0;
        for shard in self.server.stats() {
            shard.broker.each(|counter, count| sum += if counter == name { count } else { 0 });
        }
        sum
    }

    /// A client that has gone through the whole exchange.
    fn online(&self, connect: Connect<'_>) -> Wire {
        let mut wire = self.challenged(connect);
        wire.send_bytes(&auth(0x18, "8"));
        wire.expect_bytes(&auth(0x18, "21"));
        wire.send_bytes(&auth(0x18, "42"));
        assert_eq!(wire.frame()[3], 0, "CONNACK says yes");
        wire
    }

    /// A client that has been asked the first question.
    fn challenged(&self, connect: Connect<'_>) -> Wire {
        let mut wire = self.connect();
        wire.send(&noctule::codec::mqtt::Packet::Connect(connect));
        wire.expect_bytes(&auth(0x18, "4"));
        wire
    }
}

/// Runs `test` on every combination. At the end no exchange is left.
fn on_all(change: impl Fn(&mut Config), test: impl Fn(&Embedded)) {
    if external().is_some() {
        return support::skip("enhanced authentication", "it needs a broker with a method");
    }
    for combination in combinations() {
        println!("on {combination}");
        let data = tempfile::tempdir().expect("a data directory");
        let mut config = config::resolve(Settings::default()).expect("the defaults are right");
        config.listeners = vec![Listener { address: ([127, 0, 0, 1], 0).into() }];
        config.shards = ShardCount::Exactly(combination.shards);
        config.io = combination.io.parse().expect("a backend");
        config.data = data.path().to_owned();
        change(&mut config);
        let server = server::start(&config, Arc::new(WithDoubling)).expect("it starts");
        let broker = Embedded { server };
        test(&broker);
        let last = broker.server.stop().expect("it stops");
        let sum = |count: fn(&noctule::broker::Stats) -> u64| -> u64 {
            last.iter().map(|shard| count(&shard.broker)).sum()
        };
        let ended = sum(|s| s.authentications_succeeded + s.authentications_failed);
        assert_eq!(sum(|s| s.authentications_begun), ended);
    }
}

/// AUTH with the method of these tests.
fn auth(reason: u8, data: &str) -> Vec<u8> {
    let data = if data.is_empty() { String::new() } else { format!("16 '{data}'") };
    packet(0xf0, &format!("{reason:02x} {{15 'DOUBLE' {data}}}"))
}

fn claiming(client_id: &str) -> Connect<'_> {
    let properties = ConnectProperties {
        authentication_method: Some("DOUBLE"),
        authentication_data: Some(b"hello"),
        // No words for people: what comes can be compared byte by byte.
        request_problem_information: Some(false),
        ..ConnectProperties::default()
    };
    Connect { properties, ..connect(V5, client_id) }
}

fn with_will(connect: Connect<'_>) -> Connect<'_> {
    let will = Will {
        topic: "will",
        payload: b"a storm",
        qos: QoS::AtMostOnce,
        retain: false,
        delay_interval: 0,
        properties: Default::default(),
    };
    Connect { will: Some(will), ..connect }
}

/// All that still comes, to the end of the stream; a reset is no end.
fn rest(wire: &Wire) -> Vec<u8> {
    let mut all = Vec::new();
    let mut stream = wire.stream();
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a read timeout");
    stream.read_to_end(&mut all).expect("the end of the stream, and not a reset");
    all
}

/// CONNACK refuses, with or without words: nothing else comes.
fn assert_refused(wire: &Wire, reason: u8) {
    let got = rest(wire);
    assert!(got.len() > 4 && got.len() == 2 + usize::from(got[1]), "one packet: {got:02x?}");
    assert_eq!(got[..4], [0x20, got[1], 0, reason]);
}

/// Two rounds, byte by byte: the server's AUTH says Continue, each packet names the method, the last
/// data come with CONNACK. Wherever the client is at home, and whatever comes with its CONNECT.
///
/// v5: 4.12.0-2, 4.12.0-3, 4.12.0-5, 3.15.2-1
/// family: 19, 27
#[test]
fn an_exchange_of_two_rounds() {
    on_all(
        |_| {},
        |broker| {
            for number in 0..6 {
                let id = format!("client-{number}");
                let mut wire = broker.challenged(claiming(&id));
                wire.send_bytes(&auth(0x18, "8"));
                wire.expect_bytes(&auth(0x18, "21"));
                // What is sent before CONNACK has come may only be this.
                wire.send_bytes(&auth(0x18, "42"));
                let connack = wire.frame();
                assert_eq!(connack[..4], [0x20, connack[1], 0, 0]);
                let property = packet(0, "15 'DOUBLE' 16 'ok'");
                assert!(connack.ends_with(&property[2..]), "{connack:02x?}");
                wire.expect_nothing_before_ping();
            }
            // All at once: a client may know the questions.
            let mut wire = broker.connect();
            wire.send(&noctule::codec::mqtt::Packet::Connect(claiming("fast")));
            wire.send_bytes(&[auth(0x18, "8"), auth(0x18, "42")].concat());
            wire.expect_bytes(&auth(0x18, "4"));
            wire.expect_bytes(&auth(0x18, "21"));
            assert_eq!(wire.frame()[3], 0);
            assert_eq!(broker.count("authentications_succeeded"), 7);
            // Without a question.
            let mut wire = broker.connect();
            let mut at_once = claiming("at once");
            at_once.properties.authentication_data = Some(b"at once");
            wire.handshake(at_once);
        },
    );
}

/// Who names no method never hears of one, and may not send AUTH.
///
/// v5: 4.12.0-6, 4.12.0-7
/// family: 27
#[test]
fn without_a_method() {
    on_all(
        |_| {},
        |broker| {
            for reason in [0x18, 0x19] {
                let mut wire = broker.connect();
                wire.send(&noctule::codec::mqtt::Packet::Connect(connect(V5, "plain")));
                let connack = wire.frame();
                assert_eq!(connack[3], 0);
                assert!(!connack.windows(6).any(|bytes| bytes == b"DOUBLE"), "{connack:02x?}");
                wire.send_bytes(&auth(reason, "8"));
                wire.expect_disconnect(ReasonCode::PROTOCOL_ERROR);
            }
            // As a first packet; in a version that has no AUTH.
            let mut wire = broker.connect();
            wire.send_bytes(&auth(0x18, "8"));
            assert_eq!(rest(&wire), b"");
            let mut wire = broker.connect();
            wire.handshake(connect(V311, "old"));
            wire.send_bytes(&auth(0x18, "8"));
            assert_eq!(rest(&wire), b"");
        },
    );
}

/// Data without a method in CONNECT; a method that is not there: CONNACK says so, and closes.
///
/// v5: 4.12.0-1
/// family: 27
#[test]
fn a_connect_that_cannot_begin_one() {
    on_all(
        |_| {},
        |broker| {
            let rows = [("16 '4'", 0x82), ("15 'double'", 0x8c), ("15 'DOUBLE' 15 'DOUBLE'", 0x82)];
            for (properties, reason) in rows {
                let mut wire = broker.connect();
                let body = format!("'MQTT' 05 02 003c {{{properties}}} 'c'");
                wire.send_bytes(&packet(0x10, &body));
                assert_refused(&wire, reason);
            }
        },
    );
}

/// The method says no, at once or in the end: one CONNACK with its reason, no DISCONNECT, no Will;
/// nothing behind it is looked at, and it arrives although more was sent.
///
/// v5: 4.12.0-4, 3.14.0-1
/// family: 19, 33, 79
#[test]
fn a_failure_is_said_by_connack() {
    on_all(
        |_| {},
        |broker| {
            let mut other = broker.connect();
            other.handshake(connect(V5, "other"));
            other.subscribe("#", QoS::AtMostOnce);
            for (answer, reason) in [("9", 0x87), ("banned", 0x8a)] {
                let mut wire = broker.challenged(with_will(claiming("client")));
                let mut all = auth(0x18, answer);
                all.extend(packet(0x30, "'t' {}").repeat(5000));
                wire.send_bytes(&all);
                assert_refused(&wire, reason);
            }
            // Its client id is as free as before, and nothing of it was published.
            let mut client = broker.connect();
            assert!(!client.handshake(connect(V5, "client")));
            client.publish(publish("next", QoS::AtMostOnce, b""));
            other.expect_publish("next", QoS::AtMostOnce, b"");
        },
    );
}

/// Between CONNECT and CONNACK only AUTH, as agreed, and DISCONNECT may come.
///
/// v5: 3.1.2-30, 4.12.0-3, 4.12.0-5, 3.15.1-1, 3.15.2-1, 3.14.0-1
/// family: 27, 79
#[test]
fn what_may_not_come_before_connack() {
    on_all(
        |_| {},
        |broker| {
            let rows = [
                (packet(0xc0, ""), 0x82),
                (packet(0x30, "'t' {}"), 0x82),
                (packet(0x82, "0001 {} 't' 00"), 0x82),
                (packet(0x10, "'MQTT' 05 02 003c {15 'DOUBLE'} 'c'"), 0x82),
                (auth(0x19, ""), 0x82),
                (auth(0x00, ""), 0x82),
                (auth(0x01, ""), 0x82),
                (packet(0xf0, ""), 0x82),
                (packet(0xf0, "18 {15 'OTHER' 16 '8'}"), 0x82),
                (packet(0xf0, "18 {16 '8'}"), 0x82),
                (packet(0xf0, "18 {15 'DOUBLE' 16 '8' 16 '8'}"), 0x82),
                (packet(0xf1, "18 {15 'DOUBLE' 16 '8'}"), 0x81),
                (packet(0xf8, "18 {15 'DOUBLE' 16 '8'}"), 0x81),
            ];
            for (bytes, reason) in rows {
                println!("{bytes:02x?}");
                let mut wire = broker.challenged(claiming("c"));
                wire.send_bytes(&bytes);
                assert_refused(&wire, reason);
            }
            let mut wire = broker.challenged(with_will(claiming("c")));
            wire.send_hex("e0 00");
            assert_eq!(rest(&wire), b"");
            assert_eq!(broker.count("wills_published"), 0);
            assert_eq!(broker.count("sessions_created"), 0);
        },
    );
}

/// A client may prove itself again at any time, by the same method; all else goes on meanwhile.
///
/// v5: 4.12.1-1, 4.12.0-5, 3.15.2-1
/// family: 27
#[test]
fn re_authentication() {
    on_all(
        |_| {},
        |broker| {
            let mut other = broker.connect();
            other.handshake(connect(V5, "other"));
            let mut wire = broker.online(claiming("client"));
            wire.subscribe("t", QoS::AtLeastOnce);
            for _ in 0..2 {
                wire.send_bytes(&auth(0x19, "hello again"));
                wire.expect_bytes(&auth(0x18, "4"));
                other.publish(publish("t", QoS::AtLeastOnce, b"meanwhile"));
                wire.take_publish("t", QoS::AtLeastOnce, b"meanwhile");
                wire.send_bytes(&auth(0x18, "8"));
                wire.expect_bytes(&auth(0x18, "21"));
                wire.expect_nothing_before_ping();
                wire.send_bytes(&auth(0x18, "42"));
                wire.expect_bytes(&auth(0x00, "ok"));
            }
            wire.send_bytes(&auth(0x19, "at once"));
            wire.expect_bytes(&auth(0x00, ""));
        },
    );
}

/// One that fails, or that is not as agreed, ends the connection with a DISCONNECT, which arrives
/// although more was sent. It is no good-bye: the Will is published.
///
/// v5: 4.12.1-1, 4.12.1-2, 4.12.0-5, 3.15.1-1, 3.15.2-1
/// family: 27, 79
#[test]
fn a_re_authentication_that_fails() {
    on_all(
        |_| {},
        |broker| {
            let mut other = broker.connect();
            other.handshake(connect(V5, "other"));
            other.subscribe("will", QoS::AtMostOnce);
            let again = |then: Vec<u8>| [auth(0x19, ""), then].concat();
            let rows = [
                (again(auth(0x18, "9")), true, 0x87),
                // DISCONNECT has no "Banned".
                (again(auth(0x18, "banned")), true, 0x87),
                (again(auth(0x19, "")), true, 0x82),
                (again(packet(0xf0, "18 {15 'OTHER' 16 '8'}")), true, 0x82),
                (packet(0xf0, "19 {15 'OTHER'}"), false, 0x82),
                (auth(0x18, "8"), false, 0x82),
                (auth(0x00, ""), false, 0x82),
                (packet(0xf2, "19 {15 'DOUBLE'}"), false, 0x81),
            ];
            for (bytes, is_asked, reason) in rows {
                println!("{bytes:02x?}");
                let mut wire = broker.online(with_will(claiming("client")));
                let pings = [0xc0, 0].repeat(5000);
                wire.send_bytes(&[bytes, pings].concat());
                let question = if is_asked { auth(0x18, "4") } else { Vec::new() };
                assert_eq!(rest(&wire), [question, vec![0xe0, 1, reason]].concat());
                other.expect_publish("will", QoS::AtMostOnce, b"a storm");
            }
        },
    );
}

/// The identifier of somebody who is online is not enough to drive them out: that takes success.
///
/// family: 27
#[test]
fn takeover_waits_for_success() {
    on_all(
        |_| {},
        |broker| {
            let mut online = broker.online(claiming("client"));
            let mut stranger = broker.challenged(claiming("client"));
            online.expect_nothing_before_ping();
            stranger.send_bytes(&auth(0x18, "9"));
            assert_refused(&stranger, 0x87);
            online.expect_nothing_before_ping();
            let mut newer = broker.online(claiming("client"));
            online.expect_disconnect(ReasonCode::SESSION_TAKEN_OVER);
            newer.expect_nothing_before_ping();
        },
    );
}

/// Who does not answer is refused when the time for a CONNECT is over.
///
/// v5: 4.12.0-4, 4.12.1-2
#[test]
fn the_exchange_is_bounded_in_time() {
    // Long enough for a busy machine to answer the one that goes on.
    let short = |config: &mut Config| config.limits.connect_timeout = Duration::from_secs(5);
    on_all(short, |broker| {
        let wire = broker.challenged(claiming("slow"));
        let mut again = broker.online(claiming("again"));
        again.send_bytes(&auth(0x19, ""));
        assert_refused(&wire, 0x87);
        again.expect_bytes(&auth(0x18, "4"));
        again.expect_disconnect(ReasonCode::NOT_AUTHORIZED);
        assert_eq!(broker.count("authentications_timed_out"), 2);
    });
}

/// Before CONNACK a packet may be no larger than a CONNECT, then as large as ever. Data are bounded.
/// To a client that takes only small packets an AUTH carries nothing that could be left out.
///
/// v5: 3.15.2-2, 3.15.2-3, 3.1.2-24
#[test]
fn the_exchange_is_bounded_in_size() {
    on_all(
        |_| {},
        |broker| {
            let mut wire = broker.challenged(claiming("large"));
            wire.send_hex("f0 ffff3f");
            assert_refused(&wire, 0x95);
            let mut wire = broker.challenged(claiming("large"));
            wire.send_bytes(&auth(0x18, &"x".repeat(60_000)));
            assert_refused(&wire, 0x97);
            let mut wire = broker.online(claiming("large"));
            wire.subscribe("t", QoS::AtMostOnce);
            let payload = vec![b'x'; 500_000];
            wire.publish(publish("t", QoS::AtMostOnce, &payload));
            wire.expect_publish("t", QoS::AtMostOnce, &payload);
            // The second question is the larger one, and this client cannot take it.
            let mut small = claiming("small");
            small.properties.maximum_packet_size = Some(auth(0x18, "4").len() as u32);
            let mut wire = broker.challenged(small);
            wire.send_bytes(&auth(0x18, "8"));
            assert_refused(&wire, 0x95);
        },
    );
}

/// The broker stops: who is online is told, who is not yet is not.
///
/// v5: 3.14.0-1
#[test]
fn the_broker_stops() {
    if external().is_some() {
        return;
    }
    on_all(
        |_| {},
        |outer| {
            // One more broker, so that the outer one can be left to `on_all`.
            drop(outer.connect());
            let data = tempfile::tempdir().expect("a data directory");
            let mut config = config::resolve(Settings::default()).expect("the defaults are right");
            config.listeners = vec![Listener { address: ([127, 0, 0, 1], 0).into() }];
            config.shards = ShardCount::Exactly(outer.server.ready().shards);
            config.io = outer.server.ready().io.parse().expect("a backend");
            config.data = data.path().to_owned();
            let server = server::start(&config, Arc::new(WithDoubling)).expect("it starts");
            let broker = Embedded { server };
            let early = broker.challenged(claiming("early"));
            let mut online = broker.online(claiming("online"));
            online.send_bytes(&auth(0x19, ""));
            online.expect_bytes(&auth(0x18, "4"));
            let last = broker.server.stop().expect("it stops");
            online.expect_disconnect(ReasonCode::SERVER_SHUTTING_DOWN);
            assert_eq!(rest(&early), b"");
            let failed: u64 = last.iter().map(|s| s.broker.authentications_failed).sum();
            assert_eq!(failed, 2);
        },
    );
}
