//! A comparison for a terminal: figures side by side, and the percentile spectrum in characters.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use super::chart::{self, Chart, Latency};
use super::metric::{Cell, Row, Verdict, Versus};
use super::units::ratio;
use super::{Comparison, Scenario};

/// Characters of the plot's inside.
const PLOT_WIDTH: usize = 64;
const PLOT_HEIGHT: usize = 15;
/// What each set is drawn with.
const MARKS: [char; 8] = ['●', '■', '▲', '◆', '▼', '×', '+', '○'];

/// All of it, in lines of at most `width` characters where that is possible.
pub fn print(comparison: &Comparison, width: usize) -> String {
    let mut text = String::new();
    for scenario in &comparison.scenarios {
        let question = scenario.question.iter().map(|question| format!(": {question}"));
        let heading = scenario.name.clone() + &question.collect::<String>();
        let _ = writeln!(text, "{heading}\n{}\n", scenario.description);
        table(&mut text, comparison, scenario, width);
        let chart =
            chart::spectrum(&scenario.curves, &comparison.sets, &scenario.latency_of, Latency::Log);
        if let Some(chart) = chart {
            text.push('\n');
            plot(&mut text, &chart, &comparison.sets);
        }
        let verdicts = sentences(comparison, scenario);
        if !verdicts.is_empty() {
            text.push('\n');
        }
        for (set, sentence) in verdicts {
            wrap(&mut text, &format!("{} {sentence}", comparison.sets[set]), width);
        }
        for note in &scenario.notes {
            wrap(&mut text, &format!("note: {note}"), width);
        }
        text.push('\n');
    }
    if !comparison.differences.is_empty() {
        text.push_str("Not everything was the same:\n");
        for difference in &comparison.differences {
            wrap(&mut text, &format!("- {difference}"), width);
        }
    }
    text
}

/// `1 run`, `2 runs`.
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// What is to be said of each set but the first, behind its name.
pub fn sentences(comparison: &Comparison, scenario: &Scenario) -> Vec<(usize, String)> {
    let base = &comparison.sets[0];
    let keys: &[&str] =
        if scenario.is_closed { &["cpu", "throughput"] } else { &["cpu", "p50", "p99"] };
    let mut sentences = Vec::new();
    for set in 1..comparison.sets.len() {
        let parts: Vec<String> = keys
            .iter()
            .filter_map(|key| {
                let versus = scenario.row(key)?.cells[set].as_ref()?.versus?;
                Some(phrase(key, &versus, base, scenario.counted))
            })
            .collect();
        if !parts.is_empty() {
            sentences.push((set, format!("{}.", parts.join("; "))));
        }
    }
    sentences
}

fn phrase(key: &str, versus: &Versus, base: &str, counted: &str) -> String {
    let times = ratio(versus.ratio);
    if versus.verdict == Verdict::NoDifference {
        return match key {
            "cpu" => format!("shows no difference to {base} in CPU per {counted}"),
            "throughput" => format!("none in {counted}s a second"),
            "p50" => "none in median latency".into(),
            _ => "none in 99 % latency".into(),
        }
        .replace("none in", "no difference in");
    }
    let interval = match versus.interval {
        Some(interval) => format!("{} to {}", ratio(interval.low), ratio(interval.high)),
        None => "spread unknown".into(),
    };
    match key {
        "cpu" => format!("spends {times} the CPU of {base} on a {counted} ({interval})"),
        "throughput" if counted == "message" => {
            format!("delivers {times} as many messages a second ({interval})")
        }
        "throughput" => format!("has {times} as many {counted}s a second ({interval})"),
        "p50" => format!("median latency {times} ({interval})"),
        _ => format!("99 % latency {times} ({interval})"),
    }
}

fn cell_text(row: &Row, cell: Option<&Cell>) -> String {
    let Some(cell) = cell else { return "–".into() };
    let mut text = row.unit.show(cell.value);
    if let Some(versus) = &cell.versus {
        let word = match versus.verdict {
            Verdict::Better => " better",
            Verdict::Worse => " worse",
            Verdict::NoDifference => {
                text.push_str("  no difference");
                return text;
            }
            Verdict::Different => "",
            Verdict::Unknown => " ?",
        };
        let _ = write!(text, "  {}", ratio(versus.ratio));
        if let Some(interval) = versus.interval {
            let _ = write!(text, " [{:.2} {:.2}]", interval.low, interval.high);
        }
        text.push_str(word);
    }
    text
}

