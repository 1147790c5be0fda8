//! The state machine of one group: what its committed commands made of its volumes.
//!
//! Applying is deterministic: replicas that applied the same index hold the same epochs and the same
//! content (invariant I6). The epoch that counts is the one in this state, put there by a committed
//! fence, so a fenced session is shut out on every replica and after every restart (invariant I3).

mod changes;
mod clones;
mod cold;
mod flatten;
mod generations;
mod held;
mod lost;
mod moves;
mod pages;
mod places;
mod read;
mod watch;

pub use changes::DirtyPages;
pub use cold::PageKey;
pub use held::HeldVolume;
pub use lost::ToldGranule;
pub use pages::Told;
pub use read::{Plan, ReadError};
use watch::Watch;

use crate::index::{BlockPlace, Usage, VolumeIndex, mix};
use crate::log::Location;
use crate::planted::{Bug, Planted};
use basalt_wire::block::{BLOCK_BYTES, crc32c};
use basalt_wire::codec::CodecError;
use basalt_wire::command::{BlockRange, CommandReader, CommandView};
use basalt_wire::disk::checkpoint::VolumeRecord;
use basalt_wire::frame::Refusal;
use basalt_wire::ids::{Epoch, Generation, LogIndex, SnapshotId, VolumeId};
use bytes::Bytes;
use clones::Clones;
use generations::Generations;
use pages::Staged;
use rustc_hash::FxHashMap;
use std::collections::{BTreeSet, VecDeque};

/// One volume, as far as its chunks belong to this group.
#[derive(Default, Debug)]
struct Volume {
    epoch: Epoch,
    deleted: bool,
    generations: Generations,
    /// What a clone reads as where its index has nothing.
    parent: Option<SnapshotId>,
    /// Whether it was a clone.
    detached: bool,
    index: VolumeIndex,
    /// Granules of it that the store holds.
    stored: u64,
}

/// The volumes of a group.
#[derive(Debug)]
pub struct Replica {
    volumes: FxHashMap<VolumeId, Volume>,
    clones: Clones,
    /// Live blocks of all volumes by segment.
    usage: Usage,
    applied: LogIndex,
    /// Pages may hold entries up to this one.
    ahead: LogIndex,
    planted: Planted,
    replaying: bool,
    changes: Changes,
    /// The last entry that any granule has seen which a checkpoint or a peer gave.
    seen: LogIndex,
    /// Blocks from a peer that are not put to use yet.
    staged: Staged,
    watch: Watch,
    /// Pages that may go out of memory, those that were not used for long first.
    idle: VecDeque<(VolumeId, u64)>,
    /// Volumes with pages that are to be emptied once their tables are in memory.
    doomed: BTreeSet<VolumeId>,
}

impl Volume {
    /// Whether no command has named it yet: only pages of it came from a peer.
    fn is_unknown(&self) -> bool {
        let cloned = self.parent.is_some() || self.detached;
        let told = self.deleted || cloned || self.epoch > Epoch(0);
        !told && self.generations.are_untold()
    }

    fn record(&self) -> VolumeRecord {
        let (parent, detached) = (self.parent, self.detached);
        let record = self.generations.to_record(self.epoch, self.deleted);
        VolumeRecord { parent, detached, ..record }
    }
}

/// What changed since it was given to a checkpoint.
#[derive(Default, Debug)]
struct Changes {
    pages: Vec<(VolumeId, u64)>,
    volumes: Vec<VolumeId>,
    /// Granules that the store holds.
    stored: u64,
}

/// What applying a command came to.
pub type Outcome = Result<(), Refusal>;

impl Replica {
    /// The state before the first entry.
    pub fn new(planted: Planted) -> Replica {
        Replica {
            volumes: FxHashMap::default(),
            clones: Clones::default(),
            usage: Usage::default(),
            applied: LogIndex(0),
            ahead: LogIndex(0),
            planted,
            replaying: true,
            changes: Changes::default(),
            seen: LogIndex(0),
            staged: Staged::default(),
            watch: Watch::default(),
            idle: VecDeque::new(),
            doomed: BTreeSet::new(),
        }
    }

