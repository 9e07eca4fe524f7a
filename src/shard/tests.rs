//! Whole shards in threads, over real sockets, on both backends, alone and in pairs.
#![forbid(unsafe_code)]

use super::*;
use crate::clock;
use crate::ids::PlacementKey;
use crate::io::epoll::Epoll;
use crate::io::uring::Uring;
use crate::io::{Kernel, Settings, socket};
use crate::mesh::mesh;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

const KEY: PlacementKey = PlacementKey(0x5eed);

/// A broker of some shards in this process.
struct World {
    addr: SocketAddr,
    shards: Vec<(Sender<ControlMessage>, Waker, JoinHandle<LoopCounters>)>,
}

impl World {
    fn new<B: Kernel + 'static>(
        shards: usize,
        connect_timeout: Duration,
        make: fn(&Settings) -> io::Result<B>,
    ) -> Self {
        let listeners = socket::listen("127.0.0.1:0".parse().unwrap(), shards, 128).unwrap();
        let addr = listeners[0].local_addr().unwrap();
        let mut starts = Vec::new();
        let mut made = Vec::new();
        let ends = mesh(shards, LANE_RING_LEN).into_iter().zip(listeners);
        for (index, (mesh, listener)) in ends.enumerate() {
            let (control, receiver) = channel();
            let (waker_out, waker_in) = channel();
            let (start, started) = channel::<Vec<Waker>>();
            let setup = Setup {
                id: ShardId::new(index),
                shards,
                placement: KEY,
                broker: broker::Config::default(),
                seed: 7,
                connect_timeout,
                listeners: vec![listener],
                mesh,
                control: receiver,
                clock: clock::now,
                journal: Journal::default(),
                clocks: Clocks::default(),
                restored: None,
            };
            let thread = std::thread::spawn(move || {
                let mut shard = Shard::new(setup, make(&Settings::default()).unwrap());
                waker_out.send(shard.waker()).unwrap();
                shard.start(started.recv().unwrap()).unwrap();
                shard.run().unwrap();
                shard.counters
            });
            starts.push(start);
            made.push((control, waker_in.recv().unwrap(), thread));
        }
        for start in starts {
            start.send(made.iter().map(|(_, waker, _)| waker.clone()).collect()).unwrap();
        }
        Self { addr, shards: made }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    fn stop(self) -> Vec<LoopCounters> {
        for (control, waker, _) in &self.shards {
            control.send(ControlMessage::Shutdown).unwrap();
            waker.wake();
        }
        self.shards.into_iter().map(|(_, _, thread)| thread.join().unwrap()).collect()
    }
}

/// Runs a test in all four worlds.
fn in_all_worlds(test: impl Fn(World) -> Vec<LoopCounters>) {
    in_all_worlds_with(Duration::from_secs(10), |world, _| test(world));
}

