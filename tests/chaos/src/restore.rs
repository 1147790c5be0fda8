//! A cluster loses its metadata and goes on from a backup that is older than what its devices hold.

use crate::nbd::NbdClient;
use anyhow::{Context, Result, bail, ensure};
use basalt_api::dial;
use basalt_api::v1::WatchRequest;
use basalt_api::v1::resources_client::ResourcesClient;
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::process::wait_until;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// Blocks that are written of each volume.
const BLOCKS: u64 = 64;
const BLOCK: usize = 4096;

/// What becomes of the nodes' data directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// They are lost; the devices are there.
    Directories,
    /// Nothing is lost, and the cluster is to go back to the backup all the same.
    Nothing,
}

fn block(seed: u64, at: u64) -> Vec<u8> {
    let word = (seed << 32 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    word.iter().copied().cycle().take(BLOCK).collect()
}

fn write(client: &mut NbdClient, seed: u64) -> Result<()> {
    (0..BLOCKS).try_for_each(|at| client.write(at * BLOCK as u64, &block(seed, at)))
}

/// Whether all blocks are those of a seed.
fn verify(cluster: &Cluster, volume: &str, host: &str, seed: u64) -> Result<()> {
    let mut attached = cluster.attach(volume, host, false)?;
    let mut client = NbdClient::open(attached.port, volume, PATIENCE)?;
    for at in 0..BLOCKS {
        let read = client.read(at * BLOCK as u64, BLOCK as u32)?;
        ensure!(read == block(seed, at), "block {at} of {volume} is not that of {seed}");
    }
    drop(client);
    attached.process.stop(PATIENCE)
}

fn write_all(cluster: &Cluster, volume: &str, seed: u64) -> Result<()> {
    let mut attached = cluster.attach(volume, "first", false)?;
    let mut client = NbdClient::open(attached.port, volume, PATIENCE)?;
    write(&mut client, seed)?;
    drop(client);
    attached.process.stop(PATIENCE)
}

/// So much that checkpoints are taken, and not so much that a device is filled once.
fn write_much(cluster: &Cluster) -> Result<()> {
    create(cluster, "much")?;
    let mut attached = cluster.attach("much", "first", false)?;
    let mut client = NbdClient::open(attached.port, "much", PATIENCE)?;
    let data: Vec<u8> = (0..256).flat_map(|at| block(7, at)).collect();
    (0..32).try_for_each(|at| client.write(at * data.len() as u64, &data))?;
    drop(client);
    attached.process.stop(PATIENCE)
}

fn create(cluster: &Cluster, volume: &str) -> Result<u64> {
    let made = cluster.basalt(&["volume", "create", volume, "--size", "64MiB"])?;
    made["id"].as_u64().with_context(|| format!("its number in {made}"))
}

/// A refusal's text.
fn refused(answer: Result<Value>) -> Result<String> {
    match answer {
        Ok(answer) => bail!("it was not refused: {answer}"),
        Err(problem) => Ok(format!("{problem:#}")),
    }
}

/// Loses the metadata, restores it, and looks at everything.
///
/// # Errors
/// If anything is not as it should be.
pub fn run(name: &str, loss: Loss) -> Result<()> {
    // Some of it is in checkpoints, and some of the metadata's log forgotten.
    let args =
        ["--metadata-save-every", "20", "--metadata-retain", "10", "--checkpoint-every", "8MiB"];
    let node_args = args.map(str::to_owned).to_vec();
    let shape = Shape { device: "512MiB", groups: 4, node_args, ..Shape::default() };
    let mut cluster = Cluster::start_with(name, &shape)?;
    create(&cluster, "kept")?;
    create(&cluster, "gone")?;
    write_all(&cluster, "kept", 1)?;
    write_all(&cluster, "gone", 2)?;
    write_much(&cluster)?;
    cluster.basalt(&["snapshot", "create", "kept@early"])?;
    write_all(&cluster, "kept", 3)?;
    for at in 0..40 {
        create(&cluster, &format!("filler-{at}"))?;
    }
    let folder = cluster.folder().to_owned();
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let backup = path("cluster.meta");
    let taken = cluster.basalt(&["cluster", "backup", &backup])?;
    let revision = taken["entry"].as_u64().context("the entry")?;
    // What the backup does not know: a volume, a snapshot, a deletion, and somebody who writes.
    let orphan = create(&cluster, "late")?;
    write_all(&cluster, "late", 4)?;
    cluster.basalt(&["volume", "delete", "gone", "--yes"])?;
    wait_until("it is deleted", PATIENCE, || {
        Ok(cluster.basalt(&["volume", "show", "gone"]).is_err())
    })?;
    cluster.basalt(&["snapshot", "create", "kept@late"])?;
    let stale = cluster.attach("kept", "stale", false)?;
    let mut writer = NbdClient::open(stale.port, "kept", PATIENCE)?;
    write(&mut writer, 5)?;
    let works = refused(cluster.basalt(&["cluster", "restore", &backup, "--out", &path("no")]))?;
    ensure!(works.contains("the cluster works"), "{works}");
    ensure!(!Path::new(&path("no")).exists(), "it was written all the same");
    let id = taken["cluster"].as_str().context("the id")?.to_owned();
    cluster.kill()?;
    lose_and_restore(&mut cluster, loss, &backup, &id)?;
    wait_until("the records are compared", PATIENCE, || {
        Ok(cluster.basalt(&["cluster", "orphans"]).is_ok_and(|found| found["settling"] == false))
    })?;
    look_at_inventory(&cluster, orphan)?;
    watchers_begin_again(&cluster, revision)?;
    look_at_data(&cluster, orphan, &mut writer)?;
    // It goes on as any cluster does, and by the same options.
    drop(writer);
    drop(stale);
    cluster.kill()?;
    cluster.restart()?;
    verify(&cluster, "late-again", "third", 4)?;
    cluster.finish()
}

fn lose_and_restore(cluster: &mut Cluster, loss: Loss, backup: &str, id: &str) -> Result<()> {
    let prepared = cluster.folder().join("prepared.meta").to_string_lossy().into_owned();
    let mut words = vec!["cluster", "restore", backup, "--out", &prepared];
    if loss == Loss::Nothing {
        // A node that knows more refuses what was not forced.
        let unforced = cluster.folder().join("unforced.meta").to_string_lossy().into_owned();
        cluster.basalt(&["cluster", "restore", backup, "--out", &unforced])?;
        let node = &mut cluster.nodes[0];
        node.process.set_option("--restore", &unforced);
        node.process.restart()?;
        wait_until("it refuses", PATIENCE, || Ok(!node.process.alive()))?;
        let log = node.process.log_tail();
        ensure!(log.contains("would be undone"), "{log}");
        words.extend(["--force", id]);
    }
    let shown = cluster.basalt(&words)?;
    ensure!(shown["voters"].as_array().is_some_and(|voters| voters.len() == 3), "{shown}");
    for node in &mut cluster.nodes {
        if loss == Loss::Directories {
            std::fs::remove_dir_all(node.folder.join("store"))?;
        }
        node.process.set_option("--restore", &prepared);
        node.process.restart()?;
    }
    cluster.wait_healthy()
}

/// What the backup does not know is shown, and what is not held any more.
fn look_at_inventory(cluster: &Cluster, orphan: u64) -> Result<()> {
    let found = cluster.basalt(&["cluster", "orphans"])?;
    ensure!(found["whole"] == true, "{found}");
    let orphans = found["orphans"].as_array().context("orphans")?;
    ensure!(orphans.len() == 1 && orphans[0]["number"] == orphan, "{found}");
    ensure!(orphans[0]["bytes"] == BLOCKS * BLOCK as u64, "{found}");
    let lacks = found["lacks"].as_array().context("lacks")?;
    ensure!(lacks.len() == 1 && lacks[0]["name"] == "volumes/gone", "{found}");
    Ok(())
}

/// A watch from a revision of before is told to begin again.
fn watchers_begin_again(cluster: &Cluster, revision: u64) -> Result<()> {
    crate::api::present()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async {
        let channel = dial::channel(&cluster.nodes[0].address(), PATIENCE)?;
        let from_revision = revision + 1;
        let request = WatchRequest { from_revision, ..WatchRequest::default() };
        anyhow::Ok(ResourcesClient::new(channel).watch(request).await)
    })?;
    let status = answer.err().context("the watch went on from a revision of before")?;
    ensure!(status.message().contains("begin the watch again"), "{status}");
    Ok(())
}

