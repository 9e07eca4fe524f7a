//! The journal while it runs: what is to be written next, and what is committed.
//!
//! Without input or output of its own: the host hands it changes ([`Log::append`]), does the file
//! operations that it asks for ([`Log::next_op`]), and says how they ended ([`Log::handle_done`]).
//! Exactly one commit is under way; everything that comes meanwhile gathers for the next, and for those
//! behind it when that has [`JOURNAL_COMMIT_BYTES`]. A commit is one write of a frame
//! ([`super::segment`]), synced if one of its changes asks for it.
//!
//! *Errors.* A commit that fails is written again, whole and under its number, into another segment:
//! of what stood in the file behind the last commit that succeeded nothing is believed, and nothing
//! there is written to again. Until a commit succeeds the log is down ([`Log::is_down`]); it tries
//! again by itself, at growing intervals. What was gathered is kept.
//!
//! *Segments* are prepared ahead: one spare is zeroed and synced, its name too, while the last is
//! filled. `reclaim` frees them.
//!
//! Invariants: at most one commit is under way; `committed` never runs ahead of a completed write
//! and what syncs it; no record begins beyond [`JOURNAL_COMMIT_BYTES`] of a commit. The memory of
//! gathered changes is bounded by who brings them: publishers wait while those of their shard that
//! are not committed have [`CHANGES_OPEN_BYTES`](crate::limits::CHANGES_OPEN_BYTES).
#![forbid(unsafe_code)]

mod commit;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use self::commit::{Commit, Flight, RECORDS_AT};
use super::fold::{At, Counts, Fold};
use super::prepare::Preparing;
use super::read::Reader;
use super::reclaim::Cleaner;
use super::record::{self, Batch, Clocks, Entry};
use super::wire::Numbers;
use crate::broker::{Change, Level};
use crate::clock::Time;
use crate::ids::ShardId;
use crate::io::file::{BLOCK, BlockBuf, FileDone, FileId, FileOp};
use crate::limits::{
    JOURNAL_COMMIT_BYTES, JOURNAL_ENDED_PER_RECORD, JOURNAL_ENDING_STEP, JOURNAL_RETRY_FIRST,
    JOURNAL_UNSYNCED_MAX, SHARDS_MAX,
};

/// What a log is made with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The journal's directory.
    pub folder: PathBuf,
    /// The key of the data directory.
    pub placement: u64,
    /// Size of the first segment; later ones double up to the other size.
    pub segment_bytes_first: u64,
    /// Size of a segment at most, unless a record is larger.
    pub segment_bytes_max: u64,
    /// Its files are opened for direct access: a write goes to the device, and no page cache lies
    /// between. Without, it goes to the page cache, which survives the process and not the power; a
    /// commit that is synced, as it is before a segment's file is used again, waits for all of it.
    pub direct: bool,
}

/// Where a log goes on from.
#[derive(Debug, Default)]
pub struct Resume {
    /// What is needed of what is on disk, oldest first.
    pub segments: Vec<Segment>,
    /// Files that may be used: number and size.
    pub spares: Vec<(u32, u64)>,
    /// Files that are of no use.
    pub useless: Vec<u32>,
    /// The greatest number of a file.
    pub last_file: u32,
    /// The greatest sequence number of a segment, whatever became of it.
    pub last_segment: u64,
    /// The number of the last commit.
    pub last_commit: u64,
    /// The place of the next record.
    pub place: u64,
    /// The last commit, to be written again: nobody knows whether it is on disk.
    pub tail: Option<Tail>,
}

/// A commit that was read.
#[derive(Debug)]
pub struct Tail {
    /// Its number.
    pub number: u64,
    /// Of its first record.
    pub place: u64,
    /// All numbers of sessions and groups that were given before it are below, and no other.
    pub numbers_from: u64,
    /// How many records it has.
    pub count: u32,
    /// Their bytes.
    pub records: Vec<u8>,
    /// Bytes of those that are needed.
    pub live: i64,
}

