//! The contract of [`Backend`], held against every backend on loopback sockets.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use socket2::SockRef;

use super::fault::Fault;
use super::file::{BLOCK, BlockBuf};
use super::*;
use crate::clock;

/// Polls before a test gives up: far more than any needs.
const POLLS_MAX: usize = 200_000;
const PATIENCE: Duration = Duration::from_secs(30);

mod sending;

use sending::*;

trait Open: Kernel + Sized {
    fn open(settings: &Settings) -> io::Result<Self>;
}

impl Open for Epoll {
    fn open(settings: &Settings) -> io::Result<Self> {
        Self::new(settings)
    }
}

impl Open for Uring {
    fn open(settings: &Settings) -> io::Result<Self> {
        Self::new(settings)
    }
}

/// Whether the kernel lets us have a ring; if not, says so where it is seen, and fails in CI.
fn uring_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| match Uring::new(&small_settings()) {
        Ok(_) => true,
        Err(error) => {
            // Not eprintln: the test harness would swallow it.
            let _ = writeln!(io::stderr(), "SKIP: io_uring tests not run: {error}");
            assert!(std::env::var_os("CI").is_none(), "io_uring is missing in CI: {error}");
            false
        }
    })
}

/// Around a backend everything that the contract leaves room for, by the test's name.
impl<B: Open> Open for Fault<B> {
    fn open(settings: &Settings) -> io::Result<Self> {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        let seed = name.bytes().fold(7u64, |seed, byte| seed.rotate_left(9) ^ u64::from(byte));
        let plan = format!("{seed}:short-reads,short-sends,delays,slow-files");
        B::open(settings).map(|inner| Self::new(inner, &plan.parse().unwrap()))
    }
}

macro_rules! contract_with_faults {
    ($($name:ident),* $(,)?) => {
        mod on_epoll_with_faults {
            $(#[test] fn $name() { super::$name::<super::Fault<super::Epoll>>(); })*
        }
        mod on_uring_with_faults {
            $(#[test] fn $name() {
                if super::uring_works() {
                    super::$name::<super::Fault<super::Uring>>();
                }
            })*
        }
    };
}

// What does not count polls or buffers.
contract_with_faults! {
    accepts_and_answers,
    once_reads_once,
    input_comes_in_order_and_before_its_end,
    a_large_send_to_a_slow_reader_arrives_whole,
    a_second_send_or_receive_panics,
    moving_to_another_backend_loses_nothing,
    cancelling_once_ends_it_once,
    close_with_an_armed_receive_sends_fin,
    close_ends_a_stuck_send,
    fin_follows_the_send_in_flight,
    a_reset_ends_the_receive,
    a_send_to_a_reset_peer_fails,
    a_small_pool_serves_many,
    a_tiny_ring_loses_nothing,
    waking_ends_the_wait,
    shards_wake_each_other,
    a_slot_is_used_again,
    a_removed_listener_refuses,
    dropping_it_closes_its_connections,
    files_are_written_and_read,
    a_file_operation_that_cannot_be_done_says_so,
    the_end_of_a_file_operation_ends_the_wait,
}

macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod on_epoll {
            $(#[test] fn $name() { super::$name::<super::Epoll>(); })*
        }
        mod on_uring {
            $(#[test] fn $name() {
                if super::uring_works() {
                    super::$name::<super::Uring>();
                }
            })*
        }
    };
}

contract! {
    accepts_and_answers,
    once_reads_once,
    input_comes_in_order_and_before_its_end,
    a_large_send_to_a_slow_reader_arrives_whole,
    a_second_send_or_receive_panics,
    moving_to_another_backend_loses_nothing,
    cancelling_once_ends_it_once,
    close_with_an_armed_receive_sends_fin,
    close_ends_a_stuck_send,
    fin_follows_the_send_in_flight,
    a_reset_ends_the_receive,
    a_send_to_a_reset_peer_fails,
    a_small_pool_serves_many,
    a_tiny_ring_loses_nothing,
    held_buffers_do_not_make_it_spin,
    a_cancel_while_starved_ends_the_receive,
    waking_ends_the_wait,
    shards_wake_each_other,
    waits_until_the_deadline_without_waking,
    input_ages_until_it_is_read_and_after,
    a_slot_is_used_again,
    a_removed_listener_refuses,
    many_connections_in_few_polls,
    dropping_it_closes_its_connections,
    a_send_that_nobody_awaits_does_not_end_the_wait,
    what_follows_a_send_does_not_wait_for_others,
    a_send_that_is_stuck_hides_no_other_s_end,
    files_are_written_and_read,
    a_file_operation_that_cannot_be_done_says_so,
    a_write_under_way_is_finished_when_the_backend_is_dropped,
    the_end_of_a_file_operation_ends_the_wait,
    turns_peers_away_without_descriptors,
}

