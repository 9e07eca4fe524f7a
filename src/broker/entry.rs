//! What one shard says to another: to be filled.
#![forbid(unsafe_code)]
