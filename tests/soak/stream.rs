//! One publisher, one subscriber, one topic, and the promise between them.
//!
//! A message that is not empty begins with its number, how many empty ones came before it and its
//! length, 16 bytes in all, and goes on with one byte repeated. Empty ones are sent only where
//! nothing may be repeated: they cannot be told apart.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use noctule::client::{Client, Event, Message, Options, RequestError};
use noctule::clock;
use noctule::codec::mqtt::{QoS, Version};

use crate::net::{Net, await_end};
use crate::{PATIENCE, Random, Round};

/// Messages under way.
const WINDOW: u64 = 200;
/// Bytes under way, before the next message: well below what a broker lets wait for a connection
/// (4 MiB), together with one message of the largest size.
const WINDOW_BYTES: u64 = 1024 * 1024;
/// The largest message.
const PAYLOAD_MAX: u64 = 1024 * 1024;
const HEADER_LEN: usize = 16;
/// Connections are cut after this long, on average.
const CUT_AFTER_MS: u64 = 150;
/// After the last message: time for one that must not come.
const SILENCE: Duration = Duration::from_millis(50);

/// What is promised, and what is done to it.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub qos: QoS,
    /// The publisher's connection is cut and resumed, again and again.
    pub publisher_cut: bool,
    /// The subscriber's is.
    pub subscriber_cut: bool,
}

impl Kind {
    /// Whether the protocol lets messages come twice.
    fn may_repeat(&self) -> bool {
        self.qos == QoS::AtLeastOnce && (self.publisher_cut || self.subscriber_cut)
    }
}

/// The part that both sides know.
pub struct Stream {
    kind: Kind,
    version: Version,
    name: String,
    number: u64,
    subscribed: AtomicBool,
    /// Different messages that came, and their bytes.
    received: AtomicU64,
    received_bytes: AtomicU64,
    /// How many were sent, once that is known; before, the highest number.
    sent: AtomicU64,
}

impl Stream {
    pub fn new(seed: u64, number: u64, kind: Kind, version: Version) -> Self {
        Self {
            kind,
            version,
            name: format!("soak/{seed}/{number}"),
            number,
            subscribed: AtomicBool::new(false),
            received: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            sent: AtomicU64::new(u64::MAX),
        }
    }

    fn options(&self, role: &str, keep_session: bool) -> Options {
        Net::options(self.version, &format!("{}/{role}", self.name), keep_session)
    }

