//! Reading: which runs of the log hold a range's blocks, and how they come together again.

use super::Replica;
use super::clones::Layers;
use crate::index::BlockPlace;
use crate::log::Location;
use crate::mark;
use crate::planted::Bug;
use basalt_wire::block::{BLOCK_BYTES, crc32c};
use basalt_wire::buffer::Payload;
use basalt_wire::command::BlockRange;
use basalt_wire::frame::Refusal;
use basalt_wire::ids::{Epoch, Generation, LogIndex, VolumeId};
use bytes::Bytes;

/// CRC-32C of a block of zeros.
fn zero_checksum() -> u32 {
    static ZERO: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *ZERO.get_or_init(|| crc32c(&ZEROS[..BLOCK_BYTES]))
}

static ZEROS: [u8; 64 * BLOCK_BYTES] = [0; 64 * BLOCK_BYTES];

/// A run of a range's blocks: consecutive in the log, or unmapped.
#[derive(Clone, Debug)]
struct Run {
    place: Option<Location>,
    blocks: u32,
    data: Option<Bytes>,
}

/// A read under way.
#[derive(Default, Debug)]
pub struct Plan {
    /// The index of the entry that changed the chunk last.
    pub index: LogIndex,
    /// CRC-32C of each block.
    pub checksums: Vec<u32>,
    runs: Vec<Run>,
    missing: u32,
}

/// What came of a read that can not be answered with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// A block does not match its checksum, or the device could not read it.
    Damaged,
}

impl Replica {
    /// Whether a read of this session may be served here now.
    pub fn check_read(
        &self,
        (id, epoch): (VolumeId, Epoch),
        floor: LogIndex,
        snapshot: Option<Generation>,
    ) -> Result<(), Refusal> {
        // A page that is ahead may have seen that a snapshot was dropped.
        let fuzzy = self.is_fuzzy() && !self.planted.is(Bug::FuzzyPagesServed);
        if let Some(snapshot) = snapshot {
            return if fuzzy { Err(Refusal::Behind) } else { self.check_snapshot(id, snapshot) };
        }
        if self.applied < floor && !self.planted.is(Bug::FloorUnchecked) {
            return Err(Refusal::Behind);
        }
        if fuzzy {
            mark!("read of pages that are ahead");
            return Err(Refusal::Behind);
        }
        self.check_epoch(id, epoch)
    }

    /// Plans the read of a range of one chunk, of the volume as it is or of a snapshot of it.
    ///
    /// What is read of a parent is a snapshot, which was there before the clone was: the last change of the
    /// clone's own page is all that a later reader must know of.
    pub fn plan(&self, id: VolumeId, range: BlockRange, snapshot: Option<Generation>) -> Plan {
        let layers = self.layers(id, range, snapshot);
        let (index, count) = (layers.changed_at(), range.count as usize);
        let mut plan =
            Plan { index, checksums: Vec::with_capacity(count), runs: Vec::new(), missing: 0 };
        for i in 0..count {
            let place = layers.place(i);
            plan.checksums.push(place.map_or_else(zero_checksum, |p| p.checksum));
            plan.extend(place.map(|p| Location { segment: p.segment, block: p.block }));
        }
        plan.missing = plan.runs.iter().filter(|run| run.place.is_some()).count() as u32;
        plan
    }

    /// The runs of mapped and unmapped blocks in a range, and the index of its last change.
    pub fn extents(
        &self,
        id: VolumeId,
        range: BlockRange,
        snapshot: Option<Generation>,
    ) -> (LogIndex, Vec<(u32, bool)>) {
        let layers = self.layers(id, range, snapshot);
        runs_of(&layers, range, |layers, block| layers.place(block).is_some())
    }

    /// The runs of blocks in a range that were changed and were not changed between two snapshots, or
    /// between one and now, and the index of its last change. A block that was written with what it held
    /// counts as changed.
    pub fn changes(
        &self,
        id: VolumeId,
        range: BlockRange,
        since: Generation,
        until: Option<Generation>,
    ) -> (LogIndex, Vec<(u32, bool)>) {
        let layers = self.layers(id, range, until);
        // Of a snapshot before the group heard of the volume everything that is mapped differs.
        let empty = self.is_before(id, since);
        runs_of(&layers, range, |layers, block| {
            layers.changed_since(since, until, block) || (empty && layers.place(block).is_some())
        })
    }
}

/// The runs of blocks of which something holds, in a range of a page, and the index of its last change.
fn runs_of(
    layers: &Layers<'_>,
    range: BlockRange,
    holds: impl Fn(&Layers<'_>, usize) -> bool,
) -> (LogIndex, Vec<(u32, bool)>) {
    let mut runs: Vec<(u32, bool)> = Vec::new();
    for i in 0..range.count as usize {
        let is = holds(layers, i);
        match runs.last_mut() {
            Some(run) if run.1 == is => run.0 += 1,
            _ => runs.push((1, is)),
        }
    }
    (layers.changed_at(), runs)
}

impl Plan {
    /// The plan to read blocks, wherever they stand.
    pub fn of(places: impl Iterator<Item = BlockPlace>) -> Plan {
        let mut plan =
            Plan { index: LogIndex(0), checksums: Vec::new(), runs: Vec::new(), missing: 0 };
        for place in places {
            plan.checksums.push(place.checksum);
            plan.extend(Some(Location { segment: place.segment, block: place.block }));
        }
        plan.missing = plan.runs.len() as u32;
        plan
    }

    fn extend(&mut self, place: Option<Location>) {
        if let Some(run) = self.runs.last_mut() {
            let next = run.place.map(|at| Location { block: at.block + run.blocks, ..at });
            if next == place {
                run.blocks += 1;
                return;
            }
        }
        self.runs.push(Run { place, blocks: 1, data: None });
    }

    /// The reads to be made: the run's number, its place and its blocks.
    pub fn reads(&self) -> impl Iterator<Item = (usize, Location, u32)> + '_ {
        let runs = self.runs.iter().enumerate();
        runs.filter_map(|(i, run)| run.place.map(|place| (i, place, run.blocks)))
    }

    /// Whether nothing has to be read, or everything was.
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Takes the data of a run.
    pub fn fill(&mut self, run: usize, data: Bytes) {
        self.missing -= 1;
        self.runs[run].data = Some(data);
    }

    /// The blocks, each verified unless `trust`.
    pub fn finish(self, trust: bool) -> Result<(LogIndex, Vec<u32>, Payload), ReadError> {
        let mut payload = Payload::empty();
        let mut at = 0;
        for run in self.runs {
            let blocks = run.blocks as usize;
            match run.data {
                Some(data) => {
                    let sums = &self.checksums[at..at + blocks];
                    if data.len() != blocks * BLOCK_BYTES {
                        return Err(ReadError::Damaged);
                    }
                    let mut pairs = data.chunks_exact(BLOCK_BYTES).zip(sums);
                    if !trust && pairs.any(|(block, sum)| crc32c(block) != *sum) {
                        return Err(ReadError::Damaged);
                    }
                    payload.push(data);
                }
                None => push_zeros(&mut payload, blocks),
            }
            at += blocks;
        }
        Ok((self.index, self.checksums, payload))
    }
}

fn push_zeros(payload: &mut Payload, mut blocks: usize) {
    while blocks > 0 {
        let take = blocks.min(ZEROS.len() / BLOCK_BYTES);
        payload.push(Bytes::from_static(&ZEROS[..take * BLOCK_BYTES]));
        blocks -= take;
    }
}
