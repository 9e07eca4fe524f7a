//! The fold as [`DurableState`], which the shards begin with.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use bytes::Bytes;
use foldhash::fast::FixedState;

use super::messages::Owed;
use super::sessions::{Exchange, Session, Sub};
use super::{At, Fold};
use crate::broker::QoS;
use crate::broker::durable::{
    DurableExchange, DurableGroup, DurableMessage, DurableQueued, DurableSession, DurableState,
    DurableSubscription, DurableWill, PacketId,
};
use crate::journal::record::{Entry, Publish, Will, decode, message_of};

/// Reads a record's body from where it lies.
pub(in crate::journal) trait Bodies {
    /// The body at `at`; None, counted and reported, if it cannot be read.
    fn body(&mut self, at: At) -> Option<&[u8]>;
}

const fn qos(qos: u8) -> QoS {
    match qos {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}

/// Places in `messages`, by name.
type Places = HashMap<u64, u32, FixedState>;

impl Fold {
    /// All of it, with what the messages and Wills hold read by `bodies`, in the log's order.
    pub(in crate::journal) fn export(&self, bodies: &mut dyn Bodies) -> DurableState {
        let messages = self.export_messages(bodies);
        let wills = self.export_wills(bodies);
        let mut places = Places::with_capacity_and_hasher(messages.len(), FixedState::default());
        for (place, message) in messages.iter().enumerate() {
            places.insert(message.id.order(), place as u32);
        }
        let retained = self.retained.values().filter_map(|name| places.get(name).copied());
        let mut state = DurableState {
            last_sequence: self.last_sequence,
            retained: retained.collect(),
            sessions: Vec::with_capacity(self.clients.len()),
            groups: Vec::new(),
            messages,
        };
        state.retained.sort_unstable();
        let mut slots: Vec<u32> = self.clients.values().copied().collect();
        slots.sort_unstable_by_key(|slot| self.sessions[*slot as usize].number);
        for slot in slots {
            let mut session = self.export_session(slot, &places);
            session.will = wills.get(&slot).cloned();
            state.sessions.push(session);
        }
        let mut groups: Vec<u32> = self.group_keys.values().copied().collect();
        groups.sort_unstable_by_key(|slot| self.groups[*slot as usize].number);
        for slot in groups {
            let group = &self.groups[slot as usize];
            let owed = group.queue.names().filter(|name| self.owed(*name, slot, true).is_some());
            let mut owed: Vec<u32> = owed.filter_map(|name| places.get(&name).copied()).collect();
            owed.sort_unstable();
            if !owed.is_empty() {
                state.groups.push(DurableGroup { key: group.key.clone(), owed });
            }
        }
        state
    }

    fn owed(&self, name: u64, holder: u32, is_group: bool) -> Option<&Owed> {
        let receivers = &self.messages.get(name)?.receivers;
        receivers
            .iter()
            .find(|owed| (owed.holder, owed.is_group) == (holder, is_group) && !owed.is_assigned)
    }

    fn export_messages(&self, bodies: &mut dyn Bodies) -> Vec<DurableMessage> {
        let mut all: Vec<(At, u64)> = self.messages.iter().map(|(name, m)| (m.at, name)).collect();
        all.sort_unstable_by_key(|(at, _)| (at.commit, at.offset));
        let mut messages = Vec::with_capacity(all.len());
        for (at, _) in all {
            let Some(body) = bodies.body(at) else { continue };
            if let Ok((_, Entry::Publish(publish))) = decode(body) {
                messages.extend(durable_message(&publish));
            }
        }
        messages.sort_unstable_by_key(|message| message.id.order());
        messages
    }

    fn export_wills(&self, bodies: &mut dyn Bodies) -> HashMap<u32, DurableWill, FixedState> {
        let wills = self
            .clients
            .values()
            .filter_map(|slot| Some((self.sessions[*slot as usize].will?, *slot)));
        let mut all: Vec<(At, u32)> = wills.collect();
        all.sort_unstable_by_key(|(at, _)| (at.commit, at.offset));
        let mut wills = HashMap::with_hasher(FixedState::default());
        for (at, slot) in all {
            let Some(body) = bodies.body(at) else { continue };
            if let Ok((_, Entry::WillSet(will))) = decode(body) {
                wills.insert(slot, durable_will(&will));
            }
        }
        wills
    }

    fn export_session(&self, slot: u32, places: &Places) -> DurableSession {
        let session = &self.sessions[slot as usize];
        let queue = session.queue.names().filter_map(|name| {
            let owed = self.owed(name, slot, false)?;
            Some(DurableQueued {
                message: *places.get(&name)?,
                qos: qos(owed.qos),
                retain: owed.retain,
                subscription_ids: owed.ids().collect(),
                group: None,
            })
        });
        let mut queue: Vec<DurableQueued> = queue.collect();
        queue.sort_unstable_by_key(|queued| queued.message);
        DurableSession {
            client_id: session.client_id.clone(),
            expiry_secs: session.expiry_secs,
            offline_since_ms: session.offline_since,
            subscriptions: self.export_subscriptions(slot, session),
            will: None,
            unreleased: packet_ids(session.unreleased.keys()),
            in_flight: export_exchanges(session, places),
            queue,
        }
    }

    fn export_subscriptions(&self, slot: u32, session: &Session) -> Vec<DurableSubscription> {
        let durable = |filter: Box<str>, sub: &Sub| DurableSubscription {
            filter,
            options: sub.options,
            subscription_id: Some(sub.subscription_id).filter(|id| *id != 0),
        };
        let mut all = Vec::new();
        for id in &session.subs {
            let found = self.plain[*id].iter().find(|sub| sub.session == slot);
            all.extend(found.map(|sub| durable(self.plain.filter(*id).into(), sub)));
        }
        for group in &session.groups {
            let group = &self.groups[*group as usize];
            let found = group.members.iter().find(|sub| sub.session == slot);
            all.extend(found.map(|sub| durable(format!("$share/{}", group.key).into(), sub)));
        }
        all
    }
}

fn packet_ids<'a>(ids: impl Iterator<Item = &'a u16>) -> Vec<PacketId> {
    ids.filter_map(|id| PacketId::new(*id)).collect()
}

