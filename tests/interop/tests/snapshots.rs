//! Snapshots of a volume that is written all the time: each is one point in time, and stays what it is.

use anyhow::{Context, Result, bail, ensure};
use basalt_interop::cluster::{Attached, Cluster, PATIENCE};
use basalt_interop::fio::FioJob;
use basalt_interop::process::{run, wait_until};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
/// Two blocks of each chunk are counted on, so that the counts of a round go to many groups.
const BLOCKS: usize = 64;
const STRIDE: u64 = 2 * MIB;
const SIZE: u64 = BLOCKS as u64 * STRIDE;

/// Counts over an export: round after round writes its number into block after block, each when the one
/// before is acknowledged. Any point in time shows at most two numbers, the higher one before the lower.
struct Counter(Child);

impl Counter {
    fn start(uri: &str) -> Result<Counter> {
        let script = format!(
            "import nbd\nh = nbd.NBD()\nh.connect_uri('{uri}')\nround = 0\nwhile True:\n  round += 1\n  \
             for block in range({BLOCKS}):\n    h.pwrite(round.to_bytes(8, 'little') * {}, block * {STRIDE})\n",
            BLOCK / 8
        );
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-B", "-c", &script]).stdin(Stdio::null());
        Ok(Counter(python.spawn().context("python3 and python3-libnbd are needed")?))
    }

    fn alive(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // It may have ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn copy(uri: &str, to: &Path) -> Result<Vec<u8>> {
    run("nbdcopy", &[uri, to.to_str().unwrap_or_default()])?;
    Ok(std::fs::read(to)?)
}

fn counts(image: &[u8]) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    for block in 0..BLOCKS {
        let at = block * STRIDE as usize;
        let words: Vec<u64> = image[at..at + BLOCK]
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
            .collect();
        ensure!(words.iter().all(|word| *word == words[0]), "block {block} is torn");
        found.push(words[0]);
    }
    Ok(found)
}

/// The first count of an image that is a prefix of what was written; anything else is an error.
fn prefix(image: &[u8]) -> Result<u64> {
    let found = counts(image)?;
    let (first, last) = (found[0], found[BLOCKS - 1]);
    let falls = found.windows(2).all(|pair| pair[0] >= pair[1]);
    ensure!(falls && first - last <= 1, "the snapshot is no point in time: {found:?}");
    Ok(first)
}

struct Shown {
    name: String,
    attached: Attached,
    image: Vec<u8>,
    path: PathBuf,
}

fn show(cluster: &Cluster, name: &str) -> Result<Shown> {
    let full = format!("demo@{name}");
    let attached = cluster.attach(&full, &format!("view-{name}"), false)?;
    let path = cluster.folder().join(name);
    let image = copy(&attached.uri(&full), &path)?;
    Ok(Shown { name: full, attached, image, path })
}

fn names(cluster: &Cluster) -> Result<Vec<String>> {
    let list = cluster.basalt(&["snapshot", "list", "demo"])?;
    let list = list["snapshots"].as_array().context("no list")?.clone();
    Ok(list.iter().filter_map(|s| s["name"].as_str()).map(str::to_owned).collect())
}

#[test]
fn snapshots_under_load_are_points_in_time_and_stay() -> Result<()> {
    let mut cluster = Cluster::start("snapshots")?;
    let size = SIZE.to_string();
    cluster.basalt(&["volume", "create", "demo", "--size", &size])?;
    // One of the empty volume, which nobody has and no group has heard of.
    cluster.basalt(&["snapshot", "create", "demo@empty"])?;
    cluster.basalt(&["volume", "attach", "demo", "--host", "node-2"])?;
    let uri = cluster.nodes[1].uri("demo");
    cluster.wait_served(&uri)?;
    let mut counter = Counter::start(&uri)?;
    let path = cluster.folder().join("live");
    wait_until("it counts", PATIENCE, || Ok(counts(&copy(&uri, &path)?)?[BLOCKS - 1] > 0))?;

    let mut shown = vec![show(&cluster, "empty")?];
    ensure!(shown[0].image.iter().all(|byte| *byte == 0), "the empty volume was not empty");
    let mut last = 0;
    for number in 1..=4 {
        if number == 3 {
            // The one that carries snapshots out may be among the dead: another goes on.
            cluster.nodes[0].process.kill()?;
        }
        let before = counts(&copy(&uri, &path)?)?[BLOCKS - 1];
        let taken = cluster.basalt(&["snapshot", "create", &format!("demo@s{number}")])?;
        ensure!(taken["state"] == "ready", "{taken}");
        // Which is written down a moment later, but everybody who asks hears the same.
        for at in (0..cluster.nodes.len()).filter(|at| number != 3 || *at != 0) {
            let told = cluster.basalt_at(at, &["snapshot", "show", &format!("demo@s{number}")])?;
            ensure!(told["state"] == "ready", "node {at}: {told}");
        }
        let snapshot = show(&cluster, &format!("s{number}"))?;
        let count = prefix(&snapshot.image)?;
        ensure!(count >= before.max(last), "s{number} has {count}, after {before} and {last}");
        last = count;
        shown.push(snapshot);
        if number == 3 {
            cluster.nodes[0].process.restart()?;
            cluster.wait_healthy()?;
        }
    }
    ensure!(counter.alive()?, "the counter met an error");
    drop(counter);

    let twice = cluster.basalt(&["snapshot", "create", "demo@s1"]);
    ensure!(twice.is_err_and(|e| e.to_string().contains("has a snapshot 's1' already")));
    let refused =
        FioJob { verify: false, ..FioJob::verified_writes(&shown[1].attached.uri("demo@s1"), MIB) };
    ensure!(refused.run().is_err(), "a snapshot was written to");

    // Deleting one leaves the others as they are, after everything was overwritten and all nodes died.
    cluster.basalt(&["snapshot", "delete", "demo@s2"])?;
    FioJob::verified_writes(&uri, SIZE / 8).run()?;
    cluster.kill()?;
    cluster.restart()?;
    for snapshot in shown.iter_mut().filter(|s| s.name != "demo@s2") {
        let again = copy(&snapshot.attached.uri(&snapshot.name), &snapshot.path)?;
        ensure!(again == snapshot.image, "{} has changed", snapshot.name);
    }
    let left: Vec<String> =
        ["empty", "s1", "s3", "s4"].map(|id| format!("volumes/demo/snapshots/{id}")).into();
    ensure!(names(&cluster)? == left, "{:?}", names(&cluster)?);

    for snapshot in &mut shown {
        snapshot.attached.process.stop(PATIENCE)?;
    }
    cluster.basalt(&["volume", "detach", "demo"])?;
    let early = cluster.basalt(&["volume", "delete", "demo"]);
    ensure!(early.is_err_and(|e| e.to_string().contains("--with-snapshots")));
    cluster.basalt(&["volume", "delete", "demo", "--with-snapshots"])?;
    let list: Value = cluster.basalt(&["volume", "list"])?;
    let Some(volumes) = list["volumes"].as_array() else { bail!("{list}") };
    ensure!(volumes.is_empty(), "{list}");
    cluster.finish()
}
