//! What dependencies may bring along, by `deny.toml`: their licences, and where they come from.
//!
//! cargo-deny checks the same and more (advisories), but is a tool that takes longer to build than
//! the broker: what needs no database is held here, on every run.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

#[derive(serde::Deserialize)]
struct Deny {
    licenses: Licenses,
    sources: Sources,
}

#[derive(serde::Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

fn deny() -> Deny {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml");
    let text = std::fs::read_to_string(path).expect("read deny.toml");
    toml::from_str(&text).expect("deny.toml has licenses.allow and sources.allow-registry")
}

/// Every package that is built into the broker or its tests on this machine.
fn packages() -> Vec<Value> {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", &platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("run cargo metadata");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("cargo metadata is JSON");
    metadata["packages"].as_array().expect("a list of packages").clone()
}

/// Whether a licence expression can be met with the allowed ones. OR binds weaker than AND; a
/// slash is an old way to write OR.
fn is_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let met = any_of(&mut words, allowed);
    met && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut met = all_of(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= all_of(words, allowed);
    }
    met
}

fn all_of(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let met = any_of(words, allowed);
        return words.next_if_eq(&")").is_some() && met;
    }
    let Some(name) = words.next() else { return false };
    let mut name = name.to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        name = format!("{name} WITH {}", words.next().unwrap_or_default());
    }
    allowed.contains(&name)
}

#[test]
fn licences_are_allowed() {
    let allowed = deny().licenses.allow;
    for package in packages() {
        let licence = package["license"].as_str().unwrap_or("none");
        assert!(is_met(licence, &allowed), "{}: {licence} is not allowed", package["name"]);
    }
}

#[test]
fn sources_are_allowed() {
    let allowed = deny().sources.allow_registry;
    for package in packages() {
        // Null is this package itself.
        if let Some(source) = package["source"].as_str() {
            let known = allowed.iter().any(|url| source == format!("registry+{url}"));
            assert!(known, "{} is from {source}", package["name"]);
        }
    }
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = ["MIT", "Zlib", "A WITH B"].map(str::to_owned).into();
    for met in
        ["MIT", "GPL-3.0 OR MIT", "GPL-3.0/MIT", "MIT AND Zlib", "(X OR MIT) AND Zlib", "A WITH B"]
    {
        assert!(is_met(met, &allowed), "{met}");
    }
    for not_met in [
        "",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "(MIT OR X) AND Y",
        "A",
        "MIT WITH B",
        "MIT)",
        "(MIT",
        "none",
    ] {
        assert!(!is_met(not_met, &allowed), "{not_met}");
    }
}
