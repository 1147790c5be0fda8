//! What blocks of a page were in the snapshots of its volume.
//!
//! Deltas run backwards: the page holds the volume as it is, and the delta of a snapshot what the
//! blocks that changed since were in it. A block reads, in a snapshot, as the first delta from that
//! snapshot's on holds it, or as the page does if none holds it. So reads and writes of the volume cost
//! what they cost without snapshots, but for the first change of a block behind the newest one; and each
//! place in the log has exactly one owner, so that what a dropped snapshot alone held is known at once.

use super::page::{BLOCKS, BlockPlace, Packed, release};
use super::usage::{Dying, Usage};
use basalt_wire::disk::checkpoint::{GRANULE_BLOCKS, GranuleDelta};
use basalt_wire::ids::Generation;
use std::ops::Range;

const WORDS: usize = BLOCKS / 64;

/// A bit for each block of a page.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bits([u64; WORDS]);

impl Bits {
    pub(super) fn get(&self, block: usize) -> bool {
        self.0[block / 64] >> (block % 64) & 1 == 1
    }

    pub(super) fn set(&mut self, block: usize) {
        self.0[block / 64] |= 1 << (block % 64);
    }

    /// Sets a bit; says whether that is news.
    pub(super) fn put(&mut self, block: usize) -> bool {
        let news = !self.get(block);
        self.set(block);
        news
    }

    /// Clears a bit; says whether it was set.
    pub(super) fn take(&mut self, block: usize) -> bool {
        let was = self.get(block);
        self.0[block / 64] &= !(1 << (block % 64));
        was
    }

    /// Clears the bits of some granules; gives those of them that had any.
    pub(super) fn clear(&mut self, granules: u64) -> u64 {
        let mut touched = 0;
        for number in (0..64).filter(|number| granules >> number & 1 == 1) {
            touched |= u64::from(self.of_granule(number) != 0) << number;
            self.0[number / 4] &= !(0xffff << (number % 4 * GRANULE_BLOCKS));
        }
        touched
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Bits before that of a block.
    fn rank(&self, block: usize) -> usize {
        let whole: u32 = self.0[..block / 64].iter().map(|word| word.count_ones()).sum();
        let part = self.0[block / 64] & ((1 << (block % 64)) - 1);
        (whole + part.count_ones()) as usize
    }

    /// The bits by granule.
    pub(super) fn granules(&self) -> [u16; BLOCKS / GRANULE_BLOCKS] {
        std::array::from_fn(|number| self.of_granule(number))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(i, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                let found = left != 0;
                left &= left.wrapping_sub(1);
                found.then_some(i * 64 + bit)
            })
        })
    }

    /// The bits of a granule.
    pub(super) fn of_granule(&self, number: usize) -> u16 {
        (self.0[number / 4] >> (number % 4 * GRANULE_BLOCKS)) as u16
    }
}

/// What the blocks that changed since a snapshot were in it.
#[derive(Clone)]
pub(super) struct Delta {
    generation: Generation,
    held: Bits,
    /// The held blocks that were mapped. Their places follow in order.
    mapped: Bits,
    /// The held blocks that were unmapped in a clone.
    zeros: Option<Box<Bits>>,
    places: Vec<Packed>,
}

impl Delta {
    fn new(generation: Generation) -> Delta {
        let (held, mapped) = (Bits::default(), Bits::default());
        Delta { generation, held, mapped, zeros: None, places: Vec::new() }
    }

    pub(super) fn holds(&self, block: usize) -> bool {
        self.held.get(block)
    }

    pub(super) fn get(&self, block: usize) -> Packed {
        match self.mapped.get(block) {
            true => self.places[self.mapped.rank(block)],
            false => self.unmapped(block),
        }
    }

    fn unmapped(&self, block: usize) -> Packed {
        match self.zeros.as_ref().is_some_and(|zeros| zeros.get(block)) {
            true => Packed::ZEROS,
            false => Packed::HOLE,
        }
    }

    /// Takes what a block was, that it does not hold.
    pub(super) fn put(&mut self, block: usize, was: Packed) {
        self.held.set(block);
        if was.is_mapped() {
            self.places.insert(self.mapped.rank(block), was);
            self.mapped.set(block);
        } else if was.is_zeros() {
            self.zeros.get_or_insert_default().set(block);
        }
    }

    /// Gives a held block that is open a place; says whether it was.
    pub(super) fn fill(&mut self, block: usize, place: Packed) -> bool {
        let open = !self.mapped.get(block) && !self.unmapped(block).is_zeros();
        if open {
            self.places.insert(self.mapped.rank(block), place);
            self.mapped.set(block);
        }
        open
    }

    fn thaw(self) -> Thawed {
        let mut slots = vec![None; BLOCKS];
        self.iter().for_each(|(block, was)| slots[block] = Some(was));
        Thawed { generation: self.generation, slots }
    }

