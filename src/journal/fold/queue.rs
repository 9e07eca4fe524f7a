//! Which messages a session or a group is owed, in the order of the log.
//!
//! Message names in pieces, so that neither growth nor an end moves much at once. What is no longer
//! owed is taken out at the front at once, and elsewhere when it is more than what is left, a piece
//! at a time.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

/// Names in one piece.
const PIECE: usize = 512;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pieces: VecDeque<Vec<u64>>,
    /// Names in it, owed or not.
    len: usize,
    /// Of those, the ones that are owed.
    owed: usize,
    /// The piece that is swept next.
    sweep: usize,
}

impl Queue {
    /// One more, which is owed.
    pub(crate) fn push(&mut self, name: u64) {
        match self.pieces.back_mut().filter(|piece| piece.len() < PIECE) {
            Some(piece) => piece.push(name),
            None => {
                let first = if self.pieces.is_empty() { 4 } else { PIECE };
                let mut piece = Vec::with_capacity(first);
                piece.push(name);
                self.pieces.push_back(piece);
            }
        }
        self.len += 1;
        self.owed += 1;
    }

    /// One that stands in it is no longer owed. `is_owed` says of any whether it still is.
    pub(crate) fn settle(&mut self, is_owed: impl Fn(u64) -> bool) {
        debug_assert!(self.owed > 0, "invariant: settled once each");
        self.owed -= 1;
        if self.owed == 0 {
            (self.pieces, self.len, self.sweep) = (VecDeque::new(), 0, 0);
            return;
        }
        if self.len > 2 * self.owed + PIECE {
            self.sweep_piece(is_owed);
        } else {
            // In order, as most are: the first piece, when nothing in it is owed.
            self.drop_front(is_owed);
        }
    }

    fn drop_front(&mut self, is_owed: impl Fn(u64) -> bool) {
        let Some(front) = self.pieces.front_mut() else { return };
        // Names are taken from the front by looking at the last of a full piece first: one look a
        // settlement.
        if front.len() == PIECE && !front.last().is_some_and(|name| is_owed(*name)) {
            let before = front.len();
            front.retain(|name| is_owed(*name));
            self.len -= before - front.len();
            if front.is_empty() {
                self.pieces.pop_front();
                self.sweep = self.sweep.saturating_sub(1);
            }
        }
    }

    fn sweep_piece(&mut self, is_owed: impl Fn(u64) -> bool) {
        if self.sweep >= self.pieces.len() {
            self.sweep = 0;
        }
        let piece = &mut self.pieces[self.sweep];
        let before = piece.len();
        piece.retain(|name| is_owed(*name));
        self.len -= before - piece.len();
        if piece.is_empty() {
            self.pieces.remove(self.sweep);
        } else {
            self.sweep += 1;
        }
    }

    /// How many are owed.
    pub(crate) const fn owed(&self) -> usize {
        self.owed
    }

    /// All names, owed or not, in the order in which they came.
    pub(crate) fn names(&self) -> impl Iterator<Item = u64> + '_ {
        self.pieces.iter().flatten().copied()
    }

    /// The same from the last on.
    pub(crate) fn latest(&self) -> impl Iterator<Item = u64> + '_ {
        self.pieces.iter().rev().flat_map(|piece| piece.iter().rev()).copied()
    }

    /// Takes up to so many names out, owed or not.
    pub(crate) fn take(&mut self, most: usize) -> Vec<u64> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(piece) = self.pieces.pop_front()
        {
            self.len -= piece.len();
            taken.extend(piece);
        }
        taken
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.capacity() * 8).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn holds_what_is_owed_and_little_else() {
        let mut queue = Queue::default();
        let mut owed: HashSet<u64> = HashSet::new();
        for name in 0..100_000u64 {
            queue.push(name);
            owed.insert(name);
            // The first is never settled; most go in order, some much later.
            let done = match name {
                n if n > 100 && n % 10 == 0 => n - 90,
                n if n > 3 => n - 3,
                _ => continue,
            };
            if owed.remove(&done) {
                queue.settle(|name| owed.contains(&name));
            }
        }
        assert_eq!(queue.owed(), owed.len());
        let names: Vec<u64> = queue.names().filter(|name| owed.contains(name)).collect();
        assert!(names.is_sorted() && names.len() == owed.len());
        assert!(queue.names().count() <= 2 * owed.len() + 2 * PIECE, "{}", queue.names().count());
    }

    #[test]
    fn is_empty_when_nothing_is_owed() {
        let mut queue = Queue::default();
        (0..2000).for_each(|name| queue.push(name));
        (0..2000).for_each(|done| queue.settle(move |name| name > done));
        assert_eq!((queue.names().count(), queue.bytes()), (0, 0));
        (0..2000).for_each(|name| queue.push(name));
        let mut taken = Vec::new();
        while queue.names().next().is_some() {
            taken.extend(queue.take(600));
        }
        assert_eq!(taken, (0..2000).collect::<Vec<_>>());
    }
}
