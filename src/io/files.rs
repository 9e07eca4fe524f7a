//! The files of one backend, and the threads that do with them what would make the shard wait.
//!
//! A thread is there from its first operation on. `uring` sends them what is rare (opening, syncing,
//! removing) and writes and reads in its ring; `epoll` sends them everything. What is made ahead of its
//! use has a thread of its own: a file from when it is made until the next directory is synced, and
//! what closes or removes. So nobody who waits for a write stands behind megabytes of zeros and their
//! sync. Each thread does its operations in the order in which they were asked for; an operation that
//! needs another one to be over is asked for behind its end.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TrySendError};
use std::thread::{self, JoinHandle};

use foldhash::fast::FixedState;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::file::{FileDone, FileId, FileOp};
use super::waker::Waker;
use super::{Completion, IoCounters};
use crate::limits::FILE_OPS_MAX;

/// See the [module](self).
pub(super) struct Files {
    open: HashMap<FileId, Arc<OwnedFd>, FixedState>,
    /// For what somebody waits for.
    thread: Option<Helper>,
    /// For what is done ahead, or behind.
    ahead: Option<Helper>,
    /// Files that were made, and whose name was not synced yet.
    fresh: Vec<FileId>,
    waker: Waker,
    /// Over, and not yet handed out.
    done: Vec<FileDone>,
}

struct Helper {
    jobs: SyncSender<Job>,
    done: Receiver<(FileDone, Option<OwnedFd>)>,
    in_flight: usize,
    thread: JoinHandle<()>,
}

struct Job {
    op: FileOp,
    fd: Option<Arc<OwnedFd>>,
}

impl Files {
    pub(super) fn new(waker: Waker) -> Self {
        Self {
            open: HashMap::with_hasher(FixedState::with_seed(0)),
            thread: None,
            ahead: None,
            fresh: Vec::new(),
            waker,
            done: Vec::new(),
        }
    }

    /// The descriptor of an open file.
    pub(super) fn get(&self, file: FileId) -> Option<&Arc<OwnedFd>> {
        self.open.get(&file)
    }

    /// Whether nobody waits for it.
    fn is_ahead(&mut self, op: &FileOp) -> bool {
        match op {
            FileOp::Open { file, create, .. } => {
                if *create {
                    self.fresh.push(*file);
                }
                *create
            }
            FileOp::SyncDir { .. } => {
                self.fresh.clear();
                true
            }
            FileOp::Close { file } | FileOp::Remove { file, .. } => {
                self.fresh.retain(|fresh| fresh != file);
                true
            }
            FileOp::Write { file, .. } | FileOp::Read { file, .. } | FileOp::Sync { file } => {
                self.fresh.contains(file)
            }
        }
    }

    /// Has a thread do it.
    pub(super) fn submit(&mut self, op: FileOp) {
        let is_ahead = self.is_ahead(&op);
        let fd = match &op {
            FileOp::Write { file, .. } | FileOp::Read { file, .. } | FileOp::Sync { file } => {
                let Some(fd) = self.open.get(file) else { return self.fail(op, Errno::BADF) };
                Some(fd.clone())
            }
            FileOp::Close { file } | FileOp::Remove { file, .. } => self.open.remove(file),
            FileOp::Open { .. } | FileOp::SyncDir { .. } => None,
        };
        let (thread, name) = match is_ahead {
            false => (&mut self.thread, "noctule-files"),
            true => (&mut self.ahead, "noctule-ahead"),
        };
        if thread.is_none() {
            match Helper::start(name, self.waker.clone()) {
                Ok(helper) => *thread = Some(helper),
                Err(error) => return self.done.push(FileDone { op, result: Err(error) }),
            }
        }
        let helper = thread.as_mut().expect("invariant: made above");
        match helper.jobs.try_send(Job { op, fd }) {
            Ok(()) => helper.in_flight += 1,
            Err(TrySendError::Full(job)) => self.fail(job.op, Errno::AGAIN),
            Err(TrySendError::Disconnected(job)) => self.fail(job.op, Errno::IO),
        }
    }

    pub(super) fn fail(&mut self, op: FileOp, error: Errno) {
        self.finish(op, Err(error.into()));
    }

