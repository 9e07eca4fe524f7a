//! The MQTT state machine of one shard.
//!
//! [`Broker`] owns the sessions whose home this shard is, their connections' MQTT state, the
//! subscriptions, this shard's part of the retained messages, and the timers. It is pure: time,
//! packets and other shards' entries come in through the `handle_*` verbs; what must leave is
//! appended to [`Broker::out`] and to the connections' outboxes, and the shard drains both at the
//! end of its tick. It reads no clock, opens no socket, and no input makes it panic.
//!
//! [`Broker::handle_packet`] is the one match over packets; each kind is handled in the file of
//! its name: `connect` (takeover, too), `disconnect` (every end), `authentication` (AUTH), `publish`
//! (inbound), `exchange` (acknowledgements of what we sent), `subscribe`, `unsubscribe`; beside them
//! `keep_alive`, and `policy`, what the operator allows. Outbound are `deliver` and `pump`, with
//! `publication`, `variant` and `alias`. What sessions have is `session`, `subscription`, `inflight`,
//! `queue`, `message`, `will`, `evict`, `moving`, `timers`; what lasts is `durability`, `change`,
//! `durable`, `restore`. The way from a publisher to its receivers is `route` with `matches` and
//! `topic_tree`, `retained` with `topic_order`, `replay`, `shared_sub` with `membership` and
//! `strategy`; between shards are `lane`, `entry`, `interest` with `announce`, and `ending`.
//!
//! Invariants: a client id has at most one session here, and a session at most one connection; a
//! connection that is closing has no session; everything dropped has a counter in [`Stats`].
#![forbid(unsafe_code)]

pub(crate) mod alias;
mod announce;
pub mod as_received;
mod auth;
pub mod authentication;
pub mod change;
pub(crate) mod conn;
mod connect;
mod content;
pub(crate) mod deliver;
mod disconnect;
pub mod durability;
pub mod durable;
mod ending;
pub(crate) mod entry;
pub mod evict;
mod exchange;
pub(crate) mod inflight;
pub(crate) mod interest;
mod keep_alive;
mod lane;
mod log;
pub(crate) mod matches;
mod membership;
pub(crate) mod memory;
pub(crate) mod message;
pub(crate) mod moving;
pub(crate) mod policy;
pub(crate) mod publication;
mod publish;
mod pump;
pub(crate) mod queue;
pub(crate) mod replay;
mod restore;
pub(crate) mod retained;
pub(crate) mod route;
pub(crate) mod session;
pub(crate) mod shared_sub;
pub mod stats;
pub mod strategy;
mod subscribe;
pub(crate) mod subscription;
pub(crate) mod timers;
mod topic_order;
pub mod topic_tree;
mod unsubscribe;
pub(crate) mod variant;
pub(crate) mod will;

#[cfg(test)]
mod lanes_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use crate::buf::OutBuf;
use crate::clock::Time;
use crate::codec::mqtt::{
    self, BareAck, DecodeError, Packet, PacketKind, Publish, ReasonCode, Side, Version,
};
use crate::ids::{ConnId, PlacementKey, ShardId, ShardSet};
use crate::limits;

/// A setting of the operator is one.
pub use crate::codec::mqtt::QoS;
pub use auth::{Auth, Decision};
pub use authentication::{Claim, Exchange, Method, Outcome};
pub use change::{Change, Record};
pub use content::Content;
pub use durability::{Durability, Level};
pub use durable::DurableState;
pub use policy::{Refer, Referral};
pub use shared_sub::{GroupName, Named};
pub use stats::Stats;

