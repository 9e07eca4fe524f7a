//! What happened: every delivery is checked against what its stream expects, and its latency goes
//! into a histogram.
//!
//! The first 16 bytes of a payload say who sent it, which one it is, and when it was to be sent.
//! Nothing is allocated per message as long as nothing is missing.
#![forbid(unsafe_code)]

use std::ops::Range;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::workload::Layout;
use crate::clock::Time;
use crate::limits::BENCH_GAPS_MAX;

/// Bytes of a [`Header`].
pub const HEADER_LEN: usize = 16;
/// Latencies above this are recorded as this.
const LATENCY_MAX: u64 = 3_600_000_000_000;

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
    pub fn write(self, payload: &mut [u8]) {
        payload[0..4].copy_from_slice(&self.publisher.to_le_bytes());
        payload[4..8].copy_from_slice(&self.sequence.to_le_bytes());
        payload[8..16].copy_from_slice(&self.intended.as_nanos().to_le_bytes());
    }

    /// Reads it; `None` when `payload` is too short to have one.
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
    fn arrive(&mut self, sequence: u32) -> Arrival {
        if sequence == self.next {
            self.next = sequence.saturating_add(1);
            self.received += 1;
            return Arrival::InOrder;
        }
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

/// What was sent and what came.
#[derive(Debug)]
pub(super) struct Recorder {
    layout: Layout,
    streams: Vec<Stream>,
    affected: Vec<bool>,
    /// Messages sent, by publisher.
    sent: Vec<u32>,
    faults: Faults,
    /// Different messages that came, over the whole run.
    arrived: u64,
    /// Whether deliveries count for the rate.
    pub(super) measuring: bool,
    /// Messages whose intended time is in here count for the latency.
    pub(super) measured: Range<Time>,
    /// Messages sent while measuring.
    pub(super) published: u64,
    /// Deliveries while measuring, repetitions excluded.
    pub(super) delivered: u64,
    /// Intended send to delivery.
    pub(super) latency: Histogram<u64>,
    /// Intended send to actual send.
    pub(super) lateness: Histogram<u64>,
}

impl Recorder {
    pub(super) fn new(layout: Layout, publishers: usize) -> Self {
        Self {
            layout,
            streams: vec![Stream::default(); layout.streams()],
            affected: vec![false; layout.streams()],
            sent: vec![0; publishers],
            faults: Faults::default(),
            arrived: 0,
            measuring: false,
            measured: Time::MAX..Time::MAX,
            published: 0,
            delivered: 0,
            latency: histogram(),
            lateness: histogram(),
        }
    }

    /// The number of the publisher's next message.
    pub(super) fn next_sequence(&self, publisher: usize) -> u32 {
        self.sent[publisher]
    }

    /// The message was sent, `lateness` nanoseconds after it was to be.
    pub(super) fn on_published(&mut self, publisher: usize, intended: Time, now: Time) {
        self.sent[publisher] += 1;
        self.published += u64::from(self.measuring);
        if self.measured.contains(&intended) {
            self.lateness.saturating_record(nanos_between(intended, now));
        }
    }

    /// A message has come to `subscriber`. Tells which, if it is the first time.
    pub(super) fn on_message(
        &mut self,
        subscriber: usize,
        payload: &[u8],
        now: Time,
    ) -> Option<Header> {
        let known = Header::read(payload).and_then(|header| {
            let publisher = header.publisher as usize;
            let stream = self.layout.stream(publisher, subscriber)?;
            (header.sequence < self.sent[publisher]).then_some((header, stream))
        });
        let Some((header, stream)) = known else {
            self.faults.foreign += 1;
            return None;
        };
        match self.streams[stream].arrive(header.sequence) {
            Arrival::InOrder => {}
            Arrival::Late => {
                self.faults.out_of_order += 1;
                self.affected[stream] = true;
            }
            Arrival::Again => {
                self.faults.duplicated += 1;
                self.affected[stream] = true;
                return None;
            }
        }
        self.arrived += 1;
        self.delivered += u64::from(self.measuring);
        if self.measured.contains(&header.intended) {
            self.latency.saturating_record(nanos_between(header.intended, now));
        }
        Some(header)
    }

    /// Whether all that was sent has come to all its receivers.
    pub(super) fn all_arrived(&self) -> bool {
        self.arrived == self.sent() * u64::from(self.layout.receivers())
    }

    /// Messages sent over the whole run.
    pub(super) fn sent(&self) -> u64 {
        self.sent.iter().map(|sent| u64::from(*sent)).sum()
    }

    /// The faults, with what has not come by now as lost.
    pub(super) fn faults(&self) -> Faults {
        let mut faults = self.faults;
        for (index, stream) in self.streams.iter().enumerate() {
            let lost = self.sent[self.layout.publisher_of(index)] - stream.received;
            faults.lost += u64::from(lost);
            faults.streams_affected += u64::from(lost > 0 || self.affected[index]);
        }
        faults
    }
}

fn nanos_between(earlier: Time, later: Time) -> u64 {
    later.as_nanos().saturating_sub(earlier.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::super::workload::Workload;
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

    fn recorder(sent: usize) -> Recorder {
        let mut recorder = Recorder::new(plan(Workload::Pairs, 2, 2).layout(), 2);
        recorder.measuring = true;
        recorder.measured = Time::ZERO..Time::MAX;
        for _ in 0..sent {
            recorder.on_published(1, Time::from_nanos(5), Time::from_nanos(7));
        }
        recorder
    }

    #[test]
    fn lost_duplicated_and_reordered_are_told_apart() {
        let mut recorder = recorder(8);
        let now = Time::from_nanos(1005);
        for sequence in [0, 1, 4, 3, 3, 0, 7] {
            recorder.on_message(1, &payload(1, sequence), now);
        }
        let faults = recorder.faults();
        let expected =
            Faults { lost: 3, duplicated: 2, out_of_order: 1, foreign: 0, streams_affected: 1 };
        assert_eq!(faults, expected);
        assert_eq!((recorder.published, recorder.delivered), (8, 5));
        assert_eq!(recorder.latency.len(), 5);
        assert_eq!(recorder.latency.max(), 1000);
        assert_eq!(recorder.lateness.max(), 2);
        assert!(!recorder.all_arrived());
    }

    #[test]
    fn what_is_not_ours_is_counted_apart() {
        let mut recorder = recorder(1);
        for (publisher, sequence) in [(0, 0), (2, 0), (1, 1)] {
            assert_eq!(recorder.on_message(1, &payload(publisher, sequence), Time::ZERO), None);
        }
        assert_eq!(recorder.on_message(1, b"hello", Time::ZERO), None);
        assert_eq!(
            recorder.faults(),
            Faults { foreign: 4, lost: 1, streams_affected: 1, ..Faults::default() }
        );
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
