//! The table of a page out of memory, and back.
//!
//! A page of which the durable checkpoint holds everything can do without its table: the granules' records
//! in the store say the same. Such a page is *cold*. What stays of it is enough to say when it changed, how
//! much it maps, and the digest of its content, by which the table that comes back is known to be the one that
//! went. A page that holds blocks for snapshots stays in memory.

use super::{BLOCKS, Packed, Page};
use crate::index::{Usage, mix};
use basalt_wire::disk::checkpoint::{GRANULE_BLOCKS, Granule};
use basalt_wire::ids::{Generation, LogIndex};
use std::cell::Cell;
use std::ops::{Deref, DerefMut};

/// What the store holds of a page: its granules by number, ascending.
pub type PageContent = Vec<(u8, Granule)>;

/// The places of all blocks of a page.
pub(super) struct Table {
    places: [Packed; BLOCKS],
    /// The checkpoint that was given something of it last.
    pub(super) taken: u64,
    /// When somebody asked last that it stay for a while.
    held: Cell<u64>,
}

impl Deref for Table {
    type Target = [Packed; BLOCKS];

    fn deref(&self) -> &[Packed; BLOCKS] {
        &self.places
    }
}

impl DerefMut for Table {
    fn deref_mut(&mut self) -> &mut [Packed; BLOCKS] {
        &mut self.places
    }
}

impl Table {
    fn empty() -> Box<Table> {
        Box::new(Table { places: [Packed::HOLE; BLOCKS], taken: 0, held: Cell::new(0) })
    }
}

/// A page that is to be emptied once its table is there.
pub(super) struct Doom {
    /// The granules that are to be emptied, a bit for each.
    granules: u64,
    /// The entry that emptied them.
    at: LogIndex,
    digest: u64,
}

impl Doom {
    /// The entry that emptied it.
    pub(super) fn emptied_at(&self) -> LogIndex {
        self.at
    }

    /// Whether it emptied all of it.
    pub(super) fn is_whole(&self) -> bool {
        self.granules == u64::MAX
    }
}

/// Where the table of a page is.
#[derive(Default)]
pub(super) enum Body {
    /// Nothing is mapped: there is none.
    #[default]
    Empty,
    /// In memory.
    Table(Box<Table>),
    /// In the store alone. The digest of the mapped blocks.
    Cold(u64),
    /// The same, and an entry has emptied the page since.
    Doomed(Box<Doom>),
    /// Neither in memory nor in the store; the last entry that emptied a part of the page since.
    Lost(LogIndex),
}

impl Body {
    pub(super) fn table(&self) -> Option<&Table> {
        match self {
            Body::Table(table) => Some(table),
            _ => None,
        }
    }

    pub(super) fn table_mut(&mut self) -> Option<&mut Table> {
        match self {
            Body::Table(table) => Some(table),
            _ => None,
        }
    }

    pub(super) fn table_or_new(&mut self) -> &mut Table {
        if let Body::Empty = self {
            *self = Body::Table(Table::empty());
        }
        self.table_mut().expect("a page whose table is not in memory is not changed")
    }
}

/// What came of trying to make a page cold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cooling {
    /// It is cold.
    Cold,
    /// It was used lately, or somebody needs it, or its last change is not durable: it is to be tried again.
    Later,
    /// Only once it was given to another checkpoint.
    Never,
}

/// Which pages may go out of memory.
#[derive(Clone, Copy, Debug)]
pub struct CoolingRule {
    /// The last durable checkpoint.
    pub durable: u64,
    /// What was held since then is needed.
    pub held_since: u64,
    /// Pages go whatever the store holds of them (a planted bug).
    pub careless: bool,
}

impl Page {
    /// Whether its table is out of memory.
    pub fn is_cold(&self) -> bool {
        matches!(self.body, Body::Cold(_) | Body::Doomed(_) | Body::Lost(_))
    }

    /// A bit for each granule that the store holds.
    pub(in crate::index) fn stored(&self) -> u64 {
        self.stored
    }

    /// Whether it will be emptied once its table is there.
    pub fn is_doomed(&self) -> bool {
        matches!(self.body, Body::Doomed(_))
    }

    /// Whether its table is in memory and may leave it once the store holds it.
    pub(in crate::index) fn may_leave(&self) -> bool {
        self.body.table().is_some() && self.versions.is_none()
    }

    /// Asks that it stay in memory for a while. Says whether it is there.
    pub(in crate::index) fn hold(&self, clock: u64) -> bool {
        if let Some(table) = self.body.table() {
            table.held.set(clock);
            self.used.set(true);
        }
        !self.is_cold()
    }

    /// Notes that it was looked at.
    pub(in crate::index) fn note_used(&self) {
        self.used.set(true);
    }

