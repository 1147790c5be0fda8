//! The user's requests, their parts, and what was sent for them.

use crate::group::VoterSet;
use crate::limit::Cost;
use crate::retry::Copies;
use crate::split::Cursor;
use crate::trace::Stopwatch;
use crate::types::{BlockError, BlockResult, EXTENT_RUNS_MAX};
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS, crc32c};
use basalt_wire::buffer::{IoBuf, Payload};
use basalt_wire::command::BlockRange;
use basalt_wire::ids::{Generation, GroupId, RequestId, SnapshotId};
use basalt_wire::time::Time;
use std::collections::VecDeque;

/// Parts of one request under way at a time: a request of any size takes bounded memory and leaves
/// room for others. 64 parts of a write are 64 MiB.
pub(crate) const OP_PARTS_MAX: u32 = 64;

/// Parts of a fill under way at a time: it is work in the background.
const FILL_PARTS_MAX: u32 = 4;

/// No part, no request.
pub(crate) const NONE: u32 = u32::MAX;

/// A request of the user.
#[derive(Debug)]
pub(crate) struct Op {
    pub tag: u64,
    pub verb: Verb,
    pub cursor: Cursor,
    /// Parts started and not finished.
    pub under_way: u32,
    /// Parts started.
    pub started: u32,
    pub error: Option<BlockError>,
    /// Bytes of a write's data.
    pub write_bytes: usize,
    /// When it was submitted, and how many bytes it is about.
    pub began: Time,
    pub bytes: u64,
    /// What it counts for the volume's guaranteed minimum, if it has one, and whether it is within that.
    pub counted: Option<(Cost, bool)>,
    /// Set if it is traced.
    pub traced: Option<Box<Traced>>,
}

/// A traced request.
#[derive(Debug)]
pub(crate) struct Traced {
    /// When the session's bounds let it begin.
    pub started: Time,
    /// Requests of the user that were under way when it came, this one included.
    pub depth: u32,
    /// The part that was answered last.
    pub last: Option<Box<Stopwatch>>,
}

/// What a request does, and what has come of it.
#[derive(Debug)]
pub(crate) enum Verb {
    Read(InOrder<Payload>, Payload),
    Write(Payload),
    Unmap,
    Fill(SnapshotId),
    /// Of changes since a generation, if one is given.
    Extents(InOrder<(Runs, u64, u64)>, ExtentSum, Option<Generation>),
    Control(Control),
}

/// What is done to the volume as a whole, in every group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    Delete,
    Freeze(Generation),
    CloseGate(Generation),
    OpenGate(Generation),
    DropSnapshot(Generation),
    Revert(Generation),
    Clone(SnapshotId),
    Detach(SnapshotId),
}

impl Control {
    /// Whether it makes room, so that it will come through on a full device too.
    pub fn makes_room(self) -> bool {
        matches!(self, Control::Delete | Control::DropSnapshot(_))
    }
}

/// Runs of blocks, and whether they are mapped.
pub(crate) type Runs = Vec<(u32, bool)>;

/// Puts results that come in any order into theirs.
#[derive(Debug)]
pub(crate) struct InOrder<T> {
    next: u32,
    later: VecDeque<Option<T>>,
}

impl<T> InOrder<T> {
    pub fn new() -> InOrder<T> {
        InOrder { next: 0, later: VecDeque::new() }
    }

    /// Takes the result of this number, and gives those whose turn it is.
    pub fn put(&mut self, number: u32, result: T, mut give: impl FnMut(T)) {
        if number == self.next && self.later.is_empty() {
            self.next += 1;
            return give(result);
        }
        let place = (number - self.next) as usize;
        while self.later.len() <= place {
            self.later.push_back(None);
        }
        self.later[place] = Some(result);
        while let Some(Some(_)) = self.later.front() {
            self.next += 1;
            give(self.later.pop_front().flatten().expect("just seen"));
        }
    }
}

/// Extents in bytes, neighbours of one kind merged.
#[derive(Debug, Default)]
pub(crate) struct ExtentSum {
    pub runs: Vec<(u64, bool)>,
    /// Whether there are so many that the answer ends here.
    pub full: bool,
}

