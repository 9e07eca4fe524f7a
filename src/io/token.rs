//! What travels through the kernel and comes back with an event: which operation, of which use of
//! which slot. 8 bits of kind, 24 of generation, 32 of index.
#![forbid(unsafe_code)]

use crate::ids::ConnId;

/// One 64-bit word: `user_data` of a submission, the token of an epoll registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token(u64);

impl Token {
    /// Something of connection `conn`.
    pub(super) const fn conn(kind: u8, conn: ConnId) -> Self {
        debug_assert!(conn.generation < ConnId::GENERATIONS);
        Self((kind as u64) << 56 | (conn.generation as u64) << 32 | conn.index as u64)
    }

    /// Something that has a number and no generation.
    pub(super) const fn plain(kind: u8, index: u32) -> Self {
        Self((kind as u64) << 56 | index as u64)
    }

    /// As it went.
    pub(super) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// To hand to the kernel.
    pub(super) const fn word(self) -> u64 {
        self.0
    }

    pub(super) const fn kind(self) -> u8 {
        (self.0 >> 56) as u8
    }

    pub(super) const fn index(self) -> u32 {
        self.0 as u32
    }

    pub(super) const fn conn_id(self) -> ConnId {
        ConnId {
            index: self.index(),
            generation: (self.0 >> 32) as u32 & (ConnId::GENERATIONS - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_on_the_way() {
        for conn in [
            ConnId { index: 0, generation: 0 },
            ConnId { index: u32::MAX, generation: ConnId::GENERATIONS - 1 },
            ConnId { index: 0x1234_5678, generation: 0xab_cdef },
        ] {
            for kind in [0, 1, 0x7f, 0xff] {
                let token = Token::from_word(Token::conn(kind, conn).word());
                assert_eq!((token.kind(), token.conn_id()), (kind, conn));
            }
        }
    }
}
