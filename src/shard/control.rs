//! What the control thread and a shard say to each other.
#![forbid(unsafe_code)]

use super::JournalStats;
use crate::broker::Stats;
use crate::ids::ShardId;
use crate::io::IoCounters;
use serde::Serialize;
use std::sync::mpsc::Sender;

/// From the control thread. It wakes the shard after sending.
#[derive(Debug)]
pub enum ControlMessage {
    /// Stop as SHARDS.md section 7 says; [`Shard::run`](super::Shard::run) then returns.
    Shutdown,
    /// Send a copy of all counters.
    Stats(Sender<ShardStats>),
}

/// A copy of one shard's counters.
#[derive(Clone, Debug)]
pub struct ShardStats {
    /// Whose.
    pub shard: ShardId,
    /// The protocol's.
    pub broker: Stats,
    /// The backend's.
    pub io: IoCounters,
    /// The loop's.
    pub shard_loop: LoopCounters,
    /// The journal's, where it is hosted.
    pub journal: Option<JournalStats>,
}

/// Counters of the event loop itself. They only grow, except where a gauge is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoopCounters {
    /// Turns of the loop.
    pub ticks: u64,
    /// Connections accepted here.
    pub accepted: u64,
    /// Gauge: connections that have a slot here.
    pub connections: u64,
    /// Connections that left for their home shard.
    pub moved_out: u64,
    /// Connections that came home.
    pub moved_in: u64,
    /// Connections closed because no CONNECT came in time.
    pub connect_timeouts: u64,
    /// Accepts that failed, whatever the reason (`io.emfile` counts one of them).
    pub accept_errors: u64,
    /// Connections whose descriptor could not be registered.
    pub register_errors: u64,
    /// Connections closed because what they were sent last was not read in time.
    pub flush_timeouts: u64,
    /// Connections that broke while something was being sent.
    pub send_errors: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Sends submitted.
    pub sends: u64,
    /// Parcels taken from other shards.
    pub parcels_in: u64,
    /// Other shards woken.
    pub wakes: u64,
    /// Bytes that the shard put aside of what it received: frames that a buffer's end had cut, and
    /// what paused connections sent.
    pub copied_from_input: u64,
    /// Bytes written into outboxes, as far as they were sent while their connection was alive;
    /// payloads that are shared are not.
    pub copied_to_outboxes: u64,
    /// Bytes written into lanes to other shards; payloads that are shared are not.
    pub copied_to_lanes: u64,
    /// Bytes of messages that were stored; payloads that are shared are not.
    pub copied_to_store: u64,
    /// Allocations of the shard's thread.
    #[cfg(feature = "count-alloc")]
    pub allocations: u64,
    /// Bytes asked for in those.
    #[cfg(feature = "count-alloc")]
    pub allocated_bytes: u64,
    /// Gauge: messages in queues that only the journal has, once for each queue.
    pub messages_on_disk: u64,
    /// Gauge: bytes that wait in spills because another shard has no room.
    pub spill_bytes: u64,
}
