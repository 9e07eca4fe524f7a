//! What each client may receive, and must: a broker without shards, buffers or bytes.
//!
//! It sees what clients see (what they sent and got, and when), and of the broker only when it saw
//! a connection's end. So a rule is about intervals: a message that was published after SUBACK and
//! acknowledged has to arrive; one that was published after UNSUBACK must not; what overlaps may go
//! either way. `deliver.rs` judges each message that arrives, `settle.rs` what must have arrived
//! when all is quiet, `will.rs` Wills.
//!
//! A *session* here is one life of a broker's session: it begins with a CONNACK without Session
//! Present or with a Clean Start. A *message* is named by the number in its payload.
#![forbid(unsafe_code)]

mod deliver;
mod settle;
mod will;

use std::collections::{BTreeMap, BTreeSet};

use super::network::now;
use crate::clock::Time;
use crate::codec::mqtt::topic::{check_filter, matches};
use crate::codec::mqtt::{QoS, RetainHandling, SubscriptionOptions};

pub use deliver::{Arrival, number, payload};
pub use will::WillTerms;

/// A rule that the broker has broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its short name.
    pub rule: &'static str,
    /// What happened.
    pub text: String,
}

/// A message, from its first PUBLISH on.
#[derive(Debug)]
pub struct Message {
    /// The publisher.
    pub client: usize,
    /// Where to.
    pub topic: String,
    /// As published.
    pub qos: QoS,
    /// As published.
    pub retain: bool,
    /// Bytes of its payload; none clears the topic.
    pub len: usize,
    /// Seconds.
    pub expiry: Option<u32>,
    /// When its client first sent it; of a Will, when it could first be published.
    pub sent: Time,
    /// When it was answered well.
    pub acked: Option<Time>,
    /// It was answered with an error.
    pub refused: bool,
    /// How often it was sent.
    pub transmissions: u32,
    /// Copies that members of groups have got, in sessions that have ended too.
    pub shared_copies: u32,
    /// The broker's life when it was last sent.
    pub life: u32,
    /// What must be true for it to be published, if it is a Will.
    pub will: Option<WillTerms>,
}

/// One SUBSCRIBE to one filter.
#[derive(Clone, Debug)]
struct Asked {
    options: SubscriptionOptions,
    id: Option<u32>,
}

/// One life of a subscription.
#[derive(Debug)]
struct Subscription {
    filter: String,
    share: Option<String>,
    asked: Vec<Asked>,
    /// SUBSCRIBEs that may bring retained messages.
    replays: u32,
    /// The connection of the last SUBSCRIBE.
    link: usize,
    /// SUBACK of the first.
    held: Option<Time>,
    /// UNSUBSCRIBE was sent.
    ending: Option<Time>,
    /// UNSUBACK.
    ended: Option<Time>,
}

impl Subscription {
    fn wants(&self, topic: &str) -> bool {
        matches(&self.filter, topic)
    }
}

/// How often one message has come to one session.
#[derive(Clone, Debug, Default)]
struct Seen {
    copies: u32,
    /// Of those with a packet id, and on which connection each came last.
    ids: BTreeMap<u16, usize>,
}

/// Streams within which there is an order: publisher, topic, QoS as published and as delivered.
type Stream = (usize, String, u8, u8);

/// One life of a session.
#[derive(Debug, Default)]
struct Session {
    subscriptions: Vec<Subscription>,
    seen: BTreeMap<u64, Seen>,
    /// The newest message of each stream that has come live.
    newest: BTreeMap<Stream, u64>,
    /// The newest retained one, live or replayed.
    newest_retained: BTreeMap<Stream, u64>,
    /// Largest packet that the client has ever taken in this life, if it has said one.
    packet_max: Option<u32>,
}

/// A client's current connection.
#[derive(Clone, Copy, Debug)]
struct Current {
    link: usize,
    /// CONNECT was sent.
    asked: Time,
    /// CONNACK came.
    began: Option<Time>,
}

/// A client as the oracle knows it.
#[derive(Debug, Default)]
struct Client {
    session: Session,
    /// How long that outlives its connection.
    expiry_secs: u32,
    /// The same, of those connections whose CONNACK has not come too: the least.
    least_expiry_secs: u32,
    link: Option<Current>,
    /// QoS 0 messages of the current connection of which it is not known that they were read.
    unread: Vec<u64>,
    /// When the last connection ended, at the earliest.
    gone_since: Option<Time>,
    /// There may be a session of ours at the broker: CONNACK has come in this life of the broker.
    established: bool,
}

