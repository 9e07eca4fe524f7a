//! Fuzz target of the broker. Run it by `scripts/fuzz.sh broker 60`.
//!
//! The input is what one connection sends, cut by commands of the fuzzer: time passes, the
//! connection is lost and another comes, changes are committed. A second client observes: it
//! subscribes to everything at QoS 2 and answers what it is sent. No input may panic, everything
//! that is written must decode, and no packet id may be used again while it is live.
#![no_main]

use std::collections::HashSet;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use noctule::broker::{Accepted, Broker, Config, Disconnection, Frame, Step};
use noctule::clock::Time;
use noctule::codec::mqtt::{
    Ack, Connect, ConnectProperties, Packet, PacketId, QoS, ReasonCode, Side, Subscribe,
    SubscribeFilter, SubscribeFilters, SubscriptionOptions, UserProperties, Version, decode,
    frame_len,
};
use noctule::ids::{ConnId, PlacementKey, ShardId};

/// A byte that begins no packet of a client begins a command instead.
const ADVANCE: u8 = 0x00;
const CUT: u8 = 0x01;
const COMMIT: u8 = 0x02;

struct Peer {
    conn: ConnId,
    version: Option<Version>,
    held: bool,
    done: bool,
    received: Vec<u8>,
    /// QoS 1 and 2 exchanges of the present connection that are not finished.
    live: HashSet<PacketId>,
}

struct World {
    broker: Broker,
    now: Time,
    uncommitted: u64,
    peers: [Peer; 2],
}

impl Peer {
    fn new(index: u32, generation: u32) -> Self {
        Self {
            conn: ConnId { index, generation },
            version: None,
            held: false,
            done: false,
            received: Vec::new(),
            live: HashSet::new(),
        }
    }
}

impl World {
    fn new(record_changes: bool) -> Self {
        let config = Config {
            record_changes,
            maximum_packet_size: 4096,
            queue_len_max: 64,
            topic_alias_maximum: 4,
            receive_maximum: 8,
            ..Config::default()
        };
        let broker = Broker::new(config, ShardId::new(0), 1, PlacementKey(1), 1);
        let now = Time::ZERO.plus_secs(10);
        let mut world =
            Self { broker, now, uncommitted: 0, peers: [Peer::new(0, 0), Peer::new(1, 0)] };
        world.open(0);
        world.open(1);
        world
    }

    fn open(&mut self, which: usize) {
        let conn = self.peers[which].conn;
        let generation = (conn.generation + 1) % ConnId::GENERATIONS;
        self.peers[which] = Peer::new(conn.index, generation);
        let accepted = Accepted { at: self.now, listener: 0, peer: None };
        self.broker.handle_open(self.now, self.peers[which].conn, accepted);
    }

    /// Offers a frame; whether it was consumed.
    fn offer(&mut self, which: usize, frame: &[u8]) -> bool {
        let peer = &mut self.peers[which];
        if peer.done {
            return true;
        }
        let version = peer.version;
        if let (None, Ok(Packet::Connect(connect))) = (version, decode(frame, None, Side::Server)) {
            peer.version = Some(connect.version);
        }
        let info = Frame { bytes: frame, shared: None };
        let step = self.broker.handle_frame(self.now, peer.conn, version, info, &mut "");
        match step {
            Step::Next => {}
            Step::Wait | Step::Pause => peer.held = true,
            Step::Close => peer.done = true,
        }
        step != Step::Wait
    }

    fn send(&mut self, which: usize, packet: &Packet<'_>) {
        let mut bytes = Vec::new();
        packet.encode(self.peers[which].version.unwrap_or(Version::V5), &mut bytes);
        if !self.peers[which].held {
            self.offer(which, &bytes);
        }
    }

    fn settle(&mut self) {
        for _ in 0..64 {
            self.broker.handle_timeouts(self.now);
            for id in std::mem::take(&mut self.broker.out.silent) {
                self.broker.handle_silence(self.now, id, Duration::MAX);
            }
            if let Some(change) = self.broker.out.changes.last() {
                self.uncommitted = change.number;
            }
            self.broker.out.changes.clear();
            self.broker.out.dirty.conns.clear();
            for peer in &mut self.peers {
                let outbox = self.broker.outbox(peer.conn);
                let len = outbox.len();
                peer.received.extend(outbox.slices_from(0).flatten());
                outbox.clear();
                if len > 0 {
                    self.broker.handle_sent(self.now, peer.conn, len);
                }
            }
            for conn in std::mem::take(&mut self.broker.out.resume) {
                self.peers.iter_mut().filter(|p| p.conn == conn).for_each(|p| p.held = false);
            }
            let closing = std::mem::take(&mut self.broker.out.close);
            let quiet = self.broker.out.is_empty() && closing.is_empty();
            for which in 0..2 {
                self.read(which);
                if closing.contains(&self.peers[which].conn) {
                    self.close(which, Disconnection::Closed);
                }
            }
            if quiet && self.broker.out.is_empty() {
                return;
            }
        }
    }

