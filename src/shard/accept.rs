//! From accept to CONNECT: which shard is a connection's home, and how it gets there.
//!
//! Until CONNECT is decoded receives are single-shot, so that the connection is quiet when it has
//! to move (SHARDS.md H1); nothing but CONNECT is interpreted before the move, and all bytes that
//! were read travel with it (H2).
#![forbid(unsafe_code)]

use super::Shard;
use super::conn::{Conn, Input, Receiving, Stage};
use super::lanes::Move;
use super::receive::{apply, handle_input};
use crate::broker::{Accepted, Frame, Step};
use crate::codec::mqtt::{self, Connect, DecodeError, Packet, Side};
use crate::ids::{ConnId, ShardId};
use crate::io::{Backend, ListenerId, RecvMode};
use crate::transport::Transport;

impl<B: Backend> Shard<B> {
    pub(super) fn on_accepted(&mut self, listener: ListenerId, descriptor: B::Socket) {
        self.counters.accepted += 1;
        if self.stopping.is_some() {
            return;
        }
        let peer = self.backend.peer_addr(&descriptor);
        let listener = self.listener_ids.iter().position(|id| *id == listener).unwrap_or(0);
        let accepted = Accepted { at: self.now, listener: listener as u16, peer };
        let conn = Conn::new(accepted, Transport::Tcp, self.connect_size_max);
        if let Some(id) = self.insert(descriptor, conn) {
            let conns = &mut self.conns;
            let is_awaited = |id| conns.get_mut(id).is_some_and(|conn| conn.is_awaited());
            self.connect_deadlines.forget_first(is_awaited);
            self.connect_deadlines.set(self.now, id);
            self.arm(id, RecvMode::Once);
        }
    }

