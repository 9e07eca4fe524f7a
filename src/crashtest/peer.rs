//! A client of the broker under test: the state machine of every tool of ours on a socket that does
//! not block, and one turn for many of them.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::client::{Client, Event, Options};
use crate::clock::{self, Time};
use crate::limits::CONNECT_TIMEOUT;

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) client: Client,
    socket: Option<TcpStream>,
    /// Of `client.out`.
    sent: usize,
}

impl Peer {
    pub(super) fn new(options: Options) -> Self {
        Self { client: Client::new(options), socket: None, sent: 0 }
    }

    /// Connects, and says CONNECT.
    pub(super) fn connect(&mut self, address: SocketAddr) -> io::Result<()> {
        let socket = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        (self.socket, self.sent) = (Some(socket), 0);
        self.client.connect(clock::now());
        Ok(())
    }

    pub(super) fn is_open(&self) -> bool {
        self.socket.is_some()
    }

    /// Says DISCONNECT and closes.
    pub(super) fn leave(&mut self, visitor: &mut impl FnMut(&mut Client, Event<'_>)) {
        self.client.disconnect(clock::now(), crate::codec::mqtt::ReasonCode::NORMAL_DISCONNECTION);
        self.send();
        self.close(visitor);
    }

    /// The broker was killed: reads what it had sent, to the end of the connection; whether that
    /// came. A ring may hold a socket for a moment longer than its process lives.
    pub(super) fn lose(&mut self, visitor: &mut impl FnMut(&mut Client, Event<'_>)) -> bool {
        let give_up = clock::now() + CONNECT_TIMEOUT;
        while let Some(socket) = &self.socket {
            let time = Timespec::try_from(Duration::from_millis(100)).ok();
            // A signal may cut it short.
            let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], time.as_ref());
            self.receive(visitor);
            if clock::now() > give_up {
                self.close(visitor);
                return false;
            }
        }
        true
    }

    fn close(&mut self, visitor: &mut impl FnMut(&mut Client, Event<'_>)) {
        if self.socket.take().is_some() {
            self.client.handle_closed(visitor);
        }
    }

    fn send(&mut self) {
        let Some(socket) = &mut self.socket else { return };
        while self.sent < self.client.out.len() {
            match socket.write(&self.client.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Full, or broken: reading shows which.
                Err(_) => return,
            }
        }
        self.client.out.clear();
        self.sent = 0;
    }

    fn receive(&mut self, visitor: &mut impl FnMut(&mut Client, Event<'_>)) {
        let Some(socket) = &mut self.socket else { return };
        let mut bytes = [0; READ_BYTES];
        match socket.read(&mut bytes) {
            Ok(0) => self.close(visitor),
            Ok(count) => {
                self.client.handle_bytes(clock::now(), &bytes[..count], visitor);
                if self.client.is_over() {
                    self.close(visitor);
                }
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.close(visitor),
        }
    }
}

/// Sends what there is, waits until something happens or it is `until`, and handles it; the visitor
/// is told which of the peers it is.
pub(super) fn turn<'a>(
    peers: impl Iterator<Item = (usize, &'a mut Peer)>,
    until: Time,
    visitor: &mut impl FnMut(usize, &mut Client, Event<'_>),
) -> io::Result<()> {
    let mut open: Vec<(usize, &mut Peer)> = peers.filter(|(_, peer)| peer.is_open()).collect();
    for (_, peer) in &mut open {
        peer.send();
    }
    let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(open.len());
    for (_, peer) in &open {
        let wanted =
            if peer.client.out.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        fds.extend(peer.socket.as_ref().map(|socket| PollFd::new(socket, wanted)));
    }
    // Clients have deadlines of their own, seconds away.
    let time = until.since(clock::now()).min(Duration::from_millis(100));
    match poll(&mut fds, Timespec::try_from(time).ok().as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ready: Vec<bool> = fds.iter().map(|fd| fd.revents().intersects(!PollFlags::OUT)).collect();
    drop(fds);
    for ((index, peer), is_ready) in open.into_iter().zip(ready) {
        let mut visitor = |client: &mut Client, event: Event<'_>| visitor(index, client, event);
        if is_ready {
            peer.receive(&mut visitor);
        }
        peer.client.handle_timeout(clock::now(), &mut visitor);
        if peer.client.is_over() {
            peer.close(&mut visitor);
        }
    }
    Ok(())
}
