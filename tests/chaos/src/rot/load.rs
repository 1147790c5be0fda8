//! A volume whose every block tells what it is: what was written to it, and what its snapshot holds.

use crate::nbd::{Kind, NbdClient};
use crate::power::ledger::content;
use crate::random::Random;
use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Attached, Cluster, PATIENCE};
use basalt_wire::block::{BLOCK_BYTES, crc32c};
use std::collections::BTreeSet;

pub(super) const VOLUME: &str = "rot";
/// The blocks of the volume say that they belong to this one.
const STAMP: u64 = 1;
const BLOCK: u64 = BLOCK_BYTES as u64;
/// Blocks of an extent: what is written or given back in one request, and damaged in the same way.
pub(super) const EXTENT: u64 = 8;
/// Blocks of a large request.
const LARGE: u64 = 32;
/// Writes under way.
const DEPTH: usize = 16;

/// A block with a version that some replica must hold.
pub(super) type Held = (u64, u64);

/// What a block must hold. Version 0 is zeros.
pub(super) fn bytes_of((block, version): Held) -> Vec<u8> {
    match version {
        0 => vec![0; BLOCK_BYTES],
        _ => content(STAMP, block, version).to_vec(),
    }
}

/// The checksum of what a block must hold.
pub(super) fn checksum_of(held: Held) -> u32 {
    crc32c(&bytes_of(held))
}

/// What the volume and its newest snapshot hold.
pub(super) struct Load {
    client: NbdClient,
    random: Random,
    next: u64,
    current: Vec<u64>,
    snapshot: Vec<u64>,
    snapshots: u32,
}

impl Load {
    pub(super) fn new(attached: &Attached, blocks: u64, seed: u64) -> Result<Load> {
        Ok(Load {
            client: NbdClient::open(attached.port, VOLUME, PATIENCE)?,
            random: Random::new(seed),
            next: 0,
            current: vec![0; blocks as usize],
            snapshot: Vec::new(),
            snapshots: 0,
        })
    }

    pub(super) fn blocks(&self) -> u64 {
        self.current.len() as u64
    }

    /// Writes all of it but a hole.
    pub(super) fn fill(&mut self) -> Result<()> {
        let end = self.blocks() - self.blocks() / 16;
        let all: Vec<u64> = (0..end).step_by(LARGE as usize).collect();
        all.chunks(DEPTH).try_for_each(|firsts| self.write(firsts, LARGE))
    }

    /// Overwrites so many blocks, in extents that are drawn.
    pub(super) fn overwrite(&mut self, blocks: u64) -> Result<()> {
        let extents = self.blocks() / EXTENT;
        for _ in 0..blocks / EXTENT / DEPTH as u64 {
            let mut firsts = BTreeSet::new();
            while firsts.len() < DEPTH {
                firsts.insert(self.random.below(extents) * EXTENT);
            }
            self.write(&firsts.into_iter().collect::<Vec<_>>(), EXTENT)?;
        }
        Ok(())
    }

    /// Gives so many extents back.
    pub(super) fn discard(&mut self, extents: u64) -> Result<()> {
        for _ in 0..extents {
            let first = self.random.below(self.blocks() / EXTENT) * EXTENT;
            let answer = self.client.order(Kind::Trim, first * BLOCK, (EXTENT * BLOCK) as u32)?;
            ensure!(answer.error == 0, "blocks can not be given back: {answer:?}");
            (first..first + EXTENT).for_each(|block| self.current[block as usize] = 0);
        }
        Ok(())
    }

    /// Makes a snapshot, and drops the one before it.
    pub(super) fn freeze(&mut self, cluster: &Cluster) -> Result<()> {
        let former = self.snapshot_name();
        self.snapshots += 1;
        cluster.basalt(&["snapshot", "create", &self.snapshot_name()])?;
        if self.snapshots > 1 {
            cluster.basalt(&["snapshot", "delete", &former])?;
        }
        self.snapshot.clone_from(&self.current);
        Ok(())
    }

    fn snapshot_name(&self) -> String {
        format!("{VOLUME}@s{}", self.snapshots)
    }

    /// All that must be on each replica: what the volume holds, and what only its snapshot does.
    pub(super) fn held(&self) -> BTreeSet<Held> {
        let of = |versions: &[u64]| {
            (0..).zip(versions.to_vec()).filter(|(_, version)| *version > 0).collect::<Vec<Held>>()
        };
        of(&self.current).into_iter().chain(of(&self.snapshot)).collect()
    }

    /// Reads the volume and its snapshot, while some of the volume is written and read.
    pub(super) fn verify(&mut self, cluster: &Cluster) -> Result<()> {
        let name = self.snapshot_name();
        let mut shown = cluster.attach(&name, "rot-view", false)?;
        let mut client = NbdClient::open(shown.port, &name, PATIENCE)?;
        for first in (0..self.blocks()).step_by(LARGE as usize) {
            check(&mut client, first, &self.snapshot).context("the snapshot")?;
            if (first / LARGE).is_multiple_of(4) {
                let slots = BUSY_PARTS * (self.random.below(self.blocks() / EXTENT / BUSY_PARTS));
                self.write(&[slots * EXTENT], EXTENT)?;
            }
            check(&mut self.client, first, &self.current)?;
        }
        drop(client);
        shown.process.stop(PATIENCE)
    }

    fn write(&mut self, firsts: &[u64], count: u64) -> Result<()> {
        for first in firsts {
            let mut data = Vec::with_capacity((count * BLOCK) as usize);
            for block in *first..first + count {
                self.next += 1;
                self.current[block as usize] = self.next;
                data.extend(bytes_of((block, self.next)));
            }
            self.client.send_write(first * BLOCK, &data)?;
        }
        for _ in firsts {
            let answer = self.client.answer()?.context("the connection was closed")?;
            ensure!(answer.error == 0, "a write failed: {answer:?}");
        }
        Ok(())
    }
}

/// While the volume is verified, one in so many extents is written to.
const BUSY_PARTS: u64 = 8;

/// Whether a block is written to while the volume is verified.
pub(super) fn is_busy(block: u64) -> bool {
    (block / EXTENT).is_multiple_of(BUSY_PARTS)
}

fn check(client: &mut NbdClient, first: u64, versions: &[u64]) -> Result<()> {
    let data = client.read(first * BLOCK, (LARGE * BLOCK) as u32)?;
    for (block, found) in (first..).zip(data.chunks_exact(BLOCK_BYTES)) {
        let version = versions[block as usize];
        ensure!(found == bytes_of((block, version)), "block {block} is not version {version}");
    }
    Ok(())
}
