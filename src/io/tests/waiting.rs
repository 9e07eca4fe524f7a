//! What ends a wait, and how many polls things take.
#![forbid(unsafe_code)]

use super::*;

pub(super) fn waking_ends_the_wait<B: Open>() {
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

pub(super) fn shards_wake_each_other<B: Open>() {
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

pub(super) fn waits_until_the_deadline_without_waking<B: Open>() {
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

/// With time to look before it sleeps: what comes ends that, and so does the deadline, and a wake.
pub(super) fn looks_before_it_sleeps<B: Open>() {
    let settings = Settings { spin: Duration::from_millis(100), ..small_settings() };
    let (mut rig, mut theirs) = Rig::<B>::connected(&settings);
    rig.backend.recv(A, RecvMode::Multi);
    for count in 1..=60 {
        theirs.write_all(b"x").unwrap();
        rig.until("input", |rig| rig.input_len() == count);
        rig.backend.send(A, out(b"y"), SendEnd::Awaited);
        let mut answer = [0];
        rig.until("the send", |rig| rig.sent.len() == count);
        theirs.read_exact(&mut answer).unwrap();
    }
    let deadline = clock::now() + Duration::from_millis(20);
    rig.poll(Wait::Until(deadline));
    assert!(clock::now() >= deadline);
    let (waker, seen) = (rig.backend.waker(), rig.backend.counters().wakes_received);
    let thread = thread::spawn(move || waker.wake());
    while rig.backend.counters().wakes_received == seen {
        rig.poll(Wait::Forever);
    }
    thread.join().unwrap();
}

pub(super) fn many_connections_in_few_polls<B: Open>() {
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
