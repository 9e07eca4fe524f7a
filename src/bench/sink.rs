//! `noctule bench --sink`: a peer that speaks just enough MQTT to count, so that the generator's own
//! ceiling can be shown.
//!
//! It accepts everybody, acknowledges everything, and hands a message to those whose filters match its
//! topic: as the bytes that came, at QoS 0, without looking further. Who hears a connection's topic is
//! found once and remembered until another is published there, with a look at every filter that has
//! a wildcard: it is no measure where each message has a topic of its own. It has no sessions, no
//! retained messages, refuses shared subscriptions, and drops what is too much. It is no broker.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use foldhash::fast::FixedState;
use serde::Serialize;

use super::Error;
use super::frames::{Frames, plain_publish};
use crate::buf::OutBuf;
use crate::clock::{self, Time};
use crate::codec::mqtt::{
    Ack, ConnAck, ConnAckProperties, Packet, Publish, QoS, ReasonCode, Side, SubAck,
    UserProperties, Version, decode, topic,
};
use crate::ids::ConnId;
use crate::io::probe::{self, Engine};
use crate::io::{
    Backend as _, Choice, Completion, Epoll, Kernel, PoolSize, RecvMode, SendEnd, Settings, Uring,
    Wait, socket,
};
use crate::limits::{BENCH_SINK_OUT_BYTES_MAX, LISTEN_BACKLOG};

/// How long at most until an interrupt is noticed.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// What has come so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Connections that were accepted.
    pub connections: u64,
    /// Messages that came.
    pub messages: u64,
    /// Bytes that came.
    pub bytes: u64,
    /// Messages that were handed on.
    pub forwarded: u64,
    /// Messages that were not, because their receiver does not read.
    pub dropped: u64,
}

/// Counts until `interrupted`. `on_listening` hears where, before anybody can connect; `on_second`
/// what there was, once a second.
///
/// # Errors
/// When it cannot listen, or the kernel refuses its interface.
pub fn run(
    addr: SocketAddr,
    io: Choice,
    interrupted: &AtomicBool,
    on_listening: impl FnOnce(SocketAddr),
    on_second: impl FnMut(&Counts),
) -> Result<Counts, Error> {
    let failed = |doing: &str| {
        let doing = doing.to_owned();
        move |error| Error::Io { doing, error }
    };
    socket::raise_descriptor_limit();
    let mut listeners =
        socket::listen(addr, 1, LISTEN_BACKLOG).map_err(failed(&format!("listen on {addr}")))?;
    let listener = listeners.remove(0);
    on_listening(listener.local_addr().map_err(failed("find the port"))?);
    let settings = Settings {
        uring_pool: PoolSize { count: 512, bytes: 16 * 1024 },
        epoll_pool: PoolSize { count: 64, bytes: 64 * 1024 },
        ..Settings::default()
    };
    match probe::select(io).map_err(Error::Plan)?.engine {
        Engine::Uring => {
            let mut backend = Uring::new(&settings).map_err(failed("use io_uring"))?;
            backend.add_listener(listener).map_err(failed("watch the listener"))?;
            Sink::new(backend).run(interrupted, on_second)
        }
        Engine::Epoll => {
            let mut backend = Epoll::new(&settings).map_err(failed("use epoll"))?;
            backend.add_listener(listener).map_err(failed("watch the listener"))?;
            Sink::new(backend).run(interrupted, on_second)
        }
    }
}

/// One connection.
struct Guest {
    frames: Frames,
    version: Version,
    generation: u32,
    open: bool,
    out: Vec<u8>,
    /// None while it is being sent.
    buf: Option<OutBuf>,
    dirty: bool,
    /// The topic of its last message, and who wants it.
    topic: Vec<u8>,
    receivers: Vec<u32>,
    /// Of [`Wanted`], when that was found.
    epoch: u64,
}

struct Sink<B> {
    backend: B,
    guests: Vec<Guest>,
    free: Vec<u32>,
    dirty: Vec<u32>,
    wanted: Wanted,
    counts: Counts,
}

/// Who subscribed to what.
struct Wanted {
    /// By topic.
    plain: HashMap<String, Vec<u32>, FixedState>,
    /// Filters with wildcards.
    wild: Vec<(String, u32)>,
    /// Changes with the others.
    epoch: u64,
}

impl Wanted {
    fn add(&mut self, filter: &str, receiver: u32) {
        if filter.contains(['+', '#']) {
            self.wild.push((filter.into(), receiver));
        } else {
            self.plain.entry(filter.into()).or_default().push(receiver);
        }
        self.epoch += 1;
    }

