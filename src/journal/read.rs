//! Messages are read back while the log runs: for queues that were left to the journal.
//!
//! A question names messages. Each is looked up where the fold says that it lies, and what lies near
//! each other is read at once, in whole blocks; the answer has the records' bodies. A question waits
//! as long as its next message has not been written: the lane of its origin may be behind that of
//! the one who asks, or its commit under way. It is answered in parts rather than late: what is left
//! out, is asked for again.
//!
//! Nothing is held for a read. A message that was copied forward meanwhile (SHARDS.md J10), so that
//! its segment is used for others, is found out by its record's checksum, in which the number of the
//! commit is, and read from where it lies by then. A record whose checksum does not hold however often
//! it is read is given up: counted, and named with its file and offset. A disk or a directory that
//! says that it cannot read says nothing about the record: who asks waits until it can, for ever, and
//! people are told what waits.
//!
//! Invariants: at most [`JOURNAL_READS_MAX`] reads are under way, and [`JOURNAL_OPEN_MAX`] segments
//! open; who asks bounds the questions (SHARDS.md L4).
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use super::fold::{At, Place};
use super::log::{Log, Segment};
use super::record::{self, Entry};
use super::segment::{self, FRAME_HEADER};
use crate::broker::durable::MessageId;
use crate::broker::evict::Asker;
use crate::clock::Time;
use crate::ids::ShardId;
use crate::io::file::{BLOCK, BlockBuf, FileId, FileOp};
use crate::limits::{
    JOURNAL_ANSWER_BYTES, JOURNAL_DAMAGE_REPORTED, JOURNAL_OPEN_MAX, JOURNAL_READ_BACK_BYTES,
    JOURNAL_READ_TRIES_MAX, JOURNAL_READS_MAX, JOURNAL_READS_PER_ANSWER, JOURNAL_RETRY_FIRST,
    JOURNAL_RETRY_MAX,
};

/// Messages that one shard asks for.
#[derive(Debug)]
pub struct Question {
    /// Which shard.
    pub from: ShardId,
    /// Whose answer it is there.
    pub asker: Asker,
    /// Which, in the order in which they are wanted.
    pub messages: Vec<MessageId>,
}

/// What there is of one message of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    /// A PUB's body of this length.
    Body(u32),
    Gone,
    Unreadable,
}

/// The answer to the first messages of a question, or to all of it.
#[derive(Debug)]
pub struct Answer {
    /// Which shard has asked.
    pub to: ShardId,
    /// As in the question.
    pub asker: Asker,
    messages: Vec<MessageId>,
    items: Vec<Item>,
    /// Bodies, one behind the other.
    bytes: Vec<u8>,
}

/// What an answer says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// Its PUB's body.
    Body(&'a [u8]),
    /// Nobody is owed it.
    Gone,
    /// Its record cannot be read.
    Unreadable,
}

impl Answer {
    /// All of it, in the question's order.
    pub fn records(&self) -> impl Iterator<Item = (MessageId, Record<'_>)> {
        let mut rest = &self.bytes[..];
        self.messages.iter().zip(&self.items).map(move |(id, item)| {
            let record = match item {
                Item::Body(len) => {
                    let (body, behind) = rest.split_at(*len as usize);
                    rest = behind;
                    Record::Body(body)
                }
                Item::Gone => Record::Gone,
                Item::Unreadable => Record::Unreadable,
            };
            (*id, record)
        })
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + self.messages.len() * size_of::<MessageId>()
    }
}

/// A read under way.
#[derive(Debug)]
struct Reading {
    file: FileId,
    offset: u64,
    len: usize,
}

/// A question that is being answered.
#[derive(Debug)]
struct Open {
    answer: Answer,
    /// Reads so far.
    reads: u32,
    /// Times that its next message was read and was not there.
    failures: u32,
    /// When it is tried again, after the disk has failed.
    retry_at: Option<Time>,
    /// The last of these waits.
    wait: Duration,
    reading: Option<Reading>,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Reader {
    open: VecDeque<Open>,
    under_way: usize,
    spare: Vec<BlockBuf>,
    answers: Vec<Answer>,
    /// How many reads there were.
    stamp: u64,
}

impl Reader {
    /// When a question is to be tried again. While no more reads are allowed, the end of one is
    /// what it waits for.
    pub(super) fn deadline(&self) -> Option<Time> {
        if self.under_way >= JOURNAL_READS_MAX {
            return None;
        }
        self.open.iter().filter_map(|open| open.retry_at).min()
    }
}

/// What can be done for a question now.
enum Next {
    /// This is to be read: of which segment, where, and so many bytes.
    Read(usize, u64, usize),
    /// This file is to be opened first.
    Open(u32),
    Wait,
    Done,
}

impl Log {
    /// Somebody wants messages. There will be one answer, with one message of it at least, if it
    /// names any.
    pub fn ask(&mut self, question: Question) {
        let Question { from, asker, messages } = question;
        let answer = Answer { to: from, asker, messages, items: Vec::new(), bytes: Vec::new() };
        let wait = Duration::ZERO;
        let open = Open { answer, reads: 0, failures: 0, retry_at: None, wait, reading: None };
        self.reader.open.push_back(open);
    }

