//! Messages about repairs.

use super::body::{Reader, bounded};
use super::{BLOCK_END_MAX, CodecError};
use crate::buffer::Payload;
use crate::ids::{GroupId, VolumeId};
use crate::repair::{Repair, RepairStep};
use bytes::{BufMut, BytesMut};

/// Numbers of the steps.
mod step {
    pub const WANT: u8 = 1;
    pub const HAVE: u8 = 2;
    pub const HAVE_NOT: u8 = 3;
}

/// Appends the body.
pub(super) fn put(out: &mut BytesMut, repair: &Repair) {
    out.put_u32_le(repair.group.0);
    out.put_u64_le(repair.request);
    match &repair.step {
        RepairStep::Want { volume, block, checksum } => {
            out.put_u8(step::WANT);
            out.put_u64_le(volume.0);
            out.put_u64_le(*block);
            out.put_u32_le(*checksum);
        }
        RepairStep::Have { content: _ } => out.put_u8(step::HAVE),
        RepairStep::HaveNot => out.put_u8(step::HAVE_NOT),
    }
}

/// Reads the body, still without its payload.
pub(super) fn parse(r: &mut Reader<'_>) -> Result<Repair, CodecError> {
    let (group, request) = (GroupId(r.u32("group")?), r.u64("request")?);
    let step = match r.u8("step")? {
        step::WANT => {
            let (volume, block) = (VolumeId(r.u64("volume")?), r.u64("block")?);
            bounded("block", block, 0, BLOCK_END_MAX - 1)?;
            RepairStep::Want { volume, block, checksum: r.u32("checksum")? }
        }
        step::HAVE => RepairStep::Have { content: Payload::empty() },
        step::HAVE_NOT => RepairStep::HaveNot,
        other => {
            let (value, max) = (u64::from(other), u64::from(step::HAVE_NOT));
            return Err(CodecError::OutOfBounds { field: "step", value, min: 1, max });
        }
    };
    Ok(Repair { group, request, step })
}

/// Blocks of payload that belong to a message.
pub(super) fn payload_blocks(repair: &Repair) -> usize {
    usize::from(matches!(repair.step, RepairStep::Have { .. }))
}
