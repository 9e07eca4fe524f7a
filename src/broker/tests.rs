//! The session half, driven by packets.
#![forbid(unsafe_code)]

mod aliases;
mod authenticating;
mod bounds;
mod connecting;
mod delivery;
mod durable;
mod evicting;
mod group_debts;
mod policy;
mod publishing;
mod restoring;
mod resuming;
mod sharing;
mod wills;
