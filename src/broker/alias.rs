//! Topic Aliases towards a client (3.3.2.3.4): which topics of one connection have a number.
//!
//! A topic that is long enough for this to pay gets a number, three bytes, as long as there are some
//! left. Then, one that comes a second time takes that of the topic that was used longest ago, if
//! that was not used since this one came first. So topics that come once cost next to nothing, and a
//! client that gets more topics in turn than there are numbers keeps those that it has, instead of
//! learning each anew.
//!
//! Topics are told apart by [`TopicId`], which routing remembers per topic: nothing is hashed or
//! compared per receiver. Owns one small table per connection whose client allows aliases; it ends
//! with its connection [MQTT-3.3.2-7].
//!
//! Invariant: a number stands for a topic only from the moment at which a packet that says so is
//! in the outbox; choosing alone changes nothing that the client relies on.
#![forbid(unsafe_code)]

use crate::codec::mqtt::Delivery;
use crate::limits::TOPIC_ALIAS_LEN_MIN;

/// A topic as routing remembers it: no two topics ever have the same, but one that was forgotten
/// gets another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TopicId(u64);

impl TopicId {
    /// Of a topic that nobody remembers: it gets no alias.
    pub(crate) const NONE: Self = Self(0);

    /// The `n`th, from 1.
    pub(crate) fn new(n: u64) -> Self {
        Self(n)
    }
}

/// How a PUBLISH names its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// By its name alone.
    Name,
    /// By its name, and from then on by this alias.
    Both(u16),
    /// By this alias alone.
    Alias(u16),
}