    fn forget(&mut self, receiver: u32) {
        for receivers in self.plain.values_mut() {
            receivers.retain(|other| *other != receiver);
        }
        self.plain.retain(|_, receivers| !receivers.is_empty());
        self.wild.retain(|(_, other)| *other != receiver);
        self.epoch += 1;
    }

    /// Each once, however many of its filters match.
    fn receivers(&self, topic: &[u8]) -> Vec<u32> {
        let Ok(topic) = std::str::from_utf8(topic) else { return Vec::new() };
        let mut all = self.plain.get(topic).cloned().unwrap_or_default();
        let wild = self.wild.iter().filter(|(filter, _)| topic::matches(filter, topic));
        all.extend(wild.map(|(_, receiver)| receiver));
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl<B: Kernel> Sink<B> {
    fn new(backend: B) -> Self {
        Self {
            backend,
            guests: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            wanted: Wanted {
                plain: HashMap::with_hasher(FixedState::with_seed(1)),
                wild: Vec::new(),
                epoch: 1,
            },
            counts: Counts::default(),
        }
    }

    fn run(
        mut self,
        interrupted: &AtomicBool,
        mut on_second: impl FnMut(&Counts),
    ) -> Result<Counts, Error> {
        let mut completions = Vec::new();
        let mut next: Time = clock::now() + Duration::from_secs(1);
        while !interrupted.load(Ordering::Relaxed) {
            self.flush();
            let wait = Wait::Until(clock::now() + WAIT_MAX);
            self.backend
                .poll(wait, &mut completions)
                .map_err(|error| Error::Io { doing: "wait for the kernel".into(), error })?;
            for completion in completions.drain(..) {
                self.on_completion(completion);
            }
            let now = clock::now();
            if now >= next {
                on_second(&self.counts);
                next = now + Duration::from_secs(1);
            }
        }
        Ok(self.counts)
    }

    fn flush(&mut self) {
        for index in self.dirty.drain(..) {
            let guest = &mut self.guests[index as usize];
            guest.dirty = false;
            if guest.out.is_empty() || !guest.open {
                continue;
            }
            if let Some(mut buf) = guest.buf.take() {
                std::mem::swap(buf.tail(), &mut guest.out);
                let conn = ConnId { index, generation: guest.generation };
                self.backend.send(conn, buf, SendEnd::Awaited);
            }
        }
    }

    fn on_completion(&mut self, completion: Completion) {
        match completion {
            Completion::Accepted { socket, .. } => self.on_accepted(socket),
            Completion::Received { conn, buf } => {
                if self.is_current(conn) {
                    self.counts.bytes += buf.len() as u64;
                    self.on_received(conn, &buf);
                }
                self.backend.release(buf);
            }
            Completion::Sent { conn, mut buf, result } if self.is_current(conn) => {
                buf.clear();
                let guest = &mut self.guests[conn.index as usize];
                guest.buf = Some(buf);
                if result.is_err() {
                    self.close(conn);
                } else if !guest.out.is_empty() {
                    mark_dirty(guest, conn.index, &mut self.dirty);
                }
            }
            Completion::RecvEnded { conn, .. } if self.is_current(conn) => self.close(conn),
            Completion::Closed { conn } => {
                let guest = &mut self.guests[conn.index as usize];
                guest.generation = (guest.generation + 1) % ConnId::GENERATIONS;
                self.free.push(conn.index);
            }
            _ => {}
        }
    }

    fn is_current(&self, conn: ConnId) -> bool {
        let guest = &self.guests[conn.index as usize];
        guest.open && guest.generation == conn.generation
    }

    fn on_accepted(&mut self, socket: std::os::fd::OwnedFd) {
        let index = self.free.pop().unwrap_or(self.guests.len() as u32);
        let known = self.guests.get(index as usize);
        let guest = Guest {
            frames: Frames::default(),
            version: Version::V311,
            generation: known.map_or(0, |guest| guest.generation),
            open: true,
            out: Vec::new(),
            buf: Some(OutBuf::new()),
            dirty: false,
            topic: Vec::new(),
            receivers: Vec::new(),
            epoch: 0,
        };
        let conn = ConnId { index, generation: guest.generation };
        match self.guests.get_mut(index as usize) {
            Some(place) => *place = guest,
            None => self.guests.push(guest),
        }
        if self.backend.add_socket(conn, socket).is_ok() {
            self.counts.connections += 1;
            self.backend.recv(conn, RecvMode::Multi);
        } else {
            self.guests[index as usize].open = false;
            self.free.push(index);
        }
    }

    fn close(&mut self, conn: ConnId) {
        self.guests[conn.index as usize].open = false;
        self.wanted.forget(conn.index);
        self.backend.close(conn);
    }

    fn on_received(&mut self, conn: ConnId, buf: &crate::io::RecvBuf) {
        let index = conn.index;
        let mut frames = std::mem::take(&mut self.guests[index as usize].frames);
        let Self { backend, guests, dirty, wanted, counts, .. } = self;
        let mut table = Table { guests, dirty, wanted, counts };
        let mut over = false;
        let fed = frames.feed(backend.bytes(buf), |frame| {
            let version = table.guests[index as usize].version;
            match plain_publish(frame, version) {
                Some((topic, _)) => table.on_publish(index, topic, frame),
                None => over |= !table.on_frame(index, frame),
            }
        });
        let guest = &mut self.guests[index as usize];
        guest.frames = frames;
        if !guest.out.is_empty() {
            mark_dirty(guest, index, &mut self.dirty);
        }
        if over || fed.is_err() {
            self.close(conn);
        }
    }
}

/// All but the backend, whose bytes are being read.
struct Table<'a> {
    guests: &'a mut Vec<Guest>,
    dirty: &'a mut Vec<u32>,
    wanted: &'a mut Wanted,
    counts: &'a mut Counts,
}

impl Table<'_> {
    /// A message; `frame` is all of it, as a receiver at QoS 0 gets it.
    #[inline]
    fn on_publish(&mut self, from: u32, topic: &[u8], frame: &[u8]) {
        self.counts.messages += 1;
        let guest = &mut self.guests[from as usize];
        if guest.epoch != self.wanted.epoch || guest.topic != topic {
            guest.epoch = self.wanted.epoch;
            topic.clone_into(&mut guest.topic);
            guest.receivers = self.wanted.receivers(topic);
        }
        let version = guest.version;
        for at in 0..guest.receivers.len() {
            let receiver = self.guests[from as usize].receivers[at];
            let to = &mut self.guests[receiver as usize];
            if to.version != version || to.out.len() > BENCH_SINK_OUT_BYTES_MAX {
                self.counts.dropped += 1;
                continue;
            }
            to.out.extend_from_slice(frame);
            self.counts.forwarded += 1;
            mark_dirty(to, receiver, self.dirty);
        }
    }

