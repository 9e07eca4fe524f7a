//! Retained messages on their way to a new subscription.
//!
//! A replay asks the owners of its topics, piece by piece, for as many as its client has room for
//! (SHARDS.md section 3, R4). What makes it exact whatever the timing: the owner answers when it
//! has processed all that this shard knew of when it asked (R1); a value is delivered only if it
//! lies within what was known when the subscription began, since what came later comes live (R2);
//! and not if a newer one of its topic came live since the question (R3).
//!
//! Owns the replays, the open questions, and *known*: per origin and owner, the highest number of
//! a retained publish that was seen here. With one shard an answer is immediate and all of this
//! is a look into the store.
//!
//! Invariants: an open question has exactly one answer; at most [`QUESTIONS_MAX`] are open to one
//! owner (L4); a replay is in `ready` or `blocked` only in that state (a stale mention is skipped);
//! `fresh` is empty while no question is open.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;

use foldhash::fast::FixedState;
use slab::Slab;

use crate::clock::Time;
use crate::codec::mqtt::QoS;
use crate::ids::ShardId;
use crate::limits::{
    QUESTIONS_MAX, REPLAY_FRESH_MAX, REPLAY_OUTBOX_BYTES_MAX, REPLAY_PIECE, REPLAY_PIECES_PER_TICK,
};

use super::entry::{Reader, Reply, Stamp};
use super::publication::{Publication, Terms};
use super::retained;
use super::session::SessionKey;
use super::subscription::plain_of;
use super::topic_tree::FilterId;
use super::{Broker, Place, deliver, route};

/// Room for so many replays is kept while there are none.
const KEPT_MAX: usize = 1024;

/// One replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplayId(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It may go on.
    Ready,
    /// Its client has no room; [`on_room`] says when.
    NoRoom,
    /// Too many questions are open to the owner that is next.
    Blocked,
    /// It waits for the answer to this question.
    Asked(u32),
}

#[derive(Debug)]
struct Replay {
    session: SessionKey,
    filter: FilterId,
    /// `known` as it was when the subscription began (R2).
    base: Rc<[u64]>,
    /// Owners that are still to be asked, this one first; counted down.
    owner: ShardId,
    owners_left: u8,
    /// Where the next piece starts, at this owner.
    start: Box<str>,
    state: State,
}

/// The replays of one session.
#[derive(Debug, Default)]
pub(crate) struct Running {
    by_filter: BTreeMap<FilterId, ReplayId>,
    /// Those of them in state `NoRoom`: at QoS 0, which need no window, and at 1 and 2.
    no_room: [BTreeSet<FilterId>; 2],
}

impl Running {
    pub(crate) fn ids(&self) -> impl Iterator<Item = ReplayId> {
        self.by_filter.values().copied()
    }

    /// One is over; with the last goes all of it.
    fn end(replays: &mut Option<Box<Self>>, filter: FilterId) -> Option<ReplayId> {
        let running = replays.as_mut()?;
        for waiting in &mut running.no_room {
            waiting.remove(&filter);
        }
        let id = running.by_filter.remove(&filter);
        replays.take_if(|running| running.by_filter.is_empty());
        id
    }
}

#[derive(Debug)]
struct Asked {
    owner: ShardId,
    /// None when the replay has ended since.
    replay: Option<ReplayId>,
    /// The answer cannot be judged: too much came live meanwhile. It is asked again.
    again: bool,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Replays {
    place: Place,
    replays: Slab<Replay>,
    ready: VecDeque<ReplayId>,
    /// Per owner.
    blocked: Vec<VecDeque<ReplayId>>,
    /// Mentions in `blocked`.
    blocked_len: usize,
    questions: Slab<Asked>,
    /// Per owner, how many questions are open.
    open: Vec<usize>,
    /// By origin, then owner.
    known: Vec<u64>,
    /// `known` as a base, until it changes.
    base: Option<Rc<[u64]>>,
    /// Per topic (its hash) and origin, the last number that came live since a question was open.
    fresh: HashMap<(u64, ShardId), u64, FixedState>,
}

impl Replays {
    pub(crate) fn new(place: Place, seed: u64) -> Self {
        Self {
            place,
            replays: Slab::new(),
            ready: VecDeque::new(),
            blocked: vec![VecDeque::new(); place.shards],
            blocked_len: 0,
            questions: Slab::new(),
            open: vec![0; place.shards],
            known: vec![0; place.shards * place.shards],
            base: None,
            fresh: HashMap::with_hasher(FixedState::with_seed(seed ^ 7)),
        }
    }

