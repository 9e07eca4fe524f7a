//! What is measured: a [`Plan`] from the flags, and the [`Layout`] of publishers, topics and
//! subscribers that it stands for.
//!
//! Publishers are numbered from 0, subscribers too. A *stream* is what one subscriber hears of one
//! publisher; order is promised within a stream and nowhere else, so accounting is per stream.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use super::Error;
use super::record::HEADER_LEN;
use crate::codec::mqtt::{QoS, Version};
use crate::io;
use crate::limits::{
    BENCH_CLIENTS_MAX, BENCH_DURATION_MAX, BENCH_PAYLOAD_MAX, BENCH_STREAMS_MAX, BENCH_WINDOW_MAX,
};

/// The question that a run asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Each publisher has its own topic and one subscriber: what forwarding costs.
    Pairs,
    /// Pairs with one message under way each: what a message costs that nothing else shares.
    PingPong,
    /// One publisher, many subscribers of its topic: what a copy costs.
    FanOut,
    /// Many publishers, one subscriber with a wildcard: what gathering costs.
    FanIn,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pairs => "pairs",
            Self::PingPong => "ping-pong",
            Self::FanOut => "fan-out",
            Self::FanIn => "fan-in",
        })
    }
}

/// When a publisher sends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "mode")]
pub enum Load {
    /// Closed loop: at most so many messages of each publisher are under way, counted until all its
    /// subscribers have them. Shows the highest rate; its latency is that of a full queue.
    Closed {
        /// Messages.
        window: u32,
    },
    /// Open loop: on a schedule that does not wait for the broker. Latency counts from the time at
    /// which a message was to be sent, so a stall of the broker shows in all that it delays.
    Open {
        /// Messages a second, of all publishers together.
        rate: f64,
    },
}

/// One run, complete.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The question.
    pub workload: Workload,
    /// How many publish.
    pub publishers: usize,
    /// How many subscribe.
    pub subscribers: usize,
    /// Of messages and subscriptions.
    pub qos: QoS,
    /// Bytes of each message.
    pub payload: usize,
    /// When they publish.
    pub load: Load,
    /// Unacknowledged messages of each publisher at QoS 1 and 2.
    pub in_flight: u16,
    /// What is not measured, first.
    pub warm_up: Duration,
    /// What is measured.
    pub duration: Duration,
    /// The protocol.
    pub version: Version,
    /// The broker.
    pub broker: SocketAddr,
    /// The broker's process, when it can be watched.
    pub broker_pid: Option<u32>,
    /// Which kernel interface the generator uses.
    pub io: io::Choice,
}

impl Plan {
    /// Checks the bounds.
    ///
    /// # Errors
    /// Says which one is broken.
    pub fn check(&self) -> Result<(), Error> {
        let within = |what: &str, value: u128, least: u128, most: u128| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(Error::Plan(format!("{what} must be from {least} to {most}, and is {value}")))
        };
        let clients = (self.publishers + self.subscribers) as u128;
        within("publishers", self.publishers as u128, 1, BENCH_CLIENTS_MAX as u128)?;
        within("subscribers", self.subscribers as u128, 1, BENCH_CLIENTS_MAX as u128)?;
        within("publishers and subscribers together", clients, 2, BENCH_CLIENTS_MAX as u128)?;
        within("streams", self.layout().streams() as u128, 1, BENCH_STREAMS_MAX as u128)?;
        within("the payload", self.payload as u128, HEADER_LEN as u128, BENCH_PAYLOAD_MAX as u128)?;
        within("in flight", u128::from(self.in_flight), 1, u128::from(u16::MAX))?;
        within("seconds", self.duration.as_millis(), 1, BENCH_DURATION_MAX.as_millis())?;
        within("seconds of warm-up", self.warm_up.as_millis(), 0, BENCH_DURATION_MAX.as_millis())?;
        match self.load {
            Load::Closed { window } => {
                within("the window", u128::from(window), 1, u128::from(BENCH_WINDOW_MAX))
            }
            Load::Open { rate } if rate.is_finite() && (0.001..=1e8).contains(&rate) => Ok(()),
            Load::Open { rate } => Err(Error::Plan(format!("{rate} is no rate"))),
        }
    }

    /// Who hears whom.
    pub fn layout(&self) -> Layout {
        Layout {
            one_to_one: matches!(self.workload, Workload::Pairs | Workload::PingPong),
            publishers: self.publishers,
            subscribers: self.subscribers,
        }
    }
}

