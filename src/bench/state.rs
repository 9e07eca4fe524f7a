//! What the events of the clients change: one function for each kind of event, one arm for each
//! role. It owns no connection; what is to be done with one is put down in `todo`.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use hdrhistogram::Histogram;

use super::pace::{Pace, Setup};
use super::peer::{After, Barrier, Life, Queue};
use super::record::{Header, Receiver, histogram, nanos_between};
use super::shared::{Phase, Role, Seat, Seating};
use super::workload::{Layout, Load, Plan, Visit, Workload};
use crate::client::{Client, Event, Message};
use crate::clock::Time;
use crate::codec::mqtt::{
    PacketId, Publish, QoS, ReasonCode, RetainHandling, SubscribeFilter, SubscriptionOptions,
    UserProperties,
};

/// Filters of one SUBSCRIBE.
const FILTERS_PER_SUBSCRIBE: usize = 500;

/// What is to be done with a connection, outside of its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Todo {
    /// DISCONNECT, and close when it is sent.
    Leave,
    /// Close now.
    Drop,
}

/// What the events of one thread's clients change.
pub(super) struct State<'a> {
    pub(super) plan: &'a Plan,
    layout: Layout,
    thread: usize,
    seating: Seating,
    pub(super) phase: Phase,
    pub(super) receiver: Receiver,
    /// When publishers publish.
    pub(super) pace: Pace,
    /// When visitors do what they do.
    pub(super) visits: Pace,
    /// Publishers that may have something to send.
    pub(super) ready: Queue,
    /// Visitors that may have something to do.
    pub(super) visitors_ready: Queue,
    pub(super) todo: Vec<(u32, Todo)>,
    /// Connections that are being made.
    pub(super) connecting: usize,
    /// Clients that have done what the phase asks for.
    pub(super) done: u64,
    /// Messages that the broker has accepted, where they are stored.
    pub(super) stored: u64,
    pub(super) last_arrival: Time,
    /// Intended connect to CONNACK, while setting up.
    pub(super) connect_latency: Histogram<u64>,
    /// Intended begin of a visit to its end; of a stored message to its acknowledgement.
    pub(super) visit_latency: Histogram<u64>,
    /// Visits that ended while measuring, and in all.
    pub(super) visited: u64,
    /// Of stored messages, what was published and when it was to be, by publisher.
    unacked: Vec<VecDeque<(PacketId, Time)>>,
    /// Messages for publishers of other threads: how many have come, and whose number has changed.
    pub(super) elsewhere: Vec<u64>,
    pub(super) elsewhere_changed: Queue,
    /// Slow subscribers that the broker has got rid of.
    pub(super) slow_dismissed: u64,
    answers: Vec<String>,
    /// Why the run cannot go on.
    pub(super) failure: Option<String>,
}

impl<'a> State<'a> {
    pub(super) fn new(plan: &'a Plan, thread: usize, crosses: bool) -> Self {
        let layout = plan.layout();
        let seating = Seating::new(plan);
        let both = plan.workload == Workload::RequestResponse;
        let publishers = seating.publishers(thread, plan.publishers);
        let subscribers = match both {
            true => publishers.clone(),
            false => seating.subscribers(thread, plan.subscribers),
        };
        let visitors = seating.others(thread, plan.visitors);
        let responds = both && !seating.others(thread, plan.responders).is_empty();
        let here = (publishers.len(), visitors.len());
        let (pace, visits) = paces(plan, &publishers, &visitors, Time::MAX, Time::MAX);
        Self {
            plan,
            layout,
            thread,
            seating,
            phase: Phase::SetUp,
            receiver: Receiver::new(plan, subscribers),
            pace,
            visits,
            ready: Queue::new(here.0),
            visitors_ready: Queue::new(here.1),
            todo: Vec::new(),
            connecting: 0,
            done: 0,
            stored: 0,
            last_arrival: Time::ZERO,
            connect_latency: histogram(),
            visit_latency: histogram(),
            visited: 0,
            unacked: vec![VecDeque::new(); if plan.is_bounded() { here.0 } else { 0 }],
            elsewhere: if crosses { vec![0; plan.publishers] } else { Vec::new() },
            elsewhere_changed: Queue::new(if crosses { plan.publishers } else { 0 }),
            slow_dismissed: 0,
            answers: match responds {
                true => (0..plan.publishers).map(|p| layout.answer_topic(p)).collect(),
                false => Vec::new(),
            },
            failure: None,
        }
    }