    /// Puts it among those that may go out of memory; says whether that is news.
    pub(in crate::index) fn list(&mut self) -> bool {
        self.may_leave() && !std::mem::replace(&mut self.listed, true)
    }

    /// Has its table leave memory, if nobody needs it there and the store holds the same.
    pub(in crate::index) fn cool(&mut self, rule: &CoolingRule) -> Cooling {
        self.listed = false;
        let Some(table) = self.body.table() else { return Cooling::Never };
        if self.versions.is_some() || (self.dirty != 0 && !rule.careless) {
            return Cooling::Never;
        }
        let needed = table.held.get() >= rule.held_since || self.used.replace(false);
        if needed || (table.taken > rule.durable && !rule.careless) {
            self.listed = true;
            return Cooling::Later;
        }
        self.dirty = 0;
        self.body = Body::Cold(self.live_digest());
        Cooling::Cold
    }

    /// Empties granules of a page whose table is out of memory: that is done when it is back. Says whether
    /// the page was not to be emptied before.
    pub(in crate::index) fn doom(&mut self, granules: u64, at: LogIndex) -> bool {
        match &mut self.body {
            Body::Doomed(doom) => {
                (doom.granules, doom.at) = (doom.granules | granules, at.max(doom.at));
                false
            }
            Body::Cold(digest) => {
                let digest = *digest;
                self.body = Body::Doomed(Box::new(Doom { granules, at, digest }));
                true
            }
            _ => false,
        }
    }

    /// Takes back the table that the store holds. Fails if it is not the one that went.
    pub(in crate::index) fn warm(
        &mut self,
        content: &PageContent,
        clock: u64,
        careless: bool,
        usage: &mut Usage,
    ) -> Result<(), &'static str> {
        let (digest, doom) = match std::mem::take(&mut self.body) {
            Body::Cold(digest) => (digest, None),
            Body::Doomed(doom) => (doom.digest, Some((doom.granules, doom.at))),
            other => {
                self.body = other;
                return Ok(());
            }
        };
        let table = self.table_of(content);
        self.body = Body::Table(table);
        let (stored, zeros, plain) = described(content);
        let same = stored == self.stored
            && plain
            && zeros == self.zeros.as_ref().map_or([0; 64], |own| own.granules())
            && self.iter().count() == usize::from(self.mapped)
            && self.live_digest() == digest;
        if !same && !careless {
            self.body = match doom {
                None => Body::Cold(digest),
                Some((granules, at)) => Body::Doomed(Box::new(Doom { granules, at, digest })),
            };
            return Err("what the store holds of a page is not what left memory");
        }
        self.stored = stored;
        self.mapped = self.iter().count() as u16;
        self.hold(clock);
        if let Some((granules, at)) = doom {
            // A page that was cold holds nothing for snapshots.
            self.clear(Generation(0), granules, at, usage);
        }
        Ok(())
    }

    fn table_of(&self, content: &PageContent) -> Box<Table> {
        let mut table = Table::empty();
        for (number, granule) in content {
            let first = usize::from(*number) * GRANULE_BLOCKS;
            for (slot, place) in table[first..].iter_mut().zip(&granule.places) {
                *slot = Packed::from_place(*place);
            }
        }
        table
    }

    /// A digest of what it holds: of the checksums of its blocks, those kept for snapshots included. 0 for a
    /// page that holds nothing; nothing if it is to be emptied.
    pub fn digest(&self) -> Option<u64> {
        // A sum, so that no block waits for the one before.
        let live = match &self.body {
            Body::Cold(digest) => *digest,
            Body::Doomed(_) | Body::Lost(_) => return None,
            _ => self.live_digest(),
        };
        let kept = self.kept().map(|(generation, block, was)| {
            mix(u64::from(generation.0) << 32 | 1 << 31 | block as u64, was.number())
        });
        let zeros = self.zeros().map(|block| mix(1 << 63, block as u64));
        Some(kept.chain(zeros).fold(live, u64::wrapping_add))
    }

    fn live_digest(&self) -> u64 {
        let live = self.iter().map(|(block, place)| mix(block as u64, place.checksum.into()));
        live.fold(0, u64::wrapping_add)
    }
}

/// The granules of a content, what of them reads as zeros, and whether nothing is kept for snapshots.
fn described(content: &PageContent) -> (u64, [u16; 64], bool) {
    let (mut stored, mut zeros, mut plain) = (0, [0; 64], true);
    for (number, granule) in content {
        stored |= 1 << number;
        zeros[usize::from(*number)] = granule.zeros;
        plain &= granule.deltas.is_empty();
    }
    (stored, zeros, plain)
}
