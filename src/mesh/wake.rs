//! Who may sleep, and who must wake whom: the two flags of the mesh, without its rings.
//!
//! A shard that pushes to a ring does not know whether the taker will look again, and a wake-up
//! costs 7 µs, so the taker says when it is about to sleep. Both sides are a store to one place
//! followed by a load from another (Dekker), which only sequential consistency keeps from passing
//! each other:
//!
//! ```text
//! the one that sleeps: sleeping = true; FENCE; look for work; none -> sleep
//! the one that wakes:  give work;       FENCE; sleeping?  -> sleeping = false, wake it
//! ```
//!
//! Whichever fence is first in the one order of all fences, the other side sees what stood before
//! it: the work is found, or the flag is. "Work" is an item in a ring, or (SHARDS.md L8) room in a
//! ring towards which the sleeper holds a spill. The types make the fence part of the protocol:
//! [`SleepFlag::take`] and [`SpillFlag::is_waiting`] ask for a [`Fenced`], which only the fence
//! makes.
//!
//! Owns: no state; the flags live in [`Mesh`](super::Mesh). Invariant **no lost wake-up**: a shard
//! is not asleep for good while there is work for it. The loom tests below hold it
//! (`cargo test --features loom --lib loom_`), and show that they see the fault
//! when either fence is missing.
#![forbid(unsafe_code)]

use crate::sync::atomic::{AtomicBool, Ordering, fence};

/// Proof that the giver's fence stands between what it gave and the flags that it now reads.
#[derive(Debug)]
pub(super) struct Fenced(());

impl Fenced {
    /// The fence after pushes and pops, one for all of a tick's.
    pub(super) fn after_giving() -> Self {
        fence(Ordering::SeqCst);
        Self(())
    }
}

/// Whether one shard is asleep or about to be. Set by that shard alone, cleared by any.
#[derive(Debug)]
pub(super) struct SleepFlag(AtomicBool);

impl SleepFlag {
    /// A shard that is awake.
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// The shard's step before it sleeps: `has_work` is asked after the flag can be seen by all
    /// others. False: there is work, the flag is down again, do not sleep.
    pub(super) fn prepare(&self, has_work: impl FnOnce() -> bool) -> bool {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if has_work() {
            self.clear();
            return false;
        }
        true
    }

    /// The shard's step after it slept.
    pub(super) fn clear(&self) {
        // Nothing is published by it: who still reads `true` wakes a shard that is awake.
        self.0.store(false, Ordering::Relaxed);
    }

    /// Another shard's question whether it has to wake this one. Of several that ask while it
    /// sleeps, one is told yes.
    pub(super) fn take(&self, _: &Fenced) -> bool {
        // Read first: the line stays shared while the shard is awake, which is when it is hot. A
        // loser leaves no store behind, which a later reader could take for the shard's own.
        self.0.load(Ordering::Relaxed)
            && self.0.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Whether the sender of one lane holds a spill for it. Set and cleared by the sender alone.
#[derive(Debug)]
pub(super) struct SpillFlag(AtomicBool);

impl SpillFlag {
    /// A lane without a spill.
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// The sender's note. It needs no order of its own: the sender's fence before it sleeps stands
    /// behind it, and before that it looks for room itself.
    pub(super) fn set(&self, waiting: bool) {
        self.0.store(waiting, Ordering::Relaxed);
    }

    /// The taker's question, after it made room.
    pub(super) fn is_waiting(&self, _: &Fenced) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, feature = "loom"))]
mod loom_tests {
    use super::*;
    use crate::sync::Arc;
    use crate::sync::atomic::AtomicUsize;
    use loom::sync::Notify;
    use loom::thread;

    /// The two indices of a ring, without its items; the orderings are rtrb's.
    struct Ring {
        head: AtomicUsize,
        tail: AtomicUsize,
        len: usize,
    }

    impl Ring {
        fn new(len: usize) -> Self {
            Self { head: AtomicUsize::new(0), tail: AtomicUsize::new(0), len }
        }

        fn is_empty(&self) -> bool {
            // Only the taker asks, and it owns the head.
            self.head.load(Ordering::Relaxed) == self.tail.load(Ordering::Acquire)
        }

        fn has_room(&self) -> bool {
            self.tail.load(Ordering::Relaxed) - self.head.load(Ordering::Acquire) < self.len
        }