impl Naming {
    /// Names the topic so, in a delivery that has its name.
    pub(crate) fn apply(self, delivery: &mut Delivery<'_>) {
        match self {
            Self::Name => {}
            Self::Both(alias) => delivery.topic_alias = Some(alias),
            Self::Alias(alias) => {
                delivery.topic_alias = Some(alias);
                delivery.topic = "";
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Use {
    topic: TopicId,
    /// The last one, by the table's own count.
    at: u64,
}

/// The aliases of one connection.
#[derive(Debug)]
pub(crate) struct Aliases {
    /// Counts what was chosen.
    now: u64,
    max: usize,
    /// What the client knows: alias n stands at n - 1.
    known: Vec<Use>,
    /// Topics without an alias that came lately; twice as many as there may be aliases.
    seen: Vec<Use>,
    /// Where the next of them is written.
    next_seen: usize,
}

impl Aliases {
    /// For a client that allows `allowed` of them, of which we use `most` at most.
    pub(crate) fn new(allowed: u16, most: u16) -> Option<Box<Self>> {
        let max = usize::from(allowed.min(most));
        let table = || Self { now: 0, max, known: Vec::new(), seen: Vec::new(), next_seen: 0 };
        (max > 0).then(|| Box::new(table()))
    }

    /// How the next PUBLISH of this topic, `len` bytes long, names it.
    #[inline]
    pub(crate) fn choose(&mut self, topic: TopicId, len: usize) -> Naming {
        if topic == TopicId::NONE || len < TOPIC_ALIAS_LEN_MIN {
            return Naming::Name;
        }
        self.now += 1;
        match self.known.iter().position(|known| known.topic == topic) {
            Some(index) => {
                self.known[index].at = self.now;
                Naming::Alias(index as u16 + 1)
            }
            None => self.choose_new(topic),
        }
    }

    fn choose_new(&mut self, topic: TopicId) -> Naming {
        if self.known.len() < self.max {
            return Naming::Both(self.known.len() as u16 + 1);
        }
        let this = Use { topic, at: self.now };
        let Some(seen) = self.seen.iter_mut().find(|seen| seen.topic == topic) else {
            if self.seen.len() < 2 * self.max {
                self.seen.push(this);
            } else {
                self.seen[self.next_seen] = this;
                self.next_seen = (self.next_seen + 1) % self.seen.len();
            }
            return Naming::Name;
        };
        let since = std::mem::replace(&mut seen.at, self.now);
        match self.known.iter().enumerate().min_by_key(|(_, known)| known.at) {
            Some((index, oldest)) if oldest.at < since => Naming::Both(index as u16 + 1),
            _ => Naming::Name,
        }
    }

    /// A packet that gives this topic this alias is in the outbox.
    pub(crate) fn define(&mut self, topic: TopicId, alias: u16) {
        let this = Use { topic, at: self.now };
        match self.known.get_mut(usize::from(alias) - 1) {
            Some(known) => *known = this,
            None => self.known.push(this),
        }
        if let Some(seen) = self.seen.iter_mut().find(|seen| seen.topic == topic) {
            *seen = Use { topic: TopicId::NONE, at: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 40;

    /// Chooses and sends; what the client understands must be the topic.
    fn send(aliases: &mut Aliases, client: &mut Vec<u64>, n: u64) -> Naming {
        let naming = aliases.choose(TopicId::new(n), LEN);
        match naming {
            Naming::Name => {}
            Naming::Both(alias) => {
                aliases.define(TopicId::new(n), alias);
                let at = usize::from(alias) - 1;
                client.resize(client.len().max(at + 1), 0);
                client[at] = n;
            }
            Naming::Alias(alias) => assert_eq!(client[usize::from(alias) - 1], n),
        }
        naming
    }

    #[test]
    fn a_topic_that_repeats_gets_one() {
        assert!(Aliases::new(0, 16).is_none() && Aliases::new(16, 0).is_none());
        let (mut aliases, mut client) = (Aliases::new(2, 16).unwrap(), Vec::new());
        assert_eq!(send(&mut aliases, &mut client, 1), Naming::Both(1));
        assert_eq!(send(&mut aliases, &mut client, 1), Naming::Alias(1));
        assert_eq!(send(&mut aliases, &mut client, 2), Naming::Both(2));
        assert_eq!(send(&mut aliases, &mut client, 3), Naming::Name);
        assert_eq!(send(&mut aliases, &mut client, 2), Naming::Alias(2));
        // The first was not used since the third came first.
        assert_eq!(send(&mut aliases, &mut client, 3), Naming::Both(1));
        assert_eq!(send(&mut aliases, &mut client, 2), Naming::Alias(2));
        for _ in 0..3 {
            assert_eq!(aliases.choose(TopicId::NONE, LEN), Naming::Name);
            assert_eq!(aliases.choose(TopicId::new(3), TOPIC_ALIAS_LEN_MIN - 1), Naming::Name);
        }
    }

    /// What was chosen and then dropped is not known to the client (PITFALLS 50).
    #[test]
    fn what_was_not_sent_is_not_known() {
        let mut aliases = Aliases::new(1, 1).unwrap();
        for _ in 0..3 {
            assert_eq!(aliases.choose(TopicId::new(1), LEN), Naming::Both(1));
        }
        aliases.define(TopicId::new(1), 1);
        assert_eq!(aliases.choose(TopicId::new(2), LEN), Naming::Name);
        for _ in 0..3 {
            assert_eq!(aliases.choose(TopicId::new(2), LEN), Naming::Both(1));
        }
        assert_eq!(aliases.choose(TopicId::new(1), LEN), Naming::Alias(1));
    }

    #[test]
    fn more_topics_than_aliases_in_turn_keep_what_they_have() {
        let (mut aliases, mut client) = (Aliases::new(4, 16).unwrap(), Vec::new());
        let mut by_alias = 0;
        let mut defined = 0;
        for _ in 0..100 {
            for n in 1..=6 {
                match send(&mut aliases, &mut client, n) {
                    Naming::Alias(alias) => {
                        assert!(alias <= 4);
                        by_alias += 1;
                    }
                    Naming::Both(_) => defined += 1,
                    Naming::Name => {}
                }
            }
        }
        assert_eq!(defined, 4);
        assert!(by_alias >= 4 * 96, "{by_alias}");
        // Topics that come once take nothing from those.
        for n in 100..200 {
            assert_eq!(send(&mut aliases, &mut client, n), Naming::Name);
        }
        // Others take their place once they are no longer used.
        for _ in 0..3 {
            for n in 7..=10 {
                send(&mut aliases, &mut client, n);
            }
        }
        for n in 7..=10 {
            assert!(matches!(send(&mut aliases, &mut client, n), Naming::Alias(_)), "{n}");
        }
    }
}
