//! The messages that somebody is owed, or that are retained: where each lies in the log, and who
//! still waits for it. Payloads are not here.
//!
//! Invariant: a message is here exactly while somebody holds it.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use foldhash::fast::FixedState;

/// Where a record lies: in which commit, at which byte of its records, and how long it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct At {
    /// Number of the commit.
    pub commit: u64,
    /// Offset behind the frame's header.
    pub offset: u32,
    /// With its own header.
    pub len: u32,
}

/// One who is owed a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owed {
    /// Slot of the session or group.
    pub(crate) holder: u32,
    pub(crate) is_group: bool,
    /// It has a packet id: an exchange holds it, and no queue.
    pub(crate) is_assigned: bool,
    /// At which it is delivered.
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    /// The last bits of the serial number of the only subscription that it is owed by; 0 if that is
    /// not known.
    pub(crate) only: u32,
    /// The first Subscription Identifier, 0 without one.
    pub(crate) subscription_id: u32,
    /// The others.
    #[expect(clippy::box_collection, reason = "hardly ever there: a word in each of many")]
    pub(crate) more_ids: Option<Box<Vec<u32>>>,
}

impl Owed {
    /// By an exchange of this session.
    pub(crate) const fn assigned(session: u32) -> Self {
        Self {
            holder: session,
            is_group: false,
            is_assigned: true,
            qos: 2,
            retain: false,
            only: 0,
            subscription_id: 0,
            more_ids: None,
        }
    }

    /// All Subscription Identifiers.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        let first = Some(self.subscription_id).filter(|id| *id != 0);
        first.into_iter().chain(self.more_ids.iter().flat_map(|more| more.iter().copied()))
    }

    /// Sets them.
    pub(crate) fn set_ids(&mut self, mut ids: impl Iterator<Item = u32>) {
        self.subscription_id = ids.next().unwrap_or(0);
        let more: Vec<u32> = ids.collect();
        self.more_ids = (!more.is_empty()).then(|| Box::new(more));
    }
}

/// Mostly one.
#[derive(Clone, Debug, Default)]
pub(crate) enum Receivers {
    #[default]
    None,
    One(Owed),
    #[expect(clippy::box_collection, reason = "seldom there: a word in each of many")]
    Many(Box<Vec<Owed>>),
}

impl Receivers {
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Owed> {
        match self {
            Self::None => [].iter(),
            Self::One(owed) => std::slice::from_ref(owed).iter(),
            Self::Many(all) => all.iter(),
        }
    }

    pub(crate) fn push(&mut self, owed: Owed) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(owed),
            Self::One(first) => Self::Many(Box::new(vec![first, owed])),
            Self::Many(mut all) => {
                all.push(owed);
                Self::Many(all)
            }
        };
    }

    pub(crate) fn find_mut(&mut self, holder: u32, is_group: bool) -> Option<&mut Owed> {
        let all = match self {
            Self::None => return None,
            Self::One(owed) => std::slice::from_mut(owed),
            Self::Many(all) => all.as_mut_slice(),
        };
        all.iter_mut().find(|owed| (owed.holder, owed.is_group) == (holder, is_group))
    }

    pub(crate) fn remove(&mut self, holder: u32, is_group: bool) -> Option<Owed> {
        let is_it = |owed: &Owed| (owed.holder, owed.is_group) == (holder, is_group);
        match self {
            Self::One(owed) if is_it(owed) => match std::mem::take(self) {
                Self::One(owed) => Some(owed),
                _ => None,
            },
            Self::Many(all) => {
                let removed = all.iter().position(is_it).map(|i| all.swap_remove(i));
                if all.len() == 1
                    && let Some(last) = all.pop()
                {
                    *self = Self::One(last);
                }
                removed
            }
            _ => None,
        }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }
}

/// One message.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) at: At,
    pub(crate) receivers: Receivers,
    pub(crate) is_retained: bool,
    /// As published.
    pub(crate) qos: u8,
    /// As published.
    pub(crate) retain: bool,
}

