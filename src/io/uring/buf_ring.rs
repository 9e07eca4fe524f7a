//! The provided buffers: memory of which the kernel takes a piece whenever something is received
//! on any connection, and the ring through which it gets them back.
//!
//! Ours are the head of nothing and the tail of the ring: we write entries and publish the tail,
//! the kernel reads. The tail lives inside the ring, in the reserved field of entry 0, so an entry
//! is always written field by field.
//!
//! Invariants:
//! - *owner*: buffer `i` is the application's (`held[i]`: it came in a completion and was not released
//!   since), or nobody's (it stands in `free`), or in the ring, and the kernel's to write. Only what is
//!   held is read here.
//! - *room*: a buffer stands in the ring at most once, so the ring of as many entries as there are
//!   buffers never overflows.
//!
//! The kernel goes round the ring. All buffers in it would be as many cold ones, each in its turn;
//! so there are only some: twice as many as a poll has lately used, the ones that were used last
//! first. The others are untouched memory until there is a rush.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags};

use super::ops::BUFFER_GROUP;
use crate::io::{PoolSize, RecvBuf};

pub(super) struct BufRing {
    entries: Mapping,
    memory: Mapping,
    size: PoolSize,
    /// Entries written; the kernel sees them when [`BufRing::publish`] stores it.
    tail: u16,
    published: u16,
    /// Neither the application's nor in the ring; the last one was used last.
    free: Vec<u16>,
    /// In the ring, as far as we know.
    in_ring: usize,
    /// So many are to be in it.
    depth: usize,
    /// Taken by the kernel since the last time that it was given some.
    taken: usize,
    /// The most of these lately.
    peak: usize,
    /// How often it was given some since `peak` began.
    rounds: u32,
    held: Vec<bool>,
}

/// The fewest buffers in the ring: 256 KiB, which a core's cache holds.
const DEPTH_MIN: usize = 64;
/// After so many rounds an old peak is forgotten.
const PEAK_ROUNDS: u32 = 4096;

impl BufRing {
    /// Memory for `size`, registered with the ring of `submitter`; the ring begins with a few of them.
    ///
    /// # Safety
    /// The result must stay alive (or be [leaked](BufRing::leak)) until the ring is gone or has no
    /// receive in flight any more.
    pub(super) unsafe fn new(submitter: &Submitter<'_>, size: PoolSize) -> io::Result<Self> {
        let fits = size.count.is_power_of_two() && size.count <= 1 << 15 && size.bytes > 0;
        assert!(fits, "invariant: a provided-buffer ring has 2^n entries, at most 32,768");
        let mut this = Self {
            entries: Mapping::new(size.count * size_of::<BufRingEntry>())?,
            memory: Mapping::new(size.count * size.bytes)?,
            size,
            tail: 0,
            published: 0,
            free: (0..size.count as u16).rev().collect(),
            in_ring: 0,
            depth: DEPTH_MIN.min(size.count),
            taken: 0,
            peak: 0,
            rounds: 0,
            held: vec![false; size.count],
        };
        let address = this.entries.start.as_ptr() as u64;
        // SAFETY: the address is that of a fresh page-aligned mapping of `count` entries, which
        // lives as long as `this`; the caller promises that that is long enough.
        unsafe {
            submitter.register_buf_ring_with_flags(address, size.count as u16, BUFFER_GROUP, 0)?;
        }
        this.publish();
        Ok(this)
    }

    /// The kernel has found the ring empty.
    pub(super) fn ran_dry(&mut self) {
        self.peak = self.peak.max(self.depth);
    }

    /// How many the kernel may take, as far as we know: completions that we have not seen yet may
    /// hold some.
    pub(super) const fn available(&self) -> usize {
        self.in_ring
    }

    /// The kernel has put `len` bytes into buffer `id`.
    pub(super) fn hand_out(&mut self, id: u16, len: usize) -> RecvBuf {
        self.take(id);
        assert!(len > 0 && len <= self.size.bytes, "invariant: a buffer is filled within its size");
        RecvBuf::new(u32::from(id), len as u32)
    }