fn in_all_worlds_with(connect_timeout: Duration, test: impl Fn(World, usize) -> Vec<LoopCounters>) {
    for shards in [1, 2] {
        test(World::new(shards, connect_timeout, Epoll::new), shards);
        match Uring::new(&Settings::default()) {
            Ok(_) => drop(test(World::new(shards, connect_timeout, Uring::new), shards)),
            Err(error) => {
                eprintln!("SKIP: no io_uring here: {error}");
                assert!(std::env::var_os("CI").is_none(), "CI tests both backends");
            }
        }
    }
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut rest = body.len();
    loop {
        let more = rest > 127;
        bytes.push((rest % 128) as u8 | if more { 0x80 } else { 0 });
        rest /= 128;
        if !more {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

fn connect_packet(level: u8, client_id: &str) -> Vec<u8> {
    let mut body = string("MQTT");
    body.extend_from_slice(&[level, 0x02, 0, 60]);
    if level == 5 {
        body.push(0);
    }
    body.extend(string(client_id));
    packet(0x10, &body)
}

fn subscribe_packet(filter: &str, qos: u8) -> Vec<u8> {
    let mut body = vec![0, 9];
    body.extend(string(filter));
    body.push(qos);
    packet(0x82, &body)
}

fn publish_packet(topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut body = string(topic);
    body.extend_from_slice(payload);
    packet(0x30, &body)
}

fn publish_qos1(topic: &str, id: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = string(topic);
    body.extend_from_slice(&[0, id]);
    body.extend_from_slice(payload);
    packet(0x32, &body)
}

const CONNACK: &[u8] = &[0x20, 2, 0, 0];

fn expect(stream: &mut TcpStream, wanted: &[u8]) {
    let mut got = vec![0; wanted.len()];
    stream.read_exact(&mut got).unwrap();
    assert!(
        got == wanted,
        "got {:x?}…, wanted {:x?}…",
        &got[..8.min(got.len())],
        &wanted[..8.min(wanted.len())]
    );
}

fn expect_end(stream: &mut TcpStream) {
    // read_to_end goes on after EINTR, which a thread that has just dropped a ring may get.
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"", "the end of the stream");
}

#[test]
fn what_comes_right_behind_connect_is_neither_lost_nor_reordered() {
    in_all_worlds(|world| {
        for client in 0..20 {
            let mut stream = world.connect();
            let topic = format!("t/{client}");
            let mut bytes = connect_packet(4, &format!("client-{client}"));
            bytes.extend(subscribe_packet(&topic, 0));
            bytes.extend(publish_packet(&topic, b"one"));
            bytes.extend(publish_packet(&topic, b"two"));
            bytes.extend(packet(0xc0, &[]));
            stream.write_all(&bytes).unwrap();
            expect(&mut stream, CONNACK);
            expect(&mut stream, &[0x90, 3, 0, 9, 0]);
            expect(&mut stream, &publish_packet(&topic, b"one"));
            expect(&mut stream, &publish_packet(&topic, b"two"));
            expect(&mut stream, &[0xd0, 0]);
        }
        let counters = world.stop();
        if counters.len() == 2 {
            assert!(counters.iter().map(|c| c.moved_out).sum::<u64>() > 0, "some came home");
        }
        counters
    });
}

#[test]
fn connect_may_come_in_pieces() {
    in_all_worlds(|world| {
        for client in ["a", "b", "c", "d"] {
            let mut stream = world.connect();
            let mut bytes = connect_packet(4, client);
            bytes.extend(packet(0xc0, &[]));
            for byte in bytes {
                stream.write_all(&[byte]).unwrap();
            }
            expect(&mut stream, CONNACK);
            expect(&mut stream, &[0xd0, 0]);
        }
        world.stop()
    });
}

#[test]
fn a_large_frame_cut_by_the_hand_over_arrives_whole() {
    in_all_worlds(|world| {
        let payload: Vec<u8> = (0..300_000).map(|i| (i % 251) as u8).collect();
        for client in 0..6 {
            let mut stream = world.connect();
            let topic = format!("big/{client}");
            let publish = publish_packet(&topic, &payload);
            let mut bytes = connect_packet(4, &format!("large-{client}"));
            bytes.extend(subscribe_packet(&topic, 0));
            bytes.extend_from_slice(&publish[..50_000]);
            stream.write_all(&bytes).unwrap();
            expect(&mut stream, CONNACK);
            expect(&mut stream, &[0x90, 3, 0, 9, 0]);
            stream.write_all(&publish[50_000..]).unwrap();
            expect(&mut stream, &publish);
        }
        world.stop()
    });
}

#[test]
fn two_clients_of_different_shards_hear_each_other() {
    in_all_worlds(|world| {
        let mut subscribers: Vec<TcpStream> = (0..8)
            .map(|i| {
                let mut stream = world.connect();
                stream.write_all(&connect_packet(4, &format!("sub-{i}"))).unwrap();
                expect(&mut stream, CONNACK);
                stream.write_all(&subscribe_packet("news/#", 1)).unwrap();
                expect(&mut stream, &[0x90, 3, 0, 9, 1]);
                stream
            })
            .collect();
        for i in 0..4 {
            let mut publisher = world.connect();
            publisher.write_all(&connect_packet(4, &format!("pub-{i}"))).unwrap();
            expect(&mut publisher, CONNACK);
            for n in 0..50 {
                publisher.write_all(&publish_packet("news/today", &[i, n])).unwrap();
            }
            for stream in &mut subscribers {
                for n in 0..50 {
                    expect(stream, &publish_packet("news/today", &[i, n]));
                }
            }
        }
        world.stop()
    });
}

#[test]
fn a_client_that_ends_its_stream_still_gets_its_answers() {
    in_all_worlds(|world| {
        for i in 0..4 {
            let mut stream = world.connect();
            let mut bytes = connect_packet(4, &format!("half-{i}"));
            bytes.extend(publish_qos1("x", 7, b"last words"));
            stream.write_all(&bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            expect(&mut stream, CONNACK);
            expect(&mut stream, &[0x40, 2, 0, 7]);
            expect_end(&mut stream);
        }
        world.stop()
    });
}

#[test]
fn strangers_are_closed() {
    in_all_worlds(|world| {
        for bytes in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xc0, 0], &[0x10, 0xff, 0xff, 0xff, 0xff, 1]]
        {
            let mut stream = world.connect();
            stream.write_all(bytes).unwrap();
            expect_end(&mut stream);
        }
        world.stop()
    });
}

#[test]
fn who_sends_no_connect_is_closed_in_time() {
    in_all_worlds_with(Duration::from_millis(50), |world, _| {
        let mut silent = world.connect();
        let mut slow = world.connect();
        slow.write_all(&connect_packet(4, "slow")[..5]).unwrap();
        expect_end(&mut silent);
        expect_end(&mut slow);
        let counters = world.stop();
        assert_eq!(counters.iter().map(|c| c.connect_timeouts).sum::<u64>(), 2);
        counters
    });
}

#[test]
fn shutdown_tells_clients_and_ends() {
    in_all_worlds(|world| {
        let mut streams: Vec<TcpStream> = (0..6)
            .map(|i| {
                let mut stream = world.connect();
                stream.write_all(&connect_packet(5, &format!("five-{i}"))).unwrap();
                let mut head = [0; 2];
                stream.read_exact(&mut head).unwrap();
                assert_eq!(head[0], 0x20);
                stream.read_exact(&mut vec![0; usize::from(head[1])]).unwrap();
                stream
            })
            .collect();
        let mut opening = world.connect();
        opening.write_all(&[0x10]).unwrap();
        let stopper = std::thread::spawn(move || world.stop());
        for stream in &mut streams {
            let mut first = [0; 3];
            stream.read_exact(&mut first).unwrap();
            assert_eq!((first[0], first[2]), (0xe0, 0x8b), "[MQTT-3.14.2] server shutting down");
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
        }
        // Whatever the kernel says to a connection that was never looked at: it ends.
        let _ = opening.read(&mut [0; 8]);
        stopper.join().unwrap()
    });
}

/// SHARDS.md H4, and its bound: what is read of the old connection after the new CONNECT has come
/// does not hold the takeover off.
#[test]
fn a_takeover_waits_for_what_was_read_and_for_no_more() {
    let mut old = conn::tests::some_conn();
    old.stage = Stage::Live;
    old.paused = true;
    old.input.append(&[0xc0, 0, 0xc0, 0], 0);
    let target = old.handled + old.input.len() as u64;
    assert!(old.holds_back(target));
    old.input.append(&[0xc0, 0], 0);
    old.input.consume(4);
    old.handled += 4;
    assert!(!old.input.is_empty() && !old.holds_back(target));
}

#[test]
fn a_client_that_subscribes_on_and_on_is_taken_over() {
    in_all_worlds(|world| {
        let mut old = world.connect();
        old.write_all(&connect_packet(4, "one")).unwrap();
        expect(&mut old, CONNACK);
        let mut bytes = Vec::new();
        for n in 0..5000 {
            bytes.extend(subscribe_packet(&format!("filter/{n}/+"), 0));
        }
        old.write_all(&bytes).unwrap();
        let mut new = world.connect();
        new.write_all(&connect_packet(4, "one")).unwrap();
        expect(&mut new, CONNACK);
        let mut answers = Vec::new();
        // The end may be a reset: not all that it sent is read.
        let _ = old.read_to_end(&mut answers);
        assert_eq!(answers.len() % 5, 0, "whole SUBACKs, then the end");
        world.stop()
    });
}

/// [MQTT-3.1.4-3]: the later CONNECT wins, whichever connection was opened first.
#[test]
fn the_later_connect_takes_over_even_on_the_earlier_connection() {
    in_all_worlds(|world| {
        for id in ["p", "q", "r"] {
            let mut first = world.connect();
            let mut second = world.connect();
            second.write_all(&connect_packet(4, id)).unwrap();
            expect(&mut second, CONNACK);
            first.write_all(&connect_packet(4, id)).unwrap();
            expect(&mut first, CONNACK);
            expect_end(&mut second);
            first.write_all(&[0xc0, 0]).unwrap();
            expect(&mut first, &[0xd0, 0]);
        }
        world.stop()
    });
}

/// Where the bytes of an idle connection are. `perf/SCALING.md` has the same sum, and what is measured.
#[test]
fn an_idle_connection_takes_few_bytes() {
    use crate::broker::{conn::CONN_BYTES, session::SESSION_BYTES, timers::TIMER_BYTES};
    use crate::limits::IDLE_CONNECTION_BYTES;
    let client_id = (2 * size_of::<usize>() + 20).next_multiple_of(16);
    let parts = [
        ("in the loop", size_of::<super::conn::Conn>() + size_of::<u32>()),
        ("in the backend", crate::io::uring::CONN_BYTES),
        ("in the broker", CONN_BYTES),
        ("its session", SESSION_BYTES),
        ("its keep alive", TIMER_BYTES),
        ("its client id, with a word of the allocator", client_id),
    ];
    let sum: usize = parts.iter().map(|(_, bytes)| bytes).sum();
    assert!(sum <= IDLE_CONNECTION_BYTES, "{sum}: {parts:?}");
    const { assert!(crate::io::epoll::CONN_BYTES <= 72) };
}