// There may be millions.
const _: () = assert!(size_of::<Option<Message>>() <= 48);

/// Where the messages of some names are that follow each other: in a queue most of them are there.
#[derive(Debug)]
struct Page {
    slots: [u32; PAGE],
    used: u32,
}

/// Names of one page.
const PAGE: usize = 32;
/// None of the name is there.
const NO_SLOT: u32 = u32::MAX;

/// All of them, by name.
#[derive(Debug)]
pub(crate) struct Messages {
    slots: Vec<Option<Message>>,
    free: Vec<u32>,
    /// Pages by what their names have in common; in many parts, so that none takes long to grow.
    parts: Vec<HashMap<u64, Box<Page>, FixedState>>,
    pages: usize,
}

const PARTS: usize = 64;

impl Default for Messages {
    fn default() -> Self {
        let part = || HashMap::with_hasher(FixedState::with_seed(0x6d73_6773));
        let parts = (0..PARTS).map(|_| part()).collect();
        Self { slots: Vec::new(), free: Vec::new(), parts, pages: 0 }
    }
}

/// The part, the page, and where in it. Names of one origin differ in what is above their lowest
/// byte.
fn place(name: u64) -> (usize, u64, usize) {
    let sequence = name >> 8;
    let page = sequence / PAGE as u64;
    ((page as usize ^ name as usize) % PARTS, page << 8 | name & 0xff, sequence as usize % PAGE)
}

/// The name at a place in a page.
fn name_at(page: u64, index: usize) -> u64 {
    ((page >> 8) * PAGE as u64 + index as u64) << 8 | page & 0xff
}

impl Messages {
    fn slot(&self, name: u64) -> Option<usize> {
        let (part, page, index) = place(name);
        let slot = self.parts[part].get(&page)?.slots[index];
        (slot != NO_SLOT).then_some(slot as usize)
    }

    pub(crate) fn get(&self, name: u64) -> Option<&Message> {
        self.slots[self.slot(name)?].as_ref()
    }

    pub(crate) fn get_mut(&mut self, name: u64) -> Option<&mut Message> {
        let slot = self.slot(name)?;
        self.slots[slot].as_mut()
    }

    pub(crate) fn insert(&mut self, name: u64, message: Message) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(message);
                slot
            }
            None => {
                self.slots.push(Some(message));
                (self.slots.len() - 1) as u32
            }
        };
        let (part, page, index) = place(name);
        let page = self.parts[part].entry(page).or_insert_with(|| {
            self.pages += 1;
            Box::new(Page { slots: [NO_SLOT; PAGE], used: 0 })
        });
        debug_assert_eq!(page.slots[index], NO_SLOT, "invariant: inserted once");
        page.slots[index] = slot;
        page.used += 1;
    }

    pub(crate) fn remove(&mut self, name: u64) -> Option<Message> {
        let (part, key, index) = place(name);
        let page = self.parts[part].get_mut(&key)?;
        let slot = std::mem::replace(&mut page.slots[index], NO_SLOT);
        if slot == NO_SLOT {
            return None;
        }
        page.used -= 1;
        if page.used == 0 {
            self.parts[part].remove(&key);
            self.pages -= 1;
        }
        self.free.push(slot);
        self.slots[slot as usize].take()
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// All of them, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Message)> {
        self.parts.iter().flatten().flat_map(|(key, page)| {
            let slots = page.slots.iter().enumerate();
            slots.filter(|(_, slot)| **slot != NO_SLOT).filter_map(|(index, slot)| {
                Some((name_at(*key, index), self.slots[*slot as usize].as_ref()?))
            })
        })
    }

    /// Bytes of memory, without lists of many receivers.
    pub(crate) fn bytes(&self) -> usize {
        let map = self.parts.iter().map(|part| part.capacity() * 17).sum::<usize>();
        map + self.pages * size_of::<Page>()
            + self.slots.capacity() * size_of::<Option<Message>>()
            + self.free.capacity() * 4
    }
}
