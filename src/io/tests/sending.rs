//! Sending, and what follows it.
#![forbid(unsafe_code)]

use super::*;

/// Whether its end is awaited makes no difference but to when it is told.
fn for_both(check: impl Fn(SendEnd)) {
    check(SendEnd::Awaited);
    check(SendEnd::Unawaited);
}

pub(super) fn a_large_send_to_a_slow_reader_arrives_whole<B: Open>() {
    for_both(|end| a_large_send_to_a_slow_reader_arrives_whole_of::<B>(end));
}

fn a_large_send_to_a_slow_reader_arrives_whole_of<B: Open>(end: SendEnd) {
    const LEN: usize = 8 * 1024 * 1024;
    let (mut rig, mut theirs) = Rig::<B>::connected(&small_settings());
    let all = pattern(LEN);
    let mut buf = OutBuf::new();
    // More pieces than go at once.
    for piece in all.chunks(30_000) {
        let (copied, shared) = piece.split_at(piece.len() / 3);
        buf.extend_from_slice(copied);
        buf.push_shared(Bytes::copy_from_slice(shared));
    }
    rig.backend.send(A, buf, end);
    rig.poll(Wait::None);
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        let mut piece = vec![0; 65_536];
        while got.len() < LEN {
            let n = theirs.read(&mut piece).unwrap();
            assert!(n > 0);
            got.extend_from_slice(&piece[..n]);
            thread::yield_now();
        }
        (got, theirs)
    });
    rig.until("send", |rig| rig.sent.len() == 1);
    let (got, mut theirs) = reader.join().unwrap();
    assert!(got == all);
    // And contiguous, after it.
    let (_, mut buf, result) = rig.sent.pop().unwrap();
    result.unwrap();
    assert_eq!(buf.len(), LEN);
    buf.clear();
    buf.extend_from_slice(&all);
    rig.backend.send(A, buf, end);
    let reader = thread::spawn(move || {
        let mut got = vec![0; LEN];
        theirs.read_exact(&mut got).unwrap();
        got
    });
    rig.until("send", |rig| rig.sent.len() == 1);
    assert!(reader.join().unwrap() == all);
    assert!(rig.sent[0].2.is_ok());
}

pub(super) fn a_second_send_or_receive_panics<B: Open>() {
    let end = SendEnd::Awaited;
    let (mut rig, _theirs) = Rig::<B>::connected(&small_settings());
    rig.backend.recv(A, RecvMode::Multi);
    rig.backend.send(A, out(&pattern(100)), end);
    let twice = catch_unwind(AssertUnwindSafe(|| rig.backend.send(A, out(b"x"), end)));
    assert!(twice.is_err());
    let twice = catch_unwind(AssertUnwindSafe(|| rig.backend.recv(A, RecvMode::Once)));
    assert!(twice.is_err());
    rig.until("send", |rig| rig.sent.len() == 1);
}

pub(super) fn close_with_an_armed_receive_sends_fin<B: Open>() {
    let end = SendEnd::Awaited;
    for mode in [None, Some(RecvMode::Once), Some(RecvMode::Multi)] {
        let (mut rig, mut theirs) = Rig::<B>::connected(&small_settings());
        if let Some(mode) = mode {
            rig.backend.recv(A, mode);
        }
        rig.poll(Wait::None);
        rig.backend.send(A, out(b"last words"), end);
        rig.until("send", |rig| rig.sent.len() == 1);
        rig.backend.close(A);
        rig.backend.close(A);
        rig.until("close", |rig| !rig.closed.is_empty());
        assert_eq!(read_to_end(&mut theirs), b"last words");
        assert!(rig.quiet());
        assert_eq!(rig.closed, [A]);
        assert!(rig.ends(A).is_empty(), "only Closed comes after close");
    }
}

pub(super) fn close_ends_a_stuck_send<B: Open>() {
    for_both(|end| close_ends_a_stuck_send_of::<B>(end));
}

fn close_ends_a_stuck_send_of<B: Open>(end: SendEnd) {
    let (mut rig, mut theirs) = Rig::<B>::connected(&small_settings());
    rig.backend.recv(A, RecvMode::Multi);
    rig.backend.send(A, out(&pattern(32 * 1024 * 1024)), end);
    assert!(rig.quiet(), "nobody reads");
    rig.backend.close(A);
    rig.until("close", |rig| !rig.closed.is_empty());
    assert!(rig.sent.is_empty() && rig.ends(A).is_empty());
    let mut got = Vec::new();
    // A part of it, and then the end, one way or the other.
    let _ = theirs.read_to_end(&mut got);
    assert!(got.len() < 32 * 1024 * 1024);
    assert!(pattern(32 * 1024 * 1024).starts_with(&got));
}

pub(super) fn fin_follows_the_send_in_flight<B: Open>() {
    for_both(|end| fin_follows_the_send_in_flight_of::<B>(end));
}

