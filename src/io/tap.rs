//! What may stand between the journal and its files: a recording of all operations, and faults, for
//! `noctule crashtest` and the tests. A broker in service has none.
//!
//! The *tape* is a file to which each operation is appended when it is asked for, with its bytes, and
//! again when it is over and before anybody learns of it. So it tells, whenever the process is
//! killed, which writes and syncs had ended for whom an answer may have left; [`read_tape`] reads it.
//!
//! The *faults* are read from another file, before each operation, so that a test turns them on and
//! off while the broker runs: lines of an operation (`write`, `sync`, `open`, `remove`, `read`, `all`)
//! and `EIO`, `ENOSPC` or `EROFS`, or how many milliseconds it is held back. `write` is that of a
//! commit and of zeros alike; `sync` also fails the writes that ask to be synced, after their bytes
//! were written.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use super::file::{BlockBuf, FileDone, FileId, FileOp};
use crate::clock::Time;

/// What a tap is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapOptions {
    /// Where the recording goes.
    pub tape: Option<PathBuf>,
    /// Where the faults are said.
    pub faults: Option<PathBuf>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Tap {
    tape: Option<File>,
    faults: Option<PathBuf>,
    held: VecDeque<(Time, FileOp)>,
    record: Vec<u8>,
    /// Writes that are to fail when they are over.
    doomed: Vec<(FileId, u64, Errno)>,
}

/// What became of an operation that was asked for.
#[derive(Debug)]
pub enum Passed {
    /// It is to be done.
    On(FileOp),
    /// It has failed.
    Failed(Box<FileDone>),
    /// [`Tap::due`] returns it.
    Held,
}

enum Fault {
    Error(Errno),
    /// When it is over.
    LateError(Errno),
    Delay(Duration),
}

impl Tap {
    /// None when there is nothing to do.
    ///
    /// # Errors
    /// When the tape cannot be made.
    pub fn new(options: &TapOptions) -> io::Result<Option<Self>> {
        let TapOptions { tape, faults } = options.clone();
        if tape.is_none() && faults.is_none() {
            return Ok(None);
        }
        let open = |path| OpenOptions::new().create(true).append(true).open(path);
        let tape = tape.map(open).transpose()?;
        let (held, record, doomed) = Default::default();
        Ok(Some(Self { tape, faults, held, record, doomed }))
    }

    /// An operation is asked for.
    pub fn pass(&mut self, now: Time, op: FileOp) -> Passed {
        match self.fault(&op) {
            Some(Fault::Delay(time)) => {
                self.held.push_back((now + time, op));
                Passed::Held
            }
            Some(Fault::Error(error)) => {
                Passed::Failed(Box::new(FileDone { op, result: Err(error.into()) }))
            }
            Some(Fault::LateError(error)) => {
                if let FileOp::Write { file, offset, .. } = &op {
                    self.doomed.push((*file, *offset, error));
                }
                self.on(op)
            }
            None => self.on(op),
        }
    }

    fn on(&mut self, op: FileOp) -> Passed {
        self.write(|out| encode(&op, out));
        Passed::On(op)
    }

    /// One that was held back long enough.
    pub fn due(&mut self, now: Time) -> Option<FileOp> {
        let (at, _) = self.held.front()?;
        if *at > now {
            return None;
        }
        let (_, op) = self.held.pop_front()?;
        self.write(|out| encode(&op, out));
        Some(op)
    }

    /// When [`Tap::due`] will have one.
    pub fn deadline(&self) -> Option<Time> {
        self.held.front().map(|(at, _)| *at)
    }

