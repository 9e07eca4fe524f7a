//! Draws a [`Chart`] as SVG. Colours are CSS variables, so that a drawing follows the page, or the
//! system when it stands alone, between light and dark.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use super::chart::{Chart, Line, Stroke};

/// Colours and strokes, of the page and of drawings that stand alone.
pub const STYLE: &str = include_str!("chart.css");

/// How much room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// On a desktop: names at the lines' ends.
    Wide,
    /// On a desktop, two beside each other.
    Half,
    /// On a phone.
    Narrow,
}

/// Places in a drawing, in its own units.
struct Frame {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    names_at_ends: bool,
}

impl Frame {
    fn new(size: Size) -> Self {
        let (width, height, left, right, names_at_ends) = match size {
            Size::Wide => (1080.0, 440.0, 72.0, 150.0, true),
            Size::Half => (532.0, 290.0, 66.0, 16.0, false),
            Size::Narrow => (340.0, 300.0, 58.0, 14.0, false),
        };
        Self { width, height, left, right, top: 30.0, bottom: 46.0, names_at_ends }
    }

    fn x(&self, place: f64) -> f64 {
        self.left + place * (self.width - self.left - self.right)
    }

    fn y(&self, place: f64) -> f64 {
        self.height - self.bottom - place * (self.height - self.top - self.bottom)
    }
}

/// The drawing. `id` is unique on its page.
pub fn draw(chart: &Chart, sets: &[String], size: Size, id: &str) -> String {
    let frame = Frame::new(size);
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg class=\"chart\" viewBox=\"0 0 {} {}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\" \
         data-left=\"{}\" data-right=\"{}\">\n<title id=\"{id}-t\">{}</title>\n\
         <desc id=\"{id}-d\">{}</desc>\n",
        frame.width,
        frame.height,
        frame.left,
        frame.width - frame.right,
        escape(&chart.title),
        escape(&chart.description),
    );
    draw_axes(&mut svg, chart, &frame, size);
    for line in &chart.lines {
        draw_band(&mut svg, chart, line, &frame);
    }
    for line in &chart.lines {
        draw_line(&mut svg, chart, line, &frame);
    }
    if frame.names_at_ends {
        draw_names(&mut svg, chart, sets, &frame);
    }
    let (top, bottom) = (frame.top, frame.height - frame.bottom);
    let _ = write!(
        svg,
        "<line class=\"cursor\" x1=\"0\" x2=\"0\" y1=\"{top}\" y2=\"{bottom}\"/>\n</svg>\n"
    );
    svg
}

/// The drawing as a file of its own, with the names below.
pub fn draw_alone(chart: &Chart, sets: &[String]) -> String {
    let drawing = draw(chart, sets, Size::Wide, "chart");
    let open = "<svg xmlns=\"http://www.w3.org/2000/svg\"";
    let frame = Frame::new(Size::Wide);
    let style = format!(
        "<style>{STYLE}</style>\n<rect width=\"{}\" height=\"{}\" fill=\"var(--paper)\"/>\n",
        frame.width, frame.height
    );
    let drawing = drawing.replacen("<svg", open, 1);
    // Behind everything, and behind what it is for who cannot see it.
    drawing.replacen("</desc>\n", &format!("</desc>\n{style}"), 1)
}

fn draw_axes(svg: &mut String, chart: &Chart, frame: &Frame, size: Size) {
    let (left, right) = (frame.left, frame.width - frame.right);
    let bottom = frame.height - frame.bottom;
    let _ = writeln!(svg, "<g class=\"axis\">");
    for (value, text) in &chart.y.marks {
        let y = frame.y(chart.y.scale.place(*value));
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            y + 4.0,
            escape(text)
        );
    }
    // On a phone not all marks of the x axis have room for their text.
    let room = if size == Size::Narrow { 5 } else { 12 };
    let every = chart.x.marks.len().div_ceil(room).max(1);
    for (number, (value, text)) in chart.x.marks.iter().enumerate() {
        let x = frame.x(chart.x.scale.place(*value));
        let _ = write!(
            svg,
            "<line class=\"tick\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom}\" y2=\"{}\"/>",
            bottom + 5.0
        );
        if number % every == 0 {
            // The outermost stays within the drawing.
            let anchor = if x > frame.width - 30.0 { "end" } else { "middle" };
            let x = if anchor == "end" { right } else { x };
            let _ = write!(
                svg,
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                bottom + 19.0,
                escape(text)
            );
        }
        svg.push('\n');
    }
    let _ = writeln!(
        svg,
        "<line class=\"base\" x1=\"{left}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\n\
         <text class=\"name\" x=\"{:.1}\" y=\"14\">{}</text>\n\
         <text class=\"name\" x=\"{right:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n</g>",
        4.0,
        escape(&chart.y.label),
        frame.height - 6.0,
        escape(&chart.x.label),
    );
}

