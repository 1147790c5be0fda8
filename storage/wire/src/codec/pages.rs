//! Messages that bring a replica up by pages.

use super::body::{Reader, bounded};
use super::{BLOCK_END_MAX, CodecError};
use crate::block::CHUNK_BLOCKS;
use crate::buffer::Payload;
use crate::ids::{Epoch, GroupId, LogIndex, Term, VolumeId};
use crate::pages::{
    OFFER_PAGES_MAX, PageSums, Pages, Step, VOLUMES_MAX, VolumeState, WANT_BLOCKS_MAX,
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
}

const VOLUME_BYTES: u64 = 17;
const PAGE_BYTES: u64 = 26;
const SUM_BYTES: u64 = 6;
/// Set in the number of a block that is mapped.
const MAPPED: u16 = 1 << 15;

/// Appends the body.
pub(super) fn put(out: &mut BytesMut, pages: &Pages) {
    out.put_u32_le(pages.group.0);
    out.put_u64_le(pages.term.0);
    out.put_u64_le(pages.session);
    match &pages.step {
        Step::Behind => out.put_u8(step::BEHIND),
        Step::Open => out.put_u8(step::OPEN),
        Step::Begin { start, start_term, volumes } => {
            out.put_u8(step::BEGIN);
            out.put_u64_le(start.0);
            out.put_u64_le(start_term.0);
            out.put_u32_le(volumes.len() as u32);
            for v in volumes {
                out.put_u64_le(v.volume.0);
                out.put_u64_le(v.epoch.0);
                out.put_u8(u8::from(v.deleted));
            }
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
            pages.iter().for_each(|page| put_sums(out, page));
        }
        Step::Want { ask, volume, chunk, blocks } => {
            out.put_u8(step::WANT);
            out.put_u32_le(*ask);
            out.put_u64_le(volume.0);
            out.put_u64_le(*chunk);
            out.put_u16_le(blocks.len() as u16);
            blocks.iter().for_each(|block| out.put_u16_le(*block));
        }
        Step::Blocks { ask, at, blocks, payload: _ } => {
            out.put_u8(step::BLOCKS);
            out.put_u32_le(*ask);
            out.put_u64_le(at.0);
            out.put_u16_le(blocks.len() as u16);
            for (block, sum) in blocks {
                out.put_u16_le(block | if sum.is_some() { MAPPED } else { 0 });
                out.put_u32_le(sum.unwrap_or(0));
            }
        }
        Step::Stop => out.put_u8(step::STOP),
    }
}

fn put_sums(out: &mut BytesMut, page: &PageSums) {
    out.put_u64_le(page.volume.0);
    out.put_u64_le(page.chunk);
    out.put_u64_le(page.changed_at.0);
    out.put_u16_le(page.sums.len() as u16);
    for (block, sum) in &page.sums {
        out.put_u16_le(*block);
        out.put_u32_le(*sum);
    }
}

/// Reads the body, still without its payload.
pub(super) fn parse(r: &mut Reader<'_>) -> Result<Pages, CodecError> {
    let group = GroupId(r.u32("group")?);
    let (term, session) = (Term(r.u64("term")?), r.u64("session")?);
    let step = match r.u8("step")? {
        step::BEHIND => Step::Behind,
        step::OPEN => Step::Open,
        step::BEGIN => begin(r)?,
        step::NEXT => Step::Next {
            ask: r.u32("ask")?,
            since: LogIndex(r.u64("index")?),
            volume: VolumeId(r.u64("volume")?),
            chunk: chunk(r)?,
        },
        step::OFFER => offer(r)?,
        step::WANT => want(r)?,
        step::BLOCKS => blocks(r)?,
        step::STOP => Step::Stop,
        other => {
            let (value, max) = (u64::from(other), u64::from(step::STOP));
            return Err(CodecError::OutOfBounds { field: "step", value, min: 1, max });
        }
    };
    Ok(Pages { group, term, session, step })
}

