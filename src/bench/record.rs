//! What happened: every delivery is checked against what its stream expects, and its latency goes
//! into a histogram.
//!
//! The first 16 bytes of a payload say who sent it, which one it is, and when it was to be sent.
//! Each thread has a [`Receiver`] for the subscribers that it owns, and shares nothing; what they
//! found is put together by [`tally`] when all is over. Nothing is allocated per message as long as
//! nothing is missing.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::ops::Range;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::workload::{Layout, Pattern, Plan, Workload};
use crate::clock::Time;
use crate::limits::{BENCH_GAPS_MAX, BENCH_SEQUENCE_MAX};

/// Bytes of a [`Header`].
pub const HEADER_LEN: usize = 16;
/// Latencies above this are recorded as this.
const LATENCY_MAX: u64 = 3_600_000_000_000;

/// Streams that are looked at while a run goes on: more would make it late.
const STREAMS_LOOKED_AT: usize = 20_000;

/// The accounting in a payload, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who.
    pub publisher: u32,
    /// Which, from 0.
    pub sequence: u32,
    /// When it was to be sent.
    pub intended: Time,
}

impl Header {
    /// Writes it at the start of `payload`, which is long enough.
    #[inline]
    pub fn write(self, payload: &mut [u8]) {
        payload[0..4].copy_from_slice(&self.publisher.to_le_bytes());
        payload[4..8].copy_from_slice(&self.sequence.to_le_bytes());
        payload[8..16].copy_from_slice(&self.intended.as_nanos().to_le_bytes());
    }

    /// Reads it; `None` when `payload` is too short to have one.
    #[inline]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let header = payload.first_chunk::<HEADER_LEN>()?;
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let nanos = u64::from(word(8)) | u64::from(word(12)) << 32;
        Some(Self { publisher: word(0), sequence: word(4), intended: Time::from_nanos(nanos) })
    }
}

/// A histogram of nanoseconds, three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX, 3).expect("invariant: the bounds are valid")
}

/// What one delivery was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    InOrder,
    Late,
    Again,
}

/// What one subscriber has of one publisher.
#[derive(Clone, Debug, Default)]
struct Stream {
    /// The sequence number after the highest that came.
    next: u32,
    /// How many different ones came.
    received: u32,
    /// What was skipped, ascending; none in a run without faults.
    gaps: Vec<Range<u32>>,
}

impl Stream {
    #[inline]
    fn arrive(&mut self, sequence: u32) -> Arrival {
        if sequence == self.next {
            self.next = sequence.saturating_add(1);
            self.received += 1;
            return Arrival::InOrder;
        }
        self.arrive_elsewhere(sequence)
    }

    #[cold]
    fn arrive_elsewhere(&mut self, sequence: u32) -> Arrival {
        if sequence > self.next {
            if self.gaps.len() >= BENCH_GAPS_MAX {
                self.gaps.remove(0);
            }
            self.gaps.push(self.next..sequence);
            self.next = sequence.saturating_add(1);
            self.received += 1;
            return Arrival::InOrder;
        }
        let Some(at) = self.gaps.iter().position(|gap| gap.contains(&sequence)) else {
            return Arrival::Again;
        };
        let gap = self.gaps[at].clone();
        let rest = [gap.start..sequence, sequence + 1..gap.end];
        self.gaps.splice(at..=at, rest.into_iter().filter(|gap| !gap.is_empty()));
        self.received += 1;
        Arrival::Late
    }
}

/// A set of sequence numbers, where they come in any order.
#[derive(Clone, Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    /// Whether it is new.
    #[inline]
    fn insert(&mut self, sequence: u32) -> bool {
        let (word, bit) = (sequence as usize / 64, 1u64 << (sequence % 64));
        if word >= self.0.len() {
            self.0.resize((word + 1).next_power_of_two(), 0);
        }
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    fn len(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Adds all of `other`. How many were in both.
    fn merge(&mut self, other: &Self) -> u64 {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        let mut both = 0;
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            both += u64::from((*mine & theirs).count_ones());
            *mine |= theirs;
        }
        both
    }
}

