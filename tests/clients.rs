//! Real client libraries against a real broker, on every combination.
#![forbid(unsafe_code)]

mod support;
