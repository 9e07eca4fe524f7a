//! The journal on the simulated disk: commits, crashes and recoveries of many seeds, against a fold
//! that is said in the plainest way ([`naive`]).
//!
//! After each crash, of the process or of the machine, the recovered state is that of a prefix of
//! what was brought, and nothing that was committed is missing.

mod faults;
mod naive;

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::disk::Disk;
use super::folder::{self, Folder};
use super::random::Random;
use crate::broker::durable::{DurableSession, DurableState, MessageId, PacketId};
use crate::broker::evict::Asker;
use crate::broker::{Content, Record};
use crate::clock::Time;
use crate::codec::mqtt::QoS;
use crate::ids::ShardId;
use crate::io::file::FileOp;
use crate::journal::log::{Log, Options};
use crate::journal::read::{Question, Record as Read};
use crate::journal::record::{Batch, Clocks, Entry, decode, message_of};
use crate::journal::recover::{Recovered, recover, recover_some};
use crate::limits::{JOURNAL_OPEN_MAX, JOURNAL_SPARES_MAX, JOURNAL_UNSYNCED_MAX};
use naive::{Naive, seen_of};

/// Commits are closed from so many bytes on, a block for the header of a segment included.
const COMMIT_BYTES: usize = 12 * 1024;

/// Segments that are open, and what is prepared; no directory is in the disk's books.
const OPEN_MAX: usize = JOURNAL_OPEN_MAX + JOURNAL_UNSYNCED_MAX + JOURNAL_SPARES_MAX + 1;

fn options() -> Options {
    Options {
        folder: folder::PATH.into(),
        placement: 7,
        segment_bytes_first: 32 * 1024,
        segment_bytes_max: 64 * 1024,
        direct: true,
    }
}

