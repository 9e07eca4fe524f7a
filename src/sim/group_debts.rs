//! A model of what the journal owes to a shared subscription's group (SHARDS.md S1 to S4, J7, J9): its
//! rules, and each alone left out.
//!
//! Three shards, FIFO lanes between them and to the journal, which takes from them in any order. All
//! members last. They join, which the other shards hear of before SUBACK, and leave, which they hear of
//! some time; with a session that ends go its messages, to another member if one is known. Somebody else
//! has each message recorded, so each has a PUB.
//!
//! - *named*: a PUB names the group if its origin knows of members, and is not owed to it else. The log
//!   may have the next member before the end of the last one, and the group goes on there, while its
//!   origin knew of nobody: without the rule it is owed what nobody has.
//! - *said*: who drops a message because nobody is known to be in the group says that this is done with
//!   it.
//! - *kept name*: so does whoever had it, by the name that the message keeps: the group may be gone.
//! - *at commit*: QoS 2 leaves behind its PUB. That has named the group; if nobody is known by then, it
//!   is done with it.
//!
//! Nobody who has its SUBACK loses what was published behind that, while it stays; and when all is
//! quiet, the journal owes nothing.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::random::Random;

const SHARDS: usize = 3;
const MEMBERS: usize = 2;
const STEPS: u32 = 300;
const MESSAGES: u32 = 8;
/// Runs with all rules.
const RUNS: u64 = 3_000;

/// Those that hold.
#[derive(Clone, Copy, Debug)]
struct Rules {
    named: bool,
    said: bool,
    kept_name: bool,
    at_commit: bool,
}

const ALL: Rules = Rules { named: true, said: true, kept_name: true, at_commit: true };

#[derive(Clone, Copy, Debug)]
struct Message {
    name: u32,
    /// Its PUB names the group.
    is_owed: bool,
    is_qos2: bool,
}

#[derive(Clone, Copy, Debug)]
enum Said {
    /// So many members are there; the sender of a new one waits until that is applied.
    Count(usize, Option<usize>),
    Applied(usize),
    Message(Message),
    Back(Message),
    Committed(Message),
}

#[derive(Clone, Copy, Debug)]
enum Record {
    Sub(usize, u32),
    End(usize),
    Pub(Message),
    GroupAck(u32),
}

/// What the journal makes of the records.
#[derive(Debug, Default)]
struct Fold {
    members: BTreeSet<usize>,
    owed: BTreeSet<u32>,
    taken: BTreeSet<u32>,
    early: BTreeSet<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Out,
    /// A member; so many shards have not heard of it.
    Joining(usize),
    /// Its SUB is said.
    Said,
    /// It has its SUBACK.
    In,
}

struct World {
    random: Random,
    rules: Rules,
    /// How eager each lane is, the last to the journal: so many times in a thousand.
    eager: [[u32; SHARDS + 1]; SHARDS],
    home: [usize; MEMBERS],
    state: [Is; MEMBERS],
    /// How often each has joined.
    times: [u32; MEMBERS],
    /// What each has been given.
    held: [Vec<Message>; MEMBERS],
    /// What clients still have that have left the group and stay connected, by shard.
    left_with: Vec<(usize, Message)>,
    /// What each shard knows of each.
    counts: [[usize; SHARDS]; SHARDS],
    lanes: [[VecDeque<Said>; SHARDS]; SHARDS],
    records: [VecDeque<Record>; SHARDS],
    fold: Fold,
    published: u32,
    /// By message, who had its SUBACK when it was published, and of which time.
    due: BTreeMap<u32, BTreeSet<(usize, u32)>>,
    /// Messages that somebody has acknowledged, or that ended with who had been sent them.
    done: BTreeSet<u32>,
    lost: bool,
}

impl World {
    fn new(seed: u64, rules: Rules) -> Self {
        let mut random = Random::new(seed, 0);
        let mut speed = || random.pick(&[50, 300, 1000]);
        let eager = std::array::from_fn(|_| std::array::from_fn(|_| speed()));
        Self {
            eager,
            home: std::array::from_fn(|_| random.index(SHARDS)),
            random,
            rules,
            state: [Is::Out; MEMBERS],
            times: [0; MEMBERS],
            held: Default::default(),
            left_with: Vec::new(),
            counts: Default::default(),
            lanes: Default::default(),
            records: Default::default(),
            fold: Fold::default(),
            published: 0,
            due: BTreeMap::new(),
            done: BTreeSet::new(),
            lost: false,
        }
    }

