//! From the broker's changes to their commit.
//!
//! There is one journal, and one shard hosts it ([`HOST`]). At the end of a tick the host gives it
//! its own changes as they are; each other shard encodes its own, which travel in their lane to the
//! host, and how far their commits have come travels back: cumulatively, once per tick and lane
//! (SHARDS.md section 5). What is open is bounded where it is asked (L4), so taking changes from a
//! lane never has to wait.
//!
//! Invariants: a shard's changes reach the log in their order; a broker hears of a commit only when
//! the log says so; what a client is told follows from that alone.
#![forbid(unsafe_code)]

use serde::Serialize;

use super::Shard;
use super::lanes::Parcel;
use crate::broker::evict::{Found, ReadBack};
use crate::broker::{Change, Content, Outputs, QoS, Record};
use crate::clock::Time;
use crate::ids::ShardId;
use crate::io::Backend;
use crate::io::file::{FileDone, FileOp};
use crate::io::tap::{Passed, Tap};
use crate::journal::log;
use crate::journal::read::{self, Answer, Question};
use crate::journal::record::{Batch, Clocks, Entry, decode};
use crate::limits::{CONTENTS_KEPT, SHARDS_MAX};

/// The shard that hosts the journal.
pub(super) const HOST: ShardId = ShardId::new(0);

/// Where a shard's changes go.
#[derive(Debug, Default)]
pub enum Journal {
    /// Nowhere: what is recorded, if anything, is committed at once and not kept.
    #[default]
    Nowhere,
    /// To the shard that hosts the journal.
    ToHost,
    /// Here is that shard: those of all go into this.
    Host(Log),
}

/// What the host writes to.
#[derive(Debug)]
pub enum Log {
    /// Nothing lasts; a change is committed in the tick behind the one in which it came.
    Memory(Box<Memory>),
    /// Segments on disk.
    Disk(Box<Disk>),
}

/// See [`Log::Disk`].
#[derive(Debug)]
pub struct Disk {
    /// What is written.
    pub log: log::Log,
    /// What stands between it and its files; none in service.
    pub tap: Option<Tap>,
    /// How the start went.
    pub start: Start,
}

/// What a start has read of the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Start {
    /// Milliseconds that it took.
    pub recovery_ms: u64,
    /// Records.
    pub recovered_records: u64,
    /// Sessions that were there.
    pub recovered_sessions: u64,
    /// Messages, retained ones included.
    pub recovered_messages: u64,
    /// Pieces that were damaged, with whole ones behind them.
    pub quarantined: u64,
    /// Commits that are missing.
    pub missing_commits: u64,
    /// Records that are needed and could not be read. What queues hold of them is tried again when it
    /// is wanted.
    pub unreadable_at_start: u64,
}

/// The counters of the journal, where it is hosted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct JournalStats {
    /// Of what is written.
    #[serde(flatten)]
    pub log: log::LogCounters,
    /// Gauge: the longest that a commit took, in microseconds.
    pub slowest_commit_us: u64,
    /// Gauge: bytes of its files.
    pub disk_bytes: u64,
    /// Gauge: bytes of records in them that are needed.
    pub live_bytes: u64,
    /// Gauge: 1 while nothing can be written.
    pub is_down: u64,
    /// Of the start.
    #[serde(flatten)]
    pub start: Start,
}

impl Disk {
    fn deadline(&self) -> Option<Time> {
        let held = self.tap.as_ref().and_then(Tap::deadline);
        self.log.deadline().into_iter().chain(held).min()
    }

    fn next_op(&mut self, now: Time) -> Option<FileOp> {
        let Some(tap) = &mut self.tap else { return self.log.next_op() };
        if let Some(op) = tap.due(now) {
            return Some(op);
        }
        loop {
            match tap.pass(now, self.log.next_op()?) {
                Passed::On(op) => return Some(op),
                Passed::Failed(done) => self.log.handle_done(*done),
                Passed::Held => {}
            }
        }
    }

