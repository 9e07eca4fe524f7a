//! `noctule compare` as its user runs it, over run folders with made-up figures; and its page in a
//! real browser.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use noctule::bench::process::Spent;
use noctule::bench::record::{Faults, histogram};
use noctule::bench::run::summary::{self, Cost, Figure, Mode, Percentiles};
use noctule::bench::run::{Environment, RunFolder, Series, Subject, Summary};
use serde_json::Value;
use support::skip;

/// Figures of a broker that does not exist.
#[derive(Clone, Copy)]
struct Made {
    scenario: &'static str,
    mode: fn() -> Mode,
    /// Median latency in microseconds.
    median: f64,
    /// How much longer the rare takes.
    tail: f64,
    cpu_micros: f64,
    rate: f64,
    lost: u64,
}

fn open() -> Mode {
    Mode::Open { rate: 2000.0, schedule: "poisson".into() }
}

fn closed() -> Mode {
    Mode::Closed { window: 256 }
}

const USUAL: Made = Made {
    scenario: "fan-out",
    mode: open,
    median: 100.0,
    tail: 1.0,
    cpu_micros: 0.5,
    rate: 2000.0,
    lost: 0,
};

/// From 0 to 1, the same at every run of the test.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About normal, from -6 to 6.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.roll()).sum::<f64>() - 6.0
    }
}

/// Writes one run; `seed` makes it differ from its repetitions.
fn write_run(path: &Path, made: &Made, seed: u64) {
    const SECONDS: u64 = 12;
    let mut dice = Dice(seed * 7919 + made.median as u64);
    let shift = 1.0 + 0.03 * dice.normal();
    let folder = RunFolder::create(path).expect("a folder of its own");
    folder
        .write_run_toml("[scenario]\nname = \"made\"\npayload = 64\n[broker]\nport = 1883\n")
        .expect("write run.toml");
    let mut environment = Environment::collect(&Subject {
        broker_address: "127.0.0.1:1883".into(),
        broker_pid: None,
        generator_io: "uring".into(),
    });
    environment.broker.command = Some(vec!["broker".into(), "--config=<x&y>".into()]);
    folder.write_environment(&environment).expect("write environment.json");
    let mut all = histogram();
    let mut log =
        folder.interval_log(Series::Latency, Duration::from_secs(1_795_260_000)).expect("a log");
    for second in 0..SECONDS {
        let mut values = histogram();
        for _ in 0..(made.rate * (1.0 + 0.01 * dice.normal())) as u64 {
            let rare = dice.roll().max(1e-9);
            let tail = if rare < 0.02 { (0.02 / rare).powf(0.45 * made.tail) } else { 1.0 };
            let micros = made.median * shift * (0.25 * dice.normal()).exp() * tail;
            values.saturating_record((micros * 1000.0) as u64);
        }
        all.add(&values).expect("the same bounds");
        log.write(Duration::from_secs(second), Duration::from_secs(1), &values).expect("write");
    }
    folder.write_percentiles(Series::Latency, &all).expect("write latency.hgrm");
    let delivered = (made.rate * shift * SECONDS as f64) as u64;
    let spent = |cpu_seconds: f64| Spent {
        cpu_seconds,
        cpu_share: cpu_seconds / SECONDS as f64,
        user_part: 0.3,
        voluntary_switches: delivered / 50,
        involuntary_switches: 12,
        rss_bytes: 9_000_000,
        rss_peak_bytes: 9_500_000,
    };
    let cpu = made.cpu_micros * (1.0 + 0.02 * dice.normal()) * delivered as f64 / 1e6;
    let summary = Summary {
        schema: summary::SCHEMA,
        scenario: made.scenario.into(),
        workload: made.scenario.into(),
        description: "1 publisher, 100 subscribers, MQTT 3.1.1, QoS 0, 64 B".into(),
        mode: (made.mode)(),
        started: "2026-11-21T11:20:00Z".into(),
        seconds: SECONDS as f64,
        warm_up_seconds: 1.0,
        published: delivered,
        delivered,
        published_per_second: delivered as f64 / SECONDS as f64,
        delivered_per_second: delivered as f64 / SECONDS as f64,
        latency_of: "intended send to delivery".into(),
        latency_nanos: Percentiles::of(&all),
        lateness_nanos: Some(Percentiles { count: 24_000, p99: 4_000, ..Percentiles::default() }),
        faults: Some(Faults { lost: made.lost, ..Faults::default() }),
        stalls: 0,
        unsent: 0,
        figures: vec![Figure {
            name: "connects a second".into(),
            value: 900.0 * shift,
            unit: "/s".into(),
            better: Some(summary::Better::Higher),
        }],
        broker: Some(Cost::new(4711, spent(cpu), delivered)),
        generator: Cost::new(4712, spent(1.1), delivered),
        interrupted: false,
        failure: None,
        warnings: Vec::new(),
    };
    folder.write_summary(&summary).expect("write summary.json");
}