/// Faults of a run: of all of it, warm-up included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// Messages that a subscriber never got.
    pub lost: u64,
    /// Deliveries of a message that the subscriber already had.
    pub duplicated: u64,
    /// Deliveries behind a later message of the same publisher.
    pub out_of_order: u64,
    /// Deliveries that belong to no stream of this run.
    pub foreign: u64,
    /// Streams with any of the first three.
    pub streams_affected: u64,
}

impl Faults {
    /// Whether there is none.
    pub fn none(&self) -> bool {
        *self == Self::default()
    }
}

/// What the subscribers of one thread have.
#[derive(Debug)]
enum Accounts {
    /// Messages without header, by subscriber.
    Counted(Vec<u64>),
    /// A stream for each subscriber and each of the publishers that it hears.
    Ordered { publishers: usize, streams: Vec<Stream> },
    /// Which messages came to anybody here, by publisher; and, for each subscriber and publisher,
    /// the number after the highest.
    AnyOne { seen: Vec<Bits>, next: Vec<u32> },
    /// Which messages came, for each subscriber and publisher.
    Unordered(Vec<Bits>),
}

/// What came to the subscribers of one thread. They are named by their place in the list that it
/// was made with.
#[derive(Debug)]
pub(super) struct Receiver {
    layout: Layout,
    routed: bool,
    one_to_one: bool,
    /// The subscribers' numbers in the run.
    numbers: Vec<u32>,
    accounts: Accounts,
    /// Streams with faults.
    affected: BTreeSet<usize>,
    faults: Faults,
    /// Different messages that came, over the whole run.
    pub(super) arrived: u64,
    /// Messages to slow subscribers, over the whole run.
    pub(super) slow_arrived: u64,
    /// When deliveries count for the rate.
    pub(super) measured: Range<Time>,
    /// Deliveries while measuring, repetitions excluded.
    pub(super) delivered: u64,
    /// Intended send to delivery.
    pub(super) latency: Histogram<u64>,
}

impl Receiver {
    pub(super) fn new(plan: &Plan, numbers: Vec<u32>) -> Self {
        let layout = plan.layout();
        let (count, publishers) = (numbers.len(), layout.publishers());
        let accounts = match layout.pattern() {
            _ if !plan.has_header() => Accounts::Counted(vec![0; count]),
            Pattern::OneToOne => {
                Accounts::Ordered { publishers: 1, streams: vec![Stream::default(); count] }
            }
            Pattern::All => Accounts::Ordered {
                publishers,
                streams: vec![Stream::default(); count * publishers],
            },
            Pattern::AnyOne => Accounts::AnyOne {
                seen: vec![Bits::default(); publishers],
                next: vec![0; count * publishers],
            },
            Pattern::Unordered => Accounts::Unordered(vec![Bits::default(); count * publishers]),
        };
        Self {
            layout,
            routed: plan.workload == Workload::Route,
            one_to_one: layout.pattern() == Pattern::OneToOne,
            numbers,
            accounts,
            affected: BTreeSet::new(),
            faults: Faults::default(),
            arrived: 0,
            slow_arrived: 0,
            measured: Time::MAX..Time::MAX,
            delivered: 0,
            latency: histogram(),
        }
    }

    /// A message has come to `subscriber`. Tells whose, when it is one that counts. Its latency is
    /// that since `since`, or else since its intended send.
    #[inline]
    pub(super) fn on_message(
        &mut self,
        subscriber: usize,
        payload: &[u8],
        now: Time,
        since: Option<Time>,
    ) -> Option<u32> {
        let number = self.numbers[subscriber];
        if number as usize >= self.layout.heard() {
            self.slow_arrived += 1;
            return None;
        }
        if let Accounts::Counted(counts) = &mut self.accounts {
            counts[subscriber] += 1;
            self.arrived += 1;
            self.delivered += u64::from(self.measured.contains(&now));
            return Some(if self.one_to_one { number } else { 0 });
        }
        let Some(header) = Header::read(payload) else {
            self.faults.foreign += 1;
            return None;
        };
        if !self.account(subscriber, number, header) {
            return None;
        }
        self.arrived += 1;
        self.delivered += u64::from(self.measured.contains(&now));
        let from = since.unwrap_or(header.intended);
        if since.is_some() || self.measured.contains(&from) {
            self.latency.saturating_record(nanos_between(from, now));
        }
        Some(header.publisher)
    }

