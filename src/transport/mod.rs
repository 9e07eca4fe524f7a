//! Between the socket's bytes and MQTT's: nothing for TCP; TLS and WebSocket will stand here.
//!
//! Sans-IO: received bytes come in, plaintext goes out, and the other way round. The loop above
//! never asks which transport it has.
#![forbid(unsafe_code)]

use crate::buf::OutBuf;

/// One connection's transport. Travels with the connection when it moves to its home shard.
#[derive(Debug)]
pub enum Transport {
    /// The bytes are MQTT.
    Tcp,
}

impl Transport {
    /// The plaintext of received bytes. For TCP they are the same bytes: no copy.
    pub fn open<'a>(&mut self, received: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Tcp => received,
        }
    }

    /// What must go on the wire for this plaintext.
    pub fn seal(&mut self, plaintext: OutBuf) -> OutBuf {
        match self {
            Self::Tcp => plaintext,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_adds_and_takes_nothing() {
        let mut tcp = Transport::Tcp;
        assert_eq!(tcp.open(b"\xc0\x00"), b"\xc0\x00");
        let mut out = OutBuf::new();
        out.extend_from_slice(b"\xd0\x00");
        assert_eq!(tcp.seal(out).contiguous(), b"\xd0\x00");
    }
}