/// The oracle. See the [module](self).
#[derive(Debug)]
pub struct Oracle {
    clients: Vec<Client>,
    /// By number.
    messages: BTreeMap<u64, Message>,
    next_message: u64,
    /// Messages before this one were settled.
    settled: u64,
    /// What each topic held when all was quiet last.
    baseline: BTreeMap<String, u64>,
    /// Ends of sessions with a shared subscription, since all was quiet.
    shared_ends: u32,
    /// Groups that were ever asked for, and their filters.
    groups: BTreeMap<String, String>,
    /// Topics that were cleared, ever.
    cleared: BTreeSet<String>,
    /// How often the broker was started.
    life: u32,
    record_changes: bool,
    violation: Option<Violation>,
    /// Wills that came although their client had said DISCONNECT.
    suspects: Vec<u64>,
    /// Who audits what is retained, and what it was given.
    audit: Option<(usize, BTreeMap<String, u64>)>,
    /// Messages that must have arrived, and had.
    pub proven: u64,
}

impl Oracle {
    /// One that has seen nothing yet.
    pub fn new(clients: usize, record_changes: bool) -> Self {
        Self {
            clients: (0..clients).map(|_| Client::default()).collect(),
            messages: BTreeMap::new(),
            next_message: 1,
            settled: 0,
            baseline: BTreeMap::new(),
            shared_ends: 0,
            groups: BTreeMap::new(),
            cleared: BTreeSet::new(),
            life: 0,
            record_changes,
            violation: None,
            suspects: Vec::new(),
            audit: None,
            proven: 0,
        }
    }

    /// Notes the first rule that was broken.
    pub fn fail(&mut self, rule: &'static str, text: String) {
        self.violation.get_or_insert(Violation { rule, text });
    }

    /// The rule that was broken, if one was.
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// A message that has been published.
    pub fn message(&self, id: u64) -> &Message {
        &self.messages[&id]
    }

