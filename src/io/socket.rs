//! Sockets and descriptors: listening, options, limits, and what to do when descriptors run out.
//!
//! One call needs unsafe code: `socket2` and `rustix` have the rest.
#![deny(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::{Resource, Rlimit};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::limits::{ACCEPTS_PER_TICK, SPARE_DESCRIPTORS};

/// Listens on `addr` with `count` sockets, one per shard: the kernel spreads new connections over
/// them (`SO_REUSEPORT`). Port 0 is chosen once, for all.
///
/// Options that accepted sockets inherit are set here, once, instead of at every accept:
/// `TCP_NODELAY`, since coalescing is ours. An IPv6 address means IPv6 only, whatever the system's
/// default, so that a configuration means the same everywhere.
///
/// # Errors
/// When the address is in use, by anybody: a group with `SO_REUSEPORT` would silently join another
/// broker of the same user, so a plain socket is tried first.
pub fn listen(addr: SocketAddr, count: usize, backlog: i32) -> io::Result<Vec<TcpListener>> {
    let first = listen_one(addr, backlog, false)?;
    if count <= 1 {
        return Ok(vec![first]);
    }
    let addr = first.local_addr()?;
    drop(first);
    (0..count).map(|_| listen_one(addr, backlog, true)).collect()
}

fn listen_one(addr: SocketAddr, backlog: i32, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // A listener that has just ended leaves connections in TIME_WAIT; they are no obstacle. A live
    // listener still is.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// Connects, with `TCP_NODELAY`, and waits for it: for tools and tests.
///
/// # Errors
/// When the peer refuses or cannot be reached.
pub fn connect(addr: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.connect(&addr.into())?;
    Ok(socket.into())
}

/// Begins to connect, with `TCP_NODELAY`, and does not wait: what is sent goes out when the peer
/// has accepted, and a failure ends the first receive or send. With a `source` the connection comes
/// from that address of this machine; each has its own 65,535 ports.
///
/// # Errors
/// When the kernel refuses at once: no route, no port, no descriptor.
pub fn begin_connect(addr: SocketAddr, source: Option<IpAddr>) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    if let Some(source) = source {
        // The port is chosen by connect, which knows that one port can serve many peers.
        bind_address_no_port(&socket);
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    match socket.connect(&addr.into()) {
        Ok(()) => Ok(socket.into()),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error),
    }
}

/// Sets `IP_BIND_ADDRESS_NO_PORT`. Without it there are fewer ports: advice.
fn bind_address_no_port(socket: impl AsFd) {
    set_int(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1);
}

/// Sets an option that is advice: one that the kernel does not know stays as it is.
fn set_int(socket: impl AsFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
    // SAFETY: the descriptor is open as long as `socket` is borrowed; the kernel reads one int.
    #[allow(unsafe_code)]
    let _ = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
}

/// The other end of a TCP socket; `None` when it is gone already or has no such address.
pub fn peer_addr(socket: impl AsFd) -> Option<SocketAddr> {
    SockRef::from(&socket).peer_addr().ok()?.as_socket()
}

/// How long ago the peer's last data reached this machine, whoever has read it when: at most this
/// long, since the kernel counts in ticks. Zero when it does not say.
pub(super) fn input_age(socket: impl AsFd) -> Duration {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as `socket` is borrowed; the kernel writes at most
    // `len` bytes to `info`, which is that long.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Duration::ZERO;
    }
    // SAFETY: all of it was zeroed, and integers have no invalid values.
    #[allow(unsafe_code)]
    let info = unsafe { info.assume_init() };
    let age = Duration::from_millis(info.tcpi_last_data_recv.into());
    age.saturating_sub(KERNEL_TICK_MAX)
}

/// The longest tick of a kernel's clock (`HZ=100`).
const KERNEL_TICK_MAX: Duration = Duration::from_millis(10);

/// `TCP_DELACK_MAX_US` of Linux 6.15, which `libc` does not name yet.
const TCP_DELACK_MAX_US: libc::c_int = 46;
/// How long an acknowledgement that is held back waits for data to ride with, in µs: the kernel's own
/// 40 ms would be felt by a peer that writes small pieces and has Nagle's algorithm on. Two ticks of
/// the kernel's clock are the least that it takes.
const DELAYED_ACK_MAX_US: libc::c_int = 10_000;

/// Sets `TCP_QUICKACK`; off, with a bound on how long an acknowledgement is held back. Failure is of no
/// consequence: it is advice.
pub(super) fn set_quick_ack(socket: impl AsFd, on: bool) {
    let _ = rustix::net::sockopt::set_tcp_quickack(&socket, on);
    if !on {
        set_int(socket, libc::IPPROTO_TCP, TCP_DELACK_MAX_US, DELAYED_ACK_MAX_US);
    }
}

/// Sends FIN. Fails only when the connection is gone, which the receive reports.
pub(super) fn shutdown_write(socket: impl AsFd) {
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
}

/// The limit of open descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// What holds now.
    pub soft: u64,
    /// What this process may raise it to.
    pub hard: u64,
}

/// Reads `RLIMIT_NOFILE`.
pub fn descriptor_limit() -> DescriptorLimit {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let or_max = |n: Option<u64>| n.unwrap_or(u64::MAX);
    DescriptorLimit { soft: or_max(limit.current), hard: or_max(limit.maximum) }
}

/// Raises the soft limit of open descriptors to the hard one, and says what holds now.
pub fn raise_descriptor_limit() -> DescriptorLimit {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
        // Refused (some sandboxes): then the old limit holds, and the caller sees it.
        let _ = rustix::process::setrlimit(Resource::Nofile, wanted);
    }
    descriptor_limit()
}

