//! What a restart gets back: the durable state, as the fold over the journal gives it and as
//! `Broker::restore` takes it.
//!
//! Plain data that may cross threads. A message stands in it once, however many sessions hold it;
//! holders name it by its place in [`DurableState::messages`]. Times are wall time, in milliseconds
//! since the Unix epoch: the monotonic clock of the process that wrote them is gone.
//!
//! What the fold owes to whom (SHARDS.md J6, J7, J9), in terms of [`Record`](super::change::Record):
//! - A PUB owes its message to each session that exists with an expiry above zero and has a plain
//!   subscription at QoS 1 or 2 that matches when the PUB is taken, No Local regarded, unless it is
//!   a QoS 1 publication that is not above what that subscription's `seen` says of its origin; the
//!   QoS is the highest of the matching subscriptions, the identifiers are those of all of them.
//! - ACKED and DONE end it, also when they stand before the PUB. ASSIGN owes it to its session in
//!   any case, under the terms that it carries, and ends what had its packet id before.
//! - UNSUB ends what is owed by that subscription alone and not assigned: QoS 2 publications, and
//!   QoS 1 ones above its `seen`.
//! - A group that has a durable member at QoS 1 or 2 is owed it likewise, until GROUPACK, or an
//!   ASSIGN that names the group.
//!   What a group is owed ends with its last durable member.
//! - Of the retained publications of a topic the last that the journal took is its value.
//! - Wherever "message order" is asked for it is that of [`MessageId::order`]: a copy that was made
//!   to free a segment keeps its place.
#![forbid(unsafe_code)]

use std::sync::Arc;

use bytes::Bytes;

use crate::codec::mqtt::{QoS, SubscriptionOptions};
use crate::ids::PlacementKey;

pub use super::message::MessageId;
pub use crate::codec::mqtt::PacketId;

/// All that lasts; or, after [`DurableState::partition`], one shard's part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DurableState {
    /// The greatest [`MessageId::sequence`] that any record mentions, whatever became of it.
    pub last_sequence: u64,
    /// Every message that somebody below holds, ascending by [`MessageId::order`].
    pub messages: Vec<DurableMessage>,
    /// Sessions with an expiry above zero.
    pub sessions: Vec<DurableSession>,
    /// The retained messages, by their places in `messages`, one per topic.
    pub retained: Vec<u32>,
    /// What is owed to groups, and not to one of their members yet. Empty in a part.
    pub groups: Vec<DurableGroup>,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableMessage {
    /// Its name.
    pub id: MessageId,
    /// The publisher's client id.
    pub publisher: Arc<str>,
    /// Topic Name.
    pub topic: Arc<str>,
    /// Properties as `append_forwarded` wrote them.
    pub forwarded: Box<[u8]>,
    /// The payload.
    pub payload: Bytes,
    /// As published.
    pub qos: QoS,
    /// As published.
    pub retain: bool,
    /// When it expires, in ms since the Unix epoch.
    pub deadline_ms: Option<u64>,
}

/// A session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DurableSession {
    /// Whose.
    pub client_id: Box<str>,
    /// Session Expiry Interval in seconds, above 0; `u32::MAX` is "for ever".
    pub expiry_secs: u32,
    /// Since when it has no connection, in ms since the Unix epoch; None if it had one at the end.
    pub offline_since_ms: Option<u64>,
    /// In any order.
    pub subscriptions: Vec<DurableSubscription>,
    /// The Will that is set and was not published.
    pub will: Option<DurableWill>,
    /// Packet ids of its QoS 2 publications that it has not released.
    pub unreleased: Vec<PacketId>,
    /// QoS 2 messages that have a packet id, in the order of their ASSIGNs.
    pub in_flight: Vec<DurableExchange>,
    /// What else is owed to it, ascending by place in `messages`.
    pub queue: Vec<DurableQueued>,
    /// Behind that, what is left where it lies: only the journal has it. Ascending by
    /// [`MessageId::order`].
    pub on_disk: Vec<DurableEvicted>,
}

/// A subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableSubscription {
    /// With `$share/name/`, if it is shared.
    pub filter: Box<str>,
    /// Subscription Options as in SUBSCRIBE.
    pub options: u8,
    /// Subscription Identifier.
    pub subscription_id: Option<u32>,
}

