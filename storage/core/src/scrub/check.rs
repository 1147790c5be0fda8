//! Verifying the blocks of one range.

use super::Target;
use crate::log::Location;
use crate::mark;
use basalt_wire::block::{BLOCK_BYTES, crc32c};
use basalt_wire::disk::moved::MovedBlock;
use bytes::Bytes;
use std::collections::VecDeque;

/// Blocks that are read at a time: 256 KiB, so that a client's read does not wait long behind one.
const RUN_BLOCKS_MAX: usize = 64;

/// Blocks that stand one behind the other.
#[derive(Debug)]
struct Run {
    at: Location,
    blocks: Vec<MovedBlock>,
    /// Whether they failed before: what failed once may be the fault of the way to here.
    again: bool,
}

/// A range being verified.
#[derive(Debug)]
pub(super) struct Check {
    slot: usize,
    runs: VecDeque<Run>,
    reading: Option<Run>,
}

/// What came of a read.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// Blocks that were read.
    pub blocks: u32,
    /// Blocks that have their checksum.
    pub verified: u32,
    /// Blocks that have failed twice.
    pub bad: Vec<MovedBlock>,
}

impl Check {
    /// Of blocks ordered by place.
    pub fn new(target: Target, blocks: Vec<MovedBlock>) -> Check {
        Check { slot: target.slot, runs: runs_of(blocks), reading: None }
    }

    /// The group's position in the shard.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// Whether a read is under way.
    pub fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// Whether all is read.
    pub fn is_done(&self) -> bool {
        self.runs.is_empty() && self.reading.is_none()
    }

    /// The first of the blocks that are being read.
    pub fn first_read(&self) -> Option<&MovedBlock> {
        self.reading.as_ref()?.blocks.first()
    }

    /// What is to be read next; nothing at the end.
    pub fn next_read(&mut self) -> Option<(Location, u32)> {
        let run = self.runs.pop_front()?;
        let read = (run.at, run.blocks.len() as u32);
        self.reading = Some(run);
        Some(read)
    }

    /// Takes what was read, or nothing if it can not be read.
    pub fn take(&mut self, piece: Option<&Bytes>) -> Read {
        let Some(run) = self.reading.take() else { return Read::default() };
        let mut read = Read { blocks: run.blocks.len() as u32, ..Read::default() };
        for (i, block) in run.blocks.into_iter().enumerate() {
            let content = piece.and_then(|piece| piece.get(i * BLOCK_BYTES..(i + 1) * BLOCK_BYTES));
            if content.is_some_and(|content| crc32c(content) == block.checksum) {
                read.verified += 1;
            } else if run.again {
                read.bad.push(block);
            } else {
                mark!("scrub looks again");
                let at = Location { block: run.at.block + i as u32, ..run.at };
                self.runs.push_back(Run { at, blocks: vec![block], again: true });
            }
        }
        read
    }
}

/// Puts blocks together that stand one behind the other.
fn runs_of(blocks: Vec<MovedBlock>) -> VecDeque<Run> {
    let mut runs: VecDeque<Run> = VecDeque::new();
    for block in blocks {
        let Some((segment, at)) = block.from else { continue };
        match runs.back_mut() {
            Some(run)
                if run.at.segment == segment
                    && run.at.block + run.blocks.len() as u32 == at
                    && run.blocks.len() < RUN_BLOCKS_MAX =>
            {
                run.blocks.push(block);
            }
            _ => {
                let at = Location { segment, block: at };
                runs.push_back(Run { at, blocks: vec![block], again: false });
            }
        }
    }
    runs
}
