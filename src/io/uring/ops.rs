//! Submissions, and the memory behind the only ones that need any: sends.
//!
//! Invariant: an [`Op`] holds no pointer to user memory unless it was built by the unsafe
//! [`SendOp::submission`] or its like for files, whose caller keeps it until its completion. Receives carry no
//! pointer: the kernel picks a buffer of the registered ring. A descriptor that has been closed is
//! no matter of safety: the kernel answers EBADF.

use std::os::fd::RawFd;
use std::ptr;

use io_uring::opcode;
use io_uring::squeue::Flags;
use io_uring::types::{CancelBuilder, Fd};

use super::ring::Entry;
use crate::buf::OutBuf;
use crate::io::token::Token;
use crate::limits::SEND_PIECES;

/// A submission that may be queued.
pub(super) struct Op(Entry);

/// The buffer ring of all receives; there is one per `io_uring`.
pub(super) const BUFFER_GROUP: u16 = 0;

/// Most bytes in one plain send: lengths are 32 bits, results 31.
const SEND_BYTES_MAX: usize = 1 << 30;

const SEND_FLAGS: i32 = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
/// Of a send that says nothing when all went well: it is over when it was submitted, one way or the
/// other. What it could not send at once makes it fail, and then it does say so, and how far it came.
const QUIET_FLAGS: i32 = SEND_FLAGS | libc::MSG_DONTWAIT;

impl Op {
    pub(super) const fn entry(&self) -> &Entry {
        &self.0
    }

    fn with(entry: Entry, token: Token) -> Self {
        Self(entry.user_data(token.word()))
    }

    /// One buffer of input.
    pub(super) fn recv_once(fd: RawFd, token: Token) -> Self {
        // Length zero means as much as the picked buffer holds.
        let entry = opcode::Recv::new(Fd(fd), ptr::null_mut(), 0).buf_group(BUFFER_GROUP).build();
        Self::with(entry.flags(Flags::BUFFER_SELECT), token)
    }

    /// Input until told otherwise.
    pub(super) fn recv_multi(fd: RawFd, token: Token) -> Self {
        Self::with(opcode::RecvMulti::new(Fd(fd), BUFFER_GROUP).build(), token)
    }

    /// Connections until told otherwise.
    pub(super) fn accept_multi(fd: RawFd, token: Token) -> Self {
        Self::with(opcode::AcceptMulti::new(Fd(fd)).flags(libc::SOCK_CLOEXEC).build(), token)
    }

    /// A completion when `fd` is readable.
    pub(super) fn poll_once(fd: RawFd, token: Token) -> Self {
        Self::with(opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).build(), token)
    }

    /// A completion for each time that `fd` becomes readable.
    pub(super) fn poll_multi(fd: RawFd, token: Token) -> Self {
        Self::with(opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).multi(true).build(), token)
    }

    /// Ends the operation that went as `target`. A completion comes only if it was not found.
    pub(super) fn cancel(target: Token, token: Token) -> Self {
        let builder = CancelBuilder::user_data(target.word());
        let entry = opcode::AsyncCancel2::new(builder).build();
        Self::with(entry.flags(Flags::SKIP_SUCCESS), token)
    }

    /// What [`super::files`] has built, which owns the memory.
    pub(super) fn file(entry: Entry, token: Token) -> Self {
        Self::with(entry, token)
    }

    /// Puts a completion with the word `arrives_as` into another ring. One comes here only if that
    /// failed.
    pub(super) fn message(ring: RawFd, arrives_as: Token, token: Token) -> Self {
        let entry = opcode::MsgRingData::new(Fd(ring), 0, arrives_as.word(), None).build();
        Self::with(entry.flags(Flags::SKIP_SUCCESS), token)
    }
}

