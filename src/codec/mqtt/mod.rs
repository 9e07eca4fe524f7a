//! MQTT 3.1, 3.1.1 and 5.0 packets.
//!
//! One model for all versions: a [`Packet`] is decoded from a frame and borrows from it, and is
//! encoded for a version; what a version cannot express is left out where its specification says
//! so. Entry points: [`frame_len`] finds where a frame ends, [`decode`] reads one,
//! [`Packet::encoded_len`] and [`Packet::encode`] write one, [`Delivery`] is the broker's short
//! way to write a PUBLISH.

pub mod ack;
pub mod connect;
pub mod disconnect;
pub mod properties;
pub mod publish;
pub mod reason;
pub mod subscribe;
pub mod topic;
