//! Memory shared by all connections of a door.
//!
//! A connection is granted what its requests need before their data is received. What was granted is
//! never taken back, so that whoever has begun can finish, and finishing gives it back. A client that
//! holds memory for a request that it does not finish sending is cut off after a while.

use super::conns::{Conn, Conns};
use basalt_wire::time::Time;
use std::time::Duration;

/// Data that a connection may always have: what comes in one chunk needs no grant.
const FREE: usize = 64 << 10;

/// What was granted, and who waits.
pub(super) struct Memory {
    max: usize,
    granted: usize,
    starved: Vec<u32>,
    /// Whether any was given back since those who wait were last asked.
    freed: bool,
    request_time: Duration,
    /// When to look for clients that do not finish their requests; nothing while none owes anything.
    sweep_at: Option<Time>,
}

impl Memory {
    pub fn new(max: usize, request_time: Duration) -> Memory {
        Memory { max, granted: 0, starved: Vec::new(), freed: false, request_time, sweep_at: None }
    }

    /// Settles what a connection holds and needs. Whether it may go on receiving.
    pub fn settle(&mut self, now: Time, index: u32, conn: &mut Conn) -> bool {
        let session = conn.connection.session();
        let awaited = session.awaited();
        let need = (session.in_flight() + awaited).saturating_sub(FREE);
        let others = self.granted - conn.granted;
        let fits = need <= conn.granted || others == 0 || others + need <= self.max;
        if fits {
            self.freed |= need < conn.granted;
            self.granted = others + need;
            conn.granted = need;
        } else if !std::mem::replace(&mut conn.starved, true) {
            self.starved.push(index);
        }
        if awaited == 0 || !fits {
            conn.owes_since = None;
        } else {
            conn.owes_since.get_or_insert(now);
            self.sweep_at.get_or_insert(now + self.request_time / 4);
        }
        fits
    }

    /// A connection is gone.
    pub fn release(&mut self, conn: &Conn) {
        self.freed |= conn.granted > 0;
        self.granted -= conn.granted;
    }

    /// Those that wait, if memory was given back: each is to be settled anew.
    pub fn fed(&mut self, conns: &mut Conns) -> Vec<u32> {
        if !std::mem::take(&mut self.freed) || self.starved.is_empty() {
            return Vec::new();
        }
        let fed = std::mem::take(&mut self.starved);
        for index in &fed {
            if let Some(conn) = conns.get_mut(*index) {
                conn.starved = false;
            }
        }
        fed
    }

    /// When [`Memory::stuck`] is to be asked.
    pub fn deadline(&self) -> Option<Time> {
        self.sweep_at
    }

    /// The connections that owe the rest of a request for too long.
    pub fn stuck(&mut self, now: Time, conns: &mut Conns) -> Vec<u32> {
        if self.sweep_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.sweep_at = None;
        let mut stuck = Vec::new();
        for index in conns.indexes() {
            let since = conns.get_mut(index).and_then(|conn| conn.owes_since);
            match since {
                Some(since) if since + self.request_time <= now => stuck.push(index),
                Some(_) => self.sweep_at = Some(now + self.request_time / 4),
                None => {}
            }
        }
        stuck
    }
}