/// A send in flight: owns the bytes, and the list of pieces that the kernel reads.
pub(super) struct SendOp {
    buf: OutBuf,
    /// Bytes that the kernel has taken.
    offset: usize,
    /// Bytes of the submission in flight.
    asked: usize,
    /// The submission in flight has a completion only if it did not send all.
    quiet: bool,
    /// Present when there are pieces. On the heap, because the kernel has its address.
    gather: Option<Gather>,
}

/// The list of pieces of one send, as sendmsg(2) wants it; to be used again.
pub(super) struct Gather(Box<Message>);

struct Message {
    pieces: [libc::iovec; SEND_PIECES],
    header: libc::msghdr,
}

impl Gather {
    pub(super) fn new() -> Self {
        let none = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        let header = libc::msghdr {
            msg_name: ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: ptr::null_mut(),
            msg_iovlen: 0,
            msg_control: ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        Self(Box::new(Message { pieces: [none; SEND_PIECES], header }))
    }
}

impl SendOp {
    /// Sends all of `buf`, which is not empty; a `gather` is needed unless it is contiguous.
    pub(super) fn new(buf: OutBuf, gather: Option<Gather>) -> Self {
        debug_assert!(!buf.is_empty() && buf.is_contiguous() == gather.is_none());
        Self { buf, offset: 0, asked: 0, quiet: false, gather }
    }

    /// The next part to send; `quiet` if that is all there is, and it is to be [`SendOp::is_quiet`].
    ///
    /// # Safety
    /// Until the completion of what is returned, or for ever if it may still come, `self` must be
    /// neither changed nor dropped. A quiet one has none if the kernel has taken it from the queue
    /// and says nothing. It may be moved: all that the kernel has addresses of is on
    /// the heap.
    pub(super) unsafe fn submission(&mut self, fd: RawFd, token: Token, quiet: bool) -> Op {
        let left = self.buf.len() - self.offset;
        let Some(Gather(message)) = &mut self.gather else {
            let rest = &self.buf.contiguous()[self.offset..];
            self.asked = rest.len().min(SEND_BYTES_MAX);
            self.quiet = quiet && self.asked == left;
            let send = opcode::Send::new(Fd(fd), rest.as_ptr(), self.asked as u32);
            let (message, entry) = flags_of(self.quiet);
            return Op::with(send.flags(message).build().flags(entry), token);
        };
        self.asked = 0;
        let mut count = 0;
        for (piece, slice) in message.pieces.iter_mut().zip(self.buf.slices_from(self.offset)) {
            // sendmsg only reads, though its type says otherwise.
            piece.iov_base = slice.as_ptr().cast_mut().cast();
            piece.iov_len = slice.len();
            self.asked += slice.len();
            count += 1;
        }
        message.header.msg_iov = message.pieces.as_mut_ptr();
        message.header.msg_iovlen = count;
        self.quiet = quiet && self.asked == left;
        let send = opcode::SendMsg::new(Fd(fd), &raw const message.header);
        let (message, entry) = flags_of(self.quiet);
        Op::with(send.flags(message as u32).build().flags(entry), token)
    }

    /// What the submission in flight sends if it sends all and says nothing of it.
    pub(super) fn is_quiet(&self) -> Option<usize> {
        self.quiet.then_some(self.asked)
    }

    /// `n` bytes have left. Whether that was less than was asked for.
    pub(super) fn advance(&mut self, n: usize) -> bool {
        assert!(n <= self.asked, "invariant: the kernel sends no more than it was given");
        self.offset += n;
        n < self.asked
    }

    /// Whether all is out.
    pub(super) fn is_done(&self) -> bool {
        self.offset == self.buf.len()
    }

    /// Takes it apart, when no submission is in flight.
    pub(super) fn into_parts(self) -> (OutBuf, Option<Gather>) {
        (self.buf, self.gather)
    }
}

/// Flags of a send, and of its submission.
const fn flags_of(quiet: bool) -> (i32, Flags) {
    if quiet { (QUIET_FLAGS, Flags::SKIP_SUCCESS) } else { (SEND_FLAGS, Flags::empty()) }
}
