//! What must survive a restart, and the answers that wait until it does.
//!
//! A durable session, a retained message and what happens to them is said in [`Record`]s, each
//! with the next number of this shard. The shard hands them to the journal and reports how far it
//! has come with [`Broker::handle_committed`]. Answers that promise something are parked until
//! then, in one queue in the order of their numbers, so that the answers of each connection leave
//! in the order of its packets (SHARDS.md H7). A parked answer names the connection that asked: to
//! a later one of the same session it says nothing (J5).
//!
//! With `record_changes` off, nothing is recorded, and nothing is ever parked.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;

use crate::clock::Time;
use crate::codec::mqtt::{Ack, Packet, PacketId, PacketKind, QoS, ReasonCode};
use crate::ids::{ConnId, ShardId};
use crate::limits::{CHANGES_MARK_BYTES, CHANGES_OPEN_BYTES, CHANGES_OPEN_MAX, PARKED_MAX};

use super::conn::State;
use super::content::Content;
use super::message::{MessageId, MessageKey};
use super::publication::Publication;
use super::session::SessionKey;
use super::shared_sub::{GroupName, Named};
use super::{Broker, Config, Level, Place, Wait, matches, route};

/// One durable change of this shard's state.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its place among this shard's changes, from 1.
    pub number: u64,
    /// What changed.
    pub record: Record,
    /// What it is to survive; never [`Level::None`].
    pub level: Level,
}

/// What changed. The fold over all of them is the durable state (SHARDS.md section 5).
#[derive(Clone, Debug)]
pub enum Record {
    /// PUB: a message with a durable receiver, or a retained one.
    Publish {
        /// Its name from here on.
        message: MessageId,
        /// The publisher's client id.
        publisher: Rc<str>,
        /// Of a QoS 2 publication: live until [`Record::Released`].
        packet_id: Option<PacketId>,
        /// Topic Name, properties and payload.
        content: Content,
        /// As published.
        qos: QoS,
        /// As published.
        retain: bool,
        /// When it expires.
        deadline: Option<Time>,
        /// It is this client's Will, which is fired with it. Of what nobody durable wants and is
        /// not retained, [`Record::WillDeleted`] says as much.
        is_will: bool,
        /// The groups that it is given to: no other is owed it, whoever is in it by the time that the
        /// journal takes this (SHARDS.md J9).
        groups: Named,
    },
    /// SESSION: it exists, with this expiry.
    Session {
        /// Whose.
        client_id: Rc<str>,
        /// Session Expiry Interval in seconds; `u32::MAX` is "for ever". At 0 it does not outlive
        /// its connection, and so no restart: for the fold it is over.
        expiry_secs: u32,
        /// Since when it has no connection; None while it has one.
        offline_since: Option<Time>,
    },
    /// SESSION: it is over, with all that it held.
    SessionEnded {
        /// Whose.
        client_id: Rc<str>,
    },
    /// SUB: a subscription has begun or has changed.
    Subscribe {
        /// Whose.
        client_id: Rc<str>,
        /// With `$share/name/`, if it is shared.
        filter: Box<str>,
        /// Subscription Options as in SUBSCRIBE.
        options: u8,
        /// Subscription Identifier.
        subscription_id: Option<u32>,
        /// Per origin, the last message that has come here before: it owes none at QoS 1 up to that
        /// (SHARDS.md J7).
        seen: Box<[MessageId]>,
    },
    /// UNSUB: a subscription has ended.
    Unsubscribe {
        /// Whose.
        client_id: Rc<str>,
        /// As in [`Record::Subscribe`].
        filter: Box<str>,
        /// Per origin, the last message that has come here before: what is above, at QoS 1, the
        /// subscription has not had.
        seen: Box<[MessageId]>,
    },
    /// WILL: set.
    WillSet {
        /// Whose.
        client_id: Rc<str>,
        /// Topic Name.
        topic: Box<str>,
        /// Properties as `append_forwarded` wrote them.
        forwarded: Box<[u8]>,
        /// The payload.
        payload: Bytes,
        /// To be published with.
        qos: QoS,
        /// To be published with.
        retain: bool,
        /// Will Delay Interval in seconds.
        delay_secs: u32,
        /// Message Expiry Interval in seconds.
        expiry_secs: Option<u32>,
    },
    /// WILL: deleted without being published.
    WillDeleted {
        /// Whose.
        client_id: Rc<str>,
    },
    /// ASSIGN: a QoS 2 message is sent to this client under this packet id.
    Assign {
        /// To whom.
        client_id: Rc<str>,
        /// Under which packet id.
        packet_id: PacketId,
        /// Which message; None for one that no journal holds.
        message: Option<MessageId>,
        /// Retain flag that it is sent with.
        retain: bool,
        /// Subscription Identifiers that it carries.
        subscription_ids: Box<[u32]>,
        /// `share name/filter` of the group that it was picked for: it is settled for that.
        group: Option<Box<str>>,
    },
    /// RECEIVED: PUBREC came for it.
    Received {
        /// From whom.
        client_id: Rc<str>,
        /// For which packet id.
        packet_id: PacketId,
        /// As in its [`Record::Assign`].
        message: Option<MessageId>,
    },
    /// ACKED: this client is done with a message that is not assigned: it was acknowledged, or
    /// dropped. May stand before its PUB.
    Acked {
        /// By whom.
        client_id: Rc<str>,
        /// Which message.
        message: MessageId,
    },
    /// DONE: PUBCOMP came, or an end without it.
    Done {
        /// From whom.
        client_id: Rc<str>,
        /// For which packet id.
        packet_id: PacketId,
        /// As in its [`Record::Assign`].
        message: Option<MessageId>,
    },
    /// RELEASED: PUBREL came; the publisher's packet id is free.
    Released {
        /// From whom.
        client_id: Rc<str>,
        /// For which packet id.
        packet_id: PacketId,
    },
    /// GROUPACK: a shared subscription's group is done with a message. May stand before its PUB.
    GroupAck {
        /// Which.
        group: Rc<GroupName>,
        /// Which message.
        message: MessageId,
    },
}