    /// The load begins.
    pub(super) fn start(&mut self, start: Time, from: Time, to: Time) {
        let publishers = self.seating.publishers(self.thread, self.plan.publishers);
        let visitors = self.seating.others(self.thread, self.plan.visitors);
        (self.pace, self.visits) = paces(self.plan, &publishers, &visitors, start, to);
        self.receiver.measured = from..to;
        self.last_arrival = start;
        self.ready.push_all();
        self.visitors_ready.push_all();
    }

    /// Keeps the first reason.
    pub(super) fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    #[inline]
    pub(super) fn on_event(
        &mut self,
        now: Time,
        peer: usize,
        (seat, life): (Seat, &mut Life),
        client: &mut Client,
        event: Event<'_>,
    ) {
        match event {
            Event::Message(publish) => self.on_message(now, (seat, life), client, &publish),
            Event::Acked { packet_id, reason, .. } => {
                if reason.is_error() {
                    self.fail(format!("{} was refused: {}", name(seat), reason.name()));
                }
                if matches!(seat.role, Role::Publisher | Role::Requester) {
                    self.on_acked(now, seat, packet_id);
                }
            }
            Event::Connected { session_present, .. } => {
                self.on_connected(now, peer, (seat, life), client, session_present);
            }
            Event::Subscribed { codes, .. } => {
                let wanted = match seat.role {
                    Role::Responder | Role::Visitor => self.plan.qos,
                    _ => self.plan.subscriber_qos,
                };
                let wanted = wanted as u8;
                match codes.iter().find(|code| **code != wanted) {
                    Some(code @ 0x80..) => {
                        let reason = ReasonCode(*code).name();
                        self.fail(format!("{}: SUBSCRIBE was refused: {reason}", name(seat)));
                    }
                    Some(code) => self.fail(format!(
                        "{}: the broker granted QoS {code}, and not {wanted}",
                        name(seat)
                    )),
                    None => {}
                }
                life.awaiting = life.awaiting.saturating_sub(1);
                if life.awaiting == 0 {
                    self.on_subscribed(now, peer, seat, life);
                }
            }
            Event::Pong => self.on_pong(now, (seat, life)),
            Event::Disconnected(ending) if !life.leaving && self.phase != Phase::Goodbye => {
                if seat.role == Role::Subscriber && seat.number as usize >= self.layout.heard() {
                    self.slow_dismissed += 1;
                } else {
                    self.fail(format!("{}: {ending}", name(seat)));
                }
            }
            _ => {}
        }
    }

    fn on_message(
        &mut self,
        now: Time,
        (seat, life): (Seat, &mut Life),
        client: &mut Client,
        publish: &Publish<'_>,
    ) {
        if seat.role == Role::Responder {
            return self.answer(now, client, publish.payload);
        }
        self.on_payload(now, seat, life, publish.payload);
    }

    /// A message has come to a subscriber.
    #[inline]
    pub(super) fn on_payload(&mut self, now: Time, seat: Seat, life: &Life, payload: &[u8]) {
        // What is taken out of the broker again is told to live subscriptions, too.
        if matches!(seat.role, Role::Publisher | Role::Visitor) || self.phase == Phase::CleanUp {
            return;
        }
        self.last_arrival = now;
        let local = seat.local as usize;
        let Some(publisher) = self.receiver.on_message(local, payload, now, life.since) else {
            return;
        };
        let publisher = publisher as usize;
        let (thread, place) = self.seating.publisher(publisher);
        if thread == self.thread {
            self.pace.complete(place, 1);
            self.ready.push(place);
        } else if let Some(count) = self.elsewhere.get_mut(publisher) {
            *count += 1;
            self.elsewhere_changed.push(publisher);
        }
    }

