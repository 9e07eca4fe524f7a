//! rumqttc, the Rust client, with its two versions: 3.1.1 and 5.0.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(20);

/// One module of scenarios for each of the two clients that rumqttc is: they look the same and
/// share no type.
macro_rules! scenarios {
    ($version:ident, $($library:ident)::+, $packets:path, $qos:path, clean: $clean:expr, will: $will:expr) => {
        pub mod $version {
            use super::*;
            use $($library)::+::{Client, Connection, Event, MqttOptions};
            use $packets::{LastWill, Packet, SubscribeReasonCode};
            use $qos::{self, AtLeastOnce, AtMostOnce, ExactlyOnce};

            type Message = (String, Vec<u8>, QoS, bool);

            /// A client whose events are waited for, each within a bound.
            struct Peer {
                client: Client,
                connection: Connection,
                messages: VecDeque<Message>,
                session_present: bool,
            }

            impl Peer {
                fn open(addr: SocketAddr, id: &str, clean: bool, will: Option<&str>) -> Self {
                    let host = addr.ip().to_string();
                    let mut options = MqttOptions::new(id, host, addr.port());
                    options.set_keep_alive(Duration::from_secs(30));
                    $clean(&mut options, clean);
                    if let Some(topic) = will {
                        options.set_last_will($will(topic, b"crashed".to_vec(), AtLeastOnce));
                    }
                    let (client, connection) = Client::new(options, 100);
                    let messages = VecDeque::new();
                    let mut peer = Self { client, connection, messages, session_present: false };
                    peer.session_present = peer.until("CONNACK", |event| match event {
                        Event::Incoming(Packet::ConnAck(ack)) => Some(ack.session_present),
                        _ => None,
                    });
                    peer
                }

                /// Runs the connection until `found` finds its event; messages are kept.
                fn until<T>(&mut self, what: &str, found: impl Fn(&Event) -> Option<T>) -> T {
                    loop {
                        let event = match self.connection.recv_timeout(WAIT) {
                            Ok(Ok(event)) => event,
                            Ok(Err(error)) => panic!("waiting for {what}: {error}"),
                            Err(error) => panic!("waiting for {what}: {error:?}"),
                        };
                        if let Event::Incoming(Packet::Publish(publish)) = &event {
                            self.messages.push_back((
                                String::from_utf8_lossy(publish.topic.as_ref()).into_owned(),
                                publish.payload.to_vec(),
                                publish.qos,
                                publish.retain,
                            ));
                        }
                        if let Some(found) = found(&event) {
                            return found;
                        }
                    }
                }

                fn subscribe(&mut self, filter: &str, qos: QoS) {
                    self.client.subscribe(filter, qos).expect("subscribe");
                    let granted = self.until("SUBACK", |event| match event {
                        Event::Incoming(Packet::SubAck(ack)) => Some(ack.return_codes.clone()),
                        _ => None,
                    });
                    assert_eq!(granted, [SubscribeReasonCode::Success(qos)]);
                }

                fn publish(&mut self, topic: &str, payload: &[u8], qos: QoS, retain: bool) {
                    let payload = payload.to_vec();
                    self.client.publish(topic, qos, retain, payload).expect("publish");
                    self.until("acknowledgement", |event| match event {
                        Event::Outgoing(rumqttc::Outgoing::Publish(_)) if qos == AtMostOnce => {
                            Some(())
                        }
                        Event::Incoming(Packet::PubAck(_)) if qos == AtLeastOnce => Some(()),
                        Event::Incoming(Packet::PubComp(_)) if qos == ExactlyOnce => Some(()),
                        _ => None,
                    });
                }

                fn next(&mut self) -> Message {
                    if self.messages.is_empty() {
                        self.until("message", |event| {
                            matches!(event, Event::Incoming(Packet::Publish(_))).then_some(())
                        });
                    }
                    self.messages.pop_front().expect("a message was kept")
                }

                fn expect(&mut self, topic: &str, payload: &[u8], qos: QoS, retain: bool) {
                    let got = self.next();
                    assert_eq!(got, (topic.to_owned(), payload.to_vec(), qos, retain));
                }

                fn end(mut self) {
                    self.client.disconnect().expect("disconnect");
                    self.until("DISCONNECT to be sent", |event| {
                        matches!(event, Event::Outgoing(rumqttc::Outgoing::Disconnect))
                            .then_some(())
                    });
                }
            }

            pub fn round_trips(addr: SocketAddr, base: &str) {
                let mut subscriber = Peer::open(addr, &format!("{base}-sub"), true, None);
                let mut publisher = Peer::open(addr, &format!("{base}-pub"), true, None);
                let large = vec![b'x'; 100_000];
                for (name, qos) in [("0", AtMostOnce), ("1", AtLeastOnce), ("2", ExactlyOnce)] {
                    let topic = format!("{base}/{name}");
                    subscriber.subscribe(&topic, qos);
                    let mut payloads = vec![Vec::new(), vec![0, 255], large.clone()];
                    payloads.extend((0..20).map(|i: i32| i.to_string().into_bytes()));
                    for payload in &payloads {
                        publisher.publish(&topic, payload, qos, false);
                        subscriber.expect(&topic, payload, qos, false);
                    }
                }
                subscriber.end();
                publisher.end();
            }

            pub fn retained(addr: SocketAddr, base: &str) {
                let topic = format!("{base}/kept");
                let mut publisher = Peer::open(addr, &format!("{base}-pub"), true, None);
                publisher.publish(&topic, b"kept", AtLeastOnce, true);
                let mut early = Peer::open(addr, &format!("{base}-early"), true, None);
                early.subscribe(&format!("{base}/+"), AtLeastOnce);
                early.expect(&topic, b"kept", AtLeastOnce, true);
                publisher.publish(&topic, b"", AtLeastOnce, true);
                early.expect(&topic, b"", AtLeastOnce, false);
                let mut late = Peer::open(addr, &format!("{base}-late"), true, None);
                late.subscribe(&format!("{base}/+"), AtLeastOnce);
                let other = format!("{base}/other");
                publisher.publish(&other, b"live", AtLeastOnce, false);
                late.expect(&other, b"live", AtLeastOnce, false);
                for peer in [publisher, early, late] {
                    peer.end();
                }
            }

            pub fn will(addr: SocketAddr, base: &str) {
                let topic = format!("{base}/will");
                let mut watcher = Peer::open(addr, &format!("{base}-watch"), true, None);
                watcher.subscribe(&topic, AtLeastOnce);
                Peer::open(addr, &format!("{base}-polite"), true, Some(&topic)).end();
                let mut publisher = Peer::open(addr, &format!("{base}-pub"), true, None);
                publisher.publish(&topic, b"no will before", AtLeastOnce, false);
                watcher.expect(&topic, b"no will before", AtLeastOnce, false);
                drop(Peer::open(addr, &format!("{base}-crash"), true, Some(&topic)));
                watcher.expect(&topic, b"crashed", AtLeastOnce, false);
                watcher.end();
                publisher.end();
            }

            pub fn session(addr: SocketAddr, base: &str) {
                let id = format!("{base}-kept");
                let topic = format!("{base}/a");
                let mut subscriber = Peer::open(addr, &id, false, None);
                assert!(!subscriber.session_present, "a session that nobody made");
                subscriber.subscribe(&format!("{base}/#"), ExactlyOnce);
                subscriber.end();
                let mut publisher = Peer::open(addr, &format!("{base}-pub"), true, None);
                for i in 0..20u8 {
                    publisher.publish(&topic, &[i], AtLeastOnce, false);
                }
                let mut again = Peer::open(addr, &id, false, None);
                assert!(again.session_present, "the session is lost");
                for i in 0..20u8 {
                    again.expect(&topic, &[i], AtLeastOnce, false);
                }
                again.end();
                let fresh = Peer::open(addr, &id, true, None);
                assert!(!fresh.session_present, "a clean session has a past");
                fresh.end();
                publisher.end();
            }
        }
    };
}

scenarios!(
    v4,
    rumqttc,
    rumqttc,
    rumqttc::QoS,
    clean: |options: &mut MqttOptions, clean| {
        options.set_clean_session(clean);
        options.set_max_packet_size(1 << 20, 1 << 20);
    },
    will: |topic: &str, payload, qos| LastWill::new(topic, payload, qos, false)
);

scenarios!(
    v5,
    rumqttc::v5,
    rumqttc::v5::mqttbytes::v5,
    rumqttc::v5::mqttbytes::QoS,
    clean: |options: &mut MqttOptions, clean: bool| {
        options.set_clean_start(clean);
        options.set_session_expiry_interval((!clean).then_some(600));
        options.set_max_packet_size(Some(1 << 20));
    },
    will: |topic: &str, payload, qos| LastWill::new(topic, payload, qos, false, None)
);
