//! What ends a backend's wait from outside.
//!
//! Every backend owns an eventfd and watches it edge-triggered: each write is one event, and
//! nobody reads it back. A ring can be woken by another ring without a system call of its own
//! (`MSG_RING`); its waker carries the ring's descriptor for that.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::event::EventfdFlags;

/// Ends the wait of one backend: this poll, or the next one if none is under way. Works from any
/// thread, also when the backend is long gone (then it does nothing).
#[derive(Clone, Debug)]
pub struct Waker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    eventfd: OwnedFd,
    /// The ring to send messages to; negative without one. A plain number, not a descriptor of our
    /// own, because that would keep the ring and all its operations alive behind its owner's back.
    /// The owner takes it out before it closes the ring. Who has read it just before may address a
    /// descriptor that has since become something else: the kernel refuses the message when that is
    /// no ring, and another ring of ours takes it for a wake-up, which is always harmless.
    ring: AtomicI32,
}

const NO_RING: RawFd = -1;

impl Waker {
    /// With an eventfd only.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let eventfd = rustix::event::eventfd(0, flags)?;
        Ok(Self(Arc::new(Inner { eventfd, ring: AtomicI32::new(NO_RING) })))
    }

    /// Wakes.
    pub fn wake(&self) {
        // It fails only when 2^64 - 2 writes were not read (we never read: 584 years at one a
        // nanosecond), and then the event is pending anyway.
        let _ = rustix::io::write(&self.0.eventfd, &1u64.to_ne_bytes());
    }

    /// Whether both wake the same backend.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What the backend watches.
    pub(super) fn eventfd(&self) -> BorrowedFd<'_> {
        self.0.eventfd.as_fd()
    }

    /// The target's ring, while it has one.
    pub(super) fn ring(&self) -> Option<RawFd> {
        let ring = self.0.ring.load(Ordering::Acquire);
        (ring != NO_RING).then_some(ring)
    }

    /// Says where messages for this backend's ring go.
    pub(super) fn set_ring(&self, ring: Option<RawFd>) {
        self.0.ring.store(ring.unwrap_or(NO_RING), Ordering::Release);
    }
}
