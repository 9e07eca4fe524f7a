//! Topic Names and Topic Filters (4.7), Shared Subscriptions' filters among them (4.8.2).
//!
//! [`matches`] is the plain definition of matching. The broker's tree is faster and must agree.
#![forbid(unsafe_code)]

use std::fmt;

use super::error::Cause;
use super::wire::Reader;
use crate::limits::TOPIC_LEVELS_MAX;

/// What a Shared Subscription's filter begins with.
pub const SHARE_PREFIX: &str = "$share/";

/// Why a string is not a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicError {
    /// `[MQTT-4.7.3-1]`
    Empty,
    /// `[MQTT-4.7.3-2]`
    NullCharacter,
    /// `[MQTT-4.7.3-3]`
    TooLong,
    /// More than [`TOPIC_LEVELS_MAX`] levels: our bound, not the standard's.
    TooManyLevels,
    /// `[MQTT-4.7.0-1]`: a wildcard in a Topic Name.
    Wildcard,
    /// `[MQTT-4.7.1-1]`: `#` that is not the whole of the last level.
    MultiLevelWildcard,
    /// `[MQTT-4.7.1-2]`: `+` that is not the whole of its level.
    SingleLevelWildcard,
    /// `[MQTT-4.8.2-1]`, `[MQTT-4.8.2-2]`: an empty ShareName, or one with a wildcard.
    ShareName,
    /// `[MQTT-4.8.2-2]`: `$share/name` without a filter.
    ShareFilter,
    /// A Topic Name under `$share/`, which no subscription could ever match.
    ShareInName,
}

impl TopicError {
    /// What is wrong, in a few words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NullCharacter => "null character",
            Self::TooLong => "longer than 65,535 bytes",
            Self::TooManyLevels => "too many levels",
            Self::Wildcard => "wildcard in a Topic Name",
            Self::MultiLevelWildcard => "# is not the whole last level",
            Self::SingleLevelWildcard => "+ is not a whole level",
            Self::ShareName => "ShareName empty or with a wildcard",
            Self::ShareFilter => "$share without a filter",
            Self::ShareInName => "Topic Name under $share",
        }
    }
}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for TopicError {}

/// A Topic Filter as a SUBSCRIBE names it, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Filter<'a> {
    /// The group of a Shared Subscription.
    pub share_name: Option<&'a str>,
    /// What topics are matched against, without `$share/name/`.
    pub filter: &'a str,
}

/// Whether the string contains `+` or `#`.
pub(super) fn has_wildcard(topic: &str) -> bool {
    topic.as_bytes().iter().any(|byte| matches!(byte, b'+' | b'#'))
}

/// Whether none of the bytes is a wildcard or null. Every PUBLISH is asked, and its topic is mostly
/// longer than one block and shorter than many: blocks of a constant length become one comparison
/// each where a plain loop stays a loop over bytes, and the last one overlaps the one before.
#[inline]
fn is_plain(bytes: &[u8]) -> bool {
    fn special<const N: usize>(block: &[u8; N]) -> bool {
        let hits = block.iter().fold(0, |hits, &byte| {
            hits | u8::from(byte == 0) | u8::from(byte == b'+') | u8::from(byte == b'#')
        });
        hits != 0
    }
    if let Some(last) = bytes.last_chunk::<16>() {
        let (blocks, _) = bytes.as_chunks::<16>();
        return !blocks.iter().fold(special(last), |found, block| found | special(block));
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        return !(special(first) | special(last));
    }
    !bytes.iter().any(|byte| matches!(byte, 0 | b'+' | b'#'))
}

/// Reads a UTF-8 Encoded String without U+0000 and wildcards; it may be empty. `known` has been
/// read so before, or is empty.
#[inline]
pub(super) fn read_name<'a>(packet: &mut Reader<'a>, known: &'a str) -> Result<&'a str, Cause> {
    let bytes = packet.binary()?;
    if bytes == known.as_bytes() {
        return Ok(known);
    }
    check_name(bytes)
}

fn check_name(bytes: &[u8]) -> Result<&str, Cause> {
    let name = std::str::from_utf8(bytes).map_err(|_| Cause::Utf8)?;
    if is_plain(bytes) {
        Ok(name)
    } else if bytes.contains(&0) {
        Err(Cause::NullCharacter)
    } else {
        Err(Cause::TopicWildcard)
    }
}

/// The levels of a name or filter: what is between the separators, possibly nothing.
#[inline]
pub const fn levels(topic: &str) -> Levels<'_> {
    Levels { rest: Some(topic) }
}