/// A Will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableWill {
    /// Topic Name.
    pub topic: Box<str>,
    /// Properties as `append_forwarded` wrote them.
    pub forwarded: Box<[u8]>,
    /// The payload.
    pub payload: Bytes,
    /// To be published with.
    pub qos: QoS,
    /// To be published with.
    pub retain: bool,
    /// Will Delay Interval in seconds.
    pub delay_secs: u32,
    /// Message Expiry Interval in seconds.
    pub expiry_secs: Option<u32>,
}

/// A QoS 2 message on its way to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableExchange {
    /// Under which packet id.
    pub packet_id: PacketId,
    /// PUBREC came: PUBREL is owed, and no message any more.
    pub is_received: bool,
    /// What is sent; None once PUBREC came, and if the journal does not have the message. Then
    /// PUBREL alone ends the exchange.
    pub message: Option<DurableQueued>,
}

/// One message for one session, and the terms on which it is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableQueued {
    /// Its place in [`DurableState::messages`].
    pub message: u32,
    /// At which it is delivered, 1 or 2.
    pub qos: QoS,
    /// Retain flag that it is delivered with.
    pub retain: bool,
    /// What few have.
    pub extra: Option<Box<DurableExtra>>,
}

// There may be millions.
const _: () = assert!(size_of::<DurableQueued>() == 16);

/// The same for a message that is not in [`DurableState::messages`]. There may be millions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableEvicted {
    /// Its name.
    pub id: MessageId,
    /// Its bytes, about.
    pub size: u32,
    /// As in [`DurableQueued`].
    pub qos: QoS,
    /// As in [`DurableQueued`].
    pub retain: bool,
    /// What few have.
    pub extra: Option<Box<DurableExtra>>,
}

/// What few messages of a queue have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DurableExtra {
    /// Subscription Identifiers that it carries.
    pub subscription_ids: Box<[u32]>,
    /// `share name/filter` of the group that it was picked for.
    pub group: Option<Box<str>>,
}

impl DurableExtra {
    /// With these, if there is anything to say.
    pub fn of(subscription_ids: Box<[u32]>, group: Option<Box<str>>) -> Option<Box<Self>> {
        let is_some = !subscription_ids.is_empty() || group.is_some();
        is_some.then(|| Box::new(Self { subscription_ids, group }))
    }
}

/// What a group is owed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DurableGroup {
    /// `share name/filter`.
    pub key: Box<str>,
    /// Places in [`DurableState::messages`], ascending.
    pub owed: Vec<u32>,
    /// What it is owed besides: the QoS and the retain flag are those of the publication.
    pub on_disk: Vec<DurableEvicted>,
}

impl DurableState {
    /// The parts of `shards` shards: sessions at their homes, retained messages at their owners,
    /// and with each the messages that it holds. What is owed to groups goes to durable members,
    /// in turn (SHARDS.md J9); without one there is nobody left to owe it to.
    pub fn partition(mut self, placement: PlacementKey, shards: usize) -> Vec<Self> {
        self.settle_groups();
        let empty = || Self { last_sequence: self.last_sequence, ..Self::default() };
        let mut parts: Vec<Self> = (0..shards).map(|_| empty()).collect();
        for session in self.sessions.drain(..) {
            let home = placement.home_of(&session.client_id, shards);
            parts[home.index()].sessions.push(session);
        }
        for place in self.retained.drain(..) {
            let topic = &self.messages[place as usize].topic;
            parts[placement.owner_of(topic, shards).index()].retained.push(place);
        }
        let held: Vec<Vec<u32>> = parts.iter().map(Self::held).collect();
        if let [part] = &mut *parts
            && held[0].len() == self.messages.len()
        {
            // There may be millions, and they stay where they are.
            part.messages = self.messages;
            return parts;
        }
        // Each message goes to the last part that holds it, and is copied for the others; its
        // payload is shared between them.
        let mut holders = vec![0_u32; self.messages.len()];
        held.iter().flatten().for_each(|place| holders[*place as usize] += 1);
        let mut place_in_part = vec![0_u32; self.messages.len()];
        let mut messages: Vec<_> = self.messages.into_iter().map(Some).collect();
        for (part, held) in parts.iter_mut().zip(held) {
            part.messages.reserve_exact(held.len());
            for place in &held {
                let (message, left) =
                    (&mut messages[*place as usize], &mut holders[*place as usize]);
                *left -= 1;
                let message = if *left == 0 { message.take() } else { message.clone() };
                part.messages.push(message.expect("invariant: taken by its last holder"));
            }
            // What another part has left there is not asked for: this one names what it holds.
            for (index, place) in held.iter().enumerate() {
                place_in_part[*place as usize] = index as u32;
            }
            part.renumber(|place| {
                let new = place_in_part[place as usize];
                debug_assert_eq!(held.get(new as usize), Some(&place), "invariant: held here");
                new
            });
        }
        parts
    }