    /// Publishes until the time is over, then waits for the last acknowledgement.
    pub fn run_publisher(&self, round: &Round) {
        let deadline = Instant::now() + PATIENCE;
        while !self.subscribed.load(Ordering::Acquire) {
            assert!(Instant::now() < deadline, "{}: not subscribed", self.name);
            if round.failed.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut net = Net::new(round.addr, self.options("publisher", self.kind.publisher_cut));
        net.await_connected(&mut |_, _| {});
        let mut random = Random::new(round.seed << 16 | self.number << 1);
        let mut cutter = Cutter::new(self.kind.publisher_cut, &mut random);
        let mut source = Source::default();
        while Instant::now() < round.until && !round.failed.load(Ordering::Relaxed) {
            if net.client.is_connected() {
                self.publish_window(&mut net, &mut source, &mut random);
            }
            self.pump_publisher(&mut net);
            cutter.maybe_cut(round, &mut net, &mut random);
        }
        net.await_connected(&mut |_, _| {});
        let deadline = Instant::now() + PATIENCE;
        while net.client.unacknowledged() > 0 {
            let left = net.client.unacknowledged();
            assert!(Instant::now() < deadline, "{}: {left} unacknowledged", self.name);
            if round.failed.load(Ordering::Relaxed) {
                return;
            }
            self.pump_publisher(&mut net);
        }
        self.sent.store(source.sent, Ordering::Release);
        cutter.end();
        net.leave();
    }

    fn pump_publisher(&self, net: &mut Net) {
        net.pump(&mut |_, event| match event {
            Event::Acked { reason, .. } => {
                assert!(!reason.is_error(), "{}: {}", self.name, reason.name());
            }
            Event::Discarded { .. } => panic!("{}: the session was lost", self.name),
            Event::Message(_) => panic!("{}: a message for the publisher", self.name),
            Event::Disconnected(ending) => panic!("{}: {ending}", self.name),
            _ => {}
        });
    }

    fn publish_window(&self, net: &mut Net, source: &mut Source, random: &mut Random) {
        let received = self.received.load(Ordering::Acquire);
        let received_bytes = self.received_bytes.load(Ordering::Acquire);
        while source.sent - received < WINDOW
            && source.sent_bytes - received_bytes < WINDOW_BYTES
            && net.client.out.len() < 64 * 1024
        {
            let payload = source.next(random, !self.kind.may_repeat());
            let message = Message::new(&self.name, payload, self.kind.qos);
            match net.client.publish(clock::now(), &message) {
                Ok(_) => source.publish(),
                Err(RequestError::WindowFull) => break,
                Err(error) => panic!("{}: {error}", self.name),
            }
        }
    }

    /// Receives until it has all that was sent.
    pub fn run_subscriber(&self, round: &Round) {
        let mut random = Random::new(round.seed << 16 | self.number << 1 | 1);
        let mut cutter = Cutter::new(self.kind.subscriber_cut, &mut random);
        let mut net = Net::new(round.addr, self.options("subscriber", self.kind.subscriber_cut));
        net.await_connected(&mut |_, _| {});
        net.subscribe(&self.name, self.kind.qos);
        let mut sink = Sink::default();
        let mut progress = Instant::now();
        loop {
            let before = sink.received();
            self.pump_subscriber(&mut net, &mut sink);
            let received = sink.received();
            if received > before {
                progress = Instant::now();
                round.messages.fetch_add(received - before, Ordering::Relaxed);
                self.received_bytes.store(sink.bytes, Ordering::Release);
                self.received.store(received, Ordering::Release);
            }
            let sent = self.sent.load(Ordering::Acquire);
            if received == sent || round.failed.load(Ordering::Relaxed) {
                break;
            }
            assert!(received < sent, "{}: {received} received, {sent} sent", self.name);
            assert!(
                progress.elapsed() < PATIENCE,
                "{} {:?}: {received} of {sent} messages came, nothing more for {PATIENCE:?}",
                self.name,
                self.kind
            );
            if self.subscribed.load(Ordering::Acquire) {
                cutter.maybe_cut(round, &mut net, &mut random);
            }
        }
        let silence = Instant::now() + SILENCE;
        while Instant::now() < silence {
            self.pump_subscriber(&mut net, &mut sink);
        }
        let sent = self.sent.load(Ordering::Acquire);
        if !round.failed.load(Ordering::Relaxed) {
            assert_eq!(sink.received(), sent, "{}: more came than was sent", self.name);
        }
        cutter.end();
        net.leave();
    }

    fn pump_subscriber(&self, net: &mut Net, sink: &mut Sink) {
        net.pump(&mut |client: &mut Client, event| match event {
            Event::Message(message) => {
                let client_id = &client.options().client_id;
                assert_eq!(message.topic, self.name, "{client_id}");
                assert_eq!(message.qos, self.kind.qos, "{client_id}");
                if let Err(what) = sink.take(message.payload, self.kind.may_repeat()) {
                    panic!("{client_id} {:?} v{}: {what}", self.kind, self.version as u8);
                }
            }
            Event::Subscribed { codes, .. } => {
                assert_eq!(codes, [self.kind.qos as u8]);
                self.subscribed.store(true, Ordering::Release);
            }
            Event::Connected { session_present, .. } if self.subscribed.load(Ordering::Acquire) => {
                assert!(session_present, "{}: the session was lost", self.name);
            }
            Event::Disconnected(ending) => panic!("{}: {ending}", self.name),
            _ => {}
        });
    }
}

/// Cuts connections, or has their sessions taken over, at random times.
struct Cutter {
    next: Option<Instant>,
    /// Connections whose session was taken over.
    old: Vec<TcpStream>,
}

impl Cutter {
    fn new(cuts: bool, random: &mut Random) -> Self {
        Self { next: cuts.then(|| Self::pause(random)), old: Vec::new() }
    }

