//! What a client makes of the end of its connection: the broker closes only for a reason, and that
//! has to be true.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::client::Client;
use super::network::Network;
use super::oracle::Oracle;
use crate::codec::mqtt::{ReasonCode, Version};

/// The machine knows when something has arrived to so much.
const COARSE: Duration = Duration::from_millis(4);
/// What is late only because a shard did not run.
const SLACK: Duration = Duration::from_secs(8);

/// The broker ends the connection of a client that kept to the rules; it says `reason`, where the
/// version can.
pub fn judge_end(
    client: &Client,
    network: &Network,
    oracle: &mut Oracle,
    link: usize,
    reason: Option<ReasonCode>,
) {
    let terms = oracle.terms();
    let taken_over = || is_taken_over(client, network, link);
    let silent = || is_silent(client, network, link);
    let (is_true, rule) = match reason {
        Some(ReasonCode::SESSION_TAKEN_OVER) => (taken_over(), "takeover"),
        Some(ReasonCode::KEEP_ALIVE_TIMEOUT) => (silent(), "keep-alive"),
        Some(ReasonCode::SERVER_SHUTTING_DOWN) => (oracle.is_stopping(), "closed"),
        // Too many answers that it does not read, or no memory for its aliases.
        Some(ReasonCode::QUOTA_EXCEEDED) => (terms.small_outbox || terms.refuses, "closed"),
        Some(ReasonCode::NOT_AUTHORIZED) => (client.is_late_login(), "closed"),
        Some(_) => (false, "closed"),
        None => {
            // One of 3.x cannot be told that its publication is refused.
            let may_close = oracle.may_refuse() || terms.small_outbox || oracle.is_stopping();
            (client.version != Version::V5 && (may_close || taken_over() || silent()), "closed")
        }
    };
    if !is_true {
        let reason = reason.map_or("without a word", ReasonCode::name);
        let text = format!("client {}: link {link} is ended, {reason}, and why?", client.index);
        oracle.fail(rule, text);
    }
}

/// The broker has closed an earlier connection of a client of MQTT 5, and has not said why.
pub fn judge_silent_end(client: usize, network: &Network, oracle: &mut Oracle, link: usize) {
    let ended = &network.links[link];
    // What it has to say waits for a send under way to end, and that may take two seconds. Where
    // time jumps, they are over before the shard has heard that the send had ended: it gives up,
    // without a FIN, and the kernel holds nothing unsent.
    let since_jump = ended.server_closed.map(|at| at.since(network.last_jump));
    let gave_up = !ended.finished
        && ended.connect_arrived.is_some_and(|at| at < network.last_jump)
        && since_jump.is_some_and(|since| since < SLACK);
    if !ended.is_cut && !gave_up {
        oracle.fail("takeover-silent", format!("client {client}: closed without a word"));
    }
}

/// Only a CONNECT that came later takes a session over.
fn is_taken_over(client: &Client, network: &Network, link: usize) -> bool {
    let mine = network.links[link].connect_arrived;
    let is_later = |other: usize| {
        let theirs = network.links[other].connect_arrived.map(|at| at + COARSE);
        other != link && network.links[other].client == client.index && theirs >= mine
    };
    (0..network.links.len()).any(is_later)
}

/// Whether its keep alive, half as much again, was ever longer than nothing came from it.
fn is_silent(client: &Client, network: &Network, link: usize) -> bool {
    let allowed = Duration::from_millis(u64::from(client.asked.keep_alive) * 1500);
    client.asked.keep_alive > 0 && network.longest_silence(link) + COARSE >= allowed
}
