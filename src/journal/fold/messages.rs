//! The messages that somebody is owed, or that are retained: where each lies in the log, and who
//! still waits for it. Payloads are not here.
//!
//! Invariant: a message is here exactly while somebody holds it.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};

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
    /// Who holds it; a message's are in this order.
    pub(crate) const fn key(&self) -> (bool, u32) {
        (self.is_group, self.holder)
    }

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
    Many(Box<Many>),
}

/// In the order of [`Owed::key`]. Who is gone leaves a gap, until half are gaps: what thousands are
/// owed ends one by one.
#[derive(Clone, Debug)]
pub(crate) struct Many {
    all: Vec<Owed>,
    gaps: usize,
}

/// The QoS of a gap.
const GAP: u8 = u8::MAX;

impl Many {
    fn find(&self, key: (bool, u32)) -> Option<usize> {
        let index = self.all.binary_search_by_key(&key, Owed::key).ok()?;
        (self.all[index].qos != GAP).then_some(index)
    }

    fn iter(&self) -> impl Iterator<Item = &Owed> {
        self.all.iter().filter(|owed| owed.qos != GAP)
    }
}

impl Receivers {
    /// These, of each holder the first; `owed` is empty then.
    pub(crate) fn of(owed: &mut Vec<Owed>) -> Self {
        owed.sort_by_key(Owed::key);
        owed.dedup_by_key(|owed| owed.key());
        match owed.len() {
            0 => Self::None,
            1 => owed.pop().map_or(Self::None, Self::One),
            len => {
                // Exactly as long: the other is used again.
                let mut all = Vec::with_capacity(len);
                all.append(owed);
                Self::Many(Box::new(Many { all, gaps: 0 }))
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Owed> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(owed) => (Some(owed), None),
            Self::Many(many) => (None, Some(many.iter())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// One more, whose holder is not among them.
    pub(crate) fn push(&mut self, owed: Owed) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(owed),
            Self::One(first) => Self::of(&mut vec![first, owed]),
            Self::Many(mut many) => {
                match many.all.binary_search_by_key(&owed.key(), Owed::key) {
                    Ok(index) => {
                        many.gaps -= usize::from(many.all[index].qos == GAP);
                        many.all[index] = owed;
                    }
                    Err(index) => many.all.insert(index, owed),
                }
                Self::Many(many)
            }
        };
    }

    pub(crate) fn find(&self, holder: u32, is_group: bool) -> Option<&Owed> {
        let key = (is_group, holder);
        match self {
            Self::One(owed) if owed.key() == key => Some(owed),
            Self::Many(many) => many.find(key).map(|index| &many.all[index]),
            _ => None,
        }
    }

    pub(crate) fn find_mut(&mut self, holder: u32, is_group: bool) -> Option<&mut Owed> {
        let key = (is_group, holder);
        match self {
            Self::One(owed) if owed.key() == key => Some(owed),
            Self::Many(many) => many.find(key).map(|index| &mut many.all[index]),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, holder: u32, is_group: bool) -> Option<Owed> {
        let key = (is_group, holder);
        match self {
            Self::One(owed) if owed.key() == key => match std::mem::take(self) {
                Self::One(owed) => Some(owed),
                _ => None,
            },
            Self::Many(many) => {
                let index = many.find(key)?;
                let gap = Owed { holder, is_group, qos: GAP, ..Owed::assigned(holder) };
                let removed = std::mem::replace(&mut many.all[index], gap);
                many.gaps += 1;
                let left = many.all.len() - many.gaps;
                if left <= 1 {
                    many.all.retain(|owed| owed.qos != GAP);
                    *self = many.all.pop().map_or(Self::None, Self::One);
                } else if many.gaps > left {
                    many.all.retain(|owed| owed.qos != GAP);
                    many.all.shrink_to_fit();
                    many.gaps = 0;
                }
                Some(removed)
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

/// Messages of one chunk of the table.
const CHUNK: usize = 1024;

/// A part of the table, which goes when nothing is in it any more.
#[derive(Debug, Default)]
struct Chunk {
    messages: Vec<Option<Message>>,
    free: Vec<u16>,
}

/// All of them, by name.
#[derive(Debug)]
pub(crate) struct Messages {
    chunks: Vec<Option<Chunk>>,
    /// Chunks with room; the first is filled first, so that the last become empty.
    with_room: BTreeSet<u32>,
    /// Places in `chunks` where none is.
    vacant: Vec<u32>,
    len: usize,
    /// Pages by what their names have in common; in many parts, so that none takes long to grow.
    parts: Vec<HashMap<u64, Box<Page>, FixedState>>,
    pages: usize,
}

const PARTS: usize = 64;
/// Names of pages of one part for which memory is kept.
const PART_KEPT: usize = 64;

impl Default for Messages {
    fn default() -> Self {
        let part = || HashMap::with_hasher(FixedState::with_seed(0x6d73_6773));
        let parts = (0..PARTS).map(|_| part()).collect();
        Self {
            chunks: Vec::new(),
            with_room: BTreeSet::new(),
            vacant: Vec::new(),
            len: 0,
            parts,
            pages: 0,
        }
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

    fn at(&self, slot: usize) -> Option<&Message> {
        self.chunks[slot / CHUNK].as_ref()?.messages[slot % CHUNK].as_ref()
    }

    pub(crate) fn get(&self, name: u64) -> Option<&Message> {
        self.at(self.slot(name)?)
    }

    pub(crate) fn get_mut(&mut self, name: u64) -> Option<&mut Message> {
        let slot = self.slot(name)?;
        self.chunks[slot / CHUNK].as_mut()?.messages[slot % CHUNK].as_mut()
    }

    /// A place in the table.
    fn store(&mut self, message: Message) -> u32 {
        let index = match self.with_room.first() {
            Some(index) => *index,
            None => {
                let index = self.vacant.pop().unwrap_or(self.chunks.len() as u32);
                if index as usize == self.chunks.len() {
                    self.chunks.push(None);
                }
                self.with_room.insert(index);
                index
            }
        };
        let chunk = self.chunks[index as usize].get_or_insert_with(|| {
            // Behind the first, a chunk fills up before there is another.
            let room = if index == 0 { 0 } else { CHUNK };
            Chunk { messages: Vec::with_capacity(room), free: Vec::new() }
        });
        let place = match chunk.free.pop() {
            Some(place) => {
                chunk.messages[usize::from(place)] = Some(message);
                usize::from(place)
            }
            None => {
                chunk.messages.push(Some(message));
                chunk.messages.len() - 1
            }
        };
        if chunk.free.is_empty() && chunk.messages.len() == CHUNK {
            self.with_room.remove(&index);
        }
        self.len += 1;
        index * CHUNK as u32 + place as u32
    }

    fn take(&mut self, slot: u32) -> Option<Message> {
        let (index, place) = (slot as usize / CHUNK, slot as usize % CHUNK);
        let chunk = self.chunks[index].as_mut()?;
        let message = chunk.messages[place].take()?;
        self.len -= 1;
        chunk.free.push(place as u16);
        if chunk.free.len() == chunk.messages.len() {
            self.chunks[index] = None;
            self.with_room.remove(&(index as u32));
            self.vacant.push(index as u32);
        } else if chunk.free.len() == 1 {
            self.with_room.insert(index as u32);
        }
        Some(message)
    }

    pub(crate) fn insert(&mut self, name: u64, message: Message) {
        let slot = self.store(message);
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
        let part = &mut self.parts[part];
        let page = part.get_mut(&key)?;
        let slot = std::mem::replace(&mut page.slots[index], NO_SLOT);
        if slot == NO_SLOT {
            return None;
        }
        page.used -= 1;
        if page.used == 0 {
            part.remove(&key);
            self.pages -= 1;
            if part.capacity() > PART_KEPT && part.len() < part.capacity() / 8 {
                part.shrink_to((2 * part.len()).max(PART_KEPT));
            }
        }
        self.take(slot)
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// All of them, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Message)> {
        self.parts.iter().flatten().flat_map(|(key, page)| {
            let slots = page.slots.iter().enumerate();
            slots
                .filter(|(_, slot)| **slot != NO_SLOT)
                .filter_map(|(index, slot)| Some((name_at(*key, index), self.at(*slot as usize)?)))
        })
    }

    /// All of them, those of one origin in the order of their names.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = (u64, &Message)> {
        let mut pages: Vec<(u64, &Page)> =
            self.parts.iter().flatten().map(|(key, page)| (*key, &**page)).collect();
        pages.sort_unstable_by_key(|(key, _)| *key);
        pages.into_iter().flat_map(move |(key, page)| {
            let slots = page.slots.iter().enumerate().filter(|(_, slot)| **slot != NO_SLOT);
            slots.filter_map(move |(index, slot)| {
                Some((name_at(key, index), self.at(*slot as usize)?))
            })
        })
    }

    /// Bytes of memory, without lists of many receivers.
    pub(crate) fn bytes(&self) -> usize {
        let map = self.parts.iter().map(|part| part.capacity() * 17).sum::<usize>();
        let chunks = self.chunks.iter().flatten().map(|chunk| {
            chunk.messages.capacity() * size_of::<Option<Message>>() + chunk.free.capacity() * 2
        });
        map + self.pages * size_of::<Page>() + chunks.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(holder: u32, is_group: bool) -> Owed {
        Owed { is_group, is_assigned: false, qos: 1, ..Owed::assigned(holder) }
    }

    fn message(commit: u64) -> Message {
        Message {
            at: At { commit, offset: 0, len: 1 },
            receivers: Receivers::One(owed(1, false)),
            is_retained: false,
            qos: 1,
            retain: false,
        }
    }

    #[test]
    fn receivers_are_found_and_go_one_by_one() {
        let all = (0..1000).flat_map(|holder| [owed(999 - holder, true), owed(holder, false)]);
        let mut receivers = Receivers::of(&mut all.collect());
        assert_eq!(receivers.iter().count(), 2000);
        for holder in (0..1000).step_by(2) {
            assert!(receivers.remove(holder, false).is_some());
            assert!(receivers.remove(holder, false).is_none(), "once");
            assert!(receivers.find(holder, false).is_none());
        }
        receivers.push(owed(0, false));
        receivers.push(owed(5000, false));
        assert_eq!(receivers.iter().count(), 1502);
        assert!(receivers.find_mut(1, false).is_some() && receivers.find(0, true).is_some());
        let keys: Vec<(bool, u32)> = receivers.iter().map(Owed::key).collect();
        assert!(keys.is_sorted() && keys.len() == 1502);
        for (is_group, holder) in keys {
            assert!(!receivers.is_empty());
            assert!(receivers.remove(holder, is_group).is_some());
        }
        assert!(receivers.is_empty());
    }

    /// What a backlog has taken is given back when it is gone, while a few stay.
    #[test]
    fn memory_is_given_back() {
        let mut messages = Messages::default();
        let names = |from: u64| (from..from + 100_000).map(|sequence| sequence << 8);
        for round in 0..3 {
            names(round * 1_000_000).for_each(|name| messages.insert(name, message(name)));
            let most = messages.bytes();
            for name in names(round * 1_000_000) {
                assert_eq!(messages.get(name).map(|m| m.at.commit), Some(name));
                if name >> 8 != round * 1_000_000 + 7 {
                    assert!(messages.remove(name).is_some());
                }
            }
            assert_eq!(messages.len() as u64, round + 1);
            assert_eq!(messages.iter().count() as u64, round + 1);
            assert!(messages.bytes() * 10 < most, "{} of {most}", messages.bytes());
        }
    }
}