    /// Everything up to here is applied.
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// Ends the replay after opening.
    pub fn replayed(&mut self) {
        self.replaying = false;
    }

    /// Applies the entry `index`, whose commands are `data` and whose block data begins at
    /// `location`. Gives each command and its outcome to `outcome`, in order.
    pub fn apply(
        &mut self,
        index: LogIndex,
        data: &Bytes,
        location: Location,
        mut outcome: impl FnMut(&CommandView<'_>, Outcome),
    ) -> Result<(), CodecError> {
        assert_eq!(index.0, self.applied.0 + 1, "entries are applied in order");
        let mut block = location.block;
        for command in CommandReader::new(data)? {
            let command = command?;
            let first = BlockPlace { segment: location.segment, block, checksum: 0 };
            self.watch.note(&command);
            block += command.payload_blocks();
            let result = self.apply_command(index, &command, first);
            outcome(&command, result);
        }
        self.applied = index;
        self.catch_up();
        Ok(())
    }

    /// Counts an entry that says nothing about volumes (the metadata group's).
    pub fn skip(&mut self, index: LogIndex) {
        assert_eq!(index.0, self.applied.0 + 1, "entries are applied in order");
        self.applied = index;
    }

    fn apply_command(
        &mut self,
        at: LogIndex,
        command: &CommandView<'_>,
        first: BlockPlace,
    ) -> Outcome {
        match *command {
            CommandView::Write { volume: id, epoch, generation, range, checksums } => {
                let lost = self.planted.is(Bug::DeltaLost);
                let (volume, usage) = self.writable(id, epoch, generation)?;
                let newest = volume.generations.newest().filter(|_| !lost);
                let page = volume.index.map(range, first, checksums.iter(), at, newest, usage);
                self.changes.pages.extend(page.map(|chunk| (id, chunk)));
            }
            CommandView::Unmap { volume: id, epoch, generation, range } => {
                let short = self.planted.is(Bug::UnmapShort);
                let shows = self.planted.is(Bug::UnmappedShowsParent);
                let (volume, usage) = self.writable(id, epoch, generation)?;
                let count = if short { range.count - 1 } else { range.count };
                if count > 0 {
                    let newest = volume.generations.newest();
                    let (range, hide) =
                        (BlockRange { count, ..range }, volume.parent.is_some() && !shows);
                    let page = volume.index.unmap(range, hide, at, newest, usage);
                    self.changes.pages.extend(page.map(|chunk| (id, chunk)));
                }
            }
            CommandView::Fence { volume, epoch, generation } => {
                self.fence(volume, epoch, generation)?;
            }
            CommandView::Delete { volume } => self.delete(at, volume)?,
            CommandView::Freeze { volume, generation } => self.freeze(volume, generation)?,
            CommandView::DropSnapshot { volume, generation } => {
                self.drop_snapshot(at, volume, generation)?;
            }
            CommandView::Revert { volume, epoch, generation } => {
                self.revert(at, volume, epoch, generation)?;
            }
            CommandView::Clone { volume, parent } => self.begin_clone(volume, parent)?,
            CommandView::Fill { volume, parent, range, .. } => {
                let blocks = command.payload().map(|(_, block, checksum)| (block, checksum));
                self.fill((volume, parent), range, blocks, first, at)?;
            }
            CommandView::Detach { volume, parent } => self.detach(volume, parent)?,
        }
        Ok(())
    }

    fn delete(&mut self, at: LogIndex, id: VolumeId) -> Outcome {
        self.check_no_clones(id, None)?;
        self.set_parent(id, None);
        let volume = self.volumes.entry(id).or_default();
        volume.deleted = true;
        volume.generations.forget();
        self.give_back(at, id);
        self.changes.volumes.push(id);
        Ok(())
    }

    fn fence(&mut self, id: VolumeId, epoch: Epoch, generation: Generation) -> Outcome {
        if self.replaying && self.planted.is(Bug::EpochForgotten) {
            return Ok(());
        }
        let volume = self.volumes.entry(id).or_default();
        if volume.is_unknown() {
            volume.generations = Generations::starting_at(generation);
        }
        if epoch < volume.epoch {
            return Err(Refusal::Fenced);
        }
        // A deleted volume may be fenced: a deletion that broke off is taken up again by a session
        // of a higher epoch, which fences all groups before it deletes. Nothing else becomes possible.
        if !volume.deleted {
            volume.generations.fence(generation, self.planted)?;
        }
        volume.epoch = epoch;
        self.changes.volumes.push(id);
        Ok(())
    }

    /// The volume and the account of live blocks, if a change of this epoch and generation may be
    /// applied to it.
    fn writable(
        &mut self,
        id: VolumeId,
        epoch: Epoch,
        generation: Generation,
    ) -> Result<(&mut Volume, &mut Usage), Refusal> {
        let unchecked =
            self.planted.is(Bug::StaleEpochApplied) || self.planted.is(Bug::EpochForgotten);
        if !unchecked {
            self.check_epoch(id, epoch)?;
        }
        let volume = self.volumes.entry(id).or_default();
        if volume.deleted {
            return Err(Refusal::Fenced);
        }
        if generation != volume.generations.current()
            && volume.generations.admit(generation, self.planted)?
        {
            self.changes.volumes.push(id);
        }
        Ok((volume, &mut self.usage))
    }

    fn known(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.get(&id).filter(|volume| !volume.is_unknown())
    }

    /// The highest epoch that was fenced in.
    pub fn epoch(&self, id: VolumeId) -> Epoch {
        self.volumes.get(&id).map_or(Epoch(0), |volume| volume.epoch)
    }

    /// Whether a session of this epoch is the attached one, as of what is applied.
    pub fn check_epoch(&self, id: VolumeId, epoch: Epoch) -> Outcome {
        match self.known(id) {
            Some(volume) if volume.deleted || epoch < volume.epoch => Err(Refusal::Fenced),
            Some(volume) if epoch == volume.epoch => Ok(()),
            _ if self.planted.is(Bug::EpochForgotten) => Ok(()),
            _ => Err(Refusal::NotAttached),
        }
    }

    /// Whether a fence or delete of this epoch has a chance: no higher one was fenced in.
    pub fn check_not_fenced(&self, id: VolumeId, epoch: Epoch, delete: bool) -> Outcome {
        match self.volumes.get(&id) {
            Some(volume) if volume.deleted && delete => Ok(()),
            Some(volume) if epoch < volume.epoch => Err(Refusal::Fenced),
            _ => Ok(()),
        }
    }

    /// Blocks that are kept for snapshots alone, all volumes together.
    pub fn kept_blocks(&self) -> u64 {
        self.volumes.values().map(|volume| volume.index.kept_blocks()).sum()
    }

    /// Blocks that are mapped, all volumes together.
    pub fn mapped_blocks(&self) -> u64 {
        self.volumes.values().map(|volume| volume.index.mapped_blocks()).sum()
    }

    /// Bytes of memory of the index.
    pub fn index_bytes(&self) -> u64 {
        self.volumes.values().map(|volume| volume.index.memory()).sum()
    }

    /// A digest of everything that replicas must agree on. Where blocks stand is each replica's own
    /// matter and is not part of it. Nothing while pages are to be emptied.
    pub fn digest(&self) -> Option<u64> {
        let mut ids: Vec<_> = self.volumes.keys().copied().collect();
        ids.sort_unstable();
        let mut digest = 0;
        for id in ids {
            let volume = &self.volumes[&id];
            digest = mix(digest, id.0);
            let flags = u64::from(volume.detached) << 1 | u64::from(volume.deleted);
            digest = mix(digest, volume.epoch.0 << 2 | flags);
            digest = volume.generations.numbers().fold(digest, mix);
            if let Some(parent) = volume.parent {
                digest = mix(mix(digest, parent.volume.0), u64::from(parent.generation.0));
            }
            // Of a deleted volume pages are left that are not given back yet.
            let pages = if volume.deleted { Vec::new() } else { volume.index.pages() };
            for (chunk, page) in pages {
                let content = page.digest()?;
                if content != 0 {
                    digest = mix(mix(digest, chunk), content);
                }
            }
        }
        Some(digest)
    }
}

/// Whether commands and their payload belong together: every command is well formed, the payload
/// has as many blocks as they ask for and, if `verify`, each block has its checksum.
pub fn check_entry(
    data: &Bytes,
    payload: &basalt_wire::buffer::Payload,
    verify: bool,
) -> Result<(), &'static str> {
    let mut blocks = PayloadBlocks::new(payload);
    for command in CommandReader::new(data).map_err(|_| "the commands are malformed")? {
        let command = command.map_err(|_| "the commands are malformed")?;
        for checksum in command.checksums().iter().flat_map(|checksums| checksums.iter()) {
            let block = blocks.next().ok_or("the payload is shorter than the commands ask")?;
            if verify && block.checksum() != checksum {
                return Err("a block does not match its checksum");
            }
        }
    }
    if blocks.next().is_some() {
        Err("the payload is longer than the commands ask")
    } else {
        Ok(())
    }
}

