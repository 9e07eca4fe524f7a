//! A simulated client: it speaks MQTT with the real codec, keeps its side of the session, checks
//! what it can see for itself, and tells the oracle the rest.
//!
//! It is honest about what it has: an answer is written only for what was read, a session that
//! the broker has lost is forgotten, what was not acknowledged is sent again with DUP and in its
//! order. It is not polite: it closes when it likes, and its old connections stay open until the
//! broker ends them.
#![forbid(unsafe_code)]

mod receive;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::login;
use super::network::{Network, now};
use super::oracle::Oracle;
use crate::clock::Time;
use crate::codec::mqtt::{Auth, Packet, PacketId, QoS, ReasonCode, Version};

/// What the broker gives an authentication, but for the time that packets are under way.
const LOGIN_TIME: Duration = Duration::from_secs(5);
/// The highest packet id.
const ID_MAX: u16 = 300;

/// What a client has asked for.
#[derive(Clone, Debug)]
pub enum Exchange {
    /// PUBLISH; then, after PUBREC, PUBREL.
    Publish {
        /// The message.
        message: u64,
        /// As published.
        qos: QoS,
        /// PUBREC has come.
        released: bool,
        /// For those that are sent again: after all that was sent before.
        order: u64,
    },
    /// SUBSCRIBE, with filters and what was asked for each.
    Subscribe(Vec<(String, QoS)>),
    /// UNSUBSCRIBE.
    Unsubscribe(Vec<String>),
}

/// How far its connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// None.
    Idle,
    /// CONNECT is sent.
    Connecting,
    /// CONNACK has come.
    Online,
    /// It said DISCONNECT, or was refused: the broker has to close.
    Ending,
    /// It broke the protocol, or asked for what is not to be had: the broker has to close, and may
    /// say so.
    Broken,
}

/// An earlier connection that the client has not closed.
#[derive(Debug)]
struct Old {
    link: usize,
    inbox: Vec<u8>,
    last_reason: Option<ReasonCode>,
    was_online: bool,
}

/// What a CONNECT asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// Clean Start.
    pub clean: bool,
    /// Session Expiry Interval; `u32::MAX` for a 3.x session.
    pub expiry_secs: u32,
    /// Of ours; 0 is none.
    pub receive_maximum: u16,
    /// Of ours; 0 is none.
    pub packet_max: u32,
    /// Seconds; 0 is none.
    pub keep_alive: u16,
    /// Aliases that the broker may use.
    pub alias_max: u16,
    /// Enhanced authentication, in so many steps.
    pub login: Option<u8>,
}

/// One client. See the [module](self).
#[derive(Debug)]
pub struct Client {
    /// Its number.
    pub index: usize,
    /// Its id.
    pub id: String,
    /// What it speaks.
    pub version: Version,
    /// Of the present connection, or the last.
    pub asked: Asked,
    /// How far that is.
    pub stage: Stage,
    /// Its link.
    pub link: Option<usize>,
    old: Vec<Old>,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    /// What it has asked for, by packet id.
    pub exchanges: BTreeMap<u16, Exchange>,
    orders: u64,
    next_id: u16,
    /// QoS 2 messages that it has, by packet id, until PUBREL.
    received: BTreeMap<u16, u64>,
    /// Messages that it has not fully acknowledged, by packet id.
    unacknowledged: BTreeMap<u16, u64>,
    /// Answers that wait, and the packet id that is free when they are written.
    answers: VecDeque<(Time, Vec<u8>, u16)>,
    /// Aliases of the present connection.
    pub aliases: BTreeMap<String, u16>,
    /// Topics by the broker's aliases, of the present connection.
    names: BTreeMap<u16, String>,
    /// What the broker allows.
    pub alias_max: u16,
    /// What the broker allows.
    pub receive_max: u16,
    /// A packet id is used again as soon as it is free.
    pub takes_lowest_id: bool,
    /// What the broker says when it closes on what it does not support, see [`Stage::Broken`].
    pub awaits: Option<ReasonCode>,
    /// It does not read before.
    pub deaf_until: Time,
    /// It does not connect before.
    pub away_until: Time,
    last_sent: Time,
    ping_sent: bool,
    /// A connection with Clean Start whose CONNACK has not come: what it did, nobody knows.
    is_unsure: bool,
    /// Connections that were given up before CONNACK, and whether it is one that may end a session
    /// whenever it gets there.
    late: Vec<(usize, bool)>,
    /// Since when the session may end while its client is away.
    short_since: Option<Time>,
    /// How long it lasts by the DISCONNECT that was sent last, if that says so.
    changed_expiry: Option<u32>,
    /// It has sent something behind CONNECT, and CONNACK has not come.
    is_early: bool,
    /// The last number in the order of what was sent before this connection.
    begun: u64,
    /// An authentication is under way.
    logs_in: bool,
    /// Since when.
    login_since: Time,
    /// One of those that are there while the world is rough, and keep no session.
    pub is_stranger: bool,
    /// When the present life of the session was asked for.
    session_since: Time,
    /// The broker was restarted; a 3.1 client cannot know.
    pub lost: bool,
    /// Subscriptions that it believes to have.
    pub held: BTreeMap<String, QoS>,
    /// Messages received.
    pub got: u64,
    /// Packets sent and received.
    pub packets: u64,
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(index: usize, version: Version) -> Self {
        Self {
            index,
            id: format!("client-{index}"),
            version,
            asked: Asked::default(),
            stage: Stage::Idle,
            link: None,
            old: Vec::new(),
            inbox: Vec::new(),
            outbox: Vec::new(),
            exchanges: BTreeMap::new(),
            orders: 0,
            next_id: 0,
            received: BTreeMap::new(),
            unacknowledged: BTreeMap::new(),
            answers: VecDeque::new(),
            aliases: BTreeMap::new(),
            names: BTreeMap::new(),
            alias_max: 0,
            // Until it is told.
            receive_max: 1,
            takes_lowest_id: false,
            awaits: None,
            deaf_until: Time::ZERO,
            away_until: Time::ZERO,
            last_sent: Time::ZERO,
            ping_sent: false,
            is_unsure: false,
            late: Vec::new(),
            short_since: None,
            changed_expiry: None,
            is_early: false,
            begun: 0,
            logs_in: false,
            login_since: Time::ZERO,
            is_stranger: false,
            session_since: Time::ZERO,
            lost: false,
            held: BTreeMap::new(),
            got: 0,
            packets: 0,
        }
    }