/// What the operator decides about MQTT. Defaults are [`limits`]'.
#[derive(Clone, Debug)]
pub struct Config {
    /// Highest QoS that is accepted and granted.
    pub maximum_qos: QoS,
    /// Whether retained messages are supported.
    pub retain_available: bool,
    /// Whether filters may have wildcards.
    pub wildcard_subscriptions: bool,
    /// Whether subscriptions may carry an identifier.
    pub subscription_identifiers: bool,
    /// Whether shared subscriptions are supported.
    pub shared_subscriptions: bool,
    /// Whether a payload has to be UTF-8 when its Payload Format Indicator says so.
    pub payload_format_check: bool,
    /// Response Information, in which `{client_id}` stands for the client's.
    pub response_information: Option<String>,
    /// Another server, and when clients are sent there.
    pub referral: Option<Referral>,
    /// Largest CONNECT accepted, fixed header included, in bytes.
    pub connect_size_max: usize,
    /// Largest packet accepted after CONNECT, fixed header included, in bytes.
    pub maximum_packet_size: u32,
    /// Longest Topic Name or Topic Filter, in bytes.
    pub topic_bytes_max: usize,
    /// Their most levels; a filter has no more than [`limits::TOPIC_LEVELS_MAX`] in any case.
    pub topic_levels_max: usize,
    /// QoS 1 and 2 publications that a client may have unacknowledged.
    pub receive_maximum: u16,
    /// QoS 1 and 2 messages that we have unacknowledged towards one client, whatever it allows.
    pub in_flight_max: u16,
    /// Topic aliases that a client may define.
    pub topic_alias_maximum: u16,
    /// How the members of shared subscriptions share their messages.
    pub shared_strategies: strategy::Strategies,
    /// Topic aliases that we use towards one client, if it allows as many.
    pub topic_aliases_out_max: u16,
    /// Longest session expiry interval granted, in seconds; `u32::MAX` is "for ever".
    pub session_expiry_max_secs: u32,
    /// Longest keep alive granted, in seconds; 0 is "no cap". A 3.x client that asks for more is
    /// refused.
    pub keep_alive_max_secs: u16,
    /// How long an enhanced authentication may take.
    pub connect_timeout: Duration,
    /// Whether a 3.1.1 or 5.0 client may leave the client id to us.
    pub assign_client_ids: bool,
    /// Messages queued behind the in-flight window of one session.
    pub queue_len_max: usize,
    /// Bytes of those in memory.
    pub queue_bytes_max: usize,
    /// Bytes of those that only the journal has.
    pub queue_disk_bytes_max: usize,
    /// Bytes of one queue in memory above which what the journal has of it is left to it.
    pub evict_above: usize,
    /// Whether there is a journal on disk that queues may be left to: what [`Outputs::reads`] asks
    /// for is answered.
    pub queues_evict: bool,
    /// Sessions of this shard, connected or not.
    pub sessions_max: usize,
    /// Subscriptions of one session.
    pub subscriptions_max: usize,
    /// Bytes waiting for one connection above which QoS 0 messages for it are dropped.
    pub outbox_bytes_max: usize,
    /// This shard's share of the memory for stored messages, in bytes. Above seven eighths of it
    /// publications are refused.
    pub memory_budget: usize,
    /// Whether durable state is recorded as [`Change`]s, and answers wait for their commit.
    pub record_changes: bool,
    /// Of which sessions and messages, if so, and what they are to survive.
    pub durability: Durability,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            maximum_qos: QoS::ExactlyOnce,
            retain_available: true,
            wildcard_subscriptions: true,
            subscription_identifiers: true,
            shared_subscriptions: true,
            payload_format_check: false,
            response_information: None,
            referral: None,
            connect_size_max: limits::CONNECT_SIZE_DEFAULT,
            maximum_packet_size: limits::PACKET_SIZE_DEFAULT as u32,
            topic_bytes_max: limits::TOPIC_BYTES_MAX,
            topic_levels_max: limits::TOPIC_NAME_LEVELS_MAX,
            receive_maximum: limits::RECEIVE_MAXIMUM,
            in_flight_max: limits::IN_FLIGHT_MAX,
            topic_alias_maximum: limits::TOPIC_ALIAS_MAX,
            shared_strategies: strategy::Strategies::default(),
            topic_aliases_out_max: limits::TOPIC_ALIASES_OUT_MAX,
            session_expiry_max_secs: u32::MAX,
            keep_alive_max_secs: 0,
            connect_timeout: limits::CONNECT_TIMEOUT,
            assign_client_ids: true,
            queue_len_max: limits::QUEUE_LEN_MAX,
            queue_bytes_max: limits::QUEUE_BYTES_MAX,
            queue_disk_bytes_max: limits::QUEUE_DISK_BYTES_MAX,
            evict_above: limits::QUEUE_BYTES_MAX,
            queues_evict: false,
            sessions_max: limits::SESSIONS_MAX,
            subscriptions_max: limits::SUBSCRIPTIONS_PER_SESSION_MAX,
            outbox_bytes_max: limits::OUTBOX_BYTES_MAX,
            memory_budget: limits::MEMORY_BUDGET_DEFAULT,
            record_changes: false,
            durability: Durability::default(),
        }
    }
}