/// A segment that is needed.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its place among all.
    pub sequence: u64,
    /// Its file's number.
    pub file: u32,
    /// Its size.
    pub bytes: u64,
    /// Behind the last commit.
    pub used: u64,
    /// The number of the commit that `offsets` begins with.
    pub first_commit: u64,
    /// The block at which each commit begins; [`Segment::LOST`] for one that is not there.
    pub offsets: Vec<u32>,
    /// Bytes of records that are needed.
    pub live: i64,
    /// The backend has it open.
    pub is_open: bool,
    /// It is being opened, or closed.
    pub is_opening: bool,
    /// Ascends with the last read for a queue.
    pub last_read: u64,
}

impl Segment {
    /// No block.
    pub const LOST: u32 = u32::MAX;

    /// Where a commit begins in it.
    pub fn offset_of(&self, commit: u64) -> Option<u64> {
        let index = usize::try_from(commit.checked_sub(self.first_commit)?).ok()?;
        let block = self.offsets.get(index).filter(|block| **block != Self::LOST)?;
        Some(u64::from(*block) * BLOCK as u64)
    }
}

/// What a log counts. Plain integers; each only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LogCounters {
    /// Commits.
    pub commits: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes written in them, headers and padding included.
    pub bytes: u64,
    /// Commits, and operations that prepare segments, that failed.
    pub errors: u64,
    /// Commits that had to be written again.
    pub rewritten: u64,
    /// Times that nothing could be committed any more.
    pub downs: u64,
    /// Segments that were made.
    pub segments_made: u64,
    /// Segments that were used again.
    pub segments_recycled: u64,
    /// Segments whose file was removed.
    pub segments_removed: u64,
    /// Segments that were freed by copying what was needed of them.
    pub segments_cleaned: u64,
    /// Records copied for that.
    pub copied: u64,
    /// Bytes of those.
    pub copied_bytes: u64,
    /// Bytes of needed records that could not be read when their segment was freed.
    pub lost_bytes: u64,
    /// Reads of segments that are to be freed that failed, or had not all that is needed; they are
    /// tried again.
    pub clean_errors: u64,
    /// Files that could not be removed.
    pub remove_errors: u64,
    /// Reads for messages that queues have left to the journal.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Messages read so.
    pub read_back: u64,
    /// Such reads that have failed; they are tried again.
    pub read_errors: u64,
    /// Messages that could not be read, and are lost.
    pub unreadable: u64,
    /// Records of sessions that are not there; they change nothing.
    pub strangers: u64,
    /// Receivers of messages that are not there any more.
    pub unknown_receivers: u64,
    /// Ends of deliveries that came before their message and were too many to be remembered: it is
    /// sent again after the next start.
    pub early_forgotten: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Log {
    pub(super) options: Options,
    pub(super) fold: Fold,
    gather: Commit,
    /// Gathered before it, in order: closed because they were large.
    queue: VecDeque<Commit>,
    /// Bytes from which on a commit is closed.
    commit_bytes: usize,
    flight: Flight,
    /// What was read of the last commit, until it is written again.
    tail: Option<Commit>,
    spare_buf: BlockBuf,
    committed: Vec<u64>,
    last_committed: u64,
    /// The last is being filled unless it is sealed.
    pub(super) segments: VecDeque<Segment>,
    is_sealed: bool,
    /// Size of the next segment: twice that of the largest that was filled since the start. One that
    /// was left for another reason (a failed write) says nothing of how much there is to write, and
    /// neither does a run before: each start would leave a large one that is nearly empty.
    segment_bytes: u64,
    last_segment: u64,
    pub(super) preparing: Preparing,
    pub(super) cleaner: Cleaner,
    pub(super) reader: Reader,
    /// There may be more segments open than there should be.
    pub(super) may_close: bool,
    /// What is to be said to people.
    pub(super) troubles: Vec<String>,
    /// Bytes of the segments' files, and of the records in them that are needed.
    pub(super) total_bytes: u64,
    pub(super) total_live: i64,
    /// Files with commits that were not synced.
    pub(super) unsynced: Vec<FileId>,
    down: bool,
    retry_at: Option<Time>,
    retry_after: Duration,
    clocks: Clocks,
    scratch: Vec<u8>,
    numbers: Vec<u8>,
    lists: Vec<u8>,
    pub(super) counters: LogCounters,
    /// Longest time that a commit took.
    slowest: Duration,
    last_error: Option<String>,
}

