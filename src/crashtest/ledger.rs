//! What the broker has promised, and what came of it: every message that was sent, whether it was
//! acknowledged, and how often each receiver got it.
//!
//! Messages are numbered in *streams*: one for each publisher and QoS. To a receiver, a durable
//! subscription or a shared one, a stream comes whole: at QoS 2 each message once and in order; at
//! QoS 1 at least once, in order but for what comes again. Everything that is sent is acknowledged
//! in the end, because its publisher sends it again.
#![forbid(unsafe_code)]

use crate::codec::mqtt::QoS;

/// Problems that are described; the others are counted.
const PROBLEMS_SHOWN: usize = 20;

/// The QoS of a publisher's streams.
pub(super) const STREAM_QOS: [QoS; 2] = [QoS::AtLeastOnce, QoS::ExactlyOnce];

/// One publisher's messages at one QoS, by number.
#[derive(Debug, Default)]
struct Stream {
    /// Whether it was acknowledged.
    acked: Vec<bool>,
}

/// What one receiver got of one stream.
#[derive(Debug, Default)]
struct Got {
    /// By number: how often, and whether it was owed when the broker was killed.
    counts: Vec<u8>,
    /// All before it were got.
    through: usize,
    /// The next that is new, in order.
    next: usize,
}

/// Of a count: it was owed when the broker was killed.
const OWED: u8 = 0x80;

impl Got {
    fn count(&mut self, number: usize) -> &mut u8 {
        if self.counts.len() <= number {
            self.counts.resize(number + 1, 0);
        }
        &mut self.counts[number]
    }

    fn has(&self, number: usize) -> bool {
        self.counts.get(number).is_some_and(|count| count & !OWED > 0)
    }
}

