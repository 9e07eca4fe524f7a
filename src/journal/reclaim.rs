//! Segments become free (SHARDS.md J10).
//!
//! The oldest segment is free when nothing in it is needed any more: what ended it is committed,
//! and so are the copies of what was still needed. Then commits say that it is no longer the
//! oldest, and when one that says so is on disk, its file is used again.
//!
//! While more than [`JOURNAL_DISK_FACTOR`] times what is needed, and some segments, is on disk, the
//! oldest is read, a piece at a time, and what of it is needed is appended again: between the
//! commits of the shards, never ahead of them, so many bytes in a turn.
//!
//! What cannot be read stays: a disk that says so is asked again at growing intervals, for ever. What
//! reads as something else is read again some times, the whole segment; then it is lost, and people
//! are told where.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use super::fold::At;
use super::log::{Log, Segment};
use super::record::{self, Entry};
use super::segment::{FRAME_HEADER, Frame};
use super::wire::Reader;
use crate::clock::Time;
use crate::io::file::{BLOCK, BlockBuf, FileId, FileOp};
use crate::limits::{
    JOURNAL_CLEAN_BYTES, JOURNAL_COMMIT_BYTES, JOURNAL_DISK_FACTOR, JOURNAL_DISK_SEGMENTS,
    JOURNAL_READ_TRIES_MAX, JOURNAL_RETRY_FIRST, JOURNAL_RETRY_MAX, JOURNAL_SPARES_MAX,
};

/// The segment that is being emptied, and those that are free.
#[derive(Debug, Default)]
pub(super) struct Cleaner {
    /// Its sequence number.
    segment: Option<u64>,
    /// The commit that is read next.
    commit: u64,
    reading: bool,
    /// Whole frames, and where in it the next one begins.
    chunk: BlockBuf,
    filled: usize,
    at: usize,
    /// The rest of a frame: its header, how far it is done.
    frame: Option<(Frame, usize)>,
    /// Times that it was read to its end and something needed was not there.
    failures: u32,
    /// The first place in it at which something else stood, this time.
    bad: Option<u64>,
    /// Where in the file the chunk begins.
    chunk_at: u64,
    /// The segments up to this one are gone through now, each once.
    round: Option<u64>,
    /// What the last round has left, in bytes that nothing needs: more than that has to be there for
    /// another, or the same records would be moved on for ever.
    left: u64,
    /// The oldest is free when this commit is on disk.
    free_after: Option<(u64, u64)>,
    /// Free, until a commit on disk says so.
    freed: VecDeque<Segment>,
    /// Files to be removed, and whether they are open.
    remove: Vec<(u32, bool)>,
    /// One is being removed: whether it is open.
    removing: Option<bool>,
    /// Where the read under way has begun.
    reading_from: u64,
    /// When it is tried again, after a failure.
    retry_at: Option<Time>,
    /// The last of these waits.
    wait: Duration,
    /// Bodies of copies, one behind the other, and where each ends.
    copies: Vec<u8>,
    ends: Vec<usize>,
}

impl Cleaner {
    pub(super) fn new(useless: Vec<u32>) -> Self {
        let remove = useless.into_iter().map(|file| (file, false)).collect();
        Self { remove, ..Self::default() }
    }

    /// When what has failed is tried again.
    pub(super) const fn retry_at(&self) -> Option<Time> {
        self.retry_at
    }

    /// Segments that are free and still open.
    pub(super) fn freed_open(&self) -> usize {
        let freed = self.freed.iter().filter(|segment| segment.is_open || segment.is_opening);
        let remove = self.remove.iter().filter(|(_, is_open)| *is_open);
        freed.count() + remove.count() + usize::from(self.removing == Some(true))
    }

    /// The segments that are free and not yet used again.
    pub(super) const fn freed(&mut self) -> &mut VecDeque<Segment> {
        &mut self.freed
    }

    pub(super) fn freed_bytes(&self) -> u64 {
        self.freed.iter().map(|segment| segment.bytes).sum()
    }
}

impl Log {
    /// Whether there is more to do in the next turn, whatever happens.
    pub(crate) fn has_work(&self) -> bool {
        let has_room = self.gathered_bytes() < JOURNAL_COMMIT_BYTES / 2;
        (self.cleaner.at < self.cleaner.filled && has_room) || self.fold.is_ending()
    }

