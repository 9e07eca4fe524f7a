//! Atomics and `Arc` under one name, the standard library's or loom's (`--cfg noctule_loom`), for
//! the few types that two threads share.
#![forbid(unsafe_code)]

#[cfg(not(noctule_loom))]
pub use std::sync::{Arc, atomic};

#[cfg(noctule_loom)]
pub use loom::sync::{Arc, atomic};
