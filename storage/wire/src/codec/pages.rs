//! Messages that bring a replica up by pages.

use super::body::{Reader, bounded};
use super::{BLOCK_END_MAX, CodecError};
use crate::block::CHUNK_BLOCKS;
use crate::buffer::Payload;
use crate::disk::checkpoint::{GRANULE_BLOCKS, SNAPSHOTS_MAX, VolumeRecord};
use crate::ids::{Epoch, Generation, GroupId, LogIndex, SnapshotId, Term, VolumeId};
use crate::membership::Membership;
use crate::pages::{
    DeltaSums, GranuleSums, HeldBlocks, OFFER_PAGES_MAX, PageDigests, Pages, Step, VOLUMES_MAX,
    WANT_BLOCKS_MAX, WANT_GRANULES_MAX,
};
use bytes::{BufMut, BytesMut};

/// Numbers of the steps.
mod step {
    pub const BEHIND: u8 = 1;
    pub const OPEN: u8 = 2;
    pub const BEGIN: u8 = 3;
    pub const NEXT: u8 = 4;
    pub const OFFER: u8 = 5;
    pub const WANT: u8 = 6;
    pub const BLOCKS: u8 = 7;
    pub const STOP: u8 = 8;
    pub const MEND: u8 = 9;
    pub const MAX: u8 = MEND;
}

const VOLUME_BYTES: u64 = 28;
/// What a volume takes besides that began as a clone.
const PARENT_BYTES: usize = 12;
const PAGE_BYTES: u64 = 32;
const HELD_BYTES: u64 = 3;
const PAIR_BYTES: u64 = 5;
const GRANULE_BYTES: u64 = 7;
const DELTA_BYTES: u64 = 10;
const SUM_BYTES: u64 = 4;
const BLOCK_BYTES: u64 = 6;
/// Granules of a page.
const GRANULES: u64 = CHUNK_BLOCKS / GRANULE_BLOCKS as u64;
/// Blocks of a granule that a follower can hold: those of the volume and of all snapshots, and as many
/// that it got and has no use for yet.
const HELD_MAX: u64 = 2 * ((SNAPSHOTS_MAX + 1) * GRANULE_BLOCKS) as u64;

type Sums = [Option<u32>; GRANULE_BLOCKS];

/// Appends the body.
pub(super) fn put(out: &mut BytesMut, pages: &Pages) {
    out.put_u32_le(pages.group.0);
    out.put_u64_le(pages.term.0);
    out.put_u64_le(pages.session);
    match &pages.step {
        Step::Behind => out.put_u8(step::BEHIND),
        Step::Open { from } => {
            out.put_u8(step::OPEN);
            out.put_u64_le(from.0);
        }
        Step::Begin { start, start_term, members, from, more, volumes } => {
            out.put_u8(step::BEGIN);
            out.put_u64_le(start.0);
            out.put_u64_le(start_term.0);
            put_members(out, members);
            out.put_u64_le(from.0);
            out.put_u8(u8::from(*more));
            out.put_u16_le(volumes.len() as u16);
            volumes.iter().for_each(|(id, volume)| put_volume(out, *id, volume));
        }
        Step::Next { ask, since, volume, chunk } => {
            out.put_u8(step::NEXT);
            out.put_u32_le(*ask);
            out.put_u64_le(since.0);
            out.put_u64_le(volume.0);
            out.put_u64_le(*chunk);
        }
        Step::Offer { ask, at, more, pages } => {
            out.put_u8(step::OFFER);
            out.put_u32_le(*ask);
            out.put_u64_le(at.0);
            out.put_u8(u8::from(*more));
            out.put_u8(pages.len() as u8);
            pages.iter().for_each(|page| put_digests(out, page));
        }
        Step::Want { ask, volume, chunk, most, granules } => {
            out.put_u8(step::WANT);
            put_want(out, *ask, (*volume, *chunk), *most, granules);
        }
        Step::Mend { ask, at, volume, chunk, most, granules } => {
            out.put_u8(step::MEND);
            out.put_u64_le(at.0);
            put_want(out, *ask, (*volume, *chunk), *most, granules);
        }
        Step::Blocks { ask, at, changed_at, granules, blocks, payload: _ } => {
            out.put_u8(step::BLOCKS);
            out.put_u32_le(*ask);
            out.put_u64_le(at.0);
            out.put_u64_le(changed_at.0);
            out.put_u8(granules.len() as u8);
            out.put_u16_le(blocks.len() as u16);
            granules.iter().for_each(|granule| put_granule(out, granule));
            for (block, sum) in blocks {
                out.put_u16_le(*block);
                out.put_u32_le(*sum);
            }
        }
        Step::Stop => out.put_u8(step::STOP),
    }
}

