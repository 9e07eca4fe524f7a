//! The fold said in the plainest way: what a recovery must give is worked out from a list of
//! records, by the words of SHARDS.md and `broker::durable`.

use std::collections::BTreeMap;

use crate::broker::Record;
use crate::broker::durable::{DurableState, MessageId};
use crate::codec::mqtt::QoS;

/// To whom a message is owed.
#[derive(Clone, Debug, PartialEq)]
struct Owed {
    client: String,
    qos: u8,
    ids: Vec<u32>,
    /// The only filter that it is owed by, while this process runs.
    only: Option<String>,
}

#[derive(Clone, Debug)]
struct Message {
    topic: String,
    payload: Vec<u8>,
    qos: u8,
    owed: Vec<Owed>,
}

#[derive(Clone, Debug)]
struct Exchange {
    packet_id: u16,
    message: Option<MessageId>,
    is_received: bool,
}

#[derive(Clone, Debug)]
struct Sub {
    qos: u8,
    id: Option<u32>,
    seen: Vec<MessageId>,
}

#[derive(Clone, Debug, Default)]
struct Session {
    subs: BTreeMap<String, Sub>,
    will: Option<Vec<u8>>,
    unreleased: Vec<u16>,
    exchanges: Vec<Exchange>,
}

/// The state, kept naively.
#[derive(Clone, Debug, Default)]
pub(super) struct Naive {
    sessions: BTreeMap<String, Session>,
    messages: BTreeMap<u64, Message>,
    retained: BTreeMap<String, u64>,
    ended: Vec<(String, u64)>,
    last_sequence: u64,
}

/// What can be compared.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    /// Filters; Will; unreleased; exchanges; queue.
    sessions: BTreeMap<String, SeenSession>,
    /// Topic, length and checksum of the payload of every message that somebody holds.
    messages: BTreeMap<u64, (String, usize, u32)>,
    retained: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct SeenSession {
    subs: Vec<(String, u8, Option<u32>)>,
    will: Option<Vec<u8>>,
    unreleased: Vec<u16>,
    exchanges: Vec<(u16, bool, Option<u64>)>,
    queue: Vec<(u64, u8, Vec<u32>)>,
}

pub(super) fn matches(filter: &str, topic: &str) -> bool {
    filter == "#"
        || filter == topic
        || filter.strip_suffix("/#").is_some_and(|f| topic.starts_with(f))
}

impl Naive {
    pub(super) const fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    pub(super) fn clients(&self) -> Vec<String> {
        self.sessions.keys().cloned().collect()
    }

    pub(super) fn filters(&self, client: &str) -> Vec<String> {
        self.sessions.get(client).map(|s| s.subs.keys().cloned().collect()).unwrap_or_default()
    }

    /// Queued for this session: message and QoS.
    pub(super) fn queue(&self, client: &str) -> Vec<(u64, u8)> {
        let assigned = self.assigned(client);
        let owed = |(name, message): (&u64, &Message)| {
            let owed = message.owed.iter().find(|owed| owed.client == client)?;
            (!assigned.contains(name)).then_some((*name, owed.qos))
        };
        self.messages.iter().filter_map(owed).collect()
    }

    /// Packet ids of exchanges: received or not, and the message.
    pub(super) fn exchanges(&self, client: &str) -> Vec<(u16, bool, Option<MessageId>)> {
        let session = self.sessions.get(client);
        let all = session.map(|s| s.exchanges.as_slice()).unwrap_or_default();
        all.iter().map(|e| (e.packet_id, e.is_received, e.message)).collect()
    }

    pub(super) fn unreleased(&self, client: &str) -> Vec<u16> {
        self.sessions.get(client).map(|s| s.unreleased.clone()).unwrap_or_default()
    }

    fn assigned(&self, client: &str) -> Vec<u64> {
        let session = self.sessions.get(client);
        let all = session.map(|s| s.exchanges.as_slice()).unwrap_or_default();
        let live = all.iter().filter(|e| !e.is_received);
        live.filter_map(|e| e.message).map(|m| m.order()).collect()
    }