    /// Sends a packet, as soon as the network takes it.
    pub fn send(&mut self, network: &mut Network, packet: &Packet<'_>) {
        let index = self.index;
        network.trace.line(now(), || format!("client {index} -> {}", brief(packet)));
        packet.encode(self.version, &mut self.outbox);
        self.packets += 1;
        self.last_sent = now();
        self.push(network);
    }

    /// Sends bytes that are no packet.
    pub fn send_bytes(&mut self, network: &mut Network, bytes: &[u8]) {
        let index = self.index;
        network.trace.line(now(), || format!("client {index} -> bytes {bytes:02x?}"));
        self.outbox.extend_from_slice(bytes);
        self.push(network);
    }

    fn push(&mut self, network: &mut Network) {
        if let Some(link) = self.link
            && !self.outbox.is_empty()
        {
            let count = network.client_send(link, &self.outbox);
            self.outbox.drain(..count);
        }
    }

    /// A packet id that is free.
    pub fn free_id(&mut self) -> Option<PacketId> {
        if self.takes_lowest_id {
            let is_free = |id: &u16| !self.exchanges.contains_key(id);
            return (1..=ID_MAX).find(is_free).and_then(PacketId::new);
        }
        for _ in 0..200 {
            self.next_id = self.next_id % ID_MAX + 1;
            if !self.exchanges.contains_key(&self.next_id) {
                return PacketId::new(self.next_id);
            }
        }
        None
    }

    /// Opens an exchange.
    pub fn open(&mut self, id: PacketId, exchange: Exchange) {
        self.exchanges.insert(id.get(), exchange);
    }

    /// The next number in the order of what is sent.
    pub fn next_order(&mut self) -> u64 {
        self.orders += 1;
        self.orders
    }

    /// QoS 1 and 2 messages of its own that are not finished.
    pub fn in_flight(&self) -> usize {
        let publish = |exchange: &&Exchange| matches!(exchange, Exchange::Publish { .. });
        self.exchanges.values().filter(publish).count()
    }

    /// Whether nothing is asked, answered or on its way.
    pub fn is_quiet(&self) -> bool {
        self.stage == Stage::Online
            && !self.logs_in
            && self.exchanges.is_empty()
            && self.answers.is_empty()
            && self.outbox.is_empty()
            && self.unacknowledged.is_empty()
    }

    /// Why it is not, for people.
    pub fn state(&self) -> String {
        format!(
            "{:?}, asked {:?}, {} answers to write, {} bytes to send, not acknowledged {:?}",
            self.stage,
            self.exchanges,
            self.answers.len(),
            self.outbox.len(),
            self.unacknowledged
        )
    }

    /// Whether only a Clean Start leads to a session that is known.
    pub fn must_start_clean(&mut self, network: &Network) -> bool {
        let lasts = |link: usize, since: Time| {
            network.links[link].server_closed.is_none_or(|at| at >= since)
        };
        let since = self.session_since;
        self.late.retain(|(link, _)| lasts(*link, since));
        // Where the session may have ended, one that gets there behind its end begins another, and
        // Session Present says nothing of ours.
        let begins = |link: usize| self.short_since.is_some_and(|since| lasts(link, since));
        self.is_unsure || self.late.iter().any(|(link, ends)| *ends || begins(*link))
    }