    /// How many questions to this owner are open.
    #[cfg(test)]
    pub(crate) fn open_to(&self, owner: ShardId) -> usize {
        self.open[owner.index()]
    }

    /// How many may go on.
    #[cfg(test)]
    pub(crate) fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// For how many there is room without more memory.
    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.replays.capacity().max(self.ready.capacity())
    }

    /// Whether no question is open.
    pub(crate) fn is_idle(&self) -> bool {
        self.questions.is_empty()
    }

    /// Whether [`run`] has something to do.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty() || self.owners_with_room().next().is_some()
    }

    /// Owners that could be asked more while replays stand in line for that. Mostly, whoever gets
    /// an answer lets the next one go on; but one that was let on may be over by then, or its
    /// client have no room.
    fn owners_with_room(&self) -> impl Iterator<Item = usize> {
        let owners = if self.blocked_len == 0 { 0 } else { self.blocked.len() };
        (0..owners)
            .filter(|owner| self.open[*owner] < QUESTIONS_MAX && !self.blocked[*owner].is_empty())
    }

    /// The replay that goes on next.
    fn take_ready(&mut self) -> Option<ReplayId> {
        if let Some(id) = self.ready.pop_front() {
            return Some(id);
        }
        let owner = self.owners_with_room().next()?;
        self.unblock(owner);
        self.ready.pop_front()
    }

    /// The first that stands in line for this owner may go on.
    fn unblock(&mut self, owner: usize) {
        while let Some(blocked) = self.blocked[owner].pop_front() {
            self.blocked_len -= 1;
            if self.get(blocked).is_some_and(|replay| replay.state == State::Blocked) {
                self.set_ready(blocked);
                break;
            }
        }
    }

    /// Retained publishes up to these were seen: `origin` gave these numbers, per owner.
    pub(crate) fn learn_row(&mut self, origin: ShardId, row: impl Iterator<Item = u64>) {
        for (owner, number) in row.enumerate() {
            self.learn(origin, ShardId::new(owner), number);
        }
    }

    fn learn(&mut self, origin: ShardId, owner: ShardId, number: u64) {
        let known = &mut self.known[origin.index() * self.place.shards + owner.index()];
        if number > *known {
            *known = number;
            self.base = None;
        }
    }

    /// A live copy of a retained publish is here; `matched` if a plain subscription has it.
    #[inline]
    pub(crate) fn on_live(&mut self, origin: ShardId, stamp: Stamp, hash: u64, matched: bool) {
        if self.place.shards == 1 {
            return;
        }
        self.learn(origin, stamp.owner, stamp.number);
        if !matched || self.questions.is_empty() {
            return;
        }
        if self.fresh.len() >= REPLAY_FRESH_MAX {
            self.fresh.clear();
            for (_, question) in &mut self.questions {
                question.again = true;
            }
        }
        self.fresh.insert((hash, origin), stamp.number);
    }

    /// Whether a newer value of the topic came live than the owner had processed (R3). What came
    /// before the question the owner has processed (R1), so only the last number matters.
    fn is_outdated(&self, hash: u64, marks: &[u64]) -> bool {
        !self.fresh.is_empty()
            && marks.iter().enumerate().any(|(origin, mark)| {
                self.fresh.get(&(hash, ShardId::new(origin))).is_some_and(|number| number > mark)
            })
    }

    fn is_within(&self, base: &[u64], origin: ShardId, owner: ShardId, number: u64) -> bool {
        number <= base[origin.index() * self.place.shards + owner.index()]
    }

    fn get(&self, id: ReplayId) -> Option<&Replay> {
        self.replays.get(id.0 as usize)
    }

    /// The replay is over, or nobody wants it any more.
    pub(crate) fn remove(&mut self, id: ReplayId) {
        if let Some(Replay { state: State::Asked(question), .. }) =
            self.replays.try_remove(id.0 as usize)
        {
            self.questions[question as usize].replay = None;
        }
    }

    fn set_ready(&mut self, id: ReplayId) {
        if let Some(replay) = self.replays.get_mut(id.0 as usize) {
            replay.state = State::Ready;
            self.ready.push_back(id);
        }
    }

    /// What many at once took is given back when the last is over.
    fn give_back(&mut self) {
        if self.replays.is_empty() && self.replays.capacity() > KEPT_MAX {
            self.replays = Slab::new();
        }
        if self.ready.is_empty() {
            self.ready.shrink_to(KEPT_MAX);
        }
    }

    /// A question has its answer: who asked, and whether the answer counts.
    fn close(&mut self, question: u32) -> (Option<ReplayId>, bool) {
        let Asked { owner, replay, again } = self.questions.remove(question as usize);
        self.open[owner.index()] -= 1;
        if let Some(replay) = replay.and_then(|id| self.replays.get_mut(id.0 as usize)) {
            replay.state = State::Ready;
        }
        self.unblock(owner.index());
        (replay, again)
    }
}

