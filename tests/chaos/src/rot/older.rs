//! An older image of a whole device is put back while its node is down.

use super::Course;
use super::disk::{Disk, path_of};
use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{PATIENCE, Shape};
use basalt_interop::process::wait_until;
use basalt_wire::block::BLOCK_BYTES;

const VOLUME_BYTES: u64 = 8 << 20;
const NODE: usize = 2;

/// What becomes of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// No checkpoint is younger than the image: a leader tells the node what it lacks, and gives it.
    Healed,
    /// A checkpoint is: the node takes part in nothing before the others readmit it, and gets everything anew.
    Mute,
    /// So it is, and the log has used segments again: the device is not opened.
    Refused,
}

impl Fate {
    fn shape(self) -> Shape {
        let (device, every) = match self {
            Fate::Healed => ("512MiB", "1GiB"),
            Fate::Mute => ("512MiB", "4MiB"),
            Fate::Refused => ("48MiB", "4MiB"),
        };
        let node_args = ["--checkpoint-every", every].map(str::to_owned).to_vec();
        Shape { device, segment: "1MiB", node_args, ..Shape::default() }
    }

    /// What the node says of it in its log.
    fn said(self) -> &'static str {
        match self {
            Fate::Healed => "the device holds an older state",
            Fate::Mute => "a vote may be lost",
            Fate::Refused => "is an older image of itself",
        }
    }
}

/// Puts an image back, and shows what comes of it; `tell` hears what the node and `cluster status` say.
///
/// # Errors
/// If a wrong byte or an error is returned, or what happened is not said.
pub fn older(name: &str, fate: Fate, seed: u64, tell: impl Fn(&str)) -> Result<()> {
    let mut course = Course::begin(name, &fate.shape(), VOLUME_BYTES, seed)?;
    let blocks = VOLUME_BYTES / BLOCK_BYTES as u64;
    course.go_back(fate, blocks)?;
    let from = course.log_of(NODE, 0)?.len();
    course.cluster.nodes[NODE].process.restart()?;
    course.wait_said(fate, from, &tell)?;
    if fate != Fate::Refused {
        // While it comes back.
        course.load.overwrite(blocks)?;
        course.cluster.wait_healthy()?;
        course.load.verify(&course.cluster)?;
        course.is_whole_everywhere()?;
        course.read_without_each()?;
        return course.end();
    }
    course.load.verify(&course.cluster)?;
    course.load.overwrite(blocks)?;
    course.load.verify(&course.cluster)?;
    let status = course.cluster.basalt(&["cluster", "status"])?;
    let sentence = status["health_sentence"].as_str().context("no sentence")?.to_owned();
    ensure!(status["health"] == "degraded" && sentence.contains("node-3"), "{status}");
    let refused = status["nodes"][NODE]["state"].as_str().is_some_and(|s| s.starts_with("failed"));
    ensure!(refused, "{status}");
    tell(&sentence);
    course.attached.process.stop(PATIENCE)?;
    course.cluster.discard();
    Ok(())
}

impl Course {
    /// Kills the node, whose device holds then what it held a while ago.
    fn go_back(&mut self, fate: Fate, blocks: u64) -> Result<()> {
        // A log that has been round the device tells nothing of the time before, without its checkpoint.
        let rounds = if fate == Fate::Refused { 8 } else { 0 };
        (0..rounds).try_for_each(|_| self.load.overwrite(blocks))?;
        self.load.freeze(&self.cluster)?;
        self.calm()?;
        let path = path_of(&self.cluster.nodes[NODE]);
        let image = path.with_extension("older");
        Disk::open(&path)?.copy_to(&image)?;
        (0..2).try_for_each(|_| self.load.overwrite(blocks))?;
        self.calm()?;
        self.cluster.nodes[NODE].process.kill()?;
        Disk::open(&path)?.restore(&image)
    }

    fn wait_said(&self, fate: Fate, from: usize, tell: &impl Fn(&str)) -> Result<()> {
        let mut said = None;
        wait_until("the node says what is wrong", PATIENCE, || {
            let log = self.log_of(NODE, from)?;
            said = log.lines().find(|line| line.contains(fate.said())).map(str::to_owned);
            Ok(said.is_some())
        })
        .with_context(|| self.log_of(NODE, from).unwrap_or_default())?;
        tell(&said.unwrap_or_default());
        Ok(())
    }
}