    /// Another process: which subscription a message is owed by is not known any more.
    pub(super) fn restarted(&mut self) {
        for owed in self.messages.values_mut().flat_map(|message| &mut message.owed) {
            owed.only = None;
        }
    }

    fn end(&mut self, client: &str, name: u64) {
        if let Some(message) = self.messages.get_mut(&name) {
            message.owed.retain(|owed| owed.client != client);
        }
        self.ended.push((client.to_owned(), name));
    }

    fn mention(&mut self, id: Option<MessageId>) {
        self.last_sequence = self.last_sequence.max(id.map_or(0, |id| id.sequence()));
    }

    pub(super) fn apply(&mut self, record: &Record) {
        match record {
            Record::Publish {
                message,
                publisher,
                packet_id,
                content,
                qos,
                retain,
                is_will,
                ..
            } => {
                self.mention(Some(*message));
                let name = message.order();
                if let Some(session) = self.sessions.get_mut(&**publisher) {
                    session.unreleased.extend(packet_id.map(|id| id.get()));
                    if *is_will {
                        session.will = None;
                    }
                }
                let owed = self.receivers(*message, content.topic(), *qos);
                let kept = Message {
                    topic: content.topic().to_owned(),
                    payload: content.payload().to_vec(),
                    qos: *qos as u8,
                    owed,
                };
                self.messages.insert(name, kept);
                if *retain && content.payload().is_empty() {
                    self.retained.remove(content.topic());
                } else if *retain {
                    self.retained.insert(content.topic().to_owned(), name);
                }
            }
            Record::Session { client_id, expiry_secs, .. } => {
                if *expiry_secs == 0 {
                    self.end_session(client_id);
                } else {
                    self.sessions.entry(client_id.to_string()).or_default();
                }
            }
            Record::SessionEnded { client_id } => self.end_session(client_id),
            Record::Subscribe { client_id, filter, options, subscription_id, seen } => {
                seen.iter().for_each(|id| self.mention(Some(*id)));
                if let Some(session) = self.sessions.get_mut(&**client_id) {
                    let begun = session.subs.get(&**filter).map(|sub| sub.seen.clone());
                    let sub = Sub {
                        qos: options & 3,
                        id: *subscription_id,
                        seen: begun.unwrap_or_else(|| seen.to_vec()),
                    };
                    session.subs.insert(filter.to_string(), sub);
                }
            }
            Record::Unsubscribe { client_id, filter, seen } => {
                seen.iter().for_each(|id| self.mention(Some(*id)));
                self.unsubscribe(client_id, filter, seen);
            }
            Record::WillSet { client_id, payload, .. } => {
                if let Some(session) = self.sessions.get_mut(&**client_id) {
                    session.will = Some(payload.to_vec());
                }
            }
            Record::WillDeleted { client_id } => {
                if let Some(session) = self.sessions.get_mut(&**client_id) {
                    session.will = None;
                }
            }
            Record::Assign { client_id, packet_id, message, .. } => {
                self.mention(*message);
                let Some(session) = self.sessions.get_mut(&**client_id) else { return };
                let old = session.exchanges.iter().position(|e| e.packet_id == packet_id.get());
                let old = old.map(|index| session.exchanges.remove(index));
                session.exchanges.push(Exchange {
                    packet_id: packet_id.get(),
                    message: *message,
                    is_received: false,
                });
                if let Some(old) = old.and_then(|old| old.message).filter(|o| Some(*o) != *message)
                {
                    self.end(client_id, old.order());
                }
            }
            Record::Received { client_id, packet_id, .. } => {
                let Some(session) = self.sessions.get_mut(&**client_id) else { return };
                let found = session.exchanges.iter_mut().find(|e| e.packet_id == packet_id.get());
                if let Some(exchange) = found {
                    exchange.is_received = true;
                    if let Some(message) = exchange.message {
                        self.end(client_id, message.order());
                    }
                }
            }
            Record::Acked { client_id, message } => {
                self.mention(Some(*message));
                self.end(client_id, message.order());
            }
            Record::Done { client_id, packet_id, message } => {
                self.mention(*message);
                let Some(session) = self.sessions.get_mut(&**client_id) else { return };
                let same = |e: &Exchange| {
                    e.packet_id == packet_id.get() && (message.is_none() || e.message == *message)
                };
                session.exchanges.retain(|e| !same(e));
                if let Some(message) = message {
                    self.end(client_id, message.order());
                }
            }
            Record::Released { client_id, packet_id } => {
                if let Some(session) = self.sessions.get_mut(&**client_id) {
                    session.unreleased.retain(|id| *id != packet_id.get());
                }
            }
            Record::GroupAck { .. } => {}
        }
    }