struct World {
    random: Random,
    disk: Disk,
    log: Log,
    shards: usize,
    /// All that was brought, in the log's order; None is a restart.
    brought: Vec<(usize, Option<Record>)>,
    /// Per origin: changes brought, in this process.
    numbers: Vec<u64>,
    naive: Naive,
    /// Made, and not yet brought.
    lanes: Vec<Vec<Record>>,
    sequences: Vec<u64>,
    now: Time,
    power: bool,
    crashes: u32,
    /// Questions that are open, and messages that were read.
    questions: usize,
    read: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        let disk = Disk::new(seed);
        let Recovered { mut log, .. } = recover(&Folder(&disk), options(), seed).unwrap();
        log.set_commit_bytes(COMMIT_BYTES);
        let shards = random.between(1, 3) as usize;
        Self {
            power: random.chance(700),
            random,
            disk,
            log,
            shards,
            brought: Vec::new(),
            numbers: vec![0; 4],
            naive: Naive::default(),
            lanes: vec![Vec::new(); 4],
            sequences: vec![0; 4],
            now: Time::from_nanos(1_000_000_000_000),
            crashes: 0,
            questions: 0,
            read: 0,
        }
    }

    /// Something that a shard may say now.
    fn record(&mut self) -> Option<(usize, Record)> {
        let client = format!("c{}", self.random.below(4));
        let client_id: Rc<str> = client.as_str().into();
        // A client is at home on one shard.
        let home = client.as_bytes()[1] as usize % self.shards;
        let packet_id = PacketId::new(self.random.between(1, 3) as u16)?;
        let filter: Box<str> = self.random.pick(&["t/0", "t/1", "t/#", "#"]).into();
        let exists = self.naive.clients().contains(&client);
        let record = match self.random.below(100) {
            // It has a session that does not last, or none.
            90.. if !exists => return Some((home, self.publish(home, client_id))),
            _ if !exists => Record::Session { client_id, expiry_secs: 60, offline_since: None },
            0..2 => Record::SessionEnded { client_id },
            2..5 => Record::Session { client_id, expiry_secs: 90, offline_since: Some(self.now) },
            5..12 => Record::Subscribe {
                client_id,
                filter,
                options: self.random.between(1, 2) as u8,
                subscription_id: self.random.chance(300).then(|| self.random.between(1, 9) as u32),
                seen: self.seen(),
            },
            12..15 => {
                let filters = self.naive.filters(&client);
                let filter = filters.first()?.as_str().into();
                Record::Unsubscribe { client_id, filter, seen: self.seen() }
            }
            15..17 => Record::WillSet {
                client_id,
                topic: "t/0".into(),
                forwarded: Box::default(),
                payload: Bytes::from(self.random.number().to_le_bytes().to_vec()),
                qos: QoS::AtLeastOnce,
                retain: false,
                delay_secs: 0,
                expiry_secs: None,
            },
            17..18 => Record::WillDeleted { client_id },
            18..55 => return Some((home, self.publish(home, client_id))),
            55..75 => {
                let queue = self.naive.queue(&client);
                let (name, _) = queue.iter().find(|(_, qos)| *qos == 1)?;
                Record::Acked { client_id, message: message_of(*name)? }
            }
            75..85 => {
                let used = self.naive.exchanges(&client);
                let (name, _) = *self.naive.queue(&client).iter().find(|(_, qos)| *qos == 2)?;
                // Sometimes of one that is in use: its DONE may have been lazy (J6).
                let is_lazy = self.random.chance(100);
                if !is_lazy && used.iter().any(|(id, ..)| *id == packet_id.get()) {
                    return None;
                }
                Record::Assign {
                    client_id,
                    packet_id,
                    message: message_of(name),
                    retain: false,
                    subscription_ids: Box::default(),
                    group: None,
                }
            }
            85..95 => {
                let (id, is_received, message) = *self.naive.exchanges(&client).first()?;
                let packet_id = PacketId::new(id)?;
                match is_received {
                    false => Record::Received { client_id, packet_id, message },
                    true => Record::Done { client_id, packet_id, message },
                }
            }
            _ => {
                let packet_id = PacketId::new(*self.naive.unreleased(&client).first()?)?;
                Record::Released { client_id, packet_id }
            }
        };
        Some((home, record))
    }

    fn publish(&mut self, home: usize, publisher: Rc<str>) -> Record {
        let before = self.sequences[home].max(self.naive.last_sequence());
        self.sequences[home] = before + self.random.between(1, 3);
        let qos = self.random.pick(&[QoS::AtLeastOnce, QoS::ExactlyOnce]);
        let retain = self.random.chance(200);
        let len = self.random.pick(&[1, 20, 300, 5000]);
        let unreleased = self.naive.unreleased(&publisher);
        let free = (1..100).find(|id| !unreleased.contains(id)).and_then(PacketId::new);
        let is_clear = retain && self.random.chance(300);
        let payload = vec![self.random.below(256) as u8; if is_clear { 0 } else { len }];
        let content = Content::new(self.random.pick(&["t/0", "t/1", "u"]), &[], payload.into());
        Record::Publish {
            message: MessageId::new(ShardId::new(home), self.sequences[home]),
            publisher,
            packet_id: free.filter(|_| qos == QoS::ExactlyOnce),
            content,
            qos,
            retain,
            deadline: None,
            is_will: self.random.chance(20),
            groups: None,
        }
    }

    /// The last messages of some origins, perhaps above what the journal has.
    fn seen(&self) -> Box<[MessageId]> {
        let all = self.sequences.iter().enumerate().take(self.shards);
        let seen = all.filter(|(_, sequence)| **sequence > 0);
        seen.map(|(origin, sequence)| MessageId::new(ShardId::new(origin), *sequence)).collect()
    }

    fn bring(&mut self) {
        let Some((home, record)) = self.record() else { return };
        self.naive.apply(&record);
        self.numbers[home] += 1;
        let mut batch = Batch::default();
        batch.sync = self.power || self.random.chance(500);
        let clocks = Clocks { monotonic: self.now, unix_ms: 1_000_000 };
        batch.push(ShardId::new(home), self.numbers[home], &record, clocks);
        self.brought.push((home, Some(record)));
        self.log.append(ShardId::new(home), &batch);
    }

    fn step(&mut self) {
        self.now = self.now + Duration::from_millis(self.random.below(30));
        self.log.set_clocks(Clocks { monotonic: self.now, unix_ms: 1_000_000 });
        match self.random.below(10) {
            0..5 if self.log.gathered_bytes() < 8 * COMMIT_BYTES => self.bring(),
            5..7 => self.ask(),
            _ => {
                if let Some(done) = self.disk.finish_one(0) {
                    self.log.handle_done(done);
                }
            }
        }
        if self.questions < 6 && self.random.chance(100) {
            self.question();
        }
    }

    /// A queue that was left to the journal wants messages back.
    fn question(&mut self) {
        let client = format!("c{}", self.random.below(4));
        let queue = self.naive.queue(&client);
        let from = self.random.index(queue.len() + 1);
        let some = queue.iter().skip(from).take(self.random.between(1, 30) as usize);
        let messages: Vec<MessageId> = some.filter_map(|(name, _)| message_of(*name)).collect();
        if !messages.is_empty() {
            self.questions += 1;
            let asker = Asker::nobody();
            self.log.ask(Question { from: ShardId::new(1), asker, messages });
        }
    }

    /// What was read is what was written; nothing that somebody is owed is missing.
    fn take_answers(&mut self) {
        for answer in self.log.take_answers() {
            self.questions -= 1;
            let mut count = 0;
            for (id, record) in answer.records() {
                count += 1;
                let known = self.naive.message(id.order());
                match record {
                    Read::Body(body) => {
                        let Ok((_, Entry::Publish(publish))) = decode(body) else {
                            panic!("{body:?}")
                        };
                        assert_eq!(publish.message, id.order());
                        if let Some((topic, payload)) = known {
                            assert_eq!((publish.topic, publish.payload), (topic, payload));
                        }
                        self.read += 1;
                    }
                    Read::Gone => {
                        let held = self.naive.seen().has(id.order());
                        assert!(!held, "somebody is owed {id:?}");
                    }
                    Read::Unreadable => panic!("{:?}", self.log.take_troubles()),
                }
            }
            assert!(count > 0, "an answer says something");
        }
    }

    fn ask(&mut self) {
        let mut commits = 0;
        while let Some(op) = self.log.next_op() {
            commits += u32::from(matches!(op, FileOp::Write { from, .. } if from > 0));
            self.disk.submit(0, op);
        }
        assert!(commits <= 1, "one commit at a time");
        let spins = self.log.deadline().is_some_and(|at| at <= self.now) && !self.log.has_work();
        assert!(!spins, "it is asked again and again, and has nothing to do");
        assert!(self.disk.open_files(0) <= OPEN_MAX, "{} files", self.disk.open_files(0));
        self.take_answers();
    }

    /// How many of what this process has brought are committed.
    fn committed(&self) -> usize {
        let mut left: Vec<u64> =
            (0..4).map(|origin| self.log.committed(ShardId::new(origin))).collect();
        let start = self.brought.iter().rposition(|(_, r)| r.is_none()).map_or(0, |i| i + 1);
        let mut through = start;
        for (index, (origin, _)) in self.brought.iter().enumerate().skip(start) {
            if left[*origin] > 0 {
                left[*origin] -= 1;
                through = index + 1;
            }
        }
        through
    }

    /// Ends the process, or the machine, and starts again.
    fn crash(&mut self, cut_power: bool, seed: u64) {
        let committed = self.committed();
        let before = self.log.books();
        if cut_power {
            self.disk.cut_power();
        } else {
            self.disk.kill();
        }
        let Recovered { state, log, report } =
            recover(&Folder(&self.disk), options(), seed).unwrap_or_else(|e| panic!("{seed}: {e}"));
        assert_eq!(report.quarantined, 0, "seed {seed}: {:?}", report.damage);
        assert_eq!(report.missing_commits, 0, "seed {seed}: {:?}", report.damage);
        assert_eq!(report.unreadable, 0, "seed {seed}");
        let found = seen_of(&state);
        self.questions = 0;
        let most = self.random.pick(&[0, 1000, 20_000]);
        let some = recover_some(&Folder(&self.disk), options(), seed, most).expect("as before");
        assert_eq!(names_of(&some.state), names_of(&state), "seed {seed}: up to {most}");
        let mut naive = Naive::default();
        let mut through = None;
        for k in 0..=self.brought.len() {
            if k >= committed && naive.seen() == found {
                through = Some((k, naive.clone()));
                break;
            }
            match self.brought.get(k) {
                Some((_, Some(record))) => naive.apply(record),
                Some((_, None)) => naive.restarted(),
                None => {}
            }
        }
        let Some((k, naive)) = through else {
            let mut plain = Naive::default();
            let mut all = String::new();
            for (k, (_, record)) in self.brought.iter().enumerate() {
                match record {
                    Some(record) => plain.apply(record),
                    None => plain.restarted(),
                }
                if k + 1 >= committed {
                    let differences = found.differences(&plain.seen());
                    all += &format!("after {}: {record:?}\n{differences}\n", k + 1);
                }
            }
            panic!(
                "seed {seed}: no prefix from {committed} of {} on gives what was recovered\n\
                 {before}\n{}\nfound {all}",
                self.brought.len(),
                log.books(),
            );
        };
        assert!(state.last_sequence >= naive.last_sequence(), "seed {seed}");
        self.brought.truncate(k);
        self.brought.push((0, None));
        self.naive = naive;
        self.naive.restarted();
        self.numbers = vec![0; 4];
        self.sequences = vec![state.last_sequence; 4];
        self.lanes.iter_mut().for_each(Vec::clear);
        self.log = log;
        self.log.set_commit_bytes(COMMIT_BYTES);
        self.disk.trouble = super::disk::Trouble::default();
        self.shards = self.random.between(1, 3) as usize;
        self.crashes += 1;
        // A broker answers nobody before that.
        self.settle(seed);
    }

    fn trouble(&mut self) {
        let trouble = &mut self.disk.trouble;
        trouble.write_error = self.random.pick(&[0, 0, 0, 50, 500]);
        trouble.read_error = self.random.pick(&[0, 0, 0, 50, 500, 1000]);
        // What reads as something else six times is given up: it is made seldom enough.
        trouble.misread = self.random.pick(&[0, 0, 0, 20]);
        trouble.sync_error = self.random.pick(&[0, 0, 0, 50, 500]);
        trouble.is_full = self.random.chance(100);
        trouble.is_read_only = self.random.chance(30);
        trouble.is_stuck = self.random.chance(30);
    }

    /// The disk is well: everything gets committed.
    fn settle(&mut self, seed: u64) {
        self.disk.trouble = super::disk::Trouble::default();
        for _ in 0..20_000 {
            self.now = self.now + Duration::from_millis(100);
            self.log.set_clocks(Clocks { monotonic: self.now, unix_ms: 1_000_000 });
            self.ask();
            while let Some(done) = self.disk.finish_one(0) {
                self.log.handle_done(done);
            }
            if self.log.is_idle() {
                assert!(!self.log.is_down(), "seed {seed}");
                return;
            }
        }
        panic!("seed {seed}: not committed although the disk is well: {:?}", self.log.last_error());
    }
}