    /// A connection begins on a new link, and CONNECT, encoded, is its first packet.
    pub fn begin(&mut self, network: &mut Network, link: usize, asked: Asked, connect: &[u8]) {
        assert!(self.link.is_none(), "invariant: the last connection was given up");
        self.inbox.clear();
        self.outbox.clear();
        self.aliases.clear();
        self.names.clear();
        self.answers.clear();
        self.unacknowledged.clear();
        self.ping_sent = false;
        self.alias_max = 0;
        self.awaits = None;
        self.is_early = false;
        self.changed_expiry = None;
        self.begun = self.orders;
        self.logs_in = asked.login.is_some();
        self.login_since = now();
        self.link = Some(link);
        self.stage = Stage::Connecting;
        self.asked = asked;
        self.last_sent = now();
        self.packets += 1;
        network.links[link].connect_len = connect.len();
        if asked.clean {
            self.forget();
            self.is_unsure = true;
            self.session_since = now();
            self.short_since = None;
        }
        if (1..1_000_000).contains(&asked.expiry_secs) {
            self.short_since.get_or_insert(now());
        }
        self.outbox.extend_from_slice(connect);
        self.push(network);
    }

    /// Whether it may send something before CONNACK: not in front of what it has to send again.
    pub fn may_be_early(&self) -> bool {
        self.stage == Stage::Connecting && !self.logs_in && self.exchanges.is_empty()
    }

    /// It is about to.
    pub fn set_early(&mut self) {
        self.is_early = true;
    }

    /// It asks for a session that lasts so long, from DISCONNECT on.
    pub fn change_expiry(&mut self, expiry_secs: u32) {
        if expiry_secs < 1_000_000 {
            self.short_since.get_or_insert(now());
        }
        self.changed_expiry = Some(expiry_secs);
    }

    /// Authenticates again, in so many steps.
    pub fn log_in_again(&mut self, network: &mut Network, steps: u8) {
        if self.asked.login.is_some() && !std::mem::replace(&mut self.logs_in, true) {
            self.login_since = now();
            self.say(network, ReasonCode::RE_AUTHENTICATE, &[steps]);
        }
    }

    /// Whether an authentication takes longer than it may.
    pub fn is_late_login(&self) -> bool {
        self.logs_in && now().since(self.login_since) >= LOGIN_TIME
    }

    fn say(&mut self, network: &mut Network, reason: ReasonCode, data: &[u8]) {
        let auth = Auth {
            reason,
            authentication_method: Some(login::NAME),
            authentication_data: Some(data),
            ..Auth::default()
        };
        self.send(network, &Packet::Auth(auth));
    }

    /// The session is gone, and what belonged to it, but for what this connection has asked for.
    fn forget_earlier(&mut self) {
        let begun = self.begun;
        self.exchanges.retain(|_, exchange| match exchange {
            Exchange::Publish { order, .. } => *order > begun,
            _ => true,
        });
        self.received.clear();
        self.held.clear();
    }

    /// The session is gone, and what belonged to it.
    fn forget(&mut self) {
        self.exchanges.clear();
        self.received.clear();
        self.held.clear();
    }

    /// Leaves the present connection as it is, open, for another.
    pub fn abandon(&mut self, network: &Network, oracle: &mut Oracle) {
        let Some(link) = self.link.take() else { return };
        let was_online = self.stage == Stage::Online;
        self.note_late(link);
        let inbox = std::mem::take(&mut self.inbox);
        self.old.push(Old { link, inbox, last_reason: None, was_online });
        oracle.on_will_unsure(link);
        self.over(network, oracle, link);
    }

    /// Closes the present connection.
    pub fn close(&mut self, network: &mut Network, oracle: &mut Oracle) {
        let Some(link) = self.link.take() else { return };
        self.note_late(link);
        if !self.outbox.is_empty() {
            // A DISCONNECT may be in it, and never leave.
            oracle.on_will_unsure(link);
        }
        network.client_close(link);
        oracle.on_will_end(link);
        self.over(network, oracle, link);
    }

    fn note_late(&mut self, link: usize) {
        // So may one after which the session lasts for some seconds only, or whose did. And one
        // that has sent something behind CONNECT: nobody knows whether that will count.
        let may_end = self.asked.clean || self.short_since.is_some() || self.is_early;
        if self.stage == Stage::Connecting {
            self.late.push((link, may_end));
        }
    }

    /// The connection is gone for it, after a fault or the broker's end.
    pub fn lose(&mut self, network: &Network, oracle: &mut Oracle) {
        let Some(link) = self.link.take() else { return };
        self.note_late(link);
        oracle.on_will_end(link);
        self.over(network, oracle, link);
    }

