//! Every byte of a device has an owner, and room comes back.
//!
//! While no more is live than [`Space::capacity`], writes that wait for room get it. A closed segment that
//! is not all live is kept by one of these, and each has somebody who ends it and something that wakes him:
//!
//! * **Live blocks**: the cleaner moves them. It goes on with each turn while it reads a victim, and with the
//!   tick, which does not stop while segments are few and there is something to clean.
//! * **Entries that the Raft log holds and that are applied**: a checkpoint gives them up, all of them once
//!   room is urgent: at the latest when writes wait, before that if the next checkpoint would not give back
//!   enough. The tick asks for one that gives segments back or gives the cleaner a victim, unless one has begun,
//!   and then the tick behind that.
//! * **Entries that are not applied**: their group commits or replaces them. It does not sleep before, so
//!   Raft's clock runs.
//! * **Replay begins before it**: the next checkpoint begins behind all that is applied, or in the segment of
//!   the first entry that is not. If it could begin later behind one more batch, the tick has that written.
//! * **A checkpoint that is being encoded, or waits until what was recorded is durable**: each turn goes on
//!   with it. On a full log, where nothing becomes durable any more, it does not wait.
//! * **A checkpoint that is being saved**: the store's answer.
//! * **It is the copy segment that is being filled**: the cleaner fills it, or the tick closes it if nothing in it
//!   is live. One at a time is reckoned with in what a device takes.
//! * **Copies are on their way to it**: their end.
//! * **Reads of a segment that was given back**: their end.
//!
//! So no checkpoint waits for ever for entries of a group that can not go on: what such a group's replica
//! waits for may be the room, or the state that came in pages, which this very checkpoint brings. What
//! entries that are not applied keep is bounded by what leaders have under way.
//!
//! The cleaner gains a segment whenever its candidates hold more garbage than one takes. With the open
//! segment and the levels of [`Levels`] that is so while live data is within the capacity. It copies to copy
//! segments or into the log above Raft's reserve, or into that if all that is live in a victim fits there: then
//! it takes less than it gives.
//!
//! What waits for room is looked at again when segments become free, when a follower tells that it has room,
//! and at each tick at which there is room. Where none of the above applies (what is live is beyond the
//! capacity, or blocks that rot keep their segments) nothing is to be waited for: then writes are refused.
//! That is judged at a tick, and holds until something is recorded. The simulator watches that on no node
//! that is short of room, and holds less than its capacity, everything stands still.

use super::{Shard, totals};
use crate::checkpoint::pinned_from;
use crate::cleaner::Levels;
use crate::consensus::{Group, PageId};
use crate::index::PageContent;
use crate::log::SegmentState;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::disk::SUPERBLOCK_AREA_BYTES;
use basalt_wire::ids::VolumeId;
use std::collections::BTreeMap;

/// The bytes of a device by what they are for. [`Space::device`] is the sum of all the others but
/// [`Space::capacity`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// All of the device that belongs to the shard.
    pub device: u64,
    /// The area of the superblocks.
    pub superblock: u64,
    /// Blocks that volumes refer to.
    pub live: u64,
    /// What else the newest segments hold: headers, and blocks that a group's Raft log still needs.
    pub log: u64,
    /// What else older segments hold: the cleaner makes room of it.
    pub garbage: u64,
    /// Not written, and open to all.
    pub free: u64,
    /// Not written, and kept for Raft and for the cleaner.
    pub reserve: u64,
    /// Behind the last whole segment.
    pub unused: u64,
    /// Live bytes that the device takes; 0 if nothing is cleaned on it.
    pub capacity: u64,
}

/// The live bytes of a volume on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeSpace {
    /// Of the volume as it is now.
    pub own: u64,
    /// Kept for its snapshots alone.
    pub snapshots: u64,
}

impl Space {
    /// The sum of all parts.
    pub fn sum(&self) -> u64 {
        self.superblock
            + self.live
            + self.log
            + self.garbage
            + self.free
            + self.reserve
            + self.unused
    }
}

impl Shard {
    /// What the device holds; nothing is known before it is open.
    pub fn space(&self) -> Space {
        let log = &self.shared.log;
        let (Some(segments), Some(end)) = (log.segments(), log.end()) else {
            return Space::default();
        };
        let segment_bytes = log.device().1;
        let device = self.start.config.device_bytes;
        let (totals, pinned) = (totals(&self.groups), pinned_from(&self.groups, log));
        let all = segment_bytes * u64::from(log.segments_total());
        let mut space = Space {
            device,
            superblock: SUPERBLOCK_AREA_BYTES,
            unused: device - SUPERBLOCK_AREA_BYTES - all,
            capacity: self.shared.room.levels.as_ref().map_or(0, Levels::capacity_bytes),
            free: segment_bytes * u64::from(segments.free()),
            ..Space::default()
        };
        for segment in segments.in_use() {
            let live = bytes(u64::from(totals.live(segment.id)));
            let used = match segment.state {
                SegmentState::Free => 0,
                SegmentState::Closed | SegmentState::Copies => segment_bytes,
                SegmentState::Open => bytes(u64::from(end.block)),
                SegmentState::Filling => match log.filling() == Some(segment.id) {
                    true => bytes(u64::from(log.filled())),
                    false => segment_bytes,
                },
            };
            space.live += live;
            space.free += segment_bytes - used;
            match segment.state {
                SegmentState::Closed if segment.seq < pinned => space.garbage += used - live,
                SegmentState::Filling | SegmentState::Copies => space.garbage += used - live,
                _ => space.log += used - live,
            }
        }
        // Blocks that the store has lost are nobody's, wherever they stand.
        let lost = self.groups.iter().map(|group| group.replica.usage().lost()).sum();
        space.live -= bytes(lost);
        space.garbage += bytes(lost);
        let kept = self.shared.room.levels.map_or(self.shared.limits.segments_reserved, |l| l.wait);
        space.reserve = space.free.min(u64::from(kept.min(segments.free())) * segment_bytes);
        space.free -= space.reserve;
        space
    }

    /// Whether the accounts of live blocks are equal to a count of all pages. Walks the whole index; `stored`
    /// gives what the store holds of pages whose tables are not in memory.
    pub fn usage_is_exact(&self, stored: impl Fn(PageId) -> PageContent) -> bool {
        let exact = |g: &Group| {
            let stored = |(volume, chunk)| stored(PageId { group: g.id, volume, chunk });
            g.replica.usage().is_exact(&g.replica.recount(stored))
        };
        self.groups.iter().all(exact)
    }

    /// Live bytes of each volume, which together are [`Space::live`].
    pub fn space_by_volume(&self) -> BTreeMap<VolumeId, VolumeSpace> {
        let mut volumes: BTreeMap<VolumeId, VolumeSpace> = BTreeMap::new();
        let all = self.groups.iter().flat_map(|group| group.replica.blocks_by_volume());
        for (id, mapped, kept) in all {
            let volume = volumes.entry(id).or_default();
            volume.own += bytes(mapped);
            volume.snapshots += bytes(kept);
        }
        volumes
    }
}

fn bytes(blocks: u64) -> u64 {
    blocks * BLOCK_BYTES as u64
}
