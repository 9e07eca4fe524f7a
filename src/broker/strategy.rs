//! Which member of a shared subscription gets a message: the strategies, and the rules that give
//! each group its own.
//!
//! Which of them a group has is decided by its name when it comes into being. The choosing itself
//! is in [`shared_sub`](super::shared_sub).
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

/// How the members of a group share its messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// In turns.
    #[default]
    RoundRobin,
    /// By chance.
    Random,
    /// All to one, as long as that one is there.
    Sticky,
    /// All of one publisher to one member.
    HashClientId,
    /// All of one topic to one member.
    HashTopic,
    /// To the member with the fewest unacknowledged and queued messages.
    LeastInFlight,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::RoundRobin,
        Self::Random,
        Self::Sticky,
        Self::HashClientId,
        Self::HashTopic,
        Self::LeastInFlight,
    ];

    /// As it is written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::Sticky => "sticky",
            Self::HashClientId => "hash-client-id",
            Self::HashTopic => "hash-topic",
            Self::LeastInFlight => "least-in-flight",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Strategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|strategy| strategy.as_str() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|strategy| strategy.as_str()).collect();
            format!("\"{text}\" is not a strategy; write one of {}", names.join(", "))
        })
    }
}

/// The strategy of the groups whose name has a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `*` stands for any characters, also none. With a slash it is for `ShareName/filter`, else
    /// for the ShareName (which has none).
    pub group: String,
    /// Theirs.
    pub strategy: Strategy,
}

/// The strategies of all groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strategies {
    /// Of those that no rule is for.
    pub default: Strategy,
    /// The first that fits decides.
    pub rules: Vec<Rule>,
}

impl Strategies {
    /// That of a group by its key, `ShareName/filter`.
    pub(crate) fn of(&self, key: &str) -> Strategy {
        let name = key.split('/').next().unwrap_or(key);
        let fits = |rule: &&Rule| {
            let text = if rule.group.contains('/') { key } else { name };
            matches(&rule.group, text)
        };
        self.rules.iter().find(fits).map_or(self.default, |rule| rule.strategy)
    }
}

/// Whether `text` has the form of `pattern`. A star takes as little as possible; if what follows
/// does not fit, the last star takes one more.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p, t));
            p += 1;
        } else if p < pattern.len() && pattern[p] == text[t] {
            p += 1;
            t += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("*", "any"),
            ("a*", "a"),
            ("a*c", "abbc"),
            ("a*b*c", "aXbYbZc"),
            ("**", "x"),
            ("jobs", "jobs"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("", "a"), ("a", ""), ("a*", "ba"), ("a*b", "abc"), ("*a", "ab")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rule = |group: &str, strategy| Rule { group: group.into(), strategy };
        let strategies = Strategies {
            default: Strategy::Random,
            rules: vec![
                rule("jobs/a/*", Strategy::Sticky),
                rule("job*", Strategy::HashTopic),
                rule("jobs", Strategy::HashClientId),
            ],
        };
        assert_eq!(strategies.of("jobs/a/b"), Strategy::Sticky);
        assert_eq!(strategies.of("jobs/b"), Strategy::HashTopic);
        assert_eq!(strategies.of("other/jobs"), Strategy::Random);
        for strategy in Strategy::ALL {
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
        }
        assert!("fair".parse::<Strategy>().unwrap_err().contains("least-in-flight"));
    }
}
