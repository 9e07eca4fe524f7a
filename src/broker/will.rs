//! Wills: published when a connection ends badly, at once or after a delay.
//!
//! A Will belongs to its session from CONNECT on. When it is due it moves into one queue, from
//! which a bounded number per tick is published, and none while a lane that it needs is full
//! (SHARDS.md L5): a thousand lost connections do not send a thousand Wills in one tick.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;

use crate::clock::Time;
use crate::codec::mqtt::{self, QoS};
use crate::limits::{DEFERRED_PER_TICK, WILLS_DUE_MAX};

use super::change::Record;
use super::durable::DurableWill;
use super::message::{Charge, Messages, Payload};
use super::publication::{Memo, Publication};
use super::publish::is_reserved;
use super::session::SessionKey;
use super::timers::TimerKey;
use super::{Broker, Wait, matches, route};

/// A message left with us.
#[derive(Debug)]
pub(crate) struct Will {
    pub(crate) topic: Box<str>,
    pub(crate) payload: Bytes,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) delay_secs: u32,
    pub(crate) expiry_secs: Option<u32>,
    pub(crate) forwarded: Box<[u8]>,
    /// While its delay runs.
    pub(crate) timer: Option<TimerKey>,
    _charge: Charge,
}

impl Will {
    pub(crate) fn new(will: &mqtt::Will<'_>, messages: &Messages) -> Self {
        let mut forwarded = Vec::new();
        will.properties.append_forwarded(&mut forwarded);
        let bytes = will.topic.len() + will.payload.len() + forwarded.len();
        Self {
            topic: will.topic.into(),
            payload: Bytes::copy_from_slice(will.payload),
            qos: will.qos,
            retain: will.retain,
            delay_secs: will.delay_interval,
            expiry_secs: will.properties.message_expiry_interval,
            forwarded: forwarded.into(),
            timer: None,
            _charge: messages.charge(bytes),
        }
    }

    /// As the journal gave it back.
    pub(crate) fn restore(will: DurableWill, messages: &Messages) -> Self {
        let bytes = will.topic.len() + will.payload.len() + will.forwarded.len();
        Self {
            topic: will.topic,
            payload: will.payload,
            qos: will.qos,
            retain: will.retain,
            delay_secs: will.delay_secs,
            expiry_secs: will.expiry_secs,
            forwarded: will.forwarded,
            timer: None,
            _charge: messages.charge(bytes),
        }
    }

    /// As it is recorded.
    pub(crate) fn to_record(&self, client_id: Rc<str>) -> Record {
        Record::WillSet {
            client_id,
            topic: self.topic.clone(),
            forwarded: self.forwarded.clone(),
            payload: self.payload.clone(),
            qos: self.qos,
            retain: self.retain,
            delay_secs: self.delay_secs,
            expiry_secs: self.expiry_secs,
        }
    }
}

#[derive(Debug)]
struct Due {
    client_id: Rc<str>,
    session: SessionKey,
    will: Box<Will>,
    /// The journal knows of it.
    is_recorded: bool,
}

/// Wills that are due.
#[derive(Debug, Default)]
pub(crate) struct Wills {
    due: VecDeque<Due>,
    /// Published since the tick began.
    published: usize,
    /// The first waits for a lane.
    blocked: bool,
}

impl Wills {
    /// A tick begins: as many as it may publish may be published.
    pub(crate) fn start_tick(&mut self) {
        self.published = 0;
    }

    /// Whether some can be published in the next tick.
    pub(crate) fn is_ready(&self) -> bool {
        !self.due.is_empty() && !self.blocked
    }

    /// Whether whoever would bring a further one has to wait.
    pub(crate) fn is_full(&self) -> bool {
        self.due.len() >= WILLS_DUE_MAX
    }
}

impl Broker {
    /// The Will of a session is due.
    pub(super) fn publish_will(&mut self, now: Time, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(mut will) = session.will.take() else { return };
        if let Some(timer) = will.timer.take() {
            self.timers.cancel(timer);
        }
        let (client_id, is_recorded) = (session.client_id.clone(), session.is_recorded);
        self.wills.due.push_back(Due { client_id, session: key, will, is_recorded });
        self.run_due_wills(now);
    }

    /// Forgets the Will of a session, without publishing it.
    pub(super) fn delete_will(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(will) = session.will.take() else { return };
        if let Some(timer) = will.timer {
            self.timers.cancel(timer);
        }
        if session.is_recorded {
            let client_id = session.client_id.clone();
            self.changes.record(&mut self.out.changes, Record::WillDeleted { client_id });
        }
    }

    /// Publishes what is due, as far as this tick and the lanes allow.
    pub(crate) fn run_due_wills(&mut self, now: Time) {
        self.wills.blocked = false;
        let was_full = self.wills.is_full();
        while self.wills.published < DEFERRED_PER_TICK {
            let Some(due) = self.wills.due.pop_front() else { break };
            let will = &due.will;
            if route::may_publish(self, &will.topic, will.retain) == Err(Wait)
                || self.changes.is_full()
            {
                self.wills.due.push_front(due);
                self.wills.blocked = true;
                return;
            }
            self.wills.published += 1;
            self.publish_due(now, &due);
        }
        if was_full && !self.wills.is_full() {
            self.conns.resume_waiting(now, &mut self.out.resume);
        }
    }

    fn publish_due(&mut self, now: Time, due: &Due) {
        let Due { client_id, session, will, .. } = due;
        // A new Will of the same client has replaced it in the journal.
        let current = self.sessions.find(client_id).and_then(|key| self.sessions.get(key));
        let is_last = due.is_recorded && current.is_none_or(|session| session.will.is_none());
        if is_reserved(&will.topic) || !self.auth.may_publish(client_id, &will.topic) {
            self.stats.dropped_not_authorized += 1;
            if is_last {
                self.record_no_will(client_id);
            }
            return;
        }
        let mut publication = Publication {
            topic: &will.topic,
            payload: Payload { bytes: &will.payload, shared: Some(&will.payload) },
            qos: will.qos,
            retain: will.retain,
            // Counts from the publication (3.1.3.2.4).
            deadline: will.expiry_secs.map(|secs| now.plus_secs(secs)),
            forwarded: &will.forwarded,
            as_received: None,
            publisher: Some(*session),
            publisher_id: client_id,
            id: None,
            named: None,
            memo: Memo::default(),
        };
        let route = matches::find(self, &will.topic);
        // Published once, whatever happens from here on (SHARDS.md J9).
        if !self.record_will(&mut publication, &route, client_id, is_last) && is_last {
            self.record_no_will(client_id);
        }
        self.route(now, &publication, &route);
        matches::put_back(self, route);
        self.stats.wills_published += 1;
    }

    fn record_no_will(&mut self, client_id: &Rc<str>) {
        let client_id = client_id.clone();
        self.changes.record(&mut self.out.changes, Record::WillDeleted { client_id });
    }
}
