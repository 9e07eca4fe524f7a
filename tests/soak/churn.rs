//! Clients that come, subscribe, hear what they must, and go, in every way there is.

use std::sync::atomic::Ordering;
use std::time::Instant;

use noctule::client::{Event, Message, RequestError};
use noctule::clock;
use noctule::codec::mqtt::{PacketId, QoS, UserProperties, Version};

use crate::net::Net;
use crate::{PATIENCE, Random, Round};

/// One client after the other until the time is over. A second, steady client of this thread
/// publishes to them, from wherever it is at home.
pub fn run(round: &Round, number: u64) {
    let mut random = Random::new(round.seed << 16 | 0x8000 | number);
    let name = format!("soak/{}/churn/{number}", round.seed);
    let options = Net::options(Version::V5, &format!("{name}/steady"), false);
    let mut steady = Net::new(round.addr, options);
    steady.await_connected(&mut |_, _| {});
    let mut count = 0;
    while Instant::now() < round.until && !round.failed.load(Ordering::Relaxed) {
        visit(round, &name, count, &mut steady, &mut random);
        count += 1;
        round.churned.fetch_add(1, Ordering::Relaxed);
    }
    steady.leave();
}

fn visit(round: &Round, name: &str, count: u64, steady: &mut Net, random: &mut Random) {
    let version = [Version::V31, Version::V311, Version::V5][random.below(3) as usize];
    // Ids of MQTT 3.1 have at most 23 characters.
    let client_id = format!("c{}-{}-{count}", round.seed % 1000, random.below(1_000_000));
    let keep_session = random.percent(30);
    let mut net = Net::new(round.addr, Net::options(version, &client_id, keep_session));
    net.await_connected(&mut |_, _| {});

    let qos = QoS::from_bits(random.below(3) as u8).expect("0, 1 or 2");
    let topic = format!("{name}/{count}/news");
    let filter = match random.below(4) {
        0 => topic.clone(),
        1 => format!("{name}/{count}/+"),
        2 => format!("{name}/{count}/#"),
        _ => format!("{name}/+/news"),
    };
    let subscribe = net.subscribe(&filter, qos);
    let mut heard = Heard { topic: &topic, wanted: Some(subscribe), ..Heard::default() };
    heard.pump_until(&mut net, "SUBACK", |heard| heard.wanted.is_none());

    // From SUBACK on it hears its own and everybody else's.
    let messages = 1 + random.below(4) as usize;
    for index in 0..messages {
        let len = if random.percent(2) { 200_000 } else { random.below(2000) as usize };
        let payload = vec![index as u8; len + 1];
        let message = Message::new(&topic, &payload, qos);
        let publisher = if random.percent(50) { &mut *steady } else { &mut net };
        publish(publisher, &message, &mut heard);
    }
    heard.pump_both_until(&mut net, steady, messages);

    if random.percent(50) {
        let unsubscribe =
            net.client.unsubscribe(clock::now(), &[&filter], UserProperties::default());
        heard.wanted = Some(unsubscribe.expect("unsubscribe"));
        heard.pump_until(&mut net, "UNSUBACK", |heard| heard.wanted.is_none());
    }
    match random.below(3) {
        // Without a word: what the session was is gone with the connection, or is ended here.
        0 if !keep_session => drop(net),
        1 => {
            net.reopen(true);
            net.await_connected(&mut |_, _| {});
            net.leave();
        }
        _ => net.leave(),
    }
}

fn publish(net: &mut Net, message: &Message<'_>, heard: &mut Heard<'_>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match net.client.publish(clock::now(), message) {
            Ok(_) => return net.flush(),
            Err(RequestError::WindowFull) => heard.pump(net),
            Err(error) => panic!("{}: {error}", message.topic),
        }
        assert!(Instant::now() < deadline, "{}: the window stays closed", message.topic);
    }
}

/// What came for one of these clients.
#[derive(Default)]
struct Heard<'a> {
    topic: &'a str,
    /// The request whose answer is awaited.
    wanted: Option<PacketId>,
    messages: usize,
}

impl Heard<'_> {
    fn pump(&mut self, net: &mut Net) {
        net.pump(&mut |_, event| match event {
            Event::Message(message) if message.topic == self.topic => {
                let payload = message.payload;
                assert!(
                    payload.iter().all(|byte| *byte == payload[0]),
                    "{} is damaged",
                    self.topic
                );
                self.messages += 1;
            }
            Event::Subscribed { packet_id, codes, .. } => {
                assert!(codes.iter().all(|code| *code < 3), "{}: {codes:?}", self.topic);
                self.answer(packet_id);
            }
            Event::Unsubscribed { packet_id, .. } => self.answer(packet_id),
            Event::Disconnected(ending) => panic!("{}: {ending}", self.topic),
            _ => {}
        });
    }

    fn answer(&mut self, packet_id: PacketId) {
        assert_eq!(self.wanted.take(), Some(packet_id), "{}", self.topic);
    }

    fn pump_until(&mut self, net: &mut Net, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "{}: no {what}", self.topic);
            self.pump(net);
        }
    }

    /// All `messages` came, once each, and nobody waits for an acknowledgement.
    fn pump_both_until(&mut self, net: &mut Net, steady: &mut Net, messages: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.messages < messages
            || net.client.unacknowledged() > 0
            || steady.client.unacknowledged() > 0
        {
            let heard = self.messages;
            assert!(Instant::now() < deadline, "{}: {heard} of {messages}", self.topic);
            self.pump(net);
            if steady.client.unacknowledged() > 0 {
                self.pump(steady);
            }
        }
        assert_eq!(self.messages, messages, "{}: repeated", self.topic);
    }
}
