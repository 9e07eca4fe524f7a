//! Bytes to packets and packets to bytes. Pure: no socket, no clock, no state between packets.
#![forbid(unsafe_code)]

pub mod mqtt;