impl Record {
    /// About how many bytes it takes.
    fn bytes(&self) -> u64 {
        let more = match self {
            Self::Publish { content, groups, .. } => {
                let names = groups.iter().flat_map(|all| all.iter());
                let names = names.map(|group| group.key().len()).sum::<usize>();
                content.topic().len() + content.forwarded().len() + content.payload().len() + names
            }
            Self::WillSet { topic, forwarded, payload, .. } => {
                topic.len() + forwarded.len() + payload.len()
            }
            Self::Subscribe { filter, seen, .. } | Self::Unsubscribe { filter, seen, .. } => {
                filter.len() + size_of_val::<[MessageId]>(seen)
            }
            Self::GroupAck { group, .. } => group.key().len(),
            _ => 0,
        };
        (size_of::<Change>() + more) as u64
    }
}

/// What happens when a change is committed.
#[derive(Debug)]
pub(crate) enum Parked {
    /// PUBACK.
    PubAck(PacketId, ReasonCode),
    /// PUBREC.
    PubRec(PacketId, ReasonCode),
    /// PUBCOMP.
    PubComp(PacketId, ReasonCode),
    /// A QoS 2 publication is forwarded, then PUBREC (J2). It is, also when its publisher is gone.
    Forward { message: MessageKey, packet_id: PacketId, session: SessionKey, named: Named },
    /// PUBLISH towards a client (J3).
    Publish { session: SessionKey, packet_id: PacketId },
    /// PUBREL towards a client (J3).
    PubRel { session: SessionKey, packet_id: PacketId },
    /// CONNACK and what follows it (H5).
    ConnAck,
    /// Nothing: a connection stands behind what an earlier one of its client waits for.
    Behind,
    /// A packet that is encoded already, in the version of its connection: SUBACK, UNSUBACK; then
    /// the connection is parsed on.
    Encoded(Box<[u8]>),
}

impl Parked {
    /// Whether it is one of the answers that leave in the order of their PUBLISHes.
    fn is_ordered(&self) -> bool {
        matches!(self, Self::PubAck(..) | Self::PubRec(..) | Self::Forward { .. } | Self::Behind)
    }
}

/// Sequence numbers of one start: more than it can give are skipped for the next.
const START_BITS: u32 = 32;

/// The numbers, and what waits for them.
#[derive(Debug)]
pub(crate) struct Changes {
    enabled: bool,
    /// The disk takes nothing for now.
    is_down: bool,
    /// What state of sessions is to survive.
    level: Level,
    shard: ShardId,
    last: u64,
    committed: u64,
    /// The greatest sequence number of a message that was named or seen here.
    sequence: u64,
    /// Per origin, that of its last message at QoS 1 or 2 that came here; of this one, of its own.
    seen: Vec<u64>,
    /// Ascending by number.
    parked: VecDeque<(u64, ConnId, Parked)>,
    /// How many have left `parked`, ever.
    unparked: u64,
    /// Clients that had something in `parked` when their connection ended, and how many will have
    /// left it then.
    behind: BTreeMap<Rc<str>, u64>,
    /// Bytes of all changes so far, up to the last mark, and of those that are committed.
    bytes: u64,
    marked_bytes: u64,
    committed_bytes: u64,
    /// Ascending: how many bytes there were with some changes.
    marks: VecDeque<(u64, u64)>,
    /// Sessions with a subscription that has begun, by which change, until that is committed and what
    /// waited for earlier ones has left.
    begun: BTreeMap<SessionKey, u64>,
    /// The same, ascending; also of those that have begun another since.
    begun_in_order: VecDeque<(u64, SessionKey)>,
    /// Clients whose session has ended, by which change, until that is committed.
    ended: BTreeMap<Rc<str>, u64>,
    /// The same, ascending; also of those that have ended again since.
    ended_in_order: VecDeque<(u64, Rc<str>)>,
}