    /// A responder sends the payload back to whom it is from.
    fn answer(&mut self, now: Time, client: &mut Client, payload: &[u8]) {
        let requester = Header::read(payload).map(|header| header.publisher as usize);
        let Some(topic) = requester.and_then(|requester| self.answers.get(requester)) else {
            return self.fail("a request without its accounting".into());
        };
        match client.publish(now, &Message::new(topic, payload, self.plan.qos)) {
            Ok(_) => {}
            Err(error) => self.fail(format!("an answer: {error}")),
        }
    }

    fn on_acked(&mut self, now: Time, seat: Seat, packet_id: PacketId) {
        let local = seat.local as usize;
        self.ready.push(local);
        let Some(unacked) = self.unacked.get_mut(local) else { return };
        if let Some(at) = unacked.iter().position(|(id, _)| *id == packet_id) {
            let (_, intended) = unacked.remove(at).expect("invariant: found above");
            self.visit_latency.saturating_record(nanos_between(intended, now));
            self.stored += 1;
            self.last_arrival = now;
        }
    }

    /// A message was published that the broker is to store.
    pub(super) fn on_stored(&mut self, publisher: usize, id: Option<PacketId>, intended: Time) {
        if let (Some(unacked), Some(id)) = (self.unacked.get_mut(publisher), id) {
            unacked.push_back((id, intended));
        }
    }

    fn on_connected(
        &mut self,
        now: Time,
        peer: usize,
        (seat, life): (Seat, &mut Life),
        client: &mut Client,
        session_present: bool,
    ) {
        self.connecting = self.connecting.saturating_sub(1);
        if self.phase == Phase::SetUp {
            self.connect_latency.saturating_record(nanos_between(life.intended, now));
        }
        let filters = match (seat.role, self.plan.workload) {
            (Role::Subscriber, _) if self.phase == Phase::CleanUp => {
                life.after = After::Absent;
                return self.todo.push((peer as u32, Todo::Leave));
            }
            (Role::Subscriber, Workload::Retained) => Vec::new(),
            (Role::Subscriber, Workload::Offline) if self.phase == Phase::Replay => {
                if !session_present {
                    self.fail(format!("{}: the broker has lost its session", name(seat)));
                }
                Vec::new()
            }
            (Role::Subscriber | Role::Requester, _) => self.layout.filters(seat.number as usize),
            (Role::Responder, _) => {
                self.layout.request_filters(seat.number as usize, self.plan.responders)
            }
            (Role::Visitor, _) if self.plan.visit() == Visit::Session => {
                vec![self.layout.visitor_filter(seat.number as usize)]
            }
            (Role::Visitor, _) if life.busy => return self.end_visit(now, (seat, life)),
            (Role::Publisher | Role::Visitor, _) => Vec::new(),
        };
        if filters.is_empty() {
            return self.on_up(life);
        }
        self.subscribe(now, (seat, life), client, &filters);
    }

    /// Subscribes to all of `filters`.
    pub(super) fn subscribe(
        &mut self,
        now: Time,
        (seat, life): (Seat, &mut Life),
        client: &mut Client,
        filters: &[String],
    ) {
        let (qos, retain_handling) = match (seat.role, self.plan.workload) {
            (Role::Responder | Role::Visitor, _) => (self.plan.qos, RetainHandling::DoNotSend),
            (_, Workload::Retained) => (self.plan.subscriber_qos, RetainHandling::Send),
            _ => (self.plan.subscriber_qos, RetainHandling::DoNotSend),
        };
        let options = SubscriptionOptions { retain_handling, ..SubscriptionOptions::new(qos) };
        for filters in filters.chunks(FILTERS_PER_SUBSCRIBE) {
            let filters: Vec<_> =
                filters.iter().map(|filter| SubscribeFilter { filter, options }).collect();
            match client.subscribe(now, &filters, None, UserProperties::default()) {
                Ok(_) => life.awaiting += 1,
                Err(error) => return self.fail(format!("{}: {error}", name(seat))),
            }
        }
    }