impl Log {
    /// A log that goes on behind what `resume` names, with the fold over it.
    pub fn new(options: Options, fold: Fold, resume: Resume) -> Self {
        let total_bytes = resume.segments.iter().map(|segment| segment.bytes).sum();
        let total_live = resume.segments.iter().map(|segment| segment.live).sum();
        let preparing = Preparing::new(&resume);
        Self {
            gather: Commit::new(
                resume.last_commit + 1,
                resume.place,
                fold.next_number(),
                BlockBuf::default(),
            ),
            fold,
            queue: VecDeque::new(),
            commit_bytes: JOURNAL_COMMIT_BYTES,
            flight: Flight::Idle,
            tail: resume.tail.map(Commit::again),
            spare_buf: BlockBuf::default(),
            committed: vec![0; SHARDS_MAX],
            last_committed: resume.last_commit,
            segment_bytes: 0,
            segments: resume.segments.into(),
            total_bytes,
            total_live,
            // It goes on in a segment of its own: behind the last commit may stand what was torn.
            is_sealed: true,
            last_segment: resume.last_segment,
            preparing,
            cleaner: Cleaner::new(resume.useless),
            reader: Reader::default(),
            may_close: false,
            troubles: Vec::new(),
            unsynced: Vec::new(),
            down: false,
            retry_at: None,
            retry_after: JOURNAL_RETRY_FIRST,
            clocks: Clocks::default(),
            scratch: Vec::new(),
            numbers: Vec::new(),
            lists: Vec::new(),
            counters: LogCounters::default(),
            slowest: Duration::ZERO,
            last_error: None,
            options,
        }
    }

    /// Takes the changes of a shard, in order.
    pub fn append(&mut self, origin: ShardId, batch: &Batch) {
        if batch.is_empty() {
            return;
        }
        // Of a batch in several commits the last says how far it goes.
        self.gather.sync |= batch.sync;
        for (body, entry) in batch.entries() {
            self.take(origin, &entry, Some(body));
        }
        self.gather.sync |= batch.sync;
        self.gather.reach(origin, batch.last());
        self.account();
    }

    /// Takes the next change of the shard that the log is on: it does not travel, and is written
    /// where it is to stand.
    pub fn append_own(&mut self, origin: ShardId, change: &Change, clocks: Clocks) {
        let mut lists = std::mem::take(&mut self.lists);
        self.take(origin, &Entry::of(&change.record, clocks, &mut lists), None);
        self.lists = lists;
        self.gather.sync |= change.level == Level::Power;
        self.gather.reach(origin, change.number);
    }

    /// The number of this shard's last change that is committed.
    pub fn committed(&self, origin: ShardId) -> u64 {
        self.committed[origin.index()]
    }

    /// Whether nothing can be committed for now: what would need it is to be refused
    /// (SHARDS.md J8).
    pub const fn is_down(&self) -> bool {
        self.down
    }

    /// Lets commits be closed earlier.
    #[cfg(test)]
    pub(crate) const fn set_commit_bytes(&mut self, bytes: usize) {
        self.commit_bytes = bytes;
    }

    /// Whether everything that was brought is committed, and at the start the last commit that was
    /// read: before that, nothing that was recovered may be answered for.
    pub fn is_idle(&self) -> bool {
        let is_gathered = self.gather.records > 0 || !self.queue.is_empty();
        matches!(self.flight, Flight::Idle) && !is_gathered && self.tail.is_none()
    }

    /// When [`Log::next_op`] should be asked again although nothing has happened.
    pub fn deadline(&self) -> Option<Time> {
        let waits = matches!(self.flight, Flight::Ready(_));
        let retry = self.retry_at.filter(|_| waits);
        let now = self.has_work().then_some(self.clocks.monotonic);
        let read = self.reader.deadline();
        let clean = self.cleaner.retry_at();
        [retry, read, clean, self.preparing.retry_at(), now].into_iter().flatten().min()
    }

    /// What it has counted.
    pub const fn counters(&self) -> LogCounters {
        let Counts { strangers, unknown_receivers, early_forgotten } = self.fold.counts;
        LogCounters { strangers, unknown_receivers, early_forgotten, ..self.counters }
    }

    /// The longest that a commit took.
    pub const fn slowest(&self) -> Duration {
        self.slowest
    }

    /// The durable state with all that was brought.
    pub const fn fold(&self) -> &Fold {
        &self.fold
    }

