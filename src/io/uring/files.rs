//! Writing to and reading from files in the ring. The rest goes to the helper thread.
//!
//! Invariant: an operation stays in `file_ops`, with its buffer and its descriptor, from its
//! submission to its completion; a short one goes on from where it was.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::opcode;
use io_uring::types::Fd;
use rustix::io::Errno;

use super::ops::Op;
use super::{KIND_FILE, Uring};
use crate::io::file::FileOp;
use crate::io::token::Token;

/// A write or read in flight.
pub(super) struct FileWork {
    op: FileOp,
    fd: Arc<OwnedFd>,
    /// Bytes that were written or read.
    done: usize,
}

/// Most bytes of one submission: lengths are 32 bits, results 31.
const PIECE_BYTES_MAX: usize = 1 << 30;

impl FileWork {
    /// The next part.
    ///
    /// # Safety
    /// Until the completion of what is returned, or for ever if it may still come, `self` must be
    /// neither changed nor dropped. It may be moved: its buffer is on the heap.
    unsafe fn submission(&mut self, token: Token) -> Op {
        let fd = Fd(self.fd.as_raw_fd());
        let done = self.done;
        let entry = match &mut self.op {
            FileOp::Write { offset, buf, from, sync, .. } => {
                let rest = &buf.as_slice()[*from + done..];
                let len = rest.len().min(PIECE_BYTES_MAX) as u32;
                let flags = if *sync { libc::RWF_DSYNC } else { 0 };
                opcode::Write::new(fd, rest.as_ptr(), len)
                    .offset(*offset + done as u64)
                    .rw_flags(flags)
                    .build()
            }
            FileOp::Read { offset, buf, .. } => {
                let rest = &mut buf.as_mut_slice()[done..];
                let len = rest.len().min(PIECE_BYTES_MAX) as u32;
                opcode::Read::new(fd, rest.as_mut_ptr(), len).offset(*offset + done as u64).build()
            }
            other => unreachable!("invariant: {} is no work for the ring", other.verb()),
        };
        Op::file(entry, token)
    }

    fn len(&self) -> usize {
        match &self.op {
            FileOp::Write { buf, from, .. } => buf.len() - from,
            FileOp::Read { buf, .. } => buf.len(),
            _ => 0,
        }
    }
}

impl Uring {
    /// In the ring if it is a write or a read, else by the helper thread.
    pub(super) fn start_file(&mut self, op: FileOp) {
        let (FileOp::Write { file, .. } | FileOp::Read { file, .. }) = &op else {
            return self.files.submit(op);
        };
        let Some(fd) = self.files.get(*file).cloned() else {
            return self.files.fail(op, Errno::BADF);
        };
        let work = FileWork { op, fd, done: 0 };
        if work.len() == 0 {
            return self.files.finish(work.op, Ok(0));
        }
        let key = self.file_ops.insert(work);
        self.push_file(key);
    }

    fn push_file(&mut self, key: usize) {
        // SAFETY: it stays in `file_ops`, untouched, until `on_file` gets its completion; `drop`
        // waits for that, or leaks `file_ops`.
        let op = unsafe { self.file_ops[key].submission(Token::plain(KIND_FILE, key as u32)) };
        self.push(op);
    }

    pub(super) fn on_file(&mut self, key: u32, result: i32) {
        let key = key as usize;
        let Some(work) = self.file_ops.get_mut(key) else {
            self.counters.stale += 1;
            return;
        };
        let result = match usize::try_from(result) {
            Ok(0) if matches!(work.op, FileOp::Read { .. }) => Ok(work.done),
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                work.done += n;
                assert!(work.done <= work.len(), "invariant: no more than was asked for");
                if work.done < work.len() {
                    return self.push_file(key);
                }
                Ok(work.done)
            }
            Err(_) => match io::Error::from_raw_os_error(-result) {
                again if again.kind() == io::ErrorKind::Interrupted => return self.push_file(key),
                error => Err(error),
            },
        };
        let work = self.file_ops.remove(key);
        self.files.finish(work.op, result);
    }
}
