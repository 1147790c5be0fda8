//! The metadata group after many changes: what a start has to do again, and how a node comes to the state when the
//! log does not begin at its start any more.

use crate::measure::resident_bytes;
use anyhow::{Context, Result, ensure};
use basalt_api::dial;
use basalt_api::v1::peer_client::PeerClient;
use basalt_api::v1::{AttachVolumeRequest, CreateVolumeRequest, GetReportRequest, NodeReport};
use basalt_interop::cluster::{Cluster, Node, PATIENCE, Shape};
use basalt_interop::process::wait_until;
use basalt_security::Role;
use serde_json::Value;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// Calls under way at a time.
const CALLS: u64 = 64;
/// Changes after which the state is saved in [`run`], and those that are kept for nodes that were away.
const SAVE_EVERY: u64 = 200;
const RETAIN: u64 = 50;
/// How long a node may take until it has all that is committed.
const CATCH_UP: Duration = Duration::from_secs(60);

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn report(runtime: &Runtime, node: &Node) -> Result<NodeReport> {
    let _inside = runtime.enter();
    // What nodes ask of each other, only a node may ask.
    let as_node = crate::api::credentials(Role::Node)?;
    let mut peer = PeerClient::new(dial::channel_as(&node.address(), PATIENCE, &as_node)?);
    Ok(runtime.block_on(peer.get_report(GetReportRequest {}))?.into_inner())
}

/// Makes changes through one node: volumes from `first` on, then new epochs of them in turn.
fn change(
    runtime: &Runtime,
    node: &Node,
    volumes: std::ops::Range<u64>,
    epochs: u64,
) -> Result<()> {
    let _inside = runtime.enter();
    crate::api::present()?;
    let client = dial::admin(&node.address(), PATIENCE)?;
    let (made, count) = (volumes.end - volumes.start, volumes.end);
    let next = Arc::new(AtomicU64::new(0));
    runtime.block_on(async {
        for (total, creates) in [(made, true), (epochs, false)] {
            next.store(0, Ordering::Relaxed);
            let mut callers = JoinSet::new();
            for _ in 0..CALLS {
                let (mut client, next, first) = (client.clone(), next.clone(), volumes.start);
                callers.spawn(async move {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= total {
                            return anyhow::Ok(());
                        }
                        if creates {
                            let (volume_id, size_bytes) = (format!("v{}", first + n), 1 << 30);
                            let request =
                                CreateVolumeRequest { volume_id, size_bytes, ..Default::default() };
                            client.create_volume(request).await?;
                        } else {
                            let (name, host) =
                                (format!("volumes/v{}", n % count), "far".to_owned());
                            let request = AttachVolumeRequest {
                                name,
                                host,
                                renew: true,
                                ..Default::default()
                            };
                            client.attach_volume(request).await?;
                        }
                    }
                });
            }
            while let Some(ended) = callers.join_next().await {
                ended??;
            }
        }
        Ok(())
    })
}

/// Waits until a node has applied an entry.
fn wait_applied(runtime: &Runtime, node: &Node, entry: u64) -> Result<NodeReport> {
    let mut last = None;
    let what = format!("{} has applied entry {entry}", node.name);
    wait_until(&what, CATCH_UP, || {
        last = report(runtime, node).ok();
        Ok(last.as_ref().is_some_and(|report| report.metadata_applied >= entry))
    })
    .with_context(|| format!("{last:?}"))?;
    last.context("seen above")
}

/// All volumes as a node tells them.
fn volumes(cluster: &Cluster, at: usize) -> Result<Value> {
    cluster.basalt_at(at, &["volume", "list"])
}

/// Thousands of changes; all nodes are stopped in order, then killed; one is away while what it needs is forgotten,
/// and one comes new.
///
/// # Errors
/// If a start makes more again than it should, or a node does not come to the state.
pub fn run(name: &str, changes: u64) -> Result<()> {
    let args = ["--metadata-save-every", "200", "--metadata-retain", "50"];
    let node_args = args.map(str::to_owned).to_vec();
    let shape = Shape { device: "512MiB", groups: 4, node_args, ..Shape::default() };
    let mut cluster = Cluster::start_with(name, &shape)?;
    let runtime = runtime()?;
    change(&runtime, &cluster.nodes[0], 0..100, changes)?;
    for kills in [false, true] {
        change(&runtime, &cluster.nodes[0], 100..100, 6 * SAVE_EVERY + 30)?;
        let before = volumes(&cluster, 0)?;
        restarted(&mut cluster, &runtime, kills, &before)?;
    }
    away(&mut cluster, &runtime)?;
    backed_up(&cluster, 200)?;
    let before = volumes(&cluster, 0)?;
    let new = cluster.add_node(None)?;
    let applied = report(&runtime, &cluster.nodes[0])?.metadata_applied;
    let came = wait_applied(&runtime, &cluster.nodes[new], applied)?;
    ensure!(came.metadata_first > 1, "the new node got the whole log: {came:?}");
    ensure!(volumes(&cluster, new)? == before, "the new node has another state");
    cluster.wait_healthy()?;
    let everything = before;
    cluster.stop()?;
    cluster.restart()?;
    for at in 0..cluster.nodes.len() {
        ensure!(volumes(&cluster, at)? == everything, "node {at} has another state after all");
    }
    cluster.finish()
}

