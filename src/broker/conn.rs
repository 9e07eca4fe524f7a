//! The connections of one shard, as MQTT sees them.
//!
//! Owns the table of [`Conn`]s (slot = [`ConnId::index`], generation checked) with their outboxes.
//! Invariants: a slot is used again only after the shard has said that it is closed; what is
//! written to a connection that is closing is dropped; `unsent` counts every byte that was
//! appended and not yet reported as sent, wherever it stands.
#![forbid(unsafe_code)]

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::buf::OutBuf;
use crate::clock::Time;
use crate::codec::mqtt::{Ack, BareAck, Packet, PacketId, PacketKind, ReasonCode, Version};
use crate::ids::ConnId;

use super::alias::{Aliases, Naming, TopicId};
use super::authentication::Authentication;
use super::connect::Connecting;
use super::message::Charge;
use super::session::SessionKey;
use super::timers::TimerKey;
use super::{Accepted, Broker, Dirty, Outputs, Stats};

/// Where a connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// The slot is not in use.
    #[default]
    Free,
    /// It waits for CONNECT.
    Opened,
    /// An enhanced authentication is under way; only AUTH and DISCONNECT may come.
    Authenticating,
    /// CONNECT was read; a decision or a commit is awaited, and nothing was answered.
    Deciding,
    /// It has its CONNACK and a session.
    Online,
    /// Its last bytes are in the outbox; it has no session.
    Closing,
}

/// One connection. The parts that every message touches come first; the rest is boxed.
#[derive(Debug)]
pub(crate) struct Conn {
    generation: u32,
    pub(crate) state: State,
    version: Option<Version>,
    /// It is in the list of those that [`Broker::handle_progress`] resumes, or paused.
    waiting: bool,
    paused: bool,
    /// The client wants reasons and user properties on all packets.
    pub(crate) problem_information: bool,
    pub(crate) session: Option<SessionKey>,
    /// Publications of this connection that wait for a commit, with their answers.
    pub(crate) parked: u32,
    /// QoS 1 and 2 publications of this connection without their last answer.
    pub(crate) inbound_used: u32,
    /// The client's Maximum Packet Size.
    pub(crate) packet_size_max: u32,
    /// The client's Receive Maximum, cut to our own bound.
    pub(crate) window: u16,
    /// The aliases that we use towards it, if it allows any.
    pub(crate) aliases: Option<Box<Aliases>>,
    outbox: OutBuf,
    unsent: usize,
    /// Of `unsent`, at most so many bytes are answers to its own packets; no more are counted than
    /// this can say.
    answers: u32,
    pub(crate) heard: Time,
    pub(crate) keep_alive_timer: Option<TimerKey>,
    /// Silence after which the client is gone, in milliseconds; 0 is never.
    pub(crate) silence_max_ms: u32,
    /// It was silent for that long, and something of it stood unread.
    pub(crate) was_spared: bool,
    /// While there is something in it.
    pub(crate) rare: Option<Box<Rare>>,
}

/// A topic that a client has given a number.
#[derive(Debug)]
pub(crate) struct Alias {
    pub(crate) topic: Box<str>,
    pub(crate) _charge: Charge,
}

/// What most connections have none of, but for the moment of their CONNECT.
#[derive(Debug, Default)]
pub(crate) struct Rare {
    /// While the decision is awaited.
    pub(crate) connecting: Option<Box<Connecting>>,
    /// Of one that named an authentication method.
    pub(crate) authentication: Option<Authentication>,
    /// The client's topic aliases, from 1.
    pub(crate) aliases: Vec<Option<Alias>>,
}

/// Where a connection came from: asked for now and then, so it stands beside the table.
#[derive(Debug)]
pub(crate) struct Origin {
    /// See [`Accepted::at`].
    pub(crate) at: Time,
    peer: Peer,
    /// Session Expiry Interval of the CONNECT, whatever was granted: at DISCONNECT it may not grow
    /// from 0.
    pub(crate) connect_expiry_secs: u32,
    listener: u16,
}

/// An address in as little room as the usual one needs.
#[derive(Debug)]
enum Peer {
    Unknown,
    V4(SocketAddrV4),
    V6(Box<SocketAddrV6>),
}

impl Origin {
    fn new(accepted: Accepted) -> Self {
        let peer = match accepted.peer {
            None => Peer::Unknown,
            Some(SocketAddr::V4(peer)) => Peer::V4(peer),
            Some(SocketAddr::V6(peer)) => Peer::V6(Box::new(peer)),
        };
        Self { at: accepted.at, peer, connect_expiry_secs: 0, listener: accepted.listener }
    }

