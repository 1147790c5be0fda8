//! Damage to data at rest: what a drive loses long after it said "done".
//!
//! Damage is only done where the log can know of it. A batch counts as *settled* once a later write is
//! durable whose author had already heard that the batch was durable: that write carries a durable
//! mark beyond the batch, so the damage can not be taken for a torn tail. (Damage to the very last
//! batch is indistinguishable from a torn write; no engine can tell them apart.)

use super::{BLOCK_BYTES, Disk, page_of};
use basalt_wire::buffer::IoBuf;
use basalt_wire::disk::SUPERBLOCK_OFFSETS;
use bytes::Bytes;

/// What happens to data at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A bit flips.
    Rot,
    /// A page can not be read until it is written again.
    BadSector,
    /// A write is found never to have reached the media.
    LostWrite,
    /// A write is found at another place: it is missing where it belongs, and something else is
    /// overwritten.
    Misdirected,
    /// Two pages are found in each other's place.
    Swapped,
    /// A bit flips in one of the two superblocks, always the same one.
    Superblock,
}

impl Damage {
    /// All kinds.
    pub const ALL: [Damage; 6] = [
        Damage::Rot,
        Damage::BadSector,
        Damage::LostWrite,
        Damage::Misdirected,
        Damage::Swapped,
        Damage::Superblock,
    ];
}

/// What stood on a disk's media at some time.
pub struct Image(super::Pages);

#[derive(Clone, Copy)]
struct Extent {
    page: u32,
    count: u32,
    completion: u64,
}

/// Which durable writes are settled.
#[derive(Default)]
pub(super) struct Settling {
    waiting: Vec<Extent>,
    settled: Vec<Extent>,
    /// The first page beyond all writes so far.
    end: u32,
}

impl Settling {
    /// A durable write completed, by an author who knew of all completions up to `known`.
    pub fn completed(&mut self, page: u32, count: u32, completion: u64, known: u64) {
        let settled = &mut self.settled;
        self.waiting.retain(|e| {
            let covered = e.completion <= known;
            if covered {
                settled.push(*e);
            }
            !covered
        });
        if page < self.end {
            // A dropped tail is written over: what was known of it is void.
            let apart = |e: &Extent| e.page + e.count <= page || page + count <= e.page;
            self.waiting.retain(apart);
            self.settled.retain(apart);
        }
        self.end = self.end.max(page + count);
        self.waiting.push(Extent { page, count, completion });
    }
}

impl Disk {
    /// Does damage to data at rest, if there is any that may be damaged, and says what it did.
    pub fn damage(&mut self, kind: Damage) -> Option<String> {
        let log_start = page_of(basalt_wire::disk::SUPERBLOCK_AREA_BYTES);
        let settled: Vec<Extent> =
            self.settling.settled.iter().copied().filter(|e| e.page >= log_start).collect();
        if kind == Damage::Superblock {
            let page = page_of(SUPERBLOCK_OFFSETS[1]);
            self.flip(page);
            return Some(format!("{kind:?} at page {page}"));
        }
        if settled.is_empty() {
            return None;
        }
        let extent = *self.rng.pick(&settled);
        let page = extent.page + self.rng.below(u64::from(extent.count)) as u32;
        match kind {
            Damage::Rot => self.flip(page),
            Damage::BadSector => {
                self.bad.insert(page);
            }
            Damage::LostWrite => self.lose(extent),
            Damage::Misdirected => {
                let other = *self.rng.pick(&settled);
                for i in 0..extent.count.min(other.count) {
                    let content = self.media.get(extent.page + i).cloned();
                    self.media.set(other.page + i, content.clone());
                    self.view.set(other.page + i, content);
                }
                if other.page != extent.page {
                    self.lose(extent);
                }
            }
            Damage::Swapped => {
                let other = *self.rng.pick(&settled);
                let other = other.page + self.rng.below(u64::from(other.count)) as u32;
                self.swap(page, other);
            }
            Damage::Superblock => unreachable!("handled above"),
        }
        Some(format!("{kind:?} at page {page} of the write {}+{}", extent.page, extent.count))
    }

    /// The media as they are now, to be put back by [`Disk::put_back`].
    pub fn image(&self) -> Image {
        Image(self.media.clone())
    }

    /// A bit flips in every page of the log that was written between two images.
    pub fn spoil(&mut self, before: &Image, after: &Image) {
        let log_start = page_of(basalt_wire::disk::SUPERBLOCK_AREA_BYTES);
        for page in log_start..after.0.0.len() as u32 {
            if before.0.get(page) != after.0.get(page) {
                self.flip(page);
            }
        }
    }

    /// An older image of the media takes their place. Nothing may be in flight.
    pub fn put_back(&mut self, image: Image) {
        self.view = image.0.clone();
        self.media = image.0;
        self.dirty.clear();
    }

    fn flip(&mut self, page: u32) {
        let mut buf = match self.media.get(page) {
            Some(content) => IoBuf::copy_from(content),
            None => IoBuf::zeroed(BLOCK_BYTES),
        };
        let at = self.rng.below(BLOCK_BYTES as u64) as usize;
        buf[at] ^= 1 << self.rng.below(8);
        let content = buf.freeze();
        self.media.set(page, Some(content.clone()));
        self.view.set(page, Some(content));
    }

    fn replace(&mut self, page: u32, content: Option<Bytes>) {
        self.media.set(page, content.clone());
        self.view.set(page, content);
    }

    fn swap(&mut self, page: u32, other: u32) {
        let (one, two) = (self.media.get(page).cloned(), self.media.get(other).cloned());
        self.replace(page, two);
        self.replace(other, one);
    }

    /// What a read of the page at an offset would bring; nothing if it can not be read.
    pub fn content_at(&self, offset: u64) -> Option<Bytes> {
        let page = page_of(offset);
        let zeros = || Bytes::from_static(&[0; BLOCK_BYTES]);
        (!self.bad.contains(&page)).then(|| self.view.get(page).cloned().unwrap_or_else(zeros))
    }

    /// A bit of the page at an offset flips.
    pub fn rot_at(&mut self, offset: u64) {
        self.flip(page_of(offset));
    }

    /// The page at an offset can not be read until it is written again.
    pub fn fail_at(&mut self, offset: u64) {
        self.bad.insert(page_of(offset));
    }

    /// The page at an offset is as if never written.
    pub fn zero_at(&mut self, offset: u64) {
        self.replace(page_of(offset), None);
    }

    /// The pages at two offsets are found in each other's place.
    pub fn swap_at(&mut self, offset: u64, other: u64) {
        self.swap(page_of(offset), page_of(other));
    }

    /// The page at an offset is what it was in an older image.
    pub fn put_back_at(&mut self, offset: u64, image: &Image) {
        let page = page_of(offset);
        self.replace(page, image.0.get(page).cloned());
    }

    /// The pages are as if never written: segments of this engine are used once.
    fn lose(&mut self, extent: Extent) {
        for page in extent.page..extent.page + extent.count {
            self.media.set(page, None);
            self.view.set(page, None);
        }
    }
}