impl Changes {
    pub(crate) fn new(Place { shard, shards, .. }: Place, config: &Config) -> Self {
        Self {
            enabled: config.record_changes,
            is_down: false,
            level: config.durability.highest().max(Level::Process),
            shard,
            last: 0,
            committed: 0,
            sequence: 0,
            seen: vec![0; shards],
            parked: VecDeque::new(),
            unparked: 0,
            behind: BTreeMap::new(),
            bytes: 0,
            marked_bytes: 0,
            committed_bytes: 0,
            marks: VecDeque::new(),
            begun: BTreeMap::new(),
            begun_in_order: VecDeque::new(),
            ended: BTreeMap::new(),
            ended_in_order: VecDeque::new(),
        }
    }

    /// Whether durable state is recorded at all.
    #[inline]
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// The disk takes nothing for now, or does again.
    pub(crate) fn set_down(&mut self, is_down: bool) {
        self.is_down = is_down;
    }

    /// Whether what would have to be recorded is to be refused.
    pub(crate) fn is_down(&self) -> bool {
        self.is_down
    }

    /// Says a change; its number.
    pub(crate) fn record(&mut self, changes: &mut Vec<Change>, record: Record) -> u64 {
        let level = self.level;
        self.record_at(level, changes, record)
    }

    /// Says a change that is to survive what this level says.
    pub(crate) fn record_at(
        &mut self,
        level: Level,
        changes: &mut Vec<Change>,
        record: Record,
    ) -> u64 {
        debug_assert!(self.enabled && level > Level::None);
        self.last += 1;
        self.bytes += record.bytes();
        if self.bytes - self.marked_bytes >= CHANGES_MARK_BYTES {
            self.marked_bytes = self.bytes;
            self.marks.push_back((self.last, self.bytes));
        }
        changes.push(Change { number: self.last, record, level });
        self.last
    }

    /// A new start: numbers above all that were ever given.
    pub(crate) fn start_behind(&mut self, last_sequence: u64) {
        // Whatever was named and left no trace is skipped, too.
        self.sequence = ((last_sequence >> START_BITS) + 1) << START_BITS;
    }

    /// Names a message of this shard's publishers.
    pub(crate) fn next_message_id(&mut self, qos: QoS) -> MessageId {
        self.sequence += 1;
        if qos > QoS::AtMostOnce {
            self.seen[self.shard.index()] = self.sequence;
        }
        MessageId::new(self.shard, self.sequence)
    }

    /// A message of another shard has come from that shard itself, or by way of others.
    pub(crate) fn on_seen(&mut self, from: ShardId, id: MessageId, qos: QoS) {
        self.sequence = self.sequence.max(id.sequence());
        if id.origin() == from && qos > QoS::AtMostOnce {
            self.on_seen_through(from, id.sequence());
        }
    }

    /// What that shard has named up to this number has come, or will not come: all at QoS 1, and Wills.
    /// Other QoS 2 messages are forwarded behind their records.
    pub(crate) fn on_seen_through(&mut self, from: ShardId, sequence: u64) {
        let seen = &mut self.seen[from.index()];
        *seen = (*seen).max(sequence);
    }

    /// The sequence number of this shard's own last message at QoS 1 or 2.
    pub(crate) fn seen_here(&self) -> u64 {
        self.seen[self.shard.index()]
    }

    /// Per origin, the last message at QoS 1 or 2 that has come here (SHARDS.md J7).
    pub(crate) fn seen(&self) -> Box<[MessageId]> {
        let seen = self.seen.iter().enumerate().filter(|(_, sequence)| **sequence > 0);
        seen.map(|(origin, sequence)| MessageId::new(ShardId::new(origin), *sequence)).collect()
    }

    /// Says that the session of this client is over.
    pub(crate) fn end(&mut self, changes: &mut Vec<Change>, client_id: Rc<str>) {
        let number = self.record(changes, Record::SessionEnded { client_id: client_id.clone() });
        self.ended.insert(client_id.clone(), number);
        self.ended_in_order.push_back((number, client_id));
    }

