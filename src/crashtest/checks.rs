//! What is asked of a broker that has just been started again: its retained messages, subscriptions
//! and sessions, each against what had been acknowledged.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;

use super::peer::{self, Peer};
use super::world::{PATIENCE, State, TOPICS, World, durable, filter, is_cleared};
use crate::client::{Client, Event, Message, Options};
use crate::clock;
use crate::codec::mqtt::{QoS, UserProperties, Version};
use crate::sim::random::Random;

/// How many were asked for.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Checked {
    /// Retained messages.
    pub retained: u64,
    /// Subscriptions, there or not.
    pub subscriptions: u64,
    /// Sessions, there or not.
    pub sessions: u64,
}

/// A session that comes and goes: whether it should be there.
pub(super) type Visitors = [Option<bool>; VISITORS];
/// How many of them.
const VISITORS: usize = 6;

/// One client alone, until it holds; whether it did in time.
fn alone<S>(
    peer: &mut Peer,
    seen: &mut S,
    on_event: impl Fn(&mut S, &mut Client, &Event<'_>),
    holds: impl Fn(&S, &Client) -> bool,
) -> io::Result<bool> {
    let give_up = clock::now() + PATIENCE;
    while !holds(seen, &peer.client) {
        if clock::now() > give_up || !peer.is_open() {
            return Ok(false);
        }
        peer::turn([(0, &mut *peer)].into_iter(), give_up, &mut |_, client, event| {
            on_event(seen, client, &event);
        })?;
    }
    Ok(true)
}

fn online(address: SocketAddr, options: Options) -> io::Result<Option<Peer>> {
    let mut peer = Peer::new(options);
    peer.connect(address)?;
    let is_there = alone(&mut peer, &mut (), |(), _, _| {}, |(), client| client.is_connected())?;
    Ok(is_there.then_some(peer))
}

/// Each topic's retained message is the last that was acknowledged, or one that was sent behind it.
pub(super) fn retained(
    address: SocketAddr,
    state: &mut State,
    checked: &mut Checked,
) -> io::Result<()> {
    let Some(mut peer) = online(address, Options::new(Version::V5, "crash-reader"))? else {
        state.ledger.problem("nobody can connect");
        return Ok(());
    };
    let names: [String; TOPICS] = std::array::from_fn(|i| format!("crashtest/retained/{i}"));
    let filters: Vec<_> = names.iter().map(|name| filter(name, QoS::AtMostOnce)).collect();
    if peer.client.subscribe(clock::now(), &filters, None, UserProperties::default()).is_err() {
        state.ledger.problem("nobody can subscribe");
        return Ok(());
    }
    let kept = state.kept;
    let may_be_none = |i: usize| is_cleared(kept[i].acked) || kept[i].open.is_some_and(is_cleared);
    let mut seen: (bool, [Option<u64>; TOPICS]) = Default::default();
    alone(
        &mut peer,
        &mut seen,
        |(is_subscribed, values), _, event| match event {
            Event::Subscribed { .. } => *is_subscribed = true,
            Event::Message(message) => {
                let which = message.topic.rsplit('/').next().and_then(|i| i.parse::<usize>().ok());
                let value = std::str::from_utf8(message.payload).ok().and_then(|v| v.parse().ok());
                if let Some(place) = which.and_then(|which| values.get_mut(which)) {
                    *place = value;
                }
            }
            _ => {}
        },
        |(is_subscribed, values), _| {
            *is_subscribed && (0..TOPICS).all(|i| values[i].is_some() || may_be_none(i))
        },
    )?;
    peer.leave(&mut |_, _| {});
    for (i, value) in seen.1.into_iter().enumerate() {
        let kept = kept[i];
        checked.retained += 1;
        let is_right = match value {
            None => may_be_none(i),
            Some(value) => value == kept.acked || Some(value) == kept.open,
        };
        if !is_right {
            let what = value.map_or("gone".to_owned(), |value| format!("number {value}"));
            let open = kept.open.map_or(String::new(), |open| format!(" (and {open} sent)"));
            state.ledger.problem(format!(
                "the retained message of topic {i} is {what}; number {} was acknowledged{open}",
                kept.acked
            ));
        }
    }
    Ok(())
}

/// The wanderer's filters match what they should: something is published to all of them before it
/// comes back.
pub(super) fn subscriptions(
    address: SocketAddr,
    world: &mut World,
    checked: &mut Checked,
) -> io::Result<()> {
    let Some(mut peer) = online(address, Options::new(Version::V5, "crash-prober"))? else {
        world.state.ledger.problem("nobody can connect");
        return Ok(());
    };
    let round = world.state.ledger.round;
    let payload = round.to_string();
    let ends = (0..TOPICS).map(|which| which.to_string()).chain(["end".to_owned()]);
    for end in ends {
        let topic = format!("crashtest/wander/{end}");
        let message = Message::new(&topic, payload.as_bytes(), QoS::AtLeastOnce);
        if let Err(error) = peer.client.publish(clock::now(), &message) {
            world.state.ledger.problem(format!("nobody can publish: {error}"));
        }
    }
    let done = |(): &(), client: &Client| client.unacknowledged() == 0;
    if !alone(&mut peer, &mut (), |(), _, _| {}, done)? {
        world.state.ledger.problem("nobody is told that a message is taken");
    }
    peer.leave(&mut |_, _| {});
    if !world.connect_wanderer(address)? {
        world.state.ledger.problem("the wanderer cannot connect");
    }
    let misses = |world: &World, which: usize| {
        let held = world.state.held[which];
        held.is_subscribed && !held.is_open && held.probed != Some(round)
    };
    let all = |world: &World| !(0..TOPICS).any(|which| misses(world, which));
    world.wait(all)?;
    for which in 0..TOPICS {
        checked.subscriptions += u64::from(!world.state.held[which].is_open);
        if misses(world, which) {
            world
                .state
                .ledger
                .problem(format!("filter {which} was subscribed, and does not match"));
        }
    }
    Ok(())
}

/// Sessions that were begun are there, and those that were ended are not.
pub(super) fn sessions(
    address: SocketAddr,
    state: &mut State,
    visitors: &mut Visitors,
    random: &mut Random,
    checked: &mut Checked,
) -> io::Result<()> {
    for (i, should) in visitors.iter_mut().enumerate() {
        if random.chance(400) {
            continue;
        }
        let version = if i % 2 == 0 { Version::V5 } else { Version::V311 };
        let name = format!("visitor-{i}");
        let begins = random.chance(600);
        let options = if begins {
            durable(version, &name)
        } else {
            Options::new(version, format!("crash-{name}"))
        };
        let mut peer = Peer::new(options);
        peer.connect(address)?;
        let mut present = None;
        alone(
            &mut peer,
            &mut present,
            |present, _, event| {
                if let Event::Connected { session_present, .. } = event {
                    *present = Some(*session_present);
                }
            },
            |present, _| present.is_some(),
        )?;
        peer.leave(&mut |_, _| {});
        match (present, *should) {
            (None, _) => state.ledger.problem(format!("{name} cannot connect")),
            (Some(false), Some(true)) if begins => {
                state.ledger.problem(format!("{name}: the session is gone"));
            }
            (Some(true), Some(false)) => {
                state.ledger.problem(format!("{name}: the session had ended, and is there"));
            }
            _ => {}
        }
        checked.sessions += u64::from(should.is_some() && begins);
        *should = Some(begins);
    }
    Ok(())
}