    /// Answers that are complete.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.reader.answers)
    }

    /// Nobody waits for answers any more.
    pub fn forget_questions(&mut self) {
        for open in &mut self.reader.open {
            open.answer.messages.truncate(open.answer.items.len());
        }
        // What is being read comes back once more.
        self.reader.open.retain(|open| open.reading.is_some());
        self.reader.answers.clear();
    }

    /// What questions need next, if anything.
    pub(super) fn reader_op(&mut self) -> Option<FileOp> {
        let mut index = 0;
        while index < self.reader.open.len() && self.reader.under_way < JOURNAL_READS_MAX {
            let now = self.now().monotonic;
            let open = &mut self.reader.open[index];
            if open.reading.is_some() || open.retry_at.is_some_and(|at| now < at) {
                index += 1;
                continue;
            }
            open.retry_at = None;
            match self.next_of(index) {
                Next::Wait => index += 1,
                Next::Done => self.finish_question(index),
                Next::Open(file) => {
                    if let Some(op) = self.open_op(file) {
                        return Some(op);
                    }
                    index += 1;
                }
                Next::Read(segment, offset, len) => {
                    self.reader.stamp += 1;
                    self.segments[segment].last_read = self.reader.stamp;
                    let file = FileId(self.segments[segment].file);
                    let mut buf = self.reader.spare.pop().unwrap_or_default();
                    buf.clear(2 * JOURNAL_READ_BACK_BYTES);
                    buf.resize(len);
                    let open = &mut self.reader.open[index];
                    open.reading = Some(Reading { file, offset, len });
                    open.reads += 1;
                    self.reader.under_way += 1;
                    self.counters.reads += 1;
                    return Some(FileOp::Read { file, offset, buf });
                }
            }
        }
        None
    }

    fn finish_question(&mut self, index: usize) {
        if let Some(mut open) = self.reader.open.remove(index) {
            open.answer.messages.truncate(open.answer.items.len());
            self.reader.answers.push(open.answer);
        }
    }

    /// Goes on with a question, as far as that needs no reading.
    fn next_of(&mut self, index: usize) -> Next {
        loop {
            let Open { answer, reads, .. } = &self.reader.open[index];
            let has_some = !answer.items.is_empty();
            let Some(id) = answer.messages.get(answer.items.len()) else { return Next::Done };
            let is_enough = answer.bytes.len() >= JOURNAL_ANSWER_BYTES;
            if has_some && (is_enough || *reads >= JOURNAL_READS_PER_ANSWER) {
                return Next::Done;
            }
            let at = match self.fold.place_of(id.order()) {
                Place::At(at) if self.is_written(at.commit) => at,
                Place::Gone => {
                    self.reader.open[index].answer.items.push(Item::Gone);
                    continue;
                }
                _ => return if has_some { Next::Done } else { Next::Wait },
            };
            let Some((segment, start)) = self.locate(at) else {
                self.give_up(index, at, "its commit is not there");
                continue;
            };
            let found = &self.segments[segment];
            if !found.is_open {
                return if found.is_opening { Next::Wait } else { Next::Open(found.file) };
            }
            let from = start / BLOCK as u64 * BLOCK as u64;
            let end = self.end_of_run(index, segment, from, start + u64::from(at.len));
            let len = (end - from).next_multiple_of(BLOCK as u64);
            return Next::Read(segment, from, len as usize);
        }
    }

    /// Whether the next message of a question lies in this file.
    fn lies_in(&self, index: usize, file: FileId) -> bool {
        let answer = &self.reader.open[index].answer;
        let Some(id) = answer.messages.get(answer.items.len()) else { return false };
        let Place::At(at) = self.fold.place_of(id.order()) else { return false };
        self.is_written(at.commit)
            && self.locate(at).is_some_and(|(segment, _)| self.segments[segment].file == file.0)
    }