/// The subscription has begun: its retained messages follow. What an earlier replay of it has not
/// sent yet, this one does. Its first piece is sent `at_once`, or in its turn.
pub(crate) fn start(
    broker: &mut Broker,
    now: Time,
    session: SessionKey,
    filter: FilterId,
    at_once: bool,
) {
    cancel(broker, session, filter);
    let text = broker.topic_tree.filter(filter);
    let is_exact = !text.bytes().any(|byte| byte == b'+' || byte == b'#');
    let place = broker.place;
    let (mut owner, mut owners_left) = match is_exact {
        true => (place.key.owner_of(&text, place.shards), 1),
        false => (place.shard, place.shards as u8),
    };
    // Mostly nothing is retained for a filter. Of this shard that is seen at once: so who subscribes
    // to a million filters leaves no million replays to be run.
    if owner == place.shard && !broker.retained.may_match(&broker.messages, &text) {
        owner = next_owner(owner, place.shards);
        owners_left -= 1;
        if owners_left == 0 {
            return;
        }
    }
    let base = know_base(broker);
    let Broker { replays, sessions, .. } = broker;
    let Some(subscriber) = sessions.get_mut(session) else { return };
    let (start, state) = (Box::default(), State::Ready);
    let replay = Replay { session, filter, base, owner, owners_left, start, state };
    let id = ReplayId(replays.replays.insert(replay) as u32);
    subscriber.subscriptions.replays_mut().by_filter.insert(filter, id);
    match at_once {
        true => step(broker, now, id),
        false => replays.ready.push_back(id),
    }
}

/// Its subscription has ended, or begins anew.
pub(crate) fn cancel(broker: &mut Broker, session: SessionKey, filter: FilterId) {
    let Some(owner) = broker.sessions.get_mut(session) else { return };
    let ended = owner.subscriptions.change_replays(|replays| Running::end(replays, filter));
    if let Some(id) = ended.flatten() {
        broker.replays.remove(id);
        // It may have been the one that was to bring the next.
        on_room(broker, session);
    }
}

/// A session may have room again: one replay of a kind goes on in [`run`], and each that finds room
/// brings the next. So what an acknowledgement costs does not depend on how many wait.
pub(crate) fn on_room(broker: &mut Broker, session: SessionKey) {
    let Some(owner) = broker.sessions.get_mut(session) else { return };
    if owner.subscriptions.replays().is_none() {
        return;
    }
    let running = owner.subscriptions.replays_mut();
    for waiting in &mut running.no_room {
        if let Some(filter) = waiting.pop_first() {
            broker.replays.set_ready(running.by_filter[&filter]);
        }
    }
}

