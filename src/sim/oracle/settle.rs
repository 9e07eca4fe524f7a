//! When all is quiet: what must have arrived by now.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::{Message, Oracle, Subscription};
use crate::codec::mqtt::topic::matches;
use crate::codec::mqtt::{QoS, RetainHandling};
use crate::sim::network::Network;

/// What a packet adds to topic and payload, at most, in our worlds.
const OVERHEAD: usize = 64;

impl Oracle {
    /// All is quiet and all clients are connected: judges what has arrived. `retained` is what a
    /// new subscriber to everything was given.
    pub fn settle(&mut self, network: &Network, retained: &BTreeMap<String, u64>) {
        self.settle_wills(network);
        let first = self.settled;
        for client in 0..self.clients.len() {
            if let Some((rule, text)) = self.missing(client, first) {
                self.fail(rule, text);
            }
        }
        if let Some((rule, text)) = self.missing_of_groups(first) {
            self.fail(rule, text);
        }
        for topic in self.retained_topics() {
            if let Some(text) = self.wrong_value(&topic, retained.get(&topic).copied()) {
                self.fail("retained", format!("{topic}: {text}"));
            }
        }
        for client in 0..self.clients.len() {
            if let Some(text) = self.missing_replay(client, retained) {
                self.fail("replay", text);
            }
        }
        self.baseline = retained.clone();
        self.settled = self.next_message;
        self.shared_ends = 0;
    }

    /// Whether `message` must come to a session that holds `subscription`.
    fn must(&self, message: &Message, client: usize, subscription: &Subscription) -> bool {
        let state = &self.clients[client];
        let session = &state.session;
        // At QoS 0 only to those that were there, and are still.
        let online = state.link.and_then(|current| current.began);
        let was_there = subscription.share.is_none() && online.is_some_and(|at| at < message.sent);
        let packet = message.len + message.topic.len() + OVERHEAD;
        let own = |no_local: bool| no_local && message.client == client;
        message.acked.is_some()
            && !message.refused
            && (message.qos > QoS::AtMostOnce || was_there)
            && message.len > 0
            && message.expiry.is_none()
            && message.life == self.life
            && session.packet_max.is_none_or(|max| packet <= max as usize)
            && subscription.ending.is_none()
            && subscription.held.is_some_and(|held| held < message.sent)
            && subscription.wants(&message.topic)
            && subscription
                .asked
                .iter()
                .all(|a| (a.options.qos > QoS::AtMostOnce || was_there) && !own(a.options.no_local))
    }

    /// A message that a client should have.
    fn missing(&mut self, client: usize, first: u64) -> Option<(&'static str, String)> {
        let session = &self.clients[client].session;
        let mut proven = 0;
        for (id, message) in self.recent(first) {
            let plain = session.subscriptions.iter().filter(|s| s.share.is_none());
            let Some(by) = plain.into_iter().find(|s| self.must(message, client, s)) else {
                continue;
            };
            if !session.seen.contains_key(id) {
                let rule = if message.will.is_some() { "will-lost" } else { "lost" };
                let text = format!(
                    "client {client} holds {} since {:?} and never got message {id} on {}, {:?} \
                     of client {}, acknowledged",
                    by.filter, by.held, message.topic, message.qos, message.client
                );
                return Some((rule, text));
            }
            proven += 1;
        }
        self.proven += proven;
        None
    }

    /// Messages since all was quiet last, and Wills that were open then.
    fn recent(&self, first: u64) -> impl Iterator<Item = (&u64, &Message)> {
        self.messages.iter().filter(move |(id, message)| {
            **id >= first || message.will.as_ref().is_some_and(|will| will.is_recent)
        })
    }

    /// A message that no member of a group has, or too many.
    fn missing_of_groups(&mut self, first: u64) -> Option<(&'static str, String)> {
        let mut proven = 0;
        for (id, message) in self.messages.range(first..) {
            let wants = |(_, filter): &(&String, &String)| matches(filter, &message.topic);
            let groups = self.groups.iter().filter(wants).count() as u32;
            let mut stable = BTreeSet::new();
            for (client, state) in self.clients.iter().enumerate() {
                for subscription in &state.session.subscriptions {
                    if let Some(share) = &subscription.share
                        && self.must(message, client, subscription)
                    {
                        stable.insert(share);
                    }
                }
            }
            let copies = message.shared_copies;
            let most = groups * message.transmissions;
            // What a session that has ended had not acknowledged has moved, and comes again.
            if groups > 0 && self.shared_ends == 0 && copies > most {
                let text = format!("message {id}: {copies} copies, at most {most}");
                return Some(("shared-twice", text));
            }
            // What was sent to a member at QoS 2 ends with its session.
            let may_end = self.shared_ends > 0 && message.qos == QoS::ExactlyOnce;
            if !may_end && copies < stable.len() as u32 {
                let text = format!(
                    "message {id} on {}: {copies} copies for the groups {stable:?}",
                    message.topic
                );
                return Some(("shared-lost", text));
            }
            proven += stable.len() as u64;
        }
        self.proven += proven;
        None
    }