    fn handle_done(&mut self, mut done: FileDone) {
        if let Some(tap) = &mut self.tap {
            tap.over(&mut done);
        }
        self.log.handle_done(done);
    }
}

/// See [`Log::Memory`].
#[derive(Debug)]
pub struct Memory {
    appended: [u64; SHARDS_MAX],
    committed: [u64; SHARDS_MAX],
}

impl Default for Memory {
    fn default() -> Self {
        Self { appended: [0; SHARDS_MAX], committed: [0; SHARDS_MAX] }
    }
}

impl Log {
    fn append(&mut self, origin: ShardId, batch: &Batch) {
        match self {
            Self::Memory(memory) => memory.appended[origin.index()] = batch.last(),
            Self::Disk(disk) => disk.log.append(origin, batch),
        }
    }

    /// The same with a change of the host's own, which does not travel.
    fn append_own(&mut self, me: ShardId, change: &Change, clocks: Clocks) {
        match self {
            Self::Memory(memory) => memory.appended[me.index()] = change.number,
            Self::Disk(disk) => disk.log.append_own(me, change, clocks),
        }
    }

    /// Work that has come meanwhile is to be begun.
    fn set_clocks(&mut self, clocks: Clocks) {
        match self {
            Self::Memory(memory) => memory.committed = memory.appended,
            Self::Disk(disk) => disk.log.set_clocks(clocks),
        }
    }

    fn committed(&self, origin: ShardId) -> u64 {
        match self {
            Self::Memory(memory) => memory.committed[origin.index()],
            Self::Disk(disk) => disk.log.committed(origin),
        }
    }

    fn is_down(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Disk(disk) => disk.log.is_down(),
        }
    }

    fn is_idle(&self) -> bool {
        match self {
            Self::Memory(memory) => memory.committed == memory.appended,
            Self::Disk(disk) => disk.log.is_idle(),
        }
    }

    /// Only a log on disk has something to read.
    fn ask(&mut self, from: ShardId, reads: impl Iterator<Item = ReadBack>) {
        if let Self::Disk(disk) = self {
            for ReadBack { asker, messages } in reads {
                disk.log.ask(Question { from, asker, messages });
            }
        }
    }

    fn take_answers(&mut self) -> Vec<Answer> {
        match self {
            Self::Memory(_) => Vec::new(),
            Self::Disk(disk) => disk.log.take_answers(),
        }
    }

    fn last_error(&self) -> Option<&str> {
        match self {
            Self::Memory(_) => None,
            Self::Disk(disk) => disk.log.last_error(),
        }
    }

    fn deadline(&self) -> Option<Time> {
        match self {
            Self::Memory(_) => (!self.is_idle()).then_some(Time::ZERO),
            Self::Disk(disk) => disk.deadline(),
        }
    }

    fn next_op(&mut self, now: Time) -> Option<FileOp> {
        match self {
            Self::Memory(_) => None,
            Self::Disk(disk) => disk.next_op(now),
        }
    }

    fn handle_done(&mut self, done: FileDone) {
        match self {
            Self::Memory(_) => {}
            Self::Disk(disk) => disk.handle_done(done),
        }
    }
}

/// The journal, as one shard sees it.
#[derive(Debug)]
pub(super) struct Journaling {
    to: Journal,
    /// The same moment on both clocks.
    clocks: Clocks,
    /// Per shard, how much of its changes the host has told it to be committed.
    told: [u64; SHARDS_MAX],
    /// What the host has told everybody of the disk.
    told_down: bool,
}

impl Journaling {
    pub(super) fn new(to: Journal, clocks: Clocks) -> Self {
        Self { to, clocks, told: [0; SHARDS_MAX], told_down: false }
    }

    /// When the log has something to do although nothing happens.
    pub(super) fn deadline(&self) -> Option<Time> {
        match &self.to {
            Journal::Host(log) => log.deadline(),
            _ => None,
        }
    }

