//! The house rules that a machine can hold, over every file in `src`: which layer may use which,
//! where `unsafe` may stand, how long files and functions may be, what each file begins with, and
//! what no code contains. ARCHITECTURE.md says why; each rule here says what to do instead.
//!
//! Every check is a function from a file to its complaints, and has a bad sample at the foot of
//! this file that it must complain about.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What a layer may use besides itself and [`FOR_ALL`]: layers, or single modules of one. Layers
/// that are planned stand here already.
const LAYERS: &[(&str, &[&str])] = &[
    ("main", EVERYTHING),
    ("lib", EVERYTHING),
    ("cli", EVERYTHING),
    // Beyond its own (`server::config`): what it puts together.
    ("server", &["admin", "shard", "io", "journal", "broker", "mesh"]),
    ("admin", &["server::config", "shard::control"]),
    ("bench", &["client", "io", "transport", "codec"]),
    ("crashtest", &["client", "codec", "io", "sim"]),
    ("sim", &["shard", "client", "io", "journal", "broker", "codec", "mesh"]),
    ("shard", &["broker", "transport", "io", "mesh", "journal", "link", "codec"]),
    ("link", &["client", "codec"]),
    ("client", &["codec"]),
    ("transport", &[]),
    ("io", &[]),
    ("mesh", &[]),
    ("journal", &["broker", "codec", "io::file"]),
    ("broker", &["codec"]),
    ("codec", &[]),
    ("limits", &[]),
    ("clock", &[]),
    ("ids", &[]),
    ("index", &[]),
    ("sync", &[]),
    ("buf", &[]),
    ("alloc", &[]),
];

const EVERYTHING: &[&str] = &["*"];

/// What every layer may use.
const FOR_ALL: &[&str] = &["limits", "clock", "ids", "index", "sync", "buf", "alloc"];

/// The files that may contain `unsafe`: folders end in a slash.
const UNSAFE: &[&str] = &["src/io/uring/", "src/io/socket.rs", "src/alloc.rs"];

/// Lines of a file, its test modules not counted.
const FILE_LINES_MAX: usize = 1000;
/// Lines of a function, from its name to its closing brace.
const FUNCTION_LINES_MAX: usize = 100;

/// A source file, as the checks see it.
struct Source {
    /// From the package's root, with slashes.
    path: String,
    /// As it stands.
    text: String,
    /// The same lines with comments, strings and characters blanked out.
    code: String,
    /// `code` with the test modules blanked out as well.
    product: String,
    /// Whether a parent declares it as a test.
    is_test: bool,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = blank_out(text);
        let product = without_tests(&code);
        Self { path: path.to_owned(), text: text.to_owned(), code, product, is_test: false }
    }

    /// Makes all of it a test, because its parent declares it as one.
    fn into_test(mut self) -> Self {
        self.is_test = true;
        self.product = self.code.bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect();
        self
    }

    /// The files that this one declares under `#[cfg(test)]`.
    fn test_files(&self) -> Vec<String> {
        let folder = match self.path.strip_suffix("/mod.rs") {
            Some(folder) => folder,
            None => self.path.trim_end_matches(".rs"),
        };
        test_items(&self.code)
            .filter(|(_, item, end)| self.code.as_bytes()[*end] == b';' && item.contains("mod "))
            .filter_map(|(_, item, _)| item.split_whitespace().last())
            .map(|name| format!("{folder}/{name}.rs"))
            .collect()
    }

    /// `src/io/uring/ops.rs` is `["io", "uring", "ops"]`; a `mod.rs` is its folder.
    fn module(&self) -> Vec<&str> {
        let inner = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let inner = inner.strip_suffix(".rs").unwrap_or(inner);
        inner.strip_suffix("/mod").unwrap_or(inner).split('/').collect()
    }

    fn may_be_unsafe(&self) -> bool {
        UNSAFE.iter().any(|allowed| {
            self.path == *allowed || (allowed.ends_with('/') && self.path.starts_with(allowed))
        })
    }

    fn complaint(&self, offset: usize, what: impl std::fmt::Display) -> String {
        format!("{}:{}: {what}", self.path, line_of(&self.code, offset))
    }
}

