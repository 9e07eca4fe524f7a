//! The clients of the broker under test, and what they expect of it.
//!
//! *Publishers* send numbered messages at QoS 1 and 2, and send again what was not acknowledged.
//! *Receivers* have durable subscriptions, plain and shared, and are connected or not. The *keeper*
//! publishes retained messages, and clears them. The *wanderer* subscribes and unsubscribes. All have
//! sessions that must be there again after a kill.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::ledger::{Ledger, STREAM_QOS};
use super::peer::{self, Peer};
use crate::client::{Ending, Event, Message, Options};
use crate::clock::{self, Time};
use crate::codec::mqtt::{
    PacketId, Publish, QoS, RetainHandling, SubscribeFilter, SubscriptionOptions, UserProperties,
    Version,
};
use crate::sim::random::Random;

/// How long an answer may take that must come; it fails a test and never delays one.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Topics with retained messages, and filters that come and go.
pub(super) const TOPICS: usize = 8;
/// Seconds that sessions outlive their connection.
const EXPIRY: u32 = 86_400;
/// Messages that one publisher has unacknowledged at most.
const WINDOW: u16 = 20;

const VERSIONS: [Version; 3] = [Version::V5, Version::V311, Version::V31];
const PUBLISHERS: usize = 3;
/// Name, version, group if it is a member, and how often it is connected, in a thousand.
const RECEIVERS: [(&str, Version, bool, u32); 5] = [
    ("steady", Version::V5, false, 1000),
    ("often", Version::V311, false, 700),
    ("seldom", Version::V5, false, 250),
    ("member-1", Version::V5, true, 600),
    ("member-2", Version::V5, true, 600),
];

#[derive(Clone, Copy, Debug)]
enum Role {
    Publisher(usize),
    /// By its place in the ledger.
    Receiver(usize),
    Keeper,
    Wanderer,
}

/// What is said of a topic's retained message: a number, even 4, 8, 12 … for none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    pub(super) acked: u64,
    /// Sent, and not acknowledged.
    pub(super) open: Option<u64>,
}

/// Whether the number stands for a message that is cleared.
pub(super) fn is_cleared(number: u64) -> bool {
    number.is_multiple_of(4)
}

/// A filter that comes and goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    pub(super) is_subscribed: bool,
    /// Asked for otherwise, and not acknowledged.
    pub(super) is_open: bool,
    /// The round whose probe came through it.
    pub(super) probed: Option<u64>,
}