    /// Why the last operation failed that keeps commits from the disk, with the file.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Bytes of all files.
    pub fn disk_bytes(&self) -> u64 {
        self.total_bytes + self.preparing.spare_bytes() + self.cleaner.freed_bytes()
    }

    /// Bytes of records that are needed.
    pub fn live_bytes(&self) -> u64 {
        let tail = self.tail.as_ref().map_or(0, |tail| tail.live);
        let under_way = self.flight.commit().map_or(0, |commit| commit.live);
        let queued: i64 = self.queue.iter().map(|commit| commit.live).sum();
        (self.total_live + self.gather.live + queued + under_way + tail).max(0) as u64
    }

    /// Sets the clocks: before changes and operations of a turn.
    pub const fn set_clocks(&mut self, clocks: Clocks) {
        self.clocks = clocks;
    }

    pub(super) const fn now(&self) -> Clocks {
        self.clocks
    }

    /// The segments, for a failing test.
    #[cfg(test)]
    pub(crate) fn books(&self) -> String {
        let mut text = format!("committed {}\n{}", self.last_committed, self.fold.orphans());
        for s in &self.segments {
            text += &format!(
                "segment {} file {} first {} commits {} used {} live {}\n",
                s.sequence,
                s.file,
                s.first_commit,
                s.offsets.len(),
                s.used,
                s.live
            );
        }
        text
    }

    /// Whether the books about what is live are right: what is wrong, if anything.
    #[cfg(test)]
    pub(crate) fn wrong_books(&self) -> Option<String> {
        let mut live = std::collections::BTreeMap::<u64, i64>::new();
        for at in self.fold.live_records() {
            let index = self.segments.partition_point(|s| s.first_commit <= at.commit);
            let is_placed = self.is_written(at.commit);
            let key = match index.checked_sub(1) {
                _ if !is_placed => u64::MAX,
                Some(index) => self.segments[index].sequence,
                None => return Some(format!("{at:?} is live and its segment is gone")),
            };
            *live.entry(key).or_default() += i64::from(at.len);
        }
        for segment in &self.segments {
            let expected = live.get(&segment.sequence).copied().unwrap_or(0);
            if segment.live != expected {
                return Some(format!("{expected} bytes are live in {segment:?}"));
            }
        }
        let bytes: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
        let live: i64 = self.segments.iter().map(|segment| segment.live).sum();
        if (bytes, live) != (self.total_bytes, self.total_live) {
            return Some(format!("sums are {} and {}", self.total_bytes, self.total_live));
        }
        (self.counters.lost_bytes > 0).then(|| "something was given up".to_owned())
    }

    // ---- gathering ----

    /// Takes one record: adds to it what the host knows. It is encoded already, in `body`, or is to
    /// be.
    fn take(&mut self, origin: ShardId, entry: &Entry<'_>, body: Option<&[u8]>) {
        let write = |out: &mut Vec<u8>| match body {
            Some(body) => out.extend_from_slice(body),
            None => record::encode(out, origin, entry),
        };
        let len = body.map_or_else(|| record::len_hint(entry), <[u8]>::len);
        match *entry {
            Entry::Publish(ref publish) => {
                self.fold.resolve(publish);
                let mut receivers = std::mem::take(&mut self.scratch);
                receivers.clear();
                self.fold.put_receivers(&mut receivers);
                let at = self.write(len + receivers.len(), |out| {
                    write(out);
                    out.extend_from_slice(&receivers);
                });
                self.scratch = receivers;
                self.fold.publish(at, publish);
            }
            Entry::Session { client_id, expiry_secs, offline_since, .. } => {
                let number = self.fold.number_of(client_id);
                self.put(origin, &Entry::Session { client_id, expiry_secs, offline_since, number });
            }
            Entry::Subscribe { filter, options, .. } => {
                if let Some((group, number)) = self.fold.new_group(filter, options) {
                    self.put(origin, &Entry::Group { group, number });
                }
                let at = self.write(len, write);
                self.fold.apply(at, entry);
            }
            Entry::Unsubscribe { client_id, filter, seen } => {
                let ended = self.fold.ended_by_unsubscribe(client_id, filter, seen);
                self.put(origin, entry);
                let mut numbers = std::mem::take(&mut self.numbers);
                for some in ended.chunks(JOURNAL_ENDED_PER_RECORD) {
                    numbers.clear();
                    let messages = Numbers::write(some.iter().copied(), &mut numbers);
                    self.put(origin, &Entry::Ended { client_id, messages });
                }
                self.numbers = numbers;
            }
            _ => {
                let at = self.write(len, write);
                self.fold.apply(at, entry);
            }
        }
    }

