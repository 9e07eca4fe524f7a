//! What of an old record is still needed, as it has to be written again before its segment is
//! freed (SHARDS.md J10).
#![forbid(unsafe_code)]

use super::known::put_receivers;
use super::sessions::Session;
use super::{At, Fold};
use crate::journal::record::{Assign, Entry, Publish, Receivers};
use crate::journal::wire::Numbers;

impl Fold {
    /// Calls `write` with each entry that must stand further on before the record `entry`, which
    /// lies at `at`, may go. A message whose time is over at `now_ms` goes with it.
    pub fn copies(
        &self,
        at: At,
        entry: &Entry<'_>,
        now_ms: u64,
        write: &mut dyn FnMut(&Entry<'_>),
    ) {
        match entry {
            Entry::Publish(publish) => self.copy_message(at, publish, now_ms, write),
            Entry::Session { client_id, .. } => {
                if let Some(session) = self.session_of(client_id)
                    && session.at == at
                {
                    write(&Entry::Session {
                        client_id,
                        expiry_secs: session.expiry_secs,
                        offline_since: session.offline_since,
                        number: session.number,
                    });
                }
            }
            Entry::Subscribe { client_id, filter, .. } => {
                let slot = self.clients.get(*client_id);
                if let Some(sub) = slot.and_then(|slot| self.sub(*slot, filter))
                    && sub.at == at
                {
                    let mut names = Vec::new();
                    write(&Entry::Subscribe {
                        client_id,
                        filter,
                        options: sub.options,
                        subscription_id: Some(sub.subscription_id).filter(|id| *id != 0),
                        seen: Numbers::write(sub.seen.iter().copied(), &mut names),
                    });
                }
            }
            Entry::WillSet(will) => {
                let session = self.session_of(will.client_id);
                if session.is_some_and(|session| session.will == Some(at)) {
                    write(entry);
                }
            }
            Entry::Assign(Assign { client_id, packet_id, .. })
            | Entry::Received { client_id, packet_id, .. } => {
                self.copy_exchange(at, client_id, *packet_id, write);
            }
            Entry::Unreleased { client_id, packet_id, .. } => {
                self.copy_packet_id(at, client_id, *packet_id, write);
            }
            Entry::Group { group, .. } => {
                let slot = self.group_keys.get(*group);
                if let Some(group) = slot.map(|slot| &self.groups[*slot as usize])
                    && group.at == at
                {
                    write(&Entry::Group { group: &group.key, number: group.number });
                }
            }
            Entry::SessionEnded { .. }
            | Entry::Unsubscribe { .. }
            | Entry::WillDeleted { .. }
            | Entry::Acked { .. }
            | Entry::Done { .. }
            | Entry::Released { .. }
            | Entry::GroupAck { .. }
            | Entry::Ended { .. } => {}
        }
    }

    fn copy_message(
        &self,
        at: At,
        publish: &Publish<'_>,
        now_ms: u64,
        write: &mut dyn FnMut(&Entry<'_>),
    ) {
        if let Some(packet_id) = publish.packet_id {
            self.copy_packet_id(at, publish.publisher, packet_id, write);
        }
        let Some(message) = self.messages.get(publish.message).filter(|m| m.at == at) else {
            return;
        };
        if publish.deadline.is_some_and(|deadline| deadline <= now_ms) {
            return;
        }
        let mut receivers = Vec::new();
        put_receivers(message.receivers.iter(), &self.sessions, &self.groups, &mut receivers);
        write(&Entry::Publish(Publish {
            is_copy: true,
            is_value: message.is_retained,
            packet_id: None,
            receivers: Receivers::parse(&receivers).expect("invariant: written above"),
            ..*publish
        }));
    }

    fn session_of(&self, client_id: &str) -> Option<&Session> {
        self.clients.get(client_id).map(|slot| &self.sessions[*slot as usize])
    }

    fn copy_packet_id(
        &self,
        at: At,
        client_id: &str,
        packet_id: u16,
        write: &mut dyn FnMut(&Entry<'_>),
    ) {
        let Some(session) = self.session_of(client_id) else { return };
        match session.unreleased.get(&packet_id) {
            Some((message, held)) if *held == at => {
                write(&Entry::Unreleased { client_id, packet_id, message: *message });
            }
            _ => {}
        }
    }

    fn copy_exchange(
        &self,
        at: At,
        client_id: &str,
        packet_id: u16,
        write: &mut dyn FnMut(&Entry<'_>),
    ) {
        let Some(session) = self.session_of(client_id) else { return };
        let exchange = session.exchanges.get(&packet_id);
        let Some(exchange) = exchange.filter(|e| e.at == at || e.received_at == Some(at)) else {
            return;
        };
        let mut ids = Vec::new();
        write(&Entry::Assign(Assign {
            client_id,
            packet_id,
            message: exchange.message,
            retain: exchange.retain,
            group: exchange.group.as_deref(),
            subscription_ids: Numbers::write(
                exchange.subscription_ids.iter().map(|id| u64::from(*id)),
                &mut ids,
            ),
            copied: Some((exchange.order, exchange.is_received)),
        }));
    }

    /// A message whose time was over when its segment was freed: nobody is owed it any more.
    pub(in crate::journal) fn expire(&mut self, at: At, publish: &Publish<'_>) {
        let name = publish.message;
        let Some(message) = self.messages.get(name).filter(|m| m.at == at) else { return };
        let holders: Vec<(u32, bool)> =
            message.receivers.iter().map(|owed| (owed.holder, owed.is_group)).collect();
        if message.is_retained {
            self.retain(publish.topic, name, false);
            if let Some(message) = self.messages.get_mut(name) {
                message.is_retained = false;
            }
        }
        for (holder, is_group) in holders {
            let is_ending = match is_group {
                true => self.groups[holder as usize].is_ending,
                false => self.sessions[holder as usize].is_ending,
            };
            if !is_ending {
                self.settle(name, holder, is_group);
            } else if let Some(message) = self.messages.get_mut(name) {
                // Its queue is taken apart, and has no books any more.
                message.receivers.remove(holder, is_group);
            }
        }
        self.release(name);
    }
}
