//! Counts allocations, thread by thread. Only in a build with the cargo feature `count-alloc`, which
//! `scripts/cost.sh` makes; any other build has no such file in it.
//!
//! Owns that build's global allocator: the system's, with two plain counters of the calling thread
//! in front. A shard reads its own with its other counters. Memory that is given back is not
//! counted; one that grows in place or moves counts as an allocation.
//!
//! Invariant: counting never allocates. The counters need neither initialisation nor destruction.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What one thread has allocated since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocations {
    /// Calls that gave memory: new, zeroed, or resized.
    pub count: u64,
    /// Bytes asked for in them; of a resize, the new size.
    pub bytes: u64,
}

thread_local! {
    static OWN: Cell<Allocations> = const { Cell::new(Allocations { count: 0, bytes: 0 }) };
}

/// Of the calling thread.
pub fn allocations() -> Allocations {
    OWN.get()
}

fn count(bytes: usize) {
    // Not during the thread's destruction, should that ever need it: nobody reads it then.
    let _ = OWN.try_with(|own| {
        let so_far = own.get();
        own.set(Allocations { count: so_far.count + 1, bytes: so_far.bytes + bytes as u64 });
    });
}

/// The system's allocator, counted.
#[derive(Debug)]
pub struct Counting;

#[global_allocator]
static GLOBAL: Counting = Counting;

// SAFETY: each call is the system allocator's with the same arguments, whose contract is the same;
// counting neither allocates nor unwinds, and touches no memory but the thread's own counters.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller keeps to the same contract, and `memory` came from the system.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the same contract, and `memory` came from the system.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;

    #[test]
    fn each_thread_counts_its_own() {
        let before = allocations();
        let mut bytes = black_box(Vec::<u8>::with_capacity(100));
        let once = allocations();
        assert_eq!((once.count, once.bytes), (before.count + 1, before.bytes + 100));
        bytes.reserve_exact(1000);
        drop(black_box(bytes));
        let twice = allocations();
        assert_eq!((twice.count, twice.bytes), (once.count + 1, once.bytes + 1000));
        let other = std::thread::spawn(|| {
            let before = allocations();
            drop(black_box(vec![0u8; 5000]));
            allocations().bytes - before.bytes
        });
        let other = other.join().expect("the other thread");
        assert_eq!(other, 5000);
        assert!(allocations().bytes < twice.bytes + 5000, "what the other allocated is not ours");
    }
}
