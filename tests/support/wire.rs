//! A connection that speaks bytes: what a test sends and expects is written out, frame by frame.
//!
//! The frame splitter here is a second, independent one: the broker's own would hide its faults.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use noctule::codec::mqtt::Version;

/// How long an answer may take: it fails a test and never delays one.
const ANSWER: Duration = Duration::from_secs(10);

/// What came next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A whole packet, with its fixed header.
    Frame(Vec<u8>),
    /// Nothing, in the given time.
    Silence,
    /// The end of the connection: closed by the broker, or reset.
    Closed,
}

/// A TCP connection to a broker.
pub struct Wire {
    stream: TcpStream,
    input: Vec<u8>,
    /// What `send` and `recv` encode and decode; of the last CONNECT that they sent.
    pub version: Version,
    /// What `recv` returned last.
    pub(super) frame: Vec<u8>,
    /// Packets that came before one that was waited for out of order.
    pub(super) early: VecDeque<Vec<u8>>,
}

impl Wire {
    /// Connects; sends nothing.
    pub fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&addr, ANSWER).expect("connect to the broker");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_write_timeout(Some(ANSWER)).expect("a write timeout");
        let (input, frame, early) = Default::default();
        Self { stream, input, version: Version::V5, frame, early }
    }

    /// The socket itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("send to the broker");
    }

    /// Sends bytes; a broker that has closed already is no failure.
    pub fn try_send_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends bytes given in hex; blanks are for the reader.
    pub fn send_hex(&mut self, hex: &str) {
        self.send_bytes(&from_hex(hex));
    }

    /// The next packet, if one comes in time.
    ///
    /// # Panics
    /// On a packet that the broker cut by closing.
    pub fn next_within(&mut self, limit: Duration) -> Next {
        if let Some(frame) = self.early.pop_front() {
            return Next::Frame(frame);
        }
        let deadline = Instant::now() + limit;
        loop {
            if let Some(len) = frame_len(&self.input) {
                let rest = self.input.split_off(len);
                return Next::Frame(std::mem::replace(&mut self.input, rest));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Next::Silence;
            }
            self.stream.set_read_timeout(Some(left)).expect("a read timeout");
            let mut buf = [0; 16 * 1024];
            match self.stream.read(&mut buf) {
                Ok(0) => {
                    assert!(self.input.is_empty(), "closed within a packet: {}", hex(&self.input));
                    return Next::Closed;
                }
                Ok(n) => self.input.extend_from_slice(&buf[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Next::Silence;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Next::Closed,
                Err(e) => panic!("read from the broker: {e}"),
            }
        }
    }

    /// The next packet.
    ///
    /// # Panics
    /// When none comes.
    pub fn frame(&mut self) -> Vec<u8> {
        match self.next_within(ANSWER) {
            Next::Frame(frame) => frame,
            other => panic!("expected a packet, got {other:?}"),
        }
    }

    /// This packet comes, and others before it stay where they are: for two streams of packets
    /// whose order between them is not said.
    pub fn expect_among_others(&mut self, expected: &[u8]) {
        self.frame_behind(|frame| frame != expected);
    }

    /// The first packet that is none of `others`, which stay where they are.
    pub fn frame_behind(&mut self, others: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut before = VecDeque::new();
        let found = loop {
            let frame = self.frame();
            if !others(&frame) {
                break frame;
            }
            before.push_back(frame);
        };
        before.append(&mut self.early);
        self.early = before;
        found
    }

    /// The next packet is this one.
    pub fn expect_bytes(&mut self, expected: &[u8]) {
        let frame = self.frame();
        assert!(frame == expected, "expected {}, got {}", hex(expected), hex(&frame));
    }

    /// The next packet is this one, given in hex.
    pub fn expect_hex(&mut self, expected: &str) {
        self.expect_bytes(&from_hex(expected));
    }

    /// The broker closes without another packet.
    pub fn expect_closed(&mut self) {
        match self.next_within(ANSWER) {
            Next::Closed => {}
            other => panic!("expected the end of the connection, got {other:?}"),
        }
    }

    /// Nothing comes for this long. It costs its time: prefer to ask for something whose answer
    /// proves that nothing came before it ([`Wire::expect_nothing_before_ping`]).
    pub fn expect_silence(&mut self, time: Duration) {
        match self.next_within(time) {
            Next::Silence => {}
            other => panic!("expected nothing, got {other:?}"),
        }
    }

    /// The answer to a ping is the next packet: nothing was on its way to this client, from its
    /// own shard.
    pub fn expect_nothing_before_ping(&mut self) {
        self.send_bytes(&[0xc0, 0]);
        self.expect_bytes(&[0xd0, 0]);
    }

    /// Ends our direction; what the broker still sends can be read.
    pub fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).expect("shut down writing");
    }

    /// Ends the connection as a crashed client does: by a reset.
    pub fn reset(self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }
}

/// Length of the packet at the start of `bytes`, none while it is incomplete.
fn frame_len(bytes: &[u8]) -> Option<usize> {
    let mut len = 0;
    for (i, byte) in bytes.iter().skip(1).enumerate() {
        assert!(i < 4, "a Remaining Length of more than four bytes: {}", hex(&bytes[..6]));
        len += usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            let all = 2 + i + len;
            return (bytes.len() >= all).then_some(all);
        }
    }
    None
}

/// The bytes of `hex`, in which blanks are for the reader.
pub fn from_hex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    assert!(digits.len().is_multiple_of(2), "an odd number of hex digits: {hex}");
    digits
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("hex digits are ASCII");
            u8::from_str_radix(pair, 16).unwrap_or_else(|_| panic!("not hex: {pair} in {hex}"))
        })
        .collect()
}

/// `bytes` in hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