/// A replay waits until [`on_room`].
fn set_no_room(broker: &mut Broker, id: ReplayId, qos: QoS) {
    let replay = &mut broker.replays.replays[id.0 as usize];
    replay.state = State::NoRoom;
    if let Some(owner) = broker.sessions.get_mut(replay.session) {
        let kind = usize::from(qos > QoS::AtMostOnce);
        owner.subscriptions.replays_mut().no_room[kind].insert(replay.filter);
    }
}

/// Goes on with replays, a bounded number of pieces per call.
pub(crate) fn run(broker: &mut Broker, now: Time) {
    for _ in 0..REPLAY_PIECES_PER_TICK {
        let Some(id) = broker.replays.take_ready() else { break };
        if broker.replays.get(id).is_some_and(|replay| replay.state == State::Ready) {
            step(broker, now, id);
        }
    }
    broker.replays.give_back();
}

/// `known`, with what this shard has published itself, to be kept by a replay.
fn know_base(broker: &mut Broker) -> Rc<[u64]> {
    let Broker { replays, retained, place, .. } = broker;
    replays.learn_row(place.shard, retained.counters().iter().copied());
    replays.base.get_or_insert_with(|| replays.known.as_slice().into()).clone()
}

/// How many messages a session can take now. All of one piece fit into the outbox, so that none of
/// them comes into the queue, which may be too short for them.
fn room(broker: &Broker, session: SessionKey, qos: QoS) -> usize {
    let Some(owner) = broker.sessions.get(session) else { return 0 };
    let Some(conn) = owner.conn.and_then(|conn| broker.conns.get(conn)) else { return 0 };
    if conn.unsent() > REPLAY_OUTBOX_BYTES_MAX {
        return 0;
    }
    let window = usize::from(conn.window);
    match &owner.outgoing {
        _ if qos == QoS::AtMostOnce => REPLAY_PIECE,
        None => REPLAY_PIECE.min(window),
        Some(o) if !o.queue.is_empty() || !o.exchanges.is_resent() => 0,
        Some(o) => REPLAY_PIECE.min(window.saturating_sub(o.exchanges.used())),
    }
}

/// One piece: taken from our own store, or asked for. The replay is in state `Ready`.
fn step(broker: &mut Broker, now: Time, id: ReplayId) {
    let Some(&Replay { session, filter, owner, .. }) = broker.replays.get(id) else { return };
    let subscription = plain_of(broker, session, filter)
        .expect("invariant: a replay ends before its subscription does");
    let qos = subscription.options.qos;
    let room = room(broker, session, qos);
    let is_here = owner == broker.place.shard;
    // Shutting down: no more questions (section 7). It stays where it is.
    if room == 0 || !is_here && broker.ending.has_begun() {
        return set_no_room(broker, id, qos);
    }
    on_room(broker, session);
    let replay = &mut broker.replays.replays[id.0 as usize];
    if is_here {
        let (text, start) = (broker.topic_tree.filter(filter), std::mem::take(&mut replay.start));
        let (found, next) = retained::take_piece(broker, now, (&text, &start), room);
        for &index in &found {
            deliver_own(broker, now, id, index);
        }
        retained::recycle(broker, found);
        advance(broker, id, next.as_deref());
    } else if broker.replays.open[owner.index()] >= QUESTIONS_MAX {
        replay.state = State::Blocked;
        broker.replays.blocked[owner.index()].push_back(id);
        broker.replays.blocked_len += 1;
    } else {
        ask(broker, id, owner, room);
    }
}

