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

mod connect;
mod crash;
mod deliver;
mod settle;
mod will;

use std::collections::{BTreeMap, BTreeSet};

use super::network::now;
use super::terms::Terms;
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
    /// Its connection when it was last sent.
    pub link: usize,
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
    /// It was sent again.
    pub resent: bool,
    /// Copies that members of groups have got, in sessions that have ended too.
    pub shared_copies: u32,
    /// The broker's life when it was last sent.
    pub life: u32,
    /// And when it was sent first.
    pub first_life: u32,
    /// The broker's process has ended, and nothing had said that it keeps this.
    pub may_be_lost: bool,
    /// What must be true for it to be published, if it is a Will.
    pub will: Option<WillTerms>,
}

impl Message {
    /// One that is sent now, not retained, and no Will.
    pub fn new(client: usize, link: usize, topic: String, qos: QoS, len: usize) -> Self {
        Self {
            client,
            link,
            topic,
            qos,
            retain: false,
            len,
            expiry: None,
            sent: now(),
            acked: None,
            refused: false,
            transmissions: 1,
            resent: false,
            shared_copies: 0,
            life: 0,
            first_life: 0,
            may_be_lost: false,
            will: None,
        }
    }
}

/// One SUBSCRIBE to one filter.
#[derive(Clone, Debug)]
struct Asked {
    options: SubscriptionOptions,
    id: Option<u32>,
    /// On which connection.
    link: usize,
    /// The first message that was published after it.
    since: u64,
    /// SUBACK has come for it.
    answered: bool,
}

/// One life of a subscription.
#[derive(Debug)]
struct Subscription {
    filter: String,
    share: Option<String>,
    asked: Vec<Asked>,
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

    /// Whether its client had asked for it when it sent this message on the same connection: which
    /// is not read further while SUBSCRIBE waits for the other shards (SHARDS.md I5).
    fn is_before(&self, id: u64, message: &Message) -> bool {
        let is_before =
            |asked: &Asked| asked.link == message.link && asked.answered && asked.since <= id;
        self.share.is_none()
            && message.will.is_none()
            && !message.resent
            && self.asked.iter().any(is_before)
    }

    /// Whether it was ever asked for at QoS 0, and whether ever above that.
    fn levels(&self) -> (bool, bool) {
        let is_low = |asked: &Asked| asked.options.qos == QoS::AtMostOnce;
        (self.asked.iter().any(is_low), !self.asked.iter().all(is_low))
    }

    /// SUBSCRIBEs that may bring retained messages.
    fn replays(&self) -> u32 {
        let replays = |asked: &&Asked| asked.options.retain_handling != RetainHandling::DoNotSend;
        if self.share.is_some() { 0 } else { self.asked.iter().filter(replays).count() as u32 }
    }
}