    /// The oldest segment that is needed.
    pub(super) fn oldest(&self) -> u64 {
        self.segments.front().map_or(0, |segment| segment.sequence)
    }

    /// Frees what nothing is needed of, and goes on with emptying the oldest. Some work each turn.
    pub(super) fn reclaim(&mut self) {
        self.clean_some();
        // The last is being filled.
        while self.segments.len() > 1 && self.segments[0].live <= 0 {
            let sequence = self.segments[0].sequence;
            let (of, after) =
                *self.cleaner.free_after.get_or_insert((sequence, self.last_gathered()));
            debug_assert_eq!(of, sequence, "invariant: the oldest is freed first");
            if self.last_committed() < after {
                return;
            }
            self.cleaner.free_after = None;
            if self.segments[0].is_opening {
                return;
            }
            if self.cleaner.segment == Some(sequence) {
                if self.cleaner.reading {
                    return;
                }
                // What was read of it and not looked at yet is not needed.
                (self.cleaner.segment, self.cleaner.retry_at) = (None, None);
                self.begin_again();
            }
            let freed = self.segments.pop_front();
            self.total_bytes -= freed.as_ref().map_or(0, |segment| segment.bytes);
            self.total_live -= freed.as_ref().map_or(0, |segment| segment.live);
            self.cleaner.freed.extend(freed);
        }
        if self.cleaner.segment.is_none()
            && self.segments.len() > 1
            && self.segments[0].live > 0
            && self.is_worth_emptying()
        {
            self.cleaner.segment = Some(self.segments[0].sequence);
            (self.cleaner.failures, self.cleaner.wait) = (0, Duration::ZERO);
            self.begin_again();
        }
    }

    /// Whether emptying the oldest segment may make the disk emptier.
    fn is_worth_emptying(&mut self) -> bool {
        let (oldest, last) = (self.oldest(), self.segments.back());
        let (sequence, segment_bytes) = last.map_or((0, 0), |last| (last.sequence, last.bytes));
        let useless = self.total_bytes.saturating_sub(self.total_live.max(0) as u64);
        let cleaner = &mut self.cleaner;
        if cleaner.round.take_if(|end| oldest > *end).is_some() {
            cleaner.left = useless;
        }
        cleaner.left = cleaner.left.min(useless);
        let is_more = useless >= cleaner.left + segment_bytes / 4;
        let is_due = cleaner.round.is_some() || is_more;
        let bound = JOURNAL_DISK_FACTOR * self.live_bytes() + JOURNAL_DISK_SEGMENTS * segment_bytes;
        if !is_due || self.disk_bytes() <= bound {
            return false;
        }
        self.cleaner.round.get_or_insert(sequence);
        true
    }

    /// The oldest segment is read from its beginning.
    fn begin_again(&mut self) {
        let cleaner = &mut self.cleaner;
        cleaner.commit = self.segments.front().map_or(0, |segment| segment.first_commit);
        cleaner.reading_from = cleaner.commit;
        (cleaner.at, cleaner.filled, cleaner.frame, cleaner.bad) = (0, 0, None, None);
    }

    /// A commit is on disk that says that this is the oldest segment: older files may be used.
    pub(super) fn free_before(&mut self, oldest: u64) {
        let is_free = |segment: &Segment| segment.sequence < oldest && !segment.is_opening;
        while self.cleaner.freed.front().is_some_and(is_free)
            && let Some(segment) = self.cleaner.freed.pop_front()
        {
            let is_of_use = segment.bytes == self.segments.back().map_or(0, |last| last.bytes)
                && self.preparing.spares(segment.bytes) < JOURNAL_SPARES_MAX;
            if is_of_use {
                self.counters.segments_recycled += 1;
                self.preparing.add_spare(segment.file, segment.bytes, segment.is_open);
            } else {
                self.cleaner.remove.push((segment.file, segment.is_open));
            }
        }
    }

    // ---- reading the oldest ----

