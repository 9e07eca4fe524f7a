//! Assembles a broker: configuration, sockets, data directory, shard threads, and the control
//! thread that waits for signals.
#![forbid(unsafe_code)]

pub mod config;