    fn accepted(&self) -> Accepted {
        let peer = match &self.peer {
            Peer::Unknown => None,
            Peer::V4(peer) => Some((*peer).into()),
            Peer::V6(peer) => Some((**peer).into()),
        };
        Accepted { at: self.at, listener: self.listener, peer }
    }
}

/// What a connection takes here, in bytes.
#[cfg(test)]
pub(crate) const CONN_BYTES: usize = size_of::<Conn>() + size_of::<Origin>();

impl Default for Conn {
    fn default() -> Self {
        Self {
            generation: 0,
            state: State::Free,
            version: None,
            waiting: false,
            paused: false,
            problem_information: true,
            session: None,
            parked: 0,
            inbound_used: 0,
            packet_size_max: u32::MAX,
            window: 0,
            aliases: None,
            outbox: OutBuf::new(),
            unsent: 0,
            answers: 0,
            heard: Time::ZERO,
            keep_alive_timer: None,
            silence_max_ms: 0,
            was_spared: false,
            rare: None,
        }
    }
}

impl Conn {
    /// The version of its CONNECT; before that, 3.1.1 (nothing is written then).
    pub(crate) fn version(&self) -> Version {
        self.version.unwrap_or(Version::V311)
    }

    pub(crate) fn known_version(&self) -> Option<Version> {
        self.version
    }

    pub(crate) fn set_version(&mut self, version: Version) {
        self.version = Some(version);
    }

    /// Bytes appended and not yet sent.
    pub(crate) fn unsent(&self) -> usize {
        self.unsent
    }

    /// Whether the shard was told not to parse it for now.
    pub(crate) fn is_held(&self) -> bool {
        self.waiting || self.paused
    }

    /// Of what was appended so much is an answer.
    #[inline]
    pub(crate) fn count_answer(&mut self, bytes: usize) {
        self.answers = self.answers.saturating_add(bytes as u32);
    }

    /// For what most connections do not have.
    pub(crate) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    pub(crate) fn authentication(&self) -> Option<&Authentication> {
        self.rare.as_ref()?.authentication.as_ref()
    }

    /// Its CONNECT, which no decision is awaited for any more.
    pub(crate) fn take_connecting(&mut self) -> Option<Box<Connecting>> {
        let connecting = self.rare.as_mut()?.connecting.take();
        self.rare.take_if(|rare| rare.authentication.is_none() && rare.aliases.is_empty());
        connecting
    }

    /// How the next PUBLISH of a topic, `len` bytes long, is to name it.
    #[inline]
    pub(crate) fn choose_naming(&mut self, topic: TopicId, len: usize) -> Naming {
        match &mut self.aliases {
            None => Naming::Name,
            Some(aliases) => aliases.choose(topic, len),
        }
    }

    /// A PUBLISH that names its topic so is in the outbox.
    #[inline]
    pub(crate) fn on_named(&mut self, topic: TopicId, naming: Naming) {
        if let (Naming::Both(alias), Some(aliases)) = (naming, &mut self.aliases) {
            aliases.define(topic, alias);
        }
    }

    /// Appends to the outbox; `write` only ever appends.
    #[inline]
    pub(crate) fn append(
        &mut self,
        id: ConnId,
        dirty: &mut Dirty,
        write: impl FnOnce(&mut OutBuf),
    ) {
        let before = self.outbox.len();
        if before == 0 {
            self.begin_outbox(id, dirty);
        }
        write(&mut self.outbox);
        self.unsent += self.outbox.len() - before;
    }

    /// It is empty, and is to be sent at the end of the tick.
    fn begin_outbox(&mut self, id: ConnId, dirty: &mut Dirty) {
        if self.outbox.capacity() == 0 {
            self.outbox = dirty.spare.pop().unwrap_or_default();
        }
        dirty.conns.push(id);
    }
}

/// All connections.
#[derive(Debug, Default)]
pub(crate) struct Conns {
    conns: Vec<Conn>,
    /// By the same numbers.
    origins: Vec<Origin>,
    online: usize,
    /// Those whose packet was answered with [`super::Step::Wait`].
    waiting: Vec<ConnId>,
    /// For [`Broker::outbox`] of a connection that is gone; always empty.
    nowhere: OutBuf,
}

