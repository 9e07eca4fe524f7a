//! What a backend knows of each connection, by slot; an id of another use of the slot finds
//! nothing.
#![forbid(unsafe_code)]

use crate::ids::ConnId;

pub(super) struct Table<T> {
    slots: Vec<Option<Slot<T>>>,
}

struct Slot<T> {
    generation: u32,
    value: T,
}

impl<T> Table<T> {
    /// What a connection takes here, in bytes.
    #[cfg(test)]
    pub(super) const SLOT_BYTES: usize = size_of::<Option<Slot<T>>>();

    pub(super) const fn new() -> Self {
        Self { slots: Vec::new() }
    }

    /// # Panics
    /// If the slot is in use.
    pub(super) fn insert(&mut self, conn: ConnId, value: T) {
        let index = conn.index as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        let slot = &mut self.slots[index];
        assert!(slot.is_none(), "invariant: a slot is used again only after Closed or detach");
        *slot = Some(Slot { generation: conn.generation, value });
    }

    pub(super) fn get(&self, conn: ConnId) -> Option<&T> {
        let slot = self.slots.get(conn.index as usize)?.as_ref()?;
        (slot.generation == conn.generation).then_some(&slot.value)
    }

    pub(super) fn get_mut(&mut self, conn: ConnId) -> Option<&mut T> {
        let slot = self.slots.get_mut(conn.index as usize)?.as_mut()?;
        (slot.generation == conn.generation).then_some(&mut slot.value)
    }

    pub(super) fn remove(&mut self, conn: ConnId) -> Option<T> {
        self.get(conn)?;
        Some(self.slots[conn.index as usize].take().expect("invariant: found above").value)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// All of them, to end them.
    pub(super) fn ids(&self) -> Vec<ConnId> {
        let id = |(index, slot): (usize, &Option<Slot<T>>)| {
            let generation = slot.as_ref()?.generation;
            Some(ConnId { index: index as u32, generation })
        };
        self.slots.iter().enumerate().filter_map(id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_generation_finds_nothing() {
        let mut table = Table::new();
        let old = ConnId { index: 3, generation: 7 };
        let new = ConnId { index: 3, generation: 8 };
        table.insert(old, 'a');
        assert_eq!(table.get(new), None);
        assert_eq!(table.remove(new), None);
        assert_eq!(table.remove(old), Some('a'));
        table.insert(new, 'b');
        assert_eq!((table.get(old), table.get(new)), (None, Some(&'b')));
    }
}
