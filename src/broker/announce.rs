//! What this shard wants of the others: said, and taken back, as filters get and lose holders.
//!
//! Each plain subscription, begun or in the barrier, is one holder of its filter's interest. The
//! numbers and what was said are `interest`'s; a filter without wildcards is known there by its hash,
//! the others in the topic tree.
#![forbid(unsafe_code)]

use crate::clock::Time;
use crate::ids::ShardId;
use crate::limits::DEFERRED_PER_TICK;

use super::Broker;
use super::entry::Interest as Change;
use super::interest::{Key, Said};
use super::subscription::FilterState;
use super::topic_tree::FilterId;

fn has_wildcard(filter: &str) -> bool {
    filter.bytes().any(|byte| byte == b'+' || byte == b'#')
}

/// Where a filter is in the topic tree, from now on.
pub(super) fn enter(broker: &mut Broker, filter: &str) -> FilterId {
    broker.topic_tree.insert_with(filter, FilterState::default)
}

/// What interest knows a filter by. Written out again each time: that costs a subscription little,
/// and each filter nothing.
fn key_of(broker: &Broker, filter: FilterId) -> Key {
    let text = broker.topic_tree.filter(filter);
    match has_wildcard(&text) {
        true => Key::Wild(filter),
        false => Key::Exact(broker.interest.topic_hash(&text)),
    }
}

/// Takes a filter out of the topic tree when nobody has it any more.
pub(crate) fn leave_if_unused(broker: &mut Broker, filter: FilterId) {
    if broker.topic_tree[filter].is_unused() {
        broker.topic_tree.remove_id(filter);
        broker.matches.forget();
    }
}

/// One more holder of a filter's interest; the change that it has to wait for.
pub(super) fn hold(broker: &mut Broker, filter: FilterId, durable: bool) -> u64 {
    if broker.place.shards == 1 {
        return 0;
    }
    let key = key_of(broker, filter);
    let (number, said) = match key {
        Key::Exact(hash) => {
            let mut announced = *broker.interest.ours(hash);
            let held = broker.interest.hold(&mut announced, durable);
            *broker.interest.ours(hash) = announced;
            held
        }
        Key::Wild(filter) => {
            let interest = &mut broker.interest;
            broker.topic_tree[filter].change_announced(|it| interest.hold(it, durable))
        }
    };
    if let Some(said) = said {
        say(broker, key, said);
    }
    number
}

fn say(broker: &mut Broker, key: Key, Said { number, state }: Said) {
    let batches = &mut broker.out.batches;
    match key {
        Key::Exact(hash) => broker.interest.say(batches, number, Change::Exact { hash, state }),
        Key::Wild(filter) => {
            let filter = broker.topic_tree.filter(filter);
            broker.interest.say(batches, number, Change::Wild { filter: &filter, state });
        }
    }
}

/// One holder less.
pub(super) fn release(broker: &mut Broker, now: Time, filter: FilterId, durable: bool) {
    if broker.place.shards > 1 {
        let key = key_of(broker, filter);
        let interest = &mut broker.interest;
        match key {
            Key::Exact(hash) => {
                let mut announced = *interest.ours(hash);
                interest.release(now, &mut announced, key, durable);
                *interest.ours(hash) = announced;
            }
            Key::Wild(filter) => {
                let state = &mut broker.topic_tree[filter];
                state.change_announced(|it| interest.release(now, it, key, durable));
            }
        }
    }
    leave_if_unused(broker, filter);
    // Whatever one packet or session gives up at once: no more than so many linger.
    while broker.interest.lingers_too_many() {
        lower_next(broker, now);
    }
}

/// Says what nobody here wants any more, where that has lingered long enough. A bounded number
/// per call.
pub(crate) fn lower_interest(broker: &mut Broker, now: Time) {
    for _ in 0..DEFERRED_PER_TICK {
        if !lower_next(broker, now) {
            return;
        }
    }
}

/// Lowers the next filter that is due. Tells whether there was one.
fn lower_next(broker: &mut Broker, now: Time) -> bool {
    let Some(key) = broker.interest.take_due(now) else { return false };
    match key {
        Key::Exact(hash) => {
            let mut announced = *broker.interest.ours(hash);
            let said = broker.interest.lower(&mut announced);
            *broker.interest.ours(hash) = announced;
            broker.interest.forget_if_idle(hash);
            if let Some(said) = said {
                say(broker, key, said);
            }
        }
        Key::Wild(filter) => {
            let interest = &mut broker.interest;
            let said = broker.topic_tree[filter].change_announced(|it| interest.lower(it));
            if let Some(said) = said {
                say(broker, key, said);
            }
            leave_if_unused(broker, filter);
        }
    }
    true
}

/// Another shard wants a filter with wildcards, or no longer does.
pub(crate) fn on_remote(broker: &mut Broker, from: ShardId, filter: &str, state: u8) {
    let filter = enter(broker, filter);
    broker.topic_tree[filter].change_remote(|remote| remote.set(from, state));
    broker.matches.forget();
    leave_if_unused(broker, filter);
}
