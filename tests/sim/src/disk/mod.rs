//! The disk model: what a drive may do between "write it" and "it is there".
//!
//! A disk has three layers. *In flight* are operations that were submitted and have not ended; *view*
//! is what a read sees, the drive's cache included; *media* is what survives a power cut. On a disk
//! with a volatile cache a completed write is in the view only, until a flush that was submitted after
//! its completion ends, or if it asked for durability itself. Data moves in atoms of 512 or 4096
//! bytes: an atom lands whole or not at all, in any order with the others.
//!
//! Pages share memory with the buffers that the log wrote: the model copies data only to damage it.

mod cut;
mod damage;
#[cfg(test)]
mod tests;

pub use cut::CutPolicy;
pub use damage::{Damage, Image};

use crate::queue::{Instant, MICRO};
use crate::rng::Rng;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::IoBuf;
use basalt_wire::disk::SUPERBLOCK_AREA_BYTES;
use basalt_wire::disk::batch::BatchHeader;
use basalt_wire::io::{DiskDone, DiskError, DiskOp, DiskOpKind, OpToken};
use bytes::Bytes;
use rustc_hash::FxHashSet;
use std::collections::VecDeque;

/// The character of one disk in one run.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Size.
    pub bytes: u64,
    /// Whether completed writes stay in a cache that a power cut empties.
    pub volatile: bool,
    /// Bytes that land whole or not at all: 512 or 4096.
    pub atom: usize,
    /// Whether a durable write makes earlier completed writes durable too (write and flush), or only
    /// itself (FUA).
    pub durable_flushes: bool,
    /// Mean latency of an operation.
    pub latency: u64,
}

/// Faults that come and go while the disk works, as probabilities for each operation.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskFaults {
    /// A read reports an error; the next one may succeed.
    pub read_error: f64,
    /// A write or flush reports an error; some of its atoms may have landed.
    pub write_error: f64,
    /// A read returns a flipped bit, an older state of a page, or another page.
    pub read_wrong: f64,
    /// Latency is multiplied by this, 1 for a healthy disk.
    pub slowness: f64,
    /// How long an operation has the device for itself while the others wait for it; 0: any number work at a time.
    pub turn: u64,
}

/// Pages by number; absent pages read as zeros.
#[derive(Clone, Default)]
struct Pages(Vec<Option<Bytes>>);

impl Pages {
    fn get(&self, page: u32) -> Option<&Bytes> {
        self.0.get(page as usize).and_then(Option::as_ref)
    }

    fn set(&mut self, page: u32, content: Option<Bytes>) {
        if self.0.len() <= page as usize {
            self.0.resize((page as usize + 1).next_multiple_of(64), None);
        }
        self.0[page as usize] = content;
    }
}

enum Work {
    Read {
        offset: u64,
        buf: IoBuf,
    },
    Write {
        page: u32,
        data: Bytes,
        durable: bool,
    },
    Flush,
    Discard {
        page: u32,
        count: u32,
    },
    /// Beyond the end of the device, or bound to fail before it did anything.
    Refused {
        error: DiskError,
        buf: Option<IoBuf>,
    },
}

struct Inflight {
    id: u32,
    token: OpToken,
    work: Work,
    /// Completions when it was submitted: what a flush covers.
    completed_before: u64,
    /// Completions that the submitter knew of.
    known: u64,
}

/// A completed write that is not on the media yet.
struct Dirty {
    page: u32,
    content: Option<Bytes>,
    /// Number of the completion that put it into the cache.
    completion: u64,
}

/// A log write on its way to the media, for the acknowledgement oracle.
struct Pending {
    id: u32,
    page: u32,
    data: Bytes,
    /// Number of its completion, if it completed into the cache.
    completion: Option<u64>,
    durable: bool,
}

/// One simulated disk.
pub struct Disk {
    options: DiskOptions,
    faults: DiskFaults,
    /// When nobody has the device for itself any more.
    free_at: Instant,
    rng: Rng,
    media: Pages,
    view: Pages,
    dirty: Vec<Dirty>,
    inflight: Vec<Inflight>,
    next_id: u32,
    completions: u64,
    bad: FxHashSet<u32>,
    pending: VecDeque<Pending>,
    safe: Vec<Bytes>,
    settling: damage::Settling,
}

