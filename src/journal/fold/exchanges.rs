//! Packet ids in use: what is sent to a session at QoS 1 and 2, and what it has sent at QoS 2.
#![forbid(unsafe_code)]

use super::messages::{At, Owed};
use super::sessions::Exchange;
use super::{Fold, order_of, origin_of, sequence_of};
use crate::journal::record::Assign;

impl Fold {
    pub(super) fn assign(&mut self, at: At, assign: &Assign<'_>) {
        let Some(slot) = self.slot(assign.client_id) else { return };
        let old = self.sessions[slot as usize].exchanges.remove(&assign.packet_id);
        let mut order = assign.copied.map_or(order_of(at), |(order, _)| order);
        if let Some(old) = old {
            self.gone(Some(old.at));
            self.gone(old.received_at);
            if old.message == assign.message {
                // A copy says what the order was; the same that is sent again keeps it.
                if assign.copied.is_none() {
                    order = old.order;
                }
            } else {
                self.end_exchange(slot, old.held());
            }
        }
        let is_received = assign.copied.is_some_and(|(_, is_received)| is_received);
        match assign.message {
            Some(name) if is_received => drop(self.settle(name, slot, false)),
            Some(name) => self.hold_for(slot, name, assign),
            None => {}
        }
        let exchange = Exchange {
            message: assign.message,
            order,
            is_received,
            retain: assign.retain,
            subscription_ids: assign.subscription_ids.iter().map(|id| id as u32).collect(),
            group: assign.group.map(Into::into),
            at,
            received_at: None,
        };
        self.sessions[slot as usize].exchanges.insert(assign.packet_id, exchange);
        self.came(at);
    }

    /// An exchange holds the message from now on, and no queue.
    pub(super) fn hold_for(&mut self, slot: u32, name: u64, assign: &Assign<'_>) {
        let group = assign.group.and_then(|group| self.group_keys.get(group).copied());
        let Some(message) = self.messages.get_mut(name) else {
            if sequence_of(name) > self.last_pub[origin_of(name)] {
                self.early_assigns.entry(name).or_default().push(slot);
            }
            // A Will may come to its member before its PUB comes here.
            if let Some(group) = group {
                self.done_with(name, group, true);
            }
            return;
        };
        match message.receivers.find_mut(slot, false) {
            Some(owed) if owed.is_assigned => {}
            Some(owed) => {
                owed.is_assigned = true;
                self.settle_queue(slot, false);
            }
            None => message.receivers.push(Owed::assigned(slot)),
        }
        if let Some(group) = group {
            self.settle(name, group, true);
        }
    }

    /// The exchange is over, or has had its packet id taken.
    pub(super) fn end_exchange(&mut self, slot: u32, held: Option<u64>) {
        let Some(name) = held else { return };
        if self.messages.get(name).is_some() {
            self.settle(name, slot, false);
        } else {
            // A Will is not forwarded behind its record, as other QoS 2 is: its PUB may be to come.
            self.done_with(name, slot, false);
        }
    }

    pub(super) fn received(
        &mut self,
        at: At,
        client_id: &str,
        packet_id: u16,
        message: Option<u64>,
    ) {
        let Some(slot) = self.slot(client_id) else { return };
        let exchange = self.sessions[slot as usize].exchanges.get_mut(&packet_id);
        // Without one its ASSIGN stood in a segment that is gone.
        let Some(exchange) = exchange else {
            let exchange = Exchange {
                message,
                order: order_of(at),
                is_received: true,
                retain: false,
                subscription_ids: Box::default(),
                group: None,
                at,
                received_at: None,
            };
            self.sessions[slot as usize].exchanges.insert(packet_id, exchange);
            if let Some(name) = message {
                self.settle(name, slot, false);
            }
            return self.came(at);
        };
        let held = exchange.held();
        exchange.is_received = true;
        let old = exchange.received_at.replace(at);
        self.replaced(old, at);
        self.end_exchange(slot, held);
    }

    pub(super) fn done(&mut self, client_id: &str, packet_id: u16, message: Option<u64>) {
        let Some(slot) = self.slot(client_id) else { return };
        let exchanges = &mut self.sessions[slot as usize].exchanges;
        // Lazy: the packet id may have been taken by another message since.
        let is_it = |e: &Exchange| message.is_none() || e.message == message;
        if exchanges.get(&packet_id).is_some_and(is_it)
            && let Some(exchange) = exchanges.remove(&packet_id)
        {
            self.gone(Some(exchange.at));
            self.gone(exchange.received_at);
            self.end_exchange(slot, exchange.held());
        } else if let Some(name) = message {
            let holds = |e: &Exchange| e.message == Some(name) && !e.is_received;
            if !exchanges.values().any(holds) && self.messages.get(name).is_some() {
                self.settle(name, slot, false);
            } else {
                self.done_with(name, slot, false);
            }
        }
    }

    pub(super) fn hold_packet_id(&mut self, at: At, client_id: &str, packet_id: u16, message: u64) {
        let Some(slot) = self.slot(client_id) else { return };
        let unreleased = &mut self.sessions[slot as usize].unreleased;
        let old = unreleased.insert(packet_id, (message, at));
        self.replaced(old.map(|(_, at)| at), at);
    }
}
