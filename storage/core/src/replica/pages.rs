//! Bringing a replica up by pages: what the leader tells of its pages, and what the follower makes of it.
//!
//! The leader tells a granule with all its deltas as of one instant, the entry `at` that it has applied
//! last. The follower replaces its own granule by it in one step, and notes that this granule has seen
//! all entries up to `at`: none of them is done to it again. So a session leaves what a checkpoint leaves
//! whose pages are ahead of its entries (see `fuzzy`): each granule is as of some entry, what is not
//! replaced is as of the last entry applied, and entries applied in order from there give on all of it
//! what they gave elsewhere. This holds if the session comes to its end and the volumes go over to what
//! they were at its start S, and also if it breaks off and entries are applied behind the old state.
//!
//! Why it holds, command by command. What a command does to a volume's generations is done always, in
//! order, from what they were at S; what it does to blocks only in granules that have not seen it.
//! * *Freeze* touches no block. A granule that has seen it may hold a delta of a generation that the
//!   volume has not reached yet; the entries behind S will bring it there.
//! * *Write and unmap* put what was into the delta of the newest snapshot, which is known by then. A granule
//!   copied behind the write has that delta already and is left alone.
//! * *Drop* merges deltas in granules that were copied before it; those copied behind it have none of the
//!   snapshot any more. Until all is applied the snapshot is not whole: nobody may read it
//!   ([`Replica::is_fuzzy`] holds for snapshots too).
//! * *Revert* likewise: a granule copied behind it holds the old content as its own.
//! * *Delete* makes the leader forget its pages, so those that were not copied yet stay what they
//!   were before. They are never read: the offers that left them out were behind the deletion, so that the replica is
//!   ahead until it has applied that. What they keep for snapshots that were gone at S is dropped at S.
//! * *Resize* is no command of a group.
//! * *Clone* touches no block; which volumes are clones of what is told with the volumes of S. Blocks that a
//!   clone unmapped are told with its granules, whether the replica has heard that it is one or not.
//! * A volume that was *created* behind S has pages before the replica heard of it. It counts as unknown
//!   until its fence is applied ([`Volume::is_unknown`]).
//!
//! A page that is not offered did not change behind what the follower has applied, and a granule with the
//! same content needs no copy: both are as of S as well. So no pass has to be begun anew for a command,
//! and each comes to its end: a granule that changes while it is copied costs one more question at most for
//! each change of its blocks.
//!
//! Blocks that came and can not be put to use yet, because their granule needs more of them, are *staged*:
//! they count as live, can be moved, and are forgotten with the session.

use super::read::Plan;
use super::{Replica, Volume};
use crate::index::BlockPlace;
use crate::log::Location;
use crate::mark;
use crate::planted::Bug;
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::disk::checkpoint::{
    GRANULE_BLOCKS, Granule, GranuleDelta, Place, SNAPSHOTS_MAX, VolumeRecord,
};
use basalt_wire::ids::{LogIndex, VolumeId};
use basalt_wire::pages::{DeltaSums, GranuleSums, HeldBlocks, PageDigests};
use std::collections::BTreeMap;

/// Granules of a page.
pub(super) const GRANULES: u8 = (CHUNK_BLOCKS as usize / GRANULE_BLOCKS) as u8;
/// Deltas that are told in one answer, if they are not all of one granule.
const DELTAS_TOLD: usize = 4 * SNAPSHOTS_MAX;

/// A granule of a volume: the chunk and the number in it.
type GranuleKey = (VolumeId, u64, u8);

/// Blocks that came from the leader and stand in the log, by the granule that waits for more.
#[derive(Default, Debug)]
pub(super) struct Staged(BTreeMap<GranuleKey, Vec<(u8, BlockPlace)>>);

/// The granule of a block, and its number there.
fn granule_of(volume: VolumeId, block: u64) -> (GranuleKey, u8) {
    let (chunk, block) = (block / CHUNK_BLOCKS, block as usize % CHUNK_BLOCKS as usize);
    let number = (block / GRANULE_BLOCKS) as u8;
    ((volume, chunk, number), (block % GRANULE_BLOCKS) as u8)
}

impl Staged {
    /// Where a staged block stands, if it stands at a place.
    pub(super) fn find_mut(
        &mut self,
        volume: VolumeId,
        block: u64,
        place: BlockPlace,
    ) -> Option<&mut BlockPlace> {
        let (key, block) = granule_of(volume, block);
        let mut blocks = self.0.get_mut(&key)?.iter_mut();
        blocks.find(|(number, at)| *number == block && *at == place).map(|(_, at)| at)
    }