/// A completion, and its number in the order of completions of the disk.
pub struct Completed {
    /// What the log is told.
    pub done: DiskDone,
    /// Counts completions from 1.
    pub order: u64,
}

fn page_of(offset: u64) -> u32 {
    (offset / BLOCK_BYTES as u64) as u32
}

fn page_slice(data: &Bytes, index: u32) -> Bytes {
    let at = index as usize * BLOCK_BYTES;
    data.slice(at..at + BLOCK_BYTES)
}

impl Disk {
    /// A blank disk.
    pub fn new(options: DiskOptions, rng: Rng) -> Disk {
        Disk {
            options,
            faults: DiskFaults { slowness: 1.0, ..DiskFaults::default() },
            free_at: 0,
            rng,
            media: Pages::default(),
            view: Pages::default(),
            dirty: Vec::new(),
            inflight: Vec::new(),
            next_id: 0,
            completions: 0,
            bad: FxHashSet::default(),
            pending: VecDeque::new(),
            safe: Vec::new(),
            settling: damage::Settling::default(),
        }
    }

    /// The disk's character.
    pub fn options(&self) -> &DiskOptions {
        &self.options
    }

    /// The faults in force.
    pub fn faults_mut(&mut self) -> &mut DiskFaults {
        &mut self.faults
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> usize {
        self.inflight.len()
    }

    /// Takes the log data that became durable since the last call, with everything that was submitted
    /// before it durable too. Only that counts: a batch behind a gap is lost with the gap.
    pub fn take_safe(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.safe)
    }

    /// Log writes that are not safe yet, in words.
    pub fn waiting(&self) -> String {
        let all: Vec<String> = self
            .pending
            .iter()
            .map(|p| format!("{} at page {} completed {:?}", p.id, p.page, p.completion))
            .collect();
        all.join(", ")
    }

    /// Whether [`Disk::take_safe`] has something to give.
    pub fn has_safe(&self) -> bool {
        !self.safe.is_empty()
    }

    /// Starts an operation and says when it ends. `known` is the number of the latest completion that
    /// the submitter had heard of when it asked for this.
    pub fn submit(&mut self, now: Instant, op: DiskOp, known: u64) -> (u32, Instant) {
        self.next_id += 1;
        let id = self.next_id;
        let mut latency = 10 * MICRO + self.rng.exponential(self.options.latency as f64);
        latency = (latency as f64 * self.faults.slowness) as u64;
        if self.faults.turn > 0 {
            self.free_at = self.free_at.max(now) + self.faults.turn;
            latency += self.free_at - now;
        }
        let work = self.accept(op.kind);
        if let Work::Write { page, data, .. } = &work
            && u64::from(*page) * BLOCK_BYTES as u64 >= SUPERBLOCK_AREA_BYTES
            && !is_of_copies(data)
        {
            let (page, data) = (*page, data.clone());
            self.pending.push_back(Pending { id, page, data, completion: None, durable: false });
        }
        let completed_before = self.completions;
        self.inflight.push(Inflight { id, token: op.token, work, completed_before, known });
        (id, now + latency)
    }

    /// Carries out an operation at once and durably, without faults: for formatting.
    pub fn execute(&mut self, op: DiskOp) {
        if let Work::Write { page, data, .. } = self.accept(op.kind) {
            for i in 0..(data.len() / BLOCK_BYTES) as u32 {
                self.media.set(page + i, Some(page_slice(&data, i)));
                self.view.set(page + i, Some(page_slice(&data, i)));
            }
        }
    }

