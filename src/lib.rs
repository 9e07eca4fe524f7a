//! Noctule, an MQTT 3.1, 3.1.1 and 5.0 broker for Linux servers.
//!
//! The folders are the layers; `tests/tidy.rs` holds which may use which, ARCHITECTURE.md says
//! why. To learn the program, read [`shard::Shard::tick`] first: it is the event loop, and every
//! other part hangs from it.

#[cfg(feature = "count-alloc")]
pub mod alloc;
pub mod bench;
pub mod broker;
pub mod buf;
pub mod cli;
pub mod client;
pub mod clock;
pub mod codec;
pub mod crashtest;
pub mod ids;
pub mod index;
pub mod io;
pub mod journal;
pub mod limits;
pub mod mesh;
pub mod server;
pub mod shard;
pub mod sim;
pub mod sync;
pub mod transport;