fn small_settings() -> Settings {
    Settings {
        ring_entries: 64,
        uring_pool: PoolSize { count: 64, bytes: 1024 },
        epoll_pool: PoolSize { count: 64, bytes: 1024 },
    }
}

fn with_pool(count: usize, bytes: usize) -> Settings {
    let size = PoolSize { count, bytes };
    Settings { uring_pool: size, epoll_pool: size, ..small_settings() }
}

const fn conn(index: u32, generation: u32) -> ConnId {
    ConnId { index, generation }
}

const A: ConnId = conn(0, 1);

/// A backend, and what it has said, sorted.
struct Rig<B> {
    backend: B,
    polls: usize,
    accepted: Vec<OwnedFd>,
    accept_failed: usize,
    input: HashMap<ConnId, Vec<u8>>,
    received: usize,
    ended: HashMap<ConnId, Vec<RecvEnd>>,
    sent: Vec<(ConnId, OutBuf, io::Result<()>)>,
    closed: Vec<ConnId>,
    files: Vec<FileDone>,
}

impl<B: Open> Rig<B> {
    fn new(settings: &Settings) -> Self {
        Self {
            backend: B::open(settings).unwrap(),
            polls: 0,
            accepted: Vec::new(),
            accept_failed: 0,
            input: HashMap::default(),
            received: 0,
            ended: HashMap::default(),
            sent: Vec::new(),
            closed: Vec::new(),
            files: Vec::new(),
        }
    }

    /// One connection, `A`, and its other end.
    fn connected(settings: &Settings) -> (Self, TcpStream) {
        let mut rig = Self::new(settings);
        let (ours, theirs) = pair();
        rig.backend.add_socket(A, ours).unwrap();
        (rig, theirs)
    }

    fn poll(&mut self, wait: Wait) {
        for buf in self.poll_holding(wait) {
            self.backend.release(buf);
        }
    }

    /// Polls and does not release.
    fn poll_holding(&mut self, wait: Wait) -> Vec<RecvBuf> {
        let mut held = Vec::new();
        let mut completions = Vec::new();
        self.polls += 1;
        self.backend.poll(wait, &mut completions).unwrap();
        for completion in completions {
            match completion {
                Completion::Accepted { socket, .. } => self.accepted.push(socket),
                Completion::AcceptFailed { .. } => self.accept_failed += 1,
                Completion::Received { conn, buf } => {
                    assert!(!self.closed.contains(&conn), "input after Closed");
                    assert_eq!(self.backend.bytes(&buf).len(), buf.len());
                    self.received += 1;
                    let input = self.input.entry(conn).or_default();
                    input.extend_from_slice(self.backend.bytes(&buf));
                    held.push(buf);
                }
                Completion::RecvEnded { conn, reason } => {
                    self.ended.entry(conn).or_default().push(reason);
                }
                Completion::Sent { conn, buf, result } => self.sent.push((conn, buf, result)),
                Completion::Closed { conn } => self.closed.push(conn),
                Completion::File(done) => self.files.push(*done),
            }
        }
        held
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = clock::now() + PATIENCE;
        for _ in 0..POLLS_MAX {
            if done(self) {
                return;
            }
            assert!(clock::now() < deadline, "no {what} in time");
            self.poll(Wait::Until(deadline));
        }
        panic!("no {what} after {POLLS_MAX} polls");
    }

    fn input_len(&self) -> usize {
        self.input.values().map(Vec::len).sum()
    }

    fn ends(&self, conn: ConnId) -> &[RecvEnd] {
        self.ended.get(&conn).map_or(&[], |ends| &ends[..])
    }

    /// Whether nothing happens for a little while.
    fn quiet(&mut self) -> bool {
        let said = |rig: &Self| {
            let ends: usize = rig.ended.values().map(Vec::len).sum();
            (rig.received, ends, rig.sent.len(), rig.closed.len(), rig.accepted.len())
        };
        let before = said(self);
        let deadline = clock::now() + Duration::from_millis(20);
        while clock::now() < deadline {
            self.poll(Wait::Until(deadline));
        }
        said(self) == before
    }
}

