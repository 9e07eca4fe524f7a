//! Where log lines go: stderr, as text or JSON. Nothing on the hot path logs.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, stderr};

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, registry};

use super::config::LogFormat;
use super::config::raw::LogLevel;

/// Begins to log. Only the first call of a process counts.
pub fn init(level: &LogLevel, format: LogFormat) {
    let targets: Targets = level.0.parse().expect("invariant: a LogLevel parses");
    let lines = fmt::layer().with_writer(stderr).with_target(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // It fails only when somebody (a test) has begun before.
    let _ = registry().with(lines).with(targets).try_init();
}
