//! Deadlines: a hierarchical wheel, and who hears of one that is over.
//!
//! Owns every deadline of the shard's MQTT state. Arming and cancelling are O(1); nothing fires
//! early, and at most one tick (about a millisecond) late. Each slot remembers a lower bound of
//! its deadlines, so that [`Timers::next_deadline`] does not name the time at which a slot is to be
//! spread over finer ones, but a deadline: an idle shard is not woken for the wheel's own sake.
#![forbid(unsafe_code)]

use std::num::NonZeroU32;

use slab::Slab;

use crate::clock::Time;
use crate::ids::ConnId;
use crate::limits::DEFERRED_PER_TICK;

use super::Broker;
use super::session::SessionKey;

/// Nanoseconds of a tick, as a power of two: 1.05 ms.
const TICK_BITS: u32 = 20;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Eight levels of 64 slots cover 2^48 ticks, which is more than all of [`Time`].
const LEVELS: usize = 8;
const NONE: u32 = u32::MAX;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// A connection may have been silent for too long.
    KeepAlive(ConnId),
    /// A session without a connection ends.
    SessionExpiry(SessionKey),
    /// A delayed Will is to be published.
    Will(SessionKey),
    /// An exchange of enhanced authentication has taken too long.
    Authentication(ConnId),
    /// Nothing.
    #[cfg(test)]
    Test(u32),
}

/// An armed deadline. Its owner forgets it when it has fired or was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimerKey(NonZeroU32);

impl TimerKey {
    /// Of the entry at `index`. Counted from one, so that an owner without a deadline needs no more room.
    fn of(index: u32) -> Self {
        Self(NonZeroU32::MIN.saturating_add(index))
    }

    fn index(self) -> u32 {
        self.0.get() - 1
    }
}

#[derive(Debug)]
struct Entry {
    tick: u64,
    due: Due,
    next: u32,
    previous: u32,
    /// Level and slot in which it hangs.
    level: u8,
    slot: u8,
}

/// What an armed deadline takes, in bytes.
#[cfg(test)]
pub(crate) const TIMER_BYTES: usize = size_of::<Option<Entry>>();

#[derive(Debug, Clone, Copy)]
struct Slot {
    head: u32,
    /// No deadline in it is earlier. Exact unless its earliest was cancelled.
    earliest: u64,
}

const EMPTY: Slot = Slot { head: NONE, earliest: u64::MAX };

/// All deadlines.
#[derive(Debug)]
pub(crate) struct Timers {
    entries: Slab<Entry>,
    slots: Box<[[Slot; SLOTS]; LEVELS]>,
    occupied: [u64; LEVELS],
    /// Everything before this tick has fired.
    elapsed: u64,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            entries: Slab::new(),
            slots: Box::new([[EMPTY; SLOTS]; LEVELS]),
            occupied: [0; LEVELS],
            elapsed: 0,
        }
    }
}

impl Timers {
    /// Arms a deadline; one in the past fires at the next look.
    pub(crate) fn arm(&mut self, at: Time, due: Due) -> TimerKey {
        // Rounded up: never early.
        let tick = at.as_nanos().div_ceil(1 << TICK_BITS).max(self.elapsed);
        let entry = Entry { tick, due, next: NONE, previous: NONE, level: 0, slot: 0 };
        let index = self.entries.insert(entry) as u32;
        self.link(index);
        TimerKey::of(index)
    }

    /// Takes a deadline back.
    pub(crate) fn cancel(&mut self, key: TimerKey) {
        let index = key.index();
        if self.entries.contains(index as usize) {
            self.unlink(index);
            self.entries.remove(index as usize);
        }
    }