    /// How many messages were skipped so far, where that can be told quickly.
    pub(super) fn missing(&self) -> Option<u64> {
        match &self.accounts {
            Accounts::Ordered { streams, .. } if streams.len() <= STREAMS_LOOKED_AT => {
                Some(streams.iter().map(|stream| u64::from(stream.next - stream.received)).sum())
            }
            _ => None,
        }
    }

    /// Whether it is a message of this run that the subscriber does not have yet.
    #[inline]
    fn account(&mut self, subscriber: usize, number: u32, header: Header) -> bool {
        let Header { publisher, sequence, .. } = header;
        let all = self.layout.publishers();
        if publisher as usize >= all || sequence >= BENCH_SEQUENCE_MAX {
            self.faults.foreign += 1;
            return false;
        }
        let stream = subscriber * all + publisher as usize;
        let (stream, arrival) = match &mut self.accounts {
            Accounts::Counted(_) => return true,
            Accounts::Ordered { publishers: 1, .. } if self.one_to_one && publisher != number => {
                self.faults.foreign += 1;
                return false;
            }
            Accounts::Ordered { publishers, streams } => {
                let stream = if *publishers == 1 { subscriber } else { stream };
                (stream, streams[stream].arrive(sequence))
            }
            Accounts::AnyOne { seen, next } => {
                let target = || self.layout.target(publisher as usize, sequence).0;
                if self.routed && target() != number as usize {
                    self.faults.foreign += 1;
                    return false;
                }
                let late = sequence < next[stream];
                next[stream] = next[stream].max(sequence + 1);
                (
                    stream,
                    match (seen[publisher as usize].insert(sequence), late) {
                        (false, _) => Arrival::Again,
                        (true, true) => Arrival::Late,
                        (true, false) => Arrival::InOrder,
                    },
                )
            }
            Accounts::Unordered(streams) => (
                stream,
                match streams[stream].insert(sequence) {
                    true => Arrival::InOrder,
                    false => Arrival::Again,
                },
            ),
        };
        match arrival {
            Arrival::InOrder => return true,
            Arrival::Late => self.faults.out_of_order += 1,
            Arrival::Again => self.faults.duplicated += 1,
        }
        self.affected.insert(stream);
        arrival == Arrival::Late
    }
}

/// The faults of a run: `sent` messages by publisher, and what each thread received. What has not
/// come by now is lost.
pub(super) fn tally(sent: &[u32], receivers: &[&Receiver]) -> Faults {
    let mut faults = Faults::default();
    let mut shared: Vec<Bits> = Vec::new();
    for receiver in receivers {
        let own = receiver.faults;
        faults.duplicated += own.duplicated;
        faults.out_of_order += own.out_of_order;
        faults.foreign += own.foreign;
        let heard = receiver.layout.heard();
        let listed = receiver.numbers.iter().enumerate();
        let listed = listed.filter(|(_, number)| (**number as usize) < heard);
        let mut affected = receiver.affected.clone();
        let mut compare = |stream: usize, sent: u64, received: u64| {
            faults.lost += sent.saturating_sub(received);
            // More than were sent: not ours, whatever they say.
            faults.foreign += received.saturating_sub(sent);
            if sent > received {
                affected.insert(stream);
            }
        };
        match &receiver.accounts {
            Accounts::Counted(counts) => {
                for (local, number) in listed {
                    let publisher = if receiver.one_to_one { *number as usize } else { 0 };
                    compare(local, sent[publisher].into(), counts[local]);
                }
            }
            Accounts::Ordered { streams, .. } if receiver.one_to_one => {
                for (local, number) in listed {
                    let sent = sent[*number as usize];
                    compare(local, sent.into(), streams[local].received.into());
                }
            }
            Accounts::Ordered { publishers, streams } => {
                for (local, _) in listed {
                    for (publisher, sent) in sent.iter().enumerate() {
                        let stream = local * publishers + publisher;
                        compare(stream, (*sent).into(), streams[stream].received.into());
                    }
                }
            }
            Accounts::Unordered(streams) => {
                for (local, _) in listed {
                    for (publisher, sent) in sent.iter().enumerate() {
                        let stream = local * receiver.layout.publishers() + publisher;
                        compare(stream, (*sent).into(), streams[stream].len());
                    }
                }
            }
            Accounts::AnyOne { seen, .. } => {
                shared.resize(seen.len(), Bits::default());
                for (all, seen) in shared.iter_mut().zip(seen) {
                    faults.duplicated += all.merge(seen);
                }
            }
        }
        faults.streams_affected += affected.len() as u64;
    }
    for (bits, sent) in shared.iter().zip(sent) {
        let lost = u64::from(*sent).saturating_sub(bits.len());
        faults.lost += lost;
        faults.streams_affected += u64::from(lost > 0);
    }
    faults
}