/// How a connection came in; [`Accepted::at`] decides which of two connections of one client is
/// the newer (SHARDS.md H3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// When its CONNECT reached this machine, whichever shard read it, and however late.
    pub at: Time,
    /// Which listener, as the configuration numbers them.
    pub listener: u16,
    /// The other end.
    pub peer: Option<SocketAddr>,
}

/// The bytes that a packet was decoded from.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// All of them, fixed header included.
    pub bytes: &'a [u8],
    /// The frame, exactly, when it was received into a buffer of its own: its payload can then be
    /// shared between receivers and kept, without a copy.
    pub shared: Option<&'a Bytes>,
}

/// What the shard does after a packet was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Go on with the next packet.
    Next,
    /// It was not consumed: offer it again after a resume, and nothing before it.
    Wait,
    /// It was consumed; parse no further until a resume.
    Pause,
    /// It was consumed; parse nothing more of this connection, ever.
    Close,
}

/// Why a connection is gone, as the shard saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disconnection {
    /// The peer ended its stream.
    Eof,
    /// The socket failed.
    Error,
    /// We closed it, as [`Outputs::close`] asked or for a reason of the shard's own.
    Closed,
}

impl Disconnection {
    /// In a few words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eof => "end of stream",
            Self::Error => "connection lost",
            Self::Closed => "closed",
        }
    }
}

/// Entries for one shard, in order. Small payloads stand in the bytes, large ones beside them.
#[derive(Debug, Default)]
pub struct Batch {
    /// Encoded by `entry`.
    pub bytes: Vec<u8>,
    /// Large payloads, in the order in which the entries name them.
    pub shared: Vec<Bytes>,
    /// Their bytes.
    shared_bytes: usize,
}

impl Batch {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All its bytes, large payloads included.
    #[inline]
    pub fn size(&self) -> usize {
        self.bytes.len() + self.shared_bytes
    }

    /// Empties it and keeps its memory, as far as a batch that ends at its mark needs it.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(limits::BATCH_BYTES_KEPT);
        self.shared.clear();
        self.shared.shrink_to(limits::BATCH_BYTES_KEPT / limits::SHARE_PAYLOAD_FROM);
        self.shared_bytes = 0;
    }
}

/// Connections that have something to send.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Each once since its outbox was last empty.
    pub conns: Vec<ConnId>,
    /// Empty buffers that the shard gives back after use. An outbox has none of its own until it
    /// has something to hold, so an idle connection costs no buffer, and a busy one no allocation.
    pub spare: Vec<OutBuf>,
}

/// What must leave; the shard drains each list once per tick.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Connections whose outbox went from empty to not empty.
    pub dirty: Dirty,
    /// Connections to flush, shut down and close.
    pub close: Vec<ConnId>,
    /// Connections to parse on.
    pub resume: Vec<ConnId>,
    /// Connections that were not heard for too long; answered by [`Broker::handle_silence`].
    pub silent: Vec<ConnId>,
    /// One per shard; this shard's own stays empty.
    pub batches: Vec<Batch>,
    /// Durable changes, in the order of their numbers.
    pub changes: Vec<Change>,
    /// Empty ones for [`Record::Publish`] that come back from who has encoded it; at most
    /// [`limits::CONTENTS_KEPT`].
    pub contents: Vec<Content>,
    /// What is to be read back from the journal; answered by [`Broker::handle_read_back`].
    pub reads: Vec<evict::ReadBack>,
}