fn look_at_data(cluster: &Cluster, orphan: u64, writer: &mut NbdClient) -> Result<()> {
    // The last that was answered is there, and whoever wrote it is shut out once somebody else has the volume.
    verify(cluster, "kept", "second", 5)?;
    let fenced = writer.write(0, &block(6, 0));
    ensure!(fenced.is_err(), "a session of before the restore still writes");
    verify(cluster, "kept", "second", 5)?;
    verify_view(cluster, "kept@early", 1)?;
    // It was taken after the backup, and has no name any more but that of its generation.
    verify_view(cluster, "kept@restored-1", 3)?;
    cluster.basalt(&["snapshot", "create", "kept@new"])?;
    verify_view(cluster, "kept@new", 5)?;
    let new = create(cluster, "new")?;
    ensure!(new > orphan + 1_000_000, "the number {new} may have been given before");
    verify_gone(cluster)?;
    let number = orphan.to_string();
    cluster.basalt(&["cluster", "orphans", "adopt", &number, "late-again", "--size", "64MiB"])?;
    verify(cluster, "late-again", "second", 4)?;
    let found = cluster.basalt(&["cluster", "orphans"])?;
    ensure!(found["orphans"].as_array().is_some_and(Vec::is_empty), "{found}");
    Ok(())
}

fn verify_view(cluster: &Cluster, snapshot: &str, seed: u64) -> Result<()> {
    let mut attached = cluster.attach(snapshot, "viewer", false)?;
    let mut client = NbdClient::open(attached.port, snapshot, PATIENCE)?;
    for at in 0..BLOCKS {
        let read = client.read(at * BLOCK as u64, BLOCK as u32)?;
        ensure!(read == block(seed, at), "block {at} of {snapshot} is not that of {seed}");
    }
    drop(client);
    attached.process.stop(PATIENCE)
}

/// What was deleted since can be deleted again.
fn verify_gone(cluster: &Cluster) -> Result<()> {
    cluster.basalt(&["volume", "delete", "gone", "--yes"])?;
    wait_until("it is deleted", Duration::from_secs(30), || {
        Ok(cluster.basalt(&["volume", "show", "gone"]).is_err())
    })
}