    /// An operation is over, and nobody knows yet.
    pub fn over(&mut self, done: &mut FileDone) {
        if let FileOp::Write { file, offset, .. } = &done.op {
            let doomed = self.doomed.iter().position(|(f, o, _)| (f, o) == (file, offset));
            if let Some((.., error)) = doomed.map(|index| self.doomed.swap_remove(index)) {
                done.result = Err(error.into());
            }
        }
        let is_ok = done.result.is_ok();
        let (kind, file, offset) = name_of(&done.op);
        self.write(|out| {
            out.extend([OVER, u8::from(is_ok), kind]);
            out.extend_from_slice(&file.to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
        });
    }

    /// Appended in one call: a process that is killed leaves records that are whole, but for the last.
    fn write(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let Some(tape) = &mut self.tape else { return };
        self.record.clear();
        self.record.extend_from_slice(&[0; 4]);
        encode(&mut self.record);
        let len = (self.record.len() - 4) as u32;
        self.record[..4].copy_from_slice(&len.to_le_bytes());
        // A tape with a gap would tell lies: then it ends here.
        if tape.write_all(&self.record).is_err() {
            self.tape = None;
        }
    }

    fn fault(&self, op: &FileOp) -> Option<Fault> {
        let text = std::fs::read_to_string(self.faults.as_ref()?).ok()?;
        let is_write = matches!(op, FileOp::Write { .. });
        let is_meant = |what: &str| match op {
            FileOp::Open { .. } => what == "open",
            FileOp::Write { sync, .. } => what == "write" || *sync && what == "sync",
            FileOp::Read { .. } => what == "read",
            FileOp::Sync { .. } | FileOp::SyncDir { .. } => what == "sync",
            FileOp::Close { .. } => false,
            FileOp::Remove { .. } => what == "remove",
        };
        text.lines().find_map(|line| {
            let (what, fault) = line.split_once(' ')?;
            if what != "all" && !is_meant(what) {
                return None;
            }
            let error = match fault {
                "EIO" => Errno::IO,
                "ENOSPC" => Errno::NOSPC,
                "EROFS" => Errno::ROFS,
                millis => return Some(Fault::Delay(Duration::from_millis(millis.parse().ok()?))),
            };
            let is_late = is_write && what == "sync";
            Some(if is_late { Fault::LateError(error) } else { Fault::Error(error) })
        })
    }
}

const OPEN: u8 = 1;
const WRITE: u8 = 2;
const ZEROS: u8 = 3;
const READ: u8 = 4;
const SYNC: u8 = 5;
const SYNC_DIR: u8 = 6;
const REMOVE: u8 = 7;
const OVER: u8 = 8;
const CLOSE: u8 = 9;

fn name_of(op: &FileOp) -> (u8, u32, u64) {
    match op {
        FileOp::Open { file, .. } => (OPEN, file.0, 0),
        FileOp::Write { file, offset, .. } => (WRITE, file.0, *offset),
        FileOp::Read { file, offset, .. } => (READ, file.0, *offset),
        FileOp::Sync { file } => (SYNC, file.0, 0),
        FileOp::SyncDir { .. } => (SYNC_DIR, 0, 0),
        FileOp::Close { file } => (CLOSE, file.0, 0),
        FileOp::Remove { file, .. } => (REMOVE, file.0, 0),
    }
}

fn encode(op: &FileOp, out: &mut Vec<u8>) {
    let (kind, file, offset) = name_of(op);
    let bytes: &[u8] = match op {
        FileOp::Write { buf, from, .. } => &buf.as_slice()[*from..],
        _ => &[],
    };
    let is_zero = kind == WRITE && bytes.iter().all(|byte| *byte == 0);
    out.push(if is_zero { ZEROS } else { kind });
    out.extend_from_slice(&file.to_le_bytes());
    out.extend_from_slice(&offset.to_le_bytes());
    out.push(match op {
        FileOp::Write { sync: is_set, .. } | FileOp::Open { create: is_set, .. } => {
            u8::from(*is_set)
        }
        _ => 0,
    });
    match op {
        FileOp::Write { .. } if is_zero => out.extend((bytes.len() as u32).to_le_bytes()),
        FileOp::Write { .. } => out.extend_from_slice(bytes),
        FileOp::Open { path, .. } | FileOp::SyncDir { path } | FileOp::Remove { path, .. } => {
            out.extend_from_slice(path.as_os_str().as_bytes());
        }
        FileOp::Read { buf, .. } => out.extend((buf.len() as u32).to_le_bytes()),
        FileOp::Sync { .. } | FileOp::Close { .. } => {}
    }
}

/// One line of a tape.
#[derive(Debug)]
pub enum Line {
    /// Was asked for.
    Asked(FileOp),
    /// Is over.
    Over {
        /// What was asked for is this.
        is_it: Name,
        /// It succeeded.
        is_ok: bool,
    },
}

/// Which operation, of those under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(u8, u32, u64);

impl Name {
    /// Whether it names this one.
    pub fn is(self, op: &FileOp) -> bool {
        let (kind, file, offset) = name_of(op);
        self == Self(kind, file, offset)
    }
}

/// All that a tape says. What stands behind a record that is not whole is left out.
///
/// # Errors
/// When the file cannot be read.
pub fn read_tape(path: &Path) -> io::Result<Vec<Line>> {
    let bytes = std::fs::read(path)?;
    let mut rest = &bytes[..];
    let mut lines = Vec::new();
    while let Some((len, behind)) = rest.split_first_chunk::<4>() {
        let Some((record, next)) = behind.split_at_checked(u32::from_le_bytes(*len) as usize)
        else {
            break;
        };
        let Some(line) = decode(record) else { break };
        lines.push(line);
        rest = next;
    }
    Ok(lines)
}

fn decode(record: &[u8]) -> Option<Line> {
    let (kind, rest) = record.split_first()?;
    if *kind == OVER {
        let ([is_ok, kind], rest) = rest.split_first_chunk::<2>()?;
        let (file, rest) = rest.split_first_chunk::<4>()?;
        let (offset, _) = rest.split_first_chunk::<8>()?;
        let is_it = Name(*kind, u32::from_le_bytes(*file), u64::from_le_bytes(*offset));
        return Some(Line::Over { is_it, is_ok: *is_ok == 1 });
    }
    let (file, rest) = rest.split_first_chunk::<4>()?;
    let (offset, rest) = rest.split_first_chunk::<8>()?;
    let (is_set, rest) = rest.split_first()?;
    let file = FileId(u32::from_le_bytes(*file));
    let offset = u64::from_le_bytes(*offset);
    let is_set = *is_set == 1;
    let path = || PathBuf::from(std::ffi::OsStr::from_bytes(rest));
    let len = || Some(u32::from_le_bytes(*rest.first_chunk::<4>()?) as usize);
    Some(Line::Asked(match *kind {
        OPEN => FileOp::Open { file, path: path(), create: is_set, direct: true },
        WRITE => {
            let mut buf = BlockBuf::with_capacity(rest.len());
            buf.append(rest.len(), |out| out.extend_from_slice(rest));
            FileOp::Write { file, offset, buf, from: 0, sync: is_set }
        }
        ZEROS => {
            let buf = BlockBuf::zeroed(len()?);
            FileOp::Write { file, offset, buf, from: 0, sync: is_set }
        }
        READ => FileOp::Read { file, offset, buf: BlockBuf::zeroed(len()?) },
        SYNC => FileOp::Sync { file },
        SYNC_DIR => FileOp::SyncDir { path: path() },
        CLOSE => FileOp::Close { file },
        REMOVE => FileOp::Remove { file, path: path() },
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::file::BLOCK;

    const FILE: FileId = FileId(7);

    fn write(byte: u8, sync: bool) -> FileOp {
        let mut buf = BlockBuf::zeroed(2 * BLOCK);
        buf.as_mut_slice().fill(byte);
        FileOp::Write { file: FILE, offset: 4096, buf, from: BLOCK, sync }
    }

    fn tap(folder: &Path) -> Tap {
        let (tape, faults) = (Some(folder.join("tape")), Some(folder.join("faults")));
        Tap::new(&TapOptions { tape, faults }).unwrap().unwrap()
    }

    #[test]
    fn a_tape_tells_what_was_asked_for_and_what_was_over() {
        let folder = tempfile::tempdir().unwrap();
        let mut tap = tap(folder.path());
        let path: PathBuf = "/d/f".into();
        let all = vec![
            FileOp::Open { file: FILE, path: path.clone(), create: true, direct: true },
            write(0, false),
            write(5, true),
            FileOp::Read { file: FILE, offset: 8, buf: BlockBuf::zeroed(BLOCK) },
            FileOp::Sync { file: FILE },
            FileOp::SyncDir { path: "/d".into() },
            FileOp::Close { file: FILE },
            FileOp::Remove { file: FILE, path },
        ];
        let said: Vec<String> = all.iter().map(|op| format!("{op:?}")).collect();
        for op in all {
            let Passed::On(op) = tap.pass(Time::ZERO, op) else { panic!("passed on") };
            tap.over(&mut FileDone { op, result: Ok(0) });
        }
        let tape = folder.path().join("tape");
        let read = |tape: &Path| -> Vec<Line> { read_tape(tape).unwrap() };
        let mut asked = None;
        for (index, line) in read(&tape).into_iter().enumerate() {
            match line {
                Line::Asked(op) => {
                    // A written buffer begins where the write begins.
                    let expected = said[index / 2]
                        .replace("8192 bytes", "4096 bytes")
                        .replace("from: 4096", "from: 0");
                    assert_eq!(format!("{op:?}"), expected);
                    if let FileOp::Write { buf, sync, .. } = &op {
                        assert_eq!(buf.as_slice(), [if *sync { 5 } else { 0 }; BLOCK]);
                    }
                    asked = Some(op);
                }
                Line::Over { is_it, is_ok } => {
                    assert!(is_ok && is_it.is(&asked.take().unwrap()));
                }
            }
        }
        // Killed in the middle of a record.
        let bytes = std::fs::read(&tape).unwrap();
        std::fs::write(&tape, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(read(&tape).len(), 2 * said.len() - 1);
    }

    #[test]
    fn faults_come_and_go_while_it_runs() {
        let folder = tempfile::tempdir().unwrap();
        let mut tap = tap(folder.path());
        let say = |text: &str| std::fs::write(folder.path().join("faults"), text).unwrap();
        say("write ENOSPC");
        let Passed::Failed(done) = tap.pass(Time::ZERO, write(1, false)) else { panic!("failed") };
        assert_eq!(done.result.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        // A sync that fails, of a write: it was made, and nobody knows of what.
        say("sync EIO");
        let Passed::On(op) = tap.pass(Time::ZERO, write(1, true)) else { panic!("made") };
        let mut done = FileDone { op, result: Ok(4096) };
        tap.over(&mut done);
        assert_eq!(done.result.unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(matches!(tap.pass(Time::ZERO, write(1, false)), Passed::On(_)));
        say("all 50");
        assert!(matches!(tap.pass(Time::ZERO, write(1, false)), Passed::Held));
        say("");
        assert!(matches!(tap.pass(Time::ZERO, write(1, false)), Passed::On(_)));
        let due = Time::ZERO + Duration::from_millis(50);
        assert_eq!(tap.deadline(), Some(due));
        assert!(tap.due(Time::ZERO).is_none());
        assert!(tap.due(due).is_some() && tap.deadline().is_none());
    }
}
