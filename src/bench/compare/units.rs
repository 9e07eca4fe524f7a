//! Figures for people: three significant digits, with the unit that keeps them short.
#![forbid(unsafe_code)]

use serde::Serialize;

/// What a figure is measured in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Time.
    Nanoseconds,
    /// CPU time of one message.
    Microseconds,
    /// Messages a second, and the like.
    PerSecond,
    /// Memory.
    Bytes,
    /// A part of one CPU.
    Share,
    /// A whole number.
    Count,
    /// Anything, with its name; empty for a bare number.
    Other(String),
}

impl Unit {
    /// `value` in this unit.
    pub fn show(&self, value: f64) -> String {
        match self {
            Self::Nanoseconds => {
                scaled(value, &[(1e9, " s"), (1e6, " ms"), (1e3, " µs"), (1.0, " ns")])
            }
            // Always the same unit: it is the headline, and read as a column.
            Self::Microseconds => format!("{} µs", digits(value)),
            Self::PerSecond => format!("{}/s", Self::Other(String::new()).show(value)),
            Self::Bytes => scaled(
                value,
                &[
                    (1024f64.powi(3), " GiB"),
                    (1024f64.powi(2), " MiB"),
                    (1024.0, " KiB"),
                    (1.0, " B"),
                ],
            ),
            Self::Share => format!("{} %", digits(value * 100.0)),
            Self::Count => grouped(value.max(0.0).round() as u64),
            Self::Other(name) => {
                let number = match value.abs() {
                    size if size < 1e4 => digits(value),
                    _ => scaled(value, &[(1e9, " G"), (1e6, " M"), (1e3, " k")]),
                };
                match name.is_empty() {
                    true => number,
                    false => format!("{number} {name}"),
                }
            }
        }
    }
}

/// A ratio for people: `1.23×`.
pub fn ratio(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}×"),
        v if v >= 10.0 => format!("{v:.1}×"),
        v if v >= 0.1 => format!("{v:.2}×"),
        v => format!("{v:.3}×"),
    }
}

/// In the largest of `units` in which it is at least 1.
fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let fits = units.iter().find(|(size, _)| value.abs() >= size * 0.9995);
    let (size, name) = fits.or(units.last()).expect("invariant: there are units");
    format!("{}{name}", digits(value / size))
}

/// Three significant digits, never an exponent.
fn digits(value: f64) -> String {
    match value.abs() {
        size if size == 0.0 || size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// 1,234,567.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (i, digit) in digits.char_indices() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_the_unit_that_keeps_them_short() {
        let cases = [
            (Unit::Nanoseconds, 0.0, "0 ns"),
            (Unit::Nanoseconds, 950.0, "950 ns"),
            (Unit::Nanoseconds, 999.9, "1.00 µs"),
            (Unit::Nanoseconds, 12_345.0, "12.3 µs"),
            (Unit::Nanoseconds, 1_234_567.0, "1.23 ms"),
            (Unit::Nanoseconds, 2.5e9, "2.50 s"),
            (Unit::Microseconds, 0.25, "0.250 µs"),
            (Unit::Microseconds, 3.456, "3.46 µs"),
            (Unit::PerSecond, 1_234_567.0, "1.23 M/s"),
            (Unit::PerSecond, 12_345.0, "12.3 k/s"),
            (Unit::PerSecond, 4000.0, "4000/s"),
            (Unit::Bytes, 3_500_000.0, "3.34 MiB"),
            (Unit::Share, 0.985, "98.5 %"),
            (Unit::Count, 1_234_567.0, "1,234,567"),
            (Unit::Other("clients".into()), 3.0, "3.00 clients"),
        ];
        for (unit, value, text) in cases {
            assert_eq!(unit.show(value), text, "{value} {unit:?}");
        }
        assert_eq!(
            [ratio(0.4321), ratio(1.0), ratio(12.34), ratio(0.0123)].join(" "),
            "0.43× 1.00× 12.3× 0.012×"
        );
    }
}
