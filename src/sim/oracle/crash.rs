//! What outlives the broker's process, where anything does.
//!
//! What was acknowledged holds: subscriptions, sessions and their ends, messages at QoS 1 and 2,
//! retained values. What was not may hold or not. At QoS 1 a message may come again: nobody waits
//! for the record of PUBACK. At QoS 2 it may not. A session that was to end with its connection is
//! gone.
#![forbid(unsafe_code)]

use super::Oracle;
use crate::codec::mqtt::QoS;

impl Oracle {
    /// The broker's process has ended, and another goes on with what lasts.
    pub fn on_crash(&mut self) {
        self.life += 1;
        self.is_stopping = false;
        self.drops_before = 0;
        // Sessions that do not last move what they had.
        self.shared_ends += 1;
        for message in self.messages.values_mut() {
            message.may_be_lost |= message.acked.is_none() || message.qos == QoS::AtMostOnce;
            if let Some(will) = &mut message.will
                && !will.judged
            {
                will.unsure = true;
            }
        }
        let Self { clients, messages, .. } = self;
        for client in clients {
            let lasts = |id: &mut u64| messages.get(id).is_some_and(|m| !m.may_be_lost);
            client.session.newest.retain(|_, id| lasts(id));
            client.session.newest_retained.retain(|_, id| lasts(id));
            let has_begun = client.link.is_some_and(|current| current.began.is_some());
            client.connects_since_end = (has_begun && client.most_expiry_secs == 0).then_some(0);
            // A DISCONNECT that was heard need not be on disk.
            client.most_expiry_secs = client.most_expiry_secs.max(client.expiry_secs);
        }
    }

    /// The disk does not do, for a while, what it should.
    pub fn on_disk_trouble(&mut self) {
        self.disk_failed = true;
        self.disk_ever_failed = true;
    }

    /// Whether the disk has had some trouble.
    pub fn disk_ever_failed(&self) -> bool {
        self.disk_ever_failed
    }

    /// Whether what has to be stored may be refused.
    pub fn may_refuse(&self) -> bool {
        self.terms.refuses || self.disk_failed
    }
}
