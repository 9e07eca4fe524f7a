//! The files of the journal: a header, then one frame per commit.
//!
//! A segment is a file of a fixed size in the journal's directory, zeroed before its first use and
//! used again when nothing in it is needed any more. Its name says nothing: its header has its
//! place in the log, and a new header makes it a new segment. Header and frames begin at multiples
//! of [`BLOCK`].
//!
//! A frame is the records of one commit behind a header of their own. Commits are numbered without
//! gaps, through all segments; a commit that failed is written again under its number, to another
//! segment. Each frame says which segment is the oldest that is needed: what is older is ignored,
//! whatever it holds.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use super::wire::{Malformed, Reader};
use crate::io::file::BLOCK;

/// The version that is written; all up to it are read.
pub const VERSION: u16 = 1;
/// Bytes in front of the records of a frame.
pub const FRAME_HEADER: usize = 48;

const MAGIC: &[u8; 8] = b"NOCTJRNL";
const FRAME_MAGIC: &[u8; 4] = b"NJFR";
const HEADER_LEN: usize = 64;

/// What the first block of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of the records in it.
    pub version: u16,
    /// Its place among all segments that ever were, from 1.
    pub sequence: u64,
    /// The key of the data directory that it belongs to.
    pub placement: u64,
    /// When it was begun, in ms since 1970, UTC.
    pub created_ms: u64,
    /// The number of its first commit.
    pub first_commit: u64,
    /// The greatest sequence number of a message that was mentioned before it.
    pub last_sequence: u64,
    /// The host has given all numbers of sessions and groups below this one before it, and no other.
    pub next_number: u64,
}

/// Why a block is no header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// It is empty: a segment that was prepared and never used.
    Unused,
    /// It begins like none.
    NotOurs,
    /// It is damaged.
    Damaged,
    /// A newer Noctule has written it.
    Version(u16),
}

impl Header {
    /// Writes it into the first block of a segment.
    pub fn encode(&self, block: &mut [u8]) {
        block[..BLOCK].fill(0);
        block[..8].copy_from_slice(MAGIC);
        block[8..10].copy_from_slice(&self.version.to_le_bytes());
        let fields = [
            self.sequence,
            self.placement,
            self.created_ms,
            self.first_commit,
            self.last_sequence,
            self.next_number,
        ];
        for (field, place) in fields.iter().zip(block[16..HEADER_LEN].chunks_exact_mut(8)) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let crc = header_crc(block);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads the first block of a segment.
    ///
    /// # Errors
    /// When it is none of ours, and in which way.
    pub fn decode(block: &[u8]) -> Result<Self, BadHeader> {
        let Some(head) = block.get(..HEADER_LEN) else { return Err(BadHeader::Unused) };
        if head.iter().all(|byte| *byte == 0) {
            return Err(BadHeader::Unused);
        }
        if &head[..8] != MAGIC {
            return Err(BadHeader::NotOurs);
        }
        let mut reader = Reader(&head[8..]);
        let read = |reader: &mut Reader<'_>| reader.u64().map_err(|_| BadHeader::Damaged);
        let version = reader.u16().map_err(|_| BadHeader::Damaged)?;
        let _reserved = reader.u16();
        let crc = reader.u32().map_err(|_| BadHeader::Damaged)?;
        if crc != header_crc(head) {
            return Err(BadHeader::Damaged);
        }
        if version == 0 || version > VERSION {
            return Err(BadHeader::Version(version));
        }
        Ok(Self {
            version,
            sequence: read(&mut reader)?,
            placement: read(&mut reader)?,
            created_ms: read(&mut reader)?,
            first_commit: read(&mut reader)?,
            last_sequence: read(&mut reader)?,
            next_number: read(&mut reader)?,
        })
    }
}

fn header_crc(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..12]), &block[16..HEADER_LEN])
}