impl ExtentSum {
    /// Adds the runs of one part, of which the bytes `skip..skip + len` are asked for.
    pub fn add(&mut self, runs: &Runs, skip: u64, len: u64) {
        let (mut skip, mut left) = (skip, len);
        for (blocks, mapped) in runs {
            let bytes = u64::from(*blocks) * BLOCK_BYTES as u64;
            let take = bytes.saturating_sub(skip).min(left);
            skip = skip.saturating_sub(bytes);
            left -= take;
            let room = self.runs.len() < EXTENT_RUNS_MAX;
            match self.runs.last_mut() {
                _ if take == 0 || self.full => {}
                Some((last, same)) if same == mapped => *last += take,
                _ if room => self.runs.push((take, *mapped)),
                _ => self.full = true,
            }
        }
    }
}

impl Verb {
    /// The request's good end.
    pub fn into_result(self) -> BlockResult {
        match self {
            Verb::Read(_, data) => BlockResult::Data(data),
            Verb::Extents(_, sum, _) => BlockResult::Extents(sum.runs),
            Verb::Write(_) | Verb::Unmap | Verb::Fill(_) | Verb::Control(_) => BlockResult::Done,
        }
    }

    /// Parts of it under way at a time.
    pub fn parts_max(&self) -> u32 {
        match self {
            Verb::Fill(_) => FILL_PARTS_MAX,
            _ => OP_PARTS_MAX,
        }
    }
}

/// A part of a request: what one request to one group is about.
#[derive(Debug)]
pub(crate) struct Part {
    /// The user's request; [`NONE`] for a fence.
    pub op: u32,
    /// Which of its parts.
    pub number: u32,
    pub group: GroupId,
    pub range: BlockRange,
    pub kind: PartKind,
    pub copies: Copies,
    /// The generation that the last copy carried.
    pub generation: Generation,
    /// What was sent for it and is unanswered, or [`NONE`].
    pub sent: u32,
    /// Voters that could not serve this read lately.
    pub tried: VoterSet,
    /// Voters whose copy of the blocks is damaged.
    pub damaged: VoterSet,
    /// How often all of them were, and when they are asked again.
    pub damaged_rounds: u32,
    pub again_at: Time,
    /// Set if its request is traced.
    pub watch: Option<Box<Stopwatch>>,
}

#[derive(Debug)]
pub(crate) enum PartKind {
    /// Bytes `skip..skip + len` of the range.
    Read {
        skip: u32,
        len: u32,
    },
    /// Bytes of the range, `skip` of the first block left out.
    Extents {
        skip: u32,
        len: u64,
        since: Option<Generation>,
    },
    /// The first half of changing a part of a block: it is read, then the part becomes a write.
    Change(Box<Change>),
    Write {
        payload: Payload,
        checksums: Vec<u32>,
    },
    Unmap,
    Fill(SnapshotId),
    Fence,
    Control(Control),
}

/// The change of a part of a block.
#[derive(Debug)]
pub(crate) struct Change {
    pub skip: usize,
    pub len: usize,
    /// The new bytes; zeros if there are none.
    pub data: Option<Payload>,
}

impl Change {
    /// The block with the change made.
    pub fn apply(&self, block: &Payload) -> Payload {
        let mut buf = IoBuf::alloc(BLOCK_BYTES);
        block.copy_to(&mut buf);
        let target = &mut buf[self.skip..self.skip + self.len];
        match &self.data {
            Some(data) => data.copy_to(target),
            None => target.fill(0),
        }
        Payload::from(buf.freeze())
    }
}

impl Part {
    pub fn chunk(&self) -> u64 {
        self.range.block / CHUNK_BLOCKS
    }

    /// Whether any replica may serve it as it is now.
    pub fn is_read(&self) -> bool {
        matches!(self.kind, PartKind::Read { .. } | PartKind::Extents { .. } | PartKind::Change(_))
    }

    /// Whether it holds a lock on its blocks until it is finished.
    pub fn is_locked(&self) -> bool {
        matches!(self.kind, PartKind::Write { .. } | PartKind::Unmap | PartKind::Change(_))
    }

