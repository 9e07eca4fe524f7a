//! Reading segments: the frames of one in order, and what is damaged.
//!
//! A file goes through one buffer, a piece at a time, which is small enough to stay in the CPU's own
//! cache: a segment at a time took most of a start.
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
use crate::limits::{JOURNAL_RESYNC_FACTOR, JOURNAL_SCAN_BYTES};

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

/// Reads `len` bytes of a file from `offset` on into `into`; fewer at its end. Where the medium gives
/// nothing, zeros stand: where in the file, and how many.
///
/// # Errors
/// When it cannot be opened, or not be read for a reason that is not the medium's.
pub fn read_what_comes(
    store: &dyn Store,
    file: u32,
    offset: u64,
    len: usize,
    into: &mut Vec<u8>,
) -> io::Result<Vec<(u64, u64)>> {
    match store.read(file, offset, len, into) {
        Err(error) if is_of_medium(&error) => {}
        result => return result.map(|()| Vec::new()),
    }
    let mut unread: Vec<(u64, u64)> = Vec::new();
    let mut piece = Vec::new();
    into.clear();
    while into.len() < len {
        let start = into.len();
        let at = offset + start as u64;
        // A whole piece, then the blocks of one that fails.
        let is_aligned = start.is_multiple_of(PIECE);
        let mut want = if is_aligned { PIECE.min(len - start) } else { BLOCK.min(len - start) };
        let mut result = store.read(file, at, want, &mut piece);
        if result.as_ref().is_err_and(is_of_medium) && want > BLOCK {
            want = BLOCK;
            result = store.read(file, at, want, &mut piece);
        }
        match result {
            Ok(()) if piece.is_empty() => break,
            Ok(()) => into.extend_from_slice(&piece),
            Err(error) if is_of_medium(&error) => {
                into.resize(start + want, 0);
                note_unread(&mut unread, at, want as u64);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(unread)
}

/// These bytes too, as far as they are not among them. What lies behind all of them is news; what was
/// read twice is not.
fn note_unread(unread: &mut Vec<(u64, u64)>, at: u64, len: u64) {
    let end = at + len;
    match unread.last_mut() {
        Some((first, known)) if end <= *first + *known => {}
        Some((first, known)) if at <= *first + *known => *known = end - *first,
        _ => unread.push((at, len)),
    }
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

/// The frames of one segment, in order.
pub struct Frames<'a> {
    store: &'a dyn Store,
    file: u32,
    /// Bytes of the file.
    size: u64,
    segment: u64,
    bytes: &'a mut Vec<u8>,
    /// Where in the file they begin.
    from: u64,
    /// Where the next frame may begin.
    at: u64,
    unread: Vec<(u64, u64)>,
}

impl<'a> Frames<'a> {
    /// Of the segment with this sequence number, whose file is so large; read into `bytes`, whatever
    /// they hold.
    pub fn new(
        store: &'a dyn Store,
        (file, size): (u32, u64),
        segment: u64,
        bytes: &'a mut Vec<u8>,
    ) -> Self {
        bytes.clear();
        Self { store, file, size, segment, bytes, from: 0, at: BLOCK as u64, unread: Vec::new() }
    }

    /// The next: where it begins, its header, and its records' bytes; fewer than it says at the
    /// file's end.
    ///
    /// # Errors
    /// When the file cannot be opened, or not be read for a reason that is not the medium's.
    pub fn next_frame(&mut self) -> io::Result<Option<(u64, Frame, &[u8])>> {
        loop {
            let head = self.load(FRAME_HEADER)?;
            if head.len() < FRAME_HEADER {
                return Ok(None);
            }
            match Frame::decode(head) {
                Ok(frame) if frame.segment == self.segment && frame.commit > 0 => {
                    let offset = self.at;
                    let len = FRAME_HEADER + frame.len as usize;
                    self.load(len)?;
                    self.at += frame.span();
                    let start = (offset - self.from) as usize;
                    let end = (start + len).min(self.bytes.len());
                    // None are left if the file has become shorter since its header was read.
                    let records = self.bytes.get(start + FRAME_HEADER..end).unwrap_or_default();
                    return Ok(Some((offset, frame, records)));
                }
                _ => self.at += BLOCK as u64,
            }
        }
    }

    /// Where the medium gave nothing, of what was read: offset and length. Zeros stand for it.
    pub fn unread(&self) -> &[(u64, u64)] {
        &self.unread
    }

    /// So many bytes from where the next frame may begin; fewer at the file's end.
    fn load(&mut self, len: usize) -> io::Result<&[u8]> {
        let end = (self.at + len as u64).min(self.size);
        if self.bytes.is_empty() || end > self.from + self.bytes.len() as u64 {
            // The header of the segment comes with its first frames.
            let from = if self.bytes.is_empty() { 0 } else { self.at };
            let want = end.saturating_sub(from).next_multiple_of(BLOCK as u64);
            let want = want.max(JOURNAL_SCAN_BYTES as u64);
            let want = want.min(self.size.saturating_sub(from)) as usize;
            let unread = read_what_comes(self.store, self.file, from, want, self.bytes)?;
            unread.iter().for_each(|(at, len)| note_unread(&mut self.unread, *at, *len));
            self.from = from;
            if self.bytes.len() < want {
                // It is shorter than was said.
                self.size = from + self.bytes.len() as u64;
            }
        }
        let start = (self.at - self.from) as usize;
        let rest = self.bytes.get(start..).unwrap_or_default();
        Ok(&rest[..rest.len().min(len)])
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

#[cfg(test)]
mod tests {
    use super::*;

    /// One file, and the blocks of it that cannot be read.
    struct Memory {
        bytes: Vec<u8>,
        bad: Vec<u64>,
    }

    impl Store for Memory {
        fn list(&self) -> io::Result<Vec<(u32, u64)>> {
            Ok(vec![(1, self.bytes.len() as u64)])
        }

        fn read(&self, _file: u32, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
            assert!(len <= JOURNAL_SCAN_BYTES.max(1_100_000), "no more than is needed at once");
            let range = offset..offset + len as u64;
            if self.bad.iter().any(|at| at + BLOCK as u64 > range.start && *at < range.end) {
                return Err(Errno::IO.into());
            }
            into.clear();
            let rest = self.bytes.get(offset as usize..).unwrap_or_default();
            into.extend_from_slice(&rest[..rest.len().min(len)]);
            Ok(())
        }

        fn name(&self, file: u32) -> String {
            format!("{file}")
        }
    }

    /// A frame, and the bytes of its records.
    type Put = (u64, Frame, Vec<u8>);

    /// A segment of frames of these sizes; each third one is of an older segment and is passed.
    fn segment(sizes: &[usize]) -> (Memory, Vec<Put>) {
        let (mut bytes, mut frames) = (vec![0; BLOCK], Vec::new());
        for (index, len) in sizes.iter().enumerate() {
            let (commit, is_old) = (index as u64 + 1, index % 3 == 2);
            let (segment, len) = (if is_old { 6 } else { 7 }, *len as u32);
            let frame = Frame { segment, commit, oldest: 1, place: 0, len, records: 1 };
            let records: Vec<u8> = (0..len).map(|n| (n as usize + index) as u8 | 1).collect();
            let start = bytes.len();
            bytes.resize(start + frame.span() as usize, 0);
            frame.encode(&mut bytes[start..]);
            bytes[start + FRAME_HEADER..][..records.len()].copy_from_slice(&records);
            if !is_old {
                frames.push((start as u64, frame, records));
            }
        }
        (Memory { bytes, bad: Vec::new() }, frames)
    }

    fn read(memory: &Memory, size: u64) -> (Vec<Put>, Vec<(u64, u64)>) {
        let (mut bytes, mut all) = (vec![0xee; 100], Vec::new());
        let mut frames = Frames::new(memory, (1, size), 7, &mut bytes);
        while let Some((offset, frame, records)) = frames.next_frame().unwrap() {
            all.push((offset, frame, records.to_vec()));
        }
        (all, frames.unread().to_vec())
    }

    const SIZES: [usize; 12] =
        [10, 9000, 40_000, 250_000, 4048, 70_000, 1_000_000, 255_000, 1, 262_096, 262_097, 500_000];

    /// However frames lie to the pieces in which a segment is read, and where its file ends.
    #[test]
    fn frames_are_found_wherever_a_read_ends() {
        let (mut memory, frames) = segment(&SIZES);
        let size = memory.bytes.len() as u64;
        assert_eq!(read(&memory, size), (frames.clone(), Vec::new()));
        // The file may have less than its size says, down to nothing.
        let (at, _, records) = frames.last().unwrap();
        let cut = FRAME_HEADER + records.len() / 2;
        memory.bytes.truncate(*at as usize + cut);
        let (found, _) = read(&memory, size);
        assert_eq!(found.len(), frames.len());
        assert_eq!(found.last().unwrap().2, records[..cut - FRAME_HEADER]);
        memory.bytes.truncate(*at as usize + FRAME_HEADER - 1);
        assert_eq!(read(&memory, size).0, frames[..frames.len() - 1]);
        memory.bytes.clear();
        assert_eq!(read(&memory, size), (Vec::new(), Vec::new()));
    }

    /// Each block that cannot be read is said once, with what lies beside it, and costs what is in it.
    #[test]
    fn what_cannot_be_read_is_said_once() {
        let (mut memory, frames) = segment(&SIZES);
        let size = memory.bytes.len() as u64;
        for at in (0..size).step_by(BLOCK) {
            let second = at + 40 * BLOCK as u64;
            memory.bad = vec![at, at + BLOCK as u64, second];
            let (found, unread) = read(&memory, size);
            let end = size.next_multiple_of(BLOCK as u64);
            let expected = [(at, 2 * BLOCK as u64), (second, BLOCK as u64)];
            let is_in = |(at, len): &(u64, u64)| at + len <= end;
            let expected: Vec<(u64, u64)> = expected.into_iter().filter(is_in).collect();
            if at + 2 * (BLOCK as u64) <= end {
                assert_eq!(unread, expected, "block {at}");
            }
            for (found, put) in found.iter().zip(frames.iter().filter(|(start, ..)| {
                !memory.bad.iter().any(|bad| (*bad..bad + BLOCK as u64).contains(start))
            })) {
                assert_eq!((found.0, found.1), (put.0, put.1), "block {at}");
            }
        }
    }
}
