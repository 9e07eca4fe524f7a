//! The documents name what exists: functions and files in ARCHITECTURE.md, flags in README.md.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

fn package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(package(path)).expect(path)
}

/// What stands between backticks, outside fenced blocks.
fn quoted(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|part| part.split('`').skip(1).step_by(2)).collect()
}

fn sources(dir: &Path, all: &mut String) {
    for entry in std::fs::read_dir(dir).expect("a folder of src") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&std::fs::read_to_string(path).expect("a source file"));
        }
    }
}

/// Whether `name` is declared anywhere in `sources`: as a function, a type, a field.
fn is_declared(name: &str, sources: &str) -> bool {
    let declared = |word: &str| {
        sources.match_indices(&format!("{word} {name}")).any(|(at, found)| {
            !sources[at + found.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
        })
    };
    let keywords = ["fn", "struct", "enum", "trait", "mod", "const"];
    keywords.into_iter().any(declared) || sources.contains(&format!("pub {name}:"))
}

#[test]
fn what_the_architecture_names_exists() {
    let mut all = String::new();
    sources(&package("src"), &mut all);
    let text = read("ARCHITECTURE.md");
    let is_name = |text: &&str| {
        text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
            && (text.contains("::") || text.contains('_'))
    };
    let names: Vec<&str> = quoted(&text).into_iter().filter(is_name).collect();
    assert!(names.len() > 30, "they are found: {names:?}");
    for name in names {
        let elsewhere = ["SO_REUSEPORT", "io_uring"].contains(&name);
        for part in name.split("::").filter(|_| !elsewhere) {
            assert!(is_declared(part, &all), "ARCHITECTURE.md: `{name}` is no more");
        }
    }
}

#[test]
fn links_lead_to_files() {
    for document in ["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md"] {
        let text = read(document);
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().expect("a target");
            let outside = target.starts_with("http") || target.starts_with('#');
            assert!(outside || package(target).exists(), "{document}: {target} does not exist");
        }
    }
}

/// The tests that a document names, as `[function](file.rs)`: how many, and which of them are none.
fn named_tests(text: &str, read: impl Fn(&str) -> Option<String>) -> (usize, Vec<String>) {
    let (mut count, mut stale) = (0, Vec::new());
    for (at, _) in text.match_indices("](") {
        let target = text[at + 2..].split(')').next().expect("a target");
        let name = text[..at].rsplit('[').next().expect("a text");
        let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !target.ends_with(".rs") || !is_name || name == "tests" {
            continue;
        }
        count += 1;
        let source = read(target).unwrap_or_default();
        let declared = format!("#[test]\nfn {name}()");
        // A test of a module is indented.
        let lines: Vec<&str> = source.lines().map(str::trim_start).collect();
        if !lines.join("\n").contains(&declared) {
            stale.push(format!("{name} in {target}"));
        }
    }
    (count, stale)
}

/// Each line of the guarantees leads to tests that are there.
#[test]
fn the_guarantees_are_shown_by_tests() {
    let readme = read("README.md");
    let rows = readme.lines().skip_while(|line| !line.starts_with("| MQTT | QoS | contract |"));
    let rows: Vec<&str> = rows.skip(2).take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() >= 15, "the table is found: {rows:?}");
    for row in &rows {
        assert_eq!(row.matches('|').count(), 7, "{row}");
        let source = |path: &str| std::fs::read_to_string(package(path)).ok();
        let (count, stale) = named_tests(row, source);
        assert!(count > 0, "README.md: no test shows this: {row}");
        assert!(stale.is_empty(), "README.md names tests that are none: {stale:?}");
    }
    for fault in ["client gone", "kill -9", "power cut", "disk full", "torn", "damaged"] {
        assert!(rows.iter().any(|row| row.contains(fault)), "{fault}");
    }
}

/// The check above finds what is stale.
#[test]
fn a_stale_link_is_found() {
    let source = "mod m {\n    #[test]\n    fn it_works() {}\n}\nfn it_helps() {}\n";
    let read = |path: &str| (path == "tests/a.rs").then(|| source.to_owned());
    let stale = |text| named_tests(text, read);
    assert_eq!(stale("[it_works](tests/a.rs) and [more](README.md)"), (1, Vec::new()));
    for (text, expected) in [
        ("[it_worked](tests/a.rs)", "it_worked in tests/a.rs"),
        ("[it_work](tests/a.rs)", "it_work in tests/a.rs"),
        ("[it_helps](tests/a.rs)", "it_helps in tests/a.rs"),
        ("[it_works](tests/b.rs)", "it_works in tests/b.rs"),
    ] {
        assert_eq!(stale(text), (1, vec![expected.to_owned()]), "{text}");
    }
}

#[test]
fn the_flags_that_the_readme_names_exist() {
    let mut help = String::new();
    for command in ["serve", "doctor", "sub", "pub", "crashtest"] {
        let noctule = Command::new(env!("CARGO_BIN_EXE_noctule"));
        let output = { noctule }.args([command, "--help"]).output().expect("run noctule");
        help.push_str(&String::from_utf8_lossy(&output.stdout));
    }
    let readme = read("README.md");
    let flags = readme.match_indices("--").map(|(at, _)| {
        let rest = &readme[at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        &rest[..end.unwrap_or(rest.len())]
    });
    let is_flag = |flag: &&str| {
        flag.len() > 2 && !flag.starts_with("---") && !["--release", "--will-"].contains(flag)
    };
    let flags: Vec<&str> = flags.filter(is_flag).collect();
    assert!(flags.len() > 10, "they are found: {flags:?}");
    for flag in flags {
        assert!(help.contains(flag), "README.md: {flag} is no flag");
    }
}