    /// The staged blocks of a granule.
    pub(super) fn of(&self, key: GranuleKey) -> impl Iterator<Item = (u8, BlockPlace)> + '_ {
        self.0.get(&key).into_iter().flatten().copied()
    }

    /// Takes them.
    pub(super) fn take(&mut self, key: GranuleKey) -> Vec<(u8, BlockPlace)> {
        self.0.remove(&key).unwrap_or_default()
    }

    /// Whether a staged block stands at a place.
    pub(super) fn refers_to(&self, volume: VolumeId, block: u64, place: BlockPlace) -> bool {
        let (key, block) = granule_of(volume, block);
        self.0.get(&key).is_some_and(|blocks| blocks.contains(&(block, place)))
    }

    /// Staged blocks of a volume.
    pub(super) fn blocks_of(&self, volume: VolumeId) -> u64 {
        let granules = self.0.range((volume, 0, 0)..=(volume, u64::MAX, u8::MAX));
        granules.map(|(_, blocks)| blocks.len() as u64).sum()
    }

    /// The places of all staged blocks.
    pub(super) fn places(&self) -> impl Iterator<Item = BlockPlace> + '_ {
        self.0.values().flatten().map(|(_, place)| *place)
    }
}

/// The mapped blocks of a granule with their places, those of snapshots included.
fn blocks_of(granule: &Granule) -> impl Iterator<Item = (u8, Place)> + '_ {
    let kept = granule.deltas.iter().map(|delta| &delta.places);
    let all = std::iter::once(&granule.places).chain(kept);
    all.flat_map(|places| (0..).zip(places).filter_map(|(block, place)| Some((block, (*place)?))))
}

fn sums_of(number: u8, granule: &Granule) -> GranuleSums {
    let sums = |places: &[Option<Place>; GRANULE_BLOCKS]| places.map(|place| place.map(|p| p.2));
    let delta = |delta: &GranuleDelta| DeltaSums {
        generation: delta.generation,
        held: delta.held,
        sums: sums(&delta.places),
        zeros: delta.zeros,
    };
    let deltas = granule.deltas.iter().map(delta).collect();
    GranuleSums { number, sums: sums(&granule.places), zeros: granule.zeros, deltas }
}

/// A granule with places for its checksums, as far as `find` has one for each block.
pub(super) fn granule_with(
    sums: &GranuleSums,
    changed_at: LogIndex,
    mut find: impl FnMut(u8, u32) -> Option<Place>,
) -> Option<Granule> {
    let mut places = |sums: &[Option<u32>; GRANULE_BLOCKS]| {
        let mut places = [None; GRANULE_BLOCKS];
        for (block, (sum, place)) in (0..).zip(sums.iter().zip(&mut places)) {
            if let Some(sum) = sum {
                *place = Some(find(block, *sum)?);
            }
        }
        Some(places)
    };
    let (live, zeros) = (places(&sums.sums)?, sums.zeros);
    let mut granule = Granule { changed_at, places: live, zeros, deltas: Vec::new() };
    for DeltaSums { generation, held, sums, zeros } in &sums.deltas {
        let (generation, held, places, zeros) = (*generation, *held, places(sums)?, *zeros);
        granule.deltas.push(GranuleDelta { generation, held, places, zeros });
    }
    Some(granule)
}

/// Granules told to a follower, and the blocks of them that it gets.
#[derive(Debug)]
pub struct Told {
    /// The entry that changed the page last.
    pub changed_at: LogIndex,
    /// The first of the granules asked for.
    pub granules: Vec<GranuleSums>,
    /// Blocks by their number in the chunk, with their checksums.
    pub blocks: Vec<(u16, u32)>,
    /// How to read them.
    pub plan: Plan,
}

/// What the leader tells.
impl Replica {
    /// All volumes but for their blocks, ordered by id.
    pub fn volume_states(&self) -> Vec<(VolumeId, VolumeRecord)> {
        let known = self.volumes.iter().filter(|(_, volume)| !volume.is_unknown());
        let mut states: Vec<_> = known.map(|(id, volume)| (*id, volume.record())).collect();
        states.sort_unstable_by_key(|(id, _)| *id);
        states
    }

    /// The first pages, from one on, that changed after an entry, in order; and whether there are more.
    pub fn changed_pages(
        &self,
        since: LogIndex,
        from: (VolumeId, u64),
        most: usize,
    ) -> (Vec<PageDigests>, bool) {
        let (keys, more) = self.changed_page_keys(since, from, most);
        (keys.into_iter().map(|key| self.page_digests(key)).collect(), more)
    }

    /// The pages of [`Replica::changed_pages`].
    pub fn changed_page_keys(
        &self,
        since: LogIndex,
        from: (VolumeId, u64),
        most: usize,
    ) -> (Vec<(VolumeId, u64)>, bool) {
        // As if an entry that changed a page had been taken for one that the follower has.
        let skipped = if self.planted.is(Bug::PagesSkipped) { 8 } else { 0 };
        let since = LogIndex(since.0 + skipped);
        let mut keys = self.pages_from(since, from, most.saturating_add(1));
        let more = keys.len() > most;
        keys.truncate(most);
        (keys, more)
    }

