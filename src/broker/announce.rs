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
use super::interest::Key;
use super::subscription::FilterState;
use super::topic_tree::FilterId;

fn has_wildcard(filter: &str) -> bool {
    filter.bytes().any(|byte| byte == b'+' || byte == b'#')
}

/// Where a filter is in the topic tree, from now on.
pub(super) fn enter(broker: &mut Broker, filter: &str) -> FilterId {
    let exact = (!has_wildcard(filter)).then(|| broker.interest.topic_hash(filter));
    broker.topic_tree.insert_with(filter, || FilterState { exact, ..FilterState::default() })
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
    let (number, said) = match broker.topic_tree[filter].exact {
        Some(hash) => {
            let mut announced = *broker.interest.ours(hash);
            let held = broker.interest.hold(&mut announced, durable);
            *broker.interest.ours(hash) = announced;
            held
        }
        None => broker.interest.hold(&mut broker.topic_tree[filter].announced, durable),
    };
    if let Some(said) = said {
        say_filter(broker, filter, said.number, said.state);
    }
    number
}

fn say_filter(broker: &mut Broker, filter: FilterId, number: u64, state: u8) {
    let batches = &mut broker.out.batches;
    match broker.topic_tree[filter].exact {
        Some(hash) => broker.interest.say(batches, number, Change::Exact { hash, state }),
        None => {
            let filter = broker.topic_tree.filter(filter);
            broker.interest.say(batches, number, Change::Wild { filter: &filter, state });
        }
    }
}

/// One holder less.
pub(super) fn release(broker: &mut Broker, now: Time, filter: FilterId, durable: bool) {
    if broker.place.shards > 1 {
        match broker.topic_tree[filter].exact {
            Some(hash) => {
                let mut announced = *broker.interest.ours(hash);
                broker.interest.release(now, &mut announced, Key::Exact(hash), durable);
                *broker.interest.ours(hash) = announced;
            }
            None => {
                let announced = &mut broker.topic_tree[filter].announced;
                broker.interest.release(now, announced, Key::Wild(filter), durable);
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
                let change = Change::Exact { hash, state: said.state };
                broker.interest.say(&mut broker.out.batches, said.number, change);
            }
        }
        Key::Wild(filter) => {
            let said = broker.interest.lower(&mut broker.topic_tree[filter].announced);
            if let Some(said) = said {
                say_filter(broker, filter, said.number, said.state);
            }
            leave_if_unused(broker, filter);
        }
    }
    true
}

/// Another shard wants a filter with wildcards, or no longer does.
pub(crate) fn on_remote(broker: &mut Broker, from: ShardId, filter: &str, state: u8) {
    let filter = enter(broker, filter);
    broker.topic_tree[filter].remote.set(from, state);
    broker.matches.forget();
    leave_if_unused(broker, filter);
}
