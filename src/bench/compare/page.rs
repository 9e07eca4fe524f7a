//! The HTML report: one file that needs nothing else, for a desktop and a phone, light and dark.
//!
//! All that comes from runs is escaped; nothing is fetched. The script shows the values under the
//! pointer; without it the page is complete.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use serde_json::json;

use super::chart::{self, Chart, Latency, Stroke};
use super::context::Fact;
use super::metric::{Cell, Row, Verdict, Versus};
use super::svg::{self, Size, escape};
use super::text::{self, sentences};
use super::units;
use super::{Comparison, Scenario};
use crate::bench::run::summary::Better;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page.
pub fn page(comparison: &Comparison, title: Option<&str>) -> String {
    let names = comparison.sets.join(", ");
    let mut html = String::with_capacity(256 * 1024);
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n\
         <style>\n{}{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#content\">To the content</a>\n",
        escape(title.unwrap_or(&names)),
        svg::STYLE,
    );
    head(&mut html, comparison, title);
    html.push_str("<main class=\"wrap\" id=\"content\">\n");
    if !comparison.differences.is_empty() {
        html.push_str("<aside class=\"callout\">\n<h3>Not everything was the same</h3>\n<ul>\n");
        for difference in &comparison.differences {
            let _ = writeln!(html, "<li>{}</li>", escape(difference));
        }
        html.push_str("</ul>\n</aside>\n");
    }
    if comparison.scenarios.len() > 1 {
        overview(&mut html, comparison);
    }
    for (number, scenario) in comparison.scenarios.iter().enumerate() {
        section(&mut html, comparison, scenario, number);
    }
    environment(&mut html, comparison);
    html.push_str(include_str!("how.html"));
    let _ = write!(
        html,
        "</main>\n<footer><div class=\"wrap\">noctule {} compare. All figures, and the histograms \
         that they are from, are in the run folders.</div></footer>\n<script>\n{SCRIPT}</script>\n\
         </body>\n</html>\n",
        env!("CARGO_PKG_VERSION"),
    );
    html
}