type Owed = Vec<(u64, QoS, bool)>;

/// What each session is owed, in its order, wherever it is; in groups, too.
fn names_of(state: &DurableState) -> Vec<(&str, Owed)> {
    let of = |session: &'_ DurableSession| {
        let queue = session.queue.iter().map(|queued| {
            (state.messages[queued.message as usize].id.order(), queued.qos, queued.retain)
        });
        let on_disk = session.on_disk.iter().map(|e| (e.id.order(), e.qos, e.retain));
        let all: Vec<_> = queue.chain(on_disk).collect();
        assert!(all.is_sorted_by_key(|(name, ..)| *name));
        all
    };
    state.sessions.iter().map(|session| (&*session.client_id, of(session))).collect()
}

fn run(seed: u64, steps: usize) -> u64 {
    let mut world = World::new(seed);
    for step in 0..steps {
        world.step();
        if step % 10 == 0
            && let Some(wrong) = world.log.wrong_books()
        {
            panic!("seed {seed}, step {step}: {wrong}");
        }
        if step % 200 == 199 {
            world.trouble();
        }
        if world.random.chance(2) {
            // What was not synced may be lost anywhere: then there is no prefix to compare with.
            let cut_power = world.power && world.random.chance(500);
            world.crash(cut_power, seed);
        }
    }
    world.settle(seed);
    let total = world.brought.len();
    assert_eq!(world.committed(), total, "seed {seed}");
    world.crash(false, seed);
    world.disk.cut_power();
    recover(&Folder(&world.disk), options(), seed).expect("whatever is lost, it starts");
    world.read
}

/// SHARDS.md J1 and J10, and what DESIGN.md section 5 promises, over seeds.
///
/// `NOCTULE_JOURNAL_SEEDS` says how many.
#[test]
fn what_is_committed_is_recovered() {
    let seeds = std::env::var("NOCTULE_JOURNAL_SEEDS").ok().and_then(|n| n.parse().ok());
    let mut read = 0;
    for seed in 0..seeds.unwrap_or(40) {
        read += run(seed, 3000);
    }
    assert!(read > 1000, "{read} messages were read back");
}