    fn receivers(&self, message: MessageId, topic: &str, qos: QoS) -> Vec<Owed> {
        let mut owed = Vec::new();
        for (client, session) in &self.sessions {
            let is_wanted = |(filter, sub): &(&String, &Sub)| {
                let had = qos == QoS::AtLeastOnce
                    && sub.seen.iter().any(|last| {
                        last.origin() == message.origin() && message.sequence() <= last.sequence()
                    });
                sub.qos > 0 && qos != QoS::AtMostOnce && !had && matches(filter, topic)
            };
            let subs: Vec<(&String, &Sub)> = session.subs.iter().filter(is_wanted).collect();
            let ended = self.ended.contains(&(client.clone(), message.order()));
            if subs.is_empty() || ended {
                continue;
            }
            owed.push(Owed {
                client: client.clone(),
                qos: subs.iter().map(|(_, sub)| sub.qos).max().unwrap_or(0).min(qos as u8),
                ids: subs.iter().filter_map(|(_, sub)| sub.id).collect(),
                only: (subs.len() == 1).then(|| subs[0].0.clone()),
            });
        }
        owed
    }

    fn unsubscribe(&mut self, client: &str, filter: &str, seen: &[MessageId]) {
        let assigned = self.assigned(client);
        let Some(session) = self.sessions.get_mut(client) else { return };
        session.subs.remove(filter);
        for (name, message) in &mut self.messages {
            let had = message.qos == 1
                && seen
                    .iter()
                    .any(|last| last.order() & 0xff == name & 0xff && *name <= last.order());
            if !had && !assigned.contains(name) {
                message
                    .owed
                    .retain(|owed| owed.client != client || owed.only.as_deref() != Some(filter));
            }
        }
    }

    fn end_session(&mut self, client: &str) {
        self.sessions.remove(client);
        for message in self.messages.values_mut() {
            message.owed.retain(|owed| owed.client != client);
        }
        self.ended.retain(|(who, _)| who != client);
    }

    /// What a recovery has to give.
    /// Topic and payload of a message.
    pub(super) fn message(&self, name: u64) -> Option<(&str, &[u8])> {
        self.messages.get(&name).map(|message| (&*message.topic, &*message.payload))
    }

    pub(super) fn seen(&self) -> Seen {
        let mut seen = Seen { retained: self.retained.clone(), ..Seen::default() };
        let mut hold = |name: u64| {
            let message = self.messages.get(&name)?;
            let payload = &message.payload;
            let contents = (message.topic.clone(), payload.len(), crc32c::crc32c(payload));
            seen.messages.insert(name, contents);
            Some(name)
        };
        for name in self.retained.values() {
            hold(*name);
        }
        let mut sessions = BTreeMap::new();
        for (client, session) in &self.sessions {
            let assigned = self.assigned(client);
            let queued = |(name, message): (&u64, &Message)| {
                let owed = message.owed.iter().find(|owed| owed.client == *client)?;
                let mut ids = owed.ids.clone();
                ids.sort_unstable();
                (!assigned.contains(name)).then_some((*name, owed.qos, ids))
            };
            let queue: Vec<_> = self.messages.iter().filter_map(queued).collect();
            for (name, _, _) in &queue {
                hold(*name);
            }
            let mut unreleased = session.unreleased.clone();
            unreleased.sort_unstable();
            unreleased.dedup();
            let exchanges = session.exchanges.iter().map(|e| {
                let message = e.message.filter(|_| !e.is_received).map(|m| m.order());
                (e.packet_id, e.is_received, message.and_then(&mut hold))
            });
            let exchanges = exchanges.collect();
            let subs = session.subs.iter().map(|(f, sub)| (f.clone(), sub.qos, sub.id)).collect();
            let will = session.will.clone();
            sessions
                .insert(client.clone(), SeenSession { subs, will, unreleased, exchanges, queue });
        }
        seen.sessions = sessions;
        seen
    }
}