fn head(html: &mut String, comparison: &Comparison, title: Option<&str>) {
    let heading = match title {
        Some(title) => escape(title),
        None => {
            // The comma stays with its name.
            let last = comparison.sets.len().saturating_sub(1);
            let name = |(set, name): (usize, &String)| {
                let comma = if (1..last).contains(&set) { "," } else { "" };
                format!("<span class=\"name\">{}{comma}</span>", escape(name))
            };
            let names: Vec<String> = comparison.sets.iter().enumerate().map(name).collect();
            match names.split_first() {
                Some((first, [])) => first.clone(),
                Some((first, rest)) => {
                    format!("{first} <span class=\"beside\">beside</span> {}", rest.join(" "))
                }
                None => String::new(),
            }
        }
    };
    let runs: usize = comparison.scenarios.iter().flat_map(|s| &s.runs).sum();
    let scenarios = comparison.scenarios.len();
    let value = |label: &str| {
        let fact = comparison.environment.iter().find(|f| f.part == "Machine" && f.label == label);
        fact.and_then(|f| f.values.iter().flatten().next()).map(|v| escape(v))
    };
    let mut lede = format!(
        "{} of {}.",
        text::count(runs, "run", "runs"),
        text::count(scenarios, "scenario", "scenarios")
    );
    let machine: Vec<String> = [
        value("CPU"),
        value("CPUs").map(|cpus| format!("{cpus} CPUs").replace(", 1 for each core CPUs", " CPUs")),
        value("Kernel"),
        value("Virtualised").filter(|v| v != "none").map(|v| format!("virtualised: {v}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !machine.is_empty() {
        let _ = write!(lede, " {}.", machine.join(", "));
    }
    let _ = write!(
        html,
        "<header class=\"top\"><div class=\"wrap\">\n<p class=\"eyebrow\">noctule compare</p>\n\
         <h1>{heading}</h1>\n<p class=\"lede\">{lede}</p>\n"
    );
    key(html, &comparison.sets, true);
    if scenarios > 1 {
        html.push_str("<nav aria-label=\"Scenarios\"><ul>\n");
        for (number, scenario) in comparison.scenarios.iter().enumerate() {
            let _ = writeln!(
                html,
                "<li><a href=\"#scenario-{number}\">{}</a></li>",
                escape(&scenario.name)
            );
        }
        html.push_str("<li><a href=\"#environment\">Environment</a></li>\n</ul></nav>\n");
    }
    html.push_str("</div></header>\n");
}

/// Colour and marker of each set.
fn key(html: &mut String, sets: &[String], with_base: bool) {
    html.push_str("<ul class=\"key\" aria-label=\"What the colours stand for\">\n");
    for (set, name) in sets.iter().enumerate() {
        let base = if set == 0 && with_base && sets.len() > 1 {
            " <small>(the others are held against it)</small>"
        } else {
            ""
        };
        let _ = writeln!(
            html,
            "<li class=\"s{set}\"><svg viewBox=\"0 0 12 12\" aria-hidden=\"true\">{}</svg>\
             <span>{}{base}</span></li>",
            svg::marker(set, 6.0, 6.0).trim_end(),
            escape(name)
        );
    }
    html.push_str("</ul>\n");
}

/// The figures of each scenario that are asked for first.
fn headline_keys(scenario: &Scenario) -> [&'static str; 3] {
    match scenario.is_closed {
        true => ["cpu", "throughput", "memory"],
        false => ["cpu", "p50", "p99"],
    }
}

fn overview(html: &mut String, comparison: &Comparison) {
    html.push_str(
        "<section aria-labelledby=\"overview\">\n<h2 id=\"overview\">All scenarios</h2>\n\
         <p class=\"about\">The broker's CPU time for each delivered message where it is known, and \
         below it the rate (closed loop) or the 99 % latency (open loop). Medians of the runs.</p>\n\
         <div class=\"card scroll\" tabindex=\"0\" role=\"region\" aria-label=\"All scenarios\">\n\
         <table class=\"stack\">\n<thead><tr><th scope=\"col\">Scenario</th>",
    );
    set_headings(html, &comparison.sets);
    html.push_str("</tr></thead>\n<tbody>\n");
    for (number, scenario) in comparison.scenarios.iter().enumerate() {
        let question = scenario.question.as_deref().map_or_else(String::new, |question| {
            format!("<small class=\"question\">{}</small>", escape(question))
        });
        let _ = write!(
            html,
            "<tr><th scope=\"row\"><a href=\"#scenario-{number}\">{}</a>{question}</th>",
            escape(&scenario.name)
        );
        let second = if scenario.is_closed { "throughput" } else { "p99" };
        let rows = [scenario.row("cpu"), scenario.row(second)];
        let main = rows.into_iter().flatten().next();
        for (set, name) in comparison.sets.iter().enumerate() {
            open_cell(html, set, name);
            match main.and_then(|row| row.cells[set].as_ref().map(|cell| (row, cell))) {
                None => html.push('–'),
                Some((row, cell)) => {
                    let _ = write!(html, "<b>{}</b>", row.unit.show(cell.value));
                    chip(html, cell.versus.as_ref(), false);
                }
            }
            if let [Some(_), Some(row)] = rows
                && let Some(cell) = &row.cells[set]
            {
                let what = if second == "p99" { "99 %: " } else { "" };
                let value = row.unit.show(cell.value);
                let _ = write!(html, "<span class=\"spread\">{what}{value}</span>");
            }
            html.push_str("</td>");
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table>\n</div>\n</section>\n");
}

fn set_headings(html: &mut String, sets: &[String]) {
    for (set, name) in sets.iter().enumerate() {
        let _ = write!(html, "<th scope=\"col\" class=\"s{set}\">{}</th>", escape(name));
    }
}

fn open_cell(html: &mut String, set: usize, name: &str) {
    let _ = write!(html, "<td class=\"s{set}\" data-set=\"{}\">", escape(name));
}

fn section(html: &mut String, comparison: &Comparison, scenario: &Scenario, number: usize) {
    let sets = &comparison.sets;
    let question = scenario.question.as_deref().map_or_else(String::new, |question| {
        format!("<p class=\"question\">{}</p>\n", escape(question))
    });
    let _ = write!(
        html,
        "<section id=\"scenario-{number}\" aria-labelledby=\"scenario-{number}-h\">\n\
         <h2 id=\"scenario-{number}-h\">{}</h2>\n{question}<p class=\"about\">{}</p>\n",
        escape(&scenario.name),
        escape(&scenario.description)
    );
    let verdicts = sentences(comparison, scenario);
    if !verdicts.is_empty() {
        html.push_str("<ul class=\"verdicts\">\n");
        for (set, sentence) in verdicts {
            let name = escape(&sets[set]);
            let rest = escape(&sentence);
            let _ = writeln!(html, "<li class=\"s{set}\"><b>{name}</b> {rest}</li>");
        }
        html.push_str("</ul>\n");
    }
    html.push_str("<div class=\"panels\">\n");
    for key in headline_keys(scenario) {
        if let Some(row) = scenario.row(key) {
            bars(html, row, sets);
        }
    }
    html.push_str("</div>\n");
    spectrum(html, scenario, sets, number);
    html.push_str("<div class=\"pair\">\n");
    let charts = [
        chart::latency_over_time(&scenario.curves, sets),
        chart::rate_over_time(&scenario.curves, sets),
    ];
    for (which, chart) in charts.into_iter().flatten().enumerate() {
        figure_open(html, &chart, sets, "");
        let id = format!("s{number}-t{which}");
        let _ = write!(
            html,
            "<div class=\"wide\">{}</div><div class=\"narrow\">{}</div>\n</figure>\n",
            svg::draw(&chart, sets, Size::Half, &id),
            svg::draw(&chart, sets, Size::Narrow, &format!("{id}n")),
        );
    }
    html.push_str("</div>\n");
    table(html, scenario, sets);
    html.push_str("</section>\n");
}

/// One figure of all sets as bars, with a dot for each run.
fn bars(html: &mut String, row: &Row, sets: &[String]) {
    let most = row.cells.iter().flatten().map(|c| c.spread.high).fold(0.0, f64::max);
    let hint = match row.better {
        Some(Better::Lower) => "less is better",
        Some(Better::Higher) => "more is better",
        None => "as it was asked for",
    };
    let _ = write!(
        html,
        "<div class=\"card\">\n<h3>{}</h3>\n<p class=\"sub\">{hint}; a dot is a run</p>\n",
        escape(&row.label)
    );
    for (set, name) in sets.iter().enumerate() {
        let Some(cell) = &row.cells[set] else { continue };
        let part = |value: f64| if most > 0.0 { value / most * 100.0 } else { 0.0 };
        let _ = write!(
            html,
            "<div class=\"bar s{set}\"><span class=\"who\">{}</span><span class=\"what\">{}</span>\
             <span class=\"track\"><span class=\"fill\" style=\"width:{:.2}%\"></span>",
            escape(name),
            row.unit.show(cell.value),
            part(cell.value)
        );
        for value in &cell.values {
            // A whole dot stays on the track.
            let at = part(*value).clamp(1.0, 99.0);
            let _ = write!(html, "<span class=\"dot\" style=\"left:{at:.2}%\"></span>");
        }
        html.push_str("</span></div>\n");
    }
    html.push_str("</div>\n");
}

fn figure_open(html: &mut String, chart: &Chart, sets: &[String], beside: &str) {
    let _ = write!(
        html,
        "<figure class=\"card\" data-readout=\"{}\">\n<div class=\"figure-head\"><h3>{}</h3>{beside}\
         </div>\n",
        escape(&readout(chart, sets)),
        escape(&chart.title),
    );
}

fn spectrum(html: &mut String, scenario: &Scenario, sets: &[String], number: usize) {
    let draw = |latency| chart::spectrum(&scenario.curves, sets, &scenario.latency_of, latency);
    let (Some(log), Some(linear)) = (draw(Latency::Log), draw(Latency::Linear)) else { return };
    let is_repeated = scenario.runs.iter().any(|runs| *runs > 1);
    let about = match is_repeated {
        true => "Line: median of the runs. Band: lowest to highest run. To the right what is rare.",
        false => "To the right what is rare.",
    };
    // Radio buttons that the style sheet obeys: no script is needed.
    let switches = format!(
        "<p>{about}</p><div class=\"switches\" role=\"radiogroup\" aria-label=\"Latency axis\">\
         <input class=\"switch\" type=\"radio\" name=\"scale-{number}\" id=\"log-{number}\" checked>\
         <label for=\"log-{number}\">logarithmic</label>\
         <input class=\"switch pick-linear\" type=\"radio\" name=\"scale-{number}\" \
         id=\"linear-{number}\"><label for=\"linear-{number}\">linear</label></div>"
    );
    figure_open(html, &log, sets, &switches);
    key(html, sets, false);
    for (class, chart) in [("log", &log), ("linear", &linear)] {
        let id = format!("s{number}-{class}");
        let _ = writeln!(
            html,
            "<div class=\"{class}\"><div class=\"wide\">{}</div><div class=\"narrow\">{}</div></div>",
            svg::draw(chart, sets, Size::Wide, &id),
            svg::draw(chart, sets, Size::Narrow, &format!("{id}n")),
        );
    }
    html.push_str("</figure>\n");
}

/// What the script shows: where points are from left to right, what x is there, and each set's
/// value.
fn readout(chart: &Chart, sets: &[String]) -> String {
    let main = || chart.lines.iter().filter(|line| line.stroke == Stroke::Main);
    let Some(longest) = main().max_by_key(|line| line.points.len()) else { return "{}".into() };
    let xs: Vec<f64> = longest.points.iter().map(|point| point.x).collect();
    let places: Vec<f64> =
        xs.iter().map(|x| (chart.x.scale.place(*x) * 1e4).round() / 1e4).collect();
    let at: Vec<String> = xs.iter().map(|x| (chart.x_text)(*x)).collect();
    let mut lines: Vec<_> = main()
        .map(|line| {
            let value = |x: &f64| {
                let point = line.points.iter().find(|point| (point.x - x).abs() < 1e-6);
                point.map_or_else(String::new, |point| chart.unit.show(point.mid))
            };
            (line.set, &sets[line.set], xs.iter().map(value).collect::<Vec<_>>())
        })
        .collect();
    lines.sort_by_key(|(set, ..)| *set);
    json!({ "x": places, "at": at, "lines": lines }).to_string()
}

fn table(html: &mut String, scenario: &Scenario, sets: &[String]) {
    let runs: Vec<String> = scenario.runs.iter().map(ToString::to_string).collect();
    let label = escape(&scenario.name);
    let _ = write!(
        html,
        "<div class=\"card scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Figures of {label}\">\n\
         <table class=\"stack\">\n<caption>Latency is from {}. Medians of {} runs, below them lowest to \
         highest, and the ratio to {} with its 95 % interval.</caption>\n\
         <thead><tr><th scope=\"col\"></th>",
        escape(&scenario.latency_of),
        runs.join(" / "),
        escape(&sets[0]),
    );
    set_headings(html, sets);
    html.push_str("</tr></thead>\n<tbody>\n");
    for row in &scenario.rows {
        let _ = write!(html, "<tr><th scope=\"row\">{}</th>", escape(&row.label));
        for (set, name) in sets.iter().enumerate() {
            open_cell(html, set, name);
            match &row.cells[set] {
                Some(cell) => figure(html, row, cell),
                None => html.push('–'),
            }
            html.push_str("</td>");
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table>\n");
    if !scenario.notes.is_empty() {
        html.push_str("<ul class=\"notes\">\n");
        for note in &scenario.notes {
            let _ = writeln!(html, "<li>{}</li>", escape(note));
        }
        html.push_str("</ul>\n");
    }
    html.push_str("</div>\n");
}

fn figure(html: &mut String, row: &Row, cell: &Cell) {
    let value = row.unit.show(cell.value);
    let class = if row.is_sum && cell.value > 0.0 { " class=\"bad\"" } else { "" };
    let _ = write!(html, "<b{class}>{value}</b>");
    if cell.values.len() > 1 && !row.is_sum {
        let (low, high) = (row.unit.show(cell.spread.low), row.unit.show(cell.spread.high));
        let _ = write!(html, "<span class=\"spread\">{low} to {high}</span>");
    }
    chip(html, cell.versus.as_ref(), true);
}

fn chip(html: &mut String, versus: Option<&Versus>, with_interval: bool) {
    let Some(versus) = versus else { return };
    let ratio = units::ratio(versus.ratio);
    let (class, text) = match versus.verdict {
        Verdict::Better => ("better", format!("{ratio}, better")),
        Verdict::Worse => ("worse", format!("{ratio}, worse")),
        Verdict::Different => ("", ratio),
        Verdict::NoDifference => ("", "no difference".to_owned()),
        Verdict::Unknown => ("", format!("{ratio} ?")),
    };
    let interval = versus.interval.filter(|_| with_interval).map(|interval| {
        let bare = |ratio: f64| units::ratio(ratio).replace('×', "");
        format!(" ({} to {})", bare(interval.low), bare(interval.high))
    });
    let _ =
        write!(html, " <span class=\"chip {class}\">{text}{}</span>", interval.unwrap_or_default());
}

fn environment(html: &mut String, comparison: &Comparison) {
    let sets = &comparison.sets;
    html.push_str(
        "<section id=\"environment\" aria-labelledby=\"environment-h\">\n\
         <h2 id=\"environment-h\">Environment</h2>\n\
         <p class=\"about\">What the runs ran on, read when each of them began.</p>\n\
         <div class=\"card scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Environment\">\n\
         <table class=\"facts stack\">\n<thead><tr><th scope=\"col\"></th>",
    );
    set_headings(html, sets);
    html.push_str("</tr></thead>\n<tbody>\n");
    let mut part = "";
    for fact in &comparison.environment {
        if fact.part != part {
            part = fact.part;
            let span = sets.len() + 1;
            let _ = writeln!(html, "<tr class=\"part\"><td colspan=\"{span}\">{part}</td></tr>");
        }
        fact_row(html, fact, sets);
    }
    html.push_str("</tbody></table>\n</div>\n</section>\n");
}

fn fact_row(html: &mut String, fact: &Fact, sets: &[String]) {
    let class = if fact.must_agree && fact.differs() { " class=\"differs\"" } else { "" };
    let _ = write!(html, "<tr{class}><th scope=\"row\">{}</th>", fact.label);
    let show = |values: &[String]| {
        let text = escape(&shown(fact, values));
        if fact.label == "Command" { format!("<code>{text}</code>") } else { text }
    };
    if !fact.differs() && fact.values.iter().all(|values| !values.is_empty()) {
        // The same for all is said once.
        let _ = write!(html, "<td colspan=\"{}\">{}</td>", sets.len(), show(&fact.values[0]));
    } else {
        for (set, name) in sets.iter().enumerate() {
            open_cell(html, set, name);
            let _ = write!(html, "{}</td>", show(&fact.values[set]));
        }
    }
    html.push_str("</tr>\n");
}

/// The values of one set; of commands that differ from run to run the first is an example.
fn shown(fact: &Fact, values: &[String]) -> String {
    match values {
        [] => "unknown".into(),
        [one] => one.clone(),
        [first, ..] if fact.label == "Command" => {
            format!("{first} (and {} like it)", values.len() - 1)
        }
        [first, .., last] if fact.label == "Load before" => format!("{first} … {last}"),
        all => all.join(" or "),
    }
}
