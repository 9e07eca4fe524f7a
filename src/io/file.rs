//! Operations on files, as a backend takes and returns them, and memory that they may be done with.
//!
//! Plain data: the journal asks for these without knowing who does them. [`super::Backend::file`]
//! has the contract.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::path::PathBuf;

/// What direct input and output is aligned to, in memory and in files, in bytes.
pub const BLOCK: usize = 4096;

/// A file of one backend, by a number that its user chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// One operation. The buffers belong to the backend until it is done.
#[derive(Debug)]
pub enum FileOp {
    /// Opens a file for reading and writing. One that did not exist is empty; its name lasts when its
    /// directory was synced.
    Open {
        /// Under which number; not in use.
        file: FileId,
        /// Where.
        path: PathBuf,
        /// Whether it may be made.
        create: bool,
        /// Past the page cache, where the file system can.
        direct: bool,
    },
    /// Writes all of `buf` from `from` on. Both, and `offset`, are multiples of [`BLOCK`].
    Write {
        /// Where to.
        file: FileId,
        /// From which byte of the file on.
        offset: u64,
        /// What.
        buf: BlockBuf,
        /// From which byte of it on.
        from: usize,
        /// It is on disk when the operation is done: it, and nothing that was written before.
        sync: bool,
    },
    /// Fills `buf` with what stands in the file; of less, the result says how much.
    Read {
        /// Where from.
        file: FileId,
        /// From which byte of the file on.
        offset: u64,
        /// Where to, of the length that is wanted.
        buf: BlockBuf,
    },
    /// All that was written to it before is on disk when the operation is done.
    Sync {
        /// Which.
        file: FileId,
    },
    /// The names in this directory are on disk when the operation is done.
    SyncDir {
        /// Which.
        path: PathBuf,
    },
    /// Closes it; its number may be opened again when that is done.
    Close {
        /// Which; need not be open.
        file: FileId,
    },
    /// Closes it and takes its name away.
    Remove {
        /// Which; need not be open.
        file: FileId,
        /// Its name.
        path: PathBuf,
    },
}

impl FileOp {
    /// What was tried, for an error's text.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Open { .. } => "open",
            Self::Write { .. } => "write to",
            Self::Read { .. } => "read",
            Self::Sync { .. } => "sync",
            Self::SyncDir { .. } => "sync the directory",
            Self::Close { .. } => "close",
            Self::Remove { .. } => "remove",
        }
    }
}

/// An operation that is over.
#[derive(Debug)]
pub struct FileDone {
    /// As it was asked for, with its buffer.
    pub op: FileOp,
    /// How many bytes were read or written; 0 for the others. After an error nobody knows what of
    /// it has happened.
    pub result: io::Result<usize>,
}

/// Bytes at an address that is a multiple of [`BLOCK`].
#[derive(Default)]
pub struct BlockBuf {
    bytes: Vec<u8>,
    /// Where they begin in `bytes`.
    start: usize,
}

impl BlockBuf {
    /// An empty one with room for so many bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        let mut buf = Self::default();
        buf.reserve(capacity);
        buf
    }

    /// So many zeros.
    pub fn zeroed(len: usize) -> Self {
        let mut buf = Self::with_capacity(len);
        buf.bytes.resize(buf.start + len, 0);
        buf
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many it has room for.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity() - self.start
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// The bytes, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }

    /// Makes room for so many more.
    pub fn reserve(&mut self, more: usize) {
        if self.bytes.capacity() - self.bytes.len() >= more && self.is_aligned() {
            return;
        }
        let room = (self.len() + more).max(2 * self.len()).next_multiple_of(BLOCK);
        let mut bytes: Vec<u8> = Vec::with_capacity(room + BLOCK);
        let start = bytes.as_ptr().align_offset(BLOCK);
        bytes.resize(start, 0);
        bytes.extend_from_slice(self.as_slice());
        (self.bytes, self.start) = (bytes, start);
    }

    /// What encodes appends here, at most `more` bytes; for more, memory is moved once again.
    pub fn append(&mut self, more: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        self.reserve(more);
        encode(&mut self.bytes);
        self.reserve(0);
    }

    /// Fills up with zeros to a multiple of [`BLOCK`].
    pub fn pad(&mut self) {
        self.resize(self.len().next_multiple_of(BLOCK));
    }

    /// Cuts, or fills up with zeros, to this length.
    pub fn resize(&mut self, len: usize) {
        self.reserve(len.saturating_sub(self.len()));
        self.bytes.resize(self.start + len, 0);
    }

    /// Empties it; it keeps its memory unless that is more than `kept` bytes.
    pub fn clear(&mut self, kept: usize) {
        if self.capacity() > kept {
            *self = Self::default();
        } else {
            self.bytes.truncate(self.start);
        }
    }

    fn is_aligned(&self) -> bool {
        self.bytes.as_ptr().align_offset(BLOCK) == self.start
    }
}

impl fmt::Debug for BlockBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockBuf({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_aligned_however_it_grows() {
        let mut buf = BlockBuf::default();
        let mut expected = Vec::new();
        for round in 0..200usize {
            let bytes = vec![round as u8; round * 37];
            // Sometimes more than was said.
            let said = if round % 7 == 0 { 1 } else { bytes.len() };
            buf.append(said, |out| out.extend_from_slice(&bytes));
            expected.extend_from_slice(&bytes);
            assert_eq!(buf.as_slice().as_ptr().align_offset(BLOCK), 0);
        }
        assert_eq!(buf.as_slice(), expected);
        buf.pad();
        assert_eq!(buf.len(), expected.len().next_multiple_of(BLOCK));
        assert!(buf.as_slice()[expected.len()..].iter().all(|b| *b == 0));
        let capacity = buf.capacity();
        buf.clear(capacity);
        assert_eq!((buf.len(), buf.capacity()), (0, capacity));
        buf.clear(0);
        assert_eq!(BlockBuf::zeroed(BLOCK).as_slice(), [0; BLOCK]);
    }
}