impl Seen {
    /// Where two differ, for people.
    pub(super) fn differences(&self, other: &Self) -> String {
        let mut text = String::new();
        let names: std::collections::BTreeSet<&String> =
            self.sessions.keys().chain(other.sessions.keys()).collect();
        for name in names {
            let (a, b) = (self.sessions.get(name), other.sessions.get(name));
            if let (Some(a), Some(b)) = (a, b) {
                let mut field = |what: &str, a: String, b: String| {
                    if a != b {
                        text += &format!("  {name} {what}: {a}\n      but {b}\n");
                    }
                };
                field("subs", format!("{:?}", a.subs), format!("{:?}", b.subs));
                field("will", format!("{:?}", a.will), format!("{:?}", b.will));
                field("unreleased", format!("{:?}", a.unreleased), format!("{:?}", b.unreleased));
                field("exchanges", format!("{:?}", a.exchanges), format!("{:?}", b.exchanges));
                field("queue", format!("{:?}", a.queue), format!("{:?}", b.queue));
            } else {
                text += &format!("  {name}: there or not\n");
            }
        }
        if self.retained != other.retained {
            text += &format!("  retained {:?}\n       but {:?}\n", self.retained, other.retained);
        }
        for name in self.messages.keys().chain(other.messages.keys()) {
            if self.messages.get(name) != other.messages.get(name) {
                text += &format!("  message {name}: {:?}\n", self.messages.get(name));
            }
        }
        text
    }
}

/// What a recovery has given.
impl Seen {
    /// Whether somebody holds it.
    pub(super) fn has(&self, name: u64) -> bool {
        self.messages.contains_key(&name)
    }
}

pub(super) fn seen_of(state: &DurableState) -> Seen {
    let name = |place: u32| state.messages[place as usize].id.order();
    let mut seen = Seen::default();
    for message in &state.messages {
        let payload = &message.payload;
        let contents = (message.topic.to_string(), payload.len(), crc32c::crc32c(payload));
        seen.messages.insert(message.id.order(), contents);
    }
    for place in &state.retained {
        let topic = state.messages[*place as usize].topic.to_string();
        assert!(seen.retained.insert(topic, name(*place)).is_none(), "one value per topic");
    }
    for session in &state.sessions {
        let mut subs: Vec<_> = session
            .subscriptions
            .iter()
            .map(|sub| (sub.filter.to_string(), sub.options & 3, sub.subscription_id))
            .collect();
        subs.sort();
        let queue = session.queue.iter().map(|queued| {
            let extra = queued.extra.as_deref();
            let mut ids = extra.map_or_else(Vec::new, |extra| extra.subscription_ids.to_vec());
            ids.sort_unstable();
            (name(queued.message), queued.qos as u8, ids)
        });
        let exchanges = session.in_flight.iter().map(|e| {
            (e.packet_id.get(), e.is_received, e.message.as_ref().map(|m| name(m.message)))
        });
        let it = SeenSession {
            subs,
            will: session.will.as_ref().map(|will| will.payload.to_vec()),
            unreleased: session.unreleased.iter().map(|id| id.get()).collect(),
            exchanges: exchanges.collect(),
            queue: queue.collect(),
        };
        assert!(seen.sessions.insert(session.client_id.to_string(), it).is_none(), "one each");
    }
    seen
}