/// See [`levels`]. They are short: byte by byte is quicker than what finds a character in long text.
#[derive(Clone, Debug)]
pub struct Levels<'a> {
    rest: Option<&'a str>,
}

impl<'a> Iterator for Levels<'a> {
    type Item = &'a str;

    #[inline]
    fn next(&mut self) -> Option<&'a str> {
        let rest = self.rest?;
        let Some(at) = rest.bytes().position(|byte| byte == b'/') else { return self.rest.take() };
        self.rest = Some(&rest[at + 1..]);
        Some(&rest[..at])
    }
}

/// How many levels there are.
#[inline]
pub fn level_count(topic: &str) -> usize {
    1 + topic.as_bytes().iter().filter(|&&byte| byte == b'/').count()
}

fn check_common(topic: &str) -> Result<(), TopicError> {
    if topic.is_empty() {
        return Err(TopicError::Empty);
    }
    if topic.len() > usize::from(u16::MAX) {
        return Err(TopicError::TooLong);
    }
    if level_count(topic) > TOPIC_LEVELS_MAX {
        return Err(TopicError::TooManyLevels);
    }
    Ok(())
}

/// Whether a message may be published to it. Of a decoded PUBLISH all is known to hold but the
/// number of levels and `$share`.
pub fn check_topic_name(topic: &str) -> Result<(), TopicError> {
    if !is_plain(topic.as_bytes()) {
        let null = topic.as_bytes().contains(&0);
        return Err(if null { TopicError::NullCharacter } else { TopicError::Wildcard });
    }
    check_common(topic)?;
    if topic.starts_with(SHARE_PREFIX) || topic == "$share" {
        return Err(TopicError::ShareInName);
    }
    Ok(())
}

/// Takes a Topic Filter apart. `$share` is understood for every version: 3.1.1 does not know it,
/// but its clients use it.
pub fn check_filter(filter: &str) -> Result<Filter<'_>, TopicError> {
    check_common(filter)?;
    if filter.as_bytes().contains(&0) {
        return Err(TopicError::NullCharacter);
    }
    let parts = if let Some(shared) = filter.strip_prefix(SHARE_PREFIX) {
        let (name, rest) = shared.split_once('/').ok_or(TopicError::ShareFilter)?;
        if name.is_empty() || has_wildcard(name) {
            return Err(TopicError::ShareName);
        }
        if rest.is_empty() {
            return Err(TopicError::ShareFilter);
        }
        Filter { share_name: Some(name), filter: rest }
    } else if filter == "$share" {
        return Err(TopicError::ShareFilter);
    } else {
        Filter { share_name: None, filter }
    };
    let mut rest = levels(parts.filter).peekable();
    while let Some(level) = rest.next() {
        if level.contains('#') && (level != "#" || rest.peek().is_some()) {
            return Err(TopicError::MultiLevelWildcard);
        }
        if level.contains('+') && level != "+" {
            return Err(TopicError::SingleLevelWildcard);
        }
    }
    Ok(parts)
}