    /// Writes an entry of the host's own.
    pub(super) fn put(&mut self, origin: ShardId, entry: &Entry<'_>) -> At {
        let at = self.write(256, |out| record::encode(out, origin, entry));
        self.fold.apply(at, entry);
        at
    }

    /// The same of one whose body is written already.
    pub(super) fn put_encoded(&mut self, body: &[u8]) {
        let (_, entry) = record::decode(body).expect("invariant: it was encoded here");
        let at = self.write(body.len(), |out| out.extend_from_slice(body));
        self.fold.apply(at, &entry);
    }

    /// What gathers is synced, whatever it is from the shards.
    pub(super) const fn sync_gathered(&mut self) {
        self.gather.sync = true;
    }

    /// Appends a record to what gathers: where it will lie.
    fn write(&mut self, len: usize, body: impl FnOnce(&mut Vec<u8>)) -> At {
        if self.gather.records > 0 && self.gather.buf.len() >= self.commit_bytes {
            self.close_gather();
        }
        let Commit { number, buf, records, .. } = &mut self.gather;
        let start = buf.len();
        let room = record::RECORD_HEADER + len;
        buf.append(room, |out| record::put(out, *number, body));
        *records += 1;
        let short = |len: usize| u32::try_from(len).expect("invariant: a record, behind few bytes");
        At { commit: *number, offset: short(start - RECORDS_AT), len: short(buf.len() - start) }
    }

    /// What has gathered is a commit.
    fn close_gather(&mut self) {
        let number = self.gather.number + 1;
        let place = self.gather.place.wrapping_add(u64::from(self.gather.records));
        let buf = std::mem::take(&mut self.spare_buf);
        let next = Commit::new(number, place, self.fold.next_number(), buf);
        self.queue.push_back(std::mem::replace(&mut self.gather, next).close());
    }

    /// A commit that waits behind the one under way.
    fn queued(&mut self, commit: u64) -> Option<&mut Commit> {
        let index = commit.checked_sub(self.queue.front()?.number)?;
        self.queue.get_mut(usize::try_from(index).ok()?)
    }

    /// Books what became live, or ceased to be.
    pub(super) fn account(&mut self) {
        let mut live = std::mem::take(&mut self.fold.live);
        for (commit, bytes) in live.drain(..) {
            if commit == self.gather.number {
                self.gather.live += bytes;
            } else if let Some(tail) = self.tail.as_mut().filter(|tail| tail.number == commit) {
                tail.live += bytes;
            } else if let Some(c) = self.flight.commit_mut()
                && c.number == commit
            {
                c.live += bytes;
            } else if let Some(c) = self.queued(commit) {
                c.live += bytes;
            } else if let Some(segment) = self.segment_of(commit) {
                segment.live += bytes;
                self.total_live += bytes;
            }
        }
        self.fold.live = live;
    }

    fn segment_of(&mut self, commit: u64) -> Option<&mut Segment> {
        let behind = self.segments.partition_point(|segment| segment.first_commit <= commit);
        // Segments without a commit begin with the same number as the next.
        let index = behind.checked_sub(1)?;
        self.segments.get_mut(index)
    }

    /// The number of the last commit that has a record, or will.
    pub(super) fn last_gathered(&self) -> u64 {
        if self.gather.records > 0 { self.gather.number } else { self.gather.number - 1 }
    }

    /// Whether a commit can be read: it is on disk, and where is known.
    pub(super) fn is_written(&self, commit: u64) -> bool {
        let is_pending = self.flight.commit().is_some_and(|c| c.number == commit);
        commit <= self.last_committed
            && !is_pending
            && self.tail.as_ref().is_none_or(|tail| tail.number != commit)
    }

    pub(super) fn is_unsynced(&self, file: FileId) -> bool {
        self.unsynced.contains(&file)
    }

