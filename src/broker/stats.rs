//! What happened on one shard: plain counters, each with a name.
#![forbid(unsafe_code)]

use crate::codec::mqtt::{Cause, DecodeError, QoS};

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one shard since its start. Only ever raised, by their one owner.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
            /// Frames that were no packet, by the rule that they broke.
            pub decode_errors: [u64; Cause::COUNT],
        }

        impl Default for Stats {
            fn default() -> Self {
                Self { $($name: 0,)* decode_errors: [0; Cause::COUNT] }
            }
        }

        impl Stats {
            /// Each counter by name, decode errors aside.
            pub fn each(&self, mut visit: impl FnMut(&'static str, u64)) {
                $(visit(stringify!($name), self.$name);)*
            }

            /// Decode errors, each by its cause.
            pub fn each_decode_error(&self, mut visit: impl FnMut(&'static str, u64)) {
                for cause in Cause::ALL {
                    visit(cause.as_str(), self.decode_errors[cause as usize]);
                }
            }

            /// Adds another shard's counters.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
                for (sum, other) in self.decode_errors.iter_mut().zip(other.decode_errors) {
                    *sum += other;
                }
            }
        }
    };
}

stats! {
    /// Connections that came home.
    connections_opened,
    /// Connections whose network is gone.
    connections_closed,
    /// CONNECTs accepted.
    connects_accepted,
    /// CONNECTs refused.
    connects_refused,
    /// Of those, new sessions where there are as many as may be.
    connects_refused_sessions,
    /// Of those, Wills that the memory budget had no room for.
    connects_refused_memory,
    /// Of those, clients that were sent to another server.
    connects_referred,
    /// CONNECTs of 3.x that asked for a longer keep alive than they may.
    refused_keep_alive,
    /// Publications and Wills at a higher QoS than is supported.
    refused_maximum_qos,
    /// Publications and Wills to be retained, where nothing is.
    refused_retain,
    /// Subscriptions with an identifier, wildcard or ShareName that is not supported.
    refused_subscription_kind,
    /// Subscriptions beyond those that one session may have.
    refused_subscriptions_max,
    /// Topics that are too long or have too many levels: of publications, Wills, subscriptions.
    refused_topic,
    /// Publications and Wills whose payload is not the UTF-8 that they say it is.
    refused_payload_format,
    /// Exchanges of enhanced authentication begun, also by clients that are online.
    authentications_begun,
    /// Of those, successful ones.
    authentications_succeeded,
    /// Of those, failed ones, and those that the end of their connection cut off.
    authentications_failed,
    /// Of those, ones that took too long.
    authentications_timed_out,
    /// Connections closed because a newer one took their session.
    takeovers,
    /// Connections closed because a newer one was there already.
    takeovers_late,
    /// Connections closed because too many answers waited for their client to read them.
    disconnects_unread,
    /// Clients that said DISCONNECT.
    disconnects_by_client,
    /// Connections lost without a DISCONNECT.
    disconnects_lost,
    /// Connections that we ended with a reason.
    disconnects_by_broker,
    /// Connections that were silent for too long.
    keep_alive_timeouts,
    /// Packets that broke the protocol's rules.
    protocol_errors,
    /// Sessions begun.
    sessions_created,
    /// Sessions continued by a new connection.
    sessions_resumed,
    /// Sessions ended.
    sessions_ended,
    /// Packets handled.
    packets_in,
    /// Packets written.
    packets_out,
    /// Bytes of packets handled.
    bytes_in,
    /// Bytes of packets written.
    bytes_out,
    /// PUBLISH received at QoS 0.
    messages_in_qos0,
    /// PUBLISH received at QoS 1, each time.
    messages_in_qos1,
    /// PUBLISH received at QoS 2, once each.
    messages_in_qos2,
    /// PUBLISH received at QoS 2 that we had already.
    duplicates_in,
    /// PUBLISH sent at QoS 0.
    messages_out_qos0,
    /// PUBLISH sent at QoS 1, each time.
    messages_out_qos1,
    /// PUBLISH sent at QoS 2, each time.
    messages_out_qos2,
    /// Of those, sent again after a reconnect.
    messages_resent,
    /// Messages that waited in a session's queue.
    messages_queued,
    /// Messages that waited in a session's queue and were left to the journal alone.
    messages_evicted,
    /// Of those, read back to be sent.
    messages_read_back,
    /// Of those, ones whose record could not be read.
    dropped_unreadable,
    /// Of those, ones that the journal had let go of: expired, or no longer subscribed to.
    dropped_not_owed,
    /// Publications that nobody wanted.
    messages_unmatched,
    /// Wills published.
    wills_published,
    /// QoS 0 messages for a session without a connection.
    dropped_offline,
    /// QoS 0 messages for a connection with too much unsent.
    dropped_outbox,
    /// Messages for a session whose queue was full.
    dropped_queue_full,
    /// Messages that the memory budget had no room for.
    dropped_memory,
    /// QoS 0 publications to be retained that the disk could not take.
    dropped_disk,
    /// Packets larger than the client's Maximum Packet Size.
    dropped_too_large,
    /// Messages whose expiry had passed.
    dropped_expired,
    /// Messages that were held for a session when it ended.
    dropped_session_ended,
    /// Publications that the publisher was not allowed.
    dropped_not_authorized,
    /// Shared-subscription messages for which no member was found.
    dropped_no_member,
    /// Publications refused, with a reason, before they were forwarded.
    publishes_refused,
    /// Of those, and of `dropped_disk`, all that the disk could not take.
    refused_disk,
    /// CONNECTs and SUBSCRIBEs for sessions that last, refused because the disk could not take them.
    refused_disk_session,
    /// Sessions that the journal gave back at the start.
    sessions_restored,
    /// Acknowledgements of what was not under way.
    acks_unknown,
}

impl Stats {
    pub(crate) fn count_decode_error(&mut self, error: &DecodeError) {
        self.protocol_errors += 1;
        self.decode_errors[error.cause as usize] += 1;
    }

    #[inline]
    pub(crate) fn count_out(&mut self, qos: QoS, bytes: usize) {
        self.packets_out += 1;
        self.bytes_out += bytes as u64;
        match qos {
            QoS::AtMostOnce => self.messages_out_qos0 += 1,
            QoS::AtLeastOnce => self.messages_out_qos1 += 1,
            QoS::ExactlyOnce => self.messages_out_qos2 += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_sums_are_complete() {
        let mut names = std::collections::HashSet::new();
        let mut ones = Stats { packets_in: 1, ..Stats::default() };
        ones.decode_errors[3] = 1;
        let mut sum = ones.clone();
        sum.add(&ones);
        let mut total = 0;
        let mut visit = |name, value| {
            assert!(names.insert(name), "{name} twice");
            total += value;
        };
        sum.each(&mut visit);
        sum.each_decode_error(&mut visit);
        assert_eq!(total, 4);
    }
}
