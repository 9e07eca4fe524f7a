//! Connections and sessions: which there must be, and which must be gone.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::{Current, Oracle, Session, Subscription};
use crate::clock::Time;
use crate::codec::mqtt::ReasonCode;
use crate::sim::network::{Network, now};

/// What is late only because a shard did not run.
const SLACK: Duration = Duration::from_secs(8);

impl Oracle {
    /// CONNECT is sent; how long the session lasts, and how large a packet may be.
    pub fn on_connect(
        &mut self,
        client: usize,
        link: usize,
        clean: bool,
        (expiry_secs, max): (u32, u32),
    ) {
        self.on_gone(client, now());
        let state = &mut self.clients[client];
        state.link = Some(Current { link, asked: now(), began: None });
        state.unread.clear();
        state.connects_since_end = state.connects_since_end.map(|count| count + 1);
        if clean {
            self.begin_session(client);
        }
        let state = &mut self.clients[client];
        state.expiry_secs = expiry_secs;
        state.least_expiry_secs = state.least_expiry_secs.min(expiry_secs);
        state.earlier_expiry_secs = state.most_expiry_secs;
        state.most_expiry_secs = state.most_expiry_secs.max(expiry_secs);
        state.unanswered.push((link, expiry_secs));
        let session = &mut state.session;
        session.packet_max = Some(session.packet_max.map_or(max, |before| before.min(max)));
    }

    pub(super) fn begin_session(&mut self, client: usize) {
        let state = &mut self.clients[client];
        let is_member = |subscription: &Subscription| subscription.share.is_some();
        if state.session.subscriptions.iter().any(is_member) {
            self.shared_ends += 1;
        }
        state.session = Session::default();
        state.established = false;
    }

    /// CONNACK has come. `present` is none where the version cannot say.
    pub fn on_connack(
        &mut self,
        client: usize,
        clean: bool,
        present: Option<bool>,
        network: &Network,
    ) {
        if present == Some(true) && clean {
            self.fail("session-present", format!("client {client}: after Clean Start"));
        }
        if present == Some(false) && !clean && self.is_surely_there(client) {
            self.fail("session-lost", format!("client {client}: its session is gone"));
        }
        if present != Some(true) && !clean {
            self.begin_session_at_connack(client);
        }
        let state = &mut self.clients[client];
        state.established = true;
        state.connects_since_end = None;
        state.gone_since = None;
        state.least_expiry_secs = state.expiry_secs;
        let mine = state.link.map(|current| current.link);
        let is_open = |link: usize| network.links[link].server_closed.is_none();
        state.unanswered.retain(|(link, _)| Some(*link) != mine && is_open(*link));
        state.most_expiry_secs = state.unanswered_expiry_secs().max(state.expiry_secs);
        if let Some(current) = &mut state.link {
            current.began = Some(now());
            self.connacked.insert(current.link);
        }
    }

    /// CONNACK says that there is a session; 3.1 does not say.
    pub fn on_present(&mut self, client: usize, network: &Network) {
        if self.clients[client].connects_since_end == Some(1) {
            let text = format!("client {client}: a session that was to end with its connection");
            self.fail("session-resurrected", text);
        }
        if let Some(text) = self.has_expired(client, network) {
            self.fail("session-expired", text);
        }
    }

    /// CONNACK says no. `may_not`: its keep alive was too long, or its authentication took so.
    pub fn on_refused(&mut self, client: usize, clean: bool, may_not: bool, reason: ReasonCode) {
        if may_not && reason == ReasonCode::NOT_AUTHORIZED {
            return;
        }
        let is_full = matches!(reason, ReasonCode::QUOTA_EXCEEDED | ReasonCode::SERVER_UNAVAILABLE);
        let has_session = !clean && self.is_surely_there(client);
        let no_room = self.terms.few_sessions && !has_session;
        if !(is_full && (no_room || self.may_refuse())) {
            self.fail("refused", format!("client {client}: {}", reason.name()));
        }
    }

    /// Whether there is a session of this client's that it can continue.
    fn is_surely_there(&self, client: usize) -> bool {
        let state = &self.clients[client];
        let gone = state.gone_since.map(|since| now().since(since).as_secs());
        let expiry = u64::from(state.least_expiry_secs);
        let is_forever = state.least_expiry_secs == u32::MAX;
        let lasts = gone.is_none_or(|secs| is_forever || secs < expiry);
        state.established && expiry > 0 && lasts
    }

    /// Whether the session that is continued has to be gone: all earlier connections had been
    /// closed for longer than it may last when this CONNECT arrived, and the broker was there.
    fn has_expired(&self, client: usize, network: &Network) -> Option<String> {
        let state = &self.clients[client];
        let mine = state.link?.link;
        let earlier = network.links.iter().enumerate();
        let earlier = earlier.filter(|(link, l)| l.client == client && *link != mine);
        let mut closed = Time::ZERO;
        for (_, link) in earlier {
            closed = closed.max(link.server_closed?);
        }
        let arrived = network.links[mine].connect_arrived?;
        let ends = closed.plus_secs(state.earlier_expiry_secs) + SLACK;
        let is_forever = state.earlier_expiry_secs == u32::MAX;
        let is_late = arrived > ends && !self.disk_failed;
        (is_late && !is_forever && network.last_jump < closed).then(|| {
            format!(
                "client {client}: gone for {:?} of {} s, and still there",
                arrived.since(closed),
                state.earlier_expiry_secs
            )
        })
    }

    /// A session that the broker does not have any more begins with what this connection has asked
    /// for already.
    fn begin_session_at_connack(&mut self, client: usize) {
        let state = &mut self.clients[client];
        let link = state.link.map(|current| current.link);
        let max = state.session.packet_max;
        let mut subscriptions = std::mem::take(&mut state.session.subscriptions);
        if subscriptions.iter().any(|subscription| subscription.share.is_some()) {
            self.shared_ends += 1;
        }
        for subscription in &mut subscriptions {
            subscription.asked.retain(|asked| Some(asked.link) == link);
            subscription.held = None;
        }
        subscriptions.retain(|subscription| !subscription.asked.is_empty());
        self.begin_session(client);
        self.clients[client].session.packet_max = max;
        self.clients[client].session.subscriptions = subscriptions;
    }

    /// The client's connection is over for it, or may be for the broker.
    pub fn on_gone(&mut self, client: usize, since: Time) {
        let state = &mut self.clients[client];
        if state.link.take().is_some_and(|current| current.began.is_some()) {
            state.gone_since = Some(since);
            if state.expiry_secs == 0 {
                self.begin_session(client);
            }
        }
    }

    /// DISCONNECT changes how long the session lasts, if it arrives.
    pub fn on_expiry_changed(&mut self, client: usize, expiry_secs: u32) {
        let state = &mut self.clients[client];
        state.least_expiry_secs = state.least_expiry_secs.min(expiry_secs);
        state.most_expiry_secs = state.most_expiry_secs.max(expiry_secs);
    }

    /// It has: the broker has closed behind it, and for no reason of its own.
    pub fn on_expiry_known(&mut self, client: usize, expiry_secs: u32) {
        let state = &mut self.clients[client];
        state.most_expiry_secs = state.unanswered_expiry_secs().max(expiry_secs);
    }

    /// Whether what was sent on one connection of a client is before what was sent on another,
    /// later one. One that was given up before its CONNACK may come home behind the whole life of
    /// the later one: nothing is left then that says that it is older (SHARDS.md H3).
    pub(super) fn is_before(&self, first: usize, second: usize) -> bool {
        first == second || self.connacked.contains(&first)
    }
}
