//! The page: which test shows which statement. A function of the catalogue, the citations and the
//! outcome of a run, without dates, times or durations: the same run gives the same page.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::catalogue::{Catalogue, Kind, Part, order};
use super::citations::Test;

/// Test by test, whether it passed; as `cargo test` prints it.
pub type Outcomes = BTreeMap<String, String>;

/// Reads `test NAME ... OUTCOME` lines. Of a test that was run more than once, the worst counts.
pub fn outcomes(log: &str) -> Outcomes {
    let mut all = Outcomes::new();
    for line in log.lines() {
        let Some((name, outcome)) =
            line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
        else {
            continue;
        };
        let kept = all.entry(name.to_owned()).or_insert_with(|| "ok".to_owned());
        if kept == "ok" {
            outcome.clone_into(kept);
        }
    }
    all
}

/// What is wrong with citations, whatever the tests say: unknown ids, ids given twice by one test,
/// and statements that are both cited and said to be unobservable.
pub fn contradictions(catalogue: &Catalogue, tests: &[Test]) -> Vec<String> {
    let mut errors = Vec::new();
    for (kind, part) in &catalogue.parts {
        for id in part.not_observable.keys().chain(part.later.keys()) {
            if !part.statements.contains_key(id) {
                errors.push(format!("{}: there is no statement {id}", kind.file()));
            }
        }
    }
    for test in tests {
        for (kind, ids) in &test.cites {
            let (part, key) = (&catalogue.parts[kind], kind.key());
            for (at, id) in ids.iter().enumerate() {
                let mut wrong = |what: &str| {
                    errors.push(format!("{}: {}: {key}: {id} {what}", test.file, test.name));
                };
                if !part.statements.contains_key(id) {
                    wrong("does not exist");
                } else if let Some(why) = part.not_observable.get(id) {
                    wrong(&format!("is said to be unobservable in {}: {why}", kind.file()));
                } else if ids[..at].contains(id) {
                    wrong("is cited twice");
                }
            }
        }
    }
    errors
}

/// Observable statements without a test, and families with neither a test nor a later.
pub fn missing<'a>(catalogue: &'a Catalogue, tests: &[Test]) -> Vec<(Kind, &'a str, &'a str)> {
    let mut missing = Vec::new();
    for (kind, part) in &catalogue.parts {
        for (id, text) in sorted(part) {
            let excused = part.not_observable.contains_key(id) || part.later.contains_key(id);
            if !excused && citing(tests, *kind, id).next().is_none() {
                missing.push((*kind, id, text));
            }
        }
    }
    missing
}

/// The same as errors: a page is whole, or there is none.
pub fn without_test(catalogue: &Catalogue, tests: &[Test]) -> Vec<String> {
    let missing = missing(catalogue, tests).into_iter();
    let error = |(kind, id, text): (Kind, &str, &str)| {
        format!("{}: {id} has no test, and {} has no reason: {text}", kind.key(), kind.file())
    };
    missing.map(error).collect()
}

/// Tests that were cited and have not passed.
pub fn not_passed(tests: &[Test], outcomes: &Outcomes) -> Vec<String> {
    let verdict = |test: &Test| match outcomes.get(&test.name).map(String::as_str) {
        Some("ok") => None,
        Some(other) => Some(format!("{}: {other}", test.name)),
        None => Some(format!("{}: was not run", test.name)),
    };
    tests.iter().filter_map(verdict).collect()
}

fn sorted(part: &Part) -> Vec<(&str, &str)> {
    let mut all: Vec<_> = part.statements.iter().map(|(id, text)| (&**id, &**text)).collect();
    all.sort_by_key(|(id, _)| order(id));
    all
}

fn citing<'a>(tests: &'a [Test], kind: Kind, id: &str) -> impl Iterator<Item = &'a Test> {
    tests.iter().filter(move |test| {
        test.cites.get(&kind).is_some_and(|ids| ids.iter().any(|cited| cited == id))
    })
}

const HEAD: &str = "\
<!-- Written by scripts/conformance.sh; change the tests, or tests/mqtt/conformance, not this. -->
# Conformance

Every normative statement of MQTT 5.0 and 3.1.1, and what differs in 3.1, with the tests that show
that Noctule keeps it, or why no client can see whether it does. The tests send raw packets to a real
broker process, and each runs four times: on io_uring and on epoll, with one shard and with two. (Where
a test needs what no option offers, an authentication method, the same server is started within the
test.) A statement counts only where breaking the broker in this respect makes its test fail.

