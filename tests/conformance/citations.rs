//! What tests say they cover: lines of their doc comments, read from the source.
//!
//! Owns the form of a citation. A key that is misspelt, or stands where no test follows, is an
//! error: a citation is either counted or refused.

use std::collections::BTreeMap;
use std::path::Path;

use super::catalogue::Kind;

/// A test and what it cites.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Test {
    /// As the test harness prints it: `connect::keep_alive`.
    pub name: String,
    /// From the root of the package.
    pub file: String,
    /// Ids by what they are of, in the order in which they stand.
    pub cites: BTreeMap<Kind, Vec<String>>,
}

/// All tests that cite something: those of `tests/mqtt`, and the unit tests of `src`.
pub fn of_package(root: &Path) -> (Vec<Test>, Vec<String>) {
    let (mut tests, mut errors) = (Vec::new(), Vec::new());
    for folder in ["src", "tests/mqtt"] {
        for file in rust_files(&root.join(folder)) {
            let inside = file.strip_prefix(root).expect("inside the package");
            let inside = inside.to_str().expect("names are ASCII");
            let text = std::fs::read_to_string(&file).expect("read a source file");
            let (of_file, wrong) = of_text(inside, &module(inside), &text);
            tests.extend(of_file);
            errors.extend(wrong);
        }
    }
    (tests, errors)
}

fn rust_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("list a folder of the package") {
        let path = entry.expect("list a folder of the package").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The module that a file is, within its crate.
fn module(file: &str) -> String {
    let inside = file.strip_prefix("src/").or_else(|| file.strip_prefix("tests/mqtt/"));
    let inside = inside.expect("a file of src or tests/mqtt").trim_end_matches(".rs");
    inside.trim_end_matches("/mod").replace('/', "::")
}

/// The tests of one file that cite something, and what is wrong with its citations.
pub fn of_text(file: &str, module: &str, text: &str) -> (Vec<Test>, Vec<String>) {
    let (mut tests, mut errors) = (Vec::new(), Vec::new());
    let mut doc = Test::default();
    let mut is_test = false;
    // Inline modules, with their indent.
    let mut inline: Vec<(usize, &str)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let mut wrong = |what: &str| errors.push(format!("{file}:{}: {what}", number + 1));
        if let Some(comment) = code.strip_prefix("///") {
            match citation(comment) {
                Ok(None) => {}
                Ok(Some((kind, ids))) => doc.cites.entry(kind).or_default().extend(ids),
                Err(what) => wrong(&what),
            }
            continue;
        }
        if code.starts_with("#[") {
            is_test |= code == "#[test]";
            continue;
        }
        if code.starts_with("//") {
            continue;
        }
        if let Some(name) = code.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {")) {
            inline.push((indent, name));
        }
        if code == "}" && inline.last().is_some_and(|(at, _)| *at == indent) {
            inline.pop();
        }
        let cites = std::mem::take(&mut doc.cites);
        let name = code.strip_prefix("fn ").and_then(|rest| rest.split('(').next());
        match name {
            Some(name) if is_test => {
                let mut path = vec![module];
                path.extend(inline.iter().map(|(_, name)| *name));
                path.push(name);
                let test = Test { name: path.join("::"), file: file.to_owned(), cites };
                tests.extend((!test.cites.is_empty()).then_some(test));
            }
            _ if !cites.is_empty() => wrong("cites, but no #[test] function follows"),
            _ => {}
        }
        is_test = false;
    }
    (tests, errors)
}

/// What a line of a doc comment cites. Whoever meant to cite and missed the form is told.
fn citation(comment: &str) -> Result<Option<(Kind, Vec<String>)>, String> {
    let comment = comment.trim();
    let Some((key, ids)) = comment.split_once(':') else { return Ok(None) };
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.key() == key) else {
        let almost = Kind::ALL.into_iter().find(|kind| {
            kind.key().eq_ignore_ascii_case(key.trim()) || format!("{}s", kind.key()) == key
        });
        return match almost {
            Some(kind) => Err(format!("`{key}:` is to be `{}:`", kind.key())),
            None => Ok(None),
        };
    };
    let ids: Vec<_> = ids.split(',').map(|id| id.trim().to_owned()).collect();
    match ids.iter().find(|id| !is_id(id)) {
        Some(bad) => Err(format!("`{bad}` is no id; `{key}: ID, ID`, without the prefix MQTT-")),
        None => Ok(Some((kind, ids))),
    }
}

/// `3.1.0-1`, `3.1`, `27`, `A`.
fn is_id(id: &str) -> bool {
    let is_part = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-');
    id == "A" || (id.starts_with(|c: char| c.is_ascii_digit()) && id.chars().all(is_part))
}