    /// What emptying needs next, if anything.
    pub(super) fn cleaner_op(&mut self) -> Option<FileOp> {
        self.cleaner.remove.extend(self.preparing.useless.drain(..).map(|file| (file, true)));
        if self.cleaner.removing.is_none()
            && let Some((file, is_open)) = self.cleaner.remove.pop()
        {
            self.cleaner.removing = Some(is_open);
            let path = super::segment::path(&self.options.folder, file);
            return Some(FileOp::Remove { file: FileId(file), path });
        }
        let now = self.now().monotonic;
        let cleaner = &mut self.cleaner;
        let segment = self.segments.front_mut().filter(|s| Some(s.sequence) == cleaner.segment)?;
        if cleaner.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        // From here on it waits for what is asked for: the host is not to ask all the time.
        cleaner.retry_at = None;
        if segment.is_opening || cleaner.reading || cleaner.at < cleaner.filled {
            return None;
        }
        if !segment.is_open {
            let file = segment.file;
            return self.open_op(file);
        }
        let file = FileId(segment.file);
        cleaner.reading_from = cleaner.commit;
        let (offset, len) = next_read(segment, &mut cleaner.commit)?;
        (cleaner.reading, cleaner.chunk_at) = (true, offset);
        let mut buf = std::mem::take(&mut cleaner.chunk);
        buf.clear(2 * JOURNAL_CLEAN_BYTES);
        buf.resize(len);
        Some(FileOp::Read { file, offset, buf })
    }

    pub(super) const fn on_removed(&mut self) {
        self.cleaner.removing = None;
    }

    pub(super) fn on_opened(&mut self, file: FileId, result: &io::Result<usize>) {
        let is_ok = result.is_ok();
        let found = self.segments.iter_mut().find(|segment| segment.file == file.0);
        let Some(segment) = found else { return };
        (segment.is_opening, segment.is_open) = (false, is_ok);
        if let Err(error) = result {
            if Some(segment.sequence) == self.cleaner.segment {
                self.on_read_failed();
            }
            self.on_open_failed(file, &error.to_string());
        }
    }

    pub(super) fn on_read(&mut self, buf: BlockBuf, result: io::Result<usize>) {
        let cleaner = &mut self.cleaner;
        cleaner.reading = false;
        match result {
            Ok(filled) => {
                if filled < buf.len() {
                    cleaner.bad.get_or_insert(cleaner.chunk_at + filled as u64);
                }
                (cleaner.chunk, cleaner.filled, cleaner.at) = (buf, filled, 0);
                if cleaner.failures == 0 {
                    cleaner.wait = Duration::ZERO;
                }
            }
            Err(_) => {
                cleaner.chunk = buf;
                self.on_read_failed();
            }
        }
    }

    /// The segment cannot be read now. It stays, and is tried again from there, at growing
    /// intervals and for ever: what was acknowledged is not given up for want of room.
    fn on_read_failed(&mut self) {
        self.counters.clean_errors += 1;
        self.cleaner.commit = self.cleaner.reading_from;
        self.wait_longer();
    }

    fn wait_longer(&mut self) {
        let now = self.now().monotonic;
        let cleaner = &mut self.cleaner;
        cleaner.wait = (cleaner.wait * 2).clamp(JOURNAL_RETRY_FIRST, JOURNAL_RETRY_MAX);
        cleaner.retry_at = Some(now + cleaner.wait);
    }

    /// The oldest segment was read to its end, and not all that is needed of it was there: one bad
    /// read is no loss. It is read again, some times.
    fn on_incomplete(&mut self) {
        self.counters.clean_errors += 1;
        self.cleaner.failures += 1;
        if self.cleaner.failures < JOURNAL_READ_TRIES_MAX {
            self.begin_again();
            return self.wait_longer();
        }
        self.cleaner.segment = None;
        let bad = self.cleaner.bad;
        let Some(segment) = self.segments.front_mut() else { return };
        let lost = std::mem::take(&mut segment.live);
        let file = segment.file;
        self.total_live -= lost;
        self.counters.lost_bytes += lost.max(0) as u64;
        let place = bad.map_or_else(|| "somewhere".to_owned(), |at| format!("byte {at}"));
        self.trouble(format!(
            "{file:08}.journal: {place}: {lost} bytes of records that are needed cannot be read and \
             are lost: their checksums do not hold"
        ));
    }