    fn accept(&self, kind: DiskOpKind) -> Work {
        let fits = |offset: u64, len: u64| {
            assert!(
                offset.is_multiple_of(BLOCK_BYTES as u64) && len.is_multiple_of(BLOCK_BYTES as u64),
                "an unaligned device operation: {len} bytes at {offset}"
            );
            offset.checked_add(len).is_some_and(|end| end <= self.options.bytes)
        };
        match kind {
            DiskOpKind::Read { offset, buf } => match fits(offset, buf.len() as u64) {
                true => Work::Read { offset, buf },
                false => Work::Refused { error: DiskError::OutOfRange, buf: Some(buf) },
            },
            DiskOpKind::Write { offset, data, durable } => match fits(offset, data.len() as u64) {
                true => Work::Write { page: page_of(offset), data, durable },
                false => Work::Refused { error: DiskError::OutOfRange, buf: None },
            },
            DiskOpKind::Flush => Work::Flush,
            DiskOpKind::Discard { offset, len } => match fits(offset, len) {
                true => Work::Discard { page: page_of(offset), count: page_of(len) },
                false => Work::Refused { error: DiskError::OutOfRange, buf: None },
            },
        }
    }

    /// Ends an operation. Nothing if it was lost to a crash meanwhile.
    pub fn complete(&mut self, id: u32) -> Option<Completed> {
        let at = self.inflight.iter().position(|i| i.id == id)?;
        let op = self.inflight.remove(at);
        self.completions += 1;
        let order = self.completions;
        let (buf, result) = match op.work {
            Work::Read { offset, mut buf } => {
                let result = self.read(offset, &mut buf);
                (Some(buf), result)
            }
            Work::Write { page, data, durable } => {
                (None, self.write(op.id, page, data, durable, op.completed_before, op.known))
            }
            Work::Flush if self.rng.chance(self.faults.write_error) => (None, Err(DiskError::Io)),
            Work::Flush => {
                self.flush(op.completed_before);
                (None, Ok(()))
            }
            Work::Discard { page, count } => {
                (page..page + count).for_each(|p| self.put(p, None, false, order));
                (None, Ok(()))
            }
            Work::Refused { error, buf } => (buf, Err(error)),
        };
        self.release_safe();
        Some(Completed { done: DiskDone { token: op.token, buf, result }, order })
    }

