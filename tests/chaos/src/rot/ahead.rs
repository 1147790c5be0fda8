//! What only a start needs rots while the nodes run: a header in a closed segment of one node, a file of the
//! checkpoint of another. One scrub finds both, and the next start of all nodes needs neither.

use super::Course;
use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{PATIENCE, Shape};
use basalt_interop::process::wait_until;
use basalt_wire::block::BLOCK_BYTES;
use serde_json::Value;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

/// Small, so that there are checkpoints, and closed segments behind them.
const CHECKPOINT_EVERY: &str = "4MiB";
const VOLUME_BYTES: u64 = 8 << 20;

/// Damages both, and shows what comes of it; `tell` hears what the nodes say.
///
/// # Errors
/// If one is not found, a start needs it, or a wrong byte is returned.
pub fn ahead(name: &str, seed: u64, tell: impl Fn(&str)) -> Result<()> {
    let node_args = ["--checkpoint-every", CHECKPOINT_EVERY].map(str::to_owned).to_vec();
    let shape = Shape { device: "512MiB", segment: "1MiB", node_args, ..Shape::default() };
    let mut course = Course::begin(name, &shape, VOLUME_BYTES, seed)?;
    for _ in 0..2 {
        course.load.overwrite(VOLUME_BYTES / BLOCK_BYTES as u64)?;
    }
    course.load.freeze(&course.cluster)?;
    // What a start finds in the log of its store it puts into files.
    course.cluster.stop()?;
    course.cluster.restart()?;
    course.load.overwrite(VOLUME_BYTES / BLOCK_BYTES as u64)?;
    course.calm()?;
    let (header, records) = (0, 1);
    let before = course.opened_from()?;
    course.rot_header(header, |all| all.get(all.len() / 2).copied())?;
    course.rot_records(records)?;
    course.cluster.basalt(&["scrub", "start"])?;
    wait_until("both are found", PATIENCE, || {
        let nodes = course.scrub_status()?;
        let found = |node: usize, what: &str| nodes[node]["scrub"][what].as_u64().unwrap_or(0) > 0;
        Ok(found(header, "headers_bad") && found(records, "records_bad"))
    })?;
    for (node, text) in [(header, "the header at block"), (records, "the checkpoint in the store")]
    {
        let log = course.log_of(node, 0)?;
        tell(log.lines().find(|line| line.contains(text)).context("it is not told")?);
    }
    // The checkpoints that this calls for.
    let kept = |log: &str| log.contains("was not kept");
    course.load.overwrite(VOLUME_BYTES / BLOCK_BYTES as u64 / 4)?;
    course.calm()?;
    course.cluster.kill()?;
    let from: Vec<usize> =
        (0..3).map(|n| course.log_of(n, 0).map(|log| log.len())).collect::<Result<_>>()?;
    course.cluster.restart()?;
    for (n, (from, before)) in from.into_iter().zip(before).enumerate() {
        let log = course.log_of(n, from)?;
        ensure!(!log.contains("the log is damaged") && !kept(&log), "node {}: {log}", n + 1);
        let now = course.opened_from()?[n];
        ensure!(now > before, "node {} started from checkpoint {now}, not behind {before}", n + 1);
    }
    course.load.verify(&course.cluster)?;
    course.is_whole_everywhere()?;
    course.read_without_each()?;
    course.end()
}

impl Course {
    /// The checkpoints from which the nodes started.
    fn opened_from(&self) -> Result<Vec<u64>> {
        let status = self.cluster.basalt(&["cluster", "status"])?;
        let nodes = status["nodes"].as_array().context("no nodes")?;
        let from = |node: &Value| node["opened_from_checkpoint"].as_u64().context("no checkpoint");
        nodes.iter().map(from).collect()
    }

    /// Flips a bit among the data of the largest file of a node's store.
    fn rot_records(&self, node: usize) -> Result<()> {
        let store = self.cluster.nodes[node].folder.join("store");
        let mut tables = Vec::new();
        for entry in std::fs::read_dir(&store).with_context(|| store.display().to_string())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "sst") {
                tables.push((path.metadata()?.len(), path));
            }
        }
        let (bytes, path) = tables.into_iter().max().context("the store has no files")?;
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        // Data stands before what tells where it stands.
        let (at, mut byte) = (bytes / 4, [0]);
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 0x10], at)?;
        Ok(file.sync_all()?)
    }
}