    fn page_digests(&self, (volume, chunk): (VolumeId, u64)) -> PageDigests {
        let digests = (0..GRANULES).map(|number| (number, self.digest_of((volume, chunk, number))));
        let granules = digests.filter(|(_, digest)| *digest > 0).collect();
        PageDigests { volume, chunk, changed_at: self.page_changed_at(volume, chunk), granules }
    }

    fn digest_of(&self, key: GranuleKey) -> u64 {
        self.granule(key).map_or(0, |granule| sums_of(key.2, &granule).digest())
    }

    /// A granule as it is told; one that is not known is empty.
    fn granule(&self, (volume, chunk, number): GranuleKey) -> Option<Granule> {
        let mut granule = self.volumes.get(&volume)?.index.granule(chunk, number)?;
        if self.planted.is(Bug::SnapshotsNotCopied) {
            granule.deltas.clear();
        }
        Some(granule)
    }

    fn page_changed_at(&self, volume: VolumeId, chunk: u64) -> LogIndex {
        self.volumes.get(&volume).map_or(LogIndex(0), |volume| volume.index.changed_at(chunk))
    }

    /// Granules of a page as they are now, and the blocks that a follower does not hold: at most so
    /// many, of the first granules.
    pub fn tell(&self, page: (VolumeId, u64), wanted: &[HeldBlocks], most: usize) -> Told {
        let (mut granules, mut needed) = (Vec::new(), Vec::new());
        let mut told = 0;
        for held in wanted {
            let granule = self.granule((page.0, page.1, held.number)).unwrap_or_default();
            told += granule.deltas.len();
            if !granules.is_empty() && (needed.len() >= most || told > DELTAS_TOLD) {
                break;
            }
            let mut have: BTreeMap<(u8, u32), u32> = BTreeMap::new();
            held.blocks.iter().for_each(|pair| *have.entry(*pair).or_default() += 1);
            let mut lacking: Vec<(u8, Place)> = blocks_of(&granule)
                .filter(|(block, place)| match have.get_mut(&(*block, place.2)) {
                    Some(count) if *count > 0 => {
                        *count -= 1;
                        false
                    }
                    _ => true,
                })
                .collect();
            lacking.sort_unstable_by_key(|(block, place)| (*block, place.2));
            let first = u16::from(held.number) * GRANULE_BLOCKS as u16;
            needed.extend(lacking.into_iter().map(|(b, place)| (first + u16::from(b), place)));
            granules.push(sums_of(held.number, &granule));
        }
        needed.truncate(most);
        let places = needed.iter().map(|(_, (segment, block, checksum))| BlockPlace {
            segment: *segment,
            block: *block,
            checksum: *checksum,
        });
        let plan = Plan::of(places);
        let blocks = needed.iter().map(|(block, place)| (*block, place.2)).collect();
        Told { changed_at: self.page_changed_at(page.0, page.1), granules, blocks, plan }
    }
}

/// What the follower makes of it.
impl Replica {
    /// No page holds a later entry than this one, or than the one that is applied.
    pub fn ahead(&self) -> LogIndex {
        self.ahead
    }

    /// Whether pages may hold entries that are not applied yet.
    pub fn is_fuzzy(&self) -> bool {
        self.applied < self.ahead.max(self.seen)
    }

    /// Pages may hold entries up to this one from here on.
    pub fn note_ahead(&mut self, at: LogIndex) {
        self.ahead = self.ahead.max(at);
    }

    /// Compares a page with the leader's of an instant: gives the granules to be asked for. Those that
    /// only this replica has are emptied, those with the same content have seen what the leader's have.
    pub fn compare(&mut self, offered: &PageDigests, at: LogIndex) -> Vec<u8> {
        let (id, chunk) = (offered.volume, offered.chunk);
        self.note_ahead(at);
        let Some(volume) = self.copied_volume(id) else { return Vec::new() };
        let touched = volume.index.touch(chunk, offered.changed_at);
        self.changes.pages.extend(touched.map(|chunk| (id, chunk)));
        let mut theirs = offered.granules.iter().copied().peekable();
        let mut wanted = Vec::new();
        for number in 0..GRANULES {
            let digest = theirs.next_if(|(n, _)| *n == number).map_or(0, |(_, digest)| digest);
            let Some(volume) = self.volumes.get_mut(&id) else { break };
            if volume.index.seen(chunk, number) >= at {
                mark!("granule from an earlier session is later");
                continue;
            }
            if digest == self.digest_of((id, chunk, number)) {
                self.note_seen((id, chunk, number), at);
            } else if digest == 0 {
                let granule = Granule { changed_at: offered.changed_at, ..Granule::default() };
                self.replace((id, chunk, number), &granule, at);
            } else {
                wanted.push(number);
            }
        }
        wanted
    }

