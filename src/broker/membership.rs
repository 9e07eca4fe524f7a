//! Sessions join and leave the groups of Shared Subscriptions.
//!
//! A session is a member at once, since nothing is replayed to it; the other shards are told how
//! many members there are, and who subscribes waits until they know. A group is there
//! while it has members here or elsewhere.
#![forbid(unsafe_code)]

use crate::codec::mqtt::QoS;

use super::announce::{enter, leave_if_unused};
use super::entry::Interest as Change;
use super::session::SessionKey;
use super::shared_sub::{GroupId, Member, News};
use super::subscription::Subscription;
use super::{Broker, replay};

/// `share name/filter` of `$share/share name/filter`.
pub(super) fn group_key(whole: &str) -> &str {
    whole.strip_prefix("$share/").expect("invariant: a filter with a ShareName")
}

/// A session joins a group. Its SUBACK waits for the change that raised that last.
pub(super) fn join(
    broker: &mut Broker,
    session: SessionKey,
    whole: &str,
    filter: &str,
    subscription: Subscription,
) -> GroupId {
    let key = group_key(whole);
    let group = find_or_insert(broker, key, filter);
    let Some(owner) = broker.sessions.get_mut(session) else { return group };
    let durable = owner.is_durable() && subscription.options.qos > QoS::AtMostOnce;
    owner.subscriptions.join(group);
    let online = owner.conn.is_some();
    let hash = broker.interest.topic_hash(&owner.client_id);
    let member = Member { session, subscription, durable, hash };
    broker.shared_subs.get_mut(group).join(member, online);
    broker.matches.forget();
    tell_members(broker, group);
    group
}

/// The group of this key, from now on.
pub(crate) fn find_or_insert(broker: &mut Broker, key: &str, filter: &str) -> GroupId {
    if let Some(group) = broker.shared_subs.find(key) {
        return group;
    }
    let place = enter(broker, filter);
    let shared_subs = &mut broker.shared_subs;
    let group = broker.topic_tree[place].change_groups(|groups| {
        let group = shared_subs.insert(key, place, groups.len() as u32);
        groups.push(group);
        group
    });
    broker.matches.forget();
    group
}

/// Says the members of a group to the others, if they should hear of them.
pub(super) fn tell_members(broker: &mut Broker, group: GroupId) {
    let (members, raises) = match broker.shared_subs.get_mut(group).take_news(broker.place.shard) {
        News::None => return,
        News::Say(members) => (members, false),
        News::Raise(members) => (members, true),
    };
    let number = broker.interest.next_number();
    let group = broker.shared_subs.get_mut(group);
    if raises {
        group.raised = number;
    }
    let change = Change::Group { key: group.name.key(), members };
    broker.interest.say(&mut broker.out.batches, number, change);
}

/// Forgets a group that nobody has any more, here or elsewhere.
pub(crate) fn leave_if_idle(broker: &mut Broker, group: GroupId) {
    if let Some((filter, at)) = broker.shared_subs.remove_if_idle(group) {
        let moved = broker.topic_tree[filter].change_groups(|groups| {
            groups.swap_remove(at as usize);
            groups.get(at as usize).copied()
        });
        if let Some(moved) = moved {
            broker.shared_subs.get_mut(moved).at = at;
        }
        broker.matches.forget();
        leave_if_unused(broker, filter);
    }
}

/// A session leaves a group. Tells whether it was a member.
pub(super) fn leave(broker: &mut Broker, session: SessionKey, group: GroupId) -> bool {
    if !broker.shared_subs.get_mut(group).leave(session) {
        return false;
    }
    if let Some(owner) = broker.sessions.get_mut(session) {
        owner.subscriptions.leave(group);
    }
    tell_members(broker, group);
    leave_if_idle(broker, group);
    true
}

/// A session's connection comes or goes: its groups prefer members that are there, its replays go
/// on when it is.
pub(crate) fn on_presence(broker: &mut Broker, session: SessionKey, online: bool) {
    let Some(owner) = broker.sessions.get(session) else { return };
    for group in owner.subscriptions.groups() {
        broker.shared_subs.get_mut(group).set_online(session, online);
        tell_members(broker, group);
    }
    if online {
        replay::on_room(broker, session);
    }
}
