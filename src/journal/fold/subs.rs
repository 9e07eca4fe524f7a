//! The subscriptions of one filter, by session, and the members of a group.
//!
//! Invariant: one of each session.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::{At, QOS_BITS, origin_of, sequence_of};

/// One subscription, with the others of its filter.
#[derive(Debug)]
pub(crate) struct Sub {
    pub(crate) session: u32,
    pub(crate) options: u8,
    /// 0 without one.
    pub(crate) subscription_id: u32,
    /// Given once.
    pub(crate) serial: u64,
    /// What of the names that SUB has seen is still above the last PUB of its origin.
    pub(crate) seen: Vec<u64>,
    pub(crate) at: At,
}

impl Sub {
    /// Whether it may be owed messages.
    pub(crate) const fn is_kept(&self) -> bool {
        self.options & QOS_BITS > 0
    }

    /// Whether a message may still come that it has had; `last_pub` has the last PUB of each origin.
    pub(crate) fn waits(&self, last_pub: &[u64]) -> bool {
        self.seen.iter().any(|name| sequence_of(*name) > last_pub[origin_of(*name)])
    }

    /// Whether this message, if it is one that is forwarded at once, came to its home before it was to
    /// be owed.
    pub(crate) fn had(&self, name: u64) -> bool {
        let covers = |last: &u64| {
            origin_of(*last) == origin_of(name) && sequence_of(name) <= sequence_of(*last)
        };
        self.seen.iter().any(covers)
    }

    /// A SUB changes it, which began before; one at QoS 0 is owed nothing, and begins to be when it
    /// is raised. Where the record is that it came from, and what that had seen.
    fn change(&mut self, mut new: Self) -> (At, Vec<u64>) {
        new.serial = self.serial;
        if self.is_kept() {
            new.seen.clone_from(&self.seen);
        }
        let old = std::mem::replace(self, new);
        (old.at, old.seen)
    }
}

/// Mostly one; of some filters hundreds of thousands, which may end together.
#[derive(Debug, Default)]
pub(crate) enum Subs {
    #[default]
    None,
    One(Sub),
    Many(BTreeMap<u32, Sub>),
}

impl Subs {
    pub(crate) fn get(&self, session: u32) -> Option<&Sub> {
        match self {
            Self::One(sub) if sub.session == session => Some(sub),
            Self::Many(all) => all.get(&session),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, session: u32) -> Option<&mut Sub> {
        match self {
            Self::One(sub) if sub.session == session => Some(sub),
            Self::Many(all) => all.get_mut(&session),
            _ => None,
        }
    }

    /// A SUB: where the record lies that it replaces, and what that had seen.
    pub(crate) fn put(&mut self, new: Sub) -> Option<(At, Vec<u64>)> {
        if let Some(sub) = self.get_mut(new.session) {
            return Some(sub.change(new));
        }
        *self = match std::mem::take(self) {
            Self::None => Self::One(new),
            Self::One(first) => {
                Self::Many(BTreeMap::from([(first.session, first), (new.session, new)]))
            }
            Self::Many(mut all) => {
                all.insert(new.session, new);
                Self::Many(all)
            }
        };
        None
    }

    pub(crate) fn remove(&mut self, session: u32) -> Option<Sub> {
        match self {
            Self::One(sub) if sub.session == session => match std::mem::take(self) {
                Self::One(sub) => Some(sub),
                _ => None,
            },
            Self::Many(all) => {
                let removed = all.remove(&session);
                if all.len() == 1
                    && let Some((_, last)) = all.pop_first()
                {
                    *self = Self::One(last);
                }
                removed
            }
            _ => None,
        }
    }

    /// All, in the order of their sessions' slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sub> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(sub) => (Some(sub), None),
            Self::Many(all) => (None, Some(all.values())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    pub(crate) const fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }
}

/// Members of a group, with how many there are of each QoS.
#[derive(Debug, Default)]
pub(crate) struct Members {
    subs: Subs,
    by_qos: [u32; 3],
}

impl Members {
    /// The highest QoS of one.
    pub(crate) const fn granted(&self) -> u8 {
        match self.by_qos {
            [_, 0, 0] => 0,
            [_, _, 0] => 1,
            _ => 2,
        }
    }

    pub(crate) fn put(&mut self, new: Sub) -> Option<At> {
        let before = self.subs.get(new.session).map(level);
        self.by_qos[level(&new)] += 1;
        if let Some(before) = before {
            self.by_qos[before] -= 1;
        }
        self.subs.put(new).map(|(at, _)| at)
    }

    pub(crate) fn remove(&mut self, session: u32) -> Option<Sub> {
        let removed = self.subs.remove(session)?;
        self.by_qos[level(&removed)] -= 1;
        Some(removed)
    }

    pub(crate) fn get(&self, session: u32) -> Option<&Sub> {
        self.subs.get(session)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sub> {
        self.subs.iter()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.subs.is_empty()
    }
}

fn level(sub: &Sub) -> usize {
    usize::from(sub.options & QOS_BITS).min(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sub(session: u32, options: u8) -> Sub {
        Sub {
            session,
            options,
            subscription_id: 0,
            serial: 0,
            seen: Vec::new(),
            at: At { commit: u64::from(session), offset: u32::from(options), len: 1 },
        }
    }

    #[test]
    fn the_highest_qos_is_that_of_who_is_there() {
        let mut members = Members::default();
        assert_eq!((members.granted(), members.is_empty()), (0, true));
        for (session, qos) in [(1, 0), (2, 1), (3, 2), (4, 1)] {
            assert_eq!(members.put(sub(session, qos)), None);
        }
        assert_eq!(members.granted(), 2);
        // Lowered: what it was before does not count.
        assert_eq!(members.put(sub(3, 1)), Some(sub(3, 2).at));
        assert_eq!(members.granted(), 1);
        assert!(members.remove(2).is_some() && members.remove(2).is_none());
        assert_eq!(members.granted(), 1);
        assert!(members.remove(3).is_some() && members.remove(4).is_some());
        assert_eq!((members.granted(), members.iter().count()), (0, 1));
        assert!(members.remove(1).is_some() && members.is_empty());
    }
}
