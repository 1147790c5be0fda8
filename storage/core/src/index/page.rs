//! One page: the places of a chunk's 1024 blocks, now and in the volume's snapshots.

mod cold;
mod lost;

pub use cold::{Cooling, CoolingRule, PageContent};
pub use lost::Loss;

use super::usage::{Dying, Usage};
use super::versions::{Bits, Delta, Versions};
use crate::log::Location;
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::disk::checkpoint::{GRANULE_BLOCKS, Granule, Place};
use basalt_wire::ids::{Generation, LogIndex, SegmentId};
use cold::{Body, Table};
use std::cell::Cell;

pub(super) const BLOCKS: usize = CHUNK_BLOCKS as usize;

/// Where a block stands, and the checksum of its content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockPlace {
    /// The segment.
    pub segment: SegmentId,
    /// The block within the segment.
    pub block: u32,
    /// CRC-32C of the content; travels with the pointer, so that a wrong block is noticed.
    pub checksum: u32,
}

/// What a page says of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockState {
    /// Nothing stands here. A clone reads as its parent does, any other volume as zeros.
    Open,
    /// The block was unmapped in a clone: it reads as zeros whatever the parent holds.
    Zeros,
    /// The block stands here.
    At(BlockPlace),
}

impl BlockState {
    /// Where the block stands, if it is mapped.
    pub fn place(self) -> Option<BlockPlace> {
        match self {
            BlockState::At(place) => Some(place),
            _ => None,
        }
    }

    /// A number for digests: what the block is, wherever it stands.
    pub fn number(self) -> u64 {
        match self {
            BlockState::Open => u64::MAX,
            BlockState::Zeros => u64::MAX - 1,
            BlockState::At(place) => u64::from(place.checksum),
        }
    }
}

/// A place as it stands in memory, or none.
#[derive(Clone, Copy)]
pub(super) struct Packed {
    pub(super) segment: u32,
    pub(super) block: u32,
    checksum: u32,
}

impl Packed {
    /// Not mapped.
    pub(super) const HOLE: Packed = Packed { segment: 0, block: UNMAPPED, checksum: 0 };
    /// Not mapped, and hiding what a parent holds. Never stands in the table of a page.
    pub(super) const ZEROS: Packed = Packed { segment: 0, block: ZEROED, checksum: 0 };

    pub(super) fn is_mapped(&self) -> bool {
        self.block < ZEROED
    }

    pub(super) fn is_zeros(&self) -> bool {
        self.block == ZEROED
    }

    pub(super) fn state(self) -> BlockState {
        match self.get() {
            Some(place) => BlockState::At(place),
            None if self.is_zeros() => BlockState::Zeros,
            None => BlockState::Open,
        }
    }

    pub(super) fn get(&self) -> Option<BlockPlace> {
        self.is_mapped().then_some(BlockPlace {
            segment: SegmentId(self.segment),
            block: self.block,
            checksum: self.checksum,
        })
    }

    pub(super) fn to_place(self) -> Option<Place> {
        self.get().map(|place| (place.segment, place.block, place.checksum))
    }

    pub(super) fn from_place(place: Option<Place>) -> Packed {
        place.map_or(Packed::HOLE, |(segment, block, checksum)| Packed {
            segment: segment.0,
            block,
            checksum,
        })
    }
}

/// Blocks of a segment are counted from 0 and far fewer than this, so it can mean "not mapped".
const UNMAPPED: u32 = u32::MAX;
/// Likewise: "unmapped in a clone".
const ZEROED: u32 = u32::MAX - 1;

/// The places of a chunk's blocks. What is here stays in memory while its table is out of it: 64 bytes.
#[derive(Default)]
pub struct Page {
    changed_at: LogIndex,
    mapped: u16,
    /// Whether it was looked at or changed since the one who makes room in memory came by.
    used: Cell<bool>,
    /// Whether it is among those that may go out of memory.
    listed: bool,
    /// Mapped blocks in `versions`.
    kept: u32,
    /// Granules that changed since they were given to a checkpoint.
    dirty: u64,
    /// Granules that a checkpoint holds.
    stored: u64,
    body: Body,
    /// The blocks that were unmapped in a clone. They are not mapped.
    zeros: Option<Box<Bits>>,
    /// What blocks were in snapshots. A page that did not change since the oldest has nothing here.
    versions: Option<Box<Versions>>,
}