/// What the clients know: all but their connections.
#[derive(Debug)]
pub(super) struct State {
    pub(super) ledger: Ledger,
    roles: Vec<Role>,
    names: Vec<String>,
    has_session: Vec<bool>,
    subscribed: Vec<bool>,
    /// Of publishers: stream and number by packet id. Of the keeper: topic and number.
    open: Vec<HashMap<PacketId, (usize, usize)>>,
    pub(super) kept: [Kept; TOPICS],
    pub(super) held: [Held; TOPICS],
    asked: Option<(PacketId, usize)>,
    /// The broker is killed: connections end.
    expects_end: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct World {
    peers: Vec<Peer>,
    pub(super) state: State,
    random: Random,
    version: u64,
}

pub(super) fn durable(version: Version, name: &str) -> Options {
    let session_expiry_interval = if version == Version::V5 { EXPIRY } else { 0 };
    Options {
        clean_start: false,
        session_expiry_interval,
        in_flight_max: WINDOW,
        ..Options::new(version, format!("crash-{name}"))
    }
}

pub(super) fn filter(name: &str, qos: QoS) -> SubscribeFilter<'_> {
    SubscribeFilter {
        filter: name,
        options: SubscriptionOptions {
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::default(),
        },
    }
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut world = Self {
            peers: Vec::new(),
            state: State {
                ledger: Ledger::new(
                    PUBLISHERS,
                    &[("steady", false), ("often", false), ("seldom", false), ("the group", true)],
                ),
                roles: Vec::new(),
                names: Vec::new(),
                has_session: Vec::new(),
                subscribed: Vec::new(),
                open: Vec::new(),
                kept: Default::default(),
                held: Default::default(),
                asked: None,
                expects_end: false,
            },
            random: Random::new(seed, 1),
            version: 0,
        };
        for index in 0..PUBLISHERS {
            let name = format!("publisher-{index}");
            world.add(Role::Publisher(index), VERSIONS[index % VERSIONS.len()], &name);
        }
        for (index, (name, version, is_member, _)) in RECEIVERS.into_iter().enumerate() {
            // The members are one receiver, behind the others.
            let receiver = if is_member { 3 } else { index };
            world.add(Role::Receiver(receiver), version, name);
        }
        world.add(Role::Keeper, Version::V5, "keeper");
        world.add(Role::Wanderer, Version::V5, "wanderer");
        world
    }

    fn add(&mut self, role: Role, version: Version, name: &str) {
        self.peers.push(Peer::new(durable(version, name)));
        self.state.roles.push(role);
        self.state.names.push(name.to_owned());
        self.state.has_session.push(false);
        self.state.subscribed.push(false);
        self.state.open.push(HashMap::new());
    }

    fn wanderer(&self) -> usize {
        self.peers.len() - 1
    }

    /// One turn of all that are connected.
    fn turn(&mut self, until: Time) -> io::Result<()> {
        let Self { peers, state, .. } = self;
        peer::turn(peers.iter_mut().enumerate(), until, &mut |index, _, event| {
            state.on_event(index, &event);
        })
    }

    /// Turns until it holds; whether it did in time, and before all connections ended.
    pub(super) fn wait(&mut self, holds: impl Fn(&Self) -> bool) -> io::Result<bool> {
        let give_up = clock::now() + PATIENCE;
        while !holds(self) {
            if clock::now() > give_up || !self.peers.iter().any(Peer::is_open) {
                return Ok(false);
            }
            self.turn(give_up)?;
        }
        Ok(true)
    }

    /// All that were connected and should still be are.
    fn is_connected(&self, index: usize) -> bool {
        self.peers[index].client.is_connected()
    }

    /// Before the first round: the receivers and the wanderer subscribe to what they keep.
    pub(super) fn set_up(&mut self, address: SocketAddr) -> io::Result<()> {
        let receivers: Vec<usize> = (0..self.peers.len())
            .filter(|i| matches!(self.state.roles[*i], Role::Receiver(_) | Role::Wanderer))
            .collect();
        for index in &receivers {
            self.peers[*index].connect(address)?;
        }
        if !self.wait(|world| receivers.iter().all(|i| world.is_connected(*i)))? {
            self.state.ledger.problem("the receivers cannot connect");
        }
        for index in &receivers {
            let prefix = match self.state.roles[*index] {
                Role::Receiver(3) => "$share/crew/",
                _ => "",
            };
            let names = [1, 2].map(|qos| format!("{prefix}crashtest/stream/+/{qos}"));
            let mut filters =
                vec![filter(&names[0], QoS::AtLeastOnce), filter(&names[1], QoS::ExactlyOnce)];
            if matches!(self.state.roles[*index], Role::Wanderer) {
                filters = vec![filter("crashtest/wander/end", QoS::AtLeastOnce)];
            }
            let client = &mut self.peers[*index].client;
            let asked = client.subscribe(clock::now(), &filters, None, UserProperties::default());
            if let Err(error) = asked {
                self.state.ledger.problem(format!("a receiver cannot subscribe: {error}"));
            }
        }
        if !self.wait(|world| receivers.iter().all(|i| world.state.subscribed[*i]))? {
            self.state.ledger.problem("the receivers' subscriptions are not acknowledged");
        }
        for index in receivers {
            self.leave(index);
        }
        Ok(())
    }

    fn leave(&mut self, index: usize) {
        let Self { peers, state, .. } = self;
        peers[index].leave(&mut |_, event| state.on_event(index, &event));
    }

    /// Publishers, keeper, and of the receivers some or all connect.
    pub(super) fn connect(&mut self, address: SocketAddr, all: bool) -> io::Result<()> {
        for index in 0..self.peers.len() {
            let often = match self.state.roles[index] {
                Role::Receiver(_) => RECEIVERS[index - PUBLISHERS].3,
                _ => 1000,
            };
            let is_wanted = all || self.random.chance(often);
            if is_wanted && !self.peers[index].is_open() {
                self.peers[index].connect(address)?;
            }
        }
        Ok(())
    }

    /// The wanderer alone connects; false when it has not in time.
    pub(super) fn connect_wanderer(&mut self, address: SocketAddr) -> io::Result<bool> {
        let index = self.wanderer();
        self.peers[index].connect(address)?;
        self.wait(|world| world.is_connected(index))
    }

    /// Traffic until then, or until so many more messages are acknowledged.
    pub(super) fn traffic(&mut self, until: Time, acked: u64, budget: u64) -> io::Result<()> {
        let enough = self.state.ledger.counts.acked + acked;
        let mut budget = budget;
        while clock::now() < until && self.state.ledger.counts.acked < enough {
            self.publish(&mut budget);
            self.keep();
            self.wander();
            self.turn(until)?;
        }
        Ok(())
    }

    fn publish(&mut self, budget: &mut u64) {
        let Self { peers, state, random, .. } = self;
        for (publisher, peer) in peers.iter_mut().take(PUBLISHERS).enumerate() {
            while *budget > 0 && peer.client.may_publish() {
                let stream = random.index(STREAM_QOS.len());
                let number = state.ledger.next(publisher, stream);
                let qos = STREAM_QOS[stream];
                let topic = format!("crashtest/stream/{publisher}/{}", qos as u8);
                let filler = match random.below(1000) {
                    0..2 => 100_000,
                    2..20 => 5_000,
                    _ => random.index(200),
                };
                let mut payload = vec![stream as u8; 8 + filler];
                payload[..8].copy_from_slice(&(number as u64).to_le_bytes());
                let message = Message::new(&topic, &payload, qos);
                match peer.client.publish(clock::now(), &message) {
                    Ok(Some(id)) => drop(state.open[publisher].insert(id, (stream, number))),
                    Ok(None) | Err(_) => break,
                }
                state.ledger.sent(publisher, stream);
                *budget -= 1;
            }
        }
    }

    fn keep(&mut self) {
        let index = self.wanderer() - 1;
        let topic = self.random.index(TOPICS);
        let client = &mut self.peers[index].client;
        if !client.may_publish() || self.state.kept[topic].open.is_some() {
            return;
        }
        self.version += 1;
        let payload =
            if is_cleared(self.version) { String::new() } else { self.version.to_string() };
        let name = format!("crashtest/retained/{topic}");
        let qos = STREAM_QOS[topic % 2];
        let message = Message { retain: true, ..Message::new(&name, payload.as_bytes(), qos) };
        if let Ok(Some(id)) = client.publish(clock::now(), &message) {
            self.state.open[index].insert(id, (topic, self.version as usize));
            self.state.kept[topic].open = Some(self.version);
        }
    }

    fn wander(&mut self) {
        let index = self.wanderer();
        if !self.is_connected(index) || self.state.asked.is_some() {
            return;
        }
        // What was asked for when the broker was killed is asked for again.
        let held = &mut self.state.held;
        let open = held.iter().position(|held| held.is_open);
        let which = open.unwrap_or_else(|| self.random.index(TOPICS));
        held[which].is_open = true;
        let name = format!("crashtest/wander/{which}");
        let (client, now) = (&mut self.peers[index].client, clock::now());
        let asked = if held[which].is_subscribed {
            client.unsubscribe(now, &[&name], UserProperties::default())
        } else {
            let filters = [filter(&name, QoS::AtLeastOnce)];
            client.subscribe(now, &filters, None, UserProperties::default())
        };
        match asked {
            Ok(id) => self.state.asked = Some((id, which)),
            Err(_) => held[which].is_open = open.is_some(),
        }
    }

    /// Whether everything that was sent is acknowledged and has come.
    pub(super) fn is_done(&self) -> bool {
        self.state.open.iter().all(HashMap::is_empty) && self.state.ledger.missing() == 0
    }

    /// The broker was killed.
    pub(super) fn lose_all(&mut self) {
        self.state.expects_end = true;
        let Self { peers, state, .. } = self;
        for (index, peer) in peers.iter_mut().enumerate() {
            if !peer.lose(&mut |_, event| state.on_event(index, &event)) {
                let name = &state.names[index];
                state.ledger.problem(format!("{name}: the connection outlives the broker"));
            }
        }
        state.ledger.mark_owed();
        state.asked = None;
        state.expects_end = false;
    }
}