fn restarted(cluster: &mut Cluster, runtime: &Runtime, kills: bool, before: &Value) -> Result<()> {
    let applied = report(runtime, &cluster.nodes[0])?.metadata_applied;
    match kills {
        true => cluster.kill()?,
        false => cluster.stop()?,
    }
    cluster.restart()?;
    for at in 0..cluster.nodes.len() {
        let report = wait_applied(runtime, &cluster.nodes[at], applied)?;
        let (saved, replayed) = (report.metadata_saved, report.metadata_replayed);
        println!("node {at}, killed {kills}: applied {applied}, saved {saved}, again {replayed}");
        // What came while the last saves were under way comes on top.
        let most = if kills { 3 * SAVE_EVERY } else { CALLS };
        ensure!(replayed <= most, "node {at} was told {replayed} commands again");
        ensure!(&volumes(cluster, at)? == before, "node {at} has another state");
    }
    Ok(())
}

/// A backup holds all volumes, can be verified, takes no file's place, and is noticed when it is damaged.
fn backed_up(cluster: &Cluster, count: u64) -> Result<()> {
    let path = cluster.folder().join("cluster.meta");
    let file = path.to_string_lossy().into_owned();
    let taken = cluster.basalt(&["cluster", "backup", &file])?;
    ensure!(taken["volumes"] == count && taken["nodes"] == 3, "{taken}");
    ensure!(cluster.basalt(&["cluster", "backup", "verify", &file])? == taken, "another one");
    let again = cluster
        .basalt(&["cluster", "backup", &file])
        .map_or_else(|e| format!("{e:#}"), |v| v.to_string());
    ensure!(again.contains("exists"), "it was written over: {again}");
    let mut bytes = std::fs::read(&path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes)?;
    let bad = cluster.basalt(&["cluster", "backup", "verify", &file]);
    ensure!(bad.is_err(), "damage is not noticed: {bad:?}");
    Ok(())
}

/// A node is away until the others' logs begin behind all that it knows.
fn away(cluster: &mut Cluster, runtime: &Runtime) -> Result<()> {
    let known = report(runtime, &cluster.nodes[2])?.metadata_applied;
    cluster.nodes[2].process.kill()?;
    change(runtime, &cluster.nodes[0], 100..200, 4 * (SAVE_EVERY + RETAIN))?;
    wait_until("what the node needs is forgotten", PATIENCE, || {
        let reports = [report(runtime, &cluster.nodes[0])?, report(runtime, &cluster.nodes[1])?];
        Ok(reports.iter().all(|report| report.metadata_first > known + 1))
    })?;
    cluster.nodes[2].process.restart()?;
    cluster.nodes[2].wait_answers()?;
    let applied = report(runtime, &cluster.nodes[0])?.metadata_applied;
    wait_applied(runtime, &cluster.nodes[2], applied)?;
    cluster.wait_healthy()?;
    ensure!(volumes(cluster, 2)? == volumes(cluster, 0)?, "it has another state");
    Ok(())
}

/// What a start costs.
pub struct Figures {
    /// Entries of the metadata group.
    pub entries: u64,
    /// From the start of the process until its state is the present one.
    pub start: Duration,
    /// Memory of the process then, and before it was stopped.
    pub resident: u64,
    /// See `resident`.
    pub resident_before: u64,
    /// Bytes of the node's store.
    pub store: u64,
    /// Commands that were told again.
    pub replayed: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} entries: start {} ms, {} commands told again, {} MiB resident ({} MiB before the stop), {} KiB in \
             the store",
            self.entries,
            self.start.as_millis(),
            self.replayed,
            self.resident >> 20,
            self.resident_before >> 20,
            self.store >> 10,
        )
    }
}

/// Makes so many volumes and so many changes of them on a cluster of one node, and measures its next starts: after an
/// orderly stop, and after a kill.
///
/// # Errors
/// If the cluster does not work.
pub fn figures(name: &str, count: u64, changes: u64) -> Result<[Figures; 2]> {
    let shape = Shape { nodes: 1, device: "4GiB", groups: 4, ..Shape::default() };
    let mut cluster = Cluster::start_with(name, &shape)?;
    let runtime = runtime()?;
    let began = Instant::now();
    change(&runtime, &cluster.nodes[0], 0..count, changes)?;
    println!("{} changes in {:.1} s", count + changes, began.elapsed().as_secs_f64());
    let figures =
        [measured(&mut cluster, &runtime, false)?, measured(&mut cluster, &runtime, true)?];
    cluster.finish()?;
    Ok(figures)
}

fn measured(cluster: &mut Cluster, runtime: &Runtime, kills: bool) -> Result<Figures> {
    let entries = report(runtime, &cluster.nodes[0])?.metadata_applied;
    let resident_before = resident_bytes(cluster.nodes[0].process.id())?;
    match kills {
        true => cluster.kill()?,
        false => cluster.stop()?,
    }
    let store = folder_bytes(&cluster.nodes[0].folder.join("store"))?;
    let began = Instant::now();
    cluster.nodes[0].process.restart()?;
    while report(runtime, &cluster.nodes[0]).map_or(0, |report| report.metadata_applied) < entries {
        ensure!(began.elapsed() < 2 * PATIENCE, "it does not come to its state");
        std::thread::sleep(Duration::from_millis(5));
    }
    let start = began.elapsed();
    let resident = resident_bytes(cluster.nodes[0].process.id())?;
    cluster.wait_healthy()?;
    let replayed = report(runtime, &cluster.nodes[0])?.metadata_replayed;
    Ok(Figures { entries, start, resident, resident_before, store, replayed })
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() { folder_bytes(&entry.path())? } else { meta.len() };
    }
    Ok(bytes)
}