    /// Whether it comes through on a full device too: a fence, and what makes room.
    pub fn must_come_through(&self) -> bool {
        match self.kind {
            PartKind::Fence => true,
            PartKind::Control(control) => control.makes_room(),
            _ => false,
        }
    }

    /// Bytes of payload that it sends.
    pub fn payload_bytes(&self) -> usize {
        match &self.kind {
            PartKind::Write { payload, .. } => payload.len(),
            _ => 0,
        }
    }
}

/// A request on a link that has not been answered.
#[derive(Debug)]
pub(crate) struct Sent {
    pub id: RequestId,
    pub link: u16,
    pub what: SentFor,
    /// Its payload's credit.
    pub bytes: usize,
    /// When it was sent.
    pub at: Time,
    /// What it weighs, if it is a read.
    pub read: Option<u64>,
}

/// What a request was sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SentFor {
    Part(u32),
    /// A question who leads the group, to one of its voters.
    Leader(GroupId, usize),
    /// Its part went elsewhere; it only holds credit.
    Nobody,
}

/// CRC-32C of each block.
pub(crate) fn block_checksums(payload: &Payload) -> Vec<u32> {
    assert!(payload.len().is_multiple_of(BLOCK_BYTES), "whole blocks");
    let mut checksums = Vec::with_capacity(payload.len() / BLOCK_BYTES);
    for_each_block(payload, |block| checksums.push(crc32c(block)));
    checksums
}

/// Whether the payload is as many blocks as there are checksums, and matches them.
pub(crate) fn matches_checksums(payload: &Payload, checksums: &[u32]) -> bool {
    if payload.len() != checksums.len() * BLOCK_BYTES {
        return false;
    }
    let (mut same, mut next) = (true, checksums.iter());
    for_each_block(payload, |block| same &= next.next() == Some(&crc32c(block)));
    same
}

/// Visits each block, copying only those that stand in two pieces.
fn for_each_block(payload: &Payload, mut visit: impl FnMut(&[u8])) {
    let mut split: Vec<u8> = Vec::new();
    for piece in payload.pieces() {
        let mut rest = &piece[..];
        if !split.is_empty() {
            let take = (BLOCK_BYTES - split.len()).min(rest.len());
            split.extend_from_slice(&rest[..take]);
            rest = &rest[take..];
            if split.len() < BLOCK_BYTES {
                continue;
            }
            visit(&split);
            split.clear();
        }
        let blocks = rest.chunks_exact(BLOCK_BYTES);
        split.extend_from_slice(blocks.remainder());
        blocks.for_each(&mut visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_put_in_order() {
        let mut order = InOrder::new();
        let mut got = Vec::new();
        for number in [0, 2, 4, 1, 3, 5] {
            order.put(number, number, |n| got.push(n));
        }
        assert_eq!(got, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn extents_are_merged_and_trimmed() {
        let mut sum = ExtentSum::default();
        sum.add(&vec![(2, true), (2, false)], 512, 4 * 4096 - 512);
        sum.add(&vec![(1, false), (3, true)], 0, 2 * 4096 + 100);
        assert_eq!(sum.runs, [(8192 - 512, true), (3 * 4096, false), (4096 + 100, true)]);
    }

    #[test]
    fn checksums_do_not_depend_on_the_pieces() {
        let bytes: Vec<u8> = (0..3 * BLOCK_BYTES).map(|i| (i / 7) as u8).collect();
        let whole = block_checksums(&Payload::from(bytes::Bytes::from(bytes.clone())));
        assert_eq!(whole, bytes.chunks(BLOCK_BYTES).map(crc32c).collect::<Vec<_>>());
        for cut in [1, 512, 4095, 4096, 5000] {
            let mut cut_up = Payload::empty();
            bytes.chunks(cut).for_each(|c| cut_up.push(bytes::Bytes::copy_from_slice(c)));
            assert_eq!(block_checksums(&cut_up), whole);
            assert!(matches_checksums(&cut_up, &whole));
            assert!(!matches_checksums(&cut_up, &whole[1..]));
        }
    }
}