    /// The kernel has used buffer `id` for something that nobody wants.
    pub(super) fn discard(&mut self, id: u16) {
        self.take(id);
        self.give_back(usize::from(id));
    }

    pub(super) fn bytes(&self, buf: &RecvBuf) -> &[u8] {
        assert!(self.held[buf.index()], "invariant: only a buffer that is out is read");
        assert!(buf.len() <= self.size.bytes, "invariant: a buffer is filled within its size");
        // SAFETY: the index is below `count` (indexing `held` has checked it) and the length within
        // a buffer's size, so the range lies in `memory`, which is initialised (anonymous mappings
        // are zero). The buffer is held, so the kernel does not write to it; and it cannot be given
        // back while the result lives, because that takes `&mut self`.
        unsafe {
            let start = self.memory.start.add(buf.index() * self.size.bytes);
            std::slice::from_raw_parts(start.as_ptr(), buf.len())
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "a released buffer is gone")]
    pub(super) fn release(&mut self, buf: RecvBuf) {
        assert!(self.held[buf.index()], "invariant: only a buffer that is out is released");
        self.give_back(buf.index());
    }

    /// Fills the ring up, and lets the kernel have that. Receives run inside our own entries, so
    /// once before each is enough.
    pub(super) fn publish(&mut self) {
        self.adapt();
        while self.in_ring < self.depth
            && let Some(id) = self.free.pop()
        {
            self.append(id);
        }
        if self.tail == self.published {
            return;
        }
        self.published = self.tail;
        let base: *const BufRingEntry = self.entries.start.as_ptr().cast();
        // SAFETY: `base` is the first entry of the ring, page-aligned, zeroed or written. The tail
        // is an aligned u16 in it, which only we write, and only here, atomically; the kernel
        // loads it with acquire, so it sees the entries before it.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// How deep the ring is to be: a rush counts at once, its end after a while.
    fn adapt(&mut self) {
        self.peak = self.peak.max(std::mem::take(&mut self.taken));
        let wanted = (2 * self.peak).next_power_of_two().max(DEPTH_MIN).min(self.size.count);
        self.rounds += 1;
        if self.rounds == PEAK_ROUNDS {
            (self.depth, self.peak, self.rounds) = (wanted, 0, 0);
        }
        self.depth = self.depth.max(wanted);
    }

    /// Gives up the memory without freeing it: the last resort when the kernel may still write.
    pub(super) const fn leak(&mut self) {
        self.entries.leaked = true;
        self.memory.leaked = true;
    }

    fn take(&mut self, id: u16) {
        let held = &mut self.held[usize::from(id)];
        assert!(!*held, "invariant: the kernel hands out only what it was given");
        *held = true;
        self.in_ring -= 1;
        self.taken += 1;
    }

    fn give_back(&mut self, index: usize) {
        self.held[index] = false;
        self.free.push(index as u16);
    }

    /// Writes the next entry. The kernel does not look at it before it is published.
    fn append(&mut self, id: u16) {
        let slot = usize::from(self.tail) & (self.size.count - 1);
        let base: *mut BufRingEntry = self.entries.start.as_ptr().cast();
        // SAFETY: `slot` is below `count`, so the entry lies in the mapping, aligned, initialised.
        // The kernel does not read it: by *room* it stands outside of head..published tail. In
        // entry 0 the reserved field is the tail; the setters write address, length and id only.
        unsafe {
            let entry = &mut *base.add(slot);
            entry
                .set_addr(self.memory.start.add(usize::from(id) * self.size.bytes).as_ptr() as u64);
            entry.set_len(self.size.bytes as u32);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        self.in_ring += 1;
    }
}

/// Anonymous memory: zeroed, page-aligned, not resident until used.
struct Mapping {
    start: NonNull<u8>,
    len: usize,
    leaked: bool,
}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping wherever the kernel likes touches no memory of anybody's.
        let start =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len, access, MapFlags::PRIVATE)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len, leaked: false })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if !self.leaked {
            // SAFETY: the mapping is ours, whole, and its owner, which alone gave out references
            // into it, is being dropped.
            let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}
