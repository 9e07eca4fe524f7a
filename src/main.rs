//! The `noctule` command.
#![forbid(unsafe_code)]

fn main() {}