    /// The volume to copy pages into, made known if it is not; none if it is deleted.
    fn copied_volume(&mut self, id: VolumeId) -> Option<&mut Volume> {
        let changes = &mut self.changes.volumes;
        let volume = self.volumes.entry(id).or_insert_with(|| {
            changes.push(id);
            Volume::default()
        });
        (!volume.deleted).then_some(volume)
    }

    pub(super) fn note_seen(&mut self, (id, chunk, number): GranuleKey, at: LogIndex) {
        self.seen = self.seen.max(at);
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.index.note_seen(chunk, number, at);
        }
    }

    fn replace(&mut self, key: GranuleKey, granule: &Granule, at: LogIndex) {
        let (id, chunk, number) = key;
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let page = volume.index.replace((chunk, number), granule, &mut self.usage);
        self.changes.pages.extend(page.map(|chunk| (id, chunk)));
        self.note_seen(key, at);
    }

    /// The blocks that are held of granules of a page, staged ones included.
    pub fn held(&self, (volume, chunk): (VolumeId, u64), numbers: &[u8]) -> Vec<HeldBlocks> {
        let held = |number: &u8| {
            let key = (volume, chunk, *number);
            let granule = self.granule(key);
            let own = granule.iter().flat_map(blocks_of).map(|(block, place)| (block, place.2));
            let staged = self.staged.0.get(&key).into_iter().flatten();
            let staged = staged.map(|(block, place)| (*block, place.checksum));
            let mut blocks: Vec<(u8, u32)> = own.chain(staged).collect();
            blocks.sort_unstable();
            HeldBlocks { number: *number, blocks }
        };
        numbers.iter().map(held).collect()
    }

    /// Takes blocks of a page that stand, durable, one behind the other from `first` on.
    pub fn stage(
        &mut self,
        (volume, chunk): (VolumeId, u64),
        blocks: &[(u16, u32)],
        first: Location,
    ) {
        for ((block, checksum), at) in blocks.iter().zip(first.block..) {
            let (key, number) = granule_of(volume, chunk * CHUNK_BLOCKS + u64::from(*block));
            let place = BlockPlace { segment: first.segment, block: at, checksum: *checksum };
            self.usage.add(first.segment, 1);
            self.staged.0.entry(key).or_default().push((number, place));
        }
    }

    /// Replaces a granule by the leader's of an instant, if all blocks that it needs are held.
    pub fn install(
        &mut self,
        (id, chunk): (VolumeId, u64),
        sums: &GranuleSums,
        changed_at: LogIndex,
        at: LogIndex,
    ) -> bool {
        self.note_ahead(at);
        let key = (id, chunk, sums.number);
        if self.copied_volume(id).is_none() {
            return true;
        }
        let mut held: BTreeMap<(u8, u32), Vec<Place>> = BTreeMap::new();
        let own = self.granule(key);
        for (block, place) in own.iter().flat_map(blocks_of) {
            held.entry((block, place.2)).or_default().push(place);
        }
        for (block, place) in self.staged.0.get(&key).into_iter().flatten() {
            let at = (place.segment, place.block, place.checksum);
            held.entry((*block, place.checksum)).or_default().push(at);
        }
        let find = |block, sum| held.get_mut(&(block, sum))?.pop();
        let Some(granule) = granule_with(sums, changed_at, find) else {
            mark!("granule changed while it was copied");
            return false;
        };
        if !granule.deltas.is_empty() {
            mark!("snapshots copied in pages");
        }
        self.replace(key, &granule, at);
        let staged = self.staged.0.remove(&key).unwrap_or_default();
        staged.into_iter().for_each(|(_, place)| self.usage.sub(place.segment, 1));
        true
    }

    /// Forgets the blocks that came and were not put to use.
    pub fn unstage(&mut self) {
        let staged = std::mem::take(&mut self.staged);
        staged.places().for_each(|place| self.usage.sub(place.segment, 1));
    }

    /// Takes the state as of an entry: the pages were brought up, these are the volumes.
    pub fn start_at(&mut self, applied: LogIndex, states: &[(VolumeId, VolumeRecord)]) {
        self.unstage();
        for (id, record) in states {
            self.restore_volume(*id, record);
            let Some(volume) = self.volumes.get_mut(id) else { continue };
            if record.deleted {
                mark!("volume deleted while its replica was away");
                self.give_back(applied, *id);
            } else {
                let known = &volume.generations;
                let pages = volume.index.keep_only(|g| known.may_hold(g), applied, &mut self.usage);
                self.changes.pages.extend(pages.into_iter().map(|chunk| (*id, chunk)));
            }
            self.changes.volumes.push(*id);
        }
        self.applied = applied;
        self.catch_up();
    }
}
