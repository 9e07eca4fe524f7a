//! The session half, driven by packets.
#![forbid(unsafe_code)]
