//! The session half, driven by packets.