    fn on_subscribed(&mut self, now: Time, peer: usize, seat: Seat, life: &mut Life) {
        match (seat.role, self.phase) {
            (Role::Subscriber, Phase::SetUp) if self.plan.workload == Workload::Offline => {
                life.after = After::Absent;
                self.todo.push((peer as u32, Todo::Leave));
            }
            (Role::Visitor, _) => {
                self.end_visit(now, (seat, life));
                life.after = After::NextVisit;
                self.todo.push((peer as u32, Todo::Leave));
            }
            _ => self.on_up(life),
        }
    }

    fn on_up(&mut self, life: &mut Life) {
        if !std::mem::replace(&mut life.up, true) {
            self.done += 1;
        }
    }

    fn on_pong(&mut self, now: Time, (seat, life): (Seat, &mut Life)) {
        match seat.role {
            Role::Visitor if life.busy => self.end_visit(now, (seat, life)),
            Role::Publisher if life.barrier == Barrier::Asked => {
                life.barrier = Barrier::Passed;
                if self.phase == Phase::CleanUp {
                    self.done += 1;
                } else {
                    self.stored += u64::from(self.pace.begun(seat.local as usize));
                    self.last_arrival = now;
                }
            }
            _ => {}
        }
    }

    /// A visit has come to its end.
    fn end_visit(&mut self, now: Time, (seat, life): (Seat, &mut Life)) {
        let local = seat.local as usize;
        self.last_arrival = now;
        self.visited += u64::from(self.receiver.measured.contains(&now));
        if self.receiver.measured.contains(&life.intended) {
            self.visit_latency.saturating_record(nanos_between(life.intended, now));
        }
        self.visits.complete(local, 1);
        // A session still has to go before its visitor comes again.
        if self.plan.visit() != Visit::Session {
            life.busy = false;
            self.visitors_ready.push(local);
        }
    }
}

/// The paces of messages and of visits, for these publishers and visitors.
fn paces(
    plan: &Plan,
    publishers: &[u32],
    visitors: &[u32],
    start: Time,
    end: Time,
) -> (Pace, Pace) {
    let seed = plan.settings.seed.unwrap_or(1);
    let messages = Setup {
        load: plan.load,
        actors: plan.publishers,
        numbers: publishers.to_vec(),
        // What is only stored comes to nobody for now.
        receivers: if plan.is_bounded() { 0 } else { plan.layout().receivers() },
        limit: plan.messages_each,
        seed,
    };
    let stays = plan.visit() == Visit::Stay;
    let visits = Setup {
        load: if stays { Load::Closed { window: 1 } } else { plan.visits },
        actors: plan.visitors,
        numbers: visitors.to_vec(),
        receivers: 1,
        limit: if stays { 0 } else { u32::MAX - 1 },
        seed: seed ^ 1,
    };
    (Pace::new(messages, start, end), Pace::new(visits, start, end))
}

/// What a client is called in a message.
pub(super) fn name(seat: Seat) -> String {
    let role = match seat.role {
        Role::Publisher => "publisher",
        Role::Subscriber => "subscriber",
        Role::Requester => "requester",
        Role::Responder => "responder",
        Role::Visitor => "client",
    };
    format!("{role} {}", seat.number)
}

/// Whether the client could publish `qos` now.
pub(super) fn may_publish(client: &Client, qos: QoS) -> bool {
    match qos {
        QoS::AtMostOnce => client.is_connected(),
        _ => client.may_publish(),
    }
}