/// Whether a topic matches a filter (without `$share/name/`), both of them valid.
pub fn matches(filter: &str, topic: &str) -> bool {
    // [MQTT-4.7.2-1]
    if topic.starts_with('$') && filter.starts_with(['#', '+']) {
        return false;
    }
    let mut topic = levels(topic);
    for wanted in levels(filter) {
        if wanted == "#" {
            // Also of the parent: "sport/#" matches "sport".
            return true;
        }
        match topic.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    topic.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["a", "/", "//", "a/b", "$SYS/x", " ", "a b", "\u{FEFF}", "$shared/x"] {
            assert_eq!(check_topic_name(name), Ok(()), "{name}");
        }
        assert_eq!(check_topic_name(&"x".repeat(65_535)), Ok(()));
        for (name, error) in [
            ("", TopicError::Empty),
            ("a\0", TopicError::NullCharacter),
            ("#", TopicError::Wildcard),
            ("a/+/b", TopicError::Wildcard),
            ("a+", TopicError::Wildcard),
            ("$share/g/t", TopicError::ShareInName),
            ("$share", TopicError::ShareInName),
            (&"x".repeat(65_536), TopicError::TooLong),
            (&"/".repeat(TOPIC_LEVELS_MAX), TopicError::TooManyLevels),
        ] {
            assert_eq!(check_topic_name(name), Err(error), "{name}");
        }
        assert_eq!(check_topic_name(&"/".repeat(TOPIC_LEVELS_MAX - 1)), Ok(()));
    }

    /// `[MQTT-4.7.1-1]`, `[MQTT-4.7.1-2]`, `[MQTT-4.8.2-1]`, `[MQTT-4.8.2-2]`; PITFALLS E62, E72.
    #[test]
    fn filters() {
        for filter in ["#", "+", "/", "+/+", "/+", "+/#", "a/#", "a/+/b", "$SYS/#", "$shared/#"] {
            assert_eq!(check_filter(filter), Ok(Filter { share_name: None, filter }), "{filter}");
        }
        for (filter, name, rest) in [
            ("$share/g/t", "g", "t"),
            ("$share/g//", "g", "/"),
            ("$share/g/#", "g", "#"),
            ("$share/ g/+/x", " g", "+/x"),
            ("$share/g/$SYS/#", "g", "$SYS/#"),
        ] {
            assert_eq!(
                check_filter(filter),
                Ok(Filter { share_name: Some(name), filter: rest }),
                "{filter}"
            );
        }
        for (filter, error) in [
            ("", TopicError::Empty),
            ("a\0b", TopicError::NullCharacter),
            ("a#", TopicError::MultiLevelWildcard),
            ("#/a", TopicError::MultiLevelWildcard),
            ("a/#/b", TopicError::MultiLevelWildcard),
            ("a/b#", TopicError::MultiLevelWildcard),
            ("##", TopicError::MultiLevelWildcard),
            ("a/#/", TopicError::MultiLevelWildcard),
            ("a+", TopicError::SingleLevelWildcard),
            ("+a/b", TopicError::SingleLevelWildcard),
            ("a/++", TopicError::SingleLevelWildcard),
            ("$share//t", TopicError::ShareName),
            ("$share/+/t", TopicError::ShareName),
            ("$share/#/t", TopicError::ShareName),
            ("$share/a+b/t", TopicError::ShareName),
            ("$share/g", TopicError::ShareFilter),
            ("$share/g/", TopicError::ShareFilter),
            ("$share/", TopicError::ShareFilter),
            ("$share", TopicError::ShareFilter),
            ("$share/g/a#", TopicError::MultiLevelWildcard),
            (&"/".repeat(TOPIC_LEVELS_MAX), TopicError::TooManyLevels),
        ] {
            assert_eq!(check_filter(filter), Err(error), "{filter}");
        }
    }

    /// The examples of 4.7 and PITFALLS E63, E64.
    #[test]
    fn matching() {
        for (filter, topic) in [
            ("sport/tennis/player1/#", "sport/tennis/player1"),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking"),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon"),
            ("sport/#", "sport"),
            ("sport/+", "sport/"),
            ("sport/tennis/+", "sport/tennis/player1"),
            ("+", "a"),
            ("#", "a"),
            ("#", "/"),
            ("/#", "/"),
            ("/+", "/finance"),
            ("+/+", "/finance"),
            ("+/#", "a"),
            ("a//b", "a//b"),
            ("a/+/b", "a//b"),
            ("$SYS/#", "$SYS/monitor/Clients"),
            ("$SYS/#", "$SYS"),
            ("$SYS/monitor/+", "$SYS/monitor/Clients"),
            ("+/$x", "a/$x"),
        ] {
            assert!(matches(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in [
            ("sport/tennis/+", "sport/tennis/player1/ranking"),
            ("sport/tennis/player1/#", "sport/tennis/player2"),
            ("sport/+", "sport"),
            ("sport", "sport/"),
            ("+", "/finance"),
            ("+/+", "a"),
            ("/#", "a"),
            ("ACCOUNTS", "Accounts"),
            ("#", "$SYS/x"),
            ("+/monitor/Clients", "$SYS/monitor/Clients"),
            ("+", "$SYS"),
            ("a/#", "ab"),
        ] {
            assert!(!matches(filter, topic), "{filter} {topic}");
        }
    }

    /// Each length around the blocks, each position in it.
    #[test]
    fn plain_at_every_position() {
        for len in 0..70 {
            let mut bytes = vec![b'a'; len];
            assert!(is_plain(&bytes));
            for at in 0..len {
                for special in [0, b'+', b'#'] {
                    bytes[at] = special;
                    assert!(!is_plain(&bytes), "{special} at {at} of {len}");
                }
                bytes[at] = b'a';
            }
        }
    }

    #[test]
    fn levels_of_a_topic() {
        for topic in ["a", "/", "a//b", "/a/", "$SYS/x"] {
            assert_eq!(levels(topic).count(), level_count(topic));
        }
        assert_eq!(levels("/a//").collect::<Vec<_>>(), ["", "a", "", ""]);
    }
}