/// Whether a volume is, or was, a clone.
const NO_CLONE: u8 = 0;
const CLONE: u8 = 1;
const DETACHED: u8 = 2;

fn put_want(
    out: &mut BytesMut,
    ask: u32,
    (volume, chunk): (VolumeId, u64),
    most: u16,
    granules: &[HeldBlocks],
) {
    out.put_u32_le(ask);
    out.put_u64_le(volume.0);
    out.put_u64_le(chunk);
    out.put_u16_le(most);
    out.put_u8(granules.len() as u8);
    for granule in granules {
        out.put_u8(granule.number);
        out.put_u16_le(granule.blocks.len() as u16);
        for (block, sum) in &granule.blocks {
            out.put_u8(*block);
            out.put_u32_le(*sum);
        }
    }
}

/// Bytes that a volume takes in a body.
pub(crate) fn volume_bytes(volume: &VolumeRecord) -> usize {
    let parent = if volume.parent.is_some() { PARENT_BYTES } else { 0 };
    VOLUME_BYTES as usize + 4 * volume.snapshots.len() + parent
}

fn put_volume(out: &mut BytesMut, id: VolumeId, volume: &VolumeRecord) {
    out.put_u64_le(id.0);
    out.put_u64_le(volume.epoch.0);
    out.put_u8(u8::from(volume.deleted));
    out.put_u32_le(volume.generation.0);
    out.put_u32_le(volume.first.0);
    out.put_u16_le(volume.snapshots.len() as u16);
    volume.snapshots.iter().for_each(|snapshot| out.put_u32_le(snapshot.0));
    match volume.parent {
        Some(parent) => {
            out.put_u8(CLONE);
            out.put_u64_le(parent.volume.0);
            out.put_u32_le(parent.generation.0);
        }
        None => out.put_u8(if volume.detached { DETACHED } else { NO_CLONE }),
    }
}

fn put_digests(out: &mut BytesMut, page: &PageDigests) {
    out.put_u64_le(page.volume.0);
    out.put_u64_le(page.chunk);
    out.put_u64_le(page.changed_at.0);
    out.put_u64_le(page.granules.iter().fold(0, |mask, (number, _)| mask | 1 << number));
    page.granules.iter().for_each(|(_, digest)| out.put_u64_le(*digest));
}

fn put_granule(out: &mut BytesMut, granule: &GranuleSums) {
    out.put_u8(granule.number);
    out.put_u16_le(granule.deltas.len() as u16);
    put_sums(out, &granule.sums, granule.zeros);
    for delta in &granule.deltas {
        out.put_u32_le(delta.generation.0);
        out.put_u16_le(delta.held);
        put_sums(out, &delta.sums, delta.zeros);
    }
}

fn put_sums(out: &mut BytesMut, sums: &Sums, zeros: u16) {
    let mask = |m: u16, (i, sum): (usize, &Option<u32>)| m | u16::from(sum.is_some()) << i;
    out.put_u16_le(sums.iter().enumerate().fold(0, mask));
    out.put_u16_le(zeros);
    sums.iter().flatten().for_each(|sum| out.put_u32_le(*sum));
}