```sh
scripts/conformance.sh                  # runs them all, and writes this page
scripts/conformance.sh --check          # runs them all; fails where this page says something else
scripts/conformance.sh --list-missing   # observable statements without a test; runs nothing
```
";

/// The whole page.
pub fn page(catalogue: &Catalogue, tests: &[Test]) -> String {
    let mut out = HEAD.to_owned();
    out += "\n| | statements | observable in a Server | with a passing test |\n|---|--:|--:|--:|\n";
    for kind in [Kind::V5, Kind::V311, Kind::V31] {
        let part = &catalogue.parts[&kind];
        let observable = part.statements.len() - part.not_observable.len();
        let shown =
            part.statements.keys().filter(|id| citing(tests, kind, id).next().is_some()).count();
        let _ = writeln!(
            out,
            "| [{}](#{}) | {} | {observable} | {shown} |",
            part.title,
            anchor(&part.title),
            part.statements.len()
        );
    }
    let families = &catalogue.parts[&Kind::Family];
    let shown = families
        .statements
        .keys()
        .filter(|id| citing(tests, Kind::Family, id).next().is_some())
        .count();
    let _ = writeln!(
        out,
        "\nOf {} [families of faults](#{}) that other brokers had, {shown} have a test; the others come \
         with what they are about.",
        families.statements.len(),
        anchor(&families.title)
    );
    for kind in [Kind::V5, Kind::V311, Kind::V31] {
        section(&mut out, kind, &catalogue.parts[&kind], tests);
    }
    choices(&mut out, catalogue);
    section(&mut out, Kind::Family, families, tests);
    notices(&mut out, catalogue);
    out
}

fn section(out: &mut String, kind: Kind, part: &Part, tests: &[Test]) {
    let _ = writeln!(out, "\n## {}\n", part.title);
    let (is_spec, heading) = match kind {
        Kind::V5 | Kind::V311 => (true, "statement"),
        Kind::V31 => (true, "section"),
        Kind::Family => (false, "family"),
    };
    if is_spec {
        let _ = writeln!(out, "| {heading} | text | verdict | shown by |\n|---|---|---|---|");
    } else {
        let _ = writeln!(out, "| {heading} | what goes wrong | shown by |\n|---|---|---|");
    }
    for (id, text) in sorted(part) {
        let mut shown: Vec<String> = citing(tests, kind, id).map(link).collect();
        shown.extend(part.later.get(id).map(|later| format!("*{}*", cell(later))));
        let tests = shown.join("<br>");
        let line = match (is_spec, part.not_observable.get(id)) {
            (true, Some(why)) => format!("not observable | {}", cell(why)),
            (true, None) if shown.is_empty() => "**no test yet** | ".to_owned(),
            (true, None) => format!("passed | {tests}"),
            (false, _) if shown.is_empty() => "**no test yet**".to_owned(),
            (false, _) => tests,
        };
        let _ = writeln!(out, "| {id} | {} | {line} |", cell(text));
    }
}

fn choices(out: &mut String, catalogue: &Catalogue) {
    *out += "\n## Choices\n\nWhere a specification leaves it to the Server.\n\n";
    *out += "| section | what may be chosen | what Noctule does | why |\n|---|---|---|---|\n";
    for choice in &catalogue.choices {
        let cells = [&choice.section, &choice.may, &choice.ours, &choice.why].map(|s| cell(s));
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
}

fn notices(out: &mut String, catalogue: &Catalogue) {
    *out += "\n## Notices\n\nThe statements are quoted from the specifications, whose text is not under \
             Noctule's licence.\n";
    for part in catalogue.parts.values().filter(|part| !part.notice.is_empty()) {
        let _ = writeln!(out, "\n### {}: {}\n\n{}", part.title, part.source, part.notice.trim());
    }
}

/// A test, linked to its file from `tests/mqtt`.
fn link(test: &Test) -> String {
    let file = match test.file.strip_prefix("tests/mqtt/") {
        Some(file) => file.to_owned(),
        None => format!("../../{}", test.file),
    };
    format!("[{}]({file})", test.name)
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-');
    heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
}

/// Text as a cell of a table.
fn cell(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('|', "\\|")
        .replace('*', "\\*")
        .replace('<', "&lt;")
        .replace('\n', " ")
}
