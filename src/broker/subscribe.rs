//! SUBSCRIBE and UNSUBSCRIBE: to be filled.
#![forbid(unsafe_code)]

use crate::clock::Time;
use crate::codec::mqtt::{Packet, ReasonCode, SubAck, Subscribe, Unsubscribe};
use crate::ids::ConnId;

use super::session::SessionKey;
use super::{Broker, Place, Step};

/// The subscriptions of one session.
#[derive(Debug, Default)]
pub(crate) struct SessionSubscriptions;

/// Subscriptions under way.
#[derive(Debug)]
pub(crate) struct Subscribing;

impl Subscribing {
    pub(crate) fn new(_place: Place, _seed: u64) -> Self {
        Self
    }
}

/// SUBSCRIBE (3.8).
pub(crate) fn on_subscribe(
    broker: &mut Broker,
    _now: Time,
    conn: ConnId,
    subscribe: &Subscribe<'_>,
) -> Step {
    let codes = vec![ReasonCode::UNSPECIFIED_ERROR.0; subscribe.filters.count()];
    broker.write(conn, &Packet::SubAck(SubAck::new(subscribe.packet_id, &codes)));
    Step::Next
}

/// UNSUBSCRIBE (3.10).
pub(crate) fn on_unsubscribe(
    broker: &mut Broker,
    _now: Time,
    conn: ConnId,
    unsubscribe: &Unsubscribe<'_>,
) -> Step {
    let codes = vec![ReasonCode::NO_SUBSCRIPTION_EXISTED.0; unsubscribe.filters.count()];
    broker.write(conn, &Packet::UnsubAck(SubAck::new(unsubscribe.packet_id, &codes)));
    Step::Next
}

/// The session is over: so are its subscriptions.
pub(crate) fn end_session(_broker: &mut Broker, _now: Time, _session: SessionKey) {}

/// The session has a connection now, or no longer.
pub(crate) fn on_presence(_broker: &mut Broker, _session: SessionKey, _online: bool) {}
