//! What happened, line by line: for who reads a run, and for the proof that two are the same.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use crate::clock::Time;

/// The lines so far. Nothing is written unless it was asked for.
#[derive(Debug, Default)]
pub struct Trace {
    enabled: bool,
    text: String,
}

impl Trace {
    /// One that keeps lines, or one that does not.
    pub fn new(enabled: bool) -> Self {
        Self { enabled, text: String::new() }
    }

    /// A line; `what` is only called when it is kept.
    pub fn line(&mut self, now: Time, what: impl FnOnce() -> String) {
        if self.enabled {
            let micros = now.as_nanos() / 1000;
            let (secs, rest) = (micros / 1_000_000, micros % 1_000_000);
            writeln!(self.text, "{secs:6}.{rest:06} {}", what())
                .expect("invariant: a String takes everything");
        }
    }

    /// All of it.
    pub fn text(&self) -> &str {
        &self.text
    }
}