fn local() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn pair() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind(local()).unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    theirs.set_nodelay(true).unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    (ours.into(), theirs)
}

fn out(bytes: &[u8]) -> OutBuf {
    let mut buf = OutBuf::new();
    buf.extend_from_slice(bytes);
    buf
}

/// Bytes that tell where they stand.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

fn accepts_and_answers<B: Open>() {
    let mut rig = Rig::<B>::new(&small_settings());
    let listener = socket::listen(local(), 1, 16).unwrap().remove(0);
    let addr = listener.local_addr().unwrap();
    rig.backend.add_listener(listener).unwrap();
    rig.poll(Wait::None);
    let mut clients: Vec<_> = (0..3).map(|_| TcpStream::connect(addr).unwrap()).collect();
    rig.until("connections", |rig| rig.accepted.len() == 3);
    for (i, socket) in std::mem::take(&mut rig.accepted).into_iter().enumerate() {
        rig.backend.add_socket(conn(i as u32, 0), socket).unwrap();
        rig.backend.recv(conn(i as u32, 0), RecvMode::Once);
    }
    for (i, client) in clients.iter_mut().enumerate() {
        client.write_all(format!("hello {i}").as_bytes()).unwrap();
    }
    rig.until("input", |rig| rig.input_len() == 21);
    for (conn, input) in rig.input.clone() {
        rig.backend.send(conn, out(&input), SendEnd::Awaited);
    }
    rig.until("sends", |rig| rig.sent.len() == 3);
    assert!(rig.sent.iter().all(|(_, buf, result)| result.is_ok() && buf.len() == 7));
    for (i, client) in clients.iter_mut().enumerate() {
        let mut answer = [0; 7];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, format!("hello {i}").as_bytes());
    }
    assert_eq!(rig.backend.counters().accepted, 3);
    assert_eq!(rig.backend.counters().sent_bytes, 21);
}

fn once_reads_once<B: Open>() {
    let (mut rig, mut theirs) = Rig::<B>::connected(&with_pool(4, 16));
    theirs.write_all(&pattern(100)).unwrap();
    assert!(rig.quiet(), "nothing is read before it is asked for");
    for turn in 1..=4 {
        rig.backend.recv(A, RecvMode::Once);
        rig.until("input", |rig| rig.received == turn);
        assert!(rig.quiet(), "nothing is read after it was read once");
    }
    assert_eq!(rig.input[&A], pattern(64));
}

fn input_comes_in_order_and_before_its_end<B: Open>() {
    let (mut rig, mut theirs) = Rig::<B>::connected(&with_pool(16, 256));
    rig.backend.recv(A, RecvMode::Multi);
    let writer = thread::spawn(move || {
        for piece in pattern(300_000).chunks(777) {
            theirs.write_all(piece).unwrap();
        }
        theirs.shutdown(Shutdown::Write).unwrap();
        theirs
    });
    rig.until("end", |rig| !rig.ends(A).is_empty());
    assert_eq!(rig.input[&A], pattern(300_000));
    assert!(matches!(rig.ends(A), [RecvEnd::Eof]));
    // The end is told as often as it is asked for.
    rig.backend.recv(A, RecvMode::Once);
    rig.until("second end", |rig| rig.ends(A).len() == 2);
    assert!(matches!(rig.ends(A)[1], RecvEnd::Eof));
    drop(writer.join().unwrap());
}

fn moving_to_another_backend_loses_nothing<B: Open>() {
    const LEN: usize = 400_000;
    for mode in [RecvMode::Once, RecvMode::Multi] {
        let (mut a, mut theirs) = Rig::<B>::connected(&with_pool(16, 200));
        let mut b = Rig::<B>::new(&with_pool(16, 200));
        let writer = thread::spawn(move || {
            for piece in pattern(LEN).chunks(333) {
                theirs.write_all(piece).unwrap();
            }
        });
        let mut all = Vec::new();
        for round in 0..40 {
            let (from, to) = if round % 2 == 0 { (&mut a, &mut b) } else { (&mut b, &mut a) };
            let had = from.received;
            from.backend.recv(A, mode);
            assert!(from.backend.detach(A).is_none(), "a receive is in flight");
            if round % 3 != 0 {
                from.until("input or end", |rig| rig.received > had || !rig.ends(A).is_empty());
            }
            from.backend.cancel_recv(A);
            let over = |rig: &Rig<B>| match mode {
                RecvMode::Once => rig.received > had || !rig.ends(A).is_empty(),
                RecvMode::Multi => !rig.ends(A).is_empty(),
            };
            from.until("end", over);
            all.append(&mut from.input.remove(&A).unwrap_or_default());
            from.ended.clear();
            let socket = from.backend.detach(A).expect("it is quiet");
            to.backend.add_socket(A, socket).unwrap();
        }
        a.backend.recv(A, RecvMode::Multi);
        a.until("end", |rig| !rig.ends(A).is_empty());
        all.append(&mut a.input.remove(&A).unwrap_or_default());
        assert!(all == pattern(LEN), "{} of {LEN} bytes", all.len());
        assert!(matches!(a.ends(A), [RecvEnd::Eof]));
        writer.join().unwrap();
    }
}

