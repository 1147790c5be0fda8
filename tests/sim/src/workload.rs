//! What clients ask for.

use crate::options::{Options, Pattern};
use crate::rng::Rng;
use crate::stamp::{OpId, Stamp};
use basalt_client::BlockOp;
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS};
use basalt_wire::buffer::{IoBuf, Payload};
use basalt_wire::ids::{Generation, SnapshotId};

/// What an operation does to the units that it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads them.
    Read,
    /// Writes its own value to each.
    Write,
    /// Zeros them.
    Unmap,
    /// Touches none: a flush, or a question about extents.
    Other,
    /// Touches none: takes the snapshot of the generation that `unit` says.
    Freeze,
    /// Touches none: closes, or opens, the gate behind the generation that `unit` says.
    CloseGate,
    /// As [`Kind::CloseGate`].
    OpenGate,
    /// Touches none: drops the snapshot of the generation that `unit` says.
    Drop,
    /// Brings all back: reverts to the snapshot of the generation that `unit` says.
    Revert,
    /// Touches none: begins the volume as a clone of the snapshot above it.
    Clone,
    /// Touches none: gives the volume blocks of its own where it reads as the snapshot above it does.
    Fill,
    /// Touches none: the volume hangs on the snapshot above it no more.
    Detach,
}

/// An operation before it is submitted.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What it does.
    pub kind: Kind,
    /// The first unit.
    pub unit: u64,
    /// Units.
    pub count: u32,
}

/// The windows of blocks that operations keep to: one around the start of each chunk, so that a few
/// blocks see all the work, and operations across two chunks (and so two groups) are frequent.
pub fn windows(o: &Options, chunks: u32) -> Vec<(u64, u64)> {
    let window = u64::from(o.window);
    (0..u64::from(chunks))
        .map(|c| ((c * CHUNK_BLOCKS).saturating_sub(window), c * CHUNK_BLOCKS + window))
        .collect()
}

/// Draws the next operation of a client that knows of so many chunks.
pub fn plan(o: &Options, chunks: u32, rng: &mut Rng) -> Plan {
    let (low, high) = *rng.pick(&windows(o, chunks));
    let most = u64::from(o.blocks_max).min(high - low);
    let count = match o.pattern {
        Pattern::Overlapping => most,
        _ => rng.within(1, most),
    };
    let block = match o.pattern {
        Pattern::Hot if rng.chance(0.5) => low,
        _ => rng.within(low, high - count),
    };
    let draw = rng.fraction();
    let kind = match () {
        () if draw < o.reads => Kind::Read,
        () if draw < o.reads + o.unmaps => Kind::Unmap,
        () if rng.chance(0.02) => Kind::Other,
        () => Kind::Write,
    };
    let per_block = (BLOCK_BYTES / o.unit) as u64;
    let (mut unit, mut units) = (block * per_block, count * per_block);
    if per_block > 1 && rng.chance(0.5) {
        // Not whole blocks: the client has to read, change and write.
        let skip = rng.below(units);
        unit += skip;
        units = rng.within(1, units - skip);
    }
    Plan { kind, unit, count: units as u32 }
}

/// The request that carries out a plan for a volume, below which a snapshot may stand.
pub fn request(
    plan: &Plan,
    o: &Options,
    (volume, above): (u64, Option<SnapshotId>),
    client: u32,
    op: OpId,
) -> BlockOp {
    let parent = || above.expect("only clones are asked so");
    let bytes = o.unit as u64;
    let (offset, len) = (plan.unit * bytes, u64::from(plan.count) * bytes);
    match plan.kind {
        Kind::Read => BlockOp::Read { offset, len: len as u32 },
        Kind::Unmap => BlockOp::Unmap { offset, len },
        Kind::Freeze => BlockOp::Snapshot { generation: Generation(plan.unit as u32) },
        Kind::CloseGate => BlockOp::CloseGate { generation: Generation(plan.unit as u32) },
        Kind::OpenGate => BlockOp::OpenGate { generation: Generation(plan.unit as u32) },
        Kind::Drop => BlockOp::DropSnapshot { generation: Generation(plan.unit as u32) },
        Kind::Clone => BlockOp::Clone { parent: parent() },
        Kind::Fill => BlockOp::Fill { offset, len, parent: parent() },
        Kind::Detach => BlockOp::Detach { parent: parent() },
        Kind::Revert => BlockOp::Revert { generation: Generation(plan.unit as u32) },
        Kind::Other if op.is_multiple_of(2) => BlockOp::Flush,
        Kind::Other => BlockOp::Extents { offset, len },
        Kind::Write => {
            let mut buf = IoBuf::alloc(len as usize);
            for (i, unit) in buf.chunks_exact_mut(o.unit).enumerate() {
                Stamp { client, volume, unit: plan.unit + i as u64, op }.fill(unit);
            }
            BlockOp::Write { offset, data: Payload::from(buf.freeze()), fua: op.is_multiple_of(3) }
        }
    }
}
