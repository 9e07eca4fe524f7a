//! Atomics and `Arc` under one name, the standard library's or loom's (the feature `loom`), for
//! the few types that two threads share.
#![forbid(unsafe_code)]

#[cfg(not(feature = "loom"))]
pub use std::sync::{Arc, atomic};

#[cfg(feature = "loom")]
pub use loom::sync::{Arc, atomic};