impl State {
    fn on_event(&mut self, index: usize, event: &Event<'_>) {
        match event {
            Event::Connected { session_present, .. } => {
                let had = std::mem::replace(&mut self.has_session[index], true);
                if had && !session_present {
                    let name = &self.names[index];
                    self.ledger.problem(format!("{name}: the session is gone"));
                }
            }
            Event::Disconnected(ending) => self.on_end(index, ending),
            Event::Discarded { packet_id } => drop(self.open[index].remove(packet_id)),
            Event::Message(message) => self.on_message(index, message),
            Event::Received { packet_id } => self.on_acked(index, *packet_id),
            Event::Acked { packet_id, reason, .. } => {
                if reason.is_error() {
                    let name = &self.names[index];
                    self.ledger.problem(format!("{name}: a message is refused: {reason}"));
                } else {
                    self.on_acked(index, *packet_id);
                }
                self.open[index].remove(packet_id);
            }
            Event::Subscribed { packet_id, codes, .. } => {
                self.subscribed[index] = true;
                if codes.iter().any(|code| *code >= 0x80) {
                    let name = &self.names[index];
                    self.ledger.problem(format!("{name}: a subscription is refused: {codes:?}"));
                }
                self.on_held(*packet_id, true);
            }
            Event::Unsubscribed { packet_id, .. } => self.on_held(*packet_id, false),
            Event::Pong | Event::Auth(_) => {}
        }
    }

