//! One copy of everything is damaged, each on the node that is drawn for it.

use super::disk::{Disk, path_of};
use super::load::{EXTENT, Held, bytes_of, checksum_of};
use super::places::Places;
use crate::random::Random;
use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Cluster, Node};
use basalt_wire::block::BLOCK_BYTES;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// What a device reads and writes at least: ranges of zeros begin and end there.
const SECTOR: u64 = 512;

/// How a copy is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// One bit is another.
    Flipped,
    /// A range of zeros, over as many neighbours as are damaged so.
    Zeroed,
    /// Two blocks stand in each other's place.
    Swapped,
    /// What stood at the place earlier stands there again.
    Older,
}

const KINDS: [Kind; 4] = [Kind::Flipped, Kind::Zeroed, Kind::Swapped, Kind::Older];

/// What was done.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Damage {
    /// Copies of blocks that were damaged, and bytes of them that are others now, by kind.
    pub kinds: BTreeMap<Kind, (u64, u64)>,
    /// Copies that were replaced with what a block held earlier, be it another block: no zeros.
    pub stale: u64,
    /// What was damaged, by node.
    #[serde(skip)]
    pub(super) of: Vec<BTreeSet<Held>>,
}

impl Damage {
    /// Copies that were damaged.
    pub fn copies(&self) -> u64 {
        self.kinds.values().map(|(copies, _)| copies).sum()
    }

    /// Adds that of another round.
    pub fn add(&mut self, other: &Damage) {
        for (kind, (copies, bytes)) in &other.kinds {
            let sum = self.kinds.entry(*kind).or_default();
            *sum = (sum.0 + copies, sum.1 + bytes);
        }
        self.stale += other.stale;
    }
}

/// Where the image of a node's device is kept.
fn image_of(node: &Node) -> PathBuf {
    node.folder.join("device.earlier")
}

/// Keeps all devices as they are now.
pub(super) fn keep_images(cluster: &Cluster) -> Result<()> {
    cluster.nodes.iter().try_for_each(|node| Disk::open(&path_of(node))?.copy_to(&image_of(node)))
}

/// Draws for everything that is held the node that loses its copy, and how.
pub(super) struct Draw {
    seed: u64,
    nodes: u64,
}

impl Draw {
    pub(super) fn new(seed: u64, nodes: usize) -> Draw {
        Draw { seed, nodes: nodes as u64 }
    }

    /// Neighbours of one extent share their fate, so that ranges of several blocks are damaged. An older
    /// version, which only the snapshot holds, is on its own.
    fn of(&self, (block, version): Held) -> (u64, Kind) {
        let (extent, write) = (block / EXTENT, (version - 1) / EXTENT);
        let mut random = Random::new(self.seed ^ (extent << 32) ^ write);
        (random.below(self.nodes), KINDS[random.below(KINDS.len() as u64) as usize])
    }

    /// Damages what is drawn for one node, which must not write meanwhile.
    pub(super) fn carry_out(
        &self,
        cluster: &Cluster,
        node: usize,
        volume: u64,
        held: &BTreeSet<Held>,
        done: &mut Damage,
    ) -> Result<()> {
        let mine = held.iter().copied().filter(|held| self.of(*held).0 == node as u64);
        let mine: BTreeSet<Held> = mine.collect();
        let node = &cluster.nodes[node];
        let disk = Disk::open(&path_of(node))?;
        let places = Places::read(&disk, volume)?;
        let mut targets: BTreeMap<Kind, Vec<Target>> = BTreeMap::new();
        for held in &mine {
            let at = places.offset(held.0, checksum_of(*held));
            let at = at.with_context(|| format!("{held:?} is not on {}", node.name))?;
            let bytes = disk.read(at, BLOCK_BYTES)?;
            ensure!(bytes[..] == bytes_of(*held), "{held:?} of {} is not right yet", node.name);
            let target = Target { at, bytes: bytes.to_vec() };
            targets.entry(self.of(*held).1).or_default().push(target);
        }
        let random = Random::new(self.seed ^ 0x726f74);
        let mut hand = Hand { disk: &disk, image: &image_of(node), random, done };
        for (kind, targets) in targets {
            hand.damage(kind, targets)?;
        }
        done.of.push(mine);
        disk.sync()
    }
}

