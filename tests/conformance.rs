//! The conformance page, `tests/mqtt/CONFORMANCE.md`: from the citations of tests, the catalogue in
//! `tests/mqtt/conformance`, and the outcome of a run. scripts/conformance.sh is what to call; it
//! tells this program by a variable what is wanted. CONTRIBUTING.md says how a test cites.
#![forbid(unsafe_code)]

#[path = "conformance/catalogue.rs"]
mod catalogue;
#[path = "conformance/citations.rs"]
mod citations;
#[path = "conformance/page.rs"]
mod page;

use std::path::Path;

use catalogue::{Catalogue, Kind, Part};
use citations::{Test, of_package, of_text};

/// What is wanted: `list-missing`, `list-unit-tests`, `write`.
const MODE: &str = "NOCTULE_CONFORMANCE";
/// What `cargo test` printed, for `write`.
const LOG: &str = "NOCTULE_CONFORMANCE_LOG";
/// Where the page or the list goes.
const OUT: &str = "NOCTULE_CONFORMANCE_OUT";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn catalogue() -> Catalogue {
    Catalogue::read(&root().join("tests/mqtt/conformance"))
}

fn hold(errors: &[String]) {
    assert!(errors.is_empty(), "\n{}\n", errors.join("\n"));
}

#[test]
fn every_citation_is_of_something() {
    let (tests, errors) = of_package(root());
    hold(&errors);
    hold(&page::contradictions(&catalogue(), &tests));
}

#[test]
fn the_catalogue_is_complete() {
    let counts: Vec<_> = catalogue().parts.values().map(|part| part.statements.len()).collect();
    assert_eq!((counts[0], counts[1], counts[3]), (251, 141, 85));
}

/// Does what the script asks for.
#[test]
fn on_demand() {
    let Ok(mode) = std::env::var(MODE) else { return };
    let (catalogue, (tests, _)) = (catalogue(), of_package(root()));
    let text = match &*mode {
        "list-missing" => page::missing(&catalogue, &tests)
            .into_iter()
            .map(|(kind, id, text)| format!("{}: {id}  {text}\n", kind.key()))
            .collect(),
        "list-unit-tests" => tests
            .iter()
            .filter(|test| test.file.starts_with("src/"))
            .map(|test| format!("{}\n", test.name))
            .collect(),
        "write" => {
            let log = std::env::var(LOG).expect(LOG);
            let log = std::fs::read_to_string(&log).expect(&log);
            hold(&page::not_passed(&tests, &page::outcomes(&log)));
            hold(&page::without_test(&catalogue, &tests));
            page::page(&catalogue, &tests)
        }
        other => panic!("{MODE}={other}"),
    };
    let out = std::env::var(OUT).expect(OUT);
    std::fs::write(&out, text).expect(&out);
}

// ---- the checks, checked ----

fn one_test(doc: &str) -> (Vec<Test>, Vec<String>) {
    of_text("tests/mqtt/a.rs", "a", &format!("{doc}\n#[test]\nfn b() {{\n}}\n"))
}

fn citing(kind: Kind, ids: &[&str]) -> Test {
    Test {
        name: "a::b".to_owned(),
        file: "tests/mqtt/a.rs".to_owned(),
        cites: [(kind, ids.iter().map(|id| (*id).to_owned()).collect())].into(),
    }
}

/// A catalogue in which every part has the statements 1-1 and 1-2, and 1-3 is unobservable.
fn small() -> Catalogue {
    let part = |kind: Kind| {
        let texts = ["1-1", "1-2", "1-3"].map(|id| (id.to_owned(), format!("text | {id}")));
        let part = Part {
            title: format!("Title {}", kind.key()),
            statements: texts.into(),
            not_observable: [("1-3".to_owned(), "because".to_owned())].into(),
            ..Part::default()
        };
        (kind, part)
    };
    Catalogue { parts: Kind::ALL.map(part).into(), choices: Vec::new() }
}

