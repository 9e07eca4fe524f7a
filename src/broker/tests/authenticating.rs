//! Enhanced authentication and re-authentication, with a method that only these tests have.
#![forbid(unsafe_code)]

use crate::broker::auth::{Authorize, ConnectRequest};
use crate::broker::testing::*;
use crate::broker::{Auth, Claim, Config, Decision, Exchange, Method, Outcome, Stats};
use crate::codec::mqtt::{
    Connect, ConnectProperties, Disconnect, Packet, QoS, ReasonCode, Version, frame_len,
};
use crate::ids::ConnId;
use crate::limits::{AUTHENTICATION_DATA_BYTES_MAX, AUTHENTICATION_STEPS_MAX};

use ReasonCode as Reason;

/// Two rounds: each challenge is a number, and its answer that number, doubled.
#[derive(Debug)]
struct Doubling;

struct Doubled {
    user_name: Box<str>,
    round: u32,
}

impl Method for Doubling {
    fn name(&self) -> &str {
        "DOUBLE"
    }

    fn begin(&mut self, claim: &Claim<'_>) -> Box<dyn Exchange> {
        assert!(!format!("{claim:?}").contains("secret"), "PITFALLS 85");
        assert!(!claim.client_id.is_empty());
        assert!(!claim.is_again || claim.password.is_none());
        Box::new(Doubled { user_name: claim.user_name.unwrap_or("nobody").into(), round: 0 })
    }
}

impl Exchange for Doubled {
    fn step(&mut self, data: Option<&[u8]>) -> Outcome {
        self.round += 1;
        let text = |text: &str| Some(Vec::from(text));
        match (self.round, data) {
            (_, Some(b"later")) => Outcome::Later,
            (_, Some(b"again")) => Outcome::Continue(None),
            (_, Some(b"much")) => Outcome::Continue(Some(vec![b'x'; 70_000])),
            (_, Some(b"large")) => Outcome::Continue(Some(vec![b'x'; 500])),
            (_, Some(b"banned")) => Outcome::Failure(Reason::BANNED),
            (_, Some(b"rename")) => {
                Outcome::Success { data: None, user_name: Some("somebody else".into()) }
            }
            (1, _) => Outcome::Continue(text("4")),
            (2, Some(b"8")) => Outcome::Continue(text("21")),
            (3, Some(b"42")) => Outcome::Success {
                data: text("well done"),
                user_name: Some(self.user_name.clone()),
            },
            _ => Outcome::Failure(Reason::NOT_AUTHORIZED),
        }
    }
}

fn world() -> World {
    with_config(&Config::default())
}

fn with_config(config: &Config) -> World {
    let mut world = World::with_config(1, config);
    world.brokers[0].add_method(Box::new(Doubling));
    world
}

fn claiming(client_id: &str) -> Connect<'_> {
    let properties = ConnectProperties {
        authentication_method: Some("DOUBLE"),
        session_expiry_interval: Some(1000),
        ..ConnectProperties::default()
    };
    Connect { user_name: Some("user"), properties, ..hello(Version::V5, client_id) }
}

fn with_data<'a>(client_id: &'a str, data: &'a [u8]) -> Connect<'a> {
    let mut connect = claiming(client_id);
    connect.properties.authentication_data = Some(data);
    connect
}

fn auth_by<'a>(reason: Reason, method: Option<&'a str>, data: &'a str) -> Packet<'a> {
    Packet::Auth(crate::codec::mqtt::Auth {
        reason,
        authentication_method: method,
        authentication_data: (!data.is_empty()).then_some(data.as_bytes()),
        ..crate::codec::mqtt::Auth::default()
    })
}

fn answer(data: &str) -> Packet<'_> {
    auth_by(Reason::CONTINUE_AUTHENTICATION, Some("DOUBLE"), data)
}

fn again(data: &str) -> Packet<'_> {
    auth_by(Reason::RE_AUTHENTICATE, Some("DOUBLE"), data)
}

fn challenge(data: &str) -> Got {
    got_auth(Reason::CONTINUE_AUTHENTICATION, data)
}

fn got_auth(reason: Reason, data: &str) -> Got {
    Got::Auth { reason, method: "DOUBLE".into(), data: data.into() }
}

fn connack(reason: Reason) -> Got {
    Got::ConnAck { session_present: false, reason }
}

