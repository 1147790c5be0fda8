//! Power cuts of a whole cluster, from records of its devices.
//!
//! 1. [`record`]: three nodes and a client run in this process, on real files through the real ring;
//!    the devices are recorded, and the instants at which the power could have failed are noted.
//! 2. [`check`]: for such an instant, the three images that a cut may have left are built.
//! 3. [`revive`]: three shards are opened on them without an operator, over an instant network.
//! 4. They must elect leaders, take writes, agree with each other, and hold everything that was
//!    acknowledged before the cut and nothing that was never written ([`ledger`]).

pub mod campaign;
pub mod check;
pub mod ledger;
pub mod record;
pub mod revive;
pub mod writer;

use basalt_core::config::{GroupConfig, Limits, ShardConfig, Timing};
use basalt_core::planted::Planted;
use basalt_wire::disk::SUPERBLOCK_AREA_BYTES;
use basalt_wire::ids::{Address, ClusterId, GroupId, NodeId, ShardId};

/// Nodes of the cluster.
pub const NODES: usize = 3;
/// The one volume.
pub const VOLUME: u64 = 1;
/// Its chunks.
pub const CHUNKS: u64 = 4;
/// Blocks at the start of each chunk that are written; few, so that most are overwritten often.
pub const HOT_BLOCKS: u64 = 24;
/// Groups that the chunks are spread over.
pub const GROUPS: u32 = 2;
const CLUSTER: ClusterId = ClusterId(77);
/// Small, so that a run of a moment fills many of them.
const SEGMENT_BYTES: u64 = 64 << 10;
const SEGMENTS: u64 = 72;
/// Bytes of each node's device. Small, as three images are built for each cut.
pub const DEVICE_BYTES: u64 = SUPERBLOCK_AREA_BYTES + SEGMENTS * SEGMENT_BYTES;

/// Where node `n`, counted from 0, is reached.
pub fn address(n: usize) -> Address {
    Address { node: NodeId(n as u32 + 1), shard: ShardId(0) }
}

/// The configuration of node `n`.
pub fn shard_config(n: usize, seed: u64) -> ShardConfig {
    let voters: Vec<Address> = (0..NODES).map(address).collect();
    let ids = (0..GROUPS).map(GroupId).chain([GroupId::METADATA]);
    ShardConfig {
        cluster: CLUSTER,
        address: address(n),
        device_bytes: DEVICE_BYTES,
        segment_bytes: SEGMENT_BYTES,
        volatile_cache: true,
        groups: ids.map(|id| GroupConfig::new(id, voters.clone())).collect(),
        timing: Timing::default(),
        limits: Limits { entry_bytes: 16 << 10, batch_bytes: 32 << 10, ..Limits::default() },
        checkpoint_bytes: 0,
        index_bytes: u64::MAX,
        scrub: basalt_core::config::Scrubbing::ASKED,
        metadata_saved: basalt_wire::ids::LogIndex(0),
        seed: seed.wrapping_mul(31).wrapping_add(n as u64),
        planted: Planted::NONE,
    }
}