    fn close(&mut self, which: usize, how: Disconnection) {
        self.broker.handle_closed(self.now, self.peers[which].conn, how);
        self.open(which);
        if which == 1 {
            self.observe();
        }
    }

    /// Decodes what a client received; the observer answers.
    fn read(&mut self, which: usize) {
        let received = std::mem::take(&mut self.peers[which].received);
        let mut rest = &received[..];
        while let Some(len) = frame_len(rest).expect("a frame of ours") {
            let (frame, next) = rest.split_at(len);
            rest = next;
            let version = self.peers[which].version;
            let packet = decode(frame, version.or(Some(Version::V5)), Side::Client)
                .expect("a packet of ours");
            self.check(which, &packet);
        }
        assert!(rest.is_empty(), "whole packets");
    }

    fn check(&mut self, which: usize, packet: &Packet<'_>) {
        let live = &mut self.peers[which].live;
        match packet {
            Packet::Publish(publish) => {
                let Some(id) = publish.packet_id else { return };
                if which == 1 {
                    assert!(live.insert(id), "a live packet id was used again");
                    let ack = Ack::new(id, ReasonCode::SUCCESS);
                    let answer = match publish.qos {
                        QoS::ExactlyOnce => Packet::PubRec(ack),
                        _ => Packet::PubAck(ack),
                    };
                    if publish.qos == QoS::AtLeastOnce {
                        live.remove(&id);
                    }
                    self.send(which, &answer);
                }
            }
            Packet::PubRel(ack) if which == 1 => {
                live.remove(&ack.packet_id);
                self.send(which, &Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::SUCCESS)));
            }
            _ => {}
        }
    }

    fn observe(&mut self) {
        let properties = ConnectProperties {
            session_expiry_interval: Some(5),
            receive_maximum: Some(3),
            ..ConnectProperties::default()
        };
        let fresh = Connect::new(Version::V5, "observer");
        let connect = Connect { clean_start: false, properties, ..fresh };
        self.send(1, &Packet::Connect(connect));
        let options = SubscriptionOptions::new(QoS::ExactlyOnce);
        let filters = [SubscribeFilter { filter: "#", options }];
        let subscribe = Subscribe {
            packet_id: PacketId::MIN,
            subscription_id: Some(7),
            user_properties: UserProperties::default(),
            filters: SubscribeFilters::new(&filters),
        };
        self.settle_commits();
        self.send(1, &Packet::Subscribe(subscribe));
    }

    fn settle_commits(&mut self) {
        let change = self.broker.out.changes.last().map_or(self.uncommitted, |c| c.number);
        self.broker.out.changes.clear();
        self.broker.handle_committed(self.now, change);
        for conn in std::mem::take(&mut self.broker.out.resume) {
            self.peers.iter_mut().filter(|p| p.conn == conn).for_each(|p| p.held = false);
        }
    }

    fn command(&mut self, command: u8, amount: u8) {
        match command {
            ADVANCE => self.now = self.now + Duration::from_millis(u64::from(amount) * 100),
            CUT => self.close(usize::from(amount & 1), Disconnection::Eof),
            _ => self.settle_commits(),
        }
        self.settle();
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, mut rest)) = input.split_first() else { return };
    let mut world = World::new(choice & 1 == 1);
    world.observe();
    world.settle();
    while let [first, others @ ..] = rest {
        if *first <= COMMIT {
            world.command(*first, others.first().copied().unwrap_or(0));
            rest = others.get(1..).unwrap_or(&[]);
            continue;
        }
        let Ok(Some(len)) = frame_len(rest) else { break };
        let len = len.min(rest.len());
        let (frame, next) = rest.split_at(len);
        if world.peers[0].held || !world.offer(0, frame) {
            world.command(COMMIT, 0);
            world.offer(0, frame);
        }
        rest = next;
        world.settle();
    }
    // The end of everything.
    world.command(COMMIT, 0);
    for peer in &world.peers {
        world.broker.handle_closed(world.now, peer.conn, Disconnection::Eof);
    }
    for _ in 0..8 {
        world.now = Time::MAX;
        world.broker.handle_timeouts(world.now);
        world.settle_commits();
    }
});