/// Whether the blocks of a payload have these checksums.
pub fn blocks_match(payload: &basalt_wire::buffer::Payload, checksums: &[u32]) -> bool {
    let mut blocks = PayloadBlocks::new(payload);
    checksums.iter().all(|sum| blocks.next().is_some_and(|block| block.checksum() == *sum))
}

/// The blocks of a payload one by one, wherever its pieces are cut.
struct PayloadBlocks<'a> {
    pieces: std::slice::Iter<'a, Bytes>,
    rest: &'a [u8],
}

enum Block<'a> {
    Whole(&'a [u8]),
    Joined(Box<[u8; BLOCK_BYTES]>),
}

impl Block<'_> {
    fn checksum(&self) -> u32 {
        match self {
            Block::Whole(bytes) => crc32c(bytes),
            Block::Joined(bytes) => crc32c(&bytes[..]),
        }
    }
}

impl<'a> PayloadBlocks<'a> {
    fn new(payload: &'a basalt_wire::buffer::Payload) -> PayloadBlocks<'a> {
        PayloadBlocks { pieces: payload.pieces().iter(), rest: &[] }
    }
}

impl<'a> Iterator for PayloadBlocks<'a> {
    type Item = Block<'a>;

    fn next(&mut self) -> Option<Block<'a>> {
        if self.rest.is_empty() {
            self.rest = self.pieces.next()?;
        }
        if let Some((block, rest)) = self.rest.split_at_checked(BLOCK_BYTES) {
            self.rest = rest;
            return Some(Block::Whole(block));
        }
        let mut joined = Box::new([0; BLOCK_BYTES]);
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            if self.rest.is_empty() {
                // A payload that is no whole number of blocks has no block here.
                self.rest = self.pieces.next()?;
            }
            let take = self.rest.len().min(BLOCK_BYTES - filled);
            let (head, rest) = self.rest.split_at(take);
            joined[filled..filled + take].copy_from_slice(head);
            (self.rest, filled) = (rest, filled + take);
        }
        Some(Block::Joined(joined))
    }
}

#[cfg(test)]
mod cloned;
#[cfg(test)]
mod copied;
#[cfg(test)]
mod fuzzy;
#[cfg(test)]
mod tests;
