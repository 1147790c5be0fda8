//! Random overwrites of a volume that remember what was written last, block by block.

use crate::nbd::NbdClient;
use crate::random::Random;
use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::PATIENCE;
use std::collections::HashMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// Bytes of a request of filling and of reading everything. A volume is a multiple of it.
pub const LARGE: u64 = 128 << 10;
/// Writes under way, unless it is told otherwise.
pub const DEPTH: usize = 32;

/// Some blocks that are written more often than others: of each hundred blocks the first `blocks`, by `writes`
/// of a hundred writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hot {
    blocks: u64,
    writes: u64,
}

impl FromStr for Hot {
    type Err = String;

    /// Reads "10:90": a tenth of the blocks gets nine tenths of the writes.
    fn from_str(text: &str) -> Result<Hot, String> {
        let hundredths = |part: &str| part.parse().ok().filter(|n| (1..100).contains(n));
        let parts = text.split_once(':').map(|(b, w)| (hundredths(b), hundredths(w)));
        match parts {
            Some((Some(blocks), Some(writes))) => Ok(Hot { blocks, writes }),
            _ => Err(format!("\"{text}\" is not two parts of a hundred with a colon between")),
        }
    }
}

/// A client of one volume.
pub struct Load {
    client: NbdClient,
    /// How often each block was written; 0 for one that reads as zeros.
    versions: Vec<u32>,
    /// The same when the volume was kept as a snapshot.
    kept: Vec<u32>,
    /// No block is written as this version or a lower one: those are of the volume that it was cloned from.
    below: u32,
    random: Random,
    rate: Option<u64>,
    hot: Option<Hot>,
    depth: usize,
}

impl Load {
    /// Opens an export of so many bytes. `rate` is writes a second at most; without it as many as go.
    ///
    /// # Errors
    /// If it is not served.
    pub fn open(port: u16, volume: &str, bytes: u64, rate: Option<u64>, seed: u64) -> Result<Load> {
        let client = NbdClient::open(port, volume, PATIENCE)?;
        let versions = vec![0; (bytes / BLOCK) as usize];
        let (kept, random) = (Vec::new(), Random::new(seed));
        let (hot, depth) = (None, DEPTH);
        Ok(Load { client, versions, kept, below: 0, random, rate, hot, depth })
    }

    /// The volume is kept as a snapshot as it is now.
    pub fn keep(&mut self) {
        self.kept.clone_from(&self.versions);
    }

    /// Opens a clone of what was kept, of so many bytes. Each has a number of its own, from 1, and writes
    /// nothing that another one has written.
    ///
    /// # Errors
    /// If it is not served.
    pub fn fork(&self, port: u16, volume: &str, bytes: u64, number: u32) -> Result<Load> {
        let seed = u64::from(number);
        let mut load = Load::open(port, volume, bytes, self.rate, seed)?;
        load.versions[..self.kept.len()].copy_from_slice(&self.kept);
        load.below = number << 24;
        Ok(load)
    }

    /// Has some blocks overwritten more often than others.
    pub fn prefer(&mut self, hot: Option<Hot>) {
        self.hot = hot;
    }

    /// Keeps so many overwrites under way.
    pub fn keep_under_way(&mut self, depth: usize) {
        self.depth = depth.max(1);
    }

    fn draw(&mut self) -> u64 {
        let blocks = self.versions.len() as u64;
        let Some(hot) = self.hot else { return self.random.below(blocks) };
        let wants_hot = self.random.below(100) < hot.writes;
        loop {
            let block = self.random.below(blocks);
            if (block % 100 < hot.blocks) == wants_hot {
                return block;
            }
        }
    }

    /// Writes every block once.
    ///
    /// # Errors
    /// If a write fails.
    pub fn fill(&mut self) -> Result<()> {
        let step = LARGE / BLOCK;
        for first in (0..self.versions.len() as u64).step_by(step as usize) {
            let data: Vec<u8> = (first..first + step).flat_map(|b| content(b, 1)).collect();
            self.client.write(first * BLOCK, &data)?;
        }
        self.versions.fill(1);
        Ok(())
    }

    /// Overwrites so many blocks, drawn at random; gives how long that took, and each write.
    ///
    /// # Errors
    /// If a write fails.
    pub fn overwrite(&mut self, writes: u64) -> Result<(Duration, Vec<Duration>)> {
        let began = Instant::now();
        let mut latencies = Vec::with_capacity(writes as usize);
        // What is under way, by request, and the blocks of it: none of them is written twice at a time.
        let mut under_way: HashMap<u64, (u64, Instant)> = HashMap::new();
        let mut sent = 0;
        while (latencies.len() as u64) < writes {
            if sent < writes && under_way.len() < self.depth && self.is_due(sent, began) {
                let block = self.draw();
                if under_way.values().any(|(busy, _)| *busy == block) {
                    continue;
                }
                let version = &mut self.versions[block as usize];
                *version = (*version).max(self.below) + 1;
                let number = self.client.send_write(block * BLOCK, &content(block, *version))?;
                under_way.insert(number, (block, Instant::now()));
                sent += 1;
                continue;
            }
            if under_way.is_empty() {
                // Only a rate keeps it from the next write, and only for a moment.
                std::thread::sleep(Duration::from_micros(100));
                continue;
            }
            let answer = self.client.answer()?.context("the connection was closed")?;
            ensure!(answer.error == 0, "a write failed: {answer:?}");
            let (_, since) = under_way.remove(&answer.number).context("an answer to nothing")?;
            latencies.push(since.elapsed());
        }
        Ok((began.elapsed(), latencies))
    }

    fn is_due(&self, sent: u64, began: Instant) -> bool {
        self.rate.is_none_or(|rate| sent as f64 <= began.elapsed().as_secs_f64() * rate as f64)
    }

    /// Reads some blocks, drawn at random: each must be what was written to it last.
    ///
    /// # Errors
    /// If one is not, or can not be read.
    pub fn sample(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            let block = self.random.below(self.versions.len() as u64);
            let found = self.client.read(block * BLOCK, BLOCK as u32)?;
            let version = self.versions[block as usize];
            ensure!(found == content(block, version), "block {block} is not what was written");
        }
        Ok(())
    }

    /// Reads everything: each block must be what was written to it last.
    ///
    /// # Errors
    /// If one is not, or can not be read.
    pub fn verify(&mut self) -> Result<()> {
        let step = LARGE / BLOCK;
        for first in (0..self.versions.len() as u64).step_by(step as usize) {
            let data = self.client.read(first * BLOCK, LARGE as u32)?;
            for (block, found) in (first..).zip(data.chunks_exact(BLOCK as usize)) {
                let version = self.versions[block as usize];
                ensure!(found == content(block, version), "block {block} is not what was written");
            }
        }
        Ok(())
    }
}

fn content(block: u64, version: u32) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK as usize];
    }
    let mut random = Random::new(block << 32 | u64::from(version));
    (0..BLOCK / 8).flat_map(|_| random.bits().to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_hundred_are_read() {
        assert_eq!("10:90".parse(), Ok(Hot { blocks: 10, writes: 90 }));
        for bad in ["", "10", "10:", ":90", "0:50", "50:100", "a:b", "10:90:1"] {
            assert!(bad.parse::<Hot>().is_err(), "{bad}");
        }
    }
}