    // ---- what clients do ----

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
        if clean {
            self.begin_session(client);
        }
        let state = &mut self.clients[client];
        state.expiry_secs = expiry_secs;
        state.least_expiry_secs = state.least_expiry_secs.min(expiry_secs);
        let session = &mut state.session;
        session.packet_max = Some(session.packet_max.map_or(max, |before| before.min(max)));
    }

    fn begin_session(&mut self, client: usize) {
        let state = &mut self.clients[client];
        let is_member = |subscription: &Subscription| subscription.share.is_some();
        if state.session.subscriptions.iter().any(is_member) {
            self.shared_ends += 1;
        }
        state.session = Session::default();
        state.established = false;
    }

    /// CONNACK has come. `present` is none where the version cannot say.
    pub fn on_connack(&mut self, client: usize, clean: bool, present: Option<bool>) {
        let state = &self.clients[client];
        let gone = state.gone_since.map(|since| now().since(since).as_secs());
        let expiry = u64::from(state.least_expiry_secs);
        let (established, forever) = (state.established, state.least_expiry_secs == u32::MAX);
        if present == Some(true) && clean {
            self.fail("session-present", format!("client {client}: after Clean Start"));
        }
        let surely_there = established && gone.is_none_or(|secs| forever || secs < expiry);
        if present == Some(false) && !clean && surely_there && expiry > 0 {
            let text = format!("client {client}: gone for {gone:?} s of {expiry} s");
            self.fail("session-lost", text);
        }
        if present != Some(true) && !clean {
            let max = self.clients[client].session.packet_max;
            self.begin_session(client);
            self.clients[client].session.packet_max = max;
        }
        let state = &mut self.clients[client];
        state.established = true;
        state.gone_since = None;
        state.least_expiry_secs = state.expiry_secs;
        if let Some(current) = &mut state.link {
            current.began = Some(now());
        }
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

    /// DISCONNECT changes how long the session lasts.
    pub fn on_expiry_changed(&mut self, client: usize, expiry_secs: u32) {
        self.clients[client].expiry_secs = expiry_secs;
    }

    /// A new message; its number.
    pub fn on_new_message(&mut self, message: Message) -> u64 {
        let id = self.next_message;
        self.next_message += 1;
        if message.retain && message.len == 0 {
            self.cleared.insert(message.topic.clone());
        }
        if message.qos == QoS::AtMostOnce && message.will.is_none() {
            self.clients[message.client].unread.push(id);
        }
        self.messages.insert(id, Message { life: self.life, ..message });
        id
    }

    /// It is sent again.
    pub fn on_resent(&mut self, id: u64) {
        if let Some(message) = self.messages.get_mut(&id) {
            // QoS 2 is exactly once, however often it is sent.
            message.transmissions += u32::from(message.qos == QoS::AtLeastOnce);
            message.life = self.life;
        }
    }

    /// PUBACK or PUBREC.
    pub fn on_acked(&mut self, id: u64, is_error: bool) {
        // What was sent before it on this connection was read before it.
        let Some(client) = self.messages.get(&id).map(|message| message.client) else { return };
        let unread = std::mem::take(&mut self.clients[client].unread);
        let (before, behind) = unread.into_iter().partition(|other| *other < id);
        self.clients[client].unread = behind;
        let before: Vec<u64> = before;
        for other in before {
            if let Some(message) = self.messages.get_mut(&other) {
                message.acked = Some(now());
            }
        }
        if let Some(message) = self.messages.get_mut(&id) {
            message.refused |= is_error;
            if !is_error {
                message.acked.get_or_insert(now());
            }
        }
    }

    /// SUBSCRIBE to one filter.
    pub fn on_subscribe(
        &mut self,
        client: usize,
        link: usize,
        whole: &str,
        options: SubscriptionOptions,
        id: Option<u32>,
    ) {
        let Ok(filter) = check_filter(whole) else { return };
        let share = filter.share_name.map(|_| whole.to_owned());
        if let Some(share) = &share {
            self.groups.insert(share.clone(), filter.filter.to_owned());
        }
        let session = &mut self.clients[client].session;
        let replays = share.is_none() && options.retain_handling != RetainHandling::DoNotSend;
        let same = |s: &&mut Subscription| {
            s.filter == filter.filter && s.share == share && s.ending.is_none()
        };
        let subscription = match session.subscriptions.iter_mut().find(same) {
            Some(subscription) => subscription,
            None => {
                session.subscriptions.push(Subscription {
                    filter: filter.filter.to_owned(),
                    share,
                    asked: Vec::new(),
                    replays: 0,
                    link,
                    held: None,
                    ending: None,
                    ended: None,
                });
                session.subscriptions.last_mut().expect("invariant: just pushed")
            }
        };
        subscription.replays += u32::from(replays);
        subscription.link = link;
        subscription.asked.push(Asked { options, id });
    }

    /// SUBACK for one filter.
    pub fn on_suback(&mut self, client: usize, whole: &str, code: u8, asked: QoS) {
        if code != asked as u8 {
            let text = format!("client {client}: {whole} answered with {code:#x}");
            return self.fail("suback", text);
        }
        for subscription in self.subscriptions_of(client, whole) {
            if subscription.ending.is_none() {
                subscription.held.get_or_insert(now());
            }
        }
    }

    /// UNSUBSCRIBE of one filter.
    pub fn on_unsubscribe(&mut self, client: usize, whole: &str) {
        for subscription in self.subscriptions_of(client, whole) {
            subscription.ending.get_or_insert(now());
        }
    }

    /// UNSUBACK for it.
    pub fn on_unsuback(&mut self, client: usize, whole: &str) {
        for subscription in self.subscriptions_of(client, whole) {
            if subscription.ending.is_some() {
                subscription.ended.get_or_insert(now());
            }
        }
    }

    fn subscriptions_of<'a>(
        &'a mut self,
        client: usize,
        whole: &'a str,
    ) -> impl Iterator<Item = &'a mut Subscription> {
        self.clients[client].session.subscriptions.iter_mut().filter(move |s| match &s.share {
            Some(share) => share == whole,
            None => s.filter == whole,
        })
    }

    /// What this client is given from now on, with RETAIN, is what is retained.
    pub fn begin_audit(&mut self, client: usize) {
        self.audit = Some((client, BTreeMap::new()));
    }

    /// Topics and their values.
    pub fn end_audit(&mut self) -> BTreeMap<String, u64> {
        self.audit.take().map(|(_, values)| values).unwrap_or_default()
    }

    /// The broker has lost everything.
    pub fn on_restart(&mut self) {
        self.life += 1;
        self.baseline.clear();
        for client in 0..self.clients.len() {
            self.clients[client].link = None;
            self.clients[client].gone_since = None;
            self.begin_session(client);
        }
    }

    /// Which life of the broker this is.
    pub fn life(&self) -> u32 {
        self.life
    }
}