/// Nanoseconds; 0 when `later` is earlier.
pub(super) fn nanos_between(earlier: Time, later: Time) -> u64 {
    later.as_nanos().saturating_sub(earlier.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::super::workload::tests::plan;
    use super::*;
    use proptest::prelude::*;

    fn payload(publisher: u32, sequence: u32) -> [u8; HEADER_LEN] {
        let mut payload = [0; HEADER_LEN];
        Header { publisher, sequence, intended: Time::from_nanos(5) }.write(&mut payload);
        payload
    }

    #[test]
    fn the_header_is_little_endian() {
        let header = Header {
            publisher: 0x0403_0201,
            sequence: 0x0807_0605,
            intended: Time::from_nanos(0x100f_0e0d_0c0b_0a09),
        };
        let mut payload = [0; HEADER_LEN + 2];
        header.write(&mut payload);
        assert_eq!(payload[..16], (1..=16).collect::<Vec<u8>>()[..]);
        assert_eq!(Header::read(&payload), Some(header));
        assert_eq!(Header::read(&payload[..15]), None);
    }

    /// The receivers of two threads, with every second subscriber each.
    fn receivers(text: &str) -> [Receiver; 2] {
        let plan = plan(text).unwrap();
        [0, 1].map(|thread| {
            let numbers = (thread..plan.subscribers as u32).step_by(2).collect();
            let mut receiver = Receiver::new(&plan, numbers);
            receiver.measured = Time::ZERO..Time::MAX;
            receiver
        })
    }

    /// `(subscriber, publisher, sequence)` come in this order.
    fn arrive(receivers: &mut [Receiver; 2], arrivals: &[(usize, u32, u32)]) {
        for (subscriber, publisher, sequence) in arrivals {
            let payload = payload(*publisher, *sequence);
            let receiver = &mut receivers[subscriber % 2];
            receiver.on_message(subscriber / 2, &payload, Time::from_nanos(1005), None);
        }
    }

    #[test]
    fn lost_duplicated_and_reordered_are_told_apart() {
        let mut receivers = receivers("workload = \"pairs\"\npairs = 4");
        arrive(&mut receivers, &[0, 1, 4, 3, 3, 0, 7].map(|sequence| (3, 3, sequence)));
        let faults = tally(&[0, 0, 0, 8], &receivers.each_ref());
        let expected =
            Faults { lost: 3, duplicated: 2, out_of_order: 1, foreign: 0, streams_affected: 1 };
        assert_eq!(faults, expected);
        assert_eq!((receivers[1].arrived, receivers[1].delivered), (5, 5));
        assert_eq!((receivers[1].latency.len(), receivers[1].latency.max()), (5, 1000));
    }

    #[test]
    fn what_is_not_ours_is_counted_apart() {
        let mut receivers = receivers("workload = \"pairs\"\npairs = 2");
        arrive(&mut receivers, &[(1, 0, 0), (1, 2, 0), (1, 1, u32::MAX)]);
        receivers[1].on_message(0, b"hello", Time::ZERO, None);
        arrive(&mut receivers, &[(0, 0, 0), (0, 0, 1)]);
        let faults = tally(&[1, 1], &receivers.each_ref());
        assert_eq!(
            faults,
            Faults { foreign: 5, lost: 1, streams_affected: 1, ..Faults::default() }
        );
    }

    #[test]
    fn a_fan_out_is_a_stream_for_each() {
        let text = "workload = \"fan-out\"\npublishers = 2\nsubscribers = 3";
        let mut receivers = receivers(text);
        for subscriber in 0..3 {
            for publisher in 0..2 {
                arrive(&mut receivers, &[(subscriber, publisher, 0), (subscriber, publisher, 1)]);
            }
        }
        assert_eq!(tally(&[2, 2], &receivers.each_ref()), Faults::default());
        assert_eq!(tally(&[2, 3], &receivers.each_ref()).lost, 3);
    }

    #[test]
    fn slow_subscribers_are_not_of_the_account() {
        let text = "workload = \"slow-subscriber\"\nsubscribers = 3\nslow_subscribers = 1";
        let mut receivers = receivers(text);
        arrive(&mut receivers, &[(0, 0, 0), (1, 0, 0), (2, 0, 5)]);
        assert_eq!(tally(&[1], &receivers.each_ref()), Faults::default());
        assert_eq!((receivers[0].slow_arrived, receivers[0].arrived), (1, 1));
    }

    #[test]
    fn of_a_shared_message_one_delivery_is_right_wherever_it_is() {
        let mut receivers = receivers("workload = \"shared\"\npublishers = 2\nsubscribers = 4");
        arrive(&mut receivers, &[(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 1, 0)]);
        assert_eq!(tally(&[3, 1], &receivers.each_ref()), Faults::default());
        // Once on the same thread, once on the other, and one behind a later one.
        arrive(&mut receivers, &[(2, 0, 0), (0, 0, 1), (2, 0, 5), (2, 0, 3)]);
        let faults = tally(&[7, 1], &receivers.each_ref());
        assert_eq!((faults.lost, faults.duplicated, faults.out_of_order), (2, 2, 1));
    }

    #[test]
    fn a_routed_message_must_come_to_its_target() {
        let text = "workload = \"route\"\npublishers = 1\nsubscribers = 4\nfilters = 2";
        let mut receivers = receivers(text);
        let target = plan(text).unwrap().layout().target(0, 0).0;
        arrive(&mut receivers, &[(target, 0, 0), ((target + 1) % 4, 0, 0)]);
        assert_eq!(tally(&[1], &receivers.each_ref()), Faults { foreign: 1, ..Faults::default() });
    }

    #[test]
    fn retained_messages_come_in_any_order_and_once() {
        let text = "workload = \"retained\"\nsubscribers = 2\nmessages = 3";
        let mut receivers = receivers(text);
        let since = Some(Time::from_nanos(1000));
        for sequence in [2, 0, 1] {
            let payload = payload(0, sequence);
            receivers[0].on_message(0, &payload, Time::from_nanos(1005), since);
        }
        arrive(&mut receivers, &[(1, 0, 1), (1, 0, 1)]);
        let faults = tally(&[3], &receivers.each_ref());
        assert_eq!((faults.lost, faults.duplicated, faults.out_of_order), (2, 1, 0));
        assert_eq!(receivers[0].latency.max(), 5, "since the subscription");
    }

    #[test]
    fn messages_without_header_are_counted() {
        let mut receivers = receivers("workload = \"pairs\"\npairs = 2\npayload = 4");
        for _ in 0..3 {
            let publisher = receivers[1].on_message(0, b"abcd", Time::from_nanos(9), None);
            assert_eq!(publisher, Some(1));
        }
        assert_eq!(receivers[1].latency.len(), 0, "when they were sent is not known");
        let faults = tally(&[1, 2], &receivers.each_ref());
        assert_eq!((faults.lost, faults.foreign), (1, 1));
    }

    proptest! {
        #[test]
        fn a_stream_equals_a_set(sequence in prop::collection::vec(0u32..40, 0..80)) {
            let mut stream = Stream::default();
            let mut seen = std::collections::BTreeSet::new();
            for number in sequence {
                let late = seen.last().is_some_and(|last| number < *last);
                let arrival = stream.arrive(number);
                let expected = match (seen.insert(number), late) {
                    (false, _) => Arrival::Again,
                    (true, true) => Arrival::Late,
                    (true, false) => Arrival::InOrder,
                };
                prop_assert_eq!(arrival, expected);
            }
            prop_assert_eq!(stream.received as usize, seen.len());
        }
    }
}