fn fin_follows_the_send_in_flight_of<B: Open>(end: SendEnd) {
    const LEN: usize = 4 * 1024 * 1024;
    let (mut rig, mut theirs) = Rig::<B>::connected(&small_settings());
    rig.backend.recv(A, RecvMode::Multi);
    rig.backend.send(A, out(&pattern(LEN)), end);
    rig.poll(Wait::None);
    rig.backend.shutdown_write(A);
    let reader = thread::spawn(move || {
        let all = read_to_end(&mut theirs);
        theirs.write_all(b"still here").unwrap();
        all
    });
    rig.until("end", |rig| !rig.ends(A).is_empty());
    assert!(reader.join().unwrap() == pattern(LEN));
    assert_eq!(rig.sent.len(), 1);
    assert!(rig.sent[0].2.is_ok());
    assert_eq!(rig.input[&A], b"still here");
    assert!(matches!(rig.ends(A), [RecvEnd::Eof]));
}

pub(super) fn a_send_to_a_reset_peer_fails<B: Open>() {
    for_both(|end| a_send_to_a_reset_peer_fails_of::<B>(end));
}

fn a_send_to_a_reset_peer_fails_of<B: Open>(end: SendEnd) {
    let (mut rig, theirs) = Rig::<B>::connected(&small_settings());
    let mut buf = out(&pattern(20 * 1024 * 1024));
    buf.push_shared(Bytes::from_static(b"piece"));
    rig.backend.send(A, buf, end);
    assert!(rig.quiet(), "nobody reads");
    reset(theirs);
    rig.until("send", |rig| !rig.sent.is_empty());
    let (_, buf, result) = rig.sent.pop().unwrap();
    assert_eq!(buf.len(), 20 * 1024 * 1024 + 5);
    assert!(result.is_err());
}

/// The answer to it is what the wait ends with.
pub(super) fn a_send_that_nobody_awaits_does_not_end_the_wait<B: Open>() {
    let (mut rig, mut theirs) = Rig::<B>::connected(&small_settings());
    rig.backend.recv(A, RecvMode::Multi);
    rig.poll(Wait::None);
    let peer = thread::spawn(move || {
        for _ in 0..100 {
            let mut question = [0; 100];
            theirs.read_exact(&mut question).unwrap();
            theirs.write_all(&question[..50]).unwrap();
        }
        theirs
    });
    for turn in 1..=100 {
        let (buf, before) = (rig.sent.pop().map(|(_, buf, _)| buf), rig.polls);
        let buf = buf.unwrap_or_else(|| out(&pattern(100)));
        rig.backend.send(A, buf, SendEnd::Unawaited);
        rig.until("answer", |rig| rig.input_len() >= 50 * turn);
        assert_eq!(rig.sent.len(), 1, "its end is told with the answer");
        assert_eq!(rig.polls - before, 1, "which is all that the poll waits for");
    }
    drop(peer.join().unwrap());
}

/// One that has to go on later holds up no other: what its connection has to say next would wait for
/// an end that nobody tells.
pub(super) fn a_send_that_is_stuck_hides_no_other_s_end<B: Open>() {
    let (mut rig, theirs) = Rig::<B>::connected(&small_settings());
    let (ours, other) = pair();
    let b = conn(1, 1);
    rig.backend.add_socket(b, ours).unwrap();
    rig.backend.send(A, out(&pattern(32 * 1024 * 1024)), SendEnd::Unawaited);
    rig.backend.send(b, out(b"x"), SendEnd::Unawaited);
    rig.poll(Wait::None);
    assert!(rig.sent.iter().any(|(conn, ..)| *conn == b), "it is over, and that is told");
    drop((theirs, other));
}

/// Whoever closes, or ends the stream, waits for nothing else.
pub(super) fn what_follows_a_send_does_not_wait_for_others<B: Open>() {
    let (mut rig, mut theirs) = Rig::<B>::connected(&small_settings());
    rig.backend.recv(A, RecvMode::Multi);
    rig.backend.send(A, out(b"last words"), SendEnd::Unawaited);
    rig.backend.shutdown_write(A);
    let reader = thread::spawn(move || (read_to_end(&mut theirs), theirs));
    rig.until("send", |rig| rig.sent.len() == 1);
    let (words, theirs) = reader.join().unwrap();
    assert_eq!(words, b"last words");
    drop(theirs);
    rig.until("end", |rig| !rig.ends(A).is_empty());

    let (mut rig, mut theirs) = Rig::<B>::connected(&small_settings());
    rig.backend.recv(A, RecvMode::Multi);
    rig.backend.send(A, out(b"never mind"), SendEnd::Unawaited);
    rig.backend.close(A);
    let reader = thread::spawn(move || theirs.read_to_end(&mut Vec::new()));
    rig.until("close", |rig| !rig.closed.is_empty());
    assert!(rig.sent.is_empty(), "only Closed comes after close");
    let _ = reader.join().unwrap();
}