fn export_exchanges(session: &Session, places: &Places) -> Vec<DurableExchange> {
    let mut all: Vec<(&u16, &Exchange)> = session.exchanges.iter().collect();
    all.sort_unstable_by_key(|(_, exchange)| exchange.order);
    let durable = |(id, exchange): (&u16, &Exchange)| {
        let place = exchange.message.and_then(|name| places.get(&name)).copied();
        let message = place.filter(|_| !exchange.is_received).map(|message| DurableQueued {
            message,
            qos: QoS::ExactlyOnce,
            retain: exchange.retain,
            subscription_ids: exchange.subscription_ids.clone(),
            group: exchange.group.clone(),
        });
        Some(DurableExchange {
            packet_id: PacketId::new(*id)?,
            is_received: exchange.is_received,
            message,
        })
    };
    all.into_iter().filter_map(durable).collect()
}

pub(in crate::journal) fn durable_message(publish: &Publish<'_>) -> Option<DurableMessage> {
    Some(DurableMessage {
        id: message_of(publish.message)?,
        publisher: publish.publisher.into(),
        topic: publish.topic.into(),
        forwarded: publish.forwarded.into(),
        payload: Bytes::copy_from_slice(publish.payload),
        qos: qos(publish.qos),
        retain: publish.retain,
        deadline_ms: publish.deadline,
    })
}

fn durable_will(will: &Will<'_>) -> DurableWill {
    DurableWill {
        topic: will.topic.into(),
        forwarded: will.forwarded.into(),
        payload: Bytes::copy_from_slice(will.payload),
        qos: qos(will.qos),
        retain: will.retain,
        delay_secs: will.delay_secs,
        expiry_secs: will.expiry_secs,
    }
}
