//! The ends of a disk's user: a killed process and a power cut.

use super::{BLOCK_BYTES, Disk, Work, page_slice, whole};
use crate::rng::Rng;
use basalt_wire::buffer::IoBuf;
use bytes::Bytes;

/// Which of the atoms that were not yet on the media survive a power cut. Atoms are counted in the
/// order in which they were written: the cache's first, then those in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutPolicy {
    /// None.
    Drop,
    /// All.
    Keep,
    /// Each with probability one half.
    Coin,
    /// Those up to a point.
    Prefix,
    /// Those from a point on: the drive worked backwards.
    Reverse,
    /// All but one.
    Hole,
    /// As `Coin`, and atoms in flight may hold neither the old nor the new content.
    Garbage,
}

impl CutPolicy {
    /// All policies.
    pub const ALL: [CutPolicy; 7] = [
        CutPolicy::Drop,
        CutPolicy::Keep,
        CutPolicy::Coin,
        CutPolicy::Prefix,
        CutPolicy::Reverse,
        CutPolicy::Hole,
        CutPolicy::Garbage,
    ];
}

/// A page write that the media may or may not see.
struct Candidate {
    page: u32,
    content: Option<Bytes>,
    inflight: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lost,
    Lands,
    Garbage,
}

impl Disk {
    /// The process that used the disk is gone: what had completed stays in the view, and each atom in
    /// flight lands or does not.
    pub fn kill(&mut self) {
        let inflight = std::mem::take(&mut self.inflight);
        for op in inflight {
            if let Work::Write { page, data, .. } = op.work {
                if self.rng.chance(0.5) {
                    self.land_whole(op.id, page, &data);
                } else {
                    self.land_partly(page, &data, false);
                    self.settle_landed(op.id, page, &data);
                }
            }
        }
        self.release_safe();
    }

    fn land_whole(&mut self, id: u32, page: u32, data: &Bytes) {
        self.completions += 1;
        let order = self.completions;
        for i in 0..(data.len() / BLOCK_BYTES) as u32 {
            self.put(page + i, Some(page_slice(data, i)), false, order);
        }
        let durable = !self.options.volatile;
        if let Some(p) = self.pending.iter_mut().find(|p| p.id == id) {
            p.completion = Some(order);
            p.durable = durable;
        }
    }

    /// The power is gone: of everything that was not on the media, the policy decides for each atom.
    pub fn power_cut(&mut self, policy: CutPolicy) {
        let candidates = self.candidates();
        let atoms = BLOCK_BYTES / self.options.atom;
        let total = (candidates.len() * atoms) as u64;
        let point = self.rng.below(total + 1);
        let mut number = 0;
        for c in &candidates {
            let fates: Vec<Fate> = (0..atoms)
                .map(|_| {
                    number += 1;
                    fate(policy, number - 1, point, c.inflight, &mut self.rng)
                })
                .collect();
            self.cut_page(c, &fates);
        }
        for c in &candidates {
            let content = self.media.get(c.page).cloned();
            self.view.set(c.page, content);
        }
        self.settle_pending_after_cut();
    }

    fn candidates(&mut self) -> Vec<Candidate> {
        let dirty = std::mem::take(&mut self.dirty);
        let mut out: Vec<Candidate> = dirty
            .into_iter()
            .map(|d| Candidate { page: d.page, content: d.content, inflight: false })
            .collect();
        for op in std::mem::take(&mut self.inflight) {
            if let Work::Write { page, data, .. } = op.work {
                out.extend((0..(data.len() / BLOCK_BYTES) as u32).map(|i| Candidate {
                    page: page + i,
                    content: Some(page_slice(&data, i)),
                    inflight: true,
                }));
            }
        }
        out
    }

    fn cut_page(&mut self, c: &Candidate, fates: &[Fate]) {
        let old = self.media.get(c.page).cloned();
        let zero;
        let new = match &c.content {
            Some(content) => content,
            None => {
                zero = IoBuf::zeroed(BLOCK_BYTES).freeze();
                &zero
            }
        };
        let mut page = self.mixed_page(old, new, |a| fates[a] == Fate::Lands);
        if fates.contains(&Fate::Garbage) {
            page = Some(garbage_atoms(page, fates, self.options.atom, &mut self.rng));
        }
        self.bad.remove(&c.page);
        self.media.set(c.page, page);
    }

    /// Log writes that the cut left whole count as safe, up to the first that it did not.
    fn settle_pending_after_cut(&mut self) {
        self.release_safe();
        for p in std::mem::take(&mut self.pending) {
            if !whole(&self.media, p.page, &p.data) {
                break;
            }
            self.safe.push(p.data);
        }
    }
}

fn fate(policy: CutPolicy, number: u64, point: u64, inflight: bool, rng: &mut Rng) -> Fate {
    let lands = match policy {
        CutPolicy::Drop => false,
        CutPolicy::Keep => true,
        CutPolicy::Coin => rng.chance(0.5),
        CutPolicy::Prefix => number < point,
        CutPolicy::Reverse => number >= point,
        CutPolicy::Hole => number != point,
        CutPolicy::Garbage if inflight && rng.chance(0.3) => return Fate::Garbage,
        CutPolicy::Garbage => rng.chance(0.5),
    };
    if lands { Fate::Lands } else { Fate::Lost }
}

fn garbage_atoms(page: Option<Bytes>, fates: &[Fate], atom: usize, rng: &mut Rng) -> Bytes {
    let mut buf = match page {
        Some(page) => IoBuf::copy_from(&page),
        None => IoBuf::zeroed(BLOCK_BYTES),
    };
    for (i, _) in fates.iter().enumerate().filter(|(_, f)| **f == Fate::Garbage) {
        for word in buf[i * atom..(i + 1) * atom].chunks_exact_mut(8) {
            word.copy_from_slice(&rng.bits().to_le_bytes());
        }
    }
    buf.freeze()
}