/// Who hears whom: subscriber *n* hears publisher *n*, or everybody hears everybody.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    one_to_one: bool,
    publishers: usize,
    subscribers: usize,
}

impl Layout {
    /// How many streams there are.
    pub fn streams(&self) -> usize {
        match self.one_to_one {
            true => self.publishers,
            false => self.publishers.saturating_mul(self.subscribers),
        }
    }

    /// The number of the stream from `publisher` to `subscriber`; `None` when there is none.
    pub fn stream(&self, publisher: usize, subscriber: usize) -> Option<usize> {
        if publisher >= self.publishers {
            return None;
        }
        match self.one_to_one {
            true => (publisher == subscriber).then_some(publisher),
            false => Some(subscriber * self.publishers + publisher),
        }
    }

    /// Whose stream it is.
    pub fn publisher_of(&self, stream: usize) -> usize {
        stream % self.publishers
    }

    /// How many subscribers get each message of one publisher.
    pub fn receivers(&self) -> u32 {
        match self.one_to_one {
            true => 1,
            false => u32::try_from(self.subscribers).unwrap_or(u32::MAX),
        }
    }

    /// Where `publisher` publishes. `run` keeps runs apart.
    pub fn topic(&self, run: u32, publisher: usize) -> String {
        format!("bench/{run}/{publisher}")
    }

    /// What `subscriber` subscribes to.
    pub fn filter(&self, run: u32, subscriber: usize) -> String {
        match (self.one_to_one, self.publishers) {
            (true, _) => self.topic(run, subscriber),
            (false, 1) => self.topic(run, 0),
            (false, _) => format!("bench/{run}/+"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::codec::mqtt::topic::matches;

    pub(in crate::bench) fn plan(
        workload: Workload,
        publishers: usize,
        subscribers: usize,
    ) -> Plan {
        Plan {
            workload,
            publishers,
            subscribers,
            qos: QoS::AtMostOnce,
            payload: 64,
            load: Load::Closed { window: 4 },
            in_flight: 20,
            warm_up: Duration::ZERO,
            duration: Duration::from_secs(1),
            version: Version::V311,
            broker: SocketAddr::from(([127, 0, 0, 1], 1883)),
            broker_pid: None,
            io: io::Choice::Auto,
        }
    }

    #[test]
    fn a_stream_exists_exactly_where_the_filter_matches() {
        let plans = [(Workload::Pairs, 3, 3), (Workload::FanOut, 1, 3), (Workload::FanIn, 3, 1)];
        for (workload, publishers, subscribers) in plans {
            let layout = plan(workload, publishers, subscribers).layout();
            let mut streams = Vec::new();
            for publisher in 0..publishers {
                let mut receivers = 0;
                for subscriber in 0..subscribers {
                    let heard = matches(&layout.filter(7, subscriber), &layout.topic(7, publisher));
                    let stream = layout.stream(publisher, subscriber);
                    assert_eq!(stream.is_some(), heard, "{workload} {publisher} {subscriber}");
                    receivers += u32::from(heard);
                    streams.extend(stream);
                    assert!(stream.is_none_or(|s| layout.publisher_of(s) == publisher));
                }
                assert_eq!(receivers, layout.receivers());
            }
            streams.sort_unstable();
            assert_eq!(streams, (0..layout.streams()).collect::<Vec<_>>(), "{workload}");
            assert_eq!(layout.stream(publishers, 0), None, "an unknown publisher");
        }
    }

    #[test]
    fn plans_out_of_bounds_are_refused() {
        let good = plan(Workload::Pairs, 1, 1);
        assert!(good.check().is_ok());
        let bad = [
            Plan { payload: HEADER_LEN - 1, ..good.clone() },
            Plan { publishers: 0, ..good.clone() },
            Plan { load: Load::Closed { window: 0 }, ..good.clone() },
            Plan { load: Load::Open { rate: f64::NAN }, ..good.clone() },
            Plan { duration: Duration::ZERO, ..good },
            plan(Workload::FanIn, BENCH_CLIENTS_MAX, 1),
        ];
        for plan in bad {
            assert!(plan.check().is_err(), "{plan:?}");
        }
    }
}
