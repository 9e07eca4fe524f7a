//! Connections: made, sent on, read from, closed, and what follows.
//!
//! Invariants: a slot of the backend is used again only after its connection is closed, with another
//! generation; what comes of an earlier generation is ignored.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::super::frames::plain_publish;
use super::super::peer::{After, Link, Peer};
use super::super::shared::{Phase, Role};
use super::super::state::{Todo, name};
use super::Worker;
use crate::buf::OutBuf;
use crate::clock::{self, Time};
use crate::codec::mqtt::ReasonCode;
use crate::ids::ConnId;
use crate::io::{Completion, Kernel, RecvEnd, RecvMode, SendEnd, socket};
use crate::limits::BENCH_OUT_BYTES_MARK;

impl<B: Kernel> Worker<'_, B> {
    /// Connects who is to connect, as the ramp or the number of those under way allows.
    pub(super) fn connect_due(&mut self, now: Time) {
        while let Some(index) = self.to_connect.front().copied() {
            let order = self.peers[index as usize].seat.order;
            let intended = match (self.state.phase, self.plan.settings.ramp) {
                (Phase::SetUp, Some(ramp)) => {
                    let after = Duration::from_secs_f64(f64::from(order) / ramp);
                    self.shared.set_up_at + after
                }
                (Phase::SetUp, None) => {
                    let most =
                        self.plan.settings.connecting.unwrap_or(1).div_ceil(self.plan.threads);
                    if self.state.connecting >= most {
                        return;
                    }
                    now
                }
                _ => now,
            };
            if intended > now {
                return;
            }
            self.to_connect.pop_front();
            self.open(index as usize, intended);
            if self.state.failure.is_some() {
                return;
            }
        }
    }

    pub(super) fn open(&mut self, index: usize, intended: Time) {
        let addr = self.plan.broker;
        let order = self.peers[index].seat.order;
        let source = self.plan.settings.sources.map(|count| {
            let last = 1 + order % u32::from(count);
            IpAddr::V4(Ipv4Addr::new(127, 0, 0, last as u8))
        });
        let peer = &mut self.peers[index];
        let conn = peer.conn(index);
        let opened = socket::begin_connect(addr, source)
            .and_then(|socket| self.backend.add_socket(conn, socket));
        if let Err(error) = opened {
            return self.state.fail(format!("connect to {addr}: {error}"));
        }
        let mode = if peer.slow { RecvMode::Once } else { RecvMode::Multi };
        self.backend.recv(conn, mode);
        peer.link = Link::Open;
        peer.life.intended = intended;
        peer.life.leaving = false;
        peer.frames.reset();
        peer.client.connect(clock::now());
        self.open_conns += 1;
        self.state.connecting += 1;
        self.mark_dirty(index);
    }

    pub(super) fn close(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        peer.life.leaving = true;
        peer.link = Link::Closing;
        self.backend.close(peer.conn(index));
    }

    pub(super) fn do_todo(&mut self) {
        let now = clock::now();
        while let Some((index, todo)) = self.state.todo.pop() {
            let index = index as usize;
            let peer = &mut self.peers[index];
            if peer.link != Link::Open {
                continue;
            }
            peer.life.leaving = true;
            if todo == Todo::Leave {
                peer.client.disconnect(now, ReasonCode::NORMAL_DISCONNECTION);
                // Closed when that was sent.
                if !peer.client.out.is_empty() || peer.buf.is_none() {
                    self.mark_dirty(index);
                    continue;
                }
            }
            self.close(index);
        }
    }

    /// The socket is gone.
    pub(super) fn on_closed(&mut self, index: usize, now: Time) {
        let Self { peers, state, .. } = self;
        let Peer { client, seat, life, .. } = &mut peers[index];
        life.leaving = true;
        client.handle_closed(&mut |client, event| {
            state.on_event(now, index, (*seat, life), client, event);
        });
        let peer = &mut peers[index];
        // Its buffer may have gone down with it.
        peer.buf.get_or_insert_with(OutBuf::new);
        peer.client.out.clear();
        match std::mem::replace(&mut peer.life.after, After::Nothing) {
            After::Nothing => {}
            After::Absent => state.done += 1,
            After::NextVisit => {
                peer.life.busy = false;
                state.visitors_ready.push(peer.seat.local as usize);
            }
            After::Return => {
                let intended = peer.life.intended;
                self.open(index, intended);
            }
            After::EndSession => {
                let options = peer.client.options_mut();
                options.clean_start = true;
                options.session_expiry_interval = 0;
                self.to_connect.push_back(index as u32);
            }
        }
    }

    pub(super) fn mark_dirty(&mut self, index: usize) {
        if !std::mem::replace(&mut self.peers[index].dirty, true) {
            self.dirty.push(index as u32);
        }
    }

    /// One send for each peer with something to say and nothing on its way.
    pub(super) fn flush(&mut self) {
        for index in self.dirty.drain(..) {
            let peer = &mut self.peers[index as usize];
            peer.dirty = false;
            if peer.client.out.is_empty() || peer.link != Link::Open {
                continue;
            }
            // Without its buffer it is sending, and the end of that marks it dirty again.
            if let Some(mut buf) = peer.buf.take() {
                std::mem::swap(buf.tail(), &mut peer.client.out);
                self.backend.send(peer.conn(index as usize), buf, SendEnd::Awaited);
            }
        }
    }

    /// Slow subscribers whose rest is over read on.
    pub(super) fn resume_slow(&mut self, now: Time) {
        while let Some((until, index)) = self.resting.front().copied() {
            if until > now {
                return;
            }
            self.resting.pop_front();
            let peer = &self.peers[index as usize];
            if peer.link == Link::Open {
                self.backend.recv(peer.conn(index as usize), RecvMode::Once);
            }
        }
    }

    pub(super) fn on_completion(&mut self, completion: Completion) {
        match completion {
            Completion::Received { conn, buf } => {
                if self.is_current(conn) {
                    self.on_received(conn.index as usize, &buf);
                }
                self.backend.release(buf);
            }
            Completion::Sent { conn, buf, result } if self.is_current(conn) => {
                self.on_sent(conn.index as usize, buf, result);
            }
            Completion::RecvEnded { conn, reason } if self.is_current(conn) => {
                let error = match reason {
                    RecvEnd::Error(error) => Some(error),
                    RecvEnd::Eof | RecvEnd::Cancelled => None,
                };
                self.on_network_end(conn.index as usize, error);
            }
            Completion::Closed { conn } => {
                let index = conn.index as usize;
                let peer = &mut self.peers[index];
                peer.link = Link::Down;
                peer.generation = (peer.generation + 1) % ConnId::GENERATIONS;
                self.open_conns -= 1;
                self.on_closed(index, clock::now());
            }
            _ => {}
        }
    }

    fn is_current(&self, conn: ConnId) -> bool {
        let peer = &self.peers[conn.index as usize];
        peer.generation == conn.generation && peer.link == Link::Open
    }

    fn on_received(&mut self, index: usize, buf: &crate::io::RecvBuf) {
        let now = clock::now();
        let version = self.plan.version;
        let Self { peers, state, backend, .. } = self;
        let Peer { client, frames, seat, life, .. } = &mut peers[index];
        let hears =
            matches!(seat.role, Role::Subscriber | Role::Requester) && client.is_connected();
        let result = frames.feed(backend.bytes(buf), |frame| {
            if hears && let Some((_, payload)) = plain_publish(frame, version) {
                return state.on_payload(now, *seat, life, payload);
            }
            client.handle_bytes(now, frame, &mut |client, event| {
                state.on_event(now, index, (*seat, life), client, event);
            });
        });
        if let Err(error) = result {
            state.fail(format!("{}: the broker sent a {error}", name(*seat)));
        }
        let peer = &self.peers[index];
        if !peer.client.out.is_empty() {
            self.mark_dirty(index);
        }
        let peer = &self.peers[index];
        if peer.slow && peer.link == Link::Open {
            self.resting.push_back((now + self.plan.slow_pause, index as u32));
        }
    }

    fn on_sent(&mut self, index: usize, mut buf: OutBuf, result: std::io::Result<()>) {
        buf.clear();
        buf.shrink(2 * BENCH_OUT_BYTES_MARK);
        let peer = &mut self.peers[index];
        peer.buf = Some(buf);
        if let Err(error) = result {
            return self.on_network_end(index, Some(error));
        }
        let role = peer.seat.role;
        let local = peer.seat.local as usize;
        if !peer.client.out.is_empty() {
            self.mark_dirty(index);
        } else if peer.life.leaving {
            self.close(index);
        }
        if matches!(role, Role::Publisher | Role::Requester) {
            self.state.ready.push(local);
        }
    }

    fn on_network_end(&mut self, index: usize, error: Option<std::io::Error>) {
        let now = clock::now();
        let addr = self.plan.broker;
        let Self { peers, state, .. } = self;
        let Peer { client, seat, life, .. } = &mut peers[index];
        if let Some(error) = error.filter(|_| !client.is_connected() && !life.leaving) {
            state.fail(format!("connect to {addr}: {error}"));
        }
        client.handle_closed(&mut |client, event| {
            state.on_event(now, index, (*seat, life), client, event);
        });
        self.close(index);
    }
}
