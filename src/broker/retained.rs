//! Retained messages: to be filled.
#![forbid(unsafe_code)]

use crate::clock::Time;

use super::{Broker, Place};

/// The retained messages of the topics that this shard owns.
#[derive(Debug)]
pub(crate) struct Retained;

impl Retained {
    pub(crate) fn new(_place: Place, _seed: u64) -> Self {
        Self
    }
}

/// A deadline that was armed as `Due::Retained` has come.
pub(crate) fn on_timer(_broker: &mut Broker, _now: Time, _timer: u64) {}
