//! What publishers and visitors do when they may: the hot path out.
//!
//! A QoS 0 message to a publisher's one topic is a copy of what was encoded once, with its header
//! written over it; everything else goes through the client.
#![forbid(unsafe_code)]

use super::super::pace::mix;
use super::super::peer::{After, Barrier, Link};
use super::super::record::Header;
use super::super::state::{Todo, may_publish};
use super::super::workload::{Plan, Visit, Workload};
use super::Worker;
use crate::client::{Message, RequestError};
use crate::clock::{self, Time};
use crate::codec::mqtt::{Packet, Publish, QoS};
use crate::io::Kernel;
use crate::limits::BENCH_OUT_BYTES_MARK;

/// What is sent of a publisher's messages, but for the header.
pub(super) struct Source {
    /// All up to the payload, by size; empty where messages are encoded one by one.
    heads: Vec<Vec<u8>>,
    pub(super) topic: String,
}

impl<B: Kernel> Worker<'_, B> {
    /// Publishes as much as pace, window and buffer allow.
    pub(super) fn publish(&mut self, publisher: usize) {
        let now = clock::now();
        let peer = &mut self.peers[self.publishers_at + publisher];
        let source = &mut self.sources[publisher];
        let plan = self.plan;
        let number = peer.seat.number;
        let (sizes, with_header) = (&plan.payload, plan.has_header());
        let open = self.state.pace.is_open();
        let before = self.sent;
        // Whatever stops it calls for this publisher again: Sent, Acked, the pace.
        while peer.client.out.len() < BENCH_OUT_BYTES_MARK && may_publish(&peer.client, plan.qos) {
            let Some(intended) = self.state.pace.due(publisher, now) else { break };
            let sequence = self.state.pace.begun(publisher);
            let kind = if sizes.len() == 1 { 0 } else { size_of(number, sequence, sizes.len()) };
            let size = sizes[kind];
            let header = Header { publisher: number, sequence, intended };
            if let Some(head) = source.heads.get(kind) {
                let out = &mut peer.client.out;
                out.extend_from_slice(head);
                let at = out.len();
                out.extend_from_slice(&self.filler[..size]);
                if with_header {
                    header.write(&mut out[at..]);
                }
            } else {
                if with_header {
                    header.write(&mut self.filler);
                }
                if plan.layout().has_many_topics() {
                    plan.layout().write_topic(number as usize, sequence, &mut source.topic);
                }
                let message = Message {
                    retain: plan.workload == Workload::Retained,
                    ..Message::new(&source.topic, &self.filler[..size], plan.qos)
                };
                match peer.client.publish(now, &message) {
                    Ok(id) => self.state.on_stored(publisher, id, intended),
                    Err(RequestError::WindowFull) => break,
                    Err(error) => {
                        self.state.fail(format!("publisher {number}: {error}"));
                        break;
                    }
                }
            }
            self.state.pace.begin(publisher);
            self.sent += 1;
            if open {
                self.sent_now.push(intended);
            }
        }
        self.state.pace.rearm(publisher, now);
        let sent = self.sent - before;
        if sent > 0 {
            self.published += if self.state.receiver.measured.contains(&now) { sent } else { 0 };
            self.mark_dirty(self.publishers_at + publisher);
        }
        self.ask_if_stored(publisher, now);
    }

    /// At QoS 0 nobody says that a message was stored: a ping behind the last one does.
    pub(super) fn ask_if_stored(&mut self, publisher: usize, now: Time) {
        let plan = self.plan;
        if !plan.is_bounded() || plan.qos != QoS::AtMostOnce {
            return;
        }
        let index = self.publishers_at + publisher;
        let peer = &mut self.peers[index];
        let all = self.state.pace.begun(publisher) >= plan.messages_each;
        if all && peer.life.barrier == Barrier::None && peer.client.ping(now).is_ok() {
            peer.life.barrier = Barrier::Asked;
            self.mark_dirty(index);
        }
    }

    /// Removes the retained messages of this run, with empty ones.
    pub(super) fn clear_stored(&mut self, now: Time) {
        if self.plan.workload != Workload::Retained {
            return;
        }
        for publisher in 0..self.sources.len() {
            let index = self.publishers_at + publisher;
            let all = self.state.pace.begun(publisher);
            let peer = &mut self.peers[index];
            let topic = &mut self.sources[publisher].topic;
            let mut any = false;
            while peer.life.cleared < all && peer.client.out.len() < BENCH_OUT_BYTES_MARK {
                let number = peer.seat.number as usize;
                self.plan.layout().write_topic(number, peer.life.cleared, topic);
                let message = Message { retain: true, ..Message::new(topic, &[], QoS::AtMostOnce) };
                if peer.client.publish(now, &message).is_err() {
                    break;
                }
                peer.life.cleared += 1;
                any = true;
            }
            let asked = peer.life.barrier != Barrier::None;
            if peer.life.cleared == all && !asked && peer.client.ping(now).is_ok() {
                peer.life.barrier = Barrier::Asked;
                any = true;
            }
            if any {
                self.mark_dirty(index);
            }
        }
    }

    /// Begins the visitor's next visit, if it is due and the last one is over.
    pub(super) fn visit(&mut self, visitor: usize) {
        let now = clock::now();
        let index = self.visitors_at + visitor;
        let peer = &mut self.peers[index];
        if peer.life.busy {
            return;
        }
        let kind = self.plan.visit();
        let fits = match kind {
            Visit::Stay => false,
            Visit::Ping | Visit::Reconnect => peer.link == Link::Open && peer.client.is_connected(),
            Visit::Session => peer.link == Link::Down,
        };
        let Some(intended) = self.state.visits.due(visitor, now).filter(|_| fits) else {
            self.state.visits.rearm(visitor, now);
            return;
        };
        self.state.visits.begin(visitor);
        self.state.visits.rearm(visitor, now);
        if self.state.visits.is_open() {
            self.sent_now.push(intended);
        }
        let life = &mut peer.life;
        (life.busy, life.intended) = (true, intended);
        match kind {
            Visit::Stay => {}
            Visit::Ping => {
                // A ping fails only without connection, which was looked at.
                let _ = peer.client.ping(now);
                self.mark_dirty(index);
            }
            Visit::Reconnect => {
                life.after = After::Return;
                life.leaving = true;
                self.state.todo.push((index as u32, Todo::Drop));
            }
            Visit::Session => self.open(index, intended),
        }
    }
}

impl Source {
    pub(super) fn new(plan: &Plan, publisher: usize) -> Self {
        let topic = plan.layout().fixed_topic(publisher).unwrap_or_default();
        let plain = plan.qos == QoS::AtMostOnce && !topic.is_empty() && !plan.is_bounded();
        let head = |size: &usize| {
            let mut head = Vec::new();
            let payload = vec![0; *size];
            Packet::Publish(Publish::plain(&topic, &payload)).encode(plan.version, &mut head);
            head.truncate(head.len() - size);
            head
        };
        let heads = if plain { plan.payload.iter().map(head).collect() } else { Vec::new() };
        Self { heads, topic }
    }
}

/// Which of so many sizes the message has.
fn size_of(publisher: u32, sequence: u32, sizes: usize) -> usize {
    (mix(u64::from(publisher) << 32 | u64::from(sequence)) % sizes as u64) as usize
}
