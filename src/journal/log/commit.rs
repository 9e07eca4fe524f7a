//! A commit: gathered, written, synced if one of its changes asks for it, and again if that fails.
//!
//! Invariant: it keeps its number and its bytes until it has succeeded.
#![forbid(unsafe_code)]

use super::{Log, Segment, Tail};
use crate::clock::Time;
use crate::ids::ShardId;
use crate::io::file::{BLOCK, BlockBuf, FileId, FileOp};
use crate::journal::segment::{FRAME_HEADER, Frame, Header, VERSION};
use crate::limits::{JOURNAL_COMMIT_BYTES_KEPT, JOURNAL_RETRY_FIRST, JOURNAL_RETRY_MAX};

/// A commit, gathering or under way.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) number: u64,
    /// A block for a segment's header, the frame's header, the records; then padding, once it is
    /// under way.
    pub(super) buf: BlockBuf,
    /// Where the records end in it; 0 while it gathers.
    end: usize,
    pub(super) records: u32,
    pub(super) place: u64,
    /// All numbers of sessions and groups that were given before it are below, and no other.
    numbers_from: u64,
    pub(super) sync: bool,
    /// Per origin, the number of the last change.
    pub(super) ends: Vec<(ShardId, u64)>,
    pub(super) live: i64,
}

/// Where records begin in a commit's buffer.
pub(super) const RECORDS_AT: usize = BLOCK + FRAME_HEADER;

impl Commit {
    pub(super) fn new(number: u64, place: u64, numbers_from: u64, mut buf: BlockBuf) -> Self {
        buf.clear(JOURNAL_COMMIT_BYTES_KEPT);
        buf.resize(RECORDS_AT);
        Self {
            number,
            buf,
            end: 0,
            records: 0,
            place,
            numbers_from,
            sync: false,
            ends: Vec::new(),
            live: 0,
        }
    }

    /// One that was read, to be written again.
    pub(super) fn again(tail: Tail) -> Self {
        let Tail { number, place, numbers_from, .. } = tail;
        let mut commit = Self::new(number, place, numbers_from, BlockBuf::default());
        commit.buf.append(tail.records.len(), |out| out.extend_from_slice(&tail.records));
        (commit.records, commit.live, commit.sync) = (tail.count, tail.live, true);
        commit.close()
    }

    /// It has the changes of this shard up to this one.
    pub(super) fn reach(&mut self, origin: ShardId, number: u64) {
        match self.ends.iter_mut().find(|(other, _)| *other == origin) {
            Some((_, last)) => *last = number,
            None => self.ends.push((origin, number)),
        }
    }

    /// No more comes: fills up the last block.
    pub(super) fn close(mut self) -> Self {
        self.end = self.buf.len();
        self.buf.pad();
        self
    }

    pub(super) fn span(&self) -> u64 {
        self.buf.len() as u64 - BLOCK as u64
    }
}

#[derive(Debug)]
pub(super) enum Flight {
    Idle,
    /// Waits for a segment, or to be tried again.
    Ready(Commit),
    /// Its buffer is with the backend.
    Writing {
        commit: Commit,
        file: FileId,
        offset: u64,
        oldest: u64,
        started: Time,
    },
    /// It is written; earlier writes of these files are to be on disk too.
    Syncing {
        commit: Commit,
        offset: u64,
        oldest: u64,
        files: Vec<FileId>,
        asked: bool,
        started: Time,
    },
}

impl Flight {
    /// The commit under way.
    pub(super) const fn commit(&self) -> Option<&Commit> {
        match self {
            Self::Idle => None,
            Self::Ready(commit) | Self::Writing { commit, .. } | Self::Syncing { commit, .. } => {
                Some(commit)
            }
        }
    }

    /// The same, to be changed.
    pub(super) const fn commit_mut(&mut self) -> Option<&mut Commit> {
        match self {
            Self::Idle => None,
            Self::Ready(commit) | Self::Writing { commit, .. } | Self::Syncing { commit, .. } => {
                Some(commit)
            }
        }
    }
}

impl Log {
    pub(super) fn commit_op(&mut self) -> Option<FileOp> {
        if let Flight::Syncing { files, asked, .. } = &mut self.flight {
            if *asked {
                return None;
            }
            *asked = true;
            return Some(FileOp::Sync { file: *files.last()? });
        }
        let now = self.clocks.monotonic;
        if !matches!(self.flight, Flight::Ready(_)) {
            return None;
        }
        if self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        // From here on it waits for a segment at most: the host is not to ask all the time.
        self.retry_at = None;
        let Flight::Ready(commit) = &self.flight else { return None };
        let span = commit.span();
        let has_room = |segment: &Segment| segment.used + span <= segment.bytes;
        if (self.is_sealed || !self.segments.back().is_some_and(has_room)) && !self.begin_segment()
        {
            return None;
        }
        self.write_op(now)
    }

    /// Takes the spare as the next segment; false without one.
    fn begin_segment(&mut self) -> bool {
        let Flight::Ready(commit) = &self.flight else { return false };
        let needed = BLOCK as u64 + commit.span();
        let Some((file, bytes)) = self.preparing.take_spare(needed) else { return false };
        if let Some(full) = self.segments.back().filter(|_| !self.is_sealed) {
            self.segment_bytes = self.segment_bytes.max(full.bytes * 2);
        }
        self.last_segment += 1;
        self.total_bytes += bytes;
        self.segments.push_back(Segment {
            sequence: self.last_segment,
            file,
            bytes,
            used: 0,
            first_commit: commit.number,
            offsets: Vec::new(),
            live: 0,
            is_open: true,
            is_opening: false,
            last_read: 0,
        });
        (self.is_sealed, self.may_close) = (false, true);
        true
    }