/// Reads the body, still without its payload.
pub(super) fn parse(r: &mut Reader<'_>) -> Result<Pages, CodecError> {
    let group = GroupId(r.u32("group")?);
    let (term, session) = (Term(r.u64("term")?), r.u64("session")?);
    let step = match r.u8("step")? {
        step::BEHIND => Step::Behind,
        step::OPEN => Step::Open { from: VolumeId(r.u64("volume")?) },
        step::BEGIN => begin(r)?,
        step::NEXT => Step::Next {
            ask: r.u32("ask")?,
            since: LogIndex(r.u64("index")?),
            volume: VolumeId(r.u64("volume")?),
            chunk: chunk(r)?,
        },
        step::OFFER => offer(r)?,
        step::WANT => {
            let (ask, (volume, chunk), most, granules) = want(r)?;
            Step::Want { ask, volume, chunk, most, granules }
        }
        step::MEND => {
            let at = LogIndex(r.u64("index")?);
            let (ask, (volume, chunk), most, granules) = want(r)?;
            Step::Mend { ask, at, volume, chunk, most, granules }
        }
        step::BLOCKS => blocks(r)?,
        step::STOP => Step::Stop,
        other => {
            let (value, max) = (u64::from(other), u64::from(step::MAX));
            return Err(CodecError::OutOfBounds { field: "step", value, min: 1, max });
        }
    };
    Ok(Pages { group, term, session, step })
}

/// Blocks of payload that belong to a message.
pub(super) fn payload_blocks(pages: &Pages) -> usize {
    match &pages.step {
        Step::Blocks { blocks, .. } => blocks.len(),
        _ => 0,
    }
}

fn flag(r: &mut Reader<'_>, field: &'static str) -> Result<bool, CodecError> {
    let value = r.u8(field)?;
    bounded(field, u64::from(value), 0, 1)?;
    Ok(value == 1)
}

fn chunk(r: &mut Reader<'_>) -> Result<u64, CodecError> {
    let chunk = r.u64("chunk")?;
    // One beyond the last, where a question may begin.
    bounded("chunk", chunk, 0, BLOCK_END_MAX / CHUNK_BLOCKS)?;
    Ok(chunk)
}

/// The number of a granule, above the one before.
fn rising(before: Option<u8>, number: u8) -> Result<u8, CodecError> {
    let min = before.map_or(0, |before| u64::from(before) + 1);
    bounded("granule", u64::from(number), min, GRANULES - 1)?;
    Ok(number)
}

fn begin(r: &mut Reader<'_>) -> Result<Step, CodecError> {
    let (start, start_term) = (LogIndex(r.u64("index")?), Term(r.u64("entry's term")?));
    bounded("index", start.0, 1, u64::MAX)?;
    bounded("entry's term", start_term.0, 1, u64::MAX)?;
    let members = read_members(r)?;
    let (from, more) = (VolumeId(r.u64("volume")?), flag(r, "more")?);
    let count = r.u16("volume count")?;
    bounded("volume count", u64::from(count), u64::from(more), VOLUMES_MAX as u64)?;
    r.need("volumes", u64::from(count) * VOLUME_BYTES)?;
    let mut volumes: Vec<(VolumeId, VolumeRecord)> = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let min = volumes.last().map_or(from.0, |(id, _)| id.0.saturating_add(1));
        let id = r.u64("volume")?;
        bounded("volume", id, min, u64::MAX)?;
        volumes.push((VolumeId(id), volume(r, VolumeId(id))?));
    }
    // Nothing is behind the last number there is.
    let full = volumes.windows(2).any(|w| w[0].0 >= w[1].0);
    bounded("volume count", u64::from(full), 0, 0)?;
    Ok(Step::Begin { start, start_term, members, from, more, volumes })
}

fn put_members(out: &mut BytesMut, members: &Membership) {
    let mut bytes = Vec::new();
    members.encode(&mut bytes);
    out.put_u16_le(bytes.len() as u16);
    out.put_slice(&bytes);
}

fn read_members(r: &mut Reader<'_>) -> Result<Membership, CodecError> {
    let length = r.u16("length of the members")?;
    let bytes = r.slice("members", usize::from(length))?;
    Membership::decode(bytes).map_err(CodecError::Members)
}