fn cancelling_once_ends_it_once<B: Open>() {
    let (mut rig, mut theirs) = Rig::<B>::connected(&small_settings());
    rig.backend.cancel_recv(A);
    assert!(rig.quiet(), "there was nothing to cancel");
    rig.backend.recv(A, RecvMode::Once);
    rig.poll(Wait::None);
    rig.backend.cancel_recv(A);
    rig.backend.cancel_recv(A);
    rig.until("end", |rig| !rig.ends(A).is_empty());
    assert!(rig.quiet());
    assert!(matches!(rig.ends(A), [RecvEnd::Cancelled]));
    // With data there already, it is one or the other.
    rig.ended.clear();
    theirs.write_all(b"data").unwrap();
    rig.backend.recv(A, RecvMode::Once);
    rig.backend.cancel_recv(A);
    rig.until("end", |rig| rig.received + rig.ends(A).len() > 0);
    assert!(rig.quiet());
    assert_eq!(rig.received + rig.ends(A).len(), 1);
}

fn reset(theirs: TcpStream) {
    SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).unwrap();
    drop(theirs);
}

fn a_reset_ends_the_receive<B: Open>() {
    for mode in [RecvMode::Once, RecvMode::Multi] {
        let (mut rig, theirs) = Rig::<B>::connected(&small_settings());
        rig.backend.recv(A, mode);
        rig.poll(Wait::None);
        reset(theirs);
        rig.until("end", |rig| !rig.ends(A).is_empty());
        let [RecvEnd::Error(error)] = rig.ends(A) else { panic!("{:?}", rig.ends(A)) };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        rig.backend.close(A);
        rig.until("close", |rig| !rig.closed.is_empty());
        assert!(rig.quiet());
    }
}

fn a_small_pool_serves_many<B: Open>() {
    const CONNS: usize = 40;
    const MESSAGES: usize = 150;
    let mut rig = Rig::<B>::new(&with_pool(4, 64));
    let mut theirs = Vec::new();
    for i in 0..CONNS {
        let (ours, stream) = pair();
        rig.backend.add_socket(conn(i as u32, 3), ours).unwrap();
        rig.backend.recv(conn(i as u32, 3), RecvMode::Multi);
        theirs.push(stream);
    }
    let all = pattern(37 * MESSAGES);
    let writer = thread::spawn(move || {
        for message in pattern(37 * MESSAGES).chunks(37) {
            for stream in &mut theirs {
                stream.write_all(message).unwrap();
            }
        }
    });
    rig.until("ends", |rig| rig.ended.len() == CONNS);
    writer.join().unwrap();
    for i in 0..CONNS {
        assert!(rig.input[&conn(i as u32, 3)] == all, "connection {i}");
        assert!(matches!(rig.ends(conn(i as u32, 3)), [RecvEnd::Eof]));
    }
    // Each poll got something, or found that somebody had to wait.
    assert!(rig.polls <= CONNS * MESSAGES * 4, "{} polls", rig.polls);
    let counters = rig.backend.counters();
    assert_eq!(counters.received_bytes, (CONNS * all.len()) as u64);
    assert!(counters.enobufs > 0, "{counters:?}");
}

