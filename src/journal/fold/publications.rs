//! What a PUB brings: to whom it is owed, and how long it is kept.
#![forbid(unsafe_code)]

use super::messages::{At, Message, Owed, Receivers};
use super::{Candidate, Fold, NO_LOCAL, QOS_BITS, RETAIN_AS_PUBLISHED, origin_of, sequence_of};
use crate::journal::record::Publish;

impl Fold {
    /// Finds among all subscriptions to whom a message is owed. Whether it is the same for every later
    /// message of its topic, QoS and retain flag.
    pub(super) fn find_receivers(&mut self, publish: &Publish<'_>) -> bool {
        let mut is_general = true;
        let Self { candidates, sessions, plain, last_pub, .. } = self;
        candidates.clear();
        // What is forwarded at once may have come before the subscription began, though its PUB comes
        // behind: QoS 1, and Wills at any.
        let (name, is_at_once) = (publish.message, publish.qos == 1 || publish.is_will);
        plain.visit_matches(publish.topic, |_, subs| {
            for sub in subs.iter() {
                is_general &= sub.options & NO_LOCAL == 0 && !sub.waits(last_pub);
                let is_own = sub.options & NO_LOCAL != 0
                    && *sessions[sub.session as usize].client_id == *publish.publisher;
                if sub.is_kept() && !is_own && !(is_at_once && sub.had(name)) {
                    candidates.push(Candidate {
                        session: sub.session,
                        serial: sub.serial,
                        options: sub.options,
                        subscription_id: sub.subscription_id,
                    });
                }
            }
        });
        candidates.sort_unstable_by_key(|candidate| (candidate.session, candidate.serial));
        for same in candidates.chunk_by(|a, b| a.session == b.session) {
            let granted = same.iter().map(|c| c.options & QOS_BITS).max().unwrap_or(0);
            let as_published = same.iter().any(|c| c.options & RETAIN_AS_PUBLISHED != 0);
            let mut owed = Owed {
                holder: same[0].session,
                is_group: false,
                is_assigned: false,
                qos: granted.min(publish.qos),
                retain: publish.retain && as_published,
                only: if same.len() == 1 { same[0].serial as u32 } else { 0 },
                subscription_id: 0,
                more_ids: None,
            };
            owed.set_ids(same.iter().map(|c| c.subscription_id).filter(|id| *id != 0));
            self.resolved.push(owed);
        }
        let Self { resolved, groups, shared, last_pub, .. } = self;
        shared.visit_matches(publish.topic, |_, slots| {
            for slot in slots {
                let members = &groups[*slot as usize].members;
                let granted = members.granted();
                is_general &= !members.iter().any(|member| member.waits(last_pub));
                let mut kept = members.iter().filter(|member| member.is_kept());
                if granted > 0 && kept.any(|member| !(is_at_once && member.had(name))) {
                    resolved.push(Owed {
                        holder: *slot,
                        is_group: true,
                        is_assigned: false,
                        qos: granted.min(publish.qos),
                        retain: false,
                        only: 0,
                        subscription_id: 0,
                        more_ids: None,
                    });
                }
            }
        });
        is_general
    }

    pub(super) fn resolve_written(&mut self, publish: &Publish<'_>) {
        self.resolved.clear();
        for receiver in publish.receivers.iter() {
            match self.numbers.get(&receiver.number) {
                Some((slot, is_group)) if *is_group == receiver.is_group => {
                    let mut owed = Owed {
                        holder: *slot,
                        is_group: *is_group,
                        is_assigned: receiver.is_assigned && !is_group,
                        qos: receiver.qos,
                        retain: receiver.retain,
                        only: 0,
                        subscription_id: 0,
                        more_ids: None,
                    };
                    owed.set_ids(receiver.subscription_ids.iter().map(|id| id as u32));
                    self.resolved.push(owed);
                }
                _ => self.counts.unknown_receivers += 1,
            }
        }
    }

