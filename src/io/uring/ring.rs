//! One `io_uring`: set-up, submission, the one entry, reaping. Knows nothing of connections.
//!
//! Invariants:
//! - *thread*: made, entered and dropped on one thread. SINGLE_ISSUER and DEFER_TASKRUN demand it,
//!   and the registered descriptor is a number of that thread. `Ring` is not `Send`.
//! - *order*: entries reach the kernel in the order of [`Ring::push`].

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{
    Builder, CompletionQueue, EnterFlags, IoUring, Parameters, SubmissionQueue, Submitter, cqueue,
    squeue,
};
use rustix::io::Errno;

use super::ops::Op;

/// Completion queue entries for each submission queue entry: a multishot receive makes many of one.
const COMPLETIONS_PER_SUBMISSION: u32 = 4;

pub(super) struct Ring {
    /// These three borrow from `owner`'s box, for as long as it lives; dropped before it.
    submitter: ManuallyDrop<Submitter<'static>>,
    submissions: ManuallyDrop<SubmissionQueue<'static>>,
    completions: ManuallyDrop<CompletionQueue<'static>>,
    /// From `Box::into_raw`.
    owner: NonNull<IoUring>,
    fd: RawFd,
    /// What found no room in the submission queue while the kernel would take none from it.
    backlog: VecDeque<Op>,
    features: Features,
}

/// What the kernel has of the optional things.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::io) struct Features {
    pub(in crate::io) no_sqarray: bool,
    pub(in crate::io) registered_fd: bool,
    pub(in crate::io) no_iowait: bool,
}

/// What cannot be done without: before DEFER_TASKRUN (Linux 6.1), epoll is faster.
pub(in crate::io) fn required(entries: u32) -> Builder {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(entries.saturating_mul(COMPLETIONS_PER_SUBMISSION));
    builder
}

/// The properties that nobody asks for at set-up but that we rely on.
pub(in crate::io) fn has_required_features(params: &Parameters) -> bool {
    params.is_feature_ext_arg()
        && params.is_feature_nodrop()
        && params.is_feature_submit_stable()
        && params.is_feature_skip_cqe_on_success()
}