/// A client that has come through the whole exchange.
fn join(world: &mut World, connect: &Connect<'_>) -> Client {
    let client = world.connect(connect);
    assert_eq!(world.take(client), [challenge("4")]);
    world.send(client, &answer("8"));
    assert_eq!(world.take(client), [challenge("21")]);
    world.send(client, &answer("42"));
    let got = world.take(client);
    assert!(matches!(got[0], Got::ConnAck { reason: Reason::SUCCESS, .. }), "{got:?}");
    client
}

/// Begun, succeeded, failed.
fn counts(world: &World) -> (u64, u64, u64) {
    let Stats {
        authentications_begun: begun,
        authentications_succeeded: succeeded,
        authentications_failed: failed,
        ..
    } = *world.brokers[0].stats();
    (begun, succeeded, failed)
}

/// [MQTT-4.12.0-2], [MQTT-4.12.0-5], 3.2.2.3.17, 3.2.2.3.18; PITFALLS 27
#[test]
fn an_exchange_of_two_rounds() {
    let mut world = world();
    let client = join(&mut world, &Connect { password: Some(b"secret"), ..claiming("c") });
    world.connack(client, |p| {
        assert_eq!(p.authentication_method, Some("DOUBLE"));
        assert_eq!(p.authentication_data, Some(&b"well done"[..]));
    });
    world.send(client, &Packet::PingReq);
    assert_eq!(world.take(client), [Got::PingResp]);
    assert_eq!(counts(&world), (1, 1, 0));
    // Nothing of it is left to fire.
    assert_eq!(world.brokers[0].next_deadline(), None);
}

/// [MQTT-4.12.0-6]: who names no method hears of none.
#[test]
fn without_a_method_nothing_is_said_of_one() {
    let mut world = world();
    let (client, _) = world.join(&hello(Version::V5, "c"));
    world.connack(client, |p| {
        assert_eq!((p.authentication_method, p.authentication_data), (None, None));
    });
    assert_eq!(counts(&world), (0, 0, 0));
}

/// [MQTT-4.12.0-1], PITFALLS 19, 27: names are compared whole, and exactly.
#[test]
fn an_unknown_method_is_refused() {
    let mut world = world();
    for name in ["SCRAM-SHA-1", "double", "DOUBL", "DOUBLES", ""] {
        let mut connect = claiming("c");
        connect.properties.authentication_method = Some(name);
        let client = world.connect(&connect);
        assert_eq!(world.take(client), [connack(Reason::BAD_AUTHENTICATION_METHOD)]);
        assert!(world.is_closed(client));
    }
    assert_eq!(world.brokers[0].stats().connects_refused, 5);
    assert_eq!(counts(&world), (0, 0, 0));
}

/// [MQTT-4.12.0-4], [MQTT-3.14.0-1], PITFALLS 19, 33: one CONNACK, no DISCONNECT, no Will, no
/// session.
#[test]
fn a_failure_refuses_the_connect() {
    let mut world = world();
    let (watcher, _) = world.join(&hello(Version::V5, "w"));
    world.subscribe(watcher, "#", QoS::AtMostOnce);
    for (data, reason) in [("9", Reason::NOT_AUTHORIZED), ("banned", Reason::BANNED)] {
        let client = world.connect(&Connect { will: will("t", "x", 0), ..claiming("c") });
        assert_eq!(world.take(client), [challenge("4")]);
        world.send(client, &answer(data));
        assert_eq!(world.take(client), [connack(reason)]);
        assert!(world.is_closed(client));
    }
    let client = world.connect(&with_data("c", b"banned"));
    assert_eq!(world.take(client), [connack(Reason::BANNED)]);
    assert!(world.take(watcher).is_empty(), "no Will of a refused client");
    assert_eq!(world.brokers[0].session_count(), 1);
    assert_eq!(counts(&world), (3, 0, 3));
}