    fn pause(random: &mut Random) -> Instant {
        Instant::now() + Duration::from_millis(1 + random.below(2 * CUT_AFTER_MS))
    }

    /// Not before CONNACK: of two CONNECTs under way the broker cannot know which one is the
    /// client's last.
    fn maybe_cut(&mut self, round: &Round, net: &mut Net, random: &mut Random) {
        if self.next.is_none_or(|next| Instant::now() < next) || !net.client.is_connected() {
            return;
        }
        self.next = Some(Self::pause(random));
        round.cuts.fetch_add(1, Ordering::Relaxed);
        self.old.extend(net.reopen(random.percent(50)));
        if self.old.len() > 4 {
            self.end();
        }
    }

    /// The broker has closed what it took over.
    fn end(&mut self) {
        self.old.drain(..).for_each(await_end);
    }
}

/// Makes the messages of a stream.
#[derive(Default)]
struct Source {
    sent: u64,
    sent_bytes: u64,
    numbered: u32,
    empty: u32,
    payload: Vec<u8>,
    made: bool,
}

impl Source {
    /// The next message: the same until it is published.
    fn next(&mut self, random: &mut Random, may_be_empty: bool) -> &[u8] {
        if !std::mem::replace(&mut self.made, true) {
            let len = payload_len(random, may_be_empty);
            self.payload.clear();
            self.payload.resize(len, self.numbered as u8);
            if len > 0 {
                self.payload[0..4].copy_from_slice(&self.numbered.to_le_bytes());
                self.payload[4..8].copy_from_slice(&self.empty.to_le_bytes());
                self.payload[8..16].copy_from_slice(&(len as u64).to_le_bytes());
            }
        }
        &self.payload
    }

    fn publish(&mut self) {
        self.made = false;
        self.sent += 1;
        self.sent_bytes += self.payload.len() as u64;
        match self.payload.is_empty() {
            true => self.empty += 1,
            false => self.numbered += 1,
        }
    }
}

/// Mostly small, now and then up to the largest.
fn payload_len(random: &mut Random, may_be_empty: bool) -> usize {
    let header = HEADER_LEN as u64;
    let len = match random.below(1000) {
        0..100 if may_be_empty => 0,
        0..850 => header + random.below(240),
        850..970 => header + random.below(4 * 1024),
        970..998 => header + random.below(64 * 1024),
        998 => header + random.below(PAYLOAD_MAX - header),
        _ => PAYLOAD_MAX,
    };
    len as usize
}

/// Checks the messages of a stream.
#[derive(Default)]
struct Sink {
    numbered: u32,
    empty: u32,
    bytes: u64,
}

impl Sink {
    /// Different messages that came.
    fn received(&self) -> u64 {
        u64::from(self.numbered) + u64::from(self.empty)
    }

    fn take(&mut self, payload: &[u8], may_repeat: bool) -> Result<(), String> {
        if payload.is_empty() {
            self.empty += 1;
            return Ok(());
        }
        let word = |at: usize| {
            let bytes = payload.get(at..at + 4).and_then(|bytes| bytes.first_chunk());
            bytes.map(|bytes| u32::from_le_bytes(*bytes)).ok_or("a message without a header")
        };
        let (number, empty, len) = (word(0)?, word(4)?, word(8)?);
        if number < self.numbered && may_repeat {
            return Ok(());
        }
        if number != self.numbered {
            return Err(format!("message {number} came instead of {}", self.numbered));
        }
        if empty != self.empty {
            return Err(format!("{} empty messages of {empty} before {number}", self.empty));
        }
        if len as usize != payload.len() {
            return Err(format!("message {number} has {} bytes of {len}", payload.len()));
        }
        let body = &payload[HEADER_LEN..];
        if body.iter().any(|byte| *byte != number as u8) {
            return Err(format!("message {number} is damaged"));
        }
        self.numbered += 1;
        self.bytes += payload.len() as u64;
        Ok(())
    }
}