fn place(chart: &Chart, frame: &Frame, x: f64, y: f64) -> (f64, f64) {
    (frame.x(chart.x.scale.place(x)), frame.y(chart.y.scale.place(y)))
}

/// From the lowest to the highest run.
fn draw_band(svg: &mut String, chart: &Chart, line: &Line, frame: &Frame) {
    if line.stroke == Stroke::Faint || line.points.iter().all(|p| p.low == p.high) {
        return;
    }
    let above = line.points.iter().map(|p| (p.x, p.high));
    let below = line.points.iter().rev().map(|p| (p.x, p.low));
    let mut path = String::new();
    for (x, y) in above.chain(below) {
        let (x, y) = place(chart, frame, x, y);
        let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { "L" });
    }
    let _ = writeln!(svg, "<path class=\"band s{}\" d=\"{path}Z\"/>", line.set);
}

fn draw_line(svg: &mut String, chart: &Chart, line: &Line, frame: &Frame) {
    let mut path = String::new();
    for point in &line.points {
        let (x, y) = place(chart, frame, point.x, point.mid);
        let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { "L" });
    }
    let class = match line.stroke {
        Stroke::Main => "line",
        Stroke::Faint => "line faint",
    };
    let set = line.set;
    let _ = writeln!(svg, "<path class=\"{class} s{set}\" d=\"{path}\"/>");
    for at in &line.markers {
        let Some(point) = line.points.iter().find(|point| point.x >= at - 1e-9) else { continue };
        let (x, y) = place(chart, frame, point.x, point.mid);
        svg.push_str(&marker(set, x, y));
    }
}

/// A small shape; each set has its own.
pub fn marker(set: usize, x: f64, y: f64) -> String {
    let turned = |points: &[(f64, f64)]| {
        let text: Vec<String> =
            points.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
        format!("<polygon class=\"marker s{set}\" points=\"{}\"/>\n", text.join(" "))
    };
    match set {
        0 => format!("<circle class=\"marker s0\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>\n"),
        1 => turned(&[(-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)]),
        2 => turned(&[(0.0, -4.8), (4.6, 3.4), (-4.6, 3.4)]),
        3 => turned(&[(0.0, -5.0), (5.0, 0.0), (0.0, 5.0), (-5.0, 0.0)]),
        4 => turned(&[(0.0, 4.8), (4.6, -3.4), (-4.6, -3.4)]),
        5 => turned(&[(-4.8, -1.8), (4.8, -1.8), (4.8, 1.8), (-4.8, 1.8)]),
        6 => turned(&[(-1.8, -4.8), (1.8, -4.8), (1.8, 4.8), (-1.8, 4.8)]),
        _ => turned(&[(-5.0, 0.0), (-2.5, -4.3), (2.5, -4.3), (5.0, 0.0), (2.5, 4.3), (-2.5, 4.3)]),
    }
}

/// The sets' names at the ends of their lines, apart from each other.
fn draw_names(svg: &mut String, chart: &Chart, sets: &[String], frame: &Frame) {
    const APART: f64 = 17.0;
    let main = chart.lines.iter().filter(|line| line.stroke == Stroke::Main);
    let mut names: Vec<(usize, f64, f64)> = main
        .filter_map(|line| {
            let last = line.points.last()?;
            let (x, y) = place(chart, frame, last.x, last.mid);
            Some((line.set, x, y))
        })
        .collect();
    names.sort_by(|a, b| a.2.total_cmp(&b.2));
    let mut below = frame.top - APART;
    for (_, _, y) in &mut names {
        *y = y.max(below + APART);
        below = *y;
    }
    let mut above = frame.height - frame.bottom + APART;
    for (set, x, y) in names.iter_mut().rev() {
        *y = y.min(above - APART);
        above = *y;
        let _ = writeln!(
            svg,
            "<text class=\"label s{set}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            *x + 10.0,
            *y + 4.0,
            escape(&shortened(&sets[*set], 20))
        );
    }
}

/// `text`, cut to `most` characters.
fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// `text` for HTML and SVG, in elements and in quoted attributes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Not allowed in XML at all.
            c if c.is_control() && c != '\n' && c != '\t' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_its_quotes() {
        assert_eq!(
            escape("<a href=\"x\">'&'\u{1}"),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;\u{fffd}"
        );
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!(shortened("äöüä", 4), "äöüä");
        assert_eq!(shortened("äöüäö", 4), "äöüä…");
    }
}