impl Ring {
    pub(super) fn new(entries: u32) -> io::Result<Self> {
        let mut features = Features { no_sqarray: true, ..Features::default() };
        let ring = match required(entries).setup_no_sqarray().build(entries) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                features.no_sqarray = false;
                required(entries).build(entries)?
            }
            result => result?,
        };
        let params = ring.params();
        if !has_required_features(params) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        features.no_iowait = params.is_feature_no_iowait();
        let fd = ring.as_raw_fd();
        let owner = NonNull::from(Box::leak(Box::new(ring)));
        // SAFETY: `owner` comes from the box leaked in the line above and nobody else has it. The
        // three parts made here are the only users of the reference; `Ring::drop` drops them
        // before it takes the box back.
        let (mut submitter, submissions, completions) = unsafe { &mut *owner.as_ptr() }.split();
        features.registered_fd = submitter.register_ring_fd().is_ok();
        Ok(Self {
            submitter: ManuallyDrop::new(submitter),
            submissions: ManuallyDrop::new(submissions),
            completions: ManuallyDrop::new(completions),
            owner,
            fd,
            backlog: VecDeque::new(),
            features,
        })
    }

    pub(super) const fn fd(&self) -> RawFd {
        self.fd
    }

    pub(super) const fn features(&self) -> Features {
        self.features
    }

    pub(super) fn submitter(&self) -> &Submitter<'static> {
        &self.submitter
    }

    /// Queues `op` for the next entry. When the queue is full, the kernel is made to take it at
    /// once; says whether that happened.
    pub(super) fn push(&mut self, op: Op) -> bool {
        if self.backlog.is_empty() && self.try_push(&op) {
            return false;
        }
        self.submissions.sync();
        // It fails only for the moment (EAGAIN, EBUSY): the backlog takes what finds no room.
        let _ = self.submitter.submit();
        self.submissions.sync();
        self.backlog.push_back(op);
        self.drain_backlog();
        true
    }

    fn try_push(&mut self, op: &Op) -> bool {
        // SAFETY: an `Op` refers to no user memory, or to memory that is kept until its
        // completion: the promise made where it was built (`ops`).
        unsafe { self.submissions.push(op.entry()) }.is_ok()
    }

    fn drain_backlog(&mut self) {
        while let Some(op) = self.backlog.pop_front() {
            if !self.try_push(&op) {
                self.backlog.push_front(op);
                return;
            }
        }
    }

    /// Submits all, waits for one completion at most `timeout` long (`None`: for ever), or not at
    /// all when `wait` is false, and runs the deferred work that makes completions.
    pub(super) fn enter(&mut self, wait: bool, timeout: Option<Duration>) -> io::Result<()> {
        self.drain_backlog();
        self.submissions.sync();
        let count = self.submissions.len() as u32;
        let want = u32::from(wait && self.backlog.is_empty());
        let mut flags = EnterFlags::GETEVENTS;
        if self.features.no_iowait {
            flags |= EnterFlags::NO_IOWAIT;
        }
        let result = match timeout.filter(|_| want > 0) {
            None => {
                // SAFETY: without EXT_ARG the kernel takes no argument but a signal mask, and a
                // null pointer means none.
                unsafe { self.submitter.enter::<libc::sigset_t>(count, want, flags.bits(), None) }
            }
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timeout);
                flags |= EnterFlags::EXT_ARG;
                // SAFETY: with EXT_ARG the argument is an `io_uring_getevents_arg`, which
                // `SubmitArgs` is (repr(transparent)); it and the time it points to live until the
                // call returns.
                unsafe { self.submitter.enter(count, want, flags.bits(), Some(&args)) }
            }
        };
        self.submissions.sync();
        match result.as_ref().err().and_then(Errno::from_io_error) {
            // Out of time; a signal; completions to be reaped first; no memory just now. What was
            // not submitted stands in the queue for the next entry.
            None if result.is_ok() => Ok(()),
            Some(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN) => Ok(()),
            _ => result.map(drop),
        }
    }

    /// Whether an entry would make more completions at once. Since Linux 6.14 one entry runs at most
    /// twenty pieces of deferred work, or as many as it waits for, and leaves the rest.
    pub(super) fn has_deferred_work(&self) -> bool {
        self.submissions.taskrun()
    }

    /// Whether the kernel keeps completions that found no room in the queue.
    pub(super) fn overflown(&self) -> bool {
        self.submissions.cq_overflow()
    }

    /// Appends at most `max` completions to `reaped`.
    pub(super) fn reap(&mut self, reaped: &mut Vec<cqueue::Entry>, max: usize) {
        self.completions.sync();
        reaped.extend(self.completions.by_ref().take(max));
        // Gives the slots back to the kernel.
        self.completions.sync();
    }

    /// Whether the kernel has taken all that was pushed.
    pub(super) fn has_submitted_all(&self) -> bool {
        self.backlog.is_empty() && self.submissions.is_empty()
    }

    /// Whether we have taken all that the kernel has said.
    pub(super) fn has_heard_all(&self) -> bool {
        self.completions.is_empty() && !self.submissions.cq_overflow()
    }

    /// Whether completions stand in the queue.
    pub(super) fn has_more(&self) -> bool {
        !self.completions.is_empty()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.features.registered_fd {
            // Otherwise the thread would hold the ring until its own end.
            let _ = self.submitter.unregister_ring_fd();
        }
        // SAFETY: each is dropped once, here, and not used after.
        unsafe {
            ManuallyDrop::drop(&mut self.submitter);
            ManuallyDrop::drop(&mut self.submissions);
            ManuallyDrop::drop(&mut self.completions);
        }
        // SAFETY: `owner` came from a box, is given back once, and what borrowed from it is gone.
        drop(unsafe { Box::from_raw(self.owner.as_ptr()) });
    }
}

/// An entry of the submission queue, to be looked at by [`Op`] only.
pub(super) type Entry = squeue::Entry;
