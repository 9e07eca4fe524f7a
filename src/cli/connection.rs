//! One client on one TCP connection, driven by `poll`: what `pub`, `sub` and `rr` run on.
//!
//! The socket does not block, so that a server which waits for us to read never waits for ever.
//! The exit codes of the three commands are those of [`Failure`].
#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::connect::Target;
use crate::client::{Client, Ending, Event, Options};
use crate::clock::{self, Time};
use crate::codec::mqtt::{ReasonCode, Version};
use crate::limits::{CLOSE_FLUSH, CLOSE_LINGER, CONNECT_TIMEOUT};

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;
/// Exit code of a second interrupt: 128 and the signal's number, as shells count.
const EXIT_KILLED: i32 = 130;

/// Why a command ends otherwise than well: its exit code, and a line for the user.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u8,
    message: String,
}

impl Failure {
    /// The network, the system, a broken protocol.
    pub(super) const FAILED: u8 = 1;
    /// What the user can correct.
    pub(super) const USAGE: u8 = 2;

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { code: Self::USAGE, message: message.into() }
    }

    /// The time that `-W` gave is over.
    pub(super) fn timeout(message: impl Into<String>) -> Self {
        Self { code: 27, message: message.into() }
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self { code: Self::FAILED, message: message.into() }
    }

    /// The server said no: its code is ours. The return codes of a 3.x CONNACK are 1 to 5, those of
    /// 5.0 are from 128 on.
    pub(super) fn refused(reason: ReasonCode, message: impl Into<String>) -> Self {
        Self { code: reason.0, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

/// SIGINT and SIGTERM as a readable descriptor. The second one exits at once.
#[derive(Debug)]
pub(super) struct Interrupt {
    pipe: UnixStream,
    seen: bool,
}

impl Interrupt {
    pub(super) fn install() -> io::Result<Self> {
        let armed = Arc::new(AtomicBool::new(false));
        let (pipe, sender) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal arms what the second one runs into.
            let armed = Arc::clone(&armed);
            signal_hook::flag::register_conditional_shutdown(
                signal,
                EXIT_KILLED,
                Arc::clone(&armed),
            )?;
            signal_hook::flag::register(signal, armed)?;
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        Ok(Self { pipe, seen: false })
    }

    /// Waits; whether a signal came, now or earlier.
    pub(super) fn wait(&mut self, time: Duration) -> io::Result<bool> {
        if !self.seen {
            let mut fds = [PollFd::new(&self.pipe, PollFlags::IN)];
            wait_for(&mut fds, Some(time))?;
            self.seen = !fds[0].revents().is_empty();
        }
        Ok(self.seen)
    }
}

/// What a turn found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    /// The other input can be read.
    pub(super) input: bool,
    /// The user wants to stop.
    pub(super) interrupted: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Client,
    target: Target,
    bind: Option<IpAddr>,
    socket: Option<TcpStream>,
    interrupt: Interrupt,
    read: Vec<u8>,
    /// Of `client.out`.
    sent: usize,
    /// When to stop trying to send the rest of a connection that is over.
    give_up: Option<Time>,
    /// Why the network closed.
    lost: Option<io::Error>,
}

impl Connection {
    /// Connects, and says CONNECT.
    pub(super) fn open(
        target: Target,
        bind: Option<IpAddr>,
        options: Options,
    ) -> Result<Self, Failure> {
        let mut connection = Self {
            client: Client::new(options),
            target,
            bind,
            socket: None,
            interrupt: Interrupt::install()?,
            read: vec![0; READ_BYTES],
            sent: 0,
            give_up: None,
            lost: None,
        };
        connection.reopen()?;
        Ok(connection)
    }

    /// Connects again, with the same session.
    pub(super) fn reopen(&mut self) -> Result<(), Failure> {
        self.socket = Some(dial(&self.target, self.bind)?);
        self.sent = 0;
        self.give_up = None;
        self.lost = None;
        self.client.connect(clock::now());
        Ok(())
    }

    /// Whether it is to be driven on.
    pub(super) fn is_open(&self) -> bool {
        self.socket.is_some()
    }

    /// Waits without a connection; whether the user wants to stop.
    pub(super) fn pause(&mut self, time: Duration) -> Result<bool, Failure> {
        Ok(self.interrupt.wait(time)?)
    }

    /// Sends what there is, waits until something happens (at most until `until`), and handles it.
    /// `input` is another descriptor to wait for.
    pub(super) fn turn(
        &mut self,
        until: Option<Time>,
        input: Option<BorrowedFd<'_>>,
        visitor: &mut impl FnMut(&mut Client, Event<'_>),
    ) -> Result<Turn, Failure> {
        self.send(visitor);
        let Some(socket) = &self.socket else { return Ok(Turn::default()) };
        let sending = !self.client.out.is_empty();
        let mut now = clock::now();
        if self.client.is_over() {
            let give_up = *self.give_up.get_or_insert(now + CLOSE_FLUSH);
            if !sending || now >= give_up {
                self.close(visitor);
                return Ok(Turn::default());
            }
        }
        let deadline =
            [until, self.client.next_deadline(), self.give_up].into_iter().flatten().min();
        let wanted = if sending { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds = vec![PollFd::new(socket, wanted)];
        let asks = !self.interrupt.seen;
        if asks {
            fds.push(PollFd::new(&self.interrupt.pipe, PollFlags::IN));
        }
        if let Some(input) = input {
            fds.push(PollFd::from_borrowed_fd(input, PollFlags::IN));
        }
        wait_for(&mut fds, deadline.map(|deadline| deadline.since(now)))?;
        let readable = fds[0].revents().intersects(!PollFlags::OUT);
        let interrupted = asks && !fds[1].revents().is_empty();
        let input = input.is_some() && !fds[fds.len() - 1].revents().is_empty();
        drop(fds);
        self.interrupt.seen |= interrupted;
        now = clock::now();
        if readable {
            self.receive(now, visitor);
        }
        self.client.handle_timeout(now, visitor);
        Ok(Turn { input, interrupted })
    }

    fn send(&mut self, visitor: &mut impl FnMut(&mut Client, Event<'_>)) {
        let Some(socket) = &mut self.socket else { return };
        while self.sent < self.client.out.len() {
            match socket.write(&self.client.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What the server said before it closed is still to be read.
                Err(error) => {
                    self.lost.get_or_insert(error);
                    self.client.out.clear();
                    self.sent = 0;
                    self.receive(clock::now(), visitor);
                    self.fail(visitor);
                    return;
                }
            }
        }
        self.client.out.clear();
        self.client.out.shrink_to(READ_BYTES);
        self.sent = 0;
    }

    fn receive(&mut self, now: Time, visitor: &mut impl FnMut(&mut Client, Event<'_>)) {
        let Some(socket) = &mut self.socket else { return };
        match socket.read(&mut self.read) {
            Ok(0) => self.fail(visitor),
            Ok(count) => self.client.handle_bytes(now, &self.read[..count], visitor),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => {
                self.lost.get_or_insert(error);
                self.fail(visitor);
            }
        }
    }

    /// The network is gone.
    fn fail(&mut self, visitor: &mut impl FnMut(&mut Client, Event<'_>)) {
        self.socket = None;
        self.client.handle_closed(visitor);
    }

    /// Our end is sent. Closing with unread input would make the kernel send a reset, which can
    /// overtake our DISCONNECT: so reads until the server closes, for a while.
    fn close(&mut self, visitor: &mut impl FnMut(&mut Client, Event<'_>)) {
        if let Some(mut socket) = self.socket.take()
            && socket.shutdown(Shutdown::Write).is_ok()
        {
            let deadline = clock::now() + CLOSE_LINGER;
            loop {
                let left = deadline.since(clock::now());
                let mut fds = [PollFd::new(&socket, PollFlags::IN)];
                if left.is_zero() || !wait_for(&mut fds, Some(left)).is_ok_and(|ready| ready > 0) {
                    break;
                }
                match socket.read(&mut self.read) {
                    Ok(count) if count > 0 => {}
                    _ => break,
                }
            }
        }
        self.client.handle_closed(visitor);
    }

    /// The end of a connection, as the user is told. `None` when we asked for it.
    pub(super) fn describe(&self, ending: &Ended) -> Option<Failure> {
        let message = match &self.lost {
            Some(error) if ending.network => {
                format!("{}: {} ({error})", self.target, ending.message)
            }
            _ => format!("{}: {}", self.target, ending.message),
        };
        (!ending.requested).then_some(Failure { code: ending.code, message })
    }
}

/// An [`Ending`] that was kept.
#[derive(Debug)]
pub(super) struct Ended {
    code: u8,
    message: String,
    requested: bool,
    network: bool,
    /// Whether another connection may fare better.
    pub(super) passing: bool,
}

impl Ended {
    pub(super) fn new(ending: &Ending<'_>, version: Version) -> Self {
        let code = match ending {
            Ending::Requested => 0,
            Ending::Refused { reason, .. } if version == Version::V5 => reason.0,
            Ending::Refused { reason, .. } => reason.connack_v3(),
            Ending::Server { reason, .. } if reason.is_error() => reason.0,
            _ => Failure::FAILED,
        };
        let passing = match ending {
            Ending::Network | Ending::KeepAliveTimeout => true,
            Ending::Server { reason, .. } => matches!(
                *reason,
                ReasonCode::NORMAL_DISCONNECTION
                    | ReasonCode::SERVER_SHUTTING_DOWN
                    | ReasonCode::SERVER_BUSY
                    | ReasonCode::KEEP_ALIVE_TIMEOUT
                    | ReasonCode::MAXIMUM_CONNECT_TIME
            ),
            _ => false,
        };
        Self {
            code,
            message: ending.to_string(),
            requested: matches!(ending, Ending::Requested),
            network: matches!(ending, Ending::Network),
            passing,
        }
    }
}

/// Tries every address that the name has.
fn dial(target: &Target, bind: Option<IpAddr>) -> Result<TcpStream, Failure> {
    let cannot =
        |error: &dyn fmt::Display| Failure::failed(format!("cannot connect to {target}: {error}"));
    let addresses: Vec<SocketAddr> = (target.host.as_str(), target.port)
        .to_socket_addrs()
        .map_err(|error| cannot(&error))?
        .filter(|address| bind.is_none_or(|bind| bind.is_ipv4() == address.is_ipv4()))
        .collect();
    let mut last = None;
    for address in addresses {
        match dial_address(address, bind) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = Some(error),
        }
    }
    Err(match last {
        Some(error) => cannot(&error),
        None => cannot(&"the name has no address that can be used"),
    })
}

fn dial_address(address: SocketAddr, bind: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    if let Some(bind) = bind {
        socket.bind(&SocketAddr::new(bind, 0).into())?;
    }
    socket.connect_timeout(&address.into(), CONNECT_TIMEOUT)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// How many are ready; none also when a signal came.
fn wait_for(fds: &mut [PollFd<'_>], time: Option<Duration>) -> io::Result<usize> {
    let timespec = time.and_then(|time| Timespec::try_from(time).ok());
    match poll(fds, timespec.as_ref()) {
        Ok(ready) => Ok(ready),
        Err(rustix::io::Errno::INTR) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Reads from a descriptor that `poll` says can be read.
pub(super) fn read_fd(fd: &impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(fd.as_fd(), &mut *into) {
            Ok(count) => return Ok(count),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
