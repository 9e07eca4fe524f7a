//! What the oracle and the clients have judged wrongly once, each as small as it comes: the seeds
//! that showed it were of other worlds than theirs are now.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use super::client::{Asked, Client, Stage};
use super::faults::{Faults, Kind};
use super::judge::judge_silent_end;
use super::network::{Network, now, set_now};
use super::oracle::{Message, Oracle, WillTerms};
use super::random::Random;
use super::terms::Terms;
use super::trace::Trace;
use crate::clock::Time;
use crate::codec::mqtt::{QoS, SubscriptionOptions, Version};

const HOUR: Duration = Duration::from_secs(3600);

fn terms() -> Terms {
    Terms {
        shards: 2,
        packet_max: 2000,
        keep_alive_max: 0,
        subscriptions_max: 100,
        few_sessions: false,
        drops: false,
        small_outbox: false,
        refuses: false,
        durable: true,
        reshards: false,
        segment_bytes: 16 * 1024,
        evicts: false,
        qos_max: QoS::ExactlyOnce,
        retains: true,
        identifiers: true,
    }
}

/// A network without faults, at the world's beginning.
fn network() -> Network {
    set_now(Time::ZERO.plus_secs(1000));
    Network {
        links: Vec::new(),
        faults: Faults::choose(&mut Random::new(1, 2), Kind::ALL),
        random: Random::new(1, 3),
        trace: Trace::new(false),
        send_buffer: 4096,
        delay: Duration::from_micros(10),
        last_jump: Time::ZERO,
    }
}

fn pass(duration: Duration) {
    set_now(now() + duration);
}

/// Retained, by client 0.
fn message(link: usize) -> Message {
    Message { retain: true, ..Message::new(0, link, "t".to_owned(), QoS::AtLeastOnce, 20) }
}

/// Of a client's connection that has a Will, which is published at once when it ends, and of a
/// message behind that: what the oracle says when the message is retained for ever.
fn behind_a_will(is_over_first: bool) -> Option<&'static str> {
    let mut network = network();
    let mut oracle = Oracle::new(2, true, terms());
    let link = network.connect(0, 0);
    let terms = WillTerms::new(link, 0, 0);
    oracle.on_new_message(Message { will: Some(terms), ..message(link) });
    oracle.on_connect(0, link, true, (0, u32::MAX));
    oracle.on_connack(0, true, Some(false), &network);
    oracle.on_will_armed(link);
    let end = |network: &mut Network, oracle: &mut Oracle| {
        network.server_close(link, false);
        oracle.on_will_end(link);
        pass(Duration::from_secs(1));
    };
    if is_over_first {
        end(&mut network, &mut oracle);
    }
    let other = network.connect(0, 0);
    let value = oracle.on_new_message(message(other));
    oracle.on_acked(value, false);
    let retained = BTreeMap::from([("t".to_owned(), value)]);
    pass(Duration::from_secs(3));
    oracle.settle(&network, &retained, 0);
    assert_eq!(oracle.violation(), None, "the message came last");
    pass(Duration::from_secs(60));
    if !is_over_first {
        end(&mut network, &mut oracle);
        pass(Duration::from_secs(60));
    }
    oracle.settle(&network, &retained, 0);
    oracle.violation().map(|violation| violation.rule)
}

#[test]
fn a_will_that_was_due_when_all_was_quiet_is_no_newer_value() {
    assert_eq!(behind_a_will(true), None, "it was overtaken before it was judged");
    assert_eq!(behind_a_will(false), Some("retained"), "it came later, and is not there");
}

/// What the oracle says of an old connection that ends without DISCONNECT.
fn silent_end(says_fin: bool, jumps: bool) -> Option<&'static str> {
    let mut network = network();
    let mut oracle = Oracle::new(2, true, terms());
    let link = network.connect(0, 0);
    network.links[link].connect_len = 1;
    network.client_send(link, b"C");
    pass(Duration::from_millis(1));
    network.server_read(link, 10);
    pass(if jumps { HOUR } else { Duration::from_millis(1) });
    network.last_jump = if jumps { now() } else { Time::ZERO };
    if says_fin {
        network.server_finish(link);
    }
    network.server_close(link, false);
    judge_silent_end(0, &network, &mut oracle, link);
    oracle.violation().map(|violation| violation.rule)
}

#[test]
fn the_broker_gives_up_what_it_cannot_say_in_time_only_where_time_jumps() {
    assert_eq!(silent_end(false, true), None, "its two seconds were over at once");
    assert_eq!(silent_end(false, false), Some("takeover-silent"));
    assert_eq!(silent_end(true, true), Some("takeover-silent"), "it could have said why");
}

