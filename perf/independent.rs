//! An independent look at latency: one client of another library (rumqttc), one message under way.
//!
//! It shares no code with `noctule bench`, so that the two can be held against each other at a low
//! rate, where both should see the same: `scripts/check-generator.sh` does. It is a closed loop: it
//! says nothing about a broker that stalls. Latency is printed twice: since the message was sent, as
//! closed loops do it, and since it was to be sent, as `noctule bench` does.
//!
//!     cargo run --release --example independent -- HOST PORT RATE SECONDS
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

use std::time::{Duration, Instant};

use rumqttc::{Client, Connection, Event, MqttOptions, NetworkOptions, Packet, QoS};

const PAYLOAD: usize = 64;

/// Runs the connection until `found` has found its packet.
fn until(connection: &mut Connection, found: impl Fn(&Packet) -> bool) {
    loop {
        match connection.recv().expect("the client is alive").expect("a connection") {
            Event::Incoming(packet) if found(&packet) => return,
            _ => {}
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [host, port, rate, seconds] = &args[..] else {
        panic!("usage: independent HOST PORT RATE SECONDS");
    };
    let port = port.parse().expect("PORT is a number");
    let rate: f64 = rate.parse().expect("RATE is a number");
    let seconds: f64 = seconds.parse().expect("SECONDS is a number");
    let id = format!("independent-{}", std::process::id());
    let topic = format!("independent/{}", std::process::id());
    let (client, mut connection) = Client::new(MqttOptions::new(id, host, port), 10);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    connection.eventloop.set_network_options(network);
    until(&mut connection, |packet| matches!(packet, Packet::ConnAck(_)));
    client.try_subscribe(&topic, QoS::AtMostOnce).expect("subscribe");
    until(&mut connection, |packet| matches!(packet, Packet::SubAck(_)));

    let (mut since_sent, mut since_intended) = (Vec::new(), Vec::new());
    let period = Duration::from_secs_f64(1.0 / rate);
    let start = Instant::now();
    let mut next = start;
    while start.elapsed().as_secs_f64() < seconds {
        // As the generator does: the last bit of waiting is awake.
        while Instant::now() < next {
            if next - Instant::now() > Duration::from_micros(300) {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let (intended, sent) = (next, Instant::now());
        next += period;
        client.try_publish(&topic, QoS::AtMostOnce, false, vec![0x5a; PAYLOAD]).expect("publish");
        until(&mut connection, |packet| matches!(packet, Packet::Publish(_)));
        since_sent.push(sent.elapsed().as_nanos() as u64);
        since_intended.push(intended.elapsed().as_nanos() as u64);
    }
    let (sent, intended) = (percentiles(since_sent), percentiles(since_intended));
    println!("{{\"since_sent\": {sent}, \"since_intended\": {intended}}}");
}

/// As JSON, in nanoseconds.
fn percentiles(mut latencies: Vec<u64>) -> String {
    latencies.sort_unstable();
    let at = |quantile: f64| {
        let index = (latencies.len() as f64 * quantile) as usize;
        latencies[index.min(latencies.len() - 1)]
    };
    format!(
        "{{\"count\": {}, \"p50\": {}, \"p90\": {}, \"p99\": {}, \"max\": {}}}",
        latencies.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    )
}