    /// Opens a segment, or closes another for it first; None while neither can be.
    pub(super) fn open_op(&mut self, file: u32) -> Option<FileOp> {
        if self.open_count() >= JOURNAL_OPEN_MAX {
            return self.close_op();
        }
        let found = self.segments.iter_mut().find(|segment| segment.file == file)?;
        found.is_opening = true;
        let path = segment::path(&self.options.folder, file);
        Some(FileOp::Open { file: FileId(file), path, create: false, direct: self.options.direct })
    }

    /// Segments that are open, beyond those that are to be synced.
    fn open_count(&self) -> usize {
        let counts = |s: &&Segment| s.is_opening || s.is_open && !self.is_unsynced(FileId(s.file));
        self.segments.iter().filter(counts).count() + self.cleaner.freed_open()
    }

    /// Closes what is open beyond the bound: segments are open when they have been filled.
    pub(super) fn close_excess(&mut self) -> Option<FileOp> {
        if !self.may_close {
            return None;
        }
        if self.open_count() <= JOURNAL_OPEN_MAX {
            self.may_close = false;
            return None;
        }
        self.close_op()
    }

    /// Closes the segment that was read longest ago, of those that nothing is done with: neither
    /// the last nor the oldest, and nothing in it is to be synced. One that is free comes first.
    fn close_op(&mut self) -> Option<FileOp> {
        let Self { segments, cleaner, reader, unsynced, .. } = self;
        let is_idle = |segment: &&mut Segment| {
            let of = |open: &Open| open.reading.as_ref().is_some_and(|r| r.file.0 == segment.file);
            let is_used = segment.is_opening || reader.open.iter().any(of);
            segment.is_open && !is_used && !unsynced.contains(&FileId(segment.file))
        };
        let last = segments.len().saturating_sub(1);
        let freed = cleaner.freed().iter_mut().find(is_idle);
        let segment = freed.or_else(|| {
            let found = segments.iter_mut().take(last).skip(1).filter(is_idle);
            found.min_by_key(|segment| segment.last_read)
        })?;
        (segment.is_opening, segment.is_open) = (true, false);
        Some(FileOp::Close { file: FileId(segment.file) })
    }

    /// It is closed; if not, opening it puts the descriptor away.
    pub(super) fn on_closed(&mut self, file: FileId) {
        let mut all = self.segments.iter_mut().chain(self.cleaner.freed());
        if let Some(segment) = all.find(|segment| segment.file == file.0) {
            segment.is_opening = false;
        }
        self.may_close = true;
    }

    /// Which segment has the record, and where it begins in its file.
    fn locate(&self, at: At) -> Option<(usize, u64)> {
        let behind = self.segments.partition_point(|s| s.first_commit <= at.commit);
        let index = behind.checked_sub(1)?;
        let frame = self.segments[index].offset_of(at.commit)?;
        Some((index, frame + FRAME_HEADER as u64 + u64::from(at.offset)))
    }

    /// Where the records end that the question wants next and that stand behind each other.
    fn end_of_run(&self, index: usize, segment: usize, from: u64, mut end: u64) -> u64 {
        let answer = &self.reader.open[index].answer;
        for id in &answer.messages[answer.items.len() + 1..] {
            let Place::At(at) = self.fold.place_of(id.order()) else { break };
            if !self.is_written(at.commit) {
                break;
            }
            match self.locate(at) {
                Some((other, start)) if other == segment && start >= end => {
                    let after = start + u64::from(at.len);
                    if after - from > JOURNAL_READ_BACK_BYTES as u64 {
                        break;
                    }
                    end = after;
                }
                _ => break,
            }
        }
        end
    }

    /// Whether this read is for a question, and for which: then it is over.
    pub(super) fn read_back(&self, file: FileId, offset: u64, len: usize) -> Option<usize> {
        self.reader.open.iter().position(|open| {
            open.reading.as_ref().is_some_and(|r| (r.file, r.offset, r.len) == (file, offset, len))
        })
    }

    pub(super) fn on_read_back(
        &mut self,
        index: usize,
        (file, offset): (FileId, u64),
        buf: BlockBuf,
        result: io::Result<usize>,
    ) {
        self.reader.under_way -= 1;
        self.reader.open[index].reading = None;
        let before = self.reader.open[index].answer.items.len();
        match result {
            _ if before == self.reader.open[index].answer.messages.len() => {}
            // Copied forward meanwhile, and its file was removed.
            Err(_) if !self.lies_in(index, file) => {}
            Ok(read) => {
                self.counters.read_bytes += read as u64;
                self.take_records(index, file, offset, &buf.as_slice()[..read]);
                if self.reader.open[index].answer.items.len() == before {
                    // Its segment was used again meanwhile, or the disk has damaged it.
                    self.on_unread(index);
                }
            }
            Err(error) => self.on_disk_failed(index, &error.to_string()),
        }
        self.reader.spare.push(buf);
    }

