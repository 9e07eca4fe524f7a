//! Accepting: a multishot accept on each listener, and what is done when the kernel ends it.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use io_uring::cqueue;

use super::ops::Op;
use super::{KIND_ACCEPT, KIND_PEER_WAITS, Uring};
use crate::clock::{self, Time};
use crate::io::socket::{self, AcceptTrouble};
use crate::io::token::Token;
use crate::io::{Completion, ListenerId};
use crate::limits::ACCEPT_PAUSE;

pub(super) struct Listener {
    socket: TcpListener,
    /// The kind of operation in flight, [`KIND_ACCEPT`] or [`KIND_PEER_WAITS`].
    armed: Option<u8>,
    /// There was no descriptor for the last peer. An accept takes its descriptor when it begins,
    /// before there is a peer, so armed again it would fail at once, for ever: we wait for a peer
    /// first.
    no_descriptors: bool,
    resting_until: Option<Time>,
}

impl Listener {
    pub(super) const fn new(socket: TcpListener) -> Self {
        Self { socket, armed: None, no_descriptors: false, resting_until: None }
    }

    /// The kind of operation in flight.
    pub(super) const fn armed(&self) -> Option<u8> {
        self.armed
    }
}

impl Uring {
    /// Arms the listeners that are not, and says when the next one may be.
    pub(super) fn arm_listeners(&mut self) -> Option<Time> {
        let mut earliest = None;
        for index in 0..self.listeners.len() {
            let Some(listener) = &mut self.listeners[index] else { continue };
            if listener.armed.is_some() {
                continue;
            }
            match listener.resting_until {
                Some(until) if clock::now() < until => {
                    earliest = Some(earliest.map_or(until, |e: Time| e.min(until)));
                }
                _ => {
                    listener.resting_until = None;
                    let fd = listener.socket.as_raw_fd();
                    let wait_first = std::mem::take(&mut listener.no_descriptors);
                    let kind = if wait_first { KIND_PEER_WAITS } else { KIND_ACCEPT };
                    listener.armed = Some(kind);
                    let token = Token::plain(kind, index as u32);
                    self.push(if wait_first {
                        Op::poll_once(fd, token)
                    } else {
                        Op::accept_multi(fd, token)
                    });
                }
            }
        }
        earliest
    }

    pub(super) fn on_accept(
        &mut self,
        index: u32,
        result: i32,
        flags: u32,
        completions: &mut Vec<Completion>,
    ) {
        let id = ListenerId(index as u16);
        let accepted = if result >= 0 {
            // SAFETY: a completion of accept with a result that is not negative is a new
            // descriptor, named to nobody else.
            Ok(unsafe { OwnedFd::from_raw_fd(result) })
        } else {
            Err(io::Error::from_raw_os_error(-result))
        };
        // The listener may have been removed meanwhile: then the connection is closed here.
        let Some(Some(listener)) = self.listeners.get_mut(index as usize) else { return };
        if !cqueue::more(flags) {
            listener.armed = None;
            self.counters.rearmed += 1;
        }
        let error = match accepted {
            Ok(socket) if !self.reserve.admits(&socket) => {
                self.counters.emfile += 1;
                return;
            }
            Ok(socket) => {
                self.counters.accepted += 1;
                completions.push(Completion::Accepted { listener: id, socket });
                return;
            }
            Err(error) => error,
        };
        self.counters.accept_failed += 1;
        let rest = match socket::accept_trouble(&error) {
            AcceptTrouble::Next => return,
            AcceptTrouble::NoDescriptors => {
                let turned = self.reserve.turn_away(&listener.socket);
                self.counters.emfile += turned.count as u64;
                listener.no_descriptors = true;
                turned.rest
            }
            AcceptTrouble::Rest => true,
        };
        if rest {
            listener.resting_until = Some(clock::now() + ACCEPT_PAUSE);
        }
        completions.push(Completion::AcceptFailed { listener: id, error });
    }

    /// Somebody wants to be accepted; the next poll tries.
    pub(super) fn on_peer_waits(&mut self, index: u32) {
        if let Some(Some(listener)) = self.listeners.get_mut(index as usize) {
            listener.armed = None;
        }
    }
}