    fn on_held(&mut self, id: PacketId, is_subscribed: bool) {
        if let Some((_, which)) = self.asked.take_if(|(asked, _)| *asked == id) {
            self.held[which] = Held { is_subscribed, is_open: false, ..self.held[which] };
        }
    }

    fn on_end(&mut self, index: usize, ending: &Ending<'_>) {
        let is_expected = match ending {
            Ending::Requested => true,
            Ending::Network => self.expects_end,
            _ => false,
        };
        if !is_expected {
            let name = &self.names[index];
            self.ledger.problem(format!("{name}: {ending}"));
        }
    }

    fn on_acked(&mut self, index: usize, id: PacketId) {
        let Some((what, number)) = self.open[index].get(&id).copied() else { return };
        match self.roles[index] {
            Role::Publisher(publisher) => self.ledger.acked(publisher, what, number),
            // PUBREC and PUBCOMP both say it, and the next may be under way between them.
            Role::Keeper if self.kept[what].open == Some(number as u64) => {
                self.kept[what] = Kept { acked: number as u64, open: None };
            }
            Role::Keeper => {}
            Role::Receiver(_) | Role::Wanderer => {}
        }
    }

    fn on_message(&mut self, index: usize, message: &Publish<'_>) {
        let mut levels = message.topic.rsplit('/');
        let (last, publisher) = (levels.next().unwrap_or(""), levels.next().unwrap_or(""));
        match self.roles[index] {
            Role::Receiver(receiver) => {
                let number = message.payload.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
                let stream = last.parse::<usize>().ok().and_then(|qos| qos.checked_sub(1));
                let (Ok(publisher), Some(stream), Some(number)) =
                    (publisher.parse(), stream, number)
                else {
                    let topic = message.topic;
                    return self.ledger.problem(format!("a message to {topic} that nobody sent"));
                };
                if message.payload[8..].iter().any(|byte| usize::from(*byte) != stream) {
                    self.ledger.problem(format!("message {number} of {publisher} is not whole"));
                }
                self.ledger.got(receiver, publisher, stream, number as usize);
            }
            Role::Wanderer => {
                let round = std::str::from_utf8(message.payload).ok().and_then(|p| p.parse().ok());
                if let (Ok(which), Some(round)) = (last.parse::<usize>(), round) {
                    self.on_probe(which, round);
                }
            }
            Role::Publisher(_) | Role::Keeper => {}
        }
    }

    fn on_probe(&mut self, which: usize, round: u64) {
        let Some(held) = self.held.get_mut(which) else { return };
        held.probed = Some(round);
        // An earlier probe may come again.
        if !held.is_subscribed && !held.is_open && round == self.ledger.round {
            self.ledger.problem(format!("filter {which} was unsubscribed, and still matches"));
        }
    }
}
