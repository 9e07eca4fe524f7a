//! When a Will may be published, and when it must have been.
#![forbid(unsafe_code)]

use super::{Message, Oracle};
use crate::clock::Time;
use crate::sim::network::{Network, now};
use std::time::Duration;

/// What decides about a Will.
#[derive(Clone, Debug)]
pub struct WillTerms {
    /// Its connection.
    pub link: usize,
    /// Seconds after that.
    pub delay_secs: u32,
    /// How long the session outlives that.
    pub expiry_secs: u32,
    /// CONNACK has come.
    pub armed: bool,
    /// When the connection can have ended first.
    pub ended: Option<Time>,
    /// A normal DISCONNECT was sent, and nothing else can have ended the connection.
    pub disconnected: bool,
    /// DISCONNECT, or another connection, may have deleted it.
    pub unsure: bool,
    /// When it can be published first, as far as is known.
    pub due: Option<Time>,
    /// A further connection came in time: it must not be published.
    pub cancelled: Option<Time>,
    /// What is judged at the end was judged.
    pub judged: bool,
    /// Just now.
    pub is_recent: bool,
}

impl WillTerms {
    /// Of this connection, of which nothing has happened yet.
    pub const fn new(link: usize, delay_secs: u32, expiry_secs: u32) -> Self {
        Self {
            link,
            delay_secs,
            expiry_secs,
            armed: false,
            ended: None,
            disconnected: false,
            unsure: false,
            due: None,
            cancelled: None,
            judged: false,
            is_recent: false,
        }
    }
}

/// What is late only because a shard did not run.
const SLACK: Duration = Duration::from_secs(8);

/// Whether a Will may come now.
pub(super) fn judge_will(
    message: &Message,
    network: &Network,
) -> Result<(), (&'static str, String)> {
    let Some(will) = &message.will else { return Ok(()) };
    // The broker may have ended it before its client has seen that.
    let ended = network.links[will.link].server_end.map(|at| at.plus_secs(will.wait_secs()));
    match will.due.into_iter().chain(ended).min() {
        None => return Err(("will-early", "its connection has not ended".to_owned())),
        Some(due) if now() < due => {
            return Err(("will-early", format!("due in {:?}", due.since(now()))));
        }
        Some(_) => {}
    }
    if let Some(cancelled) = will.cancelled {
        let text = format!("its client was back {:?} ago", now().since(cancelled));
        return Err(("will-wrong", text));
    }
    Ok(())
}

impl WillTerms {
    fn wait_secs(&self) -> u32 {
        self.delay_secs.min(self.expiry_secs)
    }
}

impl Oracle {
    /// Whether this Will may come now.
    #[cfg(test)]
    pub fn judge_will(&self, id: u64, network: &Network) -> Result<(), (&'static str, String)> {
        judge_will(&self.messages[&id], network)
    }

    fn wills_of(&mut self, link: usize) -> impl Iterator<Item = &mut WillTerms> {
        let wills = self.messages.values_mut().filter_map(|message| message.will.as_mut());
        wills.filter(move |will| will.link == link)
    }

    /// CONNACK has come: it is the broker's.
    pub fn on_will_armed(&mut self, link: usize) {
        self.wills_of(link).for_each(|will| will.armed = true);
    }

    /// DISCONNECT is sent.
    pub fn on_will_disconnect(&mut self, link: usize, normal: bool) {
        self.wills_of(link).for_each(|will| will.disconnected = normal);
    }

    /// DISCONNECT lets the session end earlier, or later, if it arrives.
    pub fn on_will_shortened(&mut self, link: usize, expiry_secs: u32) {
        for will in self.wills_of(link) {
            will.expiry_secs = will.expiry_secs.min(expiry_secs);
            will.unsure = true;
            // Whatever else may have ended the connection, this may have, and the session with it.
            if let Some(ended) = will.ended {
                let due = ended.plus_secs(will.wait_secs());
                will.due = Some(will.due.map_or(due, |before| before.min(due)));
            }
        }
    }

    /// Who knows what becomes of it: the connection was not alone, or not well-behaved.
    pub fn on_will_unsure(&mut self, link: usize) {
        self.wills_of(link).for_each(|will| will.unsure = true);
    }

    /// The connection may have ended, from now on.
    pub fn on_will_end(&mut self, link: usize) {
        for will in self.wills_of(link) {
            if will.ended.is_none() {
                will.ended = Some(now());
                will.due = Some(now().plus_secs(will.wait_secs()));
            }
        }
    }

    /// A new CONNECT of the client: with Clean Start it makes a Will due that waits.
    pub fn on_will_connect(&mut self, client: usize, clean: bool) {
        for (_, message) in self.messages.iter_mut().filter(|(_, m)| m.client == client) {
            let Some(will) = &mut message.will else { continue };
            if will.ended.is_none() {
                // It is taken over, unless it goes the other way round.
                will.ended = Some(now());
                will.due = Some(now().plus_secs(will.wait_secs()));
            }
            if will.due.is_some_and(|due| due > now()) {
                will.unsure = true;
                if clean {
                    will.due = Some(now());
                }
            }
        }
    }

    /// Its CONNACK: a Will that is still not due is deleted.
    pub fn on_will_connack(&mut self, client: usize, link: usize, clean: bool) {
        for (_, message) in self.messages.iter_mut().filter(|(_, m)| m.client == client) {
            let Some(will) = &mut message.will else { continue };
            let is_early = will.due.is_some_and(|due| due > now() + SLACK);
            if !clean && will.armed && will.link != link && is_early {
                will.cancelled.get_or_insert(now());
            }
        }
    }

    /// All is quiet: Wills that are due count as published.
    pub(super) fn settle_wills(&mut self, network: &Network) {
        for id in std::mem::take(&mut self.suspects) {
            let will = self.messages[&id].will.as_ref();
            // The broker had read the DISCONNECT before it began to close.
            // Where little may wait for a client, the broker may have ended it before.
            // So it may one of 3.x whose publication it had to refuse.
            let is_sure = !self.terms.small_outbox && !self.disk_failed;
            if is_sure && will.is_some_and(|will| !will.unsure && network.links[will.link].drained)
            {
                let text = format!("message {id}: its client has said DISCONNECT");
                self.fail("will-wrong", text);
            }
        }
        let (life, now) = (self.life, now());
        for message in self.messages.values_mut() {
            let Some(will) = &mut message.will else { continue };
            will.is_recent = !will.judged;
            let link = &network.links[will.link];
            let Some(end) = link.server_end.filter(|_| !will.judged) else { continue };
            let due = end.plus_secs(will.wait_secs());
            // One without delay is published whatever ended the connection, but for a DISCONNECT.
            let is_sure =
                will.armed && !will.disconnected && (will.wait_secs() == 0 || !will.unsure);
            if is_sure && message.life == life && will.cancelled.is_none() && due + SLACK <= now {
                message.acked = Some(now);
            }
            // Until it was due nobody was promised it.
            message.sent = will.due.unwrap_or(end);
            will.judged = due + SLACK <= now;
        }
    }

    /// A shutdown or crash: Wills are gone.
    pub fn has_unjudged_wills(&self) -> bool {
        self.messages.values().filter_map(|m| m.will.as_ref()).any(|will| {
            !will.judged && will.armed && will.ended.is_some() && !will.unsure && !will.disconnected
        })
    }
}