    fn write_op(&mut self, now: Time) -> Option<FileOp> {
        let Flight::Ready(mut commit) = std::mem::replace(&mut self.flight, Flight::Idle) else {
            return None;
        };
        let oldest = self.oldest();
        let segment = self.segments.back()?;
        let is_first = segment.used == 0;
        let offset = if is_first { 0 } else { segment.used };
        let frame = Frame {
            segment: segment.sequence,
            commit: commit.number,
            oldest,
            place: commit.place,
            len: u32::try_from(commit.end - RECORDS_AT).expect("invariant: closed in time"),
            records: commit.records,
        };
        let mut buf = std::mem::take(&mut commit.buf);
        frame.encode(&mut buf.as_mut_slice()[BLOCK..]);
        if is_first {
            let header = Header {
                version: VERSION,
                sequence: segment.sequence,
                placement: self.options.placement,
                created_ms: self.clocks.unix_ms,
                first_commit: commit.number,
                last_sequence: self.fold.last_sequence(),
                next_number: commit.numbers_from,
            };
            header.encode(buf.as_mut_slice());
        }
        let file = FileId(segment.file);
        let sync = commit.sync;
        let from = if is_first { 0 } else { BLOCK };
        self.flight = Flight::Writing { commit, file, offset, oldest, started: now };
        Some(FileOp::Write { file, offset, buf, from, sync })
    }

    pub(super) fn is_commit(&self, of: FileId, at: u64) -> bool {
        matches!(self.flight, Flight::Writing { file, offset, .. } if (file, offset) == (of, at))
    }

    pub(super) fn is_commit_sync(&self, of: FileId) -> bool {
        match &self.flight {
            Flight::Syncing { files, asked: true, .. } => files.last() == Some(&of),
            _ => false,
        }
    }

    pub(super) fn on_written(&mut self, buf: BlockBuf, is_ok: bool) {
        let flight = std::mem::replace(&mut self.flight, Flight::Idle);
        let Flight::Writing { mut commit, file, offset, oldest, started } = flight else { return };
        commit.buf = buf;
        if !is_ok {
            return self.on_commit_failed(commit);
        }
        if commit.sync && !self.unsynced.is_empty() {
            let files = self.unsynced.clone();
            self.flight = Flight::Syncing { commit, offset, oldest, files, asked: false, started };
            return;
        }
        if !commit.sync && !self.unsynced.contains(&file) {
            self.unsynced.push(file);
        }
        self.on_committed(commit, offset, oldest, started);
    }

    pub(super) fn on_synced(&mut self, is_ok: bool) {
        let flight = std::mem::replace(&mut self.flight, Flight::Idle);
        let Flight::Syncing { commit, offset, oldest, mut files, started, .. } = flight else {
            return;
        };
        if !is_ok {
            return self.on_commit_failed(commit);
        }
        let file = files.pop();
        self.unsynced.retain(|unsynced| Some(*unsynced) != file);
        self.may_close = true;
        if files.is_empty() {
            return self.on_committed(commit, offset, oldest, started);
        }
        self.flight = Flight::Syncing { commit, offset, oldest, files, asked: false, started };
    }

    fn on_committed(&mut self, mut commit: Commit, offset: u64, oldest: u64, started: Time) {
        let Some(segment) = self.segments.back_mut() else { return };
        let is_first = segment.used == 0;
        let begins = if is_first { BLOCK as u64 } else { offset };
        let span = commit.buf.len() as u64 - BLOCK as u64;
        segment.used = begins + span;
        segment.offsets.push((begins / BLOCK as u64) as u32);
        segment.live += commit.live;
        self.total_live += commit.live;
        self.counters.commits += 1;
        self.counters.records += u64::from(commit.records);
        self.counters.bytes += span + if is_first { BLOCK as u64 } else { 0 };
        self.slowest = self.slowest.max(self.clocks.monotonic.since(started));
        for (origin, last) in &commit.ends {
            self.committed[origin.index()] = *last;
        }
        self.last_committed = commit.number;
        self.spare_buf = std::mem::take(&mut commit.buf);
        (self.down, self.retry_at, self.retry_after) = (false, None, JOURNAL_RETRY_FIRST);
        if commit.sync {
            self.free_before(oldest);
        }
    }

    /// Nothing behind the last commit is believed; this one goes elsewhere.
    fn on_commit_failed(&mut self, commit: Commit) {
        self.counters.rewritten += 1;
        // A segment that has no commit yet is written from its beginning: nothing of it was
        // believed before.
        self.is_sealed = self.segments.back().is_some_and(|segment| segment.used > 0);
        self.flight = Flight::Ready(commit);
        self.go_down();
        self.retry_at = Some(self.clocks.monotonic + self.retry_after);
        self.retry_after = (self.retry_after * 2).min(JOURNAL_RETRY_MAX);
    }

    pub(super) fn go_down(&mut self) {
        self.counters.downs += u64::from(!self.down);
        self.down = true;
    }
}