/// Line number of an offset, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

// ---- the checks ----

/// The layer table.
fn layers(source: &Source) -> Vec<String> {
    let layer = source.module()[0];
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
        return vec![format!(
            "{}: the layer `{layer}` is not in the table of tidy.rs",
            source.path
        )];
    };
    if *allowed == EVERYTHING {
        return Vec::new();
    }
    crate_paths(source)
        .into_iter()
        .filter(|(_, path)| {
            let used = path[0].as_str();
            let is_allowed = |allowed: &&str| {
                allowed
                    .split("::")
                    .enumerate()
                    .all(|(i, part)| path.get(i).is_some_and(|used| used == part))
            };
            used != layer && !FOR_ALL.contains(&used) && !allowed.iter().any(is_allowed)
        })
        .map(|(at, path)| {
            let path = path.join("::");
            source.complaint(at, format!("the layer `{layer}` may not use crate::{path}"))
        })
        .collect()
}

/// `unsafe` stands in few leaf files, and all others forbid it.
fn unsafe_code(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    if source.may_be_unsafe() {
        return complaints;
    }
    for at in words(&source.code, "unsafe") {
        complaints.push(source.complaint(at, "`unsafe` outside the files that may have it"));
    }
    // What a parent forbids, its children cannot allow.
    let folder = source.path.strip_suffix("mod.rs").or(source.path.strip_suffix("lib.rs"));
    let is_parent =
        folder.is_some_and(|folder| UNSAFE.iter().any(|allowed| allowed.starts_with(folder)));
    // A test stands under the file that declares it.
    if !is_parent && !source.is_test && !source.code.contains("#![forbid(unsafe_code)]") {
        complaints.push(format!("{}: #![forbid(unsafe_code)] is missing", source.path));
    }
    complaints
}

/// Every file begins with what it is.
fn header(source: &Source) -> Vec<String> {
    if source.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![format!("{}: does not begin with a `//!` header", source.path)]
}

/// Files and functions that can be read at one sitting.
fn sizes(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    // Test modules are counted out; comments and blank lines are lines.
    let tests: usize = test_modules(&source.code)
        .iter()
        .map(|range| source.code[range.clone()].matches('\n').count())
        .sum();
    let lines = if source.is_test { 0 } else { source.code.matches('\n').count() - tests };
    if lines > FILE_LINES_MAX {
        complaints.push(format!("{}: {lines} lines; split it by what it says", source.path));
    }
    for at in words(&source.product, "fn") {
        let rest = &source.product[at + 2..];
        let name: String = rest.trim_start().chars().take_while(|c| is_word(*c)).collect();
        // A type such as `fn(u8)` has no name, a trait's method may have no body.
        let Some(open) = rest.find(['{', ';']).filter(|_| !name.is_empty()) else { continue };
        if rest.as_bytes()[open] == b';' {
            continue;
        }
        let lines = rest[..closing(rest, open).unwrap_or(rest.len())].matches('\n').count() + 1;
        if lines > FUNCTION_LINES_MAX {
            complaints.push(source.complaint(at, format!("`{name}` has {lines} lines")));
        }
    }
    complaints
}

/// Nothing unfinished, and no panic without its reason.
fn unfinished(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    for name in ["todo", "unimplemented", "dbg"] {
        for at in words(&source.code, name) {
            if source.code[at + name.len()..].starts_with('!') {
                complaints.push(source.complaint(at, format!("`{name}!`")));
            }
        }
    }
    for at in words(&source.product, "unwrap") {
        complaints.push(source.complaint(at, "`unwrap`; say why: expect(\"invariant: …\")"));
    }
    complaints
}