fn volume(r: &mut Reader<'_>, id: VolumeId) -> Result<VolumeRecord, CodecError> {
    let (epoch, deleted) = (Epoch(r.u64("epoch")?), flag(r, "deleted")?);
    let (generation, first) = (Generation(r.u32("generation")?), Generation(r.u32("generation")?));
    let count = r.u16("snapshot count")?;
    bounded("snapshot count", u64::from(count), 0, SNAPSHOTS_MAX as u64)?;
    r.need("snapshots", u64::from(count) * 4)?;
    let snapshots =
        (0..count).map(|_| r.u32("generation").map(Generation)).collect::<Result<_, _>>()?;
    let (parent, detached) = parent(r, id)?;
    let volume = VolumeRecord { epoch, deleted, generation, first, snapshots, parent, detached };
    if !volume.is_sound() {
        let (value, max) = (u64::from(first.0), u64::from(generation.0));
        return Err(CodecError::OutOfBounds { field: "generation", value, min: 0, max });
    }
    Ok(volume)
}

/// The parent of a volume, which is never the volume itself, and whether it had one.
fn parent(r: &mut Reader<'_>, id: VolumeId) -> Result<(Option<SnapshotId>, bool), CodecError> {
    let kind = r.u8("parent")?;
    bounded("parent", u64::from(kind), u64::from(NO_CLONE), u64::from(DETACHED))?;
    if kind != CLONE {
        return Ok((None, kind == DETACHED));
    }
    let (volume, generation) = (VolumeId(r.u64("parent")?), Generation(r.u32("generation")?));
    if volume == id {
        let (value, max) = (volume.0, u64::MAX);
        return Err(CodecError::OutOfBounds { field: "parent", value, min: 0, max });
    }
    Ok((Some(SnapshotId { volume, generation }), false))
}

fn offer(r: &mut Reader<'_>) -> Result<Step, CodecError> {
    let (ask, at, more) = (r.u32("ask")?, LogIndex(r.u64("index")?), flag(r, "more")?);
    let count = r.u8("page count")?;
    bounded("page count", u64::from(count), u64::from(more), OFFER_PAGES_MAX as u64)?;
    r.need("pages", u64::from(count) * PAGE_BYTES)?;
    let mut pages: Vec<PageDigests> = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let (volume, chunk) = (VolumeId(r.u64("volume")?), chunk(r)?);
        bounded("chunk", chunk, 0, BLOCK_END_MAX / CHUNK_BLOCKS - 1)?;
        let (changed_at, mask) = (LogIndex(r.u64("index")?), r.u64("granules")?);
        r.need("granules", u64::from(mask.count_ones()) * 8)?;
        let numbers = (0..GRANULES as u8).filter(|number| mask >> number & 1 == 1);
        let granules =
            numbers.map(|number| Ok((number, r.u64("digest")?))).collect::<Result<_, _>>()?;
        if pages.last().is_some_and(|p| (p.volume, p.chunk) >= (volume, chunk)) {
            let (value, min) = (chunk, pages.last().map_or(0, |p| p.chunk));
            return Err(CodecError::OutOfBounds { field: "page", value, min, max: u64::MAX });
        }
        pages.push(PageDigests { volume, chunk, changed_at, granules });
    }
    Ok(Step::Offer { ask, at, more, pages })
}

type Want = (u32, (VolumeId, u64), u16, Vec<HeldBlocks>);