/// A client gives a connection up before CONNACK, goes on with another, and leaves that with a
/// session expiry of `expiry_secs`. Whether it has to start clean then.
fn must_start_clean(expiry_secs: u32, is_closed: bool) -> bool {
    let mut network = network();
    let mut oracle = Oracle::new(2, true, terms());
    let mut client = Client::new(0, Version::V5);
    let asked = Asked { expiry_secs: 1_000_000, ..Asked::default() };
    let mut links = Vec::new();
    for _ in 0..2 {
        let link = network.connect(0, 0);
        oracle.on_connect(0, link, false, (asked.expiry_secs, u32::MAX));
        client.begin(&mut network, link, asked, b"C");
        links.push(link);
        if links.len() == 1 {
            client.abandon(&network, &mut oracle);
        }
    }
    client.stage = Stage::Online;
    pass(Duration::from_millis(1));
    if is_closed {
        network.server_close(links[0], false);
        pass(Duration::from_millis(1));
    }
    client.change_expiry(expiry_secs);
    client.close(&mut network, &mut oracle);
    client.must_start_clean(&network)
}

#[test]
fn an_older_connect_may_begin_a_session_behind_the_end_of_its_own() {
    assert!(must_start_clean(0, false), "it is under way, and the session has ended");
    assert!(!must_start_clean(0, true), "it got there before");
    assert!(!must_start_clean(1_000_000, false), "the session lasts");
}

/// Client 1 subscribes to `filters` while client 0 publishes a retained message, which never comes:
/// what the oracle says at each of three settlings, when so many messages have been dropped.
fn never_replayed(filters: &[&str], other: bool, drops: [u64; 3]) -> [Option<&'static str>; 3] {
    let mut network = network();
    let mut oracle = Oracle::new(3, false, Terms { drops: true, durable: false, ..terms() });
    let links: Vec<usize> = (0..3).map(|client| network.connect(client, 0)).collect();
    for (client, link) in links.iter().enumerate() {
        oracle.on_connect(client, *link, true, (0, u32::MAX));
        oracle.on_connack(client, true, Some(false), &network);
    }
    pass(Duration::from_secs(1));
    let qos = QoS::AtLeastOnce;
    for filter in filters {
        oracle.on_subscribe(1, links[1], filter, SubscriptionOptions::new(qos), None);
    }
    if other {
        let before = oracle.on_new_message(Message { client: 2, ..message(links[2]) });
        oracle.on_acked(before, false);
    }
    let value = oracle.on_new_message(message(links[0]));
    pass(Duration::from_secs(1));
    oracle.on_acked(value, false);
    for filter in filters {
        oracle.on_suback(1, filter, qos as u8, qos);
    }
    let retained = BTreeMap::from([("t".to_owned(), value)]);
    drops.map(|drops| {
        pass(Duration::from_secs(3));
        oracle.settle(&network, &retained, drops);
        oracle.violation().map(|violation| violation.rule)
    })
}

#[test]
fn a_retained_value_that_is_dropped_is_counted_when_it_was_due() {
    let (fine, lost) = (None, Some("replay"));
    assert_eq!(never_replayed(&["t"], false, [1, 1, 1]), [fine; 3], "it is missed once");
    assert_eq!(
        never_replayed(&["t"], false, [0, 1, 1]),
        [lost; 3],
        "what is dropped later is not it"
    );
    // Another's value can have come instead, as far as can be told at first.
    assert_eq!(never_replayed(&["t"], true, [1, 1, 1]), [fine; 3]);
    assert_eq!(never_replayed(&["t"], true, [0, 0, 0]), [fine, lost, lost], "it is not forgotten");
    assert_eq!(never_replayed(&["t"], true, [0, 1, 1]), [fine, lost, lost]);
}

#[test]
fn subscriptions_that_overlap_miss_one_live_copy() {
    assert_eq!(never_replayed(&["t", "+"], false, [1, 1, 1]), [None; 3], "one copy for both");
    assert_eq!(never_replayed(&["t", "+"], false, [0, 0, 0]), [Some("replay"); 3]);
}

/// A Will with a delay of 20 s whose client asks for something that may end its connection, says
/// DISCONNECT then, which ends its session at once if it has `expiry_secs` of 0, and comes again: what
/// the oracle says when the Will comes a minute later.
fn will_behind_a_disconnect(expiry_secs: u32) -> Option<&'static str> {
    let mut network = network();
    let mut oracle = Oracle::new(2, true, terms());
    let link = network.connect(0, 0);
    let will = Some(WillTerms::new(link, 20, 47));
    let id = oracle.on_new_message(Message { will, retain: false, ..message(link) });
    oracle.on_connect(0, link, false, (0, 47));
    oracle.on_connack(0, false, Some(false), &network);
    oracle.on_will_armed(link);
    oracle.on_will_end(link);
    oracle.on_will_shortened(link, expiry_secs);
    network.server_close(link, false);
    pass(Duration::from_secs(1));
    let next = network.connect(0, 0);
    oracle.on_will_connect(0, false);
    oracle.on_will_armed(next);
    oracle.on_will_connack(0, next, false);
    pass(Duration::from_secs(60));
    oracle.judge_will(id, &network).err().map(|(rule, _)| rule)
}

#[test]
fn a_disconnect_may_end_a_session_whatever_came_before_it() {
    assert_eq!(will_behind_a_disconnect(0), None, "its session was over when it came again");
    assert_eq!(will_behind_a_disconnect(1000), Some("will-wrong"), "it was there in time");
}