    /// Copies what is needed of what was read, some bytes in a turn, and only while commits have
    /// room.
    fn clean_some(&mut self) {
        if self.cleaner.segment.is_none() || self.cleaner.reading {
            return;
        }
        let mut budget = JOURNAL_CLEAN_BYTES;
        let chunk = std::mem::take(&mut self.cleaner.chunk);
        let bytes = &chunk.as_slice()[..self.cleaner.filled.min(chunk.len())];
        while budget > 0
            && self.cleaner.at < bytes.len()
            && self.gathered_bytes() < JOURNAL_COMMIT_BYTES / 2
        {
            budget = budget.saturating_sub(self.clean_one(bytes));
        }
        self.cleaner.chunk = chunk;
        let is_read = self.cleaner.at >= self.cleaner.filled;
        let segment = self.segments.front().filter(|s| Some(s.sequence) == self.cleaner.segment);
        if is_read && let Some(segment) = segment {
            let end = segment.first_commit + segment.offsets.len() as u64;
            if self.cleaner.commit >= end {
                if segment.live > 0 {
                    return self.on_incomplete();
                }
                self.counters.segments_cleaned += 1;
                self.cleaner.segment = None;
            }
        }
    }

    /// Goes one record, or one block that is none, further: how many bytes that were.
    fn clean_one(&mut self, bytes: &[u8]) -> usize {
        let start = self.cleaner.at;
        let Some((frame, done)) = self.cleaner.frame else {
            let frame = Frame::decode(&bytes[start..]).ok().filter(|frame| {
                Some(frame.segment) == self.cleaner.segment
                    && frame.span() as usize <= bytes.len() - start
            });
            match frame {
                Some(frame) => {
                    self.cleaner.frame = Some((frame, 0));
                    self.cleaner.at += FRAME_HEADER;
                    return FRAME_HEADER;
                }
                None => {
                    self.cleaner.bad.get_or_insert(self.cleaner.chunk_at + start as u64);
                    self.cleaner.at += BLOCK;
                    return BLOCK;
                }
            }
        };
        let records = &bytes[start..start + frame.len as usize - done];
        let len = match Reader(records).u32() {
            Ok(len) => record::RECORD_HEADER + len as usize,
            Err(_) => records.len(),
        };
        let len = len.min(records.len()).max(1);
        match record::take(records, frame.commit) {
            Ok(body) => {
                let at = At { commit: frame.commit, offset: done as u32, len: len as u32 };
                self.copy_forward(at, body);
            }
            Err(_) => {
                self.cleaner.bad.get_or_insert(self.cleaner.chunk_at + start as u64);
            }
        }
        let done = done + len;
        self.cleaner.at += len;
        self.cleaner.frame = Some((frame, done));
        if done >= frame.len as usize {
            self.cleaner.frame = None;
            self.cleaner.at = self.cleaner.at.next_multiple_of(BLOCK);
        }
        len
    }

    fn copy_forward(&mut self, at: At, body: &[u8]) {
        let Ok((origin, entry)) = record::decode(body) else { return };
        let now_ms = self.now().unix_ms;
        let mut copies = std::mem::take(&mut self.cleaner.copies);
        let mut ends = std::mem::take(&mut self.cleaner.ends);
        copies.clear();
        ends.clear();
        self.fold.copies(at, &entry, now_ms, &mut |copy| {
            record::encode(&mut copies, origin, copy);
            ends.push(copies.len());
        });
        let mut start = 0;
        for end in &ends {
            self.put_copy(&copies[start..*end]);
            start = *end;
        }
        copies.shrink_to(JOURNAL_CLEAN_BYTES);
        (self.cleaner.copies, self.cleaner.ends) = (copies, ends);
        if let Entry::Publish(publish) = &entry {
            self.fold.expire(at, publish);
        }
        self.account();
    }

    fn put_copy(&mut self, body: &[u8]) {
        self.counters.copied += 1;
        self.counters.copied_bytes += body.len() as u64;
        self.put_encoded(body);
        // What it is a copy of may be all that was on disk.
        self.sync_gathered();
    }
}

/// The next whole frames of a segment, some of them in one read: where, and how long.
fn next_read(segment: &Segment, commit: &mut u64) -> Option<(u64, usize)> {
    let end = segment.first_commit + segment.offsets.len() as u64;
    let start = loop {
        if *commit >= end {
            return None;
        }
        match segment.offset_of(*commit) {
            Some(offset) => break offset,
            None => *commit += 1,
        }
    };
    let ends_at = |commit: u64| {
        (commit + 1..end).find_map(|next| segment.offset_of(next)).unwrap_or(segment.used)
    };
    let mut until = ends_at(*commit);
    *commit += 1;
    while *commit < end && ends_at(*commit) - start <= JOURNAL_CLEAN_BYTES as u64 {
        until = ends_at(*commit);
        *commit += 1;
    }
    Some((start, (until - start) as usize))
}
