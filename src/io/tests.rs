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

mod connections;
mod files;
mod receiving;
mod sending;
mod waiting;

use connections::*;
use files::*;
use receiving::*;
use sending::*;
use waiting::*;

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

/// Each test on both backends, in a module for each.
macro_rules! contract {
    ($on_epoll:ident: $epoll:ty, $on_uring:ident: $uring:ty; $($name:ident),* $(,)?) => {
        mod $on_epoll {
            use super::*;
            $(#[test] fn $name() { super::$name::<$epoll>(); })*
        }
        mod $on_uring {
            use super::*;
            $(#[test] fn $name() {
                if uring_works() {
                    super::$name::<$uring>();
                }
            })*
        }
    };
}

// What does not count polls or buffers.
contract! {
    on_epoll_with_faults: Fault<Epoll>, on_uring_with_faults: Fault<Uring>;
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

contract! {
    on_epoll: Epoll, on_uring: Uring;
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
    looks_before_it_sleeps,
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
    what_is_prepared_keeps_no_write_waiting,
    the_end_of_a_file_operation_ends_the_wait,
    turns_peers_away_without_descriptors,
}

fn small_settings() -> Settings {
    Settings {
        ring_entries: 64,
        uring_pool: PoolSize { count: 64, bytes: 1024 },
        epoll_pool: PoolSize { count: 64, bytes: 1024 },
        spin: Duration::ZERO,
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