/// What a page holds, for the accounts of the index.
#[derive(Clone, Copy, Default)]
pub(super) struct Footprint {
    /// Blocks that are mapped.
    pub mapped: u64,
    /// Blocks kept for snapshots.
    pub kept: u64,
    /// Bytes of memory.
    pub bytes: u64,
    /// Tables in memory that may leave it some time, and tables out of it.
    pub tables: u64,
    /// See `tables`.
    pub cold: u64,
}

impl std::ops::AddAssign for Footprint {
    fn add_assign(&mut self, more: Footprint) {
        self.mapped += more.mapped;
        self.kept += more.kept;
        self.bytes += more.bytes;
        self.tables += more.tables;
        self.cold += more.cold;
    }
}

const _: () = assert!(size_of::<Page>() <= 64, "what stays in memory of each chunk is small");

impl Page {
    /// Bytes of the table of a page that maps anything.
    pub const TABLE_BYTES: u64 = size_of::<Table>() as u64;

    /// The index of the entry that changed the page last.
    pub fn changed_at(&self) -> LogIndex {
        self.changed_at
    }

    /// Blocks that are mapped.
    pub fn mapped_blocks(&self) -> u32 {
        u32::from(self.mapped)
    }

    /// Where a block stands; nothing if it is not mapped here.
    pub fn get(&self, block: usize) -> Option<BlockPlace> {
        self.body.table()?[block].get()
    }

    /// What it says of a block, as it is or when a generation was frozen.
    pub fn state(&self, snapshot: Option<Generation>, block: usize) -> BlockState {
        let view = |snapshot| self.versions.as_ref()?.view(snapshot, block);
        match snapshot.and_then(view) {
            Some(was) => was.state(),
            None => self.now(block).state(),
        }
    }

    fn now(&self, block: usize) -> Packed {
        match self.body.table() {
            Some(table) if table[block].is_mapped() => table[block],
            _ if self.zeros.as_ref().is_some_and(|zeros| zeros.get(block)) => Packed::ZEROS,
            _ => Packed::HOLE,
        }
    }

    /// Whether there is an instant, now or in a snapshot, in which a block was neither written nor unmapped.
    ///
    /// There is one place that says so: a block that was covered once stays so, and what it was before its
    /// first change is held by the oldest delta that holds it at all.
    pub fn is_open(&self, block: usize) -> bool {
        let oldest = self.versions.as_ref().and_then(|versions| versions.oldest(block));
        let first = oldest.map_or_else(|| self.now(block), |delta| delta.get(block));
        first.state() == BlockState::Open
    }