/// What stands in front of a commit's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The segment that it was written for.
    pub segment: u64,
    /// The number of the commit, from 1.
    pub commit: u64,
    /// The oldest segment that is needed.
    pub oldest: u64,
    /// The place of its first record in the log, from 0.
    pub place: u64,
    /// Bytes of its records.
    pub len: u32,
    /// How many they are.
    pub records: u32,
}

impl Frame {
    /// Writes it.
    pub fn encode(&self, out: &mut [u8]) {
        out[..4].copy_from_slice(FRAME_MAGIC);
        for (field, place) in [self.segment, self.commit, self.oldest, self.place]
            .iter()
            .zip(out[8..40].chunks_exact_mut(8))
        {
            place.copy_from_slice(&field.to_le_bytes());
        }
        out[40..44].copy_from_slice(&self.len.to_le_bytes());
        out[44..FRAME_HEADER].copy_from_slice(&self.records.to_le_bytes());
        let crc = crc32c::crc32c(&out[8..FRAME_HEADER]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads it.
    ///
    /// # Errors
    /// When there is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let head = bytes.get(..FRAME_HEADER).ok_or(Malformed::Short)?;
        let mut reader = Reader(head);
        let magic = reader.array::<4>()?;
        let crc = reader.u32()?;
        if magic != *FRAME_MAGIC || crc != crc32c::crc32c(&head[8..]) {
            return Err(Malformed::Checksum);
        }
        Ok(Self {
            segment: reader.u64()?,
            commit: reader.u64()?,
            oldest: reader.u64()?,
            place: reader.u64()?,
            len: reader.u32()?,
            records: reader.u32()?,
        })
    }

    /// Bytes that it takes on disk, header and padding included.
    pub const fn span(&self) -> u64 {
        (FRAME_HEADER as u64 + self.len as u64).next_multiple_of(BLOCK as u64)
    }
}

/// The file with this number in the journal's directory.
pub fn path(folder: &Path, file: u32) -> PathBuf {
    folder.join(format!("{file:08}.journal"))
}

/// The number of a file of the journal.
pub fn number_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_suffix(".journal")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        version: VERSION,
        sequence: 2,
        placement: 3,
        created_ms: 4,
        first_commit: 5,
        last_sequence: 6,
        next_number: 7,
    };

    #[test]
    fn a_header_comes_back_and_no_other() {
        let mut block = vec![0xee; BLOCK];
        assert_eq!(Header::decode(&block), Err(BadHeader::NotOurs));
        HEADER.encode(&mut block);
        assert_eq!(Header::decode(&block), Ok(HEADER));
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = block.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // Two bytes are reserved, and checked with the rest.
            assert!(Header::decode(&bad).is_err(), "bit {bit}");
        }
        assert_eq!(Header::decode(&[0; BLOCK]), Err(BadHeader::Unused));
        assert_eq!(Header::decode(&[]), Err(BadHeader::Unused));
        Header { version: VERSION + 1, ..HEADER }.encode(&mut block);
        assert_eq!(Header::decode(&block), Err(BadHeader::Version(VERSION + 1)));
    }

    #[test]
    fn a_frame_comes_back_and_no_other() {
        let frame = Frame { segment: 1, commit: 2, oldest: 3, place: 4, len: 5, records: 6 };
        let mut bytes = vec![0; FRAME_HEADER];
        frame.encode(&mut bytes);
        assert_eq!(Frame::decode(&bytes), Ok(frame));
        for bit in 0..FRAME_HEADER * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&bad).is_err(), "bit {bit}");
        }
        assert_eq!(Frame::decode(&bytes[1..]), Err(Malformed::Short));
        assert_eq!(frame.span(), BLOCK as u64);
        assert_eq!(Frame { len: BLOCK as u32, ..frame }.span(), 2 * BLOCK as u64);
    }

    #[test]
    fn files_have_numbers() {
        let path = path(Path::new("/d"), 12);
        assert_eq!(path, Path::new("/d/00000012.journal"));
        assert_eq!(number_of(&path), Some(12));
        assert_eq!(number_of(Path::new("/d/12.txt")), None);
    }
}