impl Outputs {
    /// Whether there is nothing to drain.
    pub fn is_empty(&self) -> bool {
        self.dirty.conns.is_empty()
            && self.close.is_empty()
            && self.resume.is_empty()
            && self.silent.is_empty()
            && self.changes.is_empty()
            && self.reads.is_empty()
            && self.batches.iter().all(Batch::is_empty)
    }
}

/// Which shard this is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) shard: ShardId,
    pub(crate) shards: usize,
    pub(crate) key: PlacementKey,
}

/// "Not now": something that moves without any client's help (a lane, a commit, an answer) has to
/// move first (SHARDS.md L6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait;

/// One shard's MQTT state.
#[derive(Debug)]
pub struct Broker {
    /// What must leave.
    pub out: Outputs,
    pub(crate) config: Config,
    pub(crate) place: Place,
    pub(crate) auth: Auth,
    pub(crate) methods: authentication::Methods,
    pub(crate) conns: conn::Conns,
    pub(crate) sessions: session::Sessions,
    pub(crate) messages: message::Messages,
    pub(crate) memory: memory::Memory,
    pub(crate) evicting: evict::Evicting,
    pub(crate) variants: variant::Variants,
    pub(crate) publishing: publish::Publishing,
    pub(crate) wills: will::Wills,
    pub(crate) moves: moving::Moves,
    pub(crate) timers: timers::Timers,
    pub(crate) changes: change::Changes,
    pub(crate) assigner: connect::Assigner,
    pub(crate) stats: Stats,
    pub(crate) topic_tree: topic_tree::TopicTree<subscription::FilterState>,
    pub(crate) interest: interest::Interest,
    pub(crate) retained: retained::Retained,
    pub(crate) replays: replay::Replays,
    pub(crate) shared_subs: shared_sub::SharedSubs,
    pub(crate) subscribing: subscribe::Subscribing,
    pub(crate) matches: matches::Remembered,
    pub(crate) routing: route::Routing,
    pub(crate) ending: ending::Ending,
}

impl Broker {
    /// An empty broker for shard `shard` of `shards`. `seed` keys its hash tables and the client
    /// ids that it assigns; `placement` says where sessions and retained messages live.
    pub fn new(
        config: Config,
        shard: ShardId,
        shards: usize,
        placement: PlacementKey,
        seed: u64,
    ) -> Self {
        assert!(shard.index() < shards && shards <= limits::SHARDS_MAX, "one of its shards");
        let place = Place { shard, shards, key: placement };
        let mut out = Outputs::default();
        out.batches.resize_with(shards, Batch::default);
        Self {
            out,
            place,
            auth: Auth::default(),
            methods: authentication::Methods::default(),
            conns: conn::Conns::default(),
            sessions: session::Sessions::new(seed),
            messages: message::Messages::default(),
            memory: memory::Memory::default(),
            evicting: evict::Evicting::default(),
            variants: variant::Variants::default(),
            publishing: publish::Publishing::default(),
            wills: will::Wills::default(),
            moves: moving::Moves::default(),
            timers: timers::Timers::default(),
            changes: change::Changes::new(place, &config),
            assigner: connect::Assigner::new(seed),
            stats: Stats::default(),
            topic_tree: topic_tree::TopicTree::new(seed),
            interest: interest::Interest::new(place, seed),
            retained: retained::Retained::new(place, seed),
            replays: replay::Replays::new(place, seed),
            shared_subs: shared_sub::SharedSubs::new(place, seed, config.shared_strategies.clone()),
            subscribing: subscribe::Subscribing::default(),
            matches: matches::Remembered::new(),
            routing: route::Routing::new(),
            ending: ending::Ending::default(),
            config,
        }
    }

    /// Replaces who decides about connections and topics.
    pub fn set_auth(&mut self, auth: Auth) {
        self.auth = auth;
    }

    /// A connection is at home. Its CONNECT comes next.
    pub fn handle_open(&mut self, now: Time, conn: ConnId, accepted: Accepted) {
        self.conns.open(now, conn, accepted);
        self.stats.connections_opened += 1;
    }