/// [MQTT-3.1.2-30], [MQTT-4.12.0-3], [MQTT-4.12.0-5], PITFALLS 27: what may not come before
/// CONNACK; CONNACK says so.
#[test]
fn only_its_auth_may_come_before_connack() {
    let go_on = Reason::CONTINUE_AUTHENTICATION;
    let rows = [
        Packet::PingReq,
        Packet::Connect(claiming("c")),
        Packet::Publish(publish("t", b"x", QoS::AtLeastOnce, 1)),
        again(""),
        auth_by(go_on, Some("OTHER"), "8"),
    ];
    for packet in rows {
        let mut world = world();
        let client = world.connect(&Connect { will: will("t", "x", 0), ..claiming("c") });
        assert_eq!(world.take(client), [challenge("4")]);
        world.send_all(client, &[packet, Packet::PingReq]);
        assert_eq!(world.take(client), [connack(Reason::PROTOCOL_ERROR)], "{packet:?}");
        assert!(world.is_closed(client));
        let stats = world.brokers[0].stats();
        assert_eq!((stats.protocol_errors, stats.connects_refused), (1, 1));
        assert_eq!(counts(&world), (1, 0, 1));
    }
    // Without a method; with a reserved reason; with reserved flags of the fixed header.
    for (frame, reason) in [
        (&[0xF0, 2, 0x18, 0][..], Reason::PROTOCOL_ERROR),
        (&[0xF0, 6, 0x01, 4, 0x15, 0, 1, b'M'], Reason::PROTOCOL_ERROR),
        (&[0xF1, 0], Reason::MALFORMED_PACKET),
        // A PUBLISH with Topic Alias 0: CONNACK has no "Topic Alias invalid".
        (&[0x30, 7, 0, 1, b't', 3, 0x23, 0, 0], Reason::PROTOCOL_ERROR),
    ] {
        let mut world = world();
        let client = world.connect(&claiming("c"));
        world.take(client);
        world.send_bytes(client, frame);
        assert_eq!(world.take(client), [connack(reason)], "{frame:?}");
        assert!(world.is_closed(client));
    }
}

/// 4.12: the client may leave at any point, with a DISCONNECT or without; it has no Will.
#[test]
fn a_client_leaves_before_connack() {
    let mut world = world();
    let (watcher, _) = world.join(&hello(Version::V5, "w"));
    world.subscribe(watcher, "#", QoS::AtMostOnce);
    let connect = Connect { will: will("t", "x", 0), ..claiming("c") };
    let client = world.connect(&connect);
    let last = Disconnect::new(Reason::DISCONNECT_WITH_WILL);
    world.send(client, &Packet::Disconnect(last));
    assert_eq!(world.take(client), [challenge("4")]);
    assert!(world.is_closed(client));
    let client = world.connect(&connect);
    world.cut(client);
    assert!(world.take(watcher).is_empty());
    assert_eq!(counts(&world), (2, 0, 2));
    assert_eq!(world.brokers[0].session_count(), 1);
    assert_eq!(world.brokers[0].next_deadline(), None);
}

/// PITFALLS 27: AUTH before CONNECT is no first packet, and one that nobody has agreed on ends the
/// connection. [MQTT-3.1.0-1], [MQTT-4.12.0-7]
#[test]
fn unsolicited_auth() {
    let mut world = world();
    let client = world.open(0, Version::V5);
    world.send(client, &answer("8"));
    assert!(world.is_closed(client) && world.take(client).is_empty());
    for packet in [answer("8"), again("")] {
        let (client, _) = world.join(&hello(Version::V5, "c"));
        world.send(client, &packet);
        assert_eq!(world.take(client), [Got::Disconnect(Reason::PROTOCOL_ERROR)]);
        assert!(world.is_closed(client));
    }
    // With a method, and yet nothing to answer; another method.
    let other = auth_by(Reason::RE_AUTHENTICATE, Some("OTHER"), "");
    for packet in [answer("8"), other] {
        let client = join(&mut world, &claiming("c"));
        world.send(client, &packet);
        assert_eq!(world.take(client), [Got::Disconnect(Reason::PROTOCOL_ERROR)], "{packet:?}");
        assert!(world.is_closed(client));
    }
}

/// [MQTT-4.12.1-1]: the session goes on beside it, and at its end AUTH says Success.
#[test]
fn re_authentication() {
    let mut world = world();
    let client = join(&mut world, &claiming("c"));
    world.subscribe(client, "t", QoS::AtMostOnce);
    for _ in 0..2 {
        world.send(client, &again(""));
        assert_eq!(world.take(client), [challenge("4")]);
        world.publish(client, "t", "x", QoS::AtMostOnce, 0);
        assert_eq!(world.take_payloads(client), ["x"]);
        world.send(client, &answer("8"));
        assert_eq!(world.take(client), [challenge("21")]);
        world.send(client, &answer("42"));
        assert_eq!(world.take(client), [got_auth(Reason::SUCCESS, "well done")]);
    }
    assert_eq!(counts(&world), (3, 3, 0));
    assert_eq!(world.brokers[0].next_deadline(), None);
    // A second one may not begin while one runs.
    world.send(client, &again(""));
    world.send(client, &again(""));
    assert_eq!(world.take(client), [challenge("4"), Got::Disconnect(Reason::PROTOCOL_ERROR)]);
    assert_eq!(counts(&world), (4, 3, 1));
}

