//! One link of the session: whether it stands, its credit, and what is unanswered on it.

use crate::Tuning;
use crate::pace::Pace;
use basalt_wire::ids::{Address, Incarnation, RequestId};
use basalt_wire::time::Time;
use std::collections::VecDeque;
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Link {
    pub address: Address,
    pub state: LinkState,
    /// Whether the map still has a replica there; if not, the link is not dialled again.
    pub used: bool,
    /// Number of the link that stands, or of the last one that did.
    pub incarnation: Incarnation,
    /// Requests sent, oldest first. The first one is unanswered, others may be answered already.
    pub sent: VecDeque<(RequestId, Time)>,
    /// Parts that wait for credit.
    pub queue: VecDeque<u32>,
    /// No reply for a while although requests wait: reads go elsewhere.
    pub suspect: bool,
    /// How fast reads are.
    pub pace: Pace,
    /// The last reply, or when the link came up.
    pub heard: Time,
    /// When to look next for requests that are overdue.
    pub look_at: Time,
    redial_after: Duration,
    credit_bytes: usize,
    credit_requests: usize,
    used_bytes: usize,
    used_requests: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// Asked for; to be asked for anew at the given time.
    Dialling(Time),
    /// Broken; to be dialled at the given time.
    Down(Time),
    /// Stands.
    Up,
}

impl Link {
    pub fn new(address: Address, tuning: &Tuning, now: Time) -> Link {
        Link {
            address,
            state: LinkState::Dialling(now + tuning.dial_timeout),
            used: true,
            incarnation: Incarnation(0),
            sent: VecDeque::new(),
            queue: VecDeque::new(),
            suspect: false,
            pace: Pace::default(),
            heard: now,
            look_at: now,
            redial_after: tuning.retry_min,
            credit_bytes: 0,
            credit_requests: 0,
            used_bytes: 0,
            used_requests: 0,
        }
    }

    pub fn is_up(&self) -> bool {
        self.state == LinkState::Up
    }

    /// The link stands. What was unanswered on the one before was taken back.
    pub fn up(&mut self, incarnation: Incarnation, bytes: u32, requests: u32, now: Time) {
        assert!(self.sent.is_empty(), "a new link has nothing unanswered");
        self.state = LinkState::Up;
        self.incarnation = incarnation;
        self.suspect = false;
        self.pace.forget();
        self.heard = now;
        self.look_at = now;
        self.credit_bytes = bytes as usize;
        // A receiver that allows no request at all would hold up the session for ever.
        self.credit_requests = (requests as usize).max(1);
        self.used_bytes = 0;
        self.used_requests = 0;
    }

    /// The link broke; it is dialled again after a while that doubles each time.
    pub fn down(&mut self, tuning: &Tuning, now: Time) {
        self.state = LinkState::Down(now + self.redial_after);
        self.redial_after = (self.redial_after * 2).min(tuning.retry_max);
    }

    pub fn has_credit(&self, bytes: usize) -> bool {
        // A request larger than the whole credit goes alone.
        let fits = self.used_bytes + bytes <= self.credit_bytes || self.used_bytes == 0;
        fits && self.used_requests < self.credit_requests
    }

    /// Requests sent and not answered.
    pub fn unanswered(&self) -> usize {
        self.used_requests
    }

    pub fn take_credit(&mut self, bytes: usize) {
        self.used_bytes += bytes;
        self.used_requests += 1;
    }

    /// A reply came: its request's credit is free again, and the other side lives.
    pub fn answered(&mut self, bytes: usize, tuning: &Tuning, now: Time) {
        self.used_bytes -= bytes;
        self.used_requests -= 1;
        self.heard = now;
        self.suspect = false;
        self.redial_after = tuning.retry_min;
    }

    /// When the oldest unanswered request was sent.
    pub fn oldest(&self) -> Option<Time> {
        self.sent.front().map(|(_, at)| *at)
    }

    /// When something is to be done about this link.
    pub fn deadline(&self, tuning: &Tuning) -> Option<Time> {
        match self.state {
            LinkState::Dialling(_) | LinkState::Down(_) if !self.used => None,
            LinkState::Dialling(at) | LinkState::Down(at) => Some(at),
            LinkState::Up => self.oldest().map(|oldest| {
                let look = (oldest + tuning.suspect_after).max(self.look_at);
                look.min(oldest + tuning.request_timeout)
            }),
        }
    }
}