#[test]
fn citations_are_read() {
    let doc = "/// What it shows.\n///\n/// v5: 3.1.0-1, 3.1.0-2\n/// v5: 4.1.0-1\n/// family: 7";
    let (tests, errors) = one_test(doc);
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(tests[0].name, "a::b");
    assert_eq!(tests[0].cites[&Kind::V5], ["3.1.0-1", "3.1.0-2", "4.1.0-1"]);
    assert_eq!(tests[0].cites[&Kind::Family], ["7"]);
    // Who cites nothing is none of ours; a colon in a sentence is no citation.
    assert_eq!(one_test("/// Of v5: nothing."), (Vec::new(), Vec::new()));
    // One test's citations are not the next one's.
    let text = "/// v5: 1-1\n#[test]\nfn b() {\n}\n\n#[test]\nfn c() {\n}\n";
    assert_eq!(of_text("tests/mqtt/a.rs", "a", text).0.len(), 1);
    let text = "mod tests {\n    /// v5: 1-1\n    #[test]\n    fn b() {\n    }\n}\n/// v5: 1-1\n#[test]\nfn c() {\n}\n";
    let names = of_text("src/a.rs", "a", text).0.into_iter().map(|test| test.name);
    assert!(names.eq(["a::tests::b", "a::c"]));
}

#[test]
fn bad_citations_are_refused() {
    for (doc, what) in [
        ("/// v5: MQTT-3.1.0-1", "is no id"),
        ("/// v5: [3.1.0-1]", "is no id"),
        ("/// v5: 3.1.0-1,", "is no id"),
        ("/// v5: 3.1.0-1 and more", "is no id"),
        ("/// V5: 3.1.0-1", "is to be `v5:`"),
        ("/// families: 1", "Ok"),
        ("/// familys: 1", "is to be `family:`"),
    ] {
        let (tests, errors) = one_test(doc);
        match what {
            "Ok" => assert!(tests.is_empty() && errors.is_empty(), "{doc}: {errors:?}"),
            _ => assert!(errors.len() == 1 && errors[0].contains(what), "{doc}: {errors:?}"),
        }
    }
    let (tests, errors) = of_text("src/a.rs", "a", "/// v5: 3.1.0-1\nfn helper() {}\n");
    assert!(tests.is_empty() && errors[0].contains("no #[test]"), "{errors:?}");
}

#[test]
fn contradictions_are_errors() {
    for (ids, what) in [
        (&["1-4"][..], "does not exist"),
        (&["1-3"], "said to be unobservable"),
        (&["1-1", "1-1"], "twice"),
    ] {
        let errors = page::contradictions(&small(), &[citing(Kind::V311, ids)]);
        assert!(errors.len() == 1 && errors[0].contains(what), "{errors:?}");
    }
    assert!(page::contradictions(&small(), &[citing(Kind::V5, &["1-1"])]).is_empty());
    let mut catalogue = small();
    let part = catalogue.parts.get_mut(&Kind::V5).expect("a part");
    part.not_observable.insert("1-9".to_owned(), "because".to_owned());
    assert_eq!(page::contradictions(&catalogue, &[]).len(), 1);
}

#[test]
fn what_is_missing() {
    let missing = |tests: &[Test]| page::missing(&small(), tests).len();
    assert_eq!(missing(&[]), 8);
    assert_eq!(missing(&[citing(Kind::V5, &["1-1"]), citing(Kind::Family, &["1-1", "1-2"])]), 5);
    let errors = page::without_test(&small(), &[]);
    assert!(errors.len() == 8 && errors[0].contains("v5: 1-1 has no test"), "{errors:?}");
}

#[test]
fn only_what_has_passed_counts() {
    let log =
        "test a::b ... ok\nnoise\ntest a::c ... FAILED\ntest a::c ... ok\ntest a::d ... ignored";
    let outcomes = page::outcomes(log);
    let verdict = |name: &str| {
        let test = Test { name: name.to_owned(), ..citing(Kind::V5, &[]) };
        page::not_passed(&[test], &outcomes)
    };
    assert!(verdict("a::b").is_empty());
    assert_eq!(verdict("a::c"), ["a::c: FAILED"]);
    assert_eq!(verdict("a::d"), ["a::d: ignored"]);
    assert_eq!(verdict("a::e"), ["a::e: was not run"]);
}

#[test]
fn the_page_says_who_shows_what() {
    let tests = [citing(Kind::V5, &["1-1"]), citing(Kind::Family, &["1-2"])];
    let page = page::page(&small(), &tests);
    for line in [
        "| [Title v5](#title-v5) | 3 | 2 | 1 |",
        "| 1-1 | text \\| 1-1 | passed | [a::b](a.rs) |",
        "| 1-2 | text \\| 1-2 | **no test yet** |  |",
        "| 1-3 | text \\| 1-3 | not observable | because |",
        "| 1-2 | text \\| 1-2 | [a::b](a.rs) |",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
    }
    assert_eq!(
        catalogue::order("3.1.2-10").cmp(&catalogue::order("3.1.2-9")),
        std::cmp::Ordering::Greater
    );
}
