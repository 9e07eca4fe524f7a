//! Segments ahead of their use: made, zeroed, synced, and their names synced too, one step at a
//! time and one segment at a time, so that a commit never waits for the file system to find room.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::Duration;

use super::log::{Options, Resume};
use super::segment;
use crate::clock::Time;
use crate::io::file::{BlockBuf, FileId, FileOp};
use crate::limits::{JOURNAL_RETRY_FIRST, JOURNAL_RETRY_MAX, JOURNAL_ZERO_BYTES};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Preparing {
    /// Ready: number of the file, and its size.
    spares: VecDeque<(u32, u64)>,
    /// To be opened before use: found at the start, or closed meanwhile.
    found: Vec<(u32, u64)>,
    last_file: u32,
    step: Step,
    under_way: bool,
    zeros: Option<BlockBuf>,
    /// Files that have failed, to be removed: another is tried instead.
    pub(super) useless: Vec<u32>,
    retry_at: Option<Time>,
    retry_after: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Open { file: u32, bytes: u64, is_found: bool },
    Zero { file: u32, bytes: u64, done: u64 },
    Sync { file: u32, bytes: u64 },
    SyncDir { file: u32, bytes: u64 },
}

impl Preparing {
    pub(super) fn new(resume: &Resume) -> Self {
        Self {
            spares: VecDeque::new(),
            found: resume.spares.clone(),
            last_file: resume.last_file,
            step: Step::Nothing,
            under_way: false,
            zeros: None,
            useless: Vec::new(),
            retry_at: None,
            retry_after: JOURNAL_RETRY_FIRST,
        }
    }

    /// Whether this file is being prepared.
    pub(super) fn is_at(&self, file: FileId) -> bool {
        matches!(self.step, Step::Open { file: at, .. } if at == file.0)
    }

    /// When to try again; None unless the last try failed.
    pub(super) const fn retry_at(&self) -> Option<Time> {
        self.retry_at
    }

    pub(super) fn spare_bytes(&self) -> u64 {
        self.spares.iter().chain(&self.found).map(|(_, bytes)| bytes).sum()
    }

    /// How many spares there are of this size at least.
    pub(super) fn spares(&self, least: u64) -> usize {
        let all = self.spares.iter().chain(&self.found);
        all.filter(|(_, bytes)| *bytes >= least).count()
    }

    /// A spare with room for so many bytes.
    pub(super) fn take_spare(&mut self, needed: u64) -> Option<(u32, u64)> {
        let index = self.spares.iter().position(|(_, bytes)| *bytes >= needed)?;
        self.spares.remove(index)
    }

    /// A segment that was freed.
    pub(super) fn add_spare(&mut self, file: u32, bytes: u64, is_open: bool) {
        if is_open {
            self.spares.push_back((file, bytes));
        } else {
            self.found.push((file, bytes));
        }
    }

    /// The next step, if one is due: there is no spare of this size, and one may be needed.
    pub(super) fn next_op(
        &mut self,
        options: &Options,
        now: Time,
        is_wanted: bool,
        bytes: u64,
    ) -> Option<FileOp> {
        if self.under_way {
            return None;
        }
        if let Some(at) = self.retry_at {
            if now < at {
                return None;
            }
            self.retry_at = None;
        }
        if self.step == Step::Nothing {
            if !is_wanted || self.spares.iter().any(|(_, spare)| *spare >= bytes) {
                return None;
            }
            self.step = match self.found.iter().position(|(_, spare)| *spare >= bytes) {
                Some(index) => {
                    let (file, bytes) = self.found.swap_remove(index);
                    Step::Open { file, bytes, is_found: true }
                }
                None => {
                    self.last_file += 1;
                    Step::Open { file: self.last_file, bytes, is_found: false }
                }
            };
        }
        self.under_way = true;
        Some(match self.step {
            Step::Nothing => unreachable!("invariant: set above"),
            Step::Open { file, is_found, .. } => FileOp::Open {
                file: FileId(file),
                path: segment::path(&options.folder, file),
                create: !is_found,
                direct: options.direct,
            },
            Step::Zero { file, bytes, done } => {
                let len = (bytes - done).min(JOURNAL_ZERO_BYTES as u64) as usize;
                let mut buf =
                    self.zeros.take().unwrap_or_else(|| BlockBuf::zeroed(JOURNAL_ZERO_BYTES));
                buf.resize(len);
                FileOp::Write { file: FileId(file), offset: done, buf, from: 0, sync: false }
            }
            Step::Sync { file, .. } => FileOp::Sync { file: FileId(file) },
            Step::SyncDir { .. } => FileOp::SyncDir { path: options.folder.clone() },
        })
    }

    /// A step is over. Whether a new segment is ready with it.
    pub(super) fn on_done(&mut self, op: FileOp, is_ok: bool, now: Time) -> bool {
        self.under_way = false;
        if let FileOp::Write { buf, .. } = op {
            self.zeros = Some(buf);
        }
        if !is_ok {
            self.retry_at = Some(now + self.retry_after);
            self.retry_after = (self.retry_after * 2).min(JOURNAL_RETRY_MAX);
            // It may be this file alone that is bad: next time another is tried. What is half zeroed,
            // or not synced for certain, is of no use, and on a full disk in the way.
            match std::mem::replace(&mut self.step, Step::Nothing) {
                Step::Nothing => {}
                Step::Open { file, .. }
                | Step::Zero { file, .. }
                | Step::Sync { file, .. }
                | Step::SyncDir { file, .. } => self.useless.push(file),
            }
            return false;
        }
        self.retry_after = JOURNAL_RETRY_FIRST;
        self.step = match self.step {
            Step::Nothing => Step::Nothing,
            // What it holds is older than what is needed, or nothing.
            Step::Open { file, bytes, is_found: true } => {
                self.spares.push_back((file, bytes));
                Step::Nothing
            }
            Step::Open { file, bytes, .. } => Step::Zero { file, bytes, done: 0 },
            Step::Zero { file, bytes, done } => {
                let done = (done + JOURNAL_ZERO_BYTES as u64).min(bytes);
                if done < bytes {
                    Step::Zero { file, bytes, done }
                } else {
                    Step::Sync { file, bytes }
                }
            }
            Step::Sync { file, bytes } => Step::SyncDir { file, bytes },
            Step::SyncDir { file, bytes } => {
                self.spares.push_back((file, bytes));
                self.step = Step::Nothing;
                // One is enough: the memory is needed again in a while.
                self.zeros = None;
                return true;
            }
        };
        false
    }
}