    /// The blocks that read as zeros whatever a parent holds, in order.
    pub fn zeros(&self) -> impl Iterator<Item = usize> + '_ {
        self.zeros.iter().flat_map(|zeros| zeros.iter())
    }

    /// Whether a block was changed behind a snapshot and before another one was frozen, or up to now.
    pub fn changed_since(
        &self,
        since: Generation,
        until: Option<Generation>,
        block: usize,
    ) -> bool {
        self.versions.as_ref().is_some_and(|versions| versions.changed(since, until, block))
    }

    /// The mapped blocks with their places, in order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, BlockPlace)> + '_ {
        let blocks = if self.body.table().is_some() { BLOCKS } else { 0 };
        (0..blocks).filter_map(|block| self.get(block).map(|place| (block, place)))
    }

    /// Every block that is kept for a snapshot, by generation and block, and what it was.
    pub fn kept(&self) -> impl Iterator<Item = (Generation, usize, BlockState)> + '_ {
        let deltas = self.versions.iter().flat_map(|versions| versions.iter());
        deltas.flat_map(|(generation, delta)| {
            delta.iter().map(move |(block, was)| (generation, block, was.state()))
        })
    }

    /// Maps blocks. What they were is kept for the newest snapshot, if it does not hold them.
    pub(super) fn map(
        &mut self,
        block: usize,
        first: BlockPlace,
        sums: impl Iterator<Item = u32>,
        at: LogIndex,
        newest: Option<Generation>,
        usage: &mut Usage,
    ) {
        self.used.set(true);
        let table = self.body.table_or_new();
        let mut keeper = newest.map(|newest| self.versions.get_or_insert_default().delta(newest));
        let (mut count, mut fresh, mut kept) = (0, 0, 0);
        let mut dying = Dying::new(usage);
        for (i, (slot, checksum)) in table[block..].iter_mut().zip(sums).enumerate() {
            let place =
                Packed { segment: first.segment.0, block: first.block + i as u32, checksum };
            let mut was = std::mem::replace(slot, place);
            if let Some(zeros) = &mut self.zeros
                && zeros.take(block + i)
            {
                was = Packed::ZEROS;
            }
            fresh += u16::from(!was.is_mapped());
            kept += retire(keeper.as_deref_mut(), block + i, was, &mut dying);
            count = i + 1;
        }
        dying.finish();
        self.zeros.take_if(|zeros| zeros.is_empty());
        usage.add(first.segment, count as u32);
        self.mapped += fresh;
        self.kept += kept;
        self.changed(at, granules(block, count));
    }

    /// Unmaps blocks. What they were is kept as for [`Page::map`]; one that was not mapped stays so. What a
    /// parent holds there is to be hidden by a clone.
    pub(super) fn unmap(
        &mut self,
        (block, count): (usize, usize),
        hide: bool,
        at: LogIndex,
        newest: Option<Generation>,
        usage: &mut Usage,
    ) {
        assert!(!self.is_cold(), "a page whose table is not in memory is not changed");
        self.used.set(true);
        if hide || self.body.table().is_some() {
            let mut dying = Dying::new(usage);
            let mut keeper =
                newest.map(|newest| self.versions.get_or_insert_default().delta(newest));
            for block in block..block + count {
                let slot = self.body.table_mut().map(|table| &mut table[block]);
                let mut was = Packed::HOLE;
                if let Some(slot) = slot.filter(|slot| slot.is_mapped()) {
                    was = std::mem::replace(slot, Packed::HOLE);
                    self.mapped -= 1;
                }
                let hidden = hide && self.zeros.get_or_insert_default().put(block);
                if was.is_mapped() || hidden {
                    self.kept += retire(keeper.as_deref_mut(), block, was, &mut dying);
                }
            }
            dying.finish();
        }
        self.settle();
        self.changed(at, granules(block, count));
    }

    /// Gives a block its parent's place in the log where it is open, see [`Page::is_open`]. Nothing that was
    /// read before reads otherwise, so nothing is kept; what was unmapped is open too if it `shows`.
    pub(super) fn fill(
        &mut self,
        block: usize,
        place: BlockPlace,
        shows: bool,
        at: LogIndex,
        usage: &mut Usage,
    ) {
        let BlockPlace { segment, block: number, checksum } = place;
        let packed = Packed { segment: segment.0, block: number, checksum };
        assert!(!self.is_cold(), "a page whose table is not in memory is not changed");
        let was = self.now(block);
        let filled = match self.versions.as_mut().and_then(|v| v.oldest_mut(block)) {
            Some(delta) => {
                let filled = delta.fill(block, packed);
                self.kept += u32::from(filled);
                filled
            }
            None if was.state() == BlockState::Open || (shows && was.is_zeros()) => {
                self.body.table_or_new()[block] = packed;
                self.mapped += 1;
                if let Some(zeros) = &mut self.zeros {
                    zeros.take(block);
                }
                true
            }
            None => false,
        };
        if filled {
            usage.add(segment, 1);
            self.changed(at, granules(block, 1));
        }
    }

    /// Drops a snapshot, whose blocks go to the next older one as far as it does not hold them. Only
    /// granules in `fresh` take part. Says whether anything changed.
    pub(super) fn drop_snapshot(
        &mut self,
        snapshot: Generation,
        older: Option<Generation>,
        fresh: u64,
        at: LogIndex,
        usage: &mut Usage,
    ) -> bool {
        let Some(versions) = &mut self.versions else { return false };
        let mut dying = Dying::new(usage);
        let touched = versions.drop_snapshot(snapshot, older, fresh, &mut dying);
        dying.finish();
        self.kept = versions.mapped_blocks();
        self.settle();
        self.changed_if(touched, at)
    }

    /// Makes the blocks what they were in a snapshot, and drops what is kept for later ones before
    /// `until`. Only granules in `fresh` take part. Says whether anything changed.
    pub(super) fn revert(
        &mut self,
        snapshot: Generation,
        until: Generation,
        fresh: u64,
        at: LogIndex,
        usage: &mut Usage,
    ) -> bool {
        let Some(versions) = &mut self.versions else { return false };
        let table = self.body.table_or_new();
        let (mapped, zeros) = (&mut self.mapped, self.zeros.get_or_insert_default());
        let mut dying = Dying::new(usage);
        let revert = |block: usize, was: Packed, dying: &mut Dying<'_>| {
            let (slot, hides) = if was.is_zeros() { (Packed::HOLE, true) } else { (was, false) };
            let _ = if hides { zeros.put(block) } else { zeros.take(block) };
            let now = std::mem::replace(&mut table[block], slot);
            *mapped = *mapped + u16::from(was.is_mapped()) - u16::from(now.is_mapped());
            release(now, dying);
        };
        let touched = versions.revert(snapshot..until, fresh, revert, &mut dying);
        dying.finish();
        self.kept = versions.mapped_blocks();
        self.settle();
        self.changed_if(touched, at)
    }

    /// Makes the blocks what they were before the volume was known here: none is mapped.
    pub(super) fn clear(
        &mut self,
        until: Generation,
        fresh: u64,
        at: LogIndex,
        usage: &mut Usage,
    ) -> bool {
        let reverted = self.revert(Generation(0), until, fresh, at, usage);
        assert!(!self.is_cold(), "a page whose table is not in memory is not changed");
        let (mut touched, mut dying) = (0, Dying::new(usage));
        if let Some(table) = self.body.table_mut() {
            for (block, slot) in table.iter_mut().enumerate() {
                let granule = 1 << (block / GRANULE_BLOCKS);
                if slot.is_mapped() && fresh & granule != 0 {
                    touched |= granule;
                    self.mapped -= 1;
                    release(std::mem::replace(slot, Packed::HOLE), &mut dying);
                }
            }
        }
        dying.finish();
        if let Some(zeros) = &mut self.zeros {
            touched |= zeros.clear(fresh);
        }
        self.settle();
        self.changed_if(touched, at) || reverted
    }

    fn changed_if(&mut self, granules: u64, at: LogIndex) -> bool {
        if granules != 0 {
            self.changed(at, granules);
        }
        granules != 0
    }

    fn changed(&mut self, at: LogIndex, granules: u64) {
        // A page that a checkpoint gave back may be ahead of the entries that are replayed.
        self.changed_at = self.changed_at.max(at);
        self.dirty |= granules;
    }

    /// Gives back memory that holds nothing.
    fn settle(&mut self) {
        if self.mapped == 0 {
            self.body = Body::Empty;
        }
        self.zeros.take_if(|zeros| zeros.is_empty());
        if let Some(versions) = &mut self.versions {
            versions.prune();
            if versions.is_empty() {
                self.versions = None;
            }
        }
    }

    /// Points a block, or what it was in a snapshot, at another place with the same content, if it still
    /// stands at `from`. For those who read nothing changes: the page keeps the index of its last change.
    pub(super) fn relocate(
        &mut self,
        block: usize,
        from: BlockPlace,
        to: Location,
        usage: &mut Usage,
    ) -> bool {
        assert!(!self.is_cold(), "a page whose table is not in memory is not changed");
        let live = self.body.table_mut().map(|table| &mut table[block]);
        let mut places = live
            .into_iter()
            .chain(self.versions.as_mut().and_then(|versions| versions.find_mut(block, from)));
        let Some(place) = places.find(|place| place.get() == Some(from)) else { return false };
        (place.segment, place.block) = (to.segment.0, to.block);
        usage.sub(from.segment, 1);
        usage.add(to.segment, 1);
        self.dirty |= granules(block, 1);
        true
    }

    /// Notes a change of which only the entry is known. Says whether that is news.
    pub(super) fn touch(&mut self, at: LogIndex) -> bool {
        assert!(!self.is_cold(), "a page whose table is not in memory is not changed");
        let news = at > self.changed_at;
        if news {
            self.changed_at = at;
            self.dirty |= 1;
        }
        news
    }

    /// Whether a block, or what it was in a snapshot, stands at a place.
    pub fn refers_to(&self, block: usize, place: BlockPlace) -> bool {
        let mut kept = self.versions.iter().flat_map(|versions| versions.places_of(block));
        self.get(block) == Some(place) || kept.any(|was| was.get() == Some(place))
    }

    /// Whether it changed since it was given to a checkpoint.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty != 0
    }

    /// The next granule to be given to the checkpoint of a number, and whether none holds it yet.
    pub(super) fn take_dirty(&mut self, checkpoint: u64) -> Option<(u8, bool, Granule)> {
        let number = self.dirty.trailing_zeros();
        if self.dirty == 0 {
            return None;
        }
        let bit = 1 << number;
        self.dirty &= !bit;
        let fresh = self.stored & bit == 0;
        self.stored |= bit;
        if let Some(table) = self.body.table_mut() {
            table.taken = checkpoint;
        }
        Some((number as u8, fresh, self.granule(number as u8)))
    }

    /// No checkpoint holds any of its granules any more. Says whether it is to be given to one.
    pub(super) fn store_is_lost(&mut self) -> bool {
        if self.is_cold() {
            // What it holds is nowhere else: it is taken over from the store that there was.
            return false;
        }
        self.dirty |= std::mem::take(&mut self.stored);
        self.is_dirty()
    }

    /// A granule as it is now.
    pub(super) fn granule(&self, number: u8) -> Granule {
        assert!(!self.is_cold(), "what a page holds is not known without its table");
        let mut granule = Granule { changed_at: self.changed_at, ..Granule::default() };
        let first = usize::from(number) * GRANULE_BLOCKS;
        if let Some(table) = self.body.table() {
            let blocks = &table[first..first + GRANULE_BLOCKS];
            granule.places.iter_mut().zip(blocks).for_each(|(to, from)| *to = from.to_place());
        }
        granule.zeros = self.zeros.as_ref().map_or(0, |zeros| zeros.of_granule(number.into()));
        if let Some(versions) = &self.versions {
            granule.deltas = versions.of_granule(usize::from(number));
        }
        granule
    }

    /// Makes a granule what a peer says. What it was is not kept.
    pub(super) fn replace(&mut self, number: u8, granule: &Granule, usage: &mut Usage) {
        let first = usize::from(number) * GRANULE_BLOCKS;
        assert!(!self.is_cold(), "a page whose table is not in memory is not changed");
        let mut dying = Dying::new(usage);
        if let Some(table) = self.body.table_mut() {
            let mapped = table[first..first + GRANULE_BLOCKS].iter_mut().filter(|s| s.is_mapped());
            for slot in mapped {
                self.mapped -= 1;
                release(std::mem::replace(slot, Packed::HOLE), &mut dying);
            }
        }
        if let Some(zeros) = &mut self.zeros {
            zeros.clear(1 << number);
        }
        if let Some(versions) = &mut self.versions {
            versions.clear_granule(usize::from(number), &mut dying);
            self.kept = versions.mapped_blocks();
        }
        dying.finish();
        self.put(number, granule, usage);
        self.settle();
        self.dirty |= 1 << number;
    }

    /// Drops what is kept for generations that are not to be. Says whether anything changed.
    pub(super) fn keep_only(
        &mut self,
        keep: impl Fn(Generation) -> bool,
        at: LogIndex,
        usage: &mut Usage,
    ) -> bool {
        let Some(versions) = &mut self.versions else { return false };
        let mut dying = Dying::new(usage);
        let touched = versions.keep_only(keep, &mut dying);
        dying.finish();
        self.kept = versions.mapped_blocks();
        self.settle();
        self.changed_if(touched, at)
    }

    /// Takes a granule from a checkpoint.
    pub(super) fn restore(&mut self, number: u8, granule: &Granule, usage: &mut Usage) {
        self.stored |= 1 << number;
        self.put(number, granule, usage);
    }

    /// Adds the content of a granule to what is there.
    fn put(&mut self, number: u8, granule: &Granule, usage: &mut Usage) {
        let first = usize::from(number) * GRANULE_BLOCKS;
        self.changed_at = self.changed_at.max(granule.changed_at);
        for (i, place) in granule.places.iter().enumerate() {
            if granule.zeros >> i & 1 == 1 {
                self.zeros.get_or_insert_default().put(first + i);
            }
            let Some((segment, ..)) = *place else { continue };
            if let Some(zeros) = &mut self.zeros {
                zeros.take(first + i);
            }
            let slot = &mut self.body.table_or_new()[first + i];
            if slot.is_mapped() {
                usage.sub(SegmentId(slot.segment), 1);
            } else {
                self.mapped += 1;
            }
            *slot = Packed::from_place(*place);
            usage.add(segment, 1);
        }
        if !granule.deltas.is_empty() {
            let versions = self.versions.get_or_insert_default();
            self.kept += versions.restore(usize::from(number), &granule.deltas, usage);
        }
    }

    /// What it holds, for the accounts of the index.
    pub(super) fn footprint(&self) -> Footprint {
        let table = u64::from(self.body.table().is_some()) * Page::TABLE_BYTES;
        let tables = u64::from(self.may_leave());
        let versions = self.versions.as_ref().map_or(0, |versions| versions.memory());
        let kept = u64::from(self.kept);
        let zeros = self.zeros.as_ref().map_or(0, |_| size_of::<Bits>() as u64);
        let bytes = table + zeros + versions + kept * size_of::<Packed>() as u64;
        let cold = u64::from(self.is_cold());
        Footprint { mapped: u64::from(self.mapped), kept, bytes, tables, cold }
    }
}

/// A block is replaced: what it was goes to the delta of the newest snapshot, unless that holds the
/// block already. Gives the number of mapped blocks kept.
fn retire(keeper: Option<&mut Delta>, block: usize, was: Packed, dying: &mut Dying<'_>) -> u32 {
    match keeper {
        Some(delta) if !delta.holds(block) => {
            delta.put(block, was);
            u32::from(was.is_mapped())
        }
        _ => {
            release(was, dying);
            0
        }
    }
}

/// Nothing refers to a place any more.
pub(super) fn release(was: Packed, dying: &mut Dying<'_>) {
    if was.is_mapped() {
        dying.push(was.segment);
    }
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Page({} mapped, changed at {})", self.mapped, self.changed_at)
    }
}

/// The granules that hold some blocks, a bit for each.
fn granules(first: usize, count: usize) -> u64 {
    if count == 0 {
        return 0;
    }
    let (low, high) = (first / GRANULE_BLOCKS, (first + count - 1) / GRANULE_BLOCKS);
    (u64::MAX >> (63 - (high - low))) << low
}

const _: () = assert!(BLOCKS / GRANULE_BLOCKS == 64, "a page has a bit for each granule");
