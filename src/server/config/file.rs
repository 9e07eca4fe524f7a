//! Reading the configuration file: every error names file, line and column, and a misspelt name
//! comes with the one that was probably meant.
#![forbid(unsafe_code)]

use std::path::Path;

use super::{ConfigError, raw::Settings};

/// Similarity (Jaro-Winkler) from which a name is suggested for an unknown one.
const SUGGESTION_SIMILARITY_MIN: f64 = 0.75;

/// Reads the file at `path`.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| {
        ConfigError::new(format!("cannot read the configuration file {}: {error}", path.display()))
    })
}

/// Line and column of `section.key` in a text that parses, where its line says it so.
pub fn position_of(text: &str, key: &str) -> Option<(usize, usize)> {
    let (wanted, key) = key.split_once('.')?;
    let mut section = "";
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        if let Some(name) = trimmed.strip_prefix('[') {
            section = name.split(']').next().unwrap_or_default().trim();
        } else if section == wanted
            && trimmed.split('=').next().is_some_and(|name| name.trim() == key)
        {
            let indent = line.chars().count() - trimmed.chars().count();
            return Some((number + 1, indent + 1));
        }
    }
    None
}

/// Parses `text`, which stands in `path`.
pub fn parse(text: &str, path: &Path) -> Result<Settings, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        let message = error.message().trim().replace('\n', ", ");
        let hint = suggestion(&message).map(|name| format!("; did you mean `{name}`?"));
        ConfigError::new(format!(
            "{}:{line}:{column}: {message}{}",
            path.display(),
            hint.unwrap_or_default()
        ))
    })
}

/// Line and column, from 1, of a byte offset; the column counts characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.char_indices().take_while(|(at, _)| *at < offset).map(|(_, c)| c);
    before.fold(
        (1, 1),
        |(line, column), c| if c == '\n' { (line + 1, 1) } else { (line, column + 1) },
    )
}

/// The accepted name most like the unknown one. Serde says both in one sentence, in backticks:
/// unknown field `a`, expected one of `b`, `c`.
fn suggestion(message: &str) -> Option<&str> {
    let rest = message.strip_prefix("unknown ")?;
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    suggest(unknown, quoted)
}

/// Of `names` the one most like `unknown`, if one is.
pub fn suggest<'a>(unknown: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // What all have in common says nothing.
    let own = |name: &str| name.strip_prefix("NOCTULE_").unwrap_or(name).to_owned();
    names
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&own(unknown), &own(name)), name))
        .filter(|(similarity, _)| *similarity >= SUGGESTION_SIMILARITY_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text, Path::new("n.toml")).expect_err("must be refused").to_string()
    }

    #[test]
    fn unknown_keys_are_refused_with_a_suggestion() {
        let message = error("shards = 2\n\n[limits]\npacket_size_mx = \"1MiB\"\n");
        assert!(message.starts_with("n.toml:4:1: unknown field `packet_size_mx`"), "{message}");
        assert!(message.ends_with("did you mean `packet_size_max`?"), "{message}");

        let message = error("[[listner]]\naddress = \"127.0.0.1:1883\"\n");
        assert!(message.starts_with("n.toml:1:3: "), "{message}");
        assert!(message.ends_with("did you mean `listener`?"), "{message}");

        let message = error("zzz = 1\n");
        assert!(!message.contains("did you mean"), "{message}");
    }

    #[test]
    fn wrong_values_are_named_with_their_place() {
        for (text, place, words) in [
            ("io = \"urng\"", "n.toml:1:6: ", "auto, uring or epoll"),
            ("\nshards = 0", "n.toml:2:10: ", "shards"),
            ("shards = 65", "n.toml:1:10: ", "64"),
            ("[limits]\n  connect_timeout = 10", "n.toml:2:21: ", "duration"),
            ("[limits]\nreceive_maximum = 0", "n.toml:2:19: ", "nonzero"),
            ("[durability]\ndefault = \"disk\"", "n.toml:2:11: ", "none, process or power"),
            ("[[rule]]\nfilter = \"a/#/b\"", "n.toml:2:10: ", "topic filter"),
            ("shared_strategy = \"fair\"", "n.toml:1:19: ", "least-in-flight"),
            ("[[shared]]\ngroup = \"a\"", "n.toml:1:1: ", "missing field `strategy`"),
            ("[[listener]]\n", "n.toml:1:1: ", "missing field `address`"),
            ("io = ", "n.toml:1:", ""),
            ("io = \"auto\"\nio = \"auto\"", "n.toml:2:1: ", "duplicate"),
        ] {
            let message = error(text);
            assert!(message.starts_with(place) && message.contains(words), "{text}: {message}");
            assert!(!message.contains('\n'), "one line: {message}");
        }
    }

    #[test]
    fn variables_are_suggested() {
        let names = ["NOCTULE_QUEUE_LEN_MAX", "NOCTULE_SHARDS", "NOCTULE_IO"];
        assert_eq!(suggest("NOCTULE_SHARD", names), Some("NOCTULE_SHARDS"));
        assert_eq!(suggest("NOCTULE_QUEUE_LENGTH_MAX", names), Some("NOCTULE_QUEUE_LEN_MAX"));
        assert_eq!(suggest("NOCTULE_ZZZ", names), None);
    }

    #[test]
    fn keys_are_found() {
        let text = "io = \"auto\"\n# queue_len_max = 1\n[log]\nqueue_len_max = 2\n\n[limits]\n  \
                    queue_len_max= 3\n";
        assert_eq!(position_of(text, "limits.queue_len_max"), Some((7, 3)));
        assert_eq!(position_of(text, "limits.io"), None);
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(position("a\nüü b", 7), (2, 4));
        assert_eq!(position("", 9), (1, 1));
    }
}
