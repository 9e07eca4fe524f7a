//! The other shards: lanes, sleep and wake.
//!
//! A **lane** is the way from one shard to one other: a ring of items (a shard's batch of a tick),
//! and a smaller ring on which the emptied ones go back, so that their memory is used again. The
//! **mesh** is one shard's end of all its lanes. Rings are [`rtrb`]'s; ours is who wakes whom,
//! in [`wake`].
//!
//! How a shard uses it in a tick:
//!
//! ```text
//! awake -> pop all, recycle -> work -> push (full: spill, announce) -> take_wakes: wake each
//!       -> prepare_sleep: true -> wait in the backend
//! ```
//!
//! Invariants (SHARDS.md section 1):
//! - FIFO per lane; nothing is lost: a full ring gives the item back, and what is spilled is the
//!   shard's.
//! - **No lost wake-up**: after [`Mesh::prepare_sleep`] said yes, the first push to this shard, and
//!   the first room in a lane that it announced a spill for, name it in the other's
//!   [`Mesh::take_wakes`].
//! - One wake-up for one sleep, whoever of the others asks first; none for a shard that is awake.
//! - No read-modify-write of shared memory and no fence per item: one fence for a tick's pushes and
//!   pops, one for a sleep.
#![forbid(unsafe_code)]

mod wake;

use crate::ids::{ShardId, ShardSet};
use crate::limits::{LANE_RECYCLE_LEN, SHARDS_MAX};
use rtrb::{Consumer, Producer, PushError, RingBuffer};
use std::sync::Arc;
use wake::{Fenced, SleepFlag, SpillFlag};

/// What a shard shows to all others. Two cache lines of its own, because the hardware fetches in
/// pairs: a shard that polls its neighbours' flags must not slow down what else they write.
#[derive(Debug)]
#[repr(align(128))]
struct Shown {
    sleep: SleepFlag,
    /// By the lane's taker.
    spills: Box<[SpillFlag]>,
}

/// This shard's ends of the lanes to and from one other.
#[derive(Debug)]
struct Pair<T> {
    to: Producer<T>,
    from: Consumer<T>,
    /// Items of `from`, emptied, on their way back.
    give_back: Producer<T>,
    /// Items of `to`, come back empty.
    come_back: Consumer<T>,
}

/// One shard's end of all lanes.
#[derive(Debug)]
pub struct Mesh<T> {
    me: ShardId,
    /// By the other shard; none for this one, which has no lane to itself.
    pairs: Box<[Option<Pair<T>>]>,
    shown: Arc<[Shown]>,
    /// Lanes with a new item since the last [`Mesh::take_wakes`].
    pushed: ShardSet,
    /// Lanes with new room since then.
    popped: ShardSet,
    /// Lanes for which a spill is announced.
    spilled: ShardSet,
}

/// The ends of all shards, in their order; each moves to its shard's thread. A lane's ring holds
/// `ring_len` items.
///
/// # Panics
/// If `shards` is zero or above [`SHARDS_MAX`], or `ring_len` is zero.
pub fn mesh<T: Send>(shards: usize, ring_len: usize) -> Vec<Mesh<T>> {
    assert!((1..=SHARDS_MAX).contains(&shards), "invariant: 1 to SHARDS_MAX shards");
    assert!(ring_len > 0, "invariant: a lane holds something");
    let shown: Arc<[Shown]> = (0..shards)
        .map(|_| Shown {
            sleep: SleepFlag::new(),
            spills: (0..shards).map(|_| SpillFlag::new()).collect(),
        })
        .collect::<Vec<_>>()
        .into();
    let mut all: Vec<Vec<Option<Pair<T>>>> =
        (0..shards).map(|_| (0..shards).map(|_| None).collect()).collect();
    for b in 1..shards {
        let (before, from_b) = all.split_at_mut(b);
        for (a, row) in before.iter_mut().enumerate() {
            let (at_a, at_b) = pair(ring_len);
            row[b] = Some(at_a);
            from_b[0][a] = Some(at_b);
        }
    }
    all.into_iter()
        .enumerate()
        .map(|(me, pairs)| Mesh {
            me: ShardId::new(me),
            pairs: pairs.into_boxed_slice(),
            shown: Arc::clone(&shown),
            pushed: ShardSet::EMPTY,
            popped: ShardSet::EMPTY,
            spilled: ShardSet::EMPTY,
        })
        .collect()
}

