//! A node is away while a small part of a volume changes: what it is sent when it comes back is in proportion
//! to what changed, whether the Raft logs of the others reach back to it or not.

use crate::nbd::NbdClient;
use crate::random::Random;
use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Attached, Cluster, PATIENCE, Shape};
use basalt_interop::process::wait_until;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::time::{Duration, Instant};

const VOLUME: &str = "changed";
const BLOCK: u64 = 4096;
/// Bytes of a request of filling and reading.
const LARGE: u64 = 128 << 10;

/// Whether the others' logs reach back to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It is sent entries.
    Entries,
    /// It is brought up by pages.
    Pages,
}

/// How it went.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Whether the others' logs reached back to it.
    pub reach: Reach,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// Bytes of it that were written while the node was away, each block counted once.
    pub changed_bytes: u64,
    /// Bytes of blocks that the node wrote to its device to catch up, moved by its cleaner or not.
    pub moved_bytes: u64,
    /// Of those, what came in pages.
    pub paged_bytes: u64,
    /// From the start of its process until it held everything.
    pub time: Duration,
}

impl Reach {
    /// How often each changed block is written: for pages, far more than the short Raft log keeps.
    fn repeats(self) -> u64 {
        if self == Reach::Pages { 8 } else { 1 }
    }
}

impl Report {
    /// What was moved, in hundredths of the volume.
    pub fn percent(&self) -> f64 {
        self.moved_bytes as f64 * 100.0 / self.volume_bytes as f64
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?}: {} of {} bytes changed, {} moved ({:.2} % of the volume), {} of them in pages, in {:?}",
            self.reach,
            self.changed_bytes,
            self.volume_bytes,
            self.moved_bytes,
            self.percent(),
            self.paged_bytes,
            self.time,
        )
    }
}

/// Kills a node, changes one block in `part` of a volume of so many bytes, and brings the node back.
///
/// # Errors
/// If the cluster can not be set up, the node does not catch up, or what is read with it is not what was written.
pub fn run(name: &str, reach: Reach, volume_bytes: u64, part: u64, seed: u64) -> Result<Report> {
    let args: &[&str] = match reach {
        Reach::Entries => &[],
        Reach::Pages => &["--log-retain", "1MiB", "--checkpoint-every", "4MiB"],
    };
    let node_args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let shape = Shape { device: "4GiB", segment: "4MiB", node_args, ..Shape::default() };
    let mut cluster = Cluster::start_with(name, &shape)?;
    cluster.basalt(&["volume", "create", VOLUME, "--size", &volume_bytes.to_string()])?;
    let mut attached = cluster.attach(VOLUME, "absence-host", false)?;
    let mut course = Course {
        client: NbdClient::open(attached.port, VOLUME, PATIENCE)?,
        random: Random::new(seed),
        written: BTreeMap::new(),
        volume_bytes,
    };
    course.fill()?;
    wait_level(&cluster)?;
    cluster.nodes[2].process.kill()?;
    let changed_bytes = course.change(part, reach.repeats())?;
    let began = Instant::now();
    cluster.nodes[2].process.restart()?;
    wait_level(&cluster)?;
    let time = began.elapsed();
    let node = &status(&cluster)?["nodes"][2];
    let figure = |of: &str, what: &str| node[of][what].as_u64().with_context(|| node.to_string());
    let moved_bytes = figure("log", "payload_bytes")?;
    let paged_bytes = figure("resync", "bytes_taken")?;
    course.check_without_others(&mut cluster, &attached)?;
    attached.process.stop(PATIENCE)?;
    cluster.finish()?;
    Ok(Report { reach, volume_bytes, changed_bytes, moved_bytes, paged_bytes, time })
}

struct Course {
    client: NbdClient,
    random: Random,
    /// How often a changed block was written. Others were written once.
    written: BTreeMap<u64, u64>,
    volume_bytes: u64,
}

impl Course {
    fn fill(&mut self) -> Result<()> {
        for offset in (0..self.volume_bytes).step_by(LARGE as usize) {
            let blocks = offset / BLOCK..(offset + LARGE) / BLOCK;
            let data: Vec<u8> = blocks.flat_map(|block| content(block, 0)).collect();
            self.client.write(offset, &data)?;
        }
        Ok(())
    }

    /// Writes each of the drawn blocks several times over; gives the bytes that are others now.
    fn change(&mut self, part: u64, repeats: u64) -> Result<u64> {
        let blocks = self.volume_bytes / BLOCK;
        while (self.written.len() as u64) < blocks / part {
            self.written.insert(self.random.below(blocks), 0);
        }
        for repeat in 1..=repeats {
            for (block, times) in &mut self.written {
                self.client.write(block * BLOCK, &content(*block, repeat))?;
                *times = repeat;
            }
        }
        Ok(self.written.len() as u64 * BLOCK)
    }

    /// Reads everything without each of the other nodes in turn: the one that came back is needed.
    fn check_without_others(&mut self, cluster: &mut Cluster, attached: &Attached) -> Result<()> {
        for other in 0..2 {
            cluster.nodes[other].process.kill()?;
            let mut client = NbdClient::open(attached.port, VOLUME, PATIENCE)?;
            for offset in (0..self.volume_bytes).step_by(LARGE as usize) {
                let data = client.read(offset, LARGE as u32)?;
                for (block, found) in (offset / BLOCK..).zip(data.chunks_exact(BLOCK as usize)) {
                    let times = self.written.get(&block).copied().unwrap_or(0);
                    ensure!(
                        found == content(block, times),
                        "block {block} is not what was written"
                    );
                }
            }
            cluster.nodes[other].process.restart()?;
            cluster.wait_healthy()?;
            wait_level(cluster)?;
        }
        Ok(())
    }
}

fn content(block: u64, times: u64) -> Vec<u8> {
    let mut random = Random::new(block << 8 | times);
    (0..BLOCK / 8).flat_map(|_| random.bits().to_le_bytes()).collect()
}

fn status(cluster: &Cluster) -> Result<Value> {
    cluster.basalt(&["cluster", "status"])
}

/// Waits until all nodes hold as much of each group as its leader.
fn wait_level(cluster: &Cluster) -> Result<()> {
    let patience = PATIENCE * 5;
    wait_until("every replica holds what its leader holds", patience, || {
        let status = status(cluster)?;
        let groups = status["groups"].as_array().context("no groups")?;
        let level = |group: &Value| group["voters_reachable"] == 3 && group["entries_behind"] == 0;
        Ok(groups.iter().all(level))
    })
}