/// [MQTT-4.12.1-2]: DISCONNECT, with a code that it can carry, and the end, as by an error: the
/// Will is published.
#[test]
fn a_failed_re_authentication_ends_the_connection() {
    let rows = [
        ("9", Reason::NOT_AUTHORIZED),
        ("banned", Reason::NOT_AUTHORIZED),
        // A user name may not change.
        ("rename", Reason::NOT_AUTHORIZED),
        ("much", Reason::IMPLEMENTATION_SPECIFIC_ERROR),
    ];
    for (data, reason) in rows {
        let mut world = world();
        let (watcher, _) = world.join(&hello(Version::V5, "w"));
        world.subscribe(watcher, "#", QoS::AtMostOnce);
        let client = join(&mut world, &Connect { will: will("t", "x", 0), ..claiming("c") });
        world.send(client, &again(""));
        world.send_all(client, &[answer(data), Packet::PingReq]);
        assert_eq!(world.take(client), [challenge("4"), Got::Disconnect(reason)], "{data}");
        assert!(world.is_closed(client));
        assert_eq!(world.take_payloads(watcher), ["x"]);
        assert_eq!(counts(&world), (2, 1, 1));
    }
}

/// A stranger with the client id of somebody who is online drives nobody out; a newer connection
/// that has proven itself does, and of two it is the newer whose CONNECT came later (SHARDS.md H3).
#[test]
fn takeover_waits_for_success() {
    let mut world = world();
    let online = join(&mut world, &claiming("c"));
    let stranger = world.connect(&claiming("c"));
    world.take(stranger);
    world.send(online, &Packet::PingReq);
    assert_eq!(world.take(online), [Got::PingResp]);
    world.send(stranger, &answer("wrong"));
    assert_eq!(world.take(stranger), [connack(Reason::NOT_AUTHORIZED)]);
    assert!(!world.is_closed(online) && world.take(online).is_empty());

    let early = world.connect(&claiming("c"));
    world.advance(1);
    let newer = join(&mut world, &claiming("c"));
    assert_eq!(world.take(online), [Got::Disconnect(Reason::SESSION_TAKEN_OVER)]);
    world.take(early);
    world.send(early, &answer("8"));
    world.send(early, &answer("42"));
    assert_eq!(world.take(early), [challenge("21")]);
    assert!(world.is_closed(early) && !world.is_closed(newer));
    assert_eq!(world.brokers[0].stats().takeovers_late, 1);
    // While it authenticates again it can be taken over as ever.
    world.send(newer, &again(""));
    let newest = join(&mut world, &claiming("c"));
    assert_eq!(world.take(newer), [challenge("4"), Got::Disconnect(Reason::SESSION_TAKEN_OVER)]);
    assert!(!world.is_closed(newest));
}

/// The time for a CONNECT bounds the whole exchange; a re-authentication has the same.
#[test]
fn an_exchange_ends_in_time() {
    let config =
        Config { connect_timeout: std::time::Duration::from_secs(10), ..Config::default() };
    let mut world = with_config(&config);
    let client = world.connect(&claiming("c"));
    world.advance(9);
    world.send(client, &answer("8"));
    assert_eq!(world.take(client), [challenge("4"), challenge("21")]);
    world.advance(2);
    assert_eq!(world.take(client), [connack(Reason::NOT_AUTHORIZED)]);
    assert!(world.is_closed(client));

    let client = join(&mut world, &claiming("c"));
    world.advance(1000);
    assert!(!world.is_closed(client));
    world.send(client, &again(""));
    world.advance(9);
    assert_eq!(world.take(client), [challenge("4")]);
    world.advance(2);
    assert_eq!(world.take(client), [Got::Disconnect(Reason::NOT_AUTHORIZED)]);
    assert_eq!(world.brokers[0].stats().authentications_timed_out, 2);
    assert_eq!(counts(&world), (3, 1, 2));
}

