//! Connections: from the listener to the slot that is used again.
#![forbid(unsafe_code)]

use super::*;

pub(super) fn accepts_and_answers<B: Open>() {
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

pub(super) fn a_slot_is_used_again<B: Open>() {
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

pub(super) fn a_removed_listener_refuses<B: Open>() {
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

pub(super) fn dropping_it_closes_its_connections<B: Open>() {
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

/// In a process of its own, because it uses up the descriptors.
pub(super) fn turns_peers_away_without_descriptors<B: Open>() {
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
