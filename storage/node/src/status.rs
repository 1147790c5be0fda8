//! What a reactor says about itself.

use crate::config::Polling;
use crate::links::{Owner, State};
use crate::net::Net;
use basalt_core::shard::ShardStatus;
use basalt_wire::ids::Address;
use std::time::Duration;

/// Counts since the reactor started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Turns of the reactor.
    pub turns: u64,
    /// System calls of the ring.
    pub enters: u64,
    /// Turns for which the reactor went to sleep before.
    pub sleeps: u64,
    /// Waits that ended while spinning, and those that spun in vain.
    pub spins_hit: u64,
    /// See [`Counters::spins_hit`].
    pub spins_missed: u64,
    /// Nanoseconds not spent sleeping.
    pub busy_nanos: u64,
    /// Events given to the shard.
    pub shard_events: u64,
    /// Events given to tenants.
    pub tenant_events: u64,
    /// Effects of the shard carried out.
    pub effects: u64,
    /// Device operations started.
    pub disk_ops: u64,
    /// Requests of clients and tenants.
    pub requests: u64,
    /// Frames received.
    pub frames_in: u64,
    /// Receives that brought something: `frames_in / receives` is the size of an incoming batch.
    pub receives: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Frames queued.
    pub frames_out: u64,
    /// Sends started: `frames_out / sends` is the size of an outgoing batch.
    pub sends: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Frames to peers that were dropped, because the link was down or its queue full.
    pub frames_dropped: u64,
    /// Connections accepted.
    pub accepts: u64,
    /// Connections closed because of something that they did.
    pub closed_for_cause: u64,
}

/// A link that the reactor dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// The reactor at its other end.
    pub to: Address,
    /// The tenant that it belongs to; nothing for the shard's link to a peer.
    pub tenant: Option<usize>,
    /// Whether it is open.
    pub up: bool,
    /// How often it was opened.
    pub opened: u64,
    /// Frames or requests queued on it.
    pub frames: u64,
    /// Frames dropped.
    pub dropped: u64,
    /// Bytes queued and not yet taken by the kernel.
    pub queued: usize,
    /// Why the last attempt failed or the last connection ended; empty if there was none.
    pub last_error: String,
}

/// The state of the device under the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostState {
    /// Open.
    Open,
    /// A write failed; the device is being closed and will be opened again.
    Reopening {
        /// Attempts so far.
        attempts: u32,
        /// What failed.
        reason: String,
    },
    /// Given up.
    Failed(String),
}

/// The shard of a reactor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostStatus {
    /// The device's description.
    pub device: String,
    /// The device's state.
    pub state: HostState,
    /// The shard, while the device is open.
    pub shard: Option<ShardStatus>,
}

/// A reactor's state, for operators and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReactorStatus {
    /// Its name.
    pub name: String,
    /// Its address, if it hosts a shard.
    pub address: Option<Address>,
    /// Time since it started.
    pub uptime: Duration,
    /// Its shard.
    pub shard: Option<HostStatus>,
    /// Links that it dials.
    pub links: Vec<LinkStatus>,
    /// Open connections of the data port.
    pub accepted: usize,
    /// Those of them that have not said who they are.
    pub strangers: usize,
    /// Open streams of tenants.
    pub streams: usize,
    /// Counts.
    pub counters: Counters,
    /// Whether and how long it may spin.
    pub polling: Polling,
    /// The latest connections closed because of something that they did, oldest first.
    pub closed: Vec<String>,
}

impl ReactorStatus {
    /// The shard's state, if it is open.
    pub fn shard(&self) -> Option<&ShardStatus> {
        self.shard.as_ref()?.shard.as_ref()
    }
}

impl Net {
    pub(crate) fn link_statuses(&self) -> Vec<LinkStatus> {
        let status = |link: &crate::links::Link| LinkStatus {
            to: link.to,
            tenant: match link.owner {
                Owner::Shard => None,
                Owner::Tenant(tenant) => Some(tenant),
            },
            up: matches!(link.state, State::Up(_) | State::Local(_)),
            opened: link.opened,
            frames: link.frames,
            dropped: link.dropped,
            queued: match link.state {
                State::Up(handle) => self.conns.get(handle).map_or(0, |conn| conn.tx.queued()),
                _ => 0,
            },
            last_error: link.last_error.clone(),
        };
        self.links.iter().map(status).collect()
    }
}