    /// Gives what is owed to groups to their members.
    fn settle_groups(&mut self) {
        let Self { groups, sessions, messages, .. } = self;
        for group in groups.drain(..) {
            let mut members = Vec::new();
            for (index, session) in sessions.iter().enumerate() {
                let mine = session.subscriptions.iter().find(|subscription| {
                    subscription.filter.strip_prefix("$share/") == Some(&*group.key)
                        && qos_of(subscription.options) > QoS::AtMostOnce
                });
                members.extend(mine.map(|mine| (index, mine.options, mine.subscription_id)));
            }
            if members.is_empty() {
                continue;
            }
            let in_memory = group.owed.len();
            for (turn, mut evicted) in group.on_disk.into_iter().enumerate() {
                let (index, options, id) = members[(in_memory + turn) % members.len()];
                evicted.qos = evicted.qos.min(qos_of(options));
                evicted.retain &= options & RETAIN_AS_PUBLISHED != 0;
                evicted.extra = DurableExtra::of(id.into_iter().collect(), Some(group.key.clone()));
                sessions[index].on_disk.push(evicted);
            }
            for (turn, place) in group.owed.iter().enumerate() {
                let (index, options, id) = members[turn % members.len()];
                let message = &messages[*place as usize];
                sessions[index].queue.push(DurableQueued {
                    message: *place,
                    qos: message.qos.min(qos_of(options)),
                    retain: message.retain && options & RETAIN_AS_PUBLISHED != 0,
                    extra: DurableExtra::of(id.into_iter().collect(), Some(group.key.clone())),
                });
            }
            for (index, _, _) in members {
                sessions[index].queue.sort_by_key(|queued| queued.message);
                sessions[index].on_disk.sort_by_key(|evicted| evicted.id.order());
            }
        }
    }

    /// The places of all messages that somebody here holds, ascending, each once.
    fn held(&self) -> Vec<u32> {
        let in_flight = |session: &DurableSession| {
            let sent = session.in_flight.iter().filter_map(|e| e.message.as_ref());
            sent.chain(&session.queue).map(|queued| queued.message).collect::<Vec<_>>()
        };
        let mut held = self.retained.clone();
        held.extend(self.sessions.iter().flat_map(in_flight));
        held.sort_unstable();
        held.dedup();
        held
    }

    fn renumber(&mut self, new: impl Fn(u32) -> u32) {
        self.retained.iter_mut().for_each(|place| *place = new(*place));
        for session in &mut self.sessions {
            let sent = session.in_flight.iter_mut().filter_map(|e| e.message.as_mut());
            sent.chain(&mut session.queue).for_each(|queued| queued.message = new(queued.message));
        }
    }
}

/// Bit of the Subscription Options (3.8.3.1).
const RETAIN_AS_PUBLISHED: u8 = 1 << 3;