/// What a failure to accept asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AcceptTrouble {
    /// That one connection is broken, or the kernel was interrupted: go on with the next.
    Next,
    /// No descriptor left: turn the waiting peers away, with the [`Reserve`].
    NoDescriptors,
    /// Nothing we do helps: let the listener rest.
    Rest,
}

/// Classifies what accept4(2) may return. Linux passes errors of the new connection through it,
/// and its manual page says to treat those as "try again".
pub(super) fn accept_trouble(error: &io::Error) -> AcceptTrouble {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(
            Errno::INTR
            | Errno::CONNABORTED
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NONET
            | Errno::OPNOTSUPP,
        ) => AcceptTrouble::Next,
        Some(Errno::MFILE | Errno::NFILE) => AcceptTrouble::NoDescriptors,
        _ => AcceptTrouble::Rest,
    }
}

/// One descriptor kept for the day when there is none left. Without it, a listener whose backlog
/// is full of connections that cannot be accepted is ready for ever: a loop that spins, and peers
/// that wait for nothing.
///
/// It is the second line. Shards share the descriptors: what one gives up for a moment another may
/// take, and then there is nothing left to turn a peer away with. So connections stay away from the
/// limit in the first place ([`Reserve::admits`]).
pub(super) struct Reserve {
    descriptor: Option<OwnedFd>,
    /// The kernel gives the lowest free number; from this one on few are left.
    first_spare: u64,
}

/// How turning away went.
#[derive(Debug)]
pub(super) struct TurnedAway {
    /// So many peers.
    pub(super) count: usize,
    /// Whether the listener must rest, because nothing was achieved.
    pub(super) rest: bool,
    /// Whether nobody waits any more.
    pub(super) drained: bool,
}

impl Reserve {
    pub(super) fn new() -> Self {
        let limit = descriptor_limit().soft;
        let first_spare = limit - SPARE_DESCRIPTORS.min(limit / 4);
        Self { descriptor: Self::open(), first_spare }
    }

    /// Whether an accepted connection leaves descriptors for others. If not, it is to be closed.
    pub(super) fn admits(&self, socket: impl AsFd) -> bool {
        u64::try_from(socket.as_fd().as_raw_fd()).is_ok_and(|number| number < self.first_spare)
    }

    fn open() -> Option<OwnedFd> {
        rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
    }

    /// Turns away the peers that wait at `listener` (non-blocking), at most
    /// [`ACCEPTS_PER_TICK`]: the reserve is closed, its number accepts the connection, which is
    /// closed, and the reserve is opened again.
    pub(super) fn turn_away(&mut self, listener: &TcpListener) -> TurnedAway {
        let mut turned = TurnedAway { count: 0, rest: false, drained: false };
        for _ in 0..ACCEPTS_PER_TICK {
            drop(self.descriptor.take());
            let result = rustix::net::accept_with(listener, SocketFlags::CLOEXEC).map(drop);
            self.descriptor = Self::open();
            match result {
                Ok(()) => turned.count += 1,
                Err(Errno::AGAIN) => {
                    turned.drained = true;
                    return turned;
                }
                Err(error) if accept_trouble(&error.into()) == AcceptTrouble::Next => {}
                // Another thread took the number between the two calls.
                Err(_) => turned.rest = true,
            }
            if turned.rest || self.descriptor.is_none() {
                turned.rest = true;
                return turned;
            }
        }
        turned
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn a_group_shares_its_port_and_nobody_joins_it() {
        let group = listen(ANY_PORT, 3, 16).unwrap();
        let addr = group[0].local_addr().unwrap();
        assert!(group.iter().all(|one| one.local_addr().unwrap() == addr));
        for count in [1, 2] {
            let error = listen(addr, count, 16).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{count} sockets");
        }
    }

    #[test]
    fn accepted_sockets_inherit_no_delay() {
        let listener = listen(ANY_PORT, 1, 16).unwrap().remove(0);
        let addr = listener.local_addr().unwrap();
        let client = connect(addr).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert!(server.nodelay().unwrap());
        assert_eq!(peer_addr(&client), Some(addr));
    }

    #[test]
    fn a_connection_begins_from_the_address_asked_for() {
        let listener = listen(ANY_PORT, 1, 16).unwrap().remove(0);
        listener.set_nonblocking(false).unwrap();
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
        let _client = begin_connect(listener.local_addr().unwrap(), Some(source)).unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), source);
    }

    #[test]
    fn the_soft_limit_reaches_the_hard_one() {
        let limit = raise_descriptor_limit();
        assert_eq!(limit.soft, limit.hard);
    }

    #[test]
    fn the_last_descriptors_are_not_for_connections() {
        let reserve = |first_spare| Reserve { descriptor: None, first_spare };
        let socket = rustix::fs::open("/dev/null", OFlags::RDONLY, Mode::empty()).unwrap();
        let number = socket.as_raw_fd() as u64;
        assert!(reserve(number + 1).admits(&socket));
        assert!(!reserve(number).admits(&socket));
        assert!(Reserve::new().admits(&socket));
    }

    #[test]
    fn turns_away_all_who_wait() {
        let listener = listen(ANY_PORT, 1, 16).unwrap().remove(0);
        let addr = listener.local_addr().unwrap();
        let clients: Vec<_> = (0..5).map(|_| connect(addr).unwrap()).collect();
        let turned = Reserve::new().turn_away(&listener);
        assert_eq!((turned.count, turned.rest, turned.drained), (5, false, true));
        for client in clients {
            let mut byte = [0; 1];
            let (_, n) =
                rustix::net::recv(&client, &mut byte[..], rustix::net::RecvFlags::empty()).unwrap();
            assert_eq!(n, 0);
        }
    }
}