        fn push(&self) -> bool {
            let room = self.has_room();
            if room {
                let tail = self.tail.load(Ordering::Relaxed);
                self.tail.store(tail + 1, Ordering::Release);
            }
            room
        }

        fn pop(&self) -> bool {
            let full = !self.is_empty();
            if full {
                let head = self.head.load(Ordering::Relaxed);
                self.head.store(head + 1, Ordering::Release);
            }
            full
        }
    }

    /// One shard as the others see it: its flag, and the kernel object that it sleeps on.
    struct Sleeper {
        flag: SleepFlag,
        event: Notify,
    }

    impl Sleeper {
        fn new() -> Self {
            Self { flag: SleepFlag::new(), event: Notify::new() }
        }

        /// One turn of a shard that found nothing to do.
        fn sleep_unless(&self, has_work: impl FnOnce() -> bool) {
            if self.flag.prepare(has_work) {
                self.event.wait();
                self.flag.clear();
            }
        }
    }

    // loom reports a thread that waits for ever as a deadlock, which is what a lost wake-up is.

    #[test]
    fn a_push_is_never_slept_over() {
        loom::model(|| {
            let shared = Arc::new((Ring::new(2), Sleeper::new()));
            let sender = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (ring, taker) = &*shared;
                    for _ in 0..2 {
                        assert!(ring.push());
                        if taker.flag.take(&Fenced::after_giving()) {
                            taker.event.notify();
                        }
                    }
                })
            };
            let (ring, taker) = &*shared;
            let mut taken = 0;
            while taken < 2 {
                if ring.pop() {
                    taken += 1;
                } else {
                    taker.sleep_unless(|| !ring.is_empty());
                }
            }
            sender.join().expect("the sender ends");
        });
    }

    #[test]
    fn two_senders_wake_one_sleeper() {
        loom::model(|| {
            let shared = Arc::new(([Ring::new(1), Ring::new(1)], Sleeper::new()));
            let senders = [0, 1].map(|from| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (rings, taker) = &*shared;
                    assert!(rings[from].push());
                    if taker.flag.take(&Fenced::after_giving()) {
                        taker.event.notify();
                    }
                })
            });
            let (rings, taker) = &*shared;
            let mut taken = 0;
            while taken < 2 {
                let now = rings.iter().filter(|ring| ring.pop()).count();
                taken += now;
                if now == 0 {
                    taker.sleep_unless(|| rings.iter().any(|ring| !ring.is_empty()));
                }
            }
            for sender in senders {
                sender.join().expect("the senders end");
            }
        });
    }

    #[test]
    fn room_for_a_spill_is_never_slept_over() {
        loom::model(|| {
            // A ring of one, full: the second item is spilled, and leaves when the taker made room.
            let ring = Ring::new(1);
            assert!(ring.push());
            let shared = Arc::new((ring, SpillFlag::new(), Sleeper::new()));
            let taker = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (ring, spill, sender) = &*shared;
                    assert!(ring.pop());
                    let fenced = Fenced::after_giving();
                    if spill.is_waiting(&fenced) && sender.flag.take(&fenced) {
                        sender.event.notify();
                    }
                })
            };
            let (ring, spill, sender) = &*shared;
            while !ring.push() {
                spill.set(true);
                sender.sleep_unless(|| ring.has_room());
            }
            spill.set(false);
            taker.join().expect("the taker ends");
        });
    }

    /// The same handshake with acquire and release where the fences belong: it has to fail, or
    /// the tests above prove nothing.
    fn without_fences() {
        loom::model(|| {
            let shared = Arc::new((Ring::new(1), AtomicBool::new(false), Notify::new()));
            let sender = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (ring, sleeping, event) = &*shared;
                    assert!(ring.push());
                    if sleeping.load(Ordering::Acquire) && sleeping.swap(false, Ordering::AcqRel) {
                        event.notify();
                    }
                })
            };
            let (ring, sleeping, event) = &*shared;
            while !ring.pop() {
                sleeping.store(true, Ordering::Release);
                if ring.is_empty() {
                    event.wait();
                }
                sleeping.store(false, Ordering::Release);
            }
            sender.join().expect("the sender ends");
        });
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn a_missing_fence_is_seen() {
        without_fences();
    }
}
