//! Headers of batches that rotted while all nodes were down.
//!
//! One lies before the place where the node's checkpoint has replay begin: nobody needs it, and the blocks of
//! its batch are found by the index. The other, on another node, lies behind: what the batch held is known from
//! its neighbour, said to be lost, and had again from the other nodes.

use super::Course;
use super::disk::{Disk, path_of};
use super::places::Places;
use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{PATIENCE, Shape};
use basalt_interop::process::wait_until;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::disk::batch::BatchHeader;

/// Small, so that there is a log before the checkpoint.
const CHECKPOINT_EVERY: &str = "4MiB";
const VOLUME_BYTES: u64 = 8 << 20;
/// A byte of the header that is no part of its fixed fields' bounds: the checksum tells that it is another.
const ROTTEN_BYTE: usize = 90;

/// Damages both, and shows what comes of it; `tell` hears what the node says of its loss.
///
/// # Errors
/// If a wrong byte or an error is returned, the loss is not told, or something stays lost.
pub fn headers(name: &str, seed: u64, tell: impl Fn(&str)) -> Result<()> {
    let node_args = ["--checkpoint-every", CHECKPOINT_EVERY].map(str::to_owned).to_vec();
    let shape = Shape { device: "512MiB", segment: "1MiB", node_args, ..Shape::default() };
    let mut course = Course::begin(name, &shape, VOLUME_BYTES, seed)?;
    course.load.overwrite(VOLUME_BYTES / BLOCK_BYTES as u64)?;
    course.load.freeze(&course.cluster)?;
    course.load.overwrite(VOLUME_BYTES / BLOCK_BYTES as u64)?;
    course.calm()?;
    course.cluster.kill()?;
    let (early, late) = (0, 1);
    let behind = course.rot_header(early, |all| all.into_iter().next())?;
    // The last batch of all is the seal of a log that fell idle; what it covers counts as durable.
    course.rot_header(late, |all| all.into_iter().next_back())?;
    let from = [course.log_of(early, 0)?.len(), course.log_of(late, 0)?.len()];
    course.cluster.restart()?;
    let node = course.cluster.basalt(&["cluster", "status"])?["nodes"][early].clone();
    let replayed = node["replayed_bytes"].as_u64().context("no bytes replayed")?;
    ensure!(
        node["opened_from_checkpoint"] != 0 && replayed < behind,
        "{replayed}, {behind}: {node}"
    );
    let log = course.log_of(early, from[0])?;
    ensure!(!log.contains("the log is damaged"), "what nobody needs was looked for: {log}");
    let mut said = None;
    wait_until("the node tells its loss", PATIENCE, || {
        let log = course.log_of(late, from[1])?;
        said = log.lines().find(|line| line.contains("the log is damaged")).map(str::to_owned);
        Ok(said.is_some())
    })?;
    tell(&said.unwrap_or_default());
    course.load.verify(&course.cluster)?;
    course.is_whole_everywhere()?;
    course.read_without_each()?;
    course.end()
}

impl Course {
    /// Flips a bit in the header of a batch that wrote blocks, and gives the bytes of log from there on.
    pub(super) fn rot_header(
        &self,
        node: usize,
        choose: impl Fn(Vec<&BatchHeader>) -> Option<&BatchHeader>,
    ) -> Result<u64> {
        let disk = Disk::open(&path_of(&self.cluster.nodes[node]))?;
        let places = Places::read(&disk, self.volume)?;
        let wrote = |header: &&BatchHeader| header.fields.payload_blocks > 0;
        let header = choose(places.headers.values().filter(wrote).collect());
        let header = header.context("no batch wrote blocks")?;
        let at = places.header_offset(header);
        let mut bytes = disk.read(at, BLOCK_BYTES)?;
        bytes[ROTTEN_BYTE] ^= 1;
        ensure!(BatchHeader::decode(&bytes).is_err(), "the header is as good as before");
        disk.write(at, &bytes)?;
        disk.sync()?;
        let from = places.headers.range(header.fields.seq..);
        Ok(from.map(|(_, header)| u64::from(header.blocks()) * BLOCK_BYTES as u64).sum())
    }
}
