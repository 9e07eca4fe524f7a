//! Receiving, from the first byte to the end, and out of few buffers.
#![forbid(unsafe_code)]

use super::*;

pub(super) fn once_reads_once<B: Open>() {
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

pub(super) fn input_comes_in_order_and_before_its_end<B: Open>() {
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

pub(super) fn moving_to_another_backend_loses_nothing<B: Open>() {
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

pub(super) fn cancelling_once_ends_it_once<B: Open>() {
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

pub(super) fn reset(theirs: TcpStream) {
    SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).unwrap();
    drop(theirs);
}

pub(super) fn a_reset_ends_the_receive<B: Open>() {
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

pub(super) fn a_small_pool_serves_many<B: Open>() {
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
pub(super) fn a_tiny_ring_loses_nothing<B: Open>() {
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

pub(super) fn held_buffers_do_not_make_it_spin<B: Open>() {
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

pub(super) fn a_cancel_while_starved_ends_the_receive<B: Open>() {
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

pub(super) fn input_ages_until_it_is_read_and_after<B: Open>() {
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
