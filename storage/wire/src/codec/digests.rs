//! Messages that compare replicas.

use super::body::{Reader, bounded};
use super::{BLOCK_END_MAX, CodecError};
use crate::block::CHUNK_BLOCKS;
use crate::digests::{DIGESTS_MAX, Digests, DigestsKind, PageDigest};
use crate::ids::{GroupId, LogIndex, VolumeId};
use bytes::{BufMut, BytesMut};

const PAGE_BYTES: u64 = 24;

/// Numbers of the kinds.
mod kind {
    pub const ROUND: u8 = 1;
    pub const ASK: u8 = 2;
    pub const ANSWER: u8 = 3;
}

/// Appends the body.
pub(super) fn put(out: &mut BytesMut, digests: &Digests) {
    out.put_u32_le(digests.group.0);
    out.put_u8(match digests.kind {
        DigestsKind::Round => kind::ROUND,
        DigestsKind::Ask => kind::ASK,
        DigestsKind::Answer => kind::ANSWER,
    });
    out.put_u64_le(digests.at.0);
    out.put_u16_le(digests.pages.len() as u16);
    for page in &digests.pages {
        out.put_u64_le(page.volume.0);
        out.put_u64_le(page.chunk);
        out.put_u64_le(page.digest);
    }
}

/// Reads the body.
pub(super) fn parse(r: &mut Reader<'_>) -> Result<Digests, CodecError> {
    let group = GroupId(r.u32("group")?);
    let kind = match r.u8("kind of digests")? {
        kind::ROUND => DigestsKind::Round,
        kind::ASK => DigestsKind::Ask,
        kind::ANSWER => DigestsKind::Answer,
        other => {
            let (field, max) = ("kind of digests", u64::from(kind::ANSWER));
            return Err(CodecError::OutOfBounds { field, value: u64::from(other), min: 1, max });
        }
    };
    let at = LogIndex(r.u64("index")?);
    let count = r.u16("page count")?;
    bounded("page count", u64::from(count), 1, DIGESTS_MAX as u64)?;
    r.need("pages", u64::from(count) * PAGE_BYTES)?;
    let mut pages: Vec<PageDigest> = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let (volume, chunk) = (VolumeId(r.u64("volume")?), r.u64("chunk")?);
        bounded("chunk", chunk, 0, BLOCK_END_MAX / CHUNK_BLOCKS - 1)?;
        if let Some(last) = pages.last().filter(|p| (p.volume, p.chunk) >= (volume, chunk)) {
            let (value, min) = (chunk, last.chunk);
            return Err(CodecError::OutOfBounds { field: "page", value, min, max: u64::MAX });
        }
        pages.push(PageDigest { volume, chunk, digest: r.u64("digest")? });
    }
    Ok(Digests { group, kind, at, pages })
}
