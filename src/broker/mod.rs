//! The MQTT state machine of one shard.
#![forbid(unsafe_code)]

pub mod topic_tree;