    /// A member has come or gone: its shard counts, and tells the others.
    fn announce(&mut self, me: usize, new: Option<usize>) {
        let here = (0..MEMBERS).filter(|m| self.home[*m] == me && self.state[*m] != Is::Out);
        let count = here.count();
        self.counts[me][me] = count;
        for other in (0..SHARDS).filter(|other| *other != me) {
            self.lanes[me][other].push_back(Said::Count(count, new));
        }
    }

    fn join(&mut self, member: usize) {
        self.state[member] = Is::Joining(SHARDS - 1);
        self.times[member] += 1;
        self.announce(self.home[member], Some(member));
    }

    fn leave(&mut self, member: usize) {
        let me = self.home[member];
        if matches!(self.state[member], Is::Said | Is::In) {
            self.records[me].push_back(Record::End(member));
        }
        self.state[member] = Is::Out;
        self.announce(me, None);
        let held = std::mem::take(&mut self.held[member]);
        if self.random.chance(500) {
            self.left_with.extend(held.into_iter().map(|message| (me, message)));
            return;
        }
        for message in held {
            if message.is_qos2 && self.random.chance(500) {
                // It was sent, and goes to nobody else [MQTT-4.8.2-5].
                self.finish(me, message);
            } else {
                self.route(me, message);
            }
        }
    }

    /// Whoever had it is done with it.
    fn finish(&mut self, me: usize, message: Message) {
        self.done.insert(message.name);
        let is_known = self.counts[me].iter().any(|count| *count > 0);
        if message.is_owed && (self.rules.kept_name || is_known) {
            self.records[me].push_back(Record::GroupAck(message.name));
        }
    }

    /// Picks a shard by what is known; without any the message is dropped.
    fn route(&mut self, me: usize, message: Message) {
        let known: Vec<usize> = (0..SHARDS).filter(|s| self.counts[me][*s] > 0).collect();
        if known.is_empty() {
            self.lost |= self.is_due(message.name);
            if message.is_owed && self.rules.said {
                self.records[me].push_back(Record::GroupAck(message.name));
            }
            return;
        }
        let chosen = self.random.pick(&known);
        self.lanes[me][chosen].push_back(Said::Message(message));
    }

    fn publish(&mut self) {
        self.published += 1;
        let (me, name) = (self.random.index(SHARDS), self.published);
        let is_owed = self.counts[me].iter().any(|count| *count > 0);
        let message = Message { name, is_owed, is_qos2: self.random.chance(500) };
        let subscribed = (0..MEMBERS).filter(|m| self.state[*m] == Is::In);
        self.due.insert(name, subscribed.map(|m| (m, self.times[m])).collect());
        self.records[me].push_back(Record::Pub(message));
        if !message.is_qos2 && is_owed {
            self.route(me, message);
        }
    }

    fn on_lane(&mut self, from: usize, me: usize, said: Said) {
        match said {
            Said::Count(count, new) => {
                self.counts[me][from] = count;
                self.lanes[me][from].extend(new.map(Said::Applied));
            }
            Said::Applied(member) => {
                if let Is::Joining(left) = &mut self.state[member] {
                    *left -= 1;
                    if *left == 0 {
                        self.state[member] = Is::Said;
                        self.records[me].push_back(Record::Sub(member, self.times[member]));
                    }
                }
            }
            Said::Message(message) => {
                let is_here = |m: &usize| self.home[*m] == me && self.state[*m] != Is::Out;
                let here: Vec<usize> = (0..MEMBERS).filter(is_here).collect();
                match here[..] {
                    [] => self.lanes[me][from].push_back(Said::Back(message)),
                    _ => self.held[self.random.pick(&here)].push(message),
                }
            }
            Said::Back(message) => self.route(me, message),
            Said::Committed(message) => {
                let is_known = self.counts[me].iter().any(|count| *count > 0);
                if is_known || self.rules.at_commit {
                    self.route(me, message);
                }
            }
        }
    }

