//! A client on a blocking socket.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use noctule::client::{Client, Event, Options};
use noctule::clock;
use noctule::codec::mqtt::{
    PacketId, QoS, ReasonCode, SubscribeFilter, SubscriptionOptions, UserProperties, Version,
};

use crate::PATIENCE;

/// How long one read waits.
const READ: Duration = Duration::from_millis(2);

/// A connection and the client that speaks on it.
pub struct Net {
    pub client: Client,
    addr: SocketAddr,
    stream: Option<TcpStream>,
    buf: Vec<u8>,
}

impl Net {
    /// Connects; the answer is not awaited.
    pub fn new(addr: SocketAddr, options: Options) -> Self {
        let client = Client::new(options);
        let mut net = Self { client, addr, stream: None, buf: vec![0; 64 * 1024] };
        net.open();
        net
    }

    /// Options that keep a session, or not.
    pub fn options(version: Version, client_id: &str, keep_session: bool) -> Options {
        let mut options = Options::new(version, client_id);
        options.clean_start = !keep_session;
        options.session_expiry_interval = if keep_session { 3600 } else { 0 };
        options.keep_alive = 0;
        options.connect_timeout = PATIENCE;
        options
    }

    fn open(&mut self) {
        let stream = TcpStream::connect_timeout(&self.addr, PATIENCE).expect("connect");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_read_timeout(Some(READ)).expect("a read timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a write timeout");
        self.stream = Some(stream);
        self.client.connect(clock::now());
        self.flush();
    }

    /// Cuts the connection and opens the next one. With `takeover` the old one is still open then,
    /// and is given back.
    pub fn reopen(&mut self, takeover: bool) -> Option<TcpStream> {
        let old = self.stream.take();
        self.client.handle_closed(&mut |_, _| {});
        let old = old.filter(|_| takeover);
        self.open();
        old
    }

    /// Whether there is a connection.
    pub fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Sends what the client has to say.
    pub fn flush(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        if self.client.out.is_empty() {
            return;
        }
        // A broken connection is found by the next read.
        match stream.write_all(&self.client.out) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the broker has not read for {PATIENCE:?}");
            }
            Err(_) => {}
        }
        self.client.out.clear();
        self.client.out.shrink_to(256 * 1024);
    }

    /// Flushes, reads once, flushes. Events of the end of the connection come here as well.
    pub fn pump(&mut self, on_event: &mut impl FnMut(&mut Client, Event<'_>)) {
        self.flush();
        let Some(stream) = &mut self.stream else { return };
        match stream.read(&mut self.buf) {
            Ok(0) => self.lose(on_event),
            Ok(len) => {
                self.client.handle_bytes(clock::now(), &self.buf[..len], on_event);
                self.flush();
                if self.client.is_over() {
                    self.lose(on_event);
                }
            }
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(_) => self.lose(on_event),
        }
    }

    fn lose(&mut self, on_event: &mut impl FnMut(&mut Client, Event<'_>)) {
        self.stream = None;
        self.client.handle_closed(on_event);
    }

    /// Pumps until the broker has accepted the connection.
    pub fn await_connected(&mut self, on_event: &mut impl FnMut(&mut Client, Event<'_>)) {
        let deadline = Instant::now() + PATIENCE;
        while !self.client.is_connected() {
            assert!(Instant::now() < deadline, "no CONNACK");
            assert!(self.is_open(), "{}: closed before CONNACK", self.client.options().client_id);
            self.pump(on_event);
        }
    }

    /// Asks for a subscription; SUBACK is not awaited.
    pub fn subscribe(&mut self, filter: &str, qos: QoS) -> PacketId {
        let filters = [SubscribeFilter { filter, options: SubscriptionOptions::new(qos) }];
        let id = self.client.subscribe(clock::now(), &filters, None, UserProperties::default());
        let id = id.expect("subscribe");
        self.flush();
        id
    }

    /// DISCONNECT, FIN, and the broker's FIN awaited. A session that would outlive it is ended.
    pub fn leave(mut self) {
        if self.client.options().session_outlives_connection() {
            self.reopen(false);
            self.await_connected(&mut |_, _| {});
            let client_id = self.client.options().client_id.clone();
            let version = self.client.options().version;
            self.say_goodbye();
            Self::new(self.addr, Self::options(version, &client_id, false)).leave();
            return;
        }
        self.await_connected(&mut |_, _| {});
        self.say_goodbye();
    }

    fn say_goodbye(&mut self) {
        self.client.disconnect(clock::now(), ReasonCode::NORMAL_DISCONNECTION);
        self.flush();
        if let Some(stream) = self.stream.take() {
            let _ = stream.shutdown(Shutdown::Write);
            await_end(stream);
        }
        self.client.handle_closed(&mut |_, _| {});
    }
}

/// The broker closes this connection: whatever it still had to say, it ends.
pub fn await_end(mut stream: TcpStream) {
    let deadline = Instant::now() + PATIENCE;
    let mut buf = [0; 4096];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return,
            Ok(_) => {}
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(_) => return,
        }
        assert!(Instant::now() < deadline, "the broker has not closed within {PATIENCE:?}");
    }
}