fn ask(broker: &mut Broker, id: ReplayId, owner: ShardId, room: usize) {
    // With `known` as it is now; `base` stays as it was.
    know_base(broker);
    let Broker { replays, out, place, topic_tree, .. } = broker;
    let question = replays.questions.insert(Asked { owner, replay: Some(id), again: false }) as u32;
    replays.open[owner.index()] += 1;
    let replay = &mut replays.replays[id.0 as usize];
    replay.state = State::Asked(question);
    let column: Vec<u64> =
        (0..place.shards).map(|o| replays.known[o * place.shards + owner.index()]).collect();
    let text = topic_tree.filter(replay.filter);
    let range = (&*text, &*replay.start);
    out.batches[owner.index()].push_query((question, room as u32), range, &column);
}

/// A piece is through: on to the next one, the next owner, or the end.
fn advance(broker: &mut Broker, id: ReplayId, next: Option<&str>) {
    let shards = broker.place.shards;
    let Some(replay) = broker.replays.replays.get_mut(id.0 as usize) else { return };
    replay.start = next.unwrap_or_default().into();
    if next.is_none() {
        replay.owner = next_owner(replay.owner, shards);
        replay.owners_left -= 1;
    }
    if replay.owners_left > 0 {
        return broker.replays.set_ready(id);
    }
    let Replay { session, filter, .. } = *replay;
    broker.replays.remove(id);
    if let Some(owner) = broker.sessions.get_mut(session) {
        owner.subscriptions.change_replays(|replays| Running::end(replays, filter));
    }
}

fn next_owner(owner: ShardId, shards: usize) -> ShardId {
    ShardId::new((owner.index() + 1) % shards)
}

/// An answer, with its values in `entries`.
pub(crate) fn on_reply(
    broker: &mut Broker,
    now: Time,
    from: ShardId,
    reply: &Reply<'_>,
    entries: &mut Reader<'_>,
) {
    let (id, again) = broker.replays.close(reply.id);
    let marks: Vec<u64> = reply.marks.iter().collect();
    for _ in 0..reply.values {
        let value = entries.value();
        let Some(id) = id.filter(|_| !again) else { continue };
        let Some(replay) = broker.replays.get(id) else { continue };
        let message = &value.message;
        let hash = broker.interest.topic_hash(message.topic);
        if !broker.replays.is_within(&replay.base, value.origin, from, value.number)
            || broker.replays.is_outdated(hash, &marks)
        {
            continue;
        }
        let (session, filter) = (replay.session, replay.filter);
        let publication = message.to_publication();
        deliver_value(broker, now, session, filter, &publication);
    }
    if broker.replays.questions.is_empty() {
        broker.replays.fresh.clear();
    }
    match id {
        Some(id) if again => broker.replays.set_ready(id),
        Some(id) => advance(broker, id, Some(reply.next).filter(|next| !next.is_empty())),
        None => {}
    }
}

/// Delivers one value of our own store. R1 and R3 hold by themselves: the store is never behind
/// what was seen live here.
fn deliver_own(broker: &mut Broker, now: Time, id: ReplayId, index: u32) {
    let Broker { replays, retained, place, .. } = broker;
    let Some(replay) = replays.get(id) else { return };
    let value = retained.value(index);
    if replays.is_within(&replay.base, value.origin, place.shard, value.number) {
        let (session, filter, message) = (replay.session, replay.filter, value.message);
        route::with_stored(broker, message, |broker, publication| {
            deliver_value(broker, now, session, filter, publication);
        });
    }
}

/// RETAIN is 1 `[MQTT-3.3.1-8]`, the granted QoS holds, the identifier is that of this very
/// subscription, and No Local holds here too `[MQTT-3.8.3-3]`.
fn deliver_value(
    broker: &mut Broker,
    now: Time,
    session: SessionKey,
    filter: FilterId,
    publication: &Publication<'_>,
) {
    let Some(owner) = broker.sessions.get(session) else { return };
    let Some(subscription) = plain_of(broker, session, filter) else { return };
    if subscription.options.no_local && *owner.client_id == *publication.publisher_id {
        return;
    }
    let terms = Terms {
        qos: subscription.options.qos,
        retain: true,
        subscription_ids: subscription.ids(),
        group: None,
    };
    deliver::to_session(broker, now, session, publication, &terms);
}