    /// Somebody who is still there had its SUBACK before.
    fn is_due(&self, name: u32) -> bool {
        let mut due = self.due[&name].iter();
        due.any(|(m, time)| self.state[*m] == Is::In && self.times[*m] == *time)
    }

    /// The journal, on the first shard, takes a record.
    fn take(&mut self, origin: usize, record: Record) {
        let fold = &mut self.fold;
        match record {
            Record::Sub(member, time) => {
                fold.members.insert(member);
                if (self.state[member], self.times[member]) == (Is::Said, time) {
                    self.state[member] = Is::In;
                }
            }
            Record::End(member) => {
                fold.members.remove(&member);
                if fold.members.is_empty() {
                    fold.owed.clear();
                }
            }
            Record::Pub(message) => {
                fold.taken.insert(message.name);
                let is_owed = message.is_owed || !self.rules.named;
                if is_owed && !fold.members.is_empty() && !fold.early.contains(&message.name) {
                    fold.owed.insert(message.name);
                }
                if message.is_qos2 {
                    self.lanes[0][origin].push_back(Said::Committed(message));
                }
            }
            Record::GroupAck(name) => {
                fold.owed.remove(&name);
                fold.early.insert(name);
            }
        }
        // After a crash nobody would have it.
        let mut unowed = self.fold.taken.difference(&self.fold.owed);
        self.lost |= unowed.any(|name| !self.done.contains(name) && self.is_due(*name));
    }

    fn step(&mut self, is_calm: bool) {
        let (me, other) = (self.random.index(SHARDS), self.random.index(SHARDS));
        let member = self.random.index(MEMBERS);
        match self.random.below(10) {
            0..4 => {
                if self.random.chance(self.eager[other][me])
                    && let Some(said) = self.lanes[other][me].pop_front()
                {
                    self.on_lane(other, me, said);
                }
            }
            4..6 => {
                if self.random.chance(self.eager[me][SHARDS])
                    && let Some(record) = self.records[me].pop_front()
                {
                    self.take(me, record);
                }
            }
            6 => {
                if let Some((me, message)) = self.left_with.pop() {
                    self.finish(me, message);
                } else if !self.held[member].is_empty() {
                    let message = self.held[member].remove(0);
                    self.finish(self.home[member], message);
                }
            }
            7 if self.published < MESSAGES && self.random.chance(200) => self.publish(),
            8.. if !is_calm => match self.state[member] {
                Is::Out => self.join(member),
                // A connection in the barrier is not parsed further (I5).
                Is::Joining(_) => {}
                Is::Said | Is::In => self.leave(member),
            },
            _ => {}
        }
    }

    fn is_quiet(&self) -> bool {
        self.published == MESSAGES
            && self.lanes.iter().flatten().all(VecDeque::is_empty)
            && self.records.iter().all(VecDeque::is_empty)
            && self.held.iter().all(Vec::is_empty)
            && self.left_with.is_empty()
    }

    /// Whether something was lost, and whether something is owed for ever.
    fn run(mut self) -> (bool, bool) {
        (0..STEPS).for_each(|_| self.step(false));
        for _ in 0..100 * STEPS {
            if self.is_quiet() {
                break;
            }
            self.step(true);
        }
        assert!(self.is_quiet(), "it comes to rest");
        (self.lost, !self.fold.owed.is_empty())
    }
}

#[test]
fn with_all_rules_nothing_is_lost_and_nothing_stays_owed() {
    for seed in 0..RUNS {
        assert_eq!(World::new(seed, ALL).run(), (false, false), "seed {seed}");
    }
}

/// Each with a run in which what it prevents shows without it.
#[test]
fn without_one_of_them_something_stays_owed() {
    for (seed, rules) in [
        (0, Rules { named: false, ..ALL }),
        (137, Rules { said: false, ..ALL }),
        (1_971, Rules { kept_name: false, ..ALL }),
        (25_846, Rules { at_commit: false, ..ALL }),
    ] {
        assert_eq!(World::new(seed, ALL).run(), (false, false), "seed {seed}");
        assert_eq!(World::new(seed, rules).run(), (false, true), "seed {seed}, {rules:?}");
    }
}