    /// Whether nothing is on its way to a disk here, nor word of it to another shard.
    pub(super) fn is_idle(&self, shards: usize) -> bool {
        let Journal::Host(log) = &self.to else { return true };
        let is_told = |shard| log.committed(ShardId::new(shard)) == self.told[shard];
        log.is_idle() && (0..shards).all(is_told)
    }

    /// The counters, of a journal on disk that is hosted here.
    pub(super) fn stats(&self) -> Option<JournalStats> {
        let Journal::Host(Log::Disk(disk)) = &self.to else { return None };
        let log = &disk.log;
        Some(JournalStats {
            log: log.counters(),
            slowest_commit_us: u64::try_from(log.slowest().as_micros()).unwrap_or(u64::MAX),
            disk_bytes: log.disk_bytes(),
            live_bytes: log.live_bytes(),
            is_down: u64::from(log.is_down()),
            start: disk.start,
        })
    }

    /// Whether other shards may still need this one.
    pub(super) fn is_host(&self) -> bool {
        matches!(self.to, Journal::Host(_))
    }

    /// Whether there is one at all.
    pub(super) fn exists(&self) -> bool {
        !matches!(self.to, Journal::Nowhere)
    }

    /// Changes of another shard.
    pub(super) fn on_changes(&mut self, from: ShardId, batch: &Batch) {
        if let Journal::Host(log) = &mut self.to {
            log.append(from, batch);
        }
    }

    /// The log on disk, on its host.
    pub(super) fn log(&self) -> Option<&log::Log> {
        match &self.to {
            Journal::Host(Log::Disk(disk)) => Some(&disk.log),
            _ => None,
        }
    }

    /// What another shard wants to have read.
    pub(super) fn on_reads(&mut self, from: ShardId, reads: impl Iterator<Item = ReadBack>) {
        if let Journal::Host(log) = &mut self.to {
            log.ask(from, reads);
        }
    }

    /// Nobody reads on.
    pub(super) fn forget_reads(&mut self) {
        if let Journal::Host(Log::Disk(disk)) = &mut self.to {
            disk.log.forget_questions();
        }
    }

    pub(super) fn on_done(&mut self, done: FileDone) {
        if let Journal::Host(log) = &mut self.to {
            log.handle_done(done);
        }
    }
}

impl<B: Backend> Shard<B> {
    /// What another shard's parcel says of the journal. Before its entries: an END stands behind
    /// them.
    pub(super) fn on_journal_news(&mut self, from: ShardId, parcel: &mut Parcel<B::Socket>) {
        if !parcel.changes.is_empty() {
            self.journaling.on_changes(from, &parcel.changes);
        }
        if let Some(is_down) = parcel.disk {
            self.broker.handle_disk(is_down);
        }
        if parcel.committed > 0 {
            self.broker.handle_committed(self.now, parcel.committed);
        }
        // A shutdown ends what it would bring.
        if self.stopping.is_none() {
            self.journaling.on_reads(from, parcel.reads.drain(..));
            for answer in parcel.answers.drain(..) {
                self.on_answer(&answer);
            }
        }
    }

    /// Hands the journal what must last, and the broker what lasts.
    pub(super) fn commit(&mut self) {
        let Journaling { to, clocks, .. } = &mut self.journaling;
        let out = &mut self.broker.out;
        match to {
            Journal::Nowhere => {
                if let Some(through) = out.changes.last().map(|change| change.number) {
                    out.changes.clear();
                    self.broker.handle_committed(self.now, through);
                }
            }
            Journal::ToHost => {
                let parcel = self.lanes.to(HOST);
                encode(self.id, out, *clocks, &mut parcel.changes);
                // Behind the changes: what is asked for may be among them.
                parcel.reads.append(&mut out.reads);
            }
            Journal::Host(log) => {
                let unix_ms = clocks.unix_ms_of(self.now);
                log.set_clocks(Clocks { monotonic: self.now, unix_ms });
                for change in out.changes.drain(..) {
                    log.append_own(self.id, &change, *clocks);
                    take_back(&mut out.contents, change);
                }
                log.ask(self.id, self.broker.out.reads.drain(..));
                while let Some(op) = log.next_op(self.now) {
                    self.backend.file(op);
                }
                // The last commit of the life before is written again: nobody knows whether it was
                // synced. A disk that takes nothing is no reason not to serve.
                if !self.is_open && (log.is_idle() || log.is_down()) {
                    self.broker.handle_restored();
                }
                self.tell_commits();
                self.send_answers();
            }
        }
    }