/// The four rings between two shards, as each of them holds their ends.
fn pair<T>(ring_len: usize) -> (Pair<T>, Pair<T>) {
    let (to_b, from_a) = RingBuffer::new(ring_len);
    let (to_a, from_b) = RingBuffer::new(ring_len);
    let recycle_len = ring_len.min(LANE_RECYCLE_LEN);
    let (b_gives, a_reuses) = RingBuffer::new(recycle_len);
    let (a_gives, b_reuses) = RingBuffer::new(recycle_len);
    (
        Pair { to: to_b, from: from_b, give_back: a_gives, come_back: a_reuses },
        Pair { to: to_a, from: from_a, give_back: b_gives, come_back: b_reuses },
    )
}

impl<T> Mesh<T> {
    /// Whose end it is.
    pub fn me(&self) -> ShardId {
        self.me
    }

    /// How many shards it joins, this one included.
    pub fn shards(&self) -> usize {
        self.pairs.len()
    }

    /// All shards but this one, in ascending order: the lanes there are.
    pub fn others(&self) -> impl Iterator<Item = ShardId> + use<T> {
        let me = self.me;
        (0..self.pairs.len()).map(ShardId::new).filter(move |shard| *shard != me)
    }

    /// Appends to the lane; a full one gives the item back, to be spilled.
    ///
    /// # Panics
    /// If `to` is this shard or none of the mesh, like all that name a lane.
    pub fn push(&mut self, to: ShardId, item: T) -> Result<(), T> {
        match self.pair(to).to.push(item) {
            Ok(()) => {
                self.pushed.insert(to);
                Ok(())
            }
            Err(PushError::Full(item)) => Err(item),
        }
    }

    /// Whether the lane's ring has room. It stays so until the next push.
    pub fn has_room(&self, to: ShardId) -> bool {
        self.pairs[to.index()].as_ref().is_some_and(|pair| !pair.to.is_full())
    }

    /// Takes the oldest item of the lane from there.
    pub fn pop(&mut self, from: ShardId) -> Option<T> {
        let item = self.pair(from).from.pop().ok()?;
        self.popped.insert(from);
        Some(item)
    }

    /// Whether any lane to this shard holds an item.
    pub fn has_input(&self) -> bool {
        self.pairs.iter().flatten().any(|pair| !pair.from.is_empty())
    }

    /// Sends an item of the lane from there back to who made it, emptied, for
    /// [its next use](Mesh::reuse). When enough of them wait there, it is dropped.
    pub fn recycle(&mut self, from: ShardId, emptied: T) {
        // Full is no fault: dropping it is how a burst's memory is given up again.
        drop(self.pair(from).give_back.push(emptied));
    }

    /// An item that went to `to` and came back.
    pub fn reuse(&mut self, to: ShardId) -> Option<T> {
        self.pair(to).come_back.pop().ok()
    }

    /// Says whether this shard holds a spill for the lane, so that its taker wakes this shard when
    /// it has made room (SHARDS.md L8).
    pub fn announce_spill(&mut self, to: ShardId, waiting: bool) {
        if self.spilled.contains(to) == waiting {
            return;
        }
        if waiting {
            self.spilled.insert(to);
        } else {
            self.spilled.remove(to);
        }
        self.shown[self.me.index()].spills[to.index()].set(waiting);
    }

    /// The shards to wake now, each once: those that sleep and got an item since the last call, or
    /// room for a spill that they announced. To be asked after a tick's last push and pop, and
    /// before this shard sleeps.
    pub fn take_wakes(&mut self) -> ShardSet {
        let mut wakes = ShardSet::EMPTY;
        let pushed = std::mem::take(&mut self.pushed);
        let popped = std::mem::take(&mut self.popped);
        if pushed.is_empty() && popped.is_empty() {
            return wakes;
        }
        let fenced = Fenced::after_giving();
        for to in pushed.iter() {
            if self.shown[to.index()].sleep.take(&fenced) {
                wakes.insert(to);
            }
        }
        for from in popped.iter() {
            let sender = &self.shown[from.index()];
            if sender.spills[self.me.index()].is_waiting(&fenced) && sender.sleep.take(&fenced) {
                wakes.insert(from);
            }
        }
        wakes
    }