/// How often one message has come to one session.
#[derive(Clone, Debug, Default)]
struct Seen {
    copies: u32,
    /// Of those, at QoS 2.
    exact: u32,
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

impl Session {
    /// Whether a message that this subscription gets at QoS 0 may come above that by the time it is
    /// delivered, because it was changed, or by another one. When it was recorded the journal may
    /// have owed it to nobody here: so what is left to the journal is dropped.
    fn may_raise_from_0(&self, subscription: &Subscription, topic: &str) -> bool {
        let is_plain = |other: &&Subscription| other.share.is_none() && other.wants(topic);
        let mut others = self.subscriptions.iter().filter(is_plain);
        let (is_low, is_high) = subscription.levels();
        is_low && (is_high || others.any(|other| other.levels().1))
    }
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
    /// And the most.
    most_expiry_secs: u32,
    /// The most before the last CONNECT.
    earlier_expiry_secs: u32,
    /// Connections whose CONNACK has not come, and which may get there yet, with what they asked for.
    unanswered: Vec<(usize, u32)>,
    link: Option<Current>,
    /// QoS 0 messages of the current connection of which it is not known that they were read.
    unread: Vec<u64>,
    /// When the last connection ended, at the earliest.
    gone_since: Option<Time>,
    /// There may be a session of ours at the broker: CONNACK has come in this life of the broker.
    established: bool,
    /// Its session ended with the broker's process, and so many CONNECTs were sent since: the first
    /// of them finds none.
    connects_since_end: Option<u32>,
}

impl Client {
    fn unanswered_expiry_secs(&self) -> u32 {
        self.unanswered.iter().map(|(_, secs)| *secs).max().unwrap_or(0)
    }
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
    /// When that was.
    settled_at: Time,
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
    terms: Terms,
    /// The broker was told to stop.
    is_stopping: bool,
    /// The disk has had some trouble since all was quiet.
    disk_failed: bool,
    /// Or ever.
    disk_ever_failed: bool,
    /// Per topic, what else than its value then may have been the last that the journal took when
    /// all was quiet last: publishers on different shards are not in one order.
    alternatives: BTreeMap<String, BTreeSet<u64>>,
    /// Connections whose CONNACK has come while they were their client's.
    connacked: BTreeSet<usize>,
    /// What the broker says that it has dropped in this life, when all was quiet last.
    drops_before: u64,
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
    pub fn new(clients: usize, record_changes: bool, terms: Terms) -> Self {
        Self {
            clients: (0..clients).map(|_| Client::default()).collect(),
            messages: BTreeMap::new(),
            next_message: 1,
            settled: 0,
            settled_at: Time::ZERO,
            baseline: BTreeMap::new(),
            shared_ends: 0,
            groups: BTreeMap::new(),
            cleared: BTreeSet::new(),
            life: 0,
            record_changes,
            terms,
            is_stopping: false,
            disk_failed: false,
            disk_ever_failed: false,
            alternatives: BTreeMap::new(),
            connacked: BTreeSet::new(),
            drops_before: 0,
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

    /// How many were.
    pub fn message_count(&self) -> u64 {
        self.next_message - 1
    }

    // ---- what clients do ----

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
        let (life, first_life) = (self.life, self.life);
        self.messages.insert(id, Message { life, first_life, ..message });
        id
    }

    /// It is sent again, on this connection.
    pub fn on_resent(&mut self, id: u64, link: Option<usize>) {
        if let Some(message) = self.messages.get_mut(&id) {
            message.link = link.unwrap_or(message.link);
            message.resent = true;
            // QoS 2 is exactly once, however often it is sent.
            message.transmissions += u32::from(message.qos == QoS::AtLeastOnce);
            message.life = self.life;
            message.may_be_lost = false;
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
        if is_error && !self.messages[&id].resent && self.has_come(id) {
            self.fail("refused-came", format!("message {id} is refused, and has come"));
        }
        if let Some(message) = self.messages.get_mut(&id) {
            message.refused |= is_error;
            if !is_error {
                message.acked.get_or_insert(now());
            }
        }
    }

    /// Whether anybody has it.
    fn has_come(&self, id: u64) -> bool {
        self.clients.iter().any(|client| client.session.seen.contains_key(&id))
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
        let since = self.next_message;
        let session = &mut self.clients[client].session;
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
                    link,
                    held: None,
                    ending: None,
                    ended: None,
                });
                session.subscriptions.last_mut().expect("invariant: just pushed")
            }
        };
        subscription.link = link;
        subscription.asked.push(Asked { options, id, link, since, answered: false });
    }

    /// SUBACK for one filter; whether it is granted.
    pub fn on_suback(&mut self, client: usize, whole: &str, code: u8, qos: QoS) -> bool {
        let is_granted = code == qos as u8;
        let link = self.clients[client].link.map(|current| current.link);
        for subscription in self.subscriptions_of(client, whole) {
            let mine = |asked: &Asked| Some(asked.link) == link && !asked.answered;
            let Some(at) = subscription.asked.iter().position(mine) else { continue };
            if !is_granted && subscription.held.is_none() {
                subscription.asked.remove(at);
                continue;
            }
            subscription.asked[at].answered = true;
            if subscription.ending.is_none() {
                subscription.held.get_or_insert(now());
            }
        }
        let subscriptions = &mut self.clients[client].session.subscriptions;
        subscriptions.retain(|subscription| !subscription.asked.is_empty());
        let others = subscriptions.iter().filter(|s| s.ended.is_none()).count();
        // MQTT 3.1 has no code for it. What is asked for again counts twice until it is answered.
        let again: usize = subscriptions.iter().map(|s| s.asked.len() - 1).sum();
        let is_full =
            [0x97, 0x80, 0].contains(&code) && others + again >= self.terms.subscriptions_max;
        let no_disk = self.disk_failed && [0x83, 0x80, 0].contains(&code);
        if !is_granted && !is_full && !no_disk {
            let text = format!("client {client}: {whole} answered with {code:#x}");
            self.fail("suback", text);
        }
        is_granted
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

    /// The broker was told to stop.
    pub fn on_stop(&mut self) {
        self.is_stopping = true;
    }

    /// Whether it was.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    /// What the broker allows.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// The broker has lost everything.
    pub fn on_restart(&mut self) {
        self.life += 1;
        self.is_stopping = false;
        self.drops_before = 0;
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