    /// What the host has read goes to who has asked.
    fn send_answers(&mut self) {
        let Journal::Host(log) = &mut self.journaling.to else { return };
        let answers = log.take_answers();
        if let Log::Disk(disk) = log {
            for trouble in disk.log.take_troubles() {
                tracing::error!("{trouble}");
            }
        }
        if self.stopping.is_some() {
            return;
        }
        for answer in answers {
            match answer.to {
                me if me == self.id => self.on_answer(&answer),
                other => self.lanes.to(other).answers.push(answer),
            }
        }
    }

    /// What was asked for was read.
    fn on_answer(&mut self, answer: &Answer) {
        let clocks = self.journaling.clocks;
        let found = answer.records().map(|(id, record)| (id, found(record, clocks)));
        self.broker.handle_read_back(self.now, answer.asker, found);
    }

    /// The host tells everybody how far the commits have come.
    fn tell_commits(&mut self) {
        let Journaling { to: Journal::Host(log), told, told_down, .. } = &mut self.journaling
        else {
            return;
        };
        let is_down = log.is_down();
        let disk = (is_down != std::mem::replace(told_down, is_down)).then_some(is_down);
        match disk {
            Some(true) => tracing::error!(
                error = log.last_error().unwrap_or("unknown"),
                "the journal cannot be written: what would have to be stored is refused until it can"
            ),
            Some(false) => tracing::info!("the journal is written again"),
            None => {}
        }
        for peer in self.lanes.peers() {
            let parcel = self.lanes.to(peer);
            parcel.disk = disk.or(parcel.disk);
            let committed = log.committed(peer);
            if committed > told[peer.index()] {
                told[peer.index()] = committed;
                parcel.committed = committed;
            }
        }
        let committed = log.committed(self.id);
        let own = &mut told[self.id.index()];
        let is_news = committed > std::mem::replace(own, committed);
        if let Some(is_down) = disk {
            self.broker.handle_disk(is_down);
        }
        if is_news {
            self.broker.handle_committed(self.now, committed);
        }
    }
}

fn found(record: read::Record<'_>, clocks: Clocks) -> Found<'_> {
    let body = match record {
        read::Record::Body(body) => body,
        read::Record::Gone => return Found::Gone,
        read::Record::Unreadable => return Found::Unreadable,
    };
    let Ok((_, Entry::Publish(publish))) = decode(body) else { return Found::Unreadable };
    Found::Message {
        topic: publish.topic,
        forwarded: publish.forwarded,
        payload: publish.payload,
        qos: QoS::from_bits(publish.qos).unwrap_or(QoS::ExactlyOnce),
        retain: publish.retain,
        deadline: publish.deadline.map(|at| clocks.time_of(at)),
    }
}

fn encode(me: ShardId, out: &mut Outputs, clocks: Clocks, batch: &mut Batch) {
    for change in out.changes.drain(..) {
        batch.push(me, change.number, &change.record, clocks);
        batch.sync |= change.level == crate::broker::Level::Power;
        take_back(&mut out.contents, change);
    }
}

/// A change is encoded: what it consisted of is used again.
fn take_back(contents: &mut Vec<Content>, change: Change) {
    if let Record::Publish { mut content, .. } = change.record
        && contents.len() < CONTENTS_KEPT
    {
        content.clear();
        contents.push(content);
    }
}