    /// Anything else. False at the end of the connection.
    fn on_frame(&mut self, from: u32, frame: &[u8]) -> bool {
        let guest = &mut self.guests[from as usize];
        let known = (frame[0] >> 4 != 1).then_some(guest.version);
        let Ok(packet) = decode(frame, known, Side::Server) else { return false };
        let (version, out) = (guest.version, &mut guest.out);
        match packet {
            Packet::Connect(connect) => {
                guest.version = connect.version;
                let connack = ConnAck {
                    session_present: false,
                    reason: ReasonCode::SUCCESS,
                    properties: ConnAckProperties::default(),
                };
                Packet::ConnAck(connack).encode(connect.version, out);
            }
            Packet::Subscribe(subscribe) => {
                let filters: Vec<_> = subscribe.filters.iter().collect();
                let is_shared = |filter: &str| filter.starts_with("$share/");
                let codes =
                    filters.iter().map(|filter| match (is_shared(filter.filter), version) {
                        (false, _) => filter.options.qos as u8,
                        (true, Version::V5) => ReasonCode::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED.0,
                        (true, _) => ReasonCode::UNSPECIFIED_ERROR.0,
                    });
                let codes: Vec<u8> = codes.collect();
                let suback = SubAck {
                    packet_id: subscribe.packet_id,
                    reason_string: None,
                    user_properties: UserProperties::default(),
                    codes: &codes,
                };
                Packet::SubAck(suback).encode(version, out);
                for filter in filters.iter().filter(|filter| !is_shared(filter.filter)) {
                    self.wanted.add(filter.filter, from);
                }
            }
            Packet::Publish(publish) => {
                if let Some(id) = publish.packet_id {
                    let ack = Ack::new(id, ReasonCode::SUCCESS);
                    let ack = match publish.qos {
                        QoS::ExactlyOnce => Packet::PubRec(ack),
                        _ => Packet::PubAck(ack),
                    };
                    ack.encode(version, out);
                }
                let plain = Publish::plain(publish.topic, publish.payload);
                let mut bytes = Vec::new();
                Packet::Publish(plain).encode(version, &mut bytes);
                self.on_publish(from, publish.topic.as_bytes(), &bytes);
            }
            Packet::PubRel(ack) => {
                Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::SUCCESS)).encode(version, out);
            }
            Packet::PingReq => Packet::PingResp.encode(version, out),
            Packet::Disconnect(_) => return false,
            _ => {}
        }
        true
    }
}

fn mark_dirty(guest: &mut Guest, index: u32, dirty: &mut Vec<u32>) {
    if !std::mem::replace(&mut guest.dirty, true) {
        dirty.push(index);
    }
}
