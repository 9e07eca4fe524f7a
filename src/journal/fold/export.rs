//! The fold as [`DurableState`], which the shards begin with.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use foldhash::fast::FixedState;

use super::messages::{Message, Owed};
use super::queue::Queue;
use super::sessions::{Exchange, Session};
use super::subs::Sub;
use super::{At, Fold};
use crate::broker::QoS;
use crate::broker::durable::{
    DurableEvicted, DurableExchange, DurableExtra, DurableGroup, DurableMessage, DurableQueued,
    DurableSession, DurableState, DurableSubscription, DurableWill, PacketId,
};
use crate::journal::record::{Entry, Publish, Will, decode, message_of};
use crate::limits::SHARE_PAYLOAD_FROM;

/// Reads a record's body from where it lies.
pub(in crate::journal) trait Bodies {
    /// The body at `at`; None, counted and named, if it cannot be read.
    fn body(&mut self, at: At) -> Option<&[u8]>;
}

const fn qos(qos: u8) -> QoS {
    match qos {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}

/// Places in `messages`, by name: they stand in the order of their names, and are mostly asked for in
/// it.
struct Places {
    names: Vec<u64>,
    /// Behind the place that was found last.
    next: Cell<usize>,
}

impl Places {
    fn of(messages: &[DurableMessage]) -> Self {
        let names = messages.iter().map(|message| message.id.order()).collect();
        Self { names, next: Cell::new(0) }
    }

    fn get(&self, name: u64) -> Option<u32> {
        let next = self.next.get();
        let place = match self.names.get(next) {
            Some(found) if *found == name => next,
            _ => self.names.binary_search(&name).ok()?,
        };
        self.next.set(place + 1);
        u32::try_from(place).ok()
    }
}

impl Fold {
    /// All of it, with what the messages and Wills hold read by `bodies`, in the log's order: of
    /// what only queues hold, the first so many bytes, and the rest as it lies there.
    pub(in crate::journal) fn export(&self, bodies: &mut dyn Bodies, most: u64) -> DurableState {
        let last = self.last_to_read(most);
        let messages = self.export_messages(bodies, last);
        let wills = self.export_wills(bodies);
        let places = Places::of(&messages);
        let retained = self.retained.values().filter_map(|name| places.get(*name));
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
            let (read, on_disk) = self.in_order(&group.queue, (slot, true), &places);
            let on_disk = on_disk.into_iter().filter_map(|Named { name, .. }| {
                let message = self.messages.get(name)?;
                evicted(name, message, (message.qos, message.retain), None)
            });
            let on_disk: Vec<DurableEvicted> = on_disk.collect();
            let owed: Vec<u32> = read.into_iter().filter_map(|named| named.place).collect();
            if !owed.is_empty() || !on_disk.is_empty() {
                state.groups.push(DurableGroup { key: group.key.clone(), owed, on_disk });
            }
        }
        state
    }

    fn owed(&self, name: u64, holder: u32, is_group: bool) -> Option<&Owed> {
        let owed = self.messages.get(name)?.receivers.find(holder, is_group)?;
        (!owed.is_assigned).then_some(owed)
    }

    /// The name of the last message that is read for queues, so that they take `most` bytes.
    fn last_to_read(&self, most: u64) -> u64 {
        if most == u64::MAX {
            return u64::MAX;
        }
        let len = |message: &Message| u64::from(message.at.len);
        if self.messages.iter().map(|(_, message)| len(message)).sum::<u64>() <= most {
            return u64::MAX;
        }
        let mut all: Vec<(u64, u64)> =
            self.messages.in_order().map(|(name, message)| (name, len(message))).collect();
        all.sort();
        let (mut last, mut left) = (0, most);
        for (name, len) in all {
            if len > left {
                break;
            }
            (last, left) = (name, left - len);
        }
        last
    }

    fn export_messages(&self, bodies: &mut dyn Bodies, last: u64) -> Vec<DurableMessage> {
        let is_read = |name: u64, message: &Message| {
            name <= last
                || message.is_retained
                || message.receivers.iter().any(|owed| owed.is_assigned)
        };
        let read = self.messages.in_order().filter(|(name, message)| is_read(*name, message));
        let mut all: Vec<At> = read.map(|(_, message)| message.at).collect();
        // Mostly in order already, and then this takes no time.
        all.sort_by_key(|at| (at.commit, at.offset));
        let mut messages = Vec::with_capacity(all.len());
        let mut taking = Taking::default();
        for at in all {
            let Some(body) = bodies.body(at) else { continue };
            if let Ok((_, Entry::Publish(publish))) = decode(body) {
                messages.extend(taking.message(&publish));
            }
        }
        messages.sort_by_key(|message: &DurableMessage| message.id.order());
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
        let (read, on_disk) = self.in_order(&session.queue, (slot, false), places);
        let queue = read.into_iter().filter_map(|Named { place, owed, .. }| {
            Some(DurableQueued {
                message: place?,
                qos: qos(owed.qos),
                retain: owed.retain,
                extra: DurableExtra::of(owed.ids().collect(), None),
            })
        });
        let queue = queue.collect();
        let on_disk = on_disk.into_iter().filter_map(|Named { name, owed, .. }| {
            let message = self.messages.get(name)?;
            let extra = DurableExtra::of(owed.ids().collect(), None);
            evicted(name, message, (owed.qos, owed.retain), extra)
        });
        let on_disk = on_disk.collect();
        DurableSession {
            client_id: session.client_id.clone(),
            expiry_secs: session.expiry_secs,
            offline_since_ms: session.offline_since,
            subscriptions: self.export_subscriptions(slot, session),
            will: None,
            unreleased: packet_ids(session.unreleased.keys()),
            in_flight: export_exchanges(session, places),
            queue,
            on_disk,
        }
    }

    /// What a queue's holder is owed, by name: the first that were read, and what stays on disk.
    /// There, too, what could not be read: it is tried again when it is wanted, and counted if it is
    /// lost.
    fn in_order<'a>(
        &'a self,
        queue: &Queue,
        (holder, is_group): (u32, bool),
        places: &Places,
    ) -> (Vec<Named<'a>>, Vec<Named<'a>>) {
        let mut named = Vec::with_capacity(queue.owed());
        named.extend(queue.names().filter_map(|name| {
            let owed = self.owed(name, holder, is_group)?;
            Some(Named { name, place: places.get(name), owed })
        }));
        named.sort_unstable_by_key(|named| named.name);
        let read = named.iter().take_while(|named| named.place.is_some()).count();
        let on_disk = named.split_off(read);
        (named, on_disk)
    }

    fn export_subscriptions(&self, slot: u32, session: &Session) -> Vec<DurableSubscription> {
        let durable = |filter: Box<str>, sub: &Sub| DurableSubscription {
            filter,
            options: sub.options,
            subscription_id: Some(sub.subscription_id).filter(|id| *id != 0),
        };
        let mut all = Vec::new();
        for id in &session.subs {
            let found = self.plain[*id].get(slot);
            all.extend(found.map(|sub| durable(self.plain.filter(*id).into(), sub)));
        }
        for group in &session.groups {
            let group = &self.groups[*group as usize];
            let found = group.members.get(slot);
            all.extend(found.map(|sub| durable(format!("$share/{}", group.key).into(), sub)));
        }
        all
    }
}