    /// Takes the records of a question that stand in these bytes.
    fn take_records(&mut self, index: usize, file: FileId, offset: u64, bytes: &[u8]) {
        loop {
            let answer = &self.reader.open[index].answer;
            let Some(id) = answer.messages.get(answer.items.len()) else { return };
            let name = id.order();
            let Place::At(at) = self.fold.place_of(name) else { return };
            let Some((segment, start)) = self.locate(at) else { return };
            let end = start + u64::from(at.len);
            if self.segments[segment].file != file.0
                || start < offset
                || end > offset + bytes.len() as u64
            {
                return;
            }
            let record = &bytes[(start - offset) as usize..(end - offset) as usize];
            let Ok(body) = record::take(record, at.commit) else { return };
            let is_it = matches!(
                record::decode(body), Ok((_, Entry::Publish(publish))) if publish.message == name);
            if !is_it {
                return;
            }
            let open = &mut self.reader.open[index];
            open.answer.bytes.extend_from_slice(body);
            open.answer.items.push(Item::Body(body.len() as u32));
            (open.failures, open.wait) = (0, Duration::ZERO);
            self.counters.read_back += 1;
        }
    }

    /// What was read is not the next message of a question.
    fn on_unread(&mut self, index: usize) {
        self.counters.read_errors += 1;
        let open = &mut self.reader.open[index];
        open.failures += 1;
        if open.failures < JOURNAL_READ_TRIES_MAX {
            return;
        }
        let id = open.answer.messages[open.answer.items.len()];
        if let Place::At(at) = self.fold.place_of(id.order()) {
            self.give_up(index, at, "its checksum does not hold");
        }
    }

    /// The disk does not give the next message of a question: what was acknowledged is not given up
    /// for that.
    fn on_disk_failed(&mut self, index: usize, why: &str) {
        self.counters.read_errors += 1;
        let now = self.now().monotonic;
        let open = &mut self.reader.open[index];
        let wait = (open.wait * 2).clamp(JOURNAL_RETRY_FIRST, JOURNAL_RETRY_MAX);
        open.retry_at = Some(now + wait);
        let before = std::mem::replace(&mut open.wait, wait);
        let id = open.answer.messages[open.answer.items.len()];
        if before < wait
            && wait == JOURNAL_RETRY_MAX
            && let Place::At(at) = self.fold.place_of(id.order())
        {
            let text = format!(
                "{}: message {}/{} cannot be read, and is tried again until it can: {why}",
                self.describe(at),
                id.origin().index(),
                id.sequence()
            );
            self.trouble(text);
        }
        if !self.reader.open[index].answer.items.is_empty() {
            // The rest is asked for again, and waits.
            self.finish_question(index);
        }
    }

    /// Where a record lies, for people.
    fn describe(&self, at: At) -> String {
        match self.locate(at) {
            Some((segment, start)) => {
                format!("{:08}.journal: byte {start}", self.segments[segment].file)
            }
            None => format!("commit {}", at.commit),
        }
    }

    fn give_up(&mut self, index: usize, at: At, why: &str) {
        let open = &mut self.reader.open[index];
        let id = open.answer.messages[open.answer.items.len()];
        let place = self.describe(at);
        let open = &mut self.reader.open[index];
        open.answer.items.push(Item::Unreadable);
        open.failures = 0;
        self.counters.unreadable += 1;
        self.trouble(format!(
            "{place}: message {}/{} cannot be read and is lost: {why}",
            id.origin().index(),
            id.sequence()
        ));
    }

    /// Something to tell people.
    pub(super) fn trouble(&mut self, text: String) {
        if self.troubles.len() < JOURNAL_DAMAGE_REPORTED {
            self.troubles.push(text);
        }
    }

    /// What there is to tell people of what cannot be read, once each.
    pub fn take_troubles(&mut self) -> Vec<String> {
        std::mem::take(&mut self.troubles)
    }

    /// Opening a file for reading has failed: who waits for it tries again.
    pub(super) fn on_open_failed(&mut self, file: FileId, why: &str) {
        // From the last on: some are finished with it.
        for index in (0..self.reader.open.len()).rev() {
            if self.reader.open[index].reading.is_none() && self.lies_in(index, file) {
                self.on_disk_failed(index, why);
            }
        }
    }
}