    /// The held blocks and what they were, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, Packed)> + '_ {
        let mut places = self.places.iter();
        self.held.iter().map(move |block| match self.mapped.get(block) {
            true => (block, *places.next().expect("a place for each mapped block")),
            false => (block, self.unmapped(block)),
        })
    }
}

/// A delta that many blocks are put into in any order: a slot for each block of the page.
struct Thawed {
    generation: Generation,
    slots: Vec<Option<Packed>>,
}

impl Thawed {
    fn get(&self, block: usize) -> Option<Packed> {
        self.slots[block]
    }

    fn put(&mut self, block: usize, was: Packed) {
        self.slots[block] = Some(was);
    }

    fn freeze(self) -> Delta {
        let mut delta = Delta::new(self.generation);
        for (block, slot) in self.slots.into_iter().enumerate() {
            if let Some(was) = slot {
                delta.put(block, was);
            }
        }
        delta
    }
}

/// The deltas of a page, by generation, ascending. None is empty but while it is worked on.
#[derive(Default)]
pub(super) struct Versions {
    deltas: Vec<Delta>,
}

impl Versions {
    /// The delta of a snapshot, made if there is none.
    pub(super) fn delta(&mut self, snapshot: Generation) -> &mut Delta {
        let at = self.deltas.partition_point(|delta| delta.generation < snapshot);
        if self.deltas.get(at).is_none_or(|delta| delta.generation != snapshot) {
            self.deltas.insert(at, Delta::new(snapshot));
        }
        &mut self.deltas[at]
    }

    /// What a block was in a snapshot, if it is not what the page holds.
    pub(super) fn view(&self, snapshot: Generation, block: usize) -> Option<Packed> {
        let from = self.deltas.partition_point(|delta| delta.generation < snapshot);
        self.deltas[from..].iter().find(|delta| delta.holds(block)).map(|delta| delta.get(block))
    }

    /// The delta of the oldest snapshot that holds a block.
    pub(super) fn oldest(&self, block: usize) -> Option<&Delta> {
        self.deltas.iter().find(|delta| delta.holds(block))
    }

    /// The same, to be changed.
    pub(super) fn oldest_mut(&mut self, block: usize) -> Option<&mut Delta> {
        self.deltas.iter_mut().find(|delta| delta.holds(block))
    }

    /// Whether a block was changed behind a snapshot and before another one was frozen, or at all.
    pub(super) fn changed(
        &self,
        since: Generation,
        until: Option<Generation>,
        block: usize,
    ) -> bool {
        let from = self.deltas.partition_point(|delta| delta.generation < since);
        let before = |delta: &&Delta| until.is_none_or(|until| delta.generation < until);
        self.deltas[from..].iter().take_while(before).any(|delta| delta.holds(block))
    }

    /// Drops a snapshot: what the next older one does not hold itself becomes its own, the rest dies.
    /// Only blocks of the granules in `fresh` take part. Gives the granules that changed.
    pub(super) fn drop_snapshot(
        &mut self,
        snapshot: Generation,
        older: Option<Generation>,
        fresh: u64,
        dying: &mut Dying<'_>,
    ) -> u64 {
        let Some(at) = self.deltas.iter().position(|delta| delta.generation == snapshot) else {
            return 0;
        };
        let dropped = self.deltas.remove(at);
        let mut heir = older.map(|older| {
            let delta = self.delta(older);
            std::mem::replace(delta, Delta::new(older)).thaw()
        });
        let mut rest = Delta::new(snapshot);
        let mut touched = 0;
        for (block, was) in dropped.iter() {
            let granule = 1 << (block / GRANULE_BLOCKS);
            if fresh & granule == 0 {
                rest.put(block, was);
                continue;
            }
            touched |= granule;
            match &mut heir {
                Some(heir) if heir.get(block).is_none() => heir.put(block, was),
                _ => release(was, dying),
            }
        }
        if let Some(heir) = heir {
            let older = heir.generation;
            *self.delta(older) = heir.freeze();
        }
        if !rest.held.is_empty() {
            *self.delta(snapshot) = rest;
        }
        self.prune();
        touched
    }

