//! Reading segments: the frames of one in order, and what is damaged.
//!
//! Nothing that is read is believed: lengths are bounded by what is there, a damaged header of a
//! frame is passed block by block until the next that holds, a damaged record byte by byte.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::fold::At;
use super::record::{self, RECORD_HEADER};
use super::segment::{self, FRAME_HEADER, Frame};
use super::wire::{Malformed, Reader};
use crate::io::file::BLOCK;

/// Where segments are read from: a directory, or a simulated one.
pub trait Store {
    /// The numbers of the files that are there, with their sizes.
    ///
    /// # Errors
    /// When the directory cannot be read.
    fn list(&self) -> io::Result<Vec<(u32, u64)>>;

    /// Reads `len` bytes of a file from `offset` on into `into`, which is overwritten; fewer at
    /// its end.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, file: u32, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()>;

    /// How to call a file in a message.
    fn name(&self, file: u32) -> String;
}

/// A directory of this machine.
#[derive(Clone, Debug)]
pub struct Directory(pub PathBuf);

impl Store for Directory {
    fn list(&self) -> io::Result<Vec<(u32, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            let entry = entry?;
            if let Some(number) = segment::number_of(Path::new(&entry.file_name())) {
                files.push((number, entry.metadata()?.len()));
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    fn read(&self, file: u32, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        let file = File::open(segment::path(&self.0, file))?;
        into.resize(len, 0);
        let mut read = 0;
        while read < len {
            match file.read_at(&mut into[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        into.truncate(read);
        Ok(())
    }

    fn name(&self, file: u32) -> String {
        segment::path(&self.0, file).display().to_string()
    }
}

/// A part of a frame that is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad {
    /// Behind the frame's header.
    pub offset: u32,
    /// Bytes until the next record, or the end.
    pub len: u32,
    /// In which way.
    pub why: Malformed,
}

/// The frames of one segment's bytes, in order.
#[derive(Debug)]
pub struct Frames<'a> {
    bytes: &'a [u8],
    segment: u64,
    at: usize,
}

impl<'a> Frames<'a> {
    /// Of the segment with this sequence number, whose file has these bytes.
    pub const fn new(bytes: &'a [u8], segment: u64) -> Self {
        Self { bytes, segment, at: BLOCK }
    }
}

impl<'a> Iterator for Frames<'a> {
    /// Where it begins, its header, and its records' bytes; fewer than it says at the file's end.
    type Item = (u64, Frame, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while self.at + FRAME_HEADER <= self.bytes.len() {
            let start = self.at;
            match Frame::decode(&self.bytes[start..]) {
                Ok(frame) if frame.segment == self.segment && frame.commit > 0 => {
                    let records = start + FRAME_HEADER;
                    let end = (records + frame.len as usize).min(self.bytes.len());
                    self.at = start + frame.span() as usize;
                    return Some((start as u64, frame, &self.bytes[records..end]));
                }
                _ => self.at += BLOCK,
            }
        }
        None
    }
}

/// The records of a frame: `record` gets each with where it lies, `bad` what is none. How many
/// there were.
pub fn records<'a>(
    frame: &Frame,
    bytes: &'a [u8],
    mut record: impl FnMut(At, &'a [u8]),
    mut bad: impl FnMut(Bad),
) -> u32 {
    let (mut at, mut count) = (0, 0);
    while at < bytes.len() {
        match record::take(&bytes[at..], frame.commit) {
            Ok(body) => {
                let len = body.len() + RECORD_HEADER;
                record(At { commit: frame.commit, offset: at as u32, len: len as u32 }, body);
                at += len;
                count += 1;
            }
            Err(why) => {
                let next = resync(frame, bytes, at);
                bad(Bad { offset: at as u32, len: (next - at) as u32, why });
                at = next;
            }
        }
    }
    if bytes.len() < frame.len as usize {
        let missing = frame.len - bytes.len() as u32;
        bad(Bad { offset: bytes.len() as u32, len: missing, why: Malformed::Short });
    }
    count
}

/// The records of these kinds in a frame, as far as it can be followed.
pub fn of_kinds<'a>(
    frame: &Frame,
    bytes: &'a [u8],
    kinds: &[u8],
    mut found: impl FnMut(record::Entry<'a>),
) {
    let mut at = 0;
    while let Some(rest) = bytes.get(at..)
        && let Ok(len) = Reader(rest).u32()
    {
        if rest.get(RECORD_HEADER).is_some_and(|kind| kinds.contains(kind))
            && let Ok(body) = record::take(rest, frame.commit)
            && let Ok((_, entry)) = record::decode(body)
        {
            found(entry);
        }
        at += RECORD_HEADER + len as usize;
    }
}

/// Where the next record begins behind a damaged one at `at`: where its length says, else the next
/// byte at which one holds; the end if none does.
fn resync(frame: &Frame, bytes: &[u8], at: usize) -> usize {
    let holds = |at: usize| record::take(&bytes[at..], frame.commit).is_ok();
    let said = Reader(&bytes[at..]).u32().ok();
    if let Some(next) = said.and_then(|len| at.checked_add(RECORD_HEADER + len as usize))
        && next <= bytes.len()
        && (next == bytes.len() || holds(next))
    {
        return next;
    }
    // A checksum is only worked out where a length fits; still a damaged frame costs at most its
    // size times the lengths that happen to fit.
    let mut work = 64 * bytes.len();
    for next in at + 1..bytes.len() {
        let len = Reader(&bytes[next..]).u32().map_or(usize::MAX, |len| len as usize);
        if len >= 2 && len <= bytes.len() - next {
            if holds(next) {
                return next;
            }
            work = work.saturating_sub(len);
            if work == 0 {
                break;
            }
        }
    }
    bytes.len()
}