    /// Says the SUB of this session.
    pub(crate) fn begin(&mut self, changes: &mut Vec<Change>, session: SessionKey, record: Record) {
        let number = self.record(changes, record);
        self.begun.insert(session, number);
        self.begun_in_order.push_back((number, session));
    }

    /// Whether a SUB of this session is not on disk yet, or what this shard has published before that
    /// has not left yet.
    #[inline]
    pub(crate) fn is_beginning(&self, session: SessionKey) -> bool {
        self.begun.contains_key(&session)
    }

    /// All that was parked and is committed has left.
    fn forget_begun(&mut self) {
        while let Some((number, session)) = self.begun_in_order.front()
            && *number <= self.committed
        {
            if self.begun.get(session) == Some(number) {
                self.begun.remove(session);
            }
            self.begun_in_order.pop_front();
        }
    }

    /// Whether a session of this client has ended, and may come back with a crash: its end is not
    /// committed yet.
    pub(crate) fn is_ending(&self, client_id: &str) -> bool {
        self.ended.contains_key(client_id)
    }

    pub(crate) fn committed(&mut self, change: u64) {
        self.committed = self.committed.max(change);
        while let Some((number, client_id)) = self.ended_in_order.front()
            && *number <= change
        {
            if self.ended.get(client_id) == Some(number) {
                self.ended.remove(client_id);
            }
            self.ended_in_order.pop_front();
        }
        while let Some(&(number, bytes)) = self.marks.front()
            && number <= change
        {
            self.committed_bytes = bytes;
            self.marks.pop_front();
        }
        if self.committed == self.last {
            self.committed_bytes = self.bytes;
        }
    }

    /// The number of the last change, if it is not committed yet: who waits for it waits for all.
    pub(crate) fn pending(&self) -> Option<u64> {
        (self.last > self.committed).then_some(self.last)
    }

    /// The number of the last change.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Whether a publisher has to wait before it may say one more change (SHARDS.md L4).
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.parked.len() >= PARKED_MAX
            || self.last - self.committed >= CHANGES_OPEN_MAX
            || self.bytes - self.committed_bytes >= CHANGES_OPEN_BYTES
    }

    /// Parks behind what is parked already. Answers to PUBLISH go
    /// through [`Broker::answer_publish`].
    pub(crate) fn park(&mut self, change: u64, conn: ConnId, parked: Parked) {
        let change = self.parked.back().map_or(change, |(last, _, _)| change.max(*last));
        self.parked.push_back((change, conn, parked));
    }

    /// The connection of a client ends, and answers of it are parked: what it has published at QoS 2
    /// may be among them.
    pub(crate) fn leave_parked(&mut self, client_id: Rc<str>) {
        let Self { behind, unparked, parked, .. } = self;
        behind.insert(client_id, *unparked + parked.len() as u64);
        // Each has one at least among what is parked, or is over.
        if behind.len() > 2 * parked.len() {
            behind.retain(|_, through| *through > *unparked);
        }
    }

    /// A client has come again: if something of an earlier connection is parked, this one's answers,
    /// and what it publishes at QoS 2, go behind that (SHARDS.md H7). Whether it is so.
    fn park_behind(&mut self, conn: ConnId, client_id: &str) -> bool {
        let is_behind = match self.behind.remove(client_id) {
            Some(through) => through > self.unparked,
            None => false,
        };
        if is_behind {
            self.park(0, conn, Parked::Behind);
        }
        is_behind
    }

    fn front(&self) -> Option<&Parked> {
        self.parked.front().filter(|(c, _, _)| *c <= self.committed).map(|(_, _, parked)| parked)
    }
}

impl Broker {
    /// A connection has its session, and nothing of that is to be recorded.
    pub(crate) fn stand_behind_earlier(&mut self, conn: ConnId, client_id: &str) {
        if let Some(state) = self.conns.get_mut(conn) {
            state.parked += u32::from(self.changes.park_behind(conn, client_id));
        }
    }

    /// Answers a PUBLISH: at once, unless `change` or an earlier answer of this connection is
    /// awaited (SHARDS.md H7).
    #[inline]
    pub(crate) fn answer_publish(&mut self, conn: ConnId, change: Option<u64>, answer: Parked) {
        let Some(state) = self.conns.get_mut(conn) else { return };
        if change.is_none() && state.parked == 0 {
            self.send_parked(conn, &answer, "");
            return;
        }
        state.parked += 1;
        self.changes.park(change.unwrap_or(0), conn, answer);
    }

