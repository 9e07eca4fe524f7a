//! What must last: one logical log for all shards (SHARDS.md section 5).
//!
//! [`record`] is what stands on disk, [`segment`] the files, [`log`] what is written next and what
//! is committed, [`fold`] the durable state that the log amounts to, `reclaim` how segments become
//! free, [`read`] how messages that queues have left to it come back, [`recover`] what a start makes
//! of it all. Nothing here does input or output while the broker runs: operations are asked for and
//! reported, so that a simulation may do them.
#![forbid(unsafe_code)]

pub mod fold;
pub mod log;
mod prepare;
pub mod read;
mod reclaim;
pub mod record;
pub mod recover;
pub mod scan;
pub mod segment;
#[cfg(test)]
mod testing;
pub mod wire;