/// The QoS that Subscription Options grant.
fn qos_of(options: u8) -> QoS {
    SubscriptionOptions::from_byte(options).map_or(QoS::AtMostOnce, |options| options.qos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardId;
    use std::collections::BTreeMap;

    fn message(n: u64, retain: bool) -> DurableMessage {
        DurableMessage {
            id: MessageId::new(ShardId::new(1), n),
            publisher: "p".into(),
            topic: format!("t/{n}").into(),
            forwarded: Box::default(),
            payload: Bytes::from(format!("{n}")),
            qos: QoS::AtLeastOnce,
            retain,
            deadline_ms: None,
        }
    }

    fn queued(message: u32) -> DurableQueued {
        DurableQueued { message, qos: QoS::AtLeastOnce, retain: false, extra: None }
    }

    fn session(n: u32, queue: &[u32]) -> DurableSession {
        DurableSession {
            client_id: format!("client-{n}").into(),
            expiry_secs: 60,
            queue: queue.iter().copied().map(queued).collect(),
            ..DurableSession::default()
        }
    }

    /// What each session and each retained topic has, by payload, whichever part it is in.
    fn contents(parts: &[DurableState]) -> BTreeMap<String, Vec<Bytes>> {
        let mut all = BTreeMap::new();
        for part in parts {
            let payload = |place: &u32| part.messages[*place as usize].payload.clone();
            for session in &part.sessions {
                let flight = session.in_flight.iter().filter_map(|e| e.message.as_ref());
                let held = flight.chain(&session.queue).map(|queued| payload(&queued.message));
                assert!(all.insert(session.client_id.to_string(), held.collect()).is_none());
            }
            for place in &part.retained {
                let topic = part.messages[*place as usize].topic.to_string();
                assert!(all.insert(topic, vec![payload(place)]).is_none());
            }
        }
        all
    }

    /// A changed shard count needs nothing: every part has what its sessions and topics hold, once,
    /// and no more.
    #[test]
    fn parts_hold_all_of_it_whatever_their_number() {
        let mut sessions: Vec<_> = (0..20).map(|n| session(n, &[0, n % 7 + 1, 9])).collect();
        sessions[3].in_flight = vec![DurableExchange {
            packet_id: PacketId::new(7).unwrap(),
            is_received: false,
            message: Some(queued(8)),
        }];
        let whole = DurableState {
            last_sequence: 77,
            messages: (0..10).map(|n| message(n + 1, n % 2 == 0)).collect(),
            sessions,
            retained: vec![0, 2, 4, 6],
            groups: Vec::new(),
        };
        let expected = contents(std::slice::from_ref(&whole));
        let placement = PlacementKey(5);
        for shards in [1, 2, 3, 8] {
            let parts = whole.clone().partition(placement, shards);
            assert_eq!(contents(&parts), expected);
            for (index, part) in parts.iter().enumerate() {
                assert_eq!(part.last_sequence, 77);
                let home = |s: &DurableSession| placement.home_of(&s.client_id, shards).index();
                assert!(part.sessions.iter().all(|session| home(session) == index));
                assert_eq!(part.held().len(), part.messages.len(), "nothing that nobody holds");
                assert!(part.messages.is_sorted_by_key(|message| message.id.sequence()));
            }
        }
    }

    /// SHARDS.md J9: among durable members, in message order; QoS 0 members are not owed anything.
    #[test]
    fn what_a_group_is_owed_goes_to_its_durable_members() {
        let share = |options| DurableSubscription {
            filter: "$share/g/t/#".into(),
            options,
            subscription_id: Some(9),
        };
        let mut sessions: Vec<_> = (0..3).map(|n| session(n, &[])).collect();
        for (session, options) in sessions.iter_mut().zip([1, 0, 2]) {
            session.subscriptions.push(share(options));
        }
        sessions[0].queue.push(queued(2));
        let whole = DurableState {
            messages: (0..4).map(|n| message(n + 1, false)).collect(),
            sessions,
            groups: vec![
                DurableGroup { key: "g/t/#".into(), owed: vec![0, 1, 3], on_disk: Vec::new() },
                DurableGroup { key: "gone/t/#".into(), owed: vec![0], on_disk: Vec::new() },
            ],
            ..DurableState::default()
        };
        let parts = whole.partition(PlacementKey(5), 1);
        let queues: Vec<Vec<u32>> = parts[0]
            .sessions
            .iter()
            .map(|session| session.queue.iter().map(|queued| queued.message).collect())
            .collect();
        assert_eq!(queues, [vec![0, 2, 3], vec![], vec![1]]);
        let first = &parts[0].sessions[0].queue[0];
        let extra = first.extra.as_deref().unwrap();
        assert_eq!((extra.group.as_deref(), &*extra.subscription_ids), (Some("g/t/#"), &[9][..]));
    }
}