    fn over(&mut self, network: &Network, oracle: &mut Oracle, link: usize) {
        let was_ending = matches!(self.stage, Stage::Ending | Stage::Broken);
        self.stage = Stage::Idle;
        self.link = None;
        self.outbox.clear();
        // Requests belong to the connection.
        self.exchanges.retain(|_, exchange| matches!(exchange, Exchange::Publish { .. }));
        // What the broker ends of itself it may have ended long before it says so.
        let by_broker = network.links[link].server_end.is_some() || was_ending;
        oracle.on_gone(self.index, if by_broker { Time::ZERO } else { now() });
        if self.asked.expiry_secs == 0 {
            self.forget();
        }
    }

    /// The broker's memory is gone, and what does not last.
    pub fn on_restart(&mut self, network: &Network, oracle: &mut Oracle) {
        self.lose(network, oracle);
        if oracle.terms().durable {
            return;
        }
        self.forget();
        self.late.clear();
        self.lost = true;
        self.is_unsure = false;
    }

    /// Whether earlier connections are still open.
    pub fn has_old(&self) -> bool {
        !self.old.is_empty()
    }

    /// Whether it would do something now.
    pub fn has_work(&self, network: &Network) -> bool {
        let hears = now() >= self.deaf_until;
        let reads = |link: usize| hears && network.client_can_read(link);
        self.link.is_some_and(|link| {
            reads(link)
                || (!self.outbox.is_empty() && network.client_can_send(link))
                || self.answers.front().is_some_and(|(at, ..)| *at <= now())
                || self.ping_at().is_some_and(|at| at <= now())
        }) || self.old.iter().any(|old| reads(old.link))
    }

    /// When it would do something next of itself.
    pub fn next_event(&self) -> Option<Time> {
        let answer = self.answers.front().map(|(at, ..)| *at);
        let deaf = Some(self.deaf_until);
        [answer, deaf, self.ping_at()].into_iter().flatten().filter(|at| *at > now()).min()
    }

    fn ping_at(&self) -> Option<Time> {
        let secs = u64::from(self.asked.keep_alive);
        (self.stage == Stage::Online && secs > 0 && !self.ping_sent)
            .then(|| self.last_sent + Duration::from_millis(secs * 800))
    }

    /// Its turn: reads, answers, sends what waits.
    pub fn step(&mut self, network: &mut Network, oracle: &mut Oracle) {
        if now() >= self.deaf_until {
            self.read_old(network, oracle);
            self.read(network, oracle);
        }
        while self.answers.front().is_some_and(|(at, ..)| *at <= now()) {
            let (_, bytes, id) = self.answers.pop_front().expect("invariant: just looked at");
            self.unacknowledged.remove(&id);
            self.outbox.extend_from_slice(&bytes);
            self.packets += 1;
            self.last_sent = now();
        }
        if self.ping_at().is_some_and(|at| at <= now()) {
            self.ping_sent = true;
            self.send(network, &Packet::PingReq);
        }
        self.push(network);
    }
}

/// A packet in a few words.
pub fn brief(packet: &Packet<'_>) -> String {
    match packet {
        Packet::Publish(p) => format!(
            "PUBLISH {} id {} qos {}{}{} {} bytes, message {:?}",
            p.topic,
            p.packet_id.map_or(0, PacketId::get),
            p.qos as u8,
            if p.dup { " DUP" } else { "" },
            if p.retain { " RETAIN" } else { "" },
            p.payload.len(),
            super::number(p.payload),
        ),
        Packet::PubAck(a) => format!("PUBACK {} {:?}", a.packet_id, a.reason),
        Packet::PubRec(a) => format!("PUBREC {} {:?}", a.packet_id, a.reason),
        Packet::PubRel(a) => format!("PUBREL {} {:?}", a.packet_id, a.reason),
        Packet::PubComp(a) => format!("PUBCOMP {} {:?}", a.packet_id, a.reason),
        Packet::ConnAck(c) => format!("CONNACK {:?} present {}", c.reason, c.session_present),
        Packet::SubAck(a) => format!("SUBACK {} {:x?}", a.packet_id, a.codes),
        Packet::UnsubAck(a) => format!("UNSUBACK {} {:x?}", a.packet_id, a.codes),
        Packet::Subscribe(s) => format!(
            "SUBSCRIBE {} {:?}",
            s.packet_id,
            s.filters.iter().map(|f| (f.filter, f.options)).collect::<Vec<_>>()
        ),
        Packet::Unsubscribe(u) => {
            format!("UNSUBSCRIBE {} {:?}", u.packet_id, u.filters.iter().collect::<Vec<_>>())
        }
        Packet::Disconnect(d) => {
            format!("DISCONNECT {:?} expiry {:?}", d.reason, d.session_expiry_interval)
        }
        other => format!("{other:?}"),
    }
}