impl Conns {
    pub(crate) fn open(&mut self, now: Time, id: ConnId, accepted: Accepted) {
        let index = id.index as usize;
        if index >= self.conns.len() {
            let nowhere = Accepted { at: Time::ZERO, listener: 0, peer: None };
            self.conns.resize_with(index + 1, Conn::default);
            self.origins.resize_with(index + 1, || Origin::new(nowhere));
        }
        self.origins[index] = Origin::new(accepted);
        let conn = &mut self.conns[index];
        debug_assert_eq!(conn.state, State::Free, "a slot is opened after it was closed");
        *conn =
            Conn { generation: id.generation, state: State::Opened, heard: now, ..Conn::default() };
    }

    #[inline]
    pub(crate) fn get(&self, id: ConnId) -> Option<&Conn> {
        self.conns
            .get(id.index as usize)
            .filter(|conn| conn.generation == id.generation && conn.state != State::Free)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns
            .get_mut(id.index as usize)
            .filter(|conn| conn.generation == id.generation && conn.state != State::Free)
    }

    pub(crate) fn origin(&self, id: ConnId) -> Option<&Origin> {
        self.get(id).and_then(|_| self.origins.get(id.index as usize))
    }

    /// How it came in.
    pub(crate) fn accepted(&self, id: ConnId) -> Option<Accepted> {
        self.origin(id).map(Origin::accepted)
    }

    /// Through which listener.
    pub(crate) fn listener(&self, id: ConnId) -> Option<u16> {
        self.origin(id).map(|origin| origin.listener)
    }

    pub(crate) fn set_connect_expiry(&mut self, id: ConnId, secs: u32) {
        if self.get(id).is_some() {
            self.origins[id.index as usize].connect_expiry_secs = secs;
        }
    }

    pub(crate) fn state(&self, id: ConnId) -> Option<State> {
        self.get(id).map(|conn| conn.state)
    }

    /// Notes that the client is alive. Also whether it asks and does not read the answers: more
    /// than `answers_max` bytes of them wait.
    #[inline]
    pub(crate) fn hear(
        &mut self,
        id: ConnId,
        now: Time,
        answers_max: usize,
    ) -> Option<(State, bool)> {
        let conn = self.get_mut(id)?;
        conn.heard = now;
        Some((conn.state, conn.answers as usize > answers_max))
    }

    /// The state changes; counts those that are online.
    pub(crate) fn set_state(&mut self, id: ConnId, state: State) {
        let Some(conn) = self.get_mut(id) else { return };
        let was_online = conn.state == State::Online;
        conn.state = state;
        let is_online = state == State::Online;
        self.online = self.online + usize::from(is_online) - usize::from(was_online);
    }

    pub(crate) fn online_count(&self) -> usize {
        self.online
    }

    /// The slot is free; returns the timer that was armed for it.
    pub(crate) fn free(&mut self, id: ConnId) -> Option<TimerKey> {
        self.set_state(id, State::Closing);
        let conn = self.get_mut(id)?;
        let timer = conn.keep_alive_timer.take();
        *conn = Conn { generation: id.generation, ..Conn::default() };
        timer
    }

    /// Remembers that its packet was not consumed.
    pub(crate) fn set_waiting(&mut self, id: ConnId) {
        if let Some(conn) = self.get_mut(id)
            && !std::mem::replace(&mut conn.waiting, true)
        {
            self.waiting.push(id);
        }
    }

    /// Remembers that it was paused, until [`Conns::resume`].
    pub(crate) fn set_paused(&mut self, id: ConnId) {
        if let Some(conn) = self.get_mut(id) {
            conn.paused = true;
        }
    }

    /// Ends a pause. While the broker does not read, keep alive does not run (SHARDS.md L7).
    pub(crate) fn resume(&mut self, now: Time, id: ConnId, resume: &mut Vec<ConnId>) {
        if let Some(conn) = self.get_mut(id)
            && std::mem::replace(&mut conn.paused, false)
        {
            conn.heard = now;
            resume.push(id);
        }
    }

    /// All that wait try again. Whoever tried first and waits again tries last: the room that they
    /// wait for may be enough for one of them only.
    pub(crate) fn resume_waiting(&mut self, now: Time, resume: &mut Vec<ConnId>) {
        let mut waiting = std::mem::take(&mut self.waiting);
        let first = usize::from(waiting.len() > 1);
        waiting.rotate_left(first);
        for id in waiting.drain(..) {
            if let Some(conn) = self.get_mut(id) {
                conn.waiting = false;
                conn.heard = now;
                resume.push(id);
            }
        }
        self.waiting = waiting;
    }