    /// When something is due next: exact, unless what was due then has been cancelled.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let earliest = (0..LEVELS)
            .filter_map(|level| self.first_slot(level).map(|slot| self.slots[level][slot].earliest))
            .min()?;
        Some(Time::from_nanos(earliest.saturating_mul(1 << TICK_BITS)))
    }

    /// Takes one that is due at `now`, in order of deadlines up to a tick.
    pub(crate) fn pop(&mut self, now: Time) -> Option<Due> {
        let now = now.as_nanos() >> TICK_BITS;
        loop {
            let (level, slot, start) = self.next_event()?;
            if start > now {
                self.elapsed = self.elapsed.max(now);
                // Nothing fires before `start`; but a cancelled minimum must not wake us again.
                self.refresh(level, slot, now);
                return None;
            }
            self.elapsed = self.elapsed.max(start);
            if level == 0 {
                let head = self.slots[0][slot].head;
                self.unlink(head);
                return Some(self.entries.remove(head as usize).due);
            }
            self.cascade(level, slot);
        }
    }

    /// Armed deadlines.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.len()
    }

    /// The first slot in time that is occupied, with the tick at which it begins.
    fn next_event(&self) -> Option<(usize, usize, u64)> {
        (0..LEVELS)
            .filter_map(|level| {
                let slot = self.first_slot(level)?;
                let shift = SLOT_BITS * level as u32;
                let turn = (self.elapsed >> shift) & !(SLOTS as u64 - 1);
                Some((level, slot, (turn + slot as u64) << shift))
            })
            // A coarser slot that begins at the same tick is spread first.
            .min_by_key(|&(level, _, start)| (start, LEVELS - level))
    }

    /// Slots of a level never hang behind the current position: what would, is in a coarser one.
    fn first_slot(&self, level: usize) -> Option<usize> {
        let occupied = self.occupied[level];
        (occupied != 0).then(|| occupied.trailing_zeros() as usize)
    }

    /// A slot whose bound has passed without being due had its earliest cancelled.
    fn refresh(&mut self, level: usize, slot: usize, now: u64) {
        if level == 0 || self.slots[level][slot].earliest > now {
            return;
        }
        let mut earliest = u64::MAX;
        let mut at = self.slots[level][slot].head;
        while at != NONE {
            let entry = &self.entries[at as usize];
            earliest = earliest.min(entry.tick);
            at = entry.next;
        }
        self.slots[level][slot].earliest = earliest;
    }

    fn cascade(&mut self, level: usize, slot: usize) {
        let mut at = self.slots[level][slot].head;
        self.slots[level][slot] = EMPTY;
        self.occupied[level] &= !(1 << slot);
        while at != NONE {
            let next = self.entries[at as usize].next;
            self.link(at);
            at = next;
        }
    }

    fn link(&mut self, index: u32) {
        let tick = self.entries[index as usize].tick;
        // The highest group of bits in which it differs from the present decides its level: in
        // all higher ones it is in the slot that we stand in.
        let difference = (tick ^ self.elapsed) | 1;
        let level = ((u64::BITS - 1 - difference.leading_zeros()) / SLOT_BITS) as usize;
        let level = level.min(LEVELS - 1);
        let slot = ((tick >> (SLOT_BITS * level as u32)) & (SLOTS as u64 - 1)) as usize;
        let head = std::mem::replace(&mut self.slots[level][slot].head, index);
        if head != NONE {
            self.entries[head as usize].previous = index;
        }
        let entry = &mut self.entries[index as usize];
        entry.next = head;
        entry.previous = NONE;
        entry.level = level as u8;
        entry.slot = slot as u8;
        self.occupied[level] |= 1 << slot;
        let earliest = &mut self.slots[level][slot].earliest;
        *earliest = (*earliest).min(tick);
    }

    fn unlink(&mut self, index: u32) {
        let Entry { next, previous, level, slot, .. } = self.entries[index as usize];
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
            return;
        }
        let (level, slot) = (usize::from(level), usize::from(slot));
        self.slots[level][slot].head = next;
        if next == NONE {
            self.slots[level][slot] = EMPTY;
            self.occupied[level] &= !(1 << slot);
        }
    }
}