fn table(text: &mut String, comparison: &Comparison, scenario: &Scenario, width: usize) {
    let len = |text: &str| text.chars().count();
    let mut lines: Vec<Vec<String>> = vec![
        std::iter::once(String::new())
            .chain(
                comparison
                    .sets
                    .iter()
                    .zip(&scenario.runs)
                    .map(|(name, runs)| format!("{name} ({})", count(*runs, "run", "runs"))),
            )
            .collect(),
    ];
    for row in &scenario.rows {
        let cells = row.cells.iter().map(|cell| cell_text(row, cell.as_ref()));
        lines.push(std::iter::once(row.label.clone()).chain(cells).collect());
    }
    let columns = lines[0].len();
    let widths: Vec<usize> = (0..columns)
        .map(|column| lines.iter().map(|line| len(&line[column])).max().unwrap_or(0))
        .collect();
    if widths.iter().sum::<usize>() + 2 * (columns - 1) <= width {
        for line in &lines {
            let mut out = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                let _ = write!(out, "{cell}{}", " ".repeat(width - len(cell) + 2));
            }
            let _ = writeln!(text, "{}", out.trim_end());
        }
        return;
    }
    // No room side by side: below each other.
    let names = &lines[0];
    let widest = names.iter().map(|name| len(name)).max().unwrap_or(0);
    for line in &lines[1..] {
        let _ = writeln!(text, "{}", line[0]);
        for (name, cell) in names.iter().zip(line).skip(1) {
            let _ = writeln!(text, "  {name}{}{cell}", " ".repeat(widest - len(name) + 2));
        }
    }
}

/// The chart in characters.
fn plot(text: &mut String, chart: &Chart, sets: &[String]) {
    let mut grid = vec![vec![' '; PLOT_WIDTH]; PLOT_HEIGHT];
    let row_of = |place: f64| PLOT_HEIGHT - 1 - (place * (PLOT_HEIGHT - 1) as f64).round() as usize;
    for (value, _) in &chart.y.marks {
        grid[row_of(chart.y.scale.place(*value))].iter_mut().step_by(2).for_each(|c| *c = '·');
    }
    for line in &chart.lines {
        for (column, cells) in (0..PLOT_WIDTH).map(|c| (c as f64 / (PLOT_WIDTH - 1) as f64, c)) {
            // The curve at this column, between the points beside it.
            let at = |place: f64| {
                let behind = line.points.iter().position(|p| chart.x.scale.place(p.x) >= place)?;
                let next = &line.points[behind];
                let Some(last) = behind.checked_sub(1).map(|i| &line.points[i]) else {
                    return Some(chart.y.scale.place(next.mid));
                };
                let (from, to) = (chart.x.scale.place(last.x), chart.x.scale.place(next.x));
                let part = if to > from { (place - from) / (to - from) } else { 1.0 };
                let (low, high) = (chart.y.scale.place(last.mid), chart.y.scale.place(next.mid));
                Some(low + part * (high - low))
            };
            if let Some(place) = at(column) {
                grid[row_of(place)][cells] = MARKS[line.set % MARKS.len()];
            }
        }
    }
    let mut labels = vec![String::new(); PLOT_HEIGHT];
    for (value, label) in &chart.y.marks {
        labels[row_of(chart.y.scale.place(*value))].clone_from(label);
    }
    let _ = writeln!(text, "{:>9}  {}", "", chart.y.label);
    for (label, row) in labels.iter().zip(&grid) {
        let row: String = row.iter().collect();
        let gap = " ".repeat(9usize.saturating_sub(label.chars().count()));
        let _ = writeln!(text, "{gap}{label} │{}", row.trim_end());
    }
    let _ = writeln!(text, "{:>9} └{}", "", "─".repeat(PLOT_WIDTH));
    let mut below = vec![' '; PLOT_WIDTH + 8];
    let mut free_from = 0;
    for (value, label) in &chart.x.marks {
        let at = (chart.x.scale.place(*value) * (PLOT_WIDTH - 1) as f64).round() as usize;
        let start = at.saturating_sub(label.chars().count() / 2).max(free_from);
        for (offset, c) in label.chars().enumerate() {
            if let Some(place) = below.get_mut(start + offset) {
                *place = c;
            }
        }
        free_from = start + label.chars().count() + 1;
    }
    let below: String = below.iter().collect();
    let _ = writeln!(text, "{:>9}  {}", "", below.trim_end());
    let key: Vec<String> =
        sets.iter().enumerate().map(|(set, name)| format!("{} {name}", MARKS[set % 8])).collect();
    let _ = writeln!(text, "{:>9}  {}", "", key.join("   "));
}

/// A paragraph; its further lines are indented.
fn wrap(text: &mut String, paragraph: &str, width: usize) {
    let mut used = 0;
    for word in paragraph.split_whitespace() {
        let len = word.chars().count();
        if used > 0 && used + 1 + len > width {
            text.push_str("\n  ");
            used = 2;
        } else if used > 0 {
            text.push(' ');
            used += 1;
        }
        text.push_str(word);
        used += len;
    }
    text.push('\n');
}