// ---- reading Rust, as far as the checks need it ----

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `word` stands as a word of its own.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        !code[..*at].chars().next_back().is_some_and(is_word)
            && !code[at + word.len()..].chars().next().is_some_and(is_word)
    })
}

/// The offset behind the brace that closes the one at `open`.
fn closing(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (i, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(i + 1),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// `text` with the insides of comments, strings and characters replaced by blanks; every other
/// byte, and every line break, stays where it is.
fn blank_out(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = at
            + if rest.starts_with(b"//") {
                rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
            } else if rest.starts_with(b"/*") {
                block_comment_len(rest)
            } else if let Some(len) = literal_len(bytes, at) {
                len
            } else {
                at += 1;
                continue;
            };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(out).expect("whole characters were blanked out")
}

fn block_comment_len(bytes: &[u8]) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// Length of the string or character literal at `at`, if one begins there; a lifetime is none.
fn literal_len(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let in_word = at > 0 && is_word(char::from(bytes[at - 1]));
    match rest[0] {
        b'"' => Some(quoted_len(rest, b'"')),
        b'r' if !in_word || bytes[at - 1] == b'b' || bytes[at - 1] == b'c' => {
            let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
            if rest.get(1 + hashes) != Some(&b'"') {
                return None;
            }
            let end: Vec<u8> = std::iter::once(b'"').chain(vec![b'#'; hashes]).collect();
            let body = 2 + hashes;
            let len = rest[body..].windows(end.len()).position(|w| w == end)?;
            Some(body + len + end.len())
        }
        b'\'' if rest.get(1) == Some(&b'\\') => Some(quoted_len(rest, b'\'')),
        b'\'' => {
            // One character and the closing quote; else it is a lifetime or a label.
            let text = std::str::from_utf8(&rest[1..rest.len().min(6)]).unwrap_or_else(|error| {
                std::str::from_utf8(&rest[1..1 + error.valid_up_to()]).expect("valid up to there")
            });
            let len = text.chars().next()?.len_utf8();
            (rest.get(1 + len) == Some(&b'\'')).then_some(len + 2)
        }
        _ => None,
    }
}

fn quoted_len(bytes: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// What stands under `#[cfg(test)]` or `#[cfg(all(test, …))]`: where the attribute begins, the item
/// up to its body or its end, and where that is.
fn test_items(code: &str) -> impl Iterator<Item = (usize, &str, usize)> {
    ["#[cfg(test)]", "#[cfg(all(test,"].into_iter().flat_map(move |attribute| {
        code.match_indices(attribute).filter_map(|(at, _)| {
            let start = at + code[at..].find(")]")? + 2;
            let end = start + code[start..].find(['{', ';'])?;
            Some((at, code[start..end].trim(), end))
        })
    })
}

/// The modules and functions that are tests.
fn test_modules(code: &str) -> Vec<std::ops::Range<usize>> {
    test_items(code)
        .filter(|(_, item, end)| {
            code.as_bytes()[*end] == b'{' && (item.contains("mod ") || item.contains("fn "))
        })
        .map(|(at, _, end)| at..closing(code, end).unwrap_or(code.len()))
        .collect()
}

fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    for range in test_modules(code) {
        let blank: String =
            code[range.clone()].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect();
        out.replace_range(range, &blank);
    }
    out
}

/// Every path into the crate's root, however it is written: `crate::a::b`, `crate::{a, b::c}`, or
/// as many `super::` as lead there.
fn crate_paths(source: &Source) -> Vec<(usize, Vec<String>)> {
    let code = &source.code;
    let mut found = Vec::new();
    let mut add = |at: usize, rest: &str| {
        let mut paths = Vec::new();
        use_tree(rest, &[], &mut paths);
        found.extend(paths.into_iter().filter(|path| !path.is_empty()).map(|path| (at, path)));
    };
    for at in words(code, "crate") {
        if let Some(rest) = code[at + 5..].trim_start().strip_prefix("::") {
            add(at, rest);
        }
    }
    for at in words(code, "super") {
        if code[..at].trim_end().ends_with("super::") {
            continue;
        }
        let mut rest = &code[at..];
        let mut up = 0;
        while let Some(next) = rest.trim_start().strip_prefix("super").map(str::trim_start) {
            let Some(next) = next.strip_prefix("::") else { break };
            rest = next;
            up += 1;
        }
        if up > 0 && up == source.module().len() + inline_modules(&code[..at]) {
            add(at, rest);
        }
    }
    found
}

/// How many `mod name {` are open at the end of `code`.
fn inline_modules(code: &str) -> usize {
    words(code, "mod")
        .filter_map(|at| code[at..].find(['{', ';']).map(|open| at + open))
        .filter(|open| code.as_bytes()[*open] == b'{' && closing(code, *open).is_none())
        .count()
}

/// Reads a path, or a tree of them as in `use`, and appends each full path. Returns what is left.
fn use_tree<'a>(text: &'a str, prefix: &[String], out: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = use_tree(rest, prefix, out).trim_start();
            // An alias: `a as b`.
            if let Some(alias) = rest.strip_prefix("as ") {
                rest = alias.trim_start().trim_start_matches(is_word).trim_start();
            }
            match rest.strip_prefix(',') {
                Some(next) => rest = next,
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let len = text.find(|c| !is_word(c)).unwrap_or(text.len());
    if len == 0 {
        if let Some(rest) = text.strip_prefix('*') {
            out.push([prefix, &["*".to_owned()]].concat());
            return rest;
        }
        return text;
    }
    let path = [prefix, &[text[..len].to_owned()]].concat();
    match text[len..].strip_prefix("::") {
        // `Vec::<u8>` ends the path.
        Some(rest) if !rest.starts_with('<') => use_tree(rest, &path, out),
        _ => {
            out.push(path);
            &text[len..]
        }
    }
}

// ---- the package ----

const CHECKS: &[fn(&Source) -> Vec<String>] = &[layers, unsafe_code, header, sizes, unfinished];

fn package(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("list a folder of the package") {
            let path = entry.expect("list a folder of the package").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("read a source file");
                let inside = path.strip_prefix(root).expect("inside the package");
                sources.push(Source::new(&inside.to_string_lossy(), &text));
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    let tests: Vec<String> = sources.iter().flat_map(Source::test_files).collect();
    // What a test declares is one as well.
    let is_test = |source: &Source| {
        tests.iter().any(|test| {
            let folder = test.trim_end_matches(".rs");
            source.path == *test
                || source.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
        })
    };
    sources.into_iter().map(|s| if is_test(&s) { s.into_test() } else { s }).collect()
}

fn hold(sources: &[Source], check: fn(&Source) -> Vec<String>) {
    assert!(!sources.is_empty());
    let mut all = String::new();
    for complaint in sources.iter().flat_map(check) {
        let _ = writeln!(all, "{complaint}");
    }
    assert!(all.is_empty(), "\n{all}");
}

#[test]
fn layers_hold() {
    hold(&package("src"), layers);
}

#[test]
fn unsafe_stands_where_it_may() {
    hold(&package("src"), unsafe_code);
}

#[test]
fn files_begin_with_what_they_are() {
    for folder in ["src", "tests"] {
        hold(&package(folder), header);
    }
}

#[test]
fn files_and_functions_are_short() {
    hold(&package("src"), sizes);
}

#[test]
fn nothing_is_unfinished() {
    hold(&package("src"), unfinished);
}

// ---- the checks, checked ----

/// What all checks say of a file.
fn all_complaints(path: &str, text: &str) -> Vec<String> {
    let source = Source::new(path, text);
    CHECKS.iter().flat_map(|check| check(&source)).collect()
}

const HEAD: &str = "//! What it is.\n#![forbid(unsafe_code)]\n";

/// A file that begins well, goes on with `code`, and gives exactly one complaint, which has these
/// `words`.
fn assert_bad(path: &str, code: &str, words: &str) {
    let complaints = all_complaints(path, &format!("{HEAD}{code}\n"));
    assert!(
        complaints.len() == 1 && complaints[0].contains(words),
        "{code:?} in {path}: expected one complaint about {words:?}, got {complaints:#?}"
    );
}

fn assert_good(path: &str, code: &str) {
    let complaints = all_complaints(path, &format!("{HEAD}{code}\n"));
    assert!(complaints.is_empty(), "{code:?} in {path}: {complaints:#?}");
}

#[test]
fn a_wrong_layer_is_seen_however_it_is_written() {
    for code in [
        "use crate::io;",
        "use crate::io::Backend;",
        "use crate::{clock::Time, io::{Backend, Wait}};",
        "use crate::{\n    ids as names,\n    io as kernel,\n};",
        "use crate :: { limits::*, io };",
        "fn f() { let x = crate::io::probe(); }",
        "fn f(x: &dyn crate::io::Backend) {}",
        "pub(in crate::io) fn f() {}",
        "use super::super::io::Wait;",
        "mod inner { fn f() { super::super::super::io::probe() } }",
        "macro_rules! m { () => { $crate::io::probe() }; }",
    ] {
        let path = "src/broker/publish.rs";
        let complaints = all_complaints(path, &format!("{HEAD}{code}\n"));
        assert!(
            !complaints.is_empty()
                && complaints.iter().all(|c| c.contains("may not use crate::io")),
            "{code:?}: {complaints:#?}"
        );
    }
    assert_bad("src/broker/mod.rs", "use super::io::Wait;", "may not use crate::io::Wait");
    assert_bad("src/codec/mqtt/mod.rs", "use crate::broker;", "may not use crate::broker");
    assert_bad("src/ids.rs", "use crate::codec::mqtt;", "may not use crate::codec");
    assert_bad("src/broker/mod.rs", "use crate::nonsense;", "may not use crate::nonsense");
    assert_bad("src/broker/mod.rs", "use crate::*;", "may not use crate::*");
    assert_bad("src/admin/mod.rs", "use crate::server::affinity;", "may not use crate::server");
    assert_bad("src/nonsense/mod.rs", "", "not in the table");
}

#[test]
fn an_allowed_layer_is_not_complained_about() {
    assert_good(
        "src/broker/publish.rs",
        "use crate::codec::mqtt::{self, Packet};\nuse crate::ids;",
    );
    assert_good("src/broker/publish.rs", "use crate::broker::session;\nuse super::session;");
    assert_good("src/broker/publish.rs", "mod inner { use super::super::io; }");
    assert_good("src/broker/publish.rs", "mod a { fn f() {} }\nmod b { use super::super::io; }");
    assert_good("src/broker/publish.rs", "/// See [`crate::io`]. /* crate::io */\nfn f() {}");
    assert_good("src/broker/publish.rs", "const A: &str = \"crate::io\";");
    assert_good("src/broker/publish.rs", "const A: &str = r#\"\"crate::io\"#;");
    assert_good("src/admin/mod.rs", "use crate::server::config::Config;");
    assert_good("src/cli/serve.rs", "use crate::io;");
}

#[test]
fn unsafe_in_the_wrong_file_is_seen() {
    assert_bad("src/io/epoll.rs", "fn f() { unsafe { g() } }", "`unsafe` outside");
    assert_bad("src/io/socket_more.rs", "unsafe fn f() {}", "`unsafe` outside");
    assert_good("src/io/uring/ops.rs", "fn f() { unsafe { g() } }");
    assert_good("src/io/socket.rs", "fn f() { unsafe { g() } }");
    assert_good("src/io/epoll.rs", "// unsafe\nfn unsafe_not() {}");
    let open = all_complaints("src/io/epoll.rs", "//! What it is.\n// #![forbid(unsafe_code)]\n");
    assert!(open.len() == 1 && open[0].contains("is missing"), "{open:#?}");
}

#[test]
fn only_parents_of_unsafe_files_need_not_forbid_it() {
    for (path, complaints) in [("src/io/mod.rs", 0), ("src/lib.rs", 0), ("src/mesh/mod.rs", 1)] {
        assert_eq!(all_complaints(path, "//! What it is.\n").len(), complaints, "{path}");
    }
}

#[test]
fn files_declared_as_tests_are_found() {
    let text = "#[cfg(test)]\nmod tests;\n#[cfg(all(test, not(x)))]\npub(crate) mod world;\nmod a;";
    let files = Source::new("src/io/mod.rs", text).test_files();
    assert_eq!(files, ["src/io/tests.rs", "src/io/world.rs"]);
    let files =
        Source::new("src/io/epoll.rs", "#[cfg(test)]\nuse a;\n#[cfg(test)] mod b;").test_files();
    assert_eq!(files, ["src/io/epoll/b.rs"]);
}

#[test]
fn a_missing_header_is_seen() {
    let complaints = all_complaints("src/ids.rs", "#![forbid(unsafe_code)]\n//! What it is.\n");
    assert!(complaints.len() == 1 && complaints[0].contains("header"), "{complaints:#?}");
}

#[test]
fn sizes_are_seen() {
    let long = format!("fn long() {{\n{}}}", "    f();\n".repeat(FUNCTION_LINES_MAX - 1));
    assert_bad("src/ids.rs", &long, "`long` has 101 lines");
    let just = format!("fn just() {{\n{}}}", "    f('{');\n".repeat(FUNCTION_LINES_MAX - 2));
    assert_good("src/ids.rs", &just);
    assert_good("src/ids.rs", &format!("#[cfg(test)]\nmod tests {{\n{long}\n}}"));
    let big = "const A: u8 = 0;\n".repeat(FILE_LINES_MAX - 1);
    assert_bad("src/ids.rs", &big, "1002 lines");
    let with_tests = format!("fn f() {{}}\n#[cfg(all(test, not(x)))]\nmod tests {{\n{big}}}");
    assert_good("src/ids.rs", &with_tests);
    let big = Source::new("src/io/tests.rs", &format!("{HEAD}{big}"));
    assert_eq!(sizes(&big).len(), 1);
    assert!(sizes(&big.into_test()).is_empty());
    let test =
        Source::new("src/io/tests.rs", "//! What it is.\nfn f() { g().unwrap() }\n").into_test();
    assert!(CHECKS.iter().all(|check| check(&test).is_empty()));
    // What comes behind a test module counts.
    let big = "const A: u8 = 0;\n".repeat(FILE_LINES_MAX - 1);
    assert_bad("src/ids.rs", &format!("#[cfg(test)]\nmod tests {{}}\n{big}"), "lines");
}

#[test]
fn the_unfinished_is_seen() {
    assert_bad("src/ids.rs", "fn f() { todo!() }", "`todo!`");
    assert_bad("src/ids.rs", "#[cfg(test)]\nmod tests { fn f() { unimplemented!() } }", "`unimpl");
    assert_bad("src/ids.rs", "fn f() { dbg!(1); }", "`dbg!`");
    assert_bad("src/ids.rs", "fn f() { g().unwrap(); }", "`unwrap`");
    assert_bad("src/ids.rs", "fn f() { g().map(Option::unwrap); }", "`unwrap`");
    assert_bad("src/ids.rs", "#[cfg(test)]\nuse x::y;\nfn f() { g().unwrap(); }", "`unwrap`");
    assert_good("src/ids.rs", "fn f() { g().unwrap_or(0); } // unwrap()");
    assert_good("src/ids.rs", "fn f<'a>() -> &'a str { \"unwrap()\" }\nfn g() -> char { '\"' }");
    assert_good("src/ids.rs", "#[cfg(test)]\nmod tests { fn f() { g().unwrap(); } }");
}
