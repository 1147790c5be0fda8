//! A device is filled to the last byte and emptied again, over and over: every byte that was taken reads as
//! it was written, writes without room are told so, and all room comes back.

use crate::nbd::{Answer, Kind, NbdClient};
use crate::random::Random;
use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::process::wait_until;
use serde_json::Value;
use std::collections::HashMap;
use std::time::{Duration, Instant};

const VOLUME: &str = "full";
const DEVICE: &str = "256MiB";
const SEGMENT: &str = "1MiB";
/// More than the device holds.
const VOLUME_BYTES: u64 = 512 << 20;
const BLOCK: usize = 4096;
/// Bytes of a write while there is much room, and bytes given back at a time.
const LARGE: usize = 128 << 10;
/// Writes under way.
const DEPTH: usize = 16;
/// `ENOSPC`.
const NO_SPACE: u32 = 28;

/// How a round went.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Bytes that were taken before the device was full.
    pub taken_bytes: u64,
    /// Writes that were told that there is no space.
    pub refused: u64,
    /// How long filling took.
    pub filling: Duration,
    /// From the first byte given back until everything was.
    pub emptying: Duration,
}

/// Fills and empties `times` times. At the full device, one node is killed and comes back, and a snapshot
/// is made and dropped. `tell` hears of each round.
///
/// # Errors
/// If the cluster can not be set up, a byte is not what was written, an error other than that of a full
/// device is seen, or room does not come back.
pub fn run(name: &str, times: u32, seed: u64, tell: impl Fn(&Round)) -> Result<Vec<Round>> {
    let shape = Shape { device: DEVICE, segment: SEGMENT, groups: 4, ..Shape::default() };
    let mut cluster = Cluster::start_with(name, &shape)?;
    cluster.basalt(&["volume", "create", VOLUME, "--size", &VOLUME_BYTES.to_string()])?;
    let mut attached = cluster.attach(VOLUME, "fill-host", false)?;
    let mut random = Random::new(seed);
    let mut rounds = Vec::new();
    for number in 1..=times {
        let mut filling = Filling {
            client: NbdClient::open(attached.port, VOLUME, PATIENCE)?,
            round: number,
            refused: HashMap::new(),
        };
        let began = Instant::now();
        let end = filling.fill()?;
        let filled = began.elapsed();
        filling.verify(end)?;
        trouble(&mut cluster, number, &mut random)?;
        filling.verify(end)?;
        let began = Instant::now();
        filling.empty(end)?;
        wait_until("all room comes back", PATIENCE, || Ok(live(&cluster)? == 0))?;
        let refused = filling.refused.len() as u64;
        let emptying = began.elapsed();
        let taken_bytes = end * BLOCK as u64 - refused * BLOCK as u64;
        let round = Round { taken_bytes, refused, filling: filled, emptying };
        tell(&round);
        ensure!(
            rounds.first().is_none_or(|first: &Round| taken_bytes * 10 >= first.taken_bytes * 9),
            "round {number} took {taken_bytes} bytes, the first one {}",
            rounds[0].taken_bytes,
        );
        rounds.push(round);
    }
    attached.process.stop(PATIENCE)?;
    cluster.finish()?;
    Ok(rounds)
}

/// What must work on a full device.
fn trouble(cluster: &mut Cluster, round: u32, random: &mut Random) -> Result<()> {
    let snapshot = format!("{VOLUME}@full-{round}");
    cluster.basalt(&["snapshot", "create", &snapshot])?;
    let count = cluster.nodes.len() as u64;
    let victim = &mut cluster.nodes[random.below(count) as usize];
    victim.process.kill()?;
    victim.process.restart()?;
    cluster.wait_healthy()?;
    cluster.basalt(&["snapshot", "delete", &snapshot]).map(drop)
}

struct Filling {
    client: NbdClient,
    round: u32,
    /// Blocks whose write was told that there is no space.
    refused: HashMap<u64, ()>,
}

impl Filling {
    /// Writes one block after the other until there is no room for a single one. Gives the number of
    /// blocks that it tried.
    fn fill(&mut self) -> Result<u64> {
        let mut next = 0;
        for (bytes, depth) in [(LARGE, DEPTH), (BLOCK, 1)] {
            let blocks = (bytes / BLOCK) as u64;
            let mut under_way: HashMap<u64, u64> = HashMap::new();
            let mut full = false;
            while !full || !under_way.is_empty() {
                if !full && under_way.len() < depth {
                    ensure!((next + blocks) * BLOCK as u64 <= VOLUME_BYTES, "it is never full");
                    let data: Vec<u8> =
                        (next..next + blocks).flat_map(|b| self.content(b)).collect();
                    let number = self.client.send_write(next * BLOCK as u64, &data)?;
                    under_way.insert(number, next);
                    next += blocks;
                    continue;
                }
                let answer = self.client.answer()?.context("the connection was closed")?;
                let first = under_way.remove(&answer.number).context("an answer to nothing")?;
                if refusal(answer)? {
                    self.refused.extend((first..first + blocks).map(|block| (block, ())));
                    full = true;
                }
            }
        }
        Ok(next)
    }

    /// Every block that was taken reads as it was written; one that was refused as before or as written.
    fn verify(&mut self, end: u64) -> Result<()> {
        let step = (LARGE / BLOCK) as u64;
        for first in (0..end).step_by(step as usize) {
            let count = step.min(end - first);
            let data = self.client.read(first * BLOCK as u64, count as u32 * BLOCK as u32)?;
            for (block, found) in (first..).zip(data.chunks_exact(BLOCK)) {
                let empty = || found.iter().all(|byte| *byte == 0);
                let right =
                    found == self.content(block) || self.refused.contains_key(&block) && empty();
                ensure!(right, "round {}: block {block} is not what was written", self.round);
            }
        }
        Ok(())
    }

    fn empty(&mut self, end: u64) -> Result<()> {
        let all = (end * BLOCK as u64).next_multiple_of(LARGE as u64);
        for offset in (0..all).step_by(8 * LARGE) {
            let bytes = (8 * LARGE as u64).min(all - offset);
            let answer = self.client.order(Kind::Trim, offset, u32::try_from(bytes)?)?;
            ensure!(answer.error == 0, "a trim of a full device failed: {answer:?}");
        }
        let first = self.client.read(0, LARGE as u32)?;
        ensure!(first.iter().all(|byte| *byte == 0), "what was given back is still there");
        Ok(())
    }

    fn content(&self, block: u64) -> Vec<u8> {
        let mut random = Random::new(block << 32 | u64::from(self.round));
        (0..BLOCK / 8).flat_map(|_| random.bits().to_le_bytes()).collect()
    }
}

/// Whether a write was told that there is no space. Any other error is one.
fn refusal(answer: Answer) -> Result<bool> {
    ensure!(matches!(answer.error, 0 | NO_SPACE), "a write failed: {answer:?}");
    Ok(answer.error == NO_SPACE)
}

/// Bytes that volumes refer to, on the device that has most of them.
fn live(cluster: &Cluster) -> Result<u64> {
    let text = cluster.basalt(&["space", "explain"])?;
    let nodes = text["nodes"].as_array().context("no nodes")?;
    let of_node = |node: &Value| node["space"]["live_bytes"].as_u64().unwrap_or(u64::MAX);
    Ok(nodes.iter().map(of_node).max().unwrap_or(u64::MAX))
}