    /// Takes out what blocks were in the first of some generations and gives it to `revert`; what they
    /// were in the later ones dies. Only blocks of the granules in `fresh` take part. Gives the granules
    /// that changed.
    pub(super) fn revert(
        &mut self,
        generations: Range<Generation>,
        fresh: u64,
        mut revert: impl FnMut(usize, Packed, &mut Dying<'_>),
        dying: &mut Dying<'_>,
    ) -> u64 {
        let (mut done, mut touched) = (Bits::default(), 0);
        for delta in &mut self.deltas {
            if !generations.contains(&delta.generation) {
                continue;
            }
            let taken = std::mem::replace(delta, Delta::new(delta.generation));
            for (block, was) in taken.iter() {
                let granule = 1 << (block / GRANULE_BLOCKS);
                if fresh & granule == 0 {
                    delta.put(block, was);
                    continue;
                }
                touched |= granule;
                if done.get(block) {
                    release(was, dying);
                } else {
                    done.set(block);
                    revert(block, was, dying);
                }
            }
        }
        self.prune();
        touched
    }

    /// Drops what the blocks of a granule were in all snapshots.
    pub(super) fn clear_granule(&mut self, number: usize, dying: &mut Dying<'_>) {
        for delta in self.deltas.iter_mut().filter(|delta| delta.held.of_granule(number) != 0) {
            let taken = std::mem::replace(delta, Delta::new(delta.generation));
            for (block, was) in taken.iter() {
                match block / GRANULE_BLOCKS == number {
                    true => release(was, dying),
                    false => delta.put(block, was),
                }
            }
        }
        self.prune();
    }

    /// Drops what blocks were in snapshots that are not to be kept. Gives the granules that changed.
    pub(super) fn keep_only(
        &mut self,
        keep: impl Fn(Generation) -> bool,
        dying: &mut Dying<'_>,
    ) -> u64 {
        let mut touched = 0;
        self.deltas.retain(|delta| {
            let kept = keep(delta.generation);
            for (block, was) in delta.iter().filter(|_| !kept) {
                touched |= 1 << (block / GRANULE_BLOCKS);
                release(was, dying);
            }
            kept
        });
        touched
    }

    /// What a block was in each snapshot that holds it.
    pub(super) fn places_of(&self, block: usize) -> impl Iterator<Item = Packed> + '_ {
        self.deltas.iter().filter(move |d| d.holds(block)).map(move |delta| delta.get(block))
    }

    /// What a block was in the snapshot in which it stood at a place.
    pub(super) fn find_mut(&mut self, block: usize, place: BlockPlace) -> Option<&mut Packed> {
        let mapped = self.deltas.iter_mut().filter(|delta| delta.mapped.get(block));
        let mut places = mapped.map(|delta| &mut delta.places[delta.mapped.rank(block)]);
        places.find(|was| was.get() == Some(place))
    }

    /// Drops deltas that hold nothing.
    pub(super) fn prune(&mut self) {
        self.deltas.retain(|delta| !delta.held.is_empty());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.deltas.is_empty()
    }

    /// Blocks in all deltas that were mapped.
    pub(super) fn mapped_blocks(&self) -> u32 {
        self.deltas.iter().map(|delta| delta.places.len() as u32).sum()
    }

    /// Bytes of memory, but for the places.
    pub(super) fn memory(&self) -> u64 {
        let zeros = self.deltas.iter().filter(|delta| delta.zeros.is_some()).count();
        let deltas = self.deltas.capacity() * size_of::<Delta>();
        (size_of::<Versions>() + deltas + zeros * size_of::<Bits>()) as u64
    }

    /// The deltas with their generations.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Generation, &Delta)> + '_ {
        self.deltas.iter().map(|delta| (delta.generation, delta))
    }

    /// What the blocks of a granule were in snapshots.
    pub(super) fn of_granule(&self, number: usize) -> Vec<GranuleDelta> {
        let mut granule = Vec::new();
        for delta in &self.deltas {
            let held = delta.held.of_granule(number);
            if held == 0 {
                continue;
            }
            let mut one = GranuleDelta { held, ..GranuleDelta::default() };
            one.generation = delta.generation;
            one.zeros = delta.zeros.as_ref().map_or(0, |zeros| zeros.of_granule(number));
            for (i, place) in one.places.iter_mut().enumerate() {
                *place = delta.get(number * GRANULE_BLOCKS + i).to_place();
            }
            granule.push(one);
        }
        granule
    }

    /// Takes what the blocks of a granule were in snapshots. Gives the number of those that were mapped.
    pub(super) fn restore(
        &mut self,
        number: usize,
        deltas: &[GranuleDelta],
        usage: &mut Usage,
    ) -> u32 {
        let mut mapped = 0;
        for one in deltas {
            let delta = self.delta(one.generation);
            for (i, place) in one.places.iter().enumerate() {
                let block = number * GRANULE_BLOCKS + i;
                if one.held >> i & 1 == 1 && !delta.holds(block) {
                    let zeros = one.zeros >> i & 1 == 1;
                    let was = if zeros { Packed::ZEROS } else { Packed::from_place(*place) };
                    delta.put(block, was);
                    if let Some((segment, ..)) = place {
                        mapped += 1;
                        usage.add(*segment, 1);
                    }
                }
            }
        }
        mapped
    }
}