/// A message of a queue.
struct Named<'a> {
    name: u64,
    /// Where it is, if it was read.
    place: Option<u32>,
    owed: &'a Owed,
}

fn evicted(
    name: u64,
    message: &Message,
    (at_qos, retain): (u8, bool),
    extra: Option<Box<DurableExtra>>,
) -> Option<DurableEvicted> {
    let (id, size) = (message_of(name)?, message.at.len);
    Some(DurableEvicted { id, size, qos: qos(at_qos), retain, extra })
}

fn packet_ids<'a>(ids: impl Iterator<Item = &'a u16>) -> Vec<PacketId> {
    ids.filter_map(|id| PacketId::new(*id)).collect()
}

fn export_exchanges(session: &Session, places: &Places) -> Vec<DurableExchange> {
    let mut all: Vec<(&u16, &Exchange)> = session.exchanges.iter().collect();
    all.sort_unstable_by_key(|(_, exchange)| exchange.order);
    let durable = |(id, exchange): (&u16, &Exchange)| {
        let place = exchange.message.and_then(|name| places.get(name));
        let message = place.filter(|_| !exchange.is_received).map(|message| DurableQueued {
            message,
            qos: QoS::ExactlyOnce,
            retain: exchange.retain,
            extra: DurableExtra::of(exchange.subscription_ids.clone(), exchange.group.clone()),
        });
        Some(DurableExchange {
            packet_id: PacketId::new(*id)?,
            is_received: exchange.is_received,
            message,
        })
    };
    all.into_iter().filter_map(durable).collect()
}

/// Takes messages out of records, without an allocation for each: texts are mostly those of the one
/// before, and small payloads stand together.
#[derive(Default)]
struct Taking {
    publisher: Arc<str>,
    topic: Arc<str>,
    payloads: BytesMut,
}

/// Bytes of payloads that stand together.
const PAYLOADS: usize = 64 * 1024;

impl Taking {
    fn message(&mut self, publish: &Publish<'_>) -> Option<DurableMessage> {
        Some(DurableMessage {
            id: message_of(publish.message)?,
            publisher: same_or_new(&mut self.publisher, publish.publisher),
            topic: same_or_new(&mut self.topic, publish.topic),
            forwarded: publish.forwarded.into(),
            payload: self.payload(publish.payload),
            qos: qos(publish.qos),
            retain: publish.retain,
            deadline_ms: publish.deadline,
        })
    }

    /// One that will be shared stands alone: it would keep its neighbours.
    fn payload(&mut self, payload: &[u8]) -> Bytes {
        if payload.len() >= SHARE_PAYLOAD_FROM {
            return Bytes::copy_from_slice(payload);
        }
        if self.payloads.capacity() < payload.len() {
            self.payloads = BytesMut::with_capacity(PAYLOADS.max(payload.len()));
        }
        self.payloads.extend_from_slice(payload);
        self.payloads.split().freeze()
    }
}

fn same_or_new(last: &mut Arc<str>, text: &str) -> Arc<str> {
    if **last != *text {
        *last = text.into();
    }
    last.clone()
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
