//! The other end of a lane: what another shard said, done in its order.
//!
//! A message names what this shard is to do with it; the rest is what the shards tell each other of
//! their interest, of retained messages, and of their ends.
#![forbid(unsafe_code)]

use crate::clock::Time;
use crate::ids::ShardId;

use super::entry::{Duty, Entry, Interest as Change, Message, Reader, ToGroup};
use super::publication::Publication;
use super::retained::{self, Store};
use super::{
    Batch, Broker, announce, ending, matches, membership, memory, replay, route, subscribe,
};

/// All that another shard said in one parcel, in its order; what it has to hear of that.
pub(crate) fn on_batch(broker: &mut Broker, now: Time, from: ShardId, batch: &Batch) {
    let heard = broker.interest.heard(from);
    let mut entries = Reader::new(batch);
    while let Some(entry) = entries.next() {
        match entry {
            Entry::Publish { message, duty, groups } => {
                let publication = message.to_publication();
                if let Some(id) = publication.id {
                    broker.changes.on_seen(from, id, publication.qos);
                }
                on_message(broker, now, from, &publication, duty);
                if groups.len() > 0 && !duty.plain {
                    recall(broker, &publication);
                }
                for group in groups {
                    on_group_message(broker, now, from, &publication, group);
                }
            }
            Entry::Back { message, group } => {
                let chosen = broker.shared_subs.chosen(group);
                route::to_group(broker, now, &message.to_publication(), &chosen, true);
            }
            Entry::Interest { number, change } => on_interest(broker, from, number, change),
            Entry::Applied { through, seen, counters } => {
                broker.changes.on_seen_through(from, seen);
                broker.replays.learn_row(from, counters.iter());
                if broker.interest.on_applied(from, through) {
                    subscribe::on_applied(broker, now);
                }
            }
            Entry::Query(query) => retained::on_query(broker, now, from, &query),
            Entry::Reply(reply) => replay::on_reply(broker, now, from, &reply, &mut entries),
            Entry::End { step } => broker.ending.hear(from, step),
            Entry::Memory { is_short } => broker.memory.hear(from, is_short),
        }
    }
    if !broker.retained.is_idle() {
        retained::answer_waiting(broker, now);
    }
    let through = broker.interest.heard(from);
    if through > heard {
        let Broker { out, retained, changes, .. } = broker;
        let batch = &mut out.batches[from.index()];
        batch.push_applied(through, changes.seen_here(), retained.counters());
    }
    // At once: meanwhile the others go on sending.
    memory::say(broker);
    ending::go_on(broker);
}

/// Names the publication's topic as it is remembered here, for those who have a number for it.
fn recall(broker: &mut Broker, publication: &Publication<'_>) {
    let found = matches::find(broker, publication.topic);
    publication.memo.set_topic_id(found.id);
    matches::put_back(broker, found);
}

/// A message from its publisher's shard: what is to be done with it stands in the entry.
fn on_message(
    broker: &mut Broker,
    now: Time,
    from: ShardId,
    publication: &Publication<'_>,
    duty: Duty,
) {
    let mut matched = false;
    if duty.plain {
        let found = matches::find(broker, publication.topic);
        publication.memo.set_topic_id(found.id);
        matched = !found.matches.filters.is_empty();
        if matched {
            route::to_plain(broker, now, publication, &found.matches);
        }
        matches::put_back(broker, found);
    }
    let Some(stamp) = duty.stamp else { return };
    let hash = broker.interest.topic_hash(publication.topic);
    broker.replays.on_live(from, stamp, hash, matched);
    if duty.store {
        let message = Message::of(publication);
        let store = Store { message, origin: from, number: stamp.number };
        retained::store(broker, now, &store);
    }
}

/// A message for a group for which we were chosen. Without a member it goes back to the sender;
/// with none online, while others have some, once.
fn on_group_message(
    broker: &mut Broker,
    now: Time,
    from: ShardId,
    publication: &Publication<'_>,
    to: ToGroup<'_>,
) {
    if let Some(id) = broker.shared_subs.find(to.key) {
        let group = broker.shared_subs.get(id);
        let takes = group.online() > 0 || to.returned || !group.is_online_elsewhere();
        if takes && group.len() > 0 {
            let chosen = broker.shared_subs.chosen(to);
            return route::to_member(broker, now, publication, &chosen);
        }
    }
    broker.out.batches[from.index()].push_back(&Message::of(publication), to);
}

/// What another shard wants has changed.
fn on_interest(broker: &mut Broker, from: ShardId, number: u64, change: Change<'_>) {
    broker.interest.on_change(from, number);
    match change {
        Change::Exact { hash, state } => {
            broker.interest.on_exact(from, hash, state);
            broker.matches.forget();
        }
        Change::Wild { filter, state } => announce::on_remote(broker, from, filter, state),
        Change::Group { key, members } => {
            let (_, filter) = key.split_once('/').expect("invariant: share name/filter");
            let group = membership::find_or_insert(broker, key, filter);
            broker.shared_subs.set_remote(group, from, members);
            membership::leave_if_idle(broker, group);
        }
    }
}