fn want(r: &mut Reader<'_>) -> Result<Want, CodecError> {
    let (ask, volume) = (r.u32("ask")?, VolumeId(r.u64("volume")?));
    let chunk = chunk(r)?;
    bounded("chunk", chunk, 0, BLOCK_END_MAX / CHUNK_BLOCKS - 1)?;
    let (most, count) = (r.u16("block count")?, r.u8("granule count")?);
    bounded("block count", u64::from(most), 1, WANT_BLOCKS_MAX as u64)?;
    bounded("granule count", u64::from(count), 1, WANT_GRANULES_MAX as u64)?;
    r.need("granules", u64::from(count) * HELD_BYTES)?;
    let mut granules: Vec<HeldBlocks> = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let number = rising(granules.last().map(|held| held.number), r.u8("granule")?)?;
        let held = r.u16("block count")?;
        bounded("block count", u64::from(held), 0, HELD_MAX)?;
        r.need("blocks", u64::from(held) * PAIR_BYTES)?;
        let mut blocks: Vec<(u8, u32)> = Vec::with_capacity(usize::from(held));
        for _ in 0..held {
            let min = blocks.last().map_or(0, |(block, _)| u64::from(*block));
            let block = r.u8("block")?;
            bounded("block", u64::from(block), min, GRANULE_BLOCKS as u64 - 1)?;
            blocks.push((block, r.u32("checksum")?));
        }
        granules.push(HeldBlocks { number, blocks });
    }
    Ok((ask, (volume, chunk), most, granules))
}

fn blocks(r: &mut Reader<'_>) -> Result<Step, CodecError> {
    let (ask, at) = (r.u32("ask")?, LogIndex(r.u64("index")?));
    let (changed_at, described) = (LogIndex(r.u64("index")?), r.u8("granule count")?);
    bounded("granule count", u64::from(described), 1, WANT_GRANULES_MAX as u64)?;
    let count = r.u16("block count")?;
    bounded("block count", u64::from(count), 0, WANT_BLOCKS_MAX as u64)?;
    r.need("granules", u64::from(described) * GRANULE_BYTES + u64::from(count) * BLOCK_BYTES)?;
    let mut granules: Vec<GranuleSums> = Vec::with_capacity(usize::from(described));
    for _ in 0..described {
        let number = rising(granules.last().map(|granule| granule.number), r.u8("granule")?)?;
        granules.push(granule(r, number)?);
    }
    r.need("blocks", u64::from(count) * BLOCK_BYTES)?;
    let mut blocks: Vec<(u16, u32)> = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let min = blocks.last().map_or(0, |(block, _)| u64::from(*block));
        let block = r.u16("block")?;
        bounded("block", u64::from(block), min, CHUNK_BLOCKS - 1)?;
        blocks.push((block, r.u32("checksum")?));
    }
    Ok(Step::Blocks { ask, at, changed_at, granules, blocks, payload: Payload::empty() })
}

fn granule(r: &mut Reader<'_>, number: u8) -> Result<GranuleSums, CodecError> {
    let count = r.u16("snapshot count")?;
    bounded("snapshot count", u64::from(count), 0, SNAPSHOTS_MAX as u64)?;
    let (sums, zeros) = sums(r, u16::MAX)?;
    r.need("snapshots", u64::from(count) * DELTA_BYTES)?;
    let mut deltas: Vec<DeltaSums> = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let min = deltas.last().map_or(0, |before| u64::from(before.generation.0) + 1);
        let (generation, held) = (r.u32("generation")?, r.u16("held blocks")?);
        bounded("generation", u64::from(generation), min, u64::from(u32::MAX))?;
        bounded("held blocks", u64::from(held), 1, u64::from(u16::MAX))?;
        let (sums, zeros) = self::sums(r, held)?;
        deltas.push(DeltaSums { generation: Generation(generation), held, sums, zeros });
    }
    Ok(GranuleSums { number, sums, zeros, deltas })
}

/// Checksums of mapped blocks, and the mask of zeros; all of which are in `held`.
fn sums(r: &mut Reader<'_>, held: u16) -> Result<(Sums, u16), CodecError> {
    let (mask, zeros) = (r.u16("mapped blocks")?, r.u16("zeros")?);
    bounded("mapped blocks", u64::from(mask & !held), 0, 0)?;
    bounded("zeros", u64::from(zeros & (mask | !held)), 0, 0)?;
    r.need("checksums", u64::from(mask.count_ones()) * SUM_BYTES)?;
    let mut sums = Sums::default();
    for (_, slot) in sums.iter_mut().enumerate().filter(|(i, _)| mask >> i & 1 == 1) {
        *slot = Some(r.u32("checksum")?);
    }
    Ok((sums, zeros))
}