impl Broker {
    /// All deadlines up to `now`, a bounded number of them.
    pub(super) fn run_timers(&mut self, now: Time) {
        for _ in 0..DEFERRED_PER_TICK {
            if self.must_sources_wait() {
                return;
            }
            let Some(due) = self.timers.pop(now) else { return };
            match due {
                Due::KeepAlive(id) => self.on_keep_alive(now, id),
                Due::Authentication(id) => self.on_authentication_timeout(now, id),
                Due::SessionExpiry(key) => {
                    if let Some(session) = self.sessions.get_mut(key) {
                        session.expiry_timer = None;
                        self.end_session(now, key);
                    }
                }
                Due::Will(key) => {
                    let session = self.sessions.get_mut(key);
                    if let Some(will) = session.and_then(|session| session.will.as_mut()) {
                        will.timer = None;
                        self.publish_will(now, key);
                    }
                }
                #[cfg(test)]
                Due::Test(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn millis(n: u64) -> Time {
        Time::ZERO + Duration::from_millis(n)
    }

    #[test]
    fn an_idle_wheel_names_the_deadline_and_not_its_own_steps() {
        let mut timers = Timers::default();
        let at = millis(3_600_000);
        timers.arm(at, Due::Test(1));
        let next = timers.next_deadline().unwrap();
        assert!(next >= at && next.since(at) < Duration::from_millis(2), "{next:?}");
        assert_eq!(timers.pop(millis(3_599_990)), None);
        assert_eq!(timers.pop(next), Some(Due::Test(1)));
        assert_eq!((timers.pop(next), timers.next_deadline()), (None, None));
    }

    #[test]
    fn a_cancelled_minimum_wakes_once_at_most() {
        let mut timers = Timers::default();
        let first = timers.arm(millis(1_000_000), Due::Test(1));
        timers.arm(millis(1_001_000), Due::Test(2));
        timers.cancel(first);
        let woken = timers.next_deadline().unwrap();
        assert_eq!(timers.pop(woken), None);
        assert!(timers.next_deadline().unwrap() >= millis(1_001_000));
    }

    proptest! {
        /// Against a sorted list: nothing early, nothing later than a tick, nothing lost.
        #[test]
        fn equals_a_sorted_list(
            steps in prop::collection::vec((0u8..4, 0u64..40, 0u64..1 << 40), 1..120)
        ) {
            let tick = 1u64 << TICK_BITS;
            let mut timers = Timers::default();
            let mut reference: Vec<(u64, u32, TimerKey)> = Vec::new();
            let mut now = 0u64;
            for (number, (what, shift, amount)) in steps.into_iter().enumerate() {
                let amount = amount >> shift;
                match what {
                    0 | 1 => {
                        let at = Time::from_nanos(now + amount);
                        let key = timers.arm(at, Due::Test(number as u32));
                        reference.push((at.as_nanos(), number as u32, key));
                    }
                    2 if !reference.is_empty() => {
                        let (_, _, key) = reference.remove(amount as usize % reference.len());
                        timers.cancel(key);
                    }
                    _ => {
                        now += amount;
                        let mut fired = Vec::new();
                        while let Some(Due::Test(n)) = timers.pop(Time::from_nanos(now)) {
                            fired.push(n);
                        }
                        for n in &fired {
                            let i = reference.iter().position(|(_, m, _)| m == n).unwrap();
                            prop_assert!(reference.remove(i).0 <= now, "early");
                        }
                        for (at, _, _) in &reference {
                            prop_assert!(*at + tick > now, "late");
                        }
                    }
                }
                prop_assert_eq!(timers.len(), reference.len());
                let earliest = reference.iter().map(|(at, _, _)| *at).min();
                match (timers.next_deadline(), earliest) {
                    (None, None) => {}
                    (Some(next), Some(at)) => {
                        prop_assert!(next.as_nanos() < at.max(now) + tick, "woken too late");
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
        }
    }
}
