//! What there is to show: the statements of three specifications, the families, the choices. Read
//! from the files of `tests/mqtt/conformance`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

/// What a citation is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// MQTT 5.0
    V5,
    /// MQTT 3.1.1
    V311,
    /// MQTT 3.1: only what differs from 3.1.1, by its sections.
    V31,
    /// Where other brokers failed.
    Family,
}

impl Kind {
    /// In the order of the page.
    pub const ALL: [Self; 4] = [Self::V5, Self::V311, Self::V31, Self::Family];

    /// The word before the colon in a citation.
    pub fn key(self) -> &'static str {
        match self {
            Self::V5 => "v5",
            Self::V311 => "v3.1.1",
            Self::V31 => "v3.1",
            Self::Family => "family",
        }
    }

    /// The file in `tests/mqtt/conformance`.
    pub fn file(self) -> &'static str {
        match self {
            Self::V5 => "v5.toml",
            Self::V311 => "v311.toml",
            Self::V31 => "v31.toml",
            Self::Family => "families.toml",
        }
    }
}

/// One specification, or the families.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name.
    pub title: String,
    /// Where it is.
    #[serde(default)]
    pub source: String,
    /// Whose it is, and what they allow.
    #[serde(default)]
    pub notice: String,
    /// Text by id.
    pub statements: BTreeMap<String, String>,
    /// Why a statement cannot be seen to be kept, by id.
    #[serde(default)]
    pub not_observable: BTreeMap<String, String>,
    /// Where a test, or the rest of it, will come from, by id: families only.
    #[serde(default)]
    pub later: BTreeMap<String, String>,
}

/// Where the specification leaves it to the Server.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// Version and section.
    pub section: String,
    /// What may be chosen.
    pub may: String,
    /// What was.
    pub ours: String,
    /// The reason.
    pub why: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Choices {
    choice: Vec<Choice>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// By kind.
    pub parts: BTreeMap<Kind, Part>,
    /// In the order of their file.
    pub choices: Vec<Choice>,
}

impl Catalogue {
    /// Reads the folder.
    pub fn read(folder: &Path) -> Self {
        let part = |kind: Kind| (kind, toml(&folder.join(kind.file())));
        let choices: Choices = toml(&folder.join("choices.toml"));
        Self { parts: Kind::ALL.map(part).into(), choices: choices.choice }
    }
}

fn toml<T: for<'a> Deserialize<'a>>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Sorts ids as a person does: 3.1.2-9 before 3.1.2-10.
pub fn order(id: &str) -> Vec<u32> {
    id.split(['.', '-']).map(|part| part.parse().unwrap_or(u32::MAX)).collect()
}