    /// Before this shard sleeps. True: whoever has something for it from now on will wake it.
    /// False: there is input, or room for a spill, and it must not sleep.
    ///
    /// # Panics
    /// In debug builds, if [`Mesh::take_wakes`] was not asked after the last push and pop: who
    /// would wake their targets?
    #[must_use]
    pub fn prepare_sleep(&mut self) -> bool {
        debug_assert!(
            self.pushed.is_empty() && self.popped.is_empty(),
            "invariant: a shard wakes others before it sleeps"
        );
        self.shown[self.me.index()]
            .sleep
            .prepare(|| self.has_input() || self.spilled.iter().any(|to| self.has_room(to)))
    }

    /// After this shard slept, whatever woke it.
    pub fn awake(&mut self) {
        self.shown[self.me.index()].sleep.clear();
    }

    fn pair(&mut self, other: ShardId) -> &mut Pair<T> {
        self.pairs[other.index()].as_mut().expect("invariant: a shard has no lane to itself")
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    const A: ShardId = ShardId::new(0);
    const B: ShardId = ShardId::new(1);
    const C: ShardId = ShardId::new(2);

    fn three() -> [Mesh<Vec<u32>>; 3] {
        mesh(3, 2).try_into().expect("three ends")
    }

    #[test]
    fn lanes_are_fifo_apart_and_give_back_what_does_not_fit() {
        let [mut a, mut b, mut c] = three();
        a.push(C, vec![1]).unwrap();
        b.push(C, vec![2]).unwrap();
        a.push(C, vec![3]).unwrap();
        assert_eq!(a.push(C, vec![4]), Err(vec![4]));
        assert!(!a.has_room(C) && b.has_room(C) && a.has_room(B));
        assert!(c.has_input() && !a.has_input() && !b.has_input());
        assert_eq!(c.pop(A), Some(vec![1]));
        assert_eq!(c.pop(A), Some(vec![3]));
        assert_eq!(c.pop(A), None);
        assert_eq!(c.pop(B), Some(vec![2]));
        assert!(!c.has_input() && a.has_room(C));
        assert_eq!(c.others().map(ShardId::index).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn emptied_items_come_back_to_who_made_them() {
        let [mut a, mut b, mut c] = three();
        let item = Vec::with_capacity(1000);
        let memory = item.as_ptr();
        a.push(B, item).unwrap();
        let item = b.pop(A).unwrap();
        b.recycle(A, item);
        assert_eq!(a.reuse(C), None);
        assert_eq!(c.reuse(B), None);
        let item = a.reuse(B).expect("came back");
        assert_eq!((item.as_ptr(), item.capacity()), (memory, 1000));
        assert_eq!(a.reuse(B), None);
        // What does not fit on the way back is dropped.
        for _ in 0..10 {
            b.recycle(A, Vec::new());
        }
        assert_eq!(std::iter::from_fn(|| a.reuse(B)).count(), 2, "the length of these lanes");
    }

    #[test]
    fn only_sleepers_are_woken_and_once() {
        let [mut a, mut b, mut c] = three();
        a.push(C, vec![]).unwrap();
        assert!(a.take_wakes().is_empty(), "awake");
        assert!(!c.prepare_sleep(), "input is there");
        a.push(C, vec![]).unwrap();
        assert!(a.take_wakes().is_empty(), "the flag is down again");
        c.pop(A).unwrap();
        c.pop(A).unwrap();
        assert!(c.take_wakes().is_empty());
        assert!(c.prepare_sleep());
        a.push(C, vec![]).unwrap();
        b.push(C, vec![]).unwrap();
        assert_eq!(b.take_wakes(), ShardSet::only(C));
        assert!(a.take_wakes().is_empty(), "b wakes it");
        c.awake();
        a.push(C, vec![]).unwrap();
        assert!(a.take_wakes().is_empty());
    }

    #[test]
    fn who_makes_room_wakes_a_sender_with_a_spill() {
        let [mut a, mut b, mut c] = three();
        for _ in 0..2 {
            a.push(B, vec![]).unwrap();
        }
        a.announce_spill(B, true);
        a.take_wakes();
        assert!(a.prepare_sleep());
        b.pop(A).unwrap();
        assert_eq!(b.take_wakes(), ShardSet::only(A));
        a.awake();
        assert!(!a.prepare_sleep(), "there is room now");
        a.push(B, vec![]).unwrap();
        a.announce_spill(B, false);
        a.take_wakes();
        assert!(a.prepare_sleep());
        b.pop(A).unwrap();
        assert!(b.take_wakes().is_empty(), "no spill waits");
        // Room in another lane is nothing to wake for.
        a.awake();
        for to in [B, C] {
            while a.push(to, vec![]).is_ok() {}
        }
        a.announce_spill(B, true);
        a.take_wakes();
        assert!(a.prepare_sleep());
        c.pop(A).unwrap();
        assert!(c.take_wakes().is_empty());
        b.pop(A).unwrap();
        assert_eq!(b.take_wakes(), ShardSet::only(A));
    }

    #[test]
    fn one_shard_has_no_lanes() {
        let mut alone = mesh::<Vec<u8>>(1, 2).remove(0);
        assert_eq!(alone.others().count(), 0);
        assert!(!alone.has_input() && alone.take_wakes().is_empty() && alone.prepare_sleep());
        alone.awake();
    }

    #[test]
    #[should_panic(expected = "no lane to itself")]
    fn nothing_is_pushed_to_oneself() {
        let _ = mesh::<u8>(2, 2).remove(0).push(A, 1);
    }

    /// A shard of the stress test: sends numbered items to all others through a ring and a spill,
    /// takes theirs, and sleeps when there is nothing to do. Returns how often it slept.
    fn run_shard(
        mut mesh: Mesh<Vec<u64>>,
        each: u64,
        wakers: &[mpsc::SyncSender<()>],
        woken: &mpsc::Receiver<()>,
    ) -> u64 {
        let others: Vec<ShardId> = mesh.others().collect();
        let mut next_out = vec![0; mesh.shards()];
        let mut next_in = vec![0; mesh.shards()];
        let mut sleeps = 0;
        loop {
            for &from in &others {
                while let Some(mut batch) = mesh.pop(from) {
                    for number in batch.drain(..) {
                        assert_eq!(number, next_in[from.index()], "order of the lane");
                        next_in[from.index()] += 1;
                    }
                    mesh.recycle(from, batch);
                }
            }
            for &to in &others {
                let next = &mut next_out[to.index()];
                while *next < each {
                    if !mesh.has_room(to) {
                        break;
                    }
                    // Batches of 1 to 8: lanes run empty and full.
                    let mut batch = mesh.reuse(to).unwrap_or_default();
                    assert!(batch.is_empty());
                    batch.extend(*next..(*next + 1 + *next % 8).min(each));
                    *next += batch.len() as u64;
                    mesh.push(to, batch).expect("there was room");
                }
                let waiting = *next < each;
                mesh.announce_spill(to, waiting);
            }
            for shard in mesh.take_wakes().iter() {
                // One token, as sticky as an eventfd.
                let _ = wakers[shard.index()].try_send(());
            }
            let others_done = |next: &[u64]| others.iter().all(|other| next[other.index()] == each);
            if others_done(&next_in) && others_done(&next_out) {
                return sleeps;
            }
            if mesh.prepare_sleep() {
                sleeps += 1;
                woken.recv_timeout(Duration::from_secs(30)).expect("no wake-up is lost");
                mesh.awake();
            }
        }
    }

    #[test]
    fn a_million_items_between_threads() {
        const SHARDS: usize = 3;
        const EACH: u64 = 1_000_000 / (SHARDS as u64 * (SHARDS as u64 - 1)) + 1;
        let (wakers, woken): (Vec<_>, Vec<_>) = (0..SHARDS).map(|_| mpsc::sync_channel(1)).unzip();
        let sleeps: u64 = std::thread::scope(|scope| {
            let shards: Vec<_> = mesh(SHARDS, 4)
                .into_iter()
                .zip(woken)
                .map(|(mesh, woken)| {
                    let wakers = wakers.clone();
                    scope.spawn(move || run_shard(mesh, EACH, &wakers, &woken))
                })
                .collect();
            shards.into_iter().map(|shard| shard.join().expect("a shard ends")).sum()
        });
        assert!(sleeps > 0, "the handshake was never needed, so this tested nothing");
    }
}