/// A block's copy on a device.
struct Target {
    at: u64,
    bytes: Vec<u8>,
}

/// What does the damage on one device.
struct Hand<'a> {
    disk: &'a Disk,
    image: &'a Path,
    random: Random,
    done: &'a mut Damage,
}

impl Hand<'_> {
    fn damage(&mut self, kind: Kind, targets: Vec<Target>) -> Result<()> {
        match kind {
            Kind::Flipped => targets.iter().try_for_each(|target| self.flip(target)),
            Kind::Zeroed => self.zero(targets),
            Kind::Swapped => self.swap(targets),
            Kind::Older => self.restore(&targets),
        }
    }

    fn put(&mut self, kind: Kind, target: &Target, bytes: &[u8]) -> Result<()> {
        let others = target.bytes.iter().zip(bytes).filter(|(was, is)| was != is).count() as u64;
        ensure!(others > 0, "a copy that was to be damaged is as it was");
        let sum = self.done.kinds.entry(kind).or_default();
        *sum = (sum.0 + 1, sum.1 + others);
        self.disk.write(target.at, bytes)
    }

    fn flip(&mut self, target: &Target) -> Result<()> {
        let mut bytes = target.bytes.clone();
        bytes[self.random.below(BLOCK) as usize] ^= 1 << self.random.below(8);
        self.put(Kind::Flipped, target, &bytes)
    }

    /// Neighbours on the device lose one range of sectors together.
    fn zero(&mut self, mut targets: Vec<Target>) -> Result<()> {
        targets.sort_unstable_by_key(|target| target.at);
        for run in targets.chunk_by(|a, b| a.at + BLOCK == b.at) {
            let last = run.last().map_or(0, |target| target.at);
            let from = run[0].at + self.random.below(BLOCK / SECTOR) * SECTOR;
            let lowest = from.max(last) + SECTOR;
            let spare = (last + BLOCK - lowest) / SECTOR;
            let to = lowest + self.random.below(spare + 1) * SECTOR;
            for target in run {
                let mut bytes = target.bytes.clone();
                let end = target.at + BLOCK;
                let zeros = from.max(target.at) - target.at..to.min(end) - target.at;
                bytes[zeros.start as usize..zeros.end as usize].fill(0);
                self.put(Kind::Zeroed, target, &bytes)?;
            }
        }
        Ok(())
    }

    fn swap(&mut self, mut targets: Vec<Target>) -> Result<()> {
        for n in (1..targets.len()).rev() {
            targets.swap(n, self.random.below(n as u64 + 1) as usize);
        }
        let mut pairs = targets.chunks_exact(2);
        for pair in &mut pairs {
            self.put(Kind::Swapped, &pair[0], &pair[1].bytes)?;
            self.put(Kind::Swapped, &pair[1], &pair[0].bytes)?;
        }
        pairs.remainder().iter().try_for_each(|target| self.flip(target))
    }

    /// Where the image holds the same, a bit is flipped.
    fn restore(&mut self, targets: &[Target]) -> Result<()> {
        let image = File::open(self.image).with_context(|| self.image.display().to_string())?;
        for target in targets {
            let mut bytes = vec![0; BLOCK_BYTES];
            image.read_exact_at(&mut bytes, target.at)?;
            if bytes == target.bytes {
                self.flip(target)?;
                continue;
            }
            self.done.stale += u64::from(bytes.iter().any(|byte| *byte != 0));
            self.put(Kind::Older, target, &bytes)?;
        }
        Ok(())
    }
}