    /// Bytes have left; the session to pump, if it may have more and there is room now.
    pub(crate) fn sent(&mut self, id: ConnId, bytes: usize) -> Option<SessionKey> {
        let conn = self.get_mut(id)?;
        debug_assert!(bytes <= conn.unsent, "no more is sent than was appended");
        conn.unsent = conn.unsent.saturating_sub(bytes);
        conn.answers = conn.answers.min(u32::try_from(conn.unsent).unwrap_or(u32::MAX));
        conn.session.filter(|_| conn.unsent < crate::limits::OUTBOX_BYTES_MARK)
    }

    pub(crate) fn outbox(&mut self, id: ConnId) -> &mut OutBuf {
        let index = id.index as usize;
        match self.conns.get(index) {
            Some(conn) if conn.generation == id.generation => &mut self.conns[index].outbox,
            _ => {
                self.nowhere.clear();
                &mut self.nowhere
            }
        }
    }

    /// Every connection that is not free.
    pub(crate) fn ids(&self) -> Vec<ConnId> {
        let id = |(index, conn): (usize, &Conn)| {
            (conn.state != State::Free)
                .then_some(ConnId { index: index as u32, generation: conn.generation })
        };
        self.conns.iter().enumerate().filter_map(id).collect()
    }

    /// Writes a packet, unless the client cannot take one of its size [MQTT-3.1.2-24]. Tells
    /// whether it was written.
    pub(crate) fn write(
        &mut self,
        id: ConnId,
        packet: &Packet<'_>,
        out: &mut Outputs,
        stats: &mut Stats,
    ) -> bool {
        let Some(conn) = self.get_mut(id) else { return false };
        if conn.state == State::Closing {
            return false;
        }
        let version = conn.version();
        let len = packet.encoded_len(version);
        if len > conn.packet_size_max as usize {
            stats.dropped_too_large += 1;
            return false;
        }
        conn.append(id, &mut out.dirty, |outbox| packet.encode(version, outbox.tail()));
        conn.count_answer(len);
        stats.packets_out += 1;
        stats.bytes_out += len as u64;
        true
    }
}

impl Broker {
    /// Writes a packet to a connection; one that is closing or gone gets nothing.
    pub(crate) fn write(&mut self, conn: ConnId, packet: &Packet<'_>) -> bool {
        self.conns.write(conn, packet, &mut self.out, &mut self.stats)
    }

    /// Writes one step of a QoS 1 or 2 exchange.
    #[inline]
    pub(crate) fn write_ack(
        &mut self,
        id: ConnId,
        kind: PacketKind,
        packet_id: PacketId,
        reason: ReasonCode,
    ) {
        if reason == ReasonCode::SUCCESS
            && let Some(conn) = self.conns.get_mut(id)
            && conn.state != State::Closing
            && conn.packet_size_max as usize >= BareAck::LEN
        {
            let bytes = BareAck { kind, packet_id }.encode();
            conn.append(id, &mut self.out.dirty, |outbox| outbox.extend_from_slice(&bytes));
            conn.count_answer(bytes.len());
            self.stats.packets_out += 1;
            self.stats.bytes_out += bytes.len() as u64;
            return;
        }
        let ack = Ack::new(packet_id, reason);
        let packet = match kind {
            PacketKind::PubAck => Packet::PubAck(ack),
            PacketKind::PubRec => Packet::PubRec(ack),
            PacketKind::PubRel => Packet::PubRel(ack),
            PacketKind::PubComp => Packet::PubComp(ack),
            _ => unreachable!("invariant: a step of an exchange"),
        };
        self.write(id, &packet);
    }

    /// Writes a PUBREL that is owed from an earlier connection. In 3.1 it has DUP then (its section
    /// 2.1), which is reserved later [MQTT-3.6.1-1].
    pub(crate) fn write_pubrel_again(&mut self, id: ConnId, packet_id: PacketId) {
        let pubrel = Packet::PubRel(Ack::new(packet_id, ReasonCode::SUCCESS));
        if !self.write(id, &pubrel) {
            return;
        }
        let Some(conn) = self.conns.get_mut(id).filter(|c| c.version() == Version::V31) else {
            return;
        };
        let tail = conn.outbox.tail();
        let at = tail.len() - pubrel.encoded_len(Version::V31);
        tail[at] |= 0x08;
    }

    /// Parse no further, until [`Broker::resume`].
    pub(crate) fn pause(&mut self, conn: ConnId) {
        self.conns.set_paused(conn);
    }

    /// Ends a pause.
    pub(crate) fn resume(&mut self, now: Time, conn: ConnId) {
        self.conns.resume(now, conn, &mut self.out.resume);
    }
}