/// Who is to get every message.
#[derive(Debug)]
struct Receiver {
    name: String,
    /// Of several members: without an order.
    is_group: bool,
    streams: Vec<[Got; 2]>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Counts {
    /// Messages that were acknowledged.
    pub acked: u64,
    /// Deliveries of acknowledged messages that the broker owed when it was killed, and made later.
    pub recovered: u64,
    /// Deliveries of acknowledged messages that were never made.
    pub lost: u64,
    /// QoS 2 messages that came again.
    pub duplicated: u64,
    /// QoS 1 messages that came again, as they may.
    pub repeated: u64,
    /// Messages that came before one that was published earlier in their stream.
    pub disordered: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Ledger {
    streams: Vec<[Stream; 2]>,
    receivers: Vec<Receiver>,
    pub(super) counts: Counts,
    /// What went wrong, the first of it.
    pub(super) problems: Vec<String>,
    /// All of it.
    pub(super) problem_count: u64,
    /// For their text.
    pub(super) round: u64,
}

impl Ledger {
    /// For so many publishers and these receivers: name, and whether it is a group.
    pub(super) fn new(publishers: usize, receivers: &[(&str, bool)]) -> Self {
        let streams = || (0..publishers).map(|_| Default::default()).collect();
        let receivers = receivers.iter().map(|(name, is_group)| Receiver {
            name: (*name).to_owned(),
            is_group: *is_group,
            streams: (0..publishers).map(|_| Default::default()).collect(),
        });
        Self {
            streams: streams(),
            receivers: receivers.collect(),
            counts: Counts::default(),
            problems: Vec::new(),
            problem_count: 0,
            round: 0,
        }
    }

    pub(super) fn problem(&mut self, text: impl Into<String>) {
        self.problem_count += 1;
        if self.problems.len() < PROBLEMS_SHOWN {
            self.problems.push(format!("round {}: {}", self.round, text.into()));
        }
    }

    /// The number of the next message of a stream.
    pub(super) fn next(&self, publisher: usize, stream: usize) -> usize {
        self.streams[publisher][stream].acked.len()
    }

    /// The next message is sent.
    pub(super) fn sent(&mut self, publisher: usize, stream: usize) {
        self.streams[publisher][stream].acked.push(false);
    }

    /// The broker answers for this message.
    pub(super) fn acked(&mut self, publisher: usize, stream: usize, number: usize) {
        let was = std::mem::replace(&mut self.streams[publisher][stream].acked[number], true);
        self.counts.acked += u64::from(!was);
    }

    /// A receiver got this message.
    pub(super) fn got(&mut self, receiver: usize, publisher: usize, stream: usize, number: usize) {
        let is_sent = self
            .streams
            .get(publisher)
            .and_then(|both| both.get(stream))
            .is_some_and(|stream| number < stream.acked.len());
        let name = self.receivers[receiver].name.clone();
        if !is_sent {
            return self.problem(format!("{name} got a message that nobody has sent"));
        }
        let Receiver { is_group, streams, .. } = &mut self.receivers[receiver];
        let got = &mut streams[publisher][stream];
        let count = got.count(number);
        let had = *count & !OWED;
        let was_owed = *count & OWED != 0 && had == 0;
        *count = (*count & OWED) | had.saturating_add(1).min(OWED - 1);
        let expected = got.next;
        got.next = expected.max(number + 1);
        while got.has(got.through) {
            got.through += 1;
        }
        let is_early = !*is_group && number > expected;
        let text = |what: &str| {
            let qos = STREAM_QOS[stream] as u8;
            format!("{name} got message {number} of publisher {publisher} at QoS {qos} {what}")
        };
        self.counts.recovered += u64::from(was_owed);
        if had > 0 && STREAM_QOS[stream] == QoS::ExactlyOnce {
            self.counts.duplicated += 1;
            self.problem(text("again"));
        } else if had > 0 {
            self.counts.repeated += 1;
        } else if is_early {
            self.counts.disordered += 1;
            self.problem(text(&format!("where {expected} should have come")));
        }
    }

    /// The broker was killed: what it owes by now is what a recovery has to bring back.
    pub(super) fn mark_owed(&mut self) {
        for receiver in &mut self.receivers {
            for (streams, sent) in receiver.streams.iter_mut().zip(&self.streams) {
                for (got, stream) in streams.iter_mut().zip(sent) {
                    for number in got.through..stream.acked.len() {
                        if stream.acked[number] && !got.has(number) {
                            *got.count(number) |= OWED;
                        }
                    }
                }
            }
        }
    }

    /// Deliveries that are still to be made.
    pub(super) fn missing(&self) -> u64 {
        let mut missing = 0;
        for receiver in &self.receivers {
            for (streams, sent) in receiver.streams.iter().zip(&self.streams) {
                for (got, stream) in streams.iter().zip(sent) {
                    let rest = got.through..stream.acked.len();
                    missing += rest.filter(|number| !got.has(*number)).count() as u64;
                }
            }
        }
        missing
    }

    /// Whatever is missing now will not come.
    pub(super) fn settle(&mut self) {
        let mut lost = Vec::new();
        for receiver in &self.receivers {
            for (publisher, sent) in self.streams.iter().enumerate() {
                for (stream, Stream { acked }) in sent.iter().enumerate() {
                    let got = &receiver.streams[publisher][stream];
                    let missing = (got.through..acked.len()).filter(|n| acked[*n] && !got.has(*n));
                    lost.extend(missing.map(|number| {
                        let qos = STREAM_QOS[stream] as u8;
                        let name = &receiver.name;
                        format!("{name} never got message {number} of publisher {publisher} at QoS {qos}")
                    }));
                }
            }
        }
        self.counts.lost += lost.len() as u64;
        for text in lost {
            self.problem(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(1, &[("a", false)]);
        for stream in 0..2 {
            for number in 0..3 {
                assert_eq!(ledger.next(0, stream), number);
                ledger.sent(0, stream);
                ledger.acked(0, stream, number);
            }
        }
        ledger
    }

    #[test]
    fn what_is_missing_is_lost_and_what_came_late_is_recovered() {
        let mut ledger = ledger();
        ledger.got(0, 0, 0, 0);
        ledger.mark_owed();
        (1..3).for_each(|number| ledger.got(0, 0, 0, number));
        (0..2).for_each(|number| ledger.got(0, 0, 1, number));
        assert_eq!(ledger.missing(), 1);
        assert_eq!(ledger.problem_count, 0);
        ledger.settle();
        let Counts { acked, recovered, lost, .. } = ledger.counts;
        assert_eq!((acked, recovered, lost), (6, 4, 1));
        assert_eq!(ledger.problems, ["round 0: a never got message 2 of publisher 0 at QoS 2"]);
    }

    #[test]
    fn qos_2_comes_once_qos_1_may_come_again_and_each_in_its_order() {
        let mut ledger = ledger();
        for number in [0, 1, 0, 1, 2] {
            ledger.got(0, 0, 0, number);
        }
        assert_eq!((ledger.counts.repeated, ledger.problem_count), (2, 0));
        for number in [0, 0, 2] {
            ledger.got(0, 0, 1, number);
        }
        let Counts { duplicated, disordered, .. } = ledger.counts;
        assert_eq!((duplicated, disordered, ledger.problem_count), (1, 1, 2));
        ledger.got(0, 0, 1, 3);
        assert_eq!(ledger.problem_count, 3, "nobody has sent it");
    }
}