/// Blocks of payload that belong to a message.
pub(super) fn payload_blocks(pages: &Pages) -> usize {
    match &pages.step {
        Step::Blocks { blocks, .. } => blocks.iter().filter(|(_, sum)| sum.is_some()).count(),
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

/// A block's number in its chunk, above the one before.
fn rising(before: &mut Option<u16>, block: u16) -> Result<u16, CodecError> {
    let min = before.map_or(0, |block| u64::from(block) + 1);
    bounded("block", u64::from(block), min, CHUNK_BLOCKS - 1)?;
    *before = Some(block);
    Ok(block)
}

fn begin(r: &mut Reader<'_>) -> Result<Step, CodecError> {
    let (start, start_term) = (LogIndex(r.u64("index")?), Term(r.u64("entry's term")?));
    bounded("index", start.0, 1, u64::MAX)?;
    bounded("entry's term", start_term.0, 1, u64::MAX)?;
    let count = r.u32("volume count")?;
    bounded("volume count", u64::from(count), 0, VOLUMES_MAX as u64)?;
    r.need("volumes", u64::from(count) * VOLUME_BYTES)?;
    let mut volumes: Vec<VolumeState> = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let (volume, epoch) = (VolumeId(r.u64("volume")?), Epoch(r.u64("epoch")?));
        let min = volumes.last().map_or(0, |v| v.volume.0.saturating_add(1));
        bounded("volume", volume.0, min, u64::MAX)?;
        volumes.push(VolumeState { volume, epoch, deleted: flag(r, "deleted")? });
    }
    Ok(Step::Begin { start, start_term, volumes })
}

fn offer(r: &mut Reader<'_>) -> Result<Step, CodecError> {
    let (ask, at, more) = (r.u32("ask")?, LogIndex(r.u64("index")?), flag(r, "more")?);
    let count = r.u8("page count")?;
    bounded("page count", u64::from(count), 0, OFFER_PAGES_MAX as u64)?;
    r.need("pages", u64::from(count) * PAGE_BYTES)?;
    let mut pages: Vec<PageSums> = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let (volume, chunk) = (VolumeId(r.u64("volume")?), chunk(r)?);
        bounded("chunk", chunk, 0, BLOCK_END_MAX / CHUNK_BLOCKS - 1)?;
        let changed_at = LogIndex(r.u64("index")?);
        let sums = r.u16("block count")?;
        bounded("block count", u64::from(sums), 0, CHUNK_BLOCKS)?;
        r.need("blocks", u64::from(sums) * SUM_BYTES)?;
        let mut before = None;
        let sums = (0..sums)
            .map(|_| Ok((rising(&mut before, r.u16("block")?)?, r.u32("checksum")?)))
            .collect::<Result<Vec<_>, CodecError>>()?;
        if pages.last().is_some_and(|p| (p.volume, p.chunk) >= (volume, chunk)) {
            let (value, min) = (chunk, pages.last().map_or(0, |p| p.chunk));
            return Err(CodecError::OutOfBounds { field: "page", value, min, max: u64::MAX });
        }
        pages.push(PageSums { volume, chunk, changed_at, sums });
    }
    Ok(Step::Offer { ask, at, more, pages })
}

fn want(r: &mut Reader<'_>) -> Result<Step, CodecError> {
    let (ask, volume) = (r.u32("ask")?, VolumeId(r.u64("volume")?));
    let chunk = chunk(r)?;
    bounded("chunk", chunk, 0, BLOCK_END_MAX / CHUNK_BLOCKS - 1)?;
    let count = r.u16("block count")?;
    bounded("block count", u64::from(count), 1, WANT_BLOCKS_MAX as u64)?;
    r.need("blocks", u64::from(count) * 2)?;
    let mut before = None;
    let blocks =
        (0..count).map(|_| rising(&mut before, r.u16("block")?)).collect::<Result<_, _>>()?;
    Ok(Step::Want { ask, volume, chunk, blocks })
}

fn blocks(r: &mut Reader<'_>) -> Result<Step, CodecError> {
    let (ask, at) = (r.u32("ask")?, LogIndex(r.u64("index")?));
    let count = r.u16("block count")?;
    bounded("block count", u64::from(count), 1, WANT_BLOCKS_MAX as u64)?;
    r.need("blocks", u64::from(count) * SUM_BYTES)?;
    let mut before = None;
    let mut blocks = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let (number, sum) = (r.u16("block")?, r.u32("checksum")?);
        let mapped = number & MAPPED != 0;
        if !mapped {
            bounded("checksum of an unmapped block", u64::from(sum), 0, 0)?;
        }
        blocks.push((rising(&mut before, number & !MAPPED)?, mapped.then_some(sum)));
    }
    Ok(Step::Blocks { ask, at, blocks, payload: Payload::empty() })
}