    /// Whether an operation is a commit's or prepares a segment: not one that reads or frees.
    fn keeps_from_writing(&self, op: &FileOp) -> bool {
        match op {
            FileOp::Open { file, .. } => self.preparing.is_at(*file),
            FileOp::Write { .. } | FileOp::Sync { .. } | FileOp::SyncDir { .. } => true,
            FileOp::Read { .. } | FileOp::Close { .. } | FileOp::Remove { .. } => false,
        }
    }

    pub(super) const fn last_committed(&self) -> u64 {
        self.last_committed
    }

    /// Bytes that wait to be committed, beyond the commit under way.
    pub fn gathered_bytes(&self) -> usize {
        self.gather.buf.len() + self.queue.iter().map(|commit| commit.buf.len()).sum::<usize>()
    }

    // ---- operations ----

    /// The next operation to do, if there is one; ask until there is none.
    pub fn next_op(&mut self) -> Option<FileOp> {
        self.fold.take_apart(JOURNAL_ENDING_STEP);
        self.account();
        self.reclaim();
        if let Some(tail) = self.tail.take() {
            self.flight = Flight::Ready(tail);
        }
        if matches!(self.flight, Flight::Idle) && self.queue.is_empty() && self.gather.records > 0 {
            self.close_gather();
        }
        if matches!(self.flight, Flight::Idle)
            && let Some(mut commit) = self.queue.pop_front()
        {
            // Files are used again when it is on disk, not before, that they are not needed.
            commit.sync |= self.cleaner.freed_bytes() > 0;
            commit.sync |= self.unsynced.len() >= JOURNAL_UNSYNCED_MAX;
            self.flight = Flight::Ready(commit);
        }
        let op = self.commit_op().or_else(|| self.reader_op()).or_else(|| self.cleaner_op());
        op.or_else(|| self.close_excess()).or_else(|| {
            let wants_segment = matches!(self.flight, Flight::Ready(_))
                || self.segments.back().is_some_and(|s| s.used > 0);
            let size = self.next_segment_bytes();
            self.preparing.next_op(&self.options, self.clocks.monotonic, wants_segment, size)
        })
    }

    fn next_segment_bytes(&self) -> u64 {
        let needed = match &self.flight {
            Flight::Ready(commit) => BLOCK as u64 + commit.span(),
            _ => 0,
        };
        self.segment_bytes
            .clamp(self.options.segment_bytes_first, self.options.segment_bytes_max)
            .max(needed)
    }

    /// An operation is over.
    pub fn handle_done(&mut self, done: FileDone) {
        if let Err(error) = &done.result
            && self.keeps_from_writing(&done.op)
        {
            self.counters.errors += 1;
            self.last_error =
                Some(format!("cannot {} {}: {error}", done.op.verb(), name(&done.op)));
        }
        match done.op {
            FileOp::Write { file, offset, buf, .. } if self.is_commit(file, offset) => {
                self.on_written(buf, done.result.is_ok());
            }
            FileOp::Sync { file } if self.is_commit_sync(file) => {
                self.on_synced(done.result.is_ok());
            }
            FileOp::Read { file, offset, buf } => match self.read_back(file, offset, buf.len()) {
                Some(index) => self.on_read_back(index, (file, offset), buf, done.result),
                None => self.on_read(buf, done.result),
            },
            FileOp::Remove { .. } => {
                self.counters.segments_removed += u64::from(done.result.is_ok());
                self.counters.remove_errors += u64::from(done.result.is_err());
                self.on_removed();
            }
            FileOp::Close { file } => self.on_closed(file),
            FileOp::Open { file, .. } if !self.preparing.is_at(file) => {
                self.on_opened(file, &done.result);
            }
            op => {
                let made = self.preparing.on_done(op, done.result.is_ok(), self.clocks.monotonic);
                self.counters.segments_made += u64::from(made);
                if self.preparing.retry_at().is_some() && matches!(self.flight, Flight::Ready(_)) {
                    self.go_down();
                }
            }
        }
    }
}

/// Which file or directory.
fn name(op: &FileOp) -> String {
    match op {
        FileOp::Open { path, .. } | FileOp::SyncDir { path } | FileOp::Remove { path, .. } => {
            path.display().to_string()
        }
        FileOp::Write { file, offset, .. } | FileOp::Read { file, offset, .. } => {
            format!("{:08}.journal at byte {offset}", file.0)
        }
        FileOp::Sync { file } | FileOp::Close { file } => format!("{:08}.journal", file.0),
    }
}