    /// One whole packet of a connection that speaks `version`, none before its CONNECT. `topic` is
    /// the Topic Name of its last PUBLISH in the same buffer, or empty; it is kept up to date.
    #[inline]
    pub fn handle_frame<'a>(
        &mut self,
        now: Time,
        conn: ConnId,
        version: Option<Version>,
        frame: Frame<'a>,
        topic: &mut &'a str,
    ) -> Step {
        if version.is_some()
            && let Some(ack) = BareAck::decode(frame.bytes)
        {
            return self.handle_ack(now, conn, ack, frame);
        }
        let handled = match version {
            // Not by way of a `Packet`, which is large to be copied.
            Some(version) if PacketKind::of(frame.bytes[0]) == PacketKind::Publish => {
                mqtt::decode_publish(frame.bytes, version, Side::Server, topic).map(|publish| {
                    *topic = publish.topic;
                    self.handle_publish(now, conn, &publish, frame)
                })
            }
            _ => mqtt::decode(frame.bytes, version, Side::Server)
                .map(|packet| self.handle_packet(now, conn, &packet, frame)),
        };
        handled.unwrap_or_else(|error| self.handle_decode_error(now, conn, &error))
    }

    /// One packet of a connection, decoded from `frame`.
    pub fn handle_packet(
        &mut self,
        now: Time,
        conn: ConnId,
        packet: &Packet<'_>,
        frame: Frame<'_>,
    ) -> Step {
        let Some((state, is_deaf)) = self.conns.hear(conn, now, self.config.outbox_bytes_max)
        else {
            return Step::Close;
        };
        match (state, packet) {
            // A client that asks on and never reads would fill our memory with answers. Not to
            // read it until it reads us is no way out: it may be waiting for just that
            // (SHARDS.md L6).
            (conn::State::Online, _) if is_deaf => {
                self.stats.disconnects_unread += 1;
                return self.disconnect(now, conn, ReasonCode::QUOTA_EXCEEDED);
            }
            (conn::State::Online, _) => {}
            (conn::State::Opened, Packet::Connect(connect)) => {
                return self.on_connect(now, conn, connect, frame.bytes.len());
            }
            (conn::State::Authenticating, _) => {
                return self.on_packet_before_connack(now, conn, packet, frame.bytes.len());
            }
            // [MQTT-3.1.0-1]: before CONNACK there is nothing to say; it is just closed.
            (conn::State::Opened | conn::State::Deciding, _) => {
                self.stats.protocol_errors += 1;
                return self.close_silently(now, conn);
            }
            (conn::State::Closing | conn::State::Free, _) => return Step::Close,
        }
        let step = match packet {
            Packet::Publish(publish) => self.on_publish(now, conn, publish, frame),
            Packet::PubAck(ack) => self.on_puback(now, conn, ack),
            Packet::PubRec(ack) => self.on_pubrec(now, conn, ack),
            Packet::PubRel(ack) => self.on_pubrel(conn, ack),
            Packet::PubComp(ack) => self.on_pubcomp(now, conn, ack),
            Packet::Subscribe(subscribe) => subscribe::on_subscribe(self, now, conn, subscribe),
            Packet::Unsubscribe(unsub) => unsubscribe::on_unsubscribe(self, now, conn, unsub),
            Packet::PingReq => self.on_pingreq(conn),
            Packet::Disconnect(disconnect) => self.on_disconnect(now, conn, disconnect),
            Packet::Auth(auth) => self.on_auth(now, conn, auth),
            // A second CONNECT [MQTT-3.1.0-2], or what only a server sends.
            Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp => self.protocol_error(now, conn, ReasonCode::PROTOCOL_ERROR),
        };
        self.count_handled(conn, step, frame)
    }

    /// [`Broker::handle_packet`] for a PUBLISH, which most packets are.
    #[inline]
    fn handle_publish(
        &mut self,
        now: Time,
        conn: ConnId,
        publish: &Publish<'_>,
        frame: Frame<'_>,
    ) -> Step {
        match self.conns.hear(conn, now, self.config.outbox_bytes_max) {
            Some((conn::State::Online, false)) => {
                let step = self.on_publish(now, conn, publish, frame);
                self.count_handled(conn, step, frame)
            }
            _ => self.handle_packet(now, conn, &Packet::Publish(*publish), frame),
        }
    }

    /// [`Broker::handle_packet`] for what nearly all acknowledgements are.
    fn handle_ack(&mut self, now: Time, conn: ConnId, ack: BareAck, frame: Frame<'_>) -> Step {
        let (kind, ack) = (ack.kind, ack.to_ack());
        if self.conns.hear(conn, now, self.config.outbox_bytes_max)
            != Some((conn::State::Online, false))
        {
            // Whatever that is to mean, it does not depend on the kind.
            return self.handle_packet(now, conn, &Packet::PubAck(ack), frame);
        }
        let step = match kind {
            PacketKind::PubAck => self.on_puback(now, conn, &ack),
            PacketKind::PubRec => self.on_pubrec(now, conn, &ack),
            PacketKind::PubRel => self.on_pubrel(conn, &ack),
            _ => self.on_pubcomp(now, conn, &ack),
        };
        self.count_handled(conn, step, frame)
    }

    #[inline]
    fn count_handled(&mut self, conn: ConnId, step: Step, frame: Frame<'_>) -> Step {
        match step {
            Step::Wait => self.conns.set_waiting(conn),
            _ => {
                self.stats.packets_in += 1;
                self.stats.bytes_in += frame.bytes.len() as u64;
            }
        }
        step
    }

    /// The bytes of a connection are no packet: it is told why, as its version allows, and closed.
    pub fn handle_decode_error(&mut self, now: Time, conn: ConnId, error: &DecodeError) -> Step {
        self.stats.count_decode_error(error);
        self.log_broken(conn, error.cause.as_str());
        match self.conns.state(conn) {
            Some(conn::State::Authenticating) => self.fail(now, conn, error.reason),
            Some(conn::State::Opened) => self.refuse_undecoded(now, conn, error),
            Some(conn::State::Online) => {
                self.disconnect_saying(now, conn, error.reason, &error.to_string())
            }
            _ => self.close_silently(now, conn),
        }
    }

    /// The network connection is gone. Idempotent; afterwards its slot may be opened again.
    pub fn handle_closed(&mut self, now: Time, conn: ConnId, how: Disconnection) {
        self.on_closed(now, conn, how);
    }

    /// `bytes` of what this connection's outbox held have been sent.
    pub fn handle_sent(&mut self, now: Time, conn: ConnId, bytes: usize) {
        if let Some(session) = self.conns.sent(conn, bytes) {
            self.pump(now, session);
        }
    }

    /// Everything that another shard said in one parcel.
    pub fn handle_entries(&mut self, now: Time, from: ShardId, batch: &Batch) {
        lane::on_batch(self, now, from, batch);
    }

    /// The lanes whose spill is above the mark now. Whoever waited for one that no longer is goes
    /// on.
    pub fn handle_lanes(&mut self, now: Time, full: ShardSet) {
        if route::set_full_lanes(self, full) {
            self.handle_progress(now);
        }
    }

    /// The shard has taken the batches: whoever waited for room in one goes on. To be called in
    /// each tick.
    pub fn handle_flushed(&mut self, now: Time) {
        memory::say(self);
        if route::on_flushed(self) {
            self.handle_progress(now);
        }
    }

    /// Whether what would bring further Wills or moves has to wait (SHARDS.md L5).
    pub(crate) fn must_sources_wait(&self) -> bool {
        self.wills.is_full() || self.moves.is_full()
    }

    /// Something that sources wait for has moved: all of them try again.
    pub(crate) fn handle_progress(&mut self, now: Time) {
        self.run_committed(now);
        self.run_moves(now);
        self.run_due_wills(now);
        self.conns.resume_waiting(now, &mut self.out.resume);
    }

    /// All deadlines up to `now`, a bounded number per call.
    pub fn handle_timeouts(&mut self, now: Time) {
        self.wills.start_tick();
        self.moves.start_tick();
        self.run_moves(now);
        self.run_due_wills(now);
        self.run_timers(now);
        announce::lower_interest(self, now);
        retained::expire(self, now);
        replay::run(self, now);
    }

    /// A connection of [`Outputs::silent`], and how long ago at least something of it has arrived,
    /// read or not.
    pub fn handle_silence(&mut self, now: Time, conn: ConnId, age: Duration) {
        self.on_silence(now, conn, age);
    }

    /// When [`Broker::handle_timeouts`] has something to do next.
    pub fn next_deadline(&self) -> Option<Time> {
        if self.wills.is_ready() || self.moves.is_ready() || self.replays.is_ready() {
            return Some(Time::ZERO);
        }
        // What is due may have to wait for a lane; then that wakes us, not the clock.
        let timers = self.timers.next_deadline().filter(|_| !self.must_sources_wait());
        let routing = [self.interest.next_deadline(), self.retained.next_deadline()];
        routing.into_iter().chain([timers]).flatten().min()
    }

    /// All changes with numbers up to `change` are durable.
    pub fn handle_committed(&mut self, now: Time, change: u64) {
        self.changes.committed(change);
        self.handle_progress(now);
        ending::go_on(self);
    }

    /// Whether the disk takes no changes for now: what would have to be recorded is refused before
    /// any copy of it leaves (SHARDS.md J8). What was accepted before waits on.
    pub fn handle_disk(&mut self, is_down: bool) {
        self.changes.set_down(is_down);
    }

    /// Changes that were said and are not committed.
    pub fn has_uncommitted(&self) -> bool {
        self.changes.pending().is_some()
    }

    /// The decision that [`Decision::Later`] announced. A connection that is gone is ignored.
    pub fn handle_connect_decision(&mut self, now: Time, conn: ConnId, decision: Decision) {
        self.on_connect_decision(now, conn, decision);
    }

    /// The end (SHARDS.md section 7): every connection is told and closed; no Will is published.
    pub fn handle_shutdown(&mut self, now: Time) {
        self.on_shutdown(now);
    }

    /// Closes a connection by the operator's will (or the shard's), with a reason for 5.0 clients.
    pub fn handle_kick(&mut self, now: Time, conn: ConnId, reason: ReasonCode) {
        if self.conns.state(conn).is_some() {
            let _ = self.disconnect(now, conn, reason);
        }
    }

    /// The live connection of this client's session: what was read of it is to be processed before
    /// a takeover (SHARDS.md H4).
    pub fn owner_of(&self, client_id: &str) -> Option<ConnId> {
        self.sessions.find(client_id).and_then(|key| self.sessions.get(key)).and_then(|s| s.conn)
    }

    /// Largest frame that this connection may send now, fixed header included. One that was ended, by a
    /// takeover for example, may still send what it might before: nobody looks at it.
    pub fn packet_size_max(&self, conn: ConnId) -> usize {
        match self.conns.state(conn) {
            Some(conn::State::Online | conn::State::Closing) => {
                self.config.maximum_packet_size as usize
            }
            _ => self.config.connect_size_max.min(self.config.maximum_packet_size as usize),
        }
    }

    /// The protocol version of this connection, once its CONNECT was read.
    pub fn version_of(&self, conn: ConnId) -> Option<Version> {
        self.conns.get(conn).and_then(conn::Conn::known_version)
    }

    /// The bytes that wait for this connection. The shard takes them away when it flushes, and
    /// reports them with [`Broker::handle_sent`] when they have left.
    pub fn outbox(&mut self, conn: ConnId) -> &mut OutBuf {
        self.conns.outbox(conn)
    }

    /// What has happened so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Connections between CONNACK and their end.
    pub fn online(&self) -> usize {
        self.conns.online_count()
    }

    /// Sessions, connected or not.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Bytes that were copied to store messages, since the start; shared payloads are not.
    pub fn stored_bytes_copied(&self) -> u64 {
        self.messages.copied()
    }

    /// Bytes that stored messages hold.
    pub fn message_bytes(&self) -> usize {
        self.messages.bytes()
    }
}
