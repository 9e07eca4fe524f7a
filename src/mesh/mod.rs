//! The other shards: lanes, sleep and wake.
#![forbid(unsafe_code)]
