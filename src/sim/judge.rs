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
