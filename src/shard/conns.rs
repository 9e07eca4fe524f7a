//! The table of connections: slots that are used again, each use with its own generation.
#![forbid(unsafe_code)]

use super::conn::Conn;
use crate::ids::ConnId;
use slab::Slab;

/// All connections of one shard. A slot is free again only when nothing of its connection is in
/// the kernel any more, and its next use has another generation, so that a stale id finds nothing.
#[derive(Debug, Default)]
pub(super) struct Conns {
    slots: Slab<Conn>,
    /// Of the present or next use of each slot.
    generations: Vec<u32>,
}

impl Conns {
    /// Adds a connection.
    pub(super) fn insert(&mut self, conn: Conn) -> ConnId {
        let index = self.slots.insert(conn);
        if index == self.generations.len() {
            self.generations.push(0);
        }
        ConnId { index: index as u32, generation: self.generations[index] }
    }

    /// The connection with this id, unless it is gone.
    pub(super) fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        let index = id.index as usize;
        if self.generations.get(index) != Some(&id.generation) {
            return None;
        }
        self.slots.get_mut(index)
    }

    /// Takes a connection out and ends its id.
    pub(super) fn remove(&mut self, id: ConnId) -> Option<Conn> {
        self.get_mut(id)?;
        let index = id.index as usize;
        self.generations[index] = (id.generation + 1) % ConnId::GENERATIONS;
        Some(self.slots.remove(index))
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// All ids, in the order of their slots.
    pub(super) fn ids(&self) -> Vec<ConnId> {
        self.slots
            .iter()
            .map(|(index, _)| ConnId { index: index as u32, generation: self.generations[index] })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::conn::tests::some_conn;

    #[test]
    fn an_id_ends_with_its_connection() {
        let mut conns = Conns::default();
        let first = conns.insert(some_conn());
        assert!(conns.get_mut(first).is_some());
        assert!(conns.remove(first).is_some());
        let second = conns.insert(some_conn());
        assert_eq!(first.index, second.index);
        assert!(conns.get_mut(first).is_none() && conns.remove(first).is_none());
        assert_eq!((conns.len(), conns.ids()), (1, vec![second]));
    }
}