    fn read(&mut self, offset: u64, buf: &mut IoBuf) -> Result<(), DiskError> {
        let first = page_of(offset);
        for (i, target) in buf.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            let page = first + i as u32;
            if self.bad.contains(&page) {
                return Err(DiskError::Io);
            }
            match self.view.get(page) {
                Some(content) => target.copy_from_slice(content),
                None => target.fill(0),
            }
        }
        if self.rng.chance(self.faults.read_error) {
            return Err(DiskError::Io);
        }
        if self.rng.chance(self.faults.read_wrong) {
            self.falsify(first, buf);
        }
        Ok(())
    }

    /// A read fault that a retry heals: a flipped bit, a page as it was before, another page.
    fn falsify(&mut self, first: u32, buf: &mut IoBuf) {
        let pages = (buf.len() / BLOCK_BYTES) as u64;
        let victim = self.rng.below(pages) as usize * BLOCK_BYTES;
        let target = &mut buf[victim..victim + BLOCK_BYTES];
        match self.rng.below(3) {
            0 => {
                let at = self.rng.below(BLOCK_BYTES as u64) as usize;
                target[at] ^= 1 << self.rng.below(8);
            }
            1 => target.fill(0),
            _ => {
                let other = self.rng.within(0, u64::from(first)) as u32;
                match self.view.get(other) {
                    Some(content) => target.copy_from_slice(content),
                    None => target.fill(0),
                }
            }
        }
    }

    fn write(
        &mut self,
        id: u32,
        page: u32,
        data: Bytes,
        durable: bool,
        completed_before: u64,
        known: u64,
    ) -> Result<(), DiskError> {
        let order = self.completions;
        if self.rng.chance(self.faults.write_error) {
            self.land_partly(page, &data, durable);
            self.settle_landed(id, page, &data);
            return Err(DiskError::Io);
        }
        let to_media = durable || !self.options.volatile;
        let count = (data.len() / BLOCK_BYTES) as u32;
        for i in 0..count {
            self.put(page + i, Some(page_slice(&data, i)), to_media, order);
        }
        if durable && self.options.volatile && self.options.durable_flushes {
            self.flush(completed_before);
        }
        if let Some(p) = self.pending.iter_mut().find(|p| p.id == id) {
            p.completion = Some(order);
            p.durable = to_media;
        }
        if to_media && u64::from(page) * BLOCK_BYTES as u64 >= SUPERBLOCK_AREA_BYTES {
            self.settling.completed(page, count, order, known);
        }
        Ok(())
    }

    fn put(&mut self, page: u32, content: Option<Bytes>, to_media: bool, completion: u64) {
        self.bad.remove(&page);
        self.view.set(page, content.clone());
        if to_media || !self.options.volatile {
            if !self.dirty.is_empty() {
                self.dirty.retain(|d| d.page != page);
            }
            self.media.set(page, content);
        } else {
            self.dirty.push(Dirty { page, content, completion });
        }
    }

    /// A write that failed or was cut: each atom lands or does not.
    fn land_partly(&mut self, page: u32, data: &Bytes, durable: bool) {
        for i in 0..(data.len() / BLOCK_BYTES) as u32 {
            let landed = self.rng.bits();
            let old = self.view.get(page + i).cloned();
            let content =
                self.mixed_page(old, &page_slice(data, i), |atom| landed >> atom & 1 == 1);
            self.put(page + i, content, durable, self.completions);
        }
    }

    /// A page of which some atoms are new and the others as before.
    fn mixed_page(
        &self,
        old: Option<Bytes>,
        new: &Bytes,
        mut landed: impl FnMut(usize) -> bool,
    ) -> Option<Bytes> {
        let atoms = BLOCK_BYTES / self.options.atom;
        let bits = (0..atoms).fold(0u32, |bits, a| bits | u32::from(landed(a)) << a);
        if bits == 0 {
            return old;
        }
        if bits == (1 << atoms) - 1 {
            return Some(new.clone());
        }
        let mut buf = match old {
            Some(old) => IoBuf::copy_from(&old),
            None => IoBuf::zeroed(BLOCK_BYTES),
        };
        for atom in (0..atoms).filter(|a| bits >> a & 1 == 1) {
            let at = atom * self.options.atom..(atom + 1) * self.options.atom;
            buf[at.clone()].copy_from_slice(&new[at]);
        }
        Some(buf.freeze())
    }

    /// Brings to the media what had completed as number `covered` or before.
    fn flush(&mut self, covered: u64) {
        let media = &mut self.media;
        self.dirty.retain(|d| {
            let covers = d.completion <= covered;
            if covers {
                media.set(d.page, d.content.clone());
            }
            !covers
        });
        for p in &mut self.pending {
            p.durable |= p.completion.is_some_and(|c| c <= covered);
        }
    }

    fn release_safe(&mut self) {
        while self.pending.front().is_some_and(|p| p.durable) {
            let p = self.pending.pop_front().expect("the front was just looked at");
            self.safe.push(p.data);
        }
    }

    /// A write that failed or was cut counts as completed if all of it landed, and is a gap otherwise.
    fn settle_landed(&mut self, id: u32, page: u32, data: &Bytes) {
        let (view, media) = (whole(&self.view, page, data), whole(&self.media, page, data));
        if !view {
            self.drop_pending_from(id);
        } else if let Some(p) = self.pending.iter_mut().find(|p| p.id == id) {
            p.completion = Some(self.completions);
            p.durable = media;
        }
    }

    /// A gap: neither this write nor those behind it will count as safe.
    fn drop_pending_from(&mut self, id: u32) {
        if let Some(at) = self.pending.iter().position(|p| p.id == id) {
            self.pending.truncate(at);
        }
    }
}

/// Whether a write is a batch of copies: the log does not wait for it, nor it for the log.
fn is_of_copies(data: &[u8]) -> bool {
    BatchHeader::decode(data).is_ok_and(|header| header.holds_copies())
}

/// Whether a write stands whole on a layer.
fn whole(layer: &Pages, page: u32, data: &Bytes) -> bool {
    data.chunks_exact(BLOCK_BYTES)
        .enumerate()
        .all(|(i, want)| layer.get(page + i as u32).is_some_and(|have| have[..] == *want))
}
