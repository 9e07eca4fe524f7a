//! Assembles a broker: configuration, sockets, data directory, shard threads, and the control
//! thread that waits for signals.
//!
//! Whatever can be wrong with the machine or the
//! configuration is found before the first connection is accepted, and said in one line.
#![forbid(unsafe_code)]

pub mod affinity;
pub mod config;
pub mod instance;
pub mod logging;

use std::fmt;

/// Why a broker could not start. Its text is one line that names the thing and the fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartError(String);

impl StartError {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}