    /// Gives a connection a slot and registers its socket; drops it when that fails.
    fn insert(&mut self, descriptor: B::Socket, conn: Conn) -> Option<ConnId> {
        let id = self.conns.insert(conn);
        match self.backend.add_socket(id, descriptor) {
            Ok(()) => Some(id),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be registered and is dropped");
                self.counters.register_errors += 1;
                self.conns.remove(id);
                None
            }
        }
    }

    /// Looks whether the CONNECT of an opening connection has come.
    pub(super) fn on_opening(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.stage != Stage::Opening || conn.waiting {
            return;
        }
        let (unread, frame_max, ended) = (conn.input.unread(), conn.frame_max, conn.ended);
        let Some(&first) = unread.first() else {
            return if ended.is_some() { self.close(id) } else { self.arm(id, RecvMode::Once) };
        };
        match mqtt::frame_len(unread) {
            // The type is looked at before the rest has come: a stranger need not wait.
            _ if first >> 4 != 1 => self.refuse(id, &DecodeError::connect_expected(first)),
            Err(error) => self.refuse(id, &error),
            Ok(Some(len)) if len > frame_max as usize => {
                let version = mqtt::version_of_connect(unread);
                self.refuse(id, &DecodeError::packet_too_large(first, version));
            }
            Ok(Some(len)) if unread.len() >= len => self.on_connect(id, len),
            Ok(_) if ended.is_some() => self.close(id),
            Ok(_) => self.arm(id, RecvMode::Once),
        }
    }

    /// The first `len` bytes of its input are a whole first packet.
    fn on_connect(&mut self, id: ConnId, len: usize) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let input = conn.input.take();
        match mqtt::decode(&input.unread()[..len], None, Side::Server) {
            Ok(Packet::Connect(connect)) => {
                self.stamp(id);
                let home = self.home_of(&connect);
                if home != self.id {
                    self.restore(id, input, 0);
                    self.move_home(id, home);
                } else if self.must_wait_for_owner(id, connect.client_id) {
                    self.restore(id, input, 0);
                } else {
                    let consumed = self.connect(id, &connect, &input.unread()[..len]);
                    self.restore(id, input, if consumed { len } else { 0 });
                    self.go_on(id);
                }
            }
            Ok(_) => {
                let first = input.unread()[0];
                self.restore(id, input, 0);
                self.refuse(id, &DecodeError::connect_expected(first));
            }
            Err(error) => {
                self.restore(id, input, 0);
                self.refuse(id, &error);
            }
        }
    }

    /// SHARDS.md H3: of two connections of one client the newer is that whose CONNECT came later.
    /// Not when it was accepted: a client may open a connection long before it speaks. Nor when
    /// it was read: a busy shard reads late, and would make an abandoned connection the newer.
    fn stamp(&mut self, id: ConnId) {
        let Some(opening) = self.conns.get_mut(id).and_then(|conn| conn.opening.as_mut()) else {
            return;
        };
        if !std::mem::replace(&mut opening.stamped, true) {
            opening.accepted.at = (self.clock)() - self.backend.input_age(id);
        }
    }

    fn restore(&mut self, id: ConnId, input: Input, consumed: usize) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.input.restore(input, consumed);
        }
    }

    fn home_of(&self, connect: &Connect<'_>) -> ShardId {
        if connect.client_id.is_empty() {
            // The id that the broker will assign is chosen to have its home here.
            self.id
        } else {
            self.placement.home_of(connect.client_id, self.shards)
        }
    }

    /// Gives CONNECT to the broker; whether it was consumed.
    fn connect(&mut self, id: ConnId, connect: &Connect<'_>, frame: &[u8]) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return true };
        if conn.version.is_none() {
            conn.version = Some(connect.version);
            self.broker.handle_open(self.now, id, conn.accepted());
        }
        let packet = Packet::Connect(*connect);
        let frame = Frame { bytes: frame, shared: None };
        let step = self.broker.handle_packet(self.now, id, &packet, frame);
        if step == Step::Wait {
            conn.waiting = true;
            return false;
        }
        conn.stage = Stage::Live;
        conn.opening = None;
        conn.frame_max = self.broker.packet_size_max(id) as u32;
        apply(conn, step)
    }

    /// After CONNECT: what came behind it, then continuous input.
    fn go_on(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        handle_input(&mut self.broker, conn, self.now, id, &mut self.spare_inputs);
        self.after_input(id);
    }

    /// A connection that sent something else than a CONNECT, or a bad one: the broker says what it
    /// is answered, and counts it.
    fn refuse(&mut self, id: ConnId, error: &DecodeError) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.stage = Stage::Live;
        self.broker.handle_open(self.now, id, conn.accepted());
        let step = self.broker.handle_decode_error(self.now, id, error);
        assert_eq!(step, Step::Close, "invariant: no session outlives a bad first packet");
        conn.opening = None;
        apply(conn, step);
    }

    /// SHARDS.md H4: at a takeover, what was read of the old connection until now comes first.
    fn must_wait_for_owner(&mut self, id: ConnId, client_id: &str) -> bool {
        let Some(old) = self.broker.owner_of(client_id).filter(|old| *old != id) else {
            return false;
        };
        let waited = self.conns.get_mut(id).and_then(|conn| conn.waits_for());
        let Some(owner) = self.conns.get_mut(old) else { return false };
        handle_input(&mut self.broker, owner, self.now, old, &mut self.spare_inputs);
        let target = match waited {
            Some((waited_for, target)) if waited_for == old => target,
            _ => owner.handled + owner.input.len() as u64,
        };
        let must_wait = owner.holds_back(target);
        if must_wait {
            self.takeovers.push((old, id));
            if let Some(conn) = self.conns.get_mut(id) {
                conn.waiting = true;
                if let Some(opening) = &mut conn.opening {
                    opening.waits_for = Some((old, target));
                }
            }
        }
        must_wait
    }

    /// Looks again at the connections that wait for an older one of their session.
    pub(super) fn retry_takeovers(&mut self) {
        for (old, id) in std::mem::take(&mut self.takeovers) {
            let target = self.conns.get_mut(id).and_then(|conn| conn.waits_for());
            let holds_back = target.is_some_and(|(_, target)| {
                self.conns.get_mut(old).is_some_and(|owner| owner.holds_back(target))
            });
            if holds_back {
                self.takeovers.push((old, id));
            } else {
                self.retry_opening(id);
            }
        }
    }

    /// Looks again at a connection whose CONNECT had to wait.
    pub(super) fn retry_opening(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.waiting = false;
            self.on_opening(id);
        }
    }

    fn move_home(&mut self, id: ConnId, home: ShardId) {
        if !self.lanes.may_move(home, id) {
            if let Some(conn) = self.conns.get_mut(id) {
                conn.waiting = true;
            }
            return;
        }
        let Some(socket) = self.backend.detach(id) else {
            unreachable!("invariant: nothing of an opening connection is in flight here");
        };
        let conn = self.conns.remove(id).expect("invariant: it was just looked at");
        debug_assert!(conn.is_quiet());
        self.counters.moved_out += 1;
        self.lanes.send_move(
            home,
            Move {
                socket,
                accepted: conn.accepted(),
                transport: conn.transport,
                read: conn.input.into_vec(),
            },
        );
    }

    /// A connection comes home, with its CONNECT whole.
    pub(super) fn adopt(&mut self, from: ShardId, moved: Move<B::Socket>) {
        self.lanes.took_move(from);
        self.counters.moved_in += 1;
        if self.stopping.is_some() {
            return;
        }
        let mut conn = Conn::new(moved.accepted, moved.transport, self.connect_size_max);
        conn.input = Input::from_vec(moved.read);
        if let Some(opening) = &mut conn.opening {
            opening.stamped = true;
        }
        if let Some(id) = self.insert(moved.socket, conn) {
            self.on_opening(id);
        }
    }

    /// Asks for input, unless it is already asked for.
    pub(super) fn arm(&mut self, id: ConnId, mode: RecvMode) {
        if let Some(conn) = self.conns.get_mut(id)
            && conn.receiving == Receiving::Idle
            && conn.ended.is_none()
        {
            conn.receiving = Receiving::Armed;
            self.backend.recv(id, mode);
        }
    }
}