    /// A PUB whose receivers are resolved.
    pub(in crate::journal) fn publish(&mut self, at: At, publish: &Publish<'_>) {
        let (name, origin) = (publish.message, origin_of(publish.message));
        self.mention_message(name);
        // Names of one origin ascend: one above the last is not here yet.
        let is_new = sequence_of(name) > self.last_pub[origin];
        if is_new {
            self.last_pub[origin] = sequence_of(name);
        }
        if publish.is_will {
            self.drop_will(publish.publisher);
        }
        if publish.packet_id.is_some() && self.clients.contains_key(publish.publisher) {
            let packet_id = publish.packet_id.unwrap_or(0);
            self.hold_packet_id(at, publish.publisher, packet_id, name);
        }
        if is_new || self.messages.get(name).is_none() {
            self.insert(at, publish);
        }
        self.forget_early(name);
        self.forget_seen(origin);
        if publish.retain {
            self.retain(publish.topic, name, !publish.payload.is_empty());
            self.release(name);
        }
    }

    /// Takes in one that is not here.
    pub(super) fn insert(&mut self, at: At, publish: &Publish<'_>) {
        let name = publish.message;
        if !self.early_assigns.is_empty() {
            self.hold_for_early(name);
        }
        let receivers = Receivers::of(&mut self.resolved);
        for owed in receivers.iter() {
            if owed.is_assigned {
                self.sessions[owed.holder as usize].assigned.push(name);
                continue;
            }
            let holder = match owed.is_group {
                true => &mut self.groups[owed.holder as usize].queue,
                false => &mut self.sessions[owed.holder as usize].queue,
            };
            holder.push(name);
        }
        if receivers.is_empty() && !publish.retain {
            return;
        }
        let Publish { qos, retain, .. } = *publish;
        let message = Message { at, receivers, is_retained: false, qos, retain };
        self.messages.insert(name, message);
        self.came(at);
    }

    /// A copy of one (J10): it lies there from now on.
    pub(super) fn copied(&mut self, at: At, publish: &Publish<'_>) {
        let name = publish.message;
        if let Some(message) = self.messages.get_mut(name) {
            let old = std::mem::replace(&mut message.at, at);
            return self.replaced(Some(old), at);
        }
        self.resolve_written(publish);
        let origin = origin_of(name);
        self.last_pub[origin] = self.last_pub[origin].max(sequence_of(name));
        let retain = publish.retain;
        let publish = Publish { retain: publish.is_value, ..*publish };
        self.insert(at, &publish);
        if let Some(message) = self.messages.get_mut(name) {
            message.retain = retain;
        }
        if publish.is_value {
            self.retain(publish.topic, name, true);
        }
        self.release(name);
    }

    /// It is the value of its topic, or clears it.
    pub(super) fn retain(&mut self, topic: &str, name: u64, has_value: bool) {
        let old = if has_value {
            if let Some(message) = self.messages.get_mut(name) {
                message.is_retained = true;
            }
            match self.retained.get_mut(topic) {
                Some(value) => Some(std::mem::replace(value, name)),
                None => self.retained.insert(topic.into(), name),
            }
        } else {
            self.retained.remove(topic)
        };
        if let Some(old) = old.filter(|old| *old != name) {
            if let Some(message) = self.messages.get_mut(old) {
                message.is_retained = false;
            }
            self.release(old);
        }
    }

    /// Ends it if nobody holds it.
    pub(super) fn release(&mut self, name: u64) {
        let is_over =
            self.messages.get(name).is_some_and(|m| m.receivers.is_empty() && !m.is_retained);
        if is_over && let Some(message) = self.messages.remove(name) {
            self.gone(Some(message.at));
        }
    }

    /// Takes a holder off a message.
    pub(super) fn settle(&mut self, name: u64, holder: u32, is_group: bool) -> Option<Owed> {
        let message = self.messages.get_mut(name)?;
        let owed = message.receivers.remove(holder, is_group)?;
        if message.receivers.is_empty() && !message.is_retained {
            let at = message.at;
            self.messages.remove(name);
            self.gone(Some(at));
        }
        if !owed.is_assigned {
            self.settle_queue(holder, is_group);
        }
        Some(owed)
    }

    pub(super) fn settle_queue(&mut self, holder: u32, is_group: bool) {
        let Self { messages, sessions, groups, .. } = self;
        let queue = match is_group {
            true => &mut groups[holder as usize].queue,
            false => &mut sessions[holder as usize].queue,
        };
        queue.settle(|name| {
            let owed = messages.get(name).and_then(|m| m.receivers.find(holder, is_group));
            owed.is_some_and(|owed| !owed.is_assigned)
        });
    }
}
