//! Which sessions and messages last, and through what.
//!
//! The operator's contract has a level for all, and others for single listeners and topics. A
//! session has the level of the listener on which it began; a message that of the first topic
//! filter that matches it, else that of the listener it came through. What has the level `none` is
//! not recorded and waits for nothing.
#![forbid(unsafe_code)]

use crate::codec::mqtt::topic;

/// What durable sessions, their messages and retained messages survive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Nothing: they are kept in memory.
    None,
    /// The end of the process, `kill -9` included.
    Process,
    /// A power cut as well.
    #[default]
    Power,
}

impl Level {
    /// Its name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Process => "process",
            Self::Power => "power",
        }
    }
}

/// The levels in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durability {
    /// Where nothing else is said.
    pub default: Level,
    /// Of listeners, by their number; those beyond its end have the default.
    pub listeners: Vec<Option<Level>>,
    /// Of topics, by filter; the first that matches counts.
    pub topics: Vec<(Box<str>, Level)>,
}

impl Durability {
    /// The same for all.
    pub fn of_all(default: Level) -> Self {
        Self { default, ..Self::default() }
    }

    /// The highest level in it: what the journal has to be able to do.
    pub fn highest(&self) -> Level {
        let listeners = self.listeners.iter().flatten().copied();
        let topics = self.topics.iter().map(|(_, level)| *level);
        listeners.chain(topics).fold(self.default, Level::max)
    }

    /// Of what comes through this listener.
    pub(crate) fn of_listener(&self, listener: Option<u16>) -> Level {
        let own = listener.and_then(|listener| self.listeners.get(usize::from(listener)).copied());
        own.flatten().unwrap_or(self.default)
    }

    /// Of a message to this topic that came through this listener.
    pub(crate) fn of_message(&self, listener: Option<u16>, topic: &str) -> Level {
        let own = self.topics.iter().find(|(filter, _)| topic::matches(filter, topic));
        own.map_or_else(|| self.of_listener(listener), |(_, level)| *level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topic_decides_then_the_listener_then_the_default() {
        let durability = Durability {
            default: Level::Power,
            listeners: vec![None, Some(Level::None)],
            topics: vec![("a/#".into(), Level::Process), ("a/b".into(), Level::None)],
        };
        assert_eq!(durability.of_message(Some(1), "a/b"), Level::Process);
        assert_eq!(durability.of_message(Some(1), "c"), Level::None);
        assert_eq!(durability.of_message(Some(0), "c"), Level::Power);
        assert_eq!(durability.of_message(None, "c"), Level::Power);
        assert_eq!(durability.of_listener(Some(1)), Level::None);
        assert_eq!(durability.of_listener(Some(9)), Level::Power);
        assert_eq!(durability.highest(), Level::Power);
        assert_eq!(Durability::of_all(Level::None).highest(), Level::None);
    }
}