    /// It is over.
    pub(super) fn finish(&mut self, op: FileOp, result: io::Result<usize>) {
        self.done.push(FileDone { op, result });
    }

    /// Hands out what is over.
    pub(super) fn take<S>(
        &mut self,
        counters: &mut IoCounters,
        completions: &mut Vec<Completion<S>>,
    ) {
        for helper in self.thread.iter_mut().chain(&mut self.ahead) {
            if helper.in_flight == 0 {
                continue;
            }
            while let Ok((done, opened)) = helper.done.try_recv() {
                helper.in_flight -= 1;
                if let (FileOp::Open { file, .. }, Some(fd)) = (&done.op, opened) {
                    self.open.insert(*file, Arc::new(fd));
                }
                self.done.push(done);
            }
        }
        for done in self.done.drain(..) {
            counters.file_ops += 1;
            counters.file_errors += u64::from(done.result.is_err());
            completions.push(Completion::File(Box::new(done)));
        }
    }
}

impl Drop for Files {
    /// What is under way is finished: a write that was asked for is not cut short.
    fn drop(&mut self) {
        for Helper { jobs, thread, .. } in self.thread.take().into_iter().chain(self.ahead.take()) {
            drop(jobs);
            let _ = thread.join();
        }
    }
}

impl Helper {
    fn start(name: &str, waker: Waker) -> io::Result<Self> {
        let (jobs, asked) = mpsc::sync_channel(FILE_OPS_MAX);
        let (answers, done) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work(&asked, &answers, &waker))?;
        Ok(Self { jobs, done, in_flight: 0, thread })
    }
}

fn work(asked: &Receiver<Job>, answers: &Sender<(FileDone, Option<OwnedFd>)>, waker: &Waker) {
    while let Ok(Job { mut op, fd }) = asked.recv() {
        let mut opened = None;
        let result = perform(&mut op, fd.as_deref(), &mut opened);
        drop(fd);
        if answers.send((FileDone { op, result }, opened)).is_err() {
            return;
        }
        waker.wake();
    }
}

fn perform(
    op: &mut FileOp,
    fd: Option<&OwnedFd>,
    opened: &mut Option<OwnedFd>,
) -> io::Result<usize> {
    let fd = || fd.ok_or_else(|| io::Error::from(Errno::BADF));
    match op {
        FileOp::Open { path, create, direct, .. } => {
            *opened = Some(open(path, *create, *direct)?);
            Ok(0)
        }
        FileOp::Write { offset, buf, from, sync, .. } => {
            write_all(fd()?, &buf.as_slice()[*from..], *offset, *sync)
        }
        FileOp::Read { offset, buf, .. } => read_all(fd()?, buf.as_mut_slice(), *offset),
        FileOp::Sync { .. } => Ok(rustix::fs::fsync(fd()?).map(|()| 0)?),
        FileOp::SyncDir { path } => File::open(path)?.sync_all().map(|()| 0),
        // With the descriptor that came with it.
        FileOp::Close { .. } => Ok(0),
        FileOp::Remove { path, .. } => std::fs::remove_file(path).map(|()| 0),
    }
}

/// `direct`: past the page cache, unless the file system (tmpfs, some network ones) has nothing else.
fn open(path: &Path, create: bool, direct: bool) -> io::Result<OwnedFd> {
    let mut flags = OFlags::RDWR | OFlags::CLOEXEC;
    flags.set(OFlags::CREATE, create);
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(path, if direct { flags | OFlags::DIRECT } else { flags }, mode) {
        Err(Errno::INVAL) if direct => Ok(rustix::fs::open(path, flags, mode)?),
        result => Ok(result?),
    }
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8], mut offset: u64, sync: bool) -> io::Result<usize> {
    let flags = if sync { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
    let all = bytes.len();
    while !bytes.is_empty() {
        match rustix::io::pwritev2(fd, &[IoSlice::new(bytes)], offset, flags) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

fn read_all(fd: &OwnedFd, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        let rest = &mut [IoSliceMut::new(&mut bytes[read..])];
        match rustix::io::preadv(fd, rest, offset + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(read)
}