/// A set of `runs` repetitions.
fn write_set(path: &Path, made: &Made, runs: u64) {
    for run in 1..=runs {
        write_run(&path.join(made.scenario).join(run.to_string()), made, run);
    }
}

fn compare(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_noctule"))
        .arg("compare")
        .args(arguments)
        .output()
        .expect("start noctule compare")
}

/// What it prints as JSON.
fn json(arguments: &[&str]) -> Value {
    let output = compare(&[arguments, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"))
}

/// That it fails with this code, and these words.
fn assert_fails(arguments: &[&str], code: i32, words: &str) {
    let output = compare(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(stderr.contains(words), "{arguments:?}: {words:?} is not in {stderr:?}");
}

fn row<'a>(json: &'a Value, key: &str) -> &'a Value {
    let rows = json["scenarios"][0]["rows"].as_array().expect("rows");
    rows.iter().find(|row| row["key"] == key).unwrap_or_else(|| panic!("no row {key}: {json:#}"))
}

struct Folders(tempfile::TempDir);

impl Folders {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A set, as an argument.
    fn set(&self, name: &str, made: &Made, runs: u64) -> String {
        write_set(&self.path(name), made, runs);
        self.path(name).to_string_lossy().into_owned()
    }
}

#[test]
fn a_difference_is_one_only_when_the_spread_allows_it() {
    let folders = Folders::new();
    let base = folders.set("base", &USUAL, 5);
    let same = folders.set("same", &Made { median: 101.0, ..USUAL }, 5);
    let dear = folders.set("dear", &Made { cpu_micros: 1.0, median: 70.0, ..USUAL }, 5);
    let json = json(&[&base, &format!("again={same}"), &dear]);
    assert_eq!(json["sets"], serde_json::json!(["base", "again", "dear"]));
    let verdict =
        |key: &str, set: usize| row(&json, key)["cells"][set]["versus"]["verdict"].clone();
    assert_eq!(verdict("cpu", 1), "no-difference", "{:#}", row(&json, "cpu"));
    assert_eq!(verdict("cpu", 2), "worse");
    assert_eq!(verdict("p50", 2), "better");
    let ratio = row(&json, "cpu")["cells"][2]["versus"]["ratio"].as_f64().expect("a ratio");
    assert!((1.8..2.2).contains(&ratio), "{ratio}");
    assert_eq!(row(&json, "throughput")["better"], Value::Null, "an open loop asks for its rate");
    assert_eq!(row(&json, "lost")["cells"][0]["value"], 0.0);
    let again = compare(&[&base, &same, "--json"]);
    assert_eq!(again.stdout, compare(&[&base, &same, "--json"]).stdout, "seeded");
}

#[test]
fn one_run_each_says_that_the_spread_is_unknown() {
    let folders = Folders::new();
    let a = folders.set("a", &USUAL, 1);
    let b = folders.set("b", &Made { cpu_micros: 5.0, ..USUAL }, 1);
    let output = compare(&[&a, &b]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("The spread is unknown"), "{text}");
    assert!(text.contains("× ?"), "{text}");
    assert!(!text.contains("worse"), "{text}");
    assert_fails(&[&a, &b, "--fail-above", "1.1"], 2, "nothing can be told from chance");
}

#[test]
fn the_gate_closes_on_what_is_surely_worse() {
    let folders = Folders::new();
    let base = folders.set("base", &USUAL, 5);
    let same = folders.set("same", &Made { median: 101.0, ..USUAL }, 5);
    let dear = folders.set("dear", &Made { cpu_micros: 0.65, ..USUAL }, 5);
    let gate = ["--fail-above", "1.1"];
    assert!(compare(&[&[&*base, &same], &gate[..]].concat()).status.success());
    assert_fails(
        &[&[&*base, &dear], &gate[..]].concat(),
        1,
        "dear is worse than base in cpu by 1.",
    );
    assert!(compare(&[&base, &dear, "--fail-above", "1.5"]).status.success(), "it is allowed");
    let p50 = [&*base, &dear, "--fail-above", "1.1", "--fail-on", "p50,p99"];
    assert!(compare(&p50).status.success(), "it is not looked at");
    assert!(compare(&[&[&*dear, &base], &gate[..]].concat()).status.success(), "it is better");
    assert_fails(&[&base, &dear, "--fail-above", "1", "--fail-on", "x"], 2, "there are cpu, ");
    assert_fails(&[&base, &dear, "--fail-above", "0.9"], 2, "a number from 1 on");
}

#[test]
fn throughput_of_a_closed_loop_counts_the_other_way_round() {
    let folders = Folders::new();
    let made = Made { mode: closed, ..USUAL };
    let base = folders.set("base", &made, 5);
    let slow = folders.set("slow", &Made { rate: 1000.0, ..made }, 5);
    assert_fails(&[&base, &slow, "--fail-above", "1.5"], 1, "in throughput by 2.");
    let text = String::from_utf8_lossy(&compare(&[&base, &slow]).stdout).into_owned();
    assert!(text.contains("Closed loop: latency here"), "{text}");
}

#[test]
fn what_must_not_be_hidden_is_said() {
    let folders = Folders::new();
    let base = folders.set("base", &USUAL, 3);
    let losing = folders.set("losing", &Made { lost: 7, ..USUAL }, 3);
    let run = folders.path("losing/fan-out/2");
    std::fs::write(run.join("run.toml"), "[scenario]\nname = \"made\"\npayload = 128\n")
        .expect("write run.toml");
    std::fs::remove_file(run.join("environment.json")).expect("remove environment.json");
    let text = String::from_utf8_lossy(&compare(&[&base, &losing]).stdout).into_owned();
    for words in [
        "losing: messages were lost, repeated or reordered (in all 3 runs)",
        "payload: 64 | 128",
        "environment.json is missing",
    ] {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    assert!(!text.contains("port"), "a broker's own port is no difference: {text}");
}

#[test]
fn runs_that_cannot_be_read_are_named_with_what_to_do() {
    let folders = Folders::new();
    let good = folders.set("good", &USUAL, 2);
    let broken = folders.path("good/fan-out/2");
    let edit = |from: &str, to: &str| {
        write_run(&folders.path("edited"), &USUAL, 1);
        let path = folders.path("edited/summary.json");
        let text = std::fs::read_to_string(&path).expect("read summary.json");
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replacen(from, to, 1)).expect("write summary.json");
        let result = compare(&[&folders.path("edited").to_string_lossy()]);
        std::fs::remove_dir_all(folders.path("edited")).expect("remove our own folder");
        assert_eq!(result.status.code(), Some(2));
        String::from_utf8_lossy(&result.stderr).into_owned()
    };
    let newer = edit("\"schema\": 1", "\"schema\": 2");
    assert!(newer.contains("summary.json has schema 2") && newer.contains("newer"), "{newer}");
    let older = edit("\"schema\": 1", "\"schema\": 0");
    assert!(older.contains("older than the 1") && older.contains("repeat"), "{older}");
    let other = edit("\"schema\": 1", "\"scheme\": 1");
    assert!(other.contains("no \"schema\""), "{other}");
    let damaged = edit("\"seconds\": 12.0", "\"seconds\": \"12\"");
    assert!(damaged.contains("damaged"), "{damaged}");
    let cut = edit("\n}\n", "\n");
    assert!(cut.contains("damaged, or was cut"), "{cut}");

    std::fs::remove_file(broken.join("summary.json")).expect("remove summary.json");
    assert_fails(&[&good], 2, "the run did not end");
    let empty = folders.path("empty");
    std::fs::create_dir(&empty).expect("make a folder");
    assert_fails(&[&empty.to_string_lossy()], 2, "no run in it");
    assert_fails(&[&folders.path("none").to_string_lossy()], 2, "give the folder of a run");
    assert_fails(&[&broken.join("run.toml").to_string_lossy()], 2, "not a file of it");
}

/// From the load generator to the comparison, over real runs.
/// A ping is not a message; and the question of a scenario stands beside its answer.
#[test]
fn the_words_fit_what_was_counted() {
    let folders = Folders::new();
    let base = folders.set("base", &USUAL, 3);
    let dear = folders.set("dear", &Made { cpu_micros: 1.0, ..USUAL }, 3);
    for run in ["base/fan-out/1", "base/fan-out/2", "dear/fan-out/1"] {
        let run = folders.path(run);
        let summary = std::fs::read_to_string(run.join("summary.json")).expect("read a summary");
        let summary = summary.replace("intended send to delivery", "intended PINGREQ to PINGRESP");
        std::fs::write(run.join("summary.json"), summary).expect("write a summary");
        std::fs::write(run.join("run.toml"), "question = \"what does a <ping> cost?\"\n")
            .expect("write run.toml");
    }
    let page = folders.path("page.html").to_string_lossy().into_owned();
    let text =
        String::from_utf8_lossy(&compare(&[&base, &dear, "--html", &page]).stdout).into_owned();
    for words in ["fan-out: What does a <ping> cost?", "CPU per ping", "of base on a ping"] {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    assert!(!text.contains("message"), "{text}");
    let html = std::fs::read_to_string(page).expect("read the page");
    assert!(html.contains("<p class=\"question\">What does a &lt;ping&gt; cost?</p>"), "escaped");
}

#[test]
fn what_bench_leaves_is_what_compare_reads() {
    if support::broker::external().is_some() {
        return skip("what_bench_leaves", "the broker's process is not known");
    }
    let folders = Folders::new();
    let broker = support::Broker::start(support::combinations()[0]);
    for run in ["1", "2", "3"] {
        let output = Command::new(env!("CARGO_BIN_EXE_noctule"))
            .args(["bench", "pairs", "--pairs", "2", "--warm-up", "0", "--duration", "0.5"])
            .args(["--rate", "500", "--port", &broker.addr().port().to_string()])
            .args(["--broker-pid", &broker.pid().to_string()])
            .args(["--out", &folders.path("real").join(run).to_string_lossy()])
            .output()
            .expect("start noctule bench");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let real = folders.path("real").to_string_lossy().into_owned();
    let json = json(&[&real, &format!("again={real}")]);
    assert_eq!(json["scenarios"][0]["runs"], serde_json::json!([3, 3]));
    assert_eq!(json["differences"], serde_json::json!([]), "one machine, one scenario");
    for key in ["cpu", "throughput", "p50", "p90", "lost", "memory", "lateness"] {
        let cell = &row(&json, key)["cells"][1];
        assert_eq!(cell["values"].as_array().map(Vec::len), Some(3), "{key}: {cell}");
        let verdict = &cell["versus"]["verdict"];
        assert!(verdict == "no-difference" || verdict.is_null(), "{key}: {cell}");
    }
    assert!(row(&json, "p50")["cells"][0]["value"].as_f64() > Some(0.0));
    let facts = json["environment"].as_array().expect("facts");
    let fact = |label: &str| {
        let fact = facts.iter().find(|fact| fact["label"] == label && fact["part"] == "Broker");
        fact.unwrap_or_else(|| panic!("no {label}: {facts:#?}"))["values"][0][0].to_string()
    };
    assert!(fact("Program").contains("noctule"), "{}", fact("Program"));
    assert!(fact("Command").contains(" serve ") || fact("Command").contains("--listen"));
    let page = folders.path("real.html");
    let output = compare(&[&real, "--html", &page.to_string_lossy()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("Intended send to delivery") && text.contains('●'), "{text}");
    let html = std::fs::read_to_string(page).expect("read the page");
    assert!(html.contains("class=\"line s0\""), "curves come from latency.hlog");
}

#[test]
fn the_drawing_stands_alone() {
    let folders = Folders::new();
    let a = folders.set("a", &USUAL, 3);
    write_set(&folders.path("a"), &Made { scenario: "pairs", ..USUAL }, 1);
    let file = folders.path("spectrum.svg");
    let svg = file.to_string_lossy();
    assert_fails(&[&a, "--svg", &svg], 2, "choose with --scenario from");
    assert_fails(&[&a, "--scenario", "fan"], 2, "there are fan-out, pairs");
    let output = compare(&[&a, "--svg", &svg, "--scenario", "fan-out"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&file).expect("read the drawing");
    assert!(text.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
    assert!(text.contains("class=\"line s0\"") && text.contains("prefers-color-scheme:dark"));
}

// ---- the page, in a browser ----

/// Debian's package, and what others call it.
const BROWSERS: [&str; 4] =
    ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];

fn browser() -> Option<&'static str> {
    BROWSERS.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok())
}

/// Written into the page before anything else of it runs: it looks at the page when it is laid out,
/// and leaves what it saw where `--dump-dom` shows it.
const WITNESS: &str = r#"<script>
const errors = [];
addEventListener("error", (e) => errors.push(String(e.message || e.target)), true);
addEventListener("unhandledrejection", (e) => errors.push(String(e.reason)));
addEventListener("load", () => {
  const root = document.documentElement;
  const seen = (e) => e.getClientRects().length > 0;
  const charts = [...document.querySelectorAll("svg.chart")].filter(seen);
  const hover = charts[0].getBoundingClientRect();
  charts[0].dispatchEvent(new PointerEvent("pointermove",
    { clientX: hover.left + hover.width / 2, clientY: hover.top + 50, bubbles: true }));
  const tip = [...document.querySelectorAll(".tip")].find((e) => !e.hidden);
  const outside = [...document.querySelectorAll("body *")].filter((e) => {
    const box = e.getBoundingClientRect();
    return seen(e) && box.width > 1 && (box.right > innerWidth + 1 || box.left < -1) &&
      !e.closest(".scroll, .skip, svg");
  });
  const luminance = (c) => {
    const [r, g, b] = c.match(/[\d.]+/g).map((v) => {
      v /= 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  const contrasts = [...document.querySelectorAll("p, li, .who, text, td, th, .label")].filter(seen)
    .map((e) => luminance(getComputedStyle(e)[e.tagName === "text" ? "fill" : "color"]))
    .map((l) => (Math.max(l, paper) + 0.05) / (Math.min(l, paper) + 0.05));
  const result = {
    errors,
    width: innerWidth,
    overflow: root.scrollWidth - root.clientWidth,
    outside: outside.slice(0, 5).map((e) => e.outerHTML.slice(0, 120)),
    squeezed: [...document.querySelectorAll("body *")].filter((e) => seen(e) && !e.closest("svg, .skip, thead") &&
      e.textContent.length > 30 && e.getBoundingClientRect().width < 60 &&
      e.getBoundingClientRect().height > 60).map((e) => e.outerHTML.slice(0, 120)),
    paper,
    contrast: Math.min(...contrasts),
    tip: tip ? tip.textContent : "",
    tipFits: tip ? tip.getBoundingClientRect().right <= innerWidth + 1 : false,
    smallest: Math.min(...charts.flatMap((c) => [...c.querySelectorAll("text")])
      .map((t) => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a)),
    charts: charts.map((c) => ({
      label: c.getAttribute("aria-labelledby").split(" ")
        .map((id) => document.getElementById(id).textContent).join(" | "),
      width: c.getBoundingClientRect().width,
      curves: [...c.querySelectorAll("path.line:not(.faint)")].map((p) => p.getTotalLength()),
    })),
  };
  const out = document.body.appendChild(document.createElement("pre"));
  out.id = "seen";
  out.hidden = true;
  out.textContent = JSON.stringify(result);
});
</script>"#;

/// What the browser makes of the page.
fn look(browser: &str, page: &Path, size: (u32, u32), dark: bool) -> Value {
    let html = std::fs::read_to_string(page).expect("read the page");
    let watched = page.with_extension("watched.html");
    std::fs::write(&watched, html.replacen("<head>", &format!("<head>{WITNESS}"), 1))
        .expect("write the page with a witness");
    let profile = tempfile::tempdir().expect("a profile of its own");
    let output = Command::new(browser)
        // As root, as in a container, it has no sandbox; the page is ours.
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
        .args(["--disable-dev-shm-usage", "--no-first-run", "--virtual-time-budget=2000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--window-size={},{}", size.0, size.1))
        .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!dark)))
        .arg("--dump-dom")
        .arg(format!("file://{}", watched.display()))
        .stderr(Stdio::piped())
        .output()
        .expect("start the browser");
    let dom = String::from_utf8_lossy(&output.stdout);
    let seen = dom.split_once("id=\"seen\"").and_then(|(_, rest)| rest.split_once('>'));
    let json = seen.and_then(|(_, rest)| rest.split_once("</pre>")).map(|(json, _)| json);
    let json = json.unwrap_or_else(|| {
        panic!("no witness: {} {}", output.status, String::from_utf8_lossy(&output.stderr))
    });
    let json = json.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&json).expect("the witness speaks JSON")
}

/// Writes the page of three sets in two scenarios.
fn write_page(folders: &Folders) -> PathBuf {
    let slower = Made { median: 260.0, tail: 1.5, cpu_micros: 1.2, rate: 1700.0, lost: 3, ..USUAL };
    let quick = Made { median: 80.0, tail: 0.8, cpu_micros: 0.4, rate: 2600.0, ..USUAL };
    let mut arguments = Vec::new();
    for (name, made) in [("noctule-uring", quick), ("noctule-epoll", USUAL), ("<b>&\"x", slower)] {
        let folder = folders.set(&name.replace(['<', '>', '"', '&'], "_"), &made, 5);
        let made = Made { scenario: "pairs-qos0", mode: closed, median: made.median * 9.0, ..made };
        write_set(Path::new(&folder), &made, 5);
        arguments.push(format!("{name}={folder}"));
    }
    let page = folders.path("page.html");
    arguments.extend(["--html".to_owned(), page.to_string_lossy().into_owned()]);
    let output = compare(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    page
}

#[test]
fn the_page_needs_nothing_else() {
    let folders = Folders::new();
    let page = std::fs::read_to_string(write_page(&folders)).expect("read the page");
    for outside in ["src=", "@import", "url(", "<link", "http://", "https://"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(!page.contains("<b>&\"x"), "a name is text");
    assert!(page.contains("&lt;b&gt;&amp;&quot;x") && page.contains("--config=&lt;x&amp;y&gt;"));
    assert!(page.contains("<html lang=\"en\">") && page.contains("name=\"viewport\""));
}

#[test]
fn the_page_is_good_on_a_desktop_and_on_a_phone_in_light_and_dark() {
    let Some(browser) = browser() else {
        return skip("the_page_is_good", "no Chromium: Debian's chromium-headless-shell");
    };
    let folders = Folders::new();
    let page = write_page(&folders);
    let mut papers = Vec::new();
    for (width, height) in [(1440, 1000), (360, 780)] {
        for dark in [false, true] {
            let seen = look(browser, &page, (width, height), dark);
            println!("{width} {dark}: {seen:#}");
            assert_eq!(seen["errors"], serde_json::json!([]));
            assert_eq!(seen["width"], width, "the window is as wide as asked for");
            assert_eq!(seen["overflow"], 0, "at {width}");
            assert_eq!(seen["outside"], serde_json::json!([]), "at {width}");
            assert_eq!(seen["squeezed"], serde_json::json!([]), "at {width}");
            assert!(seen["contrast"].as_f64() > Some(4.5), "at {width}: {}", seen["contrast"]);
            assert!(seen["smallest"].as_f64() > Some(9.5), "at {width}: {}", seen["smallest"]);
            assert!(seen["tip"].as_str().is_some_and(|tip| tip.contains("noctule-uring")));
            assert_eq!(seen["tipFits"], true);
            papers.push(seen["paper"].as_f64().expect("a colour"));
            let charts = seen["charts"].as_array().expect("charts");
            assert_eq!(charts.len(), 6, "three of each scenario, once each");
            for chart in charts {
                let label = chart["label"].as_str().expect("a title and a description");
                assert!(label.contains(" | ") && label.contains("noctule-epoll: "), "{label}");
                let curves = chart["curves"].as_array().expect("curves");
                assert_eq!(curves.len(), 3, "{label}");
                let long = |curve: &Value| curve.as_f64() > Some(200.0);
                assert!(curves.iter().all(long), "{label}: {curves:?}");
                assert!(chart["width"].as_f64() > Some(280.0), "{label}");
            }
        }
    }
    assert!(papers[0] > 0.8 && papers[1] < 0.05, "light and dark: {papers:?}");
}
