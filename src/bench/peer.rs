//! One connection of the generator, and what is to become of it.
#![forbid(unsafe_code)]

use super::frames::Frames;
use super::shared::{Role, Seat};
use super::workload::{Plan, Visit, Workload};
use crate::buf::OutBuf;
use crate::client::{Client, Options};
use crate::clock::Time;
use crate::ids::ConnId;

/// Whether there is a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// No.
    Down,
    /// Yes.
    Open,
    /// It is being closed.
    Closing,
}

/// What follows when the socket is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// Nothing: it is the end.
    Nothing,
    /// It stays away, and has done what it should by that.
    Absent,
    /// The next visit may begin.
    NextVisit,
    /// It connects again.
    Return,
    /// It connects again, to end its session.
    EndSession,
}

/// How a publisher learns that everything before was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Barrier {
    None,
    Asked,
    Passed,
}

/// What a client is at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub(super) after: After,
    /// When the connection, or the visit under way, was to begin.
    pub(super) intended: Time,
    /// From when on deliveries are late, instead of from their intended send.
    pub(super) since: Option<Time>,
    /// SUBACKs that are awaited.
    pub(super) awaiting: u32,
    /// It has what its role needs.
    pub(super) up: bool,
    /// A visit is under way.
    pub(super) busy: bool,
    /// The connection ends because we want it.
    pub(super) leaving: bool,
    pub(super) barrier: Barrier,
    /// Messages that have been taken out of the broker again.
    pub(super) cleared: u32,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) client: Client,
    pub(super) frames: Frames,
    /// None while it is being sent.
    pub(super) buf: Option<OutBuf>,
    pub(super) dirty: bool,
    pub(super) seat: Seat,
    pub(super) generation: u32,
    pub(super) link: Link,
    pub(super) life: Life,
    /// Reads with pauses.
    pub(super) slow: bool,
}

impl Peer {
    pub(super) fn new(plan: &Plan, seat: Seat) -> Self {
        let (letter, slow) = match seat.role {
            Role::Publisher => ('p', false),
            Role::Subscriber => ('s', seat.number as usize >= plan.layout().heard()),
            Role::Requester => ('q', false),
            Role::Responder => ('r', false),
            Role::Visitor => ('v', false),
        };
        let id = format!("bench-{}-{letter}{}", plan.run, seat.number);
        let mut options = Options::new(plan.version, id);
        // Visitors ping on their schedule, others never.
        options.keep_alive = match seat.role {
            Role::Visitor if plan.keep_alive > 0 => plan.keep_alive,
            _ => plan.quiet_keep_alive(),
        };
        options.topic_alias_maximum = plan.settings.topic_alias_maximum.unwrap_or(0);
        options.in_flight_max = match seat.role {
            Role::Responder => u16::MAX,
            _ => plan.in_flight,
        };
        if plan.workload == Workload::Offline && seat.role == Role::Subscriber {
            options.clean_start = false;
            // Should the run not come to its end, the broker gets rid of it after an hour.
            options.session_expiry_interval = 3600;
        }
        Self {
            client: Client::new(options),
            frames: Frames::default(),
            buf: Some(OutBuf::new()),
            dirty: false,
            seat,
            generation: 0,
            link: Link::Down,
            life: Life {
                after: After::Nothing,
                intended: Time::ZERO,
                since: None,
                awaiting: 0,
                up: false,
                busy: false,
                leaving: false,
                barrier: Barrier::None,
                cleared: 0,
            },
            slow,
        }
    }

    /// Whether it connects before the load begins.
    pub(super) fn is_in_set_up(&self, plan: &Plan) -> bool {
        self.seat.role != Role::Visitor || plan.visit() != Visit::Session
    }

    pub(super) fn conn(&self, index: usize) -> ConnId {
        ConnId { index: index as u32, generation: self.generation }
    }
}

/// A list of numbers without repetition.
#[derive(Debug, Default)]
pub(super) struct Queue {
    list: Vec<u32>,
    queued: Vec<bool>,
}

impl Queue {
    pub(super) fn new(len: usize) -> Self {
        Self { list: Vec::with_capacity(len), queued: vec![false; len] }
    }

    #[inline]
    pub(super) fn push(&mut self, index: usize) {
        if !std::mem::replace(&mut self.queued[index], true) {
            self.list.push(index as u32);
        }
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<usize> {
        let index = self.list.pop()? as usize;
        self.queued[index] = false;
        Some(index)
    }

    pub(super) fn push_all(&mut self) {
        (0..self.queued.len()).for_each(|index| self.push(index));
    }
}
