//! The shard: one core's share of a node.

mod status;

pub use status::{GroupRole, GroupStatus, Phase, ShardStatus};

use crate::config::ShardConfig;
use crate::event::{Effect, Event};
use basalt_wire::ids::{GroupId, LogIndex};
use basalt_wire::io::DiskOp;
use basalt_wire::time::Time;

/// One core's share of a node: its segment log, its index, its replicas.
pub struct Shard {
    status: ShardStatus,
}

impl Shard {
    /// The device writes that make a fresh device. The driver carries all of them out before it
    /// opens the shard.
    pub fn format(_config: &ShardConfig) -> Vec<DiskOp> {
        Vec::new()
    }

    /// Starts recovery. Requests are refused as unavailable until it is over.
    pub fn open(_config: ShardConfig, _now: Time, _out: &mut Vec<Effect>) -> Shard {
        Shard {
            status: ShardStatus {
                phase: Phase::Opening,
                groups: Vec::new(),
                segments_free: 0,
                segments_total: 0,
                open_report: None,
                mapped_blocks: 0,
                index_bytes: 0,
                pending_requests: 0,
                pending_bytes: 0,
            },
        }
    }

    /// Takes an event.
    pub fn handle(&mut self, _now: Time, _event: Event, _out: &mut Vec<Effect>) {}

    /// Ends a turn, after all its events: proposes, steps groups, writes the log, sends.
    pub fn end_turn(&mut self, _now: Time, _out: &mut Vec<Effect>) {}

    /// When [`Shard::end_turn`] must be called at the latest.
    pub fn next_deadline(&self) -> Option<Time> {
        None
    }

    /// The shard's state.
    pub fn status(&self) -> ShardStatus {
        self.status.clone()
    }

    /// A digest of a group's mapped blocks and epochs, and the index it is of: equal on all replicas
    /// that applied the same index (invariant I6). Walks the whole index.
    pub fn digest(&self, _group: GroupId) -> Option<(LogIndex, u64)> {
        None
    }
}
