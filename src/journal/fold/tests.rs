//! What must hold of a fold at any time.

use super::{At, Fold};

impl Fold {
    /// Messages that only exchanges hold which are over.
    pub(in crate::journal) fn orphans(&self) -> String {
        let mut text = String::new();
        for (name, message) in self.messages.iter() {
            for owed in message.receivers.iter().filter(|owed| owed.is_assigned) {
                let session = &self.sessions[owed.holder as usize];
                if !session.exchanges.values().any(|e| e.message == Some(name) && !e.is_received) {
                    text += &format!(
                        "{name} {message:?} of {} {:?}\n",
                        session.client_id, session.exchanges
                    );
                }
            }
        }
        text
    }

    /// Where everything lies that is live.
    pub(in crate::journal) fn live_records(&self) -> Vec<At> {
        let mut all: Vec<At> = self.messages.iter().map(|(_, message)| message.at).collect();
        for (slot, session) in &self.sessions {
            if !self.clients.values().any(|live| *live as usize == slot) {
                continue;
            }
            all.push(session.at);
            all.extend(session.will);
            all.extend(session.unreleased.values().map(|(_, at)| *at));
            all.extend(session.exchanges.values().map(|exchange| exchange.at));
            all.extend(session.exchanges.values().filter_map(|exchange| exchange.received_at));
            for id in &session.subs {
                all.extend(
                    self.plain[*id].iter().filter(|sub| sub.session as usize == slot).map(|s| s.at),
                );
            }
        }
        for slot in self.group_keys.values() {
            let group = &self.groups[*slot as usize];
            all.push(group.at);
            all.extend(group.members.iter().map(|member| member.at));
        }
        all.retain(|at| *at != At::default());
        all
    }
}