    fn retained_topics(&self) -> BTreeSet<String> {
        let published = self.messages.values().filter(|m| m.retain).map(|m| m.topic.clone());
        published.chain(self.baseline.keys().cloned()).collect()
    }

    /// Retained publications to a topic that can have become its value since all was quiet.
    fn candidates(&self, topic: &str) -> Vec<(u64, &Message)> {
        self.recent(self.settled)
            .filter(|(_, m)| m.retain && m.topic == topic && m.life == self.life && !m.refused)
            .filter(|(id, m)| **id >= self.settled || m.will.is_some())
            .map(|(id, m)| (*id, m))
            .collect()
    }

    /// Whether `id` was overtaken by a later one of the same publisher.
    fn is_outdated(&self, id: u64, message: &Message, among: &[(u64, &Message)]) -> bool {
        message.will.is_none()
            && message.transmissions == 1
            && among.iter().any(|(later, other)| {
                *later > id
                    && other.client == message.client
                    && other.will.is_none()
                    && other.acked.is_some()
                    && (other.qos == message.qos || !self.record_changes)
            })
    }

    fn wrong_value(&self, topic: &str, value: Option<u64>) -> Option<String> {
        let among = self.candidates(topic);
        let sure = |m: &Message| m.acked.is_some() && m.expiry.is_none();
        let before = self.baseline.get(topic).copied();
        match value {
            Some(value) => {
                if let Some((_, message)) = among.iter().find(|(id, _)| *id == value) {
                    let outdated = self.is_outdated(value, message, &among);
                    return outdated.then(|| format!("{value} was followed by a newer one"));
                }
                if before != Some(value) {
                    return Some(format!("{value}, which cannot be; it was {before:?}"));
                }
                let newer = among.iter().find(|(_, m)| sure(m))?;
                Some(format!("still {value}, after {}", newer.0))
            }
            None => {
                let cleared = |m: &Message| m.len == 0 || m.expiry.is_some();
                let may_be_clear =
                    among.iter().any(|(id, m)| cleared(m) && !self.is_outdated(*id, m, &among));
                if may_be_clear {
                    return None;
                }
                if let Some((id, _)) = among.iter().find(|(_, m)| sure(m)) {
                    return Some(format!("nothing, after {id}"));
                }
                let before = before.filter(|id| self.messages[id].expiry.is_none())?;
                Some(format!("nothing, and it was {before}"))
            }
        }
    }

    /// A subscription whose retained messages did not come: on the same connection ever since, it
    /// must have got the value that is there now.
    fn missing_replay(&self, client: usize, retained: &BTreeMap<String, u64>) -> Option<String> {
        let state = &self.clients[client];
        let link = state.link?.link;
        for subscription in &state.session.subscriptions {
            let asks = |asked: &super::Asked| {
                asked.options.retain_handling == RetainHandling::Send
                    && asked.options.qos > QoS::AtMostOnce
                    && !asked.options.no_local
            };
            let is_sure = subscription.share.is_none()
                && subscription.link == link
                && subscription.ending.is_none()
                && subscription.held.is_some()
                && subscription.asked.len() == 1
                && subscription.asked.iter().all(asks);
            if !is_sure {
                continue;
            }
            for (topic, id) in retained.iter().filter(|(topic, _)| subscription.wants(topic)) {
                let message = &self.messages[id];
                let packet = message.len + topic.len() + OVERHEAD;
                let fits = state.session.packet_max.is_none_or(|max| packet <= max as usize);
                let is_mine = message.qos > QoS::AtMostOnce && fits && message.expiry.is_none();
                // A value of another publisher may have come instead, and live.
                let others =
                    self.baseline.get(topic) != Some(id) && self.candidates(topic).len() > 1;
                if is_mine && !others && !state.session.seen.contains_key(id) {
                    return Some(format!(
                        "client {client} subscribed to {} and never got {id}, retained on {topic}",
                        subscription.filter
                    ));
                }
            }
        }
        None
    }
}