/// Both queues of the ring overflow: submissions within a tick, completions within an entry.
fn a_tiny_ring_loses_nothing<B: Open>() {
    const CONNS: u32 = 24;
    let mut rig = Rig::<B>::new(&Settings { ring_entries: 2, ..with_pool(256, 16) });
    let mut theirs = Vec::new();
    for i in 0..CONNS {
        let (ours, mut stream) = pair();
        rig.backend.add_socket(conn(i, 0), ours).unwrap();
        stream.write_all(&pattern(6000)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        theirs.push(stream);
    }
    for i in 0..CONNS {
        rig.backend.recv(conn(i, 0), RecvMode::Multi);
        rig.backend.send(conn(i, 0), out(&pattern(100)), SendEnd::Awaited);
    }
    rig.until("ends", |rig| rig.ended.len() == CONNS as usize);
    rig.until("sends", |rig| rig.sent.len() == CONNS as usize);
    for i in 0..CONNS {
        assert!(rig.input[&conn(i, 0)] == pattern(6000), "connection {i}");
        assert!(matches!(rig.ends(conn(i, 0)), [RecvEnd::Eof]));
        rig.backend.close(conn(i, 0));
    }
    rig.until("closes", |rig| rig.closed.len() == CONNS as usize);
    for stream in &mut theirs {
        assert_eq!(read_to_end(stream), pattern(100));
    }
    let counters = rig.backend.counters();
    if rig.backend.name() == "uring" {
        assert!(counters.extra_submits > 0 && counters.overflow > 0, "{counters:?}");
    }
    assert_eq!(counters.stale, 0);
}

fn held_buffers_do_not_make_it_spin<B: Open>() {
    const CONNS: u32 = 8;
    let mut rig = Rig::<B>::new(&with_pool(4, 64));
    let mut theirs = Vec::new();
    for i in 0..CONNS {
        let (ours, mut stream) = pair();
        rig.backend.add_socket(conn(i, 0), ours).unwrap();
        rig.backend.recv(conn(i, 0), RecvMode::Multi);
        stream.write_all(&pattern(64)).unwrap();
        theirs.push(stream);
    }
    let mut held = Vec::new();
    let deadline = clock::now() + Duration::from_millis(100);
    while clock::now() < deadline {
        held.append(&mut rig.poll_holding(Wait::Until(deadline)));
    }
    assert_eq!(held.len(), 4);
    assert!(rig.polls < 40, "{} polls with nothing to do", rig.polls);
    for buf in held {
        rig.backend.release(buf);
    }
    rig.until("the rest", |rig| rig.input_len() == 64 * CONNS as usize);
}

fn a_cancel_while_starved_ends_the_receive<B: Open>() {
    let mut rig = Rig::<B>::new(&with_pool(1, 64));
    let mut theirs = Vec::new();
    for i in 0..2 {
        let (ours, mut stream) = pair();
        rig.backend.add_socket(conn(i, 0), ours).unwrap();
        rig.backend.recv(conn(i, 0), RecvMode::Multi);
        stream.write_all(b"x").unwrap();
        theirs.push(stream);
    }
    let mut held = Vec::new();
    let deadline = clock::now() + Duration::from_millis(50);
    while clock::now() < deadline {
        held.append(&mut rig.poll_holding(Wait::Until(deadline)));
    }
    assert_eq!(held.len(), 1);
    for i in 0..2 {
        rig.backend.cancel_recv(conn(i, 0));
    }
    rig.until("ends", |rig| rig.ended.len() == 2);
    assert!(rig.ended.values().all(|ends| matches!(ends[..], [RecvEnd::Cancelled])));
    for buf in held {
        rig.backend.release(buf);
    }
    assert!(rig.quiet());
    for i in 0..2 {
        rig.backend.recv(conn(i, 0), RecvMode::Once);
    }
    rig.until("the other byte", |rig| rig.input.len() == 2);
}

fn waking_ends_the_wait<B: Open>() {
    let mut rig = Rig::<B>::new(&small_settings());
    let waker = rig.backend.waker();
    waker.wake();
    rig.poll(Wait::Forever);
    for _ in 0..20 {
        let waker = waker.clone();
        let thread = thread::spawn(move || waker.wake());
        // The ring may have been armed late and tell of an earlier one, once.
        rig.poll(Wait::Forever);
        thread.join().unwrap();
        rig.poll(Wait::None);
    }
    assert!(rig.backend.counters().wakes_received >= 10);
    drop(rig);
    waker.wake();
}

fn shards_wake_each_other<B: Open>() {
    const TURNS: u64 = 50;
    let turn = |rig: &mut Rig<B>, seen: &mut u64| {
        while rig.backend.counters().wakes_received <= *seen {
            rig.poll(Wait::Forever);
        }
        *seen = rig.backend.counters().wakes_received;
    };
    let mut here = Rig::<B>::new(&small_settings());
    let ours = here.backend.waker();
    let (sender, receiver) = mpsc::channel();
    let (finish, finished) = mpsc::channel();
    let other = thread::spawn(move || {
        let mut there = Rig::<B>::new(&small_settings());
        sender.send(there.backend.waker()).unwrap();
        let mut seen = 0;
        for _ in 0..TURNS {
            turn(&mut there, &mut seen);
            there.backend.wake(&ours);
        }
        there.poll(Wait::None);
        // A ring that is gone cannot be woken, so it stays until its peer is done.
        finished.recv().unwrap();
        there.backend.counters()
    });
    let theirs = receiver.recv().unwrap();
    let mut seen = 0;
    for _ in 0..TURNS {
        here.backend.wake(&theirs);
        turn(&mut here, &mut seen);
    }
    finish.send(()).unwrap();
    let there = other.join().unwrap();
    assert_eq!((here.backend.counters().wakes_sent, there.wakes_sent), (TURNS, TURNS));
    assert!(here.backend.counters().wakes_received <= TURNS + 1);
    assert_eq!(here.backend.counters().messages_failed + there.messages_failed, 0);
    // Its owner is gone; waking it is of no consequence.
    here.backend.wake(&theirs);
    here.poll(Wait::None);
    assert!(here.quiet());
}

fn waits_until_the_deadline_without_waking<B: Open>() {
    let (mut rig, _theirs) = Rig::<B>::connected(&small_settings());
    let listener = socket::listen(local(), 1, 16).unwrap().remove(0);
    rig.backend.add_listener(listener).unwrap();
    rig.backend.recv(A, RecvMode::Multi);
    rig.poll(Wait::None);
    rig.poll(Wait::None);
    let before = rig.backend.counters().enters;
    let deadline = clock::now() + Duration::from_millis(60);
    rig.poll(Wait::Until(deadline));
    assert!(clock::now() >= deadline);
    assert_eq!(rig.backend.counters().enters, before + 1);
    // A deadline that has passed is none.
    rig.poll(Wait::Until(Time::ZERO));
}

fn input_ages_until_it_is_read_and_after<B: Open>() {
    let (mut rig, mut theirs) = Rig::<B>::connected(&small_settings());
    theirs.write_all(b"late").unwrap();
    let later = clock::now() + Duration::from_millis(100);
    while clock::now() < later {
        rig.poll(Wait::Until(later));
    }
    rig.backend.recv(A, RecvMode::Once);
    rig.until("input", |rig| rig.received == 1);
    let age = rig.backend.input_age(A);
    assert!(age >= Duration::from_millis(50), "at least {age:?}");
    assert_eq!(rig.backend.input_age(conn(9, 9)), Duration::ZERO);
}

fn a_slot_is_used_again<B: Open>() {
    let (mut rig, mut theirs) = Rig::<B>::connected(&small_settings());
    for generation in 1..50 {
        let (old, new) = (conn(0, generation), conn(0, generation + 1));
        rig.backend.recv(old, RecvMode::Multi);
        rig.backend.send(old, out(b"old"), SendEnd::Awaited);
        theirs.write_all(b"data").unwrap();
        if generation % 2 == 0 {
            rig.poll(Wait::None);
        }
        rig.backend.close(old);
        rig.until("close", |rig| rig.closed.contains(&old));
        let (ours, stream) = pair();
        theirs = stream;
        rig.backend.add_socket(new, ours).unwrap();
        // The old name does nothing.
        rig.backend.recv(old, RecvMode::Multi);
        rig.backend.send(old, out(b"old"), SendEnd::Awaited);
        rig.backend.close(old);
        assert!(rig.backend.detach(old).is_none());
    }
    let last = conn(0, 50);
    rig.backend.recv(last, RecvMode::Once);
    theirs.write_all(b"new").unwrap();
    rig.until("input", |rig| rig.input.contains_key(&last));
    assert_eq!(rig.input[&last], b"new");
    assert_eq!(rig.closed.len(), 49);
}

fn a_removed_listener_refuses<B: Open>() {
    let mut rig = Rig::<B>::new(&small_settings());
    let listener = socket::listen(local(), 1, 16).unwrap().remove(0);
    let addr = listener.local_addr().unwrap();
    let id = rig.backend.add_listener(listener).unwrap();
    rig.poll(Wait::None);
    rig.backend.remove_listener(id);
    rig.backend.remove_listener(id);
    rig.poll(Wait::None);
    assert!(rig.quiet());
    assert!(TcpStream::connect(addr).is_err());
    let listener = socket::listen(addr, 1, 16).unwrap().remove(0);
    assert_ne!(rig.backend.add_listener(listener).unwrap(), id);
    drop(TcpStream::connect(addr).unwrap());
    rig.until("connection", |rig| rig.accepted.len() == 1);
}

fn many_connections_in_few_polls<B: Open>() {
    const CONNS: usize = 500;
    let mut rig = Rig::<B>::new(&with_pool(1024, 64));
    let mut theirs = Vec::new();
    for i in 0..CONNS {
        let (ours, stream) = pair();
        rig.backend.add_socket(conn(i as u32, 0), ours).unwrap();
        rig.backend.recv(conn(i as u32, 0), RecvMode::Multi);
        theirs.push(stream);
    }
    rig.poll(Wait::None);
    for stream in &mut theirs {
        stream.write_all(b"0123456789").unwrap();
    }
    rig.polls = 0;
    rig.until("input", |rig| rig.input_len() == 10 * CONNS);
    assert!(rig.polls <= 3, "{} polls for {CONNS} ready connections", rig.polls);
    for i in 0..CONNS {
        rig.backend.send(conn(i as u32, 0), out(b"9876543210"), SendEnd::Awaited);
    }
    rig.polls = 0;
    rig.until("sends", |rig| rig.sent.len() == CONNS);
    assert!(rig.polls <= 3, "{} polls for {CONNS} sends", rig.polls);
}

fn dropping_it_closes_its_connections<B: Open>() {
    let (mut rig, mut theirs) = Rig::<B>::connected(&small_settings());
    let (ours, mut other) = pair();
    rig.backend.add_socket(conn(1, 0), ours).unwrap();
    rig.backend.recv(A, RecvMode::Multi);
    rig.backend.send(A, out(&pattern(16 * 1024 * 1024)), SendEnd::Awaited);
    rig.poll(Wait::None);
    drop(rig);
    let mut got = Vec::new();
    let _ = theirs.read_to_end(&mut got);
    assert!(got.len() < 16 * 1024 * 1024);
    assert_eq!(read_to_end(&mut other), b"");
}

/// Does one file operation to its end.
fn file<B: Open>(rig: &mut Rig<B>, op: FileOp) -> FileDone {
    rig.backend.file(op);
    rig.until("end of a file operation", |rig| !rig.files.is_empty());
    assert_eq!(rig.files.len(), 1);
    rig.files.remove(0)
}

fn block(byte: u8, len: usize) -> BlockBuf {
    let mut buf = BlockBuf::zeroed(len);
    buf.as_mut_slice().fill(byte);
    buf
}

const FILE: FileId = FileId(3);

/// On the disk, and on a file system that has nothing but a page cache.
fn files_are_written_and_read<B: Open>() {
    let mut folders = vec![tempfile::tempdir().unwrap()];
    folders.extend(tempfile::tempdir_in("/dev/shm").ok());
    for folder in folders {
        let mut rig = Rig::<B>::new(&small_settings());
        let path = folder.path().join("f");
        let open = FileOp::Open { file: FILE, path: path.clone(), create: true };
        file(&mut rig, open).result.unwrap();
        for (sync, byte) in [(false, 1), (true, 2)] {
            let buf = block(byte, 3 * BLOCK);
            let write = FileOp::Write { file: FILE, offset: BLOCK as u64, buf, from: BLOCK, sync };
            let done = file(&mut rig, write);
            assert_eq!(done.result.unwrap(), 2 * BLOCK);
            let FileOp::Write { buf, .. } = done.op else { panic!("another operation") };
            assert_eq!(buf.as_slice(), [byte; 3 * BLOCK], "the buffer comes back");
        }
        file(&mut rig, FileOp::Sync { file: FILE }).result.unwrap();
        file(&mut rig, FileOp::SyncDir { path: folder.path().to_owned() }).result.unwrap();
        let expected = [[0; BLOCK], [2; BLOCK], [2; BLOCK]].concat();
        assert_eq!(std::fs::read(&path).unwrap(), expected);
        let read = FileOp::Read { file: FILE, offset: 2 * BLOCK as u64, buf: block(9, 2 * BLOCK) };
        let done = file(&mut rig, read);
        assert_eq!(done.result.unwrap(), BLOCK, "up to the end");
        let FileOp::Read { buf, .. } = done.op else { panic!("another operation") };
        assert_eq!(buf.as_slice()[..BLOCK], [2; BLOCK]);
        file(&mut rig, FileOp::Remove { file: FILE, path: path.clone() }).result.unwrap();
        assert!(!path.exists());
        assert_eq!(rig.backend.counters().file_ops, 7);
    }
}

fn a_file_operation_that_cannot_be_done_says_so<B: Open>() {
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::<B>::new(&small_settings());
    let path = folder.path().join("none");
    let missing = FileOp::Open { file: FILE, path: path.clone(), create: false };
    assert_eq!(file(&mut rig, missing).result.unwrap_err().kind(), ErrorKind::NotFound);
    let write = FileOp::Write { file: FILE, offset: 0, buf: block(1, BLOCK), from: 0, sync: true };
    assert_eq!(file(&mut rig, write).result.unwrap_err().raw_os_error(), Some(libc::EBADF));
    let removed = file(&mut rig, FileOp::Remove { file: FILE, path });
    assert_eq!(removed.result.unwrap_err().kind(), ErrorKind::NotFound);
    // A device that is always full.
    let full = FileOp::Open { file: FILE, path: "/dev/full".into(), create: false };
    file(&mut rig, full).result.unwrap();
    let write = FileOp::Write { file: FILE, offset: 0, buf: block(1, BLOCK), from: 0, sync: false };
    assert_eq!(file(&mut rig, write).result.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(rig.backend.counters().file_errors, 4);
}

fn a_write_under_way_is_finished_when_the_backend_is_dropped<B: Open>() {
    const LEN: usize = 8 * 1024 * 1024;
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::<B>::new(&small_settings());
    let path = folder.path().join("f");
    file(&mut rig, FileOp::Open { file: FILE, path: path.clone(), create: true }).result.unwrap();
    let buf = block(7, LEN);
    rig.backend.file(FileOp::Write { file: FILE, offset: 0, buf, from: 0, sync: true });
    rig.poll(Wait::None);
    drop(rig);
    assert_eq!(std::fs::read(&path).unwrap(), vec![7; LEN]);
}

/// A poll that waits for ever ends when the operation does.
fn the_end_of_a_file_operation_ends_the_wait<B: Open>() {
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::<B>::new(&small_settings());
    let open = FileOp::Open { file: FILE, path: folder.path().join("f"), create: true };
    rig.backend.file(open);
    for round in 0..50 {
        while rig.files.is_empty() {
            rig.poll(Wait::Forever);
        }
        rig.files.clear();
        let (offset, buf) = (round * BLOCK as u64, block(1, BLOCK));
        rig.backend.file(FileOp::Write { file: FILE, offset, buf, from: 0, sync: true });
    }
    assert!(rig.polls < 1000, "{} polls", rig.polls);
}

/// In a process of its own, because it uses up the descriptors.
fn turns_peers_away_without_descriptors<B: Open>() {
    const VARIABLE: &str = "NOCTULE_TEST_WITHOUT_DESCRIPTORS";
    let backend = Rig::<B>::new(&small_settings()).backend.name();
    if std::env::var_os(VARIABLE).is_none() {
        let name = format!("io::tests::on_{backend}::turns_peers_away_without_descriptors");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--test-threads=1", "--nocapture"])
            .env(VARIABLE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success(), "{text}{}", String::from_utf8_lossy(&child.stderr));
        assert!(text.contains("1 passed"), "{text}");
        return;
    }
    // First of all: io_uring notes the limit when an accept is submitted.
    let limit = rustix::process::Rlimit { current: Some(100), maximum: Some(100) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let mut rig = Rig::<B>::new(&small_settings());
    let listener = socket::listen(local(), 1, 64).unwrap().remove(0);
    let addr = listener.local_addr().unwrap();
    rig.backend.add_listener(listener).unwrap();
    rig.poll(Wait::None);
    let mut clients: Vec<_> = (0..10).map(|_| TcpStream::connect(addr).unwrap()).collect();
    let hoard: Vec<_> = std::iter::from_fn(|| rustix::io::dup(&clients[0]).ok()).collect();
    rig.until("peers turned away", |rig| rig.backend.counters().emfile == 10);
    assert!(rig.accept_failed >= 1 && rig.accepted.is_empty());
    assert!(rig.polls < 30, "{} polls", rig.polls);
    for client in &mut clients[1..] {
        assert_eq!(read_to_end(client), b"");
    }
    let polls = rig.polls;
    assert!(rig.quiet());
    assert!(rig.polls - polls < 5, "it must not spin");
    drop((hoard, clients));
    let _client = TcpStream::connect(addr).unwrap();
    rig.until("connection", |rig| rig.accepted.len() == 1);
}