/// Keep alive begins with CONNACK, and AUTH is as good a sign of life as any.
#[test]
fn keep_alive() {
    let mut world = world();
    let client = join(&mut world, &Connect { keep_alive: 4, ..claiming("c") });
    world.advance(5);
    world.send(client, &again(""));
    world.advance(5);
    assert!(!world.is_closed(client));
    world.advance(2);
    assert_eq!(world.take(client), [challenge("4"), Got::Disconnect(Reason::KEEP_ALIVE_TIMEOUT)]);
    assert_eq!(counts(&world), (2, 1, 1));
    let client = world.connect(&Connect { keep_alive: 4, ..claiming("c") });
    world.advance(8);
    assert!(!world.is_closed(client));
}

/// Data and steps have bounds.
#[test]
fn an_exchange_is_bounded() {
    let mut world = world();
    let just = "x".repeat(AUTHENTICATION_DATA_BYTES_MAX);
    let over = "x".repeat(AUTHENTICATION_DATA_BYTES_MAX + 1);
    let client = world.connect(&with_data("c", over.as_bytes()));
    assert_eq!(world.take(client), [connack(Reason::QUOTA_EXCEEDED)]);
    let client = world.connect(&with_data("c", just.as_bytes()));
    assert_eq!(world.take(client), [challenge("4")]);
    world.send(client, &answer(&over));
    assert_eq!(world.take(client), [connack(Reason::QUOTA_EXCEEDED)]);

    let client = world.connect(&with_data("c", b"again"));
    for _ in 2..AUTHENTICATION_STEPS_MAX {
        world.send(client, &answer("again"));
    }
    assert_eq!(world.take(client).len(), AUTHENTICATION_STEPS_MAX as usize - 1);
    world.send(client, &answer("again"));
    assert_eq!(world.take(client), [connack(Reason::QUOTA_EXCEEDED)]);
    // What a method says is bounded too: by the protocol, and by what the client takes.
    let client = world.connect(&with_data("c", b"much"));
    assert_eq!(world.take(client), [connack(Reason::IMPLEMENTATION_SPECIFIC_ERROR)]);
    let mut small = with_data("c", b"large");
    small.properties.maximum_packet_size = Some(100);
    let client = world.connect(&small);
    assert_eq!(world.take(client), [connack(Reason::PACKET_TOO_LARGE)]);
    assert!(world.is_closed(client));
}

/// A stranger may not send more than a CONNECT could be; who is online may.
#[test]
fn packets_are_small_before_connack() {
    let mut world = world();
    let client = world.connect(&claiming("c"));
    let conn = ConnId { index: 0, generation: 1 };
    let before = world.brokers[0].packet_size_max(conn);
    world.send(client, &answer("8"));
    world.send(client, &answer("42"));
    assert!(before < world.brokers[0].packet_size_max(conn));
    assert_eq!(frame_len(&[0xC0, 0]), Ok(Some(2)));
}

/// Outcomes that come later: the connection waits before CONNACK, and goes on beside it afterwards.
#[test]
fn outcomes_may_come_later() {
    let mut world = world();
    let client = world.connect(&with_data("c", b"later"));
    world.send(client, &answer("8"));
    assert!(world.take(client).is_empty(), "what came behind waits");
    let conn = ConnId { index: 0, generation: 1 };
    let now = world.now;
    let tell = |world: &mut World, outcome| {
        world.brokers[0].handle_authentication(now, conn, outcome);
        world.settle();
    };
    tell(&mut world, Outcome::Later);
    assert!(world.take(client).is_empty());
    tell(&mut world, Outcome::Continue(Some(b"4".to_vec())));
    assert_eq!(world.take(client), [challenge("4"), challenge("21")]);
    // Nobody waits for this one.
    tell(&mut world, Outcome::Failure(Reason::BANNED));
    world.send(client, &answer("later"));
    tell(&mut world, Outcome::Success { data: Some(b"at last".to_vec()), user_name: None });
    assert_eq!(world.take(client), [connack(Reason::SUCCESS)]);
    world.connack(client, |p| assert_eq!(p.authentication_data, Some(&b"at last"[..])));

    world.send_all(client, &[again("later"), Packet::PingReq]);
    assert_eq!(world.take(client), [Got::PingResp]);
    tell(&mut world, Outcome::Success { data: None, user_name: Some("user".into()) });
    assert_eq!(world.take(client), [got_auth(Reason::SUCCESS, "")]);
    // While the method thinks it is not the client's turn.
    world.send_all(client, &[again("later"), answer("8")]);
    assert_eq!(world.take(client), [Got::Disconnect(Reason::PROTOCOL_ERROR)]);
    tell(&mut world, Outcome::Success { data: None, user_name: None });
    assert_eq!(counts(&world), (3, 2, 1));
}

