//! When all is quiet: what must have arrived by now.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::{Message, Oracle, Subscription};
use crate::codec::mqtt::topic::matches;
use crate::codec::mqtt::{QoS, RetainHandling};
use crate::sim::network::{Network, now};

/// What a packet adds to topic and payload, at most, in our worlds.
const OVERHEAD: usize = 64;

/// The rule that a message which did not come has broken, and which it is.
type Missing = (&'static str, String);

impl Oracle {
    /// All is quiet and all clients are connected: judges what has arrived. `retained` is what a
    /// new subscriber to everything was given, `drops` what the broker says that it has dropped in
    /// this life.
    pub fn settle(&mut self, network: &Network, retained: &BTreeMap<String, u64>, drops: u64) {
        self.settle_wills(network);
        let first = self.settled;
        let (mut missing, mut missing_before) = (Vec::new(), Vec::new());
        for client in 0..self.clients.len() {
            self.missing(client, first, &mut missing);
        }
        self.missing_of_groups(first, &mut missing);
        for client in 0..self.clients.len() {
            self.missing_replays(client, retained, (&mut missing, &mut missing_before));
        }
        let drops_before = std::mem::replace(&mut self.drops_before, drops);
        self.judge_missing(missing, drops - drops_before);
        self.judge_missing(missing_before, drops_before);
        // Where little may wait, the auditor was not given all.
        let topics = if self.terms.small_outbox { BTreeSet::new() } else { self.retained_topics() };
        for topic in topics {
            let value = retained.get(&topic).copied();
            if let Some(text) = self.wrong_value(&topic, value) {
                self.fail("retained", format!("{topic}: {text}"));
            }
        }
        self.note_alternatives();
        self.baseline = retained.clone();
        self.settled = self.next_message;
        self.settled_at = now();
        self.shared_ends = 0;
        self.disk_failed = false;
    }

    /// What is dropped is counted, in the time in which it was due.
    fn judge_missing(&mut self, mut missing: Vec<Missing>, dropped: u64) {
        let count = missing.len();
        if count as u64 <= dropped {
            return;
        }
        let (rule, mut text) = missing.swap_remove(0);
        if dropped > 0 {
            text += &format!("; {count} are missing, {dropped} were dropped");
        }
        self.fail(rule, text);
    }

    /// Whether it was not lost with an earlier life of the broker.
    fn holds(&self, message: &Message) -> bool {
        message.life == self.life || self.terms.durable && !message.may_be_lost
    }

    /// Whether this message must come to a session that holds `subscription`.
    fn must(&self, id: u64, client: usize, subscription: &Subscription) -> bool {
        let message = &self.messages[&id];
        let state = &self.clients[client];
        let session = &state.session;
        // At QoS 0 only to those that were there, and are still.
        let online = state.link.and_then(|current| current.began);
        let was_there = subscription.share.is_none() && online.is_some_and(|at| at < message.sent);
        let packet = message.len + message.topic.len() + OVERHEAD;
        let own = |no_local: bool| no_local && message.client == client;
        message.acked.is_some()
            && !message.refused
            // One that was refused at QoS 0 is counted once, whoever was to get it.
            && !(self.may_refuse() && message.qos == QoS::AtMostOnce)
            && (message.qos > QoS::AtMostOnce || was_there)
            && message.len > 0
            && message.expiry.is_none()
            && self.holds(message)
            && session.packet_max.is_none_or(|max| packet <= max as usize)
            && subscription.ending.is_none()
            && (subscription.held.is_some_and(|held| held < message.sent)
                || message.client == client && subscription.is_before(id, message))
            && subscription.wants(&message.topic)
            && subscription
                .asked
                .iter()
                .all(|a| (a.options.qos > QoS::AtMostOnce || was_there) && !own(a.options.no_local))
            && !(self.terms.evicts && session.may_raise_from_0(subscription, &message.topic))
    }

    /// Messages that a client should have.
    fn missing(&mut self, client: usize, first: u64, missing: &mut Vec<Missing>) {
        let session = &self.clients[client].session;
        let mut proven = 0;
        for (id, message) in self.recent(first) {
            let plain = session.subscriptions.iter().filter(|s| s.share.is_none());
            let Some(by) = plain.into_iter().find(|s| self.must(*id, client, s)) else {
                continue;
            };
            if !session.seen.contains_key(id) {
                let rule = if message.will.is_some() { "will-lost" } else { "lost" };
                let text = format!(
                    "client {client} holds {} since {:?} and never got message {id} on {}, {:?} \
                     of client {}, acknowledged",
                    by.filter, by.held, message.topic, message.qos, message.client
                );
                missing.push((rule, text));
                continue;
            }
            proven += 1;
        }
        self.proven += proven;
    }

    /// Messages since all was quiet last, and Wills that were open then.
    fn recent(&self, first: u64) -> impl Iterator<Item = (&u64, &Message)> {
        self.messages.iter().filter(move |(id, message)| {
            **id >= first || message.will.as_ref().is_some_and(|will| will.is_recent)
        })
    }

    /// Messages that no member of a group has, or too many.
    fn missing_of_groups(&mut self, first: u64, missing: &mut Vec<Missing>) {
        let mut proven = 0;
        let mut too_many = None;
        for (id, message) in self.messages.range(first..) {
            let wants = |(_, filter): &(&String, &String)| matches(filter, &message.topic);
            let groups = self.groups.iter().filter(wants).count() as u32;
            let mut stable = BTreeSet::new();
            for (client, state) in self.clients.iter().enumerate() {
                for subscription in &state.session.subscriptions {
                    if let Some(share) = &subscription.share
                        && self.must(*id, client, subscription)
                        && self.may_move_to(client)
                        && !self.may_go_to_a_newcomer(message, subscription)
                    {
                        stable.insert(share);
                    }
                }
            }
            let copies = message.shared_copies;
            let most = groups * message.transmissions;
            // What a session that has ended had not acknowledged has moved, and comes again.
            if groups > 0 && self.shared_ends == 0 && copies > most {
                too_many = Some(format!("message {id}: {copies} copies, at most {most}"));
            }
            // What was sent to a member at QoS 2 ends with its session.
            let may_end = self.shared_ends > 0 && message.qos == QoS::ExactlyOnce;
            let lack = if may_end { 0 } else { stable.len().saturating_sub(copies as usize) };
            for _ in 0..lack {
                let text = format!(
                    "message {id} on {}: {copies} copies for the groups {stable:?}",
                    message.topic
                );
                missing.push(("shared-lost", text));
            }
            proven += (stable.len() - lack) as u64;
        }
        self.proven += proven;
        if let Some(text) = too_many {
            self.fail("shared-twice", text);
        }
    }

    /// Whether what a session that has ended had of a group can move to this client: what only the
    /// journal had is owed to those whose sessions last, and gone when there is none.
    fn may_move_to(&self, client: usize) -> bool {
        let lasts = self.clients[client].least_expiry_secs > 0;
        lasts || !self.terms.evicts || self.shared_ends == 0
    }

    /// Whether a member that came later can have been picked for this message. What such a one has
    /// on disk only is owed by the journal if its SUB stands before the message there, and gone else:
    /// the broker does not know, and leaves it to the disk.
    fn may_go_to_a_newcomer(&self, message: &Message, subscription: &Subscription) -> bool {
        // A share is named by all of its filter.
        let came_later = |other: &Subscription| {
            other.share == subscription.share && other.held.is_none_or(|held| held >= message.sent)
        };
        let mut all = self.clients.iter().flat_map(|client| &client.session.subscriptions);
        self.terms.evicts && all.any(came_later)
    }

    fn retained_topics(&self) -> BTreeSet<String> {
        let published = self.messages.values().filter(|m| m.retain).map(|m| m.topic.clone());
        published.chain(self.baseline.keys().cloned()).collect()
    }

    /// Retained publications to a topic that can have become its value since all was quiet.
    fn candidates(&self, topic: &str) -> Vec<(u64, &Message)> {
        self.recent(self.settled)
            // What was refused when it was sent again may have been taken before.
            .filter(|(_, m)| m.retain && m.topic == topic && (!m.refused || m.resent))
            .filter(|(_, m)| m.life == self.life || self.terms.durable)
            .filter(|(id, m)| **id >= self.settled || m.will.is_some())
            .map(|(id, m)| (*id, m))
            .collect()
    }

    /// Whether `id` was overtaken by a later one of the same publisher.
    fn is_outdated(&self, id: u64, message: &Message, among: &[(u64, &Message)]) -> bool {
        message.will.is_none()
            && message.transmissions == 1
            && !(self.may_refuse() && message.resent)
            && among.iter().any(|(later, other)| {
                *later > id
                    && other.client == message.client
                    && other.will.is_none()
                    && self.is_surely_kept(other)
                    && self.is_before(message.link, other.link)
                    && (other.qos == message.qos || !self.record_changes)
            })
    }

    /// Whether a retained message was acknowledged, and so became its topic's value at some time.
    fn is_surely_kept(&self, message: &Message) -> bool {
        let is_quiet = self.disk_failed && message.qos == QoS::AtMostOnce;
        message.acked.is_some() && !message.may_be_lost && !is_quiet
    }

    /// Whether it was kept since all was quiet last. A Will that was due before has come before or
    /// behind what the topic held then: it is judged late, and when it was published nobody saw.
    fn is_surely_newer(&self, message: &Message) -> bool {
        let is_late = message.will.is_some() && message.sent <= self.settled_at;
        self.is_surely_kept(message) && !is_late
    }

    /// What a restart may make the value of each topic from here on.
    fn note_alternatives(&mut self) {
        let mut alternatives = std::mem::take(&mut self.alternatives);
        for topic in self.retained_topics() {
            let among = self.candidates(&topic);
            let may = among.iter().filter(|(id, m)| !self.is_outdated(*id, m, &among));
            let may: BTreeSet<u64> = may.map(|(id, _)| *id).collect();
            if among.iter().any(|(_, m)| self.is_surely_newer(m)) {
                alternatives.insert(topic, may);
            } else {
                alternatives.entry(topic).or_default().extend(may);
            }
        }
        self.alternatives = alternatives;
    }

    /// Whether a restart may have made this the value of the topic.
    fn is_alternative(&self, topic: &str, is_it: impl Fn(&u64) -> bool) -> bool {
        self.terms.durable && self.alternatives.get(topic).is_some_and(|all| all.iter().any(is_it))
    }

    fn wrong_value(&self, topic: &str, value: Option<u64>) -> Option<String> {
        let among = self.candidates(topic);
        let sure = |m: &Message| self.is_surely_newer(m) && m.expiry.is_none();
        let before = self.baseline.get(topic).copied();
        match value {
            Some(value) => {
                if let Some((_, message)) = among.iter().find(|(id, _)| *id == value) {
                    let outdated = self.is_outdated(value, message, &among);
                    return outdated.then(|| format!("{value} was followed by a newer one"));
                }
                if before != Some(value) && !self.is_alternative(topic, |id| *id == value) {
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
                let is_clear = |id: &u64| {
                    let message = &self.messages[id];
                    message.len == 0 || message.expiry.is_some()
                };
                if self.is_alternative(topic, is_clear) {
                    return None;
                }
                let before = before.filter(|id| self.messages[id].expiry.is_none())?;
                Some(format!("nothing, and it was {before}"))
            }
        }
    }

    /// Subscriptions whose retained messages did not come: on the same connection ever since, they
    /// must have got the values that are there now. Each value counts once: several subscriptions
    /// share one live copy. What was due when all was quiet last, and still has not come, is kept
    /// apart: if it was dropped, that was counted then.
    fn missing_replays(
        &self,
        client: usize,
        retained: &BTreeMap<String, u64>,
        (missing, missing_before): (&mut Vec<Missing>, &mut Vec<Missing>),
    ) {
        let state = &self.clients[client];
        let session = &state.session;
        let Some(link) = state.link.map(|current| current.link) else { return };
        let mut known = BTreeSet::new();
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
                // One that should have come live as well is missed once.
                let plain = session.subscriptions.iter().filter(|s| s.share.is_none());
                let is_known = plain.into_iter().any(|other| self.must(*id, client, other));
                let is_mine =
                    !is_known && message.qos > QoS::AtMostOnce && fits && message.expiry.is_none();
                // A value of another publisher may have come instead, and live. Those of one
                // publisher are in one order everywhere.
                let is_other =
                    |other: &Message| other.client != message.client || other.will.is_some();
                let was_there = self.baseline.get(topic) == Some(id);
                let others =
                    !was_there && self.candidates(topic).iter().any(|(_, other)| is_other(other));
                let was_due =
                    was_there && subscription.held.is_some_and(|held| held < self.settled_at);
                if is_mine
                    && !others
                    && !state.session.seen.contains_key(id)
                    && known.insert((*id, was_due))
                {
                    let text = format!(
                        "client {client} subscribed to {} and never got {id}, retained on {topic}",
                        subscription.filter
                    );
                    let list = if was_due { &mut *missing_before } else { &mut *missing };
                    list.push(("replay", text));
                }
            }
        }
    }
}