    /// The same for a refused one, with words for people unless it has to wait.
    pub(crate) fn answer_refused(&mut self, conn: ConnId, answer: Parked, why: &str) {
        match self.conns.get(conn) {
            Some(state) if state.parked == 0 => self.send_parked(conn, &answer, why),
            _ => self.answer_publish(conn, None, answer),
        }
    }

    /// Everything parked whose change is committed. A publication that has to wait for a lane
    /// holds the rest back: order is kept.
    pub(crate) fn run_committed(&mut self, now: Time) {
        while let Some(front) = self.changes.front() {
            if let Parked::Forward { message, .. } = front
                && let stored = self.messages.get(*message)
                && route::may_publish(self, stored.topic(), stored.retain) == Err(Wait)
            {
                return;
            }
            let Some((_, conn, parked)) = self.changes.parked.pop_front() else { return };
            self.changes.unparked += 1;
            if parked.is_ordered()
                && let Some(state) = self.conns.get_mut(conn)
            {
                state.parked = state.parked.saturating_sub(1);
            }
            match parked {
                Parked::Forward { message, packet_id, session, named } => {
                    self.forward_committed(now, conn, message, (packet_id, session, named));
                }
                Parked::Publish { session, packet_id } => self.on_assigned(now, session, packet_id),
                Parked::PubRel { session, packet_id } => self.on_received(session, packet_id),
                Parked::ConnAck => self.on_connect_committed(now, conn),
                Parked::Encoded(bytes) => {
                    self.write_encoded(conn, &bytes);
                    self.resume(now, conn);
                }
                answer => self.send_parked(conn, &answer, ""),
            }
        }
        self.changes.forget_begun();
    }

    /// Writes an answer. Only to the connection that asked, as long as it is the session's.
    fn send_parked(&mut self, conn: ConnId, answer: &Parked, why: &str) {
        if self.conns.state(conn) != Some(State::Online) {
            return;
        }
        let (kind, id, reason) = match *answer {
            Parked::PubAck(id, reason) => (PacketKind::PubAck, id, reason),
            Parked::PubRec(id, reason) => (PacketKind::PubRec, id, reason),
            Parked::PubComp(id, reason) => (PacketKind::PubComp, id, reason),
            _ => return,
        };
        // A QoS 1 publication and a refused QoS 2 one are over now; the others at PUBCOMP.
        let is_over = match kind {
            PacketKind::PubRec => reason.is_error(),
            kind => kind == PacketKind::PubAck,
        };
        if is_over && let Some(state) = self.conns.get_mut(conn) {
            state.inbound_used = state.inbound_used.saturating_sub(1);
        }
        if why.is_empty() {
            return self.write_ack(conn, kind, id, reason);
        }
        let bare = Ack::new(id, reason);
        let said = Ack { reason_string: Some(why), ..bare };
        let packet = match kind {
            PacketKind::PubAck => Packet::PubAck,
            _ => Packet::PubRec,
        };
        self.write_explained(conn, &packet(said), &packet(bare));
    }

    fn write_encoded(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.state != State::Online {
            return;
        }
        if bytes.len() > conn.packet_size_max as usize {
            self.stats.dropped_too_large += 1;
            return;
        }
        conn.append(id, &mut self.out.dirty, |outbox| outbox.extend_from_slice(bytes));
        conn.count_answer(bytes.len());
        self.stats.packets_out += 1;
        self.stats.bytes_out += bytes.len() as u64;
    }

    /// A QoS 2 publication whose record is committed goes to its receivers (SHARDS.md J2).
    fn forward_committed(
        &mut self,
        now: Time,
        conn: ConnId,
        message: MessageKey,
        (packet_id, session, named): (PacketId, SessionKey, Named),
    ) {
        let stored = self.messages.take(message);
        let publisher = stored.publisher.clone().unwrap_or_default();
        let publication = Publication {
            topic: stored.topic(),
            payload: stored.payload(),
            qos: stored.qos,
            retain: stored.retain,
            deadline: stored.deadline,
            forwarded: stored.forwarded(),
            as_received: None,
            publisher: Some(session),
            publisher_id: &publisher,
            id: stored.id,
            named,
            memo: super::publication::Memo::default(),
        };
        let route = matches::find(self, publication.topic);
        self.end_in_groups_gone(&publication, &route);
        let receivers = self.route(now, &publication, &route);
        matches::put_back(self, route);
        self.messages.give_back(message, stored);
        let reason = self.receipt(conn, receivers);
        self.send_parked(conn, &Parked::PubRec(packet_id, reason), "");
    }
}
