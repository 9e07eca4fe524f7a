//! Reading segments: the frames of one in order, and what is damaged.
//!
//! Nothing that is read is believed: lengths are bounded by what is there, a damaged header of a
//! frame is passed block by block until the next that holds, a damaged record byte by byte.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::Advice;
use rustix::io::Errno;

use super::fold::At;
use super::record::{self, RECORD_HEADER};
use super::segment::{self, FRAME_HEADER, Frame};
use super::wire::{Malformed, Reader};
use crate::io::file::BLOCK;
use crate::limits::JOURNAL_RESYNC_FACTOR;

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

    /// It will be read soon, from its beginning to its end.
    fn prefetch(&self, _file: u32) {}

    /// Puts all that was written to it on disk.
    ///
    /// # Errors
    /// When that fails.
    fn sync(&self, _file: u32) -> io::Result<()> {
        Ok(())
    }

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

    fn prefetch(&self, file: u32) {
        if let Ok(file) = File::open(segment::path(&self.0, file)) {
            // Without it reading takes longer, and that is all.
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::WillNeed);
        }
    }

    fn sync(&self, file: u32) -> io::Result<()> {
        File::open(segment::path(&self.0, file))?.sync_data()
    }

    fn name(&self, file: u32) -> String {
        segment::path(&self.0, file).display().to_string()
    }
}

/// Bytes that are read at once where a larger read has failed.
const PIECE: usize = 16 * BLOCK;

/// Reads the first `len` bytes of a file into `into`; fewer at its end. Where the medium gives
/// nothing, zeros stand: where, and how many.
///
/// # Errors
/// When it cannot be opened, or not be read for a reason that is not the medium's.
pub fn read_what_comes(
    store: &dyn Store,
    file: u32,
    len: usize,
    into: &mut Vec<u8>,
) -> io::Result<Vec<(u64, u64)>> {
    match store.read(file, 0, len, into) {
        Err(error) if is_of_medium(&error) => {}
        result => return result.map(|()| Vec::new()),
    }
    let mut unread: Vec<(u64, u64)> = Vec::new();
    let mut piece = Vec::new();
    into.clear();
    while into.len() < len {
        let start = into.len();
        // A whole piece, then the blocks of one that fails.
        let is_aligned = start.is_multiple_of(PIECE);
        let mut want = if is_aligned { PIECE.min(len - start) } else { BLOCK.min(len - start) };
        let mut result = store.read(file, start as u64, want, &mut piece);
        if result.as_ref().is_err_and(is_of_medium) && want > BLOCK {
            want = BLOCK;
            result = store.read(file, start as u64, want, &mut piece);
        }
        match result {
            Ok(()) if piece.is_empty() => break,
            Ok(()) => into.extend_from_slice(&piece),
            Err(error) if is_of_medium(&error) => {
                into.resize(start + want, 0);
                match unread.last_mut() {
                    Some((at, len)) if *at + *len == start as u64 => *len += want as u64,
                    _ => unread.push((start as u64, want as u64)),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(unread)
}

/// Whether it is the medium, or what the file system knows of it, and not a right or a limit.
fn is_of_medium(error: &io::Error) -> bool {
    let known = [Errno::IO, Errno::NODATA, Errno::REMOTEIO, Errno::BADMSG, Errno::UCLEAN];
    error.raw_os_error().is_some_and(|raw| known.iter().any(|errno| errno.raw_os_error() == raw))
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
    let mut work = JOURNAL_RESYNC_FACTOR * bytes.len();
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