/// The end of the broker: nothing is said before CONNACK, and no exchange is left behind.
#[test]
fn shutdown() {
    let mut world = world();
    let early = world.connect(&claiming("early"));
    let online = join(&mut world, &claiming("online"));
    world.send(online, &again(""));
    world.take(online);
    let now = world.now;
    world.brokers[0].handle_shutdown(now);
    world.settle();
    assert_eq!(world.take(early), [challenge("4")]);
    assert_eq!(world.take(online), [Got::Disconnect(Reason::SERVER_SHUTTING_DOWN)]);
    assert!(world.is_closed(early) && world.is_closed(online));
    assert_eq!(counts(&world), (3, 1, 2));
}

#[derive(Debug)]
struct Judge(Decision);

impl Authorize for Judge {
    fn connect(&mut self, request: &ConnectRequest<'_>) -> Decision {
        assert_eq!((request.method, request.user_name), (Some("DOUBLE"), Some("user")));
        assert_eq!(request.password, None);
        self.0
    }

    fn publish(&mut self, _: &str, _: &str) -> bool {
        true
    }

    fn subscribe(&mut self, _: &str, _: &str) -> bool {
        true
    }
}

/// Who a client is, the method says; whether that one may connect is decided as ever.
#[test]
fn a_proven_client_may_be_refused() {
    let mut world = world();
    let exchange = |world: &mut World| {
        let client = world.connect(&Connect { password: Some(b"secret"), ..claiming("c") });
        world.send(client, &answer("8"));
        world.send(client, &answer("42"));
        assert_eq!(world.take(client)[..2], [challenge("4"), challenge("21")]);
        client
    };
    for (decision, reason) in
        [(Decision::Refuse(Reason::BANNED), Reason::BANNED), (Decision::Accept, Reason::SUCCESS)]
    {
        world.brokers[0].set_auth(Auth::Decided(Box::new(Judge(decision))));
        let client = world.connect(&claiming("c"));
        world.send_all(client, &[answer("8"), answer("42")]);
        assert_eq!(world.take(client), [challenge("4"), challenge("21"), connack(reason)]);
        assert_eq!(world.is_closed(client), reason != Reason::SUCCESS);
        world.cut(client);
    }
    world.brokers[0].set_auth(Auth::Decided(Box::new(Judge(Decision::Later))));
    let mut world_later = world;
    let client = exchange(&mut world_later);
    let now = world_later.now;
    let conn = ConnId { index: 0, generation: 3 };
    world_later.brokers[0].handle_connect_decision(now, conn, Decision::Accept);
    world_later.settle();
    let got = world_later.take(client);
    assert!(matches!(got[..], [Got::ConnAck { reason: Reason::SUCCESS, .. }]), "{got:?}");
}

/// Client ids that we assign, a session that is resumed, and changes that CONNACK waits for are as
/// without an exchange.
#[test]
fn the_rest_of_connack_is_as_ever() {
    let config = Config { record_changes: true, ..Config::default() };
    let mut world = with_config(&config);
    let client = join(&mut world, &claiming(""));
    let assigned = world.connack(client, |p| p.assigned_client_id.map(String::from)).unwrap();
    world.leave(client);
    let client = join(&mut world, &Connect { clean_start: false, ..claiming(&assigned) });
    world.connack(client, |p| assert_eq!(p.assigned_client_id, None));
    assert_eq!(world.brokers[0].stats().sessions_resumed, 1);
    // Before MQTT 5.0 there is no method, and nothing of it.
    let (old, _) = world.join(&hello(Version::V311, "old"));
    world.send_bytes(old, &[0xF0, 0]);
    assert!(world.is_closed(old) && world.take(old).is_empty());
    assert_eq!(counts(&world), (2, 2, 0));
}
